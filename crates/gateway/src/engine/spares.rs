//! How many spares and slots the launcher keeps of each zygote: as many as arrivals ask for, and a burst that comes again.
//!
//! The formulas are `sock_zygote::tree`'s. What they are told is looked at each second: how many instances each zygote was asked for, and of
//! each function how many at once, how many invocations wait, and which instances would answer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::MAX_SPARES;
use sock_zygote::tree::{self, NodeSpec};

use super::places::Places;
use super::zygotes::Zygote;
use super::{Engine, lock};
use crate::names::FunctionName;

/// What making a spare takes, seconds: it waits for a lull of 20 ms, and then a fork.
const SECONDS: f64 = 0.05;

/// Spares of one zygote for those that arrive one by one.
const MOST: u32 = 16;

/// What a spare has of its own, bytes: 1.5 MB without packages, 2.3 MB with pandas.
const BYTES: u64 = 2 << 20;

/// Of the memory for zygotes, spares may take a part of so many, where the operator says nothing.
pub(crate) const SPARE_SHARE: u64 = 4;

/// Slots kept ready for one that serves functions, at first; a burst beyond them waits about a millisecond for each more.
pub(crate) const SLOTS: u32 = 4;

/// Slots of one zygote. The launcher keeps no more. So many are kept where there is memory for them, before anybody has seen a burst: the first
/// of a hundred takes a quarter less than with four.
const MOST_SLOTS: u32 = 64;

/// What a slot takes of the kernel's memory and its own, bytes.
const SLOT_BYTES: u64 = 600 << 10;

/// Of the memory for spares, slots that no burst has asked for may take a part of so many.
const SLOT_SHARE: u64 = 8;

/// What arrives within this long is one burst.
const BURST: Duration = Duration::from_secs(1);

/// How often a zygote was asked for an instance lately.
#[derive(Debug)]
pub(super) struct Arrivals {
    looked: Instant,
    forks: u64,
    /// A second: with the last seconds' weight, and with the last minute's.
    rates: [f64; 2],
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { looked: Instant::now(), forks: 0, rates: [0.0; 2] }
    }
}

/// How long it takes until half of what was counts no more, seconds.
const HALVES: [f64; 2] = [1.0, 30.0];

impl Zygote {
    /// Instances that it was asked for, a second: of the last seconds; and of the last minute, in which a burst is little. Asked more often
    /// than each second, it tells what it told last.
    fn rates(&self) -> [f64; 2] {
        let mut arrivals = lock(&self.arrivals);
        let passed = arrivals.looked.elapsed().as_secs_f64();
        if passed >= 0.9 {
            let forks = self.forks.load(Ordering::Relaxed);
            let now = (forks - arrivals.forks) as f64 / passed;
            let mut rates = arrivals.rates;
            for (rate, half) in rates.iter_mut().zip(HALVES) {
                let weight = 0.5f64.powf(passed / half);
                *rate = *rate * weight + now * (1.0 - weight);
            }
            *arrivals = Arrivals { looked: Instant::now(), forks, rates };
        }
        arrivals.rates
    }

    fn recent(&self) -> f64 {
        self.rates()[0]
    }

    /// What another process beside it would be for: it has to be imported, and have spares of its own.
    pub(super) fn lasting(&self) -> f64 {
        self.rates()[1]
    }
}

/// The bursts of functions.
#[derive(Debug, Default)]
pub(super) struct Bursts(Mutex<HashMap<FunctionName, Burst>>);

/// New instances of a function.
#[derive(Debug)]
struct Burst {
    /// When those of the last moment were asked for, and the most that there were in one since it was looked at.
    latest: VecDeque<Instant>,
    most: usize,
    looked: Instant,
    /// The most at once, of late.
    size: f64,
}

impl Burst {
    fn begin(now: Instant) -> Self {
        Self { latest: VecDeque::new(), most: 0, looked: now, size: 0.0 }
    }

    fn note(&mut self, now: Instant) {
        while self.latest.front().is_some_and(|first| now.duration_since(*first) > BURST) {
            self.latest.pop_front();
        }
        self.latest.push_back(now);
        self.most = self.most.max(self.latest.len());
    }

    /// Its size, with those that are still to be asked for.
    fn look(&mut self, now: Instant, waiting: usize) -> f64 {
        let most = std::mem::take(&mut self.most) + waiting;
        let passed = now.duration_since(self.looked).as_secs_f64();
        (self.size, self.looked) = (tree::burst(self.size, passed, most as f64), now);
        self.size
    }
}

impl Bursts {
    /// An instance of the function is asked for.
    pub(super) fn note(&self, function: &FunctionName) {
        let now = Instant::now();
        let mut bursts = lock(&self.0);
        match bursts.get_mut(function) {
            Some(burst) => burst.note(now),
            None => bursts.entry(function.clone()).or_insert_with(|| Burst::begin(now)).note(now),
        }
    }

    /// The function is gone.
    pub(super) fn forget(&self, function: &FunctionName) {
        lock(&self.0).remove(function);
    }

    /// The sizes of those that are not forgotten; `waiting` tells how many are still to be asked for.
    fn look(&self, waiting: impl Fn(&FunctionName) -> usize) -> Vec<(FunctionName, f64)> {
        let (now, mut sizes) = (Instant::now(), Vec::new());
        lock(&self.0).retain(|name, burst| {
            let size = burst.look(now, waiting(name));
            sizes.push((name.clone(), size));
            size >= 0.5
        });
        sizes
    }
}

/// Whether a function that starts so often, a second, has no spare kept for it.
pub(super) fn expects_none(rate: f64) -> bool {
    tree::spares(rate, SECONDS, MOST) == 0
}

impl Engine {
    /// Has as many spares kept of each zygote as arrivals ask for: those that the plan expects, or those of the last seconds, or the last
    /// bursts of the functions that it serves.
    pub(crate) fn keep_spares(&self) {
        let bursts = self.bursts_by_node();
        let zygotes = self.zygotes.running();
        // Each of a node's processes is asked for its part.
        let share = |zygote: &Arc<Zygote>| {
            let asked = bursts.get(&zygote.spec).copied().unwrap_or(0.0);
            asked / self.zygotes.count(&zygote.spec).max(1) as f64
        };
        let asked: Vec<f64> = zygotes.iter().map(share).collect();
        let steady: Vec<f64> = zygotes
            .iter()
            .map(|zygote| {
                let expected = self.planner.expected(&zygote.spec);
                tree::spares(expected.rate.max(zygote.recent()), SECONDS, MOST).into()
            })
            .collect();
        let room = u32::try_from(self.spare_bytes / BYTES).unwrap_or(u32::MAX);
        // First those for what arrives one by one, of which each needs few.
        let steady = tree::spares_for_bursts(&steady, room, MOST);
        let left = room.saturating_sub(steady.iter().sum());
        let more: Vec<f64> =
            asked.iter().zip(&steady).map(|(asked, steady)| asked - f64::from(*steady)).collect();
        let more = tree::spares_for_bursts(&more, left, MAX_SPARES);
        let serving = zygotes.iter().filter(|zygote| self.planner.expected(&zygote.spec).serves).count();
        let room = self.spare_bytes / SLOT_SHARE;
        let least = tree::slots_at_least(room, SLOT_BYTES, serving, (SLOTS, MOST_SLOTS));
        for ((zygote, asked), (steady, more)) in zygotes.iter().zip(asked).zip(steady.into_iter().zip(more)) {
            let spares = (steady + more).min(MAX_SPARES);
            let expected = self.planner.expected(&zygote.spec);
            let slots = if expected.serves { tree::slots(asked, spares, (least, MOST_SLOTS)) } else { 0 };
            self.zygotes.keep(zygote, spares, slots);
        }
    }

    /// By the nodes that serve them: new instances that functions would ask for, if their last bursts came again.
    fn bursts_by_node(&self) -> BTreeMap<NodeSpec, f64> {
        let places: HashMap<FunctionName, Arc<Places>> = lock(&self.places).clone();
        // Those of other functions wait for an instance that is there.
        let functions = lock(&self.functions);
        let is_single_use = |name: &FunctionName| {
            functions.by_name.get(name).is_some_and(|prepared| prepared.function.single_use)
        };
        let waiting: HashMap<FunctionName, usize> = places
            .iter()
            .filter(|(name, places)| places.waiting() > 0 && is_single_use(name))
            .map(|(name, places)| (name.clone(), places.waiting()))
            .collect();
        drop(functions);
        let waiting = |name: &FunctionName| waiting.get(name).copied().unwrap_or(0);
        let mut by_node = BTreeMap::new();
        for (name, burst) in self.bursts.look(waiting) {
            let Some(prepared) = lock(&self.functions).by_name.get(&name).map(Arc::clone) else { continue };
            let Some(zygote) = self.choose(&prepared) else { continue };
            // Those answer before new ones are started: idle ones, and where instances are used again, those that run.
            let idle = lock(&self.idle).count_of(&prepared.function);
            let running = places.get(&name).map_or(0, |places| places.taken());
            let there = if prepared.function.single_use { idle } else { idle + running };
            *by_node.entry(zygote.spec.clone()).or_insert(0.0) += (burst - there as f64).max(0.0);
        }
        by_node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_counted_wherever_it_falls() {
        let begin = Instant::now();
        let mut burst = Burst::begin(begin);
        for millis in [0, 900, 950, 1000, 1900, 1950, 5000] {
            burst.note(begin + Duration::from_millis(millis));
        }
        // From 900 to 1900.
        assert_eq!((burst.most, burst.latest.len()), (4, 1));
        assert_eq!(burst.look(begin, 3), 7.0);
        // Ten minutes later half of it counts.
        assert_eq!(burst.look(begin + Duration::from_secs(600), 0).round(), 4.0);
    }
}
