//! One HTTP exchange from its request's head to its answer's last byte.
//!
//! The steps follow each other in this file: normalize the request, find its route, answer locally or forward; to
//! forward, pick a destination, then attempt until an upstream answers or the attempts are spent; then pass both bodies
//! on at the same time. Whatever happens ends in one [`Outcome`](super::exchange::Outcome), which is counted and logged once.

use super::body::{
    Broken, End, Moved, Sending, TURN_BYTES, drop_whole_body, poll_request, poll_response_body,
};
use super::exchange::{After, Exchange, Outcome};
use super::fields;
use super::local::{self, Answer};
use super::watch::{status_of, watched};
use super::{Context, FoundHost, ListenerState, pending, upgrade};
use crate::access_log::Record;
use crate::clusters::{ClusterHandle, Lease, Start, StartStream};
use crate::downstream::Downstream;
use crate::io::h1::ReadError;
use crate::io::timer::Timer;
use crate::io::{clock, executor, spawn};
use crate::upstream::{self, Upstream};
use http::{Method, StatusCode};
use isthmus_core::attempt::{Attempts, BodyProgress, Failure, RetryPolicy, Verdict};
use isthmus_core::cluster::outlier::Signal;
use isthmus_core::cluster::{Choice, EndpointId};
use isthmus_core::forwarded;
use isthmus_core::grpc;
use isthmus_core::h1::HeadError;
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::header::HeaderId;
use isthmus_core::message::{BodyLength, RequestHead, Version};
use isthmus_core::path;
use isthmus_core::reply::{Cause, Flags};
use isthmus_core::route::{Action, Destination, Forward, split_port};
use isthmus_core::stats::Finished;
use isthmus_core::tls::Offer;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

struct Active(Rc<Cell<u64>>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Serves the request that is in `x.request`, and says what becomes of the connection.
pub async fn serve(
    context: &Rc<Context>,
    listener: &ListenerState,
    conn: &mut impl Downstream,
    x: &mut Exchange,
) -> After {
    let started = clock::now();
    let _active = {
        context.active.set(context.active.get() + 1);
        Active(Rc::clone(&context.active))
    };
    x.outcome = Outcome::default();
    x.original_path.clear();
    x.route_name.clear();
    x.route_timer.clear();
    x.started = started;
    route(context, listener, conn, x).await;
    x.route_timer.clear();
    finish(context, conn, x, started);
    x.outcome.after
}

/// Answers bytes that are no request, and counts and logs them as one.
pub async fn refuse(context: &Context, conn: &mut impl Downstream, x: &mut Exchange, cause: Cause) -> After {
    let started = clock::now();
    x.started = started;
    x.outcome = Outcome::default();
    x.original_path.clear();
    x.route_name.clear();
    if matches!(cause, Cause::RequestHead(_) | Cause::HeaderTimeout) && x.request.version != Version::Http2 {
        // The head may be half of this request's and half of the last one's: the log shows that it is not known.
        x.request.clear();
        x.request.method = Method::from_bytes(b"-").unwrap_or_default();
        x.request.set_path("-");
    }
    local::refuse(context, conn, x, cause.into(), true).await;
    finish(context, conn, x, started);
    x.outcome.after
}

fn finish(context: &Context, conn: &impl Downstream, x: &mut Exchange, started: Instant) {
    let outcome = &x.outcome;
    let ended = outcome.ended.unwrap_or_else(clock::now);
    let duration = ended.saturating_duration_since(started);
    let request_bytes = conn.body_bytes();
    let facts = Finished {
        duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        request_bytes,
        response_bytes: outcome.response_bytes,
    };
    context
        .stats
        .borrow_mut()
        .finish(outcome.cluster_key(), outcome.status, outcome.flags, facts);
    if context.log.is_on() {
        let wall = clock::wall();
        context.log.write(&Record {
            start: wall.checked_sub(duration).unwrap_or(wall),
            request: &x.request,
            original_path: (!x.original_path.is_empty()).then_some(x.original_path.as_str()),
            status: outcome.status.map(|status| status.as_u16()),
            flags: outcome.flags,
            detail: outcome.detail,
            bytes_received: request_bytes,
            bytes_sent: outcome.response_bytes,
            duration,
            upstream_time: outcome.upstream_time,
            upstream_host: outcome.upstream_host,
            upstream_local: outcome.upstream_local,
            cluster: outcome.cluster_key().as_ref().map_or("", |key| key.as_str()),
            local: conn.local_addr(),
            peer: conn.peer(),
            server_name: conn.secured().and_then(|secured| secured.server_name.as_deref()),
            route: &x.route_name,
        });
    }
}

async fn route(
    context: &Rc<Context>,
    listener: &ListenerState,
    conn: &mut impl Downstream,
    x: &mut Exchange,
) {
    if path::normalize(&mut x.request, context.settings.path_normalization).is_err() {
        return local::refuse(context, conn, x, Cause::RequestPath.into(), false).await;
    }
    let too_large = match (context.settings.request_body_bytes, x.request.body) {
        (0, _) => false,
        (limit, BodyLength::Known(length)) => length > limit,
        _ => false,
    };
    if too_large {
        return local::refuse(context, conn, x, Cause::RequestTooLarge.into(), true).await;
    }
    match max_forwards(&mut x.request) {
        Ok(true) => {}
        Ok(false) => {
            // The last recipient answers by itself (RFC 9110, 7.6.2).
            x.response.clear();
            let answer = Answer {
                status: StatusCode::OK,
                flags: Flags::NONE,
                detail: "max_forwards_reached",
                location: None,
                body: &[],
                operations: &[],
                close: false,
            };
            return local::send(context, conn, x, answer).await;
        }
        Err(cause) => return local::refuse(context, conn, x, cause.into(), false).await,
    }
    x.request.headers.remove_connection_fields();
    if !x.request.upgrade.is_empty() && !listener.serving.borrow().passes(&x.request.upgrade) {
        if x.request.version == Version::Http2 {
            // A tunnel is all that was asked for.
            let cause = Cause::RequestHead(HeadError::Connect);
            return local::refuse(context, conn, x, cause.into(), false).await;
        }
        // Not to change the protocol is an answer that every client understands (RFC 9110, 7.8).
        x.request.upgrade.clear();
    }
    let downstream = forwarded::Downstream {
        peer: conn.peer().ip(),
        scheme: conn.scheme(),
        port: listener.key.port,
        trusted_proxies: context.settings.trusted_proxies,
    };
    let client_cert = conn.secured().and_then(|secured| secured.client_cert.as_deref());
    context
        .settings
        .forward_client_cert
        .apply(&mut x.request.headers, client_cert);
    x.client = forwarded::apply(&mut x.request, downstream, &mut context.random.borrow_mut());

    let found = listener.serving.borrow().find(conn.policy(), &x.request.host);
    let pin = match found {
        FoundHost::Host(pin) => pin,
        FoundHost::Unknown => {
            return local::refuse(context, conn, x, Cause::NoVirtualHost.into(), false).await;
        }
        FoundHost::Misdirected => {
            return local::refuse(context, conn, x, Cause::Misdirected.into(), false).await;
        }
    };
    if pin.host.https_redirect {
        let host = split_port(&x.request.authority).0;
        let location = format!("https://{host}{}", x.request.path);
        return redirect(context, conn, x, StatusCode::MOVED_PERMANENTLY, &location, &[]).await;
    }
    let found = pin
        .host
        .find(&x.request, conn.scheme(), &mut context.scratch.borrow_mut());
    let Some(route) = found else {
        return local::refuse(context, conn, x, Cause::NoRoute.into(), false).await;
    };
    x.route_name.push_str(&route.name);
    match &*route.action {
        Action::Redirect(to) => {
            let location = to.location(&x.request, conn.scheme(), listener.key.port);
            redirect(context, conn, x, to.status, &location, &route.response_headers).await;
        }
        // To a request for a tunnel, a success says that there is one (RFC 8441, 5).
        Action::Respond(direct)
            if direct.status.is_success()
                && !x.request.upgrade.is_empty()
                && x.request.version == Version::Http2 =>
        {
            let cause = Cause::RequestHead(HeadError::Connect);
            local::refuse(context, conn, x, cause.into(), false).await;
        }
        Action::Respond(direct) => {
            x.response.clear();
            let answer = Answer {
                status: direct.status,
                flags: Flags::NONE,
                detail: "direct_response",
                location: None,
                body: &direct.body,
                operations: &route.response_headers,
                close: false,
            };
            local::send(context, conn, x, answer).await;
        }
        Action::Forward(forward) => forward_request(context, conn, x, forward).await,
    }
}

async fn redirect(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    status: StatusCode,
    location: &str,
    operations: &[isthmus_core::header::HeaderOperations],
) {
    x.response.clear();
    let answer = Answer {
        status,
        flags: Flags::NONE,
        detail: "direct_response",
        location: Some(location),
        body: &[],
        operations,
        close: false,
    };
    local::send(context, conn, x, answer).await;
}

/// Counts Max-Forwards of TRACE and OPTIONS down; false when it was 0.
fn max_forwards(request: &mut RequestHead) -> Result<bool, Cause> {
    if !matches!(request.method, Method::TRACE | Method::OPTIONS) {
        return Ok(true);
    }
    let Some(value) = request.headers.get(HeaderId::MaxForwards) else {
        return Ok(true);
    };
    let number = std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match number.and_then(|text| text.parse::<u32>().ok()) {
        Some(0) => Ok(false),
        Some(hops) => {
            request.headers.set(
                HeaderId::MaxForwards,
                itoa::Buffer::new().format(hops - 1).as_bytes(),
            );
            Ok(true)
        }
        None => Err(Cause::RequestHead(HeadError::MaxForwards)),
    }
}

/// How long the request may take: what the route says, and no longer than a gRPC client waits.
fn timeout(request: &RequestHead, forward: &Forward) -> Option<Duration> {
    let is_call = request
        .headers
        .get(HeaderId::ContentType)
        .is_some_and(grpc::is_call);
    let asked = is_call
        .then(|| request.headers.get(HeaderId::GrpcTimeout))
        .flatten()
        .and_then(grpc::parse_timeout)
        .filter(|asked| !asked.is_zero());
    match (forward.timeout, asked) {
        (Some(route), Some(asked)) => Some(route.min(asked)),
        (route, asked) => route.or(asked),
    }
}

/// Makes the request what its destination is to get.
fn rewrite(conn: &impl Downstream, x: &mut Exchange, forward: &Forward, destination: &Destination) {
    let request = &mut x.request;
    if let Some(rewrite) = &forward.path {
        let path = rewrite.apply(request);
        x.original_path.push_str(&request.path);
        request
            .headers
            .set(HeaderId::XEnvoyOriginalPath, request.path.as_bytes());
        request.set_path(&path);
    }
    if let Some(authority) = &destination.authority {
        request.headers.remove(HeaderId::XEnvoyOriginalHost);
        request
            .headers
            .append_known(HeaderId::XEnvoyOriginalHost, request.authority.as_bytes());
        request.set_authority(authority);
    }
    fields::change_request(conn, x, conn.scheme(), &destination.request_headers);
    x.timeout = timeout(&x.request, forward);
    if let Some(timeout) = x.timeout {
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        x.request.headers.set(
            HeaderId::XEnvoyExpectedRqTimeoutMs,
            itoa::Buffer::new().format(ms).as_bytes(),
        );
    }
}

async fn forward_request(
    context: &Rc<Context>,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    forward: &Forward,
) {
    let Some(destination) = forward.pick(&mut context.random.borrow_mut()) else {
        return local::refuse(context, conn, x, Cause::NoCluster.into(), false).await;
    };
    let Some(cluster) = context.clusters.get(&destination.cluster) else {
        x.outcome.unknown_cluster = Some(destination.cluster.clone());
        return local::refuse(context, conn, x, Cause::NoCluster.into(), false).await;
    };
    x.outcome.cluster = Some(Rc::clone(&cluster));
    rewrite(conn, x, forward, destination);
    let key = cluster.key_of(&x.request, x.client, conn.peer(), conn.local_addr());
    x.hash = key.hash();
    x.set_cookie = key.into_cookie();
    if conn.is_body_done() || conn.whole_body().is_some() || !x.request.upgrade.is_empty() {
        x.route_timer.set(x.timeout.unwrap_or_default());
    }
    let attempted = attempt(context, conn, x, &cluster).await;
    match attempted {
        Ok(Answered {
            lease,
            upstream,
            sent,
        }) => {
            pass_on(context, conn, x, &cluster, destination, upstream, lease, sent).await;
        }
        Err(End::Reply(reply)) => {
            // A request that broke off in the middle of its body leaves nothing to go on with.
            let broken = matches!(
                reply.cause,
                Cause::RequestBody(_) | Cause::RequestTooLarge | Cause::BodyTimeout
            );
            local::refuse(context, conn, x, reply, broken).await;
        }
        Err(End::ClientGone) => {
            context.count_cause(Cause::ClientGone);
            x.outcome.flags = Flags::DC;
            x.outcome.detail = Cause::ClientGone.detail();
            x.outcome.after = After::Abort;
        }
    }
}

/// An upstream has answered: its head is in the exchange.
struct Answered {
    lease: Lease,
    upstream: Upstream,
    sent: Sending,
}

/// Sends the request until an upstream begins to answer.
async fn attempt(
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
                match watched(
                    &lease,
                    send(context, conn, x, cluster, &mut upstream, began).await,
                )? {
                    Sent::Answered(sent) => {
                        lease.report(Signal::Status(status_of(x)), clock::now());
                        if let Some(time) = x.outcome.upstream_time {
                            lease.observe(Some(time), began + time);
                        }
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
            let now = clock::now();
            lease.observe(None, now);
            // A connection that idled too long says nothing about its endpoint.
            if !matches!(failure, Failure::Reset { reused: true }) {
                lease.report(Signal::NoAnswer, now);
            }
            // A key leads to one endpoint, also in the next attempt (Istio turns `retryIgnorePreviousHosts` off then).
            if x.hash.is_none() {
                avoid.push(lease.endpoint());
            }
            lease.finish(None, now);
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
pub(super) fn interrupted<T>(
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
    let choice = Choice {
        hash: x.hash,
        avoid,
        now,
    };
    if cluster.version(x.request.version) == Version::Http2 {
        let parts = (&mut x.outcome, &x.route_timer, !x.request.upgrade.is_empty());
        return connect_stream(context, conn, parts, cluster, choice, name).await;
    }
    let mut place = None;
    let started = loop {
        match cluster.start(choice, fresh, careful, name, &context.random, &mut place) {
            Start::Wait => {
                let idle = context.settings.stream_idle_timeout;
                pending::turn(conn, place.as_ref(), &x.route_timer, idle).await?;
            }
            started => break started,
        }
    };
    drop(place);
    match started {
        Start::Refuse(cause) => Ok(Connected::Refused(cause)),
        Start::Reuse(lease, upstream) => {
            context.stats.borrow_mut().counters.upstream_reuses += 1;
            x.outcome.upstream_host = Some(upstream.address);
            Ok(Connected::Yes(lease, Upstream::H1(upstream)))
        }
        // Waited for above.
        Start::Wait => Ok(Connected::Refused(Cause::Overflow)),
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
    choice: Choice<'_>,
    name: Option<&str>,
) -> Result<Connected, End> {
    let ends = (conn.peer(), conn.local_addr());
    let (random, clusters) = (&context.random, &context.clusters);
    let mut place = None;
    let started = loop {
        match cluster.start_stream(choice, name, ends, random, clusters, &mut place) {
            StartStream::Wait => {
                let idle = context.settings.stream_idle_timeout;
                pending::turn(conn, place.as_ref(), route_timer, idle).await?;
            }
            started => break started,
        }
    };
    drop(place);
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
        // Waited for above.
        StartStream::Wait => return Ok(Connected::Refused(Cause::Overflow)),
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

/// Passes the response on, and what is left of the request.
#[allow(
    clippy::too_many_arguments,
    reason = "each is a part of the exchange that ends here"
)]
async fn pass_on(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    cluster: &ClusterHandle,
    destination: &Destination,
    mut upstream: Upstream,
    lease: Lease,
    mut sending: Sending,
) {
    if sending == Sending::Done {
        drop_whole_body(conn);
    }
    let keep_alive = begin_response(context, conn, x, destination, sending);
    let upstream_keep_alive = x.response.keep_alive;
    let timeout = x.timeout.unwrap_or_default();
    let tunnel = x.response.status == StatusCode::SWITCHING_PROTOCOLS;
    let mut limit = context.settings.request_body_bytes;
    if tunnel {
        conn.begin_tunnel();
        upstream.begin_tunnel();
        // What goes on in another protocol has neither a size nor a time (features of the route concern requests).
        limit = 0;
        x.route_timer.clear();
    }
    let idle = context.settings.stream_idle_timeout;
    conn.phase().set(idle);
    let Exchange {
        trailers,
        to_upstream,
        route_timer,
        ..
    } = &mut *x;
    let mut finished = false;
    let mut step = |up: &mut usize, down: &mut usize, cx: &mut TaskContext<'_>| {
        let mut has_more = false;
        if sending != Sending::Done && sending != Sending::Stopped {
            match poll_request(
                conn,
                &mut upstream,
                to_upstream,
                trailers,
                &mut sending,
                limit,
                up,
                cx,
            ) {
                Poll::Ready(Ok(Moved::All)) if !route_timer.is_set() && !tunnel => {
                    route_timer.set(timeout);
                }
                Poll::Ready(Ok(Moved::All)) => {}
                Poll::Ready(Ok(Moved::Turn)) => has_more = true,
                // The response goes on; only the request is given up.
                Poll::Ready(Err(End::Reply(_))) => sending = Sending::Stopped,
                Poll::Ready(Err(End::ClientGone)) => return Poll::Ready(Err(Broken::ClientGone)),
                Poll::Pending => {}
            }
        }
        match poll_response_body(conn, &mut upstream, trailers, &mut finished, down, cx) {
            Poll::Ready(Ok(Moved::Turn)) => has_more = true,
            // The upstream's side of a tunnel has ended, and the client's has not.
            Poll::Ready(Ok(Moved::All))
                if tunnel && sending != Sending::Done && sending != Sending::Stopped => {}
            Poll::Ready(moved) => return Poll::Ready(moved),
            Poll::Pending => {}
        }
        if !tunnel && sending != Sending::Streaming && conn.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Broken::ClientGone));
        }
        if route_timer.poll(cx).is_ready() {
            return Poll::Ready(Err(Broken::Upstream(Cause::UpstreamTimeout)));
        }
        if conn.phase().poll(cx).is_ready() {
            return Poll::Ready(Err(Broken::Upstream(Cause::StreamIdle)));
        }
        if has_more {
            Poll::Ready(Ok(Moved::Turn))
        } else {
            Poll::Pending
        }
    };
    let result = loop {
        let (mut up, mut down) = (TURN_BYTES, TURN_BYTES);
        match poll_fn(|cx| step(&mut up, &mut down, cx)).await {
            Ok(Moved::Turn) => executor::turn().await,
            Ok(Moved::All) => break Ok(()),
            Err(broken) => break Err(broken),
        }
    };
    let ended = clock::now();
    x.outcome.ended = Some(ended);
    // What is still queued when an exchange breaks off was never written; framing in it makes this the least.
    let unwritten = conn.queued() as u64;
    x.outcome.response_bytes = upstream.body_bytes().saturating_sub(unwritten);
    match result {
        Ok(()) => {
            let request_done = sending == Sending::Done;
            if request_done {
                drop_whole_body(conn);
            }
            let reusable = match upstream {
                Upstream::H1(mut connection) if upstream_keep_alive && request_done && !tunnel => {
                    // An upstream that sends a body where none may be would do so now.
                    connection.is_doubtful = x.request.method == Method::HEAD
                        || matches!(
                            x.response.status,
                            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
                        );
                    // Bytes behind the answer belong to no request: the connection cannot be trusted with another.
                    let is_good = !connection.is_for_one
                        && !connection.reader.has_unread()
                        && !cluster.is_used_up(connection.requests);
                    is_good.then_some(connection)
                }
                Upstream::H1(_) | Upstream::H2(_) => None,
            };
            lease.finish(reusable, ended);
            x.outcome.after = if keep_alive && request_done && !tunnel {
                After::KeepAlive
            } else {
                After::Close
            };
        }
        Err(broken) => {
            lease.finish(None, ended);
            let cause = match broken {
                Broken::Upstream(cause) => cause,
                Broken::ClientGone => Cause::ClientGone,
            };
            context.count_cause(cause);
            x.outcome.flags = x.outcome.flags.with(cause.flag());
            x.outcome.detail = cause.detail();
            x.outcome.after = After::Abort;
        }
    }
}

/// Queues the response's head for the client; answers whether the client's connection may carry another request.
fn begin_response(
    context: &Context,
    conn: &mut impl Downstream,
    x: &mut Exchange,
    destination: &Destination,
    sending: Sending,
) -> bool {
    if let Some(cookie) = x.set_cookie.take() {
        x.response.headers.append(b"set-cookie", cookie.as_bytes());
    }
    fields::change_response(conn, x, conn.scheme(), &destination.response_headers);
    let head = &mut x.response;
    if !context.settings.pass_server_header {
        head.headers.set(HeaderId::Server, b"isthmus");
    }
    if let Some(time) = x.outcome.upstream_time {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        head.headers.set(
            HeaderId::XEnvoyUpstreamServiceTime,
            itoa::Buffer::new().format(ms).as_bytes(),
        );
    }
    x.outcome.status = Some(head.status);
    x.outcome.detail = "via_upstream";
    // An error that comes before the upload has ended most often means that the rest is not wanted.
    let early_refusal = sending != Sending::Done && !head.status.is_success();
    let keep_alive = x.request.keep_alive
        && !early_refusal
        && !conn.is_draining()
        && !context.is_last_request(conn.requests());
    let form = ResponseContext {
        version: x.request.version,
        head_request: x.request.method == Method::HEAD,
        keep_alive,
    };
    !conn.response_head(head, form)
}
