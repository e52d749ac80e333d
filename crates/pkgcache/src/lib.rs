//! Python packages: resolve, fetch, verify, store once, compose into views.
//!
//! The way of a requirements file through this crate, at deploy time and never at invocation time:
//!
//! ```text
//! requirements.txt ─ Requirements ─ Resolver ─ Lock ─ Store::install ─ View
//!   text, untrusted    parsed        uv         name,    wheels on disk   what to overlay, and
//!                                               version,  verified,        which modules it has
//!                                               sha256    read-only
//! ```
//!
//! Each wheel lies in the store once, whatever the number of functions that use it; a [`View`] is the list of
//! directories that a launcher puts on top of each other for one [`Lock`].
//!
//! What this crate never does: run a package's code (no sdist builds, no `.pth`, no entry points, no import),
//! trust a name, a size or a hash that an archive or an index states about itself, ask for privilege, or
//! write outside the directories that it was given. It knows nothing about containers, zygotes or HTTP
//! servers, and everything in it is synchronous.

// The wheels of tests name the crate as others do.
#[cfg(test)]
extern crate self as sock_pkgcache;

mod clean;
mod compile;
mod fault;
mod fetch;
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod interpreter;
mod lock;
mod modules;
mod name;
mod progress;
mod record;
mod requirements;
mod resolver;
mod sources;
mod store;
mod unpack;
mod url;
mod uv;
mod view;

pub use compile::{CompileError, MOUNT_POINT};
pub use fault::Fault;
pub use fetch::FetchError;
pub use hash::{HashError, LockId, Sha256};
pub use interpreter::{Interpreter, ProbeError};
pub use lock::{Location, Lock, LockError, LockedWheel};
pub use name::{DistName, NameError};
pub use progress::Progress;
pub use record::RecordError;
pub use requirements::{Requirement, Requirements, RequirementsError};
pub use resolver::{ResolveError, Resolver};
pub use sources::Sources;
pub use store::{Collected, InstallError, Limits, Store, StoreError, WheelError};
pub use unpack::{EntryProblem, UnpackError, duplicate as duplicate_entry};
pub use uv::{BootstrapError, Uv};
pub use view::{View, ViewEntry};

/// The README's example is compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
