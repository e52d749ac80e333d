//! Instances of functions whose every invocation has one of its own, started before there is a next one.
//!
//! A spare serves any function of its zygote, so that it has to be given one when a request comes, and that has to be imported. Who was asked for
//! a single-use function a moment ago is likely to be asked for it again: an instance that has its function already waits among the idle
//! ones, where it is frozen, and ended for want of memory or after some minutes, as those are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sock_zygote::tree;
use tokio::sync::{Notify, Semaphore};

use super::instance::Started;
use super::learnt::now;
use super::{Engine, MAX_RUNNING, lock};
use crate::names::FunctionName;
use crate::runner::{Function, Phases};

/// Nothing is started before nothing was asked for this long: it would compete with the very request that took the last one.
const LULL: Duration = Duration::from_millis(20);

/// Where there is no lull, one is started all the same.
const AT_LATEST: Duration = Duration::from_millis(200);

/// What it takes to start one with the lull before it, seconds.
const SECONDS: f64 = 0.05;

/// Of one function: each has some megabytes of its own.
const MOST: u32 = 4;

/// Functions that instances are started of at a time.
const AT_ONCE: usize = 2;

pub(super) struct Ahead {
    /// Functions that were invoked since they were looked at last.
    wanted: Mutex<BTreeMap<FunctionName, Arc<Function>>>,
    changed: Notify,
    /// Those that instances are being started of.
    busy: Mutex<BTreeSet<FunctionName>>,
    starting: Semaphore,
    begun: Instant,
    /// When something was asked for last, microseconds since it began.
    asked: AtomicU64,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            wanted: Mutex::default(),
            changed: Notify::new(),
            busy: Mutex::default(),
            starting: Semaphore::new(AT_ONCE),
            begun: Instant::now(),
            asked: AtomicU64::new(0),
        }
    }
}

impl Ahead {
    fn elapsed(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Something is asked for, of whatever function.
    pub(super) fn note_request(&self) {
        self.asked.store(self.elapsed(), Ordering::Relaxed);
    }

    /// Has instances of `function` started ahead, as many as its arrivals ask for. One that is forked only: an interpreter of its own takes
    /// several times the memory.
    pub(super) fn want(&self, function: &Arc<Function>) {
        if !function.fresh {
            lock(&self.wanted).insert(function.name.clone(), Arc::clone(function));
            self.changed.notify_one();
        }
    }

    async fn lull(&self) {
        loop {
            let quiet =
                Duration::from_micros(self.elapsed().saturating_sub(self.asked.load(Ordering::Relaxed)));
            match LULL.checked_sub(quiet) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    /// Waits for functions that instances are to be started of, and until there is time for that. What is busy is left for later.
    async fn wait(&self) -> Vec<Arc<Function>> {
        self.changed.notified().await;
        let _ = tokio::time::timeout(AT_LATEST, self.lull()).await;
        let mut busy = lock(&self.busy);
        let mut free = Vec::new();
        lock(&self.wanted).retain(|name, function| {
            let is_free = busy.insert(name.clone());
            if is_free {
                free.push(Arc::clone(function));
            }
            !is_free
        });
        free
    }
}

/// Makes a function free again, and has looked for what was wanted meanwhile.
struct Busy<'a>(&'a Ahead, FunctionName);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.0.busy).remove(&self.1);
        if lock(&self.0.wanted).contains_key(&self.1) {
            self.0.changed.notify_one();
        }
    }
}

impl Engine {
    /// Starts them, for as long as the engine is there.
    pub(super) async fn start_ahead(engine: std::sync::Weak<Self>) {
        let Some(ahead) = engine.upgrade().map(|engine| Arc::clone(&engine.ahead)) else { return };
        loop {
            for function in ahead.wait().await {
                let Some(engine) = engine.upgrade() else { return };
                let ahead = Arc::clone(&ahead);
                tokio::spawn(async move {
                    let _busy = Busy(&ahead, function.name.clone());
                    // It is never closed.
                    let _place = ahead.starting.acquire().await;
                    engine.start_ahead_of(&function).await;
                });
            }
        }
    }

    /// As many as are missing, one by one. What fails is left to the next invocation, whose caller is told why.
    async fn start_ahead_of(&self, function: &Arc<Function>) {
        let rate = {
            let learnt = self.planner.learnt();
            learnt.functions.get(&function.name).map_or(0.0, |of| of.invocations.at(now()))
        };
        let wanted = tree::spares(rate, SECONDS, MOST) as usize;
        let there = lock(&self.idle).count_of(function);
        for _ in there..wanted {
            // Where half of the places are taken there are others to serve.
            if self.running.available_permits() < MAX_RUNNING / 2
                || !lock(&self.functions).is_current(function)
            {
                return;
            }
            let Ok(Started { mut instance, .. }) =
                self.start_for(function, None, &mut Phases::default()).await
            else {
                return;
            };
            instance.peer.settle();
            if !self.keep_idle(instance) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sock_isolation::Profile;

    use super::*;

    fn function(name: &str) -> Function {
        Function {
            name: FunctionName::parse(name).unwrap(),
            arn: String::new(),
            version: String::new(),
            handler: String::new(),
            runtime: String::new(),
            memory_mb: 128,
            ephemeral_mb: 512,
            timeout: Duration::from_secs(3),
            env: BTreeMap::new(),
            code_sha256: String::new(),
            code_dir: "code".into(),
            view: None,
            fresh: false,
            profile: Profile::Lean,
            single_use: true,
            tenant: None,
            revision: String::new(),
        }
    }

    #[tokio::test]
    async fn what_is_wanted_comes_in_a_lull_and_what_is_busy_comes_again() {
        let ahead = Ahead::default();
        let function = Arc::new(function("one"));
        ahead.note_request();
        ahead.want(&function);
        let first = ahead.wait().await;
        assert!(first.len() == 1 && ahead.elapsed() - ahead.asked.load(Ordering::Relaxed) >= 20_000);
        let busy = Busy(&ahead, function.name.clone());
        // Wanted anew while it is being started, or left out by one that is fresh.
        ahead.want(&function);
        ahead.want(&Arc::new(Function { fresh: true, ..(*function).clone() }));
        assert!(ahead.wait().await.is_empty());
        drop(busy);
        assert_eq!(ahead.wait().await.len(), 1);
    }
}
