//! What there is without a platform: a fork of an interpreter, and an interpreter that imports.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sock_zygote::runtime::{self, Entry};

const PYTHON: &str = "/usr/bin/python3";

/// An interpreter with a zygote's imports, environment and flags, that forks when it is told to.
pub(super) struct BareFork {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl BareFork {
    pub(super) fn start(site: &Path, module: Option<&str>) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/coldstart/fork.py");
        let mut child = Command::new(PYTHON)
            .args(["-S", "-s"])
            .arg(script)
            .args(module)
            .env_clear()
            .envs(runtime::environment(Entry::Zygote))
            .env("PYTHONPATH", site)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {PYTHON}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = stdin.zip(stdout).context("the interpreter has no pipes")?;
        let mut fork = Self { child, stdin, stdout: BufReader::new(stdout) };
        match fork.line()?.as_str() {
            "ready" => Ok(fork),
            other => bail!("the interpreter to fork says {other:?}"),
        }
    }

    /// Has it fork, and tells how long it took.
    pub(super) fn fork(&mut self) -> Result<Duration> {
        self.stdin.write_all(b"\n")?;
        Ok(Duration::from_nanos(self.line()?.parse()?))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for BareFork {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new interpreter that imports, to its end.
pub(super) fn import(site: &Path, module: Option<&str>) -> Result<()> {
    let statement = module.map_or_else(|| "pass".to_owned(), |module| format!("import {module}"));
    let mut command = Command::new(PYTHON);
    let status = command.args(["-S", "-s", "-c", &statement]).env("PYTHONPATH", site).status()?;
    if status.success() { Ok(()) } else { bail!("{PYTHON} -c '{statement}' ended with {status}") }
}

/// Makes `place` one directory of all packages in the server's store, as compiled as there.
pub(super) fn site(data: &Path, place: &Path) -> Result<PathBuf> {
    let mut pending = vec![data.join("packages")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if !path.is_dir() || path.is_symlink() {
                continue;
            }
            if path.file_name().is_some_and(|name| name == "site") {
                for entry in fs::read_dir(&path)? {
                    let entry = entry?;
                    // Of two with a top-level name in common the first: there is none here.
                    let _ = symlink(entry.path(), place.join(entry.file_name()));
                }
            } else {
                pending.push(path);
            }
        }
    }
    Ok(place.to_owned())
}
