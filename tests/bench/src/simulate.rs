//! What the tree of zygotes is worth: a synthetic trace, replayed through the policy of `sock_zygote::tree`.
//!
//! Three contenders meet the same starts: roots only, one node for each function ("flat"), and the tree, the latter two within
//! the same budget. Each minute they plan again, from what was seen until then. Times and memory are the world's, not what
//! the policy believes of them, and no container is made: it is the choice of nodes that is compared.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sock_zygote::tree::{BASE_BYTES, Budget, Costs, Grown, Module, NodeSpec, Rate, Want, best, plan};

use crate::figures::Samples;
use world::{Options, World};

/// Seconds between two plans.
const REPLAN: usize = 60;

/// Microseconds of a fork and what goes with it.
const FORK: f64 = 1_000.0;

/// Processes: each takes a block of user ids.
const NODES: usize = 64;

pub(crate) fn run(arguments: &[&str]) -> Result<bool> {
    let options = parse(arguments)?;
    let world = World::new(options);
    let Options { functions, seconds, budget, seed } = options;
    println!(
        "{functions} functions, {seconds} s, {budget} MB for zygotes, seed {seed}: {} starts",
        world.starts.len()
    );
    println!("{:12} {:>10} {:>10} {:>10} {:>10}", "", "mean, ms", "p50, ms", "p99, ms", "memory, MB");
    for (name, policy) in [("roots only", Policy::Roots), ("flat", Policy::Flat), ("tree", Policy::Tree)] {
        let Outcome { times, memory } = replay(&world, policy);
        let [p50, p99] = [0.5, 0.99].map(|part| times.quantile(part));
        println!("{name:12} {:10.2} {p50:10.2} {p99:10.2} {:10.1}", times.mean(), memory / 1e6);
    }
    Ok(true)
}

fn parse(arguments: &[&str]) -> Result<Options> {
    let mut options = Options::default();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { bail!("{} takes a number", pair.join(" ")) };
        let number: u32 = value.parse().with_context(|| format!("{name} takes a number, not {value}"))?;
        match *name {
            "--functions" => options.functions = number as usize,
            "--seconds" => options.seconds = number as usize,
            "--budget" => options.budget = number.into(),
            "--seed" => options.seed = number.into(),
            _ => bail!("there is no option {name}; there are --functions, --seconds, --budget and --seed"),
        }
    }
    Ok(options)
}

#[derive(Debug, Clone, Copy)]
enum Policy {
    Roots,
    Flat,
    Tree,
}

struct Outcome {
    times: Samples,
    /// Private memory of all zygotes, mean over time.
    memory: f64,
}

/// A zygote that runs.
struct Zygote {
    modules: BTreeSet<Module>,
    /// Distributions that its imports did not find.
    missed: BTreeSet<String>,
    /// When its imports are done, in seconds.
    ready: f64,
}

/// What the platform knows, and what runs.
struct Platform<'a> {
    world: &'a World,
    policy: Policy,
    wants: Vec<Want>,
    rates: Vec<Rate>,
    costs: Costs,
    zygotes: BTreeMap<NodeSpec, Zygote>,
}

fn replay(world: &World, policy: Policy) -> Outcome {
    let wants: Vec<Want> = world.functions.iter().map(|function| function.as_deployed()).collect();
    let rates = vec![Rate::default(); wants.len()];
    let mut platform =
        Platform { world, policy, wants, rates, costs: Costs::default(), zygotes: BTreeMap::new() };
    let (mut times, mut memory, mut plans) = (Samples::default(), 0.0, 0);
    let mut starts = world.starts.iter().peekable();
    for begin in (0..world.options.seconds).step_by(REPLAN) {
        memory += platform.replan(begin as f64);
        plans += 1;
        let end = (begin + REPLAN) as f64;
        while let Some((now, function)) = starts.next_if(|(now, _)| *now < end) {
            times.add(Duration::from_secs_f64(platform.start(*now, *function) / 1e6));
        }
    }
    Outcome { times, memory: memory / f64::from(plans.max(1)) }
}

impl Platform<'_> {
    /// Starts and ends zygotes; the memory of those that run then.
    fn replan(&mut self, now: f64) -> f64 {
        for (want, rate) in self.wants.iter_mut().zip(&self.rates) {
            want.rate = rate.at(now);
        }
        let planned = match self.policy {
            Policy::Roots => self.tree(0),
            Policy::Flat => self.flat(),
            Policy::Tree => self.tree(NODES),
        };
        let specs: BTreeSet<&NodeSpec> = planned.iter().map(|(spec, _)| spec).collect();
        self.zygotes.retain(|spec, _| specs.contains(spec));
        let mut memory = 0.0;
        for (spec, parent) in &planned {
            if !self.zygotes.contains_key(spec) {
                let zygote = self.zygote(spec, now);
                self.learn(&zygote.modules);
                self.zygotes.insert(spec.clone(), zygote);
            }
            // A zygote is forked from what its parent is by now.
            let inherited = parent.and_then(|parent| self.zygotes.get(&planned[parent].0));
            let own = self.zygotes[spec].modules.iter();
            let own = own.filter(|module| inherited.is_none_or(|parent| !parent.modules.contains(module)));
            memory += BASE_BYTES + own.map(|module| self.world.cost(module).bytes).sum::<f64>();
        }
        memory
    }

    /// Nodes with the places of their parents, parents first.
    fn tree(&self, nodes: usize) -> Vec<(NodeSpec, Option<usize>)> {
        let budget = Budget { bytes: self.world.options.budget * 1_000_000, nodes, ..Budget::default() };
        let existing = self.zygotes.iter().map(|(spec, zygote)| Grown::new(spec, &zygote.modules));
        let existing: Vec<_> = existing.collect();
        let plan = plan(&self.wants, &self.costs, budget, &existing);
        plan.nodes.into_iter().map(|node| (node.spec, node.parent)).collect()
    }

    /// Of the functions' own nodes those that save most by their memory; none is another's parent.
    fn flat(&self) -> Vec<(NodeSpec, Option<usize>)> {
        let mut own = BTreeMap::<NodeSpec, (f64, f64)>::new();
        for want in &self.wants {
            let Want { runtime, tenant, lock, imports, .. } = want.clone();
            let costs = want.imported().iter().map(|module| self.costs.of(module)).collect::<Vec<_>>();
            let (saved, bytes) = own.entry(NodeSpec { runtime, tenant, lock, imports }).or_default();
            *saved += want.rate.max(1e-6) * costs.iter().map(|cost| cost.micros).sum::<f64>();
            *bytes = BASE_BYTES + costs.iter().map(|cost| cost.bytes).sum::<f64>();
        }
        let mut own: Vec<_> = own.into_iter().collect();
        own.sort_by(|(_, (saved, bytes)), (_, (others, other_bytes))| {
            (others / other_bytes).total_cmp(&(saved / bytes))
        });
        let mut room = (self.world.options.budget * 1_000_000) as f64;
        own.retain(|(_, (_, bytes))| {
            let fits = *bytes <= room;
            room -= if fits { *bytes } else { 0.0 };
            fits
        });
        let own = own.into_iter().take(NODES).map(|(spec, _)| (spec, None));
        [(NodeSpec::root(world::RUNTIME), None)].into_iter().chain(own).collect()
    }

    fn zygote(&self, spec: &NodeSpec, now: f64) -> Zygote {
        let (modules, missed) = self.world.import(spec);
        let micros: f64 = modules.iter().map(|module| self.world.cost(module).micros).sum();
        Zygote { modules, missed, ready: now + micros / 1e6 }
    }

    /// Starts an instance; microseconds.
    fn start(&mut self, now: f64, function: usize) -> f64 {
        self.rates[function].observe(now, 1);
        let modules = self.world.functions[function].modules();
        let lacking = match self.choose(now, function) {
            Some(spec) => modules.difference(&self.zygotes[&spec].modules).cloned().collect(),
            None => modules,
        };
        self.learn(&lacking);
        // After its first start it is known what it imports.
        let (known, really) = (&mut self.wants[function], &self.world.functions[function].want);
        known.modules.clone_from(&really.modules);
        known.requires.clone_from(&really.requires);
        FORK + lacking.iter().map(|module| self.world.cost(module).micros).sum::<f64>()
    }

    /// The best sound zygote. One that looked in vain for what the function has is refused, now and for later plans.
    fn choose(&mut self, now: f64, function: usize) -> Option<NodeSpec> {
        let want = &mut self.wants[function];
        for (spec, zygote) in &self.zygotes {
            if zygote.missed.iter().any(|missed| want.lock.contains_key(missed)) && spec.may_serve(want) {
                want.refused.insert(spec.clone());
            }
        }
        let ready: Vec<_> = self.zygotes.iter().filter(|(_, zygote)| zygote.ready <= now).collect();
        let nodes: Vec<_> = ready.iter().map(|(spec, zygote)| Grown::new(spec, &zygote.modules)).collect();
        best(&nodes, &self.wants[function], &self.costs).map(|index| ready[index].0.clone())
    }

    /// Costs are measured where something is imported for the first time, and not exactly.
    fn learn(&mut self, modules: &BTreeSet<Module>) {
        for module in modules {
            if !self.costs.knows(module) {
                self.costs.observe(module.clone(), self.world.measured(module));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_worth_its_memory() {
        for seed in 1..4 {
            let world = World::new(Options { functions: 40, seconds: 1200, seed, ..Options::default() });
            let outcomes = [Policy::Roots, Policy::Flat, Policy::Tree].map(|policy| replay(&world, policy));
            let [roots, flat, tree] = outcomes.each_ref().map(|outcome| outcome.times.mean());
            assert!(tree <= flat && flat <= roots, "seed {seed}: tree {tree}, flat {flat}, roots {roots}");
            // What the policy plans with is measured, not exactly; the zygotes have what they have.
            let [_, _, memory] = outcomes.map(|outcome| outcome.memory);
            assert!(memory < 1.2 * world.options.budget as f64 * 1e6, "seed {seed}: {memory}");
        }
    }

    /// Whatever there is to serve, and in however little memory.
    #[test]
    fn the_tree_is_never_worse_than_roots_alone() {
        for seed in 0..24 {
            let (functions, budget) = (4 + seed as usize % 6 * 8, 8 << (seed % 7));
            let options = Options { functions, seconds: 300, budget, seed };
            let world = World::new(options);
            let [roots, tree] =
                [Policy::Roots, Policy::Tree].map(|policy| replay(&world, policy).times.mean());
            assert!(tree <= roots, "{options:?}: tree {tree}, roots {roots}");
        }
    }

    #[test]
    fn a_seed_says_it_all() {
        let options = Options { functions: 20, seconds: 300, ..Options::default() };
        let outcome = |seed| {
            let outcome = replay(&World::new(Options { seed, ..options }), Policy::Tree);
            (outcome.times.mean(), outcome.memory)
        };
        assert_eq!(outcome(1), outcome(1));
        assert_ne!(outcome(1), outcome(2));
    }
}
