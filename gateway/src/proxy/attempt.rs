//! Attempts: a request is sent until an upstream begins to answer, or no retry is left.
//!
//! `core::attempt` decides; here are the connections, the bytes and the clocks that it decides about. What ends the wait
//! for an upstream, whatever it is for, is one function: the client is gone, or the time is over.

use super::body::{End, Moved, Sending, TURN_BYTES, poll_request};
use super::exchange::{Exchange, Outcome};
use super::{Context, upgrade};
use crate::clusters::{ClusterHandle, Lease, Start, StartStream};
use crate::downstream::Downstream;
use crate::io::h1::ReadError;
use crate::io::timer::Timer;
use crate::io::{clock, executor, spawn};
use crate::upstream::{self, Upstream};
use http::StatusCode;
use isthmus_core::attempt::{Attempts, BodyProgress, Failure, RetryPolicy, Verdict};
use isthmus_core::cluster::EndpointId;
use isthmus_core::h1::HeadError;
use isthmus_core::header::HeaderId;
use isthmus_core::message::{BodyLength, Version};
use isthmus_core::reply::Cause;
use isthmus_core::route::split_port;
use isthmus_core::tls::Offer;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

/// An upstream has answered: its head is in the exchange.
pub(super) struct Answered {
    pub(super) lease: Lease,
    pub(super) upstream: Upstream,
    pub(super) sent: Sending,
}

/// Sends the request until an upstream begins to answer.
pub(super) async fn attempt(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &Rc<ClusterHandle>,
) -> Result<Answered, End> {
    let mut attempts = Attempts::new(RetryPolicy::default(), &x.request.method);
    let mut avoid: Vec<EndpointId> = Vec::new();
    loop {
        let number = attempts.start();
        if number > 1 {
            context.stats.borrow_mut().counters.retries += 1;
        }
        x.request.headers.set(
            HeaderId::XEnvoyAttemptCount,
            itoa::Buffer::new().format(number).as_bytes(),
        );
        // The clock is read once for the first attempt and the request.
        let now = if number == 1 { x.started } else { clock::now() };
        let fresh = attempts.needs_fresh_connection();
        let (lease, failure, progress) = match connect(context, conn, x, cluster, &avoid, fresh, now).await? {
            Connected::No(lease, cause) => (
                Some(lease),
                Failure::Connect(cause),
                BodyProgress {
                    sent: false,
                    replayable: true,
                },
            ),
            Connected::Refused(cause) => return Err(End::Reply(cause.into())),
            Connected::Yes(lease, mut upstream) => {
                let began = if upstream.is_reused() { now } else { clock::now() };
                match send(context, conn, x, cluster, &mut upstream, began).await? {
                    Sent::Answered(sent) => {
                        return Ok(Answered {
                            lease,
                            upstream,
                            sent,
                        });
                    }
                    Sent::Failed(failure, progress) => (Some(lease), failure, progress),
                }
            }
        };
        if let Some(lease) = lease {
            avoid.push(lease.endpoint());
            lease.finish(None, clock::now());
        }
        let verdict = attempts.failed(failure, progress, &mut context.random.borrow_mut());
        match verdict {
            Verdict::GiveUp(reply) => return Err(End::Reply(reply)),
            Verdict::Retry(wait) if wait.is_zero() => {}
            Verdict::Retry(wait) => pause(context, conn, x, wait).await?,
        }
    }
}

/// Waits before a retry, unless the client goes away or the time is over.
async fn pause(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    wait: Duration,
) -> Result<(), End> {
    let timer = context.wheel.timer();
    timer.set(wait);
    poll_fn(|cx| {
        if timer.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        interrupted(conn, &x.route_timer, cx)
    })
    .await
}

/// What ends any wait for an upstream: the client is gone, or the route's time is over.
fn interrupted<T>(
    conn: &mut impl Downstream,
    route_timer: &Timer,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<T, End>> {
    if conn.poll_gone(cx).is_ready() {
        return Poll::Ready(Err(End::ClientGone));
    }
    route_timer
        .poll(cx)
        .map(|()| Err(End::Reply(Cause::UpstreamTimeout.into())))
}

enum Connected {
    Yes(Lease, Upstream),
    No(Lease, Cause),
    Refused(Cause),
}

async fn connect(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &Rc<ClusterHandle>,
    avoid: &[EndpointId],
    fresh: bool,
    now: Instant,
) -> Result<Connected, End> {
    let careful = !x.request.method.is_idempotent() || !conn.is_body_done();
    let name = cluster.tls_name(split_port(&x.request.authority).0);
    let name = name.as_deref();
    if cluster.version(x.request.version) == Version::Http2 {
        let parts = (&mut x.outcome, &x.route_timer, !x.request.upgrade.is_empty());
        return connect_stream(context, conn, parts, cluster, avoid, name, now).await;
    }
    match cluster.start(avoid, fresh, careful, name, now, &context.random) {
        Start::Refuse(cause) => Ok(Connected::Refused(cause)),
        Start::Reuse(lease, upstream) => {
            context.stats.borrow_mut().counters.upstream_reuses += 1;
            x.outcome.upstream_host = Some(upstream.address);
            Ok(Connected::Yes(lease, Upstream::H1(upstream)))
        }
        Start::Connect(lease, address, permit) => {
            x.outcome.upstream_host = Some(address);
            let wanted = match cluster.wanted(name, Offer::Http1, conn.peer(), conn.local_addr()) {
                Ok(wanted) => wanted,
                Err(cause) => return Ok(Connected::Refused(cause)),
            };
            let open = context.clusters.count_open();
            // Boxed: connecting is rare, and its state would make every request's larger.
            let connecting = Box::pin(upstream::connect::connect(
                address,
                wanted,
                permit,
                &context.pool,
                &context.wheel,
                context.limits,
                open,
            ));
            let mut connecting = pin!(connecting);
            let connected = poll_fn(|cx| {
                if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                    return Poll::Ready(Ok(connected));
                }
                interrupted(conn, &x.route_timer, cx)
            })
            .await?;
            let mut stats = context.stats.borrow_mut();
            match connected {
                Ok(upstream) => {
                    stats.counters.upstream_connects += 1;
                    Ok(Connected::Yes(lease, Upstream::H1(upstream)))
                }
                Err(cause) => {
                    stats.counters.upstream_connect_failures += 1;
                    Ok(Connected::No(lease, cause))
                }
            }
        }
    }
}

/// Gets a stream of a connection that others use, too.
async fn connect_stream(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    (outcome, route_timer, is_upgrade): (&mut Outcome, &Timer, bool),
    cluster: &Rc<ClusterHandle>,
    avoid: &[EndpointId],
    name: Option<&str>,
    now: Instant,
) -> Result<Connected, End> {
    let ends = (conn.peer(), conn.local_addr());
    let started = cluster.start_stream(avoid, name, ends, now, &context.random, &context.clusters);
    let (lease, connection) = match started {
        StartStream::Share(lease, connection) => {
            context.stats.borrow_mut().counters.upstream_reuses += 1;
            (lease, connection)
        }
        StartStream::Open(lease, connection, means) => {
            let (driven, owner, here) = (Rc::clone(&connection), Rc::clone(cluster), Rc::clone(context));
            spawn::spawn(&context.tasks, async move {
                let told = Rc::clone(&driven);
                let changed = move |change| owner.changed(&told, change);
                let with = (&here.pool, &here.wheel);
                upstream::h2::drive(driven, *means, with, here.limits, changed).await;
            });
            context.stats.borrow_mut().counters.upstream_connects += 1;
            (lease, connection)
        }
        StartStream::Refuse(cause) => return Ok(Connected::Refused(cause)),
    };
    outcome.upstream_host = Some(connection.address);
    let ready = poll_fn(|cx| {
        if let Poll::Ready(ready) = connection.poll_ready(is_upgrade, cx) {
            return Poll::Ready(Ok(ready));
        }
        interrupted(conn, route_timer, cx)
    })
    .await?;
    match ready {
        Ok(()) => {
            let stream = Box::new(upstream::h2::Stream::new(connection));
            Ok(Connected::Yes(lease, Upstream::H2(stream)))
        }
        Err(cause) => {
            context.stats.borrow_mut().counters.upstream_connect_failures += 1;
            Ok(Connected::No(lease, cause))
        }
    }
}

enum Sent {
    /// A final response's head is in the exchange.
    Answered(Sending),
    /// The attempt failed before that.
    Failed(Failure, BodyProgress),
}

/// Sends the request on one connection and waits for the head of a final response. The body is passed on meanwhile.
async fn send(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &ClusterHandle,
    upstream: &mut Upstream,
    started: Instant,
) -> Result<Sent, End> {
    let reused = upstream.is_reused();
    let is_upgrade = !x.request.upgrade.is_empty();
    if is_upgrade {
        upgrade::ask(&mut x.request, upstream, &mut context.random.borrow_mut());
    }
    // A body that has come as a whole meanwhile is sent as one, and then its head says so.
    if let (BodyLength::Chunked, Some(whole)) = (x.request.body, conn.whole_body()) {
        x.request.body = BodyLength::Known(whole.len() as u64);
    }
    x.to_upstream.reset();
    upstream.begin(&mut x.to_upstream, &x.request, |requests| {
        cluster.is_used_up(requests)
    });
    // What a client says behind its wish for another protocol is for that one.
    let mut sending = if is_upgrade || conn.is_body_done() || conn.whole_body().is_some() {
        Sending::Whole(0)
    } else {
        Sending::Streaming
    };
    let streamed = sending == Sending::Streaming;
    let mut interim = 0;
    let limit = context.settings.request_body_bytes;
    let timeout = x.timeout.unwrap_or_default();
    // Who has to move next: the client with its body, or the upstream.
    let mut on_client = false;
    let mut invited = !x.request.expects_continue;
    conn.phase().set(context.settings.stream_idle_timeout);
    loop {
        let Exchange {
            request,
            response,
            trailers,
            to_upstream,
            route_timer,
            ..
        } = &mut *x;
        let mut turn = TURN_BYTES;
        let read = poll_fn(|cx| {
            let mut has_more = false;
            match poll_request(
                conn,
                upstream,
                to_upstream,
                trailers,
                &mut sending,
                limit,
                &mut turn,
                cx,
            ) {
                // Envoy counts a route's time from the end of the request; a retry does not count it anew.
                Poll::Ready(Ok(Moved::All)) if !route_timer.is_set() => route_timer.set(timeout),
                Poll::Ready(Ok(Moved::All)) => {}
                Poll::Ready(Ok(Moved::Turn)) => has_more = true,
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => {}
            }
            if let Poll::Ready(read) = upstream.poll_response(cx, &request.method, response) {
                return Poll::Ready(Ok(Some(read)));
            }
            // An interim response may still be on its way to the client.
            if let Poll::Ready(Err(_)) = conn.poll_flush(cx) {
                return Poll::Ready(Err(End::ClientGone));
            }
            // While the body streams, its own reads notice a client that is gone.
            // Of HTTP/2 they do not while they have no room to go on, and a look costs no read.
            let may_be_gone =
                sending != Sending::Streaming || (request.version == Version::Http2 && conn.has_unread());
            if may_be_gone && conn.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(End::ClientGone));
            }
            if route_timer.poll(cx).is_ready() {
                return Poll::Ready(Err(End::Reply(Cause::UpstreamTimeout.into())));
            }
            // Bytes that wait to be written mean that the upstream is slow, not the client; and a client that asked
            // whether it may go on waits for the upstream's word.
            let waits_for_client = sending == Sending::Streaming
                && to_upstream.is_flushed()
                && !conn.has_unread()
                && (invited || conn.body_bytes() > 0);
            if waits_for_client != on_client {
                on_client = waits_for_client;
                conn.phase().set(if on_client {
                    context.settings.body_timeout
                } else {
                    context.settings.stream_idle_timeout
                });
            }
            if conn.phase().poll(cx).is_ready() {
                let cause = if on_client {
                    Cause::BodyTimeout
                } else {
                    Cause::StreamIdle
                };
                return Poll::Ready(Err(End::Reply(cause.into())));
            }
            // The upload could go on; everything else has been looked at.
            if has_more {
                Poll::Ready(Ok(None))
            } else {
                Poll::Pending
            }
        })
        .await?;
        let Some(read) = read else {
            executor::turn().await;
            continue;
        };
        // Of a body that streams, what was taken from the client is gone, even if the upstream never got it.
        let used = streamed && (conn.body_bytes() > 0 || conn.is_body_done());
        let progress = BodyProgress {
            sent: upstream.has_sent(&x.to_upstream) || used,
            replayable: !used,
        };
        let failure = match read {
            Ok(()) if x.response.status == StatusCode::SWITCHING_PROTOCOLS => {
                if upgrade::agree(x, upstream) {
                    x.outcome.upstream_time = Some(clock::now().saturating_duration_since(started));
                    x.outcome.upstream_local = upstream.local_addr();
                    return Ok(Sent::Answered(Sending::Streaming));
                }
                Failure::Final(Cause::UpstreamHead(HeadError::Upgrade))
            }
            // To a request for a tunnel over HTTP/2, a success says that there is one (RFC 8441, 5).
            Ok(()) if is_upgrade && x.request.version == Version::Http2 && x.response.status.is_success() => {
                Failure::Final(Cause::UpstreamHead(HeadError::Upgrade))
            }
            Ok(()) if x.response.status.is_informational() => {
                interim += 1;
                if interim > context.settings.interim_responses {
                    Failure::Final(Cause::UpstreamInterim)
                } else {
                    let wanted = x.response.status != StatusCode::CONTINUE || x.request.expects_continue;
                    if wanted && x.request.version != Version::Http10 {
                        conn.interim_head(&x.response);
                        invited |= x.response.status == StatusCode::CONTINUE;
                    }
                    continue;
                }
            }
            Ok(()) => {
                x.outcome.upstream_time = Some(clock::now().saturating_duration_since(started));
                x.outcome.upstream_local = upstream.local_addr();
                return Ok(Sent::Answered(sending));
            }
            Err(ReadError::Closed { .. } | ReadError::Io(_)) if interim == 0 && !upstream.has_unread() => {
                Failure::Reset { reused }
            }
            Err(ReadError::Closed { .. } | ReadError::Io(_)) => Failure::Final(Cause::UpstreamReset),
            Err(ReadError::Refused) => Failure::Refused,
            Err(ReadError::Reset) => Failure::Reset { reused: false },
            Err(ReadError::Unspeakable) if is_upgrade => {
                Failure::Final(Cause::UpstreamHead(HeadError::Upgrade))
            }
            Err(ReadError::Unspeakable) => Failure::Final(Cause::RequestPath),
            Err(ReadError::Head(error)) => Failure::Final(Cause::UpstreamHead(error)),
            Err(ReadError::Body(error)) => Failure::Final(Cause::UpstreamBody(error)),
        };
        return Ok(Sent::Failed(failure, progress));
    }
}
