//! Publishing: joins a snapshot with what shards share about its clusters, and keeps both until shards are done.

use crate::io::clock;
use crate::mailbox::{Bells, Publication};
use isthmus_core::name::ClusterMap;
use isthmus_core::shared::{Bell, ClusterShared};
use isthmus_core::snapshot::{Difference, Snapshot};
use std::sync::Arc;

/// What is published.
pub(super) struct Publisher {
    current: Option<Arc<Publication>>,
    bells: Arc<Bells>,
}

impl Publisher {
    /// Nothing yet; `bells` are those of the shards.
    pub(super) fn new(bells: Arc<Bells>) -> Self {
        Self { current: None, bells }
    }

    /// Makes a version of a snapshot, and tells what it changes. A cluster that was there before keeps its shared
    /// counts, and what did not change is the same part as before.
    pub(super) fn publish(&mut self, mut snapshot: Snapshot) -> (Arc<Publication>, Difference) {
        let before = self.current.take();
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
        self.current = Some(Arc::clone(&publication));
        (publication, difference)
    }

    /// The present version.
    pub(super) fn current(&self) -> Option<&Arc<Publication>> {
        self.current.as_ref()
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
