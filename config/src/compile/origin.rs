//! Where what clusters do was written: the services that they are of, and the policies that apply.

use super::Context;
use crate::origins::ClusterOrigin;
use isthmus_core::name::{ClusterKey, ClusterMap};
use isthmus_core::protocol::Protocol;

/// The origins of all clusters, which are those that `cluster` compiles.
pub(crate) fn clusters(context: &Context<'_>) -> ClusterMap<ClusterOrigin> {
    let mut origins = ClusterMap::default();
    for service in context.registry.services() {
        let rule = context.rules.find(&service.host, service.namespace);
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            let subsets = rule.map_or(&[][..], |rule| &rule.subsets[..]).iter();
            for subset in std::iter::once(None).chain(subsets.map(|subset| Some(*subset))) {
                let name = subset.map_or("", |subset| &subset.name);
                let key = ClusterKey::outbound(port.number, name, &service.host);
                origins.entry(key).or_insert_with(|| ClusterOrigin {
                    services: service.origins.iter().map(|origin| (*origin).clone()).collect(),
                    policies: rule.map_or_else(Vec::new, |rule| rule.places(port.number, subset)),
                    health: context
                        .checks
                        .find(service, port.number, subset)
                        .map(|written| written.meta.origin.clone()),
                });
            }
        }
    }
    origins
}
