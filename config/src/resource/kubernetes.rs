//! Kubernetes Service, EndpointSlice, Endpoints, Secret and workloads as written, as far as a gateway needs them.
//!
//! Their schema is Kubernetes' affair: fields that are not read here are passed over without a word.

use super::Meta;
use crate::yaml::Node;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Annotation of a Service that says which namespaces see it, with commas between them (Istio).
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `Service.spec`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) selector: BTreeMap<String, String>,
    /// Namespaces that see it, from its annotation.
    pub(crate) export_to: Vec<String>,
    /// Whether it is another name of something outside, and has no endpoints.
    pub(crate) is_external_name: bool,
}

/// `ports[]`.
#[derive(Debug)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) number: i128,
    /// `appProtocol`, empty when it is not said.
    pub(crate) app_protocol: String,
    /// `protocol`: TCP when it is not said.
    pub(crate) transport: String,
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
    pub(crate) fn read(spec: &Node, meta: &Meta) -> Self {
        let ports = spec.list("ports").iter().map(|node| ServicePort {
            name: node.text("name").unwrap_or("").to_owned(),
            number: node.int("port").unwrap_or(0),
            app_protocol: node.text("appProtocol").unwrap_or("").to_owned(),
            transport: node.text("protocol").unwrap_or("TCP").to_owned(),
            target_port: node.get("targetPort").and_then(Node::as_int),
        });
        let export_to = meta.annotations.get(EXPORT_TO).map_or("", String::as_str);
        let namespaces = export_to
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        Self {
            ports: ports.collect(),
            selector: spec.text_map("selector"),
            export_to: namespaces.map(str::to_owned).collect(),
            is_external_name: spec.text("type") == Some("ExternalName"),
        }
    }
}

/// A Pod, or what makes Pods.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Labels of the Pods.
    pub(crate) labels: BTreeMap<String, String>,
}

impl Workload {
    /// Reads a document; None when it makes no Pods.
    pub(crate) fn read(version: &str, kind: &str, node: &Node) -> Option<Self> {
        let metadata = match (version, kind) {
            ("v1", "Pod") => node.get("metadata"),
            ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => node
                .get("spec")
                .and_then(|spec| spec.get("template"))
                .and_then(|template| template.get("metadata")),
            _ => return None,
        };
        Some(Self {
            labels: metadata.unwrap_or(&Node::Null).text_map("labels"),
        })
    }
}

/// A Secret. Its values are never shown.
pub(crate) struct Secret {
    /// `kubernetes.io/tls` for a certificate with its key.
    pub(crate) kind: String,
    /// By key: the value, or None when it is not base64.
    pub(crate) values: BTreeMap<String, Option<Vec<u8>>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, keys {:?})", self.kind, self.values.keys())
    }
}

impl Secret {
    pub(crate) fn read(node: &Node) -> Self {
        let encoded = node
            .text_map("data")
            .into_iter()
            .map(|(key, value)| (key, crate::validate::virtual_service::base64(&value)));
        // As the API server does, plain text replaces what is encoded under the same key.
        let plain = node
            .text_map("stringData")
            .into_iter()
            .map(|(key, value)| (key, Some(value.into_bytes())));
        Self {
            kind: node.text("type").unwrap_or("").to_owned(),
            values: encoded.chain(plain).collect(),
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
