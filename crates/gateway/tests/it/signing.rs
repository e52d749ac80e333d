//! Who is let in, and what the others are told.

use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use sock_gateway::{AccessKey, Auth, ServeError, serve, sigv4};

use crate::fake::Fake;
use crate::http::Request;
use crate::server::{FUNCTIONS, Server, config, creation, key};
use crate::transcript::Transcript;

fn list(server: &Server) -> Request {
    Request::new("GET", FUNCTIONS, "").header("host", &server.address.to_string())
}

fn signed(mut request: Request, key: &AccessKey, now: SystemTime) -> Request {
    let Request { method, target, headers, body } = &mut request;
    sigv4::sign(method, target, headers, body, key, now);
    request
}

#[test]
fn each_wrong_signature_is_told_apart() {
    let server = Server::start();
    let now = SystemTime::now();
    let mut told = Transcript::new(&server);
    let stranger = AccessKey::parse("SOMEBODYELSESKEY:a-secret-of-the-tests").unwrap();
    let wrong = AccessKey::parse("SOCKTESTSTESTSTESTS1:another-secret-of-them").unwrap();
    let hour = Duration::from_secs(3600);
    told.send("no signature", list(&server));
    told.send("another scheme", list(&server).header("authorization", "Bearer x"));
    told.send("a key that is not known", signed(list(&server), &stranger, now));
    told.send("a wrong secret", signed(list(&server), &wrong, now));
    told.send("signed an hour ago", signed(list(&server), &key(), now - hour));
    told.send("signed in an hour", signed(list(&server), &key(), now + hour));
    let mut other = signed(list(&server), &key(), now);
    other.target.push_str("?MaxItems=1");
    told.send("another target", other);
    let mut other = signed(Request::new("POST", FUNCTIONS, "{}").header("host", "x"), &key(), now);
    other.body = b"{ }".to_vec();
    told.send("another body", other);
    let other = signed(list(&server), &key(), now).header("x-amz-invocation-type", "Event");
    told.send("a header that is not signed", other);
    let mut other = signed(list(&server), &key(), now);
    for (name, value) in &mut other.headers {
        if name == "authorization" {
            *value = value.replace("/lambda/", "/s3/");
        }
    }
    told.send("for another service", other);
    told.check("signatures");
    assert_eq!(
        signed(list(&server), &key(), now - Duration::from_secs(14 * 60)).send(server.address).status,
        200
    );
}

#[test]
fn run_takes_the_secret_as_a_bearer_token() {
    let server = Server::start();
    server.deploy("echo", "app.echo");
    let run = |token: &str| {
        Request::new("POST", "/run/echo", "[1]")
            .header("authorization", &format!("Bearer {token}"))
            .send(server.address)
    };
    assert_eq!(run(&key().secret).body, b"[1]");
    assert_eq!(run("a-secret-of-others").status, 403);
    assert_eq!(run("").status, 403);
    let invoke = Request::new("POST", &format!("{FUNCTIONS}/echo/invocations"), "[1]");
    let token = format!("Bearer {}", key().secret);
    assert_eq!(
        invoke.header("authorization", &token).send(server.address).status,
        403,
        "it is for run alone"
    );
}

#[test]
fn who_has_no_key_learns_it_also_with_a_large_body() {
    let server = Server::start();
    let large = Request::new("POST", FUNCTIONS, vec![b'x'; 8 << 20]);
    let answer = large.send(server.address);
    assert_eq!(
        (answer.status, answer.header("x-amzn-errortype")),
        (403, Some("MissingAuthenticationTokenException"))
    );
}

#[test]
fn an_open_server_asks_nobody_and_listens_on_loopback_alone() {
    let dir = tempfile::tempdir().unwrap();
    let open = || sock_gateway::GatewayConfig { auth: Auth::Open, ..config(dir.path()) };
    let server = Server::start_with(open());
    let create = Request::new("POST", FUNCTIONS, creation("echo", "app.echo").to_string());
    assert_eq!(create.send(server.address).status, 201);
    server.settled("echo");
    let got = Request::new("GET", &format!("{FUNCTIONS}/echo"), "").send(server.address).json();
    let link = format!("http://{}/code/echo", server.address);
    assert_eq!(got["Code"]["Location"], link);
    assert_eq!(Request::new("GET", "/code/echo", "").send(server.address).status, 200);
    server.stop(|| ()).unwrap();

    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let served = runtime.block_on(serve(everywhere, open(), Fake::new(), std::future::ready(())));
    assert!(matches!(served, Err(ServeError::Exposed(_))), "{served:?}");
}
