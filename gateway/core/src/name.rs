//! Names: host patterns, the index that finds the pattern of a host, and the names of clusters.
//!
//! Hosts are compared without case and without a port; patterns are exact names, `*.suffix`, or `*`.

use foldhash::fast::FixedState;
use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

/// A host as resources name it: exact, with a wildcard for its leftmost labels, or any.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// A name that must be equal; lower case.
    Exact(Box<str>),
    /// `*.example.com`, held as `.example.com`: any name that ends so, but not `example.com` itself.
    Suffix(Box<str>),
    /// `*`.
    Any,
}

impl HostPattern {
    /// Reads `*`, `*.suffix` or a name, and lowers its case. A star elsewhere is taken as part of an exact name,
    /// which then never matches: refusing it is the validator's task.
    pub fn parse(text: &str) -> Self {
        Self::as_written(&text.to_ascii_lowercase())
    }

    /// Like [`Self::parse`], but keeps the case.
    pub fn as_written(text: &str) -> Self {
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) if suffix.starts_with('.') => Self::Suffix(suffix.into()),
            _ => Self::Exact(text.into()),
        }
    }

    /// Whether a concrete `host` (lower case, no port) is named by this pattern.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => **name == *host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }

    /// Whether everything that `self` names is also named by `other` (Istio `host.Name.SubsetOf`).
    pub fn subset_of(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Any) => true,
            (Self::Any, _) => false,
            (Self::Exact(name), _) => other.matches(name),
            (Self::Suffix(_), Self::Exact(_)) => false,
            (Self::Suffix(mine), Self::Suffix(theirs)) => mine.ends_with(&**theirs),
        }
    }

    /// Whether the patterns have any name in common (Istio `host.Name.Matches`).
    pub fn overlaps(&self, other: &Self) -> bool {
        self.intersection(other).is_some()
    }

    /// The order in which patterns are asked: names before wildcards, then the longer, then by the alphabet (Istio
    /// `host.MoreSpecific`).
    pub fn by_specificity(&self, other: &Self) -> Ordering {
        let key = |pattern: &Self| {
            let text = pattern.to_string();
            (!matches!(pattern, Self::Exact(_)), Reverse(text.len()), text)
        };
        key(self).cmp(&key(other))
    }

    /// The names that both patterns have in common: the narrower of the two, if they overlap at all.
    pub fn intersection<'a>(&'a self, other: &'a Self) -> Option<&'a Self> {
        if self.subset_of(other) {
            Some(self)
        } else if other.subset_of(self) {
            Some(other)
        } else {
            None
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Finds the most specific pattern for a host: the exact name, else the longest suffix, else `*` (Envoy's order of
/// virtual host domains). The cost grows with the number of labels of the host, not with the number of patterns.
#[derive(Debug, Clone)]
pub struct HostIndex<T> {
    exact: HashMap<Box<str>, T, FixedState>,
    suffix: HashMap<Box<str>, T, FixedState>,
    any: Option<T>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::default(),
            suffix: HashMap::default(),
            any: None,
        }
    }
}

impl<T> HostIndex<T> {
    /// Adds a pattern. The first value of a pattern stays; a later one is given back.
    pub fn insert(&mut self, pattern: HostPattern, value: T) -> Result<(), T> {
        use std::collections::hash_map::Entry::{Occupied, Vacant};
        let slot = match pattern {
            HostPattern::Exact(name) => self.exact.entry(name),
            HostPattern::Suffix(suffix) => self.suffix.entry(suffix),
            HostPattern::Any if self.any.is_some() => return Err(value),
            HostPattern::Any => {
                self.any = Some(value);
                return Ok(());
            }
        };
        match slot {
            Occupied(_) => Err(value),
            Vacant(free) => {
                free.insert(value);
                Ok(())
            }
        }
    }

    /// The value of the most specific pattern that names `host` (lower case, no port).
    pub fn find(&self, host: &str) -> Option<&T> {
        if let Some(found) = self.exact.get(host) {
            return Some(found);
        }
        if !self.suffix.is_empty() {
            let dots = host
                .bytes()
                .enumerate()
                .filter(|&(at, byte)| byte == b'.' && at > 0);
            for (at, _) in dots {
                if let Some(found) = self.suffix.get(&host[at..]) {
                    return Some(found);
                }
            }
        }
        self.any.as_ref()
    }
}

/// The name of a cluster, `outbound|PORT|SUBSET|HOST`, with its hash computed once. Cloning is one atomic increment;
/// the request path borrows it.
#[derive(Clone)]
pub struct ClusterKey {
    name: Arc<str>,
    hash: u64,
}

impl ClusterKey {
    /// The cluster of a service port; `subset` is empty for the whole service.
    pub fn outbound(port: u16, subset: &str, host: &str) -> Self {
        let name: Arc<str> = format!("outbound|{port}|{subset}|{host}").into();
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        name.hash(&mut hasher);
        Self {
            hash: hasher.finish(),
            name,
        }
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    fn part(&self, index: usize) -> &str {
        self.name.splitn(4, '|').nth(index).unwrap_or("")
    }

    /// The service's host.
    pub fn host(&self) -> &str {
        self.part(3)
    }

    /// The subset, empty for the whole service.
    pub fn subset(&self) -> &str {
        self.part(2)
    }

    /// The service port.
    pub fn port(&self) -> u16 {
        self.part(1).parse().unwrap_or(0)
    }
}

impl PartialEq for ClusterKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.name, &other.name) || self.name == other.name)
    }
}

impl Eq for ClusterKey {}

impl PartialOrd for ClusterKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ClusterKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name.cmp(&other.name)
    }
}

impl Hash for ClusterKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A map by [`ClusterKey`] that uses the hash which the key carries.
pub type ClusterMap<T> = HashMap<ClusterKey, T, BuildHasherDefault<CarriedHash>>;

/// Passes a key's own 64-bit hash through.
#[derive(Debug, Default, Clone)]
pub struct CarriedHash(u64);

impl Hasher for CarriedHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517C_C1B7_2722_0A95);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text)
    }

    #[test]
    fn suffix_covers_any_depth_but_not_the_bare_domain() {
        for (text, host, expected) in [
            ("*.foo.com", "a.foo.com", true),
            ("*.foo.com", "a.b.foo.com", true),
            ("*.foo.com", "foo.com", false),
            ("*.foo.com", ".foo.com", false),
            ("*.foo.com", "afoo.com", false),
            ("*", "", true),
            ("Foo.com", "foo.com", true),
            ("foo.com", "a.foo.com", false),
        ] {
            assert_eq!(pattern(text).matches(host), expected, "{text} {host}");
        }
    }

    #[test]
    fn intersection_keeps_the_narrower() {
        for (a, b, expected) in [
            ("*", "*.foo.com", Some("*.foo.com")),
            ("*.foo.com", "bar.foo.com", Some("bar.foo.com")),
            ("*.a.foo.com", "*.foo.com", Some("*.a.foo.com")),
            ("*.foo.com", "*.bar.com", None),
            ("foo.com", "*.foo.com", None),
            ("a", "b", None),
        ] {
            let (a, b) = (pattern(a), pattern(b));
            assert_eq!(a.intersection(&b).map(ToString::to_string).as_deref(), expected);
            assert_eq!(b.intersection(&a).map(ToString::to_string).as_deref(), expected);
        }
    }

    #[test]
    fn index_prefers_exact_then_longest_suffix_then_any() {
        let mut index = HostIndex::default();
        for (name, value) in [("*", 0), ("*.foo.com", 1), ("*.b.foo.com", 2), ("a.b.foo.com", 3)] {
            index.insert(pattern(name), value).unwrap();
        }
        assert_eq!(index.insert(pattern("*"), 9), Err(9));
        assert_eq!(index.insert(pattern("*.foo.com"), 9), Err(9));
        for (host, expected) in [
            ("a.b.foo.com", 3),
            ("c.b.foo.com", 2),
            ("x.foo.com", 1),
            ("foo.com", 0),
            ("", 0),
            ("..", 0),
        ] {
            assert_eq!(index.find(host), Some(&expected), "{host}");
        }
    }

    #[test]
    fn cluster_key_has_its_parts() {
        let key = ClusterKey::outbound(443, "v1", "reviews.default.svc.cluster.local");
        assert_eq!(key.as_str(), "outbound|443|v1|reviews.default.svc.cluster.local");
        assert_eq!(
            (key.port(), key.subset(), key.host()),
            (443, "v1", "reviews.default.svc.cluster.local")
        );
        assert_eq!(ClusterKey::outbound(80, "", "h").subset(), "");
    }
}
