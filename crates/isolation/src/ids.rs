//! The user ids that containers have outside: a range of the host's ids that nothing else uses, dealt out in blocks.
//!
//! Inside, a container's own code is always uid 1000 and its PID 1 uid 0; outside, each container has two ids of its own,
//! so that the kernel's per-user limits and permissions keep containers apart even where namespaces would not.
//!
//! Block 0 belongs to the platform itself (its first id is the gateway's) and to containers without a zygote. The other blocks are
//! dealt to the zygotes, as [`Span`]s: each has one for itself, within that of the zygote that it was forked from, since a user namespace
//! maps no id that its parent does not have. The lower quarter of a span is for pairs, for the slots that the zygote forks
//! into, the rest for the spans of zygotes that are forked from it.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Ids in a block: what a user namespace customarily maps.
pub const BLOCK: u32 = 65_536;

/// The uid and gid of a container's own code, inside.
pub(crate) const INSIDE: u32 = 1000;

// The ids below are for the gateway or the zygote itself; a pair for every slot follows.
const FIRST_PAIR: u32 = 16;
const PAIRS: u32 = (BLOCK - FIRST_PAIR) / 2;

/// The ids of a zygote: consecutive ones of the host's. Inside, they begin with 0, which is the zygote itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u32,
    count: u32,
}

/// The least that is worth dealing: 56 slots.
const LEAST_SPAN: u32 = 512;

/// Each child gets an eighth of what is left, so that the first ones have room for trees of their own, and yet there are many: of a zygote that
/// was forked from none about fifty, of the first of those 32, of the first of those 15, and of the first of those three, which have none.
const SHARE: u32 = 8;

/// Spans that are to be dealt, the largest first.
#[derive(Debug)]
pub(crate) struct Spans {
    free: BTreeSet<(u32, Reverse<u32>)>,
    /// With those that are in use.
    pub(crate) count: u32,
}

impl Spans {
    pub(crate) fn take(&mut self) -> Option<Span> {
        let (count, Reverse(first)) = self.free.pop_last()?;
        Some(Span { first, count })
    }

    /// When nothing has its ids any more.
    pub(crate) fn give_back(&mut self, span: Span) {
        self.free.insert((span.count, Reverse(span.first)));
    }
}

impl FromIterator<Span> for Spans {
    fn from_iter<I: IntoIterator<Item = Span>>(spans: I) -> Self {
        let free: BTreeSet<_> = spans.into_iter().map(|span| (span.count, Reverse(span.first))).collect();
        Self { count: free.len() as u32, free }
    }
}

impl Span {
    /// The line of the uid_map and gid_map of a namespace that has it, where the parent namespace is that of `parent`, or the host's.
    pub(crate) fn map(self, parent: Option<Self>) -> String {
        format!("0 {} {}\n", self.first - parent.map_or(0, |parent| parent.first), self.count)
    }

    /// Whether all of `other` is in it.
    pub(crate) fn has(self, other: Self) -> bool {
        other.first >= self.first && other.first + other.count <= self.first + self.count
    }

    /// What may be dealt to zygotes that are forked from this one's, the largest first.
    pub(crate) fn children(self) -> Vec<Self> {
        let mut children = Vec::new();
        // Each begins at a multiple of the least: a zygote is known by its number.
        let whole = |count: u32| count.next_multiple_of(LEAST_SPAN);
        let (mut first, end) = (self.first + whole(self.count / 4), self.first + self.count);
        while first + LEAST_SPAN <= end {
            let count = whole((end - first) / SHARE).max(LEAST_SPAN);
            children.push(Self { first, count });
            first += count;
        }
        children
    }

    /// The pairs of the slots that it forks into.
    pub(crate) fn pairs(self) -> Pairs {
        Pairs::of((self.count / 4 - FIRST_PAIR) / 2)
    }
}

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

    /// What may be dealt to zygotes that are forked from none: room for a tree beneath each.
    pub(crate) fn spans(&self) -> Vec<Span> {
        // One for each interpreter of a server, and for a new one while an old one's remains are taken away.
        const TREES: u32 = 8;
        let blocks = ((self.blocks - 1) / TREES).max(1);
        let span = |number: u32| Span { first: self.block(1 + number * blocks), count: blocks * BLOCK };
        (0..(self.blocks - 1) / blocks).rev().map(span).collect()
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

/// Deals pairs out of one block or span; a pair is handed out again only after it came back.
#[derive(Debug)]
pub(crate) struct Pairs {
    taken: BTreeSet<Pair>,
    next: u32,
    count: u32,
}

impl Default for Pairs {
    /// Those of a block.
    fn default() -> Self {
        Self::of(PAIRS)
    }
}

impl Pairs {
    fn of(count: u32) -> Self {
        Self { taken: BTreeSet::new(), next: 0, count }
    }

    /// How many there are, those in use included.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Whether half of them are in use.
    pub(crate) fn is_scarce(&self) -> bool {
        self.taken.len() >= self.count as usize / 2
    }

    /// A free pair, `None` when all of them are in use.
    pub(crate) fn take(&mut self) -> Option<Pair> {
        for _ in 0..self.count {
            let pair = Pair(self.next);
            self.next = (self.next + 1) % self.count;
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
        assert_eq!(a.map(0), "0 16 1\n1000 17 1\n");
        assert_eq!(b.map(100), "0 118 1\n1000 119 1\n");
        assert!(Pair(PAIRS - 1).outside(0) < BLOCK);
    }

    /// Down to the last: every span lies in its parent's, apart from its siblings' and from the parent's own pairs.
    fn check_beneath(span: Span, depth: usize) -> usize {
        let mut end = Pair(span.pairs().count - 1).outside(span.first) + 1;
        assert!(end > span.first + 50, "{span:?}");
        let children = span.children();
        assert!(children.is_sorted_by(|a, b| a.count >= b.count));
        let deepest = children.first().map_or(depth, |child| check_beneath(*child, depth + 1));
        for child in children {
            assert!(child.first >= end, "{child:?} in {span:?}");
            end = child.first + child.count;
        }
        assert!(end <= span.first + span.count);
        deepest
    }

    #[test]
    fn spans_nest() {
        let all = IdRange::default().spans();
        let fits = |span: Span| std::iter::successors(Some(span), |span| span.children().first().copied());
        let many: Vec<usize> = fits(all[0]).map(|span| span.children().len()).collect();
        assert_eq!((all.len(), &many[..]), (8, &[49, 32, 15, 3, 0][..]));
        assert!(all.iter().all(|span| check_beneath(*span, 0) == 4));
        assert_eq!(all.iter().map(|span| span.first).min(), Some(IdRange::default().block(1)));
        let least = IdRange { first: 65_536, blocks: 2 }.spans();
        assert_eq!((least.len(), check_beneath(least[0], 0)), (1, 3));
        let (parent, child) = (all[0], all[0].children()[0]);
        assert_eq!(child.map(Some(parent)), format!("0 {} {}\n", child.first - parent.first, child.count));
    }

    #[test]
    fn the_largest_span_is_dealt_first_and_again_when_it_came_back() {
        let mut spans: Spans = IdRange::default().spans()[0].children().into_iter().collect();
        let first = spans.take().unwrap();
        let others: Vec<Span> = std::iter::from_fn(|| spans.take()).collect();
        assert_eq!((others.len() as u32 + 1, others[0].count <= first.count), (spans.count, true));
        spans.give_back(others[9]);
        spans.give_back(first);
        assert_eq!([spans.take(), spans.take(), spans.take()], [Some(first), Some(others[9]), None]);
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
