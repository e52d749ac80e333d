//! The environment is what the function was given, whichever way it is read.

use serde_json::json;
use sock_zygote::frames::Kind;

use crate::instance::Instance;

const SOURCE: &str = "
import os, subprocess, sys, time

def handler(event, context):
    script = 'import os, json; print(json.dumps([dict(os.environ), os.environ.get(\"LC_CTYPE\")]))'
    import json
    child, ctype = json.loads(subprocess.check_output([sys.executable, '-S', '-c', script]))
    if ctype and 'LC_CTYPE' not in os.environ:
        # An interpreter in the C locale sets that itself.
        del child['LC_CTYPE']
    raw = {os.fsdecode(name): os.fsdecode(value) for name, value in os.environb.items()}
    return [dict(os.environ), raw, child, {name: os.getenv(name) for name in os.environ}, time.tzname[0]]
";

#[test]
fn exactly_what_it_was_given() {
    let mut instance = Instance::start(&[("app.py", SOURCE)]);
    let env = [("A", "1"), ("TZ", "XYZ-3"), ("UMLAUT", "\u{fc}"), ("PATH", "/usr/bin"), ("EMPTY", "")];
    assert_eq!(instance.init("app.handler", &env).0, Kind::Ready);
    let env = json!({"A": "1", "TZ": "XYZ-3", "UMLAUT": "\u{fc}", "PATH": "/usr/bin", "EMPTY": ""});
    assert_eq!(instance.call("{}"), (Kind::Result, json!([env, env, env, env, "XYZ"])));
}

#[test]
fn thread_counts_of_the_zygote_are_given_back() {
    let script = "
import os, subprocess
import _sock_instance as instance
instance.set_environment({'OMP_NUM_THREADS': '3'})
print(dict(os.environ), subprocess.check_output(['/usr/bin/env']))
";
    let zygote = sock_zygote::runtime::environment(sock_zygote::runtime::Entry::Zygote);
    let printed = crate::run_with(script, |command| {
        command.envs(zygote);
    });
    assert_eq!(printed, "{'OMP_NUM_THREADS': '3'} b'OMP_NUM_THREADS=3\\n'\n");
}

#[test]
fn what_imports_set_is_set_again() {
    let script = "
import os
import _sock_instance as instance
import _sock_recorder as recorder

def imports():
    os.environ['SET'] = 'by an import'
    os.environ.setdefault('DEFAULT', 'x')
    os.environb[b'BYTES'] = b'y'
    os.environ.pop('GONE', None)
    os.environ['NOT'] = ''
    del os.environ['NOT']

recorder.record(imports)
instance.env_written.update(recorder.written)
instance.set_environment({'A': '1', 'GONE': '', 'SET': 'by the function'})
print(sorted(os.environ.items()))
";
    let printed = crate::run_with(script, |command| {
        command.env("GONE", "");
    });
    assert_eq!(printed, "[('A', '1'), ('BYTES', 'y'), ('DEFAULT', 'x'), ('SET', 'by an import')]\n");
}
