//! One HTTP exchange from its request's head to its answer's last byte.
//!
//! The steps follow each other in this file: normalize the request, find its route, answer locally or forward; to
//! forward, pick a destination, then attempt until an upstream answers or the attempts are spent; then pass both bodies
//! on at the same time. Whatever happens ends in one [`Outcome`](super::exchange::Outcome), which is counted and logged once.

use super::attempt::{Answered, attempt, reusable};
use super::body::{
    Broken, End, Farewell, Moved, Sending, TURN_BYTES, drop_whole_body, poll_request, poll_response_body,
    poll_websocket,
};
use super::exchange::{After, Exchange};
use super::fields;
use super::local::{self, Answer};
use super::mirror;
use super::{Context, FoundHost, ListenerState, cors, fault};
use crate::access_log::Record;
use crate::clusters::{ClusterHandle, Lease};
use crate::downstream::Downstream;
use crate::io::{clock, executor};
use crate::upstream::Upstream;
use http::{Method, StatusCode};
use isthmus_core::attempt::{Overrides, Timeouts};
use isthmus_core::drain::Drain;
use isthmus_core::forwarded;
use isthmus_core::grpc;
use isthmus_core::h1::HeadError;
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::header::HeaderId;
use isthmus_core::message::{BodyLength, RequestHead, Version};
use isthmus_core::path;
use isthmus_core::reply::{Cause, Flags};
use isthmus_core::route::{Action, Destination, Forward, Route, VirtualHost, split_port};
use isthmus_core::source::{Caller, Identity, Source, Sources};
use isthmus_core::stats::{Answer as StatsAnswer, Finished, RequestProtocol};
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

/// The port of a target in absolute form that names none.
const HTTP_PORT: u16 = 80;

/// What is left at least of a request's time whose upstream was found at the last moment.
const LEAST: Duration = Duration::from_millis(1);

/// A request that is under way, as long as this lasts.
pub struct Active(Rc<Cell<u64>>);

impl Active {
    /// One more.
    pub fn new(context: &Context) -> Self {
        context.active.set(context.active.get() + 1);
        Self(Rc::clone(&context.active))
    }
}

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
    let _active = Active::new(context);
    x.begin(started);
    x.route_timer.clear();
    x.timed_from = None;
    let is_connect = x.request.method == Method::CONNECT;
    if is_connect {
        // Boxed: its state would make every connection's larger.
        Box::pin(find_tunnel(context, listener, conn, x)).await;
    } else {
        route(context, listener, conn, x).await;
    }
    x.route_timer.clear();
    if x.timeouts.per_try.is_some() {
        x.try_timer.clear();
    }
    x.tee.clear();
    if x.outcome.after == After::Tunnel {
        // Counted and logged when it ends, by who carries it.
        return After::Tunnel;
    }
    finish(context, conn, x, started);
    x.outcome.after
}

/// Answers bytes that are no request, and counts and logs them as one.
pub async fn refuse(context: &Context, conn: &mut impl Downstream, x: &mut Exchange, cause: Cause) -> After {
    let started = clock::now();
    x.begin(started);
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
    let answer = StatsAnswer {
        status: outcome.status.map_or(0, |status| status.as_u16()),
        flags: outcome.flags,
        protocol: protocol(x),
    };
    let mut stats = context.stats.borrow_mut();
    stats.finish(outcome.cluster_key(), answer, facts);
    let sources = context.sources.borrow();
    if !sources.is_empty()
        && let Some(name) = source(&sources, conn).and_then(|source| source.name)
    {
        stats.finish_source(outcome.cluster_key(), answer, name);
    }
    if !x.stat_prefix.is_empty() {
        stats.finish_route(&x.stat_prefix, answer.status, facts.duration_us);
    }
    drop(stats);
    if context.log.is_on() {
        let wall = clock::wall();
        let socket = outcome.upstream_socket();
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
            upstream_socket: socket.as_deref(),
            upstream_local: outcome.upstream_local,
            cluster: outcome.cluster_key().as_ref().map_or("", |key| key.as_str()),
            local: conn.local_addr(),
            peer: conn.peer(),
            server_name: conn.secured().and_then(|secured| secured.server_name.as_deref()),
            route: &x.route_name,
            allowed_by: &x.allowed_by,
        });
    }
}

/// What the request spoke, and of a call how it ended: what its answer says, in the trailers or in the head, else what
/// the answer's status means to gRPC (Envoy's `getGrpcStatus`).
fn protocol(x: &Exchange) -> RequestProtocol {
    if !x.request.is_call() || !x.request.upgrade.is_empty() {
        return RequestProtocol::Http;
    }
    let said = x.outcome.grpc_status.or_else(|| {
        let status = x.outcome.status?;
        Some(match x.response.headers.get(HeaderId::GrpcStatus) {
            Some(said) => grpc::Status::parse(said),
            None => Some(grpc::Status::of_http(status)),
        })
    });
    RequestProtocol::Grpc(said.flatten())
}

async fn route(
    context: &Rc<Context>,
    listener: &ListenerState,
    conn: &mut impl Downstream,
    x: &mut Exchange,
) {
    if let Err(shed) = context.bounds.admit(context.load()) {
        return Box::pin(local::refuse(
            context,
            conn,
            x,
            Cause::Overload(shed).into(),
            false,
        ))
        .await;
    }
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
        trusted: &context.settings.trusted,
    };
    let client_cert = conn.secured().and_then(|secured| secured.client_cert.as_deref());
    context
        .settings
        .forward_client_cert
        .apply(&mut x.request.headers, client_cert);
    x.overrides = None;
    x.client = forwarded::apply(
        &mut x.request,
        downstream,
        &mut context.random.borrow_mut(),
        &mut x.overrides,
    );
    if let Some(asked) = &mut x.overrides {
        asked.limit(context.settings.override_limits());
    }

    let is_forwarded = || {
        let serving = listener.serving.borrow();
        !serving.forward(conn.secured()).is_none()
    };
    if x.request.is_https && is_forwarded() {
        // A client that wants TLS to its target asks for a tunnel: what it says here would go on in plaintext.
        let cause = Cause::RequestHead(HeadError::Target);
        return local::refuse(context, conn, x, cause.into(), false).await;
    }
    let found = {
        let serving = listener.serving.borrow();
        let forward = serving.forward(conn.secured());
        if forward.is_none() {
            serving.find(conn.policy(), &x.request.host)
        } else {
            let port = split_port(&x.request.authority).1.unwrap_or(HTTP_PORT);
            forward.find(port, &x.request.host)
        }
    };
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
    let Some(route) = find(context, conn, x, &pin.host) else {
        return local::refuse(context, conn, x, Cause::NoRoute.into(), false).await;
    };
    x.route_name.push_str(&route.name);
    if context.log.says_who_allowed() {
        x.allowed_by.push_str(&route.virtual_service);
    }
    x.stat_prefix.push_str(&route.stat_prefix);
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

/// Finds where a request for a tunnel leads (RFC 9110, 9.3.6).
async fn find_tunnel(
    context: &Context,
    listener: &ListenerState,
    conn: &mut impl Downstream,
    x: &mut Exchange,
) {
    if let Err(shed) = context.bounds.admit(context.load()) {
        return local::refuse(context, conn, x, Cause::Overload(shed).into(), false).await;
    }
    if !x.request.body.is_empty() {
        let cause = Cause::RequestHead(HeadError::BodyNotAllowed);
        return local::refuse(context, conn, x, cause.into(), true).await;
    }
    let port = split_port(&x.request.authority).1.unwrap_or(0);
    let found = listener
        .serving
        .borrow()
        .forward(conn.secured())
        .tunnel(port, &x.request.host);
    match found {
        Some(route) => {
            x.tunnel = Some(route);
            x.outcome.after = After::Tunnel;
        }
        None => local::refuse(context, conn, x, Cause::NoVirtualHost.into(), false).await,
    }
}

/// Which workload the client is.
fn source<'a>(sources: &'a Sources, conn: &'a impl Downstream) -> Option<Source<'a>> {
    let identity = conn.secured().and_then(|secured| secured.identity.as_deref());
    sources.find(conn.peer().ip(), identity.and_then(Identity::parse))
}

/// The route that takes the request.
fn find<'h>(
    context: &Context,
    conn: &impl Downstream,
    x: &Exchange,
    host: &'h VirtualHost,
) -> Option<&'h Route> {
    let scratch = &mut context.scratch.borrow_mut();
    if !host.asks_who() {
        return host.find(&x.request, conn.scheme(), scratch);
    }
    let sources = context.sources.borrow();
    let caller = Caller {
        scheme: conn.scheme(),
        address: Some(conn.peer().ip()),
        source: source(&sources, conn),
    };
    host.find(&x.request, caller, scratch)
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

/// How long the caller of gRPC itself waits, as it says in `grpc-timeout`.
pub(super) fn deadline(request: &RequestHead) -> Option<Duration> {
    request
        .is_call()
        .then(|| request.headers.get(HeaderId::GrpcTimeout))
        .flatten()
        .and_then(grpc::parse_timeout)
        .filter(|asked| !asked.is_zero())
}

/// How long the request may take: what the route says, then a trusted caller, and no longer than a gRPC client waits.
fn timeouts(request: &RequestHead, overrides: Option<&Overrides>, forward: &Forward) -> Timeouts {
    let (total, per_try) = (forward.timeout, forward.retry.per_try_timeout);
    Timeouts::new(total, per_try, overrides, deadline(request))
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
    x.timeouts = timeouts(&x.request, x.overrides.as_deref(), forward);
}

/// The cluster of the host that the request names, which may have to be resolved within the request's time.
async fn host_of(
    context: &Context,
    template: &Rc<ClusterHandle>,
    x: &mut Exchange,
) -> Result<Rc<ClusterHandle>, Cause> {
    let began = clock::now();
    let connect = template.connect_timeout();
    let (patience, late) = match x.timeouts.total {
        Some(total) if total < connect => (total, Cause::UpstreamTimeout),
        _ => (connect, Cause::NameUnknown),
    };
    let found = super::host_within(context, template, &x.request.authority, (patience, late)).await;
    let took = clock::now().saturating_duration_since(began);
    x.timeouts.total = x
        .timeouts
        .total
        .map(|total| total.saturating_sub(took).max(LEAST));
    found
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
    let operations = &destination.response_headers[..];
    let cluster = context.clusters.get(&destination.cluster);
    match &cluster {
        Some(cluster) => x.outcome.cluster = Some(Rc::clone(cluster)),
        None => x.outcome.unknown_cluster = Some(destination.cluster.clone()),
    }
    // Boxed: faults are rare, and their state would make every request's larger.
    if let Some(fault) = &forward.fault
        && Box::pin(fault::inject(context, conn, x, fault, operations))
            .await
            .is_break()
    {
        return;
    }
    if let Some(policy) = &forward.cors
        && Box::pin(cors::meet(context, conn, x, policy)).await.is_break()
    {
        return;
    }
    let Some(cluster) = cluster else {
        let reply = Cause::NoCluster.into();
        return local::refuse_with(context, conn, x, reply, operations, false).await;
    };
    rewrite(conn, x, forward, destination);
    let cluster = if cluster.is_dynamic() {
        match Box::pin(host_of(context, &cluster, x)).await {
            Ok(own) => {
                x.outcome.cluster = Some(Rc::clone(&own));
                own
            }
            Err(cause) => {
                return local::refuse_with(context, conn, x, cause.into(), operations, false).await;
            }
        }
    } else {
        cluster
    };
    let key = cluster.key_of(&x.request, x.client, conn.peer(), conn.local_addr());
    x.hash = key.hash();
    x.set_cookie = key.into_cookie();
    if conn.is_body_done() || conn.whole_body().is_some() || !x.request.upgrade.is_empty() {
        x.begin_time(x.forwarded);
    }
    if !forward.mirrors.is_empty() {
        mirror::start(context, conn, x, forward);
    }
    let _counted = cluster.begin_request(x.forwarded);
    let overrides = x.overrides.take();
    let attempted = attempt(context, conn, x, &cluster, &forward.retry, overrides.as_deref()).await;
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
            local::refuse_with(context, conn, x, reply, operations, broken).await;
        }
        Err(End::ClientGone) => x.outcome.leave(context),
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
    let timeout = x.timeouts.total.unwrap_or_default();
    let tunnel = x.response.status == StatusCode::SWITCHING_PROTOCOLS;
    let mut limit = context.settings.request_body_bytes;
    if tunnel {
        conn.begin_tunnel();
        upstream.begin_tunnel();
        // What goes on in another protocol has neither a size nor a time (features of the route concern requests).
        limit = 0;
        x.route_timer.clear();
    }
    // Boxed: most exchanges have none.
    let mut farewell = (tunnel && x.request.upgrade == "websocket").then(|| Box::new(Farewell::new(conn)));
    let idle = context.settings.stream_idle_timeout;
    conn.phase().set(idle);
    let is_http2 = x.request.version == Version::Http2;
    let Exchange {
        trailers,
        to_upstream,
        route_timer,
        outcome,
        tee,
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
                tee,
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
        let was_finished = finished;
        let moved = match &mut farewell {
            Some(farewell) => {
                poll_websocket(conn, &mut upstream, trailers, &mut finished, down, farewell, cx)
            }
            None => poll_response_body(conn, &mut upstream, trailers, &mut finished, down, cx),
        };
        if finished && !was_finished {
            // Later they may be the request's.
            outcome.grpc_status = trailers.get(HeaderId::GrpcStatus).map(grpc::Status::parse);
        }
        match moved {
            Poll::Ready(Ok(Moved::Turn)) => has_more = true,
            // The upstream's side of a tunnel has ended, and the client's has not.
            Poll::Ready(Ok(Moved::All))
                if tunnel && sending != Sending::Done && sending != Sending::Stopped => {}
            Poll::Ready(moved) => return Poll::Ready(moved),
            Poll::Pending => {}
        }
        // A tunnel of HTTP/1.1 is read whatever its client may still say.
        let looks = (!tunnel || is_http2) && sending.looks_for_client(conn, is_http2);
        if looks && conn.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Broken::ClientGone));
        }
        if conn.drain() == Drain::Cut {
            return Poll::Ready(Err(Broken::Upstream(Cause::Drained)));
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
            let kept = (upstream_keep_alive && request_done && !tunnel)
                .then(|| reusable(upstream, x, cluster))
                .flatten();
            lease.finish(kept, ended);
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
    cors::mark(x.cors.as_deref(), &mut head.headers);
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
