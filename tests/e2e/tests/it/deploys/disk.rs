//! A disk that is full in the middle of it: the error says so, nothing half-written stays, and after room was made the same
//! request succeeds.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};
use serde_json::json;

use super::index::{Fault, Index, Listed};
use super::wheel::Wheel;
use super::{
    answering, create, filters, goes_on, noise, nothing_is_left, server, settled, shown, update_code, zip,
};
use crate::server::Server;

/// A data directory on a small disk of its own.
struct Disk {
    dir: PathBuf,
    _place: tempfile::TempDir,
}

impl Disk {
    /// With room for the resolver, and for little else.
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("data");
        fs::create_dir(&dir).unwrap();
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=192m")).unwrap();
        Self { dir, _place: place }
    }

    /// Takes all room but so many bytes.
    fn fill(&self, left: usize) {
        let mut ballast = File::options().append(true).create(true).open(self.dir.join("ballast")).unwrap();
        let block = vec![0; 64 << 10];
        loop {
            match ballast.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        let size = ballast.metadata().unwrap().len();
        ballast.set_len(size - left as u64).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.dir.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Busy while a server that a failed test has left is ending; the machine ends then too.
        let _ = umount(&self.dir);
    }
}

fn entries(data: &Path, place: &str) -> usize {
    fs::read_dir(data.join(place)).unwrap().count()
}

/// What a wheel that unpacks to 8 MB brings.
fn large(index: &Index, name: &str) -> Vec<u8> {
    let content: Vec<u8> = std::iter::repeat_n(noise(4096), 2048).flatten().collect();
    let wheel = Wheel::new(name, "1.0").file(&format!("{name}/a.py"), "answer = 42\n");
    index.put(name, &[Listed::new(&wheel.file(&format!("{name}/pad"), content))]);
    let code = format!("import {name}.a\ndef handler(event, context):\n    return {name}.a.answer\n");
    zip(&[("app.py", code.as_bytes()), ("requirements.txt", name.as_bytes())])
}

#[test]
fn a_full_disk_is_told_and_costs_nothing() {
    let (disk, index) = (Disk::new(), Index::start());
    let data = disk.dir.as_path();
    let server = server(data, &index.url());
    goes_on(&server, "the start");
    // The resolver's own files are there before it gets tight.
    assert_eq!(create(&server, "first", &large(&index, "first")).status, 201);
    assert_eq!(settled(&server, "first")["State"], "Active");
    let mut told = String::new();

    let bundle =
        zip(&[("app.py", b"def handler(event, context):\n    return 1\n"), ("pad", &noise(4 << 20))]);
    let before = entries(data, "code");
    disk.fill(2 << 20);
    let reply = create(&server, "bundle", &bundle);
    told.push_str(&format!("a bundle\n  {}\n", shown(&reply)));
    assert_eq!((reply.status, entries(data, "code")), (500, before));
    nothing_is_left(data, "a bundle");
    assert_eq!(server.run("good", &json!({})).body, "the start");
    disk.make_room();
    assert_eq!(create(&server, "bundle", &bundle).status, 201);
    assert_eq!(settled(&server, "bundle")["State"], "Active");

    let bundle = large(&index, "wheel");
    let before = entries(data, "packages/wheels");
    disk.fill(2 << 20);
    assert_eq!(create(&server, "wheel", &bundle).status, 201);
    let configuration = settled(&server, "wheel");
    let text = |member: &str| configuration[member].as_str().unwrap_or_default();
    told.push_str(&format!("a wheel\n  {}: {}\n", text("StateReasonCode"), text("StateReason")));
    assert_eq!((text("State"), entries(data, "packages/wheels")), ("Failed", before));
    nothing_is_left(data, "a wheel");
    assert_eq!(server.run("good", &json!({})).body, "the start");
    disk.make_room();
    assert_eq!(update_code(&server, "wheel", &bundle).status, 200);
    assert_eq!(settled(&server, "wheel")["State"], "Active");
    assert_eq!(server.run("wheel", &json!({})).body, 42);

    // The bundle is there already; only the registry has to be written.
    disk.fill(0);
    let reply = create(&server, "registry", &answering("\"the start\""));
    told.push_str(&format!("the registry\n  {}\n", shown(&reply)));
    assert_eq!(reply.status, 500);
    assert_eq!(server.ask("GET", "/2015-03-31/functions/registry", b"").status, 404);
    assert_eq!(server.run("good", &json!({})).body, "the start");
    disk.make_room();
    assert_eq!(create(&server, "registry", &answering("\"the start\"")).status, 201);
    assert_eq!(settled(&server, "registry")["State"], "Active");

    goes_on(&server, "room was made");
    assert!(server.stop());
    // All of it was written down.
    let server = super::server(data, &index.url());
    for (name, answer) in [("good", json!("room was made")), ("bundle", json!(1)), ("wheel", json!(42))] {
        assert_eq!(server.run(name, &json!({})).body, answer, "{name}");
    }
    assert!(server.stop());
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!(told) });
}

#[test]
fn a_deployment_whose_end_cannot_be_recorded_is_recorded_later() {
    let (disk, index) = (Disk::new(), Index::start());
    let data = disk.dir.as_path();
    let server = server(data, &index.url());
    goes_on(&server, "the start");
    let bundle = large(&index, "late");
    let page = "/simple/late/";
    index.fault(page, Some(Fault::Hold(None)));
    assert_eq!(create(&server, "late", &bundle).status, 201);
    index.wait_asked(page);
    disk.fill(0);
    index.fault(page, None);
    server.wait_for("failed to record a deployment");
    let pending = server.ask("GET", "/2015-03-31/functions/late/configuration", b"").body;
    assert_eq!(pending["State"], "Pending", "{pending}");
    assert!(pending["StateReason"].as_str().unwrap().contains("database or disk is full"), "{pending}");
    assert_eq!(server.run("good", &json!({})).body, "the start");
    disk.make_room();
    // Why it failed, or that it did not: either way it is known, and can be changed.
    settled(&server, "late");
    assert_eq!(update_code(&server, "late", &bundle).status, 200);
    assert_eq!(settled(&server, "late")["State"], "Active");
    assert_eq!(server.run("late", &json!({})).body, 42);
    assert!(server.stop());
}

#[test]
fn a_log_that_cannot_be_written_costs_no_answer_and_leaves_no_half_line() {
    let disk = Disk::new();
    let server = Server::start(&disk.dir);
    let code = b"def handler(event, context):\n    for n in range(event['lines']): print(n, 'x' * 100, n)\n    return n\n";
    assert_eq!(create(&server, "talks", &zip(&[("app.py", code)])).status, 201);
    assert_eq!(settled(&server, "talks")["State"], "Active");
    assert_eq!(server.run("talks", &json!({"lines": 1})).body, 0);
    disk.fill(20_000);
    assert_eq!(server.run("talks", &json!({"lines": 1000})).body, 999);
    server.wait_for("failed to write a function's log");
    disk.make_room();
    assert_eq!(server.run("talks", &json!({"lines": 2})).body, 1);
    let log = server.succeed(&["logs", "talks"]);
    let whole = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        // The platform's own lines, and nothing before them: half a line would be joined to the next.
        ["START", "END", "REPORT"].contains(&words[0])
            || (words.len() == 3 && words[0] == words[2] && words[1].len() == 100)
    };
    let half: Vec<&str> = log.lines().filter(|line| !line.is_empty() && !whole(line)).collect();
    assert!(half.is_empty(), "{half:?}");
    assert_eq!(log.matches("REPORT RequestId: ").count(), 2, "{log}");
    assert!(server.stop());
}

#[test]
fn an_event_whose_end_cannot_be_written_down_is_written_down_later() {
    let disk = Disk::new();
    let server = Server::start_with(&disk.dir, &["--no-auth"]);
    let code = b"import time\ndef handler(event, context):\n    time.sleep(1)\n    return 1\n";
    assert_eq!(create(&server, "slow", &zip(&[("app.py", code)])).status, 201);
    assert_eq!(settled(&server, "slow")["State"], "Active");
    // The rest has to be full before the first of them ends.
    disk.fill(1 << 20);
    for _ in 0..20 {
        assert_eq!(server.invoke("slow", &[("x-amz-invocation-type", "Event")], b"{}").status, 202);
    }
    disk.fill(0);
    server.wait_for("cannot be written down");
    disk.make_room();
    server.wait_until(|| server.metric("sock_events_waiting"), |waiting| *waiting == 0);
    assert_eq!(server.metric("sock_event_attempts_total{outcome=\"ran\"}"), 20, "each once");
    assert!(server.stop());
}
