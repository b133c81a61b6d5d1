//! DestinationRules: whom they concern, and which of several counts.

use super::View;
use crate::diagnostic::Severity;
use crate::index::{expand, name_of};
use crate::report::{Finding, Report};
use crate::resource::Written;
use crate::resource::destination_rule::DestinationRule;
use crate::yaml::Path;
use isthmus_core::name::HostPattern;
use std::collections::HashMap;

/// Reports rules for hosts that no service has, and those that share a host.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    let mut first: HashMap<(&str, String), &Written<DestinationRule>> = HashMap::new();
    for written in &view.resources.destination_rules {
        let Written { meta, spec } = written;
        let host = expand(&spec.host, &meta.namespace);
        let path = Path::SPEC;
        let path = path.key("host");
        if !concerns_a_service(view, &host, &meta.namespace) {
            let message = format!("no service is named `{host}`: this rule concerns nothing");
            report.warn("unknown-rule-host", &meta.origin, &path, message);
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

/// Whether a rule for a host, as its namespace wrote it, is about any service.
fn concerns_a_service(view: &View<'_>, host: &str, namespace: &str) -> bool {
    let registry = &view.context.registry;
    match HostPattern::parse(host) {
        HostPattern::Exact(name) => registry.find(&name, namespace).is_some(),
        pattern => registry
            .services()
            .iter()
            .any(|service| pattern.overlaps(&HostPattern::parse(&service.host))),
    }
}
