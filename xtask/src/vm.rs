//! `cargo xtask vm …`: the test machine, locked, built and run.

pub(crate) mod accelerator;
mod apt;
pub(crate) mod build;
mod bytecode;
mod deb;
mod erofs;
pub(crate) mod fetch;
pub(crate) mod guest;
mod hashes;
pub(crate) mod image;
mod kernel;
mod lock;
pub(crate) mod machine;
pub(crate) mod payload;
mod recipe;
mod reproduce;
mod run;
mod tools;
pub(crate) mod tree;
mod wheels;

use anyhow::{Result, bail};

pub(crate) use run::KERNEL;

const HELP: &str = "\
cargo xtask vm COMMAND

  lock                       resolve vm/image.toml to vm/vm.lock with what the mirror has today
  build [--check]            build the image of vm/vm.lock; --check: twice, and compare with what is committed
        [--record]           write the hashes that --check compares with
        [--mirror URL]       a mirror to ask before the machine's own
  run [--kernel V] -- CMD    one command in the machine; exits as the command does
  shell [--kernel V]         a root shell in it, at this terminal; its port 7625 is this machine's too";

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (command, rest) =
        arguments.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    if ["lock", "build", "run", "shell"].contains(&command) {
        crate::tools::for_machine()?;
    }
    match command {
        "lock" => lock::run(),
        "build" => build::run(rest),
        "build-elsewhere" => reproduce::run_elsewhere(rest),
        "run" => run::run(rest),
        "shell" => run::shell(rest),
        _ => bail!("{HELP}"),
    }
}
