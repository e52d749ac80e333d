//! The watchdog on resident memory, for machines where no controller keeps that limit: kills what went over.
//!
//! A process that does not run allocates nothing, and of what did run the kernel keeps account in every group, controller
//! or not: `cpu.stat`. So a look begins with one small read for all containers together; where somebody ran, one for each
//! container follows; and only of those that ran are processes listed and asked. Dozens of idle instances cost a read.
//!
//! What goes over is killed at the next look, [`WATCH`] later at most. Clearing pages takes a processor about half a
//! millisecond for a megabyte, so that until then a container has 100 MB for each processor that it runs on, beyond its
//! limit. (What a single process allocates for itself RLIMIT_DATA refuses at once; this is for what processes share, and
//! for many of them together.) Where pages are shared it takes a dear look to say whose they are, which processes can make dearer:
//! the next one then waits four times as long as the last took, [`AT_MOST`] in all.
//!
//! A zygote is watched as instances are. So is what nobody has checked yet, of which a zygote may have made anything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::{Server, Slot, WATCH, Zygote};
use crate::cgroup::{Activity, Group, Limits};
use crate::launcher::wire::ZygoteId;
use crate::verify;

/// The longest that a container goes without a dear look when it needs one.
const AT_MOST: Duration = Duration::from_secs(1);

/// What the watchdog remembers of a container.
pub(super) struct Watched {
    activity: Activity,
    /// It has to be looked at dearly, but not before.
    put_off: Option<Instant>,
}

/// What a container may have.
#[derive(Clone, Copy)]
struct Bound {
    /// Resident in all its processes, where nothing is counted twice.
    memory: u64,
    /// Of what it has, this much was somebody else's before.
    inherited: u64,
}

impl Watched {
    fn new(group: &Group) -> Self {
        Self { activity: Activity::of(group), put_off: None }
    }

    /// Whether the processes in `slot` have more than `bound` allows.
    fn is_over(&mut self, slot: &Slot, bound: Bound) -> bool {
        let ran = self.activity.changed();
        let due = match self.put_off {
            Some(until) => Instant::now() >= until,
            None => ran,
        };
        if !due {
            return false;
        }
        self.put_off = None;
        let Ok(mut processes) = slot.ground.group.processes() else { return false };
        processes.retain(|pid| *pid != slot.made.init);
        let together = |of: fn(Pid) -> u64| processes.iter().map(|pid| of(*pid)).sum::<u64>();
        let suspect = |resident: u64| resident.saturating_sub(bound.inherited) > bound.memory;
        if !suspect(together(verify::resident_at_most)) || !suspect(together(verify::resident)) {
            return false;
        }
        if processes.len() == 1 && bound.inherited == 0 {
            return true;
        }
        // Pages that processes share were counted for each of them: the dear look divides them.
        let began = Instant::now();
        let over = together(verify::proportional) > bound.memory;
        self.put_off = (!over).then(|| Instant::now() + (began.elapsed() * 4).clamp(WATCH, AT_MOST));
        over
    }
}

/// What the zygote `id` may have, with what those had that it was forked from.
fn most(zygotes: &BTreeMap<ZygoteId, Zygote>, mut id: Option<ZygoteId>) -> u64 {
    let mut most = 0;
    while let Some(zygote) = id.and_then(|id| zygotes.get(&id)) {
        most += zygote.limits.memory;
        id = zygote.parent;
    }
    most
}

impl Server {
    /// Looks at all containers in which something ran since the last look.
    pub(super) fn watch(&mut self) {
        self.looked = Instant::now();
        let quiet = !self.activity.changed();
        if quiet && self.watched.values().all(|watched| watched.put_off.is_none()) {
            return;
        }
        let mut before = std::mem::take(&mut self.watched);
        let mut look = |slot: &Slot, bound: Bound| {
            let number = slot.ground.number;
            let mut watched = before.remove(&number).unwrap_or_else(|| Watched::new(&slot.ground.group));
            let over = watched.is_over(slot, bound);
            self.watched.insert(number, watched);
            if over {
                let _ = slot.ground.group.kill();
            }
            over
        };
        for (id, zygote) in &self.zygotes {
            let memory = zygote.limits.memory;
            if let Some(slot) = &zygote.init
                && look(slot, Bound { memory, inherited: most(&self.zygotes, zygote.parent) })
            {
                eprintln!("sock: launcher: zygote {id} is killed: it has more than {memory} bytes of memory");
            }
            // Its own limits come with its function; what a child was forked with is its zygote's.
            let inherited = most(&self.zygotes, Some(*id));
            let bound = Bound { memory: Limits::default().memory, inherited };
            // What stands still takes no more, and there may be hundreds of them.
            let spares = zygote.spares.iter().filter(|spare| !spare.frozen).map(|spare| &spare.slot);
            let forking = self.forking.values().filter(|child| child.zygote == *id).map(|child| &child.slot);
            for slot in zygote.ready.iter().chain(spares).chain(forking) {
                look(slot, bound);
            }
        }
        for instance in self.instances.values_mut().filter(|instance| !instance.released) {
            let inherited = match &instance.checked {
                Some(checked) => checked.resident,
                None => most(&self.zygotes, instance.zygote),
            };
            instance.out_of_memory |=
                look(&instance.slot, Bound { memory: instance.limits.memory, inherited });
        }
    }
}
