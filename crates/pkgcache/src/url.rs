//! The little that has to be known of a URL: its origin, the credentials in it, and percent escapes.
//!
//! The resolver strips credentials from the URLs that it locks, which is right: a lock is shown to people. A
//! private index wants them again for the download, so they are taken from the operator's sources and sent to
//! the origin they were written for and to no other.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::Sources;

/// Who may be told what: origins, such as `https://index.example:8443`, with the value of an `Authorization`
/// header.
#[derive(Clone, Default)]
pub(crate) struct Credentials(Vec<(String, String)>);

impl Credentials {
    /// The credentials in the URLs of `sources`.
    pub(crate) fn of(sources: &Sources) -> Self {
        let urls = sources.index_url.iter().chain(&sources.find_links);
        let known = urls.filter_map(|url| {
            let user = parts(url)?.user?;
            let basic = STANDARD.encode(decode_bytes(user));
            Some((origin(url)?, format!("Basic {basic}")))
        });
        Self(known.collect())
    }

    /// What to send along with a request for `url`.
    pub(crate) fn for_url(&self, url: &str) -> Option<&str> {
        let origin = origin(url)?;
        self.0.iter().find(|(known, _)| *known == origin).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(origin, _)| origin)).finish()
    }
}

struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
}

fn parts(url: &str) -> Option<Parts<'_>> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    Some(Parts { scheme, user, host })
}

/// Scheme, host and port, in one spelling.
fn origin(url: &str) -> Option<String> {
    let Parts { scheme, host, .. } = parts(url)?;
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    let default = if scheme == "https" { ":443" } else { ":80" };
    Some(format!("{scheme}://{}", host.strip_suffix(default).unwrap_or(&host)))
}

/// A URL, or a text with some in it, that can be shown: without credentials.
pub(crate) fn redacted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let end = after.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(after.len());
        let (authority, others) = after.split_at(end);
        shown.push_str(before);
        match authority.rsplit_once('@') {
            Some((_, host)) => shown.extend(["***@", host]),
            None => shown.push_str(authority),
        }
        rest = others;
    }
    shown + rest
}

/// Undoes percent escapes: `%2B` is a plus, and local versions have one.
pub(crate) fn decode(text: &str) -> String {
    String::from_utf8_lossy(&decode_bytes(text)).into_owned()
}

fn decode_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = (first == b'%').then(|| after.get(..2)).flatten();
        match escape.and_then(|digits| hex::decode(digits).ok()) {
            Some(byte) => {
                bytes.extend(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_their_origin_only() {
        let index_url = Some("https://user:p%40ss@Index.example:443/simple".into());
        let credentials =
            Credentials::of(&Sources { index_url, find_links: vec!["/srv".into()], ..Sources::default() });
        let basic = format!("Basic {}", STANDARD.encode("user:p@ss"));
        assert_eq!(credentials.for_url("https://index.example/files/a.whl"), Some(basic.as_str()));
        for elsewhere in [
            "http://index.example/a.whl",
            "https://index.example:8443/a.whl",
            "https://index.example.evil.example/a.whl",
            "https://evil.example/@index.example/a.whl",
            "https://evil.example?@index.example/a.whl",
            "https://index.example@evil.example/a.whl",
            "a.whl",
        ] {
            assert_eq!(credentials.for_url(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = "https://user:s3cret@index.example/simple";
        assert_eq!(redacted(url), "https://***@index.example/simple");
        assert_eq!(redacted("https://index.example/@x"), "https://index.example/@x");
        let line = "a @ https://u:s3cret@one.example, b @ git+ssh://s3cr@t@two.example/c";
        assert_eq!(redacted(line), "a @ https://***@one.example, b @ git+ssh://***@two.example/c");
        assert_eq!(redacted("://@"), "://***@");
        let sources =
            Sources { index_url: Some(url.into()), find_links: vec![url.into()], ..Sources::default() };
        let shown = format!("{sources:?} {:?}", Credentials::of(&sources));
        assert!(!shown.contains("s3cret") && shown.contains("index.example"), "{shown}");
    }
}
