//! Ways out of a container, tried by a function, forked from a zygote, cold and strict, and by a command of `sock run`. The probes and how each has
//! to end are `sock-isolation`'s own (`crates/isolation/tests/it/escape`); here they meet what the platform adds.
//!
//! All of them are tried once for each run of the tests; each outcome is a test.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report, in its helpers too")]

#[allow(dead_code, reason = "it has what the other tests need as well")]
#[path = "../it/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use server::{Server, tests};

const EXPECTED: &str = include_str!("../../../../crates/isolation/tests/it/escape/expected.txt");
const PROBES: &str = "../crates/isolation/tests/it/escape/probes.py";

/// These fill `/tmp`, which is memory that counts: what becomes of a function that does is `handlers::toomuch`'s.
const NOT_HERE: [&str; 2] = ["all_of_tmp", "all_inodes"];

/// The last of the profile `strict`.
const FUNCTIONS: [&str; 3] = ["forked", "cold", "held"];
/// Under `sock run`, each of that profile.
const COMMANDS: [&str; 2] = ["lean", "strict"];

/// By kind and probe.
type Outcomes = BTreeMap<String, BTreeMap<String, String>>;

fn main() {
    let arguments = Arguments::from_args();
    let lines = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    let probes = lines.filter_map(|line| line.split_once(' ')).filter(|(name, _)| !NOT_HERE.contains(name));
    let trials = probes.flat_map(|(name, expected)| {
        let kinds = FUNCTIONS.into_iter().chain(COMMANDS);
        kinds.map(move |kind| Trial::test(format!("{kind}::{name}"), move || check(kind, name, expected)))
    });
    let host = Trial::test("the_host_is_as_it_was", the_host);
    libtest_mimic::run(&arguments, trials.chain([host]).collect()).exit();
}

fn check(kind: &str, name: &str, expected: &str) -> Result<(), Failed> {
    let outcomes = outcomes();
    let found = outcomes[kind].get(name).ok_or("it was not tried")?;
    let strict = expected.split(' ').find_map(|outcome| outcome.strip_prefix("strict:"));
    let is_right = match strict {
        Some(outcome) if ["strict", "held"].contains(&kind) => outcome == found,
        _ => expected.split(' ').any(|outcome| outcome == found),
    };
    if is_right {
        return Ok(());
    }
    Err(format!("{name} ended with {found:?}, and should with {expected}").into())
}

/// Nothing that was tried has changed what the host's own processes see.
fn the_host() -> Result<(), Failed> {
    let outcomes = outcomes();
    for (file, before) in &outcomes["before"] {
        let after = &outcomes["after"][file];
        if after != before {
            return Err(format!("{file} was\n{before}\nand is\n{after}").into());
        }
    }
    Ok(())
}

/// What they see, as files.
fn host() -> BTreeMap<String, String> {
    let files = [
        "/proc/self/mountinfo",
        "/proc/swaps",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/vm/overcommit_memory",
        "/proc/self/net/dev_mcast",
        "/proc/sysvipc/msg",
        "/proc/sysvipc/sem",
        "/etc/passwd",
        "/usr/lib/os-release",
    ];
    files.map(|file| (file.to_owned(), fs::read_to_string(file).unwrap_or_default())).into()
}

/// Tried once in a run, by the first that asks; nextest runs each test in a process of its own.
fn outcomes() -> Outcomes {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(directory).unwrap();
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let lock = File::create(directory.join("escape.lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let path = directory.join("escape.json");
    let (known, outcomes): (String, Outcomes) =
        fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    if known == run {
        return outcomes;
    }
    let outcomes = try_all();
    fs::write(&path, json!([run, outcomes]).to_string()).unwrap();
    outcomes
}

fn try_all() -> Outcomes {
    let data = tempfile::tempdir().unwrap();
    let before = host();
    let server = Server::start(data.path());
    let name = format!("sock-escape-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let key = (0x50c4_0000 | (std::process::id() & 0xffff)).to_string();
    let shared = "import ctypes, sys; sys.exit(ctypes.CDLL(None).shmget(int(sys.argv[1]), 4096, 0o1666) < 0)";
    assert!(Command::new("/usr/bin/python3").args(["-c", shared, &key]).status().unwrap().success());
    let mut environment: BTreeMap<String, String> = neighbour(&server);
    for (name, value) in [("PORT", server.port().to_string()), ("ABSTRACT", name), ("KEY", key.clone())] {
        environment.insert(name.to_owned(), value);
    }
    let mut outcomes = Outcomes::new();
    let probes: Vec<&str> = EXPECTED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !NOT_HERE.contains(name))
        .collect();
    for profile in COMMANDS {
        outcomes.insert(profile.to_owned(), run(profile, &environment, &probes));
    }
    for kind in FUNCTIONS {
        let more: &[&str] = match kind {
            "cold" => &["--fresh"],
            "held" => &["--profile", "strict"],
            _ => &[],
        };
        let flags = [&["--handler", "probes.handler", "--timeout", "600", "--memory", "512"], more].concat();
        server.deploy(&tests(PROBES), kind, &flags);
        let answer = server.run(kind, &json!({"environment": environment, "probes": probes}));
        assert_eq!((answer.status, answer.start == "cold"), (200, kind != "forked"), "{answer:?}");
        outcomes.insert(kind.to_owned(), serde_json::from_value(answer.body).unwrap());
    }
    // The server and the next one's functions are as they were.
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler"]);
    assert_eq!(server.run("echo", &json!([1])).body, json!([1]));
    let _ = Command::new("ipcrm").args(["-M", &key]).status();
    assert!(server.stop());
    outcomes.insert("before".to_owned(), before);
    outcomes.insert("after".to_owned(), host());
    outcomes
}

/// Another function's instance, and what probes get to know of it.
fn neighbour(server: &Server) -> BTreeMap<String, String> {
    server.deploy(&tests(PROBES), "neighbour", &["--handler", "probes.be_a_neighbour"]);
    let before = server.processes();
    let answer = server.run("neighbour", &json!(null));
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut environment: BTreeMap<String, String> = serde_json::from_value(answer.body).unwrap();
    let all = server.processes();
    // One that was started ahead was there before.
    let instance = all.iter().find(|one| one.inside("/var/task/probes.py").exists());
    let instance = instance.or_else(|| all.difference(&before).next()).unwrap();
    environment.insert("NEIGHBOUR".into(), instance.pid.to_string());
    environment
}

/// By a command in a container of its own.
fn run(profile: &str, environment: &BTreeMap<String, String>, probes: &[&str]) -> BTreeMap<String, String> {
    let environment = environment.iter().map(|(name, value)| format!("{name}={value}"));
    let output = Command::new(server::binary())
        .args(["run", "--profile", profile, "--", "/usr/bin/env"])
        .args(environment)
        .args(["python3", "-I", "-S", "-"])
        .args(probes)
        .stdin(File::open(tests(PROBES)).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}
