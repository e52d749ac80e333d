//! What an install tells while it runs, so that a terminal can show a bar and a log can show a line.

use crate::{DistName, Sha256};

/// One step of an install. Steps of different wheels interleave; those of one wheel come in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Said once, first.
    Planned {
        /// Wheels in the lock.
        wheels: usize,
        /// Wheels of those that the store has already.
        present: usize,
        /// Bytes to fetch, as far as the lock knows them.
        bytes: u64,
    },
    /// More bytes have arrived, of any wheel.
    Received {
        /// How many since the last such step.
        bytes: u64,
    },
    /// A wheel's content is verified and is being compiled to bytecode.
    Compiling {
        /// Its distribution.
        name: DistName,
    },
    /// A wheel is in the store.
    Installed {
        /// Its distribution.
        name: DistName,
        /// Its version.
        version: String,
        /// Its content.
        sha256: Sha256,
    },
}
