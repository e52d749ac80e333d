//! The gateway: the AWS Lambda API over a registry of functions, and what runs them.
//!
//! ```text
//! http ─▶ api ─▶ registry (SQLite, memory)         what there is
//!          │ └─▶ deploy ─▶ bundle, packages        what a deployment needs
//!          ├───▶ events (SQLite)                   what was accepted and has not run
//!          └───▶ runner: a trait                   what runs it
//!                  └─ engine ─▶ launcher, zygotes, instances
//! supervisor ─▶ ordinary (this process, without rights) and the launcher
//! ```
//!
//! Alone composes the other crates, alone speaks HTTP. The process that all of this but the supervisor runs in is an
//! ordinary user's: it mounts nothing and starts no container, it asks the launcher.

mod api;
mod bundle;
mod config;
mod deploy;
mod doctor;
mod engine;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod http;
mod keys;
mod lock;
mod logs;
mod metrics;
mod names;
mod ordinary;
mod registry;
pub mod runner;
pub mod sigv4;
mod supervisor;

pub use bundle::{BundleError, BundleLimits, EntryProblem};
pub use config::{Auth, GatewayConfig, GatewayLimits};
pub use deploy::packages::{PackageRequest, Packages, PackagesError};
pub use doctor::doctor;
pub use gateway::{ServeError, serve};
pub use keys::{AccessKey, KeyError, Keys};
pub use names::{FunctionName, FunctionRef, LATEST, NameError, Realm};
pub use registry::RegistryError;
pub use runner::{
    BoxFuture, Function, Invocation, InvocationResult, Outcome, Phases, Runner, RunnerCounts, StartKind,
    ThrottleLimit,
};
pub use supervisor::{LogFormat, ServeOptions, SuperviseError, supervise, written_endpoint};

/// The README's example is compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
