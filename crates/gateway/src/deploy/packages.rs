//! Where a deployment's packages come from: the one place that calls the package cache.
//!
//! It is a trait so that tests need neither an index nor a network. Everything behind it blocks, and runs on a thread that
//! may.

use std::path::Path;

use sock_pkgcache::{
    Fault, InstallError, Interpreter, Limits, Lock, Progress, Requirements, RequirementsError, ResolveError,
    Resolver, Sources, Store, StoreError, Uv, View,
};

/// What to install.
#[derive(Debug)]
pub struct PackageRequest<'a> {
    /// The text of the requirements file.
    pub requirements: &'a str,
    /// What the packages are for.
    pub python: &'a Interpreter,
    /// The lock of the same requirements, from an earlier deployment: versions stay as they were.
    pub lock: Option<&'a Lock>,
}

/// Installs packages.
pub trait Packages: Send + Sync + 'static {
    /// Locks and installs what a requirements file asks for; blocks. `progress` gets what a person who waits may read.
    fn install(
        &self,
        request: &PackageRequest<'_>,
        progress: &mut dyn FnMut(String),
    ) -> Result<(Lock, View), PackagesError>;

    /// Bytes on disk of everything that is installed; blocks.
    fn bytes(&self) -> u64 {
        0
    }
}

/// Why packages could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    /// The file itself.
    #[error("requirements.txt cannot be used")]
    Requirements(#[from] RequirementsError),
    /// No versions fit.
    #[error("failed to resolve requirements.txt")]
    Resolve(#[from] ResolveError),
    /// A package is not what it says, or could not be fetched or written.
    #[error("failed to install packages")]
    Install(#[source] Box<InstallError>),
}

impl From<InstallError> for PackagesError {
    fn from(error: InstallError) -> Self {
        Self::Install(Box::new(error))
    }
}

impl PackagesError {
    /// Where the cause lies.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Requirements(error) => error.fault(),
            Self::Resolve(error) => error.fault(),
            Self::Install(error) => error.fault(),
        }
    }
}

/// The package cache of a data directory.
pub(crate) struct Installer {
    store: Store,
    resolver: Uv,
}

impl Installer {
    /// Opens `packages/` and `uv/` in a data directory. `python` has the pip that fetches the resolver.
    pub(crate) fn open(data_dir: &Path, sources: Sources, python: &Path) -> Result<Self, StoreError> {
        // The store fetches from where the resolver looked, with the same credentials.
        let store = Store::open(data_dir.join("packages"), Limits::default())?.with_sources(&sources);
        let uv = data_dir.join("uv");
        let resolver = Uv::new(&uv, sources, python);
        resolver.sweep().map_err(|source| StoreError { call: "clear", path: uv, source })?;
        Ok(Self { store, resolver })
    }
}

impl Packages for Installer {
    fn install(
        &self,
        request: &PackageRequest<'_>,
        progress: &mut dyn FnMut(String),
    ) -> Result<(Lock, View), PackagesError> {
        let requirements = Requirements::parse(request.requirements)?;
        let lock = match request.lock {
            Some(lock) if lock.tag == request.python.tag => lock.clone(),
            _ => {
                progress("resolving requirements.txt".into());
                self.resolver.resolve(&requirements, request.python)?
            }
        };
        let mut bar = Bar::default();
        let view = self.store.install(&lock, request.python, &mut |step| progress(bar.after(step)))?;
        Ok((lock, view))
    }

    fn bytes(&self) -> u64 {
        self.store.bytes()
    }
}

/// How far an install is.
#[derive(Default)]
struct Bar {
    wheels: usize,
    done: usize,
    bytes: u64,
    received: u64,
}

impl Bar {
    fn after(&mut self, step: Progress) -> String {
        match step {
            Progress::Planned { wheels, present, bytes } => {
                (self.wheels, self.done, self.bytes) = (wheels, present, bytes);
            }
            Progress::Received { bytes } => self.received += bytes,
            Progress::Installed { .. } => self.done += 1,
            Progress::Compiling { .. } => {}
        }
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let total = self.bytes.max(self.received);
        let (done, wheels) = (self.done, self.wheels);
        format!("installing packages: {done} of {wheels}, {:.1} of {:.1} MB", mb(self.received), mb(total))
    }
}
