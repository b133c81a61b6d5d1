//! Rules for whole connections: `tcp[]` and `tls[]` of one VirtualService at one gateway and port. What they ask of clients
//! is asked of each connection; where no client can be known, of the gateway's own labels, as Istio does.

use super::Context;
use super::route::{Site, cluster_key, is_here};
use super::source::{self, Asks};
use crate::resource::virtual_service::{StreamMatch, StreamRoute, VirtualService};
use crate::resource::{Meta, Written};
use isthmus_core::listener::{Chain, ChainAction, TcpDestination, TcpRoute};
use isthmus_core::name::HostPattern;
use std::collections::HashMap;
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
    here.map(|matched| asks_of(matched, context)).collect()
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
        let here = matches.filter(|(_, matched)| is_here(&matched.gateways, matched.port, meta, site));
        for (matched_at, matched) in here {
            let source = match asks_of(matched, context) {
                Asks::Nothing => None,
                Asks::For(source) => Some(source),
                Asks::TooMuch => continue,
            };
            if let Some(route) = route(rule, meta, site, context) {
                found.push(Passed {
                    sni_hosts: &matched.sni_hosts,
                    route: Arc::new(TcpRoute { source, ..route }),
                    rule: at,
                    matched: matched_at,
                });
            }
        }
    }
    found
}

fn asks_of(matched: &StreamMatch, context: &Context<'_>) -> Asks {
    source::asks(
        &matched.source_labels,
        &matched.source_namespace,
        matched.source_subnet,
        &context.clients,
        context.options,
    )
}

/// Where the names of one port lead whose TLS passes through.
#[derive(Debug, Default)]
pub(crate) struct Passing {
    /// The chain of each name whose rules so far are for some clients only.
    open: HashMap<HostPattern, usize>,
}

impl Passing {
    /// Notes that a name's chain is for some clients only.
    pub(crate) fn open(&mut self, name: &HostPattern, chain: usize) {
        self.open.insert(name.clone(), chain);
    }

    /// Adds a route behind those of a name that are for other clients; false when nobody is left for it.
    pub(crate) fn continued(&mut self, name: &HostPattern, route: &TcpRoute, chains: &mut [Chain]) -> bool {
        let Some(at) = self.open.get(name) else {
            return false;
        };
        append(chains, *at, route);
        if route.source.is_none() {
            self.open.remove(name);
        }
        true
    }

    /// Lets clients that none of a name's rules is for go where the names that cover it lead, the longest first.
    pub(crate) fn close(&mut self, names: &[(HostPattern, usize)], chains: &mut [Chain]) {
        for (name, at) in std::mem::take(&mut self.open) {
            let mut covering: Vec<&(HostPattern, usize)> = names
                .iter()
                .filter(|(other, _)| *other != name && name.subset_of(other))
                .collect();
            covering.sort_by_key(|(other, _)| std::cmp::Reverse(other.to_string().len()));
            for (_, chain) in covering {
                let Some(ChainAction::Pass(route)) = chains.get(*chain).map(|chain| &chain.action) else {
                    break;
                };
                let routes: Vec<TcpRoute> = route
                    .each()
                    .map(|route| TcpRoute {
                        others: Vec::new(),
                        ..route.clone()
                    })
                    .collect();
                let is_for_all = routes.iter().any(|route| route.source.is_none());
                routes.iter().for_each(|route| append(chains, at, route));
                if is_for_all {
                    break;
                }
            }
        }
    }
}

fn append(chains: &mut [Chain], at: usize, route: &TcpRoute) {
    if let Some(ChainAction::Pass(first)) = chains.get_mut(at).map(|chain| &mut chain.action) {
        Arc::make_mut(first).others.push(route.clone());
    }
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
