//! Makes PID 1 of a container: clones it, maps its ids, gives it its proc. By the slot builder for many, by `sock run` for one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Make, NAMESPACES, Order, PATIENCE, pair};
use crate::error::{Context, SysResult};
use crate::execute::{Outside, perform};
use crate::init::{self, Birth, FromInit};
use crate::plan::{self, Profile, Step};
use crate::sys;

/// What it takes, from before the maker's root became the template.
pub(crate) struct Maker {
    host_proc: OwnedFd,
    own_pids: OwnedFd,
}

impl Maker {
    /// In a process that still sees the host's proc.
    pub(crate) fn new() -> SysResult<Self> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let host_proc = nix::fcntl::open("/proc", directory, Mode::empty()).call_on("open", "/proc")?;
        let own_pids =
            nix::fcntl::open("/proc/self/ns/pid", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .call_on("open", "/proc/self/ns/pid")?;
        sys::find_arguments();
        Ok(Self { host_proc, own_pids })
    }

    /// The mount namespace that this process is in.
    pub(crate) fn own_mounts(&self) -> SysResult<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let path = "self/ns/mnt";
        openat(&self.host_proc, path, flags, Mode::empty()).call_on("open", path)
    }

    /// Gives `init` its proc; gives the descriptors that go with the word that it is made.
    pub(crate) fn prepare(&self, init: Pid, enterable: bool, socket: &OwnedFd) -> SysResult<Vec<OwnedFd>> {
        let namespace = |name: &str| {
            let path = format!("{init}/ns/{name}");
            openat(&self.host_proc, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .call_on("open", &path)
        };
        let mut fds = if enterable {
            let fds = NAMESPACES.into_iter().map(namespace).collect::<SysResult<Vec<_>>>()?;
            self.hand_proc(&fds[1], socket)?;
            fds
        } else {
            self.hand_proc(&namespace("pid")?, socket)?;
            Vec::new()
        };
        fds.push(sys::pidfd_open(init).call("pidfd_open")?);
        Ok(fds)
    }

    /// Clones PID 1 and maps its ids. Of the socket between the two `ours` is the builder's alone: with a copy of it, PID 1 would
    /// wait for itself for ever if the builder dies before it speaks.
    pub(crate) fn clone_init(
        &self,
        order: &Order,
        steps: &[Step],
        (theirs, ours): (OwnedFd, &OwnedFd),
    ) -> SysResult<Pid> {
        let mut theirs = Some(theirs);
        let init = match &order.within {
            Some(within) => self.clone_within((order, steps), within, &mut theirs, ours)?,
            None => self.clone_alone(order, steps, &mut theirs, ours)?,
        };
        if order.family.is_some() {
            let name = "cgroup.procs";
            let procs = openat(&order.group, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
            let procs = File::from(procs.call_on("open", name)?);
            (&procs).write_all(init.to_string().as_bytes()).call_on("write", name)?;
        }
        Ok(init)
    }

    fn clone_alone(
        &self,
        order: &Order,
        steps: &[Step],
        theirs: &mut Option<OwnedFd>,
        ours: &OwnedFd,
    ) -> SysResult<Pid> {
        let namespaces = match order.make.spec.profile {
            Profile::Paper => CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS,
            Profile::Lean | Profile::Strict => new_namespaces(),
        };
        let later = CloneFlags::empty();
        let init = sys::fork_into(order.birthplace().as_fd(), bits(namespaces), || {
            let closed = sys::close_in_child(&[ours]);
            closed.map_or_else(|error| exit_code(Err(error)), |()| self.live(order, steps, theirs, later))
        })?;
        if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
            self.map_ids(init, &order.make.map)?;
        }
        Ok(init)
    }

    /// As [`Maker::clone_init`], in a mount namespace whose root is about to become the template: PID 1 makes the network
    /// namespace meanwhile, which takes as long, and waits for [`Maker::template_stands`] before it copies the mounts.
    pub(crate) fn clone_early(
        &self,
        order: &Order,
        steps: &[Step],
        (theirs, ours): (OwnedFd, &OwnedFd),
    ) -> SysResult<Pid> {
        let (mut theirs, later) = (Some(theirs), CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS);
        let init = sys::fork_into(order.birthplace().as_fd(), bits(new_namespaces() - later), || {
            let closed = sys::close_in_child(&[ours]);
            closed
                .map_or_else(|error| exit_code(Err(error)), |()| self.live(order, steps, &mut theirs, later))
        })?;
        self.map_ids(init, &order.make.map)?;
        Ok(init)
    }

    /// What [`Maker::clone_early`]'s PID 1 waits for.
    pub(crate) fn template_stands(socket: &OwnedFd) -> SysResult<()> {
        sys::send(socket.as_fd(), b"root", &[]).call("sendmsg")
    }

    /// Has PID 1 cloned within the parent's namespaces, by a child that enters them: once in a user namespace, nobody gets out.
    fn clone_within(
        &self,
        (order, steps): (&Order, &[Step]),
        within: &[OwnedFd; 2],
        theirs: &mut Option<OwnedFd>,
        ours: &OwnedFd,
    ) -> SysResult<Pid> {
        let [user, pids] = within;
        let (answer, report) = pair()?;
        setns(pids, CloneFlags::CLONE_NEWPID).call("setns pid")?;
        let maker = sys::fork_into(order.birthplace().as_fd(), 0, || {
            let closed = sys::close_in_child(&[ours]);
            exit_code(closed.and_then(|()| self.clone_as_sibling((order, steps), user, theirs, &report)))
        });
        setns(&self.own_pids, CloneFlags::CLONE_NEWPID).call("setns pid")?;
        let maker = maker?;
        drop((report, theirs.take()));
        let mut number = [0; 4];
        // That its end is closed is not enough: the maker has the parent's user id, and the parent may have stopped it.
        let mut wanted = [PollFd::new(answer.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        let received = match poll(&mut wanted, timeout) {
            Ok(1..) => sys::receive(answer.as_fd(), &mut number),
            _ => Err(Errno::ETIMEDOUT),
        };
        if received.is_err() {
            // The maker dies with its cgroup, which the caller takes away.
            let _ = kill_group(&order.group);
        }
        let _ = waitpid(maker, None);
        match received {
            Ok((4, _)) => Ok(Pid::from_raw(i32::from_ne_bytes(number))),
            _ => Err(Errno::EIO).call("clone a container"),
        }
    }

    /// In the maker: clones PID 1, maps its ids, and reports its number.
    fn clone_as_sibling(
        &self,
        (order, steps): (&Order, &[Step]),
        user: &OwnedFd,
        theirs: &mut Option<OwnedFd>,
        report: &OwnedFd,
    ) -> SysResult<()> {
        setns(user, CloneFlags::CLONE_NEWUSER).call("setns user")?;
        perform(&[Step::BecomeRoot], &Outside::default())?;
        // The kernel lets only the owner of a process's proc files write its id maps, and setresuid took that away.
        sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).call("prctl PR_SET_DUMPABLE")?;
        let later = CloneFlags::empty();
        let pidfd = sys::clone_sibling(bits(new_namespaces()), || self.live(order, steps, theirs, later))?;
        let pid = self.host_pid(&pidfd)?;
        self.map_ids(pid, &order.make.map)?;
        sys::send(report.as_fd(), &pid.as_raw().to_ne_bytes(), &[]).call("sendmsg")
    }

    /// In PID 1.
    fn live(&self, order: &Order, steps: &[Step], theirs: &mut Option<OwnedFd>, later: CloneFlags) -> i32 {
        let Some(builder) = theirs.take() else { return 1 };
        // What is in the container can read them, and there may be secrets among them.
        sys::hide_arguments(plan::TITLE);
        let Make { outside, spec, payload, .. } = &order.make;
        init::run(Birth {
            paper: (spec.profile == Profile::Paper).then_some(*outside),
            builder,
            later,
            var_mount: order.var.as_ref().map(AsFd::as_fd),
            steps,
            payload,
            fds: &order.payload,
        })
    }

    fn map_ids(&self, pid: Pid, map: &str) -> SysResult<()> {
        for file in ["uid_map", "gid_map"] {
            let path = format!("{pid}/{file}");
            let fd =
                openat(&self.host_proc, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
            File::from(fd.call_on("open", &path)?).write_all(map.as_bytes()).call_on("write", &path)?;
        }
        Ok(())
    }

    /// The number that the host's proc has for a process: what its file about the pidfd says.
    fn host_pid(&self, pidfd: &OwnedFd) -> SysResult<Pid> {
        let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
        let fd = openat(&self.host_proc, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let mut text = String::new();
        File::from(fd.call_on("open", &path)?).read_to_string(&mut text).call_on("read", &path)?;
        let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        number.map(Pid::from_raw).ok_or(Errno::ESRCH).call_on("read", &path)
    }

    fn hand_proc(&self, pids: &OwnedFd, socket: &OwnedFd) -> SysResult<()> {
        let proc = sys::Filesystem::open(c"proc").call("fsopen proc")?;
        match proc.set_fd(c"pidns", pids.as_fd()) {
            Ok(()) => mount_proc(proc, socket),
            // Before Linux 6.18 it is the namespace of whoever mounts.
            Err(Errno::EINVAL) => self.hand_proc_by_child(pids, socket),
            failed => failed.call("fsconfig proc"),
        }
    }

    /// By a child within the new PID namespace, still root of the host.
    fn hand_proc_by_child(&self, pids: &OwnedFd, socket: &OwnedFd) -> SysResult<()> {
        setns(pids, CloneFlags::CLONE_NEWPID).call("setns pid")?;
        let maker = sys::fork(|| {
            let proc = sys::Filesystem::open(c"proc").call("fsopen proc");
            exit_code(proc.and_then(|proc| mount_proc(proc, socket)))
        });
        setns(&self.own_pids, CloneFlags::CLONE_NEWPID).call("setns pid")?;
        match waitpid(maker?, None).call("waitpid")? {
            WaitStatus::Exited(_, 0) => Ok(()),
            _ => Err(Errno::EIO).call("mount proc for a container"),
        }
    }
}

/// Lets containers be made in the one that has this user and this mount namespace, by a child that enters both. Its process stays
/// beneath the cover.
pub(super) fn open(namespaces: &[OwnedFd]) -> SysResult<()> {
    let [user, mounts] = namespaces else { return Err(Errno::EBADMSG).call("recvmsg") };
    let opener = sys::fork(|| {
        let enter = || {
            let proc = sys::Filesystem::open(c"proc").and_then(|proc| proc.mount(0)).call("mount proc")?;
            setns(mounts, CloneFlags::CLONE_NEWNS).call("setns mnt")?;
            perform(&[Step::CoverRoot], &Outside::default())?;
            // What a sysctl of proc is about is the user namespace of whoever opens it.
            setns(user, CloneFlags::CLONE_NEWUSER).call("setns user")?;
            perform(&plan::allow_namespaces(), &Outside { proc_mount: Some(proc), var_mount: None })
        };
        exit_code(enter())
    })?;
    match waitpid(opener, None).call("waitpid")? {
        WaitStatus::Exited(_, 0) => Ok(()),
        _ => Err(Errno::EIO).call("open a container for others"),
    }
}

/// Kills whatever is in the cgroup whose directory this is.
fn kill_group(group: &OwnedFd) -> SysResult<()> {
    let name = "cgroup.kill";
    let kill =
        openat(group, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).call_on("open", name)?;
    File::from(kill).write_all(b"1").call_on("write", name)
}

/// Gives a proc to PID 1.
fn mount_proc(proc: sys::Filesystem, socket: &OwnedFd) -> SysResult<()> {
    // PID 1 writes sysctls in it before it makes it read-only.
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let proc = proc.mount(attributes).call("fsmount proc")?;
    sys::send(socket.as_fd(), b"proc", &[proc.as_fd()]).call("sendmsg")
}

/// All that a container has.
fn new_namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP
}

/// As clone3(2) takes them.
fn bits(namespaces: CloneFlags) -> u64 {
    let namespaces = namespaces.bits() as u64;
    #[cfg(feature = "weaken")]
    let namespaces = namespaces & !crate::weaken::missing_namespaces();
    namespaces
}

/// For a child that is about to exit: the only one who can still tell why it failed.
pub(crate) fn exit_code(result: SysResult<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sock: slot builder: {error}");
            1
        }
    }
}

/// The next that PID 1 has to say.
pub(crate) fn read_init(socket: &OwnedFd) -> Result<FromInit, Errno> {
    let mut buffer = [0; 1024];
    let (length, _) = sys::receive(socket.as_fd(), &mut buffer)?;
    serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG)
}
