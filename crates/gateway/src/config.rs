//! What a gateway is told when it starts.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sock_pkgcache::{Interpreter, Sources};

use crate::bundle::BundleLimits;
use crate::deploy::packages::{Installer, Packages};
use crate::gateway::ServeError;
use crate::keys::Keys;
use crate::names::Realm;

/// The configuration of [`serve`](crate::serve).
#[derive(Clone)]
pub struct GatewayConfig {
    /// Where everything is kept. It belongs to the user that the gateway runs as; nobody else may enter it.
    pub data_dir: PathBuf,
    /// Who may call.
    pub auth: Auth,
    /// The region and account of ARNs.
    pub realm: Realm,
    /// The interpreters in the containers, each of which is a runtime.
    pub interpreters: Vec<Interpreter>,
    /// Installs packages.
    pub packages: Arc<dyn Packages>,
    /// Whether functions may have containers of the profile `paper`, which see the host's network.
    pub allow_paper: bool,
    /// Bounds.
    pub limits: GatewayLimits,
}

/// Who may call.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Who holds one of these keys.
    Keys(Keys),
    /// Everybody who reaches the socket, which has to be a loopback one.
    Open,
}

/// What a gateway takes on at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Connections.
    pub connections: u32,
    /// How long a client may take to send a request's head, or keep a connection idle.
    pub head: Duration,
    /// How long a client may take to send a request's body.
    pub body: Duration,
    /// How long a client may take no byte of its answer.
    pub answer: Duration,
    /// Bytes of all request bodies together.
    pub bodies_bytes: u32,
    /// Bytes of all answers together that are on their way out; small ones are not counted.
    pub answers_bytes: u32,
    /// Asynchronous events that are accepted and have not run.
    pub events: usize,
    /// How long after it failed for the first time an event is tried again.
    pub retry: Duration,
    /// Deployments that install at a time.
    pub installs: usize,
    /// How long running invocations get to finish when the server stops.
    pub drain: Duration,
    /// How large a bundle may be.
    pub bundle: BundleLimits,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            // Idle ones cost about 15 KB each.
            connections: 16_384,
            head: Duration::from_secs(60),
            body: Duration::from_secs(60),
            answer: Duration::from_secs(60),
            bodies_bytes: 512 << 20,
            answers_bytes: 512 << 20,
            events: 10_000,
            retry: Duration::from_secs(60),
            installs: 2,
            // The longest timeout that a function may have. Who cannot wait asks a second time.
            drain: Duration::from_secs(900),
            bundle: BundleLimits::default(),
        }
    }
}

impl GatewayConfig {
    /// The configuration for a data directory, which is made if it is not there, with the keys and the package cache in it.
    pub fn open(
        data_dir: impl Into<PathBuf>,
        interpreters: Vec<Interpreter>,
        sources: Sources,
    ) -> Result<Self, ServeError> {
        let data_dir = data_dir.into();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&data_dir);
        made.map_err(|source| ServeError::DataDir { path: data_dir.clone(), source })?;
        let keys = Keys::load_or_create(&data_dir.join("keys.json"))?;
        let python = interpreters.first().ok_or(ServeError::NoInterpreter)?;
        let packages = Installer::open(&data_dir, sources, &python.path)?;
        Ok(Self {
            data_dir,
            auth: Auth::Keys(keys),
            realm: Realm::default(),
            interpreters,
            packages: Arc::new(packages),
            allow_paper: false,
            limits: GatewayLimits::default(),
        })
    }
}
