//! The tree of zygotes: that there is one, that each node of it is a container by itself, and that it grows, dies and comes back as
//! the kernel and `GET /report` tell.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::grove::{self, Grove, ids, imports, node, nodes, packages, pids};
use crate::server::{Process, Server, still_running};

/// Of a node that is forked from another one: that it is another container, within that.
fn is_a_container_within(child: &Process, parent: &Process) {
    let (inner, outer) = (ids(child), ids(parent));
    assert!(outer.start < inner.start && inner.end <= outer.end, "{inner:?} is not within {outer:?}");
    assert!(child.is_forked_from(parent), "{child:?} and {parent:?}");
    for kind in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(child.namespace(kind), parent.namespace(kind), "{kind}");
    }
    assert_ne!(child.group(), parent.group());
    let (numbers, above) = (pids(child), pids(parent));
    assert_eq!(numbers.len(), above.len() + 1, "{numbers:?} beneath {above:?}");
    assert_ne!(numbers.last(), above.last(), "a library cannot tell that it was forked");
    holds_nothing(child);
}

fn holds_nothing(process: &Process) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(process.status(set), "0000000000000000", "{set} of {process:?}");
    }
    assert_eq!((process.status("NoNewPrivs"), process.status("Seccomp")), ("1".into(), "2".into()));
    assert_eq!(process.status("Threads"), "1");
    assert_ne!(process.uid, 0);
}

#[test]
fn one_function_with_more_packages_is_forked_from_the_zygote_of_one_with_fewer() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    // As `tests/functions` has them: whatever versions the machine's index has, of which there is one in the lock.
    let numbers = "import os, numpy\nfrom importlib import metadata\ndef seen(*names):\n    \
                   return [{name: metadata.version(name) for name in names}, os.readlink('/proc/self/ns/pid')]\n";
    let fewer = format!(
        "{numbers}def handler(event, context):\n    return [int(numpy.arange(event).sum()), *seen('numpy')]\n"
    );
    let more = format!(
        "import jinja2\n{numbers}def handler(event, context):\n    text = jinja2.Template('{{{{ a }}}}').render(a=event)\n    \
         return [int(text) + int(numpy.ones(1)[0]), *seen('numpy', 'Jinja2', 'MarkupSafe')]\n"
    );
    let deploy = |name: &str, source: &str, requirements: &[&str]| {
        let path = grove::write(work.path(), name, source, requirements);
        server.deploy(&path, name, &["--timeout", "60", "--memory", "512"]);
    };
    deploy("fewer", &fewer, &["numpy"]);
    deploy("more", &more, &["numpy", "Jinja2"]);
    let (few, many) = (["numpy"], ["numpy", "jinja2", "markupsafe"]);
    let nodes = grove::wait_for_nodes(&server, &[&few, &many]);
    let (lower, upper) = (node(&nodes, &many).unwrap(), node(&nodes, &few).unwrap());
    assert_eq!(lower["parent"], upper["id"], "{nodes:#?}");
    assert!(lower["safe"] == true && upper["safe"] == true, "{nodes:#?}");
    assert!(lower["modules"].as_u64() > upper["modules"].as_u64(), "{nodes:#?}");

    let root = grove::zygotes(&server, &[]).remove(0);
    let [upper, lower] = [&few[..], &many[..]].map(|packages| grove::zygotes(&server, packages).remove(0));
    holds_nothing(&root);
    is_a_container_within(&upper, &root);
    is_a_container_within(&lower, &upper);
    for (name, event, expected, zygote) in [("fewer", 10, 45, &upper), ("more", 10, 11, &lower)] {
        let answer = server.run(name, &json!(event));
        assert_eq!((answer.status, &answer.body[0]), (200, &json!(expected)), "{name}: {answer:?}");
        assert!(["zygote", "spare"].contains(&answer.start.as_str()), "{name}: {answer:?}");
        let listed: BTreeSet<String> = nodes
            .iter()
            .flat_map(|node| node["packages"].as_array().unwrap())
            .map(|one| one.as_str().unwrap().to_owned())
            .collect();
        for (package, version) in answer.body[1].as_object().unwrap() {
            let wanted = format!("{} {}", package.to_lowercase(), version.as_str().unwrap());
            assert!(listed.contains(&wanted), "{wanted} is not in {listed:?}");
        }
        let instance = instance(&server, &answer.body[2]);
        assert!(instance.is_forked_from(zygote), "{name}");
        assert!(ids(zygote).contains(&instance.uid), "{name}");
        let (inside, above) = (pids(&instance), pids(zygote));
        assert_eq!(inside.len(), above.len() + 1, "{name}");
        assert_ne!(inside.last(), above.last(), "{name}");
        holds_nothing(&instance);
    }
    assert!(server.stop());
}

/// The process that answered with its PID namespace.
fn instance(server: &Server, namespace: &Value) -> Process {
    let processes = server.processes().into_iter();
    let mut inside = processes.filter(|process| {
        let link = process.namespace("pid");
        link.is_some_and(|link| link.to_str() == namespace.as_str()) && process.status("Name") != "sock"
    });
    inside.next().unwrap()
}

/// Three levels, and a branch beside them.
fn grown() -> Grove {
    let grove = Grove::new();
    // A node takes a place that is worth its memory: what is shared has to have some.
    grove.weights(&["trunk", "twig", "other"], 4);
    grove.deploy_user("low", &["trunk"], &[]);
    grove.deploy_user("high", &["trunk", "twig"], &[]);
    grove.deploy_user("beside", &["other"], &[]);
    let nodes = grove.wait_for_nodes(&[&["trunk"], &["trunk", "twig"], &["other"]]);
    let (trunk, twig) = (node(&nodes, &["trunk"]).unwrap(), node(&nodes, &["trunk", "twig"]).unwrap());
    assert_eq!(twig["parent"], trunk["id"], "{nodes:#?}");
    grove
}

fn all_answer(grove: &Grove) {
    grove.uses("low", &["trunk"]);
    grove.uses("high", &["trunk", "twig"]);
    grove.uses("beside", &["other"]);
}

#[test]
fn the_death_of_a_node_is_that_of_its_subtree_and_of_nobody_else() {
    let grove = grown();
    all_answer(&grove);
    let (middle, root) = (grove.zygote(&["trunk"]), grove.root());
    let subtree = grove.span(&ids(&middle));
    // Itself, the one below, an instance of each, and a PID 1 for each.
    assert!(subtree.count() >= 8, "{}", subtree.count());
    let beside = grove.span(&ids(&grove.zygote(&["other"])));
    let leaf = grove.zygote(&["trunk", "twig"]);
    middle.kill();
    subtree.wait_for_end(&grove.server);
    assert!(beside.missing().is_empty(), "{}: {:?}", "what was not below it died with it", beside.missing());
    assert_eq!(still_running(&[root].into()).len(), 1);
    // Instances of what died were idle: others answer, rightly, and their zygotes come back where they were.
    all_answer(&grove);
    let nodes = grove.wait_for_nodes(&[&["trunk"], &["trunk", "twig"], &["other"]]);
    let (trunk, twig) = (node(&nodes, &["trunk"]).unwrap(), node(&nodes, &["trunk", "twig"]).unwrap());
    assert_eq!(twig["parent"], trunk["id"], "{nodes:#?}");
    assert!(beside.missing().is_empty(), "{}: {:?}", "what was not below it died after it", beside.missing());
    let [middle, again] = [&["trunk"][..], &["trunk", "twig"]].map(|packages| grove.zygote(packages));
    assert_ne!(again, leaf);
    is_a_container_within(&again, &middle);
    assert!(grove.server.stop());
}

/// Who looks after roots and who makes the tree what the plan says both see that it is missing.
#[test]
fn the_root_is_started_again_once() {
    let grove = grown();
    for _ in 0..4 {
        let root = grove.root();
        root.kill();
        grove.server.wait_until(|| grove.zygotes(&[]), |roots| roots.iter().any(|other| *other != root));
        grove.wait_for_nodes(&[&["trunk"], &["trunk", "twig"], &["other"]]);
        let settled = settled(&grove.server);
        let roots = settled.iter().filter(|node| node["parent"].is_null()).count();
        assert_eq!(roots, 1, "{settled:#?}");
    }
    all_answer(&grove);
    assert!(grove.server.stop());
}

/// What the tree is, but for numbers that differ from start to start.
fn shape(nodes: &[Value]) -> BTreeSet<String> {
    let parent = |node: &Value| {
        let above = nodes.iter().find(|other| other["id"] == node["parent"]);
        above.map(|above| json!([above["packages"], above["imports"]]))
    };
    nodes.iter().map(|node| json!([node["packages"], node["imports"], parent(node)]).to_string()).collect()
}

const DYNAMIC: &str = "import importlib, trunk\ncolours = importlib.import_module('color' + 'sys')\n\
                       def handler(event, context):\n    return [event, trunk.name]\n";

#[test]
fn what_a_handler_imports_dynamically_is_imported_ahead_after_its_first_start_and_after_a_restart() {
    let grove = grown();
    grove.deploy("dynamic", DYNAMIC, &["trunk"], &[]);
    let ahead = |nodes: &Vec<Value>| nodes.iter().any(|node| imports(node).contains("colorsys"));
    let before = nodes(&grove.server);
    assert!(!ahead(&before), "nobody can know of it yet: {before:#?}");
    grove.uses("dynamic", &["trunk"]);
    grove.server.wait_until(|| nodes(&grove.server), ahead);
    // Two that import differently and share a package: the node of the one is what the other's is forked from, or serves both.
    let settled = settled(&grove.server);
    let twins = settled.iter().filter(|node| imports(node).contains("colorsys"));
    assert!(twins.clone().all(|node| packages(node).contains("trunk")), "{settled:#?}");
    grove.uses("dynamic", &["trunk"]);

    // Nobody invokes anything: what is there then was known.
    let grove = grove.restarted();
    let again = grove.server.wait_until(|| nodes(&grove.server), |now| shape(now) == shape(&settled));
    assert!(ahead(&again), "{again:#?}");
    assert!(again.iter().all(|node| node["forks"] == 0), "{again:#?}");
    all_answer(&grove);
    let answer = grove.uses("dynamic", &["trunk"]);
    assert!(["zygote", "spare"].contains(&answer.start.as_str()), "{answer:?}");
    assert!(grove.server.stop());
}

/// The tree once it has not changed for a while.
fn settled(server: &Server) -> Vec<Value> {
    let mut last: Vec<BTreeSet<String>> = Vec::new();
    let mut look = || {
        let nodes = nodes(server);
        last.push(shape(&nodes));
        let same = last.iter().rev().take_while(|one| Some(*one) == last.last()).count();
        (same, nodes)
    };
    server.wait_until(&mut look, |(same, _)| *same >= 15).1
}

#[test]
fn nodes_that_nobody_needs_end_leaf_first_and_leave_nothing() {
    let grove = grown();
    all_answer(&grove);
    let groups = || crate::crash::groups(&crate::crash::mount().join(crate::crash::group(&grove.server)));
    let middle = grove.zygote(&["trunk"]);
    let (subtree, range) = (grove.span(&ids(&middle)), ids(&middle));
    let (before, beside) = (groups(), grove.span(&ids(&grove.zygote(&["other"]))));
    for name in ["low", "high"] {
        grove.server.succeed(&["delete", name]);
    }
    let mut seen = Vec::new();
    grove.server.wait_until(
        || {
            let nodes = nodes(&grove.server);
            seen.push(nodes.clone());
            nodes
        },
        |nodes| nodes.iter().all(|node| !packages(node).contains("trunk")),
    );
    for nodes in &seen {
        let numbers: BTreeSet<u64> = nodes.iter().filter_map(|node| node["id"].as_u64()).collect();
        let orphans =
            nodes.iter().filter(|node| node["parent"].as_u64().is_some_and(|id| !numbers.contains(&id)));
        assert_eq!(orphans.count(), 0, "a node has ended before one that was forked from it: {nodes:#?}");
    }
    subtree.wait_for_end(&grove.server);
    assert_eq!(grove::with_ids(&range), Vec::<Process>::new());
    assert!(groups() < before, "{} cgroups, {before} before", groups());
    assert!(beside.missing().is_empty(), "{}: {:?}", "what was not deleted ended", beside.missing());
    assert_eq!(grove.uses("beside", &["other"]).start, "warm");
    assert!(grove.server.stop());
}

#[test]
fn tenants_share_no_node_with_packages() {
    let grove = Grove::new();
    grove.weights(&["trunk"], 4);
    let source =
        "import os, trunk\ndef handler(event, context):\n    return os.readlink('/proc/self/ns/pid')\n";
    let bare = "import os\ndef handler(event, context):\n    return os.readlink('/proc/self/ns/pid')\n";
    let tenants = [("of-a", &["--tenant", "a"][..]), ("of-b", &["--tenant", "b"]), ("of-none", &[])];
    for (name, flags) in tenants {
        grove.deploy(name, source, &["trunk"], flags);
        grove.deploy(&format!("bare-{name}"), bare, &[], flags);
    }
    let tree = grove.wait_for_nodes(&[&["trunk"], &["trunk"], &["trunk"]]);
    let whose: BTreeSet<Option<&str>> =
        tree.iter().filter(|node| !packages(node).is_empty()).map(|node| node["tenant"].as_str()).collect();
    assert_eq!(whose, [Some("a"), Some("b"), None].into(), "{tree:#?}");
    let zygotes = grove.zygotes(&["trunk"]);
    let mut used = BTreeSet::new();
    for (name, _) in tenants {
        let answer = grove.server.run(name, &json!({}));
        assert!(["zygote", "spare"].contains(&answer.start.as_str()), "{name}: {answer:?}");
        let process = instance(&grove.server, &answer.body);
        let of: Vec<&Process> = zygotes.iter().filter(|zygote| process.is_forked_from(zygote)).collect();
        assert_eq!(of.len(), 1, "{name}: {process:?} of {zygotes:?}");
        // None descends from another's: not even its user ids.
        let within = zygotes.iter().filter(|zygote| ids(zygote).contains(&process.uid)).count();
        assert_eq!(within, 1, "{name}: {process:?} within {zygotes:?}");
        assert!(used.insert(of[0].pid), "{name} is forked from another tenant's zygote");
    }
    let root = grove.root();
    for (name, _) in tenants {
        let answer = grove.server.run(&format!("bare-{name}"), &json!({}));
        let process = instance(&grove.server, &answer.body);
        assert!(zygotes.iter().all(|zygote| !ids(zygote).contains(&process.uid)), "{name}");
        assert!(ids(&root).contains(&process.uid), "{name}");
    }
    // Whoever changes hands is served by the other's from then on.
    grove.deploy("of-a", source, &["trunk"], &["--tenant", "b"]);
    let answer = grove.server.run("of-a", &json!({}));
    let process = instance(&grove.server, &answer.body);
    let of_b = instance(&grove.server, &grove.server.run("of-b", &json!({})).body);
    let same = zygotes.iter().filter(|one| process.is_forked_from(one) && of_b.is_forked_from(one)).count();
    assert_eq!(same, 1, "{process:?} and {of_b:?}");
    assert!(grove.server.stop());
}

const THREADED: &str = "import threading, time\nname = 'threaded'\n\
                        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n";

#[test]
fn nothing_is_forked_from_a_node_with_a_thread_and_its_function_works() {
    let grove = Grove::new();
    grove.weights(&["trunk"], 4);
    grove.package("threaded", THREADED);
    grove.deploy_user("alone", &["threaded"], &[]);
    grove.deploy_user("together", &["threaded", "trunk"], &[]);
    grove.deploy_user("without", &["trunk"], &[]);
    for name in ["alone", "together"] {
        let packages: &[&str] = if name == "alone" { &["threaded"] } else { &["threaded", "trunk"] };
        let first = grove.uses(name, packages);
        assert_ne!(first.start, "warm", "{name}: {first:?}");
        assert_eq!(grove.uses(name, packages).start, "warm", "{name}");
    }
    grove.uses("without", &["trunk"]);
    let tree = settled(&grove.server);
    let unsafe_ones: Vec<&Value> = tree.iter().filter(|node| packages(node).contains("threaded")).collect();
    assert!(unsafe_ones.iter().all(|node| node["safe"] == false && node["forks"] == 0), "{tree:#?}");
    for node in unsafe_ones {
        assert!(tree.iter().all(|other| other["parent"] != node["id"]), "{tree:#?}");
    }
    // Nor is one started again and again to find that out: whoever is next has the next number, after some plans.
    for name in ["one", "two", "three"] {
        grove.deploy_user(name, &["trunk"], &[]);
    }
    settled(&grove.server);
    let before = started(&grove, "larch");
    for name in ["four", "five", "six"] {
        grove.deploy_user(name, &["trunk"], &[]);
    }
    settled(&grove.server);
    assert_eq!(started(&grove, "alder"), before + 1);
    assert!(grove.server.stop());
}

/// The number of a node that is started for this.
fn started(grove: &Grove, name: &str) -> u64 {
    grove.weights(&[name], 4);
    grove.deploy_user(name, &[name], &[]);
    node(&nodes(&grove.server), &[name]).unwrap()["id"].as_u64().unwrap()
}

#[test]
fn little_memory_has_fewer_nodes_than_functions_and_all_of_them_answer() {
    const NAMES: [&str; 4] = ["ash", "beech", "cedar", "elm"];
    let grove = Grove::with(&["--zygote-memory", "16"]);
    grove.weights(&NAMES, 9);
    for name in NAMES {
        grove.deploy_user(name, &[name], &[]);
    }
    // More than one fits by what is supposed of them, and is found to be too large.
    let with_packages = |nodes: &[Value]| nodes.iter().filter(|node| !packages(node).is_empty()).count();
    let now = settled(&grove.server);
    assert_eq!(with_packages(&now), 1, "{now:#?}");
    for _ in 0..2 {
        for name in NAMES {
            grove.uses(name, &[name]);
        }
    }
    // Invocations tell how often each is wanted, which may change who has the place.
    let now = settled(&grove.server);
    assert_eq!(with_packages(&now), 1, "{now:#?}");
    let zygotes: Vec<Process> = NAMES.iter().flat_map(|name| grove.zygotes(&[name])).collect();
    assert!(zygotes.len() <= 1, "{zygotes:?}");
    let bytes: u64 = nodes(&grove.server).iter().filter_map(|node| node["private_bytes"].as_u64()).sum();
    assert!(bytes < 64 << 20, "{bytes}");
    assert!(grove.server.stop());
}

#[test]
fn a_node_that_is_asked_for_much_has_several_processes_and_all_of_them_fork() {
    let grove = Grove::with(&["--zygote-forks", "2", "--spare-memory", "0"]);
    grove.weights(&["trunk"], 4);
    grove.deploy_user("hot", &["trunk"], &["--single-use"]);
    let forks = || {
        let nodes = nodes(&grove.server);
        let of = nodes.iter().filter(|node| packages(node).contains("trunk"));
        of.map(|node| node["forks"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while forks().iter().filter(|count| **count > 1).count() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", forks());
        grove.uses("hot", &["trunk"]);
    }
    assert!(grove.zygotes(&["trunk"]).len() > 1);
    assert!(grove.server.stop());
}

/// It grows behind requests' backs: by a deployment, and when a node has died.
#[test]
fn a_node_that_takes_its_time_keeps_nobody_waiting() {
    let grove = Grove::new();
    grove.weights(&["trunk"], 4);
    grove.package("slow", "import time\ntime.sleep(5)\nname = 'slow'\nweight = b'x' * (4 << 20)\n");
    grove.deploy_user("quick", &["trunk"], &["--single-use"]);
    let is_there = || node(&nodes(&grove.server), &["slow"]).is_some();
    let quick_until = |over: &dyn Fn() -> bool| {
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while !over() {
            let begun = Instant::now();
            grove.uses("quick", &["trunk"]);
            (longest, count) = (longest.max(begun.elapsed()), count + 1);
        }
        assert!(count > 9 && longest < Duration::from_secs(2), "{longest:?} of {count}");
    };
    std::thread::scope(|scope| {
        let deploying = scope.spawn(|| grove.deploy_user("late", &["slow"], &[]));
        quick_until(&|| deploying.is_finished());
    });
    assert!(is_there());
    let before = grove.zygote(&["slow"]);
    before.kill();
    grove.server.wait_until(|| still_running(&[before.clone()].into()).len(), |count| *count == 0);
    quick_until(&|| grove.zygotes(&["slow"]).iter().any(|zygote| *zygote != before) && is_there());
    grove.uses("late", &["slow"]);
    assert!(grove.server.stop());
}

/// Each is deeper than most trees are, and has siblings.
#[test]
fn a_deep_tree_is_built_as_planned_and_comes_to_rest() {
    let grove = Grove::new();
    grove.weights(&["a", "b", "c", "d", "e", "f"], 20);
    let all: [&[&str]; 6] =
        [&["a"], &["a", "b"], &["a", "b", "c"], &["a", "b", "d"], &["a", "b", "e"], &["a", "b", "c", "f"]];
    for packages in all {
        grove.deploy_user(&packages.concat(), packages, &[]);
    }
    let above = |nodes: &[Value], of: &[&str]| -> BTreeSet<String> {
        let parent = node(nodes, of).map(|node| node["parent"].clone());
        nodes.iter().find(|node| Some(&node["id"]) == parent.as_ref()).map(packages).unwrap_or_default()
    };
    let is_as_planned = |nodes: &Vec<Value>| {
        all.iter().all(|of| {
            let above = above(nodes, of);
            above.len() + 1 == of.len() && above.iter().all(|package| of.contains(&package.as_str()))
        })
    };
    let nodes = || grove::nodes(&grove.server);
    let before = grove.server.wait_until(nodes, is_as_planned);
    let which = |nodes: &[Value]| nodes.iter().map(|node| node["id"].as_u64().unwrap()).collect::<Vec<_>>();
    // Each deployment plans anew, and another plan follows it.
    for round in 0..8 {
        grove.deploy(&format!("plain{round}"), "def handler(event, context):\n    return event\n", &[], &[]);
        assert_eq!(which(&nodes()), which(&before), "it does not come to rest");
    }
    for packages in all {
        grove.uses(&packages.concat(), packages);
    }
    assert!(grove.server.stop());
}

/// What a package says of its memory is its word: it is looked at from outside as well.
#[test]
fn whoever_lies_about_its_memory_is_weighed() {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    let grove = Grove::with(&["--zygote-memory", "100"]);
    let source = |name: &str| {
        format!(
            "import sys\nname = {name:?}\nweight = bytearray(70 << 20)\nfor page in range(0, len(weight), 4096): weight[page] = 1\n\
             class Costs(dict):\n    def items(self):\n        return [(name, (micros, 0)) for name, (micros, _) in dict.items(self)]\n\
             recorder = sys.modules.get('_sock_recorder')\nif recorder: recorder.costs = Costs(recorder.costs)\n"
        )
    };
    for name in NAMES {
        grove.package(name, &source(name));
        grove.deploy_user(name, &[name], &[]);
    }
    let billed = || {
        let nodes = grove::nodes(&grove.server);
        let counted = nodes.iter().filter(|node| !packages(node).is_empty());
        counted.map(|node| node["billed_bytes"].as_u64().unwrap()).sum::<u64>()
    };
    grove.server.wait_until(billed, |bytes| *bytes <= 100_000_000);
    for name in NAMES {
        grove.uses(name, &[name]);
    }
    grove.server.wait_until(billed, |bytes| *bytes <= 100_000_000);
    assert!(grove.server.stop());
}
