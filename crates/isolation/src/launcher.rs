//! The launcher: the one process that stays root, so that the one that speaks HTTP need not be.
//!
//! It owns the [`crate::Host`] and makes, checks and destroys containers on request, over a SEQPACKET socket pair. The set
//! of requests is closed, every field is validated on this side, and paths are resolved beneath the data directory only.
//! It is single-threaded, never runs code of a container's, and never waits for one: it answers what it can and goes on.
//!
//! * [`wire`]: requests and replies;
//! * [`server`]: the process;
//! * [`Client`]: a blocking client. An asynchronous one needs only [`wire`].

pub mod server;
mod validate;
pub mod wire;

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Context, SysResult, SyscallError};
use wire::{Reply, Request};

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// On the way.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// In the launcher, which says why.
    #[error("{0}")]
    Refused(String),
    /// The launcher is gone or answered something else.
    #[error("the launcher is gone; see its last words in the server's log")]
    Gone,
}

/// A blocking client with one request under way at a time.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    next: u64,
}

impl Client {
    /// Over `socket`, the other end of the launcher's.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, next: 1 }
    }

    /// Sends `request` and waits for its reply.
    pub fn call(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let id = self.next;
        self.next += 1;
        wire::send_request(self.socket.as_fd(), id, request).call("sendmsg")?;
        loop {
            let answer = wire::receive_reply(self.socket.as_fd()).call("recvmsg")?;
            let (answer, fds) = answer.ok_or(ClientError::Gone)?;
            if answer.id == id {
                return answer.result.map(|reply| (reply, fds)).map_err(ClientError::Refused);
            }
        }
    }
}

/// Both ends of a launcher's socket.
pub fn socket_pair() -> SysResult<(OwnedFd, OwnedFd)> {
    crate::builder::pair()
}
