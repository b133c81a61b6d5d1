//! DestinationRule as written: how a service's clusters are balanced and connected to, and what its subsets are.

use super::duration_of;
use super::load_balancer::LoadBalancer;
use super::retries::RetryBudget;
use crate::yaml::Node;
use isthmus_core::cluster::balancer::BalancerKind;
use isthmus_core::cluster::outlier::OutlierPolicy;
use isthmus_core::cluster::retry_budget::Hedges;
use isthmus_core::cluster::{ProxyVersion, TcpKeepalive, Tunnel};
use isthmus_core::protocol::Http2Keepalive;
use isthmus_core::shared::Limits;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The annotation that asks for a balancer which Istio has no name for, in place of `loadBalancer.simple`.
pub(crate) const BALANCER: &str = "isthmus.dev/balancer";

/// The balancer that [`BALANCER`] names; None for an unknown name.
pub(crate) fn own_balancer(text: &str) -> Option<BalancerKind> {
    match text {
        "PEAK_EWMA" => Some(BalancerKind::PeakEwma),
        "PREQUAL" => Some(BalancerKind::Prequal),
        _ => None,
    }
}

/// `DestinationRule.spec`.
#[derive(Debug)]
pub(crate) struct DestinationRule {
    pub(crate) host: String,
    pub(crate) export_to: Vec<String>,
    pub(crate) workload_selector: Option<BTreeMap<String, String>>,
    pub(crate) policy: Option<Box<TrafficPolicy>>,
    pub(crate) subsets: Vec<Subset>,
}

/// `subsets[]`.
#[derive(Debug)]
pub(crate) struct Subset {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) policy: Option<Box<TrafficPolicy>>,
}

/// `trafficPolicy`, as far as it is executed.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrafficPolicy {
    pub(crate) blocks: Blocks,
    /// `portLevelSettings[]`.
    pub(crate) ports: Vec<(i128, Blocks)>,
    /// Whether any block is written, executed or not.
    pub(crate) has_block: bool,
}

/// The blocks that replace each other as wholes. Few of many rules have any of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blocks {
    pub(crate) load_balancer: Option<Arc<LoadBalancer>>,
    pub(crate) connection_pool: Option<Arc<ConnectionPool>>,
    pub(crate) tls: Option<Arc<ClientTls>>,
    pub(crate) proxy_protocol: Option<ProxyVersion>,
    pub(crate) tunnel: Option<Arc<Tunnel>>,
    pub(crate) retry_budget: Option<RetryBudget>,
    /// The annotation `isthmus.dev/hedging` of the whole rule.
    pub(crate) hedges: Hedges,
    /// Whether `outlierDetection` is written, so that endpoints can be found not to be available.
    pub(crate) has_outlier_detection: bool,
    /// Its `minHealthPercent`.
    pub(crate) min_health_percent: Option<u32>,
    pub(crate) outlier: Option<Arc<OutlierPolicy>>,
    /// Whether any of the four is written, executed or not.
    pub(crate) any: bool,
}

/// `connectionPool`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectionPool {
    /// `maxConnections`, `http1MaxPendingRequests`, `http2MaxRequests`.
    pub(crate) limits: Limits,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) tcp_idle_timeout: Option<Duration>,
    pub(crate) max_connection_duration: Option<Duration>,
    pub(crate) max_requests_per_connection: i128,
    pub(crate) max_retries: i128,
    pub(crate) keepalive: Option<TcpKeepalive>,
    /// `h2UpgradePolicy`; None for DEFAULT, which leaves it to the mesh.
    pub(crate) h2_upgrade: Option<bool>,
    pub(crate) use_client_protocol: bool,
    /// `maxConcurrentStreams`; None when it is not set or sets no limit.
    pub(crate) max_concurrent_streams: Option<u32>,
    pub(crate) http2_keepalive: Option<Http2Keepalive>,
}

/// `tls`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientTls {
    pub(crate) mode: String,
    pub(crate) client_certificate: String,
    pub(crate) private_key: String,
    pub(crate) ca_certificates: String,
    pub(crate) ca_crl: String,
    pub(crate) credential_name: String,
    pub(crate) subject_alt_names: Vec<String>,
    pub(crate) sni: String,
    pub(crate) insecure_skip_verify: bool,
}

impl ClientTls {
    fn read(node: &Node) -> Self {
        let text = |name| node.text(name).unwrap_or("").to_owned();
        Self {
            mode: node.text("mode").unwrap_or("DISABLE").to_owned(),
            client_certificate: text("clientCertificate"),
            private_key: text("privateKey"),
            ca_certificates: text("caCertificates"),
            ca_crl: text("caCrl"),
            credential_name: text("credentialName"),
            subject_alt_names: node.texts("subjectAltNames"),
            sni: text("sni"),
            insecure_skip_verify: node.flag("insecureSkipVerify"),
        }
    }
}

impl DestinationRule {
    pub(crate) fn read(spec: &Node) -> Self {
        let subsets = spec.list("subsets").iter().map(|node| Subset {
            name: node.text("name").unwrap_or("").to_owned(),
            labels: node.text_map("labels"),
            policy: node.get("trafficPolicy").map(TrafficPolicy::read).map(Box::new),
        });
        Self {
            host: spec.text("host").unwrap_or("").to_owned(),
            export_to: spec.texts("exportTo"),
            workload_selector: spec
                .get("workloadSelector")
                .map(|selector| selector.text_map("matchLabels")),
            policy: spec.get("trafficPolicy").map(TrafficPolicy::read).map(Box::new),
            subsets: subsets.collect(),
        }
    }
}

impl TrafficPolicy {
    fn read(node: &Node) -> Self {
        let ports = node.list("portLevelSettings").iter().map(|node| {
            let port = node.get("port").and_then(|port| port.int("number")).unwrap_or(0);
            (port, Blocks::read(node))
        });
        let has_block = node.entries().iter().any(|(_, value)| *value != Node::Null);
        Self {
            blocks: Blocks::read(node),
            ports: ports.collect(),
            has_block,
        }
    }
}

/// What `maxConcurrentStreams` is when it is not written: as many as a connection has streams.
const CONCURRENT_STREAMS_DEFAULT: u32 = (1 << 31) - 1;

/// Reads `http2KeepAlive`; validation has refused one without both fields.
fn http2_keepalive(node: &Node) -> Option<Http2Keepalive> {
    Some(Http2Keepalive {
        interval: duration_of(node, "interval")?,
        timeout: duration_of(node, "timeout")?,
    })
}

/// Reads `tcpKeepalive`, of a rule or of the mesh.
pub(crate) fn keepalive(node: &Node) -> TcpKeepalive {
    TcpKeepalive {
        probes: node
            .int("probes")
            .and_then(|probes| u32::try_from(probes).ok())
            .filter(|probes| *probes > 0),
        time: duration_of(node, "time"),
        interval: duration_of(node, "interval"),
    }
}

impl Blocks {
    fn read(node: &Node) -> Self {
        let pool = node.get("connectionPool");
        let written = |name| node.get(name).is_some();
        Self {
            load_balancer: node.get("loadBalancer").map(LoadBalancer::read).map(Arc::new),
            has_outlier_detection: written("outlierDetection"),
            outlier: node
                .get("outlierDetection")
                .map(super::outlier::read)
                .map(Arc::new),
            min_health_percent: node
                .get("outlierDetection")
                .and_then(|outlier| u32::try_from(outlier.int("minHealthPercent")?).ok()),
            connection_pool: pool.map(|pool| {
                let tcp = pool.get("tcp").unwrap_or(&Node::Null);
                let http = pool.get("http").unwrap_or(&Node::Null);
                // Zero is what is not written.
                let limit = |node: &Node, name| {
                    let written = node.int(name).and_then(|limit| u32::try_from(limit).ok());
                    written.filter(|limit| *limit > 0).unwrap_or(u32::MAX)
                };
                Arc::new(ConnectionPool {
                    limits: Limits {
                        connections: limit(tcp, "maxConnections"),
                        pending: limit(http, "http1MaxPendingRequests"),
                        requests: limit(http, "http2MaxRequests"),
                    },
                    connect_timeout: duration_of(tcp, "connectTimeout"),
                    idle_timeout: duration_of(http, "idleTimeout"),
                    tcp_idle_timeout: duration_of(tcp, "idleTimeout"),
                    max_connection_duration: duration_of(tcp, "maxConnectionDuration"),
                    keepalive: tcp.get("tcpKeepalive").map(keepalive),
                    max_requests_per_connection: http.int("maxRequestsPerConnection").unwrap_or(0),
                    max_retries: http.int("maxRetries").unwrap_or(0),
                    h2_upgrade: match http.text("h2UpgradePolicy") {
                        Some("UPGRADE") => Some(true),
                        Some("DO_NOT_UPGRADE") => Some(false),
                        _ => None,
                    },
                    use_client_protocol: http.flag("useClientProtocol"),
                    max_concurrent_streams: http
                        .int("maxConcurrentStreams")
                        .and_then(|streams| u32::try_from(streams).ok())
                        .filter(|streams| (1..CONCURRENT_STREAMS_DEFAULT).contains(streams)),
                    http2_keepalive: http.get("http2KeepAlive").and_then(http2_keepalive),
                })
            }),
            tls: node.get("tls").map(ClientTls::read).map(Arc::new),
            proxy_protocol: node.get("proxyProtocol").map(|node| match node.text("version") {
                Some("V2") => ProxyVersion::V2,
                _ => ProxyVersion::V1,
            }),
            tunnel: node.get("tunnel").and_then(|node| {
                let port = u16::try_from(node.int("targetPort")?).ok()?;
                let host = node.text("targetHost")?.into();
                (node.text("protocol") != Some("POST")).then(|| Arc::new(Tunnel { host, port }))
            }),
            retry_budget: node.get("retryBudget").map(RetryBudget::read),
            hedges: Hedges::default(),
            any: ["loadBalancer", "connectionPool", "outlierDetection", "tls"]
                .into_iter()
                .any(written),
        }
    }
}
