//! Istio's rules for the traffic policies of a DestinationRule and its subsets.

use super::super::host_fault;
use super::{Check, has, has_text};
use crate::yaml::{Node, Path};
use std::collections::HashSet;

/// Largest table of Maglev hashing (Envoy).
const MAGLEV_TABLE_MAX: i128 = 5_000_011;

impl Check<'_, '_> {
    pub(super) fn destination_rule(&mut self, spec: &Node) {
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
            if protocol == "POST" {
                let message = "tunnels are asked for by CONNECT only: there is none";
                let origin = &self.meta.origin;
                self.report
                    .warn("not-executed", origin, &path.key("protocol"), message);
            }
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
                self.cookie_text(cookie, &path, "name");
                self.cookie_text(cookie, &path, "path");
                let list = path.key("attributes");
                let mut seen = HashSet::new();
                for (at, attribute) in cookie.list("attributes").iter().enumerate() {
                    let path = list.index(at);
                    self.cookie_text(attribute, &path, "name");
                    self.cookie_text(attribute, &path, "value");
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
        if has(balancer, "warmupDurationSecs") {
            let message = "`warmupDurationSecs` is an old spelling of `warmup.duration`";
            let path = path.key("warmupDurationSecs");
            self.report
                .warn("old-spelling", &self.meta.origin, &path, message);
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

    /// A part of a Set-Cookie field, which must not end before its end (RFC 6265, 4.1.1).
    fn cookie_text(&mut self, node: &Node, path: &Path<'_>, name: &str) {
        let ends = |byte: u8| {
            byte == b';' || byte.is_ascii_control() || (name == "name" && b"= \",".contains(&byte))
        };
        if node.text(name).is_some_and(|text| text.bytes().any(ends)) {
            let message = "this cannot be written in a cookie";
            self.error("bad-value", &path.key(name), message);
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
}

/// Whether `later` lies inside of `earlier`, or contains it without saying so with a star.
fn overlaps(earlier: &[&str], later: &[&str]) -> bool {
    let covers = |outer: &[&str], inner: &[&str]| {
        let fixed = outer.strip_suffix(&["*"]).unwrap_or(outer);
        inner.starts_with(fixed)
    };
    covers(earlier, later) || (later.last() != Some(&"*") && covers(later, earlier))
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
    fn primes_are_recognized() {
        assert!(is_prime(65_537) && is_prime(2) && !is_prime(1) && !is_prime(65_536));
    }
}
