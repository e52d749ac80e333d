//! What the command line says when the server refuses, or a function fails: as snapshots.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::server::{Server, binary};

#[test]
fn errors_of_a_server() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    let file = |name: &str, text: &str| {
        let path = work.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let nothing = file("nothing.py", "x = 1\n");
    let broken = file("broken.py", "import missing_module\n");
    let raising = file("raising.py", "def handler(event):\n    raise KeyError('name')\n");
    file("needy/main.py", "def handler(event):\n    return 1\n");
    file("needy/requirements.txt", "a-package-that-is-on-no-index==1.0\n");
    file("odd/main.py", "def handler(event):\n    return 1\n");
    file("odd/requirements.txt", "-e .\n");
    let (needy, odd) = (work.path().join("needy"), work.path().join("odd"));
    let all = [
        &["invoke", "missing"][..],
        &["show", "missing"],
        &["delete", "missing"],
        &["logs", "missing"],
        &["deploy", &nothing, "--name", "no spaces"],
        &["deploy", &nothing, "--memory", "1"],
        &["deploy", &nothing, "--timeout", "1000"],
        &["deploy", &nothing, "--env", "AWS_REGION=mars"],
        &["deploy", &nothing],
        &["invoke", "nothing"],
        &["deploy", &broken],
        &["invoke", "broken"],
        &["deploy", &raising],
        &["invoke", "raising"],
        &["deploy", needy.to_str().unwrap()],
        &["invoke", "needy"],
        &["deploy", odd.to_str().unwrap()],
    ];
    let shown: Vec<String> = all
        .iter()
        .map(|arguments| {
            let output = server.sock(arguments);
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let text = format!("$ sock {}\n{out}{err}", arguments.join(" "));
            let text = text.replace(work.path().to_str().unwrap(), "DIR").replace(&server.endpoint, "SERVER");
            format!("{}\nexit status {}\n", text.trim_end(), output.status.code().unwrap())
        })
        .collect();
    insta::with_settings!({filters => vec![
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[id]"),
        (r"at https?://[^ ]+", "at [index]"),
        // Where the index is a directory, as in the test machine.
        ("in the (package registry|provided package locations)", "in [index]"),
    ]}, {
        insta::assert_snapshot!(shown.join("\n"));
    });
}

#[test]
fn a_wrong_key_is_refused_and_the_right_one_is_in_the_data_directory() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let sock = |key: Option<(&str, &str)>| {
        let mut command = Command::new(binary());
        command.args(["list", "--json", "--endpoint", &server.endpoint]).env("SOCK_DATA_DIR", data.path());
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        if let Some((id, secret)) = key {
            command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
        }
        command.output().unwrap()
    };
    let refused = sock(Some(("SOCKTEST00000001", "not-the-secret-of-this-key")));
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("signature") && said.lines().count() == 1, "{said}");
    let listed = sock(None);
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout).unwrap(), serde_json::json!([]));
    let keys = fs::metadata(data.path().join("keys.json")).unwrap().permissions().mode();
    assert_eq!(keys & 0o777, 0o600);
}

#[test]
fn a_command_runs_in_a_container() {
    let run = |arguments: &[&str]| {
        let output = Command::new(binary()).args(["run", "--"]).args(arguments).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    assert_eq!(run(&["id", "-u"]), (Some(0), "1000".to_owned()));
    assert_eq!(run(&["sh", "-c", "exit 7"]), (Some(7), String::new()));
    assert_eq!(run(&["cat", "/etc/shadow"]), (Some(1), String::new()));
    assert_eq!(run(&["sh", "-c", "echo $$ && ls -A /tmp /var"]).0, Some(0));
}

#[test]
fn a_command_that_cannot_be_started_is_named() {
    let output = Command::new(binary()).args(["run", "--", "/bin/nope"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(127));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.trim(), "sock: failed to start /bin/nope (execve): No such file or directory");
}

/// `sock run` of a command that says when it has begun, and its cgroup.
fn begun() -> (Child, PathBuf) {
    let mut command = Command::new(binary());
    let mut run = command
        .args(["run", "--", "sh", "-c", "echo begun; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let init = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id())).unwrap();
    let group = fs::read_to_string(format!("/proc/{}/cgroup", init.trim())).unwrap();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let group = crate::crash::mount().join(group);
    (run, group)
}

fn members(group: &Path) -> usize {
    fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines().count()
}

#[test]
fn a_signal_ends_a_command_and_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (mut run, group) = begun();
        assert_eq!(members(&group), 2, "its PID 1 and itself");
        #[expect(clippy::disallowed_methods, reason = "nobody else can reap it")]
        kill(Pid::from_raw(run.id() as i32), signal).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(128 + signal as i32));
        assert!(!group.exists());
    }
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let (mut run, group) = begun();
    run.kill().unwrap();
    run.wait().unwrap();
    let begin = Instant::now();
    while members(&group) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(10), "its container does not go with it");
        std::thread::yield_now();
    }
    // Its cgroup stays until somebody comes by.
    let status = Command::new(binary()).args(["run", "--", "true"]).status();
    assert!(status.unwrap().success());
    assert!(!group.exists());
}

/// Shared memory is nobody's in particular: no limit of a single process counts it.
#[test]
fn a_command_that_needs_too_much_memory_is_told_from_others() {
    let takes = "import mmap\nshared = mmap.mmap(-1, 256 << 20)\nfor page in range(0, 256 << 20, 4096): shared[page] = 1\nprint('got it')";
    let run = |memory: &str, argv: &[&str]| {
        let output =
            Command::new(binary()).args(["run", "--memory", memory, "--"]).args(argv).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, said, why) = run("64", &["python3", "-c", takes]);
    assert_eq!((code, &*said), (Some(137), ""));
    assert!(why.contains("it needed more than the 64 MB of memory"), "{why}");
    assert_eq!(run("512", &["python3", "-c", takes]), (Some(0), "got it\n".into(), String::new()));
    assert_eq!(run("64", &["sh", "-c", "kill -KILL $$"]), (Some(137), String::new(), String::new()));
    let (code, ..) = run("16", &["sh", "-c", "head -c 32m /dev/zero > /tmp/file"]);
    // It is full, or where files count as memory there is none for it.
    assert!([Some(1), Some(137)].contains(&code), "there is more room in /tmp than memory: {code:?}");
}

/// As env(1) and shells have it, so that it is not taken for the command's own.
#[test]
fn a_command_that_was_not_started_has_a_code_of_its_own() {
    let code = |argv: &[&str]| Command::new(binary()).arg("run").args(argv).status().unwrap().code();
    assert_eq!(code(&["--", "no-such-command"]), Some(127));
    assert_eq!(code(&["--", "/etc/passwd"]), Some(126));
    assert_eq!(code(&["--", "sh", "-c", "exit 3"]), Some(3));
}

#[test]
fn the_doctor_looks_and_tells() {
    let output = Command::new(binary()).args(["doctor", "--json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let subjects: Vec<&str> =
        findings.as_array().unwrap().iter().map(|finding| finding["subject"].as_str().unwrap()).collect();
    for subject in ["kernel", "cgroup2", "memory limit", "process limit", "interpreter"] {
        assert!(subjects.contains(&subject), "{subject} in {subjects:?}");
    }
}
