//! Requests that wait for a connection, because their cluster has as many as it may.
//!
//! Who goes next is core's affair ([`isthmus_core::cluster::breaker`]); here a request waits for its turn, and leaves the
//! queue when its client goes away or its time is over.

use super::body::End;
use super::http::interrupted;
use crate::clusters::Place;
use crate::downstream::Downstream;
use crate::io::timer::Timer;
use isthmus_core::reply::Cause;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

/// Waits until the request at `place` may look for a connection. `idle` bounds the wait of a request whose body still
/// comes: the route's time begins at its end.
pub(super) async fn turn(
    conn: &mut impl Downstream,
    place: Option<&Place>,
    route_timer: &Timer,
    idle: Duration,
) -> Result<(), End> {
    let Some(place) = place else {
        return Ok(());
    };
    let is_bounded = route_timer.is_set();
    if !is_bounded {
        conn.phase().set(idle);
    }
    poll_fn(|cx| {
        if place.poll_turn(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !is_bounded && conn.phase().poll(cx).is_ready() {
            return Poll::Ready(Err(End::Reply(Cause::StreamIdle.into())));
        }
        interrupted(conn, route_timer, cx)
    })
    .await
}
