//! Listeners: which ports are open, and which virtual hosts each has.
//!
//! All servers of all Gateways on one port are one table of virtual hosts. A virtual host has the hosts that a server
//! and a VirtualService have in common; routes of several VirtualServices for one host follow each other in the order
//! of precedence.

use super::route::{Site, check_destinations, is_catch_all};
use super::{Context, delegate};
use crate::Options;
use crate::diagnostic::Severity;
use crate::index::{CLUSTER_DOMAIN, GatewayName, expand, export_to, is_exported, name_of, selects};
use crate::origins::{RouteOrigin, RouteOrigins};
use crate::report::Report;
use crate::resource::gateway::{Gateway, Server};
use crate::resource::virtual_service::VirtualService;
use crate::resource::{Meta, Resources, Written};
use crate::validate::gateway::is_http;
use crate::yaml::Path;
use isthmus_core::listener::{Listener, ListenerKey};
use isthmus_core::name::{HostIndex, HostPattern};
use isthmus_core::route::{Route, RouteTable, VirtualHost};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Annotation that makes a Gateway the door of mesh clients.
pub(crate) const MESH_DOOR: &str = "isthmus.dev/mesh";

/// A virtual host that is being put together.
#[derive(Default)]
struct Draft {
    https_redirect: bool,
    /// Which routes, by position in [`Table::routes`].
    parts: Vec<usize>,
    /// The VirtualService of the first of them.
    first: Option<usize>,
}

/// A virtual host whose routes are known.
struct HostDraft {
    domains: Vec<HostPattern>,
    https_redirect: bool,
    routes: Vec<(Route, RouteOrigin)>,
}

/// The table of one listener that is being put together.
#[derive(Default)]
struct Table<'a> {
    /// What the first server on it speaks, and who that is.
    first: Option<(bool, &'a str)>,
    /// Compiled routes of one VirtualService at one Gateway, once.
    routes: Vec<Vec<(Route, RouteOrigin)>>,
    known: HashMap<(usize, usize), usize>,
    drafts: BTreeMap<HostPattern, Draft>,
    /// Patterns in the order in which they came.
    order: Vec<HostPattern>,
    /// VirtualServices, a later and an earlier one, that share a host, with the first such host.
    overlaps: BTreeMap<(usize, usize), HostPattern>,
}

impl Table<'_> {
    fn draft(&mut self, pattern: &HostPattern) -> &mut Draft {
        if !self.drafts.contains_key(pattern) {
            self.order.push(pattern.clone());
        }
        self.drafts.entry(pattern.clone()).or_default()
    }

    fn finish(mut self) -> (RouteTable, Vec<Vec<RouteOrigin>>) {
        // Hosts with the same routes are one virtual host.
        let mut by_content: HashMap<(Vec<usize>, bool), usize> = HashMap::new();
        let mut hosts: Vec<HostDraft> = Vec::new();
        for pattern in std::mem::take(&mut self.order) {
            let Some(Draft {
                https_redirect,
                parts,
                ..
            }) = self.drafts.remove(&pattern)
            else {
                continue;
            };
            let at = *by_content
                .entry((parts, https_redirect))
                .or_insert_with_key(|(parts, _)| {
                    let all = parts.iter().filter_map(|part| self.routes.get(*part)).flatten();
                    // Istio moves what takes everything to the end and reorders nothing else.
                    let (last, first): (Vec<_>, Vec<_>) = all.partition(|(route, _)| is_catch_all(route));
                    hosts.push(HostDraft {
                        domains: Vec::new(),
                        https_redirect,
                        routes: first.into_iter().chain(last).cloned().collect(),
                    });
                    hosts.len() - 1
                });
            if let Some(host) = hosts.get_mut(at) {
                host.domains.push(pattern);
            }
        }
        let mut origins = Vec::with_capacity(hosts.len());
        let hosts = hosts.into_iter().map(|host| {
            let (routes, places) = host.routes.into_iter().unzip();
            origins.push(places);
            let name = host.domains.first().map(ToString::to_string).unwrap_or_default();
            Arc::new(VirtualHost::new(&name, host.domains, host.https_redirect, routes))
        });
        let table = RouteTable::new(hosts.collect());
        (table, origins)
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
) -> (Vec<Arc<Listener>>, RouteOrigins) {
    let options = context.options;
    let bindings = Bindings::new(&resources.virtual_services, options);
    let mut tables: BTreeMap<ListenerKey, Table<'_>> = BTreeMap::new();
    let mut used = HashSet::new();
    let mut mesh_door = false;
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
        let mesh = meta
            .annotations
            .get(MESH_DOOR)
            .is_some_and(|value| value == "true");
        mesh_door |= mesh;
        let id = meta.id();
        let bound = bindings.of(&id, mesh);
        used.extend(&bound);
        let mut served = HashSet::new();
        let list = Path::SPEC.key("servers");
        for (at, server) in spec.servers.iter().enumerate() {
            let path = list.index(at);
            let Some(key) = open(server, meta, &path, &mut tables, report) else {
                continue;
            };
            let Some(table) = tables.get_mut(&key) else {
                continue;
            };
            let site = Site {
                gateway: &id,
                mesh,
                port: key.port,
            };
            add_server(
                server,
                meta,
                gateway_at,
                &bound,
                &bindings,
                &site,
                table,
                &mut served,
                context,
            );
        }
        check_unserved(&bound, &served, &id, spec, &bindings, report);
    }
    check_bindings(resources, &bindings, &used, mesh_door, options, report);
    let used_delegates: HashSet<(&str, &str)> = bindings
        .all
        .iter()
        .enumerate()
        .filter(|(at, _)| used.contains(at))
        .flat_map(|(_, root)| {
            let named = root.spec.http.iter().filter_map(|rule| {
                delegate::find(rule, &root.meta, &context.delegates, bindings.all, &options.mesh)?.ok()
            });
            named.map(|written| (written.meta.namespace.as_str(), written.meta.name.as_str()))
        })
        .collect();
    for (at, written) in bindings.all.iter().enumerate() {
        let id = (written.meta.namespace.as_str(), written.meta.name.as_str());
        if used.contains(&at) || used_delegates.contains(&id) {
            check_destinations(written, context, report);
        }
    }
    check_overlaps(&tables, &bindings, report);
    let tables = tables
        .into_iter()
        .filter(|(_, table)| matches!(table.first, Some((true, _))));
    let mut origins = HashMap::new();
    let listeners = tables.map(|(key, table)| {
        let (routes, places) = table.finish();
        origins.insert(key.clone(), places);
        Arc::new(Listener {
            key,
            routes: Arc::new(routes),
        })
    });
    (listeners.collect(), origins)
}

/// Finds the listener of a server, if the server is one that is served.
fn open<'a>(
    server: &Server,
    meta: &'a Meta,
    path: &Path<'_>,
    tables: &mut BTreeMap<ListenerKey, Table<'a>>,
    report: &mut Report<'_>,
) -> Option<ListenerKey> {
    if server.bind.starts_with("unix://") {
        let message = "listening on unix sockets is not executed yet: this server is left out";
        report.warn("not-executed", &meta.origin, &path.key("bind"), message);
        return None;
    }
    let bind = server.bind.parse::<IpAddr>().ok();
    let key = ListenerKey {
        port: u16::try_from(server.port).ok()?,
        bind,
    };
    let http = is_http(&server.protocol);
    let table = tables.entry(key.clone()).or_default();
    let port = path.key("port");
    let protocol = port.key("protocol");
    let (first_http, first) = *table.first.get_or_insert((http, name_of(meta)));
    if first_http != http {
        let message = format!(
            "port {} is already open for another protocol, by {first}: this server is left out",
            key.port
        );
        report.warn("port-conflict", &meta.origin, &protocol, message);
        return None;
    }
    if !http {
        let message = format!(
            "protocol {} is not served yet: this server is left out",
            server.protocol
        );
        report.warn("not-executed", &meta.origin, &protocol, message);
        return None;
    }
    Some(key)
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
        if mesh
            && let Some(short) = whole
                .strip_suffix(CLUSTER_DOMAIN)
                .and_then(|rest| rest.strip_suffix('.'))
        {
            let name = short.split('.').next().unwrap_or(short);
            hosts.extend(
                [name.to_owned(), short.to_owned(), format!("{short}.svc")]
                    .map(|name| HostPattern::parse(&name)),
            );
        }
        hosts.push(HostPattern::parse(&whole));
    }
    hosts
}

#[allow(
    clippy::too_many_arguments,
    reason = "the loop's body, apart so that it can be read"
)]
fn add_server<'a>(
    server: &Server,
    meta: &Meta,
    gateway_at: usize,
    bound: &[usize],
    bindings: &Bindings<'_>,
    site: &Site<'_>,
    table: &mut Table<'a>,
    served: &mut HashSet<usize>,
    context: &Context<'_>,
) {
    let https_redirect = server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
    // Servers that name no namespace have the same hosts for everybody.
    let for_all =
        (!server.hosts.iter().any(|host| host.contains('/'))).then(|| ServerHosts::new(server, meta, None));
    for &at in bound {
        let Some(written) = bindings.all.get(at) else {
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
        for wanted in hosts_of(written, site.mesh) {
            for pattern in hosts.intersection(&wanted) {
                if seen.insert(pattern.clone()) {
                    common.push(pattern);
                }
            }
        }
        if common.is_empty() {
            continue;
        }
        served.insert(at);
        let part = match table.known.get(&(gateway_at, at)) {
            Some(part) => *part,
            None => {
                table.routes.push(super::route::compile(written, site, context));
                let part = table.routes.len() - 1;
                table.known.insert((gateway_at, at), part);
                part
            }
        };
        // A VirtualService without any rule for this gateway and port contributes nothing.
        let empty = table.routes.get(part).is_none_or(Vec::is_empty);
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
    if https_redirect {
        for pattern in hosts_for(server, meta, None) {
            table.draft(&pattern).https_redirect = true;
        }
    }
}

/// Reports VirtualServices that name a Gateway which serves none of their hosts.
fn check_unserved(
    bound: &[usize],
    served: &HashSet<usize>,
    gateway: &str,
    spec: &Gateway,
    bindings: &Bindings<'_>,
    report: &mut Report<'_>,
) {
    // When a server was left out for its protocol, that is the reason, and it has been reported.
    if !spec.servers.iter().all(|server| is_http(&server.protocol)) {
        return;
    }
    for written in bound
        .iter()
        .filter(|at| !served.contains(at))
        .filter_map(|at| bindings.all.get(*at))
    {
        let message = format!("Gateway {gateway} serves none of these hosts for this VirtualService");
        report.warn(
            "unserved-host",
            &written.meta.origin,
            &Path::SPEC.key("hosts"),
            message,
        );
    }
}

/// Reports VirtualServices that add rules behind those of another one.
fn check_overlaps(
    tables: &BTreeMap<ListenerKey, Table<'_>>,
    bindings: &Bindings<'_>,
    report: &mut Report<'_>,
) {
    let mut told = HashSet::new();
    for ((later, first), pattern) in tables.values().flat_map(|table| &table.overlaps) {
        if let (Some(later_one), Some(first_one)) = (bindings.all.get(*later), bindings.all.get(*first))
            && told.insert((later, first))
        {
            let earlier = name_of(&first_one.meta);
            let message = format!("the rules for `{pattern}` come after those of {earlier}");
            let origin = &later_one.meta.origin;
            report.add(
                Severity::Hint,
                "shared-host",
                origin,
                &Path::SPEC.key("hosts"),
                message,
                None,
            );
        }
    }
}

/// Reports VirtualServices that apply nowhere.
fn check_bindings(
    resources: &Resources,
    bindings: &Bindings<'_>,
    used: &HashSet<usize>,
    mesh_door: bool,
    options: &Options,
    report: &mut Report<'_>,
) {
    let client = &options.namespace;
    let gateways: HashSet<String> = resources
        .gateways
        .iter()
        .map(|written| written.meta.id())
        .collect();
    let list = Path::SPEC.key("gateways");
    for (at, Written { meta, spec }) in bindings.all.iter().enumerate() {
        for (index, name) in spec.gateways.iter().enumerate() {
            if let Some(GatewayName::Named { id, .. }) = GatewayName::parse(name, &meta.namespace)
                && !gateways.contains(&id)
            {
                let message = if resources.refused.contains(format!("Gateway {id}").as_str()) {
                    format!("the Gateway `{id}` has errors and is left out")
                } else {
                    format!("no Gateway is named `{id}`")
                };
                report.warn("unknown-gateway", &meta.origin, &list.index(index), message);
            }
        }
        // A delegate is found by the rules that name it.
        if used.contains(&at) || spec.hosts.is_empty() {
            continue;
        }
        let shown_to = export_to(&spec.export_to, &options.mesh.virtual_service_export_to);
        if !is_exported(shown_to, &meta.namespace, client) {
            let message = format!("not exported to `{client}`, the namespace of this gateway: passed over");
            report.add(
                Severity::Hint,
                "not-exported",
                &meta.origin,
                &Path::SPEC.key("exportTo"),
                message,
                None,
            );
            continue;
        }
        let mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == "mesh");
        if mesh && !mesh_door && !spec.hosts.is_empty() {
            let message = "bound to mesh clients, not to a Gateway: passed over here";
            let help = format!("name a Gateway in spec.gateways, or annotate one with {MESH_DOOR}: \"true\"");
            report.add(
                Severity::Hint,
                "mesh-only",
                &meta.origin,
                &list,
                message,
                Some(help),
            );
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
