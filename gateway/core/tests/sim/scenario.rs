//! What one seed plays: which policies, endpoints and shards there are.

use isthmus_core::attempt::{RetryOn, RetryPolicy};
use isthmus_core::cluster::balancer::{BalancerKind, BalancerSpec};
use isthmus_core::cluster::hash::{HashKey, Hashing, TableKind};
use isthmus_core::cluster::outlier::OutlierPolicy;
use isthmus_core::cluster::retry_budget::{BUDGET_INTERVAL, Hedges, RetryBudget, RetryLimits};
use isthmus_core::cluster::warmup::Warmup;
use isthmus_core::cluster::{CONNECT_TIMEOUT, ClusterSpec};
use isthmus_core::endpoint::{Endpoint, EndpointSet};
use isthmus_core::name::ClusterKey;
use isthmus_core::protocol::{Protocol, UpstreamHttp};
use isthmus_core::random::Random;
use isthmus_core::shared::Limits;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long the clients keep coming, in milliseconds.
pub(crate) const TRAFFIC_MS: u64 = 6_000;
/// How long an endpoint warms up where any does.
pub(crate) const WARMUP_MS: u64 = 1_000;

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An endpoint, by its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) port: u16,
    pub(crate) weight: u32,
    pub(crate) level: u32,
}

pub(crate) fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) shards: usize,
    pub(crate) is_http2: bool,
    pub(crate) kind: BalancerKind,
    pub(crate) table: Option<TableKind>,
    pub(crate) warms: bool,
    pub(crate) panic_percent: u32,
    levels: u32,
    is_weighted: bool,
    pub(crate) is_limited: bool,
    pub(crate) outlier: Option<OutlierPolicy>,
    pub(crate) retries: RetryLimits,
    pub(crate) policies: [RetryPolicy; 2],
    pub(crate) total: Option<Duration>,
    idle_timeout: Duration,
    pub(crate) requests_max: u32,
    /// How far requests are apart on average.
    pub(crate) gap: u64,
    /// Whether upstreams misbehave at all.
    pub(crate) is_rough: bool,
    pub(crate) first: Vec<Spot>,
}

fn one_in(random: &mut Random, n: u64) -> bool {
    random.below(n) == 0
}

fn policy(random: &mut Random) -> RetryPolicy {
    let words = [
        "5xx",
        "gateway-error,reset",
        "connect-failure,refused-stream,unavailable,cancelled,reset-before-request",
        "retriable-4xx,503,429",
        "",
    ];
    let (on, codes) = RetryOn::parse(words[random.below(words.len() as u64) as usize]);
    RetryPolicy {
        retries: random.below(5) as u32,
        per_try_timeout: one_in(random, 2).then(|| ms(5 + random.below(400))),
        backoff: ms(1 + random.below(30)),
        on,
        status_codes: codes.into(),
        ignore_previous_hosts: one_in(random, 4).then_some(false),
        remote_localities: one_in(random, 3),
    }
}

fn outlier(random: &mut Random) -> OutlierPolicy {
    OutlierPolicy {
        consecutive_5xx: random.below(5) as u32,
        consecutive_gateway: random.below(4) as u32,
        consecutive_local: random.below(4) as u32,
        split: one_in(random, 3),
        codes: if one_in(random, 4) {
            [429, 503].into()
        } else {
            Box::default()
        },
        interval: ms(100),
        base: ms(200 + random.below(400)),
        max_percent: [10, 40, 60, 100][random.below(4) as usize],
    }
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::from_seed(seed ^ 0x5ce4_a210);
        let r = &mut random;
        let kinds = [
            BalancerKind::RoundRobin,
            BalancerKind::RoundRobin,
            BalancerKind::Random,
            BalancerKind::LeastRequest,
            BalancerKind::PeakEwma,
            BalancerKind::Prequal,
        ];
        let table = one_in(r, 5).then(|| match r.below(2) {
            0 => TableKind::Ring(32),
            _ => TableKind::Maglev(251),
        });
        let budget = one_in(r, 2).then(|| RetryBudget {
            per_million: r.below(1_000_001) as u32,
            min: r.below(4) as u32,
            interval: BUDGET_INTERVAL,
        });
        let mut scenario = Self {
            seed,
            shards: 1 + r.below(4) as usize,
            is_http2: one_in(r, 3),
            kind: kinds[r.below(kinds.len() as u64) as usize],
            table,
            warms: one_in(r, 4),
            panic_percent: [0, 0, 50, 70][r.below(4) as usize],
            levels: 1 + r.below(2) as u32,
            is_weighted: table.is_none() && one_in(r, 3),
            is_limited: one_in(r, 2),
            outlier: (!one_in(r, 3)).then(|| outlier(r)),
            retries: RetryLimits {
                concurrent: if one_in(r, 2) { r.below(4) as u32 } else { u32::MAX },
                budget,
                hedges: Hedges(r.below(2) as u32),
            },
            policies: [policy(r), policy(r)],
            total: (!one_in(r, 3)).then(|| ms(30 + r.below(900))),
            idle_timeout: ms([0, 200, 60_000][r.below(3) as usize]),
            requests_max: [0, 0, 1, 3][r.below(4) as usize],
            gap: 5 + r.below(40),
            is_rough: !one_in(r, 6),
            first: Vec::new(),
        };
        let count = 1 + r.below(7) as u16;
        scenario.first = (1..=count).map(|port| scenario.spot(port)).collect();
        scenario
    }

    /// An endpoint's share and level follow from its port: they are the same whenever it comes.
    pub(crate) fn spot(&self, port: u16) -> Spot {
        Spot {
            port,
            weight: if self.is_weighted {
                1 + u32::from(port) % 3
            } else {
                1
            },
            // The odd are near; a level without endpoints is none.
            level: if self.levels > 1 {
                u32::from(port.is_multiple_of(2))
            } else {
                0
            },
        }
    }

    pub(crate) fn limits(&self, random: &mut Random) -> Limits {
        let requests = match random.below(3) {
            0 => 1 + random.below(6) as u32,
            _ => u32::MAX,
        };
        match self.is_limited {
            false => Limits {
                requests,
                ..Limits::default()
            },
            true => Limits {
                connections: 1 + random.below(5) as u32,
                pending: 1 + random.below(8) as u32,
                requests,
            },
        }
    }

    /// The specification of a version.
    pub(crate) fn spec(&self, spots: &[Spot], limits: Limits) -> ClusterSpec {
        let mut levels: Vec<u32> = spots.iter().map(|spot| spot.level).collect();
        levels.sort_unstable();
        levels.dedup();
        let endpoints = spots.iter().map(|spot| Endpoint {
            weight: spot.weight,
            level: levels.binary_search(&spot.level).unwrap_or(0) as u32,
            ..Endpoint::new(address(spot.port))
        });
        ClusterSpec {
            key: ClusterKey::outbound(80, "", "h"),
            endpoints: Arc::new(EndpointSet::new(endpoints)),
            protocol: Protocol::Http,
            http: UpstreamHttp {
                max_concurrent_streams: self.is_http2.then_some(3),
                ..UpstreamHttp::default()
            },
            balancer: BalancerSpec {
                hashing: self.table.map(|table| Hashing {
                    key: HashKey::Path,
                    table,
                }),
                warmup: self.warms.then(|| Warmup::new(ms(WARMUP_MS), 10.0, 1.0)),
                panic_percent: self.panic_percent,
                ..self.kind.into()
            },
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: self.idle_timeout,
            max_requests_per_connection: self.requests_max,
            namespace: "default".into(),
            tls: None,
            tcp_idle_timeout: Duration::ZERO,
            max_connection_duration: Duration::ZERO,
            keepalive: None,
            proxy_protocol: None,
            tunnel: None,
            dynamic: None,
            retries: self.retries,
            limits,
            health: None,
            outlier: self.outlier.clone(),
        }
    }
}
