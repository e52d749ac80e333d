//! `cargo xtask check`: everything that needs no running system.

use anyhow::Result;

use crate::tasks::{self, cargo};
use crate::tools;

const LIBRARIES: [&str; 4] = ["sock-isolation", "sock-zygote", "sock-pkgcache", "sock-gateway"];

pub(crate) fn run() -> Result<()> {
    tools::for_running()?;
    let cargo = cargo();
    tasks::run(&cargo, &["fmt", "--all", "--check"])?;
    tasks::run(
        &cargo,
        &["clippy", "--locked", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"],
    )?;
    // Each library by itself, so that none leans on a feature that only another one switches on.
    for library in LIBRARIES {
        tasks::run(&cargo, &["check", "--locked", "--package", library, "--lib", "--examples"])?;
    }
    tasks::run_with(
        &cargo,
        &["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"],
        &[("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")],
    )?;
    tools::deny()?;
    tasks::run(
        &cargo,
        &["deny", "--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"],
    )
}

/// Needs the advisory database, which is fetched from the network.
pub(crate) fn advisories() -> Result<()> {
    tools::deny()?;
    tasks::run(&cargo(), &["deny", "check", "advisories"])
}
