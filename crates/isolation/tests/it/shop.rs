//! A host for one test, and commands in it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use sock_isolation::{
    ContainerSpec, End, Exit, Host, HostOptions, IdRange, Limits, Program, Template, Workshop, cgroup,
};

pub(crate) struct Shop {
    pub(crate) workshop: Workshop,
    pub(crate) group: PathBuf,
    work: tempfile::TempDir,
}

pub(crate) fn spec() -> ContainerSpec {
    let limits = Limits { processes: 64, ..Limits::default() };
    ContainerSpec { hostname: "test".into(), tmp_bytes: 16 << 20, limits, ..ContainerSpec::default() }
}

pub(crate) fn program(argv: &[&str]) -> Program {
    Program {
        argv: argv.iter().map(|&argument| argument.into()).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        directory: "/tmp".into(),
    }
}

impl Shop {
    pub(crate) fn open() -> Result<Self, Failed> {
        Self::with(spec())
    }

    /// With containers that are something else than usual.
    pub(crate) fn with(spec: ContainerSpec) -> Result<Self, Failed> {
        Self::at(tempfile::tempdir()?, spec)
    }

    /// In a directory of the caller's.
    pub(crate) fn at(work: tempfile::TempDir, spec: ContainerSpec) -> Result<Self, Failed> {
        let name = format!("sock-test-{}", std::process::id());
        let host = Host::start(HostOptions {
            work: work.path().into(),
            group: name.clone(),
            template: Template::of_base(Path::new("/"))?,
            ids: IdRange::default(),
        })?;
        let group = cgroup::find()?.directory.join(name);
        Ok(Self { workshop: Workshop::new(host, spec), group, work })
    }

    /// Runs a command to its end; returns its exit and what it wrote.
    pub(crate) fn run(&self, argv: &[&str]) -> Result<(End, String), Failed> {
        let (read, write) = pipe()?;
        let null: OwnedFd = File::open("/dev/null")?.into();
        let fds = [null.as_fd(), write.as_fd(), write.as_fd()];
        let mut container = self.workshop.create()?;
        container.start(&program(argv), &fds)?;
        drop(write);
        let mut output = String::new();
        File::from(read).read_to_string(&mut output)?;
        let end = container.wait()?;
        container.destroy()?;
        Ok((end, output))
    }

    /// Runs Python code that must print what is expected.
    pub(crate) fn python(&self, code: &str, expected: &str) -> Result<(), Failed> {
        let (end, output) = self.run(&["/usr/bin/python3", "-I", "-S", "-c", code])?;
        if end == End::Exited(Exit::Code(0)) && output.trim_end() == expected.trim_end() {
            return Ok(());
        }
        Err(format!("{end:?}, printed:\n{output}\nexpected:\n{expected}").into())
    }

    /// Ends the host and checks that nothing of it is left.
    pub(crate) fn close(self) -> Result<(), Failed> {
        self.workshop.stop()?;
        if self.group.exists() {
            return Err(format!("{} is left", self.group.display()).into());
        }
        let _ = nix::mount::umount2(self.work.path(), nix::mount::MntFlags::MNT_DETACH);
        Ok(())
    }
}

pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Failed> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}
