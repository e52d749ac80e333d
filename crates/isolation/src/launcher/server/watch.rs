//! Whom the watchdog on resident memory looks at: all containers in which something ran since the last look. A look begins with one small read
//! for all of them together; where somebody ran, one for each follows.
//!
//! A zygote is watched as instances are. So is what nobody has checked yet, of which a zygote may have made anything.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Server, Slot, Zygote};
use crate::cgroup::Limits;
use crate::launcher::wire::ZygoteId;
use crate::watch::{Bound, Watched};

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
        if quiet && self.watched.values().all(|watched| !watched.is_put_off()) {
            return;
        }
        let mut before = std::mem::take(&mut self.watched);
        let mut look = |slot: &Slot, bound: Bound| {
            let number = slot.ground.number;
            let group = &slot.ground.group;
            let mut watched = before.remove(&number).unwrap_or_else(|| Watched::new(group));
            let over = watched.is_over(group, slot.made.init, bound);
            self.watched.insert(number, watched);
            if over {
                let _ = group.kill();
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
