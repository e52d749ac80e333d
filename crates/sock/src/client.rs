//! A client of the server's HTTP API, which is Lambda's and a little more.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use sock_gateway::{AccessKey, Keys, sigv4, written_endpoint};

/// Which server, and who we are.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    /// The server (default: the one of the data directory, else http://127.0.0.1:7625)
    #[arg(long, value_name = "URL", env = "SOCK_ENDPOINT")]
    endpoint: Option<String>,
    /// The server's data directory, for its address and key (or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)
    #[arg(long, value_name = "DIR", env = "SOCK_DATA_DIR", default_value = "/var/lib/sock")]
    data_dir: PathBuf,
}

/// An answer of the server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).context("the server's answer is not JSON")
    }

    /// The answer as JSON if it is one of success, else the server's error.
    pub(crate) fn success(self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            return Err(self.error());
        }
        if self.body.is_empty() { Ok(Value::Null) } else { self.json() }
    }

    /// What the server says went wrong.
    pub(crate) fn error(&self) -> anyhow::Error {
        let body = self.json().unwrap_or_default();
        let message = ["Message", "message", "errorMessage"].iter().find_map(|key| body[key].as_str());
        let message = message.map_or_else(|| format!("status {}", self.status), str::to_owned);
        match self.header("x-amzn-errortype") {
            Some("MissingAuthenticationTokenException") => anyhow!(
                "the server asks for a key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run this as who may read \
                 its data directory (--data-dir)"
            ),
            Some("ResourceNotFoundException") => anyhow!("{message}; sock list shows what there is"),
            Some(kind) => anyhow!("{message} ({})", kind.split(':').next().unwrap_or(kind)),
            None => anyhow!(message),
        }
    }
}

/// A connection to one server.
pub(crate) struct Client {
    agent: ureq::Agent,
    endpoint: String,
    host: String,
    key: Option<AccessKey>,
}

/// What may stand in a path segment as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// One segment of a path.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

// Longer than the longest invocation.
const PATIENCE: Duration = Duration::from_secs(960);

impl Server {
    pub(crate) fn endpoint(&self) -> String {
        let endpoint = self.endpoint.clone().or_else(|| written_endpoint(&self.data_dir));
        endpoint.as_deref().unwrap_or("http://127.0.0.1:7625").trim_end_matches('/').to_owned()
    }

    /// The key from the environment, else from the data directory; none when neither has one.
    pub(crate) fn key(&self) -> Result<Option<AccessKey>> {
        if let (Ok(id), Ok(secret)) =
            (std::env::var("AWS_ACCESS_KEY_ID"), std::env::var("AWS_SECRET_ACCESS_KEY"))
        {
            return Ok(Some(AccessKey { id, secret }));
        }
        let path = self.data_dir.join("keys.json");
        match std::fs::read(&path) {
            Ok(text) => {
                let keys: Keys = serde_json::from_slice(&text)
                    .with_context(|| format!("{} holds no keys", path.display()))?;
                Ok(keys.first().cloned())
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => bail!(
                "no permission to read {}: use sudo, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
                 (sudo sock env prints them)",
                path.display()
            ),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn connect(&self) -> Result<Client> {
        let endpoint = self.endpoint();
        let host =
            endpoint.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest).to_owned());
        let host = host.with_context(|| format!("{endpoint} is no URL: give --endpoint http://HOST:PORT"))?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .proxy(None)
            .build()
            .into();
        Ok(Client { agent, endpoint, host, key: self.key()? })
    }
}

impl Client {
    /// Sends a signed request. `target` is the path and query as they go over the wire.
    pub(crate) fn call(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let mut signed: Vec<(String, String)> = vec![("host".into(), self.host.clone())];
        signed.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        if let Some(key) = &self.key {
            sigv4::sign(method, target, &mut signed, body, key, SystemTime::now());
        }
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{target}", self.endpoint));
        for (name, value) in &signed {
            request = request.header(name, value);
        }
        let request = request.body(body.to_vec()).context("the request cannot be written down")?;
        let mut response = self.agent.run(request).map_err(|error| {
            if self.endpoint.starts_with("https:") {
                return anyhow!(
                    "failed to talk to {} ({error}): sock serve speaks http, not https",
                    self.endpoint
                );
            }
            anyhow!("no server answers at {} ({error}): is sock serve running?", self.endpoint)
        })?;
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_vec()
            .context("the answer broke off")?;
        Ok(Answer { status, headers, body })
    }

    /// Sends JSON and expects JSON.
    pub(crate) fn json(&self, method: &str, target: &str, body: &Value) -> Result<Value> {
        let text = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        self.call(method, target, &[("content-type", "application/json")], &text)?.success()
    }

    /// Asks for JSON.
    pub(crate) fn get(&self, target: &str) -> Result<Value> {
        self.call("GET", target, &[], &[])?.success()
    }
}
