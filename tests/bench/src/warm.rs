//! What the platform adds to an instance that has answered before.

mod fastapi;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::Crowd;
use crate::figures::{ByKind, Samples, Target, heading, judge, show};
use crate::machine::pause;
use crate::server::Server;
use fastapi::FastApi;

/// What can be measured alone.
pub(crate) const PARTS: [&str; 3] = ["latency", "thaw", "throughput"];

const EVENT: &str = r#"{"hello": "world", "n": [1, 2.5, null]}"#;

/// Invocations of which one follows the other.
const CALLS: usize = 3000;

/// Copies of the function that are frozen together, and how often.
const COPIES: usize = 10;
const THAWS: usize = 6;

/// Idle for so long, an instance is not frozen yet; and how long nothing else is asked for before it is used.
const RESTED: Duration = Duration::from_millis(1200);
const IDLE: Duration = Duration::from_millis(50);

const CONNECTIONS: usize = 8;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);

/// Measures, prints, and tells whether every target was met.
pub(crate) fn run(sock: &Path, part: Option<&str>) -> Result<bool> {
    if let Some(part) = part.filter(|part| !PARTS.contains(part)) {
        bail!("there is no part {part}; there are: {}", PARTS.join(", "));
    }
    let mut server = Server::start(sock, &[])?;
    server.deploy("functions/echo", "echo", &[])?;
    let mut met = true;
    for one in PARTS.into_iter().filter(|one| part.is_none_or(|part| part == *one)) {
        met &= match one {
            "latency" => latency(&mut server)?,
            "thaw" => thaw(&mut server)?,
            _ => throughput(&mut server)?,
        };
        println!();
    }
    server.stop()?;
    Ok(met)
}

/// At one connection.
fn latency(server: &mut Server) -> Result<bool> {
    let invocation = server.invocation("echo", EVENT);
    let (mut all, mut beyond) = (ByKind::default(), Samples::default());
    server.invoke(&invocation)?;
    for _ in 0..CALLS {
        let answer = server.invoke(&invocation)?;
        all.add(&answer);
        if answer.start() == "warm" {
            beyond.add(answer.took.saturating_sub(answer.phase("handler")));
        }
    }
    heading();
    let whole = all.show("echo", "warm");
    show("beyond the handler's phase", &beyond);
    // What the function itself does takes a microsecond: all of it is the platform's, with the way to the instance and back.
    Ok(judge("warm, all of it: p50, ms", whole.median(), Target::AtMost(0.2)))
}

/// Of instances that are frozen, in turn with the same ones while they are not. Each is invoked after the same rest, and shows what it
/// costs that its memory is in no cache any more.
fn thaw(server: &mut Server) -> Result<bool> {
    let names: Vec<String> = (0..COPIES).map(|copy| format!("echo-{copy}")).collect();
    let invocations: Vec<Vec<u8>> = names.iter().map(|name| server.invocation(name, EVENT)).collect();
    for (name, invocation) in names.iter().zip(&invocations) {
        server.deploy("functions/echo", name, &[])?;
        server.invoke(invocation)?;
    }
    let [mut frozen, mut rested] = [(); 2].map(|()| ByKind::default());
    for _ in 0..THAWS {
        server
            .wait_until("all are frozen", |report| names.iter().all(|name| report.of(name, "frozen") == 1))?;
        for invocation in &invocations {
            pause(IDLE);
            frozen.add(&server.invoke(invocation)?);
        }
        for invocation in &invocations {
            server.invoke(invocation)?;
        }
        pause(RESTED);
        let report = server.report()?;
        for (name, invocation) in names.iter().zip(&invocations) {
            if report.of(name, "frozen") == 0 {
                pause(IDLE);
                rested.add(&server.invoke(invocation)?);
            }
        }
    }
    heading();
    let frozen = frozen.show("echo, frozen", "warm");
    let rested = rested.show("echo, rested", "warm");
    Ok(judge("a thaw adds, p50, ms", frozen.median() - rested.median(), Target::AtMost(0.1)))
}

/// Beside the same function in FastAPI.
fn throughput(server: &mut Server) -> Result<bool> {
    let Some(peer) = FastApi::start()? else {
        println!("MISSED throughput beside FastAPI, which could not be installed");
        return Ok(false);
    };
    let invocation = server.invocation("echo", EVENT);
    let mut ours = server.crowd(CONNECTIONS)?;
    let mut theirs = Crowd::open(peer.address, CONNECTIONS, &server.invocation("echo", EVENT))?;
    for crowd in [&mut ours, &mut theirs] {
        rate(crowd, &invocation)?;
    }
    let [mut sock, mut fastapi] = [(); 2].map(|()| Vec::new());
    for _ in 0..ROUNDS {
        sock.push(rate(&mut ours, &invocation)?);
        fastapi.push(rate(&mut theirs, &invocation)?);
    }
    let [sock, fastapi] = [sock, fastapi].map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!(
        "answers a second at {CONNECTIONS} connections: sock {sock:.0}, uvicorn and FastAPI {fastapi:.0}"
    );
    Ok(judge("echo a second / the same in FastAPI", sock / fastapi, Target::AtLeast(1.0)))
}

/// Answers a second.
fn rate(crowd: &mut Crowd, invocation: &[u8]) -> Result<f64> {
    let begin = std::time::Instant::now();
    let (mut count, mut wrong, mut end) = (0u32, 0u32, Duration::ZERO);
    let lost = crowd.ask(invocation, ROUND * 5, |answer| {
        (count, end) = (count + 1, begin.elapsed());
        wrong += u32::from(answer.status() != 200);
        end < ROUND
    })?;
    if lost > 0 || wrong > 0 {
        bail!("{lost} requests were lost, {wrong} were not answered well");
    }
    Ok(f64::from(count) / end.as_secs_f64())
}
