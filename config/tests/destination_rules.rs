//! Which DestinationRule a cluster follows, and which part of it: tables of the look-up by namespaces and hosts, and of
//! the inheritance between service, port and subset.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::diagnostic::render;
use isthmus_config::{Options, Source, compile, mesh};
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::cluster::locality::{Locality, Spread};
use isthmus_core::name::ClusterKey;
use isthmus_core::snapshot::Snapshot;
use std::sync::Arc;

const HOST: &str = "web.shop.test";

/// A service of the namespace `shop`, and these rules.
fn snapshot(rules: &str, options: &Options) -> Snapshot {
    let service = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [{HOST}]
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 90, name: alt, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 10.0.0.1}}]
---
"
    );
    let sources = [Source {
        name: "rules.yaml".to_owned(),
        text: (service + rules).into(),
    }];
    let compiled = compile(&sources, options);
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    compiled.snapshot
}

fn cluster<'s>(snapshot: &'s Snapshot, port: u16, subset: &str) -> Option<&'s Arc<ClusterSpec>> {
    snapshot.clusters.get(&ClusterKey::outbound(port, subset, HOST))
}

/// A rule in flow style, which is known by the seconds of its connect timeout.
fn rule(name: &str, namespace: &str, more: &str, seconds: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{more}, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {seconds}s}}}}}}}}
---
"
    )
}

#[test]
fn the_first_namespace_with_a_rule_decides() {
    // Namespace and the rest of each rule, the client's namespace, and which rule it follows; 10 for none.
    let exact = "host: web.shop.test";
    let wild = "host: \"*.shop.test\"";
    let wilder = "host: \"*.test\"";
    let private = "host: web.shop.test, exportTo: [.]";
    let meant = "host: web.shop.test, exportTo: [edge]";
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, u64);
    let cases: &[Case<'_>] = &[
        (&[], "edge", 10),
        (
            &[("shop", exact), ("edge", exact), ("istio-system", exact)],
            "edge",
            2,
        ),
        (&[("shop", exact), ("edge", wilder)], "edge", 2),
        (&[("shop", exact), ("istio-system", exact)], "edge", 1),
        (&[("istio-system", wilder)], "edge", 1),
        (&[("elsewhere", exact)], "edge", 10),
        (&[("shop", wilder), ("shop", wild)], "edge", 2),
        (&[("shop", wild), ("shop", exact)], "edge", 2),
        (&[("edge", private), ("shop", exact)], "edge", 1),
        (&[("shop", private), ("istio-system", exact)], "edge", 2),
        (&[("shop", private)], "shop", 1),
        (&[("shop", meant), ("istio-system", exact)], "edge", 1),
        (&[("shop", meant), ("istio-system", exact)], "other", 2),
        // The root's public rules are defaults for itself, too; its private ones are its own.
        (&[("istio-system", exact), ("shop", exact)], "istio-system", 2),
        (&[("istio-system", private), ("shop", exact)], "istio-system", 1),
        // A gateway in no namespace sees everything, and owns nothing.
        (&[("istio-system", exact), ("shop", private)], "", 2),
    ];
    for (rules, client, expected) in cases {
        let text: String = (1..)
            .zip(*rules)
            .map(|(number, (namespace, more))| rule(&format!("r{number}"), namespace, more, number))
            .collect();
        let options = Options {
            namespace: (*client).to_owned(),
            ..Options::default()
        };
        let snapshot = snapshot(&text, &options);
        let found = cluster(&snapshot, 80, "").unwrap().connect_timeout.as_secs();
        assert_eq!(found, *expected, "{rules:?} for {client:?}");
    }
}

#[test]
fn rules_of_one_host_are_merged_the_oldest_first() {
    let text = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: young, namespace: shop, creationTimestamp: \"2025-01-02T00:00:00Z\"}
spec:
  host: web.shop.test
  trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}
  subsets:
  - {name: a, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 2s}}}}
  - {name: b, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 3s}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: old, namespace: shop, creationTimestamp: \"2025-01-01T00:00:00Z\"}
spec:
  host: web.shop.test
  subsets:
  - {name: a, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 4s}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other, namespace: shop}
spec:
  host: web.shop.test
  exportTo: [edge]
  subsets: [{name: apart}]
---
";
    let snapshot = snapshot(text, &Options::default());
    let seconds = |subset| cluster(&snapshot, 80, subset).map(|spec| spec.connect_timeout.as_secs());
    assert_eq!(seconds(""), Some(1), "the only top policy");
    assert_eq!(seconds("a"), Some(4), "the first definition");
    assert_eq!(seconds("b"), Some(3));
    assert_eq!(seconds("apart"), None, "shown to others: not merged");
}

#[test]
fn a_rule_with_a_selector_is_for_gateways_with_its_labels() {
    let selective = "host: web.shop.test, workloadSelector: {matchLabels: {istio: edge}}";
    let text = rule("a", "shop", "host: web.shop.test", 1) + &rule("b", "shop", selective, 2);
    for (namespace, label, expected) in [("shop", "edge", 2), ("shop", "other", 1), ("edge", "edge", 1)] {
        let options = Options {
            namespace: namespace.to_owned(),
            labels: [("istio".to_owned(), label.to_owned())].into(),
            ..Options::default()
        };
        let found = snapshot(&text, &options);
        let seconds = cluster(&found, 80, "").unwrap().connect_timeout.as_secs();
        assert_eq!(seconds, expected, "{namespace} {label}");
    }
}

/// Each cluster takes its balancer, its connect timeout and its PROXY header from somewhere.
#[test]
fn blocks_are_inherited_one_by_one_and_ports_replace_them_all() {
    let text = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web.shop.test
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {connectTimeout: 1s}}
    proxyProtocol: {version: V2}
    portLevelSettings:
    - port: {number: 90}
      connectionPool: {tcp: {connectTimeout: 2s}}
  subsets:
  - name: none
  - name: pool
    trafficPolicy:
      connectionPool: {tcp: {connectTimeout: 3s}}
  - name: empty
    trafficPolicy:
      connectionPool: {http: {maxRetries: 1}}
  - name: balancer
    trafficPolicy:
      loadBalancer: {simple: LEAST_REQUEST}
      proxyProtocol: {version: V1}
      portLevelSettings:
      - port: {number: 90}
        tls: {mode: DISABLE}
  - name: hash
    trafficPolicy:
      loadBalancer: {consistentHash: {useSourceIp: true}}
      portLevelSettings:
      - port: {number: 90}
        loadBalancer: {consistentHash: {httpHeaderName: x}}
---
";
    let snapshot = snapshot(text, &Options::default());
    for (port, subset, balancer, seconds, proxy) in [
        (80, "", "Random", 1, "V2"),
        (90, "", "RoundRobin", 2, "V2"),
        (80, "none", "Random", 1, "V2"),
        (90, "none", "RoundRobin", 2, "V2"),
        (80, "pool", "Random", 3, "V2"),
        (90, "pool", "RoundRobin", 3, "V2"),
        (80, "empty", "Random", 10, "V2"),
        (80, "balancer", "LeastRequest", 1, "V1"),
        (90, "balancer", "RoundRobin", 10, "V1"),
        (80, "hash", "SourceIp", 1, "V2"),
        (90, "hash", "Header", 10, "V2"),
    ] {
        let spec = cluster(&snapshot, port, subset).unwrap();
        let chosen = match &spec.balancer.hashing {
            Some(hashing) => format!("{:?}", hashing.key),
            None => format!("{:?}", spec.balancer.kind),
        };
        let found = (
            spec.connect_timeout.as_secs(),
            format!("{:?}", spec.proxy_protocol),
        );
        assert!(chosen.starts_with(balancer), "{port} {subset:?}: {chosen}");
        assert_eq!(found, (seconds, format!("Some({proxy})")), "{port} {subset:?}");
    }
}

#[test]
fn a_rules_locality_setting_replaces_that_of_the_mesh() {
    let mesh = |text: &str| {
        let loaded = mesh::load(text, "mesh.yaml");
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        loaded.mesh
    };
    let shares = "localityLbSetting: {distribute: [{from: r1, to: {r1: 100}}]}";
    let policy = |balancer: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: shop}}
spec: {{host: {HOST}, trafficPolicy: {{outlierDetection: {{}}{balancer}}}}}
---
"
        )
    };
    for (written, balancer, own, spreads) in [
        (shares, "", "r1/z1", true),
        (shares, "", "r2", false),
        (
            shares,
            ", loadBalancer: {localityLbSetting: {enabled: true}}",
            "r1",
            false,
        ),
        (
            shares,
            ", loadBalancer: {localityLbSetting: {enabled: false}}",
            "r1",
            false,
        ),
        ("localityLbSetting: {enabled: false}", "", "r1", false),
        (
            "localityLbSetting: {enabled: false}",
            ", loadBalancer: {localityLbSetting: {distribute: [{from: r1, to: {r1: 100}}]}}",
            "r1",
            true,
        ),
        (
            "",
            ", loadBalancer: {zoneAwareLbSetting: {enabled: true}}",
            "r1/z1",
            true,
        ),
        (
            "",
            ", loadBalancer: {zoneAwareLbSetting: {enabled: false}}",
            "r1/z1",
            false,
        ),
        (
            "",
            ", loadBalancer: {zoneAwareLbSetting: {enabled: true}}",
            "",
            false,
        ),
    ] {
        let options = Options {
            mesh: mesh(written),
            locality: Locality::parse(own),
            ..Options::default()
        };
        let snapshot = snapshot(&policy(balancer), &options);
        let spread = &cluster(&snapshot, 80, "").unwrap().balancer.spread;
        assert_eq!(*spread != Spread::Even, spreads, "{written} {balancer} {own}");
    }
}

#[test]
fn what_cannot_be_written_in_a_cookie_is_refused() {
    for (cookie, valid) in [
        (
            "{name: user, path: /a, attributes: [{name: SameSite, value: Lax}]}",
            true,
        ),
        ("{name: \"a=b\"}", false),
        ("{name: \"a b\"}", false),
        ("{name: a, path: \"/;x\"}", false),
        ("{name: a, path: \"/\\r\\nx: y\"}", false),
        ("{name: a, attributes: [{name: \"A;B\"}]}", false),
        ("{name: a, attributes: [{name: A, value: \"b; c\"}]}", false),
    ] {
        let text = format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec: {{host: a.test, trafficPolicy: {{loadBalancer: {{consistentHash: {{httpCookie: {cookie}}}}}}}}}
"
        );
        let sources = [Source {
            name: "rule.yaml".to_owned(),
            text: text.into(),
        }];
        let compiled = compile(&sources, &Options::default());
        assert_eq!(
            !compiled.has_errors(),
            valid,
            "{cookie}: {:?}",
            compiled.diagnostics
        );
    }
}
