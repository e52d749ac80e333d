//! Errors as the API gives them: the service model's names, status codes and shapes.
//!
//! `Message` or `message`, `Type` or not: each exception has its own shape in the model, and clients read them. What went
//! wrong on the server's side goes to the log, and the caller gets the request's id to find it by.

use std::error::Error;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::{Map, Value};
use tracing::error;

use super::{Answer, json};
use crate::bundle::BundleError;
use crate::deploy::{chain, is_full};
use crate::names::NameError;
use crate::registry::RegistryError;
use crate::sigv4::SignatureError;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// An error of the API.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    shape: Shape,
    /// For `TooManyRequestsException` alone.
    reason: Option<&'static str>,
    /// For the server's log.
    cause: Option<String>,
}

/// Which members an exception has.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// `Type` and `message`.
    Lower,
    /// `Type` and `Message`.
    Upper,
    /// `message` alone, as what stands before the service answers.
    Front,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, shape: Shape, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), shape, reason: None, cause: None }
    }

    /// Something in the request is not as it has to be.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidParameterValueException", Shape::Lower, message)
    }

    /// The event is no JSON.
    pub(super) fn content(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequestContentException", Shape::Lower, message)
    }

    /// A body is not sent as it is.
    pub(super) fn encoded() -> Self {
        Self::serialization("the body has a transfer encoding beside chunked: send it as it is")
    }

    /// The body is not what the operation takes.
    pub(super) fn serialization(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "SerializationException", Shape::Front, message)
    }

    /// There is no such function.
    pub(super) fn not_found(arn: &str) -> Self {
        let message = format!("Function not found: {arn}");
        Self::new(StatusCode::NOT_FOUND, "ResourceNotFoundException", Shape::Upper, message)
    }

    /// A function of another region or account.
    pub(super) fn elsewhere(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "ResourceNotFoundException", Shape::Upper, message)
    }

    /// There is one already, or it is busy.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "ResourceConflictException", Shape::Lower, message)
    }

    /// The revision is not the one that is there.
    pub(super) fn precondition() -> Self {
        let message = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id";
        Self::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailedException", Shape::Lower, message)
    }

    /// More bytes than an operation takes.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLargeException", Shape::Front, message)
    }

    /// An event that is too large.
    pub(super) fn request_too_large(found: usize, kind: &str, limit: usize) -> Self {
        let message =
            format!("{found} byte payload is too large for the {kind} invocation type (limit {limit} bytes)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", Shape::Lower, message)
    }

    /// No room for an invocation.
    pub(super) fn throttled(reason: &'static str) -> Self {
        let new = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequestsException",
            Shape::Lower,
            "Rate Exceeded.",
        );
        Self { reason: Some(reason), ..new }
    }

    /// A function's runtime is not there any more.
    pub(super) fn no_runtime(runtime: &str) -> Self {
        let message =
            format!("this server has no {runtime} any more: update the function to another runtime");
        Self::new(StatusCode::BAD_GATEWAY, "InvalidRuntimeException", Shape::Upper, message)
    }

    /// A function of the profile `paper`, which only its operator can allow.
    pub(super) fn paper() -> Self {
        let message = "this server makes no containers of the profile paper, since what is in one sees the host's network: \
            deploy with --profile lean or strict, or have its operator start it with --allow-paper";
        Self::new(StatusCode::FORBIDDEN, "AccessDeniedException", Shape::Upper, message)
    }

    /// The server stops.
    pub(super) fn unavailable(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableException", Shape::Upper, message)
    }

    /// The client is too slow.
    pub(super) fn timeout(message: &str) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeoutException", Shape::Front, message)
    }

    /// No operation has this method and path.
    pub(super) fn unknown(method: &str, path: &str) -> Self {
        let message = format!("{method} {path} is not an operation of this server");
        Self::new(StatusCode::NOT_FOUND, "UnknownOperationException", Shape::Front, message)
    }

    /// The server failed: `cause` goes to the log alone.
    pub(super) fn service(cause: &str) -> Self {
        let new =
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, "ServiceException", Shape::Upper, String::new());
        Self { cause: Some(cause.into()), ..new }
    }

    /// A task that panicked.
    pub(super) fn panicked(panic: tokio::task::JoinError) -> Self {
        Self::service(&format!("an operation ended in a panic: {panic}"))
    }

    fn of_service(error: &dyn Error) -> Self {
        Self::service(&chain(error))
    }

    /// The answer that a client gets.
    pub(super) fn answer(mut self, request_id: &str) -> Answer {
        if let Some(cause) = &self.cause {
            error!(request_id, cause, "a request failed in the server");
            self.message = match is_full(cause) {
                true => "the server's disk is full, and nothing was changed: make room on it, and try again"
                    .into(),
                false => {
                    format!("the server failed to answer: its log says why, under request id {request_id}")
                }
            };
        }
        let mut body = Map::new();
        let mut put = |name: &str, value: &str| body.insert(name.into(), Value::from(value));
        if let Some(reason) = self.reason {
            put("Reason", reason);
        }
        match self.shape {
            Shape::Front => put("message", &self.message),
            Shape::Lower => {
                put("Type", if self.status.is_server_error() { "Service" } else { "User" });
                put("message", &self.message)
            }
            Shape::Upper => {
                put("Type", if self.status.is_server_error() { "Service" } else { "User" });
                put("Message", &self.message)
            }
        };
        let mut answer = json(self.status, &body.into());
        answer.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(self.code));
        if self.reason.is_some() {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

impl From<SignatureError> for ApiError {
    fn from(error: SignatureError) -> Self {
        Self::new(StatusCode::FORBIDDEN, error.code(), Shape::Front, error.to_string())
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        Self::of_service(&error)
    }
}

impl From<BundleError> for ApiError {
    fn from(error: BundleError) -> Self {
        match &error {
            BundleError::Write { .. } => Self::of_service(&error),
            BundleError::Archive(_) => Self::invalid(format!(
                "Could not unzip uploaded file. Please check your file, then try to upload again: {}",
                chain(&error)
            )),
            _ => Self::invalid(chain(&error)),
        }
    }
}
