//! Istio's rules for fields that have no typed form yet, because nothing executes them: they are read from the
//! document as it was written. What a field alone must obey is in the schema; here is what several must.

use super::{check_labels, check_port, host_fault, is_label, unix_fault};
use crate::diagnostic::Severity;
use crate::index::expand;
use crate::report::Report;
use crate::resource::Meta;
use crate::yaml::{Node, Path};
use http::StatusCode;
use isthmus_core::header::FieldName;
use isthmus_core::name::HostPattern;
use std::collections::HashSet;
use std::net::IpAddr;

/// Largest table of Maglev hashing (Envoy).
const MAGLEV_TABLE_MAX: i128 = 5_000_011;

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

/// Names of gRPC status codes.
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const METHODS: [&str; 10] = [
    "*", "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

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

    // VirtualService

    fn virtual_service(&mut self, spec: &Node) {
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
        if let Some(fault) = rule.get("fault") {
            self.fault(fault, &path.key("fault"));
        }
        if let Some(cors) = rule.get("corsPolicy") {
            self.cors(cors, &path.key("corsPolicy"));
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

    fn fault(&mut self, fault: &Node, path: &Path<'_>) {
        if !has(fault, "delay") && !has(fault, "abort") {
            self.missing(path, "a fault needs a delay or an abort");
        }
        if let Some(delay) = fault.get("delay") {
            let path = path.key("delay");
            self.fault_percentage(delay, &path);
            if has(delay, "exponentialDelay") {
                self.error(
                    "bad-value",
                    &path.key("exponentialDelay"),
                    "exponential delays are not supported: write `fixedDelay`",
                );
            }
        }
        if let Some(abort) = fault.get("abort") {
            let path = path.key("abort");
            self.fault_percentage(abort, &path);
            self.at_most_one(abort, &path, &["httpStatus", "grpcStatus", "http2Error"]);
            if has(abort, "http2Error") {
                let message = "errors of HTTP/2 are not supported: write `httpStatus` or `grpcStatus`";
                self.error("bad-value", &path.key("http2Error"), message);
            }
            if let Some(name) = abort.text("grpcStatus")
                && !GRPC_STATUSES.contains(&name)
            {
                let help = crate::diagnostic::nearest(name, GRPC_STATUSES)
                    .map(|name| format!("did you mean `{name}`?"));
                let message = format!("`{}` is no gRPC status", crate::resource::schema::shortened(name));
                let origin = &self.meta.origin;
                self.report.add(
                    Severity::Error,
                    "bad-value",
                    origin,
                    &path.key("grpcStatus"),
                    message,
                    help,
                );
            }
        }
    }

    /// Smaller shares than a millionth cannot be told from none (Envoy's fractions).
    fn fault_percentage(&mut self, node: &Node, path: &Path<'_>) {
        let value = node
            .get("percentage")
            .and_then(|percentage| percentage.get("value"))
            .and_then(Node::as_number);
        if value.is_some_and(|value| value > 0.0 && value < 0.0001) {
            let path = path.key("percentage");
            self.error(
                "bad-value",
                &path.key("value"),
                "a percentage is 0, or from 0.0001 to 100",
            );
        }
    }

    fn cors(&mut self, cors: &Node, path: &Path<'_>) {
        let origins = path.key("allowOrigins");
        for (at, origin) in cors.list("allowOrigins").iter().enumerate() {
            let forms = ["exact", "prefix", "regex"];
            if !forms.iter().any(|form| has_text(origin, form)) {
                self.missing(
                    &origins.index(at),
                    "an origin needs one of exact, prefix and regex",
                );
            }
            if let Some(pattern) = origin.text("regex")
                && let Err(error) = isthmus_core::route::Regex::new(pattern)
            {
                let path = origins.index(at);
                let path = path.key("regex");
                crate::resource::virtual_service::regex_error(&error, &self.meta.origin, &path, self.report);
            }
        }
        let methods = path.key("allowMethods");
        for (at, method) in cors.texts("allowMethods").iter().enumerate() {
            if !METHODS.contains(&method.as_str()) {
                let message = format!(
                    "`{}` is not a method in upper case, nor `*`",
                    crate::resource::schema::shortened(method)
                );
                self.error("bad-value", &methods.index(at), message);
            }
        }
        for name in ["allowHeaders", "exposeHeaders"] {
            let list = path.key(name);
            for (at, header) in cors.texts(name).iter().enumerate() {
                if header != "*" && FieldName::parse(header).is_none() {
                    let message = format!(
                        "`{}` is not a header name",
                        crate::resource::schema::shortened(header)
                    );
                    self.error("bad-header", &list.index(at), message);
                }
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
                super::virtual_service::check_gateway(name, &gateways.index(at), self.meta, self.report);
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

    fn subnet(&mut self, subnet: &str, path: &Path<'_>) {
        if !is_subnet(subnet) {
            let message = format!(
                "`{}` is not an address, nor a range such as 10.0.0.0/8",
                crate::resource::schema::shortened(subnet)
            );
            self.error("bad-value", path, message);
        }
    }

    // DestinationRule

    fn destination_rule(&mut self, spec: &Node) {
        if let Some(policy) = spec.get("trafficPolicy") {
            self.traffic_policy(policy, &Path::SPEC.key("trafficPolicy"));
        }
        let subsets = Path::SPEC.key("subsets");
        for (at, subset) in spec.list("subsets").iter().enumerate() {
            let path = subsets.index(at);
            self.labels(subset, &path, "labels");
            if let Some(policy) = subset.get("trafficPolicy") {
                self.traffic_policy(policy, &path.key("trafficPolicy"));
            }
        }
        if let Some(selector) = spec.get("workloadSelector") {
            self.selector(selector, &Path::SPEC.key("workloadSelector"), "matchLabels");
            let shown = spec.texts("exportTo");
            let list = Path::SPEC.key("exportTo");
            let own = |entry: &String| entry == "." || *entry == self.meta.namespace;
            if shown.len() > 1 {
                self.error(
                    "bad-value",
                    &list,
                    "with a workloadSelector only one entry is allowed",
                );
            } else if !shown.iter().all(own) {
                let message = "with a workloadSelector only the rule's own namespace is allowed";
                self.error("bad-value", &list.index(0), message);
            }
        }
    }

    fn traffic_policy(&mut self, policy: &Node, path: &Path<'_>) {
        self.at_most_one(policy, path, &["tunnel", "proxyProtocol"]);
        if let Some(tunnel) = policy.get("tunnel") {
            let path = path.key("tunnel");
            if let Some(host) = tunnel.text("targetHost")
                && let Some(fault) = host_fault(host).or_else(|| {
                    host.starts_with('*')
                        .then(|| "the target of a tunnel is one host".to_owned())
                })
            {
                self.error("bad-host", &path.key("targetHost"), fault);
            }
            self.port(tunnel, &path, "targetPort");
            let protocol = tunnel.text("protocol").unwrap_or("");
            if !["", "CONNECT", "POST"].contains(&protocol) {
                self.error(
                    "bad-value",
                    &path.key("protocol"),
                    "a tunnel speaks CONNECT or POST",
                );
            }
        }
        self.blocks(policy, path);
        let ports = path.key("portLevelSettings");
        for (at, settings) in policy.list("portLevelSettings").iter().enumerate() {
            self.blocks(settings, &ports.index(at));
        }
    }

    /// The blocks that a port may have of its own.
    fn blocks(&mut self, policy: &Node, path: &Path<'_>) {
        if let Some(pool) = policy.get("connectionPool") {
            let path = path.key("connectionPool");
            if !has(pool, "tcp") && !has(pool, "http") {
                self.missing(&path, "a connection pool needs `tcp` or `http`");
            }
            if let Some(http) = pool.get("http") {
                let path = path.key("http");
                if http.flag("useClientProtocol") && http.text("h2UpgradePolicy") == Some("UPGRADE") {
                    self.exclusive(&path, "h2UpgradePolicy: UPGRADE", "useClientProtocol");
                }
                if let Some(keepalive) = http.get("http2KeepAlive") {
                    let path = path.key("http2KeepAlive");
                    for name in ["interval", "timeout"] {
                        if !has(keepalive, name) {
                            self.missing(&path.key(name), format!("`{name}` is required"));
                        }
                    }
                }
            }
        }
        if let Some(outlier) = policy.get("outlierDetection") {
            let path = path.key("outlierDetection");
            let local = outlier.int("consecutiveLocalOriginFailures").unwrap_or(0) > 0;
            if local && !outlier.flag("splitExternalLocalOriginErrors") {
                self.error(
                    "missing-field",
                    &path.key("consecutiveLocalOriginFailures"),
                    "local failures are only counted apart with `splitExternalLocalOriginErrors: true`",
                );
            }
            if has(outlier, "consecutiveErrors") {
                let message = "`consecutiveErrors` is an old spelling: it counts 502, 503 and 504, as `consecutiveGatewayErrors`";
                self.report.warn(
                    "old-spelling",
                    &self.meta.origin,
                    &path.key("consecutiveErrors"),
                    message,
                );
            }
        }
        if let Some(balancer) = policy.get("loadBalancer") {
            self.load_balancer(balancer, &path.key("loadBalancer"));
        }
        if let Some(tls) = policy.get("tls") {
            self.client_tls(tls, &path.key("tls"));
        }
    }

    fn load_balancer(&mut self, balancer: &Node, path: &Path<'_>) {
        self.at_most_one(balancer, path, &["simple", "consistentHash"]);
        self.at_most_one(balancer, path, &["localityLbSetting", "zoneAwareLbSetting"]);
        self.at_most_one(balancer, path, &["warmup", "warmupDurationSecs"]);
        if let Some(hash) = balancer.get("consistentHash") {
            let path = path.key("consistentHash");
            const KEYS: [&str; 4] = [
                "httpHeaderName",
                "httpCookie",
                "useSourceIp",
                "httpQueryParameterName",
            ];
            self.at_most_one(hash, &path, &KEYS);
            self.at_most_one(hash, &path, &["ringHash", "maglev", "minimumRingSize"]);
            if let Some(maglev) = hash.get("maglev") {
                let path = path.key("maglev");
                let path = path.key("tableSize");
                match maglev.int("tableSize").unwrap_or(0) {
                    0 => self.missing(&path, "`tableSize` is required"),
                    size if size >= MAGLEV_TABLE_MAX => {
                        self.error(
                            "bad-value",
                            &path,
                            format!("must be smaller than {MAGLEV_TABLE_MAX}"),
                        );
                    }
                    size if !is_prime(size) => {
                        self.error("bad-value", &path, format!("{size} is not a prime number"))
                    }
                    _ => {}
                }
            }
            if let Some(cookie) = hash.get("httpCookie") {
                let path = path.key("httpCookie");
                if cookie.text("name") == Some("") {
                    self.missing(&path.key("name"), "a cookie needs a name");
                }
                let list = path.key("attributes");
                let mut seen = HashSet::new();
                for (at, attribute) in cookie.list("attributes").iter().enumerate() {
                    let path = list.index(at);
                    let name = attribute.text("name").unwrap_or("");
                    if name.is_empty() {
                        self.missing(&path.key("name"), "an attribute needs a name");
                    } else if !seen.insert(name) {
                        let message = format!("the attribute `{name}` is written twice");
                        self.error("duplicate-value", &path.key("name"), message);
                    }
                }
            }
        }
        if let Some(locality) = balancer.get("localityLbSetting") {
            self.locality(locality, &path.key("localityLbSetting"));
        }
        let aggression = balancer
            .get("warmup")
            .and_then(|warmup| warmup.get("aggression"))
            .and_then(Node::as_number);
        if aggression.is_some_and(|value| value <= 0.0) {
            let path = path.key("warmup");
            self.error("bad-value", &path.key("aggression"), "must be more than 0");
        }
    }

    fn locality(&mut self, locality: &Node, path: &Path<'_>) {
        let distribute = locality.list("distribute");
        let failover = locality.list("failover");
        if !distribute.is_empty() && !failover.is_empty() {
            self.exclusive(path, "distribute", "failover");
        }
        let list = path.key("distribute");
        let mut sources: Vec<(String, Path<'_>)> = Vec::new();
        let items: Vec<Path<'_>> = (0..distribute.len()).map(|at| list.index(at)).collect();
        for (item, path) in distribute.iter().zip(&items) {
            sources.push((item.text("from").unwrap_or("").to_owned(), path.key("from")));
            let to = path.key("to");
            let weights = item.get("to").map_or(&[][..], Node::entries);
            let mut total = 0;
            for (key, weight) in weights {
                let weight = weight.as_int().unwrap_or(0);
                total += weight;
                if !(1..=100).contains(&weight) {
                    self.error("bad-value", &to.key(key), "a share is from 1 to 100");
                }
            }
            if total != 100 {
                self.error("weights", &to, format!("the shares add up to {total}, not 100"));
            }
            let targets = weights.iter().map(|(key, _)| (key.clone(), to.key(key)));
            self.localities(&targets.collect::<Vec<_>>());
        }
        self.localities(&sources);
        let priorities = locality.texts("failoverPriority");
        let topology = |label: &String| {
            let label = label.split('=').next().unwrap_or("");
            [
                "topology.kubernetes.io/region",
                "topology.kubernetes.io/zone",
                "topology.istio.io/subzone",
            ]
            .contains(&label)
        };
        if !failover.is_empty() && priorities.iter().any(topology) {
            self.exclusive(path, "failover", "failoverPriority");
        }
        let list = path.key("failover");
        for (at, item) in failover.iter().enumerate() {
            let path = list.index(at);
            let (from, to) = (item.text("from").unwrap_or(""), item.text("to").unwrap_or(""));
            if from == to {
                self.error("bad-value", &path.key("to"), "a failover leads to another region");
            }
            if to.is_empty() {
                self.missing(&path.key("to"), "a failover names a region");
            }
            for (name, text) in [("from", from), ("to", to)] {
                if text.contains(['*', '/']) {
                    self.error(
                        "bad-value",
                        &path.key(name),
                        "a failover names regions, without `*` and `/`",
                    );
                }
            }
        }
    }

    /// Localities of one list: well formed, and none inside of one before it.
    fn localities(&mut self, list: &[(String, Path<'_>)]) {
        let mut seen: Vec<Vec<&str>> = Vec::new();
        for (text, path) in list {
            let parts: Vec<&str> = text.split('/').collect();
            let stars = text.matches('*').count();
            if stars > 1 || (stars == 1 && !text.ends_with('*')) {
                self.error(
                    "bad-value",
                    path,
                    "a wildcard may only stand at the end of a locality",
                );
            } else if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
                self.error(
                    "bad-value",
                    path,
                    "a locality is region, region/zone or region/zone/subzone",
                );
            } else if seen.iter().any(|known| overlaps(known, &parts)) {
                self.error(
                    "duplicate-value",
                    path,
                    format!("`{text}` overlaps with a locality before it"),
                );
            } else {
                seen.push(parts);
            }
        }
    }

    fn client_tls(&mut self, tls: &Node, path: &Path<'_>) {
        let mode = tls.text("mode").unwrap_or("DISABLE");
        let credential = has_text(tls, "credentialName");
        if tls.flag("insecureSkipVerify") {
            let forbidden: &[&str] = match mode {
                "SIMPLE" => &["caCertificates", "credentialName", "subjectAltNames"],
                "MUTUAL" => &["caCertificates", "subjectAltNames"],
                _ => &[],
            };
            for name in forbidden.iter().filter(|name| has(tls, name)) {
                self.exclusive(path, "insecureSkipVerify", name);
            }
        }
        if credential && matches!(mode, "SIMPLE" | "MUTUAL") {
            for name in ["clientCertificate", "privateKey", "caCertificates", "caCrl"] {
                if has_text(tls, name) {
                    self.exclusive(path, "credentialName", name);
                }
            }
        } else if mode == "MUTUAL" {
            for name in ["clientCertificate", "privateKey"] {
                if !has_text(tls, name) {
                    let message = format!("mode MUTUAL needs `{name}`, or `credentialName`");
                    self.missing(&path.key(name), message);
                }
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

/// Whether `later` lies inside of `earlier`, or contains it without saying so with a star.
fn overlaps(earlier: &[&str], later: &[&str]) -> bool {
    let covers = |outer: &[&str], inner: &[&str]| {
        let fixed = outer.strip_suffix(&["*"]).unwrap_or(outer);
        inner.starts_with(fixed)
    };
    covers(earlier, later) || (later.last() != Some(&"*") && covers(later, earlier))
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

fn is_prime(number: i128) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| number % divisor != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localities_overlap_by_their_parts() {
        let parts = |text: &'static str| text.split('/').collect::<Vec<_>>();
        for (earlier, later, expected) in [
            ("a", "a/b", true),
            ("a/b", "a", true),
            ("a/*", "a/b", true),
            ("a/b", "a/*", false),
            ("*", "a/b/c", true),
            ("a/b", "a/c", false),
            ("a/b/c", "a/b/*", false),
            ("a/b/c", "a/b", true),
            ("a", "ab", false),
        ] {
            assert_eq!(
                overlaps(&parts(earlier), &parts(later)),
                expected,
                "{earlier} {later}"
            );
        }
    }

    #[test]
    fn small_things_are_recognized() {
        assert!(is_subnet("10.0.0.0/8") && is_subnet("::1") && is_subnet("::/0"));
        assert!(
            !is_subnet("10.0.0.0/33") && !is_subnet("a/8") && !is_subnet("1.2.3/8") && !is_subnet("1.2.3.4/")
        );
        assert!(is_prime(65_537) && is_prime(2) && !is_prime(1) && !is_prime(65_536));
    }
}
