//! Health checks: policies that concern nothing, and what waits in vain for somebody to find out who is ill.

use super::View;
use crate::diagnostic::Severity;
use crate::index::{expand, name_of};
use crate::registry::Service;
use crate::report::{Finding, Report};
use crate::resource::Written;
use crate::resource::destination_rule::{Blocks, DestinationRule, TrafficPolicy};
use crate::resource::health::HealthCheckPolicy;
use crate::yaml::Path;
use isthmus_core::name::HostPattern;
use std::borrow::Cow;
use std::collections::HashMap;

/// What a policy is for: its namespace, and the host, the subset and the port that it names.
type Subject<'a> = (&'a str, Cow<'a, str>, &'a str, Option<u16>);

/// Reports what is to be said of health checks.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    let services = view.context.registry.services();
    let mut first: HashMap<Subject<'_>, &Written<HealthCheckPolicy>> = HashMap::new();
    for written in &view.resources.health_check_policies {
        let Written { meta, spec } = written;
        let host = expand(&spec.host, &meta.namespace);
        let pattern = HostPattern::parse(&host);
        let of_host: Vec<&Service<'_>> = services
            .iter()
            .filter(|service| pattern.matches(&service.host))
            .collect();
        concerned(view, written, &host, &of_host, report);
        let key = (meta.namespace.as_str(), host, spec.subset.as_str(), spec.port);
        let path = Path::SPEC;
        let path = path.key("host");
        if let Some(older) = first.get(&key) {
            let related = report.related(&older.meta.origin, &path, "the older policy");
            let message = format!(
                "{} is for the same: this one counts nowhere",
                name_of(&older.meta)
            );
            report.tell(Finding {
                related: vec![related],
                ..Finding::new(Severity::Warning, "no-effect", &meta.origin, &path, message)
            });
            continue;
        }
        first.insert(key, written);
    }
    for written in &view.resources.destination_rules {
        failover(view, written, report);
    }
}

/// Reports a policy for what there is not.
fn concerned(
    view: &View<'_>,
    written: &Written<HealthCheckPolicy>,
    host: &str,
    services: &[&Service<'_>],
    report: &mut Report<'_>,
) {
    let Written { meta, spec } = written;
    if services.is_empty() {
        let path = Path::SPEC;
        let path = path.key("host");
        let message = format!("no service is named `{host}`: this policy concerns nothing");
        return report.tell(Finding {
            absent: Some(host.trim_start_matches("*.")),
            ..Finding::new(Severity::Warning, "unknown-host", &meta.origin, &path, message)
        });
    }
    if let Some(port) = spec.port {
        let has_port = |service: &&Service<'_>| service.ports.iter().any(|known| known.number == port);
        if !services.iter().any(has_port) {
            let message = format!("`{host}` has no port {port}: this policy concerns nothing");
            report.warn("unknown-port", &meta.origin, &Path::SPEC.key("port"), message);
        }
    }
    let has_subset = |service: &&Service<'_>| {
        let rule = view.context.rules.find(&service.host, service.namespace);
        rule.is_some_and(|rule| rule.has_subset(&spec.subset))
    };
    if !spec.subset.is_empty() && !services.iter().any(has_subset) {
        let message = format!("no DestinationRule of `{host}` has a subset `{}`", spec.subset);
        report.warn("unknown-subset", &meta.origin, &Path::SPEC.key("subset"), message);
    }
}

/// Reports a wish to fail over where nothing finds out that there is a reason to.
fn failover(view: &View<'_>, written: &Written<DestinationRule>, report: &mut Report<'_>) {
    let Written { meta, spec } = written;
    let mut found = Vec::new();
    let mut add = |blocks: &Blocks, outlier: bool, place: (Option<usize>, Option<usize>)| {
        let setting = blocks
            .load_balancer
            .as_ref()
            .and_then(|balancer| balancer.locality.as_ref());
        let asks = setting.is_some_and(|setting| {
            setting.is_on() && !(setting.failover.is_empty() && setting.failover_priority.is_empty())
        });
        if asks && !outlier && !blocks.has_outlier_detection {
            found.push(place);
        }
    };
    let above = spec.policy.as_ref();
    let above = above.is_some_and(|policy| policy.blocks.has_outlier_detection);
    let subsets = spec.subsets.iter().enumerate();
    let subsets = subsets.filter_map(|(at, subset)| Some((Some(at), subset.policy.as_deref()?)));
    let whole = spec.policy.as_deref().map(|policy| (None, policy)).into_iter();
    for (subset, policy) in whole.chain(subsets) {
        let TrafficPolicy { blocks, ports, .. } = policy;
        add(blocks, above && subset.is_some(), (subset, None));
        for (at, (_, blocks)) in ports.iter().enumerate() {
            add(blocks, false, (subset, Some(at)));
        }
    }
    if found.is_empty() {
        return;
    }
    let pattern = HostPattern::parse(&expand(&spec.host, &meta.namespace));
    let mut clusters = view.snapshot.clusters.values();
    if clusters.any(|cluster| pattern.matches(cluster.key.host()) && cluster.is_checked()) {
        return;
    }
    for (subset, port) in found {
        let subsets = Path::SPEC.key("subsets");
        let outer = subset.map_or(Path::SPEC, |at| subsets.index(at));
        let policy = outer.key("trafficPolicy");
        let ports = policy.key("portLevelSettings");
        let inner = port.map(|at| ports.index(at));
        let balancer = inner.as_ref().unwrap_or(&policy).key("loadBalancer");
        let message = "nothing fails over without `outlierDetection` or a HealthCheckPolicy, which find out who does not answer";
        report.warn(
            "no-effect",
            &meta.origin,
            &balancer.key("localityLbSetting"),
            message,
        );
    }
}
