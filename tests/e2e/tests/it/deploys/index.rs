//! A package index on loopback that does what it is told to: answers, says nothing, stops in the middle.
//!
//! The simple API, as HTML, with the metadata of each wheel beside it, so that the resolver need not look into wheels.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
};
use sock_pkgcache::Sha256;

use super::wheel::Wheel;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// So many bytes of the body come, of as many as were announced, and nothing after them until this is taken away.
    /// `None`: not even a head.
    Hold(Option<usize>),
    /// The connection ends after so many bytes.
    Cut(usize),
    /// All of it comes, in so many pieces, a quarter of a second apart.
    Slow(usize),
}

/// A wheel in the index, and what the index says of it.
pub(crate) struct Listed {
    filename: String,
    bytes: Vec<u8>,
    metadata: Option<Vec<u8>>,
    sha256: Sha256,
    requires_python: Option<&'static str>,
}

impl Listed {
    pub(crate) fn new(wheel: &Wheel) -> Self {
        Self::with(wheel, wheel.bytes())
    }

    /// With other bytes than its own.
    pub(crate) fn with(wheel: &Wheel, bytes: Vec<u8>) -> Self {
        let (filename, metadata) = (wheel.filename(), Some(wheel.metadata_file()));
        Self { filename, sha256: Sha256::of(&bytes), bytes, metadata, requires_python: None }
    }

    /// Something that is no wheel.
    pub(crate) fn file(filename: &str) -> Self {
        let (filename, bytes) = (filename.to_owned(), b"nothing".to_vec());
        Self { filename, sha256: Sha256::of(&bytes), bytes, metadata: None, requires_python: None }
    }

    pub(crate) fn named(self, filename: &str) -> Self {
        Self { filename: filename.to_owned(), ..self }
    }

    pub(crate) fn requires_python(self, versions: &'static str) -> Self {
        Self { requires_python: Some(versions), ..self }
    }

    /// With another hash on the page than the wheel has.
    pub(crate) fn hashed(self, sha256: Sha256) -> Self {
        Self { sha256, ..self }
    }
}

/// The index's server; it ends with the test's process.
#[derive(Clone)]
pub(crate) struct Index {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: BTreeMap<String, Fault>,
    asked: Vec<String>,
}

/// A port that nobody listens on, and nobody else can.
pub(crate) struct Down(OwnedFd);

impl Down {
    pub(crate) fn new() -> Self {
        let stream = SockType::Stream;
        let reserved = socket(AddressFamily::Inet, stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(reserved.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        Self(reserved)
    }

    pub(crate) fn url(&self) -> String {
        let address: SockaddrIn = getsockname(self.0.as_raw_fd()).unwrap();
        format!("http://127.0.0.1:{}/simple", address.port())
    }

    /// Begins to serve there.
    pub(crate) fn up(self) -> Index {
        listen(&self.0, Backlog::new(64).unwrap()).unwrap();
        Index::on(TcpListener::from(self.0))
    }
}

impl Index {
    pub(crate) fn start() -> Self {
        Down::new().up()
    }

    fn on(listener: TcpListener) -> Self {
        let port = listener.local_addr().unwrap().port();
        let index = Self { port, state: Arc::default() };
        let serving = index.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let index = serving.clone();
                std::thread::spawn(move || index.serve(&stream));
            }
        });
        index
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/simple", self.port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    /// Puts a project there, or changes it.
    pub(crate) fn put(&self, project: &str, files: &[Listed]) {
        let mut page = String::from("<!DOCTYPE html><html><body>\n");
        let mut state = self.state();
        for file in files {
            let Listed { filename, sha256, .. } = file;
            let mut attributes = String::new();
            if file.metadata.is_some() {
                attributes.push_str(" data-core-metadata=\"true\"");
            }
            if let Some(versions) = file.requires_python {
                attributes.push_str(&format!(" data-requires-python=\"{}\"", versions.replace('>', "&gt;")));
            }
            let link =
                format!("<a href=\"/files/{filename}#sha256={sha256}\"{attributes}>{filename}</a><br>\n");
            page.push_str(&link);
            state.files.insert(format!("/files/{filename}"), file.bytes.clone());
            if let Some(metadata) = &file.metadata {
                state.files.insert(format!("/files/{filename}.metadata"), metadata.clone());
            }
        }
        page.push_str("</body></html>\n");
        state.files.insert(format!("/simple/{project}/"), page.into_bytes());
    }

    /// What is done at a path from now on; nothing: the right thing.
    pub(crate) fn fault(&self, path: &str, fault: Option<Fault>) {
        let mut state = self.state();
        match fault {
            Some(fault) => state.faults.insert(path.to_owned(), fault),
            None => state.faults.remove(path),
        };
        self.state.1.notify_all();
    }

    /// Waits until a path was asked for.
    pub(crate) fn wait_asked(&self, path: &str) {
        let asked = |state: &mut State| state.asked.iter().any(|asked| asked == path);
        let waited = self.state.1.wait_timeout_while(self.state(), PATIENCE, |state| !asked(state)).unwrap();
        assert!(!waited.1.timed_out(), "nobody asked for {path}: {:?}", waited.0.asked);
    }

    fn serve(&self, mut stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = String::new();
            // A client that is killed may reset the connection: that is the client's affair.
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let mut header = String::new();
            while reader.read_line(&mut header).unwrap_or(0) > 2 {
                header.clear();
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let (content, fault) = {
                let state = self.state();
                (state.files.get(&path).cloned(), state.faults.get(&path).copied())
            };
            let sent = self.answer(&mut stream, &path, content, fault);
            self.state().asked.push(path);
            self.state.1.notify_all();
            if sent.is_err() {
                return;
            }
            if let Some(fault @ (Fault::Hold(_) | Fault::Cut(_))) = fault {
                // Dropped, the connection stays open: the reader has it too.
                if let Fault::Hold(_) = fault {
                    self.until_taken_away(line.split(' ').nth(1).unwrap_or_default(), fault);
                }
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    fn answer(
        &self,
        stream: &mut &TcpStream,
        path: &str,
        content: Option<Vec<u8>>,
        fault: Option<Fault>,
    ) -> std::io::Result<()> {
        if fault == Some(Fault::Hold(None)) {
            return Ok(());
        }
        let Some(content) = content else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        };
        let kind = if path.starts_with("/simple") { "text/html" } else { "application/octet-stream" };
        let length = content.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
        let end = match fault {
            Some(Fault::Hold(Some(bytes)) | Fault::Cut(bytes)) => bytes.min(length),
            _ => length,
        };
        stream.write_all(head.as_bytes())?;
        if let Some(Fault::Slow(pieces)) = fault {
            for piece in content.chunks(length.div_ceil(pieces)) {
                stream.write_all(piece)?;
                #[expect(clippy::disallowed_methods, reason = "that it takes its time is the case")]
                std::thread::sleep(Duration::from_millis(250));
            }
            return Ok(());
        }
        stream.write_all(&content[..end])
    }

    fn until_taken_away(&self, path: &str, fault: Fault) {
        let there = |state: &mut State| state.faults.get(path) == Some(&fault);
        drop(self.state.1.wait_while(self.state(), there).unwrap());
    }
}
