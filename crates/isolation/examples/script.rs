//! An untrusted script with a time limit: Python from standard input, in a container, for `script [SECONDS]` at most. Needs root.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use sock_isolation::cgroup::{self, Hierarchy};
use sock_isolation::{ContainerSpec, End, Host, HostOptions, IdRange, Limits, Program, Template, Workshop};

/// Bytes.
const MEMORY: u64 = 64 << 20;

/// What the cgroups are called, before the number of who runs it.
const GROUP: &str = "sock-script-";

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(1), |seconds| seconds.parse::<u16>())?;
    // Only a place to mount on, which several may do: none sees the others' mounts.
    let work = std::env::temp_dir().join("sock-script");
    std::fs::create_dir_all(&work)?;
    // What others left that were killed.
    Hierarchy::in_place(&cgroup::find()?).sweep(GROUP);
    let host = Host::start(HostOptions {
        work,
        group: format!("{GROUP}{}", std::process::id()),
        template: Template::of_base(Path::new("/"))?,
        ids: IdRange::default(),
    })?;
    let limits = Limits { memory: MEMORY, processes: 8, ..Limits::default() };
    let workshop = Workshop::new(host, ContainerSpec { limits, ..ContainerSpec::default() });
    let mut container = workshop.create()?;
    let argv = ["/usr/bin/python3", "-I", "-"].map(String::from).into();
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [input.as_fd(), output.as_fd(), error.as_fd()];
    container.start(&Program { argv, env: Vec::new(), directory: "/tmp".into() }, &streams)?;
    let end = container.wait_for(Duration::from_secs(seconds.into()))?;
    // Whatever it started, and whatever it ignores, is gone after this.
    container.destroy()?;
    workshop.stop()?;
    Ok(match end {
        None => {
            eprintln!("it did not end within {seconds} s");
            ExitCode::from(124)
        }
        Some(end) => {
            if end == End::OutOfMemory {
                eprintln!("it needed more than {} MB of memory", MEMORY >> 20);
            }
            ExitCode::from(end.code() as u8)
        }
    })
}
