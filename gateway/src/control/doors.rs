//! The doors of a process that begins: they stay closed until its endpoints were checked once, where requests would find
//! none otherwise (`initialState: UNHEALTHY`).
//!
//! Until then the process is not ready, and accepts nothing: what a process serves in whose place it comes goes on there.

use super::Control;
use isthmus_core::cluster::health::{Failure, Health};
use isthmus_core::listener::ListenerKey;
use isthmus_core::snapshot::Snapshot;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long first checks may take: an endpoint whose checks begin later, or need longer, is not waited for.
const FIRST_CHECKS: Duration = Duration::from_secs(5);
/// Most endpoints without a first check that are logged.
const LOGGED: usize = 10;

/// Doors that are closed.
pub(super) struct Closed {
    /// For each shard.
    sockets: Vec<Vec<(ListenerKey, OwnedFd)>>,
    until: Instant,
}

impl Closed {
    /// The doors for a first version; what is not to stay closed is left in `sockets`.
    pub(super) fn of(
        snapshot: &Snapshot,
        sockets: &mut Vec<Vec<(ListenerKey, OwnedFd)>>,
        now: Instant,
    ) -> Option<Self> {
        let mut clusters = snapshot.clusters.values();
        let waits = clusters.any(|spec| {
            let mut endpoints = spec.endpoints.endpoints.iter();
            // Only a policy of the service says so.
            let policy = spec.health.as_ref();
            policy.is_some_and(|policy| !policy.starts_healthy) && endpoints.next().is_some()
        });
        waits.then(|| Self {
            sockets: std::mem::take(sockets),
            until: now + FIRST_CHECKS,
        })
    }
}

impl Control {
    /// Opens the doors when the first checks have come in, or have had their time.
    pub(super) fn open_doors(&mut self, now: Instant) {
        let Some(until) = self.closed.as_ref().map(|closed| closed.until) else {
            return;
        };
        if self.plan.is_some() {
            // It is on its way out: nobody new comes in.
            self.closed = None;
            return;
        }
        let Some(current) = self.publisher.effective() else {
            return;
        };
        let is_served = self
            .shards
            .iter()
            .all(|shard| shard.applied >= current.snapshot.version);
        let unchecked = || {
            let clusters = current.shared.iter();
            clusters.flat_map(|(key, shared)| {
                let endpoints = shared.endpoints.iter();
                let unchecked =
                    endpoints.filter(|(_, state)| state.health() == Health::Unhealthy(Failure::NotChecked));
                unchecked.map(move |(address, _)| (key, address))
            })
        };
        if !is_served || (now < until && unchecked().next().is_some()) {
            return;
        }
        for (key, address) in unchecked().take(LOGGED) {
            let spec = current.snapshot.clusters.get(key);
            let endpoint = spec.map_or_else(|| address.to_string(), |spec| spec.endpoints.shown(*address));
            tracing::warn!(
                cluster = %key,
                endpoint,
                "ports are opened although the endpoint was not checked in time: it gets no requests until it is"
            );
        }
        let Some(closed) = self.closed.take() else { return };
        let (_, tls) = self.keys.last_change();
        self.send_version(current.snapshot.clone(), closed.sockets, &tls);
    }
}
