//! Puts an explanation together: the decision by the index, the reasons by reading, the places from the documents.

use super::decide::{By, Decided, Verdict, caller, decide, scheme_of, server_name};
use super::documents::{At, Documents, written};
use super::{
    Asked, ChainShown, DestinationShown, Explanation, HostShown, Known, ListenerShown, Outcome, PassedShown,
    RequestShown, RuleShown, ServerShown, ValueOrigin, ValueShown,
};
use crate::Defaults;
use crate::index::GatewayName;
use crate::mesh::MeshConfig;
use crate::origins::{PolicyPlace, RouteOrigin, RuleOrigin, ServerOrigin, WHOLE_RESOURCE};
use crate::view;
use crate::yaml::{Node, Path};
use isthmus_core::attempt::RetryPolicy;
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::listener::{Accepts, ChainAction, Listener, TcpRoute};
use isthmus_core::message::RequestHead;
use isthmus_core::name::ClusterKey;
use isthmus_core::reply::{Cause, Flags, LocalReply};
use isthmus_core::route::{
    AbortWith, Action, Condition, CorsRequest, Forward, Route, Scratch, Share, VirtualHost, split_port,
};
use isthmus_core::source::Caller;
use serde_json::{Value, json};
use std::collections::HashSet;

/// Most rules before the one that decides that are kept; the rest are counted.
pub(super) const PASSED_MAX: usize = 1000;
/// Most of what may help that is told of one kind.
pub(super) const NOTES_MAX: usize = 10;
/// Keys of a rule that say which requests and where to, not what is done with them.
const NO_VALUES: [&str; 4] = ["name", "match", "route", "delegate"];
/// What replaces each other as a whole in a traffic policy.
const BLOCKS: [&str; 7] = [
    "loadBalancer",
    "connectionPool",
    "outlierDetection",
    "tls",
    "proxyProtocol",
    "tunnel",
    "retryBudget",
];
/// What a HealthCheckPolicy says, beside what it is for.
const HEALTH: [&str; 4] = ["probe", "expectedStatuses", "initialState", "panicThreshold"];
/// An explanation that is being put together.
pub(super) struct Builder<'a> {
    pub(super) known: &'a Known<'a>,
    pub(super) asked: &'a Asked,
    pub(super) head: RequestHead,
    pub(super) documents: Documents<'a>,
    pub(super) out: Explanation,
}

pub(super) fn explain(known: &Known<'_>, asked: &Asked) -> Explanation {
    let mut scratch = Scratch::default();
    let Decided { decision, head } = decide(
        asked,
        By::Index,
        known.snapshot,
        known.origins,
        known.settings,
        &mut scratch,
    );
    let request = RequestShown {
        method: asked.method.to_string(),
        url: asked.url.clone(),
        authority: asked.authority.clone(),
        host: head.host.clone(),
        path: if head.path.is_empty() {
            &asked.path
        } else {
            &head.path
        }
        .clone(),
        scheme: asked.scheme.as_str().to_owned(),
        sni: matches!(asked.scheme, super::Scheme::Https | super::Scheme::Tls)
            .then(|| server_name(asked))
            .flatten(),
        source: asked.source.to_string(),
        headers: fields(&head),
    };
    let mut builder = Builder {
        known,
        asked,
        head,
        documents: Documents::new(known.origins, known.sources),
        out: Explanation {
            version: known.snapshot.version,
            request,
            outcome: outcome("refused", ""),
            listener: None,
            chain: None,
            servers: Vec::new(),
            virtual_host: None,
            rule: None,
            values: Vec::new(),
            route: Value::Null,
            destinations: Vec::new(),
            passed_over: Vec::new(),
            passed_over_more: 0,
            notes: Vec::new(),
        },
    };
    let listener = decision.listener.and_then(|at| known.snapshot.listeners.get(at));
    match listener {
        Some(listener) => {
            builder.add_listener(listener, decision.chain);
            let host = decision.host.and_then(|(table, host)| {
                let found = listener.tables.get(table)?.virtual_hosts().get(host)?;
                Some((table, host, &**found))
            });
            builder.add_outcome(listener, decision.chain, host, &decision.verdict, &mut scratch);
        }
        None => builder.no_listener(),
    }
    if !builder.out.outcome.routed {
        builder.add_findings();
    }
    builder.out
}

fn fields(head: &RequestHead) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let fields = head.headers.iter();
    fields
        .map(|(_, name, value)| (text(name).to_ascii_lowercase(), text(value)))
        .collect()
}

pub(super) fn outcome(kind: &str, text: impl Into<String>) -> Outcome {
    Outcome {
        kind: kind.to_owned(),
        routed: false,
        status: None,
        flags: Flags::NONE.to_string(),
        cause: None,
        text: text.into(),
        location: None,
        body: None,
    }
}

fn has_names(spec: &ClusterSpec) -> bool {
    let found = spec.endpoints.discovery.as_ref();
    found.is_some_and(|found| !found.names.is_empty())
}

/// Why a cluster answers nothing, whatever the state of its endpoints is.
fn unservable(spec: Option<&ClusterSpec>) -> Option<Cause> {
    match spec {
        None => Some(Cause::NoCluster),
        // What is known by name has its endpoints where it is looked up.
        Some(spec) if spec.endpoints.endpoints.is_empty() && !has_names(spec) => Some(Cause::NoEndpoint),
        Some(_) => None,
    }
}

fn by_default(name: &str, value: String, default: &str) -> ValueShown {
    ValueShown {
        name: name.to_owned(),
        value,
        origin: ValueOrigin::Default {
            default: default.to_owned(),
        },
        executed: true,
    }
}

/// Calls `with` with the path of a rule of a list, or of one match of it.
pub(super) fn with_rule<T>(
    list: &str,
    rule: usize,
    matched: Option<usize>,
    with: impl FnOnce(&Path<'_>) -> T,
) -> T {
    if rule == WHOLE_RESOURCE {
        return with(&Path::SPEC);
    }
    let list = Path::SPEC.key(list);
    let rule = list.index(rule);
    let matches = rule.key("match");
    match matched {
        Some(at) => with(&matches.index(at)),
        None => with(&rule),
    }
}

impl From<RuleOrigin> for At {
    fn from(origin: RuleOrigin) -> Self {
        Self {
            document: origin.document,
            item: origin.item,
        }
    }
}

impl<'a> Builder<'a> {
    fn add_listener(&mut self, listener: &'a Listener, chain: Option<usize>) {
        self.out.listener = Some(ListenerShown {
            port: listener.key.port,
            bind: listener.key.bind.map(|bind| bind.to_string()),
            accepts: view::transport(&listener.accepts).to_owned(),
        });
        let (Accepts::Tls(names), Some(at)) = (&listener.accepts, chain) else {
            return;
        };
        let name = server_name(self.asked);
        let found = names
            .read(name.as_deref())
            .map(|(_, pattern)| pattern.to_string());
        if let Some(chain) = names.chains().get(at) {
            self.out.chain = Some(ChainShown {
                server: chain.server.to_string(),
                name: found.unwrap_or_default(),
            });
        }
    }

    /// The servers of a listener that are meant.
    fn add_servers(&mut self, listener: &Listener, is_meant: impl Fn(&ServerOrigin) -> bool) {
        let origins = self.known.origins;
        let servers = origins
            .servers
            .iter()
            .filter(|server| server.listener == listener.key);
        for server in servers.filter(|server| is_meant(server)).take(NOTES_MAX) {
            let list = Path::SPEC.key("servers");
            let at = self
                .documents
                .place((&server.origin).into(), &list.index(server.server));
            self.out.servers.push(ServerShown {
                gateway: server.gateway.clone(),
                server: server.server,
                port_name: server.port_name.clone(),
                protocol: server.protocol.clone(),
                hosts: server.hosts.iter().map(ToString::to_string).collect(),
                at,
            });
        }
    }

    fn add_outcome(
        &mut self,
        listener: &'a Listener,
        chain: Option<usize>,
        host: Option<(usize, usize, &'a VirtualHost)>,
        verdict: &Verdict,
        scratch: &mut Scratch,
    ) {
        let routes = host.map(|(table, at, host)| {
            let origins = self.known.origins.routes.get(&(listener.key.clone(), table));
            let origins: &'a [RouteOrigin] =
                origins.and_then(|hosts| hosts.get(at)).map_or(&[], Vec::as_slice);
            (host, origins)
        });
        let gateways: HashSet<usize> = match (&routes, verdict) {
            (Some((_, origins)), Verdict::Route(at)) => origins
                .get(*at)
                .map(|origin| origin.gateway)
                .into_iter()
                .collect(),
            (Some((_, origins)), _) => origins.iter().map(|origin| origin.gateway).collect(),
            (None, _) => HashSet::new(),
        };
        let chain_server = self.out.chain.as_ref().map(|chain| chain.server.clone());
        let name = self.head.host.clone();
        match (&chain_server, &routes) {
            (Some(of_chain), _) => self.add_servers(listener, |server| {
                format!("{}/{}", server.gateway, server.port_name) == *of_chain
            }),
            (None, Some(_)) => self.add_servers(listener, |server| {
                let is_bound = gateways.is_empty() || gateways.contains(&server.gateway_at);
                is_bound && server.hosts.iter().any(|host| host.matches(&name))
            }),
            (None, None) => self.add_servers(listener, |_| true),
        }
        if let Some((host, origins)) = routes {
            self.add_host(host, &name);
            let caller = caller(self.asked, listener, self.known.snapshot);
            self.add_passed(host, origins, verdict, caller, scratch);
        }
        match verdict {
            Verdict::Route(at) => {
                if let Some((host, origins)) = routes
                    && let Some(route) = host.routes().get(*at)
                {
                    self.add_route(listener, route, origins.get(*at).copied());
                }
            }
            Verdict::HttpsRedirect => {
                let host = split_port(&self.head.authority).0;
                let location = format!("https://{host}{}", self.head.path);
                self.out.outcome = Outcome {
                    routed: true,
                    status: Some(301),
                    location: Some(location),
                    ..outcome("https_redirect", "the server redirects everything to https")
                };
            }
            Verdict::Bytes => self.add_bytes(listener, chain),
            Verdict::Cluster(key) => {
                let text = format!("the name spells the cluster {key}, and its bytes go there");
                self.out.outcome = Outcome {
                    routed: true,
                    ..outcome("bytes", text)
                };
                self.add_destination(key, 1, 1, None, Vec::new(), None, &Value::Null);
            }
            Verdict::Refused(cause) => self.refused(listener, host.map(|(.., host)| host), *cause),
            Verdict::WrongProtocol => {
                let carries = match listener.accepts {
                    Accepts::Http => "plaintext HTTP",
                    Accepts::Tls(_) => "TLS",
                    Accepts::Tcp(_) => "bytes",
                };
                let text = format!(
                    "port {} carries {carries}, and the client speaks {}: nothing is answered that it understands",
                    listener.key.port,
                    self.asked.scheme.as_str()
                );
                self.out.outcome = outcome("wrong_protocol", text);
            }
            Verdict::NoListener => self.no_listener(),
        }
    }

    fn add_host(&mut self, host: &VirtualHost, name: &str) {
        let domains = host.domains.iter().filter(|domain| domain.matches(name));
        let domain = domains.min_by(|a, b| a.by_specificity(b));
        self.out.virtual_host = Some(HostShown {
            name: host.name.to_string(),
            domain: domain.map(ToString::to_string).unwrap_or_default(),
            domains: host.domains.iter().map(ToString::to_string).collect(),
            routes: host.routes().len(),
        });
    }

    fn rule(&mut self, route: &Route, origin: Option<RouteOrigin>) -> RuleShown {
        let own = origin.map(|origin| origin.own);
        let place = |documents: &mut Documents<'_>, origin: RuleOrigin| {
            with_rule("http", origin.rule, origin.matched, |path| {
                documents.place(origin.into(), path)
            })
        };
        RuleShown {
            virtual_service: route.virtual_service.to_string(),
            resource: own
                .map(|own| self.documents.resource(own.into()))
                .unwrap_or_default(),
            field: own
                .map(|own| with_rule("http", own.rule, own.matched, |path| path.to_string()))
                .unwrap_or_default(),
            name: route.name.to_string(),
            at: own.and_then(|own| place(&mut self.documents, own)),
            delegated_at: origin
                .and_then(|origin| origin.root)
                .and_then(|root| place(&mut self.documents, root)),
            conditions: view::conditions(&route.matches),
        }
    }

    /// The rules before the one that decides, each with its reason: those that the request misses, and those that the
    /// compiler did not put into the table.
    fn add_passed(
        &mut self,
        host: &'a VirtualHost,
        origins: &'a [RouteOrigin],
        verdict: &Verdict,
        caller: Caller<'_>,
        scratch: &mut Scratch,
    ) {
        if host.https_redirect {
            return;
        }
        let head = self.head.clone();
        let mut missed = Vec::new();
        let _decided_by_the_index = host.read(&head, caller, scratch, |at, mismatch| {
            let near = !matches!(mismatch.condition, Condition::Path(_));
            missed.push((at, near, mismatch.to_string()));
        });
        self.out.passed_over_more = missed.len().saturating_sub(PASSED_MAX);
        for (at, near, reason) in missed.into_iter().take(PASSED_MAX) {
            if let Some(route) = host.routes().get(at) {
                let rule = self.rule(route, origins.get(at).copied());
                self.out.passed_over.push(PassedShown { rule, reason, near });
            }
        }
        let until = match verdict {
            Verdict::Route(at) => origins.get(*at).copied(),
            _ => None,
        };
        self.add_left_out(host, origins, until);
    }

    /// Rules of the VirtualServices of a virtual host that are in no table here, up to the one that decides.
    fn add_left_out(&mut self, host: &VirtualHost, origins: &[RouteOrigin], until: Option<RouteOrigin>) {
        let mut seen = HashSet::new();
        let in_table: HashSet<(usize, Option<usize>, usize, Option<usize>)> = origins
            .iter()
            .map(|origin| origin.root.unwrap_or(origin.own))
            .map(|rule| (rule.document, rule.item, rule.rule, rule.matched))
            .collect();
        let end = until.map(|until| until.root.unwrap_or(until.own));
        // Of each rule that is told already.
        let mut tops: Vec<RuleOrigin> = origins
            .iter()
            .map(|origin| origin.root.unwrap_or(origin.own))
            .take(self.out.passed_over.len())
            .collect();
        for (route, origin) in host.routes().iter().zip(origins) {
            let top = origin.root.unwrap_or(origin.own);
            let at = At::from(top);
            if !seen.insert((top.document, top.item)) {
                continue;
            }
            let list = Path::SPEC.key("http");
            let rules = self
                .documents
                .node(at, &list)
                .map_or(Vec::new(), |node| node.items().to_vec());
            let mut takes_all = false;
            for (rule, node) in rules.iter().enumerate() {
                if node.get("delegate").is_some() {
                    continue;
                }
                let matches = node.list("match");
                let parts = if matches.is_empty() {
                    vec![(None, &Node::Null)]
                } else {
                    matches
                        .iter()
                        .enumerate()
                        .map(|(at, node)| (Some(at), node))
                        .collect()
                };
                for (matched, node) in parts {
                    let is_behind = end.is_some_and(|end| {
                        (end.document, end.item) == (top.document, top.item)
                            && (rule, matched) >= (end.rule, end.matched)
                    });
                    if is_behind {
                        continue;
                    }
                    if in_table.contains(&(top.document, top.item, rule, matched)) {
                        takes_all |= matched.is_none();
                        continue;
                    }
                    let reason = self.why_left_out(node, origin.gateway, takes_all);
                    let place = with_rule("http", rule, matched, |path| self.documents.place(at, path));
                    let shown = RuleShown {
                        virtual_service: route.virtual_service.to_string(),
                        resource: self.documents.resource(at),
                        field: with_rule("http", rule, matched, |path| path.to_string()),
                        name: String::new(),
                        at: place,
                        delegated_at: None,
                        conditions: Vec::new(),
                    };
                    if self.out.passed_over.len() < PASSED_MAX {
                        // Where it would stand if it were there.
                        let later = tops.iter().position(|other| {
                            (other.document, other.item) == (top.document, top.item)
                                && (other.rule, other.matched) > (rule, matched)
                        });
                        let to = later.unwrap_or(tops.len());
                        tops.insert(to, RuleOrigin { rule, matched, ..top });
                        let passed = PassedShown {
                            rule: shown,
                            reason,
                            near: false,
                        };
                        self.out.passed_over.insert(to, passed);
                    } else {
                        self.out.passed_over_more += 1;
                    }
                }
            }
        }
    }

    pub(super) fn why_left_out(&self, matched: &Node, gateway: usize, takes_all: bool) -> String {
        let servers = &self.known.origins.servers;
        let own = servers.iter().find(|server| server.gateway_at == gateway);
        let own = own.map_or("", |server| server.gateway.as_str());
        let port = self.out.listener.as_ref().map_or(0, |listener| listener.port);
        let gateways = matched.texts("gateways");
        let is_own = |name: &String| {
            GatewayName::parse(name, own.split('/').next().unwrap_or(""))
                .is_some_and(|name| matches!(name, GatewayName::Named { id, .. } if id == own))
        };
        if !gateways.is_empty() && !gateways.iter().any(is_own) {
            return format!(
                "it is for the gateways {}, and this is {own}",
                gateways.join(", ")
            );
        }
        if let Some(wanted) = matched
            .int("port")
            .filter(|wanted| *wanted != 0 && *wanted != i128::from(port))
        {
            return format!("it is for port {wanted}, and this is port {port}");
        }
        for key in ["sourceLabels", "sourceNamespace"] {
            if let Some(node) = matched.get(key) {
                return format!("it is for clients with {key} {}", written(node));
            }
        }
        if takes_all {
            "an earlier rule of the VirtualService takes every request".to_owned()
        } else {
            "the compiler left it out: `isthmus check` says why, if it is not that an earlier rule takes every request"
                .to_owned()
        }
    }

    fn add_route(&mut self, listener: &Listener, route: &'a Route, origin: Option<RouteOrigin>) {
        self.out.rule = Some(self.rule(route, origin));
        self.out.route = view::route(route);
        if let Some(origin) = origin {
            self.add_values(origin, &route.action);
        }
        let scheme = scheme_of(listener);
        self.out.outcome = match &*route.action {
            Action::Redirect(redirect) => {
                let location = redirect.location(&self.head, scheme, listener.key.port);
                Outcome {
                    routed: true,
                    status: Some(redirect.status.as_u16()),
                    text: format!("redirected to {location}"),
                    location: Some(location),
                    ..outcome("redirect", "")
                }
            }
            Action::Respond(direct) => Outcome {
                routed: true,
                status: Some(direct.status.as_u16()),
                body: Some(String::from_utf8_lossy(&direct.body).into_owned()),
                ..outcome("direct_response", "answered by the gateway itself")
            },
            Action::Forward(forward) => {
                self.add_destinations(forward, origin);
                let text = match &forward.destinations[..] {
                    [only] => format!("forwarded to {}", only.cluster),
                    several => format!("forwarded to one of {} destinations", several.len()),
                };
                self.local_answer(forward).unwrap_or_else(|| Outcome {
                    routed: true,
                    ..outcome("forward", text)
                })
            }
        };
    }

    /// What the gateway answers by itself although a rule forwards: for certain, not what is drawn.
    fn local_answer(&self, forward: &Forward) -> Option<Outcome> {
        let local = |kind: &str, status: Option<u16>, text: String| Outcome {
            routed: true,
            status,
            ..outcome(kind, text)
        };
        let abort = forward.fault.as_ref().and_then(|fault| fault.abort);
        if let Some(abort) = abort.filter(|abort| abort.share == Share::ALWAYS) {
            let (status, how) = match abort.with {
                AbortWith::Status(status) => (Some(status.as_u16()), "answered"),
                AbortWith::Grpc(_) => (Some(200), "answered with a status of gRPC"),
                AbortWith::Reset => (None, "reset"),
            };
            let mut out = local("fault", status, format!("{how} by the rule's own fault"));
            out.flags = Flags::FI.to_string();
            return Some(out);
        }
        let cors = forward.cors.as_ref();
        match cors.map(|cors| cors.judge(&self.head, &mut Scratch::default())) {
            Some(CorsRequest::Preflight) => {
                let text = "a preflight, answered by the rule's corsPolicy";
                return Some(local("preflight", Some(200), text.to_owned()));
            }
            Some(CorsRequest::Refused) => {
                let text = "a preflight, answered by the rule's corsPolicy in a way that allows nothing";
                return Some(local("preflight", Some(200), text.to_owned()));
            }
            _ => {}
        }
        let mut causes = forward.destinations.iter().map(|destination| {
            let spec = self.known.snapshot.clusters.get(&destination.cluster);
            unservable(spec.map(|spec| &**spec))
        });
        let first = causes.next()??;
        causes.all(|cause| cause.is_some()).then(|| Outcome {
            routed: true,
            status: Some(first.status().as_u16()),
            flags: LocalReply::from(first).flags.to_string(),
            cause: Some(first.label().to_owned()),
            ..outcome("refused", format!("refused: {}", first.text().trim_end()))
        })
    }

    /// What a rule says: what a delegate does not say, the rule says that delegates to it.
    fn add_values(&mut self, origin: RouteOrigin, action: &Action) {
        let mut told: Vec<String> = Vec::new();
        let mut values = Vec::new();
        for rule in std::iter::once(origin.own).chain(origin.root) {
            with_rule("http", rule.rule, None, |path| {
                let node = self.documents.node(rule.into(), path);
                let keys: Vec<String> = node.map_or(Vec::new(), |node| {
                    let entries = node.entries().iter().filter(|(_, value)| *value != Node::Null);
                    entries.map(|(key, _)| key.clone()).collect()
                });
                for key in keys {
                    if NO_VALUES.contains(&key.as_str()) || told.contains(&key) {
                        continue;
                    }
                    let field = format!("http[].{key}");
                    let names = (key.as_str(), "VirtualService", field.as_str());
                    self.documents
                        .values(rule.into(), &path.key(&key), names, &mut values);
                    told.push(key);
                }
            });
        }
        if let Action::Forward(forward) = action {
            let told = |name: &str| told.iter().any(|known| known == name);
            if !told("timeout") {
                let value = forward.timeout.map_or("none".to_owned(), view::duration);
                values.push(by_default("timeout", value, self.defaults()));
            }
            if !told("retries") {
                let policy = &forward.retry;
                let place = if policy.ignores_previous_hosts(false) {
                    " on another endpoint"
                } else {
                    ""
                };
                let value = match policy.retries {
                    0 => "none".to_owned(),
                    retries => format!(
                        "{retries}{place}, {} back-off, on {}",
                        view::duration(policy.backoff),
                        policy.on.words().collect::<Vec<_>>().join(",")
                    ),
                };
                let is_default = *policy == RetryPolicy::default();
                let whose = if is_default { "Istio" } else { "mesh config" };
                values.push(by_default("retries", value, whose));
            }
        }
        self.out.values = values;
    }

    fn defaults(&self) -> &'static str {
        match self.known.origins.options.defaults {
            Defaults::Seed => "seed",
            Defaults::Current => "current",
        }
    }

    fn add_destinations(&mut self, forward: &'a Forward, origin: Option<RouteOrigin>) {
        let total: u64 = forward.destinations.iter().map(|one| u64::from(one.weight)).sum();
        let own = origin.map(|origin| origin.own);
        // Those without weight among several are not compiled.
        let places: Vec<usize> = own.map_or(Vec::new(), |own| {
            with_rule("http", own.rule, None, |path| {
                let node = self.documents.node(own.into(), &path.key("route"));
                let items = node.map_or(&[][..], Node::items);
                let only = items.len() == 1;
                let kept = items.iter().enumerate();
                kept.filter(|(_, item)| only || item.int("weight").unwrap_or(0) > 0)
                    .map(|(at, _)| at)
                    .collect()
            })
        });
        let compiled = self.out.route["forward"]["destinations"].clone();
        for (at, destination) in forward.destinations.iter().enumerate() {
            let mut values = Vec::new();
            let mut place = None;
            if let (Some(own), Some(item)) = (own, places.get(at)) {
                with_rule("http", own.rule, None, |path| {
                    let list = path.key("route");
                    let path = list.index(*item);
                    place = self.documents.place(own.into(), &path);
                    let names = ("headers", "VirtualService", "http[].route[].headers");
                    self.documents
                        .values(own.into(), &path.key("headers"), names, &mut values);
                });
            }
            let path = forward.path.as_ref().map(|rewrite| rewrite.apply(&self.head));
            let weight = (destination.weight, total);
            let authority = destination.authority.as_deref().map(str::to_owned);
            self.add_destination(
                &destination.cluster,
                weight.0,
                weight.1,
                place,
                values,
                Some((path, authority)),
                compiled.get(at).unwrap_or(&Value::Null),
            );
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what a destination has in the three kinds of rules"
    )]
    fn add_destination(
        &mut self,
        cluster: &ClusterKey,
        weight: u32,
        total: u64,
        at: Option<crate::Place>,
        values: Vec<ValueShown>,
        sent: Option<(Option<String>, Option<String>)>,
        destination: &Value,
    ) {
        let spec = self.known.snapshot.clusters.get(cluster);
        let origin = self.known.origins.clusters.get(cluster);
        let services = origin.map_or(&[][..], |origin| &origin.services[..]);
        let services = services
            .iter()
            .map(|service| {
                let kind = Path::Root.key("kind");
                (
                    service.resource.to_string(),
                    self.documents.place(service.into(), &kind),
                )
            })
            .collect();
        let problem = unservable(spec.map(|spec| &**spec));
        let mut policy = Vec::new();
        for place in origin.map_or(&[][..], |origin| &origin.policies[..]) {
            for block in BLOCKS {
                let begun = format!("{block}.");
                if !policy
                    .iter()
                    .any(|known: &ValueShown| known.name.starts_with(&begun))
                {
                    self.add_block(place, block, &mut policy);
                }
            }
        }
        for field in HEALTH {
            let Some(health) = origin.and_then(|origin| origin.health.as_ref()) else {
                break;
            };
            let shown = format!("healthCheck.{field}");
            let names = (shown.as_str(), "HealthCheckPolicy", field);
            self.documents
                .values(health.into(), &Path::SPEC.key(field), names, &mut policy);
        }
        if let Some(spec) = spec {
            let has =
                |policy: &[ValueShown], name: &str| policy.iter().any(|value| value.name.starts_with(name));
            let compiled = view::cluster(spec);
            if !has(&policy, "loadBalancer.") {
                let balancer = compiled["balancer"]["kind"].as_str().unwrap_or("").to_owned();
                policy.push(by_default("loadBalancer.simple", balancer, self.defaults()));
            }
            if !has(&policy, "connectionPool.tcp.connectTimeout") {
                let mesh = &self.known.origins.options.mesh;
                let is_written = mesh.connect_timeout != MeshConfig::default().connect_timeout;
                let whose = if is_written { "mesh config" } else { "Istio" };
                let time = view::duration(spec.connect_timeout);
                policy.push(by_default("connectionPool.tcp.connectTimeout", time, whose));
            }
        }
        let (path, authority) = sent.unwrap_or_default();
        self.out.destinations.push(DestinationShown {
            cluster: cluster.to_string(),
            host: cluster.host().to_owned(),
            port: cluster.port(),
            subset: cluster.subset().to_owned(),
            weight,
            percent: u32::try_from(u64::from(weight) * 100 / total.max(1)).unwrap_or(100),
            at,
            values,
            path: path.unwrap_or_else(|| self.head.path.clone()),
            authority: authority.unwrap_or_else(|| self.head.authority.clone()),
            services,
            policy,
            problem: problem.map(|cause| {
                let text = cause.text().trim_end();
                format!("{}: {text}", cause.status().as_u16())
            }),
            endpoints: spec.map_or(Vec::new(), |spec| {
                spec.endpoints.endpoints.iter().map(view::endpoint).collect()
            }),
            compiled: json!({ "destination": destination, "cluster": spec.map(|spec| view::cluster(spec)) }),
        });
    }

    /// A block of a traffic policy, if it is written there.
    fn add_block(&mut self, place: &PolicyPlace, block: &str, out: &mut Vec<ValueShown>) {
        let (subsets, mut field) = (Path::SPEC.key("subsets"), String::new());
        let outer = match place.subset {
            Some(at) => {
                field.push_str("subsets[].");
                subsets.index(at)
            }
            None => Path::SPEC,
        };
        let policy = outer.key("trafficPolicy");
        field.push_str("trafficPolicy.");
        let ports = policy.key("portLevelSettings");
        let inner = place.port.map(|at| {
            field.push_str("portLevelSettings[].");
            ports.index(at)
        });
        field.push_str(block);
        let path = inner.as_ref().unwrap_or(&policy).key(block);
        let names = (block, "DestinationRule", field.as_str());
        self.documents.values((&place.origin).into(), &path, names, out);
    }

    fn add_bytes(&mut self, listener: &'a Listener, chain: Option<usize>) {
        let route: Option<&'a TcpRoute> = match &listener.accepts {
            Accepts::Tcp(route) => route.as_deref(),
            Accepts::Tls(names) => match chain
                .and_then(|at| names.chains().get(at))
                .map(|chain| &chain.action)
            {
                Some(ChainAction::Tcp { route, .. }) => route.as_deref(),
                Some(ChainAction::Pass(route)) => Some(route),
                _ => None,
            },
            Accepts::Http => None,
        };
        let caller = caller(self.asked, listener, self.known.snapshot);
        let Some((first, route)) = route.and_then(|first| Some((first, first.for_caller(&caller)?))) else {
            return;
        };
        let opened = if self.out.chain.is_some() {
            "the connection's bytes"
        } else {
            "bytes"
        };
        self.out.outcome = Outcome {
            routed: true,
            ..outcome(
                "bytes",
                format!("{opened} are passed on by a rule for whole connections"),
            )
        };
        self.out.route = view::tcp_route(route);
        let origin = self.known.origins.streams.get(&(listener.key.clone(), chain));
        // Where a rule for other clients was written is not kept.
        let origin = origin.filter(|_| std::ptr::eq(first, route));
        if let Some(origin) = origin {
            let at = At::from(&origin.origin);
            let field = with_rule(origin.list, origin.rule, origin.matched, |path| path.to_string());
            let place = with_rule(origin.list, origin.rule, origin.matched, |path| {
                self.documents.place(at, path)
            });
            let conditions = with_rule(origin.list, origin.rule, origin.matched, |path| {
                let node = self.documents.node(at, &path.key("sniHosts"));
                node.map(|node| format!("sniHosts {}", written(node)))
                    .into_iter()
                    .collect()
            });
            self.out.rule = Some(RuleShown {
                virtual_service: route.virtual_service.to_string(),
                resource: origin.origin.resource.to_string(),
                field,
                name: String::new(),
                at: place,
                delegated_at: None,
                conditions,
            });
        }
        let total: u64 = route.destinations.iter().map(|one| u64::from(one.weight)).sum();
        let compiled = self.out.route["destinations"].clone();
        for (at, destination) in route.destinations.iter().enumerate() {
            let compiled = compiled.get(at).unwrap_or(&Value::Null);
            let place = origin.and_then(|origin| {
                with_rule(origin.list, origin.rule, None, |path| {
                    let list = path.key("route");
                    self.documents.place((&origin.origin).into(), &list.index(at))
                })
            });
            self.add_destination(
                &destination.cluster,
                destination.weight,
                total,
                place,
                Vec::new(),
                None,
                compiled,
            );
        }
    }
}
