//! Signature Version 4: how clients of the Lambda API prove that they hold a key.
//!
//! [`sign`] is the client's side (the command line uses it), [`verify`](Presented::verify) the server's, [`presign`] a link
//! that works without a header. All build the same canonical request:
//!
//! ```text
//! METHOD ⏎ path, encoded again ⏎ query, sorted ⏎ name:value of each signed header ⏎ … ⏎ ⏎ signed names ⏎ sha256(body)
//! ```
//!
//! The body is always hashed here: a hash that a client states counts only where it is the body's, so that a captured
//! signature is worth nothing for another body. The path is encoded once more than on the wire, as every service but S3
//! wants it.

mod canonical;
mod verify;

use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::keys::AccessKey;
use canonical::{Canonical, header_value};

pub use verify::{Presented, SignatureError};

/// The name in the credential scope.
const SERVICE: &str = "lambda";
/// The region that [`sign`] names. The server takes any.
const REGION: &str = "us-east-1";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const STAMP: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// Signs a request: adds `x-amz-date` and `authorization` to `headers`.
///
/// `target` is the path and query as they go over the wire; `headers` has to contain `host`, with the port if the client
/// sends one. Every header that is there gets signed.
#[allow(clippy::too_many_arguments, reason = "a request has these parts, and every caller has each at hand")]
pub fn sign(
    method: &str,
    target: &str,
    headers: &mut Vec<(String, String)>,
    body: &[u8],
    key: &AccessKey,
    now: SystemTime,
) {
    headers
        .retain(|(name, _)| !["authorization", "x-amz-date"].contains(&name.to_ascii_lowercase().as_str()));
    let date = stamp(now.into());
    headers.push(("x-amz-date".into(), date.clone()));

    let mut names: Vec<String> = headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort();
    names.dedup();
    let value = |wanted: &str| {
        let values = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        header_value(values.map(|(_, value)| value.as_bytes()))
    };
    let canonical = Canonical {
        method,
        target,
        headers: names.iter().map(|name| (name.as_str(), value(name))).collect(),
        body_sha256: &hex_sha256(body),
    };
    let scope = Scope { date: &date[..8], region: REGION };
    let signature = scope.signature(&key.secret, &date, &canonical);
    let authorization = format!(
        "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={signature}",
        key.id,
        scope.text(),
        names.join(";")
    );
    headers.push(("authorization".into(), authorization));
}

/// A path and query with which anybody may `GET` `path` from `host` for `seconds`.
pub fn presign(path: &str, host: &str, key: &AccessKey, now: SystemTime, seconds: u32) -> String {
    let date = stamp(now.into());
    let scope = Scope { date: &date[..8], region: REGION };
    let credential = canonical::encode(&format!("{}/{}", key.id, scope.text()));
    let target = format!(
        "{path}?X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={credential}&X-Amz-Date={date}\
         &X-Amz-Expires={seconds}&X-Amz-SignedHeaders=host"
    );
    let canonical = Canonical {
        method: "GET",
        target: &target,
        headers: vec![("host", host.into())],
        body_sha256: &hex_sha256(b""),
    };
    let signature = scope.signature(&key.secret, &date, &canonical);
    format!("{target}&X-Amz-Signature={signature}")
}

/// What a derived key is good for.
struct Scope<'a> {
    date: &'a str,
    region: &'a str,
}

impl Scope<'_> {
    fn text(&self) -> String {
        format!("{}/{}/{SERVICE}/aws4_request", self.date, self.region)
    }

    /// The signature in hex.
    fn signature(&self, secret: &str, stamp: &str, canonical: &Canonical<'_>) -> String {
        let request = hex_sha256(&canonical.bytes());
        let to_sign = format!("{ALGORITHM}\n{stamp}\n{}\n{request}", self.text());
        let key = [self.date, self.region, SERVICE, "aws4_request"]
            .into_iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| mac(&key, part.as_bytes()));
        hex::encode(mac(&key, to_sign.as_bytes()))
    }
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

fn hex_sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn stamp(time: OffsetDateTime) -> String {
    time.format(STAMP).expect("a date that the clock gives can be written")
}

#[cfg(test)]
mod tests;
