//! What the engine tells of itself: the tree, and the memory of everything in it.
//!
//! A page that several processes map is billed to the one that made it. So an instance is billed its private memory, and a zygote what it
//! has that the one above it has not: its own pages that are no file's, shared with its children or not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::{Memory, Part, Reply, Request, ZygoteId};

use super::learnt::now;
use super::zygotes::Zygote;
use super::{Engine, lock};
use crate::runner::{FunctionReport, NodeReport, Report};

/// How long an answer about a zygote's memory is good for: to find out takes the launcher some milliseconds.
const GOOD: Duration = Duration::from_secs(5);

/// What was found out of the memory of zygotes.
pub(super) type Known = HashMap<ZygoteId, (Instant, Memory)>;

/// What a zygote has that the one `above` it has not, bytes.
fn billed(own: Memory, above: Memory) -> u64 {
    own.anonymous.saturating_sub(above.anonymous).max(own.private)
}

impl Engine {
    async fn memory(&self, of: ZygoteId) -> Memory {
        if let Some((at, memory)) = lock(&self.known_memory).get(&of)
            && at.elapsed() < GOOD
        {
            return *memory;
        }
        let asked = self.launcher.call(Request::Memory { of: Part::Zygote(of) }).await;
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
        let own = self.memory(zygote.id).await;
        let above = match zygote.parent() {
            Some(parent) => self.memory(parent.id).await,
            None => Memory::default(),
        };
        zygote.billed.store(billed(own, above), Ordering::Relaxed);
    }

    /// All zygotes, parents before their children, and all functions that instances are kept of.
    pub(crate) async fn reported(&self) -> Report {
        let running = self.zygotes.all();
        let mut memory = HashMap::new();
        for zygote in &running {
            memory.insert(zygote.id, self.memory(zygote.id).await);
        }
        lock(&self.known_memory).retain(|id, _| memory.contains_key(id));
        let mut nodes: Vec<NodeReport> = running.iter().map(|zygote| self.node(zygote, &memory)).collect();
        // A child is younger than its parent.
        nodes.sort_by_key(|node| node.id);
        // One lock after the other: who tidies holds that of the idle ones and takes this one.
        let idle = lock(&self.idle).by_function();
        let learnt = self.planner.learnt();
        let functions = idle.into_iter().map(|(name, idle, frozen, private)| {
            let of = learnt.functions.get(&name).cloned().unwrap_or_default();
            FunctionReport {
                name: name.to_string(),
                idle,
                frozen,
                private_bytes: private,
                invocations_per_second: of.invocations.at(now()),
                starts_per_second: of.starts.at(now()),
                start_us: of.start_us,
            }
        });
        let mut functions: Vec<FunctionReport> = functions.collect();
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        Report { nodes, functions }
    }

    fn node(&self, zygote: &Arc<Zygote>, memory: &HashMap<ZygoteId, Memory>) -> NodeReport {
        let own = memory.get(&zygote.id).copied().unwrap_or_default();
        let above = zygote.parent().and_then(|parent| memory.get(&parent.id)).copied().unwrap_or_default();
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
            private_bytes: own.private,
            proportional_bytes: own.proportional,
            billed_bytes: billed(own, above),
            saved_us_per_second: self.planner.saved(&zygote.spec),
        }
    }
}
