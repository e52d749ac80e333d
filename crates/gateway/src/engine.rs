//! What runs functions: instances out of zygotes, kept while they are idle, ended when they are not wanted.
//!
//! An invocation takes an idle instance of its function if there is one (a warm start); else one that the best zygote that
//! may serve it has forked, ahead of need or now; or, when none may, an interpreter is started for it (a cold start). One instance runs one
//! invocation at a time; several of one function run side by side.
//!
//! Nothing is routed to a process before the launcher has looked at it from outside. An instance that timed out, broke the
//! protocol or died is ended and never used again. An invocation is sent twice only if the instance that was idle had not read
//! it when it ended.

mod ahead;
mod ending;
mod function;
mod idle;
mod instance;
mod launcher;
mod learnt;
mod places;
mod planner;
mod process;
mod python;
mod raise;
mod report;
mod spares;
mod zygotes;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sock_isolation::launcher::wire::{Counts, Reply, Request};
use sock_zygote::frames::{self, FrameError, InvokeHeader, Kind, Nonce};
use sock_zygote::tree::NodeSpec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::names::FunctionName;
use crate::runner::{
    BoxFuture, Function, Invocation, InvocationResult, Outcome, Phases, Report, Runner, RunnerCounts,
    StartKind, ThrottleLimit,
};
use ahead::Ahead;
use ending::ended;
use function::Prepared;
use idle::Idle;
use instance::{Instance, Started, megabytes, start_failed};
use launcher::Launcher;
use places::{Places, Waiting};
use planner::Planner;
pub(crate) use planner::default_budget;
use process::{Output, Peer, PeerError};
use python::Python;
use spares::Bursts;
pub(crate) use spares::SPARE_SHARE;
use zygotes::Zygotes;

/// Instances that may run at once: on a small machine more only wait for each other.
const MAX_RUNNING: usize = 256;

/// How long an invocation waits for a place before its client is told that there is none, as Lambda does at once: a burst is
/// over by then, and a client can wait and ask again.
const QUEUE: Duration = Duration::from_secs(10);

/// How often idle instances are looked at: one that died, or in which something goes on that nobody asked for, is ended then.
const TIDY: Duration = Duration::from_secs(1);

/// How long a process may take until it says hello, and how long a handler's import may take at least. Lambda's own limit
/// for the latter.
const START: Duration = Duration::from_secs(10);

/// Processes that are tried for an invocation before it fails: a spare may have died while it waited, a zygote at any
/// time; the last is an interpreter of its own.
const ATTEMPTS: u32 = 3;

/// What the engine is started with.
#[derive(Debug)]
pub(crate) struct EngineOptions {
    pub(crate) data_dir: PathBuf,
    /// The runtimes, the first is the default.
    pub(crate) interpreters: Vec<sock_pkgcache::Interpreter>,
    /// Memory that zygotes may take, bytes.
    pub(crate) zygote_bytes: u64,
    /// Memory that may be taken by what is forked ahead of need, bytes; 0: nothing is.
    pub(crate) spare_bytes: u64,
    /// New instances a second that one zygote is trusted with.
    pub(crate) zygote_forks: u32,
    /// Memory of their own that idle instances may take, bytes.
    pub(crate) idle_bytes: u64,
}

/// See the module.
pub(crate) struct Engine {
    launcher: Launcher,
    zygotes: Arc<Zygotes>,
    planner: Arc<Planner>,
    pythons: Vec<Python>,
    data_dir: PathBuf,
    running: Semaphore,
    places: Mutex<HashMap<FunctionName, Arc<Places>>>,
    functions: Mutex<Functions>,
    idle: Mutex<Idle>,
    /// Memory that spares for bursts may take, bytes.
    spare_bytes: u64,
    ahead: Arc<Ahead>,
    bursts: Bursts,
    /// What was found out of the memory of zygotes.
    known_memory: Mutex<report::Known>,
    own: std::sync::Weak<Self>,
}

/// What was prepared of the functions that are deployed.
#[derive(Default)]
struct Functions {
    by_name: HashMap<FunctionName, Arc<Prepared>>,
    /// Revisions that were replaced or deleted, the newest last: an invocation of one that is still under way must not
    /// bring it back.
    gone: VecDeque<String>,
}

impl Functions {
    // More than invocations can be under way.
    const GONE: usize = 1024;

    fn remove(&mut self, name: &FunctionName) {
        if let Some(prepared) = self.by_name.remove(name) {
            self.gone.push_back(prepared.function.revision.clone());
            if self.gone.len() > Self::GONE {
                self.gone.pop_front();
            }
        }
    }

    fn is_current(&self, function: &Function) -> bool {
        self.by_name.get(&function.name).is_some_and(|known| known.function.revision == function.revision)
    }

    fn prepared(&self) -> impl Iterator<Item = Arc<Prepared>> {
        self.by_name.values().map(Arc::clone)
    }

    fn names(&self) -> BTreeSet<FunctionName> {
        self.by_name.keys().cloned().collect()
    }

    fn insert(&mut self, prepared: Arc<Prepared>) {
        let Function { name, revision, .. } = &*prepared.function;
        if self.gone.contains(revision) {
            return;
        }
        if self.by_name.get(name).is_some_and(|old| old.function.revision != *revision) {
            self.remove(name);
        }
        self.by_name.insert(name.clone(), prepared);
    }
}

impl Engine {
    /// Over the launcher's `socket`. Starts the root zygote.
    pub(crate) async fn start(socket: OwnedFd, options: EngineOptions) -> Result<Arc<Self>, String> {
        let launcher = Launcher::new(socket).map_err(|error| error.to_string())?;
        let pythons: Vec<Python> = options.interpreters.iter().map(Python::new).collect();
        let planner =
            Arc::new(Planner::new(options.data_dir.clone(), options.zygote_bytes, options.zygote_forks));
        let zygotes =
            Arc::new(Zygotes::new(launcher.clone(), Arc::clone(&planner.changed), options.zygote_bytes));
        for python in &pythons {
            zygotes.ensure_root(python).await.map_err(|error| error.to_string())?;
        }
        let engine = Arc::new_cyclic(|own| Self {
            launcher,
            zygotes,
            planner,
            pythons,
            data_dir: options.data_dir,
            running: Semaphore::new(MAX_RUNNING),
            places: Mutex::default(),
            functions: Mutex::default(),
            idle: Mutex::new(Idle::new(options.idle_bytes)),
            spare_bytes: options.spare_bytes,
            ahead: Arc::default(),
            bursts: Bursts::default(),
            known_memory: Mutex::default(),
            own: own.clone(),
        });
        tokio::spawn(Self::tidy(Arc::downgrade(&engine)));
        tokio::spawn(Self::cultivate(Arc::downgrade(&engine)));
        tokio::spawn(Self::start_ahead(Arc::downgrade(&engine)));
        Ok(engine)
    }

    /// Starts root zygotes again that have died.
    fn keep_roots(self: &Arc<Self>) {
        for (at, python) in self.pythons.iter().enumerate() {
            let root = NodeSpec::root(&python.runtime);
            if self.zygotes.count(&root) == 0 && !self.zygotes.failed_lately(&root) {
                let engine = Arc::clone(self);
                tokio::spawn(async move {
                    if let Err(error) = engine.zygotes.ensure_root(&engine.pythons[at]).await {
                        tracing::warn!(%error, "the root zygote does not start again");
                    }
                });
            }
        }
    }

    /// Ends what has been idle for long, and what is of no use any more.
    async fn tidy(engine: std::sync::Weak<Self>) {
        let mut ticks = tokio::time::interval(TIDY);
        loop {
            ticks.tick().await;
            let Some(engine) = engine.upgrade() else { return };
            engine.keep_roots();
            engine.keep_spares();
            let used = |name: &FunctionName| {
                let learnt = engine.planner.learnt();
                let of = learnt.functions.get(name);
                of.map_or((0.0, 0.0), |of| (of.invocations.at(learnt::now()), of.start_us))
            };
            let old = lock(&engine.idle).tidy(used);
            drop(old);
            engine.measure_some().await;
        }
    }

    /// The function's current state of preparation, made if need be.
    async fn prepared(&self, function: &Arc<Function>) -> Result<Arc<Prepared>, String> {
        if let Some(prepared) = lock(&self.functions).by_name.get(&function.name)
            && prepared.function.revision == function.revision
            && prepared.function.fresh == function.fresh
            && prepared.function.profile == function.profile
            && prepared.function.single_use == function.single_use
            && prepared.function.tenant == function.tenant
        {
            return Ok(Arc::clone(prepared));
        }
        let data = self.data_dir.clone();
        let of = Arc::clone(function);
        let prepared = tokio::task::spawn_blocking(move || Prepared::new(of, &data))
            .await
            .map_err(|error| error.to_string())?;
        if let (Some(name), Some(view)) = (&prepared.view, &function.view) {
            let layers =
                view.entries.iter().map(|entry| format!("packages/{}", entry.dir.display())).collect();
            self.launcher
                .call(Request::AddView { view: name.clone(), layers })
                .await
                .map_err(|error| error.to_string())?;
        }
        let prepared = Arc::new(prepared);
        lock(&self.functions).insert(Arc::clone(&prepared));
        Ok(prepared)
    }

    fn python(&self, function: &Function) -> Result<&Python, String> {
        self.python_of(&function.runtime)
    }

    fn python_of(&self, runtime: &str) -> Result<&Python, String> {
        let found = self.pythons.iter().find(|python| python.runtime == runtime);
        found.ok_or_else(|| format!("this server has no interpreter for {runtime}"))
    }

    /// One that goes on, with what thawing it took.
    fn take_idle(&self, function: &Function) -> Option<(Instance, Duration)> {
        loop {
            let (found, stale) = lock(&self.idle).take(function);
            drop(stale);
            let mut instance = found?;
            let begin = Instant::now();
            let frozen = instance.is_frozen();
            if instance.thaw() {
                return Some((instance, if frozen { begin.elapsed() } else { Duration::ZERO }));
            }
        }
    }

    /// Waits for a place among the function's, and then among all.
    async fn admit(&self, name: &FunctionName) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let own = Arc::clone(lock(&self.places).entry(name.clone()).or_default());
        let _waiting = Waiting::begin(&own);
        let free = Arc::clone(&own.free);
        // Neither is ever closed.
        let both = async { Some((free.acquire_owned().await.ok()?, self.running.acquire().await.ok()?)) };
        tokio::time::timeout(QUEUE, both).await.ok().flatten()
    }

    /// Keeps an instance for the next invocation of its function; ends one that is of no use for that. Whether it is kept.
    fn keep_idle(&self, mut instance: Instance) -> bool {
        let quiet = instance.peer.is_quiet();
        // Held until it is kept: a function that is deleted meanwhile would leave it.
        let functions = lock(&self.functions);
        let kept = quiet && functions.is_current(&instance.function);
        let gone = if kept { lock(&self.idle).keep(instance) } else { Some(instance) };
        drop(functions);
        // What goes on in it does not go on any longer.
        gone.into_iter().filter(|_| quiet).for_each(Instance::end_later);
        kept
    }

    async fn run(&self, function: Arc<Function>, invocation: Invocation) -> Outcome {
        let mut phases = Phases::default();
        let permit = self.admit(&function.name).await;
        phases.queue = invocation.received.elapsed();
        if permit.is_none() {
            let result = InvocationResult::Throttled { limit: ThrottleLimit::Server };
            return Outcome::of(result, StartKind::Cold, phases);
        }
        self.note_invocation(&function);
        self.ahead.note_request();
        let mut log_before = Vec::new();
        let mut attempt = 1;
        let (mut instance, start, result) = loop {
            let idle = if attempt < ATTEMPTS { self.take_idle(&function) } else { None };
            let (mut instance, start, asked) = match idle {
                Some((instance, thawed)) => {
                    phases.provision = thawed;
                    let kind = if instance.unused { StartKind::Ready } else { StartKind::Warm };
                    (instance, kind, None)
                }
                None => match self.start_for(&function, Some(&invocation), &mut phases).await {
                    Ok(Started { instance, kind, asked }) => (instance, kind, asked),
                    Err(failure) => return start_failed(failure, phases, log_before),
                },
            };
            if start == StartKind::Warm {
                log_before.extend(instance.peer.take_output().text);
            }
            instance.unused = false;
            let begin = Instant::now();
            let exchange = exchange(&mut instance.peer, (&function, &invocation), asked);
            let answered = tokio::time::timeout(function.timeout, exchange).await;
            phases.handler = begin.elapsed();
            let result = match answered {
                Ok(Ok(result)) => result,
                Ok(Err(error)) => {
                    let how = self.destroy(&mut instance).await;
                    if matches!(start, StartKind::Warm | StartKind::Ready)
                        && matches!(error, PeerError::Unread)
                    {
                        // What happened to it before is no reason for this one to fail.
                        log_before.extend(instance.peer.take_output().text);
                        attempt += 1;
                        continue;
                    }
                    ended(&error, &how)
                }
                Err(_) => {
                    let _ = self.destroy(&mut instance).await;
                    InvocationResult::Timeout
                }
            };
            break (instance, start, result);
        };
        let Output { text: log, dropped: log_truncated } = instance.peer.take_output();
        if instance.is_there() && instance.max_memory_mb == 0 {
            // Once: what a first answer took is what a user sizes by.
            instance.max_memory_mb = instance.memory_used().map_or(0, megabytes);
        }
        let max_memory_mb = instance.max_memory_mb;
        if instance.is_there() {
            if function.single_use {
                instance.end_later();
                if self.spare_bytes > 0 {
                    self.ahead.want(&function);
                }
            } else {
                self.keep_idle(instance);
            }
        }
        drop(permit);
        Outcome { result, start, phases, log_before, log, log_truncated, max_memory_mb }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What answers to an invocation begin with, and the frame that asks for one; `early`: together with the function.
fn ask(function: &Function, invocation: &Invocation, early: bool) -> Result<(Nonce, Vec<u8>), FrameError> {
    let deadline = SystemTime::now() + function.timeout;
    let deadline = deadline.duration_since(UNIX_EPOCH).unwrap_or_default();
    let header = InvokeHeader {
        request_id: invocation.request_id.clone(),
        deadline_ms: deadline.as_millis() as u64,
        arn: function.arn.clone(),
        client_context: invocation.client_context.clone(),
        early,
    };
    let nonce = uuid::Uuid::new_v4().into_bytes();
    let frame = frames::encode(Kind::Invoke, &frames::invoke(&nonce, &header, &invocation.event))?;
    Ok((nonce, frame))
}

/// Asks, unless that was done already, and waits for the answer.
async fn exchange(
    peer: &mut Peer,
    (function, invocation): (&Function, &Invocation),
    asked: Option<Nonce>,
) -> Result<InvocationResult, PeerError> {
    let nonce = match asked {
        Some(nonce) => nonce,
        None => {
            let (nonce, frame) = ask(function, invocation, false)?;
            peer.send_all(&frame).await?;
            nonce
        }
    };
    let (kind, payload) = peer.receive().await?;
    let result = match kind {
        Kind::Result => InvocationResult::Ok,
        Kind::Error => InvocationResult::HandlerError,
        other => return Err(PeerError::Unexpected(other)),
    };
    let payload = Bytes::from(payload);
    let answer = frames::answer(&nonce, &payload)?;
    Ok(result(payload.slice_ref(answer)))
}

fn failed(why: String, phases: Phases, start: StartKind) -> Outcome {
    tracing::error!(why, "an invocation failed for a reason of the platform's own");
    Outcome::of(InvocationResult::Platform(why), start, phases)
}

impl Runner for Engine {
    fn prepare(&self, function: Arc<Function>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let prepared = self.prepared(&function).await?;
            self.python(&function)?;
            if function.fresh {
                return Ok(());
            }
            // Whoever deploys is about to invoke.
            self.planner.learnt().of(&function.name, &function.revision).starts.observe(learnt::now(), 1);
            self.grow_for(&prepared).await
        })
    }

    fn known(&self, functions: Vec<Arc<Function>>) {
        let Some(engine) = self.own.upgrade() else { return };
        tokio::spawn(async move {
            for function in functions {
                if let Err(error) = engine.prepared(&function).await {
                    tracing::warn!(function = %function.name, error, "a deployed function cannot be got ready");
                }
            }
            engine.planner.changed.notify_one();
        });
    }

    fn invoke(&self, function: Arc<Function>, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(self.run(function, invocation))
    }

    fn counts(&self) -> BoxFuture<'_, Result<RunnerCounts, String>> {
        Box::pin(async move {
            let counted = self.launcher.call(Request::Count).await.map_err(|error| error.to_string())?;
            let (Reply::Counts(counts), _) = counted else {
                return Err("the launcher answered something else".into());
            };
            let Counts { zygotes, slots, forking, spares, instances, dying, leaks } = counts;
            // A moment ago they were some.
            let slots = slots + forking;
            let (idle, (frozen, idle_bytes)) = {
                let all = lock(&self.idle);
                (all.count(), all.held())
            };
            Ok(RunnerCounts {
                running: instances.saturating_sub(idle),
                idle,
                frozen,
                idle_bytes,
                zygotes,
                slots,
                spares,
                dying,
                leaks,
            })
        })
    }

    fn report(&self) -> BoxFuture<'_, Report> {
        Box::pin(self.reported())
    }

    fn retire(&self, name: &FunctionName) {
        lock(&self.functions).remove(name);
        lock(&self.places).remove(name);
        self.bursts.forget(name);
        let instances = lock(&self.idle).remove(name);
        drop(instances);
        self.planner.changed.notify_one();
    }
}
