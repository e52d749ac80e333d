//! An index that is down, silent, or breaks off: the deploy fails in time, with a reason, and the next one succeeds.

use std::time::{Duration, Instant};

use serde_json::json;

use super::index::{Down, Fault, Index, Listed};
use super::wheel::Wheel;
use super::{SILENCE, create, filters, goes_on, noise, nothing_is_left, server, settled, update_code, zip};
use crate::server::Server;

/// Three attempts that each find nothing but silence, the resolver's pauses between them, and a slow machine.
const BOUND: Duration = Duration::from_secs(60);

fn needing(package: &str) -> Vec<u8> {
    let code = format!("import {package}.a\ndef handler(event, context):\n    return {package}.a.answer\n");
    zip(&[("app.py", code.as_bytes()), ("requirements.txt", package.as_bytes())])
}

fn wheel(name: &str) -> Listed {
    Listed::new(
        &Wheel::new(name, "1.0")
            .file(&format!("{name}/a.py"), "answer = 42\n")
            .file(&format!("{name}/pad"), noise(200_000)),
    )
}

/// A deploy that fails for the index's sake; gives its code and reason.
fn fails(server: &Server, name: &str) -> String {
    let begun = Instant::now();
    assert_eq!(create(server, name, &needing(name)).status, 201);
    let configuration = settled(server, name);
    assert_eq!(configuration["State"], "Failed", "{name}: {configuration}");
    assert!(begun.elapsed() < BOUND, "{name}: {:?}", begun.elapsed());
    let text = |member: &str| configuration[member].as_str().unwrap().to_owned();
    format!("{name}\n  {}: {}\n", text("StateReasonCode"), text("StateReason"))
}

fn succeeds(server: &Server, name: &str) {
    assert_eq!(update_code(server, name, &needing(name)).status, 200);
    let configuration = settled(server, name);
    assert_eq!(configuration["State"], "Active", "{name}: {configuration}");
    let answer = server.run(name, &json!({}));
    assert_eq!((answer.status, &answer.body), (200, &json!(42)), "{name}: {answer:?}");
}

/// Each case: a package, and what the index does at one of its paths. All at once: most of it is waiting.
fn outages(cases: &[(&str, &str, Fault)]) -> String {
    assert_eq!(SILENCE, "2");
    let data = tempfile::tempdir().unwrap();
    let index = Index::start();
    let server = server(data.path(), &index.url());
    for (name, path, fault) in cases {
        index.put(&name.replace('_', "-"), &[wheel(name)]);
        index.fault(path, Some(*fault));
    }
    let told: Vec<String> = std::thread::scope(|scope| {
        let server = &server;
        let all: Vec<_> = cases.iter().map(|(name, ..)| scope.spawn(|| fails(server, name))).collect();
        // Functions that need no index do not wait for it.
        goes_on(server, "an index that fails");
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    nothing_is_left(data.path(), "the outages");
    for (name, path, _) in cases {
        index.fault(path, None);
        succeeds(&server, name);
    }
    nothing_is_left(data.path(), "the retries");
    assert!(server.stop());
    told.concat()
}

#[test]
fn an_index_whose_pages_do_not_come() {
    let told = outages(&[
        ("silent_page", "/simple/silent-page/", Fault::Hold(None)),
        ("stuck_page", "/simple/stuck-page/", Fault::Hold(Some(60))),
        ("cut_page", "/simple/cut-page/", Fault::Cut(60)),
    ]);
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!(told) });
}

#[test]
fn an_index_whose_wheels_do_not_come() {
    let told = outages(&[
        ("silent_wheel", "/files/silent_wheel-1.0-py3-none-any.whl", Fault::Hold(None)),
        ("stuck_wheel", "/files/stuck_wheel-1.0-py3-none-any.whl", Fault::Hold(Some(90_000))),
        ("cut_wheel", "/files/cut_wheel-1.0-py3-none-any.whl", Fault::Cut(90_000)),
    ]);
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!(told) });
}

#[test]
fn an_index_that_is_down_and_comes_up() {
    let data = tempfile::tempdir().unwrap();
    let down = Down::new();
    let server = server(data.path(), &down.url());
    let told = fails(&server, "away");
    goes_on(&server, "an index that is down");
    let index = down.up();
    index.put("away", &[wheel("away")]);
    succeeds(&server, "away");
    assert!(server.stop());
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!(told) });
}

/// Each of its answers takes longer than the silence after which it would count as down.
#[test]
fn an_index_that_is_slow_is_waited_for() {
    let data = tempfile::tempdir().unwrap();
    let index = Index::start();
    let server = server(data.path(), &index.url());
    index.put("slow", &[wheel("slow")]);
    for path in ["/simple/slow/", "/files/slow-1.0-py3-none-any.whl"] {
        index.fault(path, Some(Fault::Slow(12)));
    }
    let begun = Instant::now();
    assert_eq!(create(&server, "slow", &needing("slow")).status, 201);
    assert_eq!(settled(&server, "slow")["State"], "Active");
    assert!(begun.elapsed() > Duration::from_secs(5), "{:?}: it was not slow", begun.elapsed());
    assert_eq!(server.run("slow", &json!({})).body, json!(42));
    assert!(server.stop());
}
