//! Ends, and processes that a handler makes.

use std::io::Write;

use serde_json::json;
use sock_zygote::frames::{self, Kind};

use crate::instance::Instance;

/// The exit code and log of an instance that does not answer.
fn ends(source: &str) -> (Option<i32>, String) {
    let mut instance = Instance::of(source);
    instance.invoke(b"{}");
    assert!(instance.try_receive().is_none());
    instance.wait()
}

#[test]
fn a_handler_that_exits() {
    assert_eq!(ends("def handler(event, context): exit()"), (Some(0), String::new()));
    assert_eq!(ends("def handler(event, context): quit(3)"), (Some(3), String::new()));
    assert_eq!(ends("import sys\ndef handler(event, context): sys.exit('text')"), (Some(1), "text\n".into()));
    assert_eq!(ends("import os\ndef handler(event, context): os._exit(5)"), (Some(5), String::new()));
    let (code, log) = ends("def handler(event, context): raise KeyboardInterrupt");
    assert!(code == Some(1) && log.ends_with("KeyboardInterrupt\n"), "{log}");
}

#[test]
fn a_module_that_exits() {
    let mut instance = Instance::start(&[("app.py", "import sys\nsys.exit(4)")]);
    instance.begin("app.handler", &[], None);
    assert!(instance.try_receive().is_none());
    assert_eq!(instance.wait(), (Some(4), String::new()));
}

#[test]
fn the_gateway_hangs_up() {
    // In the middle of a header, of a payload, and between two frames; before the function is known, and after.
    let frame = frames::encode(Kind::Init, b"{\"handler\": \"app.handler\"}").unwrap();
    for cut in [0, 3, 9] {
        let mut instance = Instance::start(&[]);
        instance.socket.write_all(&frame[..cut]).unwrap();
        assert_eq!(instance.end(), (Some(0), String::new()));
        let mut instance = Instance::of("def handler(event, context): return 1");
        instance.socket.write_all(&frame[..cut]).unwrap();
        assert_eq!(instance.end(), (Some(0), String::new()));
    }
    // While the handler works: its answer finds nobody.
    let mut instance = Instance::of("import os\ndef handler(event, context): return not os.read(0, 1)");
    instance.invoke(b"{}");
    assert_eq!(instance.end(), (Some(0), String::new()));
}

#[test]
fn a_forked_process_that_comes_back_does_not_answer() {
    let source = "
import os

def handler(event, context):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        if event == 'raise':
            raise ValueError('in the child')
        if event == 'daemon':
            os.closerange(3, 100)
            os.pipe()
            if os.fork():
                os._exit(0)
            os.fstat(3), os.fstat(4)
        return 'child'
    os.close(writer)
    # Until every process that could answer is gone.
    os.read(reader, 1)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
";
    let mut instance = Instance::of(source);
    for (event, code) in [("plain", 0), ("raise", 1), ("daemon", 0)] {
        assert_eq!(instance.call(&format!("{event:?}")), (Kind::Result, json!([code])));
        let log = instance.log();
        assert_eq!(log.contains("ValueError: in the child"), event == "raise", "{log}");
    }
    // No second answer lies in between.
    assert_eq!(instance.call("\"plain\""), (Kind::Result, json!([0])));
}

#[test]
fn a_process_that_stays_does_not_hold_the_socket() {
    // The pipe keeps it alive until this test has seen the instance's end.
    let source = "
import os, subprocess

def handler(event, context):
    if event == 'fork':
        if os.fork() == 0:
            os.read(os.open('fifo', os.O_RDONLY), 1)
            os._exit(0)
    else:
        os.system('cat fifo &')
    os._exit(0)
";
    for event in ["fork", "system"] {
        let mut instance = Instance::of(source);
        let fifo = instance.directory.path().join("task/fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        instance.invoke(format!("{event:?}").as_bytes());
        assert!(instance.try_receive().is_none());
        // Opens when the process that stayed reads, and ends it when it is closed.
        drop(std::fs::OpenOptions::new().write(true).open(fifo).unwrap());
    }
}

#[test]
fn multiprocessing_by_spawn_does_not_run_the_platforms_script() {
    let source = "
import multiprocessing

def double(x):
    return 2 * x

def handler(event, context):
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(False)
    process = context.Process(target=sender.send, args=({'a': 1},))
    process.start()
    sender.close()
    value = receiver.recv()
    process.join()
    return [value, process.exitcode, vars(__import__('__main__')).get('__file__')]
";
    let mut instance = Instance::of(source);
    let answer = instance.call("{}");
    assert_eq!(answer, (Kind::Result, json!([{"a": 1}, 0, null])), "{}", instance.log());
}
