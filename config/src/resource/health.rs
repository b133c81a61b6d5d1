//! HealthCheckPolicy and WorkloadGroup as written: how endpoints are asked whether they can serve.
//!
//! Both have the probe of Kubernetes. That of a WorkloadGroup is for the WorkloadEntries of the group; a
//! HealthCheckPolicy, a kind of this gateway's own, is for all endpoints of a service, and goes first.

use super::workload::WorkloadEntry;
use super::{Meta, Written};
use crate::index::selects;
use crate::yaml::Node;
use isthmus_core::cluster::health::{Check, CheckTransport, HealthPolicy, HttpCheck};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The annotation of a WorkloadEntry that names its WorkloadGroup (Istio).
const GROUP: &str = "istio.io/autoRegistrationGroup";
/// The statuses that say yes when nothing is written (Kubernetes).
const EXPECTED: (u16, u16) = (200, 399);

/// `HealthCheckPolicy.spec`.
#[derive(Debug)]
pub(crate) struct HealthCheckPolicy {
    pub(crate) host: String,
    /// Empty for every one, and for the service as a whole.
    pub(crate) subset: String,
    /// The service's port; None for every one.
    pub(crate) port: Option<u16>,
    pub(crate) policy: Arc<HealthPolicy>,
    pub(crate) panic_percent: Option<u32>,
    /// As they are written.
    pub(crate) statuses: Vec<String>,
}

/// `WorkloadGroup.spec`.
#[derive(Debug)]
pub(crate) struct WorkloadGroup {
    /// `metadata.labels`: those of its entries.
    pub(crate) labels: BTreeMap<String, String>,
    /// None without a probe, and for one that a gateway cannot make.
    pub(crate) probe: Option<Arc<HealthPolicy>>,
}

impl HealthCheckPolicy {
    pub(crate) fn read(spec: &Node) -> Self {
        let statuses = spec.texts("expectedStatuses");
        let expected = statuses.iter().filter_map(|text| status_range(text)).collect();
        let starts_healthy = spec.text("initialState") != Some("UNHEALTHY");
        let none = Node::Null;
        let probe = spec.get("probe").unwrap_or(&none);
        Self {
            host: spec.text("host").unwrap_or("").to_owned(),
            subset: spec.text("subset").unwrap_or("").to_owned(),
            port: spec.int("port").and_then(|port| u16::try_from(port).ok()),
            // Validation has refused one that asks nothing.
            policy: Arc::new(probe_of(probe, expected, starts_healthy).unwrap_or_else(tcp)),
            panic_percent: spec
                .int("panicThreshold")
                .and_then(|percent| u32::try_from(percent).ok()),
            statuses,
        }
    }
}

impl WorkloadGroup {
    pub(crate) fn read(spec: &Node) -> Self {
        Self {
            labels: spec
                .get("metadata")
                .map(|metadata| metadata.text_map("labels"))
                .unwrap_or_default(),
            probe: spec
                .get("probe")
                .and_then(|probe| probe_of(probe, Vec::new(), true))
                .map(Arc::new),
        }
    }

    /// Whether an entry is of this group: it says so, or has all the labels that the group gives its entries.
    fn has(&self, group: &Meta, entry: &Meta, labels: &BTreeMap<String, String>) -> bool {
        group.namespace == entry.namespace
            && match entry.annotations.get(GROUP) {
                Some(name) => *name == group.name,
                None => !self.labels.is_empty() && selects(&self.labels, labels),
            }
    }
}

/// Has the entries of groups checked as their group says; of several that have one the first counts.
pub(crate) fn join_groups(groups: &[Written<WorkloadGroup>], entries: &mut [Written<WorkloadEntry>]) {
    let groups: Vec<_> = groups.iter().filter(|group| group.spec.probe.is_some()).collect();
    for Written { meta, spec } in entries {
        let mut of = groups
            .iter()
            .filter(|group| group.spec.has(&group.meta, meta, &spec.labels));
        let probe = of.next().and_then(|group| group.spec.probe.clone());
        if spec.probe != probe {
            Arc::make_mut(spec).probe = probe;
        }
    }
}

/// `200-299`, or one status.
pub(crate) fn status_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let plain = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number: u16 = plain.then(|| text.parse().ok())??;
        (100..=599).contains(&number).then_some(number)
    };
    let (first, last) = (status(first.trim())?, status(last.trim())?);
    (first <= last).then_some((first, last))
}

fn tcp() -> HealthPolicy {
    HealthPolicy {
        check: Check::Tcp,
        port: None,
        transport: CheckTransport::Own,
        initial_delay: Duration::ZERO,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        healthy_after: 1,
        unhealthy_after: 3,
        starts_healthy: true,
    }
}

/// Reads a probe, whose zeros are what is not written (Kubernetes). None when it asks nothing that can be asked from
/// here.
fn probe_of(node: &Node, expected: Vec<(u16, u16)>, starts_healthy: bool) -> Option<HealthPolicy> {
    let number = |name: &str, default: u32| {
        let written = node.int(name).and_then(|number| u32::try_from(number).ok());
        written.filter(|number| *number > 0).unwrap_or(default)
    };
    let seconds = |name: &str, default| Duration::from_secs(number(name, default).into());
    let (check, method, scheme) = if let Some(get) = node.get("httpGet") {
        (Check::Http(http(get, expected)), get, get.text("scheme"))
    } else if let Some(tcp) = node.get("tcpSocket") {
        (Check::Tcp, tcp, None)
    } else {
        let grpc = node.get("grpc")?;
        let service = grpc.text("service").unwrap_or("").into();
        (Check::Grpc { service }, grpc, None)
    };
    Some(HealthPolicy {
        check,
        port: method
            .int("port")
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0),
        transport: match scheme {
            Some("HTTP") => CheckTransport::Plaintext,
            Some("HTTPS") => CheckTransport::Tls,
            _ => CheckTransport::Own,
        },
        initial_delay: seconds("initialDelaySeconds", 0),
        interval: seconds("periodSeconds", 10),
        timeout: seconds("timeoutSeconds", 1),
        healthy_after: number("successThreshold", 1),
        unhealthy_after: number("failureThreshold", 3),
        starts_healthy,
    })
}

fn http(get: &Node, expected: Vec<(u16, u16)>) -> HttpCheck {
    let path = get.text("path").unwrap_or("");
    let mut host = get.text("host").filter(|host| !host.is_empty()).map(Box::from);
    let mut fields = Vec::new();
    for field in get.list("httpHeaders") {
        let (name, value) = (
            field.text("name").unwrap_or(""),
            field.text("value").unwrap_or(""),
        );
        if name.eq_ignore_ascii_case("host") {
            host = Some(value.into());
        } else {
            fields.push((name.to_ascii_lowercase().into(), value.into()));
        }
    }
    HttpCheck {
        // As Kubernetes does.
        path: match path.starts_with('/') {
            true => path.into(),
            false => format!("/{path}").into(),
        },
        host,
        fields: fields.into(),
        expected: match expected.is_empty() {
            true => [EXPECTED].into(),
            false => expected.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_statuses_are_read() {
        assert_eq!(status_range("204"), Some((204, 204)));
        assert_eq!(status_range("200-299"), Some((200, 299)));
        assert_eq!(status_range("200 - 299"), Some((200, 299)));
        for bad in [
            "",
            "2xx",
            "299-200",
            "99",
            "600",
            "200-",
            "-200",
            "+20",
            "200-299-300",
        ] {
            assert_eq!(status_range(bad), None, "{bad}");
        }
    }
}
