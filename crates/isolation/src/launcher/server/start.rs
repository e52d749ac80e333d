//! Zygotes and single commands: asked of the slot builder, and taken over from it.

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::end::{Dying, Ids};
use super::{Instance, Server, Slot, Zygote, null, stream_pair, text};
use crate::builder::{self, Event, Made};
use crate::cgroup::Limits;
use crate::error::Context;
use crate::host::{Ground, Within};
use crate::ids::{BLOCK, Pair};
use crate::init::{Command, Payload};
use crate::launcher::wire::{Files, InstanceId, MAX_READY, Reply, StartZygote, ZygoteId};
use crate::plan::Nesting;
use crate::sys;

pub(super) enum Owner {
    /// With the limits of its own processes.
    Zygote(ZygoteId, Limits),
    Slot(ZygoteId),
    Alone(InstanceId),
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
        let block = self.blocks.pop().ok_or("no block of user ids is left for another zygote")?;
        let (ground, (fork_channel, fds)) =
            self.ground(Within::NewFamily, Ids::Block(block), |server, ground| {
                server.show(ground, &files)?;
                let (fork_channel, theirs) = builder::pair().map_err(text)?;
                sys::refuse_descriptors(fork_channel.as_fd());
                fcntl(&fork_channel, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                    .call("fcntl F_SETFL")
                    .map_err(text)?;
                let (control, control_theirs) = stream_pair().map_err(text)?;
                let (log, log_theirs) = pipe2(OFlag::O_CLOEXEC).call("pipe2").map_err(text)?;
                let null = null().map_err(text)?;
                let map = format!("0 {} {BLOCK}\n", server.host.ids.block(block));
                let fds = [&null, &log_theirs, &log_theirs, &theirs, &control_theirs].map(AsFd::as_fd);
                let memory_by_kernel = server.host.has_controller("memory");
                let command = Command { memory_by_kernel, ..command.clone() };
                let what = (server.spec(Nesting::Slots), Payload::Command(command), &fds[..]);
                server
                    .host
                    .build(ground, (map, [server.host.ids.block(block); 2]), None, what)
                    .map_err(text)?;
                Ok((fork_channel, vec![control, log]))
            })?;
        let (number, owner) = (ground.number, Owner::Zygote(zygote, command.limits));
        let answer = Some((id, fds));
        let building = Building { ground, pair: None, owner, answer, expected: None };
        self.building.insert(number, building);
        self.zygotes.insert(zygote, Zygote::new(block, fork_channel, slots.min(MAX_READY)));
        Ok(())
    }

    pub(super) fn execute(&mut self, id: u64, files: &Files, command: Command) -> Result<(), String> {
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
            let what = (server.spec(Nesting::Forbidden), Payload::Command(command), &fds[..]);
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
            Owner::Zygote(zygote, _) => match self.zygotes.remove(&zygote) {
                Some(Zygote { block, waiting, .. }) => {
                    for (id, ..) in waiting {
                        self.answer(id, Err(format!("zygote {zygote} was not made: {error}")), Vec::new());
                    }
                    Ids::Block(block)
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
        let slot = Slot { ground, pair: pair.unwrap_or_default(), made };
        match owner {
            Owner::Zygote(zygote, limits) => {
                let Some(state) = self.zygotes.get_mut(&zygote) else {
                    return self.let_die(slot, Ids::WithZygote);
                };
                // Only now, since a group whose processes are in groups of their own has none itself: cgroups(7).
                let (uid, ground) = (self.host.ids.block(state.block), &slot.ground);
                let opened =
                    ground.family.as_ref().map_or(Ok(()), |family| self.host.open_family(family, uid));
                let result = opened.and_then(|()| ground.group.limit(&self.host.hierarchy, &limits));
                state.init = Some(slot);
                let Some((id, fds)) = answer else { return };
                match result {
                    Ok(()) => {
                        self.answer(id, Ok(Reply::Zygote), fds);
                        self.serve_waiting(zygote);
                    }
                    Err(error) => {
                        self.answer(id, Err(text(error)), Vec::new());
                        let _ = self.stop_zygote(zygote);
                    }
                }
            }
            Owner::Slot(zygote) => {
                let Some(state) = self.zygotes.get_mut(&zygote) else {
                    return self.let_die(slot, Ids::WithZygote);
                };
                state.building -= 1;
                state.ready.push_back(slot);
                self.serve_waiting(zygote);
            }
            Owner::Alone(instance) => {
                let (limits, filters) = expected.unwrap_or_default();
                let state = Instance::new(slot, None, limits, (self.host.ids.block(0), filters));
                self.instances.insert(instance, state);
                if let Some((id, fds)) = answer {
                    self.answer(id, Ok(Reply::Instance { instance, spare: false }), fds);
                }
            }
        }
    }
}
