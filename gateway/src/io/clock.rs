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
