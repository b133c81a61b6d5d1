//! Listeners: which ports are open, and which virtual hosts each has.
//!
//! All plaintext servers of all Gateways on one port are one table of virtual hosts; on a TLS port, all servers with one
//! TLS policy are. A virtual host has the hosts that a server and a VirtualService have in common; routes of several
//! VirtualServices for one host follow each other in the order of precedence. Ports that carry bytes, and names whose
//! TLS passes through, take the rules of `stream`.

use super::memo::{self, Memo};
use super::route::Site;
use super::table::{Hosts, Part, SiteAt, Table};
use super::{Context, stream, tls};
use crate::Options;
use crate::analyze::facts::{Facts, LeftOut, Overlap, Reason, ServerAt, SniTaken, TlsMatch};
use crate::diagnostic::Severity;
use crate::index::{CLUSTER_DOMAIN, GatewayName, expand, export_to, is_exported, name_of, selects};
use crate::origins::{RouteOrigins, ServerOrigin, StreamOrigin, StreamOrigins, TlsAsked, TlsPlace, TlsUse};
use crate::registry::Service;
use crate::report::Report;
use crate::resource::gateway::{FORWARD_PROXY, MESH_DOOR, Server, UPGRADES};
use crate::resource::virtual_service::VirtualService;
use crate::resource::{Meta, Resources, Written};
use crate::validate::gateway::{is_http, is_tls};
use crate::yaml::Path;
use isthmus_core::listener::{
    Accepts, Chain, ChainAction, ForwardPort, Listener, ListenerKey, ProxyProtocol, SniTable, TcpDestination,
    TcpRoute, Upgrades,
};
use isthmus_core::name::{ClusterKey, HostIndex, HostPattern};
use isthmus_core::protocol::Protocol;
use isthmus_core::route::RouteTable;
use isthmus_core::tls::ServerTls;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Most ports of targets of a forward proxy.
const FORWARD_PORTS_MAX: usize = 1000;

/// Annotation that says whether a PROXY header comes first: `accept` or `require`.
const PROXY_PROTOCOL: &str = "isthmus.dev/proxy-protocol";

/// A listener that is being put together.
#[derive(Default)]
struct Draft<'a> {
    /// What the first server on it speaks, and which that is.
    first: Option<(Transport, ServerAt)>,
    proxy_protocol: ProxyProtocol,
    /// Which protocols requests may change to, as the first Gateway says that says it, and who that is.
    upgrades: Option<(Upgrades, &'a str)>,
    /// One on a plaintext port; one for each policy on a TLS port.
    tables: Vec<(Option<Arc<ServerTls>>, Table)>,
    /// Where bytes go, once a server of them is there.
    tcp: Option<Option<Arc<TcpRoute>>>,
    chains: Vec<Chain>,
    names: Vec<(HostPattern, usize)>,
    /// Where the rules for bytes were written, by chain on a TLS port.
    streams: Vec<(Option<usize>, StreamOrigin)>,
    /// Hosts of TLS servers as written, with whose they are.
    taken: HashMap<String, ServerAt>,
    /// Names whose TLS passes through, with whose they are.
    passing: HashMap<HostPattern, TlsMatch>,
    /// Of forward proxies, by their chain, what is there for each port of targets.
    forward: BTreeMap<(Option<usize>, u16), Self>,
}

impl Draft<'_> {
    /// The table of a policy.
    fn table(&mut self, policy: Option<&Arc<ServerTls>>) -> (usize, &mut Table) {
        let known = self.tables.iter().position(|(known, _)| known.as_ref() == policy);
        let at = known.unwrap_or(self.tables.len());
        if at == self.tables.len() {
            self.tables.push((policy.cloned(), Table::default()));
        }
        (at, &mut self.tables[at].1)
    }

    /// Whether anything would be done with a connection.
    fn is_open(&self) -> bool {
        match self.first {
            None => false,
            Some((Transport::Http, _)) => true,
            Some((Transport::Tcp, _)) => matches!(self.tcp, Some(Some(_))),
            Some((Transport::Tls, _)) => !self.chains.is_empty(),
        }
    }
}

/// What is on a port, before anything is decrypted. One port has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Http,
    Tcp,
    Tls,
}

impl Transport {
    fn of(protocol: &str) -> Self {
        if is_http(protocol) {
            Self::Http
        } else if is_tls(protocol) {
            Self::Tls
        } else {
            Self::Tcp
        }
    }
}

/// VirtualServices by what they are bound to.
struct Bindings<'a> {
    by_gateway: HashMap<String, Vec<usize>>,
    mesh: Vec<usize>,
    all: &'a [Written<VirtualService>],
}

impl<'a> Bindings<'a> {
    fn new(all: &'a [Written<VirtualService>], options: &Options) -> Self {
        let mut bindings = Self {
            by_gateway: HashMap::new(),
            mesh: Vec::new(),
            all,
        };
        for (at, Written { meta, spec }) in all.iter().enumerate() {
            let shown_to = export_to(&spec.export_to, &options.mesh.virtual_service_export_to);
            if !is_exported(shown_to, &meta.namespace, &options.namespace) {
                continue;
            }
            if spec.gateways.is_empty() && !spec.hosts.is_empty() {
                bindings.mesh.push(at);
            }
            let mut seen = HashSet::new();
            for name in spec
                .gateways
                .iter()
                .filter_map(|name| GatewayName::parse(name, &meta.namespace))
            {
                match name {
                    GatewayName::Mesh if seen.insert(String::new()) => bindings.mesh.push(at),
                    GatewayName::Named { id, .. } if seen.insert(id.clone()) => {
                        bindings.by_gateway.entry(id).or_default().push(at);
                    }
                    _ => {}
                }
            }
        }
        bindings
    }

    /// Those of a gateway, in order of precedence.
    fn of(&self, gateway: &str, mesh: bool) -> Vec<usize> {
        let mut found = self.by_gateway.get(gateway).cloned().unwrap_or_default();
        if mesh {
            found.extend(&self.mesh);
            found.sort_unstable();
            found.dedup();
        }
        found
    }
}

/// Compiles the listeners of all Gateways that select this process.
pub(crate) fn compile(
    resources: &Resources,
    context: &Context<'_>,
    report: &mut Report<'_>,
    memo: &mut Memo,
) -> Listeners {
    let options = context.options;
    let bindings = Bindings::new(&resources.virtual_services, options);
    let mut drafts: BTreeMap<ListenerKey, Draft<'_>> = BTreeMap::new();
    let mut uses = Vec::new();
    let mut servers = Vec::new();
    let mut streams = HashMap::new();
    let mut facts = Facts::default();
    for (gateway_at, written) in resources.gateways.iter().enumerate() {
        let Written { meta, spec } = written;
        if !options.labels.is_empty() && !selects(&spec.selector, &options.labels) {
            let message = "the selector does not select this gateway: its servers are left out";
            report.add(
                Severity::Hint,
                "not-selected",
                &meta.origin,
                &Path::SPEC.key("selector"),
                message,
                None,
            );
            continue;
        }
        let is_true = |name| meta.annotations.get(name).is_some_and(|value| value == "true");
        let forwards = is_true(FORWARD_PROXY);
        // What clients ask a proxy for is what they would ask for inside the mesh.
        let mesh = is_true(MESH_DOOR) || forwards;
        facts.mesh_door |= mesh;
        facts.selected.insert(gateway_at);
        let proxy_protocol = proxy_protocol(meta, report);
        // Validation has refused what is no list.
        let upgrades = meta
            .annotations
            .get(UPGRADES)
            .and_then(|text| Upgrades::parse(text).ok());
        let mut disagrees = HashSet::new();
        let id = meta.id();
        let bound = bindings.of(&id, mesh);
        facts.used.extend(&bound);
        let list = Path::SPEC.key("servers");
        for (at, server) in spec.servers.iter().enumerate() {
            let path = list.index(at);
            let here = ServerAt {
                gateway: gateway_at,
                server: at,
            };
            let opened = open(server, meta, &path, here, &mut drafts, &mut facts, report);
            let Some((key, transport)) = opened else {
                continue;
            };
            let Some(draft) = drafts.get_mut(&key) else {
                continue;
            };
            draft.proxy_protocol = draft.proxy_protocol.max(proxy_protocol);
            servers.push(ServerOrigin {
                listener: key.clone(),
                gateway_at,
                gateway: id.clone(),
                server: at,
                port_name: server.port_name.clone(),
                protocol: server.protocol.clone(),
                hosts: hosts_for(server, meta, None),
                origin: meta.origin.clone(),
            });
            if let Some(upgrades) = &upgrades {
                let (agreed, first) = draft
                    .upgrades
                    .get_or_insert_with(|| (upgrades.clone(), name_of(meta)));
                if agreed != upgrades && disagrees.insert(key.clone()) {
                    let message = format!(
                        "the upgrades on port {} are already those of {first}: these do not count there",
                        key.port
                    );
                    report.warn(
                        "port-conflict",
                        &meta.origin,
                        &Path::ANNOTATIONS.key(UPGRADES),
                        message,
                    );
                }
            }
            let site = Site {
                gateway: &id,
                mesh,
                port: key.port,
                gateway_at,
            };
            let mut place = Place {
                server,
                meta,
                here,
                bound: &bound,
                bindings: &bindings,
                site: &site,
                quiet: false,
                facts: &mut facts,
                memo,
                context,
            };
            match transport {
                Transport::Http if forwards => place.add_forward(draft, None, &path, report),
                Transport::Http => place.add_http(draft.table(None).1, &path, report),
                Transport::Tcp => place.add_tcp(draft, &path, report),
                Transport::Tls => {
                    // What a proxy's clients ask for is behind the TLS with the proxy itself.
                    let forwards = forwards && server.protocol.eq_ignore_ascii_case("HTTPS");
                    place.quiet = forwards;
                    let chain = draft.chains.len();
                    let policy = place.add_tls(draft, &path, report);
                    let action = draft.chains.get(chain).map(|chain| &chain.action);
                    if forwards && matches!(action, Some(ChainAction::Http { .. })) {
                        place.add_forward(draft, Some(chain), &path, report);
                    }
                    if let Some(policy) = policy {
                        uses.push(TlsUse {
                            asked: TlsAsked::Server(policy),
                            origin: meta.origin.clone(),
                            place: TlsPlace::Server(at),
                        });
                    }
                }
            }
        }
    }
    facts.overlaps = overlaps(&drafts);
    let mut made = Hosts::new(resources, context, memo);
    let mut origins = HashMap::new();
    let listeners = drafts
        .into_iter()
        .filter(|(_, draft)| draft.is_open())
        .map(|(key, draft)| {
            let accepts = match draft.first {
                Some((Transport::Tls, _)) => Accepts::Tls(Arc::new(SniTable::new(draft.chains, draft.names))),
                Some((Transport::Tcp, _)) => Accepts::Tcp(draft.tcp.flatten()),
                _ => Accepts::Http,
            };
            streams.extend(
                draft
                    .streams
                    .into_iter()
                    .map(|(chain, origin)| ((key.clone(), chain), origin)),
            );
            let tables = draft.tables.into_iter().enumerate().map(|(at, (_, table))| {
                let (routes, places) = table.finish(&mut made);
                origins.insert((key.clone(), at), places);
                Arc::new(routes)
            });
            let mut tables: Vec<Arc<RouteTable>> = tables.collect();
            let mut forward = Vec::new();
            for ((chain, port), part) in draft.forward {
                let at = tables.len();
                let table = part.tables.into_iter().next().map(|(_, table)| table);
                let (routes, places) = table.unwrap_or_default().finish(&mut made);
                origins.insert((key.clone(), at), places);
                tables.push(Arc::new(routes));
                forward.push(ForwardPort {
                    chain,
                    port,
                    table: at,
                    connect: Arc::new(SniTable::new(part.chains, part.names)),
                });
            }
            Arc::new(Listener {
                key,
                proxy_protocol: draft.proxy_protocol,
                upgrades: draft.upgrades.map(|(upgrades, _)| upgrades).unwrap_or_default(),
                accepts,
                tables,
                forward,
            })
        });
    let listeners = listeners.collect();
    Listeners {
        listeners,
        origins,
        streams,
        servers,
        uses,
        facts,
    }
}

/// What this module gives.
pub(crate) struct Listeners {
    pub(crate) listeners: Vec<Arc<Listener>>,
    pub(crate) origins: RouteOrigins,
    pub(crate) streams: StreamOrigins,
    pub(crate) servers: Vec<ServerOrigin>,
    pub(crate) uses: Vec<TlsUse>,
    pub(crate) facts: Facts,
}

/// VirtualServices that add rules behind those of another one, each pair once.
fn overlaps(drafts: &BTreeMap<ListenerKey, Draft<'_>>) -> Vec<Overlap> {
    let mut told = HashSet::new();
    let mut found = Vec::new();
    for (key, draft) in drafts {
        let pairs = draft.tables.iter().flat_map(|(_, table)| &table.overlaps);
        for (&(later, first), pattern) in pairs.filter(|(pair, _)| told.insert(**pair)) {
            found.push(Overlap {
                key: key.clone(),
                later,
                first,
                pattern: pattern.clone(),
            });
        }
    }
    found
}

/// What the annotation of a Gateway says about PROXY headers on its ports.
fn proxy_protocol(meta: &Meta, report: &mut Report<'_>) -> ProxyProtocol {
    match meta.annotations.get(PROXY_PROTOCOL).map(String::as_str) {
        None => ProxyProtocol::Off,
        Some("accept") => ProxyProtocol::Accept,
        Some("require") => ProxyProtocol::Require,
        Some(other) => {
            let path = Path::ANNOTATIONS;
            let message = format!("`{other}` is not `accept` or `require`: PROXY headers are required");
            report.warn("bad-value", &meta.origin, &path.key(PROXY_PROTOCOL), message);
            ProxyProtocol::Require
        }
    }
}

/// Finds the listener of a server, if the server is one that is served.
fn open<'a>(
    server: &Server,
    meta: &Meta,
    path: &Path<'_>,
    here: ServerAt,
    drafts: &mut BTreeMap<ListenerKey, Draft<'a>>,
    facts: &mut Facts,
    report: &mut Report<'_>,
) -> Option<(ListenerKey, Transport)> {
    if server.bind.starts_with("unix://") {
        let message = "listening on unix sockets is not executed yet: this server is left out";
        report.warn("not-executed", &meta.origin, &path.key("bind"), message);
        return None;
    }
    let port = path.key("port");
    let protocol = port.key("protocol");
    if server.protocol.eq_ignore_ascii_case("UDP") {
        let message = "datagrams are not routed: this server is left out";
        report.warn("not-executed", &meta.origin, &protocol, message);
        return None;
    }
    let key = ListenerKey {
        port: u16::try_from(server.port).ok()?,
        bind: server.bind.parse::<IpAddr>().ok(),
    };
    let transport = Transport::of(&server.protocol);
    let draft = drafts.entry(key.clone()).or_default();
    let (first_transport, first) = *draft.first.get_or_insert((transport, here));
    if first_transport != transport {
        facts.left_out.push(LeftOut {
            server: here,
            first,
            reason: Reason::Protocol,
        });
        return None;
    }
    Some((key, transport))
}

/// Hosts of a server, with what finds the one that covers a name.
struct ServerHosts {
    list: Vec<HostPattern>,
    index: HostIndex<()>,
}

impl ServerHosts {
    fn new(server: &Server, gateway: &Meta, namespace: Option<&str>) -> Self {
        let list = hosts_for(server, gateway, namespace);
        let mut index = HostIndex::default();
        for pattern in &list {
            let _written_twice = index.insert(pattern.clone(), ());
        }
        Self { list, index }
    }

    /// What a pattern and the server's hosts have in common.
    fn intersection(&self, wanted: &HostPattern) -> Vec<HostPattern> {
        match wanted {
            // A name needs no walk through all hosts.
            HostPattern::Exact(name) => self
                .index
                .find(name)
                .map(|()| wanted.clone())
                .into_iter()
                .collect(),
            _ => self
                .list
                .iter()
                .filter_map(|host| host.intersection(wanted))
                .cloned()
                .collect(),
        }
    }
}

/// Hosts of a server that concern VirtualServices of a namespace (Istio's `host.NamesForNamespace`).
fn hosts_for(server: &Server, gateway: &Meta, namespace: Option<&str>) -> Vec<HostPattern> {
    let hosts = server.hosts.iter().filter_map(|host| match host.split_once('/') {
        None => Some(HostPattern::parse(host)),
        Some((wanted, name)) => {
            let wanted = if wanted == "." {
                gateway.namespace.as_str()
            } else {
                wanted
            };
            let matches = wanted == "*" || namespace.is_none_or(|namespace| wanted == namespace);
            matches.then(|| HostPattern::parse(name))
        }
    });
    hosts.collect()
}

/// The hosts of a VirtualService. At the door of mesh clients a service also has the short names that they use.
fn hosts_of(written: &Written<VirtualService>, mesh: bool) -> Vec<HostPattern> {
    let mut hosts = Vec::new();
    for host in &written.spec.hosts {
        let whole = expand(host, &written.meta.namespace);
        hosts.extend(names_of(&whole, mesh));
    }
    hosts
}

/// The names of a host: clients of a mesh call a service of Kubernetes by short ones, too.
fn names_of(whole: &str, mesh: bool) -> Vec<HostPattern> {
    let short = whole
        .strip_suffix(CLUSTER_DOMAIN)
        .and_then(|rest| rest.strip_suffix('.'))
        .filter(|_| mesh);
    let mut names = Vec::new();
    if let Some(short) = short {
        let name = short.split('.').next().unwrap_or(short);
        names.extend(
            [name.to_owned(), short.to_owned(), format!("{short}.svc")].map(|name| HostPattern::parse(&name)),
        );
    }
    names.push(HostPattern::parse(whole));
    names
}

/// One server, and everything that what is bound to it depends on.
struct Place<'a> {
    server: &'a Server,
    meta: &'a Meta,
    here: ServerAt,
    /// VirtualServices of its Gateway, in order of precedence.
    bound: &'a [usize],
    bindings: &'a Bindings<'a>,
    site: &'a Site<'a>,
    /// Whether nothing is said about what is not there: it is one port of many that clients may name.
    quiet: bool,
    facts: &'a mut Facts,
    memo: &'a mut Memo,
    context: &'a Context<'a>,
}

impl<'a> Place<'a> {
    /// VirtualServices that have hosts in common with the server, and those hosts.
    fn common(&mut self) -> Vec<(usize, Vec<HostPattern>)> {
        let (server, meta) = (self.server, self.meta);
        // Servers that name no namespace have the same hosts for everybody.
        let for_all = (!server.hosts.iter().any(|host| host.contains('/')))
            .then(|| ServerHosts::new(server, meta, None));
        let mut found = Vec::new();
        for &at in self.bound {
            let Some(written) = self.bindings.all.get(at) else {
                continue;
            };
            let own;
            let hosts = match &for_all {
                Some(hosts) => hosts,
                None => {
                    own = ServerHosts::new(server, meta, Some(&written.meta.namespace));
                    &own
                }
            };
            let mut common = Vec::new();
            let mut seen = HashSet::new();
            for wanted in hosts_of(written, self.site.mesh) {
                for pattern in hosts.intersection(&wanted) {
                    if seen.insert(pattern.clone()) {
                        common.push(pattern);
                    }
                }
            }
            if !common.is_empty() {
                found.push((at, common));
            }
        }
        found
    }

    /// Adds the virtual hosts of an HTTP server.
    fn add_http(&mut self, table: &mut Table, path: &Path<'_>, report: &mut Report<'_>) {
        let plain = is_http(&self.server.protocol);
        let https_redirect = plain && self.server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
        let all = self.common();
        let defaults = self.defaults(|protocol| protocol.is_http());
        if all.is_empty() && !https_redirect && defaults.is_empty() && !self.quiet {
            let message = "no VirtualService is bound to these hosts: every request is answered with 404";
            // Whoever takes the trouble of a certificate means something to be there.
            let severity = if plain { Severity::Hint } else { Severity::Warning };
            report.add(
                severity,
                "no-route",
                &self.meta.origin,
                &path.key("hosts"),
                message,
                None,
            );
        }
        for (at, common) in all {
            let Some(written) = self.bindings.all.get(at) else {
                continue;
            };
            let part = match table.known.get(&(self.here.gateway, at)) {
                Some(part) => *part,
                None => {
                    let of = memo::fingerprint(written, self.site, self.context, self.memo);
                    let is_empty = self.memo.is_empty(of);
                    let compile = || super::route::compile(written, self.site, self.context);
                    let routes = is_empty.is_none().then(compile);
                    let is_empty = is_empty.unwrap_or_else(|| routes.as_ref().is_none_or(Vec::is_empty));
                    self.memo.compiled(of, is_empty);
                    table.routes.push(Part {
                        of: Some(of),
                        virtual_service: Some(at),
                        site: self.site_at(),
                        routes,
                        is_empty,
                    });
                    let part = table.routes.len() - 1;
                    table.known.insert((self.here.gateway, at), part);
                    part
                }
            };
            // A VirtualService without any rule for this gateway and port contributes nothing.
            let empty = table.routes.get(part).is_none_or(|part| part.is_empty);
            for pattern in common {
                if empty && !https_redirect {
                    continue;
                }
                let draft = table.draft(&pattern);
                draft.https_redirect |= https_redirect;
                if !empty && !draft.parts.contains(&part) {
                    draft.parts.push(part);
                    let first = *draft.first.get_or_insert(at);
                    if first != at {
                        table.overlaps.entry((at, first)).or_insert(pattern);
                    }
                }
            }
        }
        let wildcards = table.wildcards();
        for (service, patterns) in defaults {
            let part = table.routes.len();
            let before = table.drafts.len();
            for pattern in patterns {
                // Where a VirtualService is, it alone decides.
                if !table.covers(&pattern, &wildcards) {
                    table.draft(&pattern).parts.push(part);
                }
            }
            if table.drafts.len() > before {
                table.routes.push(Part {
                    of: None,
                    virtual_service: None,
                    site: self.site_at(),
                    routes: Some(vec![super::route::default(service, self.site, self.context)]),
                    is_empty: false,
                });
            }
        }
        if https_redirect {
            for pattern in hosts_for(self.server, self.meta, None) {
                table.draft(&pattern).https_redirect = true;
            }
        }
    }

    fn site_at(&self) -> SiteAt {
        SiteAt {
            gateway_at: self.site.gateway_at,
            mesh: self.site.mesh,
            port: self.site.port,
        }
    }

    /// Services that clients inside a mesh reach at this port without a VirtualService, as they do in Istio, with the
    /// names that the server has in common with them; none elsewhere.
    fn defaults(&self, fits: impl Fn(Protocol) -> bool) -> Vec<(&'a Service<'a>, Vec<HostPattern>)> {
        if !self.site.mesh {
            return Vec::new();
        }
        let hosts = ServerHosts::new(self.server, self.meta, None);
        let here = |service: &&Service<'_>| {
            let mut ports = service.ports.iter();
            ports.any(|port| port.number == self.site.port && fits(port.protocol))
        };
        let services = self.context.registry.services().iter().filter(here);
        let common = services.map(|service| {
            let names = names_of(&service.host, true);
            let common = names.iter().flat_map(|name| hosts.intersection(name));
            (service, common.collect::<Vec<HostPattern>>())
        });
        common.filter(|(_, common)| !common.is_empty()).collect()
    }

    /// Adds a server of a forward proxy: for each port that a target may have what a server on that port would have.
    fn add_forward(
        &mut self,
        draft: &mut Draft<'_>,
        chain: Option<usize>,
        path: &Path<'_>,
        report: &mut Report<'_>,
    ) {
        let services = self.context.registry.services().iter();
        let ports = services.flat_map(|service| service.ports.iter().map(|port| port.number));
        let ports: BTreeSet<u16> = ports.chain([80, 443]).take(FORWARD_PORTS_MAX).collect();
        for port in ports {
            let site = Site { port, ..*self.site };
            let mut place = Place {
                server: self.server,
                meta: self.meta,
                here: self.here,
                bound: self.bound,
                bindings: self.bindings,
                site: &site,
                quiet: true,
                facts: &mut *self.facts,
                memo: &mut *self.memo,
                context: self.context,
            };
            let part = draft.forward.entry((chain, port)).or_default();
            place.add_http(part.table(None).1, path, report);
            place.pass_through(part, "", path, report);
        }
    }

    /// Notes that the server is left out for the sake of an earlier one.
    fn leave_out(&mut self, first: ServerAt, reason: Reason) {
        self.facts.left_out.push(LeftOut {
            server: self.here,
            first,
            reason,
        });
    }

    /// The route of the first VirtualService that has a rule for whole connections here; what is for some clients only is
    /// followed by the rules of the next.
    fn tcp_route(&mut self) -> Option<(Arc<TcpRoute>, StreamOrigin)> {
        let common = self.common();
        let bound = common.iter().filter_map(|(at, _)| self.bindings.all.get(*at));
        let mut found: Option<(TcpRoute, StreamOrigin)> = None;
        for written in bound {
            let Some((mut route, rule, is_for_all)) = stream::tcp(written, self.site, self.context) else {
                continue;
            };
            match &mut found {
                Some((first, _)) => {
                    let behind = std::mem::take(&mut route.others);
                    first.others.push(route);
                    first.others.extend(behind);
                }
                None => found = Some((route, StreamOrigin::new(&written.meta.origin, "tcp", rule, None))),
            }
            if is_for_all {
                break;
            }
        }
        found.map(|(route, origin)| (Arc::new(route), origin))
    }

    /// Adds a server of bytes.
    fn add_tcp(&mut self, draft: &mut Draft<'_>, path: &Path<'_>, report: &mut Report<'_>) {
        let origin = &self.meta.origin;
        let route = self.tcp_route();
        if draft.tcp.is_some() {
            let first = draft.first.map_or(self.here, |(_, first)| first);
            return self.leave_out(first, Reason::Carried);
        }
        if route.is_none() {
            let message = "no VirtualService has a tcp rule for this server: the port stays closed";
            report.warn("no-route", origin, path, message);
        }
        let (route, stream) = route.unzip();
        draft.streams.extend(stream.map(|stream| (None, stream)));
        draft.tcp = Some(route);
    }

    /// Adds a server of TLS; answers what it presents, if TLS ends at it, or would if it were not left out.
    fn add_tls(
        &mut self,
        draft: &mut Draft<'_>,
        path: &Path<'_>,
        report: &mut Report<'_>,
    ) -> Option<Arc<ServerTls>> {
        let (server, meta) = (self.server, self.meta);
        let name = format!("{}/{}", meta.id(), server.port_name);
        let terminated = tls::server(server, meta, self.context);
        for (at, host) in server.hosts.iter().enumerate() {
            if let Some(first) = draft.taken.get(host) {
                self.leave_out(*first, Reason::Host(at));
                return terminated.policy();
            }
        }
        for host in &server.hosts {
            draft.taken.insert(host.clone(), self.here);
        }
        let patterns = hosts_for(server, meta, None);
        let action = match terminated {
            tls::Mode::Terminate(tls) if server.protocol.eq_ignore_ascii_case("HTTPS") => {
                let (table, of_policy) = draft.table(Some(&tls));
                self.add_http(of_policy, path, report);
                ChainAction::Http { tls, table }
            }
            tls::Mode::Terminate(tls) => {
                let route = self.tcp_route();
                if route.is_none() {
                    let message =
                        "no VirtualService has a tcp rule for this server: its connections are closed";
                    report.warn("no-route", &meta.origin, path, message);
                }
                let (route, stream) = route.unzip();
                let chain = Some(draft.chains.len());
                draft.streams.extend(stream.map(|stream| (chain, stream)));
                ChainAction::Tcp { tls, route }
            }
            tls::Mode::AutoPass => ChainAction::AutoPass(patterns.clone()),
            tls::Mode::Pass => {
                self.pass_through(draft, &name, path, report);
                return None;
            }
        };
        let policy = action.tls().cloned();
        let names = match &action {
            // Its names are those of clusters, not of the hosts themselves.
            ChainAction::AutoPass(_) => vec![HostPattern::Any],
            _ => patterns,
        };
        let chain = draft.chains.len();
        draft.chains.push(Chain {
            server: name.into(),
            action,
        });
        draft.names.extend(names.into_iter().map(|name| (name, chain)));
        policy
    }

    /// Adds the names of a server whose TLS passes through: those of the rules that are bound to it.
    fn pass_through(&mut self, draft: &mut Draft<'_>, name: &str, path: &Path<'_>, report: &mut Report<'_>) {
        let before = draft.chains.len();
        let mut passing = stream::Passing::default();
        for (at, _) in self.common() {
            let Some(written) = self.bindings.all.get(at) else {
                continue;
            };
            for found in stream::tls(written, self.site, self.context) {
                let here = TlsMatch {
                    virtual_service: at,
                    rule: found.rule,
                    matched: found.matched,
                };
                let origin = &written.meta.origin;
                let stream = || StreamOrigin::new(origin, "tls", found.rule, Some(found.matched));
                let chain = |route: &Arc<TcpRoute>| Chain {
                    server: name.into(),
                    action: ChainAction::Pass(Arc::clone(route)),
                };
                let mut shared = Vec::new();
                for (host_at, sni) in found.sni_hosts.iter().enumerate() {
                    let pattern = HostPattern::parse(sni);
                    match draft.passing.entry(pattern.clone()) {
                        Entry::Occupied(first) if *first.get() != here => {
                            if passing.continued(&pattern, &found.route, &mut draft.chains) {
                                continue;
                            }
                            self.facts.passing.push(SniTaken {
                                port: self.site.port,
                                here,
                                host: host_at,
                                first: *first.get(),
                            });
                        }
                        Entry::Occupied(_) => {}
                        Entry::Vacant(free) => {
                            free.insert(here);
                            if found.route.source.is_none() {
                                shared.push(pattern);
                                continue;
                            }
                            // What comes behind it may be another rule for each name.
                            let at = draft.chains.len();
                            passing.open(&pattern, at);
                            draft.names.push((pattern, at));
                            draft.streams.push((Some(at), stream()));
                            draft.chains.push(chain(&found.route));
                        }
                    }
                }
                if !shared.is_empty() {
                    let at = draft.chains.len();
                    draft.names.extend(shared.into_iter().map(|name| (name, at)));
                    draft.streams.push((Some(at), stream()));
                    draft.chains.push(chain(&found.route));
                }
            }
        }
        for (service, patterns) in self.defaults(|protocol| !protocol.is_http() && protocol != Protocol::Udp)
        {
            let mut any = false;
            let covered = |draft: &Draft<'_>, pattern: &HostPattern| {
                let mut known = draft.passing.keys();
                known.any(|known| pattern.subset_of(known))
            };
            for pattern in patterns {
                if !covered(draft, &pattern) {
                    draft.names.push((pattern, draft.chains.len()));
                    any = true;
                }
            }
            if any {
                let port = service
                    .ports
                    .iter()
                    .position(|port| port.number == self.site.port);
                if let Some(origin) = service.origins.first() {
                    let stream = StreamOrigin::new(origin, "ports", port.unwrap_or(0), None);
                    draft.streams.push((Some(draft.chains.len()), stream));
                }
                draft.chains.push(Chain {
                    server: name.into(),
                    action: ChainAction::Pass(Arc::new(TcpRoute {
                        virtual_service: service.id().into(),
                        destinations: vec![TcpDestination {
                            cluster: ClusterKey::outbound(self.site.port, "", &service.host),
                            weight: 1,
                        }],
                        source: None,
                        others: Vec::new(),
                    })),
                });
            }
        }
        passing.close(&draft.names, &mut draft.chains);
        if draft.chains.len() == before && !self.quiet {
            let message = "no VirtualService has a tls rule for this server: its connections are refused";
            report.warn("no-route", &self.meta.origin, path, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Origin;

    #[test]
    fn hosts_are_those_of_a_namespace_as_in_istio() {
        let Some(corpus) = crate::tests::corpus() else {
            return;
        };
        let text = std::fs::read_to_string(corpus.join("model-tables/TestNamesForNamespace.json")).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let texts = |value: &serde_json::Value| -> Vec<String> {
            let list = value.as_array().into_iter().flatten();
            list.map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        for row in &rows {
            let server = Server {
                has_port: true,
                port: 80,
                port_name: String::new(),
                protocol: String::new(),
                has_target_port: false,
                bind: String::new(),
                hosts: texts(&row["hosts"]),
                tls: None,
            };
            let meta = Meta::for_test("gateway", "infra", Origin::for_test());
            let found = hosts_for(&server, &meta, row["namespace"].as_str());
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, texts(&row["want"]), "{row}");
        }
        assert_eq!(rows.len(), 6);
    }
}
