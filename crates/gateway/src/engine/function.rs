//! What the engine works out about a function once per revision: its lock, its own names, what it imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use sock_isolation::Limits;
use sock_pkgcache::{DistName, View, ViewEntry};
use sock_zygote::frames::{self, FunctionInfo, Init};
use sock_zygote::scan::{Source, Sources, scan};
use sock_zygote::{Candidate, Distribution, Import, Lock};

use super::planner::imports_and;
use crate::runner::Function;

/// A function made ready for instances.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) function: Arc<Function>,
    pub(crate) candidate: Candidate,
    pub(crate) imports: Vec<Import>,
    pub(crate) init: Init,
    /// Its own modules compiled, as the first instance sent them. Later ones need not look for them.
    pub(crate) code: OnceLock<Vec<u8>>,
    pub(crate) limits: Limits,
    /// Name of its view at the launcher.
    pub(crate) view: Option<String>,
    /// Which distributions of its lock each one says it requires.
    pub(crate) requires: BTreeMap<String, BTreeSet<String>>,
}

// A bundle's sources are read to be scanned: more than this is data in a .py file.
const MAX_SOURCE: u64 = 2 << 20;

impl Prepared {
    /// Reads the function's code beneath `data`. Blocking.
    pub(crate) fn new(function: Arc<Function>, data: &Path) -> Self {
        let sources = sources(&data.join(&function.code_dir));
        let imports = scan(&sources, &function.handler);
        let mut own: BTreeSet<String> =
            sources.keys().filter_map(|name| name.split('.').next()).map(str::to_owned).collect();
        own.extend(entries(&data.join(&function.code_dir)));
        let view = function.view.as_ref().filter(|view| !view.entries.is_empty());
        let lock: Lock = view.map(|view| view.entries.iter().map(distribution).collect()).unwrap_or_default();
        let log_stream = log_stream(&function);
        let info = FunctionInfo {
            name: function.name.to_string(),
            version: function.version.clone(),
            memory_mb: function.memory_mb,
            log_group: function.log_group(),
            log_stream: log_stream.clone(),
        };
        let env = function.environment(&log_stream);
        // Lambda gives a whole processor at 1,769 MB and shares in proportion; below, a share that small would make every
        // start slow, so nobody gets less than one.
        let cpu_millis = (function.memory_mb * 1000 / 1769).max(1000);
        let limits = Limits { memory: u64::from(function.memory_mb) << 20, cpu_millis, ..Limits::default() };
        let candidate = Candidate { lock, env: env.clone(), own };
        let requires = view.map(|view| requires(view, data)).unwrap_or_default();
        let view = view.map(|view| view.id.to_string());
        let init = Init { handler: function.handler.clone(), env, function: info, tell: false, keep: false };
        let code = OnceLock::new();
        Self { function, candidate, imports, init, code, limits, view, requires }
    }

    /// What an instance is sent to become the function: whether it shall tell what that imported, and keep what it compiled.
    pub(crate) fn init(&self, tell: bool, keep: bool) -> Vec<u8> {
        let init = Init { tell, keep, ..self.init.clone() };
        frames::init(&init, self.code.get().map_or(&[], Vec::as_slice))
    }

    /// What a zygote of its own would import: what the sources import, and what was seen to be imported `beyond` that.
    pub(crate) fn imports_with(&self, beyond: Option<&BTreeSet<String>>) -> Vec<Import> {
        let is_own =
            |module: &&String| self.candidate.own.contains(module.split('.').next().unwrap_or_default());
        let beyond = beyond.into_iter().flatten().filter(|module| !is_own(module)).cloned().collect();
        imports_and(&self.imports, &beyond)
    }

    /// What all functions of this server have alike: imports such as powertools' read it.
    pub(crate) fn shared_environment(&self) -> BTreeMap<String, String> {
        let names = ["AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "AWS_REGION"];
        let variable = |name: &str| Some((name.to_owned(), self.candidate.env.get(name)?.clone()));
        names.into_iter().filter_map(variable).collect()
    }
}

fn distribution(entry: &sock_pkgcache::ViewEntry) -> (String, Distribution) {
    let distribution = Distribution {
        version: entry.version.clone(),
        sha256: entry.sha256.to_string(),
        modules: entry.modules.clone(),
    };
    (entry.name.to_string(), distribution)
}

/// As far as their metadata says. What is required under a condition counts where it is there: a node that has too much is less of use,
/// one that has too little fails to import.
fn requires(view: &View, data: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let names: BTreeSet<String> = view.entries.iter().map(|entry| entry.name.to_string()).collect();
    let of = |entry: &ViewEntry| {
        let text = metadata(&data.join("packages").join(&entry.dir)).unwrap_or_default();
        let required = required(&text).filter(|name| names.contains(name) && *name != entry.name.to_string());
        (entry.name.to_string(), required.collect())
    };
    view.entries.iter().map(of).collect()
}

// With the description, which is the largest part of it.
const MAX_METADATA: u64 = 1 << 20;

fn metadata(root: &Path) -> Option<String> {
    let directories = std::fs::read_dir(root).ok()?.flatten();
    let info = directories
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|kind| kind == "dist-info"))?;
    let path = info.join("METADATA");
    if path.metadata().ok()?.len() > MAX_METADATA { None } else { std::fs::read_to_string(path).ok() }
}

/// Normalised names in the `Requires-Dist` fields of core metadata. PEP 508.
fn required(metadata: &str) -> impl Iterator<Item = String> {
    let fields = metadata.lines().take_while(|line| !line.is_empty());
    let required = fields.filter_map(|line| line.strip_prefix("Requires-Dist:"));
    required.filter_map(|requirement| {
        let name =
            requirement.trim().split(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).next()?;
        DistName::parse(name).ok().map(|name| name.to_string())
    })
}

fn log_stream(function: &Function) -> String {
    let today = time::OffsetDateTime::now_utc().date();
    let date = format!("{}/{:02}/{:02}", today.year(), u8::from(today.month()), today.day());
    format!("{date}/[{}]{}", function.version, uuid::Uuid::new_v4().simple())
}

/// Names at the top of a directory that an import could find.
fn entries(directory: &Path) -> BTreeSet<String> {
    let Ok(list) = std::fs::read_dir(directory) else { return BTreeSet::new() };
    let names = list.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter_map(|name| name.split('.').next().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Every Python source beneath `root` by module name.
fn sources(root: &Path) -> Sources {
    let mut sources = Sources::new();
    let mut pending = vec![(root.to_owned(), String::new())];
    while let Some((directory, prefix)) = pending.pop() {
        let Ok(list) = std::fs::read_dir(&directory) else { continue };
        for entry in list.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                if is_identifier(&name) {
                    pending.push((entry.path(), format!("{prefix}{name}.")));
                }
                continue;
            }
            let Some(stem) = name.strip_suffix(".py").filter(|stem| is_identifier(stem)) else { continue };
            if metadata.len() > MAX_SOURCE {
                continue;
            }
            let package = stem == "__init__" && !prefix.is_empty();
            let module =
                if package { prefix.trim_end_matches('.').to_owned() } else { format!("{prefix}{stem}") };
            if let Ok(text) = std::fs::read_to_string(entry.path()) {
                sources.insert(module, Source { text, package });
            }
        }
    }
    sources
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}
