//! What one shard counts. A shard is the only writer of its counters; control asks for them and adds them up.

use crate::grpc;
use crate::name::ClusterKey;
use crate::reply::Flags;
use crate::shared::Limit;
use crate::source::SourceName;
use hdrhistogram::Histogram;
use std::collections::HashMap;

/// What tells apart the series of one cluster's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Answer {
    /// The status that the client got; 0 when it got none.
    pub status: u16,
    /// Response flags.
    pub flags: Flags,
    /// What was spoken inside HTTP.
    pub protocol: RequestProtocol,
}

/// What a request spoke (Istio `request_protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RequestProtocol {
    /// HTTP and nothing else.
    #[default]
    Http,
    /// gRPC, with the status of the call; None when it ended without one, or with one that gRPC does not know.
    Grpc(Option<grpc::Status>),
}

/// The requests of one `statPrefix` with one status.
#[derive(Debug, Clone)]
pub struct RouteSeries {
    /// From the head's first byte to the answer's last, in microseconds; as many as there were requests.
    pub duration_us: Histogram<u32>,
}

/// Most prefixes that are counted apart; requests of any others are counted together, as [`OTHER_PREFIXES`].
pub const STAT_PREFIXES_MAX: usize = 1000;
/// Most workloads whose requests are counted apart; those of any others are counted as nobody's.
pub const SOURCES_MAX: usize = 1000;
/// What requests of prefixes beyond [`STAT_PREFIXES_MAX`] are counted as.
pub const OTHER_PREFIXES: &str = "(other)";

/// The distribution of requests of one series.
#[derive(Debug, Clone)]
pub struct RequestSeries {
    /// Requests.
    pub count: u64,
    /// From the head's first byte to the answer's last, in microseconds.
    pub duration_us: Histogram<u32>,
    /// Bytes of request bodies.
    pub request_bytes: Histogram<u32>,
    /// Bytes of response bodies.
    pub response_bytes: Histogram<u32>,
    /// Requests of clients that are known, by [`ShardStats::sources`].
    pub sources: HashMap<u16, u64>,
}

impl RequestSeries {
    fn new() -> Option<Self> {
        // Two significant digits: the exported buckets are coarser than that. Auto-resizing keeps a new one small.
        let empty = || Histogram::new(2).ok();
        Some(Self {
            count: 0,
            duration_us: empty()?,
            request_bytes: empty()?,
            response_bytes: empty()?,
            sources: HashMap::new(),
        })
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        let _resized = self.duration_us.add(&other.duration_us);
        let _resized = self.request_bytes.add(&other.request_bytes);
        let _resized = self.response_bytes.add(&other.response_bytes);
    }
}

/// Facts about one finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// How long it took.
    pub duration_us: u64,
    /// Bytes of its body that were read.
    pub request_bytes: u64,
    /// Bytes of its answer's body that were written.
    pub response_bytes: u64,
}

/// What became of a copy of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mirrored {
    /// It was sent and answered, whatever the answer was.
    Sent,
    /// It was not made, or not finished, so that the request itself does not suffer.
    Dropped(&'static str),
    /// The mirror failed it: the label of the cause.
    Failed(&'static str),
}

impl Mirrored {
    /// The result and its reason, as labels of the metric.
    pub const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Sent => ("sent", ""),
            Self::Dropped(reason) => ("dropped", reason),
            Self::Failed(reason) => ("failed", reason),
        }
    }
}

/// Connections of bytes of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpSeries {
    /// Connections that began.
    pub opened: u64,
    /// Connections that ended.
    pub closed: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:literal;)*) => {
        /// Plain counters and gauges of one shard.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[doc = $doc])+ pub $field: u64,)* }

        impl Counters {
            /// Adds another shard's.
            pub fn merge(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }

            /// Name (without prefix), help and value of each.
            pub fn list(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($name, concat!($($doc),+).trim_ascii(), self.$field)),*]
            }
        }
    };
}

counters! {
    /// Downstream connections accepted.
    downstream_connections = "downstream_connections_total";
    /// TLS handshakes with clients that succeeded.
    tls_handshakes = "tls_handshakes_total";
    /// Times that accepting failed (out of file descriptors, mostly).
    accept_errors = "accept_errors_total";
    /// Times that accepting rested because buffers were at their bound.
    accept_rests = "accept_rests_total";
    /// Upstream connections opened.
    upstream_connects = "upstream_connects_total";
    /// Upstream connections that could not be opened.
    upstream_connect_failures = "upstream_connect_failures_total";
    /// Requests on an upstream connection that had served another before.
    upstream_reuses = "upstream_reuses_total";
    /// Attempts after the first.
    retries = "upstream_retries_total";
    /// Requests that their route held up on purpose.
    fault_delays = "fault_delays_total";
    /// Retries that were not made, because the cluster's budget had none left.
    retry_overflows = "upstream_retry_overflows_total";
    /// Attempts that were made beside one whose own time was over.
    hedges = "upstream_hedges_total";
    /// Request bodies that were longer than what is kept to be sent again.
    unreplayable_bodies = "unreplayable_bodies_total";
    /// Tasks that ended by a panic; their connection was closed.
    task_panics = "task_panics_total";
}

macro_rules! gauges {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:literal;)*) => {
        /// What is there at this moment, of one shard.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Gauges { $($(#[doc = $doc])+ pub $field: u64,)* }

        impl Gauges {
            /// Adds another shard's.
            pub fn merge(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }

            /// Name (without prefix), help and value of each.
            pub fn list(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$(($name, concat!($($doc),+).trim_ascii(), self.$field)),*]
            }
        }
    };
}

gauges! {
    /// Downstream connections that are open.
    downstream_connections_active = "downstream_connections_active";
    /// Requests in flight.
    requests_active = "requests_active";
    /// Upstream connections that are open, idle ones included.
    upstream_connections_active = "upstream_connections_active";
    /// Upstream connections that are idle in a pool.
    upstream_connections_idle = "upstream_connections_idle";
    /// Tasks of the shard.
    tasks = "tasks";
    /// Buffers that are in use.
    buffers_in_use = "buffers_in_use";
    /// Bytes of buffers that are in use, and of bodies that are kept to be sent again.
    buffer_bytes = "buffer_bytes";
}

/// All that one shard has counted since it was last asked, and its gauges now.
#[derive(Debug, Clone, Default)]
pub struct ShardStats {
    /// Requests by cluster (None for those that reached none) and answer.
    pub requests: HashMap<Option<ClusterKey>, HashMap<Answer, RequestSeries>>,
    /// Requests of routes with a `statPrefix`, by it and by status (0 for none).
    pub routes: HashMap<Box<str>, HashMap<u16, RouteSeries>>,
    /// Connections of bytes by cluster, and by the number of the client in [`Self::sources`] (None for one that nobody
    /// knows).
    pub tcp: HashMap<Option<ClusterKey>, HashMap<Option<u16>, TcpSeries>>,
    /// Refused requests and broken answers by cause label.
    pub causes: HashMap<(&'static str, Flags), u64>,
    /// Copies of requests by the cluster that got them and what became of them.
    pub mirrored: HashMap<(ClusterKey, Mirrored), u64>,
    /// Requests and connections that a limit of a cluster stopped.
    pub overflows: HashMap<(ClusterKey, Limit), u64>,
    /// Health checks of a cluster's endpoints: those that were passed (true) and those that were not.
    pub checks: HashMap<(ClusterKey, bool), u64>,
    /// Clients that are known, each with its number.
    pub sources: HashMap<SourceName, u16>,
    /// Counters.
    pub counters: Counters,
    /// Gauges.
    pub gauges: Gauges,
}

impl ShardStats {
    /// Counts a finished request.
    pub fn finish(&mut self, cluster: &Option<ClusterKey>, answer: Answer, facts: Finished) {
        if let Some(series) = self.series(cluster, answer) {
            series.count += 1;
            let _resized = series.duration_us.record(facts.duration_us);
            let _resized = series.request_bytes.record(facts.request_bytes);
            let _resized = series.response_bytes.record(facts.response_bytes);
        }
    }

    /// Notes whose a request is that was counted ([`Self::finish`]).
    pub fn finish_source(&mut self, cluster: &Option<ClusterKey>, answer: Answer, source: &SourceName) {
        let Some(number) = self.source_number(source) else {
            return;
        };
        if let Some(series) = self.series(cluster, answer) {
            *series.sources.entry(number).or_default() += 1;
        }
    }

    fn source_number(&mut self, source: &SourceName) -> Option<u16> {
        if let Some(known) = self.sources.get(source) {
            return Some(*known);
        }
        let next = self.sources.len();
        if next >= SOURCES_MAX {
            return None;
        }
        let next = u16::try_from(next).ok()?;
        self.sources.insert(source.clone(), next);
        Some(next)
    }

    /// Counts a finished request of a route with this `statPrefix`.
    pub fn finish_route(&mut self, stat_prefix: &str, status: u16, duration_us: u64) {
        if let Some(series) = self.route_series(stat_prefix, status) {
            let _resized = series.duration_us.record(duration_us);
        }
    }

    /// The series of a `statPrefix` and status, made when it is not there yet.
    fn route_series(&mut self, stat_prefix: &str, status: u16) -> Option<&mut RouteSeries> {
        let is_full = self.routes.len() >= STAT_PREFIXES_MAX;
        let known = self.routes.contains_key(stat_prefix);
        let prefix = if known || !is_full {
            stat_prefix
        } else {
            OTHER_PREFIXES
        };
        if !self.routes.contains_key(prefix) {
            self.routes.insert(prefix.into(), HashMap::new());
        }
        match self.routes.get_mut(prefix)?.entry(status) {
            std::collections::hash_map::Entry::Occupied(known) => Some(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(new) => Some(new.insert(RouteSeries {
                duration_us: Histogram::new(2).ok()?,
            })),
        }
    }

    /// Counts a copy of a request that has ended, or was not made.
    pub fn mirrored(&mut self, cluster: &ClusterKey, became: Mirrored) {
        *self.mirrored.entry((cluster.clone(), became)).or_default() += 1;
    }

    /// Counts a health check of an endpoint of a cluster.
    pub fn checked(&mut self, cluster: &ClusterKey, passed: bool) {
        *self.checks.entry((cluster.clone(), passed)).or_default() += 1;
    }

    fn tcp_series(&mut self, cluster: &Option<ClusterKey>, source: Option<&SourceName>) -> &mut TcpSeries {
        let source = source.and_then(|source| self.source_number(source));
        self.tcp
            .entry(cluster.clone())
            .or_default()
            .entry(source)
            .or_default()
    }

    /// Counts a connection of bytes that begins; `source` is the client, if it is known.
    pub fn tcp_opened(&mut self, cluster: &Option<ClusterKey>, source: Option<&SourceName>) {
        self.tcp_series(cluster, source).opened += 1;
    }

    /// Counts one that ends.
    pub fn tcp_closed(&mut self, cluster: &Option<ClusterKey>, source: Option<&SourceName>) {
        self.tcp_series(cluster, source).closed += 1;
    }

    /// Counts bytes that one has carried, from the client and to it.
    pub fn tcp_moved(
        &mut self,
        cluster: &Option<ClusterKey>,
        source: Option<&SourceName>,
        (received, sent): (u64, u64),
    ) {
        let source_number = source.and_then(|source| self.source_number(source));
        // A known cluster's name is not cloned: its count is another core's cache line.
        let known = self.tcp.get_mut(cluster);
        let series = match known.and_then(|sources| sources.get_mut(&source_number)) {
            Some(series) => series,
            None => self.tcp_series(cluster, source),
        };
        series.received += received;
        series.sent += sent;
    }

    /// The series, made when it is not there yet. A known cluster's name is not cloned: its count is another core's
    /// cache line.
    fn series(&mut self, cluster: &Option<ClusterKey>, answer: Answer) -> Option<&mut RequestSeries> {
        if !self.requests.contains_key(cluster) {
            self.requests.insert(cluster.clone(), HashMap::new());
        }
        let answers = self.requests.get_mut(cluster)?;
        match answers.entry(answer) {
            std::collections::hash_map::Entry::Occupied(known) => Some(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(new) => Some(new.insert(RequestSeries::new()?)),
        }
    }

    /// Adds another shard's.
    pub fn merge(&mut self, other: &Self) {
        let numbers: HashMap<u16, Option<u16>> = other
            .sources
            .iter()
            .map(|(name, theirs)| (*theirs, self.source_number(name)))
            .collect();
        for (cluster, answers) in &other.requests {
            for (answer, theirs) in answers {
                if let Some(mine) = self.series(cluster, *answer) {
                    mine.merge(theirs);
                    for (number, count) in &theirs.sources {
                        if let Some(Some(number)) = numbers.get(number) {
                            *mine.sources.entry(*number).or_default() += count;
                        }
                    }
                }
            }
        }
        for (prefix, statuses) in &other.routes {
            for (status, theirs) in statuses {
                if let Some(mine) = self.route_series(prefix, *status) {
                    let _resized = mine.duration_us.add(&theirs.duration_us);
                }
            }
        }
        for (cluster, sources) in &other.tcp {
            let mine = self.tcp.entry(cluster.clone()).or_default();
            for (source, theirs) in sources {
                let source = source.and_then(|source| numbers.get(&source).copied().flatten());
                let mine = mine.entry(source).or_default();
                mine.opened += theirs.opened;
                mine.closed += theirs.closed;
                mine.received += theirs.received;
                mine.sent += theirs.sent;
            }
        }
        for (cause, count) in &other.causes {
            *self.causes.entry(*cause).or_default() += count;
        }
        for (mirrored, count) in &other.mirrored {
            *self.mirrored.entry(mirrored.clone()).or_default() += count;
        }
        for (limit, count) in &other.overflows {
            *self.overflows.entry(limit.clone()).or_default() += count;
        }
        for (check, count) in &other.checks {
            *self.checks.entry(check.clone()).or_default() += count;
        }
        self.counters.merge(&other.counters);
        self.gauges.merge(&other.gauges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_shards_add_up() {
        let facts = |duration_us| Finished {
            duration_us,
            request_bytes: 3,
            response_bytes: 70_000,
        };
        let key = ClusterKey::outbound(80, "", "h");
        let (mut a, mut b) = (ShardStats::default(), ShardStats::default());
        let cluster = Some(key);
        let ok = Answer {
            status: 200,
            ..Answer::default()
        };
        let call = Answer {
            protocol: RequestProtocol::Grpc(Some(grpc::Status::Unavailable)),
            ..ok
        };
        let gone = Answer {
            flags: Flags::DC,
            ..Answer::default()
        };
        a.finish(&cluster, ok, facts(100));
        b.finish(&cluster, ok, facts(5_000_000));
        b.finish(&cluster, call, facts(1));
        b.finish(&None, gone, facts(1));
        a.merge(&b);
        assert_eq!(a.requests.len(), 2);
        assert_eq!(a.requests[&cluster][&call].count, 1);
        let series = &a.requests[&cluster][&ok];
        assert_eq!((series.count, series.duration_us.len()), (2, 2));
        assert!(series.duration_us.max() >= 5_000_000);
    }

    #[test]
    fn requests_of_known_clients_are_counted_by_their_names_up_to_a_bound() {
        let named = |name: String| SourceName {
            workload: name.into(),
            ..SourceName::unknown()
        };
        let (mut a, mut b) = (ShardStats::default(), ShardStats::default());
        // Each shard meets them in an order of its own.
        a.finish_source(&None, Answer::default(), &named("x".to_owned()));
        for name in ["y", "x", "x"] {
            b.finish_source(&None, Answer::default(), &named(name.to_owned()));
        }
        a.merge(&b);
        let count = |stats: &ShardStats, name: &str| {
            let number = stats.sources.get(&named(name.to_owned()))?;
            stats.requests[&None][&Answer::default()]
                .sources
                .get(number)
                .copied()
        };
        assert_eq!((count(&a, "x"), count(&a, "y")), (Some(3), Some(1)));
        for more in 0..SOURCES_MAX + 10 {
            a.finish_source(&None, Answer::default(), &named(more.to_string()));
        }
        assert_eq!(a.sources.len(), SOURCES_MAX);
    }

    #[test]
    fn prefixes_of_routes_are_counted_apart_up_to_a_bound() {
        let (mut a, mut b) = (ShardStats::default(), ShardStats::default());
        for stats in [&mut a, &mut b] {
            for prefix in 0..STAT_PREFIXES_MAX + 10 {
                stats.finish_route(&format!("p{prefix}"), 200, 7);
                stats.finish_route(&format!("p{prefix}"), 503, 7);
            }
        }
        a.merge(&b);
        assert_eq!(a.routes.len(), STAT_PREFIXES_MAX + 1);
        assert_eq!(a.routes["p0"][&503].duration_us.len(), 2);
        assert_eq!(a.routes[OTHER_PREFIXES][&200].duration_us.len(), 20);
    }

    #[test]
    fn bytes_are_counted_by_who_sends_them() {
        let named = |name: &str| SourceName {
            workload: name.into(),
            ..SourceName::unknown()
        };
        let key = Some(ClusterKey::outbound(80, "", "h"));
        let (mut a, mut b) = (ShardStats::default(), ShardStats::default());
        a.tcp_opened(&key, Some(&named("other")));
        for stats in [&mut a, &mut b] {
            stats.tcp_opened(&key, Some(&named("cart")));
            stats.tcp_moved(&key, Some(&named("cart")), (3, 4));
            stats.tcp_moved(&key, None, (1, 1));
        }
        a.merge(&b);
        let of = |name: Option<&str>| {
            let number = name.map(|name| a.sources.get(&named(name)).copied().unwrap());
            a.tcp.get(&key).unwrap().get(&number).copied().unwrap()
        };
        let cart = of(Some("cart"));
        assert_eq!((cart.opened, cart.received, cart.sent), (2, 6, 8));
        assert_eq!((of(Some("other")).opened, of(None).received), (1, 2));
    }
}
