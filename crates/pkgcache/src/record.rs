//! A wheel's RECORD: the list of its files with their hashes, and the check that it tells the truth.
//!
//! Installers write this file down and seldom read it: a wrong hash, a file that is missing, or one that was
//! slipped in beside the list goes unnoticed. Here a wheel is refused unless the list and the archive agree
//! in both directions. (Specification: "Recording installed projects" and the wheel format of the packaging
//! guide.)

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::Digest;

/// What RECORD says about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    digest: Option<Expected>,
    size: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

/// How RECORD and the archive disagree.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is none.
    #[error("{0:?} is missing: nothing in the wheel can be verified")]
    Absent(String),
    /// Not the three columns that it should have.
    #[error("RECORD cannot be read as a table of path, hash and size")]
    Table(#[source] csv::Error),
    /// A line that has no usable hash.
    #[error(
        "RECORD gives {entry:?} the hash {hash:?}: sha256, sha384 or sha512 in url-safe base64 is needed"
    )]
    BadHash {
        /// The file.
        entry: String,
        /// The column.
        hash: String,
    },
    /// A line whose size is no number.
    #[error("RECORD gives {entry:?} the size {size:?}, which is not a number")]
    BadSize {
        /// The file.
        entry: String,
        /// The column.
        size: String,
    },
    /// A line about something that cannot be in a wheel.
    #[error("RECORD lists {0:?}: a relative path without '..' is needed")]
    Path(String),
    /// Two lines about one file.
    #[error("RECORD lists {0:?} twice")]
    Twice(String),
    /// In the archive and not in RECORD.
    #[error("{0:?} is in the archive but not in RECORD: somebody added it")]
    Unlisted(String),
    /// In RECORD and not in the archive.
    #[error("{0:?} is in RECORD but not in the archive: somebody removed it")]
    Missing(String),
    /// In both, with different content.
    #[error("{entry:?} does not have the hash that RECORD lists: it has {found}")]
    Mismatch {
        /// The file.
        entry: String,
        /// The hash of its content, as RECORD would write it.
        found: String,
    },
    /// In both, with a different size.
    #[error("{entry:?} has {found} bytes, and RECORD lists {listed}")]
    Size {
        /// The file.
        entry: String,
        /// Bytes in the archive.
        found: u64,
        /// Bytes in RECORD.
        listed: u64,
    },
}

/// RECORD, parsed: path to what is said about it.
#[derive(Debug, Default)]
pub(crate) struct Record(BTreeMap<String, Recorded>);

impl Record {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, RecordError> {
        let mut files = BTreeMap::new();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text);
        for row in reader.records() {
            let row = row.map_err(RecordError::Table)?;
            let column = |at| row.get(at).unwrap_or_default();
            let entry = column(0).to_string();
            // Some build tools list directories too; there is nothing in them to verify.
            if entry.ends_with('/') || row.iter().all(str::is_empty) {
                continue;
            }
            if entry.split('/').any(|part| matches!(part, "" | "." | "..")) {
                return Err(RecordError::Path(entry.chars().take(200).collect()));
            }
            let digest = match column(1) {
                "" => None,
                text => Some(parse_hash(text).ok_or_else(|| RecordError::BadHash {
                    entry: entry.clone(),
                    hash: text.chars().take(100).collect(),
                })?),
            };
            let size = match column(2) {
                "" => None,
                text => Some(text.parse().map_err(|_| RecordError::BadSize {
                    entry: entry.clone(),
                    size: text.chars().take(40).collect(),
                })?),
            };
            let recorded = Recorded { digest, size };
            // The same line twice is a build tool's slip; two different ones are two truths.
            if files.insert(entry.clone(), recorded.clone()).is_some_and(|before| before != recorded) {
                return Err(RecordError::Twice(entry));
            }
        }
        Ok(Self(files))
    }

    /// The files that are listed.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Both lists name the same files, except for what cannot be in RECORD: its own hash, and signatures over
    /// it.
    pub(crate) fn compare<'a>(
        &self,
        archive: impl Iterator<Item = &'a str> + Clone,
        dist_info: &str,
    ) -> Result<(), RecordError> {
        let own = |entry: &str| is_own(entry, dist_info);
        if let Some(entry) = archive.clone().find(|entry| !own(entry) && !self.0.contains_key(*entry)) {
            return Err(RecordError::Unlisted(entry.into()));
        }
        let present: std::collections::HashSet<_> = archive.collect();
        match self.0.keys().find(|entry| !own(entry) && !present.contains(entry.as_str())) {
            Some(entry) => Err(RecordError::Missing(entry.clone())),
            None => Ok(()),
        }
    }

    /// A hasher for a file's content; `None` for RECORD itself and signatures over it.
    pub(crate) fn checker(&self, entry: &str, dist_info: &str) -> Result<Option<Checker>, RecordError> {
        if is_own(entry, dist_info) {
            return Ok(None);
        }
        let recorded = self.0.get(entry).ok_or_else(|| RecordError::Unlisted(entry.into()))?;
        let expected = recorded.digest.clone();
        let expected =
            expected.ok_or_else(|| RecordError::BadHash { entry: entry.into(), hash: String::new() })?;
        let hasher = match expected.algorithm {
            Algorithm::Sha256 => Running::Sha256(sha2::Sha256::new()),
            Algorithm::Sha384 => Running::Sha384(sha2::Sha384::new()),
            Algorithm::Sha512 => Running::Sha512(sha2::Sha512::new()),
        };
        Ok(Some(Checker { entry: entry.into(), expected, size: recorded.size, seen: 0, hasher }))
    }
}

fn is_own(entry: &str, dist_info: &str) -> bool {
    let name = entry.strip_prefix(dist_info).and_then(|rest| rest.strip_prefix('/'));
    matches!(name, Some("RECORD" | "RECORD.jws" | "RECORD.p7s"))
}

fn parse_hash(text: &str) -> Option<Expected> {
    let (name, value) = text.split_once('=')?;
    let (algorithm, len) = match name {
        "sha256" => (Algorithm::Sha256, 32),
        "sha384" => (Algorithm::Sha384, 48),
        "sha512" => (Algorithm::Sha512, 64),
        _ => return None,
    };
    let bytes = URL_SAFE_NO_PAD.decode(value.trim_end_matches('=')).ok()?;
    (bytes.len() == len).then_some(Expected { algorithm, bytes })
}

/// Checks a file's content against RECORD while it streams by.
pub(crate) struct Checker {
    entry: String,
    expected: Expected,
    size: Option<u64>,
    seen: u64,
    hasher: Running,
}

enum Running {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
}

impl Checker {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        match &mut self.hasher {
            Running::Sha256(hasher) => hasher.update(bytes),
            Running::Sha384(hasher) => hasher.update(bytes),
            Running::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Result<(), RecordError> {
        if let Some(listed) = self.size.filter(|&listed| listed != self.seen) {
            return Err(RecordError::Size { entry: self.entry, found: self.seen, listed });
        }
        let (name, found) = match self.hasher {
            Running::Sha256(hasher) => ("sha256", hasher.finalize().to_vec()),
            Running::Sha384(hasher) => ("sha384", hasher.finalize().to_vec()),
            Running::Sha512(hasher) => ("sha512", hasher.finalize().to_vec()),
        };
        if found != self.expected.bytes {
            let found = format!("{name}={}", URL_SAFE_NO_PAD.encode(found));
            return Err(RecordError::Mismatch { entry: self.entry, found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quoted_paths_and_directories_are_read() {
        let text = "\"a,b.py\",sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\r\ndir/,,\r\nx.dist-info/RECORD,,\r\n";
        let record = Record::parse(text.as_bytes()).unwrap();
        record.compare(["a,b.py", "x.dist-info/RECORD"].into_iter(), "x.dist-info").unwrap();
        record.checker("a,b.py", "x.dist-info").unwrap().unwrap().finish().unwrap();
    }

    #[test]
    fn weak_and_broken_lines_are_refused() {
        for line in [
            "a,md5=AAAA,1",
            "a,sha256=AAAA,1",
            "a,sha256,1",
            "a,,x",
            "a,,1\na,,2",
            "../a,,",
            "/a,,",
            "a//b,,",
        ] {
            assert!(Record::parse(line.as_bytes()).is_err(), "{line}");
        }
        let unhashed = Record::parse(b"a.py,,\n").unwrap();
        assert!(matches!(unhashed.checker("a.py", "x.dist-info"), Err(RecordError::BadHash { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::parse(&bytes);
        }
    }
}
