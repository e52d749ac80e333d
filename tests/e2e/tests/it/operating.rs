//! What an operator does with a server, and what it tells one: start, stop, start twice, read its log.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::server::{Server, binary, tests};

const LOOPBACK: &str = "127.0.0.1:0";

/// What `sock serve` says that does not start, and its exit status.
fn refused(data: &Path, listen: &str, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(["serve", "--listen", listen, "--data-dir"]).arg(data).args(flags);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if !line.is_empty() {
        child.kill().unwrap();
        panic!("it does: {line}");
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    // What the machine lacks is said before.
    let lines: Vec<&str> = said.lines().filter(|line| !line.contains("has no cgroup2 controllers")).collect();
    (output.status.code(), lines.join("\n").replace(data.to_str().unwrap(), "DATA"))
}

/// Asks until it is told to come back, and returns in which words. The signal takes its time; until then the server answers
/// as ever, and the connection that was kept is closed then.
fn turned_away(server: &Server) -> String {
    let ask = || server.try_run("nobody", &json!({})).ok();
    let answer = server.wait_until(ask, |answer| answer.as_ref().is_some_and(|answer| answer.status != 404));
    let answer = answer.unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    answer.body["Message"].as_str().unwrap().to_owned()
}

#[test]
fn sigterm_lets_what_runs_finish_and_turns_away_what_comes() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "60"]);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.run("where", &json!({"wait": true})));
        let working = || {
            let files = server.processes().into_iter().map(|process| process.inside("/tmp/working"));
            files.filter(|file| file.exists()).collect::<Vec<_>>()
        };
        let files = server.wait_until(working, |files| !files.is_empty());
        server.ask_to_stop();
        let message = turned_away(&server);
        assert_eq!(message, "the server is stopping: try again in a moment");
        let invoke = server.ask("POST", "/2015-03-31/functions/where/invocations", b"{}");
        assert_eq!((invoke.status, invoke.kind.as_str()), (503, "ServiceUnavailableException"));
        files.iter().for_each(|file| drop(fs::remove_file(file)));
        let answer = busy.join().unwrap();
        assert_eq!((answer.status, answer.body["calls"].clone()), (200, json!(1)));
    });
    assert!(server.stop(), "it ends with 0");
}

#[test]
fn who_asks_twice_does_not_wait() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "600"]);
    std::thread::scope(|scope| {
        let lost = scope.spawn(|| server.try_run("where", &json!({"wait": true})).is_err());
        let is_working =
            || server.processes().into_iter().any(|process| process.inside("/tmp/working").exists());
        server.wait_until(is_working, |working| *working);
        server.ask_to_stop();
        turned_away(&server);
        server.ask_to_stop();
        assert!(lost.join().unwrap());
    });
    assert!(server.everything_said().iter().any(|line| line.contains("stopping at once")));
}

#[test]
fn a_second_server_names_the_first() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let (code, said) = refused(data.path(), LOOPBACK, &[]);
    let pid = server.child.id();
    let expected = format!(
        "sock: the data directory DATA is in use by process {pid}; stop that server or choose another --data-dir"
    );
    assert_eq!((code, said), (Some(1), expected));
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler"]);
    assert_eq!(server.run("echo", &json!([1])).body, json!([1]));
}

/// Everything beneath a directory: owner, mode, time of change, content.
fn state(root: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, i64, Vec<u8>)> {
    let mut pending = vec![root.to_owned()];
    let mut found = BTreeMap::new();
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let (changed, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
        found.insert(path, (metadata.uid(), metadata.mode(), changed, nanoseconds, content));
    }
    found
}

#[test]
fn a_newer_data_directory_is_refused_and_left_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler"]);
    assert!(server.stop());
    let layout = data.path().join("layout");
    let ours = fs::read_to_string(&layout).unwrap();
    let newer: i64 = ours.trim().parse::<i64>().unwrap() + 1;
    fs::write(&layout, format!("{newer}\n")).unwrap();
    let before = state(data.path());
    let (code, said) = refused(data.path(), LOOPBACK, &[]);
    let expected = format!(
        "sock: the data directory DATA has layout {newer}, and this program knows {}: run the newer sock that made it, or choose another --data-dir",
        ours.trim()
    );
    assert_eq!((code, said), (Some(1), expected));
    assert_eq!(state(data.path()), before);
    fs::write(&layout, "two\n").unwrap();
    let before = state(data.path());
    let (code, said) = refused(data.path(), LOOPBACK, &[]);
    let expected = "sock: DATA/layout says \"two\\n\", which is no layout of a data directory: put the number back that was there, or choose another --data-dir";
    assert_eq!((code, said.as_str()), (Some(1), expected));
    assert_eq!(state(data.path()), before);
    // As a power cut may leave it.
    fs::write(&layout, "").unwrap();
    let server = Server::start(data.path());
    assert_eq!(server.run("echo", &json!([1])).body, json!([1]));
    assert_eq!(fs::read_to_string(&layout).unwrap(), ours);
}

#[test]
fn a_key_that_is_none_is_refused_in_a_line_and_not_printed() {
    let data = tempfile::tempdir().unwrap();
    let (code, said) = refused(data.path(), LOOPBACK, &["--access-key", "short:secret"]);
    let expected = "sock: an access key is written ID:SECRET, the id of 16 to 128 letters and digits, the secret of at least 16 visible characters";
    assert_eq!((code, said.as_str()), (Some(1), expected));
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

/// The gateway is not trusted, and owns the directory: it could have somebody else's things given to it at the next start.
#[test]
fn links_in_the_data_directory_are_not_followed() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    assert!(server.stop());
    let victim = tempfile::tempdir().unwrap();
    fs::write(victim.path().join("file"), "precious").unwrap();
    for (name, target) in [
        ("code", ""),
        ("packages", ""),
        ("logs", ""),
        ("mnt", ""),
        ("lock", "file"),
        ("layout", "file"),
        ("endpoint", "file"),
    ] {
        let (path, kept) = (data.path().join(name), data.path().join("kept"));
        fs::rename(&path, &kept).unwrap();
        std::os::unix::fs::symlink(victim.path().join(target), &path).unwrap();
        let (code, said) = refused(data.path(), LOOPBACK, &[]);
        assert_eq!(code, Some(1), "{name}: {said}");
        assert!(said.contains(name), "{name}: {said}");
        assert_eq!(fs::read_to_string(victim.path().join("file")).unwrap(), "precious", "{name}");
        assert_eq!(fs::metadata(victim.path()).unwrap().uid(), 0, "{name}");
        fs::remove_file(&path).unwrap();
        fs::rename(&kept, &path).unwrap();
    }
    assert!(Server::start(data.path()).stop());
}

/// What starting again does not mend ends the server, and says why.
#[test]
fn a_registry_that_is_none_is_refused() {
    let data = tempfile::tempdir().unwrap();
    assert!(Server::start(data.path()).stop());
    for name in ["sock.db", "sock.db-wal", "sock.db-shm"] {
        let _ = fs::remove_file(data.path().join(name));
    }
    fs::write(data.path().join("sock.db"), [7; 8192]).unwrap();
    let owner = fs::metadata(data.path()).unwrap().uid();
    std::os::unix::fs::chown(data.path().join("sock.db"), Some(owner), None).unwrap();
    let (code, said) = refused(data.path(), LOOPBACK, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("file is not a database") && said.contains("did not start"), "{said}");
}

#[test]
fn nobody_is_let_in_without_a_key_from_another_machine() {
    let data = tempfile::tempdir().unwrap();
    let (code, said) = refused(&data.path().join("new"), "127.0.0.1:0", &["--no-auth", "--allow-paper"]);
    assert!(code == Some(1) && said.contains("leave one of the two out"), "{code:?} {said}");
    let (code, said) = refused(&data.path().join("new"), "0.0.0.0:0", &["--no-auth"]);
    let expected = "sock: --no-auth lets everybody in, so it works on loopback only, not on 0.0.0.0:0";
    assert_eq!((code, said.as_str()), (Some(1), expected));
    assert!(!data.path().join("new").exists());
}

#[test]
fn each_invocation_is_a_line_of_the_log_and_no_secret_is() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_with(data.path(), &["--log-format", "json"]);
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("raising.py");
    fs::write(&source, "import os\ndef handler(event):\n    if event: raise ValueError('no')\n").unwrap();
    let flags = ["--env", "TOKEN=hush-the-value-of-a-variable"];
    server.deploy(&source, "raising", &flags);
    server.run("raising", &json!({}));
    let raised = server.run("raising", &json!({"hush-the-event": 1}));
    assert_eq!((raised.status, raised.start.as_str()), (502, "warm"), "{raised:?}");
    fs::write(work.path().join("requirements.txt"), "https://user:hush-the-password@example.invalid/x.whl\n")
        .unwrap();
    let failed = server.sock(&[
        "deploy",
        work.path().to_str().unwrap(),
        "--name",
        "bad",
        "--handler",
        "raising.handler",
    ]);
    assert!(!failed.status.success());
    let wrong = server.sock(&[
        "deploy",
        source.to_str().unwrap(),
        "--name",
        "raising",
        "--env",
        "AWS_REGION=hush-another",
    ]);
    assert!(!wrong.status.success());
    server.ask_to_stop();
    let lines = server.everything_said();
    let objects: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let invoked: Vec<&Value> = objects.iter().filter(|object| object["message"] == "invoked").collect();
    let told =
        |object: &Value| ["function", "start", "outcome"].map(|key| object[key].as_str().unwrap().to_owned());
    let starts: Vec<[String; 3]> = invoked.iter().map(|object| told(object)).collect();
    assert_eq!(starts.len(), 2, "{lines:?}");
    assert_eq!(starts[1], ["raising", "warm", "error"]);
    for object in invoked {
        for number in ["took_us", "queue_us", "provision_us", "init_us", "handler_us", "max_memory_mb"] {
            assert!(object[number].is_u64(), "{number}: {object}");
        }
        assert_eq!(object["request_id"].as_str().unwrap().len(), 36);
    }
    let plain: Vec<&String> = lines.iter().filter(|line| !line.starts_with('{')).collect();
    assert!(plain.iter().all(|line| line.starts_with("sock: ")), "{plain:?}");
    let said =
        [lines.join("\n"), text(&failed.stderr), text(&wrong.stderr), raised.body.to_string()].concat();
    assert!(!said.contains("hush"), "{said}");
    assert!(!said.contains("secret"), "nor the key: {said}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn who_follows_a_log_sees_what_comes() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler"]);
    server.run("echo", &json!([1]));
    let mut following = server.command(&["logs", "-f", "echo"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line.starts_with("REPORT RequestId: ")), "what was there");
    server.run("echo", &json!([2]));
    assert!(lines.by_ref().any(|line| line.starts_with("REPORT RequestId: ")), "what comes");
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn what_clients_need_is_printed() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let variables: Value = serde_json::from_str(&server.succeed(&["env", "--json"])).unwrap();
    let variable = |name: &str| variables[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(variable("AWS_ENDPOINT_URL_LAMBDA"), server.endpoint);
    assert!(variable("AWS_ACCESS_KEY_ID").len() >= 16 && variable("AWS_SECRET_ACCESS_KEY").len() >= 16);
    assert!(!variable("AWS_DEFAULT_REGION").is_empty());
    let printed = server.succeed(&["env"]);
    let exports: Vec<&str> = printed.lines().collect();
    assert!(exports.iter().all(|line| line.starts_with("export ")), "{printed}");
    assert_eq!(exports.len(), variables.as_object().unwrap().len());
    // Who may read the data directory needs to know nothing else.
    let output =
        Command::new(binary()).args(["env", "--json", "--data-dir"]).arg(data.path()).output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["AWS_ENDPOINT_URL_LAMBDA"], server.endpoint.as_str());
    let list = Command::new(binary()).args(["list", "--data-dir"]).arg(data.path()).output().unwrap();
    assert!(list.status.success(), "{list:?}");
}

/// It is not trusted, and root evaluates what `sock env` prints.
#[test]
fn what_the_gateways_user_wrote_is_no_command() {
    let data = tempfile::tempdir().unwrap();
    let keys = r#"{"keys": [{"id": "SOCKTEST00000009", "secret": "a'; touch $HOME/pwned; echo 'a"}]}"#;
    fs::write(data.path().join("keys.json"), keys).unwrap();
    fs::write(data.path().join("secret"), "http://127.0.0.1:1").unwrap();
    let endpoint = data.path().join("endpoint");
    let text = "http://x'; touch $HOME/pwned; echo '";
    let cases: [&dyn Fn(); 3] = [
        &|| fs::write(&endpoint, text).unwrap(),
        &|| std::os::unix::fs::symlink(data.path().join("secret"), &endpoint).unwrap(),
        &|| nix::unistd::mkfifo(&endpoint, nix::sys::stat::Mode::S_IRWXU).unwrap(),
    ];
    for case in cases {
        let _ = fs::remove_file(&endpoint);
        case();
        let script = r#"eval "$("$0" env --data-dir "$HOME")" && echo "$AWS_ENDPOINT_URL_LAMBDA $AWS_SECRET_ACCESS_KEY""#;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]).arg(binary()).env("HOME", data.path());
        for name in ["SOCK_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            shell.env_remove(name);
        }
        let said = shell.output().unwrap();
        assert!(!data.path().join("pwned").exists());
        let expected = "http://127.0.0.1:7625 a'; touch $HOME/pwned; echo 'a\n";
        assert_eq!(String::from_utf8_lossy(&said.stdout), expected, "{said:?}");
    }
}
