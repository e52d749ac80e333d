//! Asynchronous events: what was accepted runs, whatever happens to the server meanwhile.

use std::time::{Duration, Instant};

use serde_json::json;
use sock_gateway::{GatewayConfig, GatewayLimits};

use crate::fake::PATIENCE;
use crate::http::Request;
use crate::server::{FUNCTIONS, Server, config, key};

/// Accepts an event; gives its request id.
fn accepted(server: &Server, name: &str, event: &str) -> String {
    let request = Request::new("POST", &format!("{FUNCTIONS}/{name}/invocations"), event);
    let answer = server.ask(request.header("x-amz-invocation-type", "Event"));
    assert_eq!((answer.status, answer.body.len()), (202, 0));
    answer.header("x-amzn-requestid").unwrap().to_owned()
}

/// A metric's value; 0 if it is not there.
fn metric(server: &Server, name: &str) -> u64 {
    let text = server.get("/metrics").body;
    let text = String::from_utf8(text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

/// Asks for a metric until it has this value, as whoever watches a server does.
fn until(server: &Server, name: &str, value: u64) {
    let begun = Instant::now();
    while metric(server, name) != value {
        assert!(begun.elapsed() < PATIENCE, "{name} is {}, and not {value}", metric(server, name));
        std::thread::yield_now();
    }
}

fn count(server: &Server, note: &str) -> usize {
    server.fake.notes().iter().filter(|known| *known == note).count()
}

fn quick_to_retry(dir: &std::path::Path) -> Server {
    let limits = GatewayLimits { retry: Duration::from_millis(1), ..GatewayLimits::default() };
    Server::start_with(GatewayConfig { limits, ..config(dir) })
}

#[test]
fn an_accepted_event_survives_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path());
    server.deploy("slow", "app.slow");
    let ids = ["1", "2"].map(|event| accepted(&server, "slow", event));
    server.fake.until("both run", |seen| seen.running == 2);
    server.crash();

    let server = Server::start_in(dir.path());
    server.fake.until("both run again", |seen| seen.running == 2);
    server.fake.invocations.add_permits(2);
    until(&server, "sock_events_waiting", 0);
    let log = String::from_utf8(server.get("/logs/slow").body).unwrap();
    for id in ids {
        assert!(log.contains(&format!("END RequestId: {id}\n")), "{id}: {log}");
    }
    server.stop(|| ()).unwrap();
    let server = Server::start_in(dir.path());
    assert_eq!(metric(&server, "sock_events_waiting"), 0);
    assert_eq!(count(&server, "invoke slow"), 0, "what has run does not run again");
}

#[test]
fn an_event_runs_however_often_the_server_ends_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let server = quick_to_retry(dir.path());
    server.deploy("slow", "app.slow");
    accepted(&server, "slow", "1");
    server.fake.until("it runs", |seen| seen.running == 1);
    server.crash();
    for _ in 0..5 {
        let server = quick_to_retry(dir.path());
        server.fake.until("it runs", |seen| seen.running == 1);
        server.crash();
    }
    let server = quick_to_retry(dir.path());
    server.fake.invocations.add_permits(1);
    until(&server, "sock_events_waiting", 0);
    assert_eq!(count(&server, "done slow"), 1);
    assert_eq!(metric(&server, "sock_event_attempts_total{outcome=\"given-up\"}"), 0);
}

#[test]
fn a_function_that_fails_is_tried_three_times() {
    let dir = tempfile::tempdir().unwrap();
    let server = quick_to_retry(dir.path());
    server.deploy("bad", "app.error");
    let id = accepted(&server, "bad", "1");
    until(&server, "sock_event_attempts_total{outcome=\"given-up\"}", 1);
    assert_eq!(count(&server, "done bad"), 3);
    assert_eq!(metric(&server, "sock_event_attempts_total{outcome=\"again\"}"), 2);
    until(&server, "sock_events_waiting", 0);
    let log = String::from_utf8(server.get("/logs/bad").body).unwrap();
    assert_eq!(log.matches(&format!("START RequestId: {id}")).count(), 3, "under one id: {log}");
}

#[test]
fn an_event_of_a_deleted_function_is_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let limits = GatewayLimits { retry: Duration::from_secs(1), ..GatewayLimits::default() };
    let server = Server::start_with(GatewayConfig { limits, ..config(dir.path()) });
    server.deploy("bad", "app.error");
    accepted(&server, "bad", "1");
    until(&server, "sock_event_attempts_total{outcome=\"again\"}", 1);
    assert_eq!(server.ask(Request::new("DELETE", &format!("{FUNCTIONS}/bad"), "")).status, 200);
    until(&server, "sock_events_waiting", 0);
    // Nor is it one of the next function of that name: its own come and go.
    server.deploy("bad", "app.echo");
    accepted(&server, "bad", "2");
    until(&server, "sock_event_attempts_total{outcome=\"ran\"}", 1);
    assert_eq!(count(&server, "done bad"), 2);
}

#[test]
fn metrics_are_for_who_has_a_key() {
    let server = Server::start();
    server.deploy("echo", "app.echo");
    server.invoke("echo", "1");
    let ask = |token: Option<&str>| {
        let request = Request::new("GET", "/metrics", "");
        let request = match token {
            Some(token) => request.header("authorization", &format!("Bearer {token}")),
            None => request,
        };
        request.send(server.address)
    };
    assert_eq!(ask(None).status, 403);
    assert_eq!(Request::new("GET", "/report", "").send(server.address).status, 403);
    assert_eq!(ask(Some("another")).status, 403);
    let answer = ask(Some(&key().secret));
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.contains("sock_invocations_total{outcome=\"ok\",start=\"zygote\"} 1\n"), "{text}");
    assert!(text.contains("sock_functions 1\n"), "{text}");
    assert!(!text.contains("echo"), "no name of a function: {text}");
    assert_eq!(Request::new("GET", "/readyz", "").send(server.address).json(), json!({ "status": "ready" }));
}

/// It waits for a server that does.
#[test]
fn an_event_of_a_profile_that_is_not_allowed_any_more_is_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(GatewayConfig { allow_paper: true, ..config(dir.path()) });
    server.deploy("slow", "app.slow");
    server.deploy("echo", "app.echo");
    let arn = "/2017-03-31/tags/arn:aws:lambda:us-east-1:000000000000:function:slow";
    let paper = serde_json::json!({ "Tags": { "sock:profile": "paper" } });
    assert_eq!(server.ask(Request::new("POST", arn, paper.to_string())).status, 204);
    accepted(&server, "slow", "1");
    server.fake.until("it runs", |seen| seen.running == 1);
    server.crash();

    let server = quick_to_retry(dir.path());
    // Taken up when the server started, as this one is now, which runs.
    accepted(&server, "echo", "1");
    server.fake.until_noted("invoke echo");
    until(&server, "sock_events_waiting", 1);
    assert_eq!(count(&server, "invoke slow"), 0);
    server.stop(|| ()).unwrap();
    let server = Server::start_with(GatewayConfig { allow_paper: true, ..config(dir.path()) });
    server.fake.until("it runs where it may", |seen| seen.running == 1);
    server.fake.invocations.add_permits(1);
    until(&server, "sock_events_waiting", 0);
}
