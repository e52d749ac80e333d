//! The slot builder: a process of its own that makes containers ahead of need.
//!
//! ```text
//! caller ── make(slot) ──▶ builder ── clone3 into the cgroup ──▶ PID 1: new user, PID, mount, IPC, UTS, net, cgroup namespace
//!   ▲                         │  ▲      (for a zygote's slot: fork ─▶ helper, in the cgroup ─▶ maker, in the zygote's user
//!   │                         │  │       and PID namespace ─ clone3 as its sibling ─▶ PID 1)
//!   │                         │  └ proc of the new PID namespace, mounted from out here ─▶ PID 1
//!   └── made: pidfd + ns ◀────┘
//! ```
//!
//! It is real root in the host's user namespace, and its own mount namespace holds nothing but the [`Template`]: a copy of
//! that costs 50 µs instead of the 550 of a host's table, and arrives in the container's user namespace with every flag
//! locked. Proc has to be mounted from out here: in a user namespace whose mount table shows no full proc the kernel
//! refuses to mount one.
//!
//! The maker exists because there is no way back from setns(2) into a user namespace, and because only a process that
//! lives in a PID namespace can make one beneath it. It clones PID 1 as its sibling, the helper's child; when the helper
//! is gone, the builder inherits PID 1, being the subreaper in its own PID namespace (the maker's has another), and
//! PID 1 dies with it.
//!
//! The builder runs no code of a container's and reads nothing but what the processes above send.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, SysResult};
use crate::execute::{Outside, perform};
use crate::init::{self, Birth, Exit, FromInit, Payload};
use crate::plan::{self, Profile, SlotSpec, Step, Template};
use crate::sys;

/// A container to make. With it go descriptors, see [`Order`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Make {
    pub(crate) slot: u64,
    /// Lines of its uid_map and gid_map.
    pub(crate) map: String,
    /// The host's ids for its PID 1 and its program, where it has no map.
    pub(crate) outside: [u32; 2],
    pub(crate) kin: Kin,
    pub(crate) spec: SlotSpec,
    pub(crate) payload: Payload,
}

/// A [`Make`], and the descriptors that came with it, in this order.
struct Order {
    make: Make,
    /// The directory of its cgroup.
    group: OwnedFd,
    /// What becomes its `/var`, where the spec has one.
    var: Option<OwnedFd>,
    /// Of a parent: the directory of its family's cgroup.
    family: Option<OwnedFd>,
    /// Of a child: the user and the PID namespace that it is made in.
    within: Option<[OwnedFd; 2]>,
    /// The payload's descriptors 0, 1, 2….
    payload: Vec<OwnedFd>,
}

impl Order {
    fn take(make: Make, fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        Some(Self {
            group: fds.next()?,
            var: if make.spec.var { Some(fds.next()?) } else { None },
            family: if make.kin == Kin::Parent { Some(fds.next()?) } else { None },
            within: if make.kin == Kin::Child { Some([fds.next()?, fds.next()?]) } else { None },
            payload: fds.collect(),
            make,
        })
    }
}

/// Whose relative a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kin {
    /// Nobody's.
    Alone,
    /// Others shall be made within its namespaces, and their cgroups lie beside its own, in that of the family. To be
    /// allowed to fork into those it needs to see the family's: cgroup_namespaces(7).
    Parent,
    /// It is made within another's namespaces.
    Child,
}

/// What the builder has to say. With `Made` go the descriptors of a [`Made`]: namespaces if the spec has a `/var`, since
/// nobody enters or checks one that has none, and the pidfd.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromBuilder {
    Made {
        slot: u64,
        init: i32,
    },
    Failed {
        slot: u64,
        error: String,
    },
    /// Every process of the container is gone.
    Ended {
        slot: u64,
        exit: Option<Exit>,
    },
}

/// The namespaces of a container, in the order in which their descriptors travel.
pub(crate) const NAMESPACES: [&str; 7] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];

/// The caller's end of a builder.
#[derive(Debug)]
pub(crate) struct Builder {
    socket: OwnedFd,
    pid: Pid,
    pidfd: OwnedFd,
}

/// A made container.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) init: Pid,
    pub(crate) pidfd: OwnedFd,
    /// In the order of [`NAMESPACES`], or none.
    pub(crate) namespaces: Vec<OwnedFd>,
}

/// A message of the builder with its descriptors taken apart.
#[derive(Debug)]
pub(crate) enum Event {
    Made { slot: u64, made: Made },
    Failed { slot: u64, error: String },
    Ended { slot: u64, exit: Option<Exit> },
}

// A command's arguments and environment have to fit.
pub(crate) const MESSAGE: usize = 128 << 10;

impl Builder {
    /// Forks the builder; its root is assembled at `work`, an existing directory.
    pub(crate) fn start(template: &Template, work: &Path) -> SysResult<Self> {
        sys::require_single_thread()?;
        let (socket, theirs) = pair()?;
        let steps = plan::template(template, work);
        let parent = nix::unistd::getpid();
        let pid = sys::fork(|| match serve(theirs, &steps, template.base.directories.clone(), parent) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("sock: slot builder: {error}");
                1
            }
        })?;
        let pidfd = sys::pidfd_open(pid).call("pidfd_open")?;
        let builder = Self { socket, pid, pidfd };
        // The first message says that the root stands; if there is none, it does not.
        let (length, _) = sys::receive(builder.socket.as_fd(), &mut [0; 16]).call("recvmsg")?;
        if length == 0 { Err(Errno::EPIPE).call("start the slot builder") } else { Ok(builder) }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Becomes readable when it has ended; its socket may be held by a process that it was about to make.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Hangs up, which it ends at, and waits for that.
    pub(crate) fn end(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        let _ = waitpid(self.pid, None);
    }

    pub(crate) fn make(&self, make: &Make, fds: &[BorrowedFd<'_>]) -> SysResult<()> {
        let text = serde_json::to_vec(make).map_err(|_| Errno::EINVAL).call("encode")?;
        sys::send(self.socket.as_fd(), &text, fds).call("sendmsg to the slot builder")
    }

    /// Waits for the next event; `None` when the builder is gone.
    pub(crate) fn event(&self) -> SysResult<Option<Event>> {
        let mut buffer = vec![0; MESSAGE];
        let (length, mut fds) = sys::receive(self.socket.as_fd(), &mut buffer).call("recvmsg")?;
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG).call("decode")?;
        Ok(Some(match message {
            FromBuilder::Made { slot, init } => {
                let pidfd = fds.pop().ok_or(Errno::EBADMSG).call("recvmsg")?;
                Event::Made { slot, made: Made { init: Pid::from_raw(init), pidfd, namespaces: fds } }
            }
            FromBuilder::Failed { slot, error } => Event::Failed { slot, error },
            FromBuilder::Ended { slot, exit } => Event::Ended { slot, exit },
        }))
    }
}

pub(crate) fn pair() -> SysResult<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).call("socketpair")
}

/// What the builder remembers of a container that runs.
struct Running {
    slot: u64,
    socket: OwnedFd,
    /// What goes with the word that it is made, until that is said.
    made: Option<Vec<OwnedFd>>,
    /// The root of a paper container, which does not go by itself.
    root: Option<PathBuf>,
    begun: Instant,
}

struct Server {
    caller: OwnedFd,
    host_proc: OwnedFd,
    own_pids: OwnedFd,
    running: HashMap<Pid, Running>,
    /// Those of them that are still being made: making waits for the kernel now and then, and others can be made meanwhile.
    pending: Vec<Pid>,
    /// Of the template, those that are mounts of their own.
    directories: Vec<String>,
    /// Whether there is a place for the roots of paper containers.
    has_paper: bool,
    /// The last plan, and of what it is. Most containers are alike; and each page that PID 1 writes to, as it would to make
    /// a plan of its own, costs it a copy.
    planned: Option<(SlotSpec, Rc<[Step]>)>,
}

/// The most that are made side by side.
const SIDE_BY_SIDE: usize = 4;

/// What one may take, which is a thousand times what it takes: somebody holds it up, and would hold up all others.
const PATIENCE: Duration = Duration::from_secs(5);

fn serve(caller: OwnedFd, template: &[Step], directories: Vec<String>, parent: Pid) -> SysResult<()> {
    // Nothing else of the caller's: its end of the socket above all, or the builder would never see it closed.
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let caller = sys::arrange(&[input.as_fd(), output.as_fd(), error.as_fd()], caller)?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).call("prctl PR_SET_PDEATHSIG")?;
    if nix::unistd::getppid() != parent {
        return Err(Errno::ESRCH).call("getppid");
    }
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).call("prctl PR_SET_CHILD_SUBREAPER")?;
    crate::seccomp::filter(crate::seccomp::Role::Init);
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let host_proc = open("/proc", directory, Mode::empty()).call_on("open", "/proc")?;
    let own_pids = open("/proc/self/ns/pid", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .call_on("open", "/proc/self/ns/pid")?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).call("unshare")?;
    perform(template, &Outside::default())?;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block().call("sigprocmask")?;
    let signals =
        SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).call("signalfd")?;
    sys::send(caller.as_fd(), b"ready", &[]).call("sendmsg")?;
    match (Server {
        caller,
        host_proc,
        own_pids,
        running: HashMap::new(),
        pending: Vec::new(),
        directories,
        has_paper: false,
        planned: None,
    })
    .run(&signals)
    {
        // The caller is gone, which is how it says that it is done: nobody is left to hear of containers that end.
        Err(error) if matches!(error.errno, Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
        ran => ran,
    }
}

impl Server {
    fn run(&mut self, signals: &SignalFd) -> SysResult<()> {
        let mut buffer = vec![0; MESSAGE];
        loop {
            // Whoever asks for more waits until there is room.
            let room = self.pending.len() < SIDE_BY_SIDE;
            let asks = if room { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut wanted =
                vec![PollFd::new(self.caller.as_fd(), asks), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            let sockets = self.pending.iter().map(|pid| self.running[pid].socket.as_fd());
            wanted.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
            let timeout = if self.pending.is_empty() { PollTimeout::NONE } else { PollTimeout::from(500u16) };
            match poll(&mut wanted, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).call("poll"),
            }
            let any: Vec<bool> = wanted.iter().map(|wanted| wanted.any().unwrap_or(false)).collect();
            let [asked, died, spoken @ ..] = &any[..] else { continue };
            let spoken = self.pending.iter().zip(spoken).filter(|(_, spoken)| **spoken);
            for pid in spoken.map(|(pid, _)| *pid).collect::<Vec<_>>() {
                self.finish(pid)?;
            }
            self.give_up();
            if *died {
                while let Ok(Some(_)) = signals.read_signal() {}
                self.reap()?;
            }
            if *asked {
                let (length, fds) = sys::receive(self.caller.as_fd(), &mut buffer).call("recvmsg")?;
                if length == 0 {
                    return Ok(());
                }
                let make: Make =
                    serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG).call("decode")?;
                let slot = make.slot;
                if let Err(error) = self.begin(make, fds) {
                    self.tell(&FromBuilder::Failed { slot, error }, &[])?;
                }
            }
        }
    }

    fn tell(&self, message: &FromBuilder, fds: &[BorrowedFd<'_>]) -> SysResult<()> {
        let text = serde_json::to_vec(message).map_err(|_| Errno::EINVAL).call("encode")?;
        sys::send(self.caller.as_fd(), &text, fds).call("sendmsg")
    }

    fn reap(&mut self) -> SysResult<()> {
        loop {
            let pid = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => pid,
                _ => return Ok(()),
            };
            self.pending.retain(|other| *other != pid);
            let Some(Running { slot, socket, made, root, .. }) = self.running.remove(&pid) else { continue };
            if let Some(root) = root {
                remove_root(&root)?;
            }
            // What PID 1 had to say is in the socket; if it was killed, nothing is, and the end of file says so.
            let exit = match read_init(&socket) {
                Ok(FromInit::Exited(exit)) => Some(exit),
                _ => None,
            };
            let message = match made {
                None => FromBuilder::Ended { slot, exit },
                Some(_) => FromBuilder::Failed { slot, error: "PID 1 of the container died early".into() },
            };
            self.tell(&message, &[])?;
        }
    }

    /// Has PID 1 cloned and gives it its proc. It says when its root stands, see [`Server::finish`].
    fn begin(&mut self, make: Make, fds: Vec<OwnedFd>) -> Result<(), String> {
        let text = |error: crate::SyscallError| error.to_string();
        let count = fds.len();
        let slot = make.slot;
        let order = Order::take(make, fds).ok_or_else(|| format!("{count} descriptors are too few"))?;
        let root = (order.make.spec.profile == Profile::Paper)
            .then(|| Path::new(plan::PAPER).join(slot.to_string()));
        if root.is_some() {
            self.make_room_for_paper().map_err(text)?;
        }
        let steps = match &root {
            Some(root) => plan::paper(&order.make.spec, &self.directories, root).into(),
            None => self.plan(&order.make.spec),
        };
        let (socket, theirs) = pair().map_err(text)?;
        let init = self.clone_init(&order, &steps, (theirs, &socket)).map_err(text)?;
        let prepared = self.prepare(init, order.make.spec.var, &socket);
        match prepared {
            Ok(made) => {
                self.running
                    .insert(init, Running { slot, socket, made: Some(made), root, begun: Instant::now() });
                self.pending.push(init);
                Ok(())
            }
            // It waits for its proc, and ends when that does not come.
            Err(error) => Err(text(error)),
        }
    }

    fn plan(&mut self, spec: &SlotSpec) -> Rc<[Step]> {
        match &self.planned {
            Some((of, steps)) if of == spec => steps.clone(),
            _ => {
                let steps: Rc<[Step]> = plan::slot(spec).into();
                self.planned = Some((spec.clone(), steps.clone()));
                steps
            }
        }
    }

    /// Ends those that do not come to an end: reaped, they are told of.
    fn give_up(&mut self) {
        let late = self.pending.iter().filter(|pid| self.running[pid].begun.elapsed() > PATIENCE);
        for pid in late.copied().collect::<Vec<_>>() {
            self.pending.retain(|other| *other != pid);
            if let Ok(pidfd) = sys::pidfd_open(pid) {
                let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }

    /// A place that can be written to, in the builder's own mount namespace.
    fn make_room_for_paper(&mut self) -> SysResult<()> {
        if !self.has_paper {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let at = plan::PAPER.into();
            perform(
                &[Step::Tmpfs { at, bytes: 1 << 20, inodes: 1 << 16, mode: 0o700, flags }],
                &Outside::default(),
            )?;
            self.has_paper = true;
        }
        Ok(())
    }

    fn prepare(&self, init: Pid, enterable: bool, socket: &OwnedFd) -> SysResult<Vec<OwnedFd>> {
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

    /// Takes PID 1's word on whether its root stands, and passes it on.
    fn finish(&mut self, init: Pid) -> SysResult<()> {
        let Some(running) = self.running.get_mut(&init) else { return Ok(()) };
        self.pending.retain(|other| *other != init);
        let slot = running.slot;
        match read_init(&running.socket) {
            Ok(FromInit::Ready) => {
                let fds = running.made.take().unwrap_or_default();
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                self.tell(&FromBuilder::Made { slot, init: init.as_raw() }, &borrowed)
            }
            Ok(FromInit::Failed(error)) => {
                // It ends by itself, which is nobody's news any more.
                if let Some(root) = self.running.remove(&init).and_then(|running| running.root) {
                    remove_root(&root)?;
                }
                self.tell(&FromBuilder::Failed { slot, error }, &[])
            }
            // It has ended, and is reaped next.
            Ok(FromInit::Exited(_)) | Err(_) => Ok(()),
        }
    }

    /// Clones PID 1 and maps its ids. Of the socket between the two `ours` is the builder's alone: with a copy of it, PID 1 would
    /// wait for itself for ever if the builder dies before it speaks.
    fn clone_init(
        &self,
        order: &Order,
        steps: &[Step],
        (theirs, ours): (OwnedFd, &OwnedFd),
    ) -> SysResult<Pid> {
        let mut theirs = Some(theirs);
        if let Some(within) = &order.within {
            return self.clone_by_helper((order, steps), within, &mut theirs, ours);
        }
        // A parent's cgroup namespace shows its family, so it has to be born there.
        let group = order.family.as_ref().unwrap_or(&order.group);
        let namespaces = match order.make.spec.profile {
            Profile::Paper => CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS,
            Profile::Lean | Profile::Strict => new_namespaces(),
        };
        let init = sys::fork_into(group.as_fd(), bits(namespaces), || {
            let closed = sys::close_in_child(&[ours]);
            closed.map_or_else(|error| exit_code(Err(error)), |()| self.live(order, steps, &mut theirs))
        })?;
        if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
            self.map_ids(init, &order.make.map)?;
        }
        if order.family.is_some() {
            let name = "cgroup.procs";
            let procs = openat(&order.group, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
            let procs = File::from(procs.call_on("open", name)?);
            (&procs).write_all(init.to_string().as_bytes()).call_on("write", name)?;
        }
        Ok(init)
    }

    /// Has PID 1 cloned within the parent's namespaces, and inherits it.
    fn clone_by_helper(
        &self,
        (order, steps): (&Order, &[Step]),
        within: &[OwnedFd; 2],
        theirs: &mut Option<OwnedFd>,
        ours: &OwnedFd,
    ) -> SysResult<Pid> {
        let [user, pids] = within;
        let (answer, report) = pair()?;
        let helper = sys::fork_into(order.group.as_fd(), 0, || {
            let mut make_it = || {
                sys::close_in_child(&[ours])?;
                setns(pids, CloneFlags::CLONE_NEWPID).call("setns pid")?;
                sys::fork(|| exit_code(self.clone_as_sibling((order, steps), user, theirs, &report)))
            };
            exit_code(make_it().and_then(|maker| waitpid(maker, None).map(drop).call("waitpid")))
        })?;
        drop((report, theirs.take()));
        let mut number = [0; 4];
        // The helper's end is not enough: the maker has the parent's user id, and the parent may have stopped it.
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
        let _ = waitpid(helper, None);
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
        let pidfd = sys::clone_sibling(bits(new_namespaces()), || self.live(order, steps, theirs))?;
        let pid = self.host_pid(&pidfd)?;
        self.map_ids(pid, &order.make.map)?;
        sys::send(report.as_fd(), &pid.as_raw().to_ne_bytes(), &[]).call("sendmsg")
    }

    /// In PID 1.
    fn live(&self, order: &Order, steps: &[Step], theirs: &mut Option<OwnedFd>) -> i32 {
        let Some(builder) = theirs.take() else { return 1 };
        let Make { outside, spec, payload, .. } = &order.make;
        init::run(Birth {
            paper: (spec.profile == Profile::Paper).then_some(*outside),
            builder,
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

/// Kills whatever is in the cgroup whose directory this is.
fn kill_group(group: &OwnedFd) -> SysResult<()> {
    let name = "cgroup.kill";
    let kill =
        openat(group, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).call_on("open", name)?;
    File::from(kill).write_all(b"1").call_on("write", name)
}

/// Takes away what a paper container had mounted.
fn remove_root(root: &Path) -> SysResult<()> {
    match umount2(root, MntFlags::MNT_DETACH) {
        // It had come no further.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        failed => failed.call_on("umount2", root)?,
    }
    match std::fs::remove_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.call_on("rmdir", root),
    }
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
fn exit_code(result: SysResult<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sock: slot builder: {error}");
            1
        }
    }
}

fn read_init(socket: &OwnedFd) -> Result<FromInit, Errno> {
    let mut buffer = [0; 1024];
    let (length, _) = sys::receive(socket.as_fd(), &mut buffer)?;
    serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG)
}
