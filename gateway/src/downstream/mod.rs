//! Connections of clients: requests come out, answers go in. The codecs know nothing of routing or upstreams.
//!
//! What the proxy sees of a client is one exchange, [`Downstream`]: the request's body comes out of it piece by piece,
//! the answer goes into it, and which version of HTTP carries both is the codec's affair.

pub mod h1;
pub mod h2;
pub mod proxy_header;
pub mod tls;

use crate::io::h1::{Chunk, ReadError};
use crate::io::timer::Timer;
use isthmus_core::drain::Drain;
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::header::HeaderList;
use isthmus_core::message::ResponseHead;
use isthmus_core::tls::ServerTls;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use tls::Secured;

/// The client's side of one exchange.
///
/// The request's body: [`Self::poll_data`] finds bytes, [`Self::data`] shows them, [`Self::take`] notes how many were
/// passed on; what is not taken holds the client back. The answer: a head, then data, then [`Self::finish`]; what
/// [`Self::poll_write`] does not take, the client's side has no room for.
pub trait Downstream {
    /// The client's address.
    fn peer(&self) -> SocketAddr;
    /// The address that it has connected to.
    fn local_addr(&self) -> Option<SocketAddr>;
    /// What is known about the client, when its TLS ends here.
    fn secured(&self) -> Option<&Secured>;
    /// How far the process, or the listener, is on its way out.
    fn drain(&self) -> Drain;
    /// Requests that the connection has carried, the present one included.
    fn requests(&self) -> u32;
    /// The deadline of whatever the exchange waits for now.
    fn phase(&self) -> &Timer;

    /// Whether the request's body, if any, is wholly read.
    fn is_body_done(&self) -> bool;
    /// The whole rest of the body, when all of it has arrived already: it can be sent more than once.
    fn whole_body(&self) -> Option<&[u8]>;
    /// Finds data of the body, reading when there is none.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Chunk, ReadError>>;
    /// The bytes that were found, and perhaps more behind them.
    fn data(&self) -> &[u8];
    /// Notes that so many bytes of a [`Chunk::Data`] were passed on.
    fn take(&mut self, used: usize);
    /// Bytes of the body that were passed on.
    fn body_bytes(&self) -> u64;
    /// The trailers of a body that is done.
    fn trailers(&self, into: &mut HeaderList);
    /// Whether bytes have come that were not used yet.
    fn has_unread(&self) -> bool;
    /// Ready when the client has gone: it waits for no answer any more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Queues an interim response.
    fn interim_head(&mut self, head: &ResponseHead);
    /// Queues a response's head; answers whether the connection must close after it.
    fn response_head(&mut self, head: &ResponseHead, context: ResponseContext) -> bool;
    /// Takes some of `data`, at least a byte, and answers how much.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    /// Writes what is queued and then `body`, which is all there is. `at` counts how much of it is written, so that
    /// the call can be repeated.
    fn poll_write_all(&mut self, cx: &mut Context<'_>, body: &[u8], at: &mut usize) -> Poll<io::Result<()>>;
    /// Queues the end of the body.
    fn finish(&mut self, trailers: &HeaderList);
    /// Writes what is queued.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Once the head of an answer that agrees to an upgrade is queued: what follows is bytes in both directions, each of
    /// which ends by itself.
    fn begin_tunnel(&mut self);
    /// How many bytes are queued and not written.
    fn queued(&self) -> usize;

    /// Whether answers announce the connection's end.
    fn is_draining(&self) -> bool {
        self.drain().is_announced()
    }

    /// `http` or `https`.
    fn scheme(&self) -> &'static str {
        if self.secured().is_some() { "https" } else { "http" }
    }

    /// What was shown and demanded, when TLS ends here.
    fn policy(&self) -> Option<&Arc<ServerTls>> {
        self.secured().map(|secured| &secured.policy)
    }
}
