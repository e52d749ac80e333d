//! Wheels: what an index sends.
//!
//! Bytes: see [`crate::archive`]. RECORD is read and checked here as it is for an install. METADATA is not read by anything in
//! this project: names and versions come from the lock, modules from the names of files, and those are checked here.
//!
//! * Nothing is ever written outside the target, and nothing but files and directories into it, whether the wheel is accepted
//!   or not.
//! * No more bytes, files and directories than allowed are written, whatever the archive states.
//! * The files of an accepted wheel are exactly those that are said to be on the import path, and RECORD has the hash of each.
//! * Every parent of a module is a module.
//! * The file system has no objection: what could not be written is refused before.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use sock_pkgcache::fuzzing::unpack_wheel;
use sock_pkgcache::{DistName, Limits, UnpackError};

use crate::archive;
use crate::ground::{Bounds, Ground};

const LIMITS: Limits = Limits {
    wheel_bytes: 1 << 20,
    unpacked_bytes: 8 << 10,
    entries: 32,
    ratio: 200,
    path_bytes: 64,
    parallel: 1,
};

/// See the module.
pub fn run(bytes: &[u8]) {
    let ground = Ground::new();
    let name = DistName::parse("x").expect("x is a name");
    let unpacked = unpack_wheel(&archive::of(bytes), &name, &ground.target(), &LIMITS);
    let files = ground.check(&Bounds {
        bytes: LIMITS.unpacked_bytes,
        // `site` and `data`.
        entries: LIMITS.entries + 2,
        path_bytes: LIMITS.path_bytes + "site/".len(),
    });
    match unpacked {
        Ok((on_path, modules)) => {
            let site = files.keys().filter_map(|path| path.strip_prefix("site/"));
            let mut on_path: Vec<&str> = on_path.iter().map(String::as_str).collect();
            on_path.sort_unstable();
            assert!(site.eq(on_path), "site is not what it is said to be");
            let outside = files.keys().find(|path| !path.starts_with("site/") && !path.starts_with("data/"));
            assert_eq!(outside, None, "in neither part of the target");
            for module in &modules {
                let parent = module.rsplit_once('.').map(|(parent, _)| parent);
                assert!(parent.is_none_or(|parent| modules.iter().any(|one| one == parent)), "{module:?}");
            }
            check_hashes(&files);
        }
        Err(error @ UnpackError::Write { .. }) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        Err(_) => {}
    }
}

fn check_hashes(files: &std::collections::BTreeMap<String, Vec<u8>>) {
    let own = |path: &str| path.contains(".dist-info/RECORD");
    let record = files.iter().find(|(path, _)| path.ends_with(".dist-info/RECORD"));
    let (_, record) = record.expect("a wheel has a RECORD");
    let record = String::from_utf8_lossy(record);
    // Longer hashes are checked by the target `record`; the archives that are described here have none.
    let described = !record.contains("sha384=") && !record.contains("sha512=");
    for (path, content) in files.iter().filter(|(path, _)| described && !own(path)) {
        assert!(record.contains(&URL_SAFE_NO_PAD.encode(Sha256::digest(content))), "{path:?} has no hash");
    }
}
