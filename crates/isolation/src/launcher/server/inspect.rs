//! What is looked at from outside: whether an instance is confined, and what it uses.

use std::os::fd::OwnedFd;

use super::forking::{Looked, look};
use super::{Instance, Server, text};
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
        let slot = match of {
            Part::Zygote(zygote) => self.zygotes.get(&zygote).and_then(|zygote| zygote.init.as_ref()),
            Part::Instance(instance) => self.instances.get(&instance).map(|instance| &instance.slot),
        };
        let slot = slot.ok_or_else(|| format!("there is no {of:?}"))?;
        let mut processes = slot.ground.group.processes().map_err(text)?;
        processes.retain(|pid| *pid != slot.made.init);
        let each = processes.into_iter().map(verify::memory);
        Ok(each.fold(Memory::default(), |all, one| Memory {
            private: all.private + one.private,
            proportional: all.proportional + one.proportional,
            anonymous: all.anonymous + one.anonymous,
        }))
    }
}
