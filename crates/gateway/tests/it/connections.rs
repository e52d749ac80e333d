//! HTTP itself: bodies in their ways to come, connections that stay, clients that are slow or wrong.

use std::time::{Duration, Instant};

use sock_gateway::{Auth, GatewayConfig, GatewayLimits};
use tempfile::TempDir;

use crate::http::{Request, Wire};
use crate::server::{FUNCTIONS, Server, config, creation};

/// A server that asks for no signature, with a function that echoes.
fn open(alter: impl FnOnce(&mut GatewayLimits)) -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut limits = GatewayLimits::default();
    alter(&mut limits);
    let server = Server::start_with(GatewayConfig { auth: Auth::Open, limits, ..config(dir.path()) });
    let create = Request::new("POST", FUNCTIONS, creation("echo", "app.echo").to_string());
    assert_eq!(create.send(server.address).status, 201);
    server.settled("echo");
    (server, dir)
}

const OK: &str = "HTTP/1.1 200 OK";

#[test]
fn a_body_in_chunks_is_one_event() {
    let (server, _dir) = open(|_| ());
    let mut wire = Wire::new(server.address);
    wire.say("POST /run/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    wire.say("3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n");
    assert_eq!(wire.answer(), (OK.into(), "[1,2]".into()));
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = Server::start();
    let mut wire = Wire::new(server.address);
    for _ in 0..3 {
        wire.say("POST /run/nobody HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}");
        assert_eq!(wire.answer().0, "HTTP/1.1 403 Forbidden", "also where the body was of no interest");
        wire.say("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
        assert_eq!(wire.answer().0, OK);
    }
}

#[test]
fn who_asks_before_sending_a_body_is_told_to_go_on_only_with_a_key() {
    let (server, _dir) = open(|_| ());
    let head = "POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n";
    let mut wire = Wire::new(server.address);
    wire.say(head);
    assert_eq!((wire.line().as_str(), wire.line().as_str()), ("HTTP/1.1 100 Continue", ""));
    wire.say("[1]");
    assert_eq!(wire.answer(), (OK.into(), "[1]".into()));

    let closed = Server::start();
    let mut wire = Wire::new(closed.address);
    wire.say(head);
    assert_eq!(wire.answer().0, "HTTP/1.1 403 Forbidden");
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let (server, _dir) = open(|limits| limits.body = Duration::from_millis(50));
    let mut wire = Wire::new(server.address);
    wire.say("POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n[1");
    let (first, body) = wire.answer();
    assert_eq!(first, "HTTP/1.1 408 Request Timeout");
    assert!(body.contains("did not arrive in time"), "{body}");
    assert!(!server.fake.notes().contains(&"invoke echo".to_string()));
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let (server, _dir) = open(|limits| limits.head = Duration::from_millis(50));
    let mut silent = Wire::new(server.address);
    assert!(silent.is_closed());
    let mut slow = Wire::new(server.address);
    slow.say("GET /healthz HT");
    assert!(slow.is_closed());
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let server = Server::start();
    let mut wire = Wire::new(server.address);
    let head = "GET /healthz HTTP/1.1\r\nhost: x\r\nx: ";
    // To the last byte that the server takes: what it had not read would end the connection before the answer.
    wire.say(&format!("{head}{}", "y".repeat((64 << 10) - head.len())));
    assert_eq!(wire.line(), "HTTP/1.1 431 Request Header Fields Too Large");
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

/// One that says nothing, one that is slow with its head, one that is slow with its body.
#[test]
fn whoever_keeps_a_connection_waiting_longest_makes_room_for_the_next() {
    let (server, _dir) = open(|limits| limits.connections = 3);
    let mut silent = Wire::new(server.address);
    silent.say(HEALTH);
    assert_eq!(silent.answer().0, OK);
    let mut head = Wire::new(server.address);
    head.say("GET /healthz HT");
    let mut body = Wire::new(server.address);
    body.say("POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!((body.line().as_str(), body.line().as_str()), ("HTTP/1.1 100 Continue", ""));
    for (idle, which) in [(&mut silent, "silent"), (&mut head, "head"), (&mut body, "body")] {
        let mut next = Wire::new(server.address);
        next.say(HEALTH);
        assert_eq!(next.answer().0, OK);
        // It waits from its answer on: behind the others.
        assert!(idle.is_closed(), "{which}");
        std::mem::forget(next);
    }
}

#[test]
fn a_connection_whose_request_runs_is_not_closed_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let limits = GatewayLimits { connections: 1, ..GatewayLimits::default() };
    let server = Server::start_with(GatewayConfig { auth: Auth::Open, limits, ..config(dir.path()) });
    let create = Request::new("POST", FUNCTIONS, creation("slow", "app.slow").to_string());
    assert_eq!(create.send(server.address).status, 201);
    server.settled("slow");
    let mut busy = Wire::new(server.address);
    busy.say("POST /run/slow HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]");
    server.fake.until("it runs", |seen| seen.running == 1);
    let mut next = Wire::new(server.address);
    next.say(HEALTH);
    server.fake.invocations.add_permits(1);
    assert_eq!(busy.answer(), (OK.into(), "[1]".into()));
    assert_eq!(next.answer().0, OK);
    assert!(busy.is_closed());
}

#[test]
fn requests_one_behind_the_other_are_answered_in_their_order() {
    let (server, _dir) = open(|_| ());
    let mut wire = Wire::new(server.address);
    let request = |event: &str| {
        let head = "POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length";
        format!("{head}: {}\r\n\r\n{event}", event.len())
    };
    wire.say(&["[1]", "[22]", "[333]"].map(request).concat());
    for event in ["[1]", "[22]", "[333]"] {
        assert_eq!(wire.answer(), (OK.into(), event.into()));
    }
}

#[test]
fn who_has_said_everything_and_listens_is_answered() {
    let (server, _dir) = open(|_| ());
    let mut wire = Wire::new(server.address);
    wire.say("POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]");
    wire.close_one_way();
    assert_eq!(wire.answer(), (OK.into(), "[1]".into()));
    assert!(wire.is_closed());
}

/// A proxy in front that goes by the other length would take what follows the chunks for the body's end, and its next answer for
/// that of its next client.
#[test]
fn behind_a_body_in_chunks_there_is_no_request() {
    let (server, _dir) = open(|_| ());
    let length = "content-length: 40\r\n";
    for (before, after) in [("", ""), (length, ""), ("", length)] {
        let mut wire = Wire::new(server.address);
        let encoding = "transfer-encoding: chunked\r\n";
        let head = format!("POST /run/echo HTTP/1.1\r\nhost: x\r\n{before}{encoding}{after}\r\n");
        wire.say(&format!("{head}3\r\n[1]\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"));
        assert_eq!(wire.answer(), (OK.into(), "[1]".into()), "{before}, {after}");
        assert!(wire.is_closed(), "{before}, {after}");
    }
}

/// A proxy in front that believes the other length would take the rest of the body for somebody else's request.
#[test]
fn a_body_whose_length_is_told_in_two_ways_is_refused() {
    let (server, _dir) = open(|_| ());
    for lengths in [
        "content-length: 3\r\ncontent-length: 4",
        "content-length: 3, 4",
        "content-length: -1",
        "content-length: 99999999999999999999",
        "transfer-encoding: gzip",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: gzip, chunked",
    ] {
        let mut wire = Wire::new(server.address);
        wire.say(&format!("POST /run/echo HTTP/1.1\r\nhost: x\r\n{lengths}\r\n\r\n[1]"));
        assert_eq!(wire.line(), "HTTP/1.1 400 Bad Request", "{lengths}");
    }
    assert!(!server.fake.notes().contains(&"invoke echo".to_string()));
}

#[test]
fn who_does_not_take_an_answer_is_given_up() {
    let (server, _dir) = open(|limits| {
        limits.answer = Duration::from_millis(50);
        limits.answers_bytes = 6 << 20;
    });
    let event = format!("\"{}\"", "x".repeat(5 << 20));
    let head = format!("POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", event.len());
    let mut deaf = Wire::new(server.address);
    deaf.say(&format!("{head}{event}"));
    // Its answer takes all the memory that there is for answers: the next one waits until it is given up.
    let answer = Request::new("POST", "/run/echo", event.clone()).send(server.address);
    assert_eq!((answer.status, answer.body.len()), (200, event.len()));
}

/// Each of them could be at it for a minute.
#[test]
fn who_sends_slowly_makes_room_for_who_waits() {
    let (server, _dir) = open(|limits| limits.bodies_bytes = 6 << 20);
    let mut slow: Vec<Wire> = (0..3)
        .map(|_| {
            let mut wire = Wire::new(server.address);
            wire.say("POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\nexpect: 100-continue\r\n\r\n");
            assert_eq!((wire.line().as_str(), wire.line().as_str()), ("HTTP/1.1 100 Continue", ""));
            // With less it would have no memory yet.
            wire.say(&format!("\"{}", "x".repeat(64 << 10)));
            wire
        })
        .collect();
    let begun = Instant::now();
    let small = Request::new("POST", "/run/echo", "[1]").send(server.address);
    assert_eq!(
        (small.status, begun.elapsed() < Duration::from_secs(1)),
        (200, true),
        "{:?}",
        begun.elapsed()
    );
    let event = format!("\"{}\"", "x".repeat(1 << 20));
    let answer = Request::new("POST", "/run/echo", event.clone()).send(server.address);
    assert_eq!((answer.status, answer.body.len()), (200, event.len()));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let (first, body) = slow[0].answer();
    assert_eq!(first, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains("no memory for another request"), "{body}");
}

#[test]
fn who_takes_an_answer_slowly_makes_room_for_who_waits() {
    let (server, _dir) = open(|limits| limits.answers_bytes = 6 << 20);
    let event = format!("\"{}\"", "x".repeat(5 << 20));
    let mut slow = Wire::narrow(server.address);
    slow.say(&format!(
        "POST /run/echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{event}",
        event.len()
    ));
    assert_eq!(slow.line(), OK);
    let begun = Instant::now();
    let answer = Request::new("POST", "/run/echo", event.clone()).send(server.address);
    assert_eq!((answer.status, answer.body.len()), (200, event.len()));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(slow);
}

#[test]
fn a_stopping_server_tells_who_comes_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(GatewayConfig { auth: Auth::Open, ..config(dir.path()) });
    let create = Request::new("POST", FUNCTIONS, creation("slow", "app.slow").to_string());
    assert_eq!(create.send(server.address).status, 201);
    server.settled("slow");
    let (mut busy, mut idle) = (Wire::new(server.address), Wire::new(server.address));
    busy.say("POST /run/slow HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n[1]");
    server.fake.until("it runs", |seen| seen.running == 1);
    idle.say(HEALTH);
    assert_eq!(idle.answer().0, OK);
    let (fake, address) = (server.fake.clone(), server.address);
    let stopped = server.stop(|| {
        assert!(idle.is_closed(), "who has said nothing need not wait");
        // Long enough to be still on its way when the head is answered.
        let late = Request::new("POST", "/run/slow", " ".repeat(4 << 20)).send(address);
        assert_eq!(
            (late.status, late.header("x-amzn-errortype")),
            (503, Some("ServiceUnavailableException"))
        );
        assert_eq!(Request::new("GET", "/readyz", "").send(address).status, 503);
        fake.invocations.add_permits(1);
        assert_eq!(busy.answer(), (OK.into(), "[1]".into()));
    });
    stopped.unwrap();
    assert_eq!(fake.notes().iter().filter(|note| *note == "invoke slow").count(), 1);
}

#[test]
fn events_wait_for_memory_and_none_is_lost() {
    let (server, _dir) = open(|limits| limits.bodies_bytes = 4 << 20);
    let event = format!("\"{}\"", "x".repeat(3 << 20));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let answer = Request::new("POST", "/run/echo", event.clone()).send(server.address);
                assert_eq!((answer.status, answer.body.len()), (200, event.len()));
            });
        }
    });
}
