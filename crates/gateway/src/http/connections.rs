//! Places for connections, and who has to leave when there are none.
//!
//! A connection *waits* for its client from when it is accepted, or has answered, until the next request is here whole: an
//! idle one, one whose client is slow on purpose, and one whose client does not read its answer, all alike. While every
//! place is taken, a new connection takes that of the one that has waited longest. So clients that hold connections and
//! say nothing cannot keep others out; those whose requests are being answered are never sent away.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All connections of a server.
#[derive(Debug)]
pub(crate) struct Connections {
    places: Arc<Semaphore>,
    count: u32,
    waiting: Mutex<Waiting>,
    /// One more waits for its client, while somebody waits for a place.
    one_more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By when they began to wait: the first has waited longest.
    leave: BTreeMap<u64, Arc<Notify>>,
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    all: Arc<Connections>,
    leave: Arc<Notify>,
    /// Bytes that its client has taken.
    written: Arc<AtomicU64>,
    /// Under which number it waits for its client.
    since: Mutex<Option<u64>>,
    _place: OwnedSemaphorePermit,
}

impl Connections {
    /// With room for `count`.
    pub(crate) fn new(count: u32) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(count as usize));
        Arc::new(Self { places, count, waiting: Mutex::default(), one_more: Notify::new() })
    }

    /// A place for one more, which waits for its client from now on.
    pub(crate) async fn admit(self: &Arc<Self>) -> Arc<Connection> {
        loop {
            let one_more = self.one_more.notified();
            let place = match self.places.clone().try_acquire_owned() {
                Ok(place) => place,
                Err(_) => {
                    self.send_one_away();
                    tokio::select! {
                        // The semaphore is never closed.
                        Ok(place) = self.places.clone().acquire_owned() => place,
                        () = one_more => continue,
                    }
                }
            };
            let connection = Connection {
                all: self.clone(),
                leave: Arc::new(Notify::new()),
                written: Arc::default(),
                since: Mutex::new(None),
                _place: place,
            };
            connection.wait();
            return Arc::new(connection);
        }
    }

    /// Until every connection is gone.
    pub(crate) async fn none(&self) {
        let _ = self.places.acquire_many(self.count).await;
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count - u32::try_from(self.places.available_permits()).unwrap_or(0)
    }

    fn send_one_away(&self) {
        if let Some((_, leave)) = self.waiting().leave.pop_first() {
            leave.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// A request is here; the connection waits for its client again when the guard is dropped.
    pub(crate) fn serve(self: &Arc<Self>) -> Serving {
        self.stop_waiting();
        Serving(self.clone())
    }

    /// Until its place is to be somebody else's. A request that came at that moment is answered first.
    pub(crate) async fn sent_away(&self) {
        loop {
            self.leave.notified().await;
            if self.since().is_some() {
                return;
            }
        }
    }

    /// Counts the bytes that its client has taken.
    pub(crate) fn written(&self) -> &Arc<AtomicU64> {
        &self.written
    }

    /// Notified, it is closed once it waits for its client; an answer that is being sent is such a wait.
    pub(crate) fn leave(&self) -> &Arc<Notify> {
        &self.leave
    }

    fn since(&self) -> MutexGuard<'_, Option<u64>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut waiting = self.all.waiting();
        waiting.next += 1;
        let number = waiting.next;
        waiting.leave.insert(number, self.leave.clone());
        *self.since() = Some(number);
        drop(waiting);
        self.all.one_more.notify_waiters();
    }

    fn stop_waiting(&self) {
        let mut waiting = self.all.waiting();
        if let Some(number) = self.since().take() {
            waiting.leave.remove(&number);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

/// A request of a connection's is being answered.
#[derive(Debug)]
pub(crate) struct Serving(Arc<Connection>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_sent_away(connection: &Connection) -> bool {
        tokio::select! {
            biased;
            () = connection.sent_away() => true,
            () = tokio::task::yield_now() => false,
        }
    }

    #[tokio::test]
    async fn the_one_that_has_waited_longest_leaves() {
        let all = Connections::new(3);
        let (first, second, third) = (all.admit().await, all.admit().await, all.admit().await);
        assert_eq!(all.count(), 3);
        // The first has answered a request meanwhile; the second is at it.
        drop(first.serve());
        let serving = second.serve();
        let mut next = admit_one(all.clone());
        third.sent_away().await;
        assert!(!is_sent_away(&first).await && !is_sent_away(&second).await);
        drop(third);
        let fourth = (&mut next).await.unwrap();
        drop((serving, fourth));
    }

    #[tokio::test]
    async fn who_finds_everybody_at_work_gets_the_first_place_that_is_free() {
        let all = Connections::new(1);
        let only = all.admit().await;
        let serving = only.serve();
        let next = admit_one(all.clone());
        tokio::task::yield_now().await;
        assert!(!is_sent_away(&only).await);
        drop(serving);
        only.sent_away().await;
        drop(only);
        next.await.unwrap();
        all.none().await;
    }

    #[tokio::test]
    async fn a_request_that_comes_when_it_is_sent_away_is_answered() {
        let all = Connections::new(1);
        let only = all.admit().await;
        let next = admit_one(all.clone());
        tokio::task::yield_now().await;
        let serving = only.serve();
        assert!(!is_sent_away(&only).await);
        drop(serving);
        only.sent_away().await;
        drop(only);
        next.await.unwrap();
    }

    fn admit_one(all: Arc<Connections>) -> tokio::task::JoinHandle<Arc<Connection>> {
        tokio::spawn(async move { all.admit().await })
    }
}
