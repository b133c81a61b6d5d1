//! What the compiler decided between resources and leaves to the analysis to tell.

use isthmus_core::listener::ListenerKey;
use isthmus_core::name::HostPattern;
use std::collections::HashSet;

/// What was noticed while listeners were put together.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Gateways that select this process, by position.
    pub(crate) selected: HashSet<usize>,
    /// VirtualServices that are bound to one of them, by position.
    pub(crate) used: HashSet<usize>,
    /// Whether one of them is the door of mesh clients.
    pub(crate) mesh_door: bool,
    /// Servers that give way to an earlier one.
    pub(crate) left_out: Vec<LeftOut>,
    /// Names whose TLS passes through already.
    pub(crate) passing: Vec<SniTaken>,
    /// VirtualServices that share a host.
    pub(crate) overlaps: Vec<Overlap>,
}

/// A server by the position of its Gateway and its own in there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerAt {
    pub(crate) gateway: usize,
    pub(crate) server: usize,
}

/// A server that is left out for the sake of an earlier one.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub(crate) server: ServerAt,
    pub(crate) first: ServerAt,
    pub(crate) reason: Reason,
}

/// Why two servers cannot both be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A port has one protocol.
    Protocol,
    /// A port of bytes has one server.
    Carried,
    /// A host of TLS, by its position in the later server, has one server.
    Host(usize),
}

/// A match of a `tls[]` rule by positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TlsMatch {
    pub(crate) virtual_service: usize,
    pub(crate) rule: usize,
    pub(crate) matched: usize,
}

/// A name whose TLS already passes through elsewhere.
#[derive(Debug)]
pub(crate) struct SniTaken {
    pub(crate) port: u16,
    pub(crate) here: TlsMatch,
    /// Position in `sniHosts`.
    pub(crate) host: usize,
    pub(crate) first: TlsMatch,
}

/// A VirtualService whose rules for a host come after those of another.
#[derive(Debug)]
pub(crate) struct Overlap {
    pub(crate) key: ListenerKey,
    pub(crate) later: usize,
    pub(crate) first: usize,
    pub(crate) pattern: HostPattern,
}
