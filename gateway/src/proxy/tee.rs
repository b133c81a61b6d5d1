//! What is kept of a request's body on its way to the upstream: for another attempt, and for mirrors.
//!
//! Nothing waits for a body here. While the first attempt's upload runs, what it takes is copied, as far as a retry could
//! need it and up to a bound; a body that is longer is sent once. Mirrors get each piece when the upstream has taken it,
//! through a [`Pipe`] of a bounded size. Where neither is asked for, no byte is copied.

use super::Context;
use bytes::Bytes;
use isthmus_core::header::HeaderList;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};

/// Whether what was taken from the client can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// Nobody has asked for it.
    Nothing,
    /// All of it is there.
    All,
    /// It was more than is kept.
    Lost,
}

/// The copies of one request's body.
pub(super) struct Tee {
    kept: Vec<u8>,
    keeps: Keeps,
    /// Most bytes of this body.
    most: usize,
    /// Bytes that all bodies of the shard keep, and the most of them.
    all: Rc<Cell<usize>>,
    most_of_all: usize,
    mirrors: Vec<Rc<Pipe>>,
}

impl Tee {
    /// One that keeps nothing yet.
    pub(super) fn new(context: &Context) -> Self {
        Self {
            kept: Vec::new(),
            keeps: Keeps::Nothing,
            most: context.settings.retry_buffer_bytes,
            all: Rc::clone(&context.kept_bytes),
            most_of_all: context.settings.retry_buffer_total_bytes,
            mirrors: Vec::new(),
        }
    }

    /// Keeps the body from here on, until [`Self::release`].
    pub(super) fn keep(&mut self) {
        self.keeps = Keeps::All;
    }

    /// Whether what was taken from the client, if anything was, is there to be sent again.
    pub(super) fn is_whole(&self) -> bool {
        self.keeps == Keeps::All
    }

    /// Whether the body was longer than what is kept.
    pub(super) fn is_lost(&self) -> bool {
        self.keeps == Keeps::Lost
    }

    /// What is kept.
    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// Copies the body to one more mirror.
    pub(super) fn add(&mut self, mirror: Rc<Pipe>) {
        self.mirrors.push(mirror);
    }

    /// The upstream has taken this from the client.
    pub(super) fn record(&mut self, data: &[u8]) {
        if self.keeps == Keeps::All {
            let fits =
                self.kept.len() + data.len() <= self.most && self.all.get() + data.len() <= self.most_of_all;
            if fits {
                self.kept.extend_from_slice(data);
                self.all.set(self.all.get() + data.len());
            } else {
                self.forget();
                self.keeps = Keeps::Lost;
            }
        }
        if !self.mirrors.is_empty() {
            let piece = Bytes::copy_from_slice(data);
            self.mirrors.iter().for_each(|mirror| mirror.push(piece.clone()));
        }
    }

    /// All of the body is sent as one: mirrors get it as one, too.
    pub(super) fn record_whole(&mut self, whole: &[u8]) {
        if self.mirrors.is_empty() {
            return;
        }
        let piece = Bytes::copy_from_slice(whole);
        self.mirrors.iter().for_each(|mirror| mirror.push(piece.clone()));
        self.end(&HeaderList::default());
    }

    /// The body is complete.
    pub(super) fn end(&mut self, trailers: &HeaderList) {
        for mirror in self.mirrors.drain(..) {
            mirror.end(trailers);
        }
    }

    /// No attempt will follow. What is kept stays as long as it is still being sent.
    pub(super) fn release(&mut self, is_being_sent: bool) {
        self.keeps = Keeps::Nothing;
        if !is_being_sent {
            self.forget();
        }
    }

    /// The exchange is over; a mirror that has not got all of the body gets no more.
    pub(super) fn clear(&mut self) {
        self.release(false);
        for mirror in self.mirrors.drain(..) {
            mirror.cut("incomplete");
        }
    }

    fn forget(&mut self) {
        self.all.set(self.all.get().saturating_sub(self.kept.len()));
        self.kept = Vec::new();
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.clear();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Cut(&'static str),
}

/// A body on its way to a mirror. What is put in never waits: a mirror that falls behind is cut off.
pub(super) struct Pipe {
    queue: RefCell<VecDeque<Bytes>>,
    queued: Cell<usize>,
    most: usize,
    state: Cell<State>,
    trailers: RefCell<HeaderList>,
    waker: RefCell<Option<Waker>>,
}

/// What a piece costs beside its bytes, so that many tiny ones do not pass for little.
const PIECE_COST: usize = 64;

impl Pipe {
    /// An empty pipe that holds at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self {
            queue: RefCell::default(),
            queued: Cell::new(0),
            most,
            state: Cell::new(State::Open),
            trailers: RefCell::default(),
            waker: RefCell::default(),
        }
    }

    /// Puts a piece in.
    pub(super) fn push(&self, piece: Bytes) {
        if self.state.get() != State::Open || piece.is_empty() {
            return;
        }
        let queued = self.queued.get() + piece.len() + PIECE_COST;
        if queued > self.most && !self.queue.borrow().is_empty() {
            return self.cut("slow");
        }
        self.queued.set(queued);
        self.queue.borrow_mut().push_back(piece);
        self.wake();
    }

    /// Nothing more comes.
    pub(super) fn end(&self, trailers: &HeaderList) {
        if self.state.get() == State::Open {
            self.trailers.borrow_mut().clone_from(trailers);
            self.state.set(State::Ended);
            self.wake();
        }
    }

    /// Ends it before its end, for this reason.
    pub(super) fn cut(&self, reason: &'static str) {
        if self.state.get() == State::Open {
            self.state.set(State::Cut(reason));
            self.queue.borrow_mut().clear();
            self.queued.set(0);
            self.wake();
        }
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Why it was cut off, if it was.
    pub(super) fn reason(&self) -> Option<&'static str> {
        match self.state.get() {
            State::Cut(reason) => Some(reason),
            State::Open | State::Ended => None,
        }
    }

    /// Whether everything that will ever be in it is or was in it.
    pub(super) fn is_ended(&self) -> bool {
        self.state.get() == State::Ended
    }

    /// The next piece, or None at the end; an error when it was cut off.
    pub(super) fn poll_piece(&self, cx: &mut TaskContext<'_>) -> Poll<Result<Option<Bytes>, ()>> {
        if let Some(piece) = self.queue.borrow_mut().pop_front() {
            self.queued
                .set(self.queued.get().saturating_sub(piece.len() + PIECE_COST));
            return Poll::Ready(Ok(Some(piece)));
        }
        match self.state.get() {
            State::Ended => Poll::Ready(Ok(None)),
            State::Cut(_) => Poll::Ready(Err(())),
            State::Open => {
                self.listen(cx);
                Poll::Pending
            }
        }
    }

    /// Has the task woken by whatever comes next.
    pub(super) fn listen(&self, cx: &mut TaskContext<'_>) {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
    }

    /// The trailers of a body that has ended.
    pub(super) fn trailers(&self, into: &mut HeaderList) {
        into.clone_from(&self.trailers.borrow());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tee(most: usize, all: &Rc<Cell<usize>>) -> Tee {
        Tee {
            kept: Vec::new(),
            keeps: Keeps::Nothing,
            most,
            all: Rc::clone(all),
            most_of_all: 10,
            mirrors: Vec::new(),
        }
    }

    fn take(pipe: &Pipe) -> Poll<Result<Option<Bytes>, ()>> {
        pipe.poll_piece(&mut TaskContext::from_waker(Waker::noop()))
    }

    #[test]
    fn what_is_kept_is_bounded_for_each_and_for_all() {
        let all = Rc::new(Cell::new(0));
        let (mut one, mut other, mut unasked) = (tee(6, &all), tee(6, &all), tee(6, &all));
        one.keep();
        other.keep();
        for part in ["abc", "def"] {
            one.record(part.as_bytes());
            unasked.record(part.as_bytes());
        }
        assert!(one.is_whole() && one.kept() == b"abcdef");
        assert!(!unasked.is_whole() && !unasked.is_lost() && unasked.kept().is_empty());
        other.record(b"12345");
        assert!(
            other.is_lost() && other.kept().is_empty(),
            "beyond what all may keep"
        );
        assert_eq!(all.get(), 6);
        one.record(b"g");
        assert!(one.is_lost());
        assert_eq!(all.get(), 0, "given back");
        let mut third = tee(6, &all);
        third.keep();
        third.record(b"x");
        third.release(true);
        assert_eq!((third.kept(), third.is_whole()), (&b"x"[..], false));
        drop(third);
        assert_eq!(all.get(), 0);
    }

    #[test]
    fn a_mirror_that_falls_behind_is_cut_off_and_one_that_does_not_gets_everything() {
        let all = Rc::new(Cell::new(0));
        let (slow, fast) = (Rc::new(Pipe::new(200)), Rc::new(Pipe::new(200)));
        let mut tee = tee(0, &all);
        tee.add(Rc::clone(&slow));
        tee.add(Rc::clone(&fast));
        for _ in 0..20 {
            tee.record(b"0123456789");
            assert_eq!(
                take(&fast),
                Poll::Ready(Ok(Some(Bytes::from_static(b"0123456789"))))
            );
        }
        assert_eq!((slow.reason(), fast.reason()), (Some("slow"), None));
        assert_eq!(take(&slow), Poll::Ready(Err(())));
        assert_eq!(take(&fast), Poll::Pending);
        tee.end(&HeaderList::default());
        assert_eq!(take(&fast), Poll::Ready(Ok(None)));
        assert_eq!(fast.reason(), None);
        let left = Rc::new(Pipe::new(200));
        tee.add(Rc::clone(&left));
        drop(tee);
        assert_eq!(left.reason(), Some("incomplete"));
    }
}
