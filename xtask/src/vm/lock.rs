//! `vm/vm.lock`: which files exactly the machine is made of. It names no host: a file is its hash.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::image::{Image, workspace};
use super::{apt, wheels};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    pub(crate) deb: Vec<Deb>,
    pub(crate) wheel: Vec<Wheel>,
}

/// A Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deb {
    pub(crate) name: String,
    pub(crate) version: String,
    /// `image`, `tools`, or `kernel-VERSION`.
    pub(crate) groups: Vec<String>,
    /// Beneath the mirror's base.
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// A Python package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wheel {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Its file's name, which says what it fits.
    pub(crate) file: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

pub(crate) const IMAGE: &str = "image";
pub(crate) const TOOLS: &str = "tools";

/// The group of a kernel.
pub(crate) fn kernel(version: &str) -> String {
    format!("kernel-{version}")
}

impl Lock {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not as it should be", path.display()))
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).context("failed to write the lock as TOML")?;
        let text = format!("# Made by `cargo xtask vm lock` from image.toml.\n\n{text}");
        fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// The packages of a group, by name.
    pub(crate) fn group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Deb> {
        self.deb.iter().filter(move |deb| deb.groups.iter().any(|one| one == group))
    }
}

/// Resolves the manifest with what the machine's mirror and package index have today.
pub(crate) fn resolve(image: &Image) -> Result<Lock> {
    let mut found: BTreeMap<String, Deb> = BTreeMap::new();
    let mut add = |group: &str, debs: Vec<Deb>| {
        for deb in debs {
            let known = found.entry(deb.sha256.clone()).or_insert(deb);
            known.groups.push(group.to_owned());
        }
    };
    add(IMAGE, apt::resolve(&image.suites.image, &image.image.packages)?);
    add(TOOLS, apt::resolve(&image.suites.tools, &image.tools.packages)?);
    for (version, wanted) in &image.kernels {
        // The package itself, not what installs it on a machine with a boot loader.
        let mut debs = apt::resolve(&wanted.suite, std::slice::from_ref(&wanted.package))?;
        debs.retain(|deb| deb.name.starts_with(&format!("linux-image-{version}")));
        anyhow::ensure!(
            debs.len() == 1,
            "{} of {} is not one kernel {version}",
            wanted.package,
            wanted.suite
        );
        add(&kernel(version), debs);
    }
    let mut deb: Vec<Deb> = found.into_values().collect();
    deb.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(Lock { deb, wheel: wheels::resolve(&image.wheels)? })
}

/// `cargo xtask vm lock`.
pub(crate) fn run() -> Result<()> {
    let lock = resolve(&Image::load()?)?;
    let path = workspace().join("vm/vm.lock");
    lock.save(&path)?;
    let bytes: u64 = lock.deb.iter().map(|deb| deb.size).chain(lock.wheel.iter().map(|one| one.size)).sum();
    println!(
        "{}: {} packages, {} wheels, {} MB",
        path.display(),
        lock.deb.len(),
        lock.wheel.len(),
        bytes >> 20
    );
    Ok(())
}
