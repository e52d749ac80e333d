//! The resolver: `uv`, one pinned build of it, run as a program.
//!
//! Its library crates change without notice and its command line does not, so it is a subprocess; its output
//! is the standard lock format (`pylock.toml`, PEP 751), so nothing here parses what is uv's own. It runs in
//! an environment made from nothing, with every file beneath one directory, is never asked to build anything,
//! and is ended if it does not finish.
//!
//! ```text
//! <dir>/<version>/uv   the program, verified once (see `bootstrap`)
//! <dir>/home/          its HOME, and scratch: what a crash leaves there is swept at the next start
//! <dir>/cache/         its cache: its own affair
//! <dir>/lock           held while the program is put in place
//! ```

mod bootstrap;
mod pylock;
mod tags;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

pub use bootstrap::BootstrapError;

use crate::{Interpreter, Lock, Requirements, ResolveError, Resolver, Sources, clean};

/// For each program that is run. A cold resolve of a large set takes seconds; a minute is a slow network; an index that
/// is silent is given up before that, after three attempts of half a minute.
const DEADLINE: Duration = Duration::from_secs(180);
/// As often a request is tried again, after a pause that grows.
const RETRIES: &str = "2";
/// What is kept of its error output.
const MAX_MESSAGE: u64 = 64 << 10;

/// The pinned `uv`.
#[derive(Debug)]
pub struct Uv {
    dir: PathBuf,
    sources: Sources,
    python: PathBuf,
    deadline: Duration,
}

impl Uv {
    /// A resolver that keeps everything beneath `dir` and looks for packages in `sources`. Nothing happens
    /// yet: the program is fetched at the first resolve, by the `pip` of `python`.
    pub fn new(dir: impl Into<PathBuf>, sources: Sources, python: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Self { dir, sources, python: python.into(), deadline: DEADLINE }
    }

    /// Makes sure that the program is there, so that the first deploy need not wait for it; gives its path.
    pub fn prepare(&self) -> Result<PathBuf, BootstrapError> {
        bootstrap::program(self)
    }

    /// Removes what a crash left unfinished. Only while nobody else uses the directory.
    pub fn sweep(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.scratch()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn scratch(&self) -> PathBuf {
        self.dir.join("home/tmp")
    }

    fn command(&self, program: &Path, work: &Path, py: &Interpreter) -> Command {
        let mut command = clean::command_with_network(program, &self.dir.join("home"));
        command
            .current_dir(work)
            .env("UV_CACHE_DIR", self.dir.join("cache"))
            .env("UV_NO_CONFIG", "1")
            .env("UV_HTTP_TIMEOUT", self.sources.silence().as_secs().to_string())
            .env("UV_HTTP_RETRIES", RETRIES)
            .args(["pip", "compile", "requirements.txt", "--output-file", "pylock.toml"])
            .args(["--format", "pylock.toml", "--only-binary", ":all:", "--no-sources", "--no-header"])
            .args(["--no-python-downloads", "--system-certs", "--no-progress", "--color", "never"])
            .arg("--python")
            .arg(&py.path);
        if let Some(index) = &self.sources.index_url {
            // By environment, since it may hold a password and everybody can read a command line.
            command.env("UV_DEFAULT_INDEX", index);
        }
        if self.sources.no_index {
            command.arg("--no-index");
        }
        for link in self.sources.usable_links() {
            command.args(["--find-links", &link]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

impl Resolver for Uv {
    fn resolve(&self, reqs: &Requirements, py: &Interpreter) -> Result<Lock, ResolveError> {
        if reqs.is_empty() {
            return Ok(Lock::new(py.tag.as_str(), Vec::new())?);
        }
        let program = self.prepare()?;
        let failed = |call| move |source| ResolveError::Run { call, source };
        let scratch = self.scratch();
        fs::create_dir_all(&scratch).map_err(failed("create a scratch directory"))?;
        let work = tempfile::Builder::new().prefix("resolve-").tempdir_in(&scratch);
        let work = work.map_err(failed("create a scratch directory"))?;
        let text = reqs.to_string();
        fs::write(work.path().join("requirements.txt"), text).map_err(failed("write the requirements"))?;

        let child = clean::spawn(&mut self.command(&program, work.path(), py));
        let child = child.map_err(failed("start uv"))?;
        let ended = wait(child, self.deadline).map_err(failed("wait for uv"))?;
        if ended.timed_out {
            return Err(ResolveError::Deadline { seconds: self.deadline.as_secs() });
        }
        if !ended.success {
            return Err(explain(&ended.message));
        }
        let text = fs::read_to_string(work.path().join("pylock.toml"));
        pylock::read(&text.map_err(failed("read uv's output"))?, reqs, py, work.path())
    }
}

struct Ended {
    success: bool,
    timed_out: bool,
    message: String,
}

/// Reads the error output to its end, which is the child's end, and kills the child if that takes too long.
fn wait(mut child: Child, deadline: Duration) -> io::Result<Ended> {
    let stderr = child.stderr.take();
    let child = Arc::new(Mutex::new(child));
    let (finished, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn({
        let child = Arc::clone(&child);
        move || {
            let timed_out = watch.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout);
            if timed_out {
                // It may have ended by itself in this instant: then there is nothing to kill.
                let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
            }
            timed_out
        }
    });
    let mut message = Vec::new();
    let read = stderr.map_or(Ok(()), |mut stderr| {
        stderr.by_ref().take(MAX_MESSAGE).read_to_end(&mut message)?;
        io::copy(&mut stderr, &mut io::sink()).map(drop)
    });
    drop(finished);
    let timed_out = watchdog.join().unwrap_or(false);
    let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
    read?;
    let message = String::from_utf8_lossy(&message).into_owned();
    Ok(Ended { success: status.success(), timed_out, message })
}

/// uv's explanation as one line: causes joined by colons, hints in brackets.
fn explain(message: &str) -> ResolveError {
    let mut parts: Vec<String> = Vec::new();
    let mut unsatisfiable = false;
    for line in message.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some(("error" | "warning" | "cause", text)) => parts.push(text.into()),
            Some(("hint", text)) => parts.push(format!("hint: {text}")),
            _ => match parts.last_mut() {
                Some(part) => *part = format!("{part} {line}"),
                None => parts.push(line.into()),
            },
        }
        if parts.last().is_some_and(|part| part.starts_with("No solution found")) {
            unsatisfiable = true;
            parts.pop();
        }
    }
    let (hints, causes): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.starts_with("hint: "));
    let mut text = causes.join(": ");
    for hint in hints {
        text.push_str(&format!(" ({hint})"));
    }
    if text.is_empty() {
        text.push_str("it gave no reason");
    }
    let text: String = text.chars().take(2000).collect();
    if unsatisfiable {
        ResolveError::Unsatisfiable(text)
    } else if text.contains("Failed to fetch") {
        ResolveError::Index(text)
    } else {
        ResolveError::Failed(text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_explanation_is_one_line() {
        let unsatisfiable = explain(
            "error: No solution found when resolving dependencies\n  cause: Because x==1 has no usable wheels and you\n\
             \x20        require x==1, we can conclude that your requirements are unsatisfiable.\n\nhint: Wheels are required\n",
        );
        let failed =
            explain("error: Request failed after 3 retries\n  cause: Failed to fetch\n  cause: refused\n");
        insta::assert_snapshot!(format!("{unsatisfiable}\n{failed}\n{}", explain("")), @"
        no set of packages fulfils the requirements: Because x==1 has no usable wheels and you require x==1, we can conclude that your requirements are unsatisfiable. (hint: Wheels are required)
        the package index does not answer: Request failed after 3 retries: Failed to fetch: refused
        the package resolver failed: it gave no reason
        ");
    }

    #[test]
    fn a_resolver_that_hangs_is_ended() {
        // Waits for an input that never comes.
        let mut hanging = Command::new("cat");
        let child =
            hanging.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        let ended = wait(child, Duration::from_millis(50)).unwrap();
        assert!(ended.timed_out && !ended.success);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
