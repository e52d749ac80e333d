//! The operations on functions: create, read, list, update, delete.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use uuid::Uuid;

use super::error::ApiError;
use super::settings::{Settings, check_architectures, refuse, says_something};
use super::{Answer, Call, code, configuration, tags};
use crate::deploy;
use crate::gateway::Gateway;
use crate::http::body::Body;
use crate::names::{FunctionName, FunctionRef, LATEST, is_qualifier};
use crate::registry::Entry;
use crate::registry::record::{Code, Config, Deployment, MARKS, Record, Status};

/// The most functions on one page, whatever the client asks for.
const PAGE: usize = 50;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create<'a> {
    function_name: String,
    #[serde(borrow)]
    code: Source<'a>,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
    #[serde(default)]
    publish: Value,
    #[serde(default)]
    publish_to: Value,
}

/// Where the code comes from; of `UpdateFunctionCode` also what is to happen with it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Source<'a> {
    #[serde(borrow, default)]
    zip_file: Cow<'a, str>,
    #[serde(default)]
    s3_bucket: Value,
    #[serde(default)]
    s3_key: Value,
    #[serde(default)]
    s3_object_version: Value,
    #[serde(default)]
    s3_object_storage_mode: Value,
    #[serde(default)]
    image_uri: Value,
    #[serde(rename = "SourceKMSKeyArn", default)]
    source_kms_key_arn: Value,
    architectures: Option<Vec<String>>,
    revision_id: Option<String>,
    #[serde(default)]
    publish: Value,
    #[serde(default)]
    publish_to: Value,
    #[serde(default)]
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Revision {
    revision_id: Option<String>,
}

pub(super) async fn create(call: &Call, body: Body) -> Result<Answer, ApiError> {
    let turn = call.gateway.unpacking.acquire().await;
    let _turn = turn.map_err(|error| ApiError::service(&error.to_string()))?;
    let gateway = call.gateway.clone();
    let create = move || create_blocking(&gateway, &body);
    let entry = tokio::task::spawn_blocking(create).await.map_err(ApiError::panicked)??;
    deploy::start(&call.gateway, entry.record.name.clone(), entry.record.wanted.revision.clone());
    Ok(super::json(StatusCode::CREATED, &configuration::of(call, &entry, None)))
}

fn create_blocking(gateway: &Gateway, body: &Body) -> Result<Arc<Entry>, ApiError> {
    let request: Create<'_> = parse(&body.bytes)?;
    let settings: Settings = parse(&body.bytes)?;
    let name = named(gateway, &request.function_name)?.name;
    let exists = || ApiError::conflict(format!("Function already exist: {name}"));
    if gateway.registry.get(&name).is_some() {
        return Err(exists());
    }
    refuse(&[("Publish", &request.publish), ("PublishTo", &request.publish_to)])?;
    let mut config = Config::new();
    settings.apply(&name, &mut config, &gateway.config.interpreters)?;
    if config.runtime.is_empty() || config.handler.is_empty() {
        return Err(ApiError::invalid(
            "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
        ));
    }
    if config.role.is_empty() {
        return Err(ApiError::invalid(
            "1 validation error detected: Value at 'role' failed to satisfy constraint: Member must not be null",
        ));
    }
    let tags = tags::checked(request.tags.unwrap_or_default())?;
    tags::profile(&tags, gateway.config.allow_paper)?;
    let code = keep(gateway, &request.code)?;
    let wanted = Deployment { revision: revision(), config, code, packages: None, marks: None, resumes: 0 };
    let record =
        Record { name: name.clone(), tags, wanted, status: Status::Deploying, live: None, modified: now() };
    let (entry, ()) = gateway.registry.change::<_, ApiError>(&name, |before| match before {
        Some(_) => Err(exists()),
        None => Ok((Some(record), ())),
    })?;
    entry.ok_or_else(|| ApiError::service("a function vanished while it was created"))
}

/// Unpacks and keeps the bundle of a request.
fn keep(gateway: &Gateway, source: &Source<'_>) -> Result<Code, ApiError> {
    refuse(&[("SourceKMSKeyArn", &source.source_kms_key_arn)])?;
    let elsewhere = [
        &source.s3_bucket,
        &source.s3_key,
        &source.s3_object_version,
        &source.s3_object_storage_mode,
        &source.image_uri,
    ];
    if elsewhere.into_iter().any(says_something) {
        return Err(ApiError::invalid(
            "S3 and images are not supported by this server: send the bundle as ZipFile",
        ));
    }
    check_architectures(source.architectures.as_deref())?;
    if source.zip_file.is_empty() {
        return Err(ApiError::invalid("Please provide a source for function code."));
    }
    let zip = STANDARD.decode(source.zip_file.as_bytes());
    let zip = zip.map_err(|error| ApiError::serialization(format!("ZipFile is not base64: {error}")))?;
    let bundle = gateway.bundles.put(&zip)?;
    Ok(Code { sha256: bundle.sha256, size: bundle.size })
}

pub(super) fn get(call: &Call, function: &str) -> Result<Answer, ApiError> {
    let (entry, qualifier) = lookup(call, function)?;
    let mut answer = json!({
        "Configuration": configuration::of(call, &entry, qualifier.as_deref()),
        "Code": { "RepositoryType": "S3", "Location": code::link(call, &entry.record.name) },
    });
    if !entry.record.tags.is_empty() {
        answer["Tags"] = json!(entry.record.tags);
    }
    Ok(super::json(StatusCode::OK, &answer))
}

pub(super) fn get_configuration(call: &Call, function: &str) -> Result<Answer, ApiError> {
    let (entry, qualifier) = lookup(call, function)?;
    Ok(super::json(StatusCode::OK, &configuration::of(call, &entry, qualifier.as_deref())))
}

pub(super) fn list(call: &Call) -> Result<Answer, ApiError> {
    let count = match call.query("MaxItems") {
        None => PAGE,
        Some(text) => match text.parse::<usize>() {
            Ok(count @ 1..=10_000) => count.min(PAGE),
            _ => return Err(ApiError::invalid("MaxItems must be between 1 and 10000")),
        },
    };
    let after = match call.query("Marker").filter(|marker| !marker.is_empty()) {
        None => None,
        Some(marker) => {
            let name = URL_SAFE_NO_PAD.decode(marker).ok().and_then(|name| String::from_utf8(name).ok());
            let name = name.and_then(|name| FunctionName::parse(&name).ok());
            Some(name.ok_or_else(|| {
                ApiError::invalid("Marker must be what an earlier answer gave as NextMarker")
            })?)
        }
    };
    let qualifier = call.query("FunctionVersion").filter(|version| version == "ALL").map(|_| LATEST);
    let (page, more) = call.gateway.registry.page(after.as_ref(), count);
    let shown: Vec<Value> = page.iter().map(|entry| configuration::of(call, entry, qualifier)).collect();
    let mut answer = json!({ "Functions": shown });
    if let (true, Some(last)) = (more, page.last()) {
        answer["NextMarker"] = URL_SAFE_NO_PAD.encode(last.record.name.as_str()).into();
    }
    Ok(super::json(StatusCode::OK, &answer))
}

pub(super) async fn update_code(call: &Call, function: &str, body: Body) -> Result<Answer, ApiError> {
    let (entry, _) = lookup(call, function)?;
    let turn = call.gateway.unpacking.acquire().await;
    let _turn = turn.map_err(|error| ApiError::service(&error.to_string()))?;
    let gateway = call.gateway.clone();
    let name = entry.record.name.clone();
    let keep = move || -> Result<_, ApiError> {
        let source: Source<'_> = parse(&body.bytes)?;
        refuse(&[("Publish", &source.publish), ("PublishTo", &source.publish_to)])?;
        updatable(&entry.record, source.revision_id.as_deref(), &gateway)?;
        let code = keep(&gateway, &source)?;
        Ok((code, source.revision_id, source.dry_run == Some(true)))
    };
    let (code, expected, dry_run) = tokio::task::spawn_blocking(keep).await.map_err(ApiError::panicked)??;
    if dry_run {
        // What there would be; the bundle, which no function names, goes with the next start.
        let mut record = find(call, function)?.record.clone();
        record.wanted.code = code;
        return Ok(super::json(
            StatusCode::OK,
            &configuration::of(call, &Entry { record, live: None }, None),
        ));
    }
    update(call, name, expected, move |wanted| {
        wanted.code = code;
        Ok(())
    })
    .await
}

pub(super) async fn update_configuration(
    call: &Call,
    function: &str,
    body: Body,
) -> Result<Answer, ApiError> {
    let (entry, _) = lookup(call, function)?;
    let name = entry.record.name.clone();
    let (settings, expected) = (parse::<Settings>(&body.bytes)?, parse::<Revision>(&body.bytes)?.revision_id);
    let gateway = call.gateway.clone();
    let own = name.clone();
    update(call, name, expected, move |wanted| {
        settings.apply(&own, &mut wanted.config, &gateway.config.interpreters)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Whole<'a> {
    #[serde(borrow)]
    code: Source<'a>,
    #[serde(default)]
    marks: BTreeMap<String, String>,
}

/// `PUT /deploy/{name}`: code, configuration and marks of a function that is there, all at once. Either all of it goes
/// live or nothing of it does, which Lambda's own operations, one after the other, cannot do.
pub(super) async fn deploy_whole(call: &Call, function: &str, body: Body) -> Result<Answer, ApiError> {
    let (entry, _) = lookup(call, function)?;
    let turn = call.gateway.unpacking.acquire().await;
    let _turn = turn.map_err(|error| ApiError::service(&error.to_string()))?;
    let gateway = call.gateway.clone();
    let name = entry.record.name.clone();
    let own = name.clone();
    let keep = move || -> Result<_, ApiError> {
        let Whole { code, marks } = parse(&body.bytes)?;
        let settings: Settings = parse(&body.bytes)?;
        if let Some(other) = marks.keys().find(|mark| !MARKS.contains(&mark.as_str())) {
            return Err(ApiError::invalid(format!("{other} is not one of {}", MARKS.join(", "))));
        }
        tags::profile(&marks, gateway.config.allow_paper)?;
        updatable(&entry.record, None, &gateway)?;
        // Refused before anything is unpacked.
        let check: Settings = parse(&body.bytes)?;
        check.apply(&own, &mut entry.record.wanted.config.clone(), &gateway.config.interpreters)?;
        Ok((keep(&gateway, &code)?, settings, marks))
    };
    let (code, settings, marks) = tokio::task::spawn_blocking(keep).await.map_err(ApiError::panicked)??;
    let (gateway, own) = (call.gateway.clone(), name.clone());
    update(call, name, None, move |wanted| {
        settings.apply(&own, &mut wanted.config, &gateway.config.interpreters)?;
        wanted.code = code;
        wanted.marks = Some(marks);
        Ok(())
    })
    .await
}

/// Begins a new deployment of a function.
async fn update(
    call: &Call,
    name: FunctionName,
    expected: Option<String>,
    alter: impl FnOnce(&mut Deployment) -> Result<(), ApiError> + Send + 'static,
) -> Result<Answer, ApiError> {
    let gateway = call.gateway.clone();
    let entry = change(call, name, move |record| {
        updatable(record, expected.as_deref(), &gateway)?;
        record.wanted.marks = None;
        alter(&mut record.wanted)?;
        record.wanted.revision = revision();
        record.wanted.resumes = 0;
        record.status = Status::Deploying;
        record.modified = now();
        Ok(())
    })
    .await?;
    deploy::start(&call.gateway, entry.record.name.clone(), entry.record.wanted.revision.clone());
    Ok(super::json(StatusCode::OK, &configuration::of(call, &entry, None)))
}

/// One update at a time, and only of what the client believes to be there.
fn updatable(record: &Record, expected: Option<&str>, gateway: &Gateway) -> Result<(), ApiError> {
    if expected.is_some_and(|expected| expected != record.wanted.revision) {
        return Err(ApiError::precondition());
    }
    if record.status != Status::Deploying {
        return Ok(());
    }
    let arn = gateway.registry.realm().arn(&record.name);
    Err(ApiError::conflict(match record.live {
        Some(_) => format!(
            "The operation cannot be performed at this time. An update is in progress for resource: {arn}"
        ),
        None => "The operation cannot be performed at this time. The function is currently in the following state: Pending".into(),
    }))
}

pub(super) async fn delete(call: &Call, function: &str) -> Result<Answer, ApiError> {
    let (entry, qualifier) = lookup(call, function)?;
    if qualifier.is_some() {
        return Err(ApiError::invalid("$LATEST version cannot be deleted without deleting the function."));
    }
    let name = entry.record.name.clone();
    let gateway = call.gateway.clone();
    let remove = {
        let name = name.clone();
        move || {
            let removed =
                gateway.registry.change::<_, ApiError>(&name, |before| Ok((None, before.is_some())))?;
            match gateway.events.forget(&name) {
                Ok(0) => {}
                Ok(events) => {
                    tracing::warn!(function = %name, events, "events of a deleted function are dropped")
                }
                Err(error) => tracing::error!(%error, function = %name, "events of a deleted function stay"),
            }
            Ok::<_, ApiError>(removed)
        }
    };
    let (_, existed) = tokio::task::spawn_blocking(remove).await.map_err(ApiError::panicked)??;
    if !existed {
        return Err(ApiError::not_found(&call.gateway.registry.realm().arn(&name)));
    }
    call.gateway.runner.retire(&name);
    call.gateway.logs.remove(&name).await;
    Ok(super::json(StatusCode::OK, &json!({})))
}

/// Changes a function that exists.
pub(super) async fn change(
    call: &Call,
    name: FunctionName,
    alter: impl FnOnce(&mut Record) -> Result<(), ApiError> + Send + 'static,
) -> Result<Arc<Entry>, ApiError> {
    let gateway = call.gateway.clone();
    let gone = ApiError::not_found(&gateway.registry.realm().arn(&name));
    let write = move || {
        gateway.registry.change::<_, ApiError>(&name, |before| {
            let Some(record) = before else { return Err(gone) };
            let mut record = record.clone();
            alter(&mut record)?;
            Ok((Some(record), ()))
        })
    };
    let (entry, ()) = tokio::task::spawn_blocking(write).await.map_err(ApiError::panicked)??;
    entry.ok_or_else(|| ApiError::service("a function vanished while it was changed"))
}

/// The function that a client names, in whichever way.
pub(super) fn find(call: &Call, function: &str) -> Result<Arc<Entry>, ApiError> {
    lookup(call, function).map(|(entry, _)| entry)
}

/// The function that a client names, and the version, if it named one.
pub(super) fn lookup(call: &Call, function: &str) -> Result<(Arc<Entry>, Option<String>), ApiError> {
    let realm = call.gateway.registry.realm();
    let (name, qualifier) = reference(call, function)?;
    let arn = match &qualifier {
        Some(qualifier) => format!("{}:{qualifier}", realm.arn(&name)),
        None => realm.arn(&name),
    };
    let entry = call.gateway.registry.get(&name);
    match (entry, qualifier.as_deref()) {
        (Some(entry), None | Some(LATEST)) => Ok((entry, qualifier)),
        _ => Err(ApiError::not_found(&arn)),
    }
}

/// The name in the path and the qualifier, which stands in the path or in the query.
pub(super) fn reference(call: &Call, function: &str) -> Result<(FunctionName, Option<String>), ApiError> {
    let reference = named(&call.gateway, function)?;
    let asked = call.query("Qualifier");
    if asked.as_deref().is_some_and(|qualifier| !is_qualifier(qualifier)) {
        return Err(ApiError::invalid(
            r"1 validation error detected: Value at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression pattern: \$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+",
        ));
    }
    match (reference.qualifier, asked) {
        (Some(derived), Some(asked)) if derived != asked => Err(ApiError::invalid(
            "The derived qualifier from the function name does not match the specified qualifier.",
        )),
        (derived, asked) => Ok((reference.name, derived.or(asked))),
    }
}

/// Parses a function's name, and checks that an ARN is one of this server's.
fn named(gateway: &Gateway, text: &str) -> Result<FunctionRef, ApiError> {
    let reference = FunctionRef::parse(text)?;
    let realm = gateway.registry.realm();
    if let Some(region) = reference.region.as_ref().filter(|region| **region != realm.region) {
        return Err(ApiError::elsewhere(format!(
            "Functions from '{region}' are not reachable in this region ('{}')",
            realm.region
        )));
    }
    match &reference.account {
        Some(account) if *account != realm.account => Err(ApiError::elsewhere(format!(
            "Functions of account '{account}' are not reachable: this server's is '{}'",
            realm.account
        ))),
        _ => Ok(reference),
    }
}

/// Parses a body. The parser's message names a member and a place, and never quotes a value that is a string.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        match error.classify() {
            serde_json::error::Category::Data => {
                // "invalid type: string \"…\"" would repeat what may be a secret.
                let said = error.to_string();
                let said = match said.split_once(" at line ").map_or(said.as_str(), |(said, _)| said) {
                    quoting if quoting.contains('"') => "a member has a value of the wrong type",
                    // Of which type that is here is nobody's business.
                    said => said.split_once(" struct ").map_or(said, |(said, _)| said),
                };
                let said = if said.ends_with("expected") { format!("{said} an object") } else { said.into() };
                ApiError::serialization(format!("the body does not fit the operation: {said} ({place})"))
            }
            _ => ApiError::serialization(format!("the body is not JSON ({place})")),
        }
    })
}

fn revision() -> String {
    Uuid::new_v4().to_string()
}

/// As the API writes times.
fn now() -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]+0000");
    OffsetDateTime::now_utc().format(&format).unwrap_or_default()
}
