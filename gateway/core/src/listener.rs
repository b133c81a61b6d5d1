//! Listeners: the ports that Gateways open, and what each does with the connections that come.
//!
//! A plaintext port carries HTTP or bytes. On a TLS port the name that the client asks for (SNI, RFC 6066, 3) chooses a
//! [`Chain`]: what is presented, and whether HTTP or bytes are inside, or whether the bytes pass through unopened.

use crate::name::{ClusterKey, HostIndex, HostPattern};
use crate::route::{RouteTable, most_specific};
use crate::source::{Caller, SourceMatch};
use crate::tls::ServerTls;
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
    /// Whether a PROXY header comes first.
    pub proxy_protocol: ProxyProtocol,
    /// Which protocols requests may change to.
    pub upgrades: Upgrades,
    /// What is done with a connection.
    pub accepts: Accepts,
    /// Virtual hosts: one table on a plaintext HTTP port, one for each policy on a TLS port, none for bytes; on the port
    /// of a forward proxy one for each port of targets.
    pub tables: Vec<Arc<RouteTable>>,
    /// What a forward proxy leads to (the annotation `isthmus.dev/forward-proxy` of a Gateway), in order of chain
    /// and port; empty on a port that is none.
    pub forward: Vec<ForwardPort>,
}

/// A port of targets of a forward proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct ForwardPort {
    /// Position of the chain whose server is the proxy; None on a plaintext port.
    pub chain: Option<usize>,
    /// The targets' port.
    pub port: u16,
    /// Position in [`Listener::tables`] of the routes of requests in absolute form (RFC 9112, 3.2.2).
    pub table: usize,
    /// Where CONNECT leads, by the target's host (RFC 9110, 9.3.6).
    pub connect: Arc<SniTable>,
}

/// Those of one chain.
pub fn forward_ports(ports: &[ForwardPort], chain: Option<usize>) -> &[ForwardPort] {
    let begin = ports.partition_point(|one| one.chain < chain);
    let end = ports.partition_point(|one| one.chain <= chain);
    ports.get(begin..end).unwrap_or_default()
}

/// The entry of a port, among those of one chain.
pub fn forward_port(ports: &[ForwardPort], port: u16) -> Option<&ForwardPort> {
    let at = ports.binary_search_by_key(&port, |one| one.port).ok()?;
    ports.get(at)
}

/// Whether connections begin with a PROXY header of a balancer in front, which says who the client is (the annotation
/// `isthmus.dev/proxy-protocol` of a Gateway). Only trusted peers are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum ProxyProtocol {
    /// They do not; one would be taken for what is inside.
    #[default]
    Off,
    /// Those of trusted peers may.
    Accept,
    /// Those of trusted peers must, and others are refused.
    Require,
}

/// Which protocols a request may ask to go on in, by Upgrade (RFC 9110, 7.8) or by `:protocol` of an extended CONNECT
/// (RFC 8441): the annotation `isthmus.dev/upgrades` of a Gateway. Afterwards its connection carries bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrades {
    /// Any but h2c: what is inside would be requests that nobody routes or counts.
    Any,
    /// These, in lower case; none when there is none.
    Only(Vec<Box<str>>),
}

/// Why a list of upgrades is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradesError {
    /// Something in it is no name of a protocol.
    #[error("`{0}` is not the name of a protocol such as websocket")]
    NoToken(String),
    /// `*` or `none` is there beside others.
    #[error("`{0}` must be alone")]
    NotAlone(&'static str),
}

impl Default for Upgrades {
    /// WebSocket, which Istio's gateways always pass.
    fn default() -> Self {
        Self::Only(vec!["websocket".into()])
    }
}

impl Upgrades {
    /// Reads a list with commas: names of protocols in any case, perhaps with a version (`name/version`); or `*` for
    /// any; or `none`, or nothing, for none.
    pub fn parse(text: &str) -> Result<Self, UpgradesError> {
        let is_token = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
        };
        let text = text.trim_ascii();
        let names: Vec<&str> = match text {
            "" | "none" => return Ok(Self::Only(Vec::new())),
            "*" => return Ok(Self::Any),
            list => list.split(',').map(str::trim_ascii).collect(),
        };
        let mut known: Vec<Box<str>> = Vec::new();
        for name in names {
            if let Some(alone) = ["*", "none"].into_iter().find(|alone| *alone == name) {
                return Err(UpgradesError::NotAlone(alone));
            }
            let (protocol, version) = name.split_once('/').unwrap_or((name, "-"));
            if !is_token(protocol) || !is_token(version) {
                return Err(UpgradesError::NoToken(name.to_owned()));
            }
            known.push(name.to_ascii_lowercase().into());
        }
        known.sort_unstable();
        known.dedup();
        Ok(Self::Only(known))
    }

    /// Whether a request may go on in this protocol, one element of its Upgrade field. Who is named without a version
    /// is so in any.
    pub fn allows(&self, protocol: &str) -> bool {
        let name = protocol.split_once('/').map_or(protocol, |(name, _)| name);
        match self {
            Self::Any => !name.eq_ignore_ascii_case("h2c"),
            Self::Only(known) => known
                .iter()
                .any(|known| known.eq_ignore_ascii_case(protocol) || known.eq_ignore_ascii_case(name)),
        }
    }
}

/// What a listener does with a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepts {
    /// Plaintext HTTP, by the only table.
    Http,
    /// Bytes. Without a route the connection is closed.
    Tcp(Option<Arc<TcpRoute>>),
    /// TLS.
    Tls(Arc<SniTable>),
}

/// Where the virtual host of a request is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableOf {
    /// In this table, by its position in [`Listener::tables`].
    Table(usize),
    /// Nowhere: no server has this authority.
    Unknown,
    /// The authority is that of a server with another certificate or policy than the connection's (RFC 9110, 15.5.20).
    Misdirected,
}

fn is_same_policy(one: &Arc<ServerTls>, other: &Arc<ServerTls>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

impl Accepts {
    /// Whether every name of a TLS port has one policy, so that no request can be on the wrong connection.
    pub fn has_one_policy(&self) -> bool {
        let chains = match self {
            Self::Tls(names) => names.chains(),
            _ => &[],
        };
        let mut actions = chains.iter().map(|chain| &chain.action);
        actions.all(|action| matches!(action, ChainAction::Http { table: 0, .. }))
    }

    /// The chain of a connection that has asked TLS for this name, if its policy is what the chain shows now; None on a
    /// plaintext port.
    pub fn chain_of(&self, connection: Option<(&Arc<ServerTls>, Option<&str>)>) -> Option<Option<usize>> {
        match (self, connection) {
            (Self::Http, None) => Some(None),
            (Self::Tls(names), Some((policy, name))) => {
                let at = names.find(name)?;
                let shown = names.chains().get(at)?.action.tls()?;
                is_same_policy(shown, policy).then_some(Some(at))
            }
            _ => None,
        }
    }

    /// The table for an authority's host, on a connection that began under `policy` (None for plaintext);
    /// `one_policy` is what [`Self::has_one_policy`] answers.
    pub fn table_of(&self, one_policy: bool, policy: Option<&Arc<ServerTls>>, host: &str) -> TableOf {
        match (self, policy) {
            (Self::Http, None) => TableOf::Table(0),
            (Self::Tls(names), Some(policy)) if !one_policy => {
                let chain = names.find(Some(host)).and_then(|chain| names.chains().get(chain));
                match chain.map(|chain| &chain.action) {
                    Some(ChainAction::Http { tls, table }) if is_same_policy(tls, policy) => {
                        TableOf::Table(*table)
                    }
                    Some(_) => TableOf::Misdirected,
                    None => TableOf::Unknown,
                }
            }
            (Self::Tls(names), Some(policy)) => {
                // The connection may be older than what the port demands now.
                let present = names.chains().first().and_then(|chain| chain.action.tls());
                if present.is_some_and(|present| is_same_policy(present, policy)) {
                    TableOf::Table(0)
                } else {
                    TableOf::Misdirected
                }
            }
            _ => TableOf::Unknown,
        }
    }
}

/// Where the bytes of a connection go (`VirtualService` `tcp[]` and `tls[]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRoute {
    /// `namespace/name` of the VirtualService.
    pub virtual_service: Arc<str>,
    /// Candidates; a connection draws one. Never empty, and the weights are above 0.
    pub destinations: Vec<TcpDestination>,
    /// Whose connections it is for; None for everybody's.
    pub source: Option<Box<SourceMatch>>,
    /// What is looked at for the connections of others, in order; these have no others of their own.
    pub others: Vec<TcpRoute>,
}

/// One candidate of a [`TcpRoute`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpDestination {
    /// Its cluster.
    pub cluster: ClusterKey,
    /// Its share, beside the others'.
    pub weight: u32,
}

impl TcpRoute {
    /// The first that is for a client.
    pub fn for_caller(&self, caller: &Caller<'_>) -> Option<&Self> {
        self.each()
            .find(|route| route.source.as_ref().is_none_or(|source| source.matches(caller)))
    }

    /// Itself and the others.
    pub fn each(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// The destination that a draw from `0..=u32::MAX` falls on, each in proportion to its weight.
    pub fn pick(&self, draw: u32) -> Option<&TcpDestination> {
        let total: u64 = self.destinations.iter().map(|one| u64::from(one.weight)).sum();
        let mut left = (u64::from(draw) * total) >> 32;
        self.destinations.iter().find(|one| {
            let weight = u64::from(one.weight);
            let hit = left < weight;
            left = left.saturating_sub(weight);
            hit
        })
    }
}

/// What a TLS port does for one set of names.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// `namespace/gateway/port name` of the server, for people.
    pub server: Box<str>,
    /// What is done.
    pub action: ChainAction,
}

/// What is done with a TLS connection.
#[derive(Debug, Clone, PartialEq)]
pub enum ChainAction {
    /// TLS ends here, and HTTP is inside.
    Http {
        /// What is presented and demanded.
        tls: Arc<ServerTls>,
        /// Position in [`Listener::tables`]. Chains with one policy share a table.
        table: usize,
    },
    /// TLS ends here, and bytes are inside.
    Tcp {
        /// What is presented and demanded.
        tls: Arc<ServerTls>,
        /// Where they go; without it the connection is closed.
        route: Option<Arc<TcpRoute>>,
    },
    /// The bytes pass through unopened.
    Pass(Arc<TcpRoute>),
    /// The name itself says the cluster, `outbound_.PORT_.SUBSET_.HOST`, for hosts that these cover.
    AutoPass(Vec<HostPattern>),
}

impl ChainAction {
    /// What is presented, where TLS ends here.
    pub fn tls(&self) -> Option<&Arc<ServerTls>> {
        match self {
            Self::Http { tls, .. } | Self::Tcp { tls, .. } => Some(tls),
            Self::Pass(_) | Self::AutoPass(_) => None,
        }
    }
}

/// The chains of a TLS port by the name that a client asks for: exact before the longest wildcard before `*`.
#[derive(Debug, Default)]
pub struct SniTable {
    chains: Vec<Chain>,
    names: Vec<(HostPattern, usize)>,
    index: HostIndex<usize>,
}

impl PartialEq for SniTable {
    fn eq(&self, other: &Self) -> bool {
        self.chains == other.chains && self.names == other.names
    }
}

impl SniTable {
    /// A table of chains, and the names of each by its position. Of a name that is there twice the first counts.
    pub fn new(chains: Vec<Chain>, names: Vec<(HostPattern, usize)>) -> Self {
        let mut index = HostIndex::default();
        for (pattern, chain) in &names {
            let _the_first_stays = index.insert(pattern.clone(), *chain);
        }
        Self { chains, names, index }
    }

    /// All chains.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// Names with the positions of their chains, as they were given.
    pub fn names(&self) -> &[(HostPattern, usize)] {
        &self.names
    }

    /// What [`Self::find`] finds, found by reading all names, with the one that counts.
    pub fn read(&self, name: Option<&str>) -> Option<(usize, &HostPattern)> {
        let names = self.names.iter().map(|(pattern, chain)| (pattern, *chain));
        most_specific(names, name.unwrap_or("")).map(|(pattern, chain)| (chain, pattern))
    }

    /// The chain for a name in lower case; a client that names none is one of `*`.
    pub fn find(&self, name: Option<&str>) -> Option<usize> {
        self.index.find(name.unwrap_or("")).copied()
    }
}

/// The cluster that a name of AUTO_PASSTHROUGH spells, `outbound_.PORT_.SUBSET_.HOST`, if `hosts` cover its host.
pub fn auto_passthrough(name: &str, hosts: &[HostPattern]) -> Option<ClusterKey> {
    let rest = name.strip_prefix("outbound_.")?;
    let (port, rest) = rest.split_once("_.")?;
    let (subset, host) = rest.split_once("_.")?;
    let covered = hosts.iter().any(|pattern| pattern.matches(host));
    covered.then_some(ClusterKey::outbound(port.parse().ok()?, subset, host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn route(weights: &[u32]) -> TcpRoute {
        let destination = |(at, &weight): (usize, &u32)| TcpDestination {
            cluster: ClusterKey::outbound(at as u16, "", "h"),
            weight,
        };
        TcpRoute {
            virtual_service: "ns/name".into(),
            destinations: weights.iter().enumerate().map(destination).collect(),
            source: None,
            others: Vec::new(),
        }
    }

    #[test]
    fn the_first_route_that_is_for_a_client_takes_its_connections() {
        let of = |subnet: &str, weight| TcpRoute {
            source: Some(Box::new(SourceMatch {
                labels: BTreeMap::new(),
                namespace: "".into(),
                subnet: Some(subnet.parse().unwrap()),
                is_own: true,
            })),
            ..route(&[weight])
        };
        let all = TcpRoute {
            others: vec![of("10.1.0.0/16", 2), of("10.0.0.0/8", 3)],
            ..of("10.1.2.0/24", 1)
        };
        let weight_for = |address: &str| {
            let caller = Caller {
                address: Some(address.parse().unwrap()),
                ..Caller::from("tcp")
            };
            all.for_caller(&caller).map(|route| route.destinations[0].weight)
        };
        for (address, weight) in [
            ("10.1.2.3", Some(1)),
            ("10.1.3.3", Some(2)),
            ("::ffff:10.2.0.1", Some(3)),
            ("11.0.0.1", None),
        ] {
            assert_eq!(weight_for(address), weight, "{address}");
        }
    }

    #[test]
    fn upgrades_are_a_list_of_names_in_any_case() {
        let parse = |text: &str| Upgrades::parse(text).unwrap();
        assert_eq!(parse("WebSocket"), Upgrades::default());
        assert_eq!(parse(" connect-udp , Foo/2,foo/2 "), parse("foo/2,CONNECT-UDP"));
        for (text, protocol, allowed) in [
            ("websocket", "WebSocket", true),
            ("websocket", "websocket/13", true),
            ("websocket", "web", false),
            ("foo/2", "foo/1", false),
            ("foo/2", "foo", false),
            ("*", "anything", true),
            ("*", "h2c", false),
            ("h2c", "h2c", true),
            ("none", "websocket", false),
            ("", "websocket", false),
        ] {
            assert_eq!(parse(text).allows(protocol), allowed, "{text}: {protocol}");
        }
        let fault = |text: &str| Upgrades::parse(text).unwrap_err();
        for bad in ["web socket", "a,,b", "a,", "a/", "/1", "a/1/2", "\"a\"", "a;b"] {
            assert!(matches!(fault(bad), UpgradesError::NoToken(_)), "{bad}");
        }
        assert_eq!(fault("*,websocket"), UpgradesError::NotAlone("*"));
        assert_eq!(fault("websocket, none"), UpgradesError::NotAlone("none"));
    }

    #[test]
    fn draws_fall_on_destinations_by_weight() {
        let route = route(&[1, 2, 1]);
        let quarter = 1u32 << 30;
        let picked = |draw: u32| route.pick(draw).unwrap().cluster.port();
        assert_eq!(picked(0), 0);
        assert_eq!(picked(quarter - 1), 0);
        assert_eq!(picked(quarter), 1);
        assert_eq!(picked(3 * quarter - 1), 1);
        assert_eq!(picked(3 * quarter), 2);
        assert_eq!(picked(u32::MAX), 2);
    }

    #[test]
    fn names_choose_chains_and_none_is_one_of_the_star() {
        let chain = |name: &str| Chain {
            server: name.into(),
            action: ChainAction::Pass(Arc::new(route(&[1]))),
        };
        let names = ["a.foo.com", "*.foo.com", "*.b.foo.com"];
        let names = names
            .iter()
            .enumerate()
            .map(|(at, name)| (HostPattern::parse(name), at));
        let chains = vec![chain("exact"), chain("short"), chain("long")];
        let table = SniTable::new(chains.clone(), names.clone().collect());
        let find = |name: &str| table.find(Some(name));
        assert_eq!(
            [
                find("a.foo.com"),
                find("c.foo.com"),
                find("a.b.foo.com"),
                find("foo.com")
            ],
            [Some(0), Some(1), Some(2), None]
        );
        assert_eq!(table.find(None), None);
        let all = SniTable::new(chains, names.chain([(HostPattern::Any, 0)]).collect());
        assert_eq!((all.find(None), all.find(Some("x"))), (Some(0), Some(0)));
    }

    #[test]
    fn a_name_of_auto_passthrough_spells_a_cluster() {
        let hosts = [HostPattern::parse("*.local")];
        let name = "outbound_.443_.v1_.reviews.default.svc.cluster.local";
        let key = auto_passthrough(name, &hosts).unwrap();
        assert_eq!(key.as_str(), "outbound|443|v1|reviews.default.svc.cluster.local");
        let whole = auto_passthrough("outbound_.80_._.a.local", &hosts).unwrap();
        assert_eq!(whole.as_str(), "outbound|80||a.local");
        for bad in [
            "a.local",
            "outbound_.x_._.a.local",
            "outbound_.80_._.a.com",
            "outbound_.80_.a.local",
        ] {
            assert!(auto_passthrough(bad, &hosts).is_none(), "{bad}");
        }
    }
}
