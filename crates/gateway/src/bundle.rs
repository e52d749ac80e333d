//! Bundles: the zip files that functions are deployed from.
//!
//! ```text
//! code/<sha256>.zip      as it was sent, 0600: what GetFunction's link gives back
//! code/<sha256>/         unpacked, 0755 and 0644: what containers see as /var/task
//! code/.new-…            unfinished; removed at the next start
//! ```
//!
//! A bundle is named by its content and appears by one rename, so it is whole or not there, and the same bundle sent twice
//! is kept once. It comes from outside: every name is checked before a byte is written, and the bytes that really come out
//! are counted, whatever sizes the archive states. Nothing in it is executed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sock_pkgcache::duplicate_entry;
use zip::ZipArchive;
use zip::result::ZipError;

const MAX_DEPTH: usize = 64;
const MAX_COMPONENT: usize = 255;
const MAX_REQUIREMENTS: u64 = 1 << 20;
/// Up to so many files are written to disk one by one; for more it is quicker to write out the whole file system.
const FEW: usize = 16;
const UNFINISHED: &str = ".new-";

/// How large a bundle may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleLimits {
    /// Bytes of the zip file.
    pub zip_bytes: usize,
    /// Bytes of all its files, unpacked.
    pub unpacked_bytes: u64,
    /// Files and directories.
    pub entries: usize,
    /// Bytes of one path.
    pub path_bytes: usize,
}

impl Default for BundleLimits {
    fn default() -> Self {
        Self { zip_bytes: 52_428_800, unpacked_bytes: 262_144_000, entries: 50_000, path_bytes: 1024 }
    }
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Larger than allowed.
    #[error("the zip file has {found} bytes, and {limit} are allowed")]
    ZipTooLarge {
        /// Its size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Not a zip file, or a broken one.
    #[error("the bundle is not a sound zip file")]
    Archive(#[source] ZipError),
    /// Nothing in it.
    #[error("the zip file is empty: put the handler's module into it")]
    Empty,
    /// More entries than allowed.
    #[error("the zip file has {found} entries, and {limit} are allowed")]
    TooMany {
        /// Entries in it.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Grows past the limit.
    #[error("unzipped size must be smaller than {limit} bytes: it is exceeded at entry {entry:?}")]
    TooLarge {
        /// Where.
        entry: String,
        /// The limit.
        limit: u64,
    },
    /// One entry is harmful or broken.
    #[error("entry {entry:?} {problem}")]
    Entry {
        /// Its name.
        entry: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// The file system refused.
    #[error("failed to write {path}", path = path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryProblem {
    /// It would be written somewhere else.
    #[error("would leave the bundle's directory: use relative paths without '..'")]
    Escapes,
    /// Its name cannot be a file's.
    #[error("has a name with a control character, a backslash or bytes that are not UTF-8")]
    BadName,
    /// Its name is too long or too deep.
    #[error("has a name that is too long or too deep")]
    LongName,
    /// A link.
    #[error("is a symbolic link, which could point anywhere: put the file itself into the bundle")]
    Symlink,
    /// Neither file nor directory.
    #[error("is neither a file nor a directory")]
    Special,
    /// It cannot be read without a password.
    #[error("is encrypted")]
    Encrypted,
    /// Two entries want one place.
    #[error("is there twice, or is a file and a directory at once")]
    Duplicate,
    /// It claims bytes of the archive that are another entry's.
    #[error("shares its bytes with another entry")]
    Overlaps,
    /// Its content is broken.
    #[error("cannot be read: {0}")]
    Content(io::Error),
}

impl BundleError {
    /// Whether the sender can do something about it.
    pub fn is_senders(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }
}

/// A bundle that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    /// In hex.
    pub(crate) sha256: String,
    /// Bytes of the zip file.
    pub(crate) size: u64,
}

/// All bundles of a data directory.
#[derive(Debug)]
pub(crate) struct Bundles {
    root: PathBuf,
    limits: BundleLimits,
}

impl Bundles {
    /// Opens the directory, makes it if need be, and removes what a crash left unfinished.
    pub(crate) fn open(root: PathBuf, limits: BundleLimits) -> Result<Self, BundleError> {
        let at = |source| BundleError::Write { path: root.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&root).map_err(at)?;
        for entry in fs::read_dir(&root).map_err(at)? {
            let entry = entry.map_err(at)?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                remove(&entry.path()).map_err(at)?;
            }
        }
        Ok(Self { root, limits })
    }

    /// Checks, unpacks and keeps a bundle. Blocks.
    pub(crate) fn put(&self, zip: &[u8]) -> Result<Bundle, BundleError> {
        if zip.len() > self.limits.zip_bytes {
            return Err(BundleError::ZipTooLarge { found: zip.len(), limit: self.limits.zip_bytes });
        }
        let bundle = Bundle { sha256: hex::encode(Sha256::digest(zip)), size: zip.len() as u64 };
        let place = self.dir(&bundle.sha256);
        let kept = self.zip(&bundle.sha256);
        if place.is_dir() && kept.is_file() {
            return Ok(bundle);
        }
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| BundleError::Write { path, source }
        };
        let new =
            tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.root).map_err(at(&self.root))?;
        let tree = new.path().join("tree");
        mkdir(&tree).map_err(at(&tree))?;
        let files = unpack(zip, &tree, &self.limits)?;
        let copy = new.path().join("zip");
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(&copy).map_err(at(&copy))?;
        file.write_all(zip).and_then(|()| file.sync_all()).map_err(at(&copy))?;
        // Before the rename: a name must not outlive the content when the power fails.
        if files <= FEW {
            sync(&tree).map_err(at(&tree))?;
        } else {
            nix::unistd::syncfs(&file).map_err(|errno| at(&tree)(errno.into()))?;
        }
        // Another request may have put the same bundle there meanwhile: its files are the same.
        fs::rename(&copy, &kept).map_err(at(&kept))?;
        match fs::rename(&tree, &place) {
            Err(error) if !place.is_dir() => return Err(at(&place)(error)),
            _ => {}
        }
        File::open(&self.root).and_then(|dir| dir.sync_all()).map_err(at(&self.root))?;
        Ok(bundle)
    }

    /// The zip file of a bundle.
    pub(crate) fn zip(&self, sha256: &str) -> PathBuf {
        self.root.join(format!("{sha256}.zip"))
    }

    fn dir(&self, sha256: &str) -> PathBuf {
        self.root.join(sha256)
    }

    /// Whether a bundle is there, unpacked.
    pub(crate) fn has(&self, sha256: &str) -> bool {
        self.dir(sha256).is_dir()
    }

    /// The requirements file at the top of a bundle.
    pub(crate) fn requirements(&self, sha256: &str) -> io::Result<Option<String>> {
        let file = match File::open(self.dir(sha256).join("requirements.txt")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = String::new();
        file.take(MAX_REQUIREMENTS + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_REQUIREMENTS {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it has more than {MAX_REQUIREMENTS} bytes"),
            ));
        }
        Ok(Some(text))
    }

    /// Removes every bundle that is not among these. Only while nothing runs.
    pub(crate) fn keep_only(&self, wanted: &BTreeSet<String>) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !wanted.contains(name.trim_end_matches(".zip")) {
                remove(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

struct Planned {
    index: usize,
    path: String,
    executable: bool,
}

/// Unpacks a checked archive, and gives the number of files.
pub(crate) fn unpack(zip: &[u8], into: &Path, limits: &BundleLimits) -> Result<usize, BundleError> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(BundleError::Archive)?;
    let files = plan(&mut archive, limits)?;
    let count = files.len();
    let mut left = limits.unpacked_bytes;
    for file in files {
        let path = into.join(&file.path);
        let at = |source| BundleError::Write { path: path.clone(), source };
        let above = path.parent().unwrap_or(into);
        for dir in above.ancestors().take_while(|dir| *dir != into).collect::<Vec<_>>().into_iter().rev() {
            mkdir(dir).or_else(|error| if dir.is_dir() { Ok(()) } else { Err(error) }).map_err(at)?;
        }
        let mut out = File::options().write(true).create_new(true).open(&path).map_err(at)?;
        let broken = |error| entry(&file.path, EntryProblem::Content(error));
        let mut content = archive.by_index(file.index).map_err(|error| broken(error.into()))?;
        let mut buffer = [0; 64 << 10];
        loop {
            let read = content.read(&mut buffer).map_err(broken)?;
            if read == 0 {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(|| BundleError::TooLarge {
                entry: file.path.clone(),
                limit: limits.unpacked_bytes,
            })?;
            out.write_all(&buffer[..read]).map_err(at)?;
        }
        let mode = if file.executable { 0o755 } else { 0o644 };
        out.set_permissions(Permissions::from_mode(mode)).map_err(at)?;
    }
    Ok(count)
}

/// Writes a tree to disk, file by file.
fn sync(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

/// Whatever the umask: containers read it under other uids.
fn mkdir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Checks all entries and gives the files.
fn plan(archive: &mut ZipArchive<Cursor<&[u8]>>, limits: &BundleLimits) -> Result<Vec<Planned>, BundleError> {
    if archive.len() > limits.entries {
        return Err(BundleError::TooMany { found: archive.len(), limit: limits.entries });
    }
    // The archive library keeps one of two equal names; which one is not for it to choose.
    if archive.has_duplicate_names() {
        let directory = archive.central_directory_start();
        let twice = duplicate_entry(archive.clone().into_inner(), directory).unwrap_or_default();
        return Err(entry(&twice, EntryProblem::Duplicate));
    }
    let mut files = Vec::new();
    let mut dirs = BTreeSet::new();
    let mut taken = BTreeMap::new();
    let mut stated = 0_u64;
    let (mut packed, size) = (0u64, archive.central_directory_start());
    for index in 0..archive.len() {
        let metadata = archive.metadata();
        let found = metadata.entry(index).map_err(BundleError::Archive)?;
        let shown = String::from_utf8_lossy(found.name_raw()).into_owned();
        let (path, is_dir) =
            check(found.name_raw(), found.unix_mode(), limits).map_err(|problem| entry(&shown, problem))?;
        if found.encrypted() {
            return Err(entry(&shown, EntryProblem::Encrypted));
        }
        // A size that is stated proves nothing unless it is too large already: then nothing need be written to see it.
        stated = stated.saturating_add(found.size());
        if stated > limits.unpacked_bytes {
            return Err(BundleError::TooLarge { entry: shown, limit: limits.unpacked_bytes });
        }
        // Entries that share their bytes could have the whole archive read once for each.
        packed = packed.saturating_add(found.compressed_size());
        if packed > size {
            return Err(entry(&shown, EntryProblem::Overlaps));
        }
        if is_dir {
            dirs.insert(path);
            continue;
        }
        if taken.insert(path.clone(), shown.clone()).is_some() {
            return Err(entry(&shown, EntryProblem::Duplicate));
        }
        files.push(Planned { index, path, executable: found.unix_mode().unwrap_or(0) & 0o111 != 0 });
    }
    for file in &files {
        dirs.extend(file.path.match_indices('/').map(|(at, _)| file.path[..at].to_string()));
        // One entry may need dozens of directories, and each takes a block of the disk.
        let found = files.len() + dirs.len();
        if found > limits.entries {
            return Err(BundleError::TooMany { found, limit: limits.entries });
        }
    }
    match dirs.iter().find_map(|dir| taken.get(dir)) {
        Some(shown) => Err(entry(shown, EntryProblem::Duplicate)),
        None if files.is_empty() => Err(BundleError::Empty),
        None => Ok(files),
    }
}

/// The path of an entry beneath the bundle's directory, and whether it is a directory.
fn check(raw: &[u8], mode: Option<u32>, limits: &BundleLimits) -> Result<(String, bool), EntryProblem> {
    const KIND: u32 = 0o170_000;
    let name = std::str::from_utf8(raw).map_err(|_| EntryProblem::BadName)?;
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err(EntryProblem::BadName);
    }
    let is_dir = name.ends_with('/');
    let path = name.strip_suffix('/').unwrap_or(name);
    // `zip -r` from a directory writes "./" before names.
    let path = path.strip_prefix("./").unwrap_or(path);
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return if is_dir && path == "." { Ok((String::new(), true)) } else { Err(EntryProblem::Escapes) };
    }
    if path.len() > limits.path_bytes
        || path.split('/').count() > MAX_DEPTH
        || path.split('/').any(|part| part.len() > MAX_COMPONENT)
    {
        return Err(EntryProblem::LongName);
    }
    match mode.unwrap_or(0) & KIND {
        0 | 0o100_000 => Ok((path.into(), is_dir)),
        0o040_000 if is_dir => Ok((path.into(), is_dir)),
        0o120_000 => Err(EntryProblem::Symlink),
        _ => Err(EntryProblem::Special),
    }
}

fn entry(name: &str, problem: EntryProblem) -> BundleError {
    BundleError::Entry { entry: name.chars().take(200).collect(), problem }
}

#[cfg(test)]
mod tests;
