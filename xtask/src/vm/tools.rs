//! Programs of packages that run on this machine, each with the libraries that it was locked with: through the dynamic
//! loader that came with them, so that neither this machine's C library nor its version of a tool has a say.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::deb;
use super::fetch::Cache;
use super::lock::{self, Lock};
use super::tree::Tree;

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];

/// An unpacked directory of packages.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    root: PathBuf,
}

impl Tools {
    /// The tools of the lock, beneath `directory`; unpacked if they are not yet.
    pub(crate) fn unpack(lock: &Lock, cache: &Cache, directory: &Path) -> Result<Self> {
        let root = directory.join(format!("tools-{}", digest(lock)));
        if !root.exists() {
            let work = tempfile::Builder::new().prefix("tools-").tempdir_in(directory)?;
            deb::unpack_group(lock, lock::TOOLS, cache)?.write_to(work.path())?;
            match fs::rename(work.keep(), &root) {
                Err(error) if !root.exists() => return Err(error).context("failed to unpack the tools"),
                _ => {}
            }
        }
        Ok(Self { root })
    }

    /// Any tree with a C library, beneath `root`.
    pub(crate) fn of(tree: &Tree, root: &Path) -> Result<Self> {
        tree.write_to(root)?;
        Ok(Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The words before a program's path with which it runs on the tools' libraries. ld.so(8)
    fn loader(&self) -> Vec<String> {
        let libraries = LIBRARIES.map(|path| self.root.join(path).display().to_string());
        let mut words = vec![self.root.join(LOADER).display().to_string()];
        words.extend(["--library-path".to_owned(), libraries.join(":")]);
        words
    }

    /// A command of a program of the tools', by its path in them.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.command_by(&[], program)
    }

    /// As [`Tools::command`], started by a program of this machine's that takes a command.
    pub(crate) fn command_by(&self, starter: &[&str], program: &str) -> Command {
        let mut words: Vec<String> = starter.iter().map(|word| (*word).to_owned()).collect();
        words.extend(self.loader());
        words.push(self.path(program).display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        // What this machine's user has set is nothing to them.
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
        command
    }
}

/// Runs a command; what it says is shown if it fails.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_args().nth(2).unwrap_or(OsStr::new("a tool")).to_owned();
    let output = command.output().with_context(|| format!("failed to start {}", program.display()))?;
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        bail!("{} failed ({}): {}", program.display(), output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(output.stdout)
}

fn digest(lock: &Lock) -> String {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    lock.group(lock::TOOLS).for_each(|deb| hasher.update(&deb.sha256));
    hex::encode(hasher.finalize())[..16].to_owned()
}
