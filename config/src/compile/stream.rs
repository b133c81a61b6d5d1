//! Rules for whole connections: `tcp[]` and `tls[]` of one VirtualService at one gateway and port.

use super::Context;
use super::route::{Site, applies_here, cluster_key};
use crate::resource::virtual_service::{StreamMatch, StreamRoute, VirtualService};
use crate::resource::{Meta, Written};
use isthmus_core::listener::{TcpDestination, TcpRoute};
use std::sync::Arc;

/// A match of a `tls[]` rule that applies, and where it leads.
pub(crate) struct Passed<'a> {
    pub(crate) sni_hosts: &'a [String],
    pub(crate) route: Arc<TcpRoute>,
    /// Position in `spec.tls`.
    pub(crate) rule: usize,
    /// Position in its `match`.
    pub(crate) matched: usize,
}

/// The first `tcp[]` rule that applies, and its position in `spec.tcp`.
pub(crate) fn tcp(
    written: &Written<VirtualService>,
    site: &Site<'_>,
    context: &Context<'_>,
) -> Option<(Arc<TcpRoute>, usize)> {
    let meta = &written.meta;
    let (at, applied) = written.spec.tcp.iter().enumerate().find(|(_, rule)| {
        rule.matches.is_empty()
            || rule
                .matches
                .iter()
                .any(|matched| applies(matched, meta, site, context))
    })?;
    Some((route(applied, meta, site, context)?, at))
}

/// All matches of `tls[]` rules that apply, in order.
pub(crate) fn tls<'a>(
    written: &'a Written<VirtualService>,
    site: &Site<'_>,
    context: &Context<'_>,
) -> Vec<Passed<'a>> {
    let meta = &written.meta;
    let mut found = Vec::new();
    for (at, rule) in written.spec.tls.iter().enumerate() {
        let matches = rule.matches.iter().enumerate();
        for (matched_at, matched) in matches.filter(|(_, matched)| applies(matched, meta, site, context)) {
            if let Some(route) = route(rule, meta, site, context) {
                found.push(Passed {
                    sni_hosts: &matched.sni_hosts,
                    route,
                    rule: at,
                    matched: matched_at,
                });
            }
        }
    }
    found
}

fn applies(matched: &StreamMatch, meta: &Meta, site: &Site<'_>, context: &Context<'_>) -> bool {
    applies_here(
        &matched.gateways,
        matched.port,
        &matched.source_labels,
        &matched.source_namespace,
        meta,
        site,
        context,
    )
}

/// Where a rule leads: a single destination has everything, of several those without weight have nothing.
fn route(rule: &StreamRoute, meta: &Meta, site: &Site<'_>, context: &Context<'_>) -> Option<Arc<TcpRoute>> {
    let only = rule.route.len() == 1;
    let destinations = rule.route.iter().map(|destination| TcpDestination {
        cluster: cluster_key(&destination.target, &meta.namespace, site.port, context),
        weight: if only {
            1
        } else {
            u32::try_from(destination.weight).unwrap_or(u32::MAX)
        },
    });
    let destinations: Vec<TcpDestination> = destinations.filter(|one| one.weight > 0).collect();
    (!destinations.is_empty()).then(|| {
        Arc::new(TcpRoute {
            virtual_service: meta.id().into(),
            destinations,
        })
    })
}
