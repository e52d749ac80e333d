//! Death of the server, whole or in part: functions stay, containers do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::server::{Process, Server, processes, still_running, tests};

/// Where cgroup2 is mounted.
pub(crate) fn mount() -> PathBuf {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(" - cgroup2 ")).unwrap();
    line.split(' ').nth(4).unwrap().into()
}

pub(crate) fn mounts(data: &Path) -> usize {
    let data = data.to_str().unwrap();
    let tables =
        processes().into_iter().filter_map(|p| fs::read_to_string(format!("/proc/{}/mountinfo", p.pid)).ok());
    tables.map(|table| table.lines().filter(|line| line.contains(data)).count()).sum()
}

/// A server with instances of functions of all profiles.
pub(crate) fn with_instances(data: &Path) -> Server {
    let server = Server::start_with(data, &["--allow-paper"]);
    for profile in ["strict", "paper"] {
        server.deploy(
            &tests("functions/echo"),
            profile,
            &["--handler", "main.handler", "--profile", profile],
        );
        assert_eq!(server.run(profile, &json!([profile])).body, json!([profile]));
    }
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
    let group = group(&server);
    server.kill_9();

    let server = Server::start(data.path());
    let left = still_running(&before);
    assert!(left.is_empty(), "processes are left: {left:?}");
    // One for each container at least.
    let leaks = server.metric("sock_leaks_found_at_start ");
    assert!(leaks >= 4, "the start has found {leaks} leaks");
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
    assert!(!mount().join(&group).exists(), "{group} is left");
    assert_eq!(mounts(data.path()), 0);
}

#[test]
fn a_stop_leaves_nothing() {
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let before = server.processes();
    assert!(server.stop());
    assert_eq!(still_running(&before), Vec::<&Process>::new());
    assert_eq!(mounts(data.path()), 0);
}

/// What a server has of the machine: after a death as much as before it, or something is left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Holdings {
    processes: usize,
    /// Of all mount namespaces that its processes are in.
    mounts: usize,
    /// Beneath its own, with processes and without.
    groups: usize,
    networks: usize,
    /// Open files of the supervisor, the gateway, the launcher and the builder.
    descriptors: Vec<usize>,
    /// Beneath its data directory.
    files: usize,
}

impl Holdings {
    pub(crate) fn of(server: &Server, data: &Path) -> Self {
        let processes = server.processes();
        let networks: BTreeSet<_> = processes.iter().filter_map(|process| process.namespace("net")).collect();
        let tables: BTreeMap<_, _> = processes
            .iter()
            .filter_map(|process| {
                let table = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid)).ok()?;
                Some((process.namespace("mnt")?, table.lines().count()))
            })
            .collect();
        let ours = |process: &&Process| {
            process.status("Name") == "sock" && process.status("NSpid") == process.pid.to_string()
        };
        let count = |process: &Process| {
            fs::read_dir(format!("/proc/{}/fd", process.pid)).map_or(0, std::iter::Iterator::count)
        };
        let mut descriptors: Vec<usize> = processes.iter().filter(ours).map(count).collect();
        descriptors.sort_unstable();
        Self {
            processes: processes.len(),
            mounts: tables.values().sum(),
            groups: groups(&mount().join(group(server))),
            networks: networks.len(),
            descriptors,
            files: files(data),
        }
    }

    /// Once it no longer changes: slots and spares are made ahead.
    pub(crate) fn settled(server: &Server, data: &Path) -> Self {
        let mut last = Vec::new();
        let settled = server.wait_until(
            || {
                last.push(Self::of(server, data));
                last[last.len().saturating_sub(10)..].iter().filter(|one| Some(*one) == last.last()).count()
            },
            |same| *same == 10,
        );
        assert_eq!(settled, 10);
        last.pop().unwrap()
    }
}

/// The parent of a server's cgroups, by its name.
pub(crate) fn group(server: &Server) -> String {
    let groups =
        server.processes().iter().map(Process::group).find(|group| group.contains("/sock-")).unwrap();
    groups.split('/').find(|part| part.starts_with("sock-")).unwrap().to_owned()
}

/// Groups of containers beneath a cgroup: those that have none beneath them.
pub(crate) fn groups(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| groups(&entry.path()).max(1)).sum()
}

/// Files and directories beneath a directory.
fn files(directory: &Path) -> usize {
    let entries: Vec<_> = fs::read_dir(directory).map(|all| all.flatten().collect()).unwrap_or_default();
    let inside = |entry: &fs::DirEntry| {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) { files(&entry.path()) } else { 0 }
    };
    entries.iter().map(|entry| 1 + inside(entry)).sum()
}

/// Kills the processes of a server that `wanted` picks; `noticed` waits for the server to know. Then every function
/// answers, and the server has what it had.
fn survives(wanted: impl Fn(&Server, &Process) -> bool, count: usize, noticed: impl Fn(&Server)) {
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let before = Holdings::settled(&server, data.path());
    let all = server.processes();
    let victims: Vec<&Process> = all.iter().filter(|process| wanted(&server, process)).collect();
    assert_eq!(victims.len(), count, "{victims:?} of {all:?}");
    // The youngest first, which an older one's death may be that of.
    victims.iter().rev().for_each(|victim| victim.kill());
    noticed(&server);
    server.wait_until(processes, |alive| victims.iter().all(|victim| !alive.contains(victim)));
    is_as_before(server, data.path(), &before);
}

/// Every function answers, the server has what it had, and nothing is left when it stops.
pub(crate) fn is_as_before(server: Server, data: &Path, before: &Holdings) {
    assert_eq!(server.run("echo", &json!([2])).body, json!([2]));
    for name in ["where", "strict", "paper"] {
        assert_eq!(server.run(name, &json!({})).status, 200, "{name}");
    }
    server.wait_until(|| Holdings::of(&server, data), |now| now == before);
    let group = group(&server);
    assert!(server.stop());
    assert!(!mount().join(&group).exists(), "{group} is left");
    assert_eq!(mounts(data), 0);
}

/// The listening socket stays with the supervisor: a request waits in it rather than fail.
pub(crate) fn both_start_again(server: &Server) {
    server.wait_for("starting both again");
}

#[test]
fn the_gateways_death_is_survived() {
    survives(|server, process| process.uid != 0 && process.is_child_of(server), 1, both_start_again);
}

#[test]
fn the_launchers_death_is_survived() {
    survives(|server, process| process.uid == 0 && process.is_child_of(server), 1, both_start_again);
}

/// A zygote's uid is the first of its span, all of which begin at multiples of 512; its PID 1 has it too, and the gateway has one.
pub(crate) fn is_zygote(process: &Process) -> bool {
    process.uid != 0 && process.uid.is_multiple_of(512) && process.status("Name") != "sock" && process.stays()
}

#[test]
fn a_zygotes_death_is_survived() {
    // The one without packages, and that of `where`, which imports more and was forked from it.
    survives(|_, process| is_zygote(process), 2, |server| server.wait_for("zygote ended"));
}

/// Also where nobody invokes anything.
#[test]
fn the_root_zygote_is_started_again() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let zygotes = || server.processes().into_iter().filter(is_zygote).collect::<Vec<_>>();
    let before = server.wait_until(zygotes, |zygotes| !zygotes.is_empty());
    before[0].kill();
    server.wait_until(zygotes, |now| now.iter().any(|zygote| !before.contains(zygote)));
    assert!(server.stop());
}

#[test]
fn a_server_that_has_served_is_started_without_end() {
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let gateway = || {
        let mut processes = server.processes().into_iter();
        processes.find(|process| process.uid != 0 && process.is_child_of(&server))
    };
    // Each before it serves: more of them than end a server that never did.
    let mut last = None;
    for _ in 0..8 {
        last = server.wait_until(gateway, |now| now.is_some() && *now != last);
        last.as_ref().unwrap().kill();
    }
    let again = || server.try_run("echo", &json!([2])).ok().map(|answer| answer.body);
    server.wait_until(again, |body| *body == Some(json!([2])));
    assert!(server.stop());
}

/// Whether it is the process that answered so.
fn is_instance(process: &Process, body: &serde_json::Value) -> bool {
    process.namespace("pid").is_some_and(|link| link.to_str() == body["pids"].as_str())
        && process.status("NSpid").split_whitespace().last() == Some(body["pid"].to_string().as_str())
}

#[test]
fn an_idle_instances_death_is_survived() {
    survives(|server, process| is_instance(process, &server.run("where", &json!({})).body), 1, |_| {});
}

#[test]
fn a_busy_instances_death_is_told_and_survived() {
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let before = Holdings::settled(&server, data.path());
    let body = server.run("where", &json!({})).body;
    let processes = server.processes();
    let victim = processes.iter().find(|process| is_instance(process, &body)).unwrap();
    let working = victim.inside("/tmp/working");
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.run("where", &json!({"sleep": 50})));
        server.wait_until(|| working.exists(), |exists| *exists);
        victim.kill();
        let answer = busy.join().unwrap();
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_eq!(answer.body["errorType"], "Runtime.ExitError", "{answer:?}");
    });
    assert_eq!(server.run("where", &json!({})).status, 200);
    server.wait_until(|| Holdings::of(&server, data.path()), |now| *now == before);
    assert!(server.stop());
}

#[test]
fn kill_9_under_load_again_and_again() {
    let data = tempfile::tempdir().unwrap();
    let mut server = with_instances(data.path());
    for _ in 0..3 {
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let server = &server;
            let names = ["echo", "where"].into_iter().cycle().take(64);
            let calls: Vec<_> =
                names.map(|name| scope.spawn(move || server.run(name, &json!({})).status)).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        server.kill_9();
        server = Server::start(data.path());
    }
    assert!(server.stop());
}
