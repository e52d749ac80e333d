//! Read-only file systems, by the locked mkfs.erofs. It needs no root, and makes the same bytes of the same archive.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};

use super::tools::{self, Tools};
use super::tree::Tree;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// For what is kept: small.
    Small,
    /// For what is used once: quick.
    Quick,
}

// An arbitrary one, always the same.
const UUID: &str = "736f636b-0000-4000-8000-000000000000";

/// Makes the file system `out` of a tree.
pub(crate) fn make(
    tree: &Tree,
    out: &Path,
    epoch: u64,
    tools: (&Tools, &[(String, String)]),
    effort: Effort,
) -> Result<()> {
    let work = tempfile::tempdir().context("failed to create a directory for an archive")?;
    let tar = work.path().join("tree.tar");
    tree.write_tar(BufWriter::new(File::create(&tar)?), epoch)?;
    let (tools, faked) = tools;
    let mut command = tools.command("usr/bin/mkfs.erofs");
    command.envs(faked.iter().cloned());
    command.args(["--quiet", "--tar=f", "--sort=none", "--all-time", "-U", UUID, &format!("-T{epoch}")]);
    command.arg(if effort == Effort::Small { "-zlz4hc,9" } else { "-zlz4" });
    tools::run(command.arg(out).arg(&tar)).context("failed to make a file system")?;
    Ok(())
}
