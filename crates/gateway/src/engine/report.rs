//! What the engine tells of itself: the tree, and the memory of everything in it.
//!
//! A page that several processes map is billed to the one that made it. So an instance is billed its private memory, and a zygote what it
//! has that the one above it has not: its own pages that are no file's, shared with its children or not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::{Memory, Part, Reply, Request};

use super::learnt::now;
use super::zygotes::Zygote;
use super::{Engine, lock};
use crate::runner::{FunctionReport, NodeReport, Report};

/// How long an answer about a zygote's memory is good for: to find out takes the launcher some milliseconds.
const GOOD: Duration = Duration::from_secs(5);

/// What was found out of the memory of all but instances.
pub(super) type Known = BTreeMap<Part, (Instant, Memory)>;

/// Rounds of measuring idle instances that a report waits for.
const ROUNDS: usize = 8;

/// What a zygote has that the one `above` it has not, bytes.
fn billed(own: Memory, above: Memory) -> u64 {
    own.anonymous.saturating_sub(above.anonymous).max(own.private)
}

impl Engine {
    async fn memory(&self, of: Part) -> Memory {
        if let Some((at, memory)) = lock(&self.known_memory).get(&of)
            && at.elapsed() < GOOD
        {
            return *memory;
        }
        let asked = self.launcher.call(Request::Memory { of }).await;
        // One that has just ended has none.
        let memory = match asked {
            Ok((Reply::Memory(memory), _)) => memory,
            _ => Memory::default(),
        };
        lock(&self.known_memory).insert(of, (Instant::now(), memory));
        memory
    }

    /// Looks how much memory a zygote has, from outside: what it says of its imports may be a lie.
    pub(super) async fn weigh(&self, zygote: &Zygote) {
        let own = self.memory(Part::Zygote(zygote.id)).await;
        let above = match zygote.parent() {
            Some(parent) => self.memory(Part::Zygote(parent.id)).await,
            None => Memory::default(),
        };
        zygote.billed.store(billed(own, above), Ordering::Relaxed);
    }

    /// All zygotes, parents before their children, and all functions that instances are kept of.
    pub(crate) async fn reported(&self) -> Report {
        for _ in 0..ROUNDS {
            if !self.measure_some().await {
                break;
            }
        }
        let running = self.zygotes.all();
        let mut memory = BTreeMap::new();
        let parts = running.iter().flat_map(|zygote| [Part::Zygote(zygote.id), Part::Spares(zygote.id)]);
        for part in parts.chain([Part::Inits]) {
            memory.insert(part, self.memory(part).await);
        }
        lock(&self.known_memory).retain(|part, _| memory.contains_key(part));
        let mut nodes: Vec<NodeReport> = running.iter().map(|zygote| self.node(zygote, &memory)).collect();
        // A child is younger than its parent.
        nodes.sort_by_key(|node| node.id);
        // One lock after the other: who tidies holds that of the idle ones and takes this one.
        let idle = lock(&self.idle).by_function();
        let learnt = self.planner.learnt();
        let functions = idle.into_iter().map(|(name, report)| {
            let of = learnt.functions.get(&name).cloned().unwrap_or_default();
            FunctionReport {
                name: name.to_string(),
                invocations_per_second: of.invocations.at(now()),
                starts_per_second: of.starts.at(now()),
                start_us: of.start_us,
                ..report
            }
        });
        let mut functions: Vec<FunctionReport> = functions.collect();
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        Report { nodes, functions, init_bytes: memory.get(&Part::Inits).map_or(0, |memory| memory.private) }
    }

    /// Asks for the memory of some of the idle instances whose memory is not known as it is now; whether there were any.
    pub(super) async fn measure_some(&self) -> bool {
        let unmeasured = lock(&self.idle).unmeasured();
        for instance in &unmeasured {
            let memory = Request::Memory { of: Part::Instance(*instance) };
            if let Ok((Reply::Memory(memory), _)) = self.launcher.call(memory).await {
                lock(&self.idle).measure(*instance, memory);
            }
        }
        !unmeasured.is_empty()
    }

    fn node(&self, zygote: &Arc<Zygote>, memory: &BTreeMap<Part, Memory>) -> NodeReport {
        let of = |part| memory.get(&part).copied().unwrap_or_default();
        let own = of(Part::Zygote(zygote.id));
        let above = zygote.parent().map_or(Memory::default(), |parent| of(Part::Zygote(parent.id)));
        let (spares, _) = zygote.kept();
        NodeReport {
            id: zygote.id,
            parent: zygote.parent().map(|parent| parent.id),
            runtime: zygote.spec.runtime.clone(),
            tenant: zygote.spec.tenant.clone(),
            packages: zygote
                .spec
                .lock
                .iter()
                .map(|(name, wheel)| format!("{name} {}", wheel.version))
                .collect(),
            imports: zygote.spec.imports.iter().map(|import| import.module.clone()).collect(),
            modules: zygote.imported.len(),
            safe: zygote.node.facts.safe,
            forks: zygote.forks.load(Ordering::Relaxed),
            users: zygote.users.load(Ordering::Relaxed),
            spares,
            spare_bytes: of(Part::Spares(zygote.id)).private,
            private_bytes: own.private,
            proportional_bytes: own.proportional,
            billed_bytes: billed(own, above),
            saved_us_per_second: self.planner.saved(&zygote.spec),
        }
    }
}
