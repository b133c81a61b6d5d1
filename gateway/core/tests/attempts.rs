//! The machine over thousands of seeds: a shell in virtual time, upstreams that fail in every way, several requests at
//! once that share one budget, and a model of what must hold whatever happens.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers as well"
)]

use http::{Method, StatusCode};
use isthmus_core::attempt::{
    Answer, Attempts, BodyProgress, Failure, Judged, LEFT_OUT_MAX, RetryOn, RetryPolicy, Timeouts, Verdict,
};
use isthmus_core::cluster::retry_budget::{
    BUDGET_INTERVAL, RequestCount, RetryBudget, RetryCounts, RetryLimits, RetryPermit,
};
use isthmus_core::header::HeaderList;
use isthmus_core::random::Random;
use isthmus_core::reply::{Cause, Flags};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SEEDS: u64 = 4_000;
const REQUESTS: usize = 40;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the model knows of one request.
struct Request<'p> {
    attempts: Attempts<'p>,
    policy: &'p RetryPolicy,
    retries_max: u32,
    timeouts: Timeouts,
    method: Method,
    deadline: Option<Instant>,
    /// When it moves next: an attempt's end, or a wait's.
    due: Instant,
    is_waiting: bool,
    /// Attempts that may have reached an application.
    worked_on: u32,
    stale: u32,
    retries: u32,
    permit: Option<RetryPermit>,
    _count: Option<RequestCount>,
}

struct World {
    random: Random,
    start: Instant,
    now: Instant,
    counts: Arc<RetryCounts>,
    limits: RetryLimits,
    live: u32,
    begun: u64,
    retried: u64,
}

impl World {
    fn one_in(&mut self, n: u64) -> bool {
        self.random.below(n) == 0
    }

    fn policy(&mut self) -> RetryPolicy {
        let words = [
            "5xx",
            "gateway-error,reset",
            "connect-failure,refused-stream,unavailable,cancelled,reset-before-request",
            "retriable-4xx,503,429",
            "envoy-ratelimited,reset-before-request",
            "",
        ];
        let at = self.random.below(words.len() as u64) as usize;
        let (on, codes) = RetryOn::parse(words[at]);
        RetryPolicy {
            retries: self.random.below(6) as u32,
            per_try_timeout: self.one_in(2).then(|| ms(1 + self.random.below(400))),
            backoff: ms(1 + self.random.below(50)),
            on,
            status_codes: codes.into(),
            ignore_previous_hosts: None,
            remote_localities: false,
        }
    }

    fn limits(&mut self) -> RetryLimits {
        let budget = RetryBudget {
            per_million: self.random.below(1_000_001) as u32,
            min: self.random.below(6) as u32,
            interval: BUDGET_INTERVAL,
        };
        RetryLimits {
            concurrent: if self.one_in(2) {
                self.random.below(5) as u32
            } else {
                u32::MAX
            },
            budget: self.one_in(2).then_some(budget),
            ..RetryLimits::default()
        }
    }

    fn check_budget(&self) {
        match &self.limits.budget {
            None => assert!(self.counts.retries() <= self.limits.concurrent),
            Some(budget) => {
                let part = self.begun * u64::from(budget.per_million) / 1_000_000;
                let intervals = (self.now - self.start).as_secs() / BUDGET_INTERVAL.as_secs() + 1;
                assert!(
                    self.retried <= part + u64::from(budget.min) * intervals,
                    "{budget:?}"
                );
                assert_eq!(self.counts.requests(), self.live);
            }
        }
    }

    /// Begins an attempt: it ends by itself, or with its own time, or with the whole's.
    fn begin(&mut self, request: &mut Request<'_>) {
        let number = request.attempts.start();
        assert!(number <= 1 + request.retries + request.stale);
        let elapsed = request
            .deadline
            .zip(request.timeouts.total)
            .map(|(deadline, total)| total.saturating_sub(deadline.saturating_duration_since(self.now)));
        if let Some(expected) = request.timeouts.expected(elapsed.unwrap_or_default()) {
            let left = request
                .deadline
                .map(|deadline| deadline.saturating_duration_since(self.now));
            assert!(
                left.is_none_or(|left| expected <= left.max(ms(1))),
                "told more than there is"
            );
        }
        request.is_waiting = false;
        request.due = self.now + ms(self.random.below(300));
    }

    /// The attempt ends; false when the request has its answer.
    fn end(&mut self, request: &mut Request<'_>) -> bool {
        let sent = !self.one_in(3);
        let progress = BodyProgress {
            sent,
            replayable: !self.one_in(4),
        };
        if request.timeouts.per_try.is_some() && self.one_in(10) && self.hedge(request, progress) {
            return true;
        }
        let reused = self.one_in(2) && !request.attempts.needs_fresh_connection();
        let failure = match self.random.below(9) {
            0 => Failure::Connect(Cause::ConnectFailed),
            1 | 2 => Failure::Reset { reused },
            3 => Failure::Refused,
            4 if request.timeouts.per_try.is_some() => Failure::TryTimeout { connected: sent },
            5 => Failure::Final(Cause::UpstreamInterim),
            6 => Failure::LeftOut,
            _ => return self.answer(request),
        };
        let sent = sent && !matches!(failure, Failure::Connect(_) | Failure::Refused | Failure::LeftOut);
        request.worked_on += u32::from(sent);
        let progress = BodyProgress {
            sent: progress.sent && !matches!(failure, Failure::Connect(_)),
            ..progress
        };
        let before = request.permit.take();
        drop(before);
        let (counts, limits, now) = (Arc::clone(&self.counts), self.limits, self.now);
        let mut permit = None;
        let verdict = request.attempts.failed(failure, progress, &mut self.random, || {
            permit = counts.begin_retry(&limits, now);
            permit.is_some()
        });
        let policy = request.policy;
        match verdict {
            Verdict::Retry(wait) => {
                assert!(progress.replayable, "there was nothing left to send");
                self.retry(request, permit, wait, policy.backoff * 10);
                true
            }
            Verdict::GiveUp(reply) => {
                assert!(permit.is_none(), "a permit for nothing");
                let spent = reply.flags.contains(Flags::URX);
                assert!(!spent || request.retries == request.retries_max);
                false
            }
        }
    }

    /// Another attempt beside the present one, which may be at work for as long as it likes.
    fn hedge(&mut self, request: &mut Request<'_>, progress: BodyProgress) -> bool {
        request.permit = None;
        let (counts, limits, now) = (Arc::clone(&self.counts), self.limits, self.now);
        let mut permit = None;
        let hedges = request.attempts.hedge(progress, || {
            permit = counts.begin_retry(&limits, now);
            permit.is_some()
        });
        assert_eq!(hedges, permit.is_some());
        if hedges {
            assert!(progress.replayable);
            request.worked_on += u32::from(progress.sent);
            self.retry(request, permit, Duration::ZERO, ms(1));
        }
        hedges
    }

    fn answer(&mut self, request: &mut Request<'_>) -> bool {
        request.worked_on += 1;
        let statuses = [200, 200, 404, 409, 429, 500, 502, 503, 504];
        let status = statuses[self.random.below(statuses.len() as u64) as usize];
        let mut headers = HeaderList::default();
        if status >= 400 && self.one_in(6) {
            headers.append(b"x-envoy-ratelimited", b"true");
        }
        let told = self.one_in(5).then(|| self.random.below(3));
        if let Some(told) = told {
            headers.append(b"retry-after", told.to_string().as_bytes());
        }
        let left = request
            .deadline
            .map(|deadline| deadline.saturating_duration_since(self.now));
        let replayable = !self.one_in(4);
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &headers,
            replayable,
            left,
            wait_max: ms(1500),
        };
        request.permit = None;
        let (counts, limits, now) = (Arc::clone(&self.counts), self.limits, self.now);
        let mut permit = None;
        let judged = request.attempts.answered(answer, &mut self.random, || {
            permit = counts.begin_retry(&limits, now);
            permit.is_some()
        });
        match judged {
            Judged::Retry(wait) => {
                assert!(replayable && status >= 400);
                let told = Duration::from_secs(told.unwrap_or(0));
                assert!(told <= ms(1500) && wait >= told && left.is_none_or(|left| told < left));
                let most = told + request.policy.backoff * 10;
                self.retry(request, permit, wait, most);
                true
            }
            Judged::PassOn(flags) => {
                assert!(permit.is_none() && (flags.is_empty() || status >= 400));
                false
            }
        }
    }

    fn retry(
        &mut self,
        request: &mut Request<'_>,
        permit: Option<RetryPermit>,
        wait: Duration,
        most: Duration,
    ) {
        match permit {
            Some(permit) => {
                request.retries += 1;
                self.retried += 1;
                assert!(request.retries <= request.retries_max);
                request.permit = Some(permit);
            }
            // Only a dead pooled connection costs none, and those that leave it out.
            None => {
                request.stale += 1;
                assert!(request.stale <= 1 + LEFT_OUT_MAX && wait.is_zero());
            }
        }
        assert!(wait < most.max(ms(1)), "{wait:?}");
        request.is_waiting = true;
        request.due = self.now + wait;
    }
}

/// Runs one seed; answers how many requests there were, and how many retries.
fn run(seed: u64) -> (u64, u64) {
    let mut random = Random::from_seed(seed);
    let start = Instant::now();
    let mut world = World {
        start,
        now: start,
        counts: Arc::new(RetryCounts::default()),
        limits: RetryLimits::default(),
        live: 0,
        begun: 0,
        retried: 0,
        random: Random::from_seed(random.next_u64()),
    };
    world.limits = world.limits();
    let policy = if world.one_in(3) {
        RetryPolicy::default()
    } else {
        world.policy()
    };
    let is_default = policy == RetryPolicy::default();
    let mut live: Vec<Request<'_>> = Vec::new();
    let mut left = REQUESTS;
    while left > 0 || !live.is_empty() {
        if left > 0 && (live.is_empty() || world.one_in(3)) {
            left -= 1;
            world.begun += 1;
            world.live += 1;
            let method = [Method::GET, Method::POST, Method::PUT][world.random.below(3) as usize].clone();
            let total = world.one_in(2).then(|| ms(50 + world.random.below(1000)));
            let timeouts = Timeouts::new(total, policy.per_try_timeout, None, None);
            let below = timeouts.per_try.zip(timeouts.total);
            assert!(below.is_none_or(|(per_try, total)| per_try < total));
            let mut request = Request {
                attempts: Attempts::new(&policy, None, &method, false),
                policy: &policy,
                // Without a condition there is nothing to retry on.
                retries_max: if policy.on == RetryOn::NONE {
                    0
                } else {
                    policy.retries
                },
                timeouts,
                method,
                deadline: total.map(|total| world.now + total),
                due: world.now,
                is_waiting: false,
                worked_on: 0,
                stale: 0,
                retries: 0,
                permit: None,
                _count: world.counts.begin_request(&world.limits, world.now),
            };
            world.begin(&mut request);
            live.push(request);
            world.check_budget();
            continue;
        }
        // Whoever is due first; the whole's time ends a request wherever it is, and no retry has moved it.
        let due = |request: &Request<'_>| {
            request
                .deadline
                .map_or(request.due, |deadline| deadline.min(request.due))
        };
        let Some(at) = (0..live.len()).min_by_key(|&at| due(&live[at])) else {
            continue;
        };
        world.now = world.now.max(due(&live[at]));
        let mut request = live.swap_remove(at);
        let is_over = request
            .deadline
            .is_some_and(|deadline| world.now >= deadline && request.due >= deadline);
        let goes_on = if is_over {
            false
        } else if request.is_waiting {
            world.begin(&mut request);
            true
        } else {
            world.end(&mut request)
        };
        if is_default && request.method == Method::POST {
            assert!(request.worked_on <= 1, "a POST was sent twice");
        }
        if goes_on {
            live.push(request);
        } else {
            drop(request);
            world.live -= 1;
        }
        world.check_budget();
    }
    assert_eq!(
        (world.counts.retries(), world.counts.requests()),
        (0, 0),
        "everything is given back"
    );
    (world.begun, world.retried)
}

#[test]
fn every_bound_holds_whatever_upstreams_do() {
    let (mut requests, mut retries) = (0, 0);
    for seed in 0..SEEDS {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok((begun, retried)) => {
                requests += begun;
                retries += retried;
            }
            Err(_) => panic!("seed {seed}"),
        }
    }
    assert_eq!(requests, SEEDS * REQUESTS as u64);
    assert!(
        retries > requests / 10,
        "the model hardly tries: {retries} of {requests}"
    );
}
