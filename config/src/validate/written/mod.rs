//! Istio's rules for fields that have no typed form yet, because nothing executes them: they are read from the
//! document as it was written. What a field alone must obey is in the schema; here is what several must.

mod destination_rule;
mod virtual_service;

use super::{check_labels, check_port, host_fault, is_label, unix_fault};
use crate::diagnostic::Severity;
use crate::report::Report;
use crate::resource::Meta;
use crate::yaml::{Node, Path};
use std::net::IpAddr;

/// One resource that is being checked.
struct Check<'c, 'r> {
    meta: &'c Meta,
    report: &'c mut Report<'r>,
}

/// Checks the `spec` of a resource of Istio's kinds.
pub(crate) fn check(kind: &str, spec: &Node, meta: &Meta, report: &mut Report<'_>) {
    let mut check = Check { meta, report };
    match kind {
        "Gateway" => check.gateway(spec),
        "VirtualService" => check.virtual_service(spec),
        "DestinationRule" => check.destination_rule(spec),
        "ServiceEntry" => check.service_entry(spec),
        "WorkloadEntry" => check.workload(spec, &Path::SPEC),
        "WorkloadGroup" => check.workload_group(spec),
        "HealthCheckPolicy" => check.health_check_policy(spec),
        _ => {}
    }
}

fn has(node: &Node, name: &str) -> bool {
    node.get(name).is_some_and(|value| *value != Node::Null)
}

/// Whether a text is written and not empty.
fn has_text(node: &Node, name: &str) -> bool {
    node.text(name).is_some_and(|text| !text.is_empty())
}

impl Check<'_, '_> {
    fn error(&mut self, code: &'static str, path: &Path<'_>, message: impl Into<String>) {
        self.report.error(code, &self.meta.origin, path, message);
    }

    fn missing(&mut self, path: &Path<'_>, message: impl Into<String>) {
        self.error("missing-field", path, message);
    }

    fn exclusive(&mut self, path: &Path<'_>, a: &str, b: &str) {
        let message = format!("`{a}` and `{b}` exclude each other");
        let path = path.key(b);
        self.report.add_key(
            Severity::Error,
            "exclusive-fields",
            &self.meta.origin,
            &path,
            message,
            None,
        );
    }

    /// At most one of the fields may be written; the second one that is gets the blame.
    fn at_most_one(&mut self, node: &Node, path: &Path<'_>, names: &[&str]) {
        let mut written = names.iter().filter(|name| has(node, name));
        if let (Some(first), Some(second)) = (written.next(), written.next()) {
            self.exclusive(path, first, second);
        }
    }

    /// Checks labels that are written in a map.
    fn labels(&mut self, node: &Node, path: &Path<'_>, name: &str) {
        check_labels(
            &node.text_map(name),
            &path.key(name),
            &self.meta.origin,
            self.report,
        );
    }

    /// A selector that Istio compares whole: no empty keys, no wildcards.
    fn selector(&mut self, node: &Node, path: &Path<'_>, name: &str) {
        let path = path.key(name);
        for (key, value) in node.text_map(name) {
            let entry = path.key(&key);
            if key.is_empty() {
                self.error("bad-value", &entry, "a label needs a key");
            } else if key.contains('*') || value.contains('*') {
                self.error("bad-value", &entry, "a selector has no wildcards");
            }
        }
    }

    fn subnet(&mut self, subnet: &str, path: &Path<'_>) {
        if !is_subnet(subnet) {
            let message = format!(
                "`{}` is not an address, nor a range such as 10.0.0.0/8",
                crate::resource::schema::shortened(subnet)
            );
            self.error("bad-value", path, message);
        }
    }

    fn port(&mut self, node: &Node, path: &Path<'_>, name: &str) {
        if let Some(number) = node.int(name) {
            check_port(number, &self.meta.origin, &path.key(name), self.report);
        }
    }

    // Gateway

    fn gateway(&mut self, spec: &Node) {
        self.labels(spec, &Path::SPEC, "selector");
        let list = Path::SPEC.key("servers");
        for (at, server) in spec.list("servers").iter().enumerate() {
            let path = list.index(at);
            if let Some(bind) = server.text("bind").and_then(|bind| bind.strip_prefix("unix://"))
                && let Some(fault) = unix_fault(bind)
            {
                self.error("bad-value", &path.key("bind"), fault);
            }
            if let Some(tls) = server.get("tls") {
                self.server_tls(tls, &path.key("tls"));
            }
        }
    }

    fn server_tls(&mut self, tls: &Node, path: &Path<'_>) {
        let mode = tls.text("mode").unwrap_or("PASSTHROUGH");
        if mode == "ISTIO_MUTUAL" {
            const FORBIDDEN: [&str; 6] = [
                "serverCertificate",
                "privateKey",
                "caCertificates",
                "credentialName",
                "credentialNames",
                "tlsCertificates",
            ];
            for name in FORBIDDEN.iter().filter(|name| has(tls, name)) {
                let message =
                    format!("mode ISTIO_MUTUAL has its own certificates: `{name}` must not be written");
                self.error("exclusive-fields", &path.key(name), message);
            }
            return;
        }
        let sources = [
            ("credentialName", has_text(tls, "credentialName")),
            ("credentialNames", !tls.list("credentialNames").is_empty()),
            ("serverCertificate", has_text(tls, "serverCertificate")),
            ("tlsCertificates", !tls.list("tlsCertificates").is_empty()),
        ];
        let mut written = sources.iter().filter(|(_, there)| *there).map(|(name, _)| *name);
        let source = written.next();
        if let (Some(first), Some(second)) = (source, written.next()) {
            self.exclusive(path, first, second);
        }
        let mutual = matches!(mode, "MUTUAL" | "OPTIONAL_MUTUAL");
        if !mutual && mode != "SIMPLE" {
            if let Some(name) = source {
                let message = format!("mode {mode} uses no certificates: `{name}` has no effect");
                self.report
                    .warn("no-effect", &self.meta.origin, &path.key(name), message);
            }
            return;
        }
        if has_text(tls, "caCrl") && mode == "SIMPLE" {
            let message = "mode SIMPLE verifies no client certificate: `caCrl` has no effect";
            self.report
                .warn("no-effect", &self.meta.origin, &path.key("caCrl"), message);
        }
        match source {
            Some("credentialName" | "credentialNames") => return,
            Some("tlsCertificates") => {
                let list = path.key("tlsCertificates");
                for (at, pair) in tls.list("tlsCertificates").iter().enumerate() {
                    self.certificate_pair(pair, mode, &list.index(at));
                }
            }
            _ => self.certificate_pair(tls, mode, path),
        }
        let ca = has_text(tls, "caCertificates")
            || has_text(tls, "caCertCredentialName")
            || tls
                .list("tlsCertificates")
                .iter()
                .any(|pair| has_text(pair, "caCertificates"));
        if mutual && !ca {
            let message = format!("mode {mode} needs `caCertificates` to verify clients with");
            self.missing(&path.key("caCertificates"), message);
        }
    }

    fn certificate_pair(&mut self, node: &Node, mode: &str, path: &Path<'_>) {
        for name in ["serverCertificate", "privateKey"] {
            if !has_text(node, name) {
                let message = format!("mode {mode} needs `{name}`, or a credential");
                self.missing(&path.key(name), message);
            }
        }
    }

    // ServiceEntry and workloads

    fn service_entry(&mut self, spec: &Node) {
        let resolution = spec.text("resolution").unwrap_or("NONE");
        let hosts = spec.texts("hosts");
        let list = Path::SPEC.key("hosts");
        let no_endpoints = spec.list("endpoints").is_empty() && !has(spec, "workloadSelector");
        for (at, host) in hosts.iter().enumerate() {
            let wildcard = host.starts_with('*');
            if wildcard && no_endpoints && matches!(resolution, "DNS" | "DNS_ROUND_ROBIN") {
                let message = format!("without endpoints, resolution {resolution} needs a whole name");
                self.error("bad-host", &list.index(at), message);
            } else if !wildcard && resolution == "DYNAMIC_DNS" {
                let message = "resolution DYNAMIC_DNS is for wildcards, as in `*.example.com`";
                self.error("bad-host", &list.index(at), message);
            }
        }
        let addresses = Path::SPEC.key("addresses");
        for (at, address) in spec.texts("addresses").iter().enumerate() {
            let path = addresses.index(at);
            if !is_subnet(address) {
                self.subnet(address, &path);
            } else if address.contains('/') && !matches!(resolution, "NONE" | "STATIC") {
                let message = format!("resolution {resolution} takes no ranges of addresses");
                self.error("bad-value", &path, message);
            } else if resolution == "DYNAMIC_DNS" {
                self.error("bad-value", &path, "resolution DYNAMIC_DNS takes no addresses");
            }
        }
        let ports = Path::SPEC.key("ports");
        for (at, port) in spec.list("ports").iter().enumerate() {
            let protocol = isthmus_core::protocol::Protocol::parse(port.text("protocol").unwrap_or(""));
            let path = ports.index(at);
            if resolution == "DYNAMIC_DNS" && !(protocol.is_http() || protocol.is_tls()) {
                self.error(
                    "bad-value",
                    &path.key("protocol"),
                    "resolution DYNAMIC_DNS needs a protocol that names the host: HTTP or TLS",
                );
            }
            let plain = protocol == isthmus_core::protocol::Protocol::Tcp;
            if plain && hosts.len() > 1 && resolution != "NONE" {
                let message = "several hosts cannot share a TCP port: nothing tells their connections apart";
                self.error("bad-value", &path.key("protocol"), message);
            }
        }
        if let Some(selector) = spec.get("workloadSelector") {
            self.selector(selector, &Path::SPEC.key("workloadSelector"), "labels");
        }
        let endpoints = Path::SPEC.key("endpoints");
        for (at, endpoint) in spec.list("endpoints").iter().enumerate() {
            self.workload(endpoint, &endpoints.index(at));
        }
    }

    fn workload(&mut self, node: &Node, path: &Path<'_>) {
        self.labels(node, path, "labels");
        let ports = node.get("ports").map_or(&[][..], Node::entries);
        let list = path.key("ports");
        if let Some(socket) = node.text("address").and_then(|text| text.strip_prefix("unix://")) {
            if let Some(fault) = unix_fault(socket) {
                self.error("bad-value", &path.key("address"), fault);
            }
            if !ports.is_empty() {
                self.error("exclusive-fields", &list, "a unix socket has no ports");
            }
        }
        for (name, _) in ports {
            if !is_label(name) {
                let message = format!(
                    "`{}` is not the name of a port",
                    crate::resource::schema::shortened(name)
                );
                let path = list.key(name);
                self.report.add_key(
                    Severity::Error,
                    "bad-value",
                    &self.meta.origin,
                    &path,
                    message,
                    None,
                );
            }
        }
    }

    fn workload_group(&mut self, spec: &Node) {
        if let Some(metadata) = spec.get("metadata") {
            self.labels(metadata, &Path::SPEC.key("metadata"), "labels");
        }
        if let Some(template) = spec.get("template") {
            let path = Path::SPEC.key("template");
            self.workload(template, &path);
            let ports = path.key("ports");
            for (name, port) in template.get("ports").map_or(&[][..], Node::entries) {
                check_port(
                    port.as_int().unwrap_or(0),
                    &self.meta.origin,
                    &ports.key(name),
                    self.report,
                );
            }
        }
        if let Some(probe) = spec.get("probe") {
            self.probe(probe, &Path::SPEC.key("probe"));
        }
    }

    fn health_check_policy(&mut self, spec: &Node) {
        if let Some(fault) = spec.text("host").and_then(host_fault) {
            self.error("bad-host", &Path::SPEC.key("host"), fault);
        }
        if let Some(probe) = spec.get("probe") {
            let path = Path::SPEC.key("probe");
            self.probe(probe, &path);
            if has(probe, "exec") {
                let message =
                    "a gateway cannot run commands beside an endpoint: write httpGet, tcpSocket or grpc";
                self.error("bad-value", &path.key("exec"), message);
            } else if !["httpGet", "tcpSocket", "grpc"]
                .iter()
                .any(|name| has(probe, name))
            {
                self.missing(&path, "a probe needs one of httpGet, tcpSocket and grpc");
            }
        }
    }

    fn probe(&mut self, probe: &Node, path: &Path<'_>) {
        self.at_most_one(probe, path, &["httpGet", "tcpSocket", "exec", "grpc"]);
        for name in ["httpGet", "tcpSocket", "grpc"] {
            if let Some(method) = probe.get(name) {
                self.port(method, &path.key(name), "port");
            }
        }
        if let Some(get) = probe.get("httpGet") {
            let path = path.key("httpGet");
            if !["", "HTTP", "HTTPS"].contains(&get.text("scheme").unwrap_or("")) {
                self.error("bad-value", &path.key("scheme"), "the scheme is HTTP or HTTPS");
            }
            let list = path.key("httpHeaders");
            for (at, header) in get.list("httpHeaders").iter().enumerate() {
                let name = header.text("name").unwrap_or("");
                let valid = name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
                if name.is_empty() || !valid {
                    let path = list.index(at);
                    let message = format!(
                        "`{}` is not a header name",
                        crate::resource::schema::shortened(name)
                    );
                    self.error("bad-header", &path.key("name"), message);
                }
            }
        }
        if let Some(exec) = probe.get("exec") {
            let path = path.key("exec");
            if exec.list("command").is_empty() || exec.texts("command").iter().any(String::is_empty) {
                self.missing(&path.key("command"), "a command must not be empty");
            }
        }
    }
}

/// An address, or a range of them.
fn is_subnet(text: &str) -> bool {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_recognized() {
        assert!(is_subnet("10.0.0.0/8") && is_subnet("::1") && is_subnet("::/0"));
        assert!(
            !is_subnet("10.0.0.0/33") && !is_subnet("a/8") && !is_subnet("1.2.3/8") && !is_subnet("1.2.3.4/")
        );
    }
}
