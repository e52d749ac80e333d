//! Deployments: packages, failures, and what meets them on the way.

use serde_json::{Value, json};
use sock_gateway::GatewayConfig;
use sock_pkgcache::Sources;

use crate::http::Request;
use crate::server::{FUNCTIONS, Server, bundle, config, creation, python};
use crate::transcript::Transcript;

fn create(server: &Server, alter: impl FnOnce(&mut Value)) {
    let mut body = creation("f", "app.seen");
    alter(&mut body);
    let answer = server.ask(Request::new("POST", FUNCTIONS, body.to_string()));
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
}

fn update(server: &Server, body: Value) {
    let answer = server.ask(Request::new("PUT", &format!("{FUNCTIONS}/f/configuration"), body.to_string()));
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
}

fn variable(name: &str) -> Value {
    json!({ "Variables": { name: "1" } })
}

fn with_requirements(text: &str) -> Value {
    json!({ "ZipFile": bundle(&[("app.py", ""), ("requirements.txt", text)]) })
}

/// The members that say how a deployment went.
fn state(configuration: &Value) -> Value {
    let members = [
        "State",
        "StateReason",
        "StateReasonCode",
        "LastUpdateStatus",
        "LastUpdateStatusReason",
        "LastUpdateStatusReasonCode",
    ];
    members
        .iter()
        .filter_map(|member| Some((member.to_string(), configuration.get(member)?.clone())))
        .collect()
}

#[test]
fn a_function_without_requirements_needs_no_network() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = Sources { index_url: Some("http://127.0.0.1:1/".into()), ..Sources::default() };
    let real = GatewayConfig::open(dir.path().join("data"), vec![python()], nowhere).unwrap();
    let server = Server::start_with(GatewayConfig {
        data_dir: dir.path().into(),
        packages: real.packages,
        ..config(dir.path())
    });
    create(&server, |_| ());
    assert_eq!(server.settled("f")["State"], "Active");
    for nothing in [" \n\n", "# pandas, one day\n"] {
        let code = with_requirements(nothing);
        assert_eq!(
            server.ask(Request::new("PUT", &format!("{FUNCTIONS}/f/code"), code.to_string())).status,
            200
        );
        assert_eq!(server.settled("f")["LastUpdateStatus"], "Successful", "{nothing:?}");
    }
}

#[test]
fn requirements_that_are_too_long_are_refused_and_not_cut_off() {
    let server = Server::start();
    let long = format!("{}\npandas\n", "# more\n".repeat(200_000));
    create(&server, |body| body["Code"] = with_requirements(&long));
    let settled = server.settled("f");
    assert_eq!(
        settled["StateReason"], "requirements.txt cannot be read: it has more than 1048576 bytes",
        "{settled}"
    );
}

#[test]
fn a_bundle_of_many_files_comes_back_as_it_was_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path());
    let names: Vec<String> = (0..40).map(|n| format!("package/part{}/module{n}.py", n % 3)).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
    create(&server, |body| body["Code"] = json!({ "ZipFile": bundle(&files) }));
    assert_eq!(server.settled("f")["State"], "Active");
    let trees = std::fs::read_dir(dir.path().join("code")).unwrap().map(|entry| entry.unwrap().path());
    let tree = trees.into_iter().find(|path| path.is_dir()).unwrap();
    for name in &names {
        assert_eq!(std::fs::read_to_string(tree.join(name)).unwrap(), *name);
    }
}

#[test]
fn requirements_are_installed_and_given_to_the_runner() {
    let server = Server::start();
    create(&server, |body| body["Code"] = with_requirements("pandas\n"));
    assert_eq!(server.settled("f")["State"], "Active");
    assert_eq!(server.invoke("f", "1").json()["packages"], true);
}

#[test]
fn a_failed_creation_says_why_and_can_be_mended() {
    let server = Server::start();
    let mut told = Transcript::new(&server);
    create(&server, |body| body["Code"] = with_requirements("--index-url http://elsewhere\n"));
    told.write(&format!("# requirements that are refused\n{:#}", state(&server.settled("f"))));
    told.ask("its invocation", Request::new("POST", "/run/f", "1"));
    let code = with_requirements("pandas\n");
    assert_eq!(server.ask(Request::new("PUT", &format!("{FUNCTIONS}/f/code"), code.to_string())).status, 200);
    told.write(&format!("# mended\n{:#}", state(&server.settled("f"))));
    told.check("failed_creation");
    assert_eq!(server.invoke("f", "1").status, 200);
}

#[test]
fn after_a_failed_update_what_was_live_stays_live() {
    let server = Server::start();
    create(&server, |_| ());
    server.settled("f");
    let mut told = Transcript::new(&server);
    update(&server, json!({ "Timeout": 9, "Environment": variable("FAIL_PREPARE") }));
    told.write(&format!("# a function that cannot be prepared\n{:#}", state(&server.settled("f"))));
    let seen = server.invoke("f", "1").json();
    assert_eq!((&seen["timeout"], &seen["env"]["FAIL_PREPARE"]), (&json!(3), &Value::Null));
    update(&server, json!({ "Environment": variable("PANIC_PREPARE") }));
    told.write(&format!("# a runner that panics\n{:#}", state(&server.settled("f"))));
    assert_eq!(server.invoke("f", "1").json()["timeout"], 3);
    update(&server, json!({ "Environment": { "Variables": {} } }));
    told.write(&format!("# mended\n{:#}", state(&server.settled("f"))));
    assert_eq!(
        server.invoke("f", "1").json()["timeout"],
        9,
        "the refused update's other settings are still wanted"
    );
    told.check("failed_update");
}

#[test]
fn a_deployment_whose_end_cannot_be_written_down_is_written_down_later() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path());
    create(&server, |body| body["Environment"] = variable("HOLD_PREPARE"));
    server.fake.until_noted("prepare f");
    let database = rusqlite::Connection::open(dir.path().join("sock.db")).unwrap();
    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    server.fake.prepares.add_permits(1);
    let waiting = |configuration: &Value| {
        let reason = configuration["StateReason"].as_str();
        reason.is_some_and(|reason| reason.starts_with("waiting until its end can be recorded: "))
    };
    let begun = std::time::Instant::now();
    while !waiting(&server.get(&format!("{FUNCTIONS}/f/configuration")).json()) {
        assert!(begun.elapsed() < crate::fake::PATIENCE);
        std::thread::yield_now();
    }
    database.execute_batch("ROLLBACK").unwrap();
    assert_eq!(server.settled("f")["State"], "Active");
    assert_eq!(server.invoke("f", "1").status, 200);
}

#[test]
fn a_function_that_is_deleted_while_it_is_made_leaves_nothing_with_the_runner() {
    let server = Server::start();
    create(&server, |body| body["Environment"] = variable("HOLD_PREPARE"));
    server.fake.until_noted("prepare f");
    assert_eq!(server.ask(Request::new("DELETE", &format!("{FUNCTIONS}/f"), "")).status, 200);
    server.fake.prepares.add_permits(1);
    server.fake.until("the runner retires what it has prepared", |seen| {
        let prepared = seen.notes.iter().position(|note| note == "prepared f");
        prepared.is_some_and(|at| seen.notes[at..].iter().any(|note| note == "retire f"))
    });
    assert_eq!(server.get(&format!("{FUNCTIONS}/f")).status, 404);
}

#[test]
fn a_name_can_be_taken_again_while_the_first_bearer_is_still_being_made() {
    let server = Server::start();
    create(&server, |body| body["Environment"] = variable("HOLD_PREPARE"));
    server.fake.until_noted("prepare f");
    assert_eq!(server.ask(Request::new("DELETE", &format!("{FUNCTIONS}/f"), "")).status, 200);
    create(&server, |body| body["Timeout"] = 7.into());
    let settled = server.settled("f");
    assert_eq!((&settled["State"], &settled["Timeout"]), (&json!("Active"), &json!(7)));
    server.fake.prepares.add_permits(1);
    server.fake.until("the first one is ready", |seen| {
        seen.notes.iter().filter(|note| *note == "prepared f").count() == 2
    });
    assert_eq!(server.invoke("f", "1").json()["timeout"], 7);
}

#[test]
fn a_whole_deployment_is_live_as_a_whole_or_not_at_all() {
    let server = Server::start();
    server.deploy("f", "app.echo");
    let whole = |handler: &str, variables: &serde_json::Value, marks: &serde_json::Value| {
        let zip = crate::server::bundle(&[("app.py", "# new\n")]);
        let body = json!({
            "Handler": handler,
            "Environment": { "Variables": variables },
            "Code": { "ZipFile": zip },
            "Marks": marks,
        });
        server.ask(Request::new("PUT", "/deploy/f", body.to_string()))
    };
    let before = server.settled("f");
    let tags = || {
        let answer = server.get(&format!("{FUNCTIONS}/f"));
        serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap().get("Tags").cloned()
    };
    // Fails: what was live stays, tags too.
    let answer = whole("app.echo", &json!({ "FAIL_PREPARE": "1" }), &json!({ "sock:public": "true" }));
    assert_eq!(answer.status, 200);
    assert_eq!(server.settled("f")["LastUpdateStatus"], "Failed");
    assert_eq!(server.invoke("f", "1").body, b"1");
    assert_eq!(tags(), None);
    // Refused: nothing is begun.
    assert_eq!(whole("app.echo", &json!({}), &json!({ "other": "true" })).status, 400);
    assert_eq!(whole("no-handler-at all", &json!({ "x-": "1" }), &json!({})).status, 400);
    assert_eq!(server.ask(Request::new("PUT", "/deploy/missing", "{}".to_owned())).status, 404);
    // Succeeds: all of it.
    assert_eq!(whole("app.echo", &json!({}), &json!({ "sock:public": "true" })).status, 200);
    let after = server.settled("f");
    assert_eq!((&after["State"], &after["LastUpdateStatus"]), (&json!("Active"), &json!("Successful")));
    assert_ne!(after["CodeSha256"], before["CodeSha256"]);
    assert_eq!(tags(), Some(json!({ "sock:public": "true" })));
    assert_eq!(whole("app.echo", &json!({}), &json!({})).status, 200);
    server.settled("f");
    assert_eq!(tags(), None, "marks that are not given are taken away");
}
