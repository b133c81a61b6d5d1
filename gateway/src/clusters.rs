//! A shard's clusters: core's decisions joined with the connections that they are about.
//!
//! `core::cluster` says which endpoint and which connection by number; this room keeps what the numbers stand for. A
//! [`Lease`] is a request's hold on an endpoint: however the request ends, by an answer, a cancelled task or a panic,
//! the endpoint gets it back exactly once.

use crate::io::clock;
use crate::io::stream::Liveness;
use crate::mailbox::{ClientConfigs, TlsSet};
use crate::mailbox::{ClusterView, EndpointView, Publication};
use crate::upstream::connect::{Secure, Wanted};
use crate::upstream::{Connection, Open, h2};
use isthmus_core::cluster::retry_budget::{RequestCount, RetryPermit};
use isthmus_core::cluster::{Acquired, AcquiredStream, Cluster, ClusterSpec, ConnId, EndpointId, SharedId};
use isthmus_core::message::Version;
use isthmus_core::name::{ClusterKey, ClusterMap};
use isthmus_core::proxy_protocol::Addresses;
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::shared::Permit;
use isthmus_core::tls::Offer;
use rustls::ClientConfig;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
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
    // Boxed, so that a connection moves between pool and request without being copied or allocated anew.
    idle: RefCell<Slab<Box<Connection>>>,
    shared: RefCell<Vec<(SharedId, Rc<h2::Connection>)>>,
    gone: Cell<bool>,
    /// None for plaintext.
    keys: RefCell<Option<Keys>>,
    /// Copies of requests that are under way to it.
    mirrors: Rc<Cell<u32>>,
}

/// What a cluster's connections are secured with.
struct Keys {
    /// The name to ask for; None for the host of each request.
    sni: Option<Rc<str>>,
    /// None when the keys could not be loaded.
    config: Option<Arc<ClientConfigs>>,
}

/// The name that TLS is asked for.
pub enum TlsName<'h> {
    /// The rule says it.
    Fixed(Rc<str>),
    /// The request's host.
    Host(&'h str),
}

impl Deref for TlsName<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Fixed(name) => name,
            Self::Host(name) => name,
        }
    }
}

/// All clusters of this shard.
#[derive(Default)]
pub struct Clusters {
    map: RefCell<ClusterMap<Rc<ClusterHandle>>>,
    open: Rc<Cell<u64>>,
}

/// A request's hold on an endpoint.
pub struct Lease {
    handle: Rc<ClusterHandle>,
    endpoint: EndpointId,
    /// The connection that it has a stream of, when it has one.
    stream: Option<SharedId>,
    held: bool,
}

/// How a request begins on a cluster.
pub enum Start {
    /// On this connection, which has carried others.
    Reuse(Lease, Box<Connection>),
    /// On a new connection to this address.
    Connect(Lease, SocketAddr, Permit),
    /// Not at all.
    Refuse(Cause),
}

/// How a request begins that is a stream of a connection which others use, too.
pub enum StartStream {
    /// On this connection, which may still have to be made by somebody else.
    Share(Lease, Rc<h2::Connection>),
    /// On this connection, which is to be made with these means.
    Open(Lease, Rc<h2::Connection>, Box<h2::Means>),
    /// Not at all.
    Refuse(Cause),
}

impl Lease {
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
        let conn = match reusable {
            Some(connection) if !handle.gone.get() => {
                Some(ConnId(handle.idle.borrow_mut().insert(connection) as u32))
            }
            _ => None,
        };
        let orphan = handle.cluster.borrow_mut().release(self.endpoint, conn, now);
        if let Some(ConnId(key)) = orphan {
            handle.close([ConnId(key)]);
        }
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

    /// How long a connection of bytes may be silent, and how long it may last; zero for no limit.
    pub fn tcp_limits(&self) -> (Duration, Duration) {
        let cluster = self.cluster.borrow();
        let spec = cluster.spec();
        (spec.tcp_idle_timeout, spec.max_connection_duration)
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
            (Some(_), None) => return Err(Cause::UpstreamTls),
            (Some(name), Some(config)) => Some(Secure {
                config: Arc::clone(config.offering(offer)),
                name: name.into(),
            }),
        };
        let cluster = self.cluster.borrow();
        let spec = cluster.spec();
        Ok(Wanted {
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

    fn lease(self: &Rc<Self>, endpoint: EndpointId, stream: Option<SharedId>) -> Lease {
        Lease {
            handle: Rc::clone(self),
            endpoint,
            stream,
            held: true,
        }
    }

    fn release_stream(&self, endpoint: EndpointId, conn: SharedId, now: Instant) {
        let is_over = {
            let mut cluster = self.cluster.borrow_mut();
            let is_over = cluster.release_stream(endpoint, conn, now);
            if self.gone.get() {
                // No sweep comes by here any more.
                cluster.unshare(conn);
            }
            is_over || self.gone.get()
        };
        if is_over {
            self.retire_unshared();
        }
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

    /// Picks an endpoint and a stream of a connection to it that asked for `name`, or has one made for it.
    pub fn start_stream(
        self: &Rc<Self>,
        avoid: &[EndpointId],
        name: Option<&str>,
        (peer, local): (SocketAddr, Option<SocketAddr>),
        now: Instant,
        random: &RefCell<Random>,
        clusters: &Clusters,
    ) -> StartStream {
        let acquired = self.cluster.borrow_mut().acquire_stream(
            avoid,
            |id| self.fits(id, name),
            &mut random.borrow_mut(),
        );
        match acquired {
            AcquiredStream::NoEndpoint => StartStream::Refuse(Cause::NoEndpoint),
            AcquiredStream::Overflow => StartStream::Refuse(Cause::Overflow),
            AcquiredStream::Share { conn, endpoint } => {
                let lease = self.lease(endpoint, Some(conn));
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
                let mut lease = self.lease(endpoint, None);
                let wanted = match self.wanted(name, Offer::Http2, peer, local) {
                    Ok(wanted) => wanted,
                    Err(cause) => return StartStream::Refuse(cause),
                };
                let config = wanted.secure.as_ref().map(|secure| Arc::clone(&secure.config));
                let connection = Rc::new(h2::Connection::new(address, name.map(Box::from), config));
                let mut cluster = self.cluster.borrow_mut();
                let http = cluster.spec().http;
                let id = cluster.share(endpoint, h2::STREAMS_AT_FIRST, now);
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
    /// asked for `name`.
    pub fn start(
        self: &Rc<Self>,
        avoid: &[EndpointId],
        fresh: bool,
        careful: bool,
        name: Option<&str>,
        now: Instant,
        random: &RefCell<Random>,
    ) -> Start {
        loop {
            let acquired = self
                .cluster
                .borrow_mut()
                .acquire(avoid, fresh, &mut random.borrow_mut());
            let lease = |endpoint| self.lease(endpoint, None);
            match acquired {
                Acquired::NoEndpoint => return Start::Refuse(Cause::NoEndpoint),
                Acquired::Overflow => return Start::Refuse(Cause::Overflow),
                Acquired::Open {
                    endpoint,
                    address,
                    permit,
                } => {
                    return Start::Connect(lease(endpoint), address, permit);
                }
                Acquired::Use {
                    conn: ConnId(key),
                    endpoint,
                    idle_since,
                } => {
                    let lease = lease(endpoint);
                    let Some(connection) = self.idle.borrow_mut().try_remove(key as usize) else {
                        continue;
                    };
                    if !has_name(connection.name.as_deref(), name)
                        || !self.are_present_keys(connection.config.as_ref(), Offer::Http1)
                    {
                        continue;
                    }
                    let idled = now.saturating_duration_since(idle_since);
                    // Bytes that nobody asked for would be taken for the next answer.
                    let trusted = idled <= TRUSTED_IDLE
                        && !careful
                        && !connection.is_doubtful
                        && connection.stream.is_quiet();
                    if trusted || connection.stream.liveness() == Liveness::Idle {
                        return Start::Reuse(lease, connection);
                    }
                    // Dead: dropped with its lease, and the next one is tried.
                }
            }
        }
    }
}

/// Whether a connection that asked for one name can carry a request that asks for another.
fn has_name(asked: Option<&str>, name: Option<&str>) -> bool {
    match (asked, name) {
        (Some(asked), Some(name)) => asked.eq_ignore_ascii_case(name),
        (None, None) => true,
        _ => false,
    }
}

impl Clusters {
    /// Counts a connection that is about to be opened.
    pub fn count_open(&self) -> Open {
        Open::new(&self.open)
    }

    /// Upstream connections that are open, and those that idle.
    pub fn connections(&self) -> (u64, u64) {
        let idle = self
            .map
            .borrow()
            .values()
            .map(|handle| handle.idle.borrow().len() as u64)
            .sum();
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
                    if !known.has_spec(spec) {
                        let orphans = known
                            .cluster
                            .borrow_mut()
                            .reconcile(Arc::clone(spec), &mut random.borrow_mut());
                        known.close(orphans);
                        known.retire_unshared();
                    }
                    known
                }
                None => Rc::new(ClusterHandle {
                    key: Some(key.clone()),
                    cluster: RefCell::new(Cluster::new(
                        Arc::clone(spec),
                        Arc::clone(shared),
                        &mut random.borrow_mut(),
                    )),
                    idle: RefCell::new(Slab::new()),
                    shared: RefCell::default(),
                    gone: Cell::new(false),
                    keys: RefCell::default(),
                    mirrors: Rc::default(),
                }),
            };
            handle.take_keys(tls);
            next.insert(key.clone(), handle);
        }
        *self.map.borrow_mut() = next;
        // Requests in flight keep their handle; its connections close when they come back.
        for handle in before.into_values() {
            handle.gone.set(true);
            let all = handle.cluster.borrow_mut().drain();
            handle.close(all);
            handle.retire_unshared();
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
        let handles: Vec<Rc<ClusterHandle>> = self.map.borrow().values().cloned().collect();
        for handle in handles {
            let expired = handle.cluster.borrow_mut().expire(now);
            handle.close(expired);
            handle.retire_unshared();
            let Some(before) = before else { continue };
            let quiet: Vec<ConnId> = handle.cluster.borrow().idle_before(before).collect();
            for conn in quiet {
                let ConnId(key) = conn;
                let dead = handle
                    .idle
                    .borrow()
                    .get(key as usize)
                    .is_none_or(|connection| connection.stream.liveness() == Liveness::Unusable);
                if dead {
                    handle.cluster.borrow_mut().forget(conn);
                    handle.close([conn]);
                }
            }
        }
    }

    /// Closes every idle connection, because the process ends.
    pub fn close_idle(&self) {
        let handles: Vec<Rc<ClusterHandle>> = self.map.borrow().values().cloned().collect();
        for handle in handles {
            let all = handle.cluster.borrow_mut().drain();
            handle.close(all);
            handle.retire_unshared();
        }
    }

    /// For the admin API.
    pub fn view(&self) -> Vec<ClusterView> {
        let map = self.map.borrow();
        let view = |handle: &Rc<ClusterHandle>| ClusterView {
            name: handle.key.as_ref().map(ToString::to_string).unwrap_or_default(),
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
        let mut views: Vec<ClusterView> = map.values().map(view).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }
}
