//! Handlers that cannot be loaded. Repaired, they work.

use std::fs;

use serde_json::{Value, json};

use super::{broke, exited};
use crate::server::Server;

fn failed(kind: &str, message: &str, stack: &[&str]) -> Value {
    json!({"errorType": kind, "errorMessage": message, "requestId": "", "stackTrace": stack})
}

/// Sends a frame of this kind while the module is imported.
fn frame(kind: char) -> String {
    format!("import os\nos.write(3, b'{kind}' + bytes(4))\ndef handler(event, context): return event\n")
}

#[test]
fn a_module_that_cannot_be_loaded_says_why_and_can_be_repaired() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start_with(data.path(), &["--no-auth"]);
    let file = work.path().join("app.py");
    let cases = [
        (
            "x = 1\ndef handler(:\n".to_owned(),
            failed(
                "Runtime.UserCodeSyntaxError",
                "Syntax error in module 'app': invalid syntax (app.py, line 2)",
                &["  File \"/var/task/app.py\" Line 2\n    def handler(:\n"],
            ),
        ),
        (
            "import nowhere\ndef handler(event, context): pass\n".to_owned(),
            failed(
                "Runtime.ImportModuleError",
                "Unable to import module 'app': No module named 'nowhere'",
                &[],
            ),
        ),
        (
            "\ndef load():\n    return {}['key']\n\nload()\n".to_owned(),
            failed(
                "KeyError",
                "'key'",
                &[
                    "  File \"/var/task/app.py\", line 5, in <module>\n    load()\n",
                    "  File \"/var/task/app.py\", line 3, in load\n    return {}['key']\n",
                ],
            ),
        ),
        (
            "def other(event, context): pass\n".to_owned(),
            failed("Runtime.HandlerNotFound", "Handler 'handler' missing on module 'app'", &[]),
        ),
        ("import sys\nsys.exit(4)\n".to_owned(), exited("exit status 4")),
        ("exit()\n".to_owned(), exited("")),
        ("import ctypes\nctypes.string_at(0)\n".to_owned(), exited("signal: segmentation fault")),
        (frame('?'), broke("a frame of unknown kind 0x3f")),
        (frame('F'), broke("the process sent Facts when another frame was due")),
        // Its own word that it is ready comes when an answer is due.
        (frame('R'), broke("the process sent Ready when another frame was due")),
    ];
    for (source, expected) in cases {
        fs::write(&file, &source).unwrap();
        server.deploy(&file, "app", &["--handler", "app.handler", "--timeout", "60"]);
        // An attempt that failed is not remembered.
        for _ in 0..2 {
            let invoked = server.invoke("app", &[], b"1");
            assert_eq!(invoked.answer(), (expected.clone(), true), "{source}");
            assert_ne!(invoked.headers["x-sock-start"], "warm", "{source}");
        }
        fs::write(&file, "def handler(event, context): return event\n").unwrap();
        server.deploy(&file, "app", &["--handler", "app.handler", "--timeout", "60"]);
        assert_eq!(server.invoke("app", &[], b"[7]").answer(), (json!([7]), false), "after {source}");
    }
    assert!(server.stop());
}
