//! The payload's disk: what the machine runs, and the files of the workspace, at the path that they have here.
//!
//! ```text
//! manifest.json
//! tree/           becomes the workspace's root
//!   .vm/wheels/   the package index
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::build::Built;
use super::erofs::{self, Effort};
use super::fetch::Cache;
use super::image::workspace;
use super::tree::Tree;

/// What the init reads; `vm/init/src/manifest.rs` has the other side.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Manifest {
    pub(crate) workspace: PathBuf,
    pub(crate) command: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) directory: PathBuf,
    pub(crate) results: Option<PathBuf>,
    pub(crate) interactive: bool,
    pub(crate) network: bool,
}

/// Makes the disk `out`.
pub(crate) fn make(built: &Built, manifest: &Manifest, tree: &Tree, out: &Path) -> Result<()> {
    let mut all = Tree::default();
    all.file("manifest.json", 0o644, serde_json::to_vec_pretty(manifest)?);
    all.directory("tree", 0o755);
    all.add_tree(tree, "tree");
    erofs::make(&all, out, built.epoch, (&built.tools, &[]), Effort::Quick)
}

/// The files of the checkout that git knows or would know, as they are now.
pub(crate) fn checkout() -> Result<Tree> {
    let root = workspace();
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output();
    let output = output.context("failed to start git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut tree = Tree::default();
    for name in String::from_utf8(output.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        let path = root.join(name);
        if path.is_file() {
            tree.file(name, mode(&path)?, fs::read(&path)?);
        }
    }
    Ok(tree)
}

/// The checkout and the package index.
pub(crate) fn sources(built: &Built) -> Result<Tree> {
    let mut tree = checkout()?;
    let cache = Cache::open()?;
    for wheel in &built.lock.wheel {
        tree.file(&format!(".vm/wheels/{}", wheel.file), 0o644, cache.read(&wheel.sha256)?);
    }
    Ok(tree)
}

/// The permissions of a file.
pub(crate) fn mode(path: &Path) -> Result<u32> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::metadata(path).with_context(|| format!("failed to read {}", path.display()))?.permissions().mode()
        & 0o777)
}

/// The environment that makes the directory of wheels the only index.
pub(crate) fn environment() -> BTreeMap<String, String> {
    let wheels = workspace().join(".vm/wheels").display().to_string();
    BTreeMap::from([("PIP_FIND_LINKS".to_owned(), wheels), ("PIP_NO_INDEX".to_owned(), "1".to_owned())])
}
