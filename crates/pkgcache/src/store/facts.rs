//! What is worth knowing of an installed wheel without reading it again: `meta.json`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{LAYOUT, StoreError};
use crate::{DistName, Sha256};

pub(super) const FILE: &str = "meta.json";

/// Written last into a wheel's directory, before it is renamed into place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) layout: u32,
    pub(super) name: DistName,
    pub(super) version: String,
    pub(super) filename: String,
    pub(super) sha256: Sha256,
    /// The interpreter's tag and its bytecode's magic number.
    pub(super) tag: String,
    pub(super) magic: String,
    /// Files and bytes of `site` and `data`, bytecode included.
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Whether it brings extension modules or libraries.
    pub(super) native: bool,
    /// Sources that are no Python for this interpreter.
    pub(super) uncompiled: usize,
    /// Start-up hooks that are there and never run.
    pub(super) pth: Vec<String>,
    pub(super) modules: BTreeSet<String>,
}

impl Facts {
    /// `None` for what is not there, not readable, or of another layout: all are "not in the store".
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let facts: Self = serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()?;
        (facts.layout == LAYOUT).then_some(facts)
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let path = dir.join(FILE);
        let text = serde_json::to_vec(self).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(StoreError::at("write", &path))
    }
}
