//! Whatever a handler does, its caller gets the answer that Lambda gives, what it was is told apart, the server goes on, and the
//! next good request to the same function is answered rightly, by the same instance or by another.
//!
//! The cases are functions of `functions/hostile.py`. With memory that a controller limits, and for the exact number of processes, see
//! `limits`.

mod ends;
mod leftovers;
mod loading;
mod output;
mod socket;
mod toomuch;

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Invoked, Process, Server, tests};

const FUNCTION: &str = "hostile";

/// A server with the hostile function, which one test talks to.
struct Bench {
    server: Server,
    data: TempDir,
    /// Each request asks for another value, so that no answer passes for another's.
    value: Cell<u64>,
}

/// The instance that answered a good request.
struct Instance {
    /// Its own name for itself.
    name: String,
    /// Of its container.
    group: String,
    start: String,
}

/// What becomes of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It answers the next request as well.
    Stays,
    /// It is ended, and no process is left of it.
    Ends,
    /// The same, which the server finds out by itself after it has answered.
    EndsSoon,
}

impl Bench {
    fn new(flags: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = Server::start_with(data.path(), &["--no-auth"]);
        server.deploy(&tests("e2e/functions/hostile.py"), FUNCTION, flags);
        Self { server, data, value: Cell::new(0) }
    }

    fn invoke(&self, how: &str) -> Invoked {
        self.server.invoke(FUNCTION, &[], event(how).as_bytes())
    }

    /// A request that has to be answered, and that it is, with what it asked for.
    fn good(&self) -> Instance {
        self.value.set(self.value.get() + 1);
        let event = json!({"how": "good", "value": self.value.get()});
        let invoked = self.server.invoke(FUNCTION, &[], event.to_string().as_bytes());
        assert_eq!(invoked.status, 200, "{invoked:?}");
        assert_eq!(invoked.headers.get("x-amz-function-error"), None, "{}", invoked.text());
        let body: Value = serde_json::from_slice(&invoked.body).unwrap();
        assert_eq!(body["value"], event["value"], "another's answer: {body}");
        assert_eq!(body["request"], invoked.headers["x-amzn-requestid"], "another's answer: {body}");
        let pids = PathBuf::from(body["pids"].as_str().unwrap());
        let mut processes = self.server.processes().into_iter();
        let process = processes.find(|process| process.namespace("pid").as_ref() == Some(&pids)).unwrap();
        let (name, start) = (body["instance"].as_str().unwrap(), &invoked.headers["x-sock-start"]);
        Instance { name: name.to_owned(), group: process.group(), start: start.clone() }
    }

    /// Has an instance do it, and looks at the answer and at what comes after it. In `expected` ID stands for the request's id.
    fn check(&self, how: &str, expected: &Value, then: Then) {
        let instance = self.good();
        let (answer, failed) = self.invoke(how).answer();
        assert_eq!(&answer, expected, "{how}");
        assert_eq!(failed, answer.get("errorType").is_some(), "{how}");
        self.after(how, &instance, then);
    }

    fn after(&self, how: &str, instance: &Instance, then: Then) {
        if then == Then::EndsSoon {
            self.wait_for_end(instance);
        }
        let next = self.good();
        let stays = next.name == instance.name && next.start == "warm";
        assert_eq!(stays, then == Then::Stays, "{how}: {}", next.start);
        if !stays {
            self.wait_for_end(instance);
        }
    }

    /// Until none of its processes is left, whatever they are.
    fn wait_for_end(&self, instance: &Instance) {
        self.server.wait_until(|| self.processes_of(instance), Vec::is_empty);
    }

    fn processes_of(&self, instance: &Instance) -> Vec<Process> {
        let processes = self.server.processes().into_iter();
        processes.filter(|process| process.group() == instance.group).collect()
    }

    /// The function's log, as it is on the disk.
    fn log(&self) -> Vec<u8> {
        // Whoever asks for it sees what was written before.
        self.server.succeed(&["list"]);
        let logs = self.data.path().join("logs");
        fs::read(logs.join(format!("{FUNCTION}.log"))).unwrap()
    }
}

impl Invoked {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, with ID for the request's id, and whether it is marked as the function's error.
    fn answer(&self) -> (Value, bool) {
        assert_eq!(self.status, 200, "{}", self.text());
        let error = self.headers.get("x-amz-function-error");
        assert!(error.is_none_or(|error| error == "Unhandled"), "{error:?}");
        let text = self.text().replace(&self.headers["x-amzn-requestid"], "ID");
        (serde_json::from_str(&text).unwrap(), error.is_some())
    }
}

fn event(how: &str) -> String {
    json!({"how": how}).to_string()
}

/// The error of a process that ended: how it did.
fn exited(how: &str) -> Value {
    let how = if how.is_empty() { "without providing a reason".into() } else { format!("with error: {how}") };
    json!({"errorType": "Runtime.ExitError", "errorMessage": format!("RequestId: ID Error: Runtime exited {how}")})
}

/// The error of a process that did not keep to the protocol.
fn broke(what: &str) -> Value {
    exited(&format!("the process broke the runtime's protocol: {what}"))
}

/// The error of an exception that the function raised: in which of its functions, at which of their lines.
fn raised(kind: &str, message: &str, stack: &[(&str, &str)]) -> Value {
    let source = fs::read_to_string(tests("e2e/functions/hostile.py")).unwrap();
    let frame = |(function, line): (&str, &str)| {
        let mut lines = source.lines().enumerate();
        lines.find(|(_, text)| text.starts_with(&format!("def {function}("))).unwrap();
        let (number, _) = lines.find(|(_, text)| text.trim() == line).unwrap();
        format!("  File \"/var/task/hostile.py\", line {}, in {function}\n    {line}\n", number + 1)
    };
    let handler = ("handler", "return globals()[event[\"how\"]](event, context)");
    let stack: Vec<String> = [handler].into_iter().chain(stack.iter().copied()).map(frame).collect();
    json!({"errorType": kind, "errorMessage": message, "requestId": "ID", "stackTrace": stack})
}
