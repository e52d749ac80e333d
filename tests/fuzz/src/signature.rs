//! Signature Version 4: requests that were signed, and what somebody on their way makes of them.
//!
//! Bytes: a change (its place, how much is cut out there, how much is put in, and that), then a request as text: a line
//! `METHOD TARGET`, lines `NAME: VALUE`, an empty line, the body.
//!
//! * What [`sign`](sigv4::sign) signs is verified, and what [`presign`](sigv4::presign) links to, until it expires.
//! * The same request with a changed part is not, unless what changed has no meaning, by a second reading of what requests mean.
//! * No other secret has made the signature.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use sock_gateway::sigv4::{self, Presented, SignatureError};
use sock_gateway::{AccessKey, Keys};

/// 2026-03-01T12:00:00Z, when the committed signatures were made.
const NOW: u64 = 1_772_366_400;
const ID: &str = "SOCKEXAMPLEEXAMPLE12";
const SECRET: &str = "wJalrXUtnFEMIexampleKEYexampleKEYexample";

/// See the module.
pub fn run(bytes: &[u8]) {
    let Some((change, text)) = Change::of(bytes) else { return };
    let Some(mut request) = Request::parse(text) else { return };
    // As it is: it may carry a signature, in whichever state.
    let _ = request.check(NOW);

    let Some(mut headers) = request.honest_headers() else { return };
    sigv4::sign(request.method.as_str(), &request.target, &mut headers, &request.body, &key(), at(NOW));
    request.headers = map(&headers).expect("what was added can be a header");
    assert_eq!(request.check(NOW), Ok(()), "what was signed is not verified");
    assert!(request.check(NOW + 15 * 60 + 1).is_err() && request.check(NOW - 15 * 60 - 1).is_err());
    let other = Keys::new(vec![AccessKey { id: ID.into(), secret: SECRET.to_lowercase() }]);
    assert_eq!(request.check_with(&other, NOW), Err(SignatureError::Mismatch), "any secret will do");

    if let Some(mut changed) = Request::parse(&change.apply(text)) {
        // Whoever changes it cannot sign, and has to take what there is.
        for name in ["authorization", "x-amz-date"] {
            changed.headers.insert(name, request.headers[name].clone());
        }
        if changed.check(NOW).is_ok() {
            assert_eq!(changed.meaning(), request.meaning(), "a changed request is verified");
        }
    }
    link(&request, &change);
}

/// The same for a link to what was asked for.
fn link(request: &Request, change: &Change<'_>) {
    const SECONDS: u32 = 60;
    let path = request.target.split('?').next().unwrap_or_default();
    let link = sigv4::presign(path, "localhost:7625", &key(), at(NOW), SECONDS);
    let fetched = |target: &[u8]| Request::parse(&[b"GET ", target, b"\nhost: localhost:7625\n\n"].concat());
    let Some(good) = fetched(link.as_bytes()) else { return };
    assert_eq!(good.check(NOW + u64::from(SECONDS)), Ok(()), "a link does not work");
    assert!(good.check(NOW + u64::from(SECONDS) + 1).is_err(), "a link works for longer");
    if let Some(changed) = fetched(&change.apply(link.as_bytes()))
        && changed.check(NOW).is_ok()
    {
        assert_eq!(changed.meaning(), good.meaning(), "a changed link works");
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn key() -> AccessKey {
    AccessKey { id: ID.into(), secret: SECRET.into() }
}

/// At this place, for so many bytes, these.
struct Change<'a> {
    place: usize,
    cut: usize,
    put: &'a [u8],
}

impl<'a> Change<'a> {
    /// The change at the beginning of `bytes`, and what follows it.
    fn of(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[high, low, cut, put], rest) = bytes.split_first_chunk::<4>()?;
        let (put, rest) = rest.split_at_checked(usize::from(put))?;
        let place = usize::from(u16::from_be_bytes([high, low]));
        Some((Self { place, cut: cut.into(), put }, rest))
    }

    fn apply(&self, text: &[u8]) -> Vec<u8> {
        let (head, tail) = text.split_at(self.place % (text.len() + 1));
        [head, self.put, &tail[self.cut.min(tail.len())..]].concat()
    }
}

/// A request as a server has it when its head was understood.
struct Request {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Request {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = text.splitn(2, |byte| *byte == b'\n');
        let line = std::str::from_utf8(lines.next()?).ok()?;
        let (method, target) = line.split_once(' ')?;
        let target = target.parse::<Uri>().ok()?.path_and_query()?.as_str().to_owned();
        let (mut headers, mut rest) = (HeaderMap::new(), lines.next()?);
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if line.is_empty() {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
        }
        Some(Self { method: method.parse().ok()?, target, headers, body: rest.to_vec() })
    }

    fn check(&self, now: u64) -> Result<(), SignatureError> {
        self.check_with(&Keys::new(vec![key()]), now)
    }

    fn check_with(&self, keys: &Keys, now: u64) -> Result<(), SignatureError> {
        let presented = Presented::parse(&self.target, &self.headers, keys, at(now))?;
        presented.verify(self.method.as_str(), &self.target, &self.headers, &self.body)
    }

    /// What an honest client would sign: headers that are text, with a host, and no hash of another body.
    fn honest_headers(&self) -> Option<Vec<(String, String)>> {
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            if name != "x-amz-content-sha256" {
                let value = std::str::from_utf8(value.as_bytes()).ok()?;
                headers.push((name.to_string(), value.to_owned()));
            }
        }
        if !self.headers.contains_key("host") {
            headers.push(("Host".into(), "localhost:7625".into()));
        }
        Some(headers)
    }

    /// What a server may go by, each part in one spelling.
    fn meaning(&self) -> Meaning {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut segments: Vec<String> = Vec::new();
        for segment in path.split('/').filter(|segment| !segment.is_empty() && *segment != ".") {
            if segment == ".." {
                segments.pop();
            } else {
                segments.push(segment.to_owned());
            }
        }
        let mut query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .filter(|(name, _)| name != "X-Amz-Signature")
            .collect();
        query.sort();
        let authorization = self.headers.get("authorization").map_or(&b""[..], |value| value.as_bytes());
        let authorization = String::from_utf8_lossy(authorization);
        let signed = authorization.split("SignedHeaders=").nth(1).unwrap_or_default();
        let signed = signed.split(',').next().unwrap_or_default().split(';');
        let headers = signed.filter(|name| !name.is_empty()).map(|name| (name.to_owned(), self.values(name)));
        Meaning {
            method: self.method.clone(),
            segments,
            query,
            // One that says nothing is as good as none.
            headers: headers.filter(|(_, values)| !values.is_empty()).collect(),
            body: self.body.clone(),
        }
    }

    /// The words of a header's values.
    fn values(&self, name: &str) -> Vec<Vec<u8>> {
        let values: Vec<&[u8]> = self.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
        let values = values.join(&b',');
        let words = values.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        words.map(<[u8]>::to_vec).collect()
    }
}

#[derive(Debug, PartialEq)]
struct Meaning {
    method: Method,
    segments: Vec<String>,
    query: Vec<(String, String)>,
    headers: BTreeSet<(String, Vec<Vec<u8>>)>,
    body: Vec<u8>,
}

fn map(headers: &[(String, String)]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
    }
    Some(map)
}
