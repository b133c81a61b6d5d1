//! Turns: so many at a time, and the others in the order in which they came.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The turns that there are.
pub(super) struct Turns {
    free: Cell<u32>,
    waiting: RefCell<VecDeque<Rc<Place>>>,
}

/// One that waits.
#[derive(Default)]
struct Place {
    is_next: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A turn, which goes to the next when this is dropped.
pub(super) struct Turn(Rc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

/// The claim of one that waits: what it was given goes on when it has gone away.
struct Claim {
    turns: Rc<Turns>,
    place: Rc<Place>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.place.is_next.get() {
            return self.turns.pass_on();
        }
        let mut waiting = self.turns.waiting.borrow_mut();
        waiting.retain(|place| !Rc::ptr_eq(place, &self.place));
    }
}

impl Turns {
    /// So many at a time.
    pub(super) fn new(most: u32) -> Rc<Self> {
        Rc::new(Self {
            free: Cell::new(most),
            waiting: RefCell::default(),
        })
    }

    /// Waits for a turn.
    pub(super) async fn take(self: &Rc<Self>) -> Turn {
        if let Some(less) = self.free.get().checked_sub(1) {
            self.free.set(less);
            return Turn(Rc::clone(self));
        }
        let place = Rc::<Place>::default();
        self.waiting.borrow_mut().push_back(Rc::clone(&place));
        let claim = Claim {
            turns: Rc::clone(self),
            place,
        };
        poll_fn(|cx| {
            if claim.place.is_next.get() {
                return Poll::Ready(());
            }
            *claim.place.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        // It is taken: the claim has none to pass on.
        claim.place.is_next.set(false);
        Turn(Rc::clone(self))
    }

    fn pass_on(&self) {
        let next = self.waiting.borrow_mut().pop_front();
        let Some(next) = next else {
            return self.free.set(self.free.get() + 1);
        };
        next.is_next.set(true);
        let waker = next.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn turns_go_around_in_order_and_past_those_that_have_gone_away() {
        let turns = Turns::new(1);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(turns.take()).poll(&mut cx) else {
            panic!("it is free");
        };
        let mut second = Box::pin(turns.take());
        let mut third = Box::pin(turns.take());
        let mut fourth = Box::pin(turns.take());
        for waits in [&mut second, &mut third, &mut fourth] {
            assert!(waits.as_mut().poll(&mut cx).is_pending());
        }
        drop(third);
        drop(first);
        assert!(fourth.as_mut().poll(&mut cx).is_pending());
        // It was given the turn, and goes away without a look.
        drop(second);
        let Poll::Ready(turn) = fourth.as_mut().poll(&mut cx) else {
            panic!("it is the next");
        };
        drop(turn);
        assert_eq!((turns.free.get(), turns.waiting.borrow().len()), (1, 0));
    }
}
