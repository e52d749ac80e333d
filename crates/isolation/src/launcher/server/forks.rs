//! Zygotes' pools, and instances out of them.
//!
//! ```text
//! builder ─▶ slot ─▶ ready ──────── fork on demand ───────▶ instance
//!                      └─▶ spare ── given its function ──────▶ instance
//! ```
//! A slot is a finished container without a process. A spare has one, forked from the zygote ahead of need: it has entered
//! and dropped everything and was looked at, so that a request costs it nothing but its limits and the mount of its function's files. Both
//! are made one by one while nothing else is asked for; requests that find neither wait for slots that are made for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::pipe2;

use super::end::{Dying, Ids};
use super::forking::{Forking, Wanted};
use super::spares::SPARE;
use super::start::{Building, Owner};
use super::{Server, Slot, Zygote, io_text, stream_pair, text};
use crate::cgroup::Limits;
use crate::error::Context;
use crate::host::{Parent, Within};
use crate::init::{Exit, Payload};
use crate::launcher::wire::{Files, ZygoteId};
use crate::plan::{Nesting, Profile};
use crate::sys;

/// Children that a zygote is asked for at a time. It forks them one by one, and the time that each may take begins when it is asked.
const MAX_FORKING: usize = 8;

/// The most requests that wait for a slot of one zygote: beyond that, the gateway is told to come back.
const MAX_WAITING: usize = 4096;

/// No instance of it is about to end, either.
const NO_IDS: &str = "no user ids are left for another slot of the zygote";

impl Zygote {
    /// Takes the slot with this number, which is dead, out of its pool.
    pub(super) fn lose_slot(&mut self, number: u64) -> Option<Slot> {
        let at = self.ready.iter().position(|slot| slot.ground.number == number)?;
        self.ready.remove(at)
    }

    /// Takes the slot of a spare with this number, which is dead, out of the spares.
    pub(super) fn lose_spare(&mut self, number: u64) -> Option<Slot> {
        let at = self.spares.iter().position(|spare| spare.slot.ground.number == number)?;
        self.spares.remove(at).map(|spare| spare.slot)
    }
}

impl Server {
    /// In a lull: takes every pool that is not full one step on.
    pub(super) fn refill_all(&mut self) {
        self.refilled = Instant::now();
        for zygote in std::mem::take(&mut self.wanting) {
            self.shed(zygote);
            if let Err(error) = self.make_spare(zygote).and_then(|()| self.refill(zygote)) {
                eprintln!("sock: launcher: zygote {zygote}: {error}");
            }
        }
    }

    fn make_spare(&mut self, zygote: ZygoteId) -> Result<(), String> {
        let forking = self.forking.values().any(|child| child.zygote == zygote);
        let Some(state) = self.zygotes.get_mut(&zygote) else { return Ok(()) };
        if forking || state.spares.len() >= state.wanted_spares as usize {
            return Ok(());
        }
        match state.ready.pop_front() {
            Some(slot) => self.start_child(zygote, slot, None),
            None => Ok(()),
        }
    }

    /// Makes slots for the requests that wait; when none does, one for the pool of `zygote`, if it is not full.
    fn refill(&mut self, zygote: ZygoteId) -> Result<(), String> {
        loop {
            let Some(state) = self.zygotes.get_mut(&zygote) else { return Ok(()) };
            let Some(init) = state.init.as_ref().filter(|_| state.admitted) else { return Ok(()) };
            let building = state.building as usize;
            let pooling = building == 0 && state.ready.len() < state.target as usize;
            let wanted = state.waiting.len().saturating_sub(state.ready.len()) + usize::from(pooling);
            if building >= wanted {
                return Ok(());
            }
            let [user, pids] = [&init.made.namespaces[0], &init.made.namespaces[1]].map(OwnedFd::try_clone);
            let (user, pids) = (user.map_err(io_text)?, pids.map_err(io_text)?);
            let Some(family) = &init.ground.family else { return Ok(()) };
            let (family, uid) = (family.clone(), state.span.first);
            let Some(pair) = state.pairs.take() else {
                // Those that wait for ids are served when there are some.
                let pooled = state.waiting.is_empty();
                return if pooled || self.frees_ids(zygote) { Ok(()) } else { Err(NO_IDS.into()) };
            };
            let within = Within::Family(&family, uid);
            let (ground, ()) = self.ground(within, Ids::Within(zygote, pair), |server, ground| {
                let parent = Parent { user: user.as_fd(), pids: pids.as_fd() };
                let spec = server.spec(Nesting::Forbidden, Profile::Lean);
                // Relative to the zygote's user namespace.
                let payload = Payload::Later { skipped: 0 };
                server
                    .host
                    .build(ground, (pair.map(0), pair.both(uid)), Some(parent), (spec, payload, &[]))
                    .map_err(text)
            })?;
            if let Some(state) = self.zygotes.get_mut(&zygote) {
                state.building += 1;
            }
            let (number, owner) = (ground.number, Owner::Slot(zygote));
            let building = Building { ground, pair: Some(pair), owner, answer: None, expected: None };
            self.building.insert(number, building);
        }
    }

    pub(super) fn fork(
        &mut self,
        id: u64,
        zygote: ZygoteId,
        files: Files,
        limits: Limits,
    ) -> Result<(), String> {
        let mut state =
            self.zygotes.get_mut(&zygote).ok_or_else(|| format!("there is no zygote {zygote}"))?;
        let wanted = Wanted { id, files, limits };
        while let Some(spare) = state.spares.pop_front() {
            self.wanting.insert(zygote);
            if spare.is_alone() {
                self.give(zygote, spare, wanted, true);
                return Ok(());
            }
            let ids = Ids::Within(zygote, spare.slot.pair);
            self.let_die(spare.slot, ids);
            state = self.zygotes.get_mut(&zygote).ok_or_else(|| format!("there is no zygote {zygote}"))?;
        }
        // A spare that is being made is as good as a child that would be forked now.
        let free = |child: &&mut Forking| child.zygote == zygote && child.wanted.is_none();
        if let Some(child) = self.forking.values_mut().find(free) {
            child.wanted = Some(wanted);
            return Ok(());
        }
        if state.waiting.len() >= MAX_WAITING {
            return Err(format!("{MAX_WAITING} requests wait for zygote {zygote} already"));
        }
        state.waiting.push_back(wanted);
        self.serve_waiting(zygote);
        Ok(())
    }

    /// Forks for the requests that wait, as far as there are slots, and has more made for the others.
    pub(super) fn serve_waiting(&mut self, zygote: ZygoteId) {
        loop {
            let Some(state) = self.zygotes.get_mut(&zygote) else { return };
            if state.waiting.is_empty() {
                self.wanting.insert(zygote);
                return;
            }
            if self.forking.values().filter(|child| child.zygote == zygote).count() >= MAX_FORKING {
                break;
            }
            let Some(slot) = state.ready.pop_front() else { break };
            let Some(wanted) = state.waiting.pop_front() else { break };
            let id = wanted.id;
            if let Err(error) = self.start_child(zygote, slot, Some(wanted)) {
                self.answer(id, Err(error), Vec::new());
            }
        }
        if let Err(error) = self.refill(zygote) {
            eprintln!("sock: launcher: zygote {zygote}: {error}");
            self.refuse_waiting(zygote, &error);
        }
    }

    /// Whoever waits for a slot that nobody makes is told why there is none, rather than being kept waiting.
    pub(super) fn refuse_waiting(&mut self, zygote: ZygoteId, error: &str) {
        let Some(state) = self.zygotes.get_mut(&zygote) else { return };
        let refused = state.waiting.len().saturating_sub(state.building as usize + state.ready.len());
        let refused: Vec<_> = state.waiting.drain(..refused).collect();
        for Wanted { id, .. } in refused {
            self.answer(id, Err(error.to_owned()), Vec::new());
        }
    }

    /// Has the zygote fork itself into `slot`, for the request that is given or for one to come.
    fn start_child(&mut self, zygote: ZygoteId, slot: Slot, wanted: Option<Wanted>) -> Result<(), String> {
        match self.ask_for_child(zygote, &slot, wanted.as_ref()) {
            Ok(child) => {
                let number = slot.ground.number;
                self.forking.insert(number, Forking::new(zygote, slot, child, wanted));
                Ok(())
            }
            // A spare is not wanted again until somebody asks: a zygote that takes none would be offered slots for ever.
            Err(error) => {
                let ids = Ids::Within(zygote, slot.pair);
                self.let_die(slot, ids);
                Err(error)
            }
        }
    }

    /// Returns the gateway's ends of the child's socket and log, and the inode number of its own end of the former.
    fn ask_for_child(
        &self,
        zygote: ZygoteId,
        slot: &Slot,
        wanted: Option<&Wanted>,
    ) -> Result<([OwnedFd; 2], u64), String> {
        // A spare's own limits come with its function; until then it only waits.
        let limits = wanted.map_or(SPARE, |wanted| wanted.limits);
        slot.ground.group.limit(&self.host.hierarchy, &limits).map_err(text)?;
        let (socket, theirs) = stream_pair().map_err(text)?;
        let (log, log_theirs) = pipe2(OFlag::O_CLOEXEC).call("pipe2").map_err(text)?;
        let number = fstat(&theirs).call("fstat").map_err(text)?.st_ino;
        let kind = if wanted.is_some() { "fork" } else { "spare" };
        self.send_fork(zygote, kind, slot, &[theirs, log_theirs])?;
        Ok(([socket, log], number))
    }

    /// Asks `zygote` to fork itself into `slot`, as a `kind` of child that gets `fds`.
    pub(super) fn send_fork(
        &self,
        zygote: ZygoteId,
        kind: &str,
        slot: &Slot,
        fds: &[OwnedFd],
    ) -> Result<(), String> {
        let entrance = self.host.entrance(&slot.ground.group).map_err(text)?;
        let mut all: Vec<BorrowedFd<'_>> = slot.made.namespaces.iter().map(AsFd::as_fd).collect();
        all.push(entrance.as_fd());
        all.extend(fds.iter().map(AsFd::as_fd));
        let channel = self.zygotes.get(&zygote).map(|zygote| zygote.fork_channel.as_fd());
        let channel = channel.ok_or_else(|| format!("there is no zygote {zygote}"))?;
        // Without waiting: a zygote that takes no more requests must not hold up all others.
        let message = format!("{kind} {}", slot.ground.number);
        sys::send(channel, message.as_bytes(), &all).call("sendmsg to the zygote").map_err(text)
    }

    /// Takes note of what `zygote` tells of its children that ended. Kernels before 6.15 tell it nobody but the parent; and
    /// since a zygote may be anybody's code, its word is news for people and nothing else.
    pub(super) fn hear(&mut self, zygote: ZygoteId) {
        // What is left is read when the next one has ended; it may be sending without end.
        const MOST: usize = 1024;
        let mut buffer = [0; 64];
        for _ in 0..MOST {
            let Some(channel) = self.zygotes.get(&zygote).map(|zygote| zygote.fork_channel.as_fd()) else {
                return;
            };
            let Ok((length @ 1.., _)) = sys::receive(channel, &mut buffer) else { return };
            let Some((number, status)) = ended(&buffer[..length]) else { continue };
            let exit = Some(Exit::from_status(status));
            if let Some(instance) = self.instances.get_mut(&number).filter(|one| one.zygote == Some(zygote)) {
                instance.exit = exit;
            }
            if let Some(Dying { ids: Ids::Within(parent, _), farewell: Some(farewell), .. }) =
                self.dying.get_mut(&number)
                && *parent == zygote
            {
                farewell.exit = exit;
            }
        }
    }
}

/// Of `ended NUMBER STATUS`: the slot's number, and the status as wait(2) has it.
fn ended(message: &[u8]) -> Option<(u64, i32)> {
    let text = std::str::from_utf8(message).ok()?;
    let (number, status) = text.strip_prefix("ended ")?.split_once(' ')?;
    let status = status.parse().ok().filter(|status| (0..=0xffff).contains(status))?;
    Some((number.parse().ok()?, status))
}

#[cfg(test)]
mod tests {
    use super::ended;

    #[test]
    fn what_a_zygote_tells_is_understood_or_ignored() {
        assert_eq!(ended(b"ended 17 768"), Some((17, 768)));
        for odd in [
            "",
            "ended",
            "ended 17",
            "ended -1 0",
            "ended 17 -1",
            "ended 17 65536",
            "ended 17 1 2",
            "other 1 2",
        ] {
            assert_eq!(ended(odd.as_bytes()), None, "{odd}");
        }
    }
}
