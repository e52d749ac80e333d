//! `cargo xtask vm build`: the image of the lock.
//!
//! ```text
//! target/vm/<key>/root.erofs          the key: a hash of the lock, the manifest, the init and this code
//!                 vmlinuz-<version>
//!                 initrd-<version>
//! target/vm/tools-<key>/              programs that run here
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::erofs::{self, Effort};
use super::fetch::{Cache, Gone, Mirrors};
use super::hashes::{self, Hashes};
use super::image::{Image, target, workspace};
use super::kernel::{self, Kernel};
use super::lock::{self, Lock};
use super::tools::Tools;
use super::{bytecode, deb, recipe, reproduce, wheels};
use crate::tasks::cargo;

/// A built image, and what it takes to run it.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) directory: PathBuf,
    pub(crate) tools: Tools,
    pub(crate) lock: Lock,
    pub(crate) epoch: u64,
}

impl Built {
    /// Fails unless it has that kernel.
    pub(crate) fn require(&self, kernel: &str) -> Result<()> {
        if self.directory.join(format!("vmlinuz-{kernel}")).is_file() {
            return Ok(());
        }
        let known: Vec<String> = Image::load()?.kernels.into_keys().collect();
        bail!("there is no kernel {kernel}: vm/image.toml has {}", known.join(" and "))
    }
}

/// How a build is told to be different from another, to see that its result is not.
#[derive(Debug, Default)]
pub(crate) struct Circumstances {
    /// Environment of the tools: a faked clock.
    pub(crate) faked: Vec<(String, String)>,
}

/// Builds what is not there yet.
pub(crate) fn build(mirrors: &[String]) -> Result<Built> {
    of_lock(&workspace().join("vm/vm.lock"), mirrors)
}

/// To test with. Where packages have left the mirror it is built of what the mirror has today, and that is told.
pub(crate) fn build_for_tests() -> Result<Built> {
    match build(&[]) {
        Err(error) if error.downcast_ref::<Gone>().is_some() => {
            let path = target().join("vm/vm.lock");
            eprintln!("warning: {error}\nwarning: this run uses packages of today, {}", path.display());
            lock::resolve(&Image::load()?)?.save(&path)?;
            of_lock(&path, &[])
        }
        built => built,
    }
}

fn of_lock(path: &Path, mirrors: &[String]) -> Result<Built> {
    let image = Image::load()?;
    let lock = Lock::load(path)?;
    let cache = Cache::open()?;
    let base = target().join("vm");
    fs::create_dir_all(&base).with_context(|| format!("failed to create {}", base.display()))?;
    // Tests that boot run side by side: one builds, the others find it. Let go of when it is closed.
    let turn = File::create(base.join(".lock")).context("failed to create the build's lock")?;
    turn.lock().context("failed to wait for another build")?;
    cache.fetch(lock.deb.iter(), || Mirrors::new(mirrors))?;
    wheels::fetch(&lock.wheel, &image.wheels.python, &cache)?;
    let tools = Tools::unpack(&lock, &cache, &base)?;
    let directory = base.join(key(path)?);
    if !directory.exists() {
        let init = build_init(&target())?;
        let work = tempfile::Builder::new().prefix("image-").tempdir_in(&base)?;
        make(&image, &lock, (&cache, &tools, &init), work.path(), &Circumstances::default())?;
        fs::rename(work.keep(), &directory).context("failed to keep the image")?;
        remove_others(&base, &[&directory, tools.root()])?;
    }
    Ok(Built { directory, tools, lock, epoch: image.epoch })
}

/// Makes all files of the image in `out`.
pub(crate) fn make(
    image: &Image,
    lock: &Lock,
    (cache, tools, init): (&Cache, &Tools, &Path),
    out: &Path,
    how: &Circumstances,
) -> Result<()> {
    let init = fs::read(init).with_context(|| format!("failed to read {}", init.display()))?;
    for version in image.kernels.keys() {
        let kernel = Kernel::of(&deb::unpack_group(lock, &lock::kernel(version), cache)?)?;
        let modules = kernel.ordered(&image.modules.names)?;
        fs::write(out.join(format!("vmlinuz-{version}")), &kernel.vmlinuz)?;
        fs::write(out.join(format!("initrd-{version}")), kernel::initrd(&init, &modules)?)?;
    }
    let mut tree = deb::unpack_group(lock, lock::IMAGE, cache)?;
    recipe::finish(&mut tree, &image.image)?;
    bytecode::compile(&mut tree, &how.faked)?;
    erofs::make(&tree, &out.join("root.erofs"), image.epoch, (tools, &how.faked), Effort::Small)
}

/// The init, static: the same bytes wherever it is built by the same compiler and C library.
pub(crate) fn build_init(target: &Path) -> Result<PathBuf> {
    const TRIPLE: &str = "x86_64-unknown-linux-gnu";
    let registry = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=/sock", workspace().display()),
    ];
    // Sources of dependencies are beneath a directory that is called after the registry they came from.
    for entry in fs::read_dir(format!("{registry}/registry/src")).into_iter().flatten().flatten() {
        flags.push(format!("--remap-path-prefix={}=/crates", entry.path().display()));
    }
    let arguments = [
        "build",
        "--locked",
        "--quiet",
        "--profile",
        "init",
        "--package",
        "sock-vm-init",
        "--target",
        TRIPLE,
    ];
    let mut command = Command::new(cargo());
    command.args(arguments).current_dir(workspace()).env("CARGO_TARGET_DIR", target);
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = command.status().context("failed to start cargo")?;
    if !status.success() {
        bail!("failed to build the init: {status}");
    }
    Ok(target.join(TRIPLE).join("init/sock-vm-init"))
}

/// Images and tools of locks and recipes that were, which nothing finds again, and what a build left that was killed.
fn remove_others(base: &Path, kept: &[&Path]) -> Result<()> {
    const STARTS: [&str; 3] = ["tools-", "image-", "first-"];
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = path.join("root.erofs").exists() || STARTS.iter().any(|start| name.starts_with(start));
        if ours && !kept.contains(&path.as_path()) {
            fs::remove_dir_all(&path).with_context(|| format!("failed to remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// What the image depends on.
fn key(lock: &Path) -> Result<String> {
    let root = workspace();
    let mut files = vec![lock.to_owned()];
    files.extend(
        ["vm/image.toml", "vm/init/Cargo.toml", "Cargo.toml", "Cargo.lock"].map(|file| root.join(file)),
    );
    for directory in ["vm/init/src", "xtask/src/vm"] {
        for entry in fs::read_dir(root.join(directory))? {
            files.push(entry?.path());
        }
    }
    files.retain(|path| path.is_file());
    files.sort();
    let mut hasher = Sha256::new();
    for path in files {
        let contents = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default();
        hasher.update(format!("{} {}\n", name.display(), contents.len()));
        hasher.update(contents);
    }
    let rustc = Command::new("rustc").arg("-vV").output().context("failed to start rustc")?;
    hasher.update(&rustc.stdout);
    Ok(hex::encode(hasher.finalize())[..16].to_owned())
}

/// `cargo xtask vm build`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (mut check, mut record, mut mirrors) = (false, false, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--check" => check = true,
            "--record" => record = true,
            "--mirror" => mirrors.push(rest.next().context("--mirror takes a URL")?.clone()),
            other => bail!("cargo xtask vm build does not take {other}"),
        }
    }
    let built = build(&mirrors)?;
    let found = if check { reproduce::check()? } else { Hashes::of(&built.directory)? };
    for (name, hash) in hashes::of(&built.directory)? {
        println!("{hash}  {}", built.directory.join(name).display());
    }
    if record {
        found.save()?;
    }
    if check {
        let all = Hashes::committed()?.compare(&found)?;
        println!("two builds are the same, and the same as the committed one");
        if !all {
            println!("except for the initrds: vm/hashes.toml has those of another compiler or C library");
        }
    }
    Ok(())
}
