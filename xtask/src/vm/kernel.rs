//! A kernel and the small file system that it starts with: our init and the modules that it loads, in their order.
//!
//! No depmod: a module says itself what it needs, in its `.modinfo` section. modinfo(8), modprobe.d(5).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use anyhow::{Context, Result, bail};

use super::tree::Tree;

/// The files of a kernel's package that matter.
pub(crate) struct Kernel {
    /// What QEMU loads.
    pub(crate) vmlinuz: Vec<u8>,
    /// By name, with underscores: compressed as they are in the package.
    modules: BTreeMap<String, (String, Vec<u8>)>,
    builtin: BTreeSet<String>,
}

impl Kernel {
    pub(crate) fn of(package: &Tree) -> Result<Self> {
        let (mut vmlinuz, mut modules, mut builtin) = (None, BTreeMap::new(), BTreeSet::new());
        for path in package.paths() {
            let Some(contents) = package.get(path) else { continue };
            let file = path.rsplit('/').next().unwrap_or_default();
            if path.starts_with("boot/vmlinuz-") {
                vmlinuz = Some(contents.to_vec());
            } else if file == "modules.builtin" {
                let text = String::from_utf8_lossy(contents).into_owned();
                builtin.extend(text.lines().filter_map(|line| name_of(line.rsplit('/').next()?)));
            } else if let Some(name) = name_of(file) {
                modules.insert(name, (file.to_owned(), contents.to_vec()));
            }
        }
        Ok(Self { vmlinuz: vmlinuz.context("the package holds no kernel")?, modules, builtin })
    }

    /// The modules `wanted` with what they need, each after what it needs: name and contents.
    pub(crate) fn ordered(&self, wanted: &[String]) -> Result<Vec<(String, Vec<u8>)>> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for name in wanted {
            self.add(name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let (file, contents) =
            self.modules.get(&name).with_context(|| format!("there is no module {name}"))?;
        let mut module = Vec::new();
        if file.ends_with(".xz") {
            liblzma::read::XzDecoder::new(&contents[..]).read_to_end(&mut module)?;
        } else {
            module.clone_from(contents);
        }
        for (needed, must) in needs(&module) {
            // A wish may name an algorithm rather than a module.
            if must || self.modules.contains_key(&needed.replace('-', "_")) {
                self.add(&needed, seen, order)?;
            }
        }
        order.push((name, module));
        Ok(())
    }
}

fn name_of(file: &str) -> Option<String> {
    let name = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// What is loaded before a module: its dependencies, without which it cannot be, and what it would like to find.
fn needs(module: &[u8]) -> Vec<(String, bool)> {
    let fields = module.split(|byte| *byte == 0);
    let mut names = Vec::new();
    for text in fields.filter_map(|field| std::str::from_utf8(field).ok()) {
        let (list, separator, must) =
            match (text.strip_prefix("depends="), text.strip_prefix("softdep=pre: ")) {
                (Some(list), _) => (list, ',', true),
                (_, Some(list)) => (list, ' ', false),
                _ => continue,
            };
        let of_list = list.split(separator).filter(|name| !name.is_empty());
        names.extend(of_list.map(|name| (name.to_owned(), must)));
    }
    names
}

/// The archive that the kernel unpacks: `/init`, `/modules` in the order of their names, and places to mount on.
pub(crate) fn initrd(init: &[u8], modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const FILE: u32 = 0o100_644;
    if modules.len() > 999 {
        bail!("{} modules are more than their names have digits for", modules.len());
    }
    let mut out = Vec::new();
    let mut inode = 0;
    let mut add = |name: &str, mode: u32, contents: &[u8]| -> Result<()> {
        inode += 1;
        let entry = cpio::newc::Builder::new(name).ino(inode).mode(mode).nlink(1);
        let mut writer = entry.write(&mut out, u32::try_from(contents.len())?);
        std::io::Write::write_all(&mut writer, contents)?;
        writer.finish()?;
        Ok(())
    };
    for name in ["dev", "proc", "sys", "image", "over", "root", "modules"] {
        add(name, DIRECTORY, b"")?;
    }
    add("init", PROGRAM, init)?;
    for (number, (name, contents)) in modules.iter().enumerate() {
        add(&format!("modules/{number:03}-{name}.ko"), FILE, contents)?;
    }
    cpio::newc::trailer(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(text: &str) -> Vec<u8> {
        format!("ELF\0license=GPL\0{text}\0name=x\0").into_bytes()
    }

    fn kernel() -> Kernel {
        let mut package = Tree::default();
        package.file("boot/vmlinuz-6.99", 0o644, *b"kernel");
        let at = "usr/lib/modules/6.99";
        package.file(&format!("{at}/modules.builtin"), 0o644, *b"kernel/lib/crc32c.ko\n");
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&module("depends=jbd-2,crc32c")[..], 1).read_to_end(&mut xz).unwrap();
        package.file(&format!("{at}/kernel/fs/ext4.ko.xz"), 0o644, xz);
        package.file(&format!("{at}/kernel/fs/jbd-2.ko"), 0o644, module("softdep=pre: crypto-x crc16"));
        package.file(&format!("{at}/kernel/crypto-x.ko"), 0o644, module("depends="));
        package.file(&format!("{at}/kernel/broken.ko"), 0o644, module("depends=gone"));
        Kernel::of(&package).unwrap()
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let kernel = kernel();
        assert_eq!(kernel.vmlinuz, b"kernel");
        let order = kernel.ordered(&["ext4".into(), "jbd_2".into(), "crc32c".into()]).unwrap();
        let names: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["crypto_x", "jbd_2", "ext4"]);
        assert!(order.iter().all(|(_, contents)| contents.starts_with(b"ELF")));
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = kernel().ordered(&["broken".into()]).unwrap_err();
        assert_eq!(error.to_string(), "there is no module gone");
    }

    #[test]
    fn the_archive_holds_them_in_order() {
        let modules = [("b".to_owned(), vec![1]), ("a".to_owned(), vec![2, 3])];
        let archive = initrd(b"init", &modules).unwrap();
        let mut names = Vec::new();
        let mut rest = &archive[..];
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
        assert_eq!(names[7..], ["init", "modules/000-b.ko", "modules/001-a.ko"]);
        assert_eq!(archive, initrd(b"init", &modules).unwrap());
    }
}
