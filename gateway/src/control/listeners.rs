//! The process's listening sockets: bound here, one for each shard, before any shard serves.

use crate::io::socket;
use isthmus_core::limits::CongestionControl;
use isthmus_core::listener::ListenerKey;
use isthmus_core::snapshot::Snapshot;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;

/// Which port to listen on for which port of a Gateway (`--port-map 80=8080,443=0`); others are themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortMap(BTreeMap<u16, u16>);

impl FromStr for PortMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut map = BTreeMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let bad = || format!("`{pair}` is not GATEWAY-PORT=PORT");
            let (from, to) = pair.split_once('=').ok_or_else(bad)?;
            let from: u16 = from.trim().parse().map_err(|_| bad())?;
            let to: u16 = to.trim().parse().map_err(|_| bad())?;
            if map.insert(from, to).is_some() {
                return Err(format!("port {from} is mapped twice"));
            }
        }
        Ok(Self(map))
    }
}

impl PortMap {
    fn port(&self, port: u16) -> u16 {
        self.0.get(&port).copied().unwrap_or(port)
    }
}

/// A port that cannot be opened, with the mend.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The port is taken, or may not be opened.
    #[error("port {port} of a Gateway cannot be opened at {address}: {error}; {mend}")]
    Port {
        /// As the Gateway names it.
        port: u16,
        /// What was to be opened for it.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
        /// What to do about it.
        mend: &'static str,
    },
    /// The kernel does not have the congestion control of the settings, or does not allow it.
    #[error(
        "congestionControl: {name} cannot be used ({error}); \
         /proc/sys/net/ipv4/tcp_allowed_congestion_control lists what can"
    )]
    CongestionControl {
        /// Its name.
        name: Box<str>,
        /// Why not.
        error: std::io::Error,
    },
}

/// The open listeners and their addresses.
pub(super) struct Listeners {
    bind_address: IpAddr,
    port_map: PortMap,
    congestion_control: CongestionControl,
    open: BTreeMap<ListenerKey, SocketAddr>,
}

impl Listeners {
    pub(super) fn new(
        bind_address: IpAddr,
        port_map: PortMap,
        congestion_control: CongestionControl,
    ) -> Self {
        Self {
            bind_address,
            port_map,
            congestion_control,
            open: BTreeMap::new(),
        }
    }

    /// Opens what the snapshot has and is not open yet; answers for each shard its sockets, and why ports could not be
    /// opened. A listener that is gone is forgotten: its sockets are the shards'.
    pub(super) fn open(
        &mut self,
        snapshot: &Snapshot,
        shards: usize,
    ) -> (Vec<Vec<(ListenerKey, OwnedFd)>>, Vec<ListenerError>) {
        let mut sockets: Vec<Vec<(ListenerKey, OwnedFd)>> = (0..shards).map(|_| Vec::new()).collect();
        let mut failed = Vec::new();
        self.open
            .retain(|key, _| snapshot.listeners.iter().any(|listener| listener.key == *key));
        for listener in &snapshot.listeners {
            let key = &listener.key;
            if self.open.contains_key(key) {
                continue;
            }
            match self.open_one(key, shards) {
                Ok((address, bound)) => {
                    for (of_shard, socket) in sockets.iter_mut().zip(bound) {
                        of_shard.push((key.clone(), socket));
                    }
                    self.open.insert(key.clone(), address);
                }
                Err(error) => failed.push(error),
            }
        }
        (sockets, failed)
    }

    fn open_one(
        &self,
        key: &ListenerKey,
        shards: usize,
    ) -> Result<(SocketAddr, Vec<OwnedFd>), ListenerError> {
        let address = SocketAddr::new(
            key.bind.unwrap_or(self.bind_address),
            self.port_map.port(key.port),
        );
        let (address, bound) = bind(address, shards).map_err(|error| {
            let mend = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "something else listens there: end it, or give another port with --port-map"
                }
                std::io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or give another port with --port-map"
                }
                std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
                _ => "give another address with --bind-address, or another port with --port-map",
            };
            ListenerError::Port {
                port: key.port,
                address,
                error,
                mend,
            }
        })?;
        if let Some(name) = &self.congestion_control.0 {
            for socket in &bound {
                socket::set_congestion_control(socket, name).map_err(|error| {
                    ListenerError::CongestionControl {
                        name: name.clone(),
                        error,
                    }
                })?;
            }
        }
        Ok((address, bound))
    }

    /// Ports of the port map that no open listener has.
    pub(super) fn unused_mappings(&self) -> Vec<u16> {
        let known = |port: &u16| self.open.keys().any(|key| key.port == *port);
        self.port_map
            .0
            .keys()
            .filter(|port| !known(port))
            .copied()
            .collect()
    }

    /// Each listener and where it listens.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ListenerKey, &SocketAddr)> {
        self.open.iter()
    }
}

fn bind(address: SocketAddr, shards: usize) -> std::io::Result<(SocketAddr, Vec<OwnedFd>)> {
    match socket::bind_all(address, shards) {
        // A machine without IPv6 has no dual-stack wildcard.
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            socket::bind_all(
                SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()),
                shards,
            )
        }
        bound => bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_maps_are_read() {
        let map: PortMap = "80=8080, 443=0".parse().unwrap();
        assert_eq!((map.port(80), map.port(443), map.port(81)), (8080, 0, 81));
        for bad in ["80", "80=x", "80=70000", "80=1,80=2"] {
            assert!(bad.parse::<PortMap>().is_err(), "{bad}");
        }
    }
}
