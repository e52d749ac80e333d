//! What a function is, sees, and is refused: the same from a zygote and cold.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::crash::mount;
use crate::server::{Process, Server, tests};

fn check(seen: &Value, what: &str) {
    let nothing = json!(["0000000000000000"]);
    let ids = json!(["1000", "1000", "1000", "1000"]);
    for (field, expected) in [
        ("Uid", &ids),
        ("Gid", &ids),
        ("Groups", &json!([])),
        ("CapInh", &nothing),
        ("CapPrm", &nothing),
        ("CapEff", &nothing),
        ("CapBnd", &nothing),
        ("CapAmb", &nothing),
        ("NoNewPrivs", &json!(["1"])),
        ("Seccomp", &json!(["2"])),
    ] {
        assert_eq!(&seen["status"][field], expected, "{what}: {field}");
    }
    assert_eq!(seen["exists"], json!([]), "{what}: of the host");
    assert_eq!(
        seen["processes"].as_array().unwrap().len(),
        2,
        "{what}: PID 1 and itself: {}",
        seen["processes"]
    );
    assert_eq!(seen["interfaces"], json!(["lo"]), "{what}");
    assert_eq!(seen["server"], "ECONNREFUSED", "{what}: the server's port");
    assert_eq!(seen["abroad"], "ENETUNREACH", "{what}");
    for (path, outcome) in seen["writes"].as_object().unwrap() {
        if path == "/tmp/x" {
            assert_eq!(outcome, "ok", "{what}: {path}");
        } else {
            assert!(
                ["EROFS", "EACCES", "EPERM"].contains(&outcome.as_str().unwrap()),
                "{what}: {path}: {outcome}"
            );
        }
    }
    for call in
        ["chroot", "mount", "umount", "unshare_user", "unshare_mount", "setns", "ptrace", "raw", "setuid"]
    {
        assert_eq!(seen[call], "EPERM", "{what}: {call}");
    }
    assert!(
        ["EPERM", "EAFNOSUPPORT", "EACCES"].contains(&seen["packet"].as_str().unwrap()),
        "{what}: packet"
    );
    assert_eq!(seen["mounts"], json!([]), "{what}");
    assert_eq!(seen["masked"], json!([]), "{what}");
    assert_eq!(seen["certificates"], true, "{what}");
    assert_eq!(seen["kill_init"], "EPERM", "{what}: PID 1 is another user's");
    assert_eq!(seen["descriptors"], json!([0, 1, 2, 3]), "{what}");
}

#[test]
fn a_function_is_nobody_and_can_do_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let path = tests("e2e/functions/inside.py");
    server.deploy(&path, "forked", &["--timeout", "20"]);
    server.deploy(&path, "cold", &["--timeout", "20", "--fresh"]);
    // Instances of other functions, whose processes and files must not be seen.
    server.deploy(&tests("e2e/functions/where.py"), "neighbour", &[]);
    assert_eq!(server.run("neighbour", &json!({})).status, 200);
    let event = json!({"port": server.port(), "data": data.path()});
    for name in ["forked", "cold"] {
        let answer = server.run(name, &event);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.start == "cold", name == "cold", "{}", answer.start);
        check(&answer.body, name);
    }
}

/// With the network of the host, and of the rest what others have.
#[test]
fn a_function_may_be_strict_and_where_the_operator_allows_it_as_in_the_paper() {
    let data = tempfile::tempdir().unwrap();
    let path = tests("e2e/functions/inside.py");
    let event = |server: &Server| json!({"port": server.port(), "data": data.path(), "network": true});
    let server = Server::start_with(data.path(), &["--allow-paper"]);
    server.deploy(&path, "strict", &["--timeout", "20", "--profile", "strict"]);
    let answer = server.run("strict", &event(&server));
    assert_eq!((answer.status, answer.start.as_str()), (200, "cold"), "{answer:?}");
    assert_eq!((&answer.body["server"], &answer.body["raw"]), (&json!("EPERM"), &json!("EPERM")));
    assert_eq!(answer.body["status"]["CapBnd"], json!(["0000000000000000"]));

    server.deploy(&path, "paper", &["--timeout", "20", "--profile", "paper"]);
    let answer = server.run("paper", &event(&server));
    assert_eq!((answer.status, answer.start.as_str()), (200, "cold"), "{answer:?}");
    let mut seen = answer.body;
    assert_eq!(seen["server"], "ok", "it has the host's network");
    assert_ne!(seen["status"]["Uid"], json!(["1000", "1000", "1000", "1000"]), "and no user ids of its own");
    for (field, of_others) in
        [("server", json!("ECONNREFUSED")), ("abroad", json!("ENETUNREACH")), ("interfaces", json!(["lo"]))]
    {
        seen[field] = of_others;
    }
    for field in ["Uid", "Gid"] {
        seen["status"][field] = json!(["1000", "1000", "1000", "1000"]);
    }
    check(&seen, "paper");
    assert_eq!(server.run("paper", &event(&server)).start, "warm");
    // What was made while it is there has none of its mounts.
    for (name, flags) in [("strict", &["--profile", "strict"][..]), ("cold", &["--fresh"])] {
        server.deploy(&path, name, &[&["--timeout", "20"], flags].concat());
        let answer = server.run(name, &event(&server));
        assert_eq!((answer.start.as_str(), &answer.body["mounts"]), ("cold", &json!([])), "{answer:?}");
    }
    // One more beside it, and their end.
    server.deploy(&path, "another", &["--timeout", "20", "--profile", "paper"]);
    assert_eq!(server.run("another", &event(&server)).status, 200);
    for name in ["paper", "another", "strict", "cold"] {
        server.succeed(&["delete", name]);
    }
    server.wait_until(|| server.metric("sock_instances{"), |instances| *instances == 0);
    assert!(server.stop());

    let server = Server::start(data.path());
    let refused = server.sock(&["deploy", path.to_str().unwrap(), "--name", "paper", "--profile", "paper"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("--allow-paper"), "{said}");
    assert!(server.stop());
}

/// The helper that forks it shares the zygote's memory, and whoever does so loses what tells the C library.
#[test]
fn a_forked_function_knows_which_processor_it_is_on() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/processor.py"), "processor", &[]);
    let answer = server.run("processor", &json!({}));
    assert_ne!(answer.start, "cold", "{answer:?}");
    for pair in answer.body.as_array().unwrap() {
        assert_eq!(pair[0], pair[1], "{answer:?}");
    }
}

/// A zygote owns what a process has to write to for that, as long as it may fork into the group.
#[test]
fn nobody_joins_an_instance_that_was_looked_at() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/processor.py"), "processor", &[]);
    assert_ne!(server.run("processor", &json!({})).start, "cold");
    let running = server.metric("sock_instances{state=\"idle\"");
    assert_eq!(running, 1);
    let python = |process: &Process| {
        let program = fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap_or_default();
        program.to_string_lossy().contains("python")
    };
    let groups =
        server.processes().iter().filter(|process| python(process)).map(Process::group).collect::<Vec<_>>();
    let (zygotes, children): (Vec<_>, Vec<_>) = groups.iter().partition(|group| group.ends_with("/own"));
    assert!(!zygotes.is_empty() && !children.is_empty(), "{groups:?}");
    for group in children {
        let owner = fs::metadata(mount().join(&group[1..]).join("cgroup.procs")).unwrap().uid();
        assert_eq!(owner, 0, "{group}");
    }
}
