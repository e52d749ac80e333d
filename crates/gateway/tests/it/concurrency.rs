//! Invocations at the same time.

use std::sync::mpsc;
use std::thread;

use sock_gateway::{GatewayConfig, GatewayLimits};

use crate::http::{Answer, Request};
use crate::server::{FUNCTIONS, Server, config};

const MANY: usize = 16;

fn asynchronous(server: &Server, name: &str) -> Answer {
    let request = Request::new("POST", &format!("{FUNCTIONS}/{name}/invocations"), "1");
    server.ask(request.header("x-amz-invocation-type", "Event"))
}

#[test]
fn invocations_of_one_function_run_side_by_side() {
    let server = Server::start();
    server.deploy("slow", "app.slow");
    thread::scope(|scope| {
        let each: Vec<_> = (0..MANY)
            .map(|n| {
                let server = &server;
                (n, scope.spawn(move || server.invoke("slow", &n.to_string())))
            })
            .collect();
        server.fake.until("all run at once", |seen| seen.running == MANY);
        server.fake.invocations.add_permits(MANY);
        for (n, answer) in each {
            assert_eq!(
                answer.join().unwrap().body,
                n.to_string().into_bytes(),
                "everybody gets the own answer"
            );
        }
    });
}

#[test]
fn a_function_that_is_deleted_while_it_runs_still_answers() {
    let server = Server::start();
    server.deploy("slow", "app.slow");
    thread::scope(|scope| {
        let running = scope.spawn(|| server.invoke("slow", "\"to the end\""));
        server.fake.until("it runs", |seen| seen.running == 1);
        assert_eq!(server.ask(Request::new("DELETE", &format!("{FUNCTIONS}/slow"), "")).status, 200);
        assert_eq!(server.invoke("slow", "1").status, 404);
        server.fake.until_noted("retire slow");
        server.fake.invocations.add_permits(1);
        let answer = running.join().unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"\"to the end\"".as_slice()));
    });
}

#[test]
fn an_invocation_keeps_the_revision_that_it_began_with() {
    let server = Server::start();
    server.deploy("f", "app.slow");
    thread::scope(|scope| {
        let running = scope.spawn(|| server.invoke("f", "\"old\""));
        server.fake.until("it runs", |seen| seen.running == 1);
        let update =
            Request::new("PUT", &format!("{FUNCTIONS}/f/configuration"), r#"{"Handler": "app.nothing"}"#);
        assert_eq!(server.ask(update).status, 200);
        server.settled("f");
        assert_eq!(server.invoke("f", "\"new\"").body, b"null");
        server.fake.invocations.add_permits(1);
        assert_eq!(running.join().unwrap().body, b"\"old\"");
    });
}

#[test]
fn an_invocation_outlives_its_client() {
    let server = Server::start();
    server.deploy("slow", "app.slow");
    let request = server.signed(Request::new("POST", &format!("{FUNCTIONS}/slow/invocations"), "1"));
    request.send_and_leave(server.address, || server.fake.until("it runs", |seen| seen.running == 1));
    server.fake.invocations.add_permits(1);
    server.fake.until_noted("done slow");
}

#[test]
fn one_of_many_creations_of_a_name_succeeds() {
    let server = Server::start();
    let body = crate::server::creation("f", "app.echo").to_string();
    let mut answers: Vec<u16> = thread::scope(|scope| {
        let create = || server.ask(Request::new("POST", FUNCTIONS, body.clone())).status;
        let each: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        each.into_iter().map(|one| one.join().unwrap()).collect()
    });
    answers.sort();
    assert_eq!(answers, [201, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(server.settled("f")["State"], "Active");
}

#[test]
fn events_beyond_the_limit_are_refused_and_accepted_ones_run() {
    let dir = tempfile::tempdir().unwrap();
    let limits = GatewayLimits { events: 2, ..GatewayLimits::default() };
    let server = Server::start_with(GatewayConfig { limits, ..config(dir.path()) });
    server.deploy("slow", "app.slow");
    assert_eq!(asynchronous(&server, "slow").status, 202);
    assert_eq!(asynchronous(&server, "slow").status, 202);
    let refused = asynchronous(&server, "slow");
    assert_eq!((refused.status, refused.header("x-amzn-errortype")), (429, Some("TooManyRequestsException")));
    server.fake.until("both run", |seen| seen.running == 2);
    server.fake.invocations.add_permits(2);
    server
        .fake
        .until("both are done", |seen| seen.notes.iter().filter(|note| *note == "done slow").count() == 2);
}

#[test]
fn a_stopping_server_finishes_what_it_has_accepted() {
    let server = Server::start();
    server.deploy("slow", "app.slow");
    assert_eq!(asynchronous(&server, "slow").status, 202);
    server.fake.until("the event runs", |seen| seen.running == 1);
    let request = server.signed(Request::new("POST", &format!("{FUNCTIONS}/slow/invocations"), "\"bye\""));
    let (fake, address) = (server.fake.clone(), server.address);
    let (answered, answer) = mpsc::channel();
    let client = thread::spawn(move || answered.send(request.send(address)).unwrap());
    fake.until("both run", |seen| seen.running == 2);
    server.stop(|| fake.invocations.add_permits(2)).unwrap();
    assert_eq!(answer.recv().unwrap().body, b"\"bye\"");
    client.join().unwrap();
    fake.until("both are done", |seen| seen.running == 0);
}
