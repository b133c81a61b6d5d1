//! The PROXY header with which a balancer in front of the gateway says who its client is.

use crate::io::buffer::{Filled, ReadBuffer};
use crate::io::stream::Stream;
use crate::io::timer::Timer;
use isthmus_core::listener::ProxyProtocol;
use isthmus_core::proxy_protocol::{self, Addresses, Parsed};
use isthmus_core::reply::Cause;
use std::future::poll_fn;
use std::task::Poll;

/// Takes the header off the front of a trusted peer's connection; what came behind it stays in `buffer`. None when there
/// is none, or when it says nothing.
pub async fn read(
    stream: &Stream,
    buffer: &mut ReadBuffer,
    mode: ProxyProtocol,
    deadline: &mut Timer,
) -> Result<Option<Addresses>, Cause> {
    poll_fn(|cx| {
        loop {
            match proxy_protocol::parse(buffer.data()) {
                Ok(Parsed::Header { used, addresses }) => {
                    buffer.consume(used);
                    return Poll::Ready(Ok(addresses));
                }
                Ok(Parsed::Absent) if mode == ProxyProtocol::Accept => return Poll::Ready(Ok(None)),
                Ok(Parsed::Absent) | Err(_) => return Poll::Ready(Err(Cause::ProxyHeader)),
                Ok(Parsed::Incomplete) => {}
            }
            match buffer.poll_fill(stream, cx) {
                Poll::Ready(Ok(Filled::Bytes(_))) => {}
                Poll::Ready(Ok(Filled::Full | Filled::End) | Err(_)) => {
                    return Poll::Ready(Err(Cause::ProxyHeader));
                }
                Poll::Pending => return deadline.poll(cx).map(|()| Err(Cause::ProxyHeader)),
            }
        }
    })
    .await
}
