//! The whole system through its binary: a real server, as root, on loopback, with a data directory of its own.
//!
//! Each test starts its own server, so that they may run side by side. Packages come from the index that pip and uv are
//! configured for.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report, in its helpers too")]

mod cache;
mod chaos;
mod cli;
mod confined;
mod crash;
mod deploys;
mod endings;
mod forks;
mod grove;
mod handlers;
mod http;
mod inside;
#[cfg(feature = "machine")]
mod limits;
#[cfg(feature = "machine")]
mod many;
mod memory;
mod operating;
mod packages;
mod server;
mod starts;
mod tree;
