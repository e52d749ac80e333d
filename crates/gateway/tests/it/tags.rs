//! Tags, and those that are switches of the server.

use serde_json::json;
use sock_gateway::GatewayConfig;

use crate::http::Request;
use crate::server::{FUNCTIONS, Server, config, creation};
use crate::transcript::Transcript;

const ARN: &str = "/2017-03-31/tags/arn:aws:lambda:us-east-1:000000000000:function:seen";

fn tag(tags: &serde_json::Value) -> Request {
    Request::new("POST", ARN, json!({ "Tags": tags }).to_string())
}

#[test]
fn tags_come_and_go() {
    let server = Server::start();
    server.deploy("seen", "app.seen");
    let revision = server.settled("seen")["RevisionId"].clone();
    let mut told = Transcript::new(&server);
    told.ask("none yet", Request::new("GET", ARN, ""));
    told.ask("two", tag(&json!({ "team": "sound", "cost centre": "7" })));
    told.ask("both are there", Request::new("GET", ARN, ""));
    told.ask("remove one", Request::new("DELETE", &format!("{ARN}?tagKeys=cost%20centre"), ""));
    told.ask("one is left", Request::new("GET", ARN, ""));
    told.ask("a key that is none", tag(&json!({ "": "x" })));
    told.ask("of nobody", Request::new("GET", &ARN.replace("seen", "nobody"), ""));
    told.check("tags");
    assert_eq!(server.settled("seen")["RevisionId"], revision, "tags are no deployment");
}

#[test]
fn a_public_function_runs_without_a_key_and_nothing_else_of_it_does() {
    let server = Server::start();
    server.deploy("seen", "app.seen");
    let run = || Request::new("POST", "/run/seen", "1").send(server.address).status;
    assert_eq!(run(), 403);
    assert_eq!(server.ask(tag(&json!({ "sock:public": "true" }))).status, 204);
    assert_eq!(run(), 200);
    for target in ["/logs/seen".to_string(), "/code/seen".into(), format!("{FUNCTIONS}/seen")] {
        assert_eq!(Request::new("GET", &target, "").send(server.address).status, 403, "{target}");
    }
    assert_eq!(server.ask(tag(&json!({ "sock:public": "false" }))).status, 204);
    assert_eq!(run(), 403);
}

#[test]
fn a_fresh_function_is_told_to_the_runner_at_once() {
    let server = Server::start();
    server.deploy("seen", "app.seen");
    assert_eq!(server.invoke("seen", "1").json()["fresh"], false);
    assert_eq!(server.ask(tag(&json!({ "sock:fresh": "true" }))).status, 204);
    assert_eq!(server.invoke("seen", "1").json()["fresh"], true);
}

#[test]
fn a_profile_is_one_that_there_is_and_other_than_lean_no_zygote_is_used() {
    let server = Server::start();
    server.deploy("seen", "app.seen");
    let mut told = Transcript::new(&server);
    told.ask("no profile", tag(&json!({ "sock:profile": "loose" })));
    told.ask("the operator has not allowed it", tag(&json!({ "sock:profile": "paper" })));
    told.check("profiles");
    assert_eq!(server.invoke("seen", "1").json()["fresh"], false);
    assert_eq!(server.ask(tag(&json!({ "sock:profile": "strict" }))).status, 204);
    assert_eq!(server.invoke("seen", "1").json()["fresh"], true);
    let mut new = creation("new", "app.seen");
    new["Tags"] = json!({ "sock:profile": "paper" });
    assert_eq!(server.ask(Request::new("POST", FUNCTIONS, new.to_string())).status, 403);
    let whole = json!({ "Code": { "ZipFile": "" }, "Marks": { "sock:profile": "paper" } });
    assert_eq!(server.ask(Request::new("PUT", "/deploy/seen", whole.to_string())).status, 403);
}

/// Nor by a function that was deployed when it was allowed.
#[test]
fn paper_is_refused_without_the_operators_word() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(GatewayConfig { allow_paper: true, ..config(dir.path()) });
    server.deploy("seen", "app.seen");
    assert_eq!(server.ask(tag(&json!({ "sock:profile": "paper" }))).status, 204);
    assert_eq!(server.invoke("seen", "1").status, 200);
    server.stop(|| ()).unwrap();
    let server = Server::start_in(dir.path());
    assert_eq!(server.invoke("seen", "1").status, 403);
    assert_eq!(server.ask(Request::new("POST", "/run/seen", "1")).status, 403);
    assert_eq!(
        server.ask(tag(&json!({ "team": "sound" }))).status,
        204,
        "another tag is no question of that"
    );
    assert_eq!(server.ask(tag(&json!({ "sock:profile": "lean" }))).status, 204);
    assert_eq!(server.invoke("seen", "1").status, 200);
}
