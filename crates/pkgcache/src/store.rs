//! The store: each wheel once, whole or not at all, read-only.
//!
//! ```text
//! <root>/                              0700 when made here: what is below is readable for every uid that is let in
//!   wheels/<sha256>-<tag>-<layout>/    one wheel for one interpreter; appears by rename, complete
//!     site/                            what a view overlays: sources, bytecode, libraries   0444 / 0555
//!     data/                            scripts, headers, data files: on no path
//!     meta.json                        the facts: name, version, modules, size; its mtime is the last use
//!   tmp/<key>/                         a wheel in the making; what a crash leaves is swept at the next open
//!   locks/<key>                        held while a wheel is made or removed; never deleted, or two could hold "it"
//! ```
//!
//! The key is content, interpreter and layout, so nothing in the store is ever changed: another hash is
//! another directory. Two installs of one wheel, in one process or two, meet at its lock; the second finds it
//! done. Nothing here needs privilege, and nothing is written outside `root`.

mod evict;
mod facts;
mod install;
mod tree;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

pub use evict::Collected;
pub use install::{InstallError, WheelError};

use crate::url::Credentials;
use crate::{Lock, LockedWheel, Sources, View, ViewEntry};
use facts::Facts;

/// Part of every key and every lock's identity: raise it when what is written for a wheel changes.
pub(crate) const LAYOUT: u32 = 1;

const WHEELS: &str = "wheels";
const TMP: &str = "tmp";
const LOCKS: &str = "locks";

/// What a single wheel may take, and how many are worked on at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a wheel file.
    pub wheel_bytes: u64,
    /// Bytes of all its files, unpacked.
    pub unpacked_bytes: u64,
    /// Entries in it.
    pub entries: usize,
    /// How many times its packed size it may unpack to, once it is larger than 16 MiB.
    pub ratio: u64,
    /// Bytes of an entry's name.
    pub path_bytes: usize,
    /// Wheels that are fetched and unpacked at once.
    pub parallel: usize,
}

impl Default for Limits {
    /// Room for the largest wheels that people use, and none for an archive that was made to fill a disk.
    fn default() -> Self {
        Self {
            wheel_bytes: 2 << 30,
            unpacked_bytes: 6 << 30,
            entries: 100_000,
            ratio: 200,
            path_bytes: 512,
            parallel: 8,
        }
    }
}

/// Wheels on disk.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    credentials: Credentials,
    /// How long a server may be silent.
    silence: Duration,
    /// Made when the first wheel is fetched: reading the system's trust roots takes a while.
    agent: OnceLock<ureq::Agent>,
}

/// The file system refused something.
#[derive(Debug, thiserror::Error)]
#[error("failed to {call} {path}", path = path.display())]
pub struct StoreError {
    /// What was tried.
    pub call: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl StoreError {
    /// For `map_err`.
    fn at(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { call, path, source }
    }
}

/// The name of a wheel's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key(String);

impl Key {
    fn of(wheel: &LockedWheel, tag: &str) -> Self {
        Self(format!("{}-{tag}-{LAYOUT}", wheel.sha256))
    }
}

impl Store {
    /// Opens the store at `root`, makes it if it is not there, and removes what a crash left unfinished.
    pub fn open(root: impl Into<PathBuf>, limits: Limits) -> Result<Self, StoreError> {
        let (root, agent) = (root.into(), OnceLock::new());
        let store = Self {
            root,
            limits,
            credentials: Credentials::default(),
            silence: Sources::default().silence(),
            agent,
        };
        if !store.root.is_dir() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&store.root);
            made.map_err(StoreError::at("create", &store.root))?;
        }
        for name in [WHEELS, TMP, LOCKS] {
            let dir = store.root.join(name);
            fs::create_dir_all(&dir).map_err(StoreError::at("create", &dir))?;
            // Whatever the umask: the launcher's overlay is read by other uids.
            let mode = fs::Permissions::from_mode(if name == WHEELS { 0o755 } else { 0o700 });
            fs::set_permissions(&dir, mode).map_err(StoreError::at("chmod", &dir))?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// The same store, which shows the credentials in the URLs of `sources` to the servers that they are for, and is as
    /// patient with servers as they say.
    pub fn with_sources(mut self, sources: &Sources) -> Self {
        self.credentials = Credentials::of(sources);
        self.silence = sources.silence();
        self
    }

    /// The directory that views are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The view of a lock, if every wheel of it is in the store.
    pub fn view(&self, lock: &Lock) -> Option<View> {
        let entries = lock.packages.iter().map(|wheel| {
            let key = Key::of(wheel, &lock.tag);
            let facts = self.facts(&key, wheel)?;
            Some(ViewEntry {
                name: wheel.name.clone(),
                version: wheel.version.clone(),
                sha256: wheel.sha256,
                dir: Path::new(WHEELS).join(&key.0).join("site"),
                modules: facts.modules,
            })
        });
        Some(View { id: lock.id(), entries: entries.collect::<Option<_>>()? })
    }

    /// What is known of a wheel, if it is in the store.
    fn facts(&self, key: &Key, wheel: &LockedWheel) -> Option<Facts> {
        Facts::read(&self.wheel_dir(key)).filter(|facts| facts.sha256 == wheel.sha256)
    }

    fn wheel_dir(&self, key: &Key) -> PathBuf {
        self.root.join(WHEELS).join(&key.0)
    }

    fn tmp_dir(&self, key: &Key) -> PathBuf {
        self.root.join(TMP).join(&key.0)
    }

    /// Waits until nobody else makes or removes the wheel; the lock goes with the file, and with the process.
    fn lock_key(&self, key: &Key) -> Result<fs::File, StoreError> {
        let (path, file) = self.lock_file(key)?;
        file.lock().map_err(StoreError::at("lock", &path))?;
        Ok(file)
    }

    fn try_lock_key(&self, key: &Key) -> Result<Option<fs::File>, StoreError> {
        let (path, file) = self.lock_file(key)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(StoreError::at("lock", &path)(error)),
        }
    }

    fn lock_file(&self, key: &Key) -> Result<(PathBuf, fs::File), StoreError> {
        let path = self.root.join(LOCKS).join(&key.0);
        let file = fs::File::options().create(true).append(true).open(&path);
        file.map_err(StoreError::at("open", &path)).map(|file| (path, file))
    }

    /// Removes unfinished wheels whose maker is gone. One that is being made holds its lock.
    fn sweep(&self) -> Result<(), StoreError> {
        let tmp = self.root.join(TMP);
        for entry in fs::read_dir(&tmp).map_err(StoreError::at("read", &tmp))? {
            let name = entry.map_err(StoreError::at("read", &tmp))?.file_name();
            let key = Key(name.to_string_lossy().into_owned());
            if let Some(_held) = self.try_lock_key(&key)? {
                tree::remove(&tmp.join(name))?;
            }
        }
        Ok(())
    }
}
