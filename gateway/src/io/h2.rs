//! HTTP/2 on a shard's sockets: the bytes of a connection, and bodies as the proxy moves them.
//!
//! The protocol is a state machine that knows no socket (`isthmus_core::h2`). A connection's own task has a [`Mover`],
//! which reads and writes for it, in as few system calls as the socket allows: what all streams have said since it last
//! ran goes out together. Everybody else has a [`Link`] to it, and an [`Exchange`] for each stream, which works for
//! either side of the gateway as `MessageReader` and `MessageWriter` do for HTTP/1.1. Memory is bounded by the windows:
//! what was not passed on gives the peer no room for more, and what the peer has no room for is not taken.

use super::buffer::{Pool, ReadBuffer};
use super::clock;
use super::executor;
use super::h1::{Chunk, ReadError};
use super::stream::Stream;
use isthmus_core::h1::body::may_trail;
use isthmus_core::h2::frame::code;
use isthmus_core::h2::head::write_trailers;
use isthmus_core::h2::{Connection, Failure, Fields, Holder, Key, Options};
use isthmus_core::header::HeaderList;
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

/// What a peer may have done in one turn of its connection's task, before the shard's other tasks have theirs: bytes
/// that were read, and what they were work beside.
const TURN: usize = 64 * 1024;
/// Output that is written although more may come at once.
const WRITE_AT: usize = 32 * 1024;

/// Who waits for a stream.
#[derive(Default)]
pub struct Waiter(Option<Waker>);

impl Holder for Waiter {
    fn tell(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

/// How much of its turn a peer has used up. Who always has more to say than was read would else never wait for the
/// ring, and with it nobody else's bytes would be seen.
#[derive(Default)]
struct Turn {
    used: usize,
    /// Runs while others have theirs.
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Turn {
    /// Ready when this one may go on.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.used >= TURN {
            let pause = self.pause.get_or_insert_with(|| Box::pin(executor::turn()));
            ready!(pause.as_mut().poll(cx));
            self.end();
        }
        Poll::Ready(())
    }

    /// The task waits, for whatever it may be.
    fn end(&mut self) {
        self.used = 0;
        self.pause = None;
    }
}

/// A connection, as its streams see it.
pub struct Link {
    engine: RefCell<Connection<Waiter>>,
    /// The task that moves its bytes, if it waits.
    mover: RefCell<Option<Waker>>,
    pool: Pool,
    /// What the pool knows of the bytes that are held.
    held: Cell<usize>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.pool.holds(self.held.get(), 0);
    }
}

impl Link {
    /// What is known of the connection.
    pub fn engine(&self) -> Ref<'_, Connection<Waiter>> {
        self.engine.borrow()
    }

    /// The same, to do something with it, after which [`Self::kick`] comes.
    pub fn engine_mut(&self) -> RefMut<'_, Connection<Waiter>> {
        self.engine.borrow_mut()
    }

    /// Sees to it that what was said is sent, and that it is known what is held.
    pub fn kick(&self) {
        let engine = self.engine.borrow();
        self.count(&engine);
        if (!engine.output().is_empty() || engine.is_over())
            && let Some(waker) = self.mover.take()
        {
            waker.wake();
        }
    }

    fn count(&self, engine: &Connection<Waiter>) {
        let held = engine.held_bytes();
        self.pool.holds(self.held.replace(held), held);
    }

    /// Opens no more streams, and lets those that there are end.
    pub fn retire(&self) {
        self.engine.borrow_mut().retire();
        self.kick();
    }

    /// Has the task woken when something about the stream changes.
    fn register(&self, key: Key, cx: &Context<'_>) {
        let mut engine = self.engine.borrow_mut();
        let Some(Waiter(waiter)) = engine.holder(key) else {
            return;
        };
        if waiter.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return;
        }
        let before = waiter.replace(cx.waker().clone());
        // Whatever goes with it may want the connection.
        drop(engine);
        drop(before);
    }
}

/// Moves the bytes of a connection, in the task that owns it.
pub struct Mover {
    link: Rc<Link>,
    stream: Rc<Stream>,
    pool: Pool,
    /// What was read of it before.
    begun: ReadBuffer,
    /// The turns of the peer, which others must not suffer from.
    turn: Turn,
    /// Whether large reads are worth it.
    is_bulk: bool,
    /// Whether the stream takes nothing any more.
    is_broken: bool,
    /// Whether nothing comes any more.
    is_ended: bool,
    wrote: u64,
}

impl Drop for Mover {
    fn drop(&mut self) {
        // However its task ends: nobody waits for what does not come.
        self.link.engine.borrow_mut().closed();
    }
}

impl Mover {
    /// Takes over the reading and writing of an upstream's stream.
    pub fn to_server(stream: Rc<Stream>, pool: &Pool, options: Options) -> Self {
        Self::new(stream, ReadBuffer::new(pool), options)
    }

    /// Takes over the reading and writing of a client's stream from which `begun` was read already.
    pub fn to_client(stream: Rc<Stream>, begun: ReadBuffer, options: Options) -> Self {
        Self::new(stream, begun, options)
    }

    fn new(stream: Rc<Stream>, begun: ReadBuffer, options: Options) -> Self {
        let pool = begun.pool().clone();
        Self {
            link: Rc::new(Link {
                engine: RefCell::new(Connection::new(options, clock::now())),
                mover: RefCell::default(),
                pool: pool.clone(),
                held: Cell::new(0),
            }),
            stream,
            pool,
            begun,
            turn: Turn::default(),
            is_bulk: false,
            is_broken: false,
            is_ended: false,
            wrote: 0,
        }
    }

    /// The connection.
    pub fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// Bytes that the stream has taken.
    pub fn wrote(&self) -> u64 {
        self.wrote
    }

    /// Moves what there is, both ways; ready when a client has opened a stream, or nothing will come or go any more.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let (is_over, has_opened, has_much) = {
                let engine = self.link.engine.borrow();
                let has_much = engine.output().len() >= WRITE_AT;
                (engine.is_over(), engine.has_opened(), has_much)
            };
            if is_over {
                ready!(self.poll_write(cx));
                return Poll::Ready(());
            }
            if has_opened {
                return Poll::Ready(());
            }
            if has_much && self.poll_write(cx).is_pending() && self.link.engine.borrow().is_clogged() {
                return Poll::Pending;
            }
            let was_clogged = self.link.engine.borrow().is_clogged();
            if self.poll_read(cx).is_ready() {
                continue;
            }
            // What is said from here on wakes this task again.
            let waker = cx.waker().clone();
            let _before = self.link.mover.replace(Some(waker));
            let _what_is_left_waits = self.poll_write(cx);
            let engine = self.link.engine.borrow();
            // Writing may have freed what reading waited for.
            if !engine.is_over() && (!was_clogged || engine.is_clogged()) {
                return Poll::Pending;
            }
        }
    }

    /// Reads a piece and shows it to the protocol; ready when there was one, or the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_ended || self.link.engine.borrow().is_clogged() {
            return Poll::Pending;
        }
        ready!(self.turn.poll(cx));
        let there = self.begun.data();
        let mut engine;
        let (read, is_full) = if there.is_empty() {
            let mut block = None;
            let read = match self.stream.poll_readable(cx) {
                Poll::Ready(()) => {
                    let block = block.insert(self.pool.lend(self.is_bulk));
                    self.stream.poll_read(cx, &mut block.bytes)
                }
                Poll::Pending => Poll::Pending,
            };
            let (Poll::Ready(read), Some(block)) = (read, block) else {
                self.turn.end();
                return Poll::Pending;
            };
            // A connection that fails has ended: what it was said before is still there.
            let read = read.unwrap_or(0);
            engine = self.link.engine.borrow_mut();
            engine.receive(block.bytes.get(..read).unwrap_or_default(), clock::now());
            (read, read >= block.bytes.len() / 8 * 7)
        } else {
            engine = self.link.engine.borrow_mut();
            engine.receive(there, clock::now());
            let read = there.len();
            self.begun.consume(read);
            (read, false)
        };
        if read == 0 {
            self.is_ended = true;
            engine.closed();
        }
        self.link.count(&engine);
        let work = engine.take_work();
        // What is much work comes in small pieces, so that turns stay short.
        self.is_bulk = is_full && work <= read;
        self.turn.used += read + work;
        Poll::Ready(())
    }

    /// Writes what there is; pending when the stream does not take it. One that has gone takes all and loses it: what
    /// its peer said before, such as which requests it has not looked at, is still to be read, and the end behind that.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut engine = self.link.engine.borrow_mut();
        loop {
            let output = engine.output();
            if output.is_empty() {
                if !self.is_broken && ready!(self.stream.poll_flush(cx)).is_err() {
                    self.is_broken = true;
                    self.stream.abort();
                }
                self.link.count(&engine);
                return Poll::Ready(());
            }
            let mut taken = output.len();
            if !self.is_broken {
                match ready!(self.stream.poll_write(cx, &[IoSlice::new(output)])) {
                    Ok(written) => {
                        taken = written;
                        self.wrote += written as u64;
                    }
                    Err(_) => {
                        self.is_broken = true;
                        self.stream.abort();
                    }
                }
            }
            engine.sent(taken);
        }
    }
}

/// How the end of a stream looks to who reads a message: whether the peer has said that it did nothing with it.
fn read_error(failure: Failure) -> ReadError {
    match failure {
        Failure::Reset(code::REFUSED_STREAM) => ReadError::Refused,
        Failure::Reset(_) | Failure::Given => ReadError::Reset,
        // Whatever a GOAWAY is about, only those streams fail with it that the peer says it never looked at (RFC 9113,
        // 6.8); the others get their answers, or fail as the connection does.
        Failure::LeftOut => ReadError::LeftOut,
        Failure::Over => ReadError::Closed { clean: false },
    }
}

fn broken(_: Failure) -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// One stream of a connection: data comes out of it and goes into it. It is reset when it is dropped before its end.
pub struct Exchange {
    link: Rc<Link>,
    key: Key,

    /// Data that has come, of which the first `at` bytes were passed on.
    chunk: Vec<u8>,
    at: usize,
    /// Nothing comes behind `chunk` any more, and the trailers are there.
    ended: bool,
    trailers: Option<Box<Fields>>,
    /// Whether the user knows that nothing comes any more.
    is_told: bool,
    passed_on: u64,

    /// How much of the body is still to be sent, when its head has said so.
    left: Option<u64>,
    /// Whether everything was sent.
    is_sent: bool,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut engine = self.link.engine.borrow_mut();
        let unread = self.chunk.len() - self.at;
        if unread > 0 {
            engine.passed_on(self.key, unread);
        }
        if let Some(trailers) = self.trailers.take() {
            engine.recycle(trailers);
        }
        let holder = engine.release(self.key);
        drop(engine);
        drop(holder);
        self.link.kick();
    }
}

impl Exchange {
    /// A stream that somebody has opened, and that nobody else holds.
    pub fn new(link: &Rc<Link>, key: Key) -> Self {
        Self {
            link: Rc::clone(link),
            key,
            chunk: Vec::new(),
            at: 0,
            ended: false,
            trailers: None,
            is_told: false,
            passed_on: 0,
            left: None,
            is_sent: false,
        }
    }

    /// Shows the next head that has come, and whether something comes behind it.
    pub fn take_head<T>(&mut self, read: impl FnOnce(&mut Fields, bool) -> T) -> Option<T> {
        let mut engine = self.link.engine.borrow_mut();
        let mut fields = engine.take_head(self.key)?;
        let has_body = !engine.is_received(self.key) || engine.has_trailers(self.key);
        let result = read(&mut fields, has_body);
        engine.recycle(fields);
        Some(result)
    }

    /// The same, waiting until there is one.
    pub fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut Fields, bool) -> T,
    ) -> Poll<Result<T, ReadError>> {
        if let Some(result) = self.take_head(read) {
            return Poll::Ready(Ok(result));
        }
        if let Some(failure) = self.failure() {
            return Poll::Ready(Err(read_error(failure)));
        }
        self.link.register(self.key, cx);
        Poll::Pending
    }

    /// Takes what has come already, so that a short message is known as a whole and can be sent again.
    pub fn gather(&mut self) {
        // Nobody waits: who goes on with the body asks for it again.
        let mut nobody = Context::from_waker(Waker::noop());
        let _asked_again = self.poll_chunk(&mut nobody);
    }

    /// Nothing of what comes belongs to the message.
    pub fn ignore(&mut self) {
        let mut engine = self.link.engine.borrow_mut();
        engine.passed_on(self.key, self.chunk.len() - self.at);
        engine.ignore(self.key);
        drop(engine);
        self.link.kick();
        self.chunk = Vec::new();
        self.at = 0;
        self.ended = true;
    }

    /// Whether all of the body was passed on, and its trailers, if there are any, are known.
    pub fn is_done(&self) -> bool {
        if self.at < self.chunk.len() {
            return false;
        }
        if self.ended {
            return self.is_told || self.trailers.is_none();
        }
        let engine = self.link.engine.borrow();
        engine.is_received(self.key) && !engine.has_trailers(self.key)
    }

    /// The whole rest of the body, if nothing comes behind what is there, and no trailers.
    pub fn whole(&self) -> Option<&[u8]> {
        (self.ended && self.at < self.chunk.len() && self.trailers.is_none()).then(|| self.data())
    }

    /// Finds data, waiting when there is none.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        let chunk = ready!(self.poll_chunk(cx))?;
        self.is_told = chunk == Chunk::End;
        Poll::Ready(Ok(chunk))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        loop {
            if self.at < self.chunk.len() {
                return Poll::Ready(Ok(Chunk::Data(self.chunk.len() - self.at)));
            }
            if self.ended {
                return Poll::Ready(Ok(Chunk::End));
            }
            let mut engine = self.link.engine.borrow_mut();
            let has_data = engine.take_data(self.key, &mut self.chunk);
            if has_data {
                self.at = 0;
            }
            if engine.is_received(self.key) {
                self.trailers = engine.take_trailers(self.key);
                self.ended = true;
            } else if !has_data {
                if let Some(failure) = engine.failure(self.key) {
                    return Poll::Ready(Err(read_error(failure)));
                }
                drop(engine);
                self.link.register(self.key, cx);
                return Poll::Pending;
            }
        }
    }

    /// The bytes that were found.
    pub fn data(&self) -> &[u8] {
        self.chunk.get(self.at..).unwrap_or_default()
    }

    /// Notes that so many bytes were passed on, and gives the peer room for as many more.
    pub fn take(&mut self, used: usize) {
        let used = used.min(self.chunk.len() - self.at);
        self.at += used;
        self.passed_on += used as u64;
        if self.at == self.chunk.len() {
            // A stream that waits holds no room.
            self.at = 0;
            self.chunk = Vec::new();
        }
        self.link.engine.borrow_mut().passed_on(self.key, used);
        self.link.kick();
    }

    /// Bytes that were passed on.
    pub fn taken(&self) -> u64 {
        self.passed_on
    }

    /// The trailers of a body that is done.
    pub fn trailers(&self, into: &mut HeaderList) {
        into.clear();
        let Some(trailers) = &self.trailers else { return };
        for (_, name, value) in trailers.list.iter() {
            if may_trail(name) {
                into.append(name, value);
            }
        }
    }

    /// Has the connection's own task look at the world anew.
    pub fn wake_mover(&self) {
        if let Some(waker) = self.link.mover.take() {
            waker.wake();
        }
    }

    /// Whether the connection has ended because the peer broke its rules.
    pub fn is_broken(&self) -> bool {
        self.link.engine.borrow().misbehaviour().is_some()
    }

    /// Why nothing more comes or goes, if it is so.
    fn failure(&self) -> Option<Failure> {
        self.link.engine.borrow().failure(self.key)
    }

    /// Sends a head, whose block `write` appends. `length` is the body's, if the head says it; `ended` whether the head is
    /// all. False when nothing goes any more.
    pub fn send_head(&mut self, length: Option<u64>, ended: bool, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.left = length;
        self.is_sent = ended;
        let is_sent = self.link.engine.borrow_mut().send_head(self.key, ended, write);
        self.link.kick();
        is_sent
    }

    /// What follows a head that was sent.
    pub fn has_sent_head(&mut self, length: Option<u64>, ended: bool) {
        self.left = length;
        self.is_sent = ended;
    }

    /// Whether everything was sent.
    pub fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// Takes some of `data`, at least a byte, and answers how much.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, data, false)
    }

    fn write(&mut self, cx: &mut Context<'_>, data: &[u8], is_all: bool) -> Poll<io::Result<usize>> {
        if data.is_empty() || self.is_sent {
            return Poll::Ready(Ok(data.len()));
        }
        // The last frame says that it is the last, so that no empty one has to follow.
        let is_last = is_all || self.left.is_some_and(|left| left <= data.len() as u64);
        let sent = self.link.engine.borrow_mut().send_data(self.key, data, is_last);
        let sent = sent.map_err(broken)?;
        if sent == 0 {
            self.link.register(self.key, cx);
            return Poll::Pending;
        }
        self.left = self.left.map(|left| left.saturating_sub(sent as u64));
        self.is_sent = is_last && sent == data.len();
        self.link.kick();
        Poll::Ready(Ok(sent))
    }

    /// Writes what is left of `body`, which is all there is, and ends.
    pub fn poll_write_all(
        &mut self,
        cx: &mut Context<'_>,
        body: &[u8],
        at: &mut usize,
    ) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = body.get(*at..) {
            *at += ready!(self.write(cx, rest, true))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the body.
    pub fn finish(&mut self, trailers: &HeaderList) {
        if std::mem::replace(&mut self.is_sent, true) {
            return;
        }
        let mut engine = self.link.engine.borrow_mut();
        // A stream that was reset takes no more; who polls it is told.
        if trailers.is_empty() {
            let _gone = engine.send_data(self.key, &[], true);
        } else {
            engine.send_head(self.key, true, |out| write_trailers(trailers, out));
        }
        drop(engine);
        self.link.kick();
    }

    /// Ready when the peer has reset the stream, or the connection is gone.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.failure().is_some() {
            return Poll::Ready(());
        }
        self.link.register(self.key, cx);
        Poll::Pending
    }

    /// Breaks the stream off.
    pub fn reset(&mut self, code: u32) {
        self.link.engine.borrow_mut().reset(self.key, code);
        self.link.kick();
    }
}

#[cfg(test)]
mod tests {
    use super::super::executor::{self, Heartbeat, Settings};
    use super::*;
    use isthmus_core::h2::Role;
    use std::future::poll_fn;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    /// SETTINGS, and the acknowledgement of the client's.
    const HELLO: [u8; 18] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
    /// GOAWAY: no stream was looked at, and nothing is wrong.
    const FAREWELL: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn what_an_upstream_said_before_it_went_is_heard_although_writing_fails_first() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (leave, leaves) = mpsc::channel();
        let (left, has_left) = mpsc::channel();
        let upstream = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&HELLO).unwrap();
            leaves.recv().unwrap();
            stream.write_all(&FAREWELL).unwrap();
            // What the client has sent is not read, so that this is a reset.
            drop(stream);
            left.send(()).unwrap();
        });
        let core = executor::granted_cores().first().copied().unwrap_or(0);
        let shard = executor::spawn_shard(
            "wire",
            core,
            Settings::default(),
            Heartbeat::default(),
            move |_wheel| async move {
                let stream = Stream::connect(address, Duration::from_secs(10)).await.unwrap();
                let options = Options {
                    role: Role::Client,
                    stream_window: 65_535,
                    connection_window: 65_535,
                    streams: 1,
                    header_bytes: 4096,
                    header_count: 100,
                    limits: None,
                };
                let mut mover = Mover::to_server(Rc::new(stream), &Pool::default(), options);
                let link = Rc::clone(mover.link());
                poll_fn(|cx| {
                    assert!(mover.poll(cx).is_pending());
                    if link.engine().is_settled() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
                leave.send(()).unwrap();
                // The ring is not looked at as long as this thread waits.
                has_left.recv().unwrap();
                let key = link
                    .engine_mut()
                    .open(true, false, |block| block.push(0x82))
                    .unwrap();
                let mut exchange = Exchange::new(&link, key);
                poll_fn(|cx| {
                    let _is_over = mover.poll(cx);
                    exchange.poll_head(cx, |_, _| ())
                })
                .await
                .unwrap_err()
            },
        );
        let error = shard.unwrap().join().unwrap().unwrap();
        assert!(matches!(error, ReadError::LeftOut), "{error:?}");
        upstream.join().unwrap();
    }
}
