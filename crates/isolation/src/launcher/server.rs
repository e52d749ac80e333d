//! The launcher's process: an event loop over the gateway's socket and the slot builder's.
//!
//! A zygote has a pool of slots made ahead, and spares in some of them; see `forks`. From the fork on the launcher looks
//! only at what the kernel says of a slot.

mod forks;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, pipe2};

use super::wire::{self, Counts, Files, InstanceId, MAX_MESSAGE, Reply, Request, StartZygote, ZygoteId};
use crate::builder::{self, Event, Made};
use crate::cgroup::{Limits, Usage};
use crate::error::{Context, SysResult};
use crate::host::{Ground, Host};
use crate::ids::{Pair, Pairs};
use crate::init::{Command, Exit};
use crate::plan::{self, Nesting, SlotSpec};
use crate::{sys, verify};

/// What the launcher is started with.
#[derive(Debug)]
pub struct Options {
    /// The directory that all paths in requests are beneath.
    pub data: PathBuf,
    /// Size of every container's `/tmp`, bytes.
    pub tmp_bytes: u64,
}

/// Pools are refilled once nothing was asked for this long: on a small machine a fork or a new slot would compete with
/// the very request that took the last one.
const LULL: Duration = Duration::from_millis(20);

/// Where there is no lull, they are refilled this often all the same.
const AT_LATEST: Duration = Duration::from_millis(200);

/// How often memory is looked at where no controller does it.
const WATCH: Duration = Duration::from_millis(50);

/// A made container that no instance has yet.
struct Slot {
    ground: Ground,
    pair: Pair,
    made: Made,
}

enum Owner {
    Zygote(ZygoteId),
    Slot(ZygoteId),
    Alone(InstanceId),
}

/// A process that a zygote was told to fork.
struct Child {
    /// The gateway's ends of its socket and log.
    fds: Vec<OwnedFd>,
    /// The inode number of its own end of the socket.
    socket: u64,
}

/// A slot with a process of its zygote's in it that waits for a function.
struct Spare {
    slot: Slot,
    child: Child,
}

/// A container that the builder was asked for.
struct Building {
    ground: Ground,
    pair: Option<Pair>,
    owner: Owner,
    /// The request that waits for it, and what its answer carries.
    answer: Option<(u64, Vec<OwnedFd>)>,
    expected: Option<(Limits, u32)>,
}

struct Zygote {
    block: u32,
    pairs: Pairs,
    init: Option<Slot>,
    fork_channel: OwnedFd,
    spares: VecDeque<Spare>,
    wanted_spares: u32,
    ready: VecDeque<Slot>,
    building: u32,
    target: u32,
    waiting: VecDeque<(u64, Files, Limits)>,
}

struct Instance {
    zygote: Option<ZygoteId>,
    slot: Slot,
    limits: Limits,
    /// The base of its user ids.
    base: u32,
    filters: u32,
    checked: Option<verify::Checked>,
    /// What it gets to see once it was checked.
    files: Option<Files>,
    socket: Option<u64>,
    exit: Option<Exit>,
    out_of_memory: bool,
    ended: bool,
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
            files: None,
            socket: None,
            exit: None,
            out_of_memory: false,
            ended: false,
        }
    }
}

/// User ids that are free again when a container is gone.
enum Ids {
    /// Of the launcher's own pairs.
    Alone(Pair),
    /// Of a zygote's block.
    Within(ZygoteId, Pair),
    /// A zygote's, with all that it gave to slots.
    Block(u32),
    /// Of a block that its zygote's end frees.
    WithZygote,
}

impl Ids {
    fn of(zygote: Option<ZygoteId>, pair: Pair) -> Self {
        zygote.map_or(Self::Alone(pair), |zygote| Self::Within(zygote, pair))
    }
}

/// Something whose processes are dying; its ground goes when the last is gone.
struct Dying {
    ground: Ground,
    ids: Ids,
    /// The builder reported its end.
    ended: bool,
    /// Who is to be told how it ended.
    farewell: Option<Farewell>,
}

/// The answer to a request to destroy an instance: it has to wait until every process is gone, since a process that has
/// closed its socket need not have exited yet.
struct Farewell {
    request: u64,
    checked: Option<verify::Checked>,
    exit: Option<Exit>,
    out_of_memory: bool,
    usage: Usage,
}

struct Server {
    host: Host,
    options: Options,
    data: OwnedFd,
    gateway: OwnedFd,
    next: u64,
    pairs: Pairs,
    blocks: Vec<u32>,
    building: HashMap<u64, Building>,
    zygotes: BTreeMap<ZygoteId, Zygote>,
    instances: BTreeMap<InstanceId, Instance>,
    dying: HashMap<u64, Dying>,
    watched: Instant,
    /// Zygotes whose pools are to be refilled in the next lull.
    wanting: BTreeSet<ZygoteId>,
    refilled: Instant,
}

/// Serves requests from `gateway` until it is closed; then ends every container.
pub fn serve(host: Host, options: Options, gateway: OwnedFd) -> SysResult<()> {
    let blocks = (1..host.ids.blocks).rev().collect();
    // Opened here: a descriptor from before the host's mount namespace would lead to mounts that cannot be cloned.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let data = nix::fcntl::open(&options.data, flags, Mode::empty()).call_on("open", &options.data)?;
    let mut server = Server {
        host,
        options,
        data,
        gateway,
        next: 1,
        pairs: Pairs::default(),
        blocks,
        building: HashMap::new(),
        zygotes: BTreeMap::new(),
        instances: BTreeMap::new(),
        dying: HashMap::new(),
        watched: Instant::now(),
        wanting: BTreeSet::new(),
        refilled: Instant::now(),
    };
    server.run()?;
    server.host.stop()
}

impl Server {
    fn run(&mut self) -> SysResult<()> {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let watching = !self.host.has_controller("memory") && !self.instances.is_empty();
            let busy = self.dying.values().any(|dying| dying.ended);
            let timeout = match (self.wanting.is_empty(), watching || busy) {
                (false, _) => PollTimeout::from(LULL.as_millis() as u8),
                (true, true) => PollTimeout::from(WATCH.as_millis() as u8),
                (true, false) => PollTimeout::NONE,
            };
            let mut wanted = [
                PollFd::new(self.host.builder_socket(), PollFlags::POLLIN),
                PollFd::new(self.gateway.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.host.builder_pidfd(), PollFlags::POLLIN),
            ];
            match poll(&mut wanted, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).call("poll"),
            }
            let [built, asked, ended] = wanted.map(|wanted| wanted.any().unwrap_or(false));
            if ended {
                return Err(Errno::ECHILD).call("wait for the slot builder, which has ended");
            }
            if (!built && !asked) || self.refilled.elapsed() > AT_LATEST {
                self.refill_all();
            }
            if built {
                match self.host.event()? {
                    Some(event) => self.event(event)?,
                    None => return Err(Errno::EPIPE).call("read from the slot builder"),
                }
            }
            if asked {
                let (length, _) = sys::receive(self.gateway.as_fd(), &mut buffer).call("recvmsg")?;
                if length == 0 {
                    return Ok(());
                }
                let (id, request) = wire::decode_request(&buffer[..length]).call("decode")?;
                self.handle(id, request)?;
            }
            if watching && self.watched.elapsed() >= WATCH {
                self.watch();
            }
            if busy {
                self.bury()?;
            }
        }
    }

    fn answer(&self, id: u64, result: Result<Reply, String>, fds: &[OwnedFd]) -> SysResult<()> {
        let text = wire::encode_answer(id, result).call("encode")?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        match sys::send(self.gateway.as_fd(), &text, &fds) {
            // It is gone, which the event loop sees next.
            Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            sent => sent.call("sendmsg to the gateway"),
        }
    }

    fn handle(&mut self, id: u64, request: Request) -> SysResult<()> {
        if let Err(reason) = request.validate() {
            return self.answer(id, Err(reason), &[]);
        }
        let result = match request {
            Request::AddView { view, layers } => self.add_view(&view, &layers).map(|()| Some(Reply::Done)),
            Request::StartZygote(start) => self.start_zygote(id, start).map(|()| None),
            Request::StopZygote { zygote } => self.stop_zygote(zygote).map(|()| Some(Reply::Done)),
            Request::KeepSpares { zygote, count } => {
                self.keep_spares(zygote, count).map(|()| Some(Reply::Done))
            }
            Request::Fork { zygote, files, limits } => self.fork(id, zygote, files, limits).map(|()| None),
            Request::Execute { files, command } => self.execute(id, &files, command).map(|()| None),
            Request::Check { instance } => match self.check(instance) {
                Ok(pidfd) => return self.answer(id, Ok(Reply::Done), &[pidfd]),
                Err(error) => Err(error),
            },
            Request::Stats { instance } => {
                self.instance(instance).map(|instance| Some(Reply::Stats { usage: usage(instance) }))
            }
            Request::Count => Ok(Some(Reply::Counts(self.counts()))),
            Request::Destroy { instance } => self.destroy(id, instance).map(|()| None),
        };
        match result {
            Ok(None) => Ok(()),
            Ok(Some(reply)) => self.answer(id, Ok(reply), &[]),
            Err(error) => self.answer(id, Err(error), &[]),
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            zygotes: self.zygotes.len(),
            slots: self.zygotes.values().map(|zygote| zygote.ready.len()).sum(),
            spares: self.zygotes.values().map(|zygote| zygote.spares.len()).sum(),
            instances: self.instances.len(),
            dying: self.dying.len(),
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

    fn spec(&self, nesting: Nesting) -> SlotSpec {
        SlotSpec { hostname: "sock".into(), tmp_bytes: self.options.tmp_bytes, nesting }
    }

    fn start_zygote(&mut self, id: u64, start: StartZygote) -> Result<(), String> {
        let StartZygote { zygote, files, command, slots } = start;
        if self.zygotes.contains_key(&zygote) {
            return Err(format!("zygote {zygote} exists already"));
        }
        let number = self.number();
        let block = self.blocks.pop().ok_or("no block of user ids is left for another zygote")?;
        let ground = self.host.ground(number).map_err(text)?;
        ground.group.limit(&self.host.hierarchy, &command.limits).map_err(text)?;
        self.show(&ground, &files)?;
        let (fork_channel, theirs) = builder::pair().map_err(text)?;
        fcntl(&fork_channel, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).call("fcntl F_SETFL").map_err(text)?;
        let (control, control_theirs) = stream_pair().map_err(text)?;
        let (log, log_theirs) = pipe2(OFlag::O_CLOEXEC).call("pipe2").map_err(text)?;
        let null = null().map_err(text)?;
        let map = format!("0 {} {}\n", self.host.ids.block(block), crate::ids::BLOCK);
        let fds = [&null, &log_theirs, &log_theirs, &theirs, &control_theirs].map(AsFd::as_fd);
        let command = Command { memory_by_kernel: self.host.has_controller("memory"), ..command };
        self.host
            .build(&ground, map, None, (self.spec(Nesting::Slots), Some(command), &fds))
            .map_err(text)?;
        let answer = Some((id, vec![control, log]));
        let owner = Owner::Zygote(zygote);
        self.building.insert(number, Building { ground, pair: None, owner, answer, expected: None });
        let target = slots.min(wire::MAX_READY);
        self.zygotes.insert(
            zygote,
            Zygote {
                block,
                pairs: Pairs::default(),
                init: None,
                fork_channel,
                spares: VecDeque::new(),
                wanted_spares: 0,
                ready: VecDeque::new(),
                building: 0,
                target,
                waiting: VecDeque::new(),
            },
        );
        Ok(())
    }

    fn stop_zygote(&mut self, zygote: ZygoteId) -> Result<(), String> {
        if self.zygotes.get(&zygote).is_some_and(|zygote| zygote.init.is_none()) {
            return Err(format!("zygote {zygote} is still being made"));
        }
        let Zygote { init, ready, spares, block, waiting, .. } =
            self.zygotes.remove(&zygote).ok_or_else(|| format!("there is no zygote {zygote}"))?;
        for (id, ..) in waiting {
            self.answer(id, Err(format!("zygote {zygote} was stopped")), &[]).map_err(text)?;
        }
        // Its PID namespace goes, and every slot and instance within it.
        for slot in ready.into_iter().chain(spares.into_iter().map(|spare| spare.slot)) {
            self.let_die(slot, Ids::WithZygote);
        }
        if let Some(slot) = init {
            self.let_die(slot, Ids::Block(block));
        }
        Ok(())
    }

    fn execute(&mut self, id: u64, files: &Files, command: Command) -> Result<(), String> {
        let number = self.number();
        let pair = self.pairs.take().ok_or("no user ids are left for another container")?;
        let ground = self.host.ground(number).map_err(text)?;
        ground.group.limit(&self.host.hierarchy, &command.limits).map_err(text)?;
        self.show(&ground, files)?;
        let (socket, theirs) = stream_pair().map_err(text)?;
        let (log, log_theirs) = pipe2(OFlag::O_CLOEXEC).call("pipe2").map_err(text)?;
        let null = null().map_err(text)?;
        let fds = [&null, &log_theirs, &log_theirs, &theirs].map(AsFd::as_fd);
        let command = Command { memory_by_kernel: self.host.has_controller("memory"), ..command };
        let expected = Some((command.limits, 1));
        let map = pair.map(self.host.ids.block(0));
        let spec = self.spec(Nesting::Forbidden);
        self.host.build(&ground, map, None, (spec, Some(command), &fds)).map_err(text)?;
        let answer = Some((id, vec![socket, log]));
        let owner = Owner::Alone(number);
        self.building.insert(number, Building { ground, pair: Some(pair), owner, answer, expected });
        Ok(())
    }

    fn event(&mut self, event: Event) -> SysResult<()> {
        match event {
            Event::Made { slot, made } => self.made(slot, made),
            Event::Failed { slot, error } => {
                let Some(building) = self.building.remove(&slot) else { return Ok(()) };
                if let Some((id, _)) = building.answer {
                    self.answer(id, Err(error.clone()), &[])?;
                }
                let pair = building.pair.unwrap_or_default();
                let ids = match building.owner {
                    Owner::Zygote(zygote) => {
                        let zygote = self.zygotes.remove(&zygote);
                        zygote.map_or(Ids::WithZygote, |zygote| Ids::Block(zygote.block))
                    }
                    Owner::Slot(zygote) => {
                        self.slot_failed(zygote, &error)?;
                        Ids::Within(zygote, pair)
                    }
                    Owner::Alone(_) => Ids::Alone(pair),
                };
                let dying = Dying { ground: building.ground, ids, ended: true, farewell: None };
                self.dying.insert(slot, dying);
                self.bury()
            }
            Event::Ended { slot, exit } => self.ended(slot, exit),
        }
    }

    fn made(&mut self, number: u64, made: Made) -> SysResult<()> {
        let Some(Building { ground, pair, owner, answer, expected }) = self.building.remove(&number) else {
            return Ok(());
        };
        let slot = Slot { ground, pair: pair.unwrap_or_default(), made };
        match owner {
            Owner::Zygote(zygote) => {
                let Some(state) = self.zygotes.get_mut(&zygote) else {
                    self.let_die(slot, Ids::WithZygote);
                    return Ok(());
                };
                state.init = Some(slot);
                if let Some((id, fds)) = answer {
                    self.answer(id, Ok(Reply::Zygote), &fds)?;
                }
                self.slot_made(zygote)
            }
            Owner::Slot(zygote) => {
                let Some(state) = self.zygotes.get_mut(&zygote) else {
                    self.let_die(slot, Ids::WithZygote);
                    return Ok(());
                };
                state.building -= 1;
                state.ready.push_back(slot);
                self.slot_made(zygote)
            }
            Owner::Alone(instance) => {
                let (limits, filters) = expected.unwrap_or_default();
                let state = Instance::new(slot, None, limits, (self.host.ids.block(0), filters));
                self.instances.insert(instance, state);
                match answer {
                    Some((id, fds)) => self.answer(id, Ok(Reply::Instance { instance, spare: false }), &fds),
                    None => Ok(()),
                }
            }
        }
    }

    fn instance(&mut self, instance: InstanceId) -> Result<&mut Instance, String> {
        self.instances.get_mut(&instance).ok_or_else(|| format!("there is no instance {instance}"))
    }

    /// Returns a pidfd of the instance's process.
    fn check(&mut self, id: InstanceId) -> Result<OwnedFd, String> {
        let by_kernel = self.host.has_controller("memory");
        let instance = self.instance(id)?;
        let expected = verify::Expected {
            id: instance.slot.pair.outside(instance.base),
            filters: instance.filters,
            namespaces: verify::inodes(&instance.slot.made.namespaces).map_err(text)?,
            socket: instance.socket,
        };
        let processes = instance.slot.ground.group.processes().map_err(text)?;
        let checked = verify::check(&processes, instance.slot.made.init, &expected)
            .map_err(|error| format!("instance {id} is not confined: {error}"))?;
        if instance.zygote.is_some() {
            // A command got its limits before its exec; a zygote's child still has the zygote's.
            for (name, number, value) in plan::resource_limits(&instance.limits, by_kernel, checked.data) {
                sys::set_limit(checked.pid, number, value).call_on("prlimit", name).map_err(text)?;
            }
        }
        let pidfd = checked.pidfd.try_clone().map_err(io_text)?;
        instance.checked = Some(checked);
        let files = instance.files.take();
        if let (Some(files), Some(instance)) = (files, self.instances.get(&id)) {
            self.show(&instance.slot.ground, &files)?;
        }
        Ok(pidfd)
    }

    fn destroy(&mut self, request: u64, id: InstanceId) -> Result<(), String> {
        let instance = self.instances.remove(&id).ok_or_else(|| format!("there is no instance {id}"))?;
        // Now, while the process can still be asked; its cgroup is asked again at the end.
        let usage = usage(&instance);
        let Instance { slot, zygote, ended, checked, exit, out_of_memory, .. } = instance;
        let number = slot.ground.number;
        let ids = Ids::of(zygote, slot.pair);
        if zygote.is_none() && checked.as_ref().is_some_and(|checked| has_ended(&checked.pidfd)) {
            // Its PID 1 is about to tell how the process ended, and to end with all others. Killed now it would take that
            // along, and before 6.15 nobody else knows.
            let Slot { ground, .. } = slot;
            self.dying.insert(number, Dying { ground, ids, ended: false, farewell: None });
        } else {
            self.let_die(slot, ids);
        }
        if let Some(dying) = self.dying.get_mut(&number) {
            dying.ended = ended;
            dying.farewell = Some(Farewell { request, checked, exit, out_of_memory, usage });
        }
        self.bury().map_err(text)
    }

    /// Kills a container and remembers to take its ground away.
    fn let_die(&mut self, slot: Slot, ids: Ids) {
        let Slot { ground, made, .. } = slot;
        // Both may be gone already, and that is what is wanted.
        let _ = sys::pidfd_signal(made.pidfd.as_fd(), libc::SIGKILL);
        let _ = ground.group.kill();
        let number = ground.number;
        self.dying.insert(number, Dying { ground, ids, ended: false, farewell: None });
    }

    fn ended(&mut self, number: u64, exit: Option<Exit>) -> SysResult<()> {
        let zygote = match (self.instances.get(&number), self.dying.get(&number).map(|dying| &dying.ids)) {
            (Some(instance), _) => instance.zygote,
            (_, Some(Ids::Within(zygote, _))) => Some(*zygote),
            _ => None,
        };
        // It has told of its child by now, since the slot had to wait for that child.
        zygote.into_iter().for_each(|zygote| self.hear(zygote));
        if let Some(dying) = self.dying.get_mut(&number) {
            dying.ended = true;
            if let Some(farewell) = &mut dying.farewell {
                farewell.exit = farewell.exit.or(exit);
            }
            return self.bury();
        }
        if let Some(instance) = self.instances.get_mut(&number) {
            // The gateway sees its socket close, asks for its destruction, and is told then.
            instance.exit = instance.exit.or(exit);
            instance.ended = true;
            return Ok(());
        }
        let dead = self.zygotes.iter().find_map(|(id, zygote)| {
            let init = zygote.init.as_ref()?;
            (init.ground.number == number).then_some(*id)
        });
        if let Some(zygote) = dead {
            // It exits with 0 when the gateway hangs up.
            if exit != Some(Exit::Code(0)) {
                eprintln!("sock: launcher: zygote {zygote} ended by itself: {exit:?}");
            }
            let _ = self.stop_zygote(zygote);
            if let Some(dying) = self.dying.get_mut(&number) {
                dying.ended = true;
            }
            return self.bury();
        }
        // A slot that died while it waited for use, or a spare.
        let lost = self.zygotes.iter_mut().find_map(|(id, zygote)| Some((*id, zygote.lose(number)?)));
        if let Some((zygote, Slot { ground, pair, .. })) = lost {
            self.dying.insert(
                number,
                Dying { ground, ids: Ids::Within(zygote, pair), ended: true, farewell: None },
            );
            self.wanting.insert(zygote);
            return self.bury();
        }
        Ok(())
    }

    fn bid_farewell(&self, farewell: Farewell, ground: &Ground) -> SysResult<()> {
        let Farewell { request, checked, exit, out_of_memory, usage } = farewell;
        // The kernel's word, which it keeps for who holds a pidfd, before the zygote's.
        let kept = checked.and_then(|checked| sys::pidfd_exit_status(checked.pidfd.as_fd()));
        let exit = kept.map(Exit::from_status).or(exit);
        let now = ground.group.usage();
        let usage = Usage {
            oom_kills: usage.oom_kills.max(now.oom_kills),
            memory_peak: usage.memory_peak.max(now.memory_peak),
        };
        let out_of_memory = out_of_memory || usage.oom_kills > 0;
        self.answer(request, Ok(Reply::Destroyed { exit, out_of_memory, usage }), &[])
    }

    /// Takes away the ground of what is dead.
    fn bury(&mut self) -> SysResult<()> {
        let ended: Vec<u64> =
            self.dying.iter().filter(|(_, dying)| dying.ended).map(|(number, _)| *number).collect();
        for number in ended {
            let Some(mut dying) = self.dying.remove(&number) else { continue };
            if let Some(farewell) = dying.farewell.take() {
                self.bid_farewell(farewell, &dying.ground)?;
            }
            if !self.host.clear(&dying.ground)? {
                self.dying.insert(number, dying);
                continue;
            }
            match dying.ids {
                Ids::Alone(pair) => self.pairs.give_back(pair),
                Ids::Within(zygote, pair) => {
                    if let Some(zygote) = self.zygotes.get_mut(&zygote) {
                        zygote.pairs.give_back(pair);
                    }
                }
                Ids::Block(block) => self.blocks.push(block),
                Ids::WithZygote => {}
            }
        }
        Ok(())
    }

    /// The watchdog on resident memory, for kernels that keep no such limit: kills what went over.
    fn watch(&mut self) {
        self.watched = Instant::now();
        for instance in self.instances.values_mut() {
            let Some(checked) = &instance.checked else { continue };
            let Ok(processes) = instance.slot.ground.group.processes() else { continue };
            let others = processes.into_iter().filter(|pid| *pid != instance.slot.made.init);
            let others: Vec<Pid> = others.collect();
            let resident: u64 = others.iter().map(|pid| verify::resident(*pid)).sum();
            // What it was forked with is the zygote's and shared with it.
            let suspect = resident.saturating_sub(checked.resident) > instance.limits.memory;
            // Pages that its own processes share were counted for each of them: the dear look divides them.
            if suspect
                && others.iter().map(|pid| verify::proportional(*pid)).sum::<u64>() > instance.limits.memory
            {
                instance.out_of_memory = true;
                let _ = instance.slot.ground.group.kill();
            }
        }
    }
}

/// Whether the process behind `pidfd` is dead. pidfd_open(2)
fn has_ended(pidfd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

fn usage(instance: &Instance) -> Usage {
    let mut usage = instance.slot.ground.group.usage();
    if usage.memory_peak == 0
        && let Some(checked) = &instance.checked
    {
        usage.memory_peak = verify::resident(checked.pid);
    }
    usage
}

fn text(error: crate::SyscallError) -> String {
    error.to_string()
}

fn io_text(error: std::io::Error) -> String {
    error.to_string()
}

fn stream_pair() -> SysResult<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).call("socketpair")
}

fn null() -> SysResult<OwnedFd> {
    nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .call_on("open", "/dev/null")
}
