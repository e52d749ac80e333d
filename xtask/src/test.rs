//! `cargo xtask test`: all tests that this machine can run. They need root, since there is no mock of the kernel.

use anyhow::{Result, bail};

use crate::tasks::{self, cargo};
use crate::tools;

/// What each library's README shows has to run, to its end.
const EXAMPLES: [&[&str]; 4] = [
    &["sock-isolation", "--example", "run_command", "--", "id"],
    &["sock-zygote", "--example", "fork_server"],
    &["sock-pkgcache", "--example", "lock_and_install", "--", "Jinja2"],
    &["sock-gateway", "--example", "echo_server"],
];

pub(crate) fn run(filters: &[String]) -> Result<()> {
    tools::for_tests()?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the tests make containers and need root for that: sudo -E env PATH=\"$PATH\" cargo xtask test"
        );
    }
    let cargo = cargo();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    // Examples in documentation first, so that the runner's own summary ends the output.
    tasks::run(&cargo, &["test", "--locked", "--workspace", "--doc", "--quiet"])?;
    for example in EXAMPLES {
        tasks::run(&cargo, &[&["run", "--locked", "--quiet", "--package"], example].concat())?;
    }
    // Tests start the binary as a user would.
    tasks::run(&cargo, &["build", "--locked", "--package", "sock"])?;
    if tools::has_nextest() {
        tasks::run(&cargo, &[&["nextest", "run", "--locked", "--workspace"], &filters[..]].concat())
    } else {
        tasks::run(&cargo, &[&["test", "--locked", "--workspace", "--tests"], &filters[..]].concat())
    }
}
