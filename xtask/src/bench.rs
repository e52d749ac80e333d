//! `cargo xtask bench SCENARIO`: what things cost, in ratios of medians of one interleaved run (`tests/bench`).
//!
//! Peers come from Debian's packages, fetched and unpacked beneath `target`, not installed: a daemon that is installed is
//! started too. FastAPI comes from the index that pip is configured for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tasks::{cargo, run as run_program, run_with};
use crate::tools;
use crate::vm::image::target;

const SCENARIOS: [&str; 5] = ["container", "coldstart", "warm", "burst", "density"];

const PEERS: [&str; 3] = ["bubblewrap", "runc", "docker.io"];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [scenario, ..] = arguments else { bail!("cargo xtask bench takes one of: {}", SCENARIOS.join(", ")) };
    if !SCENARIOS.contains(&scenario.as_str()) {
        bail!("there is no scenario {scenario}; there are: {}", SCENARIOS.join(", "));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("containers need root: sudo -E env PATH=\"$PATH\" cargo xtask bench {scenario}");
    }
    tools::for_benchmarks()?;
    run_program(
        &cargo(),
        &["build", "--release", "--locked", "--package", "sock", "--package", "sock-bench"],
    )?;
    let release = target().join("release");
    let mut command = Command::new(release.join("sock-bench"));
    command.arg(release.join("sock")).args(arguments);
    match scenario.as_str() {
        "container" => with_peers(&mut command, &fetch_peers(&target().join("bench/peers"))?)?,
        "warm" => {
            if let Some(packages) = install_fastapi(&target().join("bench/fastapi"))? {
                command.env("SOCK_BENCH_FASTAPI", packages);
            }
        }
        _ => {}
    }
    let status = command.status().context("failed to start sock-bench")?;
    if status.success() {
        Ok(())
    } else {
        bail!("the benchmark ended with {status}: 2 means a missed target")
    }
}

fn with_peers(command: &mut Command, peers: &Path) -> Result<()> {
    let path = |name: &str, own: &[&str]| {
        let before = own.iter().map(|directory| peers.join(directory));
        let after = std::env::var_os(name).unwrap_or_default();
        std::env::join_paths(before.chain(std::env::split_paths(&after)))
    };
    let libraries = path("LD_LIBRARY_PATH", &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"])?;
    command
        .env("PATH", path("PATH", &["usr/bin", "usr/sbin", "bin", "sbin"])?)
        .env("LD_LIBRARY_PATH", libraries);
    Ok(())
}

/// Installs what serves the function to compare with; nothing where that fails.
fn install_fastapi(place: &Path) -> Result<Option<PathBuf>> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bench/fastapi/requirements.txt");
    let wanted = fs::read(&requirements)?;
    // What is there was installed to the end, by these requirements.
    let done = place.join(".complete");
    if fs::read(&done).is_ok_and(|there| there == wanted) {
        return Ok(Some(place.to_owned()));
    }
    let (target, requirements) = (place.to_string_lossy(), requirements.to_string_lossy());
    let install = ["-m", "pip", "install", "--quiet", "--upgrade", "--target", &target, "-r", &requirements];
    if let Err(error) = run_with("/usr/bin/python3", &install, &[("PIP_ROOT_USER_ACTION", "ignore")]) {
        eprintln!("{error:#}");
        return Ok(None);
    }
    fs::write(done, wanted)?;
    Ok(Some(place.to_owned()))
}

/// Unpacks the peers, with what of their dependencies the machine has not, into `place`. Nothing of them is run meanwhile.
fn fetch_peers(place: &Path) -> Result<PathBuf> {
    let done = place.join(".complete");
    if done.exists() {
        return Ok(place.to_owned());
    }
    let archives = place.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let cache = format!("Dir::Cache::archives={}", archives.display());
    run_program("apt-get", &["update", "--quiet"])?;
    let fetch = ["install", "--download-only", "--yes", "--quiet", "--no-install-recommends", "-o", &cache];
    run_program("apt-get", &[&fetch[..], &PEERS].concat())?;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let (archive, root) = (path.to_string_lossy(), place.to_string_lossy());
            run_program("dpkg", &["--extract", &archive, &root])?;
        }
    }
    fs::write(done, "")?;
    Ok(place.to_owned())
}
