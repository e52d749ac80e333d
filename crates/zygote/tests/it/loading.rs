//! Handlers that cannot be loaded, and how one that can is found.

use serde_json::{Value, json};
use sock_zygote::frames::Kind;

use crate::instance::Instance;

fn failure(files: &[(&str, &str)], handler: &str) -> Value {
    let mut instance = Instance::start(files);
    let (kind, value) = instance.init(handler, &[]);
    assert_eq!((kind, &value["requestId"]), (Kind::InitError, &json!("")), "{value}");
    // There is nothing that it could be asked for.
    assert!(instance.try_receive().is_none());
    assert_eq!(instance.wait().0, Some(0));
    value
}

fn check(files: &[(&str, &str)], handler: &str, kind: &str, message: &str) {
    let expected = json!({"errorMessage": message, "errorType": kind, "requestId": "", "stackTrace": []});
    assert_eq!(failure(files, handler), expected);
}

#[test]
fn an_import_that_raises() {
    let expected = json!({
        "errorMessage": "'A'",
        "errorType": "KeyError",
        "requestId": "",
        "stackTrace": [
            "  File \"/var/task/app.py\", line 1, in <module>\n    import other\n",
            "  File \"/var/task/other.py\", line 3, in <module>\n    {}['A']\n",
        ],
    });
    assert_eq!(failure(&[("app.py", "import other"), ("other.py", "\n\n{}['A']")], "app.handler"), expected);
}

#[test]
fn a_bad_name() {
    for name in ["handler", "", ".handler"] {
        let message = format!("Bad handler '{name}': expected module.function");
        check(&[], name, "Runtime.MalformedHandlerName", &message);
    }
}

#[test]
fn nothing_there() {
    let kind = "Runtime.ImportModuleError";
    check(&[], "app.handler", kind, "Unable to import module 'app': No module named 'app'");
    check(
        &[("app.py", "import nowhere")],
        "app.f",
        kind,
        "Unable to import module 'app': No module named 'nowhere'",
    );
    let kind = "Runtime.HandlerNotFound";
    check(&[("app.py", "")], "app.handler", kind, "Handler 'handler' missing on module 'app'");
    check(
        &[("app.py", "handler = 1")],
        "app.handler",
        kind,
        "Handler 'handler' not a function of module 'app'",
    );
}

#[test]
fn a_syntax_error() {
    let value = failure(&[("app.py", "x = 1\ndef f(:\n")], "app.handler");
    assert_eq!(value["errorType"], "Runtime.UserCodeSyntaxError");
    assert_eq!(value["errorMessage"], "Syntax error in module 'app': invalid syntax (app.py, line 2)");
    assert_eq!(value["stackTrace"], json!(["  File \"/var/task/app.py\" Line 2\n    def f(:\n"]));
}

#[test]
fn handlers_in_directories_and_packages() {
    let source = "def handler(event, context): return __name__";
    let files = [("src/app.py", source), ("pkg/__init__.py", ""), ("pkg/sub/app.py", source)];
    for (handler, module) in [("src/app.handler", "src.app"), ("pkg.sub.app.handler", "pkg.sub.app")] {
        let mut instance = Instance::start(&files);
        assert_eq!(instance.init(handler, &[]).0, Kind::Ready);
        assert_eq!(instance.call("{}"), (Kind::Result, json!(module)));
    }
}

#[test]
fn the_functions_files_come_first_and_packages_last() {
    let mut instance =
        Instance::start(&[("app.py", "import sys, os\ndef handler(e, c): return [sys.path, os.getcwd()]")]);
    assert_eq!(instance.init("app.handler", &[]).0, Kind::Ready);
    let (_, value) = instance.call("{}");
    let path = value[0].as_array().unwrap();
    assert_eq!((path.first().unwrap(), path.last().unwrap()), (&json!("/var/task"), &json!("/var/packages")));
    assert!(!path.iter().any(|entry| entry.as_str().unwrap().contains("runtime")), "{path:?}");
    assert_eq!(value[1], "/var/task");
}
