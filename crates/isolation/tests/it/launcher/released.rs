//! Instances that are to end when there is time for it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use sock_isolation::launcher::wire::{Answer, Counts, Files, InstanceId, Reply, Request};
use sock_isolation::{IdRange, Profile};

use super::{Launcher, command};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("launcher::what_was_released_ends_in_a_lull", in_a_lull),
    ("launcher::what_was_released_ends_without_a_lull", without_a_lull),
    ("launcher::what_was_released_ends_after_what_others_ask_for", others_first),
];

/// Waiting for a launcher at once.
const QUESTIONS: usize = 64;

/// One that would never end, and the descriptors of ours.
fn sleeper(launcher: &mut Launcher) -> Result<(InstanceId, Vec<OwnedFd>), Failed> {
    launcher.send(Request::Execute {
        profile: Profile::Lean,
        files: Files::default(),
        command: command(&["/bin/sleep", "60"]),
    })?;
    let (answer, fds) = launcher.receive()?;
    match answer.result {
        Ok(Reply::Instance { instance, .. }) => Ok((instance, fds)),
        other => Err(format!("{other:?}").into()),
    }
}

fn in_a_lull() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    let (instance, _fds) = sleeper(&mut launcher)?;
    let begin = Instant::now();
    assert_eq!(launcher.call(Request::Release { instance })?, Ok(Reply::Done));
    assert!(begin.elapsed() >= Duration::from_millis(19), "{:?}", begin.elapsed());
    launcher.empties()?;
    let refused = launcher.refusal(Request::Release { instance })?;
    assert!(refused.contains("there is no instance"), "{refused}");
    launcher.stop()
}

/// How long a launcher was asked for something all the time, and the longest that it was asked for nothing.
fn keeps_asking(launcher: &mut Launcher, released: u64) -> Result<[Duration; 2], Failed> {
    let begin = Instant::now();
    let (mut last, mut longest) = (begin, Duration::ZERO);
    loop {
        let asked = launcher.send(Request::Count)?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        let mut done = false;
        loop {
            let (answer, _) = launcher.receive()?;
            done |= answer.id == released;
            if answer.id == asked {
                break;
            }
        }
        if done {
            return Ok([begin.elapsed(), longest]);
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "it never ends");
        nix::poll::poll(&mut [], 2u8)?;
    }
}

fn without_a_lull() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    let (instance, _fds) = sleeper(&mut launcher)?;
    let released = launcher.send(Request::Release { instance })?;
    let [took, longest] = keeps_asking(&mut launcher, released)?;
    // Where this process was kept waiting itself there was a lull.
    assert!(took >= Duration::from_secs(2) || longest >= Duration::from_millis(15), "{took:?}, {longest:?}");
    launcher.empties()?;
    launcher.stop()
}

/// Groups that were told to stand still.
fn still(launcher: &Launcher) -> Result<usize, Failed> {
    let groups = fs::read_dir(&launcher.group)?.flatten();
    let told = groups.map(|group| fs::read_to_string(group.path().join("cgroup.freeze")));
    Ok(told.filter(|told| told.as_deref().is_ok_and(|told| told.trim() == "1")).count())
}

/// Has a launcher stand still, whatever it is about to do.
fn stopped(launcher: &Launcher) -> Result<(), Failed> {
    launcher.child.signal(Signal::SIGSTOP as i32)?;
    let id = Pid::from_raw(launcher.child.id());
    assert_eq!(waitpid(id, Some(WaitPidFlag::WUNTRACED))?, WaitStatus::Stopped(id, Signal::SIGSTOP));
    Ok(())
}

/// What a launcher answers to what it finds in its socket all at once, where there is no lull before the last question; how many of the
/// groups stood still in between, unless it had come to the last question already.
fn behind_questions() -> Result<(Vec<Answer>, Option<usize>), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    let [(first, _fds), (second, _others)] = [sleeper(&mut launcher)?, sleeper(&mut launcher)?];
    stopped(&launcher)?;
    launcher.send(Request::Release { instance: first })?;
    launcher.send(Request::Release { instance: second })?;
    // Which is no reason not to answer.
    launcher.send(Request::Destroy { instance: second })?;
    for _ in 0..QUESTIONS {
        launcher.send(Request::Count)?;
    }
    launcher.child.signal(Signal::SIGCONT as i32)?;
    let mut answers = Vec::new();
    while !matches!(answers.last(), Some(Answer { result: Ok(Reply::Counts(_)), .. })) {
        answers.push(launcher.receive()?.0);
    }
    stopped(&launcher)?;
    while nix::poll::poll(&mut [PollFd::new(launcher.socket.as_fd(), PollFlags::POLLIN)], 0u8)? == 1 {
        answers.push(launcher.receive()?.0);
    }
    let still = (counts(&answers).count() < QUESTIONS).then(|| still(&launcher)).transpose()?;
    launcher.child.signal(Signal::SIGCONT as i32)?;
    // Three answers beside those: two were released, one was destroyed.
    while answers.len() < QUESTIONS + 3 {
        answers.push(launcher.receive()?.0);
    }
    launcher.empties()?;
    launcher.stop()?;
    Ok((answers, still))
}

fn counts(answers: &[Answer]) -> impl Iterator<Item = &Counts> {
    answers.iter().filter_map(|answer| match &answer.result {
        Ok(Reply::Counts(counts)) => Some(counts),
        _ => None,
    })
}

fn others_first() -> Result<(), Failed> {
    for _ in 0..10 {
        let (answers, still) = behind_questions()?;
        assert_eq!(counts(&answers).count(), QUESTIONS);
        assert!(counts(&answers).all(|counts| counts.instances == 0), "they are nobody's any more");
        let done =
            answers.iter().position(|answer| answer.result == Ok(Reply::Done)).ok_or("none has ended")?;
        let before = counts(&answers[..done]).count();
        assert_eq!(before, QUESTIONS, "it ended before what others asked for was answered");
        if let Some(still) = still {
            // The destroyed one may be gone.
            assert!(still >= 1, "it goes on meanwhile");
            return Ok(());
        }
    }
    Err("a launcher cannot be stopped between 64 questions, ten times".into())
}
