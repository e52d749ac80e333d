//! Debian packages, unpacked without running anything of theirs. deb(5).

use std::io::Read;

use anyhow::{Context, Result, bail};

use super::fetch::Cache;
use super::lock::{Deb, Lock};
use super::tree::Tree;

/// Adds the files of a package, in memory, to `tree`.
pub(crate) fn unpack(package: &[u8], tree: &mut Tree) -> Result<()> {
    let mut archive = ar::Archive::new(package);
    while let Some(member) = archive.next_entry() {
        let mut member = member.context("not a Debian package")?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(compression) = name.trim_end_matches('/').strip_prefix("data.tar") else { continue };
        let mut data = Vec::new();
        member.read_to_end(&mut data)?;
        return match compression {
            ".xz" => tree.add_tar(liblzma::read::XzDecoder::new(&data[..])),
            ".zst" => tree.add_tar(zstd::Decoder::new(&data[..])?),
            "" => tree.add_tar(&data[..]),
            other => bail!("the files are compressed as {other}, which is not known here"),
        };
    }
    bail!("not a Debian package: it has no files")
}

/// The files of all packages of a group.
pub(crate) fn unpack_group(lock: &Lock, group: &str, cache: &Cache) -> Result<Tree> {
    let mut tree = Tree::default();
    for deb in lock.group(group) {
        unpack(&cache.read(&deb.sha256)?, &mut tree).with_context(|| describe(deb))?;
    }
    Ok(tree)
}

fn describe(deb: &Deb) -> String {
    format!("failed to unpack {} {}", deb.name, deb.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, data: &[u8]) -> Vec<u8> {
        let mut builder = ar::Builder::new(Vec::new());
        let mut add = |name: &str, data: &[u8]| {
            builder.append(&ar::Header::new(name.into(), data.len() as u64), data).unwrap();
        };
        add("debian-binary", b"2.0\n");
        add("control.tar.xz", b"");
        add(name, data);
        builder.into_inner().unwrap()
    }

    #[test]
    fn every_compression_of_debs() {
        let mut files = Tree::default();
        files.file("usr/bin/true", 0o755, *b"ELF");
        let mut tar = Vec::new();
        files.write_tar(&mut tar, 0).unwrap();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&tar[..], 1).read_to_end(&mut xz).unwrap();
        let zst = zstd::encode_all(&tar[..], 1).unwrap();
        for (name, data) in [("data.tar", &tar), ("data.tar.xz", &xz), ("data.tar.zst", &zst)] {
            let mut tree = Tree::default();
            unpack(&package(name, data), &mut tree).unwrap();
            assert_eq!(tree.get("usr/bin/true"), Some(&b"ELF"[..]), "{name}");
        }
        assert!(unpack(&package("data.tar.lzma", &tar), &mut Tree::default()).is_err());
        assert!(unpack(&package("other", &tar), &mut Tree::default()).is_err());
        assert!(unpack(b"no archive", &mut Tree::default()).is_err());
    }
}
