//! The one program that the machine is for; and everybody's children, whom PID 1 has to wait for.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::control::{self, Control};
use crate::manifest::Manifest;
use crate::{Attempt, failed};

/// Runs it, and ends whatever it left behind. Returns its exit code, 128 and more for a signal, as a shell does.
pub(crate) fn run(manifest: &Manifest, control: &Control) -> Attempt<i32> {
    let mut command = command(manifest)?;
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root");
    command
        .env("LANG", "C.UTF-8")
        .env("TERM", "linux")
        .envs(&manifest.environment)
        .current_dir(&manifest.directory);
    let child = command.spawn().map_err(failed(format!("start {}", manifest.command.join(" "))))?;
    let child = Pid::from_raw(i32::try_from(child.id()).map_err(failed("read the program's number"))?);
    control.beat();
    let code = loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => break code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => break 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("failed to wait for the program: {errno}")),
        }
    };
    // Nobody may write results while they are saved.
    #[expect(clippy::disallowed_methods, reason = "everybody but PID 1 is meant, whatever their numbers are")]
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while wait().is_ok() {}
    Ok(code)
}

fn command(manifest: &Manifest) -> Attempt<Command> {
    let (program, arguments) = manifest.command.split_first().ok_or("manifest.json names no program")?;
    if manifest.interactive {
        // A session of its own on the console, so that Ctrl-C ends a command and not the machine.
        let mut command = Command::new("/usr/bin/setsid");
        command.args(["--ctty", "--wait", program]).args(arguments);
        let console = || {
            OpenOptions::new().read(true).write(true).open("/dev/hvc0").map_err(failed("open the console"))
        };
        command.stdin(console()?).stdout(console()?).stderr(console()?);
        return Ok(command);
    }
    let path = control::port("output")?;
    let output = OpenOptions::new().write(true).open(&path).map_err(failed("open the output port"))?;
    let errors = output.try_clone().map_err(failed("open the output port twice"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    Ok(command)
}
