//! How a zygote comes to be: forked from the best there is, looked at, and told what to import.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sock_isolation::launcher::wire::{Files, ForkZygote, Reply, Request, StartZygote, ZygoteId};
use sock_isolation::{Command, Limits, Role};
use sock_zygote::frames::{ImportList, Kind};
use sock_zygote::runtime::{self, Entry};
use sock_zygote::tree::NodeSpec;
use sock_zygote::{Facts, Lock};

use super::launcher::LauncherError;
use super::process::{Peer, PeerError};
use super::python::Python;
use super::spares::SLOTS;
use super::zygotes::{Using, Zygote, Zygotes};
use super::{START, lock};

/// A zygote could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZygoteError {
    /// See [`LauncherError`].
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// It ended before it was one.
    #[error("a zygote was not forked: {error}{said}")]
    Unborn { error: PeerError, said: String },
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

/// A zygote that there shall be.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) spec: NodeSpec,
    /// What its view holds.
    pub(crate) lock: Lock,
    /// The view's name at the launcher, and its layers.
    pub(crate) view: Option<(String, Vec<String>)>,
    /// Variables that it shall have besides those that all have.
    pub(crate) env: BTreeMap<String, String>,
}

impl Wish {
    pub(crate) fn root(runtime: &str) -> Self {
        let (lock, env) = (Lock::new(), BTreeMap::new());
        Self { spec: NodeSpec::root(runtime), lock, view: None, env }
    }

    fn files(&self) -> Files {
        Files { view: self.view.as_ref().map(|(name, _)| name.clone()), ..Files::default() }
    }
}

/// What the launcher has user ids for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    pub(super) spares: u32,
    /// Zygotes that are forked from it.
    pub(super) children: u32,
}

impl Room {
    fn of(reply: &Reply) -> Self {
        match reply {
            Reply::Zygote { most_spares, most_children } => {
                Self { spares: *most_spares, children: *most_children }
            }
            _ => Self::default(),
        }
    }
}

/// One that has imported what it was to.
pub(super) struct Raised {
    pub(super) id: ZygoteId,
    pub(super) room: Room,
    pub(super) peer: Peer,
    pub(super) env: BTreeMap<String, String>,
    pub(super) facts: Facts,
    pub(super) parent: Option<Using>,
}

impl Zygotes {
    /// Forks it from the best there is, or from the root; where there is none, starts it.
    pub(super) async fn raise(
        &self,
        wish: &Wish,
        above: Option<&NodeSpec>,
        python: &Python,
    ) -> Result<Raised, ZygoteError> {
        let Some(best) = self.parent(wish, above) else { return self.start(wish, python).await };
        let forked = self.fork(wish, Arc::clone(&best)).await;
        match forked {
            Err(error) if !best.spec.is_root() => {
                tracing::warn!(zygote = best.id, %error, "another one is not forked from it");
                let root = NodeSpec::root(&wish.spec.runtime);
                let root = lock(&self.running).iter().find(|zygote| zygote.spec == root).map(Arc::clone);
                match root {
                    Some(root) => self.fork(wish, root).await,
                    None => self.start(wish, python).await,
                }
            }
            forked => forked,
        }
    }

    async fn start(&self, wish: &Wish, python: &Python) -> Result<Raised, ZygoteError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let env = runtime::environment(Entry::Zygote);
        let command = Command {
            argv: python.argv(Entry::Zygote),
            env: env.clone(),
            directory: "/".into(),
            role: Role::Zygote,
            limits: limits(self.bytes),
            memory_by_kernel: false,
        };
        let start = StartZygote { zygote: id, files: wish.files(), command, slots: SLOTS };
        let (reply, fds) = self.launcher.call(Request::StartZygote(start)).await?;
        let room = Room::of(&reply);
        let mut peer = Peer::new(fds)?;
        let facts = self.import(id, &mut peer, wish).await?;
        Ok(Raised {
            id,
            room,
            peer,
            env: env.into_iter().chain(wish.env.clone()).collect(),
            facts,
            parent: None,
        })
    }

    async fn fork(&self, wish: &Wish, parent: Arc<Zygote>) -> Result<Raised, ZygoteError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let fork = ForkZygote {
            zygote: id,
            parent: parent.id,
            files: wish.files(),
            limits: limits(self.bytes),
            slots: SLOTS,
        };
        // Before the request: a zygote that is used is not retired.
        let using = Using::child(Arc::clone(&parent));
        let (reply, fds) = self.launcher.call(Request::ForkZygote(fork)).await?;
        let room = Room::of(&reply);
        let mut peer = Peer::new(fds)?;
        if let Err(error) = self.admit(id, &mut peer).await {
            self.launcher.tell(Request::StopZygote { zygote: id });
            return Err(error);
        }
        let facts = self.import(id, &mut peer, wish).await?;
        Ok(Raised { id, room, peer, env: together(&parent.node.env, &wish.env), facts, parent: Some(using) })
    }

    /// Has a forked zygote looked at once it says that it has dropped everything.
    async fn admit(&self, id: ZygoteId, peer: &mut Peer) -> Result<(), ZygoteError> {
        let hello = tokio::time::timeout(START, peer.expect(Kind::Hello)).await;
        hello.map_err(|_| ZygoteError::Slow)?.map_err(|error| {
            let said = said(peer);
            ZygoteError::Unborn { error, said }
        })?;
        let (_, fds) = self.launcher.call(Request::Admit { zygote: id }).await?;
        // What it has started may hold its socket open when it has ended.
        fds.into_iter().try_for_each(|pidfd| peer.watch(pidfd))?;
        Ok(())
    }

    /// Has it import what it shall; one that does not is ended.
    async fn import(&self, id: ZygoteId, peer: &mut Peer, wish: &Wish) -> Result<Facts, ZygoteError> {
        let imported = import(peer, wish).await;
        if imported.is_err() {
            self.launcher.tell(Request::StopZygote { zygote: id });
        }
        imported
    }
}

/// Room for the largest libraries and for a child for every slot of a burst. What needs more memory than all zygotes together may have is
/// imported by each instance itself.
fn limits(all: u64) -> Limits {
    Limits { memory: all.clamp(LEAST, MOST), processes: 4096, files: 4096, ..Limits::default() }
}

/// Memory of a zygote, bytes, whatever they may have together: an interpreter and a few packages; and the largest that are known.
const LEAST: u64 = 128 << 20;
const MOST: u64 = 4 << 30;

fn together(env: &BTreeMap<String, String>, more: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    env.iter().chain(more).map(|(name, value)| (name.clone(), value.clone())).collect()
}

async fn import(peer: &mut Peer, wish: &Wish) -> Result<Facts, ZygoteError> {
    let list = ImportList { imports: wish.spec.imports.clone(), env: wish.env.clone() };
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
        Self::Peer { error, said: said(peer) }
    }

    /// Whether it says nothing of what was to be imported. The one that it was to be forked from may have died meanwhile.
    pub(super) fn is_early(&self) -> bool {
        matches!(self, Self::Launcher(_) | Self::Unborn { .. } | Self::Io(_))
    }
}

fn said(peer: &mut Peer) -> String {
    let said = String::from_utf8_lossy(&peer.take_output().text).trim().to_owned();
    if said.is_empty() { said } else { format!("; it said: {said}") }
}
