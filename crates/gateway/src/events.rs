//! Asynchronous invocations: what was accepted is kept on disk until it has run.
//!
//! ```text
//! accept ── on disk ──▶ 202        due ── attempt ──┬─ ran ─────────────────────────▶ gone
//!             ▲                     ▲               ├─ failed, for the third time ──▶ gone, and its log says so
//!             └─ the next start     └── wait ───────┴─ failed, or there was no room
//! ```
//! As Lambda has it: a function that fails is tried again one minute later, and two minutes after that; where there was no
//! room, or the platform failed, it is tried again for up to six hours. The request id stays the same. An attempt that
//! the server's own end cut short is made again, after a wait that doubles each time in a row: it may be what ended the
//! server, and need not be. What had run, and was not yet noted as such, runs again: at least once, not exactly once.
//!
//! In memory there is a task and an id for each; the events themselves stay on disk until their turn.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::Semaphore;
use tracing::{error, info, warn};

use crate::api::{Attempt, attempt};
use crate::gateway::Gateway;
use crate::names::FunctionName;
use crate::registry::RegistryError;

/// Attempts of one event that fail.
const ATTEMPTS: u32 = 3;
/// How long an event is tried for.
const MAX_AGE: Duration = Duration::from_secs(6 * 3600);
/// The longest wait where there is no room, or the server ended meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Events that run at a time: fewer than invocations may, so that there is room for clients who wait.
const RUNNING: usize = 64;
/// Until the disk is asked again that did not take what became of an event: somebody has to make room on it first.
const AGAIN: Duration = Duration::from_secs(1);
/// Bytes of all events that wait.
const MAX_BYTES: i64 = 256 << 20;

/// An event that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Of its request, and of every attempt.
    pub(crate) id: String,
    pub(crate) function: FunctionName,
    pub(crate) payload: Bytes,
    pub(crate) client_context: Option<String>,
}

/// An event that is about to run.
#[derive(Debug)]
struct Begun {
    event: Event,
    /// This attempt's number; the first is 1. Those that were cut short do not count.
    attempt: u32,
    age: Duration,
}

/// The events of a data directory.
#[derive(Debug)]
pub(crate) struct Events {
    path: PathBuf,
    limit: usize,
    /// What it writes is on disk when it returns, also if the power fails.
    accepting: Mutex<Connection>,
    /// What it writes survives the end of the process: if more than that fails, an event runs again.
    working: Mutex<Connection>,
    running: Semaphore,
}

impl Events {
    /// Of the database at `path`, which the registry has set up, with room for `limit` of them.
    pub(crate) fn open(path: &Path, limit: usize) -> Result<Self, RegistryError> {
        let open = |synchronous: &str| {
            let connection = Connection::open(path)?;
            connection.execute_batch(&format!(
                "PRAGMA busy_timeout = 5000; PRAGMA synchronous = {synchronous};
                 CREATE TABLE IF NOT EXISTS events (
                     id TEXT PRIMARY KEY, function TEXT NOT NULL, payload BLOB NOT NULL, client_context TEXT,
                     accepted_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL, attempts INTEGER NOT NULL
                 ) STRICT;"
            ))?;
            // Attempts that were begun and have not ended: they were cut short, but for one that runs. From layout 3 on.
            if connection.prepare("SELECT begun FROM events").is_err() {
                connection.execute_batch("ALTER TABLE events ADD COLUMN begun INTEGER NOT NULL DEFAULT 0")?;
            }
            Ok(Mutex::new(connection))
        };
        let failed = |source| RegistryError::Sql { call: "open", path: path.into(), source };
        Ok(Self {
            path: path.into(),
            limit,
            accepting: open("FULL").map_err(failed)?,
            working: open("NORMAL").map_err(failed)?,
            running: Semaphore::new(RUNNING),
        })
    }

    /// Writes an event to disk; `false`: there is no room for it. Blocks.
    pub(crate) fn accept(&self, event: &Event) -> Result<bool, RegistryError> {
        let accepted = (|| {
            let database = lock(&self.accepting);
            let (count, bytes): (i64, i64) = database.query_row(
                "SELECT count(*), coalesce(sum(length(payload)), 0) FROM events",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if count >= self.limit as i64 || bytes + event.payload.len() as i64 > MAX_BYTES {
                return Ok(false);
            }
            let Event { id, function, payload, client_context } = event;
            database.execute(
                "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?5, 0, 0)",
                params![id, function.as_str(), &payload[..], client_context, now_ms()],
            )?;
            Ok(true)
        })();
        accepted.map_err(self.failed("write"))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> Result<u64, RegistryError> {
        let count = lock(&self.working).query_row("SELECT count(*) FROM events", [], |row| row.get(0));
        count.map(i64::unsigned_abs).map_err(self.failed("read"))
    }

    /// The ids of all, and how long each has to wait: `pause`, and twice as long each time, where more than one attempt in a row
    /// was cut short.
    fn all(&self, pause: Duration) -> Result<Vec<(String, Duration)>, RegistryError> {
        let all = (|| -> rusqlite::Result<_> {
            let database = lock(&self.working);
            let mut query = database.prepare("SELECT id, due_ms, begun FROM events ORDER BY due_ms")?;
            let now = now_ms();
            let rows = query.query_map([], |row| {
                let (due, begun): (i64, u32) = (row.get(1)?, row.get(2)?);
                let due = Duration::from_millis((due - now).max(0).unsigned_abs());
                Ok((row.get(0)?, due.max(after_ends(pause, begun))))
            })?;
            rows.collect()
        })();
        all.map_err(self.failed("read"))
    }

    /// Notes that an attempt begins and gives the event, if it is still there.
    fn begin(&self, id: &str) -> Result<Option<Begun>, RegistryError> {
        let begun = {
            let database = lock(&self.working);
            let row = database.query_row(
                "UPDATE events SET begun = begun + 1 WHERE id = ?1
                 RETURNING function, payload, client_context, accepted_ms, attempts + 1",
                [id],
                |row| {
                    let function: String = row.get(0)?;
                    let payload: Vec<u8> = row.get(1)?;
                    let accepted: i64 = row.get(3)?;
                    Ok((function, payload, row.get(2)?, accepted, row.get(4)?))
                },
            );
            row.optional()
        };
        let Some((function, payload, client_context, accepted, attempt)) =
            begun.map_err(self.failed("write"))?
        else {
            return Ok(None);
        };
        let Ok(function) = FunctionName::parse(&function) else { return Ok(None) };
        let age = Duration::from_millis((now_ms() - accepted).max(0).unsigned_abs());
        let event = Event { id: id.into(), function, payload: payload.into(), client_context };
        Ok(Some(Begun { event, attempt, age }))
    }

    /// It has run, or is given up.
    fn remove(&self, id: &str) -> Result<(), RegistryError> {
        let removed = lock(&self.working).execute("DELETE FROM events WHERE id = ?1", [id]);
        removed.map(drop).map_err(self.failed("write"))
    }

    /// Forgets those of a function that was deleted: the next one of that name is not who they were for. Gives how many.
    pub(crate) fn forget(&self, function: &FunctionName) -> Result<usize, RegistryError> {
        let removed =
            lock(&self.accepting).execute("DELETE FROM events WHERE function = ?1", [function.as_str()]);
        removed.map_err(self.failed("write"))
    }

    /// It is tried again after `wait`, and so many attempts have failed.
    fn postpone(&self, id: &str, wait: Duration, attempts: u32) -> Result<(), RegistryError> {
        let postponed = lock(&self.working).execute(
            "UPDATE events SET due_ms = ?2, attempts = ?3, begun = 0 WHERE id = ?1",
            params![id, now_ms() + wait.as_millis() as i64, attempts],
        );
        postponed.map(drop).map_err(self.failed("write"))
    }

    fn failed(&self, call: &'static str) -> impl Fn(rusqlite::Error) -> RegistryError + '_ {
        move |source| RegistryError::Sql { call, path: self.path.clone(), source }
    }
}

/// How long an event waits at a start when so many attempts in a row were cut short by the server's end.
fn after_ends(pause: Duration, begun: u32) -> Duration {
    match begun {
        0 | 1 => Duration::ZERO,
        _ => LONGEST_WAIT.min(pause.saturating_mul(1 << (begun - 2).min(16))),
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Goes on with what an earlier server had accepted.
pub(crate) fn resume(gateway: &Arc<Gateway>) -> Result<(), RegistryError> {
    let all = gateway.events.all(gateway.config.limits.retry / 60)?;
    if !all.is_empty() {
        info!(events = all.len(), "going on with events that were accepted before");
    }
    all.into_iter().for_each(|(id, wait)| start(gateway, id, wait));
    Ok(())
}

/// Runs an accepted event once `wait` is over, and again as long as it has to.
pub(crate) fn start(gateway: &Arc<Gateway>, id: String, mut wait: Duration) {
    let gateway = gateway.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(wait).await;
            match once(&gateway, &id).await {
                Some(again) => wait = again,
                None => return,
            }
        }
    });
}

/// One attempt; gives how long to wait for the next, if there is to be one.
async fn once(gateway: &Arc<Gateway>, id: &str) -> Option<Duration> {
    // It is never closed.
    let turn = gateway.events.running.acquire().await.ok()?;
    // A server that stops begins nothing; the next one will.
    let Some(busy) = gateway.begin() else { return Some(gateway.config.limits.retry) };
    if gateway.is_draining() {
        return None;
    }
    let begun = match written(gateway, id, Events::begin).await {
        Ok(begun) => begun?,
        Err(why) => {
            warn!(request_id = id, why, "an event cannot be begun; trying again");
            return Some(AGAIN);
        }
    };
    let Begun { event, attempt: number, age } = begun;
    let function = event.function.clone();
    // One that was cut short each time has not been looked at since.
    let outcome = if age > MAX_AGE { Attempt::TooOld } else { attempt(gateway, event, Instant::now()).await };
    let retry = gateway.config.limits.retry;
    let next = match outcome {
        Attempt::Ran => None,
        Attempt::Failed if number < ATTEMPTS => Some((retry * number, number)),
        Attempt::NoRoom => {
            let wait = LONGEST_WAIT.min(Duration::from_secs(1) + age / 2);
            // Nothing of the function has run.
            Some((wait, number - 1))
        }
        Attempt::Failed | Attempt::NoFunction | Attempt::TooOld => {
            warn!(request_id = id, %function, attempts = number, ?outcome, "an event is given up");
            None
        }
    };
    let next = next.filter(|(wait, _)| age + *wait <= MAX_AGE || {
        warn!(request_id = id, %function, attempts = number, "an event is given up: it has become too old");
        false
    });
    gateway.metrics.event(&outcome, next.is_some());
    let end = move |events: &Events, id: &str| match next {
        Some((wait, attempts)) => events.postpone(id, wait, attempts),
        None => events.remove(id),
    };
    let Err(why) = written(gateway, id, end).await else { return next.map(|(wait, _)| wait) };
    // It has run: only the note is missing, and others need not wait for that. A server that stops leaves it, and the next
    // one runs it again.
    error!(request_id = id, why, "what became of an event cannot be written down; trying again");
    drop((turn, busy));
    loop {
        tokio::time::sleep(AGAIN).await;
        if gateway.is_draining() {
            return None;
        }
        if written(gateway, id, end).await.is_ok() {
            return next.map(|(wait, _)| wait);
        }
    }
}

/// What is done to the event's row, on a thread that may wait for the disk.
async fn written<T: Send + 'static>(
    gateway: &Arc<Gateway>,
    id: &str,
    write: impl FnOnce(&Events, &str) -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, String> {
    let (gateway, id) = (gateway.clone(), id.to_owned());
    let done = tokio::task::spawn_blocking(move || write(&gateway.events, &id)).await;
    done.map_err(|panic| panic.to_string())?.map_err(|error| crate::deploy::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_after_ends_of_the_server_is_bounded() {
        let second = Duration::from_secs(1);
        let waits = [0, 1, 2, 3, 9, 10, 11, u32::MAX].map(|begun| after_ends(second, begun).as_secs());
        assert_eq!(waits, [0, 0, 1, 2, 128, 256, 300, 300]);
    }

    #[test]
    fn events_of_the_layout_before_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock.db");
        let before = "CREATE TABLE events (
                 id TEXT PRIMARY KEY, function TEXT NOT NULL, payload BLOB NOT NULL, client_context TEXT,
                 accepted_ms INTEGER NOT NULL, due_ms INTEGER NOT NULL, attempts INTEGER NOT NULL
             ) STRICT;
             INSERT INTO events VALUES ('a', 'f', x'31', NULL, 0, 0, 1);";
        Connection::open(&path).unwrap().execute_batch(before).unwrap();
        let events = Events::open(&path, 2).unwrap();
        let begun = events.begin("a").unwrap().unwrap();
        assert_eq!((begun.attempt, begun.event), (2, event("a", 1)));
    }

    fn event(id: &str, size: usize) -> Event {
        let function = FunctionName::parse("f").unwrap();
        Event { id: id.into(), function, payload: vec![b'1'; size].into(), client_context: None }
    }

    #[test]
    fn an_event_is_there_until_it_has_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock.db");
        let events = Events::open(&path, 2).unwrap();
        assert!(events.accept(&event("a", 1)).unwrap());
        assert!(events.accept(&event("b", 1)).unwrap());
        assert!(!events.accept(&event("c", 1)).unwrap(), "two at most");
        assert_eq!(events.begin("a").unwrap().unwrap().attempt, 1);
        // Whatever ends the server now, the event is there; that is nothing that the event did.
        drop(events);
        let events = Events::open(&path, 2).unwrap();
        let again = events.begin("a").unwrap().unwrap();
        assert_eq!((again.attempt, again.event), (1, event("a", 1)));
        // But twice in a row is a reason to wait.
        let second = Duration::from_secs(1);
        let waits = |events: &Events| events.all(second).unwrap().into_iter().map(|(_, wait)| wait).max();
        assert_eq!(waits(&events), Some(second));
        events.begin("a").unwrap();
        assert_eq!(waits(&events), Some(2 * second));
        events.postpone("a", Duration::from_secs(60), 2).unwrap();
        assert_eq!(events.begin("a").unwrap().unwrap().attempt, 3);
        let all = events.all(second).unwrap();
        assert_eq!((all[0].0.as_str(), all[0].1), ("b", Duration::ZERO));
        assert!(all[1].1 > Duration::from_secs(50), "{all:?}");
        events.remove("a").unwrap();
        assert!(events.begin("a").unwrap().is_none());
        assert_eq!(events.count().unwrap(), 1);
        assert!(events.accept(&event("c", MAX_BYTES as usize)).is_ok_and(|room| !room), "too much of it");
    }
}
