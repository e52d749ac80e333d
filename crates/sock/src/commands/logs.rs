//! `sock logs`: what a function's invocations wrote.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::Reading;
use crate::client::segment;

/// See the commands' own help.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The function
    name: String,
    /// Go on printing what comes
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    reading: Reading,
}

pub(crate) fn run(options: &Logs) -> Result<ExitCode> {
    let client = options.reading.server.connect()?;
    // The end of the log at first, then what the server said where to go on.
    let mut after = String::new();
    loop {
        let answer = client.call("GET", &format!("/logs/{}{after}", segment(&options.name)), &[], &[])?;
        if answer.status != 200 {
            return Err(answer.error());
        }
        print(&answer.body, options.reading.json)?;
        if let Some(next) = answer.header("x-sock-log-next") {
            after = format!("?after={next}");
        }
        if !options.follow {
            return Ok(ExitCode::SUCCESS);
        }
        #[allow(clippy::disallowed_methods, reason = "a person watches: twice a second is at once")]
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn print(text: &[u8], json: bool) -> Result<()> {
    let mut output = std::io::stdout().lock();
    if json {
        for line in String::from_utf8_lossy(text).lines() {
            writeln!(output, "{}", serde_json::json!({ "line": line })).context("failed to print")?;
        }
        return Ok(());
    }
    match output.write_all(text) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("failed to print"),
    }
}
