//! One container with one command, as an owned handle: the crate's library face.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use crate::builder::{Event, Made};
use crate::cgroup::Usage;
use crate::error::{Context, SysResult, SyscallError};
use crate::host::{Ground, Host};
use crate::ids::{Pair, Pairs};
use crate::init::{Command, Exit};
use crate::plan::SlotSpec;
use crate::sys;

/// A container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A system call failed on the outside.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// A step inside failed, with its own words.
    #[error("failed to make the container: {0}")]
    Inside(String),
    /// All user ids are taken.
    #[error("no user ids are left for another container")]
    NoIds,
}

/// Makes containers one at a time, on a [`Host`] of its own.
#[derive(Debug)]
pub struct Workshop {
    host: Host,
    pairs: Pairs,
    next: u64,
}

/// A running container. Dropping the handle leaves it to the host's end; [`Container::destroy`] ends it now.
#[derive(Debug)]
pub struct Container<'a> {
    workshop: &'a mut Workshop,
    ground: Ground,
    pair: Pair,
    made: Made,
    ended: Option<Option<Exit>>,
}

impl Workshop {
    /// On `host`, which gets no other user.
    pub fn new(host: Host) -> Self {
        Self { host, pairs: Pairs::default(), next: 1 }
    }

    /// Makes a container and starts `command` in it, with `fds` as its descriptors 0, 1, 2….
    pub fn start(
        &mut self,
        spec: SlotSpec,
        command: Command,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Container<'_>, CreateError> {
        let pair = self.pairs.take().ok_or(CreateError::NoIds)?;
        let ground = self.host.ground(self.next)?;
        self.next += 1;
        ground.group.limit(&self.host.hierarchy, &command.limits)?;
        let map = pair.map(self.host.ids.block(0));
        self.host.build(&ground, map, None, (spec, Some(command), fds))?;
        match self.host.event()? {
            Some(Event::Made { made, .. }) => {
                Ok(Container { workshop: self, ground, pair, made, ended: None })
            }
            Some(Event::Failed { error, .. }) => {
                self.pairs.give_back(pair);
                self.host.clear(&ground)?;
                Err(CreateError::Inside(error))
            }
            Some(Event::Ended { .. }) | None => Err(Errno::EPIPE).call("wait for the slot builder")?,
        }
    }

    /// Ends the host.
    pub fn stop(self) -> SysResult<()> {
        self.host.stop()
    }
}

impl Container<'_> {
    /// Stops every process where it is.
    pub fn pause(&self) -> SysResult<()> {
        self.freeze("1")
    }

    /// Lets them go on.
    pub fn resume(&self) -> SysResult<()> {
        self.freeze("0")
    }

    fn freeze(&self, value: &str) -> SysResult<()> {
        let path = self.ground.group.path().join("cgroup.freeze");
        fs::write(&path, value).call_on("write", &path)
    }

    /// What its memory controller counted.
    pub fn stats(&self) -> Usage {
        self.ground.group.usage()
    }

    /// Ends every process in it; [`Container::wait`] then returns.
    pub fn kill(&self) -> SysResult<()> {
        match sys::pidfd_signal(self.made.pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => self.ground.group.kill(),
            Err(errno) => Err(errno).call("pidfd_send_signal"),
        }
    }

    /// A descriptor that becomes readable when the container has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.made.pidfd.as_fd()
    }

    /// Waits for the end; `None` when it was killed as a whole, so that its command has no status of its own.
    pub fn wait(&mut self) -> SysResult<Option<Exit>> {
        if let Some(exit) = self.ended {
            return Ok(exit);
        }
        match self.workshop.host.event()? {
            Some(Event::Ended { exit, .. }) => {
                self.ended = Some(exit);
                Ok(exit)
            }
            _ => Err(Errno::EPIPE).call("wait for the slot builder"),
        }
    }

    /// Ends it and takes away everything that it had.
    pub fn destroy(mut self) -> SysResult<()> {
        self.kill()?;
        self.wait()?;
        self.workshop.pairs.give_back(self.pair);
        while !self.workshop.host.clear(&self.ground)? {
            self.ground.group.wait_for_change()?;
        }
        Ok(())
    }
}
