//! How long connections last (`maxConnectionDuration`).

use super::ClusterHandle;
use crate::upstream::Connection;
use std::time::Instant;

impl ClusterHandle {
    /// Whether a connection has lasted as long as it may, and so takes no more requests.
    pub(super) fn is_too_old(&self, connection: &Connection, now: Instant) -> bool {
        let longest = self.cluster.borrow().spec().max_connection_duration;
        !longest.is_zero() && now.saturating_duration_since(connection.born) >= longest
    }
}
