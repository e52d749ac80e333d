//! The environment of every process that this crate starts: built from nothing, never inherited.
//!
//! A daemon's environment holds secrets and switches (`PYTHONPATH`, `PIP_*`, `UV_*`) that would change what
//! is resolved, so a command begins empty and gets what it needs by name: the way to the network, and a home
//! of its own.

use std::io;
use std::path::Path;
use std::process::{Child, Command};

/// What a resolver needs to know of this host to reach an index: trust roots and proxies.
const NETWORK: [&str; 10] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// A command in an empty environment.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8");
    command.stdin(std::process::Stdio::null());
    command
}

/// Starts a program so that it dies with the thread that started it: one that waits for a server that says nothing would
/// outlive a killed daemon by minutes, and write into its directories. Part of util-linux; where it is missing, the
/// program's own time limit ends it.
const SETPRIV: &str = "/usr/bin/setpriv";

/// The same, with the way to the network, and `home` as the only place for its files.
pub(crate) fn command_with_network(program: &Path, home: &Path) -> Command {
    let mut command = match Path::new(SETPRIV) {
        setpriv if setpriv.exists() => {
            let mut command = command(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        _ => command(program),
    };
    command.env("HOME", home).env("TMPDIR", home.join("tmp")).env("XDG_CACHE_HOME", home.join("cache"));
    for name in NETWORK {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Starts a command whose program may have been written a moment ago.
///
/// A program is "busy" while any process has it open for writing, and another thread that forked in the
/// moment between our opening and closing it has, until its child executes. There is no event to wait for,
/// and it is over within microseconds.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    for _ in 0..1000 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            started => return started,
        }
    }
    command.spawn()
}
