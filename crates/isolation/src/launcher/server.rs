//! The launcher's process: an event loop over the gateway's socket and the slot builder's.
//!
//! * [`start`]: zygotes and single commands;
//! * [`forks`]: a zygote's pool of slots made ahead, and what asks it for children;
//! * [`forking`]: those until they are known to be confined, spares or instances then;
//! * [`inspect`]: what is looked at from outside, which is only what the kernel says of a slot;
//! * [`watch`]: what is looked at again and again, where the kernel does not keep limits of memory;
//! * [`spares`]: those of a zygote, and what is too many;
//! * [`released`]: what is to end when there is time;
//! * [`end`]: how each of them goes.
//!
//! Nothing here waits: a turn of the loop takes one event or one request, and what it has to say is sent at its end.

mod end;
mod forking;
mod forks;
mod inspect;
mod released;
mod spares;
mod start;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, fstat};

use super::wire::{self, Counts, Files, InstanceId, MAX_MESSAGE, Reply, Request, ZygoteId};
use crate::builder::Made;
use crate::cgroup::{Activity, Limits};
use crate::error::{Context, SysResult};
use crate::host::{Ground, Host};
use crate::ids::{Pair, Pairs, Span, Spans};
use crate::init::Exit;
use crate::plan::{Nesting, Profile, SlotSpec};
use crate::watch::{INTERVAL as WATCH, Watched};
use crate::{sys, verify};
use end::Dying;
use forking::{Forking, Spare, Wanted};
use released::Released;
use start::{Admitting, Building};

/// What the launcher is started with.
#[derive(Debug)]
pub struct Options {
    /// The directory that all paths in requests are beneath.
    pub data: PathBuf,
    /// Size of every container's `/tmp`, bytes.
    pub tmp_bytes: u64,
    /// Whether containers of the profile [`Profile::Paper`] are made: what is in one sees the host's network.
    pub paper: bool,
}

/// Pools are refilled once nothing was asked for this long: on a small machine a fork or a new slot would compete with
/// the very request that took the last one.
const LULL: Duration = Duration::from_millis(20);

/// Where there is no lull, they are refilled this often all the same.
const AT_LATEST: Duration = Duration::from_millis(200);

/// A made container that no instance has yet.
struct Slot {
    ground: Ground,
    pair: Pair,
    made: Made,
    /// What stands for its namespaces. Their descriptors are let go of once a process is in it: there may be thousands.
    inodes: Vec<u64>,
}

struct Zygote {
    /// The one that it was forked from.
    parent: Option<ZygoteId>,
    /// How many there are above it.
    depth: u32,
    span: Span,
    pairs: Pairs,
    /// Ids for zygotes that are forked from it.
    children: Spans,
    /// Whether it may fork: one that was started may, one that was forked when it was looked at.
    admitted: bool,
    /// Who waits for that.
    admitting: Option<Admitting>,
    /// The inode number of its own end of the fork channel.
    channel: u64,
    /// Of its own processes.
    limits: Limits,
    init: Option<Slot>,
    fork_channel: OwnedFd,
    spares: VecDeque<Spare>,
    wanted_spares: u32,
    /// Looks in succession at which its spares were too busy.
    restless: u32,
    ready: VecDeque<Slot>,
    building: u32,
    target: u32,
    waiting: VecDeque<Wanted>,
}

struct Instance {
    zygote: Option<ZygoteId>,
    slot: Slot,
    limits: Limits,
    /// The base of its user ids.
    base: u32,
    filters: u32,
    checked: Option<verify::Checked>,
    exit: Option<Exit>,
    out_of_memory: bool,
    ended: bool,
    /// It is to end when there is time for it.
    released: bool,
}

impl Zygote {
    fn new(span: Span, (fork_channel, channel): (OwnedFd, u64), target: u32, limits: Limits) -> Self {
        Self {
            parent: None,
            depth: 0,
            span,
            pairs: span.pairs(),
            children: span.children().into_iter().collect(),
            admitted: false,
            admitting: None,
            channel,
            limits,
            init: None,
            fork_channel,
            spares: VecDeque::new(),
            wanted_spares: 0,
            restless: 0,
            ready: VecDeque::new(),
            building: 0,
            target,
            waiting: VecDeque::new(),
        }
    }
}

impl Instance {
    /// `origin`: the base of its user ids, and how many seccomp filters it has to have.
    fn new(slot: Slot, zygote: Option<ZygoteId>, limits: Limits, origin: (u32, u32)) -> Self {
        let (base, filters) = origin;
        Self {
            zygote,
            slot,
            limits,
            base,
            filters,
            checked: None,
            exit: None,
            out_of_memory: false,
            ended: false,
            released: false,
        }
    }
}

struct Server {
    host: Host,
    options: Options,
    data: OwnedFd,
    gateway: OwnedFd,
    /// Answers that this turn of the loop sends: request, result, descriptors.
    answers: VecDeque<(u64, Result<Reply, String>, Vec<OwnedFd>)>,
    next: u64,
    pairs: Pairs,
    /// Ids for zygotes that are started.
    spans: Vec<Span>,
    building: HashMap<u64, Building>,
    zygotes: BTreeMap<ZygoteId, Zygote>,
    /// By the numbers of their slots.
    forking: HashMap<u64, Forking>,
    instances: BTreeMap<InstanceId, Instance>,
    released: Released,
    dying: HashMap<u64, Dying>,
    /// When [`Server::watch`] last ran, and what it remembers: whether any container ran, and each by its number.
    looked: Instant,
    activity: Activity,
    watched: HashMap<u64, Watched>,
    /// Zygotes whose pools are to be refilled in the next lull.
    wanting: BTreeSet<ZygoteId>,
    refilled: Instant,
    /// When spares were looked at last.
    spares_looked: Instant,
    /// When something was asked for last.
    asked: Instant,
}

/// Serves requests from `gateway` until it is closed; then ends every container.
pub fn serve(host: Host, options: Options, gateway: OwnedFd) -> SysResult<()> {
    let spans = host.ids.spans();
    // Opened here: a descriptor from before the host's mount namespace would lead to mounts that cannot be cloned.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let data = nix::fcntl::open(&options.data, flags, Mode::empty()).call_on("open", &options.data)?;
    let activity = host.hierarchy.activity();
    let mut server = Server {
        host,
        options,
        data,
        gateway,
        answers: VecDeque::new(),
        next: 1,
        pairs: Pairs::default(),
        spans,
        building: HashMap::new(),
        zygotes: BTreeMap::new(),
        forking: HashMap::new(),
        instances: BTreeMap::new(),
        released: Released::default(),
        dying: HashMap::new(),
        looked: Instant::now(),
        activity,
        watched: HashMap::new(),
        wanting: BTreeSet::new(),
        refilled: Instant::now(),
        spares_looked: Instant::now(),
        asked: Instant::now(),
    };
    server.run()?;
    server.host.stop()
}

impl Server {
    fn run(&mut self) -> SysResult<()> {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let watching = !self.host.has_controller("memory")
                && (!self.instances.is_empty() || !self.zygotes.is_empty());
            let mut wanted = vec![
                PollFd::new(self.host.builder_socket(), PollFlags::POLLIN),
                PollFd::new(self.gateway.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.host.builder_pidfd(), PollFlags::POLLIN),
            ];
            let mut numbers = Vec::new();
            for (number, child) in &self.forking {
                if let Some(fd) = child.speaks() {
                    numbers.push(*number);
                    wanted.push(PollFd::new(fd, PollFlags::POLLIN));
                }
            }
            match poll(&mut wanted, self.until(watching)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).call("poll"),
            }
            let mut ready = wanted.iter().map(|wanted| wanted.any().unwrap_or(false));
            let [built, asked, ended] = [(); 3].map(|()| ready.next().unwrap_or(false));
            let spoke: Vec<u64> = numbers
                .into_iter()
                .zip(ready)
                .filter(|(_, spoke)| *spoke)
                .map(|(number, _)| number)
                .collect();
            if ended {
                return Err(Errno::ECHILD).call("wait for the slot builder, which has ended");
            }
            if !self.forking.is_empty() {
                self.look_at_forking(spoke);
            }
            self.look_at_zygotes();
            let lull = !asked && self.asked.elapsed() >= LULL;
            if !self.wanting.is_empty() && (lull || self.refilled.elapsed() > AT_LATEST) {
                self.refill_all();
            }
            self.end_released(lull);
            if self.look_at_spares_due().is_some_and(|due| due <= Instant::now()) {
                self.look_at_spares();
            }
            if built {
                match self.host.event()? {
                    Some(event) => self.event(event),
                    None => return Err(Errno::EPIPE).call("read from the slot builder"),
                }
            }
            if asked {
                let (length, _) = sys::receive(self.gateway.as_fd(), &mut buffer).call("recvmsg")?;
                if length == 0 {
                    return Ok(());
                }
                self.asked = Instant::now();
                self.take(&buffer[..length]);
            }
            self.send_answers()?;
            if self.has_dead() {
                self.bury()?;
                self.send_answers()?;
            }
            if watching && look_due(self.looked, self.asked) <= Instant::now() {
                self.watch();
            }
        }
    }

    /// How long the loop may wait, when nothing happens.
    fn until(&self, watching: bool) -> PollTimeout {
        let now = Instant::now();
        let lull = (!self.wanting.is_empty()).then(|| self.asked + LULL);
        let look = watching.then(|| look_due(self.looked, self.asked));
        let bury = self.has_dead().then(|| now + WATCH);
        let children = self.forking.values().map(|child| child.looks.due()).min();
        let zygotes = self.zygotes.values().filter_map(|state| state.admitting.as_ref()?.due()).min();
        let released = self.released.due(self.asked + LULL, self.dying.len());
        match [lull, look, bury, children, zygotes, released, self.look_at_spares_due()]
            .into_iter()
            .flatten()
            .min()
        {
            // Rounded up: it would look again and again in the last millisecond.
            Some(at) => {
                let wait = at.saturating_duration_since(now).as_micros().div_ceil(1000);
                PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        }
    }

    fn answer(&mut self, id: u64, result: Result<Reply, String>, fds: Vec<OwnedFd>) {
        self.answers.push_back((id, result, fds));
    }

    fn send_answers(&mut self) -> SysResult<()> {
        while let Some((id, result, fds)) = self.answers.pop_front() {
            let text = wire::encode_answer(id, result).call("encode")?;
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match sys::send(self.gateway.as_fd(), &text, &fds) {
                // It is gone, which the event loop sees next.
                Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => {}
                failed => failed.call("sendmsg to the gateway")?,
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &[u8]) {
        match wire::decode_request(message) {
            Ok((id, request)) => self.handle(id, request),
            Err(malformed) => match malformed.id {
                Some(id) => self.answer(id, Err(malformed.to_string()), Vec::new()),
                None => eprintln!("sock: launcher: {malformed}; nobody can be told"),
            },
        }
    }

    fn handle(&mut self, id: u64, request: Request) {
        match request.validate().and_then(|()| self.perform(id, request)) {
            // The answer comes with an event.
            Ok(None) => {}
            Ok(Some(reply)) => self.answer(id, Ok(reply), Vec::new()),
            Err(reason) => self.answer(id, Err(reason), Vec::new()),
        }
    }

    /// `None` where the answer has been given, or is to come. What fails has given none and leaves nothing.
    fn perform(&mut self, id: u64, request: Request) -> Result<Option<Reply>, String> {
        let done = |()| Some(Reply::Done);
        let later = |()| None;
        match request {
            Request::AddView { view, layers } => self.add_view(&view, &layers).map(done),
            Request::StartZygote(start) => self.start_zygote(id, start).map(later),
            Request::ForkZygote(fork) => self.fork_zygote(id, fork).map(later),
            Request::Admit { zygote } => self.admit(id, zygote).map(later),
            Request::StopZygote { zygote } => self.stop_zygote(zygote).map(done),
            Request::Keep { zygote, spares, slots } => self.keep(zygote, spares, slots).map(done),
            Request::Fork { zygote, files, limits } => self.fork(id, zygote, files, limits).map(later),
            Request::Execute { profile, files, command } => {
                self.execute(id, profile, &files, command).map(later)
            }
            Request::Check { instance } => {
                let fds = self.check(instance)?;
                self.answer(id, Ok(Reply::Done), fds.into());
                Ok(None)
            }
            Request::Memory { of } => self.memory(of).map(|memory| Some(Reply::Memory(memory))),
            Request::Count => Ok(Some(Reply::Counts(self.counts()))),
            Request::Release { instance } => self.release(id, instance).map(later),
            Request::Destroy { instance } => self.destroy(id, instance).map(later),
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            zygotes: self.zygotes.len(),
            slots: self.zygotes.values().map(|zygote| zygote.ready.len()).sum(),
            forking: self.forking.len(),
            spares: self.zygotes.values().map(|zygote| zygote.spares.len()).sum(),
            instances: self.instances.values().filter(|instance| !instance.released).count(),
            dying: self.dying.len() + self.instances.values().filter(|instance| instance.released).count(),
            leaks: self.host.removed(),
        }
    }

    fn add_view(&mut self, view: &str, layers: &[String]) -> Result<(), String> {
        self.host.add_view(view, self.data.as_fd(), layers).map_err(text)
    }

    fn show(&self, ground: &Ground, files: &Files) -> Result<(), String> {
        let data = self.data.as_fd();
        for (place, path) in [("task", &files.task), ("opt", &files.opt)] {
            if let Some(path) = path {
                self.host.show(ground, place, data, path).map_err(text)?;
            }
        }
        if let Some(view) = &files.view {
            self.host.show_view(ground, view).map_err(text)?;
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn spec(&self, nesting: Nesting, profile: Profile) -> SlotSpec {
        SlotSpec { hostname: "sock".into(), tmp_bytes: self.options.tmp_bytes, var: true, nesting, profile }
    }

    fn instance(&mut self, instance: InstanceId) -> Result<&mut Instance, String> {
        self.instances.get_mut(&instance).ok_or_else(|| format!("there is no instance {instance}"))
    }
}

/// When the watchdog looks next. In a lull: what was asked for just now may run on this very processor when the launcher sleeps. Where there is
/// none, all the same.
fn look_due(looked: Instant, asked: Instant) -> Instant {
    (looked + WATCH).max(asked + LULL).min(looked + 2 * WATCH)
}

fn text(error: crate::SyscallError) -> String {
    error.to_string()
}

fn io_text(error: std::io::Error) -> String {
    error.to_string()
}

fn stream_pair() -> SysResult<(OwnedFd, OwnedFd)> {
    let pair =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).call("socketpair")?;
    sys::refuse_descriptors(pair.0.as_fd());
    Ok(pair)
}

/// Ours and the zygote's end of a fork channel, and the inode number of the latter. We never wait for it.
fn fork_channel() -> SysResult<(OwnedFd, OwnedFd, u64)> {
    let (ours, theirs) = crate::builder::pair()?;
    sys::refuse_descriptors(ours.as_fd());
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).call("fcntl F_SETFL")?;
    let number = fstat(&theirs).call("fstat")?.st_ino;
    Ok((ours, theirs, number))
}

fn null() -> SysResult<OwnedFd> {
    nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .call_on("open", "/dev/null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_looks_in_a_lull_or_after_twice_its_time() {
        let looked = Instant::now();
        let at = |millis| looked + Duration::from_millis(millis);
        for (asked, due) in [(0, 50), (30, 50), (45, 65), (75, 95), (81, 100), (99, 100)] {
            assert_eq!(look_due(looked, at(asked)), at(due), "asked after {asked} ms");
        }
    }
}
