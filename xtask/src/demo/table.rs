//! What was measured, as a table.

use serde_json::Value;

/// One invocation.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) answer: Value,
    pub(crate) right: bool,
    pub(crate) start: String,
    pub(crate) client_ms: f64,
    /// `queue`, `provision`, `init`, `handler`, milliseconds.
    pub(crate) phases: [f64; 4],
}

/// Medians of some invocations of a kind.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) function: String,
    pub(crate) start: &'static str,
    /// Whether there was one at all, and each was of this kind.
    pub(crate) as_expected: bool,
    pub(crate) right: bool,
    pub(crate) client_ms: f64,
    count: usize,
    phases: [f64; 4],
}

pub(crate) const PHASES: [&str; 4] = ["queue", "provision", "init", "handler"];

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    pub(crate) fn new(function: &str, start: &'static str, measured: Vec<Measured>) -> Self {
        Self {
            function: function.to_owned(),
            start,
            as_expected: !measured.is_empty() && measured.iter().all(|one| one.start == start),
            right: measured.iter().all(|one| one.right),
            client_ms: median(measured.iter().map(|one| one.client_ms).collect()),
            count: measured.len(),
            phases: std::array::from_fn(|phase| {
                median(measured.iter().map(|one| one.phases[phase]).collect())
            }),
        }
    }
}

pub(crate) fn print(rows: &[Row]) {
    println!("\nmedians, ms");
    println!("function  start      n   client  {}", PHASES.map(|phase| format!("{phase:>9}")).join(" "));
    for row in rows {
        let phases = row.phases.map(|phase| format!("{phase:9.2}")).join(" ");
        println!("{:8}  {:7}  {:3}  {:7.2}  {phases}", row.function, row.start, row.count, row.client_ms);
    }
    println!();
}
