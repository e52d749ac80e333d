//! What fuzz targets reach that nobody else may: readers of archives, without the store around them. Not part of the
//! crate's interface.

use std::io::Cursor;
use std::path::Path;

use crate::record::Record;
use crate::{DistName, Limits, RecordError, UnpackError, modules, unpack};

/// Unpacks a wheel as an install does; gives the files on the import path, and the names that an import could find in
/// them.
pub fn unpack_wheel(
    archive: &[u8],
    name: &DistName,
    into: &Path,
    limits: &Limits,
) -> Result<(Vec<String>, Vec<String>), UnpackError> {
    let files = unpack::unpack(Cursor::new(archive), name, into, limits)?;
    let found = modules::index(files.iter().map(String::as_str), &[".so".into()]);
    Ok((files, found.into_iter().collect()))
}

/// Reads a RECORD; gives the paths that it lists.
pub fn record_paths(record: &[u8]) -> Result<Vec<String>, RecordError> {
    Record::parse(record).map(|record| record.paths().map(String::from).collect())
}

/// Whether a RECORD and the list of an archive's files agree, and whether the file `path` with this content is the one that
/// RECORD means; `None` if it vouches for no content of that file.
pub fn record_vouches(
    record: &[u8],
    archive: &[String],
    dist_info: &str,
    path: &str,
    content: &[u8],
) -> Result<Option<()>, RecordError> {
    let record = Record::parse(record)?;
    record.compare(archive.iter().map(String::as_str), dist_info)?;
    let Some(mut checker) = record.checker(path, dist_info)? else { return Ok(None) };
    checker.update(content);
    checker.finish().map(Some)
}
