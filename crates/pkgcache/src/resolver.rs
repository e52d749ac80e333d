//! The seam between "what is asked for" and "what is locked".
//!
//! The rest of the crate and everything above it only knows this trait: which program searches the versions
//! can change without anything else noticing, and a test can put a table in its place.

use crate::{BootstrapError, Interpreter, Lock, LockError, NameError, Requirements};

/// Turns requirements into exact wheels for an interpreter.
pub trait Resolver: Send + Sync {
    /// Finds versions that fit together and have wheels for `py`; blocks until it has, or knows that there
    /// are none.
    fn resolve(&self, reqs: &Requirements, py: &Interpreter) -> Result<Lock, ResolveError>;
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver itself could not be made ready.
    #[error("failed to set up the package resolver")]
    Bootstrap(#[from] BootstrapError),
    /// The resolver could not be run.
    #[error("failed to run the package resolver ({call})")]
    Run {
        /// What was tried.
        call: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took longer than it may.
    #[error("the package resolver did not finish within {seconds} s: is the package index reachable?")]
    Deadline {
        /// The limit.
        seconds: u64,
    },
    /// No set of versions fulfils the requirements.
    #[error("no set of packages fulfils the requirements: {0}")]
    Unsatisfiable(String),
    /// The index could not be asked.
    #[error("the package index does not answer: {0}")]
    Index(String),
    /// The resolver failed for another reason, in its words.
    #[error("the package resolver failed: {0}")]
    Failed(String),
    /// The resolver's output is not what its format promises.
    #[error("the package resolver's output cannot be read")]
    Output(#[source] toml::de::Error),
    /// There are versions, but only as source.
    #[error(
        "{0} has no wheel for this interpreter, and building from source would run its code: pin a version that has one"
    )]
    NoWheel(String),
    /// A wheel without a hash cannot be verified.
    #[error("the package index gives no sha256 for {0}: use an index that does, or a directory of wheels")]
    NoHash(String),
    /// The one hash that the requirements allow is not among those that the index has.
    #[error("no wheel of {0} has a sha256 that its --hash options allow")]
    HashNotAllowed(String),
    /// A distribution's name that is none.
    #[error("the package resolver's output has a bad name")]
    Name(#[from] NameError),
    /// Wheels that do not make a lock.
    #[error("the package resolver's output is not a lock")]
    Lock(#[from] LockError),
}
