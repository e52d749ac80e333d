//! Programs for the machine: static, so that the C library here does not matter there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::image::workspace;
use crate::tasks::cargo;

pub(crate) const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Of `Cargo.toml`.
const PROFILE: &str = "guest";

/// A cargo command that builds for the machine.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = metadata(arguments);
    let profile = if arguments.first() == Some(&"nextest") { "--cargo-profile" } else { "--profile" };
    command.args(["--target", TRIPLE, profile, PROFILE]);
    command
}

/// One that builds nothing, and tells where it would.
pub(crate) fn metadata(arguments: &[&str]) -> Command {
    let mut command = Command::new(cargo());
    command
        .args(arguments)
        .current_dir(workspace())
        .env("CARGO_TARGET_DIR", directory())
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command
}

/// Where they are built: in the workspace, since the machine has them at the path that they have here.
fn directory() -> PathBuf {
    workspace().join("target/guest")
}

/// Builds; returns the directory that has the result.
pub(crate) fn build(arguments: &[&str]) -> Result<PathBuf> {
    eprintln!("+ cargo {} (static)", arguments.join(" "));
    let status = command(arguments).status().context("failed to start cargo")?;
    if !status.success() {
        bail!("cargo {} failed: {status}", arguments.join(" "));
    }
    Ok(directory().join(TRIPLE).join(PROFILE))
}
