//! Attempts: may a request be sent again, when, and what does the client get if not.
//!
//! The machine is told what happened and answers what to do; it never sees bodies, only facts about them. [`policy`]
//! holds the conditions, [`overrides`] what trusted callers may ask for; the cluster's share in the decision is a
//! question that the caller answers: whether its budget allows one more (`cluster::retry_budget`). Once a byte of an
//! answer is on its way to the client there is nothing to ask any more: [`Attempts::answered`] comes before that.

pub mod before;
pub mod overrides;
pub mod policy;

pub use before::Before;
pub use overrides::{OverrideLimits, Overrides, Timeouts};
pub use policy::{RetryOn, RetryPolicy};

use crate::grpc;
use crate::header::{FieldName, HeaderId, HeaderList};
use crate::random::Random;
use crate::reply::{Cause, Flags, LocalReply};
use http::{Method, StatusCode};
use std::time::{Duration, SystemTime};

/// What the shell knows about the request at the moment of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyProgress {
    /// Whether any byte of the request, head included, was handed to the connection that failed.
    pub sent: bool,
    /// Whether all that was taken from the client is still at hand to be sent again.
    pub replayable: bool,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection was made.
    Connect(Cause),
    /// The connection ended before any byte of an answer; `reused` when it had served another request before, so that
    /// the upstream may have closed it while it was idle.
    Reset {
        /// See above.
        reused: bool,
    },
    /// The connection ended before any byte of an answer, as with [`Self::Reset`], and it is known why.
    Broken(Cause),
    /// The upstream has said that it did nothing with the request (RFC 9113, 8.7).
    Refused,
    /// The connection takes no more requests, and this one came too late to be looked at (RFC 9113, 6.8).
    LeftOut,
    /// The attempt's own time is over; `connected` when it had a connection by then.
    TryTimeout {
        /// See above.
        connected: bool,
    },
    /// Anything that cannot be tried again.
    Final(Cause),
}

impl Failure {
    const fn cause(self) -> Cause {
        match self {
            Self::Connect(cause) | Self::Broken(cause) | Self::Final(cause) => cause,
            Self::Reset { .. } | Self::Refused | Self::LeftOut => Cause::UpstreamReset,
            Self::TryTimeout { .. } => Cause::PerTryTimeout,
        }
    }
}

/// So many times a request moves from a connection that leaves it out to the next one at no cost: connections are allowed
/// to end, and a busy request may meet the end of several, but an upstream that ends all of them must not keep it going.
pub const LEFT_OUT_MAX: u32 = 5;

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Send it again after this wait.
    Retry(Duration),
    /// Answer so.
    GiveUp(LocalReply),
}

/// The head of an answer, and what bears on whether it is the last word.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: &'a HeaderList,
    /// See [`BodyProgress::replayable`].
    pub replayable: bool,
    /// What is left of the whole exchange's time; None for no limit.
    pub left: Option<Duration>,
    /// The longest wait that an upstream may ask for.
    pub wait_max: Duration,
}

/// What to do with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// It goes to the client, with these flags in the log.
    PassOn(Flags),
    /// Send the request again after this wait; the answer is nobody's.
    Retry(Duration),
}

/// The attempts of one request.
#[derive(Debug, Clone)]
pub struct Attempts<'p> {
    on: RetryOn,
    retries_max: u32,
    backoff: Duration,
    policy: &'p RetryPolicy,
    overrides: Option<&'p Overrides>,
    is_call: bool,
    idempotent: bool,
    made: u32,
    retries: u32,
    stale: bool,
    left_out: u32,
}

impl<'p> Attempts<'p> {
    /// Nothing sent yet. `is_call` tells that the request is gRPC's.
    pub fn new(
        policy: &'p RetryPolicy,
        overrides: Option<&'p Overrides>,
        method: &Method,
        is_call: bool,
    ) -> Self {
        let asked = overrides.map_or(RetryOn::NONE, |asked| asked.on);
        let on = policy.on.with(asked);
        // Conditions without a number mean one retry, as in Envoy.
        let written = policy.retries.max(u32::from(asked != RetryOn::NONE));
        let number = overrides.and_then(|asked| asked.retries).unwrap_or(written);
        Self {
            on,
            retries_max: if on == RetryOn::NONE { 0 } else { number },
            backoff: policy.backoff,
            policy,
            overrides,
            is_call,
            idempotent: method.is_idempotent(),
            made: 0,
            retries: 0,
            stale: false,
            left_out: 0,
        }
    }

    /// Whether the body may have to be sent twice: see [`RetryPolicy::replays_bodies`].
    pub fn replays_bodies(&self, shares: bool) -> bool {
        policy::replays_bodies(self.retries_max, self.on, self.is_call, shares)
    }

    /// An attempt begins; answers its number, from 1, as x-envoy-attempt-count gives it.
    pub fn start(&mut self) -> u32 {
        self.made += 1;
        self.made
    }

    /// Whether an answer with this status could be one to try again; most are not, and need no more facts.
    pub fn is_interested(&self, status: StatusCode) -> bool {
        self.retries_max > 0 && (self.is_call || status.as_u16() >= 400 || self.on.has_any(ANY_STATUS))
    }

    /// Whether the next attempt must not use a pooled connection: one has just turned out to be dead, and its
    /// neighbours are likely to be.
    pub fn needs_fresh_connection(&self) -> bool {
        self.stale
    }

    /// An attempt failed before any byte of its answer went to the client. `admit` is asked last, whether the cluster's
    /// budget allows a retry.
    pub fn failed(
        &mut self,
        failure: Failure,
        progress: BodyProgress,
        random: &mut Random,
        admit: impl FnOnce() -> bool,
    ) -> Verdict {
        let BodyProgress { sent, replayable } = progress;
        let unsent_on = |on| !sent && self.on.has_any(on);
        let is_retriable = match failure {
            // The upstream closed an idle connection in the moment that it was used: not the upstream's failure, so
            // it costs no retry and no wait, but only what is safe is sent twice (RFC 9110, 9.2.2).
            Failure::Reset { reused: true }
                if replayable && !self.stale && (!sent || (self.idempotent && self.retries_max > 0)) =>
            {
                self.stale = true;
                return Verdict::Retry(Duration::ZERO);
            }
            Failure::Reset { .. } | Failure::Broken(_) => {
                self.on.retries_no_answer() || unsent_on(RetryOn::RESET_BEFORE_REQUEST)
            }
            Failure::Connect(_) => {
                let on = RetryOn::CONNECT_FAILURE.with(RetryOn::RESET_BEFORE_REQUEST);
                self.on.retries_no_answer() || self.on.has_any(on)
            }
            // Nothing has failed yet, so it costs no retry, nor a wait.
            Failure::LeftOut if replayable && self.left_out < LEFT_OUT_MAX => {
                self.left_out += 1;
                return Verdict::Retry(Duration::ZERO);
            }
            // It is safe to send it again whatever it is.
            Failure::Refused | Failure::LeftOut => {
                self.on.retries_no_answer()
                    || self.on.has_any(RetryOn::REFUSED_STREAM)
                    || unsent_on(RetryOn::RESET_BEFORE_REQUEST)
            }
            Failure::TryTimeout { connected } => {
                let on = RetryOn::CONNECT_FAILURE.with(RetryOn::RESET_BEFORE_REQUEST);
                self.on.retries_no_answer() || (!connected && self.on.has_any(on))
            }
            Failure::Final(_) => false,
        };
        let mut reply = LocalReply::from(failure.cause());
        if !is_retriable || !replayable {
            return Verdict::GiveUp(reply);
        }
        match self.retry(random, admit) {
            Ok(wait) => Verdict::Retry(wait),
            Err(flags) => {
                reply.flags = reply.flags.with(flags);
                Verdict::GiveUp(reply)
            }
        }
    }

    /// An attempt was answered, and no byte of that went to the client yet. `admit` as for [`Self::failed`].
    pub fn answered(
        &mut self,
        answer: Answer<'_>,
        random: &mut Random,
        admit: impl FnOnce() -> bool,
    ) -> Judged {
        // Most answers are good, and most policies do not care for any: nothing is looked up for them.
        if self.retries_max == 0 || !answer.replayable || !self.is_bad(answer.status, answer.headers) {
            return Judged::PassOn(Flags::NONE);
        }
        let told = told_wait(answer.headers).unwrap_or_default();
        let too_long = told > answer.wait_max || answer.left.is_some_and(|left| told >= left);
        if too_long {
            // The client gets to know when to come again, and can wait by itself.
            return Judged::PassOn(Flags::NONE);
        }
        match self.retry(random, admit) {
            Ok(wait) => Judged::Retry(told + wait),
            Err(flags) => Judged::PassOn(flags),
        }
    }

    /// The attempt's own time is over and it goes on all the same: whether another may be made beside it, so that the
    /// first good answer of both counts. Twice at work is only what is safe to be, or what the conditions send again
    /// whatever became of it.
    pub fn hedge(&mut self, progress: BodyProgress, admit: impl FnOnce() -> bool) -> bool {
        let is_safe = self.idempotent || self.on.retries_no_answer();
        let may = is_safe && progress.replayable && self.retries < self.retries_max && admit();
        self.retries += u32::from(may);
        may
    }

    /// Whether an answer is one that the client could get, with retries left or not.
    pub fn is_good(&self, status: StatusCode, headers: &HeaderList) -> bool {
        !self.is_bad(status, headers)
    }

    /// Whether an answer is one that the conditions name.
    fn is_bad(&self, status: StatusCode, headers: &HeaderList) -> bool {
        let code = status.as_u16();
        let listed = |codes: &[u16]| codes.contains(&code);
        // Envoy: an upstream that limits its callers is left alone unless that very word is given.
        let limits = || find(headers, b"x-envoy-ratelimited").is_some();
        let own = &self.policy.status_codes;
        let bad = (status.is_server_error() && self.on.has_any(RetryOn::SERVER_ERROR))
            || (matches!(code, 502..=504) && self.on.has_any(RetryOn::GATEWAY_ERROR))
            || (code == 409 && self.on.has_any(RetryOn::RETRIABLE_4XX))
            || (self.on.has_any(RetryOn::STATUS_CODES)
                && (listed(own) || self.overrides.is_some_and(|asked| listed(&asked.status_codes))))
            || (self.is_call && self.is_bad_call(headers))
            || (self.on.has_any(RetryOn::HEADERS) && self.has_listed_field(headers));
        if self.on.has_any(RetryOn::RATE_LIMITED) {
            bad || limits()
        } else {
            bad && !limits()
        }
    }

    /// Whether a call's status is in the head of its answer, which then is all of it, and one to retry on.
    fn is_bad_call(&self, headers: &HeaderList) -> bool {
        let status = headers.get(HeaderId::GrpcStatus).and_then(grpc::Status::parse);
        status.is_some_and(|status| self.on.has_any(RetryOn::of_call(status)))
    }

    fn has_listed_field(&self, headers: &HeaderList) -> bool {
        let names = self.overrides.map_or(&[][..], |asked| &asked.header_names[..]);
        names
            .iter()
            .any(|name: &FieldName| headers.get_named(name).next().is_some())
    }

    /// The wait before one more, or the flags of why there is none.
    fn retry(&mut self, random: &mut Random, admit: impl FnOnce() -> bool) -> Result<Duration, Flags> {
        if self.retries >= self.retries_max {
            // One that was never meant to be retried has not spent anything.
            return Err(if self.retries_max > 0 {
                Flags::URX
            } else {
                Flags::NONE
            });
        }
        if !admit() {
            return Err(Flags::UO);
        }
        let full = self
            .backoff
            .saturating_mul(1 << self.retries.min(16))
            .min(self.backoff.saturating_mul(10));
        self.retries += 1;
        Ok(Duration::from_nanos(
            random.below(u64::try_from(full.as_nanos()).unwrap_or(u64::MAX)),
        ))
    }
}

/// Conditions under which even an answer that looks good is not.
const ANY_STATUS: RetryOn = RetryOn::STATUS_CODES
    .with(RetryOn::HEADERS)
    .with(RetryOn::RATE_LIMITED);

fn find<'h>(headers: &'h HeaderList, name: &[u8]) -> Option<&'h [u8]> {
    let mut all = headers.iter();
    all.find(|(_, known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, _, value)| value)
}

/// Numbers above this are moments in seconds since 1970, not spans.
const MOMENTS_FROM: u64 = 1_000_000_000;

/// How long an upstream asks its callers to stay away: Retry-After (RFC 9110, 10.2.3), and the fields of rate limiters.
/// A moment is taken against the answer's own Date, so that no two clocks are compared.
fn told_wait(headers: &HeaderList) -> Option<Duration> {
    const NAMES: [&[u8]; 3] = [b"retry-after", b"x-ratelimit-reset", b"ratelimit-reset"];
    let date = || {
        let date = std::str::from_utf8(headers.get(HeaderId::Date)?).ok()?;
        httpdate::parse_http_date(date).ok()
    };
    let told = headers
        .iter()
        .filter(|(_, name, _)| NAMES.iter().any(|known| name.eq_ignore_ascii_case(known)));
    let waits = told.filter_map(|(_, _, value)| {
        let text = std::str::from_utf8(value).ok()?.trim();
        let moment = match text.parse::<u64>() {
            Ok(seconds) if seconds < MOMENTS_FROM => return Some(Duration::from_secs(seconds)),
            Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?,
            Err(_) => httpdate::parse_http_date(text).ok()?,
        };
        Some(moment.duration_since(date()?).unwrap_or_default())
    });
    waits.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNSENT: BodyProgress = BodyProgress {
        sent: false,
        replayable: true,
    };
    const SENT: BodyProgress = BodyProgress {
        sent: true,
        replayable: true,
    };
    const STREAMED: BodyProgress = BodyProgress {
        sent: true,
        replayable: false,
    };

    fn attempts<'p>(policy: &'p RetryPolicy, method: &Method) -> Attempts<'p> {
        let mut attempts = Attempts::new(policy, None, method, false);
        attempts.start();
        attempts
    }

    fn on(text: &str) -> RetryPolicy {
        let (on, codes) = RetryOn::parse(text);
        RetryPolicy {
            on,
            status_codes: codes.into(),
            ..RetryPolicy::default()
        }
    }

    fn judge(attempts: &mut Attempts<'_>, status: u16, fields: &[(&str, &str)], left_ms: u64) -> Judged {
        let mut headers = HeaderList::default();
        for (name, value) in fields {
            headers.append(name.as_bytes(), value.as_bytes());
        }
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &headers,
            replayable: true,
            left: Some(Duration::from_millis(left_ms)),
            wait_max: Duration::from_secs(10),
        };
        attempts.answered(answer, &mut Random::from_seed(7), || true)
    }

    fn is_retried(policy: &RetryPolicy, status: u16, fields: &[(&str, &str)]) -> bool {
        let mut attempts = Attempts::new(policy, None, &Method::GET, true);
        attempts.start();
        matches!(judge(&mut attempts, status, fields, 60_000), Judged::Retry(_))
    }

    #[test]
    fn answers_are_judged_by_the_conditions() {
        for (words, status, expected) in [
            ("5xx", 500, true),
            ("5xx", 499, false),
            ("gateway-error", 500, false),
            ("gateway-error", 502, true),
            ("gateway-error", 504, true),
            ("retriable-4xx", 409, true),
            ("retriable-4xx", 404, false),
            ("connect-failure,418", 418, true),
            ("connect-failure,418", 503, false),
            ("connect-failure,refused-stream,unavailable,cancelled", 503, false),
            ("http3-post-connect-failure", 503, false),
        ] {
            assert_eq!(is_retried(&on(words), status, &[]), expected, "{words} {status}");
        }
        let limited = [("x-envoy-ratelimited", "true")];
        assert!(
            !is_retried(&on("5xx,429"), 429, &limited),
            "only when the word says so"
        );
        assert!(is_retried(&on("envoy-ratelimited"), 429, &limited));
        for (word, number) in [
            ("cancelled", "1"),
            ("deadline-exceeded", "4"),
            ("resource-exhausted", "8"),
            ("internal", "13"),
            ("unavailable", "14"),
        ] {
            assert!(is_retried(&on(word), 200, &[("grpc-status", number)]), "{word}");
            assert!(!is_retried(&on(word), 200, &[("grpc-status", "0")]), "{word}");
            assert!(
                !is_retried(&on(word), 200, &[]),
                "{word}: its status is behind its body"
            );
        }
    }

    #[test]
    fn an_upstream_is_left_alone_as_long_as_it_asks() {
        let policy = on("503");
        let wait = |fields: &[(&str, &str)], left| {
            let mut attempts = Attempts::new(&policy, None, &Method::GET, false);
            attempts.start();
            judge(&mut attempts, 503, fields, left)
        };
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        for fields in [
            &[("Retry-After", "3")][..],
            &[("x-ratelimit-reset", "3")],
            &[date, ("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")],
            &[("ratelimit-reset", "2"), ("retry-after", "3")],
        ] {
            let Judged::Retry(wait) = wait(fields, 60_000) else {
                panic!("{fields:?}")
            };
            let (least, most) = (Duration::from_secs(3), Duration::from_millis(3025));
            assert!((least..most).contains(&wait), "{fields:?}: {wait:?}");
        }
        let moment = ("date", "Sun, 09 Sep 2001 01:46:37 GMT");
        let Judged::Retry(told) = wait(&[moment, ("x-ratelimit-reset", "1000000000")], 60_000) else {
            panic!("so large a number is a moment")
        };
        assert_eq!(told.as_secs(), 3);
        let pass_on = Judged::PassOn(Flags::NONE);
        assert_eq!(wait(&[("retry-after", "3")], 2_900), pass_on, "no time for it");
        assert!(matches!(wait(&[("retry-after", "10")], 60_000), Judged::Retry(_)));
        assert_eq!(wait(&[("retry-after", "10")], 10_000), pass_on);
        assert_eq!(
            wait(&[("retry-after", "11")], 60_000),
            pass_on,
            "too long to hold the client"
        );
        assert!(matches!(
            wait(&[("retry-after", "soon")], 60_000),
            Judged::Retry(_)
        ));
    }

    #[test]
    fn spent_retries_and_budgets_are_flagged() {
        let policy = on("503");
        let mut get = Attempts::new(&policy, None, &Method::GET, false);
        for _ in 0..2 {
            get.start();
            assert!(matches!(judge(&mut get, 503, &[], 60_000), Judged::Retry(_)));
        }
        assert_eq!(judge(&mut get, 503, &[], 60_000), Judged::PassOn(Flags::URX));
        assert_eq!(judge(&mut get, 200, &[], 60_000), Judged::PassOn(Flags::NONE));
        let mut random = Random::from_seed(1);
        let mut refused = attempts(&policy, &Method::GET);
        let failure = Failure::Connect(Cause::ConnectFailed);
        let policy = on("connect-failure");
        let mut over = attempts(&policy, &Method::GET);
        let Verdict::GiveUp(reply) = over.failed(failure, UNSENT, &mut random, || false) else {
            panic!("beyond the budget")
        };
        assert_eq!(reply.flags, Flags::UF.with(Flags::UO));
        let Verdict::GiveUp(reply) = refused.failed(failure, UNSENT, &mut random, || true) else {
            panic!("no condition of it")
        };
        assert_eq!(reply.flags, Flags::UF);
    }

    #[test]
    fn a_caller_may_ask_for_other_retries() {
        let off = RetryPolicy::off();
        let asked = Overrides {
            on: RetryOn::SERVER_ERROR,
            ..Overrides::default()
        };
        let mut one = Attempts::new(&off, Some(&asked), &Method::GET, false);
        assert!(matches!(judge(&mut one, 500, &[], 1000), Judged::Retry(_)));
        assert_eq!(judge(&mut one, 500, &[], 1000), Judged::PassOn(Flags::URX));
        let number = Overrides {
            retries: Some(3),
            ..Overrides::default()
        };
        let mut without = Attempts::new(&off, Some(&number), &Method::GET, false);
        let verdict = without.failed(
            Failure::Connect(Cause::ConnectFailed),
            UNSENT,
            &mut Random::from_seed(1),
            || true,
        );
        assert!(matches!(verdict, Verdict::GiveUp(_)), "a number is no condition");
        let default = RetryPolicy::default();
        let none = Overrides {
            retries: Some(0),
            ..Overrides::default()
        };
        let mut zero = Attempts::new(&default, Some(&none), &Method::GET, false);
        let verdict = zero.failed(
            Failure::Connect(Cause::ConnectFailed),
            UNSENT,
            &mut Random::from_seed(1),
            || true,
        );
        assert_eq!(verdict, Verdict::GiveUp(Cause::ConnectFailed.into()));
        let names = Overrides {
            on: RetryOn::HEADERS,
            header_names: FieldName::parse("x-again").into_iter().collect(),
            ..Overrides::default()
        };
        let mut fields = Attempts::new(&default, Some(&names), &Method::GET, false);
        assert!(matches!(
            judge(&mut fields, 200, &[("X-Again", "1")], 1000),
            Judged::Retry(_)
        ));
        assert_eq!(
            judge(&mut fields, 200, &[("x-other", "1")], 1000),
            Judged::PassOn(Flags::NONE)
        );
    }

    #[test]
    fn only_what_is_safe_is_hedged_and_within_the_budget() {
        let default = RetryPolicy::default();
        let mut get = attempts(&default, &Method::GET);
        assert!(!get.hedge(STREAMED, || true), "its body is gone");
        assert!(!get.hedge(SENT, || false), "beyond the budget");
        assert!(get.hedge(SENT, || true) && get.hedge(SENT, || true));
        assert!(!get.hedge(SENT, || true), "as many as there are retries");
        assert!(!attempts(&default, &Method::POST).hedge(SENT, || true));
        let asked = on("5xx");
        assert!(attempts(&asked, &Method::POST).hedge(SENT, || true));
        assert!(!attempts(&RetryPolicy::off(), &Method::GET).hedge(SENT, || true));
    }

    #[test]
    fn an_attempt_that_took_too_long_is_504_or_tried_again() {
        let mut random = Random::from_seed(1);
        let default = RetryPolicy::default();
        let timeout = Failure::TryTimeout { connected: true };
        let verdict = attempts(&default, &Method::GET).failed(timeout, SENT, &mut random, || true);
        let Verdict::GiveUp(reply) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!((reply.status.as_u16(), reply.flags), (504, Flags::UT));
        let policy = on("gateway-error");
        let mut get = attempts(&policy, &Method::GET);
        assert!(matches!(
            get.failed(timeout, SENT, &mut random, || true),
            Verdict::Retry(_)
        ));
        let lost = get.failed(timeout, STREAMED, &mut random, || true);
        assert!(matches!(lost, Verdict::GiveUp(_)), "its body is gone");
    }

    #[test]
    fn a_post_that_was_sent_is_never_sent_again() {
        let mut random = Random::from_seed(1);
        for failure in [Failure::Reset { reused: true }, Failure::Reset { reused: false }] {
            for progress in [SENT, STREAMED] {
                let policy = RetryPolicy::default();
                let verdict =
                    attempts(&policy, &Method::POST).failed(failure, progress, &mut random, || true);
                assert_eq!(
                    verdict,
                    Verdict::GiveUp(Cause::UpstreamReset.into()),
                    "{failure:?} {progress:?}"
                );
            }
        }
    }

    #[test]
    fn a_request_that_connections_leave_out_moves_on_at_no_cost_for_a_while() {
        let mut random = Random::from_seed(1);
        for policy in [RetryPolicy::default(), RetryPolicy::off()] {
            let mut post = attempts(&policy, &Method::POST);
            for _ in 0..LEFT_OUT_MAX {
                let verdict = post.failed(Failure::LeftOut, SENT, &mut random, || panic!("a retry"));
                assert_eq!(verdict, Verdict::Retry(Duration::ZERO));
            }
            for _ in 0..policy.retries {
                let verdict = post.failed(Failure::LeftOut, SENT, &mut random, || true);
                assert!(matches!(verdict, Verdict::Retry(_)));
            }
            let verdict = post.failed(Failure::LeftOut, SENT, &mut random, || true);
            assert!(matches!(verdict, Verdict::GiveUp(_)), "{verdict:?}");
            let verdict =
                attempts(&policy, &Method::POST).failed(Failure::LeftOut, STREAMED, &mut random, || true);
            assert!(matches!(verdict, Verdict::GiveUp(_)), "its body is gone");
        }
    }

    /// Whether a POST is sent again after this failure under conditions.
    fn is_sent_again(words: &str, failure: Failure, progress: BodyProgress) -> bool {
        let policy = on(words);
        let mut post = attempts(&policy, &Method::POST);
        let verdict = post.failed(failure, progress, &mut Random::from_seed(1), || true);
        matches!(verdict, Verdict::Retry(_))
    }

    #[test]
    fn failures_are_judged_by_the_conditions() {
        let connect = Failure::Connect(Cause::ConnectFailed);
        let reset = Failure::Reset { reused: false };
        let broken = Failure::Broken(Cause::ConnectTimeout);
        let early = Failure::TryTimeout { connected: false };
        let late = Failure::TryTimeout { connected: true };
        let last = Failure::Final(Cause::UpstreamReset);
        for (words, retried) in [
            (
                "5xx",
                &[connect, reset, broken, Failure::Refused, early, late][..],
            ),
            (
                "gateway-error",
                &[connect, reset, broken, Failure::Refused, early, late],
            ),
            ("reset", &[connect, reset, broken, Failure::Refused, early, late]),
            ("connect-failure", &[connect, early]),
            ("refused-stream", &[Failure::Refused]),
            ("reset-before-request", &[connect, early]),
            ("retriable-4xx,503,envoy-ratelimited,unavailable", &[]),
        ] {
            for failure in [connect, reset, broken, Failure::Refused, early, late, last] {
                let expected = retried.contains(&failure);
                assert_eq!(
                    is_sent_again(words, failure, SENT),
                    expected,
                    "{words}: {failure:?}"
                );
                assert!(!is_sent_again(words, failure, STREAMED), "{words}: {failure:?}");
            }
        }
        // What was not handed to the connection yet cannot have been worked on.
        for failure in [reset, broken, Failure::Refused] {
            assert!(
                is_sent_again("reset-before-request", failure, UNSENT),
                "{failure:?}"
            );
            assert!(!is_sent_again("connect-failure", failure, UNSENT), "{failure:?}");
        }
    }

    #[test]
    fn waits_double_up_to_ten_times_the_first() {
        let policy = RetryPolicy {
            retries: 40,
            ..on("connect-failure")
        };
        let mut longest = [Duration::ZERO; 40];
        for seed in 0..2_000 {
            let mut random = Random::from_seed(seed);
            let mut get = attempts(&policy, &Method::GET);
            for longest in &mut longest {
                let failure = Failure::Connect(Cause::ConnectFailed);
                match get.failed(failure, UNSENT, &mut random, || true) {
                    Verdict::Retry(wait) => *longest = wait.max(*longest),
                    verdict => panic!("{verdict:?}"),
                }
            }
        }
        let caps = [25, 50, 100, 200].into_iter().chain(std::iter::repeat(250));
        for (number, (longest, cap)) in longest.into_iter().zip(caps).enumerate() {
            let cap = Duration::from_millis(cap);
            assert!(
                longest < cap && longest > cap * 95 / 100,
                "retry {number}: {longest:?}"
            );
        }
    }

    #[test]
    fn most_answers_are_not_even_looked_at() {
        let interested = |policy: &RetryPolicy, is_call, status| {
            let attempts = Attempts::new(policy, None, &Method::GET, is_call);
            attempts.is_interested(StatusCode::from_u16(status).unwrap())
        };
        let default = RetryPolicy::default();
        assert!(!interested(&default, false, 200) && !interested(&default, false, 399));
        assert!(interested(&default, false, 400) && interested(&default, false, 503));
        assert!(interested(&default, true, 200), "a call's status is a field");
        for words in ["200", "envoy-ratelimited", "retriable-headers"] {
            assert!(interested(&on(words), false, 200), "{words}");
        }
        for is_call in [false, true] {
            assert!(
                !interested(&RetryPolicy::off(), is_call, 503),
                "there are no retries"
            );
        }
    }

    #[test]
    fn an_answer_is_kept_whose_request_cannot_be_sent_again() {
        let policy = on("503");
        let headers = HeaderList::default();
        let answer = |replayable, left, wait_max| Answer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            headers: &headers,
            replayable,
            left,
            wait_max,
        };
        let ask = |answer| {
            let mut get = attempts(&policy, &Method::GET);
            get.answered(answer, &mut Random::from_seed(1), || true)
        };
        let gone = answer(false, None, Duration::ZERO);
        assert_eq!(ask(gone), Judged::PassOn(Flags::NONE));
        assert!(matches!(
            ask(answer(true, None, Duration::ZERO)),
            Judged::Retry(_)
        ));
        let over = answer(true, Some(Duration::ZERO), Duration::from_secs(10));
        assert_eq!(ask(over), Judged::PassOn(Flags::NONE), "no time is left");
        let mut late = attempts(&policy, &Method::GET);
        let refused = late.answered(
            answer(true, None, Duration::ZERO),
            &mut Random::from_seed(1),
            || false,
        );
        assert_eq!(refused, Judged::PassOn(Flags::UO), "beyond the budget");
    }

    #[test]
    fn a_callers_statuses_count_beside_those_of_the_route_and_a_calls_in_calls_only() {
        let asked = Overrides {
            on: RetryOn::STATUS_CODES,
            status_codes: vec![418],
            ..Overrides::default()
        };
        let policy = on("404");
        let judged = |status| {
            let get = Attempts::new(&policy, Some(&asked), &Method::GET, false);
            get.is_good(StatusCode::from_u16(status).unwrap(), &HeaderList::default())
        };
        assert!(!judged(418) && !judged(404) && judged(503) && judged(200));
        let mut headers = HeaderList::default();
        headers.append(b"grpc-status", b"14");
        let policy = on("unavailable");
        for is_call in [false, true] {
            let get = Attempts::new(&policy, None, &Method::GET, is_call);
            assert_eq!(get.is_good(StatusCode::OK, &headers), !is_call);
        }
    }

    #[test]
    fn a_body_is_kept_for_what_a_caller_asks_for_too() {
        let asked = Overrides {
            on: RetryOn::SERVER_ERROR,
            ..Overrides::default()
        };
        let off = RetryPolicy::off();
        assert!(!Attempts::new(&off, None, &Method::POST, false).replays_bodies(true));
        assert!(Attempts::new(&off, Some(&asked), &Method::POST, false).replays_bodies(false));
    }

    #[test]
    fn what_is_resent_at_no_cost_is_resent_once_and_only_when_it_is_safe() {
        let mut random = Random::from_seed(1);
        let reused = Failure::Reset { reused: true };
        let mut free = |policy: &RetryPolicy, method, progress| {
            let mut attempts = attempts(policy, &method);
            let verdict = attempts.failed(reused, progress, &mut random, || panic!("a retry"));
            (
                verdict == Verdict::Retry(Duration::ZERO),
                attempts.needs_fresh_connection(),
            )
        };
        let (default, off) = (RetryPolicy::default(), RetryPolicy::off());
        assert_eq!(
            free(&off, Method::POST, UNSENT),
            (true, true),
            "nothing of it was sent"
        );
        assert_eq!(
            free(&off, Method::GET, SENT),
            (false, false),
            "retries are turned off"
        );
        assert_eq!(free(&default, Method::GET, SENT), (true, true));
        let policy = on("reset");
        let mut get = attempts(&policy, &Method::GET);
        assert_eq!(
            get.failed(reused, SENT, &mut random, || panic!("a retry")),
            Verdict::Retry(Duration::ZERO)
        );
        let mut asked = 0;
        let second = get.failed(reused, SENT, &mut random, || {
            asked += 1;
            true
        });
        assert!(
            matches!(second, Verdict::Retry(_)) && asked == 1,
            "the second one is a retry"
        );
    }

    #[test]
    fn a_get_on_a_dead_pooled_connection_is_sent_again_once_on_a_fresh_one() {
        let mut random = Random::from_seed(1);
        let policy = RetryPolicy::default();
        let mut get = attempts(&policy, &Method::GET);
        assert!(!get.needs_fresh_connection());
        assert_eq!(
            get.failed(Failure::Reset { reused: true }, SENT, &mut random, || true),
            Verdict::Retry(Duration::ZERO)
        );
        assert!(get.needs_fresh_connection());
        get.start();
        let verdict = get.failed(Failure::Reset { reused: false }, SENT, &mut random, || true);
        assert_eq!(verdict, Verdict::GiveUp(Cause::UpstreamReset.into()));
        let put = &mut attempts(&policy, &Method::PUT);
        let streamed = put.failed(Failure::Reset { reused: true }, STREAMED, &mut random, || true);
        assert_eq!(streamed, Verdict::GiveUp(Cause::UpstreamReset.into()));
    }

    #[test]
    fn connect_failures_are_retried_twice_within_the_backoff() {
        for seed in 0..1000 {
            let mut random = Random::from_seed(seed);
            let policy = RetryPolicy::default();
            let mut post = attempts(&policy, &Method::POST);
            for cap in [25, 50] {
                match post.failed(
                    Failure::Connect(Cause::ConnectFailed),
                    UNSENT,
                    &mut random,
                    || true,
                ) {
                    Verdict::Retry(wait) => assert!(wait < Duration::from_millis(cap), "{wait:?}"),
                    verdict => panic!("{verdict:?}"),
                }
                post.start();
            }
            let Verdict::GiveUp(reply) = post.failed(
                Failure::Connect(Cause::ConnectFailed),
                UNSENT,
                &mut random,
                || true,
            ) else {
                panic!("a third retry")
            };
            assert_eq!(
                (reply.status.as_u16(), reply.flags),
                (503, Flags::UF.with(Flags::URX))
            );
            assert_eq!(post.start(), 4, "three were made");
        }
    }
}
