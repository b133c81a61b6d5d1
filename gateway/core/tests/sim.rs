//! A simulation of several shards with one cluster: seeded, without threads, sockets or a clock of its own.
//!
//! Requests come, wait, connect, fail, are given up and end in an order that follows from a seed alone; connections fall
//! idle, permits are handed from shard to shard, limits and endpoints change under way. After each step what must hold is
//! looked at. `ISTHMUS_SIM_SEED=7` replays one seed, `ISTHMUS_SIM_SEEDS=1000` tries more than usual.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a simulation that cannot go on has failed"
)]

use isthmus_core::cluster::balancer::BalancerKind;
use isthmus_core::cluster::breaker::{Victim, WaiterId};
use isthmus_core::cluster::outlier::{OutlierPolicy, Signal};
use isthmus_core::cluster::retry_budget::RetryLimits;
use isthmus_core::cluster::{
    Acquired, CONNECT_TIMEOUT, Choice, Cluster, ClusterSpec, ConnId, EndpointId, IDLE_TIMEOUT,
};
use isthmus_core::endpoint::{Endpoint, EndpointSet};
use isthmus_core::name::ClusterKey;
use isthmus_core::protocol::{Protocol, UpstreamHttp};
use isthmus_core::random::Random;
use isthmus_core::shared::{Bell, ClusterShared, Limits, Permit};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SHARDS: usize = 3;
const STEPS: usize = 400;

/// A defect that is planted in what drives the shards, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A connection that could not be made keeps its permit.
    PermitLostOnFailure,
    /// A client that goes away keeps the permit of its connection.
    PermitLostOnAbort,
    /// Idle connections are kept whoever wants them.
    NeverReclaimed,
    /// A shard does not hear that it was handed something.
    BellNotHeard,
    /// A version takes those that wait with it.
    WaitersLostOnSwap,
    /// One more than may be.
    OneTooMany,
    /// What was ejected is picked all the same.
    EjectedIsPicked,
}

#[derive(Debug)]
struct Bells([AtomicBool; SHARDS]);

impl Bell for Bells {
    fn ring(&self, shard: usize) {
        self.0[shard].store(true, Ordering::Release);
    }
}

struct Active {
    shard: usize,
    endpoint: EndpointId,
    address: SocketAddr,
    permit: Permit,
}

struct World {
    seed: u64,
    defect: Defect,
    random: Random,
    now: Instant,
    bells: Arc<Bells>,
    spec: Arc<ClusterSpec>,
    shards: Vec<Cluster>,
    idle: Vec<HashMap<u32, (SocketAddr, Permit)>>,
    waiting: Vec<Vec<WaiterId>>,
    active: Vec<Active>,
    lost: Vec<Permit>,
    next_conn: u32,
    limit: u32,
    /// Connections above a limit that has become smaller go one by one.
    most: u32,
}

fn spec(limit: u32, ports: &[u16]) -> Arc<ClusterSpec> {
    let endpoints = ports
        .iter()
        .map(|port| Endpoint::new(([127, 0, 0, 1], *port).into()));
    Arc::new(ClusterSpec {
        retries: RetryLimits::default(),
        key: ClusterKey::outbound(80, "", "h"),
        endpoints: Arc::new(EndpointSet::new(endpoints)),
        protocol: Protocol::Http,
        http: UpstreamHttp::default(),
        balancer: BalancerKind::RoundRobin.into(),
        connect_timeout: CONNECT_TIMEOUT,
        idle_timeout: IDLE_TIMEOUT,
        max_requests_per_connection: 0,
        namespace: "default".into(),
        tls: None,
        tcp_idle_timeout: Duration::ZERO,
        max_connection_duration: Duration::ZERO,
        keepalive: None,
        proxy_protocol: None,
        tunnel: None,
        dynamic: None,
        limits: Limits {
            connections: limit,
            pending: 8,
            ..Limits::default()
        },
        outlier: Some(OutlierPolicy {
            consecutive_5xx: 3,
            consecutive_gateway: 0,
            consecutive_local: 0,
            split: false,
            codes: Box::default(),
            interval: Duration::from_millis(100),
            base: Duration::from_millis(500),
            max_percent: 40,
        }),
    })
}

impl World {
    fn new(seed: u64, defect: Defect) -> Self {
        let mut random = Random::from_seed(seed);
        let (now, limit) = (Instant::now(), 1 + random.below(4) as u32);
        let bells = Arc::new(Bells(std::array::from_fn(|_| AtomicBool::new(false))));
        let spec = spec(limit, &[1, 2, 3]);
        let shared = ClusterShared::for_shards(spec.limits, SHARDS, Arc::clone(&bells) as _, now);
        let addresses = spec.endpoints.endpoints.iter().map(|endpoint| endpoint.address);
        let shared = Arc::new(shared.with_endpoints(addresses));
        if defect == Defect::OneTooMany {
            shared.connections.set_limit(limit + 1);
        }
        let shards = (0..SHARDS)
            .map(|shard| {
                Cluster::new(Arc::clone(&spec), Arc::clone(&shared), now, &mut random).on_shard(shard)
            })
            .collect();
        Self {
            seed,
            defect,
            random,
            now,
            bells,
            spec,
            shards,
            idle: (0..SHARDS).map(|_| HashMap::new()).collect(),
            waiting: vec![Vec::new(); SHARDS],
            active: Vec::new(),
            lost: Vec::new(),
            next_conn: 0,
            limit,
            most: limit,
        }
    }

    /// A request looks for a connection, with its place if it has waited; answers whether it has begun or is refused.
    fn look(&mut self, shard: usize, place: Option<WaiterId>) -> bool {
        if !self.shards[shard].is_turn(place) {
            return self.join(shard, place);
        }
        loop {
            let choice = Choice {
                hash: None,
                avoid: &[],
                now: self.now,
            };
            match self.shards[shard].acquire(choice, false, &mut self.random) {
                Acquired::Use { conn, endpoint, .. } => {
                    let (address, permit) = self.idle[shard].remove(&conn.0).expect("an idle connection");
                    self.begin(shard, endpoint, address, permit);
                    return true;
                }
                Acquired::Open {
                    endpoint,
                    address,
                    permit,
                } => {
                    self.begin(shard, endpoint, address, permit);
                    return true;
                }
                Acquired::NoEndpoint => return true,
                Acquired::Overflow => match self.shards[shard].give_up_idle() {
                    Some(victim) => {
                        self.close(shard, victim);
                        self.shards[shard].take_grants();
                    }
                    None => return self.join(shard, place),
                },
            }
        }
    }

    fn join(&mut self, shard: usize, place: Option<WaiterId>) -> bool {
        match place {
            Some(id) => {
                self.shards[shard].wait_on(id);
                false
            }
            None => match self.shards[shard].wait() {
                Ok(id) => {
                    self.waiting[shard].push(id);
                    false
                }
                Err(_) => true,
            },
        }
    }

    fn begin(&mut self, shard: usize, endpoint: EndpointId, address: SocketAddr, permit: Permit) {
        let all = &self.shards[shard].shared().endpoints;
        let worst = all.iter().find(|(_, known)| known.is_ejected());
        let address = match (self.defect, worst) {
            (Defect::EjectedIsPicked, Some((worst, _))) => *worst,
            _ => address,
        };
        let known = all.get(&address);
        let known =
            known.unwrap_or_else(|| panic!("seed {}: {address} is removed and was picked", self.seed));
        let is_picked = !known.is_ejected()
            || self.shards[shard].shared().ejections.count() as usize >= self.spec.endpoints.endpoints.len();
        assert!(
            is_picked,
            "seed {}: {address} is ejected and was picked",
            self.seed
        );
        self.active.push(Active {
            shard,
            endpoint,
            address,
            permit,
        });
    }

    fn close(&mut self, shard: usize, victim: Victim) {
        if let Victim::Idle(conn) = victim {
            self.idle[shard].remove(&conn.0).expect("an idle connection");
        }
    }

    /// The first of a queue looks until it finds nothing.
    fn serve(&mut self, shard: usize) {
        while let Some(first) = self.shards[shard].first_waiter() {
            if self.waiting[shard].contains(&first) && !self.look(shard, Some(first)) {
                return;
            }
            if !self.waiting[shard].contains(&first) {
                return;
            }
            self.waiting[shard].retain(|id| *id != first);
            self.shards[shard].leave(first);
        }
    }

    fn answer_bell(&mut self, shard: usize) {
        if self.defect == Defect::BellNotHeard || !self.bells.0[shard].swap(false, Ordering::AcqRel) {
            return;
        }
        self.shards[shard].take_grants();
        if self.defect != Defect::NeverReclaimed {
            for victim in self.shards[shard].reclaim() {
                self.close(shard, victim);
            }
        }
        self.serve(shard);
    }

    fn end(&mut self, at: usize, how: u64) {
        let Active {
            shard,
            endpoint,
            address,
            permit,
        } = self.active.swap_remove(at);
        let now = self.now;
        let signal = match how {
            0..=5 => Signal::Status(200),
            6 => Signal::Status(500),
            _ => Signal::NoAnswer,
        };
        let before = self.shards[shard].shared().ejections.count();
        let ejected = self.shards[shard].record(endpoint, signal, now).is_some();
        let most = self
            .spec
            .outlier
            .as_ref()
            .unwrap()
            .ejected_max(self.spec.endpoints.endpoints.len());
        assert!(
            !ejected || before < most,
            "seed {}: too many are ejected",
            self.seed
        );
        match how {
            0..=6 if !self.shards[shard].is_turn_over(now) || self.defect == Defect::NeverReclaimed => {
                self.next_conn += 1;
                let conn = ConnId(self.next_conn);
                if self.shards[shard].release(endpoint, Some(conn), now).is_none() {
                    self.idle[shard].insert(self.next_conn, (address, permit));
                    self.shards[shard].call_first();
                }
            }
            how => {
                match (self.defect, how) {
                    (Defect::PermitLostOnFailure, 7..) => self.lost.push(permit),
                    _ => drop(permit),
                }
                self.shards[shard].release(endpoint, None, now);
            }
        }
        self.serve(shard);
    }

    /// A version with another limit and other endpoints.
    fn swap(&mut self) {
        self.limit = 1 + self.random.below(4) as u32;
        let first = 1 + self.random.below(3) as u16;
        self.spec = spec(self.limit, &[first, first + 1, first + 2]);
        let shared = self.shards[0].shared();
        shared.set_limits(self.spec.limits);
        let addresses = self
            .spec
            .endpoints
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address);
        let shared = Arc::new(shared.with_endpoints(addresses));
        for shard in 0..SHARDS {
            self.shards[shard].share_counts(Arc::clone(&shared));
            let orphans = self.shards[shard].reconcile(Arc::clone(&self.spec), self.now, &mut self.random);
            for conn in orphans {
                self.close(shard, Victim::Idle(conn));
            }
            if self.defect == Defect::WaitersLostOnSwap {
                self.waiting[shard].clear();
            }
            self.serve(shard);
        }
    }

    fn check(&mut self) {
        let live = self.active.len() + self.idle.iter().map(HashMap::len).sum::<usize>();
        let connections = &self.shards[0].shared().connections;
        let held = connections.held();
        self.most = self.limit.max(self.most.min(held));
        assert!(
            live as u32 <= self.most,
            "seed {}: {live} connections, {} may be",
            self.seed,
            self.most
        );
        assert!(
            held >= live as u32,
            "seed {}: a connection without a permit",
            self.seed
        );
        let waiting = self.waiting.iter().map(Vec::len).sum::<usize>();
        assert!(
            self.shards[0].shared().pending.held() as usize <= waiting.max(8),
            "seed {}",
            self.seed
        );
    }

    /// All that has begun ends, one after the other: then nobody waits, and nothing is held but by idle connections.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            (0..SHARDS).for_each(|shard| self.answer_bell(shard));
            self.now += Duration::from_millis(25);
            match self.active.is_empty() {
                true if self.bells.0.iter().all(|bell| !bell.load(Ordering::Acquire)) => break,
                true if self.defect == Defect::BellNotHeard => break,
                true => {}
                false => self.end(0, 0),
            }
            self.check();
        }
        let queued: usize = self.shards.iter().map(Cluster::waiting).sum();
        assert_eq!(queued, 0, "seed {}: somebody waits for ever", self.seed);
        let idle: usize = self.idle.iter().map(HashMap::len).sum();
        let shared = self.shards[0].shared();
        let held = (shared.connections.held() as usize, shared.pending.held());
        assert_eq!(
            held,
            (idle, 0),
            "seed {}: something is held for nobody",
            self.seed
        );
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.now += Duration::from_millis(self.random.below(20));
            let shard = self.random.below(SHARDS as u64) as usize;
            match self.random.below(16) {
                0..=5 => {
                    self.look(shard, None);
                }
                6..=9 if !self.active.is_empty() => {
                    let at = self.random.below(self.active.len() as u64) as usize;
                    let how = self.random.below(9);
                    self.end(at, how);
                }
                10 if !self.active.is_empty() => {
                    let Active {
                        shard,
                        endpoint,
                        permit,
                        ..
                    } = self.active.swap_remove(0);
                    match self.defect {
                        Defect::PermitLostOnAbort => self.lost.push(permit),
                        _ => drop(permit),
                    }
                    self.shards[shard].release(endpoint, None, self.now);
                }
                11 if !self.waiting[shard].is_empty() => {
                    let at = self.random.below(self.waiting[shard].len() as u64) as usize;
                    let gone = self.waiting[shard].remove(at);
                    self.shards[shard].leave(gone);
                    self.serve(shard);
                }
                12 if self.random.below(6) == 0 => self.swap(),
                13 => drop(self.shards[shard].sweep_outliers(self.now)),
                _ => self.answer_bell(shard),
            }
            self.check();
        }
        self.settle();
    }
}

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("ISTHMUS_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("ISTHMUS_SIM_SEEDS").unwrap_or(256)).collect(),
    }
}

#[test]
fn limits_and_ejections_hold_in_every_order_of_events() {
    for seed in seeds() {
        World::new(seed, Defect::None).run();
    }
}

#[test]
fn planted_defects_are_found() {
    for defect in [
        Defect::PermitLostOnFailure,
        Defect::PermitLostOnAbort,
        Defect::NeverReclaimed,
        Defect::BellNotHeard,
        Defect::WaitersLostOnSwap,
        Defect::OneTooMany,
        Defect::EjectedIsPicked,
    ] {
        let found = (0..64).any(|seed| {
            let run = std::panic::AssertUnwindSafe(|| World::new(seed, defect).run());
            std::panic::catch_unwind(run).is_err()
        });
        assert!(found, "{defect:?} is not found");
    }
}
