//! Spares: how many a zygote keeps, what they may use, and those that do something nobody asked for.
//!
//! A spare waits, and takes no processor for that. What its packages would have it do meanwhile a few of them may do. Where there are hundreds, for
//! a burst that comes again, they are looked at each second: if together they take a good part of a processor, and go on, those that ran
//! stand still from then on, until they are given a function.

use std::time::{Duration, Instant};

use super::end::Ids;
use super::forking::Spare;
use super::released::SIDE_BY_SIDE;
use super::{Server, Slot, Zygote};
use crate::cgroup::{Activity, Limits};
use crate::launcher::wire::{MAX_SPARES, ZygoteId};

/// What a spare may use until it has a function, whose limits it gets with that: it has gone the way to a first answer once, and waits.
pub(super) const SPARE: Limits = Limits {
    memory: 32 << 20,
    processes: 16,
    cpu_millis: 1000,
    cpu_weight: 100,
    files: 1024,
    memory_high: None,
    io_bytes: None,
};

/// So many may do what they like.
const FEW: usize = 16;

/// How often more are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What they may take of one processor together: a tenth.
const BUSY: f64 = 0.1;

/// Rehearsing takes each a moment, so that they are given this many looks.
const LOOKS: u32 = 3;

impl Zygote {
    /// Spares that it may have. The other half of its user ids is for those that are asked for.
    pub(super) fn most_spares(&self) -> u32 {
        (self.pairs.count() / 2).min(MAX_SPARES)
    }

    /// One more than there shall be: a spare, or a slot.
    fn surplus(&mut self) -> Option<Slot> {
        if self.spares.len() > self.wanted_spares as usize {
            return self.spares.pop_back().map(|spare| spare.slot);
        }
        if self.ready.len() > self.target as usize { self.ready.pop_back() } else { None }
    }

    /// Whether there is one.
    pub(super) fn has_surplus(&self) -> bool {
        self.spares.len() > self.wanted_spares as usize || self.ready.len() > self.target as usize
    }

    /// Has those stand still that ran, if they took too much in the time that `passed`, again and again.
    fn look_at_spares(&mut self, passed: Duration) {
        let each: Vec<u64> = self.spares.iter_mut().map(Spare::ran).collect();
        self.restless = restless(self.restless, Duration::from_micros(each.iter().sum()), passed);
        if self.restless >= LOOKS {
            self.spares
                .iter_mut()
                .zip(each)
                .filter(|(_, ran)| *ran > 0)
                .for_each(|(spare, _)| spare.freeze());
        }
    }
}

impl Spare {
    /// Microseconds that it ran since this was last asked.
    fn ran(&mut self) -> u64 {
        if self.frozen {
            return 0;
        }
        let group = &self.slot.ground.group;
        self.activity.get_or_insert_with(|| Activity::of(group)).grown()
    }
}

/// Looks in succession at which spares took too much, with the one that found that they took so much of the time that `passed`.
fn restless(before: u32, took: Duration, passed: Duration) -> u32 {
    if took.as_secs_f64() > BUSY * passed.as_secs_f64() { before + 1 } else { 0 }
}

impl Server {
    pub(super) fn keep(&mut self, zygote: ZygoteId, spares: u32, slots: u32) -> Result<(), String> {
        let state = self.zygotes.get_mut(&zygote).ok_or_else(|| format!("there is no zygote {zygote}"))?;
        (state.wanted_spares, state.target) = (spares.min(state.most_spares()), slots);
        self.wanting.insert(zygote);
        Ok(())
    }

    /// Ends what is kept beyond what shall be, a few at a time: others may wait for a start.
    pub(super) fn shed(&mut self, zygote: ZygoteId) {
        while self.dying.len() < SIDE_BY_SIDE {
            let Some(slot) = self.zygotes.get_mut(&zygote).and_then(Zygote::surplus) else { return };
            let ids = Ids::Within(zygote, slot.pair);
            self.let_die(slot, ids);
        }
    }

    /// When spares are to be looked at next, if there are many of any zygote.
    pub(super) fn look_at_spares_due(&self) -> Option<Instant> {
        let many = self.zygotes.values().any(|state| state.spares.len() > FEW);
        many.then(|| self.spares_looked + LOOK)
    }

    pub(super) fn look_at_spares(&mut self) {
        let passed = self.spares_looked.elapsed();
        self.spares_looked = Instant::now();
        for state in self.zygotes.values_mut().filter(|state| state.spares.len() > FEW) {
            state.look_at_spares(passed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_are_restless_that_go_on_and_on() {
        let [little, much] = [50, 150].map(Duration::from_millis);
        let looks = |took: &[Duration]| took.iter().fold(0, |before, took| restless(before, *took, LOOK));
        assert_eq!(looks(&[much, much]), 2);
        assert_eq!(looks(&[much, much, little]), 0);
        assert!(looks(&[little, much, much, much]) >= LOOKS);
        // What many looks were missed of counts for all that time.
        assert_eq!(restless(2, much, 10 * LOOK), 0);
    }
}
