//! Whole connections: bytes from a client to an endpoint and back, until both sides have ended.
//!
//! Each direction ends by itself: the end of one side's bytes is passed on as such, and the other direction goes on. A
//! side that breaks off breaks the other, so that nobody takes half for a whole.

use super::Context;
use super::body::TURN_BYTES;
use super::side::{Side, Socket};
use crate::access_log::Record;
use crate::clusters::{ClusterHandle, Start};
use crate::downstream::tls::Secured;
use crate::io::buffer::ReadBuffer;
use crate::io::stream::Stream;
use crate::io::{clock, executor};
use crate::upstream::connect::{self, Wanted};
use crate::upstream::tunnel;
use http::{Method, StatusCode};
use isthmus_core::cluster::locality::Levels;
use isthmus_core::cluster::outlier::Signal;
use isthmus_core::cluster::pool::Group;
use isthmus_core::cluster::{Choice, EndpointId, Tunnel};
use isthmus_core::drain::Drain;
use isthmus_core::listener::TcpRoute;
use isthmus_core::message::{RequestHead, Version};
use isthmus_core::name::ClusterKey;
use isthmus_core::reply::{Cause, Flags};
use isthmus_core::source::{Caller, Identity, Source, SourceName, Sources};
use isthmus_core::tls::Offer;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

/// Endpoints that are tried before a connection is given up.
const ATTEMPTS: usize = 3;

/// A client's connection that carries bytes, or a stream of one that does.
pub struct Client<S = Socket> {
    /// Where the bytes come and go.
    pub side: S,
    /// The client's address.
    pub peer: SocketAddr,
    /// What is known about it, when its TLS ends here.
    pub secured: Option<Rc<Secured>>,
    /// The name that it asked TLS for, or the host that it asked this proxy for.
    pub server_name: Option<Box<str>>,
    /// The target that it asked this proxy for, with its port, and waits for an answer (CONNECT).
    pub asked: Option<Box<str>>,
    /// How far its listener is on its way out.
    pub drain: Rc<Cell<Drain>>,
}

/// One direction.
#[derive(Default)]
struct Way {
    moved: u64,
    /// The receiver knows that the sender has ended.
    told: bool,
}

impl Way {
    /// Moves what there is; Ready when the whole way is done, broken, or has used up its turn.
    fn poll(
        &mut self,
        from: &mut impl Side,
        to: &mut impl Side,
        turn: &mut usize,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<Moved, ()>> {
        if self.told {
            return Poll::Ready(Ok(Moved::All));
        }
        loop {
            let more = match from.poll_more(cx) {
                Poll::Ready(Ok(more)) => more,
                Poll::Ready(Err(())) => return Poll::Ready(Err(())),
                Poll::Pending => {
                    // What the receiver has taken is to go out in the meantime.
                    return match to.poll_flush(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Err(())),
                        _ => Poll::Pending,
                    };
                }
            };
            if !more {
                ready!(to.poll_flush(cx)).map_err(|_| ())?;
                to.end();
                self.told = true;
                return Poll::Ready(Ok(Moved::All));
            }
            if *turn == 0 {
                return Poll::Ready(Ok(Moved::Turn));
            }
            let written = ready!(to.poll_write(cx, from.data())).map_err(|_| ())?;
            from.take(written);
            self.moved += written as u64;
            *turn = turn.saturating_sub(written);
        }
    }
}

/// How far a way has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    All,
    Turn,
}

/// What a connection is counted as: its cluster, and its client, if that is known.
type Counted<'a> = (&'a Option<ClusterKey>, Option<&'a SourceName>);

/// How a connection went.
#[derive(Default)]
struct Outcome {
    cause: Option<Cause>,
    received: u64,
    sent: u64,
    upstream: Option<SocketAddr>,
    upstream_local: Option<SocketAddr>,
    /// The resource that let it pass; empty when the log does not say it.
    allowed_by: Box<str>,
    /// The path of the unix socket that the endpoint is on.
    socket: Option<Arc<str>>,
    /// What a client that asked for the connection was answered, and what it asked for.
    answered: Option<(StatusCode, Version, Box<str>)>,
}

/// Carries a connection to where a route says, until it ends.
pub async fn serve<S: Side>(context: &Context, mut client: Client<S>, route: &TcpRoute) {
    let Some(route) = route_for(context, &client, route) else {
        let mut outcome = Outcome {
            cause: Some(Cause::NoRoute),
            ..Outcome::default()
        };
        if client.asked.is_some() {
            refuse(context, &mut client, Cause::NoRoute, &mut outcome).await;
        }
        let (local, name) = (client.side.local_addr(), client.server_name.as_deref());
        return led_nowhere(context, &outcome, local, client.peer, name);
    };
    let draw = (context.random.borrow_mut().next_u64() >> 32) as u32;
    let Some(key) = route.pick(draw).map(|destination| &destination.cluster) else {
        return;
    };
    // What a client asks a proxy for has TLS of its own, as what passes through by its name.
    let secure = client.asked.is_none();
    serve_to(context, client, key, secure, &route.virtual_service).await;
}

/// The route that is for a client.
fn route_for<'r, S>(context: &Context, client: &Client<S>, route: &'r TcpRoute) -> Option<&'r TcpRoute> {
    if route.source.is_none() {
        return Some(route);
    }
    let sources = context.sources.borrow();
    let caller = Caller {
        scheme: "tcp",
        address: Some(client.peer.ip()),
        source: source(&sources, client),
    };
    route.for_caller(&caller)
}

/// Which workload the client is.
fn source<'a, S>(sources: &'a Sources, client: &'a Client<S>) -> Option<Source<'a>> {
    let secured = client.secured.as_ref();
    let identity = secured.and_then(|secured| secured.identity.as_deref());
    sources.find(client.peer.ip(), identity.and_then(Identity::parse))
}

/// What metrics call the client, if it is known.
fn source_name<S>(context: &Context, client: &Client<S>) -> Option<SourceName> {
    let sources = context.sources.borrow();
    if sources.is_empty() {
        return None;
    }
    source(&sources, client)?.name.cloned()
}

/// Carries a connection whose TLS is the endpoint's own to a cluster, without what the cluster's rule says about TLS.
pub async fn serve_cluster(context: &Context, client: Client, key: &ClusterKey) {
    serve_to(context, client, key, false, "").await;
}

async fn serve_to<S: Side>(
    context: &Context,
    mut client: Client<S>,
    key: &ClusterKey,
    secure: bool,
    by: &str,
) {
    let started = clock::now();
    let mut outcome = Outcome::default();
    if context.log.says_who_allowed() {
        outcome.allowed_by = by.into();
    }
    let named = context.clusters.get(key).ok_or(Cause::NoCluster);
    let cluster = match named {
        Ok(template) if template.is_dynamic() => {
            let name = client.server_name.as_deref().unwrap_or("");
            Box::pin(host_of(context, &template, name)).await
        }
        other => other,
    };
    let known = cluster.as_ref().ok().and_then(|cluster| cluster.key().clone());
    let source = source_name(context, &client);
    context.stats.borrow_mut().tcp_opened(&known, source.as_ref());
    let (local, peer, name) = (client.side.local_addr(), client.peer, client.server_name.clone());
    match cluster {
        Err(cause) => {
            refuse(context, &mut client, cause, &mut outcome).await;
        }
        Ok(cluster) => {
            let counted = (&known, source.as_ref());
            carry(context, client, &cluster, counted, secure, &mut outcome).await;
        }
    }
    context.stats.borrow_mut().tcp_closed(&known, source.as_ref());
    if let Some(cause) = outcome.cause {
        context.count_cause(cause);
    }
    log(context, key, started, &outcome, local, peer, name.as_deref());
}

/// The cluster of a host that a client has named.
async fn host_of(
    context: &Context,
    template: &Rc<ClusterHandle>,
    name: &str,
) -> Result<Rc<ClusterHandle>, Cause> {
    let within = (template.connect_timeout(), Cause::NameUnknown);
    super::host_within(context, template, name, within).await
}

/// Writes the line of a connection that ended before it led anywhere.
pub fn refused(
    context: &Context,
    local: Option<SocketAddr>,
    peer: SocketAddr,
    name: Option<&str>,
    cause: Cause,
) {
    let outcome = Outcome {
        cause: Some(cause),
        ..Outcome::default()
    };
    led_nowhere(context, &outcome, local, peer, name);
}

fn led_nowhere(
    context: &Context,
    outcome: &Outcome,
    local: Option<SocketAddr>,
    peer: SocketAddr,
    name: Option<&str>,
) {
    if let Some(cause) = outcome.cause {
        context.count_cause(cause);
    }
    let nowhere = ClusterKey::outbound(0, "", "");
    log(context, &nowhere, clock::now(), outcome, local, peer, name);
}

fn log(
    context: &Context,
    key: &ClusterKey,
    started: std::time::Instant,
    outcome: &Outcome,
    local: Option<SocketAddr>,
    peer: SocketAddr,
    server_name: Option<&str>,
) {
    if !context.log.is_on() {
        return;
    }
    let duration = clock::now().saturating_duration_since(started);
    let wall = clock::wall();
    // There is no request: its fields show that.
    let mut request = RequestHead {
        method: Method::from_bytes(b"-").unwrap_or_default(),
        ..RequestHead::default()
    };
    request.set_path("-");
    if let Some((_, version, target)) = &outcome.answered {
        request.method = Method::CONNECT;
        request.version = *version;
        request.set_authority(target);
    }
    context.log.write(&Record {
        start: wall.checked_sub(duration).unwrap_or(wall),
        request: &request,
        original_path: None,
        status: outcome.answered.as_ref().map(|(status, ..)| status.as_u16()),
        flags: outcome.cause.map_or(Flags::NONE, Cause::flag),
        detail: outcome.cause.map_or("", Cause::detail),
        bytes_received: outcome.received,
        bytes_sent: outcome.sent,
        duration,
        upstream_time: None,
        upstream_host: outcome.upstream,
        upstream_socket: outcome.socket.as_deref(),
        upstream_local: outcome.upstream_local,
        cluster: if key.port() == 0 { "" } else { key.as_str() },
        local,
        peer,
        server_name,
        route: "",
        allowed_by: &outcome.allowed_by,
    });
}

async fn carry<S: Side>(
    context: &Context,
    mut client: Client<S>,
    cluster: &Rc<ClusterHandle>,
    counted: Counted<'_>,
    secure: bool,
    outcome: &mut Outcome,
) {
    let mut avoid: Vec<EndpointId> = Vec::new();
    let hash = cluster.key_of_connection(client.peer.ip());
    let name = client.server_name.as_deref();
    let host = name.or(counted.0.as_ref().map(ClusterKey::host)).unwrap_or("");
    let name = cluster.tls_name(host).filter(|_| secure);
    let mut wanted = match cluster.wanted(
        name.as_deref(),
        Offer::Bytes,
        client.peer,
        client.side.local_addr(),
    ) {
        Ok(wanted) => wanted,
        Err(cause) => {
            return refuse(context, &mut client, cause, outcome).await;
        }
    };
    // The lease lasts as long as the connection: it counts in the balancer.
    let tunnel = cluster.tunnel();
    let (lease, _permit, _open, upstream, begun) = loop {
        let choice = Choice {
            hash,
            avoid: &avoid,
            group: Group::ALL,
            without: Levels::NONE,
            now: clock::now(),
        };
        let started = cluster.start_bytes(choice, &context.random);
        let (lease, address, permit) = match started {
            Start::Connect(lease, address, permit) => (lease, address, permit),
            Start::Reuse(..) | Start::Wait => continue,
            Start::Refuse(cause) => {
                return refuse(context, &mut client, cause, outcome).await;
            }
        };
        outcome.upstream = Some(address);
        outcome.socket = cluster.socket_of(&address);
        let open = context.clusters.count_open();
        wanted.targets = lease.targets();
        let leading = lead(context, address, &wanted, tunnel.as_deref());
        let connected = {
            let mut leading = pin!(leading);
            poll_fn(|cx| {
                if let Poll::Ready(connected) = leading.as_mut().poll(cx) {
                    return Poll::Ready(Ok(connected));
                }
                if client.side.poll_gone(cx).is_ready() {
                    return Poll::Ready(Err(Cause::ClientGone));
                }
                if client.drain.get() == Drain::Cut {
                    return Poll::Ready(Err(Cause::Drained));
                }
                Poll::Pending
            })
            .await
        };
        let connected = match connected {
            Ok(connected) => connected,
            Err(cause) => {
                outcome.cause = Some(cause);
                client.side.break_off();
                return lease.finish(None, clock::now());
            }
        };
        match connected {
            Ok((upstream, address, begun)) => {
                outcome.upstream = Some(address);
                context.stats.borrow_mut().counters.upstream_connects += 1;
                lease.report(Signal::Connected, clock::now());
                break (lease, permit, open, upstream, begun);
            }
            Err(cause) => {
                // The client may take its time to hear of it.
                drop((permit, open));
                context.stats.borrow_mut().counters.upstream_connect_failures += 1;
                lease.report(Signal::NoAnswer, clock::now());
                avoid.push(lease.endpoint());
                lease.finish(None, clock::now());
                if avoid.len() >= ATTEMPTS || cause == Cause::TunnelRefused {
                    return refuse(context, &mut client, cause, outcome).await;
                }
            }
        }
    };
    outcome.upstream_local = upstream.local_addr();
    if !answer(context, &mut client, StatusCode::OK, outcome).await {
        outcome.cause = Some(Cause::ClientGone);
        return lease.finish(None, clock::now());
    }
    let (idle, longest) = cluster.tcp_limits();
    let cause = exchange(
        context,
        client,
        Socket::new(upstream, begun),
        counted,
        (idle, longest),
        outcome,
    )
    .await;
    outcome.cause = cause;
    lease.finish(None, clock::now());
}

/// Ends a connection that leads nowhere: with an answer, when the client waits for one.
async fn refuse<S: Side>(context: &Context, client: &mut Client<S>, cause: Cause, outcome: &mut Outcome) {
    outcome.cause = Some(cause);
    if client.asked.is_none() || !answer(context, client, cause.status(), outcome).await {
        client.side.break_off();
    }
}

/// Answers a client that asked for the connection; false when it is gone.
async fn answer<S: Side>(
    context: &Context,
    client: &mut Client<S>,
    status: StatusCode,
    outcome: &mut Outcome,
) -> bool {
    let Some(target) = &client.asked else {
        return true;
    };
    outcome.answered = Some((status, S::VERSION, target.clone()));
    client.side.answer(status, outcome.cause.map_or("", Cause::text));
    let silence = context.wheel.timer();
    silence.set(context.settings.stream_idle_timeout);
    poll_fn(|cx| {
        if let Poll::Ready(flushed) = client.side.poll_flush(cx) {
            return Poll::Ready(flushed.is_ok());
        }
        let is_over = client.side.poll_gone(cx).is_ready()
            || client.drain.get() == Drain::Cut
            || silence.poll(cx).is_ready();
        if is_over {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}

/// Connects to an endpoint, and through it to the target of a tunnel. Answers also where it leads, and what has come of
/// the target.
async fn lead(
    context: &Context,
    address: SocketAddr,
    wanted: &Wanted,
    tunnel: Option<&Tunnel>,
) -> Result<(Stream, SocketAddr, ReadBuffer), Cause> {
    let (pool, wheel) = (&context.pool, &context.wheel);
    let (stream, address) = connect::open(address, wanted, pool, wheel).await?;
    let begun = match tunnel {
        None => ReadBuffer::new(pool),
        Some(target) => tunnel::ask(&stream, target, wanted.timeout, pool, wheel, &context.limits).await?,
    };
    Ok((stream, address, begun))
}

/// Moves bytes both ways until both have ended; answers what else ended it.
async fn exchange<S: Side>(
    context: &Context,
    client: Client<S>,
    mut upstream: Socket,
    (key, source): Counted<'_>,
    (idle, longest): (Duration, Duration),
    outcome: &mut Outcome,
) -> Option<Cause> {
    let Client { mut side, drain, .. } = client;
    let (mut up, mut down) = (Way::default(), Way::default());
    let silence = context.wheel.timer();
    silence.set(idle);
    let age = context.wheel.timer();
    age.set(longest);
    let cause = loop {
        let (mut up_turn, mut down_turn) = (TURN_BYTES, TURN_BYTES);
        let step = poll_fn(|cx| {
            let before = (up.moved, down.moved);
            let sent = up.poll(&mut side, &mut upstream, &mut up_turn, cx);
            let answered = down.poll(&mut upstream, &mut side, &mut down_turn, cx);
            let (more_up, more_down) = (up.moved - before.0, down.moved - before.1);
            if more_up + more_down > 0 {
                silence.extend();
                context
                    .stats
                    .borrow_mut()
                    .tcp_moved(key, source, (more_up, more_down));
            }
            match (sent, answered) {
                (Poll::Ready(Err(())), _) => return Poll::Ready(Err(Broke::Up)),
                (_, Poll::Ready(Err(()))) => return Poll::Ready(Err(Broke::Down)),
                (Poll::Ready(Ok(Moved::All)), Poll::Ready(Ok(Moved::All))) => {
                    return Poll::Ready(Ok(Moved::All));
                }
                _ if side.poll_gone(cx).is_ready() => return Poll::Ready(Err(Broke::Up)),
                _ if drain.get() == Drain::Cut => return Poll::Ready(Err(Broke::Drained)),
                _ if age.poll(cx).is_ready() => return Poll::Ready(Err(Broke::Old)),
                _ if silence.poll(cx).is_ready() => return Poll::Ready(Err(Broke::Idle)),
                (Poll::Ready(Ok(Moved::Turn)), _) | (_, Poll::Ready(Ok(Moved::Turn))) => {
                    return Poll::Ready(Ok(Moved::Turn));
                }
                _ => {}
            }
            Poll::Pending
        });
        match step.await {
            Ok(Moved::Turn) => executor::turn().await,
            Ok(Moved::All) => break None,
            Err(broke) => {
                let broken = matches!(broke, Broke::Up | Broke::Down | Broke::Drained);
                if broken {
                    side.break_off();
                    upstream.break_off();
                }
                break Some(match broke {
                    Broke::Idle => Cause::ConnectionIdle,
                    Broke::Old => Cause::ConnectionTooOld,
                    Broke::Drained => Cause::Drained,
                    Broke::Up => Cause::ClientGone,
                    Broke::Down => Cause::UpstreamBrokeOff,
                });
            }
        }
    };
    outcome.received = up.moved;
    outcome.sent = down.moved;
    cause
}

/// What ended an exchange of bytes early.
enum Broke {
    /// The client, or the way to the upstream.
    Up,
    /// The upstream, or the way to the client.
    Down,
    /// Silence.
    Idle,
    /// Its age.
    Old,
    /// The process's end.
    Drained,
}
