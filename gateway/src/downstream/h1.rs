//! A client's HTTP/1.1 connection.
//!
//! The connection's task asks [`Connection::next`] for a request, hands it to the proxy, and asks again; requests that
//! were pipelined wait in the buffer, so answers keep their order. Between requests the connection is cold: it holds
//! no buffer and no message, only what it takes to wait.

use super::Downstream;
use super::h2::PREFACE;
use super::tls::Secured;
use crate::io::buffer::ReadBuffer;
use crate::io::h1::{Chunk, MessageReader, MessageWriter, ReadError};
use crate::io::stream::Stream;
use crate::io::timer::{Timer, Wheel};
use isthmus_core::drain::{self, Drain};
use isthmus_core::h1::HeadError;
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::header::HeaderList;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::message::{RequestHead, ResponseHead};
use isthmus_core::reply::Cause;
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long a connection stays warm between requests: under load the next one comes sooner, and nothing is given back
/// and taken again.
const WARM: Duration = Duration::from_millis(20);

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A request has come.
    Request,
    /// Nothing for a moment: the connection may go cold.
    Quiet,
    /// The client has closed, or the connection is to end because it idled too long or the process drains.
    Closed,
    /// What came is not a request that can be served.
    Refused(Cause),
}

/// One client's connection.
pub struct Connection {
    /// The socket.
    pub stream: Stream,
    /// Reads requests.
    pub reader: MessageReader,
    /// Writes answers.
    pub writer: MessageWriter,
    /// The deadline of whatever the connection waits for now.
    pub phase: Timer,
    /// The client's address.
    pub peer: SocketAddr,
    /// What is known about the client, when its TLS ends here.
    pub secured: Option<Rc<Secured>>,
    /// Requests so far.
    pub requests: u32,
    drain: Rc<Cell<Drain>>,
    tunnel: Tunnel,
}

/// Whether the connection has gone on in another protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tunnel {
    No,
    Open,
    /// This side ends as soon as all is written.
    Ending,
}

impl Connection {
    /// A connection that was just accepted; `begun` has what was read of it already.
    pub fn new(
        stream: Stream,
        begun: ReadBuffer,
        secured: Option<Rc<Secured>>,
        peer: SocketAddr,
        limits: MessageLimits,
        wheel: &Wheel,
        drain: Rc<Cell<Drain>>,
    ) -> Self {
        Self {
            stream,
            reader: MessageReader::with(begun, limits),
            writer: MessageWriter::default(),
            phase: wheel.timer(),
            peer,
            secured,
            requests: 0,
            drain,
            tunnel: Tunnel::No,
        }
    }

    /// Waits for the first byte of a request; `patience` zero means for ever. Answers [`Next::Request`] when it is
    /// there, although the head may not be complete.
    async fn begun(&mut self, patience: Duration, late: Next) -> Next {
        self.phase.set(patience);
        poll_fn(|cx| {
            match self.reader.poll_begun(&self.stream, cx) {
                Poll::Ready(Ok(true)) => return Poll::Ready(Next::Request),
                Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(Next::Closed),
                Poll::Pending => {}
            }
            // A draining process closes connections between requests (RFC 9112, 9.5).
            // One that is new has its first request on the way.
            let drain = self.drain.get();
            let is_new = self.requests == 0 && !drain.closes_all_waiting();
            if drain.is_announced() && !is_new && drain.closes_waiting(drain::slot(self.peer)) {
                return Poll::Ready(Next::Closed);
            }
            self.phase.poll(cx).map(|()| late)
        })
        .await
    }

    /// Whether what has come is the preface of HTTP/2, which a client with prior knowledge begins with.
    pub async fn is_http2(&mut self, settings: &Settings) -> bool {
        self.phase.set(settings.header_timeout);
        poll_fn(|cx| {
            loop {
                let there = self.reader.data();
                let common = there.len().min(PREFACE.len());
                if there.get(..common) != PREFACE.get(..common) {
                    return Poll::Ready(false);
                }
                if common == PREFACE.len() {
                    return Poll::Ready(true);
                }
                match self.reader.poll_more(&self.stream, cx) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(false),
                    Poll::Pending => return self.phase.poll(cx).map(|()| false),
                }
            }
        })
        .await
    }

    /// Hands the connection over to somebody else, with what was read of it.
    pub fn into_parts(self) -> (Stream, ReadBuffer, Option<Rc<Secured>>, Rc<Cell<Drain>>) {
        (self.stream, self.reader.into_unread(), self.secured, self.drain)
    }

    /// Waits while the connection is cold.
    pub async fn wait(&mut self, settings: &Settings) -> Next {
        self.writer.reset();
        self.writer.release();
        self.begun(settings.idle_timeout, Next::Closed).await
    }

    /// The next request, if it comes soon.
    pub async fn next(&mut self, head: &mut RequestHead, settings: &Settings) -> Next {
        if !self.reader.has_unread() {
            let begun = self.begun(WARM, Next::Quiet).await;
            if begun != Next::Request {
                return begun;
            }
        }
        self.phase.set(settings.header_timeout);
        let read = poll_fn(|cx| {
            if let Poll::Ready(read) = self.reader.poll_request(&self.stream, cx, head) {
                return Poll::Ready(Some(read));
            }
            self.phase.poll(cx).map(|()| None)
        })
        .await;
        match read {
            Some(Ok(())) => {
                self.requests += 1;
                Next::Request
            }
            Some(Err(ReadError::Head(error))) => Next::Refused(Cause::RequestHead(error)),
            Some(Err(ReadError::Body(error))) => Next::Refused(Cause::RequestBody(error)),
            // A head that breaks off is answered, for a client that closed only its side.
            Some(Err(ReadError::Closed { clean: false })) => {
                Next::Refused(Cause::RequestHead(HeadError::FirstLine))
            }
            Some(Err(_)) => Next::Closed,
            // Empty lines, which old clients send behind a body, ask for nothing (RFC 9112, 2.2).
            None if !self.reader.has_begun() => Next::Closed,
            None => Next::Refused(Cause::HeaderTimeout),
        }
    }

    /// Ends the connection so that the client gets what was written: closes this direction, and reads and throws away
    /// for a while what the client still sends, because closing at once would answer it with a reset, and a reset
    /// makes the client's kernel drop what it has not read (RFC 9112, 9.6).
    pub async fn linger(&mut self, settings: &Settings) {
        self.stream.shutdown_write();
        if settings.linger_timeout.is_zero() {
            return;
        }
        self.phase.set(settings.linger_timeout);
        let mut left = settings.linger_bytes.max(1);
        poll_fn(|cx| {
            if self.reader.poll_discard(&self.stream, cx, &mut left).is_ready() {
                return Poll::Ready(());
            }
            self.phase.poll(cx)
        })
        .await;
    }
}

impl Downstream for Connection {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr()
    }

    fn secured(&self) -> Option<&Secured> {
        self.secured.as_deref()
    }

    fn drain(&self) -> Drain {
        self.drain.get()
    }

    fn requests(&self) -> u32 {
        self.requests
    }

    fn phase(&self) -> &Timer {
        &self.phase
    }

    fn is_body_done(&self) -> bool {
        self.reader.is_body_done()
    }

    fn whole_body(&self) -> Option<&[u8]> {
        self.reader.whole_body()
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        self.reader.poll_data(&self.stream, cx)
    }

    fn data(&self) -> &[u8] {
        self.reader.data()
    }

    fn take(&mut self, used: usize) {
        self.reader.take(used);
    }

    fn body_bytes(&self) -> u64 {
        self.reader.body_bytes()
    }

    fn trailers(&self, into: &mut HeaderList) {
        self.reader.trailers(into);
    }

    fn has_unread(&self) -> bool {
        self.reader.has_unread()
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.reader.poll_gone(&self.stream, cx)
    }

    fn interim_head(&mut self, head: &ResponseHead) {
        self.writer.interim_head(head);
    }

    fn response_head(&mut self, head: &ResponseHead, context: ResponseContext) -> bool {
        self.writer.response_head(head, context)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.writer.poll_data(&self.stream, cx, data)
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>, body: &[u8], at: &mut usize) -> Poll<io::Result<()>> {
        self.writer.poll_all(&self.stream, cx, body, at)
    }

    fn finish(&mut self, trailers: &HeaderList) {
        self.writer.finish(trailers);
        if self.tunnel == Tunnel::Open {
            self.tunnel = Tunnel::Ending;
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.writer.poll_flush(&self.stream, cx);
        if self.tunnel == Tunnel::Ending && flushed.is_ready() {
            self.tunnel = Tunnel::Open;
            self.stream.shutdown_write();
        }
        flushed
    }

    fn begin_tunnel(&mut self) {
        self.reader.begin_tunnel();
        self.tunnel = Tunnel::Open;
    }

    fn queued(&self) -> usize {
        self.writer.queued()
    }
}
