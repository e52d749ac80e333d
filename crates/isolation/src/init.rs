//! PID 1 of a container: finishes its root, starts its command if it has one, and from then on only reaps.
//!
//! Native and a fork of the slot builder, so that a container costs no exec and hardly any memory of its own. It does
//! nothing for the container's processes and reads nothing of theirs; when it ends, the kernel kills them all
//! (pid_namespaces(7)). It must never run anything of the container's as itself.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, execve, pipe2, read, write};
use serde::{Deserialize, Serialize};

use crate::builder::MESSAGE;
use crate::cgroup::Limits;
use crate::error::{Context, SysResult};
use crate::execute::{Outside, perform};
use crate::ids::INSIDE;
use crate::plan::{self, Step};
use crate::seccomp::Role;
use crate::sys;

/// A program to execute in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Its path and arguments; the path is absolute, inside.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub directory: PathBuf,
    /// What it may be.
    pub role: Role,
    /// What it may use.
    pub limits: Limits,
    /// Whether a memory controller keeps the memory limit.
    pub memory_by_kernel: bool,
}

/// A program for a container that stands ready for one. See [`crate::Container::start`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its path and arguments; the path is absolute, inside.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub directory: PathBuf,
}

/// What there is in a container beside its PID 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Payload {
    /// Nothing: a zygote's child comes later. So many process numbers are used up before, see [`skip`].
    Later { skipped: u32 },
    /// A command that is started at once.
    Command(Command),
    /// A process that has given up everything and waits on its descriptor 0 for a [`Program`] to become, with the
    /// descriptors that it shall have. It answers by closing that descriptor, or with the reason why it cannot.
    Runner(Runner),
}

/// See [`Payload::Runner`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Runner {
    pub(crate) role: Role,
    pub(crate) limits: Limits,
    pub(crate) memory_by_kernel: bool,
}

/// How a command ended. See wait(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// From the status word of wait(2).
    pub fn from_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal(libc::WTERMSIG(status))
        } else {
            Self::Code(libc::WEXITSTATUS(status))
        }
    }

    /// The exit code that a shell would give it.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// How a container ended. That its time was up is known to who waited: see [`crate::Container::wait_for`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its command.
    Exited(Exit),
    /// It needed more memory than its limit allows, and was killed as a whole.
    OutOfMemory,
    /// It was killed as a whole: by [`crate::Container::kill`], or from outside.
    Killed,
}

impl End {
    /// `exit`: of its command, unless both were killed.
    pub(crate) fn of(exit: Option<Exit>, out_of_memory: bool) -> Self {
        match exit {
            // Whichever of its processes the kernel killed first.
            None | Some(Exit::Signal(libc::SIGKILL)) if out_of_memory => Self::OutOfMemory,
            None => Self::Killed,
            Some(exit) => Self::Exited(exit),
        }
    }

    /// The exit code that a shell would give it.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(exit) => exit.code(),
            Self::OutOfMemory | Self::Killed => 128 + libc::SIGKILL,
        }
    }
}

/// What PID 1 tells the builder: one message when it is ready or has failed, one when its command ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInit {
    Ready,
    /// With the number of the error if the command was not to be started.
    Failed {
        error: String,
        start: Option<i32>,
    },
    Exited(Exit),
}

/// What fails when a program cannot be executed.
const START: &str = "start";

/// What PID 1 is made with; inherited from the builder.
pub(crate) struct Birth<'a> {
    pub(crate) builder: OwnedFd,
    /// The namespaces that it makes itself; that of mounts once the builder says that its root stands.
    pub(crate) later: CloneFlags,
    pub(crate) var_mount: Option<BorrowedFd<'a>>,
    /// What it takes to finish the root.
    pub(crate) steps: &'a [Step],
    /// For a container of the profile `paper`, which has no users of its own: the host's ids of its PID 1 and of its program.
    pub(crate) paper: Option<[u32; 2]>,
    pub(crate) payload: &'a Payload,
    /// Become the payload's descriptors 0, 1, 2 and so on.
    pub(crate) fds: &'a [OwnedFd],
}

impl Birth<'_> {
    /// The uid and gid of its program.
    fn id(&self) -> u32 {
        self.paper.map_or(INSIDE, |[_, program]| program)
    }
}

/// The life of PID 1; its return value is its exit code.
pub(crate) fn run(birth: Birth<'_>) -> i32 {
    let payload = prepare(&birth);
    let unprivileged = birth.paper.map(|[init, _]| Step::SetIds { id: init });
    // From here on only the way back to the builder is open.
    let Ok(builder) = sys::arrange(&[], birth.builder) else { return 1 };
    let payload = payload.and_then(|payload| {
        let steps: Vec<Step> = unprivileged.into_iter().collect();
        perform(&steps, &Outside::default())?;
        die_with(&builder)?;
        perform(&plan::init(), &Outside::default()).map(|()| payload)
    });
    match payload {
        Ok(payload) => {
            tell(&builder, &FromInit::Ready);
            sys::release_heap();
            reap(payload, &builder)
        }
        Err(error) => {
            let start = (error.call == START).then_some(error.errno as i32);
            tell(&builder, &FromInit::Failed { error: error.to_string(), start });
            1
        }
    }
}

/// From now on the builder's death is its own, and with it that of all in the container. Every change of ids would clear this, so it
/// comes after the last.
fn die_with(builder: &OwnedFd) -> SysResult<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).call("prctl PR_SET_PDEATHSIG")?;
    // It may be dead already; its number says nothing in here.
    let mut wanted = [PollFd::new(builder.as_fd(), PollFlags::empty())];
    match poll(&mut wanted, PollTimeout::ZERO).call("poll")? {
        0 => Ok(()),
        _ => Err(Errno::EPIPE).call("poll"),
    }
}

fn tell(builder: &OwnedFd, message: &FromInit) {
    let text = serde_json::to_vec(message).unwrap_or_default();
    // Nobody is left to tell when the builder is gone, and then the kernel kills this process anyway.
    let _ = sys::send(builder.as_fd(), &text, &[]);
}

fn prepare(birth: &Birth<'_>) -> SysResult<Option<Pid>> {
    let later = |kind| if birth.later.contains(kind) { unshare(kind).call("unshare") } else { Ok(()) };
    later(CloneFlags::CLONE_NEWNET)?;
    if birth.later.contains(CloneFlags::CLONE_NEWNS) {
        hear(&birth.builder)?;
        later(CloneFlags::CLONE_NEWNS)?;
    }
    let mut fds = hear(&birth.builder)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_set_mask().call("sigprocmask")?;
    let outside = Outside { proc_mount: fds.pop(), var_mount: birth.var_mount };
    perform(birth.steps, &outside)?;
    drop(outside);
    match birth.payload {
        Payload::Later { skipped } => skip(*skipped).map(|()| None),
        Payload::Command(command) => {
            if command.role == Role::Zygote {
                skip(1)?;
            }
            let program = command.argv.first().map(String::as_str).unwrap_or_default();
            start(program, birth.fds, |_| become_command(command, birth.id())).map(Some)
        }
        Payload::Runner(runner) => {
            start("a runner", birth.fds, |report| become_runner(*runner, birth.id(), report)).map(Some)
        }
    }
}

/// The builder's next word, or what is wrong when there is none.
fn hear(builder: &OwnedFd) -> SysResult<Vec<OwnedFd>> {
    match sys::receive(builder.as_fd(), &mut [0; 16]).call("recvmsg")? {
        (0, _) => Err(Errno::EPIPE).call("recvmsg"),
        (_, fds) => Ok(fds),
    }
}

/// Has a zygote be another number than its children are in their own namespaces, and than the zygote that it was forked from:
/// libraries notice by it that they were forked, and make their random numbers anew.
fn skip(numbers: u32) -> SysResult<()> {
    for _ in 0..numbers {
        let nobody = sys::fork(|| 0)?;
        waitpid(nobody, None).call("waitpid")?;
    }
    Ok(())
}

/// Forks `body`; returns once it has closed what it is given, which an exec does too, or with the reason why it failed.
fn start(
    what: &str,
    fds: &[OwnedFd],
    body: impl FnOnce(&mut Option<OwnedFd>) -> SysResult<Infallible>,
) -> SysResult<Pid> {
    let (answer, report) = pipe2(OFlag::O_CLOEXEC).call("pipe2")?;
    let child = sys::fork(|| {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let Ok(report) = sys::arrange(&fds, report) else { return 127 };
        let mut report = Some(report);
        let error = match body(&mut report) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let Some(report) = report else { return 127 };
        // The error number, then what it belongs to: short enough for a pipe to take in one piece.
        let text = [&(error.errno as i32).to_ne_bytes(), error.call.as_bytes()].concat();
        let _ = write(&report, &text);
        127
    })?;
    // `report` moved into the child's closure only; this process drops its own here, with the closure.
    let mut text = [0; 128];
    let length = read(&answer, &mut text).call("read")?;
    let Some((number, step)) = text[..length].split_first_chunk::<4>() else {
        // The pipe closed with the exec.
        return Ok(child);
    };
    let errno = Errno::from_raw(i32::from_ne_bytes(*number));
    let step = String::from_utf8_lossy(step);
    Err(errno).call_on(START, format!("{what} ({step})"))
}

fn become_command(command: &Command, id: u32) -> SysResult<Infallible> {
    let Command { argv, env, directory, role, limits, memory_by_kernel } = command;
    SigSet::empty().thread_set_mask().call("sigprocmask")?;
    perform(&plan::payload(*role, id, directory, limits, *memory_by_kernel), &Outside::default())?;
    execute(argv, env)
}

fn become_runner(runner: Runner, id: u32, ready: &mut Option<OwnedFd>) -> SysResult<Infallible> {
    let Runner { role, limits, memory_by_kernel } = runner;
    SigSet::empty().thread_set_mask().call("sigprocmask")?;
    perform(&plan::payload(role, id, Path::new("/"), &limits, memory_by_kernel), &Outside::default())?;
    *ready = None;
    let owner = std::io::stdin();
    let mut buffer = vec![0; MESSAGE];
    let (length, fds) = sys::receive(owner.as_fd(), &mut buffer).call("recvmsg")?;
    if length == 0 {
        return Err(Errno::ECANCELED).call("recvmsg");
    }
    let program: Program =
        serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG).call("decode")?;
    let owner = owner.as_fd().try_clone_to_owned().call("fcntl")?;
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let owner = sys::arrange(&fds, owner)?;
    let started = chdir(&program.directory).call("chdir").and_then(|()| execute(&program.argv, &program.env));
    if let Err(error) = &started {
        // Nobody is left to tell when the owner is gone.
        let _ = sys::send(owner.as_fd(), format!("{} ({})", error.errno.desc(), error.call).as_bytes(), &[]);
    }
    started
}

fn execute(argv: &[String], env: &[(String, String)]) -> SysResult<Infallible> {
    let c_string = |text: String| CString::new(text).map_err(|_| Errno::EINVAL).call("execve");
    let argv = argv.iter().cloned().map(c_string).collect::<SysResult<Vec<_>>>()?;
    let pairs = env.iter().map(|(name, value)| format!("{name}={value}"));
    let env = pairs.map(c_string).collect::<SysResult<Vec<_>>>()?;
    let program = argv.first().ok_or(Errno::EINVAL).call("execve")?;
    execve(program, &argv, &env).call("execve")
}

/// Reaps until the command has ended (its exit is told), or for ever when there is none. Neither allocates nor returns: the heap has
/// been given back, being half of what a container's PID 1 would have for itself.
fn reap(payload: Option<Pid>, builder: &OwnedFd) -> ! {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    loop {
        let ended = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => Some((pid, Exit::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid, Exit::Signal(signal as i32))),
            _ => None,
        };
        match ended {
            Some((pid, exit)) if Some(pid) == payload => {
                let mut buffer = [0; 64];
                // As in `tell`.
                let _ = write(builder, last_word(exit, &mut buffer));
                sys::exit_now(0)
            }
            Some(_) => {}
            // SIGCHLD is blocked, so one that came since the last look is still pending.
            None => drop(child.wait()),
        }
    }
}

/// [`FromInit::Exited`] as it is sent.
fn last_word(exit: Exit, buffer: &mut [u8]) -> &[u8] {
    let size = buffer.len();
    let mut rest = &mut *buffer;
    // It fits.
    let _ = match exit {
        Exit::Code(number) => write!(rest, "{{\"Exited\":{{\"Code\":{number}}}}}"),
        Exit::Signal(number) => write!(rest, "{{\"Exited\":{{\"Signal\":{number}}}}}"),
    };
    let left = rest.len();
    &buffer[..size - left]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_what_the_builder_reads() {
        for exit in [Exit::Code(0), Exit::Code(i32::MIN), Exit::Signal(64)] {
            let mut buffer = [0; 64];
            let word: FromInit = serde_json::from_slice(last_word(exit, &mut buffer)).unwrap();
            assert!(matches!(word, FromInit::Exited(told) if told == exit), "{word:?}");
        }
    }
}
