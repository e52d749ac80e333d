//! Where instances come from, and that no two are the same.

use std::collections::BTreeSet;

use serde_json::json;

use crate::grove::idle_of;
use crate::server::{Process, Server, tests};

#[test]
fn a_new_instance_is_forked_and_the_next_answer_is_warm() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &[]);
    let first = server.run("where", &json!({}));
    assert!(["spare", "zygote"].contains(&first.start.as_str()), "{first:?}");
    assert_eq!(first.body["calls"], 1);
    let second = server.run("where", &json!({}));
    assert_eq!((second.start.as_str(), &second.body["calls"]), ("warm", &json!(2)));
    assert_eq!(second.body["instance"], first.body["instance"]);
    for phase in ["queue", "provision", "init", "handler"] {
        assert!(second.timing.contains(&format!("{phase};dur=")), "{}", second.timing);
    }
    assert!(server.stop());
}

/// Waits until an instance of `where` waits for its first invocation.
fn is_ready(server: &Server) {
    server.wait_until(|| idle_of(server, "where")["idle"] == 1, |ready| *ready);
}

#[test]
fn what_is_used_once_is_started_before_it_is_asked_for_again() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--single-use"]);
    let mut seen = BTreeSet::from([server.run("where", &json!({})).body["instance"].to_string()]);
    for _ in 0..3 {
        is_ready(&server);
        let answer = server.run("where", &json!({}));
        assert_eq!((answer.start.as_str(), &answer.body["calls"]), ("ready", &json!(1)), "{answer:?}");
        assert!(answer.timing.contains("init;dur=0.000"), "{}", answer.timing);
        assert!(seen.insert(answer.body["instance"].to_string()), "{answer:?}");
    }
    // One that dies while it waits is nobody's loss.
    is_ready(&server);
    let waits = idle_of(&server, "where");
    assert_eq!(waits["invocations_per_second"].as_f64().map(|rate| rate > 0.0), Some(true), "{waits}");
    let has_it = |process: &Process| process.inside("/var/task/where.py").exists();
    let waiting: Vec<Process> = server.processes().into_iter().filter(has_it).collect();
    // Its PID 1, and itself.
    assert_eq!(waiting.len(), 2, "{waiting:?}");
    waiting.iter().for_each(Process::try_kill);
    let answer = server.run("where", &json!({}));
    assert_eq!((answer.status, &answer.body["calls"]), (200, &json!(1)), "{answer:?}");
    // Nor does one answer that was marked otherwise when it was started.
    is_ready(&server);
    let arn = server.ask("GET", "/2015-03-31/functions/where/configuration", b"").body["FunctionArn"].clone();
    let tags = format!("/2017-03-31/tags/{}", arn.as_str().unwrap());
    assert_eq!(server.ask("POST", &tags, br#"{"Tags": {"sock:tenant": "another"}}"#).status, 204);
    assert_ne!(server.run("where", &json!({})).start, "ready");
    // Nor one of an older deployment.
    is_ready(&server);
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--single-use", "--env", "GREETING=hello"]);
    assert_ne!(server.run("where", &json!({})).start, "ready");
    assert!(server.stop());
}

/// Connections that wait for their last packets stay behind in a network namespace: no instance finds another one's.
#[test]
fn no_instance_finds_what_another_left_in_its_network() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    let source = work.path().join("main.py");
    let text = "import socket\n\ndef there():\n    with open('/proc/self/net/tcp') as file:\n        return len(file.readlines()) - 1\n\n\
                def handler(event, context):\n    before = there()\n    listener = socket.create_server(('127.0.0.1', 0))\n    \
                ends = [socket.create_connection(listener.getsockname()), listener.accept()[0]]\n    \
                for end in [*ends, listener]: end.close()\n    return [before, there()]\n";
    std::fs::write(&source, text).unwrap();
    for name in ["one", "two"] {
        server.deploy(&source, name, &["--handler", "main.handler", "--single-use"]);
        for _ in 0..4 {
            assert_eq!(server.run(name, &json!(null)).body, json!([0, 1]));
        }
    }
    assert!(server.stop());
}

#[test]
fn fresh_means_an_interpreter_of_its_own() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--fresh"]);
    assert_eq!(server.run("where", &json!({})).start, "cold");
    assert_eq!(server.run("where", &json!({})).start, "warm");
    server.deploy(&tests("e2e/functions/where.py"), "where", &[]);
    assert_ne!(server.run("where", &json!({})).start, "cold", "a deployment without the flag takes it back");
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--fresh"]);
    assert_eq!(server.run("where", &json!({})).start, "cold");
}

#[test]
fn invocations_of_one_function_run_side_by_side_in_instances_of_their_own() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "30"]);
    let event = json!({"sleep": 1});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..12).map(|_| scope.spawn(|| server.run("where", &event))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let instances: BTreeSet<&str> =
        answers.iter().map(|answer| answer.body["instance"].as_str().unwrap()).collect();
    assert_eq!(instances.len(), 12);
    let starts: BTreeSet<&str> = answers.iter().map(|answer| answer.start.as_str()).collect();
    // One spare is kept: a burst is forked on demand.
    assert!(starts.contains("zygote") && starts.is_subset(&["zygote", "spare"].into()), "{starts:?}");
}

/// So many invocations at once, each of a single-use function; where their instances came from.
fn burst(server: &Server, count: usize) -> Vec<String> {
    let event = json!({"sleep": 0.2});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..count).map(|_| scope.spawn(|| server.run("where", &event))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer.body["calls"] == 1), "{answers:?}");
    answers.into_iter().map(|answer| answer.start).collect()
}

/// Spares that are wanted, and instances that are there already.
fn ahead(server: &Server) -> (u64, u64) {
    let report: serde_json::Value = serde_json::from_str(&server.page("/report")).unwrap();
    let wanted =
        report["nodes"].as_array().unwrap().iter().map(|node| node["spares"].as_u64().unwrap()).sum();
    let there = |what: &str| report["counts"][what].as_u64().unwrap();
    (wanted, there("spares") + there("idle"))
}

#[test]
fn a_burst_that_comes_again_finds_spares() {
    const MANY: u64 = 20;
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--single-use", "--timeout", "30"]);
    let first = burst(&server, MANY as usize);
    assert!(first.iter().any(|start| start == "zygote"), "{first:?}");
    server.wait_until(|| ahead(&server), |(_, there)| *there >= MANY);
    let second = burst(&server, MANY as usize);
    assert!(second.iter().all(|start| ["spare", "ready"].contains(&start.as_str())), "{second:?}");
    assert!(server.stop());
}

/// 4 MB have room for two.
#[test]
fn spares_for_bursts_keep_within_their_memory() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_with(data.path(), &["--spare-memory", "4"]);
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--single-use", "--timeout", "30"]);
    burst(&server, 20);
    let wanted = || ahead(&server).0;
    server.wait_until(wanted, |wanted| *wanted >= 2);
    assert!(wanted() <= 2, "{}", wanted());
    assert!(server.stop());
}

/// Nobody is forked who was not asked for.
#[test]
fn without_memory_for_them_there_are_no_spares() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_with(data.path(), &["--spare-memory", "0"]);
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--single-use"]);
    for _ in 0..3 {
        assert_eq!(server.run("where", &json!({})).start, "zygote");
        // Its end comes in a lull, as spares would.
        server.wait_until(|| ahead(&server), |now| *now == (0, 0));
    }
    assert!(server.stop());
}

#[test]
fn a_failed_deployment_changes_nothing() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--env", "GREETING=hello"]);
    let bad = work.path().join("bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(bad.join("app.py"), "def handler(event):\n    return 1\n").unwrap();
    std::fs::write(bad.join("requirements.txt"), "a-package-that-is-on-no-index==1.0\n").unwrap();
    let flags = ["--name", "where", "--public", "--fresh", "--timeout", "1", "--env", "SECRET=1"];
    let failed = server.sock(&[&["deploy", bad.to_str().unwrap()], &flags[..]].concat());
    assert!(!failed.status.success());
    let after = server.run("where", &json!({}));
    assert_eq!((after.status, &after.body["calls"]), (200, &json!(1)), "{after:?}");
    assert_ne!(after.start, "cold");
    let shown: serde_json::Value =
        serde_json::from_str(&server.succeed(&["show", "where", "--json"])).unwrap();
    assert_eq!(shown.get("Tags"), None, "{shown}");
}

#[test]
fn deep_nesting_in_a_source_does_not_end_the_server() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    let file = work.path().join("deep.py");
    let text = format!("def handler(event):\n    return 1\n\nX = 1{}\n", " + 1".repeat(100_000));
    std::fs::write(&file, text).unwrap();
    let _ = server.sock(&["deploy", file.to_str().unwrap(), "--timeout", "20"]);
    server.deploy(&tests("e2e/functions/where.py"), "where", &[]);
    assert_eq!(server.run("where", &json!({})).status, 200);
    assert!(server.stop());
}

#[test]
fn a_new_deployment_is_never_answered_by_an_instance_of_the_old() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &[]);
    let old = server.run("where", &json!({}));
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--env", "GREETING=hello"]);
    let new = server.run("where", &json!({}));
    assert_ne!(old.body["instance"], new.body["instance"]);
    assert_ne!(new.start, "warm");
}
