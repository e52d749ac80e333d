//! The boundary between the HTTP side and what runs functions.
//!
//! Everything on this side of [`Runner`] is data: a [`Function`] to run, an [`Invocation`] of it, and the [`Outcome`]. The
//! HTTP side starts no process and knows no container; what runs functions knows no HTTP, no registry and no package
//! index. Tests of the HTTP side put a fake behind the trait and need no privilege.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use sock_isolation::Profile;
use sock_pkgcache::View;

use crate::names::FunctionName;

/// A future of a trait's method.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A deployed function, ready to run: its bundle is unpacked and its packages are installed.
#[derive(Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: FunctionName,
    /// Its ARN, without a qualifier.
    pub arn: String,
    /// The version, as the API calls it.
    pub version: String,
    /// `module.function`; the module may be dotted or a path with slashes.
    pub handler: String,
    /// The runtime's name, such as `python3.11`.
    pub runtime: String,
    /// Memory limit in MiB.
    pub memory_mb: u32,
    /// Size of `/tmp` in MiB.
    pub ephemeral_mb: u32,
    /// How long one invocation may take.
    pub timeout: Duration,
    /// The variables that the function's owner set. What Lambda adds to them is [`Function::environment`].
    pub env: BTreeMap<String, String>,
    /// The hash of the bundle, in hex.
    pub code_sha256: String,
    /// The unpacked bundle, relative to the data directory.
    pub code_dir: PathBuf,
    /// Its packages; the entries' directories are relative to `packages` in the data directory.
    pub view: Option<View>,
    /// Whether its instances are interpreters of their own, never forked from a zygote.
    pub fresh: bool,
    /// How much may be done in its containers. Other than [`Profile::Lean`], none is forked from a zygote: `fresh` is set.
    pub profile: Profile,
    /// Whether each invocation gets an instance of its own.
    pub single_use: bool,
    /// Whose it is: with functions of others it shares no process that has imported third-party code.
    pub tenant: Option<String>,
    /// Changes with every deployment: instances of another revision are not to be used for this one.
    pub revision: String,
}

/// One request to a function.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The request's id, which the answer and the log carry.
    pub request_id: String,
    /// The event: valid JSON.
    pub event: Bytes,
    /// When the request had arrived: `queue` in [`Phases`] begins here.
    pub received: Instant,
    /// The client context, decoded: a JSON object.
    pub client_context: Option<String>,
}

/// What became of an invocation.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The answer, or why there is none.
    pub result: InvocationResult,
    /// Where its instance came from.
    pub start: StartKind,
    /// How long it took.
    pub phases: Phases,
    /// What the instance wrote after it had answered an earlier invocation and before this one: something that the handler left
    /// behind did. The function's log gets it, and who invokes now does not. Bounded by the runner.
    pub log_before: Vec<u8>,
    /// What the instance wrote to stdout and stderr during this invocation; bounded by the runner.
    pub log: Vec<u8>,
    /// How many bytes of it were dropped to stay within the bound.
    pub log_truncated: u64,
    /// The most memory that the instance has used, in MiB.
    pub max_memory_mb: u32,
}

/// The ways in which an invocation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvocationResult {
    /// The handler returned; its result as JSON.
    Ok(Bytes),
    /// The handler, or its import, raised; the error object as JSON.
    HandlerError(Bytes),
    /// It did not finish within the function's timeout, and was ended.
    Timeout,
    /// Its handler's import did not finish within this time, and was ended.
    SlowImport {
        /// The time that it had.
        limit: Duration,
    },
    /// The process ended by itself.
    Exited {
        /// How, such as `exit status 1` or `signal: segmentation fault`; nothing for a clean exit.
        reason: Option<String>,
    },
    /// The process was killed because it needed more memory than the function has.
    OutOfMemory,
    /// There was no room for it, and nothing was run.
    Throttled {
        /// Which limit said no.
        limit: ThrottleLimit,
    },
    /// The platform failed; for the operator's log, not for the caller.
    Platform(String),
}

/// The limit that an invocation ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleLimit {
    /// The concurrency that the function reserves.
    Function,
    /// What the whole server runs at a time.
    Server,
}

/// Where an instance came from, quickest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StartKind {
    /// It had run this function before.
    Warm,
    /// It had its function already, and has run it for nobody.
    Ready,
    /// Forked, dropped and waiting; it was given the function.
    Spare,
    /// Forked from a process that had initialised this function.
    FunctionZygote,
    /// Forked from a zygote on demand.
    Zygote,
    /// A new interpreter.
    Cold,
}

/// How long each part of an invocation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the request's arrival until an instance could be looked for: waiting for capacity.
    pub queue: Duration,
    /// Making the instance.
    pub provision: Duration,
    /// Importing the handler in it.
    pub init: Duration,
    /// The handler itself.
    pub handler: Duration,
}

/// What a runner holds at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RunnerCounts {
    /// Instances that run an invocation, or are made for one.
    pub running: usize,
    /// Instances that wait for the next.
    pub idle: usize,
    /// Those of them that are frozen.
    pub frozen: usize,
    /// Memory of their own that they have, bytes.
    pub idle_bytes: u64,
    /// Zygotes.
    pub zygotes: usize,
    /// Containers without a process of a function's.
    pub slots: usize,
    /// Processes that wait for a function.
    pub spares: usize,
    /// Containers that are being taken away.
    pub dying: usize,
    /// What an earlier server had left behind and this one's start removed.
    pub leaks: usize,
}

/// What a runner has and what that costs, in detail.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Zygotes, parents before their children.
    pub nodes: Vec<NodeReport>,
    /// Functions of which idle instances are kept, by name.
    pub functions: Vec<FunctionReport>,
    /// Memory of the first process of all containers, which only waits: what would be free without them.
    pub init_bytes: u64,
}

/// A zygote.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NodeReport {
    /// Its number.
    pub id: u32,
    /// The number of the one that it was forked from.
    pub parent: Option<u32>,
    /// The interpreter.
    pub runtime: String,
    /// Whose functions it serves; none: everybody's.
    pub tenant: Option<String>,
    /// What it can import from, with versions.
    pub packages: Vec<String>,
    /// What it was told to import.
    pub imports: Vec<String>,
    /// How many modules that were.
    pub modules: usize,
    /// Whether anything is forked from it.
    pub safe: bool,
    /// Instances that it was asked for.
    pub forks: u64,
    /// Instances and zygotes that live in its namespaces.
    pub users: usize,
    /// Spares that are kept of it.
    pub spares: u32,
    /// Memory that would be free without them.
    pub spare_bytes: u64,
    /// Memory that would be free without it.
    pub private_bytes: u64,
    /// With its share of what others map too.
    pub proportional_bytes: u64,
    /// What it has and the one above it has not.
    pub billed_bytes: u64,
    /// Microseconds of imports that it is expected to save each second.
    pub saved_us_per_second: f64,
}

/// The idle instances of a function.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FunctionReport {
    /// Its name.
    pub name: String,
    /// How many there are.
    pub idle: usize,
    /// How many of those are frozen.
    pub frozen: usize,
    /// Memory that would be free without them.
    pub private_bytes: u64,
    /// With their share of what others map too.
    pub proportional_bytes: u64,
    /// How many of them nobody has looked at yet: each is taken for 2 MiB.
    pub unseen: usize,
    /// Of the function, where one of ten minutes ago counts half.
    pub invocations_per_second: f64,
    /// New instances.
    pub starts_per_second: f64,
    /// What a start without one of them took last.
    pub start_us: f64,
}

/// Runs functions.
pub trait Runner: Send + Sync + 'static {
    /// Gets ready for invocations of a function that is about to become active, or for its new revision. The error is what
    /// its owner reads as the reason of the failed deployment: what, why, what to do.
    ///
    /// It is not called for functions that were deployed before this server started: [`Runner::invoke`] must not rely on it.
    fn prepare(&self, function: Arc<Function>) -> BoxFuture<'_, Result<(), String>>;

    /// Tells of the functions that an earlier server deployed. It may get ready for them, in the background.
    fn known(&self, _functions: Vec<Arc<Function>>) {}

    /// Runs one invocation to its end, whatever the end is. The caller lets the future finish, also if its client has left.
    fn invoke(&self, function: Arc<Function>, invocation: Invocation) -> BoxFuture<'_, Outcome>;

    /// What there is at this moment.
    fn counts(&self) -> BoxFuture<'_, Result<RunnerCounts, String>> {
        Box::pin(std::future::ready(Ok(RunnerCounts::default())))
    }

    /// What there is in detail. Not for every request: it is asked of each process.
    fn report(&self) -> BoxFuture<'_, Report> {
        Box::pin(std::future::ready(Report::default()))
    }

    /// The function was deleted: running invocations may finish, and nothing else of it is kept.
    fn retire(&self, name: &FunctionName);
}

impl Outcome {
    /// Of an invocation that did not get as far as to write anything.
    pub fn of(result: InvocationResult, start: StartKind, phases: Phases) -> Self {
        let (log_before, log) = (Vec::new(), Vec::new());
        Self { result, start, phases, log_before, log, log_truncated: 0, max_memory_mb: 0 }
    }
}

impl Function {
    /// The log group that Lambda would name for it.
    pub fn log_group(&self) -> String {
        format!("/aws/lambda/{}", self.name)
    }

    /// The variables of an instance: the owner's, and over them those that Lambda promises. `log_stream` names the instance.
    pub fn environment(&self, log_stream: &str) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        let default = |env: &mut BTreeMap<String, String>, name: &str, value: &str| {
            env.entry(name.into()).or_insert_with(|| value.into());
        };
        for (name, value) in sock_zygote::runtime::COMMON {
            default(&mut env, name, value);
        }
        default(&mut env, "PYTHONPATH", "/var/task:/opt/python:/packages");
        let region = self.arn.split(':').nth(3).unwrap_or_default();
        let fixed = [
            ("_HANDLER", self.handler.as_str()),
            ("AWS_DEFAULT_REGION", region),
            ("AWS_EXECUTION_ENV", &format!("AWS_Lambda_{}", self.runtime)),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &self.memory_mb.to_string()),
            ("AWS_LAMBDA_FUNCTION_NAME", self.name.as_str()),
            ("AWS_LAMBDA_FUNCTION_VERSION", &self.version),
            ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", &self.log_group()),
            ("AWS_LAMBDA_LOG_STREAM_NAME", log_stream),
            ("AWS_REGION", region),
            ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
            ("LAMBDA_TASK_ROOT", "/var/task"),
        ];
        env.extend(fixed.map(|(name, value)| (name.to_string(), value.to_string())));
        env
    }
}

/// Names of variables only: their values may be secrets.
impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.name)
            .field("handler", &self.handler)
            .field("runtime", &self.runtime)
            .field("memory_mb", &self.memory_mb)
            .field("timeout", &self.timeout)
            .field("env", &self.env.keys())
            .field("code_sha256", &self.code_sha256)
            .field("view", &self.view.as_ref().map(|view| view.id))
            .field("fresh", &self.fresh)
            .field("single_use", &self.single_use)
            .field("tenant", &self.tenant)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl StartKind {
    /// As in the header `x-sock-start`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Ready => "ready",
            Self::Spare => "spare",
            Self::FunctionZygote => "function-zygote",
            Self::Zygote => "zygote",
            Self::Cold => "cold",
        }
    }
}

impl fmt::Display for StartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Phases {
    /// As in the header `Server-Timing`: milliseconds.
    pub fn server_timing(&self) -> String {
        let ms = |phase: Duration| phase.as_secs_f64() * 1e3;
        format!(
            "queue;dur={:.3}, provision;dur={:.3}, init;dur={:.3}, handler;dur={:.3}",
            ms(self.queue),
            ms(self.provision),
            ms(self.init),
            ms(self.handler)
        )
    }
}
