//! Publishing: joins a snapshot with what shards share about its clusters, and keeps both until shards are done.

use super::endpoints::{Sent, Updates};
use crate::io::clock;
use crate::mailbox::{Bells, EndpointUpdate, Publication};
use isthmus_core::endpoint::EndpointSet;
use isthmus_core::name::{ClusterKey, ClusterMap};
use isthmus_core::shared::{Bell, ClusterShared};
use isthmus_core::snapshot::{Difference, Snapshot};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// What is published.
pub(super) struct Publisher {
    current: Option<Arc<Publication>>,
    updates: Updates,
    /// The present version with the endpoints as they are now, when somebody has asked for it since they changed.
    effective: Option<Arc<Publication>>,
    bells: Arc<Bells>,
}

impl Publisher {
    /// Nothing yet; `bells` are those of the shards.
    pub(super) fn new(bells: Arc<Bells>) -> Self {
        Self {
            current: None,
            updates: Updates::default(),
            effective: None,
            bells,
        }
    }

    /// Makes a version of a snapshot, and tells what it changes. A cluster that was there before keeps its shared
    /// counts, and what did not change is the same part as before.
    pub(super) fn publish(&mut self, mut snapshot: Snapshot) -> (Arc<Publication>, Difference) {
        let before = self.effective();
        let nothing = Snapshot::default();
        let known = before
            .as_ref()
            .map_or(&nothing, |publication| &publication.snapshot);
        snapshot.share_with(known);
        let difference = snapshot.difference(known);
        snapshot.version = before
            .as_ref()
            .map_or(1, |publication| publication.snapshot.version + 1);
        let mut shared: ClusterMap<Arc<ClusterShared>> = ClusterMap::default();
        for (key, spec) in &snapshot.clusters {
            let known = before
                .as_ref()
                .and_then(|publication| publication.shared.get(key))
                .map(Arc::clone);
            // Here, so that no shard has to while it serves.
            spec.balancer.prepare(&spec.endpoints.endpoints);
            let counts = known.unwrap_or_else(|| {
                let bell: Arc<dyn Bell> = Arc::clone(&self.bells) as _;
                Arc::new(ClusterShared::for_shards(
                    spec.limits,
                    self.bells.shards(),
                    bell,
                    clock::now(),
                ))
            });
            counts.set_limits(spec.limits);
            let starts_healthy = spec.health.as_ref().is_none_or(|policy| policy.starts_healthy);
            counts.ejections.set_start(starts_healthy);
            if spec.outlier.is_none() {
                counts.forgive(clock::now());
            }
            let addresses = spec.endpoints.endpoints.iter().map(|endpoint| endpoint.address);
            shared.insert(key.clone(), Arc::new(counts.with_endpoints(addresses)));
        }
        let publication = Arc::new(Publication { snapshot, shared });
        self.updates.published(publication.snapshot.version);
        self.effective = None;
        self.current = Some(Arc::clone(&publication));
        (publication, difference)
    }

    /// The present version.
    pub(super) fn current(&self) -> Option<&Arc<Publication>> {
        self.current.as_ref()
    }

    /// The address of an endpoint of a cluster, as people read it.
    pub(super) fn shown(&self, cluster: &ClusterKey, address: SocketAddr) -> String {
        let current = self.current.as_ref();
        let spec = current.and_then(|current| current.snapshot.clusters.get(cluster));
        spec.map_or_else(|| address.to_string(), |spec| spec.endpoints.shown(address))
    }

    /// The present version with the endpoints as they are now.
    pub(super) fn effective(&mut self) -> Option<Arc<Publication>> {
        let current = self.current.as_ref()?;
        let effective = self
            .effective
            .get_or_insert_with(|| self.updates.effective(current));
        Some(Arc::clone(effective))
    }

    /// The endpoints of a cluster as they are now; None when there is no such cluster.
    pub(super) fn endpoints(&self, key: &ClusterKey) -> Option<&Arc<EndpointSet>> {
        let published = || Some(&self.current.as_ref()?.snapshot.clusters.get(key)?.endpoints);
        self.updates.set_of(key).or_else(published)
    }

    /// Takes other endpoints of a cluster, and answers what is to be sent to which shard.
    pub(super) fn change_endpoints(&mut self, key: &ClusterKey, set: EndpointSet, now: Instant) -> Sent {
        let Some(current) = &self.current else {
            return Vec::new();
        };
        let number = self.updates.number();
        let sent = self.updates.change(key, set, current, self.bells.shards(), now);
        if self.updates.number() != number {
            self.effective = None;
        }
        sent
    }

    /// A shard has applied an update. Answers what is to be sent to it next, and since when the endpoints that all
    /// shards have now were on their way.
    pub(super) fn endpoints_applied(
        &mut self,
        shard: usize,
        update: &EndpointUpdate,
    ) -> (Option<Arc<EndpointUpdate>>, Option<Instant>) {
        match &self.current {
            Some(current) => self.updates.applied(shard, update, current),
            None => (None, None),
        }
    }

    /// Every shard serves this version.
    pub(super) fn served(&mut self, version: u64) {
        self.updates.served(version);
    }

    /// Permits that all shards hold, over all clusters.
    pub(super) fn permits_held(&self) -> u64 {
        let shared = self
            .current
            .iter()
            .flat_map(|publication| publication.shared.values());
        shared.map(|shared| u64::from(shared.connections.held())).sum()
    }
}
