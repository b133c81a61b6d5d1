//! Istio's rules for what a VirtualService says of retries, mirrors, and TLS and TCP routes.

use super::super::{check_port, host_fault, is_label};
use super::{Check, has};
use crate::diagnostic::Severity;
use crate::index::expand;
use crate::yaml::{Node, Path};
use http::StatusCode;
use isthmus_core::name::HostPattern;
use std::net::IpAddr;

/// Conditions of `retryOn` (Envoy `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

impl Check<'_, '_> {
    pub(super) fn virtual_service(&mut self, spec: &Node) {
        let delegate = spec.list("hosts").is_empty();
        let list = Path::SPEC.key("http");
        for (at, rule) in spec.list("http").iter().enumerate() {
            self.http_rule(rule, delegate, &list.index(at));
        }
        for name in ["tls", "tcp"] {
            let list = Path::SPEC.key(name);
            if delegate && has(spec, name) {
                let message = format!("a delegate has no `{name}` rules");
                self.error("exclusive-fields", &list, message);
            }
            for (at, rule) in spec.list(name).iter().enumerate() {
                self.stream_rule(spec, rule, name == "tls", &list.index(at));
            }
        }
    }

    fn http_rule(&mut self, rule: &Node, in_delegate: bool, path: &Path<'_>) {
        if in_delegate && has(rule, "delegate") {
            self.error(
                "exclusive-fields",
                &path.key("delegate"),
                "a delegate cannot delegate again",
            );
        }
        let matches = path.key("match");
        for (at, matched) in rule.list("match").iter().enumerate() {
            self.labels(matched, &matches.index(at), "sourceLabels");
        }
        if let Some(retries) = rule.get("retries") {
            self.retries(retries, &path.key("retries"));
        }
        self.at_most_one(rule, path, &["mirror", "mirrors"]);
        if let Some(mirror) = rule.get("mirror") {
            self.destination(mirror, &path.key("mirror"));
        }
        let mirrors = path.key("mirrors");
        for (at, mirror) in rule.list("mirrors").iter().enumerate() {
            let path = mirrors.index(at);
            if let Some(destination) = mirror.get("destination") {
                self.destination(destination, &path.key("destination"));
            }
        }
        if has(rule, "mirrorPercent") {
            let message = "`mirrorPercent` is an old spelling of `mirrorPercentage`";
            self.report.warn(
                "old-spelling",
                &self.meta.origin,
                &path.key("mirrorPercent"),
                message,
            );
        }
    }

    fn retries(&mut self, retries: &Node, path: &Path<'_>) {
        if retries.int("attempts").unwrap_or(0) == 0 {
            for name in ["perTryTimeout", "retryOn", "retryRemoteLocalities"] {
                let there = match retries.get(name) {
                    Some(Node::Text(text)) => !text.is_empty(),
                    Some(Node::Bool(flag)) => *flag,
                    _ => false,
                };
                if there {
                    let message = format!("`{name}` says nothing without attempts");
                    self.error("exclusive-fields", &path.key(name), message);
                }
            }
        }
        let conditions = retries.text("retryOn").unwrap_or("").split(',').map(str::trim);
        for condition in conditions.filter(|text| !text.is_empty()) {
            let status = condition
                .parse::<u16>()
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok());
            let known = status.is_some_and(|status| status.canonical_reason().is_some());
            if !known && !RETRY_CONDITIONS.contains(&condition) {
                let shown = crate::resource::schema::shortened(condition);
                let help = crate::diagnostic::nearest(condition, RETRY_CONDITIONS)
                    .map(|name| format!("did you mean `{name}`?"));
                let message = format!("`{shown}` is no condition to retry on, nor a status code");
                let origin = &self.meta.origin;
                self.report.add(
                    Severity::Error,
                    "bad-value",
                    origin,
                    &path.key("retryOn"),
                    message,
                    help,
                );
            }
        }
    }

    fn destination(&mut self, destination: &Node, path: &Path<'_>) {
        let host = destination.text("host").unwrap_or("");
        if host == "*" {
            self.error("bad-host", &path.key("host"), "a destination cannot be `*`");
        } else if let Some(fault) = host_fault(host).filter(|_| !host.is_empty()) {
            self.error("bad-host", &path.key("host"), fault);
        }
        if let Some(subset) = destination.text("subset").filter(|text| !text.is_empty())
            && !is_label(subset)
        {
            let message = format!("`{subset}` is not the name of a subset");
            self.error("bad-value", &path.key("subset"), message);
        }
        if let Some(port) = destination.get("port") {
            let path = path.key("port");
            check_port(
                port.int("number").unwrap_or(0),
                &self.meta.origin,
                &path.key("number"),
                self.report,
            );
        }
    }

    /// A rule for connections: of `tls` or of `tcp`.
    fn stream_rule(&mut self, spec: &Node, rule: &Node, tls: bool, path: &Path<'_>) {
        if *rule == Node::Null {
            return self.missing(path, "an empty rule");
        }
        let matches = path.key("match");
        if tls && rule.list("match").is_empty() {
            self.missing(&matches, "a rule for TLS needs a match with sniHosts");
        }
        for (at, matched) in rule.list("match").iter().enumerate() {
            let path = matches.index(at);
            self.labels(matched, &path, "sourceLabels");
            if matched.int("port").is_some_and(|port| port != 0) {
                self.port(matched, &path, "port");
            }
            let gateways = path.key("gateways");
            for (at, name) in matched.texts("gateways").iter().enumerate() {
                super::super::virtual_service::check_gateway(
                    name,
                    &gateways.index(at),
                    self.meta,
                    self.report,
                );
            }
            let subnets = path.key("destinationSubnets");
            for (at, subnet) in matched.texts("destinationSubnets").iter().enumerate() {
                self.subnet(subnet, &subnets.index(at));
            }
            if let Some(subnet) = matched.text("sourceSubnet").filter(|text| !text.is_empty()) {
                self.subnet(subnet, &path.key("sourceSubnet"));
            }
            if tls {
                self.sni_hosts(spec, matched, &path);
            }
        }
        let routes = path.key("route");
        if rule.list("route").is_empty() {
            self.missing(&routes, "`route` is required");
        }
        let mut total = 0;
        for (at, route) in rule.list("route").iter().enumerate() {
            let path = routes.index(at);
            if let Some(destination) = route.get("destination") {
                self.destination(destination, &path.key("destination"));
            }
            let weight = route.int("weight").unwrap_or(0);
            if weight < 0 {
                self.error("bad-value", &path.key("weight"), "a weight must not be negative");
            }
            total += weight.max(0);
        }
        if rule.list("route").len() > 1 && total == 0 {
            self.error(
                "weights",
                &routes,
                "of several destinations at least one needs a weight",
            );
        }
    }

    fn sni_hosts(&mut self, spec: &Node, matched: &Node, path: &Path<'_>) {
        let namespace = &self.meta.namespace;
        let pattern = |host: &String| HostPattern::parse(&expand(host, namespace));
        let hosts: Vec<HostPattern> = spec.texts("hosts").iter().map(pattern).collect();
        let list = path.key("sniHosts");
        let names = matched.texts("sniHosts");
        if names.is_empty() {
            self.missing(&list, "a match for TLS needs at least one of sniHosts");
        }
        for (at, name) in names.iter().enumerate() {
            let path = list.index(at);
            if name.parse::<IpAddr>().is_ok() {
                let message = "clients do not send addresses as the name of a server";
                self.report.warn("no-effect", &self.meta.origin, &path, message);
            } else if name.starts_with("outbound_.") {
                // The names of clusters that AUTO_PASSTHROUGH takes: `outbound_.PORT_.SUBSET_.HOST`.
            } else if let Some(fault) = host_fault(name) {
                self.error("bad-host", &path, fault);
            } else if !hosts.iter().any(|host| pattern(name).subset_of(host)) {
                let message = format!("`{name}` is covered by none of this VirtualService's hosts");
                self.error("bad-host", &path, message);
            }
        }
    }
}
