//! The buffers of one exchange, and how it ended.
//!
//! An [`Exchange`] goes through all steps of the proxy: each fills in what the next ones need, and the [`Outcome`] is what
//! is counted and logged at the end. Its buffers serve one exchange after the other.

use super::Context;
use super::tee::Tee;
use crate::clusters::ClusterHandle;
use crate::io::clock;
use crate::io::h1::MessageWriter;
use crate::io::timer::Timer;
use http::StatusCode;
use isthmus_core::attempt::{Overrides, Timeouts};
use isthmus_core::grpc;
use isthmus_core::header::HeaderList;
use isthmus_core::listener::TcpRoute;
use isthmus_core::message::{RequestHead, ResponseHead};
use isthmus_core::name::ClusterKey;
use isthmus_core::reply::{Cause, Flags};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum After {
    /// It carries the next request.
    #[default]
    KeepAlive,
    /// It ends, and the client gets to read what was written.
    Close,
    /// It is reset: the client must not take what it got for a whole answer.
    Abort,
    /// It carries bytes to [`Exchange::tunnel`] from now on, and whoever carries them answers the request.
    Tunnel,
}

/// How an exchange ended.
#[derive(Default)]
pub struct Outcome {
    /// The status that the client got.
    pub status: Option<StatusCode>,
    /// Response flags.
    pub flags: Flags,
    /// Response code details.
    pub detail: &'static str,
    /// Bytes of the answer's body that were written.
    pub response_bytes: u64,
    /// What becomes of the connection.
    pub after: After,
    /// From the request's end to the upstream's head.
    pub upstream_time: Option<Duration>,
    /// When the exchange with an upstream ended.
    pub(super) ended: Option<Instant>,
    /// The last endpoint that was tried.
    pub upstream_host: Option<SocketAddr>,
    /// This end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// What the answer's trailers say of a call: None when they say nothing, and when there are none.
    pub(super) grpc_status: Option<Option<grpc::Status>>,
    /// The cluster, when the registry knows it.
    pub(super) cluster: Option<Rc<ClusterHandle>>,
    /// The name of a cluster that the registry does not know.
    pub(super) unknown_cluster: Option<ClusterKey>,
}

impl Outcome {
    pub(super) fn cluster_key(&self) -> &Option<ClusterKey> {
        self.cluster
            .as_ref()
            .map_or(&self.unknown_cluster, |handle| handle.key())
    }

    /// The path of the unix socket that the last endpoint is on.
    pub(super) fn upstream_socket(&self) -> Option<Arc<str>> {
        self.cluster.as_ref()?.socket_of(self.upstream_host.as_ref()?)
    }

    /// Notes that the client went away before there was an answer.
    pub(super) fn leave(&mut self, context: &Context) {
        context.count_cause(Cause::ClientGone);
        self.flags = self.flags.with(Flags::DC);
        self.detail = Cause::ClientGone.detail();
        self.after = After::Abort;
    }
}

/// The buffers of an exchange, used again for the next one of the connection.
pub struct Exchange {
    /// The request.
    pub request: RequestHead,
    /// The answer.
    pub response: ResponseHead,
    pub(super) outcome: Outcome,
    pub(super) trailers: HeaderList,
    pub(super) to_upstream: MessageWriter,
    /// What a trusted caller asks for its request.
    pub(super) overrides: Option<Box<Overrides>>,
    /// How long the request and each attempt may take.
    pub(super) timeouts: Timeouts,
    /// Since when the request's time counts, once it does.
    pub(super) timed_from: Option<Instant>,
    /// The deadline that follows, over all attempts.
    pub(super) route_timer: Timer,
    /// The deadline of the present attempt.
    pub(super) try_timer: Timer,
    /// Whether the request's body, if any, had all come before the first attempt: then it stays where it is until the
    /// answer, and is no affair of the tee.
    pub(super) is_at_hand: bool,
    /// Copies of the request's body.
    pub(super) tee: Tee,
    /// When the request began.
    pub(super) started: Instant,
    /// When it was ready to be sent on: the same, unless its route held it up on purpose.
    pub(super) forwarded: Instant,
    /// The client's address, as far as it can be trusted.
    pub(super) client: IpAddr,
    pub(super) original_path: String,
    pub(super) route_name: String,
    /// Which resource let it pass, where the log says it.
    pub(super) allowed_by: String,
    /// `statPrefix` of the route's match.
    pub(super) stat_prefix: String,
    /// What the answer must say to a browser, when the request is of an origin that its route allows.
    pub(super) cors: Option<Box<HeaderList>>,
    /// The hash of the request's key, where consistent hashing chooses its endpoint.
    pub(super) hash: Option<u64>,
    /// The Set-Cookie that gives the client its key.
    pub(super) set_cookie: Option<Box<str>>,
    /// Where a request for a tunnel leads (CONNECT).
    pub tunnel: Option<Arc<TcpRoute>>,
}

/// The largest header section whose buffer is kept.
const KEPT_BYTES: usize = 8 * 1024;
/// Ended exchanges of HTTP/2 whose buffers a shard keeps: the streams of a few busy connections.
const EXCHANGES_KEPT: usize = 512;

impl Exchange {
    /// Forgets the exchange before; `started` is when the new one began.
    pub(super) fn begin(&mut self, started: Instant) {
        self.outcome = Outcome::default();
        self.original_path.clear();
        self.route_name.clear();
        self.allowed_by.clear();
        self.stat_prefix.clear();
        self.cors = None;
        self.hash = None;
        self.set_cookie = None;
        self.started = started;
        self.forwarded = started;
    }

    /// Buffers of an exchange that has ended, or new ones.
    pub fn take(context: &Context) -> Box<Self> {
        let kept = context.exchanges.borrow_mut().pop();
        kept.unwrap_or_else(|| Box::new(Self::new(context)))
    }

    /// Begins the time that the request may take at `now`, unless it has begun.
    pub(super) fn begin_time(&mut self, now: Instant) {
        if let (Some(total), None) = (self.timeouts.total, self.timed_from) {
            self.timed_from = Some(now);
            self.route_timer.set(total);
        }
    }

    /// How much of the request's time is over.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        self.timed_from
            .map(|from| now.saturating_duration_since(from))
            .unwrap_or_default()
    }

    /// Gives the buffers to the next exchange.
    pub fn give_back(mut self: Box<Self>, context: &Context) {
        self.request.headers.shrink(KEPT_BYTES);
        self.response.headers.shrink(KEPT_BYTES);
        // What the outcome names may be on its way out of the configuration.
        self.outcome = Outcome::default();
        self.tee.clear();
        self.overrides = None;
        self.set_cookie = None;
        let mut exchanges = context.exchanges.borrow_mut();
        if exchanges.len() < EXCHANGES_KEPT {
            exchanges.push(self);
        }
    }

    /// Empty buffers.
    pub fn new(context: &Context) -> Self {
        Self {
            request: RequestHead::default(),
            response: ResponseHead::default(),
            outcome: Outcome::default(),
            trailers: HeaderList::default(),
            to_upstream: MessageWriter::default(),
            overrides: None,
            timeouts: Timeouts::default(),
            timed_from: None,
            route_timer: context.wheel.timer(),
            try_timer: context.wheel.timer(),
            is_at_hand: false,
            tee: Tee::new(context),
            started: clock::now(),
            forwarded: clock::now(),
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            original_path: String::new(),
            route_name: String::new(),
            allowed_by: String::new(),
            stat_prefix: String::new(),
            cors: None,
            hash: None,
            set_cookie: None,
            tunnel: None,
        }
    }
}
