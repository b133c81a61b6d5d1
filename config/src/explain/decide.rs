//! The decision alone: which listener, server, virtual host and route take a request. It is made twice by the same
//! steps, once with the indexes that shards use and once by reading everything, so that one can be held against the
//! other.

use super::{Asked, Scheme};
use crate::origins::Origins;
use isthmus_core::forwarded;
use isthmus_core::limits::Settings;
use isthmus_core::listener::{Accepts, ChainAction, Listener, SniTable, TableOf, auto_passthrough};
use isthmus_core::message::RequestHead;
use isthmus_core::name::ClusterKey;
use isthmus_core::path;
use isthmus_core::random::Random;
use isthmus_core::reply::Cause;
use isthmus_core::route::{RouteTable, Scratch, VirtualHost, split_port};
use isthmus_core::snapshot::Snapshot;
use isthmus_core::source::{Caller, Identity};
use isthmus_core::tls::ServerTls;
use std::net::IpAddr;
use std::sync::Arc;

/// How parts of a snapshot are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// As shards do.
    Index,
    /// One after the other, in order.
    Reading,
}

/// Where a request ends up, by positions in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// In [`Snapshot::listeners`].
    pub listener: Option<usize>,
    /// Among the chains of a TLS listener.
    pub chain: Option<usize>,
    /// The table of the listener and the virtual host in it.
    pub host: Option<(usize, usize)>,
    /// What then happens.
    pub verdict: Verdict,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This route of the virtual host takes it.
    Route(usize),
    /// The virtual host redirects everything to https.
    HttpsRedirect,
    /// The connection's bytes go where a rule for whole connections says.
    Bytes,
    /// The connection's bytes go to the cluster that its name spells.
    Cluster(ClusterKey),
    /// The gateway refuses it.
    Refused(Cause),
    /// The listener carries something else than the client speaks.
    WrongProtocol,
    /// No port is open for it.
    NoListener,
}

/// A decision, and the request as rules see it.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The decision.
    pub decision: Decision,
    /// The head, normalized and with the fields that the gateway adds before it looks for a route.
    pub head: RequestHead,
}

impl By {
    fn chain(self, names: &SniTable, name: Option<&str>) -> Option<usize> {
        match self {
            Self::Index => names.find(name),
            Self::Reading => names.read(name).map(|(chain, _)| chain),
        }
    }

    fn host(self, table: &RouteTable, host: &str) -> Option<usize> {
        match self {
            Self::Index => table.find_host(host),
            Self::Reading => table.read_host(host).map(|(at, _)| at),
        }
    }

    fn route(
        self,
        host: &VirtualHost,
        head: &RequestHead,
        caller: Caller<'_>,
        scratch: &mut Scratch,
    ) -> Option<usize> {
        match self {
            Self::Index => host.position(head, caller, scratch),
            Self::Reading => host.read(head, caller, scratch, |_, _| {}),
        }
    }

    fn table(self, accepts: &Accepts, policy: Option<&Arc<ServerTls>>, host: &str) -> TableOf {
        if self == Self::Index {
            return accepts.table_of(accepts.has_one_policy(), policy, host);
        }
        match (accepts, policy) {
            (Accepts::Http, _) => TableOf::Table(0),
            (Accepts::Tls(names), Some(policy)) => {
                let chains = names.chains();
                let is_own = |action: &ChainAction| action.tls().is_some_and(|tls| tls == policy);
                // With one certificate and policy for all, no connection is the wrong one.
                if chains
                    .iter()
                    .all(|chain| matches!(chain.action, ChainAction::Http { .. }) && is_own(&chain.action))
                {
                    return TableOf::Table(0);
                }
                match names.read(Some(host)).and_then(|(at, _)| chains.get(at)) {
                    None => TableOf::Unknown,
                    Some(chain) => match &chain.action {
                        ChainAction::Http { table, .. } if is_own(&chain.action) => TableOf::Table(*table),
                        _ => TableOf::Misdirected,
                    },
                }
            }
            _ => TableOf::Unknown,
        }
    }
}

/// The scheme of requests on a listener.
pub(super) fn scheme_of(listener: &Listener) -> &'static str {
    match listener.accepts {
        Accepts::Tls(_) => "https",
        Accepts::Http | Accepts::Tcp(_) => "http",
    }
}

/// Who asks.
pub(super) fn caller<'a>(asked: &'a Asked, listener: &Listener, snapshot: &'a Snapshot) -> Caller<'a> {
    let identity = asked.identity.as_deref().and_then(Identity::parse);
    Caller {
        scheme: scheme_of(listener),
        address: Some(asked.source),
        source: snapshot.sources.find(asked.source, identity),
    }
}

/// The name that a client of an authority asks for: none for an address (RFC 6066, 3).
pub(super) fn server_name(asked: &Asked) -> Option<String> {
    let name = match &asked.sni {
        Some(name) => name.as_str(),
        None => split_port(&asked.authority).0,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    (!name.is_empty() && !is_address).then_some(name)
}

/// The listener that a request comes to, by its port and, when one is named, its Gateway. The one for all addresses is
/// taken before one with an address of its own.
fn listener(asked: &Asked, snapshot: &Snapshot, origins: &Origins) -> Option<usize> {
    let of_gateway = |listener: &Listener| {
        asked.gateway.as_ref().is_none_or(|gateway| {
            let mut servers = origins.servers.iter();
            servers.any(|server| server.listener == listener.key && server.gateway == *gateway)
        })
    };
    let fits = |listener: &Listener| match asked.scheme {
        Scheme::Http => matches!(listener.accepts, Accepts::Http),
        Scheme::Https | Scheme::Tls => matches!(listener.accepts, Accepts::Tls(_)),
        Scheme::Tcp => matches!(listener.accepts, Accepts::Tcp(_)),
    };
    let all = || {
        let listeners = snapshot.listeners.iter().enumerate();
        listeners.filter(move |(_, listener)| of_gateway(listener))
    };
    let first = |port: u16| {
        let on_port = || all().filter(move |(_, listener)| listener.key.port == port);
        let for_all = on_port().find(|(_, listener)| listener.key.bind.is_none());
        for_all.or_else(|| on_port().next()).map(|(at, _)| at)
    };
    match asked.port {
        Some(port) => first(port),
        None => first(asked.scheme.default_port()).or_else(|| {
            // A Gateway that was named has few ports, and the one that speaks the scheme is meant.
            asked.gateway.as_ref()?;
            all().find(|(_, listener)| fits(listener)).map(|(at, _)| at)
        }),
    }
}

/// Decides a request.
pub fn decide(
    asked: &Asked,
    by: By,
    snapshot: &Snapshot,
    origins: &Origins,
    settings: &Settings,
    scratch: &mut Scratch,
) -> Decided {
    let mut head = RequestHead::default();
    let mut decision = Decision {
        listener: listener(asked, snapshot, origins),
        chain: None,
        host: None,
        verdict: Verdict::NoListener,
    };
    if let Some(listener) = decision.listener.and_then(|at| snapshot.listeners.get(at)) {
        let caller = caller(asked, listener, snapshot);
        let place = (by, &**listener, caller);
        decision.verdict = match on_listener(asked, place, settings, scratch, &mut head, &mut decision) {
            Ok(verdict) => verdict,
            Err(cause) => Verdict::Refused(cause),
        };
    }
    Decided { decision, head }
}

fn on_listener(
    asked: &Asked,
    (by, listener, caller): (By, &Listener, Caller<'_>),
    settings: &Settings,
    scratch: &mut Scratch,
    head: &mut RequestHead,
    decision: &mut Decision,
) -> Result<Verdict, Cause> {
    let is_tls = matches!(asked.scheme, Scheme::Https | Scheme::Tls);
    let policy = match &listener.accepts {
        Accepts::Http if asked.scheme == Scheme::Http => None,
        Accepts::Tls(names) if is_tls => {
            let name = server_name(asked);
            let at = by.chain(names, name.as_deref()).ok_or(Cause::NoChain)?;
            decision.chain = Some(at);
            let chain = names.chains().get(at).ok_or(Cause::NoChain)?;
            match &chain.action {
                ChainAction::Http { tls, .. } => Some(tls),
                ChainAction::Tcp {
                    route: Some(route), ..
                }
                | ChainAction::Pass(route) => {
                    let found = route.for_caller(&caller);
                    return found.map(|_| Verdict::Bytes).ok_or(Cause::NoRoute);
                }
                ChainAction::Tcp { route: None, .. } => return Err(Cause::NoRoute),
                ChainAction::AutoPass(hosts) => {
                    let key = name.and_then(|name| auto_passthrough(&name, hosts));
                    return key.map(Verdict::Cluster).ok_or(Cause::NoChain);
                }
            }
        }
        Accepts::Tcp(Some(route)) => {
            let found = route.for_caller(&caller);
            return found.map(|_| Verdict::Bytes).ok_or(Cause::NoRoute);
        }
        Accepts::Tcp(None) => return Err(Cause::NoRoute),
        Accepts::Http | Accepts::Tls(_) => return Ok(Verdict::WrongProtocol),
    };
    fill(asked, listener, settings, head)?;
    let table = match by.table(&listener.accepts, policy, &head.host) {
        TableOf::Table(at) => at,
        TableOf::Unknown => return Err(Cause::NoVirtualHost),
        TableOf::Misdirected => return Err(Cause::Misdirected),
    };
    let found = listener.tables.get(table).ok_or(Cause::NoVirtualHost)?;
    let at = by.host(found, &head.host).ok_or(Cause::NoVirtualHost)?;
    decision.host = Some((table, at));
    let host = found.virtual_hosts().get(at).ok_or(Cause::NoVirtualHost)?;
    if host.https_redirect {
        return Ok(Verdict::HttpsRedirect);
    }
    by.route(host, head, caller, scratch)
        .map(Verdict::Route)
        .ok_or(Cause::NoRoute)
}

/// Makes the head what it is when a route is looked for: the proxy's steps before that.
fn fill(
    asked: &Asked,
    listener: &Listener,
    settings: &Settings,
    head: &mut RequestHead,
) -> Result<(), Cause> {
    head.clear();
    head.method = asked.method.clone();
    head.set_path(&asked.path);
    head.set_authority(&asked.authority);
    let (name, _) = split_port(&asked.authority);
    name.strip_suffix('.').unwrap_or(name).clone_into(&mut head.host);
    head.host.make_ascii_lowercase();
    for (name, value) in &asked.headers {
        head.headers.append(name.as_bytes(), value.as_bytes());
    }
    path::normalize(head, settings.path_normalization).map_err(|_| Cause::RequestPath)?;
    head.headers.remove_connection_fields();
    settings.forward_client_cert.apply(&mut head.headers, None);
    let downstream = forwarded::Downstream {
        peer: asked.source,
        scheme: scheme_of(listener),
        port: listener.key.port,
        trusted_proxies: settings.trusted_proxies,
        trusted: &settings.trusted,
    };
    // The seed only matters to the identifier of a request that brings none; what a trusted client asks for its request
    // changes no decision.
    forwarded::apply(head, downstream, &mut Random::from_seed(0), &mut None);
    Ok(())
}
