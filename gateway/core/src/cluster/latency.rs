//! Balancing by what endpoints take: PEAK_EWMA and PREQUAL, which Istio has no names for.
//!
//! Each endpoint has an estimate of its latency: a moving average that takes a higher value at once and forgets it with
//! time, so that an endpoint which has become slow is known at once, and looked at again later. PEAK_EWMA (Finagle)
//! draws two endpoints and takes the one whose estimate times requests in flight is smaller. PREQUAL (Wydrowski et al.,
//! NSDI 2024) draws a few; those with more requests in flight than most endpoints have are hot; of the others the one
//! with the smallest latency for what it has in flight is taken, and when all are hot the one with the fewest requests in
//! flight. Where the paper asks endpoints by probes, this takes what answers have shown.

use std::time::{Duration, Instant};

/// How long it takes until an estimate is half of what it was, when nothing new is known.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// Weight of a new measurement that is below the estimate: one in so many.
const SMOOTHING: f64 = 8.0;
/// What a failed attempt counts as, at least: an endpoint that fails at once must not look fast.
const FAILURE_NS: f64 = 1e9;
/// The quantile of requests in flight above which an endpoint is hot (the paper's `Q_RIF`).
const HOT_QUANTILE: f64 = 0.84;

/// What is known about one endpoint's latency.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Estimate {
    /// None while nothing is known.
    known: Option<(f64, Instant)>,
}

impl Estimate {
    /// Takes a measurement in; None for an attempt that failed.
    pub(super) fn observe(&mut self, latency: Option<Duration>, now: Instant) {
        let before = self.value(now);
        let measured = latency.map_or(FAILURE_NS, |latency| latency.as_nanos() as f64);
        let value = match before {
            Some(before) if measured < before => before + (measured - before) / SMOOTHING,
            _ => measured,
        };
        self.known = Some((value, now));
    }

    /// The latency that is expected now, in nanoseconds.
    pub(super) fn value(&self, now: Instant) -> Option<f64> {
        let (value, at) = self.known?;
        let age = now.saturating_duration_since(at).as_secs_f64();
        // A hyperbola in place of an exponential: the same half life without a transcendental function in each pick.
        Some(value / (1.0 + age / HALF_LIFE.as_secs_f64()))
    }

    /// What PEAK_EWMA compares. An endpoint about which nothing is known is tried at once, but by one request at a time.
    pub(super) fn cost(&self, active: u32, now: Instant) -> f64 {
        let latency = match self.value(now) {
            Some(latency) => latency,
            None if active == 0 => 0.0,
            None => FAILURE_NS,
        };
        latency * (f64::from(active) + 1.0)
    }
}

/// The number of requests in flight above which an endpoint is hot: a running quantile of what the candidates had
/// (frugal streaming, Ma, Muthukrishnan and Sandler 2013).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heat {
    limit: f64,
}

impl Heat {
    /// Takes a candidate's requests in flight in.
    pub(super) fn observe(&mut self, active: u32) {
        let active = f64::from(active);
        let step = (self.limit / 32.0).max(0.25);
        if active > self.limit {
            self.limit += step * HOT_QUANTILE;
        } else if active < self.limit {
            self.limit = (self.limit - step * (1.0 - HOT_QUANTILE)).max(0.0);
        }
    }

    /// Whether so many are more than most have.
    pub(super) fn is_hot(&self, active: u32) -> bool {
        f64::from(active) > self.limit + 0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_peak_is_taken_at_once_and_forgotten_with_time() {
        let start = Instant::now();
        let mut estimate = Estimate::default();
        assert_eq!(estimate.value(start), None);
        estimate.observe(Some(Duration::from_millis(10)), start);
        estimate.observe(Some(Duration::from_millis(500)), start);
        assert_eq!(estimate.value(start), Some(5e8));
        assert_eq!(estimate.value(start + HALF_LIFE), Some(2.5e8));
        estimate.observe(Some(Duration::from_millis(100)), start);
        assert_eq!(
            estimate.value(start),
            Some(4.5e8),
            "better news are believed slowly"
        );
        estimate.observe(None, start);
        assert_eq!(estimate.value(start), Some(FAILURE_NS));
    }

    #[test]
    fn the_unknown_is_tried_by_one_request_at_a_time() {
        let now = Instant::now();
        let (unknown, mut known) = (Estimate::default(), Estimate::default());
        known.observe(Some(Duration::from_millis(1)), now);
        assert!(unknown.cost(0, now) < known.cost(0, now));
        assert!(unknown.cost(1, now) > known.cost(1, now));
    }

    #[test]
    fn heat_finds_its_quantile() {
        for seed in 0..200 {
            let (mut random, mut heat) = (Random::from_seed(seed), Heat::default());
            for _ in 0..5_000 {
                heat.observe(random.below(100) as u32);
            }
            assert!((65.0..99.0).contains(&heat.limit), "seed {seed}: {}", heat.limit);
        }
    }
}
