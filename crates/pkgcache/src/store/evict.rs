//! Making room: what no lock needs goes, the longest unused first, until the store fits its budget.
//!
//! The caller knows which functions are deployed and passes their locks; nothing that one of them names is
//! removed, even if the budget is exceeded. It must not run beside a deploy whose lock it does not know.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::SystemTime;

use super::facts::{self, Facts};
use super::install::step;
use super::{Key, Store, StoreError, WHEELS, tree};
use crate::Lock;

/// What an eviction did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Wheels removed.
    pub removed: usize,
    /// Bytes freed.
    pub freed: u64,
    /// Bytes still there.
    pub kept: u64,
}

struct Candidate {
    used: SystemTime,
    key: Key,
    bytes: u64,
}

impl Store {
    /// Removes wheels that no lock in `keep` names until at most `budget` bytes are left.
    pub fn collect<'a>(
        &self,
        keep: impl IntoIterator<Item = &'a Lock>,
        budget: u64,
    ) -> Result<Collected, StoreError> {
        let needed: BTreeSet<Key> = keep
            .into_iter()
            .flat_map(|lock| lock.packages.iter().map(|wheel| Key::of(wheel, &lock.tag)))
            .collect();
        let mut done = Collected::default();
        let mut candidates = Vec::new();
        let wheels = self.root.join(WHEELS);
        for entry in fs::read_dir(&wheels).map_err(StoreError::at("read", &wheels))? {
            let entry = entry.map_err(StoreError::at("read", &wheels))?;
            let key = Key(entry.file_name().to_string_lossy().into_owned());
            // Unreadable facts: nobody's view, and the first to go.
            let bytes = Facts::read(&entry.path()).map_or(0, |facts| facts.bytes);
            done.kept += bytes;
            if !needed.contains(&key) {
                let meta = fs::metadata(entry.path().join(facts::FILE));
                let used = meta.and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                candidates.push(Candidate { used, key, bytes });
            }
        }
        candidates.sort_by(|a, b| (a.used, &a.key).cmp(&(b.used, &b.key)));
        for candidate in candidates {
            if done.kept <= budget {
                break;
            }
            self.remove(&candidate.key)?;
            done.removed += 1;
            done.freed += candidate.bytes;
            done.kept -= candidate.bytes;
        }
        Ok(done)
    }

    /// Bytes of all wheels that are installed. Blocks.
    pub fn bytes(&self) -> u64 {
        let wheels = fs::read_dir(self.root.join(WHEELS)).into_iter().flatten().flatten();
        wheels.filter_map(|wheel| Facts::read(&wheel.path())).map(|facts| facts.bytes).sum()
    }

    /// Gone by one rename; the rest is done at leisure, or by the next open after a crash.
    fn remove(&self, key: &Key) -> Result<(), StoreError> {
        let _held = self.lock_key(key)?;
        let (from, to) = (self.wheel_dir(key), self.tmp_dir(key));
        tree::remove(&to)?;
        fs::rename(&from, &to).map_err(StoreError::at("move away", &from))?;
        step();
        tree::remove(&to)
    }

    /// Notes a use. If that fails, the wheel only looks older than it is.
    pub(super) fn touch(&self, key: &Key) {
        let file = File::open(self.wheel_dir(key).join(facts::FILE));
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
    }
}
