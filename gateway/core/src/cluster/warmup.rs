//! Slow start: an endpoint that has just come gets less than its share, and more with time (Istio
//! `loadBalancer.warmup`).
//!
//! Its weight is multiplied by `(age / duration)^(1 / aggression)`, but never by less than `minimum`. An endpoint is new
//! when its address comes into the set, and again when it becomes available after it was not.

use std::time::{Duration, Instant};

/// A whole weight, in the parts that factors are counted in.
pub(super) const WHOLE: u64 = 1 << 16;
/// `minimumPercent` when it is not written.
pub const MINIMUM_PERCENT: f64 = 10.0;

/// `loadBalancer.warmup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Warmup {
    /// How long it takes until an endpoint has its whole share.
    duration: Duration,
    /// What it has at least, in parts of [`WHOLE`].
    minimum: u64,
    /// Bits of a number above 0: 1 for a share that grows evenly, more for one that grows faster at first.
    aggression: u64,
}

impl Warmup {
    /// A slow start of `duration`, from `minimum_percent` (0 to 100) on. An aggression that is not a number above 0 is 1.
    pub fn new(duration: Duration, minimum_percent: f64, aggression: f64) -> Self {
        let valid = aggression.is_finite() && aggression > 0.0;
        let minimum = (minimum_percent.clamp(0.0, 100.0) / 100.0 * WHOLE as f64) as u64;
        Self {
            duration,
            minimum: minimum.max(1),
            aggression: if valid { aggression } else { 1.0 }.to_bits(),
        }
    }

    /// How long it takes until an endpoint has its whole share.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// What an endpoint has at least, in percent of its share.
    pub fn minimum_percent(&self) -> f64 {
        self.minimum as f64 * 100.0 / WHOLE as f64
    }

    /// 1 for a share that grows evenly, more for one that grows faster at first.
    pub fn aggression(&self) -> f64 {
        f64::from_bits(self.aggression)
    }

    /// When an endpoint that came at `since` has its whole share.
    pub(super) fn ends(&self, since: Instant) -> Instant {
        since.checked_add(self.duration).unwrap_or(since)
    }

    /// The share of an endpoint that came at `since`, in parts of [`WHOLE`].
    pub(super) fn factor(&self, since: Instant, now: Instant) -> u64 {
        let age = now.saturating_duration_since(since);
        if age >= self.duration {
            return WHOLE;
        }
        let linear = age.as_secs_f64() / self.duration.as_secs_f64();
        let aggression = f64::from_bits(self.aggression);
        let grown = if aggression == 1.0 {
            linear
        } else {
            linear.powf(1.0 / aggression)
        };
        ((grown * WHOLE as f64) as u64).clamp(self.minimum, WHOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_from_the_minimum_to_the_whole() {
        let start = Instant::now();
        let percent = |warmup: &Warmup, seconds: u64| {
            let factor = warmup.factor(start, start + Duration::from_secs(seconds));
            (factor * 100 + WHOLE / 2) / WHOLE
        };
        let even = Warmup::new(Duration::from_secs(100), MINIMUM_PERCENT, 1.0);
        for (seconds, expected) in [(0, 10), (5, 10), (50, 50), (99, 99), (100, 100), (1000, 100)] {
            assert_eq!(percent(&even, seconds), expected, "at {seconds} s");
        }
        let fast = Warmup::new(Duration::from_secs(100), 0.0, 2.0);
        assert_eq!((percent(&fast, 0), percent(&fast, 25)), (0, 50));
        let slow = Warmup::new(Duration::from_secs(100), 0.0, 0.5);
        assert_eq!((percent(&slow, 50), percent(&slow, 100)), (25, 100));
        assert!(fast.factor(start, start) > 0, "never nothing at all");
    }

    #[test]
    fn what_makes_no_sense_is_even() {
        let even = Warmup::new(Duration::from_secs(10), 10.0, 1.0);
        for aggression in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Warmup::new(Duration::from_secs(10), 10.0, aggression), even);
        }
    }
}
