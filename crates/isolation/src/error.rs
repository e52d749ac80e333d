//! A failed system call: one type for all of them, so that every message says which call, on what, and why.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// A system call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}{}: {}", on(path), errno.desc())]
pub struct SyscallError {
    /// The call's name as in section 2 of the manual.
    pub call: &'static str,
    /// What it was called on.
    pub path: Option<PathBuf>,
    /// The kernel's answer.
    pub errno: Errno,
}

fn on(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default()
}

/// What every fallible function of this crate that only makes system calls returns.
pub type SysResult<T> = Result<T, SyscallError>;

/// Gives a bare error number its context.
pub(crate) trait Context<T> {
    fn call(self, call: &'static str) -> SysResult<T>;
    fn call_on(self, call: &'static str, path: impl AsRef<Path>) -> SysResult<T>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn call(self, call: &'static str) -> SysResult<T> {
        self.map_err(|errno| SyscallError { call, path: None, errno })
    }
    fn call_on(self, call: &'static str, path: impl AsRef<Path>) -> SysResult<T> {
        self.map_err(|errno| SyscallError { call, path: Some(path.as_ref().to_owned()), errno })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn call(self, call: &'static str) -> SysResult<T> {
        self.map_err(from_io).call(call)
    }
    fn call_on(self, call: &'static str, path: impl AsRef<Path>) -> SysResult<T> {
        self.map_err(from_io).call_on(call, path)
    }
}

fn from_io(error: std::io::Error) -> Errno {
    // An error that no system call raised (a short write, say) has no number of its own.
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
