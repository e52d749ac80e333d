//! A file system in memory: what packages hold, and the archive that is made of it, the same bytes for the same files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};

/// Directories that are links into `/usr` on today's systems.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// By path, without a leading slash; a parent comes before what is in it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Directory,
    File(Rc<[u8]>),
    Link(String),
}

impl Tree {
    /// Puts a file of root's.
    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: impl Into<Rc<[u8]>>) {
        self.put(path, Entry { mode, owner: (0, 0), kind: Kind::File(contents.into()) });
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.put(path, Entry { mode, owner: (0, 0), kind: Kind::Directory });
    }

    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.put(path, Entry { mode: 0o777, owner: (0, 0), kind: Kind::Link(to.to_owned()) });
    }

    fn put(&mut self, path: &str, entry: Entry) {
        let mut parent = path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            let directory = Entry { mode: 0o755, owner: (0, 0), kind: Kind::Directory };
            self.entries.entry(above.to_owned()).or_insert(directory);
            parent = above;
        }
        self.entries.insert(path.to_owned(), entry);
    }

    pub(crate) fn get(&self, path: &str) -> Option<&[u8]> {
        match &self.entries.get(path)?.kind {
            Kind::File(contents) => Some(contents),
            _ => None,
        }
    }

    /// Paths, in order.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Removes a directory and what is in it, or a file.
    pub(crate) fn leave_out(&mut self, path: &str) {
        let inside = format!("{path}/");
        self.entries.retain(|one, _| one != path && !one.starts_with(&inside));
    }

    /// Adds what a tar archive holds; names may begin with `./`, and `/bin` and the like are where they really are.
    pub(crate) fn add_tar(&mut self, archive: impl Read) -> Result<()> {
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.to_string_lossy().into_owned();
            let Some(path) = place(&name)? else { continue };
            let header = entry.header().clone();
            let kind = match header.entry_type() {
                tar::EntryType::Directory => {
                    if self.entries.contains_key(&path) {
                        continue;
                    }
                    Kind::Directory
                }
                tar::EntryType::Regular => {
                    let mut contents = Vec::new();
                    entry.read_to_end(&mut contents)?;
                    Kind::File(contents.into())
                }
                tar::EntryType::Symlink => {
                    let to = entry.link_name()?.context("a link without a target")?;
                    Kind::Link(to.to_string_lossy().into_owned())
                }
                tar::EntryType::Link => {
                    let to =
                        entry.link_name()?.context("a link without a target")?.to_string_lossy().into_owned();
                    let to = place(&to)?.with_context(|| format!("{name} is a link to nothing"))?;
                    self.entries.get(&to).with_context(|| format!("{name} is a link to {to}"))?.kind.clone()
                }
                other => bail!("{name} is of a kind that packages do not have: {other:?}"),
            };
            let mode = header.mode()? & 0o7777;
            self.put(&path, Entry { mode, owner: (header.uid()?, header.gid()?), kind });
        }
        Ok(())
    }

    /// Adds everything of another tree, beneath `directory`.
    pub(crate) fn add_tree(&mut self, other: &Self, directory: &str) {
        for (path, entry) in &other.entries {
            self.put(&format!("{directory}/{path}"), entry.clone());
        }
    }

    /// Writes everything beneath a directory of this machine, as the caller's.
    pub(crate) fn write_to(&self, root: &Path) -> Result<()> {
        for (path, entry) in &self.entries {
            let path = root.join(path);
            let failed = || format!("failed to write {}", path.display());
            match &entry.kind {
                Kind::Directory => fs::create_dir_all(&path).with_context(failed)?,
                Kind::Link(to) => symlink(to, &path).with_context(failed)?,
                Kind::File(contents) => {
                    fs::write(&path, contents).with_context(failed)?;
                    // Whoever builds has to be able to read it again.
                    let mode = fs::Permissions::from_mode((entry.mode & 0o777) | 0o600);
                    fs::set_permissions(&path, mode).with_context(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Writes a tar archive: sorted, of one time, without names of users.
    pub(crate) fn write_tar(&self, out: impl Write, epoch: u64) -> Result<()> {
        let mut builder = tar::Builder::new(out);
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_uid(entry.owner.0);
            header.set_gid(entry.owner.1);
            header.set_mtime(epoch);
            header.set_size(0);
            match &entry.kind {
                Kind::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Kind::Link(to) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, path, to)?;
                }
                Kind::File(contents) => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_size(contents.len() as u64);
                    builder.append_data(&mut header, path, &contents[..])?;
                }
            }
        }
        builder.into_inner()?.flush()?;
        Ok(())
    }
}

/// Where an entry belongs: nothing for the root and for the links that stand for merged directories.
fn place(name: &str) -> Result<Option<String>> {
    let name = name.trim_start_matches("./").trim_end_matches('/');
    if name.is_empty() || name == "." || MERGED.contains(&name) {
        return Ok(None);
    }
    if name.starts_with('/') || name.split('/').any(|part| part == "..") {
        bail!("a package holds {name}");
    }
    let top = name.split('/').next().unwrap_or_default();
    Ok(Some(if MERGED.contains(&top) { format!("usr/{name}") } else { name.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        tree.write_tar(&mut bytes, 7).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read_again_in_any_order() {
        let (mut one, mut other) = (Tree::default(), Tree::default());
        one.file("usr/bin/sh", 0o755, *b"#!");
        one.link("bin", "usr/bin");
        one.directory("tmp", 0o1777);
        other.directory("tmp", 0o1777);
        other.link("bin", "usr/bin");
        other.file("usr/bin/sh", 0o755, *b"#!");
        assert_eq!(tar_of(&one), tar_of(&other));
        let mut again = Tree::default();
        again.add_tar(&tar_of(&one)[..]).unwrap();
        assert_eq!(again.get("usr/bin/sh"), Some(&b"#!"[..]));
        assert_eq!(again.paths().collect::<Vec<_>>(), ["tmp", "usr", "usr/bin", "usr/bin/sh"]);
    }

    #[test]
    fn merged_directories_are_in_usr() {
        assert_eq!(
            place("./lib/x86_64-linux-gnu/libc.so.6").unwrap().unwrap(),
            "usr/lib/x86_64-linux-gnu/libc.so.6"
        );
        assert_eq!(place("./bin/").unwrap(), None);
        assert!(place("./../etc/passwd").is_err());
        assert!(place("/etc/passwd").is_err());
    }

    #[test]
    fn leaving_out_is_by_whole_names() {
        let mut tree = Tree::default();
        tree.file("usr/share/doc/x", 0o644, *b"");
        tree.file("usr/share/docs", 0o644, *b"");
        tree.leave_out("usr/share/doc");
        assert_eq!(tree.paths().collect::<Vec<_>>(), ["usr", "usr/share", "usr/share/docs"]);
    }
}
