//! Balancers under simulation: what they promise over thousands of seeds, and what they make of uneven upstreams.
//!
//! Time is virtual and chance is seeded, so that every run is the same. `cargo test -p isthmus-core --test balancers --
//! --nocapture` prints the table of latencies.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_core::cluster::balancer::{Balancer, BalancerKind, BalancerSpec};
use isthmus_core::cluster::hash::{HashKey, Hashing, TableKind};
use isthmus_core::cluster::locality::{Locality, Spread};
use isthmus_core::cluster::warmup::Warmup;
use isthmus_core::endpoint::Endpoint;
use isthmus_core::random::Random;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const KINDS: [BalancerKind; 5] = [
    BalancerKind::RoundRobin,
    BalancerKind::Random,
    BalancerKind::LeastRequest,
    BalancerKind::PeakEwma,
    BalancerKind::Prequal,
];
const LOCALITIES: [&str; 6] = ["r1/z1/s1", "r1/z1/s2", "r1/z2", "r2/z1", "r3", ""];

fn address(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

fn endpoints(count: u16) -> Vec<Endpoint> {
    (1..=count).map(|port| Endpoint::new(address(port))).collect()
}

/// A world that a seed makes up: endpoints anywhere, some of them available.
struct World {
    spec: BalancerSpec,
    endpoints: Vec<Endpoint>,
    available: Vec<bool>,
    active: Vec<u32>,
    random: Random,
    now: Instant,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::from_seed(seed);
        let mut draw = |bound: u64| random.below(bound);
        let count = 1 + draw(30) as u16;
        let levels = 1 + draw(4);
        let mut list: Vec<Endpoint> = (1..=count)
            .map(|port| Endpoint {
                weight: if seed.is_multiple_of(2) {
                    1
                } else {
                    1 + draw(9) as u32
                },
                locality: LOCALITIES[draw(6) as usize].into(),
                level: draw(levels) as u32,
                ..Endpoint::new(address(port))
            })
            .collect();
        // Levels have no gaps.
        let mut known: Vec<u32> = list.iter().map(|endpoint| endpoint.level).collect();
        known.sort_unstable();
        known.dedup();
        for endpoint in &mut list {
            endpoint.level = known.binary_search(&endpoint.level).unwrap() as u32;
        }
        let spread = match draw(4) {
            0 => Spread::Shares(vec![
                (Locality::parse("r1/z1/s1"), 50),
                (Locality::parse("r1/*"), 30),
                (Locality::parse("r2"), 20),
            ]),
            1 => Spread::ZoneAware {
                own: Locality::parse("r1/z1/s1"),
                endpoints_min: 6,
            },
            _ => Spread::Even,
        };
        let hashing = (draw(3) == 0).then(|| Hashing {
            key: HashKey::SourceIp,
            table: if draw(2) == 0 {
                TableKind::Ring(64)
            } else {
                TableKind::Maglev(1009)
            },
        });
        let spec = BalancerSpec {
            kind: KINDS[draw(5) as usize],
            hashing,
            warmup: (draw(3) == 0).then(|| Warmup::new(Duration::from_secs(10), 10.0, 1.0)),
            spread,
            panic_percent: [0, 0, 30, 100][draw(4) as usize],
            ..BalancerSpec::default()
        };
        Self {
            spec,
            available: vec![true; list.len()],
            active: vec![0; list.len()],
            endpoints: list,
            random,
            now: Instant::now(),
        }
    }

    fn covered(&self, at: usize) -> bool {
        let place = Locality::parse(&self.endpoints[at].locality);
        match &self.spec.spread {
            Spread::Shares(shares) => shares.iter().any(|(rule, _)| place.is_covered_by(rule)),
            _ => true,
        }
    }
}

#[test]
fn only_available_endpoints_are_picked_and_one_always_is() {
    for seed in 0..4000 {
        let mut world = World::new(seed);
        let mut balancer = Balancer::new(&world.spec, &world.endpoints, world.now, &mut world.random);
        for _ in 0..8 {
            let odds = world.random.below(5);
            for available in &mut world.available {
                *available = world.random.below(4) < odds;
            }
            world.now += Duration::from_secs(world.random.below(20));
            balancer.rebuild(|at| world.available[at], world.now, &mut world.random);
            let candidates: Vec<usize> = (0..world.endpoints.len())
                .filter(|at| world.covered(*at))
                .collect();
            let usable = candidates.iter().filter(|at| world.available[**at]).count();
            let panics = world.spec.panic_percent > 0;
            for round in 0..60u64 {
                let hash = (round % 2 == 0).then(|| round.wrapping_mul(0x1234_5678_9ABC_DEF1));
                let picked = balancer.pick(hash, &world.active[..], |_| false, world.now, &mut world.random);
                let Some(at) = picked else {
                    assert_eq!(usable, 0, "seed {seed}: nothing was picked");
                    assert!(
                        candidates.is_empty() || !panics,
                        "seed {seed}: panic picks anything"
                    );
                    continue;
                };
                assert!(world.covered(at), "seed {seed}: {at} has no share");
                assert!(
                    world.available[at] || panics,
                    "seed {seed}: {at} is not available"
                );
                let total: usize = candidates.len();
                // With enough left over all levels nobody panics.
                if usable * 14 >= total * 10 && same_level(&world.endpoints) {
                    assert!(world.available[at], "seed {seed}: no reason to panic");
                }
                world.active[at] += 1;
                balancer.observe(at, Some(Duration::from_millis(1 + round)), world.now);
                if world.random.below(2) == 0 {
                    world.active[at] -= 1;
                }
            }
        }
    }
}

fn same_level(endpoints: &[Endpoint]) -> bool {
    endpoints.iter().all(|endpoint| endpoint.level == 0)
}

/// Shards and gateways agree, whatever the order of their endpoints and whatever else has happened to them.
#[test]
fn a_key_leads_to_one_endpoint_on_every_shard() {
    for seed in 0..500 {
        let mut world = World::new(seed);
        let table = if seed.is_multiple_of(2) {
            TableKind::Ring(256)
        } else {
            TableKind::Maglev(4099)
        };
        world.spec.hashing = Some(Hashing {
            key: HashKey::SourceIp,
            table,
        });
        let mut turned = world.endpoints.clone();
        turned.reverse();
        let (mut a, mut b) = (Random::from_seed(seed + 1), Random::from_seed(seed + 2));
        let mut one = Balancer::new(&world.spec, &world.endpoints, world.now, &mut a);
        let mut other = Balancer::new(&world.spec.clone(), &turned, world.now, &mut b);
        for _ in 0..3 {
            let gone = address(1 + world.random.below(world.endpoints.len() as u64) as u16);
            one.rebuild(|at| world.endpoints[at].address != gone, world.now, &mut a);
            other.rebuild(|at| turned[at].address != gone, world.now, &mut b);
            for _ in 0..200 {
                let hash = Some(world.random.next_u64());
                let active = &world.active[..];
                let first = one.pick(hash, active, |_| false, world.now, &mut a);
                let second = other.pick(hash, active, |_| false, world.now, &mut b);
                assert_eq!(
                    first.map(|at| world.endpoints[at].address),
                    second.map(|at| turned[at].address),
                    "seed {seed}"
                );
            }
        }
    }
}

fn counts(
    balancer: &mut Balancer,
    count: usize,
    picks: usize,
    now: Instant,
    random: &mut Random,
) -> Vec<f64> {
    let active = vec![0u32; count];
    let mut counts = vec![0u32; count];
    for _ in 0..picks {
        if let Some(at) = balancer.pick(None, &active[..], |_| false, now, random) {
            counts[at] += 1;
        }
    }
    counts
        .iter()
        .map(|count| f64::from(*count) / picks as f64)
        .collect()
}

#[test]
fn load_moves_to_the_next_level_as_endpoints_go() {
    let now = Instant::now();
    let mut list = endpoints(20);
    for endpoint in &mut list[10..] {
        endpoint.level = 1;
    }
    for kind in [
        BalancerKind::RoundRobin,
        BalancerKind::Random,
        BalancerKind::LeastRequest,
    ] {
        for seed in 0..50 {
            let mut random = Random::from_seed(seed);
            let mut balancer = Balancer::new(&kind.into(), &list, now, &mut random);
            for (left, expected) in [(10, 1.0), (8, 1.0), (5, 0.7), (2, 0.28), (0, 0.0)] {
                balancer.rebuild(|at| at < left || at >= 10, now, &mut random);
                let near: f64 = counts(&mut balancer, 20, 1000, now, &mut random)[..10]
                    .iter()
                    .sum();
                assert!((near - expected).abs() < 0.01, "{kind:?}, {left} left: {near}");
            }
        }
    }
}

#[test]
fn shares_of_localities_hold_whatever_the_numbers_of_endpoints() {
    let now = Instant::now();
    let mut list = endpoints(12);
    for (at, endpoint) in list.iter_mut().enumerate() {
        endpoint.locality = ["r1/z1", "r1/z2", "r2/z1"][if at < 1 { 0 } else { 1 + at % 2 }].into();
    }
    let spec = BalancerSpec {
        spread: Spread::Shares(vec![
            (Locality::parse("r1/z1"), 70),
            (Locality::parse("r1/z2"), 20),
            (Locality::parse("r2"), 10),
        ]),
        ..BalancerSpec::default()
    };
    let share = |counts: &[f64], locality: &str| -> f64 {
        let of = list
            .iter()
            .zip(counts)
            .filter(|(endpoint, _)| &*endpoint.locality == locality);
        of.map(|(_, count)| count).sum()
    };
    for seed in 0..200 {
        let mut random = Random::from_seed(seed);
        let mut balancer = Balancer::new(&spec, &list, now, &mut random);
        let before = counts(&mut balancer, 12, 1000, now, &mut random);
        for (locality, expected) in [("r1/z1", 0.7), ("r1/z2", 0.2), ("r2/z1", 0.1)] {
            assert!(
                (share(&before, locality) - expected).abs() < 0.005,
                "seed {seed}: {before:?}"
            );
        }
        balancer.rebuild(|at| at != 0, now, &mut random);
        let after = counts(&mut balancer, 12, 900, now, &mut random);
        assert_eq!(after[0], 0.0);
        assert!(
            (share(&after, "r1/z2") - 2.0 / 3.0).abs() < 0.005,
            "seed {seed}: {after:?}"
        );
    }
}

#[test]
fn one_that_comes_warms_up() {
    let start = Instant::now();
    let second = Duration::from_secs(1);
    for kind in [BalancerKind::RoundRobin, BalancerKind::LeastRequest] {
        for seed in 0..100 {
            let mut random = Random::from_seed(seed);
            let spec = BalancerSpec {
                kind,
                warmup: Some(Warmup::new(second * 100, 10.0, 1.0)),
                ..BalancerSpec::default()
            };
            let mut balancer = Balancer::new(&spec, &endpoints(4), start, &mut random);
            // The others are warm when it comes.
            let came = start + second * 1000;
            balancer.replace(&spec, &endpoints(5), |_| true, came, &mut random);
            for (after, factor) in [(0, 0.1), (50, 0.5), (90, 0.9), (101, 1.0)] {
                let now = came + second * after;
                let share = counts(&mut balancer, 5, 4000, now, &mut random)[4];
                let expected = factor / (4.0 + factor);
                assert!(
                    (share - expected).abs() < 0.03,
                    "{kind:?} after {after} s: {share}"
                );
            }
            // Away and back: it is new again.
            balancer.rebuild(|at| at != 0, came + second * 200, &mut random);
            balancer.rebuild(|_| true, came + second * 300, &mut random);
            let now = came + second * 300;
            let share = counts(&mut balancer, 5, 4000, now, &mut random)[0];
            assert!((share - 0.1 / 4.1).abs() < 0.01, "{kind:?}: {share}");
        }
    }
}

/// Requests at a time that one endpoint works on; the others wait at it.
const WORKERS: usize = 8;
const SHARDS: usize = 2;

/// Sends requests to ten endpoints, of which the first takes `slowness` times as long, at 70 % of what they can do; the
/// latencies in milliseconds at the median and at the 99th percentile.
fn simulate(kind: BalancerKind, slowness: f64, requests: usize, seed: u64) -> (f64, f64) {
    const MEAN_MS: f64 = 10.0;
    let list = endpoints(10);
    let start = Instant::now();
    let at_ms = |ms: f64| start + Duration::from_secs_f64(ms / 1000.0);
    let mut random = Random::from_seed(seed);
    let mut chance = Random::from_seed(seed + 1_000_000);
    let mut exponential = |mean: f64| {
        let uniform = (chance.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        -mean * (1.0 - uniform).ln()
    };
    let mut shards: Vec<(Balancer, Vec<u32>)> = (0..SHARDS)
        .map(|_| {
            (
                Balancer::new(&kind.into(), &list, start, &mut random),
                vec![0; list.len()],
            )
        })
        .collect();
    let capacity = (9.0 + 1.0 / slowness) * WORKERS as f64 / MEAN_MS;
    let gap = 1.0 / (0.7 * capacity);
    let mut busy = vec![0usize; list.len()];
    let mut waiting: Vec<VecDeque<(usize, f64)>> = vec![VecDeque::new(); list.len()];
    // Ends of work: time in nanoseconds, endpoint, shard, arrival.
    let mut ends: BinaryHeap<Reverse<(u64, usize, usize, u64)>> = BinaryHeap::new();
    let ns = |ms: f64| (ms * 1e6) as u64;
    let mut latencies = Vec::with_capacity(requests);
    let (mut sent, mut next_arrival) = (0, 0.0);
    loop {
        let arrival = (sent < requests).then(|| ns(next_arrival));
        let end = ends.peek().map(|Reverse((time, ..))| *time);
        match (arrival, end) {
            (None, None) => break,
            (Some(arrival), end) if end.is_none_or(|end| arrival <= end) => {
                let shard = sent % SHARDS;
                let (balancer, active) = &mut shards[shard];
                let now = at_ms(next_arrival);
                let at = balancer
                    .pick(None, &active[..], |_| false, now, &mut random)
                    .unwrap();
                active[at] += 1;
                if busy[at] < WORKERS {
                    busy[at] += 1;
                    let mean = if at == 0 { MEAN_MS * slowness } else { MEAN_MS };
                    ends.push(Reverse((
                        ns(next_arrival + exponential(mean)),
                        at,
                        shard,
                        arrival,
                    )));
                } else {
                    waiting[at].push_back((shard, next_arrival));
                }
                sent += 1;
                next_arrival += exponential(gap);
            }
            _ => {
                let Some(Reverse((time, at, shard, arrival))) = ends.pop() else {
                    break;
                };
                let latency = (time - arrival) as f64 / 1e6;
                let (balancer, active) = &mut shards[shard];
                active[at] -= 1;
                let (took, now) = (
                    Duration::from_secs_f64(latency / 1000.0),
                    at_ms(time as f64 / 1e6),
                );
                balancer.observe(at, Some(took), now);
                // What it takes until the first estimates are there is not looked at.
                if latencies.len() < requests / 10 {
                    latencies.push(f64::NAN);
                } else {
                    latencies.push(latency);
                }
                match waiting[at].pop_front() {
                    None => busy[at] -= 1,
                    Some((shard, arrived)) => {
                        let mean = if at == 0 { MEAN_MS * slowness } else { MEAN_MS };
                        let ends_at = time + ns(exponential(mean));
                        ends.push(Reverse((ends_at, at, shard, ns(arrived))));
                    }
                }
            }
        }
    }
    let mut known: Vec<f64> = latencies
        .into_iter()
        .filter(|latency| !latency.is_nan())
        .collect();
    known.sort_by(f64::total_cmp);
    (known[known.len() / 2], known[known.len() * 99 / 100])
}

#[test]
fn balancers_that_learn_keep_away_from_a_slow_endpoint() {
    let kinds = [
        (BalancerKind::RoundRobin, "ROUND_ROBIN"),
        (BalancerKind::Random, "RANDOM"),
        (BalancerKind::LeastRequest, "LEAST_REQUEST"),
        (BalancerKind::PeakEwma, "PEAK_EWMA"),
        (BalancerKind::Prequal, "PREQUAL"),
    ];
    println!("ten endpoints of {WORKERS} workers and 10 ms, one of them slower, 70 % load, {SHARDS} shards");
    println!("| one is slower by | balancer | median ms | p99 ms |\n|---|---|---|---|");
    for slowness in [1.0, 3.0, 10.0] {
        let mut p99 = BTreeMap::new();
        for (kind, name) in kinds {
            const SEEDS: u64 = 5;
            let runs: Vec<(f64, f64)> = (0..SEEDS)
                .map(|seed| simulate(kind, slowness, 40_000, seed))
                .collect();
            let mean = |of: fn(&(f64, f64)) -> f64| runs.iter().map(of).sum::<f64>() / SEEDS as f64;
            let (median, tail) = (mean(|run| run.0), mean(|run| run.1));
            println!("| {slowness} | {name} | {median:.1} | {tail:.1} |");
            p99.insert(name, tail);
        }
        if slowness > 2.0 {
            assert!(
                p99["ROUND_ROBIN"] > 3.0 * p99["LEAST_REQUEST"],
                "{slowness}: {p99:?}"
            );
            assert!(p99["LEAST_REQUEST"] > p99["PEAK_EWMA"], "{slowness}: {p99:?}");
            assert!(p99["PEAK_EWMA"] > p99["PREQUAL"], "{slowness}: {p99:?}");
        }
    }
}
