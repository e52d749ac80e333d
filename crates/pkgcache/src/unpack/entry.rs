//! An archive's list of entries: which names and kinds are accepted, and where each one goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek};

use zip::ZipArchive;

use super::UnpackError;
use crate::{DistName, Limits};

const MAX_DEPTH: usize = 64;
const MAX_COMPONENT: usize = 255;

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

/// A file of the archive.
pub(super) struct Entry {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) target: Target,
    pub(super) executable: bool,
}

/// Where it goes.
pub(super) struct Target {
    /// Beneath the directory that is unpacked into.
    pub(super) path: String,
    pub(super) on_path: bool,
}

/// Which name the central directory has twice, from its raw headers (zip specification, 4.3.12): the library
/// does not say.
pub fn duplicate(mut archive: impl Read + Seek, directory: u64) -> Option<String> {
    archive.seek(io::SeekFrom::Start(directory)).ok()?;
    let mut headers = io::BufReader::new(archive);
    let mut seen = BTreeSet::new();
    loop {
        let mut header = [0; 46];
        headers.read_exact(&mut header).ok()?;
        if !header.starts_with(b"PK\x01\x02") {
            return None;
        }
        let len = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let mut name = vec![0; len(28) + len(30) + len(32)];
        headers.read_exact(&mut name).ok()?;
        name.truncate(len(28));
        let name = String::from_utf8_lossy(&name).into_owned();
        if !seen.insert(name.clone()) {
            return Some(name);
        }
    }
}

/// Checks the name and kind of every entry; gives the files (directories are made as needed) and their packed
/// size.
#[allow(clippy::type_complexity, reason = "index, name and mode of an entry; lives for ten lines")]
pub(super) fn survey<R: Read + Seek>(
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
pub(super) fn dist_info<'a>(
    names: impl Iterator<Item = &'a str>,
    expected: &DistName,
) -> Result<String, UnpackError> {
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
pub(super) fn plan(
    names: Vec<(usize, String, bool)>,
    dist_info: &str,
    limits: &Limits,
) -> Result<Vec<Entry>, UnpackError> {
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
    // `site` and `data` are there anyway.
    let mut directories = BTreeSet::new();
    for path in taken.keys() {
        let mut parent = path.as_str();
        while let Some((above, _)) = parent.rsplit_once('/') {
            if let Some(entry) = taken.get(above) {
                return Err(UnpackError::Entry { entry: entry.clone(), problem: EntryProblem::Duplicate });
            }
            if above.contains('/') {
                directories.insert(above);
            }
            parent = above;
        }
        // One entry may need dozens of directories, and each takes a block of the disk.
        let found = taken.len() + directories.len();
        if found > limits.entries {
            return Err(UnpackError::TooMany { found, limit: limits.entries });
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

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_that_passes_stays_beneath_its_directory(raw in "[a./\\\\\u{0}-]{0,12}") {
            if let Ok(name) = check_name(raw.as_bytes(), &Limits::default()) {
                let path = Path::new(name);
                prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert!(path.components().next().is_some());
            }
        }
    }
}
