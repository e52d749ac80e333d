//! Samples, and what is said of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::Answer;

/// How long something took, again and again.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Measures `action` once more.
    pub(crate) fn time<T>(&mut self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = action()?;
        self.0.push(begin.elapsed());
        Ok(result)
    }

    /// Takes one more in.
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds.
    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<Duration>().as_secs_f64() * 1e3 / self.0.len() as f64
    }

    /// The value below which the share `part` of all lies, in milliseconds.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Prints a table's line.
pub(crate) fn show(name: &str, samples: &Samples) {
    let [min, p50, p90, p99] = [0.0, 0.5, 0.9, 0.99].map(|part| samples.quantile(part));
    println!("{name:34} {:5} {min:9.3} {p50:9.3} {p90:9.3} {p99:9.3}", samples.0.len());
}

pub(crate) fn heading() {
    println!("{:34} {:>5} {:>9} {:>9} {:>9} {:>9}", "ms", "n", "min", "p50", "p90", "p99");
}

/// What is to be reached.
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// Prints a figure beside what it is to be; whether it is.
pub(crate) fn judge(what: &str, figure: f64, target: Target) -> bool {
    let (met, relation, bound) = match target {
        Target::AtMost(bound) => (figure <= bound, "at most", bound),
        Target::AtLeast(bound) => (figure >= bound, "at least", bound),
    };
    println!("{} {what}: {figure:.2} ({relation} {bound})", if met { "met   " } else { "MISSED" });
    met
}

/// Answers to the same invocation, kept apart by the kind of start that they tell of.
#[derive(Debug, Default)]
pub(crate) struct ByKind(BTreeMap<String, Kind>);

/// What a client measured, and what the server said that it was spent on.
#[derive(Debug, Default)]
struct Kind {
    client: Samples,
    phases: [Samples; 4],
}

const PHASES: [&str; 4] = ["queue", "provision", "init", "handler"];

impl ByKind {
    pub(crate) fn add(&mut self, answer: &Answer) {
        let kind = self.0.entry(answer.start().to_owned()).or_default();
        kind.client.add(answer.took);
        for (samples, phase) in kind.phases.iter_mut().zip(PHASES) {
            samples.add(answer.phase(phase));
        }
    }

    /// Prints the line of the kind that was meant, and how many there were of others; the samples of the former.
    pub(crate) fn show(mut self, name: &str, meant: &str) -> Samples {
        let Kind { client, phases } = self.0.remove(meant).unwrap_or_default();
        show(&format!("{name}, {meant}"), &client);
        let phases =
            PHASES.iter().zip(&phases).map(|(name, samples)| format!("{name} {:.3}", samples.median()));
        println!("{:10}{}", "", phases.collect::<Vec<_>>().join(", "));
        for (kind, others) in &self.0 {
            let count = others.client.count();
            println!("{:10}not counted: {count} {kind}, p50 {:.3}", "", others.client.median());
        }
        client
    }
}
