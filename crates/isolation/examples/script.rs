//! An untrusted script with a time limit: Python from standard input, in a container, for `script [SECONDS]` at most. Needs root.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sock_isolation::{ContainerSpec, Host, HostOptions, IdRange, Limits, Program, Template, Workshop};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(1), |seconds| seconds.parse::<u16>())?;
    let work = std::env::temp_dir().join(format!("sock-script-{}", std::process::id()));
    std::fs::create_dir(&work)?;
    let host = Host::start(HostOptions {
        work: work.clone(),
        group: format!("sock-script-{}", std::process::id()),
        template: Template::of_base(Path::new("/"))?,
        ids: IdRange::default(),
    })?;
    let limits = Limits { memory: 64 << 20, processes: 8, ..Limits::default() };
    let workshop = Workshop::new(host, ContainerSpec { limits, ..ContainerSpec::default() });
    let mut container = workshop.create()?;
    let argv = ["/usr/bin/python3", "-I", "-"].map(String::from).into();
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = [input.as_fd(), output.as_fd(), error.as_fd()];
    container.start(&Program { argv, env: Vec::new(), directory: "/tmp".into() }, &streams)?;
    let timeout = PollTimeout::try_from(u32::from(seconds) * 1000)?;
    let in_time = poll(&mut [PollFd::new(container.pidfd()?, PollFlags::POLLIN)], timeout)? > 0;
    // Whatever it started, and whatever it ignores, is gone after this.
    container.kill()?;
    let exit = container.wait()?;
    container.destroy()?;
    workshop.stop()?;
    nix::mount::umount2(&work, nix::mount::MntFlags::MNT_DETACH)?;
    std::fs::remove_dir(&work)?;
    Ok(match exit {
        Some(exit) if in_time => ExitCode::from(exit.code() as u8),
        _ => {
            eprintln!("it did not end within {seconds} s");
            ExitCode::from(124)
        }
    })
}
