//! `sock-bench SOCK SCENARIO [PART]`: what things cost, on this machine, as root. Started by `cargo xtask bench`.
//! `sock-bench simulate`: what the tree of zygotes is worth, without containers. Started by `cargo xtask simulate`.
//!
//! Contenders take turns within one run, and what is told is ratios of medians: on a machine that others use as well, times of
//! different runs cannot be compared. Its exit status says whether every target was met.

mod burst;
mod client;
mod coldstart;
mod container;
mod density;
mod figures;
mod machine;
mod server;
mod simulate;
mod warm;

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
        [sock, "coldstart"] => coldstart::run(&PathBuf::from(sock)),
        [sock, "warm"] => warm::run(&PathBuf::from(sock), None),
        [sock, "warm", part] => warm::run(&PathBuf::from(sock), Some(part)),
        [sock, "burst"] => burst::run(&PathBuf::from(sock)),
        [sock, "density"] => density::run(&PathBuf::from(sock)),
        ["simulate", ref options @ ..] => simulate::run(options),
        _ => bail!(
            "usage: sock-bench PATH-OF-SOCK container [{}] | coldstart | warm [{}] | burst | density",
            container::PARTS.join("|"),
            warm::PARTS.join("|")
        ),
    }
}
