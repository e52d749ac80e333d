//! `sock invoke`: one invocation; its answer on standard output.

use std::process::ExitCode;

use anyhow::{Context, Result};
use base64::Engine;
use clap::Args;
use serde_json::{Value, json};

use crate::client::segment;
use crate::{Reading, show};

/// See the commands' own help.
#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// The function
    name: String,
    /// The event: JSON, @FILE, or @- for standard input
    #[arg(long, value_name = "JSON|@FILE", default_value = "{}")]
    data: String,
    /// Do not wait for the answer
    #[arg(long)]
    event: bool,
    /// Print the end of its log to standard error
    #[arg(long)]
    tail: bool,
    #[command(flatten)]
    reading: Reading,
}

fn data(text: &str) -> Result<Vec<u8>> {
    match text.strip_prefix('@') {
        Some("-") => {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut text)
                .context("failed to read standard input")?;
            Ok(text)
        }
        Some(file) => std::fs::read(file).with_context(|| format!("failed to read {file}")),
        None => Ok(text.as_bytes().to_vec()),
    }
}

pub(crate) fn run(options: &Invoke) -> Result<ExitCode> {
    let event = data(&options.data)?;
    serde_json::from_slice::<Value>(&event)
        .context("the event is not JSON: give --data JSON or --data @FILE")?;
    let client = options.reading.server.connect()?;
    let mut headers = vec![("content-type", "application/json")];
    if options.event {
        headers.push(("x-amz-invocation-type", "Event"));
    } else if options.tail {
        headers.push(("x-amz-log-type", "Tail"));
    }
    let target = format!("/2015-03-31/functions/{}/invocations", segment(&options.name));
    let answer = client.call("POST", &target, &headers, &event)?;
    if !(200..300).contains(&answer.status) {
        return Err(answer.error());
    }
    if let Some(tail) = answer.header("x-amz-log-result") {
        let tail =
            base64::engine::general_purpose::STANDARD.decode(tail).context("the log's end is not base64")?;
        eprint!("{}", String::from_utf8_lossy(&tail));
    }
    let failed = answer.header("x-amz-function-error").is_some();
    if options.reading.json {
        show::json(&json!({
            "status": answer.status,
            "functionError": answer.header("x-amz-function-error"),
            "requestId": answer.header("x-amzn-requestid"),
            "start": answer.header("x-sock-start"),
            "timing": answer.header("server-timing"),
            "result": serde_json::from_slice::<Value>(&answer.body).unwrap_or_default(),
        }));
    } else if !answer.body.is_empty() {
        crate::say!("{}", String::from_utf8_lossy(&answer.body));
    }
    if failed && !options.reading.json {
        let body = answer.json().unwrap_or_default();
        let text = |key: &str| body[key].as_str().unwrap_or_default().replace('\n', " ");
        eprintln!("sock: {} failed: {}: {}", options.name, text("errorType"), text("errorMessage"));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
