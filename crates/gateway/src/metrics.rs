//! `/metrics`: what the server counts, in the text format that Prometheus reads.
//!
//! Counters and histograms are counted where things happen; gauges are asked for when somebody reads. No name of a
//! function is in it: their number has no bound, and they are nobody's business who may read this.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::api::Attempt;
use crate::runner::{NodeReport, Phases, Report, RunnerCounts};

/// The text format's media type.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of a phase, seconds: from a warm call's queue to Lambda's longest timeout.
const BUCKETS: [f64; 14] =
    [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 900.0];

/// Names and values of a metric's labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels<const N: usize>([(&'static str, &'static str); N]);

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// What is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    invocations: Family<Labels<2>, Counter>,
    phases: Family<Labels<1>, Histogram, fn() -> Histogram>,
    events: Family<Labels<1>, Counter>,
    deployments: Family<Labels<1>, Counter>,
    dropped_log: Counter,
    instances: Family<Labels<1>, Gauge>,
    containers: Family<Labels<1>, Gauge>,
    memory: Family<Labels<1>, Gauge>,
    cache: Family<Labels<1>, Gauge>,
    gauges: [Gauge; 4],
}

/// What is asked for when somebody reads.
#[derive(Debug, Default)]
pub(crate) struct Now {
    pub(crate) runner: RunnerCounts,
    pub(crate) report: Report,
    pub(crate) connections: u32,
    pub(crate) events: u64,
    pub(crate) functions: usize,
    /// Of the handler cache and the install cache.
    pub(crate) cache_bytes: [u64; 2],
    /// What an earlier server had left unfinished in the data directory.
    pub(crate) unfinished: usize,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("sock");
        let invocations = Family::default();
        registry.register(
            "invocations",
            "Invocations by how they ended and how their instance started",
            Family::clone(&invocations),
        );
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let phases = Family::new_with_constructor(histogram);
        let help = "Seconds of an invocation: queue, provision, init, handler";
        registry.register("invocation_phase_seconds", help, Family::clone(&phases));
        let events = Family::default();
        registry.register(
            "event_attempts",
            "Attempts to run an asynchronous event, by what came of it",
            Family::clone(&events),
        );
        let deployments = Family::default();
        registry.register("deployments", "Deployments by how they ended", Family::clone(&deployments));
        let dropped_log = Counter::default();
        registry.register(
            "log_dropped_bytes",
            "Output of functions beyond what is kept of one invocation",
            dropped_log.clone(),
        );
        let instances = Family::default();
        registry.register("instances", "Instances by state", Family::clone(&instances));
        let containers = Family::default();
        registry.register("containers", "Containers by what they are for", Family::clone(&containers));
        let memory = Family::default();
        let help = "Memory, pages that several processes map billed to the one that made them";
        registry.register("memory_bytes", help, Family::clone(&memory));
        let cache = Family::default();
        registry.register("cache_bytes", "Bytes on disk by tier", Family::clone(&cache));
        let gauges = [
            ("connections", "Open connections"),
            ("events_waiting", "Asynchronous events that were accepted and have not run"),
            ("functions", "Deployed functions"),
            (
                "leaks_found_at_start",
                "Cgroups and unfinished files that an earlier server had left, removed at start",
            ),
        ]
        .map(|(name, help)| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        });
        Self {
            registry,
            invocations,
            phases,
            events,
            deployments,
            dropped_log,
            instances,
            containers,
            memory,
            cache,
            gauges,
        }
    }

    /// An invocation that has ended.
    pub(crate) fn invocation(
        &self,
        outcome: &'static str,
        start: &'static str,
        phases: &Phases,
        dropped: u64,
    ) {
        self.invocations.get_or_create(&Labels([("outcome", outcome), ("start", start)])).inc();
        self.dropped_log.inc_by(dropped);
        let Phases { queue, provision, init, handler } = phases;
        for (phase, took) in
            [("queue", queue), ("provision", provision), ("init", init), ("handler", handler)]
        {
            // A phase that there was none of is no quick one.
            if *took > Duration::ZERO {
                self.phases.get_or_create(&Labels([("phase", phase)])).observe(took.as_secs_f64());
            }
        }
    }

    /// An attempt at an event.
    pub(crate) fn event(&self, outcome: &Attempt, again: bool) {
        let outcome = match (outcome, again) {
            (Attempt::Ran, _) => "ran",
            (_, true) => "again",
            (_, false) => "given-up",
        };
        self.events.get_or_create(&Labels([("outcome", outcome)])).inc();
    }

    /// A deployment that has ended.
    pub(crate) fn deployment(&self, outcome: &'static str) {
        self.deployments.get_or_create(&Labels([("outcome", outcome)])).inc();
    }

    /// All of it as text.
    pub(crate) fn text(&self, now: &Now) -> String {
        let RunnerCounts { running, idle, frozen, zygotes, slots, spares, dying, leaks, .. } = now.runner;
        let states = [("running", running), ("idle", idle - frozen.min(idle)), ("frozen", frozen)];
        set(&self.instances, "state", states.map(|(state, count)| (state, count as u64)));
        let kinds = [("zygote", zygotes), ("slot", slots), ("spare", spares), ("dying", dying)];
        set(&self.containers, "kind", kinds.map(|(kind, count)| (kind, count as u64)));
        let billed = |memory: &NodeReport| memory.billed_bytes;
        let Report { nodes, functions, init_bytes } = &now.report;
        let memory = [
            ("zygotes", nodes.iter().map(billed).sum()),
            ("spares", nodes.iter().map(|node| node.spare_bytes).sum()),
            ("idle-instances", functions.iter().map(|function| function.private_bytes).sum()),
            ("first-processes", *init_bytes),
        ];
        set(&self.memory, "of", memory);
        let [handlers, installed] = now.cache_bytes;
        set(&self.cache, "tier", [("handler", handlers), ("install", installed)]);
        let values =
            [u64::from(now.connections), now.events, now.functions as u64, (leaks + now.unfinished) as u64];
        for (gauge, value) in self.gauges.iter().zip(values) {
            gauge.set(value as i64);
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn set<const N: usize>(
    family: &Family<Labels<1>, Gauge>,
    label: &'static str,
    values: [(&'static str, u64); N],
) {
    for (value, count) in values {
        family.get_or_create(&Labels([(label, value)])).set(count as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::FunctionReport;

    #[test]
    fn what_prometheus_reads() {
        let metrics = Metrics::new();
        let ms = Duration::from_millis;
        let phases = Phases { queue: ms(0), provision: ms(2), init: ms(3), handler: ms(40) };
        metrics.invocation("ok", "spare", &phases, 0);
        metrics.invocation("error", "warm", &Phases { handler: ms(1), ..Phases::default() }, 7);
        metrics.event(&Attempt::Failed, true);
        metrics.deployment("failed");
        let runner = RunnerCounts {
            running: 1,
            idle: 20,
            frozen: 18,
            idle_bytes: 13,
            zygotes: 3,
            slots: 4,
            spares: 5,
            dying: 6,
            leaks: 7,
        };
        let nodes = vec![NodeReport { billed_bytes: 14, spare_bytes: 15, ..NodeReport::default() }];
        let functions = vec![FunctionReport { private_bytes: 13, ..FunctionReport::default() }];
        let report = Report { nodes, functions, init_bytes: 16 };
        let now = Now {
            runner,
            report,
            connections: 8,
            events: 9,
            functions: 10,
            cache_bytes: [11, 12],
            unfinished: 1,
        };
        let text = metrics.text(&now);
        // Families are maps, whose order is nobody's.
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.contains("_bucket{")).collect();
        lines.sort_unstable();
        insta::assert_snapshot!(lines.join("\n"));
        assert!(text.ends_with("# EOF\n"));
        assert!(
            text.contains("sock_invocation_phase_seconds_bucket{le=\"0.03\",phase=\"handler\"} 1\n"),
            "{text}"
        );
    }
}
