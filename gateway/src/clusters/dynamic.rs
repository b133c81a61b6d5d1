//! Hosts that requests bring: a cluster for each of them, made when the first request comes.
//!
//! The cluster of a wildcard ([`Dynamic`]) has no endpoints. Each host that it covers gets a cluster of its own beside it,
//! with the same policy: its connections and time-outs are its own, while the limits of the policy hold for all hosts of
//! the wildcard together. So does the share of endpoints that may be ejected, and failures are counted by each shard for
//! itself. A host's one endpoint leads to the addresses that its name has when a connection is
//! made, as far as connections may go there ([`Reach::Public`]); connections that are there outlive them.

use super::keys::Keys;
use super::{ClusterHandle, Clusters};
use crate::io::clock;
use isthmus_core::cluster::{Cluster, ClusterSpec};
use isthmus_core::egress::{AllowedRanges, Dynamic, Reach};
use isthmus_core::endpoint::{Endpoint, EndpointSet, Targets};
use isthmus_core::name::ClusterKey;
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::route::split_port;
use isthmus_core::shared::ClusterShared;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Longest name of DNS, as text (RFC 1035, 2.3.4).
const NAME_MAX: usize = 253;
/// Most hosts of one wildcard that a shard has clusters of; the one that was asked for longest ago makes room.
const HOSTS_MAX: usize = 1000;
/// Most hosts of all wildcards that a shard counts by their names in the life of the process; others are counted as their
/// wildcard.
const HOSTS_COUNTED_MAX: usize = 500;

/// The hosts of one wildcard.
pub(super) type Hosts = RefCell<HashMap<Box<str>, Host>>;

/// One of them.
pub(super) struct Host {
    handle: Rc<ClusterHandle>,
    /// What its name had when this was last looked at.
    addresses: Arc<[IpAddr]>,
    used: Instant,
}

/// The hosts that are counted by their names.
pub(super) type Counted = RefCell<HashSet<ClusterKey>>;

impl ClusterHandle {
    /// A cluster without connections.
    pub(super) fn new(
        key: ClusterKey,
        spec: &Arc<ClusterSpec>,
        shared: &Arc<ClusterShared>,
        of: &Clusters,
        random: &RefCell<Random>,
    ) -> Rc<Self> {
        let cluster = Cluster::new(
            Arc::clone(spec),
            Arc::clone(shared),
            clock::now(),
            &mut random.borrow_mut(),
        );
        Rc::new(Self {
            key: Some(key),
            cluster: RefCell::new(cluster.on_shard(of.shard)),
            hosts: RefCell::default(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            gone: false.into(),
            keys: RefCell::default(),
            mirrors: Rc::default(),
            waiting: RefCell::default(),
            is_called: false.into(),
            overflows: Default::default(),
            changes: Rc::clone(&of.changes),
        })
    }

    /// Whether it stands for hosts that requests bring.
    pub fn is_dynamic(&self) -> bool {
        self.cluster.borrow().spec().dynamic.is_some()
    }

    /// How long a connect may take.
    pub fn connect_timeout(&self) -> std::time::Duration {
        self.cluster.borrow().spec().connect_timeout
    }

    fn copy_keys(&self, of: &Self) {
        let keys = of.keys.borrow();
        *self.keys.borrow_mut() = keys.as_ref().map(|keys| Keys {
            sni: keys.sni.clone(),
            config: keys.config.clone(),
        });
    }

    fn retire(&self) {
        self.gone.set(true);
        let all = self.cluster.borrow_mut().drain();
        self.close(all);
    }

    /// Ends the clusters of all hosts, because the policy has changed.
    pub(super) fn forget_hosts(&self) {
        for (_, host) in self.hosts.take() {
            host.handle.end();
        }
    }

    fn end(self: &Rc<Self>) {
        self.retire();
        self.retire_unshared();
        self.stir();
    }

    /// All clusters of hosts.
    pub(super) fn host_handles(&self) -> Vec<Rc<Self>> {
        let hosts = self.hosts.borrow();
        hosts.values().map(|host| Rc::clone(&host.handle)).collect()
    }
}

/// Whether anybody may be asked for a name: a client may write anything.
fn is_name(host: &str) -> bool {
    let mut bytes = host.bytes();
    host.len() <= NAME_MAX && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

impl Clusters {
    /// All clusters, those of hosts that requests have brought included.
    pub(super) fn all(&self) -> Vec<Rc<ClusterHandle>> {
        let map = self.map.borrow();
        let all = map.values().flat_map(|handle| {
            let hosts = handle.host_handles();
            std::iter::once(Rc::clone(handle)).chain(hosts)
        });
        all.collect()
    }

    /// The cluster of a host that `template` covers, in lower case; waits for the addresses of its name when they are not
    /// known.
    pub async fn of_host(
        &self,
        template: &Rc<ClusterHandle>,
        authority: &str,
        allowed: &AllowedRanges,
        random: &RefCell<Random>,
    ) -> Result<Rc<ClusterHandle>, Cause> {
        let host = split_port(authority).0;
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let covering = |spec: &ClusterSpec| {
            let dynamic = spec.dynamic.as_ref();
            dynamic.is_some_and(|dynamic| dynamic.covers.matches(&host))
        };
        // Nobody is asked for the name of a host that is not covered.
        if !covering(template.cluster.borrow().spec()) {
            return Err(Cause::HostNotCovered);
        }
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let found = match literal {
            Ok(address) => Arc::from([address]),
            Err(_) if is_name(&host) => self.names.resolve(&host).await,
            Err(_) => return Err(Cause::NameUnknown),
        };
        // The policy may be another one than before the wait.
        let spec = Arc::clone(template.cluster.borrow().spec());
        let Some(dynamic) = spec.dynamic.as_ref().filter(|_| covering(&spec)) else {
            return Err(Cause::HostNotCovered);
        };
        let now = clock::now();
        if let Some(known) = template.hosts.borrow_mut().get_mut(&*host)
            && Arc::ptr_eq(&known.addresses, &found)
        {
            known.used = now;
            return Ok(Rc::clone(&known.handle));
        }
        if found.is_empty() {
            return Err(Cause::NameUnknown);
        }
        let targets: Arc<[SocketAddr]> = found
            .iter()
            .filter(|address| Reach::Public.allows(**address, allowed))
            .map(|address| SocketAddr::new(*address, dynamic.port))
            .collect();
        let Some(first) = targets.first().copied() else {
            if let Some(left_out) = self.names.tells_refusal(&host, now) {
                tracing::warn!(%host, left_out, addresses = ?found, service = spec.key.host(), "a name leads where no connection may go, unless --egress-allow-cidr names it: its requests are refused");
            }
            return Err(Cause::AddressRefused);
        };
        Ok(self.place(
            template,
            (&spec, dynamic),
            host.into(),
            (first, targets, found),
            now,
            random,
        ))
    }

    fn place(
        &self,
        template: &Rc<ClusterHandle>,
        (spec, dynamic): (&Arc<ClusterSpec>, &Dynamic),
        host: Box<str>,
        (first, targets, addresses): (SocketAddr, Arc<[SocketAddr]>, Arc<[IpAddr]>),
        now: Instant,
        random: &RefCell<Random>,
    ) -> Rc<ClusterHandle> {
        let key = ClusterKey::outbound(spec.key.port(), spec.key.subset(), &host);
        let mut hosts = template.hosts.borrow_mut();
        let known = hosts.get(&host).map(|known| Rc::clone(&known.handle));
        // What the endpoint is known by stays, so that other addresses make no other endpoint of it.
        let id = known.as_ref().and_then(|known| {
            let cluster = known.cluster.borrow();
            let endpoints = &cluster.spec().endpoints.endpoints;
            endpoints.first().map(|endpoint| endpoint.address)
        });
        debug_assert_eq!(first.port(), dynamic.port);
        let endpoint = Endpoint {
            targets: Some(Targets::Addresses(targets)),
            ..Endpoint::new(id.unwrap_or(first))
        };
        let address = endpoint.address;
        let own = Arc::new(ClusterSpec {
            key: key.clone(),
            endpoints: Arc::new(EndpointSet::new([endpoint])),
            dynamic: None,
            ..ClusterSpec::clone(spec)
        });
        own.balancer.prepare(&own.endpoints.endpoints);
        let handle = match known {
            Some(known) => {
                let mut cluster = known.cluster.borrow_mut();
                let orphans = cluster.reconcile(own, now, &mut random.borrow_mut());
                drop(cluster);
                known.close(orphans);
                known.retire_unshared();
                known
            }
            None => {
                let shared = template
                    .cluster
                    .borrow()
                    .shared()
                    .with_endpoints([address].into_iter());
                let counted = self.counted_as(&key, &spec.key);
                let handle = ClusterHandle::new(counted, &own, &Arc::new(shared), self, random);
                handle.copy_keys(template);
                if template.gone.get() {
                    // For the request that has begun under a version that is no more: nothing is kept of it.
                    handle.gone.set(true);
                    return handle;
                }
                if own.outlier.is_some() {
                    self.watched.borrow_mut().push(Rc::clone(&handle));
                }
                if handle.cluster.borrow().shared().connections.is_limited() {
                    self.limited.borrow_mut().push(Rc::clone(&handle));
                }
                handle
            }
        };
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(&host) {
            let oldest = hosts
                .iter()
                .min_by_key(|(_, host)| host.used)
                .map(|(name, _)| name.clone());
            let gone = oldest.and_then(|oldest| hosts.remove(&oldest));
            if let Some(gone) = gone {
                let is_it = |other: &Rc<ClusterHandle>| Rc::ptr_eq(other, &gone.handle);
                self.watched.borrow_mut().retain(|other| !is_it(other));
                self.limited
                    .borrow_mut()
                    .retain(|other| !is_it(other) || !other.waiting.borrow().is_empty());
                gone.handle.end();
            }
        }
        hosts.insert(
            host,
            Host {
                handle: Rc::clone(&handle),
                addresses,
                used: now,
            },
        );
        handle
    }

    /// What requests to a host are counted as.
    fn counted_as(&self, key: &ClusterKey, template: &ClusterKey) -> ClusterKey {
        let mut counted = self.counted.borrow_mut();
        if counted.len() >= HOSTS_COUNTED_MAX && !counted.contains(key) {
            return template.clone();
        }
        counted.insert(key.clone());
        key.clone()
    }
}
