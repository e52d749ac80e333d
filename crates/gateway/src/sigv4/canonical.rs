//! The canonical form of a request, which both sides have to write down byte for byte alike.

use std::fmt::Write;

/// A request in the parts that are signed.
pub(super) struct Canonical<'a> {
    pub(super) method: &'a str,
    /// Path and query as on the wire.
    pub(super) target: &'a str,
    /// Lower-case names in order, with their values, which need not be text.
    pub(super) headers: Vec<(&'a str, Vec<u8>)>,
    pub(super) body_sha256: &'a str,
}

impl Canonical<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (path, query) = self.target.split_once('?').unwrap_or((self.target, ""));
        let mut bytes =
            format!("{}\n{}\n{}\n", self.method, canonical_path(path), canonical_query(query)).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend([name.as_bytes(), b":", value, b"\n"].concat());
        }
        let names: Vec<_> = self.headers.iter().map(|(name, _)| *name).collect();
        bytes.extend(format!("\n{}\n{}", names.join(";"), self.body_sha256).into_bytes());
        bytes
    }
}

/// Dot segments and empty ones go, then what is left is encoded once more.
fn canonical_path(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(encode(segment)),
        }
    }
    let mut canonical = format!("/{}", segments.join("/"));
    if !segments.is_empty() && path.ends_with('/') {
        canonical.push('/');
    }
    canonical
}

/// Pairs sorted by name, then by value, in the one spelling of their encoding; without the signature itself.
///
/// A `+` is a space, as it is for whoever reads the query: were it a `+` here, a signed `%2B` could be turned into a space.
fn canonical_query(query: &str) -> String {
    let again = |text: &str| {
        let text = text.replace('+', " ");
        encode_bytes(&percent_encoding::percent_decode_str(&text).collect::<Vec<u8>>())
    };
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (again(name), again(value)))
        .filter(|(name, _)| name != "X-Amz-Signature")
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// A header's values without the white space that a proxy may change.
pub(super) fn header_value<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let words = |value: &'a [u8]| {
        let words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join(&b' ')
    };
    values.map(words).collect::<Vec<_>>().join(&b',')
}

/// Percent-encodes all but letters, digits, `-`, `.`, `_` and `~`.
pub(super) fn encode(text: &str) -> String {
    encode_bytes(text.as_bytes())
}

fn encode_bytes(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
