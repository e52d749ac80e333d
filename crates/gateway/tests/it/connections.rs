//! HTTP itself: bodies in their ways to come, connections that stay, clients that are slow or wrong.

use std::time::Duration;

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

#[test]
fn more_connections_than_allowed_wait_for_their_turn() {
    let (server, _dir) = open(|limits| limits.connections = 1);
    let mut first = Wire::new(server.address);
    first.say("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(first.answer().0, OK);
    let mut second = Wire::new(server.address);
    second.say("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    drop(first);
    assert_eq!(second.answer().0, OK);
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
