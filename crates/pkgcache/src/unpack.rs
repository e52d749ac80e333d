//! From a wheel file to a directory: every entry checked before a byte is written, every byte checked while
//! it is.
//!
//! A wheel is an archive from outside. The order here is: the archive's own headers agree with each other;
//! every name is harmless; the archive and RECORD list the same files; then, entry by entry, the content
//! within the limits and with the hash that RECORD lists. The first thing wrong ends it, with the entry's
//! name; what was written lies in a temporary directory and goes.
//!
//! ```text
//! <into>/site/…            what goes on the import path: the archive's top level, `*.data/purelib`, `*.data/platlib`
//! <into>/data/<scheme>/…   scripts, headers and data files: kept, never on any path
//! ```

mod entry;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::record::Record;
use crate::{DistName, Limits, RecordError};
use entry::{Entry, dist_info, plan, survey};
pub use entry::{EntryProblem, duplicate};

/// Deflate cannot exceed 1032:1, and real wheels stay below 30:1. Small archives may: a file of zeroes is no
/// attack.
const RATIO_FLOOR: u64 = 16 << 20;
const MAX_RECORD: u64 = 64 << 20;

/// Why a wheel is refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not an archive, or one whose headers contradict each other.
    #[error("the wheel is not a sound zip archive")]
    Archive(#[source] ZipError),
    /// One entry is harmful or broken.
    #[error("entry {entry:?} {problem}")]
    Entry {
        /// Its name in the archive.
        entry: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// More entries than allowed.
    #[error(
        "the wheel has {found} entries, and {limit} are allowed: raise the limit if the package is to be trusted"
    )]
    TooMany {
        /// Entries in the archive.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// More bytes than allowed, in all.
    #[error(
        "the wheel grows past {limit} bytes at entry {entry:?}: raise the limit if the package is to be trusted"
    )]
    TooLarge {
        /// The entry that exceeded it.
        entry: String,
        /// The limit.
        limit: u64,
    },
    /// Not exactly one `.dist-info` directory of the right name.
    #[error("the wheel has no {expected}-….dist-info directory of its own: found {found}")]
    DistInfo {
        /// The distribution that the lock names.
        expected: DistName,
        /// What is there instead.
        found: String,
    },
    /// RECORD and the archive disagree.
    #[error("the wheel's RECORD does not hold")]
    Record(#[from] RecordError),
    /// The file system refused.
    #[error("failed to write {path}", path = path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Unpacks `archive`, which is the wheel of `name`, into the empty directory `into`.
///
/// Gives the files on the import path, relative to `site`.
pub(crate) fn unpack(
    archive: impl Read + Seek,
    name: &DistName,
    into: &Path,
    limits: &Limits,
) -> Result<Vec<String>, UnpackError> {
    let mut archive = ZipArchive::new(archive).map_err(UnpackError::Archive)?;
    if archive.len() > limits.entries {
        return Err(UnpackError::TooMany { found: archive.len(), limit: limits.entries });
    }
    // The archive library indexes by name and keeps one of two equal names: which one is not for it to
    // choose.
    if archive.has_duplicate_names() {
        let directory = archive.central_directory_start();
        let entry = duplicate(archive.into_inner(), directory).unwrap_or_default();
        return Err(UnpackError::Entry { entry, problem: EntryProblem::Duplicate });
    }
    let (names, sizes) = survey(&archive, limits)?;
    archive.validate_header_consistency().map_err(UnpackError::Archive)?;
    let dist_info = dist_info(names.iter().map(|(_, name, _)| name.as_str()), name)?;
    let entries = plan(names, &dist_info, limits)?;

    let record = Record::parse(&read_record(&mut archive, &dist_info)?)?;
    record.compare(entries.iter().map(|entry| entry.name.as_str()), &dist_info)?;

    let mut writer = Writer { into, made: BTreeSet::new(), bytes: 0, packed: sizes, limits };
    for entry in &entries {
        let checker = record.checker(&entry.name, &dist_info)?;
        let mut file = archive.by_index(entry.index).map_err(|error| unreadable(&entry.name, error))?;
        let hash = writer.write(entry, &mut file, checker)?;
        if let Some(checker) = hash {
            checker.finish()?;
        }
    }
    let site = entries.into_iter().filter(|entry| entry.target.on_path);
    Ok(site.filter_map(|entry| entry.target.path.strip_prefix("site/").map(String::from)).collect())
}

fn read_record<R: Read + Seek>(archive: &mut ZipArchive<R>, dist_info: &str) -> Result<Vec<u8>, UnpackError> {
    let name = format!("{dist_info}/RECORD");
    let file = archive.by_name(&name).map_err(|error| match error {
        ZipError::FileNotFound => RecordError::Absent(name.clone()).into(),
        error => unreadable(&name, error),
    })?;
    let mut text = Vec::new();
    let read = file.take(MAX_RECORD + 1).read_to_end(&mut text);
    read.map_err(|error| unreadable(&name, error.into()))?;
    if text.len() as u64 > MAX_RECORD {
        return Err(UnpackError::TooLarge { entry: name, limit: MAX_RECORD });
    }
    Ok(text)
}

fn unreadable(entry: &str, error: ZipError) -> UnpackError {
    let error = match error {
        ZipError::Io(error) => error,
        error => io::Error::other(error),
    };
    UnpackError::Entry { entry: entry.into(), problem: EntryProblem::Content(error) }
}

/// Writes entries beneath one directory and counts what they take.
struct Writer<'a> {
    into: &'a Path,
    made: BTreeSet<PathBuf>,
    bytes: u64,
    packed: u64,
    limits: &'a Limits,
}

impl Writer<'_> {
    /// Writes one entry and feeds its hash. Sizes in headers are claims: only the bytes that come out are
    /// counted.
    fn write(
        &mut self,
        entry: &Entry,
        content: &mut impl Read,
        mut checker: Option<crate::record::Checker>,
    ) -> Result<Option<crate::record::Checker>, UnpackError> {
        let path = self.into.join(&entry.target.path);
        let failed = |source| UnpackError::Write { path: path.clone(), source };
        self.make_parent(&path)?;
        let mode = if entry.executable { 0o755 } else { 0o644 };
        // `create_new` is O_EXCL: it neither follows a link nor overwrites.
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&path).map_err(failed)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match content.read(&mut buffer) {
                Ok(0) => return Ok(checker),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(&entry.name, error.into())),
            };
            self.count(entry, len as u64)?;
            if let Some(checker) = &mut checker {
                checker.update(&buffer[..len]);
            }
            file.write_all(&buffer[..len]).map_err(failed)?;
        }
    }

    fn count(&mut self, entry: &Entry, len: u64) -> Result<(), UnpackError> {
        self.bytes += len;
        if self.bytes > self.limits.unpacked_bytes {
            return Err(UnpackError::TooLarge {
                entry: entry.name.clone(),
                limit: self.limits.unpacked_bytes,
            });
        }
        let limit = self.limits.ratio;
        if self.bytes > RATIO_FLOOR && self.bytes > self.packed.saturating_mul(limit) {
            let problem = EntryProblem::Ratio { limit };
            return Err(UnpackError::Entry { entry: entry.name.clone(), problem });
        }
        Ok(())
    }

    fn make_parent(&mut self, path: &Path) -> Result<(), UnpackError> {
        let Some(parent) = path.parent().filter(|parent| !self.made.contains(*parent)) else {
            return Ok(());
        };
        fs::create_dir_all(parent).map_err(|source| UnpackError::Write { path: parent.into(), source })?;
        self.made.insert(parent.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_wheel_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let name = DistName::parse("x").unwrap();
            prop_assert!(unpack(io::Cursor::new(bytes), &name, dir.path(), &Limits::default()).is_err());
        }
    }
}
