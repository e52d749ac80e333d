//! Instances that nobody needs any more, which end when there is time for it.
//!
//! To take one apart costs the processors as much as to start one from a spare. While a burst is served, the starts that others wait for come
//! first; in the lull after it instances end, a few at a time, so that whoever comes next waits for few of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Instance, Server};
use crate::launcher::wire::{InstanceId, Reply};
use crate::verify;

/// Where there is no lull, each ends by then.
const AT_LATEST: Duration = Duration::from_secs(2);

/// So many are taken apart at a time.
const SIDE_BY_SIDE: usize = 8;

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

    /// When one has to end, if nothing happens before: there is a lull from `lull` on.
    pub(super) fn due(&self, lull: Instant, dying: usize) -> Option<Instant> {
        let latest = self.queue.front()?.since + AT_LATEST;
        Some(if dying < SIDE_BY_SIDE { latest.min(lull) } else { latest })
    }
}

impl Instance {
    /// What its end would free at least, bytes.
    fn own_memory(&self) -> u64 {
        let before =
            |checked: &verify::Checked| verify::resident(checked.pid).saturating_sub(checked.resident);
        LEAST + self.checked.as_ref().map_or(0, before)
    }
}

impl Server {
    /// Has an instance end when there is time for it; at once, where its user ids may be needed before.
    pub(super) fn release(&mut self, request: u64, id: InstanceId) -> Result<(), String> {
        let instance = self.instance(id)?;
        instance.released = true;
        let (bytes, zygote) = (instance.own_memory(), instance.zygote);
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
    fn one_is_due_after_the_lull_if_few_are_dying() {
        let (now, lull) = (Instant::now(), Duration::from_millis(20));
        let all = released(&[1000, 10]);
        assert_eq!(all.due(now + lull, 0), Some(now + lull));
        assert!(all.due(now + lull, SIDE_BY_SIDE).is_some_and(|due| due > now + lull));
        assert_eq!(released(&[]).due(now, 0), None);
    }
}
