//! RECORD: a wheel's list of its own files.
//!
//! Bytes: the length of a file's content, the content, the text of RECORD.
//!
//! * What is accepted names only relative paths without `..`.
//! * The list holds for exactly the files that it names: one more or one less is noticed.
//! * It vouches for a content only by a hash of that content that it has.
//! * What a build tool would write of a file vouches for that content, and for no other.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256, Sha384, Sha512};
use sock_pkgcache::fuzzing::{record_paths, record_vouches};

const DIST_INFO: &str = "x-1.dist-info";
/// What cannot be in RECORD with a hash: itself, and signatures over it.
const OWN: [&str; 3] = ["x-1.dist-info/RECORD", "x-1.dist-info/RECORD.jws", "x-1.dist-info/RECORD.p7s"];

/// See the module.
pub fn run(bytes: &[u8]) {
    let Some((&length, rest)) = bytes.split_first() else { return };
    let (content, record) = rest.split_at(usize::from(length).min(rest.len()));
    let Ok(paths) = record_paths(record) else { return };
    for path in &paths {
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        assert!(path.split('/').all(plain), "{path:?} is accepted");
    }

    let vouches = |archive: &[String], path: &str| record_vouches(record, archive, DIST_INFO, path, content);
    for (at, path) in paths.iter().enumerate().take(3) {
        let own = OWN.contains(&path.as_str());
        match vouches(&paths, path) {
            Ok(Some(())) => assert!(has_hash(record, content), "{path:?} is vouched for without a hash"),
            Ok(None) => assert!(own, "{path:?} needs no hash"),
            Err(_) => {}
        }
        let mut fewer = paths.clone();
        fewer.remove(at);
        assert!(own || vouches(&fewer, path).is_err(), "nobody misses {path:?}");
    }
    let more: Vec<String> = paths.iter().cloned().chain(["added".to_owned()]).collect();
    assert!(paths.contains(&"added".to_owned()) || vouches(&more, "added").is_err(), "added unnoticed");

    let built = [record, b"\n\"own\"\"s, file\",sha256=", hash::<Sha256>(content).as_bytes(), b","].concat();
    let built = [&built[..], content.len().to_string().as_bytes(), b"\n"].concat();
    let path = "own\"s, file";
    // An open quote swallows the line, and a list that has the file already may say something else of it.
    if record_paths(&built).is_ok_and(|now| now.len() == paths.len() + 1 && now.contains(&path.to_owned())) {
        let archive: Vec<String> = paths.iter().cloned().chain([path.to_owned()]).collect();
        let vouches = |content: &[u8]| record_vouches(&built, &archive, DIST_INFO, path, content);
        assert!(matches!(vouches(content), Ok(Some(()))), "an honest line does not hold");
        assert!(vouches(&[content, b"\0"].concat()).is_err(), "a longer content passes");
        let turned: Vec<u8> = content.iter().map(|byte| byte ^ 1).collect();
        assert!(content.is_empty() || vouches(&turned).is_err(), "another content passes");
    }
}

fn has_hash(record: &[u8], content: &[u8]) -> bool {
    let hashes = [hash::<Sha256>(content), hash::<Sha384>(content), hash::<Sha512>(content)];
    // A quoted field may contain anything, a quote included, but no hash does.
    hashes.iter().any(|hash| record.windows(hash.len()).any(|window| window == hash.as_bytes()))
}

fn hash<D: Digest>(content: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(D::digest(content))
}
