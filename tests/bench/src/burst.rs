//! Many new instances of one function at once.
//!
//! The function needs numpy, each invocation has an instance of its own, and all connections are open before. The server runs 224
//! invocations of one function side by side; the others wait for them. The first burst of a size is one that the server has not seen the like of,
//! and is judged apart; to the others it keeps as many spares as memory allows.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::figures::{Samples, Target, heading, judge, show};
use crate::machine::pause;
use crate::server::Server;

/// How many, how often after the first, and within how many milliseconds.
const BURSTS: [(usize, usize, f64); 2] = [(100, 10, 250.0), (1000, 5, 2500.0)];

/// Beyond that, who has no answer gets none.
const LIMIT: Duration = Duration::from_secs(30);

const IDLE: Duration = Duration::from_millis(500);

/// What is kept of spares follows a burst within a second.
const FOLLOWS: Duration = Duration::from_millis(1200);

/// Measures, prints, and tells whether every target was met.
pub(crate) fn run(sock: &Path) -> Result<bool> {
    sock_isolation::process::raise_file_limit()?;
    let mut server = Server::start(sock, &[])?;
    server.deploy("bench/functions/numbers", "numpy", &["--single-use"])?;
    let invocation = server.invocation("numpy", "{}");
    server.invoke(&invocation)?;
    let mut met = true;
    for (count, rounds, bound) in BURSTS {
        let mut crowd = server.crowd(count)?;
        let (mut each, mut last) = (Samples::default(), Samples::default());
        let (mut kinds, mut lost, mut first) = (BTreeMap::<String, usize>::new(), 0, None);
        for _ in 0..=rounds {
            pause(FOLLOWS);
            server.settle()?;
            pause(IDLE);
            let (begin, mut latest) = (Instant::now(), Duration::ZERO);
            lost += crowd.ask(&invocation, LIMIT, |answer| {
                latest = begin.elapsed();
                each.add(latest);
                let kind = match answer.status() {
                    200 => answer.start().to_owned(),
                    status => format!("status {status}"),
                };
                *kinds.entry(kind).or_default() += 1;
                false
            })?;
            if first.is_none() {
                first = Some(latest);
                each = Samples::default();
                // What was refused stays counted.
                kinds.retain(|kind, _| kind.starts_with("status"));
            } else {
                last.add(latest);
            }
        }
        let refused: usize =
            kinds.iter().filter(|(kind, _)| kind.starts_with("status")).map(|(_, n)| n).sum();
        heading();
        show(&format!("{count} at once, each"), &each);
        show(&format!("{count} at once, the last"), &last);
        let all = each.count().max(1) as f64;
        let shares = kinds.iter().map(|(kind, n)| format!("{kind} {:.1} %", *n as f64 / all * 100.0));
        println!("{:10}{}", "", shares.collect::<Vec<_>>().join(", "));
        let first = first.unwrap_or_default().as_secs_f64() * 1e3;
        println!(
            "{:10}max {:.1} ms, of {rounds} rounds; the last of the first such burst {first:.1} ms",
            "",
            each.quantile(1.0)
        );
        met &=
            judge(&format!("{count} at once: lost or refused"), (lost + refused) as f64, Target::AtMost(0.0));
        met &= judge(
            &format!("{count} at once for the first time: until the last, ms"),
            first,
            Target::AtMost(bound),
        );
        met &= judge(
            &format!("{count} at once again: until the last, p50, ms"),
            last.median(),
            Target::AtMost(bound),
        );
        met &= judge(
            &format!("{count} at once again: until the last, max, ms"),
            last.quantile(1.0),
            Target::AtMost(bound),
        );
        println!();
    }
    server.stop()?;
    Ok(met)
}
