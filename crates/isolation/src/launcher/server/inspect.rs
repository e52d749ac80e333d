//! What is looked at from outside: whether an instance is confined, and what it uses.

use std::os::fd::OwnedFd;

use super::forking::{Looked, look};
use super::{Instance, Server, Slot, text};
use crate::cgroup::Usage;
use crate::launcher::wire::{InstanceId, Memory, Part};
use crate::verify;

impl Instance {
    /// What it used until now.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = self.slot.ground.group.usage();
        if usage.memory_peak == 0
            && let Some(checked) = &self.checked
        {
            usage.memory_peak = verify::resident(checked.pid);
        }
        usage
    }
}

impl Server {
    /// Returns a pidfd of the instance's process, what freezes it, and what tells of its memory.
    pub(super) fn check(&mut self, id: InstanceId) -> Result<[OwnedFd; 3], String> {
        let instance = self.instance(id)?;
        let expected = verify::Expected {
            id: instance.slot.pair.outside(instance.base),
            filters: instance.filters,
            namespaces: instance.slot.inodes.clone(),
            socket: None,
        };
        let processes = instance.slot.ground.group.processes().map_err(text)?;
        let looked = look(&instance.slot, &processes, &expected);
        let Looked { checked, fds } =
            looked.map_err(|unfit| format!("instance {id} is not confined: {unfit}"))?;
        instance.checked = Some(checked);
        Ok(fds)
    }

    /// Takes some milliseconds for a process of some hundred megabytes.
    pub(super) fn memory(&self, of: Part) -> Result<Memory, String> {
        let none = || format!("there is no {of:?}");
        match of {
            Part::Zygote(id) => {
                let zygote = self.zygotes.get(&id).ok_or_else(none)?;
                zygote.init.as_ref().ok_or_else(none)?.memory()
            }
            Part::Instance(id) => self.instances.get(&id).ok_or_else(none)?.slot.memory(),
            Part::Spares(id) => {
                let spares = &self.zygotes.get(&id).ok_or_else(none)?.spares;
                let looked = spares.iter().take(SAMPLE).map(|spare| spare.slot.memory());
                Ok(scaled(looked.collect::<Result<Vec<_>, _>>()?, spares.len()))
            }
            Part::Inits => {
                let zygotes = self.zygotes.values();
                let of_zygotes = zygotes.flat_map(|zygote| {
                    let spares = zygote.spares.iter().map(|spare| &spare.slot);
                    zygote.init.iter().chain(&zygote.ready).chain(spares)
                });
                let instances = self.instances.values().map(|instance| &instance.slot);
                let all: Vec<&Slot> = instances.chain(of_zygotes).collect();
                let looked = all.iter().take(SAMPLE).map(|slot| verify::memory(slot.made.init));
                Ok(scaled(looked.collect(), all.len()))
            }
        }
    }
}

impl Slot {
    /// Of what runs in it, without its PID 1.
    fn memory(&self) -> Result<Memory, String> {
        let mut processes = self.ground.group.processes().map_err(text)?;
        processes.retain(|pid| *pid != self.made.init);
        Ok(processes.into_iter().map(verify::memory).fold(Memory::default(), Memory::plus))
    }
}

/// So many of those that are alike are looked at.
const SAMPLE: usize = 16;

/// What `count` have, of whom some were looked at.
fn scaled(looked: Vec<Memory>, count: usize) -> Memory {
    let some = looked.len().max(1) as u64;
    let all = looked.into_iter().fold(Memory::default(), Memory::plus);
    let scale = |bytes: u64| bytes / some * count as u64;
    Memory {
        private: scale(all.private),
        proportional: scale(all.proportional),
        anonymous: scale(all.anonymous),
    }
}
