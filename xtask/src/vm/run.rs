//! `cargo xtask vm run -- CMD` and `cargo xtask vm shell`: the machine for anything.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::build::{self, Built};
use super::image::{target, workspace};
use super::machine::{self, Machine, Network, Outcome, Screen, Turn};
use super::payload::{self, Manifest};
use super::tree::Tree;
use super::{accelerator, guest};

/// What both take.
#[derive(Debug)]
struct Options {
    kernel: String,
    timeout: Duration,
    command: Vec<String>,
}

/// The kernel that is used unless another is asked for.
pub(crate) const KERNEL: &str = "6.12";

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options =
        Options { kernel: KERNEL.to_owned(), timeout: Duration::from_secs(600), command: Vec::new() };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--kernel" => options.kernel.clone_from(rest.next().context("--kernel takes a version")?),
            "--timeout" => {
                let seconds =
                    rest.next().and_then(|text| text.parse().ok()).context("--timeout takes seconds")?;
                options.timeout = Duration::from_secs(seconds);
            }
            "--" => options.command = rest.by_ref().cloned().collect(),
            other => bail!("{other} is not known; a command follows after --"),
        }
    }
    Ok(options)
}

/// `vm run`: exits as the command did.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    if options.command.is_empty() {
        bail!("cargo xtask vm run -- CMD…: the command to run in the machine is missing");
    }
    let built = build::build(&[])?;
    let manifest = Manifest { command: options.command.clone(), ..manifest() };
    start(&built, &options, &manifest, (Screen::Output, Network::Restricted))
}

/// `vm shell`: a root shell at this terminal.
pub(crate) fn shell(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    let built = build::build(&[])?;
    let command =
        if options.command.is_empty() { vec!["/bin/bash".to_owned()] } else { options.command.clone() };
    let manifest = Manifest { command, interactive: true, network: true, ..manifest() };
    println!("a server in it that listens on 0.0.0.0:7625 is at 127.0.0.1:7625 here; leave with exit");
    let day = Options { timeout: Duration::from_secs(86_400), ..options };
    start(&built, &day, &manifest, (Screen::Terminal, Network::Open))
}

fn manifest() -> Manifest {
    let mut environment = payload::environment();
    environment.insert(
        "PATH".to_owned(),
        format!("{}:/usr/local/bin:/usr/sbin:/usr/bin", workspace().join(".vm/bin").display()),
    );
    Manifest { workspace: workspace(), directory: workspace(), environment, ..Manifest::default() }
}

fn start(built: &Built, options: &Options, manifest: &Manifest, how: (Screen, Network)) -> Result<()> {
    built.require(&options.kernel)?;
    let mut tree = payload::sources(built)?;
    add_sock(&mut tree)?;
    let directory = target().join("vm/run");
    let _turn = Turn::take(&directory)?;
    let payload = directory.join("payload.erofs");
    payload::make(built, manifest, &tree, &payload)?;
    let (screen, network) = how;
    let machine = Machine {
        built,
        kernel: &options.kernel,
        payload: &payload,
        accelerator: accelerator::choose(built, &options.kernel)?,
        network,
        screen,
        timeout: options.timeout,
        silence: machine::SILENCE,
        directory: &directory,
    };
    let outcome = machine.run()?;
    let _ = std::fs::remove_file(directory.join("results.tar"));
    match outcome {
        Outcome::Exited(0) => Ok(()),
        Outcome::Exited(code) => std::process::exit(code),
        other => bail!("{}", other.describe(&directory)),
    }
}

/// The binary, static, where the machine's PATH finds it.
fn add_sock(tree: &mut Tree) -> Result<()> {
    let binary: PathBuf = guest::build(&["build", "--locked", "--package", "sock"])?.join("sock");
    tree.file(
        ".vm/bin/sock",
        0o755,
        std::fs::read(&binary).with_context(|| format!("failed to read {}", binary.display()))?,
    );
    Ok(())
}
