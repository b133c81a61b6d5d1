//! Active health checks: endpoints are asked from time to time whether they can serve, and those that say no, or
//! nothing, take no requests until they say yes again (`HealthCheckPolicy`, `WorkloadGroup.probe`).
//!
//! A [`HealthPolicy`] is what the resources say. A [`Monitor`] is what is known of one endpoint: it says when the next
//! check is due, takes what each has found, and answers when the verdict changes. Making a check is the shell's affair,
//! and so is where: each endpoint is checked by one shard of the process ([`shard_of`]), which writes the verdict where
//! all shards see it at once, beside the ejections of [`super::outlier`] ([`crate::shared::Ejections::judge`]).

use crate::endpoint::is_socket;
use crate::grpc;
use crate::random::Random;
use crate::snapshot::content_hash;
use crate::tls::{CaSource, ClientTls};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of a hundred parts of the interval, by how many the time between two checks is longer or shorter at most: the checks
/// of many endpoints, and of many gateways, do not come all at once.
const JITTER_PERCENT: u32 = 10;
/// The longest time over which the first checks of endpoints that come together are spread.
const FIRST_SPREAD_MAX: Duration = Duration::from_millis(500);
/// The answer that ends an endpoint's service at once: it says itself that it does not serve (RFC 9110, 15.6.4).
const UNAVAILABLE: u16 = 503;

/// How the endpoints of a cluster, or one of them, are checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HealthPolicy {
    /// What is asked.
    pub check: Check,
    /// The port that is asked in place of the endpoint's own.
    pub port: Option<u16>,
    /// How the connection is secured.
    pub transport: CheckTransport,
    /// Time from when the endpoint becomes known to its first check (`initialDelaySeconds`).
    pub initial_delay: Duration,
    /// Time between the beginnings of two checks (`periodSeconds`), give or take a tenth.
    pub interval: Duration,
    /// How long a check may take, from connecting to the end of the answer's head (`timeoutSeconds`).
    pub timeout: Duration,
    /// Checks in a row that an endpoint must pass to be healthy again (`successThreshold`); at least 1.
    pub healthy_after: u32,
    /// Checks in a row that an endpoint must fail to be unhealthy (`failureThreshold`); at least 1.
    pub unhealthy_after: u32,
    /// Whether an endpoint takes requests before it was checked.
    pub starts_healthy: bool,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Check {
    /// A GET (`httpGet`).
    Http(HttpCheck),
    /// Whether it takes a connection (`tcpSocket`).
    Tcp,
    /// The health service of gRPC, `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service to ask about; empty for the server as a whole.
        service: Box<str>,
    },
}

/// The GET of a check.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpCheck {
    /// Path and query.
    pub path: Box<str>,
    /// The authority to ask for; None for the name of the service.
    pub host: Option<Box<str>>,
    /// Further fields.
    pub fields: Box<[(Box<str>, Box<str>)]>,
    /// The statuses that say yes: from the first to the last, each included.
    pub expected: Box<[(u16, u16)]>,
}

/// How the connection of a check is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckTransport {
    /// As those of requests are.
    Own,
    /// Not at all.
    Plaintext,
    /// With TLS: as those of requests are if they are, else with whatever certificate the endpoint shows, as Kubernetes
    /// does.
    Tls,
}

impl HealthPolicy {
    /// What secures a check's connection, where `own` secures those of requests; None for plaintext.
    pub fn tls(&self, own: Option<&Arc<ClientTls>>) -> Option<Arc<ClientTls>> {
        match (self.transport, own) {
            (CheckTransport::Plaintext, _) => None,
            (CheckTransport::Own | CheckTransport::Tls, Some(own)) => Some(Arc::clone(own)),
            (CheckTransport::Own, None) => None,
            (CheckTransport::Tls, None) => Some(Arc::new(ClientTls {
                key: None,
                ca: CaSource::System,
                crl: None,
                subject_alt_names: Vec::new(),
                sni: None,
                skip_verify: true,
            })),
        }
    }

    /// Where an endpoint is asked. A unix socket has no ports.
    pub fn address_of(&self, endpoint: SocketAddr) -> SocketAddr {
        if is_socket(&endpoint) {
            return endpoint;
        }
        let port = self.port.unwrap_or(endpoint.port());
        SocketAddr::new(endpoint.ip(), port)
    }
}

impl HttpCheck {
    /// What a status says.
    pub fn judge(&self, status: u16) -> Finding {
        let mut expected = self.expected.iter();
        match expected.any(|(first, last)| (*first..=*last).contains(&status)) {
            true => Finding::Passed,
            false => Finding::Failed(Failure::Status(status)),
        }
    }
}

/// What a check has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The endpoint can serve.
    Passed,
    /// It cannot.
    Failed(Failure),
}

/// Why an endpoint is not healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It has not passed its first checks yet.
    NotChecked,
    /// It takes no connection.
    NotConnected,
    /// The handshake failed, or there are no keys for it.
    Handshake,
    /// The answer did not come in time.
    TooLate,
    /// The connection ended before the answer, or what came was none.
    NoAnswer,
    /// It answered with this status of HTTP.
    Status(u16),
    /// It answered with this status of gRPC.
    Call(grpc::Status),
    /// It answered that the service is in this state, by the numbers of `grpc.health.v1` `ServingStatus`.
    Serving(u8),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotChecked => f.write_str("not checked yet"),
            Self::NotConnected => f.write_str("takes no connection"),
            Self::Handshake => f.write_str("TLS handshake failed"),
            Self::TooLate => f.write_str("no answer in time"),
            Self::NoAnswer => f.write_str("no answer"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Call(status) => write!(f, "gRPC status {}", status.name()),
            Self::Serving(0) => f.write_str("gRPC health UNKNOWN"),
            Self::Serving(2) => f.write_str("gRPC health NOT_SERVING"),
            Self::Serving(3) => f.write_str("gRPC health SERVICE_UNKNOWN"),
            Self::Serving(state) => write!(f, "gRPC health {state}"),
        }
    }
}

/// The verdict on an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Nothing was found out: it takes requests.
    Unchecked,
    /// It takes requests.
    Healthy,
    /// It takes none.
    Unhealthy(Failure),
}

impl Health {
    /// As one number, which shards share.
    pub(crate) fn bits(self) -> u32 {
        const fn detail(kind: u32, value: u32) -> u32 {
            Health::UNHEALTHY | (kind << 16) | value
        }
        match self {
            Self::Unchecked => 0,
            Self::Healthy => 1,
            Self::Unhealthy(failure) => match failure {
                Failure::NotChecked => detail(0, 0),
                Failure::NotConnected => detail(1, 0),
                Failure::Handshake => detail(2, 0),
                Failure::TooLate => detail(3, 0),
                Failure::NoAnswer => detail(4, 0),
                Failure::Status(status) => detail(5, status as u32),
                Failure::Call(status) => detail(6, status.number() as u32),
                Failure::Serving(state) => detail(7, state as u32),
            },
        }
    }

    /// Set in the number of every verdict that keeps requests away.
    pub(crate) const UNHEALTHY: u32 = 1 << 31;

    /// The verdict of a number that [`Self::bits`] has made.
    pub(crate) fn from_bits(bits: u32) -> Self {
        if bits & Self::UNHEALTHY == 0 {
            return if bits == 1 { Self::Healthy } else { Self::Unchecked };
        }
        let value = bits as u16;
        Self::Unhealthy(match (bits >> 16) & 0x7FFF {
            1 => Failure::NotConnected,
            2 => Failure::Handshake,
            3 => Failure::TooLate,
            4 => Failure::NoAnswer,
            5 => Failure::Status(value),
            6 => Failure::Call(grpc::Status::from_number(value as u8).unwrap_or(grpc::Status::Unknown)),
            7 => Failure::Serving(value as u8),
            _ => Failure::NotChecked,
        })
    }
}

/// What has become of an endpoint by its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub address: SocketAddr,
    /// Why it takes no requests from now on; None when it takes them again.
    pub failure: Option<Failure>,
    /// The change of what is available ([`crate::shared::Ejections::epoch`]) that this was.
    pub epoch: u32,
}

/// What the checks of one endpoint have found so far.
#[derive(Debug, Clone)]
pub struct Monitor {
    is_healthy: bool,
    /// Checks in a row that speak against the present verdict.
    against: u32,
    due: Instant,
}

impl Monitor {
    /// For an endpoint with this verdict from an earlier version of its policy, or with none: then it begins as the
    /// policy says. The first check comes soon.
    pub fn new(policy: &HealthPolicy, verdict: Health, now: Instant, random: &mut Random) -> Self {
        let spread = (policy.interval / JITTER_PERCENT).min(FIRST_SPREAD_MAX);
        let delay = match verdict {
            Health::Unchecked | Health::Unhealthy(Failure::NotChecked) => policy.initial_delay,
            Health::Healthy | Health::Unhealthy(_) => Duration::ZERO,
        };
        Self {
            is_healthy: !matches!(verdict, Health::Unhealthy(_)),
            against: 0,
            due: now + delay + part(spread, random),
        }
    }

    /// When the next check is to begin.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether the endpoint takes requests.
    pub fn is_healthy(&self) -> bool {
        self.is_healthy
    }

    /// Takes what a check has found that began at `began`, and answers the verdict if it changes.
    pub fn conclude(
        &mut self,
        policy: &HealthPolicy,
        finding: Finding,
        began: Instant,
        now: Instant,
        random: &mut Random,
    ) -> Option<Health> {
        let jitter = policy.interval * JITTER_PERCENT / 100;
        let next = began + policy.interval - jitter + part(jitter * 2, random);
        self.due = next.max(now);
        let agrees = self.is_healthy == (finding == Finding::Passed);
        if agrees {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let (enough, verdict) = match finding {
            Finding::Passed => (policy.healthy_after, Health::Healthy),
            Finding::Failed(failure @ Failure::Status(UNAVAILABLE)) => (1, Health::Unhealthy(failure)),
            Finding::Failed(failure) => (policy.unhealthy_after, Health::Unhealthy(failure)),
        };
        if self.against < enough {
            return None;
        }
        self.is_healthy = !self.is_healthy;
        self.against = 0;
        Some(verdict)
    }
}

/// Some part of a time.
fn part(of: Duration, random: &mut Random) -> Duration {
    let nanos = u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.below(nanos.saturating_add(1)))
}

/// The shard that checks an endpoint: the one whose number fits its address best (rendezvous hashing), so that all
/// shards agree without a word, and the endpoints are shared out evenly.
pub fn shard_of(endpoint: SocketAddr, shards: usize) -> usize {
    let best = (0..shards).max_by_key(|shard| content_hash(&(endpoint, *shard)));
    best.unwrap_or(0)
}

/// The message of a [`Check::Grpc`], with its prefix (`HealthCheckRequest`: field 1 is the service).
pub fn grpc_question(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 4);
    if !service.is_empty() {
        message.push(0x0A);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.append(&mut message);
    framed
}

/// What the answer to [`grpc_question`] says, from the bytes of its body (`HealthCheckResponse`: field 1 is the state,
/// of which 1 is SERVING). Other fields are passed over.
pub fn grpc_answer(body: &[u8]) -> Finding {
    match grpc_state(body) {
        Some(1) => Finding::Passed,
        Some(state) => Finding::Failed(Failure::Serving(u8::try_from(state).unwrap_or(u8::MAX))),
        None => Finding::Failed(Failure::NoAnswer),
    }
}

fn grpc_state(body: &[u8]) -> Option<u64> {
    let (prefix, rest) = body.split_first_chunk::<5>()?;
    let [0, length @ ..] = *prefix else {
        // Compressed, although nobody has said that this is understood.
        return None;
    };
    let mut message = rest.get(..u32::from_be_bytes(length) as usize)?;
    // What is not written is 0 (protobuf).
    let mut state = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let skipped = match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    state = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(skipped..)?;
    }
    Some(state)
}

/// A number of protobuf at the front of `bytes`.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Simulated endpoints, shards and clocks: what is checked against a reading of the policy that looks at the whole
/// history.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::locality::Levels;
    use crate::cluster::outlier::{OutlierPolicy, Signal};
    use crate::cluster::pool::Group;
    use crate::cluster::tests::spec;
    use crate::cluster::{Acquired, Choice, Cluster, ClusterSpec};
    use crate::shared::{Bell, ClusterShared, Limits};
    use std::collections::HashSet;

    /// Seeds of each simulation.
    const SEEDS: u64 = 4000;

    fn policy() -> HealthPolicy {
        HealthPolicy {
            check: Check::Tcp,
            port: None,
            transport: CheckTransport::Own,
            initial_delay: Duration::ZERO,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 3,
            starts_healthy: true,
        }
    }

    fn any_policy(random: &mut Random) -> HealthPolicy {
        HealthPolicy {
            interval: Duration::from_millis(1 + random.below(20_000)),
            timeout: Duration::from_millis(1 + random.below(30_000)),
            initial_delay: Duration::from_millis(random.below(2) * random.below(5000)),
            healthy_after: 1 + random.below(5) as u32,
            unhealthy_after: 1 + random.below(5) as u32,
            starts_healthy: random.below(2) == 0,
            ..policy()
        }
    }

    fn begins(policy: &HealthPolicy) -> Health {
        match policy.starts_healthy {
            true => Health::Unchecked,
            false => Health::Unhealthy(Failure::NotChecked),
        }
    }

    fn any_finding(random: &mut Random, well: u64) -> Finding {
        if random.below(100) < well {
            return Finding::Passed;
        }
        Finding::Failed(match random.below(8) {
            0 => Failure::Status(503),
            1 => Failure::Status(500),
            2 => Failure::TooLate,
            3 => Failure::Handshake,
            4 => Failure::Serving(2),
            5 => Failure::Call(grpc::Status::Unavailable),
            6 => Failure::NoAnswer,
            _ => Failure::NotConnected,
        })
    }

    /// The verdict that a history of findings leads to, read from its whole length: nothing is counted as it goes.
    fn verdict_of(policy: &HealthPolicy, history: &[Finding]) -> bool {
        let mut verdicts = vec![policy.starts_healthy];
        for (at, finding) in history.iter().enumerate() {
            let was = verdicts[at];
            let passed = *finding == Finding::Passed;
            let mut run = 0;
            for back in (0..=at).rev() {
                let same = (history[back] == Finding::Passed) == passed && verdicts[back] == was;
                if !same {
                    break;
                }
                run += 1;
            }
            verdicts.push(match (was, passed) {
                (true, false) => {
                    *finding != Finding::Failed(Failure::Status(503)) && run < policy.unhealthy_after
                }
                (false, true) => run >= policy.healthy_after,
                _ => was,
            });
        }
        verdicts[history.len()]
    }

    #[test]
    fn verdicts_follow_from_the_history_and_checks_come_in_their_time() {
        for seed in 0..SEEDS {
            let mut random = Random::from_seed(seed);
            let policy = any_policy(&mut random);
            let mut now = Instant::now();
            let mut monitor = Monitor::new(&policy, begins(&policy), now, &mut random);
            let first = monitor.due() - now;
            assert!(first >= policy.initial_delay, "{seed}");
            assert!(
                first <= policy.initial_delay + (policy.interval / 10).min(FIRST_SPREAD_MAX),
                "{seed}"
            );
            let well = random.below(101);
            let mut history = Vec::new();
            for _ in 0..40 {
                let began = monitor.due();
                assert!(began >= now, "{seed}: time goes on");
                // A check may take longer than the interval.
                now = began + part(policy.timeout, &mut random);
                let finding = any_finding(&mut random, well);
                let before = monitor.is_healthy();
                let change = monitor.conclude(&policy, finding, began, now, &mut random);
                history.push(finding);
                let after = verdict_of(&policy, &history);
                assert_eq!(monitor.is_healthy(), after, "{seed}: {policy:?} {history:?}");
                match change {
                    None => assert_eq!(before, after, "{seed}"),
                    Some(Health::Healthy) => assert!(!before && after, "{seed}"),
                    Some(Health::Unhealthy(failure)) => {
                        assert!(before && !after, "{seed}");
                        assert_eq!(Finding::Failed(failure), finding, "{seed}: the last reason");
                    }
                    Some(Health::Unchecked) => panic!("{seed}"),
                }
                let gap = monitor.due() - began;
                assert!(monitor.due() >= now, "{seed}: one at a time");
                assert!(gap >= policy.interval * 9 / 10, "{seed}");
                assert!(gap <= (policy.interval * 11 / 10).max(now - began), "{seed}");
            }
        }
    }

    #[test]
    fn jitter_spreads_checks_over_its_whole_width() {
        let (mut random, now, policy) = (Random::from_seed(1), Instant::now(), policy());
        let mut monitor = Monitor::new(&policy, Health::Unchecked, now, &mut random);
        let gaps: Vec<u128> = (0..2000)
            .map(|_| {
                let began = monitor.due();
                let _none = monitor.conclude(&policy, Finding::Passed, began, began, &mut random);
                (monitor.due() - began).as_millis()
            })
            .collect();
        let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
        assert!((9000..9050).contains(least) && (10_950..=11_000).contains(most));
        let mean = gaps.iter().sum::<u128>() / gaps.len() as u128;
        assert!((9950..10_050).contains(&mean), "{mean}");
    }

    #[test]
    fn a_503_needs_no_second_one_unless_it_is_expected() {
        let (mut random, now) = (Random::from_seed(1), Instant::now());
        let check = HttpCheck {
            path: "/".into(),
            host: None,
            fields: Box::default(),
            expected: [(200, 399)].into(),
        };
        let policy = policy();
        let mut monitor = Monitor::new(&policy, Health::Unchecked, now, &mut random);
        let change = monitor.conclude(&policy, check.judge(503), now, now, &mut random);
        assert_eq!(change, Some(Health::Unhealthy(Failure::Status(503))));
        assert_eq!(check.judge(399), Finding::Passed);
        assert_eq!(check.judge(400), Finding::Failed(Failure::Status(400)));
        let lenient = HttpCheck {
            expected: [(200, 200), (503, 503)].into(),
            ..check
        };
        assert_eq!(lenient.judge(503), Finding::Passed);
        assert_eq!(lenient.judge(204), Finding::Failed(Failure::Status(204)));
    }

    #[test]
    fn what_was_known_is_kept_by_another_policy() {
        let (mut random, now) = (Random::from_seed(1), Instant::now());
        let policy = HealthPolicy {
            starts_healthy: true,
            initial_delay: Duration::from_secs(60),
            ..policy()
        };
        let verdict = Health::Unhealthy(Failure::TooLate);
        let monitor = Monitor::new(&policy, verdict, now, &mut random);
        assert!(!monitor.is_healthy());
        assert!(
            monitor.due() <= now + Duration::from_millis(500),
            "it is no new endpoint"
        );
    }

    #[test]
    fn verdicts_are_numbers_and_back() {
        let mut all = vec![Health::Unchecked, Health::Healthy];
        let mut failures = vec![
            Failure::NotChecked,
            Failure::NotConnected,
            Failure::Handshake,
            Failure::TooLate,
            Failure::NoAnswer,
        ];
        failures.extend((100..1000).map(Failure::Status));
        failures.extend(grpc::Status::ALL.iter().map(|status| Failure::Call(*status)));
        failures.extend((0..=u8::MAX).map(Failure::Serving));
        all.extend(failures.into_iter().map(Health::Unhealthy));
        let mut seen = HashSet::new();
        for health in all {
            assert_eq!(Health::from_bits(health.bits()), health);
            assert!(seen.insert(health.bits()), "{health:?}");
        }
    }

    #[test]
    fn each_endpoint_has_one_shard_and_shards_share_them_evenly() {
        let endpoints: Vec<SocketAddr> = (0..4000u16)
            .map(|at| SocketAddr::from(([10, 0, (at >> 8) as u8, at as u8], 80 + at % 7)))
            .collect();
        for shards in [1, 2, 3, 4, 8, 64] {
            let mut counts = vec![0usize; shards];
            for endpoint in &endpoints {
                counts[shard_of(*endpoint, shards)] += 1;
            }
            let fair = endpoints.len() / shards;
            let bounds = fair * 6 / 10..=fair * 14 / 10;
            assert!(counts.iter().all(|count| bounds.contains(count)), "{counts:?}");
        }
        // Another shard takes over from others and moves nothing between them.
        for endpoint in &endpoints {
            let (four, five) = (shard_of(*endpoint, 4), shard_of(*endpoint, 5));
            assert!(four == five || five == 4);
        }
    }

    #[test]
    fn the_messages_of_grpc_are_those_of_its_health_service() {
        assert_eq!(grpc_question(""), [0, 0, 0, 0, 0]);
        assert_eq!(grpc_question("ab"), [0, 0, 0, 0, 4, 0x0A, 2, b'a', b'b']);
        let long = grpc_question(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0A, 0xAC, 0x02]);
        assert_eq!(grpc_answer(&[0, 0, 0, 0, 2, 0x08, 1]), Finding::Passed);
        let state = |state| Finding::Failed(Failure::Serving(state));
        assert_eq!(grpc_answer(&[0, 0, 0, 0, 2, 0x08, 2]), state(2));
        assert_eq!(
            grpc_answer(&[0, 0, 0, 0, 0]),
            state(0),
            "what is not written is 0"
        );
        let with_more = [0, 0, 0, 0, 8, 0x12, 2, b'h', b'i', 0x08, 1, 0x18, 0x05];
        assert_eq!(grpc_answer(&with_more), Finding::Passed, "unknown fields");
        let none = Finding::Failed(Failure::NoAnswer);
        for bad in [
            &[][..],
            &[0, 0, 0, 0, 9, 0x08, 1],
            &[1, 0, 0, 0, 2, 0x08, 1],
            &[0, 0, 0, 0, 1, 0x08],
            &[0, 0, 0, 0, 2, 0x0B, 1],
            &[0, 0, 0, 0, 2, 0x0A, 9],
        ] {
            assert_eq!(grpc_answer(bad), none, "{bad:?}");
        }
        for seed in 0..SEEDS {
            let mut random = Random::from_seed(seed);
            let bytes: Vec<u8> = (0..random.below(20)).map(|_| random.next_u64() as u8).collect();
            let _whatever = grpc_answer(&bytes);
        }
    }

    #[derive(Debug)]
    struct Silent;

    impl Bell for Silent {
        fn ring(&self, _shard: usize) {}
    }

    /// Several shards that serve and check the same endpoints, with outlier detection beside the checks, endpoints that come
    /// and go, and versions that shards take over at different times.
    struct World {
        clusters: Vec<Cluster>,
        monitors: Vec<(u16, Monitor)>,
        health: HealthPolicy,
        outlier: Option<OutlierPolicy>,
        panic_percent: u32,
        ports: Vec<u16>,
        shared: Arc<ClusterShared>,
        now: Instant,
    }

    impl World {
        fn spec(&self) -> Arc<ClusterSpec> {
            let mut spec = ClusterSpec::clone(&spec(&self.ports));
            spec.health = Some(Arc::new(self.health.clone()));
            spec.outlier = self.outlier.clone();
            spec.balancer.panic_percent = self.panic_percent;
            Arc::new(spec)
        }

        fn new(random: &mut Random) -> Self {
            let now = Instant::now();
            let shards = 1 + random.below(4) as usize;
            let health = any_policy(random);
            let shared = ClusterShared::for_shards(Limits::default(), shards, Arc::new(Silent), now);
            shared.ejections.set_start(health.starts_healthy);
            let ports: Vec<u16> = (1..=1 + random.below(6) as u16).collect();
            let shared = Arc::new(shared.with_endpoints(ports.iter().map(|port| address(*port))));
            let outlier = (random.below(2) == 0).then(|| OutlierPolicy {
                consecutive_5xx: 1 + random.below(3) as u32,
                consecutive_gateway: 0,
                consecutive_local: 0,
                split: false,
                codes: Box::default(),
                interval: Duration::from_millis(1 + random.below(2000)),
                base: Duration::from_millis(1 + random.below(20_000)),
                max_percent: random.below(101) as u32,
            });
            let mut world = Self {
                clusters: Vec::new(),
                monitors: Vec::new(),
                panic_percent: [0, 0, 50, 100][random.below(4) as usize],
                health,
                outlier,
                ports,
                shared,
                now,
            };
            let spec = world.spec();
            for shard in 0..shards {
                let cluster = Cluster::new(Arc::clone(&spec), Arc::clone(&world.shared), now, random);
                world.clusters.push(cluster.on_shard(shard));
            }
            world.watch(random);
            world
        }

        /// As the shell does: who is gone is checked no more, who is new is.
        fn watch(&mut self, random: &mut Random) {
            let (ports, now) = (&self.ports, self.now);
            self.monitors.retain(|(port, _)| ports.contains(port));
            for port in ports {
                if self.monitors.iter().all(|(known, _)| known != port) {
                    let health = self.shared.endpoints[&address(*port)].health();
                    let monitor = Monitor::new(&self.health, health, now, random);
                    self.monitors.push((*port, monitor));
                }
            }
        }

        fn step(&mut self, random: &mut Random) {
            self.now += Duration::from_millis(random.below(3000));
            match random.below(10) {
                0..5 => {
                    let well = [5, 50, 95][random.below(3) as usize];
                    let now = self.now;
                    for (port, monitor) in &mut self.monitors {
                        if monitor.due() > now {
                            continue;
                        }
                        let endpoint = &self.shared.endpoints[&address(*port)];
                        let finding = any_finding(random, well);
                        let before = self.shared.ejections.epoch();
                        match monitor.conclude(&self.health, finding, now, now, random) {
                            Some(health) => {
                                assert!(self.shared.ejections.judge(endpoint, health));
                                assert_ne!(self.shared.ejections.epoch(), before);
                            }
                            None if finding == Finding::Passed && monitor.is_healthy() => {
                                self.shared.ejections.judge(endpoint, Health::Healthy);
                                self.shared.ejections.pardon(endpoint, now);
                            }
                            None => {}
                        }
                        assert_eq!(endpoint.is_unhealthy(), !monitor.is_healthy());
                    }
                }
                5..8 => {
                    for cluster in &mut self.clusters {
                        let choice = Choice {
                            hash: (random.below(3) == 0).then(|| random.next_u64()),
                            avoid: &[],
                            group: Group::ALL,
                            without: Levels::NONE,
                            now: self.now,
                        };
                        if let Acquired::Open { endpoint, .. } = cluster.acquire(choice, true, random) {
                            let signal = match random.below(3) {
                                0 => Signal::NoAnswer,
                                1 => Signal::Status(500),
                                _ => Signal::Status(200),
                            };
                            cluster.release(endpoint, None, self.now);
                            cluster.record(endpoint, signal, self.now);
                        }
                    }
                }
                8 => {
                    for cluster in &mut self.clusters {
                        cluster.sweep_outliers(self.now);
                    }
                }
                _ => {
                    let count = 1 + random.below(6);
                    self.ports = (0..count).map(|_| 1 + random.below(9) as u16).collect();
                    self.ports.sort_unstable();
                    self.ports.dedup();
                    let addresses = self.ports.iter().map(|port| address(*port));
                    self.shared = Arc::new(self.shared.with_endpoints(addresses));
                    let spec = self.spec();
                    for cluster in &mut self.clusters {
                        cluster.share_counts(Arc::clone(&self.shared));
                        cluster.reconcile(Arc::clone(&spec), self.now, random);
                    }
                    self.watch(random);
                }
            }
        }

        /// What must hold at any time, on every shard.
        fn check(&mut self, seed: u64, random: &mut Random) {
            let all: Vec<_> = self.shared.endpoints.values().collect();
            let unhealthy = all.iter().filter(|endpoint| endpoint.is_unhealthy()).count();
            let ejected = all.iter().filter(|endpoint| endpoint.is_ejected()).count();
            assert_eq!(self.shared.ejections.unhealthy() as usize, unhealthy, "{seed}");
            assert_eq!(self.shared.ejections.count() as usize, ejected, "{seed}");
            let available = all.iter().filter(|endpoint| endpoint.is_available()).count();
            let is_panic = available * 100 < self.panic_percent as usize * all.len();
            let hash = (random.below(3) == 0).then(|| random.next_u64());
            for cluster in &mut self.clusters {
                let choice = Choice {
                    hash,
                    avoid: &[],
                    group: Group::ALL,
                    without: Levels::NONE,
                    now: self.now,
                };
                match cluster.acquire(choice, true, random) {
                    Acquired::Open {
                        endpoint, address, ..
                    } => {
                        let known = &self.shared.endpoints[&address];
                        assert!(
                            known.is_available() || is_panic,
                            "{seed}: {address} is not available"
                        );
                        cluster.release(endpoint, None, self.now);
                    }
                    Acquired::NoEndpoint => assert!(available == 0 && !is_panic, "{seed}"),
                    other => panic!("{seed}: {other:?}"),
                }
                assert_eq!(cluster.epoch(), self.shared.ejections.epoch(), "{seed}");
            }
        }
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn no_shard_picks_an_endpoint_that_is_unhealthy_or_ejected() {
        for seed in 0..SEEDS {
            let mut random = Random::from_seed(seed);
            let mut world = World::new(&mut random);
            world.check(seed, &mut random);
            for _ in 0..40 {
                world.step(&mut random);
                world.check(seed, &mut random);
            }
        }
    }
}
