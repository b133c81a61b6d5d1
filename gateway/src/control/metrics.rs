//! Metrics: the shards' counts added up, and given out in Prometheus's text format.
//!
//! Counters and gauges go through the `metrics` facade. Distributions are rendered here: shards bring them as whole
//! histograms, and feeding those to the facade would mean one call for each request that there was.

use super::dns::{NAME_STATES, Names};
use super::source::Times;
use crate::tls::Store;
use hdrhistogram::Histogram;
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::name::{ClusterKey, ClusterMap};
use isthmus_core::shared::{ClusterShared, Limit};
use isthmus_core::source::SourceName;
use isthmus_core::stats::{Answer, Gauges, RequestProtocol, RequestSeries, ShardStats};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Istio's buckets of request duration, in milliseconds.
const DURATION_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// Buckets of body sizes, in bytes.
const SIZE_BYTES: [f64; 9] = [
    1.0,
    64.0,
    1024.0,
    16_384.0,
    65_536.0,
    1_048_576.0,
    10_485_760.0,
    104_857_600.0,
    1_073_741_824.0,
];

/// Buckets of the time from a change of endpoints until all shards have it, in seconds.
const UPDATE_SECONDS: [f64; 11] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0,
];

/// The process's metrics.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    total: std::cell::RefCell<ShardStats>,
    namespaces: std::cell::RefCell<Namespaces>,
    /// Clusters that have gauges: which limits, and whether endpoints were ejected.
    shown: std::cell::RefCell<ClusterMap<(Vec<Limit>, bool)>>,
    /// Microseconds from a change of a cluster's endpoints until every shard had it.
    endpoints: std::cell::RefCell<Option<Histogram<u32>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        Self {
            recorder,
            handle,
            total: std::cell::RefCell::default(),
            namespaces: std::cell::RefCell::default(),
            shown: std::cell::RefCell::default(),
            endpoints: std::cell::RefCell::new(Histogram::new(2).ok()),
        }
    }
}

/// The namespace of each cluster's service.
type Namespaces = ClusterMap<Box<str>>;

impl Metrics {
    /// Notes the clusters of a version. Those before it are kept: requests to them may still be counted.
    pub(super) fn set_clusters(&self, clusters: &ClusterMap<Arc<ClusterSpec>>) {
        let mut namespaces = self.namespaces.borrow_mut();
        for (key, spec) in clusters {
            namespaces
                .entry(key.clone())
                .or_insert_with(|| spec.namespace.clone());
        }
    }

    /// Adds what a shard has counted since it was last asked.
    pub(super) fn add(&self, stats: &ShardStats) {
        let namespaces = self.namespaces.borrow();
        let mut total = self.total.borrow_mut();
        total.merge(stats);
        // Gauges are what is there now, not a sum over time.
        total.gauges = Gauges::default();
        drop(total);
        metrics::with_local_recorder(&self.recorder, || {
            for (name, help, value) in stats.counters.list() {
                let name = format!("isthmus_{name}");
                metrics::describe_counter!(name.clone(), help);
                metrics::counter!(name).increment(value);
            }
            for (&(cause, flags), &count) in &stats.causes {
                metrics::counter!("isthmus_causes_total", "cause" => cause, "response_flags" => flags.to_string())
                    .increment(count);
            }
            metrics::describe_counter!(
                "isthmus_mirrored_requests_total",
                "Copies of requests by what became of them."
            );
            for ((cluster, became), &count) in &stats.mirrored {
                let (result, reason) = became.labels();
                metrics::counter!(
                    "isthmus_mirrored_requests_total",
                    "cluster" => cluster.to_string(),
                    "result" => result,
                    "reason" => reason
                )
                .increment(count);
            }
            metrics::describe_counter!(
                "isthmus_overflows_total",
                "Requests and connections that a limit of a cluster stopped."
            );
            for ((cluster, limit), &count) in &stats.overflows {
                let labels = [
                    ("cluster", cluster.to_string()),
                    ("limit", limit.label().to_owned()),
                ];
                metrics::counter!("isthmus_overflows_total", &labels).increment(count);
            }
            metrics::describe_counter!(
                "isthmus_health_checks_total",
                "Health checks of a cluster's endpoints, by result."
            );
            for ((cluster, passed), &count) in &stats.checks {
                let result = if *passed { "passed" } else { "failed" };
                let labels = [("cluster", cluster.to_string()), ("result", result.to_owned())];
                metrics::counter!("isthmus_health_checks_total", &labels).increment(count);
            }
            let nobody = SourceName::unknown();
            let numbers = stats.sources.iter();
            let sources: HashMap<u16, &SourceName> = numbers.map(|(name, number)| (*number, name)).collect();
            for (cluster, by_source) in &stats.tcp {
                let labels = tcp_labels(cluster.as_ref(), &namespaces);
                for (source, series) in by_source {
                    let name = source.and_then(|source| sources.get(&source).copied());
                    let labels = [labels.clone(), source_labels(name.unwrap_or(&nobody))].concat();
                    let count = |name: &'static str, value| {
                        metrics::counter!(name, labels.clone()).increment(value);
                    };
                    count("istio_tcp_connections_opened_total", series.opened);
                    count("istio_tcp_connections_closed_total", series.closed);
                    count("istio_tcp_received_bytes_total", series.received);
                    count("istio_tcp_sent_bytes_total", series.sent);
                }
            }
            for (prefix, statuses) in &stats.routes {
                for (&status, series) in statuses {
                    metrics::counter!("isthmus_route_requests_total", route_labels(prefix, status))
                        .increment(series.duration_us.len());
                }
            }
            for (cluster, answers) in &stats.requests {
                for (&answer, series) in answers {
                    let labels = labels(cluster.as_ref(), answer, &namespaces);
                    let count = |name: &SourceName, value: u64| {
                        let labels = [labels.clone(), source_labels(name)].concat();
                        metrics::counter!("istio_requests_total", labels).increment(value);
                    };
                    let mut nobodys = series.count;
                    for (number, &value) in &series.sources {
                        if let Some(name) = sources.get(number) {
                            count(name, value);
                            nobodys = nobodys.saturating_sub(value);
                        }
                    }
                    if nobodys > 0 || series.count == 0 {
                        count(&nobody, nobodys);
                    }
                }
            }
        });
    }

    /// Notes the rings of the shards, and how many run with the flag that they should.
    pub(super) fn set_rings(&self, rings: u32, flagged: u32) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::gauge!("isthmus_rings").set(rings);
            metrics::gauge!("isthmus_rings_flagged").set(flagged);
        });
    }

    /// Notes the limits of clusters, and how much of them is used.
    pub(super) fn set_limits(&self, clusters: &ClusterMap<Arc<ClusterShared>>) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::describe_gauge!("isthmus_cluster_limit", "A limit of a cluster.");
            metrics::describe_gauge!("isthmus_cluster_used", "How much of a cluster's limit is used.");
            metrics::describe_gauge!("isthmus_ejected", "Endpoints of a cluster that are ejected.");
            metrics::describe_gauge!(
                "isthmus_unhealthy",
                "Endpoints of a cluster that their health checks keep requests from."
            );
            let mut shown = self.shown.borrow_mut();
            // What is gone has nothing; a series cannot be taken back.
            for (key, (limits, ejects)) in shown.extract_if(|key, _| !clusters.contains_key(key)) {
                if ejects {
                    metrics::gauge!("isthmus_ejected", "cluster" => key.to_string()).set(0.0);
                    metrics::gauge!("isthmus_unhealthy", "cluster" => key.to_string()).set(0.0);
                }
                for limit in limits {
                    let labels = [("cluster", key.to_string()), ("limit", limit.label().to_owned())];
                    metrics::gauge!("isthmus_cluster_limit", &labels).set(0.0);
                    metrics::gauge!("isthmus_cluster_used", &labels).set(0.0);
                }
            }
            for (key, shared) in clusters {
                let (limits, ejects) = shown.entry(key.clone()).or_default();
                // Those that never had one that was not available have no series.
                if shared.ejections.epoch() > 0 {
                    *ejects = true;
                    metrics::gauge!("isthmus_ejected", "cluster" => key.to_string())
                        .set(f64::from(shared.ejections.count()));
                    metrics::gauge!("isthmus_unhealthy", "cluster" => key.to_string())
                        .set(f64::from(shared.ejections.unhealthy()));
                }
                for limit in Limit::ALL {
                    let budget = shared.budget(limit);
                    // What waits is worth knowing whether or not that is limited.
                    let can_wait = limit == Limit::Pending && shared.connections.is_limited();
                    if !budget.is_limited() && !can_wait {
                        continue;
                    }
                    if !limits.contains(&limit) {
                        limits.push(limit);
                    }
                    let labels = [("cluster", key.to_string()), ("limit", limit.label().to_owned())];
                    metrics::gauge!("isthmus_cluster_limit", &labels).set(f64::from(budget.limit()));
                    metrics::gauge!("isthmus_cluster_used", &labels).set(f64::from(budget.held()));
                }
            }
        });
    }

    /// Notes what is known about keys: when certificates expire, and how much is wrong.
    pub(super) fn set_certificates(&self, store: &Store) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::describe_gauge!(
                "isthmus_certificate_expiration_timestamp_seconds",
                "When a certificate ceases to be valid, in seconds since 1970."
            );
            for shown in store.certificates() {
                let expires = shown.info.not_after.duration_since(SystemTime::UNIX_EPOCH);
                let labels = [
                    ("source", shown.info.source.clone()),
                    ("subject", shown.info.subject.clone()),
                    ("serial", shown.info.serial.clone()),
                ];
                metrics::gauge!("isthmus_certificate_expiration_timestamp_seconds", &labels)
                    .set(expires.unwrap_or_default().as_secs_f64());
            }
            metrics::describe_gauge!("isthmus_key_errors", "Keys that cannot be loaded.");
            metrics::gauge!("isthmus_key_errors").set(store.errors().count() as f64);
        });
    }

    /// Counts an endpoint that was ejected, or is back.
    pub(super) fn count_ejection(&self, cluster: &str, ejected: bool) {
        let name = if ejected {
            "isthmus_ejections_total"
        } else {
            "isthmus_unejections_total"
        };
        metrics::with_local_recorder(&self.recorder, || {
            metrics::counter!(name, "cluster" => cluster.to_owned()).increment(1);
        });
    }

    /// Counts a verdict of health checks on an endpoint.
    pub(super) fn count_verdict(&self, cluster: &str, healthy: bool) {
        let verdict = if healthy { "healthy" } else { "unhealthy" };
        metrics::with_local_recorder(&self.recorder, || {
            let labels = [("cluster", cluster.to_owned()), ("verdict", verdict.to_owned())];
            metrics::counter!("isthmus_health_verdicts_total", &labels).increment(1);
        });
    }

    /// Counts a shard that stood still.
    pub(super) fn count_stall(&self) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::counter!("isthmus_shard_stalls_total").increment(1)
        });
    }

    /// Notes how often a shard has slept until the bound, because nothing else woke it.
    pub(super) fn set_oversleeps(&self, count: u64) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::describe_counter!(
                "isthmus_shard_oversleeps_total",
                "Sleeps of shards that nothing but their bound has ended."
            );
            metrics::counter!("isthmus_shard_oversleeps_total").absolute(count);
        });
    }

    /// Counts a look at the configuration by what came of it.
    pub(super) fn count_reload(&self, result: &'static str) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::describe_counter!(
                "isthmus_config_reloads_total",
                "Looks at the configuration, by result"
            );
            metrics::counter!("isthmus_config_reloads_total", "result" => result).increment(1);
        });
    }

    /// Counts a change of endpoints that has reached all shards, and how long that took.
    pub(super) fn endpoints_applied(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(endpoints) = &mut *self.endpoints.borrow_mut() {
            endpoints.saturating_record(us);
        }
    }

    /// Notes how many instances have registered themselves.
    pub(super) fn set_instances(&self, count: usize) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::gauge!("isthmus_registered_instances").set(count as f64);
        });
    }

    /// Counts instances that did not renew themselves.
    pub(super) fn count_expired(&self, count: usize) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::counter!("isthmus_registrations_expired_total").increment(count as u64);
        });
    }

    /// Notes how many names are in which state, and what came of questions about them.
    pub(super) fn set_names(&self, names: &Names) {
        let view = names.view();
        let counts = names.counts();
        metrics::with_local_recorder(&self.recorder, || {
            metrics::describe_gauge!("isthmus_dns_names", "Names of DNS, by what is known of them.");
            metrics::describe_counter!(
                "isthmus_dns_questions_total",
                "Questions to servers of DNS, by result."
            );
            for state in NAME_STATES {
                let count = view.iter().filter(|name| name.state == state).count();
                metrics::gauge!("isthmus_dns_names", "state" => state).set(count as f64);
            }
            for (result, count) in [
                ("answered", &counts.answered),
                ("none", &counts.none),
                ("failed", &counts.failed),
            ] {
                metrics::counter!("isthmus_dns_questions_total", "result" => result).absolute(count.get());
            }
        });
    }

    /// Notes how long the stages of the last version took.
    pub(super) fn set_stages(&self, times: Times, publish: Duration) {
        let stages = [
            ("read", times.read),
            ("compile", times.compile),
            ("publish", publish),
        ];
        metrics::with_local_recorder(&self.recorder, || {
            for (stage, time) in stages {
                metrics::gauge!("isthmus_config_stage_seconds", "stage" => stage).set(time.as_secs_f64());
            }
        });
    }

    /// Notes how many documents stay behind, and how many ports could not be opened.
    pub(super) fn set_left_behind(&self, documents: usize, ports: usize) {
        metrics::with_local_recorder(&self.recorder, || {
            metrics::gauge!("isthmus_config_quarantined_documents").set(documents as f64);
            metrics::gauge!("isthmus_config_failed_ports").set(ports as f64);
        });
    }

    /// Everything, as text.
    pub(super) fn render(
        &self,
        gauges: &Gauges,
        permits: u64,
        version: u64,
        shards: usize,
        log_losses: (u64, u64),
    ) -> String {
        metrics::with_local_recorder(&self.recorder, || {
            for (name, help, value) in gauges.list() {
                let name = format!("isthmus_{name}");
                metrics::describe_gauge!(name.clone(), help);
                metrics::gauge!(name).set(value as f64);
            }
            #[cfg(feature = "count-allocations")]
            {
                let heap = stats_alloc::INSTRUMENTED_SYSTEM.stats();
                metrics::gauge!("isthmus_allocations_total")
                    .set((heap.allocations + heap.reallocations) as f64);
            }
            metrics::gauge!("isthmus_permits_held").set(permits as f64);
            metrics::gauge!("isthmus_config_version").set(version as f64);
            metrics::gauge!("isthmus_shards").set(shards as f64);
            metrics::counter!("isthmus_access_log_dropped_batches_total").absolute(log_losses.0);
            metrics::counter!("isthmus_access_log_errors_total").absolute(log_losses.1);
        });
        let mut text = self.handle.render();
        let (total, namespaces) = (self.total.borrow(), self.namespaces.borrow());
        let mut series: Vec<(Option<&ClusterKey>, Answer, &RequestSeries)> = total
            .requests
            .iter()
            .flat_map(|(cluster, answers)| {
                answers
                    .iter()
                    .map(move |(&answer, series)| (cluster.as_ref(), answer, series))
            })
            .collect();
        series.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        type Part = fn(&RequestSeries) -> &Histogram<u32>;
        let parts: [(&str, &[f64], f64, Part); 3] = [
            (
                "istio_request_duration_milliseconds",
                &DURATION_MS,
                1000.0,
                |series| &series.duration_us,
            ),
            ("istio_request_bytes", &SIZE_BYTES, 1.0, |series| {
                &series.request_bytes
            }),
            ("istio_response_bytes", &SIZE_BYTES, 1.0, |series| {
                &series.response_bytes
            }),
        ];
        for (name, bounds, unit, part) in parts {
            let series = series
                .iter()
                .map(|&(cluster, answer, series)| (labels(cluster, answer, &namespaces), part(series)));
            distribution(&mut text, name, bounds, unit, series);
        }
        let mut routes: Vec<_> = total
            .routes
            .iter()
            .flat_map(|(prefix, statuses)| {
                statuses
                    .iter()
                    .map(move |(&status, series)| (prefix, status, series))
            })
            .collect();
        routes.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        let routes = routes
            .into_iter()
            .map(|(prefix, status, series)| (route_labels(prefix, status), &series.duration_us));
        let name = "isthmus_route_request_duration_milliseconds";
        distribution(&mut text, name, &DURATION_MS, 1000.0, routes);
        let endpoints = self.endpoints.borrow();
        let updates = endpoints.iter().map(|endpoints| (Vec::new(), endpoints));
        let name = "isthmus_endpoint_update_seconds";
        distribution(&mut text, name, &UPDATE_SECONDS, 1_000_000.0, updates);
        text
    }
}

/// Istio's standard labels, as far as a gateway knows them, and the subset.
fn labels(cluster: Option<&ClusterKey>, answer: Answer, namespaces: &Namespaces) -> Vec<metrics::Label> {
    let (protocol, grpc_status) = match answer.protocol {
        RequestProtocol::Http => ("http", None),
        RequestProtocol::Grpc(status) => ("grpc", status),
    };
    let host = cluster.map_or("unknown", ClusterKey::host);
    let mut parts = host.split('.');
    let name = parts.next().unwrap_or(host);
    let in_cluster = host.ends_with(".svc.cluster.local");
    let label = |key: &'static str, value: String| metrics::Label::new(key, value);
    vec![
        label("reporter", "source".into()),
        label("destination_service", host.into()),
        label(
            "destination_service_name",
            if in_cluster { name } else { host }.into(),
        ),
        label(
            "destination_service_namespace",
            cluster
                .and_then(|cluster| namespaces.get(cluster))
                .map_or("unknown", |namespace| namespace)
                .into(),
        ),
        label(
            "destination_port",
            cluster.map_or_else(String::new, |cluster| cluster.port().to_string()),
        ),
        label(
            "destination_subset",
            cluster.map_or("", ClusterKey::subset).into(),
        ),
        label("request_protocol", protocol.into()),
        label("response_code", answer.status.to_string()),
        label(
            "grpc_response_status",
            grpc_status.map_or_else(String::new, |status| status.number().to_string()),
        ),
        label("response_flags", answer.flags.to_string()),
        label("connection_security_policy", "none".into()),
    ]
}

/// Labels that say whose requests are counted.
fn source_labels(name: &SourceName) -> Vec<metrics::Label> {
    [
        ("source_workload", &name.workload),
        ("source_workload_namespace", &name.namespace),
        ("source_app", &name.app),
        ("source_version", &name.version),
    ]
    .map(|(key, value)| metrics::Label::new(key, value.to_string()))
    .into()
}

/// Labels of the series of a `statPrefix`.
fn route_labels(stat_prefix: &str, status: u16) -> Vec<metrics::Label> {
    vec![
        metrics::Label::new("stat_prefix", stat_prefix.to_owned()),
        metrics::Label::new("response_code", status.to_string()),
    ]
}

/// Labels of the series of connections of bytes.
fn tcp_labels(cluster: Option<&ClusterKey>, namespaces: &Namespaces) -> Vec<metrics::Label> {
    let mut all = labels(cluster, Answer::default(), namespaces);
    all.retain(|label| {
        !matches!(
            label.key(),
            "response_code" | "request_protocol" | "response_flags" | "grpc_response_status"
        )
    });
    all.push(metrics::Label::new("request_protocol", "tcp"));
    all
}

fn distribution<'a>(
    text: &mut String,
    name: &str,
    bounds: &[f64],
    unit: f64,
    series: impl Iterator<Item = (Vec<metrics::Label>, &'a Histogram<u32>)>,
) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(text, "# TYPE {name} histogram");
    for (labels, histogram) in series {
        let mut list = String::new();
        for label in labels {
            let value = label
                .value()
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _infallible = write!(list, "{}=\"{value}\",", label.key());
        }
        let mut sum = 0.0;
        let mut counts = vec![0u64; bounds.len()];
        for step in histogram.iter_recorded() {
            let value = step.value_iterated_to() as f64 / unit;
            sum += value * step.count_since_last_iteration() as f64;
            if let Some(at) = bounds.iter().position(|&bound| value <= bound)
                && let Some(count) = counts.get_mut(at)
            {
                *count += step.count_since_last_iteration();
            }
        }
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(counts) {
            below += count;
            let _infallible = writeln!(text, "{name}_bucket{{{list}le=\"{bound}\"}} {below}");
        }
        let list_only = list.trim_end_matches(',');
        let _infallible = writeln!(text, "{name}_bucket{{{list}le=\"+Inf\"}} {}", histogram.len());
        let _infallible = writeln!(text, "{name}_sum{{{list_only}}} {sum}");
        let _infallible = writeln!(text, "{name}_count{{{list_only}}} {}", histogram.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_core::grpc;
    use isthmus_core::stats::Finished;

    #[test]
    fn counters_and_distributions_carry_istios_names() {
        let metrics = Metrics::default();
        let mut stats = ShardStats::default();
        let key = Some(ClusterKey::outbound(
            9080,
            "v1",
            "reviews.default.svc.cluster.local",
        ));
        for ms in [1, 20, 400] {
            let facts = Finished {
                duration_us: ms * 1000,
                request_bytes: 0,
                response_bytes: 100,
            };
            let ok = Answer {
                status: 200,
                ..Answer::default()
            };
            stats.finish(&key, ok, facts);
            let call = Answer {
                protocol: RequestProtocol::Grpc(Some(grpc::Status::NotFound)),
                ..ok
            };
            stats.finish(&None, call, facts);
            stats.finish_route("front", 200, ms * 1000);
            if ms == 1 {
                let name = SourceName {
                    workload: "cart".into(),
                    ..SourceName::unknown()
                };
                stats.finish_source(&key, ok, &name);
            }
        }
        stats.counters.retries = 2;
        metrics.add(&stats);
        metrics.add(&stats);
        metrics.set_oversleeps(3);
        metrics.set_oversleeps(5);
        let text = metrics.render(&Gauges::default(), 4, 1, 2, (0, 0));
        let has = |parts: &[&str]| {
            text.lines()
                .any(|line| parts.iter().all(|part| line.contains(part)))
        };
        assert!(
            has(&[
                "istio_requests_total{",
                "destination_service_name=\"reviews\"",
                "response_code=\"200\"",
                "source_workload=\"unknown\"",
                " 4"
            ]),
            "{text}"
        );
        assert!(
            has(&[
                "istio_requests_total{",
                "destination_service_name=\"reviews\"",
                "source_workload=\"cart\"",
                "source_app=\"unknown\"",
                " 2"
            ]),
            "{text}"
        );
        assert!(
            has(&["istio_request_duration_milliseconds_bucket{", "le=\"25\"", " 4"]),
            "{text}"
        );
        assert!(
            has(&["istio_request_duration_milliseconds_count{", " 6"]),
            "{text}"
        );
        assert!(
            has(&["istio_response_bytes_bucket{", "le=\"1024\"", " 6"]),
            "{text}"
        );
        assert!(
            has(&[
                "istio_requests_total{",
                "request_protocol=\"grpc\"",
                "response_code=\"200\"",
                "grpc_response_status=\"5\"",
                " 6"
            ]),
            "{text}"
        );
        assert!(
            has(&["isthmus_route_requests_total{stat_prefix=\"front\",response_code=\"200\"} 6"]),
            "{text}"
        );
        assert!(
            has(&[
                "isthmus_route_request_duration_milliseconds_bucket{stat_prefix=\"front\",",
                "le=\"25\"",
                " 4"
            ]),
            "{text}"
        );
        assert!(has(&["isthmus_upstream_retries_total 4"]), "{text}");
        assert!(has(&["isthmus_permits_held 4"]), "{text}");
        assert!(has(&["isthmus_shard_oversleeps_total 5"]), "{text}");
    }
}
