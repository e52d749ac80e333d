//! The Python side as the host's interpreter runs it: no container, no privilege.
//!
//! `SOCK_TEST_PYTHON` names another interpreter than Debian's, for runs with every version from 3.9.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod after_fork;
mod answers;
mod environment;
mod instance;
mod known;
mod loading;
mod logging;
mod memory;
mod numpy;
mod processes;
mod recorder;

use std::path::{Path, PathBuf};
use std::process::Command;

fn python() -> PathBuf {
    std::env::var_os("SOCK_TEST_PYTHON").map_or_else(|| "/usr/bin/python3".into(), PathBuf::from)
}

/// An interpreter as containers start one, with the runtime's files in `runtime` beneath `directory`.
fn command(directory: &Path) -> Command {
    let runtime = directory.join("runtime");
    std::fs::create_dir_all(&runtime).unwrap();
    for (path, contents) in sock_zygote::runtime::files() {
        std::fs::write(runtime.join(path.file_name().unwrap()), contents).unwrap();
    }
    let mut command = Command::new(python());
    command.args(["-S", "-s", "-B"]).env_clear().env("LANG", "C.UTF-8").current_dir(directory);
    command
}

/// Runs a script that may import the runtime's files; returns what it printed.
fn run(script: &str) -> String {
    run_with(script, |_| {})
}

fn run_with(script: &str, prepare: impl FnOnce(&mut Command)) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut command = command(directory.path());
    let script = format!("import sys\nsys.path.append('runtime')\n{script}");
    command.args(["-c", &script]);
    prepare(&mut command);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
