//! Reading `pylock.toml` (PEP 751), as far as a lock needs it: one wheel with a hash for each package.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::tags;
use crate::hash::Hasher;
use crate::{DistName, Interpreter, Location, Lock, LockedWheel, Requirements, ResolveError, Sha256};

#[derive(Deserialize)]
struct Pylock {
    #[serde(default)]
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Option<String>,
    #[serde(default)]
    wheels: Vec<Wheel>,
}

#[derive(Deserialize)]
struct Wheel {
    name: Option<String>,
    url: Option<String>,
    path: Option<PathBuf>,
    size: Option<u64>,
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Deserialize, Default)]
struct Hashes {
    sha256: Option<Sha256>,
}

/// Picks a wheel for every package. `dir` is what relative paths are relative to.
pub(super) fn read(
    text: &str,
    reqs: &Requirements,
    py: &Interpreter,
    dir: &Path,
) -> Result<Lock, ResolveError> {
    let pylock: Pylock = toml::from_str(text).map_err(ResolveError::Output)?;
    let packages = pylock.packages.into_iter().map(|package| pick(package, reqs, py, dir));
    Ok(Lock::new(py.tag.as_str(), packages.collect::<Result<_, _>>()?)?)
}

fn pick(
    package: Package,
    reqs: &Requirements,
    py: &Interpreter,
    dir: &Path,
) -> Result<LockedWheel, ResolveError> {
    let name = DistName::parse(&package.name)?;
    let shown = match &package.version {
        Some(version) => format!("{name} {version}"),
        None => name.to_string(),
    };
    let mut fitting: Vec<_> = package
        .wheels
        .into_iter()
        .filter_map(|wheel| {
            let (filename, location) = locate(&wheel, dir)?;
            let rank = tags::rank(&filename, &py.tag)?;
            // A file on this host before the same one on a server.
            let local = matches!(location, Location::Path(_));
            Some(((rank, local), filename, location, wheel))
        })
        .collect();
    if fitting.is_empty() {
        return Err(ResolveError::NoWheel(shown));
    }
    let allowed: Vec<_> = reqs.iter().filter(|req| req.name == name).flat_map(|req| &req.hashes).collect();
    if !allowed.is_empty() {
        fitting.retain(|(.., wheel)| wheel.hashes.sha256.is_some_and(|hash| allowed.contains(&&hash)));
    }
    let best = fitting.into_iter().max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
    let Some((_, filename, location, wheel)) = best else {
        return Err(ResolveError::HashNotAllowed(shown));
    };
    let sha256 = match (wheel.hashes.sha256, &location) {
        (Some(hash), _) => hash,
        // A wheel on this host is the operator's own word.
        (None, Location::Path(path)) => {
            hash_file(path).map_err(|source| ResolveError::Run { call: "hash a local wheel", source })?
        }
        (None, Location::Url(_)) => return Err(ResolveError::NoHash(shown)),
    };
    let version = package.version.ok_or(ResolveError::NoWheel(shown))?;
    Ok(LockedWheel { name, version, filename, location, sha256, size: wheel.size })
}

/// File name and place of a wheel.
fn locate(wheel: &Wheel, dir: &Path) -> Option<(String, Location)> {
    let location = match (&wheel.path, &wheel.url) {
        (Some(path), _) => Location::Path(dir.join(path)),
        (None, Some(url)) => match url.strip_prefix("file://") {
            Some(path) => Location::Path(PathBuf::from(decode(path))),
            None => Location::Url(url.clone()),
        },
        (None, None) => return None,
    };
    let last = |text: &str| text.rsplit('/').next().map(String::from);
    let filename = match (&wheel.name, &location) {
        (Some(name), _) => Some(name.clone()),
        (None, Location::Path(path)) => path.file_name()?.to_str().map(String::from),
        (None, Location::Url(url)) => last(&decode(url.split(['?', '#']).next().unwrap_or(url))),
    };
    Some((filename?, location))
}

/// `%2B` is a plus: local versions have one.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = (first == b'%').then(|| after.get(..2)).flatten();
        match escape.and_then(|digits| hex::decode(digits).ok()) {
            Some(byte) => {
                bytes.extend(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hash_file(path: &Path) -> io::Result<Sha256> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hasher.finish()),
            len => hasher.update(&buffer[..len]),
        }
    }
}
