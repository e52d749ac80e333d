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

fn is_about(told: u64, is: u64) -> bool {
    told.abs_diff(is) <= is / 10 + (300 << 10)
}

/// A share is larger when fewer processes have the pages, as when they were looked at.
fn is_about_a_share(told: u64, is: u64) -> bool {
    told.abs_diff(is) <= is / 3
}

fn sum(list: &Value, field: &str) -> u64 {
    list.as_array().unwrap().iter().map(|one| one[field].as_u64().unwrap()).sum()
}

#[test]
fn memory_is_told_as_the_kernel_has_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    for name in ["one", "two"] {
        server.deploy(&tests("functions/echo"), name, &["--handler", "main.handler"]);
        assert_eq!(server.run(name, &json!(name)).body, json!(name));
    }
    let settled = |report: &Value| {
        let spares = sum(&report["nodes"], "spares");
        report["counts"]["spares"] == spares && spares > 0 && report["counts"]["dying"] == 0
    };
    server.wait_until(|| report(&server), settled);
    // It is told for some seconds what was seen then.
    let report = server.wait_until(|| report(&server), |report| sum(&report["nodes"], "spare_bytes") > 0);
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
    assert_eq!((instances.len(), spares.len() as u64), (2, sum(&report["nodes"], "spares")));

    let [private, proportional] = memory(&instances);
    let functions = &report["functions"];
    assert_eq!(sum(functions, "unseen"), 0, "{report:#}");
    for (what, told, is) in [
        ("private memory of instances", sum(functions, "private_bytes"), private),
        ("proportional memory of instances", sum(functions, "proportional_bytes"), proportional),
        ("private memory of zygotes", sum(&report["nodes"], "private_bytes"), memory(&zygotes)[0]),
        ("proportional memory of zygotes", sum(&report["nodes"], "proportional_bytes"), memory(&zygotes)[1]),
        ("private memory of spares", sum(&report["nodes"], "spare_bytes"), memory(&spares)[0]),
        ("private memory of first processes", report["init_bytes"].as_u64().unwrap(), memory(&firsts)[0]),
    ] {
        let agrees = if what.starts_with("proportional") { is_about_a_share } else { is_about };
        assert!(is > 0 && agrees(told, is), "{what}: {told} told, {is} seen");
    }
    for (of, is) in [
        ("idle-instances", private),
        ("spares", memory(&spares)[0]),
        ("first-processes", memory(&firsts)[0]),
        ("zygotes", sum(&report["nodes"], "billed_bytes")),
    ] {
        let told = server.metric(&format!("sock_memory_bytes{{of=\"{of}\"}}"));
        assert!(is_about(told, is), "{of}: {told} in the metrics, {is} seen");
    }
    let size = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let told = server.succeed(&["stats"]);
    let held = size(sum(functions, "private_bytes"));
    assert!(told.lines().any(|line| line.starts_with("idle") && line.contains(&held)), "{held} in\n{told}");
    let billed = size(report["nodes"][0]["billed_bytes"].as_u64().unwrap());
    let told = server.succeed(&["tree"]);
    assert!(told.contains(&billed), "{billed} in\n{told}");
    assert!(server.stop());
}
