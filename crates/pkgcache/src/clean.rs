//! The environment of every process that this crate starts: built from nothing, never inherited.
//!
//! A daemon's environment holds secrets and switches (`PYTHONPATH`, `PIP_*`, `UV_*`) that would change what is resolved, so a
//! command begins empty and gets what it needs by name: the way to the network, and a home of its own.

use std::path::Path;
use std::process::Command;

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

/// The same, with the way to the network, and `home` as the only place for its files.
pub(crate) fn command_with_network(program: &Path, home: &Path) -> Command {
    let mut command = command(program);
    command.env("HOME", home).env("TMPDIR", home.join("tmp")).env("XDG_CACHE_HOME", home.join("cache"));
    for name in NETWORK {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}
