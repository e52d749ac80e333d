//! What a forked child puts right, and that it looks to a function as if it had not been forked.

use serde_json::json;
use sock_zygote::frames::Kind;

use crate::instance::Instance;
use crate::run;

#[test]
fn what_imports_hold_does_not_reach_the_childs_descriptors() {
    let script = "
import asyncio, gc, os, socket
spare = os.open('/dev/null', os.O_RDWR)
assert spare == 3
import _sock_after_fork as after_fork

ours, theirs = [end.detach() for end in socket.socketpair()]
before = after_fork.note()
loops = [asyncio.new_event_loop(), asyncio.new_event_loop(), asyncio.new_event_loop()]
loops[2].close()
asyncio.set_event_loop(loops[0])
held = [open('/dev/zero', 'rb'), *socket.socketpair()]
after_fork.settle(before)
calls = {
    'close': os.close,
    'openat': lambda directory, path, flags: os.open(path, flags),
    'dup3': lambda old, new, flags: os.dup2(old, new, not flags),
    'close_range': lambda first, last, flags: os.closerange(first, min(last, 1 << 20) + 1),
}
assert len(after_fork.asleep) == 2 and not after_fork.foreign
assert set(after_fork.taken) == {thing.fileno() for thing in held}

for order in (0, 1):
    if os.fork() == 0:
        log, theirs = os.dup(1), os.dup(theirs)
        for name, *arguments in after_fork.arrangement((log, log, theirs)):
            arguments = [getattr(argument, 'value', argument) for argument in arguments]
            calls[name](*arguments)
        assert after_fork.note() == {0, 1, 2, 3, *after_fork.taken}
        after_fork.mend()
        assert held[0].read() == b''
        assert asyncio.get_event_loop() is loops[0]
        # As it was stored, as it is set, and a new one; the executor wakes it through its own pipe.
        for loop in (loops[1], asyncio.get_event_loop(), asyncio.new_event_loop()):
            loop.run_until_complete(asyncio.sleep(0))
            assert loop.run_until_complete(loop.run_in_executor(None, lambda: 1)) == 1
            loop.close()
        asyncio.set_event_loop(None)
        for thing in held:
            thing.close()
        del loop, loops, held, thing, after_fork.asleep[:]
        gc.collect()
        os.write(3, b'still here')
        os._exit(0)
    assert os.wait()[1] == 0
    assert os.read(ours, 100) == b'still here'
# As a zygote ends: it frees nothing.
os._exit(0)
";
    assert_eq!(run(script), "");
}

#[test]
fn a_loop_of_another_kind_is_replaced_and_never_freed() {
    let script = "
import asyncio, os
import _sock_after_fork as after_fork

class Other(asyncio.AbstractEventLoop):
    def is_closed(self):
        raise AssertionError('library code')
    def __del__(self):
        raise AssertionError('freed')
loop = Other()
asyncio.set_event_loop(loop)
after_fork.settle(after_fork.note())
del loop
if os.fork() == 0:
    after_fork.mend()
    asyncio.get_event_loop().run_until_complete(asyncio.sleep(0))
    os._exit(0)
assert os.wait()[1] == 0
os._exit(0)
";
    assert_eq!(run(script), "");
}

#[test]
fn siblings_differ() {
    let script = "
import os, random, secrets, tempfile, uuid
import _sock_after_fork as after_fork

# In containers both have the same pid, which is not the one that the zygote has in its own.
os.getpid = lambda: 3
random.random(), next(tempfile._get_candidate_names())
noted = after_fork.watch_random()
free, seeded, later = random.Random(), random.Random(7), random.Random()
later.seed(7)
noted()
assert random.Random.seed.__qualname__ == 'Random.seed'
first = seeded.getstate()
called = []
os.register_at_fork(after_in_child=lambda: called.append('of a package'))
seen = []
for _ in range(2):
    reader, writer = os.pipe()
    if os.fork() == 0:
        assert called == ['of a package']
        os.getpid = lambda: 2
        after_fork.mend()
        assert seeded.getstate() == later.getstate() == first
        drawn = [free.random(), random.random(), uuid.uuid4(), secrets.token_hex(), next(tempfile._get_candidate_names())]
        os.write(writer, '\\n'.join(map(str, drawn)).encode())
        os._exit(0)
    os.close(writer)
    seen.append(os.read(reader, 1000).decode().split('\\n'))
    assert os.wait()[1] == 0
assert len(seen[0]) == 5 and not set(seen[0]) & set(seen[1]), seen
";
    assert_eq!(run(script), "");
}

const PACKAGE: &str = "
import asyncio, logging, os, random, sys
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
held = open('/dev/zero')
os.environ.setdefault('BY_PACKAGE', '1')
sys.path.append('/vendored')
sys.path.insert(0, '/before')
print('printed at import')
";

const APP: &str = "
import builtins, logging, os, package, sys
log = logging.getLogger()
log.setLevel(logging.INFO)

async def work():
    return 'done'

def handler(event, context):
    log.info('working')
    package.held.close()
    path = sys.path
    return [package.loop.run_until_complete(work()), len(log.handlers), dict(os.environ), path[:2], path[-2:],
            sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:4], sys.argv, hasattr(builtins, 'exit')]
";

#[test]
fn odd_packages_do_not_end_a_zygote() {
    let odd = "
import os, signal, sys, types

class Odd(Exception):
    def __str__(self):
        raise KeyError

class Lazy(types.ModuleType):
    def __getattr__(self, name):
        raise RuntimeError('loaded')

os.environb[b'ODD'] = bytes([255])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.modules['odd.lazy'], sys.modules[7] = Lazy('odd.lazy'), sys
sys.stdout = sys.stderr = None
raise Odd
";
    let app = "import signal\ndef handler(event, context): return signal.getsignal(signal.SIGCHLD)";
    let files = [
        ("packages/odd.py", odd),
        ("packages/exits.py", "raise SystemExit('\\udc80')"),
        ("task/app.py", app),
    ];
    let (mut instance, facts) = Instance::forked(&["odd", "exits"], &files);
    let errors: Vec<_> = facts.errors.iter().map(|(name, error)| (&**name, &**error)).collect();
    assert_eq!(errors, [("exits", "SystemExit: ?"), ("odd", "Odd: <exception str() failed>")]);
    assert!(facts.imported.contains("odd.lazy"));
    assert_eq!(instance.init("app.handler", &[]).0, Kind::Ready);
    assert_eq!(instance.call("1"), (Kind::Result, json!(0)), "SIG_DFL");
}

#[test]
fn the_baseline_is_what_a_cold_start_has() {
    let app = "import sys\nmodules = sorted(sys.modules)\ndef handler(event, context): return modules";
    let (_, facts) = Instance::forked(&[], &[("task/app.py", app)]);
    let mut cold = Instance::of(app);
    let modules: Vec<String> = serde_json::from_value(cold.call("{}").1).unwrap();
    let surplus: Vec<_> = facts.baseline.iter().filter(|module| !modules.contains(module)).collect();
    // The script itself, and what this test's driver needs.
    assert_eq!(surplus, ["_sock_zygote", "_socket"]);
    // A function may have modules of its own by these names.
    assert!(
        ["ctypes", "socket", "selectors"].iter().all(|module| facts.imported.contains(*module)),
        "{facts:?}"
    );
}

#[test]
fn a_function_cannot_tell() {
    let files = [("packages/package.py", PACKAGE), ("task/app.py", APP)];
    let (mut forked, facts) = Instance::forked(&["package", "missing"], &files);
    assert_eq!(
        facts.env.iter().map(String::as_str).collect::<Vec<_>>(),
        ["BY_PACKAGE", "PYTHONASYNCIODEBUG"]
    );
    assert!(
        facts.safe && facts.imported.contains("package") && facts.missed.contains("missing"),
        "{facts:?}"
    );
    assert_eq!(facts.errors.keys().collect::<Vec<_>>(), ["missing"]);
    assert_eq!(forked.log(), "printed at import\n");

    let mut cold = Instance::start(&[("app.py", APP), ("../packages/package.py", PACKAGE)]);
    let mut seen = Vec::new();
    for instance in [&mut forked, &mut cold] {
        let (kind, payload) = instance.init("app.handler", &[("A", "1")]);
        assert_eq!(kind, Kind::Ready, "{payload}");
        let (kind, answer) = instance.call("{}");
        let log = instance.log();
        assert_eq!(kind, Kind::Result, "{answer} {log}");
        assert!(log.ends_with("\tid-1\tworking\n"), "{log}");
        seen.push(answer);
    }
    assert_eq!(seen[0], seen[1]);
    let env = json!({"A": "1", "BY_PACKAGE": "1"});
    let (first, last) = (json!(["/before", "/var/task"]), json!(["/var/packages", "/vendored"]));
    assert_eq!(seen[0], json!(["done", 1, env, first, last, [0, 1, 2, 3], [""], true]));
    assert_eq!(forked.end(), (Some(0), String::new()));
    assert_eq!(cold.end(), (Some(0), String::new()));
}

#[test]
fn a_rehearsal_goes_the_whole_way_and_leaves_nothing() {
    let script = "
import os, sys
import _sock_instance as instance

instance.REHEARSAL = os.getcwd() + '/rehearsal'
before = set(sys.modules), dict(os.environ), sorted(os.listdir())
answers, invoke = [], instance.invoke
instance.invoke = lambda *of: answers.append(invoke(*of))
directory = os.getcwd()
instance.rehearse(instance.standard_path())
os.chdir(directory)
assert answers == [(b'r', b'[{\"rehearsal\": [1, 2.5, null]}, \"\"]')], answers
assert (set(sys.modules), dict(os.environ), sorted(os.listdir())) == before
# A place that is taken is no reason to fail.
os.mkdir(instance.REHEARSAL)
instance.rehearse(instance.standard_path())
print('done')
";
    assert_eq!(run(script), "done\n");
}
