//! Where archives are unpacked, and what may be there afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// What a target allows an archive to take.
pub(crate) struct Bounds {
    pub(crate) bytes: u64,
    /// Files and directories.
    pub(crate) entries: usize,
    /// Of one path.
    pub(crate) path_bytes: usize,
}

/// An empty directory at some depth, beside which nothing may appear.
pub(crate) struct Ground {
    outer: TempDir,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let outer = tempfile::tempdir().expect("a directory can be made");
        fs::create_dir_all(outer.path().join("a/b/target")).expect("a directory can be made");
        Self { outer }
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.outer.path().join("a/b/target")
    }

    /// Looks at all that is there; gives the files in the target with their content.
    pub(crate) fn check(&self, bounds: &Bounds) -> BTreeMap<String, Vec<u8>> {
        let (mut files, mut entries, mut bytes) = (BTreeMap::new(), 0, 0);
        let mut pending = vec![self.outer.path().to_path_buf()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory).expect("a directory can be read").flatten() {
                let (path, metadata) =
                    (entry.path(), entry.metadata().expect("what is there can be looked at"));
                let mode = metadata.permissions().mode() & 0o7777;
                let Ok(inner) = path.strip_prefix(self.target()) else {
                    assert!(self.target().starts_with(&path) && metadata.is_dir(), "outside: {path:?}");
                    pending.push(path);
                    continue;
                };
                if metadata.is_dir() {
                    pending.push(path.clone());
                } else {
                    assert!(metadata.is_file(), "{inner:?} is no file");
                    assert!(mode & !0o777 == 0 && mode & 0o400 != 0, "{inner:?} has mode {mode:o}");
                    files.insert(inner.display().to_string(), fs::read(&path).expect("a file can be read"));
                    bytes += metadata.len();
                }
                if !inner.as_os_str().is_empty() {
                    entries += 1;
                    check_path(inner, bounds);
                }
            }
        }
        assert!(bytes <= bounds.bytes, "{bytes} bytes");
        assert!(entries <= bounds.entries, "{entries} files and directories");
        files
    }
}

fn check_path(path: &Path, bounds: &Bounds) {
    let text = path.to_str().expect("a path is text");
    assert!(text.len() <= bounds.path_bytes, "a path of {} bytes", text.len());
    assert!(!text.contains(|c: char| c.is_control() || c == '\\'), "{text:?}");
}
