//! The user ids that containers have outside: a range of the host's ids that nothing else uses, dealt out in blocks.
//!
//! Inside, a container's own code is always uid 1000 and its PID 1 uid 0; outside, each container has two ids of its own,
//! so that the kernel's per-user limits and permissions keep containers apart even where namespaces would not.
//!
//! Block 0 belongs to the platform itself (its first id is the gateway's) and to containers without a zygote; every
//! zygote gets a block for itself, and the slots that it forks into get pairs out of that block.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Ids in a block: what a user namespace customarily maps.
pub const BLOCK: u32 = 65_536;

/// The uid and gid of a container's own code, inside.
pub(crate) const INSIDE: u32 = 1000;

// The ids below are for a zygote's own accounts; a pair for every slot follows.
const FIRST_PAIR: u32 = 1002;
const PAIRS: u32 = (BLOCK - FIRST_PAIR) / 2;

/// A range of the host's user ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id.
    pub first: u32,
    /// How many blocks of [`BLOCK`] ids it has, at least two.
    pub blocks: u32,
}

impl Default for IdRange {
    /// Right above what systemd keeps for containers, below its "foreign" ids: nobody's by its table of ids.
    fn default() -> Self {
        Self { first: 1_879_048_192, blocks: 256 }
    }
}

/// The range overlaps ids that an account or a sub-id table of the host has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("user ids {first}-{last} for containers overlap {what}; choose another range with --id-range")]
pub struct IdClash {
    first: u32,
    last: u32,
    what: String,
}

/// A range that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no range of user ids: write FIRST:BLOCKS, such as 1879048192:256, from 65536 on, two blocks of 65536 at least"
)]
pub struct IdRangeError(String);

impl std::str::FromStr for IdRange {
    type Err = IdRangeError;

    fn from_str(text: &str) -> Result<Self, IdRangeError> {
        let parsed = text.split_once(':').and_then(|(first, blocks)| {
            let range = Self { first: first.parse().ok()?, blocks: blocks.parse().ok()? };
            // The last of all numbers means "no id" to the kernel.
            let end = u64::from(range.first) + u64::from(range.blocks) * u64::from(BLOCK);
            (range.first >= BLOCK && range.blocks >= 2 && end < u64::from(u32::MAX)).then_some(range)
        });
        parsed.ok_or_else(|| IdRangeError(text.to_owned()))
    }
}

impl IdRange {
    /// The ranges that a server may choose from when it is told none: the default and what follows it, up to the ids that
    /// systemd calls foreign. One for each server on a machine, so that no two share a user.
    pub fn choices() -> impl Iterator<Item = Self> {
        let default = Self::default();
        (0..15).map(move |number| Self { first: default.first + number * default.blocks * BLOCK, ..default })
    }

    /// The id that the gateway runs as.
    pub fn gateway(&self) -> u32 {
        self.first
    }

    /// The first id of block `number`.
    pub fn block(&self, number: u32) -> u32 {
        self.first + number * BLOCK
    }

    fn last(&self) -> u32 {
        self.first + (self.blocks * BLOCK - 1)
    }

    /// Looks for clashes with the texts of passwd(5) and subuid(5).
    pub fn check(&self, passwd: &str, subuid: &str) -> Result<(), IdClash> {
        let clash = |what: String| IdClash { first: self.first, last: self.last(), what };
        for line in passwd.lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(uid)) = (fields.next(), fields.nth(1).and_then(|uid| uid.parse().ok()))
                && (self.first..=self.last()).contains(&uid)
            {
                return Err(clash(format!("the account {name}")));
            }
        }
        for line in subuid.lines() {
            let mut fields = line.split(':');
            let name = fields.next().unwrap_or_default();
            let mut number = || fields.next().and_then(|field| field.parse::<u32>().ok());
            if let (Some(first), Some(count)) = (number(), number())
                && first <= self.last()
                && first.saturating_add(count) > self.first
            {
                return Err(clash(format!("the subordinate ids of {name}")));
            }
        }
        Ok(())
    }
}

/// Two ids of a container, relative to its block: for its uid 0 and for its uid 1000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair(u32);

impl Pair {
    /// The lines of its uid_map and gid_map, where the parent namespace calls the block's first id `base`.
    pub fn map(self, base: u32) -> String {
        let first = base + FIRST_PAIR + 2 * self.0;
        format!("0 {first} 1\n{INSIDE} {} 1\n", first + 1)
    }

    /// The host's id of the container's own code, in a block that starts at `base`.
    pub fn outside(self, base: u32) -> u32 {
        base + FIRST_PAIR + 2 * self.0 + 1
    }
}

impl Pair {
    /// One for the process `number`, where nobody deals them.
    pub(crate) fn for_process(number: u32) -> Self {
        Self(number % PAIRS)
    }

    /// The host's ids of the container's PID 1 and of its own code, in a block that starts at `base`.
    pub(crate) fn both(self, base: u32) -> [u32; 2] {
        [self.outside(base) - 1, self.outside(base)]
    }
}

/// Deals pairs out of one block; a pair is handed out again only after it came back.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    taken: BTreeSet<Pair>,
    next: u32,
}

impl Pairs {
    /// A free pair, `None` when all of them are in use.
    pub(crate) fn take(&mut self) -> Option<Pair> {
        for _ in 0..PAIRS {
            let pair = Pair(self.next);
            self.next = (self.next + 1) % PAIRS;
            if self.taken.insert(pair) {
                return Some(pair);
            }
        }
        None
    }

    /// Gives a pair back, when no process has its ids any more.
    pub(crate) fn give_back(&mut self, pair: Pair) {
        self.taken.remove(&pair);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_and_bounded() {
        assert_eq!("1879048192:256".parse(), Ok(IdRange::default()));
        for bad in ["", "1", "x:2", "0:2", "65536:1", "4294901760:2", "65536:65536", "-1:2"] {
            assert!(bad.parse::<IdRange>().is_err(), "{bad}");
        }
        assert!(IdRange::choices().all(|range| range.last() < 0x7ffe_0000));
    }

    #[test]
    fn maps_stay_in_their_block_and_apart() {
        let mut pairs = Pairs::default();
        let (a, b) = (pairs.take().unwrap(), pairs.take().unwrap());
        assert_eq!(a.map(0), "0 1002 1\n1000 1003 1\n");
        assert_eq!(b.map(100), "0 1104 1\n1000 1105 1\n");
        assert!(Pair(PAIRS - 1).outside(0) < BLOCK);
    }

    #[test]
    fn a_pair_in_use_is_not_dealt_again() {
        let mut pairs = Pairs::default();
        let all: BTreeSet<Pair> = std::iter::from_fn(|| pairs.take()).collect();
        assert_eq!(all.len(), PAIRS as usize);
        pairs.give_back(Pair(7));
        assert_eq!(pairs.take(), Some(Pair(7)));
    }

    #[test]
    fn clashes_are_named() {
        let range = IdRange { first: 100_000, blocks: 2 };
        assert_eq!(range.check("root:x:0:0::/root:/bin/sh", "alice:300000:65536"), Ok(()));
        let error = range.check("", "alice:165536:65536").unwrap_err();
        insta::assert_snapshot!(error, @"user ids 100000-231071 for containers overlap the subordinate ids of alice; choose another range with --id-range");
        assert!(range.check("bob:x:100001:100::/:", "").is_err());
    }
}
