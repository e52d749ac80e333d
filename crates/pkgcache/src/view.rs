//! A view: the store's directories that make up one lock, and what can be imported from them.
//!
//! It is plain data, because the one who mounts it is another process: the launcher puts the entries' directories on top of each other
//! (the first entry on top), read-only, and shares that mount among all functions with the same lock.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{DistName, LockId, Sha256};

/// What a lock looks like once everything is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The lock's identity.
    pub id: LockId,
    /// One for each wheel, in the lock's order, which is also the order of precedence.
    pub entries: Vec<ViewEntry>,
}

/// One distribution of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewEntry {
    /// The distribution.
    pub name: DistName,
    /// Its version.
    pub version: String,
    /// The hash of its wheel.
    pub sha256: Sha256,
    /// The directory to overlay, relative to the store's root.
    pub dir: PathBuf,
    /// Every dotted name that an import could find in it: packages, modules, extension modules and namespace directories.
    pub modules: BTreeSet<String>,
}

impl View {
    /// The entry that provides a dotted name, the topmost first.
    pub fn provider(&self, module: &str) -> Option<&ViewEntry> {
        self.entries.iter().find(|entry| entry.modules.contains(module))
    }

    /// Every name that can be imported from the view at its top level.
    pub fn top_level(&self) -> BTreeSet<&str> {
        let names = self.entries.iter().flat_map(|entry| &entry.modules);
        names.filter(|name| !name.contains('.')).map(String::as_str).collect()
    }
}
