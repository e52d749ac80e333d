//! Instances that wait for the next invocation of their function: the handler cache.
//!
//! ```text
//! idle ── 2 s ──▶ frozen ── 5 min, or memory is short ──▶ ended
//!   ▲               │ thawed on the way to an invocation: one write
//!   └── answered ◀──┘
//! ```
//! What is ended for want of memory is what is worth least: [`sock_zygote::tree::keep`].

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::{InstanceId, Memory};
use sock_zygote::tree::{self, IdleInstance};

use super::instance::Instance;
use crate::names::FunctionName;
use crate::runner::{Function, FunctionReport};

/// Idle instances that are kept, over all functions: each has four descriptors here.
const MAX_IDLE: usize = 4096;

/// How long an idle instance is kept: Lambda keeps one for some minutes.
const IDLE: Duration = Duration::from_secs(300);

/// After so long an idle instance is frozen: nothing that it left behind goes on then, as in Lambda. Not at once, since who is invoked
/// again and again needs no thaw.
const FREEZE: Duration = Duration::from_secs(2);

/// Instances whose memory is asked for in one round: each question holds up the launcher for a millisecond or two.
const MEASURED: usize = 16;

/// What an instance is taken to have until it was asked, bytes.
const UNMEASURED: u64 = 2 << 20;

/// Idle instances by function, the one that was used last at the end. What is of no use any more is handed out, to be dropped
/// outside of the lock.
pub(super) struct Idle {
    by_function: HashMap<FunctionName, VecDeque<Instance>>,
    count: usize,
    /// How much memory of their own they may have together, bytes.
    budget: u64,
}

/// How a function is used: invocations a second, and what a start takes without an idle instance, microseconds.
pub(super) type Use = (f64, f64);

impl Idle {
    pub(super) fn new(budget: u64) -> Self {
        Self { by_function: HashMap::new(), count: 0, budget }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// How many there are of a function as it is now.
    pub(super) fn count_of(&self, function: &Function) -> usize {
        let all = self.by_function.get(&function.name).into_iter().flatten();
        all.filter(|instance| instance.is_of(function)).count()
    }

    /// How many are frozen, and how much memory of their own all have, bytes.
    pub(super) fn held(&self) -> (usize, u64) {
        let all = || self.by_function.values().flatten();
        (all().filter(|instance| instance.is_frozen()).count(), all().map(bytes).sum())
    }

    /// One that can take an invocation of the function as it is now; and those that turned out to be of no use.
    pub(super) fn take(&mut self, function: &Function) -> (Option<Instance>, Vec<Instance>) {
        let (mut found, mut stale) = (None, Vec::new());
        let instances = self.by_function.get_mut(&function.name);
        // The one that was used last has most of its memory still mapped.
        for mut instance in instances.into_iter().flat_map(|all| std::iter::from_fn(|| all.pop_back())) {
            if instance.is_of(function) && instance.peer.is_quiet() {
                found = Some(instance);
                break;
            }
            stale.push(instance);
        }
        self.count -= stale.len() + usize::from(found.is_some());
        (found, stale)
    }

    /// Keeps one; and hands out the one that has been idle longest, if they are too many.
    pub(super) fn keep(&mut self, mut instance: Instance) -> Option<Instance> {
        instance.idle_since = Instant::now();
        instance.measured = false;
        self.by_function.entry(instance.function.name.clone()).or_default().push_back(instance);
        self.count += 1;
        if self.count <= MAX_IDLE {
            return None;
        }
        let first =
            |(name, all): (&FunctionName, &VecDeque<Instance>)| Some((all.front()?.idle_since, name.clone()));
        let (_, name) = self.by_function.iter().filter_map(first).min()?;
        let instances = self.by_function.get_mut(&name)?;
        let evicted = instances.pop_front();
        if instances.is_empty() {
            self.by_function.remove(&name);
        }
        self.count -= 1;
        evicted
    }

    /// Those that have been idle for long, have died, or in which something goes on that nobody asked for; and for want of memory
    /// those that are worth least. Freezes the others after a while.
    pub(super) fn tidy(&mut self, used: impl Fn(&FunctionName) -> Use) -> Vec<Instance> {
        let mut old =
            self.remove_if(|instance| instance.idle_since.elapsed() > IDLE || !instance.peer.is_quiet());
        let surplus = self.surplus(used);
        old.extend(self.remove_if(|instance| surplus.contains(&instance.id)));
        for instance in self.by_function.values_mut().flatten() {
            if instance.idle_since.elapsed() >= FREEZE {
                instance.freeze();
            }
        }
        old
    }

    fn surplus(&self, used: impl Fn(&FunctionName) -> Use) -> Vec<InstanceId> {
        let mut all = Vec::new();
        for (name, instances) in &self.by_function {
            let (rate, start_micros) = used(name);
            all.extend(instances.iter().map(|instance| {
                let (idle_seconds, bytes) = (instance.idle_since.elapsed().as_secs_f64(), bytes(instance));
                let function = name.to_string();
                (instance.id, IdleInstance { function, bytes, idle_seconds, rate, start_micros })
            }));
        }
        let (ids, all): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        tree::keep(&all, self.budget, IDLE.as_secs_f64()).into_iter().map(|at| ids[at]).collect()
    }

    fn remove_if(&mut self, mut gone: impl FnMut(&mut Instance) -> bool) -> Vec<Instance> {
        let mut removed = Vec::new();
        for instances in self.by_function.values_mut() {
            for mut instance in std::mem::take(instances) {
                if gone(&mut instance) { removed.push(instance) } else { instances.push_back(instance) }
            }
        }
        self.by_function.retain(|_, instances| !instances.is_empty());
        self.count -= removed.len();
        removed
    }

    /// Some of those whose memory is not known as it is now.
    pub(super) fn unmeasured(&self) -> Vec<InstanceId> {
        let all = self.by_function.values().flatten();
        all.filter(|instance| !instance.measured).map(|instance| instance.id).take(MEASURED).collect()
    }

    /// Takes note of the memory that one has, if it is still idle.
    pub(super) fn measure(&mut self, id: InstanceId, memory: Memory) {
        if let Some(instance) = self.by_function.values_mut().flatten().find(|instance| instance.id == id) {
            (instance.seen, instance.measured) = (Some(memory), true);
        }
    }

    /// All of a function's.
    pub(super) fn remove(&mut self, name: &FunctionName) -> VecDeque<Instance> {
        let instances = self.by_function.remove(name).unwrap_or_default();
        self.count -= instances.len();
        instances
    }

    /// Of each function.
    pub(super) fn by_function(&self) -> Vec<(FunctionName, FunctionReport)> {
        let of = |all: &VecDeque<Instance>| FunctionReport {
            idle: all.len(),
            frozen: all.iter().filter(|instance| instance.is_frozen()).count(),
            private_bytes: all.iter().map(bytes).sum(),
            proportional_bytes: all.iter().filter_map(|instance| Some(instance.seen?.proportional)).sum(),
            unseen: all.iter().filter(|instance| instance.seen.is_none()).count(),
            ..FunctionReport::default()
        };
        self.by_function.iter().map(|(name, all)| (name.clone(), of(all))).collect()
    }
}

fn bytes(instance: &Instance) -> u64 {
    instance.seen.map_or(UNMEASURED, |memory| memory.private)
}
