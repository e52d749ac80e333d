//! What functions take and write. How their invocations end otherwise, see `handlers`.

use serde_json::{Value, json};

use crate::server::{Answer, Server, tests};

fn server(data: &tempfile::TempDir, flags: &[&str]) -> Server {
    let server = Server::start(data.path());
    server.deploy(&tests("e2e/functions/endings.py"), "endings", flags);
    server
}

fn end(server: &Server, how: &str) -> Answer {
    server.run("endings", &json!({"how": how}))
}

#[test]
fn memory_and_processes_are_limited() {
    let data = tempfile::tempdir().unwrap();
    // Enough for as many processes as a function may have, where the kernel counts their memory.
    let server = server(&data, &["--timeout", "30", "--memory", "512"]);
    let memory = end(&server, "memory");
    let kind = memory.body["errorType"].as_str().unwrap_or_default();
    assert!(
        kind == "MemoryError" || kind == "Runtime.ExitError" || kind == "Runtime.OutOfMemory",
        "{memory:?}"
    );
    let forks = end(&server, "forks");
    let made = forks.body.as_u64().unwrap_or_else(|| panic!("{forks:?}"));
    assert!((1..1024).contains(&made), "{made} processes");
}

#[test]
fn what_a_function_writes_is_its_log() {
    let data = tempfile::tempdir().unwrap();
    let server = server(&data, &[]);
    assert_eq!(end(&server, "output").status, 200);
    let log = server.succeed(&["logs", "endings"]);
    for line in
        ["about to output", "to stdout", "to stderr", "from a child", "START RequestId: ", "END RequestId: "]
    {
        assert_eq!(log.matches(line).count(), 1, "{line:?} in:\n{log}");
    }
    assert!(log.contains("REPORT RequestId: "), "{log}");
    let shown: Value = serde_json::from_str(&server.succeed(&["show", "endings", "--json"])).unwrap();
    assert_eq!(shown["Configuration"]["State"], "Active", "{shown}");
}
