//! What a trusted caller asks for its own request: other time-outs, other retries (Envoy's `x-envoy-*` request fields).
//!
//! The fields are read and removed where requests enter; those of a caller that is not trusted are removed only.

use super::policy::RetryOn;
use crate::header::FieldName;
use std::time::Duration;

/// Bounds of what a caller may ask for; settings of these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideLimits {
    /// Longest route's time that may be asked for; None for no limit.
    pub timeout: Option<Duration>,
    /// Most retries that may be asked for.
    pub retries: u32,
}

/// What a request asks for; None or empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// For the whole exchange; zero for no limit.
    pub timeout: Option<Duration>,
    /// For one attempt; zero for no limit of its own.
    pub per_try_timeout: Option<Duration>,
    /// Retries after the first attempt.
    pub retries: Option<u32>,
    /// Conditions beside those of the route.
    pub on: RetryOn,
    /// Statuses beside those of the route.
    pub status_codes: Vec<u16>,
    /// Fields of an answer that make it worth another attempt.
    pub header_names: Vec<FieldName>,
}

/// Statuses or fields that a request may list.
const LISTED_MAX: usize = 32;

impl Overrides {
    /// Takes a field in; what it is not or cannot be read is passed over.
    pub fn read(&mut self, name: &[u8], value: &[u8]) {
        let Ok(value) = std::str::from_utf8(value) else {
            return;
        };
        let number = || value.trim().parse::<u32>().ok();
        let millis = || number().map(|ms| Duration::from_millis(ms.into()));
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("x-envoy-upstream-rq-timeout-ms") {
            self.timeout = millis().or(self.timeout);
        } else if is("x-envoy-upstream-rq-per-try-timeout-ms") {
            self.per_try_timeout = millis().or(self.per_try_timeout);
        } else if is("x-envoy-max-retries") {
            self.retries = number().or(self.retries);
        } else if is("x-envoy-retry-on") || is("x-envoy-retry-grpc-on") {
            // Envoy reads no numbers here: they are in a field of their own.
            self.on = self.on.with(RetryOn::parse(value).0);
        } else if is("x-envoy-retriable-status-codes") {
            let codes = value
                .split(',')
                .filter_map(|code| code.trim().parse::<u16>().ok());
            self.status_codes
                .extend(codes.take(LISTED_MAX.saturating_sub(self.status_codes.len())));
        } else if is("x-envoy-retriable-header-names") {
            let names = value.split(',').filter_map(|name| FieldName::parse(name.trim()));
            self.header_names
                .extend(names.take(LISTED_MAX.saturating_sub(self.header_names.len())));
        }
    }

    /// Cuts what is asked for to what may be.
    pub fn limit(&mut self, limits: OverrideLimits) {
        let cut = |asked: Duration| match limits.timeout {
            Some(most) if asked.is_zero() => most,
            Some(most) => asked.min(most),
            None => asked,
        };
        self.timeout = self.timeout.map(cut);
        self.retries = self.retries.map(|asked| asked.min(limits.retries));
    }
}

/// How long an exchange and each of its attempts may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// From the request's end to the answer's, over all attempts and waits; None for no limit.
    pub total: Option<Duration>,
    /// For each attempt until its answer begins; None for no limit of its own.
    pub per_try: Option<Duration>,
}

impl Timeouts {
    /// What the route says (None for no limit), then the caller, and at most what a call's own deadline leaves. A limit
    /// of an attempt that is not below the whole's is none (Envoy `finalTimeout`).
    pub fn new(
        route: Option<Duration>,
        per_try: Option<Duration>,
        overrides: Option<&Overrides>,
        grpc: Option<Duration>,
    ) -> Self {
        let some = |asked: Duration| Some(asked).filter(|asked| !asked.is_zero());
        let route = overrides.and_then(|asked| asked.timeout).map_or(route, some);
        let total = match (route, grpc) {
            (Some(route), Some(grpc)) => Some(route.min(grpc)),
            (route, grpc) => route.or(grpc),
        };
        let per_try = overrides
            .and_then(|asked| asked.per_try_timeout)
            .map_or(per_try, some)
            .filter(|per_try| total.is_none_or(|total| *per_try < total));
        Self { total, per_try }
    }

    /// What the upstream is told that it has, when so much time of the whole is over: `x-envoy-expected-rq-timeout-ms`.
    /// Never zero, which would mean that there is no limit.
    pub fn expected(&self, elapsed: Duration) -> Option<Duration> {
        let left = self
            .total
            .map(|total| total.saturating_sub(elapsed).max(Duration::from_millis(1)));
        match (self.per_try, left) {
            (Some(per_try), Some(left)) => Some(per_try.min(left)),
            (per_try, left) => per_try.or(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn fields_are_read_and_cut() {
        let mut asked = Overrides::default();
        for (name, value) in [
            ("X-Envoy-Upstream-Rq-Timeout-Ms", "0"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "250"),
            ("x-envoy-max-retries", "1000"),
            ("x-envoy-max-retries", "many"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-retry-grpc-on", "unavailable"),
            ("x-envoy-retriable-status-codes", "404, 418,x"),
            ("x-envoy-retriable-header-names", "x-again"),
            ("x-envoy-other", "1"),
        ] {
            asked.read(name.as_bytes(), value.as_bytes());
        }
        asked.limit(OverrideLimits {
            timeout: Some(ms(5000)),
            retries: 10,
        });
        assert_eq!(
            asked.timeout,
            Some(ms(5000)),
            "no limit at all is more than may be"
        );
        assert_eq!((asked.per_try_timeout, asked.retries), (Some(ms(250)), Some(10)));
        assert_eq!(asked.on, RetryOn::SERVER_ERROR.with(RetryOn::UNAVAILABLE));
        assert_eq!(asked.status_codes, [404, 418]);
        assert_eq!(asked.header_names.len(), 1);
        let many = vec!["500"; 100].join(",");
        asked.read(b"x-envoy-retriable-status-codes", many.as_bytes());
        assert_eq!(asked.status_codes.len(), LISTED_MAX);
        let many = vec!["x-again"; 100].join(",");
        asked.read(b"x-envoy-retriable-header-names", many.as_bytes());
        assert_eq!(asked.header_names.len(), LISTED_MAX);
    }

    #[test]
    fn a_time_that_may_be_asked_for_stays_and_a_longer_one_is_cut() {
        let limited = |asked: u64, most: Option<u64>| {
            let mut overrides = Overrides {
                timeout: Some(ms(asked)),
                ..Overrides::default()
            };
            overrides.limit(OverrideLimits {
                timeout: most.map(ms),
                retries: 1,
            });
            overrides.timeout
        };
        assert_eq!(limited(1000, Some(5000)), Some(ms(1000)));
        assert_eq!(limited(5001, Some(5000)), Some(ms(5000)));
        assert_eq!(limited(0, None), Some(ms(0)), "nothing is cut");
    }

    #[test]
    fn a_limit_of_an_attempt_is_below_that_of_the_whole_or_none() {
        let asked = Overrides {
            timeout: Some(ms(300)),
            per_try_timeout: Some(ms(300)),
            ..Overrides::default()
        };
        let timeouts = Timeouts::new(Some(ms(1000)), Some(ms(100)), Some(&asked), None);
        assert_eq!((timeouts.total, timeouts.per_try), (Some(ms(300)), None));
        let none = Overrides {
            timeout: Some(Duration::ZERO),
            ..Overrides::default()
        };
        let timeouts = Timeouts::new(Some(ms(1000)), Some(ms(100)), Some(&none), None);
        assert_eq!((timeouts.total, timeouts.per_try), (None, Some(ms(100))));
        let call = Timeouts::new(None, Some(ms(100)), None, Some(ms(50)));
        assert_eq!((call.total, call.per_try), (Some(ms(50)), None));
        let shorter = Timeouts::new(Some(ms(40)), Some(ms(10)), None, Some(ms(50)));
        assert_eq!((shorter.total, shorter.per_try), (Some(ms(40)), Some(ms(10))));
        let endless = Overrides {
            per_try_timeout: Some(Duration::ZERO),
            ..Overrides::default()
        };
        let endless = Timeouts::new(Some(ms(40)), Some(ms(10)), Some(&endless), None);
        assert_eq!((endless.total, endless.per_try), (Some(ms(40)), None));
    }

    #[test]
    fn an_upstream_is_told_what_is_left() {
        let timeouts = Timeouts {
            total: Some(ms(300)),
            per_try: Some(ms(200)),
        };
        assert_eq!(timeouts.expected(ms(0)), Some(ms(200)));
        assert_eq!(timeouts.expected(ms(250)), Some(ms(50)));
        assert_eq!(timeouts.expected(ms(400)), Some(ms(1)));
        assert_eq!(Timeouts::default().expected(ms(1)), None);
    }
}
