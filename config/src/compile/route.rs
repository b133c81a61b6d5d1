//! Routes: the rules of one VirtualService at one gateway and port.
//!
//! What can be decided before a request comes is decided here: matches of other gateways or ports are left out, rules
//! behind one that takes everything are dropped, header operations are put in the order in which they apply.

use super::Context;
use super::delegate;
use super::policy;
use super::retry;
use super::source::{self, Asks};
use crate::Defaults;
use crate::index::{GatewayName, expand};
use crate::origins::{RouteOrigin, RuleOrigin, WHOLE_RESOURCE};
use crate::registry::Service;
use crate::resource::virtual_service::{
    HeaderOperations as WrittenOperations, HttpDestination, HttpMatch, HttpRoute,
    Redirect as WrittenRedirect, Target, VirtualService,
};
use crate::resource::{Meta, Written};
use crate::tight;
use crate::validate::virtual_service::{header_value, is_authority};
use bytes::Bytes;
use http::StatusCode;
use isthmus_core::header::{FieldName, HeaderOperations, HeaderValue};
use isthmus_core::name::ClusterKey;
use isthmus_core::route::{
    Action, Destination, DirectResponse, Forward, HeaderMatch, HeaderSubject, PathMatch, PathRewrite,
    QueryMatch, Redirect, RedirectPort, RegexRewrite, Route, RouteMatch, TextMatch,
};
use std::sync::Arc;
use std::time::Duration;

/// Time that a request may take when nothing is written: the seed's words, "15 seconds".
const SEED_TIMEOUT: Duration = Duration::from_secs(15);

/// What the route of a service is called that no VirtualService routes.
const DEFAULT_ROUTE: &str = "default";

/// Where routes are compiled for.
pub(crate) struct Site<'a> {
    /// `namespace/name` of the Gateway.
    pub(crate) gateway: &'a str,
    /// Whether it is the door of mesh clients.
    pub(crate) mesh: bool,
    /// Port of the server.
    pub(crate) port: u16,
    /// Position of the Gateway among all.
    pub(crate) gateway_at: usize,
}

impl Site<'_> {
    /// Whether one of the names, written in `namespace`, is this gateway.
    pub(crate) fn is_named(&self, names: &[String], namespace: &str) -> bool {
        names
            .iter()
            .any(|name| match GatewayName::parse(name, namespace) {
                Some(GatewayName::Mesh) => self.mesh,
                Some(GatewayName::Named { id, .. }) => id == self.gateway,
                None => false,
            })
    }
}

/// Compiles the rules of a VirtualService that is bound to the site.
pub(crate) fn compile(
    written: &Written<VirtualService>,
    site: &Site<'_>,
    context: &Context<'_>,
) -> Vec<(Route, RouteOrigin)> {
    let meta = &written.meta;
    let owner: Arc<str> = meta.id().into();
    let mut routes = Vec::new();
    'rules: for source in delegate::rules(
        written,
        &context.delegates,
        context.virtual_services,
        &context.options.mesh,
    ) {
        let rule = &*source.route;
        // Rules without a rewrite share one action; a prefix rewrite depends on the match.
        let mut shared: Option<Arc<Action>> = None;
        let any = [HttpMatch::default()];
        let matches = if rule.matches.is_empty() {
            &any[..]
        } else {
            &rule.matches[..]
        };
        for (at, matched) in matches.iter().enumerate() {
            let client = match applies(matched, meta, site, context) {
                None | Some(Asks::TooMuch) => continue,
                Some(Asks::Nothing) => None,
                Some(Asks::For(client)) => Some(client),
            };
            let path = matched.uri.clone();
            let depends = rule
                .rewrite
                .as_ref()
                .is_some_and(|rewrite| !rewrite.uri.is_empty())
                || rule
                    .redirect
                    .as_ref()
                    .is_some_and(|redirect| redirect.prefix_rewrite.is_some());
            let action = match &shared {
                Some(action) if !depends => action.clone(),
                _ => match action(rule, path.as_ref(), &source.own.meta.namespace, site, context) {
                    Some(action) => shared.insert(Arc::new(action)).clone(),
                    None => continue,
                },
            };
            let separator = if matched.name.is_empty() { "" } else { "." };
            let response_headers = match *action {
                Action::Forward(_) => Vec::new(),
                _ => steps([operations(&rule.operations().response, false, context)]),
            };
            let route = Route {
                name: format!("{}{separator}{}", rule.name, matched.name).into(),
                virtual_service: owner.clone(),
                matches: RouteMatch {
                    source: client,
                    ..route_match(matched)
                },
                stat_prefix: matched.stat_prefix.as_str().into(),
                action,
                response_headers,
            };
            let last = is_catch_all(&route);
            let at_match = (source.root.is_none() && !rule.matches.is_empty()).then_some(at);
            let origin = RouteOrigin {
                own: rule_origin(&source.own, at_match),
                root: source.root.as_ref().map(|root| rule_origin(root, None)),
                gateway: site.gateway_at,
            };
            routes.push((route, origin));
            if last {
                // Nothing behind it can be reached (Istio drops it, too).
                break 'rules;
            }
        }
    }
    routes
}

/// The route of a service that no VirtualService routes, at its own port.
pub(crate) fn default(service: &Service<'_>, site: &Site<'_>, context: &Context<'_>) -> (Route, RouteOrigin) {
    let rule = HttpRoute {
        route: vec![HttpDestination::to(&service.host, i64::from(site.port))],
        ..HttpRoute::default()
    };
    let action = action(&rule, None, service.namespace, site, context);
    let route = Route {
        name: DEFAULT_ROUTE.into(),
        virtual_service: service.id().into(),
        matches: RouteMatch::ANY,
        stat_prefix: "".into(),
        action: Arc::new(action.unwrap_or(Action::Respond(DirectResponse {
            status: StatusCode::SERVICE_UNAVAILABLE,
            body: Bytes::new(),
        }))),
        response_headers: Vec::new(),
    };
    let origin = service.origins.first();
    let own = RuleOrigin {
        document: origin.map_or(0, |origin| origin.document),
        item: origin.and_then(|origin| origin.item),
        rule: WHOLE_RESOURCE,
        matched: None,
    };
    let origin = RouteOrigin {
        own,
        root: None,
        gateway: site.gateway_at,
    };
    (route, origin)
}

pub(crate) fn rule_origin(source: &delegate::Source<'_>, matched: Option<usize>) -> RuleOrigin {
    RuleOrigin {
        document: source.meta.origin.document,
        item: source.meta.origin.item,
        rule: source.rule,
        matched,
    }
}

/// What a match asks of clients, if it can apply at all: gateway and port.
fn applies(matched: &HttpMatch, meta: &Meta, site: &Site<'_>, context: &Context<'_>) -> Option<Asks> {
    let here = is_here(&matched.gateways, matched.port, meta, site) && !matched.needs_claims();
    here.then(|| {
        source::asks(
            &matched.source_labels,
            &matched.source_namespace,
            None,
            &context.clients,
            context.options,
        )
    })
}

/// Whether a match is for the gateway and the port.
pub(crate) fn is_here(gateways: &[String], port: Option<i64>, meta: &Meta, site: &Site<'_>) -> bool {
    (gateways.is_empty() || site.is_named(gateways, &meta.namespace))
        && port.is_none_or(|port| port == i64::from(site.port))
}

/// Whether a route takes every request: path `/` or `.*`, and nothing else (Istio's `isCatchAllRoute`).
pub(crate) fn is_catch_all(route: &Route) -> bool {
    let RouteMatch {
        path,
        method,
        scheme,
        authority,
        headers,
        query,
        source,
    } = &route.matches;
    let any_path = match &path.text {
        TextMatch::Present => true,
        TextMatch::Prefix(prefix) => &**prefix == "/",
        TextMatch::Regex(regex) => regex.pattern() == ".*",
        TextMatch::Exact(_) => false,
    };
    any_path
        && method.is_none()
        && scheme.is_none()
        && authority.is_none()
        && headers.is_empty()
        && query.is_empty()
        && source.is_none()
}

pub(crate) fn route_match(matched: &HttpMatch) -> RouteMatch {
    let header = |inverted| {
        move |(name, text): &(String, TextMatch)| {
            let subject = match name.to_ascii_lowercase().as_str() {
                ":authority" | "host" => HeaderSubject::Authority,
                ":method" => HeaderSubject::Method,
                ":path" => HeaderSubject::Path,
                ":scheme" => HeaderSubject::Scheme,
                name => HeaderSubject::Field(FieldName::parse(name)?),
            };
            Some(HeaderMatch {
                subject,
                text: text.clone(),
                inverted,
            })
        }
    };
    let headers = matched.headers.iter().filter_map(header(false));
    let headers = headers.chain(matched.without_headers.iter().filter_map(header(true)));
    let query = matched.query_params.iter().map(|(name, text)| QueryMatch {
        name: name.as_str().into(),
        text: text.clone(),
    });
    // `method: {}` and its like ask for nothing.
    let present = |text: &Option<TextMatch>| text.clone().filter(|text| *text != TextMatch::Present);
    RouteMatch {
        path: PathMatch {
            text: matched.uri.clone().unwrap_or(TextMatch::Present),
            ignore_case: matched.ignore_uri_case,
        },
        method: present(&matched.method),
        scheme: present(&matched.scheme),
        authority: present(&matched.authority),
        headers: tight(headers),
        query: query.collect(),
        source: None,
    }
}

/// What a rule does with what it takes; None when it leads nowhere and is left out.
pub(crate) fn action(
    rule: &HttpRoute,
    path: Option<&TextMatch>,
    namespace: &str,
    site: &Site<'_>,
    context: &Context<'_>,
) -> Option<Action> {
    if let Some(written) = &rule.redirect {
        return redirect(written, path).map(Action::Redirect);
    }
    if let Some(written) = &rule.direct_response {
        let status = StatusCode::from_u16(u16::try_from(written.status).ok()?).ok()?;
        return Some(Action::Respond(DirectResponse {
            status,
            body: Bytes::from(written.body()?),
        }));
    }
    let only = rule.route.len() == 1;
    let several = rule
        .route
        .iter()
        .filter(|destination| only || destination.weight > 0);
    let destinations =
        tight(several.map(|written| destination(written, rule, only, namespace, site, context)));
    if destinations.is_empty() {
        return None;
    }
    let rewrite = match &rule.rewrite {
        None => None,
        Some(rewrite) => match &rewrite.uri_regex {
            Some(written) => Some(PathRewrite::Regex(
                RegexRewrite::new(&written.pattern, &written.rewrite).ok()?,
            )),
            None => (!rewrite.uri.is_empty()).then(|| path_rewrite(&rewrite.uri, path)),
        },
    };
    let timeout = match (rule.timeout, context.options.defaults) {
        (Some(timeout), _) => Some(timeout).filter(|timeout| !timeout.is_zero()),
        (None, Defaults::Seed) => Some(SEED_TIMEOUT),
        (None, Defaults::Current) => None,
    };
    Some(Action::Forward(Forward {
        destinations,
        path: rewrite,
        timeout,
        fault: rule
            .fault
            .as_ref()
            .and_then(|fault| policy::fault(fault, context.options.defaults)),
        cors: rule
            .cors_policy
            .as_ref()
            .map(|written| Box::new(policy::cors(written))),
        retry: retry::policy(rule.retries.as_deref(), &context.options.mesh.retry),
        mirrors: retry::mirrors(rule, namespace, site, context),
    }))
}

/// A matched prefix is replaced alone; any other match has the whole path replaced (Istio `rewrite.uri`). Without a
/// match of the path, the prefix is `/`.
fn path_rewrite(with: &str, path: Option<&TextMatch>) -> PathRewrite {
    match path {
        Some(TextMatch::Exact(_) | TextMatch::Regex(_)) => PathRewrite::Whole(with.into()),
        Some(TextMatch::Prefix(prefix)) => PathRewrite::Prefix {
            matched: prefix.len(),
            with: with.into(),
        },
        Some(TextMatch::Present) | None => PathRewrite::Prefix {
            matched: 1,
            with: with.into(),
        },
    }
}

fn redirect(written: &WrittenRedirect, path: Option<&TextMatch>) -> Option<Redirect> {
    let text = |text: &str| (!text.is_empty()).then(|| Box::from(text));
    let code = if written.code == 0 { 301 } else { written.code };
    let port = match (written.port, written.derive_port.as_deref()) {
        (Some(port), _) => RedirectPort::Number(u16::try_from(port).ok()?),
        (None, Some("FROM_REQUEST_PORT")) => RedirectPort::Request,
        (None, Some(_)) => RedirectPort::ProtocolDefault,
        (None, None) => RedirectPort::Unchanged,
    };
    let whole = text(&written.uri).map(PathRewrite::Whole);
    Some(Redirect {
        status: StatusCode::from_u16(u16::try_from(code).ok()?).ok()?,
        scheme: text(&written.scheme),
        authority: text(&written.authority),
        port,
        path: whole.or_else(|| {
            written
                .prefix_rewrite
                .as_ref()
                .map(|with| path_rewrite(with, path))
        }),
    })
}

fn destination(
    written: &HttpDestination,
    rule: &HttpRoute,
    only: bool,
    namespace: &str,
    site: &Site<'_>,
    context: &Context<'_>,
) -> Destination {
    // One destination has the last word over its rule; of several, the rule has (Istio, `headers`).
    let ordered = |own: &WrittenOperations, rule: &WrittenOperations, request| {
        let (own, rule) = (
            operations(own, request, context),
            operations(rule, request, context),
        );
        if only {
            steps([rule, own])
        } else {
            steps([own, rule])
        }
    };
    let of_rule = rule
        .rewrite
        .as_ref()
        .map(|rewrite| rewrite.authority.as_str())
        .filter(|text| !text.is_empty());
    let authority = of_rule
        .or_else(|| rule.operations().request.authority())
        .or_else(|| written.operations().request.authority());
    Destination {
        cluster: cluster_key(&written.target, namespace, site.port, context),
        weight: if only {
            1
        } else {
            u32::try_from(written.weight).unwrap_or(u32::MAX)
        },
        request_headers: ordered(&written.operations().request, &rule.operations().request, true),
        response_headers: ordered(&written.operations().response, &rule.operations().response, false),
        authority: authority.map(Into::into),
    }
}

/// The cluster that a destination names: its port, else the only port of the service, else the listener's.
pub(crate) fn cluster_key(
    written: &Target,
    namespace: &str,
    listener_port: u16,
    context: &Context<'_>,
) -> ClusterKey {
    let host = expand(&written.host, namespace);
    let port = cluster_port(written, namespace, listener_port, context);
    ClusterKey::outbound(port, &written.subset, &host)
}

/// The port of that cluster.
pub(crate) fn cluster_port(
    written: &Target,
    namespace: &str,
    listener_port: u16,
    context: &Context<'_>,
) -> u16 {
    let named = written.port.and_then(|port| u16::try_from(port).ok());
    let only = || {
        let service = context
            .registry
            .find(&expand(&written.host, namespace), namespace)?;
        match &service.ports[..] {
            [only] => Some(only.number),
            _ => None,
        }
    };
    named.or_else(only).unwrap_or(listener_port)
}

fn operations(written: &WrittenOperations, request: bool, context: &Context<'_>) -> HeaderOperations {
    // The maps are sorted by name already, which is the order that Istio gives them.
    let list = |map: &std::collections::BTreeMap<String, String>| {
        let kept = map.iter().filter(|(name, _)| !(request && is_authority(name)));
        let kept = kept.filter_map(|(name, value)| {
            let template = header_value(value, &context.options.hostname).ok()?.template;
            let value = match template.constant() {
                Some(text) => HeaderValue::Text(Bytes::from(text.to_owned())),
                None => HeaderValue::Template(template),
            };
            Some((FieldName::parse(name)?, value))
        });
        tight(kept)
    };
    HeaderOperations {
        remove: tight(written.remove.iter().filter_map(|name| FieldName::parse(name))),
        set: list(&written.set),
        add: list(&written.add),
    }
}

fn steps(list: impl IntoIterator<Item = HeaderOperations>) -> Vec<HeaderOperations> {
    let some = list.into_iter();
    tight(some.filter(|operations| !operations.is_empty()))
}
