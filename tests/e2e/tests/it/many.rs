//! Hundreds of containers at once.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use crate::server::{Server, tests};

/// All places that one function has.
const COUNT: usize = 224;

#[test]
fn two_hundred_at_once_and_then_none() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "300"]);
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler"]);
    // None ends before the last has begun.
    let event = json!({"wait": true});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..COUNT).map(|_| scope.spawn(|| server.run("where", &event))).collect();
        let working = || {
            let files = server.processes().into_iter().map(|process| process.inside("/tmp/working"));
            files.filter(|file| file.exists()).collect::<Vec<_>>()
        };
        // Asked of the launcher, who knows: to look at a thousand processes again and again would take the machine that they
        // are made by.
        server.wait_until(
            || server.metric("sock_instances{state=\"running\"}"),
            |count| *count == COUNT as u64,
        );
        // One more of it is told so, while others have room.
        let more = scope.spawn(|| server.run("where", &event));
        assert_eq!(server.run("echo", &json!([1])).body, json!([1]));
        let more = more.join().unwrap();
        assert_eq!((more.status, &more.body["Reason"]), (429, &json!("ConcurrentInvocationLimitExceeded")));
        // Each container has two processes that see its /tmp: its init and the handler.
        let all = server.wait_until(working, |working| working.len() == 2 * COUNT);
        all.iter().for_each(|file| drop(fs::remove_file(file)));
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            answer.body["calls"], 1,
            "an instance had two of them: it was free, so not all ran at once"
        );
    }
    let instances: BTreeSet<&str> =
        answers.iter().map(|answer| answer.body["instance"].as_str().unwrap()).collect();
    assert_eq!(instances.len(), COUNT);
    assert_eq!(server.run("where", &json!({})).start, "warm");
    assert!(server.stop());
}
