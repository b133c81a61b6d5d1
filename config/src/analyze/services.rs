//! Services: those that have nobody to send requests to, those that contradict each other, and ports that do not say
//! what they speak.

use super::View;
use crate::diagnostic::Severity;
use crate::index::{export_to, name_of, selects};
use crate::report::{Finding, Report};
use crate::resource::Written;
use crate::resource::kubernetes::Service;
use crate::resource::service_entry::{Resolution, ServiceEntry};
use crate::yaml::Path;
use isthmus_core::protocol::Protocol;
use std::collections::{BTreeMap, HashMap};

/// Reports what is to be said of Services and ServiceEntries.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    endpoints(view, report);
    contradictions(view, report);
    for written in &view.resources.services {
        kubernetes(written, report);
    }
}

/// Labels of a workload.
type Labels<'a> = &'a BTreeMap<String, String>;

/// Reports services of fixed addresses that have none.
fn endpoints(view: &View<'_>, report: &mut Report<'_>) {
    let resources = view.resources;
    let mut by_label: HashMap<(&str, &str, &str), Vec<Labels<'_>>> = HashMap::new();
    let mut namespaces: HashMap<&str, usize> = HashMap::new();
    let entries = resources.workload_entries.iter();
    let entries = entries.map(|written| (&written.meta, &written.spec.labels));
    let pods = resources.workloads.iter();
    let pods = pods.map(|written| (&written.meta, &written.spec.labels));
    for (meta, labels) in entries.chain(pods) {
        *namespaces.entry(meta.namespace.as_str()).or_default() += 1;
        for (key, value) in labels {
            let list = by_label.entry((meta.namespace.as_str(), key, value)).or_default();
            list.push(labels);
        }
    }
    for Written { meta, spec } in &resources.service_entries {
        if let Some(selector) = &spec.selector {
            let any = match selector.iter().next() {
                None => namespaces.contains_key(meta.namespace.as_str()),
                Some((key, value)) => by_label
                    .get(&(meta.namespace.as_str(), key.as_str(), value.as_str()))
                    .is_some_and(|all| all.iter().any(|labels| selects(selector, labels))),
            };
            if !any {
                let message =
                    "no WorkloadEntry of this namespace has these labels: this service has no endpoints";
                let path = Path::SPEC.key("workloadSelector");
                report.tell(Finding {
                    help: Some("requests for it are answered with 503".to_owned()),
                    ..Finding::new(Severity::Warning, "no-endpoints", &meta.origin, &path, message)
                });
            }
        } else if spec.resolution == Resolution::Static && spec.endpoints.is_empty() {
            let message =
                "resolution STATIC without endpoints: requests for this service are answered with 503";
            let path = Path::SPEC.key("resolution");
            let help = Some("write `endpoints`, or a `workloadSelector`".to_owned());
            report.add(
                Severity::Warning,
                "no-endpoints",
                &meta.origin,
                &path,
                message,
                help,
            );
        }
    }
}

/// Where a port of a host was first described.
#[derive(Clone, Copy)]
struct First<'a> {
    written: &'a Written<ServiceEntry>,
    port: usize,
    protocol: Protocol,
}

/// Reports ServiceEntries that say different protocols of one port of one host, where somebody sees both.
fn contradictions(view: &View<'_>, report: &mut Report<'_>) {
    let default = &view.context.options.mesh.service_export_to;
    // By audience: a namespace, `*` for those that all see, and nothing for those that any sees.
    let mut seen: HashMap<(&str, String, i128), First<'_>> = HashMap::new();
    for written in &view.resources.service_entries {
        let Written { meta, spec } = written;
        let shown_to = export_to(&spec.export_to, default);
        let everywhere = shown_to.is_empty() || shown_to.iter().any(|name| name == "*");
        let named = shown_to.iter().filter(|name| !matches!(name.as_str(), "~" | "*"));
        let named = named.map(|name| {
            if name == "." {
                meta.namespace.as_str()
            } else {
                name.as_str()
            }
        });
        let audiences: Vec<&str> = if everywhere { vec!["*"] } else { named.collect() };
        let list = Path::SPEC.key("ports");
        for host in &spec.hosts {
            let host = host.to_ascii_lowercase();
            for (at, port) in spec.ports.iter().enumerate() {
                let protocol = Protocol::parse(&port.protocol);
                let key = |audience| (audience, host.clone(), port.number);
                let of_all = seen.get(&key("*"));
                let of_any = everywhere.then(|| seen.get(&key(""))).flatten();
                let own = audiences.iter().find_map(|audience| seen.get(&key(*audience)));
                let first = of_all.or(of_any).or(own).copied();
                let here = First {
                    written,
                    port: at,
                    protocol,
                };
                for audience in audiences.iter().copied().chain([""]) {
                    seen.entry(key(audience)).or_insert(here);
                }
                let Some(first) = first.filter(|first| first.protocol != protocol) else {
                    continue;
                };
                let first_path = list.index(first.port);
                let related = report.related(
                    &first.written.meta.origin,
                    &first_path.key("protocol"),
                    "counts, because it comes first",
                );
                let message = format!(
                    "port {} of `{host}` speaks another protocol in {}",
                    port.number,
                    name_of(&first.written.meta)
                );
                let item = list.index(at);
                report.tell(Finding {
                    help: Some("describe a port of a host once".to_owned()),
                    related: vec![related],
                    ..Finding::new(
                        Severity::Warning,
                        "protocol-conflict",
                        &meta.origin,
                        &item.key("protocol"),
                        message,
                    )
                });
            }
        }
    }
}

/// Namespaces of what keeps a cluster and its mesh going.
const SYSTEM: [&str; 3] = ["istio-system", "kube-public", "kube-system"];

/// Hints at Services that are not what they seem.
fn kubernetes(written: &Written<Service>, report: &mut Report<'_>) {
    let Written { meta, spec } = written;
    if spec.is_external_name {
        let message = "names outside of the cluster are not looked up yet: this service has no endpoints";
        let path = Path::SPEC.key("type");
        return report.warn("not-executed", &meta.origin, &path, message);
    }
    if SYSTEM.contains(&meta.namespace.as_str()) {
        return;
    }
    let list = Path::SPEC.key("ports");
    for (at, port) in spec.ports.iter().enumerate() {
        let protocol = Protocol::of_service_port(&port.name, &port.app_protocol, &port.transport);
        if protocol != Protocol::Unsupported || !port.app_protocol.is_empty() {
            continue;
        }
        let message = format!(
            "the name of port {} says no protocol: HTTP/1.1 is spoken to it",
            port.number
        );
        let help = "begin the name with a protocol, as in `http-web` or `grpc`, or write `appProtocol`";
        report.add(
            Severity::Hint,
            "port-name",
            &meta.origin,
            &list.index(at),
            message,
            Some(help.to_owned()),
        );
    }
}
