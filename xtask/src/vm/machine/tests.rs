//! The command of the machine, and each way that a run of it ends, provoked: five machines are booted.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report, in its helpers too")]

use std::path::PathBuf;

use super::*;
use crate::vm::build;
use crate::vm::lock::Lock;
use crate::vm::payload::{self, Manifest};
use crate::vm::tools::Tools;
use crate::vm::tree::Tree;
use crate::vm::{KERNEL, accelerator};

#[test]
fn what_qemu_is_told() {
    let root = tempfile::tempdir().unwrap();
    let built = Built {
        directory: "/built".into(),
        tools: Tools::of(&Tree::default(), root.path()).unwrap(),
        lock: Lock::default(),
        epoch: 0,
    };
    let machine = Machine {
        built: &built,
        kernel: "6.99",
        payload: Path::new("/pay,load"),
        accelerator: Accelerator::Tcg,
        network: Network::Restricted,
        screen: Screen::Output,
        timeout: SILENCE,
        silence: SILENCE,
        directory: Path::new("/run"),
    };
    let told = machine.arguments([7, 8, 9]).join(" ").replace(&root.path().display().to_string(), "/tools");
    insta::assert_snapshot!(told.replace(" -", "\n-"));
}

/// Boots a machine that runs a shell script.
fn run(script: &str, timeout: u64, silence: u64) -> (Outcome, tempfile::TempDir) {
    let built = build::build_for_tests().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let payload: PathBuf = directory.path().join("payload.erofs");
    let manifest = Manifest {
        workspace: "/mnt".into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        directory: "/".into(),
        ..Manifest::default()
    };
    payload::make(&built, &manifest, &Tree::default(), &payload).unwrap();
    let machine = Machine {
        built: &built,
        kernel: KERNEL,
        payload: &payload,
        accelerator: accelerator::choose(&built, KERNEL).unwrap(),
        network: Network::Restricted,
        screen: Screen::Silent,
        timeout: Duration::from_secs(timeout),
        silence: Duration::from_secs(silence),
        directory: directory.path(),
    };
    (machine.run().unwrap(), directory)
}

#[test]
fn a_failure_is_the_programs_exit_code() {
    let (outcome, directory) = run("echo before it failed; exit 7", 120, 30);
    assert_eq!(outcome, Outcome::Exited(7));
    assert_eq!(fs::read_to_string(directory.path().join("output.log")).unwrap(), "before it failed\n");
}

#[test]
fn a_panic_is_told_with_what_the_console_said() {
    let (outcome, _directory) = run("echo c > /proc/sysrq-trigger", 120, 30);
    let Outcome::Panicked(said) = outcome else { panic!("{outcome:?}") };
    assert!(said.contains("Kernel panic - not syncing: sysrq triggered crash"), "{said}");
}

#[test]
fn a_lock_up_is_noticed_by_its_silence() {
    // Both processors, at a priority that nothing else gets past; and neither of the two shares of time that a kernel
    // keeps for the others.
    let script = "mount -t debugfs none /sys/kernel/debug
        for share in /sys/kernel/debug/sched/fair_server/*/runtime; do echo 0 > $share; done
        echo -1 > /proc/sys/kernel/sched_rt_runtime_us
        taskset 1 chrt --fifo 99 sh -c 'while :; do :; done' & taskset 2 chrt --fifo 99 sh -c 'while :; do :; done'";
    let outcome = run(script, 120, 10).0;
    let Outcome::Hung(said) = outcome else { panic!("{outcome:?}") };
    assert!(said.contains("task:init "), "it tells what it was at: {said}");
}

#[test]
fn an_end_without_a_word_is_no_success() {
    let (outcome, _directory) = run("echo o > /proc/sysrq-trigger; sleep 60", 120, 30);
    assert!(matches!(outcome, Outcome::NoResult(_)), "{outcome:?}");
}

#[test]
fn a_run_that_takes_too_long_is_ended() {
    let Outcome::TimedOut(said) = run("sleep 600", 15, 30).0 else { panic!("no time-out") };
    assert!(said.contains("task:init ") && said.contains("wait4"), "it tells what it was at: {said}");
}

#[test]
fn a_long_trace_does_not_hide_what_the_panic_was() {
    let trace = "[ 6.3]  a_function+0x5d/0x80\n".repeat(100);
    let console = format!("[ 1.0] booting\n[ 6.2] Kernel panic - not syncing: why\n{trace}");
    let Outcome::Panicked(said) = judge(&console, "", Some(0)) else { panic!("no panic") };
    assert!(said.starts_with("[ 6.2] Kernel panic - not syncing: why\n[ 6.3]"), "{said}");
    assert_eq!(said.lines().count(), PANIC_LINES);
}

#[test]
fn a_console_without_a_panic_says_nothing_of_one() {
    let Outcome::NoResult(said) = judge("booting\nready", "qemu: no such disk", Some(1)) else {
        panic!("a panic")
    };
    assert_eq!(said, "QEMU: Some(1) qemu: no such disk\nconsole: booting\nready");
}

#[test]
fn each_silence_is_told_apart() {
    let ms = Duration::from_millis;
    let patience = Patience { boot: ms(50), timeout: ms(10_000), silence: ms(50) };
    let heard = |lines: &[&str], patience: Patience, leaves: bool| {
        let (sender, events) = channel();
        lines.iter().for_each(|line| sender.send((*line).to_owned()).unwrap());
        let sender = (!leaves).then_some(sender);
        let end = listen(&events, Instant::now(), patience, |_| ());
        drop(sender);
        end
    };
    assert_eq!(heard(&[], patience, false), End::NeverUp);
    assert_eq!(heard(&["ready 1.0", "alive"], patience, false), End::Silent);
    let short = Patience { timeout: ms(10), ..patience };
    assert_eq!(heard(&["ready 1.0", "alive"], short, false), End::TimedOut);
    assert_eq!(heard(&["ready 1.0", "exit 3"], patience, true), End::Exited(3));
    assert_eq!(heard(&["ready 1.0"], patience, true), End::Gone);
}
