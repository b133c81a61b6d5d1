//! Endpoints: the addresses that a cluster's requests go to.

use crate::cluster::health::HealthPolicy;
use crate::discovery::Discovery;
use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use twox_hash::XxHash64;

/// What the address begins with that an endpoint on a unix socket is known by: nothing can be reached there (RFC 6666).
const SOCKETS: [u16; 4] = [0x0100, 0, 0, 0];
/// What the path of a unix socket is written behind.
pub const UNIX: &str = "unix://";

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
    /// How it is checked, unless its cluster says (Istio `WorkloadGroup.probe`).
    pub health: Option<Arc<HealthPolicy>>,
    /// Where new connections go; None for [`Self::address`] alone. Connections that are there stay what they are when
    /// this changes.
    pub targets: Option<Targets>,
}

/// Where new connections to an endpoint go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Targets {
    /// To these addresses in this order, each when those before it have had their time (RFC 8305).
    Addresses(Arc<[SocketAddr]>),
    /// To a unix socket, by its path; an abstract one begins with `@` (Istio `unix:///path`, `unix://@name`).
    Socket(Arc<str>),
}

impl Targets {
    /// The addresses; none of a socket.
    pub fn addresses(&self) -> &[SocketAddr] {
        match self {
            Self::Addresses(addresses) => addresses,
            Self::Socket(_) => &[],
        }
    }

    /// The path of the socket, when it is one.
    pub fn socket(&self) -> Option<&Arc<str>> {
        match self {
            Self::Addresses(_) => None,
            Self::Socket(path) => Some(path),
        }
    }
}

/// Whether an address is what an endpoint on a unix socket is known by.
pub fn is_socket(address: &SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.segments().starts_with(&SOCKETS)) && address.port() == 0
}

impl Endpoint {
    /// An endpoint of weight 1 on a unix socket. It is known by an address that follows from the path.
    pub fn on_socket(path: &str) -> Self {
        let mut hasher = XxHash64::with_seed(0);
        hasher.write(path.as_bytes());
        let [a, b, c, d] = SOCKETS;
        let prefix = u128::from(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0));
        let ip = Ipv6Addr::from(prefix | u128::from(hasher.finish()));
        Self {
            targets: Some(Targets::Socket(path.into())),
            ..Self::new(SocketAddr::new(ip.into(), 0))
        }
    }

    /// The path of its socket, when it is on one.
    pub fn socket(&self) -> Option<&Arc<str>> {
        self.targets.as_ref().and_then(Targets::socket)
    }

    /// An endpoint of weight 1 in no particular place.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            locality: "".into(),
            level: 0,
            health: None,
            targets: None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(path) => write!(f, "{UNIX}{path}"),
            None => self.address.fmt(f),
        }
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

    /// An address as people read it: of a unix socket its path.
    pub fn shown(&self, address: SocketAddr) -> String {
        let is_it = |endpoint: &&Endpoint| endpoint.address == address;
        let found = is_socket(&address).then(|| self.endpoints.iter().find(is_it));
        found
            .flatten()
            .map_or_else(|| address.to_string(), ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_known_by_an_address_of_its_own_and_shown_by_its_path() {
        let paths = ["/run/a.sock", "/run/b.sock", "@a"];
        let set = EndpointSet::new(paths.map(Endpoint::on_socket));
        assert_eq!(set.endpoints.len(), 3);
        for (endpoint, path) in set.endpoints.iter().zip(paths) {
            assert!(is_socket(&endpoint.address));
            assert_eq!(set.shown(endpoint.address), format!("unix://{path}"));
            assert_eq!(Endpoint::on_socket(path).address, endpoint.address);
        }
        let plain = SocketAddr::from(([127, 0, 0, 1], 80));
        assert!(!is_socket(&plain));
        assert_eq!(set.shown(plain), "127.0.0.1:80");
    }
}
