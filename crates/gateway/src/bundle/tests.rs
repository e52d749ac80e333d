//! Bundles of every kind that somebody could send.

use std::error::Error;

use zip::write::{SimpleFileOptions, ZipWriter};

use super::*;

fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        let options = SimpleFileOptions::default();
        if name.ends_with('/') {
            writer.add_directory(*name, options).unwrap();
        } else {
            writer.start_file(*name, options).unwrap();
            writer.write_all(content).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

fn put(zip: &[u8]) -> (tempfile::TempDir, Result<Bundle, String>) {
    let dir = tempfile::tempdir().unwrap();
    let limits = BundleLimits { zip_bytes: 1 << 16, unpacked_bytes: 1 << 20, entries: 100, path_bytes: 1024 };
    let bundles = Bundles::open(dir.path().join("code"), limits).unwrap();
    let result = bundles.put(zip).map_err(|error| match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    });
    let left = fs::read_dir(dir.path().join("code")).unwrap().count();
    assert_eq!(left, if result.is_ok() { 2 } else { 0 }, "whole or not there");
    (dir, result)
}

#[test]
fn a_bundle_is_kept_once_under_its_hash() {
    let zip =
        zip_of(&[("a.py", b"A = 1\n"), ("pkg/", b""), ("pkg/b.py", b""), ("./requirements.txt", b"x==1\n")]);
    let (dir, bundle) = put(&zip);
    let bundle = bundle.unwrap();
    let code = dir.path().join("code");
    assert_eq!(fs::read(code.join(&bundle.sha256).join("a.py")).unwrap(), b"A = 1\n");
    let mode =
        |path: &str| fs::metadata(code.join(&bundle.sha256).join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a.py"), mode("pkg"), mode("")), (0o644, 0o755, 0o755));
    assert_eq!(fs::read(code.join(format!("{}.zip", bundle.sha256))).unwrap(), zip);

    fs::create_dir(code.join(".new-crash")).unwrap();
    let again = Bundles::open(code.clone(), BundleLimits::default()).unwrap();
    assert!(!code.join(".new-crash").exists());
    assert_eq!(again.put(&zip).unwrap(), bundle);
    assert_eq!(again.requirements(&bundle.sha256).unwrap().as_deref(), Some("x==1\n"));
    again.keep_only(&BTreeSet::from([bundle.sha256.clone()])).unwrap();
    assert_eq!(fs::read_dir(&code).unwrap().count(), 2);
    again.keep_only(&BTreeSet::new()).unwrap();
    assert_eq!(fs::read_dir(&code).unwrap().count(), 0);
}

#[test]
fn hostile_bundles_are_refused_by_name() {
    let mut said = Vec::new();
    let mut refuse = |what: &str, zip: Vec<u8>| {
        let (_dir, result) = put(&zip);
        said.push(format!("{what}: {}", result.expect_err(what)));
    };
    refuse("no zip", b"hello".to_vec());
    refuse("a byte too many", vec![b'P'; (1 << 16) + 1]);
    refuse("empty", zip_of(&[]));
    refuse("only directories", zip_of(&[("a/", b"")]));
    refuse("traversal", zip_of(&[("../x.py", b"")]));
    refuse("inner traversal", zip_of(&[("a/../../x.py", b"")]));
    refuse("absolute", zip_of(&[("/etc/cron.d/x", b"")]));
    refuse("backslash", zip_of(&[("a\\x.py", b"")]));
    refuse("control", zip_of(&[("a\nx.py", b"")]));
    refuse("long", zip_of(&[(&"a".repeat(300), b"")]));
    refuse("file and directory", zip_of(&[("a", b""), ("a/b", b"")]));
    let bomb = zip_of(&[("zero", &vec![0; 2 << 20])]);
    refuse("bomb", bomb.clone());
    // Its central header says ten bytes; zip specification, 4.3.12.
    let mut lying = bomb;
    let header = (0..lying.len()).find(|at| lying[*at..].starts_with(b"PK\x01\x02")).unwrap();
    lying[header + 24..header + 28].copy_from_slice(&10_u32.to_le_bytes());
    refuse("a bomb that lies", lying);
    refuse("same after normalising", zip_of(&[("a.py", b""), ("./a.py", b"")]));
    let names: Vec<String> = (0..101).map(|n| format!("f{n}")).collect();
    refuse("entries", zip_of(&names.iter().map(|name| (name.as_str(), &b""[..])).collect::<Vec<_>>()));
    let deep: Vec<String> = (0..5).map(|n| format!("{n}/{}x", "d/".repeat(30))).collect();
    refuse("directories", zip_of(&deep.iter().map(|name| (name.as_str(), &b""[..])).collect::<Vec<_>>()));
    let noise: Vec<u8> = (0..200u64).flat_map(|n| Sha256::digest(n.to_le_bytes())).collect();
    let mut shared = zip_of(&[("one.py", &noise), ("two.py", b"2")]);
    let heads: Vec<usize> = (0..shared.len()).filter(|at| shared[*at..].starts_with(b"PK\x01\x02")).collect();
    // Method, checksum and sizes; the place of the content.
    for field in [10..28, 42..46] {
        shared.copy_within(heads[0] + field.start..heads[0] + field.end, heads[1] + field.start);
    }
    refuse("overlapping", shared);
    let mut twice = zip_of(&[("one.py", b"1"), ("two.py", b"2")]);
    let places: Vec<usize> = (0..twice.len() - 6).filter(|at| twice[*at..].starts_with(b"two.py")).collect();
    places.into_iter().for_each(|at| twice[at..at + 3].copy_from_slice(b"one"));
    refuse("duplicate", twice);
    let mut link = ZipWriter::new(Cursor::new(Vec::new()));
    link.add_symlink("a.py", "/etc/shadow", SimpleFileOptions::default()).unwrap();
    refuse("symlink", link.finish().unwrap().into_inner());
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut broken = ZipWriter::new(Cursor::new(Vec::new()));
    broken.start_file("a.py", stored).unwrap();
    broken.write_all(b"content").unwrap();
    let mut broken = broken.finish().unwrap().into_inner();
    let at = (0..broken.len()).find(|at| broken[*at..].starts_with(b"content")).unwrap();
    broken[at] = b'C';
    refuse("broken content", broken);
    insta::assert_snapshot!(said.join("\n"));
}
