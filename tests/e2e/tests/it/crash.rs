//! Death of the server, whole or in part: functions stay, containers do not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::server::{Process, Server, processes, tests};

/// Cgroups of servers, whose names begin with `sock-`, that hold none of the living.
fn groups() -> BTreeSet<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(" - cgroup2 ")).unwrap();
    let mount = line.split(' ').nth(4).unwrap();
    fs::read_dir(mount)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("sock-"))
        .map(|entry| entry.path())
        .collect()
}

/// The cgroup that process `pid` is in, as a path in the hierarchy.
fn group_of(process: &Process) -> String {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

fn mounts(data: &Path) -> usize {
    let data = data.to_str().unwrap();
    let tables =
        processes().into_iter().filter_map(|p| fs::read_to_string(format!("/proc/{}/mountinfo", p.pid)).ok());
    tables.map(|table| table.lines().filter(|line| line.contains(data)).count()).sum()
}

/// A server with instances of two functions, one of them busy.
fn with_instances(data: &Path) -> Server {
    let server = Server::start(data);
    server.deploy(&tests("e2e/functions/where.py"), "where", &["--timeout", "60"]);
    server.deploy(&tests("functions/echo"), "echo", &["--handler", "main.handler"]);
    assert_eq!(server.run("echo", &json!([1])).body, json!([1]));
    assert_eq!(server.run("where", &json!({})).status, 200);
    server
}

#[test]
fn kill_9_and_a_new_start_leave_nothing_and_lose_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let before = server.processes();
    assert!(before.len() >= 8, "supervisor, gateway, launcher, builder, zygote, instances: {before:?}");
    let own: Vec<String> = before.iter().map(group_of).filter(|group| group.contains("/sock-")).collect();
    let group = own.first().unwrap().split('/').find(|part| part.starts_with("sock-")).unwrap().to_owned();
    server.kill_9();

    let server = Server::start(data.path());
    let alive = processes();
    let left: Vec<&Process> = before.iter().filter(|process| alive.contains(process)).collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
    // A namespace lives as long as a process that is in it or holds it, or a mount of it.
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mountinfo.contains(" - nsfs "), "a namespace is mounted:\n{mountinfo}");
    for (name, event, answer) in [("echo", json!({"a": 1}), json!({"a": 1})), ("where", json!({}), json!(1))]
    {
        let again = server.run(name, &event);
        assert_eq!(again.status, 200, "{name}: {again:?}");
        assert!(again.body == answer || again.body["calls"] == answer, "{name}: {again:?}");
    }
    let listed = server.succeed(&["list"]);
    assert!(listed.contains("echo") && listed.contains("where"), "{listed}");
    assert!(server.stop());
    let left: Vec<PathBuf> = groups().into_iter().filter(|path| path.ends_with(&group)).collect();
    assert!(left.is_empty(), "cgroups are left: {left:?}");
    assert_eq!(mounts(data.path()), 0);
}

#[test]
fn a_stop_leaves_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let before = server.processes();
    assert!(server.stop());
    let alive = processes();
    assert!(before.iter().all(|process| !alive.contains(process)));
    assert_eq!(mounts(data.path()), 0);
}

/// Kills the one process of the server that `wanted` picks, and waits until the server answers as before.
fn kill_one(wanted: impl Fn(&Server, &Process) -> bool) {
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let all = server.processes();
    let victims: Vec<&Process> = all.iter().filter(|process| wanted(&server, process)).collect();
    let [victim] = victims[..] else { panic!("{victims:?} of {all:?}") };
    // A grandchild of ours that nothing else waits for before it is dead: the number is its own.
    let killed = std::process::Command::new("/bin/kill").args(["-KILL", &victim.pid.to_string()]).status();
    assert!(killed.unwrap().success());
    server.wait_for("starting both again");
    // The listening socket stays with the supervisor: a request waits in it rather than fail.
    assert_eq!(server.run("echo", &json!([2])).body, json!([2]));
    let new = server.processes();
    assert!(all.iter().filter(|p| p.pid != server.child.id()).all(|process| !new.contains(process)));
    assert!(server.stop());
}

#[test]
fn the_gateways_death_is_survived() {
    kill_one(|server, process| process.uid != 0 && process.is_child_of(server));
}

#[test]
fn the_launchers_death_is_survived() {
    kill_one(|server, process| process.uid == 0 && process.is_child_of(server));
}
