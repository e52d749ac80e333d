//! The names of the Lambda API: functions, ARNs and qualifiers, parsed once at the edge.
//!
//! A function is addressed by its bare name, a partial ARN or a full ARN, each with an optional qualifier. All of them
//! end as a [`FunctionName`], which is also safe as a file name: letters, digits, `-` and `_` only. Nothing behind the
//! edge ever sees the text that a client sent.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The one version that exists of every function, until versions can be published.
pub const LATEST: &str = "$LATEST";
const MAX_NAME: usize = 64;

/// The name of a function: 1 to 64 letters, digits, `-` or `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName(String);

/// Where functions live: the region and account that their ARNs name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    /// A region such as `us-east-1`.
    pub region: String,
    /// Twelve digits.
    pub account: String,
}

/// What a client wrote where the API expects a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRef {
    /// The function.
    pub name: FunctionName,
    /// The version or alias after the last colon.
    pub qualifier: Option<String>,
    /// The region of a full ARN.
    pub region: Option<String>,
    /// The account of a partial or full ARN.
    pub account: Option<String>,
}

/// A text that names no function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a function's name.
    #[error("{0:?} is not a function name: use 1 to 64 letters, digits, '-' and '_'")]
    Name(String),
    /// Not one of the three ways to write a function.
    #[error("{0:?} is neither a function name, a partial ARN (123456789012:function:name) nor a full ARN")]
    Reference(String),
}

impl FunctionName {
    /// Checks a bare name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(in_name) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Name(shortened(text)))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for FunctionName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> Self {
        name.0
    }
}

impl Default for Realm {
    fn default() -> Self {
        Self { region: "us-east-1".into(), account: "000000000000".into() }
    }
}

impl Realm {
    /// The unqualified ARN of a function.
    pub fn arn(&self, name: &FunctionName) -> String {
        format!("arn:aws:lambda:{}:{}:function:{name}", self.region, self.account)
    }
}

impl FunctionRef {
    /// Parses `name`, `name:qualifier`, `[account:]function:name[:qualifier]` or `arn:aws…:lambda:region:account:function:name[:qualifier]`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bad = || NameError::Reference(shortened(text));
        if text.len() > 256 {
            return Err(bad());
        }
        let parts: Vec<&str> = text.split(':').collect();
        let (region, account, rest) = match parts.as_slice() {
            ["arn", partition, "lambda", region, account, "function", rest @ ..]
                if partition.starts_with("aws") && !region.is_empty() && is_account(account) =>
            {
                (Some(*region), Some(*account), rest)
            }
            [account, "function", rest @ ..] if is_account(account) => (None, Some(*account), rest),
            ["function", rest @ ..] if !rest.is_empty() => (None, None, rest),
            rest => (None, None, rest),
        };
        let (name, qualifier) = match rest {
            [name] => (*name, None),
            [name, qualifier] if is_qualifier(qualifier) => (*name, Some((*qualifier).to_string())),
            _ => return Err(bad()),
        };
        let name = FunctionName::parse(name)?;
        Ok(Self { name, qualifier, region: region.map(String::from), account: account.map(String::from) })
    }
}

/// Whether a text can be a version or an alias.
pub(crate) fn is_qualifier(text: &str) -> bool {
    let word = |text: &str| !text.is_empty() && text.len() <= 128 && text.bytes().all(in_name);
    text == LATEST || word(text)
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Enough of a text to recognise it in a message.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, Option<String>) {
        let reference = FunctionRef::parse(text).unwrap();
        (reference.name.to_string(), reference.qualifier)
    }

    #[test]
    fn names_partial_and_full_arns_are_one_function() {
        for text in [
            "resize",
            "function:resize",
            "123456789012:function:resize",
            "arn:aws:lambda:us-east-1:123456789012:function:resize",
            "arn:aws-us-gov:lambda:us-gov-east-1:123456789012:function:resize",
        ] {
            assert_eq!(parsed(text), ("resize".into(), None), "{text}");
            assert_eq!(parsed(&format!("{text}:$LATEST")), ("resize".into(), Some("$LATEST".into())));
            assert_eq!(parsed(&format!("{text}:live-1")), ("resize".into(), Some("live-1".into())));
        }
        assert_eq!(parsed("function"), ("function".into(), None));
    }

    #[test]
    fn what_is_no_function_is_refused() {
        let long = "a".repeat(65);
        for text in
            ["", "../etc", "a b", "a/b", "a:b:c", "a:", ":a", "a:$NEXT", "arn:aws:s3:::x", &long, "é", "a.b"]
        {
            assert!(FunctionRef::parse(text).is_err(), "{text:?}");
        }
        insta::assert_snapshot!(FunctionRef::parse("../etc/passwd").unwrap_err(), @r#""../etc/passwd" is not a function name: use 1 to 64 letters, digits, '-' and '_'"#);
    }
}
