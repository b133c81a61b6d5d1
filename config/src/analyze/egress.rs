//! The way out to a host needs four resources: a Gateway that takes what is for it, a ServiceEntry that says that it is there,
//! a VirtualService that leads from one to the other, and a DestinationRule that has plaintext requests secured. Of a set
//! that lacks one, that one is named, with a document to begin with.
//!
//! What a VirtualService names and is not there is told by [`super::references`], with the documents from here; what
//! nobody names is found here, and of a host that is registered and nothing more ([`unused`]) that nothing leads to it.

use super::View;
use super::hosts::HostSet;
use crate::diagnostic::Severity;
use crate::index::{CLUSTER_DOMAIN, GatewayName, expand};
use crate::registry::Service;
use crate::report::{Finding, Report};
use crate::resource::gateway::{FORWARD_PROXY, Gateway, MESH_DOOR, Server};
use crate::resource::service_entry::Resolution;
use crate::resource::virtual_service::{Target, VirtualService};
use crate::resource::{Meta, Written};
use crate::validate::gateway::is_http;
use crate::yaml::Path;
use isthmus_core::name::{ClusterKey, HostPattern};
use isthmus_core::protocol::Protocol;
use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};

/// The name of findings about a piece that nobody names.
const INCOMPLETE: &str = "egress-incomplete";

/// The name of findings about an external host that nothing leads to.
const UNUSED: &str = "egress-unused";
/// Most hosts of one ServiceEntry that are named.
const NAMED_MAX: usize = 5;
/// Where TLS is spoken, whatever a port is called.
const HTTPS_PORT: u16 = 443;

/// Reports what a way out lacks.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    unled(view, report);
    unsecured(view, report);
    unused(view, report);
}

/// `a`, `b` and 3 more.
fn named_in_brief<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let mut shown: Vec<String> = names.take(NAMED_MAX).map(|name| format!("`{name}`")).collect();
    let last = match more {
        0 => shown.pop(),
        more => Some(format!("{more} more")),
    };
    match last {
        Some(last) if shown.is_empty() => last,
        Some(last) => format!("{} and {last}", shown.join(", ")),
        None => String::new(),
    }
}

/// Reports external hosts that are registered, and that no rule and no Gateway names: there is no way out to them.
fn unused(view: &View<'_>, report: &mut Report<'_>) {
    let is_proxy = |written: &Written<Gateway>| {
        let annotations = &written.meta.annotations;
        [MESH_DOOR, FORWARD_PROXY]
            .iter()
            .any(|name| annotations.get(*name).is_some_and(|value| value == "true"))
    };
    // There what is registered needs no more.
    if view.gateways().any(is_proxy) {
        return;
    }
    let mut named: HostSet<()> = HostSet::default();
    let name =
        |host: &str, namespace: &str| HostPattern::parse(&expand(host, namespace).to_ascii_lowercase());
    for Written { meta, spec } in view.virtual_services() {
        let rules = spec.http.iter();
        let http = rules.clone().flat_map(|rule| &rule.route).map(|one| &one.target);
        let mirrors = rules.flat_map(|rule| &rule.mirrors).map(|one| &one.target);
        let streams = spec.tls.iter().chain(&spec.tcp).flat_map(|rule| &rule.route);
        let streams = streams.map(|one| &one.target);
        for target in http.chain(mirrors).chain(streams) {
            named.insert(&name(&target.host, &meta.namespace), ());
        }
        for host in spec.hosts.iter().filter(|host| *host != "*") {
            named.insert(&name(host, &meta.namespace), ());
        }
    }
    for Written { spec, .. } in view.gateways() {
        for host in spec.servers.iter().flat_map(|server| &server.hosts) {
            let (_, host) = host.split_once('/').unwrap_or(("", host));
            // A server for every host names none.
            if host != "*" {
                named.insert(&HostPattern::parse(&host.to_ascii_lowercase()), ());
            }
        }
    }
    let mut told = HashSet::new();
    for Written { meta, spec } in &view.resources.service_entries {
        let hosts = Path::SPEC.key("hosts");
        let is_named = |host: &String| {
            named
                .overlapping(&HostPattern::parse(&host.to_ascii_lowercase()))
                .is_some()
        };
        // Whose addresses are written may be anywhere.
        let is_inside = spec.is_internal || spec.resolution == Resolution::Static;
        if is_inside || spec.hosts.iter().any(is_named) {
            continue;
        }
        let external = spec
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| is_external(host));
        let lower = external.map(|(at, host)| (at, host.to_ascii_lowercase()));
        let untold: Vec<(usize, String)> = lower.filter(|(_, host)| !told.contains(host)).collect();
        let Some((at, host)) = untold.first().cloned() else {
            continue;
        };
        let service = view.context.registry.find_exactly(&host, &meta.namespace);
        let Some(documents) = service.and_then(|service| way_out(service, &meta.namespace, view)) else {
            continue;
        };
        told.extend(untold.iter().map(|(_, host)| host.clone()));
        let (is, it) = if untold.len() == 1 {
            ("is", "it")
        } else {
            ("are", "them")
        };
        let names = untold.iter().map(|(_, host)| host.as_str());
        let message = format!(
            "{} {is} registered, and nothing here leads to {it}: no Gateway takes requests for {it}",
            named_in_brief(names)
        );
        report.tell(Finding {
            help: Some(documents),
            absent: Some(&host),
            ..Finding::new(Severity::Hint, UNUSED, &meta.origin, &hosts.index(at), message)
        });
    }
}

/// A Gateway and a VirtualService that lead to a service.
fn way_out(service: &Service<'_>, namespace: &str, view: &View<'_>) -> Option<String> {
    let host = service.host.as_str();
    let port = preferred(&service.ports)?;
    let protocol = service.ports.iter().find(|known| known.number == port)?.protocol;
    let key = ClusterKey::outbound(port, "", host);
    let is_secured = view
        .snapshot
        .clusters
        .get(&key)
        .is_some_and(|spec| spec.tls.is_some());
    let way = match protocol {
        Protocol::Https | Protocol::Tls if !is_secured => Protocol::Tls,
        protocol if protocol.is_http() || matches!(protocol, Protocol::Https | Protocol::Tls) => {
            Protocol::Http
        }
        _ => Protocol::Tcp,
    };
    let destination = format!("    - destination: {{host: '{host}', port: {{number: {port}}}}}");
    let rules = match way {
        Protocol::Http => format!("  http:\n  - route:\n{destination}"),
        Protocol::Tls => format!("  tls:\n  - match: [{{sniHosts: ['{host}']}}]\n    route:\n{destination}"),
        _ => format!("  tcp:\n  - route:\n{destination}"),
    };
    let gateway = format!("  servers:\n{}", server(way, i64::from(port), host));
    let name = name_for(host);
    let rules = format!("  hosts: ['{host}']\n  gateways: [{namespace}/{name}]\n{rules}");
    Some(format!(
        "{}\n---\n{}",
        document("Gateway", host, namespace, &gateway),
        document("VirtualService", host, namespace, &rules)
    ))
}

/// A name of a resource about a host.
fn name_for(host: &str) -> String {
    host.replace('*', "any").replace('.', "-")
}

fn document(kind: &str, host: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {}, namespace: {namespace}}}\nspec:\n{spec}",
        name_for(host)
    )
}

/// What is spoken on the way to a destination, and its port.
fn way_of(spec: &VirtualService, host: &str) -> Option<(Protocol, i64)> {
    let leads = |target: &Target| target.host.eq_ignore_ascii_case(host);
    let http = spec.http.iter().flat_map(|rule| &rule.route);
    let http = http.map(|destination| (Protocol::Http, &destination.target));
    let tls = spec.tls.iter().flat_map(|rule| &rule.route);
    let tls = tls.map(|destination| (Protocol::Tls, &destination.target));
    let tcp = spec.tcp.iter().flat_map(|rule| &rule.route);
    let tcp = tcp.map(|destination| (Protocol::Tcp, &destination.target));
    let (protocol, target) = http.chain(tls).chain(tcp).find(|(_, target)| leads(target))?;
    let usual = if protocol == Protocol::Http { 80 } else { 443 };
    Some((protocol, target.port.unwrap_or(usual)))
}

/// The host of a VirtualService that it leads to itself, as the way out of a mesh does.
fn led_to_itself(spec: &VirtualService) -> Option<(&str, Protocol, i64)> {
    spec.hosts.iter().find_map(|host| {
        let (protocol, port) = way_of(spec, host)?;
        is_external(host).then_some((host.as_str(), protocol, port))
    })
}

/// Whether a host is not one of a cluster's own services, nor short for one.
fn is_external(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    name.contains('.') && !name.ends_with(CLUSTER_DOMAIN) && !name.ends_with(".svc")
}

/// A Gateway for a VirtualService that leads a host out through one that is not there.
pub(super) fn gateway(id: &str, spec: &VirtualService) -> Option<String> {
    let (host, protocol, port) = led_to_itself(spec)?;
    let (namespace, name) = id.split_once('/')?;
    let server = server(protocol, port, host);
    Some(format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         servers:\n{server}"
    ))
}

/// A server for a VirtualService whose Gateway does not serve its host.
pub(super) fn server_for(spec: &VirtualService) -> Option<String> {
    let (host, protocol, port) = led_to_itself(spec)?;
    let server = server(protocol, port, host);
    Some(format!("serve it there: a host of a server, or\n{server}"))
}

fn server(protocol: Protocol, port: i64, host: &str) -> String {
    match protocol {
        Protocol::Http => {
            format!("  - port: {{number: 80, name: http, protocol: HTTP}}\n    hosts: ['{host}']")
        }
        Protocol::Tls => format!(
            "  - port: {{number: {port}, name: tls, protocol: TLS}}\n    hosts: ['{host}']\n    tls: {{mode: PASSTHROUGH}}"
        ),
        _ => format!("  - port: {{number: {port}, name: tcp, protocol: TCP}}\n    hosts: ['{host}']"),
    }
}

/// A ServiceEntry for a destination that is not there and is a host of the VirtualService itself.
pub(super) fn service_entry(spec: &VirtualService, target: &Target, namespace: &str) -> Option<String> {
    let host = target.host.as_str();
    let is_led = spec.hosts.iter().any(|own| own.eq_ignore_ascii_case(host));
    let (protocol, port) = way_of(spec, host).filter(|_| is_led && is_external(host))?;
    let protocol = match (protocol, port) {
        (Protocol::Http, 443) => "HTTPS",
        (Protocol::Http, _) => "HTTP",
        (Protocol::Tls, _) => "TLS",
        _ => "TCP",
    };
    let resolution = if host.starts_with('*') {
        "DYNAMIC_DNS"
    } else {
        "DNS"
    };
    let name = protocol.to_ascii_lowercase();
    let spec = format!(
        "  hosts: ['{host}']\n  location: MESH_EXTERNAL\n  resolution: {resolution}\n  ports:\n  - {{number: {port}, name: \
         {name}, protocol: {protocol}}}"
    );
    Some(document("ServiceEntry", host, namespace, &spec))
}

/// Hosts of VirtualServices, by `namespace/name` of their Gateways.
fn led(view: &View<'_>) -> HashMap<String, HostSet<()>> {
    let mut led: HashMap<String, HostSet<()>> = HashMap::new();
    for Written { meta, spec } in view.virtual_services() {
        for name in &spec.gateways {
            if let Some(GatewayName::Named { id, .. }) = GatewayName::parse(name, &meta.namespace) {
                let hosts = led.entry(id).or_default();
                for host in &spec.hosts {
                    hosts.insert(&HostPattern::parse(&expand(host, &meta.namespace)), ());
                }
            }
        }
    }
    led
}

/// Reports hosts of Gateways that are registered, and that no VirtualService leads anywhere.
fn unled(view: &View<'_>, report: &mut Report<'_>) {
    let registered: HashMap<&str, u16> = view
        .context
        .registry
        .services()
        .iter()
        .filter(|service| is_external(&service.host))
        .filter_map(|service| Some((service.host.as_str(), preferred(&service.ports)?)))
        .collect();
    if registered.is_empty() {
        return;
    }
    // Few have a host of their own that is registered.
    let led = LazyCell::new(|| led(view));
    for written in view.gateways() {
        // There what is registered needs no VirtualService.
        let is_door = |name: &str| {
            written
                .meta
                .annotations
                .get(name)
                .is_some_and(|value| value == "true")
        };
        if !is_door(MESH_DOOR) && !is_door(FORWARD_PROXY) {
            unled_of(written, &led, &registered, report);
        }
    }
}

/// The port of a service that requests would go to.
fn preferred(ports: &[crate::registry::Port<'_>]) -> Option<u16> {
    let secured =
        |port: &&crate::registry::Port<'_>| matches!(port.protocol, Protocol::Https | Protocol::Tls);
    let found = ports.iter().find(secured).or(ports.first());
    found.map(|port| port.number)
}

fn unled_of(
    written: &Written<Gateway>,
    led: &LazyCell<HashMap<String, HostSet<()>>, impl FnOnce() -> HashMap<String, HostSet<()>>>,
    registered: &HashMap<&str, u16>,
    report: &mut Report<'_>,
) {
    let Written { meta, spec } = written;
    let list = Path::SPEC.key("servers");
    let mut told = HashSet::new();
    for (at, server) in spec.servers.iter().enumerate() {
        let item = list.index(at);
        let hosts = item.key("hosts");
        for (at, host) in server.hosts.iter().enumerate() {
            let (_, name) = host.split_once('/').unwrap_or(("", host));
            let name = name.to_ascii_lowercase();
            let Some(port) = registered.get(name.as_str()) else {
                continue;
            };
            let Some(rules) = rules_for(server, &name, *port) else {
                continue;
            };
            let led = led.get(&meta.id());
            if led.is_some_and(|led| led.overlapping(&HostPattern::parse(&name)).is_some()) {
                continue;
            }
            if !told.insert(name.clone()) {
                continue;
            }
            let gateway = meta.id();
            let spec = format!("  hosts: ['{name}']\n  gateways: [{gateway}]\n{rules}");
            let message = format!(
                "`{name}` is registered, and no VirtualService of this Gateway leads to it: requests for it are refused"
            );
            report.tell(Finding {
                help: Some(document("VirtualService", &name, &meta.namespace, &spec)),
                absent: Some(&name),
                ..Finding::new(
                    Severity::Warning,
                    INCOMPLETE,
                    &meta.origin,
                    &hosts.index(at),
                    message,
                )
            });
        }
    }
}

/// The rules that lead from a server to a host.
fn rules_for(server: &Server, host: &str, port: u16) -> Option<String> {
    let destination = format!("    - destination: {{host: '{host}', port: {{number: {port}}}}}");
    let tls = server.tls.as_ref();
    let mode = tls.and_then(|tls| tls.mode.as_deref()).unwrap_or("PASSTHROUGH");
    let passes = tls.is_some() && mode == "PASSTHROUGH" && !is_http(&server.protocol);
    if tls.is_some_and(|tls| tls.https_redirect) || mode == "AUTO_PASSTHROUGH" {
        return None;
    }
    if passes {
        return Some(format!(
            "  tls:\n  - match: [{{sniHosts: ['{host}']}}]\n    route:\n{destination}"
        ));
    }
    let speaks_http = is_http(&server.protocol) || server.protocol.eq_ignore_ascii_case("HTTPS");
    speaks_http.then(|| format!("  http:\n  - route:\n{destination}"))
}

/// Reports requests that go in plaintext to a port that speaks TLS.
fn unsecured(view: &View<'_>, report: &mut Report<'_>) {
    let ports = view.context.registry.services().iter();
    let mut ports = ports.flat_map(|service| &service.ports);
    if !ports
        .any(|port| matches!(port.protocol, Protocol::Https | Protocol::Tls) || port.target == HTTPS_PORT)
    {
        return;
    }
    let mut told = HashSet::new();
    for (at, Written { meta, spec }) in view.resources.virtual_services.iter().enumerate() {
        if !view.facts.used.contains(&at) {
            continue;
        }
        let list = Path::SPEC.key("http");
        for (at, rule) in spec.http.iter().enumerate() {
            let item = list.index(at);
            let routes = item.key("route");
            for (at, destination) in rule.route.iter().enumerate() {
                let item = routes.index(at);
                let path = item.key("destination");
                one_unsecured(&destination.target, meta, &path, view, &mut told, report);
            }
        }
    }
}

fn one_unsecured(
    target: &Target,
    meta: &Meta,
    path: &Path<'_>,
    view: &View<'_>,
    told: &mut HashSet<ClusterKey>,
    report: &mut Report<'_>,
) {
    let host = expand(&target.host, &meta.namespace);
    let Some(service) = view.context.registry.find(&host, &meta.namespace) else {
        return;
    };
    let port = match (target.port, &service.ports[..]) {
        (Some(port), _) => u16::try_from(port).ok(),
        (None, [only]) => Some(only.number),
        (None, _) => None,
    };
    let Some(port) = port else { return };
    let known = service.ports.iter().find(|known| known.number == port);
    let says_tls = known.is_some_and(|known| matches!(known.protocol, Protocol::Https | Protocol::Tls));
    // Out there TLS is what 443 speaks, even if somebody calls it HTTP.
    let is_443 = known.is_some_and(|known| known.target == HTTPS_PORT) && is_external(&host);
    if !says_tls && !is_443 {
        return;
    }
    let key = ClusterKey::outbound(port, &target.subset, &host);
    let spec = view.snapshot.clusters.get(&key);
    let is_secured = spec.is_none_or(|spec| spec.tls.is_some());
    if is_secured || !told.insert(key) {
        return;
    }
    let sni = if host.starts_with('*') {
        String::new()
    } else {
        format!(", sni: '{host}'")
    };
    let policy = format!(
        "  trafficPolicy:\n    portLevelSettings:\n    - port: {{number: {port}}}\n      tls: {{mode: SIMPLE{sni}}}"
    );
    let has_rule = view.context.rules.find(&host, service.namespace).is_some();
    let help = if has_rule {
        format!("say in its DestinationRule\nspec:\n{policy}")
    } else {
        let spec = format!("  host: '{host}'\n{policy}");
        document("DestinationRule", &host, &meta.namespace, &spec)
    };
    let message = match says_tls {
        true => format!(
            "port {port} of `{host}` speaks TLS, and no DestinationRule secures what goes there: it gets plaintext requests"
        ),
        false => format!(
            "port {port} of `{host}` leads to 443 there, and no DestinationRule secures what goes there: it gets plaintext \
             requests where TLS is spoken"
        ),
    };
    report.tell(Finding {
        help: Some(help),
        absent: Some(&host),
        ..Finding::new(Severity::Warning, INCOMPLETE, &meta.origin, path, message)
    });
}
