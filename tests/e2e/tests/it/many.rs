//! Hundreds of containers at once.

use std::collections::BTreeSet;

use serde_json::json;

use crate::server::{Server, tests};

const COUNT: usize = 200;

#[test]
fn two_hundred_at_once_and_then_none() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "120"]);
    // Long enough for the last to start before the first ends.
    let event = json!({"sleep": 20});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..COUNT).map(|_| scope.spawn(|| server.run("where", &event))).collect();
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
