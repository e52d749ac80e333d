//! Instances that nobody needs any more, which end when there is time for it.
//!
//! To take one apart costs the processors as much as to start one from a spare. While a burst is served, the starts that others wait for come
//! first; in the lull after it instances end, a few at a time, so that whoever comes next waits for few of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use super::end::Ids;
use super::{Instance, Server, text};
use crate::launcher::wire::{InstanceId, Reply, ZygoteId};
use crate::verify;

/// Where there is no lull, each ends by then.
const AT_LATEST: Duration = Duration::from_secs(2);

/// So many are taken apart at a time.
pub(super) const SIDE_BY_SIDE: usize = 8;

/// Memory that they may have together, bytes, where the machine has eight times as much or more.
const MOST: u64 = 2 << 30;

/// What one takes at least, with what the kernel keeps of it, bytes.
const LEAST: u64 = 2 << 20;

/// Those that are to end, the one that waits longest first.
pub(super) struct Released {
    queue: VecDeque<Waiting>,
    bytes: u64,
    most: u64,
}

struct Waiting {
    instance: InstanceId,
    /// Whom to tell that it ends.
    request: u64,
    since: Instant,
    bytes: u64,
}

impl Default for Released {
    fn default() -> Self {
        Self { queue: VecDeque::new(), bytes: 0, most: MOST.min(machine_memory() / 8) }
    }
}

/// Of the machine, bytes. sysinfo(2)
fn machine_memory() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total())
}

impl Released {
    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.bytes;
        self.queue.push_back(waiting);
    }

    /// The next that has to end now; in a `lull` any, as long as few are `dying`.
    fn next(&mut self, lull: bool, dying: usize) -> Option<Waiting> {
        let first = self.queue.front()?;
        let due = first.since.elapsed() >= AT_LATEST || self.bytes > self.most;
        if !(due || lull && dying < SIDE_BY_SIDE) {
            return None;
        }
        let first = self.queue.pop_front()?;
        self.bytes -= first.bytes;
        Some(first)
    }

    /// Takes out those for which `ends` says so.
    fn take_if(&mut self, mut ends: impl FnMut(InstanceId) -> bool) -> VecDeque<Waiting> {
        let (taken, left): (VecDeque<_>, _) =
            std::mem::take(&mut self.queue).into_iter().partition(|one| ends(one.instance));
        self.queue = left;
        self.bytes -= taken.iter().map(|one| one.bytes).sum::<u64>();
        taken
    }

    /// When one has to end, if nothing happens before: there is a lull from `lull` on.
    pub(super) fn due(&self, lull: Instant, dying: usize) -> Option<Instant> {
        let latest = self.queue.front()?.since + AT_LATEST;
        if self.bytes > self.most {
            return Some(Instant::now());
        }
        Some(if dying < SIDE_BY_SIDE { latest.min(lull) } else { latest })
    }
}

impl Instance {
    /// What its end would free, bytes: what its group is charged with, or where no controller counts that, what its processes have and
    /// what is in its `/tmp`.
    fn own_memory(&self, by_kernel: bool) -> u64 {
        let group = &self.slot.ground.group;
        if by_kernel {
            return LEAST + group.memory();
        }
        let inherited = self.checked.as_ref().map_or(0, |checked| checked.resident);
        let processes = group.processes().unwrap_or_default();
        let resident: u64 = processes.into_iter().map(verify::resident).sum();
        let tmp = statvfs(format!("/proc/{}/root/tmp", self.slot.made.init).as_str());
        let written = tmp.map_or(0, |tmp| (tmp.blocks() - tmp.blocks_free()) * tmp.fragment_size());
        LEAST + resident.saturating_sub(inherited) + written
    }
}

impl Server {
    /// Has an instance end when there is time for it; at once, where its user ids may be needed before.
    pub(super) fn release(&mut self, request: u64, id: InstanceId) -> Result<(), String> {
        let by_kernel = self.host.has_controller("memory");
        let instance = self.instance(id)?;
        // Whatever it still does costs nobody anything.
        instance.slot.ground.group.stop().map_err(text)?;
        instance.released = true;
        let (bytes, zygote) = (instance.own_memory(by_kernel), instance.zygote);
        let scarce = match zygote {
            None => self.pairs.is_scarce(),
            Some(zygote) => self.zygotes.get(&zygote).is_none_or(|state| state.pairs.is_scarce()),
        };
        let waiting = Waiting { instance: id, request, since: Instant::now(), bytes };
        if scarce {
            self.end_one(&waiting);
        } else {
            self.released.push(waiting);
        }
        Ok(())
    }

    /// Ends those that have to, and in a lull others.
    pub(super) fn end_released(&mut self, lull: bool) {
        while let Some(waiting) = self.released.next(lull, self.dying.len()) {
            self.end_one(&waiting);
        }
    }

    /// Ends what was released of `zygote`, whose user ids are wanted; whether there will be some.
    pub(super) fn frees_ids(&mut self, zygote: ZygoteId) -> bool {
        let instances = &self.instances;
        let of = |id| instances.get(&id).is_some_and(|instance| instance.zygote == Some(zygote));
        for waiting in self.released.take_if(of) {
            self.end_one(&waiting);
        }
        self.dying.values().any(|dying| matches!(dying.ids, Ids::Within(parent, _) if parent == zygote))
    }

    fn end_one(&mut self, waiting: &Waiting) {
        // It may have been destroyed since.
        if let Some(instance) = self.instances.remove(&waiting.instance) {
            self.take_apart(instance, None);
        }
        self.answer(waiting.request, Ok(Reply::Done), Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(ages: &[u64]) -> Released {
        let mut released = Released { queue: VecDeque::new(), bytes: 0, most: 10 * LEAST };
        for (instance, age) in (0..).zip(ages) {
            let since = Instant::now() - Duration::from_millis(*age);
            released.push(Waiting { instance, request: instance, since, bytes: LEAST });
        }
        released
    }

    fn ending(mut released: Released, lull: bool, dying: usize) -> Vec<InstanceId> {
        std::iter::from_fn(|| released.next(lull, dying)).map(|waiting| waiting.instance).collect()
    }

    #[test]
    fn they_end_in_a_lull_or_when_it_is_time_or_for_want_of_memory() {
        assert_eq!(ending(released(&[3000, 2500, 10]), false, 0), [0, 1]);
        assert_eq!(ending(released(&[3000, 10, 5]), true, 0), [0, 1, 2]);
        assert_eq!(ending(released(&[3000, 10, 5]), true, SIDE_BY_SIDE), [0]);
        assert_eq!(ending(released(&[10; 12]), false, 0), [0, 1]);
    }

    #[test]
    fn those_that_are_taken_out_count_no_more() {
        let mut all = released(&[30, 20, 10]);
        let taken = all.take_if(|instance| instance != 1);
        assert_eq!(taken.iter().map(|one| one.instance).collect::<Vec<_>>(), [0, 2]);
        assert_eq!((all.queue.len(), all.bytes), (1, LEAST));
    }

    #[test]
    fn one_is_due_after_the_lull_if_few_are_dying() {
        let (now, lull) = (Instant::now(), Duration::from_millis(20));
        let all = released(&[1000, 10]);
        assert_eq!(all.due(now + lull, 0), Some(now + lull));
        assert!(all.due(now + lull, SIDE_BY_SIDE).is_some_and(|due| due > now + lull));
        assert_eq!(released(&[]).due(now, 0), None);
        let too_many = released(&[10; 11]).due(now + lull, SIDE_BY_SIDE);
        assert!(too_many.is_some_and(|due| due <= Instant::now()), "there is no memory to wait");
    }
}
