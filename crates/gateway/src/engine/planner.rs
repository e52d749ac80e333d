//! Which zygotes there should be: asks the policy (`sock_zygote::tree`) now and then, and grows and ends zygotes until they are those.
//!
//! ```text
//! deployed functions, what was learnt, what runs ──▶ plan ──▶ missing ones are forked, parents first; surplus ones are ended
//! ```
//! It happens in the background, one zygote after the other: no request waits for it. A deployment waits for the zygote that shall
//! serve it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sock_isolation::launcher::wire::ZygoteId;
use sock_zygote::tree::{self, Budget, Cost, Costs, Grown, Module, NodeSpec, Origin, Plan, Planned, Want};
use sock_zygote::{Import, Lock, sound};

use super::function::Prepared;
use super::learnt::{Learnt, now};
use super::raise::Wish;
use super::spares::expects_none;
use super::zygotes::Zygote;
use super::{Engine, lock};
use crate::runner::Function;

/// How often it plans where nothing asks for it: rates change.
const ROUND: Duration = Duration::from_secs(10);

/// How long after a start that no plan knew of: it would compete with the very request that asked for it, and others may follow.
const SOON: Duration = Duration::from_secs(1);

/// Planning for many functions takes a while: no more than a fiftieth of the time is spent on it where nothing asks for it.
const IDLE_FACTOR: u32 = 50;

/// And yet no rarer than this: what is kept of each zygote follows from it.
const ROUND_AT_MOST: Duration = Duration::from_secs(60);

/// How often what was learnt is written down: a crash may cost a minute of it. And how often zygotes are weighed.
const SAVE: Duration = Duration::from_secs(60);

/// Zygotes, the first of each interpreter not counted: each costs user ids and half a megabyte of the kernel's memory, and the
/// launcher has ids for 49 that are forked from one.
const NODES: usize = 40;

/// A zygote that was forked from another one than it should have been is replaced if that saves so much memory.
const REPLACE: f64 = 16e6;

/// The budget where the operator names none: a quarter of the machine's memory.
pub(crate) fn default_budget() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    (total.unwrap_or(1 << 20) << 10) / 4
}

/// What the planner keeps.
pub(crate) struct Planner {
    learnt: std::sync::Mutex<Learnt>,
    /// Asks for a plan.
    pub(crate) changed: Arc<tokio::sync::Notify>,
    /// Asks for one when there is time for it.
    unforeseen: tokio::sync::Notify,
    bytes: u64,
    /// See [`Budget::forks`].
    forks: u32,
    data_dir: PathBuf,
    /// By revision: the nodes that may not serve it, as it turned out when they were there. Whoever forgot them with the node would
    /// plan them again, import it all again, and find out again.
    refused: std::sync::Mutex<BTreeMap<String, BTreeSet<NodeSpec>>>,
    /// What nodes turned out to be, those that are gone included.
    outcomes: std::sync::Mutex<BTreeMap<NodeSpec, Outcome>>,
    /// Nodes that were forked anew and came from another zygote than this one all the same. As long as that lives, they would again.
    misplaced: std::sync::Mutex<BTreeSet<(NodeSpec, ZygoteId)>>,
    /// What the last plan expected of each node.
    expected: std::sync::Mutex<BTreeMap<NodeSpec, Expected>>,
}

/// What a node turned out to be.
#[derive(Debug, Clone)]
struct Outcome {
    modules: BTreeSet<Module>,
    /// See [`Grown::extra`].
    extra: f64,
}

/// Outcomes that are remembered; beyond, those that do not run are forgotten.
const OUTCOMES: usize = 10 * NODES;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Expected {
    /// What it saves, microseconds a second.
    saved: f64,
    /// New instances a second of each of its processes.
    pub(super) rate: f64,
    /// Whether any function is best served by it.
    pub(super) serves: bool,
}

impl Planner {
    pub(crate) fn new(data_dir: PathBuf, bytes: u64, forks: u32) -> Self {
        let learnt = std::sync::Mutex::new(Learnt::load(&data_dir));
        let (changed, expected) = (Arc::default(), std::sync::Mutex::default());
        let unforeseen = tokio::sync::Notify::new();
        let (refused, outcomes, misplaced) = Default::default();
        Self { learnt, changed, unforeseen, bytes, forks, data_dir, refused, outcomes, misplaced, expected }
    }

    pub(crate) fn learnt(&self) -> std::sync::MutexGuard<'_, Learnt> {
        lock(&self.learnt)
    }

    /// What the last plan expected of `spec`.
    pub(super) fn expected(&self, spec: &NodeSpec) -> Expected {
        lock(&self.expected).get(spec).copied().unwrap_or_default()
    }

    /// What `spec` saves, microseconds a second, as the last plan had it.
    pub(crate) fn saved(&self, spec: &NodeSpec) -> f64 {
        self.expected(spec).saved
    }

    /// The function as the policy sees it.
    pub(crate) fn want(&self, prepared: &Prepared) -> Want {
        let mut learnt = self.learnt();
        let of = learnt.of(&prepared.function.name, &prepared.function.revision);
        let rate = of.starts.at(now());
        let imported = of.imported.clone().unwrap_or_default();
        let imports = prepared.imports_with(of.beyond.as_ref());
        drop(learnt);
        let candidate = &prepared.candidate;
        Want {
            runtime: prepared.function.runtime.clone(),
            tenant: prepared.function.tenant.clone(),
            lock: candidate.lock.iter().map(|(name, wheel)| (name.clone(), wheel.into())).collect(),
            modules: Want::modules_of(&candidate.lock, &imports, &imported),
            imports,
            requires: prepared.requires.clone(),
            rate,
            refused: BTreeSet::new(),
        }
    }

    pub(crate) fn costs(&self) -> Arc<Costs> {
        Arc::clone(&self.learnt().costs)
    }

    /// What nodes turned out to be, with those that run.
    fn outcomes(&self, running: &[Arc<Zygote>], costs: &Costs) -> BTreeMap<NodeSpec, Outcome> {
        let mut outcomes = lock(&self.outcomes);
        for zygote in running {
            let outcome = Outcome { modules: zygote.modules.clone(), extra: zygote.extra(costs) };
            outcomes.insert(zygote.spec.clone(), outcome);
        }
        if outcomes.len() > OUTCOMES {
            outcomes.retain(|spec, _| running.iter().any(|zygote| zygote.spec == *spec));
        }
        outcomes.clone()
    }

    /// Takes note of what a new zygote's imports cost.
    fn learn(&self, zygote: &Zygote) {
        let mut learnt = self.learnt();
        let origins =
            Want::modules_of(&zygote.node.lock, &[], &zygote.node.facts.costs.keys().cloned().collect());
        for (name, (micros, bytes)) in &zygote.node.facts.costs {
            let distribution = origins.get(name).cloned().flatten();
            let sha256 =
                distribution.as_ref().and_then(|name| Some(zygote.node.lock.get(name)?.sha256.clone()));
            let origin =
                distribution.zip(sha256).map(|(distribution, sha256)| Origin { distribution, sha256 });
            let cost = Cost { micros: *micros as f64, bytes: *bytes as f64 };
            // Where packages have run, what is said of the standard library, which others import as well, may be a lie.
            let hearsay = origin.is_none() && !zygote.node.lock.is_empty();
            let cost = if hearsay { cost.at_most(Cost::UNSEEN) } else { cost };
            Arc::make_mut(&mut learnt.costs).observe(Module { origin, name: name.clone() }, cost);
        }
        if !zygote.node.lock.is_empty() {
            return;
        }
        // What an interpreter has anyway costs nobody anything; never seen, it would be worth a zygote again and again.
        let facts = &zygote.node.facts;
        let asked = zygote.spec.imports.iter().map(|import| &import.module);
        let had = asked.filter(|name| !facts.costs.contains_key(*name) && !facts.errors.contains_key(*name));
        for name in had {
            let module = Module { origin: None, name: name.clone() };
            Arc::make_mut(&mut learnt.costs).observe(module, Cost { micros: 0.0, bytes: 0.0 });
        }
    }
}

/// A plan, and for whom it is.
struct Planning {
    functions: Vec<Arc<Prepared>>,
    wants: Vec<Want>,
    plan: Plan,
}

impl Planning {
    /// The node that serves `name`, and those above it, the topmost first.
    fn chain(&self, prepared: &Prepared) -> Vec<&Planned> {
        let same = |function: &Arc<Prepared>| function.function.revision == prepared.function.revision;
        let Some(want) = self.functions.iter().position(same) else { return Vec::new() };
        let mut at = self.plan.nodes.iter().position(|node| node.serves.contains(&want));
        let mut chain = Vec::new();
        while let Some(index) = at {
            chain.push(&self.plan.nodes[index]);
            at = self.plan.nodes[index].parent;
        }
        chain.reverse();
        chain
    }

    fn above(&self, node: &Planned) -> Option<&NodeSpec> {
        node.parent.map(|parent| &self.plan.nodes[parent].spec)
    }

    /// What it takes to start a node.
    fn wish(&self, spec: &NodeSpec) -> Option<Wish> {
        let has_all = |prepared: &&Arc<Prepared>| {
            prepared.function.runtime == spec.runtime
                && spec.lock.iter().all(|(name, wheel)| {
                    let own = prepared.candidate.lock.get(name);
                    own.is_some_and(|own| own.sha256 == wheel.sha256 && own.version == wheel.version)
                })
        };
        let prepared = self.functions.iter().find(has_all)?;
        let lock: Lock = prepared
            .candidate
            .lock
            .iter()
            .filter(|(name, _)| spec.lock.contains_key(*name))
            .map(|(name, wheel)| (name.clone(), wheel.clone()))
            .collect();
        let view = match &prepared.function.view {
            Some(view) if !lock.is_empty() => {
                let entries: Vec<_> =
                    view.entries.iter().filter(|entry| lock.contains_key(&*entry.name.to_string())).collect();
                let layers: Vec<String> =
                    entries.iter().map(|entry| format!("packages/{}", entry.dir.display())).collect();
                let whole = entries.len() == view.entries.len();
                let name = if whole { view.id.to_string() } else { part(&layers) };
                Some((name, layers))
            }
            _ => None,
        };
        Some(Wish { spec: spec.clone(), lock, view, env: prepared.shared_environment() })
    }
}

/// The name of a view that is no function's.
fn part(layers: &[String]) -> String {
    let mut hash = Sha256::new();
    for layer in layers {
        hash.update(layer.as_bytes());
        hash.update([0]);
    }
    format!("part-{}", hex::encode(hash.finalize()))
}

impl Engine {
    /// What there should be now.
    async fn plan(&self) -> Planning {
        let functions: Vec<Arc<Prepared>> =
            lock(&self.functions).prepared().filter(|prepared| !prepared.function.fresh).collect();
        let mut wants: Vec<Want> = functions.iter().map(|prepared| self.planner.want(prepared)).collect();
        let running = self.zygotes.running();
        {
            let mut known = lock(&self.planner.refused);
            let mut refused = BTreeMap::new();
            for (want, prepared) in wants.iter_mut().zip(&functions) {
                want.refused = known.remove(&prepared.function.revision).unwrap_or_default();
                for zygote in &running {
                    if !zygote.spec.may_serve(want) {
                        continue;
                    }
                    if let Err(reason) = sound(&zygote.node, &prepared.candidate) {
                        let function = &prepared.function.name;
                        tracing::debug!(zygote = zygote.id, %function, %reason, "it may not serve the function");
                        want.refused.insert(zygote.spec.clone());
                    }
                }
                refused.insert(prepared.function.revision.clone(), want.refused.clone());
            }
            *known = refused;
        }
        let budget = Budget { bytes: self.planner.bytes, nodes: NODES, forks: self.planner.forks };
        let costs = self.planner.costs();
        let mut runs = BTreeMap::<NodeSpec, f64>::new();
        for zygote in &running {
            *runs.entry(zygote.spec.clone()).or_default() += zygote.lasting();
        }
        let outcomes = self.planner.outcomes(&running, &costs);
        let planned = tokio::task::spawn_blocking(move || {
            let grown: Vec<Grown<'_>> = outcomes
                .iter()
                .map(|(spec, outcome)| Grown {
                    extra: outcome.extra,
                    recent: runs.get(spec).copied().unwrap_or(0.0),
                    runs: runs.contains_key(spec),
                    ..Grown::new(spec, &outcome.modules)
                })
                .collect();
            let plan = tree::plan(&wants, &costs, budget, &grown);
            (wants, plan)
        });
        let (wants, plan) = planned.await.unwrap_or_default();
        Planning { functions, wants, plan }
    }

    /// Grows what serves a function, if the plan has more for it than a root. The error is about that one, not about those above.
    pub(crate) async fn grow_for(&self, prepared: &Prepared) -> Result<(), String> {
        let planning = self.plan().await;
        let chain = planning.chain(prepared);
        for (at, node) in chain.iter().enumerate() {
            let grown = self.grow(&planning, node).await;
            if at + 1 == chain.len() {
                grown?;
            }
        }
        self.planner.changed.notify_one();
        Ok(())
    }

    /// Starts as many of a node as are missing.
    async fn grow(&self, planning: &Planning, node: &Planned) -> Result<(), String> {
        let mut missing = (node.replicas as usize).saturating_sub(self.zygotes.count(&node.spec));
        while missing > 0 && !self.zygotes.failed_lately(&node.spec) {
            if !node.spec.is_root() && self.zygotes.billed() > self.planner.bytes {
                // Some turned out to have more than was thought, which the next plan knows.
                return Ok(());
            }
            let wish = if node.spec.is_root() {
                Some(Wish::root(&node.spec.runtime))
            } else {
                planning.wish(&node.spec)
            };
            let Some(wish) = wish else { return Ok(()) };
            let python = self.python_of(&node.spec.runtime)?;
            let most = node.replicas as usize;
            let zygote = self.zygotes.add(wish, planning.above(node), python, most).await;
            let zygote = zygote.map_err(|error| error.to_string())?;
            self.planner.learn(&zygote);
            self.weigh(&zygote).await;
            for prepared in &planning.functions {
                self.note_imports(prepared, &zygote);
            }
            missing -= 1;
        }
        Ok(())
    }

    /// What a zygote imported that was made for a function is what the function imports.
    fn note_imports(&self, prepared: &Prepared, zygote: &Zygote) {
        let Prepared { function, candidate, .. } = prepared;
        let mut learnt = self.planner.learnt();
        let of = learnt.of(&function.name, &function.revision);
        let same_wheels = zygote
            .spec
            .lock
            .iter()
            .all(|(name, wheel)| candidate.lock.get(name).is_some_and(|own| own.sha256 == wheel.sha256));
        if zygote.spec.runtime == function.runtime
            && zygote.spec.imports == prepared.imports_with(of.beyond.as_ref())
            && same_wheels
        {
            of.imported = Some(Arc::new(zygote.imported.clone()));
            of.ahead = true;
        }
    }

    /// Takes note of what a handler's import imported in an instance of `zygote`, or in one without.
    pub(crate) fn note_instance(&self, prepared: &Prepared, zygote: Option<&Zygote>, imported: Vec<String>) {
        let mut learnt = self.planner.learnt();
        let of = learnt.of(&prepared.function.name, &prepared.function.revision);
        let known = zygote.map(|zygote| &zygote.imported);
        let own = zygote.is_some_and(|zygote| zygote.spec.imports == prepared.imports);
        let bare = zygote.is_none_or(|zygote| zygote.spec.is_root());
        // What is told leaves out what the zygote has, whether the function imports that or not.
        let ahead = of.imported.clone().filter(|_| of.ahead && !own);
        let beyond = match &ahead {
            Some(ahead) => Some(imported.iter().filter(|module| !ahead.contains(*module)).cloned().collect()),
            None => own.then(|| imported.iter().cloned().collect()),
        };
        if own || bare || ahead.is_some() {
            let known = ahead.as_deref().or(known);
            let all = known.into_iter().flatten().cloned().chain(imported);
            of.imported = Some(Arc::new(all.collect()));
        }
        if of.beyond.is_none()
            && let Some(beyond) = beyond
        {
            let beyond: BTreeSet<String> = beyond;
            let more = !beyond.is_empty();
            of.beyond = Some(beyond);
            if more {
                self.planner.changed.notify_one();
            }
        }
    }

    pub(crate) fn note_invocation(&self, function: &Function) {
        let mut learnt = self.planner.learnt();
        learnt.of(&function.name, &function.revision).invocations.observe(now(), 1);
    }

    /// Counts a new instance, which took so long. One that no plan knew of is planned with soon.
    pub(crate) fn note_start(&self, function: &Function, took: Duration) {
        let mut learnt = self.planner.learnt();
        let of = learnt.of(&function.name, &function.revision);
        let now = now();
        if expects_none(of.starts.at(now)) {
            self.planner.unforeseen.notify_one();
        }
        of.starts.observe(now, 1);
        of.start_us = took.as_secs_f64() * 1e6;
    }

    /// Whether an instance of `zygote` is to tell what its handler's import imports.
    pub(crate) fn wants_to_know(&self, prepared: &Prepared, zygote: Option<&Zygote>) -> bool {
        let mut learnt = self.planner.learnt();
        let of = learnt.of(&prepared.function.name, &prepared.function.revision);
        let own = zygote.is_some_and(|zygote| zygote.spec.imports == prepared.imports);
        let bare = zygote.is_none_or(|zygote| zygote.spec.is_root());
        ((own || of.ahead) && of.beyond.is_none()) || (bare && of.imported.is_none())
    }

    /// Plans, and makes it so, for as long as the engine is there.
    pub(crate) async fn cultivate(engine: std::sync::Weak<Self>) {
        let mut saved = tokio::time::Instant::now();
        let mut pause = Duration::ZERO;
        loop {
            let Some(planner) = engine.upgrade().map(|engine| Arc::clone(&engine.planner)) else { return };
            let when_due = async {
                tokio::time::sleep(pause).await;
                let foreseen = ROUND.saturating_sub(pause);
                if tokio::time::timeout(foreseen, planner.unforeseen.notified()).await.is_ok() {
                    tokio::time::sleep(SOON).await;
                }
            };
            tokio::select! {
                () = planner.changed.notified() => {}
                () = when_due => {}
            }
            drop(planner);
            let Some(engine) = engine.upgrade() else { return };
            pause = (engine.cultivate_once().await * IDLE_FACTOR).min(ROUND_AT_MOST);
            if saved.elapsed() >= SAVE {
                saved = tokio::time::Instant::now();
                engine.save().await;
                for zygote in engine.zygotes.running() {
                    engine.weigh(&zygote).await;
                }
            }
        }
    }

    /// Returns how long it took to plan.
    async fn cultivate_once(self: &Arc<Self>) -> Duration {
        let begin = tokio::time::Instant::now();
        let planning = self.plan().await;
        let took = begin.elapsed();
        for node in &planning.plan.nodes {
            if let Err(error) = self.grow(&planning, node).await {
                tracing::warn!(%error, "a zygote that the plan has was not started");
            }
            self.replace(&planning, node).await;
        }
        let wanted = planning.plan.nodes.iter().map(|node| (node.spec.clone(), node.replicas));
        self.zygotes.retire(&wanted.collect());
        let mut expected: BTreeMap<NodeSpec, Expected> = BTreeMap::new();
        for node in &planning.plan.nodes {
            expected.entry(node.spec.clone()).or_default().saved = node.saved;
        }
        // By what functions choose, which is what there is, and not what the plan would have; now rather than when somebody waits.
        for (prepared, want) in planning.functions.iter().zip(&planning.wants) {
            if let Some(zygote) = self.choose(prepared) {
                let of = expected.entry(zygote.spec.clone()).or_default();
                of.rate += want.rate / self.zygotes.count(&zygote.spec).max(1) as f64;
                of.serves = true;
            }
        }
        *lock(&self.planner.expected) = expected;
        self.keep_spares();
        took
    }

    /// The zygote that an instance of a function is best forked from.
    pub(crate) fn choose(&self, prepared: &Prepared) -> Option<Arc<Zygote>> {
        let weigh = || (self.planner.want(prepared), self.planner.costs());
        self.zygotes.choose(&prepared.function.revision, &prepared.candidate, weigh)
    }

    /// Has a zygote forked anew that was forked from another one than the plan says, if that saves much memory.
    async fn replace(&self, planning: &Planning, node: &Planned) {
        let Some(above) = planning.above(node).filter(|above| self.zygotes.count(above) > 0) else { return };
        let running = self.zygotes.running();
        let Some(old) = running.iter().find(|zygote| zygote.spec == node.spec) else { return };
        let Some(parent) = old.parent().filter(|parent| parent.spec != *above) else { return };
        let Some(better) = running.iter().find(|zygote| zygote.spec == *above && zygote.has_room()) else {
            return;
        };
        let misplaced = (node.spec.clone(), better.id);
        {
            let mut known = lock(&self.planner.misplaced);
            known.retain(|(_, id)| running.iter().any(|zygote| zygote.id == *id));
            if known.contains(&misplaced) {
                return;
            }
        }
        let costs = self.planner.costs();
        let saves = better.modules.difference(&parent.modules).filter(|module| old.modules.contains(module));
        if saves.map(|module| costs.of(module).bytes).sum::<f64>() < REPLACE
            || self.zygotes.failed_lately(&node.spec)
        {
            return;
        }
        let (Some(wish), Ok(python)) = (planning.wish(&node.spec), self.python_of(&node.spec.runtime)) else {
            return;
        };
        match self.zygotes.add(wish, Some(above), python, usize::MAX).await {
            Ok(new) if new.parent().is_some_and(|parent| parent.spec == *above) => self.zygotes.leave(old),
            Ok(new) => {
                self.zygotes.leave(&new);
                lock(&self.planner.misplaced).insert(misplaced);
            }
            Err(error) => tracing::warn!(%error, "a zygote was not forked anew"),
        }
    }

    /// Writes down what was learnt.
    pub(crate) async fn save(&self) {
        let known: BTreeSet<_> = lock(&self.functions).names();
        // Its parts are shared: invocations wait for no writing.
        let learnt = {
            let mut learnt = self.planner.learnt();
            learnt.functions.retain(|name, _| known.contains(name));
            learnt.clone()
        };
        let data = self.planner.data_dir.clone();
        let save = move || Learnt::save(&serde_json::to_vec(&learnt)?, &data);
        match tokio::task::spawn_blocking(save).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what was learnt is not written down"),
            Err(panic) => tracing::error!(%panic, "writing down what was learnt ended in a panic"),
        }
    }
}

/// `imports`, and of the modules `more` those that no other of them stands for.
pub(crate) fn imports_and(imports: &[Import], more: &BTreeSet<String>) -> Vec<Import> {
    let above = |name: &str| name.match_indices('.').any(|(at, _)| more.contains(&name[..at]));
    let known = |name: &str| imports.iter().any(|import| import.module == name);
    let topmost = more.iter().filter(|name| !above(name) && !known(name));
    let more = topmost.map(|name| Import { module: name.clone(), names: Vec::new() });
    imports.iter().cloned().chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_instance_imported_besides_is_imported_ahead_from_then_on() {
        let import = |module: &str| Import { module: module.into(), names: vec![] };
        let more = ["a", "a.b", "c.d", "json"].map(String::from).into();
        let all = imports_and(&[import("json")], &more);
        assert_eq!(all, ["json", "a", "c.d"].map(import));
    }

    #[test]
    fn a_part_of_a_view_has_a_name_of_its_own() {
        let names = [&["a", "b"][..], &["ab"], &["b", "a"]]
            .map(|layers| part(&layers.iter().map(|layer| (*layer).to_owned()).collect::<Vec<_>>()));
        assert!(names.iter().collect::<BTreeSet<_>>().len() == 3 && names[0].len() < 100);
    }
}
