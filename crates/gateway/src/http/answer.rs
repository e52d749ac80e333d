//! Answers on their way out: each has a share of the memory for answers until it is sent, or its client is given up.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gateway::BODY_UNIT;

/// What is not counted: of this size there may be one for every connection.
const SMALL: usize = 16 << 10;

/// The bytes of an answer; what writes them to the socket drops them when they are out.
struct Outgoing {
    bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Outgoing {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Waits until there is room in `memory`, which is in units of [`BODY_UNIT`].
pub(crate) async fn hold(bytes: Bytes, memory: &Arc<Semaphore>) -> Bytes {
    if bytes.len() <= SMALL {
        return bytes;
    }
    let units = u32::try_from(bytes.len()).unwrap_or(u32::MAX).div_ceil(BODY_UNIT);
    match memory.clone().acquire_many_owned(units).await {
        Ok(share) => Bytes::from_owner(Outgoing { bytes, _share: share }),
        // It is never closed.
        Err(_) => bytes,
    }
}
