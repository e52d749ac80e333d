//! What the command line says when something is wrong: one line with what, why, and what to do.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report, in its helpers too")]

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `sock` in `directory` without a server, and shows how it ended.
fn sock(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sock"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        // Nobody listens on the port of the discard service.
        .env("SOCK_ENDPOINT", "http://127.0.0.1:9")
        .env("AWS_ACCESS_KEY_ID", "SOCKTEST00000001")
        .env("AWS_SECRET_ACCESS_KEY", "a-secret-for-tests-only")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let shown = directory.canonicalize().unwrap();
    let text = format!("$ sock {}\n{out}{err}", arguments.join(" ")).replace(shown.to_str().unwrap(), "DIR");
    format!("{}\nexit status {}\n", text.trim_end(), output.status.code().unwrap())
}

#[test]
fn errors_without_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::create_dir(at.join("empty")).unwrap();
    std::fs::write(at.join("notes.txt"), "").unwrap();
    std::fs::write(at.join("lib.py"), "x = 1\n").unwrap();
    std::fs::write(at.join("f.py"), "def handler(event):\n    return event\n").unwrap();
    let all = [
        &["list"][..],
        &["deploy", "missing.py"],
        &["deploy", "empty"],
        &["deploy", "notes.txt"],
        &["deploy", "lib.py"],
        &["deploy", "f.py"],
        &["deploy", "f.py", "--env", "nonsense"],
        &["deploy", "f.py", "--requirements", "missing.txt"],
        &["invoke", "f", "--data", "{"],
        &["invoke", "f", "--data", "@missing.json"],
        &["list", "--endpoint", "nonsense"],
        &["serve", "--no-auth", "--listen", "0.0.0.0:7625", "--data-dir", "data"],
        &["serve", "--listen", "7625"],
        &["serve", "--python", "/missing", "--data-dir", "data"],
        &["serve", "--python", "/etc/passwd", "--data-dir", "data"],
        &["run"],
        &["run", "--memory", "1", "--", "true"],
        &["run", "--", "missing"],
    ];
    let shown: Vec<String> = all.iter().map(|arguments| sock(at, arguments)).collect();
    insta::assert_snapshot!(shown.join("\n"));
}
