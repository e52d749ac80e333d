//! Replays every input of the corpora: what fuzzing found once stays found, on every build, without libFuzzer.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sock_fuzz::TARGETS;

/// Small inputs are quick, and can be read in a review.
const MAX_BYTES: usize = 4 << 10;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Says which input it was when a target panics.
struct Replaying(PathBuf);

impl Drop for Replaying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("while replaying {}", self.0.display());
        }
    }
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let mut inputs: Vec<PathBuf> =
        fs::read_dir(directory().join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 4, "the corpus of {name} has {} inputs", inputs.len());
    for path in inputs {
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() <= MAX_BYTES, "{} has {} bytes", path.display(), bytes.len());
        let _replaying = Replaying(path);
        target(&bytes);
    }
}

macro_rules! corpora {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name)) })*

        #[test]
        fn every_target_has_a_corpus_a_program_and_a_test() {
            let names = |directory: &Path| -> BTreeSet<String> {
                let stem = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
                fs::read_dir(directory).unwrap().map(|entry| stem(entry.unwrap().path())).collect()
            };
            let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| name.to_string()).collect();
            assert_eq!(targets, BTreeSet::from([$(stringify!($name).to_owned()),*]));
            assert_eq!(targets, names(&directory()));
            assert_eq!(targets, names(&directory().join("../src/bin")));
        }
    };
}

corpora! { bundle frames launcher record requirements signature wheel }
