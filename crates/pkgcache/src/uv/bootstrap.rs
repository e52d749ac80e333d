//! Getting the pinned `uv`: its wheel, through pip, with a hash that is written here.
//!
//! The host's own uv, if there is one, is of unknown age and origin and is never used. pip finds the wheel
//! where the operator's sources say, or where pip itself looks, and checks the hash; the hash is then checked
//! again here, where it does not depend on pip. A wheel of the right name in a find-links directory is taken
//! without pip, so that a host without a network works too.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::Uv;
use crate::hash::Hasher;
use crate::{Sha256, Sources, clean};

const VERSION: &str = "0.13.9";

/// A release's wheels for this architecture. More than one can fit a host, and which one pip takes depends on
/// its C library.
#[cfg(target_arch = "x86_64")]
const WHEELS: &[(&str, &str)] = &[(
    "uv-0.13.9-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19",
)];
#[cfg(target_arch = "aarch64")]
const WHEELS: &[(&str, &str)] = &[
    (
        "uv-0.13.9-py3-none-manylinux_2_28_aarch64.whl",
        "ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375",
    ),
    (
        "uv-0.13.9-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl",
        "5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe",
    ),
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("no uv wheel is pinned for this architecture: add its name and sha256 to uv/bootstrap.rs");

/// Why the resolver is not there.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file system refused.
    #[error("failed to {call} {path}", path = path.display())]
    File {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// pip could not be started.
    #[error("failed to start {python} to fetch uv {VERSION}", python = python.display())]
    Start {
        /// The interpreter.
        python: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no pip.
    #[error("{python} has no pip to fetch uv {VERSION} with: install python3-pip, or put {wheel} into a find-links directory", python = python.display(), wheel = WHEELS[0].0)]
    NoPip {
        /// The interpreter.
        python: PathBuf,
    },
    /// pip failed.
    #[error(
        "pip failed to fetch uv {VERSION}: {0}: is the package index reachable, and does it have that release?"
    )]
    Pip(String),
    /// pip did not finish.
    #[error("pip did not fetch uv {VERSION} within {0} s: is the package index reachable?")]
    Deadline(u64),
    /// What was fetched is not the pinned wheel.
    #[error("{path} is not the pinned uv {VERSION}: it has sha256 {found}", path = path.display())]
    Hash {
        /// The wheel.
        path: PathBuf,
        /// Its hash.
        found: Sha256,
    },
    /// The wheel does not hold the program.
    #[error("the wheel of uv {VERSION} does not hold the program")]
    Wheel(#[source] zip::result::ZipError),
}

fn file(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootstrapError {
    let path = path.to_path_buf();
    move |source| BootstrapError::File { call, path, source }
}

/// The program's path; it is put there if it is not yet.
pub(super) fn program(uv: &Uv) -> Result<PathBuf, BootstrapError> {
    let dir = &uv.dir;
    let home = dir.join(VERSION);
    let program = home.join("uv");
    if program.is_file() {
        return Ok(program);
    }
    let scratch = uv.scratch();
    for made in [&home, &scratch] {
        fs::create_dir_all(made).map_err(file("create", made))?;
    }
    let lock = dir.join("lock");
    let held = File::options().create(true).append(true).open(&lock).map_err(file("open", &lock))?;
    held.lock().map_err(file("lock", &lock))?;
    if program.is_file() {
        return Ok(program);
    }
    let work = tempfile::Builder::new().prefix("uv-").tempdir_in(&scratch);
    let work = work.map_err(file("create a directory in", &scratch))?;
    let wheel = match local_wheel(&uv.sources) {
        Some(wheel) => wheel,
        None => download(uv, work.path())?,
    };
    let wheel = verified(&wheel, work.path())?;
    extract(wheel, work.path(), &program)?;
    Ok(program)
}

/// A directory of the operator's that has a pinned wheel.
fn local_wheel(sources: &Sources) -> Option<PathBuf> {
    let dirs = sources.usable_links();
    let mut paths = dirs.flat_map(|link| {
        let dir = PathBuf::from(link.strip_prefix("file://").unwrap_or(&link));
        WHEELS.iter().map(move |(name, _)| dir.join(name))
    });
    paths.find(|path| path.is_file())
}

fn download(uv: &Uv, work: &Path) -> Result<PathBuf, BootstrapError> {
    let Uv { dir, sources, python, deadline } = uv;
    let hashes: String = WHEELS.iter().map(|(_, hash)| format!(" --hash=sha256:{hash}")).collect();
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, format!("uv=={VERSION}{hashes}\n")).map_err(file("write", &requirements))?;
    let mut pip = clean::command_with_network(python, &dir.join("home"));
    // pip has trust roots of its own, unless it is told.
    if let Some(roots) = std::env::var_os("SSL_CERT_FILE") {
        pip.env("PIP_CERT", roots);
    }
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(["--disable-pip-version-check", "--no-input", "--no-cache-dir", "--retries", super::RETRIES])
        .args(["--timeout", &sources.silence().as_secs().to_string(), "--dest"])
        .arg(work)
        .arg("--requirement")
        .arg(&requirements)
        .current_dir(work)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if let Some(index) = &sources.index_url {
        pip.env("PIP_INDEX_URL", index);
    }
    if sources.no_index {
        pip.arg("--no-index");
    }
    for link in sources.usable_links() {
        pip.args(["--find-links", &link]);
    }
    let failed = |source| BootstrapError::Start { python: python.clone(), source };
    let child = clean::spawn(&mut pip).map_err(failed)?;
    let ended = super::wait(child, *deadline).map_err(failed)?;
    if ended.timed_out {
        return Err(BootstrapError::Deadline(deadline.as_secs()));
    }
    if !ended.success {
        let text = &ended.message;
        if text.contains("No module named pip") {
            return Err(BootstrapError::NoPip { python: python.clone() });
        }
        // pip's last line is the summary of the ones before.
        let last = text.lines().rfind(|line| line.starts_with("ERROR")).or(text.lines().last());
        return Err(BootstrapError::Pip(last.unwrap_or("no output").chars().take(500).collect()));
    }
    let mut paths = WHEELS.iter().map(|(name, _)| work.join(name));
    paths.find(|path| path.is_file()).ok_or_else(|| BootstrapError::Pip("it saved no pinned wheel".into()))
}

/// A private copy of the wheel, hashed while it is copied: what is unpacked is what was hashed.
fn verified(wheel: &Path, work: &Path) -> Result<File, BootstrapError> {
    let mut from = File::open(wheel).map_err(file("open", wheel))?;
    let copy = work.join("verified");
    let options = || File::options().read(true).write(true).create_new(true).open(&copy);
    let mut to = options().map_err(file("create", &copy))?;
    let mut hasher = HashingWriter { hasher: Hasher::default(), to: &mut to };
    io::copy(&mut from, &mut hasher).map_err(file("copy", wheel))?;
    let found = hasher.hasher.finish();
    if !WHEELS.iter().any(|(_, pinned)| found.to_string() == *pinned) {
        return Err(BootstrapError::Hash { path: wheel.into(), found });
    }
    Ok(to)
}

struct HashingWriter<'a> {
    hasher: Hasher,
    to: &'a mut File,
}

impl io::Write for HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.to.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn extract(wheel: File, work: &Path, program: &Path) -> Result<(), BootstrapError> {
    let mut archive = zip::ZipArchive::new(wheel).map_err(BootstrapError::Wheel)?;
    let name = format!("uv-{VERSION}.data/scripts/uv");
    let mut content = archive.by_name(&name).map_err(BootstrapError::Wheel)?;
    let made = work.join("uv");
    let mut to = File::create_new(&made).map_err(file("create", &made))?;
    io::copy(&mut content, &mut to).map_err(file("write", &made))?;
    to.set_permissions(fs::Permissions::from_mode(0o755)).map_err(file("chmod", &made))?;
    to.sync_all().map_err(file("sync", &made))?;
    // Closed before it is executed, or the kernel calls it busy.
    drop(to);
    // Run once here, where a start that another thread's fork makes fail is tried again; and a directory whose programs may
    // not run is found now.
    let mut check = clean::command(&made);
    check.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    let status = clean::spawn(&mut check).and_then(|mut child| child.wait()).map_err(file("run", &made))?;
    if !status.success() {
        return Err(file("run", &made)(io::Error::other(status.to_string())));
    }
    fs::rename(&made, program).map_err(file("rename into place", program))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_pip_that_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let python = dir.path().join("python");
        fs::write(&python, "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        let mut uv = Uv::new(dir.path().join("uv"), Sources::default(), &python);
        uv.deadline = Duration::from_millis(300);
        let begun = Instant::now();
        let error = uv.prepare().unwrap_err();
        assert!(matches!(error, BootstrapError::Deadline(_)), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert_eq!(fs::read_dir(dir.path().join("uv/home/tmp")).unwrap().count(), 0);
    }
}
