//! The server's side: what a request claims, and whether it is so.
//!
//! In two steps, because the body of a request should not be read for somebody who holds no key: [`Presented::parse`] needs
//! only the head and checks everything but the signature; [`Presented::verify`] needs the body.

use std::time::{Duration, SystemTime};

use hyper::header::{AUTHORIZATION, DATE, HeaderMap, HeaderName};
use subtle::ConstantTimeEq;
use time::format_description::well_known::Rfc2822;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::canonical::{Canonical, header_value};
use super::{ALGORITHM, SERVICE, STAMP, Scope, hex_sha256, stamp};
use crate::keys::{AccessKey, Keys};

/// How far a client's clock may be from this server's, either way.
const SKEW: Duration = Duration::from_secs(15 * 60);
/// The longest life of a link: seven days.
const MAX_EXPIRES: u64 = 604_800;

/// Why a request is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature.
    #[error("Missing Authentication Token")]
    Missing,
    /// There is something, but not all of it.
    #[error("{0}")]
    Incomplete(String),
    /// The id is none of this server's.
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    /// Signed too long ago.
    #[error("Signature expired: {signed} is now earlier than {earliest} ({now} - 15 min.)")]
    Expired {
        /// When it was signed.
        signed: String,
        /// When it could have been signed at the earliest.
        earliest: String,
        /// The server's time.
        now: String,
    },
    /// A link whose time is over.
    #[error("Signature expired: the link was valid until {until}, and it is {now}")]
    LinkExpired {
        /// When it ended.
        until: String,
        /// The server's time.
        now: String,
    },
    /// Signed in the future.
    #[error("Signature not yet current: {signed} is still later than {latest} ({now} + 15 min.)")]
    NotYet {
        /// When it was signed.
        signed: String,
        /// When it could have been signed at the latest.
        latest: String,
        /// The server's time.
        now: String,
    },
    /// The scope is for another service or another day.
    #[error("Credential should be scoped to {0}.")]
    Scope(String),
    /// A header that says what the request means is not under the signature.
    #[error("There were headers present in the request which were not signed: {0}")]
    Unsigned(String),
    /// It does not match.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
}

impl SignatureError {
    /// The code by which AWS's clients know it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "MissingAuthenticationTokenException",
            Self::Incomplete(_) => "IncompleteSignatureException",
            Self::UnknownKey => "UnrecognizedClientException",
            _ => "InvalidSignatureException",
        }
    }
}

/// A signature that a request carries, with a known key and within its time: not verified yet.
#[derive(Debug)]
pub struct Presented<'a> {
    key: &'a AccessKey,
    stamp: String,
    date: String,
    region: String,
    signed: Vec<String>,
    signature: String,
}

/// The parts, from the header or from the query.
struct Claim {
    credential: String,
    stamp: String,
    signed: String,
    signature: String,
    expires: Option<u64>,
}

impl<'a> Presented<'a> {
    /// Reads what a request claims, from its `Authorization` header or its query, and checks all that needs no body.
    pub fn parse(
        target: &str,
        headers: &HeaderMap,
        keys: &'a Keys,
        now: SystemTime,
    ) -> Result<Self, SignatureError> {
        let claim = match headers.get(AUTHORIZATION) {
            Some(value) => Claim::of_header(value.to_str().unwrap_or_default(), headers)?,
            None => Claim::of_query(target)?,
        };
        let parts: Vec<&str> = claim.credential.split('/').collect();
        let [id, date, region, service, terminator] = parts.as_slice() else {
            return Err(incomplete("Credential must have five parts: key/date/region/lambda/aws4_request"));
        };
        let key = keys.find(id).ok_or(SignatureError::UnknownKey)?;
        if *service != SERVICE {
            return Err(SignatureError::Scope("correct service: 'lambda'".into()));
        }
        if *terminator != "aws4_request" || !claim.stamp.starts_with(date) || date.len() != 8 {
            return Err(SignatureError::Scope("the day of X-Amz-Date, and end in 'aws4_request'".into()));
        }
        claim.check_time(now)?;

        let signed: Vec<String> = claim.signed.split(';').map(str::to_ascii_lowercase).collect();
        if !signed.is_sorted() || !signed.iter().any(|name| name == "host") {
            return Err(incomplete("SignedHeaders must be sorted and contain 'host'"));
        }
        let unsigned = |name: &&HeaderName| {
            name.as_str().starts_with("x-amz-") && !signed.iter().any(|known| known == name.as_str())
        };
        if let Some(name) = headers.keys().find(unsigned) {
            return Err(SignatureError::Unsigned(name.to_string()));
        }
        let (date, region) = ((*date).to_string(), (*region).to_string());
        Ok(Self { key, stamp: claim.stamp, date, region, signed, signature: claim.signature })
    }

    /// Whether the signature is the key's, for this request with this body.
    pub fn verify(
        &self,
        method: &str,
        target: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(), SignatureError> {
        let body_sha256 = hex_sha256(body);
        let stated = headers.get("x-amz-content-sha256");
        if stated.is_some_and(|hash| hash.as_bytes() != body_sha256.as_bytes()) {
            return Err(SignatureError::Mismatch);
        }
        let value = |name: &str| header_value(headers.get_all(name).iter().map(|value| value.as_bytes()));
        let canonical = Canonical {
            method,
            target,
            headers: self.signed.iter().map(|name| (name.as_str(), value(name))).collect(),
            body_sha256: &body_sha256,
        };
        let scope = Scope { date: &self.date, region: &self.region };
        let expected = scope.signature(&self.key.secret, &self.stamp, &canonical);
        let equal: bool = expected.as_bytes().ct_eq(self.signature.as_bytes()).into();
        if equal { Ok(()) } else { Err(SignatureError::Mismatch) }
    }
}

impl Claim {
    fn of_header(value: &str, headers: &HeaderMap) -> Result<Self, SignatureError> {
        let Some(rest) = value.strip_prefix(ALGORITHM) else {
            return Err(incomplete(&format!("Authorization header requires the scheme '{ALGORITHM}'")));
        };
        let part = |wanted: &str| {
            let found = rest.split(',').find_map(|part| part.trim().strip_prefix(wanted)?.strip_prefix('='));
            found
                .map(String::from)
                .ok_or_else(|| incomplete(&format!("Authorization header requires '{wanted}' parameter.")))
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (stamp, dated_by) = match (header("x-amz-date"), header(DATE.as_str())) {
            (Some(stamp), _) => (stamp.to_string(), "x-amz-date"),
            (None, Some(date)) => {
                let date = OffsetDateTime::parse(date, &Rfc2822).map_err(|_| undated())?;
                // The last hours of the year 9999 are in no year that has a date.
                let date = date.checked_to_offset(time::UtcOffset::UTC).ok_or_else(undated)?;
                (super::stamp(date), "date")
            }
            (None, None) => return Err(undated()),
        };
        let signed = part("SignedHeaders")?;
        if !signed.split(';').any(|name| name.eq_ignore_ascii_case(dated_by)) {
            return Err(SignatureError::Unsigned(dated_by.into()));
        }
        Ok(Self {
            credential: part("Credential")?,
            stamp,
            signed,
            signature: part("Signature")?,
            expires: None,
        })
    }

    fn of_query(target: &str) -> Result<Self, SignatureError> {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let get = |wanted: &str| {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
        };
        let signature = get("X-Amz-Signature").ok_or(SignatureError::Missing)?;
        let need = |name: &str| {
            get(name).ok_or_else(|| incomplete(&format!("the query requires '{name}' parameter.")))
        };
        if need("X-Amz-Algorithm")? != ALGORITHM {
            return Err(incomplete(&format!("X-Amz-Algorithm must be '{ALGORITHM}'")));
        }
        let expires = need("X-Amz-Expires")?.parse().ok().filter(|seconds| *seconds <= MAX_EXPIRES);
        Ok(Self {
            credential: need("X-Amz-Credential")?,
            stamp: need("X-Amz-Date")?,
            signed: need("X-Amz-SignedHeaders")?,
            signature,
            expires: Some(expires.ok_or_else(|| incomplete("X-Amz-Expires must be at most 604800 seconds"))?),
        })
    }

    fn check_time(&self, now: SystemTime) -> Result<(), SignatureError> {
        let signed = PrimitiveDateTime::parse(&self.stamp, STAMP).map_err(|_| undated())?;
        let signed = SystemTime::from(signed.assume_utc());
        let text = |time: SystemTime| stamp(time.into());
        let (latest, earliest) = (now + SKEW, now - SKEW);
        if signed > latest {
            return Err(SignatureError::NotYet {
                signed: self.stamp.clone(),
                latest: text(latest),
                now: text(now),
            });
        }
        match self.expires.map(|seconds| signed + Duration::from_secs(seconds)) {
            Some(until) if until < now => {
                Err(SignatureError::LinkExpired { until: text(until), now: text(now) })
            }
            None if signed < earliest => Err(SignatureError::Expired {
                signed: self.stamp.clone(),
                earliest: text(earliest),
                now: text(now),
            }),
            _ => Ok(()),
        }
    }
}

fn incomplete(reason: &str) -> SignatureError {
    SignatureError::Incomplete(reason.into())
}

fn undated() -> SignatureError {
    incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
}
