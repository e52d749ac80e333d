//! Connections: accepting them, bounding them, ending them.
//!
//! Each connection is a task with HTTP/1.1 on it. What a client can make this process hold is bounded: the number of
//! connections, the size of a request's head, the time to send it, and (see [`body`]) the bytes of bodies. Beyond the
//! number of connections new ones wait in the kernel's queue.

pub(crate) mod body;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::{debug, warn};

use crate::api;
use crate::gateway::Gateway;

/// The largest head of a request.
const MAX_HEAD: usize = 64 << 10;
/// How long to wait when the kernel has no descriptor for a connection.
const BREATHER: Duration = Duration::from_millis(50);

/// Accepts until `shutdown` is done, then lets what runs finish.
pub(crate) async fn serve(
    gateway: &Arc<Gateway>,
    listener: std::net::TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let limits = &gateway.config.limits;
    let room = Arc::new(Semaphore::new(limits.connections as usize));
    let (closing, closed) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, place))
        };
        tokio::select! {
            () = &mut shutdown => break,
            accepted = next => match accepted {
                Ok((stream, place)) => {
                    tokio::spawn(connection(gateway.clone(), stream, place, closed.clone()));
                }
                Err(error) => {
                    warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(BREATHER).await;
                }
            }
        }
    }
    drop(listener);
    gateway.drain();
    drop(closing);
    let quiet = async {
        gateway.idle().await;
        // Answers of what has just ended are still on their way out.
        let _ = room.acquire_many(limits.connections).await;
    };
    if tokio::time::timeout(limits.drain, quiet).await.is_err() {
        warn!("stopping although invocations still run: they took longer than the time to finish");
    }
    Ok(())
}

async fn connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    mut closed: watch::Receiver<()>,
) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let head = gateway.config.limits.head;
    let service = service_fn(move |request| {
        let gateway = gateway.clone();
        async move { Ok::<_, Infallible>(api::answer(gateway, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = closed.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}
