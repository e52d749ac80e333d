//! The crate from outside: wheels made by hand, a store on disk, a server on loopback, and the real index
//! once.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod fetching;
mod hostile;
mod index;
mod storing;
mod wheel;

use std::error::Error;
use std::path::Path;

use sock_pkgcache::{Interpreter, Lock, LockedWheel};

/// The interpreter that Debian has, and containers get.
fn python() -> Interpreter {
    Interpreter::probe(Path::new("/usr/bin/python3")).unwrap()
}

fn lock(wheels: impl IntoIterator<Item = LockedWheel>) -> Lock {
    Lock::new(python().tag, wheels.into_iter().collect()).unwrap()
}

/// An error as it is printed at the edge: the whole chain on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
