//! Attempts: may a request be sent again, when, and what does the client get if not.
//!
//! The machine is told what happened and answers what to do; it never sees bodies, only facts about them. It counts
//! attempts by id, so that several may be under way at once.

use crate::random::Random;
use crate::reply::{Cause, Flags, LocalReply};
use http::Method;
use std::time::Duration;

/// How often and how soon a request is sent again (Istio `HTTPRetry`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most retries after the first attempt.
    pub retries: u32,
    /// First back-off; it doubles with each retry, is capped at ten times itself, and the wait is a random part of it.
    pub backoff: Duration,
}

impl Default for RetryPolicy {
    /// What Istio does when nothing is written: two retries, 25 ms, when nothing can have reached an application
    /// (connect-failure, reset-before-request).
    fn default() -> Self {
        Self {
            retries: 2,
            backoff: Duration::from_millis(25),
        }
    }
}

/// What the shell knows about the request at the moment of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyProgress {
    /// Whether any byte of the request, head included, was handed to the connection that failed.
    pub sent: bool,
    /// Whether all that was sent is still at hand to be sent again.
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
    /// The upstream has said that it did nothing with the request (RFC 9113, 8.7).
    Refused,
    /// Anything that cannot be tried again.
    Final(Cause),
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Send it again after this wait.
    Retry(Duration),
    /// Answer so.
    GiveUp(LocalReply),
}

/// The attempts of one request.
#[derive(Debug, Clone)]
pub struct Attempts {
    policy: RetryPolicy,
    idempotent: bool,
    made: u32,
    live: u32,
    retries: u32,
    stale: bool,
}

impl Attempts {
    /// Nothing sent yet.
    pub fn new(policy: RetryPolicy, method: &Method) -> Self {
        Self {
            policy,
            idempotent: method.is_idempotent(),
            made: 0,
            live: 0,
            retries: 0,
            stale: false,
        }
    }

    /// An attempt begins; answers its number, from 1, as x-envoy-attempt-count gives it.
    pub fn start(&mut self) -> u32 {
        self.made += 1;
        self.live += 1;
        self.made
    }

    /// How many attempts were made.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Whether the next attempt must not use a pooled connection: one has just turned out to be dead, and its
    /// neighbours are likely to be.
    pub fn needs_fresh_connection(&self) -> bool {
        self.stale
    }

    /// An attempt failed before any byte of its answer went to the client.
    pub fn failed(&mut self, failure: Failure, progress: BodyProgress, random: &mut Random) -> Verdict {
        self.live = self.live.saturating_sub(1);
        let unsent = !progress.sent;
        match failure {
            // The upstream closed an idle connection in the moment that it was used: not the upstream's failure, so
            // it costs no retry and no wait, but only what is safe is sent twice (RFC 9110, 9.2.2).
            Failure::Reset { reused: true }
                if !self.stale && (unsent || (self.idempotent && progress.replayable)) =>
            {
                self.stale = true;
                Verdict::Retry(Duration::ZERO)
            }
            Failure::Reset { .. } if unsent => self.retry_or(Cause::UpstreamReset, random),
            Failure::Connect(cause) => self.retry_or(cause, random),
            // It is safe to send it again whatever it is, as long as it is still at hand.
            Failure::Refused if progress.replayable => self.retry_or(Cause::UpstreamReset, random),
            Failure::Refused => Verdict::GiveUp(Cause::UpstreamReset.into()),
            Failure::Reset { .. } => Verdict::GiveUp(Cause::UpstreamReset.into()),
            Failure::Final(cause) => Verdict::GiveUp(cause.into()),
        }
    }

    fn retry_or(&mut self, cause: Cause, random: &mut Random) -> Verdict {
        if self.retries < self.policy.retries {
            let full = self
                .policy
                .backoff
                .saturating_mul(1 << self.retries.min(16))
                .min(self.policy.backoff * 10);
            self.retries += 1;
            let wait = Duration::from_nanos(random.below(u64::try_from(full.as_nanos()).unwrap_or(u64::MAX)));
            return Verdict::Retry(wait);
        }
        let mut reply = LocalReply::from(cause);
        if self.retries > 0 {
            reply.flags = reply.flags.with(Flags::URX);
        }
        Verdict::GiveUp(reply)
    }
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

    fn attempts(method: &Method) -> Attempts {
        let mut attempts = Attempts::new(RetryPolicy::default(), method);
        attempts.start();
        attempts
    }

    #[test]
    fn a_post_that_was_sent_is_never_sent_again() {
        let mut random = Random::from_seed(1);
        for failure in [Failure::Reset { reused: true }, Failure::Reset { reused: false }] {
            for progress in [SENT, STREAMED] {
                let verdict = attempts(&Method::POST).failed(failure, progress, &mut random);
                assert_eq!(
                    verdict,
                    Verdict::GiveUp(Cause::UpstreamReset.into()),
                    "{failure:?} {progress:?}"
                );
            }
        }
    }

    #[test]
    fn a_get_on_a_dead_pooled_connection_is_sent_again_once_on_a_fresh_one() {
        let mut random = Random::from_seed(1);
        let mut get = attempts(&Method::GET);
        assert_eq!(
            get.failed(Failure::Reset { reused: true }, SENT, &mut random),
            Verdict::Retry(Duration::ZERO)
        );
        assert!(get.needs_fresh_connection());
        get.start();
        let verdict = get.failed(Failure::Reset { reused: false }, SENT, &mut random);
        assert_eq!(verdict, Verdict::GiveUp(Cause::UpstreamReset.into()));
        let streamed = attempts(&Method::PUT).failed(Failure::Reset { reused: true }, STREAMED, &mut random);
        assert_eq!(streamed, Verdict::GiveUp(Cause::UpstreamReset.into()));
    }

    #[test]
    fn connect_failures_are_retried_twice_within_the_backoff() {
        for seed in 0..1000 {
            let mut random = Random::from_seed(seed);
            let mut post = attempts(&Method::POST);
            for cap in [25, 50] {
                match post.failed(Failure::Connect(Cause::ConnectFailed), UNSENT, &mut random) {
                    Verdict::Retry(wait) => assert!(wait < Duration::from_millis(cap), "{wait:?}"),
                    verdict => panic!("{verdict:?}"),
                }
                post.start();
            }
            let Verdict::GiveUp(reply) =
                post.failed(Failure::Connect(Cause::ConnectFailed), UNSENT, &mut random)
            else {
                panic!("a third retry")
            };
            assert_eq!(
                (reply.status.as_u16(), reply.flags),
                (503, Flags::UF.with(Flags::URX))
            );
            assert_eq!(post.made(), 3);
        }
    }
}
