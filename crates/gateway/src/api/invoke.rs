//! Invocations: `Invoke` of the Lambda API and `POST /run/{name}`.
//!
//! An invocation is a task of its own. A client that leaves does not end it: it runs until it is done or its time is over,
//! its lines go to the log, and its share of the server is given back then.
//!
//! Asynchronous events are on disk before they are accepted: see [`events`].

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use sock_isolation::Profile;
use tracing::{error, info};

use super::error::ApiError;
use super::functions::{lookup, reference};
use super::settings::unsupported;
use super::{Answer, Call, MAX_EVENT, empty};
use crate::deploy::interpreter;
use crate::events::{self, Event};
use crate::gateway::Gateway;
use crate::http::body::Body;
use crate::names::LATEST;
use crate::registry::Entry;
use crate::registry::record::Status;
use crate::runner::{Function, Invocation, InvocationResult, Outcome, Phases, StartKind, ThrottleLimit};

/// An event of an asynchronous invocation.
pub(super) const MAX_ASYNC: usize = 1 << 20;
/// A result, or the error object in its place.
const MAX_RESULT: usize = 6_291_556;
/// What `X-Amz-Log-Type: Tail` gives.
const TAIL: usize = 4096;
const MAX_CONTEXT: usize = 3583;
pub(super) const KIND: &str = "x-amz-invocation-type";
/// Headers that would change what an invocation means, and their members in the model.
const UNSUPPORTED: [(&str, &str); 2] =
    [("x-amz-tenant-id", "TenantId"), ("x-amz-durable-execution-name", "DurableExecutionName")];

const START: HeaderName = HeaderName::from_static("x-sock-start");
const TIMING: HeaderName = HeaderName::from_static("server-timing");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");

/// An invocation that has ended.
struct Ended {
    end: End,
    start: StartKind,
    phases: Phases,
    log: Bytes,
}

/// What the caller gets of it.
enum End {
    Result(Bytes),
    /// The handler's fault, with the error object.
    Error(Bytes),
    /// Likewise, and it ran out of time.
    Timeout(Bytes),
    Throttled(ThrottleLimit),
    Platform,
}

/// `Invoke` of the Lambda API.
pub(super) async fn invoke(call: &Call, function: &str, body: Body) -> Result<Answer, ApiError> {
    let entry = invokable(call, function)?;
    let live = live(call, &entry)?;
    for (header, member) in UNSUPPORTED {
        if call.head.headers.contains_key(header) {
            return Err(unsupported(member));
        }
    }
    let kind = call.header(KIND).unwrap_or("RequestResponse").to_string();
    if kind == "Event" && body.bytes.len() > MAX_ASYNC {
        return Err(ApiError::request_too_large(body.bytes.len(), "Event", MAX_ASYNC));
    }
    let tail = match call.header("x-amz-log-type") {
        None | Some("None") => false,
        Some("Tail") => true,
        Some(_) => return Err(ApiError::invalid("X-Amz-Log-Type must be None or Tail")),
    };
    let invocation = invocation(call, &body)?;
    match kind.as_str() {
        "DryRun" => return Ok(empty(StatusCode::NO_CONTENT)),
        "Event" => return accept(call, live, invocation).await,
        "RequestResponse" => {}
        _ => return Err(ApiError::invalid("X-Amz-Invocation-Type must be RequestResponse, Event or DryRun")),
    }
    let ended = start(call, live, invocation, body).await?;
    let mut answer = match &ended.end {
        End::Result(result) => payload(StatusCode::OK, result),
        End::Error(error) | End::Timeout(error) => {
            let mut answer = payload(StatusCode::OK, error);
            answer.headers_mut().insert(FUNCTION_ERROR, HeaderValue::from_static("Unhandled"));
            answer
        }
        other => refusal(call, other),
    };
    let headers = answer.headers_mut();
    headers.insert(EXECUTED_VERSION, HeaderValue::from_static(LATEST));
    if tail && !ended.log.is_empty() {
        let from = ended.log.len().saturating_sub(TAIL);
        if let Ok(log) = HeaderValue::try_from(STANDARD.encode(&ended.log[from..])) {
            headers.insert(LOG_RESULT, log);
        }
    }
    Ok(timed(answer, &ended))
}

/// `POST /run/{name}`: the same with less ceremony. The status says how it went.
pub(super) async fn run(call: &Call, function: &str, body: Body) -> Result<Answer, ApiError> {
    let entry = invokable(call, function)?;
    let live = live(call, &entry)?;
    let invocation = invocation(call, &body)?;
    let ended = start(call, live, invocation, body).await?;
    let mut answer = match &ended.end {
        End::Result(result) => payload(StatusCode::OK, result),
        End::Error(error) => payload(StatusCode::BAD_GATEWAY, error),
        End::Timeout(error) => payload(StatusCode::GATEWAY_TIMEOUT, error),
        other => refusal(call, other),
    };
    if answer.status() == StatusCode::BAD_GATEWAY || answer.status() == StatusCode::GATEWAY_TIMEOUT {
        answer.headers_mut().insert(FUNCTION_ERROR, HeaderValue::from_static("Unhandled"));
    }
    Ok(timed(answer, &ended))
}

/// The function, or the error that names the version which the client asked for.
fn invokable(call: &Call, function: &str) -> Result<Arc<Entry>, ApiError> {
    let (name, qualifier) = reference(call, function)?;
    lookup(call, function).map(|(entry, _)| entry).map_err(|_| {
        let qualifier = qualifier.as_deref().unwrap_or(LATEST);
        ApiError::not_found(&format!("{}:{qualifier}", call.gateway.registry.realm().arn(&name)))
    })
}

/// What is live of a function.
fn live(call: &Call, entry: &Entry) -> Result<Arc<Function>, ApiError> {
    let live = entry.live.clone().ok_or_else(|| {
        let state = match &entry.record.status {
            Status::Failed(failure) => format!("Failed: {}", failure.reason),
            _ => "Pending".into(),
        };
        ApiError::conflict(format!(
            "The operation cannot be performed at this time. The function is currently in the following state: {state}"
        ))
    })?;
    if !is_allowed(&call.gateway, &live) {
        return Err(ApiError::paper());
    }
    match interpreter(&call.gateway.config.interpreters, &live.runtime) {
        Some(_) => Ok(live),
        None => Err(ApiError::no_runtime(&live.runtime)),
    }
}

/// It may have been deployed when more was.
fn is_allowed(gateway: &Gateway, function: &Function) -> bool {
    function.profile != Profile::Paper || gateway.config.allow_paper
}

fn invocation(call: &Call, body: &Body) -> Result<Invocation, ApiError> {
    debug_assert!(body.bytes.len() <= MAX_EVENT);
    let event = if body.bytes.is_empty() { Bytes::from_static(b"{}") } else { body.bytes.clone() };
    let wrong = |reason: String| {
        ApiError::content(format!(
            "Could not parse request body into json: Could not parse payload into json: {reason}"
        ))
    };
    // Strings that are skipped are not checked by the parser.
    std::str::from_utf8(&event).map_err(|error| wrong(error.to_string()))?;
    let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(&event);
    parsed.map_err(|error| wrong(error.to_string()))?;
    let client_context = match call.header("x-amz-client-context") {
        None => None,
        Some(text) => Some(client_context(text).ok_or_else(|| {
            ApiError::content("Client context must be a valid Base64-encoded JSON object.")
        })?),
    };
    Ok(Invocation { request_id: call.request_id.clone(), event, received: call.received, client_context })
}

fn client_context(text: &str) -> Option<String> {
    let text = Some(text).filter(|text| text.len() <= MAX_CONTEXT)?;
    let text = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).ok()?;
    Some(serde_json::Value::from(object).to_string())
}

/// Answers once it is on disk, and runs it in the background.
async fn accept(call: &Call, function: Arc<Function>, invocation: Invocation) -> Result<Answer, ApiError> {
    let Invocation { request_id, event, client_context, .. } = invocation;
    let event =
        Event { id: request_id.clone(), function: function.name.clone(), payload: event, client_context };
    let gateway = call.gateway.clone();
    let write = tokio::task::spawn_blocking(move || gateway.events.accept(&event));
    if !write.await.map_err(ApiError::panicked)?? {
        return Err(ApiError::throttled("ConcurrentInvocationLimitExceeded"));
    }
    events::start(&call.gateway, request_id, Duration::ZERO);
    Ok(empty(StatusCode::ACCEPTED))
}

/// What came of an attempt to run an asynchronous event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The function returned.
    Ran,
    /// It did not, and that is its own fault.
    Failed,
    /// Nothing of it ran, for want of room or because the platform failed.
    NoRoom,
    /// It was deleted.
    NoFunction,
    /// The event's time was over before it could run.
    TooOld,
}

/// Runs an asynchronous event once.
pub(crate) async fn attempt(gateway: &Gateway, event: Event, received: Instant) -> Attempt {
    let Some(entry) = gateway.registry.get(&event.function) else { return Attempt::NoFunction };
    let live = entry.live.clone();
    let runs = |function: &Arc<Function>| {
        is_allowed(gateway, function)
            && interpreter(&gateway.config.interpreters, &function.runtime).is_some()
    };
    let Some(function) = live.filter(runs) else { return Attempt::NoRoom };
    let Event { id, payload, client_context, .. } = event;
    let invocation = Invocation { request_id: id, event: payload, received, client_context };
    match perform(gateway, function, invocation).await.end {
        End::Result(_) => Attempt::Ran,
        End::Error(_) | End::Timeout(_) => Attempt::Failed,
        End::Throttled(_) | End::Platform => Attempt::NoRoom,
    }
}

/// Runs it as a task, so that it outlives its client.
async fn start(
    call: &Call,
    function: Arc<Function>,
    invocation: Invocation,
    body: Body,
) -> Result<Ended, ApiError> {
    let busy =
        call.gateway.begin().ok_or_else(|| ApiError::throttled("ConcurrentInvocationLimitExceeded"))?;
    let gateway = call.gateway.clone();
    let task = tokio::spawn(async move {
        let _held = (busy, body.share);
        perform(&gateway, function, invocation).await
    });
    task.await.map_err(ApiError::panicked)
}

async fn perform(gateway: &Gateway, function: Arc<Function>, invocation: Invocation) -> Ended {
    let request_id = invocation.request_id.clone();
    let received = invocation.received;
    let its_log = gateway.logs.of(&function.name);
    let outcome = gateway.runner.invoke(function.clone(), invocation).await;
    let log = Bytes::from(lines(&function, &request_id, &outcome));
    // Not part of what the caller gets of the log: it may be about somebody else's event.
    let mut before = outcome.log_before;
    if !before.is_empty() {
        before.extend_from_slice(if before.ends_with(b"\n") { b"" } else { b"\n" });
        gateway.logs.append(&its_log, before.into()).await;
    }
    if !log.is_empty() {
        gateway.logs.append(&its_log, log.clone()).await;
    }
    let (kind, start, phases) = (kind(&outcome.result), outcome.start, outcome.phases);
    gateway.metrics.invocation(kind, start.as_str(), &phases, outcome.log_truncated);
    let us = |time: Duration| time.as_micros() as u64;
    info!(
        request_id,
        function = %function.name,
        start = start.as_str(),
        outcome = kind,
        took_us = us(received.elapsed()),
        queue_us = us(phases.queue),
        provision_us = us(phases.provision),
        init_us = us(phases.init),
        handler_us = us(phases.handler),
        max_memory_mb = outcome.max_memory_mb,
        "invoked"
    );
    Ended { end: end(&function, &request_id, outcome.result), start, phases, log }
}

fn kind(result: &InvocationResult) -> &'static str {
    match result {
        InvocationResult::Ok(result) | InvocationResult::HandlerError(result)
            if result.len() > MAX_RESULT =>
        {
            "too-large"
        }
        InvocationResult::Ok(_) => "ok",
        InvocationResult::HandlerError(_) => "error",
        InvocationResult::Timeout | InvocationResult::SlowImport { .. } => "timeout",
        InvocationResult::Exited { .. } => "exited",
        InvocationResult::OutOfMemory => "out-of-memory",
        InvocationResult::Throttled { .. } => "throttled",
        InvocationResult::Platform(_) => "platform",
    }
}

fn end(function: &Function, request_id: &str, result: InvocationResult) -> End {
    let object = |kind: &str, message: String| {
        Bytes::from(json!({ "errorType": kind, "errorMessage": message }).to_string())
    };
    match result {
        InvocationResult::Ok(result) | InvocationResult::HandlerError(result)
            if result.len() > MAX_RESULT =>
        {
            End::Error(object(
                "Function.ResponseSizeTooLarge",
                format!("Response payload size exceeded maximum allowed payload size ({MAX_RESULT} bytes)."),
            ))
        }
        InvocationResult::Ok(result) => End::Result(result),
        InvocationResult::HandlerError(error) => End::Error(error),
        InvocationResult::Timeout => End::Timeout(object(
            "Sandbox.Timedout",
            format!("RequestId: {request_id} Error: {}", timed_out(function)),
        )),
        InvocationResult::SlowImport { limit } => End::Timeout(object(
            "Sandbox.Timedout",
            format!("RequestId: {request_id} Error: {}", slow_import(limit)),
        )),
        InvocationResult::Exited { reason } => {
            let how = match reason {
                Some(reason) => format!("Runtime exited with error: {reason}"),
                None => "Runtime exited without providing a reason".into(),
            };
            End::Error(object("Runtime.ExitError", format!("RequestId: {request_id} Error: {how}")))
        }
        InvocationResult::OutOfMemory => End::Error(object(
            "Runtime.OutOfMemory",
            format!("RequestId: {request_id} Error: Runtime exited with error: signal: killed"),
        )),
        InvocationResult::Throttled { limit } => End::Throttled(limit),
        InvocationResult::Platform(cause) => {
            error!(request_id, function = %function.name, cause, "an invocation failed in the platform");
            End::Platform
        }
    }
}

fn timed_out(function: &Function) -> String {
    format!("Task timed out after {:.2} seconds", function.timeout.as_secs_f64())
}

fn slow_import(limit: Duration) -> String {
    let seconds = limit.as_secs();
    format!("importing the handler took longer than {seconds} s: import less, or raise the timeout")
}

/// The error type in the last line of the log. An error that the handler raised is none of the platform's.
fn error_type(result: &InvocationResult) -> Option<Cow<'static, str>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raised {
        error_type: String,
    }
    Some(match result {
        InvocationResult::Ok(result) | InvocationResult::HandlerError(result)
            if result.len() > MAX_RESULT =>
        {
            "Function.ResponseSizeTooLarge".into()
        }
        InvocationResult::HandlerError(error) => {
            let Raised { error_type } = serde_json::from_slice(error).ok()?;
            let word = |kind: &String| kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
            Some(error_type).filter(|kind| kind.starts_with("Runtime.") && word(kind))?.into()
        }
        InvocationResult::Exited { .. } => "Runtime.ExitError".into(),
        InvocationResult::OutOfMemory => "Runtime.OutOfMemory".into(),
        InvocationResult::Platform(_) => "Platform".into(),
        InvocationResult::Ok(_)
        | InvocationResult::Timeout
        | InvocationResult::SlowImport { .. }
        | InvocationResult::Throttled { .. } => return None,
    })
}

/// The invocation's lines in the function's log. What found no room has run nothing, and has none.
fn lines(function: &Function, request_id: &str, outcome: &Outcome) -> Vec<u8> {
    if matches!(outcome.result, InvocationResult::Throttled { .. }) {
        return Vec::new();
    }
    let version = &function.version;
    let mut lines = format!("START RequestId: {request_id} Version: {version}\n").into_bytes();
    lines.extend_from_slice(&outcome.log);
    if !lines.ends_with(b"\n") {
        lines.push(b'\n');
    }
    if outcome.log_truncated > 0 {
        let note = format!("[{} more bytes of output were dropped]\n", outcome.log_truncated);
        lines.extend_from_slice(note.as_bytes());
    }
    let late = match &outcome.result {
        InvocationResult::Timeout => Some(timed_out(function)),
        InvocationResult::SlowImport { limit } => Some(slow_import(*limit)),
        _ => None,
    };
    if let Some(late) = &late {
        lines.extend_from_slice(format!("RequestId: {request_id} Error: {late}\n").as_bytes());
    }
    let status = match &outcome.result {
        _ if late.is_some() => "Status: timeout\t".into(),
        result => {
            error_type(result).map_or_else(String::new, |kind| format!("Status: error\tError Type: {kind}\t"))
        }
    };
    let ms = outcome.phases.handler.as_secs_f64() * 1e3;
    let billed = (ms + outcome.phases.init.as_secs_f64() * 1e3).ceil();
    let init = match outcome.phases.init {
        init if init.is_zero() => String::new(),
        init => format!("Init Duration: {:.2} ms\t", init.as_secs_f64() * 1e3),
    };
    let report = format!(
        "END RequestId: {request_id}\n\
         REPORT RequestId: {request_id}\tDuration: {ms:.2} ms\tBilled Duration: {billed} ms\t\
         Memory Size: {} MB\tMax Memory Used: {} MB\t{init}{status}\n",
        function.memory_mb, outcome.max_memory_mb
    );
    lines.extend_from_slice(report.as_bytes());
    lines
}

fn payload(status: StatusCode, body: &Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body.clone()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn refusal(call: &Call, end: &End) -> Answer {
    let error = match end {
        End::Throttled(ThrottleLimit::Function) => {
            ApiError::throttled("ReservedFunctionConcurrentInvocationLimitExceeded")
        }
        End::Throttled(ThrottleLimit::Server) => ApiError::throttled("ConcurrentInvocationLimitExceeded"),
        _ => ApiError::service("an invocation failed in the platform"),
    };
    error.answer(&call.request_id)
}

/// Every answer of an invocation says where its instance came from and where the time went.
/// For answers of invocations for which nothing was started: accepted for later, tried dry, or refused.
pub(super) fn mark_not_started(answer: &mut Answer) {
    let headers = answer.headers_mut();
    if headers.contains_key(START) {
        return;
    }
    headers.insert(START, HeaderValue::from_static("none"));
    if let Ok(timing) = HeaderValue::try_from(Phases::default().server_timing()) {
        headers.insert(TIMING, timing);
    }
}

fn timed(mut answer: Answer, ended: &Ended) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(START, HeaderValue::from_static(ended.start.as_str()));
    if let Ok(timing) = HeaderValue::try_from(ended.phases.server_timing()) {
        headers.insert(TIMING, timing);
    }
    answer
}
