//! Routes: which rule of which virtual host takes a request, and what the rule says to do with it.
//!
//! In comes a request's head; out goes the first matching [`Route`] of the most specific virtual host, as Istio and
//! Envoy order them: hosts exact, then longest suffix, then `*`; inside a virtual host in the order of the compiled
//! list. The compiler has already resolved names, merged resources and dropped what can never apply here.

use crate::header::{FieldName, HeaderOperations};
use crate::message::RequestHead;
use crate::name::{ClusterKey, HostIndex, HostPattern};
use crate::random::Random;
use bytes::Bytes;
use http::StatusCode;
use regex_automata::meta;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Longest pattern that is accepted (Istio's limit for `regex`).
pub const REGEX_PATTERN_MAX: usize = 1024;
/// Most memory that one compiled pattern may take, so that a pattern like `(a{100}){100}` is refused.
pub const REGEX_COMPILED_MAX: usize = 1 << 20;

/// A compiled regular expression that must match the whole text (RE2 syntax; linear in the text).
#[derive(Clone)]
pub struct Regex {
    pattern: Arc<str>,
    program: meta::Regex,
}

/// Why a pattern was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegexError {
    /// Longer than [`REGEX_PATTERN_MAX`].
    #[error("the pattern has {0} bytes; {REGEX_PATTERN_MAX} are allowed")]
    TooLong(usize),
    /// Not a pattern, or too large when compiled.
    #[error("{0}")]
    Invalid(String),
}

impl Regex {
    /// Compiles a pattern.
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        if pattern.len() > REGEX_PATTERN_MAX {
            return Err(RegexError::TooLong(pattern.len()));
        }
        // Parsed alone first, so that `a)|(b` cannot close the group that anchors it.
        let config = meta::Config::new()
            .nfa_size_limit(Some(REGEX_COMPILED_MAX))
            .utf8_empty(false);
        let build = |text: &str| {
            meta::Builder::new()
                .configure(config.clone())
                .build(text)
                .map_err(|error| {
                    let text = match error.syntax_error() {
                        Some(syntax) => syntax.to_string(),
                        None => error.to_string(),
                    };
                    RegexError::Invalid(text)
                })
        };
        build(pattern)?;
        let program = build(&format!("^(?:{pattern})$"))?;
        Ok(Self {
            pattern: pattern.into(),
            program,
        })
    }

    /// The pattern as written.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    fn matches(&self, text: &[u8], scratch: &mut Scratch) -> bool {
        let cache = match scratch.caches.get_mut(&self.pattern) {
            Some(cache) => cache,
            None => scratch
                .caches
                .entry(self.pattern.clone())
                .or_insert_with(|| self.program.create_cache()),
        };
        self.program
            .search_half_with(cache, &regex_automata::Input::new(text).earliest(true))
            .is_some()
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Regex({:?})", self.pattern)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

/// Working memory of look-ups; each shard has one, so that matching a regex takes no lock.
#[derive(Default)]
pub struct Scratch {
    caches: HashMap<Arc<str>, meta::Cache>,
}

impl Scratch {
    /// Forgets the caches, which belong to the patterns of one snapshot.
    pub fn clear(&mut self) {
        self.caches.clear();
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({} patterns)", self.caches.len())
    }
}

/// How a text must look (Istio `StringMatch`).
#[derive(Debug, Clone, PartialEq)]
pub enum TextMatch {
    /// Equal.
    Exact(Box<str>),
    /// Starting so.
    Prefix(Box<str>),
    /// Matched as a whole.
    Regex(Regex),
    /// There at all (`{}`, or the regex `*`).
    Present,
}

impl TextMatch {
    /// Whether `text` looks so.
    pub fn matches(&self, text: &[u8], scratch: &mut Scratch) -> bool {
        match self {
            Self::Exact(wanted) => text == wanted.as_bytes(),
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Regex(regex) => regex.matches(text, scratch),
            Self::Present => true,
        }
    }
}

/// How the path must look: compared without its query.
#[derive(Debug, Clone, PartialEq)]
pub struct PathMatch {
    /// The text; `Present` is any path.
    pub text: TextMatch,
    /// Compare exact and prefix without case (`ignoreUriCase`).
    pub ignore_case: bool,
}

impl PathMatch {
    /// Any path.
    pub const ANY: Self = Self {
        text: TextMatch::Present,
        ignore_case: false,
    };

    fn matches(&self, path: &str, scratch: &mut Scratch) -> bool {
        if !self.ignore_case {
            return self.text.matches(path.as_bytes(), scratch);
        }
        match &self.text {
            TextMatch::Exact(wanted) => path.eq_ignore_ascii_case(wanted),
            TextMatch::Prefix(prefix) => path
                .as_bytes()
                .get(..prefix.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes())),
            TextMatch::Regex(_) | TextMatch::Present => self.text.matches(path.as_bytes(), scratch),
        }
    }
}

/// How one header field must look.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderMatch {
    /// Which field; `host` and `:authority` mean the authority, `:method`, `:path` and `:scheme` what they say.
    pub subject: HeaderSubject,
    /// What its value must be. Several lines of one field are one value, joined by commas (RFC 9110, 5.2).
    pub text: TextMatch,
    /// Whether the match is turned round (`withoutHeaders`): an absent field then matches, whatever the text
    /// (`Present` inverted means that the field must be absent).
    pub inverted: bool,
}

/// What a header match looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderSubject {
    /// A field.
    Field(FieldName),
    /// The authority with its port.
    Authority,
    /// The method.
    Method,
    /// Path and query.
    Path,
    /// `http` or `https`.
    Scheme,
}

impl HeaderMatch {
    fn matches(&self, request: &RequestHead, scheme: &str, scratch: &mut Scratch) -> bool {
        let found = match &self.subject {
            HeaderSubject::Authority => Some(self.text.matches(request.authority.as_bytes(), scratch)),
            HeaderSubject::Method => Some(self.text.matches(request.method.as_str().as_bytes(), scratch)),
            HeaderSubject::Path => Some(self.text.matches(request.path.as_bytes(), scratch)),
            HeaderSubject::Scheme => Some(self.text.matches(scheme.as_bytes(), scratch)),
            HeaderSubject::Field(name) => {
                let mut values = request.headers.get_named(name);
                match (values.next(), values.next()) {
                    (None, _) => None,
                    (Some(only), None) => Some(self.text.matches(only, scratch)),
                    (Some(first), Some(second)) => {
                        let mut joined = first.to_vec();
                        for value in std::iter::once(second).chain(values) {
                            joined.push(b',');
                            joined.extend_from_slice(value);
                        }
                        Some(self.text.matches(&joined, scratch))
                    }
                }
            }
        };
        match (found, self.inverted) {
            (Some(found), inverted) => found != inverted,
            // Istio treats an absent field as empty for `withoutHeaders`, so it matches the negation of any
            // text but the empty one.
            (None, true) => self.text == TextMatch::Present || !self.text.matches(b"", scratch),
            (None, false) => false,
        }
    }
}

/// How one query parameter must look: its first value, as written (not decoded), is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryMatch {
    /// The parameter's name.
    pub name: Box<str>,
    /// Its value.
    pub text: TextMatch,
}

impl QueryMatch {
    fn matches(&self, request: &RequestHead, scratch: &mut Scratch) -> bool {
        let parameters = request.query().unwrap_or("").split('&');
        let mut pairs = parameters.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let value = pairs
            .find(|(name, _)| *name == &*self.name)
            .map(|(_, value)| value);
        value.is_some_and(|value| self.text.matches(value.as_bytes(), scratch))
    }
}

/// All that one match of a rule asks for (Istio `HTTPMatchRequest`): every part must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteMatch {
    /// Path.
    pub path: PathMatch,
    /// Method.
    pub method: Option<TextMatch>,
    /// Scheme of the listener.
    pub scheme: Option<TextMatch>,
    /// Authority with its port.
    pub authority: Option<TextMatch>,
    /// Header fields.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
}

impl RouteMatch {
    /// Takes every request.
    pub const ANY: Self = Self {
        path: PathMatch::ANY,
        method: None,
        scheme: None,
        authority: None,
        headers: Vec::new(),
        query: Vec::new(),
    };

    /// Whether a request meets every part.
    pub fn matches(&self, request: &RequestHead, scheme: &str, scratch: &mut Scratch) -> bool {
        let text = |wanted: &Option<TextMatch>, actual: &str, scratch: &mut Scratch| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted.matches(actual.as_bytes(), scratch))
        };
        self.path.matches(request.path_only(), scratch)
            && text(&self.method, request.method.as_str(), scratch)
            && text(&self.scheme, scheme, scratch)
            && text(&self.authority, &request.authority, scratch)
            && self
                .headers
                .iter()
                .all(|header| header.matches(request, scheme, scratch))
            && self.query.iter().all(|query| query.matches(request, scratch))
    }
}

/// What happens to the path on its way (Istio `rewrite.uri`, `redirect.uri`, `redirect.prefixRewrite`). The query
/// stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathRewrite {
    /// The first `matched` bytes are replaced.
    Prefix {
        /// Length of the matched prefix.
        matched: usize,
        /// What replaces it.
        with: Box<str>,
    },
    /// The whole path is replaced.
    Whole(Box<str>),
}

impl PathRewrite {
    /// The new path and query.
    pub fn apply(&self, request: &RequestHead) -> String {
        let query = request.path.get(request.path_len..).unwrap_or("");
        match self {
            Self::Prefix { matched, with } => {
                let rest = request.path_only().get(*matched..).unwrap_or("");
                format!("{with}{rest}{query}")
            }
            Self::Whole(path) => format!("{path}{query}"),
        }
    }
}

/// One destination of a route with its share.
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<Destination>,
    /// A new path towards the upstream.
    pub path: Option<PathRewrite>,
    /// For the whole exchange, retries included; None for no limit.
    pub timeout: Option<Duration>,
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
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send on.
    Forward(Forward),
    /// Redirect.
    Redirect(Redirect),
    /// Answer directly.
    Respond(DirectResponse),
}

/// One match of one rule of a VirtualService, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// `http[].name`, with `.` and the match's name when it has one: what access logs call the route.
    pub name: Box<str>,
    /// `namespace/name` of the VirtualService.
    pub virtual_service: Arc<str>,
    /// Which requests.
    pub matches: RouteMatch,
    /// What to do.
    pub action: Arc<Action>,
    /// Response field operations of answers that no destination gave (redirects and direct responses).
    pub response_headers: Vec<HeaderOperations>,
}

/// The routes of one set of hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualHost {
    /// The first of its domains.
    pub name: Box<str>,
    /// The hosts, each in one virtual host of a table only.
    pub domains: Vec<HostPattern>,
    /// Every request is redirected to https with 301 (Gateway `tls.httpsRedirect`).
    pub https_redirect: bool,
    /// In order of priority.
    pub routes: Vec<Route>,
}

impl VirtualHost {
    /// The first route that takes the request; `scheme` is the listener's.
    pub fn find(&self, request: &RequestHead, scheme: &str, scratch: &mut Scratch) -> Option<&Route> {
        self.routes
            .iter()
            .find(|route| route.matches.matches(request, scheme, scratch))
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
        matches.matches(request, "http", &mut Scratch::default())
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
    fn prefix_rewrite_replaces_only_what_matched() {
        let rewrite = PathRewrite::Prefix {
            matched: 4,
            with: "/".into(),
        };
        assert_eq!(rewrite.apply(&request("GET", "h", "/foo/bar?x", &[])), "//bar?x");
        assert_eq!(rewrite.apply(&request("GET", "h", "/foo", &[])), "/");
        assert_eq!(
            PathRewrite::Whole("/n".into()).apply(&request("GET", "h", "/foo?x", &[])),
            "/n?x"
        );
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
