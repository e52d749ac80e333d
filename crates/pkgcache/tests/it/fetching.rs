//! Fetching from a server on loopback that answers what it likes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sock_pkgcache::{Fault, Limits, Location, Lock, Progress, Sha256, Sources, Store};

use crate::wheel::Wheel;
use crate::{chain, lock, python};

/// Gives each connection the next answer, as raw bytes, and ends when all are given.
fn serve(answers: Vec<Vec<u8>>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/files/evil-1.0-py3-none-any.whl", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let mut head = String::new();
            while reader.read_line(&mut head).unwrap() > 2 {}
            requests.push(head);
            (&stream).write_all(&answer).unwrap();
        }
        requests
    });
    (url, server)
}

fn answer(status: &str, announced: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn sound() -> Vec<u8> {
    Wheel::new("evil", "1.0").file("evil.py", "x = 1\n").bytes()
}

fn locked_at(url: &str, size: Option<u64>) -> Lock {
    let dir = tempfile::tempdir().unwrap();
    let mut wheel = Wheel::new("evil", "1.0").save_bytes(dir.path(), &sound());
    wheel.location = Location::Url(url.into());
    wheel.size = size;
    lock([wheel])
}

/// Installs what a server gives; the number of bytes that were reported, or the refusal.
fn install(answers: Vec<Vec<u8>>, size: Option<u64>) -> Result<u64, String> {
    let (url, server) = serve(answers);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Limits { wheel_bytes: 100_000, ..Limits::default() }).unwrap();
    let mut received = 0;
    let result = store.install(&locked_at(&url, size), &python(), &mut |step| {
        if let Progress::Received { bytes } = step {
            received += bytes;
        }
    });
    server.join().unwrap();
    result.map(|_| received).map_err(|error| chain(&error))
}

#[test]
fn a_wheel_comes_over_http() {
    let wheel = sound();
    let len = wheel.len() as u64;
    assert_eq!(install(vec![answer("200 OK", wheel.len(), &wheel)], Some(len)).unwrap(), len);
}

#[test]
fn a_private_index_is_shown_its_credentials() {
    let wheel = sound();
    let (url, server) = serve(vec![answer("200 OK", wheel.len(), &wheel)]);
    let index =
        url.replace("http://", "http://user:s3cret@").replace("/files/evil-1.0-py3-none-any.whl", "/simple");
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources { index_url: Some(index), ..Sources::default() };
    let store = Store::open(dir.path(), Limits::default()).unwrap().with_sources(&sources);
    store.install(&locked_at(&url, None), &python(), &mut |_| {}).unwrap();
    let request = server.join().unwrap().remove(0);
    assert!(request.contains("\r\nauthorization: Basic dXNlcjpzM2NyZXQ=\r\n"), "{request}");
}

#[test]
fn a_server_that_stumbles_is_asked_again() {
    let wheel = sound();
    let answers = vec![
        answer("503 Service Unavailable", 0, b""),
        answer("200 OK", wheel.len(), &wheel[..wheel.len() / 2]),
        answer("200 OK", wheel.len(), &wheel),
    ];
    install(answers, None).unwrap();
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let wheel = sound();
    let half = answer("200 OK", wheel.len(), &wheel[..wheel.len() / 2]);
    for said in [Vec::new(), half] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/files/evil-1.0-py3-none-any.whl", listener.local_addr().unwrap());
        // Keeps every connection, and says no more.
        let server = thread::spawn(move || {
            let mut kept = Vec::new();
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&said).unwrap();
                kept.push(stream);
            }
            kept
        });
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { silence: Some(Duration::from_secs(1)), ..Sources::default() };
        let store = Store::open(dir.path(), Limits::default()).unwrap().with_sources(&sources);
        let begun = Instant::now();
        let error = store.install(&locked_at(&url, None), &python(), &mut |_| {}).unwrap_err();
        assert_eq!(error.fault(), Fault::Index);
        let (said, took) = (chain(&error), begun.elapsed());
        assert!(said.contains("timeout"), "{said}");
        assert!((3..30).contains(&took.as_secs()), "three attempts of a second: {took:?}");
        server.join().unwrap();
    }
}

#[test]
fn what_is_not_the_locked_wheel() {
    let wheel = sound();
    let mut other = wheel.clone();
    other[50] ^= 1;
    let ok = |body: &[u8]| vec![answer("200 OK", body.len(), body)];
    let size = Some(wheel.len() as u64);
    let endless = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".as_slice(), &vec![0; 100_001]].concat();
    let refusals = [
        install(ok(&other), size),
        install(ok(&wheel[..100]), size),
        install(ok(&vec![0; 100_001]), None),
        install(vec![endless], None),
        install(vec![answer("404 Not Found", 0, b"")], size),
        install(vec![answer("200 OK", wheel.len(), &wheel[..100]); 3], size),
    ];
    let text: Vec<_> = refusals.into_iter().map(Result::unwrap_err).collect();
    let filters = vec![
        (r"127\.0\.0\.1:\d+", "[server]"),
        ("[0-9a-f]{64}", "<sha256>"),
        (r"instead of \d+\n", "instead of [size]\n"),
    ];
    insta::with_settings!({ filters => filters }, {
        insta::assert_snapshot!(text.join("\n"));
    });
}

#[test]
fn a_wheel_that_changed_since_it_was_locked() {
    let dir = tempfile::tempdir().unwrap();
    let mut wheel = Wheel::new("evil", "1.0").save(dir.path());
    wheel.sha256 = Sha256::of(b"another");
    let store = Store::open(dir.path().join("store"), Limits::default()).unwrap();
    let error = store.install(&lock([wheel]), &python(), &mut |_| {}).unwrap_err();
    assert!(chain(&error).ends_with("it changed since it was locked; deploy again to lock anew"));
}
