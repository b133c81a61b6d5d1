//! Accepting: takes connections from a listening socket in batches, within limits.

use super::{Shard, connection};
use crate::io::spawn;
use crate::io::stream::Stream;
use crate::io::{executor, socket};
use crate::proxy::ListenerState;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Connections taken in one go, before others get a turn.
const BATCH: usize = 64;
/// Connections taken from the queue of a listener that closes.
const LAST_MAX: usize = 4096;
/// How long accepting rests when the process is out of file descriptors, or buffers are at their bound: asking again at
/// once would spin.
const REST: Duration = Duration::from_millis(50);

/// How many connections the shard has and may have.
pub(super) struct Limits {
    max: u64,
    open: Rc<Cell<u64>>,
    /// Sockets that are accepted from: what waits on one that closes is still taken.
    sockets: Rc<Cell<u64>>,
    /// Accepting tasks that wait for a connection to end.
    waiting: Rc<RefCell<Vec<Waker>>>,
}

/// One open connection; wakes those that wait for room when dropped.
pub(super) struct Counted {
    open: Rc<Cell<u64>>,
    waiting: Rc<RefCell<Vec<Waker>>>,
}

impl Limits {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max: max as u64,
            open: Rc::default(),
            sockets: Rc::default(),
            waiting: Rc::default(),
        }
    }

    pub(super) fn connections(&self) -> u64 {
        self.open.get()
    }

    /// Whether there is no connection, and none to come.
    pub(super) fn is_at_rest(&self) -> bool {
        self.open.get() == 0 && self.sockets.get() == 0
    }

    fn count(&self) -> Counted {
        self.open.set(self.open.get() + 1);
        Counted {
            open: Rc::clone(&self.open),
            waiting: Rc::clone(&self.waiting),
        }
    }

    /// Waits until there is room for another connection.
    async fn room(&self) {
        poll_fn(|cx| {
            if self.open.get() < self.max {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.set(self.open.get().saturating_sub(1));
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[derive(Default)]
struct Stop {
    stopped: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps a listener accepting; dropping it closes the listening socket.
pub(super) struct Guard(Rc<Stop>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stopped.set(true);
        let waker = self.0.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Counts a socket that is accepted from, as long as it lives.
struct Accepting(Rc<Cell<u64>>);

impl Accepting {
    fn new(count: &Rc<Cell<u64>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Starts accepting from a socket.
pub(super) fn start(shard: &Rc<Shard>, bound: OwnedFd, state: Rc<ListenerState>) -> Guard {
    let stop = Rc::new(Stop::default());
    let (shard, stopped) = (Rc::clone(shard), Rc::clone(&stop));
    let tasks = Rc::clone(&shard.context.tasks);
    let sockets = Accepting::new(&shard.accepting.sockets);
    spawn::spawn(&tasks, async move {
        let _sockets = sockets;
        let mut accepting = pin!(accept_all(&shard, &bound, &state));
        poll_fn(|cx| {
            if stopped.stopped.get() {
                return Poll::Ready(());
            }
            *stopped.waker.borrow_mut() = Some(cx.waker().clone());
            accepting.as_mut().poll(cx)
        })
        .await;
        // Those whose handshake is done already would be reset with the listening socket.
        let mut last = Vec::new();
        if socket::accept_waiting(&bound, LAST_MAX, &mut last).is_ok() {
            serve_all(&shard, &state, &mut last);
        }
    });
    Guard(stop)
}

fn serve_all(shard: &Rc<Shard>, state: &Rc<ListenerState>, accepted: &mut Vec<(OwnedFd, SocketAddr)>) {
    for (fd, peer) in accepted.drain(..) {
        shard.context.stats.borrow_mut().counters.downstream_connections += 1;
        let counted = shard.accepting.count();
        let (context, state) = (Rc::clone(&shard.context), Rc::clone(state));
        let drain = Rc::clone(&state.drain);
        let stream = Stream::from_fd(fd);
        spawn::spawn(
            &shard.context.tasks,
            connection::serve(context, state, stream, peer, drain, counted),
        );
    }
}

async fn accept_all(shard: &Rc<Shard>, bound: &OwnedFd, state: &Rc<ListenerState>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        shard.accepting.room().await;
        if !shard.context.bounds.accepts(shard.context.load()) {
            shard.context.stats.borrow_mut().counters.accept_rests += 1;
            executor::sleep(REST).await;
            continue;
        }
        let room = shard.accepting.max.saturating_sub(shard.accepting.open.get());
        let max = BATCH.min(usize::try_from(room).unwrap_or(BATCH)).max(1);
        if socket::accept(bound, max, &mut batch).await.is_err() {
            shard.context.stats.borrow_mut().counters.accept_errors += 1;
            executor::sleep(REST).await;
            continue;
        }
        serve_all(shard, state, &mut batch);
    }
}
