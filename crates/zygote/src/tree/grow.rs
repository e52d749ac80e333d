//! The greedy choice.

use super::problem::Problem;
use super::{BASE_BYTES, Budget, Plan, Planned};

/// What a node that exists is worth more than one that would have to be started: without it, two that are worth about the same
/// would take turns as rates go up and down, and each turn costs the import of one.
const BONUS: f64 = 1.25;

/// A tree while it grows.
pub(super) struct Tree<'a> {
    problem: &'a Problem<'a>,
    budget: Budget,
    chosen: Vec<bool>,
    /// For each want, the microseconds that its node saves, and the node.
    served: Vec<(f64, Option<usize>)>,
    /// Private memory of all nodes that count.
    bytes: f64,
}

/// What taking one more node would change.
#[derive(Debug, Clone, Copy)]
struct Step {
    candidate: usize,
    bytes: f64,
    worth: f64,
}

impl<'a> Tree<'a> {
    /// The roots.
    pub(super) fn new(problem: &'a Problem<'a>, budget: Budget) -> Self {
        let chosen = problem.candidates.iter().map(|candidate| candidate.spec.is_root()).collect();
        let mut tree = Self { problem, budget, chosen, served: Vec::new(), bytes: 0.0 };
        tree.refresh();
        tree
    }

    /// Takes nodes as long as one is worth it.
    pub(super) fn grow(mut self) -> Self {
        // Every step saves more time, or as much in less memory, so no tree comes twice; the bound is for rounding errors.
        for _ in 0..2 * self.problem.candidates.len() {
            let Some(step) = self.next() else { break };
            self.chosen[step.candidate] = true;
            self.refresh();
            while let Some(idle) = self.idle() {
                self.chosen[idle] = false;
                self.refresh();
            }
        }
        self
    }

    fn nodes(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.chosen.iter().enumerate().filter(|(_, chosen)| **chosen).map(|(index, _)| index)
    }

    fn counted(&self) -> impl Iterator<Item = usize> + '_ {
        self.nodes().filter(|node| !self.problem.candidates[*node].spec.is_root())
    }

    /// Whom each want is served by, and what all cost, from who is chosen.
    fn refresh(&mut self) {
        let candidates = &self.problem.candidates;
        let mut served = vec![(0.0, None); self.problem.wants.len()];
        for node in self.nodes() {
            for (want, saved) in &candidates[node].saves {
                let (most, by) = &mut served[*want];
                let lighter =
                    || by.is_none_or(|by: usize| candidates[node].cost.bytes < candidates[by].cost.bytes);
                if *saved > *most || (*saved == *most && lighter()) {
                    (*most, *by) = (*saved, Some(node));
                }
            }
        }
        self.served = served;
        self.bytes = self.counted().map(|node| self.private(node)).sum();
    }

    fn parent(&self, candidate: usize) -> Option<usize> {
        self.problem.candidates[candidate].above.iter().copied().find(|above| self.chosen[*above])
    }

    fn shared(&self, parent: Option<usize>) -> f64 {
        parent.map_or(0.0, |parent| self.problem.candidates[parent].cost.bytes)
    }

    /// Private memory of a process: all that its parent imported it has too.
    fn private(&self, candidate: usize) -> f64 {
        let of = &self.problem.candidates[candidate];
        BASE_BYTES + of.extra + of.cost.bytes - self.shared(self.parent(candidate))
    }

    /// The step that is worth most by its price, of those that fit.
    fn next(&self) -> Option<Step> {
        if self.counted().count() >= self.budget.nodes || self.budget.bytes == 0 {
            return None;
        }
        let candidates = (0..self.chosen.len()).filter(|candidate| !self.chosen[*candidate]);
        let steps = candidates.map(|candidate| self.step(candidate));
        let fitting = steps.filter(|step| self.bytes + step.bytes <= self.budget.bytes as f64);
        let useful = fitting.filter(|step| step.worth > 0.0 || step.bytes < -1.0);
        useful.max_by(|a, b| {
            let by_worth = a.worth.total_cmp(&b.worth).then(b.bytes.total_cmp(&a.bytes));
            by_worth.then(b.candidate.cmp(&a.candidate))
        })
    }

    fn step(&self, candidate: usize) -> Step {
        let of = &self.problem.candidates[candidate];
        let saved = of.saves.iter().map(|(want, saved)| {
            let more = (saved - self.served[*want].0).max(0.0);
            self.problem.wants[*want].rate * more
        });
        let children = of.below.iter().filter(|child| self.chosen[**child]).filter_map(|child| {
            let parent = self.parent(*child);
            let better = parent.is_none_or(|parent| self.problem.is_better_parent(candidate, parent));
            better.then(|| self.shared(parent) - of.cost.bytes)
        });
        let bytes = self.private(candidate) + children.sum::<f64>();
        let bonus = if of.exists { BONUS } else { 1.0 };
        // The larger of the shares that it takes of memory and of places.
        let price = (bytes / self.budget.bytes as f64).max(1.0 / self.budget.nodes as f64);
        Step { candidate, bytes, worth: saved.sum::<f64>() * bonus / price }
    }

    /// A node that serves nobody, and without which the others need no more than with it.
    fn idle(&self) -> Option<usize> {
        let mut serving = self.chosen.iter().map(|_| false).collect::<Vec<_>>();
        self.served.iter().filter_map(|(_, node)| *node).for_each(|node| serving[node] = true);
        self.counted().find(|node| {
            !serving[*node] && {
                let candidates = &self.problem.candidates;
                let children = candidates[*node].below.iter().filter(|child| self.chosen[**child]);
                let more = children.filter(|child| self.parent(**child) == Some(*node)).map(|child| {
                    let above = candidates[*child].above.iter().copied();
                    let next = above.filter(|above| above != node).find(|above| self.chosen[*above]);
                    candidates[*node].cost.bytes - self.shared(next)
                });
                more.sum::<f64>() <= self.private(*node)
            }
        })
    }

    /// What was chosen, with more than one process where one would not do.
    pub(super) fn plan(self) -> Plan {
        let order: Vec<usize> = self.nodes().collect();
        let place = |node: usize| order.iter().position(|other| *other == node);
        let mut nodes: Vec<Planned> = Vec::new();
        let mut forks = Vec::new();
        for node in &order {
            let candidate = &self.problem.candidates[*node];
            let is_served = |want: usize| {
                let by_root = candidate.spec.is_root()
                    && candidate.spec.runtime == self.problem.wants[want].want.runtime;
                self.served[want].1.map_or(by_root, |by| by == *node)
            };
            let served = (0..self.served.len()).filter(|want| is_served(*want)).collect::<Vec<_>>();
            let rate = |want: &usize| self.problem.wants[*want].rate;
            let mut serves: Vec<usize> = served.iter().map(|want| self.problem.wants[*want].index).collect();
            serves.sort_unstable();
            nodes.push(Planned {
                spec: candidate.spec.clone(),
                parent: self.parent(*node).and_then(place),
                modules: self.problem.modules(candidate),
                bytes: self.private(*node) as u64,
                // From 0: the sum of none is -0 else.
                saved: served.iter().fold(0.0, |sum, want| sum + rate(want) * self.served[*want].0),
                replicas: 1,
                serves,
            });
            forks.push(served.iter().map(rate).sum::<f64>().max(candidate.recent));
        }
        self.replicate(&mut nodes, &forks);
        Plan { nodes }
    }

    fn replicate(&self, nodes: &mut [Planned], forks: &[f64]) {
        let mut room = self.budget.bytes.saturating_sub(self.bytes.ceil() as u64);
        let mut places = self.budget.nodes.saturating_sub(self.counted().count());
        let mut busiest: Vec<usize> = (0..nodes.len()).collect();
        busiest.sort_by(|a, b| forks[*b].total_cmp(&forks[*a]).then(a.cmp(b)));
        for index in busiest {
            let wanted = (forks[index] / f64::from(self.budget.forks.max(1))).ceil() as u64;
            let more = wanted.saturating_sub(1).min(places as u64).min(room / nodes[index].bytes.max(1));
            nodes[index].replicas += more as u32;
            places -= more as usize;
            room -= more * nodes[index].bytes;
        }
    }
}
