//! Which sockets of a shard have something to read, or room to write: one epoll set, which the ring waits for.
//!
//! The ring could wait for each socket by itself, but then every read is followed by an entry for the next one, which
//! the kernel makes, arms, completes and frees. In the set a socket is entered once. When something happens to any of
//! them the ring tells it once, and [`Set::look`] then hears of all that has happened meanwhile in one call.
//!
//! Sockets are watched for changes (EPOLLET, epoll(7)): one that was read empty is not read again before something has
//! come, and one that may have more is, without a word of the kernel's.

use super::{socket, spawn};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Most sockets that one look hears of; the next one hears of the rest.
const EVENTS_MAX: usize = 512;

/// There may be something to read.
const READ: u8 = 1;
/// There may be room to write.
const WRITE: u8 = 2;
/// The peer has closed its side, or the connection is broken: reading says so as often as it is asked.
const ENDED: u8 = 4;

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

thread_local! {
    /// This shard's set, with the executor that looks after it.
    static SET: RefCell<Option<(usize, Rc<Set>)>> = const { RefCell::new(None) };
}

/// The sockets of one shard.
struct Set {
    epoll: OwnedFd,
    watched: RefCell<Slab<Rc<State>>>,
}

/// What is known of one socket.
#[derive(Default)]
struct State {
    bits: Cell<u8>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

/// One socket's place in the set; left when dropped.
pub(super) struct Watch {
    state: Rc<State>,
    place: Option<(Rc<Set>, usize)>,
}

/// Makes the set of this shard before its first socket, so that what it takes is there from the beginning.
pub(super) fn begin() {
    // Tried again with the first socket, which then says why it cannot be watched.
    let _later = Set::here();
}

impl Set {
    /// The set of this shard, made when it is first asked for.
    fn here() -> io::Result<Rc<Self>> {
        let executor = glommio::executor().id();
        let known = SET.with_borrow(|set| match set {
            Some((of, set)) if *of == executor => Some(Rc::clone(set)),
            _ => None,
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let set = Rc::new(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: RefCell::default(),
        });
        SET.set(Some((executor, Rc::clone(&set))));
        let looking = Rc::clone(&set);
        spawn::spawn_uncounted(async move {
            let mut events = Vec::with_capacity(EVENTS_MAX);
            loop {
                // Without a descriptor for the wait there is nothing to do but to try again: the tick is soon enough.
                if socket::readable(&looking.epoll).await.is_err() {
                    super::executor::sleep(super::executor::TICK).await;
                }
                looking.look(&mut events);
            }
        });
        Ok(set)
    }

    /// Hears what has happened, and wakes who waits for it.
    fn look(&self, events: &mut Vec<Event>) {
        events.clear();
        let room = rustix::buffer::spare_capacity(events);
        // An interrupted call has lost nothing: what has happened is told by the next one.
        let _again = epoll::wait(&self.epoll, room, Some(&NOW));
        for event in events.drain(..) {
            // The data is copied out of a packed structure.
            let (data, flags) = (event.data, event.flags);
            let watched = self.watched.borrow();
            let found = usize::try_from(data.u64()).ok().and_then(|key| watched.get(key));
            let found = found.map(Rc::clone);
            drop(watched);
            if let Some(state) = found {
                state.happened(flags);
            }
        }
    }
}

impl State {
    fn happened(&self, flags: EventFlags) {
        let over = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let mut bits = self.bits.get();
        if flags.intersects(EventFlags::IN | over) {
            bits |= READ;
        }
        if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            bits |= WRITE;
        }
        if flags.intersects(over) {
            bits |= ENDED;
        }
        self.bits.set(bits);
        if bits & READ != 0
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        if bits & WRITE != 0
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
    }

    fn has(&self, bit: u8) -> bool {
        self.bits.get() & bit != 0
    }

    fn clear(&self, bit: u8) {
        self.bits.set(self.bits.get() & !bit);
    }
}

/// Has the task woken that `cx` is of, in the place of the one that waited before.
fn wait(who: &Cell<Option<Waker>>, cx: &Context<'_>) {
    let waker = match who.take() {
        Some(known) if known.will_wake(cx.waker()) => known,
        _ => cx.waker().clone(),
    };
    who.set(Some(waker));
}

impl Watch {
    /// Watches a non-blocking socket, which is closed when the result is dropped or later. One that cannot be watched
    /// is shut down, so that whoever reads from it learns that it has ended.
    pub(super) fn new(socket: &impl AsFd) -> Self {
        let state = Rc::new(State::default());
        match Set::here().and_then(|set| set.add(socket, &state)) {
            Ok(place) => Self {
                state,
                place: Some(place),
            },
            Err(error) => {
                tracing::warn!(%error, "a socket cannot be watched: its connection ends");
                let _gone_already = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
                state.bits.set(READ | WRITE | ENDED);
                Self { state, place: None }
            }
        }
    }

    /// Whether a read may bring something; without that, waits for it.
    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.has(READ) {
            return Poll::Ready(());
        }
        wait(&self.state.reader, cx);
        Poll::Pending
    }

    /// Whether nothing has come since the socket was last read empty, as far as the shard has heard.
    pub(super) fn is_quiet(&self) -> bool {
        !self.state.has(READ)
    }

    /// Notes that a read has taken less than there was room for, so that there is no more, unless it is the end.
    pub(super) fn read_short(&self) {
        if !self.state.has(ENDED) {
            self.state.clear(READ);
        }
    }

    /// Notes that there was nothing to read, and waits.
    pub(super) fn wait_read(&self, cx: &Context<'_>) {
        self.state.clear(READ | ENDED);
        wait(&self.state.reader, cx);
    }

    /// Whether there may be room to write, or the connection that is being made is there; without that, waits for it.
    pub(super) fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.has(WRITE) {
            return Poll::Ready(());
        }
        wait(&self.state.writer, cx);
        Poll::Pending
    }

    /// Notes that there was no room to write, and waits.
    pub(super) fn wait_write(&self, cx: &Context<'_>) {
        self.state.clear(WRITE);
        wait(&self.state.writer, cx);
    }
}

impl Set {
    fn add(self: Rc<Self>, socket: &impl AsFd, state: &Rc<State>) -> io::Result<(Rc<Self>, usize)> {
        let key = self.watched.borrow_mut().insert(Rc::clone(state));
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        match epoll::add(&self.epoll, socket, EventData::new_u64(key as u64), flags) {
            Ok(()) => Ok((self, key)),
            Err(error) => {
                let _unwatched = self.watched.borrow_mut().try_remove(key);
                Err(error.into())
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The set forgets the socket by itself when it is closed. What it tells of it in between finds nobody here.
        if let Some((set, key)) = self.place.take() {
            let _state = set.watched.borrow_mut().try_remove(key);
        }
    }
}
