//! DNS: what is known of a name, and when it is asked for again.
//!
//! [`Records`] is one name's addresses of one family, as a state machine: the shell tells it each answer and asks it when
//! the next question is due. Addresses live as long as the answer says (within bounds) and are then asked for again, but
//! they are used until something better is known: while the resolver fails, what was known last stays in use
//! (RFC 8767), and an answer that there are none must be repeated before it takes away what was there.

use crate::random::Random;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A family of addresses, each of which is a question of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// Times of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Addresses are used for so long before they are asked for again, even if the answer says less.
    pub ttl_min: Duration,
    /// The same, even if the answer says more.
    pub ttl_max: Duration,
    /// The longest wait after failures, and after an answer that there are no addresses (Istio `dnsRefreshRate`).
    pub refresh: Duration,
    /// How long after its time an address is used while the resolver fails.
    pub stale_max: Duration,
}

/// The first wait after a failure, and the one before an answer that takes away everything is believed; it doubles with
/// each failure up to [`Times::refresh`].
pub const RETRY: Duration = Duration::from_secs(1);

/// What a resolver has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These.
    Addresses {
        /// In the answer's order; not empty.
        addresses: Vec<IpAddr>,
        /// How long they are good for.
        ttl: Duration,
    },
    /// There are none: the name does not exist, or has none of this family.
    None {
        /// How long that is good for, when the answer says it (RFC 2308).
        ttl: Option<Duration>,
    },
    /// Nothing that can be relied on: no answer in time, SERVFAIL, REFUSED, and the like.
    Failed,
}

/// What is known of one family of a name's addresses.
#[derive(Debug, Clone)]
pub struct Records {
    addresses: Arc<[IpAddr]>,
    /// When the present addresses are to be replaced.
    until: Instant,
    /// When it is to be asked; None while an answer is awaited.
    due: Option<Instant>,
    failures: u32,
    denials: u32,
    is_settled: bool,
}

impl Records {
    /// Nothing is known, and is to be asked at once.
    pub fn new(now: Instant) -> Self {
        Self {
            addresses: Arc::default(),
            until: now,
            due: Some(now),
            failures: 0,
            denials: 0,
            is_settled: false,
        }
    }

    /// What was known elsewhere: it is used, and asked for at once.
    pub fn known_before(addresses: Vec<IpAddr>, now: Instant) -> Self {
        Self {
            addresses: addresses.into(),
            ..Self::new(now)
        }
    }

    /// The addresses to use, in the order of the last answer.
    pub fn addresses(&self) -> &Arc<[IpAddr]> {
        &self.addresses
    }

    /// Whether there was an answer of any kind.
    pub fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Failures since the last answer that could be relied on.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the addresses are older than their answer allows.
    pub fn is_stale(&self, now: Instant) -> bool {
        !self.addresses.is_empty() && now > self.until && (self.failures > 0 || self.denials > 0)
    }

    /// Until when the addresses are good by their answer.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// When the next question is due; None while an answer is awaited.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A question is on its way: each is ended by one [`Self::answered`].
    pub fn asked(&mut self) {
        self.due = None;
    }

    /// Takes an answer. Answers whether the addresses are others now.
    pub fn answered(&mut self, answer: Answer, now: Instant, times: &Times, random: &mut Random) -> bool {
        self.is_settled = true;
        match answer {
            Answer::Addresses { addresses, ttl } if !addresses.is_empty() => {
                (self.failures, self.denials) = (0, 0);
                let ttl = ttl.min(times.ttl_max).max(times.ttl_min);
                self.until = now + ttl;
                // Many gateways that got one answer together do not ask together again.
                self.due = Some(self.until + part(ttl / 20, random));
                let is_other = *self.addresses != *addresses;
                if is_other {
                    self.addresses = addresses.into();
                }
                is_other
            }
            Answer::Addresses { ttl, .. } => self.denied(Some(ttl), now, times),
            Answer::None { ttl } => self.denied(ttl, now, times),
            Answer::Failed => {
                self.failures = self.failures.saturating_add(1);
                let doubled = RETRY.saturating_mul(1 << (self.failures - 1).min(16));
                let wait = doubled.min(times.refresh.max(RETRY));
                self.due = Some(now + wait / 2 + part(wait / 2, random));
                let is_over = now >= self.until + times.stale_max;
                is_over && self.forget()
            }
        }
    }

    fn denied(&mut self, ttl: Option<Duration>, now: Instant, times: &Times) -> bool {
        self.failures = 0;
        self.denials = self.denials.saturating_add(1);
        if self.denials == 1 && !self.addresses.is_empty() {
            self.due = Some(now + RETRY);
            return false;
        }
        let wait = ttl.unwrap_or(times.refresh).min(times.refresh).max(RETRY);
        self.due = Some(now + wait);
        self.until = now + wait;
        self.forget()
    }

    fn forget(&mut self) -> bool {
        let had = !self.addresses.is_empty();
        self.addresses = Arc::default();
        had
    }
}

fn part(of: Duration, random: &mut Random) -> Duration {
    let nanos = u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.below(nanos.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        ttl_min: Duration::from_secs(2),
        ttl_max: Duration::from_secs(600),
        refresh: Duration::from_secs(60),
        stale_max: Duration::from_secs(3600),
    };

    fn addresses(last: &[u8], ttl: u64) -> Answer {
        Answer::Addresses {
            addresses: last.iter().map(|last| [10, 0, 0, *last].into()).collect(),
            ttl: Duration::from_secs(ttl),
        }
    }

    /// Asks when it is due, and tells how long that was after `now`.
    fn step(
        records: &mut Records,
        now: &mut Instant,
        answer: Answer,
        random: &mut Random,
    ) -> (Duration, bool) {
        let due = records.due().unwrap();
        let waited = due - *now;
        *now = due;
        records.asked();
        assert_eq!(records.due(), None);
        (waited, records.answered(answer, *now, &TIMES, random))
    }

    #[test]
    fn a_time_to_live_is_kept_within_its_bounds() {
        let (mut now, mut random) = (Instant::now(), Random::from_seed(1));
        let mut records = Records::new(now);
        let mut waits = Vec::new();
        for ttl in [100, 0, 100_000, 30] {
            let (waited, _) = step(&mut records, &mut now, addresses(&[1], ttl), &mut random);
            waits.push(waited);
        }
        waits.push(records.due().unwrap() - now);
        let expected = [0, 100, 2, 600, 30];
        for (waited, expected) in waits.iter().zip(expected) {
            let expected = Duration::from_secs(expected);
            assert!(
                *waited >= expected && *waited <= expected + expected / 20,
                "{waits:?}"
            );
        }
    }

    #[test]
    fn what_was_known_stays_while_the_resolver_fails_and_is_asked_for_less_and_less() {
        let (mut now, mut random) = (Instant::now(), Random::from_seed(2));
        let mut records = Records::new(now);
        assert!(step(&mut records, &mut now, addresses(&[1, 2], 10), &mut random).1);
        let begun = now;
        let mut waits = Vec::new();
        while now - begun < Duration::from_secs(3000) {
            let (waited, changed) = step(&mut records, &mut now, Answer::Failed, &mut random);
            assert!(!changed && records.addresses().len() == 2);
            assert!(records.is_stale(now));
            waits.push(waited);
        }
        assert!(waits[1] <= RETRY && waits[1] >= RETRY / 2, "{waits:?}");
        let last = *waits.last().unwrap();
        assert!(last <= TIMES.refresh && last >= TIMES.refresh / 2, "{waits:?}");
        let mut dropped = 0;
        while now - begun < Duration::from_secs(4000) {
            dropped += u32::from(step(&mut records, &mut now, Answer::Failed, &mut random).1);
        }
        assert_eq!(
            (dropped, records.addresses().len()),
            (1, 0),
            "no longer than it may"
        );
        assert!(step(&mut records, &mut now, addresses(&[3], 10), &mut random).1);
        assert_eq!(records.failures(), 0);
    }

    #[test]
    fn an_answer_that_there_are_none_counts_when_it_is_repeated() {
        let (mut now, mut random) = (Instant::now(), Random::from_seed(3));
        let mut records = Records::new(now);
        let none = |seconds| Answer::None {
            ttl: Some(Duration::from_secs(seconds)),
        };
        assert!(!step(&mut records, &mut now, none(7), &mut random).1);
        let (waited, _) = step(&mut records, &mut now, addresses(&[1], 10), &mut random);
        assert_eq!(
            waited,
            Duration::from_secs(7),
            "what is not there is not asked for all the time"
        );
        assert!(!step(&mut records, &mut now, none(600), &mut random).1);
        let (waited, changed) = step(&mut records, &mut now, addresses(&[1], 10), &mut random);
        assert_eq!((waited, changed), (RETRY, false));
        assert!(!step(&mut records, &mut now, none(600), &mut random).1);
        assert!(step(&mut records, &mut now, none(600), &mut random).1);
        assert_eq!(records.addresses().len(), 0);
        let (waited, _) = step(&mut records, &mut now, none(600), &mut random);
        assert_eq!(waited, TIMES.refresh, "and not too seldom");
    }

    #[test]
    fn whatever_a_resolver_says_there_is_a_next_question_and_it_comes_neither_at_once_nor_never() {
        for seed in 0..200 {
            let (mut now, mut random) = (Instant::now(), Random::from_seed(seed));
            let mut records = Records::new(now);
            let mut known = false;
            for question in 0..200 {
                let drawn = random.below(6);
                let answer = match drawn {
                    0 | 1 => Answer::Failed,
                    2 => Answer::None { ttl: None },
                    _ => addresses(&[1 + random.below(3) as u8], random.below(2000)),
                };
                let failed = matches!(answer, Answer::Failed);
                let had = records.addresses().len();
                let until = records.until();
                let (waited, _) = step(&mut records, &mut now, answer, &mut random);
                assert!(question == 0 || waited >= RETRY / 2, "{seed}: {waited:?}");
                assert!(waited <= TIMES.ttl_max + TIMES.ttl_max / 20, "{seed}: {waited:?}");
                known |= drawn > 2;
                if failed && known && now < until + TIMES.stale_max {
                    assert_eq!(
                        records.addresses().len(),
                        had,
                        "{seed}: a failure takes nothing away"
                    );
                }
            }
        }
    }
}
