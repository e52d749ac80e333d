//! What would hold the launcher up, or keep a container from going, if it were let.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sock_isolation::launcher::wire::{Files, Reply, Request};
use sock_isolation::{IdRange, Limits, Profile};

use super::{Launcher, command, zygote};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("launcher::a_slot_that_is_given_up_can_be_joined_no_more", given_up),
    ("launcher::a_container_that_is_not_made_in_time_is_ended", hung),
    ("launcher::a_slot_whose_maker_hangs_is_ended", maker_hung),
    ("launcher::a_zygote_that_speaks_without_end_is_not_heard_out", chatter),
];

impl Launcher {
    /// What is in its groups, and is started in them, stands still until this is dropped.
    fn freeze(&self) -> Result<Frozen, Failed> {
        let frozen = Frozen(self.group.join("cgroup.freeze"));
        fs::write(&frozen.0, "1")?;
        Ok(frozen)
    }

    /// Its only child.
    fn builder(&self) -> Result<Pid, Failed> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        Ok(Pid::from_raw(children.trim().parse()?))
    }
}

struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "0");
    }
}

/// Nobody buries it, as long as the builder does not tell of its end.
#[expect(clippy::disallowed_methods, reason = "the builder's number is its own until the launcher ends")]
fn given_up() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    assert!(matches!(launcher.call(zygote(&["/bin/sleep", "60"], None))?, Ok(Reply::Zygote { .. })));
    launcher.keep(1)?;
    let procs = launcher.group.join("1/2/cgroup.procs");
    assert_ne!(fs::metadata(&procs)?.uid(), 0);
    let builder = launcher.builder()?;
    kill(builder, Signal::SIGSTOP)?;
    launcher.keep(0)?;
    launcher.wait_until(|counts| counts.dying == 1)?;
    let owner = fs::metadata(&procs)?.uid();
    kill(builder, Signal::SIGCONT)?;
    assert_eq!(owner, 0);
    launcher.wait_until(|counts| counts.dying == 0)?;
    launcher.stop()
}

/// Its PID 1 says nothing, and is killed for it.
fn hung() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    launcher.counts()?;
    let frozen = launcher.freeze()?;
    let begin = Instant::now();
    let execute = Request::Execute {
        profile: Profile::Lean,
        files: Files::default(),
        command: command(&["/bin/true"]),
    };
    let refused = launcher.refusal(execute)?;
    assert_eq!(refused, "PID 1 of the container died early");
    assert!(begin.elapsed() > Duration::from_secs(5), "{:?}", begin.elapsed());
    launcher.empties()?;
    assert_eq!(launcher.groups()?, 0);
    drop(frozen);
    assert!(matches!(launcher.call(zygote(&["/bin/sleep", "60"], None))?, Ok(Reply::Zygote { .. })));
    launcher.stop()
}

fn maker_hung() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    assert!(matches!(launcher.call(zygote(&["/bin/sleep", "60"], None))?, Ok(Reply::Zygote { .. })));
    let frozen = launcher.freeze()?;
    let begin = Instant::now();
    let fork = Request::Fork { zygote: 1, files: Files::default(), limits: Limits::default() };
    let refused = launcher.refusal(fork)?;
    assert_eq!(refused, "clone a container: I/O error");
    assert!(begin.elapsed() > Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(frozen);
    launcher.keep(1)?;
    // Of the first there is nothing: the zygote's own group and the second's are left.
    let family = launcher.group.join("1");
    let groups = fs::read_dir(family)?.flatten().filter(|entry| entry.path().is_dir());
    assert_eq!(groups.count(), 2);
    launcher.stop()
}

/// Of 4096 things that are said in its name, a quarter is heard when one of its slots ends.
fn chatter() -> Result<(), Failed> {
    let code = r"
import ctypes, fcntl, os, socket, struct, sys, termios
pid = os.pidfd_open(int(sys.argv[1]))
channel = socket.socket(fileno=ctypes.CDLL(None).syscall(438, pid, 3, 0)) # pidfd_getfd
channel.setsockopt(socket.SOL_SOCKET, 32, 1 << 24) # SO_SNDBUFFORCE
for _ in range(4096):
    channel.send(b'ended 77 0')
waiting = lambda: struct.unpack('i', fcntl.ioctl(channel, termios.TIOCOUTQ, bytes(4)))[0]
before = waiting()
print('said', flush=True)
sys.stdin.read()
print(waiting() * 4096 // before)
";
    let mut launcher = Launcher::start(IdRange::default())?;
    assert!(matches!(launcher.call(zygote(&["/bin/sleep", "60"], None))?, Ok(Reply::Zygote { .. })));
    let processes = fs::read_to_string(launcher.group.join("1/own/cgroup.procs"))?;
    let zygote = processes.lines().next_back().ok_or("it has no process")?;
    let mut python = std::process::Command::new("/usr/bin/python3");
    python.args(["-I", "-S", "-c", code, zygote]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn()?;
    let mut said = python.stdout.take().ok_or("it has no output")?;
    said.read_exact(&mut [0; 5])?;
    launcher.keep(1)?;
    launcher.keep(0)?;
    launcher.wait_until(|counts| (counts.slots, counts.dying) == (0, 0))?;
    drop(python.stdin.take());
    let mut left = String::new();
    said.read_to_string(&mut left)?;
    python.wait()?;
    assert_eq!(left, "3072\n");
    launcher.stop()
}
