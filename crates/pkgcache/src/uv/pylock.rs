//! Reading `pylock.toml` (PEP 751), as far as a lock needs it: one wheel with a hash for each package.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::tags;
use crate::hash::Hasher;
use crate::url::decode;
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

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";

    fn python() -> Interpreter {
        Interpreter::probe(Path::new("/usr/bin/python3")).unwrap()
    }

    fn lock(wheels: &str) -> Result<Lock, ResolveError> {
        let text = format!(
            "lock-version = '1.0'\n[[packages]]\nname = 'A_b'\nversion = '1.0+x'\nwheels = [{wheels}]\n"
        );
        read(&text, &Requirements::default(), &python(), Path::new("/srv/lock"))
    }

    fn wheel(place: &str, hash: &str) -> String {
        format!("{{ {place}, size = 7, hashes = {{ {hash} }} }},")
    }

    #[test]
    fn the_best_wheel_is_locked_with_its_hash() {
        let tag = python().tag;
        let sha256 = format!("sha256 = '{HASH}'");
        let any = wheel("url = 'https://index.example/a_b-1.0%2Bx-py3-none-any.whl#frag'", &sha256);
        let own_url =
            format!("url = 'https://index.example/a_b-1.0%2Bx-{tag}-{tag}-manylinux2014_x86_64.whl'");
        let own = wheel(&own_url, &sha256);
        let locked = lock(&format!("{any}{own}")).unwrap().packages.remove(0);
        assert_eq!(locked.name.as_str(), "a-b");
        assert_eq!(locked.filename, format!("a_b-1.0+x-{tag}-{tag}-manylinux2014_x86_64.whl"));
        assert_eq!((locked.sha256.to_string().as_str(), locked.size), (HASH, Some(7)));
    }

    #[test]
    fn a_file_on_this_host_comes_before_the_same_one_elsewhere() {
        let sha256 = format!("sha256 = '{HASH}'");
        let url = wheel("url = 'https://index.example/a_b-1-py3-none-any.whl'", &sha256);
        let file = wheel("url = 'file:///srv/my%20wheels/a_b-1-py3-none-any.whl'", &sha256);
        let path = wheel("path = 'near/a_b-1-py3-none-any.whl'", &sha256);
        let place = |wheels: String| lock(&wheels).unwrap().packages.remove(0).location;
        let there = Location::Path("/srv/my wheels/a_b-1-py3-none-any.whl".into());
        assert_eq!(place(format!("{url}{file}")), there);
        assert_eq!(place(path), Location::Path("/srv/lock/near/a_b-1-py3-none-any.whl".into()));
    }

    #[test]
    fn what_cannot_be_verified_or_used_is_refused() {
        let url = "url = 'https://index.example/a_b-1-py3-none-any.whl'";
        let refusals = [
            lock(&wheel(url, "")),
            lock(&wheel(url, "sha256 = 'ca97'")),
            lock(&wheel("url = 'https://index.example/a_b-1-cp27-cp27m-win32.whl'", "")),
            lock(""),
        ];
        let text: Vec<_> = refusals.into_iter().map(|lock| lock.unwrap_err().to_string()).collect();
        insta::assert_snapshot!(text.join("\n"), @"
        the package index gives no sha256 for a-b 1.0+x: use an index that does, or a directory of wheels
        the package resolver's output cannot be read
        a-b 1.0+x has no wheel for this interpreter, and building from source would run its code: pin a version that has one
        a-b 1.0+x has no wheel for this interpreter, and building from source would run its code: pin a version that has one
        ");
    }
}
