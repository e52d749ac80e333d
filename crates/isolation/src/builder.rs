//! The slot builder: a process of its own that makes containers ahead of need.
//!
//! ```text
//! caller ── Make ────────▶ builder ── clone3 into the cgroup ──▶ PID 1: new user, PID, mount, IPC, UTS, net, cgroup namespace
//!   ▲                         │  ▲      (for a zygote's slot: clone3 ─▶ maker, in the cgroup and in the zygote's PID and
//!   │                         │  │       user namespace ─ clone3 as its sibling ─▶ PID 1)
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
//! lives in a PID namespace can make one beneath it. The builder has its children begin in the zygote's for that moment, setns(2). The maker
//! clones PID 1 as its sibling, the builder's child, which dies with the builder.
//!
//! A zygote that is forked from another one starts in a container like any other, in which nobody can make a namespace. When it is
//! in, and was looked at, the builder covers the root and lifts that limit ([`Ask::Open`]), by a child that enters.
//!
//! The builder runs no code of a container's and reads nothing but what the processes above send.

pub(crate) mod maker;
mod server;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, SysResult};
use crate::init::{Exit, Payload};
use crate::plan::{self, SlotSpec, Template};
use crate::sys;

/// A container to make. With it go descriptors, see [`Order`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Make {
    pub(crate) slot: u64,
    /// Lines of its uid_map and gid_map.
    pub(crate) map: String,
    /// The host's ids for its PID 1 and its program, where it has no map.
    pub(crate) outside: [u32; 2],
    /// Others shall be made within its namespaces, and their cgroups lie beside its own, in that of the family. To be allowed to
    /// fork into those it needs to see the family's: cgroup_namespaces(7).
    pub(crate) family: bool,
    /// It is made within another's namespaces.
    pub(crate) within: bool,
    pub(crate) spec: SlotSpec,
    pub(crate) payload: Payload,
}

/// A [`Make`], and the descriptors that came with it, in this order.
pub(crate) struct Order {
    pub(crate) make: Make,
    /// The directory of its cgroup.
    pub(crate) group: OwnedFd,
    /// What becomes its `/var`, where the spec has one.
    pub(crate) var: Option<OwnedFd>,
    /// The directory of its family's cgroup.
    pub(crate) family: Option<OwnedFd>,
    /// The user and the PID namespace that it is made in.
    pub(crate) within: Option<[OwnedFd; 2]>,
    /// The payload's descriptors 0, 1, 2….
    pub(crate) payload: Vec<OwnedFd>,
}

impl Order {
    fn take(make: Make, fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        Some(Self {
            group: fds.next()?,
            var: if make.spec.var { Some(fds.next()?) } else { None },
            family: if make.family { Some(fds.next()?) } else { None },
            within: if make.within { Some([fds.next()?, fds.next()?]) } else { None },
            payload: fds.collect(),
            make,
        })
    }

    /// The cgroup that PID 1 is born in. A family's cgroup namespace is to show the family, so the first of it is born there.
    fn birthplace(&self) -> &OwnedFd {
        self.family.as_ref().unwrap_or(&self.group)
    }
}

/// What the builder is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// With the descriptors of an [`Order`].
    Make(Box<Make>),
    /// Others may be made in the container, whose one process is in it now: cover its root, then allow namespaces. With the user and
    /// the mount namespace.
    Open { slot: u64 },
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
    /// See [`Ask::Open`].
    Opened {
        slot: u64,
        error: Option<String>,
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
    Opened { slot: u64, error: Option<String> },
    Ended { slot: u64, exit: Option<Exit> },
}

/// What one may take to be made, which is a thousand times what it takes: somebody holds it up, and would hold up all others.
const PATIENCE: Duration = Duration::from_secs(5);

// A command's arguments and environment have to fit.
pub(crate) const MESSAGE: usize = 128 << 10;

impl Builder {
    /// Forks the builder; its root is assembled at `work`, an existing directory.
    pub(crate) fn start(template: &Template, work: &Path) -> SysResult<Self> {
        sys::require_single_thread()?;
        let (socket, theirs) = pair()?;
        let steps = plan::template(template, work);
        let parent = nix::unistd::getpid();
        let pid = sys::fork(|| match server::serve(theirs, &steps, template.mounts(), parent) {
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

    pub(crate) fn ask(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> SysResult<()> {
        let text = serde_json::to_vec(ask).map_err(|_| Errno::EINVAL).call("encode")?;
        sys::send(self.socket.as_fd(), &text, fds).call("sendmsg to the slot builder")
    }

    /// Waits for the next event; `None` when the builder is gone.
    pub(crate) fn event(&self) -> SysResult<Option<Event>> {
        let mut buffer = vec![0; MESSAGE];
        let (length, mut fds, cut) =
            sys::receive_what_fits(self.socket.as_fd(), &mut buffer).call("recvmsg")?;
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG).call("decode")?;
        Ok(Some(match message {
            // It dies with its cgroup.
            FromBuilder::Made { slot, .. } if cut => {
                Event::Failed { slot, error: "no file descriptor is left to hold another container".into() }
            }
            FromBuilder::Made { slot, init } => {
                let pidfd = fds.pop().ok_or(Errno::EBADMSG).call("recvmsg")?;
                Event::Made { slot, made: Made { init: Pid::from_raw(init), pidfd, namespaces: fds } }
            }
            FromBuilder::Failed { slot, error } => Event::Failed { slot, error },
            FromBuilder::Opened { slot, error } => Event::Opened { slot, error },
            FromBuilder::Ended { slot, exit } => Event::Ended { slot, exit },
        }))
    }
}

pub(crate) fn pair() -> SysResult<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).call("socketpair")
}
