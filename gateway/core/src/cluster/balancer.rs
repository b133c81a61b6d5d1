//! Balancers: which endpoint takes the next request (Istio `loadBalancer`).
//!
//! A [`Balancer`] knows the endpoints by their positions in a list, and chooses in three steps. Endpoints are on levels,
//! by how near they are; each level gets a part of the load, by how many of its endpoints are available ([`locality`]).
//! The load of a level may be divided into groups, by localities. In a group an endpoint is picked as
//! [`BalancerKind`] says, or, when the request has a key, by [`hash`]. Which endpoints are available is somebody else's
//! decision: [`Balancer::rebuild`] is told when it changes, and lays out everything that a pick needs, so that
//! [`Balancer::pick`] costs O(1), or O(log n) where weights differ, and allocates nothing. While endpoints warm up a pick
//! lays out what has grown since, a few times in all.

use super::hash::{Hashing, Tables};
use super::latency::{Estimate, Heat};
use super::locality::{self, Count, Group, Levels, Spread};
use super::schedule::{Chances, Turns, stride};
use super::warmup::{WHOLE, Warmup};
use crate::endpoint::Endpoint;
use crate::random::Random;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How a cluster picks endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BalancerKind {
    /// In turn: in each window an endpoint gets its share, evenly spread.
    #[default]
    RoundRobin,
    /// Each endpoint with a chance in proportion to its weight.
    Random,
    /// Of two endpoints drawn at random the one with fewer requests in flight (power of two choices); where weights
    /// differ, in turn with a weight that is divided by the requests in flight.
    LeastRequest,
    /// Of two endpoints drawn at random the one with the smaller product of latency and requests in flight.
    PeakEwma,
    /// Of a few endpoints drawn at random the one that will answer first among those that are not hot.
    Prequal,
}

/// Endpoints that PREQUAL draws.
const PREQUAL_DRAWS: usize = 5;
/// Into so many parts a slow start is divided, after each of which shares are looked at anew.
const WARMUP_LOOKS: u32 = 16;
/// How often another endpoint is picked to avoid one that failed this request (Envoy `host_selection_retry_max_attempts`
/// as Istio sets it).
const RESELECTIONS_MAX: usize = 5;

/// What the resources say about choosing endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct BalancerSpec {
    /// How, for requests without a key.
    pub kind: BalancerKind,
    /// What requests have as a key, and how it leads to an endpoint; None for no consistent hashing.
    pub hashing: Option<Hashing>,
    /// Slow start; of [`BalancerKind::RoundRobin`] and [`BalancerKind::LeastRequest`] only.
    pub warmup: Option<Warmup>,
    /// How the load of a level is divided among localities.
    pub spread: Spread,
    /// Of a hundred endpoints, how many must be available for the others to be left out (`minHealthPercent`); 0 for any.
    pub panic_percent: u32,
    /// What is laid out for [`Self::hashing`].
    pub tables: Prepared,
}

impl From<BalancerKind> for BalancerSpec {
    fn from(kind: BalancerKind) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }
}

impl BalancerSpec {
    /// Lays the hash tables out, if any are needed and it has not been done: meant for the control thread, before
    /// shards ask for them.
    pub fn prepare(&self, endpoints: &[Endpoint]) {
        let _tables = self.tables(endpoints);
    }

    fn tables(&self, endpoints: &[Endpoint]) -> Option<Arc<Tables>> {
        let hashing = self.hashing.as_ref()?;
        let tables = self.tables.0.get_or_init(|| {
            let (groups, of) = locality::groups(&self.spread, endpoints);
            let mut totals = vec![0u64; groups.len()];
            for (endpoint, group) in endpoints.iter().zip(&of) {
                if let Some(total) = group.and_then(|group| totals.get_mut(group as usize)) {
                    *total += u64::from(endpoint.weight);
                }
            }
            let weight = |(endpoint, group): (&Endpoint, &Option<u32>)| {
                let Some(group) = group.map(|group| group as usize) else {
                    return 0.0;
                };
                let own = f64::from(endpoint.weight);
                match (&self.spread, groups.get(group), totals.get(group)) {
                    (Spread::Shares(_), Some(group), Some(total)) => group.share as f64 * own / *total as f64,
                    // Where a key leads must not depend on what is available: a zone has no part of its own here.
                    _ => own,
                }
            };
            let weights: Vec<f64> = endpoints.iter().zip(&of).map(weight).collect();
            Arc::new(Tables::new(hashing.table, endpoints, &weights))
        });
        Some(Arc::clone(tables))
    }
}

/// Hash tables that are laid out once for a specification. A copy begins without, because its endpoints may be others.
#[derive(Debug, Default)]
pub struct Prepared(OnceLock<Arc<Tables>>);

impl Clone for Prepared {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Prepared {
    /// Always: tables follow from the rest of the specification.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Prepared {}

impl std::hash::Hash for Prepared {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

/// What a balancer asks about endpoints when it picks.
pub trait Load {
    /// Requests in flight of this shard to the endpoint at a position.
    fn active(&self, at: usize) -> u32;
}

impl Load for [u32] {
    fn active(&self, at: usize) -> u32 {
        self.get(at).copied().unwrap_or(0)
    }
}

/// What a balancer knows of one endpoint.
#[derive(Debug, Clone)]
struct Member {
    address: SocketAddr,
    weight: u32,
    /// None for one that gets nothing.
    group: Option<u32>,
    available: bool,
    /// Whether it may be picked now: available, or everything on its level is taken.
    usable: bool,
    /// Since when it is available.
    since: Instant,
    latency: Estimate,
}

/// The endpoints of one group that may be picked.
#[derive(Debug, Clone, Default)]
struct Set {
    members: Vec<u32>,
    /// All weights are the same.
    uniform: bool,
    next: usize,
    /// When the shares of those that warm up are to be looked at again; None when all have their whole ones.
    look_at: Option<Instant>,
    turns: Turns,
    chances: Chances,
}

/// A level's part of the load, for requests with a key.
#[derive(Debug, Clone, Copy)]
struct Level {
    level: u32,
    part: u64,
}

/// The state of one cluster's balancer on one shard.
#[derive(Debug, Clone)]
pub struct Balancer {
    kind: BalancerKind,
    warmup: Option<Warmup>,
    spread: Spread,
    panic_percent: u32,
    tables: Option<Arc<Tables>>,
    members: Vec<Member>,
    groups: Vec<Group>,
    levels_max: usize,
    /// What follows from which endpoints are available.
    sets: Vec<Set>,
    /// How many of `sets` are in use.
    live: usize,
    /// Which set is next, when there are several.
    parts: Vec<u64>,
    turns: Turns,
    levels: Vec<Level>,
    heat: Heat,
}

impl Balancer {
    /// A balancer for these endpoints, all of them available.
    pub fn new(spec: &BalancerSpec, endpoints: &[Endpoint], now: Instant, random: &mut Random) -> Self {
        let mut balancer = Self {
            kind: spec.kind,
            warmup: None,
            spread: Spread::Even,
            panic_percent: 0,
            tables: None,
            members: Vec::new(),
            groups: Vec::new(),
            levels_max: 0,
            sets: Vec::new(),
            live: 0,
            parts: Vec::new(),
            turns: Turns::default(),
            levels: Vec::new(),
            heat: Heat::default(),
        };
        balancer.replace(spec, endpoints, |_| true, now, random);
        balancer
    }

    /// Takes another specification and other endpoints over. What is known about an address that stays is kept.
    pub fn replace(
        &mut self,
        spec: &BalancerSpec,
        endpoints: &[Endpoint],
        available: impl Fn(usize) -> bool,
        now: Instant,
        random: &mut Random,
    ) {
        let before: HashMap<SocketAddr, Member> = std::mem::take(&mut self.members)
            .into_iter()
            .map(|member| (member.address, member))
            .collect();
        let (groups, of) = locality::groups(&spec.spread, endpoints);
        let members = endpoints.iter().zip(of).map(|(endpoint, group)| {
            let known = before.get(&endpoint.address);
            Member {
                address: endpoint.address,
                weight: endpoint.weight.max(1),
                group,
                available: known.is_none_or(|known| known.available),
                usable: false,
                since: known.map_or(now, |known| known.since),
                latency: known.map(|known| known.latency).unwrap_or_default(),
            }
        });
        self.members = members.collect();
        self.groups = groups;
        let levels = endpoints.iter().map(|endpoint| endpoint.level as usize + 1);
        self.levels_max = levels.max().unwrap_or(0);
        self.kind = spec.kind;
        let warms = matches!(spec.kind, BalancerKind::RoundRobin | BalancerKind::LeastRequest);
        self.warmup = spec.warmup.filter(|_| warms);
        self.spread = spec.spread.clone();
        self.panic_percent = spec.panic_percent;
        self.tables = spec.tables(endpoints);
        self.rebuild(available, now, random);
    }

    /// Takes over which endpoints are available, by their positions, and lays out what picks need. To be called when
    /// that has changed, never for each request: it looks at every endpoint.
    pub fn rebuild(&mut self, available: impl Fn(usize) -> bool, now: Instant, random: &mut Random) {
        let mut by_level = vec![Count::default(); self.levels_max];
        let mut by_group = vec![Count::default(); self.groups.len()];
        for (at, member) in self.members.iter_mut().enumerate() {
            let is_available = available(at);
            if is_available && !member.available {
                // One that comes back warms up like one that is new.
                member.since = now;
            }
            member.available = is_available;
            let Some(group) = member.group.map(|group| group as usize) else {
                continue;
            };
            let level = self.groups.get(group).map_or(0, |group| group.level as usize);
            for count in [by_level.get_mut(level), by_group.get_mut(group)]
                .into_iter()
                .flatten()
            {
                count.all += 1;
                count.available += u64::from(is_available);
            }
        }
        let loads = locality::loads(&by_level, self.panic_percent);
        let panics = |group: &Group| loads.get(group.level as usize).is_some_and(|load| load.panics);
        for member in &mut self.members {
            let group = member.group.and_then(|group| self.groups.get(group as usize));
            member.usable = group.is_some_and(|group| member.available || panics(group));
        }
        self.levels.clear();
        self.parts.clear();
        self.live = 0;
        for (level, load) in (0..).zip(&loads) {
            if load.part == 0 {
                continue;
            }
            self.levels.push(Level {
                level,
                part: load.part,
            });
            let of_level: Vec<usize> = (0..self.groups.len())
                .filter(|at| self.groups.get(*at).is_some_and(|group| group.level == level))
                .collect();
            let counted: Vec<(&Group, Count)> = of_level
                .iter()
                .filter_map(|at| Some((self.groups.get(*at)?, *by_group.get(*at)?)))
                .collect();
            let parts = locality::parts(&self.spread, &counted, load.panics);
            let total: u128 = parts.iter().map(|part| u128::from(*part)).sum::<u128>().max(1);
            let shares = parts
                .iter()
                .map(|part| ((u128::from(load.part) * u128::from(*part)) << 32) / total);
            let shares: Vec<u128> = shares.collect();
            for (group, share) in of_level.into_iter().zip(shares) {
                if share > 0 {
                    self.parts.push((share >> 16) as u64);
                    self.fill(group as u32, now, random);
                }
            }
        }
        self.turns.clear();
        if self.live >= 2 {
            let parts = &self.parts;
            let stride_of = |at: usize| stride(parts.get(at).copied().unwrap_or(1), 1);
            self.turns.fill(self.live, stride_of, random);
        }
    }

    /// Lays the next set out, of a group's endpoints.
    fn fill(&mut self, group: u32, now: Instant, random: &mut Random) {
        if self.sets.len() == self.live {
            self.sets.push(Set::default());
        }
        let Some(set) = self.sets.get_mut(self.live) else {
            return;
        };
        self.live += 1;
        set.members.clear();
        let of_group = (0..)
            .zip(&self.members)
            .filter(|(_, member)| member.usable && member.group == Some(group));
        set.members.extend(of_group.map(|(at, _)| at as u32));
        set.next = random.below(set.members.len() as u64) as usize;
        set.turns.clear();
        set.chances.clear();
        let members = &self.members;
        let weights = set.members.iter().map(|at| weight(members, *at));
        set.uniform = weights
            .clone()
            .all(|weight| Some(weight) == weights.clone().next());
        set.look_at = None;
        match self.kind {
            BalancerKind::RoundRobin | BalancerKind::LeastRequest => {
                set.lay_turns(&self.members, self.warmup, now, random);
            }
            BalancerKind::Random | BalancerKind::PeakEwma | BalancerKind::Prequal => {
                if !set.uniform {
                    set.chances.fill(weights);
                }
            }
        }
    }

    /// Picks an endpoint by its position, for a request with this hash of its key or without one. One that `avoid`
    /// names is only taken when there is no other, or none is found soon. None when no endpoint may be picked.
    pub fn pick(
        &mut self,
        hash: Option<u64>,
        load: &(impl Load + ?Sized),
        avoid: impl Fn(usize) -> bool + Copy,
        now: Instant,
        random: &mut Random,
    ) -> Option<usize> {
        if let (Some(hash), Some(_)) = (hash, &self.tables) {
            return self.pick_by(hash, avoid);
        }
        let mut picked = self.pick_once(load, now, random)?;
        for _ in 0..RESELECTIONS_MAX {
            if !avoid(picked) {
                return Some(picked);
            }
            picked = self.pick_once(load, now, random)?;
        }
        if !avoid(picked) {
            return Some(picked);
        }
        // The policy insists, as by load it does on an endpoint that refuses everything and is idle therefore.
        let others = || {
            let live = self.sets.get(..self.live).unwrap_or_default();
            let members = live.iter().flat_map(|set| &set.members);
            members.map(|at| *at as usize).filter(move |at| !avoid(*at))
        };
        let nth = random.below(others().count().max(1) as u64);
        Some(others().nth(nth as usize).unwrap_or(picked))
    }

    /// Picks an endpoint as if these levels had none: those where a request was tried before (Envoy's
    /// `previous_priorities`). What they would have taken goes on to the others, and on a level chance decides, by weight,
    /// or the request's hash. It looks at every endpoint, which the few requests that get here may. None when no other level
    /// has any.
    pub fn pick_without(
        &self,
        levels: Levels,
        hash: Option<u64>,
        avoid: impl Fn(usize) -> bool + Copy,
        random: &mut Random,
    ) -> Option<usize> {
        let level_of = |member: &Member| {
            let group = self.groups.get(member.group? as usize)?;
            Some(group.level).filter(|level| !levels.has(*level))
        };
        let mut counts = vec![Count::default(); self.levels_max];
        for member in &self.members {
            let level = level_of(member).map(|level| level as usize);
            if let Some(count) = level.and_then(|level| counts.get_mut(level)) {
                count.all += 1;
                count.available += u64::from(member.available);
            }
        }
        let loads = locality::loads(&counts, self.panic_percent);
        let total: u64 = loads.iter().map(|load| load.part).sum();
        let mut at = random.below(total.max(1));
        let (level, load) = (0..).zip(&loads).find(|(_, load)| {
            let inside = at < load.part;
            at = at.saturating_sub(load.part);
            inside
        })?;
        let usable = |at: usize| {
            let member = self.members.get(at);
            member.is_some_and(|member| level_of(member) == Some(level) && (member.available || load.panics))
        };
        if let (Some(hash), Some(tables)) = (hash, &self.tables) {
            let found = tables.find(level, hash, |at| usable(at) && !avoid(at));
            return found.or_else(|| tables.find(level, hash, usable));
        }
        let draw = |may: &dyn Fn(usize) -> bool, random: &mut Random| {
            let all = || (0..self.members.len()).filter(|at| may(*at));
            let weight = |at: usize| self.members.get(at).map_or(0, |member| u64::from(member.weight));
            let mut drawn = random.below(all().map(weight).sum::<u64>().max(1));
            all().find(|at| {
                let inside = drawn < weight(*at);
                drawn = drawn.saturating_sub(weight(*at));
                inside
            })
        };
        let fresh = draw(&|at| usable(at) && !avoid(at), random);
        fresh.or_else(|| draw(&usable, random))
    }

    /// Notes what an attempt on an endpoint has taken until its answer began; None for one that failed.
    pub fn observe(&mut self, at: usize, latency: Option<Duration>, now: Instant) {
        if let Some(member) = self.members.get_mut(at).filter(|_| self.kind.learns()) {
            member.latency.observe(latency, now);
        }
    }

    fn pick_by(&self, hash: u64, avoid: impl Fn(usize) -> bool) -> Option<usize> {
        let tables = self.tables.as_ref()?;
        let level = match &self.levels[..] {
            [] => return None,
            [only] => only.level,
            several => {
                // Other bits than those that lead to an endpoint.
                let total: u64 = several.iter().map(|level| level.part).sum();
                let bits = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
                let mut at = (bits * total) >> 32;
                let mut chosen = several.iter().find(|level| {
                    let inside = at < level.part;
                    at = at.saturating_sub(level.part);
                    inside
                });
                chosen.get_or_insert(several.first()?).level
            }
        };
        let usable = |at: usize| self.members.get(at).is_some_and(|member| member.usable);
        let found = tables.find(level, hash, |at| usable(at) && !avoid(at));
        found.or_else(|| tables.find(level, hash, usable)).or_else(|| {
            // Nearly all are not available: any that is, but the same one for the same key.
            let sets = self.sets.get(..self.live)?;
            let set = sets.get((hash % sets.len().max(1) as u64) as usize)?;
            let at = set
                .members
                .get((hash % set.members.len().max(1) as u64) as usize)?;
            Some(*at as usize)
        })
    }

    fn pick_once(&mut self, load: &(impl Load + ?Sized), now: Instant, random: &mut Random) -> Option<usize> {
        let Self {
            kind,
            warmup,
            members,
            sets,
            live,
            parts,
            turns,
            heat,
            ..
        } = self;
        let set = match *live {
            1 => sets.first_mut()?,
            _ => {
                let next = turns.next(|at| stride(parts.get(at).copied().unwrap_or(1), 1));
                sets.get_mut(next?)?
            }
        };
        if set.members.len() <= 1 {
            return set.members.first().map(|at| *at as usize);
        }
        if set.look_at.is_some_and(|look_at| look_at <= now) {
            set.lay_turns(members, *warmup, now, random);
        }
        let picked = match kind {
            BalancerKind::RoundRobin if set.turns.is_empty() => {
                set.next += 1;
                if set.next >= set.members.len() {
                    set.next = 0;
                }
                set.next
            }
            BalancerKind::LeastRequest if set.turns.is_empty() => {
                let (first, second) = two(set.members.len(), random);
                let active = |at: usize| {
                    set.members
                        .get(at)
                        .map_or(u32::MAX, |at| load.active(*at as usize))
                };
                if active(second) < active(first) {
                    second
                } else {
                    first
                }
            }
            BalancerKind::RoundRobin | BalancerKind::LeastRequest => {
                let Set {
                    members: chosen,
                    turns,
                    look_at,
                    ..
                } = set;
                let warmup = warmup.filter(|_| look_at.is_some());
                turns.next(|at| {
                    let Some(at) = chosen.get(at).map(|at| *at as usize) else {
                        return 1;
                    };
                    let weight = members.get(at).map_or(1, |member| grown(member, warmup, now));
                    let cost = match kind {
                        BalancerKind::LeastRequest => load.active(at).saturating_add(1),
                        _ => 1,
                    };
                    stride(weight, cost)
                })?
            }
            BalancerKind::Random => set.draw(random),
            BalancerKind::PeakEwma => {
                let (first, second) = match set.uniform {
                    true => two(set.members.len(), random),
                    false => (set.draw(random), set.draw(random)),
                };
                // Draws go by weight already.
                let cost = |at: usize| {
                    let at = set.members.get(at).map_or(usize::MAX, |at| *at as usize);
                    let member = members.get(at);
                    member.map_or(f64::MAX, |member| member.latency.cost(load.active(at), now))
                };
                if cost(second) < cost(first) { second } else { first }
            }
            BalancerKind::Prequal => {
                let mut best: Option<(usize, bool, u32, f64)> = None;
                for _ in 0..PREQUAL_DRAWS.min(set.members.len()) {
                    let drawn = set.draw(random);
                    let at = set.members.get(drawn).map_or(usize::MAX, |at| *at as usize);
                    let active = load.active(at);
                    heat.observe(active);
                    let latency = members
                        .get(at)
                        .map_or(0.0, |member| member.latency.cost(active, now));
                    let hot = heat.is_hot(active);
                    let better =
                        best.is_none_or(|(_, best_hot, best_active, best_latency)| match (hot, best_hot) {
                            (false, true) => true,
                            (true, false) => false,
                            (true, true) => active < best_active,
                            (false, false) => latency < best_latency,
                        });
                    if better {
                        best = Some((drawn, hot, active, latency));
                    }
                }
                best.map_or(0, |(at, ..)| at)
            }
        };
        set.members.get(picked).map(|at| *at as usize)
    }
}

impl BalancerKind {
    /// Whether it wants to know what attempts take.
    pub fn learns(self) -> bool {
        matches!(self, Self::PeakEwma | Self::Prequal)
    }
}

impl Set {
    /// Lays the turns out by what each member's share is at the moment. A turn is as far away as the share is small that it
    /// follows from, so those that warm up would wait for one that belongs to the share which they had.
    fn lay_turns(&mut self, members: &[Member], warmup: Option<Warmup>, now: Instant, random: &mut Random) {
        let chosen = &self.members;
        let member = |at: u32| members.get(at as usize);
        self.look_at = warmup.and_then(|warmup| {
            let ends = chosen
                .iter()
                .filter_map(|at| Some(warmup.ends(member(*at)?.since)));
            let last = ends.max().filter(|last| *last > now)?;
            let next = now.checked_add(warmup.duration() / WARMUP_LOOKS);
            Some(next.map_or(last, |next| next.min(last)))
        });
        if self.uniform && self.look_at.is_none() {
            self.turns.clear();
            return;
        }
        let stride_of = |at: usize| {
            let member = chosen.get(at).and_then(|at| member(*at));
            member.map_or(1, |member| stride(grown(member, warmup, now), 1))
        };
        self.turns.fill(chosen.len(), stride_of, random);
    }

    fn draw(&self, random: &mut Random) -> usize {
        match self.chances.draw(random) {
            Some(at) => at,
            None => random.below(self.members.len() as u64) as usize,
        }
    }
}

fn weight(members: &[Member], at: u32) -> u64 {
    members
        .get(at as usize)
        .map_or(1, |member| u64::from(member.weight))
}

/// A member's weight in parts of [`WHOLE`], as far as it has warmed up.
fn grown(member: &Member, warmup: Option<Warmup>, now: Instant) -> u64 {
    let factor = warmup.map_or(WHOLE, |warmup| warmup.factor(member.since, now));
    (u64::from(member.weight) * factor).max(1)
}

/// Two different positions below `count`, which is at least 2.
fn two(count: usize, random: &mut Random) -> (usize, usize) {
    let bits = random.next_u64();
    // Half of the bits for each: what multiplication favours is less than a part in a million for a thousand endpoints.
    let first = (((bits >> 32) * count as u64) >> 32) as usize;
    let other = (((bits & 0xFFFF_FFFF) * (count as u64 - 1)) >> 32) as usize;
    (first, if other >= first { other + 1 } else { other })
}

#[cfg(test)]
mod tests {
    use super::super::hash::{self, HashKey, TableKind};
    use super::super::locality::Locality;
    use super::*;

    fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
        let endpoint = |(port, weight): (u16, &u32)| Endpoint {
            weight: *weight,
            ..Endpoint::new(([10, 0, 0, 1], port).into())
        };
        (1..).zip(weights).map(endpoint).collect()
    }

    struct Bench {
        balancer: Balancer,
        random: Random,
        now: Instant,
        active: Vec<u32>,
    }

    impl Bench {
        fn new(spec: impl Into<BalancerSpec>, endpoints: &[Endpoint], seed: u64) -> Self {
            let (mut random, now) = (Random::from_seed(seed), Instant::now());
            Self {
                balancer: Balancer::new(&spec.into(), endpoints, now, &mut random),
                random,
                now,
                active: vec![0; endpoints.len()],
            }
        }

        fn rebuild(&mut self, available: impl Fn(usize) -> bool) {
            self.balancer.rebuild(available, self.now, &mut self.random);
        }

        fn pick(&mut self, hash: Option<u64>) -> Option<usize> {
            self.balancer
                .pick(hash, &self.active[..], |_| false, self.now, &mut self.random)
        }

        fn counts(&mut self, rounds: usize) -> Vec<usize> {
            let mut counts = vec![0; self.active.len()];
            for _ in 0..rounds {
                counts[self.pick(None).unwrap()] += 1;
            }
            counts
        }
    }

    #[test]
    fn round_robin_is_exact_in_every_window() {
        for seed in 0..2000 {
            let mut even = Bench::new(BalancerKind::RoundRobin, &endpoints(&[1, 1, 1]), seed);
            assert_eq!(even.counts(9), [3, 3, 3]);
            let mut uneven = Bench::new(BalancerKind::RoundRobin, &endpoints(&[5, 1, 2]), seed);
            uneven.active = vec![0, 9, 0];
            assert_eq!(uneven.counts(16), [10, 2, 4]);
        }
    }

    #[test]
    fn random_follows_the_weights() {
        let mut bench = Bench::new(BalancerKind::Random, &endpoints(&[3, 1]), 5);
        let counts = bench.counts(100_000);
        assert!((74_000..76_000).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn least_request_avoids_the_busy_endpoint() {
        for seed in 0..200 {
            let mut even = Bench::new(BalancerKind::LeastRequest, &endpoints(&[1, 1, 1, 1]), seed);
            even.active = vec![50, 0, 0, 0];
            let picks = even.counts(1000);
            assert_eq!(picks[0], 0, "{seed}: of two different ones, one is idle");
            assert!(picks[1..].iter().all(|count| *count > 250), "{seed}: {picks:?}");
            // In turn with weight / (active + 1): 4 / 4 against 1 / 1.
            let mut uneven = Bench::new(BalancerKind::LeastRequest, &endpoints(&[4, 1]), seed);
            uneven.active = vec![3, 0];
            let picks = uneven.counts(1000);
            assert!((499..=501).contains(&picks[0]), "{seed}: {picks:?}");
            uneven.active = vec![0, 0];
            uneven.rebuild(|_| true);
            let picks = uneven.counts(1000);
            assert!((799..=801).contains(&picks[0]), "{seed}: {picks:?}");
        }
    }

    #[test]
    fn no_endpoint_gives_no_pick() {
        for kind in KINDS {
            let mut none = Bench::new(kind, &[], 1);
            assert_eq!(none.pick(None), None);
            let mut gone = Bench::new(kind, &endpoints(&[1, 2]), 1);
            gone.rebuild(|_| false);
            assert_eq!(gone.pick(None), None, "{kind:?}");
            gone.rebuild(|at| at == 1);
            assert_eq!(gone.pick(None), Some(1), "{kind:?}");
        }
    }

    #[test]
    fn levels_that_are_left_out_get_nothing_as_long_as_there_are_others() {
        let mut all = endpoints(&[1, 1, 1, 3, 1]);
        for (endpoint, level) in all.iter_mut().zip([0, 0, 1, 1, 2]) {
            endpoint.level = level;
        }
        let near = Levels::NONE.with(0);
        for kind in KINDS {
            let mut bench = Bench::new(kind, &all, 3);
            let mut picks = |without: Levels, avoid: usize| {
                let mut counts = [0; 5];
                for _ in 0..4000 {
                    let picked =
                        bench
                            .balancer
                            .pick_without(without, None, |at| at == avoid, &mut bench.random);
                    counts[picked.unwrap()] += 1;
                }
                counts
            };
            let [_, _, light, heavy, _] = picks(near, 9);
            assert!(
                light + heavy == 4000 && (800..1200).contains(&light),
                "{light} by weight"
            );
            assert_eq!(picks(near, 3), [0, 0, 4000, 0, 0]);
            assert_eq!(picks(near.with(1), 9), [0, 0, 0, 0, 4000]);
            assert_eq!(picks(near.with(1), 4), [0, 0, 0, 0, 4000], "there is no other");
            let none = near.with(1).with(2);
            let left = bench
                .balancer
                .pick_without(none, None, |_| false, &mut bench.random);
            assert_eq!(left, None);
            // One of two takes 70 % of what comes to their level.
            bench.rebuild(|at| at != 3);
            let mut counts = [0; 5];
            for _ in 0..4000 {
                let picked = bench
                    .balancer
                    .pick_without(near, None, |_| false, &mut bench.random);
                counts[picked.unwrap()] += 1;
            }
            assert!(
                counts[2] + counts[4] == 4000 && (2600..3000).contains(&counts[2]),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn two_are_different_ones_and_every_pair_is_as_likely() {
        for count in [2, 3, 5] {
            let mut random = Random::from_seed(3);
            let mut seen = vec![vec![0; count]; count];
            for _ in 0..count * (count - 1) * 2_000 {
                let (first, second) = two(count, &mut random);
                seen[first][second] += 1;
            }
            for (first, row) in seen.iter().enumerate() {
                for (second, times) in row.iter().enumerate() {
                    let expected = if first == second { 0..1 } else { 1_750..2_250 };
                    assert!(expected.contains(times), "{first} {second}: {seen:?}");
                }
            }
        }
    }

    const MS: Duration = Duration::from_millis(1);

    fn bench(kind: BalancerKind, weights: &[u32], latencies: &[u32], seed: u64) -> Bench {
        let mut bench = Bench::new(kind, &endpoints(weights), seed);
        for (at, latency) in latencies.iter().enumerate() {
            bench.balancer.observe(at, Some(MS * *latency), bench.now);
        }
        bench
    }

    #[test]
    fn peak_ewma_takes_the_quicker_of_two() {
        let mut slow = bench(BalancerKind::PeakEwma, &[1; 4], &[100, 1, 1, 1], 1);
        assert_eq!(slow.counts(1_000)[0], 0, "of two different ones, one is quick");
        let mut busy = bench(BalancerKind::PeakEwma, &[1; 4], &[1; 4], 1);
        busy.active = vec![0, 9, 0, 0];
        assert_eq!(busy.counts(1_000)[1], 0);
        // Half of all draws are the slow one's by its weight: it is taken when both are.
        let mut heavy = bench(BalancerKind::PeakEwma, &[1, 1, 2], &[1, 1, 100], 1);
        let counts = heavy.counts(4_000);
        assert!((850..1_150).contains(&counts[2]), "{counts:?}");
        assert!(counts[0].abs_diff(counts[1]) < 200, "{counts:?}");
        // Others learn nothing.
        for kind in KINDS {
            let learns = matches!(kind, BalancerKind::PeakEwma | BalancerKind::Prequal);
            assert_eq!(kind.learns(), learns);
            let known = bench(kind, &[1], &[1], 1);
            assert_eq!(
                known.balancer.members[0].latency.value(known.now).is_some(),
                learns
            );
        }
    }

    #[test]
    fn prequal_takes_the_quickest_that_is_not_hot() {
        // The first is the quickest and hot. The second is drawn, among five, in 35 of 100 picks.
        let mut latencies = [10; 12];
        latencies[..2].copy_from_slice(&[1, 5]);
        let mut one_is_hot = bench(BalancerKind::Prequal, &[1; 12], &latencies, 1);
        one_is_hot.active = vec![1; 12];
        one_is_hot.active[0] = 50;
        let counts = one_is_hot.counts(4_000);
        assert!(counts[0] < 4, "{counts:?}");
        assert!((1_290..1_540).contains(&counts[1]), "{counts:?}");
        // Before anything is known of the others all are hot: the fewest in flight decide.
        let mut counts = [0; 6];
        for seed in 0..2_000 {
            let mut all_hot = bench(BalancerKind::Prequal, &[1; 6], &[1, 1, 1, 1, 1, 99], seed);
            all_hot.active = vec![9, 8, 7, 6, 5, 4];
            counts[all_hot.pick(None).unwrap()] += 1;
        }
        assert!((1_100..1_290).contains(&counts[5]) && counts[0] < 4, "{counts:?}");
        assert!(counts.is_sorted(), "{counts:?}");
    }

    fn keyed(kind: TableKind) -> BalancerSpec {
        BalancerSpec {
            hashing: Some(Hashing {
                key: HashKey::Path,
                table: kind,
            }),
            ..BalancerSpec::default()
        }
    }

    const TABLES: [TableKind; 2] = [TableKind::Ring(1024), TableKind::Maglev(65_537)];

    /// How many of some keys lead to each endpoint; each leads to the same one whenever it is asked.
    fn homes(bench: &mut Bench) -> Vec<usize> {
        let mut counts = vec![0; bench.active.len()];
        for key in 0..10_000_u64 {
            let key = Some(hash::hash(&key.to_le_bytes()));
            let home = bench.pick(key).unwrap();
            assert_eq!(bench.pick(key), Some(home));
            counts[home] += 1;
        }
        counts
    }

    #[test]
    fn keys_stay_near_as_far_as_the_near_can_take_them() {
        let mut all = endpoints(&[1; 4]);
        for (endpoint, level) in all.iter_mut().zip([0, 0, 1, 1]) {
            endpoint.level = level;
        }
        for kind in TABLES {
            let mut bench = Bench::new(keyed(kind), &all, 1);
            assert_eq!(homes(&mut bench)[2..], [0, 0]);
            bench.rebuild(|at| at != 0);
            // One of two takes 70 % of what comes to their level.
            let counts = homes(&mut bench);
            assert_eq!(counts[0], 0);
            assert!((6_800..7_200).contains(&counts[1]), "{counts:?}");
            assert!(counts[2] > 1_200 && counts[3] > 1_200, "{counts:?}");
            let key = Some(hash::hash(b"any"));
            bench.rebuild(|_| true);
            let home = bench.pick(key).unwrap();
            let Bench {
                balancer,
                random,
                now,
                active,
            } = &mut bench;
            let other = balancer.pick(key, &active[..], |at| at == home, *now, random);
            assert_eq!(other, Some(1 - home), "who failed is avoided");
            let none = balancer.pick(key, &active[..], |_| true, *now, random);
            assert_eq!(none, Some(home), "as long as there is another");
        }
    }

    #[test]
    fn keys_lead_past_levels_that_are_left_out() {
        let mut all = endpoints(&[1; 4]);
        for (endpoint, level) in all.iter_mut().zip([0, 0, 1, 1]) {
            endpoint.level = level;
        }
        let near = Levels::NONE.with(0);
        for kind in TABLES {
            let Bench {
                balancer, mut random, ..
            } = Bench::new(keyed(kind), &all, 1);
            for key in 0..100_u64 {
                let key = Some(hash::hash(&key.to_le_bytes()));
                let mut pick =
                    |avoid: &dyn Fn(usize) -> bool| balancer.pick_without(near, key, avoid, &mut random);
                let home = pick(&|_| false).unwrap();
                assert!(home >= 2 && pick(&|_| false) == Some(home));
                assert_eq!(pick(&|at| at == home), Some(5 - home), "who failed is avoided");
                assert_eq!(pick(&|_| true), Some(home), "as long as there is another");
            }
        }
    }

    #[test]
    fn where_nothing_is_available_levels_get_their_parts_by_number() {
        let mut all = endpoints(&[1; 3]);
        for (endpoint, level) in all.iter_mut().zip(0..) {
            endpoint.level = level;
        }
        let spec = BalancerSpec {
            panic_percent: 100,
            ..BalancerKind::RoundRobin.into()
        };
        let mut bench = Bench::new(spec, &all, 1);
        bench.rebuild(|_| false);
        assert_eq!(bench.counts(300), [100; 3]);
        let mut counts = [0_u32; 3];
        for _ in 0..1_000 {
            let near = Levels::NONE.with(0);
            let picked = bench
                .balancer
                .pick_without(near, None, |_| false, &mut bench.random);
            counts[picked.unwrap()] += 1;
        }
        assert!(
            counts[0] == 0 && counts[1].abs_diff(counts[2]) < 150,
            "{counts:?}"
        );
        for kind in TABLES {
            let spec = BalancerSpec {
                panic_percent: 100,
                ..keyed(kind)
            };
            let mut bench = Bench::new(spec, &all, 1);
            bench.rebuild(|_| false);
            let counts = homes(&mut bench);
            assert!(
                counts.iter().all(|count| (3_200..3_470).contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn keys_find_the_few_that_are_left() {
        for kind in [TableKind::Ring(8), TableKind::Maglev(65_537)] {
            let mut bench = Bench::new(keyed(kind), &endpoints(&[1; 1_000]), 1);
            bench.rebuild(|at| at == 700);
            assert_eq!(homes(&mut bench)[700], 10_000);
            bench.rebuild(|at| at == 3 || at == 700);
            let counts = homes(&mut bench);
            assert_eq!(counts[3] + counts[700], 10_000);
            assert!(counts[3] > 2_500 && counts[700] > 2_500, "{kind:?}: {counts:?}");
        }
    }

    #[test]
    fn localities_get_their_shares_and_endpoints_theirs_of_them() {
        let mut all = endpoints(&[1, 1, 1, 3, 1]);
        for (endpoint, locality) in all.iter_mut().zip(["r1", "r1", "r2", "r2", "r3"]) {
            endpoint.locality = locality.into();
        }
        let shares = [("r1", 80), ("r2", 20)].map(|(to, share)| (Locality::parse(to), share));
        let spread = Spread::Shares(shares.into());
        let expected = [4_000, 4_000, 500, 1_500, 0];
        let close = |counts: &[usize], expected: &[usize; 5], by: usize| {
            let mut all = counts.iter().zip(expected);
            assert!(
                all.all(|(count, expected)| count.abs_diff(*expected) <= by),
                "{counts:?}, not {expected:?}"
            );
        };
        for kind in KINDS {
            let spec = BalancerSpec {
                spread: spread.clone(),
                ..kind.into()
            };
            let mut bench = Bench::new(spec, &all, 1);
            let is_exact = kind == BalancerKind::RoundRobin;
            close(&bench.counts(10_000), &expected, if is_exact { 2 } else { 300 });
            bench.rebuild(|at| at >= 2);
            assert_eq!(bench.balancer.live, 1, "a locality that has nothing has no turn");
            close(
                &bench.counts(10_000),
                &[0, 0, 2_500, 7_500, 0],
                if is_exact { 2 } else { 300 },
            );
        }
        for kind in TABLES {
            let spec = BalancerSpec {
                spread: spread.clone(),
                ..keyed(kind)
            };
            close(&homes(&mut Bench::new(spec, &all, 1)), &expected, 500);
        }
    }

    #[test]
    fn tables_are_laid_out_before_they_are_asked_for() {
        let all = endpoints(&[1, 2]);
        for kind in TABLES {
            let spec = keyed(kind);
            spec.prepare(&all);
            let tables = spec.tables.0.get().expect("laid out");
            assert!(Arc::ptr_eq(tables, &spec.tables(&all).unwrap()), "once");
            let copy = spec.clone();
            assert!(copy.tables.0.get().is_none() && copy == spec);
        }
        let plain = BalancerSpec::default();
        plain.prepare(&all);
        assert!(plain.tables.0.get().is_none());
    }

    #[test]
    fn who_is_back_warms_up_and_the_others_stay_warm() {
        let length = Duration::from_secs(100);
        for (kind, warms) in [
            (BalancerKind::RoundRobin, true),
            (BalancerKind::LeastRequest, true),
            (BalancerKind::Random, false),
        ] {
            let spec = BalancerSpec {
                warmup: Some(Warmup::new(length, 10.0, 1.0)),
                ..kind.into()
            };
            let mut bench = Bench::new(spec, &endpoints(&[1; 3]), 1);
            bench.now += length;
            bench.rebuild(|at| at != 2);
            bench.rebuild(|_| true);
            let ask = |bench: &mut Bench, rounds: usize, expected: [usize; 3]| {
                let even = [rounds / 3; 3];
                let expected = if warms { expected } else { even };
                let counts = bench.counts(rounds);
                let mut all = counts.iter().zip(expected);
                let by = if warms { 2 } else { 150 };
                assert!(
                    all.all(|(count, expected)| count.abs_diff(expected) <= by),
                    "{kind:?}: {counts:?}, not {expected:?}"
                );
            };
            ask(&mut bench, 2_100, [1_000, 1_000, 100]);
            bench.now += length / 2;
            bench.rebuild(|_| true);
            ask(&mut bench, 2_500, [1_000, 1_000, 500]);
            bench.now += length / 2;
            if kind == BalancerKind::LeastRequest {
                // By two draws from here on.
                bench.active = vec![0, 0, 9];
                assert_eq!(bench.counts(100)[2], 0);
            } else {
                ask(&mut bench, 2_100, [700, 700, 700]);
            }
        }
    }

    #[test]
    fn who_warms_up_from_nothing_has_its_share_all_the_while() {
        let length = Duration::from_secs(100);
        for kind in [BalancerKind::RoundRobin, BalancerKind::LeastRequest] {
            for weights in [[1, 1], [1, 3]] {
                let spec = BalancerSpec {
                    warmup: Some(Warmup::new(length, 0.0, 1.0)),
                    ..kind.into()
                };
                let mut bench = Bench::new(spec, &endpoints(&weights), 1);
                bench.now += length;
                bench.rebuild(|at| at == 0);
                bench.rebuild(|_| true);
                for quarter in 0..4 {
                    let mut got = 0.0;
                    for _second in 0..25 {
                        got += bench.counts(40)[1] as f64;
                        bench.now += length / 100;
                    }
                    let weight = f64::from(weights[1]) * (f64::from(quarter) + 0.5) / 4.0;
                    let share = 1_000.0 * weight / (1.0 + weight);
                    let what =
                        format!("{kind:?} {weights:?}: {got} in quarter {quarter}, its share is {share}");
                    assert!((got - share).abs() < 60.0, "{what}");
                }
                if kind == BalancerKind::RoundRobin {
                    let share = 40 * weights[1] as usize / (1 + weights[1] as usize);
                    assert!(
                        bench.counts(40)[1].abs_diff(share) <= 1,
                        "its whole share from then on"
                    );
                }
            }
        }
    }

    const KINDS: [BalancerKind; 5] = [
        BalancerKind::RoundRobin,
        BalancerKind::Random,
        BalancerKind::LeastRequest,
        BalancerKind::PeakEwma,
        BalancerKind::Prequal,
    ];
}
