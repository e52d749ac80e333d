//! The watchdog on resident memory, for machines where no controller keeps that limit: finds out who went over.
//!
//! A process that does not run allocates nothing, and of what did run the kernel keeps account in every group, controller
//! or not: `cpu.stat`. Only of groups in which something ran are processes listed and asked. Idle ones cost a read.
//!
//! What goes over is to be killed at the next look, [`INTERVAL`] later at most. Clearing pages takes a processor about half a
//! millisecond for a megabyte, so that until then a container has 100 MB for each processor that it runs on, beyond its
//! limit. (What a single process allocates for itself RLIMIT_DATA refuses at once; this is for what processes share, and
//! for many of them together.) Where pages are shared it takes a dear look to say whose they are, which processes can make dearer:
//! the next one then waits four times as long as the last took, [`AT_MOST`] in all.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::cgroup::{Activity, Group};
use crate::verify;

/// From one look to the next.
pub(crate) const INTERVAL: Duration = Duration::from_millis(50);

/// The longest that a container goes without a dear look when it needs one.
const AT_MOST: Duration = Duration::from_secs(1);

/// What the watchdog remembers of a container.
#[derive(Debug)]
pub(crate) struct Watched {
    activity: Activity,
    /// It has to be looked at dearly, but not before.
    put_off: Option<Instant>,
}

/// What a container may have.
#[derive(Clone, Copy)]
pub(crate) struct Bound {
    /// Resident in all its processes, where nothing is counted twice.
    pub(crate) memory: u64,
    /// Of what it has, this much was somebody else's before.
    pub(crate) inherited: u64,
}

impl Watched {
    pub(crate) fn new(group: &Group) -> Self {
        Self { activity: Activity::of(group), put_off: None }
    }

    /// Whether it has to be looked at though nothing in it runs.
    pub(crate) fn is_put_off(&self) -> bool {
        self.put_off.is_some()
    }

    /// Whether the processes in `group` have more than `bound` allows, but for `init`, its PID 1.
    pub(crate) fn is_over(&mut self, group: &Group, init: Pid, bound: Bound) -> bool {
        let ran = self.activity.changed();
        let due = match self.put_off {
            Some(until) => Instant::now() >= until,
            None => ran,
        };
        if !due {
            return false;
        }
        self.put_off = None;
        let Ok(mut processes) = group.processes() else { return false };
        processes.retain(|pid| *pid != init);
        let together = |of: fn(Pid) -> u64| processes.iter().map(|pid| of(*pid)).sum::<u64>();
        let suspect = |resident: u64| resident.saturating_sub(bound.inherited) > bound.memory;
        if !suspect(together(verify::resident_at_most)) || !suspect(together(verify::resident)) {
            return false;
        }
        if processes.len() == 1 && bound.inherited == 0 {
            return true;
        }
        // Pages that processes share were counted for each of them: the dear look divides them.
        let began = Instant::now();
        let over = together(verify::proportional) > bound.memory;
        self.put_off = (!over).then(|| Instant::now() + (began.elapsed() * 4).clamp(INTERVAL, AT_MOST));
        over
    }
}
