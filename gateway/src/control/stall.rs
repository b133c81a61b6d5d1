//! Shards that stand still: whose ticker has not run for a while, as control sees from outside.
//!
//! Why one does is not to be seen any more once it runs again, so the report says what its thread did meanwhile: one
//! that ran is in a task that does not give way, one that waited has too little of its core, and one that did neither
//! sleeps or is held up in a system call.

use super::{Metrics, Shard};
use crate::io::executor::Work;
use std::time::{Duration, Instant};

/// A shard that has not ticked for so long is reported: a hundred ticks.
const STALL: Duration = Duration::from_secs(1);

/// What control has last seen of a shard's ticker.
#[derive(Debug)]
pub(super) struct Seen {
    ticks: u64,
    /// When they were first so many.
    at: Instant,
    /// What the thread had done by the time at which they were seen to be no more.
    work: Option<Work>,
}

impl Seen {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            ticks: 0,
            at: now,
            work: None,
        }
    }
}

/// Reports a shard whose ticker stands still, once for each time.
pub(super) fn watch(index: usize, shard: &mut Shard, now: Instant, metrics: &Metrics) {
    let ticks = shard.heartbeat.ticks();
    if ticks != shard.seen.ticks {
        if shard.stalled {
            let ms = (now - shard.seen.at).as_millis();
            let (ran_ms, waited_ms) = worked(shard.seen.work, shard.heartbeat.work()).unzip();
            tracing::warn!(shard = index, ms, ran_ms, waited_ms, "the shard runs again");
        }
        shard.seen = Seen {
            ticks,
            at: now,
            work: None,
        };
        shard.stalled = false;
        return;
    }
    if shard.seen.work.is_none() {
        shard.seen.work = shard.heartbeat.work();
    }
    if !shard.stalled && now.saturating_duration_since(shard.seen.at) >= STALL {
        shard.stalled = true;
        metrics.count_stall();
        let (ran_ms, waited_ms) = worked(shard.seen.work, shard.heartbeat.work()).unzip();
        tracing::error!(shard = index, ran_ms, waited_ms, "the shard stands still");
    }
}

/// How many milliseconds the thread has run since its ticker was seen to stand still, and how many it had no core; None,
/// which the log leaves out, where the kernel does not say.
fn worked(before: Option<Work>, now: Option<Work>) -> Option<(u64, u64)> {
    let (before, now) = (before?, now?);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let ran = now.ran.saturating_sub(before.ran);
    let waited = now.waited.saturating_sub(before.waited);
    Some((ms(ran), ms(waited)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_say_is_left_out() {
        let work = |ran, waited| {
            Some(Work {
                ran: Duration::from_millis(ran),
                waited: Duration::from_millis(waited),
            })
        };
        assert_eq!(worked(work(5, 70), work(1_005, 90)), Some((1_000, 20)));
        assert_eq!(worked(work(5, 70), work(5, 70)), Some((0, 0)), "it sleeps");
        for (before, now) in [(None, work(1, 2)), (work(1, 2), None), (None, None)] {
            assert_eq!(worked(before, now), None);
        }
    }
}
