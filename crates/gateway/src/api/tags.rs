//! Tags. Those that begin with `sock:` are switches of this server: see the registry's record.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::json;
use sock_isolation::Profile;

use super::error::ApiError;
use super::functions::{change, find, parse};
use super::{Answer, Call, empty};
use crate::http::body::Body;
use crate::registry::record::TAG_PROFILE;

const MAX_TAGS: usize = 50;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TagResource {
    tags: BTreeMap<String, String>,
}

pub(super) fn list(call: &Call, arn: &str) -> Result<Answer, ApiError> {
    let entry = find(call, arn)?;
    Ok(super::json(StatusCode::OK, &json!({ "Tags": entry.record.tags })))
}

pub(super) async fn add(call: &Call, arn: &str, body: Body) -> Result<Answer, ApiError> {
    let name = find(call, arn)?.record.name.clone();
    let new: TagResource = parse(&body.bytes)?;
    let allow_paper = call.gateway.config.allow_paper;
    change(call, name, move |record| {
        // What a function is already does not keep it from another tag.
        profile(&new.tags, allow_paper)?;
        let mut tags = record.tags.clone();
        tags.extend(new.tags);
        record.tags = checked(tags)?;
        Ok(())
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

pub(super) async fn remove(call: &Call, arn: &str) -> Result<Answer, ApiError> {
    let name = find(call, arn)?.record.name.clone();
    let query = call.head.uri.query().unwrap_or_default().to_string();
    change(call, name, move |record| {
        let keys = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "tagKeys");
        keys.for_each(|(_, key)| drop(record.tags.remove(key.as_ref())));
        Ok(())
    })
    .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Tags as they may be.
pub(super) fn checked(tags: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    if tags.len() > MAX_TAGS {
        return Err(ApiError::invalid(format!("a function has at most {MAX_TAGS} tags")));
    }
    let too_long = |(key, value): (&String, &String)| {
        key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256
    };
    if tags.iter().any(too_long) {
        return Err(ApiError::invalid("a tag's key has 1 to 128 characters and its value at most 256"));
    }
    Ok(tags)
}

/// Refuses a profile that there is none of, or that functions of this server do not get.
pub(super) fn profile(tags: &BTreeMap<String, String>, allow_paper: bool) -> Result<(), ApiError> {
    let Some(name) = tags.get(TAG_PROFILE) else { return Ok(()) };
    match name.parse() {
        Ok(Profile::Paper) if !allow_paper => Err(ApiError::paper()),
        Ok(Profile::Lean | Profile::Strict | Profile::Paper) => Ok(()),
        Err(none) => Err(ApiError::invalid(format!("{TAG_PROFILE}: {none}"))),
    }
}
