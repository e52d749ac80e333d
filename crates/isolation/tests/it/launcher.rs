//! The launcher's process, asked over its socket.

pub(crate) mod held_up;
pub(crate) mod released;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::poll::{PollFd, PollFlags};
use sock_isolation::launcher::wire::{self, Answer, Counts, Files, ForkZygote, Reply, Request, StartZygote};
use sock_isolation::launcher::{server, socket_pair};
use sock_isolation::process::Child;
use sock_isolation::{Command, Exit, Host, HostOptions, IdRange, Limits, Profile, Role, Template, cgroup};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("launcher::what_fails_leaves_nothing", failures),
    ("launcher::a_message_that_is_no_request_is_refused", malformed),
    ("launcher::a_request_whose_slot_fails_is_answered_once", slot_fails),
    ("launcher::a_command_is_what_its_profile_allows", profiles),
    ("launcher::an_instance_that_takes_too_much_memory_is_ended", instance_over),
    ("launcher::a_zygote_that_takes_too_much_memory_is_ended", zygote_over),
    ("launcher::a_zygote_holds_no_capability_and_gets_none", zygote_without_rights),
    ("launcher::a_forked_zygote_that_was_not_looked_at_gets_nothing", forked_zygote),
];

/// A launcher and the gateway's end of its socket.
struct Launcher {
    socket: OwnedFd,
    child: Child,
    group: PathBuf,
    next: u64,
    _data: tempfile::TempDir,
}

impl Launcher {
    fn start(ids: IdRange) -> Result<Self, Failed> {
        let data = tempfile::tempdir()?;
        fs::create_dir(data.path().join("mnt"))?;
        fs::create_dir(data.path().join("task"))?;
        let name = format!("sock-test-launcher-{}", std::process::id());
        let host = HostOptions {
            work: data.path().join("mnt"),
            group: name.clone(),
            template: Template::of_base(Path::new("/"))?,
            ids,
        };
        let options = server::Options { data: data.path().to_owned(), tmp_bytes: 1 << 20, paper: false };
        let (socket, theirs) = socket_pair()?;
        let child = Child::fork_without(&[&socket], move || {
            let host = Host::start(host).map_err(|error| error.to_string());
            let served =
                host.and_then(|host| server::serve(host, options, theirs).map_err(|error| error.to_string()));
            i32::from(served.inspect_err(|error| eprintln!("launcher: {error}")).is_err())
        })?;
        let group = cgroup::find()?.directory.join(name);
        Ok(Self { socket, child, group, next: 1, _data: data })
    }

    fn send(&mut self, request: Request) -> Result<u64, Failed> {
        let id = self.next;
        self.next += 1;
        wire::send_request(self.socket.as_fd(), id, request)?;
        Ok(id)
    }

    fn receive(&self) -> Result<(Answer, Vec<OwnedFd>), Failed> {
        let mut wanted = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut wanted, 20_000u16)?, 1, "the launcher does not answer");
        Ok(wire::receive_reply(self.socket.as_fd())?.ok_or("the launcher is gone")?)
    }

    /// The answer to a request, which has to be the next one.
    fn call(&mut self, request: Request) -> Result<Result<Reply, String>, Failed> {
        let id = self.send(request)?;
        let (answer, _) = self.receive()?;
        assert_eq!(answer.id, id, "{:?}", answer.result);
        Ok(answer.result)
    }

    /// Why a request is refused, which it has to be.
    fn refusal(&mut self, request: Request) -> Result<String, Failed> {
        Ok(self.call(request)?.err().ok_or("it was granted")?)
    }

    fn counts(&mut self) -> Result<Counts, Failed> {
        match self.call(Request::Count)? {
            Ok(Reply::Counts(counts)) => Ok(counts),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// Waits for the end of what is dying, which nobody tells of.
    fn empties(&mut self) -> Result<(), Failed> {
        self.wait_until(|counts| *counts == Counts::default())
    }

    fn wait_until(&mut self, hoped: impl Fn(&Counts) -> bool) -> Result<(), Failed> {
        let begin = Instant::now();
        loop {
            let counts = self.counts()?;
            if hoped(&counts) {
                return Ok(());
            }
            if begin.elapsed() > Duration::from_secs(10) {
                return Err(format!("there are {counts:?}").into());
            }
            nix::poll::poll(&mut [], 5u8)?;
        }
    }

    /// Lets zygote 1 have one slot ready, or none.
    fn keep(&mut self, slots: u32) -> Result<(), Failed> {
        assert_eq!(self.call(Request::Keep { zygote: 1, spares: 0, slots })?, Ok(Reply::Done));
        if slots > 0 {
            self.wait_until(|counts| counts.slots == 1)?;
        }
        Ok(())
    }

    fn groups(&self) -> Result<usize, Failed> {
        let entries = fs::read_dir(&self.group)?.flatten();
        Ok(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count())
    }

    fn stop(self) -> Result<(), Failed> {
        let Self { socket, child, group, .. } = self;
        drop(socket);
        assert_eq!(child.wait()?, Exit::Code(0));
        assert!(!group.exists(), "{} is left", group.display());
        Ok(())
    }
}

fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|&argument| argument.into()).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        directory: "/tmp".into(),
        role: Role::Instance,
        limits: Limits::default(),
        memory_by_kernel: false,
    }
}

fn zygote(argv: &[&str], task: Option<&str>) -> Request {
    let command = Command { role: Role::Zygote, directory: "/".into(), ..command(argv) };
    let files = Files { task: task.map(Into::into), ..Files::default() };
    Request::StartZygote(StartZygote { zygote: 1, files, command, slots: 0 })
}

/// More often than there are blocks of user ids.
fn failures() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange { blocks: 3, ..IdRange::default() })?;
    for _ in 0..4 {
        let refused = launcher.refusal(zygote(&["/bin/sleep", "60"], Some("no/such")))?;
        assert!(refused.contains("no/such"), "{refused}");
        let refused = launcher.refusal(zygote(&["/no/such"], None))?;
        assert!(refused.contains("start /no/such (execve)"), "{refused}");
        for task in ["no/such", "../mnt", "/etc"] {
            let files = Files { task: Some(task.into()), ..Files::default() };
            let refused = launcher.refusal(Request::Execute {
                profile: Profile::Lean,
                files,
                command: command(&["/bin/true"]),
            })?;
            assert!(refused.contains(task), "{refused}");
        }
    }
    launcher.empties()?;
    assert_eq!(launcher.groups()?, 0);
    assert!(matches!(launcher.call(zygote(&["/bin/sleep", "60"], Some("task")))?, Ok(Reply::Zygote { .. })));
    launcher.stop()
}

fn malformed() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    for message in ["no request", "{}", "\u{0}"] {
        nix::unistd::write(&launcher.socket, message.as_bytes())?;
    }
    nix::unistd::write(&launcher.socket, br#"{"id": 77, "request": {"Reboot": {"now": true}}}"#)?;
    let (Answer { id, result }, _) = launcher.receive()?;
    let refused = result.err().ok_or("it was granted")?;
    assert!(id == 77 && refused.contains("unknown variant `Reboot`"), "{refused}");
    assert_eq!(launcher.counts()?, Counts::default());
    launcher.stop()
}

/// Paper only where whoever started the launcher said so.
fn profiles() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    let execute = |profile, role| Request::Execute {
        profile,
        files: Files::default(),
        command: Command { role, ..command(&["/bin/true"]) },
    };
    let refused = launcher.refusal(execute(Profile::Strict, Role::Instance))?;
    assert!(refused.contains("role Strict is expected"), "{refused}");
    let refused = launcher.refusal(execute(Profile::Paper, Role::Instance))?;
    assert!(refused.contains("paper are not allowed"), "{refused}");
    assert!(matches!(launcher.call(execute(Profile::Strict, Role::Strict))?, Ok(Reply::Instance { .. })));
    launcher.stop()
}

fn slot_fails() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    assert!(matches!(launcher.call(zygote(&["/bin/sleep", "60"], None))?, Ok(Reply::Zygote { .. })));
    let fork = || Request::Fork { zygote: 1, files: Files::default(), limits: Limits::default() };
    let bound = launcher.group.join("cgroup.max.descendants");
    fs::write(&bound, "1")?;
    for _ in 0..3 {
        let refused = launcher.refusal(fork())?;
        assert!(refused.contains("mkdir"), "{refused}");
    }
    // Neither is any of them answered again, now that it could be.
    fs::write(&bound, "max")?;
    launcher.send(fork())?;
    launcher.wait_until(|counts| counts.forking == 1)?;
    launcher.stop()
}

/// Takes as much memory, in MiB, as it is told by its descriptor 3, for two processes to share: no limit of one process keeps that.
const TAKES: &str = r"
import mmap, os
end = []
while True:
    word = os.read(3, 16)
    if not word:
        os._exit(0)
    end.append(mmap.mmap(-1, int(word) << 20))
    for page in range(0, len(end[-1]), 4096):
        end[-1][page] = 1
    os.write(3, b'taken')
";

fn takes(role: Role, memory: u64) -> Command {
    let limits = Limits { memory, ..Limits::default() };
    Command { role, limits, ..command(&["/usr/bin/python3", "-I", "-S", "-c", TAKES]) }
}

/// It was idle long enough to be looked at no more, and is within its limit at first.
fn instance_over() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    let command = takes(Role::Instance, 64 << 20);
    launcher.send(Request::Execute { profile: Profile::Lean, files: Files::default(), command })?;
    let (answer, fds) = launcher.receive()?;
    let Ok(Reply::Instance { instance, .. }) = answer.result else {
        return Err(format!("{answer:?}").into());
    };
    launcher.send(Request::Check { instance })?;
    launcher.receive()?.0.result?;
    let (socket, mut said) = (&fds[0], [0; 16]);
    for (more, taken) in [("32", true), ("48", false)] {
        nix::poll::poll(&mut [], 400u16)?;
        nix::unistd::write(socket, more.as_bytes())?;
        // What it writes before it is looked at is no sign of life.
        loop {
            let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut wanted, 20_000u16)?, 1, "nobody looks at it");
            if nix::unistd::read(socket, &mut said)? == 0 || taken {
                break;
            }
        }
    }
    match launcher.call(Request::Destroy { instance })? {
        Ok(Reply::Destroyed { out_of_memory: true, .. }) => launcher.stop(),
        other => Err(format!("{other:?}").into()),
    }
}

fn zygote_over() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    let code = TAKES.replace("os.read(3, 16)", "os.read(4, 16)").replace("os.write(3,", "os.write(4,");
    let command = Command {
        argv: ["/usr/bin/python3", "-I", "-S", "-c", &code].map(String::from).into(),
        ..takes(Role::Zygote, 64 << 20)
    };
    let start = StartZygote { zygote: 1, files: Files::default(), command, slots: 0 };
    launcher.send(Request::StartZygote(start))?;
    let (answer, fds) = launcher.receive()?;
    assert!(matches!(answer.result, Ok(Reply::Zygote { .. })));
    let (control, mut said) = (&fds[0], [0; 16]);
    nix::unistd::write(control, b"32")?;
    nix::unistd::read(control, &mut said)?;
    nix::poll::poll(&mut [], 400u16)?;
    assert_eq!(launcher.counts()?.zygotes, 1);
    nix::unistd::write(control, b"48")?;
    launcher.empties()?;
    launcher.stop()
}

/// Its parent never forks, so that there is nobody to look at.
fn forked_zygote() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    assert!(matches!(launcher.call(zygote(&["/bin/sleep", "60"], None))?, Ok(Reply::Zygote { .. })));
    let fork = |zygote, parent| {
        let (files, limits) = (Files::default(), Limits::default());
        Request::ForkZygote(ForkZygote { zygote, parent, files, limits, slots: 1 })
    };
    let refused = launcher.refusal(fork(2, 9))?;
    assert!(refused.contains("there is no zygote 9"), "{refused}");
    let refused = launcher.refusal(fork(1, 1))?;
    assert!(refused.contains("zygote 1 exists already"), "{refused}");
    assert!(matches!(launcher.call(fork(2, 1))?, Ok(Reply::Zygote { .. })));
    let refused = launcher.refusal(Request::Admit { zygote: 2 })?;
    assert!(refused.contains("zygote 2 is not confined: the container has 0 processes"), "{refused}");
    let refused = launcher.refusal(fork(3, 2))?;
    assert!(refused.contains("zygote 2 is still being made"), "{refused}");
    let refused = launcher.refusal(Request::Admit { zygote: 1 })?;
    assert!(refused.contains("zygote 1 does not wait for that"), "{refused}");
    // Waits for a slot, and none is made.
    let waiting =
        launcher.send(Request::Fork { zygote: 2, files: Files::default(), limits: Limits::default() })?;
    // A hundred times what a slot takes.
    nix::poll::poll(&mut [], 200u16)?;
    assert_eq!(launcher.counts()?, Counts { zygotes: 2, ..Counts::default() });
    // What is in a zygote's namespaces goes with it.
    launcher.send(Request::StopZygote { zygote: 1 })?;
    let mut answers = BTreeMap::new();
    for _ in 0..2 {
        let (answer, _) = launcher.receive()?;
        answers.insert(answer.id, answer.result);
    }
    assert_eq!(answers.remove(&waiting), Some(Err("zygote 2 was stopped".into())));
    assert!(answers.into_values().all(|answer| answer == Ok(Reply::Done)));
    launcher.empties()?;
    assert_eq!(launcher.groups()?, 0);
    launcher.stop()
}

/// By clone3(2), which its filter has to allow it; 1 is EPERM.
#[cfg(target_arch = "x86_64")]
fn zygote_without_rights() -> Result<(), Failed> {
    let code = r"
import ctypes, os
for line in open('/proc/self/status'):
    if line.startswith(('Cap', 'NoNew', 'Seccomp:')):
        print(*line.split())
libc = ctypes.CDLL(None, use_errno=True)
for name, flag in (('user', 0x10000000), ('mnt', 0x20000), ('net', 0x40000000), ('pid', 0x20000000), ('none', 0)):
    arguments = (ctypes.c_uint64 * 11)(flag, 0, 0, 0, 17)
    pid = libc.syscall(435, ctypes.byref(arguments), 88)
    if pid == 0:
        os._exit(0)
    print(name, 'made' if pid > 0 else ctypes.get_errno())
print(open('/proc/self/cgroup').read().splitlines()[-1], os.listdir('/var/task'))
";
    let mut launcher = Launcher::start(IdRange::default())?;
    launcher.send(zygote(&["/usr/bin/python3", "-I", "-S", "-c", code], None))?;
    let (answer, mut fds) = launcher.receive()?;
    assert!(matches!(answer.result, Ok(Reply::Zygote { .. })));
    let mut said = String::new();
    File::from(fds.pop().ok_or("there is no log")?).read_to_string(&mut said)?;
    let none = "0000000000000000";
    let expected = format!(
        "CapInh: {none}\nCapPrm: {none}\nCapEff: {none}\nCapBnd: {none}\nCapAmb: {none}\n\
         NoNewPrivs: 1\nSeccomp: 2\nuser 1\nmnt 1\nnet 1\npid 1\nnone made\n0::/own []\n"
    );
    assert_eq!(said, expected);
    launcher.stop()
}

#[cfg(not(target_arch = "x86_64"))]
fn zygote_without_rights() -> Result<(), Failed> {
    Err("the numbers of this test are x86_64's".into())
}
