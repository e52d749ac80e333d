//! How zygotes, slots and instances go: killed, waited for, buried.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::forking::{Forking, Unfit};
use super::{Instance, Server, Slot, Zygote};
use crate::cgroup::Usage;
use crate::error::SysResult;
use crate::host::Ground;
use crate::ids::{Pair, Span};
use crate::init::Exit;
use crate::launcher::wire::{InstanceId, Reply, ZygoteId};
use crate::{sys, verify};

/// User ids that are free again when a container is gone.
#[derive(Clone, Copy)]
pub(super) enum Ids {
    /// Of the launcher's own pairs.
    Alone(Pair),
    /// Of a zygote's block.
    Within(ZygoteId, Pair),
    /// A zygote's, with all that it gave to slots and to zygotes that were forked from it; and whose they were before.
    Zygote(Option<ZygoteId>, Span),
    /// Of ids that its zygote's end frees.
    WithZygote,
}

impl Ids {
    fn of(zygote: Option<ZygoteId>, pair: Pair) -> Self {
        zygote.map_or(Self::Alone(pair), |zygote| Self::Within(zygote, pair))
    }
}

/// Something whose processes are dying; its ground goes when the last is gone.
pub(super) struct Dying {
    pub(super) ground: Ground,
    pub(super) ids: Ids,
    /// The builder reported its end.
    pub(super) ended: bool,
    /// Who is to be told how it ended.
    pub(super) farewell: Option<Farewell>,
}

/// The answer to a request to destroy an instance: it has to wait until every process is gone, since a process that has
/// closed its socket need not have exited yet.
pub(super) struct Farewell {
    pub(super) request: u64,
    pub(super) checked: Option<verify::Checked>,
    pub(super) exit: Option<Exit>,
    pub(super) out_of_memory: bool,
    pub(super) usage: Usage,
}

impl Server {
    pub(super) fn stop_zygote(&mut self, zygote: ZygoteId) -> Result<(), String> {
        if self.zygotes.get(&zygote).is_some_and(|zygote| zygote.init.is_none()) {
            return Err(format!("zygote {zygote} is still being made"));
        }
        if self.forget_zygote(zygote) { Ok(()) } else { Err(format!("there is no zygote {zygote}")) }
    }

    /// Ends a zygote and those that were forked from it, which live in its namespaces.
    fn forget_zygote(&mut self, zygote: ZygoteId) -> bool {
        let forked = self.zygotes.iter().filter(|(_, state)| state.parent == Some(zygote));
        for forked in forked.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.forget_zygote(forked);
        }
        let Some(state) = self.zygotes.remove(&zygote) else { return false };
        let Zygote { init, ready, spares, parent, span, waiting, admitting, .. } = state;
        let (forking, others) =
            std::mem::take(&mut self.forking).into_iter().partition(|(_, child)| child.zygote == zygote);
        self.forking = others;
        let forking: Vec<Forking> = HashMap::into_values(forking).collect();
        let (slots, wanted): (Vec<_>, Vec<_>) =
            forking.into_iter().map(|child| (child.slot, child.wanted)).unzip();
        let wanted = wanted.into_iter().flatten().chain(waiting).map(|wanted| wanted.id);
        for id in wanted.chain(admitting.map(|admitting| admitting.id)) {
            self.answer(id, Err(format!("zygote {zygote} was stopped")), Vec::new());
        }
        // Its PID namespace goes, and every slot and instance within it.
        for slot in ready.into_iter().chain(spares.into_iter().map(|spare| spare.slot)).chain(slots) {
            self.let_die(slot, Ids::WithZygote);
        }
        if let Some(slot) = init {
            self.let_die(slot, Ids::Zygote(parent, span));
        }
        true
    }

    pub(super) fn destroy(&mut self, request: u64, id: InstanceId) -> Result<(), String> {
        let instance = self.instances.remove(&id).ok_or_else(|| format!("there is no instance {id}"))?;
        self.take_apart(instance, Some(request));
        Ok(())
    }

    /// Ends an instance; tells `request` of it when it is gone.
    pub(super) fn take_apart(&mut self, instance: Instance, request: Option<u64>) {
        // Now, while the process can still be asked; its cgroup is asked again at the end.
        let usage = request.map(|request| (request, instance.usage()));
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
            dying.farewell =
                usage.map(|(request, usage)| Farewell { request, checked, exit, out_of_memory, usage });
        }
    }

    /// Kills a container and remembers to take its ground away.
    pub(super) fn let_die(&mut self, slot: Slot, ids: Ids) {
        let Slot { ground, made, .. } = slot;
        // Both may be gone already, and that is what is wanted.
        let _ = sys::pidfd_signal(made.pidfd.as_fd(), libc::SIGKILL);
        let _ = ground.group.kill();
        // A zygote that could start processes in it has to do so no more, or it would never be empty.
        let _ = ground.group.let_join(0);
        let number = ground.number;
        self.dying.insert(number, Dying { ground, ids, ended: false, farewell: None });
    }

    pub(super) fn ended(&mut self, number: u64, exit: Option<Exit>) {
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
            return;
        }
        if let Some(instance) = self.instances.get_mut(&number) {
            // The gateway sees its socket close, asks for its destruction, and is told then.
            instance.exit = instance.exit.or(exit);
            instance.ended = true;
            return;
        }
        if let Some(child) = self.forking.remove(&number) {
            self.give_up_child(child, &Unfit::Ever("it has ended".to_owned()));
            if let Some(dying) = self.dying.get_mut(&number) {
                dying.ended = true;
            }
            self.ask_for_more();
            return;
        }
        let dead = self.zygotes.iter().find_map(|(id, zygote)| {
            let init = zygote.init.as_ref()?;
            (init.ground.number == number).then_some(*id)
        });
        if let Some(zygote) = dead {
            // It exits with 0 when the gateway hangs up, and ends those that were forked from it, whose end is as good.
            if exit != Some(Exit::Code(0)) && !self.is_hung_up() {
                eprintln!("sock: launcher: zygote {zygote} ended by itself: {exit:?}");
            }
            let _ = self.stop_zygote(zygote);
            if let Some(dying) = self.dying.get_mut(&number) {
                dying.ended = true;
            }
            return;
        }
        // A slot that died while it waited for use is replaced. A spare is not until somebody asks: of a zygote whose
        // children die, one would be forked after the other for ever.
        let lost = self.zygotes.iter_mut().find_map(|(id, zygote)| {
            let slot = zygote.lose_slot(number);
            let replaced = slot.is_some();
            Some((*id, slot.or_else(|| zygote.lose_spare(number))?, replaced))
        });
        if let Some((zygote, Slot { ground, pair, .. }, replaced)) = lost {
            let ids = Ids::Within(zygote, pair);
            self.dying.insert(number, Dying { ground, ids, ended: true, farewell: None });
            // Its zygote may have ended it, and may do so with the next one: not at once.
            self.asked = Instant::now();
            if replaced {
                self.wanting.insert(zygote);
            }
        }
    }

    fn bid_farewell(&mut self, farewell: Farewell, ground: &Ground) {
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
        self.answer(request, Ok(Reply::Destroyed { exit, out_of_memory, usage }), Vec::new());
    }

    /// Whether the gateway has hung up, which is read in its turn.
    fn is_hung_up(&self) -> bool {
        let mut wanted = [PollFd::new(self.gateway.as_fd(), PollFlags::empty())];
        poll(&mut wanted, PollTimeout::ZERO) == Ok(1)
    }

    /// Takes away the ground of what is dead.
    pub(super) fn bury(&mut self) -> SysResult<()> {
        let ended: Vec<u64> =
            self.dying.iter().filter(|(_, dying)| dying.ended).map(|(number, _)| *number).collect();
        let mut buried = false;
        for number in ended {
            let Some(mut dying) = self.dying.remove(&number) else { continue };
            if let Some(farewell) = dying.farewell.take() {
                self.bid_farewell(farewell, &dying.ground);
            }
            if !self.host.clear(&dying.ground)? {
                self.dying.insert(number, dying);
                continue;
            }
            self.give_back(dying.ids);
            buried = true;
        }
        // There are user ids again, and room for more that end.
        if buried {
            self.ask_for_more();
        }
        let surplus = self.zygotes.iter().filter(|(_, state)| state.has_surplus());
        self.wanting.extend(surplus.map(|(id, _)| *id));
        Ok(())
    }

    pub(super) fn give_back(&mut self, ids: Ids) {
        match ids {
            Ids::Alone(pair) => self.pairs.give_back(pair),
            Ids::Within(zygote, pair) => {
                if let Some(zygote) = self.zygotes.get_mut(&zygote) {
                    zygote.pairs.give_back(pair);
                }
            }
            Ids::Zygote(None, span) => self.spans.push(span),
            Ids::Zygote(Some(parent), span) => {
                // A later zygote may have the parent's name.
                if let Some(parent) = self.zygotes.get_mut(&parent).filter(|parent| parent.span.has(span)) {
                    parent.children.give_back(span);
                }
            }
            Ids::WithZygote => {}
        }
    }

    /// Whether there is something to bury.
    pub(super) fn has_dead(&self) -> bool {
        self.dying.values().any(|dying| dying.ended)
    }
}

/// Whether the process behind `pidfd` is dead. pidfd_open(2)
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}
