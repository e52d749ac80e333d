//! What a machine has beyond its packages' files: what their scripts would have done, had they been run.

use anyhow::{Context, Result};

use super::image;
use super::tree::Tree;

const DIRECTORIES: [(&str, u32); 12] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("root", 0o700),
    ("mnt", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("var/tmp", 0o1777),
    ("var/lib", 0o755),
    ("usr/local/bin", 0o755),
];

const FILES: [(&str, &str); 5] = [
    ("etc/hostname", "vm\n"),
    ("etc/hosts", "127.0.0.1 localhost vm\n::1 localhost\n"),
    ("etc/machine-id", "50000000000000000000000000000000\n"),
    // QEMU's, where the machine has a network.
    ("etc/resolv.conf", "nameserver 10.0.2.3\n"),
    // Whoever logs in at the console has no password to give.
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
];

/// Turns the files of packages into those of a machine.
pub(crate) fn finish(tree: &mut Tree, wanted: &image::Root) -> Result<()> {
    // The merged directories, base-files' job.
    for name in ["bin", "sbin", "lib", "lib64"] {
        tree.link(name, &format!("usr/{name}"));
    }
    for (path, mode) in DIRECTORIES {
        tree.directory(path, mode);
    }
    for (path, text) in FILES {
        tree.file(path, 0o644, text.as_bytes());
    }
    for (path, from) in &wanted.copy {
        let contents = tree.get(from).with_context(|| format!("no package holds {from}"))?.to_vec();
        tree.file(path, 0o644, contents);
    }
    // Alternatives.
    for (path, to) in &wanted.links {
        tree.link(path, to);
    }
    tree.file("etc/ssl/certs/ca-certificates.crt", 0o644, certificates(tree));
    for path in &wanted.leave_out {
        tree.leave_out(path);
    }
    Ok(())
}

/// The roots of ca-certificates as one file, in their order.
fn certificates(tree: &Tree) -> Vec<u8> {
    let paths =
        tree.paths().filter(|path| path.starts_with("usr/share/ca-certificates/") && path.ends_with(".crt"));
    let mut all = Vec::new();
    for contents in paths.filter_map(|path| tree.get(path)) {
        all.extend_from_slice(contents);
        if !contents.ends_with(b"\n") {
            all.push(b'\n');
        }
    }
    all
}
