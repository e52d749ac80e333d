//! Limits that the kernel's controllers keep: what a function takes too much of costs nobody but itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::server::{Process, Server, binary, tests};

/// A server with a function that takes what it is told to, and a neighbour.
fn server(data: &Path, flags: &[&str]) -> Server {
    let server = Server::start(data);
    server.deploy(&tests("e2e/functions/greedy.py"), "greedy", &[&["--timeout", "60"], flags].concat());
    server.deploy(&tests("e2e/functions/where.py"), "neighbour", &["--timeout", "60"]);
    server
}

/// Takes more memory than it may, while its neighbour sleeps.
fn take_too_much(server: &Server) {
    assert_eq!(server.run("greedy", &json!({"hold": 64})).body, json!(64), "what it may have");
    let neighbour = server.run("neighbour", &json!({}));
    // Once no slot or spare is being made any more, whose makers come and go.
    let (mut last, mut same) = (server.processes(), 0);
    server.wait_until(
        || {
            let now = server.processes();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same
        },
        |same| *same == 10,
    );
    let before = last;
    std::thread::scope(|scope| {
        let asleep = scope.spawn(|| server.run("neighbour", &json!({"sleep": 2})));
        let killed = server.run("greedy", &json!({"hold": 1000}));
        assert_eq!(killed.status, 502, "{killed:?}");
        assert_eq!(killed.body["errorType"], "Runtime.OutOfMemory", "{killed:?}");
        let awake = asleep.join().unwrap();
        assert_eq!(awake.body["instance"], neighbour.body["instance"], "the neighbour was killed");
    });
    let after = server.processes();
    let gone: Vec<&Process> = before.iter().filter(|process| !after.contains(process)).collect();
    assert_eq!(gone.len(), 2, "a container's init and its handler, nobody else: {gone:?}");
    let again = server.run("greedy", &json!({"hold": 64}));
    assert_eq!((again.start == "warm", again.body), (false, json!(64)));
    let report = server.succeed(&["logs", "greedy"]);
    assert!(report.contains("Error Type: Runtime.OutOfMemory"), "{report}");
}

#[test]
fn memory_kills_only_who_took_it() {
    let data = tempfile::tempdir().unwrap();
    let server = server(data.path(), &["--memory", "128"]);
    take_too_much(&server);
    assert!(server.stop());
}

/// The disk that the machine has for this, swapped to until it is dropped.
struct Swap(PathBuf);

impl Swap {
    fn on() -> Self {
        let serial = |disk: &Path| fs::read_to_string(disk.join("serial")).unwrap_or_default();
        let mut disks = fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path());
        let disk = disks.find(|disk| serial(disk).trim() == "swap").expect("a disk called swap");
        let swap = Self(Path::new("/dev").join(disk.file_name().unwrap()));
        for program in ["mkswap", "swapon"] {
            let output = Command::new(program).arg(&swap.0).output().unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        }
        swap
    }

    /// Bytes in use. proc_swaps(5)
    fn used(&self) -> u64 {
        let table = fs::read_to_string("/proc/swaps").unwrap();
        let line = table.lines().find(|line| line.starts_with(self.0.to_str().unwrap())).unwrap();
        line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
    }
}

#[test]
fn swap_is_not_more_memory() {
    let data = tempfile::tempdir().unwrap();
    let swap = Swap::on();
    let server = server(data.path(), &["--memory", "128"]);
    take_too_much(&server);
    // The machine itself has memory to spare.
    assert_eq!(swap.used(), 0);
    assert!(server.stop());
}

#[test]
fn processes_are_counted() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let path = tests("e2e/functions/endings.py");
    server.deploy(&path, "endings", &["--timeout", "60", "--memory", "1024"]);
    let forks = server.run("endings", &json!({"how": "forks"}));
    // 512, of which the container's PID 1 and the handler's own process are two.
    assert_eq!(forks.body, json!(510), "{forks:?}");
    assert!(server.stop());
}

#[test]
fn processor_time_is_shared_out() {
    let data = tempfile::tempdir().unwrap();
    // One processor for less than 1,769 MB, as there; two for twice that.
    let server = server(data.path(), &["--memory", "128"]);
    server.deploy(&tests("e2e/functions/greedy.py"), "large", &["--timeout", "60", "--memory", "3538"]);
    let (one, two) = (server.run("greedy", &json!({"burn": 2})), server.run("large", &json!({"burn": 2})));
    let (one, two) = (one.body.as_f64().unwrap(), two.body.as_f64().unwrap());
    assert!((0.8..1.15).contains(&one), "a small function has {one:.2} processors");
    assert!(two > 1.5, "a large function has {two:.2} processors");
    assert!(server.stop());
}

#[test]
fn a_command_that_takes_too_much_is_killed_and_that_is_said() {
    let hold = "block = bytearray(1 << 30)\nfor place in range(0, 1 << 30, 4096): block[place] = 1";
    let output = Command::new(binary()).args(["run", "--", "/usr/bin/python3", "-c", hold]).output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{output:?}");
}
