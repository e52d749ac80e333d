//! The store as others meet it: its tree on disk, its modes, two installs at once, what a crash leaves,
//! eviction.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use sock_pkgcache::{Limits, Lock, Progress, Store, View};

use crate::wheel::Wheel;
use crate::{chain, lock, python};

fn package() -> Wheel {
    Wheel::new("Some_Pkg", "2.0")
        .file("some_pkg/__init__.py", "from some_pkg.core import answer\n")
        .file("some_pkg/core.py", "answer = 42\n")
        .file("some_pkg/template.py", "{% not python %}\n")
        .file_with_mode("some_pkg/bin/tool", "#!/bin/sh\n", 0o4755)
        .file("some_pkg.pth", "import os; os.abort()\n")
        .file("Some_Pkg-2.0.data/purelib/some_extra/mod.py", "")
        .file("Some_Pkg-2.0.data/platlib/native.so", "\u{7f}ELF")
        .file_with_mode("Some_Pkg-2.0.data/scripts/some-tool", "#!python\n", 0o755)
        .file("Some_Pkg-2.0.data/data/share/doc.txt", "doc")
        .file("Some_Pkg-2.0.data/headers/some.h", "")
}

fn install(store: &Store, lock: &Lock) -> View {
    store.install(lock, &python(), &mut |_| {}).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// Every path beneath `dir` with its mode, sorted.
fn tree(dir: &Path) -> BTreeMap<String, u32> {
    fn walk(dir: &Path, base: &Path, found: &mut BTreeMap<String, u32>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let name = entry.path().strip_prefix(base).unwrap().to_str().unwrap().to_string();
            found.insert(name, meta.permissions().mode() & 0o7777);
            if meta.is_dir() {
                walk(&entry.path(), base, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut found);
    found
}

#[test]
fn the_tree_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = Store::open(&root, Limits::default()).unwrap();
    install(&store, &lock([package().save(dir.path())]));
    let lines: Vec<_> = tree(&root).into_iter().map(|(path, mode)| format!("{mode:04o} {path}")).collect();
    let filters = vec![("[0-9a-f]{64}-cp3[0-9]+-", "<sha256>-<tag>-"), ("cpython-3[0-9]+", "cpython-<xy>")];
    insta::with_settings!({ filters => filters }, { insta::assert_snapshot!(lines.join("\n")) });
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_view_says_what_can_be_imported_and_python_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Limits::default()).unwrap();
    let other = Wheel::new("other", "1").file("other.py", "");
    let lock = lock([package().save(dir.path()), other.save(dir.path())]);
    assert_eq!(store.view(&lock), None);
    let view = install(&store, &lock);
    assert_eq!(store.view(&lock), Some(view.clone()));
    assert_eq!(view.id, lock.id());
    let names: Vec<_> = view.top_level().into_iter().collect();
    assert_eq!(names, ["native", "other", "some_extra", "some_pkg"]);
    assert_eq!(view.provider("some_pkg.core").unwrap().name.as_str(), "some-pkg");
    assert!(view.provider("some_pkg.nope").is_none());

    let sites: Vec<_> = view.entries.iter().map(|entry| store.root().join(&entry.dir)).collect();
    let code = "import some_pkg, some_extra.mod, other, sys; print(some_pkg.answer, some_pkg.__cached__ is not None)";
    let python = Command::new(&python().path)
        .args(["-S", "-s", "-v", "-c", code])
        .env("PYTHONPATH", std::env::join_paths(sites).unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&python.stdout), "42 True\n");
    let log = String::from_utf8_lossy(&python.stderr);
    assert!(log.contains("code object from") && !log.contains("wrote"), "{log}");
    let compiled = log.lines().filter(|line| line.contains("matches") && line.contains("some_pkg")).count();
    assert_eq!(compiled, 2, "bytecode was not taken: {log}");
}

#[test]
fn a_view_survives_json() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Limits::default()).unwrap();
    let view = install(&store, &lock([package().save(dir.path())]));
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<View>(&text).unwrap(), view);
}

#[test]
fn two_installs_of_one_wheel_meet() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let big = (0..120).fold(Wheel::new("big", "1"), |w, n| w.file(&format!("big/m{n}.py"), "x = 1\n"));
    let lock = lock([package().save(dir.path()), big.save(dir.path())]);
    let start = Barrier::new(4);
    let downloads: u64 = thread::scope(|scope| {
        let running: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    // Each with a store of its own, as another process would have; opening one sweeps.
                    start.wait();
                    let store = Store::open(&root, Limits::default()).unwrap();
                    let mut received = 0;
                    store
                        .install(&lock, &python(), &mut |step| {
                            if let Progress::Received { bytes } = step {
                                received += bytes;
                            }
                        })
                        .unwrap_or_else(|error| panic!("{}", chain(&error)));
                    received
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let once: u64 = lock.packages.iter().filter_map(|wheel| wheel.size).sum();
    assert_eq!(downloads, once, "a wheel was fetched twice");
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_crash_leaves_nothing_that_counts() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = Store::open(&root, Limits::default()).unwrap();
    let lock = lock([package().save(dir.path())]);
    let view = install(&store, &lock);
    let wheel = root.join(view.entries[0].dir.parent().unwrap());
    let key = wheel.file_name().unwrap();
    // Killed just before the rename: everything is there, sealed, in tmp.
    fs::create_dir(root.join("tmp").join(key)).unwrap();
    fs::rename(&wheel, root.join("tmp").join(key).join("out")).unwrap();
    assert_eq!(store.view(&lock), None);
    let store = Store::open(&root, Limits::default()).unwrap();
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert_eq!(install(&store, &lock), view);
    // Damaged afterwards: its facts are gone, so it is nobody's, and is made again.
    fs::remove_file(wheel.join("meta.json")).unwrap();
    assert_eq!(store.view(&lock), None);
    assert_eq!(install(&store, &lock), view);
}

#[test]
fn an_unfinished_wheel_of_a_living_process_is_not_swept() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    Store::open(&root, Limits::default()).unwrap();
    fs::create_dir(root.join("tmp/key")).unwrap();
    let held = fs::File::create(root.join("locks/key")).unwrap();
    held.lock().unwrap();
    Store::open(&root, Limits::default()).unwrap();
    assert!(root.join("tmp/key").is_dir());
    drop(held);
    Store::open(&root, Limits::default()).unwrap();
    assert!(!root.join("tmp/key").exists());
}

#[test]
fn one_bad_wheel_fails_the_lock_and_keeps_the_good_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Limits { parallel: 1, ..Limits::default() }).unwrap();
    let big = Wheel::new("big", "1")
        .file("big.py", "x = 1\n".repeat(1000))
        .file("pad.txt", "0123456789".repeat(99));
    let good = big.save(dir.path());
    let bad = Wheel::new("bad", "1").save_bytes(dir.path(), b"no");
    let error = store.install(&lock([good.clone(), bad]), &python(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().ends_with("failed to install bad-1-py3-none-any.whl"), "{error}");
    assert!(store.view(&lock([good])).is_some());
}

#[test]
fn a_lock_for_another_interpreter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Limits::default()).unwrap();
    let error = store.install(&Lock::new("cp26", vec![]).unwrap(), &python(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().starts_with("the lock is for cp26 and the interpreter is cp3"), "{error}");
}

#[test]
fn nothing_that_a_lock_names_is_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Limits::default()).unwrap();
    let locks: Vec<_> = ["a", "b", "c"]
        .map(|name| lock([Wheel::new(name, "1").file(&format!("{name}.py"), "x = 1\n").save(dir.path())]))
        .into();
    let views: Vec<_> = locks.iter().map(|lock| install(&store, lock)).collect();
    let facts = |view: &View| store.root().join(&view.entries[0].dir).parent().unwrap().join("meta.json");
    let day = |n: u64| std::time::UNIX_EPOCH + std::time::Duration::from_secs(n * 86_400);
    for (view, used) in views.iter().zip([day(3), day(2), day(4)]) {
        fs::File::open(facts(view)).unwrap().set_modified(used).unwrap();
    }
    let all = store.collect(&locks, 0).unwrap();
    assert_eq!((all.removed, all.freed), (0, 0), "everything is needed");
    // b is the oldest; c is needed and younger than a.
    let one = store.collect([&locks[2]], all.kept - 1).unwrap();
    assert_eq!(one.removed, 1);
    assert!(store.view(&locks[1]).is_none() && store.view(&locks[0]).is_some());
    let rest = store.collect([&locks[2]], 0).unwrap();
    assert_eq!(rest.removed, 1);
    assert!(store.view(&locks[0]).is_none() && store.view(&locks[2]).is_some());
    assert_eq!(install(&store, &locks[0]), views[0]);
}
