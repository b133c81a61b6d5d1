//! WorkloadEntry as written: one instance of a workload that is not a pod. ServiceEntry endpoints have its form.

use crate::yaml::Node;
use isthmus_core::cluster::health::HealthPolicy;
use std::collections::BTreeMap;
use std::sync::Arc;

/// `WorkloadEntry.spec`, or one of `ServiceEntry.spec.endpoints`.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadEntry {
    pub(crate) address: String,
    pub(crate) ports: BTreeMap<String, i128>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) locality: String,
    pub(crate) weight: i128,
    pub(crate) has_network: bool,
    /// How it is checked: that of its WorkloadGroup ([`super::health::join_groups`]).
    pub(crate) probe: Option<Arc<HealthPolicy>>,
    pub(crate) service_account: String,
}

impl WorkloadEntry {
    pub(crate) fn read(spec: &Node) -> Self {
        let ports = spec.get("ports").map_or(&[][..], Node::entries).iter();
        Self {
            address: spec.text("address").unwrap_or("").to_owned(),
            ports: ports
                .filter_map(|(name, port)| Some((name.clone(), port.as_int()?)))
                .collect(),
            labels: spec.text_map("labels"),
            locality: spec.text("locality").unwrap_or("").to_owned(),
            weight: spec.int("weight").unwrap_or(0),
            service_account: spec.text("serviceAccount").unwrap_or("").to_owned(),
            has_network: spec.text("network").is_some_and(|network| !network.is_empty()),
            probe: None,
        }
    }
}
