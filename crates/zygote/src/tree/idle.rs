//! Which idle instances are ended when memory is short.

use std::collections::BTreeMap;

/// An instance that waits for its next invocation.
#[derive(Debug, Clone, PartialEq)]
pub struct IdleInstance {
    /// Names its function.
    pub function: String,
    /// Memory that its end gives back.
    pub bytes: u64,
    /// How long it has waited.
    pub idle_seconds: f64,
    /// Invocations of its function a second.
    pub rate: f64,
    /// What starting another would take.
    pub start_micros: f64,
}

/// Which of `instances` have to end, first ones first, so that the others keep within `budget` bytes; an idle one is ended
/// after `linger` seconds in any case.
///
/// The least valuable end first: `value = P(used again in time) × start_micros / bytes`. Of a function's idle instances the
/// one that waited least is used first, so the `k`-th is used again if `k` requests arrive in what is left of its time:
/// `P = P(N ≥ k)` with `N` Poisson of mean `rate × (linger - idle_seconds)`. Stale ones have no value. Among equals the one
/// that waited longest.
pub fn keep(instances: &[IdleInstance], budget: u64, linger: f64) -> Vec<usize> {
    let mut held: u128 = instances.iter().map(|instance| u128::from(instance.bytes)).sum();
    if held <= u128::from(budget) {
        return Vec::new();
    }
    let mut by_age: Vec<usize> = (0..instances.len()).collect();
    by_age.sort_by(|a, b| instances[*a].idle_seconds.total_cmp(&instances[*b].idle_seconds));
    let mut places = BTreeMap::<&str, u32>::new();
    let mut valued: Vec<(f64, usize)> = Vec::new();
    for index in by_age {
        let instance = &instances[index];
        let place = places.entry(&instance.function).and_modify(|place| *place += 1).or_insert(1);
        let left = (linger - instance.idle_seconds).max(0.0);
        let used = at_least(*place, instance.rate * left);
        valued.push((used * instance.start_micros / (instance.bytes.max(1) as f64), index));
    }
    valued.reverse();
    valued.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut ended = Vec::new();
    for (_, index) in valued {
        if held <= u128::from(budget) {
            break;
        }
        held -= u128::from(instances[index].bytes);
        ended.push(index);
    }
    ended
}

/// `P(N ≥ k)` for a Poisson `N`.
fn at_least(k: u32, mean: f64) -> f64 {
    if mean.is_nan() || mean <= 0.0 {
        return 0.0;
    }
    // In logarithms: `e^-mean` alone is zero for a mean of a thousand.
    let terms = (1..=k).scan(-mean, |log, n| {
        let term = log.exp();
        *log += mean.ln() - f64::from(n).ln();
        Some(term)
    });
    (1.0 - terms.sum::<f64>()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn poisson() {
        let expected =
            [(1, 1.0, 0.632_121), (2, 1.0, 0.264_241), (3, 2.5, 0.456_187), (900, 1000.0, 0.999_3)];
        for (k, mean, expected) in expected {
            let got = at_least(k, mean);
            assert!((got - expected).abs() < 1e-3, "{k} {mean}: {got}");
        }
        assert_eq!(at_least(1, 0.0), 0.0);
    }
}
