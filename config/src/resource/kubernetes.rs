//! Kubernetes Service, EndpointSlice and Endpoints as written, as far as a gateway needs them.
//!
//! Their schema is Kubernetes' affair: fields that are not read here are passed over without a word.

use super::Meta;
use crate::yaml::Node;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `Service.spec`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) selector: BTreeMap<String, String>,
}

/// `ports[]`.
#[derive(Debug)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) number: i128,
    /// `targetPort` when it is a number.
    pub(crate) target_port: Option<i128>,
}

/// An EndpointSlice, or one subset of Endpoints.
#[derive(Debug)]
pub(crate) struct EndpointSlice {
    /// Name of the Service in the same namespace.
    pub(crate) service: String,
    pub(crate) ports: Vec<SlicePort>,
    /// Ready addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Labels of all its endpoints: those of the slice. A slice does not carry its pods' own labels, so that files
    /// give each version a slice of its own.
    pub(crate) labels: BTreeMap<String, String>,
}

/// `ports[]` of a slice.
#[derive(Debug, Clone)]
pub(crate) struct SlicePort {
    pub(crate) name: String,
    pub(crate) number: i128,
}

impl Service {
    pub(crate) fn read(spec: &Node) -> Self {
        let ports = spec.list("ports").iter().map(|node| ServicePort {
            name: node.text("name").unwrap_or("").to_owned(),
            number: node.int("port").unwrap_or(0),
            target_port: node.get("targetPort").and_then(Node::as_int),
        });
        Self {
            ports: ports.collect(),
            selector: spec.text_map("selector"),
        }
    }
}

fn slice_ports(node: &Node) -> Vec<SlicePort> {
    let ports = node.list("ports").iter().filter_map(|port| {
        Some(SlicePort {
            name: port.text("name").unwrap_or("").to_owned(),
            number: port.int("port")?,
        })
    });
    ports.collect()
}

impl EndpointSlice {
    pub(crate) fn read(node: &Node, meta: &Meta) -> Self {
        let ready = node.list("endpoints").iter().filter(|endpoint| {
            // Absent means ready (discovery.k8s.io/v1 EndpointConditions).
            endpoint
                .get("conditions")
                .and_then(|conditions| conditions.get("ready"))
                != Some(&Node::Bool(false))
        });
        let addresses = ready
            .flat_map(|endpoint| endpoint.list("addresses"))
            .filter_map(Node::as_text);
        Self {
            service: meta.labels.get(SERVICE_NAME).cloned().unwrap_or_default(),
            ports: slice_ports(node),
            addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
            labels: meta.labels.clone(),
        }
    }
}

/// Reads v1 Endpoints, which Kubernetes replaced by EndpointSlice: each subset becomes a slice.
pub(crate) fn read_endpoints(node: &Node, meta: &Meta) -> Vec<EndpointSlice> {
    let subsets = node.list("subsets").iter().map(|subset| {
        let addresses = subset
            .list("addresses")
            .iter()
            .filter_map(|address| address.text("ip")?.parse().ok());
        EndpointSlice {
            service: meta.name.clone(),
            ports: slice_ports(subset),
            addresses: addresses.collect(),
            labels: meta.labels.clone(),
        }
    });
    subsets.collect()
}
