//! A client's HTTP/2 connection.
//!
//! The connection's task asks [`Connection::next`] for a stream and starts a task for it; while it asks, frames of all
//! streams come in and go out, in as few system calls as the socket allows. A [`Stream`] is one exchange, and
//! independent of its neighbours: the connection's end reaches it as the end of its client.

use super::Downstream;
use super::tls::{self, Secured};
use crate::io::buffer::ReadBuffer;
use crate::io::h1::{Chunk, ReadError};
use crate::io::h2::{Exchange, Link, Mover};
use crate::io::stream::Stream as Socket;
use crate::io::timer::{Timer, Wheel};
use isthmus_core::drain::{self, Drain};
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::h2::frame::code;
use isthmus_core::h2::head::{certain_length, read_request, write_interim, write_response};
use isthmus_core::h2::{Misbehaviour, Options, Role};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead};
use isthmus_core::reply::Cause;
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use isthmus_core::h2::frame::PREFACE;

/// Room that a client gets for one stream's data, and for all of a connection: several streams whose upstreams take
/// nothing leave room for the others.
const WINDOWS: (u32, u32) = (256 * 1024, 4 * 1024 * 1024);
/// How long a client that is told to leave may take to read it.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the streams of a connection have in common.
struct Shared {
    peer: SocketAddr,
    local: Option<SocketAddr>,
    secured: Option<Rc<Secured>>,
    drain: Rc<Cell<Drain>>,
    requests: Cell<u32>,
    /// Streams that are under way.
    active: Cell<u32>,
}

/// One client's connection.
pub struct Connection {
    mover: Mover,
    link: Rc<Link>,
    socket: Rc<Socket>,
    shared: Rc<Shared>,
    limits: MessageLimits,
    wheel: Wheel,
    /// How long the connection may have no stream, or take to begin.
    idle: Timer,
    stage: Stage,
    stuck: Stuck,
}

/// How far a connection is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The client has not said what it takes.
    Begun,
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

impl Connection {
    /// Takes over a connection from which `begun` was read already.
    pub fn open(
        socket: Socket,
        begun: ReadBuffer,
        secured: Option<Rc<Secured>>,
        peer: SocketAddr,
        (settings, limits): (&Settings, MessageLimits),
        wheel: &Wheel,
        drain: Rc<Cell<Drain>>,
    ) -> Self {
        let socket = Rc::new(socket);
        let options = Options {
            role: Role::Server,
            stream_window: WINDOWS.0,
            connection_window: WINDOWS.1,
            streams: settings.http2_concurrent_streams,
            header_bytes: limits.header_bytes,
            header_count: limits.header_count,
            limits: Some(settings.http2_limits()),
        };
        let mover = Mover::to_client(Rc::clone(&socket), begun, options);
        let deadline = wheel.timer();
        deadline.set(settings.header_timeout);
        Self {
            link: Rc::clone(mover.link()),
            mover,
            shared: Rc::new(Shared {
                peer,
                local: socket.local_addr(),
                secured,
                drain,
                requests: Cell::new(0),
                active: Cell::new(0),
            }),
            socket,
            limits,
            wheel: wheel.clone(),
            idle: deadline,
            stage: Stage::Begun,
            stuck: Stuck {
                timer: wheel.timer(),
                wrote: 0,
            },
        }
    }

    /// What the client has done that a sane one does not, for which the connection ends.
    pub fn misbehaviour(&self) -> Option<Misbehaviour> {
        self.link.engine().misbehaviour()
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
    pub async fn next(&mut self, settings: &Settings) -> Option<Stream> {
        if matches!(self.stage, Stage::Open | Stage::Leaving) {
            self.idle.set(settings.idle_timeout);
        }
        let exchange = poll_fn(|cx| {
            loop {
                let moved = self.mover.poll(cx);
                if self.stage == Stage::Begun && self.link.engine().is_settled() {
                    self.stage = Stage::Open;
                    self.idle.set(settings.idle_timeout);
                }
                if moved.is_ready() {
                    let opened = self.link.engine_mut().accept();
                    if let Some(key) = opened {
                        return Poll::Ready(Some(Exchange::new(&self.link, key)));
                    }
                    if self.link.engine().is_over() {
                        return Poll::Ready(None);
                    }
                    // It was reset before anybody has seen it.
                    continue;
                }
                if self.leave_if_due(settings) {
                    // It is to be told at once.
                    continue;
                }
                if self.stage != Stage::Parting && self.link.engine().is_over() {
                    // What it is told is on its way, and it may take its time to read it.
                    self.stage = Stage::Parting;
                    self.idle.set(GOODBYE);
                }
                if self.poll_stuck(settings.stream_idle_timeout, cx).is_ready() {
                    return Poll::Ready(None);
                }
                if self.idle.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                match self.stage {
                    // It has not begun in time, or does not read what it is told either.
                    Stage::Begun | Stage::Parting => return Poll::Ready(None),
                    _ if self.is_busy() => self.idle.set(settings.idle_timeout),
                    // Nobody asks for anything: there is nothing to wait for either.
                    _ => self.begin_parting(),
                }
            }
        })
        .await?;
        let shared = Rc::clone(&self.shared);
        shared.requests.set(shared.requests.get() + 1);
        shared.active.set(shared.active.get() + 1);
        Some(Stream {
            number: shared.requests.get(),
            shared,
            limits: self.limits,
            phase: self.wheel.timer(),
            exchange,
            answer: Answer::Awaited,
        })
    }

    /// Tells the client that all is over, once.
    fn begin_parting(&mut self) {
        if self.stage != Stage::Parting {
            self.stage = Stage::Parting;
            self.link.engine_mut().part(code::NO_ERROR);
            self.idle.set(GOODBYE);
        }
    }

    /// Tells a client that it is to leave when that is so; whether there was anything to tell.
    fn leave_if_due(&mut self, settings: &Settings) -> bool {
        let before = self.stage;
        let drain = self.shared.drain.get();
        let max = settings.requests_per_connection;
        let is_used_up = max > 0 && self.shared.requests.get() >= max;
        let is_told = drain.is_announced() && drain.closes_streams(drain::slot(self.shared.peer));
        if (is_told || is_used_up) && matches!(self.stage, Stage::Begun | Stage::Open) {
            self.stage = Stage::Leaving;
            self.link.engine_mut().leave();
        }
        // Until then a client that was told ends the connection itself, when what crossed it has been served.
        if drain.closes_all_waiting() && !self.is_busy() {
            self.begin_parting();
        }
        self.stage != before
    }

    /// Ready when the client has taken nothing for so long of answers that were handed over whole: whose streams have
    /// ended, so that nobody else notices.
    fn poll_stuck(&mut self, patience: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.active.get() > 0 || self.link.engine().output().is_empty() {
            self.stuck.timer.clear();
            return Poll::Pending;
        }
        let wrote = self.mover.wrote();
        if !self.stuck.timer.is_set() || self.stuck.wrote != wrote {
            self.stuck.wrote = wrote;
            self.stuck.timer.set(patience);
        }
        self.stuck.timer.poll(cx)
    }

    /// Whether a stream is under way, or its answer on the way to the socket.
    fn is_busy(&self) -> bool {
        self.shared.active.get() > 0 || !self.link.engine().output().is_empty()
    }

    /// Ends the connection so that the client gets to read why.
    pub async fn part(self) {
        let Self {
            mover,
            socket,
            mut idle,
            ..
        } = self;
        drop(mover);
        tls::part(&socket, &mut idle).await;
    }
}

/// What was done about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Awaited,
    Begun,
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
    exchange: Exchange,
    answer: Answer,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.active.set(self.shared.active.get().saturating_sub(1));
        if self.shared.drain.get().is_announced() {
            // The connection may have waited for this.
            self.exchange.wake_mover();
        }
    }
}

impl Stream {
    /// Reads the request's head, and as much of a short body as is there.
    pub fn read_head(&mut self, into: &mut RequestHead) -> Result<(), Cause> {
        into.clear();
        let limits = &self.limits;
        let read = self
            .exchange
            .take_head(|fields, has_body| read_request(fields, has_body, limits, into).map(|()| has_body));
        let has_body = match read {
            Some(read) => read.map_err(Cause::RequestHead)?,
            None => return Err(Cause::ClientGone),
        };
        // What comes behind a request for a tunnel is none of its.
        if has_body && !into.body.is_empty() {
            self.exchange.gather();
            // What is there as a whole has a length, whether the client has said it or not.
            if into.body == BodyLength::Chunked && self.exchange.is_done() {
                into.body = BodyLength::None;
            } else if let (BodyLength::Chunked, Some(whole)) = (into.body, self.exchange.whole()) {
                into.body = BodyLength::Known(whole.len() as u64);
            }
        }
        Ok(())
    }

    /// Breaks off, so that the client does not take what it got for a whole answer.
    pub fn reset(&mut self, code: u32) {
        self.exchange.reset(code);
    }

    /// Ready when the client has reset the stream, or its connection is gone, whatever was sent and read before.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.exchange.poll_gone(cx)
    }

    /// What is known about the client, as long as somebody asks.
    pub fn secured_shared(&self) -> Option<Rc<Secured>> {
        self.shared.secured.clone()
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
        self.shared.secured.as_deref()
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
        self.exchange.is_done()
    }

    fn whole_body(&self) -> Option<&[u8]> {
        self.exchange.whole()
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        self.exchange.poll_data(cx)
    }

    fn data(&self) -> &[u8] {
        self.exchange.data()
    }

    fn take(&mut self, used: usize) {
        self.exchange.take(used);
    }

    fn body_bytes(&self) -> u64 {
        self.exchange.taken()
    }

    fn trailers(&self, into: &mut HeaderList) {
        self.exchange.trailers(into);
    }

    fn has_unread(&self) -> bool {
        !self.exchange.data().is_empty()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.answer {
            Answer::Begun if self.exchange.is_sent() => Poll::Pending,
            Answer::Awaited | Answer::Begun => self.exchange.poll_gone(cx),
            Answer::Lost => Poll::Ready(()),
        }
    }

    fn interim_head(&mut self, head: &ResponseHead) {
        if self.answer == Answer::Awaited {
            // A client that has gone is noticed by the next look at it.
            self.exchange
                .send_head(None, false, |block| write_interim(head, block));
        }
    }

    fn response_head(&mut self, head: &ResponseHead, context: ResponseContext) -> bool {
        if self.answer == Answer::Awaited {
            let ended = head.body.is_empty() && head.upgrade.is_empty();
            let is_sent = self.exchange.send_head(certain_length(head), ended, |block| {
                write_response(head, context.head_request, block);
            });
            self.answer = if is_sent { Answer::Begun } else { Answer::Lost };
        }
        false
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.answer {
            Answer::Begun => self.exchange.poll_write(cx, data),
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>, body: &[u8], at: &mut usize) -> Poll<io::Result<()>> {
        match self.answer {
            Answer::Begun => self.exchange.poll_write_all(cx, body, at),
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn finish(&mut self, trailers: &HeaderList) {
        if self.answer == Answer::Begun {
            self.exchange.finish(trailers);
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
