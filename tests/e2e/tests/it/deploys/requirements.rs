//! Requirements that cannot be had, and wheels that must not get in.

use std::fs;
use std::path::Path;

use sock_pkgcache::Sha256;

use super::index::{Index, Listed};
use super::wheel::{Wheel, patch, rename};
use super::{FUNCTIONS, filters, goes_on, nothing_is_left, server};
use crate::server::Server;

/// The index of these tests: what each project's name says is wrong with it.
fn index() -> Index {
    let index = Index::start();
    let wheel = |name: &str| Wheel::new(name, "1.0").file(&format!("{name}/a.py"), "answer = 42\n");
    let listed = |name: &str, file: Listed| index.put(name, &[file]);
    listed("sound", Listed::new(&wheel("sound")));
    listed("pinned", Listed::new(&wheel("pinned")));
    listed("shared", Listed::new(&wheel("shared")));
    listed("old", Listed::new(&wheel("old").metadata("Requires-Dist: shared<1")));
    listed("new", Listed::new(&wheel("new").metadata("Requires-Dist: shared>=1")));
    listed("source", Listed::file("source-1.0.tar.gz"));
    let newer = wheel("newer").metadata("Requires-Python: >=3.99");
    listed("newer", Listed::new(&newer).requires_python(">=3.99"));
    listed("older", Listed::new(&wheel("older")).named("older-1.0-cp27-cp27mu-manylinux1_x86_64.whl"));
    listed("swapped", Listed::new(&wheel("swapped")).hashed(Sha256::of(b"another")));
    let harmful = |name: &str, harm: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let wheel = wheel(name).file(&format!("{name}/PLACEHOLDER.py"), "x = 1\n");
        let bytes = harm(wheel.bytes());
        listed(name, Listed::with(&wheel, bytes));
    };
    harmful("traversal", &|bytes| rename(bytes, "traversal/PLACEHOLDER.py", b"../../../../etc/cron.d/x"));
    harmful("symlink", &|bytes| {
        patch(bytes, "symlink/PLACEHOLDER.py", 38, &(0o120_777_u32 << 16).to_le_bytes())
    });
    let bomb = wheel("bomb").file("bomb/zeros.bin", vec![0; 40 << 20]);
    listed("bomb", Listed::new(&bomb));
    let unlisted = wheel("unlisted").record(|text| {
        let lines = text.lines().filter(|line| !line.contains("a.py"));
        Some(lines.map(|line| format!("{line}\n")).collect())
    });
    listed("unlisted", Listed::new(&unlisted));
    let forged = wheel("forged").record(|text| Some(text.replace(",12\n", ",13\n")));
    listed("forged", Listed::new(&forged));
    index
}

/// Deploys a function with these requirements by the command line; gives what it said.
fn deploy(server: &Server, work: &Path, name: &str, requirements: &str) -> (bool, String) {
    let directory = work.join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("main.py"), "import sound.a\ndef handler(event):\n    return sound.a.answer\n")
        .unwrap();
    fs::write(directory.join("requirements.txt"), requirements).unwrap();
    let output = server.sock(&["deploy", directory.to_str().unwrap(), "--name", name]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), usize::from(!output.status.success()), "one line: {said}");
    (output.status.success(), said)
}

#[test]
fn requirements_that_cannot_be_had_are_refused_with_a_reason() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let index = index();
    let server = server(data.path(), &index.url());
    let one_hash = format!("pinned==1.0 --hash=sha256:{}", Sha256::of(b"another"));
    let cases = [
        ("unknown", "there-is-no-such-package"),
        ("impossible", "pinned==9"),
        ("conflict", "old\nnew"),
        ("contradiction", "pinned<1\npinned>=1"),
        ("malformed", "sound\npinned = 1"),
        ("option", "-r /etc/shadow"),
        ("path", "./sound-1.0-py3-none-any.whl"),
        ("sdist-only", "source"),
        ("newer-python", "newer"),
        ("older-python", "older"),
        ("other-hash", &one_hash),
        ("swapped", "swapped"),
        ("traversal", "traversal"),
        ("symlink", "symlink"),
        ("bomb", "bomb"),
        ("unlisted", "unlisted"),
        ("forged", "forged"),
        ("one-of-two", "sound\nforged"),
    ];
    let mut told = String::new();
    for (name, requirements) in cases {
        let (succeeded, said) = deploy(&server, work.path(), name, requirements);
        assert!(!succeeded, "{name}");
        let configuration = server.ask("GET", &format!("{FUNCTIONS}/{name}/configuration"), b"").body;
        assert_eq!(configuration["State"], "Failed", "{name}: {configuration}");
        let code = configuration["StateReasonCode"].as_str().unwrap();
        let reason = configuration["StateReason"].as_str().unwrap();
        assert_eq!(said.trim_end(), format!("sock: failed to deploy {name}: {reason}"));
        told.push_str(&format!("{}\n  {code}: {reason}\n", requirements.replace('\n', " + ")));
        nothing_is_left(data.path(), name);
        goes_on(&server, name);
    }
    let kept = fs::read_dir(data.path().join("packages/wheels")).unwrap().count();
    assert!(kept <= 1, "of {} wheels more than the sound one were kept: {kept}", cases.len());
    // And all that the author has to do is to name what there is.
    for (name, ..) in [cases[0], cases[12]] {
        let (succeeded, said) = deploy(&server, work.path(), name, "sound==1.0\n");
        assert!(succeeded, "{name}: {said}");
        assert_eq!(server.run(name, &serde_json::json!({})).body, 42, "{name}");
    }
    assert!(server.stop());
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!(told) });
}

#[test]
fn a_page_that_was_wrong_is_read_again() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let index = Index::start();
    let wheel = Wheel::new("sound", "1.0").file("sound/a.py", "answer = 42\n");
    index.put("sound", &[Listed::new(&wheel).hashed(Sha256::of(b"another"))]);
    let server = server(data.path(), &index.url());
    let (succeeded, said) = deploy(&server, work.path(), "mended", "sound");
    assert!(!succeeded && said.contains("it changed since it was locked"), "{said}");
    index.put("sound", &[Listed::new(&wheel)]);
    let (succeeded, said) = deploy(&server, work.path(), "mended", "sound");
    assert!(succeeded, "{said}");
    assert_eq!(server.run("mended", &serde_json::json!({})).body, 42);
    assert!(server.stop());
}
