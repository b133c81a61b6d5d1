//! A snapshot: everything that an operator's resources mean at one moment, immutable.
//!
//! The compiler makes it on the control thread; shards read it. Its parts are reference counted, so that a part that
//! did not change is the same part in the next version, and what hangs on it (connections, counters) survives.

use crate::cluster::ClusterSpec;
use crate::listener::Listener;
use crate::name::ClusterMap;
use std::sync::Arc;

/// One version of the whole configuration.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Grows by one with each version that is published; the first is 1.
    pub version: u64,
    /// In order of port.
    pub listeners: Vec<Arc<Listener>>,
    /// Every cluster that a route may name and the registry knows.
    pub clusters: ClusterMap<Arc<ClusterSpec>>,
}
