//! `sock serve`, `run` and `doctor`: what works on this machine itself, not through a server.

use std::process::ExitCode;

use anyhow::Result;
use sock_gateway::{ServeOptions, supervise};
use sock_isolation::doctor::Level;
use sock_isolation::{Limits, RunOptions, run_command};

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
        python,
        zygote_memory,
        spare_memory,
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
        pythons: python,
        log_format: match log_format {
            LogFormat::Text => sock_gateway::LogFormat::Text,
            LogFormat::Json => sock_gateway::LogFormat::Json,
        },
        zygote_memory_mb: zygote_memory,
        spare_memory_mb: spare_memory,
        idle_memory_mb: idle_memory,
        ids: id_range,
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn run(options: Run) -> Result<ExitCode> {
    let limits = Limits { memory: u64::from(options.memory) << 20, ..Limits::default() };
    let Run { command: argv, profile, id_range: ids, .. } = options;
    let options = RunOptions { argv, limits, tmp_bytes: 512 << 20, profile, ids };
    Ok(match run_command(&options)? {
        Some(exit) => ExitCode::from(u8::try_from(exit.code()).unwrap_or(1)),
        None => {
            eprintln!(
                "sock: the container was killed as a whole: most often it needed more memory than --memory allows"
            );
            ExitCode::from(137)
        }
    })
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
            println!("{mark}  {:16}  {}", finding.subject, finding.detail);
            if let Some(remedy) = &finding.remedy {
                println!("{:24}to do: {remedy}", "");
            }
        }
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
