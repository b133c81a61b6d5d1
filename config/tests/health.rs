//! HealthCheckPolicy and the probes of WorkloadGroups: which endpoints are checked how, and what is said about them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::diagnostic::Severity;
use isthmus_config::{Compiled, Options, Source, compile};
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::cluster::health::{Check, CheckTransport, HealthPolicy};
use isthmus_core::cluster::locality::Locality;
use isthmus_core::name::ClusterKey;
use std::sync::Arc;
use std::time::Duration;

const SERVICE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a, namespace: shop}
spec:
  hosts: [a.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: other, protocol: HTTP}]
  endpoints:
  - {address: 10.0.0.1, labels: {version: v1}, locality: r/z1}
  - {address: 10.0.0.2, labels: {version: v2}, locality: r/z2}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: shop}
spec:
  host: a.example
  trafficPolicy:
    loadBalancer: {localityLbSetting: {enabled: true, failoverPriority: [topology.kubernetes.io/zone]}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
";

fn compiled(text: &str) -> Compiled {
    let options = Options {
        namespace: "gateways".to_owned(),
        locality: Locality::parse("r/z1"),
        ..Options::default()
    };
    let source = Source {
        name: "a.yaml".to_owned(),
        text: format!("{SERVICE}{text}").into(),
    };
    compile(&[source], &options)
}

/// A policy of this namespace with these fields.
fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: isthmus.dev/v1alpha1\nkind: HealthCheckPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn cluster<'c>(compiled: &'c Compiled, port: u16, subset: &str) -> &'c Arc<ClusterSpec> {
    let key = ClusterKey::outbound(port, subset, "a.example");
    compiled.snapshot.clusters.get(&key).unwrap()
}

fn path(spec: &ClusterSpec) -> Option<&str> {
    match &spec.health.as_ref()?.check {
        Check::Http(http) => Some(&http.path),
        Check::Tcp | Check::Grpc { .. } => None,
    }
}

/// What is said beside hints, without file and place.
fn told(compiled: &Compiled) -> Vec<String> {
    let all = compiled.diagnostics.iter();
    let all = all.filter(|found| matches!(found.severity, Severity::Error | Severity::Warning));
    all.map(|found| format!("{}: {}", found.field, found.message))
        .collect()
}

#[test]
fn what_is_not_written_is_kubernetes_default() {
    let compiled = compiled(&policy("p", "shop", "host: a.example, probe: {httpGet: {}}"));
    assert_eq!(told(&compiled), [""; 0]);
    let HealthPolicy {
        check,
        port,
        transport,
        initial_delay,
        interval,
        timeout,
        healthy_after,
        unhealthy_after,
        starts_healthy,
    } = &**cluster(&compiled, 80, "").health.as_ref().unwrap();
    let Check::Http(http) = check else {
        panic!("{check:?}")
    };
    assert_eq!(
        (&*http.path, &http.host, &*http.expected),
        ("/", &None, &[(200, 399)][..])
    );
    assert_eq!(
        (*port, *transport, *starts_healthy),
        (None, CheckTransport::Own, true)
    );
    assert_eq!(
        (*initial_delay, *interval, *timeout),
        (Duration::ZERO, Duration::from_secs(10), Duration::from_secs(1))
    );
    assert_eq!((*healthy_after, *unhealthy_after), (1, 3));
}

#[test]
fn the_policy_that_says_most_of_the_nearest_namespace_counts() {
    let probe = |path: &str| format!("host: a.example, probe: {{httpGet: {{path: /{path}}}}}");
    let mut text = policy("whole", "shop", &probe("whole"))
        + &policy("port", "shop", &(probe("port") + ", port: 81"))
        + &policy("subset", "shop", &(probe("subset") + ", subset: v2"))
        + &policy(
            "wide",
            "shop",
            "host: '*.example', probe: {httpGet: {path: /wide}}",
        )
        + &policy("root", "istio-system", &probe("root"))
        + &policy("elsewhere", "elsewhere", &probe("elsewhere"));
    let found = compiled(&text);
    let paths = |found: &Compiled| {
        [(80, ""), (81, ""), (80, "v1"), (80, "v2"), (81, "v2")]
            .map(|(port, subset)| path(cluster(found, port, subset)).unwrap().to_owned())
    };
    assert_eq!(paths(&found), ["/whole", "/port", "/whole", "/subset", "/subset"]);
    text += &policy("own", "gateways", &probe("own"));
    assert_eq!(paths(&compiled(&text)), ["/own"; 5]);
}

#[test]
fn a_policy_makes_failover_work_and_sets_the_panic_threshold() {
    let without = compiled("");
    assert_eq!(
        told(&without),
        [
            "spec.trafficPolicy.loadBalancer.localityLbSetting: nothing fails over without `outlierDetection` or a \
             HealthCheckPolicy, which find out who does not answer"
        ]
    );
    let levels = |found: &Compiled| -> Vec<u32> {
        let endpoints = &cluster(found, 80, "").endpoints.endpoints;
        endpoints.iter().map(|endpoint| endpoint.level).collect()
    };
    assert_eq!(levels(&without), [0, 0]);
    let with = compiled(&policy(
        "p",
        "shop",
        "host: a.example, panicThreshold: 30, probe: {tcpSocket: {}}",
    ));
    assert_eq!(told(&with), [""; 0]);
    assert_eq!(levels(&with), [0, 1]);
    assert_eq!(cluster(&with, 80, "").balancer.panic_percent, 30);
}

#[test]
fn entries_have_the_probe_of_their_group() {
    let compiled = compiled(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b, namespace: shop}
spec:
  hosts: [b.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: b}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: one, namespace: shop}
spec: {address: 10.0.1.1, labels: {app: b, class: vm}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: two, namespace: shop, annotations: {istio.io/autoRegistrationGroup: vms}}
spec: {address: 10.0.1.2, labels: {app: b}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: three, namespace: shop, annotations: {istio.io/autoRegistrationGroup: others}}
spec: {address: 10.0.1.3, labels: {app: b, class: vm}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec:
  metadata: {labels: {class: vm}}
  template: {address: 10.0.1.1}
  probe: {periodSeconds: 7, tcpSocket: {port: 9000}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: elsewhere, namespace: elsewhere}
spec:
  metadata: {labels: {class: vm}}
  template: {}
  probe: {tcpSocket: {port: 1}}
",
    );
    let key = ClusterKey::outbound(80, "", "b.example");
    let spec = compiled.snapshot.clusters.get(&key).unwrap();
    let probes = spec.endpoints.endpoints.iter().map(|endpoint| {
        let policy = spec.health_of(endpoint)?;
        Some((policy.interval.as_secs(), policy.port))
    });
    let probes: Vec<_> = probes.collect();
    assert_eq!(probes, [Some((7, Some(9000))), Some((7, Some(9000))), None]);
    assert!(spec.is_checked() && spec.health.is_none());
    assert!(!cluster(&compiled, 80, "").is_checked());
}

#[test]
fn mistakes_are_told_with_their_place() {
    let cases = [
        ("probe: {tcpSocket: {}}", "spec.host: "),
        ("host: a.example", "spec.probe: "),
        (
            "host: a.example, probe: {}",
            "spec.probe: a probe needs one of httpGet, tcpSocket and grpc",
        ),
        (
            "host: a.example, probe: {exec: {command: [x]}}",
            "spec.probe.exec: a gateway cannot run commands",
        ),
        (
            "host: a.example, probe: {tcpSocket: {}, grpc: {}}",
            "spec.probe.grpc: `tcpSocket` and `grpc` exclude each other",
        ),
        (
            "host: a.example, probe: {tcpSocket: {port: 70000}}",
            "spec.probe.tcpSocket.port: ",
        ),
        (
            "host: a.example, probe: {httpGet: {path: /a b}}",
            "spec.probe.httpGet.path: a path has no blanks",
        ),
        (
            "host: a.example, probe: {httpGet: {host: 'a/b'}}",
            "spec.probe.httpGet.host: not the name of a host",
        ),
        (
            "host: a.example, probe: {httpGet: {scheme: FTP}}",
            "spec.probe.httpGet.scheme: ",
        ),
        (
            "host: a.example, expectedStatuses: ['20x'], probe: {httpGet: {}}",
            "spec.expectedStatuses[0]: `20x` is not a status",
        ),
        (
            "host: a.example, expectedStatuses: ['200'], probe: {grpc: {}}",
            "spec.expectedStatuses: only the answer to `httpGet` has a status",
        ),
        (
            "host: a.example, initialState: ILL, probe: {grpc: {}}",
            "spec.initialState: ",
        ),
        (
            "host: a.example, panicThreshold: 101, probe: {grpc: {}}",
            "spec.panicThreshold: ",
        ),
        (
            "host: a.example, probe: {timeoutSeconds: 20, grpc: {}}",
            "spec.probe.timeoutSeconds: a check may take longer",
        ),
        (
            "host: b.example, probe: {grpc: {}}",
            "spec.host: no service is named `b.example`",
        ),
        (
            "host: a.example, port: 82, probe: {grpc: {}}",
            "spec.port: `a.example` has no port 82",
        ),
        (
            "host: a.example, subset: v9, probe: {grpc: {}}",
            "spec.subset: no DestinationRule of `a.example` has a subset `v9`",
        ),
        (
            "host: a.example, prob: {}, probe: {grpc: {}}",
            "spec.prob: unknown field `prob`",
        ),
    ];
    for (spec, expected) in cases {
        let found = told(&compiled(&policy("p", "shop", spec)));
        assert!(
            found.iter().any(|text| text.starts_with(expected)),
            "{spec}: {found:#?}"
        );
    }
    let probe = "host: a.example, probe: {grpc: {}}";
    let found = told(&compiled(
        &(policy("p", "shop", probe) + &policy("q", "shop", probe)),
    ));
    assert_eq!(
        found,
        ["spec.host: HealthCheckPolicy shop/p is for the same: this one counts nowhere"]
    );
}
