//! Which requests two virtual hosts decide differently.
//!
//! Rules that are the same in both, in the same order, can be left aside: a request that one of them takes in the old
//! host and another one in the new would have to find them in another order. What is left are pairs of a rule of the
//! old host and one of the new of which one has no counterpart; for each pair that do not do the same, a request is
//! looked for that the old host gives to the one and the new host to the other. Nowhere else can there be a difference.

use crate::analyze::reach::language::{AuthoritySpace, Space};
use crate::analyze::reach::search::{Model, Outcome, Reply, Search, Universe};
use crate::analyze::reach::{Analyzer, asterisk_only, is_normal, universe};
use isthmus_core::message::RequestHead;
use isthmus_core::name::HostPattern;
use isthmus_core::route::{Action, Destination, Route, RouteMatch, RouteTable, VirtualHost};
use isthmus_core::snapshot::content_hash;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Most pairs of rules of one host that are looked at.
const PAIRS_MAX: usize = 20_000_000;
/// Most pairs of one host for which a request is looked for.
const QUESTIONS_MAX: usize = 50_000;

/// Hosts that the same two virtual hosts serve before and after.
pub(super) struct Region<'a> {
    /// The table and the position in it.
    pub(super) old: (&'a RouteTable, usize),
    pub(super) new: (&'a RouteTable, usize),
    pub(super) scheme: &'static str,
    /// What names these hosts, with what is more specific and served by others, and one host of each.
    pub(super) patterns: Vec<(&'a HostPattern, Vec<&'a HostPattern>, String)>,
}

/// A request, with the rules that take it before and after; None is 404.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) old: Option<usize>,
    pub(super) new: Option<usize>,
    pub(super) request: Box<RequestHead>,
}

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) moved: Vec<Moved>,
    /// Pairs of rules of which it is not known.
    pub(super) undecided: Vec<(Option<usize>, Option<usize>)>,
    /// There were too many pairs to look at all.
    pub(super) incomplete: bool,
}

/// Whether two routes do the same with a request, whatever they are called.
pub(super) fn does_the_same(old: Option<&Route>, new: Option<&Route>) -> bool {
    match (old, new) {
        (None, None) => true,
        (Some(old), Some(new)) => effect(old) == effect(new),
        _ => false,
    }
}

/// Everything that a route does: what it is called and what it asks for is no part of that, nor is the order of its
/// destinations.
fn effect(route: &Route) -> impl PartialEq + std::hash::Hash + '_ {
    let Route {
        name: _,
        virtual_service: _,
        // Only counts are named by it.
        stat_prefix: _,
        matches: _,
        action,
        response_headers,
    } = route;
    let sorted = match &**action {
        Action::Forward(forward) if forward.destinations.len() > 1 => {
            let mut forward = forward.clone();
            let key = |one: &Destination| (one.cluster.clone(), one.weight, content_hash(one));
            forward.destinations.sort_by_cached_key(key);
            Cow::Owned(Action::Forward(forward))
        }
        other => Cow::Borrowed(other),
    };
    (sorted, response_headers)
}

/// One of the rules of a host that can take a request at all, in order; the last stands for 404.
struct Rules<'a> {
    host: &'a VirtualHost,
    /// Positions; of rules that ask for the same only the first.
    kept: Vec<Option<usize>>,
    /// The same rule in the other host, in the same order.
    aligned: Vec<bool>,
}

impl<'a> Rules<'a> {
    #[allow(
        clippy::mutable_key_type,
        reason = "patterns are hashed and compared by their text"
    )]
    fn new(host: &'a VirtualHost) -> Self {
        let mut seen: HashSet<&RouteMatch> = HashSet::new();
        let routes = host.routes().iter().enumerate();
        let kept = routes.filter(|(_, route)| seen.insert(&route.matches));
        let kept: Vec<Option<usize>> = kept.map(|(at, _)| Some(at)).chain([None]).collect();
        Self {
            host,
            aligned: vec![false; kept.len()],
            kept,
        }
    }

    fn route(&self, at: Option<usize>) -> Option<&'a Route> {
        self.host.routes().get(at?)
    }
}

/// Marks the longest run of rules that are in both hosts in one order.
fn align(old: &mut Rules<'_>, new: &mut Rules<'_>) {
    let key = |route: Option<&Route>| route.map(|route| content_hash(&(&route.matches, effect_hash(route))));
    let places: HashMap<Option<u64>, usize> = new
        .kept
        .iter()
        .enumerate()
        .map(|(place, at)| (key(new.route(*at)), place))
        .collect();
    // Longest rising sequence of places: for each length the smallest end, and the one before each.
    let mut ends: Vec<usize> = Vec::new();
    let mut pairs: Vec<(usize, usize, Option<usize>)> = Vec::new();
    for (from, at) in old.kept.iter().enumerate() {
        let route = old.route(*at);
        let Some(&to) = places.get(&key(route)) else {
            continue;
        };
        // The hash alone is no proof.
        let other = new.kept.get(to).and_then(|at| new.route(*at));
        let same = match (route, other) {
            (Some(a), Some(b)) => a.matches == b.matches && does_the_same(route, other),
            (None, None) => true,
            _ => false,
        };
        if !same {
            continue;
        }
        let place_of = |end: &usize| pairs.get(*end).map_or(0, |(_, to, _)| *to);
        let length = ends.partition_point(|end| place_of(end) < to);
        let before = length.checked_sub(1).and_then(|length| ends.get(length).copied());
        pairs.push((from, to, before));
        match ends.get_mut(length) {
            Some(end) => *end = pairs.len() - 1,
            None => ends.push(pairs.len() - 1),
        }
    }
    let mut next = ends.last().copied();
    while let Some((from, to, before)) = next.and_then(|at| pairs.get(at).copied()) {
        if let (Some(a), Some(b)) = (old.aligned.get_mut(from), new.aligned.get_mut(to)) {
            (*a, *b) = (true, true);
        }
        next = before;
    }
}

fn effect_hash(route: &Route) -> u64 {
    content_hash(&effect(route))
}

/// Compares what two virtual hosts do with every request to some hosts.
pub(super) fn compare(region: &Region<'_>, analyzer: &mut Analyzer) -> Compared {
    let mut compared = Compared::default();
    let (old_table, old_at) = region.old;
    let (new_table, new_at) = region.new;
    let (Some(old_host), Some(new_host)) = (
        old_table.virtual_hosts().get(old_at),
        new_table.virtual_hosts().get(new_at),
    ) else {
        return compared;
    };
    let (mut old, mut new) = (Rules::new(old_host), Rules::new(new_host));
    align(&mut old, &mut new);
    if old.aligned.iter().chain(&new.aligned).all(|aligned| *aligned) {
        return compared;
    }
    let mut model = Model::new();
    for route in old_host.routes().iter().chain(new_host.routes()) {
        model.add(&route.matches);
    }
    let shift = old_host.routes().len();
    let universes = universes(region, &model, analyzer);
    let mut looked = 0;
    let mut questions = 0;
    let effects_of = |rules: &Rules<'_>| -> Vec<Option<u64>> {
        let all = rules.kept.iter();
        all.map(|at| rules.route(*at).map(effect_hash)).collect()
    };
    let (old_effects, new_effects) = (effects_of(&old), effects_of(&new));
    for ((&from, &from_aligned), from_effect) in old.kept.iter().zip(&old.aligned).zip(&old_effects) {
        for ((&to, &to_aligned), to_effect) in new.kept.iter().zip(&new.aligned).zip(&new_effects) {
            if from_aligned && to_aligned {
                continue;
            }
            looked += 1;
            if looked > PAIRS_MAX || questions > QUESTIONS_MAX {
                compared.incomplete = true;
                return compared;
            }
            if from_effect == to_effect && does_the_same(old.route(from), new.route(to)) {
                continue;
            }
            let asks_who = |route: Option<&Route>| route.is_some_and(|route| route.matches.source.is_some());
            if asks_who(old.route(from)) || asks_who(new.route(to)) {
                // No client is known to a search.
                compared.undecided.push((from, to));
                continue;
            }
            let taken: Vec<usize> = from.into_iter().chain(to.map(|to| to + shift)).collect();
            if let [a, b] = taken[..]
                && model.exclude(a, b)
            {
                continue;
            }
            questions += 1;
            let pair = Pair {
                region,
                hosts: (old_host, new_host),
                from,
                to,
                shift,
            };
            match pair.look(&taken, &model, &universes, analyzer) {
                Outcome::Found(request) => compared.moved.push(Moved {
                    old: from,
                    new: to,
                    request,
                }),
                Outcome::Nothing(_) => {}
                Outcome::Unknown => compared.undecided.push((from, to)),
            }
        }
    }
    compared
}

fn universes(region: &Region<'_>, model: &Model<'_>, analyzer: &Analyzer) -> Vec<Universe> {
    let normalization = analyzer.normalization;
    let space = |(inside, outside, sample): &(&HostPattern, Vec<&HostPattern>, String)| {
        AuthoritySpace::new(inside, outside, sample.clone()).map(Space::Authority)
    };
    let spaces: Option<Vec<Space>> = if model.asks_for_authority() {
        region.patterns.iter().map(space).collect()
    } else {
        // Nobody asks: one stands for all.
        let sample = region
            .patterns
            .first()
            .map(|(.., sample)| Space::Only(sample.as_str().into()));
        sample.map(|sample| vec![sample])
    };
    let paths: Vec<Universe> = spaces
        .into_iter()
        .flatten()
        .map(|authority| universe(authority, region.scheme, normalization))
        .collect();
    let others: Vec<Universe> = paths.iter().map(asterisk_only).collect();
    paths.into_iter().chain(others).collect()
}

/// A rule of the old host and one of the new.
struct Pair<'a> {
    region: &'a Region<'a>,
    hosts: (&'a VirtualHost, &'a VirtualHost),
    from: Option<usize>,
    to: Option<usize>,
    shift: usize,
}

impl Pair<'_> {
    /// Looks for a request that goes from the one to the other.
    fn look(
        &self,
        taken: &[usize],
        model: &Model<'_>,
        universes: &[Universe],
        analyzer: &mut Analyzer,
    ) -> Outcome {
        let (old_table, old_at) = self.region.old;
        let (new_table, new_at) = self.region.new;
        let scheme = self.region.scheme;
        let mut unknown = universes.is_empty();
        for universe in universes {
            let normalization = analyzer.normalization;
            let outcome = analyzer.ask(|languages, scratch| {
                let ask = &mut |head: &RequestHead| {
                    if old_table.find_host(&head.host) != Some(old_at)
                        || new_table.find_host(&head.host) != Some(new_at)
                        || !is_normal(head, normalization)
                    {
                        return Reply::Stuck;
                    }
                    let before = self.hosts.0.position(head, scheme, scratch);
                    if before != self.from {
                        return earlier(before, self.from, 0);
                    }
                    let after = self.hosts.1.position(head, scheme, scratch);
                    if after != self.to {
                        return earlier(after, self.to, self.shift);
                    }
                    Reply::Accepted
                };
                Search::new(model, languages, universe).run(taken, &[], ask)
            });
            match outcome {
                Outcome::Found(head) => return Outcome::Found(head),
                Outcome::Nothing(_) => {}
                Outcome::Unknown => unknown = true,
            }
        }
        if unknown {
            Outcome::Unknown
        } else {
            Outcome::Nothing(Vec::new())
        }
    }
}

/// A rule took what is meant for a later one.
fn earlier(taken: Option<usize>, wanted: Option<usize>, shift: usize) -> Reply {
    match (taken, wanted) {
        (Some(taken), Some(wanted)) if taken < wanted => Reply::Taken(taken + shift),
        (Some(taken), None) => Reply::Taken(taken + shift),
        _ => Reply::Stuck,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::reach::Verdict;
    use crate::analyze::reach::tests::{Oracle, PlainRule, dimensions, table, tables};
    use isthmus_core::limits::PathNormalization;
    use isthmus_core::random::Random;
    use std::collections::BTreeSet;

    fn changed(
        rules: &[PlainRule],
        oracle: &Oracle,
        random: &mut Random,
        dimensions: &[usize],
    ) -> Vec<PlainRule> {
        let mut new = rules.to_vec();
        match random.below(4) {
            0 => {
                let (a, b) = (random.below(new.len() as u64), random.below(new.len() as u64));
                new.swap(a as usize, b as usize);
            }
            1 => {
                new.remove(random.below(new.len() as u64) as usize);
            }
            2 => new.insert(
                random.below(new.len() as u64 + 1) as usize,
                oracle.rule(random, dimensions),
            ),
            _ => {
                let length = 1 + random.below(5);
                new = (0..length).map(|_| oracle.rule(random, dimensions)).collect();
            }
        }
        new
    }

    #[test]
    fn differences_are_those_of_the_oracle() {
        let oracle = Oracle::new();
        let (mut same, mut moved, mut undecided) = (0_u64, 0_u64, 0_u64);
        let tables = tables(3_000);
        for seed in 0..tables {
            let mut random = Random::from_seed(seed ^ 0xD1FF);
            let dimensions = dimensions(&mut random);
            let length = 1 + random.below(6);
            let rules: Vec<PlainRule> = (0..length)
                .map(|_| oracle.rule(&mut random, &dimensions))
                .collect();
            let others = changed(&rules, &oracle, &mut random, &dimensions);
            // What a rule does depends on what it is, so that the same rule does the same; few do different things.
            let status = |rules: &[PlainRule], at: usize| 200 + (content_hash(&rules[at].matches) % 3) as u16;
            let (old, new) = (
                table(&rules, |at| status(&rules, at)),
                table(&others, |at| status(&others, at)),
            );
            let pattern = HostPattern::parse("*.h");
            let region = Region {
                old: (&old, 0),
                new: (&new, 0),
                scheme: "http",
                patterns: vec![(&pattern, Vec::new(), "a.h".to_owned())],
            };
            let compared = compare(&region, &mut Analyzer::new(PathNormalization::Base));
            let first = |taken: u64, length: usize| {
                let at = taken.trailing_zeros() as usize;
                (at < length).then_some(at)
            };
            let mut seen = BTreeSet::new();
            oracle.each(&dimensions, &[&rules, &others], |taken| {
                let (a, b) = (first(taken[0], rules.len()), first(taken[1], others.len()));
                let what = |rules: &[PlainRule], at: Option<usize>| at.map_or(404, |at| status(rules, at));
                if what(&rules, a) != what(&others, b) {
                    seen.insert((a, b));
                }
            });
            let found: BTreeSet<_> = compared
                .moved
                .iter()
                .map(|moved| (moved.old, moved.new))
                .collect();
            let open: BTreeSet<_> = compared.undecided.iter().copied().collect();
            assert!(!compared.incomplete);
            for pair in &seen {
                assert!(
                    found.contains(pair) || open.contains(pair),
                    "seed {seed}: {pair:?} is missing"
                );
            }
            for moved in &compared.moved {
                let before = first(oracle.taken(&rules, &moved.request), rules.len());
                let after = first(oracle.taken(&others, &moved.request), others.len());
                assert_eq!(
                    (before, after),
                    (moved.old, moved.new),
                    "seed {seed}, {:?}",
                    moved.request
                );
                let what = |rules: &[PlainRule], at: Option<usize>| at.map_or(404, |at| status(rules, at));
                assert_ne!(what(&rules, before), what(&others, after), "seed {seed}");
            }
            same += u64::from(found.is_empty() && open.is_empty());
            moved += found.len() as u64;
            undecided += open.len() as u64;
        }
        println!(
            "{tables} pairs of tables: {same} without a difference, {moved} differences, {undecided} undecided"
        );
        assert!(same > tables / 20 && moved > tables / 2);
        assert!(undecided * 1000 <= moved);
    }
    #[test]
    fn a_change_among_ten_thousand_rules_is_found() {
        let rules = crate::analyze::reach::tests::large(10_000);
        let status = |rules: &[PlainRule], at: usize| 200 + (content_hash(&rules[at].matches) % 300) as u16;
        let old = table(&rules, |at| status(&rules, at));
        let verdicts = Analyzer::new(PathNormalization::Base).host(&old, 0, "http");
        let reached = |from: usize| {
            let takes = |at: &usize| matches!(verdicts[*at], Verdict::Reached(_));
            (from..rules.len()).find(takes).unwrap()
        };
        let (changed, gone) = (reached(5_000), reached(7_000));
        let mut others = rules.clone();
        others.remove(gone);
        others.swap(20, 9_000);
        let new = table(
            &others,
            |at| {
                if at == changed { 599 } else { status(&others, at) }
            },
        );
        let pattern = HostPattern::parse("*.h");
        let region = Region {
            old: (&old, 0),
            new: (&new, 0),
            scheme: "http",
            patterns: vec![(&pattern, Vec::new(), "a.h".to_owned())],
        };
        let compared = compare(&region, &mut Analyzer::new(PathNormalization::Base));
        assert!(compared.undecided.is_empty() && !compared.incomplete);
        let has = |wanted: &dyn Fn(&Moved) -> bool| compared.moved.iter().any(wanted);
        assert!(has(
            &|moved| moved.old == Some(changed) && moved.new == Some(changed)
        ));
        assert!(has(&|moved| moved.old == Some(gone)));
    }
}
