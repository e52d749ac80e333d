//! How many spares and slots the launcher keeps of each zygote: as many as arrivals ask for, and a burst that comes again.
//!
//! The formulas are `sock_zygote::tree`'s. What they are told is looked at each second: how many instances each zygote was asked for, how
//! many invocations wait, which idle instances would answer.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::{MAX_SPARES, ZygoteId};
use sock_zygote::tree;

use super::zygotes::Zygote;
use super::{Engine, lock};

/// What making a spare takes, seconds: it waits for a lull of 20 ms, and then a fork.
const SECONDS: f64 = 0.05;

/// Spares of one zygote for those that arrive one by one.
const MOST: u32 = 16;

/// What a spare has of its own, bytes: 1.5 MB without packages, 2.3 MB with pandas.
const BYTES: u64 = 2 << 20;

/// Of the memory for zygotes, spares for bursts may take a part of so many, where the operator says nothing.
pub(crate) const SPARE_SHARE: u64 = 4;

/// Slots kept ready for one that serves functions, at first; a burst beyond them waits about a millisecond for each more.
pub(crate) const SLOTS: u32 = 4;

/// Slots of one zygote, of about 400 KB each. The launcher keeps no more.
const MOST_SLOTS: u32 = 64;

/// What arrives within this long is one burst.
const BURST: Duration = Duration::from_secs(1);

/// How often a zygote was asked for an instance in the last seconds.
#[derive(Debug)]
pub(super) struct Arrivals {
    looked: Instant,
    forks: u64,
    rate: f64,
    /// The most at once, of late.
    burst: f64,
    /// Those of the last moment, and the most that there were in one since it was looked at.
    latest: VecDeque<Instant>,
    most: usize,
}

impl Default for Arrivals {
    fn default() -> Self {
        let (latest, most) = (VecDeque::new(), 0);
        Self { looked: Instant::now(), forks: 0, rate: 0.0, burst: 0.0, latest, most }
    }
}

impl Arrivals {
    fn note(&mut self, now: Instant) {
        while self.latest.front().is_some_and(|first| now.duration_since(*first) > BURST) {
            self.latest.pop_front();
        }
        self.latest.push_back(now);
        self.most = self.most.max(self.latest.len());
    }
}

impl Zygote {
    /// An instance of it is asked for.
    pub(super) fn note_arrival(&self) {
        self.forks.fetch_add(1, Ordering::Relaxed);
        lock(&self.arrivals).note(Instant::now());
    }

    /// Instances that it was asked for, a second: of the last seconds, of which each one counts half of the next; and the most within a second,
    /// with those that invocations wait for which have no place yet. Asked more often than each second, it tells what it told last.
    fn recent(&self, waiting: usize) -> (f64, f64) {
        let mut arrivals = lock(&self.arrivals);
        let passed = arrivals.looked.elapsed().as_secs_f64();
        if passed >= 0.9 {
            let forks = self.forks.load(Ordering::Relaxed);
            let now = (forks - arrivals.forks) as f64 / passed;
            let weight = 0.5f64.powf(passed);
            let rate = arrivals.rate * weight + now * (1.0 - weight);
            let most = std::mem::take(&mut arrivals.most) + waiting;
            let burst = tree::burst(arrivals.burst, passed, most as f64);
            (arrivals.looked, arrivals.forks) = (Instant::now(), forks);
            (arrivals.rate, arrivals.burst) = (rate, burst);
        }
        (arrivals.rate, arrivals.burst)
    }
}

/// Whether a function that starts so often, a second, has no spare kept for it.
pub(super) fn expects_none(rate: f64) -> bool {
    tree::spares(rate, SECONDS, MOST) == 0
}

impl Engine {
    /// Has as many spares kept of each zygote as arrivals ask for: those that the plan expects, or those of the last seconds, or the last
    /// burst.
    pub(crate) fn keep_spares(&self) {
        let waiting = self.waiting_for_zygotes();
        let idle = lock(&self.idle).count_by_zygote();
        let of =
            |counts: &HashMap<ZygoteId, usize>, zygote: &Zygote| counts.get(&zygote.id).copied().unwrap_or(0);
        let zygotes = self.zygotes.running();
        let arrivals: Vec<_> = zygotes.iter().map(|zygote| zygote.recent(of(&waiting, zygote))).collect();
        let expected: Vec<_> = zygotes.iter().map(|zygote| self.planner.expected(&zygote.spec)).collect();
        // Idle instances answer before new ones are started; and of what serves nobody any more nobody will ask for any.
        let asked = |at: usize| {
            if expected[at].serves { arrivals[at].1 - of(&idle, &zygotes[at]) as f64 } else { 0.0 }
        };
        let bursts: Vec<f64> = (0..zygotes.len()).map(asked).collect();
        let room = u32::try_from(self.spare_bytes / BYTES).unwrap_or(u32::MAX);
        let for_bursts = tree::spares_for_bursts(&bursts, room, MAX_SPARES);
        for (at, zygote) in zygotes.iter().enumerate() {
            let (recent, burst) = arrivals[at];
            let spares = tree::spares(expected[at].rate.max(recent), SECONDS, MOST).max(for_bursts[at]);
            let slots = if expected[at].serves { tree::slots(burst, spares, (SLOTS, MOST_SLOTS)) } else { 0 };
            self.zygotes.keep(zygote, spares, slots);
        }
    }

    /// By zygote: invocations that will have an instance of their own, and wait for a place.
    fn waiting_for_zygotes(&self) -> HashMap<ZygoteId, usize> {
        let waiting: Vec<_> = lock(&self.places)
            .iter()
            .map(|(name, places)| (name.clone(), places.waiting()))
            .filter(|(_, count)| *count > 0)
            .collect();
        let functions = lock(&self.functions);
        let prepared = waiting
            .into_iter()
            .filter_map(|(name, count)| Some((Arc::clone(functions.by_name.get(&name)?), count)));
        let prepared: Vec<_> = prepared.filter(|(prepared, _)| prepared.function.single_use).collect();
        drop(functions);
        let mut by_zygote = HashMap::new();
        for (prepared, count) in prepared {
            if let Some(zygote) = self.choose(&prepared) {
                *by_zygote.entry(zygote.id).or_default() += count;
            }
        }
        by_zygote
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_counted_wherever_it_falls() {
        let mut arrivals = Arrivals::default();
        let begin = Instant::now();
        for millis in [0, 900, 950, 1000, 1900, 1950, 5000] {
            arrivals.note(begin + Duration::from_millis(millis));
        }
        // From 900 to 1900.
        assert_eq!((arrivals.most, arrivals.latest.len()), (4, 1));
    }
}
