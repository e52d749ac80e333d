//! One Python process as the gateway sees it: frames on a socket, output on a pipe.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sock_zygote::frames::{self, Decoder, FrameError, Kind};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// The process did not do what was expected of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// It has ended.
    #[error("the process is gone")]
    Gone,
    /// It closed its socket and goes on.
    #[error("its socket was closed")]
    HungUp,
    /// The same, or it is gone; and what it was sent last, it did not read to the end, so that the runtime has done nothing about it.
    /// A handler that reads its socket by itself may have.
    #[error("it did not read what it was sent")]
    Unread,
    /// It does not keep to the protocol, so nothing that it says can be relied on.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It answered something else.
    #[error("the process sent {0:?} when another frame was due")]
    Unexpected(Kind),
}

/// Output that one invocation may keep, bytes: far more than the 4 KB that Lambda hands out, little enough to hold for
/// every invocation that is under way.
const MAX_LOG: usize = 256 << 10;

/// Output that an instance may have written since its last answer, bytes: what a pipe holds. Where there is more, something that
/// the handler left behind keeps on writing, and would fill the log of the next invocation.
const MAX_UNASKED: u64 = 64 << 10;

/// A process that ends closes its socket a moment before. One that is still there after so long has closed it by itself.
const DYING: Duration = Duration::from_secs(1);

/// What a process wrote to its standard output and error.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) text: Vec<u8>,
    /// Bytes beyond [`MAX_LOG`], which were dropped.
    pub(crate) dropped: u64,
}

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        let room = MAX_LOG.saturating_sub(self.text.len()).min(bytes.len());
        self.text.extend_from_slice(&bytes[..room]);
        self.dropped += (bytes.len() - room) as u64;
    }

    fn total(&self) -> u64 {
        self.text.len() as u64 + self.dropped
    }
}

/// The gateway's ends of a process's socket and log.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: UnixStream,
    log: pipe::Receiver,
    log_open: bool,
    /// A pidfd, once it was checked.
    process: Option<pipe::Receiver>,
    decoder: Decoder,
    output: Output,
    /// How much it had written before nothing was expected of it, bytes.
    asked: u64,
}

impl Peer {
    /// From the two descriptors that the launcher hands out: socket, log.
    pub(crate) fn new(fds: Vec<OwnedFd>) -> io::Result<Self> {
        let [socket, log]: [OwnedFd; 2] =
            fds.try_into().map_err(|_| io::Error::other("the launcher sent no socket and log"))?;
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let log = pipe::Receiver::from_owned_fd(log)?;
        let socket = UnixStream::from_std(socket)?;
        let (decoder, output) = (Decoder::default(), Output::default());
        Ok(Self { socket, log, log_open: true, process: None, decoder, output, asked: 0 })
    }

    /// From now on its end is what the kernel says of the process behind `pidfd`, not what becomes of its socket: a child may
    /// hold that open.
    pub(crate) fn watch(&mut self, pidfd: OwnedFd) -> io::Result<()> {
        // It is no pipe: for readiness, which is all that is used of this type, any descriptor that poll(2) takes will do.
        self.process = Some(pipe::Receiver::from_owned_fd_unchecked(pidfd)?);
        Ok(())
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), PeerError> {
        self.send_all(&frames::encode(kind, payload)?).await
    }

    /// Sends whole frames. Reads output meanwhile: a process that waits for room in its log reads nothing.
    pub(crate) async fn send_all(&mut self, frames: &[u8]) -> Result<(), PeerError> {
        let mut rest = frames;
        while !rest.is_empty() {
            tokio::select! {
                biased;
                written = self.socket.write(rest) => match written {
                    Ok(0) | Err(_) => return Err(PeerError::Unread),
                    Ok(count) => rest = &rest[count..],
                },
                () = end(self.process.as_ref()) => return Err(PeerError::Unread),
                ready = self.log.readable(), if self.log_open => {
                    self.read_log(ready);
                    // Who writes without end is not to keep whoever looks at the time from it.
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }

    /// Waits for the next frame and keeps reading output meanwhile.
    pub(crate) async fn receive(&mut self) -> Result<(Kind, Vec<u8>), PeerError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            tokio::select! {
                biased;
                ready = self.socket.readable() => match ready.and_then(|()| self.read_socket()) {
                    // So Linux tells that the other end was closed with bytes in it that nobody had read: unix_release_sock().
                    // One that has begun to answer had read enough.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset && self.decoder.is_empty() => {
                        return Err(PeerError::Unread);
                    }
                    Ok(Some(0)) | Err(_) => return Err(self.closed().await),
                    Ok(_) => {}
                },
                () = end(self.process.as_ref()) => return self.last_words(),
                ready = self.log.readable(), if self.log_open => {
                    self.read_log(ready);
                    // Who writes without end is not to keep whoever looks at the time from it.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// The frame that a process sent before it ended.
    fn last_words(&mut self) -> Result<(Kind, Vec<u8>), PeerError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match self.read_socket() {
                Ok(Some(count)) if count > 0 => {}
                _ => return Err(PeerError::Gone),
            }
        }
    }

    /// How many bytes came; nothing where there are none yet. Not in the futures above, which would hold its buffer and be moved with it.
    fn read_socket(&mut self) -> io::Result<Option<usize>> {
        let mut buffer = [0; 16 << 10];
        match self.socket.try_read(&mut buffer) {
            Ok(count) => {
                self.decoder.push(&buffer[..count]);
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_log(&mut self, ready: io::Result<()>) {
        let mut buffer = [0; 16 << 10];
        match ready.and_then(|()| self.log.try_read(&mut buffer)) {
            Ok(count) if count > 0 => self.output.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.log_open = false,
        }
    }

    /// What it means that the socket is closed.
    async fn closed(&self) -> PeerError {
        if self.process.is_none() {
            return PeerError::Gone;
        }
        match tokio::time::timeout(DYING, end(self.process.as_ref())).await {
            Ok(()) => PeerError::Gone,
            Err(_) => PeerError::HungUp,
        }
    }

    /// Waits for a frame of this kind.
    pub(crate) async fn expect(&mut self, kind: Kind) -> Result<Vec<u8>, PeerError> {
        match self.receive().await? {
            (received, payload) if received == kind => Ok(payload),
            (other, _) => Err(PeerError::Unexpected(other)),
        }
    }

    /// From now on what it writes is written unasked.
    pub(crate) fn settle(&mut self) {
        self.read_output();
        self.asked = self.output.total();
    }

    /// Whether it can take another invocation: it lives, and has neither hung up nor said or written much unasked.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        let lives = self.process.as_ref().is_none_or(|process| {
            poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
        });
        self.read_output();
        lives
            && self.output.total().saturating_sub(self.asked) < MAX_UNASKED
            && self.decoder.is_empty()
            && matches!(self.socket.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Everything written until now. What a process wrote before it answered is in the pipe when its answer arrives.
    pub(crate) fn take_output(&mut self) -> Output {
        self.read_output();
        self.asked = 0;
        std::mem::take(&mut self.output)
    }

    fn read_output(&mut self) {
        let mut buffer = [0; 16 << 10];
        // A process that never stops writing must not keep us here.
        for _ in 0..64 {
            // Of the kernel, not of tokio: that may have been told of the answer, and not yet of what was written before it.
            match nix::unistd::read(&self.log, &mut buffer) {
                Ok(count) if count > 0 => self.output.push(&buffer[..count]),
                _ => break,
            }
        }
    }
}

/// Waits for the end of a process, where there is a pidfd to see it by. pidfd_open(2)
async fn end(process: Option<&pipe::Receiver>) {
    match process {
        // It only fails when the runtime stops.
        Some(process) => drop(process.readable().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Stream;

    use super::*;

    /// A peer, and what a process would hold of it.
    fn peer() -> (Peer, Stream) {
        let (ours, theirs) = Stream::pair().unwrap();
        let (log, _) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        (Peer::new(vec![ours.into(), log]).unwrap(), theirs)
    }

    async fn exchange(peer: &mut Peer, then: impl FnOnce()) -> PeerError {
        match peer.send(Kind::Invoke, &[7; 100]).await {
            Ok(()) => then(),
            Err(error) => return error,
        }
        peer.receive().await.unwrap_err()
    }

    #[tokio::test]
    async fn what_nobody_read_is_told_from_what_was_begun() {
        let (mut closed, theirs) = peer();
        drop(theirs);
        assert!(matches!(exchange(&mut closed, || ()).await, PeerError::Unread), "it was gone before");

        let (mut unread, theirs) = peer();
        assert!(matches!(exchange(&mut unread, || drop(theirs)).await, PeerError::Unread), "it read nothing");

        let (mut half, mut theirs) = peer();
        let reads = || theirs.read_exact(&mut [0; 50]).map(|()| drop(theirs)).unwrap();
        assert!(matches!(exchange(&mut half, reads).await, PeerError::Unread), "it read a half");

        let (mut whole, mut theirs) = peer();
        let reads = || theirs.read_exact(&mut [0; 105]).map(|()| drop(theirs)).unwrap();
        assert!(matches!(exchange(&mut whole, reads).await, PeerError::Gone), "it may have begun");

        let (mut answering, mut theirs) = peer();
        let answers = || {
            theirs.read_exact(&mut [0; 105]).unwrap();
            theirs.write_all(&frames::encode(Kind::Result, &[0; 9]).unwrap()[..8]).unwrap();
            drop(theirs);
        };
        assert!(matches!(exchange(&mut answering, answers).await, PeerError::Gone), "it had half an answer");
    }

    /// Else whoever waits for the answer, and looks at the time in the same task, would never come to that.
    #[tokio::test]
    async fn who_writes_without_end_is_left_alone_now_and_then() {
        let (ours, _theirs) = Stream::pair().unwrap();
        let (log, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        nix::unistd::write(&writer, &[b'x'; 64 << 10]).unwrap();
        let mut peer = Peer::new(vec![ours.into(), log]).unwrap();
        let mut receive = Box::pin(peer.receive());
        let mut looked = 0;
        let once = std::future::poll_fn(|context| {
            looked += 1;
            // The first time nothing is known to be there yet.
            assert!(receive.as_mut().poll(context).is_pending());
            if looked < 3 { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
        });
        tokio::time::timeout(Duration::from_secs(10), once).await.unwrap();
        drop(receive);
        assert!((1..64 << 10).contains(&peer.output.total()), "{}", peer.output.total());
    }
}
