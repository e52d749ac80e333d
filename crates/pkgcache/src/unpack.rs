//! From a wheel file to a directory: every entry checked before a byte is written, every byte checked while it is.
//!
//! A wheel is an archive from outside. The order here is: the archive's own headers agree with each other; every name is
//! harmless; the archive and RECORD list the same files; then, entry by entry, the content within the limits and with the hash that
//! RECORD lists. The first thing wrong ends it, with the entry's name; what was written lies in a temporary directory and goes.
//!
//! ```text
//! <into>/site/…            what goes on the import path: the archive's top level, `*.data/purelib`, `*.data/platlib`
//! <into>/data/<scheme>/…   scripts, headers and data files: kept, never on any path
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::record::Record;
use crate::{DistName, Limits, RecordError};

/// Deflate cannot exceed 1032:1, and real wheels stay below 30:1. Small archives may: a file of zeroes is no attack.
const RATIO_FLOOR: u64 = 16 << 20;
const MAX_DEPTH: usize = 64;
const MAX_COMPONENT: usize = 255;
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

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryProblem {
    /// It would be written somewhere else.
    #[error("would leave the package's directory")]
    Escapes,
    /// Its name has characters that no package needs.
    #[error("has a name with a control character, a backslash or bytes that are not UTF-8")]
    BadName,
    /// Its name is too long, or too deep.
    #[error("has a name that is too long or too deep")]
    LongName,
    /// A symbolic link.
    #[error("is a symbolic link, which could point anywhere")]
    Symlink,
    /// A device, a pipe, a socket.
    #[error("is neither a file nor a directory")]
    Special,
    /// Encrypted, so that nobody can verify it.
    #[error("is encrypted")]
    Encrypted,
    /// Two entries for one file.
    #[error("is there twice, or is a file and a directory at once")]
    Duplicate,
    /// Below `*.data/`, for a scheme that is not defined.
    #[error("is meant for an install scheme that does not exist")]
    Scheme,
    /// It unpacks to far more than it is packed.
    #[error("expands more than {limit}-fold")]
    Ratio {
        /// The limit.
        limit: u64,
    },
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Content(io::Error),
}

struct Entry {
    index: usize,
    name: String,
    target: Target,
    executable: bool,
}

struct Target {
    /// Beneath the directory that is unpacked into.
    path: String,
    on_path: bool,
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
    if let Some(entry) = duplicate(&mut archive) {
        return Err(UnpackError::Entry { entry, problem: EntryProblem::Duplicate });
    }
    let (names, sizes) = survey(&archive, limits)?;
    archive.validate_header_consistency().map_err(UnpackError::Archive)?;
    let dist_info = dist_info(names.iter().map(|(_, name, _)| name.as_str()), name)?;
    let entries = plan(names, &dist_info)?;

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

/// The archive library indexes by name and keeps one of two equal names: which one is not for it to choose.
fn duplicate<R: Read + Seek>(archive: &mut ZipArchive<R>) -> Option<String> {
    if !archive.has_duplicate_names() {
        return None;
    }
    let mut seen = BTreeSet::new();
    let names = archive.file_names_raw().map(|raw| String::from_utf8_lossy(raw).into_owned());
    names.into_iter().find(|name| !seen.insert(name.clone())).or(Some("of the archive".into()))
}

/// Checks the name and kind of every entry; gives the files (directories are made as needed) and their packed size.
#[allow(clippy::type_complexity, reason = "index, name and mode of an entry; lives for ten lines")]
fn survey<R: Read + Seek>(
    archive: &ZipArchive<R>,
    limits: &Limits,
) -> Result<(Vec<(usize, String, bool)>, u64), UnpackError> {
    let mut files = Vec::new();
    let mut packed = 0u64;
    let metadata = archive.metadata();
    for index in 0..archive.len() {
        let entry = metadata.entry(index).map_err(UnpackError::Archive)?;
        let shown = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let name = check_name(entry.name_raw(), limits)
            .and_then(|name| check_kind(entry.unix_mode(), name).map(|()| name.to_string()));
        let name = name.map_err(|problem| UnpackError::Entry { entry: shown.clone(), problem })?;
        if entry.encrypted() {
            return Err(UnpackError::Entry { entry: shown, problem: EntryProblem::Encrypted });
        }
        packed = packed.saturating_add(entry.compressed_size());
        if !name.ends_with('/') {
            files.push((index, name, entry.unix_mode().unwrap_or(0) & 0o111 != 0));
        }
    }
    Ok((files, packed))
}

/// A name is a relative path of ordinary components; a directory's ends in a slash.
fn check_name<'a>(raw: &'a [u8], limits: &Limits) -> Result<&'a str, EntryProblem> {
    let name = std::str::from_utf8(raw).map_err(|_| EntryProblem::BadName)?;
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err(EntryProblem::BadName);
    }
    let path = name.strip_suffix('/').unwrap_or(name);
    let components = || path.split('/');
    if components().any(|part| matches!(part, "" | "." | "..")) {
        return Err(EntryProblem::Escapes);
    }
    let long = components().any(|part| part.len() > MAX_COMPONENT) || components().count() > MAX_DEPTH;
    if long || name.len() > limits.path_bytes {
        return Err(EntryProblem::LongName);
    }
    Ok(name)
}

fn check_kind(mode: Option<u32>, name: &str) -> Result<(), EntryProblem> {
    const KIND: u32 = 0o170_000;
    match mode.unwrap_or(0) & KIND {
        0 | 0o100_000 => Ok(()),
        0o040_000 if name.ends_with('/') => Ok(()),
        0o120_000 => Err(EntryProblem::Symlink),
        _ => Err(EntryProblem::Special),
    }
}

/// The wheel's own metadata directory: exactly one, with the distribution's name.
fn dist_info<'a>(names: impl Iterator<Item = &'a str>, expected: &DistName) -> Result<String, UnpackError> {
    let tops: BTreeSet<_> = names.filter_map(|name| name.split_once('/')).map(|(top, _)| top).collect();
    let infos: Vec<_> = tops.into_iter().filter(|top| top.ends_with(".dist-info")).collect();
    let own = |info: &&&str| {
        let stem = info.trim_end_matches(".dist-info");
        let name = stem.rsplit_once('-').map(|(name, _)| name);
        name.and_then(|name| DistName::parse(name).ok()).as_ref() == Some(expected)
    };
    match (infos.as_slice(), infos.iter().find(own)) {
        ([only], Some(_)) => Ok((*only).to_string()),
        ([], _) => Err(UnpackError::DistInfo { expected: expected.clone(), found: "none".into() }),
        _ => Err(UnpackError::DistInfo { expected: expected.clone(), found: infos.join(", ") }),
    }
}

/// Where each file goes, with no two at one place.
fn plan(names: Vec<(usize, String, bool)>, dist_info: &str) -> Result<Vec<Entry>, UnpackError> {
    let data_dir = format!("{}.data", dist_info.trim_end_matches(".dist-info"));
    let mut taken = BTreeMap::new();
    let mut entries = Vec::with_capacity(names.len());
    for (index, name, executable) in names {
        let refuse = |problem| UnpackError::Entry { entry: name.clone(), problem };
        let target = target(&name, &data_dir).map_err(refuse)?;
        if taken.insert(target.path.clone(), name.clone()).is_some() {
            return Err(refuse(EntryProblem::Duplicate));
        }
        entries.push(Entry { index, name, target, executable });
    }
    for path in taken.keys() {
        let mut parent = path.as_str();
        while let Some((above, _)) = parent.rsplit_once('/') {
            if let Some(entry) = taken.get(above) {
                return Err(UnpackError::Entry { entry: entry.clone(), problem: EntryProblem::Duplicate });
            }
            parent = above;
        }
    }
    Ok(entries)
}

fn target(name: &str, data_dir: &str) -> Result<Target, EntryProblem> {
    let Some(rest) = name.strip_prefix(data_dir).and_then(|rest| rest.strip_prefix('/')) else {
        return Ok(Target { path: format!("site/{name}"), on_path: true });
    };
    match rest.split_once('/') {
        Some(("purelib" | "platlib", path)) => Ok(Target { path: format!("site/{path}"), on_path: true }),
        Some(("scripts" | "headers" | "data", _)) => {
            Ok(Target { path: format!("data/{rest}"), on_path: false })
        }
        _ => Err(EntryProblem::Scheme),
    }
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
    /// Writes one entry and feeds its hash. Sizes in headers are claims: only the bytes that come out are counted.
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
        fn a_name_that_passes_stays_beneath_its_directory(raw in "[a./\\\\\u{0}-]{0,12}") {
            if let Ok(name) = check_name(raw.as_bytes(), &Limits::default()) {
                let path = Path::new(name);
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                prop_assert!(path.components().next().is_some());
            }
        }

        #[test]
        fn any_bytes_are_a_wheel_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let name = DistName::parse("x").unwrap();
            prop_assert!(unpack(io::Cursor::new(bytes), &name, dir.path(), &Limits::default()).is_err());
        }
    }
}
