//! Connections: accepting them, bounding them, ending them.
//!
//! Each connection is a task with HTTP/1.1 on it. What a client can make this process hold is bounded: the number of
//! connections (see [`connections`]), the size of a request's head, the time to send it and to take an answer, and (see
//! [`body`]) the bytes of requests' bodies and of answers.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod connections;
mod counted;
pub(crate) mod memory;

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
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, warn};

use crate::api;
use crate::gateway::Gateway;
use connections::Connection;
use counted::Counted;

/// The largest head of a request.
const MAX_HEAD: usize = 64 << 10;
/// How long to wait when the kernel has no descriptor for a connection.
const BREATHER: Duration = Duration::from_millis(50);
/// How long answers of what has just ended may take on their way out when the server stops.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Accepts until `shutdown` is done, then lets what runs finish. Whoever comes meanwhile is told to come back.
pub(crate) async fn serve(
    gateway: &Arc<Gateway>,
    listener: std::net::TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let limits = &gateway.config.limits;
    let (closing, closed) = watch::channel(());
    let mut accepting = pin!(accept(gateway, &listener, &closed));
    tokio::select! {
        () = shutdown => {}
        () = accepting.as_mut() => {}
    }
    gateway.drain();
    drop(closing);
    tokio::select! {
        () = accepting.as_mut() => {}
        idle = tokio::time::timeout(limits.drain, gateway.idle()) => if idle.is_err() {
            warn!("stopping although invocations still run: they took longer than the time to finish");
        }
    }
    let _ = tokio::time::timeout(LAST_ANSWERS, gateway.connections.none()).await;
    Ok(())
}

/// For ever.
async fn accept(gateway: &Arc<Gateway>, listener: &TcpListener, closed: &watch::Receiver<()>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let place = gateway.connections.admit().await;
                tokio::spawn(connection(gateway.clone(), stream, place, closed.clone()));
            }
            Err(error) => {
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

async fn connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    place: Arc<Connection>,
    mut closed: watch::Receiver<()>,
) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let limits = &gateway.config.limits;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.answer));
    let stream = Counted::new(Box::pin(stream), place.written().clone());
    let head = limits.head;
    // Who comes to a stopping server is told so, once; a connection that says nothing yet must not be closed for that.
    let late = gateway.is_draining();
    let service = {
        let place = place.clone();
        service_fn(move |request| {
            let (gateway, place) = (gateway.clone(), place.clone());
            async move { Ok::<_, Infallible>(api::answer(gateway, place, request).await) }
        })
    };
    let connection = http1::Builder::new()
        .keep_alive(!late)
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(MAX_HEAD)
        // Who has sent all that it has to say may close that direction, and still gets its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        () = place.sent_away() => return debug!("a connection was closed to make room for another"),
        ended = connection.as_mut() => ended,
        _ = closed.changed(), if !late => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}
