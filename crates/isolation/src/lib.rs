//! Lean containers for Linux, made in about a millisecond: namespaces, cgroup v2, seccomp, and a root of its own for each.
//!
//! ```no_run
//! use sock_isolation::{Command, Host, HostOptions, IdRange, Limits, Nesting, Role, SlotSpec, Template, Workshop};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let template = Template::of_base(std::path::Path::new("/"))?;
//! let host = Host::start(HostOptions {
//!     work: "/run/example".into(),
//!     group: "example".into(),
//!     template,
//!     ids: IdRange::default(),
//! })?;
//! let mut workshop = Workshop::new(host);
//! let spec = SlotSpec { hostname: "box".into(), tmp_bytes: 64 << 20, nesting: Nesting::Forbidden };
//! let command = Command {
//!     argv: vec!["/bin/echo".into(), "hello".into()],
//!     env: vec![],
//!     directory: "/tmp".into(),
//!     role: Role::Instance,
//!     limits: Limits::default(),
//!     memory_by_kernel: false,
//! };
//! let mut container = workshop.start(spec, command, &[])?;
//! println!("{:?}", container.wait()?);
//! container.destroy()?;
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
mod host;
mod init;
mod verify;

pub mod launcher;
pub mod process;
mod run;

pub use cgroup::{Limits, Usage};
pub use container::{Container, CreateError, Workshop};
pub use error::{SysResult, SyscallError};
pub use host::{Host, HostError, HostOptions};
pub use ids::{BLOCK, IdClash, IdRange, IdRangeError, Pair};
pub use init::{Command, Exit};
pub use plan::{Base, Nesting, NoBase, SlotSpec, Template};
pub use run::{RunError, RunOptions, run_command};
pub use seccomp::Role;
pub use verify::Unconfined;
