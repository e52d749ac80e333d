//! Children of zygotes, from when they are asked for until they are known to be confined.
//!
//! A child says that it has dropped everything by five bytes on its socket, whose other end waits here until then. It is looked at,
//! joins the spares or goes to the request that waits for it, and its zygote may put no more processes into its cgroup. So what a request
//! gets has been looked at; of a spare that was long before, since what a process gave up it cannot get back.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::{Pid, write};

use super::end::{Ids, has_ended};
use super::{Instance, Server, Slot, text};
use crate::cgroup::{Activity, Limits};
use crate::error::Context;
use crate::launcher::wire::{Files, InstanceId, Reply, ZygoteId};
use crate::{plan, sys, verify};

/// How long a child may take until it says something: a machine that is in need of memory is slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// The length of what it says: a frame without contents.
const HELLO: usize = 5;

/// Milliseconds until a child is looked at again in whose container there is one process too many, the last of them again and again: a busy
/// machine may not have let the helper end yet that forked it.
const AGAIN: [u64; 4] = [1, 2, 5, 20];

/// What a child said before it failed is told up to here, bytes.
const LAST_WORDS: u64 = 1 << 10;

/// When a child was first to be looked at, and when it is to be again.
pub(super) struct Looks {
    begun: Instant,
    again: Option<Instant>,
    failures: usize,
}

impl Looks {
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), again: None, failures: 0 }
    }

    /// When something is to be done even if the child says nothing.
    pub(super) fn due(&self) -> Instant {
        self.again.unwrap_or(self.begun + PATIENCE)
    }

    /// Notes that there was one process too many; whether it is worth looking again.
    pub(super) fn crowded(&mut self) -> bool {
        let now = Instant::now();
        let pause = AGAIN[self.failures.min(AGAIN.len() - 1)];
        self.again = Some(now + Duration::from_millis(pause));
        self.failures += 1;
        now < self.begun + PATIENCE
    }
}

/// A request that a child is for.
pub(super) struct Wanted {
    pub(super) id: u64,
    pub(super) files: Files,
    pub(super) limits: Limits,
}

/// A child that was asked for.
pub(super) struct Forking {
    pub(super) zygote: ZygoteId,
    pub(super) slot: Slot,
    /// The gateway's ends of its socket and its log.
    pub(super) fds: [OwnedFd; 2],
    /// The inode number of its own end of the socket.
    pub(super) socket: u64,
    /// The request that waits for it, if any does.
    pub(super) wanted: Option<Wanted>,
    /// Whether none did when it was asked for.
    pub(super) ahead: bool,
    pub(super) looks: Looks,
}

/// A spare: a child that was looked at and waits for a function.
pub(super) struct Spare {
    pub(super) slot: Slot,
    fds: [OwnedFd; 2],
    looked: Looked,
    /// What it took of the processors, once that was looked at.
    pub(super) activity: Option<Activity>,
    /// It stands still until it is given its function.
    pub(super) frozen: bool,
}

/// What looking at a process gave.
pub(super) struct Looked {
    pub(super) checked: verify::Checked,
    /// Its pidfd, what freezes it, and what tells of its memory.
    pub(super) fds: [OwnedFd; 3],
}

/// Looks at the process in `slot`, which `processes` are in.
pub(super) fn look(slot: &Slot, processes: &[Pid], expected: &verify::Expected) -> Result<Looked, Unfit> {
    let (checked, status) = verify::check(processes, slot.made.init, expected)?;
    let pidfd = checked.pidfd.try_clone().map_err(|error| Unfit::Ever(error.to_string()))?;
    let freezer = slot.ground.group.freezer()?;
    let memory = slot.ground.group.memory_peak().unwrap_or(status);
    Ok(Looked { checked, fds: [pidfd, freezer, memory] })
}

impl Slot {
    /// Whether there are more processes in it than its PID 1 and another.
    pub(super) fn is_crowded(&self, processes: &[Pid]) -> bool {
        processes.iter().filter(|pid| **pid != self.made.init).count() > 1
    }
}

impl Spare {
    pub(super) fn freeze(&mut self) {
        self.frozen = write(&self.looked.fds[1], b"1").is_ok();
    }

    /// Whether it is still what was looked at, and no more: it may have ended, or made processes that its function's limits would not hold for.
    pub(super) fn is_alone(&self) -> bool {
        let Looked { checked, .. } = &self.looked;
        let known = [self.slot.made.init, checked.pid];
        let processes = self.slot.ground.group.processes();
        processes.is_ok_and(|all| all.iter().all(|pid| known.contains(pid))) && !has_ended(&checked.pidfd)
    }
}

impl Forking {
    pub(super) fn new(
        zygote: ZygoteId,
        slot: Slot,
        (fds, socket): ([OwnedFd; 2], u64),
        wanted: Option<Wanted>,
    ) -> Self {
        let ahead = wanted.is_none();
        Self { zygote, slot, fds, socket, wanted, ahead, looks: Looks::begin() }
    }

    /// The descriptor that is readable when it has something to say; none while that is known already.
    pub(super) fn speaks(&self) -> Option<BorrowedFd<'_>> {
        self.looks.again.is_none().then(|| self.fds[0].as_fd())
    }

    fn last_words(&self) -> String {
        let mut said = Vec::new();
        let log = self.fds[1].try_clone().map(std::fs::File::from);
        if fcntl(&self.fds[1], FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok()
            && let Ok(log) = log
        {
            // It ends with an error where there is no more for now.
            let _ = log.take(LAST_WORDS).read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).trim().to_owned()
    }
}

impl Server {
    /// Looks at the children in the slots with these numbers, which have said something, and at those whose time has come.
    pub(super) fn look_at_forking(&mut self, mut numbers: Vec<u64>) {
        let now = Instant::now();
        numbers
            .extend(self.forking.iter().filter(|(_, one)| one.looks.due() <= now).map(|(number, _)| *number));
        for number in numbers {
            let Some(mut child) = self.forking.remove(&number) else { continue };
            match self.look_at_child(&child) {
                Ok(looked) => self.take_child(child, looked),
                Err(Unfit::Crowded) if child.looks.crowded() => {
                    self.forking.insert(number, child);
                }
                Err(unfit) => self.give_up_child(child, &unfit),
            }
        }
        self.ask_for_more();
    }

    /// Of zygotes that may be asked for another child.
    pub(super) fn ask_for_more(&mut self) {
        let waiting = self.zygotes.iter().filter(|(_, zygote)| !zygote.waiting.is_empty());
        for zygote in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.serve_waiting(zygote);
        }
    }

    fn look_at_child(&self, child: &Forking) -> Result<Looked, Unfit> {
        let Forking { zygote, slot, .. } = child;
        if child.looks.again.is_none() {
            // Read here: for who reads it, the kernel wakes the child, to tell it that there is room again.
            let mut hello = [0; HELLO];
            match recv(child.fds[0].as_raw_fd(), &mut hello, MsgFlags::MSG_DONTWAIT) {
                Ok(HELLO) => {}
                Ok(0) => return Err(Unfit::Ever("it is gone".to_owned())),
                Ok(_) => return Err(Unfit::Ever("it says something else".to_owned())),
                Err(_) => return Err(Unfit::Silent),
            }
        }
        let base = self.zygotes.get(zygote).map_or(0, |zygote| zygote.span.first);
        let expected = verify::Expected {
            id: slot.pair.outside(base),
            // The zygote's filter, and its own.
            filters: 2,
            namespaces: slot.inodes.clone(),
            socket: Some(child.socket),
        };
        // First: what its zygote starts there from now on would not be seen.
        slot.ground.group.let_join(0)?;
        let processes = slot.ground.group.processes()?;
        if slot.is_crowded(&processes) {
            return Err(Unfit::Crowded);
        }
        look(slot, &processes, &expected)
    }

    /// A child passed.
    fn take_child(&mut self, child: Forking, looked: Looked) {
        let Forking { zygote, mut slot, fds, wanted, ahead, .. } = child;
        slot.made.namespaces.clear();
        let spare = Spare { slot, fds, looked, activity: None, frozen: false };
        // As long as there was this one, no spare was begun.
        self.wanting.insert(zygote);
        match wanted {
            Some(wanted) => self.give(zygote, spare, wanted, ahead),
            None => {
                if let Some(state) = self.zygotes.get_mut(&zygote) {
                    state.spares.push_back(spare);
                }
            }
        }
    }

    /// There will be nothing of a child. A spare is not replaced until somebody asks: of a zygote whose children die, one would be forked
    /// after the other for ever.
    pub(super) fn give_up_child(&mut self, child: Forking, unfit: &Unfit) {
        let said = child.last_words();
        let Forking { zygote, slot, wanted, .. } = child;
        let number = slot.ground.number;
        // It may be anything, and is not to look like lines of ours.
        let said = if said.is_empty() { said } else { format!("; its log: {said:?}") };
        let why = format!("a child of zygote {zygote} did not become instance {number}: {unfit}{said}");
        if wanted.is_some() {
            self.wanting.insert(zygote);
        }
        match wanted {
            Some(Wanted { id, .. }) if matches!(unfit, Unfit::Silent) => {
                self.answer(id, Ok(Reply::Silent), Vec::new())
            }
            Some(Wanted { id, .. }) => self.answer(id, Err(why), Vec::new()),
            None => eprintln!("sock: launcher: {why}"),
        }
        let ids = Ids::Within(zygote, slot.pair);
        self.let_die(slot, ids);
    }

    /// Answers a request with a process that was looked at, which gets its limits and its files.
    pub(super) fn give(&mut self, zygote: ZygoteId, spare: Spare, wanted: Wanted, ahead: bool) {
        let Spare { slot, fds, looked, frozen, .. } = spare;
        let Wanted { id, files, limits } = wanted;
        let number: InstanceId = slot.ground.number;
        if let Err(error) = self.furnish(&slot, &looked.checked, (&files, &limits), ahead) {
            let ids = Ids::Within(zygote, slot.pair);
            self.let_die(slot, ids);
            return self.answer(id, Err(error), Vec::new());
        }
        if frozen {
            // Where that fails it does not answer, and is ended for that.
            let _ = write(&looked.fds[1], b"0");
        }
        let base = self.zygotes.get(&zygote).map_or(0, |zygote| zygote.span.first);
        let mut instance = Instance::new(slot, Some(zygote), limits, (base, 2));
        instance.checked = Some(looked.checked);
        self.instances.insert(number, instance);
        let fds = fds.into_iter().chain(looked.fds).collect();
        self.answer(id, Ok(Reply::Instance { instance: number, spare: ahead }), fds);
    }

    fn furnish(
        &self,
        slot: &Slot,
        checked: &verify::Checked,
        (files, limits): (&Files, &Limits),
        ahead: bool,
    ) -> Result<(), String> {
        if ahead {
            slot.ground.group.limit(&self.host.hierarchy, limits).map_err(text)?;
        }
        // What it has still are the zygote's.
        let by_kernel = self.host.has_controller("memory");
        for (name, number, value) in plan::resource_limits(limits, by_kernel, checked.data) {
            sys::set_limit(checked.pid, number, value).call_on("prlimit", name).map_err(text)?;
        }
        self.show(&slot.ground, files)
    }
}

/// Why a child is not to be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// In all its time.
    #[error("it said nothing for {} s", PATIENCE.as_secs())]
    Silent,
    /// It may be alone in a moment.
    #[error("it is not alone")]
    Crowded,
    #[error("{0}")]
    Ever(String),
    #[error(transparent)]
    Unconfined(#[from] verify::Unconfined),
    #[error(transparent)]
    Syscall(#[from] crate::SyscallError),
}
