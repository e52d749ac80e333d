//! The slot builder's own side: one loop over its caller's requests and what becomes of the containers.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::maker::{self, Maker, read_init};
use super::{Ask, FromBuilder, MESSAGE, Make, Order, PATIENCE, pair};
use crate::error::{Context, SysResult};
use crate::execute::{Outside, perform};
use crate::init::FromInit;
use crate::plan::{self, Profile, SlotSpec, Step};
use crate::seccomp::{self, Role};
use crate::sys;

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
    /// What the caller has no room for yet. Nothing here waits for it: it may be waiting for room here, with its next request.
    unsent: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    maker: Maker,
    running: HashMap<Pid, Running>,
    /// Those of them that are still being made: making waits for the kernel now and then, and others can be made meanwhile.
    pending: Vec<Pid>,
    /// See [`plan::Template::mounts`].
    mounts: Vec<String>,
    /// The mount namespace of paper containers, once there was one: what is mounted in the builder's own, all containers to come get a copy of.
    paper: Option<Paper>,
    /// The last plan, and of what it is. Most containers are alike; and each page that PID 1 writes to, as it would to make
    /// a plan of its own, costs it a copy.
    planned: Option<(SlotSpec, Rc<[Step]>)>,
}

/// Mount namespaces.
struct Paper {
    own: OwnedFd,
    theirs: OwnedFd,
}

/// The most that are made side by side.
const SIDE_BY_SIDE: usize = 4;

/// The builder's life: its caller's requests, until the caller hangs up.
pub(super) fn serve(caller: OwnedFd, template: &[Step], mounts: Vec<String>, parent: Pid) -> SysResult<()> {
    // Nothing else of the caller's: its end of the socket above all, or the builder would never see it closed.
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let caller = sys::arrange(&[input.as_fd(), output.as_fd(), error.as_fd()], caller)?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).call("prctl PR_SET_PDEATHSIG")?;
    if nix::unistd::getppid() != parent {
        return Err(Errno::ESRCH).call("getppid");
    }
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).call("prctl PR_SET_CHILD_SUBREAPER")?;
    seccomp::compile_ahead(&[Role::Instance, Role::Zygote, Role::Init, Role::Strict]);
    let maker = Maker::new()?;
    // Once for all PID 1, to which it would be the copy of a page.
    sys::hide_arguments(plan::TITLE);
    sys::find_heap();
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
        unsent: VecDeque::new(),
        maker,
        running: HashMap::new(),
        pending: Vec::new(),
        mounts,
        paper: None,
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
            let mut asks = if room { PollFlags::POLLIN } else { PollFlags::empty() };
            asks.set(PollFlags::POLLOUT, !self.unsent.is_empty());
            let mut wanted =
                vec![PollFd::new(self.caller.as_fd(), asks), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            let sockets = self.pending.iter().map(|pid| self.running[pid].socket.as_fd());
            wanted.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
            let timeout = if self.pending.is_empty() { PollTimeout::NONE } else { PollTimeout::from(500u16) };
            match poll(&mut wanted, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).call("poll"),
            }
            let asked = wanted[0].revents().unwrap_or(PollFlags::empty()).difference(PollFlags::POLLOUT);
            let asked = !asked.is_empty();
            let any: Vec<bool> = wanted.iter().map(|wanted| wanted.any().unwrap_or(false)).collect();
            let [_, died, spoken @ ..] = &any[..] else { continue };
            let spoken = self.pending.iter().zip(spoken).filter(|(_, spoken)| **spoken);
            for pid in spoken.map(|(pid, _)| *pid).collect::<Vec<_>>() {
                self.finish(pid)?;
            }
            self.give_up();
            if *died {
                while let Ok(Some(_)) = signals.read_signal() {}
                self.reap()?;
            }
            self.send_unsent()?;
            if asked {
                let (length, fds) = sys::receive(self.caller.as_fd(), &mut buffer).call("recvmsg")?;
                if length == 0 {
                    return Ok(());
                }
                match serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG).call("decode")? {
                    Ask::Make(make) => {
                        let slot = make.slot;
                        if let Err(error) = self.begin(*make, fds) {
                            self.tell(&FromBuilder::Failed { slot, error }, Vec::new())?;
                        }
                    }
                    Ask::Open { slot } => {
                        let error = maker::open(&fds).err().map(|error| error.to_string());
                        self.tell(&FromBuilder::Opened { slot, error }, Vec::new())?;
                    }
                }
            }
        }
    }

    fn tell(&mut self, message: &FromBuilder, fds: Vec<OwnedFd>) -> SysResult<()> {
        let text = serde_json::to_vec(message).map_err(|_| Errno::EINVAL).call("encode")?;
        self.unsent.push_back((text, fds));
        self.send_unsent()
    }

    /// As far as there is room at the caller's.
    fn send_unsent(&mut self) -> SysResult<()> {
        while let Some((text, fds)) = self.unsent.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match sys::send_if_room(self.caller.as_fd(), text, &fds) {
                Err(Errno::EAGAIN) => return Ok(()),
                sent => sent.call("sendmsg")?,
            }
            self.unsent.pop_front();
        }
        Ok(())
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
                self.among_paper(|_| remove_root(&root))?;
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
            self.tell(&message, Vec::new())?;
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
        let steps = match &root {
            Some(root) => plan::paper(&order.make.spec, &self.mounts, root).into(),
            None => self.plan(&order.make.spec),
        };
        let (socket, theirs) = pair().map_err(text)?;
        let clone = |maker: &Maker| maker.clone_init(&order, &steps, (theirs, &socket));
        let init = match &root {
            Some(_) => self.among_paper(|server| clone(&server.maker)),
            None => clone(&self.maker),
        };
        let init = init.map_err(text)?;
        let prepared = self.maker.prepare(init, order.make.spec.var, &socket);
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

    /// Performs `action` in the mount namespace of paper containers.
    fn among_paper<T>(&mut self, action: impl FnOnce(&Self) -> SysResult<T>) -> SysResult<T> {
        if self.paper.is_none() {
            let own = self.maker.own_mounts()?;
            nix::sched::unshare(CloneFlags::CLONE_NEWNS).call("unshare")?;
            let made = perform(&[plan::room_for_paper()], &Outside::default());
            let theirs = made.and_then(|()| self.maker.own_mounts());
            go_back(&own);
            self.paper = Some(Paper { theirs: theirs?, own });
        }
        let Some(Paper { theirs, .. }) = &self.paper else { return Err(Errno::ENOENT).call("setns mnt") };
        setns(theirs, CloneFlags::CLONE_NEWNS).call("setns mnt")?;
        let result = action(self);
        if let Some(Paper { own, .. }) = &self.paper {
            go_back(own);
        }
        result
    }

    /// Takes PID 1's word on whether its root stands, and passes it on.
    fn finish(&mut self, init: Pid) -> SysResult<()> {
        let Some(running) = self.running.get_mut(&init) else { return Ok(()) };
        self.pending.retain(|other| *other != init);
        let slot = running.slot;
        match read_init(&running.socket) {
            Ok(FromInit::Ready) => {
                let fds = running.made.take().unwrap_or_default();
                self.tell(&FromBuilder::Made { slot, init: init.as_raw() }, fds)
            }
            Ok(FromInit::Failed { error, .. }) => {
                // It ends by itself, which is nobody's news any more.
                if let Some(root) = self.running.remove(&init).and_then(|running| running.root) {
                    self.among_paper(|_| remove_root(&root))?;
                }
                self.tell(&FromBuilder::Failed { slot, error }, Vec::new())
            }
            // It has ended, and is reaped next.
            Ok(FromInit::Exited(_)) | Err(_) => Ok(()),
        }
    }
}

/// Whoever does not get back makes no container any more: it would have what others have mounted.
fn go_back(own: &OwnedFd) {
    if let Err(errno) = setns(own, CloneFlags::CLONE_NEWNS) {
        eprintln!("sock: slot builder: setns mnt: {errno}");
        sys::exit_now(1)
    }
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
