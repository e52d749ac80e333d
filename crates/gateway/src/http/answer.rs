//! Answers on their way out: each has a share of the memory for answers until it is sent, or its client is given up.

use std::sync::Arc;

use bytes::Bytes;

use super::connections::Connection;
use super::memory::{Memory, SMALL, Share};

/// The bytes of an answer; what writes them to the socket drops them when they are out.
struct Outgoing {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Outgoing {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Waits until there is room in `memory` for what is to go out on `connection`, which is closed should its client be slow to take it
/// while others wait.
pub(crate) async fn hold(bytes: Bytes, memory: &Arc<Memory>, connection: &Connection) -> Bytes {
    if bytes.len() <= SMALL {
        return bytes;
    }
    let share = memory.take(bytes.len(), connection.written(), connection.leave()).await;
    Bytes::from_owner(Outgoing { bytes, _share: share })
}
