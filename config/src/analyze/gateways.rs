//! Gateways: servers that get in each other's way, workloads that are not there, and annotations.

use super::View;
use super::facts::{Reason, ServerAt, TlsMatch};
use super::hosts::HostSet;
use crate::diagnostic::{Severity, nearest};
use crate::index::{name_of, selects};
use crate::report::{Finding, Report};
use crate::resource::gateway::{Gateway, Server};
use crate::resource::kubernetes::Service;
use crate::resource::{Meta, Written};
use crate::validate::gateway::{is_http, is_tls};
use crate::yaml::Path;
use isthmus_core::name::HostPattern;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

/// Reports what is to be said of Gateways.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    left_out(view, report);
    faulty(view, report);
    same_hosts(view, report);
    let workloads = Workloads::new(view);
    for written in view.gateways() {
        workloads.check(written, view, report);
    }
    for written in view.gateways() {
        annotations(&written.meta, &GATEWAY_ANNOTATIONS, report);
    }
    for (_, written) in view.loud() {
        annotations(&written.meta, &["abort"], report);
    }
    let resources = view.resources;
    let rules = resources.destination_rules.iter();
    for written in rules.chain(&resources.faulty.destination_rules) {
        annotations(&written.meta, &["balancer", "hedging"], report);
    }
}

/// The server at a position.
fn server_at<'a>(view: &View<'a>, at: ServerAt) -> Option<(&'a Meta, &'a Server)> {
    let written = view.resources.gateways.get(at.gateway)?;
    Some((&written.meta, written.spec.servers.get(at.server)?))
}

/// Reports servers that give way to an earlier one.
fn left_out(view: &View<'_>, report: &mut Report<'_>) {
    for found in &view.facts.left_out {
        let (Some((meta, server)), Some((first_meta, first))) =
            (server_at(view, found.server), server_at(view, found.first))
        else {
            continue;
        };
        let conflict = Conflict {
            later: (meta, found.server.server, server),
            first: (first_meta, found.first.server, first),
            reason: found.reason,
        };
        conflict.tell("this server is left out", report);
    }
    for found in &view.facts.passing {
        let of = |at: TlsMatch| view.resources.virtual_services.get(at.virtual_service);
        let (Some(here), Some(first)) = (of(found.here), of(found.first)) else {
            continue;
        };
        let list = Path::SPEC.key("tls");
        let rule = list.index(found.first.rule);
        let matches = rule.key("match");
        let related = report.related(
            &first.meta.origin,
            &matches.index(found.first.matched),
            "goes there already",
        );
        let rule = list.index(found.here.rule);
        let matches = rule.key("match");
        let matched = matches.index(found.here.matched);
        let hosts = matched.key("sniHosts");
        let sni = here
            .spec
            .tls
            .get(found.here.rule)
            .and_then(|rule| rule.matches.get(found.here.matched))
            .and_then(|matched| matched.sni_hosts.get(found.host))
            .map_or("", String::as_str);
        let message = format!(
            "TLS for `{sni}` on port {} already goes where {} says: it is left out here",
            found.port,
            name_of(&first.meta)
        );
        report.tell(Finding {
            related: vec![related],
            ..Finding::new(
                Severity::Warning,
                "duplicate-sni",
                &here.meta.origin,
                &hosts.index(found.host),
                message,
            )
        });
    }
}

/// Two servers that cannot both be there.
struct Conflict<'a> {
    later: (&'a Meta, usize, &'a Server),
    first: (&'a Meta, usize, &'a Server),
    reason: Reason,
}

impl Conflict<'_> {
    fn tell(&self, outcome: &str, report: &mut Report<'_>) {
        let (meta, at, server) = self.later;
        let (first_meta, first_at, first) = self.first;
        let list = Path::SPEC.key("servers");
        let first_path = list.index(first_at);
        let path = list.index(at);
        let port = server.port;
        let whose = name_of(first_meta);
        let (ports, first_ports) = (path.key("port"), first_path.key("port"));
        let (hosts, first_hosts) = (path.key("hosts"), first_path.key("hosts"));
        let (place, first_place, message, help) = match self.reason {
            Reason::Protocol => (
                ports.key("protocol"),
                first_ports.key("protocol"),
                format!(
                    "port {port} already speaks {}, for {whose}: {outcome}",
                    first.protocol
                ),
                "a port has one protocol: choose another port, or another `bind`",
            ),
            Reason::Carried => (
                ports.key("number"),
                first_ports.key("number"),
                format!("port {port} already carries the connections of {whose}: {outcome}"),
                "nothing in such a connection says which server is meant: choose another port, or another `bind`",
            ),
            Reason::Host(host) => {
                let name = server.hosts.get(host).map_or("", String::as_str);
                let same = first.hosts.iter().position(|candidate| candidate == name);
                (
                    hosts.index(host),
                    hosts_at(&first_hosts, same),
                    format!("`{name}` on port {port} is already a host of {whose}: {outcome}"),
                    "a name of TLS belongs to one server: take it out of one of them",
                )
            }
        };
        let related = report.related(&first_meta.origin, &first_place, "comes first");
        report.tell(Finding {
            help: Some(help.to_owned()),
            related: vec![related],
            ..Finding::new(
                Severity::Warning,
                "gateway-conflict",
                &meta.origin,
                &place,
                message,
            )
        });
    }
}

fn hosts_at<'p>(hosts: &'p Path<'p>, at: Option<usize>) -> Path<'p> {
    at.map_or(*hosts, |at| hosts.index(at))
}

/// What a port speaks before anything is decrypted.
fn transport(server: &Server) -> u8 {
    match &server.protocol {
        protocol if is_http(protocol) => 0,
        protocol if is_tls(protocol) => 1,
        _ => 2,
    }
}

/// Reports Gateways with errors whose servers would be in the way of another's once they are mended.
fn faulty(view: &View<'_>, report: &mut Report<'_>) {
    let faulty = &view.resources.faulty.gateways;
    if faulty.is_empty() {
        return;
    }
    let mut first: HashMap<(i128, &str), (&Written<Gateway>, usize, &Server)> = HashMap::new();
    for (at, written) in view.gateways().enumerate() {
        let is_faulty = at >= view.resources.gateways.len();
        if !is_faulty && !view.facts.selected.contains(&at) {
            continue;
        }
        for (at, server) in written.spec.servers.iter().enumerate() {
            // What has no port has an error that says so.
            if server.port == 0 || server.protocol.is_empty() {
                continue;
            }
            let key = (server.port, server.bind.as_str());
            let (owner, owner_at, older) = *first.entry(key).or_insert((written, at, server));
            let same = std::ptr::eq(owner, written);
            let reason = match (transport(older), transport(server)) {
                (a, b) if a != b => Reason::Protocol,
                (2, _) if !same => Reason::Carried,
                _ => continue,
            };
            if is_faulty {
                let conflict = Conflict {
                    later: (&written.meta, at, server),
                    first: (&owner.meta, owner_at, older),
                    reason,
                };
                conflict.tell("without its errors, this server would be left out", report);
            }
        }
    }
}

/// A host by the positions of its Gateway, its server and itself.
type HostAt = (usize, usize, usize);

/// Hints at HTTP servers of two Gateways for the same host.
fn same_hosts(view: &View<'_>, report: &mut Report<'_>) {
    let mut ports: HashMap<(i128, &str), HostSet<HostAt>> = HashMap::new();
    for (gateway_at, written) in view.resources.gateways.iter().enumerate() {
        if !view.facts.selected.contains(&gateway_at) {
            continue;
        }
        let mut told = false;
        for (at, server) in written.spec.servers.iter().enumerate() {
            if !is_http(&server.protocol) {
                continue;
            }
            let known = ports.entry((server.port, &server.bind)).or_default();
            for (host_at, host) in server.hosts.iter().enumerate() {
                let pattern = HostPattern::parse(host);
                let first = known.equal(&pattern).filter(|(first, ..)| *first != gateway_at);
                known.insert(&pattern, (gateway_at, at, host_at));
                // One says enough of a Gateway.
                let Some((first_at, first_server, first_host)) = first.filter(|_| !told) else {
                    continue;
                };
                let Some(owner) = view.resources.gateways.get(first_at) else {
                    continue;
                };
                told = true;
                let list = Path::SPEC.key("servers");
                let item = list.index(first_server);
                let hosts = item.key("hosts");
                let related = report.related(&owner.meta.origin, &hosts.index(first_host), "served here too");
                let item = list.index(at);
                let hosts = item.key("hosts");
                let message = format!(
                    "`{host}` on port {} is also a host of {}: what is bound to either is served there",
                    server.port,
                    name_of(&owner.meta)
                );
                report.tell(Finding {
                    related: vec![related],
                    ..Finding::new(
                        Severity::Hint,
                        "gateway-conflict",
                        &written.meta.origin,
                        &hosts.index(host_at),
                        message,
                    )
                });
            }
        }
    }
}

/// Selectors that Istio's own installation gives its gateways.
const DEFAULTS: [&str; 2] = ["ingressgateway", "egressgateway"];

/// The namespace and the labels of a workload.
type Labelled<'a> = (&'a str, &'a BTreeMap<String, String>);

/// Workloads by one of their labels, and Services by namespace.
struct Workloads<'a> {
    by_label: HashMap<(&'a str, &'a str), Vec<Labelled<'a>>>,
    services: HashMap<&'a str, Vec<&'a Written<Service>>>,
    /// What selectors select, because many Gateways have the same.
    known: RefCell<HashMap<&'a BTreeMap<String, String>, Rc<Selected<'a>>>>,
}

/// What a selector selects.
#[derive(Default)]
struct Selected<'a> {
    /// Whether there is any workload.
    any: bool,
    /// The first Service of one.
    service: Option<&'a Written<Service>>,
    /// Ports of all its Services, and where they lead.
    ports: HashSet<i128>,
}

impl<'a> Workloads<'a> {
    fn new(view: &View<'a>) -> Self {
        let mut all = Self {
            by_label: HashMap::new(),
            services: HashMap::new(),
            known: RefCell::default(),
        };
        for Written { meta, spec } in &view.resources.workloads {
            for (key, value) in &spec.labels {
                let list = all.by_label.entry((key, value)).or_default();
                list.push((&meta.namespace, &spec.labels));
            }
        }
        for written in &view.resources.services {
            let list = all.services.entry(&written.meta.namespace).or_default();
            list.push(written);
        }
        all
    }

    /// What a selector selects; `first` is one of its labels.
    fn select(&self, selector: &'a BTreeMap<String, String>, first: (&str, &str)) -> Rc<Selected<'a>> {
        if let Some(known) = self.known.borrow().get(selector) {
            return known.clone();
        }
        let mut found = Selected::default();
        let candidates = self.by_label.get(&first).map_or(&[][..], Vec::as_slice);
        let mut seen = HashSet::new();
        for (namespace, labels) in candidates {
            // Pods of one workload are alike.
            if !selects(selector, labels) || !seen.insert((namespace, labels)) {
                continue;
            }
            found.any = true;
            let services = self.services.get(namespace).map_or(&[][..], Vec::as_slice);
            for service in services {
                if service.spec.selector.is_empty() || !selects(&service.spec.selector, labels) {
                    continue;
                }
                found.service.get_or_insert(service);
                for port in &service.spec.ports {
                    found.ports.insert(port.number);
                    found.ports.extend(port.target_port);
                }
            }
        }
        let found = Rc::new(found);
        self.known.borrow_mut().insert(selector, found.clone());
        found
    }

    /// Reports a selector that selects nothing, and ports that no Service of what it selects has.
    fn check(&self, written: &'a Written<Gateway>, view: &View<'_>, report: &mut Report<'_>) {
        let Written { meta, spec } = written;
        let Some((key, value)) = spec.selector.iter().next() else {
            return;
        };
        let default = spec.selector.len() == 1 && key == "istio" && DEFAULTS.contains(&value.as_str());
        let path = Path::SPEC.key("selector");
        let found = self.select(&spec.selector, (key, value));
        if !found.any {
            // With labels of its own, this gateway knows what selects it; without, everything does.
            if view.context.options.labels.is_empty() && !default {
                let labels: Vec<String> = spec
                    .selector
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                let message = format!(
                    "no workload among the documents has the labels {}: it is taken to mean this gateway",
                    labels.join(",")
                );
                let help = format!("if this gateway has them, say so: --labels {}", labels.join(","));
                report.tell(Finding {
                    help: Some(help),
                    ..Finding::new(Severity::Hint, "unknown-workload", &meta.origin, &path, message)
                });
            }
            return;
        }
        let Some(service) = found.service else { return };
        let list = Path::SPEC.key("servers");
        for (at, server) in spec.servers.iter().enumerate() {
            if server.port == 0 || found.ports.contains(&server.port) {
                continue;
            }
            let item = list.index(at);
            let port = item.key("port");
            let related = report.related(&service.meta.origin, &Path::SPEC.key("ports"), "its ports");
            let message = format!(
                "no Service of the workloads that this selects has port {}: it is not reached through one",
                server.port
            );
            report.tell(Finding {
                related: vec![related],
                ..Finding::new(
                    Severity::Warning,
                    "port-not-on-service",
                    &meta.origin,
                    &port.key("number"),
                    message,
                )
            });
        }
    }
}

/// Domain of our own annotations.
const OWN_DOMAIN: &str = "isthmus.dev";
/// Our annotations of Gateways.
const GATEWAY_ANNOTATIONS: [&str; 4] = ["mesh", "forward-proxy", "proxy-protocol", "upgrades"];
/// All of them, with the kind that has them.
const ALL_ANNOTATIONS: [(&str, &str); 7] = [
    ("mesh", "Gateway"),
    ("forward-proxy", "Gateway"),
    ("proxy-protocol", "Gateway"),
    ("upgrades", "Gateway"),
    ("abort", "VirtualService"),
    ("balancer", "DestinationRule"),
    ("hedging", "DestinationRule"),
];

/// Reports annotations that are one letter away from ours, and ours on kinds where they mean nothing.
fn annotations(meta: &Meta, known: &[&str], report: &mut Report<'_>) {
    for key in meta.annotations.keys() {
        let Some((domain, name)) = key.split_once('/') else {
            continue;
        };
        let ours = domain == OWN_DOMAIN;
        if (ours && known.contains(&name)) || (!ours && nearest(domain, [OWN_DOMAIN]).is_none()) {
            continue;
        }
        let path = Path::ANNOTATIONS;
        let path = path.key(key);
        let (code, message, help) = match ALL_ANNOTATIONS.iter().find(|(known, _)| *known == name) {
            Some((_, kind)) if ours => (
                "misplaced-annotation",
                format!("`{key}` has a meaning on a {kind} only"),
                None,
            ),
            _ => {
                let near = nearest(name, known.iter().copied());
                let near = near.map(|name| format!("did you mean `{OWN_DOMAIN}/{name}`?"));
                ("unknown-annotation", format!("unknown annotation `{key}`"), near)
            }
        };
        report.add_key(Severity::Warning, code, &meta.origin, &path, message, help);
    }
}
