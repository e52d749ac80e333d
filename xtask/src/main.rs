//! What a developer runs: `cargo xtask <command>`. One file a command.

mod check;
mod ci;
mod demo;
mod e2e;
mod tasks;
mod test;
mod tools;
mod vm;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask COMMAND

  demo [--keep]      set everything up, deploy and invoke the functions of tests/functions, check every answer
  test [FILTER…]     all tests that this machine can run
  e2e [FILTER…]      the privileged tests, inside the test machine
      [--smoke] [--kernel VERSION] [--repeat N] [--shell-on-failure]
  check              fmt, clippy, rustdoc, cargo-deny, each crate alone
  ci                 check and test
  vm COMMAND         the test machine: lock, build, run
  advisories         known vulnerabilities of dependencies (asks the network)";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match command.as_str() {
        "demo" => demo::run(&rest),
        "test" => test::run(&rest),
        "check" => check::run(),
        "ci" => ci::run(),
        "e2e" => e2e::run(&rest),
        "vm" => vm::run(&rest),
        "advisories" => check::advisories(),
        "" | "help" | "--help" | "-h" => {
            println!("{HELP}");
            Ok(())
        }
        other => bail!("there is no command {other}\n\n{HELP}"),
    }
}
