//! Sound sharing: whether a zygote may serve a function. Pure.
//!
//! A function must not be able to tell that it was forked: what it finds imported has to be what it would have imported
//! itself. The paper compared package names; that is clause 1 only, and by name it is not even that. All four clauses:
//!
//! 1. every distribution that the zygote could import from is in the function's lock, same version, same wheel;
//! 2. no import that failed in the zygote would succeed in the function's view, and no look-up of metadata would answer
//!    otherwise (pandas behaves differently where pyarrow is installed);
//! 3. the function's own files provide no name that the zygote imported or missed, but for those that the runtime itself
//!    has imported before any function's code runs;
//! 4. the function's environment agrees on every variable that the imports read.
//!
//! Clause 1 looks at the zygote's *view*, which the launcher mounted, and at nothing that the zygote says: code that once
//! ran in it may make it say anything, and must not reach functions that do not trust that code. The other clauses go by
//! the zygote's word; a lie there misleads only functions that run the liar's code anyway.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What a zygote says its imports did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Modules that are imported, beyond the baseline.
    pub imported: BTreeSet<String>,
    /// Modules that were looked for and not found.
    pub missed: BTreeSet<String>,
    /// Distributions whose metadata was asked for; `*` when all were listed.
    pub lookups: BTreeSet<String>,
    /// Environment variables that were read; `*` when all were listed.
    pub env: BTreeSet<String>,
    /// Whether a native extension of a package was loaded.
    pub native: bool,
    /// Threads that make it unsafe to fork.
    pub threads: Vec<String>,
    /// Whether it forks at all.
    pub safe: bool,
    /// Imports that failed, and why.
    pub errors: BTreeMap<String, String>,
    /// Modules of the runtime itself: every function finds them, forked or not.
    pub baseline: BTreeSet<String>,
    /// Of the modules that it imported last: microseconds and bytes of private memory, without what they imported in turn.
    #[serde(default)]
    pub costs: BTreeMap<String, (u64, u64)>,
}

/// A distribution as locks have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// Its version.
    pub version: String,
    /// Hash of its wheel.
    pub sha256: String,
    /// Every module name that it provides.
    pub modules: BTreeSet<String>,
}

/// A lock by normalised names of distributions.
pub type Lock = BTreeMap<String, Distribution>;

/// A zygote: what it was given, and what it says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// All that its view holds.
    pub lock: Lock,
    /// The environment that it was started with.
    pub env: BTreeMap<String, String>,
    /// Its report.
    pub facts: Facts,
}

/// A function.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidate {
    /// All that its view holds.
    pub lock: Lock,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Top-level module names that its own files and layers provide.
    pub own: BTreeSet<String>,
}

/// Why a zygote may not serve a function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// A thread lives in it.
    #[error("importing left threads behind: {0}")]
    Threads(String),
    /// Clause 1.
    #[error("the zygote has {0}, which the function's lock has not, or not so")]
    Distribution(String),
    /// Clause 2.
    #[error("the zygote looked for {0} in vain, and the function has it")]
    Missed(String),
    /// Clause 2, metadata.
    #[error("the zygote asked for the metadata of {0}, and the function's answer differs")]
    Metadata(String),
    /// Clause 3.
    #[error("the function has its own {0}, which the zygote imported or looked for")]
    Own(String),
    /// Clause 4.
    #[error("the zygote's imports read the variable {0}, which the function sets otherwise")]
    Environment(String),
}

/// Variables that native libraries read where no recorder sees it. The zygote's own values for them hold the libraries to
/// one thread while they are imported; a function that sets one itself wants it to count.
const NATIVE: [&str; 9] =
    ["OPENBLAS_", "OMP_", "KMP_", "GOMP_", "MKL_", "NUMEXPR_", "GOTO_", "MALLOC_", "GLIBC_TUNABLES"];

fn is_native(variable: &str) -> bool {
    NATIVE.iter().any(|prefix| variable.starts_with(prefix))
}

/// Says whether `node` may serve `function`.
pub fn sound(node: &Node, function: &Candidate) -> Result<(), Unsound> {
    let facts = &node.facts;
    if !facts.safe {
        return Err(Unsound::Threads(facts.threads.join(", ")));
    }
    for (name, distribution) in &node.lock {
        if function.lock.get(name) != Some(distribution) {
            return Err(Unsound::Distribution(format!("{name} {}", distribution.version)));
        }
    }
    // What the node has is in the function's lock, same wheels: only the rest can answer differently.
    let more: BTreeMap<_, _> =
        function.lock.iter().filter(|(name, _)| !node.lock.contains_key(*name)).collect();
    for missed in &facts.missed {
        let prefix = format!("{missed}.");
        let provides = |modules: &BTreeSet<String>| {
            modules.contains(missed)
                || modules.range(prefix.clone()..).next().is_some_and(|module| module.starts_with(&prefix))
        };
        if more.values().any(|distribution| provides(&distribution.modules)) {
            return Err(Unsound::Missed(missed.clone()));
        }
    }
    // A package that the node found may be spread over distributions (a namespace): more of it would be visible.
    for imported in &facts.imported {
        if more.values().any(|distribution| distribution.modules.contains(imported)) {
            return Err(Unsound::Missed(imported.clone()));
        }
    }
    for looked_up in &facts.lookups {
        let differs = match looked_up.as_str() {
            "*" => !more.is_empty(),
            name => more.contains_key(&normalised(name)),
        };
        if differs {
            return Err(Unsound::Metadata(looked_up.clone()));
        }
    }
    let top = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    for name in facts.imported.iter().chain(&facts.missed) {
        let name = top(name);
        if function.own.contains(&name) && !facts.baseline.contains(&name) {
            return Err(Unsound::Own(name));
        }
    }
    environment_agrees(node, function)
}

fn environment_agrees(node: &Node, function: &Candidate) -> Result<(), Unsound> {
    let read = &node.facts.env;
    let names: BTreeSet<&String> = if read.contains("*") {
        node.env.keys().chain(function.env.keys()).chain(read.iter().filter(|name| *name != "*")).collect()
    } else {
        read.iter().collect()
    };
    for name in names {
        // Given back to the child, so to the function it is as if the zygote had not had it.
        let nodes = node.env.get(name).filter(|_| !is_native(name));
        if nodes != function.env.get(name) {
            return Err(Unsound::Environment(name.clone()));
        }
    }
    if node.facts.native
        && let Some(name) = function.env.keys().find(|name| is_native(name))
    {
        return Err(Unsound::Environment(name.clone()));
    }
    Ok(())
}

/// A distribution's name as locks have it. PEP 503.
fn normalised(name: &str) -> String {
    let mut normal = String::new();
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if normal.ends_with('-') => {}
            '-' | '_' | '.' => normal.push('-'),
            c => normal.extend(c.to_lowercase()),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn distribution(version: u8, modules: BTreeSet<String>) -> Distribution {
        Distribution { version: format!("{version}"), sha256: format!("{version:064}"), modules }
    }

    fn name() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "c", "d", "e", "f"]).prop_map(str::to_owned)
    }

    fn module() -> impl Strategy<Value = String> {
        (name(), prop::option::of(name()))
            .prop_map(|(top, sub)| sub.map_or(top.clone(), |sub| format!("{top}.{sub}")))
    }

    fn names() -> impl Strategy<Value = BTreeSet<String>> {
        prop::collection::btree_set(name(), 0..3)
    }

    fn modules() -> impl Strategy<Value = BTreeSet<String>> {
        prop::collection::btree_set(module(), 0..3)
    }

    fn lock() -> impl Strategy<Value = Lock> {
        let distribution = (0..2u8, modules()).prop_map(|(version, modules)| distribution(version, modules));
        prop::collection::btree_map(name(), distribution, 0..3)
    }

    fn env() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map(name(), name(), 0..3)
    }

    fn node() -> impl Strategy<Value = Node> {
        (lock(), env(), modules(), modules(), names(), names()).prop_map(
            |(lock, env, imported, missed, lookups, read)| Node {
                lock,
                env,
                facts: Facts { imported, missed, lookups, env: read, safe: true, ..Facts::default() },
            },
        )
    }

    /// A function that has just what the node has.
    fn twin(node: &Node) -> Candidate {
        Candidate { lock: node.lock.clone(), env: node.env.clone(), own: BTreeSet::new() }
    }

    proptest! {
        #[test]
        fn a_node_may_serve_its_twin(node in node()) {
            prop_assert_eq!(sound(&node, &twin(&node)), Ok(()));
        }

        #[test]
        fn clause_1_another_wheel_or_none(node in node(), name in name()) {
            let mut function = twin(&node);
            if let Some(distribution) = function.lock.get_mut(&name) {
                distribution.sha256 = "other".into();
                prop_assert!(sound(&node, &function).is_err());
                function.lock.remove(&name);
                prop_assert!(sound(&node, &function).is_err());
            }
        }

        #[test]
        fn clause_2_what_was_missed_is_there(node in node(), module in module()) {
            let mut function = twin(&node);
            let before = function.lock.insert("more".into(), distribution(9, [module.clone()].into()));
            prop_assert!(before.is_none());
            let satisfied = node.facts.missed.iter().any(|m| *m == module || module.starts_with(&format!("{m}.")));
            prop_assert!(!satisfied || sound(&node, &function).is_err());
        }

        #[test]
        fn clause_2_metadata_that_was_asked_for(node in node(), name in name()) {
            let mut function = twin(&node);
            if function.lock.insert(name.clone(), distribution(9, BTreeSet::new())).is_none() {
                let asked = node.facts.lookups.contains(&name);
                prop_assert!(!asked || sound(&node, &function).is_err());
            }
        }

        #[test]
        fn clause_3_own_names(node in node(), name in name()) {
            let mut function = twin(&node);
            function.own.insert(name.clone());
            let mut touched = node.facts.imported.iter().chain(&node.facts.missed);
            let touched = touched.any(|module| module.split('.').next() == Some(name.as_str()));
            prop_assert_eq!(sound(&node, &function).is_err(), touched);
        }

        #[test]
        fn clause_4_variables_that_were_read(node in node(), name in name(), value in prop::option::of(name())) {
            let mut function = twin(&node);
            match &value {
                Some(value) => function.env.insert(name.clone(), value.clone()),
                None => function.env.remove(&name),
            };
            let differs = node.facts.env.contains(&name) && node.env.get(&name) != value.as_ref();
            prop_assert_eq!(sound(&node, &function).is_err(), differs);
        }

        #[test]
        fn soundness_is_never_won_by_a_larger_report(node in node(), more in node(), function in (lock(), env(), names())) {
            let (lock, env, own) = function;
            let function = Candidate { lock, env, own };
            let mut larger = node.clone();
            larger.facts.missed.extend(more.facts.missed);
            larger.facts.lookups.extend(more.facts.lookups);
            larger.facts.env.extend(more.facts.env);
            if sound(&node, &function).is_err() {
                prop_assert!(sound(&larger, &function).is_err());
            }
        }
    }

    #[test]
    fn a_listing_of_everything_wants_equal_locks() {
        let mut node = Node::default();
        node.facts.safe = true;
        node.facts.lookups.insert("*".into());
        let mut function = twin(&node);
        assert_eq!(sound(&node, &function), Ok(()));
        function.lock.insert("x".into(), distribution(1, BTreeSet::new()));
        assert_eq!(sound(&node, &function), Err(Unsound::Metadata("*".into())));
    }

    #[test]
    fn thread_counts_are_the_functions_own() {
        let mut node = Node::default();
        node.facts.safe = true;
        node.facts.native = true;
        node.facts.env.insert("OMP_NUM_THREADS".into());
        node.env.insert("OMP_NUM_THREADS".into(), "1".into());
        let mut function = Candidate::default();
        assert_eq!(sound(&node, &function), Ok(()));
        function.env.insert("OMP_NUM_THREADS".into(), "4".into());
        assert!(sound(&node, &function).is_err());
    }

    #[test]
    fn what_the_runtime_itself_imports_is_nobodys_own() {
        let mut node = Node::default();
        node.facts.safe = true;
        node.facts.baseline.insert("collections".into());
        node.facts.imported = ["collections.abc".into(), "socket".into()].into();
        let mut function = Candidate { own: ["collections".into()].into(), ..Candidate::default() };
        assert_eq!(sound(&node, &function), Ok(()));
        function.own.insert("socket".into());
        assert_eq!(sound(&node, &function), Err(Unsound::Own("socket".into())));
    }

    #[test]
    fn a_thread_makes_it_unsafe() {
        let mut node = Node::default();
        node.facts.threads.push("worker".into());
        assert!(matches!(sound(&node, &Candidate::default()), Err(Unsound::Threads(_))));
    }
}
