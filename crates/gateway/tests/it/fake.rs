//! A runner without processes: what an invocation comes to is written in the handler's name.
//!
//! `app.echo` answers its event, `app.error` raises, and so on: see [`Fake::outcome`]. `app.slow` runs until the test
//! lets it go; a function with `HOLD_PREPARE` in its environment is got ready likewise, and one with `FAIL_PREPARE`
//! never is. The test waits for what it needs by [`Fake::until`]: no test waits for time to pass.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use sock_gateway::{
    BoxFuture, Function, FunctionName, Invocation, InvocationResult, Outcome, PackageRequest, Packages,
    PackagesError, Phases, Runner, StartKind, ThrottleLimit,
};
use sock_pkgcache::{Lock, Requirements, View};
use tokio::sync::Semaphore;

/// A test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// One byte more than a result may have.
const TOO_MUCH: usize = 6_291_557;

/// What has happened so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Such as `prepare echo`, `invoke echo`, `done echo`, `retire echo`, in order.
    pub(crate) notes: Vec<String>,
    /// Invocations of slow handlers that run now.
    pub(crate) running: usize,
}

pub(crate) struct Fake {
    seen: Mutex<Seen>,
    changed: Condvar,
    /// As many slow invocations may end.
    pub(crate) invocations: Semaphore,
    /// As many held functions may become ready.
    pub(crate) prepares: Semaphore,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            changed: Condvar::new(),
            invocations: Semaphore::new(0),
            prepares: Semaphore::new(0),
        })
    }

    /// Waits for something to have happened.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, _) = self.changed.wait_timeout_while(seen, PATIENCE, |seen| !holds(seen)).unwrap();
        assert!(holds(&seen), "waited in vain: {what}; seen: {seen:?}");
    }

    /// Waits for a note.
    pub(crate) fn until_noted(&self, note: &str) {
        self.until(note, |seen| seen.notes.iter().any(|known| known == note));
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.seen.lock().unwrap().notes.clone()
    }

    fn update(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn note(&self, text: String) {
        self.update(|seen| seen.notes.push(text));
    }

    async fn outcome(&self, function: &Function, invocation: &Invocation) -> Outcome {
        use InvocationResult as R;
        let id = &invocation.request_id;
        let (_, handler) = function.handler.rsplit_once('.').unwrap();
        let raised = |id: &str| {
            let trace = "  File \"/var/task/app.py\", line 2, in handler\n    raise ValueError(\"no\")\n";
            R::HandlerError(Bytes::from(
                json!({ "errorMessage": "no", "errorType": "ValueError", "requestId": id, "stackTrace": [trace] })
                    .to_string(),
            ))
        };
        let result = match handler {
            "echo" => R::Ok(invocation.event.clone()),
            "nothing" => R::Ok(Bytes::from_static(b"null")),
            "seen" => R::Ok(Bytes::from(seen(function, invocation))),
            "slow" => {
                self.update(|seen| seen.running += 1);
                self.invocations.acquire().await.unwrap().forget();
                self.update(|seen| seen.running -= 1);
                R::Ok(invocation.event.clone())
            }
            "error" => raised(id),
            "init_error" => raised(""),
            "marshal" => R::HandlerError(Bytes::from(
                json!({ "errorMessage": "a set", "errorType": "Runtime.MarshalError", "requestId": id })
                    .to_string(),
            )),
            "timeout" => R::Timeout,
            "exit" => R::Exited { reason: None },
            "crash" => R::Exited { reason: Some("signal: segmentation fault".into()) },
            "memory" => R::OutOfMemory,
            "large" => R::Ok(Bytes::from(vec![b'1'; TOO_MUCH])),
            "large_error" => R::HandlerError(Bytes::from(vec![b'1'; TOO_MUCH])),
            "largest" => R::Ok(Bytes::from(vec![b'1'; TOO_MUCH - 1])),
            "reserved" => R::Throttled { limit: ThrottleLimit::Function },
            "full" => R::Throttled { limit: ThrottleLimit::Server },
            "platform" => R::Platform("the launcher hung up".into()),
            "panic" => panic!("a bug in the runner, for a test"),
            other => panic!("no handler {other}"),
        };
        let ms = Duration::from_millis;
        Outcome {
            result,
            start: StartKind::Zygote,
            phases: Phases { queue: ms(1), provision: ms(2), init: ms(3), handler: ms(4) },
            log_before: Vec::new(),
            log: b"a line of the handler\nand one without an end".to_vec(),
            log_truncated: 0,
            max_memory_mb: 17,
        }
    }
}

/// What a handler sees of the platform.
fn seen(function: &Function, invocation: &Invocation) -> String {
    let context: serde_json::Value =
        invocation.client_context.as_deref().map_or(json!(null), |text| serde_json::from_str(text).unwrap());
    let env: BTreeMap<String, String> = function.environment("stream");
    json!({
        "arn": function.arn, "version": function.version, "handler": function.handler, "fresh": function.fresh,
        "memory": function.memory_mb, "ephemeral": function.ephemeral_mb, "timeout": function.timeout.as_secs(),
        "packages": function.view.is_some(), "client_context": context, "env": env,
    })
    .to_string()
}

impl Runner for Fake {
    fn prepare(&self, function: Arc<Function>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.note(format!("prepare {}", function.name));
            if function.env.contains_key("HOLD_PREPARE") {
                self.prepares.acquire().await.unwrap().forget();
            }
            if function.env.contains_key("FAIL_PREPARE") {
                return Err("the handler's module cannot be imported".into());
            }
            assert!(!function.env.contains_key("PANIC_PREPARE"), "a bug in the runner, for a test");
            self.note(format!("prepared {}", function.name));
            Ok(())
        })
    }

    fn invoke(&self, function: Arc<Function>, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            self.note(format!("invoke {}", function.name));
            let outcome = self.outcome(&function, &invocation).await;
            self.note(format!("done {}", function.name));
            outcome
        })
    }

    fn retire(&self, name: &FunctionName) {
        self.note(format!("retire {name}"));
    }
}

/// Packages without an index: a good requirements file gives a view with nothing in it.
pub(crate) struct NoIndex;

impl Packages for NoIndex {
    fn install(
        &self,
        request: &PackageRequest<'_>,
        progress: &mut dyn FnMut(String),
    ) -> Result<(Lock, View), PackagesError> {
        Requirements::parse(request.requirements)?;
        progress("installing packages".into());
        let lock = Lock { tag: request.python.tag.clone(), packages: Vec::new() };
        let view = View { id: lock.id(), entries: Vec::new() };
        Ok((lock, view))
    }
}
