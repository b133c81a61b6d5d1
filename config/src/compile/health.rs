//! Which HealthCheckPolicy a cluster's endpoints are checked by.

use super::Context;
use crate::Options;
use crate::index::expand;
use crate::registry::{Found, Port, Service};
use crate::resource::Written;
use crate::resource::destination_rule::Subset;
use crate::resource::health::HealthCheckPolicy;
use isthmus_core::name::{HostIndex, HostPattern};
use std::collections::HashMap;

/// The policies of one host in one namespace, in order of precedence.
type OfHost<'a> = Vec<&'a Written<HealthCheckPolicy>>;

/// All HealthCheckPolicies, as one client namespace sees them.
#[derive(Debug, Default)]
pub(crate) struct Checks<'a> {
    by_namespace: HashMap<&'a str, HostIndex<OfHost<'a>>>,
    client: &'a str,
    root: &'a str,
}

impl<'a> Checks<'a> {
    pub(crate) fn new(policies: &'a [Written<HealthCheckPolicy>], options: &'a Options) -> Self {
        let mut by_host: HashMap<(&str, HostPattern), OfHost<'_>> = HashMap::new();
        for written in policies {
            let namespace = written.meta.namespace.as_str();
            let pattern = HostPattern::parse(&expand(&written.spec.host, namespace));
            by_host.entry((namespace, pattern)).or_default().push(written);
        }
        let mut all = Self {
            client: &options.namespace,
            root: &options.mesh.root_namespace,
            ..Self::default()
        };
        for ((namespace, pattern), of_host) in by_host {
            let index = all.by_namespace.entry(namespace).or_default();
            // Each pattern is there once.
            let _none_before = index.insert(pattern, of_host);
        }
        all
    }

    /// The policy of a port of a service, or of a subset of it: of the gateway's namespace, else of the service's, else of
    /// the root's; there of the most specific host, and of that the one that names most of what it is for.
    pub(crate) fn find(
        &self,
        service: &Service<'_>,
        port: u16,
        subset: Option<&Subset>,
    ) -> Option<&'a Written<HealthCheckPolicy>> {
        let subset = subset.map_or("", |subset| subset.name.as_str());
        let namespaces = [self.client, service.namespace, self.root];
        namespaces.into_iter().find_map(|namespace| {
            let of_host = self.by_namespace.get(namespace)?.find(&service.host)?;
            let fits = |spec: &HealthCheckPolicy| {
                (spec.subset.is_empty() || spec.subset == subset) && spec.port.is_none_or(|own| own == port)
            };
            let fitting = of_host.iter().rev().filter(|written| fits(&written.spec));
            // The last of several that are equal, which is the oldest.
            let best =
                fitting.max_by_key(|written| (!written.spec.subset.is_empty(), written.spec.port.is_some()));
            best.copied()
        })
    }
}

/// What there is to say of a cluster's checks: the policy, and whether any of its endpoints is checked.
pub(super) fn of<'a>(
    service: &Service<'_>,
    port: &Port<'_>,
    subset: Option<&Subset>,
    context: &Context<'a>,
) -> (Option<&'a HealthCheckPolicy>, bool) {
    let found = context.checks.find(service, port.number, subset);
    let is_checked = |found: &Found| match found {
        Found::Address(endpoint) => endpoint.health.is_some(),
        Found::Name(named) => named.health.is_some(),
    };
    let of_groups = || port.endpoints.iter().any(|(_, endpoint)| is_checked(endpoint));
    (
        found.map(|written| &*written.spec),
        found.is_some() || of_groups(),
    )
}
