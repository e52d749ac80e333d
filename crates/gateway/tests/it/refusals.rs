//! What the server does not do, and how it says so.

use serde_json::{Value, json};

use crate::http::Request;
use crate::server::{FUNCTIONS, Server, bundle, creation};
use crate::transcript::Transcript;

fn create(body: &Value) -> Request {
    Request::new("POST", FUNCTIONS, body.to_string())
}

#[test]
fn functions_that_cannot_be() {
    let server = Server::start();
    server.deploy("taken", "app.echo");
    let mut told = Transcript::new(&server);
    told.ask("the name is taken", create(&creation("taken", "app.echo")));
    let with = |member: &str, value: Value| {
        let mut body = creation("new", "app.echo");
        body[member] = value;
        create(&body)
    };
    let zip = |files: &[(&str, &str)]| json!({ "ZipFile": bundle(files) });
    for (title, request) in [
        ("a name that is none", with("FunctionName", json!("../etc"))),
        ("a handler without a dot", with("Handler", json!("handler"))),
        ("a handler with a space", with("Handler", json!("app. echo"))),
        ("no handler", with("Handler", json!(null))),
        ("a runtime that is not there", with("Runtime", json!("nodejs22.x"))),
        ("a role that is none", with("Role", json!("me"))),
        ("no role", with("Role", json!(null))),
        ("too much memory", with("MemorySize", json!(10_241))),
        ("too little time", with("Timeout", json!(0))),
        ("too much time", with("Timeout", json!(901))),
        ("a timeout that is no number", with("Timeout", json!("soon"))),
        (
            "a reserved variable",
            with("Environment", json!({ "Variables": { "AWS_REGION": "x", "A_B": "" } })),
        ),
        ("a variable with a bad name", with("Environment", json!({ "Variables": { "a-b": "" } }))),
        ("too many variables", with("Environment", json!({ "Variables": { "AB": "x".repeat(4095) } }))),
        ("layers", with("Layers", json!(["arn:aws:lambda:us-east-1:000000000000:layer:x:1"]))),
        ("an image", with("PackageType", json!("Image"))),
        ("another architecture", with("Architectures", json!(["riscv"]))),
        ("publish", with("Publish", json!(true))),
        ("no code", with("Code", json!({}))),
        ("code from elsewhere", with("Code", json!({ "S3Bucket": "b", "S3Key": "k" }))),
        ("code that is not base64", with("Code", json!({ "ZipFile": "!" }))),
        ("code that is not a zip", with("Code", json!({ "ZipFile": "aGVsbG8=" }))),
        ("a zip that reaches out", with("Code", zip(&[("../x", "")]))),
        ("a zip with nothing in it", with("Code", zip(&[]))),
    ] {
        told.ask(title, request);
    }
    told.ask("a body that is not JSON", Request::new("POST", FUNCTIONS, "{"));
    told.ask("a body without members", Request::new("POST", FUNCTIONS, "{}"));
    told.check("creation_refused");
    assert_eq!(server.get(&format!("{FUNCTIONS}/new")).status, 404);
}

#[test]
fn updates_that_cannot_be() {
    let server = Server::start();
    server.deploy("echo", "app.echo");
    let before = server.settled("echo");
    let mut told = Transcript::new(&server);
    let configuration = |name: &str, body: Value| {
        Request::new("PUT", &format!("{FUNCTIONS}/{name}/configuration"), body.to_string())
    };
    let code =
        |name: &str, body: Value| Request::new("PUT", &format!("{FUNCTIONS}/{name}/code"), body.to_string());
    told.ask("the configuration of nobody", configuration("nobody", json!({ "Timeout": 4 })));
    told.ask("the code of nobody", code("nobody", json!({ "ZipFile": bundle(&[("app.py", "")]) })));
    let stale = json!({ "Timeout": 4, "RevisionId": "0" });
    told.ask("the configuration of another revision", configuration("echo", stale));
    let stale = json!({ "ZipFile": bundle(&[("app.py", "")]), "RevisionId": "0" });
    told.ask("the code of another revision", code("echo", stale));
    told.ask("a version of nobody", configuration("echo:7", json!({ "Timeout": 4 })));
    told.ask("publish", code("echo", json!({ "ZipFile": bundle(&[("app.py", "")]), "Publish": true })));
    told.ask("no code", code("echo", json!({})));
    told.ask(
        "a bad value beside a good one",
        configuration("echo", json!({ "Timeout": 4, "MemorySize": 1 })),
    );
    told.ask("no JSON", Request::new("PUT", &format!("{FUNCTIONS}/echo/configuration"), "nonsense"));
    let long = "x".repeat(1 << 20);
    told.ask("too large", configuration("echo", json!({ "Description": long })));
    told.check("updates_refused");
    assert_eq!(server.settled("echo"), before, "a refused update changes nothing");

    let hold = json!({ "Environment": { "Variables": { "HOLD_PREPARE": "1" } } });
    assert_eq!(server.ask(configuration("echo", hold)).status, 200);
    let mut told = Transcript::new(&server);
    told.ask("an update while one is running", configuration("echo", json!({ "Timeout": 4 })));
    told.check("update_in_progress");
    assert_eq!(server.invoke("echo", "1").status, 200, "what was live stays live");
    server.fake.prepares.add_permits(1);
    server.settled("echo");
}

#[test]
fn invocations_that_cannot_be() {
    let server = Server::start();
    server.deploy("echo", "app.echo");
    let mut told = Transcript::new(&server);
    let target = |name: &str| format!("{FUNCTIONS}/{name}/invocations");
    let invoke = |name: &str, event: &str| Request::new("POST", &target(name), event);
    told.ask("nobody", invoke("nobody", "{}"));
    told.ask("an alias of nobody", invoke("echo:live", "{}"));
    told.ask(
        "an alias in the query",
        Request::new("POST", &format!("{}?Qualifier=live", target("echo")), "{}"),
    );
    told.ask(
        "two qualifiers",
        Request::new("POST", &format!("{}?Qualifier=live", target("echo:$LATEST")), "{}"),
    );
    told.ask("no qualifier", Request::new("POST", &format!("{}?Qualifier=a.b", target("echo")), "{}"));
    told.ask("another region", invoke("arn:aws:lambda:eu-west-1:000000000000:function:echo", "{}"));
    told.ask("another account", invoke("111111111111:function:echo", "{}"));
    told.ask("a name that is none", invoke("a%20b", "{}"));
    told.ask("an event that is not JSON", invoke("echo", "{'a': 1}"));
    told.ask("an event that is not UTF-8", Request::new("POST", &target("echo"), b"\"\xff\"".to_vec()));
    told.ask("an event that is too large", invoke("echo", &"1".repeat(6_291_457)));
    let event = |size: usize| invoke("echo", &"1".repeat(size)).header("x-amz-invocation-type", "Event");
    told.ask("an asynchronous event that is too large", event((1 << 20) + 1));
    told.ask("one that is larger still", event(6_291_457));
    told.ask("a kind that is none", invoke("echo", "{}").header("x-amz-invocation-type", "Later"));
    told.ask("a log that is none", invoke("echo", "{}").header("x-amz-log-type", "Head"));
    told.ask("an operation that is none", Request::new("GET", "/2015-03-31/event-source-mappings", ""));
    told.ask("a method that is none", Request::new("PATCH", FUNCTIONS, ""));
    told.check("invocation_refused");
    assert!(!server.fake.notes().iter().any(|note| note.starts_with("invoke")), "nothing was run");
}

#[test]
fn no_secret_of_a_refused_body_is_repeated() {
    let server = Server::start();
    let mut body = creation("new", "app.echo");
    body["Environment"] = json!({ "Variables": "hush" });
    let answer = server.ask(create(&body));
    assert_eq!(answer.status, 400);
    assert!(!String::from_utf8_lossy(&answer.body).contains("hush"));
}
