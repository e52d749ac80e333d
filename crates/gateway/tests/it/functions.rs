//! The operations on functions, answer by answer.

use serde_json::{Value, json};

use crate::http::Request;
use crate::server::{FUNCTIONS, Server, bundle, creation};
use crate::transcript::Transcript;

fn put(target: &str, body: &Value) -> Request {
    Request::new("PUT", &format!("{FUNCTIONS}/{target}"), body.to_string())
}

fn get(target: &str) -> Request {
    Request::new("GET", &format!("{FUNCTIONS}{target}"), "")
}

#[test]
fn a_function_from_creation_to_deletion() {
    let server = Server::start();
    let mut told = Transcript::new(&server);
    let mut body = creation("echo", "app.echo");
    body["Description"] = "says it again".into();
    body["Environment"] = json!({ "Variables": { "HOLD_PREPARE": "1" } });
    body["Tags"] = json!({ "team": "sound" });
    let create = Request::new("POST", FUNCTIONS, body.to_string());
    let created = told.ask("create", create).json();
    server.fake.until_noted("prepare echo");
    told.ask("its configuration while it is being deployed", get("/echo/configuration"));
    told.ask(
        "an invocation before it is active",
        Request::new("POST", &format!("{FUNCTIONS}/echo/invocations"), ""),
    );
    told.ask("an update before it is active", put("echo/configuration", &json!({ "Timeout": 5 })));
    server.fake.prepares.add_permits(1);
    server.settled("echo");
    let got = told.ask("the function", get("/echo")).json();
    assert_eq!(got["Configuration"]["RevisionId"], created["RevisionId"]);
    told.ask(
        "its configuration, by a qualified ARN",
        get("/arn:aws:lambda:us-east-1:000000000000:function:echo:$LATEST/configuration"),
    );

    let settings = json!({
        "Timeout": 30, "MemorySize": 256, "Handler": "app.seen", "EphemeralStorage": { "Size": 512 },
        "Environment": { "Variables": { "COLOUR": "blue" } }, "Description": "",
        "TracingConfig": { "Mode": "PassThrough" }, "SnapStart": { "ApplyOn": "None" },
    });
    let updated = told.ask("update its configuration", put("echo/configuration", &settings)).json();
    assert_ne!(updated["RevisionId"], created["RevisionId"]);
    assert_eq!(updated["CodeSha256"], created["CodeSha256"]);
    let settled = server.settled("echo");
    let code = json!({ "ZipFile": bundle(&[("app.py", "# new\n")]), "RevisionId": settled["RevisionId"] });
    let updated = told.ask("update its code, with the revision", put("echo/code", &code)).json();
    assert_ne!(updated["CodeSha256"], created["CodeSha256"]);
    server.settled("echo");
    let code = json!({ "ZipFile": bundle(&[("app.py", "")]), "DryRun": true });
    let dry = told.ask("update its code, as a dry run", put("echo/code", &code)).json();
    let got = server.settled("echo");
    assert_ne!(dry["CodeSha256"], got["CodeSha256"], "what it would be");
    assert_eq!(got["CodeSha256"], updated["CodeSha256"], "what it is");
    assert_eq!(dry["RevisionId"], got["RevisionId"]);
    told.ask("what its handler is given", Request::new("POST", "/run/echo", "{}"));

    told.ask("delete", Request::new("DELETE", &format!("{FUNCTIONS}/echo"), ""));
    told.ask("delete it again", Request::new("DELETE", &format!("{FUNCTIONS}/echo"), ""));
    told.ask("the function that is gone", get("/echo"));
    told.check("functions");
    assert_eq!(server.fake.notes().last().unwrap(), "retire echo");
}

#[test]
fn functions_are_listed_in_pages() {
    let server = Server::start();
    let mut told = Transcript::new(&server);
    told.ask("nothing yet", get("/"));
    for name in ["b", "c", "a"] {
        server.deploy(name, "app.echo");
    }
    let page = server.get(&format!("{FUNCTIONS}/?MaxItems=2")).json();
    let names = |page: &Value| {
        page["Functions"].as_array().unwrap().iter().map(|f| f["FunctionName"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&page), ["a", "b"]);
    let marker = page["NextMarker"].as_str().unwrap();
    let last = told.ask("the last page, all versions", get(&format!("?FunctionVersion=ALL&Marker={marker}")));
    assert_eq!(names(&last.json()), ["c"]);
    told.ask("a marker that is none", get("?Marker=!!"));
    told.ask("too few items", get("?MaxItems=0"));
    told.check("lists");
}

#[test]
fn the_link_to_the_code_needs_no_key_and_gives_the_zip_back() {
    let server = Server::start();
    server.deploy("echo", "app.echo");
    let got = server.get(&format!("{FUNCTIONS}/echo")).json();
    let link = got["Code"]["Location"].as_str().unwrap();
    let target = link.strip_prefix(&format!("http://{}", server.address)).unwrap();
    let zip = Request::new("GET", target, "").send(server.address);
    assert_eq!((zip.status, zip.header("content-type")), (200, Some("application/zip")));
    assert_eq!(zip.body.len() as u64, got["Configuration"]["CodeSize"].as_u64().unwrap());
    let other = target.replace("/code/echo", "/code/other");
    assert_eq!(Request::new("GET", &other, "").send(server.address).status, 403);
}

#[test]
fn health_needs_no_key_and_names_version_and_runtimes() {
    let server = Server::start();
    let mut told = Transcript::new(&server);
    told.send("health", Request::new("GET", "/healthz", ""));
    told.check("health");
}

#[test]
fn what_could_only_be_ignored_is_refused() {
    let server = Server::start();
    server.deploy("f", "app.echo");
    for setting in [
        json!({ "EphemeralStorage": { "Size": 1024 } }),
        json!({ "TracingConfig": { "Mode": "Active" } }),
        json!({ "SnapStart": { "ApplyOn": "PublishedVersions" } }),
    ] {
        let path = format!("{FUNCTIONS}/f/configuration");
        let answer = server.ask(Request::new("PUT", &path, setting.to_string()));
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, 400, "{setting}: {said}");
        assert!(said.contains("not supported by this server"), "{setting}: {said}");
    }
}
