//! `vm/image.toml`: what the machine is made of, as people write it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// The manifest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    /// Seconds since 1970.
    pub(crate) epoch: u64,
    pub(crate) suites: Suites,
    /// By the version that they are called by on the command line.
    pub(crate) kernels: BTreeMap<String, Kernel>,
    pub(crate) image: Root,
    pub(crate) modules: Modules,
    pub(crate) tools: Tools,
    pub(crate) wheels: Wheels,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Suites {
    pub(crate) image: String,
    pub(crate) tools: String,
}

/// A meta-package that depends on the kernel's own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernel {
    pub(crate) suite: String,
    pub(crate) package: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Root {
    pub(crate) packages: Vec<String>,
    /// Directories, without a leading slash.
    pub(crate) leave_out: Vec<String>,
    pub(crate) copy: BTreeMap<String, String>,
    pub(crate) links: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Modules {
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tools {
    pub(crate) packages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wheels {
    /// The image's interpreter, such as `3.13`.
    pub(crate) python: String,
    /// Files, beneath the workspace.
    pub(crate) requirements: Vec<PathBuf>,
    pub(crate) others: Vec<String>,
}

impl Image {
    pub(crate) fn load() -> Result<Self> {
        let path = workspace().join("vm/image.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not as it should be", path.display()))
    }
}

/// The root of the checkout: cargo tells where it started this program from.
pub(crate) fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR");
    let path =
        package.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(), PathBuf::from).join("..");
    path.canonicalize().unwrap_or(path)
}

/// Where build output goes.
pub(crate) fn target() -> PathBuf {
    let Some(directory) = std::env::var_os("CARGO_TARGET_DIR") else { return workspace().join("target") };
    // Relative to where we were started, as cargo takes it; other programs are started elsewhere.
    std::path::absolute(&directory).unwrap_or_else(|_| PathBuf::from(directory))
}
