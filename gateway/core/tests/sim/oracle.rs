//! What must hold, whatever happens: a model of its own that is told each thing that the shards do, and says which rule is
//! broken. It knows the policies, and nothing of how the core keeps to them.

use super::scenario::{Scenario, Spot, WARMUP_MS};
use isthmus_core::cluster::balancer::BalancerKind;
use isthmus_core::cluster::hash::TableKind;
use isthmus_core::cluster::locality::Levels;
use isthmus_core::cluster::outlier::Signal;
use isthmus_core::shared::Limits;
use std::collections::{BTreeMap, BTreeSet};

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// There are no more connections than may be; those above a limit that has shrunk only become fewer.
    ConnectionsWithinLimit,
    /// Each connection holds one permit, and nothing else does.
    PermitsAreConnections,
    /// The requests in flight that an endpoint is said to have are those that it has.
    EveryAcquireIsReleasedOnce,
    /// Nobody waits while a permit is free or a connection idles.
    NobodyWaitsBesideRoom,
    /// Everything that has begun ends, and who waits gets a turn.
    EverybodyIsServed,
    /// No pick of an endpoint that is ejected, but in panic.
    PicksAreAvailable,
    /// No pick of an endpoint that the shard's version does not have.
    PicksAreInTheSet,
    /// No request on a connection that is about to end.
    PicksDoNotDrain,
    /// An endpoint is ejected with exactly the failure that the policy says, and never too many are.
    EjectionsFollowThePolicy,
    /// An ejection lasts as long as the policy says for its number.
    EjectionsEndInTime,
    /// In panic all endpoints of a level get their share.
    PanicTakesAll,
    /// Nothing is sent again once a byte went to the client.
    NoRetryAfterBytes,
    /// A retry goes to another endpoint if there is one.
    RetriesGoElsewhere,
    /// No more attempts than the policy says.
    AttemptsAreBounded,
    /// An attempt's own time is below the whole's.
    AttemptsHaveLessThanTheWhole,
    /// What counts as a retry or a request under way is one.
    RetriesAreCounted,
    /// No more retries than the limits say.
    RetriesWithinBudget,
    /// The load of a level follows from what it has available, with room to spare.
    LevelsTakeWhatTheyCan,
    /// A retry that leaves localities out goes to none of them while others have something.
    RetriesLeaveLocalities,
    /// Endpoints get their shares, by weight.
    SharesHold,
    /// An endpoint that warms up has at most its share.
    WarmupIsAtMostTheWhole,
    /// A key leads to one endpoint on every shard, and moves only with that.
    KeysStay,
    /// No request is there after its deadline.
    DeadlinesHold,
    /// No connection carries more requests than it may.
    ConnectionsAreUsedUp,
    /// No connection carries more requests at a time than it may.
    StreamsWithinLimit,
    /// There are no more requests under way than may be.
    RequestsWithinLimit,
}

/// A broken rule.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) what: String,
    /// In milliseconds of the simulated time.
    pub(crate) at: u64,
}

/// What is known of an endpoint of the newest version.
#[derive(Debug, Clone, Default)]
struct Known {
    generation: u64,
    until: Option<u64>,
    times: u32,
    since: u64,
    streaks: [u32; 3],
}

/// What a shard was told.
#[derive(Debug, Clone, Default)]
struct View {
    spots: Vec<Spot>,
    generations: BTreeMap<u16, u64>,
    /// When each came into the shard's set.
    came: BTreeMap<u16, u64>,
    /// Which were available when the shard last looked.
    available: BTreeMap<u16, bool>,
    /// Since when each warms up.
    since: BTreeMap<u16, u64>,
    swept: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Level {
    all: u64,
    available: u64,
    part: u64,
    panics: bool,
}

/// One pick, and what it was for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pick {
    pub(crate) shard: usize,
    pub(crate) port: u16,
    pub(crate) request: u64,
    pub(crate) hash: Option<u64>,
    /// Whether the request looks for an endpoint that it has not tried.
    pub(crate) avoids: bool,
    /// Levels that it leaves out, as long as others have something.
    pub(crate) without: Levels,
    /// Whether the endpoint may have been chosen some time ago, for a request that found no permit.
    pub(crate) is_kept: bool,
}

/// What is there after a step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) connections_held: u32,
    pub(crate) connections: u32,
    pub(crate) requests_held: u32,
    pub(crate) requests: u32,
    pub(crate) pending_held: u32,
    /// Of each shard: requests that wait, and connections that idle.
    pub(crate) waiting: Vec<(usize, usize)>,
    /// Somebody has yet to hear that something has changed.
    pub(crate) is_told_soon: bool,
    pub(crate) retries_held: u32,
    pub(crate) retries: u32,
    pub(crate) counted_held: u32,
    pub(crate) counted: u32,
}

pub(crate) struct Oracle<'s> {
    scenario: &'s Scenario,
    pub(crate) violation: Option<Violation>,
    now: u64,
    known: BTreeMap<u16, Known>,
    generation: u64,
    ejected: u32,
    newest: Vec<Spot>,
    views: Vec<View>,
    homes: BTreeMap<u64, (u16, BTreeSet<u16>)>,
    limits: Limits,
    connections_max: u32,
    requests_max: u32,
    begun: u64,
    retried: u64,
    /// Endpoints that failed each request, and when they had come.
    failed: BTreeMap<u64, Vec<(u16, u64)>>,
}

impl<'s> Oracle<'s> {
    pub(crate) fn new(scenario: &'s Scenario) -> Self {
        Self {
            scenario,
            violation: None,
            now: 0,
            known: BTreeMap::new(),
            generation: 0,
            ejected: 0,
            newest: Vec::new(),
            views: vec![View::default(); scenario.shards],
            homes: BTreeMap::new(),
            limits: Limits::default(),
            connections_max: u32::MAX,
            requests_max: u32::MAX,
            begun: 0,
            retried: 0,
            failed: BTreeMap::new(),
        }
    }

    pub(crate) fn at(&mut self, now: u64) {
        self.now = now;
    }

    pub(crate) fn broken(&mut self, rule: Rule, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation {
                rule,
                what: what.into(),
                at: self.now,
            });
        }
    }

    fn must(&mut self, holds: bool, rule: Rule, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(rule, what());
        }
    }

    /// A version is published; the shards have yet to hear of it.
    pub(crate) fn publish(&mut self, spots: &[Spot], limits: Limits) {
        let mut before = std::mem::take(&mut self.known);
        for spot in spots {
            let known = before.remove(&spot.port).unwrap_or_else(|| {
                self.generation += 1;
                Known {
                    generation: self.generation,
                    ..Known::default()
                }
            });
            self.known.insert(spot.port, known);
        }
        self.ejected -= before.values().filter(|gone| gone.until.is_some()).count() as u32;
        self.newest = spots.to_vec();
        self.limits = limits;
    }

    /// A shard has taken the newest version over.
    pub(crate) fn applied(&mut self, shard: usize) {
        let Self {
            known, newest, now, ..
        } = self;
        let view = &mut self.views[shard];
        view.came = newest
            .iter()
            .map(|spot| (spot.port, view.came.get(&spot.port).copied().unwrap_or(*now)))
            .collect();
        view.since = newest
            .iter()
            .map(|spot| (spot.port, view.since.get(&spot.port).copied().unwrap_or(*now)))
            .collect();
        view.generations = known
            .iter()
            .map(|(port, known)| (*port, known.generation))
            .collect();
        view.spots.clone_from(newest);
        self.looked(shard);
    }

    /// A shard looks which endpoints are available, as each of its picks begins. One that is back warms up anew.
    pub(crate) fn looked(&mut self, shard: usize) {
        let ports = self.ports(shard);
        let available: BTreeMap<u16, bool> =
            ports.map(|port| (port, !self.is_ejected(shard, port))).collect();
        let (now, view) = (self.now, &mut self.views[shard]);
        for (port, is_available) in &available {
            if *is_available && view.available.get(port) == Some(&false) {
                view.since.insert(*port, now);
            }
        }
        view.available = available;
    }

    /// When an endpoint has come into a shard's set.
    pub(crate) fn came(&self, shard: usize, port: u16) -> u64 {
        self.views[shard].came.get(&port).copied().unwrap_or(u64::MAX)
    }

    pub(crate) fn ports(&self, shard: usize) -> impl Iterator<Item = u16> {
        self.views[shard].spots.iter().map(|spot| spot.port)
    }

    pub(crate) fn is_ejected(&self, shard: usize, port: u16) -> bool {
        let told = self.views[shard].generations.get(&port);
        let known = self.known.get(&port);
        self.scenario.outlier.is_some()
            && known.is_some_and(|known| Some(&known.generation) == told && known.until.is_some())
    }

    fn levels(&self, shard: usize) -> BTreeMap<u32, Level> {
        self.levels_without(shard, Levels::NONE)
    }

    fn levels_without(&self, shard: usize, without: Levels) -> BTreeMap<u32, Level> {
        let mut levels: BTreeMap<u32, Level> = BTreeMap::new();
        let spots = self.views[shard].spots.iter();
        for spot in spots.filter(|spot| !without.has(spot.level)) {
            let level = levels.entry(spot.level).or_default();
            level.all += 1;
            level.available += u64::from(!self.is_ejected(shard, spot.port));
        }
        let percent = u64::from(self.scenario.panic_percent);
        // Of ten thousand; 140 % of what is available, at most everything.
        let health = |level: &Level| (level.available * 14_000 / level.all).min(10_000);
        let total = levels.values().map(health).sum::<u64>().min(10_000);
        for level in levels.values_mut() {
            level.panics = total < 10_000 && level.available * 100 < level.all * percent;
        }
        let all_panic = percent > 0 && total < 10_000 && levels.values().all(|level| level.panics);
        let mut left = total;
        for level in levels.values_mut() {
            level.part = if all_panic {
                level.all
            } else {
                health(level).min(left)
            };
            left = left.saturating_sub(level.part);
        }
        levels
    }

    /// The endpoints that a shard takes none of although it should, or all: for a defect that does it the other way.
    pub(crate) fn panics(&self, shard: usize) -> bool {
        self.levels(shard).values().any(|level| level.panics)
    }

    /// How many of a thousand endpoints of the nearest level are available.
    pub(crate) fn nearest(&self, shard: usize) -> (u64, Vec<u16>) {
        let levels = self.levels(shard);
        let Some((first, level)) = levels.first_key_value() else {
            return (1_000, Vec::new());
        };
        let spots = self.views[shard].spots.iter();
        let far = spots.filter(|spot| spot.level != *first && !self.is_ejected(shard, spot.port));
        (
            level.available * 1_000 / level.all,
            far.map(|spot| spot.port).collect(),
        )
    }

    /// A request has begun.
    pub(crate) fn begun(&mut self) {
        self.begun += 1;
    }

    /// A retry was granted.
    pub(crate) fn retried(&mut self) {
        self.retried += 1;
    }

    /// An endpoint failed a request.
    pub(crate) fn failed(&mut self, request: u64, port: u16, came: u64) {
        self.failed.entry(request).or_default().push((port, came));
    }

    pub(crate) fn picked(&mut self, pick: Pick) {
        let Pick { shard, port, .. } = pick;
        let Some(spot) = self.views[shard]
            .spots
            .iter()
            .find(|spot| spot.port == port)
            .copied()
        else {
            return self.broken(Rule::PicksAreInTheSet, format!("{port} on shard {shard}"));
        };
        let mut levels = self.levels(shard);
        if !pick.without.is_empty() {
            let others = self.levels_without(shard, pick.without);
            // What was chosen for another request may be where this one would not go.
            let is_asked = !pick.is_kept || others.contains_key(&spot.level);
            if is_asked && others.values().any(|level| level.part > 0) {
                levels = others;
            }
        }
        let Some(&level) = levels.get(&spot.level) else {
            let what = format!("{port} of level {} on shard {shard}", spot.level);
            return self.broken(Rule::RetriesLeaveLocalities, what);
        };
        let is_taken = !self.is_ejected(shard, port) || level.panics;
        self.must(is_taken, Rule::PicksAreAvailable, || {
            format!("{port} on shard {shard}")
        });
        let has_part = pick.is_kept || level.part > 0;
        self.must(has_part, Rule::LevelsTakeWhatTheyCan, || {
            format!("{port} of level {} on shard {shard}, of {levels:?}", spot.level)
        });
        if pick.avoids && pick.hash.is_none() {
            self.check_retry(pick, spot, level);
        }
        if let Some(hash) = pick.hash.filter(|_| !pick.is_kept && levels.len() == 1) {
            self.check_key(shard, hash, port);
        }
    }

    fn check_retry(&mut self, pick: Pick, spot: Spot, level: Level) {
        let view = &self.views[pick.shard];
        let none = Vec::new();
        let failed = self.failed.get(&pick.request).unwrap_or(&none);
        let has_failed = |port: u16| failed.contains(&(port, view.came[&port]));
        let is_other = |other: &Spot| {
            other.level == spot.level
                && (level.panics || !self.is_ejected(pick.shard, other.port))
                && !has_failed(other.port)
        };
        let goes_elsewhere = !has_failed(spot.port) || !view.spots.iter().any(is_other);
        let what = format!("request {} is at {} again", pick.request, spot.port);
        self.must(goes_elsewhere, Rule::RetriesGoElsewhere, || what);
    }

    fn check_key(&mut self, shard: usize, hash: u64, port: u16) {
        if self.scenario.outlier.is_some() {
            return;
        }
        let set: BTreeSet<u16> = self.ports(shard).collect();
        let known = self.homes.insert(hash, (port, set.clone()));
        let Some((home, before)) = known else { return };
        let stays = match self.scenario.table {
            _ if set == before => port == home,
            // A table of Maglev moves a few others with each change.
            Some(TableKind::Ring(_)) => port == home || !set.contains(&home) || !before.contains(&port),
            _ => true,
        };
        self.must(stays, Rule::KeysStay, || {
            format!("key {hash:x} moved from {home} to {port}")
        });
    }

    /// An attempt says something about its endpoint; `ejected` is for how long that was ejected then.
    pub(crate) fn recorded(
        &mut self,
        shard: usize,
        (port, came): (u16, u64),
        signal: Signal,
        ejected: Option<u64>,
    ) {
        let expected = self.expect(shard, port, came, signal);
        let rule = match (expected, ejected) {
            (Some(_), Some(_)) => Rule::EjectionsEndInTime,
            _ => Rule::EjectionsFollowThePolicy,
        };
        self.must(expected == ejected, rule, || {
            format!("{signal:?} of {port}: ejected for {ejected:?}, should be {expected:?}")
        });
    }

    fn expect(&mut self, shard: usize, port: u16, came: u64, signal: Signal) -> Option<u64> {
        let policy = self.scenario.outlier.as_ref()?;
        let view = &self.views[shard];
        // It may have gone, and come back as another.
        if view.came.get(&port) != Some(&came) {
            return None;
        }
        let known = self.known.get_mut(&port)?;
        if view.generations.get(&port) != Some(&known.generation) {
            return None;
        }
        let limits = [
            policy.consecutive_5xx,
            policy.consecutive_gateway,
            policy.consecutive_local,
        ];
        let is_gateway = |status| matches!(status, 502..=504);
        let said: [Option<bool>; 3] = match signal {
            Signal::Status(status) => {
                let fails = match policy.codes.is_empty() {
                    true => status >= 500,
                    false => policy.codes.contains(&status),
                };
                [
                    Some(fails),
                    Some(fails && is_gateway(status)),
                    policy.split.then_some(false),
                ]
            }
            Signal::NoAnswer if policy.split => [None, None, Some(true)],
            Signal::NoAnswer => [Some(true), Some(true), None],
            Signal::Connected => return None,
        };
        let mut is_outlier = false;
        for ((streak, most), fails) in known.streaks.iter_mut().zip(limits).zip(said) {
            match fails {
                Some(true) if most > 0 => {
                    *streak += 1;
                    if *streak == most {
                        *streak = 0;
                        is_outlier = true;
                    }
                }
                Some(false) => *streak = 0,
                _ => {}
            }
        }
        let count = view.spots.len() as u32;
        let part = count * policy.max_percent.min(100) / 100;
        let most = if count >= 2 { part.max(1) } else { part };
        if !is_outlier || known.until.is_some() || self.ejected >= most {
            return None;
        }
        self.ejected += 1;
        known.times += 1;
        let base = policy.base.as_millis() as u64;
        let time = (base * u64::from(known.times)).min(base.max(300_000));
        known.until = Some(self.now + time);
        Some(time)
    }

    /// A shard has looked who may come back.
    pub(crate) fn swept(&mut self, shard: usize, back: &BTreeSet<u16>) {
        let Some(policy) = &self.scenario.outlier else {
            return;
        };
        let interval = policy.interval.as_millis() as u64;
        let (now, view) = (self.now, &mut self.views[shard]);
        let mut expected = BTreeSet::new();
        if view.swept.is_none_or(|swept| now - swept >= interval) {
            view.swept = Some(now);
            for (port, generation) in &view.generations {
                let Some(known) = self
                    .known
                    .get_mut(port)
                    .filter(|known| known.generation == *generation)
                else {
                    continue;
                };
                match known.until {
                    Some(until) if now >= until => {
                        expected.insert(*port);
                        self.ejected -= 1;
                        known.until = None;
                        known.streaks = [0; 3];
                        known.since = now;
                    }
                    None if known.times > 0 && now - known.since >= interval => {
                        known.times -= 1;
                        known.since = now;
                    }
                    _ => {}
                }
            }
        }
        self.must(expected == *back, Rule::EjectionsEndInTime, || {
            format!("back are {back:?}, should be {expected:?}")
        });
    }

    /// So many requests came to a shard at one moment, and went to these endpoints.
    pub(crate) fn surveyed(&mut self, shard: usize, counts: &BTreeMap<u16, u32>) {
        let total: u32 = counts.values().sum();
        let count = |port: u16| counts.get(&port).copied().unwrap_or(0);
        let levels = self.levels(shard);
        let parts: u64 = levels.values().map(|level| level.part).sum();
        let spots = self.views[shard].spots.clone();
        for (number, level) in &levels {
            let got: u32 = spots
                .iter()
                .filter(|spot| spot.level == *number)
                .map(|spot| count(spot.port))
                .sum();
            let share = u64::from(total) * level.part / parts.max(1);
            let holds = parts == 0 || u64::from(got).abs_diff(share) <= 3;
            self.must(holds, Rule::LevelsTakeWhatTheyCan, || {
                format!("level {number} got {got} of {total}, its part is {share}, of {levels:?}")
            });
            let usable: Vec<&Spot> = spots
                .iter()
                .filter(|spot| spot.level == *number)
                .filter(|spot| level.panics || !self.is_ejected(shard, spot.port))
                .collect();
            let weights: u32 = usable.iter().map(|spot| spot.weight).sum();
            let share = |spot: &Spot| got * spot.weight / weights;
            if self.scenario.kind != BalancerKind::RoundRobin {
                continue;
            }
            let since = &self.views[shard].since;
            let is_warm = |spot: &Spot| !self.scenario.warms || self.now - since[&spot.port] >= WARMUP_MS;
            let warm: Vec<&Spot> = usable.iter().copied().filter(|spot| is_warm(spot)).collect();
            let all_are_warm = warm.len() == usable.len();
            for spot in &warm {
                let (got, share) = (count(spot.port), share(spot));
                // Who warms up may have too small a share to be seen.
                if level.panics && share >= 4 {
                    self.must(got > 0, Rule::PanicTakesAll, || {
                        format!("{} of shard {shard}", spot.port)
                    });
                }
                // What others do not take as long as they warm up goes to those that are warm.
                let holds = got + 3 >= share && (got <= share + 3 || !all_are_warm);
                self.must(holds, Rule::SharesHold, || {
                    format!("{} got {got}, its share is {share} of {total}", spot.port)
                });
            }
            if warm.len() + 1 == usable.len()
                && let Some(new) = usable.iter().find(|spot| !warm.contains(spot))
            {
                let (own, share) = (count(new.port), share(new));
                self.must(own <= share + 2, Rule::WarmupIsAtMostTheWhole, || {
                    format!("{} got {own}, its whole share is {share}", new.port)
                });
            }
        }
    }

    /// After each step.
    pub(crate) fn check(&mut self, facts: &Facts) {
        let held = facts.connections_held;
        self.connections_max = self.limits.connections.max(self.connections_max.min(held));
        let within = facts.connections <= self.connections_max;
        self.must(within, Rule::ConnectionsWithinLimit, || format!("{facts:?}"));
        let waiting: usize = facts.waiting.iter().map(|(waiting, _)| waiting).sum();
        // What was handed to a shard that waits is on its way to a connection.
        let is_exact = waiting == 0 && !facts.is_told_soon;
        let matches = held == facts.connections || (!is_exact && held > facts.connections);
        self.must(matches, Rule::PermitsAreConnections, || format!("{facts:?}"));
        self.requests_max = self
            .limits
            .requests
            .max(self.requests_max.min(facts.requests_held));
        let within = facts.requests == facts.requests_held && facts.requests <= self.requests_max;
        self.must(within, Rule::RequestsWithinLimit, || format!("{facts:?}"));
        let counted = facts.retries == facts.retries_held && facts.counted == facts.counted_held;
        self.must(counted, Rule::RetriesAreCounted, || format!("{facts:?}"));
        if waiting > 0 && !facts.is_told_soon {
            let is_full = held >= self.limits.connections;
            let idles = facts.waiting.iter().any(|(_, idle)| *idle > 0);
            self.must(is_full && !idles, Rule::NobodyWaitsBesideRoom, || {
                format!("{facts:?}")
            });
        }
        let placed = facts.pending_held as usize <= waiting;
        self.must(placed, Rule::EverybodyIsServed, || {
            format!("places without anybody: {facts:?}")
        });
        let limits = &self.scenario.retries;
        let within = match &limits.budget {
            None => facts.retries <= limits.concurrent,
            Some(budget) => {
                let part = self.begun * u64::from(budget.per_million) / 1_000_000;
                let intervals = self.now / budget.interval.as_millis() as u64 + 1;
                self.retried <= part + u64::from(budget.min) * intervals
            }
        };
        let (begun, retried) = (self.begun, self.retried);
        self.must(within, Rule::RetriesWithinBudget, || {
            format!("{retried} of {begun}, {} at a time", facts.retries)
        });
    }
}
