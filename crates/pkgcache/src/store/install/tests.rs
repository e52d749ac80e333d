//! kill -9 between any two steps of an install: what is left is the whole or nothing, and the next try succeeds.
//!
//! The killed process is this very test, started anew with the number of the step that it dies at; the steps are those
//! that the code itself names, so that one more is one more crash here.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, raise};

use super::super::Limits;
use super::*;

#[path = "../../../tests/it/wheel.rs"]
mod wheel;

const DIR: &str = "SOCK_PKGCACHE_CRASH_DIR";
const STEP: &str = "SOCK_PKGCACHE_CRASH_STEP";
const KILL: i32 = Signal::SIGKILL as i32;

/// Dies if this is the step that the parent has named.
pub(crate) fn step() {
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let wanted = std::env::var(STEP).ok().and_then(|number| number.parse().ok());
    if wanted == Some(PASSED.fetch_add(1, Ordering::Relaxed)) {
        raise(Signal::SIGKILL).unwrap();
    }
}

fn python() -> Interpreter {
    Interpreter::probe(Path::new("/usr/bin/python3")).unwrap()
}

fn locked(dir: &Path) -> Lock {
    let wheel = wheel::Wheel::new("whole", "1.0")
        .file("whole/__init__.py", "from whole.part import answer\n")
        .file("whole/part.py", "answer = 42\n")
        .file("whole/data.bin", vec![7; 200_000])
        .file("whole-1.0.data/scripts/whole", "#!python\n");
    Lock::new(python().tag, vec![wheel.save(dir)]).unwrap()
}

/// Every file beneath a directory, with its content.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let top = PathBuf::from(path.file_name().unwrap());
            found.extend(tree(&path).into_iter().map(|(name, content)| (top.join(name), content)));
        } else {
            found.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
        }
    }
    found
}

fn install(store: &Store, lock: &Lock) {
    store.install(lock, &python(), &mut |_| {}).unwrap();
}

/// Runs `test` in another process that dies at each step in turn, until one comes through; `check` looks at what each
/// death has left. Gives the number of deaths.
fn die_everywhere(test: &str, dir: &Path, before: impl Fn(), check: impl Fn(usize)) -> usize {
    for number in 0.. {
        before();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("store::install::tests::{test}"), "--ignored", "--nocapture"])
            .env(DIR, dir)
            .env(STEP, number.to_string())
            .output()
            .unwrap();
        if output.status.success() {
            return number;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(KILL), "{number}: {said}");
        check(number);
    }
    unreachable!("there are not so many steps")
}

fn empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn killed_at_any_step_an_install_leaves_the_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(dir.path());
    let sound = Store::open(dir.path().join("sound"), Limits::default()).unwrap();
    install(&sound, &lock);
    let whole = tree(&sound.root().join(WHEELS));
    assert!(whole.len() > 6, "{:?}", whole.keys());
    let root = dir.path().join("store");
    let clear = || {
        if root.exists() {
            tree::remove(&root).unwrap();
        }
    };
    let left = std::cell::Cell::new(0);
    let deaths = die_everywhere("installs", dir.path(), clear, |number| {
        let found = tree(&root.join(WHEELS));
        if !found.is_empty() {
            assert_eq!(found, whole, "step {number}: neither the whole nor nothing");
            left.set(left.get() + 1);
        }
        let store = Store::open(&root, Limits::default()).unwrap();
        assert!(empty(&root.join(TMP)), "step {number}: something unfinished is left");
        assert_eq!(store.view(&lock).is_some(), !found.is_empty(), "step {number}");
        install(&store, &lock);
        assert_eq!(tree(&root.join(WHEELS)), whole, "step {number}: the retry");
        assert!(empty(&root.join(TMP)));
    });
    assert!(deaths >= 12, "only {deaths} steps");
    assert!((1..=3).contains(&left.get()), "after {} steps it is whole", left.get());
}

#[test]
#[ignore = "started by the test above, in another process"]
fn installs() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let store = Store::open(dir.join("store"), Limits::default()).unwrap();
    install(&store, &locked(&dir));
}

#[test]
fn killed_at_any_step_a_removal_leaves_the_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(dir.path());
    let root = dir.path().join("store");
    let filled = || install(&Store::open(&root, Limits::default()).unwrap(), &lock);
    let deaths = die_everywhere("removes", dir.path(), filled, |number| {
        assert!(empty(&root.join(WHEELS)), "step {number}");
        Store::open(&root, Limits::default()).unwrap();
        assert!(empty(&root.join(TMP)), "step {number}: something is left");
    });
    assert_eq!(deaths, 1);
}

#[test]
#[ignore = "started by the test above, in another process"]
fn removes() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let store = Store::open(dir.join("store"), Limits::default()).unwrap();
    assert_eq!(store.collect([], 0).unwrap().removed, 1);
}
