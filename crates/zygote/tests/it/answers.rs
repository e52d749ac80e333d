//! What an invocation answers, case by case of Lambda's table.

use serde_json::{Value, json};
use sock_zygote::frames::{self, InvokeHeader, Kind};

use crate::instance::{Instance, once};

fn result(source: &str, event: &str) -> Value {
    let (kind, value) = Instance::of(source).call(event);
    assert_eq!(kind, Kind::Result, "{value}");
    value
}

fn error(source: &str) -> Value {
    let (kind, value) = once(source);
    assert_eq!(kind, Kind::Error, "{value}");
    value
}

/// Nothing was raised by the handler itself, so there is no stack.
fn refusal(source: &str, kind: &str, message: &str) {
    let expected = json!({"errorMessage": message, "errorType": kind, "requestId": "id-1", "stackTrace": []});
    assert_eq!(error(source), expected);
}

#[test]
fn a_result() {
    let echo = "def handler(event, context): return event";
    assert_eq!(result("def handler(event, context): pass", "{}"), Value::Null);
    for event in
        ["null", "0", "1.5", "\"text\"", "[1, [2]]", "true", "{\"a\": {\"b\": \"\u{fc}\u{1f600}\\u0000\"}}"]
    {
        assert_eq!(result(echo, event), serde_json::from_str::<Value>(event).unwrap());
    }
}

#[test]
fn a_handler_that_raises() {
    let source = "
def inner(value):
    raise ValueError('no ' + value)

def handler(event, context):
    return inner('way') + 1
";
    let expected = json!({
        "errorMessage": "no way",
        "errorType": "ValueError",
        "requestId": "id-1",
        "stackTrace": [
            "  File \"/var/task/app.py\", line 6, in handler\n    return inner('way') + 1\n",
            "  File \"/var/task/app.py\", line 3, in inner\n    raise ValueError('no ' + value)\n",
        ],
    });
    let mut instance = Instance::of(source);
    assert_eq!(instance.call("{}"), (Kind::Error, expected.clone()));
    let log = instance.log();
    assert!(
        log.starts_with("[ERROR] ValueError: no way\nTraceback (most recent call last):\n  File "),
        "{log}"
    );
    // And it is not the end of the instance.
    assert_eq!(instance.call("{}"), (Kind::Error, expected));
}

#[test]
fn an_exception_that_cannot_be_shown() {
    let source = "
class Odd(Exception):
    def __str__(self):
        raise KeyError

def handler(event, context):
    raise Odd
";
    let value = error(source);
    assert_eq!(value["errorType"], "Odd");
    assert_eq!(value["errorMessage"], "<exception str() failed>");
    assert_eq!(error("def handler(event, context): raise Exception('\\udc80')")["errorMessage"], "?");
}

#[test]
fn too_large() {
    let message = "Response payload size exceeded maximum allowed payload size (6291556 bytes).";
    let large = "def handler(event, context): return 'x' * (6291556 - 1)";
    refusal(large, "Function.ResponseSizeTooLarge", message);
    let raised = "def handler(event, context): raise Exception('x' * (7 << 20))";
    refusal(raised, "Function.ResponseSizeTooLarge", message);
    let unshown = "
class Large(dict):
    def items(self): raise ValueError('x' * 7_000_000)
def handler(event, context): return Large(a=1)";
    refusal(unshown, "Function.ResponseSizeTooLarge", message);
    let fits = result("def handler(event, context): return 'x' * (6291556 - 2)", "{}");
    assert_eq!(fits.as_str().unwrap().len(), 6_291_554);
}

#[test]
fn not_serialisable() {
    let marshal = |returned: &str, message: &str| {
        let source = format!("async def coroutine(): pass\ndef handler(event, context): return {returned}");
        refusal(&source, "Runtime.MarshalError", &format!("Unable to marshal response: {message}"));
    };
    marshal("{1}", "Object of type set is not JSON serializable");
    marshal("b''", "Object of type bytes is not JSON serializable");
    marshal("context", "Object of type Context is not JSON serializable");
    marshal("coroutine()", "Object of type coroutine is not JSON serializable");
    let circle = "def handler(event, context):\n    event['x'] = event\n    return event";
    refusal(circle, "Runtime.MarshalError", "Unable to marshal response: Circular reference detected");
    // As in Lambda, which awaits nothing.
    let message = "Unable to marshal response: Object of type coroutine is not JSON serializable";
    refusal("async def handler(event, context): return 1", "Runtime.MarshalError", message);
}

#[test]
fn decimals_are_numbers() {
    let source = "
from decimal import Decimal

def handler(event, context):
    return [Decimal('3'), Decimal('0.25'), Decimal('1e20') + Decimal('0.5')]
";
    assert_eq!(result(source, "{}"), json!([3, 0.25, 1e20]));
}

#[test]
fn half_a_surrogate_pair_is_escaped() {
    let mut instance = Instance::of("def handler(event, context): return ['\\udc80', '\u{fc}']");
    instance.invoke(b"{}");
    let (kind, payload) = instance.receive();
    let text = frames::answer(&instance.nonce, &payload).unwrap();
    assert_eq!((kind, text), (Kind::Result, &br#"["\udc80", "\u00fc"]"#[..]));
}

#[test]
fn an_event_that_is_no_json() {
    let mut instance = Instance::of("def handler(event, context): return event");
    let (kind, value) = instance.call("{");
    assert_eq!((kind, &value["errorType"]), (Kind::Error, &json!("Runtime.UnmarshalError")));
    assert!(value["errorMessage"].as_str().unwrap().starts_with("Unable to unmarshal input: "), "{value}");
    instance.invoke(b"\"\xff\"");
    assert_eq!(instance.answer().1["errorType"], "Runtime.UnmarshalError");
}

#[test]
fn an_event_of_6_mb() {
    let event = format!("{{\"data\": \"{}\"}}", "y".repeat(6 << 20));
    assert_eq!(result("def handler(event, context): return len(event['data'])", &event), json!(6 << 20));
}

#[test]
fn every_kind_of_handler() {
    let check = |source: &str| assert_eq!(result(source, "[1]"), json!([1]), "{source}");
    check("def handler(event, context): return event if context.function_name else 0");
    check("def handler(event): return event");
    check("def handler(event, context=None): return event if context else 0");
    check("def handler(*args): return args[0] if args[1] else 0");
    check("def handler(event, **more): return event");
    check("handler = lambda event, _: event");
    check("class A:\n    def __call__(self, event, context): return event\nhandler = A()");
    check("class A:\n    def __call__(self, event): return event\nhandler = A()");
    check("class A:\n    def f(self, event, context): return event\nhandler = A().f");
    check("class A:\n    def f(self, event): return event\nhandler = A().f");
    check("class A:\n    @staticmethod\n    def f(event): return event\nhandler = A.f");
    check("class A:\n    @classmethod\n    def f(cls, event, context): return event\nhandler = A.f");
    check("class handler(list):\n    def __init__(self, event, context): super().__init__(event)");
    check("import functools\n@functools.partial\ndef handler(event, context): return event");
    check(
        "import functools\n@functools.lru_cache\ndef f(): return 1\ndef handler(event, context): return [f()]",
    );
}

#[test]
fn the_context() {
    let source = "
def handler(event, c):
    left, client = c.get_remaining_time_in_millis(), c.client_context
    c.log('a line\\n')
    return {
        'is': [c.aws_request_id, c.function_name, c.function_version, c.invoked_function_arn, c.memory_limit_in_mb,
               c.log_group_name, c.log_stream_name, c.identity.cognito_identity_id, c.identity.cognito_identity_pool_id],
        'left': left,
        'client': client and [client.custom, client.env, client.client and vars(client.client)],
    }
";
    let mut instance = Instance::of(source);
    let (_, value) = instance.call("{}");
    let expected = json!(["id-1", "fn", "7", "arn:fn", "256", "/aws/lambda/fn", "2024/[7]x", null, null]);
    assert_eq!(value["is"], expected);
    let left = value["left"].as_u64().unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    assert_eq!(value["client"], Value::Null);
    assert_eq!(instance.log(), "a line\n");

    let mut client = |client_context: &str| {
        let client_context = Some(client_context.to_owned());
        let header = InvokeHeader {
            request_id: "2".into(),
            deadline_ms: 1,
            arn: "fn".into(),
            client_context,
            early: false,
        };
        instance.invoke_with(&header, b"{}");
        let (kind, value) = instance.answer();
        assert_eq!((kind, &value["left"]), (Kind::Result, &json!(0)));
        value["client"].clone()
    };
    assert_eq!(client(r#"{"custom": {"a": 1}}"#), json!([{"a": 1}, null, null]));
    let of_app = json!({"installation_id": "i", "app_title": null, "app_version_name": null,
        "app_version_code": null, "app_package_name": null});
    let given = r#"{"env": {"b": 2}, "client": {"installation_id": "i", "__class__": 1}}"#;
    assert_eq!(client(given), json!([null, {"b": 2}, of_app]));
    assert_eq!(client(r#"{"client": [1]}"#), json!([null, null, null]));
    assert_eq!(client("[]"), Value::Null);
    assert_eq!(client("{"), Value::Null);
}

#[test]
fn globals_outlive_an_invocation() {
    let mut instance =
        Instance::of("n = 0\ndef handler(event, context):\n    global n\n    n += 1\n    return n");
    for n in 1..=3 {
        assert_eq!(instance.call("{}"), (Kind::Result, json!(n)));
    }
    assert_eq!(instance.end(), (Some(0), String::new()));
}
