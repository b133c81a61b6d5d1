//! Clusters: which endpoint takes a request, and on which connection.
//!
//! A [`ClusterSpec`] is what the resources say; a [`Cluster`] is one shard's live state for it. The shell asks
//! [`Cluster::acquire`] and gets an answer that names an idle connection to use or an endpoint to connect to; what a
//! connection is stays the shell's affair. Everything acquired is given back by one release.

pub mod balancer;
pub mod pool;

use crate::endpoint::EndpointSet;
use crate::name::ClusterKey;
use balancer::BalancerKind;
use std::sync::Arc;
use std::time::Duration;

/// How long a connect may take when nothing is written (Istio MeshConfig `connectTimeout`).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an upstream connection may idle when nothing is written (Envoy's default for HTTP).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// What the resources say about one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterSpec {
    /// Its name.
    pub key: ClusterKey,
    /// Its endpoints.
    pub endpoints: Arc<EndpointSet>,
    /// How endpoints are picked.
    pub balancer: BalancerKind,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// How long a connection may idle before it is closed; zero for no limit.
    pub idle_timeout: Duration,
    /// Requests after which a connection is closed; 0 for no limit, 1 for no keep-alive.
    pub max_requests_per_connection: u32,
    /// Namespace of the service, for metrics labels.
    pub namespace: Box<str>,
}
