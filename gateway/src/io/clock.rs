//! The time. The only place that asks the system for it.

use std::time::{Instant, SystemTime};

/// Now, for durations and deadlines.
pub fn now() -> Instant {
    Instant::now()
}

/// Now, for people: logs and the Date field.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Microseconds of CLOCK_MONOTONIC, which other processes of this machine read, too.
pub fn monotonic_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1_000_000 + nanos / 1_000
}
