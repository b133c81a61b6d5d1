//! Virtual hosts that are the same parts as in the compile before.
//!
//! What a virtual host is follows from its domains and from the parts of its routes: each the rules of one VirtualService
//! at one site. [`fingerprint`] is a hash of everything that such a part follows from: the resources by the numbers of
//! their reading, what the registry answers to what the rules ask it, and what clients can be. While it is the same, the
//! part is not compiled; and a virtual host whose parts are the same is the one of before.

use super::Context;
use super::delegate;
use super::route::{Site, cluster_port};
use crate::around::{Around, is_alone};
use crate::origins::{RouteOrigin, RuleOrigin};
use crate::resource::virtual_service::{HttpRoute, VirtualService};
use crate::resource::{Resources, Written};
use foldhash::fast::FixedState;
use isthmus_core::name::HostPattern;
use isthmus_core::route::VirtualHost;
use isthmus_core::snapshot::content_hash;
use isthmus_core::source::Sources;
use std::collections::HashMap;
use std::sync::Arc;

/// What the routes of a VirtualService at a site follow from, but the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint {
    /// The VirtualService.
    written: u64,
    /// Everything.
    all: u64,
}

/// A part that was compiled.
#[derive(Debug)]
struct Part {
    is_empty: bool,
    met: u64,
}

/// A virtual host that was compiled.
#[derive(Debug)]
struct Host {
    parts: Vec<Fingerprint>,
    host: Arc<VirtualHost>,
    origins: Vec<Place>,
    met: u64,
}

/// Where a route was written, by the numbers of resources.
#[derive(Debug, Clone, Copy)]
struct Place {
    own: Rule,
    root: Option<Rule>,
    gateway: u64,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    written: u64,
    rule: u32,
    matched: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    round: u64,
    /// What clients could be, and how often that has changed.
    sources: Sources,
    changes: u64,
    parts: HashMap<Fingerprint, Part, FixedState>,
    hosts: HashMap<u64, Host, FixedState>,
    /// What VirtualServices were read against, and what followed: fingerprints by number and site, with the round that met
    /// them last.
    around: u64,
    fingerprints: HashMap<(u64, u64), (Fingerprint, u64), FixedState>,
}

impl Memo {
    /// Begins a compile.
    pub(crate) fn begin(&mut self, round: u64, sources: &Sources, are_identified: bool, around: Around) {
        self.round = round;
        if self.around != around.said {
            self.around = around.said;
            self.fingerprints.clear();
        }
        if self.sources != *sources {
            self.sources = sources.clone();
            self.changes += 1;
        }
        // Above any number of changes.
        self.changes = self.changes & !IDENTIFIED | if are_identified { IDENTIFIED } else { 0 };
    }

    /// Forgets what no compile has met since a round.
    pub(crate) fn forget(&mut self, oldest: u64) {
        self.parts.retain(|_, part| part.met >= oldest);
        self.hosts.retain(|_, host| host.met >= oldest);
        self.fingerprints.retain(|_, (_, met)| *met >= oldest);
    }

    /// Whether a part has no routes; None when it is not known.
    pub(crate) fn is_empty(&mut self, part: Fingerprint) -> Option<bool> {
        let known = self.parts.get_mut(&part)?;
        known.met = self.round;
        Some(known.is_empty)
    }

    /// Remembers whether a part has no routes.
    pub(crate) fn compiled(&mut self, part: Fingerprint, is_empty: bool) {
        let met = self.round;
        self.parts.insert(part, Part { is_empty, met });
    }

    /// The virtual host of parts, with where its routes are written now.
    pub(crate) fn host(
        &mut self,
        (domains, https_redirect): (&[HostPattern], bool),
        parts: &[Fingerprint],
        numbers: &Numbers,
    ) -> Option<(Arc<VirtualHost>, Vec<RouteOrigin>)> {
        let known = self
            .hosts
            .get_mut(&content_hash(&(domains, https_redirect, parts)))?;
        let host = &known.host;
        if host.domains != domains || host.https_redirect != https_redirect || known.parts != parts {
            return None;
        }
        let origins: Option<Vec<RouteOrigin>> =
            known.origins.iter().map(|place| numbers.origin(place)).collect();
        known.met = self.round;
        Some((Arc::clone(&known.host), origins?))
    }

    /// Remembers a virtual host.
    pub(crate) fn add(
        &mut self,
        host: &Arc<VirtualHost>,
        parts: Vec<Fingerprint>,
        origins: &[RouteOrigin],
        numbers: &Numbers,
    ) {
        let places: Option<Vec<Place>> = origins.iter().map(|origin| numbers.place(origin)).collect();
        let Some(origins) = places else { return };
        let hash = content_hash(&(&host.domains[..], host.https_redirect, &parts[..]));
        let known = Host {
            parts,
            host: Arc::clone(host),
            origins,
            met: self.round,
        };
        self.hosts.insert(hash, known);
    }
}

const IDENTIFIED: u64 = 1 << 63;

/// VirtualServices and Gateways by their numbers, and the other way round.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    by_number: HashMap<u64, (usize, Option<usize>), FixedState>,
    by_place: HashMap<(usize, Option<usize>), u64, FixedState>,
    gateways: Vec<u64>,
    by_gateway: HashMap<u64, usize>,
}

impl Numbers {
    pub(crate) fn new(resources: &Resources) -> Self {
        let all = &resources.virtual_services;
        let gateways = resources.gateways.iter();
        let gateways: Vec<u64> = gateways.map(|written| written.meta.number).collect();
        let place = |written: &Written<VirtualService>| {
            let origin = &written.meta.origin;
            (origin.document, origin.item)
        };
        Self {
            by_number: all
                .iter()
                .map(|written| (written.meta.number, place(written)))
                .collect(),
            by_gateway: gateways
                .iter()
                .enumerate()
                .map(|(at, number)| (*number, at))
                .collect(),
            gateways,
            by_place: all
                .iter()
                .map(|written| (place(written), written.meta.number))
                .collect(),
        }
    }

    fn origin(&self, place: &Place) -> Option<RouteOrigin> {
        let rule = |rule: Rule| {
            let (document, item) = *self.by_number.get(&rule.written)?;
            Some(RuleOrigin {
                document,
                item,
                rule: rule.rule as usize,
                matched: rule.matched.map(|at| at as usize),
            })
        };
        Some(RouteOrigin {
            own: rule(place.own)?,
            root: match place.root {
                Some(root) => Some(rule(root)?),
                None => None,
            },
            gateway: *self.by_gateway.get(&place.gateway)?,
        })
    }

    fn place(&self, origin: &RouteOrigin) -> Option<Place> {
        let rule = |rule: &RuleOrigin| {
            Some(Rule {
                written: *self.by_place.get(&(rule.document, rule.item))?,
                rule: u32::try_from(rule.rule).ok()?,
                matched: match rule.matched {
                    Some(at) => Some(u32::try_from(at).ok()?),
                    None => None,
                },
            })
        };
        Some(Place {
            own: rule(&origin.own)?,
            root: match &origin.root {
                Some(root) => Some(rule(root)?),
                None => None,
            },
            gateway: *self.gateways.get(origin.gateway)?,
        })
    }
}

/// Everything that the routes of a VirtualService at a site follow from. It must see whatever `route::compile` looks at.
pub(crate) fn fingerprint(
    written: &Written<VirtualService>,
    site: &Site<'_>,
    context: &Context<'_>,
    memo: &mut Memo,
) -> Fingerprint {
    // The position of its Gateway is found anew.
    let here = (site.gateway, site.mesh, site.port);
    let at = (written.meta.number, content_hash(&here));
    let is_alone = is_alone(&written.spec);
    if is_alone && let Some((known, met)) = memo.fingerprints.get_mut(&at) {
        *met = memo.round;
        return *known;
    }
    let mut found: Vec<u64> = Vec::with_capacity(2 * written.spec.http.len() + 1);
    let mut asks_who = false;
    for rule in &written.spec.http {
        asks(
            rule,
            &written.meta.namespace,
            site,
            context,
            &mut found,
            &mut asks_who,
        );
        if rule.delegate.is_none() {
            continue;
        }
        let delegate = delegate::find(
            rule,
            &written.meta,
            &context.delegates,
            context.virtual_services,
            &context.options.mesh,
        );
        let delegate = delegate.and_then(Result::ok);
        found.push(delegate.map_or(0, |delegate| delegate.meta.number));
        let Some(delegate) = delegate else { continue };
        let namespace = &delegate.meta.namespace;
        asks(rule, namespace, site, context, &mut found, &mut asks_who);
        for own in &delegate.spec.http {
            asks(own, namespace, site, context, &mut found, &mut asks_who);
        }
    }
    let clients = if asks_who { memo.changes } else { 0 };
    let found = Fingerprint {
        written: written.meta.number,
        all: content_hash(&(written.meta.number, here, clients, found)),
    };
    if is_alone {
        memo.fingerprints.insert(at, (found, memo.round));
    }
    found
}

/// What a rule asks others for: the ports of destinations that name none, and who clients can be.
fn asks(
    rule: &HttpRoute,
    namespace: &str,
    site: &Site<'_>,
    context: &Context<'_>,
    found: &mut Vec<u64>,
    asks_who: &mut bool,
) {
    let mut matches = rule.matches.iter();
    *asks_who |=
        matches.any(|matched| !matched.source_labels.is_empty() || !matched.source_namespace.is_empty());
    let mirrors = rule.mirrors.iter().map(|mirror| &mirror.target);
    for target in rule.route.iter().map(|to| &to.target).chain(mirrors) {
        found.push(u64::from(cluster_port(target, namespace, site.port, context)));
    }
}
