//! Listeners: the ports that Gateways open, each with its routes.

use crate::route::RouteTable;
use std::net::IpAddr;
use std::sync::Arc;

/// What tells listeners apart: one socket set of the process each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    /// The Gateway's port number; `--port-map` may make another one of it at bind time.
    pub port: u16,
    /// The address of `servers[].bind`; None for the process's default.
    pub bind: Option<IpAddr>,
}

/// One listening port and what it serves.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Which one.
    pub key: ListenerKey,
    /// The virtual hosts of all servers on it.
    pub routes: Arc<RouteTable>,
}
