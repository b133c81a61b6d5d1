//! Validation of ServiceEntries and WorkloadEntries (Istio's `ValidateServiceEntry`, `ValidateWorkloadEntry`).

use super::gateway::is_protocol;
use super::{Validate, check_export_to, check_port, host_fault, is_label, is_partial_wildcard};
use crate::report::{Origin, Report};
use crate::resource::Meta;
use crate::resource::service_entry::{Resolution, ServiceEntry};
use crate::resource::workload::WorkloadEntry;
use crate::yaml::Path;
use isthmus_core::endpoint::UNIX;
use std::collections::HashSet;
use std::net::IpAddr;

impl Validate for ServiceEntry {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        let hosts = Path::SPEC.key("hosts");
        if self.hosts.is_empty() {
            report.error(
                "missing-field",
                origin,
                &hosts,
                "a ServiceEntry needs at least one host",
            );
        }
        for (at, host) in self.hosts.iter().enumerate() {
            let path = hosts.index(at);
            if let Some(fault) = host_fault(host) {
                report.error("bad-host", origin, &path, fault);
            } else if host == "*" {
                report.error("bad-host", origin, &path, "a ServiceEntry cannot be for `*`");
            } else if is_partial_wildcard(host) {
                report.warn(
                    "bad-host",
                    origin,
                    &path,
                    "a wildcard should be a whole label, as in `*.example.com`",
                );
            }
        }
        self.validate_ports(meta, report);
        self.validate_endpoints(meta, report);
        check_export_to(&self.export_to, true, meta, report);
    }
}

impl ServiceEntry {
    fn validate_ports(&self, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        let list = Path::SPEC.key("ports");
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        for (at, port) in self.ports.iter().enumerate() {
            let path = list.index(at);
            check_port(port.number, origin, &path.key("number"), report);
            if port.target_port != 0 {
                check_port(port.target_port, origin, &path.key("targetPort"), report);
            }
            if !is_label(&port.name) {
                let message = format!("`{}` is not a label of letters, digits and dashes", port.name);
                report.error("bad-value", origin, &path.key("name"), message);
            }
            if !names.insert(port.name.as_str()) {
                let message = format!("the port name `{}` is written twice", port.name);
                report.error("duplicate-value", origin, &path.key("name"), message);
            }
            if !numbers.insert(port.number) {
                let message = format!("the port {} is written twice", port.number);
                report.error("duplicate-value", origin, &path.key("number"), message);
            }
            if !port.protocol.is_empty() && !is_protocol(&port.protocol) {
                let message = format!("`{}` is not a protocol", port.protocol);
                report.error("bad-value", origin, &path.key("protocol"), message);
            }
        }
    }

    fn validate_endpoints(&self, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        let list = Path::SPEC.key("endpoints");
        if self.selector.is_some() && !self.endpoints.is_empty() {
            let path = Path::SPEC.key("workloadSelector");
            report.error(
                "exclusive-fields",
                origin,
                &path,
                "`workloadSelector` and `endpoints` exclude each other",
            );
        }
        let resolution = Path::SPEC.key("resolution");
        match self.resolution {
            Resolution::None | Resolution::DynamicDns if !self.endpoints.is_empty() => {
                report.error(
                    "exclusive-fields",
                    origin,
                    &list,
                    "endpoints need resolution STATIC or DNS",
                );
            }
            Resolution::DnsRoundRobin if self.endpoints.len() > 1 => {
                report.error("bad-value", origin, &list, "DNS_ROUND_ROBIN takes one endpoint");
            }
            _ => {}
        }
        let is_open = matches!(self.resolution, Resolution::None | Resolution::DynamicDns);
        if is_open && self.selector.is_some() {
            let message = "a `workloadSelector` has a meaning with resolution STATIC or DNS only: this service has no endpoints";
            report.warn("no-effect", origin, &resolution, message);
        } else if self.resolution == Resolution::DynamicDns
            && let Some(at) = self.hosts.iter().position(|host| !host.starts_with('*'))
        {
            // Istio: hosts must be wildcards.
            let path = Path::SPEC.key("hosts");
            let message = "DYNAMIC_DNS is for wildcards: write resolution DNS for one host";
            report.error("bad-host", origin, &path.index(at), message);
        } else if self.resolution != Resolution::Static
            && !is_open
            && self.endpoints.is_empty()
            && self.selector.is_none()
            && let Some(at) = self.hosts.iter().position(|host| host.starts_with('*'))
        {
            // Istio: hosts must be FQDN if no endpoints are provided.
            let path = Path::SPEC.key("hosts");
            let message = "a wildcard cannot be looked up in DNS: write `endpoints`";
            report.error("bad-host", origin, &path.index(at), message);
        }
        let ports: HashSet<&str> = self.ports.iter().map(|port| port.name.as_str()).collect();
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let path = list.index(at);
            endpoint.check(
                self.resolution == Resolution::Static,
                matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin),
                &path,
                origin,
                report,
            );
            if endpoint.address.starts_with(UNIX) && self.ports.len() != 1 {
                // A socket has no ports, so there is nothing to tell those of the service apart by.
                let message = "a ServiceEntry with an endpoint on a unix socket has exactly one port";
                report.error("exclusive-fields", origin, &path.key("address"), message);
            }
            for name in endpoint
                .ports
                .keys()
                .filter(|name| !ports.contains(name.as_str()))
            {
                let message = format!("the ServiceEntry has no port named `{name}`");
                let path = path.key("ports");
                report.add_key(
                    crate::diagnostic::Severity::Error,
                    "bad-value",
                    origin,
                    &path.key(name),
                    message,
                    None,
                );
            }
        }
    }
}

impl WorkloadEntry {
    /// The address, when it is an IP address.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }

    fn check(
        &self,
        only_ip: bool,
        resolves: bool,
        path: &Path<'_>,
        origin: &Origin,
        report: &mut Report<'_>,
    ) {
        let address = path.key("address");
        if self.address.is_empty() && !self.has_network {
            report.error("missing-field", origin, &address, "`address` is required");
        } else if self.address.starts_with(UNIX) {
            // The path is looked at where it is written.
            if resolves {
                let message = "an endpoint on a unix socket needs resolution STATIC";
                report.error("exclusive-fields", origin, &address, message);
            }
        } else if self.ip().is_none() && !self.address.is_empty() {
            if only_ip {
                let message = format!(
                    "`{}` is not an IP address",
                    crate::resource::schema::shortened(&self.address)
                );
                report.error("bad-value", origin, &address, message);
            } else if let Some(fault) = host_fault(&self.address) {
                report.error("bad-host", origin, &address, fault);
            }
        }
        let ports = path.key("ports");
        for (name, port) in &self.ports {
            check_port(*port, origin, &ports.key(name), report);
        }
    }
}

impl Validate for WorkloadEntry {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        self.check(false, false, &Path::SPEC, &meta.origin, report);
    }
}
