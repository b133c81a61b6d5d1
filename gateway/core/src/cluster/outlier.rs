//! Outlier detection: endpoints that fail several times in a row take no requests for a while (Istio
//! `outlierDetection`).
//!
//! What counts as a failure is decided here; the counts themselves are shared by all shards ([`crate::shared`]), so that a
//! handful of failures is the same handful however the requests are spread, and an ejection holds everywhere at once.
//! Whether enough endpoints are left is the balancer's affair (`minHealthPercent`).

use super::{Cluster, EndpointId};
use crate::random::Random;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The longest ejection, unless the base time is longer (Envoy `max_ejection_time`).
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// When endpoints are ejected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutlierPolicy {
    /// Failures of any kind in a row (`consecutive5xxErrors`); 0 for never.
    pub consecutive_5xx: u32,
    /// Answers 502, 503 and 504 in a row (`consecutiveGatewayErrors`); 0 for never.
    pub consecutive_gateway: u32,
    /// Requests in a row that had no answer (`consecutiveLocalOriginFailures`); 0 for never. Only with `split`.
    pub consecutive_local: u32,
    /// Whether requests without an answer are counted apart, and not as 5xx (`splitExternalLocalOriginErrors`).
    pub split: bool,
    /// The statuses that are failures (`outlierDetectionHttpErrorCodes`); empty for all from 500.
    pub codes: Box<[u16]>,
    /// Time between two looks at who may come back, and after which one that does well is forgiven one ejection.
    pub interval: Duration,
    /// How long the first ejection lasts; each in a row lasts once more as long (`baseEjectionTime`).
    pub base: Duration,
    /// Of a hundred endpoints, how many may be ejected; one of two or more always may.
    pub max_percent: u32,
}

/// What an attempt says about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// It answered with this status; that of a call of gRPC as HTTP would say it.
    Status(u16),
    /// It did not answer: no connection, a reset, nothing in time.
    NoAnswer,
    /// It took a connection of bytes.
    Connected,
}

/// An endpoint that was ejected, or is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub address: SocketAddr,
    /// For how long it was ejected; None when it is back.
    pub ejected: Option<Duration>,
}

/// The streaks that are counted.
const ANY: usize = 0;
const GATEWAY: usize = 1;
const LOCAL: usize = 2;

impl OutlierPolicy {
    /// What a signal does to each streak: true when it is a failure, false when a success, None when it says nothing.
    fn judge(&self, signal: Signal) -> [Option<bool>; 3] {
        match signal {
            Signal::Status(status) => {
                let fails = if self.codes.is_empty() {
                    status >= 500
                } else {
                    self.codes.contains(&status)
                };
                let gateway = fails && matches!(status, 502..=504);
                [Some(fails), Some(gateway), self.split.then_some(false)]
            }
            Signal::NoAnswer if self.split => [None, None, Some(true)],
            Signal::NoAnswer => [Some(true), Some(true), None],
            Signal::Connected if self.split => [None, None, Some(false)],
            Signal::Connected => [Some(false), Some(false), None],
        }
    }

    fn most_in_a_row(&self, streak: usize) -> u32 {
        match streak {
            ANY => self.consecutive_5xx,
            GATEWAY => self.consecutive_gateway,
            LOCAL => self.consecutive_local,
            _ => 0,
        }
    }

    /// How many of so many endpoints may be ejected.
    pub fn ejected_max(&self, endpoints: usize) -> u32 {
        let part = endpoints as u64 * u64::from(self.max_percent.min(100)) / 100;
        let least = u64::from(endpoints >= 2);
        u32::try_from(part.max(least)).unwrap_or(u32::MAX)
    }

    /// How long an ejection lasts that is the `times`th in a row.
    pub fn ejection_time(&self, times: u32) -> Duration {
        self.base.saturating_mul(times).min(EJECTION_MAX.max(self.base))
    }
}

impl Cluster {
    /// Notes what an attempt says about its endpoint; answers whether that is ejected now.
    pub fn record(&mut self, endpoint: EndpointId, signal: Signal, now: Instant) -> Option<Change> {
        let policy = self.spec.outlier.as_ref()?;
        let state = self
            .positions
            .get(&endpoint)
            .and_then(|at| self.endpoints.get(*at))?;
        let mut is_outlier = false;
        for (streak, fails) in policy.judge(signal).into_iter().enumerate() {
            match fails {
                Some(true) => is_outlier |= state.health.fail(streak, policy.most_in_a_row(streak)),
                Some(false) => state.health.succeed(streak),
                None => {}
            }
        }
        if !is_outlier {
            return None;
        }
        let most = policy.ejected_max(self.endpoints.len());
        let time = |times| policy.ejection_time(times);
        let ejected = self.shared.ejections.eject(&state.health, most, now, time)?;
        Some(Change {
            address: state.address,
            ejected: Some(ejected),
        })
    }

    /// Looks who may come back, if it is time.
    pub fn sweep_outliers(&mut self, now: Instant) -> Vec<Change> {
        let Some(policy) = &self.spec.outlier else {
            return Vec::new();
        };
        if self
            .swept
            .is_some_and(|swept| now.saturating_duration_since(swept) < policy.interval)
        {
            return Vec::new();
        }
        self.swept = Some(now);
        let back = self
            .endpoints
            .iter()
            .filter(|state| self.shared.ejections.look(&state.health, now, policy.interval));
        back.map(|state| Change {
            address: state.address,
            ejected: None,
        })
        .collect()
    }

    /// Has the balancer take over which endpoints are available, if that has changed on any shard. Each pick begins with
    /// it; a shard that serves nobody calls it from time to time, so that its next request need not.
    pub fn refresh(&mut self, now: Instant, random: &mut Random) {
        if !self.detects {
            return;
        }
        let epoch = self.shared.ejections.epoch();
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        let endpoints = &self.endpoints;
        let available = |at: usize| endpoints.get(at).is_some_and(|state| state.health.is_available());
        self.balancer.rebuild(available, now, random);
    }

    /// The change of what is available that picks of this shard obey ([`crate::shared::Ejections::epoch`]).
    pub fn epoch(&self) -> u32 {
        match self.detects {
            true => self.epoch,
            // All endpoints are taken, whatever has changed.
            false => self.shared.ejections.epoch(),
        }
    }

    /// Whether anything finds out that an endpoint is not available: outlier detection or health checks.
    pub fn detects(&self) -> bool {
        self.detects
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{any, spec};
    use super::super::{Acquired, ClusterSpec};
    use super::*;
    use crate::shared::{Bell, ClusterShared, Limits};
    use std::sync::Arc;

    #[derive(Debug)]
    struct Silent;

    impl Bell for Silent {
        fn ring(&self, _shard: usize) {}
    }

    fn policy() -> OutlierPolicy {
        OutlierPolicy {
            consecutive_5xx: 3,
            consecutive_gateway: 0,
            consecutive_local: 0,
            split: false,
            codes: Box::default(),
            interval: Duration::from_secs(1),
            base: Duration::from_secs(10),
            max_percent: 10,
        }
    }

    fn shards(policy: OutlierPolicy, ports: &[u16], now: Instant) -> (Vec<Cluster>, Random) {
        let mut random = Random::from_seed(1);
        let spec = Arc::new(ClusterSpec {
            outlier: Some(policy),
            ..ClusterSpec::clone(&spec(ports))
        });
        let addresses = spec.endpoints.endpoints.iter().map(|endpoint| endpoint.address);
        let shared = ClusterShared::for_shards(Limits::default(), 2, Arc::new(Silent), now);
        let shared = Arc::new(shared.with_endpoints(addresses));
        let one =
            |shard| Cluster::new(Arc::clone(&spec), Arc::clone(&shared), now, &mut random).on_shard(shard);
        ((0..2).map(one).collect(), random)
    }

    fn id_of(cluster: &Cluster, port: u16) -> EndpointId {
        let found = cluster
            .endpoints
            .iter()
            .find(|state| state.address.port() == port);
        found.unwrap().id
    }

    fn picks(cluster: &mut Cluster, now: Instant, random: &mut Random) -> Vec<u16> {
        let mut ports: Vec<u16> = (0..12)
            .map(
                |_| match cluster.acquire(super::super::Choice { now, ..any() }, true, random) {
                    Acquired::Open {
                        endpoint, address, ..
                    } => {
                        cluster.release(endpoint, None, now);
                        address.port()
                    }
                    other => panic!("{other:?}"),
                },
            )
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    #[test]
    fn failures_on_all_shards_are_one_streak_and_an_ejection_holds_on_all() {
        let now = Instant::now();
        let (mut all, mut random) = shards(policy(), &[1, 2, 3], now);
        let id = id_of(&all[0], 2);
        assert_eq!(all[0].record(id, Signal::Status(500), now), None);
        assert_eq!(all[1].record(id, Signal::Status(503), now), None);
        let change = all[0].record(id, Signal::NoAnswer, now).unwrap();
        assert_eq!(
            (change.address.port(), change.ejected),
            (2, Some(Duration::from_secs(10)))
        );
        for cluster in &mut all {
            assert_eq!(picks(cluster, now, &mut random), [1, 3]);
        }
        assert!(all[1].sweep_outliers(now + Duration::from_secs(9)).is_empty());
        let later = now + Duration::from_secs(10);
        assert_eq!(all[1].sweep_outliers(later).len(), 1);
        for cluster in &mut all {
            assert_eq!(picks(cluster, later, &mut random), [1, 2, 3]);
        }
        for _ in 0..2 {
            assert_eq!(all[1].record(id, Signal::Status(500), later), None);
        }
        let again = all[1].record(id, Signal::Status(500), later).unwrap();
        assert_eq!(again.ejected, Some(Duration::from_secs(20)), "twice as long");
    }

    #[test]
    fn a_success_ends_a_streak() {
        let now = Instant::now();
        let (mut all, _) = shards(policy(), &[1, 2], now);
        let id = id_of(&all[0], 1);
        for _ in 0..10 {
            assert_eq!(all[0].record(id, Signal::Status(500), now), None);
            assert_eq!(all[1].record(id, Signal::Status(500), now), None);
            assert_eq!(all[0].record(id, Signal::Status(404), now), None);
        }
    }

    #[test]
    fn no_more_are_ejected_than_may_be() {
        let now = Instant::now();
        let most = |count: usize, max_percent| {
            OutlierPolicy {
                max_percent,
                ..policy()
            }
            .ejected_max(count)
        };
        assert_eq!(
            [most(1, 10), most(2, 10), most(3, 0), most(1, 100), most(30, 10)],
            [0, 1, 1, 1, 3]
        );
        let (mut all, mut random) = shards(policy(), &[1, 2, 3], now);
        for port in 1..=3 {
            let id = id_of(&all[0], port);
            for _ in 0..3 {
                let _one = all[0].record(id, Signal::Status(500), now);
            }
        }
        assert_eq!(all[0].shared().ejections.count(), 1);
        assert_eq!(picks(&mut all[1], now, &mut random), [2, 3]);
    }

    #[test]
    fn one_that_does_well_is_forgiven() {
        let now = Instant::now();
        let (mut all, _) = shards(policy(), &[1, 2], now);
        let id = id_of(&all[0], 1);
        let fail = |cluster: &mut Cluster, now| {
            (0..3)
                .filter_map(|_| cluster.record(id, Signal::NoAnswer, now))
                .last()
                .and_then(|change| change.ejected)
        };
        assert_eq!(fail(&mut all[0], now), Some(Duration::from_secs(10)));
        let back = now + Duration::from_secs(10);
        assert_eq!(all[0].sweep_outliers(back).len(), 1);
        let well = back + Duration::from_secs(1);
        assert!(all[0].sweep_outliers(well).is_empty());
        assert_eq!(
            fail(&mut all[0], well),
            Some(Duration::from_secs(10)),
            "as if it were the first"
        );
    }

    #[test]
    fn each_kind_of_failure_has_its_own_streak() {
        let split = OutlierPolicy {
            consecutive_gateway: 2,
            consecutive_local: 2,
            split: true,
            ..policy()
        };
        assert_eq!(split.judge(Signal::NoAnswer), [None, None, Some(true)]);
        assert_eq!(
            split.judge(Signal::Status(500)),
            [Some(true), Some(false), Some(false)]
        );
        assert_eq!(
            policy().judge(Signal::Status(503)),
            [Some(true), Some(true), None]
        );
        assert_eq!(policy().judge(Signal::NoAnswer), [Some(true), Some(true), None]);
        let codes = OutlierPolicy {
            codes: [429, 503].into(),
            ..policy()
        };
        assert_eq!(codes.judge(Signal::Status(429)), [Some(true), Some(false), None]);
        assert_eq!(codes.judge(Signal::Status(500)), [Some(false), Some(false), None]);
        let now = Instant::now();
        let (mut all, _) = shards(split, &[1, 2], now);
        let id = id_of(&all[0], 1);
        let signals = [Signal::Status(503), Signal::NoAnswer, Signal::Status(503)];
        let changes = signals.map(|signal| all[0].record(id, signal, now).is_some());
        assert_eq!(
            changes,
            [false, false, true],
            "two gateway errors, and not two failures to answer"
        );
        let other = id_of(&all[0], 2);
        let _back = all[0].sweep_outliers(now + Duration::from_secs(10));
        let signals = [
            Signal::NoAnswer,
            Signal::Connected,
            Signal::NoAnswer,
            Signal::NoAnswer,
        ];
        let changes = signals.map(|signal| all[0].record(other, signal, now).is_some());
        assert_eq!(
            changes,
            [false, false, false, true],
            "a connection ends the streak"
        );
    }

    #[test]
    fn a_connection_of_bytes_is_a_success() {
        let split = OutlierPolicy {
            split: true,
            ..policy()
        };
        assert_eq!(split.judge(Signal::Connected), [None, None, Some(false)]);
        assert_eq!(
            policy().judge(Signal::Connected),
            [Some(false), Some(false), None]
        );
    }

    #[test]
    fn an_ejection_has_a_longest_time() {
        let time = |base, times| {
            let base = Duration::from_secs(base);
            OutlierPolicy { base, ..policy() }.ejection_time(times).as_secs()
        };
        assert_eq!(
            [time(10, 1), time(10, 29), time(10, 30), time(10, 31)],
            [10, 290, 300, 300]
        );
        assert_eq!(
            [time(400, 1), time(400, 2)],
            [400, 400],
            "unless the base time is longer"
        );
    }

    #[test]
    fn each_shard_looks_once_in_an_interval() {
        let now = Instant::now();
        let (mut all, _) = shards(policy(), &[1, 2], now);
        let id = id_of(&all[0], 1);
        let ejected = (0..3).find_map(|_| all[0].record(id, Signal::NoAnswer, now));
        assert!(ejected.is_some());
        let over = now + Duration::from_secs(10);
        assert!(all[0].sweep_outliers(over - Duration::from_millis(1)).is_empty());
        assert!(all[0].sweep_outliers(over).is_empty(), "it has just looked");
        let next = over + Duration::from_millis(999);
        let back = all[0].sweep_outliers(next);
        assert_eq!(back.len(), 1);
        assert_eq!((back[0].address.port(), back[0].ejected), (1, None));
    }

    #[test]
    fn where_nothing_detects_all_changes_are_obeyed() {
        let now = Instant::now();
        let (mut all, mut random) = shards(policy(), &[1, 2], now);
        assert!(all[0].detects());
        let spec = Arc::new(ClusterSpec::clone(&spec(&[1, 2])));
        let shared = Arc::clone(all[0].shared());
        let mut deaf = Cluster::new(spec, shared, now, &mut random);
        assert!(!deaf.detects());
        let id = id_of(&all[0], 1);
        let ejected = (0..3).find_map(|_| all[0].record(id, Signal::NoAnswer, now));
        assert!(ejected.is_some());
        assert_eq!(deaf.epoch(), deaf.shared().ejections.epoch());
        assert_eq!(picks(&mut deaf, now, &mut random), [1, 2]);
        assert_ne!(all[1].epoch(), all[1].shared().ejections.epoch(), "not yet");
        all[1].refresh(now, &mut random);
        assert_eq!(all[1].epoch(), all[1].shared().ejections.epoch());
        let id = id_of(&deaf, 2);
        assert_eq!(deaf.record(id, Signal::NoAnswer, now), None);
        assert_eq!(deaf.sweep_outliers(now), []);
    }

    #[test]
    fn what_is_known_survives_a_swap_and_ends_with_the_endpoint() {
        let now = Instant::now();
        let (mut all, mut random) = shards(policy(), &[1, 2, 3], now);
        let id = id_of(&all[0], 1);
        let changes = (0..3).filter_map(|_| all[0].record(id, Signal::NoAnswer, now));
        assert_eq!(changes.count(), 1);
        assert_eq!(all[0].shared().ejections.count(), 1);
        let mut swap = |cluster: &mut Cluster, ports: &[u16]| {
            let spec = Arc::new(ClusterSpec {
                outlier: Some(policy()),
                ..ClusterSpec::clone(&spec(ports))
            });
            let addresses = spec.endpoints.endpoints.iter().map(|endpoint| endpoint.address);
            let shared = Arc::new(cluster.shared().with_endpoints(addresses));
            cluster.share_counts(shared);
            cluster.reconcile(spec, now, &mut random);
            let ports = picks(cluster, now, &mut random);
            (cluster.shared().ejections.count(), ports)
        };
        assert_eq!(swap(&mut all[0], &[1, 2, 4]), (1, vec![2, 4]));
        assert_eq!(swap(&mut all[0], &[2, 4]), (0, vec![2, 4]));
        assert_eq!(swap(&mut all[0], &[1, 2]), (0, vec![1, 2]), "it begins anew");
    }
}
