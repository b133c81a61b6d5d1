//! Faults that a rule injects on purpose, so that people can see how clients bear them (Istio `http[].fault`).
//!
//! A delay and an abort each strike a share of the requests, and each draws for itself: the delay comes first, and a
//! request that was delayed may still be aborted. Neither is a part of the route's time, and neither is tried again.

use crate::grpc;
use crate::random::Random;
use http::StatusCode;
use std::time::Duration;

/// A share of requests, in millionths, as Envoy's fractions have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

/// A whole.
const MILLION: u32 = 1_000_000;

impl Share {
    /// No request.
    pub const NEVER: Self = Self(0);
    /// Every request.
    pub const ALWAYS: Self = Self(MILLION);

    /// A percentage, cut to millionths (Istio multiplies by 10,000 and drops the rest); outside 0 to 100 it is the
    /// nearer end.
    pub fn of_percent(percent: f64) -> Self {
        // The cast saturates, and takes what is no number for 0.
        Self(((percent * 10_000.0) as u32).min(MILLION))
    }

    /// Millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Whether this request is among those that are struck. Nothing is drawn when the answer is certain.
    pub fn strikes(self, random: &mut Random) -> bool {
        match self {
            Self::NEVER => false,
            Self::ALWAYS => true,
            Self(share) => random.below(MILLION.into()) < share.into(),
        }
    }
}

/// What a rule does to some of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Holds them up, before they are sent anywhere.
    pub delay: Option<Delay>,
    /// Ends them, after the delay.
    pub abort: Option<Abort>,
}

/// `fault.delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Delay {
    /// How many.
    pub share: Share,
    /// For how long (`fixedDelay`).
    pub time: Duration,
}

/// `fault.abort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Abort {
    /// How many.
    pub share: Share,
    /// In which way.
    pub with: AbortWith,
}

/// How a request is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AbortWith {
    /// It is answered with this status (`httpStatus`).
    Status(StatusCode),
    /// A call is answered with this status of gRPC, any other request with 200 (`grpcStatus`).
    Grpc(grpc::Status),
    /// Its connection, or its stream, is reset: as if TCP had failed (annotation `isthmus.dev/abort: reset`).
    Reset,
}

impl Fault {
    /// For how long this request is held up, if it is.
    pub fn delay(&self, random: &mut Random) -> Option<Duration> {
        self.delay
            .filter(|delay| delay.share.strikes(random))
            .map(|delay| delay.time)
    }

    /// How this request is aborted, if it is.
    pub fn abort(&self, random: &mut Random) -> Option<AbortWith> {
        self.abort
            .filter(|abort| abort.share.strikes(random))
            .map(|abort| abort.with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_become_millionths() {
        for (percent, millionths) in [
            (0.0, 0),
            (0.0001, 1),
            (0.1, 1_000),
            (33.333_399, 333_333),
            (99.9999, 999_999),
            (100.0, MILLION),
            (250.0, MILLION),
            (-1.0, 0),
            (f64::NAN, 0),
        ] {
            assert_eq!(Share::of_percent(percent).millionths(), millionths, "{percent}");
        }
    }

    #[test]
    fn shares_are_met_whatever_the_seed() {
        const DRAWS: u32 = 200_000;
        for seed in 0..20 {
            let mut random = Random::from_seed(seed);
            for percent in [0.1, 1.0, 10.0, 50.0, 99.0] {
                let share = Share::of_percent(percent);
                let struck = (0..DRAWS).filter(|_| share.strikes(&mut random)).count() as f64;
                let p = percent / 100.0;
                let expected = f64::from(DRAWS) * p;
                // Five standard deviations: wrong once in two million times, and the seeds are fixed.
                let margin = 5.0 * (expected * (1.0 - p)).sqrt();
                assert!((struck - expected).abs() < margin, "{seed} {percent}: {struck}");
            }
            assert!((0..1000).all(|_| Share::ALWAYS.strikes(&mut random)));
            assert!((0..1000).all(|_| !Share::NEVER.strikes(&mut random)));
        }
    }

    #[test]
    fn delay_and_abort_draw_for_themselves() {
        const DRAWS: usize = 100_000;
        let fault = Fault {
            delay: Some(Delay {
                share: Share::of_percent(50.0),
                time: Duration::from_secs(5),
            }),
            abort: Some(Abort {
                share: Share::of_percent(20.0),
                with: AbortWith::Status(StatusCode::IM_A_TEAPOT),
            }),
        };
        let mut random = Random::from_seed(7);
        let mut counts = [[0usize; 2]; 2];
        for _ in 0..DRAWS {
            let delay = fault.delay(&mut random);
            let abort = fault.abort(&mut random);
            assert!(delay.is_none_or(|time| time == Duration::from_secs(5)));
            counts[usize::from(delay.is_some())][usize::from(abort.is_some())] += 1;
        }
        // Independent: each combination has the product of the shares.
        for (delayed, aborted, share) in [(0, 0, 0.4), (0, 1, 0.1), (1, 0, 0.4), (1, 1, 0.1)] {
            let found = counts[delayed][aborted] as f64 / DRAWS as f64;
            assert!((found - share).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn what_is_not_written_does_nothing() {
        let mut random = Random::from_seed(1);
        let nothing = Fault {
            delay: None,
            abort: None,
        };
        assert_eq!(nothing.delay(&mut random), None);
        assert_eq!(nothing.abort(&mut random), None);
    }
}
