//! `cargo xtask demo`: builds, starts a server of its own, deploys the functions of tests/functions, invokes each cold,
//! from a zygote and warm, checks every answer, prints what it took, and cleans up.

mod functions;
mod server;
mod table;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::tasks::{cargo, run as run_program};
use crate::tools;
use functions::{Case, Function};
use server::Server;
use table::{Measured, Row};

/// Rounds in which new instances of a function are measured. Each takes some deployed copies, since one that answered is
/// warm: one is invoked after a pause and finds a spare, the others without a pause, until one has to be forked on demand.
const ROUNDS: usize = 5;
const PER_ROUND: usize = 6;
/// Of a slow function: at the same moment.
const TOGETHER: usize = 3;
/// For `stats`, whose start is compared with an interpreter that imports pandas.
const STATS_ROUNDS: usize = 24;
const WARM: usize = 200;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let keep = match arguments {
        [] => false,
        [one] if one == "--keep" => true,
        _ => bail!("cargo xtask demo takes --keep and nothing else"),
    };
    tools::for_running()?;
    run_program(&cargo(), &["build", "--release", "--locked", "--package", "sock"])?;
    let server = Server::start()?;
    println!("server: {} (data in {})", server.endpoint, server.data.display());
    let outcome = show(&server);
    if keep && outcome.is_ok() {
        server.keep()?;
    } else {
        server.stop()?;
    }
    if outcome? {
        println!("every answer was right");
        Ok(())
    } else {
        bail!("something was not right, see above")
    }
}

fn show(server: &Server) -> Result<bool> {
    let functions = functions::all()?;
    let mut right = true;
    for function in &functions {
        let begin = Instant::now();
        server.deploy(function, &function.name, &[])?;
        println!("deployed {:8} in {:6.1} s", function.name, begin.elapsed().as_secs_f64());
        server.deploy(function, &format!("{}-cold", function.name), &["--fresh"])?;
        for copy in 0..rounds(function) * PER_ROUND {
            server.deploy(function, &copy_name(function, copy), &[])?;
        }
    }
    let mut rows = Vec::new();
    for function in &functions {
        for case in &function.cases {
            right &= check(server, &function.name, case)?;
        }
        let cold = measure(server, &format!("{}-cold", function.name), function)?;
        rows.push(Row::new(&function.name, "cold", vec![cold]));
        let compared = function.name == "stats";
        let (new, imports) = new_instances(server, function, compared)?;
        if compared {
            right &= under_a_tenth(&new, &imports);
        }
        for kind in ["zygote", "spare"] {
            let of_kind = new.iter().filter(|one| one.start == kind).cloned().collect();
            let row = Row::new(&function.name, kind, of_kind);
            rows.push(row);
        }
        // The first one has run before; by now it may have made room for others.
        measure(server, &function.name, function)?;
        let warm: Result<Vec<Measured>> =
            (0..WARM).map(|_| measure(server, &function.name, function)).collect();
        rows.push(Row::new(&function.name, "warm", warm?));
    }
    table::print(&rows);
    for row in &rows {
        if !row.as_expected {
            println!("of {} not every start, or none, was {}", row.function, row.start);
            right = false;
        }
    }
    right &= rows.iter().all(|row| row.right);
    let echo = rows.iter().find(|row| row.function == "echo" && row.start == "warm");
    if let Some(echo) = echo.filter(|echo| echo.client_ms >= 0.5) {
        println!(
            "a warm echo took {:.2} ms at the median; under 0.5 is expected of an idle machine",
            echo.client_ms
        );
    }
    Ok(right)
}

fn copy_name(function: &Function, copy: usize) -> String {
    format!("{}-{copy}", function.name)
}

fn check(server: &Server, name: &str, case: &Case) -> Result<bool> {
    let measured = server.invoke(name, &case.event)?;
    let right = measured.answer == case.answer;
    if !right {
        println!("{name} answered {} where {} was due", measured.answer, case.answer);
    }
    Ok(right)
}

fn measure(server: &Server, name: &str, function: &Function) -> Result<Measured> {
    let case = &function.cases[0];
    let mut measured = server.invoke(name, &case.event)?;
    measured.right = measured.answer == case.answer;
    if !measured.right {
        println!("{name} answered {} where {} was due", measured.answer, case.answer);
    }
    Ok(measured)
}

/// Whether new instances that import pandas, as requests that come one by one get them, answer in under a tenth of what an
/// interpreter takes to import it, at the median.
fn under_a_tenth(new: &[Measured], imports: &[f64]) -> bool {
    let import = table::median(imports.to_vec());
    let ratio = |kind: &str| {
        let of_kind = new.iter().filter(|one| one.start == kind);
        table::median(of_kind.map(|one| one.client_ms).collect()) / import
    };
    let (spare, zygote) = (ratio("spare"), ratio("zygote"));
    println!(
        "a new instance of stats answers in {spare:.3} of the time of python3 -c 'import pandas', which is {import:.0} ms; \
         when no spare was left and it had to be forked on demand, in {zygote:.3}"
    );
    // Not a number, if there was none, is not under a tenth either.
    if spare >= 0.1 || spare.is_nan() {
        println!("  that is not under a tenth");
        return false;
    }
    true
}

/// As between requests that come one by one: long enough for a zygote to have a spare again.
fn pause() {
    #[allow(clippy::disallowed_methods, reason = "the time between two requests is what is shown")]
    std::thread::sleep(std::time::Duration::from_millis(50));
}

fn rounds(function: &Function) -> usize {
    if function.name == "stats" { STATS_ROUNDS } else { ROUNDS }
}

/// Answers of new instances; and, if `compared`, in turn with them how long interpreters take that import pandas from the
/// same files, as compiled as ours, milliseconds.
fn new_instances(server: &Server, function: &Function, compared: bool) -> Result<(Vec<Measured>, Vec<f64>)> {
    let (mut new, mut imports) = (Vec::new(), Vec::new());
    let view = if compared { Some(server.copy_of_view()?) } else { None };
    if let Some(view) = &view {
        // Once for the page cache.
        server::import_pandas(view)?;
    }
    for round in 0..rounds(function) {
        let copies: Vec<String> =
            (0..PER_ROUND).map(|copy| copy_name(function, round * PER_ROUND + copy)).collect();
        pause();
        new.push(measure(server, &copies[0], function)?);
        if let Some(view) = &view {
            imports.push(server::import_pandas(view)?);
        }
        // Its zygote has spares again, as many as there were requests for, which the first of these take; the next has to be forked.
        pause();
        if compared {
            for copy in &copies[1..] {
                let one = measure(server, copy, function)?;
                if one.start == "zygote" {
                    new.push(one);
                    break;
                }
            }
            continue;
        }
        // Of a slow function only if they come at the same moment; several on few processors take longer.
        let together: Vec<_> = std::thread::scope(|scope| {
            let start = |copy| scope.spawn(move || measure(server, copy, function));
            let calls: Vec<_> = copies[1..=TOGETHER].iter().map(String::as_str).map(start).collect();
            calls.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for one in together {
            let one = one.map_err(|_| anyhow::anyhow!("a measuring thread panicked"))??;
            if one.start == "zygote" {
                new.push(one);
            }
        }
    }
    view.as_deref().map_or(Ok(()), server::remove)?;
    Ok((new, imports))
}
