//! A server that ends, by itself or not, and the next one over the same data directory.

use std::path::Path;

use serde_json::{Value, json};
use sock_gateway::{GatewayConfig, ServeError};
use sock_pkgcache::Interpreter;

use crate::http::Request;
use crate::server::{FUNCTIONS, Server, config, creation, python};
use crate::transcript::Transcript;

/// Begins a deployment that does not end, and crashes.
fn crash_while_deploying(dir: &Path, variables: &Value) {
    let server = Server::start_in(dir);
    let mut body = creation("f", "app.seen");
    body["Environment"] = json!({ "Variables": variables });
    assert_eq!(server.ask(Request::new("POST", FUNCTIONS, body.to_string())).status, 201);
    server.fake.until_noted("prepare f");
    server.crash();
}

#[test]
fn functions_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path());
    server.deploy("kept", "app.echo");
    server.deploy("deleted", "app.echo");
    let zip = crate::server::bundle(&[("app.py", "# only here\n")]);
    let code = json!({ "ZipFile": zip }).to_string();
    assert_eq!(server.ask(Request::new("PUT", &format!("{FUNCTIONS}/deleted/code"), code)).status, 200);
    server.settled("deleted");
    assert_eq!(server.ask(Request::new("DELETE", &format!("{FUNCTIONS}/deleted"), "")).status, 200);
    server.invoke("kept", "\"before\"");
    let before = server.settled("kept");
    server.stop(|| ()).unwrap();
    assert_eq!(bundles(dir.path()), 4, "two bundles, each as zip and directory");

    let server = Server::start_in(dir.path());
    assert_eq!(server.settled("kept"), before);
    assert_eq!(server.invoke("kept", "\"after\"").body, b"\"after\"");
    assert_eq!(server.get(&format!("{FUNCTIONS}/deleted")).status, 404);
    assert!(
        !server.fake.notes().iter().any(|note| note.starts_with("prepare")),
        "what is active is not deployed again"
    );
    let log = server.get("/logs/kept");
    assert_eq!(String::from_utf8_lossy(&log.body).matches("REPORT").count(), 2);
    assert_eq!(bundles(dir.path()), 2, "what no function needs is gone");
}

fn bundles(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("code")).unwrap().count()
}

#[test]
fn a_deployment_that_a_crash_interrupted_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    crash_while_deploying(dir.path(), &json!({ "HOLD_PREPARE": "1" }));
    let server = Server::start_in(dir.path());
    server.fake.until_noted("prepare f");
    server.fake.prepares.add_permits(1);
    assert_eq!(server.settled("f")["State"], "Active");
    assert_eq!(server.invoke("f", "1").status, 200);
}

#[test]
fn a_deployment_with_which_the_server_ends_again_and_again_fails() {
    let dir = tempfile::tempdir().unwrap();
    crash_while_deploying(dir.path(), &json!({ "HOLD_PREPARE": "1" }));
    for number in 1..=5 {
        let server = Server::start_in(dir.path());
        // From the third on it waits for longer than a test likes to.
        if number < 3 {
            server.fake.until_noted("prepare f");
        }
        server.crash();
    }
    let server = Server::start_in(dir.path());
    let settled = server.settled("f");
    assert_eq!(settled["State"], "Failed");
    let reason = settled["StateReason"].as_str().unwrap();
    assert!(reason.starts_with("the server ended 6 times while it deployed this function"), "{reason}");
    assert!(server.fake.notes().is_empty());
}

#[test]
fn a_resumed_deployment_that_cannot_succeed_ends_as_failed() {
    let dir = tempfile::tempdir().unwrap();
    crash_while_deploying(dir.path(), &json!({ "HOLD_PREPARE": "1", "FAIL_PREPARE": "1" }));
    let server = Server::start_in(dir.path());
    server.fake.prepares.add_permits(1);
    assert_eq!(server.settled("f")["State"], "Failed");
    server.stop(|| ()).unwrap();
    let server = Server::start_in(dir.path());
    assert_eq!(server.settled("f")["State"], "Failed", "and it stays so");
    assert!(server.fake.notes().is_empty());
}

#[test]
fn a_deployment_whose_bundle_is_gone_ends_as_failed() {
    let dir = tempfile::tempdir().unwrap();
    crash_while_deploying(dir.path(), &json!({ "HOLD_PREPARE": "1" }));
    std::fs::remove_dir_all(dir.path().join("code")).unwrap();
    let server = Server::start_in(dir.path());
    let settled = server.settled("f");
    assert_eq!((&settled["State"], &settled["StateReasonCode"]), (&json!("Failed"), &json!("InternalError")));
}

#[test]
fn an_update_that_a_crash_interrupted_leaves_the_live_one_running() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path());
    server.deploy("f", "app.echo");
    let update = json!({ "Handler": "app.nothing", "Environment": { "Variables": { "HOLD_PREPARE": "1" } } });
    let update = Request::new("PUT", &format!("{FUNCTIONS}/f/configuration"), update.to_string());
    assert_eq!(server.ask(update).status, 200);
    server.fake.until("the update is prepared", |seen| {
        seen.notes.iter().filter(|note| *note == "prepare f").count() == 2
    });
    server.crash();

    let server = Server::start_in(dir.path());
    assert_eq!(server.invoke("f", "\"old\"").body, b"\"old\"");
    server.fake.prepares.add_permits(1);
    assert_eq!(server.settled("f")["LastUpdateStatus"], "Successful");
    assert_eq!(server.invoke("f", "\"new\"").body, b"null");
}

#[test]
fn a_function_of_a_runtime_that_is_gone_is_kept_and_not_run_with_another() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path());
    server.deploy("f", "app.echo");
    server.stop(|| ()).unwrap();
    let python = Interpreter { version: (3, 12, 1), tag: "cp312".into(), ..python() };
    let server = Server::start_with(GatewayConfig { interpreters: vec![python], ..config(dir.path()) });
    let mut told = Transcript::new(&server);
    told.ask("invoke", Request::new("POST", &format!("{FUNCTIONS}/f/invocations"), "1"));
    told.check("runtime_gone");
    assert_eq!(server.settled("f")["Runtime"], "python3.11");
    let update = Request::new("PUT", &format!("{FUNCTIONS}/f/configuration"), r#"{"Runtime": "python3.12"}"#);
    assert_eq!(server.ask(update).status, 200);
    server.settled("f");
    assert_eq!(server.invoke("f", "1").status, 200);
}

#[test]
fn one_server_to_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::start_in(dir.path());
    assert_eq!(Request::new("GET", "/healthz", "").send(first.address).status, 200);
    let error = Server::start_in(dir.path()).ended();
    assert!(
        matches!(&error, ServeError::InUse { pid, .. } if *pid == std::process::id().to_string()),
        "{error}"
    );
    first.stop(|| ()).unwrap();
    let next = Server::start_in(dir.path());
    assert_eq!(Request::new("GET", "/healthz", "").send(next.address).status, 200);
}
