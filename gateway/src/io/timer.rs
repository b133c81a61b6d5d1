//! Deadlines: a wheel of slots that the shard's ticker turns.
//!
//! A request sets several deadlines and reaches almost none of them, so setting one must cost a store: a [`Timer`]
//! stays in the slot where it was first put and is put anew only when the wheel comes by. Deadlines are met within a
//! tick.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

const SLOTS: usize = 512;
const NEVER: u64 = u64::MAX;

struct Entry {
    due: u64,
    /// Ticks that the deadline was last set to, for [`Timer::extend`]; 0 when it is not set.
    span: u64,
    /// The tick at which the wheel comes by, when the entry is in a slot.
    filed: u64,
    place: Option<(u32, u32)>,
    waker: Option<Waker>,
}

struct State {
    now: u64,
    start: Instant,
    tick: Duration,
    entries: slab::Slab<Entry>,
    slots: Vec<Vec<u32>>,
}

/// A shard's wheel.
#[derive(Clone)]
pub struct Wheel {
    state: Rc<RefCell<State>>,
}

impl State {
    fn file(&mut self, key: u32, at: u64) {
        let slot = (at % SLOTS as u64) as usize;
        if let (Some(list), Some(entry)) = (self.slots.get_mut(slot), self.entries.get_mut(key as usize)) {
            entry.place = Some((slot as u32, list.len() as u32));
            entry.filed = at;
            list.push(key);
        }
    }

    fn unfile(&mut self, key: u32) {
        let Some((slot, position)) = self
            .entries
            .get_mut(key as usize)
            .and_then(|entry| entry.place.take())
        else {
            return;
        };
        let Some(list) = self.slots.get_mut(slot as usize) else {
            return;
        };
        list.swap_remove(position as usize);
        if let Some(&moved) = list.get(position as usize)
            && let Some(entry) = self.entries.get_mut(moved as usize)
        {
            entry.place = Some((slot, position));
        }
    }

    /// The next tick at which an entry that is due at `due` must be looked at: its own, or one turn from now.
    fn visit(&self, due: u64) -> u64 {
        due.clamp(self.now + 1, self.now + SLOTS as u64 - 1)
    }
}

impl Wheel {
    /// A wheel that stands at `now`.
    pub fn new(tick: Duration, now: Instant) -> Self {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        let state = State {
            now: 0,
            start: now,
            tick,
            entries: slab::Slab::new(),
            slots,
        };
        Self {
            state: Rc::new(RefCell::new(state)),
        }
    }

    /// Turns the wheel to `now` and wakes what is due.
    pub fn advance(&self, now: Instant) {
        let mut wakers = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            let elapsed =
                now.saturating_duration_since(state.start).as_nanos() / state.tick.as_nanos().max(1);
            let target = u64::try_from(elapsed).unwrap_or(u64::MAX);
            while state.now < target {
                state.now += 1;
                let slot = (state.now % SLOTS as u64) as usize;
                let visited = state.slots.get_mut(slot).map(std::mem::take).unwrap_or_default();
                for key in visited {
                    let now = state.now;
                    let Some(entry) = state.entries.get_mut(key as usize) else {
                        continue;
                    };
                    entry.place = None;
                    if entry.due <= now {
                        wakers.extend(entry.waker.take());
                    } else if entry.due != NEVER {
                        let at =
                            state.visit(state.entries.get(key as usize).map_or(NEVER, |entry| entry.due));
                        state.file(key, at);
                    }
                }
            }
        }
        // Woken without the borrow: that may run code of its own.
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes everything that waits for a timer, so that it looks at the world anew (drain).
    pub fn wake_all(&self) {
        let wakers: Vec<Waker> = self
            .state
            .borrow_mut()
            .entries
            .iter_mut()
            .filter_map(|(_, entry)| entry.waker.take())
            .collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A timer that is not set.
    pub fn timer(&self) -> Timer {
        let entry = Entry {
            due: NEVER,
            span: 0,
            filed: NEVER,
            place: None,
            waker: None,
        };
        let key = self.state.borrow_mut().entries.insert(entry);
        Timer {
            wheel: self.clone(),
            key: key as u32,
        }
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        let timer = self.timer();
        timer.set(duration);
        std::future::poll_fn(|cx| timer.poll(cx)).await;
    }
}

/// One deadline that can be set again and again.
pub struct Timer {
    wheel: Wheel,
    key: u32,
}

impl Timer {
    /// Sets the deadline `duration` from now; zero means never.
    pub fn set(&self, duration: Duration) {
        let mut state = self.wheel.state.borrow_mut();
        let ticks = duration.as_nanos().div_ceil(state.tick.as_nanos().max(1));
        if let Some(entry) = state.entries.get_mut(self.key as usize) {
            entry.span = u64::try_from(ticks).unwrap_or(NEVER);
        }
        self.arm(&mut state);
    }

    /// Sets the deadline anew to the duration that it was last set to: something has moved.
    pub fn extend(&self) {
        self.arm(&mut self.wheel.state.borrow_mut());
    }

    fn arm(&self, state: &mut State) {
        let now = state.now;
        let Some(entry) = state.entries.get_mut(self.key as usize) else {
            return;
        };
        // One tick more, because the present one is partly over.
        let due = if entry.span == 0 {
            NEVER
        } else {
            now.saturating_add(entry.span).saturating_add(1)
        };
        entry.due = due;
        let filed_in_time = entry.place.is_some() && entry.filed <= due;
        if due != NEVER && !filed_in_time {
            let visit = state.visit(due);
            state.unfile(self.key);
            state.file(self.key, visit);
        }
    }

    /// Takes the deadline away.
    pub fn clear(&self) {
        self.set(Duration::ZERO);
    }

    /// Whether there is a deadline.
    pub fn is_set(&self) -> bool {
        let state = self.wheel.state.borrow();
        state
            .entries
            .get(self.key as usize)
            .is_some_and(|entry| entry.due != NEVER)
    }

    /// Whether the deadline has passed.
    pub fn is_due(&self) -> bool {
        let state = self.wheel.state.borrow();
        state
            .entries
            .get(self.key as usize)
            .is_some_and(|entry| entry.due <= state.now)
    }

    /// Ready once the deadline has passed.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.wheel.state.borrow_mut();
        let now = state.now;
        let Some(entry) = state.entries.get_mut(self.key as usize) else {
            return Poll::Pending;
        };
        if entry.due <= now {
            return Poll::Ready(());
        }
        match &entry.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => entry.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // The waker is dropped after the borrow ends: it may own the task that owns other timers.
        let _waker = {
            let mut state = self.wheel.state.borrow_mut();
            state.unfile(self.key);
            state
                .entries
                .try_remove(self.key as usize)
                .and_then(|entry| entry.waker)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(10);

    fn wheel() -> (Wheel, Instant) {
        let start = crate::io::clock::now();
        (Wheel::new(TICK, start), start)
    }

    #[test]
    fn deadlines_are_met_within_two_ticks_and_never_early() {
        let (wheel, start) = wheel();
        for ms in [1u64, 10, 50, 5_110, 5_120, 5_130, 60_000, 3_600_000] {
            let timer = wheel.timer();
            let base = wheel.state.borrow().now * 10;
            timer.set(Duration::from_millis(ms));
            wheel.advance(start + Duration::from_millis(base + ms - 1));
            assert!(!timer.is_due(), "{ms} ms fired early");
            wheel.advance(start + Duration::from_millis(base + ms + 20));
            assert!(timer.is_due(), "{ms} ms is late");
        }
    }

    #[test]
    fn a_deadline_can_move_both_ways() {
        let (wheel, start) = wheel();
        let timer = wheel.timer();
        timer.set(Duration::from_secs(60));
        timer.set(Duration::from_millis(30));
        wheel.advance(start + Duration::from_millis(60));
        assert!(timer.is_due());
        timer.set(Duration::from_millis(20));
        timer.set(Duration::from_secs(60));
        wheel.advance(start + Duration::from_secs(30));
        assert!(!timer.is_due());
        timer.clear();
        wheel.advance(start + Duration::from_secs(600));
        assert!(!timer.is_due());
    }

    #[test]
    fn random_timers_fire_when_a_naive_list_says() {
        for seed in 0..50 {
            let mut random = isthmus_core::random::Random::from_seed(seed);
            let (wheel, start) = wheel();
            let timers: Vec<Timer> = (0..64).map(|_| wheel.timer()).collect();
            let mut due = [NEVER; 64];
            let mut now = 0u64;
            for _ in 0..2000 {
                let which = random.below(64) as usize;
                match random.below(4) {
                    0 => {
                        timers[which].clear();
                        due[which] = NEVER;
                    }
                    1 | 2 => {
                        let ms = 1 + random.below(20_000);
                        timers[which].set(Duration::from_millis(ms));
                        due[which] = now + ms.div_ceil(10) + 1;
                    }
                    _ => now += random.below(700),
                }
                wheel.advance(start + TICK * now as u32);
                for (timer, due) in timers.iter().zip(due) {
                    assert_eq!(timer.is_due(), due <= now, "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn dropped_timers_leave_nothing_behind() {
        let (wheel, start) = wheel();
        for _ in 0..100 {
            let timers: Vec<Timer> = (0..10).map(|_| wheel.timer()).collect();
            timers
                .iter()
                .for_each(|timer| timer.set(Duration::from_millis(70)));
        }
        assert!(wheel.state.borrow().entries.is_empty());
        assert!(wheel.state.borrow().slots.iter().all(Vec::is_empty));
        wheel.advance(start + Duration::from_secs(1));
    }
}
