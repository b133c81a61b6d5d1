//! Connecting to one of several addresses of one endpoint (Happy Eyeballs, RFC 8305).
//!
//! They are tried in their order. The next one is tried when the last has failed, or has not answered for a while; those
//! that were begun go on, and the first that answers is taken. So an address that nobody answers at, or a family that
//! leads nowhere from here, costs a moment and no request.

use crate::io::stream::Stream;
use crate::io::timer::Wheel;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// How long an address may take before the next one is tried, too (RFC 8305, 5: Connection Attempt Delay).
const HEAD_START: Duration = Duration::from_millis(250);

type Attempt = Pin<Box<dyn Future<Output = io::Result<Stream>>>>;

/// Connects to the first that answers; `timeout` is for all of them together.
pub(super) async fn connect(
    targets: &[SocketAddr],
    timeout: Duration,
    wheel: &Wheel,
) -> io::Result<(Stream, SocketAddr)> {
    let mut waiting = targets.iter().copied();
    let mut racing: Vec<(SocketAddr, Attempt)> = Vec::new();
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let (deadline, next) = (wheel.timer(), wheel.timer());
    deadline.set(timeout.max(Duration::from_millis(1)));
    let mut is_next_due = true;
    poll_fn(|cx| {
        if deadline.poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        loop {
            is_next_due |= next.poll(cx).is_ready();
            if std::mem::take(&mut is_next_due) {
                next.clear();
                if let Some(target) = waiting.next() {
                    racing.push((target, Box::pin(Stream::connect(target, timeout))));
                    next.set(HEAD_START);
                }
            }
            let mut at = 0;
            while let Some((target, attempt)) = racing.get_mut(at) {
                match attempt.as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Ok((stream, *target))),
                    Poll::Ready(Err(error)) => {
                        tracing::debug!(address = %target, %error, "one of several addresses cannot be reached");
                        // Only the last one begun has the next wait for it.
                        is_next_due |= at + 1 == racing.len();
                        let _failed = racing.remove(at);
                        failed = error;
                    }
                }
            }
            if racing.is_empty() && waiting.len() == 0 {
                let error = std::mem::replace(&mut failed, io::ErrorKind::ConnectionRefused.into());
                return Poll::Ready(Err(error));
            }
            if !is_next_due || waiting.len() == 0 {
                return Poll::Pending;
            }
        }
    })
    .await
}
