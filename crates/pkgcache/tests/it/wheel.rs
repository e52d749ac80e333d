//! Wheels made by hand, sound ones and all the others: for this crate's tests, and those of the whole system.
#![allow(dead_code, reason = "each of its users needs another part of it")]

use std::fmt::Write as _;
use std::io::{Cursor, Write as _};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sock_pkgcache::{DistName, Location, LockedWheel, Sha256};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A wheel in the making.
pub(crate) struct Wheel {
    name: String,
    version: String,
    files: Vec<(String, Vec<u8>, u32)>,
    record: Box<dyn Fn(String) -> Option<String>>,
}

impl Wheel {
    pub(crate) fn new(name: &str, version: &str) -> Self {
        let info = format!("{name}-{version}.dist-info");
        let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
        Self { name: name.into(), version: version.into(), files: Vec::new(), record: Box::new(Some) }
            .file(&format!("{info}/METADATA"), metadata)
            .file(&format!("{info}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    }

    /// Another line of METADATA.
    pub(crate) fn metadata(mut self, line: &str) -> Self {
        self.files[0].1.extend(format!("{line}\n").into_bytes());
        self
    }

    /// What an index gives beside the wheel.
    pub(crate) fn metadata_file(&self) -> Vec<u8> {
        self.files[0].1.clone()
    }

    pub(crate) fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.file_with_mode(path, content, 0o644)
    }

    pub(crate) fn file_with_mode(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.files.push((path.into(), content.into(), mode));
        self
    }

    /// RECORD as somebody else would have written it; `None` leaves it out.
    pub(crate) fn record(mut self, edit: impl Fn(String) -> Option<String> + 'static) -> Self {
        self.record = Box::new(edit);
        self
    }

    pub(crate) fn filename(&self) -> String {
        format!("{}-{}-py3-none-any.whl", self.name, self.version)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let mut record = String::new();
        for (path, content, mode) in &self.files {
            // Small files as they are, so that a test can find and damage them.
            let method =
                if content.len() < 100 { CompressionMethod::Stored } else { CompressionMethod::Deflated };
            let options = SimpleFileOptions::default().unix_permissions(*mode).compression_method(method);
            zip.start_file(path, options).unwrap();
            zip.write_all(content).unwrap();
            let hash = URL_SAFE_NO_PAD.encode(Sha256::of(content).as_bytes());
            writeln!(record, "{path},sha256={hash},{}", content.len()).unwrap();
        }
        let path = format!("{}-{}.dist-info/RECORD", self.name, self.version);
        writeln!(record, "{path},,").unwrap();
        if let Some(record) = (self.record)(record) {
            zip.start_file(path, SimpleFileOptions::default()).unwrap();
            zip.write_all(record.as_bytes()).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// Writes the wheel into `dir`; gives what a lock says of it.
    pub(crate) fn save(&self, dir: &Path) -> LockedWheel {
        self.save_bytes(dir, &self.bytes())
    }

    /// The same with other bytes than its own.
    pub(crate) fn save_bytes(&self, dir: &Path, bytes: &[u8]) -> LockedWheel {
        let path = dir.join(self.filename());
        std::fs::write(&path, bytes).unwrap();
        LockedWheel {
            name: DistName::parse(&self.name).unwrap(),
            version: self.version.clone(),
            filename: self.filename(),
            location: Location::Path(path),
            sha256: Sha256::of(bytes),
            size: Some(bytes.len() as u64),
        }
    }
}

/// Renames an entry in a finished archive to a name of the same length, which a library would refuse to
/// write.
pub(crate) fn rename(mut archive: Vec<u8>, from: &str, to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while let Some(found) = find(&archive[at..], from.as_bytes()) {
        archive[at + found..at + found + to.len()].copy_from_slice(to);
        at += found + to.len();
    }
    archive
}

/// Overwrites a field of an entry's central header; offsets are those of the zip specification, 4.3.12.
pub(crate) fn patch(mut archive: Vec<u8>, entry: &str, field: usize, value: &[u8]) -> Vec<u8> {
    let mut at = 0;
    while let Some(found) = find(&archive[at..], b"PK\x01\x02") {
        let header = at + found;
        if archive[header + 46..].starts_with(entry.as_bytes()) {
            archive[header + field..header + field + value.len()].copy_from_slice(value);
            return archive;
        }
        at = header + 4;
    }
    panic!("no entry {entry}");
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
