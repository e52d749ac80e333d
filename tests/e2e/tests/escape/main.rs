//! Ways out of a container, tried by a function: forked from a zygote, and cold. The probes and how each has to end are
//! `sock-isolation`'s own (`crates/isolation/tests/it/escape`); here they meet what the platform adds.
//!
//! All of them are tried by one server for each run of the tests; each outcome is a test.

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

const KINDS: [&str; 2] = ["forked", "cold"];

/// By kind and probe.
type Outcomes = BTreeMap<String, BTreeMap<String, String>>;

fn main() {
    let arguments = Arguments::from_args();
    let lines = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    let probes = lines.filter_map(|line| line.split_once(' ')).filter(|(name, _)| !NOT_HERE.contains(name));
    let trials = probes.flat_map(|(name, expected)| {
        KINDS.map(|kind| Trial::test(format!("{kind}::{name}"), move || check(kind, name, expected)))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn check(kind: &str, name: &str, expected: &str) -> Result<(), Failed> {
    let outcomes = outcomes();
    let found = outcomes[kind].get(name).ok_or("it was not tried")?;
    if expected.split(' ').any(|outcome| outcome == found) {
        return Ok(());
    }
    Err(format!("{name} ended with {found:?}, and should with {expected}").into())
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
    let server = Server::start(data.path());
    let name = format!("sock-escape-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let key = (0x50c4_0000 | (std::process::id() & 0xffff)).to_string();
    let shared = "import ctypes, sys; sys.exit(ctypes.CDLL(None).shmget(int(sys.argv[1]), 4096, 0o1666) < 0)";
    assert!(Command::new("/usr/bin/python3").args(["-c", shared, &key]).status().unwrap().success());
    let environment = json!({"PORT": server.port().to_string(), "ABSTRACT": name, "KEY": key});
    let mut outcomes = Outcomes::new();
    for kind in KINDS {
        let fresh: &[&str] = if kind == "cold" { &["--fresh"] } else { &[] };
        let flags = [&["--handler", "probes.handler", "--timeout", "600", "--memory", "512"], fresh].concat();
        server.deploy(&tests(PROBES), kind, &flags);
        let probes: Vec<&str> = EXPECTED
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(' ').next())
            .filter(|name| !NOT_HERE.contains(name))
            .collect();
        let answer = server.run(kind, &json!({"environment": environment, "probes": probes}));
        assert_eq!((answer.status, answer.start == "cold"), (200, kind == "cold"), "{answer:?}");
        outcomes.insert(kind.to_owned(), serde_json::from_value(answer.body).unwrap());
    }
    // The server and the next one's functions are as they were.
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler"]);
    assert_eq!(server.run("echo", &json!([1])).body, json!([1]));
    let _ = Command::new("ipcrm").args(["-M", &key]).status();
    assert!(server.stop());
    outcomes
}
