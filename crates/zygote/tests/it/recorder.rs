//! What the recorder notes, and what it leaves behind.

use std::collections::BTreeMap;

use crate::run_with;

/// What is noted of `action`, with the variable `A` set to 1: names of variables, modules, distributions.
fn noted(action: &str) -> [Vec<String>; 3] {
    let script = format!(
        "
import importlib.metadata, importlib.util, json, os, pkgutil
import _sock_recorder as recorder

def action():
    {}

recorder.record(action)
state = os.environ['A'], os.environb[b'A'], os.environ.get('B'), 'B' in os.environ, list(os.environ).count('A')
assert state == ('1', b'1', None, False, 1), state
assert len(os.environ) == len(os.environ.copy()) and recorder.Last not in sys.meta_path
os.environ['AFTER'] = '1'
names = [recorder.env, recorder.missed, recorder.lookups]
print(json.dumps([sorted(name) for name in names]))
",
        action.replace('\n', "\n    ")
    );
    let printed = run_with(&script, |command| {
        command.env("A", "1");
    });
    serde_json::from_str(&printed).unwrap()
}

fn check(action: &str, env: &[&str], missed: &[&str], lookups: &[&str]) {
    assert_eq!(noted(action), [env, missed, lookups].map(<[&str]>::to_vec), "{action}");
}

#[test]
fn variables_by_name() {
    for action in [
        "os.environ['A']",
        "os.environ.get('A')",
        "os.getenv('A', 'default')",
        "'A' in os.environ",
        "os.environ.setdefault('A', '2')",
        "os.environ['A'] += ''",
        "os.environb[b'A']",
        "os.environb.get(b'A')",
        "b'A' in os.environb",
        "os.getenvb(b'A')",
        "from os import environ; environ.get('A')",
    ] {
        check(action, &["A"], &[], &[]);
    }
    check("os.environ.get('B'), os.environ.pop('C', None)", &["B", "C"], &[], &[]);
    check("os.environ['B'] = '1'; del os.environ['B']", &[], &[], &[]);
    check("try: os.environ[1]\nexcept TypeError: pass", &[], &[], &[]);
    check("os.getenvb(b'\\xff')", &["?"], &[], &[]);
}

#[test]
fn all_variables() {
    for action in [
        "list(os.environ)",
        "os.environ.keys() | set()",
        "len(os.environ)",
        "bool(os.environ)",
        "str(os.environ)",
        "list(os.environb)",
    ] {
        check(action, &["*"], &[], &[]);
        // A name besides is still there, before and after.
        check(&format!("os.environ.get('B')\n{action}\nos.environ.get('C')"), &["*", "B", "C"], &[], &[]);
    }
    for action in ["os.environ.copy()", "dict(os.environ)", "list(os.environ.items())", "os.environ == {}"] {
        let [env, ..] = noted(&format!("os.environ.get('B')\n{action}"));
        assert!(
            ["*", "A", "B"].iter().all(|name| env.iter().any(|noted| noted == name)),
            "{action}: {env:?}"
        );
    }
}

#[test]
fn names_that_nobody_has() {
    check("try: import nowhere\nexcept ImportError: pass", &[], &["nowhere"], &[]);
    check("try: import json.nowhere\nexcept ImportError: pass", &[], &["json.nowhere"], &[]);
    check("importlib.util.find_spec('nowhere')", &[], &["nowhere"], &[]);
    check("import json.tool", &[], &[], &[]);
    let [.., lookups] = noted("list(pkgutil.iter_modules())");
    assert_eq!(lookups, ["*"]);
}

#[test]
fn metadata_of_distributions() {
    let version =
        "try: importlib.metadata.version('Some.Name')\nexcept importlib.metadata.PackageNotFoundError: pass";
    check(version, &[], &[], &["Some.Name"]);
    check(&version.replace("version", "distribution"), &[], &[], &["Some.Name"]);
    check("list(importlib.metadata.distributions())", &[], &[], &["*"]);
    check("importlib.metadata.entry_points()", &[], &[], &["*"]);
}

#[test]
fn what_is_written() {
    let script = "
import json, os
import _sock_recorder as recorder

def action():
    os.environ['B'] = '1'
    os.environ['B'] = '2'
    os.environb[b'C'] = b'3'
    os.environ.setdefault('A', '4')
    os.environ.setdefault('D', '5')
    os.environ.pop('A')
    try:
        del os.environ['E']
    except KeyError:
        pass

recorder.record(action)
os.environ['LATER'] = ''
print(json.dumps(recorder.written))
";
    let printed = run_with(script, |command| {
        command.env("A", "1");
    });
    let written: BTreeMap<String, Option<String>> = serde_json::from_str(&printed).unwrap();
    let expected = [("A", None), ("B", Some("2")), ("C", Some("3")), ("D", Some("5")), ("E", None)];
    assert_eq!(written, expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).into());
}

#[test]
fn an_import_that_fails_leaves_nothing_behind() {
    let script = "
import os
import _sock_recorder as recorder
before = list(sys.meta_path), os.environ.__class__.__getitem__
try:
    recorder.record(lambda: 1 / 0)
except ZeroDivisionError:
    pass
assert before == (list(sys.meta_path), os.environ.__class__.__getitem__)
";
    assert_eq!(crate::run(script), "");
}

/// A module's own time and memory, not those of what it imports.
#[test]
fn what_modules_cost() {
    let script = "
import json, os, sys, tempfile
import _sock_recorder as recorder

directory = tempfile.TemporaryDirectory()
sys.path.append(directory.name)
sources = {
    'outer': 'import inner, broken_user\\nblock = bytearray(8 << 20)\\nfor at in range(0, 8 << 20, 4096): block[at] = 1',
    'inner': 'import time\\nend = time.perf_counter() + 0.05\\nwhile time.perf_counter() < end: pass',
    'broken_user': 'try:\\n    import broken\\nexcept ValueError:\\n    pass',
    'broken': 'raise ValueError',
}
for name, source in sources.items():
    with open(directory.name + '/' + name + '.py', 'w') as file:
        file.write(source)
open_before = len(os.listdir('/proc/self/fd'))

def action():
    import outer

recorder.record(action)
assert len(os.listdir('/proc/self/fd')) == open_before
assert sys.modules['_frozen_importlib']._load_unlocked.__name__ == '_load_unlocked'
print(json.dumps(recorder.costs))
";
    let costs: BTreeMap<String, (u64, u64)> = serde_json::from_str(&crate::run(script)).unwrap();
    assert!(costs["inner"].0 >= 50_000 && costs["outer"].0 < 50_000, "{costs:?}");
    assert!(costs["outer"].1 >= 7 << 20 && costs["inner"].1 < 4 << 20, "{costs:?}");
    assert!(costs.contains_key("broken"), "{costs:?}");
}
