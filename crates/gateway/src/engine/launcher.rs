//! The gateway's side of the launcher: many requests under way at once over the one socket.
//!
//! The only place where asynchronous code meets the launcher. Requests are datagrams of bounded size; answers carry the
//! number of their request.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sock_isolation::launcher::wire::{self, Reply, Request};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;

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

/// Milliseconds until a process that did not pass is looked at again. A busy machine may not have let the helper end yet that forked it
/// into its container: one process too many, for a moment.
const CHECKS: [u64; 4] = [1, 2, 5, 20];

type Answer = Result<(Reply, Vec<OwnedFd>), LauncherError>;
type Waiting = Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A handle that any number of tasks may share.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    shared: Arc<Shared>,
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
        Ok(Self { shared })
    }

    /// Sends `request` and waits for its answer.
    pub(crate) async fn call(&self, request: Request) -> Answer {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(LauncherError::Gone),
        };
        let sent = self
            .shared
            .socket
            .async_io(Interest::WRITABLE, || {
                wire::send_request(self.shared.socket.as_fd(), id, request.clone()).map_err(io::Error::from)
            })
            .await;
        if let Err(error) = sent {
            if let Some(waiting) = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            {
                waiting.remove(&id);
            }
            return Err(LauncherError::Refused(format!("failed to ask the launcher: {error}")));
        }
        receiver.await.unwrap_or(Err(LauncherError::Gone))
    }

    /// Sends a request to look at a process that was forked a moment ago, until it passes or has had some time to.
    pub(crate) async fn call_again(&self, request: Request) -> Answer {
        let mut answer = self.call(request.clone()).await;
        for pause in CHECKS {
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            answer = self.call(request.clone()).await;
        }
        answer
    }

    /// Has something done that may have happened already.
    pub(crate) fn see_to(&self, request: Request) {
        let launcher = self.clone();
        tokio::spawn(async move { drop(launcher.call(request).await) });
    }

    /// Sends a request whose answer nobody needs.
    pub(crate) fn tell(&self, request: Request) {
        let launcher = self.clone();
        tokio::spawn(async move {
            if let Err(error) = launcher.call(request).await {
                tracing::warn!(%error, "the launcher did not do as told");
            }
        });
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
