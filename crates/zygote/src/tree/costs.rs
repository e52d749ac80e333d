//! What was learnt about modules.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Module, Origin};

/// What importing a module costs, without what it imports in turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Time.
    pub micros: f64,
    /// Private memory.
    pub bytes: f64,
}

impl Cost {
    pub(super) fn plus(self, other: Self) -> Self {
        Self { micros: self.micros + other.micros, bytes: self.bytes + other.bytes }
    }

    /// What a module is taken to cost that was never seen: it is a name from a scan, which stands for all that it imports, a package of
    /// middling size.
    pub const UNSEEN: Self = Self { micros: 10_000.0, bytes: 2e6 };

    /// No more than `most` in either.
    pub fn at_most(self, most: Self) -> Self {
        Self { micros: self.micros.min(most.micros), bytes: self.bytes.min(most.bytes) }
    }

    fn is_plausible(self) -> bool {
        let plausible = |value: f64| (0.0..=1e12).contains(&value);
        plausible(self.micros) && plausible(self.bytes)
    }
}

/// Weight of the newest observation. Imports are seldom observed again, and the first one is often the slow one, whose files
/// were not in memory: three more have to outweigh it.
const NEWEST: f64 = 0.3;

/// What is known of all modules. Kept over a restart, it makes the same tree again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<(Module, Cost)>", into = "Vec<(Module, Cost)>")]
pub struct Costs(BTreeMap<Option<Origin>, BTreeMap<String, Cost>>);

impl Costs {
    /// What importing `module` is expected to cost.
    pub fn of(&self, module: &Module) -> Cost {
        let known = self.0.get(&module.origin).and_then(|modules| modules.get(&module.name));
        known.copied().unwrap_or(Cost::UNSEEN)
    }

    /// Whether `module` was observed.
    pub fn knows(&self, module: &Module) -> bool {
        self.0.get(&module.origin).is_some_and(|modules| modules.contains_key(&module.name))
    }

    /// Takes an observation in: an exponentially weighted mean. What cannot be true is left out.
    pub fn observe(&mut self, module: Module, cost: Cost) {
        if !cost.is_plausible() {
            return;
        }
        let of_origin = self.0.entry(module.origin).or_default();
        let known = of_origin.entry(module.name).or_insert(cost);
        known.micros += NEWEST * (cost.micros - known.micros);
        known.bytes += NEWEST * (cost.bytes - known.bytes);
    }

    /// Forgets the distributions that `is_used` says no of; without it they would pile up with every new version.
    pub fn retain(&mut self, is_used: impl Fn(&Origin) -> bool) {
        self.0.retain(|origin, _| origin.as_ref().is_none_or(&is_used));
    }
}

/// From a file that anybody may have written.
impl From<Vec<(Module, Cost)>> for Costs {
    fn from(list: Vec<(Module, Cost)>) -> Self {
        let mut costs = Self::default();
        for (module, cost) in list {
            costs.observe(module, cost);
        }
        costs
    }
}

impl From<Costs> for Vec<(Module, Cost)> {
    fn from(costs: Costs) -> Self {
        let of_origin = |(origin, modules): (Option<Origin>, BTreeMap<String, Cost>)| {
            modules.into_iter().map(move |(name, cost)| (Module { origin: origin.clone(), name }, cost))
        };
        costs.0.into_iter().flat_map(of_origin).collect()
    }
}
