//! Health checks: this shard's part of the endpoints is asked from time to time whether they can serve.
//!
//! Which endpoints are this shard's follows from their addresses, so that no shard needs to be told. An endpoint that
//! several clusters have (a service and its subsets) is asked once for all of them, as long as they ask the same. Each has
//! a task, which sleeps until its next check is due; the verdict goes where all shards see it with their next pick, and
//! control hears of it afterwards.

mod turns;

use super::Shard;
use crate::io::{clock, spawn};
use crate::mailbox::{ClientConfigs, TlsSet};
use crate::proxy::Context;
use crate::upstream::connect::{Secure, Wanted};
use crate::upstream::health::{self, Question};
use isthmus_core::cluster::health::{
    Change, Check, Failure, Finding, Health, HealthPolicy, Monitor, shard_of,
};
use isthmus_core::cluster::{ClusterSpec, ProxyVersion};
use isthmus_core::endpoint::{Endpoint, Targets};
use isthmus_core::name::ClusterKey;
use isthmus_core::protocol::UpstreamVersion;
use isthmus_core::proxy_protocol::Addresses;
use isthmus_core::route::split_port;
use isthmus_core::shared::{ClusterShared, EndpointShared};
use isthmus_core::tls::{ClientTls, Offer};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use turns::Turns;

/// Most checks of one shard at a time; others wait, so that many endpoints that do not answer cannot use up the
/// process's descriptors.
const AT_A_TIME: u32 = 256;

/// What is asked, and whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Target {
    endpoint: SocketAddr,
    /// Where it is asked.
    at: SocketAddr,
    policy: Arc<HealthPolicy>,
    tls: Option<Arc<ClientTls>>,
    /// The authority that is asked for; empty where none is.
    host: Box<str>,
    /// Whose name its addresses are those of.
    name: Option<Box<str>>,
    is_http2: bool,
    proxy_protocol: Option<ProxyVersion>,
}

impl Target {
    fn new(endpoint: &Endpoint, policy: &Arc<HealthPolicy>, spec: &ClusterSpec) -> Self {
        let address = endpoint.address;
        let tls = policy.tls(spec.tls.as_ref());
        let is_asked = tls.is_some() || !matches!(policy.check, Check::Tcp);
        let service = spec.key.host();
        let own_port = policy.port.is_none();
        Self {
            endpoint: address,
            at: policy.address_of(address),
            policy: Arc::clone(policy),
            name: endpoint.targets.is_some().then(|| service.into()),
            host: match is_asked {
                // A wildcard is nobody's name.
                true if service.contains('*') && endpoint.socket().is_some() => "localhost".into(),
                true if service.contains('*') => address.to_string().into(),
                true => service.into(),
                false => "".into(),
            },
            is_http2: match policy.check {
                Check::Grpc { .. } => true,
                Check::Http(_) => own_port && spec.http.version == UpstreamVersion::Http2,
                Check::Tcp => false,
            },
            proxy_protocol: spec.proxy_protocol.filter(|_| own_port),
            tls,
        }
    }

    fn offer(&self) -> Offer {
        match (&self.policy.check, self.is_http2) {
            (Check::Tcp, _) => Offer::Bytes,
            (_, true) => Offer::Http2,
            (_, false) => Offer::Http1,
        }
    }

    /// What its connections are to be like; None when there are no keys for them.
    fn wanted(&self, targets: Option<Targets>, configs: Option<&ClientConfigs>) -> Option<Wanted> {
        let asked = match &self.policy.check {
            Check::Http(http) => http.host.as_deref(),
            Check::Tcp | Check::Grpc { .. } => None,
        };
        let secure = match &self.tls {
            None => None,
            Some(tls) => {
                let (host, _) = split_port(asked.unwrap_or(&self.host));
                Some(Secure {
                    config: Arc::clone(configs?.offering(self.offer())),
                    name: tls
                        .sni
                        .clone()
                        .unwrap_or_else(|| host.trim_matches(['[', ']']).into()),
                })
            }
        };
        let nobody = match self.at {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let addresses = Addresses {
            source: SocketAddr::new(nobody, 0),
            destination: self.at,
        };
        Some(Wanted {
            targets,
            timeout: self.policy.timeout,
            keepalive: None,
            proxy_header: self.proxy_protocol.map(|version| (version, addresses)),
            secure,
        })
    }
}

/// A cluster that wants to know.
struct Asker {
    cluster: ClusterKey,
    shared: Arc<ClusterShared>,
    endpoint: Arc<EndpointShared>,
}

/// An endpoint that is checked.
struct Watched {
    target: Target,
    /// Where an endpoint is asked that is a name: its addresses, of which the first that takes the connection is asked.
    /// They may change from one answer of DNS to the next, and the endpoint stays the same.
    targets: RefCell<Option<Targets>>,
    askers: RefCell<Vec<Asker>>,
    /// The last verdict.
    health: Cell<Health>,
    is_over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps an endpoint's checks going.
struct Guard(Rc<Watched>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.is_over.set(true);
        let waker = self.0.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What connections can be secured with.
type Keys = HashMap<Arc<ClientTls>, Arc<ClientConfigs>>;

/// The checks of one shard.
pub(super) struct Checks {
    shard: usize,
    shards: usize,
    watched: RefCell<HashMap<Target, Guard>>,
    keys: RefCell<Keys>,
    /// A check's right to be made.
    turns: Rc<Turns>,
    /// Whether endpoints have changed since this was last seen to.
    is_behind: Cell<bool>,
    /// What control is to be told.
    changes: RefCell<Vec<(ClusterKey, Change)>>,
}

impl Checks {
    pub(super) fn new(shard: usize, shards: usize) -> Self {
        Self {
            shard,
            shards,
            watched: RefCell::default(),
            keys: RefCell::default(),
            turns: Turns::new(AT_A_TIME),
            is_behind: Cell::new(false),
            changes: RefCell::default(),
        }
    }

    /// Other endpoints are to be checked: soon, and not for each of many changes that come one after the other.
    pub(super) fn fall_behind(&self) {
        self.is_behind.set(true);
    }

    /// What has happened since this was last asked.
    pub(super) fn take_changes(&self) -> Vec<(ClusterKey, Change)> {
        self.changes.take()
    }

    /// Takes other keys over.
    pub(super) fn secure(&self, tls: &TlsSet) {
        self.keys.borrow_mut().clone_from(&tls.clients);
    }

    fn configs(&self, target: &Target) -> Option<Arc<ClientConfigs>> {
        self.keys.borrow().get(target.tls.as_ref()?).cloned()
    }

    fn judge(&self, context: &Context, watched: &Watched, asker: &Asker, health: Health) {
        let ejections = &asker.shared.ejections;
        if !ejections.judge(&asker.endpoint, health) {
            return;
        }
        let change = Change {
            address: watched.target.endpoint,
            failure: match health {
                Health::Unhealthy(failure) => Some(failure),
                Health::Healthy | Health::Unchecked => None,
            },
            epoch: ejections.epoch(),
        };
        // The clusters of this shard first of all; the others look with their next pick.
        context.clusters.refresh(clock::now(), &context.random);
        self.changes.borrow_mut().push((asker.cluster.clone(), change));
    }
}

/// What is known of an endpoint that several clusters have.
fn known(askers: &[Asker]) -> Health {
    let all = || askers.iter().map(|asker| asker.endpoint.health());
    let is_found =
        |health: &Health| !matches!(health, Health::Unchecked | Health::Unhealthy(Failure::NotChecked));
    let found = all().find(is_found).or_else(|| all().next());
    found.unwrap_or(Health::Unchecked)
}

impl Shard {
    /// Sees to changes of endpoints.
    pub(super) fn catch_up_with_checks(self: &Rc<Self>) {
        if self.checks.is_behind.get() {
            self.check_endpoints();
        }
    }

    /// Begins to check what is new, and ends what is gone. To be called when clusters or their endpoints have changed.
    pub(super) fn check_endpoints(self: &Rc<Self>) {
        let checks = &self.checks;
        checks.is_behind.set(false);
        let mut wanted: HashMap<Target, (Option<Targets>, Vec<Asker>)> = HashMap::new();
        for (cluster, spec, shared) in self.context.clusters.checked() {
            for endpoint in &spec.endpoints.endpoints {
                let Some(policy) = spec.health_of(endpoint) else {
                    continue;
                };
                if shard_of(endpoint.address, checks.shards) != checks.shard {
                    continue;
                }
                let Some(known) = shared.endpoints.get(&endpoint.address) else {
                    continue;
                };
                let target = Target::new(endpoint, policy, &spec);
                let at = |all: &Targets| match all {
                    Targets::Addresses(all) => {
                        Targets::Addresses(all.iter().map(|one| policy.address_of(*one)).collect())
                    }
                    Targets::Socket(path) => Targets::Socket(Arc::clone(path)),
                };
                let (targets, askers) = wanted.entry(target).or_default();
                *targets = endpoint.targets.as_ref().map(at);
                askers.push(Asker {
                    cluster: cluster.clone(),
                    shared: Arc::clone(&shared),
                    endpoint: Arc::clone(known),
                });
            }
        }
        let still: HashSet<(ClusterKey, SocketAddr)> = wanted
            .iter()
            .flat_map(|(target, (_, askers))| {
                askers
                    .iter()
                    .map(|asker| (asker.cluster.clone(), target.endpoint))
            })
            .collect();
        let mut before = std::mem::take(&mut *checks.watched.borrow_mut());
        let mut unchecked = Vec::new();
        let mut next = HashMap::new();
        let mut begun = Vec::new();
        for (target, (targets, askers)) in wanted {
            let guard = before.remove(&target).unwrap_or_else(|| {
                let watched = Rc::new(Watched {
                    target: target.clone(),
                    targets: RefCell::default(),
                    askers: RefCell::default(),
                    health: Cell::new(known(&askers)),
                    is_over: Cell::new(false),
                    waker: RefCell::default(),
                });
                begun.push(Rc::clone(&watched));
                Guard(watched)
            });
            let Guard(watched) = &guard;
            *watched.targets.borrow_mut() = targets;
            let health = watched.health.get();
            for asker in &askers {
                if !matches!(health, Health::Unchecked | Health::Unhealthy(Failure::NotChecked)) {
                    checks.judge(&self.context, watched, asker, health);
                }
            }
            unchecked.extend(watched.askers.replace(askers));
            next.insert(target, guard);
        }
        *checks.watched.borrow_mut() = next;
        for (_, guard) in before {
            unchecked.extend(guard.0.askers.take());
        }
        // Those that are checked no more take requests; that of a cluster that is gone does no harm.
        let gone = |asker: &Asker, address| !still.contains(&(asker.cluster.clone(), address));
        for asker in unchecked {
            let address = asker
                .shared
                .endpoints
                .iter()
                .find(|(_, known)| Arc::ptr_eq(known, &asker.endpoint))
                .map(|(address, _)| *address);
            if address.is_some_and(|address| gone(&asker, address)) {
                asker.shared.ejections.judge(&asker.endpoint, Health::Unchecked);
            }
        }
        // Without a borrow: the task runs at once.
        for watched in begun {
            let shard = Rc::clone(self);
            spawn::spawn(&self.context.tasks, async move {
                let mut watching = pin!(watch(&shard, &watched));
                poll_fn(|cx| {
                    if watched.is_over.get() {
                        return Poll::Ready(());
                    }
                    *watched.waker.borrow_mut() = Some(cx.waker().clone());
                    watching.as_mut().poll(cx)
                })
                .await;
            });
        }
    }
}

/// Checks an endpoint again and again.
async fn watch(shard: &Shard, watched: &Watched) {
    let (context, checks) = (&shard.context, &shard.checks);
    let policy = &watched.target.policy;
    let mut monitor = {
        let mut random = context.random.borrow_mut();
        Monitor::new(policy, watched.health.get(), clock::now(), &mut random)
    };
    loop {
        let wait = monitor.due().saturating_duration_since(clock::now());
        context.wheel.sleep(wait.max(Duration::from_millis(1))).await;
        let turn = checks.turns.take().await;
        let began = clock::now();
        let ejected: Vec<Arc<EndpointShared>> = watched
            .askers
            .borrow()
            .iter()
            .filter(|asker| asker.endpoint.is_ejected())
            .map(|asker| Arc::clone(&asker.endpoint))
            .collect();
        let configs = checks.configs(&watched.target);
        let targets = watched.targets.borrow().clone();
        let finding = match watched.target.wanted(targets, configs.as_deref()) {
            None => Finding::Failed(Failure::Handshake),
            Some(wanted) => {
                let question = Question {
                    policy,
                    address: watched.target.at,
                    host: &watched.target.host,
                    is_http2: watched.target.is_http2,
                    wanted,
                };
                health::check(question, &context.pool, &context.wheel, context.limits).await
            }
        };
        drop(turn);
        let now = clock::now();
        let verdict = {
            let mut random = context.random.borrow_mut();
            monitor.conclude(policy, finding, began, now, &mut random)
        };
        let passes = finding == Finding::Passed && monitor.is_healthy();
        let health = match verdict {
            Some(health) => health,
            None if passes => Health::Healthy,
            None => match (finding, monitor.is_healthy()) {
                // The last reason is shown.
                (Finding::Failed(failure), false) => Health::Unhealthy(failure),
                _ => watched.health.get(),
            },
        };
        watched.health.set(health);
        let mut stats = context.stats.borrow_mut();
        for asker in watched.askers.borrow().iter() {
            stats.checked(&asker.cluster, finding == Finding::Passed);
            if health != Health::Unchecked {
                checks.judge(context, watched, asker, health);
            }
            // It was ejected for what its requests have met, and has answered since.
            let was_ejected = ejected.iter().any(|known| Arc::ptr_eq(known, &asker.endpoint));
            if passes && was_ejected && asker.shared.ejections.pardon(&asker.endpoint, now) {
                context
                    .clusters
                    .note_pardon(&asker.cluster, watched.target.endpoint);
            }
        }
    }
}
