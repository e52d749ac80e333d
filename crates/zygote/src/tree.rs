//! The tree of zygotes: which nodes are worth their memory, and which of them serves whom. Pure.
//!
//! A function starts by forking a node, and then imports what the node has not. Of every module `m` the zygotes' recorder
//! tells `micros(m)` and `bytes(m)`: time and private memory of its own, without those of what it imports in turn, so
//! that they add up over any set of modules. For a [`Want`] `w` (functions alike) and a node `n`:
//!
//! ```text
//! saved(w, n) = Σ micros(m)           over the modules of n that w imports
//! node(w)     = of the compatible nodes, the one with most saved(w, n); among equals, the one with fewer bytes
//! parent(n)   = of the compatible nodes whose modules n has too, the one with most micros
//! bytes(n)    = BASE + Σ bytes(m)     over the modules of n that parent(n) has not
//! benefit     = Σ rate(w) × saved(w, node(w))
//! ```
//!
//! A node is *compatible* with a want of its runtime whose lock has all of its lock, the same wheels. With wheels it serves
//! the wants of its own tenant only. This is clause 1 of [`crate::sharing`]; the others depend on what imports did and are
//! judged when an instance is started. A node that they refuse is told to the next plan ([`Want::refused`]).
//!
//! [`plan`] begins with a root for each runtime, without imports. Its candidates are the own node of each want, what pairs
//! of wants have in common (without what imports from a distribution that they have not in common), and the nodes that exist,
//! with what they really imported. Again and again it takes the one that is worth most of those that fit into the budget:
//!
//! ```text
//! worth = Δbenefit / max(Δbytes / budget.bytes, 1 / budget.nodes)     × BONUS where the node exists already
//! ```
//!
//! This is benefit per byte, as long as memory is what the node takes the larger share of. `Δbytes` counts what other nodes
//! save by having it for a parent. A node that serves nobody any more and saves no memory as a parent is taken out.
//!
//! No clock, no random numbers, and the order of what goes in does not matter: the same server plans the same tree.

mod bits;
mod costs;
mod groups;
mod grow;
mod idle;
mod problem;
mod rate;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::scan::Import;
use crate::sharing::{Distribution, Lock};

pub use costs::{Cost, Costs};
pub use idle::{IdleInstance, keep};
pub use rate::{Rate, burst, slots, slots_at_least, spares, spares_for_bursts};

/// A distribution's file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Wheel {
    /// The distribution's version.
    pub version: String,
    /// Its hash.
    pub sha256: String,
}

impl From<&Distribution> for Wheel {
    fn from(distribution: &Distribution) -> Self {
        Self { version: distribution.version.clone(), sha256: distribution.sha256.clone() }
    }
}

/// Wheels by normalised names of their distributions.
pub type Wheels = BTreeMap<String, Wheel>;

/// Where a module comes from, if not from the standard library.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Normalised name of the distribution.
    pub distribution: String,
    /// Hash of its wheel.
    pub sha256: String,
}

/// A module of one version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Module {
    /// None for the standard library.
    pub origin: Option<Origin>,
    /// Dotted.
    pub name: String,
}

/// What makes two nodes the same. A root has neither lock nor imports.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The interpreter.
    pub runtime: String,
    /// Whose functions it may serve; none, and no matter, without a lock.
    pub tenant: Option<String>,
    /// All that its view holds.
    pub lock: Wheels,
    /// What it imports.
    pub imports: Vec<Import>,
}

impl NodeSpec {
    /// Of the node without packages, which may serve every function of its runtime.
    pub fn root(runtime: &str) -> Self {
        Self { runtime: runtime.to_owned(), ..Self::default() }
    }

    /// Whether it is one.
    pub fn is_root(&self) -> bool {
        self.lock.is_empty() && self.imports.is_empty()
    }

    /// Whether it is compatible with `want`.
    pub fn may_serve(&self, want: &Want) -> bool {
        self.runtime == want.runtime
            && (self.lock.is_empty() || self.tenant == want.tenant)
            && self.lock.iter().all(|(name, wheel)| want.lock.get(name) == Some(wheel))
            && !want.refused.contains(self)
    }
}

/// Functions that are alike, and how often a new instance of one is wanted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Want {
    /// The interpreter.
    pub runtime: String,
    /// Whose they are: those of others share no third-party code with them.
    pub tenant: Option<String>,
    /// All that their view holds.
    pub lock: Wheels,
    /// What a zygote of their own would import.
    pub imports: Vec<Import>,
    /// What importing that imports, the runtime's baseline left out, and the distribution of the lock that each module comes
    /// from: none for the standard library. See [`Want::modules_of`].
    pub modules: BTreeMap<String, Option<String>>,
    /// Which distributions of the lock each distribution's modules import from, as far as that is known. Where not all of them
    /// are there, importing it would fail, or come out otherwise.
    pub requires: BTreeMap<String, BTreeSet<String>>,
    /// New instances a second.
    pub rate: f64,
    /// Nodes that the sharing rule refused them, or whose imports failed. They are not counted on again.
    pub refused: BTreeSet<NodeSpec>,
}

impl Want {
    /// Modules by their distributions: the `learnt` ones, or while there are none those that `imports` name.
    pub fn modules_of(
        lock: &Lock,
        imports: &[Import],
        learnt: &BTreeSet<String>,
    ) -> BTreeMap<String, Option<String>> {
        let provider = |module: &str| {
            let (name, _) = lock.iter().find(|(_, distribution)| distribution.modules.contains(module))?;
            Some(name.clone())
        };
        // What a package makes up at run time is in no list of its files, but some package above it is.
        let origin = |module: &str| ancestors(module).rev().find_map(provider);
        if !learnt.is_empty() {
            return learnt.iter().map(|module| (module.clone(), origin(module))).collect();
        }
        let mut modules = BTreeMap::new();
        for Import { module, names } in imports {
            let submodules = names.iter().map(|name| format!("{module}.{name}"));
            let submodules = submodules.filter(|submodule| provider(submodule).is_some());
            for name in ancestors(module).map(str::to_owned).chain(submodules) {
                let origin = origin(&name);
                modules.insert(name, origin);
            }
        }
        modules
    }

    /// Its modules, but for those of distributions that its lock has not: no node could import them.
    pub fn imported(&self) -> BTreeSet<Module> {
        self.modules.keys().filter_map(|name| self.module(name)).collect()
    }

    fn module(&self, name: &str) -> Option<Module> {
        let origin = match self.modules.get(name)? {
            Some(distribution) => {
                let sha256 = self.lock.get(distribution)?.sha256.clone();
                Some(Origin { distribution: distribution.clone(), sha256 })
            }
            None => None,
        };
        Some(Module { origin, name: name.to_owned() })
    }
}

/// `a`, `a.b`, `a.b.c` of `a.b.c`.
fn ancestors(module: &str) -> impl DoubleEndedIterator<Item = &str> {
    module.match_indices('.').map(|(at, _)| at).chain([module.len()]).map(|end| &module[..end])
}

/// What the tree may cost. The first process of each root is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Private memory of all processes.
    pub bytes: u64,
    /// Processes.
    pub nodes: usize,
    /// Forks a second that one process is trusted with. A fork of a large one takes up to two milliseconds, in which it does
    /// nothing else, and at less than half of that load, the default, it is seldom waited for.
    pub forks: u32,
}

impl Default for Budget {
    /// Nothing but roots.
    fn default() -> Self {
        Self { bytes: 0, nodes: 0, forks: 200 }
    }
}

/// A tree, parents before their children.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Its nodes.
    pub nodes: Vec<Planned>,
}

/// A node that is worth having.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What it is.
    pub spec: NodeSpec,
    /// Index of the node that it is forked from; none of a root.
    pub parent: Option<usize>,
    /// What it is expected to have imported.
    pub modules: BTreeSet<Module>,
    /// Private memory of each of its processes.
    pub bytes: u64,
    /// Microseconds that it saves each second.
    pub saved: f64,
    /// Processes, one at least.
    pub replicas: u32,
    /// Indices of the wants that it serves. Every want has one node.
    pub serves: Vec<usize>,
}

/// Memory of a forked interpreter that has imported nothing: its heap's pages that reference counts touch, page tables, stack.
pub const BASE_BYTES: f64 = 2e6;

/// A node that is there or was, with what it says it imported.
#[derive(Debug, Clone, Copy)]
pub struct Grown<'a> {
    /// What it is.
    pub spec: &'a NodeSpec,
    /// Its modules.
    pub modules: &'a BTreeSet<Module>,
    /// Private memory that it was seen to have beyond what its modules are taken to cost, bytes.
    pub extra: f64,
    /// Forks a second that it was asked for of late: rates are means, of which bursts are little.
    pub recent: f64,
    /// Whether it is there still. What one turned out to be that is not any more counts as much: planned as what it might be, it would be
    /// started again, and ended again for what it is.
    pub runs: bool,
}

impl<'a> Grown<'a> {
    /// One that is there and is what it is taken for.
    pub fn new(spec: &'a NodeSpec, modules: &'a BTreeSet<Module>) -> Self {
        Self { spec, modules, extra: 0.0, recent: 0.0, runs: true }
    }
}

/// The tree that is worth most for `wants` within `budget`, as far as a greedy choice finds it.
pub fn plan(wants: &[Want], costs: &Costs, budget: Budget, existing: &[Grown<'_>]) -> Plan {
    let problem = problem::Problem::new(wants, costs, existing);
    grow::Tree::new(&problem, budget).grow().plan()
}

/// The best of `nodes` for `want`: of the compatible ones the one that saves most, among equals the one with fewer bytes.
///
/// Not for every request: the answer holds until nodes or want change.
pub fn best(nodes: &[Grown<'_>], want: &Want, costs: &Costs) -> Option<usize> {
    let wanted = want.imported();
    let value = |node: &Grown<'_>| {
        let saved: f64 = node.modules.intersection(&wanted).map(|module| costs.of(module).micros).sum();
        let bytes: f64 = node.modules.iter().map(|module| costs.of(module).bytes).sum();
        (saved, -bytes)
    };
    let compatible = nodes.iter().enumerate().filter(|(_, node)| node.spec.may_serve(want));
    let valued = compatible.map(|(index, node)| (value(node), index));
    let best = valued.max_by(|(a, i), (b, j)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(j.cmp(i)));
    best.map(|(_, index)| index)
}

#[cfg(test)]
mod tests;
