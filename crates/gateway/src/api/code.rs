//! The bundle of a function, behind the link that GetFunction gives.

use std::time::SystemTime;

use http_body_util::Full;
use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use super::error::ApiError;
use super::functions::find;
use super::{Answer, Call};
use crate::config::Auth;
use crate::names::FunctionName;
use crate::sigv4;

/// As long as Lambda's links live: ten minutes.
const SECONDS: u32 = 600;

/// A link to a function's bundle that needs no key.
pub(super) fn link(call: &Call, name: &FunctionName) -> String {
    let path = format!("/code/{name}");
    let host = call.host();
    let key = match &call.gateway.config.auth {
        Auth::Keys(keys) => keys.first(),
        Auth::Open => None,
    };
    let target = match key {
        Some(key) => sigv4::presign(&path, host, key, SystemTime::now(), SECONDS),
        None => path,
    };
    format!("http://{host}{target}")
}

/// The zip file as it was sent.
pub(super) async fn get(call: &Call, function: &str) -> Result<Answer, ApiError> {
    let entry = find(call, function)?;
    let path = call.gateway.bundles.zip(&entry.record.wanted.code.sha256);
    let zip = tokio::fs::read(&path).await;
    let zip =
        zip.map_err(|error| ApiError::service(&format!("failed to read {}: {error}", path.display())))?;
    let mut answer = Response::new(Full::new(zip.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    Ok(answer)
}
