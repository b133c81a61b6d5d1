//! A shard's thread: an executor, most often pinned to a core, with the settings under which it does not stall.
//!
//! glommio 0.9 can go to sleep although tasks are runnable (its loop takes "preempted on entry" for "nothing to do").
//! What contains that: a sleep ends after [`LONGEST_SLEEP`] at the latest, whoever may be slept over; a ticker that is
//! always armed, so that this is the exception; a preempt timer far longer than anything a task does in one go; one
//! task queue, and none that is latency sensitive.

use super::timer::Wheel;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often timers are looked at; also how long a lost wake-up lasts, unless it is the ticker's own.
pub const TICK: Duration = Duration::from_millis(10);
/// How long a shard sleeps at most. The ticker ends each sleep sooner, unless the shard sleeps where it should not.
pub const LONGEST_SLEEP: Duration = Duration::from_millis(30);

/// How an executor is built. The default is what production runs; tests of the stall change it.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long a task may run before it is asked to yield.
    pub preempt: Duration,
    /// Whether the ticker runs.
    pub ticker: bool,
    /// How long a sleep may last; zero for ever.
    pub longest_sleep: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            preempt: Duration::from_secs(10),
            ticker: true,
            longest_sleep: LONGEST_SLEEP,
        }
    }
}

/// A shard that could not be set up: the machine refuses its ring or its memory.
#[derive(Debug, thiserror::Error)]
#[error(
    "a shard's ring cannot be set up: {0}. Each shard locks memory: raise the limit (`ulimit -l`), or run fewer \
     with --shards"
)]
pub struct BuildError(String);

/// A shard's sign of life: grows with every tick.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<Pulse>);

#[derive(Debug, Default)]
struct Pulse {
    ticks: AtomicU64,
    thread: AtomicI32,
}

/// What a thread has done since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// How long it has run.
    pub ran: Duration,
    /// How long it could run and had no core.
    pub waited: Duration,
}

impl Heartbeat {
    /// Ticks so far.
    pub fn ticks(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }

    /// What the shard's thread has done so far; None before it runs, and where the kernel does not say.
    pub fn work(&self) -> Option<Work> {
        let thread = self.0.thread.load(Ordering::Relaxed);
        let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        let mut parts = text.split_ascii_whitespace().map(|part| part.parse().ok());
        let mut next = || parts.next().flatten().map(Duration::from_nanos);
        Some(Work {
            ran: next()?,
            waited: next()?,
        })
    }

    fn beat(&self) {
        // One writer: the shard.
        self.0.ticks.store(self.ticks() + 1, Ordering::Relaxed);
    }
}

/// The cores that this process may run on, in order.
pub fn granted_cores() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None);
    let cores: Vec<usize> = match set {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|&core| set.is_set(core))
            .collect(),
        Err(_) => Vec::new(),
    };
    if cores.is_empty() { vec![0] } else { cores }
}

/// How many shards the machine grants: the cores of the affinity mask, cut to the cgroup's CPU quota.
pub fn granted_parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// Starts a shard: `body` runs on a new thread, pinned to `core` if one is given, with a timer wheel that the ticker
/// drives.
pub fn spawn_shard<F, T>(
    name: &str,
    core: impl Into<Option<usize>>,
    settings: Settings,
    heartbeat: Heartbeat,
    body: impl FnOnce(Wheel) -> F + Send + 'static,
) -> std::io::Result<JoinHandle<std::thread::Result<T>>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let name = name.to_owned();
    let placement = match core.into() {
        Some(core) => glommio::Placement::Fixed(core),
        None => glommio::Placement::Unbound,
    };
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        let built = glommio::LocalExecutorBuilder::new(placement)
            .name(&name)
            .preempt_timer(settings.preempt)
            .ring_depth(512)
            // Registered buffers serve file I/O, which shards do not do; the smallest size saves locked memory.
            .io_memory(64 << 10)
            .make();
        let executor = built
            .map_err(|error| -> Box<dyn std::any::Any + Send> { Box::new(BuildError(error.to_string())) })?;
        super::uring::bound_sleeps(settings.longest_sleep);
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        heartbeat.0.thread.store(thread, Ordering::Relaxed);
        let run = || {
            executor.run(async move {
                let wheel = Wheel::new(TICK, super::clock::now());
                let ticking = wheel.clone();
                if settings.ticker {
                    super::spawn::spawn_uncounted(async move {
                        loop {
                            glommio::timer::sleep(TICK).await;
                            heartbeat.beat();
                            ticking.advance(super::clock::now());
                        }
                    });
                }
                super::readiness::begin();
                body(wheel).await
            })
        };
        // A panic that reaches the executor ends the shard; control hears of it by the thread's result.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
    })
}

/// Lets the ring and every other task have a turn.
///
/// A task that is woken at once would not do: the runtime looks at the ring only when no task can run. A timer is
/// looked at together with the ring. One that has passed before it is first polled lets nobody in, so it is as short
/// as it can be without that happening each time.
pub async fn turn() {
    glommio::timer::sleep(Duration::from_micros(5)).await;
}

/// Waits, with the runtime's own timer: for the few places that have no deadline in the wheel.
pub async fn sleep(duration: Duration) {
    glommio::timer::sleep(duration).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn a_busy_task_that_takes_turns_keeps_nobody_from_the_ring() {
        let core = granted_cores().first().copied().unwrap_or(0);
        let shard = spawn_shard(
            "turns",
            core,
            Settings::default(),
            Heartbeat::default(),
            |wheel| async move {
                let heard = Rc::new(Cell::new(false));
                let theirs = Rc::clone(&heard);
                super::super::spawn::spawn_uncounted(async move {
                    // Both a timer of the runtime and one of the wheel, which the ticker drives.
                    sleep(TICK).await;
                    wheel.sleep(TICK).await;
                    theirs.set(true);
                });
                let mut turns = 0u64;
                while !heard.get() {
                    turns += 1;
                    turn().await;
                }
                turns
            },
        );
        assert!(shard.unwrap().join().unwrap().unwrap() > 1);
    }
}
