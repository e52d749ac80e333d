//! Lean containers for Linux, made in about a millisecond: namespaces, cgroup v2, seccomp, and a root of its own for each.
//!
//! ```no_run
//! use sock_isolation::{ContainerSpec, Host, HostOptions, IdRange, Program, Template, Workshop};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Host::start(HostOptions {
//!     work: "/run/example".into(),
//!     group: "example".into(),
//!     template: Template::of_base(std::path::Path::new("/"))?,
//!     ids: IdRange::default(),
//! })?;
//! let workshop = Workshop::new(host, ContainerSpec::default());
//! let mut container = workshop.create()?;
//! let argv = ["/bin/echo", "hello"].map(String::from).into();
//! container.start(&Program { argv, env: vec![], directory: "/tmp".into() }, &[])?;
//! println!("{:?}", container.wait()?);
//! container.destroy()?;
//! workshop.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: [`plan`] (what is done), then `execute`, `builder`, `init` (who does it), [`Host`] and [`Container`]
//! (what owns it), [`launcher`] (how an unprivileged process asks for it).
//!
//! Knows nothing of Python, packages, HTTP or asynchronous code.

mod error;
mod sys;

pub mod bpf;
pub mod cgroup;
mod etc;
mod execute;
mod ids;
pub mod plan;
pub mod seccomp;

mod builder;
mod container;
pub mod doctor;
pub mod enter;
mod host;
mod init;
pub mod landlock;
mod verify;
mod watch;
#[cfg(feature = "weaken")]
pub mod weaken;

pub mod launcher;
pub mod process;
mod run;

pub use cgroup::{Limits, Stats, Usage};
pub use container::{Container, ContainerSpec, CreateError, DestroyError, Workshop};
pub use error::{SysResult, SyscallError};
pub use host::{Host, HostError, HostOptions};
pub use ids::{BLOCK, IdClash, IdRange, IdRangeError, Pair};
pub use init::{Command, End, Exit, Program};
pub use plan::{Base, Nesting, NoBase, NoProfile, Profile, SlotSpec, Template};
pub use run::{RunError, RunOptions, run_command};
pub use seccomp::Role;
pub use verify::Unconfined;
