//! Modules in groups: those of one wheel that the same wants import and the same nodes have. No node needs to be told apart by
//! them, so a package's hundred modules are mostly one.

use std::collections::{BTreeMap, HashMap};

use super::bits::Bits;
use super::{Cost, Costs, Module, Origin, Wheel, Wheels};

/// Wheels by number.
pub(super) struct Numbered<'a> {
    wheels: Vec<(&'a String, &'a Wheel)>,
    numbers: HashMap<(&'a String, &'a Wheel), usize>,
}

impl<'a> Numbered<'a> {
    /// Of all `locks`.
    pub(super) fn new(locks: impl Iterator<Item = &'a Wheels>) -> Self {
        let (mut wheels, mut numbers) = (Vec::new(), HashMap::new());
        for wheel in locks.flatten() {
            numbers.entry(wheel).or_insert_with(|| {
                wheels.push(wheel);
                wheels.len() - 1
            });
        }
        Self { wheels, numbers }
    }

    pub(super) fn len(&self) -> usize {
        self.wheels.len()
    }

    /// A lock's numbers by distribution. What no other lock has, if it was not numbered, is left out.
    pub(super) fn of<'b>(&self, lock: &'b Wheels) -> BTreeMap<&'b str, usize> {
        let number = |(name, wheel): (&'b String, &'b Wheel)| {
            Some((name.as_str(), *self.numbers.get(&(name, wheel))?))
        };
        lock.iter().filter_map(number).collect()
    }

    pub(super) fn wheel(&self, number: usize) -> (&'a String, &'a Wheel) {
        self.wheels[number]
    }

    pub(super) fn module(&self, wheel: Option<usize>, name: &str) -> Module {
        let origin = wheel.map(|wheel| {
            let (distribution, Wheel { sha256, .. }) = self.wheels[wheel];
            Origin { distribution: distribution.clone(), sha256: sha256.clone() }
        });
        Module { origin, name: name.to_owned() }
    }
}

/// A module: its wheel's number, none for the standard library, and its name.
pub(super) type Numeral<'a> = (Option<usize>, &'a str);

/// See above.
pub(super) struct Group<'a> {
    pub(super) wheel: Option<usize>,
    pub(super) names: Vec<&'a str>,
    pub(super) cost: Cost,
}

/// The groups of all modules in `sets`, and the sets by groups.
pub(super) fn groups<'a>(
    sets: &[Vec<Numeral<'a>>],
    numbered: &Numbered<'_>,
    costs: &Costs,
) -> (Vec<Group<'a>>, Vec<Bits>) {
    // Only looked up in, so its order does not matter.
    let mut numbers = HashMap::<Numeral<'_>, usize>::new();
    let mut modules: Vec<(Numeral<'a>, Vec<usize>)> = Vec::new();
    for (set, members) in sets.iter().enumerate() {
        for module in members {
            let number = *numbers.entry(*module).or_insert_with(|| {
                modules.push((*module, Vec::new()));
                modules.len() - 1
            });
            modules[number].1.push(set);
        }
    }
    let mut groups = BTreeMap::<(Option<usize>, Vec<usize>), Group<'a>>::new();
    for ((wheel, name), sets) in modules {
        let empty = || Group { wheel, names: Vec::new(), cost: Cost::default() };
        let group = groups.entry((wheel, sets)).or_insert_with(empty);
        group.names.push(name);
        group.cost = group.cost.plus(costs.of(&numbered.module(wheel, name)));
    }
    let mut bits = vec![Bits::new(groups.len()); sets.len()];
    for (number, (_, members)) in groups.keys().enumerate() {
        members.iter().for_each(|set| bits[*set].insert(number));
    }
    (groups.into_values().collect(), bits)
}
