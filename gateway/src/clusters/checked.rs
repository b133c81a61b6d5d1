//! What health checks need to know of the clusters, and say to them.

use super::Clusters;
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::cluster::outlier::Change;
use isthmus_core::name::ClusterKey;
use isthmus_core::random::Random;
use isthmus_core::shared::ClusterShared;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

impl Clusters {
    /// The clusters whose endpoints are checked.
    pub fn checked(&self) -> Vec<(ClusterKey, Arc<ClusterSpec>, Arc<ClusterShared>)> {
        let watched = self.watched.borrow();
        let all = watched.iter().filter_map(|handle| {
            let cluster = handle.cluster.borrow();
            let is_checked = cluster.spec().is_checked();
            let key = handle.key.clone().filter(|_| is_checked)?;
            Some((key, Arc::clone(cluster.spec()), Arc::clone(cluster.shared())))
        });
        all.collect()
    }

    /// Has every cluster take over which endpoints are available, so that the next request need not.
    pub fn refresh(&self, now: Instant, random: &RefCell<Random>) {
        for handle in self.watched.borrow().iter() {
            let mut cluster = handle.cluster.borrow_mut();
            cluster.refresh(now, &mut random.borrow_mut());
        }
    }

    /// Notes that an endpoint's ejection has ended before its time.
    pub fn note_pardon(&self, key: &ClusterKey, address: SocketAddr) {
        let change = Change {
            address,
            ejected: None,
        };
        self.changes.borrow_mut().push((key.clone(), change));
    }
}
