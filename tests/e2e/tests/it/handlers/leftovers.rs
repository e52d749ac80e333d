//! What an invocation leaves in its instance: the next is answered rightly all the same.

use std::fs;

use serde_json::{Value, json};

use super::{Bench, FUNCTION, Then, event, exited};

/// The two ways in which an instance starts: by itself, and forked.
fn benches(check: impl Fn(Bench)) {
    for flags in [&["--timeout", "60"][..], &["--timeout", "60", "--fresh"]] {
        check(Bench::new(flags));
    }
}

#[test]
fn modules_that_were_replaced() {
    benches(|bench| {
        bench.check("replaces", &json!("replaced"), Then::Stays);
        // Of the sources nothing can be read any more.
        let instance = bench.good();
        let (answer, _) = bench.invoke("replaces_and_raises").answer();
        assert_eq!((&answer["errorType"], &answer["errorMessage"]), (&json!("ValueError"), &json!("no way")));
        let frames: Vec<&str> =
            answer["stackTrace"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert!(frames[1].contains(", in replaces_and_raises\n"), "{frames:?}");
        bench.after("replaces_and_raises", &instance, Then::Stays);
        bench.check("replaces_and_exits", &exited("exit status 3"), Then::Ends);
        assert!(bench.server.stop());
    });
}

#[test]
fn processes_and_threads_that_go_on() {
    let bench = Bench::new(&["--timeout", "60"]);
    bench.check("leaves", &json!("left"), Then::Stays);
    let instance = bench.good();
    let left = bench.processes_of(&instance).len();
    assert!(left >= 4, "init, handler, a child of each kind: {left}");
    bench.server.succeed(&["delete", FUNCTION]);
    bench.wait_for_end(&instance);
    assert!(bench.server.stop());
}

#[test]
fn output_without_end() {
    let bench = Bench::new(&["--timeout", "60"]);
    bench.check("floods", &json!("answered"), Then::EndsSoon);
    assert!(bench.server.stop());
}

#[test]
fn what_is_written_between_two_invocations_belongs_to_neither() {
    let bench = Bench::new(&["--timeout", "60"]);
    let instance = bench.good();
    assert_eq!(bench.invoke("prints_later").answer(), (json!("answered"), false));
    let process = bench.processes_of(&instance).pop().unwrap();
    fs::remove_file(process.inside("/tmp/hold")).unwrap();
    bench.server.wait_until(|| process.inside("/tmp/late").exists(), |written| *written);
    let tailed = |how: &str| {
        let invoked = bench.server.invoke(FUNCTION, &[("x-amz-log-type", "Tail")], event(how).as_bytes());
        (invoked.headers["x-amzn-requestid"].clone(), invoked.headers["x-amz-log-result"].len())
    };
    let (id, with) = tailed("leaves");
    let (_, without) = tailed("leaves");
    assert!(with.abs_diff(without) < 16, "the caller gets {with} and {without} characters of its log");
    let log = String::from_utf8(bench.log()).unwrap();
    let parts = log.split_once("a late line\n").unwrap();
    let last = parts.0.lines().last().unwrap();
    assert!(last.starts_with("REPORT ") && parts.0.contains("a line in time"), "{log}");
    assert!(parts.1.starts_with(&format!("START RequestId: {id} ")), "{log}");
    assert!(bench.server.stop());
}
