//! The process's listening sockets: bound here, one for each shard, before any shard serves; or taken over as they are.

use super::upgrade::Inherited;
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
            let port = |text: &str, least: u16| match text.trim().parse::<u16>() {
                Ok(port) if port >= least => Ok(port),
                // Digits that are no port of 16 bits, or 0 for a Gateway's.
                _ if !text.trim().is_empty() && text.trim().bytes().all(|byte| byte.is_ascii_digit()) => Err(
                    format!("`{pair}`: {} is not a port from {least} to 65535", text.trim()),
                ),
                _ => Err(bad()),
            };
            let (from, to) = (port(from, 1)?, port(to, 0)?);
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
    /// There is no other descriptor for a socket.
    #[error("port {port} of a Gateway cannot be shared out: {error}; raise the limit of open files")]
    Share {
        /// As the Gateway names it.
        port: u16,
        /// Why not.
        error: std::io::Error,
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
    open: BTreeMap<ListenerKey, Open>,
    /// Sockets that this process was started with.
    inherited: Inherited,
}

struct Open {
    address: SocketAddr,
    /// The shards have them, too; here they are for a process that takes this one's place.
    sockets: Vec<OwnedFd>,
}

impl Listeners {
    pub(super) fn new(
        bind_address: IpAddr,
        port_map: PortMap,
        congestion_control: CongestionControl,
        inherited: Inherited,
    ) -> Self {
        Self {
            bind_address,
            port_map,
            congestion_control,
            open: BTreeMap::new(),
            inherited,
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
            let opened = self.open_one(key, shards).and_then(|open| {
                let shared = share(&open.sockets, shards).map_err(|error| ListenerError::Share {
                    port: key.port,
                    error,
                })?;
                Ok((open, shared))
            });
            match opened {
                Ok((open, shared)) => {
                    for (shard, socket) in shared {
                        if let Some(of_shard) = sockets.get_mut(shard) {
                            of_shard.push((key.clone(), socket));
                        }
                    }
                    self.open.insert(key.clone(), open);
                }
                Err(error) => failed.push(error),
            }
        }
        self.inherited.close_unclaimed();
        (sockets, failed)
    }

    fn open_one(&mut self, key: &ListenerKey, shards: usize) -> Result<Open, ListenerError> {
        let address = SocketAddr::new(
            key.bind.unwrap_or(self.bind_address),
            self.port_map.port(key.port),
        );
        let passed = self.inherited.listener(key, address);
        let opened = match passed.first() {
            Some(&(address, _)) => Ok((address, passed.into_iter().map(|(_, socket)| socket).collect())),
            None => bind(address, shards),
        };
        let (address, sockets) = opened.map_err(|error| {
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
            for socket in &sockets {
                socket::set_congestion_control(socket, name).map_err(|error| {
                    ListenerError::CongestionControl {
                        name: name.clone(),
                        error,
                    }
                })?;
            }
        }
        Ok(Open { address, sockets })
    }

    /// Sockets of a supervisor that no listener wants, with their names.
    pub(super) fn spare(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.inherited.spare()
    }

    /// Every socket, for a process that is to take this one's place.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&ListenerKey, &OwnedFd)> {
        self.open
            .iter()
            .flat_map(|(key, open)| open.sockets.iter().map(move |socket| (key, socket)))
    }

    /// Accepts no more, as far as it is up to this process; the shards have the sockets still.
    pub(super) fn let_go(&mut self) {
        self.open.clear();
        self.inherited = Inherited::default();
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
        self.open.iter().map(|(key, open)| (key, &open.address))
    }
}

/// Which shard accepts from which sockets. As a rule there is one for each; a process with another number of shards, or
/// a supervisor, may have left fewer, which are shared, or more: none may be without anybody, because the kernel
/// spreads connections over all of them.
fn share(sockets: &[OwnedFd], shards: usize) -> std::io::Result<Vec<(usize, OwnedFd)>> {
    let shards = shards.max(1);
    let mut shared = Vec::new();
    for at in 0..sockets.len().max(shards) {
        if let Some(socket) = sockets.get(at % sockets.len().max(1)) {
            shared.push((at % shards, socket.try_clone()?));
        }
    }
    Ok(shared)
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
    fn every_socket_has_a_shard_and_every_shard_a_socket() {
        let (_, sockets) = bind("127.0.0.1:0".parse().unwrap(), 4).unwrap();
        for (given, shards) in [(4, 4), (4, 3), (2, 4), (1, 3), (3, 1)] {
            let shared = share(&sockets[..given], shards).unwrap();
            assert_eq!(shared.len(), given.max(shards));
            for shard in 0..shards {
                assert!(shared.iter().any(|(of, _)| *of == shard), "{given} for {shards}");
            }
        }
    }

    #[test]
    fn port_maps_are_read() {
        let map: PortMap = "80=8080, 443=0".parse().unwrap();
        assert_eq!((map.port(80), map.port(443), map.port(81)), (8080, 0, 81));
        for (bad, told) in [
            ("80", "`80` is not GATEWAY-PORT=PORT"),
            ("80=x", "`80=x` is not GATEWAY-PORT=PORT"),
            ("80=", "`80=` is not GATEWAY-PORT=PORT"),
            ("80=70000", "`80=70000`: 70000 is not a port from 0 to 65535"),
            ("0=80", "`0=80`: 0 is not a port from 1 to 65535"),
            ("80=1,80=2", "port 80 is mapped twice"),
        ] {
            assert_eq!(bad.parse::<PortMap>(), Err(told.to_owned()));
        }
    }
}
