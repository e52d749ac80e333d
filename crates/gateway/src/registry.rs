//! The registry: which functions there are, kept in SQLite and held in memory.
//!
//! Reads come from memory and never wait for a disk: every invocation needs one. A change is written to the database
//! first (WAL, synchronous) and shows in memory once it is there, in the same order. Writes block: callers are on a thread
//! that may.
//!
//! A database of a newer version is refused and left as it is.

pub(crate) mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rusqlite::{Connection, params};

use crate::names::{FunctionName, Realm};
use crate::runner::Function;
use record::Record;

/// The layout of the database, and of the data directory that it is in.
pub(crate) const LAYOUT: i64 = 3;

/// A function in memory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    /// What invocations run.
    pub(crate) live: Option<Arc<Function>>,
}

/// Why the registry cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// SQLite refused.
    #[error("failed to {call} the database {path}", path = path.display())]
    Sql {
        /// What was tried.
        call: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Written by a newer program.
    #[error("{path} has layout {found}, and this program knows {LAYOUT}: run the newer sock that made it", path = path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// A row that cannot be read.
    #[error("{path} has a record of function {name:?} that cannot be read", path = path.display())]
    Record {
        /// The database.
        path: PathBuf,
        /// The function.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// All functions.
pub(crate) struct Registry {
    path: PathBuf,
    realm: Realm,
    database: Mutex<Connection>,
    functions: RwLock<BTreeMap<FunctionName, Arc<Entry>>>,
}

impl Registry {
    /// Opens the database, makes it if there is none, and reads all functions.
    pub(crate) fn open(path: &Path, realm: Realm) -> Result<Self, RegistryError> {
        let at = |call| move |source| RegistryError::Sql { call, path: path.into(), source };
        let database = Connection::open(path).map_err(at("open"))?;
        let found: i64 =
            database.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(at("read"))?;
        if found > LAYOUT {
            return Err(RegistryError::Newer { path: path.into(), found });
        }
        database
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;
                 CREATE TABLE IF NOT EXISTS functions (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
                 PRAGMA user_version = 3;",
            )
            .map_err(at("set up"))?;
        let registry =
            Self { path: path.into(), realm, database: Mutex::new(database), functions: RwLock::default() };
        let records = registry.read_all()?;
        let entries = records.into_iter().map(|record| (record.name.clone(), registry.entry(record)));
        *registry.functions.write().unwrap_or_else(PoisonError::into_inner) = entries.collect();
        Ok(registry)
    }

    fn read_all(&self) -> Result<Vec<Record>, RegistryError> {
        let database = self.database();
        let mut query =
            database.prepare("SELECT name, record FROM functions").map_err(self.failed("read"))?;
        let rows = query
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .map_err(self.failed("read"))?;
        let record = |row: rusqlite::Result<(String, String)>| {
            let (name, text) = row.map_err(self.failed("read"))?;
            let wrong = |source| RegistryError::Record { path: self.path.clone(), name, source };
            serde_json::from_str(&text).map_err(wrong)
        };
        rows.map(record).collect()
    }

    /// Where functions live.
    pub(crate) fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The function of this name.
    pub(crate) fn get(&self, name: &FunctionName) -> Option<Arc<Entry>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Up to `count` functions after a name, in the order of names, and whether there are more.
    pub(crate) fn page(&self, after: Option<&FunctionName>, count: usize) -> (Vec<Arc<Entry>>, bool) {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries =
            functions.range::<FunctionName, _>((from, Bound::Unbounded)).map(|(_, entry)| entry);
        let page: Vec<_> = entries.by_ref().take(count).cloned().collect();
        (page, entries.next().is_some())
    }

    /// All functions.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The bundles that functions need.
    pub(crate) fn bundles(&self) -> BTreeSet<String> {
        let codes = |entry: &Arc<Entry>| {
            let live = entry.record.live.iter().map(|live| live.code.sha256.clone());
            live.chain([entry.record.wanted.code.sha256.clone()]).collect::<Vec<_>>()
        };
        self.all().iter().flat_map(codes).collect()
    }

    /// Changes one function in one step. `change` gets what is there and gives what shall be, and something for the caller;
    /// nothing is changed if it fails. Blocks.
    pub(crate) fn change<T, E: From<RegistryError>>(
        &self,
        name: &FunctionName,
        change: impl FnOnce(Option<&Record>) -> Result<(Option<Record>, T), E>,
    ) -> Result<(Option<Arc<Entry>>, T), E> {
        // Held to the end: the order in the database is the order in memory.
        let database = self.database();
        let before = self.get(name);
        let (record, value) = change(before.as_deref().map(|entry| &entry.record))?;
        let after = match record {
            None => {
                let done = database.execute("DELETE FROM functions WHERE name = ?1", [name.as_str()]);
                done.map_err(self.failed("write"))?;
                None
            }
            Some(record) => {
                let text = serde_json::to_string(&record).map_err(|source| RegistryError::Record {
                    path: self.path.clone(),
                    name: name.to_string(),
                    source,
                })?;
                let done = database.execute(
                    "INSERT OR REPLACE INTO functions (name, record) VALUES (?1, ?2)",
                    params![name.as_str(), text],
                );
                done.map_err(self.failed("write"))?;
                Some(self.entry(record))
            }
        };
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        match &after {
            Some(entry) => functions.insert(name.clone(), entry.clone()),
            None => functions.remove(name),
        };
        Ok((after, value))
    }

    fn entry(&self, record: Record) -> Arc<Entry> {
        Arc::new(Entry { live: record.live(&self.realm).map(Arc::new), record })
    }

    /// A panic in between leaves the database as SQLite left it, which is whole.
    fn database(&self) -> MutexGuard<'_, Connection> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, call: &'static str) -> impl Fn(rusqlite::Error) -> RegistryError + '_ {
        move |source| RegistryError::Sql { call, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::record::{Code, Config, Deployment, Status};
    use super::*;

    #[derive(Debug)]
    struct Never;

    impl From<RegistryError> for Never {
        fn from(error: RegistryError) -> Self {
            panic!("{error}")
        }
    }

    fn record(name: &str) -> Record {
        let name = FunctionName::parse(name).unwrap();
        let config = Config::new();
        let code = Code { sha256: format!("{name}-code"), size: 1 };
        let wanted =
            Deployment { revision: "1".into(), config, code, packages: None, marks: None, resumes: 0 };
        let live = Some(wanted.clone());
        Record { name, tags: BTreeMap::new(), wanted, status: Status::Ready, live, modified: String::new() }
    }

    #[test]
    fn functions_survive_and_come_in_pages() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock.db");
        let registry = Registry::open(&path, Realm::default()).unwrap();
        for name in ["c", "a", "b"] {
            let record = record(name);
            let name = record.name.clone();
            registry
                .change::<_, Never>(&name, |before| {
                    assert!(before.is_none());
                    Ok((Some(record), ()))
                })
                .unwrap();
        }
        drop(registry);
        let registry = Registry::open(&path, Realm::default()).unwrap();
        let names = |page: &[Arc<Entry>]| page.iter().map(|e| e.record.name.to_string()).collect::<String>();
        let (first, more) = registry.page(None, 2);
        assert_eq!((names(&first).as_str(), more), ("ab", true));
        let (rest, more) = registry.page(Some(&first[1].record.name), 2);
        assert_eq!((names(&rest).as_str(), more), ("c", false));
        assert_eq!(registry.bundles().into_iter().collect::<Vec<_>>(), ["a-code", "b-code", "c-code"]);

        let a = FunctionName::parse("a").unwrap();
        registry.change::<_, Never>(&a, |before| Ok((None, assert!(before.is_some())))).unwrap();
        assert!(registry.get(&a).is_none());
    }

    #[test]
    fn a_newer_database_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock.db");
        let database = Connection::open(&path).unwrap();
        database.execute_batch("PRAGMA user_version = 7").unwrap();
        drop(database);
        let before = std::fs::read(&path).unwrap();
        let error = Registry::open(&path, Realm::default()).err().unwrap();
        assert!(matches!(error, RegistryError::Newer { found: 7, .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
