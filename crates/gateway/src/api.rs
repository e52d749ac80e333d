//! The API: from a request to an answer.
//!
//! ```text
//! route ─ who are you (head) ─ read the body ─ is it signed (body) ─ operation ─ answer
//! ```
//!
//! Nothing of a body is kept for a client without a key, and nothing in it is looked at before its signature holds. Every
//! answer carries `x-amzn-RequestId`; every error is one of the service model's, and is made in [`error`] alone.

mod code;
mod configuration;
mod error;
mod functions;
mod invoke;
mod route;
mod settings;
mod tags;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use serde_json::Value;
use uuid::Uuid;

use crate::config::Auth;
use crate::deploy::runtime_name;
use crate::gateway::Gateway;
use crate::http::answer;
use crate::http::body::{self, Body, BodyError};
use crate::http::connections::{Connection, Serving};
use crate::logs::Cursor;
use crate::sigv4::{Presented, SignatureError};
use error::ApiError;
pub(crate) use invoke::{Attempt, attempt};
use route::Route;

pub(crate) type Answer = Response<Full<Bytes>>;

/// An event of a synchronous invocation: 6 MiB.
pub(crate) const MAX_EVENT: usize = 6_291_456;
/// A request with a bundle in it, base64 in JSON.
const MAX_DEPLOY: usize = 70_167_211;
const MAX_OTHER: usize = 1 << 20;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// A request that is being answered.
pub(crate) struct Call {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) head: Parts,
    pub(crate) request_id: String,
    pub(crate) received: Instant,
}

/// Answers a request that came on `connection`, whatever it is.
pub(crate) async fn answer(
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Answer {
    let (head, incoming) = request.into_parts();
    let call = Call { gateway, head, request_id: Uuid::new_v4().to_string(), received: Instant::now() };
    // Once the request is here whole, and until it is answered.
    let mut serving = None;
    let mut answer = match respond(&call, incoming, || serving = Some(connection.serve())).await {
        Ok(answer) => answer,
        Err(error) => error.answer(&call.request_id),
    };
    if let Ok(id) = HeaderValue::try_from(&call.request_id) {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    if call.is_chunked() {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(Route::Invoke(_) | Route::Run(_)) = Route::of(&call.head.method, call.head.uri.path()) {
        invoke::mark_not_started(&mut answer);
    }
    let answer = hold(&call, answer, &connection).await;
    drop::<Option<Serving>>(serving);
    answer
}

/// Gives the answer its share of the memory for answers.
async fn hold(call: &Call, answer: Answer, connection: &Connection) -> Answer {
    let (head, body) = answer.into_parts();
    let Ok(body) = body.collect().await;
    let bytes = answer::hold(body.to_bytes(), &call.gateway.answers, connection).await;
    Response::from_parts(head, Full::new(bytes))
}

/// Calls `arrived` when all of the request is here.
async fn respond(call: &Call, incoming: Incoming, arrived: impl FnOnce()) -> Result<Answer, ApiError> {
    let limits = &call.gateway.config.limits;
    let encoded = call.head.headers.get_all(TRANSFER_ENCODING).iter().any(|value| value != "chunked");
    let admitted = if encoded { Err(ApiError::encoded()) } else { admit(call) };
    let (route, presented) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            // Who waits for leave to send a body has to be told that there is none.
            if !call.head.headers.contains_key(EXPECT) {
                let rest = body::pass_over(incoming, limits.body);
                if call.gateway.is_draining() || call.is_chunked() {
                    // The connection is closed after the answer: to a client that still writes, the answer would be lost.
                    rest.await;
                } else {
                    tokio::spawn(rest);
                }
            }
            return Err(error);
        }
    };
    if matches!(route, Route::Health | Route::Ready) {
        arrived();
        return if route == Route::Health { Ok(health(call)) } else { ready(call) };
    }
    let (limit, operation) = match &route {
        Route::Create => (MAX_DEPLOY, "CreateFunction"),
        Route::Deploy(_) => (MAX_DEPLOY, "UpdateFunctionCode"),
        Route::UpdateCode(_) => (MAX_DEPLOY, "UpdateFunctionCode"),
        Route::Invoke(_) | Route::Run(_) => (MAX_EVENT, "InvokeFunction"),
        Route::UpdateConfiguration(_) => (MAX_OTHER, "UpdateFunctionConfiguration"),
        Route::Tag(_) => (MAX_OTHER, "TagResource"),
        _ => (MAX_OTHER, "requested"),
    };
    let read = body::read(incoming, limit, limits.body, &call.gateway.bodies).await;
    let body = read.map_err(|error| call.unread(error, &route, limit, operation))?;
    arrived();
    if let Some(presented) = presented {
        let target = call.target();
        presented.verify(call.head.method.as_str(), target, &call.head.headers, &body.bytes)?;
    }
    dispatch(call, route, body).await
}

/// What the head alone decides: which operation it is, and whether its sender has a key to sign with, if it needs one.
fn admit(call: &Call) -> Result<(Route, Option<Presented<'_>>), ApiError> {
    let route = Route::of(&call.head.method, call.head.uri.path())?;
    let keyless = match &route {
        Route::Health | Route::Ready => return Ok((route, None)),
        Route::Run(name) => call.has_token() || call.is_public(name),
        Route::Metrics | Route::Report => call.has_token(),
        _ => matches!(call.gateway.config.auth, Auth::Open),
    };
    let presented = if keyless { None } else { Some(call.presented()?) };
    if call.gateway.is_draining() {
        return Err(ApiError::unavailable("the server is stopping: try again in a moment"));
    }
    Ok((route, presented))
}

async fn dispatch(call: &Call, route: Route, body: Body) -> Result<Answer, ApiError> {
    match route {
        Route::Health | Route::Ready => Err(ApiError::service("it is answered before")),
        Route::Metrics => metrics(call).await,
        Route::Report => report(call).await,
        Route::Create => functions::create(call, body).await,
        Route::List => functions::list(call),
        Route::Get(f) => functions::get(call, &f),
        Route::GetConfiguration(f) => functions::get_configuration(call, &f),
        Route::UpdateCode(f) => functions::update_code(call, &f, body).await,
        Route::Deploy(f) => functions::deploy_whole(call, &f, body).await,
        Route::UpdateConfiguration(f) => functions::update_configuration(call, &f, body).await,
        Route::Delete(f) => functions::delete(call, &f).await,
        Route::Invoke(f) => invoke::invoke(call, &f, body).await,
        Route::Run(name) => invoke::run(call, &name, body).await,
        Route::ListTags(f) => tags::list(call, &f),
        Route::Tag(f) => tags::add(call, &f, body).await,
        Route::Untag(f) => tags::remove(call, &f).await,
        Route::Code(f) => code::get(call, &f).await,
        Route::Logs(f) => logs(call, &f).await,
    }
}

/// That the server answers, and what a client may want to know before it has a key.
fn health(call: &Call) -> Answer {
    let runtimes: Vec<String> = call.gateway.config.interpreters.iter().map(runtime_name).collect();
    let version = env!("CARGO_PKG_VERSION");
    json(StatusCode::OK, &serde_json::json!({ "status": "ok", "version": version, "runtimes": runtimes }))
}

/// Whether requests should be sent here.
fn ready(call: &Call) -> Result<Answer, ApiError> {
    if call.gateway.is_draining() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    Ok(json(StatusCode::OK, &serde_json::json!({ "status": "ready" })))
}

/// See [`crate::metrics`].
async fn metrics(call: &Call) -> Result<Answer, ApiError> {
    let now = call.gateway.now().await.map_err(|error| ApiError::service(&error))?;
    let mut answer = Response::new(Full::new(call.gateway.metrics.text(&now).into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(crate::metrics::CONTENT_TYPE));
    Ok(answer)
}

/// What runs functions, in detail: zygotes, idle instances, memory.
async fn report(call: &Call) -> Result<Answer, ApiError> {
    // First: it looks at what was not looked at yet.
    let report = call.gateway.runner.report().await;
    let counts = call.gateway.runner.counts().await.map_err(|error| ApiError::service(&error))?;
    let (nodes, functions) = (report.nodes, report.functions);
    let body = serde_json::json!({
        "counts": counts,
        "nodes": nodes,
        "functions": functions,
        "init_bytes": report.init_bytes,
    });
    Ok(json(StatusCode::OK, &body))
}

/// A function's log from `?after=` on (as given by `x-sock-log-next`), or its end.
async fn logs(call: &Call, function: &str) -> Result<Answer, ApiError> {
    let entry = functions::find(call, function)?;
    let after: Option<Cursor> = match call.query("after") {
        Some(text) => Some(text.parse().map_err(|()| {
            ApiError::invalid("after must be what an earlier answer gave as x-sock-log-next")
        })?),
        None => None,
    };
    let part = call.gateway.logs.read(&entry.record.name, after).await;
    let part = part.map_err(|error| ApiError::service(&format!("failed to read a log: {error}")))?;
    let mut answer = Response::new(Full::new(part.text.into()));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, text);
    if let Ok(next) = HeaderValue::try_from(part.next.to_string()) {
        answer.headers_mut().insert("x-sock-log-next", next);
    }
    Ok(answer)
}

impl Call {
    /// The path and query as they came.
    fn target(&self) -> &str {
        self.head.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    /// A value of the query.
    fn query(&self, wanted: &str) -> Option<String> {
        let mut pairs = form_urlencoded::parse(self.head.uri.query().unwrap_or_default().as_bytes());
        pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the body came in chunks. A length beside them is not shown to us, and a proxy in front that went by it would take what
    /// follows this body for its end, so nothing may follow: RFC 9112, section 6.1.
    fn is_chunked(&self) -> bool {
        self.head.headers.contains_key(TRANSFER_ENCODING)
    }

    fn host(&self) -> &str {
        self.header(HOST.as_str()).unwrap_or("localhost")
    }

    fn presented(&self) -> Result<Presented<'_>, SignatureError> {
        match &self.gateway.config.auth {
            Auth::Keys(keys) => Presented::parse(self.target(), &self.head.headers, keys, SystemTime::now()),
            Auth::Open => Err(SignatureError::Missing),
        }
    }

    /// Whether the request carries a secret as its bearer token, or none is asked for.
    fn has_token(&self) -> bool {
        let Auth::Keys(keys) = &self.gateway.config.auth else { return true };
        let bearer = self.header(AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        bearer.is_some_and(|token| keys.is_secret(token.trim()))
    }

    /// Whether anybody may run the function.
    fn is_public(&self, name: &str) -> bool {
        functions::find(self, name).is_ok_and(|entry| entry.record.is_public())
    }

    /// Why there is no body, in the API's words.
    fn unread(&self, error: BodyError, route: &Route, limit: usize, operation: &str) -> ApiError {
        match (error, route) {
            (BodyError::TooLarge { found: Some(found) }, Route::Invoke(_) | Route::Run(_)) => {
                match self.header(invoke::KIND) {
                    Some("Event") => ApiError::request_too_large(found, "Event", invoke::MAX_ASYNC),
                    _ => ApiError::request_too_large(found, "RequestResponse", limit),
                }
            }
            (BodyError::TooLarge { .. }, _) => ApiError::too_large(format!(
                "Request must be smaller than {limit} bytes for the {operation} operation"
            )),
            (BodyError::Slow, _) => ApiError::timeout("the request's body did not arrive in time"),
            (BodyError::NoMemory, _) => ApiError::unavailable(
                "the server has no memory for another request of that size: try again in a moment",
            ),
            (BodyError::Broken(reason), _) => {
                ApiError::serialization(format!("the body is not complete: {reason}"))
            }
        }
    }
}

/// An answer with a JSON body.
fn json(status: StatusCode, value: &Value) -> Answer {
    let mut answer = Response::new(Full::new(value.to_string().into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// An answer without a body.
fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}
