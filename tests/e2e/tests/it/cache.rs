//! Instances that wait for their function's next invocation: frozen, ended when memory is short, or never kept.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::crash::mount;
use crate::grove::{Grove, idle_of, report};
use crate::server::{Answer, Process, Server, tests};

/// Counts in a thread, which goes on when its handler has answered.
const COUNTING: &str = "import os, threading, time\n\
def count():\n    while True:\n        with open('/tmp/count.new', 'w') as file:\n            file.write(str(time.monotonic_ns()))\n        \
os.rename('/tmp/count.new', '/tmp/count')\n        time.sleep(0.005)\n\
threading.Thread(target=count, daemon=True).start()\ncalls = 0\n\
def handler(event, context):\n    global calls\n    calls += 1\n    return [event, calls, os.readlink('/proc/self/ns/pid')]\n";

/// What the kernel says of the group of a process: whether all in it is frozen.
fn is_frozen(process: &Process) -> bool {
    let group = mount().join(process.group().trim_start_matches('/'));
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap();
    events.lines().any(|line| line == "frozen 1")
}

fn instance(server: &Server, namespace: &Value) -> Process {
    let mut inside = server.processes().into_iter().filter(|process| {
        process.namespace("pid").is_some_and(|link| link.to_str() == namespace.as_str())
            && process.status("Name") != "sock"
    });
    inside.next().unwrap()
}

#[test]
fn an_idle_instance_is_frozen_after_a_while_and_goes_on_when_it_is_invoked() {
    let grove = Grove::new();
    grove.deploy("counting", COUNTING, &[], &[]);
    let server = &grove.server;
    let first = server.run("counting", &json!(1));
    assert_eq!((first.status, &first.body[1]), (200, &json!(1)), "{first:?}");
    let process = instance(server, &first.body[2]);
    let count = || fs::read_to_string(process.inside("/tmp/count")).unwrap_or_default();
    assert!(!is_frozen(&process), "at once");
    let moving = count();
    server.wait_until(count, |now| *now != moving);
    for calls in 2..4 {
        server.wait_until(|| is_frozen(&process), |frozen| *frozen);
        let idle = server.wait_until(|| idle_of(server, "counting"), |idle| idle["frozen"] == 1);
        assert_eq!(idle["idle"], 1, "{idle}");
        // A hundred times as long as one count takes.
        let (still, mut looks) = (count(), 0);
        server.wait_until(
            || {
                looks += 1;
                (looks, count())
            },
            |(looks, now)| {
                assert_eq!(*now, still, "its thread runs");
                *looks > 5
            },
        );
        let answer = server.run("counting", &json!(calls));
        let expected = json!([calls, calls, first.body[2]]);
        assert_eq!((answer.start.as_str(), &answer.body), ("warm", &expected), "{answer:?}");
        assert!(!is_frozen(&process), "it is not thawed");
        server.wait_until(count, |now| *now != still);
    }
    // Who is frozen is ended all the same.
    server.wait_until(|| is_frozen(&process), |frozen| *frozen);
    server.succeed(&["delete", "counting"]);
    server.wait_until(|| server.processes().contains(&process), |there| !there);
    assert!(grove.server.stop());
}

#[test]
fn a_stop_waits_for_nothing_that_is_frozen() {
    let grove = Grove::new();
    grove.deploy("counting", COUNTING, &[], &[]);
    let first = grove.server.run("counting", &json!(1));
    let process = instance(&grove.server, &first.body[2]);
    grove.server.wait_until(|| is_frozen(&process), |frozen| *frozen);
    let before = grove.server.processes();
    assert!(grove.server.stop());
    assert_eq!(crate::server::still_running(&before), Vec::<&Process>::new());
}

#[test]
fn where_memory_is_short_idle_instances_end_that_are_worth_least() {
    let grove = Grove::with(&["--idle-memory", "32"]);
    let large =
        "held = []\ndef handler(event, context):\n    held.append(b'x' * (20 << 20))\n    return len(held)\n";
    let small = "def handler(event, context):\n    return event\n";
    for name in ["large", "larger"] {
        grove.deploy(name, large, &[], &[]);
    }
    grove.deploy("small", small, &[], &[]);
    let server = &grove.server;
    // Often asked for, and little: worth most.
    for number in 0..10 {
        assert_eq!(server.run("small", &json!(number)).body, json!(number));
    }
    for name in ["large", "larger"] {
        assert_eq!(server.run(name, &json!({})).body, json!(1), "{name}");
    }
    let idle = |name: &str| idle_of(server, name)["idle"].as_u64().unwrap_or(0);
    let state = || (idle("small"), idle("large") + idle("larger"));
    let left = server.wait_until(state, |(_, large)| *large < 2);
    assert_eq!(left, (1, 1), "one of the large ones had to go, and no other");
    let bytes = || {
        let report = report(server);
        let each = report["functions"].as_array().unwrap().iter();
        each.map(|one| one["private_bytes"].as_u64().unwrap()).sum::<u64>()
    };
    server.wait_until(bytes, |bytes| *bytes <= 32 << 20);
    // One of them starts again, and the small one is still there.
    let starts: BTreeSet<String> = ["large", "larger"].map(|name| server.run(name, &json!({})).start).into();
    assert!(starts.iter().any(|start| start != "warm"), "{starts:?}");
    assert_eq!(server.run("small", &json!(1)).start, "warm");
    assert!(grove.server.stop());
}

fn with_where(flags: &[&str]) -> (tempfile::TempDir, Server) {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &[&["--timeout", "60"], flags].concat());
    (data, server)
}

fn names(answers: &[Answer]) -> BTreeSet<&str> {
    let bad: Vec<&Answer> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(bad.is_empty(), "{bad:?}");
    answers.iter().map(|answer| answer.body["instance"].as_str().unwrap()).collect()
}

#[test]
fn an_instance_for_single_use_has_one_invocation() {
    const COUNT: usize = 30;
    let (_data, server) = with_where(&["--single-use"]);
    let event = json!({});
    let mut answers: Vec<Answer> = (0..COUNT).map(|_| server.run("where", &event)).collect();
    let at_once: Vec<Answer> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..COUNT).map(|_| scope.spawn(|| server.run("where", &event))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    answers.extend(at_once);
    assert_eq!(names(&answers).len(), 2 * COUNT);
    assert!(answers.iter().all(|answer| answer.body["calls"] == 1), "{answers:?}");
    let starts = ["ready", "zygote", "spare"];
    assert!(answers.iter().all(|answer| starts.contains(&answer.start.as_str())), "{answers:?}");
    // Those that were used end; what waits then has run nothing yet.
    let all =
        || ["running", "idle"].map(|state| server.metric(&format!("sock_instances{{state=\"{state}\"}}")));
    server.wait_until(all, |[running, idle]| *running == 0 && (1..=4).contains(idle));
    let next = server.run("where", &event);
    assert_eq!((next.start.as_str(), &next.body["calls"]), ("ready", &json!(1)), "{next:?}");
    server.succeed(&["delete", "where"]);
    let namespaces: BTreeSet<&str> =
        answers.iter().map(|answer| answer.body["pids"].as_str().unwrap()).collect();
    server.wait_until(|| server.metric("sock_instances{"), |count| *count == 0);
    // Numbers of namespaces come again: only processes that ran the handler have one of those that are its.
    let ran = || {
        let processes = server.processes().into_iter();
        let inside = processes.filter(|process| {
            process.namespace("pid").is_some_and(|link| namespaces.contains(link.to_str().unwrap()))
                && process.inside("/var/task/where.py").exists()
        });
        inside.collect::<Vec<_>>()
    };
    server.wait_until(ran, Vec::is_empty);
    // Taken back, the next ones are kept.
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "60"]);
    server.run("where", &event);
    assert_eq!(server.run("where", &event).start, "warm");
    assert!(server.stop());
}

#[test]
fn instances_are_used_again_and_no_invocation_is_lost() {
    let (_data, server) = with_where(&[]);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let call = || (0..25).map(|_| server.run("where", &json!({}))).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(answers.len(), 200);
    let instances = names(&answers);
    assert!(instances.len() <= 8, "{} instances for 8 at a time", instances.len());
    // Each counted all of its own, one after the other.
    for name in instances {
        let of = answers.iter().filter(|answer| answer.body["instance"] == name);
        let mut calls: Vec<u64> = of.map(|answer| answer.body["calls"].as_u64().unwrap()).collect();
        calls.sort_unstable();
        assert_eq!(calls, (1..=calls.len() as u64).collect::<Vec<_>>(), "{name}");
    }
    assert!(server.stop());
}
