//! Clients that are slow, wrong, many or gone, against a whole server. What each of them is told in detail is tested at
//! the gateway.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::server::{Server, tests};

/// Idle connections.
const IDLE: usize = 10_000;

fn server(data: &tempfile::TempDir) -> Server {
    let server = Server::start(data.path());
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler", "--public"]);
    assert_eq!(server.run("echo", &json!([1])).body, json!([1]));
    server
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Resident memory of the gateway, bytes.
fn gateway_memory(server: &Server) -> u64 {
    let gateway = server.processes().into_iter().find(|p| p.uid != 0 && p.is_child_of(server)).unwrap();
    let kilobytes: u64 = gateway.status("VmRSS").split(' ').next().unwrap().parse().unwrap();
    kilobytes << 10
}

#[test]
fn ten_thousand_idle_connections_keep_nobody_out() {
    let data = tempfile::tempdir().unwrap();
    let server = server(&data);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let (before, began) = (gateway_memory(&server), Instant::now());
    let idle: Vec<TcpStream> = (0..IDLE)
        .map(|number| {
            let mut stream = connect(&server);
            // Half of them have begun to say something.
            if number % 2 == 0 {
                stream.write_all(b"POST /run/echo HTTP/1.1\r\nhost: x\r\n").unwrap();
            }
            stream
        })
        .collect();
    // One that finds no room where they wait to be taken waits a second: that would be a minute.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(server.run("echo", &json!([2])).body, json!([2]));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(server.metric("sock_connections") >= IDLE as u64);
    let each = gateway_memory(&server).saturating_sub(before) / IDLE as u64;
    assert!(each < 24 << 10, "{each} bytes for each");
    drop(idle);
    server.wait_until(|| server.metric("sock_connections "), |count| *count < 100);
    assert!(server.stop());
}

#[test]
fn a_client_that_leaves_gives_its_slot_back() {
    let data = tempfile::tempdir().unwrap();
    let server = server(&data);
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "60", "--public"]);
    let mut gone = connect(&server);
    gone.write_all(b"POST /run/where HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{\"wait\": true}")
        .unwrap();
    let working = || {
        let files = server.processes().into_iter().map(|process| process.inside("/tmp/working"));
        files.filter(|file| file.exists()).collect::<Vec<_>>()
    };
    let files = server.wait_until(working, |files| !files.is_empty());
    drop(gone);
    assert_eq!(server.metric("sock_instances{state=\"running\"}"), 1, "it runs to its end");
    files.iter().for_each(|file| drop(std::fs::remove_file(file)));
    server.wait_until(|| server.metric("sock_instances{state=\"running\"}"), |running| *running == 0);
    let next = server.run("where", &json!({}));
    assert_eq!((next.start.as_str(), &next.body["calls"]), ("warm", &json!(2)), "in the same instance");
    assert!(server.stop());
}

#[test]
fn what_is_no_request_is_refused_and_the_next_one_answered() {
    let data = tempfile::tempdir().unwrap();
    let server = server(&data);
    let post = "POST /run/echo HTTP/1.1\r\nhost: x\r\n";
    let long = format!("{post}x: {}", "y".repeat((64 << 10) - post.len() - 3));
    for (request, first_line) in [
        ("\x16\x03\x01\x02\x00\x01\x00".to_owned(), "HTTP/1.1 400 Bad Request"),
        ("GET\r\n\r\n".to_owned(), "HTTP/1.1 400 Bad Request"),
        (format!("{post}content-length: 3\r\ncontent-length: 4\r\n\r\n[1]"), "HTTP/1.1 400 Bad Request"),
        (long, "HTTP/1.1 431 Request Header Fields Too Large"),
        (format!("{post}content-length: 3\r\n\r\n{{1]"), "HTTP/1.1 400 Bad Request"),
        (
            format!("{post}content-length: 6291457\r\n\r\n{}", " ".repeat(6_291_457)),
            "HTTP/1.1 413 Payload Too Large",
        ),
    ] {
        let mut stream = connect(&server);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 256];
        let length = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let start: String = request.chars().take(120).collect();
        assert_eq!(answer.lines().next(), Some(first_line), "{start:?}");
        assert_eq!(server.run("echo", &json!([2])).body, json!([2]));
    }
    // Of one whose length is told in two ways the chunks are read, and nothing behind them.
    let mut stream = connect(&server);
    let body = "3\r\n[1]\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let both = format!("{post}content-length: 40\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    stream.write_all(both.as_bytes()).unwrap();
    let mut answer = String::new();
    // What was not read of it may reset the connection.
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("[1]"), "{answer}");
    assert!(server.stop());
}
