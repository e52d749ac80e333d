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

/// New instances of each function that are measured; each needs a deployed copy, since one that answered is warm.
const COPIES: usize = 5;
/// For `stats`, whose start is compared with an interpreter that imports pandas.
const STATS_COPIES: usize = 21;
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
        let copies = if function.name == "stats" { STATS_COPIES } else { COPIES };
        for copy in 0..copies {
            server.deploy(function, &copy_name(function, copy), &[])?;
        }
    }
    let mut rows = Vec::new();
    for function in &functions {
        for case in &function.cases {
            right &= check(server, &function.name, case)?;
        }
        rows.push(Row::new(
            &function.name,
            vec![measure(server, &format!("{}-cold", function.name), function)?],
        ));
        let copies = if function.name == "stats" { 0 } else { COPIES };
        let fresh: Result<Vec<Measured>> =
            (0..copies).map(|copy| measure(server, &copy_name(function, copy), function)).collect();
        if copies > 0 {
            rows.push(Row::new(&function.name, fresh?));
        } else {
            let (row, ratio) = compare_with_import(server, function)?;
            rows.push(row);
            println!("a new instance of stats takes {:.3} of the time of python3 -c 'import pandas'", ratio);
            if ratio >= 0.1 {
                println!("  that is not under a tenth");
                right = false;
            }
        }
        let warm: Result<Vec<Measured>> =
            (0..WARM).map(|_| measure(server, &function.name, function)).collect();
        rows.push(Row::new(&function.name, warm?));
    }
    table::print(&rows);
    for (row, expected) in rows.iter().zip(["cold", "zygote", "warm"].iter().cycle()) {
        if row.start != *expected {
            println!("{} started {} where {expected} was due", row.function, row.start);
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

/// New instances in turn with interpreters that import the same packages from the same files, as compiled as ours.
fn compare_with_import(server: &Server, function: &Function) -> Result<(Row, f64)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    server.import_pandas()?;
    for copy in 0..STATS_COPIES {
        ours.push(measure(server, &copy_name(function, copy), function)?);
        theirs.push(server.import_pandas()?);
    }
    let row = Row::new(&function.name, ours);
    let ratio = row.client_ms / table::median(theirs);
    Ok((row, ratio))
}
