//! Publishing: joins a snapshot with what shards share about its clusters, and keeps both until shards are done.

use crate::mailbox::Publication;
use isthmus_core::name::ClusterMap;
use isthmus_core::shared::ClusterShared;
use isthmus_core::snapshot::{Difference, Snapshot};
use std::sync::Arc;

/// What is published.
#[derive(Default)]
pub(super) struct Publisher {
    current: Option<Arc<Publication>>,
}

impl Publisher {
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
        for key in snapshot.clusters.keys() {
            let known = before
                .as_ref()
                .and_then(|publication| publication.shared.get(key))
                .map(Arc::clone);
            // Limits of connectionPool are not executed yet; the count is kept all the same.
            shared.insert(
                key.clone(),
                known.unwrap_or_else(|| Arc::new(ClusterShared::new(u32::MAX))),
            );
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
