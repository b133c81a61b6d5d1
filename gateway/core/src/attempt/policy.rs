//! What makes a request worth sending again: the conditions of `retries.retryOn`, and how often and how soon.
//!
//! The words are Envoy's (`x-envoy-retry-on`, `x-envoy-retry-grpc-on`), as VirtualServices and trusted callers use them.

use crate::grpc::Status;
use std::time::Duration;

/// Conditions of a retry, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RetryOn(u32);

macro_rules! conditions {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal $text:literal;)*) => {
        impl RetryOn {
            $($(#[doc = $doc])+ pub const $name: Self = Self(1 << $bit);)*
            const WORDS: &'static [(&'static str, Self)] = &[$(($text, Self::$name)),*];
        }
    };
}

conditions! {
    /// An answer with a status of 5xx, or none: a failed connect, a reset, a try that took too long.
    SERVER_ERROR = 0 "5xx";
    /// The same for the statuses 502, 503 and 504 only.
    GATEWAY_ERROR = 1 "gateway-error";
    /// No answer: a failed connect, a reset, a try that took too long.
    RESET = 2 "reset";
    /// A connection that ended before any byte of the request was handed to it.
    RESET_BEFORE_REQUEST = 3 "reset-before-request";
    /// No connection could be made.
    CONNECT_FAILURE = 4 "connect-failure";
    /// An answer with `x-envoy-ratelimited`; without this condition such an answer is never tried again.
    RATE_LIMITED = 5 "envoy-ratelimited";
    /// An answer with status 409.
    RETRIABLE_4XX = 6 "retriable-4xx";
    /// The upstream refused the stream, and did nothing with the request.
    REFUSED_STREAM = 7 "refused-stream";
    /// An answer with one of the listed statuses.
    STATUS_CODES = 8 "retriable-status-codes";
    /// An answer with one of the listed fields.
    HEADERS = 9 "retriable-headers";
    /// Accepted, and without a meaning as long as no upstream is spoken to in HTTP/3.
    HTTP3_POST_CONNECT_FAILURE = 10 "http3-post-connect-failure";
    /// A call's status CANCELLED, where the answer's head has it; so with those that follow.
    CANCELLED = 16 "cancelled";
    /// DEADLINE_EXCEEDED.
    DEADLINE_EXCEEDED = 17 "deadline-exceeded";
    /// INTERNAL.
    INTERNAL = 18 "internal";
    /// RESOURCE_EXHAUSTED.
    RESOURCE_EXHAUSTED = 19 "resource-exhausted";
    /// UNAVAILABLE.
    UNAVAILABLE = 20 "unavailable";
}

impl RetryOn {
    /// No condition.
    pub const NONE: Self = Self(0);
    /// Everything that a call's status can say.
    const CALLS: Self = Self(0b1_1111 << 16);
    /// Conditions under which a request counts whose answer never came although it may have been worked on.
    const NO_ANSWER: Self = Self::SERVER_ERROR.with(Self::GATEWAY_ERROR).with(Self::RESET);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets have a condition in common.
    pub const fn has_any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether a request that nobody answered is sent again, whatever became of it.
    pub const fn retries_no_answer(self) -> bool {
        self.has_any(Self::NO_ANSWER)
    }

    /// The condition of a word of `retryOn`.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::WORDS
            .iter()
            .find(|(text, _)| word.eq_ignore_ascii_case(text))
            .map(|(_, condition)| *condition)
    }

    /// The words of a set, in the order of [`Self`]'s constants.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let held = Self::WORDS
            .iter()
            .filter(move |(_, condition)| self.has_any(*condition));
        held.map(|(text, _)| *text)
    }

    /// The condition that a call's status is.
    pub const fn of_call(status: Status) -> Self {
        match status {
            Status::Cancelled => Self::CANCELLED,
            Status::DeadlineExceeded => Self::DEADLINE_EXCEEDED,
            Status::Internal => Self::INTERNAL,
            Status::ResourceExhausted => Self::RESOURCE_EXHAUSTED,
            Status::Unavailable => Self::UNAVAILABLE,
            _ => Self::NONE,
        }
    }

    /// Reads a list of conditions with commas between them; numbers among them are statuses (Istio `parseRetryOn`).
    /// Words that are no condition are passed over.
    pub fn parse(text: &str) -> (Self, Vec<u16>) {
        let (mut on, mut codes) = (Self::NONE, Vec::new());
        for word in text.split(',').map(str::trim) {
            match word.parse::<u16>() {
                Ok(code) if (100..600).contains(&code) => {
                    on = on.with(Self::STATUS_CODES);
                    codes.push(code);
                }
                _ => on = on.with(Self::of_word(word).unwrap_or(Self::NONE)),
            }
        }
        (on, codes)
    }
}

/// How often, how soon and why a request is sent again (Istio `HTTPRetry`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// Most retries after the first attempt; 0 turns them off.
    pub retries: u32,
    /// For one attempt; None for as long as the route has.
    pub per_try_timeout: Option<Duration>,
    /// First back-off; it doubles with each retry, is capped at ten times itself, and the wait is a random part of it.
    pub backoff: Duration,
    /// Why.
    pub on: RetryOn,
    /// Statuses of [`RetryOn::STATUS_CODES`].
    pub status_codes: Box<[u16]>,
    /// Whether a retry looks for an endpoint that this request has not tried; None for yes, unless the request's key leads
    /// to one endpoint.
    pub ignore_previous_hosts: Option<bool>,
    /// Whether every second retry leaves out the localities of the attempts before (Istio `retryRemoteLocalities`, which is
    /// Envoy's `previous_priorities` with an `update_frequency` of 2).
    pub remote_localities: bool,
}

impl RetryPolicy {
    /// First back-off when nothing is written (Envoy).
    pub const BACKOFF: Duration = Duration::from_millis(25);

    /// No retries.
    pub fn off() -> Self {
        Self {
            retries: 0,
            on: RetryOn::NONE,
            ..Self::default()
        }
    }

    /// Whether a retry looks for an endpoint that the request has not tried, where `is_keyed` says that the request has a key
    /// for consistent hashing.
    pub fn ignores_previous_hosts(&self, is_keyed: bool) -> bool {
        self.ignore_previous_hosts.unwrap_or(!is_keyed)
    }

    /// Whether a request's body may have to be sent twice: such a body is kept while it streams. `is_call` says that it
    /// is gRPC's, `shares` that its connection carries several requests, which an upstream can refuse singly.
    pub fn replays_bodies(&self, is_call: bool, shares: bool) -> bool {
        replays_bodies(self.retries, self.on, is_call, shares)
    }
}

pub(super) fn replays_bodies(retries: u32, on: RetryOn, is_call: bool, shares: bool) -> bool {
    const ANSWERS: RetryOn = RetryOn::NO_ANSWER
        .with(RetryOn::RATE_LIMITED)
        .with(RetryOn::RETRIABLE_4XX)
        .with(RetryOn::STATUS_CODES)
        .with(RetryOn::HEADERS);
    retries > 0
        && (on.has_any(ANSWERS)
            || (is_call && on.has_any(RetryOn::CALLS))
            || (shares && on.has_any(RetryOn::REFUSED_STREAM)))
}

impl Default for RetryPolicy {
    /// What Istio does when nothing is written: two retries, 25 ms, when nothing can have reached an application, or
    /// a call was told that its service is not there.
    fn default() -> Self {
        Self {
            retries: 2,
            per_try_timeout: None,
            backoff: Self::BACKOFF,
            on: RetryOn::CONNECT_FAILURE
                .with(RetryOn::REFUSED_STREAM)
                .with(RetryOn::RESET_BEFORE_REQUEST)
                .with(RetryOn::UNAVAILABLE)
                .with(RetryOn::CANCELLED),
            status_codes: Box::default(),
            ignore_previous_hosts: None,
            remote_localities: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_and_numbers_are_read() {
        let (on, codes) = RetryOn::parse("5xx, Connect-Failure,503,nonsense,,700");
        assert_eq!(
            on,
            RetryOn::SERVER_ERROR
                .with(RetryOn::CONNECT_FAILURE)
                .with(RetryOn::STATUS_CODES)
        );
        assert_eq!(codes, [503]);
        assert_eq!(RetryOn::parse(""), (RetryOn::NONE, Vec::new()));
        let words: Vec<_> = on.words().collect();
        assert_eq!(words, ["5xx", "connect-failure", "retriable-status-codes"]);
    }

    #[test]
    fn a_body_is_kept_only_for_what_could_send_it_again() {
        let default = RetryPolicy::default();
        assert!(!default.replays_bodies(false, false));
        assert!(default.replays_bodies(true, false), "unavailable");
        assert!(default.replays_bodies(false, true), "refused-stream");
        assert!(!RetryPolicy::off().replays_bodies(true, true));
        let on = RetryOn::parse("503").0;
        let kept = RetryPolicy { on, ..default };
        assert!(kept.replays_bodies(false, false));
        assert!(!RetryPolicy { retries: 0, ..kept }.replays_bodies(true, true));
    }
}
