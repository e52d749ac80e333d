//! The whole way once, against the package index that this host uses, by a user without any privilege.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sock_pkgcache::{Limits, Progress, Requirements, Resolver, Sources, Store, Uv};

use crate::{chain, python};

const NOBODY: u32 = 65534;
const DIR: &str = "SOCK_PKGCACHE_TEST_DIR";

/// Runs the test below in a process of its own: as root it becomes nobody first, since root hides every
/// missing permission.
#[test]
fn requirements_become_an_importable_view_without_privilege() {
    let dir = tempfile::tempdir().unwrap();
    let mut test = Command::new(std::env::current_exe().unwrap());
    if nix::unistd::geteuid().is_root() {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("it");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        test = Command::new(program);
        test.uid(NOBODY).gid(NOBODY).current_dir(&own).env(DIR, &own);
    } else {
        test.env(DIR, dir.path());
    }
    let output = test.args(["--exact", "index::inner", "--ignored", "--nocapture"]).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "started by the test above, in another process"]
fn inner() {
    let own = tempfile::tempdir().unwrap();
    let dir = std::env::var_os(DIR).map_or_else(|| own.path().into(), PathBuf::from);
    let python = python();
    let uv = Uv::new(dir.join("uv"), Sources::from_env(), &python.path);
    let resolve = |text: &str| uv.resolve(&Requirements::parse(text).unwrap(), &python);

    let lock = resolve("Jinja2>=3,<4\n").unwrap_or_else(|error| panic!("{}", chain(&error)));
    let names: Vec<_> = lock.packages.iter().map(|wheel| wheel.name.as_str()).collect();
    assert_eq!(names, ["jinja2", "markupsafe"]);
    assert_eq!(resolve("jinja2>=3,<4").unwrap().id(), lock.id());
    assert!(resolve("# nothing\n").unwrap().packages.is_empty());

    // A file that allows one wheel gets that one or none.
    let jinja2 = &lock.packages[0];
    let pinned = format!("jinja2=={} --hash=sha256:{}", jinja2.version, jinja2.sha256);
    assert_eq!(resolve(&pinned).unwrap().id(), lock.id());
    let refused =
        resolve(&format!("jinja2=={} --hash=sha256:{}", jinja2.version, "0".repeat(64))).unwrap_err();
    let nothing = resolve("jinja2<3\njinja2>3").unwrap_err();
    let unknown = resolve("sock-there-is-no-such-distribution").unwrap_err();
    let source_only = resolve("pyspark==3.5.0").unwrap_err();
    let texts = [refused, nothing, unknown, source_only].map(|error| chain(&error));
    println!("{}", texts.join("\n"));
    assert!(texts[0].starts_with("no wheel of jinja2 3."), "{}", texts[0]);
    for text in &texts[1..] {
        assert!(text.starts_with("no set of packages fulfils the requirements: Because "), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    let root = dir.join("packages");
    let store = Store::open(&root, Limits::default()).unwrap();
    let mut received = 0;
    let view = store
        .install(&lock, &python, &mut |step| {
            if let Progress::Received { bytes } = step {
                received += bytes;
            }
        })
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(received, lock.packages.iter().filter_map(|wheel| wheel.size).sum::<u64>());
    assert!(view.provider("markupsafe._speedups").is_some(), "{:?}", view.top_level());
    render(&python.path, &root, &view);

    // Sealed directories are removed by their owner too.
    let kept = store.collect([], 0).unwrap();
    assert_eq!((kept.removed, kept.kept), (2, 0));
    assert_eq!(fs::read_dir(root.join("wheels")).unwrap().count(), 0);
}

fn render(python: &Path, root: &Path, view: &sock_pkgcache::View) {
    let sites = view.entries.iter().map(|entry| root.join(&entry.dir));
    let code = "import jinja2; print(jinja2.Template('{{ 6 * 7 }}').render())";
    let output = Command::new(python)
        .args(["-S", "-s", "-c", code])
        .env("PYTHONPATH", std::env::join_paths(sites).unwrap())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "42\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
