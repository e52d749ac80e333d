//! One wheel, from where the lock says it is to a file, with the hash that the lock says it has.
//!
//! TLS trusts what the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured) and proxies come from
//! the environment. The hash is computed while the bytes arrive and compared before anybody reads the file,
//! so the transport need not be trusted for integrity. A wheel that turns out larger than locked, or than
//! allowed, is cut off there. A server that falls silent is given up, and so is one that would keep a deploy
//! waiting for ever, byte by byte.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::tls::{RootCerts, TlsConfig};

use crate::hash::Hasher;
use crate::url::{Credentials, redacted};
use crate::{Location, LockedWheel, Sha256};

/// A server may be restarted at the wrong moment; it is not asked for ever.
const ATTEMPTS: usize = 3;
/// How long a server may take to accept a connection: over the longest lines that takes a second.
const CONNECT: Duration = Duration::from_secs(20);
/// For one wheel, all attempts together: the largest that are allowed, 2 GiB, at 2.4 MB/s.
const WHOLE: Duration = Duration::from_secs(900);

/// Why a wheel could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server could not be reached, or answered with an error.
    #[error("failed to download {url}")]
    Request {
        /// What was asked for.
        url: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The connection broke while the wheel arrived.
    #[error("failed to read {from} to its end")]
    Read {
        /// The URL or path.
        from: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A local wheel could not be opened.
    #[error("failed to open {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be stored.
    #[error("failed to write {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It has another size than locked.
    #[error("{from} has another size than locked: {found} bytes instead of {locked}")]
    Size {
        /// The URL or path.
        from: String,
        /// Bytes that came, or that were announced.
        found: u64,
        /// Bytes in the lock.
        locked: u64,
    },
    /// It is larger than any wheel may be.
    #[error("{from} is larger than {limit} bytes: raise the limit if the package is to be trusted")]
    TooLarge {
        /// The URL or path.
        from: String,
        /// The limit.
        limit: u64,
    },
    /// It is another file than locked.
    #[error(
        "{from} has sha256 {found} instead of {locked}: it changed since it was locked; deploy again to lock anew"
    )]
    Hash {
        /// The URL or path.
        from: String,
        /// The hash of what came.
        found: Sha256,
        /// The hash in the lock.
        locked: Sha256,
    },
}

impl FetchError {
    /// Whether trying again may help: the network failed, not the content.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Read { .. } => true,
            Self::Request { source, .. } => match &**source {
                ureq::Error::StatusCode(status) => *status >= 500 || *status == 429,
                ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
                _ => false,
            },
            _ => false,
        }
    }
}

/// An HTTP client for wheels, which gives up a server that is silent for so long.
pub(crate) fn agent(silence: Duration) -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    Agent::config_builder()
        .tls_config(tls)
        .user_agent("sock-pkgcache")
        .redirect_auth_headers(RedirectAuthHeaders::Never)
        .timeout_connect(Some(silence.min(CONNECT)))
        .timeout_per_read(Some(silence))
        .build()
        .into()
}

/// How wheels are fetched.
pub(crate) struct Fetcher<'a> {
    pub(crate) agent: &'a Agent,
    pub(crate) credentials: &'a Credentials,
    /// Bytes of a wheel at most.
    pub(crate) limit: u64,
    /// For all attempts together.
    pub(crate) whole: Duration,
}

impl<'a> Fetcher<'a> {
    pub(crate) fn new(agent: &'a Agent, credentials: &'a Credentials, limit: u64) -> Self {
        Self { agent, credentials, limit, whole: WHOLE }
    }

    /// Fetches `wheel` into a new file at `to`; `received` hears of bytes as they arrive.
    pub(crate) fn fetch(
        &self,
        wheel: &LockedWheel,
        to: &Path,
        received: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        let begun = Instant::now();
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let time = self.whole.saturating_sub(begun.elapsed());
            match self.attempt(wheel, to, time, received) {
                Err(error) if error.is_transient() && left > 0 && begun.elapsed() < self.whole => {}
                done => return done,
            }
        }
    }

    fn attempt(
        &self,
        wheel: &LockedWheel,
        to: &Path,
        time: Duration,
        received: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        let file = File::create(to).map_err(|source| FetchError::Write { path: to.into(), source })?;
        let transfer = |from| Transfer { wheel, from, to, limit: self.limit };
        match &wheel.location {
            Location::Path(path) => {
                let source = File::open(path);
                let source = source.map_err(|source| FetchError::Open { path: path.clone(), source })?;
                transfer(path.display().to_string()).run(source, file, received)
            }
            Location::Url(url) => {
                let mut request = self.agent.get(url).config().timeout_global(Some(time)).build();
                // Not followed to another host: the client drops it at a redirect.
                if let Some(value) = self.credentials.for_url(url) {
                    request = request.header("authorization", value);
                }
                let shown = redacted(url);
                let response = request
                    .call()
                    .map_err(|source| FetchError::Request { url: shown.clone(), source: Box::new(source) })?;
                let transfer = transfer(shown);
                if let Some(announced) = response.body().content_length() {
                    transfer.check_size(announced)?;
                }
                transfer.run(response.into_body().into_reader(), file, received)
            }
        }
    }
}

struct Transfer<'a> {
    wheel: &'a LockedWheel,
    from: String,
    to: &'a Path,
    limit: u64,
}

impl Transfer<'_> {
    fn run(
        &self,
        mut from: impl Read,
        mut to: File,
        received: &mut dyn FnMut(u64),
    ) -> Result<(), FetchError> {
        let mut hasher = Hasher::default();
        let mut total = 0;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(FetchError::Read { from: self.from.clone(), source }),
            };
            total += len as u64;
            if total > self.wheel.size.unwrap_or(self.limit).min(self.limit) {
                self.check_size(total)?;
            }
            hasher.update(&buffer[..len]);
            let written = to.write_all(&buffer[..len]);
            written.map_err(|source| FetchError::Write { path: self.to.into(), source })?;
            received(len as u64);
        }
        self.check_size(total)?;
        let (found, locked) = (hasher.finish(), self.wheel.sha256);
        if found != locked {
            return Err(FetchError::Hash { from: self.from.clone(), found, locked });
        }
        Ok(())
    }

    fn check_size(&self, found: u64) -> Result<(), FetchError> {
        if found > self.limit {
            return Err(FetchError::TooLarge { from: self.from.clone(), limit: self.limit });
        }
        match self.wheel.size {
            Some(locked) if locked != found => {
                Err(FetchError::Size { from: self.from.clone(), found, locked })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::net::TcpListener;

    use super::*;
    use crate::DistName;

    #[test]
    fn a_server_that_trickles_is_not_waited_for_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x-1-py3-none-any.whl", listener.local_addr().unwrap());
        // A byte now and then, never silent for long: ends when the client leaves.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut head = io::BufReader::new(&stream).lines();
                while head.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                while (&stream).write_all(b"x").is_ok() {
                    // The client says nothing: this waits.
                    let _ = (&stream).read(&mut [0]);
                }
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let wheel = LockedWheel {
            name: DistName::parse("x").unwrap(),
            version: "1".into(),
            filename: "x-1-py3-none-any.whl".into(),
            location: Location::Url(url),
            sha256: Sha256::of(b""),
            size: None,
        };
        let (agent, credentials) = (agent(Duration::from_secs(20)), Credentials::default());
        let mut fetcher = Fetcher::new(&agent, &credentials, 1 << 20);
        fetcher.whole = Duration::from_secs(1);
        let begun = Instant::now();
        let error = fetcher.fetch(&wheel, &dir.path().join("wheel"), &mut |_| {}).unwrap_err();
        assert!(matches!(error, FetchError::Read { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}
