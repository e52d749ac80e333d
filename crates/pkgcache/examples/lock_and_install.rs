//! From a line of requirements to a directory that Python imports from.
//!
//! ```text
//! cargo run -p sock-pkgcache --example lock_and_install -- pandas
//! ```
//!
//! The first argument is a requirement (`Jinja2` without one), the second an interpreter, the third a
//! directory to keep; without it everything is made in a temporary directory. Package sources come from the
//! variables that pip and uv read.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sock_pkgcache::{Interpreter, Limits, Progress, Requirements, Resolver, Sources, Store, Uv};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let requirement = args.next().unwrap_or_else(|| "Jinja2".into());
    let python = PathBuf::from(args.next().unwrap_or_else(|| "/usr/bin/python3".into()));
    let temporary = tempfile::tempdir()?;
    let dir = args.next().map_or_else(|| temporary.path().to_path_buf(), PathBuf::from);

    let python = Interpreter::probe(&python)?;
    println!("{} is {} on {}", python.path.display(), python.tag, python.platform);
    let requirements = Requirements::parse(&requirement)?;
    let sources = Sources::from_env();
    let uv = Uv::new(dir.join("uv"), sources.clone(), &python.path);

    let begun = Instant::now();
    uv.prepare()?;
    println!("resolver ready after {:?}", begun.elapsed());

    let begun = Instant::now();
    let lock = uv.resolve(&requirements, &python)?;
    println!("lock {} after {:?}", lock.id(), begun.elapsed());
    for wheel in &lock.packages {
        println!("  {} {} {}", wheel.name, wheel.version, wheel.sha256);
    }

    let store = Store::open(dir.join("packages"), Limits::default())?.with_sources(&sources);
    let begun = Instant::now();
    let mut received = 0;
    let view = store.install(&lock, &python, &mut |step| match step {
        Progress::Planned { wheels, present, bytes } => {
            println!("{wheels} wheels, {present} of them here, {bytes} bytes to fetch");
        }
        Progress::Received { bytes } => received += bytes,
        Progress::Compiling { name } => println!("  compiling {name}"),
        Progress::Installed { name, version, .. } => println!("  installed {name} {version}"),
    })?;
    println!("installed after {:?}, {received} bytes received", begun.elapsed());

    let begun = Instant::now();
    store.install(&lock, &python, &mut |_| {})?;
    println!("a second function with the same lock: {:?}", begun.elapsed());

    // A launcher would overlay these; a search path shows the same.
    let dirs: Vec<_> = view.entries.iter().map(|entry| store.root().join(&entry.dir)).collect();
    let modules: usize = view.entries.iter().map(|entry| entry.modules.len()).sum();
    println!("{modules} importable names in {} directories", dirs.len());
    import(&python.path, &dirs, view.entries.iter().flat_map(|entry| entry.modules.iter()))
}

/// Imports the first top-level package of every entry, as the handler's interpreter would.
fn import<'a>(
    python: &Path,
    dirs: &[PathBuf],
    modules: impl Iterator<Item = &'a String>,
) -> Result<(), Box<dyn Error>> {
    let plain = |name: &&String| !name.contains('.') && !name.starts_with('_') && !name.contains('-');
    let names: Vec<_> = modules.filter(plain).map(String::as_str).collect();
    let code = format!("import {}", names.join(", "));
    let path = std::env::join_paths(dirs)?;
    let begun = Instant::now();
    let status = Command::new(python).args(["-S", "-s", "-c", &code]).env("PYTHONPATH", path).status()?;
    println!("{code}: {status} after {:?}", begun.elapsed());
    if status.success() { Ok(()) } else { Err("the packages cannot be imported".into()) }
}
