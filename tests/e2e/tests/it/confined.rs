//! A hostile package in a zygote: what it reaches is itself and what is forked from it. Each case is a function of
//! `functions/evil.py`, called when the package is imported; then its function answers, or its deployment says why it cannot, and
//! everybody else goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::crash::is_zygote;
use crate::grove::{self, Grove, Remains, ids, node, nodes, pids};
use crate::server::{Answer, Process, still_running, tests};

const FUNCTION: &str = "evil";
const SOURCE: &str = "import evil, os\ndef handler(event, context):\n    \
                      return {'results': evil.results, 'pids': os.readlink('/proc/self/ns/pid'), 'event': event}\n";

/// A server with the hostile function, and one beside it.
struct Bench {
    grove: Grove,
    beside: Process,
    root: Process,
    /// Of the deployment.
    deployed: bool,
    said: String,
}

impl Bench {
    fn new(case: &str) -> Self {
        Self::with(case, &|_| json!({}))
    }

    /// `event` is what the package gets to know.
    fn with(case: &str, event: &dyn Fn(&Grove) -> Value) -> Self {
        let grove = Grove::new();
        grove.weights(&["other"], 4);
        grove.deploy_user("beside", &["other"], &[]);
        grove.uses("beside", &["other"]);
        let (beside, root) = (grove.zygote(&["other"]), grove.root());
        let text = |path: &str| fs::read_to_string(tests(path)).unwrap();
        let named =
            format!("import json\nCASE = {case:?}\nEVENT = json.loads({:?})\n", event(&grove).to_string());
        let (package, ways_out) =
            (text("e2e/functions/evil.py"), text("../crates/isolation/tests/it/escape/probes.py"));
        let files = [("__init__.py", &*package), ("case.py", &named), ("ways_out.py", &ways_out)];
        grove.package_of(FUNCTION, &files);
        let (deployed, said) = grove.try_deploy(FUNCTION, SOURCE, &[FUNCTION], &[]);
        Self { grove, beside, root, deployed, said }
    }

    fn run(&self) -> Answer {
        self.grove.server.run(FUNCTION, &json!("asked"))
    }

    /// That the function answers, which was deployed; what the package's case came to.
    fn answers(&self) -> (Answer, BTreeMap<String, Value>) {
        assert!(self.deployed, "{}", self.said);
        let answer = self.run();
        assert_eq!((answer.status, &answer.body["event"]), (200, &json!("asked")), "{answer:?}");
        let results = serde_json::from_value(answer.body["results"].clone()).unwrap();
        (answer, results)
    }

    /// The same of one that is forked from the zygote in which the package did what it does.
    fn forked(&self) -> BTreeMap<String, Value> {
        let (answer, results) = self.answers();
        assert!(["zygote", "spare"].contains(&answer.start.as_str()), "{answer:?}");
        let instance = self.grove.server.processes().into_iter().filter(|process| {
            process.namespace("pid").is_some_and(|link| link.to_str() == answer.body["pids"].as_str())
        });
        let zygote = self.zygote();
        let of = instance.filter(|process| ids(&zygote).contains(&process.uid));
        assert!(of.count() > 0, "it is not forked from its own zygote: {answer:?}");
        results
    }

    /// The zygote of the package, without what it started itself.
    fn zygote(&self) -> Process {
        self.zygote_if_any().unwrap()
    }

    fn zygote_if_any(&self) -> Option<Process> {
        let found = self.grove.zygotes(&[FUNCTION]).into_iter();
        found.filter(is_zygote).min_by_key(pids)
    }

    /// One that makes no children is given up, and another one takes its place.
    fn all_of_it(&self) -> (Remains, Range<u32>) {
        let range = self.grove.server.wait_until(|| self.range(), Option::is_some).unwrap();
        (self.grove.span(&range), range)
    }

    fn range(&self) -> Option<Range<u32>> {
        grove::ids_if_alive(&self.zygote_if_any()?)
    }

    /// Waits until what `outlives` starts is on its own: PID 1, the zygote, three more; and the instance.
    fn is_complete(&self) {
        let count = || self.range().map_or(0, |range| self.grove.span(&range).count());
        self.grove.server.wait_until(count, |count| *count >= 6);
    }

    /// That a deployment that failed says why, in the package's terms.
    fn refused(&self, why: &str) {
        assert!(!self.deployed, "it was deployed");
        assert_eq!(self.said.lines().count(), 1, "{}", self.said);
        assert!(self.said.contains(why), "{}", self.said);
    }

    /// That nobody else has noticed anything, and that it all goes away.
    fn others_go_on(self) {
        let Self { grove, beside, root, .. } = self;
        grove.uses("beside", &["other"]);
        grove.deploy_user("after", &["other"], &[]);
        let answer = grove.uses("after", &["other"]);
        assert!(["zygote", "spare"].contains(&answer.start.as_str()), "{answer:?}");
        let both = [beside, root].into();
        assert_eq!(still_running(&both).len(), 2, "another zygote died");
        let before = grove.server.processes();
        assert!(grove.server.stop());
        assert_eq!(still_running(&before), Vec::<&Process>::new());
    }

    /// That nothing with one of its user ids is left once its function is deleted.
    fn leaves_nothing(self) {
        let (all, range) = self.all_of_it();
        self.grove.server.succeed(&["delete", FUNCTION]);
        all.wait_for_end(&self.grove.server);
        self.grove.server.wait_until(|| grove::with_ids(&range), Vec::is_empty);
        self.others_go_on();
    }
}

/// What a function's process is refused, and a zygote is not: it has to fork into slots, and to stay the root of its own namespace.
/// With what comes of it.
const ALLOWED: [(&str, &str); 6] = [
    // Its channels.
    ("inherited_descriptors", "made"),
    // The process that tries it is a child of the zygote, which the zygote's own processes see and may end.
    ("others_seen", "made"),
    ("kill_all", "made"),
    // The first processes of its slots.
    ("kill_outside", "EPERM"),
    // "/own", in its own part of the hierarchy.
    ("cgroup_path", "made"),
    // It forks into cgroups by clone3; a user namespace is refused all the same.
    ("user_namespace_by_clone3", "EPERM"),
];

/// Too much for a machine that others work on, each bounded by limits of which there are cases below.
const NOT_HERE: [&str; 3] = ["all_processes", "all_of_tmp", "all_inodes"];

#[test]
fn ways_out() {
    let expected = include_str!("../../../../crates/isolation/tests/it/escape/expected.txt");
    let lines = expected.lines().filter(|line| !line.starts_with('#'));
    let expected: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
    let probes: Vec<&&str> = expected.keys().filter(|name| !NOT_HERE.contains(name)).collect();
    let bench = Bench::with("probes", &|grove| {
        let mut environment =
            json!({"PORT": grove.server.port().to_string(), "ABSTRACT": "nobody", "KEY": "12345"});
        let beside = grove.zygote(&["other"]).pid.to_string();
        for (name, value) in [("", &*beside), ("_PORT", "1"), ("_ABSTRACT", "nobody"), ("_KEY", "12345")] {
            environment[format!("NEIGHBOUR{name}")] = json!(value);
        }
        json!({"environment": environment, "probes": probes})
    });
    let results = bench.forked();
    assert_eq!(results.len(), probes.len());
    let differs = results.iter().filter(|(name, outcome)| {
        let outcome = outcome.as_str().unwrap();
        let wanted = ALLOWED.iter().find(|(allowed, _)| allowed == name);
        wanted.map_or(expected[&***name], |(_, outcomes)| outcomes).split(' ').all(|one| one != outcome)
    });
    assert_eq!(differs.collect::<Vec<_>>(), Vec::new());
    bench.leaves_nothing();
}

#[test]
fn it_holds_nothing() {
    let bench = Bench::new("status");
    let results = bench.forked();
    let status = &results["status"];
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!((&status["NoNewPrivs"], &status["Seccomp"]), (&json!("1"), &json!("2")));
    assert_eq!(results["group"], json!(["/own"]), "the host's cgroups are seen");
    // What it says is what the kernel says.
    let zygote = bench.zygote();
    // While a child is forked it has a slot's cgroup, of a mount that is nowhere. From a directory of one that is attached one gets out.
    let fds = fs::read_dir(format!("/proc/{}/fd", zygote.pid)).unwrap().flatten();
    let directories = fds.filter(|fd| fs::metadata(fd.path()).is_ok_and(|file| file.is_dir()));
    let mount = |fd: fs::DirEntry| {
        let number = fd.file_name().into_string().unwrap();
        let told = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", zygote.pid)).ok()?;
        told.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(|id| id.trim().to_owned())
    };
    let held: BTreeSet<String> = directories.filter_map(mount).collect();
    let tables = bench.grove.server.processes().into_iter();
    let tables =
        tables.filter_map(|process| fs::read_to_string(format!("/proc/{}/mountinfo", process.pid)).ok());
    let attached: BTreeSet<String> = tables
        .flat_map(|table| {
            table.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    assert!(attached.len() > 20 && held.is_disjoint(&attached), "{held:?} of {attached:?}");
    assert_eq!(results["identity"][0].as_u64(), pids(&zygote).last().map(|pid| u64::from(*pid)));
    assert_eq!(results["identity"][2].as_str(), zygote.namespace("pid").unwrap().to_str());
    bench.leaves_nothing();
}

#[test]
fn it_reaches_nobody_else() {
    let bench = Bench::with("reaches", &|grove| {
        let pids: BTreeSet<u32> = grove.server.processes().iter().map(|process| process.pid).collect();
        json!({ "pids": pids })
    });
    let results = bench.forked();
    // A number may be that of the first process in a slot of its own, which it sees.
    for (way, refusals) in [
        ("signal", &["ESRCH", "EPERM"][..]),
        ("ptrace", &["EPERM"]),
        ("memory", &["ENOENT", "EACCES"]),
        ("root", &["ENOENT", "EACCES"]),
    ] {
        let found = results[way].as_array().unwrap();
        assert!(found.iter().all(|one| refusals.contains(&one.as_str().unwrap())), "{way}: {results:?}");
    }
    for kind in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let outcome = results[&format!("enter {kind}")].as_str().unwrap();
        assert!(["EPERM", "EACCES", "EINVAL"].contains(&outcome), "{kind}: {outcome}");
    }
    bench.leaves_nothing();
}

#[test]
fn it_sees_its_own_children_only() {
    let bench = Bench::new("watcher");
    bench.forked();
    let zygote = bench.zygote();
    // What there is by its word, with whose it is; and how many it has ever seen.
    let seen = || -> (BTreeMap<String, String>, usize) {
        let text = fs::read_to_string(zygote.inside("/tmp/seen")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    // While others come and go.
    bench.grove.server.wait_until(seen, |(_, count)| *count > 0);
    let grove = &bench.grove;
    for number in 0..5 {
        grove.deploy_user(&format!("beside-{number}"), &["other"], &[]);
        grove.uses(&format!("beside-{number}"), &["other"]);
    }
    let (_, before) = seen();
    grove.deploy(FUNCTION, &format!("{SOURCE}more = 1\n"), &[FUNCTION], &[]);
    bench.forked();
    grove.server.wait_until(seen, |(_, count)| *count > before);
    // What makes a slot is there for a moment before it has become the slot's user.
    grove.server.wait_until(seen, |(now, _)| !now.is_empty() && now.values().all(|uid| uid != "65534"));
    let level = pids(&zygote).len() - 1;
    let others = grove.server.processes().into_iter().filter(|process| !ids(&zygote).contains(&process.uid));
    let deep: Vec<Process> = others.filter(|process| pids(process).len() > level + 1).collect();
    let same = deep.iter().filter(|one| one.namespace("pid") == zygote.namespace("pid"));
    assert_eq!(same.count(), 0, "another one lives in its namespace");
    bench.leaves_nothing();
}

#[test]
fn what_it_says_on_the_fork_channel_is_no_request() {
    let bench = Bench::new("fork_channel");
    bench.forked();
    bench.leaves_nothing();
}

#[test]
fn it_may_speak_on_the_fork_channel_without_end() {
    let bench = Bench::new("fork_channel_without_end");
    let (answer, _) = bench.answers();
    assert_ne!(answer.start, "warm");
    assert_eq!(bench.run().start, "warm");
    bench.leaves_nothing();
}

#[test]
fn without_a_fork_channel_its_function_starts_by_itself() {
    let bench = Bench::new("fork_channel_closed");
    if bench.deployed {
        let (answer, _) = bench.answers();
        assert_ne!(answer.start, "warm");
        assert_eq!(bench.run().start, "warm");
    }
    bench.others_go_on();
}

#[test]
fn garbage_on_the_control_socket_is_told() {
    let bench = Bench::new("control_garbage");
    bench.refused("a zygote failed while importing");
    nothing_of_it_is_left(&bench);
    bench.others_go_on();
}

#[test]
fn a_frame_that_is_too_long_is_told() {
    let bench = Bench::new("control_too_long");
    bench.refused("a zygote failed while importing: a frame of 2147483648 bytes");
    nothing_of_it_is_left(&bench);
    bench.others_go_on();
}

#[test]
fn descriptors_on_the_control_socket_are_of_no_use() {
    let bench = Bench::new("control_descriptors");
    bench.refused("a zygote failed while importing");
    nothing_of_it_is_left(&bench);
    bench.others_go_on();
}

fn nothing_of_it_is_left(bench: &Bench) {
    bench.grove.server.wait_until(|| bench.grove.zygotes(&[FUNCTION]), Vec::is_empty);
}

#[test]
fn a_zygote_that_says_something_unasked_is_ended() {
    let bench = Bench::new("facts_twice");
    let server = &bench.grove.server;
    assert!(bench.deployed, "{}", bench.said);
    server.wait_until(|| node(&nodes(server), &[FUNCTION]).is_none(), |gone| *gone);
    let (answer, _) = bench.answers();
    assert_ne!(answer.start, "warm");
    server.succeed(&["delete", FUNCTION]);
    nothing_of_it_is_left(&bench);
    bench.others_go_on();
}

#[test]
fn a_zygote_that_hangs_up_is_ended() {
    let bench = Bench::new("facts_and_closed");
    assert!(bench.deployed, "{}", bench.said);
    let (answer, _) = bench.answers();
    assert_ne!(answer.start, "warm");
    bench.grove.server.succeed(&["delete", FUNCTION]);
    nothing_of_it_is_left(&bench);
    bench.others_go_on();
}

/// For what it says about itself it may have any reason; that it is not started again and again is for everybody's good.
fn is_not_started_for_ever(case: &str) {
    let bench = Bench::new(case);
    let server = &bench.grove.server;
    assert!(bench.deployed, "{}", bench.said);
    let newest = || nodes(server).iter().filter_map(|node| node["id"].as_u64()).max().unwrap();
    let first = newest();
    let mut looks = 0;
    server.wait_until(
        || {
            looks += 1;
            looks
        },
        |looks| *looks > 30,
    );
    bench.grove.weights(&["late"], 1);
    bench.grove.deploy_user("late", &["late"], &[]);
    let last = newest();
    assert!(last - first < 8, "{} zygotes were started meanwhile", last - first);
    // Not before: what is forked from one dies with it.
    let (answer, _) = bench.answers();
    assert_ne!(answer.start, "warm");
    bench.others_go_on();
}

#[test]
fn a_zygote_that_ends_as_soon_as_it_was_started_is_not_started_for_ever() {
    is_not_started_for_ever("facts_and_gone");
}

#[test]
fn a_zygote_that_ends_a_moment_later_is_not_started_for_ever() {
    is_not_started_for_ever("ends_later");
}

#[test]
fn a_zygote_that_does_not_fork_is_given_up() {
    let bench = Bench::new("facts_and_silent");
    let (answer, _) = bench.answers();
    assert_ne!(answer.start, "warm");
    nothing_of_it_is_left(&bench);
    bench.others_go_on();
}

/// It was looked at when it had one process, which is all that its function's limits will be set for.
#[test]
fn a_spare_that_made_more_of_itself_is_nobodys_instance() {
    let bench = Bench::new("splits");
    bench.answers();
    let range = ids(&bench.zygote());
    let crowded = || {
        let all = bench.grove.server.processes().into_iter().filter(|process| range.contains(&process.uid));
        // One that has its function has its limits, and may.
        let all = all.filter(|process| !process.inside("/var/task/main.py").exists());
        let all: Vec<(String, Option<PathBuf>)> =
            all.map(|process| (process.group(), process.namespace("pid"))).collect();
        let slots = all.iter().filter(|(group, _)| !group.ends_with("/own"));
        let crowded = slots.filter(|(group, _)| all.iter().filter(|(other, _)| other == group).count() > 2);
        crowded.filter_map(|(_, pids)| pids.clone()).collect::<BTreeSet<_>>()
    };
    let crowded = bench.grove.server.wait_until(crowded, |crowded| !crowded.is_empty());
    // The one that has answered is of the deployment before.
    let (deployed, said) = bench.grove.try_deploy(FUNCTION, SOURCE, &[FUNCTION], &[]);
    assert!(deployed, "{said}");
    let answer = bench.run();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_ne!(answer.start, "warm");
    let pids = PathBuf::from(answer.body["pids"].as_str().unwrap());
    assert!(!crowded.contains(&pids), "{answer:?}");
    bench.leaves_nothing();
}

#[test]
fn its_lies_about_what_others_import_cost_them_nothing() {
    const MODULES: [&str; 4] = ["decimal", "fractions", "statistics", "numbers"];
    let bench = Bench::with("lies", &|grove| {
        let source =
            "import decimal, fractions, statistics, other\ndef handler(event, context):\n    return event\n";
        grove.deploy("sums", source, &["other"], &[]);
        json!({ "modules": MODULES })
    });
    // Planned anew, with all that was learnt.
    bench.grove.deploy_user("more", &["other"], &[]);
    let mut looks = 0;
    bench.grove.server.wait_until(
        || {
            looks += 1;
            let nodes = nodes(&bench.grove.server);
            let there = nodes.iter().any(|node| grove::imports(node).contains("statistics"));
            assert!(there, "a node was ended for what another one says: {nodes:#?}");
            looks
        },
        |looks| *looks > 20,
    );
    let (_, results) = bench.answers();
    assert_eq!(results["told"], 4, "it has not told them in a zygote");
    bench.others_go_on();
}

#[test]
fn what_it_starts_does_not_outlive_its_function() {
    let bench = Bench::new("outlives");
    bench.forked();
    bench.is_complete();
    bench.leaves_nothing();
}

#[test]
fn what_it_starts_does_not_outlive_its_zygote() {
    let bench = Bench::new("outlives");
    bench.forked();
    bench.is_complete();
    let (all, _) = bench.all_of_it();
    bench.zygote().kill();
    all.wait_for_end(&bench.grove.server);
    let (answer, _) = bench.answers();
    assert_ne!(answer.start, "warm");
    bench.leaves_nothing();
}

#[test]
fn killing_all_it_sees_is_its_own_end_at_most() {
    let bench = Bench::new("kills_all");
    let (_, results) = bench.answers();
    assert!(
        results.get("all").is_none_or(|all| ["made", "ESRCH"].contains(&all.as_str().unwrap())),
        "{results:?}"
    );
    bench.others_go_on();
}

/// A deployment that fails says so; the function that its package ends in the zygote only works once it is deployed again, since it
/// starts from the root then.
fn dies(case: &str, why: &str) {
    let bench = Bench::new(case);
    if bench.deployed {
        let (answer, _) = bench.answers();
        assert_ne!(answer.start, "warm", "{case}");
    } else {
        bench.refused(why);
    }
    nothing_of_it_is_left(&bench);
    bench.others_go_on();
}

#[test]
fn an_exit_is_its_own_end() {
    dies("exits", "a zygote failed while importing: the process is gone");
}

#[test]
fn a_crash_is_its_own_end() {
    dies("crashes", "a zygote failed while importing: the process is gone");
}

#[test]
fn an_import_that_raises_is_left_to_the_function() {
    let bench = Bench::new("raises");
    let (answer, _) = bench.answers();
    assert!(["zygote", "spare"].contains(&answer.start.as_str()), "{answer:?}");
    bench.leaves_nothing();
}

#[test]
fn its_descriptors_are_limited() {
    let bench = Bench::new("descriptors");
    if bench.deployed {
        let (answer, results) = bench.answers();
        if !results.is_empty() {
            assert_eq!(
                (&results["descriptors"], &results["kept"]),
                (&json!("EMFILE"), &json!(true)),
                "{results:?}"
            );
        }
        assert_ne!(answer.start, "warm");
    } else {
        bench.refused("a zygote failed while importing");
    }
    bench.others_go_on();
}

#[test]
fn its_limits_cannot_be_raised() {
    let bench = Bench::new("resource_limits");
    let results = bench.forked();
    for name in ["NOFILE", "NPROC", "DATA"] {
        let limit = results[name][1].as_i64().unwrap();
        let by_kernel = name != "NOFILE" && limit == -1;
        assert!(by_kernel || results[&format!("more {name}")] == "refused", "{name}: {results:?}");
    }
    assert!((1..=4096).contains(&results["NOFILE"][1].as_i64().unwrap()), "{results:?}");
    bench.leaves_nothing();
}

#[test]
fn many_processes_of_it_are_gone_with_it() {
    let bench = Bench::new("processes");
    let (_, results) = bench.answers();
    if !results.is_empty() {
        assert_eq!(results["processes"], "EAGAIN", "{results:?}");
    }
    bench.leaves_nothing();
}
