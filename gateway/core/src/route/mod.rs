//! Routes: which rule of which virtual host takes a request, and what the rule says to do with it.
//!
//! In comes a request's head; out goes the first matching [`Route`] of the most specific virtual host, as Istio and
//! Envoy order them: hosts exact, then longest suffix, then `*`; inside a virtual host in the order of the compiled
//! list. The compiler has already resolved names, merged resources and dropped what can never apply here. `matcher`
//! holds what a rule asks for, `index` finds the rules that a path may belong to, `trace` reads them all and says why.

mod cors;
mod fault;
mod index;
mod matcher;
mod rewrite;
mod trace;

pub use cors::{Cors, CorsRequest};
pub use fault::{Abort, AbortWith, Delay, Fault, Share};

pub use matcher::{
    HeaderMatch, HeaderSubject, PathMatch, QueryMatch, REGEX_COMPILED_MAX, REGEX_PATTERN_MAX, Regex,
    RegexError, RouteMatch, Scratch, TextMatch,
};

pub use rewrite::{PathRewrite, RegexRewrite, RewriteError};
pub use trace::{Condition, Mismatch};

pub(crate) use trace::most_specific;

use crate::attempt::RetryPolicy;
use crate::header::HeaderOperations;
use crate::message::RequestHead;
use crate::name::{ClusterKey, HostIndex, HostPattern};
use crate::random::Random;
use crate::snapshot::content_hash;
use crate::source::Caller;
use bytes::Bytes;
use http::StatusCode;
use index::{Ask, PathIndex};
use std::sync::Arc;
use std::time::Duration;

/// One destination of a route with its share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The cluster; one that the snapshot does not have answers 503 NC.
    pub cluster: ClusterKey,
    /// Share of the sum of all weights; never 0.
    pub weight: u32,
    /// What to do with the request's fields: each step in turn.
    pub request_headers: Vec<HeaderOperations>,
    /// What to do with the response's fields: each step in turn.
    pub response_headers: Vec<HeaderOperations>,
    /// A new authority towards this destination.
    pub authority: Option<Box<str>>,
}

/// Sends requests to upstreams.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<Destination>,
    /// A new path towards the upstream.
    pub path: Option<PathRewrite>,
    /// For the whole exchange, retries included; None for no limit.
    pub timeout: Option<Duration>,
    /// What is done to some of the requests on purpose.
    pub fault: Option<Fault>,
    /// What browsers are told.
    pub cors: Option<Box<Cors>>,
    /// Whether and when a request is sent again.
    pub retry: RetryPolicy,
    /// Where copies of requests go.
    pub mirrors: Vec<Mirror>,
}

/// A cluster that gets copies of requests; what it answers is nobody's (Istio `mirror`, `mirrors[]`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mirror {
    /// The cluster.
    pub cluster: ClusterKey,
    /// How many of a million requests are copied; never 0.
    pub per_million: u32,
}

impl Forward {
    /// Picks a destination by weight.
    pub fn pick(&self, random: &mut Random) -> Option<&Destination> {
        if let [only] = &self.destinations[..] {
            return Some(only);
        }
        let total: u64 = self
            .destinations
            .iter()
            .map(|destination| u64::from(destination.weight))
            .sum();
        let mut at = random.below(total);
        self.destinations.iter().find(|destination| {
            let weight = u64::from(destination.weight);
            let here = at < weight;
            at = at.saturating_sub(weight);
            here
        })
    }
}

/// The port in the Location of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RedirectPort {
    /// What the request's authority says; dropped when the scheme changes its default.
    Unchanged,
    /// This one.
    Number(u16),
    /// The default of the scheme, which is not written.
    ProtocolDefault,
    /// The port of the listener that took the request.
    Request,
}

/// Answers with a redirect (Istio `HTTPRedirect`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// New scheme, `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// New host, perhaps with a port.
    pub authority: Option<Box<str>>,
    /// New port.
    pub port: RedirectPort,
    /// New path.
    pub path: Option<PathRewrite>,
}

impl Redirect {
    /// The value of Location.
    pub fn location(&self, request: &RequestHead, scheme: &str, listener_port: u16) -> String {
        let new_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let default_port = |scheme: &str| if scheme == "https" { 443 } else { 80 };
        let authority = self.authority.as_deref().unwrap_or(&request.authority);
        let (host, written_port) = split_port(authority);
        let port = match self.port {
            RedirectPort::Number(port) => Some(port),
            RedirectPort::ProtocolDefault => None,
            RedirectPort::Request => Some(listener_port),
            // A port that was only the old scheme's default would be wrong under the new one (as Envoy strips it).
            RedirectPort::Unchanged => written_port.filter(|&port| {
                self.authority.is_some() || new_scheme == scheme || port != default_port(scheme)
            }),
        };
        let mut path = self
            .path
            .as_ref()
            .map_or_else(|| request.path.clone(), |rewrite| rewrite.apply(request));
        if !path.starts_with('/') {
            // Otherwise it would become a part of the host.
            path.insert(0, '/');
        }
        match port.filter(|&port| port != default_port(new_scheme)) {
            Some(port) => format!("{new_scheme}://{host}:{port}{path}"),
            None => format!("{new_scheme}://{host}{path}"),
        }
    }
}

/// Splits `host:port`; a bracketed IPv6 address keeps its brackets.
pub fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && (host.ends_with(']') || !host.contains(':')) => {
            (host, port.parse().ok())
        }
        _ => (authority, None),
    }
}

/// Answers by itself (Istio `HTTPDirectResponse`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DirectResponse {
    /// Any status that is final.
    pub status: StatusCode,
    /// The body, perhaps empty.
    pub body: Bytes,
}

/// What a rule does with the requests that it takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send on.
    Forward(Forward),
    /// Redirect.
    Redirect(Redirect),
    /// Answer directly.
    Respond(DirectResponse),
}

/// One match of one rule of a VirtualService, compiled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// `http[].name`, with `.` and the match's name when it has one: what access logs call the route.
    pub name: Box<str>,
    /// `namespace/name` of the VirtualService.
    pub virtual_service: Arc<str>,
    /// Which requests.
    pub matches: RouteMatch,
    /// `match[].statPrefix`, under which its requests are counted; empty for none.
    pub stat_prefix: Box<str>,
    /// What to do.
    pub action: Arc<Action>,
    /// Response field operations of answers that no destination gave (redirects and direct responses).
    pub response_headers: Vec<HeaderOperations>,
}

/// The routes of one set of hosts.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// The first of its domains.
    pub name: Box<str>,
    /// The hosts, each in one virtual host of a table only.
    pub domains: Vec<HostPattern>,
    /// Every request is redirected to https with 301 (Gateway `tls.httpsRedirect`).
    pub https_redirect: bool,
    routes: Vec<Route>,
    index: PathIndex,
    content: u64,
    asks_who: bool,
}

impl PartialEq for VirtualHost {
    fn eq(&self, other: &Self) -> bool {
        // The index follows from the routes, and a difference in the hash from one in the rest.
        self.content == other.content
            && self.name == other.name
            && self.domains == other.domains
            && self.https_redirect == other.https_redirect
            && self.routes == other.routes
    }
}

impl Eq for VirtualHost {}

impl VirtualHost {
    /// A virtual host; `routes` are in order of priority.
    pub fn new(
        name: &str,
        mut domains: Vec<HostPattern>,
        https_redirect: bool,
        mut routes: Vec<Route>,
    ) -> Self {
        // There may be a hundred thousand of them.
        domains.shrink_to_fit();
        routes.shrink_to_fit();
        Self {
            content: content_hash(&(name, &domains, https_redirect, &routes)),
            name: name.into(),
            domains,
            https_redirect,
            index: PathIndex::new(&routes),
            asks_who: routes.iter().any(|route| route.matches.source.is_some()),
            routes,
        }
    }

    /// Hash of everything in it: equal hosts of two versions have the same.
    pub fn content(&self) -> u64 {
        self.content
    }

    /// The routes in order of priority.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Whether any route asks who the client is.
    pub fn asks_who(&self) -> bool {
        self.asks_who
    }

    /// The first route that takes the request of a caller.
    pub fn find<'c>(
        &self,
        request: &RequestHead,
        caller: impl Into<Caller<'c>>,
        scratch: &mut Scratch,
    ) -> Option<&Route> {
        self.routes.get(self.position(request, caller, scratch)?)
    }

    /// Where that route is in [`Self::routes`].
    pub fn position<'c>(
        &self,
        request: &RequestHead,
        caller: impl Into<Caller<'c>>,
        scratch: &mut Scratch,
    ) -> Option<usize> {
        let caller = caller.into();
        self.index.find(
            request.path_only().as_bytes(),
            &self.routes,
            |route, ask| match ask {
                Ask::All => route.matches.matches(request, &caller, scratch),
                Ask::BeyondPath => route.matches.matches_beyond_path(request, &caller, scratch),
            },
        )
    }
}

/// The virtual hosts of one listener.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    virtual_hosts: Vec<Arc<VirtualHost>>,
    index: HostIndex<u32>,
}

impl RouteTable {
    /// Builds a table. A domain that two virtual hosts claim belongs to the first.
    pub fn new(virtual_hosts: Vec<Arc<VirtualHost>>) -> Self {
        let mut index = HostIndex::default();
        for (at, virtual_host) in virtual_hosts.iter().enumerate() {
            for domain in &virtual_host.domains {
                let _taken_by_an_earlier_one = index.insert(domain.clone(), at as u32);
            }
        }
        Self { virtual_hosts, index }
    }

    /// All virtual hosts, in order.
    pub fn virtual_hosts(&self) -> &[Arc<VirtualHost>] {
        &self.virtual_hosts
    }

    /// The position of the virtual host of `host` (lower case, no port) in [`Self::virtual_hosts`].
    pub fn find_host(&self, host: &str) -> Option<usize> {
        self.index.find(host).map(|&at| at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::FieldName;

    fn request(method: &str, authority: &str, path: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.clear();
        head.method = http::Method::from_bytes(method.as_bytes()).unwrap();
        head.set_authority(authority);
        head.host = split_port(authority).0.to_ascii_lowercase();
        head.set_path(path);
        for (name, value) in headers {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn exact(text: &str) -> TextMatch {
        TextMatch::Exact(text.into())
    }

    fn prefix(text: &str) -> TextMatch {
        TextMatch::Prefix(text.into())
    }

    fn regex(text: &str) -> TextMatch {
        TextMatch::Regex(Regex::new(text).unwrap())
    }

    fn path(text: TextMatch) -> RouteMatch {
        RouteMatch {
            path: PathMatch {
                text,
                ignore_case: false,
            },
            ..RouteMatch::ANY
        }
    }

    fn takes(matches: &RouteMatch, request: &RequestHead) -> bool {
        matches.matches(request, &"http".into(), &mut Scratch::default())
    }

    #[test]
    fn paths_are_compared_without_their_query() {
        for (text, target, expected) in [
            (exact("/a"), "/a?x=1", true),
            (exact("/a"), "/a/", false),
            (prefix("/foo"), "/foobar", true),
            (prefix(""), "/", true),
            (regex("/v[0-9]+/.*"), "/v12/x?y", true),
            (regex("/v[0-9]+"), "/v12/x", false),
            (regex("a|/b"), "/bc", false),
        ] {
            let found = takes(&path(text.clone()), &request("GET", "h", target, &[]));
            assert_eq!(found, expected, "{text:?} {target}");
        }
        let mut ignoring = path(prefix("/Foo"));
        ignoring.path.ignore_case = true;
        assert!(takes(&ignoring, &request("GET", "h", "/fOObar", &[])));
    }

    #[test]
    fn every_part_of_a_match_must_hold() {
        let field = |name: &str| HeaderSubject::Field(FieldName::parse(name).unwrap());
        let wanted = RouteMatch {
            method: Some(exact("POST")),
            authority: Some(prefix("api.")),
            headers: vec![HeaderMatch {
                subject: field("end-user"),
                text: exact("jason"),
                inverted: false,
            }],
            query: vec![QueryMatch {
                name: "v".into(),
                text: exact("2"),
            }],
            ..path(prefix("/x"))
        };
        let good = || request("POST", "api.a:80", "/x?v=2&v=3", &[("End-User", "jason")]);
        assert!(takes(&wanted, &good()));
        assert!(!takes(
            &wanted,
            &request("GET", "api.a", "/x?v=2", &[("end-user", "jason")])
        ));
        assert!(!takes(
            &wanted,
            &request("POST", "b", "/x?v=2", &[("end-user", "jason")])
        ));
        assert!(!takes(
            &wanted,
            &request("POST", "api.a", "/x?v=3", &[("end-user", "jason")])
        ));
        assert!(!takes(
            &wanted,
            &request("POST", "api.a", "/x?v=2", &[("end-user", "jaso")])
        ));
        assert!(!takes(&wanted, &request("POST", "api.a", "/x?v=2", &[])));
    }

    #[test]
    fn without_headers_takes_an_absent_field_as_empty() {
        let without = |text| RouteMatch {
            headers: vec![HeaderMatch {
                subject: HeaderSubject::Field(FieldName::parse("x").unwrap()),
                text,
                inverted: true,
            }],
            ..RouteMatch::ANY
        };
        let absent = request("GET", "h", "/", &[]);
        let present = request("GET", "h", "/", &[("X", "1")]);
        assert!(takes(&without(TextMatch::Present), &absent));
        assert!(!takes(&without(TextMatch::Present), &present));
        assert!(takes(&without(exact("1")), &absent));
        assert!(!takes(&without(exact("1")), &present));
        assert!(!takes(&without(prefix("")), &absent));
    }

    #[test]
    fn redirects_elide_default_ports() {
        let at = |redirect: &Redirect, authority: &str| {
            redirect.location(&request("GET", authority, "/p?q", &[]), "http", 8080)
        };
        let plain = Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            authority: None,
            port: RedirectPort::Unchanged,
            path: None,
        };
        assert_eq!(at(&plain, "a:81"), "http://a:81/p?q");
        let https = Redirect {
            scheme: Some("https".into()),
            ..plain.clone()
        };
        assert_eq!(at(&https, "a:80"), "https://a/p?q");
        assert_eq!(at(&https, "[::1]:8443"), "https://[::1]:8443/p?q");
        let moved = Redirect {
            authority: Some("b".into()),
            port: RedirectPort::Request,
            path: Some(PathRewrite::Whole("/new".into())),
            ..plain
        };
        assert_eq!(at(&moved, "a"), "http://b:8080/new?q");
        let bare = Redirect {
            path: Some(PathRewrite::Whole("new".into())),
            ..https.clone()
        };
        assert_eq!(at(&bare, "a"), "https://a/new?q");
        let port = Redirect {
            port: RedirectPort::Number(443),
            ..https
        };
        assert_eq!(at(&port, "a:1"), "https://a/p?q");
    }

    #[test]
    fn weights_are_relative_and_met() {
        let destination = |weight| Destination {
            cluster: ClusterKey::outbound(80, "", "h"),
            weight,
            request_headers: vec![],
            response_headers: vec![],
            authority: None,
        };
        let forward = Forward {
            destinations: vec![destination(3), destination(1)],
            path: None,
            timeout: None,
            fault: None,
            cors: None,
            retry: RetryPolicy::default(),
            mirrors: vec![],
        };
        let mut random = Random::from_seed(1);
        let first = (0..100_000)
            .filter(|_| forward.pick(&mut random).unwrap().weight == 3)
            .count();
        assert!((74_000..76_000).contains(&first), "{first}");
    }

    #[test]
    fn oversized_patterns_are_refused() {
        assert!(matches!(
            Regex::new(&"a".repeat(1025)),
            Err(RegexError::TooLong(1025))
        ));
        assert!(matches!(
            Regex::new("((a{100}){100}){100}"),
            Err(RegexError::Invalid(_))
        ));
        assert!(matches!(Regex::new("a)|(b"), Err(RegexError::Invalid(_))));
    }
}
