//! The gateway as a whole: what requests share, how it starts and how it stops.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::fcntl::Flock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::bundle::{BundleError, Bundles};
use crate::config::{Auth, GatewayConfig};
use crate::events::{self, Events};
use crate::http::connections::Connections;
use crate::http::memory::Memory;
use crate::keys::KeyError;
use crate::lock::{self, NotTaken};
use crate::logs::Logs;
use crate::metrics::{Metrics, Now};
use crate::names::FunctionName;
use crate::registry::record::Status;
use crate::registry::{Entry, Registry, RegistryError};
use crate::runner::Runner;
use crate::{deploy, http};

/// More background work than ever runs at a time: permits of it are taken one by one, and all when the server stops.
const BUSY: u32 = 1 << 20;
/// Bundles that are checked and unpacked at a time.
const UNPACKING: usize = 2;

/// Why a server does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory cannot be used.
    #[error("failed to use the data directory {path}", path = path.display())]
    DataDir {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another server has it.
    #[error("{path} is in use by process {pid}: stop that server, or use another data directory", path = path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        pid: String,
    },
    /// Without keys for everybody on the network.
    #[error("refusing to listen on {0} without access keys: listen on 127.0.0.1, or leave out --no-auth")]
    Exposed(std::net::SocketAddr),
    /// Nothing to run functions with.
    #[error("no Python interpreter was found: name one with --python")]
    NoInterpreter,
    /// The keys.
    #[error("failed to load the access keys")]
    Keys(#[from] KeyError),
    /// The package cache.
    #[error("failed to open the package cache")]
    Packages(#[from] sock_pkgcache::StoreError),
    /// The registry.
    #[error("failed to open the registry of functions")]
    Registry(#[from] RegistryError),
    /// The bundles.
    #[error("failed to open the store of bundles")]
    Bundles(#[from] BundleError),
    /// The socket.
    #[error("failed to listen")]
    Listen(#[source] io::Error),
}

/// What all requests share.
pub(crate) struct Gateway {
    pub(crate) config: GatewayConfig,
    pub(crate) registry: Registry,
    pub(crate) bundles: Bundles,
    pub(crate) logs: Logs,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) connections: Arc<Connections>,
    /// For request bodies.
    pub(crate) bodies: Arc<Memory>,
    pub(crate) answers: Arc<Memory>,
    /// Asynchronous invocations.
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
    pub(crate) installs: Semaphore,
    pub(crate) unpacking: Semaphore,
    pub(crate) progress: Mutex<HashMap<FunctionName, String>>,
    busy: Arc<Semaphore>,
    draining: AtomicBool,
    /// Bundles that no function needs, and unfinished ones, at start.
    unfinished: usize,
    /// Held as long as the server runs.
    _lock: Flock<File>,
}

/// Serves until `shutdown` is done, then finishes what runs and returns.
///
/// The listener is bound already, by whoever has the right to; the gateway itself needs no privilege at all. It has to run
/// in a multi-threaded tokio runtime with I/O and time enabled.
pub async fn serve(
    listener: TcpListener,
    config: GatewayConfig,
    runner: Arc<dyn Runner>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listen)?;
    if matches!(config.auth, Auth::Open) && !address.ip().is_loopback() {
        return Err(ServeError::Exposed(address));
    }
    let gateway = Arc::new(Gateway::open(config, runner)?);
    gateway.resume()?;
    let live = gateway.registry.all();
    let live = live.iter().filter_map(|entry| entry.record.live(gateway.registry.realm()));
    gateway.runner.known(live.map(Arc::new).collect());
    events::resume(&gateway)?;
    info!(%address, functions = gateway.registry.all().len(), "serving");
    http::serve(&gateway, listener, shutdown).await.map_err(ServeError::Listen)?;
    info!("stopped");
    Ok(())
}

impl Gateway {
    fn open(config: GatewayConfig, runner: Arc<dyn Runner>) -> Result<Self, ServeError> {
        let dir = &config.data_dir;
        let lock = lock(dir)?;
        if config.interpreters.is_empty() {
            return Err(ServeError::NoInterpreter);
        }
        let registry = Registry::open(&dir.join("sock.db"), config.realm.clone())?;
        let bundles = Bundles::open(dir.join("code"), config.limits.bundle.clone())?;
        let at = |name| move |source| ServeError::DataDir { path: dir.join(name), source };
        // No instance of an earlier server is left by now, so nothing looks into the ones that go.
        let removed = bundles.keep_only(&registry.bundles()).map_err(at("code"))?;
        if removed > 0 {
            info!(removed, "removed what no function needs from the store of bundles");
        }
        let names = registry.all().iter().map(|entry| entry.record.name.clone()).collect();
        let logs = Logs::open(dir.join("logs"), &names).map_err(at("logs"))?;
        let limits = &config.limits;
        Ok(Self {
            connections: Connections::new(limits.connections),
            bodies: Memory::new(limits.bodies_bytes),
            answers: Memory::new(limits.answers_bytes),
            events: Events::open(&dir.join("sock.db"), limits.events)?,
            metrics: Metrics::new(),
            unfinished: removed,
            installs: Semaphore::new(limits.installs),
            unpacking: Semaphore::new(UNPACKING),
            progress: Mutex::default(),
            busy: Arc::new(Semaphore::new(BUSY as usize)),
            draining: AtomicBool::new(false),
            _lock: lock,
            registry,
            bundles,
            logs,
            runner,
            config,
        })
    }

    /// Goes on with deployments that the last server did not finish.
    fn resume(self: &Arc<Self>) -> Result<(), RegistryError> {
        let unfinished = |entry: &&Arc<Entry>| entry.record.status == Status::Deploying;
        self.registry
            .all()
            .iter()
            .filter(unfinished)
            .try_for_each(|entry| deploy::resume(self, &entry.record))
    }

    /// What `/metrics` tells of this moment.
    pub(crate) async fn now(self: &Arc<Self>) -> Result<Now, String> {
        // First: it looks at what was not looked at yet.
        let report = self.runner.report().await;
        let runner = self.runner.counts().await?;
        let gateway = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let events = gateway.events.count().map_err(|error| deploy::chain(&error))?;
            Ok::<_, String>((events, gateway.config.packages.bytes()))
        });
        let (events, installed) = read.await.map_err(|panic| panic.to_string())??;
        let all = self.registry.all();
        let codes = all.iter().flat_map(|entry| {
            let live = entry.record.live.iter().map(|live| &live.code);
            live.chain([&entry.record.wanted.code]).map(|code| (code.sha256.as_str(), code.size))
        });
        // One bundle may be of several functions.
        let handlers = codes.collect::<HashMap<&str, u64>>().values().sum();
        Ok(Now {
            runner,
            report,
            connections: self.connections.count(),
            events,
            functions: all.len(),
            cache_bytes: [handlers, installed],
            unfinished: self.unfinished,
        })
    }

    /// Marks work that has to end before the server does. Nothing if there is too much of it.
    pub(crate) fn begin(&self) -> Option<OwnedSemaphorePermit> {
        self.busy.clone().try_acquire_owned().ok()
    }

    /// Whether the server is stopping.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes on no new work.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Until all work that was begun has ended.
    pub(crate) async fn idle(&self) {
        if self.busy.acquire_many(BUSY).await.is_err() {
            warn!("the count of running work was closed");
        }
    }
}

/// One server to a data directory: the lock ends with the process, however that ends.
fn lock(dir: &Path) -> Result<Flock<File>, ServeError> {
    let path = dir.join("sock.lock");
    lock::take(&path).map_err(|error| match error {
        NotTaken::Held(pid) => ServeError::InUse { path: dir.into(), pid },
        NotTaken::Io(source) => ServeError::DataDir { path, source },
    })
}
