//! Containers as owned handles: the crate's library face.
//!
//! ```text
//! tend ──▶ ready: made ahead, all but the program ── create ──▶ Container ── start ──▶ runs ── destroy ──▶ gone
//! ```
//! Making a container takes several processes and a network namespace; what is ready takes one exec. So a [`Workshop`] can keep
//! some ready, and makes them when it is told to [`Workshop::tend`] to it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::builder::{self, Event, Made};
use crate::cgroup::{self, Group, Limits, Stats};
use crate::error::{Context, SysResult, SyscallError};
use crate::host::{Ground, Host, Within};
use crate::ids::{Pair, Pairs};
use crate::init::{End, Payload, Program, Runner};
use crate::plan::{Nesting, Profile, SlotSpec};
use crate::sys;
use crate::watch::{Bound, INTERVAL, Watched};

/// A container could not be made, or nothing started in it.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A system call failed on the outside.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// A step inside failed, with its own words.
    #[error("failed to make the container: {0}")]
    Inside(String),
    /// The program could not be executed.
    #[error("failed to start {program}: {reason}")]
    Start {
        /// Its path.
        program: String,
        /// Why, and in which step.
        reason: String,
    },
    /// A container runs one program.
    #[error("the container was given a program before: make another one")]
    Started,
    /// All user ids are taken.
    #[error("no user ids are left for another container")]
    NoIds,
}

/// A container could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// A system call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// It was killed, and is not gone: the kernel keeps processes of it (state D, most often for a disk).
    #[error("the container was killed 10 s ago and is not gone; its processes: {}", .0.join(", "))]
    Stuck(Vec<String>),
}

/// What a container gets to be gone after it was killed. Hundreds that end together take a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number, name and state of a process. proc_pid_status(5)
fn describe(pid: Pid) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim);
    format!("{pid} {} {}", field("Name:"), field("State:"))
}

/// What the containers of a workshop are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The host name inside.
    pub hostname: String,
    /// Size of `/tmp`, bytes.
    pub tmp_bytes: u64,
    /// What each may use.
    pub limits: Limits,
    /// How much may be done in them.
    pub profile: Profile,
}

impl Default for ContainerSpec {
    /// The limits' defaults, and 64 MiB of `/tmp`.
    fn default() -> Self {
        Self {
            hostname: "sock".into(),
            tmp_bytes: 64 << 20,
            limits: Limits::default(),
            profile: Profile::Lean,
        }
    }
}

/// Makes containers of one kind, on a [`Host`] of its own.
#[derive(Debug)]
pub struct Workshop {
    inner: Rc<RefCell<Inner>>,
}

/// An owned container. Dropping the handle ends it; the workshop takes its remains away when it is tended to.
#[derive(Debug)]
pub struct Container {
    inner: Rc<RefCell<Inner>>,
    /// Empty once it was destroyed.
    slot: Option<Slot>,
}

#[derive(Debug)]
struct Slot {
    ground: Ground,
    pair: Pair,
    made: Made,
    /// Where it is told its program; gone once it has one.
    runner: Option<OwnedFd>,
}

#[derive(Debug)]
struct Inner {
    host: Host,
    spec: ContainerSpec,
    target: usize,
    pairs: Pairs,
    next: u64,
    building: HashMap<u64, (Ground, Pair, OwnedFd)>,
    ready: VecDeque<Slot>,
    /// Those that were given to somebody, until they end.
    given: HashMap<u64, Given>,
    looked: Instant,
    /// How those ended whose end was reported and not asked for yet.
    ended: HashMap<u64, End>,
    /// Why some were not made, which nobody has been told yet.
    failures: VecDeque<String>,
    /// Dropped or failed, and not gone yet.
    leaving: Vec<Leaving>,
}

/// What is looked at of a container that somebody has.
#[derive(Debug)]
struct Given {
    group: Group,
    init: Pid,
    /// Where no controller keeps the limit of memory.
    watched: Option<Watched>,
    out_of_memory: bool,
}

#[derive(Debug)]
struct Leaving {
    ground: Ground,
    pair: Pair,
}

impl Workshop {
    /// On `host`, which gets no other user.
    pub fn new(host: Host, spec: ContainerSpec) -> Self {
        let inner = Inner {
            host,
            spec,
            target: 0,
            pairs: Pairs::default(),
            next: 1,
            building: HashMap::new(),
            ready: VecDeque::new(),
            given: HashMap::new(),
            looked: Instant::now(),
            ended: HashMap::new(),
            failures: VecDeque::new(),
            leaving: Vec::new(),
        };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// How many containers [`Workshop::tend`] keeps ready from now on; none at first.
    pub fn keep_ready(&self, count: usize) {
        self.inner.borrow_mut().target = count;
    }

    /// Does what is to be done and waits for nothing: takes away what is left of dropped containers, has as many made
    /// as are to be ready, and returns how many are. Where no controller keeps the limits of memory, this looks who went over, as waiting for a
    /// container does: who does neither for long calls it every 50 ms.
    pub fn tend(&self) -> Result<usize, CreateError> {
        let mut inner = self.inner.borrow_mut();
        while inner.has_event(Duration::ZERO)? {
            inner.take_event()?;
        }
        inner.watch();
        inner.failure()?;
        inner.bury()?;
        while inner.ready.len() + inner.building.len() < inner.target {
            inner.order()?;
        }
        Ok(inner.ready.len())
    }

    /// A container that waits for its program: one of those that are ready, else one that is made now.
    pub fn create(&self) -> Result<Container, CreateError> {
        let mut inner = self.inner.borrow_mut();
        let slot = loop {
            inner.failure()?;
            match inner.ready.pop_front() {
                Some(slot) => break slot,
                None if inner.building.is_empty() => inner.order()?,
                None => inner.take_event()?,
            }
        };
        let group = slot.ground.group.clone();
        let watched = (!inner.host.has_controller("memory")).then(|| Watched::new(&group));
        let given = Given { group, init: slot.made.init, watched, out_of_memory: false };
        inner.given.insert(slot.ground.number, given);
        drop(inner);
        Ok(Container { inner: Rc::clone(&self.inner), slot: Some(slot) })
    }

    /// Ends every container, also those whose handles are still held, and the host with them.
    pub fn stop(self) -> SysResult<()> {
        self.inner.borrow_mut().host.end()
    }
}

impl Inner {
    fn has_event(&self, patience: Duration) -> SysResult<bool> {
        let mut wanted = [PollFd::new(self.host.builder_socket(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut wanted, timeout) {
            Err(Errno::EINTR) => Ok(false),
            ready => ready.map(|count| count > 0).call("poll"),
        }
    }

    /// Waits for one, and keeps watch meanwhile.
    fn take_event(&mut self) -> SysResult<()> {
        while !self.has_event(self.patience())? {
            self.watch();
        }
        match self.host.event()? {
            Some(Event::Made { slot: number, made }) => {
                if let Some((ground, pair, runner)) = self.building.remove(&number) {
                    self.ready.push_back(Slot { ground, pair, made, runner: Some(runner) });
                }
                Ok(())
            }
            Some(Event::Failed { slot: number, error }) => {
                if let Some((ground, pair, _)) = self.building.remove(&number) {
                    self.ended.insert(number, End::Killed);
                    self.leaving.push(Leaving { ground, pair });
                }
                self.failures.push_back(error);
                Ok(())
            }
            // Nobody asks for that here.
            Some(Event::Opened { .. }) => Ok(()),
            Some(Event::Ended { slot: number, exit }) => {
                let given = self.given.remove(&number);
                let out_of_memory =
                    given.is_some_and(|given| given.out_of_memory || given.group.usage().oom_kills > 0);
                self.ended.insert(number, End::of(exit, out_of_memory));
                // One that died while it was ready: whoever holds a container asks for its end by itself.
                if let Some(at) = self.ready.iter().position(|slot| slot.ground.number == number) {
                    self.leaving.extend(self.ready.remove(at).map(Leaving::from));
                }
                Ok(())
            }
            None => Err(Errno::EPIPE).call("wait for the slot builder"),
        }
    }

    /// How long nobody has to be looked at, if nothing happens.
    fn patience(&self) -> Duration {
        if self.host.has_controller("memory") { Duration::MAX } else { INTERVAL }
    }

    /// Where no controller does it, ends what has more memory than it may.
    fn watch(&mut self) {
        if self.host.has_controller("memory") || self.looked.elapsed() < INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let bound = Bound { memory: self.spec.limits.memory, inherited: 0 };
        for given in self.given.values_mut() {
            let Some(watched) = &mut given.watched else { continue };
            if watched.is_over(&given.group, given.init, bound) {
                given.out_of_memory = true;
                // One that is gone needs no end.
                let _ = given.group.kill();
            }
        }
    }

    fn failure(&mut self) -> Result<(), CreateError> {
        self.failures.pop_front().map_or(Ok(()), |error| Err(CreateError::Inside(error)))
    }

    /// Has one made.
    fn order(&mut self) -> Result<(), CreateError> {
        let pair = self.pairs.take().ok_or(CreateError::NoIds)?;
        let number = self.next;
        self.next += 1;
        let (ground, runner) = self.lay(number, pair).inspect_err(|_| self.pairs.give_back(pair))?;
        self.building.insert(number, (ground, pair, runner));
        Ok(())
    }

    fn lay(&self, number: u64, pair: Pair) -> SysResult<(Ground, OwnedFd)> {
        let ground = self.host.ground(number, Within::Host, false)?;
        let ordered = || {
            let ContainerSpec { hostname, tmp_bytes, limits, profile } = &self.spec;
            ground.group.limit(&self.host.hierarchy, limits)?;
            let (ours, theirs) = builder::pair()?;
            let memory_by_kernel = self.host.has_controller("memory");
            let runner = Runner { role: profile.role(), limits: *limits, memory_by_kernel };
            let spec = SlotSpec {
                hostname: hostname.clone(),
                tmp_bytes: *tmp_bytes,
                var: false,
                nesting: Nesting::Forbidden,
                profile: *profile,
            };
            let base = self.host.ids.block(0);
            let map = (pair.map(base), pair.both(base));
            self.host.build(&ground, map, None, (spec, Payload::Runner(runner), &[theirs.as_fd()]))?;
            Ok(ours)
        };
        match ordered() {
            Ok(runner) => Ok((ground, runner)),
            Err(error) => {
                self.host.clear(&ground)?;
                Err(error)
            }
        }
    }

    /// Waits until the container `number` has ended; not beyond `until`.
    fn wait(&mut self, number: u64, until: Option<Instant>) -> SysResult<Option<End>> {
        loop {
            if let Some(end) = self.ended.get(&number) {
                return Ok(Some(*end));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if self.has_event(left.map_or(self.patience(), |left| left.min(self.patience())))? {
                self.take_event()?;
            } else if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.watch();
        }
    }

    /// Takes away what is left of the ended ones that nobody holds any more.
    fn bury(&mut self) -> SysResult<()> {
        let mut failed = Ok(());
        for left in std::mem::take(&mut self.leaving) {
            let is_gone = failed.is_ok() && self.ended.contains_key(&left.ground.number);
            match if is_gone { self.host.clear(&left.ground) } else { Ok(false) } {
                Ok(true) => {
                    self.ended.remove(&left.ground.number);
                    self.pairs.give_back(left.pair);
                }
                Ok(false) => self.leaving.push(left),
                Err(error) => {
                    self.leaving.push(left);
                    failed = Err(error);
                }
            }
        }
        failed
    }

    fn is_leaving(&self, number: u64) -> bool {
        self.leaving.iter().any(|left| left.ground.number == number)
    }
}

impl From<Slot> for Leaving {
    fn from(Slot { ground, pair, .. }: Slot) -> Self {
        Self { ground, pair }
    }
}

impl Slot {
    fn kill(&self) -> SysResult<()> {
        match sys::pidfd_signal(self.made.pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => self.ground.group.kill(),
            Err(errno) => Err(errno).call("pidfd_send_signal"),
        }
    }
}

impl Container {
    fn slot(&self) -> SysResult<&Slot> {
        self.slot.as_ref().ok_or(Errno::ESRCH).call("use a destroyed container")
    }

    /// Starts `program` with `fds` as its descriptors 0, 1, 2…; returns once it is executed.
    pub fn start(&mut self, program: &Program, fds: &[BorrowedFd<'_>]) -> Result<(), CreateError> {
        let slot = self.slot.as_mut().ok_or(Errno::ESRCH).call("use a destroyed container")?;
        let runner = slot.runner.take().ok_or(CreateError::Started)?;
        let text = serde_json::to_vec(program).map_err(|_| Errno::EINVAL).call("encode")?;
        sys::send(runner.as_fd(), &text, fds).call("sendmsg to the container")?;
        let mut reason = [0; 256];
        match sys::receive(runner.as_fd(), &mut reason) {
            // The exec closed its end; so does a death, of which wait() tells.
            Ok((0, _)) | Err(Errno::ECONNRESET) => Ok(()),
            Ok((length, _)) => Err(CreateError::Start {
                program: program.argv.first().cloned().unwrap_or_default(),
                reason: String::from_utf8_lossy(&reason[..length]).into_owned(),
            }),
            Err(errno) => Err(errno).call("recvmsg from the container")?,
        }
    }

    /// Stops every process where it is; returns when they stand still.
    pub fn pause(&self) -> SysResult<()> {
        self.slot()?.ground.group.freeze(true)
    }

    /// Lets them go on.
    pub fn resume(&self) -> SysResult<()> {
        self.slot()?.ground.group.freeze(false)
    }

    /// What it has and uses now.
    pub fn stats(&self) -> SysResult<Stats> {
        Ok(self.slot()?.ground.group.stats())
    }

    /// Ends every process in it; [`Container::wait`] then returns.
    pub fn kill(&self) -> SysResult<()> {
        self.slot()?.kill()
    }

    /// A descriptor that becomes readable when the container has ended.
    pub fn pidfd(&self) -> SysResult<BorrowedFd<'_>> {
        Ok(self.slot()?.made.pidfd.as_fd())
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> SysResult<End> {
        let number = self.slot()?.ground.number;
        loop {
            if let Some(end) = self.inner.borrow_mut().wait(number, None)? {
                return Ok(end);
            }
        }
    }

    /// Waits for the end, and no longer than `time`; `None` when that is up, and it goes on.
    pub fn wait_for(&mut self, time: Duration) -> SysResult<Option<End>> {
        let number = self.slot()?.ground.number;
        self.inner.borrow_mut().wait(number, Instant::now().checked_add(time))
    }

    /// Ends it and takes away everything that it had. What the kernel does not let go of within 10 s is named; it is taken
    /// away by a later [`Workshop::tend`], should it end.
    pub fn destroy(mut self) -> Result<(), DestroyError> {
        let Some(slot) = self.slot.take() else { return Ok(()) };
        let (begin, mut inner, number) = (Instant::now(), self.inner.borrow_mut(), slot.ground.number);
        inner.given.remove(&number);
        let killed = if inner.ended.contains_key(&number) { Ok(()) } else { slot.kill() };
        let group = slot.ground.group.clone();
        // From here on it is the workshop's, whatever fails.
        inner.leaving.push(slot.into());
        killed?;
        loop {
            inner.bury()?;
            if !inner.is_leaving(number) {
                return Ok(());
            }
            let left = PATIENCE.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(DestroyError::Stuck(group.processes()?.into_iter().map(describe).collect()));
            }
            if inner.ended.contains_key(&number) {
                cgroup::pause(begin.elapsed())?;
            } else if inner.has_event(left)? {
                inner.take_event()?;
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            // It may be gone already, and that is what is wanted.
            let _ = slot.kill();
            // Only `stop` holds it for longer than a call, and after that nothing is left to do.
            if let Ok(mut inner) = self.inner.try_borrow_mut() {
                inner.leaving.push(slot.into());
            }
        }
    }
}
