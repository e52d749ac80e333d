//! The launcher's process, asked over its socket.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use sock_isolation::launcher::wire::{self, Answer, Counts, Files, Reply, Request, StartZygote};
use sock_isolation::launcher::{server, socket_pair};
use sock_isolation::process::Child;
use sock_isolation::{Command, Exit, Host, HostOptions, IdRange, Limits, Role, Template, cgroup};

use crate::Test;
use crate::shop::command;

pub(crate) const TESTS: &[Test] = &[
    ("launcher::what_fails_leaves_nothing", failures),
    ("launcher::a_message_that_is_no_request_is_refused", malformed),
    ("launcher::a_request_whose_slot_fails_is_answered_once", slot_fails),
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
        let options = server::Options { data: data.path().to_owned(), tmp_bytes: 1 << 20 };
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

    fn receive(&self) -> Result<Answer, Failed> {
        let (answer, _) = wire::receive_reply(self.socket.as_fd())?.ok_or("the launcher is gone")?;
        Ok(answer)
    }

    /// The answer to a request, which has to be the next one.
    fn call(&mut self, request: Request) -> Result<Result<Reply, String>, Failed> {
        let id = self.send(request)?;
        let answer = self.receive()?;
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
            let refused = launcher.refusal(Request::Execute { files, command: command(&["/bin/true"]) })?;
            assert!(refused.contains(task), "{refused}");
        }
    }
    assert_eq!(launcher.counts()?, Counts::default());
    assert_eq!(launcher.groups()?, 0);
    assert_eq!(launcher.call(zygote(&["/bin/sleep", "60"], Some("task")))?, Ok(Reply::Zygote));
    launcher.stop()
}

fn malformed() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    for message in ["no request", "{}", "\u{0}"] {
        nix::unistd::write(&launcher.socket, message.as_bytes())?;
    }
    nix::unistd::write(&launcher.socket, br#"{"id": 77, "request": {"Reboot": {"now": true}}}"#)?;
    let Answer { id, result } = launcher.receive()?;
    let refused = result.err().ok_or("it was granted")?;
    assert!(id == 77 && refused.contains("unknown variant `Reboot`"), "{refused}");
    assert_eq!(launcher.counts()?, Counts::default());
    launcher.stop()
}

fn slot_fails() -> Result<(), Failed> {
    let mut launcher = Launcher::start(IdRange::default())?;
    assert_eq!(launcher.call(zygote(&["/bin/sleep", "60"], None))?, Ok(Reply::Zygote));
    let fork = || Request::Fork { zygote: 1, files: Files::default(), limits: Limits::default() };
    let bound = launcher.group.join("cgroup.max.descendants");
    fs::write(&bound, "1")?;
    for _ in 0..3 {
        let refused = launcher.refusal(fork())?;
        assert!(refused.contains("mkdir"), "{refused}");
    }
    // Neither is any of them answered again, now that it could be.
    fs::write(&bound, "max")?;
    assert!(matches!(launcher.call(fork())?, Ok(Reply::Instance { .. })));
    assert_eq!(launcher.counts()?.instances, 1);
    launcher.stop()
}
