//! Names of distributions, in the one spelling that the packaging rules call normalised.
//!
//! `Flask_SQLAlchemy`, `flask.sqlalchemy` and `flask-sqlalchemy` are one distribution. Comparing raw spellings is how a cache
//! ends up with two copies of it, so a name is normalised once, where it enters, and never again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name that is accepted; real ones stay below eighty characters.
const MAX_LEN: usize = 128;

/// A distribution's name: lower case, runs of `-`, `_` and `.` folded into one `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DistName(String);

/// A text that cannot be the name of a distribution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a distribution name: letters, digits and single `-`, `_` or `.` between them")]
pub struct NameError(String);

impl DistName {
    /// Checks and normalises a name in any of its spellings.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let mut chars = text.chars();
        if text.len() > MAX_LEN
            || !edge(text.chars().next())
            || !edge(text.chars().last())
            || !chars.all(inner)
        {
            return Err(NameError(text.chars().take(MAX_LEN).collect()));
        }
        let mut name = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '-' | '_' | '.' if name.ends_with('-') => {}
                '-' | '_' | '.' => name.push('-'),
                c => name.push(c.to_ascii_lowercase()),
            }
        }
        Ok(Self(name))
    }

    /// The normalised spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DistName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DistName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for DistName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<DistName> for String {
    fn from(name: DistName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_one_distribution_are_equal() {
        for spelling in ["Flask_SQLAlchemy", "flask.sqlalchemy", "FLASK-SQLAlchemy", "flask-_.sqlalchemy"] {
            assert_eq!(DistName::parse(spelling).unwrap().as_str(), "flask-sqlalchemy");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "-a", "a-", ".", "a b", "a/b", "../a", "ä", "a\n", "a;b", &"a".repeat(129)] {
            assert!(DistName::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn normalising_is_idempotent(text in "[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?") {
            let once = DistName::parse(&text).unwrap();
            prop_assert_eq!(DistName::parse(once.as_str()).unwrap(), once);
        }
    }
}
