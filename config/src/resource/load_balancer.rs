//! `loadBalancer` as written: how endpoints are chosen, of a DestinationRule, and `localityLbSetting`, of the mesh, too.

use super::duration_of;
use crate::yaml::Node;
use std::time::Duration;

/// `loadBalancer`.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadBalancer {
    pub(crate) simple: Option<String>,
    pub(crate) consistent_hash: Option<ConsistentHash>,
    pub(crate) locality: Option<LocalitySetting>,
    pub(crate) zone_aware: Option<ZoneAwareSetting>,
    pub(crate) warmup: Option<Warmup>,
}

/// `consistentHash`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConsistentHash {
    pub(crate) header: Option<String>,
    pub(crate) cookie: Option<HttpCookie>,
    pub(crate) source_ip: bool,
    pub(crate) query: Option<String>,
    /// `minimumRingSize`, of either spelling; 0 when it is not written.
    pub(crate) ring_size: i128,
    /// `maglev.tableSize`.
    pub(crate) maglev: Option<i128>,
}

/// `httpCookie`.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpCookie {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) ttl: Option<Duration>,
    pub(crate) attributes: Vec<(String, String)>,
}

/// `localityLbSetting`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalitySetting {
    /// None when it is not written, which is as good as true.
    pub(crate) enabled: Option<bool>,
    /// `from`, and `to` with its shares.
    pub(crate) distribute: Vec<(String, Vec<(String, u32)>)>,
    /// `from` and `to`.
    pub(crate) failover: Vec<(String, String)>,
    pub(crate) failover_priority: Vec<String>,
}

/// `zoneAwareLbSetting`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ZoneAwareSetting {
    pub(crate) enabled: Option<bool>,
    pub(crate) failover: Vec<(String, String)>,
    pub(crate) failover_priority: Vec<String>,
    pub(crate) cluster_size_min: Option<u32>,
}

/// `warmup`, or `warmupDurationSecs`, its old spelling.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Warmup {
    pub(crate) duration: Duration,
    pub(crate) minimum_percent: Option<f64>,
    pub(crate) aggression: Option<f64>,
}

impl LoadBalancer {
    pub(crate) fn read(node: &Node) -> Self {
        let warmup = node.get("warmup").and_then(|node| {
            let number = |name| node.get(name).and_then(Node::as_number);
            Some(Warmup {
                duration: duration_of(node, "duration")?,
                minimum_percent: number("minimumPercent"),
                aggression: number("aggression"),
            })
        });
        let old = || {
            Some(Warmup {
                duration: duration_of(node, "warmupDurationSecs")?,
                minimum_percent: None,
                aggression: None,
            })
        };
        Self {
            simple: node.text("simple").map(str::to_owned),
            consistent_hash: node.get("consistentHash").map(ConsistentHash::read),
            locality: node.get("localityLbSetting").map(LocalitySetting::read),
            zone_aware: node.get("zoneAwareLbSetting").map(|node| ZoneAwareSetting {
                enabled: bool_of(node, "enabled"),
                failover: failover(node),
                failover_priority: node.texts("failoverPriority"),
                cluster_size_min: node
                    .int("minClusterSize")
                    .and_then(|size| u32::try_from(size).ok()),
            }),
            warmup: warmup.or_else(old),
        }
    }
}

impl ConsistentHash {
    fn read(node: &Node) -> Self {
        let written = |name| node.text(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let size = |node: &Node| node.int("minimumRingSize").unwrap_or(0);
        Self {
            header: written("httpHeaderName"),
            cookie: node.get("httpCookie").map(|node| HttpCookie {
                name: node.text("name").unwrap_or("").to_owned(),
                path: node.text("path").unwrap_or("").to_owned(),
                ttl: duration_of(node, "ttl"),
                attributes: node
                    .list("attributes")
                    .iter()
                    .map(|node| {
                        let text = |name| node.text(name).unwrap_or("").to_owned();
                        (text("name"), text("value"))
                    })
                    .collect(),
            }),
            source_ip: node.flag("useSourceIp"),
            query: written("httpQueryParameterName"),
            ring_size: node.get("ringHash").map_or_else(|| size(node), size),
            maglev: node.get("maglev").map(|node| node.int("tableSize").unwrap_or(0)),
        }
    }
}

impl LocalitySetting {
    pub(crate) fn read(node: &Node) -> Self {
        let distribute = node.list("distribute").iter().map(|node| {
            let to = node.get("to").map_or(&[][..], Node::entries).iter();
            let shares =
                to.filter_map(|(to, share)| Some((to.clone(), u32::try_from(share.as_int()?).ok()?)));
            (node.text("from").unwrap_or("").to_owned(), shares.collect())
        });
        Self {
            enabled: bool_of(node, "enabled"),
            distribute: distribute.collect(),
            failover: failover(node),
            failover_priority: node.texts("failoverPriority"),
        }
    }

    /// Whether it is written and not turned off.
    pub(crate) fn is_on(&self) -> bool {
        self.enabled != Some(false)
    }
}

fn failover(node: &Node) -> Vec<(String, String)> {
    let pair = |node: &Node| {
        let text = |name| node.text(name).unwrap_or("").to_owned();
        (text("from"), text("to"))
    };
    node.list("failover").iter().map(pair).collect()
}

fn bool_of(node: &Node, name: &str) -> Option<bool> {
    match node.get(name) {
        Some(Node::Bool(value)) => Some(*value),
        _ => None,
    }
}
