//! An instance that is sent the compiled modules of its function: it is as if it had found and compiled them itself.

use serde_json::{Value, json};
use sock_zygote::frames::Kind;
use tempfile::TempDir;

use crate::instance::Instance;

/// Where a first instance was, and what it keeps for others.
type Kept = (TempDir, Vec<u8>);

fn kept(handler: &str, files: &[(&str, &str)]) -> Kept {
    let mut first = Instance::start(files);
    let code = first.init_known(handler, &[]);
    (first.leave(), code)
}

/// A later one, with these files in the place of those.
fn later(handler: &str, files: &[(&str, &str)], (directory, code): Kept) -> (Kind, Value) {
    let mut instance = Instance::after(directory, files);
    assert!(instance.init_known(handler, &code).is_empty(), "nobody asked");
    instance.call("{}")
}

#[test]
fn what_is_known_is_not_read_again() {
    let first = [
        ("app.py", "import helper\ndef handler(event, context): return helper.VALUE"),
        ("helper.py", "VALUE = 1"),
    ];
    let code = kept("app.handler", &first);
    let second = [("app.py", "not Python"), ("helper.py", "VALUE = 2")];
    assert_eq!(later("app.handler", &second, code), (Kind::Result, json!(1)));
}

#[test]
fn a_module_looks_the_same() {
    let app = "
import sys, package.inner, package
def look(name):
    module = sys.modules[name]
    spec = module.__spec__
    return [
        module.__name__, module.__file__, module.__cached__, module.__package__, getattr(module, '__path__', None),
        spec.name, spec.origin, spec.cached, spec.parent, spec.has_location, spec.submodule_search_locations, spec._initializing,
        isinstance(module.__loader__, type(sys.modules['colorsys'].__loader__)), module.__loader__ is spec.loader,
        module.__loader__.get_source(name) == open(module.__file__).read(), module.__builtins__ is sys.modules['os'].__builtins__,
    ]
import colorsys, os
def handler(event, context):
    return [look(name) for name in (__name__, 'package', 'package.inner')], [getattr(finder, '__name__', '') for finder in sys.meta_path]
";
    let files = [("app.py", app), ("package/__init__.py", "one = 1"), ("package/inner.py", "two = 2")];
    let mut usual = Instance::start(&files);
    usual.init("app.handler", &[]);
    let expected = usual.call("{}");
    assert_eq!(expected.0, Kind::Result, "{}", expected.1);
    let mut first = Instance::start(&files);
    let code = first.init_known("app.handler", &[]);
    assert_eq!(first.call("{}"), expected);
    assert_eq!(later("app.handler", &files, (first.leave(), code)), expected);
    let code = kept(
        "package/inner.handler",
        &[("package/inner.py", "def handler(event, context): return __name__")],
    );
    let other = [("package/inner.py", "not Python")];
    assert_eq!(later("package/inner.handler", &other, code), (Kind::Result, json!("package.inner")));
}

#[test]
fn another_path_is_searched() {
    let app = "
import sys
sys.path.insert(0, __file__.rpartition('/')[0] + '/' + open(__file__.replace('app.py', 'where')).read())
import helper
def handler(event, context): return helper.VALUE
";
    let files = |place| {
        [("app.py", app), ("where", place), ("one/helper.py", "VALUE = 1"), ("two/helper.py", "VALUE = 2")]
    };
    for (place, value) in [("one", 1), ("two", 2)] {
        let code = kept("app.handler", &files("one"));
        assert_eq!(later("app.handler", &files(place), code), (Kind::Result, json!(value)));
    }
}

#[test]
fn what_fails_fails_as_ever() {
    let app = ("app.py", "import os\nos.stat('flag')\ndef handler(event, context): pass");
    let mut usual = Instance::start(&[app]);
    let expected = usual.init("app.handler", &[]);
    assert_eq!(expected.0, Kind::InitError);
    let (directory, code) = kept("app.handler", &[app, ("flag", "")]);
    let mut instance = Instance::after(directory, &[app]);
    instance.begin("app.handler", &[], Some(&code));
    assert_eq!(instance.answer(), expected);
}

#[test]
fn what_is_no_code_is_ignored() {
    let app = ("app.py", "def handler(event, context): return 7");
    let mut instance = Instance::start(&[app]);
    instance.init_known("app.handler", b"no code");
    assert_eq!(instance.call("{}"), (Kind::Result, json!(7)));
}

#[test]
fn more_than_64_kb_is_not_kept() {
    let long = format!("TEXT = '{}'\ndef handler(event, context): return 1", "x".repeat(70_000));
    assert!(kept("app.handler", &[("app.py", &long)]).1.is_empty());
}

#[test]
fn an_invocation_that_came_with_the_function_has_not_waited() {
    let app = "import time\ntime.sleep(0.5)\ndef handler(event, context): return context.get_remaining_time_in_millis()";
    let mut instance = Instance::start(&[("app.py", app)]);
    instance.begin("app.handler", &[], None);
    instance.invoke_early(b"{}");
    assert_eq!(instance.answer().0, Kind::Ready);
    // It is told a minute from when it was sent.
    let left = instance.answer().1.as_u64().unwrap();
    assert!(left > 60_000 - 400, "{left}");
    // The next one has waited for nothing.
    let left = instance.call("{}").1.as_u64().unwrap();
    assert!(left <= 60_000, "{left}");
}
