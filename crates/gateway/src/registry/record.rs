//! What the registry knows of a function.
//!
//! A function has one deployment that its owner wants and, once that has succeeded, one that is live. They differ while an
//! update is being installed and after one has failed: invocations go on with the live one.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sock_isolation::Profile;
use sock_pkgcache::{Lock, View};

use crate::names::{FunctionName, LATEST, Realm};
use crate::runner::Function;

/// With the value `true`: its instances are interpreters of their own, never forked from a zygote.
pub(crate) const TAG_FRESH: &str = "sock:fresh";
/// Its value is a [`Profile`]'s name.
pub(crate) const TAG_PROFILE: &str = "sock:profile";
/// With the value `true`: `POST /run/{name}` asks for no key.
pub(crate) const TAG_PUBLIC: &str = "sock:public";
/// With the value `true`: each invocation gets an instance of its own.
pub(crate) const TAG_SINGLE_USE: &str = "sock:single-use";
/// Its value is the tenant's name.
pub(crate) const TAG_TENANT: &str = "sock:tenant";

/// Tags that the server itself looks at.
pub(crate) const MARKS: [&str; 5] = [TAG_FRESH, TAG_PROFILE, TAG_PUBLIC, TAG_SINGLE_USE, TAG_TENANT];

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: FunctionName,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) wanted: Deployment,
    pub(crate) status: Status,
    pub(crate) live: Option<Deployment>,
    /// When its owner last changed it, as the API writes it.
    pub(crate) modified: String,
}

/// Code and configuration that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deployment {
    /// Changes with every deployment.
    pub(crate) revision: String,
    pub(crate) config: Config,
    pub(crate) code: Code,
    pub(crate) packages: Option<Installed>,
    /// Values of [`MARKS`] that come to be with it; nothing: they stay.
    #[serde(default)]
    pub(crate) marks: Option<BTreeMap<String, String>>,
    /// How often a start went on with it.
    #[serde(default)]
    pub(crate) resumes: u32,
}

/// How far the wanted deployment has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    /// Being installed.
    Deploying,
    /// Live.
    Ready,
    /// It will never be.
    Failed(Failure),
}

/// Why a deployment failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// One of the model's reason codes.
    pub(crate) code: String,
    /// For a person.
    pub(crate) reason: String,
}

/// A bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Code {
    /// In hex.
    pub(crate) sha256: String,
    pub(crate) size: u64,
}

/// What was installed for a requirements file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Installed {
    /// The hash of the requirements file: with the same one the lock stays.
    pub(crate) requirements_sha256: String,
    pub(crate) lock: Lock,
    pub(crate) view: View,
}

/// What a function's owner sets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) runtime: String,
    pub(crate) handler: String,
    pub(crate) role: String,
    pub(crate) description: String,
    /// In seconds.
    pub(crate) timeout: u32,
    pub(crate) memory_mb: u32,
    pub(crate) ephemeral_mb: u32,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) tracing: String,
    pub(crate) snap_start: String,
}

/// Values of variables may be secrets.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.env.keys().collect::<Vec<_>>();
        f.debug_struct("Config").field("handler", &self.handler).field("env", &names).finish_non_exhaustive()
    }
}

impl Config {
    /// What Lambda takes where nothing is said.
    pub(crate) fn new() -> Self {
        Self {
            runtime: String::new(),
            handler: String::new(),
            role: String::new(),
            description: String::new(),
            timeout: 3,
            memory_mb: 128,
            ephemeral_mb: 512,
            env: BTreeMap::new(),
            tracing: "PassThrough".into(),
            snap_start: "None".into(),
        }
    }
}

impl Record {
    pub(crate) fn is_public(&self) -> bool {
        self.tag(TAG_PUBLIC)
    }

    fn tag(&self, name: &str) -> bool {
        self.tags.get(name).is_some_and(|value| value == "true")
    }

    /// The wanted deployment has succeeded.
    pub(crate) fn go_live(&mut self, packages: Option<Installed>) {
        self.wanted.packages = packages;
        if let Some(marks) = self.wanted.marks.take() {
            self.tags.retain(|name, _| !MARKS.contains(&name.as_str()));
            self.tags.extend(marks);
        }
        self.live = Some(self.wanted.clone());
        self.status = Status::Ready;
    }

    /// What runs.
    pub(crate) fn live(&self, realm: &Realm) -> Option<Function> {
        self.live.as_ref().map(|live| self.function(live, realm))
    }

    /// A deployment of this function as the runner takes it.
    pub(crate) fn function(&self, deployment: &Deployment, realm: &Realm) -> Function {
        let Deployment { revision, config, code, packages, .. } = deployment;
        let marks = deployment.marks.as_ref().unwrap_or(&self.tags);
        let marked = |name: &str| marks.get(name).is_some_and(|value| value == "true");
        // What is no profile's name was refused when it was to be set, by this program.
        let profile = marks.get(TAG_PROFILE);
        let profile = profile.map_or(Profile::Lean, |name| name.parse().unwrap_or(Profile::Strict));
        Function {
            name: self.name.clone(),
            arn: realm.arn(&self.name),
            version: LATEST.into(),
            handler: config.handler.clone(),
            runtime: config.runtime.clone(),
            memory_mb: config.memory_mb,
            ephemeral_mb: config.ephemeral_mb,
            timeout: Duration::from_secs(config.timeout.into()),
            env: config.env.clone(),
            code_sha256: code.sha256.clone(),
            code_dir: Path::new("code").join(&code.sha256),
            view: packages.as_ref().map(|installed| installed.view.clone()),
            fresh: marked(TAG_FRESH) || profile != Profile::Lean,
            profile,
            single_use: marked(TAG_SINGLE_USE),
            tenant: marks.get(TAG_TENANT).filter(|tenant| !tenant.is_empty()).cloned(),
            revision: revision.clone(),
        }
    }
}
