//! What a function prints and logs.

use serde_json::json;
use sock_zygote::frames::Kind;

use crate::instance::Instance;

fn printed(source: &str) -> String {
    let mut instance = Instance::of(source);
    assert_eq!(instance.call("{}").0, Kind::Result);
    instance.log()
}

#[test]
fn output_is_there_before_the_answer() {
    let source = "
import os, subprocess, sys

def handler(event, context):
    print('one')
    os.write(1, b'two\\n')
    subprocess.run(['/bin/echo', 'three'])
    print('four', file=sys.stderr)
    print('five', end='')
";
    assert_eq!(printed(source), "one\ntwo\nthree\nfour\nfive");
}

#[test]
fn a_line_is_there_when_it_is_printed() {
    // As it has to be when the invocation runs out of time.
    let mut instance =
        Instance::of("import os\ndef handler(event, context):\n    print('late')\n    os._exit(9)");
    instance.invoke(b"{}");
    assert!(instance.try_receive().is_none());
    assert_eq!(instance.wait(), (Some(9), "late\n".to_owned()));
}

#[test]
fn a_logger_has_a_handler() {
    let source = "
import logging
log = logging.getLogger()
log.setLevel(logging.INFO)
log.info('at import')

def handler(event, context):
    logging.getLogger('some.module').info('%s of %s', 1, 2)
    logging.warning('careful')
    logging.debug('hidden')
    logging.raiseExceptions = False
    logging.error('%d', 'not a number')
    log.handlers[0].setFormatter(logging.Formatter('%(message)s\\n'))
    logging.error('plain')
";
    let log = printed(source);
    let lines: Vec<&str> = log.lines().collect();
    let [import, info, warning, plain] = lines[..] else { panic!("{log}") };
    let split = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let (import, info) = (split(import), split(info));
    assert_eq!((&*import[0], &*import[2], &*import[3]), ("[INFO]", "", "at import"));
    assert_eq!((&*info[0], &*info[2], &*info[3]), ("[INFO]", "id-1", "1 of 2"));
    assert_eq!(info[1].len(), "2024-01-02T03:04:05.678Z".len());
    assert!(warning.starts_with("[WARNING]\t") && warning.ends_with("\tid-1\tcareful"), "{warning}");
    assert_eq!(plain, "plain");
}

#[test]
fn logging_that_is_imported_late_and_once() {
    let source = "
import sys
before = 'logging' in sys.modules

def handler(event, context):
    import logging
    import logging.handlers
    logging.warning('now')
    return [before, len(logging.getLogger().handlers), logging.__spec__.name]
";
    let mut instance = Instance::of(source);
    assert_eq!(instance.call("{}").1, json!([false, 1, "logging"]));
    assert!(instance.log().ends_with("\tid-1\tnow\n"));
    assert_eq!(instance.call("{}").1, json!([false, 1, "logging"]));
}

#[test]
fn a_handler_that_closes_its_output() {
    let source = "
import os, sys

def handler(event, context):
    if event == 'close':
        sys.stdout.close()
    elif event == 'none':
        sys.stdout = None
    elif event == 'reopen':
        sys.stdout = open('/dev/null', 'w')
    elif event == 'odd':
        sys.stdout = object()
    elif event == 'fd':
        os.close(1)
    return event
";
    for event in ["close", "none", "reopen", "odd", "fd"] {
        let mut instance = Instance::of(source);
        for _ in 0..2 {
            if event == "close" || event == "fd" {
                instance.invoke(format!("{event:?}").as_bytes());
                instance.receive();
            } else {
                assert_eq!(instance.call(&format!("{event:?}")), (Kind::Result, json!(event)));
            }
        }
        assert_eq!(instance.call("1"), (Kind::Result, json!(1)));
        assert_eq!(instance.end().0, Some(0), "{event}");
    }
}
