//! Connections to endpoints: made by [`connect`], used by the proxy, kept by `clusters` while they idle.

pub mod connect;
pub mod h2;
pub mod health;
mod race;
pub mod tunnel;

use crate::io::h1::{Chunk, MessageReader, MessageWriter, ReadError};
use crate::io::stream::Stream;
use http::Method;
use isthmus_core::header::HeaderList;
use isthmus_core::message::{RequestHead, ResponseHead, Version};
use isthmus_core::shared::Permit;
use rustls::ClientConfig;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// Counts what is open; goes down when dropped.
#[derive(Debug)]
pub struct Open(Rc<Cell<u64>>);

impl Open {
    /// One more.
    pub fn new(count: &Rc<Cell<u64>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// One connection to an endpoint.
pub struct Connection {
    /// The socket.
    pub stream: Stream,
    /// Reads answers.
    pub reader: MessageReader,
    /// Where it leads.
    pub address: SocketAddr,
    /// The name that its TLS was asked for; None for plaintext.
    pub name: Option<Box<str>>,
    /// What was shown and demanded; None for plaintext.
    pub config: Option<Arc<ClientConfig>>,
    /// Whether its PROXY header names one client, so that no other may use it.
    pub is_for_one: bool,
    /// When it was made.
    pub born: Instant,
    /// Requests that it has carried, the present one included.
    pub requests: u32,
    /// Whether it has gone on in another protocol.
    pub is_tunnel: bool,
    /// Whether the upstream may have more to say although its last answer has ended: it must be looked at before it is
    /// used again.
    pub is_doubtful: bool,
    /// Its permit of the cluster's budget.
    pub permit: Permit,
    /// Its place in the count of open connections.
    pub open: Open,
}

/// The upstream's side of one exchange, whatever HTTP version carries it.
///
/// The request: a head, then data, then [`Self::finish`], through a `writer` that the exchange lends, because its
/// buffer is used again for the next one. The answer: a head, then data, as with a client's request.
pub enum Upstream {
    /// A connection of its own.
    H1(Box<Connection>),
    /// A stream of a connection that others use, too.
    H2(Box<h2::Stream>),
}

impl Upstream {
    /// The version of HTTP that is spoken with it.
    pub const fn version(&self) -> Version {
        match self {
            Self::H1(_) => Version::Http11,
            Self::H2(_) => Version::Http2,
        }
    }

    /// Whether the connection has carried other requests before.
    pub fn is_reused(&self) -> bool {
        match self {
            Self::H1(connection) => connection.requests > 0,
            Self::H2(stream) => stream.is_reused(),
        }
    }

    /// Why the connection has ended, if it has and that is known.
    pub fn ended(&self) -> Option<h2::Ended> {
        match self {
            Self::H1(_) => None,
            Self::H2(stream) => stream.ended(),
        }
    }

    /// This end's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::H1(connection) => connection.stream.local_addr(),
            Self::H2(stream) => stream.local_addr(),
        }
    }

    /// Queues the request's head; `is_last` tells whether the connection may carry no more than so many.
    pub fn begin(
        &mut self,
        writer: &mut MessageWriter,
        head: &RequestHead,
        is_last: impl FnOnce(u32) -> bool,
    ) {
        match self {
            Self::H1(connection) => {
                connection.requests += 1;
                writer.request_head(head, is_last(connection.requests));
            }
            Self::H2(stream) => stream.begin(head),
        }
    }

    /// Takes some of `data`, at least a byte, and answers how much.
    pub fn poll_write(
        &mut self,
        writer: &mut MessageWriter,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::H1(connection) => writer.poll_data(&connection.stream, cx, data),
            Self::H2(stream) => stream.poll_write(cx, data),
        }
    }

    /// Writes what is queued and then `body`, which is all there is. `at` counts how much of it is written, so that
    /// the call can be repeated.
    pub fn poll_write_all(
        &mut self,
        writer: &mut MessageWriter,
        cx: &mut Context<'_>,
        body: &[u8],
        at: &mut usize,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::H1(connection) => {
                let written = writer.poll_all(&connection.stream, cx, body, at);
                if connection.is_tunnel && matches!(written, Poll::Ready(Ok(()))) {
                    connection.stream.shutdown_write();
                }
                written
            }
            Self::H2(stream) => stream.poll_write_all(cx, body, at),
        }
    }

    /// Queues the end of the body.
    pub fn finish(&mut self, writer: &mut MessageWriter, trailers: &HeaderList) {
        match self {
            Self::H1(_) => writer.finish(trailers),
            Self::H2(stream) => stream.finish(trailers),
        }
    }

    /// Writes what is queued.
    pub fn poll_flush(&mut self, writer: &mut MessageWriter, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::H1(connection) => writer.poll_flush(&connection.stream, cx),
            // What a stream takes is on its way already.
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Reads the head of an answer; interim ones are answered like any other.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), ReadError>> {
        match self {
            Self::H1(connection) => connection
                .reader
                .poll_response(&connection.stream, cx, method, head),
            Self::H2(stream) => stream.poll_response(cx, method, head),
        }
    }

    /// After the head of an answer that agrees to an upgrade: what follows is bytes in both directions, each of which
    /// ends by itself.
    pub fn begin_tunnel(&mut self) {
        match self {
            Self::H1(connection) => {
                connection.reader.begin_tunnel();
                connection.is_tunnel = true;
            }
            // Streams carry bytes as they carry bodies.
            Self::H2(_) => {}
        }
    }

    /// Finds data of the answer's body, reading when there is none.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>> {
        match self {
            Self::H1(connection) => connection.reader.poll_data(&connection.stream, cx),
            Self::H2(stream) => stream.poll_data(cx),
        }
    }

    /// The bytes that were found, and perhaps more behind them.
    pub fn data(&self) -> &[u8] {
        match self {
            Self::H1(connection) => connection.reader.data(),
            Self::H2(stream) => stream.data(),
        }
    }

    /// Notes that so many bytes of a [`Chunk::Data`] were passed on.
    pub fn take(&mut self, used: usize) {
        match self {
            Self::H1(connection) => connection.reader.take(used),
            Self::H2(stream) => stream.take(used),
        }
    }

    /// The trailers of a body that is done.
    pub fn trailers(&self, into: &mut HeaderList) {
        match self {
            Self::H1(connection) => connection.reader.trailers(into),
            Self::H2(stream) => stream.trailers(into),
        }
    }

    /// Bytes of the answer's body that were passed on.
    pub fn body_bytes(&self) -> u64 {
        match self {
            Self::H1(connection) => connection.reader.body_bytes(),
            Self::H2(stream) => stream.body_bytes(),
        }
    }

    /// Whether anything of the request was handed over.
    pub fn has_sent(&self, writer: &MessageWriter) -> bool {
        match self {
            Self::H1(_) => writer.written() > 0,
            Self::H2(stream) => stream.has_sent(),
        }
    }

    /// Whether a byte of an answer has come that was not used.
    pub fn has_unread(&self) -> bool {
        match self {
            Self::H1(connection) => connection.reader.has_unread(),
            Self::H2(_) => false,
        }
    }
}
