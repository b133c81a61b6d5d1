//! Tunnels: bytes that reach their target through a proxy which is asked for it by CONNECT (RFC 9110, 9.3.6; Istio
//! `DestinationRule` `tunnel`). The endpoint of the cluster is the proxy; once it has agreed, the connection is the
//! target's.

use crate::io::buffer::{Filled, Pool, ReadBuffer};
use crate::io::stream::Stream;
use crate::io::timer::Wheel;
use http::Method;
use isthmus_core::cluster::Tunnel;
use isthmus_core::h1::{HeadParser, Parsed};
use isthmus_core::limits::MessageLimits;
use isthmus_core::message::ResponseHead;
use isthmus_core::reply::Cause;
use std::future::poll_fn;
use std::io::IoSlice;
use std::task::{Poll, ready};
use std::time::Duration;

/// Asks the proxy at the other end for a tunnel. What has come behind its answer is the target's, and in the buffer.
pub async fn ask(
    stream: &Stream,
    target: &Tunnel,
    patience: Duration,
    pool: &Pool,
    wheel: &Wheel,
    limits: &MessageLimits,
) -> Result<ReadBuffer, Cause> {
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let mut left = request.as_bytes();
    let mut buffer = ReadBuffer::new(pool);
    let mut parser = HeadParser::default();
    let mut head = ResponseHead::default();
    let deadline = wheel.timer();
    deadline.set(patience);
    let asked = poll_fn(|cx| {
        while !left.is_empty() {
            match stream.poll_write(cx, &[IoSlice::new(left)]) {
                Poll::Ready(Ok(written)) => left = left.get(written..).unwrap_or(&[]),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Cause::ConnectFailed)),
                Poll::Pending => return deadline.poll(cx).map(|()| Err(Cause::ConnectTimeout)),
            }
        }
        match stream.poll_flush(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Cause::ConnectFailed)),
            Poll::Pending => return deadline.poll(cx).map(|()| Err(Cause::ConnectTimeout)),
        }
        loop {
            match parser.parse_response(buffer.data(), limits, &Method::CONNECT, &mut head) {
                Ok(Parsed::Complete(used)) => {
                    buffer.consume(used);
                    if !head.status.is_informational() {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                Ok(Parsed::Partial) => {}
                Err(error) => return Poll::Ready(Err(Cause::UpstreamHead(error))),
            }
            match buffer.poll_fill(stream, cx) {
                Poll::Ready(Ok(Filled::Bytes(_))) => {}
                Poll::Ready(Ok(Filled::End | Filled::Full) | Err(_)) => {
                    return Poll::Ready(Err(Cause::ConnectFailed));
                }
                Poll::Pending => {
                    ready!(deadline.poll(cx));
                    return Poll::Ready(Err(Cause::ConnectTimeout));
                }
            }
        }
    });
    asked.await?;
    if head.status.is_success() {
        return Ok(buffer);
    }
    tracing::debug!(target = %target, status = head.status.as_u16(), "a proxy refuses a tunnel");
    Err(Cause::TunnelRefused)
}
