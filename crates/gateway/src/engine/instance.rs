//! Where instances come from, and how they go: a process out of a zygote or by itself, checked, that imports the handler.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sock_isolation::Command;
use sock_isolation::launcher::wire::{self, Files, InstanceId, Memory, Reply, Request};
use sock_zygote::frames::{self, Kind, Nonce, Ready};
use sock_zygote::runtime::{self, Entry};

use super::ending::{Ended, ended};
use super::function::Prepared;
use super::launcher::{Launcher, LauncherError};
use super::process::{Output, Peer, PeerError};
use super::zygotes::{Using, Zygote};
use super::{ATTEMPTS, Engine, START, ask, failed};
use crate::runner::{Function, Invocation, InvocationResult, Outcome, Phases, StartKind};

/// The longest event that is sent together with the function, bytes: it waits in the socket meanwhile, which has room for more.
const EARLY: usize = 64 << 10;

/// The most that is kept of a function's compiled modules, bytes. An instance that has more sends none.
const MAX_CODE: usize = 64 << 10;

/// The launcher's numbers start at 1; this stands for an instance that was destroyed by hand.
const GONE: InstanceId = 0;

/// A process that was checked and has imported its handler.
pub(super) struct Instance {
    pub(super) id: InstanceId,
    /// As it was started with.
    pub(super) function: Arc<Function>,
    pub(super) peer: Peer,
    /// Whether it has had no invocation.
    pub(super) unused: bool,
    _using: Option<Using>,
    pub(super) idle_since: Instant,
    /// What it had when that was asked last, and whether that was since its last invocation.
    pub(super) seen: Option<Memory>,
    pub(super) measured: bool,
    /// What tells of its memory.
    memory: Option<File>,
    /// Its `cgroup.freeze`, and whether it says that the instance is frozen.
    freezer: Option<File>,
    frozen: bool,
    pub(super) max_memory_mb: u32,
    launcher: Launcher,
}

impl Instance {
    /// Whether it is one of `function` as that is now. How it is marked changes without a new revision.
    pub(super) fn is_of(&self, function: &Function) -> bool {
        let Function { revision, fresh, profile, tenant, single_use, .. } = &*self.function;
        (revision, fresh, profile, tenant)
            == (&function.revision, &function.fresh, &function.profile, &function.tenant)
            && (*single_use == function.single_use || self.unused)
    }

    /// Whether it was not destroyed by hand.
    pub(super) fn is_there(&self) -> bool {
        self.id != GONE
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Stops all that goes on in it. What cannot be stopped goes on, within its limits.
    pub(super) fn freeze(&mut self) {
        if !self.frozen {
            self.frozen = self.write("1");
        }
    }

    /// Lets it go on, if it was stopped. Whether it does.
    pub(super) fn thaw(&mut self) -> bool {
        if self.frozen {
            self.frozen = !self.write("0");
        }
        !self.frozen
    }

    /// The most memory that it has used, or what it uses now, bytes.
    pub(super) fn memory_used(&self) -> Option<u64> {
        // A status file has half as much.
        let mut text = [0; 4096];
        let length = self.memory.as_ref()?.read_at(&mut text, 0).ok()?;
        wire::memory_used(std::str::from_utf8(&text[..length]).ok()?)
    }

    /// Ends it when there is time for that: not before the answer that it gave last has been sent, nor while others wait for a start.
    pub(super) fn end_later(mut self) {
        let instance = std::mem::replace(&mut self.id, GONE);
        tokio::spawn(async move {
            // Without its socket it would end at once.
            if let Err(LauncherError::Refused(_)) = self.launcher.call(Request::Release { instance }).await {
                self.launcher.tell(Request::Destroy { instance });
            }
        });
    }

    fn write(&self, text: &str) -> bool {
        self.freezer.as_ref().is_some_and(|mut file| file.write_all(text.as_bytes()).is_ok())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.id != GONE {
            self.launcher.tell(Request::Destroy { instance: self.id });
        }
    }
}

/// A new instance that has imported its handler.
pub(super) struct Started {
    pub(super) instance: Instance,
    pub(super) kind: StartKind,
    /// It was sent the invocation already, and this is what its answer begins with.
    pub(super) asked: Option<Nonce>,
}

/// Why there is no instance, and where the one that failed came from.
pub(super) struct StartFailure {
    kind: StartKind,
    error: StartError,
}

/// Where there was no process at all.
impl From<String> for StartFailure {
    fn from(why: String) -> Self {
        Self { kind: StartKind::Cold, error: StartError::Platform(why) }
    }
}

pub(super) enum StartError {
    /// The handler could not be imported: Lambda's error object.
    Init { error: Vec<u8>, output: Output },
    /// The process ended while it imported the handler, or was ended since it broke the protocol.
    Ended { result: InvocationResult, output: Output },
    /// Importing took longer than this.
    Slow { limit: Duration, output: Output },
    /// Our own fault.
    Platform(String),
}

impl Engine {
    /// Gets a process for the function, has it import the handler, and may send it the invocation, if there is one, with that.
    pub(super) async fn start_for(
        &self,
        function: &Arc<Function>,
        invocation: Option<&Invocation>,
        phases: &mut Phases,
    ) -> Result<Started, StartFailure> {
        let prepared = self.prepared(function).await?;
        let (begin, begun) = (Instant::now(), Instant::now());
        let mut attempt = 1;
        let (mut instance, kind, zygote) = loop {
            let forking = !function.fresh && attempt < ATTEMPTS;
            let zygote = forking.then(|| self.choose(&prepared)).flatten();
            if zygote.is_none() && invocation.is_none() {
                return Err("it is not forked, and nobody waits for an interpreter of its own"
                    .to_owned()
                    .into());
            }
            match self.obtain(&prepared, zygote.clone()).await {
                Ok((instance, kind)) => break (instance, kind, zygote),
                Err(why) if attempt == ATTEMPTS || function.fresh || invocation.is_none() => {
                    return Err(why.into());
                }
                // None of the function's code has run.
                Err(why) => tracing::warn!(function = %function.name, why, "trying another process"),
            }
            attempt += 1;
        };
        phases.provision = begin.elapsed();
        let begin = Instant::now();
        let tell = !function.fresh && self.wants_to_know(&prepared, zygote.as_deref());
        let keep = !function.fresh && prepared.code.get().is_none();
        let init =
            frames::encode(Kind::Init, &prepared.init(tell, keep)).map_err(|error| error.to_string())?;
        // What is kept for other instances is what the import of the handler makes, which has seen no event.
        let early = invocation.filter(|invocation| !keep && invocation.event.len() <= EARLY);
        let (asked, message) = match early.map(|invocation| ask(function, invocation, true)) {
            Some(Ok((nonce, frame))) => (Some(nonce), [init, frame].concat()),
            _ => (None, init),
        };
        // What takes longer than that is not for who does not wait for it.
        let limit = if invocation.is_some() { START.max(function.timeout) } else { START };
        let import = async {
            instance.peer.send_all(&message).await?;
            instance.peer.receive().await
        };
        let imported = tokio::time::timeout(limit, import).await;
        phases.init = begin.elapsed();
        let error = match imported {
            Ok(Ok((Kind::Ready, ready))) => {
                // It may say anything; what it says is about its own function.
                let (ready, code) = frames::with_code(&ready).unwrap_or_default();
                if tell && let Ok(ready) = serde_json::from_slice::<Ready>(ready) {
                    self.note_instance(&prepared, zygote.as_deref(), ready.imported);
                }
                if keep {
                    // Or another one was first.
                    let _ =
                        prepared.code.set(if code.len() <= MAX_CODE { code.to_vec() } else { Vec::new() });
                }
                self.note_start(function, begun.elapsed());
                return Ok(Started { instance, kind, asked });
            }
            Ok(Ok((Kind::InitError, error))) => {
                StartError::Init { error, output: instance.peer.take_output() }
            }
            Ok(Ok((other, _))) => self.fallen(&mut instance, &PeerError::Unexpected(other)).await,
            Ok(Err(error)) => self.fallen(&mut instance, &error).await,
            Err(_) => StartError::Slow { limit, output: instance.peer.take_output() },
        };
        Err(StartFailure { kind, error })
    }

    /// What became of an instance that did not say what was expected while it imported the handler.
    async fn fallen(&self, instance: &mut Instance, error: &PeerError) -> StartError {
        let output = instance.peer.take_output();
        let how = self.destroy(instance).await;
        StartError::Ended { result: ended(error, &how), output }
    }

    /// A process for the function that has dropped everything, checked from outside, out of `zygote` or by itself.
    async fn obtain(
        &self,
        prepared: &Prepared,
        zygote: Option<Arc<Zygote>>,
    ) -> Result<(Instance, StartKind), String> {
        let function = &prepared.function;
        let files = Files {
            task: Some(function.code_dir.to_string_lossy().into_owned()),
            opt: None,
            view: prepared.view.clone(),
        };
        let limits = prepared.limits;
        let request = match &zygote {
            Some(zygote) => Request::Fork { zygote: zygote.id, files, limits },
            None => {
                let command = Command {
                    argv: self.python(function)?.argv(Entry::Instance),
                    env: runtime::environment(Entry::Instance),
                    directory: "/var/task".into(),
                    role: function.profile.role(),
                    limits,
                    memory_by_kernel: false,
                };
                Request::Execute { profile: function.profile, files, command }
            }
        };
        if let Some(zygote) = &zygote {
            zygote.forks.fetch_add(1, Ordering::Relaxed);
            self.bursts.note(&function.name);
        }
        // Before the request: a zygote with instances is not retired.
        let using = zygote.clone().map(Using::new);
        let called = self.launcher.call(request).await;
        let (reply, mut fds) = called.map_err(|error| error.to_string())?;
        let (id, spare) = match reply {
            Reply::Instance { instance, spare } => (instance, spare),
            Reply::Silent => {
                zygote.iter().for_each(|zygote| self.zygotes.discard(zygote));
                return Err("a zygote did not fork in time".into());
            }
            _ => return Err("the launcher answered something else".into()),
        };
        let kind = match (&zygote, spare) {
            (Some(_), true) => StartKind::Spare,
            (Some(_), false) => StartKind::Zygote,
            (None, _) => StartKind::Cold,
        };
        // Zygotes' children were looked at before they were handed out.
        let looked_at = fds.split_off(2.min(fds.len()));
        let peer = Peer::new(fds).map_err(|error| {
            self.launcher.tell(Request::Destroy { instance: id });
            error.to_string()
        })?;
        let mut instance = Instance {
            id,
            function: Arc::clone(function),
            peer,
            unused: true,
            _using: using,
            idle_since: Instant::now(),
            seen: None,
            measured: false,
            memory: None,
            freezer: None,
            frozen: false,
            max_memory_mb: 0,
            launcher: self.launcher.clone(),
        };
        let [pidfd, freezer, memory] = match looked_at.try_into() {
            Ok(looked_at) => looked_at,
            Err(_) => {
                greeted(&mut instance.peer).await?;
                self.check(id).await?
            }
        };
        (instance.freezer, instance.memory) = (Some(freezer.into()), Some(memory.into()));
        instance.peer.watch(pidfd).map_err(|error| format!("failed to watch a process: {error}"))?;
        Ok((instance, kind))
    }

    /// Has an instance looked at from outside; gives its pidfd, what freezes it, and what tells of its memory.
    async fn check(&self, id: InstanceId) -> Result<[OwnedFd; 3], String> {
        let checked = self.launcher.call(Request::Check { instance: id }).await;
        let (_, fds) = checked.map_err(|error| error.to_string())?;
        fds.try_into().map_err(|_| "the launcher sent no pidfd".into())
    }

    /// Ends an instance and learns how it had ended by itself.
    pub(super) async fn destroy(&self, instance: &mut Instance) -> Ended {
        let id = std::mem::replace(&mut instance.id, GONE);
        // A process that is stuck in the kernel must not hold up the answer.
        let called = tokio::time::timeout(START, self.launcher.call(Request::Destroy { instance: id })).await;
        match called {
            Ok(Ok((Reply::Destroyed { exit, out_of_memory, usage }, _))) => {
                instance.max_memory_mb = megabytes(usage.memory_peak);
                Ended { exit, out_of_memory }
            }
            _ => Ended { exit: None, out_of_memory: false },
        }
    }
}

/// Waits until an instance that was executed says that it is there.
async fn greeted(peer: &mut Peer) -> Result<(), String> {
    let why = match tokio::time::timeout(START, peer.expect(Kind::Hello)).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it said nothing for {} s", START.as_secs()),
    };
    let said = String::from_utf8_lossy(&peer.take_output().text).trim().to_owned();
    Err(format!("an instance did not start: {why} {said}"))
}

pub(super) fn megabytes(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}

pub(super) fn start_failed(failure: StartFailure, phases: Phases, log_before: Vec<u8>) -> Outcome {
    let StartFailure { kind, error } = failure;
    let (result, output) = match error {
        StartError::Platform(why) => return failed(why, phases, kind),
        StartError::Init { error, output } => (InvocationResult::HandlerError(Bytes::from(error)), output),
        StartError::Ended { result, output } => (result, output),
        StartError::Slow { limit, output } => (InvocationResult::SlowImport { limit }, output),
    };
    let Output { text: log, dropped: log_truncated } = output;
    Outcome { result, start: kind, phases, log_before, log, log_truncated, max_memory_mb: 0 }
}
