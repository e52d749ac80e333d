//! Invocations, answer by answer, in both ways to ask for one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::http::Request;
use crate::server::{FUNCTIONS, Server};
use crate::transcript::Transcript;

fn invoke(name: &str, event: &str) -> Request {
    Request::new("POST", &format!("{FUNCTIONS}/{name}/invocations"), event)
}

/// Every end of an invocation that the runner knows.
const ENDS: [&str; 13] = [
    "echo",
    "nothing",
    "error",
    "init_error",
    "timeout",
    "exit",
    "crash",
    "memory",
    "large",
    "reserved",
    "full",
    "platform",
    "panic",
];

#[test]
fn each_end_of_an_invocation_has_its_answer() {
    let server = Server::start();
    let mut told = Transcript::new(&server);
    for end in ENDS {
        server.deploy(end, &format!("app.{end}"));
        let answer = told.ask(end, invoke(end, r#"{"n": 1}"#));
        // Who panicked cannot say where the instance came from.
        let expected = if end == "panic" { "none" } else { "zygote" };
        assert_eq!(answer.header("x-sock-start"), Some(expected), "{end}");
        assert!(answer.header("server-timing").is_some(), "{end}");
    }
    told.check("invoke");
}

#[test]
fn run_tells_the_end_by_its_status() {
    let server = Server::start();
    let mut told = Transcript::new(&server);
    for end in ENDS {
        server.deploy(end, &format!("app.{end}"));
        told.ask(end, Request::new("POST", &format!("/run/{end}"), r#"{"n": 1}"#));
    }
    told.ask("no function", Request::new("POST", "/run/nobody", ""));
    told.ask("an event that is not JSON", Request::new("POST", "/run/echo", "{"));
    told.check("run");
}

#[test]
fn the_kinds_of_invocation() {
    let server = Server::start();
    server.deploy("echo", "app.echo");
    server.deploy("error", "app.error");
    server.deploy("timeout", "app.timeout");
    let mut told = Transcript::new(&server);
    told.ask("no event is an empty object", invoke("echo", ""));
    told.ask("with its log", invoke("echo", "[]").header("x-amz-log-type", "Tail"));
    told.ask("an error with its log", invoke("error", "1").header("x-amz-log-type", "Tail"));
    told.ask("a timeout with its log", invoke("timeout", "1").header("x-amz-log-type", "Tail"));
    told.ask(
        "by ARN and qualifier",
        invoke("arn:aws:lambda:us-east-1:000000000000:function:echo:$LATEST", "1"),
    );
    told.ask(
        "by partial ARN, with a qualifier in the query",
        invoke("000000000000%3Afunction%3Aecho", "1").qualified("$LATEST"),
    );
    let before = server.fake.notes().len();
    told.ask("dry run", invoke("echo", "{}").header("x-amz-invocation-type", "DryRun"));
    assert_eq!(server.fake.notes().len(), before, "a dry run runs nothing");
    server.deploy("later", "app.echo");
    told.ask("event", invoke("later", "{}").header("x-amz-invocation-type", "Event"));
    server.fake.until_noted("done later");
    for end in ["exit", "memory", "large", "platform", "full", "marshal"] {
        server.deploy(end, &format!("app.{end}"));
        told.ask(&format!("{end}, with its log"), invoke(end, "1").header("x-amz-log-type", "Tail"));
    }
    told.check("kinds");
}

#[test]
fn the_largest_result_goes_through_and_one_byte_more_does_not() {
    let server = Server::start();
    server.deploy("largest", "app.largest");
    let answer = server.invoke("largest", "{}");
    assert_eq!((answer.status, answer.body.len()), (200, 6_291_556));
    assert_eq!(answer.header("x-amz-function-error"), None);
    for end in ["large", "large_error"] {
        server.deploy(end, &format!("app.{end}"));
        let answer = server.invoke(end, "{}");
        assert_eq!(answer.header("x-amz-function-error"), Some("Unhandled"));
        assert_eq!(answer.json()["errorType"], "Function.ResponseSizeTooLarge", "{end}");
    }
}

#[test]
fn a_client_context_arrives_as_the_object_that_was_sent() {
    let server = Server::start();
    server.deploy("seen", "app.seen");
    let context = STANDARD.encode(r#"{"client": {"installation_id": "7"}, "custom": {"a": "b"}}"#);
    let answer = server.ask(invoke("seen", "{}").header("x-amz-client-context", &context));
    assert_eq!(answer.json()["client_context"]["custom"]["a"], "b");
    for wrong in ["{}", &STANDARD.encode("[]"), &STANDARD.encode("{")] {
        let answer = server.ask(invoke("seen", "{}").header("x-amz-client-context", wrong));
        assert_eq!(answer.header("x-amzn-errortype"), Some("InvalidRequestContentException"), "{wrong}");
    }
}

#[test]
fn the_log_has_the_lines_of_every_invocation_and_can_be_followed() {
    let server = Server::start();
    server.deploy("echo", "app.echo");
    server.deploy("full", "app.full");
    let mut told = Transcript::new(&server);
    let log = |target: &str| Request::new("GET", target, "");
    let none = told.ask("nothing yet", log("/logs/echo"));
    server.invoke("echo", "1");
    told.ask("from its end", log("/logs/echo"));
    let next = none.header("x-sock-log-next").unwrap();
    let first = told.ask("from the beginning on", log(&format!("/logs/echo?after={next}")));
    server.invoke("echo", "2");
    let next = first.header("x-sock-log-next").unwrap();
    let second = server.ask(log(&format!("/logs/echo?after={next}")));
    assert_eq!(String::from_utf8_lossy(&second.body).matches("START").count(), 1);
    told.ask("a place that is none", log("/logs/echo?after=there"));
    server.invoke("full", "1");
    told.ask("an invocation that found no room has run nothing", log("/logs/full"));
    told.check("logs");
}

impl Request {
    fn qualified(mut self, qualifier: &str) -> Self {
        self.target.push_str(&format!("?Qualifier={qualifier}"));
        self
    }
}
