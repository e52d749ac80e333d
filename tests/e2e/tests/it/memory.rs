//! That the memory which is told is what the kernel has: `GET /report`, `/metrics`, `sock stats` and `sock tree` beside smaps_rollup.

use std::fs;

use serde_json::{Value, json};

use crate::crash::is_zygote;
use crate::grove::report;
use crate::server::{Process, Server, tests};

/// Private and proportional memory, bytes. proc_pid_smaps(5)
fn memory(processes: &[&Process]) -> [u64; 2] {
    let of = |process: &&Process| {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        };
        [field("Private_Clean:") + field("Private_Dirty:"), field("Pss:")]
    };
    processes.iter().map(of).fold([0, 0], |all, one| [all[0] + one[0], all[1] + one[1]])
}

fn sum(list: &Value, field: &str) -> u64 {
    list.as_array().unwrap().iter().map(|one| one[field].as_u64().unwrap()).sum()
}

/// What is told otherwise than it is. What a report has may be some seconds old.
fn differences(server: &Server) -> Vec<String> {
    let report = report(server);
    let all = server.processes();
    let is_python = |process: &&Process| process.status("Name").starts_with("python");
    let zygotes: Vec<&Process> = all.iter().filter(|process| is_zygote(process)).collect();
    let (instances, spares): (Vec<&Process>, Vec<&Process>) = all
        .iter()
        .filter(is_python)
        .filter(|process| !zygotes.contains(process))
        .partition(|process| process.inside("/var/task/main.py").exists());
    let firsts: Vec<&Process> = all
        .iter()
        .filter(|process| process.uid != 0 && !is_python(process) && process.namespace("pid").is_some())
        .filter(|process| process.status("NSpid").split_whitespace().last() == Some("1"))
        .collect();
    let (nodes, functions) = (&report["nodes"], &report["functions"]);
    let [of_instances, of_zygotes, of_spares, of_firsts] =
        [instances, zygotes, spares, firsts].map(|all| memory(&all));
    let metric = |of: &str| server.metric(&format!("sock_memory_bytes{{of=\"{of}\"}}"));
    let mut wrong = Vec::new();
    for (what, told, is) in [
        ("instances", sum(functions, "private_bytes"), of_instances[0]),
        ("instances not looked at, and 1", sum(functions, "unseen") + 1, 1),
        ("zygotes", sum(nodes, "private_bytes"), of_zygotes[0]),
        ("spares", sum(nodes, "spare_bytes"), of_spares[0]),
        ("first processes", report["init_bytes"].as_u64().unwrap(), of_firsts[0]),
        ("instances in the metrics", metric("idle-instances"), of_instances[0]),
        ("spares in the metrics", metric("spares"), of_spares[0]),
        ("first processes in the metrics", metric("first-processes"), of_firsts[0]),
        ("zygotes in the metrics", metric("zygotes"), sum(nodes, "billed_bytes")),
    ] {
        if is == 0 || told.abs_diff(is) > is / 10 + (100 << 10) {
            wrong.push(format!("{what}: {told} told, {is} seen"));
        }
    }
    for (what, told, is) in [
        ("instances", sum(functions, "proportional_bytes"), of_instances[1]),
        ("zygotes", sum(nodes, "proportional_bytes"), of_zygotes[1]),
    ] {
        // A share is larger when fewer processes have the pages, as when they were looked at.
        if is == 0 || told.abs_diff(is) > is / 3 {
            wrong.push(format!("shares of {what}: {told} told, {is} seen"));
        }
    }
    wrong
}

#[test]
fn memory_is_told_as_the_kernel_has_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    for name in ["one", "two"] {
        server.deploy(&tests("functions/echo"), name, &["--handler", "main.handler"]);
        assert_eq!(server.run(name, &json!(name)).body, json!(name));
    }
    server.wait_until(|| differences(&server), Vec::is_empty);
    let size = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let told = server.succeed(&["stats"]);
    let report = report(&server);
    let held = size(sum(&report["functions"], "private_bytes"));
    assert!(told.lines().any(|line| line.starts_with("idle") && line.contains(&held)), "{held} in\n{told}");
    let billed = size(report["nodes"][0]["billed_bytes"].as_u64().unwrap());
    let told = server.succeed(&["tree"]);
    assert!(told.contains(&billed), "{billed} in\n{told}");
    assert!(server.stop());
}
