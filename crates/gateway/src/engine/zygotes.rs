//! The zygotes that are there, and which of them serves a function.
//!
//! They are a tree. The root has no packages and is always there; each other one was forked from the one that has most of what it
//! shall import, and imports the rest. Which ones there should be is the [`planner`](super::planner)'s to say. Selection is best
//! match: of those that the sharing rule allows, the one that saves most time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::{Request, ZygoteId};
use sock_zygote::tree::{self, Costs, Grown, Module, NodeSpec, Want};
use sock_zygote::{Candidate, Node, sound};

use super::launcher::Launcher;
use super::lock;
use super::process::Peer;
use super::python::Python;
use super::raise::{Raised, Room, Wish, ZygoteError};
use super::spares::{Arrivals, SLOTS};

/// What could not be imported now is not tried again at every request.
const RETRY: Duration = Duration::from_secs(60);

/// So many that end by themselves within [`RETRY`] of each other are enough: what its packages do ends it, and another would end as well.
const ENDS: usize = 3;

#[derive(Debug)]
pub(crate) struct Zygote {
    pub(crate) id: ZygoteId,
    pub(crate) spec: NodeSpec,
    pub(crate) node: Node,
    /// The modules that it and those above it have imported when they were told to: not those that the runtime has, or that a package
    /// makes up.
    pub(crate) imported: BTreeSet<String>,
    /// The same, as the policy has them.
    pub(crate) modules: BTreeSet<Module>,
    /// What lives in its namespaces: instances, and zygotes that were forked from it. Its end would be theirs.
    pub(crate) users: AtomicUsize,
    /// Instances that it was asked for.
    pub(crate) forks: AtomicU64,
    /// The one in whose namespaces it lives.
    parent: Option<Using>,
    /// What the launcher has user ids for.
    pub(super) room: Room,
    /// Zygotes that were forked from it and are there.
    children: AtomicU32,
    /// Memory that it has and its parent has not, bytes, as it was seen last; 0 before.
    pub(super) billed: AtomicU64,
    /// What the launcher was last told to keep of it: spares, slots.
    kept: Mutex<(u32, u32)>,
    /// Of the instances that it was asked for.
    pub(super) arrivals: Mutex<Arrivals>,
    /// Dropped with the zygote, which sees it close and ends; its log is read until then.
    control: tokio::task::AbortHandle,
}

impl Zygote {
    /// The one that it was forked from.
    pub(crate) fn parent(&self) -> Option<&Self> {
        self.parent.as_ref().map(|using| &*using.zygote)
    }

    /// Whether another one can be forked from it.
    pub(super) fn has_room(&self) -> bool {
        self.children.load(Ordering::Acquire) < self.room.children
    }

    /// Memory that it was seen to have beyond what its modules are taken to cost, bytes. Where that is little, it is what such figures are
    /// like.
    pub(super) fn extra(&self, costs: &Costs) -> f64 {
        let above = self.parent().map(|parent| &parent.modules);
        let own = self.modules.iter().filter(|module| above.is_none_or(|above| !above.contains(*module)));
        let expected = tree::BASE_BYTES + own.map(|module| costs.of(module).bytes).sum::<f64>();
        let seen = self.billed.load(Ordering::Relaxed) as f64;
        if seen > 1.5 * expected + LITTLE { seen - expected } else { 0.0 }
    }

    /// Spares and slots that the launcher keeps of it.
    pub(crate) fn kept(&self) -> (u32, u32) {
        *lock(&self.kept)
    }

    /// Whether it is zygote `id`, or lives in the namespaces of that.
    fn is_of(&self, id: ZygoteId) -> bool {
        self.id == id || self.parent().is_some_and(|parent| parent.is_of(id))
    }

    pub(crate) fn grown(&self) -> Grown<'_> {
        Grown::new(&self.spec, &self.modules)
    }
}

/// Counts an instance or a zygote among those that live in a zygote's namespaces, for as long as it is there.
#[derive(Debug)]
pub(crate) struct Using {
    zygote: Arc<Zygote>,
    is_zygote: bool,
}

impl Using {
    pub(crate) fn new(zygote: Arc<Zygote>) -> Self {
        zygote.users.fetch_add(1, Ordering::AcqRel);
        Self { zygote, is_zygote: false }
    }

    pub(super) fn child(zygote: Arc<Zygote>) -> Self {
        zygote.children.fetch_add(1, Ordering::AcqRel);
        let mut using = Self::new(zygote);
        using.is_zygote = true;
        using
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        self.zygote.users.fetch_sub(1, Ordering::AcqRel);
        if self.is_zygote {
            self.zygote.children.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        self.control.abort();
    }
}

/// Those that may serve a function best, by its revision.
type Choices = HashMap<String, Vec<Arc<Zygote>>>;

/// Bytes.
const LITTLE: f64 = 8e6;

pub(crate) struct Zygotes {
    /// What all of them may have together, bytes.
    pub(super) bytes: u64,
    pub(super) launcher: Launcher,
    pub(super) next: AtomicU32,
    pub(super) running: Mutex<Vec<Arc<Zygote>>>,
    /// Those that only live on for what lives in their namespaces.
    leaving: Mutex<Vec<Arc<Zygote>>>,
    /// Good until what runs changes.
    choices: Mutex<Choices>,
    /// Told when one has ended by itself.
    changed: Arc<tokio::sync::Notify>,
    /// When the start of one failed last.
    failed: Mutex<BTreeMap<NodeSpec, Instant>>,
    /// When those that ended by themselves did so lately.
    ends: Mutex<BTreeMap<NodeSpec, Vec<Instant>>>,
    /// Held while one is started, so that two deploys do not start the same.
    starting: tokio::sync::Mutex<()>,
}

impl Zygotes {
    pub(crate) fn new(launcher: Launcher, changed: Arc<tokio::sync::Notify>, bytes: u64) -> Self {
        Self {
            bytes,
            launcher,
            next: AtomicU32::new(1),
            running: Mutex::default(),
            leaving: Mutex::default(),
            changed,
            choices: Mutex::default(),
            failed: Mutex::default(),
            ends: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
        }
    }

    /// All that run.
    pub(crate) fn running(&self) -> Vec<Arc<Zygote>> {
        lock(&self.running).clone()
    }

    /// All that run, with those that only live on.
    pub(crate) fn all(&self) -> Vec<Arc<Zygote>> {
        let mut all = self.running();
        all.extend(lock(&self.leaving).iter().map(Arc::clone));
        all
    }

    /// Changes what runs.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<Zygote>>) -> T) -> T {
        let mut running = lock(&self.running);
        let result = change(&mut running);
        lock(&self.choices).clear();
        result
    }

    /// Memory of those that run but for roots, bytes, as far as it was seen.
    pub(super) fn billed(&self) -> u64 {
        let running = lock(&self.running);
        let counted = running.iter().filter(|zygote| !zygote.spec.is_root());
        counted.map(|zygote| zygote.billed.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn count(&self, spec: &NodeSpec) -> usize {
        lock(&self.running).iter().filter(|zygote| zygote.spec == *spec).count()
    }

    /// Whether one that `spec` describes failed to start a moment ago.
    pub(crate) fn failed_lately(&self, spec: &NodeSpec) -> bool {
        lock(&self.failed).get(spec).is_some_and(|at| at.elapsed() < RETRY)
    }

    fn fail(&self, spec: NodeSpec) {
        let mut failed = lock(&self.failed);
        failed.retain(|_, at| at.elapsed() < RETRY);
        failed.insert(spec, Instant::now());
    }

    /// One has ended by itself, or before it was there. Where that goes on, no other is started for a while; but for a root, without
    /// which nobody is served.
    fn note_end(&self, spec: &NodeSpec) {
        if spec.is_root() {
            return;
        }
        let often = {
            let mut all = lock(&self.ends);
            all.entry(spec.clone()).or_default().push(Instant::now());
            all.values_mut().for_each(|ends| ends.retain(|at| at.elapsed() < RETRY));
            all.retain(|_, ends| !ends.is_empty());
            all.get(spec).is_some_and(|ends| ends.len() >= ENDS)
        };
        if often {
            tracing::warn!(
                seconds = RETRY.as_secs(),
                "zygotes with the same imports end again and again: none is started for a while"
            );
            self.fail(spec.clone());
        }
    }

    /// The best of those that may serve a function, of equal ones that with fewest users. `weigh` gives the function as the policy
    /// sees it, and what modules cost.
    pub(crate) fn choose(
        &self,
        revision: &str,
        candidate: &Candidate,
        weigh: impl FnOnce() -> (Want, Arc<Costs>),
    ) -> Option<Arc<Zygote>> {
        let least = |equal: &[Arc<Zygote>]| {
            equal.iter().min_by_key(|zygote| zygote.users.load(Ordering::Relaxed)).map(Arc::clone)
        };
        if let Some(known) = lock(&self.choices).get(revision) {
            return least(known);
        }
        let running = lock(&self.running);
        let (want, costs) = weigh();
        let sound: Vec<&Arc<Zygote>> = running
            .iter()
            .filter(|zygote| {
                let reason = sound(&zygote.node, candidate).err();
                if let Some(reason) = &reason {
                    tracing::trace!(zygote = zygote.id, %reason, "not sound");
                }
                reason.is_none()
            })
            .collect();
        let grown: Vec<Grown<'_>> = sound.iter().map(|zygote| zygote.grown()).collect();
        let best = tree::best(&grown, &want, &costs).map(|at| &sound[at].spec);
        let equal = sound.iter().filter(|zygote| Some(&zygote.spec) == best);
        let equal: Vec<Arc<Zygote>> = equal.map(|zygote| Arc::clone(zygote)).collect();
        let chosen = least(&equal);
        lock(&self.choices).insert(revision.to_owned(), equal);
        chosen
    }

    /// Makes sure that there is the root zygote of an interpreter.
    pub(crate) async fn ensure_root(self: &Arc<Self>, python: &Python) -> Result<(), ZygoteError> {
        self.add(Wish::root(&python.runtime), None, python, 1).await.map(drop)
    }

    /// One more zygote for `wish`, forked from the best there is; in the plan it is below `above`. Where there are `most` of them by
    /// then, since several see to it, one of those.
    pub(crate) async fn add(
        self: &Arc<Self>,
        wish: Wish,
        above: Option<&NodeSpec>,
        python: &Python,
        most: usize,
    ) -> Result<Arc<Zygote>, ZygoteError> {
        let _starting = self.starting.lock().await;
        let same: Vec<_> = self.running().into_iter().filter(|zygote| zygote.spec == wish.spec).collect();
        if same.len() >= most
            && let Some(there) = same.into_iter().next()
        {
            return Ok(there);
        }
        // Before it is looked for what it is forked from, which may end while this is waited for.
        if let Some((view, layers)) = &wish.view {
            let (view, layers) = (view.clone(), layers.clone());
            self.launcher.call(Request::AddView { view, layers }).await?;
        }
        let root = NodeSpec::root(&wish.spec.runtime);
        if wish.spec != root && self.count(&root) == 0 && !self.failed_lately(&root) {
            // It ended a moment ago and is about to be started again: without it this one would be an interpreter of its own for good.
            let _ = self.add_now(Wish::root(&python.runtime), None, python).await;
        }
        self.add_now(wish, above, python).await
    }

    /// As [`Zygotes::add`], which sees to it that one at a time is started.
    async fn add_now(
        self: &Arc<Self>,
        wish: Wish,
        above: Option<&NodeSpec>,
        python: &Python,
    ) -> Result<Arc<Zygote>, ZygoteError> {
        let begin = Instant::now();
        let raised = match self.raise(&wish, above, python).await {
            Ok(raised) => raised,
            Err(error) => {
                if error.is_early() {
                    self.note_end(&wish.spec);
                } else {
                    self.fail(wish.spec);
                }
                return Err(error);
            }
        };
        let Raised { id, room, peer, env, facts, parent } = raised;
        let above = parent.as_ref().map(|using| using.zygote.id);
        let (imported, safe, ms) = (facts.imported.len(), facts.safe, begin.elapsed().as_millis() as u64);
        tracing::info!(zygote = id, above, imported, safe, ms, "zygote started");
        let names = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>().join(" ");
        let imports = names(&mut wish.spec.imports.iter().map(|import| &import.module));
        tracing::debug!(zygote = id, imports, packages = names(&mut wish.spec.lock.keys()), "what it is for");
        for (module, error) in &facts.errors {
            tracing::debug!(zygote = id, module, error, "not imported ahead");
        }
        let Wish { spec, lock: wheels, .. } = wish;
        let inherited = parent.iter().flat_map(|using| &using.zygote.imported);
        let imported: BTreeSet<String> = inherited.chain(facts.costs.keys()).cloned().collect();
        let modules = Want::modules_of(&wheels, &[], &imported);
        let modules = Want { lock: spec.lock.clone(), modules, ..Want::default() }.imported();
        let node = Node { lock: wheels, env, facts };
        // It may end at once, and can be forgotten only when it is there.
        self.change(|running| {
            let control = tokio::spawn(Self::attend(Arc::clone(self), id, peer)).abort_handle();
            let zygote = Arc::new(Zygote {
                id,
                spec,
                node,
                imported,
                modules,
                users: AtomicUsize::new(0),
                forks: AtomicU64::new(0),
                parent,
                room,
                children: AtomicU32::new(0),
                billed: AtomicU64::new(0),
                kept: Mutex::new((0, SLOTS)),
                arrivals: Mutex::default(),
                control,
            });
            running.push(Arc::clone(&zygote));
            Ok(zygote)
        })
    }

    /// Nothing is forked from `zygote` any more; it ends when nothing lives in its namespaces.
    pub(crate) fn leave(&self, zygote: &Arc<Zygote>) {
        self.keep(zygote, 0, 0);
        self.change(|running| running.retain(|other| other.id != zygote.id));
        lock(&self.leaving).push(Arc::clone(zygote));
    }

    /// Has so many spares of `zygote` kept, and slots.
    pub(crate) fn keep(&self, zygote: &Zygote, spares: u32, slots: u32) {
        let wanted = if zygote.node.facts.safe { (spares.min(zygote.room.spares), slots) } else { (0, 0) };
        let mut kept = lock(&zygote.kept);
        if *kept != wanted {
            *kept = wanted;
            let (spares, slots) = wanted;
            self.launcher.tell(Request::Keep { zygote: zygote.id, spares, slots });
        }
    }

    /// The zygote that one for `wish` is best forked from: of those that may serve it and that import nothing that it shall not, as the
    /// plan knows of `above`, the one that has most.
    pub(super) fn parent(&self, wish: &Wish, above: Option<&NodeSpec>) -> Option<Arc<Zygote>> {
        let wanted: BTreeSet<&str> = wish.spec.imports.iter().map(|import| import.module.as_str()).collect();
        let running = lock(&self.running);
        let fit = running.iter().filter(|zygote| {
            let spec = &zygote.spec;
            spec.runtime == wish.spec.runtime
                && zygote.has_room()
                && (spec.lock.is_empty() || spec.tenant == wish.spec.tenant)
                && *spec != wish.spec
                && (Some(spec) == above
                    || spec.imports.iter().all(|import| wanted.contains(import.module.as_str())))
                && match sound(&zygote.node, &zygote.node.heir(&wish.lock, &wish.env)) {
                    Ok(()) => true,
                    Err(reason) => {
                        tracing::debug!(zygote = zygote.id, %reason, "another one is not to be forked from it");
                        false
                    }
                }
        });
        fit.max_by_key(|zygote| zygote.modules.len()).map(Arc::clone)
    }

    /// Reads a zygote's output until it ends, and then forgets it: the next that needs it starts another.
    async fn attend(self: Arc<Self>, id: ZygoteId, mut peer: Peer) {
        let end = peer.receive().await;
        let said = String::from_utf8_lossy(&peer.take_output().text).into_owned();
        tracing::warn!(zygote = id, ?end, said, "zygote ended");
        // It may have hung up and live on, as what lives in its namespaces does until those end.
        self.launcher.see_to(Request::StopZygote { zygote: id });
        if let Some(zygote) = self.lose(id) {
            self.note_end(&zygote.spec);
        }
        lock(&self.leaving).retain(|zygote| !zygote.is_of(id));
        self.changed.notify_one();
    }

    /// Ends those that `wanted` does not count, and in whose namespaces nothing lives.
    pub(crate) fn retire(&self, wanted: &BTreeMap<NodeSpec, u32>) {
        lock(&self.leaving).retain(|zygote| {
            let used = zygote.users.load(Ordering::Acquire) > 0;
            if !used {
                self.launcher.tell(Request::StopZygote { zygote: zygote.id });
            }
            used
        });
        // One that another was forked from is free when that has gone.
        while self.retire_once(wanted) {}
    }

    /// Whether any was ended.
    fn retire_once(&self, wanted: &BTreeMap<NodeSpec, u32>) -> bool {
        self.change(|running| {
            let (before, mut left) = (running.len(), wanted.clone());
            for zygote in running.iter().filter(|zygote| zygote.spec.is_root()) {
                let count = left.entry(zygote.spec.clone()).or_default();
                *count = (*count).max(1);
            }
            running.retain(|zygote| {
                let keep = left.get_mut(&zygote.spec).is_some_and(|count| {
                    let more = *count > 0;
                    *count = count.saturating_sub(1);
                    more
                }) || zygote.users.load(Ordering::Acquire) > 0;
                if !keep {
                    tracing::info!(zygote = zygote.id, "zygote retired");
                    self.launcher.tell(Request::StopZygote { zygote: zygote.id });
                }
                keep
            });
            running.len() < before
        })
    }

    /// Forgets a zygote, and those that live in its namespaces; gives it, if it was known.
    fn lose(&self, id: ZygoteId) -> Option<Arc<Zygote>> {
        let lost = self.change(|running| {
            let (lost, kept) =
                std::mem::take(running).into_iter().partition::<Vec<_>, _>(|zygote| zygote.is_of(id));
            *running = kept;
            lost
        });
        lost.into_iter().find(|zygote| zygote.id == id)
    }

    /// Forgets a zygote that does not answer, and ends it with its instances.
    pub(crate) fn discard(&self, zygote: &Zygote) {
        if self.lose(zygote.id).is_some() {
            self.note_end(&zygote.spec);
            self.launcher.tell(Request::StopZygote { zygote: zygote.id });
        }
    }
}
