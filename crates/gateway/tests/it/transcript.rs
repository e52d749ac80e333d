//! Snapshots of answers: what was asked, and status, headers and body of what came.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::http::{Answer, Request};
use crate::server::Server;

/// What differs from run to run, and from machine to machine.
const FILTERS: [(&str, &str); 11] = [
    ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[id]"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", "[time]"),
    (r"\d{8}T\d{6}Z", "[stamp]"),
    (r"127\.0\.0\.1:\d+", "[address]"),
    (r#""CodeSha256": "[A-Za-z0-9+/]{43}=""#, r#""CodeSha256": "[sha256]""#),
    (r#""CodeSize": \d+"#, r#""CodeSize": "[size]""#),
    (r"Credential=[^&]+", "Credential=[credential]"),
    (r"Signature=[0-9a-f]{64}", "Signature=[signature]"),
    (r"\b(x86_64|arm64)\b", "[architecture]"),
    (r#""version": "\d+\.\d+\.\d+""#, r#""version": "[version]""#),
    (r"x-sock-log-next: \d+-(\d+)", "x-sock-log-next: [inode]-$1"),
];
/// Nothing of the API, or not the same every time.
const LEFT_OUT: [&str; 3] = ["date", "content-length", "connection"];
/// As much of a body as is shown.
const SHOWN: usize = 4000;

/// A conversation with a server.
pub(crate) struct Transcript<'a> {
    server: &'a Server,
    text: String,
}

impl<'a> Transcript<'a> {
    pub(crate) fn new(server: &'a Server) -> Self {
        Self { server, text: String::new() }
    }

    /// One that somebody else has had.
    pub(crate) fn of(server: &'a Server, text: &str) -> Self {
        Self { server, text: text.into() }
    }

    /// Signs a request, sends it and writes down the answer under a title.
    pub(crate) fn ask(&mut self, title: &str, request: Request) -> Answer {
        self.send(title, self.server.signed(request))
    }

    /// The same without a signature.
    pub(crate) fn send(&mut self, title: &str, request: Request) -> Answer {
        let answer = request.send(self.server.address);
        let Request { method, target, .. } = &request;
        self.write(&format!("# {title}\n{method} {target}\n{}", shown(&answer)));
        answer
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push_str("\n\n");
    }

    /// Compares it with the snapshot of this name.
    pub(crate) fn check(self, name: &str) {
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        FILTERS.iter().for_each(|(pattern, replacement)| settings.add_filter(pattern, *replacement));
        settings.bind(|| insta::assert_snapshot!(name, self.text));
    }
}

fn shown(answer: &Answer) -> String {
    let mut text = format!("{}\n", answer.status);
    let mut headers: Vec<_> =
        answer.headers.iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str())).collect();
    headers.sort();
    for (name, value) in headers {
        if name == "x-amz-log-result" {
            let log = String::from_utf8(STANDARD.decode(value).unwrap()).unwrap();
            let log: Vec<String> =
                log.lines().map(|line| format!("  | {}\n", line.replace('\t', "→"))).collect();
            text.push_str(&format!("{name}: base64 of\n{}", log.concat()));
        } else {
            text.push_str(&format!("{name}: {value}\n"));
        }
    }
    let body = match serde_json::from_slice::<Value>(&answer.body) {
        Ok(json) => serde_json::to_string_pretty(&json).unwrap(),
        Err(_) => String::from_utf8_lossy(&answer.body).into_owned(),
    };
    match body.len() {
        0 => text.push_str("(no body)"),
        length if length > SHOWN => text.push_str(&format!("({length} bytes)")),
        _ => text.push_str(&body),
    }
    text
}
