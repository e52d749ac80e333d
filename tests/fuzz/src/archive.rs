//! Archives for the targets that unpack them.
//!
//! Bytes that begin as a zip file does are one. Of a mutated archive hardly more than its headers can be reached, though: a
//! checksum stops every other change. So all other bytes describe an archive, which is written here with checksums and a
//! RECORD that hold:
//!
//! ```text
//! entry: flags, length of the name, name, how often the content is repeated, length of the content, content
//! ```

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// Where the RECORD of a described archive is, unless it has one of its own.
const RECORD: &str = "x-1.dist-info/RECORD";

const DIRECTORY: u8 = 1;
const SYMLINK: u8 = 2;
const EXECUTABLE: u8 = 4;
const DEFLATED: u8 = 8;
const UNLISTED: u8 = 16;
const WRONG_CHECKSUM: u8 = 32;
const OTHER_LOCAL_NAME: u8 = 64;
const NO_MODE: u8 = 128;

/// Beyond the bounds that the targets set, and not far.
const MAX_ENTRIES: usize = 40;

struct Entry {
    flags: u8,
    name: Vec<u8>,
    content: Vec<u8>,
}

/// The archive that `bytes` are, or describe.
pub fn of(bytes: &[u8]) -> Vec<u8> {
    if bytes.starts_with(b"PK") {
        return bytes.to_vec();
    }
    let mut entries = described(bytes);
    if entries.iter().all(|entry| entry.name != RECORD.as_bytes()) {
        let content = record(&entries);
        entries.push(Entry { flags: 0, name: RECORD.into(), content });
    }
    write(&entries)
}

fn described(mut bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while entries.len() < MAX_ENTRIES
        && let [flags, length, rest @ ..] = bytes
    {
        let (name, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let (times, rest) = rest.split_first().map_or((0, rest), |(times, rest)| (*times, rest));
        let (length, rest) = rest.split_first().map_or((0, rest), |(length, rest)| (*length, rest));
        let (content, rest) = rest.split_at(usize::from(length).min(rest.len()));
        let content = content.repeat(usize::from(times % 64) + 1);
        entries.push(Entry { flags: *flags, name: name.to_vec(), content });
        bytes = rest;
    }
    entries
}

fn record(entries: &[Entry]) -> Vec<u8> {
    let mut text = format!("{RECORD},,\n").into_bytes();
    for Entry { flags, name, content } in entries {
        if flags & UNLISTED == 0 && !name.ends_with(b"/") {
            let quoted = String::from_utf8_lossy(name).replace('"', "\"\"");
            let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(content));
            text.extend(format!("\"{quoted}\",sha256={hash},{}\n", content.len()).into_bytes());
        }
    }
    text
}

/// A zip file; see its specification, 4.3. Its libraries refuse to write most of what matters here.
fn write(entries: &[Entry]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for Entry { flags, name, content } in entries {
        let offset = archive.len() as u32;
        let checksum = crc32(content) ^ u32::from(flags & WRONG_CHECKSUM != 0);
        let (method, packed) =
            if flags & DEFLATED != 0 { (8u16, deflated(content)) } else { (0, content.clone()) };
        let kind = match flags & (DIRECTORY | SYMLINK) {
            0 => 0o100_644,
            DIRECTORY => 0o040_755,
            _ => 0o120_777,
        };
        let executable = if flags & EXECUTABLE != 0 { 0o111 } else { 0 };
        let mode: u32 = if flags & NO_MODE != 0 { 0 } else { kind | executable };

        // Version needed, flags, method, time, date; checksum, sizes; length of the name, of what follows it.
        let mut common = Vec::new();
        common.extend([20u16, 0, method, 0, 33].map(u16::to_le_bytes).concat());
        common.extend([checksum, packed.len() as u32, content.len() as u32].map(u32::to_le_bytes).concat());
        common.extend([name.len() as u16, 0].map(u16::to_le_bytes).concat());

        let mut local = name.clone();
        if let (true, Some(byte)) = (flags & OTHER_LOCAL_NAME != 0, local.first_mut()) {
            *byte ^= 1;
        }
        archive.extend([&b"PK\x03\x04"[..], &common, &local, &packed].concat());
        // Made on Unix; no comment, first disk, no internal attributes.
        directory.extend([&b"PK\x01\x02\x14\x03"[..], &common, &[0; 6]].concat());
        directory.extend([mode << 16, offset].map(u32::to_le_bytes).concat());
        directory.extend(name);
    }
    let (count, size, start) = (entries.len() as u16, directory.len() as u32, archive.len() as u32);
    archive.extend(directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend([count, count].map(u16::to_le_bytes).concat());
    archive.extend([size, start].map(u32::to_le_bytes).concat());
    archive.extend([0, 0]);
    archive
}

/// In blocks that are not packed (RFC 1951, 3.2.4).
fn deflated(content: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    for block in content.chunks(0xffff) {
        let length = block.len() as u16;
        packed.push(0);
        packed.extend([length, !length].map(u16::to_le_bytes).concat());
        packed.extend(block);
    }
    packed.extend([1, 0, 0, 0xff, 0xff]);
    packed
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)))
    })
}
