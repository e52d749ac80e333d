//! kill -9 of the server while it installs: the next one goes on with the deployment, and nothing half-made is left.
//!
//! The steps within the store are crashed one by one by the package cache's own tests; here it is the whole server, at
//! moments that the index knows.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::index::{Fault, Index, Listed};
use super::wheel::Wheel;
use super::{create, goes_on, noise, nothing_is_left, server, settled, zip};
use crate::server::still_running;

/// Every wheel in the store is whole: as many files and bytes as its own facts say.
fn whole(data: &Path) -> usize {
    fn files(dir: &Path) -> (u64, u64) {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let sizes = entries.map(|path| match path.is_dir() {
            true => files(&path),
            false => (1, fs::metadata(&path).unwrap().len()),
        });
        sizes.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    }
    let wheels = fs::read_dir(data.join("packages/wheels")).unwrap().map(|entry| entry.unwrap().path());
    wheels
        .map(|wheel| {
            let text = fs::read(wheel.join("meta.json")).unwrap();
            let facts: Value = serde_json::from_slice(&text).unwrap();
            let (count, bytes) = files(&wheel);
            let own = text.len() as u64;
            assert_eq!(
                (json!(count - 1), json!(bytes - own)),
                (facts["files"].clone(), facts["bytes"].clone())
            );
        })
        .count()
}

/// A number that nobody knows before, shown if the test fails.
fn random(below: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() % below
}

#[test]
fn killed_while_it_installs_it_goes_on_at_the_next_start() {
    let data = tempfile::tempdir().unwrap();
    let index = Index::start();
    let mut server = server(data.path(), &index.url());
    goes_on(&server, "the start");
    // When it is killed: as the index holds a path, or so many milliseconds after the whole wheel was sent.
    let page = Some((false, Fault::Hold(None)));
    let half = Some((true, Fault::Hold(Some(50_000))));
    let moments =
        [(page, 0), (half, 0), (None, 0), (None, random(20)), (None, random(100)), (None, random(400))];
    for (number, (hold, delay)) in moments.into_iter().enumerate() {
        let title = format!("a kill at {hold:?} + {delay} ms");
        let name = format!("crash{number}");
        let modules = (0..40).fold(Wheel::new(&name, "1.0"), |wheel, n| {
            wheel.file(&format!("{name}/m{n}.py"), format!("answer = {n} + 2\n"))
        });
        index.put(&name, &[Listed::new(&modules.file(&format!("{name}/pad"), noise(100_000)))]);
        let wheel = format!("/files/{name}-1.0-py3-none-any.whl");
        let path = if hold.is_some_and(|(wheel, _)| !wheel) { format!("/simple/{name}/") } else { wheel };
        index.fault(&path, hold.map(|(_, fault)| fault));
        let code = format!("import {name}.m39\ndef handler(event, context):\n    return {name}.m39.answer\n");
        let bundle = zip(&[("app.py", code.as_bytes()), ("requirements.txt", name.as_bytes())]);
        assert_eq!(create(&server, &name, &bundle).status, 201, "{title}");
        index.wait_asked(&path);
        // The moment itself is what is awaited; there is no event in the middle of an install.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(delay) {
            std::thread::yield_now();
        }
        let before = server.processes();
        server.kill_9();
        index.fault(&path, None);
        server = super::server(data.path(), &index.url());
        let left = still_running(&before);
        assert!(left.is_empty(), "{title}: {left:?} are left");
        let configuration = settled(&server, &name);
        assert_eq!(configuration["State"], "Active", "{title}: {configuration}");
        assert_eq!(server.run(&name, &json!({})).body, 41, "{title}");
        nothing_is_left(data.path(), &title);
        assert_eq!(whole(data.path()), number + 1, "{title}");
        goes_on(&server, &title);
    }
    assert!(server.stop());
}
