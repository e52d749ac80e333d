//! One Python process as the gateway sees it: frames on a socket, output on a pipe.

use std::io;
use std::os::fd::OwnedFd;

use sock_zygote::frames::{self, Decoder, FrameError, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// The process did not do what was expected of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// It closed its socket: it is gone, or as good as gone.
    #[error("the process is gone")]
    Gone,
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
}

/// The gateway's ends of a process's socket and log.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: UnixStream,
    log: pipe::Receiver,
    log_open: bool,
    decoder: Decoder,
    output: Output,
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
        Ok(Self { socket, log, log_open: true, decoder: Decoder::default(), output: Output::default() })
    }

    /// Sends a frame. Reads output meanwhile: a process that waits for room in its log reads nothing.
    pub(crate) async fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), PeerError> {
        let frame = frames::encode(kind, payload)?;
        let mut rest = &frame[..];
        let mut buffer = [0; 16 << 10];
        while !rest.is_empty() {
            tokio::select! {
                biased;
                written = self.socket.write(rest) => match written {
                    Ok(0) | Err(_) => return Err(PeerError::Gone),
                    Ok(count) => rest = &rest[count..],
                },
                read = self.log.read(&mut buffer), if self.log_open => take(&mut self.output, &mut self.log_open, read, &buffer),
            }
        }
        Ok(())
    }

    /// Waits for the next frame and keeps reading output meanwhile.
    pub(crate) async fn receive(&mut self) -> Result<(Kind, Vec<u8>), PeerError> {
        let mut buffer = [0; 16 << 10];
        let mut more = [0; 16 << 10];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            tokio::select! {
                biased;
                read = self.socket.read(&mut more) => match read {
                    Ok(0) | Err(_) => return Err(PeerError::Gone),
                    Ok(count) => self.decoder.push(&more[..count]),
                },
                read = self.log.read(&mut buffer), if self.log_open => take(&mut self.output, &mut self.log_open, read, &buffer),
            }
        }
    }

    /// Waits for a frame of this kind.
    pub(crate) async fn expect(&mut self, kind: Kind) -> Result<Vec<u8>, PeerError> {
        match self.receive().await? {
            (received, payload) if received == kind => Ok(payload),
            (other, _) => Err(PeerError::Unexpected(other)),
        }
    }

    /// Whether it can take another invocation: it has neither hung up nor said anything unasked.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut byte = [0; 1];
        self.decoder.is_empty()
            && matches!(self.socket.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Everything written until now. What a process wrote before it answered is in the pipe when its answer arrives.
    pub(crate) fn take_output(&mut self) -> Output {
        let mut buffer = [0; 16 << 10];
        // A process that never stops writing must not keep us here.
        for _ in 0..64 {
            match self.log.try_read(&mut buffer) {
                Ok(count) if count > 0 => self.output.push(&buffer[..count]),
                _ => break,
            }
        }
        std::mem::take(&mut self.output)
    }
}

fn take(output: &mut Output, open: &mut bool, read: io::Result<usize>, buffer: &[u8]) {
    match read {
        Ok(count) if count > 0 => output.push(&buffer[..count]),
        _ => *open = false,
    }
}
