//! The HTTP side of SOCK: the AWS Lambda API over a registry of functions.
//!
//! It decides who may call, keeps what was deployed, gets packages installed, and hands each invocation to a [`Runner`]. It
//! runs as an unprivileged process and needs no capability: it starts no container and mounts nothing.

mod doctor;
mod engine;
mod gateway;
pub mod keys;
mod names;
pub mod runner;
pub mod sigv4;
mod supervisor;

pub use doctor::doctor;
pub use keys::{AccessKey, KeyError, Keys};
pub use names::{FunctionName, FunctionRef, LATEST, NameError, Realm};
pub use runner::{
    BoxFuture, Function, Invocation, InvocationResult, Outcome, Phases, Runner, StartKind, ThrottleLimit,
};
pub use supervisor::{ServeError, ServeOptions, supervise};
