//! ServiceEntry as written: a service that no Kubernetes Service describes.

use super::workload::WorkloadEntry;
use crate::yaml::Node;
use std::collections::BTreeMap;

/// `ServiceEntry.spec`.
#[derive(Debug)]
pub(crate) struct ServiceEntry {
    pub(crate) hosts: Vec<String>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) resolution: Resolution,
    /// `location: MESH_INTERNAL`; of no meaning but to who looks for ways out.
    pub(crate) is_internal: bool,
    pub(crate) endpoints: Vec<WorkloadEntry>,
    /// `workloadSelector.labels`.
    pub(crate) selector: Option<BTreeMap<String, String>>,
    pub(crate) export_to: Vec<String>,
    pub(crate) subject_alt_names: Vec<String>,
}

/// `ports[]`.
#[derive(Debug, Clone)]
pub(crate) struct ServicePort {
    pub(crate) number: i128,
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) target_port: i128,
}

/// `resolution`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

impl ServiceEntry {
    pub(crate) fn read(spec: &Node) -> Self {
        let ports = spec.list("ports").iter().map(|node| ServicePort {
            number: node.int("number").unwrap_or(0),
            name: node.text("name").unwrap_or("").to_owned(),
            protocol: node.text("protocol").unwrap_or("").to_owned(),
            target_port: node.int("targetPort").unwrap_or(0),
        });
        Self {
            hosts: spec.texts("hosts"),
            ports: ports.collect(),
            resolution: match spec.text("resolution") {
                Some("STATIC") => Resolution::Static,
                Some("DNS") => Resolution::Dns,
                Some("DNS_ROUND_ROBIN") => Resolution::DnsRoundRobin,
                Some("DYNAMIC_DNS") => Resolution::DynamicDns,
                _ => Resolution::None,
            },
            is_internal: spec.text("location") == Some("MESH_INTERNAL"),
            endpoints: spec.list("endpoints").iter().map(WorkloadEntry::read).collect(),
            selector: spec.get("workloadSelector").map(|node| node.text_map("labels")),
            export_to: spec.texts("exportTo"),
            subject_alt_names: spec.texts("subjectAltNames"),
        }
    }
}
