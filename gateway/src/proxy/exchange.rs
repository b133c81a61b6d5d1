//! The buffers of one exchange, and how it ended.
//!
//! An [`Exchange`] goes through all steps of the proxy: each fills in what the next ones need, and the [`Outcome`] is what
//! is counted and logged at the end. Its buffers serve one exchange after the other.

use super::Context;
use crate::clusters::ClusterHandle;
use crate::io::clock;
use crate::io::h1::MessageWriter;
use crate::io::timer::Timer;
use http::StatusCode;
use isthmus_core::header::HeaderList;
use isthmus_core::message::{RequestHead, ResponseHead};
use isthmus_core::name::ClusterKey;
use isthmus_core::reply::Flags;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
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
    /// How long the request may take, over all attempts; None for no limit.
    pub(super) timeout: Option<Duration>,
    /// The deadline that follows from it.
    pub(super) route_timer: Timer,
    /// When the request began.
    pub(super) started: Instant,
    /// The client's address, as far as it can be trusted.
    pub(super) client: IpAddr,
    pub(super) original_path: String,
    pub(super) route_name: String,
    /// The hash of the request's key, where consistent hashing chooses its endpoint.
    pub(super) hash: Option<u64>,
    /// The Set-Cookie that gives the client its key.
    pub(super) set_cookie: Option<Box<str>>,
}

/// The largest header section whose buffer is kept.
const KEPT_BYTES: usize = 8 * 1024;
/// Ended exchanges of HTTP/2 whose buffers a shard keeps.
const EXCHANGES_KEPT: usize = 128;

impl Exchange {
    /// Buffers of an exchange that has ended, or new ones.
    pub fn take(context: &Context) -> Box<Self> {
        let kept = context.exchanges.borrow_mut().pop();
        kept.unwrap_or_else(|| Box::new(Self::new(context)))
    }

    /// Gives the buffers to the next exchange.
    pub fn give_back(mut self: Box<Self>, context: &Context) {
        self.request.headers.shrink(KEPT_BYTES);
        self.response.headers.shrink(KEPT_BYTES);
        // What the outcome names may be on its way out of the configuration.
        self.outcome = Outcome::default();
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
            timeout: None,
            route_timer: context.wheel.timer(),
            started: clock::now(),
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            original_path: String::new(),
            route_name: String::new(),
            hash: None,
            set_cookie: None,
        }
    }
}
