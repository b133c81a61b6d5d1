//! Budgets of retries: how many of a cluster's requests may be sent again, whoever sends them.
//!
//! Retries help against a failure here and there, and make one that is everywhere worse. So a DestinationRule bounds
//! them: `connectionPool.http.maxRetries` is the most at a time, `retryBudget` a part of the requests. What is counted
//! is one value of all shards, which is touched by a retry, and by every request only where a `retryBudget` asks for it.
//!
//! With a `retryBudget` two bounds hold. At any moment the retries under way are at most `minRetryConcurrency`, or
//! `percent` of the requests under way, whichever is more (Envoy's `retry_budget`). And in each `budgetInterval` at most
//! `percent` of the requests that began in it, and `minRetryConcurrency` beside them, are sent again: without the
//! second, requests that follow each other slowly would all be sent twice.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::str::FromStr;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The interval when none is written.
pub const BUDGET_INTERVAL: Duration = Duration::from_secs(10);
/// `retryBudget.percent` when it is not written, in millionths.
pub const BUDGET_PER_MILLION: u32 = 200_000;
/// `retryBudget.minRetryConcurrency` when it is not written.
pub const BUDGET_MIN: u32 = 3;

/// What a DestinationRule says about retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryLimits {
    /// `maxRetries`: most at a time; `u32::MAX` for no limit. Of no account beside a budget, as in Envoy.
    pub concurrent: u32,
    /// `retryBudget`.
    pub budget: Option<RetryBudget>,
    /// Attempts that may be made beside one whose own time is over (`isthmus.dev/hedging`).
    pub hedges: Hedges,
}

impl Default for RetryLimits {
    /// No limit.
    fn default() -> Self {
        Self {
            concurrent: u32::MAX,
            budget: None,
            hedges: Hedges::default(),
        }
    }
}

/// How many attempts are made beside one whose `perTryTimeout` is over, in place of giving it up. The annotation
/// `isthmus.dev/hedging` of a DestinationRule: `per-try-timeout`, or with `;max=` and a number behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hedges(pub u32);

impl Hedges {
    /// Most that may be written: more attempts at a time than two help nobody.
    const MAX: u32 = 1;
}

impl FromStr for Hedges {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTS: &str = "expected `per-try-timeout` or `per-try-timeout;max=1`";
        let mut parts = text.split(';').map(str::trim);
        if parts.next() != Some("per-try-timeout") {
            return Err(EXPECTS);
        }
        let most = match parts.next() {
            None => Self::MAX,
            Some(part) => part
                .strip_prefix("max=")
                .and_then(|number| number.trim().parse().ok())
                .ok_or(EXPECTS)?,
        };
        match (most, parts.next()) {
            (1..=Self::MAX, None) => Ok(Self(most)),
            _ => Err(EXPECTS),
        }
    }
}

impl RetryLimits {
    /// Whether there is none.
    pub fn is_unlimited(&self) -> bool {
        self.concurrent == u32::MAX && self.budget.is_none()
    }
}

/// `retryBudget`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryBudget {
    /// `percent`, in millionths of the requests.
    pub per_million: u32,
    /// `minRetryConcurrency`.
    pub min: u32,
    /// `budgetInterval`; never zero.
    pub interval: Duration,
}

impl RetryBudget {
    fn part_of(&self, requests: u32) -> u32 {
        let part = u64::from(requests) * u64::from(self.per_million) / 1_000_000;
        u32::try_from(part).unwrap_or(u32::MAX)
    }
}

/// What all shards together have under way, and have begun in the present interval.
#[derive(Debug, Default)]
pub struct RetryCounts {
    retries: AtomicU32,
    requests: AtomicU32,
    window: AtomicU64,
    epoch: OnceLock<Instant>,
}

/// An interval's number, the requests that began in it, and the retries: one word, so that they change as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    number: u16,
    requests: u32,
    retries: u32,
}

impl Window {
    const REQUESTS_BITS: u32 = 26;
    const RETRIES_BITS: u32 = 22;

    fn unpack(word: u64) -> Self {
        let bits = |shift: u32, width: u32| ((word >> shift) & ((1 << width) - 1)) as u32;
        Self {
            number: (word >> (Self::REQUESTS_BITS + Self::RETRIES_BITS)) as u16,
            requests: bits(Self::RETRIES_BITS, Self::REQUESTS_BITS),
            retries: bits(0, Self::RETRIES_BITS),
        }
    }

    fn pack(self) -> u64 {
        (u64::from(self.number) << (Self::REQUESTS_BITS + Self::RETRIES_BITS))
            | (u64::from(self.requests) << Self::RETRIES_BITS)
            | u64::from(self.retries)
    }

    /// This window as it is in interval `number`: another one begins empty. A shard whose clock was read just before the
    /// last one began counts in the window that is there; a number that is further behind is of another length of
    /// intervals, or has gone round.
    fn at(self, number: u16) -> Self {
        let behind = self.number.wrapping_sub(number);
        if behind <= 1 {
            return self;
        }
        Self {
            number,
            requests: 0,
            retries: 0,
        }
    }
}

/// A retry that is under way; given back when dropped.
#[derive(Debug)]
pub struct RetryPermit(Arc<RetryCounts>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request that is under way and counts for a budget; given back when dropped.
#[derive(Debug)]
pub struct RequestCount(Arc<RetryCounts>);

impl Drop for RequestCount {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl RetryCounts {
    fn number(&self, budget: &RetryBudget, now: Instant) -> u16 {
        let epoch = *self.epoch.get_or_init(|| now);
        let interval = budget.interval.as_nanos().max(1);
        (now.saturating_duration_since(epoch).as_nanos() / interval) as u16
    }

    /// Changes the window as one; None when `change` refuses.
    fn change(&self, number: u16, change: impl Fn(Window) -> Option<Window>) -> Option<()> {
        let mut word = self.window.load(Ordering::Relaxed);
        loop {
            let next = change(Window::unpack(word).at(number))?.pack();
            match self
                .window
                .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return Some(()),
                Err(now) => word = now,
            }
        }
    }

    /// Counts a request that begins; None when no budget wants to know.
    pub fn begin_request(self: &Arc<Self>, limits: &RetryLimits, now: Instant) -> Option<RequestCount> {
        let budget = limits.budget.as_ref()?;
        self.requests.fetch_add(1, Ordering::AcqRel);
        let count = RequestCount(Arc::clone(self));
        let most = (1 << Window::REQUESTS_BITS) - 1;
        let _counted = self.change(self.number(budget, now), |window| {
            Some(Window {
                requests: (window.requests + 1).min(most),
                ..window
            })
        });
        Some(count)
    }

    /// Asks for a retry; None when the limits leave none.
    pub fn begin_retry(self: &Arc<Self>, limits: &RetryLimits, now: Instant) -> Option<RetryPermit> {
        let most = match &limits.budget {
            Some(budget) => budget
                .part_of(self.requests.load(Ordering::Acquire))
                .max(budget.min),
            None => limits.concurrent,
        };
        let mut held = self.retries.load(Ordering::Relaxed);
        let permit = loop {
            if held >= most {
                return None;
            }
            match self
                .retries
                .compare_exchange_weak(held, held + 1, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => break RetryPermit(Arc::clone(self)),
                Err(now) => held = now,
            }
        };
        if let Some(budget) = &limits.budget {
            let full = (1 << Window::RETRIES_BITS) - 1;
            self.change(self.number(budget, now), |window| {
                let most = budget
                    .part_of(window.requests)
                    .saturating_add(budget.min)
                    .min(full);
                (window.retries < most).then(|| Window {
                    retries: window.retries + 1,
                    ..window
                })
            })?;
        }
        Some(permit)
    }

    /// Retries under way.
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Requests under way that were counted.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(loom))]
    mod counts {
        use super::*;

        #[test]
        fn the_annotation_is_read() {
            for text in [
                "per-try-timeout",
                "per-try-timeout;max=1",
                " per-try-timeout ; max= 1 ",
            ] {
                assert_eq!(text.parse(), Ok(Hedges(1)), "{text}");
            }
            for text in [
                "",
                "true",
                "per-try-timeout;max=2",
                "per-try-timeout;max=1;x",
                "per-try-timeout;1",
            ] {
                assert!(text.parse::<Hedges>().is_err(), "{text}");
            }
        }

        fn budget(min: u32) -> RetryLimits {
            RetryLimits {
                budget: Some(RetryBudget {
                    per_million: BUDGET_PER_MILLION,
                    min,
                    interval: BUDGET_INTERVAL,
                }),
                ..RetryLimits::default()
            }
        }

        #[test]
        fn retries_at_a_time_are_limited_and_come_back() {
            let counts = Arc::new(RetryCounts::default());
            let now = Instant::now();
            let two = RetryLimits {
                concurrent: 2,
                ..RetryLimits::default()
            };
            assert!(counts.begin_request(&two, now).is_none(), "nobody wants to know");
            let (a, b) = (counts.begin_retry(&two, now), counts.begin_retry(&two, now));
            assert!(a.is_some() && b.is_some() && counts.begin_retry(&two, now).is_none());
            assert_eq!((counts.retries(), counts.requests()), (2, 0));
            drop(a);
            assert!(counts.begin_retry(&two, now).is_some());
            drop(b);
            assert_eq!(counts.retries(), 0);
            assert!(!two.is_unlimited() && RetryLimits::default().is_unlimited());
        }

        #[test]
        fn a_budget_is_a_part_of_what_is_under_way_and_of_what_began() {
            let counts = Arc::new(RetryCounts::default());
            let start = Instant::now();
            let limits = budget(3);
            let live: Vec<_> = (0..50).map(|_| counts.begin_request(&limits, start)).collect();
            let mut retries: Vec<_> = std::iter::from_fn(|| counts.begin_retry(&limits, start)).collect();
            assert_eq!(retries.len(), 10, "a fifth of those under way");
            assert_eq!((counts.retries(), counts.requests()), (10, 50));
            retries.clear();
            let more = std::iter::from_fn(|| counts.begin_retry(&limits, start)).count();
            assert_eq!(more, 3, "a fifth of those that began, and three");
            drop(live);
            assert_eq!((counts.requests(), counts.retries()), (0, 0));
            let later = start + BUDGET_INTERVAL;
            assert_eq!(
                std::iter::from_fn(|| counts.begin_retry(&limits, later)).count(),
                3
            );
            assert!(
                counts.begin_retry(&limits, start).is_none(),
                "an earlier clock opens no window"
            );
        }

        #[test]
        fn a_window_counts_no_further_than_it_has_bits() {
            let full = Window {
                number: 0,
                requests: (1 << Window::REQUESTS_BITS) - 1,
                retries: (1 << Window::RETRIES_BITS) - 1,
            };
            let almost = Window {
                requests: full.requests - 1,
                retries: full.retries - 1,
                ..full
            };
            let (counts, now) = (Arc::new(RetryCounts::default()), Instant::now());
            let limits = budget(u32::MAX);
            counts.window.store(almost.pack(), Ordering::Relaxed);
            for _ in 0..2 {
                assert!(counts.begin_request(&limits, now).is_some());
            }
            assert!(counts.begin_retry(&limits, now).is_some());
            assert!(counts.begin_retry(&limits, now).is_none());
            assert_eq!(Window::unpack(counts.window.load(Ordering::Relaxed)), full);
            assert_eq!((counts.requests(), counts.retries()), (0, 0));
        }

        #[test]
        fn a_window_ends_with_its_interval() {
            let (counts, start) = (RetryCounts::default(), Instant::now());
            let budget = budget(3).budget.unwrap();
            let numbers =
                [0, 9, 10, 25].map(|secs| counts.number(&budget, start + Duration::from_secs(secs)));
            assert_eq!(numbers, [0, 0, 1, 2]);
            let window = |number, count| Window {
                number,
                requests: count,
                retries: count,
            };
            let present = window(5, 7);
            assert_eq!(
                [present.at(5), present.at(4)],
                [present; 2],
                "a clock may be a little late"
            );
            assert_eq!([present.at(6), present.at(3)], [window(6, 0), window(3, 0)]);
            let first = window(0, 7);
            assert_eq!([first.at(u16::MAX), first.at(1)], [first, window(1, 0)]);
        }

        #[test]
        fn a_window_is_one_word() {
            for window in [
                Window {
                    number: 0,
                    requests: 0,
                    retries: 0,
                },
                Window {
                    number: u16::MAX,
                    requests: (1 << Window::REQUESTS_BITS) - 1,
                    retries: (1 << Window::RETRIES_BITS) - 1,
                },
                Window {
                    number: 7,
                    requests: 5,
                    retries: 3,
                },
            ] {
                assert_eq!(Window::unpack(window.pack()), window);
            }
        }
    }

    #[cfg(loom)]
    mod loom_tests {
        use super::*;

        #[test]
        fn two_shards_never_exceed_a_budget_together() {
            loom::model(|| {
                let counts = Arc::new(RetryCounts::default());
                let now = Instant::now();
                let limits = RetryLimits {
                    budget: Some(RetryBudget {
                        per_million: 0,
                        min: 1,
                        interval: BUDGET_INTERVAL,
                    }),
                    ..RetryLimits::default()
                };
                let threads: Vec<_> = (0..2)
                    .map(|_| {
                        let counts = Arc::clone(&counts);
                        loom::thread::spawn(move || u32::from(counts.begin_retry(&limits, now).is_some()))
                    })
                    .collect();
                let retries: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
                assert!(retries <= 1);
                assert_eq!(counts.retries(), 0);
            });
        }
    }
}
