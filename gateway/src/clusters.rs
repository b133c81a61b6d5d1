//! A shard's clusters: core's decisions joined with the connections that they are about.
//!
//! `core::cluster` says which endpoint and which connection by number; this room keeps what the numbers stand for. A
//! [`Lease`] is a request's hold on an endpoint: however the request ends, by an answer, a cancelled task or a panic,
//! the endpoint gets it back exactly once.

mod age;
mod checked;
mod dynamic;
mod keys;
pub mod names;
mod update;

use crate::io::clock;
use crate::io::stream::Liveness;
use crate::mailbox::TlsSet;
use crate::mailbox::{ClusterView, EndpointView, Publication};
use crate::upstream::connect::{Secure, Wanted};
use crate::upstream::{Connection, Open, h2};
use isthmus_core::cluster::breaker::{Victim, WaiterId};
use isthmus_core::cluster::hash::{HashKey, Keyed, source};
use isthmus_core::cluster::outlier::{Change, Signal};
use isthmus_core::cluster::pool::Group;
use isthmus_core::cluster::retry_budget::{RequestCount, RetryPermit};
use isthmus_core::cluster::{
    Acquired, AcquiredStream, Choice, Cluster, ClusterSpec, ConnId, EndpointId, SharedId, Tunnel,
};
use isthmus_core::message::{RequestHead, Version};
use isthmus_core::name::{ClusterKey, ClusterMap};
use isthmus_core::proxy_protocol::Addresses;
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::shared::{Limit, Permit};
use isthmus_core::tls::{HandshakeFailure, Offer};
pub use keys::TlsName;
use keys::{Keys, has_name};
use rustls::ClientConfig;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A connection that idled no longer than this is used without a look, when a request on it can be sent again: the
/// look is a system call, and under load it would always say yes.
const TRUSTED_IDLE: Duration = Duration::from_millis(20);
/// How long a connection has idled before the sweep looks whether its peer has closed it.
const SWEEP_IDLE: Duration = Duration::from_secs(1);

/// One cluster on this shard.
pub struct ClusterHandle {
    key: Option<ClusterKey>,
    cluster: RefCell<Cluster>,
    hosts: dynamic::Hosts,
    // Boxed, so that a connection moves between pool and request without being copied or allocated anew.
    idle: RefCell<Slab<Box<Connection>>>,
    shared: RefCell<Vec<(SharedId, Rc<h2::Connection>)>>,
    gone: Cell<bool>,
    /// None for plaintext.
    keys: RefCell<Option<Keys>>,
    /// Copies of requests that are under way to it.
    mirrors: Rc<Cell<u32>>,
    /// Who waits for a connection, in their order.
    waiting: RefCell<VecDeque<(WaiterId, Option<Waker>)>>,
    /// Whether the first of them has something to look at.
    is_called: Cell<bool>,
    /// What each limit has stopped since it was last asked, in the order of [`Limit::ALL`].
    overflows: [Cell<u64>; Limit::ALL.len()],
    /// Endpoints that were ejected or are back, of all clusters of the shard, until control is told.
    changes: Changes,
}

/// What has happened to endpoints, until control is told.
type Changes = Rc<RefCell<Vec<(ClusterKey, Change)>>>;

/// A request's place in the queue of those that wait for a connection; it is left when this is dropped.
pub struct Place {
    handle: Rc<ClusterHandle>,
    id: WaiterId,
}

impl Place {
    /// Ready when the request is the first and something has changed: it may look again.
    pub fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        let handle = &self.handle;
        let is_first = handle.cluster.borrow().first_waiter() == Some(self.id);
        if is_first && handle.is_called.take() {
            return Poll::Ready(());
        }
        let mut waiting = handle.waiting.borrow_mut();
        if let Ok(at) = waiting.binary_search_by_key(&self.id, |(id, _)| *id)
            && let Some((_, waker)) = waiting.get_mut(at)
        {
            match waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let handle = &self.handle;
        // The waker is dropped after the borrows: it may own the task that owns other places.
        let _waker = {
            let mut waiting = handle.waiting.borrow_mut();
            let at = waiting.binary_search_by_key(&self.id, |(id, _)| *id);
            at.ok().and_then(|at| waiting.remove(at))
        };
        handle.cluster.borrow_mut().leave(self.id);
        // A connection that it was called for is for others now, perhaps of another shard.
        handle.answer_bell();
    }
}

/// What a request does that has found no connection.
enum Room {
    /// It looks again: there is room now.
    Again,
    /// It waits.
    Wait,
    /// It is refused.
    Full,
}

/// All clusters of this shard.
#[derive(Default)]
pub struct Clusters {
    map: RefCell<ClusterMap<Rc<ClusterHandle>>>,
    /// Those whose connections are limited: what a bell can be about.
    limited: RefCell<Vec<Rc<ClusterHandle>>>,
    /// Those that find out which endpoints are not available.
    watched: RefCell<Vec<Rc<ClusterHandle>>>,
    changes: Changes,
    counted: dynamic::Counted,
    open: Rc<Cell<u64>>,
    shard: usize,
    /// Names that requests bring.
    pub names: names::Names,
}

/// A request's hold on an endpoint.
pub struct Lease {
    handle: Rc<ClusterHandle>,
    endpoint: EndpointId,
    /// The connection that it has a stream of, when it has one.
    stream: Option<SharedId>,
    /// Whom its connection can serve.
    group: Group,
    /// Its place among the requests under way, when those are limited.
    _request: Option<Permit>,
    held: bool,
}

/// How a request begins on a cluster.
pub enum Start {
    /// On this connection, which has carried others.
    Reuse(Lease, Box<Connection>),
    /// On a new connection to this address.
    Connect(Lease, SocketAddr, Permit),
    /// Later: at the turn of its place.
    Wait,
    /// Not at all.
    Refuse(Cause),
}

/// How a request begins that is a stream of a connection which others use, too.
pub enum StartStream {
    /// On this connection, which may still have to be made by somebody else.
    Share(Lease, Rc<h2::Connection>),
    /// On this connection, which is to be made with these means.
    Open(Lease, Rc<h2::Connection>, Box<h2::Means>),
    /// Later: at the turn of its place.
    Wait,
    /// Not at all.
    Refuse(Cause),
}

impl Lease {
    /// Says how an attempt on the endpoint went, for outlier detection.
    pub fn report(&self, signal: Signal, now: Instant) {
        let handle = &self.handle;
        let change = handle.cluster.borrow_mut().record(self.endpoint, signal, now);
        if let (Some(change), Some(key)) = (change, &handle.key) {
            handle.changes.borrow_mut().push((key.clone(), change));
        }
    }

    /// Notes what the attempt took until its answer began; None for one that failed.
    pub fn observe(&self, latency: Option<Duration>, now: Instant) {
        if self.handle.cluster.borrow().spec().balancer.kind.learns() {
            let mut cluster = self.handle.cluster.borrow_mut();
            cluster.observe(self.endpoint, latency, now);
        }
    }

    /// Which endpoint.
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    /// Gives the endpoint back; `reusable` is the connection, if it can carry another request: it idles from `now`.
    pub fn finish(mut self, reusable: Option<Box<Connection>>, now: Instant) {
        self.held = false;
        let handle = &self.handle;
        if let Some(conn) = self.stream {
            return handle.release_stream(self.endpoint, conn, now);
        }
        let keeps = !handle.gone.get() && !handle.cluster.borrow_mut().is_turn_over(now);
        let conn = match reusable {
            Some(connection) if keeps && !handle.is_too_old(&connection, now) => {
                Some(ConnId(handle.idle.borrow_mut().insert(connection) as u32))
            }
            // Dropped here: its permit goes to who waits for it.
            _ => None,
        };
        let orphan = {
            let mut cluster = handle.cluster.borrow_mut();
            let orphan = cluster.release_in(self.group, self.endpoint, conn, now);
            if conn.is_some() && orphan.is_none() {
                cluster.call_first();
            }
            orphan
        };
        if let Some(ConnId(key)) = orphan {
            handle.close([ConnId(key)]);
        }
        handle.stir();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        match self.stream {
            Some(conn) => self.handle.release_stream(self.endpoint, conn, clock::now()),
            None => {
                let mut cluster = self.handle.cluster.borrow_mut();
                // Nothing to hand back: without a connection a release has no orphan.
                let _none = cluster.release(self.endpoint, None, clock::now());
            }
        }
    }
}

impl ClusterHandle {
    /// The cluster's name, in the form that counters take; always there.
    pub fn key(&self) -> &Option<ClusterKey> {
        &self.key
    }

    /// The name that TLS is asked for, for a request to this host; None for plaintext.
    pub fn tls_name<'h>(&self, host: &'h str) -> Option<TlsName<'h>> {
        let keys = self.keys.borrow();
        Some(match &keys.as_ref()?.sni {
            Some(sni) => TlsName::Fixed(Rc::clone(sni)),
            None => TlsName::Host(host.trim_matches(['[', ']'])),
        })
    }

    /// What leads a request to its endpoint, where that is decided by consistent hashing. The client is at `client`, its
    /// connection from `peer` to `local`.
    pub fn key_of(
        &self,
        head: &RequestHead,
        client: IpAddr,
        peer: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Keyed {
        match &self.cluster.borrow().spec().balancer.hashing {
            Some(hashing) => hashing.key.of(head, client, peer, local),
            None => Keyed::No,
        }
    }

    /// The same for a connection of bytes.
    pub fn key_of_connection(&self, client: IpAddr) -> Option<u64> {
        let cluster = self.cluster.borrow();
        let hashing = cluster.spec().balancer.hashing.as_ref()?;
        (hashing.key == HashKey::SourceIp).then(|| source(client))
    }

    /// How long a connection of bytes may be silent, and how long it may last; zero for no limit.
    pub fn tcp_limits(&self) -> (Duration, Duration) {
        let cluster = self.cluster.borrow();
        let spec = cluster.spec();
        (spec.tcp_idle_timeout, spec.max_connection_duration)
    }

    /// Where connections of bytes go on from their endpoint.
    pub fn tunnel(&self) -> Option<Arc<Tunnel>> {
        self.cluster.borrow().spec().tunnel.clone()
    }

    /// What a new connection is to be like, with TLS for `name`, for a client that has connected from one address to
    /// another.
    pub fn wanted(
        &self,
        name: Option<&str>,
        offer: Offer,
        peer: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Result<Wanted, Cause> {
        let keys = self.keys.borrow();
        let secure = match (name, keys.as_ref().and_then(|keys| keys.config.as_ref())) {
            (None, _) => None,
            (Some(_), None) => return Err(Cause::UpstreamTls(HandshakeFailure::Other)),
            (Some(name), Some(config)) => Some(Secure {
                config: Arc::clone(config.offering(offer)),
                name: name.into(),
            }),
        };
        let cluster = self.cluster.borrow();
        let spec = cluster.spec();
        Ok(Wanted {
            targets: None,
            timeout: spec.connect_timeout,
            keepalive: spec.keepalive,
            proxy_header: spec.proxy_protocol.map(|version| {
                let addresses = Addresses {
                    source: peer,
                    destination: local.unwrap_or(peer),
                };
                (version, addresses)
            }),
            secure,
        })
    }

    /// Counts a request, where a budget of retries wants to know of it.
    pub fn begin_request(&self, now: Instant) -> Option<RequestCount> {
        let cluster = self.cluster.borrow();
        let limits = &cluster.spec().retries;
        limits.budget?;
        cluster.shared().retries.begin_request(limits, now)
    }

    /// Asks for a retry; None when the cluster's limits leave none.
    pub fn begin_retry(&self, now: Instant) -> Option<RetryPermit> {
        let cluster = self.cluster.borrow();
        cluster.shared().retries.begin_retry(&cluster.spec().retries, now)
    }

    /// How many attempts may be made beside one whose own time is over.
    pub fn hedges(&self) -> u32 {
        self.cluster.borrow().spec().retries.hedges.0
    }

    /// How many copies of requests are under way to it.
    pub fn mirrors(&self) -> &Rc<Cell<u32>> {
        &self.mirrors
    }

    /// Whether a connection that has carried so many requests may not carry another.
    pub fn is_used_up(&self, requests: u32) -> bool {
        let max = self.cluster.borrow().spec().max_requests_per_connection;
        max > 0 && requests >= max
    }

    fn take_keys(&self, tls: &TlsSet) {
        for host in self.host_handles() {
            host.take_keys(tls);
        }
        let cluster = self.cluster.borrow();
        let wanted = cluster.spec().tls.as_ref();
        *self.keys.borrow_mut() = wanted.map(|wanted| Keys {
            sni: wanted.sni.as_deref().map(Rc::from),
            config: tls.clients.get(wanted).cloned(),
        });
        drop(cluster);
        // Connections of other keys would hold their permits, and be used no more.
        let others: Vec<SharedId> = self
            .shared
            .borrow()
            .iter()
            .filter(|(_, connection)| !self.are_present_keys(connection.config.as_ref(), Offer::Http2))
            .map(|(id, _)| *id)
            .collect();
        for id in others {
            self.cluster.borrow_mut().unshare(id);
        }
        self.retire_unshared();
    }

    /// Whether a connection was made with the present keys and demands: one that was not may lead to a peer that would
    /// be refused now.
    fn are_present_keys(&self, own: Option<&Arc<ClientConfig>>, offer: Offer) -> bool {
        let keys = self.keys.borrow();
        match (own, keys.as_ref().and_then(|keys| keys.config.as_ref())) {
            (None, None) => true,
            (Some(own), Some(present)) => Arc::ptr_eq(own, present.offering(offer)),
            _ => false,
        }
    }

    fn has_spec(&self, spec: &Arc<ClusterSpec>) -> bool {
        Arc::ptr_eq(self.cluster.borrow().spec(), spec)
    }

    fn lease(
        self: &Rc<Self>,
        endpoint: EndpointId,
        (stream, group): (Option<SharedId>, Group),
        request: Option<Permit>,
    ) -> Lease {
        Lease {
            handle: Rc::clone(self),
            endpoint,
            stream,
            group,
            _request: request,
            held: true,
        }
    }

    /// Lets the first of those that wait look whether there is a connection for it.
    fn stir(&self) {
        let waiting = self.waiting.borrow();
        let Some((_, waker)) = waiting.front() else {
            return;
        };
        self.is_called.set(true);
        if let Some(waker) = waker {
            waker.wake_by_ref();
        }
    }

    /// Looks what other shards have handed over, and what they want.
    fn answer_bell(&self) {
        let victims = {
            let mut cluster = self.cluster.borrow_mut();
            cluster.take_grants();
            cluster.reclaim()
        };
        for victim in victims {
            self.close_victim(victim);
        }
        self.stir();
    }

    /// Closes a connection that the cluster has given up.
    fn close_victim(&self, victim: Victim) {
        match victim {
            Victim::Idle(conn) => self.close([conn]),
            Victim::Shared(_) => self.retire_unshared(),
        }
    }

    fn refuse(&self, limit: Limit) -> Cause {
        let all = Limit::ALL.iter().zip(&self.overflows);
        for (_, count) in all.filter(|(other, _)| **other == limit) {
            count.set(count.get() + 1);
        }
        Cause::Overflow
    }

    /// Makes room for a connection by closing one that idles, or has the request wait.
    fn make_room(self: &Rc<Self>, place: &mut Option<Place>) -> Room {
        let victim = self.cluster.borrow_mut().give_up_idle();
        if let Some(victim) = victim {
            self.close_victim(victim);
            if matches!(victim, Victim::Idle(_)) {
                // It may have been this shard's turn to get the permit.
                self.cluster.borrow_mut().take_grants();
                return Room::Again;
            }
            // The permit of the other kind comes back when the connection has ended.
        }
        self.join(place)
    }

    /// Joins the queue, unless the request is in it.
    fn join(self: &Rc<Self>, place: &mut Option<Place>) -> Room {
        if let Some(place) = place {
            self.cluster.borrow_mut().wait_on(place.id);
            if self.cluster.borrow().has_granted() {
                self.stir();
            }
            return Room::Wait;
        }
        let joined = self.cluster.borrow_mut().wait();
        let Ok(id) = joined else {
            self.cluster.borrow_mut().forget_pick();
            return Room::Full;
        };
        self.waiting.borrow_mut().push_back((id, None));
        *place = Some(Place {
            handle: Rc::clone(self),
            id,
        });
        if self.cluster.borrow().has_granted() {
            self.stir();
        }
        Room::Wait
    }

    /// Whether it is the request's turn to look for a connection, and the right to be under way if those are limited.
    fn admit(self: &Rc<Self>, place: &mut Option<Place>) -> Result<Option<Permit>, Room> {
        let admitted = {
            let cluster = self.cluster.borrow();
            cluster
                .is_turn(place.as_ref().map(|place| place.id))
                .then(|| cluster.admit())
        };
        match admitted {
            Some(Ok(request)) => Ok(request),
            Some(Err(limit)) => {
                self.refuse(limit);
                Err(Room::Full)
            }
            None => Err(match self.join(place) {
                Room::Full => {
                    self.refuse(Limit::Pending);
                    Room::Full
                }
                room => room,
            }),
        }
    }

    fn release_stream(&self, endpoint: EndpointId, conn: SharedId, now: Instant) {
        let is_over = {
            let mut cluster = self.cluster.borrow_mut();
            let is_over = cluster.release_stream(endpoint, conn, now);
            let ends = self.gone.get() || cluster.is_turn_over(now);
            if ends {
                // No sweep comes by here any more, or others wait for it to end.
                cluster.unshare(conn);
            }
            let is_over = is_over || ends;
            if !is_over {
                cluster.call_first();
            }
            is_over
        };
        if is_over {
            self.retire_unshared();
        }
        self.stir();
    }

    /// Which version of HTTP a request is sent in, given the client's.
    pub fn version(&self, client: Version) -> Version {
        self.cluster.borrow().spec().http.version.for_client(client)
    }

    fn fits(&self, id: SharedId, name: Option<&str>) -> bool {
        let shared = self.shared.borrow();
        let found = shared.iter().find(|(other, _)| *other == id);
        found.is_some_and(|(_, connection)| {
            has_name(connection.name.as_deref(), name)
                && connection.is_usable()
                && self.are_present_keys(connection.config.as_ref(), Offer::Http2)
        })
    }

    /// Picks an endpoint and a stream of a connection to it that asked for `name`, or has one made for it. `place` is
    /// that of a request that has waited, or is to.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a fact about the request, or a means of the shard"
    )]
    pub fn start_stream(
        self: &Rc<Self>,
        choice: Choice<'_>,
        name: Option<&str>,
        (peer, local): (SocketAddr, Option<SocketAddr>),
        random: &RefCell<Random>,
        clusters: &Clusters,
        place: &mut Option<Place>,
    ) -> StartStream {
        let request = match self.admit(place) {
            Ok(request) => request,
            Err(Room::Full) => return StartStream::Refuse(Cause::Overflow),
            Err(_) => return StartStream::Wait,
        };
        let acquired = loop {
            let acquired = self.cluster.borrow_mut().acquire_stream(
                choice,
                |id| self.fits(id, name),
                &mut random.borrow_mut(),
            );
            if !matches!(acquired, AcquiredStream::Overflow) {
                break acquired;
            }
            match self.make_room(place) {
                Room::Again => {}
                Room::Wait => return StartStream::Wait,
                Room::Full => return StartStream::Refuse(self.refuse(Limit::Pending)),
            }
        };
        match acquired {
            AcquiredStream::NoEndpoint | AcquiredStream::Overflow => StartStream::Refuse(Cause::NoEndpoint),
            AcquiredStream::Share { conn, endpoint } => {
                let lease = self.lease(endpoint, (Some(conn), choice.group), request);
                let shared = self.shared.borrow();
                match shared.iter().find(|(id, _)| *id == conn) {
                    Some((_, connection)) => StartStream::Share(lease, Rc::clone(connection)),
                    None => StartStream::Refuse(Cause::NoEndpoint),
                }
            }
            AcquiredStream::Open {
                endpoint,
                address,
                permit,
            } => {
                let mut lease = self.lease(endpoint, (None, choice.group), request);
                let mut wanted = match self.wanted(name, Offer::Http2, peer, local) {
                    Ok(wanted) => wanted,
                    Err(cause) => return StartStream::Refuse(cause),
                };
                wanted.targets = lease.targets();
                let config = wanted.secure.as_ref().map(|secure| Arc::clone(&secure.config));
                let connection = Rc::new(h2::Connection::new(address, name.map(Box::from), config));
                let mut cluster = self.cluster.borrow_mut();
                let http = cluster.spec().http;
                let id = cluster.share(endpoint, choice.group, h2::STREAMS_AT_FIRST, choice.now);
                self.shared.borrow_mut().push((id, Rc::clone(&connection)));
                let means = h2::Means {
                    wanted,
                    permit,
                    open: clusters.count_open(),
                    keepalive: http.keepalive,
                };
                lease.stream = Some(id);
                StartStream::Open(lease, connection, Box::new(means))
            }
        }
    }

    /// Notes what has happened to a connection whose streams are handed out.
    pub fn changed(&self, connection: &Rc<h2::Connection>, change: h2::Change) {
        let found = self
            .shared
            .borrow()
            .iter()
            .find(|(_, other)| Rc::ptr_eq(other, connection))
            .map(|(id, _)| *id);
        let Some(id) = found else { return };
        match change {
            h2::Change::Limit(max) => self.cluster.borrow_mut().resize(id, max),
            h2::Change::Over => {
                self.cluster.borrow_mut().unshare(id);
                self.shared.borrow_mut().retain(|(other, _)| *other != id);
            }
        }
        self.stir();
    }

    /// Lets those connections end whose streams are handed out no more.
    fn retire_unshared(&self) {
        let mut retired = Vec::new();
        {
            let cluster = self.cluster.borrow();
            self.shared.borrow_mut().retain(|(id, connection)| {
                let is_shared = cluster.is_shared(*id);
                if !is_shared {
                    retired.push(Rc::clone(connection));
                }
                is_shared
            });
        }
        retired.iter().for_each(|connection| connection.retire());
    }

    fn close(&self, conns: impl IntoIterator<Item = ConnId>) {
        for ConnId(key) in conns {
            // Dropped after the borrow: closing a connection gives its permit back.
            let _connection = self.idle.borrow_mut().try_remove(key as usize);
        }
    }

    /// Picks an endpoint and, unless `fresh`, an idle connection to it that is still good. `careful` asks for a look
    /// even at one that was used a moment ago: the request could not be sent again. Of secured ones only those do that
    /// asked for `name`. `place` is that of a request that has waited, or is to.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a fact about the request, or a means of the shard"
    )]
    pub fn start(
        self: &Rc<Self>,
        choice: Choice<'_>,
        fresh: bool,
        careful: bool,
        name: Option<&str>,
        random: &RefCell<Random>,
        place: &mut Option<Place>,
    ) -> Start {
        let mut request = match self.admit(place) {
            Ok(request) => request,
            Err(Room::Full) => return Start::Refuse(Cause::Overflow),
            Err(_) => return Start::Wait,
        };
        loop {
            let acquired = self
                .cluster
                .borrow_mut()
                .acquire(choice, fresh, &mut random.borrow_mut());
            match acquired {
                Acquired::NoEndpoint => return Start::Refuse(Cause::NoEndpoint),
                Acquired::Overflow => match self.make_room(place) {
                    Room::Again => {}
                    Room::Wait => return Start::Wait,
                    Room::Full => return Start::Refuse(self.refuse(Limit::Pending)),
                },
                Acquired::Open {
                    endpoint,
                    address,
                    permit,
                } => {
                    return Start::Connect(
                        self.lease(endpoint, (None, choice.group), request),
                        address,
                        permit,
                    );
                }
                Acquired::Use {
                    conn: ConnId(key),
                    endpoint,
                    idle_since,
                } => {
                    let mut lease = self.lease(endpoint, (None, choice.group), None);
                    let Some(connection) = self.idle.borrow_mut().try_remove(key as usize) else {
                        continue;
                    };
                    if !has_name(connection.name.as_deref(), name)
                        || !self.are_present_keys(connection.config.as_ref(), Offer::Http1)
                        || self.is_too_old(&connection, choice.now)
                    {
                        continue;
                    }
                    let idled = choice.now.saturating_duration_since(idle_since);
                    // Bytes that nobody asked for would be taken for the next answer.
                    let trusted = idled <= TRUSTED_IDLE
                        && !careful
                        && !connection.is_doubtful
                        && connection.stream.is_quiet();
                    if trusted || connection.stream.liveness() == Liveness::Idle {
                        lease._request = request.take();
                        return Start::Reuse(lease, connection);
                    }
                    // Dead: dropped with its lease, and the next one is tried.
                }
            }
        }
    }

    /// Picks an endpoint for a connection of bytes, which waits for no other and is refused when there are as many as
    /// there may be.
    pub fn start_bytes(self: &Rc<Self>, choice: Choice<'_>, random: &RefCell<Random>) -> Start {
        // What comes back is for those that wait.
        let mut may_look = self.cluster.borrow().is_turn(None);
        while may_look {
            let acquired = self
                .cluster
                .borrow_mut()
                .acquire(choice, true, &mut random.borrow_mut());
            match acquired {
                Acquired::Open {
                    endpoint,
                    address,
                    permit,
                } => {
                    return Start::Connect(self.lease(endpoint, (None, choice.group), None), address, permit);
                }
                Acquired::Overflow => {
                    // Idle connections of requests to the same port.
                    let victim = self.cluster.borrow_mut().give_up_idle();
                    victim.into_iter().for_each(|victim| self.close_victim(victim));
                    // The permit of one that is shared comes back when it has ended: for the next client.
                    may_look = matches!(victim, Some(Victim::Idle(_)));
                }
                Acquired::NoEndpoint | Acquired::Use { .. } => return Start::Refuse(Cause::NoEndpoint),
            }
        }
        self.cluster.borrow_mut().forget_pick();
        Start::Refuse(self.refuse(Limit::Connections))
    }
}

impl Clusters {
    /// None yet, on this shard.
    pub fn on_shard(shard: usize) -> Self {
        Self {
            shard,
            ..Self::default()
        }
    }

    /// Does what other shards have rung for: takes the permits that they have handed over, and closes the idle connections
    /// whose permits they want.
    pub fn answer_bell(&self) {
        for handle in self.limited.borrow().iter() {
            handle.answer_bell();
        }
    }

    /// Lets endpoints come back whose ejection is over, and answers what has happened to any since this was last asked.
    pub fn sweep_outliers(&self, now: Instant) -> Vec<(ClusterKey, Change)> {
        for handle in self.watched.borrow().iter() {
            let back = handle.cluster.borrow_mut().sweep_outliers(now);
            if let Some(key) = &handle.key {
                let back = back.into_iter().map(|change| (key.clone(), change));
                self.changes.borrow_mut().extend(back);
            }
        }
        self.changes.take()
    }

    /// Adds what limits have stopped since this was last asked.
    pub fn take_overflows(&self, into: &mut HashMap<(ClusterKey, Limit), u64>) {
        for handle in self.all() {
            let Some(key) = &handle.key else { continue };
            for (limit, count) in Limit::ALL.into_iter().zip(&handle.overflows) {
                match count.take() {
                    0 => {}
                    count => *into.entry((key.clone(), limit)).or_default() += count,
                }
            }
        }
    }

    /// Counts a connection that is about to be opened.
    pub fn count_open(&self) -> Open {
        Open::new(&self.open)
    }

    /// Upstream connections that are open, and those that idle.
    pub fn connections(&self) -> (u64, u64) {
        let all = self.all();
        let idle = all.iter().map(|handle| handle.idle.borrow().len() as u64).sum();
        (self.open.get(), idle)
    }

    /// The cluster of this name.
    pub fn get(&self, key: &ClusterKey) -> Option<Rc<ClusterHandle>> {
        self.map.borrow().get(key).cloned()
    }

    /// Takes a new version over: clusters whose name stays keep their connections and counts.
    pub fn reconcile(&self, publication: &Publication, tls: &TlsSet, random: &RefCell<Random>) {
        let mut next: ClusterMap<Rc<ClusterHandle>> = ClusterMap::default();
        let mut before = std::mem::take(&mut *self.map.borrow_mut());
        for (key, spec) in &publication.snapshot.clusters {
            let Some(shared) = publication.shared.get(key) else {
                continue;
            };
            let handle = match before.remove(key) {
                Some(known) => {
                    known.cluster.borrow_mut().share_counts(Arc::clone(shared));
                    if !known.has_spec(spec) {
                        known.forget_hosts();
                        let orphans = known.cluster.borrow_mut().reconcile(
                            Arc::clone(spec),
                            clock::now(),
                            &mut random.borrow_mut(),
                        );
                        known.close(orphans);
                        known.retire_unshared();
                        known.stir();
                    }
                    known
                }
                None => ClusterHandle::new(key.clone(), spec, shared, self, random),
            };
            handle.take_keys(tls);
            next.insert(key.clone(), handle);
        }
        // Requests that wait for a cluster which is gone are served all the same.
        let mut limited = std::mem::take(&mut *self.limited.borrow_mut());
        limited.retain(|handle| !handle.waiting.borrow().is_empty());
        let hosts: Vec<Rc<ClusterHandle>> = next.values().flat_map(|handle| handle.host_handles()).collect();
        for handle in next.values().chain(&hosts) {
            let is_limited = handle.cluster.borrow().shared().connections.is_limited();
            if is_limited && !limited.iter().any(|other| Rc::ptr_eq(other, handle)) {
                limited.push(Rc::clone(handle));
            }
        }
        *self.limited.borrow_mut() = limited;
        let watches = |handle: &&Rc<ClusterHandle>| handle.cluster.borrow().detects();
        *self.watched.borrow_mut() = next.values().chain(&hosts).filter(watches).cloned().collect();
        *self.map.borrow_mut() = next;
        // Requests in flight keep their handle; its connections close when they come back.
        for handle in before.into_values() {
            handle.forget_hosts();
            handle.gone.set(true);
            let all = handle.cluster.borrow_mut().drain();
            handle.close(all);
            handle.retire_unshared();
            handle.stir();
        }
    }

    /// Takes other keys over, for new connections.
    pub fn secure(&self, tls: &TlsSet) {
        self.map
            .borrow()
            .values()
            .for_each(|handle| handle.take_keys(tls));
    }

    /// Closes connections that idled too long or that their peer has closed.
    pub fn sweep(&self) {
        let now = clock::now();
        let before = now.checked_sub(SWEEP_IDLE);
        let handles = self.all();
        for handle in handles {
            let expired = handle.cluster.borrow_mut().expire(now);
            handle.close(expired);
            handle.retire_unshared();
            let Some(before) = before else { continue };
            let quiet: Vec<ConnId> = handle.cluster.borrow().idle_before(before).collect();
            for conn in quiet {
                let ConnId(key) = conn;
                let dead = handle.idle.borrow().get(key as usize).is_none_or(|connection| {
                    handle.is_too_old(connection, now) || connection.stream.liveness() == Liveness::Unusable
                });
                if dead {
                    handle.cluster.borrow_mut().forget(conn);
                    handle.close([conn]);
                }
            }
        }
    }

    /// Closes every idle connection, because the process ends.
    pub fn close_idle(&self) {
        let handles = self.all();
        for handle in handles {
            let all = handle.cluster.borrow_mut().drain();
            handle.close(all);
            handle.retire_unshared();
        }
    }

    /// For the admin API.
    pub fn view(&self) -> Vec<ClusterView> {
        let view = |handle: &Rc<ClusterHandle>| ClusterView {
            name: handle.key.as_ref().map(ToString::to_string).unwrap_or_default(),
            epoch: handle.cluster.borrow().epoch(),
            endpoints: handle
                .cluster
                .borrow()
                .view()
                .map(|(address, weight, active, idle)| EndpointView {
                    address,
                    weight,
                    active,
                    idle,
                })
                .collect(),
        };
        let mut views: Vec<ClusterView> = self.all().iter().map(view).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }
}
