//! `cargo xtask vm build --check`: the image is made twice from scratch, and has to be the same.
//!
//! The second time everything is different that could show in it: the checkout and the build output are elsewhere, the
//! user id and the umask are others (a user namespace, which takes no right but to make one), and the clock is wrong by
//! a year for this program, for the tools, for the image's interpreter and for the compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::build::{self, Circumstances};
use super::fetch::Cache;
use super::hashes::{self, Hashes};
use super::image::{Image, target, workspace};
use super::lock::Lock;
use super::payload;
use super::tools::Tools;

/// By how much the clock of the second build is wrong.
const WRONG: Duration = Duration::from_secs(400 * 86_400);
/// What makes it so; see there.
const CLOCK: &str = include_str!("clock.c");
/// Tells the second build what time it is, so that it can see that its own clock is another.
const NOW: &str = "SOCK_VM_NOW";
const USER: &str = "4321";
const UMASK: &str = "0077";

/// Fails unless both builds are the same; returns what they are.
pub(crate) fn check() -> Result<Hashes> {
    let base = target().join("vm");
    let first = tempfile::Builder::new().prefix("first-").tempdir_in(&base)?;
    let second = tempfile::Builder::new().prefix("the-second-build-elsewhere-").tempdir()?;
    from_scratch(first.path(), &Circumstances::default())?;
    elsewhere(second.path())?;
    let found = [hashes::of(&first.path().join("out"))?, hashes::of(&second.path().join("out"))?];
    let differ = hashes::differences(&found[0], &found[1]);
    if found[0].is_empty() || !differ.is_empty() {
        let kept = [first.keep(), second.keep()].map(|path| path.display().to_string());
        bail!("two builds are not the same ({}):\n{}", kept.join(" and "), differ.join("\n"));
    }
    Hashes::of(&first.path().join("out"))
}

/// Builds `base`/out, with nothing from before but the cache of what was fetched.
fn from_scratch(base: &Path, how: &Circumstances) -> Result<()> {
    let image = Image::load()?;
    let lock = Lock::load(&workspace().join("vm/vm.lock"))?;
    let cache = Cache::open()?;
    let tools = Tools::unpack(&lock, &cache, base)?;
    let init = build::build_init(&base.join("target"))?;
    let out = base.join("out");
    fs::create_dir(&out).with_context(|| format!("failed to create {}", out.display()))?;
    build::make(&image, &lock, (&cache, &tools, &init), &out, how)
}

/// Starts [`run_elsewhere`].
fn elsewhere(base: &Path) -> Result<()> {
    let checkout = base.join("another-checkout");
    payload::checkout()?.write_to(&checkout)?;
    let temporary = base.join("tmp");
    fs::create_dir(&temporary)?;
    let ourselves = std::env::current_exe().context("failed to find this program")?;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user", USER, "--map-group", USER, "--", "/bin/sh", "-c"]);
    command.arg(format!("umask {UMASK}; exec \"$0\" \"$@\""));
    command.arg(ourselves).args(["vm", "build-elsewhere"]).arg(base);
    command
        .env("CARGO_MANIFEST_DIR", checkout.join("xtask"))
        .env("LD_PRELOAD", wrong_clock(base)?)
        .env(NOW, seconds(SystemTime::now())?.to_string())
        .env("TMPDIR", &temporary);
    let status = command.status().context("failed to start unshare")?;
    if !status.success() {
        bail!("the second build, under another user id by unshare(1), failed: {status}");
    }
    Ok(())
}

/// Builds the library that makes the clock wrong.
fn wrong_clock(base: &Path) -> Result<PathBuf> {
    let (source, library) = (base.join("clock.c"), base.join("clock.so"));
    fs::write(&source, CLOCK)?;
    let mut command = Command::new("cc");
    command.args(["-O2", "-shared", "-fPIC", &format!("-DWRONG=(-{})", WRONG.as_secs()), "-o"]);
    let status = command.arg(&library).arg(&source).status().context("failed to start cc")?;
    if !status.success() {
        bail!("failed to compile {}: {status}", source.display());
    }
    Ok(library)
}

fn seconds(time: SystemTime) -> Result<u64> {
    Ok(time.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs())
}

/// What the second build runs: `vm build-elsewhere BASE`.
pub(crate) fn run_elsewhere(arguments: &[String]) -> Result<()> {
    let [base] = arguments else { bail!("cargo xtask vm build-elsewhere is for vm build --check") };
    let base = Path::new(base);
    if !workspace().starts_with(base.canonicalize()?) {
        bail!("{} is not beneath {}", workspace().display(), base.display());
    }
    let now: u64 =
        std::env::var(NOW).ok().and_then(|now| now.parse().ok()).context("SOCK_VM_NOW is not set")?;
    if seconds(SystemTime::now())? > now - WRONG.as_secs() / 2 {
        bail!("the second build's clock is right, and should not be: is LD_PRELOAD ignored here?");
    }
    let library = base.join("clock.so").display().to_string();
    from_scratch(base, &Circumstances { faked: vec![("LD_PRELOAD".to_owned(), library)] })
}
