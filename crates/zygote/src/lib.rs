//! Fork servers of Python interpreters that have imported packages already, sound to share and confined.
//!
//! * [`scan`]: what a handler's sources import, found without running them;
//! * [`sharing`]: whether a zygote may serve a function;
//! * [`tree`]: which zygotes are worth their memory, and which of them serves whom;
//! * [`frames`]: the protocol with the Python processes, as a codec without I/O;
//! * [`runtime`]: the Python side, embedded.
//!
//! Mounts, namespaces and descriptors come from `sock-isolation`, as do all checks of a forked process; what is in a
//! view is plain data from the caller. Knows nothing of HTTP, of what is in a wheel, or of which zygotes are running.

pub mod frames;
pub mod runtime;
pub mod scan;
pub mod sharing;
pub mod tree;

pub use scan::Import;
pub use sharing::{Candidate, Distribution, Facts, Lock, Node, Unsound, sound};

/// The README's example is compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
