//! What VirtualServices refer to: gateways and the hosts they serve, services and their ports, subsets, delegates.

use super::hosts::HostSet;
use super::{GUESSES_MAX, View, egress};
use crate::compile::delegate::{self, Broken};
use crate::diagnostic::{Severity, nearest};
use crate::index::{CLUSTER_DOMAIN, GatewayName, expand, export_to, is_exported, name_of};
use crate::registry::Service;
use crate::report::{Finding, Report};
use crate::resource::gateway::Gateway;
use crate::resource::virtual_service::{HttpRoute, Target, VirtualService};
use crate::resource::{Meta, Written};
use crate::yaml::Path;
use isthmus_core::name::HostPattern;
use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A Gateway, and what of it VirtualServices ask for.
struct Door<'a> {
    meta: &'a Meta,
    /// Hosts for VirtualServices of every namespace, and by namespace.
    for_all: HostSet<()>,
    by_namespace: HashMap<&'a str, HostSet<()>>,
    ports: BTreeSet<u16>,
    /// Whether it has errors and is left out.
    faulty: bool,
}

impl<'a> Door<'a> {
    fn new(written: &'a Written<Gateway>, faulty: bool) -> Self {
        let Written { meta, spec } = written;
        let mut door = Self {
            meta,
            for_all: HostSet::default(),
            by_namespace: HashMap::new(),
            ports: BTreeSet::new(),
            faulty,
        };
        for server in &spec.servers {
            door.ports.extend(u16::try_from(server.port));
            for host in &server.hosts {
                let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
                let set = match namespace {
                    "*" => &mut door.for_all,
                    "." => door.by_namespace.entry(&meta.namespace).or_default(),
                    _ => door.by_namespace.entry(namespace).or_default(),
                };
                set.insert(&HostPattern::parse(name), ());
            }
        }
        door
    }

    /// Whether it serves a host of a VirtualService of this namespace.
    fn serves(&self, host: &HostPattern, namespace: &str) -> bool {
        let own = self.by_namespace.get(namespace);
        self.for_all.overlapping(host).is_some() || own.is_some_and(|hosts| hosts.overlapping(host).is_some())
    }
}

/// Everything that can be referred to.
struct Names<'a> {
    /// In an order that is the same in each run, as guesses must be.
    doors: BTreeMap<String, Door<'a>>,
    /// Namespaces of Gateways, by name.
    namespaces: BTreeMap<&'a str, &'a str>,
    /// Hosts of ServiceEntries that have a wildcard.
    wildcards: HostSet<()>,
    /// Hosts of resources that are left out for their errors, which have been told.
    faulty_hosts: HashSet<String>,
    faulty_subsets: HashSet<(String, &'a str)>,
    /// Short names of services by namespace, when somebody has asked for them.
    short: OnceCell<HashMap<&'a str, Vec<&'a str>>>,
    guesses: Cell<usize>,
}

impl<'a> Names<'a> {
    fn new(view: &View<'a>) -> Self {
        let resources = view.resources;
        let mut names = Self {
            doors: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            wildcards: HostSet::default(),
            faulty_hosts: HashSet::new(),
            faulty_subsets: HashSet::new(),
            short: OnceCell::new(),
            guesses: Cell::new(GUESSES_MAX),
        };
        for (at, written) in view.gateways().enumerate() {
            let door = Door::new(written, at >= resources.gateways.len());
            names
                .namespaces
                .entry(&written.meta.name)
                .or_insert(&written.meta.namespace);
            names.doors.entry(written.meta.id()).or_insert(door);
        }
        for service in view.context.registry.services() {
            if service.host.starts_with('*') {
                names.wildcards.insert(&HostPattern::parse(&service.host), ());
            }
        }
        for written in &resources.faulty.service_entries {
            let hosts = written.spec.hosts.iter();
            names
                .faulty_hosts
                .extend(hosts.map(|host| host.to_ascii_lowercase()));
        }
        for id in &resources.refused {
            let service = id.strip_prefix("Service ").and_then(|id| id.split_once('/'));
            if let Some((namespace, name)) = service {
                names
                    .faulty_hosts
                    .insert(format!("{name}.{namespace}.{CLUSTER_DOMAIN}"));
            }
        }
        for Written { meta, spec } in &resources.faulty.destination_rules {
            let host = expand(&spec.host, &meta.namespace);
            let subsets = spec.subsets.iter();
            names
                .faulty_subsets
                .extend(subsets.map(|subset| (host.clone().into_owned(), subset.name.as_str())));
        }
        names
    }

    /// Short names of services by namespace.
    fn short(&self, view: &View<'a>) -> &HashMap<&'a str, Vec<&'a str>> {
        self.short.get_or_init(|| {
            let mut short: HashMap<&str, Vec<&str>> = HashMap::new();
            for service in view.context.registry.services() {
                let name = service.host.split('.').next().unwrap_or("");
                short.entry(service.namespace).or_default().push(name);
            }
            short
        })
    }

    /// Help for a name that is not there.
    fn guess<'n>(&self, written: &str, known: impl IntoIterator<Item = &'n str>) -> Option<String> {
        self.guesses.set(self.guesses.get().checked_sub(1)?);
        nearest(written, known).map(|name| format!("did you mean `{name}`?"))
    }
}

/// Reports what VirtualServices name and is not there.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    let names = Names::new(view);
    let delegates = used_delegates(view);
    let good = view.resources.virtual_services.len();
    for (at, written) in view.loud() {
        let Written { meta, spec } = written;
        let named = |name: &String| {
            matches!(
                GatewayName::parse(name, &meta.namespace),
                Some(GatewayName::Named { .. })
            )
        };
        // What concerns nothing here is worth knowing, and no more.
        let concerns_us =
            view.facts.used.contains(&at) || delegates.contains(&at) || spec.gateways.iter().any(named);
        if at < good && !bindings(written, view, report) {
            continue;
        }
        let ports = gateways(written, view, &names, report);
        let targets = Targets {
            meta,
            spec,
            severity: if concerns_us {
                Severity::Warning
            } else {
                Severity::Hint
            },
            ports,
            seen_from: seen_from(written, view),
            view,
            names: &names,
        };
        targets.all(report);
        for (at, rule) in spec.http.iter().enumerate() {
            let list = Path::SPEC.key("http");
            check_delegate(rule, meta, &list.index(at), view, report);
        }
    }
}

/// VirtualServices that a rule which applies here delegates to.
pub(super) fn used_delegates(view: &View<'_>) -> HashSet<usize> {
    let context = view.context;
    if context.delegates.is_empty() {
        return HashSet::new();
    }
    let roots = &view.resources.virtual_services;
    let at: HashMap<*const Written<VirtualService>, usize> = roots
        .iter()
        .enumerate()
        .map(|(at, written)| (std::ptr::from_ref(written), at))
        .collect();
    let used = roots
        .iter()
        .enumerate()
        .filter(|(at, _)| view.facts.used.contains(at));
    let named = used.flat_map(|(_, root)| {
        let rules = root.spec.http.iter();
        rules.filter_map(|rule| {
            delegate::find(rule, &root.meta, &context.delegates, roots, &context.options.mesh)?.ok()
        })
    });
    named
        .filter_map(|written| at.get(&std::ptr::from_ref(written)).copied())
        .collect()
}

/// Reports a VirtualService that applies nowhere here. Answers whether the gateway sees it.
fn bindings(written: &Written<VirtualService>, view: &View<'_>, report: &mut Report<'_>) -> bool {
    let Written { meta, spec } = written;
    // A delegate is found by the rules that name it.
    if spec.hosts.is_empty() {
        return true;
    }
    let options = view.context.options;
    let shown_to = export_to(&spec.export_to, &options.mesh.virtual_service_export_to);
    if !is_exported(shown_to, &meta.namespace, &options.namespace) {
        let message = format!(
            "not exported to `{}`, the namespace of this gateway: passed over",
            options.namespace
        );
        let path = Path::SPEC.key("exportTo");
        report.add(Severity::Hint, "not-exported", &meta.origin, &path, message, None);
        return false;
    }
    let only_mesh = spec.gateways.iter().all(|name| name == "mesh");
    if only_mesh && !view.facts.mesh_door {
        let message = "bound to mesh clients, not to a Gateway: passed over here";
        let help = format!(
            "name a Gateway in spec.gateways, or annotate one with {}: \"true\"",
            crate::resource::gateway::MESH_DOOR
        );
        let path = Path::SPEC.key("gateways");
        report.add(
            Severity::Hint,
            "mesh-only",
            &meta.origin,
            &path,
            message,
            Some(help),
        );
    }
    true
}

/// Reports Gateways that are not there, and hosts that none of those that are there serves. Answers their ports.
fn gateways(
    written: &Written<VirtualService>,
    view: &View<'_>,
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> BTreeSet<u16> {
    let Written { meta, spec } = written;
    let hosts: Vec<HostPattern> = spec
        .hosts
        .iter()
        .map(|host| HostPattern::parse(&expand(host, &meta.namespace)))
        .collect();
    let mut served = vec![false; hosts.len()];
    let mut ports = BTreeSet::new();
    let (mut all_known, mut any_told) = (true, false);
    let list = Path::SPEC.key("gateways");
    let mut seen = HashSet::new();
    for (at, name) in spec.gateways.iter().enumerate() {
        let id = match GatewayName::parse(name, &meta.namespace) {
            Some(GatewayName::Named { id, .. }) => id,
            // Mesh clients come by any name.
            Some(GatewayName::Mesh) | None => {
                all_known = false;
                continue;
            }
        };
        let path = list.index(at);
        let Some(door) = names.doors.get(&id) else {
            all_known = false;
            unknown_gateway(&id, written, &path, view, names, report);
            continue;
        };
        if door.faulty {
            all_known = false;
            let message = format!("the Gateway `{id}` has errors and is left out");
            let kind = Path::Root.key("kind");
            let related = report.related(&door.meta.origin, &kind, "its errors are told there");
            report.tell(Finding {
                related: vec![related],
                ..Finding::new(Severity::Warning, "unknown-gateway", &meta.origin, &path, message)
            });
        }
        ports.extend(&door.ports);
        let mut any = hosts.is_empty();
        for (host, served) in hosts.iter().zip(&mut served) {
            if door.serves(host, &meta.namespace) {
                *served = true;
                any = true;
            }
        }
        if !any && seen.insert(id.clone()) {
            any_told = true;
            let message = format!("Gateway {id} serves none of these hosts for this VirtualService");
            let servers = Path::SPEC.key("servers");
            let related = report.related(&door.meta.origin, &servers, "what it serves");
            report.tell(Finding {
                help: egress::server_for(spec),
                related: vec![related],
                ..Finding::new(
                    Severity::Warning,
                    "unserved-host",
                    &meta.origin,
                    &Path::SPEC.key("hosts"),
                    message,
                )
            });
        }
    }
    if all_known && !any_told && !spec.gateways.is_empty() {
        let list = Path::SPEC.key("hosts");
        for (at, _) in served.iter().enumerate().filter(|(_, served)| !**served) {
            let host = spec.hosts.get(at).map_or("", String::as_str);
            let message = format!("none of its Gateways serves `{host}`: no request for it comes here");
            report.warn("unserved-host", &meta.origin, &list.index(at), message);
        }
    }
    ports
}

fn unknown_gateway(
    id: &str,
    written: &Written<VirtualService>,
    path: &Path<'_>,
    view: &View<'_>,
    names: &Names<'_>,
    report: &mut Report<'_>,
) {
    let meta = &written.meta;
    let (_, name) = id.split_once('/').unwrap_or(("", id));
    let mut help = None;
    let message = if view.resources.foreign_gateways.contains(id) {
        format!("`{id}` is a Gateway of the Kubernetes Gateway API, which is not executed")
    } else {
        help = match names.namespaces.get(name) {
            Some(other) => Some(format!("there is one in another namespace: `{other}/{name}`")),
            None => {
                let known: Vec<&str> = names.namespaces.keys().copied().collect();
                names.guess(name, known)
            }
        };
        help = help.or_else(|| egress::gateway(id, &written.spec));
        format!("no Gateway is named `{id}`")
    };
    report.tell(Finding {
        help,
        absent: Some(name),
        ..Finding::new(Severity::Warning, "unknown-gateway", &meta.origin, path, message)
    });
}

/// Namespaces from which a VirtualService looks at services, when that of the gateway is not known: those it is
/// exported to, else its own, as Istio's analyzers see it.
fn seen_from<'a>(written: &'a Written<VirtualService>, view: &View<'_>) -> Vec<&'a str> {
    if !view.context.options.namespace.is_empty() {
        return Vec::new();
    }
    let own = written.meta.namespace.as_str();
    let named = written.spec.export_to.iter().map(String::as_str);
    let mut found: Vec<&str> = named.filter(|name| !matches!(*name, "*" | "~")).collect();
    found
        .iter_mut()
        .filter(|name| **name == ".")
        .for_each(|name| *name = own);
    if found.is_empty() {
        found.push(own);
    }
    found
}

/// The destinations of one VirtualService.
struct Targets<'v, 'a> {
    meta: &'v Meta,
    spec: &'v VirtualService,
    severity: Severity,
    /// Ports of its Gateways.
    ports: BTreeSet<u16>,
    seen_from: Vec<&'v str>,
    view: &'v View<'a>,
    names: &'v Names<'a>,
}

impl Targets<'_, '_> {
    fn all(&self, report: &mut Report<'_>) {
        let spec = self.spec;
        let list = Path::SPEC.key("http");
        for (at, rule) in spec.http.iter().enumerate() {
            let rule_path = list.index(at);
            let routes = rule_path.key("route");
            for (at, destination) in rule.route.iter().enumerate() {
                let item = routes.index(at);
                let outcome = "requests are answered with 503";
                self.one(&destination.target, &item.key("destination"), outcome, report);
            }
            let outcome = "no copies are sent";
            let mirrors = rule_path.key("mirrors");
            for (at, mirror) in rule.mirrors.iter().enumerate() {
                let item = mirrors.index(at);
                let path = if mirror.is_listed {
                    item.key("destination")
                } else {
                    rule_path.key("mirror")
                };
                self.one(&mirror.target, &path, outcome, report);
            }
        }
        for (name, rules) in [("tls", &spec.tls), ("tcp", &spec.tcp)] {
            let list = Path::SPEC.key(name);
            for (at, rule) in rules.iter().enumerate() {
                let rule_path = list.index(at);
                let routes = rule_path.key("route");
                for (at, destination) in rule.route.iter().enumerate() {
                    let item = routes.index(at);
                    let outcome = "connections are closed";
                    self.one(&destination.target, &item.key("destination"), outcome, report);
                }
            }
        }
    }

    fn one(&self, target: &Target, path: &Path<'_>, outcome: &str, report: &mut Report<'_>) {
        // What is not written has been told.
        if target.host.is_empty() {
            return;
        }
        let (meta, context) = (self.meta, self.view.context);
        let host = expand(&target.host, &meta.namespace);
        let service = context.registry.find(&host, &meta.namespace);
        match service {
            None => self.unknown_host(target, &host, path, outcome, report),
            Some(service) => {
                self.visible(service, path, report);
                self.port(service, target, path, outcome, report);
            }
        }
        if !target.subset.is_empty() {
            let namespace = service.map_or(meta.namespace.as_str(), |service| service.namespace);
            self.subset(target, &host, namespace, service.is_some(), path, outcome, report);
        }
    }

    fn unknown_host(
        &self,
        target: &Target,
        host: &str,
        path: &Path<'_>,
        outcome: &str,
        report: &mut Report<'_>,
    ) {
        let pattern = HostPattern::parse(host);
        if self.names.wildcards.overlapping(&pattern).is_some() || self.names.faulty_hosts.contains(host) {
            return;
        }
        let short = target.host.split('.').next().unwrap_or("");
        let known = self.names.short(self.view).get(self.meta.namespace.as_str());
        let help = known.and_then(|known| self.names.guess(short, known.iter().copied()));
        let document = || egress::service_entry(self.spec, target, &self.meta.namespace);
        let help = help.or_else(|| (self.severity == Severity::Warning).then(document).flatten());
        let message = format!("no service is named `{host}`: {outcome}");
        report.tell(Finding {
            help,
            absent: Some(host),
            ..Finding::new(
                self.severity,
                "unknown-host",
                &self.meta.origin,
                &path.key("host"),
                message,
            )
        });
    }

    /// Reports a service that the namespace from which the VirtualService is read does not see.
    fn visible(&self, service: &Service<'_>, path: &Path<'_>, report: &mut Report<'_>) {
        let hidden = self
            .seen_from
            .iter()
            .find(|namespace| !is_exported(service.export_to, service.namespace, namespace));
        let Some(namespace) = hidden else { return };
        let message = format!(
            "`{}` is not exported to `{namespace}`: a gateway there does not see it",
            service.host
        );
        let help = "say with --namespace where this gateway is, and only that counts".to_owned();
        report.tell(Finding {
            help: Some(help),
            ..Finding::new(
                Severity::Hint,
                "unknown-host",
                &self.meta.origin,
                &path.key("host"),
                message,
            )
        });
    }

    fn port(
        &self,
        service: &Service<'_>,
        target: &Target,
        path: &Path<'_>,
        outcome: &str,
        report: &mut Report<'_>,
    ) {
        let has = |port: u16| service.ports.iter().any(|candidate| candidate.number == port);
        let host = &service.host;
        let all = || {
            let numbers = service.ports.iter().map(|port| port.number.to_string());
            numbers.collect::<Vec<_>>().join(", ")
        };
        if let Some(port) = target.port.and_then(|port| u16::try_from(port).ok()) {
            // A service of any ports, or none: a ServiceEntry may say none.
            if !service.ports.is_empty() && !has(port) {
                let message = format!("`{host}` has no port {port}: {outcome}");
                let help = Some(format!("it has {}", all()));
                let port = path.key("port");
                report.add(
                    self.severity,
                    "unknown-port",
                    &self.meta.origin,
                    &port.key("number"),
                    message,
                    help,
                );
            }
            return;
        }
        if service.ports.len() < 2 {
            return;
        }
        let missing = self.ports.iter().find(|port| !has(**port));
        let (severity, message) = match missing {
            Some(port) => (
                self.severity,
                format!(
                    "`{host}` has several ports and not the Gateway's {port}, which is meant when none is named: {outcome}"
                ),
            ),
            None => (
                Severity::Hint,
                format!("`{host}` has several ports: that of the Gateway is meant when none is named"),
            ),
        };
        let help = Some(format!("name one of {} in `port.number`", all()));
        report.add(
            severity,
            "port-required",
            &self.meta.origin,
            &path.key("host"),
            message,
            help,
        );
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "they are one destination and what is known of it"
    )]
    fn subset(
        &self,
        target: &Target,
        host: &str,
        namespace: &str,
        has_service: bool,
        path: &Path<'_>,
        outcome: &str,
        report: &mut Report<'_>,
    ) {
        let rule = self.view.context.rules.find(host, namespace);
        if rule.is_some_and(|rule| rule.has_subset(&target.subset)) {
            return;
        }
        let written = (host.to_owned(), target.subset.as_str());
        // Without the service nothing is certain but a rule that is there and does not have it.
        if self.names.faulty_subsets.contains(&written) || (!has_service && rule.is_none()) {
            return;
        }
        let message = format!(
            "no DestinationRule gives `{host}` a subset `{}`: {outcome}",
            target.subset
        );
        let known = rule.map_or(&[][..], |rule| &rule.subsets[..]).iter();
        let help = self
            .names
            .guess(&target.subset, known.map(|subset| subset.name.as_str()));
        report.tell(Finding {
            help,
            absent: Some(&target.subset),
            ..Finding::new(
                self.severity,
                "unknown-subset",
                &self.meta.origin,
                &path.key("subset"),
                message,
            )
        });
    }
}

/// Reports a delegate that cannot be used, and rules of it that its root excludes.
fn check_delegate(rule: &HttpRoute, meta: &Meta, path: &Path<'_>, view: &View<'_>, report: &mut Report<'_>) {
    let context = view.context;
    let all = &view.resources.virtual_services;
    let Some(found) = delegate::find(rule, meta, &context.delegates, all, &context.options.mesh) else {
        return;
    };
    let path = path.key("delegate");
    let delegate = match found {
        Ok(delegate) => delegate,
        Err(broken) => {
            let name = rule
                .delegate
                .as_ref()
                .map_or("", |delegate| delegate.name.as_str());
            let refused = |id: &str| {
                view.resources
                    .refused
                    .contains(format!("VirtualService {id}").as_str())
            };
            let message = match broken {
                // What is wrong with it has been told.
                Broken::Missing { id } if refused(&id) => return,
                Broken::Missing { id } => format!("no VirtualService is named `{id}`: this rule is left out"),
                Broken::NotADelegate { id } => {
                    format!("the VirtualService `{id}` has hosts of its own: this rule is left out")
                }
                Broken::NotExported { id } => format!(
                    "the VirtualService `{id}` is not exported to `{}`: this rule is left out",
                    meta.namespace
                ),
            };
            return report.tell(Finding {
                absent: Some(name),
                ..Finding::new(
                    Severity::Warning,
                    "unknown-delegate",
                    &meta.origin,
                    &path.key("name"),
                    message,
                )
            });
        }
    };
    let rules = Path::SPEC.key("http");
    for (at, own) in delegate.spec.http.iter().enumerate() {
        if delegate::merge(rule, own).is_none() {
            let message = format!(
                "the rule of {} that delegates here excludes this one: it is left out there",
                name_of(meta)
            );
            let related = report.related(&meta.origin, &path, "delegates here");
            report.tell(Finding {
                related: vec![related],
                ..Finding::new(
                    Severity::Warning,
                    "delegate-conflict",
                    &delegate.meta.origin,
                    &rules.index(at),
                    message,
                )
            });
        }
    }
}
