//! Localities: which endpoints are near, and how much of the load stays there (Istio `localityLbSetting`,
//! `zoneAwareLbSetting`).
//!
//! A locality is a region, a zone in it, and a part of that zone. [`Nearness`] gives each endpoint a level, lower for
//! nearer ones, and [`close_ranks`] counts them from 0 on without gaps. Load goes to level 0 as long as enough of it is available, with
//! [`OVERPROVISIONING`] to spare, and what it cannot take spills over to the next ([`loads`]). [`Spread`] divides the load
//! of a level among localities by written shares (`distribute`) or by where endpoints are (`zoneAwareLbSetting`).

use crate::endpoint::Endpoint;
use std::collections::BTreeMap;
use std::fmt;

/// A level that has this many times fewer available endpoints than it has endpoints still takes the whole load, in parts
/// of [`ALL`] (Envoy `overprovisioning_factor` 140 %).
pub const OVERPROVISIONING: u64 = 14_000;
/// The whole load.
pub const ALL: u64 = 10_000;
/// Endpoints below which a cluster is too small to keep traffic in its zone (Envoy `min_cluster_size`).
pub const ZONE_AWARE_ENDPOINTS: u32 = 6;
/// Labels that say a locality's parts, from the outermost on.
pub const TOPOLOGY: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];

/// `region/zone/subzone`; parts that are not known are empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Locality([Box<str>; 3]);

impl Locality {
    /// Reads `region`, `region/zone` or `region/zone/subzone`; what is behind a third slash belongs to the subzone.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(Box::from);
        Self(std::array::from_fn(|_| parts.next().unwrap_or_default()))
    }

    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        self.0.iter().all(|part| part.is_empty())
    }

    /// The region.
    pub fn region(&self) -> &str {
        let [region, _, _] = &self.0;
        region
    }

    /// Its parts, from the outermost on.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|part| &**part)
    }

    /// Whether both are in one zone.
    fn is_in_zone_of(&self, other: &Self) -> bool {
        let ([region, zone, _], [other_region, other_zone, _]) = (&self.0, &other.0);
        region == other_region && zone == other_zone
    }

    /// How many steps are between two: 0 for the same, 3 for other regions.
    fn distance(&self, other: &Self) -> u32 {
        let same = self
            .parts()
            .zip(other.parts())
            .take_while(|(own, other)| own == other);
        3 - same.count() as u32
    }

    /// Whether a locality of a rule covers this one: `*` and what is not written stand for anything.
    pub fn is_covered_by(&self, rule: &Self) -> bool {
        let mut parts = self.parts().zip(rule.parts()).enumerate();
        parts.all(|(at, (own, rule))| rule == "*" || own == rule || (at > 0 && rule.is_empty()))
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = 3 - self.0.iter().rev().take_while(|part| part.is_empty()).count();
        for (at, part) in self.parts().take(known).enumerate() {
            if at > 0 {
                f.write_str("/")?;
            }
            f.write_str(part)?;
        }
        Ok(())
    }
}

/// A set of levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels(u64);

impl Levels {
    /// No level.
    pub const NONE: Self = Self(0);

    /// This one, too. All from the 63rd on are one: nobody is that far.
    #[must_use]
    pub fn with(self, level: u32) -> Self {
        Self(self.0 | 1 << level.min(63))
    }

    /// Whether it is among them.
    pub fn has(self, level: u32) -> bool {
        self.0 & 1 << level.min(63) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What decides how near an endpoint is.
#[derive(Debug, Clone, Copy)]
pub struct Nearness<'a> {
    /// Where this gateway is.
    pub own: &'a Locality,
    /// This gateway's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// `failover`: the region that takes over from another.
    pub failover: &'a [(String, String)],
    /// `failoverPriority`: labels, the most important first; `label=value` asks for that value.
    pub priority: &'a [String],
}

impl Nearness<'_> {
    /// The level of an endpoint that has these labels and is there. Between levels there may be gaps ([`close_ranks`]).
    pub fn level(&self, labels: &BTreeMap<String, String>, locality: &str) -> u32 {
        let there = Locality::parse(locality);
        let by_label = self.by_labels(labels, &there);
        // Istio's `applyLocalityFailover` keeps room for its five levels in each of the others.
        match (self.priority.is_empty(), self.failover.is_empty()) {
            (false, true) => by_label,
            _ => by_label * 5 + self.by_locality(&there),
        }
    }

    /// 0 when all labels of `failoverPriority` are this gateway's, one more for each from the first that is not.
    fn by_labels(&self, labels: &BTreeMap<String, String>, there: &Locality) -> u32 {
        let differs = |label: &&String| {
            let (key, wanted) = match label.split_once('=') {
                Some((key, value)) => (key, value),
                None => (label.as_str(), label_of(self.labels, self.own, label)),
            };
            label_of(labels, there, key) != wanted
        };
        let first = self.priority.iter().position(|label| differs(&label));
        first.map_or(0, |at| (self.priority.len() - at) as u32)
    }

    fn by_locality(&self, there: &Locality) -> u32 {
        if self.own.is_unknown() {
            return 0;
        }
        let distance = self.own.distance(there);
        let next = self.failover.iter().find(|(from, _)| from == self.own.region());
        match next {
            Some((_, to)) if distance == 3 && there.region() != to => 4,
            _ => distance,
        }
    }
}

/// Leaves out levels without endpoints.
pub fn close_ranks(endpoints: &mut [Endpoint]) {
    let mut known: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.level).collect();
    known.sort_unstable();
    known.dedup();
    for endpoint in endpoints {
        endpoint.level = known.binary_search(&endpoint.level).unwrap_or(0) as u32;
    }
}

/// A label's value; those of the topology follow from the locality when they are not written.
fn label_of<'a>(labels: &'a BTreeMap<String, String>, locality: &'a Locality, key: &str) -> &'a str {
    if let Some(value) = labels.get(key) {
        return value;
    }
    let part = TOPOLOGY.iter().position(|known| *known == key);
    part.and_then(|at| locality.parts().nth(at)).unwrap_or("")
}

/// How the load of a level is divided among its localities.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Spread {
    /// Not at all: each endpoint by its weight.
    #[default]
    Even,
    /// `distribute`: localities with their shares, those that say more first. What none covers gets nothing.
    Shares(Vec<(Locality, u32)>),
    /// `zoneAwareLbSetting`: as much as the own zone's part of the endpoints allows stays in it.
    ZoneAware {
        /// Where this gateway is.
        own: Locality,
        /// Available endpoints below which it does not apply.
        endpoints_min: u32,
    },
}

impl Spread {
    /// The shares of the first `distribute` whose `from` covers this gateway; Even when none does.
    pub fn distribute<'a>(
        own: &Locality,
        rules: impl IntoIterator<Item = (&'a str, &'a [(String, u32)])>,
    ) -> Self {
        let mut rules = rules.into_iter();
        let Some((_, to)) = rules.find(|(from, _)| own.is_covered_by(&Locality::parse(from))) else {
            return Self::Even;
        };
        let mut shares: Vec<(Locality, u32)> = to
            .iter()
            .map(|(to, share)| (Locality::parse(to), *share))
            .collect();
        let wild = |locality: &Locality| {
            locality
                .parts()
                .filter(|part| part.is_empty() || *part == "*")
                .count()
        };
        shares.sort_by_key(|(locality, _)| wild(locality));
        Self::Shares(shares)
    }
}

/// Endpoints that share a part of a level's load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) level: u32,
    /// Its part of the level's load, for [`Spread::Shares`]; the others follow from what is available.
    pub(super) share: u64,
    /// Whether it is in the own zone, for [`Spread::ZoneAware`].
    pub(super) is_own: bool,
}

/// The groups of a set of endpoints, and which group each is in; None for those that get nothing.
pub(super) fn groups(spread: &Spread, endpoints: &[Endpoint]) -> (Vec<Group>, Vec<Option<u32>>) {
    let places: Vec<Locality> = endpoints
        .iter()
        .map(|endpoint| Locality::parse(&endpoint.locality))
        .collect();
    match spread {
        Spread::Even => by_key(endpoints, endpoints.iter().map(|_| Some(()))),
        Spread::ZoneAware { own, .. } => {
            let zones = places
                .iter()
                .map(|place| Some(place.parts().take(2).collect::<Vec<_>>()));
            let (mut groups, of) = by_key(endpoints, zones);
            for (place, group) in places.iter().zip(&of) {
                if let Some(group) = group.and_then(|group| groups.get_mut(group as usize)) {
                    group.is_own = place.is_in_zone_of(own);
                }
            }
            (groups, of)
        }
        Spread::Shares(shares) => {
            let rule_of = |place: &Locality| shares.iter().position(|(rule, _)| place.is_covered_by(rule));
            let rules: Vec<Option<usize>> = places.iter().map(rule_of).collect();
            // Several localities that one rule covers divide its share by their endpoints' weights.
            let mut weights = vec![0u64; shares.len()];
            for (endpoint, rule) in endpoints.iter().zip(&rules) {
                if let Some(weight) = rule.and_then(|rule| weights.get_mut(rule)) {
                    *weight += u64::from(endpoint.weight);
                }
            }
            let keys = rules
                .iter()
                .zip(&places)
                .map(|(rule, place)| rule.map(|rule| (rule, place)));
            let (mut groups, of) = by_key(endpoints, keys);
            for ((endpoint, rule), group) in endpoints.iter().zip(&rules).zip(&of) {
                let share = rule.and_then(|rule| Some((shares.get(rule)?.1, *weights.get(rule)?)));
                let group = group.and_then(|group| groups.get_mut(group as usize));
                if let (Some((share, total)), Some(group)) = (share, group) {
                    // In parts that leave room for many endpoints: a sum over the group's endpoints.
                    let parts = (u128::from(share) * u128::from(endpoint.weight)) << 32;
                    group.share += (parts / u128::from(total.max(1))) as u64;
                }
            }
            (groups, of)
        }
    }
}

/// Puts endpoints of one level and one key into one group.
fn by_key<K: Ord>(
    endpoints: &[Endpoint],
    keys: impl Iterator<Item = Option<K>>,
) -> (Vec<Group>, Vec<Option<u32>>) {
    let (mut groups, mut known) = (Vec::new(), BTreeMap::new());
    let group = |(endpoint, key): (&Endpoint, Option<K>)| {
        let at = known.entry((endpoint.level, key?)).or_insert_with(|| {
            groups.push(Group {
                level: endpoint.level,
                share: 0,
                is_own: false,
            });
            groups.len() as u32 - 1
        });
        Some(*at)
    };
    let of = endpoints.iter().zip(keys).map(group).collect();
    (groups, of)
}

/// Endpoints of a level or group, and those of them that are available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    pub(super) all: u64,
    pub(super) available: u64,
}

impl Count {
    /// What it can take, in parts of [`ALL`].
    fn health(self) -> u64 {
        let health = OVERPROVISIONING * self.available;
        health.checked_div(self.all).unwrap_or(0).min(ALL)
    }

    /// Whether fewer than `percent` of a hundred are available.
    fn is_below(self, percent: u32) -> bool {
        self.available * 100 < self.all * u64::from(percent)
    }
}

/// What one level gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Load {
    /// In parts of the sum over all levels.
    pub(super) part: u64,
    /// So few are available that all of its endpoints are taken (`minHealthPercent`).
    pub(super) panics: bool,
}

/// Divides the load among levels (Envoy's priority levels): each takes what it can, and what is left goes to the next.
/// Where all together cannot take everything, each has its part of what there is; and a level of which fewer than
/// `panic_percent` are available is then used whole. With every level in panic the load goes by numbers of endpoints.
pub(super) fn loads(counts: &[Count], panic_percent: u32) -> Vec<Load> {
    let health: Vec<u64> = counts.iter().map(|count| count.health()).collect();
    let total = health.iter().sum::<u64>().min(ALL);
    let panics: Vec<bool> = counts
        .iter()
        .map(|count| total < ALL && count.all > 0 && count.is_below(panic_percent))
        .collect();
    let filled = counts.iter().zip(&panics).filter(|(count, _)| count.all > 0);
    if panic_percent > 0 && total < ALL && filled.clone().all(|(_, panics)| *panics) {
        let by_number = |count: &Count| Load {
            part: count.all,
            panics: true,
        };
        return counts.iter().map(by_number).collect();
    }
    let mut left = total;
    let take = |(health, panics): (&u64, &bool)| {
        let part = (*health).min(left);
        left -= part;
        Load {
            part,
            panics: *panics,
        }
    };
    health.iter().zip(&panics).map(take).collect()
}

/// The parts of the groups of one level, whose endpoints are counted.
pub(super) fn parts(spread: &Spread, groups: &[(&Group, Count)], panics: bool) -> Vec<u64> {
    let usable = |count: &Count| if panics { count.all } else { count.available };
    let even = || {
        groups
            .iter()
            .map(|(_, count)| usable(count))
            .collect::<Vec<u64>>()
    };
    match spread {
        Spread::Even => even(),
        Spread::Shares(_) => groups
            .iter()
            .map(|(group, count)| match (usable(count), panics) {
                (0, _) => 0,
                (_, true) => group.share,
                // A locality that has lost some keeps its share for as long as it has enough to spare.
                _ => (u128::from(group.share) * u128::from(count.health()) / u128::from(ALL)) as u64,
            })
            .collect(),
        Spread::ZoneAware { endpoints_min, .. } => {
            let total: u64 = groups.iter().map(|(_, count)| usable(count)).sum();
            let zones = groups.iter().filter(|(_, count)| usable(count) > 0).count() as u64;
            let own: u64 = groups
                .iter()
                .filter(|(group, _)| group.is_own)
                .map(|(_, count)| usable(count))
                .sum();
            if own == 0 || zones < 2 || total < u64::from(*endpoints_min) {
                return even();
            }
            // Gateways are taken to be spread evenly over the zones: what the own zone has beyond its fair part of the
            // endpoints is not needed elsewhere, and what it lacks comes from zones that have more than theirs.
            let kept = (own * zones * ALL / total).min(ALL);
            let surplus = |count: &Count| (usable(count) * zones).saturating_sub(total);
            let spare: u64 = groups
                .iter()
                .filter(|(group, _)| !group.is_own)
                .map(|(_, count)| surplus(count))
                .sum();
            groups
                .iter()
                .map(|(group, count)| match group.is_own {
                    true => kept,
                    false => ((ALL - kept) * surplus(count)).checked_div(spare).unwrap_or(0),
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels_of<'e>(
        nearness: &Nearness<'_>,
        there: impl Iterator<Item = (&'e BTreeMap<String, String>, &'e str)>,
    ) -> Vec<u32> {
        let mut all: Vec<Endpoint> = there
            .map(|(labels, locality)| Endpoint {
                level: nearness.level(labels, locality),
                ..Endpoint::new(([10, 0, 0, 1], 1).into())
            })
            .collect();
        close_ranks(&mut all);
        all.iter().map(|endpoint| endpoint.level).collect()
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn localities_have_three_parts_and_cover_each_other() {
        for (text, shown) in [
            ("", ""),
            ("a", "a"),
            ("a/b", "a/b"),
            ("a/b/c", "a/b/c"),
            ("a//c", "a//c"),
        ] {
            assert_eq!(Locality::parse(text).to_string(), shown);
        }
        for (own, rule, expected) in [
            ("a/b/c", "a/b/c", true),
            ("a/b/c", "a/b", true),
            ("a/b/c", "a", true),
            ("a/b/c", "*", true),
            ("a/b/c", "a/*", true),
            ("a/b/c", "a/b/*", true),
            ("a/b/c", "a/c", false),
            ("a/b/c", "b/*", false),
            ("a", "a/b", false),
            ("", "*", true),
            ("", "a", false),
        ] {
            let covered = Locality::parse(own).is_covered_by(&Locality::parse(rule));
            assert_eq!(covered, expected, "{own} {rule}");
        }
    }

    #[test]
    fn levels_follow_the_distance_without_gaps() {
        let own = Locality::parse("r1/z1/s1");
        let none = BTreeMap::new();
        let levels = |failover: &[(&str, &str)], there: &[&str]| {
            let failover: Vec<(String, String)> = failover
                .iter()
                .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
                .collect();
            let nearness = Nearness {
                own: &own,
                labels: &none,
                failover: &failover,
                priority: &[],
            };
            levels_of(&nearness, there.iter().map(|there| (&none, *there)))
        };
        let all = ["r1/z1/s1", "r1/z1/s2", "r1/z2/s1", "r2/z1/s1", "r3"];
        assert_eq!(levels(&[], &all), [0, 1, 2, 3, 3]);
        assert_eq!(levels(&[("r1", "r3")], &all), [0, 1, 2, 4, 3]);
        assert_eq!(
            levels(&[("r2", "r3")], &all),
            [0, 1, 2, 3, 3],
            "not for this region"
        );
        assert_eq!(
            levels(&[], &["r2", "r1/z2"]),
            [1, 0],
            "levels without endpoints are left out"
        );
        assert_eq!(levels(&[("r1", "r2")], &["r3", "r2"]), [1, 0]);
        assert_eq!(
            levels(&[], &["", "r1"]),
            [1, 0],
            "where it is unknown is elsewhere"
        );
    }

    #[test]
    fn a_gateway_that_is_nowhere_has_one_level() {
        let (own, none) = (Locality::default(), BTreeMap::new());
        let nearness = Nearness {
            own: &own,
            labels: &none,
            failover: &[],
            priority: &[],
        };
        let there = ["r1", "r2/z", ""].map(|there| (&none, there));
        assert_eq!(levels_of(&nearness, there.into_iter()), [0, 0, 0]);
    }

    #[test]
    fn labels_decide_by_how_many_of_them_match_from_the_first_on() {
        let own = Locality::parse("r1/z1");
        let mine = labels(&[("version", "v1"), ("cluster", "c1")]);
        let priority = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let endpoints = [
            (labels(&[("version", "v1"), ("cluster", "c1")]), "r1/z1"),
            (labels(&[("version", "v1"), ("cluster", "c2")]), "r1/z2"),
            (labels(&[("version", "v2"), ("cluster", "c1")]), "r1/z1"),
            (labels(&[("cluster", "c2")]), "r2"),
        ];
        let levels = |names: &[&str], failover: &[(String, String)]| {
            let names = priority(names);
            let nearness = Nearness {
                own: &own,
                labels: &mine,
                failover,
                priority: &names,
            };
            levels_of(
                &nearness,
                endpoints.iter().map(|(labels, there)| (labels, *there)),
            )
        };
        assert_eq!(levels(&["version", "cluster"], &[]), [0, 1, 2, 2]);
        assert_eq!(levels(&["cluster", "version"], &[]), [0, 2, 1, 2]);
        assert_eq!(levels(&["version=v2"], &[]), [1, 1, 0, 1], "a value of its own");
        assert_eq!(
            levels(
                &["topology.kubernetes.io/region", "topology.kubernetes.io/zone"],
                &[]
            ),
            [0, 1, 0, 2],
            "localities are labels, too"
        );
        assert_eq!(levels(&["absent"], &[]), [0, 0, 0, 0], "neither side has it");
        let failover = [("r1".to_owned(), "r2".to_owned())];
        assert_eq!(
            levels(&["version"], &failover),
            [0, 1, 2, 3],
            "labels first, then regions"
        );
    }

    fn count(all: u64, available: u64) -> Count {
        Count { all, available }
    }

    #[test]
    fn load_spills_over_when_too_few_are_left() {
        let parts = |counts: &[Count], panic: u32| {
            let all = loads(counts, panic);
            all.iter()
                .map(|load| (load.part, load.panics))
                .collect::<Vec<_>>()
        };
        // The examples of Envoy's documentation of priority levels, in parts of 10,000.
        for (first, second, expected) in [
            (100, 100, (10_000, 0)),
            (72, 72, (10_000, 0)),
            (71, 71, (9_940, 60)),
            (50, 50, (7_000, 3_000)),
            (25, 100, (3_500, 6_500)),
            (25, 25, (3_500, 3_500)),
            (0, 100, (0, 10_000)),
        ] {
            let found = parts(&[count(100, first), count(100, second)], 0);
            assert_eq!(
                found,
                [(expected.0, false), (expected.1, false)],
                "{first} {second}"
            );
        }
        // Three levels, of which the middle one is empty.
        assert_eq!(
            parts(&[count(10, 5), count(0, 0), count(10, 10)], 0),
            [(7_000, false), (0, false), (3_000, false)]
        );
        // Panic: only where everything together is too little.
        assert_eq!(
            parts(&[count(10, 1), count(10, 10)], 50),
            [(1_400, false), (8_600, false)]
        );
        assert_eq!(
            parts(&[count(10, 1), count(10, 6)], 50),
            [(1_400, true), (8_400, false)]
        );
        assert_eq!(parts(&[count(10, 1), count(30, 2)], 50), [(10, true), (30, true)]);
        assert_eq!(parts(&[count(10, 0), count(30, 0)], 0), [(0, false), (0, false)]);
        assert_eq!(parts(&[count(10, 0)], 1), [(10, true)]);
        assert_eq!(parts(&[], 50), []);
    }

    fn endpoints(list: &[(&str, u32)]) -> Vec<Endpoint> {
        let endpoint = |(port, (locality, weight)): (u16, &(&str, u32))| Endpoint {
            locality: (*locality).into(),
            weight: *weight,
            ..Endpoint::new(([10, 0, 0, 1], port).into())
        };
        (1..).zip(list).map(endpoint).collect()
    }

    #[test]
    fn shares_go_to_the_localities_that_rules_cover() {
        let to = |list: &[(&str, u32)]| {
            list.iter()
                .map(|(to, share)| ((*to).to_owned(), *share))
                .collect::<Vec<_>>()
        };
        let (far, near) = (to(&[("r2", 100)]), to(&[("r1/z2/*", 20), ("r1/*", 80)]));
        let rules = [("r2/*", &far[..]), ("r1/z1/*", &near[..])];
        let spread = Spread::distribute(&Locality::parse("r1/z1/s1"), rules);
        let there = endpoints(&[("r1/z1", 1), ("r1/z2", 1), ("r1/z3", 3), ("r2", 1), ("r1/z2", 1)]);
        let (groups, of) = groups(&spread, &there);
        assert_eq!(of, [Some(0), Some(1), Some(2), None, Some(1)]);
        let shares: Vec<u64> = groups.iter().map(|group| group.share >> 32).collect();
        assert_eq!(
            shares,
            [20, 20, 60],
            "the star's 80 by the weights of its localities"
        );
        assert_eq!(Spread::distribute(&Locality::parse("r3"), rules), Spread::Even);
    }

    #[test]
    fn a_zone_keeps_what_it_can_take() {
        let spread = Spread::ZoneAware {
            own: Locality::parse("r/a"),
            endpoints_min: ZONE_AWARE_ENDPOINTS,
        };
        let group = |is_own| Group {
            level: 0,
            share: 1,
            is_own,
        };
        let (own, other) = (group(true), group(false));
        let found = |own_count, b, c| {
            parts(
                &spread,
                &[
                    (&own, count(own_count, own_count)),
                    (&other, count(b, b)),
                    (&other, count(c, c)),
                ],
                false,
            )
        };
        assert_eq!(
            found(3, 3, 3),
            [10_000, 0, 0],
            "a third of the endpoints serves a third of the gateways"
        );
        assert_eq!(found(5, 2, 2), [10_000, 0, 0]);
        assert_eq!(found(1, 4, 4), [3_333, 3_333, 3_333]);
        assert_eq!(
            found(2, 2, 8),
            [5_000, 0, 5_000],
            "only what has more than its part helps out"
        );
        assert_eq!(found(1, 1, 1), [1, 1, 1], "too small");
        assert_eq!(found(0, 4, 4), [0, 4, 4]);
        assert_eq!(found(9, 0, 0), [9, 0, 0]);
    }
}
