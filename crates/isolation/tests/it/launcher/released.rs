//! Instances that are to end when there is time for it.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use sock_isolation::IdRange;
use sock_isolation::launcher::wire::{Counts, Files, InstanceId, Reply, Request};

use super::{Launcher, command};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("launcher::what_was_released_ends_in_a_lull", in_a_lull),
    ("launcher::what_was_released_ends_without_a_lull", without_a_lull),
];

/// One that would never end, and the descriptors of ours.
fn sleeper(launcher: &mut Launcher) -> Result<(InstanceId, Vec<OwnedFd>), Failed> {
    launcher.send(Request::Execute { files: Files::default(), command: command(&["/bin/sleep", "60"]) })?;
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

/// What there was while a launcher was asked for something all the time, and the longest that it was asked for nothing.
struct Busy {
    /// Groups that were told to stand still.
    still: usize,
    counted: Vec<Counts>,
    took: Duration,
    longest: Duration,
}

/// Two are released of which one is destroyed meanwhile, which is no reason not to answer.
fn busy() -> Result<Busy, Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    let [(first, _fds), (second, _others)] = [sleeper(&mut launcher)?, sleeper(&mut launcher)?];
    let begin = Instant::now();
    let released = [first, second].map(|instance| launcher.send(Request::Release { instance }));
    let mut missing: Vec<u64> = released.into_iter().collect::<Result<_, _>>()?;
    let destroyed = launcher.send(Request::Destroy { instance: second })?;
    let (mut counted, mut last, mut longest, mut still) = (Vec::new(), begin, Duration::ZERO, 0);
    while !missing.is_empty() {
        let asked = launcher.send(Request::Count)?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        loop {
            let (answer, _) = launcher.receive()?;
            match answer.result {
                Ok(Reply::Counts(counts)) => counted.push(counts),
                Ok(Reply::Done) => missing.retain(|id| *id != answer.id),
                Ok(Reply::Destroyed { .. }) if answer.id == destroyed => {}
                other => return Err(format!("{other:?}").into()),
            }
            if counted.len() == 9 {
                let groups = fs::read_dir(&launcher.group)?.flatten();
                let told = groups.map(|group| fs::read_to_string(group.path().join("cgroup.freeze")));
                still = told.filter(|told| told.as_deref().is_ok_and(|told| told.trim() == "1")).count();
            }
            if answer.id == asked {
                break;
            }
        }
        nix::poll::poll(&mut [], 2u8)?;
    }
    let took = begin.elapsed();
    launcher.empties()?;
    launcher.stop()?;
    Ok(Busy { still, counted, took, longest })
}

fn without_a_lull() -> Result<(), Failed> {
    // Where this process was kept waiting itself there was a lull.
    for _ in 0..10 {
        let Busy { still, counted, took, longest } = busy()?;
        assert!(counted.iter().all(|counts| counts.instances == 0), "they are nobody's any more");
        if longest < Duration::from_millis(15) {
            assert!(took >= Duration::from_secs(2), "{took:?}");
            assert_eq!(still, 1, "it does not go on meanwhile");
            assert!(counted.iter().filter(|counts| counts.dying == 1).count() > 9, "the other one was there");
            return Ok(());
        }
    }
    Err("this machine is too busy for requests without a lull".into())
}
