//! kill -9 of whatever process of a server, in any order, at random moments, under load: the rest starts again what is
//! its own, answers what it was asked and nothing else, and in the end there is nothing too much.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::crash::{
    Holdings, both_start_again, group, groups, is_as_before, is_zygote, mount, with_instances,
};
use crate::server::{Process, Server};

/// Emulated processors start a server in seconds instead of half a second.
const KILLS: usize = if cfg!(feature = "machine") { 25 } else { 200 };
/// Kills that may overlap, before the server gets time to answer again. Two more than the starts in a row after which a
/// server that never served is given up.
const BURST: usize = 7;
const CLIENTS: usize = 4;
/// For an answer after a burst, at worst.
const WAIT: Duration = Duration::from_secs(if cfg!(feature = "machine") { 60 } else { 10 });

/// xorshift64: the moments and the victims, again the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What a process of a server is. The server itself, whose death is the end of all the others, has a test of its own.
fn kind(server: &Server, process: &Process) -> Option<&'static str> {
    if process.pid == server.child.id() {
        return None;
    }
    if process.is_child_of(server) {
        return Some(if process.uid == 0 { "launcher" } else { "gateway" });
    }
    let name = process.status("Name");
    let inside = process.status("NSpid").split_whitespace().count() > 1;
    match (name.as_str(), inside) {
        ("sock", false) => Some("builder"),
        ("sock", true) => Some("init"),
        _ if is_zygote(process) => Some("zygote"),
        _ => Some("instance"),
    }
}

fn gateway(server: &Server) -> Process {
    let mut processes = server.processes().into_iter();
    processes.find(|process| kind(server, process) == Some("gateway")).unwrap()
}

/// Cgroups that belong to no container.
fn groups_too_many(server: &Server) -> i64 {
    let containers: u64 =
        ["sock_containers{", "sock_instances{"].map(|name| server.metric(name)).iter().sum();
    groups(&mount().join(group(server))) as i64 - containers as i64
}

/// Asks until a right answer comes; how long that took.
fn answers_again(server: &Server) -> Duration {
    let began = Instant::now();
    loop {
        let answer = server.try_run("echo", &json!(["again"]));
        if answer.is_ok_and(|answer| answer.status == 200 && answer.body == json!(["again"])) {
            return began.elapsed();
        }
        assert!(began.elapsed() < WAIT, "no right answer for {WAIT:?}");
    }
}

/// Asks for as long as it shall. Any answer but the right one is an error that says so, or none.
fn ask(server: &Server, client: usize, stop: &AtomicBool, right: &AtomicUsize) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let event = json!([client, number]);
        let Ok(answer) = server.try_run("echo", &event) else { continue };
        if answer.status == 200 {
            assert_eq!(answer.body, event, "somebody else's answer");
            right.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!([500, 502, 503].contains(&answer.status), "{answer:?}");
        }
    }
}

/// Has events accepted for as long as it shall; gives their ids.
fn send_events(server: &Server, stop: &AtomicBool) -> Vec<String> {
    let mut accepted = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent = server.sock(&["invoke", "where", "--event", "--json"]);
        // A connection that breaks says nothing of whether it was accepted.
        if let Ok(answer) = serde_json::from_slice::<Value>(&sent.stdout)
            && answer["status"] == 202
        {
            accepted.push(answer["requestId"].as_str().unwrap().to_owned());
        }
    }
    accepted
}

#[test]
fn kill_9_of_anything_at_any_moment() {
    let seed = u64::from(std::process::id()) << 20 | 0x50c4;
    println!("seed {seed}");
    let mut random = Random(seed);
    let data = tempfile::tempdir().unwrap();
    let server = with_instances(data.path());
    let before = Holdings::settled(&server, data.path());
    let (stop, right) = (AtomicBool::new(false), AtomicUsize::new(0));
    let killed = Mutex::new(BTreeMap::<&str, usize>::new());
    let mut waits = Vec::new();
    let accepted = std::thread::scope(|scope| {
        let (server, stop, right) = (&server, &stop, &right);
        let events = scope.spawn(move || send_events(server, stop));
        for client in 0..CLIENTS {
            scope.spawn(move || ask(server, client, stop, right));
        }
        // Whatever fails here, the clients have to be told.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 1..=KILLS {
                let moment = Duration::from_micros(random.below(60_000) as u64);
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the moment is to be any: there is no event to wait for"
                )]
                std::thread::sleep(moment);
                let mut kinds: BTreeMap<&str, Vec<Process>> = BTreeMap::new();
                for process in server.processes() {
                    if let Some(kind) = kind(server, &process) {
                        kinds.entry(kind).or_default().push(process);
                    }
                }
                if let Some((kind, processes)) = kinds.iter().nth(random.below(kinds.len().max(1))) {
                    processes[random.below(processes.len())].try_kill();
                    *killed.lock().unwrap().entry(kind).or_default() += 1;
                }
                if number % BURST == 0 {
                    waits.push(answers_again(server));
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        events.join().unwrap()
    });
    waits.sort();
    println!(
        "{:?}; {right:?} right answers; back after {:?}, at worst {:?}",
        killed.lock().unwrap(),
        waits[waits.len() / 2],
        waits.last()
    );
    assert!(killed.lock().unwrap().len() >= 5, "{killed:?}");
    if !cfg!(feature = "machine") {
        // A death is noticed at once. Starting again takes some tenths of a second, and a pause where starts were killed too.
        assert!(waits[waits.len() / 2] < Duration::from_secs(2), "{waits:?}");
    }
    // Whatever was accepted has run, at least once.
    server.wait_until(|| server.metric("sock_events_waiting"), |waiting| *waiting == 0);
    server.succeed(&["list"]);
    let log = std::fs::read_to_string(data.path().join("logs/where.log")).unwrap();
    let lost = accepted.iter().filter(|id| !log.contains(&format!("END RequestId: {id}\n"))).count();
    println!("{} events, {lost} without a line", accepted.len());
    // A gateway that is killed takes along the lines that it had not written yet, of one or another that has run.
    assert!(accepted.len() > 10 && lost <= accepted.len() / 20, "{lost} of {} are lost", accepted.len());
    // As many cgroups as the launcher has containers.
    server.wait_until(|| groups_too_many(&server), |count| *count == 0);
    // And as much as a server has that nobody did anything to.
    gateway(&server).kill();
    both_start_again(&server);
    is_as_before(server, data.path(), &before);
}
