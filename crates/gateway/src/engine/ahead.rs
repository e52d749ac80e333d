//! Instances of functions whose every invocation has one of its own, started before there is a next one.
//!
//! A spare serves any function of its zygote, so that it has to be given one when a request comes, and that has to be imported. Who was asked for
//! a single-use function a moment ago is likely to be asked for it again: an instance that has its function already waits among the idle
//! ones, where it is frozen, and ended for want of memory or after some minutes, as those are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sock_zygote::tree;

use super::instance::{StartFailure, Started};
use super::learnt::now;
use super::{Engine, lock};
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

/// Functions that were invoked since they were looked at last.
#[derive(Default)]
pub(super) struct Ahead {
    wanted: Mutex<BTreeMap<FunctionName, Arc<Function>>>,
    /// At the beginning and at the end of each of those invocations.
    stirred: tokio::sync::Notify,
    /// Functions that instances are being started of: the import of one may take minutes.
    busy: Mutex<BTreeSet<FunctionName>>,
}

impl Ahead {
    /// Something is asked for.
    pub(super) fn stir(&self) {
        self.stirred.notify_one();
    }

    /// Has instances of `function` started ahead, as many as its arrivals ask for. One that is forked only: an interpreter of its own takes
    /// several times the memory.
    pub(super) fn want(&self, function: &Arc<Function>) {
        if function.fresh {
            return;
        }
        lock(&self.wanted).insert(function.name.clone(), Arc::clone(function));
        self.stir();
    }

    /// Waits for functions that instances are to be started of, and until there is time for that.
    async fn wait(&self) -> BTreeMap<FunctionName, Arc<Function>> {
        self.stirred.notified().await;
        let lull = async { while tokio::time::timeout(LULL, self.stirred.notified()).await.is_ok() {} };
        let _ = tokio::time::timeout(AT_LATEST, lull).await;
        std::mem::take(&mut *lock(&self.wanted))
    }
}

impl Engine {
    /// Starts them, for as long as the engine is there.
    pub(super) async fn start_ahead(engine: std::sync::Weak<Self>) {
        let Some(ahead) = engine.upgrade().map(|engine| Arc::clone(&engine.ahead)) else { return };
        loop {
            for function in ahead.wait().await.into_values() {
                let Some(engine) = engine.upgrade() else { return };
                if lock(&ahead.busy).insert(function.name.clone()) {
                    let ahead = Arc::clone(&ahead);
                    tokio::spawn(async move {
                        engine.start_ahead_of(&function).await;
                        lock(&ahead.busy).remove(&function.name);
                    });
                }
            }
        }
    }

    /// As many as are missing, one by one. What fails is left to the next invocation, whose caller is told why.
    async fn start_ahead_of(&self, function: &Arc<Function>) {
        // Where all places are taken there are others to serve.
        let Ok(_place) = self.running.try_acquire() else { return };
        let rate = self.planner.learnt().of(&function.name, &function.revision).invocations.at(now());
        let missing =
            (tree::spares(rate, SECONDS, MOST) as usize).saturating_sub(lock(&self.idle).count_of(function));
        for _ in 0..missing {
            match self.start_for(function, None, &mut Phases::default()).await {
                Ok(Started { instance, .. }) => self.keep_idle(function, instance),
                Err(StartFailure { .. }) => return,
            }
        }
    }
}
