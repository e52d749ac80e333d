//! The zygotes that are there, and which of them serves a function.
//!
//! One is started for each pair of a view and a list of imports that a deployed function has; others may use it where the
//! sharing rule allows. The root zygote has no packages and is always there. Selection is best match: of the sound ones,
//! the one that has most of what the function imports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sock_isolation::launcher::wire::{Files, Request, StartZygote, ZygoteId};
use sock_isolation::{Command, Limits, Role};
use sock_zygote::frames::{ImportList, Kind};
use sock_zygote::runtime::{self, Entry};
use sock_zygote::{Facts, Import, Lock, Node, sound};

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

#[derive(Debug)]
pub(crate) struct Zygote {
    pub(crate) id: ZygoteId,
    key: Key,
    node: Node,
    modules: BTreeSet<String>,
    /// Instances that live in its namespaces: its end would be theirs.
    pub(crate) instances: AtomicUsize,
    /// Dropped with the zygote, which sees it close and ends; its log is read until then.
    control: tokio::task::AbortHandle,
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
        let root = Key::root(&python.runtime);
        self.ensure(root, Lock::new(), Vec::new(), python.argv(Entry::Zygote)).await
    }

    /// Makes sure that there is a zygote for `key`, whose view holds `lock`, started by `argv` with `more` variables than
    /// all have.
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        key: Key,
        lock: Lock,
        more: Vec<(String, String)>,
        argv: Vec<String>,
    ) -> Result<(), ZygoteError> {
        let _starting = self.starting.lock().await;
        {
            let running = self.lock();
            if running.contains_key(&key) || running.len() >= MAX_ZYGOTES {
                return Ok(());
            }
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let command = Command {
            argv,
            env: [runtime::environment(Entry::Zygote), more].concat(),
            directory: "/".into(),
            role: Role::Zygote,
            // Room for the largest libraries and for a child for every slot of a burst.
            limits: Limits { memory: 4 << 30, processes: 4096, files: 4096, ..Limits::default() },
            memory_by_kernel: false,
        };
        let env = command.env.iter().cloned().collect();
        let files = Files { view: key.view.clone(), ..Files::default() };
        let (_, fds) = self
            .launcher
            .call(Request::StartZygote(StartZygote { zygote: id, files, command, slots: SLOTS }))
            .await?;
        let mut peer = Peer::new(fds)?;
        let facts = match import(&mut peer, &key.imports).await {
            Ok(facts) => facts,
            Err(error) => {
                self.launcher.tell(Request::StopZygote { zygote: id });
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.retain(|_, at| at.elapsed() < RETRY);
                failed.insert(key, Instant::now());
                return Err(error);
            }
        };
        tracing::info!(zygote = id, imported = facts.imported.len(), safe = facts.safe, "zygote started");
        for (module, error) in &facts.errors {
            tracing::debug!(zygote = id, module, error, "not imported ahead");
        }
        if facts.safe {
            self.launcher.tell(Request::KeepSpares { zygote: id, count: SPARES });
        }
        let modules = facts.imported.iter().chain(&facts.baseline).cloned().collect();
        let (node, instances) = (Node { lock, env, facts }, AtomicUsize::new(0));
        // It may end at once, and can be forgotten only when it is there.
        let mut running = self.lock();
        let control = tokio::spawn(Self::attend(Arc::clone(self), key.clone(), id, peer)).abort_handle();
        let zygote = Arc::new(Zygote { id, key: key.clone(), node, modules, instances, control });
        running.insert(key, zygote);
        Ok(())
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
                || zygote.instances.load(Ordering::Acquire) > 0;
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

async fn import(peer: &mut Peer, imports: &[Import]) -> Result<Facts, ZygoteError> {
    let list = serde_json::to_vec(&ImportList { imports: imports.to_vec(), env: BTreeMap::new() })?;
    let exchange = async {
        peer.send(Kind::Import, &list).await?;
        peer.expect(Kind::Facts).await
    };
    let limit = Duration::from_secs(IMPORT_SECONDS);
    let result = tokio::time::timeout(limit, exchange).await.map_err(|_| ZygoteError::Slow)?;
    match result {
        Ok(report) => Ok(serde_json::from_slice(&report)?),
        Err(error) => {
            let said = String::from_utf8_lossy(&peer.take_output().text).trim().to_owned();
            let said = if said.is_empty() { said } else { format!("; it said: {said}") };
            Err(ZygoteError::Peer { error, said })
        }
    }
}
