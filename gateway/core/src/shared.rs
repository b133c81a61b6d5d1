//! The only values that shards share and change: budgets that must be exact for the whole process.
//!
//! A limit of a DestinationRule holds for the process, not for each shard, so its count is one atomic number. That of
//! connections is touched when one opens or closes, never by a request on a connection that is already there; that of
//! requests only when requests are limited.

use crate::cluster::health::{Failure, Health};
use crate::cluster::retry_budget::RetryCounts;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Wakes a shard, so that it looks at the budgets whose permits it waits for or holds idle.
pub trait Bell: Send + Sync + fmt::Debug {
    /// Wakes this shard.
    fn ring(&self, shard: usize);
}

/// What one shard wants of a budget, and what it was given.
#[derive(Debug)]
struct Claim {
    /// Its requests that wait for a permit and were given none.
    wanted: AtomicU32,
    /// Permits that were handed to it and that it has not taken.
    granted: AtomicU32,
}

/// A number of permits that all shards together may hold.
///
/// A permit that comes back while somebody waits is handed on, and never free in between: the shards take turns, so that
/// none starves however busy the others are. The count is exact, whoever races.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU32,
    held: AtomicU32,
    claims: Box<[Claim]>,
    /// Places for those that wait; as many are held as are wanted by all claims.
    places: Option<Arc<Budget>>,
    /// The shard that a permit was handed to last.
    turn: AtomicU32,
    bell: Option<Arc<dyn Bell>>,
}

/// What becomes of a request that wants a permit.
#[derive(Debug)]
pub enum Waiting {
    /// There is one.
    Not(Permit),
    /// It waits.
    Yes,
    /// As many wait as may.
    Full,
}

impl Budget {
    /// A budget of `limit` permits; `u32::MAX` is no limit in practice.
    pub fn new(limit: u32) -> Arc<Self> {
        Self::with_claims(limit, 0, None, None)
    }

    /// A budget whose permits `shards` can wait for, each request at one of `places`; `bell` wakes them.
    pub fn for_shards(limit: u32, shards: usize, places: &Arc<Self>, bell: Arc<dyn Bell>) -> Arc<Self> {
        Self::with_claims(limit, shards, Some(Arc::clone(places)), Some(bell))
    }

    fn with_claims(
        limit: u32,
        shards: usize,
        places: Option<Arc<Self>>,
        bell: Option<Arc<dyn Bell>>,
    ) -> Arc<Self> {
        let claim = |_| Claim {
            wanted: AtomicU32::new(0),
            granted: AtomicU32::new(0),
        };
        Arc::new(Self {
            limit: AtomicU32::new(limit),
            held: AtomicU32::new(0),
            claims: (0..shards).map(claim).collect(),
            places,
            turn: AtomicU32::new(0),
            bell,
        })
    }

    /// Takes a permit, or None when all are held. Never oversubscribes, whoever races.
    pub fn acquire(self: &Arc<Self>) -> Option<Permit> {
        self.take().then(|| self.permit())
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit {
            budget: Arc::clone(self),
        }
    }

    fn take(&self) -> bool {
        let mut held = self.held.load(Ordering::Relaxed);
        while held < self.limit.load(Ordering::Relaxed) {
            match self
                .held
                .compare_exchange_weak(held, held + 1, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => held = now,
            }
        }
        false
    }

    /// Notes that a request of `shard` waits for a permit, unless there is one now. From then on one is handed to the
    /// shard by [`Self::take_grants`], or the request leaves by [`Self::leave`]; with either its place is free.
    pub fn wait(self: &Arc<Self>, shard: usize) -> Waiting {
        if self.places.as_ref().is_some_and(|places| !places.take()) {
            return Waiting::Full;
        }
        self.claim(shard).map_or(Waiting::Yes, Waiting::Not)
    }

    /// Lets a request wait on that was to have a connection and found none; it is not asked whether there is a place.
    pub fn wait_on(self: &Arc<Self>, shard: usize) -> Option<Permit> {
        if let Some(places) = &self.places {
            places.held.fetch_add(1, Ordering::AcqRel);
        }
        self.claim(shard)
    }

    fn claim(self: &Arc<Self>, shard: usize) -> Option<Permit> {
        let claim = self.claims.get(shard)?;
        claim.wanted.fetch_add(1, Ordering::AcqRel);
        // Whoever gives a permit back changes the same number: either that comes first, and the permit is seen here, or
        // this does, and the claim is seen there.
        self.held.fetch_add(0, Ordering::AcqRel);
        if self.take() {
            self.leave(shard);
            return Some(self.permit());
        }
        // Others may hold permits for connections that nobody uses.
        self.ring((0..self.claims.len()).filter(|other| *other != shard));
        None
    }

    fn ring(&self, shards: impl Iterator<Item = usize>) {
        if let Some(bell) = &self.bell {
            shards.for_each(|shard| bell.ring(shard));
        }
    }

    /// A request of `shard` waits no more. False when its permit is already on its way: the shard gets it all the same,
    /// for another of its requests, whose claim then is to be withdrawn in its place, or to give it back.
    pub fn leave(&self, shard: usize) -> bool {
        let left = self.claims.get(shard).is_some_and(Claim::withdraw);
        if left {
            self.free_place();
        }
        left
    }

    fn free_place(&self) {
        if let Some(places) = &self.places {
            places.give_back();
        }
    }

    /// The permits that were handed to `shard` since it last asked.
    pub fn take_grants(self: &Arc<Self>, shard: usize) -> impl Iterator<Item = Permit> {
        let granted = self.claims.get(shard).map_or(0, |claim| {
            // Looked at before it is changed: most looks find nothing.
            match claim.granted.load(Ordering::Acquire) {
                0 => 0,
                _ => claim.granted.swap(0, Ordering::AcqRel),
            }
        });
        (0..granted).map(|_| self.permit())
    }

    /// Requests of shards other than this one that wait for a permit.
    pub fn wanted_by_others(&self, shard: usize) -> u32 {
        let all = self.claims.iter().enumerate();
        all.filter(|(other, _)| *other != shard)
            .map(|(_, claim)| claim.wanted.load(Ordering::Relaxed))
            .fold(0, u32::saturating_add)
    }

    /// Another limit holds from now on. Permits beyond a smaller one are not handed on when they come back; those that
    /// a larger one makes free go to whoever waits.
    pub fn set_limit(&self, limit: u32) {
        if self.limit.load(Ordering::Relaxed) == limit {
            return;
        }
        self.limit.store(limit, Ordering::Release);
        self.held.fetch_add(0, Ordering::AcqRel);
        while self.is_wanted() && self.take() {
            if !self.hand_over() {
                self.give_back();
                return;
            }
        }
    }

    /// How many permits there are; `u32::MAX` for no limit.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether the number of permits is limited.
    pub fn is_limited(&self) -> bool {
        self.limit() != u32::MAX
    }

    /// How many permits are held at this moment; those on their way to a shard that waits are among them.
    pub fn held(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }

    fn is_wanted(&self) -> bool {
        let mut claims = self.claims.iter();
        claims.any(|claim| claim.wanted.load(Ordering::Acquire) > 0)
    }

    /// Hands a held permit to the next shard that wants one.
    fn hand_over(&self) -> bool {
        let count = self.claims.len();
        let last = self.turn.load(Ordering::Relaxed) as usize;
        for step in 1..=count {
            let shard = (last + step) % count;
            let Some(claim) = self.claims.get(shard).filter(|claim| claim.withdraw()) else {
                continue;
            };
            self.free_place();
            self.turn.store(shard as u32, Ordering::Relaxed);
            claim.granted.fetch_add(1, Ordering::AcqRel);
            self.ring(std::iter::once(shard));
            return true;
        }
        false
    }

    fn give_back(&self) {
        loop {
            let is_over = self.held.load(Ordering::Relaxed) > self.limit.load(Ordering::Relaxed);
            if !is_over && self.hand_over() {
                return;
            }
            self.held.fetch_sub(1, Ordering::AcqRel);
            if is_over && self.is_wanted() {
                // A smaller limit has taken it from those that wait: another idle connection is to go.
                self.ring(0..self.claims.len());
            }
            // Who has begun to wait in between has looked before that, or finds the permit by itself. Whoever takes it
            // before this does will look here in turn.
            if !self.is_wanted() || !self.take() {
                return;
            }
        }
    }
}

impl Claim {
    /// One less is wanted; false when none was.
    fn withdraw(&self) -> bool {
        let mut wanted = self.wanted.load(Ordering::Acquire);
        while wanted > 0 {
            match self
                .wanted
                .compare_exchange_weak(wanted, wanted - 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(now) => wanted = now,
            }
        }
        false
    }
}

/// The right to one of something; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back();
    }
}

/// Limits of one cluster (Istio `connectionPool`), for the whole process; `u32::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Upstream connections (`tcp.maxConnections`).
    pub connections: u32,
    /// Requests that wait for a connection (`http.http1MaxPendingRequests`, for every version of HTTP).
    pub pending: u32,
    /// Requests that are under way (`http.http2MaxRequests`, for every version of HTTP).
    pub requests: u32,
}

impl Default for Limits {
    /// None.
    fn default() -> Self {
        Self {
            connections: u32::MAX,
            pending: u32::MAX,
            requests: u32::MAX,
        }
    }
}

/// A limit of a cluster that stopped a request or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Limit {
    /// `tcp.maxConnections`, for what cannot wait.
    Connections,
    /// `http.http1MaxPendingRequests`.
    Pending,
    /// `http.http2MaxRequests`.
    Requests,
}

impl Limit {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Connections, Self::Pending, Self::Requests];

    /// As metrics name it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Pending => "pending",
            Self::Requests => "requests",
        }
    }
}

/// What the shards share about one cluster. Its counts live as long as the cluster's name is configured, over any number
/// of snapshots.
#[derive(Debug)]
pub struct ClusterShared {
    /// Upstream connections.
    pub connections: Arc<Budget>,
    /// Requests that wait for a connection.
    pub pending: Arc<Budget>,
    /// Requests that are under way; counted only when they are limited.
    pub requests: Arc<Budget>,
    /// Which endpoints are ejected.
    pub ejections: Arc<Ejections>,
    /// What is known about each endpoint, by address.
    pub endpoints: HashMap<SocketAddr, Arc<EndpointShared>>,
    /// Retries, and the requests that their budget is a part of.
    pub retries: Arc<RetryCounts>,
}

/// Consecutive failures that are counted apart.
pub const STREAKS: usize = 3;

/// What the shards share about one endpoint. A success on an endpoint that has not failed before writes nothing here.
#[derive(Debug, Default)]
pub struct EndpointShared {
    streaks: [AtomicU32; STREAKS],
    /// When its ejection ends, in milliseconds since the cluster's beginning; 0 when it is not ejected, and
    /// [`REMOVED`] when it is none of the cluster's any more.
    until: AtomicU64,
    /// How often in a row it was ejected.
    times: AtomicU32,
    /// When its last ejection ended, or was last forgiven.
    since: AtomicU64,
    /// The verdict of its health checks ([`Health::bits`]), or [`GONE`].
    health: AtomicU32,
}

const REMOVED: u64 = u64::MAX;
/// The verdict on an endpoint that is none of the cluster's any more.
const GONE: u32 = 2;

impl EndpointShared {
    /// Whether it takes requests: neither ejected as an outlier nor found unhealthy.
    pub fn is_available(&self) -> bool {
        !self.is_ejected() && !self.is_unhealthy()
    }

    /// Whether its health checks keep requests away.
    pub fn is_unhealthy(&self) -> bool {
        self.health.load(Ordering::Acquire) & Health::UNHEALTHY != 0
    }

    /// The verdict of its health checks.
    pub fn health(&self) -> Health {
        Health::from_bits(self.health.load(Ordering::Acquire))
    }

    /// Whether it takes no requests. One that is none of the cluster's any more is not ejected: a shard that has not
    /// heard of it yet goes on as before.
    pub fn is_ejected(&self) -> bool {
        !matches!(self.until.load(Ordering::Acquire), 0 | REMOVED)
    }

    /// Counts a failure; answers whether there were as many in a row as `most`, and begins anew then.
    pub fn fail(&self, streak: usize, most: u32) -> bool {
        let Some(count) = self.streaks.get(streak).filter(|_| most > 0) else {
            return false;
        };
        if count.fetch_add(1, Ordering::AcqRel) + 1 < most {
            return false;
        }
        count.store(0, Ordering::Release);
        true
    }

    /// Notes a success.
    pub fn succeed(&self, streak: usize) {
        if let Some(count) = self.streaks.get(streak)
            && count.load(Ordering::Relaxed) != 0
        {
            count.store(0, Ordering::Release);
        }
    }
}

/// The endpoints of one cluster that take no requests: those that are ejected, whose number is never more than a shard
/// says it may be, and those that are unhealthy, however many.
#[derive(Debug)]
pub struct Ejections {
    /// What times are counted from; None for a cluster that ejects nobody.
    beginning: Option<Instant>,
    count: AtomicU32,
    unhealthy: AtomicU32,
    /// Whether endpoints that come take no requests until they were checked.
    starts_unhealthy: AtomicU32,
    /// Grows with each change, so that shards notice.
    epoch: AtomicU32,
}

impl Ejections {
    fn new(beginning: Option<Instant>) -> Arc<Self> {
        Arc::new(Self {
            beginning,
            count: AtomicU32::new(0),
            unhealthy: AtomicU32::new(0),
            starts_unhealthy: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
        })
    }

    fn ms(&self, at: Instant) -> u64 {
        let since = self
            .beginning
            .map(|beginning| at.saturating_duration_since(beginning));
        u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(REMOVED - 1)
    }

    /// How many are ejected.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// How many are unhealthy; an ejected one may be among them.
    pub fn unhealthy(&self) -> u32 {
        self.unhealthy.load(Ordering::Acquire)
    }

    /// Whether endpoints that come from now on take requests before they were checked. Those that are there go on as they
    /// are.
    pub fn set_start(&self, healthy: bool) {
        self.starts_unhealthy
            .store(u32::from(!healthy), Ordering::Release);
    }

    /// Notes the verdict of an endpoint's health checks. Answers whether it takes requests now where it took none before,
    /// or the other way round, which all shards see with the next [`Self::epoch`].
    pub fn judge(&self, endpoint: &EndpointShared, health: Health) -> bool {
        let next = health.bits();
        let mut before = endpoint.health.load(Ordering::Acquire);
        loop {
            if before == GONE || before == next {
                return false;
            }
            match endpoint
                .health
                .compare_exchange_weak(before, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(other) => before = other,
            }
        }
        let is_unhealthy = next & Health::UNHEALTHY != 0;
        if is_unhealthy == (before & Health::UNHEALTHY != 0) {
            return false;
        }
        if is_unhealthy {
            self.unhealthy.fetch_add(1, Ordering::AcqRel);
        } else {
            self.unhealthy.fetch_sub(1, Ordering::AcqRel);
        }
        self.changed();
        true
    }

    /// Ends an ejection before its time, because the endpoint has passed a health check since; answers whether it was
    /// this call that did it.
    pub fn pardon(&self, endpoint: &EndpointShared, now: Instant) -> bool {
        let until = endpoint.until.load(Ordering::Acquire);
        !matches!(until, 0 | REMOVED) && self.end(endpoint, until, 0, self.ms(now))
    }

    /// Grows with each change.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Ejects an endpoint for as long as `time` says for the number of times that it was in a row, this one included,
    /// unless as many as `most` are ejected. Answers how long, if it was this call that did it.
    pub fn eject(
        &self,
        endpoint: &EndpointShared,
        most: u32,
        now: Instant,
        time: impl Fn(u32) -> Duration,
    ) -> Option<Duration> {
        if endpoint.is_ejected() {
            return None;
        }
        let mut count = self.count.load(Ordering::Acquire);
        while count < most {
            match self
                .count
                .compare_exchange_weak(count, count + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(other) => count = other,
            }
        }
        if count >= most {
            return None;
        }
        let times = endpoint.times.load(Ordering::Acquire).saturating_add(1);
        let time = time(times);
        let until = self.ms(now + time).clamp(1, REMOVED - 1);
        let ejected = endpoint
            .until
            .compare_exchange(0, until, Ordering::AcqRel, Ordering::Acquire);
        if ejected.is_err() {
            self.count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        endpoint.times.store(times, Ordering::Release);
        self.changed();
        Some(time)
    }

    /// Ends an ejection whose time is over; answers whether it was this call that did it. An endpoint that has done well
    /// for `interval` is forgiven one of its times.
    pub fn look(&self, endpoint: &EndpointShared, now: Instant, interval: Duration) -> bool {
        let now = self.ms(now);
        let until = endpoint.until.load(Ordering::Acquire);
        if until == 0 {
            let times = endpoint.times.load(Ordering::Acquire);
            let since = endpoint.since.load(Ordering::Acquire);
            let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
            let forgiven = times > 0
                && now.saturating_sub(since) >= interval
                && endpoint
                    .since
                    .compare_exchange(since, now, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok();
            if forgiven {
                endpoint.times.store(times - 1, Ordering::Release);
            }
            return false;
        }
        now >= until && until != REMOVED && self.end(endpoint, until, 0, now)
    }

    fn end(&self, endpoint: &EndpointShared, until: u64, next: u64, now: u64) -> bool {
        // First: whoever sees it back must not see old failures.
        endpoint
            .streaks
            .iter()
            .for_each(|count| count.store(0, Ordering::Release));
        endpoint.since.store(now, Ordering::Release);
        let ended = endpoint
            .until
            .compare_exchange(until, next, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if ended {
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.changed();
        }
        ended
    }

    /// The endpoint is none of the cluster's any more: it can be ejected no more, and counts no more.
    fn remove(&self, endpoint: &EndpointShared) {
        let before = endpoint.until.swap(REMOVED, Ordering::AcqRel);
        if before != 0 && before != REMOVED {
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.changed();
        }
        let before = endpoint.health.swap(GONE, Ordering::AcqRel);
        if before & Health::UNHEALTHY != 0 {
            self.unhealthy.fetch_sub(1, Ordering::AcqRel);
            self.changed();
        }
    }
}

impl ClusterShared {
    /// The same counts with these endpoints: those that stay keep what is known about them.
    #[must_use]
    pub fn with_endpoints(&self, addresses: impl Iterator<Item = SocketAddr>) -> Self {
        let unhealthy = self.ejections.starts_unhealthy.load(Ordering::Acquire) != 0;
        let known = |address| {
            let known = self.endpoints.get(&address).map(Arc::clone);
            let known = known.unwrap_or_else(|| {
                let endpoint = Arc::<EndpointShared>::default();
                if unhealthy {
                    self.ejections
                        .judge(&endpoint, Health::Unhealthy(Failure::NotChecked));
                }
                endpoint
            });
            (address, known)
        };
        let endpoints: HashMap<SocketAddr, Arc<EndpointShared>> = addresses.map(known).collect();
        for (address, gone) in &self.endpoints {
            if !endpoints.contains_key(address) {
                self.ejections.remove(gone);
            }
        }
        Self {
            connections: Arc::clone(&self.connections),
            pending: Arc::clone(&self.pending),
            requests: Arc::clone(&self.requests),
            ejections: Arc::clone(&self.ejections),
            endpoints,
            retries: Arc::clone(&self.retries),
        }
    }

    /// Outliers are looked for no more: who is ejected comes back.
    pub fn forgive(&self, now: Instant) {
        for endpoint in self.endpoints.values() {
            let until = endpoint.until.load(Ordering::Acquire);
            if until != 0 && until != REMOVED {
                self.ejections.end(endpoint, until, 0, self.ejections.ms(now));
            }
            endpoint.times.store(0, Ordering::Release);
        }
    }

    /// Fresh counts for a single shard, which nobody else competes with, and whose endpoints are never ejected.
    pub fn new(connections_max: u32) -> Self {
        let pending = Budget::new(u32::MAX);
        Self {
            connections: Budget::with_claims(connections_max, 1, Some(Arc::clone(&pending)), None),
            pending,
            requests: Budget::new(u32::MAX),
            ejections: Ejections::new(None),
            endpoints: HashMap::new(),
            retries: Arc::default(),
        }
    }

    /// Fresh counts for a process of so many shards. `now` is when the cluster's times begin.
    pub fn for_shards(limits: Limits, shards: usize, bell: Arc<dyn Bell>, now: Instant) -> Self {
        let pending = Budget::new(limits.pending);
        Self {
            connections: Budget::for_shards(limits.connections, shards, &pending, bell),
            pending,
            requests: Budget::new(limits.requests),
            ejections: Ejections::new(Some(now)),
            endpoints: HashMap::new(),
            retries: Arc::default(),
        }
    }

    /// The budget of a limit.
    pub fn budget(&self, limit: Limit) -> &Arc<Budget> {
        match limit {
            Limit::Connections => &self.connections,
            Limit::Pending => &self.pending,
            Limit::Requests => &self.requests,
        }
    }

    /// Other limits hold from now on. Requests that were under way uncounted stay so.
    pub fn set_limits(&self, limits: Limits) {
        self.connections.set_limit(limits.connections);
        self.pending.set_limit(limits.pending);
        self.requests.set_limit(limits.requests);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn permits_are_limited_and_come_back() {
        let budget = Budget::new(2);
        let (a, b) = (budget.acquire(), budget.acquire());
        assert!(a.is_some() && b.is_some() && budget.acquire().is_none());
        drop(a);
        assert_eq!(budget.held(), 1);
        assert!(budget.acquire().is_some());
    }

    #[test]
    fn an_endpoint_that_has_gone_is_not_ejected_for_those_who_have_not_heard_of_it() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let other = SocketAddr::from(([127, 0, 0, 1], 2));
        let before = ClusterShared::new(1).with_endpoints([address].into_iter());
        let known = Arc::clone(&before.endpoints[&address]);
        let after = before.with_endpoints([other].into_iter());
        assert!(!known.is_ejected());
        assert!(!after.endpoints.contains_key(&address));
        assert_eq!(before.ejections.count(), 0);
    }

    #[derive(Debug, Default)]
    struct Rings(std::sync::Mutex<Vec<usize>>);

    impl Bell for Rings {
        fn ring(&self, shard: usize) {
            self.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(shard);
        }
    }

    #[test]
    fn permits_that_come_back_go_around_the_shards_that_wait() {
        let bell = Arc::new(Rings::default());
        let budget = Budget::for_shards(1, 3, &Budget::new(4), Arc::clone(&bell) as Arc<dyn Bell>);
        let mut held = budget.acquire();
        for shard in [0, 0, 2, 2] {
            assert!(matches!(budget.wait(shard), Waiting::Yes));
        }
        assert!(matches!(budget.wait(1), Waiting::Full));
        bell.0.lock().unwrap().clear();
        let mut order = Vec::new();
        for _ in 0..4 {
            drop(held.take());
            assert!(budget.acquire().is_none(), "nobody comes before those who wait");
            let shard = bell.0.lock().unwrap().pop().unwrap();
            order.push(shard);
            let mut granted = budget.take_grants(shard);
            held = granted.next();
            assert!(held.is_some() && granted.next().is_none());
            assert_eq!(budget.held(), 1);
        }
        assert_eq!(order, [2, 0, 2, 0]);
        drop(held);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_smaller_limit_takes_permits_out_and_a_larger_one_hands_them_out() {
        let budget = Budget::for_shards(3, 2, &Budget::new(9), Arc::new(Rings::default()));
        let mut held: Vec<_> = (0..3).filter_map(|_| budget.acquire()).collect();
        assert!(matches!(budget.wait(1), Waiting::Yes));
        budget.set_limit(1);
        held.truncate(1);
        assert_eq!((budget.held(), budget.take_grants(1).count()), (1, 0));
        budget.set_limit(2);
        assert_eq!(budget.held(), 2);
        let granted: Vec<_> = budget.take_grants(1).collect();
        assert_eq!(granted.len(), 1);
    }

    #[test]
    fn who_waits_while_a_smaller_limit_takes_a_permit_has_the_shards_look_again() {
        let bell = Arc::new(Rings::default());
        let budget = Budget::for_shards(2, 2, &Budget::new(9), Arc::clone(&bell) as Arc<dyn Bell>);
        let held = [budget.acquire(), budget.acquire()];
        assert!(matches!(budget.wait(1), Waiting::Yes));
        budget.set_limit(1);
        bell.0.lock().unwrap().clear();
        let [one, other] = held;
        drop(one);
        assert_eq!(budget.take_grants(1).count(), 0);
        assert!(bell.0.lock().unwrap().contains(&0), "who may hold another");
        drop(other);
        assert_eq!(budget.take_grants(1).count(), 1);
    }

    #[test]
    fn who_waits_wakes_the_others_and_nobody_is_woken_for_nothing() {
        let bell = Arc::new(Rings::default());
        let rung = || std::mem::take(&mut *bell.0.lock().unwrap());
        let budget = Budget::for_shards(2, 3, &Budget::new(9), Arc::clone(&bell) as Arc<dyn Bell>);
        let held = [budget.acquire(), budget.acquire()];
        assert_eq!(rung(), []);
        assert!(matches!(budget.wait(1), Waiting::Yes));
        assert_eq!(rung(), [0, 2], "who may have connections that idle");
        assert!(budget.leave(1) && !budget.leave(1));
        budget.set_limit(1);
        drop(held);
        assert_eq!(rung(), [], "nobody waits");
    }

    #[test]
    fn a_limit_is_said_as_it_is() {
        let budget = Budget::new(7);
        assert!(budget.limit() == 7 && budget.is_limited());
        budget.set_limit(u32::MAX);
        assert!(budget.limit() == u32::MAX && !budget.is_limited());
        let labels = Limit::ALL.map(Limit::label);
        assert_eq!(labels, ["connections", "pending", "requests"]);
        let limits = Limits {
            connections: 1,
            pending: 2,
            requests: 3,
        };
        let shared = ClusterShared::new(9);
        shared.set_limits(limits);
        assert_eq!(Limit::ALL.map(|limit| shared.budget(limit).limit()), [1, 2, 3]);
    }

    fn two_endpoints(now: Instant) -> (ClusterShared, [Arc<EndpointShared>; 2]) {
        let addresses = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let shared = ClusterShared::for_shards(Limits::default(), 1, Arc::new(Rings::default()), now);
        let shared = shared.with_endpoints(addresses.into_iter());
        let known = addresses.map(|address| Arc::clone(&shared.endpoints[&address]));
        (shared, known)
    }

    /// How long the ejection is that begins now, for a base time of one second.
    fn eject(shared: &ClusterShared, endpoint: &EndpointShared, now: Instant) -> Option<u64> {
        let time = |times: u32| Duration::from_secs(times.into());
        let ejected = shared.ejections.eject(endpoint, 1, now, time);
        ejected.map(|time| time.as_secs())
    }

    #[test]
    fn an_ejection_ends_in_its_time_and_is_forgiven_one_by_one() {
        let start = Instant::now();
        let (shared, [one, other]) = two_endpoints(start);
        let (at, second) = (|secs| start + Duration::from_secs(secs), Duration::from_secs(1));
        let before = shared.ejections.epoch();
        assert_eq!(eject(&shared, &one, at(0)), Some(1));
        assert_eq!(
            (shared.ejections.count(), shared.ejections.epoch()),
            (1, before + 1)
        );
        assert!(one.is_ejected() && !one.is_available() && other.is_available());
        assert_eq!(eject(&shared, &one, at(0)), None, "it is ejected already");
        assert_eq!(eject(&shared, &other, at(0)), None, "as many are as may be");
        let early = at(1) - Duration::from_millis(1);
        assert!(!shared.ejections.look(&one, early, second) && one.is_ejected());
        assert!(shared.ejections.look(&one, at(1), second) && !one.is_ejected());
        assert_eq!(
            (shared.ejections.count(), shared.ejections.epoch()),
            (0, before + 2)
        );
        assert_eq!(eject(&shared, &one, at(1)), Some(2), "the second in a row");
        assert!(shared.ejections.look(&one, at(3), second));
        // Two are forgiven, each after an interval; then there is nothing to forgive.
        assert!(!shared.ejections.look(&one, at(3), second));
        for looked in 4..8 {
            assert!(!shared.ejections.look(&one, at(looked), second));
            assert!(!shared.ejections.look(&one, at(looked), second));
            let left = one.times.load(Ordering::Acquire);
            assert_eq!(u64::from(left), 5_u64.saturating_sub(looked));
        }
        assert_eq!(eject(&shared, &one, at(8)), Some(1));
    }

    #[test]
    fn an_ejection_may_end_before_its_time() {
        let now = Instant::now();
        let (shared, [one, other]) = two_endpoints(now);
        assert!(!shared.ejections.pardon(&one, now), "it is not ejected");
        assert_eq!(eject(&shared, &one, now), Some(1));
        assert!(shared.ejections.pardon(&one, now) && !one.is_ejected());
        assert!(!shared.ejections.pardon(&one, now));
        assert_eq!(shared.ejections.count(), 0);
        assert_eq!(eject(&shared, &one, now), Some(2), "it counts all the same");
        shared.forgive(now);
        assert!(!one.is_ejected() && shared.ejections.count() == 0);
        assert_eq!(eject(&shared, &one, now), Some(1), "all is forgiven");
        let one_is_gone = shared.with_endpoints([SocketAddr::from(([127, 0, 0, 1], 2))].into_iter());
        assert!(!shared.ejections.pardon(&one, now) && !shared.ejections.look(&one, now, Duration::ZERO));
        shared.forgive(now);
        assert_eq!(one_is_gone.ejections.count(), 0);
        assert_eq!(eject(&shared, &one, now), None, "nobody has it any more");
        assert_eq!(eject(&shared, &other, now), Some(1));
        assert_eq!(shared.ejections.count(), 1);
    }

    #[test]
    fn endpoints_that_come_begin_as_the_policy_says() {
        let (shared, [one, _]) = two_endpoints(Instant::now());
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        shared.ejections.set_start(false);
        let more = shared.with_endpoints([1, 3].map(address).into_iter());
        let new = &more.endpoints[&address(3)];
        assert_eq!(new.health(), Health::Unhealthy(Failure::NotChecked));
        assert!(new.is_unhealthy() && !new.is_available() && !new.is_ejected());
        assert!(one.is_available(), "who was there goes on");
        assert_eq!((more.ejections.unhealthy(), more.ejections.count()), (1, 0));
        more.ejections.set_start(true);
        let all = more.with_endpoints([1, 3, 4].map(address).into_iter());
        assert!(all.endpoints[&address(4)].is_available() && new.is_unhealthy());
    }

    #[test]
    fn shards_notice_verdicts_that_change_who_is_available() {
        let (shared, [one, _]) = two_endpoints(Instant::now());
        let ejections = &shared.ejections;
        let judge = |health| {
            let before = ejections.epoch();
            let said = ejections.judge(&one, health);
            assert_eq!(ejections.epoch(), before + u32::from(said));
            (said, ejections.unhealthy())
        };
        assert_eq!(judge(Health::Healthy), (false, 0));
        assert_eq!(judge(Health::Unhealthy(Failure::TooLate)), (true, 1));
        assert_eq!(judge(Health::Unhealthy(Failure::TooLate)), (false, 1));
        assert_eq!(judge(Health::Unhealthy(Failure::NoAnswer)), (false, 1));
        assert_eq!(
            one.health(),
            Health::Unhealthy(Failure::NoAnswer),
            "the last reason"
        );
        assert_eq!(judge(Health::Healthy), (true, 0));
        assert_eq!(judge(Health::Unhealthy(Failure::Status(503))), (true, 1));
        let _without = shared.with_endpoints(std::iter::empty());
        assert_eq!(ejections.unhealthy(), 0);
        assert_eq!(judge(Health::Healthy), (false, 0), "nobody has it any more");
        assert_eq!(judge(Health::Unhealthy(Failure::TooLate)), (false, 0));
        assert!(!one.is_unhealthy());
    }

    #[test]
    fn who_leaves_too_late_leaves_a_permit_that_can_be_given_back() {
        let budget = Budget::for_shards(1, 2, &Budget::new(9), Arc::new(Rings::default()));
        let held = budget.acquire();
        assert!(matches!(budget.wait(0), Waiting::Yes));
        drop(held);
        budget.leave(0);
        assert_eq!(budget.held(), 1, "it is on its way");
        drop(budget.take_grants(0).collect::<Vec<_>>());
        assert_eq!(budget.held(), 0);
        assert!(budget.acquire().is_some());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn a_budget_of_one_is_never_held_twice() {
        loom::model(|| {
            let budget = Budget::new(1);
            let inside = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (budget, inside) = (Arc::clone(&budget), Arc::clone(&inside));
                    loom::thread::spawn(move || {
                        if let Some(permit) = budget.acquire() {
                            assert_eq!(inside.fetch_add(1, Ordering::AcqRel), 0);
                            inside.fetch_sub(1, Ordering::AcqRel);
                            drop(permit);
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(budget.held(), 0);
            assert!(budget.acquire().is_some());
        });
    }

    #[derive(Debug)]
    struct Silent;

    impl Bell for Silent {
        fn ring(&self, _shard: usize) {}
    }

    #[test]
    fn who_waits_while_a_permit_comes_back_gets_it() {
        loom::model(|| {
            let places = Budget::new(1);
            let budget = Budget::for_shards(1, 2, &places, Arc::new(Silent));
            let held = budget.acquire();
            let waiting = {
                let budget = Arc::clone(&budget);
                loom::thread::spawn(move || budget.wait(1))
            };
            drop(held);
            let at_once = waiting.join().unwrap();
            let granted: Vec<_> = budget.take_grants(1).collect();
            assert_eq!(granted.len() + usize::from(matches!(at_once, Waiting::Not(_))), 1);
            assert_eq!(budget.held(), 1);
            drop((granted, at_once));
            assert_eq!((budget.held(), places.held()), (0, 0));
        });
    }

    #[test]
    fn who_leaves_while_a_permit_is_handed_over_loses_none() {
        loom::model(|| {
            let places = Budget::new(1);
            let budget = Budget::for_shards(1, 2, &places, Arc::new(Silent));
            let held = budget.acquire();
            assert!(matches!(budget.wait(1), Waiting::Yes));
            let leaving = {
                let budget = Arc::clone(&budget);
                loom::thread::spawn(move || budget.leave(1))
            };
            drop(held);
            leaving.join().unwrap();
            drop(budget.take_grants(1).collect::<Vec<_>>());
            assert_eq!((budget.held(), places.held()), (0, 0));
            assert!(!budget.is_wanted());
        });
    }

    #[test]
    fn who_waits_while_the_limit_grows_gets_a_permit() {
        loom::model(|| {
            let places = Budget::new(1);
            let budget = Budget::for_shards(1, 2, &places, Arc::new(Silent));
            let held = budget.acquire();
            let waiting = {
                let budget = Arc::clone(&budget);
                loom::thread::spawn(move || budget.wait(1))
            };
            budget.set_limit(2);
            let at_once = waiting.join().unwrap();
            let granted: Vec<_> = budget.take_grants(1).collect();
            assert_eq!(granted.len() + usize::from(matches!(at_once, Waiting::Not(_))), 1);
            assert_eq!(budget.held(), 2);
            drop(held);
        });
    }

    #[test]
    fn two_shards_never_eject_more_than_may_be() {
        loom::model(|| {
            let ejections = Ejections::new(None);
            let endpoints = [(); 2].map(|()| Arc::new(EndpointShared::default()));
            let threads = endpoints.clone().map(|endpoint| {
                let ejections = Arc::clone(&ejections);
                loom::thread::spawn(move || {
                    let (now, time) = (Instant::now(), |_| Duration::from_secs(1));
                    ejections.eject(&endpoint, 1, now, time).is_some()
                })
            });
            let ejected = threads.map(|thread| thread.join().unwrap());
            assert_eq!(ejected.iter().filter(|ejected| **ejected).count(), 1);
            assert_eq!(ejections.count(), 1);
        });
    }

    #[test]
    fn an_endpoint_that_two_shards_eject_or_remove_at_once_counts_once() {
        loom::model(|| {
            let ejections = Ejections::new(None);
            let endpoint = Arc::new(EndpointShared::default());
            let other = {
                let (ejections, endpoint) = (Arc::clone(&ejections), Arc::clone(&endpoint));
                loom::thread::spawn(move || {
                    ejections.eject(&endpoint, 2, Instant::now(), |_| Duration::from_secs(1));
                })
            };
            ejections.eject(&endpoint, 2, Instant::now(), |_| Duration::from_secs(1));
            other.join().unwrap();
            assert_eq!(ejections.count(), 1);
            ejections.remove(&endpoint);
            assert_eq!(ejections.count(), 0);
            let again = ejections.eject(&endpoint, 2, Instant::now(), |_| Duration::from_secs(1));
            assert_eq!(
                (again, ejections.count()),
                (None, 0),
                "and cannot be ejected any more"
            );
        });
    }
}
