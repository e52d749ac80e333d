//! What a plan chooses from: wants and candidates as sets of small numbers, and which candidate may do what.

use std::collections::{BTreeMap, BTreeSet};

use super::bits::Bits;
use super::groups::{Group, Numbered, Numeral, groups};
use super::{Cost, Costs, Grown, Import, Module, NodeSpec, Want, Wheels};

/// What is deployed and is not invoked counts as one start an hour: enough for a node while there is room, nothing beside
/// what was invoked lately.
const FLOOR_RATE: f64 = 1.0 / 3600.0;

/// More than any machine starts.
const MOST_RATE: f64 = 1e6;

/// Only the wants that have most to save take part in pairs: there are as many as a plan can look at in time, and packages that
/// many functions have are found among them.
pub(super) const PAIRED: usize = 24;

/// A want in numbers. They stand in an order of their own, so that the order they came in does not matter.
pub(super) struct Wanted<'a> {
    pub(super) want: &'a Want,
    /// Its index as the caller knows it.
    pub(super) index: usize,
    pub(super) rate: f64,
    lock: Bits,
    modules: Bits,
}

/// A node that there could be.
pub(super) struct Candidate {
    pub(super) spec: NodeSpec,
    pub(super) exists: bool,
    pub(super) cost: Cost,
    /// Memory that it has beside its modules', bytes.
    pub(super) extra: f64,
    /// Forks a second that it was asked for of late.
    pub(super) recent: f64,
    /// For each want (by its place here) that it may serve and saves something: microseconds.
    pub(super) saves: Vec<(usize, f64)>,
    /// Candidates that it could be forked from, the best first.
    pub(super) above: Vec<usize>,
    /// Candidates that could be forked from it.
    pub(super) below: Vec<usize>,
    lock: Bits,
    modules: Bits,
}

/// Wants, and candidates in an order in which whatever could be a parent comes first.
pub(super) struct Problem<'a> {
    pub(super) wants: Vec<Wanted<'a>>,
    pub(super) candidates: Vec<Candidate>,
    groups: Vec<Group<'a>>,
    wheels: Numbered<'a>,
}

/// Two candidates with the same of these are of the same use.
type Use = (String, Option<String>, Bits, Bits);

impl<'a> Problem<'a> {
    pub(super) fn new(wants: &'a [Want], costs: &Costs, existing: &[Grown<'a>]) -> Self {
        let wants = in_order(wants);
        let existing = useful(existing, &wants);
        let wheels = Numbered::new(wants.iter().map(|(_, want)| &want.lock));
        let locks: Vec<_> = wants.iter().map(|(_, want)| wheels.of(&want.lock)).collect();
        let imported = wants.iter().zip(&locks).map(|((_, want), lock)| imported(want, lock));
        let had = existing.iter().map(|(spec, grown)| had(spec, grown.modules, &wheels));
        let (groups, mut sets) = groups(&imported.chain(had).collect::<Vec<_>>(), &wheels, costs);
        let of_existing = sets.split_off(wants.len());
        let wanted = wants.into_iter().zip(sets).zip(&locks).map(|(((index, want), modules), lock)| {
            // What cannot be true must not be all that counts.
            let rate = if want.rate.is_nan() { FLOOR_RATE } else { want.rate.clamp(FLOOR_RATE, MOST_RATE) };
            Wanted { want, index, rate, lock: bits(lock, wheels.len()), modules }
        });
        let wanted = wanted.collect();
        let mut problem = Self { wants: wanted, candidates: Vec::new(), groups, wheels };
        let existing = existing.into_iter().zip(of_existing);
        let existing = existing.map(|((spec, grown), modules)| (spec, (grown, modules))).collect();
        problem.find_candidates(&existing);
        problem.relate();
        problem
    }

    /// What a candidate is expected to import.
    pub(super) fn modules(&self, candidate: &Candidate) -> BTreeSet<Module> {
        let of_group = |group: usize| {
            let Group { wheel, names, .. } = &self.groups[group];
            names.iter().map(|name| self.wheels.module(*wheel, name))
        };
        candidate.modules.iter().flat_map(of_group).collect()
    }

    /// Whether `a` is the better parent: more time, then more memory that is shared.
    pub(super) fn is_better_parent(&self, a: usize, b: usize) -> bool {
        let [one, other] = [a, b].map(|index| &self.candidates[index].cost);
        let by_time = one.micros.total_cmp(&other.micros);
        by_time.then(one.bytes.total_cmp(&other.bytes)).then(b.cmp(&a)).is_gt()
    }

    fn find_candidates(&mut self, existing: &BTreeMap<&NodeSpec, (Grown<'_>, Bits)>) {
        let mut specs = BTreeMap::<NodeSpec, (Bits, Bits)>::new();
        // Of what exists it is known what it has.
        for (spec, (_, modules)) in existing {
            let lock = bits(&self.wheels.of(&spec.lock), self.wheels.len());
            specs.insert((*spec).clone(), (lock, modules.clone()));
        }
        let mut add = |spec: NodeSpec, lock: Bits, modules: Bits| {
            if existing.contains_key(&spec) {
                return;
            }
            let known = specs.entry(spec).or_insert_with(|| (lock.clone(), modules.clone()));
            // Two functions with the same imports, of which one has not run yet: the other one knows better.
            if (known.1.len(), &known.1) < (modules.len(), &modules) {
                *known = (lock, modules);
            }
        };
        let nothing = || (Bits::new(self.wheels.len()), Bits::new(self.groups.len()));
        for wanted in &self.wants {
            let (no_lock, no_modules) = nothing();
            add(NodeSpec::root(&wanted.want.runtime), no_lock, no_modules);
            if let Some((spec, lock)) = self.own(wanted) {
                add(spec, lock, wanted.modules.clone());
            }
        }
        let paired = self.paired();
        for (at, a) in paired.iter().enumerate() {
            for b in &paired[at + 1..] {
                let (a, b) = (&self.wants[*a.min(b)], &self.wants[*a.max(b)]);
                if let Some((spec, lock, modules)) = self.in_common(a, b) {
                    add(spec, lock, modules);
                }
            }
        }
        let mut found = BTreeMap::<Use, NodeSpec>::new();
        for (spec, (lock, modules)) in specs {
            let of_use = (spec.runtime.clone(), spec.tenant.clone(), lock, modules);
            // Of two of the same use, the one that exists is as good and is there.
            if existing.get(&spec).is_some_and(|(grown, _)| grown.runs) {
                found.insert(of_use, spec);
            } else {
                found.entry(of_use).or_insert(spec);
            }
        }
        let candidate = |((_, _, lock, modules), spec): (Use, NodeSpec)| {
            let costs = modules.iter().map(|group| self.groups[group].cost);
            let cost = costs.fold(Cost::default(), Cost::plus);
            let known = existing.get(&spec).map(|(grown, _)| *grown);
            let exists = known.is_some_and(|known| known.runs);
            let (extra, recent) = known.map_or((0.0, 0.0), |known| (known.extra, known.recent));
            let saves = Vec::new();
            Candidate {
                spec,
                exists,
                cost,
                extra,
                recent,
                saves,
                above: Vec::new(),
                below: Vec::new(),
                lock,
                modules,
            }
        };
        // In this order a subset of a set stands before it, and what serves all tenants before what serves one.
        self.candidates = found.into_iter().map(candidate).collect();
    }

    /// The node that imports all that a want does, out of its whole lock: to the want itself it is sound whatever it looks up.
    fn own(&self, wanted: &Wanted<'_>) -> Option<(NodeSpec, Bits)> {
        if wanted.modules.is_empty() {
            return None;
        }
        let Want { runtime, tenant, lock, imports, .. } = wanted.want;
        let is_standard = wanted.modules.iter().all(|group| self.groups[group].wheel.is_none());
        let (tenant, lock, bits) = if is_standard {
            (None, Wheels::new(), Bits::new(self.wheels.len()))
        } else {
            (tenant.clone(), lock.clone(), wanted.lock.clone())
        };
        let spec = NodeSpec { runtime: runtime.clone(), tenant, lock, imports: imports.clone() };
        (!spec.is_root()).then_some((spec, bits))
    }

    /// The node with all modules that both import from the same wheels.
    fn in_common(&self, a: &Wanted<'_>, b: &Wanted<'_>) -> Option<(NodeSpec, Bits, Bits)> {
        if a.want.runtime != b.want.runtime {
            return None;
        }
        let shared = a.modules.intersection(&b.modules);
        let wheels = self.wheels_in_common(a, b, &shared);
        let (mut lock, mut modules) = (Bits::new(self.wheels.len()), Bits::new(self.groups.len()));
        wheels.values().for_each(|wheel| lock.insert(*wheel));
        let mut names = BTreeSet::new();
        for group in
            shared.iter().filter(|group| self.groups[*group].wheel.is_none_or(|wheel| lock.contains(wheel)))
        {
            modules.insert(group);
            names.extend(&self.groups[group].names);
        }
        let imports = imports_in_common(&names, &a.want.imports, &b.want.imports);
        if imports.is_empty() {
            return None;
        }
        let wheels = wheels.values().map(|wheel| self.wheels.wheel(*wheel));
        let wheels: Wheels = wheels.map(|(name, wheel)| (name.clone(), wheel.clone())).collect();
        let tenant = a.want.tenant.clone().filter(|_| !wheels.is_empty());
        let runtime = a.want.runtime.clone();
        Some((NodeSpec { runtime, tenant, lock: wheels, imports }, lock, modules))
    }

    /// The wheels of `shared` modules, without those whose modules import from one that is not among them.
    fn wheels_in_common(&self, a: &Wanted<'_>, b: &Wanted<'_>, shared: &Bits) -> BTreeMap<&'a str, usize> {
        if a.want.tenant != b.want.tenant {
            return BTreeMap::new();
        }
        let wheels = shared.iter().filter_map(|group| self.groups[group].wheel);
        let named = wheels.map(|wheel| (self.wheels.wheel(wheel).0.as_str(), wheel));
        let mut common: BTreeMap<&str, usize> = named.collect();
        loop {
            let lacks = |name: &str| {
                let required =
                    [a, b].into_iter().filter_map(|wanted| wanted.want.requires.get(name)).flatten();
                required.into_iter().any(|required| !common.contains_key(required.as_str()))
            };
            let lacking: Vec<&str> = common.keys().copied().filter(|name| lacks(name)).collect();
            if lacking.is_empty() {
                return common;
            }
            lacking.into_iter().for_each(|name| {
                common.remove(name);
            });
        }
    }

    /// The wants that take part in pairs: of those that are alike in all that matters for it, one.
    fn paired(&self) -> Vec<usize> {
        let value = |wanted: &Wanted<'_>| {
            let micros: f64 = wanted.modules.iter().map(|group| self.groups[group].cost.micros).sum();
            wanted.rate * micros
        };
        let mut by_value: Vec<_> = self.wants.iter().map(value).enumerate().collect();
        by_value.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
        let mut seen = BTreeSet::new();
        by_value.retain(|(place, _)| {
            let Wanted { want, modules, .. } = &self.wants[*place];
            seen.insert((&want.runtime, &want.tenant, modules))
        });
        by_value.into_iter().take(PAIRED).map(|(place, _)| place).collect()
    }

    /// Which candidate serves whom, and which can be whose parent.
    fn relate(&mut self) {
        let micros: Vec<f64> = self.groups.iter().map(|group| group.cost.micros).collect();
        for candidate in &mut self.candidates {
            let compatible = self.wants.iter().enumerate().filter(|(_, wanted)| {
                // The lock in numbers says no soonest.
                candidate.lock.is_subset(&wanted.lock) && candidate.spec.may_serve(wanted.want)
            });
            let saved =
                compatible.map(|(place, wanted)| (place, candidate.modules.weigh(&wanted.modules, &micros)));
            candidate.saves = saved.filter(|(_, micros)| *micros > 0.0).collect();
        }
        let mut pairs = Vec::new();
        for (child, of_child) in self.candidates.iter().enumerate() {
            for (parent, of_parent) in self.candidates[..child].iter().enumerate() {
                if of_parent.modules.is_subset(&of_child.modules)
                    && of_parent.lock.is_subset(&of_child.lock)
                    && of_parent.spec.runtime == of_child.spec.runtime
                    && (of_parent.spec.lock.is_empty() || of_parent.spec.tenant == of_child.spec.tenant)
                {
                    pairs.push((parent, child));
                }
            }
        }
        for (parent, child) in pairs {
            let place =
                self.candidates[child].above.partition_point(|other| self.is_better_parent(*other, parent));
            self.candidates[child].above.insert(place, parent);
            self.candidates[parent].below.push(child);
        }
    }
}

/// In the order of what they are, with their indices.
fn in_order(wants: &[Want]) -> Vec<(usize, &Want)> {
    let mut wants: Vec<(usize, &Want)> = wants.iter().enumerate().collect();
    wants.sort_by(|(_, a), (_, b)| {
        let by_place = (&a.runtime, &a.tenant).cmp(&(&b.runtime, &b.tenant));
        by_place
            .then_with(|| a.imports.cmp(&b.imports))
            .then_with(|| a.lock.cmp(&b.lock))
            .then_with(|| a.modules.cmp(&b.modules))
            .then_with(|| a.requires.cmp(&b.requires))
            .then_with(|| a.refused.cmp(&b.refused))
            .then_with(|| a.rate.total_cmp(&b.rate))
    });
    wants
}

/// The nodes that some want could use, and what they have. Of two processes of one node, one.
fn useful<'a>(existing: &[Grown<'a>], wants: &[(usize, &Want)]) -> BTreeMap<&'a NodeSpec, Grown<'a>> {
    let mut useful = BTreeMap::<&NodeSpec, Grown<'_>>::new();
    for grown in existing {
        if wants.iter().any(|(_, want)| grown.spec.may_serve(want)) {
            let known = useful.entry(grown.spec).or_insert(*grown);
            known.modules = known.modules.max(grown.modules);
            known.extra = known.extra.max(grown.extra);
            known.recent = known.recent.max(grown.recent);
            known.runs |= grown.runs;
        }
    }
    useful
}

fn bits(lock: &BTreeMap<&str, usize>, bound: usize) -> Bits {
    let mut bits = Bits::new(bound);
    lock.values().for_each(|wheel| bits.insert(*wheel));
    bits
}

/// What a want imports and a node can import.
fn imported<'a>(want: &'a Want, lock: &BTreeMap<&str, usize>) -> Vec<Numeral<'a>> {
    let number = |(name, distribution): (&'a String, &Option<String>)| match distribution {
        Some(distribution) => Some((Some(*lock.get(distribution.as_str())?), name.as_str())),
        None => Some((None, name.as_str())),
    };
    want.modules.iter().filter_map(number).collect()
}

/// What a node has.
fn had<'a>(spec: &NodeSpec, modules: &'a BTreeSet<Module>, wheels: &Numbered<'_>) -> Vec<Numeral<'a>> {
    let lock = wheels.of(&spec.lock);
    let number = |Module { origin, name }: &'a Module| match origin {
        Some(origin) => Some((Some(*lock.get(origin.distribution.as_str())?), name.as_str())),
        None => Some((None, name.as_str())),
    };
    modules.iter().filter_map(number).collect()
}

/// The imports of both that lead to nothing but `common` modules, and the packages among those.
fn imports_in_common(common: &BTreeSet<&str>, a: &[Import], b: &[Import]) -> Vec<Import> {
    let packages = common.iter().filter(|name| !name.contains('.') && !name.starts_with('_'));
    let mut imports: BTreeMap<&str, BTreeSet<&String>> =
        packages.map(|name| (*name, BTreeSet::new())).collect();
    for Import { module, names } in a.iter().chain(b).filter(|import| common.contains(import.module.as_str()))
    {
        let names = names.iter().filter(|name| common.contains(format!("{module}.{name}").as_str()));
        imports.entry(module).or_default().extend(names);
    }
    let import = |(module, names): (&str, BTreeSet<&String>)| Import {
        module: module.to_owned(),
        names: names.into_iter().cloned().collect(),
    };
    imports.into_iter().map(import).collect()
}
