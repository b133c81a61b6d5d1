//! Consistent hashing: requests with the same key go to the same endpoint, and a change of the endpoints moves few of
//! them (Istio `loadBalancer.consistentHash`).
//!
//! [`HashKey`] finds a request's key. A [`Tables`] maps its hash to an endpoint: by a ring of many points for each
//! endpoint (Karger et al. 1997; ketama), or by Maglev's look-up table (Eisenbud et al., NSDI 2016). Tables follow from
//! the addresses and weights alone, not from their order, so that every shard, every gateway and every start agrees; they
//! are built once for a set of endpoints, off the request path, and shared by the shards. An endpoint that is not
//! available stays in them and is passed over, so that only its own keys move, and come back when it does. The hash is
//! xxHash64.

use crate::endpoint::Endpoint;
use crate::header::FieldName;
use crate::message::RequestHead;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use twox_hash::XxHash64;

/// Points of an endpoint on a ring when nothing is written (`minimumRingSize`).
pub const RING_SIZE: u32 = 1024;
/// Points of a ring at most (Envoy `maximum_ring_size`).
pub const RING_SIZE_MAX: u32 = 8 * 1024 * 1024;
/// Slots of a Maglev table when nothing is written (`maglev.tableSize`); a prime.
pub const MAGLEV_SIZE: u32 = 65_537;
/// Points or slots that are tried to find an available endpoint before any available one is taken.
const PROBES_MAX: usize = 128;

/// xxHash64 without a seed.
pub fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// `consistentHash`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hashing {
    /// What of a request is hashed.
    pub key: HashKey,
    /// How hashes lead to endpoints.
    pub table: TableKind,
}

/// How hashes lead to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// A ring on which endpoints of the largest weight have so many points each.
    Ring(u32),
    /// A Maglev table of so many slots, a prime.
    Maglev(u32),
}

/// What of a request is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// A field's value.
    Header(FieldName),
    /// The authority, for `host` and `:authority`.
    Authority,
    /// The path with its query, for `:path`.
    Path,
    /// A cookie's value.
    Cookie(HashCookie),
    /// The client's address without its port.
    SourceIp,
    /// The first value of a parameter of the query.
    Query(Box<str>),
}

/// `httpCookie`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HashCookie {
    /// Its name.
    pub name: Box<str>,
    /// How long clients keep the one that they are given; zero for as long as they run, None to give none.
    pub ttl: Option<Duration>,
    /// `path` and `attributes` of the one that they are given, as Set-Cookie has them behind the value.
    pub attributes: Box<str>,
}

impl HashCookie {
    /// A cookie with a path, which may be empty, and attributes, whose values may be.
    pub fn new(name: &str, ttl: Option<Duration>, path: &str, attributes: &[(String, String)]) -> Self {
        let mut text = String::new();
        let mut add = |name: &str, value: &str| {
            text.push_str("; ");
            text.push_str(name);
            if !value.is_empty() {
                text.push('=');
                text.push_str(value);
            }
        };
        if let Some(ttl) = ttl.filter(|ttl| !ttl.is_zero()) {
            add("Max-Age", itoa::Buffer::new().format(ttl.as_secs()));
        }
        if !path.is_empty() {
            add("Path", path);
        }
        for (name, value) in attributes {
            add(name, value);
        }
        // No script needs it (as Envoy does).
        let is_set = |(name, _): &(String, String)| name.eq_ignore_ascii_case("HttpOnly");
        if !attributes.iter().any(is_set) {
            add("HttpOnly", "");
        }
        Self {
            name: name.into(),
            ttl,
            attributes: text.into(),
        }
    }

    fn find<'h>(&self, head: &'h RequestHead) -> Option<&'h [u8]> {
        let cookies = head
            .headers
            .iter()
            .filter(|(_, name, _)| name.eq_ignore_ascii_case(b"cookie"));
        let pairs = cookies.flat_map(|(_, _, value)| value.split(|byte| *byte == b';'));
        let mut values = pairs.filter_map(|pair| {
            let at = memchr::memchr(b'=', pair)?;
            let (name, value) = pair.split_at_checked(at)?;
            (name.trim_ascii() == self.name.as_bytes())
                .then(|| value.get(1..).unwrap_or_default().trim_ascii())
        });
        values.next().map(|value| {
            let inside = value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""));
            inside.unwrap_or(value)
        })
    }
}

/// What a request's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keyed {
    /// It has none: any endpoint will do.
    No,
    /// The hash of its key.
    Hash(u64),
    /// The hash of a key that it is given, and the Set-Cookie that gives it.
    New(u64, Box<str>),
}

impl Keyed {
    /// The hash, if there is one.
    pub fn hash(&self) -> Option<u64> {
        match self {
            Self::No => None,
            Self::Hash(hash) | Self::New(hash, _) => Some(*hash),
        }
    }

    /// The Set-Cookie that gives the client its key, if it is new.
    pub fn into_cookie(self) -> Option<Box<str>> {
        match self {
            Self::New(_, cookie) => Some(cookie),
            Self::No | Self::Hash(_) => None,
        }
    }
}

impl HashKey {
    /// The key of a request of a client, whose connection is from `peer` to `local`. A new cookie is the same for all
    /// requests of one connection, so that those that come together stay together.
    pub fn of(
        &self,
        head: &RequestHead,
        client: IpAddr,
        peer: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Keyed {
        match self {
            Self::Header(name) => {
                let mut values = head.headers.get_named(name);
                match values.next() {
                    None => Keyed::No,
                    // A sum, so that the order of several does not matter.
                    Some(first) => {
                        Keyed::Hash(values.fold(hash(first), |sum, value| sum.wrapping_add(hash(value))))
                    }
                }
            }
            Self::Authority => Keyed::Hash(hash(head.authority.as_bytes())),
            Self::Path => Keyed::Hash(hash(head.path.as_bytes())),
            Self::SourceIp => Keyed::Hash(source(client)),
            Self::Query(name) => {
                let pairs = head.query().into_iter().flat_map(|query| query.split('&'));
                let mut values = pairs.filter_map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (key == &**name).then_some(value)
                });
                values
                    .next()
                    .map_or(Keyed::No, |value| Keyed::Hash(hash(value.as_bytes())))
            }
            Self::Cookie(cookie) => match (cookie.find(head), cookie.ttl) {
                (Some(value), _) => Keyed::Hash(hash(value)),
                (None, None) => Keyed::No,
                (None, Some(_)) => {
                    let mut ends = Vec::with_capacity(96);
                    let _memory = write!(ends, "{peer}");
                    if let Some(local) = local {
                        let _memory = write!(ends, "{local}");
                    }
                    let mut text = String::with_capacity(cookie.name.len() + cookie.attributes.len() + 17);
                    text.push_str(&cookie.name);
                    text.push('=');
                    let value_at = text.len();
                    let _memory = write!(text, "{:016x}", hash(&ends));
                    let hash = hash(text.as_bytes().get(value_at..).unwrap_or_default());
                    text.push_str(&cookie.attributes);
                    Keyed::New(hash, text.into())
                }
            },
        }
    }
}

/// The hash of a client's address.
pub fn source(client: IpAddr) -> u64 {
    let mut text = [0; 48];
    let room = text.len();
    let mut rest = &mut text[..];
    let _fits = write!(rest, "{}", client.to_canonical());
    let used = room - rest.len();
    hash(text.get(..used).unwrap_or_default())
}

/// The tables of a set of endpoints, one for each level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    levels: Vec<Table>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Table {
    /// Points in order, and whose each is.
    Ring(Vec<u64>, Vec<u32>),
    /// Whose each slot is.
    Maglev(Vec<u32>),
}

impl Tables {
    /// Lays the tables out. `weights` says what each endpoint's share of its level is, relative to the others; one of 0
    /// is in no table.
    pub fn new(kind: TableKind, endpoints: &[Endpoint], weights: &[f64]) -> Self {
        let levels = endpoints
            .iter()
            .map(|endpoint| endpoint.level + 1)
            .max()
            .unwrap_or(0);
        let table = |level| {
            let mut of_level: Vec<Share> = (0..)
                .zip(endpoints.iter().zip(weights))
                .filter(|(_, (endpoint, weight))| endpoint.level == level && **weight > 0.0)
                .map(|(at, (endpoint, weight))| Share {
                    name: endpoint.address.to_string(),
                    at,
                    weight: *weight,
                })
                .collect();
            of_level.sort_by(|a, b| a.name.cmp(&b.name));
            let total: f64 = of_level.iter().map(|share| share.weight).sum();
            for share in &mut of_level {
                share.weight /= total;
            }
            match kind {
                TableKind::Ring(size) => ring(&of_level, size),
                TableKind::Maglev(size) => maglev(&of_level, size),
            }
        };
        Self {
            levels: (0..levels).map(table).collect(),
        }
    }

    /// The endpoint of a hash on a level: of those that `usable` admits the first on the hash's way. None when none is
    /// found soon.
    pub(super) fn find(&self, level: u32, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match self.levels.get(level as usize)? {
            Table::Ring(points, owners) => {
                let start = points.partition_point(|point| *point < hash);
                let way = owners.iter().skip(start).chain(owners.iter().take(start));
                // Points of one endpoint are often next to each other.
                let mut last = u32::MAX;
                let mut probes = 0;
                for owner in way {
                    if *owner == last {
                        continue;
                    }
                    if usable(*owner as usize) {
                        return Some(*owner as usize);
                    }
                    last = *owner;
                    probes += 1;
                    if probes >= PROBES_MAX {
                        break;
                    }
                }
                None
            }
            Table::Maglev(owners) => {
                let mut at = hash;
                for _ in 0..PROBES_MAX {
                    let slot = at.checked_rem(owners.len() as u64)?;
                    let owner = *owners.get(slot as usize)? as usize;
                    if usable(owner) {
                        return Some(owner);
                    }
                    at = XxHash64::oneshot(at, b"next");
                }
                None
            }
        }
    }
}

/// An endpoint on its way into a table.
struct Share {
    name: String,
    at: u32,
    /// Its part of the whole, which is 1.
    weight: f64,
}

/// A ring on which the largest share has `size` points, and the others in proportion: how many an endpoint has does not
/// depend on how many others there are, so that only the keys of one that goes move. Never more than [`RING_SIZE_MAX`].
fn ring(shares: &[Share], size: u32) -> Table {
    let largest = shares
        .iter()
        .map(|share| share.weight)
        .fold(f64::MIN_POSITIVE, f64::max);
    let wanted: f64 = shares.iter().map(|share| share.weight / largest).sum();
    let room = f64::from(RING_SIZE_MAX) - shares.len() as f64;
    let scale = f64::from(size.max(1)).min((room / wanted.max(1.0)).max(0.0));
    let mut points: Vec<(u64, u32)> = Vec::new();
    let mut text = String::new();
    for share in shares {
        let count = ((share.weight / largest * scale) as u32).max(1);
        for number in 0..count {
            text.clear();
            let _memory = write!(text, "{}_{number}", share.name);
            points.push((hash(text.as_bytes()), share.at));
        }
    }
    points.sort_unstable();
    Table::Ring(
        points.iter().map(|(point, _)| *point).collect(),
        points.iter().map(|(_, at)| *at).collect(),
    )
}

/// A table of `size` slots which each share fills in an order of its own, in turns as often as its weight says.
fn maglev(shares: &[Share], size: u32) -> Table {
    let size = u64::from(size.max(3));
    let largest = shares.iter().map(|share| share.weight).fold(0.0, f64::max);
    if shares.is_empty() {
        return Table::Maglev(Vec::new());
    }
    const FREE: u32 = u32::MAX;
    let mut slots = vec![FREE; size as usize];
    let mut ways: Vec<(u64, u64, f64)> = shares
        .iter()
        .map(|share| {
            let offset = hash(share.name.as_bytes()) % size;
            let skip = XxHash64::oneshot(1, share.name.as_bytes()) % (size - 1) + 1;
            (offset, skip, 0.0)
        })
        .collect();
    let mut left = size;
    let mut turn = 0.0;
    while left > 0 {
        turn += 1.0;
        for ((next, skip, target), share) in ways.iter_mut().zip(shares) {
            // One of half the largest weight has every second turn.
            if turn * share.weight < *target || left == 0 {
                continue;
            }
            *target += largest;
            // The skip and the number of slots have no common divisor: the way passes every slot.
            while let Some(slot) = slots.get_mut(*next as usize) {
                *next = (*next + *skip) % size;
                if *slot == FREE {
                    *slot = share.at;
                    left -= 1;
                    break;
                }
            }
        }
    }
    Table::Maglev(slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const KINDS: [TableKind; 2] = [TableKind::Ring(RING_SIZE), TableKind::Maglev(MAGLEV_SIZE)];

    fn endpoints(count: u16) -> Vec<Endpoint> {
        (1..=count)
            .map(|at| Endpoint::new(([10, 0, (at >> 8) as u8, at as u8], 8080).into()))
            .collect()
    }

    fn even(kind: TableKind, endpoints: &[Endpoint]) -> Tables {
        Tables::new(kind, endpoints, &vec![1.0; endpoints.len()])
    }

    fn keys(count: usize) -> Vec<u64> {
        (0..count)
            .map(|at| hash(format!("user-{at}").as_bytes()))
            .collect()
    }

    fn address(endpoints: &[Endpoint], tables: &Tables, key: u64) -> SocketAddr {
        endpoints[tables.find(0, key, |_| true).unwrap()].address
    }

    #[test]
    fn hashes_are_those_of_the_published_algorithm() {
        assert_eq!(hash(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(hash(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(hash(b"abc"), 0x44BC_2CF5_AD77_0999);
        assert_eq!(source("10.0.0.1".parse().unwrap()), hash(b"10.0.0.1"));
        assert_eq!(source("::ffff:10.0.0.1".parse().unwrap()), hash(b"10.0.0.1"));
        let long = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff";
        assert_eq!(source(long.parse().unwrap()), hash(long.as_bytes()));
    }

    #[test]
    fn the_order_of_endpoints_does_not_matter() {
        for kind in KINDS {
            let mut list = endpoints(30);
            let before = even(kind, &list);
            let expected: Vec<SocketAddr> = keys(2000)
                .iter()
                .map(|key| address(&list, &before, *key))
                .collect();
            let mut random = Random::from_seed(1);
            for _ in 0..20 {
                for at in (1..list.len()).rev() {
                    list.swap(at, random.below(at as u64 + 1) as usize);
                }
                let tables = even(kind, &list);
                let found: Vec<SocketAddr> = keys(2000)
                    .iter()
                    .map(|key| address(&list, &tables, *key))
                    .collect();
                assert_eq!(found, expected, "{kind:?}");
            }
        }
    }

    /// The part of the keys that one endpoint had must move, and ideally nothing else does.
    #[test]
    fn little_moves_when_an_endpoint_goes() {
        let (list, keys) = (endpoints(10), keys(100_000));
        for kind in KINDS {
            let before = even(kind, &list);
            for gone in 0..list.len() {
                let mut rest = list.clone();
                let address_gone = rest.remove(gone).address;
                let after = even(kind, &rest);
                let (mut had_to, mut moved) = (0, 0);
                for key in &keys {
                    let (old, new) = (address(&list, &before, *key), address(&rest, &after, *key));
                    had_to += usize::from(old == address_gone);
                    moved += usize::from(old != new);
                }
                let needless = (moved - had_to) as f64 / keys.len() as f64;
                match kind {
                    TableKind::Ring(_) => assert_eq!(moved, had_to),
                    TableKind::Maglev(_) => assert!(needless < 0.05, "{needless} moved without need"),
                }
            }
        }
    }

    #[test]
    fn only_the_keys_of_one_that_is_not_available_move() {
        let (list, keys) = (endpoints(10), keys(20_000));
        for kind in KINDS {
            let tables = even(kind, &list);
            for gone in 0..list.len() {
                let mut takers = vec![0; list.len()];
                for key in &keys {
                    let old = tables.find(0, *key, |_| true).unwrap();
                    let new = tables.find(0, *key, |at| at != gone).unwrap();
                    assert!(old == new || old == gone);
                    takers[new] += usize::from(old != new);
                }
                assert!(
                    takers
                        .iter()
                        .enumerate()
                        .all(|(at, taken)| *taken > 0 || at == gone),
                    "{kind:?}: its keys are spread over the others: {takers:?}"
                );
            }
        }
    }

    /// Maglev's paper promises an even load; with n points for each endpoint of a ring the parts differ by about
    /// `1 / sqrt(n)`.
    #[test]
    fn load_is_spread_within_the_published_bounds() {
        let (list, keys) = (endpoints(10), keys(500_000));
        let spread = |kind| {
            let tables = even(kind, &list);
            let mut counts = vec![0usize; list.len()];
            for key in &keys {
                counts[tables.find(0, *key, |_| true).unwrap()] += 1;
            }
            let fair = keys.len() as f64 / list.len() as f64;
            counts
                .iter()
                .map(|count| (*count as f64 / fair - 1.0).abs())
                .fold(0.0, f64::max)
        };
        let maglev = spread(TableKind::Maglev(MAGLEV_SIZE));
        assert!(maglev < 0.02, "Maglev: {maglev}");
        for points in [RING_SIZE, 32 * 1024] {
            let ring = spread(TableKind::Ring(points));
            assert!(
                ring < 3.0 / f64::from(points).sqrt() + 0.01,
                "{points} points: {ring}"
            );
        }
    }

    #[test]
    fn weights_are_shares() {
        let list = endpoints(4);
        let weights = [1.0, 2.0, 5.0, 0.0];
        for kind in [TableKind::Ring(32 * 1024), TableKind::Maglev(MAGLEV_SIZE)] {
            let tables = Tables::new(kind, &list, &weights);
            let mut counts = [0usize; 4];
            let keys = keys(200_000);
            for key in &keys {
                counts[tables.find(0, *key, |_| true).unwrap()] += 1;
            }
            for (count, weight) in counts.iter().zip(weights) {
                let share = *count as f64 / keys.len() as f64;
                assert!((share - weight / 8.0).abs() < 0.02, "{kind:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn rings_have_a_least_and_a_greatest_size() {
        let size = |weights: &[f64], size| {
            let list = endpoints(weights.len() as u16);
            match &Tables::new(TableKind::Ring(size), &list, weights).levels[0] {
                Table::Ring(points, _) => points.len(),
                Table::Maglev(_) => 0,
            }
        };
        assert_eq!(size(&[1.0; 4], 1024), 4096);
        assert_eq!(size(&[2.0, 1.0], 1024), 1536);
        assert_eq!(size(&[1.0; 3], 1), 3);
        assert_eq!(size(&[1.0, 1e12], 1024), 1025, "each has at least one");
        let most = size(&[1.0; 3], u32::MAX);
        assert!(
            (RING_SIZE_MAX as usize - 10..=RING_SIZE_MAX as usize).contains(&most),
            "{most}"
        );
    }

    #[test]
    fn nothing_leads_nowhere() {
        for kind in KINDS {
            assert_eq!(even(kind, &[]).find(0, 7, |_| true), None);
            assert_eq!(even(kind, &endpoints(3)).find(0, 7, |_| false), None);
            assert_eq!(even(kind, &endpoints(3)).find(1, 7, |_| true), None);
        }
    }

    fn head(path: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_path(path);
        head.set_authority("a.example");
        for (name, value) in fields {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn of(key: &HashKey, head: &RequestHead) -> Keyed {
        let peer: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        key.of(head, "192.0.2.9".parse().unwrap(), peer, None)
    }

    #[test]
    fn keys_are_found_in_requests() {
        let request = head(
            "/a?x=1&user=ann&user=bob&flag",
            &[
                ("X-User", "ann"),
                ("Cookie", "a=1; user=ann;b=\"q r\""),
                ("x-two", "1"),
                ("X-Two", "2"),
            ],
        );
        let header = |name: &str| HashKey::Header(FieldName::parse(name).unwrap());
        let cookie = |name: &str| HashKey::Cookie(HashCookie::new(name, None, "", &[]));
        let query = |name: &str| HashKey::Query(name.into());
        for (key, expected) in [
            (header("x-user"), Some("ann")),
            (header("x-none"), None),
            (cookie("user"), Some("ann")),
            (cookie("b"), Some("q r")),
            (cookie("use"), None),
            (query("user"), Some("ann")),
            (query("flag"), Some("")),
            (query("us"), None),
            (HashKey::SourceIp, Some("192.0.2.9")),
            (HashKey::Authority, Some("a.example")),
            (HashKey::Path, Some("/a?x=1&user=ann&user=bob&flag")),
        ] {
            let expected = expected.map_or(Keyed::No, |text| Keyed::Hash(hash(text.as_bytes())));
            assert_eq!(of(&key, &request), expected, "{key:?}");
        }
        let turned = head("/", &[("x-two", "2"), ("x-two", "1")]);
        assert_eq!(of(&header("x-two"), &request), of(&header("x-two"), &turned));
        assert_eq!(of(&query("user"), &turned), Keyed::No);
    }

    #[test]
    fn a_cookie_that_is_given_leads_where_it_will_lead() {
        let attributes = [
            ("SameSite".to_owned(), "Lax".to_owned()),
            ("Secure".to_owned(), String::new()),
        ];
        let lasting = HashKey::Cookie(HashCookie::new(
            "user",
            Some(Duration::from_secs(90)),
            "/shop",
            &attributes,
        ));
        let Keyed::New(given, text) = of(&lasting, &head("/", &[])) else {
            panic!("no cookie")
        };
        let (pair, rest) = text.split_once("; ").unwrap();
        assert_eq!(rest, "Max-Age=90; Path=/shop; SameSite=Lax; Secure; HttpOnly");
        assert_eq!(of(&lasting, &head("/", &[("cookie", pair)])), Keyed::Hash(given));
        let session = HashKey::Cookie(HashCookie::new("user", Some(Duration::ZERO), "", &[]));
        let Keyed::New(same, text) = of(&session, &head("/", &[("cookie", "other=1")])) else {
            panic!("no cookie")
        };
        assert_eq!(same, given, "of one connection");
        assert!(
            text.ends_with("; HttpOnly") && !text.contains("Max-Age"),
            "{text}"
        );
    }
}
