//! Sources: which workloads clients can be, and what matches ask of them.
//!
//! WorkloadEntries and EndpointSlices say what is behind an address. Endpoints inside of a ServiceEntry say it of their
//! account only: their addresses are places that requests go to, and nothing says that requests come from them. Istio compares `sourceLabels` and
//! `sourceNamespace` with the labels of the proxy when it compiles; so it is here where no client can be known.

use crate::Options;
use crate::index::selects;
use crate::resource::gateway::ServerTls;
use crate::resource::{Resources, Written};
use ipnet::IpNet;
use isthmus_core::source::{SourceMatch, Sources, Workload};
use std::collections::BTreeMap;

/// Which clients can be known.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// By address and account.
    pub(crate) sources: Sources,
    /// Some may show a certificate, which says who they are.
    pub(crate) identified: bool,
}

impl Clients {
    pub(crate) fn new(resources: &Resources, options: &Options) -> Self {
        let mut sources = Sources::default();
        sources.trust(&options.mesh.trust_domains);
        for Written { meta, spec } in &resources.workload_entries {
            let workload = Workload {
                namespace: meta.namespace.as_str().into(),
                name: meta.name.as_str().into(),
                labels: owned(&spec.labels),
                service_account: spec.service_account.as_str().into(),
            };
            sources.add(&workload, spec.ip().into_iter());
        }
        for Written { meta, spec } in &resources.service_entries {
            let named = spec
                .endpoints
                .iter()
                .filter(|endpoint| !endpoint.service_account.is_empty());
            for endpoint in named {
                let workload = Workload {
                    namespace: meta.namespace.as_str().into(),
                    name: meta.name.as_str().into(),
                    labels: owned(&endpoint.labels),
                    service_account: endpoint.service_account.as_str().into(),
                };
                sources.add(&workload, std::iter::empty());
            }
        }
        for Written { meta, spec } in &resources.endpoint_slices {
            let workload = Workload {
                namespace: meta.namespace.as_str().into(),
                name: spec.service.as_str().into(),
                labels: owned(&spec.labels),
                service_account: "".into(),
            };
            sources.add(&workload, spec.addresses.iter().copied());
        }
        let mut servers = resources
            .gateways
            .iter()
            .flat_map(|gateway| &gateway.spec.servers);
        Self {
            sources,
            identified: servers.any(|server| server.tls.as_ref().is_some_and(asks_for_certificate)),
        }
    }

    /// Whether any client can be known.
    pub(crate) fn are_known(&self) -> bool {
        self.identified || !self.sources.is_empty()
    }

    /// Whether a client may be known that has these labels and is in this namespace.
    pub(crate) fn may_meet(&self, wanted: &SourceMatch) -> bool {
        let meets = |workload: &Workload| {
            let mut labels = wanted.labels.iter();
            (wanted.namespace.is_empty() || wanted.namespace == workload.namespace)
                && labels.all(|(key, value)| workload.labels.get(key) == Some(value))
        };
        let by_certificate = self.identified && wanted.labels.is_empty();
        by_certificate || self.sources.workloads().any(meets)
    }
}

fn asks_for_certificate(tls: &ServerTls) -> bool {
    let mode = tls.mode.as_deref().unwrap_or("");
    matches!(mode, "MUTUAL" | "OPTIONAL_MUTUAL" | "ISTIO_MUTUAL")
}

fn owned(labels: &BTreeMap<String, String>) -> BTreeMap<Box<str>, Box<str>> {
    let all = labels.iter();
    all.map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect()
}

/// What a match asks of clients.
pub(crate) enum Asks {
    /// Nothing, or what holds for all of them.
    Nothing,
    /// Something that none of them can have.
    TooMuch,
    /// This.
    For(Box<SourceMatch>),
}

/// What `sourceLabels`, `sourceNamespace` and `sourceSubnet` ask of clients.
pub(crate) fn asks(
    labels: &BTreeMap<String, String>,
    namespace: &str,
    subnet: Option<IpNet>,
    clients: &Clients,
    options: &Options,
) -> Asks {
    if labels.is_empty() && namespace.is_empty() && subnet.is_none() {
        return Asks::Nothing;
    }
    let is_own = selects(labels, &options.labels) && (namespace.is_empty() || namespace == options.namespace);
    let wanted = SourceMatch {
        labels: owned(labels),
        namespace: namespace.into(),
        subnet,
        is_own,
    };
    if !clients.are_known() && subnet.is_none() {
        return if is_own { Asks::Nothing } else { Asks::TooMuch };
    }
    if !is_own && !clients.may_meet(&wanted) {
        return Asks::TooMuch;
    }
    Asks::For(Box::new(wanted))
}
