//! The functions of tests/functions with their cases.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) event: Value,
    pub(crate) answer: Value,
}

#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) handler: String,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Cases {
    handler: String,
    cases: Vec<Case>,
}

pub(crate) fn all() -> Result<Vec<Function>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/functions");
    ["echo", "render", "resize", "stats", "api"]
        .map(|name| {
            let path = root.join(name);
            let file = path.join("cases.json");
            let text =
                fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
            let Cases { handler, cases } =
                serde_json::from_str(&text).context("cases.json is not as it should be")?;
            Ok(Function { name: name.to_owned(), path, handler, cases })
        })
        .into_iter()
        .collect()
}
