//! What the tests of the tree share: packages made on the fly, functions that need them, and the tree as the report has it beside
//! the processes that it consists of.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::crash::{is_zygote, mount};
use crate::deploys;
use crate::deploys::index::{Index, Listed};
use crate::deploys::wheel::Wheel;
use crate::server::{Answer, Process, Server, processes, still_running};

/// A server whose packages are made here.
pub(crate) struct Grove {
    pub(crate) server: Server,
    pub(crate) data: TempDir,
    index: Index,
    work: TempDir,
}

/// A container: its processes, and its cgroup.
pub(crate) struct Remains {
    processes: BTreeSet<Process>,
    groups: BTreeSet<String>,
}

impl Grove {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(flags: &[&str]) -> Self {
        let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let index = Index::start();
        let server = deploys::server_with(data.path(), &index.url(), flags);
        Self { server, data, index, work }
    }

    /// The server ends, as an operator does it, and another begins over the same data.
    pub(crate) fn restarted(self) -> Self {
        let Self { server, data, index, work } = self;
        assert!(server.stop());
        let server = deploys::server_with(data.path(), &index.url(), &[]);
        Self { server, data, index, work }
    }

    /// Puts a package into the index: version 1.0, one module of its name.
    pub(crate) fn package(&self, name: &str, source: &str) {
        self.package_of(name, &[("__init__.py", source)]);
    }

    pub(crate) fn package_of(&self, name: &str, files: &[(&str, &str)]) {
        let add = |wheel: Wheel, (file, text): &(&str, &str)| wheel.file(&format!("{name}/{file}"), *text);
        let wheel = files.iter().fold(Wheel::new(name, "1.0"), add);
        self.index.put(name, &[Listed::new(&wheel)]);
    }

    /// Packages that are nothing but large, and tell their version when asked.
    pub(crate) fn weights(&self, names: &[&str], megabytes: usize) {
        for name in names {
            self.package(name, &format!("name = '{name}'\nweight = b'x' * ({megabytes} << 20)\n"));
        }
    }

    /// Deploys a function; whether that succeeded, and what was said.
    pub(crate) fn try_deploy(
        &self,
        name: &str,
        source: &str,
        requirements: &[&str],
        flags: &[&str],
    ) -> (bool, String) {
        let directory = write(self.work.path(), name, source, requirements);
        let arguments = [&["deploy", directory.to_str().unwrap(), "--name", name, "--timeout", "60"], flags];
        let output = self.server.sock(&arguments.concat());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn deploy(&self, name: &str, source: &str, requirements: &[&str], flags: &[&str]) {
        let (succeeded, said) = self.try_deploy(name, source, requirements, flags);
        assert!(succeeded, "{name}: {said}");
    }

    /// One that imports packages and answers with their names and its event.
    pub(crate) fn deploy_user(&self, name: &str, packages: &[&str], flags: &[&str]) {
        let imports: String = packages.iter().map(|package| format!("import {package}\n")).collect();
        let names: Vec<String> = packages.iter().map(|package| format!("{package}.name")).collect();
        let names = names.join(", ");
        let source = format!("{imports}def handler(event, context):\n    return [event, {names}]\n");
        self.deploy(name, &source, packages, flags);
    }

    /// That such a function answers rightly.
    pub(crate) fn uses(&self, name: &str, packages: &[&str]) -> Answer {
        let event = json!({"to": name});
        let answer = self.server.run(name, &event);
        let mut expected = vec![event];
        expected.extend(packages.iter().map(|package| json!(package)));
        assert_eq!((answer.status, &answer.body), (200, &Value::Array(expected)), "{name}: {answer:?}");
        answer
    }

    /// Waits until the tree has nodes with exactly these packages, and no others with packages.
    pub(crate) fn wait_for_nodes(&self, wanted: &[&[&str]]) -> Vec<Value> {
        wait_for_nodes(&self.server, wanted)
    }

    /// The zygotes whose view holds exactly these packages.
    pub(crate) fn zygotes(&self, packages: &[&str]) -> Vec<Process> {
        zygotes(&self.server, packages)
    }

    pub(crate) fn zygote(&self, packages: &[&str]) -> Process {
        let found = self.zygotes(packages);
        assert_eq!(found.len(), 1, "zygotes with {packages:?}: {found:?}");
        found.into_iter().next().unwrap()
    }

    /// The one that was forked from none.
    pub(crate) fn root(&self) -> Process {
        self.zygotes(&[]).into_iter().min_by_key(|zygote| pids(zygote).len()).unwrap()
    }

    /// Everything that lives with these user ids, and is there for longer than a moment.
    pub(crate) fn span(&self, ids: &Range<u32>) -> Remains {
        let all = self.server.processes().into_iter();
        let processes: BTreeSet<_> =
            all.filter(|process| ids.contains(&process.uid) && process.stays()).collect();
        // One that has ended meanwhile is in none.
        let groups = processes.iter().map(Process::group).filter(|group| group.contains("/sock-")).collect();
        Remains { processes, groups }
    }
}

impl Remains {
    /// Waits until nothing of it is left, neither processes, whoever their parent is, nor groups.
    pub(crate) fn wait_for_end(&self, server: &Server) {
        server.wait_until(|| still_running(&self.processes), Vec::is_empty);
        let left = || {
            let groups = self.groups.iter().map(|group| mount().join(group.trim_start_matches('/')));
            groups.filter(|group| group.exists()).collect::<Vec<_>>()
        };
        server.wait_until(left, Vec::is_empty);
    }

    /// What of it has ended.
    pub(crate) fn missing(&self) -> Vec<&Process> {
        let left = still_running(&self.processes);
        self.processes.iter().filter(|process| !left.contains(process)).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.processes.len()
    }
}

/// Writes a function's directory.
pub(crate) fn write(work: &Path, name: &str, source: &str, requirements: &[&str]) -> std::path::PathBuf {
    let directory = work.join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("main.py"), source).unwrap();
    fs::write(directory.join("requirements.txt"), requirements.join("\n")).unwrap();
    directory
}

/// `GET /report`.
pub(crate) fn report(server: &Server) -> Value {
    serde_json::from_str(&server.page("/report")).unwrap()
}

pub(crate) fn nodes(server: &Server) -> Vec<Value> {
    report(server)["nodes"].as_array().unwrap().clone()
}

/// What the report has of a function's idle instances.
pub(crate) fn idle_of(server: &Server, function: &str) -> Value {
    let report = report(server);
    let mut functions = report["functions"].as_array().unwrap().iter();
    functions.find(|one| one["name"] == function).cloned().unwrap_or_default()
}

/// Names of what a node can import from.
pub(crate) fn packages(node: &Value) -> BTreeSet<String> {
    let list = node["packages"].as_array().unwrap().iter();
    list.map(|one| one.as_str().unwrap().split(' ').next().unwrap().to_owned()).collect()
}

pub(crate) fn imports(node: &Value) -> BTreeSet<&str> {
    node["imports"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

/// The node with exactly these packages.
pub(crate) fn node<'a>(nodes: &'a [Value], of: &[&str]) -> Option<&'a Value> {
    let wanted: BTreeSet<String> = of.iter().map(|name| (*name).to_owned()).collect();
    nodes.iter().find(|node| packages(node) == wanted)
}

/// Waits until the nodes with packages are those with exactly these, each once.
pub(crate) fn wait_for_nodes(server: &Server, wanted: &[&[&str]]) -> Vec<Value> {
    let set = |names: &&[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let mut wanted: Vec<BTreeSet<String>> = wanted.iter().map(set).collect();
    wanted.sort();
    let sorted = |nodes: &[Value]| {
        let mut found: Vec<_> = nodes.iter().map(packages).filter(|packages| !packages.is_empty()).collect();
        found.sort();
        found
    };
    server.wait_until(|| nodes(server), |nodes| sorted(nodes) == wanted)
}

/// What is below `/packages`, by the names of the distributions.
fn view(process: &Process) -> BTreeSet<String> {
    let entries = fs::read_dir(process.inside("/packages")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| Some(name.strip_suffix(".dist-info")?.rsplit_once('-')?.0.to_lowercase()))
        .collect()
}

/// The zygotes whose view holds exactly these packages.
pub(crate) fn zygotes(server: &Server, packages: &[&str]) -> Vec<Process> {
    let wanted: BTreeSet<String> = packages.iter().map(|name| (*name).to_owned()).collect();
    server.processes().into_iter().filter(|one| is_zygote(one) && view(one) == wanted).collect()
}

/// The user ids that a zygote has for itself and for what is forked from it.
pub(crate) fn ids(zygote: &Process) -> Range<u32> {
    ids_if_alive(zygote).unwrap()
}

pub(crate) fn ids_if_alive(zygote: &Process) -> Option<Range<u32>> {
    let map = fs::read_to_string(format!("/proc/{}/uid_map", zygote.pid)).ok()?;
    let numbers: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers.first(), Some(&0), "{map}");
    Some(numbers[1]..numbers[1] + numbers[2])
}

/// Its numbers, from the machine's to its own.
pub(crate) fn pids(process: &Process) -> Vec<u32> {
    process.status("NSpid").split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// All processes of the machine with one of these user ids, the dead that nobody waited for left out.
pub(crate) fn with_ids(ids: &Range<u32>) -> Vec<Process> {
    let ours = processes().into_iter().filter(|process| ids.contains(&process.uid));
    ours.filter(|process| !process.status("VmSize").is_empty()).collect()
}
