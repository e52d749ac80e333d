//! `sock serve`, `run` and `doctor`: what works on this machine itself, not through a server.

use std::process::ExitCode;

use anyhow::Result;
use sock_gateway::{ServeOptions, supervise};
use sock_isolation::doctor::Level;
use sock_isolation::{End, Limits, RunError, RunOptions, run_command};

use crate::{Local, LogFormat, Run, Serve, show};

pub(crate) fn serve(options: Serve) -> Result<ExitCode> {
    let Serve {
        data_dir,
        listen,
        access_key,
        no_auth,
        index_url,
        find_links,
        require_cgroup_limits,
        allow_paper,
        python,
        zygote_memory,
        spare_memory,
        zygote_forks,
        idle_memory,
        log_format,
        id_range,
    } = options;
    supervise(&ServeOptions {
        data_dir,
        listen,
        access_key,
        no_auth,
        index_url,
        find_links,
        require_cgroup_limits,
        allow_paper,
        pythons: python,
        log_format: match log_format {
            LogFormat::Text => sock_gateway::LogFormat::Text,
            LogFormat::Json => sock_gateway::LogFormat::Json,
        },
        zygote_memory_mb: zygote_memory,
        spare_memory_mb: spare_memory,
        zygote_forks,
        idle_memory_mb: idle_memory,
        ids: id_range,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The most that fits into the `/tmp` of a command, bytes.
const TMP: u64 = 512 << 20;

pub(crate) fn run(options: Run) -> Result<ExitCode> {
    let limits = Limits { memory: u64::from(options.memory) << 20, ..Limits::default() };
    let Run { command: argv, profile, id_range: ids, memory } = options;
    // Files there count as its memory, where that is counted.
    let options = RunOptions { argv, tmp_bytes: limits.memory.min(TMP), limits, profile, ids };
    let end = match run_command(&options) {
        Ok(end) => end,
        Err(error) => {
            let code = not_started(&error);
            eprintln!("sock: {error}");
            return Ok(ExitCode::from(code));
        }
    };
    match end {
        End::Exited(_) => {}
        End::OutOfMemory => eprintln!(
            "sock: the container was killed: it needed more than the {memory} MB of memory that it may have; --memory MB allows more"
        ),
        End::Killed => {
            eprintln!("sock: the container was killed, with all that was in it, by a signal from outside")
        }
    }
    Ok(ExitCode::from(u8::try_from(end.code()).unwrap_or(1)))
}

/// No such file or directory. errno(3)
const ENOENT: i32 = 2;

/// What env(1) and shells end with, so that it is not taken for the command's own.
fn not_started(error: &RunError) -> u8 {
    match error {
        RunError::NotFound(_) => 127,
        RunError::NotStarted { errno, .. } if *errno as i32 == ENOENT => 127,
        RunError::NotStarted { .. } => 126,
        _ => 125,
    }
}

pub(crate) fn doctor(options: &Local) -> Result<ExitCode> {
    let findings = sock_gateway::doctor();
    let bad = findings.iter().any(|finding| finding.level == Level::Bad);
    if options.json {
        show::json(&serde_json::to_value(&findings)?);
    } else {
        for finding in &findings {
            let mark = match finding.level {
                Level::Good => "ok  ",
                Level::Warning => "warn",
                Level::Bad => "BAD ",
            };
            crate::say!("{mark}  {:16}  {}", finding.subject, finding.detail);
            if let Some(remedy) = &finding.remedy {
                crate::say!("{:24}to do: {remedy}", "");
            }
        }
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
