//! Waiting for a condition with a deadline, which is the only way that tests wait.

use std::thread;
use std::time::{Duration, Instant};

/// Within this, anything that a test waits for has happened, on a slow and busy machine too.
pub const SOON: Duration = Duration::from_secs(30);

const POLL_EVERY: Duration = Duration::from_millis(5);

/// Polls until the condition holds; panics with `what` when the time is over.
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(deadline, what, || condition().then_some(()));
}

/// Polls until there is a value; panics with `what` when the time is over.
pub fn eventually_some<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    within(deadline, &mut look).unwrap_or_else(|| panic!("not within {deadline:?}: {what}"))
}

/// Polls until there is a value, or the time is over.
pub fn within<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(POLL_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_polled_until_it_holds() {
        let mut calls = 0;
        eventually(SOON, "three calls", || {
            calls += 1;
            calls == 3
        });
        assert_eq!(calls, 3);
    }

    #[test]
    #[should_panic(expected = "not within 20ms: the impossible")]
    fn a_missed_deadline_says_what_was_awaited() {
        eventually(Duration::from_millis(20), "the impossible", || false);
    }
}
