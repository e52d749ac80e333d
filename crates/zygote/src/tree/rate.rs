//! How often something happens, and how many spares that takes.

use serde::{Deserialize, Serialize};

/// Seconds after which an event counts half. Bursts of a few minutes have to count as a whole, and what nobody has called
/// for an hour (six half-lives) no more.
const HALF_LIFE: f64 = 600.0;

/// Events a second, of which older ones count less: after `t` seconds `2^(-t / HALF_LIFE)`. Steady events are told as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    seen: f64,
    value: f64,
}

impl Rate {
    /// Counts `count` events at `now`, in seconds by any clock. To a clock that goes back, no time has passed.
    pub fn observe(&mut self, now: f64, count: u32) {
        let value = self.at(now) + f64::from(count) * std::f64::consts::LN_2 / HALF_LIFE;
        *self = Self { seen: now.max(self.seen), value };
    }

    /// What it is at `now`.
    pub fn at(&self, now: f64) -> f64 {
        let passed = (now - self.seen).max(0.0);
        self.value * (-passed / HALF_LIFE).exp2()
    }
}

/// Below this, the next instance is not expected within the hour, and a spare is memory for nothing. A single start is
/// followed by twenty minutes with a spare.
const SPARED: f64 = 1.0 / 3600.0;

/// How many spares a node keeps: `⌈mean + 2 √mean⌉`, where `mean = rate × seconds` new instances arrive while one spare is
/// made. Arrivals are taken as a Poisson process, whose standard deviation is `√mean`: a burst of two more of them finds all
/// it needs. One at least, none below a rate of one an hour, and never more than `most`.
pub fn spares(rate: f64, seconds: f64, most: u32) -> u32 {
    if rate.is_nan() || rate < SPARED {
        return 0;
    }
    let mean = (rate * seconds).max(0.0);
    // A cast saturates, and makes zero of what is no number.
    ((mean + 2.0 * mean.sqrt()).ceil() as u32).clamp(1, most.max(1)).min(most)
}

/// How long it takes until half of a burst is forgotten, seconds.
const BURST_HALF: f64 = 600.0;

/// The most new instances of a node at once, of late: what a burst asks for. Ten minutes later half of it counts.
pub fn burst(before: f64, passed: f64, now: f64) -> f64 {
    (before * 0.5f64.powf(passed / BURST_HALF)).max(now)
}

/// Spares that nodes keep for a burst that comes again. Each asks for as many as its last one had instances beyond those that are idle now
/// (nothing, where that is less than none or no number), `most` at most; together they get `room`. Where that is too little, each gets the
/// same share of what it asks for.
pub fn spares_for_bursts(asked: &[f64], room: u32, most: u32) -> Vec<u32> {
    // A cast saturates, and makes zero of what is no number.
    let wanted: Vec<u32> = asked.iter().map(|asked| (asked.round() as u32).min(most)).collect();
    let all: u64 = wanted.iter().copied().map(u64::from).sum();
    let share = |wanted: u32| match u64::from(room) {
        room if all > room => (u64::from(wanted) * room / all) as u32,
        _ => wanted,
    };
    wanted.into_iter().map(share).collect()
}

/// How many slots a node keeps: as many as the last burst asked for beyond its spares, within bounds. To make one is a good part of what a start
/// costs the processors; to keep it takes a fraction of the memory of a spare.
pub fn slots(burst: f64, spares: u32, (least, most): (u32, u32)) -> u32 {
    (burst.ceil() as u32).saturating_sub(spares).clamp(least, most.max(least))
}

/// How many slots each of `nodes` keeps at the least, before anybody has seen a burst: an equal share of what fits into `room` at `bytes` each,
/// within bounds.
pub fn slots_at_least(room: u64, bytes: u64, nodes: usize, (least, most): (u32, u32)) -> u32 {
    let each = room / bytes.max(1) / (nodes as u64).max(1);
    u32::try_from(each).unwrap_or(u32::MAX).clamp(least, most.max(least))
}
