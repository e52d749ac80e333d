//! What idle instances take, how many there may be, and what ending them costs.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::figures::{Target, judge};
use crate::machine::{ProcessorTime, available, pause};
use crate::server::Server;

/// Of each kind, when their memory is looked at.
const FEW: usize = 16;

/// How many are to be idle, made so many at a time: the server runs 224 of one function side by side.
const MANY: u64 = 2000;
const AT_ONCE: usize = 170;

/// How long making them may take: idle for five minutes, an instance is ended.
const PATIENCE: Duration = Duration::from_secs(150);

/// All instances of one batch answer at the same time, so long after they are asked for.
const TOGETHER: Duration = Duration::from_secs(3);

/// How long one has to be idle until its memory is known: it is asked for once a second, of sixteen at a time.
const MEASURED: Duration = Duration::from_secs(4);

/// How many are ended, to see what that costs.
const ENDED: u64 = 500;

/// Measures, prints, and tells whether every target was met.
pub(crate) fn run(sock: &Path) -> Result<bool> {
    sock_isolation::process::raise_file_limit()?;
    // More than they are to take, so that none is ended for want of memory.
    let mut server = Server::start(sock, &["--idle-memory", "8192"])?;
    server.deploy("functions/echo", "echo", &[])?;
    server.deploy("bench/functions/tables", "pandas", &[])?;
    let mut met = true;
    for (name, bound) in [("echo", 1.0), ("pandas", 3.0)] {
        let private = private(&mut server, name)?;
        met &= judge(&format!("memory of its own of an idle {name}, MB"), private, Target::AtMost(bound));
    }
    met &= destroy(&mut server)?;
    match crowd(&mut server) {
        Ok(together) => {
            server.stop()?;
            Ok(met && together)
        }
        Err(error) => {
            println!("MISSED idle instances alive: {error:#}");
            Ok(false)
        }
    }
}

/// Memory that would be free without an idle instance of the function, MB: the mean of some.
fn private(server: &mut Server, name: &str) -> Result<f64> {
    let invocation = server.invocation(name, "{}");
    server.invoke(&invocation)?;
    server.settle()?;
    server.crowd(FEW)?.ask(&invocation, TOGETHER * 5, |_| false)?;
    pause(MEASURED);
    let report = server.report()?;
    let idle = report.of(name, "idle");
    println!("{idle} idle instances of {name}, {} of them frozen", report.of(name, "frozen"));
    Ok(report.of(name, "private_bytes") as f64 / idle as f64 / 1e6)
}

/// Deploys functions and makes idle instances of them until there are so many, or time is over; the functions' names, and how many
/// requests were lost.
fn fill(server: &mut Server, prefix: &str, count: u64) -> Result<(Vec<String>, usize)> {
    let (begin, before, mut names, mut lost) = (Instant::now(), available()?, Vec::new(), 0);
    let mut idle = server.report()?.count("idle");
    while idle < count && begin.elapsed() < PATIENCE {
        let name = format!("{prefix}-{}", names.len());
        server.deploy("bench/functions/wait", &name, &[])?;
        let until = SystemTime::now().duration_since(UNIX_EPOCH)? + TOGETHER;
        let invocation = server.invocation(&name, &format!(r#"{{"until": {}}}"#, until.as_secs_f64()));
        names.push(name);
        let taken = gigabytes_since(before)?;
        let failed = || format!("the server failed after {idle}, in {taken:.2} GB of available memory");
        let answered = server.crowd(AT_ONCE).and_then(|mut crowd| {
            let lost = crowd.ask(&invocation, TOGETHER * 5, |_| false)?;
            Ok((lost, server.report()?))
        });
        let (unanswered, report) = answered.with_context(failed)?;
        (idle, lost) = (report.count("idle"), lost + unanswered);
    }
    Ok((names, lost))
}

/// Memory that was available `before`, KiB, and is not any more.
fn gigabytes_since(before: u64) -> Result<f64> {
    Ok(before.saturating_sub(available()?) as f64 * 1024.0 / 1e9)
}

fn crowd(server: &mut Server) -> Result<bool> {
    server.settle()?;
    let (begin, before, few) = (Instant::now(), available()?, server.report()?.count("idle"));
    let (names, lost) = fill(server, "crowd", MANY)?;
    let took = begin.elapsed().as_secs_f64();
    pause(MEASURED);
    let idle = server.report()?.count("idle");
    let gigabytes = gigabytes_since(before)?;
    println!(
        "{idle} idle instances of {} functions after {took:.0} s, {lost} requests lost; {:.2} MB of the machine's available memory each",
        names.len() + 2,
        gigabytes * 1e3 / (idle - few.min(idle)).max(1) as f64
    );
    let mut met = judge("idle instances alive", idle as f64, Target::AtLeast(MANY as f64));
    met &= judge("available memory that they take, GB", gigabytes, Target::AtMost(3.0));
    Ok(met)
}

/// Processor time of the server with all its processes, zygotes and instances included, from when functions are deleted until all of
/// their instances are gone: what each of these took, with whatever else the server did meanwhile. The kernel's own threads, which
/// take network namespaces apart, are not in it.
fn destroy(server: &mut Server) -> Result<bool> {
    let (names, _) = fill(server, "ended", ENDED)?;
    server.settle()?;
    let idle = server.report()?.count("idle");
    let before = ProcessorTime::of(server.pid());
    for name in &names {
        server.delete(name)?;
    }
    let gone = server.wait_until("their instances are gone", |report| report.count("dying") == 0)?;
    let after = ProcessorTime::of(server.pid());
    let destroyed = idle - gone.count("idle").min(idle);
    println!(
        "{destroyed} idle instances ended; {} processes before, {} after",
        before.count(),
        after.count()
    );
    let each = after.since(&before) * 1e3 / destroyed as f64;
    Ok(judge("processor time of destroying an instance, ms", each, Target::AtMost(2.0)))
}
