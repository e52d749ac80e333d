//! Deployments and deletions while invocations run, and beside each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{FUNCTIONS, answering, create, goes_on, settled, shown, update_code, zip};
use crate::server::{Answer, Server};

/// Answers `old`; told to wait, not before its file is taken away.
const OLD: &[u8] = b"import os, time\n\
def handler(event, context):\n    \
    if 'wait' in event:\n        \
        open('/tmp/working', 'w').close()\n        \
        while os.path.exists('/tmp/working'): time.sleep(0.05)\n    \
    return 'old'\n";

fn run(server: &Server, event: &Value) -> Answer {
    server.run("changing", event)
}

/// A server with a function that is deployed, and whose second invocation, while `change` runs, is under way. Gives what
/// that one was answered.
fn while_one_runs(change: impl FnOnce(&Server)) -> Answer {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    assert_eq!(create(&server, "changing", &zip(&[("app.py", OLD)])).status, 201);
    assert_eq!(settled(&server, "changing")["State"], "Active");
    assert_eq!(run(&server, &json!({})).body, "old");
    let answer = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&server, &json!({"wait": true})));
        let working = |server: &Server| -> Option<PathBuf> {
            server.processes().iter().map(|process| process.inside("/tmp/working")).find(|path| path.exists())
        };
        let working = server.wait_until(|| working(&server), Option::is_some).unwrap();
        // One of the old ones is idle too: nothing may be given to it once the change is done.
        assert_eq!(run(&server, &json!({})).body, "old");
        change(&server);
        assert!(!running.is_finished(), "the running invocation was ended");
        fs::remove_file(working).unwrap();
        running.join().unwrap()
    });
    goes_on(&server, "the change");
    assert!(server.stop());
    answer
}

#[test]
fn an_update_leaves_what_runs_alone_and_takes_what_comes() {
    let answer = while_one_runs(|server| {
        assert_eq!(update_code(server, "changing", &answering("'new'")).status, 200);
        assert_eq!(settled(server, "changing")["LastUpdateStatus"], "Successful");
        for _ in 0..3 {
            let answer = run(server, &json!({}));
            assert_eq!((answer.status, &answer.body), (200, &json!("new")), "{answer:?}");
        }
    });
    assert_eq!((answer.status, &answer.body), (200, &json!("old")), "{answer:?}");
}

#[test]
fn a_deletion_leaves_what_runs_alone_and_nothing_comes_after() {
    let answer = while_one_runs(|server| {
        let deleted = server.ask("DELETE", &format!("{FUNCTIONS}/changing"), b"");
        assert!([200, 204].contains(&deleted.status), "{deleted:?}");
        let refused = server.ask("POST", &format!("{FUNCTIONS}/changing/invocations"), b"{}");
        let arn = "arn:aws:lambda:us-east-1:000000000000:function:changing";
        assert_eq!(
            shown(&refused),
            format!("404 ResourceNotFoundException: Function not found: {arn}:$LATEST")
        );
        assert_eq!(run(server, &json!({})).status, 404);
        // The name is free at once.
        assert_eq!(create(server, "changing", &answering("'again'")).status, 201);
        assert_eq!(settled(server, "changing")["State"], "Active");
        assert_eq!(run(server, &json!({})).body, "again");
    });
    assert_eq!((answer.status, &answer.body), (200, &json!("old")), "{answer:?}");
}

#[test]
fn of_two_updates_at_once_one_wins_or_both_do_in_order() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let labelled = |label: &str| {
        let code =
            format!("import os\ndef handler(event, context):\n    return ['{label}', os.environ['LABEL']]\n");
        zip(&[("app.py", code.as_bytes())])
    };
    assert_eq!(create(&server, "both", &answering("0")).status, 201);
    settled(&server, "both");
    for round in 0..6 {
        let labels: Vec<String> = (0..3).map(|number| format!("{round}-{number}")).collect();
        let replies: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = labels
                .iter()
                .map(|label| {
                    let (server, zip) = (&server, labelled(label));
                    let body = json!({
                        "Handler": "app.handler", "Environment": { "Variables": { "LABEL": label } },
                        "Code": { "ZipFile": STANDARD.encode(zip) },
                    });
                    scope.spawn(move || server.ask("PUT", "/deploy/both", body.to_string().as_bytes()))
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let won: BTreeSet<&String> = labels
            .iter()
            .zip(&replies)
            .filter(|(_, reply)| reply.status == 200)
            .map(|(label, _)| label)
            .collect();
        assert!(!won.is_empty(), "{replies:?}");
        for refused in replies.iter().filter(|reply| reply.status != 200) {
            let said = "409 ResourceConflictException: The operation cannot be performed at this time. An update is in progress for resource: arn:aws:lambda:us-east-1:000000000000:function:both";
            assert_eq!(shown(refused), said);
        }
        assert_eq!(settled(&server, "both")["LastUpdateStatus"], "Successful");
        let answer = server.run("both", &json!({})).body;
        assert_eq!(answer[0], answer[1], "a mix");
        assert!(won.iter().any(|label| answer[0] == label.as_str()), "{answer} of {won:?}");
    }
    goes_on(&server, "the updates");
    assert!(server.stop());
}

/// As the API has them, one for the code and one for the settings: each is done or refused, whichever the other is.
#[test]
fn of_two_kinds_of_updates_at_once_none_is_half_done() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    assert_eq!(create(&server, "both", &answering("[0, __import__('os').environ.get('LABEL')]")).status, 201);
    settled(&server, "both");
    let (mut code, mut label) = (json!(0), Value::Null);
    for round in 1..=6 {
        let updates = std::thread::scope(|scope| {
            let (server, answer) = (&server, format!("[{round}, __import__('os').environ.get('LABEL')]"));
            let first = scope.spawn(move || update_code(server, "both", &answering(&answer)));
            let settings =
                json!({ "Environment": { "Variables": { "LABEL": format!("{round}") } } }).to_string();
            let target = format!("{FUNCTIONS}/both/configuration");
            let second = scope.spawn(move || server.ask("PUT", &target, settings.as_bytes()));
            [first.join().unwrap(), second.join().unwrap()]
        });
        let done = updates.each_ref().map(|reply| reply.status == 200);
        assert!(done[0] || done[1], "{updates:?}");
        for refused in updates.iter().filter(|reply| reply.status != 200) {
            assert_eq!((refused.status, refused.kind.as_str()), (409, "ResourceConflictException"));
        }
        if done[0] {
            code = json!(round);
        }
        if done[1] {
            label = json!(format!("{round}"));
        }
        assert_eq!(settled(&server, "both")["LastUpdateStatus"], "Successful");
        assert_eq!(server.run("both", &json!({})).body, json!([code, label]));
    }
    assert!(server.stop());
}

#[test]
fn of_many_that_take_one_name_at_once_one_gets_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let replies: Vec<_> = std::thread::scope(|scope| {
        let server = &server;
        let all: Vec<_> = (0..4)
            .map(|number| scope.spawn(move || create(server, "one", &answering(&number.to_string()))))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let made: Vec<usize> = (0..4).filter(|number| replies[*number].status == 201).collect();
    assert_eq!(made.len(), 1, "{replies:?}");
    for refused in replies.iter().filter(|reply| reply.status != 201) {
        assert_eq!(shown(refused), "409 ResourceConflictException: Function already exist: one");
    }
    assert_eq!(settled(&server, "one")["State"], "Active");
    assert_eq!(server.run("one", &json!({})).body, json!(made[0]));
    assert!(server.stop());
}
