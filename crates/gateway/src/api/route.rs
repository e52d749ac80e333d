//! Which operation a method and a path mean.

use hyper::Method;
use percent_encoding::percent_decode_str;

use super::error::ApiError;

/// An operation, with the function as the client wrote it, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Ready,
    Metrics,
    Report,
    Create,
    List,
    Get(String),
    Delete(String),
    GetConfiguration(String),
    UpdateConfiguration(String),
    UpdateCode(String),
    Invoke(String),
    ListTags(String),
    Tag(String),
    Untag(String),
    Run(String),
    Logs(String),
    Code(String),
    Deploy(String),
}

impl Route {
    /// A trailing slash is tolerated: some clients write it.
    pub(super) fn of(method: &Method, path: &str) -> Result<Self, ApiError> {
        let decode = |segment: &str| percent_decode_str(segment).decode_utf8().map(|text| text.into_owned());
        let segments: Result<Vec<String>, _> =
            path.trim_start_matches('/').trim_end_matches('/').split('/').map(decode).collect();
        let unknown = || ApiError::unknown(method.as_str(), &path.chars().take(200).collect::<String>());
        let segments = segments.map_err(|_| unknown())?;
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let name = |text: &str| text.to_string();
        let route = match (method.as_str(), parts.as_slice()) {
            ("GET" | "HEAD", ["healthz"]) => Self::Health,
            ("GET" | "HEAD", ["readyz"]) => Self::Ready,
            ("GET", ["metrics"]) => Self::Metrics,
            ("GET", ["report"]) => Self::Report,
            ("POST", ["2015-03-31", "functions"]) => Self::Create,
            ("GET", ["2015-03-31", "functions"]) => Self::List,
            ("GET", ["2015-03-31", "functions", f]) => Self::Get(name(f)),
            ("DELETE", ["2015-03-31", "functions", f]) => Self::Delete(name(f)),
            ("GET", ["2015-03-31", "functions", f, "configuration"]) => Self::GetConfiguration(name(f)),
            ("PUT", ["2015-03-31", "functions", f, "configuration"]) => Self::UpdateConfiguration(name(f)),
            ("PUT", ["2015-03-31", "functions", f, "code"]) => Self::UpdateCode(name(f)),
            ("POST", ["2015-03-31", "functions", f, "invocations"]) => Self::Invoke(name(f)),
            ("GET", ["2017-03-31", "tags", arn]) => Self::ListTags(name(arn)),
            ("POST", ["2017-03-31", "tags", arn]) => Self::Tag(name(arn)),
            ("DELETE", ["2017-03-31", "tags", arn]) => Self::Untag(name(arn)),
            ("POST", ["run", f]) => Self::Run(name(f)),
            ("GET", ["logs", f]) => Self::Logs(name(f)),
            ("GET", ["code", f]) => Self::Code(name(f)),
            ("PUT", ["deploy", f]) => Self::Deploy(name(f)),
            _ => return Err(unknown()),
        };
        Ok(route)
    }
}
