//! One wheel, from where the lock says it is to a file, with the hash that the lock says it has.
//!
//! TLS trusts what the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured) and proxies come from the environment. The
//! hash is computed while the bytes arrive and compared before anybody reads the file, so the transport need not be trusted
//! for integrity. A wheel that turns out larger than locked, or than allowed, is cut off there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use crate::hash::Hasher;
use crate::{Location, LockedWheel, Sha256};

/// A server may be restarted at the wrong moment; it is not asked for ever.
const ATTEMPTS: usize = 3;

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
    fn is_transient(&self) -> bool {
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

/// An HTTP client for wheels.
pub(crate) fn agent() -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    Agent::config_builder()
        .tls_config(tls)
        .user_agent("sock-pkgcache")
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(900)))
        .build()
        .into()
}

/// Fetches `wheel` into a new file at `to`; `received` hears of bytes as they arrive.
pub(crate) fn fetch(
    agent: &Agent,
    wheel: &LockedWheel,
    to: &Path,
    limit: u64,
    received: &mut dyn FnMut(u64),
) -> Result<(), FetchError> {
    for _ in 1..ATTEMPTS {
        match attempt(agent, wheel, to, limit, received) {
            Err(error) if error.is_transient() => {}
            done => return done,
        }
    }
    attempt(agent, wheel, to, limit, received)
}

fn attempt(
    agent: &Agent,
    wheel: &LockedWheel,
    to: &Path,
    limit: u64,
    received: &mut dyn FnMut(u64),
) -> Result<(), FetchError> {
    let file = File::create(to).map_err(|source| FetchError::Write { path: to.into(), source })?;
    match &wheel.location {
        Location::Path(path) => {
            let source =
                File::open(path).map_err(|source| FetchError::Open { path: path.clone(), source })?;
            Transfer { wheel, from: path.display().to_string(), to, limit }.run(source, file, received)
        }
        Location::Url(url) => {
            let request = agent.get(url).call();
            let response = request
                .map_err(|source| FetchError::Request { url: url.clone(), source: Box::new(source) })?;
            let transfer = Transfer { wheel, from: url.clone(), to, limit };
            if let Some(announced) = response.body().content_length() {
                transfer.check_size(announced)?;
            }
            transfer.run(response.into_body().into_reader(), file, received)
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
