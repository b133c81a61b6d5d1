//! Matches: what a rule asks of a request, and whether a request meets it.
//!
//! Everything here is decided when the configuration is compiled; a look-up compares bytes and runs compiled patterns
//! in memory that it is lent ([`Scratch`]).

use crate::header::FieldName;
use crate::message::RequestHead;
use crate::source::{Caller, SourceMatch};
use foldhash::fast::FixedState;
use regex_automata::meta;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest pattern that is accepted (Istio's limit for `regex`).
pub const REGEX_PATTERN_MAX: usize = 1024;
/// Most memory that one compiled pattern may take, so that a pattern like `(a{100}){100}` is refused.
pub const REGEX_COMPILED_MAX: usize = 1 << 20;

/// A compiled regular expression that must match the whole text (RE2 syntax; linear in the text).
#[derive(Clone)]
pub struct Regex(Arc<Program>);

/// What all clones of a pattern share; apart, so that the many matches that are no patterns take no room for it.
struct Program {
    pattern: Box<str>,
    /// Tells compiled programs apart, whose caches are not interchangeable.
    id: u64,
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
    /// Compiles a pattern that must match the whole text.
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        // Parsed alone first, so that `a)|(b` cannot close the group that anchors it.
        Self::compile(pattern, pattern)?;
        Self::compile(pattern, &format!("^(?:{pattern})$"))
    }

    /// Compiles a pattern that is searched for anywhere in the text.
    pub(super) fn search(pattern: &str) -> Result<Self, RegexError> {
        Self::compile(pattern, pattern)
    }

    fn compile(pattern: &str, program: &str) -> Result<Self, RegexError> {
        if pattern.len() > REGEX_PATTERN_MAX {
            return Err(RegexError::TooLong(pattern.len()));
        }
        let config = meta::Config::new().nfa_size_limit(Some(REGEX_COMPILED_MAX));
        let program = meta::Builder::new()
            .configure(config)
            .build(program)
            .map_err(|error| {
                let text = match error.syntax_error() {
                    Some(syntax) => syntax.to_string(),
                    None => error.to_string(),
                };
                RegexError::Invalid(text)
            })?;
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Ok(Self(Arc::new(Program {
            pattern: pattern.into(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            program,
        })))
    }

    /// The pattern as written.
    pub fn pattern(&self) -> &str {
        &self.0.pattern
    }

    /// Number of groups, the whole match included.
    pub(super) fn groups(&self) -> usize {
        self.0.program.captures_len()
    }

    /// Calls `found` for each match from the left, with what gives the range of a group.
    pub(super) fn each(&self, text: &str, mut found: impl FnMut(&dyn Fn(usize) -> Option<Range<usize>>)) {
        for captures in self.0.program.captures_iter(text) {
            found(&|group| captures.get_group(group).map(|span| span.range()));
        }
    }

    fn matches(&self, text: &[u8], scratch: &mut Scratch) -> bool {
        let cache = scratch
            .caches
            .entry(self.0.id)
            .or_insert_with(|| self.0.program.create_cache());
        self.0
            .program
            .search_half_with(cache, &regex_automata::Input::new(text).earliest(true))
            .is_some()
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Regex({:?})", self.pattern())
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.pattern() == other.pattern()
    }
}

impl Eq for Regex {}

impl Hash for Regex {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.pattern().hash(state);
    }
}

/// Working memory of look-ups; each shard has one, so that matching a regex takes no lock.
#[derive(Default)]
pub struct Scratch {
    caches: HashMap<u64, meta::Cache, FixedState>,
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// Who the client must be.
    pub source: Option<Box<SourceMatch>>,
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
        source: None,
    };

    /// Whether nothing is asked for but the path.
    pub(super) fn is_path_only(&self) -> bool {
        let Self {
            path: _,
            method,
            scheme,
            authority,
            headers,
            query,
            source,
        } = self;
        method.is_none()
            && scheme.is_none()
            && authority.is_none()
            && headers.is_empty()
            && query.is_empty()
            && source.is_none()
    }

    /// Whether a request meets every part.
    pub fn matches(&self, request: &RequestHead, caller: &Caller<'_>, scratch: &mut Scratch) -> bool {
        self.path.matches(request.path_only(), scratch) && self.matches_beyond_path(request, caller, scratch)
    }

    /// Whether a request meets every part but the path.
    pub(super) fn matches_beyond_path(
        &self,
        request: &RequestHead,
        caller: &Caller<'_>,
        scratch: &mut Scratch,
    ) -> bool {
        let scheme = caller.scheme;
        let text = |wanted: &Option<TextMatch>, actual: &str, scratch: &mut Scratch| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted.matches(actual.as_bytes(), scratch))
        };
        text(&self.method, request.method.as_str(), scratch)
            && text(&self.scheme, scheme, scratch)
            && text(&self.authority, &request.authority, scratch)
            && self
                .headers
                .iter()
                .all(|header| header.matches(request, scheme, scratch))
            && self.query.iter().all(|query| query.matches(request, scratch))
            && self.source.as_ref().is_none_or(|source| source.matches(caller))
    }
}
