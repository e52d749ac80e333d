//! Bytecode, made ahead by the interpreter that will import it.
//!
//! Compiled packages import several times faster than uncompiled ones, and the store is read-only when an import would write them. The files
//! are "unchecked hash" ones: an import takes them without looking at the source, whose hash was verified when it was unpacked.
//!
//! The compiler is CPython's own, in a process of its own (`compile.py`), in isolated mode: it parses what a stranger wrote, it never
//! runs it. Parsing has limits too: processor time for each file and memory for all. A file that will not compile
//! is left as it is; one that kills the compiler is skipped and the rest goes on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::thread;

use crate::{Interpreter, clean};

const DRIVER: &str = include_str!("compile.py");

/// Where packages appear inside a container. Bytecode holds its source's path, and is only as fast as it can be if that is right.
pub const MOUNT_POINT: &str = "/packages";

/// Below this, starting a second interpreter takes longer than it saves.
const FILES_FOR_ANOTHER_PROCESS: usize = 100;
const MAX_PROCESSES: usize = 4;
/// A wheel made of files that crash the compiler does not get it restarted for each.
const MAX_CRASHES: usize = 20;

/// Why bytecode could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The list of files could not be handed over.
    #[error("failed to hand the files to the compiler")]
    List(#[source] io::Error),
    /// The interpreter could not be started.
    #[error("failed to start {path} to compile bytecode", path = path.display())]
    Start {
        /// The interpreter.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It failed for a reason that is not a file's.
    #[error("the bytecode compiler failed ({status}): {message}")]
    Failed {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its error output.
        message: String,
    },
    /// It crashed again and again.
    #[error("the bytecode compiler crashed {MAX_CRASHES} times, the last time at {0:?}")]
    Crashes(String),
}

/// Compiles those of `files` (relative to `site`) that are Python sources; says how many could not be.
pub(crate) fn compile(py: &Interpreter, site: &Path, files: &[String]) -> Result<usize, CompileError> {
    let sources: Vec<&str> = files.iter().map(String::as_str).filter(|file| file.ends_with(".py")).collect();
    if sources.is_empty() {
        return Ok(0);
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let processes = (sources.len() / FILES_FOR_ANOTHER_PROCESS + 1).min(cores).min(MAX_PROCESSES);
    // Dealt out one by one: a package's large files stand next to each other.
    let mut shares = vec![Vec::new(); processes];
    for (index, file) in sources.into_iter().enumerate() {
        shares[index % processes].push(file);
    }
    thread::scope(|scope| {
        let running: Vec<_> =
            shares.iter().map(|share| scope.spawn(|| compile_share(py, site, share))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .sum()
    })
}

fn compile_share(py: &Interpreter, site: &Path, files: &[&str]) -> Result<usize, CompileError> {
    let mut rest = files;
    let mut failed = 0;
    for _ in 0..MAX_CRASHES {
        let run = run(py, site, rest)?;
        failed += run.failed;
        rest = &rest[run.done.min(rest.len())..];
        // Killed by a signal: the first file without an answer did it.
        match rest.split_first() {
            Some((_, after)) => {
                failed += 1;
                rest = after;
            }
            None => return Ok(failed),
        }
        if rest.is_empty() {
            return Ok(failed);
        }
    }
    Err(CompileError::Crashes(rest.first().copied().unwrap_or_default().into()))
}

struct Run {
    done: usize,
    failed: usize,
}

fn run(py: &Interpreter, site: &Path, files: &[&str]) -> Result<Run, CompileError> {
    let mut child = clean::command(&py.path)
        .args(["-I", "-S", "-W", "ignore", "-c", DRIVER, MOUNT_POINT])
        .current_dir(site)
        .stdin(Stdio::from(list(site, files).map_err(CompileError::List)?))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| CompileError::Start { path: py.path.clone(), source })?;
    // Errors are read aside, so that neither pipe can fill up while the other is waited for.
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let errors = thread::spawn(move || stderr.map(last_line).unwrap_or_default());
    let mut answers = Vec::new();
    let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut answers));
    let status = child.wait().map_err(CompileError::List)?;
    read.map_err(CompileError::List)?;
    let message = errors.join().unwrap_or_default();
    if status.code().is_some_and(|code| code != 0) {
        return Err(CompileError::Failed { status, message });
    }
    let failed = answers.iter().filter(|&&answer| answer == b'-').count();
    Ok(Run { done: answers.len(), failed })
}

/// The file list as an anonymous file: a pipe would need a thread to fill it.
fn list(site: &Path, files: &[&str]) -> io::Result<File> {
    let parent = site.parent().unwrap_or(site);
    let mut list = tempfile::tempfile_in(parent)?;
    for file in files {
        list.write_all(file.as_bytes())?;
        list.write_all(b"\0")?;
    }
    io::Seek::rewind(&mut list)?;
    Ok(list)
}

fn last_line(mut from: impl Read) -> String {
    let mut text = Vec::new();
    // What does not fit is read and dropped: a process that cannot write would never end.
    let _ = from.by_ref().take(64 << 10).read_to_end(&mut text);
    let _ = io::copy(&mut from, &mut io::sink());
    let text = String::from_utf8_lossy(&text);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no output").trim().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn site(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join("site").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (dir, files.iter().map(|(name, _)| name.to_string()).collect())
    }

    #[test]
    fn bytecode_is_unchecked_and_knows_its_place() {
        let py = Interpreter::probe(Path::new("/usr/bin/python3")).unwrap();
        let (dir, files) = site(&[("a/b.py", "def f(): pass\n"), ("bad.py", "def\n"), ("data.txt", "x")]);
        let site = dir.path().join("site");
        assert_eq!(compile(&py, &site, &files).unwrap(), 1);
        let (major, minor, _) = py.version;
        let pyc = fs::read(site.join(format!("a/__pycache__/b.cpython-{major}{minor}.pyc"))).unwrap();
        assert_eq!(hex::encode(&pyc[..4]), py.magic);
        // PEP 552: bit 0 says "by hash", bit 1 "check the source".
        assert_eq!(pyc[4..8], [1, 0, 0, 0]);
        assert!(pyc.windows(15).any(|window| window == b"/packages/a/b.p"));
    }

    #[test]
    fn a_file_is_parsed_but_never_run() {
        let py = Interpreter::probe(Path::new("/usr/bin/python3")).unwrap();
        let (dir, files) = site(&[("evil.py", "open('ran', 'w')\nimport os; os._exit(3)\n")]);
        assert_eq!(compile(&py, &dir.path().join("site"), &files).unwrap(), 0);
        assert!(!dir.path().join("site/ran").exists());
    }

    #[test]
    fn a_file_that_kills_the_compiler_is_skipped() {
        let mut py = Interpreter::probe(Path::new("/usr/bin/python3")).unwrap();
        let (dir, files) = site(&[("a.py", "x = 1\n"), ("b.py", "x = 1\n"), ("c.py", "x = 1\n")]);
        // Which input crashes a given CPython changes with every release: a wrapper that dies after the first answer stands in.
        let wrapper = dir.path().join("python");
        fs::write(&wrapper, "#!/bin/sh\nprintf +\nkill -SEGV $$\n").unwrap();
        fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        py.path = wrapper;
        assert_eq!(compile(&py, &dir.path().join("site"), &files).unwrap(), 1);
    }

    #[test]
    fn a_compiler_that_fails_is_an_error() {
        let mut py = Interpreter::probe(Path::new("/usr/bin/python3")).unwrap();
        let (dir, files) = site(&[("a.py", "x = 1\n")]);
        py.path = "/bin/false".into();
        let error = compile(&py, &dir.path().join("site"), &files).unwrap_err();
        assert!(matches!(error, CompileError::Failed { .. }), "{error}");
    }
}
