//! Zygotes and single commands: asked of the slot builder, and taken over from it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::end::{Dying, Ids};
use super::forking::{Looks, Unfit, Wanted};
use super::{Instance, Server, Slot, Zygote, fork_channel, io_text, null, stream_pair, text};
use crate::builder::{Event, Made};
use crate::cgroup::Limits;
use crate::error::Context;
use crate::host::{Ground, Parent, Within};
use crate::ids::Pair;
use crate::init::{Command, Payload};
use crate::launcher::wire::{Files, ForkZygote, InstanceId, MAX_SLOTS, Reply, StartZygote, ZygoteId};
use crate::plan::{Nesting, Profile};
use crate::verify;

pub(super) enum Owner {
    Zygote(ZygoteId),
    /// With its ends of the fork channel, of its log and of its control socket.
    ForkedZygote(ZygoteId, [OwnedFd; 3]),
    Slot(ZygoteId),
    Alone(InstanceId),
}

/// A forked zygote that says that it has dropped everything.
pub(super) struct Admitting {
    /// The request that waits for it.
    pub(super) id: u64,
    looks: Looks,
    /// Its own, once it was looked at and its container is being opened.
    pidfd: Option<OwnedFd>,
}

impl Admitting {
    /// When it is looked at again, unless it has passed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pidfd.is_none().then(|| self.looks.due())
    }
}

/// A container that the builder was asked for.
pub(super) struct Building {
    pub(super) ground: Ground,
    pub(super) pair: Option<Pair>,
    pub(super) owner: Owner,
    /// The request that waits for it, and what its answer carries.
    pub(super) answer: Option<(u64, Vec<OwnedFd>)>,
    pub(super) expected: Option<(Limits, u32)>,
}

impl Server {
    /// A new ground, furnished. Where that fails the ground goes again, and the ids with it.
    pub(super) fn ground<T>(
        &mut self,
        within: Within<'_>,
        ids: Ids,
        furnish: impl FnOnce(&Self, &Ground) -> Result<T, String>,
    ) -> Result<(Ground, T), String> {
        let number = self.number();
        let ground =
            self.host.ground(number, within, true).map_err(text).inspect_err(|_| self.give_back(ids))?;
        match furnish(self, &ground) {
            Ok(furnished) => Ok((ground, furnished)),
            Err(error) => {
                self.dying.insert(number, Dying { ground, ids, ended: true, farewell: None });
                Err(error)
            }
        }
    }

    pub(super) fn start_zygote(&mut self, id: u64, start: StartZygote) -> Result<(), String> {
        let StartZygote { zygote, files, command, slots } = start;
        if self.zygotes.contains_key(&zygote) {
            return Err(format!("zygote {zygote} exists already"));
        }
        let span = self.spans.pop().ok_or("no user ids are left for another zygote")?;
        let limits = command.limits;
        let (ground, (channel, fds)) =
            self.ground(Within::NewFamily, Ids::Zygote(None, span), |server, ground| {
                server.show(ground, &files)?;
                let (channel, theirs, number) = fork_channel().map_err(text)?;
                let (control, control_theirs) = stream_pair().map_err(text)?;
                let (log, log_theirs) = pipe2(OFlag::O_CLOEXEC).call("pipe2").map_err(text)?;
                let null = null().map_err(text)?;
                let fds = [&null, &log_theirs, &log_theirs, &theirs, &control_theirs].map(AsFd::as_fd);
                let memory_by_kernel = server.host.has_controller("memory");
                let command = Command { memory_by_kernel, ..command };
                let what = (server.spec(Nesting::Slots, Profile::Lean), Payload::Command(command), &fds[..]);
                let map = (span.map(None), [span.first; 2]);
                server.host.build(ground, map, None, what).map_err(text)?;
                Ok(((channel, number), vec![control, log]))
            })?;
        let (number, owner) = (ground.number, Owner::Zygote(zygote));
        let building = Building { ground, pair: None, owner, answer: Some((id, fds)), expected: None };
        self.building.insert(number, building);
        self.zygotes.insert(zygote, Zygote::new(span, channel, slots.min(MAX_SLOTS), limits));
        Ok(())
    }

    /// Has a slot made for a zygote that another one shall fork itself into.
    pub(super) fn fork_zygote(&mut self, id: u64, fork: ForkZygote) -> Result<(), String> {
        let ForkZygote { zygote, parent, files, limits, slots } = fork;
        if self.zygotes.contains_key(&zygote) {
            return Err(format!("zygote {zygote} exists already"));
        }
        let state = self.zygotes.get_mut(&parent).ok_or_else(|| format!("there is no zygote {parent}"))?;
        let init = state.init.as_ref().filter(|_| state.admitted);
        let init = init.ok_or_else(|| format!("zygote {parent} is still being made"))?;
        let family = init.ground.family.clone().ok_or_else(|| format!("zygote {parent} has no family"))?;
        let [user, pids] = [&init.made.namespaces[0], &init.made.namespaces[1]].map(OwnedFd::try_clone);
        let (user, pids) = (user.map_err(io_text)?, pids.map_err(io_text)?);
        let (above, depth) = (state.span, state.depth + 1);
        let span = state.children.take();
        let span = span.ok_or_else(|| format!("no user ids are left beneath zygote {parent}"))?;
        let within = Within::NewFamilyIn(&family, above.first);
        let (ground, (channel, theirs, fds)) =
            self.ground(within, Ids::Zygote(Some(parent), span), |server, ground| {
                server.show(ground, &files)?;
                let (channel, theirs, number) = fork_channel().map_err(text)?;
                let (control, control_theirs) = stream_pair().map_err(text)?;
                let (log, log_theirs) = pipe2(OFlag::O_CLOEXEC).call("pipe2").map_err(text)?;
                let within = Parent { user: user.as_fd(), pids: pids.as_fd() };
                // Another number than every zygote above it, the first of which has used up one.
                let payload = Payload::Later { skipped: depth + 1 };
                let map = (span.map(Some(above)), [span.first; 2]);
                let what = (server.spec(Nesting::Forbidden, Profile::Lean), payload, &[][..]);
                server.host.build(ground, map, Some(within), what).map_err(text)?;
                Ok(((channel, number), [theirs, log_theirs, control_theirs], vec![control, log]))
            })?;
        let (number, owner) = (ground.number, Owner::ForkedZygote(zygote, theirs));
        let building = Building { ground, pair: None, owner, answer: Some((id, fds)), expected: None };
        self.building.insert(number, building);
        let state = Zygote::new(span, channel, slots.min(MAX_SLOTS), limits);
        self.zygotes.insert(zygote, Zygote { parent: Some(parent), depth, ..state });
        Ok(())
    }

    /// Looks at a forked zygote, which said that it has dropped everything, and has its container opened.
    pub(super) fn admit(&mut self, id: u64, zygote: ZygoteId) -> Result<(), String> {
        let state = self.zygotes.get_mut(&zygote).ok_or_else(|| format!("there is no zygote {zygote}"))?;
        let Some(slot) = state.init.as_ref().filter(|_| !state.admitted && state.admitting.is_none()) else {
            return Err(format!("zygote {zygote} does not wait for that"));
        };
        // First: what its parent starts there from now on would not be seen.
        slot.ground.group.let_join(0).map_err(text)?;
        state.admitting = Some(Admitting { id, looks: Looks::begin(), pidfd: None });
        self.look_at_zygote(zygote);
        Ok(())
    }

    /// Looks again at forked zygotes that were not alone and whose time has come.
    pub(super) fn look_at_zygotes(&mut self) {
        let now = Instant::now();
        let again = |state: &Zygote| state.admitting.as_ref().and_then(Admitting::due);
        let due = self.zygotes.iter().filter(|(_, state)| again(state).is_some_and(|at| at <= now));
        for zygote in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.look_at_zygote(zygote);
        }
    }

    /// Of one that was not alone yet there is no answer.
    fn look_at_zygote(&mut self, zygote: ZygoteId) {
        let looked = self.open_zygote(zygote);
        let Some(admitting) = self.zygotes.get_mut(&zygote).and_then(|state| state.admitting.as_mut()) else {
            return;
        };
        match looked {
            Ok(pidfd) => admitting.pidfd = Some(pidfd),
            Err(Unfit::Crowded) if admitting.looks.crowded() => {}
            Err(unfit) => {
                let (id, error) = (admitting.id, format!("zygote {zygote} is not confined: {unfit}"));
                self.zygotes.entry(zygote).and_modify(|state| state.admitting = None);
                self.answer(id, Err(error), Vec::new());
            }
        }
    }

    /// Gives its pidfd if it is what it has to be.
    fn open_zygote(&self, zygote: ZygoteId) -> Result<OwnedFd, Unfit> {
        let state = self.zygotes.get(&zygote);
        let Some((state, slot)) = state.and_then(|state| Some((state, state.init.as_ref()?))) else {
            return Err(Unfit::Ever("it is gone".to_owned()));
        };
        let expected = verify::Expected {
            id: state.span.first,
            filters: 1,
            namespaces: slot.inodes.clone(),
            socket: Some(state.channel),
        };
        let processes = slot.ground.group.processes()?;
        if slot.is_crowded(&processes) {
            return Err(Unfit::Crowded);
        }
        let (checked, _) = verify::check(&processes, slot.made.init, &expected)?;
        let [user, _, mounts, ..] = &slot.made.namespaces[..] else {
            return Err(Unfit::Ever("it has no namespaces".to_owned()));
        };
        self.host.open(slot.ground.number, user.as_fd(), mounts.as_fd())?;
        Ok(checked.pidfd)
    }

    /// The container of a forked zygote is open to others, or not.
    fn opened(&mut self, number: u64, error: Option<String>) {
        let zygote = self
            .zygotes
            .iter_mut()
            .find(|(_, zygote)| zygote.init.as_ref().is_some_and(|slot| slot.ground.number == number));
        let Some((&zygote, state)) = zygote else { return };
        let Some(Admitting { id, pidfd: Some(pidfd), .. }) = state.admitting.take() else { return };
        state.admitted = error.is_none();
        match error {
            None => self.answer(id, Ok(Reply::Done), vec![pidfd]),
            Some(error) => self.answer(id, Err(error), Vec::new()),
        }
        self.serve_waiting(zygote);
    }

    pub(super) fn execute(
        &mut self,
        id: u64,
        profile: Profile,
        files: &Files,
        command: Command,
    ) -> Result<(), String> {
        if profile == Profile::Paper && !self.options.paper {
            return Err("containers of the profile paper are not allowed here".into());
        }
        let pair = self.pairs.take().ok_or("no user ids are left for another container")?;
        let limits = command.limits;
        let (ground, fds) = self.ground(Within::Host, Ids::Alone(pair), |server, ground| {
            ground.group.limit(&server.host.hierarchy, &limits).map_err(text)?;
            server.show(ground, files)?;
            let (socket, theirs) = stream_pair().map_err(text)?;
            let (log, log_theirs) = pipe2(OFlag::O_CLOEXEC).call("pipe2").map_err(text)?;
            let null = null().map_err(text)?;
            let fds = [&null, &log_theirs, &log_theirs, &theirs].map(AsFd::as_fd);
            let command = Command { memory_by_kernel: server.host.has_controller("memory"), ..command };
            let base = server.host.ids.block(0);
            let map = (pair.map(base), pair.both(base));
            let what = (server.spec(Nesting::Forbidden, profile), Payload::Command(command), &fds[..]);
            server.host.build(ground, map, None, what).map_err(text)?;
            Ok(vec![socket, log])
        })?;
        let (number, owner) = (ground.number, Owner::Alone(ground.number));
        let (answer, expected) = (Some((id, fds)), Some((limits, 1)));
        self.building.insert(number, Building { ground, pair: Some(pair), owner, answer, expected });
        Ok(())
    }

    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Made { slot, made } => self.made(slot, made),
            Event::Failed { slot, error } => self.failed(slot, &error),
            Event::Opened { slot, error } => self.opened(slot, error),
            Event::Ended { slot, exit } => self.ended(slot, exit),
        }
    }

    fn failed(&mut self, number: u64, error: &str) {
        let Some(building) = self.building.remove(&number) else { return };
        if let Some((id, _)) = building.answer {
            self.answer(id, Err(error.to_owned()), Vec::new());
        }
        let pair = building.pair.unwrap_or_default();
        let ids = match building.owner {
            Owner::Zygote(zygote) | Owner::ForkedZygote(zygote, _) => match self.zygotes.remove(&zygote) {
                Some(Zygote { parent, span, waiting, .. }) => {
                    for Wanted { id, .. } in waiting {
                        self.answer(id, Err(format!("zygote {zygote} was not made: {error}")), Vec::new());
                    }
                    Ids::Zygote(parent, span)
                }
                None => Ids::WithZygote,
            },
            Owner::Slot(zygote) => {
                eprintln!("sock: launcher: failed to make a slot: {error}");
                if let Some(state) = self.zygotes.get_mut(&zygote) {
                    state.building -= 1;
                }
                self.refuse_waiting(zygote, error);
                Ids::Within(zygote, pair)
            }
            Owner::Alone(_) => Ids::Alone(pair),
        };
        self.dying.insert(number, Dying { ground: building.ground, ids, ended: true, farewell: None });
    }

    fn made(&mut self, number: u64, made: Made) {
        let Some(Building { ground, pair, owner, answer, expected }) = self.building.remove(&number) else {
            return;
        };
        let inodes = verify::inodes(&made.namespaces).unwrap_or_default();
        let mut slot = Slot { ground, pair: pair.unwrap_or_default(), made, inodes };
        match owner {
            Owner::Zygote(zygote) => self.zygote_made(zygote, slot, answer, None),
            Owner::ForkedZygote(zygote, theirs) => self.zygote_made(zygote, slot, answer, Some(theirs)),
            Owner::Slot(zygote) => {
                let Some(state) = self.zygotes.get_mut(&zygote) else {
                    return self.let_die(slot, Ids::WithZygote);
                };
                state.building -= 1;
                state.ready.push_back(slot);
                self.serve_waiting(zygote);
            }
            Owner::Alone(instance) => {
                slot.made.namespaces.clear();
                let (limits, filters) = expected.unwrap_or_default();
                let state = Instance::new(slot, None, limits, (self.host.ids.block(0), filters));
                self.instances.insert(instance, state);
                if let Some((id, fds)) = answer {
                    self.answer(id, Ok(Reply::Instance { instance, spare: false }), fds);
                }
            }
        }
    }

    /// `theirs`: of one that is to be forked.
    fn zygote_made(
        &mut self,
        zygote: ZygoteId,
        slot: Slot,
        answer: Option<(u64, Vec<OwnedFd>)>,
        theirs: Option<[OwnedFd; 3]>,
    ) {
        let Some((id, fds)) = answer else { return };
        let Some(state) = self.zygotes.get_mut(&zygote) else {
            // With the one that it was to be forked from.
            self.answer(id, Err(format!("zygote {zygote} was stopped")), Vec::new());
            return self.let_die(slot, Ids::WithZygote);
        };
        // Only now, since a group whose processes are in groups of their own has none itself: cgroups(7).
        let (uid, ground) = (state.span.first, &slot.ground);
        let room = Reply::Zygote { most_spares: state.most_spares(), most_children: state.children.count };
        let opened = ground.family.as_ref().map_or(Ok(()), |family| self.host.open_family(family, uid));
        let limited = opened.and_then(|()| ground.group.limit(&self.host.hierarchy, &state.limits));
        let (parent, admitted) = (state.parent, theirs.is_none());
        let begun = limited.map_err(text).and_then(|()| match (theirs, parent) {
            (Some(theirs), Some(parent)) => self.send_fork(parent, "zygote", &slot, &theirs),
            _ => Ok(()),
        });
        if let Some(state) = self.zygotes.get_mut(&zygote) {
            state.init = Some(slot);
            state.admitted = admitted;
        }
        match begun {
            Ok(()) => {
                self.answer(id, Ok(room), fds);
                self.serve_waiting(zygote);
            }
            Err(error) => {
                self.answer(id, Err(error), Vec::new());
                let _ = self.stop_zygote(zygote);
            }
        }
    }
}
