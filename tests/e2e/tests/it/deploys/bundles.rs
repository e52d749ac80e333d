//! Bundles that are none, or do harm, and settings that cannot be: each with the exception that the API has for it.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use sock_gateway::BundleLimits;
use zip::ZipArchive;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::wheel::rename;
use super::{FUNCTIONS, answering, create, creation, filters, goes_on, nothing_is_left, settled, shown, zip};
use crate::server::Server;

fn symlink() -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_symlink("app.py", "/etc/shadow", SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap().into_inner()
}

fn many(entries: usize) -> Vec<u8> {
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for number in 0..entries {
        zip.start_file(format!("f{number}"), stored).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Zeros, a little more than so many, packed once and there again and again.
fn bomb(bytes: u64) -> Vec<u8> {
    const PART: usize = 8 << 20;
    let part = zip(&[("zeros", &vec![0; PART])]);
    let mut part = ZipArchive::new(Cursor::new(part)).unwrap();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for number in 0..=bytes / PART as u64 {
        zip.raw_copy_file_rename(part.by_index(0).unwrap(), format!("zeros{number}")).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn broken() -> Vec<u8> {
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("app.py", stored).unwrap();
    zip.write_all(b"content").unwrap();
    rename(zip.finish().unwrap().into_inner(), "content", b"CONTENT")
}

fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let limits = BundleLimits::default();
    let file: (&str, &[u8]) = ("app.py", b"def handler(event, context):\n    return 1\n");
    let whole = zip(&[file]);
    vec![
        ("no zip", b"#!/bin/sh\nid\n".to_vec()),
        ("half a zip", whole[..whole.len() / 2].to_vec()),
        ("an empty zip", zip(&[])),
        ("a traversal", zip(&[file, ("../../../etc/cron.d/x", b"")])),
        ("an absolute path", zip(&[file, ("/etc/cron.d/x", b"")])),
        ("a backslash", zip(&[file, ("..\\x.py", b"")])),
        ("a link", symlink()),
        ("a name twice", rename(zip(&[file, ("pap.py", b"")]), "pap.py", b"app.py")),
        ("a file that is a directory", zip(&[("a", b""), ("a/b.py", b"")])),
        ("a broken file", broken()),
        ("a bomb", bomb(limits.unpacked_bytes)),
        ("60,000 entries", many(60_000)),
    ]
}

#[test]
fn bundles_that_do_harm_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    goes_on(&server, "the start");
    let code = || fs::read_dir(data.path().join("code")).unwrap().count();
    let mut told = String::new();
    for (title, bundle) in hostile() {
        let before = code();
        let reply = create(&server, "hostile", &bundle);
        told.push_str(&format!("{title}\n  {}\n", shown(&reply)));
        assert_eq!(reply.status, 400, "{title}: {reply:?}");
        assert_eq!(server.ask("GET", &format!("{FUNCTIONS}/hostile"), b"").status, 404, "{title}");
        nothing_is_left(data.path(), title);
        assert_eq!(code(), before, "{title}: something of it was kept");
        goes_on(&server, title);
    }
    told.push_str(&format!("a request too large\n  {}\n", too_large(&server)));
    goes_on(&server, "a request too large");
    assert!(server.stop());
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!(told) });
}

/// More than the API takes for this operation, said by a client that does not care what it is told meanwhile.
fn too_large(server: &Server) -> String {
    let length = 70_167_212;
    // Signed over an empty body: that is looked at later, if at all.
    let headers = server.signed("POST", FUNCTIONS, b"");
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST {FUNCTIONS} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let block = vec![b' '; 1 << 20];
    let mut left = length;
    while left > 0 {
        let part = left.min(block.len());
        stream.write_all(&block[..part]).unwrap();
        left -= part;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line =
        |start: &str| answer.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    format!("{} {} {}", line("HTTP"), line("x-amzn-errortype"), answer.lines().last().unwrap_or_default())
}

#[test]
fn names_and_settings_that_cannot_be_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let sound = answering("1");
    assert_eq!(create(&server, "taken", &sound).status, 201);
    assert_eq!(settled(&server, "taken")["State"], "Active");
    let long = "n".repeat(300);
    let with = |member: &str, value: Value| {
        let mut body = creation(&server, "new", &sound);
        body[member] = value;
        ("POST", FUNCTIONS.to_owned(), body)
    };
    let of = |name: &str| ("GET", format!("{FUNCTIONS}/{name}"), Value::Null);
    let update = |body: Value| ("PUT", format!("{FUNCTIONS}/taken/configuration"), body);
    let cases = [
        ("a name that climbs", with("FunctionName", json!("../../etc/passwd"))),
        ("a name of 300 characters", with("FunctionName", json!(long))),
        ("no name", with("FunctionName", json!(""))),
        ("a name with a NUL", with("FunctionName", json!("a\0b"))),
        ("a path that climbs", of("..%2F..%2Fetc%2Fpasswd")),
        ("a path of 300 characters", of(&long)),
        ("a name that is taken", with("FunctionName", json!("taken"))),
        ("an unknown runtime", with("Runtime", json!("python2.7"))),
        ("a runtime that is a path", with("Runtime", json!("/usr/bin/python3"))),
        ("a handler without a function", with("Handler", json!("app"))),
        ("a handler that climbs", with("Handler", json!("../app.handler"))),
        ("an absolute handler", with("Handler", json!("/etc/app.handler"))),
        ("a handler of nothing", with("Handler", json!("."))),
        ("a handler with a space", with("Handler", json!("app handler.f"))),
        ("a handler of 200 characters", with("Handler", json!(format!("app.{}", "h".repeat(200))))),
        ("an update to an unknown runtime", update(json!({ "Runtime": "python2.7" }))),
        ("an update to a malformed handler", update(json!({ "Handler": "app" }))),
    ];
    let mut told = String::new();
    for (title, (method, target, body)) in cases {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = server.ask(method, &target, body.as_bytes());
        told.push_str(&format!("{title}\n  {}\n", shown(&reply)));
        assert!((400..500).contains(&reply.status), "{title}: {reply:?}");
        assert_eq!(server.run("taken", &json!({})).body, 1, "{title}");
        goes_on(&server, title);
    }
    let listed = server.ask("GET", FUNCTIONS, b"").body;
    let names: Vec<_> =
        listed["Functions"].as_array().unwrap().iter().map(|one| &one["FunctionName"]).collect();
    assert_eq!(names, ["good", "taken"]);
    assert!(server.stop());
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!(told) });
}
