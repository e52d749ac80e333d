//! The way of a deployment from accepted to live, in the background.
//!
//! ```text
//! Deploying ── requirements.txt? ── lock, install ── runner.prepare ──▶ Ready: the wanted deployment is live
//!                                        └───────────────┴────────────▶ Failed, with a reason; what was live stays live
//! ```
//!
//! The registry holds the state, so a deployment that a crash interrupted is started again at the next start. A result
//! counts only if the function still wants that revision: it may have been deleted, or made anew, meanwhile.

pub(crate) mod packages;

use std::error::Error;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use sock_pkgcache::{Fault, Interpreter};
use tracing::{error, info, warn};

use crate::gateway::Gateway;
use crate::names::FunctionName;
use crate::registry::RegistryError;
use crate::registry::record::{Deployment, Failure, Installed, Record, Status};
use packages::PackageRequest;

/// The longest reason that the API gives.
const MAX_REASON: usize = 4096;
/// Until a deployment's end is written down again that could not be: somebody has to make room on the disk first.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts the deployment of what a function wants now.
pub(crate) fn start(gateway: &Arc<Gateway>, name: FunctionName, revision: String) {
    let gateway = gateway.clone();
    tokio::spawn(async move {
        let work = tokio::spawn(run(gateway.clone(), name.clone(), revision.clone()));
        let result = work.await.unwrap_or_else(|panic| {
            error!(function = %name, %panic, "a deployment ended in a panic");
            Some(Err(internal("the deployment failed in the server: see its log, and deploy again".into())))
        });
        gateway.clear_progress(&name);
        if let Some(result) = result {
            finish(gateway, name, revision, result).await;
        }
    });
}

/// Seconds that a deployment waits each time that a start goes on with it: it may be what ended the servers, and need not be. After
/// so many it fails.
const RESUMES: [u64; 5] = [0, 0, 1, 5, 30];

/// Goes on with a deployment that the last server did not finish.
pub(crate) fn resume(gateway: &Arc<Gateway>, record: &Record) -> Result<(), RegistryError> {
    let revision = record.wanted.revision.clone();
    let (entry, ()) = gateway.registry.change::<_, RegistryError>(&record.name, |before| {
        let mut record = before.cloned();
        if let Some(record) = record.as_mut().filter(|record| record.wanted.revision == revision) {
            if record.wanted.resumes as usize == RESUMES.len() {
                let ends = RESUMES.len() + 1;
                record.status = Status::Failed(internal(format!(
                    "the server ended {ends} times while it deployed this function: see its log, and deploy again"
                )));
            } else {
                record.wanted.resumes += 1;
            }
        }
        Ok((record, ()))
    })?;
    match entry.map(|entry| entry.record.status.clone()) {
        Some(Status::Deploying) => {
            let wait_s = RESUMES.get(record.wanted.resumes as usize).copied().unwrap_or_default();
            info!(function = %record.name, wait_s, "resuming a deployment");
            let (gateway, name) = (gateway.clone(), record.name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(wait_s)).await;
                start(&gateway, name, revision);
            });
        }
        _ => warn!(function = %record.name, "a deployment with which the server ended too often has failed"),
    }
    Ok(())
}

/// Nothing if the function does not want this revision any more.
async fn run(
    gateway: Arc<Gateway>,
    name: FunctionName,
    revision: String,
) -> Option<Result<Option<Installed>, Failure>> {
    let Ok(_turn) = gateway.installs.acquire().await else { return None };
    let entry = gateway.registry.get(&name).filter(|entry| entry.record.wanted.revision == revision)?;
    let install = {
        let (gateway, record) = (gateway.clone(), entry.record.clone());
        tokio::task::spawn_blocking(move || install(&gateway, &record))
    };
    let installed = match install.await {
        Ok(Ok(installed)) => installed,
        Ok(Err(failure)) => return Some(Err(failure)),
        Err(panic) => {
            error!(function = %name, %panic, "an install ended in a panic");
            return Some(Err(internal("the install failed in the server: see its log".into())));
        }
    };
    // Installing takes a while: nothing is got ready that nobody wants any more.
    gateway.registry.get(&name).filter(|entry| entry.record.wanted.revision == revision)?;
    gateway.set_progress(&name, "getting ready to run it".into());
    let wanted = Deployment { packages: installed.clone(), ..entry.record.wanted.clone() };
    let function = Arc::new(entry.record.function(&wanted, gateway.registry.realm()));
    match gateway.runner.prepare(function).await {
        Ok(()) => Some(Ok(installed)),
        Err(reason) => Some(Err(internal(reason))),
    }
}

/// Blocks.
fn install(gateway: &Gateway, record: &Record) -> Result<Option<Installed>, Failure> {
    let wanted = &record.wanted;
    if !gateway.bundles.has(&wanted.code.sha256) {
        return Err(internal("the function's code is gone from the data directory: deploy it again".into()));
    }
    let requirements = gateway.bundles.requirements(&wanted.code.sha256);
    let requirements = requirements.map_err(|error| Failure {
        code: "InvalidConfiguration".into(),
        reason: format!("requirements.txt cannot be read: {error}"),
    })?;
    let Some(requirements) = requirements.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let python =
        interpreter(&gateway.config.interpreters, &wanted.config.runtime).ok_or_else(|| Failure {
            code: "InvalidRuntime".into(),
            reason: format!(
                "this server has no {} any more: deploy for another runtime",
                wanted.config.runtime
            ),
        })?;
    let requirements_sha256 = hex::encode(Sha256::digest(&requirements));
    let earlier = wanted.packages.iter().chain(record.live.iter().filter_map(|live| live.packages.as_ref()));
    let lock = earlier
        .filter(|installed| installed.requirements_sha256 == requirements_sha256)
        .map(|installed| &installed.lock)
        .next();
    let request = PackageRequest { requirements: &requirements, python, lock };
    let mut progress = |text| gateway.set_progress(&record.name, text);
    let installed = gateway.config.packages.install(&request, &mut progress);
    let (lock, view) = installed.map_err(|error| failure(error.fault(), chain(&error)))?;
    Ok(Some(Installed { requirements_sha256, lock, view }))
}

/// The codes are the model's, which has none for packages.
fn failure(fault: Fault, reason: String) -> Failure {
    let reason = shorten(reason);
    match fault {
        Fault::Requirements => Failure { code: "InvalidConfiguration".into(), reason },
        Fault::Index => internal(format!("{reason}; deploy again once the package index answers")),
        Fault::Host if is_full(&reason) => internal(format!("{reason}; {MAKE_ROOM}")),
        Fault::Host => internal(reason),
    }
}

/// What helps against a full disk.
const MAKE_ROOM: &str = "make room on the server's disk, and deploy again";

/// Whether the disk is full, in the words of the system, SQLite, or a program that ran into it: the last gives no others.
pub(crate) fn is_full(reason: &str) -> bool {
    ["No space left on device", "database or disk is full"].iter().any(|words| reason.contains(words))
}

async fn finish(
    gateway: Arc<Gateway>,
    name: FunctionName,
    revision: String,
    result: Result<Option<Installed>, Failure>,
) {
    match &result {
        Ok(installed) => {
            let packages = installed.as_ref().map_or(0, |installed| installed.view.entries.len());
            info!(function = %name, revision, packages, "deployed");
            gateway.metrics.deployment("live");
        }
        Err(failure) => {
            warn!(function = %name, revision, reason = failure.reason, "deployment failed");
            gateway.metrics.deployment("failed");
        }
    }
    // A deployment whose end is not written down would be under way for ever.
    while let Err(error) = record(&gateway, &name, &revision, result.clone()).await {
        error!(function = %name, error, "failed to record a deployment; trying again");
        gateway.set_progress(&name, format!("waiting until its end can be recorded: {error}"));
        tokio::time::sleep(AGAIN).await;
    }
    gateway.clear_progress(&name);
}

/// Writes down how a deployment has ended.
async fn record(
    gateway: &Arc<Gateway>,
    name: &FunctionName,
    revision: &str,
    result: Result<Option<Installed>, Failure>,
) -> Result<(), String> {
    let (registry, own, revision) = (gateway.clone(), name.clone(), revision.to_owned());
    let write = tokio::task::spawn_blocking(move || {
        registry.registry.change::<_, RegistryError>(&own, |before| {
            let Some(record) = before.filter(|record| record.wanted.revision == revision) else {
                return Ok((before.cloned(), before.is_none()));
            };
            let mut record = record.clone();
            match result {
                Ok(installed) => record.go_live(installed),
                Err(failure) => record.status = Status::Failed(failure),
            }
            Ok((Some(record), false))
        })
    });
    match write.await {
        // The runner was told of the deletion before it had what it was then given.
        Ok(Ok((_, true))) => gateway.runner.retire(name),
        Ok(Ok((_, false))) => {}
        Ok(Err(error)) => return Err(chain(&error)),
        Err(panic) => error!(%panic, "recording a deployment ended in a panic"),
    }
    Ok(())
}

/// The interpreter that a runtime's name stands for.
pub(crate) fn interpreter<'a>(interpreters: &'a [Interpreter], runtime: &str) -> Option<&'a Interpreter> {
    interpreters.iter().find(|python| runtime_name(python) == runtime)
}

/// The runtime's name of an interpreter, such as `python3.11`.
pub(crate) fn runtime_name(python: &Interpreter) -> String {
    format!("python{}.{}", python.version.0, python.version.1)
}

fn internal(reason: String) -> Failure {
    Failure { code: "InternalError".into(), reason: shorten(reason) }
}

fn shorten(mut reason: String) -> String {
    if reason.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        reason.truncate(end);
        reason.push('…');
    }
    reason
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

impl Gateway {
    /// What a deployment does at the moment.
    pub(crate) fn progress(&self, name: &FunctionName) -> Option<String> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn set_progress(&self, name: &FunctionName, text: String) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), text);
    }

    fn clear_progress(&self, name: &FunctionName) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
