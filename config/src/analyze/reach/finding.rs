//! What `check` says about rules that take no request.
//!
//! Each VirtualService is looked at alone first, wherever it is bound, so that a rule that its own rules shadow is told
//! of once; then each virtual host with all that was merged into it. A finding points at the rule or the match, and
//! names every rule that stands before it. Where Istio's analysis has the same message, it has the same name.

use super::search::Model;
use super::{Analyzer, Verdict};
use crate::analyze::View;
use crate::compile::delegate;
use crate::compile::route::{Site, action, route_match, rule_origin};
use crate::diagnostic::{Related, Severity};
use crate::index::GatewayName;
use crate::origins::{RouteOrigin, RuleOrigin};
use crate::report::{Finding, Report};
use crate::resource::virtual_service::{HttpMatch, StreamMatch, StreamRoute, VirtualService};
use crate::resource::{Meta, Written};
use crate::yaml::Path;
use http::StatusCode;
use isthmus_core::listener::Accepts;
use isthmus_core::name::HostPattern;
use isthmus_core::route::{Action, DirectResponse, Route, RouteMatch, RouteTable, TextMatch, VirtualHost};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Most combinations of gateway and port for which a VirtualService is looked at.
const SITES_MAX: usize = 64;
/// Most rules that a message names; the rest are counted.
const NAMED_MAX: usize = 4;
/// In place of the Gateway of a route: findings are about rules, at whatever Gateways they are.
const NO_GATEWAY: usize = usize::MAX;
/// Most hosts that a message names.
const HOSTS_MAX: usize = 3;

/// How plain it is that something is shadowed, from the plainest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// By one that asks for nothing.
    Everything,
    /// By one that asks for the same.
    Duplicate,
    /// By one whose prefix begins its own.
    Overlap,
    /// By proof.
    Proven,
}

/// Why a match or a rule without one takes no request.
#[derive(Debug, Clone)]
struct Shadow {
    kind: Kind,
    by: BTreeSet<RouteOrigin>,
    but_asterisk: bool,
}

/// By place, what is shadowed there; None for what is not, or perhaps not.
type Judged = BTreeMap<RouteOrigin, Option<Shadow>>;

/// Reports rules and matches that no request reaches.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    let mut analyzer = Analyzer::new(view.context.options.mesh.path_normalization);
    let mut known: HashSet<RouteOrigin> = HashSet::new();
    let told = Told::new(view);
    let mut settled: HashSet<String> = HashSet::new();
    for written in &view.resources.virtual_services {
        streams(written, report);
        // A delegate is looked at where it is joined.
        if written.spec.hosts.is_empty() {
            continue;
        }
        let (judged, is_settled) = alone(written, view, &mut analyzer);
        if is_settled {
            settled.insert(written.meta.id());
        }
        known.extend(
            judged
                .iter()
                .filter(|(_, shadow)| shadow.is_some())
                .map(|(at, _)| *at),
        );
        told.tell(&judged, None, report);
    }
    let (judged, hosts) = merged(view, &mut analyzer, &known, &settled);
    let rest: Judged = judged.into_iter().filter(|(at, _)| !known.contains(at)).collect();
    told.tell(&rest, Some(&hosts), report);
}

/// One match of a VirtualService, or a rule without any.
struct Entry<'a> {
    origin: RouteOrigin,
    written: Option<&'a HttpMatch>,
    matches: RouteMatch,
}

/// What its own rules shadow of a VirtualService, at every gateway and port; and whether that is all that there is to
/// say where no other has a part.
fn alone(written: &Written<VirtualService>, view: &View<'_>, analyzer: &mut Analyzer) -> (Judged, bool) {
    let context = view.context;
    let any = Site {
        gateway: "",
        mesh: false,
        port: 0,
        gateway_at: NO_GATEWAY,
    };
    let mesh = &context.options.mesh;
    let rules = delegate::rules(written, &context.delegates, context.virtual_services, mesh);
    let nothing = HttpMatch::default();
    let mut entries = Vec::new();
    for rule in &rules {
        let asked = match &rule.route.matches[..] {
            [] => std::slice::from_ref(&nothing),
            matches => matches,
        };
        for (at, matched) in asked.iter().enumerate() {
            // A rule that leads nowhere is left out of every table.
            if matched.needs_claims()
                || action(
                    &rule.route,
                    matched.uri.as_ref(),
                    &rule.own.meta.namespace,
                    &any,
                    context,
                )
                .is_none()
            {
                continue;
            }
            let at = (rule.root.is_none() && !rule.route.matches.is_empty()).then_some(at);
            entries.push(Entry {
                origin: RouteOrigin {
                    own: rule_origin(&rule.own, at),
                    root: rule.root.as_ref().map(|root| rule_origin(root, None)),
                    gateway: NO_GATEWAY,
                },
                written: (!rule.route.matches.is_empty()).then_some(matched),
                matches: route_match(matched),
            });
        }
    }
    let mut judged: Judged = BTreeMap::new();
    // Behind what takes everything everywhere, nothing needs to be looked at.
    let everywhere = |written: &HttpMatch| {
        written.port.is_none() && written.gateways.is_empty() && !asks_for_client(written)
    };
    let last = entries
        .iter()
        .position(|entry| entry.written.is_none_or(everywhere) && asks_for_nothing(&entry.matches));
    let behind = entries.split_off(last.map_or(entries.len(), |last| last + 1));
    let everyone = entries
        .iter()
        .chain(&behind)
        .all(|entry| entry.written.is_none_or(everywhere) && !asks_for_place(&entry.matches));
    let mut reached: HashSet<usize> = HashSet::new();
    let mut shadows: HashMap<usize, Shadow> = HashMap::new();
    for sited in sites(written, &entries) {
        let matches: Vec<&RouteMatch> = sited
            .iter()
            .filter_map(|at| entries.get(*at).map(|entry| &entry.matches))
            .collect();
        for (verdict, &at) in verdicts(&matches, analyzer).into_iter().zip(&sited) {
            let place = |by: usize| sited.get(by).copied();
            let shadow = shadow_of(verdict, at, &place, &|at| {
                entries.get(at).map(|entry| (entry.origin, &entry.matches))
            });
            match (shadow, shadows.get_mut(&at)) {
                (None, _) => {
                    reached.insert(at);
                }
                (Some(shadow), Some(known)) => {
                    known.kind = known.kind.max(shadow.kind);
                    known.by.extend(shadow.by);
                    known.but_asterisk |= shadow.but_asterisk;
                }
                (Some(shadow), None) => {
                    shadows.insert(at, shadow);
                }
            }
        }
    }
    shadows.extend(labelled(&entries));
    for (at, entry) in entries.iter().enumerate() {
        let shadow = shadows.remove(&at).filter(|_| !reached.contains(&at));
        join(&mut judged, entry.origin, shadow);
    }
    for entry in &behind {
        let shadow = entries.last().map(|last| Shadow {
            kind: Kind::Everything,
            by: BTreeSet::from([last.origin]),
            but_asterisk: false,
        });
        join(&mut judged, entry.origin, shadow);
    }
    (judged, everyone)
}

/// Adds what is known of one of the routes of a place: the place is shadowed if all of them are.
fn join(judged: &mut Judged, origin: RouteOrigin, shadow: Option<Shadow>) {
    use std::collections::btree_map::Entry::{Occupied, Vacant};
    match judged.entry(origin) {
        Vacant(free) => {
            free.insert(shadow);
        }
        Occupied(mut known) => {
            let both = match (known.get().clone(), shadow) {
                (Some(mut known), Some(shadow)) => {
                    known.kind = known.kind.max(shadow.kind);
                    known.by.extend(shadow.by);
                    known.but_asterisk |= shadow.but_asterisk;
                    Some(known)
                }
                _ => None,
            };
            known.insert(both);
        }
    }
}

fn shadow_of<'a>(
    verdict: Verdict,
    at: usize,
    place: &dyn Fn(usize) -> Option<usize>,
    entry: &dyn Fn(usize) -> Option<(RouteOrigin, &'a RouteMatch)>,
) -> Option<Shadow> {
    let Verdict::Shadowed { by, but_asterisk } = verdict else {
        return None;
    };
    let by: Vec<(RouteOrigin, &RouteMatch)> = by.into_iter().filter_map(place).filter_map(entry).collect();
    let kind = match (&by[..], entry(at)) {
        ([(_, first)], Some((_, own))) => kind_of(first, own),
        _ => Kind::Proven,
    };
    Some(Shadow {
        kind,
        by: by.into_iter().map(|(origin, _)| origin).collect(),
        but_asterisk,
    })
}

fn kind_of(first: &RouteMatch, own: &RouteMatch) -> Kind {
    let mut model = Model::new();
    let (a, b) = (model.add(first), model.add(own));
    match (&first.path.text, &own.path.text) {
        _ if asks_for_nothing(first) => Kind::Everything,
        _ if model.same(a, b) => Kind::Duplicate,
        (TextMatch::Prefix(_), TextMatch::Prefix(_)) => Kind::Overlap,
        _ => Kind::Proven,
    }
}

/// Whether a match takes whatever has a path.
fn asks_for_nothing(matches: &RouteMatch) -> bool {
    let beyond = RouteMatch {
        path: matches.path.clone(),
        ..RouteMatch::ANY
    };
    let path = match &matches.path.text {
        TextMatch::Present => true,
        TextMatch::Prefix(prefix) => matches!(&**prefix, "" | "/"),
        TextMatch::Regex(regex) => regex.pattern() == ".*",
        TextMatch::Exact(_) => false,
    };
    path && *matches == beyond
}

/// Whether a match is about the host or the listener that a request comes to.
fn asks_for_place(matches: &RouteMatch) -> bool {
    use isthmus_core::route::HeaderSubject::{Authority, Scheme};
    let mut headers = matches.headers.iter();
    matches.authority.is_some()
        || matches.scheme.is_some()
        || headers.any(|header| matches!(header.subject, Authority | Scheme))
}

/// Matches that ask for labels or the namespace of clients, and are there twice in the same words: no proof but this is
/// tried for them.
fn labelled<'a>(entries: &'a [Entry<'a>]) -> Vec<(usize, Shadow)> {
    let mut first: HashMap<String, RouteOrigin> = HashMap::new();
    let mut found = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let Some(written) = entry.written.filter(|written| asks_for_client(written)) else {
            continue;
        };
        let nameless = HttpMatch {
            name: String::new(),
            ..written.clone()
        };
        match first.entry(format!("{nameless:?}")) {
            std::collections::hash_map::Entry::Occupied(first) => found.push((
                at,
                Shadow {
                    kind: Kind::Duplicate,
                    by: BTreeSet::from([*first.get()]),
                    but_asterisk: false,
                },
            )),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(entry.origin);
            }
        }
    }
    found
}

fn asks_for_client(matched: &HttpMatch) -> bool {
    !matched.source_labels.is_empty() || !matched.source_namespace.is_empty()
}

/// Which entries there are at each gateway and port, once for those with the same. What asks for labels of clients is
/// at none.
fn sites(written: &Written<VirtualService>, entries: &[Entry<'_>]) -> Vec<Vec<usize>> {
    let namespace = &written.meta.namespace;
    let mut gateways: Vec<GatewayName> = Vec::new();
    for name in written.spec.gateways.iter() {
        gateways.extend(GatewayName::parse(name, namespace));
    }
    if gateways.is_empty() {
        gateways.push(GatewayName::Mesh);
    }
    let ports = entries.iter().filter_map(|entry| entry.written?.port);
    let mut ports: BTreeSet<u16> = ports.filter_map(|port| u16::try_from(port).ok()).collect();
    // And a port that nobody names.
    ports.insert(0);
    if gateways.len() * ports.len() > SITES_MAX {
        return Vec::new();
    }
    let mut found: Vec<Vec<usize>> = Vec::new();
    for gateway in &gateways {
        for &port in &ports {
            let site = match gateway {
                GatewayName::Mesh => Site {
                    gateway: "",
                    mesh: true,
                    port,
                    gateway_at: NO_GATEWAY,
                },
                GatewayName::Named { id, .. } => Site {
                    gateway: id,
                    mesh: false,
                    port,
                    gateway_at: NO_GATEWAY,
                },
            };
            let is_here = |entry: &Entry<'_>| {
                entry.written.is_none_or(|matched| {
                    !asks_for_client(matched)
                        && (matched.gateways.is_empty() || site.is_named(&matched.gateways, namespace))
                        && matched.port.is_none_or(|wanted| wanted == i64::from(port))
                })
            };
            let here = entries.iter().enumerate().filter(|(_, entry)| is_here(entry));
            let here: Vec<usize> = here.map(|(at, _)| at).collect();
            if !here.is_empty() && !found.contains(&here) {
                found.push(here);
            }
        }
    }
    found
}

/// What is known of each of some matches in a row, for any host.
fn verdicts(matches: &[&RouteMatch], analyzer: &mut Analyzer) -> Vec<Verdict> {
    let nothing = Arc::new(Action::Respond(DirectResponse {
        status: StatusCode::OK,
        body: bytes::Bytes::new(),
    }));
    let routes = matches.iter().map(|matched| Route {
        stat_prefix: "".into(),
        name: "".into(),
        virtual_service: "".into(),
        matches: (*matched).clone(),
        action: Arc::clone(&nothing),
        response_headers: Vec::new(),
    });
    let host = VirtualHost::new("*", vec![HostPattern::Any], false, routes.collect());
    let table = RouteTable::new(vec![Arc::new(host)]);
    let plain = analyzer.host(&table, 0, "http");
    let asks_for_scheme = matches.iter().any(|matched| {
        use isthmus_core::route::HeaderSubject::Scheme;
        matched.scheme.is_some() || matched.headers.iter().any(|header| header.subject == Scheme)
    });
    if !asks_for_scheme {
        return plain;
    }
    let secure = analyzer.host(&table, 0, "https");
    plain
        .into_iter()
        .zip(secure)
        .map(|(plain, secure)| either(plain, secure))
        .collect()
}

/// What is known when both may be the case.
fn either(one: Verdict, other: Verdict) -> Verdict {
    match (one, other) {
        (
            Verdict::Shadowed { mut by, but_asterisk },
            Verdict::Shadowed {
                by: more,
                but_asterisk: too,
            },
        ) => {
            by.extend(more);
            by.sort_unstable();
            by.dedup();
            Verdict::Shadowed {
                by,
                but_asterisk: but_asterisk || too,
            }
        }
        (Verdict::Shadowed { .. }, other) | (other, _) => other,
    }
}

/// Hosts on which a place is shadowed, and whether it is on every host.
type Hosts = HashMap<RouteOrigin, (Vec<String>, bool)>;

/// What is shadowed on virtual hosts, whoever's rules they have.
/// Where one VirtualService is alone and `settled`, it is not looked at again: what is `known` holds.
fn merged(
    view: &View<'_>,
    analyzer: &mut Analyzer,
    known: &HashSet<RouteOrigin>,
    settled: &HashSet<String>,
) -> (Judged, Hosts) {
    let mut all: Judged = BTreeMap::new();
    let mut hosts: Hosts = HashMap::new();
    let mut seen = HashSet::new();
    for listener in &view.snapshot.listeners {
        let scheme = match listener.accepts {
            Accepts::Tls(_) => "https",
            Accepts::Http | Accepts::Tcp(_) => "http",
        };
        for (at, table) in listener.tables.iter().enumerate() {
            let Some(origins) = view.origins.routes.get(&(listener.key.clone(), at)) else {
                continue;
            };
            for ((at, host), origins) in table.virtual_hosts().iter().enumerate().zip(origins) {
                let anywhere = |origin: &RouteOrigin| RouteOrigin {
                    gateway: NO_GATEWAY,
                    ..*origin
                };
                let origins: Vec<RouteOrigin> = origins.iter().map(anywhere).collect();
                // Every request is redirected before a rule is asked.
                if host.https_redirect || !seen.insert((host.content(), scheme, origins.clone())) {
                    continue;
                }
                let owner = host.routes().first().map_or("", |route| &route.virtual_service);
                if settled.contains(owner)
                    && host.routes().iter().all(|route| *route.virtual_service == *owner)
                {
                    for origin in origins.iter().filter(|origin| !known.contains(origin)) {
                        hosts.entry(*origin).or_insert_with(|| (Vec::new(), true)).1 = false;
                    }
                    continue;
                }
                let entry = |at: usize| Some((*origins.get(at)?, &host.routes().get(at)?.matches));
                let mut here: Judged = BTreeMap::new();
                for (route, verdict) in analyzer.host(table, at, scheme).into_iter().enumerate() {
                    if let Some((origin, _)) = entry(route) {
                        join(&mut here, origin, shadow_of(verdict, route, &Some, &entry));
                    }
                }
                for (origin, shadow) in here {
                    let (names, always) = hosts.entry(origin).or_insert_with(|| (Vec::new(), true));
                    match shadow {
                        None => *always = false,
                        Some(shadow) => {
                            names.push(host.name.to_string());
                            match all.entry(origin).or_default() {
                                Some(known) => {
                                    known.kind = known.kind.max(shadow.kind);
                                    known.by.extend(shadow.by);
                                    known.but_asterisk |= shadow.but_asterisk;
                                }
                                none => *none = Some(shadow),
                            }
                        }
                    }
                    all.entry(origin).or_default();
                }
            }
        }
    }
    (all, hosts)
}

/// Puts what was judged into words.
struct Told<'v> {
    metas: HashMap<(usize, Option<usize>), &'v Meta>,
    /// Number of matches of each rule.
    matches: HashMap<(usize, Option<usize>, usize), usize>,
}

/// All places of one rule.
type Places<'j> = Vec<(&'j RouteOrigin, &'j Option<Shadow>)>;

impl<'v> Told<'v> {
    fn new(view: &View<'v>) -> Self {
        let all = &view.resources.virtual_services;
        let key = |meta: &Meta| (meta.origin.document, meta.origin.item);
        let counts = all.iter().flat_map(|written| {
            let (document, item) = key(&written.meta);
            let rules = written.spec.http.iter().enumerate();
            rules.map(move |(at, rule)| ((document, item, at), rule.matches.len()))
        });
        Self {
            metas: all
                .iter()
                .map(|written| (key(&written.meta), &written.meta))
                .collect(),
            matches: counts.collect(),
        }
    }

    fn meta(&self, rule: &RuleOrigin) -> Option<&'v Meta> {
        self.metas.get(&(rule.document, rule.item)).copied()
    }

    fn tell(&self, judged: &Judged, hosts: Option<&Hosts>, report: &mut Report<'_>) {
        let mut by_rule: BTreeMap<(usize, Option<usize>, usize), Places<'_>> = BTreeMap::new();
        for (origin, shadow) in judged {
            let own = &origin.own;
            let places = by_rule.entry((own.document, own.item, own.rule)).or_default();
            places.push((origin, shadow));
        }
        for (rule, places) in by_rule {
            self.tell_rule(
                &places,
                self.matches.get(&rule).copied().unwrap_or(0),
                hosts,
                report,
            );
        }
    }

    fn tell_rule(&self, places: &Places<'_>, matches: usize, hosts: Option<&Hosts>, report: &mut Report<'_>) {
        let always = |origin: &RouteOrigin| {
            hosts.is_none_or(|hosts| hosts.get(origin).is_some_and(|(_, always)| *always))
        };
        let complete = places.len() >= matches || places.iter().any(|(at, _)| at.own.matched.is_none());
        let whole = complete && places.iter().all(|(at, shadow)| shadow.is_some() && always(at));
        let shadows = || places.iter().filter_map(|(_, shadow)| shadow.as_ref());
        let plainest = shadows().map(|shadow| shadow.kind).max();
        let of_rule = match (whole, plainest) {
            (true, Some(Kind::Everything | Kind::Duplicate)) => Some("unreachable-rule"),
            (true, Some(Kind::Proven)) => Some("shadowed-rule"),
            _ => None,
        };
        if let (Some(name), Some((origin, _))) = (of_rule, places.first()) {
            let all = Shadow {
                kind: Kind::Proven,
                by: shadows().flat_map(|shadow| shadow.by.iter().copied()).collect(),
                but_asterisk: shadows().any(|shadow| shadow.but_asterisk),
            };
            let rule = RouteOrigin {
                own: RuleOrigin {
                    matched: None,
                    ..origin.own
                },
                root: origin.root,
                gateway: NO_GATEWAY,
            };
            self.report(name, Severity::Warning, &rule, &all, "this rule", None, report);
        }
        for (origin, shadow) in places {
            let Some(shadow) = shadow else { continue };
            if !always(origin) && shadow.by.is_empty() {
                // What asks for the authority is meant for some of the hosts.
                continue;
            }
            let is_match = origin.own.matched.is_some();
            let of_one_rule = shadow.by.iter().all(|by| {
                RuleOrigin {
                    matched: None,
                    ..by.own
                } == RuleOrigin {
                    matched: None,
                    ..origin.own
                }
            });
            let (name, severity) = match shadow.kind {
                Kind::Duplicate | Kind::Overlap if is_match => ("ineffective-match", Severity::Warning),
                // The rule says it already.
                _ if of_rule.is_some() => continue,
                _ if is_match && of_one_rule && !shadow.by.is_empty() => ("redundant-match", Severity::Hint),
                _ if is_match => ("shadowed-match", Severity::Warning),
                _ => ("shadowed-rule", Severity::Warning),
            };
            let what = match (is_match, whole) {
                (true, true) => "this match, and so this rule,",
                (true, false) => "this match",
                (false, _) => "this rule",
            };
            let on = hosts
                .and_then(|hosts| hosts.get(origin))
                .filter(|(_, always)| !always);
            self.report(
                name,
                severity,
                origin,
                shadow,
                what,
                on.map(|(names, _)| &names[..]),
                report,
            );
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one sentence, put together in one place"
    )]
    fn report(
        &self,
        name: &'static str,
        severity: Severity,
        origin: &RouteOrigin,
        shadow: &Shadow,
        what: &str,
        hosts: Option<&[String]>,
        report: &mut Report<'_>,
    ) {
        let Some(meta) = self.meta(&origin.own) else {
            return;
        };
        let mut related = Vec::new();
        let mut named = Vec::new();
        for by in &shadow.by {
            named.extend(self.related(by, &origin.own, &mut related, report));
        }
        let on = match hosts {
            None | Some([]) => String::new(),
            Some(hosts) => {
                let first: Vec<&str> = hosts.iter().take(HOSTS_MAX).map(String::as_str).collect();
                let more = hosts.len() - first.len();
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                format!("on {}{more}, ", first.join(", "))
            }
        };
        let root = origin.root.and_then(|root| Some((self.meta(&root)?, root.rule)));
        let within = root.map_or_else(String::new, |(meta, rule)| {
            format!(
                "where `http[{rule}]` of {} delegates to it, ",
                crate::index::name_of(meta)
            )
        });
        let but = if shadow.but_asterisk {
            " but `OPTIONS *`"
        } else {
            ""
        };
        let reason = match &named[..] {
            [] => "nothing that comes to its hosts is what it asks for".to_owned(),
            [one] => format!("{one} takes all that it asks for"),
            several => {
                let (first, rest) = several.split_at(several.len().min(NAMED_MAX));
                let all = match (first, rest.len()) {
                    ([first @ .., last], 0) => format!("{} and {last}", first.join(", ")),
                    (_, more) => format!("{} and {more} more", first.join(", ")),
                };
                format!("{all} together take all that it asks for")
            }
        };
        let help = if named.is_empty() {
            "change what it asks for, or take it out"
        } else {
            "move it before what takes its requests, or take it out"
        };
        with_path(&origin.own, |path| {
            report.tell(Finding {
                help: Some(help.to_owned()),
                related,
                ..Finding::new(
                    severity,
                    name,
                    &meta.origin,
                    path,
                    format!("{within}{on}{what} takes no request{but}: {reason}"),
                )
            });
        });
    }

    /// What a rule that shadows another is called beside it; its place is added to `related`.
    fn related(
        &self,
        by: &RouteOrigin,
        beside: &RuleOrigin,
        related: &mut Vec<Related>,
        report: &mut Report<'_>,
    ) -> Option<String> {
        let meta = self.meta(&by.own)?;
        with_path(&by.own, |path| {
            related.push(report.related(&meta.origin, path, "takes them before"));
            let field = path.to_string();
            let short = field.strip_prefix("spec.").unwrap_or(&field);
            if (by.own.document, by.own.item) == (beside.document, beside.item) {
                Some(format!("`{short}`"))
            } else {
                Some(format!("`{short}` of {}", crate::index::name_of(meta)))
            }
        })
    }
}

/// The path of a rule or a match.
fn with_path<T>(rule: &RuleOrigin, then: impl FnOnce(&Path<'_>) -> T) -> T {
    let list = Path::SPEC.key("http");
    let item = list.index(rule.rule);
    let matches = item.key("match");
    match rule.matched {
        Some(at) => then(&matches.index(at)),
        None => then(&item),
    }
}

/// Reports `tls[]` and `tcp[]` rules that no connection reaches: those whose every match was there before.
fn streams(written: &Written<VirtualService>, report: &mut Report<'_>) {
    for (name, rules) in [("tls", &written.spec.tls), ("tcp", &written.spec.tcp)] {
        let list = Path::SPEC.key(name);
        for (at, rule) in rules.iter().enumerate() {
            let item = list.index(at);
            let matches = item.key("match");
            let before = rules.get(..at).unwrap_or(&[]);
            let nothing = [StreamMatch::default()];
            let asked = if rule.matches.is_empty() {
                &nothing[..]
            } else {
                &rule.matches[..]
            };
            let mut all = true;
            let mut first = None;
            for (matched_at, matched) in asked.iter().enumerate() {
                let own = asked.get(..matched_at).unwrap_or(&[]);
                let Some(earlier) = covered(matched, before, (at, own), &written.meta.namespace) else {
                    all = false;
                    continue;
                };
                first.get_or_insert(earlier);
                if rule.matches.is_empty() {
                    continue;
                }
                let path = matches.index(matched_at);
                let other = list.index(earlier);
                let message =
                    format!("this match takes no connection: `{name}[{earlier}]` takes all that it asks for");
                tell_stream("ineffective-match", &written.meta, &path, &other, message, report);
            }
            if let Some(earlier) = first.filter(|_| all) {
                let other = list.index(earlier);
                let message =
                    format!("this rule takes no connection: `{name}[{earlier}]` takes all that it asks for");
                tell_stream("unreachable-rule", &written.meta, &item, &other, message, report);
            }
        }
    }
}

fn tell_stream(
    name: &'static str,
    meta: &Meta,
    path: &Path<'_>,
    earlier: &Path<'_>,
    message: String,
    report: &mut Report<'_>,
) {
    let related = vec![report.related(&meta.origin, earlier, "takes them before")];
    report.tell(Finding {
        help: Some("move it before what takes its connections, or take it out".to_owned()),
        related,
        ..Finding::new(Severity::Warning, name, &meta.origin, path, message)
    });
}

/// The rule before a match that takes whatever it asks for: at the same place, each name is there already.
fn covered(
    matched: &StreamMatch,
    before: &[StreamRoute],
    (rule, own): (usize, &[StreamMatch]),
    namespace: &str,
) -> Option<usize> {
    let ids = |names: &[String]| -> BTreeSet<String> {
        let id = |name: &String| match GatewayName::parse(name, namespace) {
            Some(GatewayName::Named { id, .. }) => id,
            _ => "mesh".to_owned(),
        };
        names.iter().map(id).collect()
    };
    let here = |earlier: &StreamMatch| {
        (earlier.port.is_none() || earlier.port == matched.port)
            && (earlier.gateways.is_empty()
                || (!matched.gateways.is_empty()
                    && ids(&matched.gateways).is_subset(&ids(&earlier.gateways))))
            && (earlier.source_namespace.is_empty() || earlier.source_namespace == matched.source_namespace)
            && (earlier.source_subnet.is_none() || earlier.source_subnet == matched.source_subnet)
            && earlier
                .source_labels
                .iter()
                .all(|(key, value)| matched.source_labels.get(key) == Some(value))
    };
    // A rule that leads nowhere is left out.
    let leads = |rule: &StreamRoute| rule.route.len() == 1 || rule.route.iter().any(|one| one.weight > 0);
    let earlier: Vec<(usize, &StreamMatch)> = before
        .iter()
        .enumerate()
        .filter(|(_, rule)| leads(rule))
        .flat_map(|(at, rule)| rule.matches.iter().map(move |matched| (at, matched)))
        .chain(own.iter().map(|matched| (rule, matched)))
        .filter(|(_, earlier)| here(earlier))
        .collect();
    let whole = before
        .iter()
        .position(|rule| rule.matches.is_empty() && leads(rule));
    if matched.sni_hosts.is_empty() {
        // Of connections without names, the first rule that applies takes all.
        return whole.or_else(|| {
            let mut without = earlier.iter().filter(|(_, earlier)| earlier.sni_hosts.is_empty());
            without.next().map(|(at, _)| *at)
        });
    }
    // Among names, the most specific counts: only the same name shadows.
    let mut last = None;
    for sni in &matched.sni_hosts {
        let name = HostPattern::parse(sni);
        let known = earlier.iter().find(|(_, earlier)| {
            earlier
                .sni_hosts
                .iter()
                .any(|other| HostPattern::parse(other) == name)
        });
        last = last.max(Some(known?.0));
    }
    last
}
