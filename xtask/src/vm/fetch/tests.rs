//! Against a mirror of our own, on loopback.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report, in its helpers too")]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use super::*;

/// How the mirror answers the next request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// All that was asked for.
    Whole,
    /// All of the file, whatever part of it was asked for.
    FromItsStart,
    /// This many bytes of what it announces.
    CutAfter(usize),
    Missing,
}

/// Serves `contents` to as many requests as there are answers; what they asked for is in the list.
struct Mirror {
    base: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    fn start(contents: &'static [u8], answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                seen.lock().unwrap().push(serve(&stream, contents, answer));
            }
        });
        Self { base, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// One request on one connection; returns its first line, and the range that it asked for.
fn serve(mut stream: &TcpStream, contents: &[u8], answer: Answer) -> String {
    let lines: Vec<String> =
        BufReader::new(stream).lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    let range =
        lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let start: usize = range.as_ref().map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let (status, body) = match answer {
        Answer::Missing => ("404 Not Found", &b""[..]),
        Answer::FromItsStart => ("200 OK", contents),
        _ if start >= contents.len() => ("416 Range Not Satisfiable", &b""[..]),
        _ if range.is_some() => ("206 Partial Content", &contents[start..]),
        _ => ("200 OK", contents),
    };
    let sent = if let Answer::CutAfter(bytes) = answer { &body[..bytes] } else { body };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent)).unwrap();
    format!("{} {}", lines[0], range.unwrap_or_default()).trim_end().to_owned()
}

const CONTENTS: &[u8] = b"a package, as far as this test is concerned";

fn deb(path: &str) -> Deb {
    Deb {
        name: "package".into(),
        version: "1:2.0~rc+1".into(),
        groups: vec![],
        path: path.into(),
        size: CONTENTS.len() as u64,
        sha256: hex::encode(Sha256::digest(CONTENTS)),
    }
}

fn fetch(mirrors: &[&Mirror], cache: &Cache, deb: &Deb) -> Result<()> {
    let bases = mirrors.iter().map(|mirror| mirror.base.clone()).collect();
    cache.fetch(std::iter::once(deb), || Mirrors::of(bases, None))
}

fn cache() -> (tempfile::TempDir, Cache) {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache { directory: directory.path().to_owned() };
    (directory, cache)
}

#[test]
fn what_was_cut_off_goes_on_from_there_and_is_asked_for_once() {
    let (_directory, cache) = cache();
    let mirror = Mirror::start(CONTENTS, vec![Answer::CutAfter(10), Answer::CutAfter(5), Answer::Whole]);
    let deb = deb("pool/p_2.0~rc+1_all.deb");
    fetch(&[&mirror], &cache, &deb).unwrap();
    assert_eq!(cache.read(&deb.sha256).unwrap(), CONTENTS);
    // Nothing more is asked for: there is no answer left.
    fetch(&[&mirror], &cache, &deb).unwrap();
    let line = "GET /pool/p_2.0%7Erc%2B1_all.deb HTTP/1.1";
    assert_eq!(mirror.requests(), [line.to_owned(), format!("{line} 10-"), format!("{line} 15-")]);
}

#[test]
fn a_mirror_without_ranges_starts_again() {
    let (_directory, cache) = cache();
    let mirror = Mirror::start(CONTENTS, vec![Answer::CutAfter(10), Answer::FromItsStart]);
    fetch(&[&mirror], &cache, &deb("p")).unwrap();
    assert_eq!(cache.read(&deb("p").sha256).unwrap(), CONTENTS);
}

#[test]
fn a_changed_file_is_refused_and_not_kept() {
    let (directory, cache) = cache();
    let mirror = Mirror::start(b"something else", vec![Answer::Whole]);
    let error = fetch(&[&mirror], &cache, &deb("p")).unwrap_err().to_string();
    assert!(error.ends_with("it was changed"), "{error}");
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn what_one_mirror_has_lost_another_may_have() {
    let (_directory, cache) = cache();
    let (without, with) =
        (Mirror::start(b"", vec![Answer::Missing]), Mirror::start(CONTENTS, vec![Answer::Whole]));
    fetch(&[&without, &with], &cache, &deb("p")).unwrap();
    assert!(cache.has(&deb("p").sha256));
}

#[test]
fn what_no_mirror_has_is_gone_and_named() {
    let (_directory, cache) = cache();
    let mirror = Mirror::start(b"", vec![Answer::Missing]);
    let error = fetch(&[&mirror], &cache, &deb("p")).unwrap_err();
    assert_eq!(error.downcast_ref::<Gone>().unwrap().0, ["package 1:2.0~rc+1"]);
}

#[test]
fn three_broken_connections_are_enough() {
    let (_directory, cache) = cache();
    let mirror = Mirror::start(CONTENTS, vec![Answer::CutAfter(1); 3]);
    let error = fetch(&[&mirror], &cache, &deb("p")).unwrap_err().to_string();
    assert!(error.starts_with("failed to fetch http://127.0.0.1:"), "{error}");
    assert_eq!(mirror.requests().len(), 3);
}
