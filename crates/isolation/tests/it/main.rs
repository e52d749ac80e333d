//! Containers for real: needs root, and fails without.
//!
//! A harness of its own, because a container can only be started from a process with one thread. Tests run one after the
//! other on the main thread, each on a host of its own.

mod escape;
mod inside;
mod launcher;
mod lifecycle;
#[cfg(feature = "machine")]
mod limits;
mod shop;

use libtest_mimic::{Arguments, Failed, Trial};

/// A name and what is run under it.
type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let launcher = [launcher::TESTS, launcher::held_up::TESTS, launcher::released::TESTS].concat();
    let tests = [lifecycle::TESTS, inside::TESTS, &launcher].concat();
    let mut trials: Vec<Trial> = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    #[cfg(feature = "machine")]
    trials.extend(limits::TESTS.iter().map(|(name, test)| Trial::test(*name, *test)));
    trials.extend(escape::trials());
    libtest_mimic::run(&arguments, trials).exit();
}
