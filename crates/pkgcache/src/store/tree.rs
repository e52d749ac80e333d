//! Whole directory trees: sealing them, and removing them again.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::StoreError;

/// What a sealed tree holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Makes everything beneath and including `dir` read-only and readable for all, whatever mode or umask it was made with.
pub(super) fn seal(dir: &Path) -> Result<Size, StoreError> {
    let mut size = Size::default();
    for entry in fs::read_dir(dir).map_err(StoreError::at("read", dir))? {
        let entry = entry.map_err(StoreError::at("read", dir))?;
        let path = entry.path();
        // Of the entry itself, never of what a link points at; links cannot be here, and would be an error below.
        let meta = entry.metadata().map_err(StoreError::at("stat", &path))?;
        if meta.is_dir() {
            let inner = seal(&path)?;
            size = Size { files: size.files + inner.files, bytes: size.bytes + inner.bytes };
        } else if meta.is_file() {
            let mode = 0o444 | (meta.permissions().mode() & 0o111);
            let mode = if mode & 0o111 != 0 { 0o555 } else { mode };
            set_mode(&path, mode)?;
            size = Size { files: size.files + 1, bytes: size.bytes + meta.len() };
        } else {
            return Err(StoreError::at("seal", &path)(io::Error::other("neither a file nor a directory")));
        }
    }
    set_mode(dir, 0o555)?;
    Ok(size)
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(StoreError::at("chmod", path))
}

/// Removes a tree that may be sealed. It need not be there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::at("stat", path)(error)),
        Ok(meta) if meta.is_dir() => {
            unseal(path)?;
            fs::remove_dir_all(path).map_err(StoreError::at("remove", path))
        }
        Ok(_) => fs::remove_file(path).map_err(StoreError::at("remove", path)),
    }
}

/// The owner needs the write bit of a directory to remove what is in it; root does not, and would hide that this is missing.
fn unseal(dir: &Path) -> Result<(), StoreError> {
    set_mode(dir, 0o700)?;
    for entry in fs::read_dir(dir).map_err(StoreError::at("read", dir))? {
        let entry = entry.map_err(StoreError::at("read", dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            unseal(&entry.path())?;
        }
    }
    Ok(())
}

/// Everything written so far to the file system of `dir` is on disk. One call, where a package would need thousands.
pub(super) fn sync_filesystem(dir: &Path) -> Result<(), StoreError> {
    let opened = File::open(dir).map_err(StoreError::at("open", dir))?;
    nix::unistd::syncfs(&opened).map_err(|errno| StoreError::at("sync", dir)(errno.into()))
}

/// The entries of `dir` are on disk, so that a rename into it survives a crash.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::at("sync", dir))
}
