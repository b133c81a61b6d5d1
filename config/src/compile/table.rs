//! A table of virtual hosts that is being put together: which parts the routes of each host are, in which order.
//!
//! A part is the rules of one VirtualService at one site. It is compiled when a virtual host needs it that was not known
//! before ([`Memo`]).

use super::Context;
use super::memo::{Fingerprint, Memo, Numbers};
use super::route::{Site, is_catch_all};
use crate::origins::RouteOrigin;
use crate::resource::Resources;
use foldhash::fast::FixedState;
use isthmus_core::name::HostPattern;
use isthmus_core::route::{Route, RouteTable, VirtualHost};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A virtual host that is being put together.
#[derive(Default)]
pub(super) struct HostParts {
    pub(super) https_redirect: bool,
    /// Which routes, by position in [`Table::routes`].
    pub(super) parts: Vec<usize>,
    /// The VirtualService of the first of them.
    pub(super) first: Option<usize>,
}

/// A virtual host whose parts are known.
struct HostDraft {
    domains: Vec<HostPattern>,
    https_redirect: bool,
    parts: Vec<usize>,
}

/// Routes of one VirtualService at one Gateway, or of a service that none routes.
pub(super) struct Part {
    /// What they follow from; None when that is not looked at.
    pub(super) of: Option<Fingerprint>,
    /// The VirtualService, by position.
    pub(super) virtual_service: Option<usize>,
    pub(super) site: SiteAt,
    /// None while they are known from before, and nobody needs them.
    pub(super) routes: Option<Vec<(Route, RouteOrigin)>>,
    pub(super) is_empty: bool,
}

/// A site of which the Gateway is found by its position.
#[derive(Debug, Clone, Copy)]
pub(super) struct SiteAt {
    pub(super) gateway_at: usize,
    pub(super) mesh: bool,
    pub(super) port: u16,
}

/// What virtual hosts are made with.
pub(super) struct Hosts<'a> {
    resources: &'a Resources,
    context: &'a Context<'a>,
    numbers: Numbers,
    memo: &'a mut Memo,
}

impl<'a> Hosts<'a> {
    pub(super) fn new(resources: &'a Resources, context: &'a Context<'a>, memo: &'a mut Memo) -> Self {
        Self {
            resources,
            context,
            numbers: Numbers::new(resources),
            memo,
        }
    }

    /// The routes of a part.
    fn routes(&self, part: &mut Part) {
        let virtual_services = &self.resources.virtual_services;
        let written = part.virtual_service.and_then(|at| virtual_services.get(at));
        let gateway = self.resources.gateways.get(part.site.gateway_at);
        if let (None, Some(written), Some(gateway)) = (&part.routes, written, gateway) {
            let site = Site {
                gateway: &gateway.meta.id(),
                mesh: part.site.mesh,
                port: part.site.port,
                gateway_at: part.site.gateway_at,
            };
            part.routes = Some(super::route::compile(written, &site, self.context));
        }
    }

    /// A virtual host, and where its routes were written.
    fn make(&mut self, draft: HostDraft, all: &mut [Part]) -> (Arc<VirtualHost>, Vec<RouteOrigin>) {
        let parts = draft.parts.iter().map(|part| all.get(*part)?.of);
        let parts: Option<Vec<Fingerprint>> = parts.collect();
        let what = (&draft.domains[..], draft.https_redirect);
        let known = parts
            .as_ref()
            .and_then(|parts| self.memo.host(what, parts, &self.numbers));
        if let Some(known) = known {
            return known;
        }
        let (mut last, mut first) = (Vec::new(), Vec::new());
        for part in &draft.parts {
            let Some(part) = all.get_mut(*part) else { continue };
            self.routes(part);
            // Istio moves what takes everything to the end and reorders nothing else.
            for (route, place) in part.routes.iter().flatten() {
                let list = if is_catch_all(route) {
                    &mut last
                } else {
                    &mut first
                };
                list.push((route.clone(), *place));
            }
        }
        let (routes, places): (Vec<Route>, Vec<RouteOrigin>) = first.into_iter().chain(last).unzip();
        let name = draft.domains.first().map(ToString::to_string).unwrap_or_default();
        let host = Arc::new(VirtualHost::new(
            &name,
            draft.domains,
            draft.https_redirect,
            routes,
        ));
        if let Some(parts) = parts {
            self.memo.add(&host, parts, &places, &self.numbers);
        }
        (host, places)
    }
}

/// The virtual hosts of one table that is being put together.
#[derive(Default)]
pub(super) struct Table {
    /// Routes of one VirtualService at one Gateway, once.
    pub(super) routes: Vec<Part>,
    pub(super) known: HashMap<(usize, usize), usize, FixedState>,
    /// In the order in which they came, and by pattern.
    pub(super) drafts: Vec<(HostPattern, HostParts)>,
    by_pattern: HashMap<HostPattern, usize, FixedState>,
    /// VirtualServices, a later and an earlier one, that share a host, with the first such host.
    pub(super) overlaps: BTreeMap<(usize, usize), HostPattern>,
}

impl Table {
    pub(super) fn draft(&mut self, pattern: &HostPattern) -> &mut HostParts {
        let at = self.by_pattern.get(pattern).copied().unwrap_or_else(|| {
            let at = self.drafts.len();
            self.by_pattern.insert(pattern.clone(), at);
            self.drafts.push((pattern.clone(), HostParts::default()));
            at
        });
        &mut self.drafts[at].1
    }

    /// The wildcards that VirtualServices have routes for.
    pub(super) fn wildcards(&self) -> Vec<HostPattern> {
        let routed = self.drafts.iter().filter(|(_, parts)| parts.first.is_some());
        let wildcards = routed.filter(|(pattern, _)| !matches!(pattern, HostPattern::Exact(_)));
        wildcards.map(|(pattern, _)| pattern.clone()).collect()
    }

    /// Whether routes of a VirtualService are there for all that a pattern names.
    pub(super) fn covers(&self, pattern: &HostPattern, wildcards: &[HostPattern]) -> bool {
        let own = self.by_pattern.get(pattern).and_then(|at| self.drafts.get(*at));
        own.is_some_and(|(_, parts)| parts.first.is_some())
            || wildcards.iter().any(|known| pattern.subset_of(known))
    }

    pub(super) fn finish(mut self, made: &mut Hosts<'_>) -> (RouteTable, Vec<Vec<RouteOrigin>>) {
        // Hosts with the same routes are one virtual host.
        let mut by_content: HashMap<(Vec<usize>, bool), usize, FixedState> = HashMap::default();
        let mut hosts: Vec<HostDraft> = Vec::new();
        for (pattern, draft) in self.drafts {
            let HostParts {
                https_redirect,
                parts,
                ..
            } = draft;
            let at = *by_content
                .entry((parts, https_redirect))
                .or_insert_with_key(|(parts, _)| {
                    hosts.push(HostDraft {
                        domains: Vec::new(),
                        https_redirect,
                        parts: parts.clone(),
                    });
                    hosts.len() - 1
                });
            if let Some(host) = hosts.get_mut(at) {
                host.domains.push(pattern);
            }
        }
        let mut origins = Vec::with_capacity(hosts.len());
        let hosts = hosts.into_iter().map(|draft| {
            let (host, places) = made.make(draft, &mut self.routes);
            origins.push(places);
            host
        });
        let table = RouteTable::new(hosts.collect());
        (table, origins)
    }
}
