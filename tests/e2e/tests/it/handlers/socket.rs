//! Handlers that write to the gateway themselves, hang up on it, or answer more than once. What they write is never the answer of
//! another invocation.

use serde_json::json;

use super::{Bench, Then, broke, event, exited};

#[test]
fn what_is_no_answer_ends_the_instance() {
    let bench = Bench::new(&["--timeout", "60"]);
    let stale = broke("an answer to something else");
    for (how, expected) in [
        ("garbage", broke("a frame of unknown kind 0x67")),
        ("too_long", broke("a frame of 2147483648 bytes, 6422528 at most")),
        ("another_kind", broke("the process sent Hello when another frame was due")),
        ("forged", stale.clone()),
        ("forged_error", stale.clone()),
        ("half_a_frame", stale.clone()),
        ("child_forges", stale),
        ("leaves_child_with_socket", exited("exit status 3")),
        ("closes_everything", broke("its socket was closed")),
        // It fails to answer before anybody has to end it.
        ("closes_and_returns", exited("exit status 1")),
    ] {
        bench.check(how, &expected, Then::Ends);
    }
    bench.check("closes_output", &json!("quiet"), Then::Stays);
    assert!(bench.server.stop());
}

#[test]
fn what_is_said_unasked_ends_the_instance() {
    let bench = Bench::new(&["--timeout", "60"]);
    for how in ["garbage_later", "forged_later", "exits_later"] {
        bench.check(how, &json!("answered"), Then::EndsSoon);
    }
    // Its own word for it, and what comes after is nobody's.
    bench.check("answers_twice", &json!("first"), Then::EndsSoon);
    assert!(bench.server.stop());
}

#[test]
fn a_second_answer_is_not_that_of_the_next_invocation() {
    let bench = Bench::new(&["--timeout", "60"]);
    let instance = bench.good();
    assert_eq!(bench.invoke("answers_next").answer(), (json!("answered"), false));
    let next = bench.server.invoke(super::FUNCTION, &[], event("gives_cue").as_bytes());
    assert_eq!(next.headers["x-sock-start"], "warm");
    assert_eq!(next.answer(), (broke("an answer to something else"), true));
    bench.after("answers_next", &instance, Then::Ends);
    assert!(bench.server.stop());
}

/// When its socket does not block, the runtime ends if the next event is not there yet; whether it is, and whether the server
/// has seen that end when it chooses an instance, differs from time to time.
#[test]
fn an_instance_that_ends_unasked_fails_nobody() {
    let bench = Bench::new(&["--timeout", "60"]);
    for round in 0..50 {
        let answer = bench.invoke("stops_blocking").answer();
        assert_eq!(answer, (json!("answered"), false), "round {round}");
    }
    bench.good();
    assert!(bench.server.stop());
}
