//! `cargo xtask test`: all tests, first on this machine, then the privileged ones in the test machine. Those here need root,
//! since there is no mock of the kernel.

use anyhow::{Result, bail};

use crate::tasks::{self, cargo};
use crate::{e2e, tools};

/// What each library's README shows has to run, to its end.
const EXAMPLES: [&[&str]; 6] = [
    &["sock-isolation", "--example", "run_command", "--", "id"],
    &["sock-isolation", "--example", "pool", "--", "50"],
    &["sock-isolation", "--example", "script", "--", "5"],
    &["sock-zygote", "--example", "fork_server"],
    &["sock-pkgcache", "--example", "lock_and_install", "--", "Jinja2"],
    &["sock-gateway", "--example", "echo_server"],
];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (flags, filters): (Vec<String>, Vec<String>) =
        arguments.iter().cloned().partition(|argument| argument.starts_with('-'));
    if let Some(other) = flags.iter().find(|flag| *flag != "--host") {
        bail!("cargo xtask test does not take {other}; for one of nextest's, call cargo nextest run");
    }
    on_host(&filters)?;
    if !flags.is_empty() {
        return Ok(());
    }
    let mut arguments = filters;
    if !arguments.is_empty() {
        arguments.push("--no-tests=warn".to_owned());
    }
    e2e::run(&arguments)
}

/// Those of them that run here.
pub(crate) fn on_host(filters: &[String]) -> Result<()> {
    tools::for_tests()?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the tests make containers and need root for that: sudo -E env PATH=\"$PATH\" cargo xtask test\n\
             as you are, cargo xtask e2e runs those that need root in a machine of their own"
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
    let none = if filters.is_empty() { "--no-tests=fail" } else { "--no-tests=warn" };
    tasks::run(&cargo, &[&["nextest", "run", "--locked", "--workspace", none], &filters[..]].concat())
}
