//! The zygotes that are there, and which of them serves a function.
//!
//! They are a tree. The root has no packages and is always there; each other one was forked from the one that has most of what it
//! shall import, and imports the rest. One is grown for each pair of a view and a list of imports that a deployed function
//! has; others may use it where the sharing rule allows. Selection is best match: of the sound ones, the one that has most of
//! what the function imports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::{Files, ForkZygote, Request, StartZygote, ZygoteId};
use sock_isolation::{Command, Limits, Role};
use sock_zygote::frames::{ImportList, Kind};
use sock_zygote::runtime::{self, Entry};
use sock_zygote::{Candidate, Facts, Import, Lock, Node, sound};

use super::START;
use super::function::Prepared;
use super::launcher::{Launcher, LauncherError};
use super::process::{Peer, PeerError};
use super::python::Python;

/// A zygote could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZygoteError {
    /// See [`LauncherError`].
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// It failed while it imported.
    #[error("a zygote failed while importing: {error}{said}")]
    Peer { error: PeerError, said: String },
    /// Its report cannot be read.
    #[error("a zygote sent a report that is none: {0}")]
    Report(#[from] serde_json::Error),
    /// It took too long.
    #[error("a zygote was still importing after {IMPORT_SECONDS} s")]
    Slow,
    /// Its descriptors cannot be used.
    #[error("failed to talk to a zygote: {0}")]
    Io(#[from] std::io::Error),
}

/// The slowest packages (with compiled files, cold from disk) need a few seconds.
const IMPORT_SECONDS: u64 = 60;

/// What could not be imported now is not tried again at every request.
const RETRY: Duration = Duration::from_secs(60);

/// Each costs memory and a block of user ids. Beyond this, functions fork from the best that is there.
const MAX_ZYGOTES: usize = 64;

/// Slots kept ready for each; a burst beyond them waits about a millisecond for each more.
const SLOTS: u32 = 4;

/// Spares kept for each: one makes the usual case quick, where requests come one by one, at the price of about 2 MB.
const SPARES: u32 = 1;

/// What makes two zygotes the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) runtime: String,
    pub(crate) view: Option<String>,
    pub(crate) imports: Vec<Import>,
}

impl Key {
    /// Of the one without packages, which may serve every function.
    pub(crate) fn root(runtime: &str) -> Self {
        Self { runtime: runtime.to_owned(), view: None, imports: Vec::new() }
    }
}

/// A zygote that there shall be.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) key: Key,
    /// What its view holds.
    pub(crate) lock: Lock,
    /// Variables that it shall have besides those that all have.
    pub(crate) env: BTreeMap<String, String>,
}

impl Wish {
    fn files(&self) -> Files {
        Files { view: self.key.view.clone(), ..Files::default() }
    }
}

/// One that has imported what it was to.
struct Grown {
    id: ZygoteId,
    peer: Peer,
    env: BTreeMap<String, String>,
    facts: Facts,
    parent: Option<Using>,
}

#[derive(Debug)]
pub(crate) struct Zygote {
    pub(crate) id: ZygoteId,
    key: Key,
    node: Node,
    modules: BTreeSet<String>,
    /// What lives in its namespaces: instances, and zygotes that were forked from it. Its end would be theirs.
    pub(crate) users: AtomicUsize,
    /// The one in whose namespaces it lives.
    _parent: Option<Using>,
    /// Dropped with the zygote, which sees it close and ends; its log is read until then.
    control: tokio::task::AbortHandle,
}

/// Counts an instance or a zygote among those that live in a zygote's namespaces, for as long as it is there.
#[derive(Debug)]
pub(crate) struct Using(Arc<Zygote>);

impl Using {
    pub(crate) fn new(zygote: Arc<Zygote>) -> Self {
        zygote.users.fetch_add(1, Ordering::AcqRel);
        Self(zygote)
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        self.control.abort();
    }
}

pub(crate) struct Zygotes {
    launcher: Launcher,
    next: AtomicU32,
    running: Mutex<BTreeMap<Key, Arc<Zygote>>>,
    /// When the start of one failed last.
    failed: Mutex<BTreeMap<Key, Instant>>,
    /// Held while one is started, so that two deploys do not start the same.
    starting: tokio::sync::Mutex<()>,
}

impl Zygotes {
    pub(crate) fn new(launcher: Launcher) -> Self {
        let (next, running) = (AtomicU32::new(1), Mutex::default());
        Self { launcher, next, running, failed: Mutex::default(), starting: tokio::sync::Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Arc<Zygote>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is none for `key` and one may well be started.
    pub(crate) fn should_start(&self, key: &Key) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = failed.get(key).is_some_and(|at| at.elapsed() < RETRY);
        !lately && !self.lock().contains_key(key)
    }

    /// The best of those that may serve a function.
    pub(crate) fn choose(&self, prepared: &Prepared) -> Option<Arc<Zygote>> {
        let Prepared { function, candidate, imports, .. } = prepared;
        let running = self.lock();
        let of_runtime = running.values().filter(|zygote| zygote.key.runtime == function.runtime);
        let sound = of_runtime.filter(|zygote| match sound(&zygote.node, candidate) {
            Ok(()) => true,
            Err(reason) => {
                tracing::trace!(zygote = zygote.id, %reason, "not sound");
                false
            }
        });
        let wanted = |zygote: &Zygote| imports.iter().filter(|i| zygote.modules.contains(&i.module)).count();
        // Among equals the one that has less: forking costs by memory.
        let best = sound.max_by_key(|zygote| (wanted(zygote), std::cmp::Reverse(zygote.modules.len())));
        best.map(Arc::clone)
    }

    /// Makes sure that there is the root zygote of an interpreter.
    pub(crate) async fn ensure_root(self: &Arc<Self>, python: &Python) -> Result<(), ZygoteError> {
        let key = Key::root(&python.runtime);
        let root = Wish { key, lock: Lock::new(), env: BTreeMap::new() };
        self.ensure(root, python.argv(Entry::Zygote)).await
    }

    /// Makes sure that there is a zygote for `wish`; `argv` starts the first of its runtime.
    pub(crate) async fn ensure(self: &Arc<Self>, wish: Wish, argv: Vec<String>) -> Result<(), ZygoteError> {
        let _starting = self.starting.lock().await;
        {
            let running = self.lock();
            if running.contains_key(&wish.key) || running.len() >= MAX_ZYGOTES {
                return Ok(());
            }
        }
        let grown = self.grow(&wish, argv).await;
        let grown = match grown {
            Ok(grown) => grown,
            Err(error) => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.retain(|_, at| at.elapsed() < RETRY);
                failed.insert(wish.key, Instant::now());
                return Err(error);
            }
        };
        let Grown { id, peer, env, facts, parent } = grown;
        let above = parent.as_ref().map(|using| using.0.id);
        tracing::info!(
            zygote = id,
            above,
            imported = facts.imported.len(),
            safe = facts.safe,
            "zygote started"
        );
        for (module, error) in &facts.errors {
            tracing::debug!(zygote = id, module, error, "not imported ahead");
        }
        if facts.safe {
            self.launcher.tell(Request::KeepSpares { zygote: id, count: SPARES });
        }
        let modules = facts.imported.iter().chain(&facts.baseline).cloned().collect();
        let Wish { key, lock, .. } = wish;
        let node = Node { lock, env, facts };
        // It may end at once, and can be forgotten only when it is there.
        let mut running = self.lock();
        let control = tokio::spawn(Self::attend(Arc::clone(self), key.clone(), id, peer)).abort_handle();
        let users = AtomicUsize::new(0);
        let zygote =
            Arc::new(Zygote { id, key: key.clone(), node, modules, users, _parent: parent, control });
        running.insert(key, zygote);
        Ok(())
    }

    /// The zygote that one for `wish` is best forked from: of those that import nothing that it shall not, and that may serve it, the
    /// one that has most.
    fn parent(&self, wish: &Wish) -> Option<Arc<Zygote>> {
        let Wish { key, lock, env } = wish;
        let wanted: BTreeSet<&str> = key.imports.iter().map(|import| import.module.as_str()).collect();
        let own = BTreeSet::new();
        let candidate = |zygote: &Zygote| Candidate {
            lock: lock.clone(),
            env: zygote
                .node
                .env
                .iter()
                .chain(env)
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            own: own.clone(),
        };
        let running = self.lock();
        let fit = running.values().filter(|zygote| {
            zygote.key.runtime == key.runtime
                && zygote.key.imports.iter().all(|import| wanted.contains(import.module.as_str()))
                && sound(&zygote.node, &candidate(zygote)).is_ok()
        });
        fit.max_by_key(|zygote| zygote.modules.len()).map(Arc::clone)
    }

    /// Forks it from the best there is, or from the root; where there is none, starts it.
    async fn grow(&self, wish: &Wish, argv: Vec<String>) -> Result<Grown, ZygoteError> {
        let Some(best) = self.parent(wish) else { return self.start(wish, argv).await };
        let root = Key::root(&wish.key.runtime);
        let forked = self.fork(wish, Arc::clone(&best)).await;
        match forked {
            Err(error) if best.key != root => {
                tracing::warn!(zygote = best.id, %error, "another one is not forked from it");
                let root = self.lock().get(&root).map(Arc::clone);
                match root {
                    Some(root) => self.fork(wish, root).await,
                    None => self.start(wish, argv).await,
                }
            }
            forked => forked,
        }
    }

    async fn start(&self, wish: &Wish, argv: Vec<String>) -> Result<Grown, ZygoteError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let env = runtime::environment(Entry::Zygote);
        let command = Command {
            argv,
            env: env.clone(),
            directory: "/".into(),
            role: Role::Zygote,
            limits: limits(),
            memory_by_kernel: false,
        };
        let start = StartZygote { zygote: id, files: wish.files(), command, slots: SLOTS };
        let (_, fds) = self.launcher.call(Request::StartZygote(start)).await?;
        let mut peer = Peer::new(fds)?;
        let facts = self.import(id, &mut peer, wish).await?;
        let env = env.into_iter().chain(wish.env.clone()).collect();
        Ok(Grown { id, peer, env, facts, parent: None })
    }

    async fn fork(&self, wish: &Wish, parent: Arc<Zygote>) -> Result<Grown, ZygoteError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let fork =
            ForkZygote { zygote: id, parent: parent.id, files: wish.files(), limits: limits(), slots: SLOTS };
        // Before the request: a zygote that is used is not retired.
        let using = Using::new(Arc::clone(&parent));
        let (_, fds) = self.launcher.call(Request::ForkZygote(fork)).await?;
        let mut peer = Peer::new(fds)?;
        if let Err(error) = self.admit(id, &mut peer).await {
            self.launcher.tell(Request::StopZygote { zygote: id });
            return Err(error);
        }
        let facts = self.import(id, &mut peer, wish).await?;
        let env = parent.node.env.iter().chain(&wish.env);
        let env = env.map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Grown { id, peer, env, facts, parent: Some(using) })
    }

    /// Has a forked zygote looked at once it says that it has dropped everything.
    async fn admit(&self, id: ZygoteId, peer: &mut Peer) -> Result<(), ZygoteError> {
        let hello = tokio::time::timeout(START, peer.expect(Kind::Hello)).await;
        hello.map_err(|_| ZygoteError::Slow)?.map_err(|error| ZygoteError::of(error, peer))?;
        Ok(self.launcher.call_again(Request::Admit { zygote: id }).await.map(drop)?)
    }

    /// Has it import what it shall; one that does not is ended.
    async fn import(&self, id: ZygoteId, peer: &mut Peer, wish: &Wish) -> Result<Facts, ZygoteError> {
        let imported = import(peer, wish).await;
        if imported.is_err() {
            self.launcher.tell(Request::StopZygote { zygote: id });
        }
        imported
    }

    /// Reads a zygote's output until it ends, and then forgets it: the next that needs it starts another.
    async fn attend(self: Arc<Self>, key: Key, id: ZygoteId, mut peer: Peer) {
        let end = peer.receive().await;
        let said = String::from_utf8_lossy(&peer.take_output().text).into_owned();
        tracing::warn!(zygote = id, ?end, said, "zygote ended");
        let mut running = self.lock();
        if running.get(&key).is_some_and(|zygote| zygote.id == id) {
            running.remove(&key);
        }
    }

    /// Ends the zygotes that no function wants any more and in whose namespaces no instance lives.
    pub(crate) fn retire(&self, wanted: &BTreeSet<Key>) {
        let mut running = self.lock();
        running.retain(|key, zygote| {
            let keep = *key == Key::root(&key.runtime)
                || wanted.contains(key)
                || zygote.users.load(Ordering::Acquire) > 0;
            if !keep {
                tracing::info!(zygote = zygote.id, "zygote retired");
                self.launcher.tell(Request::StopZygote { zygote: zygote.id });
            }
            keep
        });
    }

    /// Forgets a zygote that does not answer, and ends it with its instances.
    pub(crate) fn discard(&self, zygote: &Zygote) {
        if self.lock().remove(&zygote.key).is_some() {
            self.launcher.tell(Request::StopZygote { zygote: zygote.id });
        }
    }
}

/// Room for the largest libraries and for a child for every slot of a burst.
fn limits() -> Limits {
    Limits { memory: 4 << 30, processes: 4096, files: 4096, ..Limits::default() }
}

async fn import(peer: &mut Peer, wish: &Wish) -> Result<Facts, ZygoteError> {
    let list = ImportList { imports: wish.key.imports.clone(), env: wish.env.clone() };
    let list = serde_json::to_vec(&list)?;
    let exchange = async {
        peer.send(Kind::Import, &list).await?;
        peer.expect(Kind::Facts).await
    };
    let limit = Duration::from_secs(IMPORT_SECONDS);
    let result = tokio::time::timeout(limit, exchange).await.map_err(|_| ZygoteError::Slow)?;
    Ok(serde_json::from_slice(&result.map_err(|error| ZygoteError::of(error, peer))?)?)
}

impl ZygoteError {
    /// With what it wrote.
    fn of(error: PeerError, peer: &mut Peer) -> Self {
        let said = String::from_utf8_lossy(&peer.take_output().text).trim().to_owned();
        let said = if said.is_empty() { said } else { format!("; it said: {said}") };
        Self::Peer { error, said }
    }
}
