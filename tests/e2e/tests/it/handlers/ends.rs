//! Ends of all kinds, requests and results that are none, and time that is over.

use serde_json::{Value, json};

use super::{Bench, FUNCTION, Then, event, exited, raised};

#[test]
fn every_kind_of_end_is_told_apart() {
    let bench = Bench::new(&["--timeout", "60"]);
    let stack = [("raises", "return inner(event)"), ("inner", "raise ValueError(\"no way\")")];
    let raised = raised("ValueError", "no way", &stack);
    bench.check("raises", &raised, Then::Stays);
    for (how, reason) in [
        ("exits_well", ""),
        ("exits", "exit status 3"),
        ("exits_at_once", "exit status 5"),
        ("crashes", "signal: segmentation fault"),
        ("aborts", "signal: aborted"),
        ("kills_itself", "signal: killed"),
    ] {
        bench.check(how, &exited(reason), Then::Ends);
    }
    let refused = |kind: &str, message: &str| json!({"errorType": kind, "errorMessage": message, "requestId": "ID", "stackTrace": []});
    let message = "Unable to marshal response: Object of type set is not JSON serializable";
    bench.check("unserialisable", &refused("Runtime.MarshalError", message), Then::Stays);
    let message = "Response payload size exceeded maximum allowed payload size (6291556 bytes).";
    bench.check("large", &refused("Function.ResponseSizeTooLarge", message), Then::Stays);
    // The other way to invoke tells by its status.
    let answer = bench.server.run(FUNCTION, &json!({"how": "exits"}));
    assert_eq!((answer.status, &answer.body["errorType"]), (502, &json!("Runtime.ExitError")));
    assert!(bench.server.stop());
}

#[test]
fn requests_that_no_handler_gets_to_see() {
    let bench = Bench::new(&[]);
    let instance = bench.good();
    let large = vec![b'1'; 7 << 20];
    let wrong_json = "Could not parse request body into json: Could not parse payload into json: ";
    for (body, status, kind, message) in [
        (
            &large[..],
            413,
            "RequestTooLargeException",
            "7340032 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)",
        ),
        (b"{\"how\": good}", 400, "InvalidRequestContentException", wrong_json),
        (b"\xff", 400, "InvalidRequestContentException", wrong_json),
    ] {
        let invoked = bench.server.invoke(FUNCTION, &[], body);
        let answer: Value = serde_json::from_slice(&invoked.body).unwrap();
        assert_eq!((invoked.status, &*invoked.headers["x-amzn-errortype"]), (status, kind), "{answer}");
        assert!(answer["message"].as_str().unwrap().starts_with(message), "{answer}");
        assert_eq!(invoked.headers["x-sock-start"], "none");
        bench.after(kind, &instance, Then::Stays);
    }
    assert!(bench.server.stop());
}

#[test]
fn time_runs_out() {
    // Enough for as many processes as a function may have, where the kernel counts their memory.
    let bench = Bench::new(&["--timeout", "1", "--memory", "512"]);
    let message = "RequestId: ID Error: Task timed out after 1.00 seconds";
    let late = json!({"errorType": "Sandbox.Timedout", "errorMessage": message});
    for how in ["spins", "sleeps", "deaf", "forks"] {
        bench.check(how, &late, Then::Ends);
    }
    let answer = bench.server.run(FUNCTION, &serde_json::from_str(&event("sleeps")).unwrap());
    assert_eq!((answer.status, &answer.body["errorType"]), (504, &json!("Sandbox.Timedout")));
    assert!(bench.server.stop());
}
