//! Rules for whole connections: `tcp[]` and `tls[]` of one VirtualService at one gateway and port. What `tcp[]` asks of
//! clients is asked of each connection; what `tls[]` asks of them, of the gateway's own labels, as Istio does.

use super::Context;
use super::route::{Site, applies_here, cluster_key, is_here};
use super::source::{self, Asks};
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

/// The first `tcp[]` rule that applies, with those behind it for clients that it is not for; its position in `spec.tcp`,
/// and whether no client is left.
pub(crate) fn tcp(
    written: &Written<VirtualService>,
    site: &Site<'_>,
    context: &Context<'_>,
) -> Option<(TcpRoute, usize, bool)> {
    let meta = &written.meta;
    let mut found: Option<(TcpRoute, usize, bool)> = None;
    'rules: for (at, rule) in written.spec.tcp.iter().enumerate() {
        for asks in asked(rule, meta, site, context) {
            let source = match asks {
                Asks::Nothing => None,
                Asks::For(source) => Some(source),
                Asks::TooMuch => continue,
            };
            let is_last = source.is_none();
            if let Some(one) = route(rule, meta, site, context) {
                let one = TcpRoute { source, ..one };
                match &mut found {
                    Some((first, _, is_for_all)) => {
                        first.others.push(one);
                        *is_for_all = is_last;
                    }
                    None => found = Some((one, at, is_last)),
                }
            }
            if is_last {
                break 'rules;
            }
        }
    }
    found
}

/// What the matches of a rule that apply here ask of clients.
fn asked(rule: &StreamRoute, meta: &Meta, site: &Site<'_>, context: &Context<'_>) -> Vec<Asks> {
    if rule.matches.is_empty() {
        return vec![Asks::Nothing];
    }
    let here = rule
        .matches
        .iter()
        .filter(|matched| is_here(&matched.gateways, matched.port, meta, site));
    let asks = here.map(|matched| {
        source::asks(
            &matched.source_labels,
            &matched.source_namespace,
            matched.source_subnet,
            &context.clients,
            context.options,
        )
    });
    asks.collect()
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
                    route: Arc::new(route),
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
fn route(rule: &StreamRoute, meta: &Meta, site: &Site<'_>, context: &Context<'_>) -> Option<TcpRoute> {
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
    (!destinations.is_empty()).then(|| TcpRoute {
        virtual_service: meta.id().into(),
        destinations,
        source: None,
        others: Vec::new(),
    })
}
