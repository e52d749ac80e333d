//! Processes of a single-threaded program: forked, held by a pidfd, waited for.
//!
//! For programs that split into parts with different rights before they start a runtime or a thread: after that it would
//! be too late to fork.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Context, SysResult};
use crate::init::Exit;
use crate::sys;

/// A child process of the caller's. Dropping the handle neither ends nor reaps it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Forks; the child runs `body` and exits with what it returns. It dies with its parent. Refused in a process with
    /// more than one thread.
    pub fn fork(body: impl FnOnce() -> i32) -> SysResult<Self> {
        Self::fork_without(&[], body)
    }

    /// As [`Child::fork`], and the child has none of `fds`: the parent's ends of sockets, say, whose closing the child
    /// waits for.
    pub fn fork_without(fds: &[&OwnedFd], body: impl FnOnce() -> i32) -> SysResult<Self> {
        sys::require_single_thread()?;
        let parent = nix::unistd::getpid();
        let pid = sys::fork(|| match die_with(parent).and_then(|()| sys::close_in_child(fds)) {
            Ok(()) => body(),
            Err(error) => {
                eprintln!("sock: {error}");
                1
            }
        })?;
        let pidfd = sys::pidfd_open(pid).call("pidfd_open")?;
        Ok(Self { pid, pidfd })
    }

    /// Becomes readable when the child has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its number, for people to read.
    pub fn id(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends a signal; one that has ended already gets none.
    pub fn signal(&self, signal: i32) -> SysResult<()> {
        match sys::pidfd_signal(self.pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno).call("pidfd_send_signal"),
        }
    }

    /// Waits for its end.
    pub fn wait(self) -> SysResult<Exit> {
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(Exit::Code(code)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Exit::Signal(signal as i32)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).call("waitpid"),
            }
        }
    }
}

fn die_with(parent: Pid) -> SysResult<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).call("prctl PR_SET_PDEATHSIG")?;
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(Errno::ESRCH).call("getppid") }
}

/// Turns the calling process, root until now, into an ordinary one for good: uid and gid `id`, no groups, no capability in
/// any set, no way to gain one. It still dies with its parent.
pub fn become_ordinary(id: u32) -> SysResult<()> {
    use crate::execute::{Outside, perform};
    use crate::plan::Step;
    let parent = nix::unistd::getppid();
    let steps = [
        Step::DropBoundingSet,
        Step::SetIds { id },
        Step::NoCapabilities,
        Step::NoNewPrivileges,
        Step::Undumpable,
    ];
    perform(&steps, &Outside::default())?;
    // The change of ids cleared this.
    die_with(parent)
}

/// A launcher holds a handful for each instance, of which there may be thousands.
const ENOUGH: u64 = 1 << 18;

/// Lets the calling process have as many open files as it may, root a quarter of a million, and returns how many that is.
pub fn raise_file_limit() -> SysResult<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).call("getrlimit")?;
    let text = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    let most = text.trim().parse().unwrap_or(hard).min(ENOUGH).max(hard);
    // More than the hard limit is root's to take.
    if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() {
        return Ok(most);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).call("setrlimit")?;
    Ok(hard)
}
