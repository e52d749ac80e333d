//! With numpy, from the package index that this host uses: siblings draw different numbers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where numpy is: installed once for all runs.
fn numpy() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let version = Command::new(crate::python()).arg("-V").output().unwrap().stdout;
    let packages =
        target.join(format!("numpy-{}", String::from_utf8(version).unwrap().trim().replace(' ', "-")));
    if !packages.exists() {
        let fresh = tempfile::tempdir_in(target).unwrap();
        let environment = fresh.path().join("venv");
        let made = Command::new(crate::python()).args(["-m", "venv"]).arg(&environment).status().unwrap();
        assert!(made.success());
        let mut pip = Command::new(environment.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
        assert!(pip.arg(fresh.path().join("packages")).arg("numpy").status().unwrap().success());
        // Another run may have been first.
        drop(fs::rename(fresh.path().join("packages"), &packages));
    }
    packages
}

#[test]
fn siblings_differ() {
    let script = "
import ctypes, os, sys
sys.path.append(os.environ['PACKAGES'])
import numpy.random
import _sock_after_fork as after_fork

seen = []
for known in (True, True, False, False):
    after_fork.settle(after_fork.note())
    assert after_fork.twister is not None
    numpy.random.random()
    if not known:
        # As of a numpy that keeps it elsewhere.
        after_fork.twister = None
    reader, writer = os.pipe()
    if os.fork() == 0:
        for name, where, length, flags in after_fork.reseeding():
            assert ctypes.CDLL(None).getrandom(ctypes.c_void_p(where), ctypes.c_size_t(length), flags) == length
        after_fork.mend()
        drawn = [numpy.random.random(), numpy.random.mtrand._rand.random_sample(),
                 numpy.random.RandomState().random_sample(), numpy.random.default_rng().random()]
        os.write(writer, ' '.join(map(str, drawn)).encode())
        os._exit(0)
    os.close(writer)
    seen.append(os.read(reader, 1000).split())
    assert os.wait()[1] == 0
assert len({number for drawn in seen for number in drawn}) == 16, seen
";
    let printed = crate::run_with(script, |command| {
        command.env("PACKAGES", numpy()).env("OPENBLAS_NUM_THREADS", "1");
    });
    assert_eq!(printed, "");
}
