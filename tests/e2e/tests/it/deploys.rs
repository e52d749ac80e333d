//! What a deploy may meet: requirements that cannot be had, bundles that harm, an index that fails, others that deploy at
//! the same time, a full disk, a kill. Each is told in one line, and the next good request is answered.

#[cfg(feature = "machine")]
mod disk;

mod bundles;
mod crashes;
pub(crate) mod index;
mod meanwhile;
mod outages;
mod requirements;

#[path = "../../../../crates/pkgcache/tests/it/wheel.rs"]
pub(crate) mod wheel;

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sock_pkgcache::{Sources, Uv};
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::server::{Reply, Server};

const FUNCTIONS: &str = "/2015-03-31/functions";
/// Seconds after which the index counts as down.
const SILENCE: &str = "2";

/// A server that asks this index and nothing else for packages.
pub(crate) fn server(data: &Path, index: &str) -> Server {
    server_with(data, index, &[])
}

pub(crate) fn server_with(data: &Path, index: &str, flags: &[&str]) -> Server {
    let uv = data.join("uv");
    if !uv.exists() {
        // The resolver comes from where the machine has it from, once for all tests.
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("uv");
        fs::create_dir_all(&shared).unwrap();
        let program = Uv::new(shared, Sources::from_env(), "/usr/bin/python3").prepare().unwrap();
        let version = program.parent().unwrap().file_name().unwrap();
        fs::create_dir_all(uv.join(version)).unwrap();
        fs::copy(&program, uv.join(version).join("uv")).unwrap();
        // Made before the server has chosen its user; the data directory above it is closed to all others.
        fs::set_permissions(&uv, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let environment = [
        ("UV_HTTP_TIMEOUT", Some(SILENCE)),
        ("PIP_FIND_LINKS", None),
        ("UV_FIND_LINKS", None),
        ("PIP_NO_INDEX", None),
        ("UV_NO_INDEX", None),
    ];
    Server::start_in(data, &[&["--index-url", index], flags].concat(), &environment)
}

/// A zip file of these files.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A function whose handler answers with `answer`.
fn answering(answer: &str) -> Vec<u8> {
    zip(&[("app.py", format!("def handler(event, context):\n    return {answer}\n").as_bytes())])
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// The body of CreateFunction.
fn creation(server: &Server, name: &str, zip: &[u8]) -> Value {
    let runtime = server.ask("GET", "/healthz", b"").body["runtimes"][0].clone();
    json!({
        "FunctionName": name, "Runtime": runtime, "Handler": "app.handler", "Timeout": 60,
        "Role": "arn:aws:iam::000000000000:role/any", "Code": { "ZipFile": STANDARD.encode(zip) },
    })
}

fn create(server: &Server, name: &str, zip: &[u8]) -> Reply {
    server.ask("POST", FUNCTIONS, creation(server, name, zip).to_string().as_bytes())
}

fn update_code(server: &Server, name: &str, zip: &[u8]) -> Reply {
    let body = json!({ "ZipFile": STANDARD.encode(zip) }).to_string();
    server.ask("PUT", &format!("{FUNCTIONS}/{name}/code"), body.as_bytes())
}

/// A function's configuration once no deployment of it runs any more.
fn settled(server: &Server, name: &str) -> Value {
    let target = format!("{FUNCTIONS}/{name}/configuration");
    server.wait_until(
        || server.ask("GET", &target, b"").body,
        |configuration| configuration["LastUpdateStatus"] != "InProgress",
    )
}

/// That the server goes on: a good function is deployed, anew if it is there, and answers with what was deployed.
fn goes_on(server: &Server, after: &str) {
    let zip = answering(&format!("{after:?}"));
    let reply = match server.ask("GET", &format!("{FUNCTIONS}/good"), b"").status {
        404 => create(server, "good", &zip),
        _ => update_code(server, "good", &zip),
    };
    assert!([200, 201].contains(&reply.status), "after {after}: {reply:?}");
    let configuration = settled(server, "good");
    assert_eq!(configuration["LastUpdateStatus"], "Successful", "after {after}: {configuration}");
    let answer = server.run("good", &json!({}));
    assert_eq!((answer.status, &answer.body), (200, &json!(after)), "after {after}: {answer:?}");
}

/// An error as its snapshot shows it.
fn shown(reply: &Reply) -> String {
    let message = ["message", "Message"].iter().find_map(|member| reply.body[member].as_str());
    format!("{} {}: {}", reply.status, reply.kind, message.unwrap_or("(no message)"))
}

/// Whether a deployment left anything unfinished in the data directory.
fn nothing_is_left(data: &Path, after: &str) {
    for place in ["packages/tmp", "uv/home/tmp"] {
        let left: Vec<_> = fs::read_dir(data.join(place)).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "after {after}: {left:?}");
    }
    let code = fs::read_dir(data.join("code")).unwrap().flatten();
    let new: Vec<_> = code.filter(|entry| entry.file_name().to_string_lossy().starts_with(".new")).collect();
    assert!(new.is_empty(), "after {after}: {new:?}");
}

/// What differs from run to run in what is said.
fn filters() -> Vec<(&'static str, &'static str)> {
    vec![
        (r"127\.0\.0\.1:\d+", "[index]"),
        ("retries in [0-9.]+s", "retries in [time]"),
        ("[0-9a-f]{64}", "[sha256]"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[id]"),
        (r"cp3\d+", "[tag]"),
        (r"python3\.\d+", "[runtime]"),
        (r"CPython 3\.\d+", "CPython [python]"),
        (r"\b3\.\d+\.\d+\b", "[python]"),
        (r"/\S*/packages/tmp/\S*/out", "[tmp]"),
        (r"/tmp/\.tmp\w+", "[data]"),
    ]
}
