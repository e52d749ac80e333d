//! The gateway's side of the launcher: many requests under way at once over the one socket.
//!
//! The only place where asynchronous code meets the launcher. Requests are datagrams of bounded size; answers carry the
//! number of their request.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sock_isolation::launcher::wire::{self, Reply, Request};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};

/// A request to the launcher failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LauncherError {
    /// It refused, and says why.
    #[error("{0}")]
    Refused(String),
    /// It is gone; the supervisor starts another.
    #[error("the launcher is gone")]
    Gone,
}

type Answer = Result<(Reply, Vec<OwnedFd>), LauncherError>;
type Waiting = Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A handle that any number of tasks may share.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    shared: Arc<Shared>,
    told: mpsc::UnboundedSender<Request>,
}

#[derive(Debug)]
struct Shared {
    socket: UnixDatagram,
    next: AtomicU64,
    /// `None` once the launcher is gone.
    waiting: Waiting,
}

impl Launcher {
    /// Over `socket`; must be called within a runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        // A SEQPACKET socket: for readiness, which is all that is used of this type, any socket will do.
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        let waiting = Mutex::new(Some(HashMap::new()));
        let shared = Arc::new(Shared { socket, next: AtomicU64::new(1), waiting });
        tokio::spawn(receive(Arc::clone(&shared)));
        let (told, requests) = mpsc::unbounded_channel();
        tokio::spawn(tell(Arc::clone(&shared), requests));
        Ok(Self { shared, told })
    }

    /// Sends `request` and waits for its answer.
    pub(crate) async fn call(&self, request: Request) -> Answer {
        self.shared.send(request).await?.await.unwrap_or(Err(LauncherError::Gone))
    }

    /// Has something done that may have happened already.
    pub(crate) fn see_to(&self, request: Request) {
        let launcher = self.clone();
        tokio::spawn(async move { drop(launcher.call(request).await) });
    }

    /// Sends a request whose answer nobody needs: after all that were told before.
    pub(crate) fn tell(&self, request: Request) {
        // There is somebody to tell it for as long as there is a runtime.
        let _ = self.told.send(request);
    }
}

impl Shared {
    /// Returns what its answer comes by.
    async fn send(&self, request: Request) -> Result<oneshot::Receiver<Answer>, LauncherError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let waiting = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting().as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(LauncherError::Gone),
        };
        let send = || wire::send_request(self.socket.as_fd(), id, request.clone()).map_err(io::Error::from);
        if let Err(error) = self.socket.async_io(Interest::WRITABLE, send).await {
            if let Some(waiting) = waiting().as_mut() {
                waiting.remove(&id);
            }
            return Err(LauncherError::Refused(format!("failed to ask the launcher: {error}")));
        }
        Ok(receiver)
    }
}

/// Sends requests one after the other: of two that say what is to be kept, the later one is right.
async fn tell(shared: Arc<Shared>, mut requests: mpsc::UnboundedReceiver<Request>) {
    let refused = |error| tracing::warn!(%error, "the launcher did not do as told");
    while let Some(request) = requests.recv().await {
        match shared.send(request).await {
            Ok(answer) => drop(tokio::spawn(async move {
                if let Err(error) = answer.await.unwrap_or(Err(LauncherError::Gone)) {
                    refused(error);
                }
            })),
            Err(error) => refused(error),
        }
    }
}

async fn receive(shared: Arc<Shared>) {
    loop {
        let received = shared
            .socket
            .async_io(Interest::READABLE, || {
                wire::receive_reply(shared.socket.as_fd()).map_err(io::Error::from)
            })
            .await;
        let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match received {
            Ok(Some((answer, fds))) => {
                let sender = waiting.as_mut().and_then(|waiting| waiting.remove(&answer.id));
                let result = answer.result.map(|reply| (reply, fds)).map_err(LauncherError::Refused);
                // Whoever asked may have given up; descriptors that it would have got are closed here.
                let _ = sender.map(|sender| sender.send(result));
            }
            Ok(None) | Err(_) => {
                *waiting = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// Or an older one would be the last word on what is kept of a zygote.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_told_arrives_in_order() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let launcher = Launcher::new(ours.into()).unwrap();
        for slots in 0..100 {
            launcher.tell(Request::Keep { zygote: 1, spares: 0, slots });
        }
        let received = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 1 << 12];
            let mut next = || theirs.recv(&mut buffer).map(|length| wire::decode_request(&buffer[..length]));
            (0..100).map(|_| next().unwrap().unwrap().1).collect::<Vec<_>>()
        });
        let expected = (0..100).map(|slots| Request::Keep { zygote: 1, spares: 0, slots });
        assert_eq!(format!("{:?}", received.await.unwrap()), format!("{:?}", expected.collect::<Vec<_>>()));
    }
}
