//! Every kind of wheel that must not get in, and what is said about it.

use std::fs;

use sock_pkgcache::{Limits, Store};

use crate::wheel::{Wheel, patch, rename};
use crate::{chain, lock, python};

/// Installs one wheel into a new store; says why not. Whatever was wrong, nothing may be left of it.
fn refusal(wheel: &Wheel, bytes: &[u8], limits: Limits) -> String {
    let dir = tempfile::tempdir().unwrap();
    let locked = wheel.save_bytes(dir.path(), bytes);
    let root = dir.path().join("store");
    let store = Store::open(&root, limits).unwrap();
    let lock = lock([locked]);
    let error = store.install(&lock, &python(), &mut |_| {}).unwrap_err();
    for place in ["wheels", "tmp"] {
        assert_eq!(fs::read_dir(root.join(place)).unwrap().count(), 0, "{place} is not empty");
    }
    assert_eq!(store.view(&lock), None);
    let outside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(outside.len(), 2, "something was written outside the store: {outside:?}");
    chain(&error)
}

fn sound() -> Wheel {
    Wheel::new("evil", "1.0").file("evil/__init__.py", "x = 1\n").file("evil/PLACEHOLD.py", "y = 1\n")
}

/// The sound wheel with `evil/PLACEHOLD.py` (17 bytes) renamed in the archive.
fn named(name: &[u8]) -> String {
    let wheel = sound();
    refusal(&wheel, &rename(wheel.bytes(), "evil/PLACEHOLD.py", name), Limits::default())
}

#[test]
fn names_that_leave_the_directory() {
    let refusals = [
        named(b"../../../escape.x"),
        named(b"/etc/cron.d/x.py_"),
        named(b"evil/./dot/abc.py"),
        named(b"evil//double/x.py"),
        named(b"evil\\..\\windows.x"),
        named(b"evil/newline\n0.py"),
        named(b"evil/nul\0abcde.py"),
        named(b"evil/\xff\xfe\xfdabcdef.py"),
        named(b"evil/__init_.pyc/"),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn entries_that_are_no_plain_files() {
    let wheel = sound();
    let mode = |mode: u32| patch(wheel.bytes(), "evil/PLACEHOLD.py", 38, &(mode << 16).to_le_bytes());
    let refusals = [
        refusal(&wheel, &mode(0o120_777), Limits::default()),
        refusal(&wheel, &mode(0o020_666), Limits::default()),
        refusal(&wheel, &mode(0o010_666), Limits::default()),
        refusal(&wheel, &patch(wheel.bytes(), "evil/PLACEHOLD.py", 8, &[1, 0]), Limits::default()),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn one_place_taken_twice() {
    let twin = Wheel::new("evil", "1.0").file("evil/a1.py", "x").file("evil/a2.py", "y");
    let shadow = Wheel::new("evil", "1.0").file("evil/file", "x").file("evil/f_le/x.py", "y");
    let moved = Wheel::new("evil", "1.0").file("evil/a.py", "x").file("evil-1.0.data/purelib/evil/a.py", "y");
    let refusals = [
        refusal(&twin, &rename(twin.bytes(), "evil/a2.py", b"evil/a1.py"), Limits::default()),
        refusal(&shadow, &rename(shadow.bytes(), "evil/f_le/x.py", b"evil/file/x.py"), Limits::default()),
        refusal(&moved, &moved.bytes(), Limits::default()),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

#[test]
fn a_record_that_does_not_hold() {
    let edited = |edit: fn(String) -> Option<String>| {
        let wheel = sound().record(edit);
        refusal(&wheel, &wheel.bytes(), Limits::default())
    };
    let without = |text: &str, part: &str| -> String {
        text.lines().filter(|line| !line.contains(part)).map(|line| format!("{line}\n")).collect()
    };
    let unlisted = sound().record(move |text| Some(without(&text, "PLACEHOLD")));
    let refusals = [
        edited(|_| None),
        refusal(&unlisted, &unlisted.bytes(), Limits::default()),
        edited(|text| Some(text + "evil/missing.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n")),
        edited(|text| Some(swap_hashes(&text))),
        edited(|text| Some(text.replace(",6\n", ",7\n"))),
        edited(|text| Some(text.replace("sha256=", "md5="))),
        edited(|text| Some(text + "evil/PLACEHOLD.py,,\n")),
        edited(|text| Some(without_hash(&text))),
        edited(|_| Some("\u{0}\"".into())),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}

/// Gives every file the hash of another: each is a valid hash, of the wrong content.
fn swap_hashes(text: &str) -> String {
    let hashes: Vec<_> = text.lines().map(|line| line.split(',').nth(1).unwrap()).collect();
    text.replace(hashes[3], hashes[2])
}

fn without_hash(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(',') {
        Some((path, _)) if path.contains("PLACEHOLD") => format!("{path},,\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

#[test]
fn archives_made_to_fill_a_disk() {
    let bomb = Wheel::new("evil", "1.0").file("evil/zeros.bin", vec![0; 40 << 20]);
    let bytes = bomb.bytes();
    assert!(bytes.len() < 100 << 10, "{}", bytes.len());
    let many = (0..200).fold(Wheel::new("evil", "1.0"), |wheel, n| wheel.file(&format!("evil/{n}"), "x"));
    let deep = Wheel::new("evil", "1.0").file(&format!("{}x", "d/".repeat(100)), "x");
    let nested = (0..5).fold(Wheel::new("evil", "1.0"), |wheel, n| {
        wheel.file(&format!("evil/{n}/{}x", "d/".repeat(30)), "x")
    });
    let long = Wheel::new("evil", "1.0").file(&"n".repeat(256), "x");
    let refusals = [
        refusal(&bomb, &bytes, Limits::default()),
        refusal(&bomb, &bytes, Limits { unpacked_bytes: 1 << 20, ..Limits::default() }),
        refusal(&bomb, &bytes, Limits { wheel_bytes: 1000, ..Limits::default() }),
        // The archive says ten bytes, and means forty million.
        refusal(&bomb, &patch(bytes.clone(), "evil/zeros.bin", 24, &10u32.to_le_bytes()), Limits::default()),
        refusal(&many, &many.bytes(), Limits { entries: 100, ..Limits::default() }),
        refusal(&nested, &nested.bytes(), Limits { entries: 100, ..Limits::default() }),
        refusal(&deep, &deep.bytes(), Limits::default()),
        refusal(&long, &long.bytes(), Limits::default()),
    ];
    let filters = vec![(r"/\S*/\.tmp\w+", "[dir]"), (r"d/d/[d/]*", "d/…/"), ("nn+", "n…")];
    insta::with_settings!({ filters => filters }, { insta::assert_snapshot!(refusals.join("\n")) });
}

#[test]
fn what_is_no_wheel_of_this_distribution() {
    let evil = Wheel::new("evil", "1.0");
    let other = Wheel::new("other", "1.0").file("other.py", "");
    let double = Wheel::new("evil", "1.0").file("other-2.0.dist-info/METADATA", "");
    let scheme = Wheel::new("evil", "1.0").file("evil-1.0.data/stdlib/os.py", "");
    let mut damaged = sound().bytes();
    let at = damaged.windows(5).position(|window| window == b"y = 1").unwrap();
    damaged[at] ^= 0xff;
    let refusals = [
        refusal(&evil, b"not a zip", Limits::default()),
        refusal(&evil, &sound().bytes()[..300], Limits::default()),
        refusal(&sound(), &damaged, Limits::default()),
        refusal(&evil, &other.bytes(), Limits::default()),
        refusal(&double, &double.bytes(), Limits::default()),
        refusal(&scheme, &scheme.bytes(), Limits::default()),
    ];
    insta::assert_snapshot!(refusals.join("\n"));
}
