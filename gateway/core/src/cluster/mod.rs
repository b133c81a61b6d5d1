//! Clusters: which endpoint takes a request, and on which connection.
//!
//! A [`ClusterSpec`] is what the resources say; a [`Cluster`] is one shard's live state for it. The shell asks
//! [`Cluster::acquire`] and gets an answer that names an idle connection to use or an endpoint to connect to; what a
//! connection is stays the shell's affair. Everything acquired is given back by one release.

pub mod balancer;
pub mod breaker;
pub mod hash;
pub mod health;
mod latency;
pub mod locality;
pub mod outlier;
pub mod pool;
pub mod retry_budget;
mod schedule;
pub mod warmup;

use crate::egress::Dynamic;
use crate::endpoint::{Endpoint, EndpointSet, Targets};
use crate::name::ClusterKey;
use crate::protocol::{Protocol, UpstreamHttp};
use crate::random::Random;
use crate::shared::{ClusterShared, EndpointShared, Limits, Permit};
use crate::tls::ClientTls;
use balancer::{Balancer, BalancerSpec, Load};
use health::HealthPolicy;
use locality::Levels;
use pool::{Group, Pool};
use retry_budget::RetryLimits;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a connect may take when nothing is written (Istio MeshConfig `connectTimeout`).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an upstream connection may idle when nothing is written (Envoy's default for HTTP).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// What the resources say about one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterSpec {
    /// Its name.
    pub key: ClusterKey,
    /// Its endpoints.
    pub endpoints: Arc<EndpointSet>,
    /// What its endpoints speak.
    pub protocol: Protocol,
    /// How requests are spoken to them.
    pub http: UpstreamHttp,
    /// How endpoints are picked.
    pub balancer: BalancerSpec,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// How long a connection may idle before it is closed; zero for no limit.
    pub idle_timeout: Duration,
    /// Requests after which a connection is closed; 0 for no limit, 1 for no keep-alive.
    pub max_requests_per_connection: u32,
    /// Namespace of the service, for metrics labels.
    pub namespace: Box<str>,
    /// How connections are secured; None for plaintext.
    pub tls: Option<Arc<ClientTls>>,
    /// How long a connection that carries bytes may be silent in both directions; zero for no limit.
    pub tcp_idle_timeout: Duration,
    /// How long a connection may last; zero for no limit. One that carries requests takes no more of them then.
    pub max_connection_duration: Duration,
    /// How the kernel finds out that a peer is gone; None leaves it to the system.
    pub keepalive: Option<TcpKeepalive>,
    /// The PROXY header that each connection begins with, which says who the client is.
    pub proxy_protocol: Option<ProxyVersion>,
    /// Stands for hosts that requests bring; it has no endpoints then.
    pub dynamic: Option<Dynamic>,
    /// Where connections of bytes go on from their endpoint, which is a proxy.
    pub tunnel: Option<Arc<Tunnel>>,
    /// How many requests may be sent again.
    pub retries: RetryLimits,
    /// How many connections and requests there may be, in the whole process.
    pub limits: Limits,
    /// When endpoints are ejected; None for never.
    pub outlier: Option<outlier::OutlierPolicy>,
    /// How endpoints are checked; None for as each of them says ([`Endpoint::health`]).
    pub health: Option<Arc<HealthPolicy>>,
}

impl ClusterSpec {
    /// How an endpoint is checked; None for not at all.
    pub fn health_of<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a Arc<HealthPolicy>> {
        self.health.as_ref().or(endpoint.health.as_ref())
    }

    /// Everything that its connections are secured with: those of requests, and those of checks.
    pub fn client_tls(&self) -> impl Iterator<Item = Arc<ClientTls>> {
        let own = self.tls.iter().cloned();
        own.chain(self.policies().filter_map(|policy| policy.tls(self.tls.as_ref())))
    }

    /// Whether any endpoint is checked.
    pub fn is_checked(&self) -> bool {
        self.policies().next().is_some()
    }

    /// How its endpoints are checked, and those that names may lead to.
    fn policies(&self) -> impl Iterator<Item = &Arc<HealthPolicy>> {
        let set = &self.endpoints;
        let endpoints = set
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.health.as_ref());
        let names = set.discovery.iter().flat_map(|discovery| &discovery.names);
        let names = names.filter_map(|named| named.health.as_ref());
        self.health.iter().chain(endpoints).chain(names)
    }
}

/// The target of a tunnel through a proxy (Istio `trafficPolicy.tunnel`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tunnel {
    /// Its name or address.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
}

impl std::fmt::Display for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') && !self.host.starts_with('[') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// In text.
    V1,
    /// In binary.
    V2,
}

/// `tcpKeepalive`: probes on silent connections. What is not given is the system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpKeepalive {
    /// Probes without an answer after which the connection is dead.
    pub probes: Option<u32>,
    /// Silence before the first.
    pub time: Option<Duration>,
    /// Time between two.
    pub interval: Option<Duration>,
}

/// Names a connection of this shard; what it stands for is the shell's affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId(pub u32);

/// Names an endpoint of one cluster on one shard; it stays the same while the endpoint's address stays in the set, and
/// is never given to another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointId(pub(crate) u32);

/// Names a connection that carries several requests at a time; never given to another one of the cluster on its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedId {
    number: u32,
    /// Where it leads, so that it is found without a look at every endpoint.
    endpoint: EndpointId,
}

/// What [`Cluster::acquire`] answers.
#[derive(Debug)]
pub enum Acquired {
    /// Use this idle connection.
    Use {
        /// The connection.
        conn: ConnId,
        /// Where it leads.
        endpoint: EndpointId,
        /// Since when it has idled: one that idled long may be dead.
        idle_since: Instant,
    },
    /// Connect to this endpoint; the permit belongs to the connection as long as it lives.
    Open {
        /// The endpoint.
        endpoint: EndpointId,
        /// Its address.
        address: SocketAddr,
        /// The right to one connection of the cluster.
        permit: Permit,
    },
    /// The cluster has no endpoint.
    NoEndpoint,
    /// As many connections as there may be are there, and none of this shard's serves: [`breaker`] says what next.
    Overflow,
}

/// What [`Cluster::acquire_stream`] answers.
#[derive(Debug)]
pub enum AcquiredStream {
    /// Use one more stream of this connection.
    Share {
        /// The connection.
        conn: SharedId,
        /// Where it leads.
        endpoint: EndpointId,
    },
    /// Connect to this endpoint; the permit belongs to the connection as long as it lives.
    Open {
        /// The endpoint.
        endpoint: EndpointId,
        /// Its address.
        address: SocketAddr,
        /// The right to one connection of the cluster.
        permit: Permit,
    },
    /// The cluster has no endpoint.
    NoEndpoint,
    /// As many connections as there may be are there, and none of this shard's serves: [`breaker`] says what next.
    Overflow,
}

/// What an endpoint is picked for.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The hash of the request's key, if it has one ([`hash::HashKey`]).
    pub hash: Option<u64>,
    /// Endpoints that failed the request: others are taken if there is a choice.
    pub avoid: &'a [EndpointId],
    /// The connections that can carry it.
    pub group: Group,
    /// Levels of nearness that are left out, if there are others.
    pub without: Levels,
    /// The present time.
    pub now: Instant,
}

#[derive(Debug)]
struct EndpointState {
    id: EndpointId,
    address: SocketAddr,
    /// Where new connections go, when that is not `address`.
    targets: Option<Targets>,
    weight: u32,
    active: u32,
    idle: Pool,
    shared: Vec<Multiplexed>,
    /// Streams at a time that it allowed on its last connection, so that a new one begins with as many.
    streams_allowed: u32,
    /// What the shards know about it.
    health: Arc<EndpointShared>,
}

impl EndpointState {
    fn target(&self) -> SocketAddr {
        let first = self
            .targets
            .as_ref()
            .and_then(|targets| targets.addresses().first());
        first.copied().unwrap_or(self.address)
    }
}

impl Load for [EndpointState] {
    fn active(&self, at: usize) -> u32 {
        self.get(at).map_or(u32::MAX, |state| state.active)
    }
}

/// A connection that carries several requests at a time.
#[derive(Debug)]
struct Multiplexed {
    conn: SharedId,
    group: Group,
    streams: u32,
    max: u32,
    /// Streams so far.
    requests: u32,
    /// When it was opened.
    born: Instant,
    /// When its last stream ended, or it was opened.
    since: Instant,
}

impl Multiplexed {
    /// Whether it has lasted as long as a connection may.
    fn is_old(&self, longest: Duration, now: Instant) -> bool {
        !longest.is_zero() && now.saturating_duration_since(self.born) >= longest
    }
}

/// One shard's live state of one cluster.
#[derive(Debug)]
pub struct Cluster {
    spec: Arc<ClusterSpec>,
    shared: Arc<ClusterShared>,
    /// Which shard this is.
    shard: usize,
    endpoints: Vec<EndpointState>,
    /// Where each is in `endpoints`.
    positions: HashMap<EndpointId, usize, foldhash::fast::FixedState>,
    balancer: Balancer,
    queue: breaker::Queue,
    /// The endpoint that was picked for a request which found no permit: the balancer is asked once for each request.
    picked: Option<EndpointId>,
    /// Whether anything finds out that an endpoint is not available.
    detects: bool,
    /// The change of what is available that the balancer knows of.
    epoch: u32,
    /// When outliers were last looked at.
    swept: Option<Instant>,
    next_id: u32,
    next_shared: u32,
}

impl Cluster {
    /// Live state for a cluster that this shard has not seen before.
    pub fn new(
        spec: Arc<ClusterSpec>,
        shared: Arc<ClusterShared>,
        now: Instant,
        random: &mut Random,
    ) -> Self {
        let balancer = Balancer::new(&BalancerSpec::default(), &[], now, random);
        let mut cluster = Self {
            spec: Arc::clone(&spec),
            shared,
            shard: 0,
            endpoints: Vec::new(),
            positions: HashMap::default(),
            balancer,
            queue: breaker::Queue::default(),
            picked: None,
            detects: false,
            epoch: 0,
            swept: None,
            next_id: 0,
            next_shared: 0,
        };
        let _no_pool_yet = cluster.reconcile(spec, now, random);
        cluster
    }

    /// The same on this shard, by its number from 0; without this it is the first.
    #[must_use]
    pub fn on_shard(mut self, shard: usize) -> Self {
        self.shard = shard;
        self
    }

    /// What the resources say.
    pub fn spec(&self) -> &Arc<ClusterSpec> {
        &self.spec
    }

    /// What it shares with other shards.
    pub fn shared(&self) -> &Arc<ClusterShared> {
        &self.shared
    }

    /// Takes over what the shards share in a new version, before its specification.
    pub fn share_counts(&mut self, shared: Arc<ClusterShared>) {
        self.shared = shared;
    }

    /// Takes a new specification over. Endpoints whose address stays keep their connections and counts; the idle
    /// connections of the others are handed back to be closed.
    pub fn reconcile(&mut self, spec: Arc<ClusterSpec>, now: Instant, random: &mut Random) -> Vec<ConnId> {
        let before = std::mem::take(&mut self.endpoints);
        let wanted = spec.endpoints.endpoints.iter().map(|endpoint| endpoint.address);
        let (kept, gone) = join(before, |state| state.address, wanted);
        for (endpoint, known) in spec.endpoints.endpoints.iter().zip(kept) {
            let health = self.shared.endpoints.get(&endpoint.address).map(Arc::clone);
            let health = health.unwrap_or_default();
            let state = match known {
                Some(state) => EndpointState {
                    weight: endpoint.weight,
                    targets: endpoint.targets.clone(),
                    health,
                    ..state
                },
                None => {
                    self.next_id += 1;
                    EndpointState {
                        id: EndpointId(self.next_id),
                        address: endpoint.address,
                        targets: endpoint.targets.clone(),
                        weight: endpoint.weight,
                        active: 0,
                        idle: Pool::default(),
                        shared: Vec::new(),
                        streams_allowed: u32::MAX,
                        health,
                    }
                }
            };
            self.endpoints.push(state);
        }
        let ids = self.endpoints.iter().map(|state| state.id);
        self.positions = ids.zip(0..).collect();
        self.epoch = self.shared.ejections.epoch();
        self.detects = spec.outlier.is_some() || spec.is_checked();
        let (endpoints, detects) = (&self.endpoints, self.detects);
        let available =
            |at: usize| !detects || endpoints.get(at).is_some_and(|state| state.health.is_available());
        self.balancer
            .replace(&spec.balancer, &spec.endpoints.endpoints, available, now, random);
        self.spec = spec;
        let mut orphans = Vec::new();
        for mut state in gone {
            state.idle.drain(&mut orphans);
        }
        orphans
    }

    /// Picks an endpoint, and an idle connection to it unless `fresh` asks for a new one. Each answer that names an
    /// endpoint is given back by one [`Self::release`].
    pub fn acquire(&mut self, choice: Choice<'_>, fresh: bool, random: &mut Random) -> Acquired {
        let Some(state) = self
            .pick_once(choice, random)
            .and_then(|at| self.endpoints.get_mut(at))
        else {
            return Acquired::NoEndpoint;
        };
        if !fresh && let Some(idle) = state.idle.take(choice.group) {
            state.active += 1;
            return Acquired::Use {
                conn: idle.conn,
                endpoint: state.id,
                idle_since: idle.since,
            };
        }
        let granted = self.queue.take_granted();
        match granted.or_else(|| self.shared.connections.acquire()) {
            Some(permit) => {
                state.active += 1;
                Acquired::Open {
                    endpoint: state.id,
                    address: state.target(),
                    permit,
                }
            }
            None => {
                self.picked = Some(state.id);
                Acquired::Overflow
            }
        }
    }

    /// Picks an endpoint as [`Self::acquire`] does, and a stream of a connection to it that `fits` and has one free. The
    /// answer is given back by one [`Self::release_stream`]; after [`AcquiredStream::Open`] the new connection is made known by
    /// [`Self::share`].
    pub fn acquire_stream(
        &mut self,
        choice: Choice<'_>,
        fits: impl Fn(SharedId) -> bool,
        random: &mut Random,
    ) -> AcquiredStream {
        let last = self.requests_max();
        let longest = self.spec.max_connection_duration;
        let Some(state) = self
            .pick_once(choice, random)
            .and_then(|at| self.endpoints.get_mut(at))
        else {
            return AcquiredStream::NoEndpoint;
        };
        // The first that has room, so that those behind it fall idle and go.
        let free = state.shared.iter_mut().find(|shared| {
            let has_room = shared.streams < shared.max && shared.requests < last;
            shared.group == choice.group
                && has_room
                && !shared.is_old(longest, choice.now)
                && fits(shared.conn)
        });
        if let Some(shared) = free {
            shared.streams += 1;
            shared.requests += 1;
            state.active += 1;
            return AcquiredStream::Share {
                conn: shared.conn,
                endpoint: state.id,
            };
        }
        let granted = self.queue.take_granted();
        match granted.or_else(|| self.shared.connections.acquire()) {
            Some(permit) => {
                state.active += 1;
                AcquiredStream::Open {
                    endpoint: state.id,
                    address: state.target(),
                    permit,
                }
            }
            None => {
                self.picked = Some(state.id);
                AcquiredStream::Overflow
            }
        }
    }

    /// The endpoint that was picked when the same request found no permit, else a new one.
    fn pick_once(&mut self, choice: Choice<'_>, random: &mut Random) -> Option<usize> {
        self.refresh(choice.now, random);
        let picked = self.picked.take().filter(|id| !choice.avoid.contains(id));
        // It may have been ejected while the request has waited.
        let at = picked.and_then(|id| {
            let at = *self.positions.get(&id)?;
            let state = self.endpoints.get(at)?;
            (!self.detects || state.health.is_available()).then_some(at)
        });
        at.or_else(|| self.pick(choice, random))
    }

    fn pick(&mut self, choice: Choice<'_>, random: &mut Random) -> Option<usize> {
        let endpoints = &self.endpoints[..];
        let avoid = |at: usize| {
            !choice.avoid.is_empty()
                && endpoints
                    .get(at)
                    .is_some_and(|state| choice.avoid.contains(&state.id))
        };
        if !choice.without.is_empty() {
            let picked = self
                .balancer
                .pick_without(choice.without, choice.hash, avoid, random);
            if picked.is_some() {
                return picked;
            }
        }
        self.balancer
            .pick(choice.hash, endpoints, avoid, choice.now, random)
    }

    /// How near an endpoint is: 0 for the nearest.
    pub fn level(&self, endpoint: EndpointId) -> u32 {
        let known = self.position(endpoint);
        let known = known.and_then(|at| self.spec.endpoints.endpoints.get(at));
        known.map_or(0, |endpoint| endpoint.level)
    }

    /// Notes what an attempt on an endpoint has taken until its answer began; None for one that failed.
    pub fn observe(&mut self, endpoint: EndpointId, latency: Option<Duration>, now: Instant) {
        if let Some(at) = self.position(endpoint) {
            self.balancer.observe(at, latency, now);
        }
    }

    fn position(&self, endpoint: EndpointId) -> Option<usize> {
        // Where it is as long as no endpoint has come or gone: numbers are given in order, from 1 on.
        let first = endpoint.0.wrapping_sub(1) as usize;
        match self.endpoints.get(first) {
            Some(state) if state.id == endpoint => Some(first),
            _ => self.positions.get(&endpoint).copied(),
        }
    }

    fn state_mut(&mut self, endpoint: EndpointId) -> Option<&mut EndpointState> {
        let at = self.position(endpoint)?;
        self.endpoints.get_mut(at)
    }

    /// The connection that an [`AcquiredStream::Open`] asked for can be shared from now on, by `max` streams at a time or
    /// as many as its endpoint is known to allow; its first stream is the one that asked, of this group.
    pub fn share(&mut self, endpoint: EndpointId, group: Group, max: u32, now: Instant) -> SharedId {
        self.next_shared += 1;
        let conn = SharedId {
            number: self.next_shared,
            endpoint,
        };
        let max = self.streams_max(max);
        if let Some(state) = self.state_mut(endpoint) {
            state.shared.push(Multiplexed {
                conn,
                group,
                streams: 1,
                max: max.min(state.streams_allowed),
                requests: 1,
                born: now,
                since: now,
            });
        }
        conn
    }

    /// The upstream allows so many streams at a time on a connection.
    pub fn resize(&mut self, conn: SharedId, max: u32) {
        let max = self.streams_max(max);
        if let Some(state) = self.state_mut(conn.endpoint)
            && let Some(shared) = state.shared.iter_mut().find(|shared| shared.conn == conn)
        {
            shared.max = max;
            state.streams_allowed = max.max(1);
        }
    }

    /// Requests that a connection may carry. One whose PROXY header names a client is that client's only.
    fn requests_max(&self) -> u32 {
        match (self.spec.proxy_protocol, self.spec.max_requests_per_connection) {
            (Some(_), _) => 1,
            (None, 0) => u32::MAX,
            (None, max) => max,
        }
    }

    fn streams_max(&self, allowed: u32) -> u32 {
        allowed.min(self.spec.http.max_concurrent_streams.unwrap_or(u32::MAX))
    }

    /// No more streams of this connection.
    pub fn unshare(&mut self, conn: SharedId) {
        if let Some(state) = self.state_mut(conn.endpoint) {
            state.shared.retain(|shared| shared.conn != conn);
        }
    }

    /// Whether streams of this connection may be handed out.
    pub fn is_shared(&self, conn: SharedId) -> bool {
        let state = self.position(conn.endpoint).and_then(|at| self.endpoints.get(at));
        state.is_some_and(|state| state.shared.iter().any(|shared| shared.conn == conn))
    }

    /// Gives a stream back, and with it its endpoint. Answers whether the connection is shared no more, because it has
    /// carried as many as it may, or for as long.
    pub fn release_stream(&mut self, endpoint: EndpointId, conn: SharedId, now: Instant) -> bool {
        let last = self.requests_max();
        let longest = self.spec.max_connection_duration;
        let Some(state) = self.state_mut(endpoint) else {
            return true;
        };
        state.active = state.active.saturating_sub(1);
        let Some(at) = state.shared.iter().position(|shared| shared.conn == conn) else {
            return true;
        };
        if let Some(shared) = state.shared.get_mut(at) {
            shared.streams = shared.streams.saturating_sub(1);
            shared.since = now;
            if shared.streams > 0 || (shared.requests < last && !shared.is_old(longest, now)) {
                return false;
            }
        }
        state.shared.swap_remove(at);
        true
    }

    /// Gives an endpoint back. `reusable` is the connection if it may carry another request, whichever; it is handed back
    /// when its endpoint is gone, and must then be closed.
    pub fn release(
        &mut self,
        endpoint: EndpointId,
        reusable: Option<ConnId>,
        now: Instant,
    ) -> Option<ConnId> {
        self.release_in(Group::ALL, endpoint, reusable, now)
    }

    /// The same with a connection that may carry requests of its group only.
    pub fn release_in(
        &mut self,
        group: Group,
        endpoint: EndpointId,
        reusable: Option<ConnId>,
        now: Instant,
    ) -> Option<ConnId> {
        let Some(state) = self.state_mut(endpoint) else {
            return reusable;
        };
        state.active = state.active.saturating_sub(1);
        if let Some(conn) = reusable {
            state.idle.put(conn, group, now);
        }
        None
    }

    /// Takes out the connections that have idled too long.
    pub fn expire(&mut self, now: Instant) -> Vec<ConnId> {
        let mut expired = Vec::new();
        let (idle, longest) = (self.spec.idle_timeout, self.spec.max_connection_duration);
        for state in &mut self.endpoints {
            state.idle.expire(now, idle, &mut expired);
            // Who keeps the connection asks whether it is still shared.
            state.shared.retain(|shared| {
                let is_old = shared.is_old(longest, now);
                !is_old
                    && (shared.streams > 0
                        || idle.is_zero()
                        || now.saturating_duration_since(shared.since) < idle)
            });
        }
        expired
    }

    /// Forgets an idle connection that has closed.
    pub fn forget(&mut self, conn: ConnId) {
        for state in &mut self.endpoints {
            if state.idle.remove(conn) {
                return;
            }
        }
    }

    /// The connections that have idled since before `than`.
    pub fn idle_before(&self, than: Instant) -> impl Iterator<Item = ConnId> {
        self.endpoints
            .iter()
            .flat_map(|state| state.idle.iter())
            .filter(move |idle| idle.since < than)
            .map(|idle| idle.conn)
    }

    /// Takes out every idle connection, because the cluster is gone.
    pub fn drain(&mut self) -> Vec<ConnId> {
        let mut all = Vec::new();
        for state in &mut self.endpoints {
            state.idle.drain(&mut all);
            state.shared.clear();
        }
        all
    }

    /// Where new connections to an endpoint go, the first first; None for the one address that [`Self::acquire`] names.
    pub fn targets(&self, endpoint: EndpointId) -> Option<&Targets> {
        let state = self.endpoints.get(self.position(endpoint)?)?;
        state.targets.as_ref()
    }

    /// For the admin API: address, weight, requests in flight, idle connections.
    pub fn view(&self) -> impl Iterator<Item = (SocketAddr, u32, u32, usize)> {
        self.endpoints
            .iter()
            .map(|state| (state.address, state.weight, state.active, state.idle.len()))
    }
}

/// For each key that is wanted what there is of it, and what is wanted no more. A shard serves nothing meanwhile, and sets
/// of endpoints can be large: each is looked up once.
fn join<K: Hash + Eq, T>(
    before: Vec<T>,
    key_of: impl Fn(&T) -> K,
    wanted: impl Iterator<Item = K>,
) -> (Vec<Option<T>>, Vec<T>) {
    let at: HashMap<K, usize> = before.iter().map(key_of).zip(0..).collect();
    let mut before: Vec<Option<T>> = before.into_iter().map(Some).collect();
    let take = |key: K| before.get_mut(*at.get(&key)?)?.take();
    let kept = wanted.map(take).collect();
    (kept, before.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::balancer::BalancerKind;
    use super::*;
    use crate::endpoint::Endpoint;

    pub(super) fn spec(ports: &[u16]) -> Arc<ClusterSpec> {
        let endpoints = ports
            .iter()
            .map(|&port| Endpoint::new(([127, 0, 0, 1], port).into()));
        Arc::new(ClusterSpec {
            key: ClusterKey::outbound(80, "", "h"),
            endpoints: Arc::new(EndpointSet::new(endpoints)),
            protocol: Protocol::Http,
            http: UpstreamHttp::default(),
            balancer: BalancerKind::RoundRobin.into(),
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            max_requests_per_connection: 0,
            namespace: "default".into(),
            tls: None,
            tcp_idle_timeout: Duration::ZERO,
            max_connection_duration: Duration::ZERO,
            keepalive: None,
            proxy_protocol: None,
            tunnel: None,
            dynamic: None,
            retries: RetryLimits::default(),
            limits: Limits::default(),
            outlier: None,
            health: None,
        })
    }

    pub(super) fn any() -> Choice<'static> {
        but(&[])
    }

    fn but(avoid: &[EndpointId]) -> Choice<'_> {
        Choice {
            hash: None,
            avoid,
            group: Group::ALL,
            without: Levels::NONE,
            now: Instant::now(),
        }
    }

    #[test]
    fn a_shared_connection_that_has_lasted_long_takes_no_more_requests() {
        let (mut random, now) = (Random::from_seed(1), Instant::now());
        let longest = Duration::from_secs(60);
        let spec = Arc::new(ClusterSpec {
            max_connection_duration: longest,
            ..ClusterSpec::clone(&spec(&[1]))
        });
        let counts = Arc::new(ClusterShared::new(u32::MAX));
        let mut cluster = Cluster::new(spec, counts, now, &mut random);
        let later = |time| Choice {
            now: now + time,
            ..any()
        };
        let AcquiredStream::Open {
            endpoint,
            permit: _permit,
            ..
        } = cluster.acquire_stream(later(Duration::ZERO), |_| true, &mut random)
        else {
            panic!("nothing is open");
        };
        let conn = cluster.share(endpoint, Group::ALL, 100, now);
        let before = later(longest - Duration::from_millis(1));
        let shared = cluster.acquire_stream(before, |_| true, &mut random);
        assert!(matches!(shared, AcquiredStream::Share { .. }));
        assert!(!cluster.release_stream(endpoint, conn, before.now));
        let fresh = cluster.acquire_stream(later(longest), |_| true, &mut random);
        assert!(matches!(fresh, AcquiredStream::Open { .. }));
        assert!(cluster.is_shared(conn), "its stream goes on");
        cluster.expire(before.now);
        assert!(cluster.is_shared(conn));
        cluster.expire(now + longest);
        assert!(!cluster.is_shared(conn), "it is to end with its streams");
    }

    #[test]
    fn ten_thousand_endpoints_are_taken_over_with_a_look_at_each() {
        use std::cell::Cell;
        thread_local!(static LOOKS: Cell<u32> = const { Cell::new(0) });
        #[derive(Debug, Clone, Copy)]
        struct Key(u32);
        impl PartialEq for Key {
            fn eq(&self, other: &Self) -> bool {
                LOOKS.set(LOOKS.get() + 1);
                self.0 == other.0
            }
        }
        impl Eq for Key {}
        impl std::hash::Hash for Key {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }
        const COUNT: u32 = 10_000;
        // Half of them go, and as many come; the order is another.
        let before: Vec<Key> = (0..COUNT).map(Key).collect();
        let wanted = (COUNT / 2..COUNT + COUNT / 2).rev().map(Key);
        let (kept, gone) = join(before, |key| *key, wanted.clone());
        let stays = |(kept, wanted): (&Option<Key>, Key)| match kept {
            Some(kept) => kept.0 == wanted.0 && wanted.0 < COUNT,
            None => wanted.0 >= COUNT,
        };
        assert!(kept.iter().zip(wanted).all(stays));
        assert_eq!(gone.len() as u32, COUNT / 2);
        assert!(LOOKS.get() < 2 * COUNT, "{} comparisons", LOOKS.get());
    }

    fn open(cluster: &mut Cluster, random: &mut Random) -> (EndpointId, SocketAddr, Permit) {
        match cluster.acquire(any(), true, random) {
            Acquired::Open {
                endpoint,
                address,
                permit,
            } => (endpoint, address, permit),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn idle_connections_are_reused_last_in_first_out() {
        let (mut random, now) = (Random::from_seed(1), Instant::now());
        let mut cluster = Cluster::new(
            spec(&[1]),
            Arc::new(ClusterShared::new(u32::MAX)),
            Instant::now(),
            &mut random,
        );
        let permits: Vec<Permit> = (0..2)
            .map(|conn| {
                let (endpoint, _, permit) = open(&mut cluster, &mut random);
                assert_eq!(cluster.release(endpoint, Some(ConnId(conn)), now), None);
                permit
            })
            .collect();
        assert_eq!(cluster.shared().connections.held(), 2);
        for expected in [1, 0] {
            match cluster.acquire(any(), false, &mut random) {
                Acquired::Use { conn, .. } => assert_eq!(conn, ConnId(expected)),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(
            cluster.acquire(any(), false, &mut random),
            Acquired::Open { .. }
        ));
        drop(permits);
        assert_eq!(cluster.shared().connections.held(), 0);
    }

    #[test]
    fn an_endpoint_that_stays_keeps_its_connections() {
        let (mut random, now) = (Random::from_seed(1), Instant::now());
        let mut cluster = Cluster::new(
            spec(&[1, 2]),
            Arc::new(ClusterShared::new(u32::MAX)),
            Instant::now(),
            &mut random,
        );
        let mut held = Vec::new();
        for conn in 0..4 {
            let (endpoint, address, permit) = open(&mut cluster, &mut random);
            held.push((endpoint, address, permit));
            cluster.release(endpoint, Some(ConnId(conn)), now);
        }
        let orphans = cluster.reconcile(spec(&[2, 3]), now, &mut random);
        assert_eq!(orphans.len(), 2, "those to port 1");
        let kept: usize = cluster.view().map(|(_, _, _, idle)| idle).sum();
        assert_eq!(kept, 2);
        let (gone, ..) = held.iter().find(|(_, address, _)| address.port() == 1).unwrap();
        assert_eq!(
            cluster.release(*gone, Some(ConnId(9)), now),
            Some(ConnId(9)),
            "must be closed"
        );
    }

    #[test]
    fn a_failed_endpoint_is_avoided_when_there_is_another() {
        for seed in 0..1000 {
            let mut random = Random::from_seed(seed);
            let mut cluster = Cluster::new(
                spec(&[1, 2, 3]),
                Arc::new(ClusterShared::new(u32::MAX)),
                Instant::now(),
                &mut random,
            );
            let (failed, ..) = open(&mut cluster, &mut random);
            match cluster.acquire(but(&[failed]), true, &mut random) {
                Acquired::Open { endpoint, .. } => assert_ne!(endpoint, failed),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_idle_endpoint_that_failed_is_avoided_however_busy_the_others_are() {
        use balancer::BalancerKind::{LeastRequest, PeakEwma, Prequal, Random as Drawn, RoundRobin};
        for kind in [RoundRobin, Drawn, LeastRequest, PeakEwma, Prequal] {
            let mut random = Random::from_seed(7);
            let mut spec = (*spec(&[1, 2])).clone();
            spec.balancer = kind.into();
            let now = Instant::now();
            let mut cluster = Cluster::new(
                Arc::new(spec),
                Arc::new(ClusterShared::new(u32::MAX)),
                now,
                &mut random,
            );
            let (failed, ..) = open(&mut cluster, &mut random);
            cluster.release(failed, None, now);
            let _busy: Vec<Acquired> = (0..1000)
                .map(|_| cluster.acquire(but(&[failed]), true, &mut random))
                .inspect(|acquired| match acquired {
                    Acquired::Open { endpoint, .. } => assert_ne!(*endpoint, failed, "{kind:?}"),
                    other => panic!("{kind:?}: {other:?}"),
                })
                .collect();
        }
    }

    #[test]
    fn limits_and_emptiness_are_answers() {
        let mut random = Random::from_seed(1);
        let mut one = Cluster::new(
            spec(&[1]),
            Arc::new(ClusterShared::new(1)),
            Instant::now(),
            &mut random,
        );
        let held = open(&mut one, &mut random);
        assert!(matches!(
            one.acquire(any(), true, &mut random),
            Acquired::Overflow
        ));
        drop(held);
        assert!(matches!(
            one.acquire(any(), true, &mut random),
            Acquired::Open { .. }
        ));
        let mut none = Cluster::new(
            spec(&[]),
            Arc::new(ClusterShared::new(1)),
            Instant::now(),
            &mut random,
        );
        assert!(matches!(
            none.acquire(any(), false, &mut random),
            Acquired::NoEndpoint
        ));
    }

    #[test]
    fn old_idle_connections_expire_first() {
        let (mut random, start) = (Random::from_seed(1), Instant::now());
        let mut cluster = Cluster::new(
            spec(&[1]),
            Arc::new(ClusterShared::new(u32::MAX)),
            Instant::now(),
            &mut random,
        );
        let mut permits = Vec::new();
        for conn in 0..3 {
            let (endpoint, _, permit) = open(&mut cluster, &mut random);
            permits.push(permit);
            cluster.release(
                endpoint,
                Some(ConnId(conn)),
                start + Duration::from_secs(u64::from(conn)),
            );
        }
        assert_eq!(
            cluster.expire(start + IDLE_TIMEOUT + Duration::from_secs(1)),
            [ConnId(0), ConnId(1)]
        );
        assert_eq!(
            cluster
                .idle_before(start + Duration::from_secs(5))
                .collect::<Vec<_>>(),
            [ConnId(2)]
        );
        cluster.forget(ConnId(2));
        assert!(cluster.drain().is_empty());
    }
}
