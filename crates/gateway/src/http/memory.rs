//! Memory for what clients send and take: bounded, and lost by whoever is slow with it while others wait.
//!
//! A client that has begun to send a body, or asks for an answer, has the memory for it from then on, and decides itself how fast
//! it sends or takes. So a few could hold all of it for as long as they like. While somebody waits, those that move less than
//! [`ENOUGH`] within [`WINDOW`] lose theirs, one after the other. Who is quick, or alone, never does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What is not counted, bytes: of this size there may be one for every connection, and it never waits.
pub(crate) const SMALL: usize = 16 << 10;
/// What has to move, bytes: 128 KB a second is less than a poor mobile connection.
const ENOUGH: u64 = 256 << 10;
/// Within which time.
const WINDOW: Duration = Duration::from_secs(2);
/// How often who waits looks for somebody who is slow.
const TICK: Duration = Duration::from_millis(100);
/// The unit in which it is handed out, bytes.
const UNIT: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Memory {
    units: Arc<Semaphore>,
    shares: Mutex<Shares>,
}

#[derive(Debug, Default)]
struct Shares {
    next: u64,
    held: BTreeMap<u64, Held>,
}

#[derive(Debug)]
struct Held {
    moved: Arc<AtomicU64>,
    lose: Arc<Notify>,
    /// How much had moved, and when that was seen.
    mark: (u64, Instant),
}

/// A share that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Arc<Memory>,
    number: Option<u64>,
    _units: Option<OwnedSemaphorePermit>,
}

impl Memory {
    /// So many bytes.
    pub(crate) fn new(bytes: u32) -> Arc<Self> {
        let units = Arc::new(Semaphore::new(bytes as usize / UNIT));
        Arc::new(Self { units, shares: Mutex::default() })
    }

    /// Waits until there is room for `bytes`. `moved` counts what the client has sent or taken of them; should that be too
    /// little while others wait, `lose` is notified, and the share has to be dropped.
    pub(crate) async fn take(
        self: &Arc<Self>,
        bytes: usize,
        moved: &Arc<AtomicU64>,
        lose: &Arc<Notify>,
    ) -> Share {
        let mut share = Share { memory: self.clone(), number: None, _units: None };
        if bytes <= SMALL {
            return share;
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let mut room = std::pin::pin!(self.units.clone().acquire_many_owned(units));
        loop {
            tokio::select! {
                biased;
                // It is never closed.
                room = &mut room => {
                    share._units = room.ok();
                    break;
                }
                () = tokio::time::sleep(TICK) => self.take_from_the_slowest(),
            }
        }
        let mut shares = self.shares();
        shares.next += 1;
        share.number = Some(shares.next);
        let mark = (moved.load(Ordering::Relaxed), Instant::now());
        let number = shares.next;
        shares.held.insert(number, Held { moved: moved.clone(), lose: lose.clone(), mark });
        drop(shares);
        share
    }

    fn take_from_the_slowest(&self) {
        let mut shares = self.shares();
        let now = Instant::now();
        for held in shares.held.values_mut() {
            let moved = held.moved.load(Ordering::Relaxed);
            if moved >= held.mark.0 + ENOUGH {
                held.mark = (moved, now);
            }
        }
        let slowest = shares.held.iter().min_by_key(|(_, held)| held.mark.1);
        let slowest = slowest.filter(|(_, held)| now - held.mark.1 >= WINDOW).map(|(number, _)| *number);
        if let Some(held) = slowest.and_then(|number| shares.held.remove(&number)) {
            held.lose.notify_one();
        }
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// The client has done its part: from here on nobody can take it away.
    pub(crate) fn settle(&mut self) {
        if let Some(number) = self.number.take() {
            self.memory.shares().held.remove(&number);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: usize = 512 << 10;

    struct Client {
        moved: Arc<AtomicU64>,
        lose: Arc<Notify>,
    }

    impl Client {
        fn new() -> Self {
            Self { moved: Arc::default(), lose: Arc::default() }
        }

        async fn take(&self, memory: &Arc<Memory>, bytes: usize) -> Share {
            memory.take(bytes, &self.moved, &self.lose).await
        }

        async fn has_lost(&self) -> bool {
            tokio::select! {
                biased;
                () = self.lose.notified() => true,
                () = tokio::task::yield_now() => false,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_loses_it_to_who_waits() {
        let memory = Memory::new(1 << 20);
        let [slow, quick, settled, waiting] = std::array::from_fn(|_| Client::new());
        let held = slow.take(&memory, HALF).await;
        let _quick = quick.take(&memory, HALF / 2).await;
        let mut done = settled.take(&memory, HALF / 2).await;
        done.settle();
        tokio::time::sleep(10 * WINDOW).await;
        assert!(!slow.has_lost().await, "nobody waits");
        let small = waiting.take(&memory, SMALL);
        let small = tokio::time::timeout(Duration::ZERO, small).await;
        assert!(small.is_ok(), "what is small does not wait");
        quick.moved.store(ENOUGH, Ordering::Relaxed);
        let begun = Instant::now();
        let next = tokio::join!(waiting.take(&memory, HALF), async {
            slow.lose.notified().await;
            drop(held);
        });
        assert!(begun.elapsed() <= 2 * TICK, "{:?}", begun.elapsed());
        assert!(!quick.has_lost().await && !settled.has_lost().await);
        drop((next, done));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_quick_and_stops_is_slow() {
        let memory = Memory::new(1 << 20);
        let (first, second) = (Client::new(), Client::new());
        let held = first.take(&memory, 1 << 20).await;
        first.moved.store(3 * ENOUGH, Ordering::Relaxed);
        let begun = Instant::now();
        tokio::join!(second.take(&memory, 1 << 20), async {
            first.lose.notified().await;
            drop(held);
        });
        assert!((WINDOW..WINDOW + 3 * TICK).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_it_back_makes_room() {
        let memory = Memory::new(1 << 20);
        let (first, second) = (Client::new(), Client::new());
        let held = first.take(&memory, 1 << 20).await;
        let begun = Instant::now();
        tokio::join!(second.take(&memory, 1 << 20), async { drop(held) });
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
