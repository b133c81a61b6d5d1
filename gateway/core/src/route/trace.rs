//! The plain reading of a route table: rule by rule in the order of priority, with the first condition that each rule
//! misses.
//!
//! It says the same as the indexed look-up, slowly and with its reasons, and shares with it only how one text is
//! compared: whoever explains a decision takes the decision from the index and the reasons from here, and tests hold
//! the two together.

use super::matcher::{HeaderSubject, TextMatch};
use super::{HeaderMatch, PathMatch, QueryMatch, RouteMatch, RouteTable, Scratch, VirtualHost};
use crate::message::RequestHead;
use crate::name::HostPattern;
use crate::source::{Caller, SourceMatch};
use std::borrow::Cow;
use std::fmt;

/// Most characters of a value of a request that a reason shows.
const SHOWN_MAX: usize = 100;

/// One condition of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition<'a> {
    /// `uri`.
    Path(&'a PathMatch),
    /// `method`.
    Method(&'a TextMatch),
    /// `scheme`.
    Scheme(&'a TextMatch),
    /// `authority`.
    Authority(&'a TextMatch),
    /// `headers` or `withoutHeaders`.
    Header(&'a HeaderMatch),
    /// `queryParams`.
    Query(&'a QueryMatch),
    /// `sourceLabels`, `sourceNamespace` or `sourceSubnet`.
    Source(&'a SourceMatch),
}

/// A condition that a request does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch<'a> {
    /// Which.
    pub condition: Condition<'a>,
    /// What the request has in its place; None when there is nothing.
    pub found: Option<Cow<'a, [u8]>>,
}

impl RouteMatch {
    /// All that is asked for, in the order in which it is looked at; nothing when every request is taken.
    pub fn conditions(&self) -> impl Iterator<Item = Condition<'_>> {
        let Self {
            path,
            method,
            scheme,
            authority,
            headers,
            query,
            source,
        } = self;
        let path = (path.text != TextMatch::Present).then_some(Condition::Path(path));
        path.into_iter()
            .chain(method.iter().map(Condition::Method))
            .chain(scheme.iter().map(Condition::Scheme))
            .chain(authority.iter().map(Condition::Authority))
            .chain(headers.iter().map(Condition::Header))
            .chain(query.iter().map(Condition::Query))
            .chain(source.as_deref().map(Condition::Source))
    }

    /// The first condition that a request of a caller misses; None when it meets all of them.
    pub fn mismatch<'a>(
        &'a self,
        request: &'a RequestHead,
        caller: &Caller<'a>,
        scratch: &mut Scratch,
    ) -> Option<Mismatch<'a>> {
        self.conditions().find_map(|condition| {
            let found = condition.subject(request, caller);
            let met = match condition {
                Condition::Source(wanted) => wanted.matches(caller),
                other => other.is_met(found.as_deref(), scratch),
            };
            (!met).then_some(Mismatch { condition, found })
        })
    }
}

impl<'a> Condition<'a> {
    /// What of a request the condition looks at.
    fn subject(self, request: &'a RequestHead, caller: &Caller<'a>) -> Option<Cow<'a, [u8]>> {
        let scheme = caller.scheme;
        let text = |text: &'a str| Some(Cow::Borrowed(text.as_bytes()));
        match self {
            Self::Path(_) => text(request.path_only()),
            Self::Method(_) => text(request.method.as_str()),
            Self::Scheme(_) => text(scheme),
            Self::Authority(_) => text(&request.authority),
            Self::Header(wanted) => match &wanted.subject {
                HeaderSubject::Authority => text(&request.authority),
                HeaderSubject::Method => text(request.method.as_str()),
                HeaderSubject::Path => text(&request.path),
                HeaderSubject::Scheme => text(scheme),
                HeaderSubject::Field(name) => {
                    let lines: Vec<&[u8]> = request.headers.get_named(name).collect();
                    match lines[..] {
                        [] => None,
                        [only] => Some(Cow::Borrowed(only)),
                        _ => Some(Cow::Owned(lines.join(&b","[..]))),
                    }
                }
            },
            Self::Query(wanted) => {
                let parameters = request.query().unwrap_or("").split('&');
                let named = parameters
                    .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                    .find(|(name, _)| **name == *wanted.name);
                named.and_then(|(_, value)| text(value))
            }
            Self::Source(_) => Some(Cow::Owned(caller.to_string().into_bytes())),
        }
    }

    fn is_met(self, found: Option<&[u8]>, scratch: &mut Scratch) -> bool {
        match self {
            Self::Path(path) => {
                let found = found.unwrap_or(b"");
                match (&path.text, path.ignore_case) {
                    (TextMatch::Exact(wanted), true) => found.eq_ignore_ascii_case(wanted.as_bytes()),
                    (TextMatch::Prefix(wanted), true) => {
                        let lower = found.to_ascii_lowercase();
                        lower.starts_with(wanted.to_ascii_lowercase().as_bytes())
                    }
                    (text, _) => text.matches(found, scratch),
                }
            }
            Self::Method(text) | Self::Scheme(text) | Self::Authority(text) => {
                found.is_some_and(|found| text.matches(found, scratch))
            }
            Self::Header(wanted) if !wanted.inverted => {
                found.is_some_and(|found| wanted.text.matches(found, scratch))
            }
            // Of what must not look so, an absent field counts as empty, but for mere presence.
            Self::Header(wanted) => match (&wanted.text, found) {
                (TextMatch::Present, found) => found.is_none(),
                (text, found) => !text.matches(found.unwrap_or(b""), scratch),
            },
            Self::Query(wanted) => found.is_some_and(|found| wanted.text.matches(found, scratch)),
            // Decided by the caller, and not by a text.
            Self::Source(_) => false,
        }
    }
}

impl VirtualHost {
    /// The position of the first route that takes the request, found by reading all before it; `passed` is told of each
    /// of those, in order.
    pub fn read<'a>(
        &'a self,
        request: &'a RequestHead,
        caller: impl Into<Caller<'a>>,
        scratch: &mut Scratch,
        mut passed: impl FnMut(usize, Mismatch<'a>),
    ) -> Option<usize> {
        let caller = caller.into();
        self.routes().iter().enumerate().find_map(|(at, route)| {
            let mismatch = route.matches.mismatch(request, &caller, scratch);
            match mismatch {
                None => Some(at),
                Some(mismatch) => {
                    passed(at, mismatch);
                    None
                }
            }
        })
    }
}

impl RouteTable {
    /// The position of the virtual host of `host` (lower case, no port) and the domain of it that names the host, found
    /// by reading all domains.
    pub fn read_host(&self, host: &str) -> Option<(usize, &HostPattern)> {
        let hosts = self.virtual_hosts().iter().enumerate();
        let domains = hosts.flat_map(|(at, host)| host.domains.iter().map(move |domain| (domain, at)));
        most_specific(domains, host).map(|(domain, at)| (at, domain))
    }
}

/// The most specific of the patterns that name `host`; of equal ones the first.
pub(crate) fn most_specific<'a, T>(
    patterns: impl Iterator<Item = (&'a HostPattern, T)>,
    host: &str,
) -> Option<(&'a HostPattern, T)> {
    let mut best: Option<(&HostPattern, T)> = None;
    for (pattern, value) in patterns.filter(|(pattern, _)| pattern.matches(host)) {
        if best
            .as_ref()
            .is_none_or(|(known, _)| pattern.by_specificity(known).is_lt())
        {
            best = Some((pattern, value));
        }
    }
    best
}

impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "exact {text:?}"),
            Self::Prefix(text) => write!(f, "prefix {text:?}"),
            Self::Regex(regex) => write!(f, "regex {:?}", regex.pattern()),
            Self::Present => f.write_str("present"),
        }
    }
}

impl fmt::Display for HeaderSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Field(name) => name.as_str(),
            Self::Authority => ":authority",
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Scheme => ":scheme",
        })
    }
}

impl fmt::Display for Condition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) if path.ignore_case => write!(f, "uri {} in any case", path.text),
            Self::Path(path) => write!(f, "uri {}", path.text),
            Self::Method(text) => write!(f, "method {text}"),
            Self::Scheme(text) => write!(f, "scheme {text}"),
            Self::Authority(text) => write!(f, "authority {text}"),
            Self::Header(wanted) => {
                let HeaderMatch {
                    subject,
                    text,
                    inverted,
                } = wanted;
                match (inverted, text) {
                    (false, _) => write!(f, "header {subject} {text}"),
                    (true, TextMatch::Present) => write!(f, "header {subject} absent"),
                    (true, _) => write!(f, "header {subject} not {text}"),
                }
            }
            Self::Query(wanted) => write!(f, "query parameter {} {}", wanted.name, wanted.text),
            Self::Source(wanted) => wanted.fmt(f),
        }
    }
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.as_deref().map(String::from_utf8_lossy);
        let shown = found.as_deref().map(|text| {
            let mut short: String = text.chars().take(SHOWN_MAX).collect();
            if short.len() < text.len() {
                short.push_str("...");
            }
            format!("{short:?}")
        });
        match (&self.condition, shown) {
            (Condition::Path(_), shown) => {
                write!(
                    f,
                    "{} does not match {}",
                    self.condition,
                    shown.unwrap_or_default()
                )
            }
            (Condition::Source(wanted), shown) => {
                write!(
                    f,
                    "{wanted} is wanted, the client is {}",
                    shown.unwrap_or_default()
                )
            }
            (condition, Some(shown)) => write!(f, "{condition} is wanted, the request has {shown}"),
            (condition @ Condition::Header(HeaderMatch { inverted: true, .. }), None) => {
                write!(
                    f,
                    "{condition} is wanted, and a field that the request lacks counts as empty"
                )
            }
            (condition, None) => write!(f, "{condition} is wanted, the request has none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::FieldName;
    use crate::route::Regex;

    fn request() -> RequestHead {
        let mut head = RequestHead::default();
        head.clear();
        head.set_authority("a.com:80");
        head.set_path("/login?q=1&r");
        head.headers.append(b"X-User", b"bob");
        head.headers.append(b"x-two", b"1");
        head.headers.append(b"X-Two", b"2");
        head
    }

    fn reason(matches: &RouteMatch) -> String {
        let request = request();
        let found = matches.mismatch(&request, &"http".into(), &mut Scratch::default());
        found.map_or_else(|| "takes it".to_owned(), |mismatch| mismatch.to_string())
    }

    #[test]
    fn reasons_name_what_is_wanted_and_what_is_there() {
        let header = |name: &str, text: TextMatch, inverted| RouteMatch {
            headers: vec![HeaderMatch {
                subject: HeaderSubject::Field(FieldName::parse(name).unwrap()),
                text,
                inverted,
            }],
            ..RouteMatch::ANY
        };
        let path = |text, ignore_case| RouteMatch {
            path: PathMatch { text, ignore_case },
            ..RouteMatch::ANY
        };
        let query = |name: &str| RouteMatch {
            query: vec![QueryMatch {
                name: name.into(),
                text: TextMatch::Exact("2".into()),
            }],
            ..RouteMatch::ANY
        };
        let exact = |text: &str| TextMatch::Exact(text.into());
        for (matches, expected) in [
            (RouteMatch::ANY, "takes it"),
            (
                path(TextMatch::Prefix("/api".into()), false),
                r#"uri prefix "/api" does not match "/login""#,
            ),
            (path(TextMatch::Prefix("/LOG".into()), true), "takes it"),
            (
                path(exact("/LOG"), true),
                r#"uri exact "/LOG" in any case does not match "/login""#,
            ),
            (
                path(TextMatch::Regex(Regex::new("/l.").unwrap()), false),
                r#"uri regex "/l." does not match "/login""#,
            ),
            (
                header("x-user", exact("jason"), false),
                r#"header x-user exact "jason" is wanted, the request has "bob""#,
            ),
            (
                header("x-none", exact("jason"), false),
                r#"header x-none exact "jason" is wanted, the request has none"#,
            ),
            (header("x-two", exact("1,2"), false), "takes it"),
            (
                header("x-user", TextMatch::Present, true),
                r#"header x-user absent is wanted, the request has "bob""#,
            ),
            (
                header("x-none", TextMatch::Prefix("".into()), true),
                r#"header x-none not prefix "" is wanted, and a field that the request lacks counts as empty"#,
            ),
            (
                query("q"),
                r#"query parameter q exact "2" is wanted, the request has "1""#,
            ),
            (
                query("z"),
                r#"query parameter z exact "2" is wanted, the request has none"#,
            ),
            (
                RouteMatch {
                    method: Some(exact("POST")),
                    ..RouteMatch::ANY
                },
                r#"method exact "POST" is wanted, the request has "GET""#,
            ),
        ] {
            assert_eq!(reason(&matches), expected);
        }
    }

    #[test]
    fn long_values_are_cut() {
        let long = RouteMatch {
            authority: Some(TextMatch::Exact("b".into())),
            ..RouteMatch::ANY
        };
        let mut request = request();
        request.set_authority(&"é".repeat(500));
        let text = long
            .mismatch(&request, &"http".into(), &mut Scratch::default())
            .unwrap()
            .to_string();
        assert!(text.ends_with("é...\"") && text.len() < 300, "{text}");
    }
}
