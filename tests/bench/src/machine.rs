//! What the kernel tells of the machine and of processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Lets time pass.
pub(crate) fn pause(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the time between two requests is part of what is measured"
    )]
    std::thread::sleep(time);
}

/// Of the machine, KiB. proc_meminfo(5)
pub(crate) fn available() -> Result<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// A number in a file of lines that begin with names.
pub(crate) fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("{path} has no {name}"))
}

/// Processor time of a process and all below it, at a moment: what each has used itself, and what those that it waited for had.
#[derive(Debug, Default)]
pub(crate) struct ProcessorTime(BTreeMap<u32, (Duration, Duration)>);

impl ProcessorTime {
    pub(crate) fn of(root: u32) -> Self {
        let mut found = BTreeSet::from([root]);
        let mut pending = vec![root];
        while let Some(pid) = pending.pop() {
            let fresh = children(pid).into_iter().filter(|child| found.insert(*child));
            pending.extend(fresh.collect::<Vec<_>>());
        }
        // One that ends meanwhile is missed.
        Self(found.into_iter().filter_map(|pid| Some((pid, (own(pid)?, waited_for(pid)?)))).collect())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// What was used from `before` on. What a process that has ended since had used by then is in its parent's account now, and is
    /// taken off again.
    pub(crate) fn since(&self, before: &Self) -> f64 {
        let sum =
            |all: &Self| all.0.values().map(|(own, waited)| (*own + *waited).as_secs_f64()).sum::<f64>();
        sum(self) - sum(before)
    }
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Of all its threads, to the nanosecond: Documentation/scheduler/sched-stats.rst.
fn own(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    Some(times.sum())
}

/// `cutime` and `cstime`, in ticks. proc_pid_stat(5)
fn waited_for(pid: u32) -> Option<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything; fields 16 and 17.
    let fields = stat.rsplit(") ").next()?.split(' ').skip(13).take(2);
    let ticks: u32 = fields.filter_map(|field| field.parse::<u32>().ok()).sum();
    Some(TICK * ticks)
}
