//! A client's HTTP/2 connection.
//!
//! The connection's task asks [`Connection::next`] for a stream and starts a task for it; while it asks, frames of all
//! streams come in and go out, in as few system calls as the socket allows. A [`Stream`] is one exchange, and
//! independent of its neighbours: the connection's end reaches it as the end of its client.

use super::Downstream;
use super::tls::{self, Secured};
use crate::io::buffer::ReadBuffer;
use crate::io::h1::{Chunk, ReadError};
use crate::io::h2::{self as codec, Receiver, SEND_BUFFER, Sender, Wire};
use crate::io::stream::Stream as Socket;
use crate::io::timer::{Timer, Wheel};
use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use isthmus_core::drain::{self, Drain};
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::h2::head::{read_request, write_interim, write_response};
use isthmus_core::h2::{FRAME_SIZE_MAX, Misbehaviour};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead, Version};
use isthmus_core::reply::Cause;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What a client with prior knowledge says first (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room that a client gets for one stream's data, and for all of a connection.
const WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);
/// How long a client that is told to leave may take to read it.
const GOODBYE: Duration = Duration::from_secs(1);
/// A body up to this size that has come with its head is kept until the answer comes, so that it can be sent again.
const WHOLE_MAX: usize = 16 * 1024;

/// What the streams of a connection have in common.
struct Shared {
    peer: SocketAddr,
    local: Option<SocketAddr>,
    secured: Option<Secured>,
    drain: Rc<Cell<Drain>>,
    requests: Cell<u32>,
    /// Streams that are under way.
    active: Cell<u32>,
}

/// One client's connection.
pub struct Connection {
    engine: server::Connection<Wire, Bytes>,
    socket: Rc<Socket>,
    shared: Rc<Shared>,
    limits: MessageLimits,
    wheel: Wheel,
    /// How long the connection may have no stream.
    idle: Timer,
    stage: Stage,
    /// What the client has done that a sane one does not.
    found: Rc<Cell<Option<Misbehaviour>>>,
    /// Bytes that the socket has taken.
    wrote: Rc<Cell<u64>>,
    /// Whether the task has not given way since it got a stream.
    asks_again: Rc<Cell<bool>>,
    stuck: Stuck,
}

/// How far a connection is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It takes streams.
    Open,
    /// The client was told to open no more of them; those that there are go on.
    Leaving,
    /// The client was told that all is over, and why: it only gets the time to read that.
    Parting,
}

/// How long answers that no stream waits for any more have been on their way to a socket that takes none of them.
struct Stuck {
    timer: Timer,
    /// What the socket had taken when the time began.
    wrote: u64,
}

/// A stream's head, as it came.
pub type Head = Request<RecvStream>;

impl Connection {
    /// Takes over a connection from which `begun` was read already. None when it ends before it has begun.
    pub async fn open(
        socket: Socket,
        begun: ReadBuffer,
        secured: Option<Secured>,
        peer: SocketAddr,
        (settings, limits): (&Settings, MessageLimits),
        wheel: &Wheel,
        drain: Rc<Cell<Drain>>,
    ) -> Option<Self> {
        let socket = Rc::new(socket);
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_frame_size(FRAME_SIZE_MAX)
            .max_concurrent_streams(settings.http2_concurrent_streams)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(codec::SMALL_DATA_BUDGET)
            // The watch knows what is too much of these, and counts and logs it.
            .max_pending_accept_reset_streams(settings.http2_limits().rapid_resets as usize)
            .max_local_error_reset_streams(None)
            .enable_connect_protocol();
        let deadline = wheel.timer();
        deadline.set(settings.header_timeout);
        let (wire, found) = Wire::to_client(Rc::clone(&socket), begun, settings.http2_limits());
        let (wrote, asks_again) = (wire.wrote_bytes(), wire.asks_again());
        let mut handshake = pin!(builder.handshake(wire));
        let engine = poll_fn(|cx| match handshake.as_mut().poll(cx) {
            Poll::Ready(engine) => Poll::Ready(engine.ok()),
            Poll::Pending => deadline.poll(cx).map(|()| None),
        })
        .await?;
        let local = socket.local_addr();
        Some(Self {
            engine,
            socket,
            shared: Rc::new(Shared {
                peer,
                local,
                secured,
                drain,
                requests: Cell::new(0),
                active: Cell::new(0),
            }),
            limits,
            wheel: wheel.clone(),
            idle: deadline,
            stage: Stage::Open,
            found,
            wrote,
            asks_again,
            stuck: Stuck {
                timer: wheel.timer(),
                wrote: 0,
            },
        })
    }

    /// What the client has done that a sane one does not, for which the connection ends.
    pub fn misbehaviour(&self) -> Option<Misbehaviour> {
        self.found.get()
    }

    /// This end's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.local
    }

    /// The name that the client has asked TLS for.
    pub fn server_name(&self) -> Option<&str> {
        self.shared.secured.as_ref()?.server_name.as_deref()
    }

    /// The next stream; None when there will be no more. Streams move only while this is waited for, and who got one
    /// asks for the next before anything else.
    pub async fn next(&mut self, settings: &Settings) -> Option<(Head, Stream)> {
        if self.stage != Stage::Parting {
            self.idle.set(settings.idle_timeout);
        }
        let accepted = poll_fn(|cx| {
            loop {
                if let Some(found) = self.found.get() {
                    self.begin_parting(found.code().into());
                }
                self.leave_if_due(settings);
                let accepted = self.engine.poll_accept(cx);
                self.asks_again.set(matches!(accepted, Poll::Ready(Some(Ok(_)))));
                match accepted {
                    Poll::Ready(Some(Ok(accepted))) => return Poll::Ready(Some(accepted)),
                    Poll::Ready(Some(Err(error))) => {
                        self.broke_off(&error);
                        return Poll::Ready(None);
                    }
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => {}
                }
                if self.found.get().is_some() && self.stage != Stage::Parting {
                    // It is to be told at once.
                    continue;
                }
                if self.poll_stuck(settings.stream_idle_timeout, cx).is_ready() {
                    return Poll::Ready(None);
                }
                if self.idle.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if self.stage == Stage::Parting {
                    // It does not read what it is told either.
                    return Poll::Ready(None);
                }
                if self.is_busy() {
                    self.idle.set(settings.idle_timeout);
                } else {
                    // Nobody asks for anything: there is nothing to wait for either.
                    self.begin_parting(Reason::NO_ERROR);
                }
            }
        })
        .await?;
        let (head, respond) = accepted;
        let shared = Rc::clone(&self.shared);
        shared.requests.set(shared.requests.get() + 1);
        shared.active.set(shared.active.get() + 1);
        let stream = Stream {
            number: shared.requests.get(),
            shared,
            limits: self.limits,
            phase: self.wheel.timer(),
            receiver: Receiver::unknown(),
            answer: Answer::Awaited(respond),
        };
        Some((head, stream))
    }

    /// Tells the client that all is over, once.
    fn begin_parting(&mut self, reason: Reason) {
        if self.stage != Stage::Parting {
            self.stage = Stage::Parting;
            self.engine.abrupt_shutdown(reason);
            self.idle.set(GOODBYE);
        }
    }

    fn leave_if_due(&mut self, settings: &Settings) {
        let drain = self.shared.drain.get();
        let max = settings.requests_per_connection;
        let is_used_up = max > 0 && self.shared.requests.get() >= max;
        let is_told = drain.is_announced() && drain.closes_streams(drain::slot(self.shared.peer));
        if (is_told || is_used_up) && self.stage == Stage::Open {
            self.stage = Stage::Leaving;
            self.engine.graceful_shutdown();
        }
        // Until then a client that was told ends the connection itself, when what crossed it has been served.
        if drain.closes_all_waiting() && !self.is_busy() {
            self.begin_parting(Reason::NO_ERROR);
        }
    }

    /// Notes for which of the client's mistakes the library has given the connection up.
    fn broke_off(&self, error: &h2::Error) {
        if error.is_library() && self.found.get().is_none() {
            let is_flood = error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
            self.found.set(Some(match is_flood {
                true => Misbehaviour::Flood,
                false => Misbehaviour::Protocol,
            }));
        }
        tracing::debug!(peer = %self.shared.peer, %error, "an HTTP/2 connection broke off");
    }

    /// Ready when the client has taken nothing for so long of answers that were handed over whole: whose streams have
    /// ended, so that nobody else notices.
    fn poll_stuck(&mut self, patience: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.active.get() > 0 || !self.engine.has_streams() {
            self.stuck.timer.clear();
            return Poll::Pending;
        }
        let wrote = self.wrote.get();
        if !self.stuck.timer.is_set() || self.stuck.wrote != wrote {
            self.stuck.wrote = wrote;
            self.stuck.timer.set(patience);
        }
        self.stuck.timer.poll(cx)
    }

    /// Whether a stream is under way, or its answer on the way to the socket.
    fn is_busy(&self) -> bool {
        self.shared.active.get() > 0 || self.engine.has_streams()
    }

    /// Ends the connection so that the client gets to read why.
    pub async fn part(self) {
        let Self {
            engine,
            socket,
            mut idle,
            ..
        } = self;
        drop(engine);
        tls::part(&socket, &mut idle).await;
    }
}

/// What was done about an answer.
enum Answer {
    Awaited(SendResponse<Bytes>),
    Begun(Sender),
    /// The stream was reset before its answer began.
    Lost,
}

/// One exchange of a connection.
pub struct Stream {
    shared: Rc<Shared>,
    /// The requests of the connection up to this one.
    number: u32,
    limits: MessageLimits,
    phase: Timer,
    receiver: Receiver,
    answer: Answer,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get().saturating_sub(1));
    }
}

impl Stream {
    /// Reads the request's head, and as much of a short body as is there.
    pub fn read_head(&mut self, head: Head, into: &mut RequestHead) -> Result<(), Cause> {
        let (parts, body) = head.into_parts();
        self.receiver = Receiver::new(body);
        into.clear();
        let has_body = !self.receiver.is_done();
        let protocol = parts.extensions.get::<h2::ext::Protocol>();
        let protocol = protocol.map(h2::ext::Protocol::as_str);
        read_request(&parts, protocol, has_body, &self.limits, into).map_err(Cause::RequestHead)?;
        if has_body && into.upgrade.is_empty() {
            // Nobody waits: who goes on with the body asks for it again.
            let mut nobody = Context::from_waker(Waker::noop());
            self.receiver.gather(&mut nobody, WHOLE_MAX);
            // What is there as a whole has a length, whether the client has said it or not.
            if into.body == BodyLength::Chunked && self.receiver.is_done() {
                into.body = BodyLength::None;
            } else if let (BodyLength::Chunked, Some(whole)) = (into.body, self.receiver.whole()) {
                into.body = BodyLength::Known(whole.len() as u64);
            }
        }
        Ok(())
    }

    /// Breaks off, so that the client does not take what it got for a whole answer.
    pub fn reset(&mut self) {
        match &mut self.answer {
            Answer::Awaited(respond) => respond.send_reset(Reason::INTERNAL_ERROR),
            Answer::Begun(sender) => sender.reset(Reason::INTERNAL_ERROR),
            Answer::Lost => {}
        }
    }
}

impl Downstream for Stream {
    fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.local
    }

    fn secured(&self) -> Option<&Secured> {
        self.shared.secured.as_ref()
    }

    fn drain(&self) -> Drain {
        self.shared.drain.get()
    }

    fn requests(&self) -> u32 {
        self.number
    }

    fn phase(&self) -> &Timer {
        &self.phase
    }

    fn is_body_done(&self) -> bool {
        self.receiver.is_done()
    }

    fn whole_body(&self) -> Option<&[u8]> {
        self.receiver.whole()
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        self.receiver.poll_data(cx)
    }

    fn data(&self) -> &[u8] {
        self.receiver.data()
    }

    fn take(&mut self, used: usize) {
        self.receiver.take(used);
    }

    fn body_bytes(&self) -> u64 {
        self.receiver.taken()
    }

    fn trailers(&self, into: &mut HeaderList) {
        self.receiver.trailers(into);
    }

    fn has_unread(&self) -> bool {
        !self.receiver.data().is_empty()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.answer {
            Answer::Awaited(respond) => respond.poll_reset(cx).map(|_| ()),
            Answer::Begun(sender) if sender.is_ended() => Poll::Pending,
            Answer::Begun(sender) => sender.poll_gone(cx),
            Answer::Lost => Poll::Ready(()),
        }
    }

    fn interim_head(&mut self, head: &ResponseHead) {
        if let Answer::Awaited(respond) = &mut self.answer {
            // A client that has gone is noticed by the next look at it.
            let _gone = respond.send_informational(write_interim(head));
        }
    }

    fn response_head(&mut self, head: &ResponseHead, context: ResponseContext) -> bool {
        let Answer::Awaited(respond) = &mut self.answer else {
            return false;
        };
        let (response, length) = write_response(head, context.head_request);
        let ended = head.body.is_empty() && head.upgrade.is_empty();
        self.answer = match respond.send_response(response, ended) {
            Ok(stream) => {
                // What comes in HTTP/2 may have trailers behind a body of known length.
                let length = length.filter(|_| !ended && head.version != Version::Http2);
                Answer::Begun(Sender::new(stream, length, ended))
            }
            Err(_) => Answer::Lost,
        };
        false
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.answer {
            Answer::Begun(sender) => sender.poll_write(cx, data),
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>, body: &[u8], at: &mut usize) -> Poll<io::Result<()>> {
        match &mut self.answer {
            Answer::Begun(sender) => sender.poll_write_all(cx, body, at),
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn finish(&mut self, trailers: &HeaderList) {
        if let Answer::Begun(sender) = &mut self.answer {
            sender.finish(trailers);
        }
    }

    /// What a stream takes is on its way already: the connection's task writes it.
    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.answer {
            Answer::Lost => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        })
    }

    /// Streams carry bytes as they carry bodies.
    fn begin_tunnel(&mut self) {}

    fn queued(&self) -> usize {
        0
    }
}
