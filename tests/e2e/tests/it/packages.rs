//! Functions with packages: right answers under load, nothing crossed, and the same to the function however it started.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::server::{Server, tests};

const FUNCTIONS: [&str; 5] = ["echo", "render", "resize", "stats", "api"];

/// A copy, made anew, of one of `tests/functions` with another module beside it.
fn with(name: &str, module: &str, directory: &tempfile::TempDir) -> PathBuf {
    let path = directory.path().join(format!("{name}-{module}"));
    let _ = fs::remove_dir_all(&path);
    let copied =
        Command::new("/bin/cp").arg("-r").arg(tests(&format!("functions/{name}"))).arg(&path).status();
    assert!(copied.unwrap().success());
    let file = format!("{module}.py");
    fs::copy(tests(&format!("e2e/functions/{file}")), path.join(file)).unwrap();
    path
}

const FLAGS: [&str; 6] = ["--handler", "probe.handler", "--timeout", "60", "--memory", "512"];

fn cases(name: &str) -> Vec<(Value, Value)> {
    let text = fs::read_to_string(tests(&format!("functions/{name}/cases.json"))).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let cases = all["cases"].as_array().unwrap();
    cases.iter().map(|case| (case["event"].clone(), case["answer"].clone())).collect()
}

fn requirements(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(tests(&format!("functions/{name}/requirements.txt"))).unwrap_or_default();
    let names = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    names
        .map(|line| line.split(['=', '<', '>', '~', '[', ';']).next().unwrap().trim().to_lowercase())
        .collect()
}

#[test]
fn a_function_with_packages_is_forked_with_them_and_then_warm() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    server.deploy(&tests("functions/render"), "render", &["--handler", "main.handler", "--timeout", "60"]);
    let (event, expected) = cases("render").remove(0);
    let first = server.run("render", &event);
    assert_eq!((first.status, &first.body), (200, &expected), "{first:?}");
    assert!(["zygote", "spare"].contains(&first.start.as_str()), "{first:?}");
    let second = server.run("render", &event);
    assert_eq!((second.start.as_str(), &second.body), ("warm", &expected));
    assert!(server.stop());
}

#[test]
fn sixty_four_at_once_over_five_functions_and_each_warm_and_cold() {
    let (data, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    for name in FUNCTIONS {
        server.deploy(&with(name, "probe", &copies), name, &FLAGS);
    }
    let answers: Vec<(&str, String, Value, crate::server::Answer)> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..64)
            .map(|number| {
                let name = FUNCTIONS[number % FUNCTIONS.len()];
                let cases = cases(name);
                let (event, answer) = cases[number % cases.len()].clone();
                let token = format!("{name}-{number}");
                let event = json!({"token": token, "event": event});
                let server = &server;
                scope.spawn(move || (name, token, answer, server.run(name, &event)))
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let mut packages: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, token, expected, answer) in &answers {
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        assert!(["zygote", "spare", "warm"].contains(&answer.start.as_str()), "{name}: {answer:?}");
        let body = &answer.body;
        assert_eq!((&body["answer"], body["token"].as_str()), (expected, Some(token.as_str())), "{name}");
        for file in body["tmp"].as_array().unwrap() {
            let file = file.as_str().unwrap();
            assert!(file.starts_with(&format!("{name}-")), "{name} sees {file} in /tmp");
        }
        assert_eq!(body["processes"], 2, "{name} sees {}", body["commands"]);
        let seen: BTreeSet<String> = body["distributions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one.as_str().unwrap().to_owned())
            .collect();
        assert!(requirements(name).is_subset(&seen), "{name} has {seen:?}");
        assert_eq!(packages.entry(name).or_insert_with(|| seen.clone()), &seen, "{name}");
    }
    assert!(packages["echo"].is_empty(), "{packages:?}");
    assert!(!packages["stats"].contains("pillow") && !packages["resize"].contains("pandas"), "{packages:?}");
    // Output: each line in the log of its own function, once.
    for name in FUNCTIONS {
        let log = server.succeed(&["logs", name]);
        let tokens: BTreeSet<&str> = log.lines().filter_map(|line| line.strip_prefix("token ")).collect();
        let sent: BTreeSet<&str> =
            answers.iter().filter(|(of, ..)| *of == name).map(|(_, token, ..)| token.as_str()).collect();
        assert_eq!(tokens, sent, "{name}");
    }
    for name in FUNCTIONS {
        let again = |start: &str| {
            for (number, (event, expected)) in cases(name).into_iter().enumerate() {
                let token = format!("{name}-{start}-{number}");
                let answer = server.run(name, &json!({"token": token, "event": event}));
                assert_eq!((&answer.body["answer"], answer.status), (&expected, 200), "{name}: {answer:?}");
                assert_eq!(answer.start, if number == 0 { start } else { "warm" }, "{name}");
            }
        };
        again("warm");
        server.deploy(&with(name, "probe", &copies), name, &[&FLAGS[..], &["--fresh"]].concat());
        again("cold");
    }
    // A restart finds the packages where they were.
    server.kill_9();
    let server = Server::start(data.path());
    for name in FUNCTIONS {
        let (event, expected) = cases(name).remove(0);
        let answer = server.run(name, &json!({"token": format!("{name}-again"), "event": event}));
        assert_eq!(answer.body["answer"], expected, "{name}: {answer:?}");
    }
    assert!(server.stop());
}

/// What the two saw that must not differ: everything but the modules.
fn besides_modules(facts: &Value) -> Value {
    let mut facts = facts.clone();
    facts.as_object_mut().unwrap().remove("modules");
    facts
}

fn modules(facts: &Value) -> BTreeMap<String, Value> {
    let modules = facts["modules"].as_object().unwrap();
    let modules = modules.iter().map(|(name, about)| (name.clone(), about.clone()));
    // The script that the interpreter was started with: of the runtime, one of two.
    modules.filter(|(name, _)| name != "__main__").collect()
}

#[test]
fn a_function_cannot_tell_that_it_was_forked() {
    let (data, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path());
    let mut runtime: BTreeSet<String> = BTreeSet::new();
    for name in ["echo", "stats", "api", "render", "resize"] {
        let path = with(name, "facts", &copies);
        let flags = ["--handler", "facts.handler", "--timeout", "60", "--memory", "512"];
        server.deploy(&path, "forked", &flags);
        server.deploy(&path, "cold", &[&flags[..], &["--fresh"]].concat());
        let (forked, cold) = (server.run("forked", &json!({})), server.run("cold", &json!({})));
        assert_eq!((forked.status, cold.status), (200, 200), "{name}: {} {}", forked.body, cold.body);
        assert_ne!(forked.start, "cold", "{name}");
        assert_eq!(cold.start, "cold", "{name}");
        pretty(name, &besides_modules(&forked.body), &besides_modules(&cold.body));
        let (forked, cold) = (modules(&forked.body), modules(&cold.body));
        let more: BTreeSet<String> =
            forked.keys().filter(|name| !cold.contains_key(*name)).cloned().collect();
        if name == "echo" {
            // What the runtime itself has imported: the one exception.
            runtime = more.clone();
        }
        let surplus: Vec<&String> = more.difference(&runtime).collect();
        assert!(surplus.is_empty(), "{name}: only the forked one has {surplus:?}");
        for (module, about) in &cold {
            assert_eq!(forked.get(module), Some(about), "{name}: {module}");
        }
    }
}

fn pretty(name: &str, forked: &Value, cold: &Value) {
    for (key, value) in cold.as_object().unwrap() {
        assert_eq!(&forked[key], value, "{name}: {key}, forked (left) and cold (right)");
    }
}
