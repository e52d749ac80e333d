//! `sock-bench SOCK SCENARIO [PART]`: what things cost, on this machine, as root. Started by `cargo xtask bench`.
//! `sock-bench simulate`: what the tree of zygotes is worth, without containers. Started by `cargo xtask simulate`.
//!
//! Contenders take turns within one run, and what is told is ratios of medians: on a machine that others use as well, times of
//! different runs cannot be compared. Its exit status says whether every target was met.

mod container;
mod figures;
mod simulate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every target was met.
fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [sock, "container"] => container::run(&PathBuf::from(sock), None),
        [sock, "container", part] => container::run(&PathBuf::from(sock), Some(part)),
        ["simulate", ref options @ ..] => simulate::run(options),
        _ => bail!("usage: sock-bench PATH-OF-SOCK container [{}]", container::PARTS.join("|")),
    }
}
