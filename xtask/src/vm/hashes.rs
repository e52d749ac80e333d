//! `vm/hashes.toml`: the bytes that everyone gets.
//!
//! The kernels and the root are the same everywhere. The small file system that a kernel starts with holds our init, and
//! that is the same where the same compiler links it with the same C library: both are recorded beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fetch::sha256;
use super::image::workspace;

/// Hashes by a file's name.
type Files = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hashes {
    everywhere: Files,
    init: Init,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Init {
    /// What `rustc --version` prints.
    rustc: String,
    /// A hash of the static C library and of what else of it and of gcc is linked; the linker is Rust's own.
    libc: String,
    files: Files,
}

/// The files of an image, by name.
pub(crate) fn of(directory: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(directory).with_context(|| format!("failed to read {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["root.erofs", "vmlinuz-", "initrd-"].iter().any(|start| name.starts_with(start)) {
            files.insert(name, sha256(&entry.path())?);
        }
    }
    Ok(files)
}

/// A sentence for each file that is not the same in both.
pub(crate) fn differences(expected: &Files, found: &Files) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let different = names.into_iter().filter(|name| expected.get(*name) != found.get(*name));
    let or_none = |hash: Option<&String>| hash.map_or_else(|| "not there".to_owned(), Clone::clone);
    different
        .map(|name| format!("{name}: {}, not {}", or_none(found.get(name)), or_none(expected.get(name))))
        .collect()
}

impl Hashes {
    /// Those of a built image, with what built its init.
    pub(crate) fn of(directory: &Path) -> Result<Self> {
        let (init, everywhere) =
            of(directory)?.into_iter().partition(|(name, _)| name.starts_with("initrd-"));
        let rustc = String::from_utf8_lossy(&output("rustc", &["--version"])?).trim().to_owned();
        Ok(Self { everywhere, init: Init { rustc, libc: libc()?, files: init } })
    }

    pub(crate) fn path() -> PathBuf {
        workspace().join("vm/hashes.toml")
    }

    pub(crate) fn committed() -> Result<Self> {
        let path = Self::path();
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not as it should be", path.display()))
    }

    pub(crate) fn save(&self) -> Result<()> {
        let text = toml::to_string(self).context("failed to write the hashes as TOML")?;
        let path = Self::path();
        let text = format!("# Made by `cargo xtask vm build --record`.\n\n{text}");
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Fails unless `found` is the same. Returns whether that could be said of the init too.
    pub(crate) fn compare(&self, found: &Self) -> Result<bool> {
        let mut differ = differences(&self.everywhere, &found.everywhere);
        let comparable = self.init.rustc == found.init.rustc && self.init.libc == found.init.libc;
        if comparable {
            differ.extend(differences(&self.init.files, &found.init.files));
        }
        if !differ.is_empty() {
            bail!(
                "the image is not the committed one (vm/hashes.toml):\n{}\nif the change is meant, run cargo xtask vm build --record",
                differ.join("\n")
            );
        }
        Ok(comparable)
    }
}

fn output(program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("failed to start {program}"))?;
    if !output.status.success() {
        bail!("{program} {} failed: {}", arguments.join(" "), output.status);
    }
    Ok(output.stdout)
}

fn libc() -> Result<String> {
    let mut hasher = Sha256::new();
    for name in
        ["libc.a", "rcrt1.o", "crti.o", "crtn.o", "crtbeginS.o", "crtendS.o", "libgcc.a", "libgcc_eh.a"]
    {
        let path = output("cc", &[&format!("-print-file-name={name}")])?;
        let path = String::from_utf8(path)?;
        hasher.update(fs::read(path.trim()).with_context(|| format!("failed to read {}", path.trim()))?);
    }
    Ok(hex::encode(hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(root: &str, rustc: &str, init: &str) -> Hashes {
        let files = |name: &str, hash: &str| Files::from([(name.to_owned(), hash.to_owned())]);
        Hashes {
            everywhere: files("root.erofs", root),
            init: Init {
                rustc: rustc.to_owned(),
                libc: "libc".to_owned(),
                files: files("initrd-6.12", init),
            },
        }
    }

    #[test]
    fn the_root_is_always_compared_and_the_init_of_one_compiler() {
        let committed = hashes("root", "1.95", "init");
        assert!(committed.compare(&hashes("root", "1.95", "init")).unwrap());
        assert!(!committed.compare(&hashes("root", "1.96", "other")).unwrap());
        let error = committed.compare(&hashes("root", "1.95", "other")).unwrap_err().to_string();
        assert!(error.contains("\ninitrd-6.12: other, not init\n"), "{error}");
        let error = committed.compare(&hashes("changed", "1.96", "other")).unwrap_err().to_string();
        assert!(error.contains("\nroot.erofs: changed, not root\n"), "{error}");
    }

    #[test]
    fn a_file_of_one_side_is_a_difference() {
        let (one, none) = (hashes("root", "", "").everywhere, Files::new());
        assert_eq!(differences(&one, &none), ["root.erofs: not there, not root"]);
        assert_eq!(differences(&none, &one), ["root.erofs: root, not not there"]);
    }
}
