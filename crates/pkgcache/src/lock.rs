//! A lock: exactly which wheels, by content, for which interpreter.
//!
//! The lock is what a deploy stores and what everything later is decided on: the store by each wheel's hash, sharing of zygotes
//! by name, version and hash. It is plain data with a stable JSON form; what is read back is checked like any other input.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::hash::Hasher;
use crate::store::LAYOUT;
use crate::{DistName, LockId, Sha256};

/// Wheels for one interpreter, sorted by name, no name twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Lock {
    /// The interpreter's tag, such as `cp311`.
    pub tag: String,
    /// The wheels.
    pub packages: Vec<LockedWheel>,
}

/// One wheel of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedWheel {
    /// The distribution.
    pub name: DistName,
    /// Its version, as the resolver spells it.
    pub version: String,
    /// The wheel's file name.
    pub filename: String,
    /// Where to fetch it from.
    pub location: Location,
    /// The hash of the wheel file.
    pub sha256: Sha256,
    /// The size of the wheel file in bytes, where the index says it.
    pub size: Option<u64>,
}

/// Where a wheel file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Location {
    /// On a server, by http or https.
    Url(String),
    /// On this host; an absolute path.
    Path(PathBuf),
}

/// Why a list of wheels is not a lock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Two wheels for one distribution.
    #[error("the lock names {0} twice: one version of a distribution can be imported")]
    Duplicate(DistName),
    /// The interpreter's tag would not do as part of a file name.
    #[error("{0:?} is not an interpreter tag such as cp311")]
    Tag(String),
    /// A wheel's file name would not do as one.
    #[error("{0:?} is not the file name of a wheel")]
    Filename(String),
}

#[derive(Deserialize)]
struct Unchecked {
    tag: String,
    packages: Vec<LockedWheel>,
}

impl TryFrom<Unchecked> for Lock {
    type Error = LockError;

    fn try_from(lock: Unchecked) -> Result<Self, LockError> {
        Self::new(lock.tag, lock.packages)
    }
}

impl Lock {
    /// Sorts and checks.
    pub fn new(tag: impl Into<String>, mut packages: Vec<LockedWheel>) -> Result<Self, LockError> {
        let tag = tag.into();
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if !plain(&tag) || tag.len() > 16 {
            return Err(LockError::Tag(tag));
        }
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = packages.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(LockError::Duplicate(pair[0].name.clone()));
        }
        if let Some(bad) = packages.iter().find(|wheel| !is_wheel_filename(&wheel.filename)) {
            return Err(LockError::Filename(bad.filename.clone()));
        }
        Ok(Self { tag, packages })
    }

    /// The identity: equal for locks whose views hold the same files. Where a wheel was fetched from is not part of it.
    pub fn id(&self) -> LockId {
        let mut hasher = Hasher::default();
        // Every field ends in a newline, which no field contains: no two different locks give the same text.
        let mut line = |text: &str| {
            hasher.update(text.as_bytes());
            hasher.update(b"\n");
        };
        line(&format!("layout {LAYOUT}"));
        line(&self.tag);
        for wheel in &self.packages {
            line(wheel.name.as_str());
            line(&wheel.version);
            line(&wheel.sha256.to_string());
        }
        LockId(hasher.finish())
    }
}

/// `name-version(-build)-python-abi-platform.whl`, and nothing that a path could be made of.
pub(crate) fn is_wheel_filename(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.+!".contains(&b);
    let parts = name.strip_suffix(".whl").map_or(0, |stem| stem.split('-').count());
    name.len() <= 255 && name.bytes().all(allowed) && (parts == 5 || parts == 6) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheel(name: &str, version: &str, content: &[u8]) -> LockedWheel {
        LockedWheel {
            name: DistName::parse(name).unwrap(),
            version: version.into(),
            filename: format!("{name}-{version}-py3-none-any.whl"),
            location: Location::Url(format!("https://index.example/{name}-{version}-py3-none-any.whl")),
            sha256: Sha256::of(content),
            size: None,
        }
    }

    #[test]
    fn the_identity_is_of_content_not_of_order_or_origin() {
        let (a, b) = (wheel("a", "1", b"a"), wheel("b", "2", b"b"));
        let one = Lock::new("cp311", vec![a.clone(), b.clone()]).unwrap();
        let moved = LockedWheel { location: Location::Path("/srv/b.whl".into()), size: Some(3), ..b.clone() };
        assert_eq!(one.id(), Lock::new("cp311", vec![moved, a.clone()]).unwrap().id());
        assert_ne!(one.id(), Lock::new("cp312", vec![a.clone(), b.clone()]).unwrap().id());
        assert_ne!(one.id(), Lock::new("cp311", vec![a.clone(), wheel("b", "2", b"other")]).unwrap().id());
        assert_ne!(one.id(), Lock::new("cp311", vec![a]).unwrap().id());
    }

    #[test]
    fn json_reads_back_and_is_checked() {
        let lock = Lock::new("cp311", vec![wheel("b", "2", b"b"), wheel("a", "1", b"a")]).unwrap();
        let text = serde_json::to_string(&lock).unwrap();
        assert_eq!(serde_json::from_str::<Lock>(&text).unwrap(), lock);
        let twice = text.replace("\"a\"", "\"b\"");
        let error = serde_json::from_str::<Lock>(&twice).unwrap_err().to_string();
        assert!(error.starts_with("the lock names b twice"), "{error}");
        let escape = text.replace("cp311", "../cp311");
        assert!(serde_json::from_str::<Lock>(&escape).is_err());
    }

    #[test]
    fn json_form() {
        let lock = Lock::new("cp311", vec![wheel("a", "1", b"a")]).unwrap();
        insta::assert_json_snapshot!(lock, @r#""#);
    }
}
