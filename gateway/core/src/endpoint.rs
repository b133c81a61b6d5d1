//! Endpoints: the addresses that a cluster's requests go to.

use crate::discovery::Discovery;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// One address that serves a cluster, with its share of the load.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where to connect, unless [`Self::targets`] says otherwise; what the endpoint is known by.
    pub address: SocketAddr,
    /// Relative share of the load (Istio `WorkloadEntry.weight`), at least 1.
    pub weight: u32,
    /// `region/zone/subzone`, empty when unknown.
    pub locality: Box<str>,
    /// How near it is: 0 for those that are taken first, without gaps (Envoy's priority).
    pub level: u32,
    /// Where new connections go, in this order, each when those before it have had their time (RFC 8305); None for
    /// [`Self::address`] alone. Connections that are there stay what they are when this changes.
    pub targets: Option<Arc<[SocketAddr]>>,
}

impl Endpoint {
    /// An endpoint of weight 1 in no particular place.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            locality: "".into(),
            level: 0,
            targets: None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// All endpoints of one cluster: a whole value, never a difference, so that a lost or repeated update cannot do harm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EndpointSet {
    /// In the order of the resources; an address appears once.
    pub endpoints: Vec<Endpoint>,
    /// How those are found that the resources do not list; None when there are no others.
    pub discovery: Option<Arc<Discovery>>,
}

impl EndpointSet {
    /// Builds a set; of several endpoints with one address the first stays.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut seen = std::collections::HashSet::new();
        Self {
            endpoints: endpoints
                .into_iter()
                .filter(|endpoint| seen.insert(endpoint.address))
                .collect(),
            discovery: None,
        }
    }
}
