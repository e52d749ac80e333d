//! `cargo xtask vm build --check`: the image is made twice from scratch, and has to be the same.
//!
//! The second time everything is different that could show in it: the checkout and the build output are elsewhere, the
//! user id and the umask are others (a user namespace, which takes no right but to make one), and the clock is wrong by
//! a year for this program, for the tools, for the image's interpreter and for the compiler.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::build::{self, Circumstances};
use super::fetch::Cache;
use super::hashes::{self, Hashes};
use super::image::{Image, target, workspace};
use super::lock::Lock;
use super::payload;
use super::tools::Tools;

/// Of the second build.
const CLOCK: &str = "-400d";
const USER: &str = "4321";
const UMASK: &str = "0077";

/// Where libfaketime is among the tools.
const FAKETIME: &str = "usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Fails unless both builds are the same; returns what they are.
pub(crate) fn check(tools: &Tools) -> Result<Hashes> {
    let base = target().join("vm");
    let first = tempfile::Builder::new().prefix("first-").tempdir_in(&base)?;
    let second = tempfile::Builder::new().prefix("the-second-build-elsewhere-").tempdir()?;
    from_scratch(first.path(), &Circumstances::default())?;
    elsewhere(tools, second.path())?;
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
    let init = build::build_init(&base.join("target"), how.compiler.as_deref())?;
    let out = base.join("out");
    fs::create_dir(&out).with_context(|| format!("failed to create {}", out.display()))?;
    build::make(&image, &lock, (&cache, &tools, &init), &out, how)
}

/// Starts [`run_elsewhere`].
fn elsewhere(tools: &Tools, base: &Path) -> Result<()> {
    let checkout = base.join("another-checkout");
    payload::checkout()?.write_to(&checkout)?;
    let temporary = base.join("tmp");
    fs::create_dir(&temporary)?;
    let ourselves = std::env::current_exe().context("failed to find this program")?;
    // Not in its environment: programs of this machine are older than the library, and would not start.
    let faked = tools.loader(&["--preload".into(), tools.path(FAKETIME).display().to_string()]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user", USER, "--map-group", USER, "--", "/bin/sh", "-c"]);
    command.arg(format!("umask {UMASK}; exec \"$0\" \"$@\"")).args(faked);
    command.arg(ourselves).args(["vm", "build-elsewhere"]).arg(base);
    command
        .env("CARGO_MANIFEST_DIR", checkout.join("xtask"))
        .env("FAKETIME", CLOCK)
        .env("TMPDIR", &temporary);
    let status = command.status().context("failed to start unshare")?;
    if !status.success() {
        bail!("the second build, under another user id by unshare(1), failed: {status}");
    }
    Ok(())
}

/// What the second build runs: `vm build-elsewhere BASE`.
pub(crate) fn run_elsewhere(arguments: &[String]) -> Result<()> {
    let [base] = arguments else { bail!("cargo xtask vm build-elsewhere is for vm build --check") };
    let base = Path::new(base);
    if !workspace().starts_with(base.canonicalize()?) {
        bail!("{} is not beneath {}", workspace().display(), base.display());
    }
    let lock = Lock::load(&workspace().join("vm/vm.lock"))?;
    let tools = Tools::unpack(&lock, &Cache::open()?, base)?;
    let library = tools.path(FAKETIME).display().to_string();
    let faked = vec![("LD_PRELOAD".to_owned(), library.clone()), ("FAKETIME".to_owned(), CLOCK.to_owned())];
    let compiler = base.join("compiler");
    let loader: Vec<String> = tools.loader(&["--preload".to_owned(), library]);
    let quoted: Vec<String> = loader.iter().map(|word| format!("'{word}'")).collect();
    // cargo calls it with the compiler's path first; rustup's stand-in would start another program, without our loader.
    let script = format!(
        "#!/bin/sh\nshift\nexec {} \"$({} --print sysroot)/bin/rustc\" \"$@\"\n",
        quoted.join(" "),
        "rustc"
    );
    fs::write(&compiler, script)?;
    fs::set_permissions(&compiler, fs::Permissions::from_mode(0o700))?;
    from_scratch(base, &Circumstances { faked, compiler: Some(compiler) })
}
