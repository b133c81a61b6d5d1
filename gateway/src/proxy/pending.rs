//! Requests that wait for a connection, because their cluster has as many as it may.
//!
//! Who goes next is core's affair ([`isthmus_core::cluster::breaker`]); here a request waits for its turn, and leaves the
//! queue when its client goes away or its time is over.

use super::attempt::Timers;
use super::body::End;
use crate::clusters::Place;
use crate::downstream::Downstream;
use isthmus_core::reply::Cause;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

/// Waits until the request at `place` may look for a connection. An attempt whose own time ends here is not made again:
/// the cluster has enough to do. `idle` bounds the wait of a request whose body still
/// comes: the route's time begins at its end.
pub(super) async fn turn(
    conn: &mut impl Downstream,
    place: Option<&Place>,
    timers: Timers<'_>,
    idle: Duration,
) -> Result<(), End> {
    let Some(place) = place else {
        return Ok(());
    };
    let is_bounded = timers.route.is_set();
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
        timers.interrupted(conn, cx).map(|ended| {
            let too_late = Err(End::Reply(Cause::UpstreamTimeout.into()));
            ended.and_then(|ended| ended.map_or(too_late, Ok))
        })
    })
    .await
}
