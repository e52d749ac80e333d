//! What is looked at from outside: whether an instance is confined, and what it uses.

use std::os::fd::OwnedFd;

use super::{Instance, Server, io_text, text};
use crate::cgroup::Usage;
use crate::error::Context;
use crate::launcher::wire::{InstanceId, Memory, Part};
use crate::{plan, sys, verify};

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
    pub(super) fn check(&mut self, id: InstanceId) -> Result<Vec<OwnedFd>, String> {
        let by_kernel = self.host.has_controller("memory");
        let instance = self.instance(id)?;
        let expected = verify::Expected {
            id: instance.slot.pair.outside(instance.base),
            filters: instance.filters,
            namespaces: instance.slot.inodes.clone(),
            socket: instance.socket,
        };
        let processes = instance.slot.ground.group.processes().map_err(text)?;
        let (checked, status) = verify::check(&processes, instance.slot.made.init, &expected)
            .map_err(|error| format!("instance {id} is not confined: {error}"))?;
        if instance.zygote.is_some() {
            // A command got its limits before its exec; a zygote's child still has the zygote's.
            for (name, number, value) in plan::resource_limits(&instance.limits, by_kernel, checked.data) {
                sys::set_limit(checked.pid, number, value).call_on("prlimit", name).map_err(text)?;
            }
        }
        let pidfd = checked.pidfd.try_clone().map_err(io_text)?;
        let freezer = instance.slot.ground.group.freezer().map_err(text)?;
        let memory = instance.slot.ground.group.memory_peak().unwrap_or(status);
        instance.checked = Some(checked);
        let files = instance.files.take();
        if let (Some(files), Some(instance)) = (files, self.instances.get(&id)) {
            self.show(&instance.slot.ground, &files)?;
        }
        Ok(vec![pidfd, freezer, memory])
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
