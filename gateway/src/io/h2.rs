//! HTTP/2 on a shard's sockets: what the protocol's library needs of a stream, and bodies as the proxy moves them.
//!
//! The library speaks through a [`Wire`], a stream under the interface that it knows. A [`Receiver`] is the half of an
//! HTTP/2 stream that data comes out of, a [`Sender`] the half that it goes into, for either side of the gateway; both
//! work as `MessageReader` and `MessageWriter` do for HTTP/1.1. Memory is bounded by the windows: what was not passed
//! on gives the peer no room for more, and what the peer has no room for is not taken.

use super::buffer::{Pool, ReadBuffer, SMALL};
use super::clock;
use super::executor;
use super::h1::{Chunk, ReadError};
use super::stream::Stream;
use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use http::header::HeaderMap;
use isthmus_core::h1::body::may_trail;
use isthmus_core::h2::head::{read_fields, write_fields};
use isthmus_core::h2::{Misbehaviour, Repack, Watch};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::Http2Limits;
use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Data that is copied into one frame's buffer at a time.
const SEND_MAX: usize = 64 * 1024;
/// What the library may spend on small DATA frames that wait to be passed on: it counts the bytes that each falls short
/// of 256. A call of gRPC whose other side is slow may have many of them, and they are bounded by the windows, too.
pub const SMALL_DATA_BUDGET: usize = 16 * 1024 * 1024;
/// What a stream may hold that the connection has not sent yet.
pub const SEND_BUFFER: usize = 128 * 1024;

/// Reads in a row of which nothing is for the library, before others have their turn.
const READS_MAX: usize = 4;
/// What a client may have done in one turn of its connection's task, before the shard's other tasks have theirs: bytes
/// that were read, and for each frame as many as it costs about as much as.
const TURN: usize = 64 * 1024;
const FRAME_COST: usize = 256;
/// What is read when the library's room is used up by the beginning of a frame that goes before it. Else no more is read
/// than it has room for: of a client's preface it asks for just that, and is asked what to do about mistakes behind it.
const SMALL_ROOM: usize = 64;

/// A stream as the protocol's library wants it.
pub struct Wire {
    stream: Rc<Stream>,
    pool: Pool,
    /// What was read of it before.
    begun: ReadBuffer,
    repack: Repack,
    /// What was read and is not as it came, from `given` on.
    repacked: Vec<u8>,
    given: usize,
    /// Whether the peer's first frame has come.
    is_settled: Rc<Cell<bool>>,
    /// Bytes that the stream has taken.
    wrote_bytes: Rc<Cell<u64>>,
    /// Whether the stream takes nothing any more.
    is_broken: bool,
    /// Whether the last read found nothing, and whether that is news enough.
    is_dry: bool,
    asks_again: Rc<Cell<bool>>,
    guard: Option<Guard>,
}

/// The watch over a client's connection, and what it has found.
struct Guard {
    watch: Watch,
    found: Rc<Cell<Option<Misbehaviour>>>,
    turn: Turn,
}

/// How much of its turn a client has used up. Who always has more to say than was read would else never wait for the
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

impl Guard {
    fn note(&mut self, seen: Result<(), Misbehaviour>) {
        if let Err(misbehaviour) = seen {
            self.found.set(Some(misbehaviour));
        }
    }
}

impl Wire {
    /// Takes over the reading and writing of an upstream's stream.
    pub fn to_server(stream: Rc<Stream>, pool: &Pool) -> Self {
        Self::new(stream, ReadBuffer::new(pool), Repack::of_server())
    }

    /// Takes over the reading and writing of a client's stream from which `begun` was read already, and watches over
    /// what the client sends. What is found ends the reading, and is told where this answers.
    pub fn to_client(
        stream: Rc<Stream>,
        begun: ReadBuffer,
        limits: Http2Limits,
    ) -> (Self, Rc<Cell<Option<Misbehaviour>>>) {
        let found = Rc::default();
        let mut wire = Self::new(stream, begun, Repack::of_client());
        wire.guard = Some(Guard {
            watch: Watch::new(limits, clock::now()),
            found: Rc::clone(&found),
            turn: Turn::default(),
        });
        (wire, found)
    }

    fn new(stream: Rc<Stream>, begun: ReadBuffer, repack: Repack) -> Self {
        Self {
            stream,
            pool: begun.pool().clone(),
            begun,
            repack,
            repacked: Vec::new(),
            given: 0,
            is_settled: Rc::default(),
            wrote_bytes: Rc::default(),
            is_broken: false,
            is_dry: false,
            asks_again: Rc::default(),
            guard: None,
        }
    }

    /// Gives what was repacked, as far as it fits.
    fn give(&mut self, into: &mut ReadBuf<'_>) {
        let there = self.repacked.get(self.given..).unwrap_or_default();
        let taken = there.len().min(into.remaining());
        into.put_slice(there.get(..taken).unwrap_or_default());
        self.given += taken;
        if self.given >= self.repacked.len() {
            self.repacked = Vec::new();
            self.given = 0;
        }
    }

    /// Reads a piece as it comes, at least a byte, or none at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let there = self.begun.data();
        if there.is_empty() {
            return self.stream.poll_read(cx, room);
        }
        let taken = there.len().min(room.len());
        if let (Some(into), Some(from)) = (room.get_mut(..taken), there.get(..taken)) {
            into.copy_from_slice(from);
        }
        self.begun.consume(taken);
        Poll::Ready(Ok(taken))
    }

    /// Reads a piece, behind what is held back of the one before, and has it watched; answers how many of its first bytes
    /// are for the library as they are. What follows them is in `repacked`. None at the end.
    fn poll_passed(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<Option<usize>>> {
        let begun = self.repack.begun().len();
        let behind = room.get_mut(begun..).unwrap_or_default();
        let read = ready!(self.poll_piece(cx, behind))?;
        if read == 0 {
            return Poll::Ready(Ok(None));
        }
        let piece = behind.get(..read).unwrap_or_default();
        let mut voids = None;
        if let Some(guard) = &mut self.guard {
            let seen = guard.watch.read(piece, clock::now());
            if seen.is_err() {
                // The library is not shown what the connection ends for: it has its own names for some of it.
                guard.note(seen);
                return Poll::Pending;
            }
            let frames = guard.watch.voids();
            guard.turn.used += read + frames.len() * FRAME_COST;
            voids = Some(frames.iter());
        }
        if let Some(start) = room.get_mut(..begun) {
            start.copy_from_slice(self.repack.begun());
        }
        let passed = self.repack.pass(
            room.get(..begun + read).unwrap_or_default(),
            // The watch has seen the same frames, in the same order.
            |_| voids.as_mut().is_none_or(|voids| voids.next() == Some(&true)),
            &mut self.repacked,
        );
        self.is_settled.set(self.repack.has_first());
        Poll::Ready(Ok(Some(passed)))
    }

    /// Writes as much as the stream takes. One that has gone takes all and loses it: what its peer said before, such as
    /// which requests it has not looked at, is still to be read, and the end behind that.
    fn poll_pass_on(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<usize> {
        if !self.is_broken {
            match ready!(self.stream.poll_write(cx, parts)) {
                Ok(written) => return Poll::Ready(written),
                Err(_) => {
                    self.is_broken = true;
                    self.stream.abort();
                }
            }
        }
        Poll::Ready(parts.iter().map(|part| part.len()).sum())
    }

    fn wrote(&mut self, parts: &[IoSlice<'_>], mut written: usize) {
        let Some(guard) = &mut self.guard else { return };
        let now = clock::now();
        for part in parts {
            let taken = part.len().min(written);
            let seen = guard.watch.wrote(part.get(..taken).unwrap_or_default(), now);
            guard.note(seen);
            written -= taken;
        }
    }

    /// Tells how many bytes the stream has taken.
    pub fn wrote_bytes(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.wrote_bytes)
    }

    /// To be set while the library is asked again for what it has read, by a task that does not give way meanwhile: a
    /// stream that had nothing to read has nothing yet, and is not asked.
    pub fn asks_again(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.asks_again)
    }

    /// Tells whether all of the peer's first frame has come, which says what it can do (RFC 9113, 3.4).
    pub fn is_settled(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.is_settled)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        for _ in 0..READS_MAX {
            if !this.repacked.is_empty() {
                this.give(into);
                return Poll::Ready(Ok(()));
            }
            if this.is_dry && this.asks_again.get() {
                return Poll::Pending;
            }
            if let Some(guard) = &mut this.guard {
                if guard.found.get().is_some() {
                    // Who waits for streams is about to say so and to leave.
                    return Poll::Pending;
                }
                ready!(guard.turn.poll(cx));
            }
            // Not the library's own room, which would have to be cleared first.
            let mut block = this.pool.lend(into.remaining() > SMALL);
            let most = if into.remaining() > this.repack.begun().len() {
                into.remaining().min(block.bytes.len())
            } else {
                SMALL_ROOM
            };
            let room = block.bytes.get_mut(..most).unwrap_or_default();
            let read = this.poll_passed(cx, room);
            this.is_dry = read.is_pending();
            if let Some(guard) = &mut this.guard
                && this.is_dry
            {
                guard.turn.end();
            }
            let Some(passed) = ready!(read)? else {
                return Poll::Ready(Ok(()));
            };
            let passed = room.get(..passed).unwrap_or_default();
            let (now, later) = passed.split_at(passed.len().min(into.remaining()));
            into.put_slice(now);
            this.repacked.splice(..0, later.iter().copied());
            if !now.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        if this.repacked.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.give(into);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(guard) = &mut self.guard
            && let Some(part) = parts.iter().find(|part| !part.is_empty())
            && let Some(misbehaviour) = guard.watch.farewell(part)
        {
            guard.note(Err(misbehaviour));
            let mut corrected = part.to_vec();
            if let Some(code) = corrected.last_chunk_mut() {
                *code = misbehaviour.code().to_be_bytes();
            }
            // What does not fit the socket now comes again as the library has it, with its own code.
            let parts = [IoSlice::new(&corrected)];
            let written = ready!(self.poll_pass_on(cx, &parts));
            self.wrote(&parts, written);
            return Poll::Ready(Ok(written));
        }
        let written = ready!(self.poll_pass_on(cx, parts));
        self.wrote_bytes.set(self.wrote_bytes.get() + written as u64);
        self.wrote(parts, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_broken && ready!(self.stream.poll_flush(cx)).is_err() {
            self.is_broken = true;
            self.stream.abort();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.stream.shutdown_write();
        Poll::Ready(Ok(()))
    }
}

/// How a failure of the library looks to who reads a message: whether the peer has said that it did nothing with it.
pub fn read_error(error: h2::Error) -> ReadError {
    if error.reason() == Some(h2::Reason::REFUSED_STREAM) && error.is_reset() {
        return ReadError::Refused;
    }
    // Whatever a GOAWAY is about, only those streams fail with it that the peer says it never looked at (RFC 9113, 6.8);
    // the others get their answers, or fail as the connection does.
    if error.is_go_away() && error.is_remote() {
        return ReadError::LeftOut;
    }
    if error.is_reset() {
        return ReadError::Reset;
    }
    match error.into_io() {
        Some(error) => ReadError::Io(error),
        None => ReadError::Closed { clean: false },
    }
}

/// The half of a stream that data comes out of.
pub struct Receiver {
    /// None for a message without a body.
    stream: Option<RecvStream>,
    chunk: Bytes,
    /// Nothing comes behind `chunk` any more, and the trailers are there.
    ended: bool,
    trailers: HeaderMap,
    /// Whether the user knows that nothing comes any more.
    is_told: bool,
    taken: u64,
}

impl Receiver {
    /// A message's body. One that ends with its head is none.
    pub fn new(stream: RecvStream) -> Self {
        let ended = stream.is_end_stream();
        Self {
            stream: (!ended).then_some(stream),
            chunk: Bytes::new(),
            ended,
            trailers: HeaderMap::new(),
            is_told: false,
            taken: 0,
        }
    }

    /// What is there before a message's head is known.
    pub fn unknown() -> Self {
        Self {
            stream: None,
            chunk: Bytes::new(),
            ended: false,
            trailers: HeaderMap::new(),
            is_told: false,
            taken: 0,
        }
    }

    /// The body of a message that has none.
    pub fn none() -> Self {
        Self {
            ended: true,
            ..Self::unknown()
        }
    }

    /// Puts what has come already into one piece, up to `max` bytes, so that a short message can be sent again.
    pub fn gather(&mut self, cx: &mut Context<'_>, max: usize) {
        let mut gathered = Vec::new();
        loop {
            match self.poll_chunk(cx) {
                Poll::Ready(Ok(Chunk::Data(there))) if gathered.len() + there <= max => {
                    if gathered.is_empty() && self.ended {
                        // All of it is in one piece.
                        return;
                    }
                    gathered.extend_from_slice(&self.chunk);
                    self.chunk = Bytes::new();
                }
                _ => break,
            }
        }
        if !gathered.is_empty() {
            gathered.extend_from_slice(&self.chunk);
            self.chunk = gathered.into();
        }
    }

    /// Whether all of the body was passed on, and its trailers, if there are any, are known.
    pub fn is_done(&self) -> bool {
        self.ended && self.chunk.is_empty() && (self.is_told || self.trailers.is_empty())
    }

    /// The whole rest of the body, if nothing comes behind what is there, and no trailers.
    pub fn whole(&self) -> Option<&[u8]> {
        (self.ended && !self.chunk.is_empty() && self.trailers.is_empty()).then_some(&self.chunk[..])
    }

    /// Finds data, reading when there is none.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        let chunk = ready!(self.poll_chunk(cx))?;
        self.is_told = chunk == Chunk::End;
        Poll::Ready(Ok(chunk))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        loop {
            if !self.chunk.is_empty() {
                return Poll::Ready(Ok(Chunk::Data(self.chunk.len())));
            }
            let stream = match &mut self.stream {
                Some(stream) if !self.ended => stream,
                _ => return Poll::Ready(Ok(Chunk::End)),
            };
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.ended = stream.is_end_stream();
                    self.chunk = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(read_error(error))),
                None => {
                    let trailers = ready!(stream.poll_trailers(cx)).map_err(read_error)?;
                    self.trailers = trailers.unwrap_or_default();
                    self.ended = true;
                }
            }
        }
    }

    /// The bytes that were found.
    pub fn data(&self) -> &[u8] {
        &self.chunk
    }

    /// Notes that so many bytes were passed on, and gives the peer room for as many more.
    pub fn take(&mut self, used: usize) {
        let used = used.min(self.chunk.len());
        self.chunk.advance(used);
        self.taken += used as u64;
        if let Some(stream) = &mut self.stream {
            // An error says that more was given back than taken, which the line above rules out.
            let _never = stream.flow_control().release_capacity(used);
        }
    }

    /// Bytes that were passed on.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The trailers of a body that is done.
    pub fn trailers(&self, into: &mut HeaderList) {
        into.clear();
        read_fields(&self.trailers, into);
        into.retain(|_, name, _| may_trail(name));
    }
}

/// The half of a stream that data goes into.
pub struct Sender {
    stream: SendStream<Bytes>,
    /// How much of the body is still to come, when its head has said so.
    left: Option<u64>,
    ended: bool,
}

impl Sender {
    /// What follows a head that is sent. `length` is the body's, if the head says it; `ended` whether the head was all.
    pub fn new(stream: SendStream<Bytes>, length: Option<u64>, ended: bool) -> Self {
        Self {
            stream,
            left: length,
            ended,
        }
    }

    /// Whether everything was sent.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Takes some of `data`, at least a byte, and answers how much.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, data, false)
    }

    fn write(&mut self, cx: &mut Context<'_>, data: &[u8], is_all: bool) -> Poll<io::Result<usize>> {
        if data.is_empty() || self.ended {
            return Poll::Ready(Ok(data.len()));
        }
        self.stream.reserve_capacity(data.len().min(SEND_MAX));
        let mut room = self.stream.capacity();
        while room == 0 {
            room = match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let part = data.get(..room.min(SEND_MAX)).unwrap_or(data);
        self.left = self.left.map(|left| left.saturating_sub(part.len() as u64));
        // The last frame says that it is the last, so that no empty one has to follow.
        let last = self.left == Some(0) || (is_all && part.len() == data.len());
        self.stream
            .send_data(Bytes::copy_from_slice(part), last)
            .map_err(broken)?;
        self.ended = last;
        Poll::Ready(Ok(part.len()))
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
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // A stream that was reset takes no more; who polls it is told.
        let _gone = if trailers.is_empty() {
            self.stream.send_data(Bytes::new(), true)
        } else {
            self.stream.send_trailers(write_fields(trailers))
        };
    }

    /// Ready when the peer has reset the stream, or the connection is gone.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(|_| ())
    }

    /// Breaks the stream off.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }
}

fn broken(error: h2::Error) -> io::Error {
    error
        .into_io()
        .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
}

#[cfg(test)]
mod tests {
    use super::super::executor::{self, Heartbeat, Settings};
    use super::*;
    use std::future::poll_fn;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};
    use std::pin::pin;
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
                let wire = Wire::to_server(Rc::new(stream), &Pool::default());
                let is_settled = wire.is_settled();
                let (mut send, mut engine) = h2::client::handshake(wire).await.unwrap();
                poll_fn(|cx| {
                    assert!(Pin::new(&mut engine).poll(cx).is_pending());
                    if is_settled.get() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
                leave.send(()).unwrap();
                // The ring is not looked at as long as this thread waits.
                has_left.recv().unwrap();
                let request = http::Request::get("http://h.example/").body(()).unwrap();
                let (response, _) = send.send_request(request, true).unwrap();
                let mut response = pin!(response);
                let mut is_over = false;
                let answer = poll_fn(|cx| {
                    is_over = is_over || Pin::new(&mut engine).poll(cx).is_ready();
                    response.as_mut().poll(cx)
                })
                .await;
                read_error(answer.unwrap_err())
            },
        );
        let error = shard.unwrap().join().unwrap().unwrap();
        assert!(matches!(error, ReadError::LeftOut), "{error:?}");
        upstream.join().unwrap();
    }
}
