//! `cargo xtask simulate`: what the tree of zygotes is worth (`tests/bench`). Neither root nor containers.

use anyhow::Result;

use crate::tasks::{cargo, run as run_program};
use crate::tools;
use crate::vm::image::target;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    tools::for_running()?;
    run_program(&cargo(), &["build", "--release", "--locked", "--package", "sock-bench"])?;
    let bench = target().join("release/sock-bench");
    let arguments = ["simulate"].into_iter().chain(arguments.iter().map(String::as_str));
    run_program(&bench.to_string_lossy(), &arguments.collect::<Vec<_>>())
}
