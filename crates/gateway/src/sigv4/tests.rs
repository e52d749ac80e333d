//! Against signatures that botocore made, and what happens to them when anything is changed.

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::keys::Keys;

/// 2026-03-01T12:00:00Z.
static NOW: LazyLock<SystemTime> = LazyLock::new(|| UNIX_EPOCH + Duration::from_secs(1_772_366_400));

fn key() -> AccessKey {
    AccessKey::parse("SOCKEXAMPLEEXAMPLE12:wJalrXUtnFEMIexampleKEYexampleKEYexample").unwrap()
}

fn map(headers: &[(String, String)]) -> HeaderMap {
    let pair = |(name, value): &(String, String)| {
        (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap())
    };
    headers.iter().map(pair).collect()
}

fn check(
    method: &str,
    target: &str,
    headers: &[(String, String)],
    body: &[u8],
    now: SystemTime,
) -> Result<(), SignatureError> {
    let (headers, keys) = (map(headers), Keys::new(vec![key()]));
    Presented::parse(target, &headers, &keys, now)?.verify(method, target, &headers, body)
}

fn pairs(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

const TARGET: &str = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Aecho/invocations?Qualifier=%24LATEST";

/// What botocore's signer makes of this request, with the clock at `NOW`.
fn by_botocore() -> Vec<(String, String)> {
    pairs(&[
        ("host", "127.0.0.1:7625"),
        ("user-agent", "Boto3"),
        ("x-amz-client-context", "  a   b "),
        ("x-amz-date", "20260301T120000Z"),
        ("x-amz-invocation-type", "RequestResponse"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=SOCKEXAMPLEEXAMPLE12/20260301/eu-west-1/lambda/aws4_request, \
             SignedHeaders=host;x-amz-client-context;x-amz-date;x-amz-invocation-type, \
             Signature=0ac8f01868b69a3af0f19646ad730e98aceef037eeb6afe7a7adb32b35ac9a85",
        ),
    ])
}

#[test]
fn botocore_signature_is_believed() {
    assert_eq!(check("POST", TARGET, &by_botocore(), b"{\"a\": 1}", *NOW), Ok(()));
}

#[test]
fn botocore_link_is_believed_until_it_expires() {
    let target = "/2015-03-31/functions/echo?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=SOCKEXAMPLEEXAMPLE12%2F20260301%2Feu-west-1%2Flambda%2Faws4_request&X-Amz-Date=20260301T120000Z&X-Amz-Expires=600&X-Amz-SignedHeaders=host&X-Amz-Signature=15a84b0f2475afd07b316d96240b62a4532b2d7c6862d4b79ab590471d7c21a7";
    let host = pairs(&[("host", "127.0.0.1:7625")]);
    assert_eq!(check("GET", target, &host, b"", *NOW + Duration::from_secs(600)), Ok(()));
    let late = check("GET", target, &host, b"", *NOW + Duration::from_secs(601));
    assert!(matches!(late, Err(SignatureError::LinkExpired { .. })), "{late:?}");
    assert_eq!(check("DELETE", target, &host, b"", *NOW), Err(SignatureError::Mismatch));
}

#[test]
fn any_change_of_a_signed_request_is_noticed() {
    let good = by_botocore();
    let body = b"{\"a\": 1}";
    assert_eq!(check("POST", TARGET, &good, b"{\"a\": 2}", *NOW), Err(SignatureError::Mismatch));
    assert_eq!(check("PUT", TARGET, &good, body, *NOW), Err(SignatureError::Mismatch));
    let other = TARGET.replace("echo", "ecko");
    assert_eq!(check("POST", &other, &good, body, *NOW), Err(SignatureError::Mismatch));
    for changed in 0..good.len() - 1 {
        let mut headers = good.clone();
        headers[changed].1 = headers[changed].1.replace(['R', 'a', '1'], "x");
        let result = check("POST", TARGET, &headers, body, *NOW);
        let unsigned = headers[changed].0 == "user-agent";
        assert_eq!(result.is_ok(), unsigned, "{}", headers[changed].0);
    }
    let mut extra = good.clone();
    extra.push(("x-amz-log-type".into(), "Tail".into()));
    let result = check("POST", TARGET, &extra, body, *NOW);
    assert_eq!(result, Err(SignatureError::Unsigned("x-amz-log-type".into())));
    let mut stated = good;
    stated.push(("x-amz-content-sha256".into(), "UNSIGNED-PAYLOAD".into()));
    assert!(check("POST", TARGET, &stated, body, *NOW).is_err());
}

#[test]
fn a_clock_may_be_fifteen_minutes_off() {
    let at = |now| check("POST", TARGET, &by_botocore(), b"{\"a\": 1}", now);
    let skew = Duration::from_secs(900);
    assert_eq!(at(*NOW + skew), Ok(()));
    assert_eq!(at(*NOW - skew), Ok(()));
    let second = Duration::from_secs(1);
    insta::assert_snapshot!(at(*NOW + skew + second).unwrap_err(), @"Signature expired: 20260301T120000Z is now earlier than 20260301T120001Z (20260301T121501Z - 15 min.)");
    insta::assert_snapshot!(at(*NOW - skew - second).unwrap_err(), @"Signature not yet current: 20260301T120000Z is still later than 20260301T115959Z (20260301T114459Z + 15 min.)");
}

#[test]
fn signs_what_it_verifies() {
    for (method, target, body) in [
        ("POST", TARGET, &b"{}"[..]),
        ("GET", "/2015-03-31/functions/?MaxItems=3&Marker=a%2Fb%20c", b""),
        ("GET", "/a//b/../c%25/é~?z&y=1&y=0", b""),
    ] {
        let mut headers = pairs(&[("Host", "localhost:7625"), ("X-Amz-Log-Type", "Tail")]);
        sign(method, target, &mut headers, body, &key(), *NOW);
        assert_eq!(check(method, target, &headers, body, *NOW), Ok(()), "{target}");
        let once = headers.len();
        sign(method, target, &mut headers, body, &key(), *NOW);
        assert_eq!(headers.len(), once, "signing again replaces the signature");
    }
    let link = presign("/code/echo", "localhost:7625", &key(), *NOW, 60);
    assert_eq!(check("GET", &link, &pairs(&[("host", "localhost:7625")]), b"", *NOW), Ok(()));
    assert!(check("GET", &link, &pairs(&[("host", "elsewhere:7625")]), b"", *NOW).is_err());
}

#[test]
fn incomplete_claims_are_told_apart() {
    let try_with = |authorization: &str| {
        let headers =
            pairs(&[("host", "h"), ("x-amz-date", "20260301T120000Z"), ("authorization", authorization)]);
        check("GET", "/", &headers, b"", *NOW).unwrap_err()
    };
    let scope = "SOCKEXAMPLEEXAMPLE12/20260301/us-east-1";
    let all = |credential: &str| {
        try_with(&format!(
            "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host;x-amz-date, Signature=00"
        ))
    };
    let none = check("GET", "/", &pairs(&[("host", "h")]), b"", *NOW).unwrap_err();
    let said = [
        none,
        try_with("Bearer abc"),
        try_with("AWS4-HMAC-SHA256 Credential=a"),
        all("a/b"),
        all("SOMEONEELSE/20260301/us-east-1/lambda/aws4_request"),
        all(&format!("{scope}/s3/aws4_request")),
        all("SOCKEXAMPLEEXAMPLE12/20260228/us-east-1/lambda/aws4_request"),
        try_with(&format!(
            "AWS4-HMAC-SHA256 Credential={scope}/lambda/aws4_request, SignedHeaders=host, Signature=00"
        )),
        all(&format!("{scope}/lambda/aws4_request")),
    ];
    let lines: Vec<_> = said.iter().map(|error| format!("{}: {error}", error.code())).collect();
    insta::assert_snapshot!(lines.join("\n"));
}
