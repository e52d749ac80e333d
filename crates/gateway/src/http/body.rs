//! Request bodies: read whole, within a size, a time and a share of memory.
//!
//! A signature covers the body, so it has to be here before anything is done. Who sends too much, or has no key, still gets
//! an answer: the rest is read and thrown away, up to a point, because a client that is still writing does not read, and
//! a connection that is closed under it takes the answer along.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::Notify;

use super::memory::{Memory, SMALL, Share};

/// What is thrown away for a client that sends too much.
const MAX_DISCARD: usize = 128 << 20;

/// A body, and its share of the memory for bodies.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    pub(crate) share: Share,
}

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// More than `limit` bytes; how many, if they all came.
    TooLarge { found: Option<usize> },
    /// It did not come in time.
    Slow,
    /// There is no memory for it, or others needed it more than a client that is slow.
    NoMemory,
    /// The client left, or sent something that is not HTTP.
    Broken(String),
}

/// Reads a body of at most `limit` bytes, within `time` from when there is memory for it, for which it waits as long: once the first
/// of it is here, since who only announces a body has no claim to memory for it.
pub(crate) async fn read(
    mut body: Incoming,
    limit: usize,
    time: Duration,
    memory: &Arc<Memory>,
) -> Result<Body, BodyError> {
    let sized = body.size_hint().upper().map_or(limit, |upper| usize::try_from(upper).unwrap_or(usize::MAX));
    let (moved, lose) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    // What is too long is thrown away as it comes.
    let bytes = if sized > limit { 0 } else { sized };
    let mut start = BytesMut::new();
    if bytes > SMALL {
        let first = begin(&mut body, &mut start);
        tokio::time::timeout(time, first).await.map_err(|_| BodyError::Slow)??;
    }
    // Of a body in chunks that has ended by then all is here.
    let bytes = if body.is_end_stream() { start.len().min(bytes) } else { bytes };
    let share = tokio::time::timeout(time, memory.take(bytes, &moved, &lose));
    let mut share = share.await.map_err(|_| BodyError::NoMemory)?;
    let whole = async {
        if sized > limit { discard(body, 0).await } else { collect(body, start, limit, &moved).await }
    };
    tokio::select! {
        biased;
        () = lose.notified() => Err(BodyError::NoMemory),
        whole = tokio::time::timeout(time, whole) => {
            share.settle();
            Ok(Body { bytes: whole.unwrap_or(Err(BodyError::Slow))?, share })
        }
    }
}

/// Lets a request that is answered already end: the rest of it is read and thrown away, for at most `time`.
pub(crate) async fn pass_over(body: Incoming, time: Duration) {
    if !body.is_end_stream() {
        let _ = tokio::time::timeout(time, discard(body, 0)).await;
    }
}

/// The first bytes, as many as are not counted.
async fn begin(body: &mut Incoming, start: &mut BytesMut) -> Result<(), BodyError> {
    while start.len() < SMALL
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            start.extend_from_slice(&data);
        }
    }
    Ok(())
}

async fn collect(
    mut body: Incoming,
    start: BytesMut,
    limit: usize,
    moved: &AtomicU64,
) -> Result<Bytes, BodyError> {
    let mut first = Bytes::new();
    let mut more = start;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        let length = first.len().max(more.len()) + data.len();
        moved.store(length as u64, Ordering::Relaxed);
        if length > limit {
            return discard(body, length).await;
        }
        if first.is_empty() && more.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

async fn discard(mut body: Incoming, mut length: usize) -> Result<Bytes, BodyError> {
    while let Some(frame) = body.frame().await {
        length += frame.map_err(broken)?.data_ref().map_or(0, Bytes::len);
        if length > MAX_DISCARD {
            return Err(BodyError::TooLarge { found: None });
        }
    }
    Err(BodyError::TooLarge { found: Some(length) })
}

fn broken(error: hyper::Error) -> BodyError {
    BodyError::Broken(error.to_string())
}
