//! The machine's package index: a directory of wheels, resolved and fetched by pip as the machine's is configured.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::fetch::Cache;
use super::image::{self, workspace};
use super::lock::Wheel;

/// What the image's C library takes.
const PLATFORMS: [&str; 4] =
    ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"];

fn pip(python: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "pip", "--disable-pip-version-check", "--quiet"]).args(arguments);
    command.args(["--only-binary=:all:", "--implementation=cp", &format!("--python-version={python}")]);
    for platform in PLATFORMS {
        command.arg(format!("--platform={platform}"));
    }
    let output = command.output().context("failed to start /usr/bin/python3")?;
    if !output.status.success() {
        bail!("pip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Each file of requirements by itself, as functions are resolved; together they are what the index has.
pub(crate) fn resolve(wanted: &image::Wheels) -> Result<Vec<Wheel>> {
    let work = tempfile::tempdir()?;
    let directory = work.path().to_string_lossy().into_owned();
    for file in &wanted.requirements {
        let file = workspace().join(file);
        pip(&wanted.python, &["download", "--dest", &directory, "--requirement", &file.to_string_lossy()])?;
    }
    for one in &wanted.others {
        pip(&wanted.python, &["download", "--dest", &directory, "--no-deps", one])?;
    }
    let mut wheels = Vec::new();
    for entry in std::fs::read_dir(work.path())? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut parts = file.split('-');
        let (Some(name), Some(version)) = (parts.next(), parts.next()) else { bail!("{file} is no wheel") };
        let sha256 = super::fetch::sha256(&path)?;
        let (name, version) = (name.to_owned(), version.to_owned());
        let size = path.metadata()?.len();
        Cache::open()?.put(&path, &sha256)?;
        wheels.push(Wheel { name, version, file, size, sha256 });
    }
    wheels.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(wheels)
}

/// Gets those that the cache lacks, all in one go: pip finds each by its name and checks its hash.
pub(crate) fn fetch(wheels: &[Wheel], python: &str, cache: &Cache) -> Result<()> {
    let missing: Vec<&Wheel> = wheels.iter().filter(|wheel| !cache.has(&wheel.sha256)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let work = tempfile::tempdir()?;
    // One of a name at a time: two functions may have been resolved to different versions of one package.
    let list = work.path().join("requirements.txt");
    let directory = work.path().join("wheels");
    for wheel in missing {
        std::fs::write(&list, format!("{}=={} --hash=sha256:{}\n", wheel.name, wheel.version, wheel.sha256))?;
        let arguments = ["download", "--no-deps", "--require-hashes", "--dest", &directory.to_string_lossy()];
        pip(python, &[&arguments[..], &["--requirement", &list.to_string_lossy()]].concat())?;
        let file = directory.join(&wheel.file);
        cache.put(&file, &wheel.sha256).with_context(|| format!("pip did not fetch {}", wheel.file))?;
    }
    Ok(())
}
