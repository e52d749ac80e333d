//! Instances that wait for the next invocation of their function.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::instance::Instance;
use crate::names::FunctionName;
use crate::runner::Function;

/// Idle instances that are kept, over all functions.
const MAX_IDLE: usize = 64;

/// How long an idle instance is kept: Lambda keeps one for some minutes.
const IDLE: Duration = Duration::from_secs(300);

/// Idle instances by function, the one that was used last at the end. What is of no use any more is handed out, to be dropped
/// outside of the lock.
#[derive(Default)]
pub(super) struct Idle {
    by_function: HashMap<FunctionName, VecDeque<Instance>>,
    count: usize,
}

impl Idle {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// One that can take an invocation of the function as it is now; and those that turned out to be of no use.
    pub(super) fn take(&mut self, function: &Function) -> (Option<Instance>, Vec<Instance>) {
        let (mut found, mut stale) = (None, Vec::new());
        let instances = self.by_function.get_mut(&function.name);
        // The one that was used last has most of its memory still mapped.
        for mut instance in instances.into_iter().flat_map(|all| std::iter::from_fn(|| all.pop_back())) {
            if instance.revision == function.revision && instance.peer.is_quiet() {
                found = Some(instance);
                break;
            }
            stale.push(instance);
        }
        self.count -= stale.len() + usize::from(found.is_some());
        (found, stale)
    }

    /// Keeps one; and hands out the one that has been idle longest, if they are too many.
    pub(super) fn keep(&mut self, name: &FunctionName, mut instance: Instance) -> Option<Instance> {
        instance.idle_since = Instant::now();
        self.by_function.entry(name.clone()).or_default().push_back(instance);
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

    /// Those that have been idle for long, have died, or in which something goes on that nobody asked for.
    pub(super) fn tidy(&mut self) -> Vec<Instance> {
        let mut old = Vec::new();
        for instances in self.by_function.values_mut() {
            for mut instance in std::mem::take(instances) {
                let keep = instance.idle_since.elapsed() <= IDLE && instance.peer.is_quiet();
                if keep { instances.push_back(instance) } else { old.push(instance) }
            }
        }
        self.by_function.retain(|_, instances| !instances.is_empty());
        self.count -= old.len();
        old
    }

    /// All of a function's.
    pub(super) fn remove(&mut self, name: &FunctionName) -> VecDeque<Instance> {
        let instances = self.by_function.remove(name).unwrap_or_default();
        self.count -= instances.len();
        instances
    }
}
