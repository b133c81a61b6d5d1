//! DestinationRules: whom they concern, which of several counts, and what nothing reaches.

use super::View;
use super::hosts::HostSet;
use crate::diagnostic::Severity;
use crate::index::{expand, name_of, selects};
use crate::registry::Service;
use crate::report::{Finding, Report};
use crate::resource::Written;
use crate::resource::destination_rule::{Blocks, DestinationRule, Subset};
use crate::yaml::Path;
use isthmus_core::name::HostPattern;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Labels that say where a node is: they are not among a workload's own.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/", "topology.istio.io/"];

/// Reports what is to be said of DestinationRules.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    let policies = Policies::new(view);
    let mut first: HashMap<(&str, Cow<'_, str>), &Written<DestinationRule>> = HashMap::new();
    let resources = view.resources;
    let faulty = &resources.faulty.destination_rules;
    for (at, written) in resources.destination_rules.iter().chain(faulty).enumerate() {
        let Written { meta, spec } = written;
        let host = expand(&spec.host, &meta.namespace);
        let path = Path::SPEC;
        let path = path.key("host");
        verification(written, report);
        if !spec.host.is_empty() {
            policies.concerned(written, &host, report);
        }
        if at >= resources.destination_rules.len() {
            continue;
        }
        // Rules with a selector are apart from the others.
        if spec.workload_selector.is_some() {
            continue;
        }
        let key = (meta.namespace.as_str(), host);
        let Some(older) = first.get(&key) else {
            first.insert(key, written);
            continue;
        };
        let (_, host) = key;
        let related = report.related(&older.meta.origin, &path, "the older rule");
        let message = format!(
            "`{host}` already has a rule, {}: of what both say, the older counts",
            name_of(&older.meta)
        );
        report.tell(Finding {
            help: Some("make them one DestinationRule".to_owned()),
            related: vec![related],
            ..Finding::new(
                Severity::Warning,
                "shared-rule-host",
                &meta.origin,
                &path,
                message,
            )
        });
    }
}

/// Reports subsets with a policy of their own that no route names.
pub(crate) fn unreached(view: &View<'_>, report: &mut Report<'_>) {
    let rules = view.resources.destination_rules.iter();
    let mut rules = rules
        .filter(|written| written.spec.subsets.iter().any(|subset| subset.policy.is_some()))
        .peekable();
    if rules.peek().is_none() {
        return;
    }
    let mut named = HashSet::new();
    for Written { meta, spec } in view.virtual_services() {
        let http = spec.http.iter();
        let requests = http.clone().flat_map(|rule| &rule.route);
        let requests = requests.map(|destination| &destination.target);
        let copies = http.flat_map(|rule| rule.mirrors.iter().map(|mirror| &mirror.target));
        let streams = spec.tls.iter().chain(&spec.tcp).flat_map(|rule| &rule.route);
        let streams = streams.map(|destination| &destination.target);
        for target in requests.chain(copies).chain(streams) {
            if !target.subset.is_empty() {
                named.insert((expand(&target.host, &meta.namespace), target.subset.as_str()));
            }
        }
    }
    let list = Path::SPEC.key("subsets");
    for Written { meta, spec } in rules {
        let host = expand(&spec.host, &meta.namespace);
        // The services of a wildcard are named by their own hosts.
        if host.starts_with('*') {
            continue;
        }
        for (at, subset) in spec.subsets.iter().enumerate() {
            if subset.policy.is_none() || named.contains(&(host.clone(), subset.name.as_str())) {
                continue;
            }
            let message = format!(
                "no route names the subset `{}`: its policy is applied to no request",
                subset.name
            );
            let help = "a subset's policy counts for what is routed to that subset; for all of the service, write it in \
                        spec.trafficPolicy";
            let item = list.index(at);
            report.add(
                Severity::Warning,
                "unreached-subset",
                &meta.origin,
                &item.key("trafficPolicy"),
                message,
                Some(help.to_owned()),
            );
        }
    }
}

/// What rules are held against.
struct Policies<'v, 'a> {
    view: &'v View<'a>,
    /// Hosts of all services.
    hosts: HostSet<()>,
    /// Hosts of services that are left out for their errors.
    faulty: HashSet<String>,
    /// Labels of workloads, by namespace.
    workloads: HashMap<&'a str, Vec<&'a BTreeMap<String, String>>>,
    /// Selectors of Services by host.
    selectors: HashMap<Cow<'a, str>, &'a BTreeMap<String, String>>,
}

impl<'v, 'a> Policies<'v, 'a> {
    fn new(view: &'v View<'a>) -> Self {
        let resources = view.resources;
        let mut hosts = HostSet::default();
        for service in view.context.registry.services() {
            hosts.insert(&HostPattern::parse(&service.host), ());
        }
        let mut workloads: HashMap<&str, Vec<_>> = HashMap::new();
        for Written { meta, spec } in &resources.workloads {
            let list = workloads.entry(meta.namespace.as_str()).or_default();
            list.push(&spec.labels);
        }
        let services = resources.services.iter();
        let selectors = services.map(|written| {
            let host = expand(&written.meta.name, &written.meta.namespace);
            (host, &written.spec.selector)
        });
        let faulty = resources.faulty.service_entries.iter();
        let faulty = faulty.flat_map(|written| &written.spec.hosts);
        Self {
            view,
            hosts,
            faulty: faulty.map(|host| host.to_ascii_lowercase()).collect(),
            workloads,
            selectors: selectors.collect(),
        }
    }

    /// Reports a rule for a host that no service has, and subsets that select none of its endpoints.
    fn concerned(&self, written: &Written<DestinationRule>, host: &str, report: &mut Report<'_>) {
        let Written { meta, spec } = written;
        let pattern = HostPattern::parse(host);
        if self.hosts.overlapping(&pattern).is_none() {
            if self.faulty.contains(host) {
                return;
            }
            let message = format!("no service is named `{host}`: this rule concerns nothing");
            return report.tell(Finding {
                absent: Some(host.trim_start_matches("*.")),
                ..Finding::new(
                    Severity::Warning,
                    "unknown-rule-host",
                    &meta.origin,
                    &Path::SPEC.key("host"),
                    message,
                )
            });
        }
        // What a wildcard's services have is not looked at.
        let HostPattern::Exact(_) = pattern else { return };
        let Some(service) = self.view.context.registry.find(host, &meta.namespace) else {
            return;
        };
        let list = Path::SPEC.key("subsets");
        for (at, subset) in spec.subsets.iter().enumerate() {
            let (severity, message) = match self.selection(service, subset) {
                Selection::Some => continue,
                Selection::None => (
                    Severity::Warning,
                    format!(
                        "the labels of subset `{}` select no endpoint of `{host}`",
                        subset.name
                    ),
                ),
                Selection::Nothing => (
                    Severity::Hint,
                    format!(
                        "`{host}` has no endpoints among the documents: subset `{}` selects none",
                        subset.name
                    ),
                ),
            };
            let item = list.index(at);
            report.add(
                severity,
                "subset-selects-nothing",
                &meta.origin,
                &item.key("labels"),
                message,
                Some("requests for it are answered with 503".to_owned()),
            );
        }
    }

    fn selection(&self, service: &Service<'_>, subset: &Subset) -> Selection {
        let endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
        let mut labels = endpoints.map(|(labels, _)| *labels).peekable();
        if labels.peek().is_some() {
            let any = labels.any(|labels| selects(&subset.labels, labels));
            return if any { Selection::Some } else { Selection::None };
        }
        let selector = self.selectors.get(service.host.as_str());
        let workloads = self
            .workloads
            .get(service.namespace)
            .map_or(&[][..], Vec::as_slice);
        let mut any = false;
        // Where a node is, its Pods' labels do not say.
        let wanted = subset.labels.iter().filter(|(key, value)| {
            value.is_empty() || !TOPOLOGY.iter().any(|domain| key.starts_with(domain))
        });
        let wanted: Vec<_> = wanted.collect();
        for labels in workloads {
            if !selector.is_some_and(|selector| !selector.is_empty() && selects(selector, labels)) {
                continue;
            }
            any = true;
            if wanted.iter().all(|(key, value)| labels.get(*key) == Some(*value)) {
                return Selection::Some;
            }
        }
        if any { Selection::None } else { Selection::Nothing }
    }
}

/// How much of a service a subset selects.
enum Selection {
    Some,
    /// Of what there is, none.
    None,
    /// There is nothing to select from.
    Nothing,
}

/// Hints at upstreams whose certificate is verified otherwise than by Istio's proxies.
fn verification(written: &Written<DestinationRule>, report: &mut Report<'_>) {
    let Some(policy) = &written.spec.policy else {
        return;
    };
    let path = Path::SPEC.key("trafficPolicy");
    unnamed_authority(&policy.blocks, "no-verification", written, &path, report);
    let list = path.key("portLevelSettings");
    for (at, (_, blocks)) in policy.ports.iter().enumerate() {
        unnamed_authority(blocks, "no-port-verification", written, &list.index(at), report);
    }
}

fn unnamed_authority(
    blocks: &Blocks,
    name: &'static str,
    written: &Written<DestinationRule>,
    path: &Path<'_>,
    report: &mut Report<'_>,
) {
    let Some(tls) = &blocks.tls else { return };
    let has_authority = !tls.ca_certificates.is_empty() || !tls.credential_name.is_empty();
    if !matches!(tls.mode.as_str(), "SIMPLE" | "MUTUAL") || has_authority || tls.insecure_skip_verify {
        return;
    }
    let message = "without `caCertificates` the server's certificate is verified by the system's authorities";
    let help =
        "Istio's proxies do not verify it at all; name the authority in `caCertificates` for both to do so";
    report.add(
        Severity::Hint,
        name,
        &written.meta.origin,
        &path.key("tls"),
        message,
        Some(help.to_owned()),
    );
}
