//! Start, end, and what is left.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sock_isolation::process::Child;
use sock_isolation::{Container, ContainerSpec, End, Exit, Limits, Profile};

use crate::Test;
use crate::shop::{Shop, pipe, program, spec};

pub(crate) const TESTS: &[Test] = &[
    ("lifecycle::exit_codes_and_signals_are_told_apart", exits),
    ("lifecycle::time_memory_and_a_kill_are_told_apart", ends),
    ("lifecycle::a_missing_program_is_named", missing_program),
    ("lifecycle::a_container_that_fights_back_is_destroyed", fights_back),
    ("lifecycle::a_paused_container_stands_still", paused),
    ("lifecycle::what_it_uses_is_told", stats),
    ("lifecycle::several_at_once_and_one_that_was_dropped", several),
    ("lifecycle::more_at_once_than_their_socket_holds", more_than_fit),
    ("lifecycle::a_container_runs_one_program", one_program),
    ("lifecycle::what_does_not_go_is_named", stuck),
    ("lifecycle::it_dies_with_who_made_it", orphaned),
    ("lifecycle::a_second_host_sweeps_what_a_crash_left", sweep),
    ("lifecycle::a_paper_container_that_fails_leaves_no_mount", paper_fails),
    ("lifecycle::a_process_with_threads_is_refused", threads),
];

fn exits() -> Result<(), Failed> {
    let shop = Shop::open()?;
    assert_eq!(shop.run(&["/bin/sh", "-c", "echo hi; exit 7"])?, (End::Exited(Exit::Code(7)), "hi\n".into()));
    assert_eq!(shop.run(&["/bin/sh", "-c", "kill -SEGV $$"])?.0, End::Exited(Exit::Signal(11)));
    shop.close()
}

fn ends() -> Result<(), Failed> {
    let limits = Limits { memory: 64 << 20, ..spec().limits };
    let shop = Shop::with(ContainerSpec { limits, ..spec() })?;
    let null: OwnedFd = File::open("/dev/null")?.into();
    let start = |argv: &[&str]| -> Result<Container, Failed> {
        let mut container = shop.workshop.create()?;
        container.start(&program(argv), &[null.as_fd(), null.as_fd(), null.as_fd()])?;
        Ok(container)
    };
    // Shared memory, which no limit of a single process counts.
    let takes =
        "import mmap\nm = mmap.mmap(-1, 256 << 20)\nfor page in range(0, 256 << 20, 4096): m[page] = 1";
    let mut greedy = start(&["/usr/bin/python3", "-I", "-S", "-c", takes])?;
    assert_eq!(greedy.wait()?, End::OutOfMemory);
    greedy.destroy()?;
    let mut patient = start(&["/bin/sleep", "60"])?;
    assert_eq!(patient.wait_for(Duration::from_millis(60))?, None);
    patient.kill()?;
    assert_eq!(patient.wait_for(Duration::MAX)?, Some(End::Killed));
    patient.destroy()?;
    assert_eq!(shop.run(&["/bin/sh", "-c", "kill -KILL $$"])?.0, End::Exited(Exit::Signal(9)));
    shop.close()
}

fn missing_program() -> Result<(), Failed> {
    let shop = Shop::open()?;
    let error = shop.run(&["/usr/bin/no-such-program"]).expect_err("it cannot start");
    let message = error.message().unwrap_or_default().to_owned();
    assert_eq!(message, "failed to start /usr/bin/no-such-program: No such file or directory (execve)");
    // And the workshop goes on.
    assert_eq!(shop.run(&["/bin/true"])?.0, End::Exited(Exit::Code(0)));
    shop.close()
}

fn fights_back() -> Result<(), Failed> {
    let shop = Shop::open()?;
    let (read, write) = pipe()?;
    let null: OwnedFd = File::open("/dev/null")?.into();
    let code = "import os, signal\n\
        for s in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(s, signal.SIG_IGN)\n\
        os.setsid() if os.fork() == 0 else None\n\
        try:\n    while True: os.fork()\nexcept OSError: pass\n\
        os.write(1, b'x')\nwhile True: signal.pause()\n";
    let mut container = shop.workshop.create()?;
    let hostile = program(&["/usr/bin/python3", "-I", "-S", "-c", code]);
    container.start(&hostile, &[null.as_fd(), write.as_fd(), null.as_fd()])?;
    // One process at least has hit the limit.
    File::from(read).read_exact(&mut [0])?;
    container.destroy()?;
    shop.close()
}

fn paused() -> Result<(), Failed> {
    let shop = Shop::open()?;
    let (their_input, our_output) = pipe()?;
    let (our_input, their_output) = pipe()?;
    let fds = [their_input.as_fd(), their_output.as_fd(), their_output.as_fd()];
    let mut container = shop.workshop.create()?;
    container.start(&program(&["/bin/cat"]), &fds)?;
    let (mut our_output, mut our_input) = (File::from(our_output), File::from(our_input));
    our_output.write_all(b"a")?;
    our_input.read_exact(&mut [0])?;
    container.pause()?;
    assert!(container.stats()?.frozen);
    our_output.write_all(b"b")?;
    let mut wanted = [nix::poll::PollFd::new(our_input.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut wanted, 100u8)?, 0, "a paused process answered");
    container.resume()?;
    assert!(!container.stats()?.frozen);
    our_input.read_exact(&mut [0])?;
    container.destroy()?;
    shop.close()
}

fn stats() -> Result<(), Failed> {
    let shop = Shop::open()?;
    let (read, write) = pipe()?;
    let null: OwnedFd = File::open("/dev/null")?.into();
    let code = "import os, time\nwhile time.process_time() < 0.05: pass\nos.fork()\nos.write(1, b'x')\ntime.sleep(60)";
    let mut container = shop.workshop.create()?;
    let argv = ["/usr/bin/python3", "-I", "-S", "-c", code];
    container.start(&program(&argv), &[null.as_fd(), write.as_fd(), null.as_fd()])?;
    File::from(read).read_exact(&mut [0; 2])?;
    let stats = container.stats()?;
    assert!(stats.cpu_micros >= 50_000, "{stats:?}");
    assert_eq!(stats.processes, 3, "PID 1, the program and its child: {stats:?}");
    container.destroy()?;
    shop.close()
}

fn several() -> Result<(), Failed> {
    let shop = Shop::open()?;
    shop.workshop.keep_ready(2);
    let (read, write) = pipe()?;
    let null: OwnedFd = File::open("/dev/null")?.into();
    let fds = [null.as_fd(), write.as_fd(), null.as_fd()];
    let mut all = Vec::new();
    for number in 0..5 {
        let mut container = shop.workshop.create()?;
        container.start(&program(&["/bin/sh", "-c", &format!("echo {number}; exit {number}")]), &fds)?;
        all.push(container);
        shop.workshop.tend()?;
    }
    drop(all.remove(0));
    for (number, mut container) in (1..).zip(all) {
        assert_eq!(container.wait()?, End::Exited(Exit::Code(number)));
        container.destroy()?;
    }
    drop(write);
    let mut said = String::new();
    File::from(read).read_to_string(&mut said)?;
    let mut lines: Vec<&str> = said.lines().filter(|line| *line != "0").collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1", "2", "3", "4"]);
    // Nothing is told of the dropped one; what is left are those that are ready.
    shop.workshop.keep_ready(0);
    let groups = || -> Result<usize, Failed> {
        Ok(std::fs::read_dir(&shop.group)?.flatten().filter(|e| e.path().is_dir()).count())
    };
    let begin = std::time::Instant::now();
    while groups()? != shop.workshop.tend()? {
        assert!(begin.elapsed().as_secs() < 10, "{} groups are left", groups()?);
    }
    shop.close()
}

/// Twice as many messages as a socket holds: neither side may wait for room at the other's while that does.
fn more_than_fit() -> Result<(), Failed> {
    const MANY: usize = 700;
    // It would never come back.
    nix::unistd::alarm::set(180);
    sock_isolation::process::raise_file_limit()?;
    let shop = Shop::open()?;
    shop.workshop.keep_ready(MANY);
    while shop.workshop.tend()? < MANY {
        nix::poll::poll(&mut [], 5u8)?;
    }
    nix::unistd::alarm::cancel();
    shop.close()
}

fn one_program() -> Result<(), Failed> {
    let shop = Shop::open()?;
    let mut container = shop.workshop.create()?;
    container.start(&program(&["/bin/true"]), &[])?;
    let error = container.start(&program(&["/bin/true"]), &[]).expect_err("it has one");
    assert_eq!(error.to_string(), "the container was given a program before: make another one");
    container.destroy()?;
    shop.close()
}

/// Nobody reaps it: to whoever waits for its end that is what a process is that the kernel keeps.
#[expect(clippy::disallowed_methods, reason = "the builder is this process's child, which has not ended")]
fn stuck() -> Result<(), Failed> {
    let shop = Shop::open()?;
    let null: OwnedFd = File::open("/dev/null")?.into();
    let mut container = shop.workshop.create()?;
    container.start(&program(&["/bin/sleep", "60"]), &[null.as_fd(), null.as_fd(), null.as_fd()])?;
    let children = fs::read_to_string("/proc/thread-self/children")?;
    let builder =
        Pid::from_raw(children.split_whitespace().next_back().ok_or("there is no builder")?.parse()?);
    kill(builder, Signal::SIGSTOP)?;
    let begin = Instant::now();
    let error = container.destroy().expect_err("it is not gone").to_string();
    assert!(
        error.starts_with("the container was killed 10 s ago and is not gone; its processes: "),
        "{error}"
    );
    assert!(begin.elapsed() >= Duration::from_secs(10), "{:?}", begin.elapsed());
    kill(builder, Signal::SIGCONT)?;
    let groups =
        || fs::read_dir(&shop.group).map(|all| all.flatten().filter(|one| one.path().is_dir()).count());
    let begin = Instant::now();
    while groups()? > 0 {
        assert!(begin.elapsed() < Duration::from_secs(10), "it is not taken away");
        shop.workshop.tend()?;
        nix::poll::poll(&mut [], 5u8)?;
    }
    shop.close()
}

/// Whoever is killed of those that made it, and before anybody starts anew.
fn orphaned() -> Result<(), Failed> {
    for profile in [Profile::Lean, Profile::Strict, Profile::Paper] {
        orphaned_by(profile, |maker| Ok(maker.id()))?;
        orphaned_by(profile, |maker| {
            let id = maker.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
            Ok(children.trim().parse()?)
        })?;
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "nobody has reaped it: its parent is this process, or waits for nothing"
)]
fn orphaned_by(profile: Profile, killed: fn(&Child) -> Result<i32, Failed>) -> Result<(), Failed> {
    let (read, write) = pipe()?;
    let work = tempfile::tempdir()?;
    let theirs = work.path().to_owned();
    let maker = Child::fork(move || {
        let works = || -> Result<(), Failed> {
            let null: OwnedFd = File::open("/dev/null")?.into();
            let shop = Shop::at(tempfile::tempdir_in(&theirs)?, ContainerSpec { profile, ..spec() })?;
            let mut container = shop.workshop.create()?;
            container.start(&program(&["/bin/sleep", "600"]), &[null.as_fd(), null.as_fd(), null.as_fd()])?;
            File::from(write).write_all(b"x")?;
            std::thread::park();
            Ok(())
        };
        i32::from(works().inspect_err(|error| eprintln!("{error:?}")).is_err())
    })?;
    File::from(read).read_exact(&mut [0])?;
    let name = format!("sock-test-{}", maker.id());
    let place = sock_isolation::cgroup::find()?;
    let group = place.directory.join(&name);
    let processes = || {
        let groups = fs::read_dir(&group).into_iter().flatten().flatten();
        groups
            .filter_map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).ok())
            .collect::<String>()
    };
    assert_eq!(processes().lines().count(), 2, "its PID 1 and its program");
    kill(Pid::from_raw(killed(&maker)?), Signal::SIGKILL)?;
    let begin = Instant::now();
    while !processes().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{profile:?}: it lives on: {}", processes());
        nix::poll::poll(&mut [], 5u8)?;
    }
    maker.signal(Signal::SIGKILL as i32)?;
    maker.wait()?;
    assert_eq!(sock_isolation::cgroup::Hierarchy::open(&place, &name)?.1, 1);
    Ok(fs::remove_dir(&group)?)
}

fn sweep() -> Result<(), Failed> {
    let shop = Shop::open()?;
    let left = shop.group.join("99");
    std::fs::create_dir(&left)?;
    // A process of a server that died: this one's child, which waits for a pipe that is never written.
    let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn()?;
    std::fs::write(left.join("cgroup.procs"), child.id().to_string())?;
    let name = shop.group.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let place = sock_isolation::cgroup::find()?;
    let (_, removed) = sock_isolation::cgroup::Hierarchy::open(&place, &name)?;
    assert_eq!(removed, 1);
    assert!(!left.exists());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait()?), Some(9));
    shop.close()
}

/// At its name, which is too long for the kernel: by then all of its root is mounted.
fn paper_fails() -> Result<(), Failed> {
    let hostname = "x".repeat(65);
    let shop = Shop::with(ContainerSpec { hostname, profile: Profile::Paper, ..spec() })?;
    let children = std::fs::read_to_string("/proc/thread-self/children")?;
    let builder = children.split_whitespace().next_back().ok_or("there is no builder")?;
    for _ in 0..3 {
        let error = shop.workshop.create().err().ok_or("it was made")?.to_string();
        assert!(error.contains("sethostname: Invalid argument"), "{error}");
        let own = fs::read_to_string(format!("/proc/{builder}/mountinfo"))?;
        assert!(!own.contains("/sock/paper"), "what others get a copy of: {own}");
        let mounts = paper_mounts(builder)?;
        assert!(mounts.contains(" /sock/paper "), "this is not that of paper containers: {mounts}");
        assert!(!mounts.contains("/sock/paper/"), "{mounts}");
    }
    shop.close()
}

/// Of the namespace that a builder keeps for them, which nobody is in.
fn paper_mounts(builder: &str) -> Result<String, Failed> {
    let own = fs::read_link(format!("/proc/{builder}/ns/mnt"))?;
    let others = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|link| link != own && link.to_string_lossy().starts_with("mnt:"))
    };
    let mut all = fs::read_dir(format!("/proc/{builder}/fd"))?.filter_map(Result::ok).map(|fd| fd.path());
    let namespace = File::open(all.find(others).ok_or("it has no other namespace")?)?;
    let proc = File::open("/proc")?;
    let (read, write) = pipe()?;
    let child = Child::fork(|| {
        use nix::fcntl::{OFlag, openat};
        let entered = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNS);
        let mounts = entered
            .and_then(|()| openat(&proc, "self/mountinfo", OFlag::O_RDONLY, nix::sys::stat::Mode::empty()));
        let copied = mounts
            .map_err(std::io::Error::from)
            .and_then(|mounts| std::io::copy(&mut File::from(mounts), &mut File::from(write)));
        i32::from(copied.is_err())
    })?;
    let mut text = String::new();
    File::from(read).read_to_string(&mut text)?;
    assert_eq!(child.wait()?, Exit::Code(0));
    Ok(text)
}

fn threads() -> Result<(), Failed> {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv());
    let error = sock_isolation::process::Child::fork(|| 0).expect_err("there are two threads");
    assert_eq!(error.to_string(), "fork with more than one thread: Device or resource busy");
    drop(sender);
    let _ = thread.join();
    Ok(())
}
