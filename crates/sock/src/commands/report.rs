//! `sock tree` and `sock stats`: what runs functions, and what it takes.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use crate::{Reading, show};

pub(crate) fn stats(options: &Reading) -> Result<ExitCode> {
    let report = options.server.connect()?.get("/report")?;
    if options.json {
        show::json(&report);
        return Ok(ExitCode::SUCCESS);
    }
    let count = |name: &str| report["counts"][name].as_u64().unwrap_or(0);
    let nodes = report["nodes"].as_array().into_iter().flatten();
    let zygotes: u64 = nodes.map(|node| number(node, "billed_bytes")).sum();
    crate::say!("running    {}", count("running"));
    crate::say!(
        "idle       {}, {} of them frozen, {}",
        count("idle"),
        count("frozen"),
        size(
            report["functions"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|function| number(function, "private_bytes"))
                .sum()
        )
    );
    crate::say!("zygotes    {}, {}", count("zygotes"), size(zygotes));
    let spares: u64 =
        report["nodes"].as_array().into_iter().flatten().map(|node| number(node, "spare_bytes")).sum();
    crate::say!("made ahead {} spares, {}; {} slots", count("spares"), size(spares), count("slots"));
    crate::say!("containers {} for the first process of each", size(number(&report, "init_bytes")));
    let functions = report["functions"].as_array().cloned().unwrap_or_default();
    if functions.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    crate::say!("");
    let rows = functions.iter().map(|function| {
        [
            show::plain(&function["name"]),
            show::plain(&function["idle"]),
            show::plain(&function["frozen"]),
            size(number(function, "private_bytes")),
            size(number(function, "proportional_bytes")),
            format!("{:.1}", fraction(function, "invocations_per_second") * 60.0),
            format!("{:.1}", fraction(function, "starts_per_second") * 60.0),
            format!("{:.1}", fraction(function, "start_us") / 1000.0),
        ]
    });
    show::table(
        ["FUNCTION", "IDLE", "FROZEN", "PRIVATE", "PSS", "CALLS/MIN", "STARTS/MIN", "START MS"],
        rows,
    );
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn tree(options: &Reading) -> Result<ExitCode> {
    let report = options.server.connect()?.get("/report")?;
    if options.json {
        show::json(&report["nodes"]);
        return Ok(ExitCode::SUCCESS);
    }
    let nodes = report["nodes"].as_array().cloned().unwrap_or_default();
    let mut rows = Vec::new();
    for root in children(&nodes, &Value::Null) {
        draw(&nodes, root, "", "", &mut rows);
    }
    show::table(
        ["ZYGOTE", "MODULES", "FORKS", "SPARES", "BILLED", "PRIVATE", "PSS", "SAVES/MIN"],
        rows.into_iter(),
    );
    Ok(ExitCode::SUCCESS)
}

fn children<'a>(nodes: &'a [Value], of: &Value) -> Vec<&'a Value> {
    nodes.iter().filter(|node| node["parent"] == *of).collect()
}

/// `before`: what stands before the node's own line; `below`: before those of its children.
fn draw(nodes: &[Value], node: &Value, before: &str, below: &str, rows: &mut Vec<[String; 8]>) {
    rows.push([
        format!("{before}{}", name(node)),
        show::plain(&node["modules"]),
        show::plain(&node["forks"]),
        show::plain(&node["spares"]),
        size(number(node, "billed_bytes")),
        size(number(node, "private_bytes")),
        size(number(node, "proportional_bytes")),
        format!("{:.1} ms", fraction(node, "saved_us_per_second") * 60.0 / 1000.0),
    ]);
    let children = children(nodes, &node["id"]);
    for (at, child) in children.iter().enumerate() {
        let (branch, line) = if at + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(nodes, child, &format!("{below}{branch}"), &format!("{below}{line}"), rows);
    }
}

/// What it imports, from what, and for whom.
fn name(node: &Value) -> String {
    let words = |key: &str| {
        let list = node[key].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let imports = words("imports");
    let mut text = format!("{} ", node["id"]);
    if imports.is_empty() {
        text += &show::plain(&node["runtime"]);
    } else {
        // As much as fits on a line; --json has all.
        const SHOWN: usize = 4;
        text += &imports.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if imports.len() > SHOWN {
            text += &format!(" and {} more", imports.len() - SHOWN);
        }
    }
    if let Some(tenant) = node["tenant"].as_str() {
        text += &format!(" (tenant {tenant})");
    }
    if node["safe"] == false {
        text += " (a thread lives in it: nothing is forked from it)";
    }
    text
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn fraction(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(0.0)
}

/// In MB of a million bytes.
fn size(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
