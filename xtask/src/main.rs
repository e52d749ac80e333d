//! What a developer runs: `cargo xtask <command>`. One file a command.

mod bench;
mod check;
mod ci;
mod demo;
mod e2e;
mod fuzz;
mod mutants;
mod simulate;
mod tasks;
mod test;
mod tools;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask COMMAND

  demo [--keep]      set everything up, deploy and invoke the functions of tests/functions, check every answer
  test [FILTER…]     all tests: on this machine, then in the test machine (--host: only here)
  e2e [FILTER…]      the privileged tests, in the test machine
      [--smoke] [--filterset EXPR] [--kernel VERSION]… [--repeat N] [--shell-on-failure]
  mutants [NAME…]    break the system in one place after another; the tests have to notice
  bench SCENARIO     what things cost, beside their peers: container [latency|throughput|crowd], coldstart, burst, density,
                     warm [latency|thaw|throughput]
  simulate           what the tree of zygotes is worth, on a synthetic trace
      [--functions N] [--seconds S] [--budget MB] [--seed N]
  fuzz [TARGET…]     look for inputs that break a parser's promises, a minute for each target
      [--seconds N] [--merge]
  check              fmt, clippy, rustdoc, cargo-deny, each crate alone
  ci                 check, fuzz for seconds, vm build --check, host tests, e2e (on 6.1: smoke)
  vm COMMAND         the test machine: lock, build, run, shell
  advisories         known vulnerabilities of dependencies (asks the network)";

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    eprintln!("Error: {error:#}");
    if error.is::<e2e::TestsFailed>() { ExitCode::from(e2e::TESTS_FAILED as u8) } else { ExitCode::FAILURE }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match command.as_str() {
        "demo" => demo::run(&rest),
        "test" => test::run(&rest),
        "check" => check::run(),
        "ci" => ci::run(),
        "bench" => bench::run(&rest),
        "simulate" => simulate::run(&rest),
        "fuzz" => fuzz::run(&rest),
        "e2e" => e2e::run(&rest),
        "mutants" => mutants::run(&rest),
        "vm" => vm::run(&rest),
        "advisories" => check::advisories(),
        "" | "help" | "--help" | "-h" => {
            println!("{HELP}");
            Ok(())
        }
        other => bail!("there is no command {other}\n\n{HELP}"),
    }
}
