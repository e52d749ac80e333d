//! Access keys: who may call this server.
//!
//! A key is an id, which is public, and a secret, which signs requests and is also the bearer token of `POST /run/{name}`.
//! The first start makes one and keeps it in `keys.json` in the data directory, mode 0600. A secret is never printed: not
//! by Debug, not in an error, not in a log.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// An access key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// The public part, named in every signed request.
    pub id: String,
    /// The secret part.
    pub secret: String,
}

/// The keys that a server accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    keys: Vec<AccessKey>,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not `ID:SECRET`.
    #[error(
        "an access key is written ID:SECRET, the id of 16 to 128 letters and digits, the secret of at least 16 visible characters"
    )]
    Malformed,
    /// The file system refused.
    #[error("failed to {call} {path}", path = path.display())]
    File {
        /// What was tried.
        call: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have read the secrets.
    #[error("{path} can be read by others (mode {mode:04o}): run chmod 600 on it", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is not what this program writes.
    #[error("{path} holds no keys, or one that is too short: remove it to have a new key made", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

impl AccessKey {
    /// Parses `ID:SECRET`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (id, secret) = text.split_once(':').ok_or(KeyError::Malformed)?;
        let id_fits = (16..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let secret_fits = (16..=256).contains(&secret.len()) && secret.bytes().all(|b| b.is_ascii_graphic());
        if !id_fits || !secret_fits {
            return Err(KeyError::Malformed);
        }
        Ok(Self { id: id.into(), secret: secret.into() })
    }

    /// Makes a key from the system's random numbers.
    pub fn generate() -> io::Result<Self> {
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut bytes = [0; 46];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let id = bytes[..16].iter().map(|b| char::from(LETTERS[usize::from(b % 32)]));
        Ok(Self {
            id: format!("SOCK{}", id.collect::<String>()),
            secret: URL_SAFE_NO_PAD.encode(&bytes[16..]),
        })
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Keys {
    /// These keys and no others.
    pub fn new(keys: Vec<AccessKey>) -> Self {
        Self { keys }
    }

    /// Reads the keys of a data directory; makes the file with one new key if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let at = |call| move |source| KeyError::File { call, path: path.into(), source };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::create(path),
            opened => opened.map_err(at("open"))?,
        };
        let mode = file.metadata().map_err(at("stat"))?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.into(), mode });
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(at("read"))?;
        // The parser's message could quote the content: it is not kept.
        let keys: Self = serde_json::from_str(&text).map_err(|_| KeyError::Content { path: path.into() })?;
        let fits = |key: &AccessKey| AccessKey::parse(&format!("{}:{}", key.id, key.secret)).is_ok();
        if keys.keys.is_empty() || !keys.keys.iter().all(fits) {
            return Err(KeyError::Content { path: path.into() });
        }
        Ok(keys)
    }

    /// Written beside its place and moved there, so that a crash leaves no half a file.
    fn create(path: &Path) -> Result<Self, KeyError> {
        let at = |call| move |source| KeyError::File { call, path: path.into(), source };
        let keys = Self { keys: vec![AccessKey::generate().map_err(at("make a key for"))?] };
        let text = serde_json::to_vec_pretty(&keys).map_err(io::Error::from).map_err(at("write"))?;
        let fresh = path.with_extension("json.new");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("replace")(error)),
            _ => {}
        }
        let file = File::options().write(true).create_new(true).mode(0o600).open(&fresh);
        let mut file = file.map_err(at("create"))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(at("write"))?;
        fs::rename(&fresh, path).map_err(at("create"))?;
        Ok(keys)
    }

    /// These keys and one more.
    #[must_use]
    pub fn with(mut self, key: AccessKey) -> Self {
        self.keys.retain(|known| known.id != key.id);
        self.keys.insert(0, key);
        self
    }

    /// The key with this id.
    pub fn find(&self, id: &str) -> Option<&AccessKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// The key that this server signs its own links with, and that a local client uses.
    pub fn first(&self) -> Option<&AccessKey> {
        self.keys.first()
    }

    /// Whether a bearer token is one of the secrets; takes as long for a wrong token as for a right one.
    pub fn is_secret(&self, token: &str) -> bool {
        let equal = |key: &AccessKey| key.secret.as_bytes().ct_eq(token.as_bytes());
        self.keys.iter().fold(subtle::Choice::from(0), |found, key| found | equal(key)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_start_makes_a_key_that_the_next_start_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let made = Keys::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Keys::load_or_create(&path).unwrap(), made);
        let key = made.first().unwrap();
        assert!(key.id.len() == 20 && key.secret.len() == 40);
        assert!(AccessKey::parse(&format!("{}:{}", key.id, key.secret)).is_ok());
        assert!(made.is_secret(&key.secret) && !made.is_secret("") && !made.is_secret(&key.secret[1..]));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_and_no_error_shows_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        fs::write(&path, "{\"keys\": [{\"id\": \"A\", \"secret\": \"hush\"}] oops").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Keys::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { mode: 0o644, .. }), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Keys::load_or_create(&path).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hush"));
        let key = AccessKey { id: "SOCKSOCKSOCKSOCK".into(), secret: "hush".into() };
        assert!(!format!("{:?}", Keys::new(vec![key])).contains("hush"));
    }

    #[test]
    fn malformed_keys_are_refused() {
        for text in [
            "",
            "id",
            "short:0123456789abcdef",
            "SOCKSOCKSOCKSOCK:short",
            "SOCK/SOCK/SOCK/SOCK:0123456789abcdef",
        ] {
            assert!(AccessKey::parse(text).is_err(), "{text}");
        }
    }
}
