//! The places of a function: how many invocations of it may run side by side, and how many wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

/// Places of one function: some of the server's are left for the others, whatever one of them is asked for.
const MAX_OF_ONE: usize = 224;

/// The places of a function.
pub(super) struct Places {
    pub(super) free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Places {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(MAX_OF_ONE)), waiting: AtomicUsize::new(0) }
    }
}

impl Places {
    pub(super) fn taken(&self) -> usize {
        MAX_OF_ONE - self.free.available_permits()
    }

    /// Invocations that wait for one.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Counts an invocation among those that wait for a place.
pub(super) struct Waiting<'a>(&'a Places);

impl<'a> Waiting<'a> {
    pub(super) fn begin(places: &'a Places) -> Self {
        places.waiting.fetch_add(1, Ordering::Relaxed);
        Self(places)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
