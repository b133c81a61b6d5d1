//! What would change for requests and connections between two sets of resources.
//!
//! [`diff`] compares two compiled snapshots by what they do: listeners by port, hosts by the names that they serve, rules
//! by the requests that they take (`rules`), clusters by their policies and endpoints (`fields`). How resources are
//! called, how they are cut into files, and in which order rules stand that no request tells apart, is no difference.
//! Every request that is shown as decided differently has been asked of both snapshots; that nothing changes is said
//! only when it is proven, and what could not be decided is said to be so ([`Difference::undecided`]).

mod fields;
mod rules;

pub use fields::FieldChange;

use crate::analyze::reach::{Analyzer, samples};
use crate::{Compiled, Source};
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::endpoint::EndpointSet;
use isthmus_core::limits::PathNormalization;
use isthmus_core::listener::{Accepts, Chain, ChainAction, Listener, SniTable, TcpRoute};
use isthmus_core::message::RequestHead;
use isthmus_core::name::{ClusterKey, HostIndex, HostPattern};
use isthmus_core::route::{Action, Route, RouteTable, Scratch, VirtualHost};
use isthmus_core::snapshot::content_hash;
use rules::Region;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

/// Most differences of one host that are shown; the rest are counted.
const MOVED_MAX: usize = 100;
/// Most rules that are tried for a request that reaches a cluster.
const WITNESSES_MAX: usize = 8;
/// Most hosts that one line names.
const HOSTS_MAX: usize = 5;

/// One of the two sets.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What it means.
    pub compiled: &'a Compiled,
    /// The files.
    pub sources: &'a [Source],
}

/// All that changes.
#[derive(Debug, Default, Serialize)]
pub struct Difference {
    /// In order of listeners; clusters last.
    pub changes: Vec<Change>,
    /// What could not be decided with reasonable effort, one sentence each.
    pub undecided: Vec<String>,
}

impl Difference {
    /// Whether it is proven that nothing changes.
    pub fn is_none(&self) -> bool {
        self.changes.is_empty() && self.undecided.is_empty()
    }
}

/// What kind of change it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A port is opened.
    ListenerNew,
    /// A port is closed.
    ListenerLost,
    /// A port treats connections differently.
    ListenerChanged,
    /// Hosts are served that were not.
    HostNew,
    /// Hosts are served no more.
    HostLost,
    /// Requests get something else.
    RequestsMoved,
    /// A cluster that stays in use changes.
    ClusterChanged,
    /// A cluster that stays in use has become known.
    ClusterNew,
    /// A cluster that stays in use is known no more.
    ClusterLost,
    /// Keys or certificates among the resources change.
    CredentialChanged,
}

/// One change.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// What kind.
    pub kind: Kind,
    /// `port 80`, with the address when the Gateway names one; of clusters and credentials, their name.
    pub subject: String,
    /// Hosts that it concerns; empty when it concerns none in particular.
    pub hosts: Vec<String>,
    /// What was done before.
    pub old: Option<Decision>,
    /// What is done now.
    pub new: Option<Decision>,
    /// Fields that differ.
    pub fields: Vec<FieldChange>,
    /// A request that shows it.
    pub request: Option<Request>,
}

/// What is done, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// In words, such as `reviews.default.svc.cluster.local:9080 v1`.
    pub outcome: String,
    /// `VirtualService namespace/name`, with the rule's own name when it has one; empty when no rule decides.
    pub rule: String,
    /// `file:line:column` of the rule, and of the rule that delegates to it.
    pub places: Vec<String>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// `http` or `https`.
    pub scheme: String,
    /// Its authority.
    pub authority: String,
    /// Its path and query.
    pub path: String,
    /// Its fields: names and values.
    pub headers: Vec<(String, String)>,
}

impl Request {
    fn new(head: &RequestHead, scheme: &str) -> Self {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        Self {
            method: head.method.to_string(),
            scheme: scheme.to_owned(),
            authority: head.authority.clone(),
            path: head.path.clone(),
            headers: head
                .headers
                .iter()
                .map(|(_, name, value)| (text(name), text(value)))
                .collect(),
        }
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            method,
            scheme,
            authority,
            path,
            headers,
        } = self;
        let slash = if path.starts_with('/') { "" } else { " " };
        write!(f, "{method} {scheme}://{authority}{slash}{path}")?;
        for (name, value) in headers {
            write!(f, "  {name}: {value}")?;
        }
        Ok(())
    }
}

/// Compares two sets; both must be free of errors, or what was left out counts as not there.
pub fn diff(old: Side<'_>, new: Side<'_>, normalization: PathNormalization) -> Difference {
    let mut comparison = Comparison {
        old,
        new,
        analyzer: Analyzer::new(normalization),
        found: Difference::default(),
        seen: BTreeSet::new(),
    };
    comparison.listeners();
    comparison.clusters();
    comparison.sources();
    comparison.credentials();
    comparison.found
}

struct Comparison<'a> {
    old: Side<'a>,
    new: Side<'a>,
    analyzer: Analyzer,
    found: Difference,
    /// Tables that have been compared: listener, then position in it before and after.
    seen: BTreeSet<(String, Option<usize>, Option<usize>)>,
}

/// Positions before and after; None where there is nothing.
type Pair = (Option<usize>, Option<usize>);

/// A listener before or after, for places of its rules.
#[derive(Clone, Copy)]
struct Door<'a> {
    side: Side<'a>,
    listener: &'a Listener,
}

fn name_of(listener: &Listener) -> String {
    match listener.key.bind {
        Some(address) => format!("port {} of {address}", listener.key.port),
        None => format!("port {}", listener.key.port),
    }
}

impl<'a> Comparison<'a> {
    fn change(&mut self, kind: Kind, subject: &str) -> &mut Change {
        self.found.changes.push(Change {
            kind,
            subject: subject.to_owned(),
            hosts: Vec::new(),
            old: None,
            new: None,
            fields: Vec::new(),
            request: None,
        });
        let last = self.found.changes.len() - 1;
        &mut self.found.changes[last]
    }

    fn listeners(&mut self) {
        let of = |side: Side<'a>| {
            let all = side.compiled.snapshot.listeners.iter();
            all.map(move |listener| (listener.key.clone(), Door { side, listener }))
        };
        let old: BTreeMap<_, Door<'a>> = of(self.old).collect();
        let new: BTreeMap<_, Door<'a>> = of(self.new).collect();
        let keys: BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
        for key in keys {
            match (old.get(&key), new.get(&key)) {
                (Some(old), Some(new)) => self.listener(*old, *new),
                (Some(gone), None) => {
                    self.change(Kind::ListenerLost, &name_of(gone.listener)).hosts = hosts_of(gone.listener);
                }
                (None, Some(opened)) => {
                    self.change(Kind::ListenerNew, &name_of(opened.listener)).hosts =
                        hosts_of(opened.listener);
                }
                (None, None) => {}
            }
        }
    }

    fn listener(&mut self, old: Door<'a>, new: Door<'a>) {
        let name = name_of(new.listener);
        // Everything of a listener is compared here or below.
        let Listener {
            key: _,
            proxy_protocol,
            upgrades,
            accepts,
            tables: _,
            forward,
        } = new.listener;
        let before = old.listener;
        let mut changed = named(
            "proxyProtocol",
            fields::changes(&before.proxy_protocol, proxy_protocol),
        );
        changed.extend(named("upgrades", fields::changes(&before.upgrades, upgrades)));
        if !changed.is_empty() {
            self.change(Kind::ListenerChanged, &name).fields = changed;
        }
        if before.forward.len() + forward.len() > 0 {
            let text = format!("{name}: requests of a forward proxy are not compared");
            self.found.undecided.push(text);
        }
        match (&before.accepts, accepts) {
            (Accepts::Http, Accepts::Http) => self.tables((old, Some(0)), (new, Some(0)), "http"),
            (Accepts::Tcp(a), Accepts::Tcp(b)) => self.connections(&name, &[], a.as_deref(), b.as_deref()),
            (Accepts::Tls(a), Accepts::Tls(b)) => self.names((old, a), (new, b)),
            (a, b) => {
                let kind = |accepts: &Accepts| {
                    Some(match accepts {
                        Accepts::Http => "HTTP".to_owned(),
                        Accepts::Tcp(_) => "TCP".to_owned(),
                        Accepts::Tls(_) => "TLS".to_owned(),
                    })
                };
                self.change(Kind::ListenerChanged, &name).fields = vec![FieldChange {
                    field: "protocol".to_owned(),
                    old: kind(a),
                    new: kind(b),
                }];
            }
        }
    }

    /// Compares where connections go.
    fn connections(&mut self, name: &str, hosts: &[String], old: Option<&TcpRoute>, new: Option<&TcpRoute>) {
        let of = |route: &TcpRoute| -> Vec<_> {
            let each = route.each();
            each.map(|route| (route.destinations.clone(), route.source.clone()))
                .collect()
        };
        if old.map(of) == new.map(of) {
            return;
        }
        let decision = |route: Option<&TcpRoute>| Decision {
            outcome: route.map_or_else(
                || "connections are closed".to_owned(),
                |route| {
                    let text = |route: &TcpRoute| {
                        let all = route.destinations.iter();
                        let text = destinations(all.map(|one| (&one.cluster, one.weight)));
                        let source = route.source.as_ref();
                        source.map_or(text.clone(), |source| format!("{text} for {source}"))
                    };
                    route.each().map(text).collect::<Vec<_>>().join(", else ")
                },
            ),
            rule: route.map_or_else(String::new, |route| {
                format!("VirtualService {}", route.virtual_service)
            }),
            places: Vec::new(),
        };
        let change = self.change(Kind::ListenerChanged, name);
        change.hosts = hosts.to_vec();
        change.old = Some(decision(old));
        change.new = Some(decision(new));
    }

    /// Compares what a TLS port does for each name that clients may ask for.
    fn names(&mut self, (old, a): (Door<'a>, &'a SniTable), (new, b): (Door<'a>, &'a SniTable)) {
        let name = name_of(new.listener);
        let patterns: BTreeSet<&HostPattern> =
            a.names().iter().chain(b.names()).map(|(name, _)| name).collect();
        let mut regions: BTreeMap<Pair, Vec<String>> = BTreeMap::new();
        for (pattern, sample) in self.sampled(&patterns, &name) {
            let pair = (a.find(Some(&sample)), b.find(Some(&sample)));
            if pair != (None, None) {
                regions.entry(pair).or_default().push(pattern.to_string());
            }
        }
        for ((before, after), hosts) in regions {
            let chain = |table: &'a SniTable, at: Option<usize>| at.and_then(|at| table.chains().get(at));
            match (chain(a, before), chain(b, after)) {
                (Some(before), Some(after)) => self.chain(&name, &hosts, (old, before), (new, after)),
                (Some(_), None) => self.change(Kind::HostLost, &name).hosts = hosts,
                (None, Some(_)) => self.change(Kind::HostNew, &name).hosts = hosts,
                (None, None) => {}
            }
        }
    }

    fn chain(
        &mut self,
        name: &str,
        hosts: &[String],
        (old, a): (Door<'a>, &Chain),
        (new, b): (Door<'a>, &Chain),
    ) {
        if let (Some(before), Some(after)) = (a.action.tls(), b.action.tls())
            && before != after
        {
            let change = self.change(Kind::ListenerChanged, name);
            change.hosts = hosts.to_vec();
            change.fields = named("tls", fields::changes(before, after));
        }
        match (&a.action, &b.action) {
            (ChainAction::Http { table: a, .. }, ChainAction::Http { table: b, .. }) => {
                self.tables((old, Some(*a)), (new, Some(*b)), "https");
            }
            (ChainAction::Tcp { route: a, .. }, ChainAction::Tcp { route: b, .. }) => {
                self.connections(name, hosts, a.as_deref(), b.as_deref());
            }
            (ChainAction::Pass(a), ChainAction::Pass(b)) => self.connections(name, hosts, Some(a), Some(b)),
            (ChainAction::AutoPass(a), ChainAction::AutoPass(b)) => {
                let (a, b): (BTreeSet<_>, BTreeSet<_>) = (a.iter().collect(), b.iter().collect());
                if a != b {
                    let text = |set: &BTreeSet<&HostPattern>| {
                        let names: Vec<String> = set.iter().map(ToString::to_string).collect();
                        Some(names.join(", "))
                    };
                    self.change(Kind::ListenerChanged, name).fields = vec![FieldChange {
                        field: "hosts".to_owned(),
                        old: text(&a),
                        new: text(&b),
                    }];
                }
            }
            (a, b) => {
                let mode = |action: &ChainAction| {
                    Some(match action {
                        ChainAction::Http { .. } => "TLS ends here, HTTP inside".to_owned(),
                        ChainAction::Tcp { .. } => "TLS ends here, bytes inside".to_owned(),
                        ChainAction::Pass(_) => "TLS passes through".to_owned(),
                        ChainAction::AutoPass(_) => "TLS passes through by its name".to_owned(),
                    })
                };
                let change = self.change(Kind::ListenerChanged, name);
                change.hosts = hosts.to_vec();
                change.fields = vec![FieldChange {
                    field: "mode".to_owned(),
                    old: mode(a),
                    new: mode(b),
                }];
            }
        }
    }

    /// For each pattern a host that is named by it and by none that is more specific.
    fn sampled(
        &mut self,
        patterns: &BTreeSet<&'a HostPattern>,
        subject: &str,
    ) -> Vec<(&'a HostPattern, String)> {
        let mut index: HostIndex<&HostPattern> = HostIndex::default();
        for pattern in patterns {
            let _each_is_there_once = index.insert((*pattern).clone(), pattern);
        }
        let mut found = Vec::new();
        for &pattern in patterns {
            let numbered = (0..patterns.len()).map(|at| match pattern {
                HostPattern::Suffix(suffix) => format!("isthmus-{at}{suffix}"),
                _ => format!("isthmus-{at}.example.com"),
            });
            let mut all = samples(pattern).into_iter().chain(numbered);
            match all.find(|sample| index.find(sample) == Some(&pattern)) {
                Some(sample) => found.push((pattern, sample)),
                None => self.found.undecided.push(format!(
                    "{subject}: no host was found that `{pattern}` names and nothing else"
                )),
            }
        }
        found
    }

    /// Compares the virtual hosts of two tables.
    fn tables(
        &mut self,
        (old, a): (Door<'a>, Option<usize>),
        (new, b): (Door<'a>, Option<usize>),
        scheme: &'static str,
    ) {
        let name = name_of(new.listener);
        if !self.seen.insert((name.clone(), a, b)) {
            return;
        }
        let table = |door: Door<'a>, at: Option<usize>| at.and_then(|at| door.listener.tables.get(at));
        let (Some(before), Some(after)) = (table(old, a), table(new, b)) else {
            return;
        };
        let patterns = |table: &'a RouteTable| table.virtual_hosts().iter().flat_map(|host| &host.domains);
        let all: BTreeSet<&HostPattern> = patterns(before).chain(patterns(after)).collect();
        let mut regions: BTreeMap<Pair, Vec<(&HostPattern, String)>> = BTreeMap::new();
        for (pattern, sample) in self.sampled(&all, &name) {
            let pair = (before.find_host(&sample), after.find_host(&sample));
            regions.entry(pair).or_default().push((pattern, sample));
        }
        for ((from, to), region) in regions {
            let hosts: Vec<String> = region.iter().map(|(pattern, _)| pattern.to_string()).collect();
            let host = |table: &'a RouteTable, at: Option<usize>| {
                at.and_then(|at| Some((at, &**table.virtual_hosts().get(at)?)))
            };
            match (host(before, from), host(after, to)) {
                (Some((from, a_host)), Some((to, b_host))) => {
                    let patterns = region
                        .into_iter()
                        .map(|(pattern, sample)| {
                            let narrower = all
                                .iter()
                                .filter(|other| **other != pattern && other.subset_of(pattern));
                            // Many: those that are left out are asked for when something is found.
                            (pattern, narrower.take(HOSTS_MAX * 8).copied().collect(), sample)
                        })
                        .collect();
                    let region = Region {
                        old: (before, from),
                        new: (after, to),
                        scheme,
                        patterns,
                    };
                    self.hosts(&name, hosts, (old, a, a_host), (new, b, b_host), &region);
                }
                (Some((at, host)), None) => {
                    self.one_sided(Kind::HostLost, &name, hosts, (old, a), (before, at, host), scheme)
                }
                (None, Some((at, host))) => {
                    self.one_sided(Kind::HostNew, &name, hosts, (new, b), (after, at, host), scheme)
                }
                (None, None) => {}
            }
        }
    }

    /// Hosts that only one side serves.
    fn one_sided(
        &mut self,
        kind: Kind,
        name: &str,
        hosts: Vec<String>,
        (door, table_at): (Door<'a>, Option<usize>),
        (table, at, host): (&RouteTable, usize, &VirtualHost),
        scheme: &'static str,
    ) {
        if host.routes().is_empty() && !host.https_redirect {
            // Nothing is there either way.
            return;
        }
        let decided = if host.https_redirect {
            None
        } else {
            let rules = 0..host.routes().len().min(WITNESSES_MAX);
            let mut shown =
                rules.filter_map(|rule| Some((rule, self.analyzer.witness(table, at, scheme, rule)?)));
            shown.next()
        };
        let decision = if host.https_redirect {
            Some(to_https())
        } else {
            decided
                .as_ref()
                .map(|(rule, _)| decision(door, table_at, at, host, Some(*rule)))
        };
        let change = self.change(kind, name);
        change.hosts = hosts;
        change.request = decided.map(|(_, head)| Request::new(&head, scheme));
        match kind {
            Kind::HostLost => change.old = decision,
            _ => change.new = decision,
        }
    }

    /// Hosts that both sides serve.
    fn hosts(
        &mut self,
        name: &str,
        hosts: Vec<String>,
        (old, old_table, a): (Door<'a>, Option<usize>, &VirtualHost),
        (new, new_table, b): (Door<'a>, Option<usize>, &VirtualHost),
        region: &Region<'_>,
    ) {
        if a.https_redirect && b.https_redirect {
            return;
        }
        if a.https_redirect != b.https_redirect {
            let change = self.change(Kind::RequestsMoved, name);
            change.hosts = hosts;
            let by_rules = || Decision {
                outcome: "the rules decide".to_owned(),
                rule: String::new(),
                places: Vec::new(),
            };
            (change.old, change.new) = if a.https_redirect {
                (Some(to_https()), Some(by_rules()))
            } else {
                (Some(by_rules()), Some(to_https()))
            };
            change.request = region.patterns.first().map(|(.., sample)| Request {
                method: "GET".to_owned(),
                scheme: region.scheme.to_owned(),
                authority: sample.clone(),
                path: "/".to_owned(),
                headers: Vec::new(),
            });
            return;
        }
        if a.routes() == b.routes() {
            return;
        }
        let compared = rules::compare(region, &mut self.analyzer);
        let more = compared.moved.len().saturating_sub(MOVED_MAX);
        for moved in compared.moved.into_iter().take(MOVED_MAX) {
            let before = decision(old, old_table, region.old.1, a, moved.old);
            let after = decision(new, new_table, region.new.1, b, moved.new);
            let fields = match (route(a, moved.old), route(b, moved.new)) {
                (Some(before), Some(after)) => what_differs(before, after),
                _ => Vec::new(),
            };
            let change = self.change(Kind::RequestsMoved, name);
            change.hosts.clone_from(&hosts);
            change.old = Some(before);
            change.new = Some(after);
            change.fields = fields;
            change.request = Some(Request::new(&moved.request, region.scheme));
        }
        let shown = shown_hosts(&hosts);
        if more > 0 {
            let text = format!("{name}, {shown}: {more} more differences like these are not shown");
            self.found.undecided.push(text);
        }
        for (from, to) in compared.undecided.iter().take(MOVED_MAX) {
            let from = decision(old, old_table, region.old.1, a, *from);
            let to = decision(new, new_table, region.new.1, b, *to);
            let text = format!(
                "{name}, {shown}: whether a request goes from {} to {}",
                in_words(&from),
                in_words(&to)
            );
            self.found.undecided.push(text);
        }
        if compared.incomplete || compared.undecided.len() > MOVED_MAX {
            let text = format!("{name}, {shown}: too many rules differ to compare all of them");
            self.found.undecided.push(text);
        }
    }

    /// Compares the clusters that both sides send to.
    fn clusters(&mut self) {
        let (before, after) = (&self.old.compiled.snapshot, &self.new.compiled.snapshot);
        let used = used(self.old);
        let stays: BTreeSet<ClusterKey> = used.intersection(&self::used(self.new)).cloned().collect();
        let passes = |side: Side<'_>| {
            side.compiled
                .snapshot
                .listeners
                .iter()
                .any(|listener| names_clusters(listener))
        };
        // By name, a client may reach any of them.
        let all = if passes(self.old) && passes(self.new) {
            before
                .clusters
                .keys()
                .chain(after.clusters.keys())
                .cloned()
                .collect()
        } else {
            stays
        };
        for key in all {
            let (kind, fields) = match (before.clusters.get(&key), after.clusters.get(&key)) {
                (Some(old), Some(new)) => {
                    let (old, new) = (behaviour(old), behaviour(new));
                    if old == new {
                        continue;
                    }
                    let mut fields = fields::changes(&old, &new);
                    for change in &mut fields {
                        change.field = change.field.replacen("endpoints.endpoints", "endpoints", 1);
                    }
                    (Kind::ClusterChanged, fields)
                }
                (Some(_), None) => (Kind::ClusterLost, Vec::new()),
                (None, Some(_)) => (Kind::ClusterNew, Vec::new()),
                (None, None) => continue,
            };
            let request = self.request_to(&key);
            let change = self.change(kind, &cluster(&key));
            change.fields = fields;
            change.request = request;
        }
    }

    /// A request that both sides may send to a cluster.
    fn request_to(&mut self, key: &ClusterKey) -> Option<Request> {
        let mut left = WITNESSES_MAX;
        for listener in &self.new.compiled.snapshot.listeners {
            let scheme = match listener.accepts {
                Accepts::Tls(_) => "https",
                _ => "http",
            };
            let others = &self.old.compiled.snapshot.listeners;
            let other = others.iter().find(|other| other.key == listener.key);
            for table in &listener.tables {
                for (at, host) in table.virtual_hosts().iter().enumerate() {
                    let rules = host.routes().iter().enumerate();
                    for (rule, _) in rules.filter(|(_, route)| sends_to(route, key)) {
                        left = left.checked_sub(1)?;
                        let Some(head) = self.analyzer.witness(table, at, scheme, rule) else {
                            continue;
                        };
                        let mut scratch = Scratch::default();
                        let mut before =
                            other
                                .into_iter()
                                .flat_map(|other| &other.tables)
                                .filter_map(|table| {
                                    let host = table.virtual_hosts().get(table.find_host(&head.host)?)?;
                                    host.find(&head, scheme, &mut scratch)
                                });
                        if before.any(|route| sends_to(route, key)) {
                            return Some(Request::new(&head, scheme));
                        }
                    }
                }
            }
        }
        None
    }

    /// Tells of other workloads that clients may be, where rules ask for it.
    fn sources(&mut self) {
        let asks = |side: Side<'_>| {
            let listeners = side.compiled.snapshot.listeners.iter();
            let mut tables = listeners.flat_map(|listener| &listener.tables);
            tables.any(|table| table.virtual_hosts().iter().any(|host| host.asks_who()))
        };
        let same = self.old.compiled.snapshot.sources == self.new.compiled.snapshot.sources;
        if !same && (asks(self.old) || asks(self.new)) {
            let text = "whether rules that ask for a client's labels or namespace still take its requests: the registry's workloads changed";
            self.found.undecided.push(text.to_owned());
        }
    }

    fn credentials(&mut self) {
        let (before, after) = (&self.old.compiled.secrets, &self.new.compiled.secrets);
        let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for id in names {
            let state = |present: bool| present.then(|| "there".to_owned());
            let (old, new) = (before.get(id), after.get(id));
            if old == new {
                continue;
            }
            let fields = match (old, new) {
                (Some(_), Some(_)) => Vec::new(),
                _ => vec![FieldChange {
                    field: "secret".to_owned(),
                    old: state(old.is_some()),
                    new: state(new.is_some()),
                }],
            };
            let subject = format!("{}/{}", id.0, id.1);
            self.change(Kind::CredentialChanged, &subject).fields = fields;
        }
    }
}

/// A cluster without what makes no difference to a request: the order of its endpoints, and the namespace of its
/// service, which is a label of metrics.
fn behaviour(spec: &ClusterSpec) -> ClusterSpec {
    let mut spec = spec.clone();
    let mut endpoints = spec.endpoints.endpoints.clone();
    endpoints.sort_by_cached_key(|endpoint| (endpoint.address, content_hash(endpoint)));
    spec.endpoints = Arc::new(EndpointSet {
        endpoints,
        discovery: spec.endpoints.discovery.clone(),
    });
    spec.namespace = "".into();
    spec
}

fn to_https() -> Decision {
    Decision {
        outcome: "redirect 301 to https".to_owned(),
        rule: String::new(),
        places: Vec::new(),
    }
}

fn hosts_of(listener: &Listener) -> Vec<String> {
    let tables = listener.tables.iter().flat_map(|table| table.virtual_hosts());
    let hosts = tables.flat_map(|host| &host.domains);
    let names = match &listener.accepts {
        Accepts::Tls(table) => table.names(),
        _ => &[],
    };
    let all: BTreeSet<String> = hosts
        .chain(names.iter().map(|(name, _)| name))
        .map(ToString::to_string)
        .collect();
    all.into_iter().collect()
}

fn names_clusters(listener: &Listener) -> bool {
    match &listener.accepts {
        Accepts::Tls(table) => {
            let mut chains = table.chains().iter();
            chains.any(|chain| matches!(chain.action, ChainAction::AutoPass(_)))
        }
        Accepts::Http | Accepts::Tcp(_) => false,
    }
}

fn route(host: &VirtualHost, at: Option<usize>) -> Option<&Route> {
    host.routes().get(at?)
}

fn sends_to(route: &Route, key: &ClusterKey) -> bool {
    fields::leaves(&*route.action)
        .iter()
        .any(|leaf| leaf == key.as_str())
}

/// Every cluster that a rule names.
fn used(side: Side<'_>) -> BTreeSet<ClusterKey> {
    let snapshot = &side.compiled.snapshot;
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut add =
        |leaves: Vec<String>| names.extend(leaves.into_iter().filter(|leaf| leaf.starts_with("outbound|")));
    for listener in &snapshot.listeners {
        let mut seen: HashSet<*const Action> = HashSet::new();
        for host in listener.tables.iter().flat_map(|table| table.virtual_hosts()) {
            for route in host.routes() {
                if seen.insert(Arc::as_ptr(&route.action)) {
                    add(fields::leaves(&*route.action));
                }
            }
        }
        match &listener.accepts {
            Accepts::Http => {}
            Accepts::Tcp(route) => add(fields::leaves(route)),
            Accepts::Tls(table) => {
                for chain in table.chains() {
                    add(fields::leaves(&chain.action));
                }
            }
        }
    }
    let key = |name: &String| {
        let mut parts = name.splitn(4, '|').skip(1);
        let (port, subset, host) = (parts.next()?, parts.next()?, parts.next()?);
        Some(ClusterKey::outbound(port.parse().ok()?, subset, host))
    };
    names.iter().filter_map(key).collect()
}

/// Changes of the fields of one with a name.
fn named(name: &str, mut changes: Vec<FieldChange>) -> Vec<FieldChange> {
    for change in &mut changes {
        let dot = if change.field.is_empty() || change.field.starts_with('[') {
            ""
        } else {
            "."
        };
        change.field = format!("{name}{dot}{}", change.field);
    }
    changes
}

/// The fields by which two routes do different things.
fn what_differs(old: &Route, new: &Route) -> Vec<FieldChange> {
    let mut changes = fields::changes(&*old.action, &*new.action);
    // Another kind of action is told by its outcome.
    changes.retain(|change| !change.field.is_empty());
    let headers = fields::changes(&old.response_headers, &new.response_headers);
    changes.extend(named("responseHeaders", headers));
    changes
}

fn cluster(key: &ClusterKey) -> String {
    match key.subset() {
        "" => format!("{}:{}", key.host(), key.port()),
        subset => format!("{}:{} {subset}", key.host(), key.port()),
    }
}

fn destinations<'k>(all: impl Iterator<Item = (&'k ClusterKey, u32)>) -> String {
    let all: Vec<(&ClusterKey, u32)> = all.collect();
    if let [(only, _)] = all[..] {
        return cluster(only);
    }
    let total: u64 = all.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let share = |(key, weight): &(&ClusterKey, u32)| format!("{weight}/{total} {}", cluster(key));
    all.iter().map(share).collect::<Vec<_>>().join(", ")
}

/// What a host does with what a rule takes.
fn decision(
    door: Door<'_>,
    table: Option<usize>,
    host_at: usize,
    host: &VirtualHost,
    rule: Option<usize>,
) -> Decision {
    let Some((at, route)) = rule.and_then(|at| Some((at, host.routes().get(at)?))) else {
        return Decision {
            outcome: "404".to_owned(),
            rule: String::new(),
            places: Vec::new(),
        };
    };
    let outcome = match &*route.action {
        Action::Forward(forward) => {
            let all = forward.destinations.iter();
            destinations(all.map(|destination| (&destination.cluster, destination.weight)))
        }
        Action::Redirect(to) => format!("redirect {}", to.status.as_u16()),
        Action::Respond(direct) => format!("answer {}", direct.status.as_u16()),
    };
    let name = if route.name.is_empty() {
        String::new()
    } else {
        format!(" `{}`", route.name)
    };
    let key = (&door.listener.key, table.unwrap_or(0));
    let places = door
        .side
        .compiled
        .origins
        .of_route(door.side.sources, key, host_at, at);
    Decision {
        outcome,
        rule: format!("VirtualService {}{name}", route.virtual_service),
        places: places
            .iter()
            .map(|place| format!("{}:{}:{}", place.file, place.line, place.column))
            .collect(),
    }
}

fn in_words(decision: &Decision) -> String {
    let Decision {
        outcome,
        rule,
        places,
    } = decision;
    let mut text = outcome.clone();
    if !rule.is_empty() {
        let _ = write!(text, " ({rule}");
        for place in places.iter().take(1) {
            let _ = write!(text, ", {place}");
        }
        text.push(')');
    }
    text
}

fn shown_hosts(hosts: &[String]) -> String {
    let first: Vec<&str> = hosts.iter().take(HOSTS_MAX).map(String::as_str).collect();
    let more = hosts.len() - first.len();
    if more > 0 {
        format!("{} and {more} more hosts", first.join(", "))
    } else {
        first.join(", ")
    }
}

/// The difference as text: a paragraph for each change.
pub fn render(difference: &Difference) -> String {
    let mut out = String::new();
    for change in &difference.changes {
        let Change {
            kind,
            subject,
            hosts,
            old,
            new,
            fields,
            request,
        } = change;
        let (mark, what) = match kind {
            Kind::ListenerNew => ("+", format!("{subject} is opened")),
            Kind::ListenerLost => ("-", format!("{subject} is closed")),
            Kind::ListenerChanged => ("~", format!("{subject} changes")),
            Kind::HostNew => ("+", format!("{subject}: new hosts")),
            Kind::HostLost => ("-", format!("{subject}: hosts are served no more")),
            Kind::RequestsMoved => ("~", format!("{subject}: requests are decided differently")),
            Kind::ClusterChanged => ("~", format!("cluster {subject} changes")),
            Kind::ClusterNew => ("+", format!("cluster {subject} is known now")),
            Kind::ClusterLost => ("-", format!("cluster {subject} is known no more: 503")),
            Kind::CredentialChanged => ("~", format!("credential {subject} changes")),
        };
        let _ = writeln!(out, "{mark} {what}");
        if !hosts.is_empty() {
            let _ = writeln!(out, "    hosts: {}", shown_hosts(hosts));
        }
        if let Some(request) = request {
            let _ = writeln!(out, "    request: {request}");
        }
        for (label, decision) in [("old", old), ("new", new)] {
            if let Some(decision) = decision {
                let _ = writeln!(out, "    {label}: {}", in_words(decision));
            }
        }
        for FieldChange { field, old, new } in fields {
            let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let _ = writeln!(out, "    {field}: {} -> {}", word(old), word(new));
        }
    }
    for text in &difference.undecided {
        let _ = writeln!(out, "? undecided: {text}");
    }
    let number = difference.changes.len();
    let plural = if number == 1 { "" } else { "s" };
    let _ = match (number, difference.undecided.len()) {
        (0, 0) => writeln!(out, "no change: every request is decided as before"),
        (_, 0) => writeln!(out, "{number} change{plural}"),
        (_, open) => writeln!(out, "{number} change{plural}, {open} undecided"),
    };
    out
}

/// The difference as JSON, with the fields of [`Difference`].
pub fn to_json(difference: &Difference) -> serde_json::Value {
    serde_json::to_value(difference).unwrap_or_default()
}
