//! What rules say about retries and mirrors, and what is said about them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::diagnostic::Severity;
use isthmus_config::{Compiled, Options, Source, compile};
use isthmus_core::attempt::{RetryOn, RetryPolicy};
use isthmus_core::cluster::retry_budget::{BUDGET_INTERVAL, RetryBudget, RetryLimits};
use isthmus_core::listener::Accepts;
use isthmus_core::name::ClusterKey;
use isthmus_core::route::{Action, Forward};
use std::time::Duration;

const BASE: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: default}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: up, namespace: default}
spec:
  hosts: [up.example, shadow.example]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1}]
---
";

/// The base with one rule, which has these lines, and a DestinationRule with this traffic policy.
fn compiled(rule: &str, policy: &str) -> Compiled {
    let rule: String = rule.lines().map(|line| format!("    {line}\n")).collect();
    let service = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: up, namespace: default}
spec:
  host: up.example
  trafficPolicy: ";
    let text = format!(
        "{BASE}apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v, namespace: default}}
spec:
  hosts: [\"*\"]
  gateways: [g]
  http:
  - route: [{{destination: {{host: up.example}}}}]
{rule}{service}{policy}\n"
    );
    let source = Source {
        name: "case.yaml".to_owned(),
        text: text.into(),
    };
    let compiled = compile(&[source], &Options::default());
    assert!(!compiled.has_errors(), "{:?}", compiled.diagnostics);
    compiled
}

fn forward(compiled: &Compiled) -> Forward {
    let listener = compiled.snapshot.listeners.first().unwrap();
    assert!(matches!(listener.accepts, Accepts::Http));
    let host = listener.tables[0].virtual_hosts()[0].clone();
    match &*host.routes()[0].action {
        Action::Forward(forward) => forward.clone(),
        other => panic!("{other:?}"),
    }
}

fn policy_of(rule: &str) -> RetryPolicy {
    forward(&compiled(rule, "{loadBalancer: {simple: RANDOM}}")).retry
}

#[test]
fn retries_mean_what_istio_makes_of_them() {
    assert_eq!(policy_of(""), RetryPolicy::default());
    assert_eq!(policy_of("retries: {attempts: 0}"), RetryPolicy::off());
    let written = policy_of(
        "retries: {attempts: 3, perTryTimeout: 2s, retryOn: \"gateway-error,409,418\", backoff: 10ms, retryIgnorePreviousHosts: false, retryRemoteLocalities: true}",
    );
    assert_eq!(
        written,
        RetryPolicy {
            retries: 3,
            per_try_timeout: Some(Duration::from_secs(2)),
            backoff: Duration::from_millis(10),
            on: RetryOn::GATEWAY_ERROR.with(RetryOn::STATUS_CODES),
            status_codes: [409, 418].into(),
            ignore_previous_hosts: Some(false),
            remote_localities: true,
        }
    );
    let unsaid = policy_of("retries: {attempts: 5}");
    assert_eq!((unsaid.retries, unsaid.on), (5, RetryPolicy::default().on));
}

#[test]
fn mirrors_are_read_in_every_form() {
    let shares = |rule: &str| -> Vec<u32> {
        let forward = forward(&compiled(rule, "{loadBalancer: {simple: RANDOM}}"));
        let cluster = ClusterKey::outbound(80, "", "shadow.example");
        assert!(forward.mirrors.iter().all(|mirror| mirror.cluster == cluster));
        forward.mirrors.iter().map(|mirror| mirror.per_million).collect()
    };
    for (rule, expected) in [
        ("mirror: {host: shadow.example}", &[1_000_000][..]),
        (
            "mirror: {host: shadow.example}\nmirrorPercentage: {value: 0.5}",
            &[5_000],
        ),
        (
            "mirror: {host: shadow.example}\nmirrorPercentage: {value: 0}",
            &[],
        ),
        ("mirror: {host: shadow.example}\nmirrorPercentage: {}", &[]),
        ("mirror: {host: shadow.example}\nmirror_percent: 12", &[120_000]),
        ("mirror: {host: shadow.example}\nmirrorPercent: 0", &[]),
        (
            "mirrors:\n- destination: {host: shadow.example}\n- destination: {host: shadow.example}\n  percentage: {value: 25}",
            &[1_000_000, 250_000],
        ),
    ] {
        assert_eq!(shares(rule), expected, "{rule}");
    }
}

#[test]
fn a_mirror_that_leads_nowhere_is_told() {
    let compiled = compiled(
        "mirror: {host: nowhere.example}",
        "{loadBalancer: {simple: RANDOM}}",
    );
    let told: Vec<_> = compiled
        .diagnostics
        .iter()
        .map(|found| (found.name, found.field.as_str()))
        .collect();
    assert_eq!(told, [("unknown-host", "spec.http[0].mirror.host")]);
}

#[test]
fn limits_of_retries_are_those_of_the_port_the_subset_and_the_service() {
    let limits = |policy: &str| {
        let compiled = compiled("", policy);
        let cluster = &compiled.snapshot.clusters[&ClusterKey::outbound(80, "", "up.example")];
        cluster.retries
    };
    assert_eq!(limits("{loadBalancer: {simple: RANDOM}}"), RetryLimits::default());
    assert_eq!(limits("{connectionPool: {http: {maxRetries: 7}}}").concurrent, 7);
    assert_eq!(
        limits("{connectionPool: {http: {maxRetries: 0}}}"),
        RetryLimits::default()
    );
    let budget = RetryBudget {
        per_million: 200_000,
        min: 3,
        interval: BUDGET_INTERVAL,
    };
    assert_eq!(limits("{retryBudget: {}}").budget, Some(budget));
    let written = "retryBudget: {percent: 12.5, minRetryConcurrency: 9, budgetInterval: 3s}";
    let expected = RetryBudget {
        per_million: 125_000,
        min: 9,
        interval: Duration::from_secs(3),
    };
    assert_eq!(limits(&format!("{{{written}}}")).budget, Some(expected));
    let port = "portLevelSettings: [{port: {number: 80}, connectionPool: {http: {maxRetries: 2}}}]";
    let both = limits(&format!("{{{written}, {port}}}"));
    assert_eq!(
        (both.concurrent, both.budget),
        (2, Some(expected)),
        "a port has no budget of its own"
    );
}

#[test]
fn load_that_nothing_bounds_is_told() {
    let hints = |rule: &str, policy: &str| -> Vec<String> {
        let compiled = compiled(rule, policy);
        let hints = compiled
            .diagnostics
            .iter()
            .filter(|found| found.code == "retry-amplification");
        hints
            .map(|found| {
                assert_eq!(found.severity, Severity::Hint);
                assert_eq!(found.field, "spec.http[0].retries.attempts");
                found.message.clone()
            })
            .collect()
    };
    let many = "retries: {attempts: 9, retryOn: 5xx}";
    let none = "{loadBalancer: {simple: RANDOM}}";
    let told = hints(many, none);
    assert!(
        told.len() == 1 && told[0].contains("`up.example`") && told[0].contains("10"),
        "{told:?}"
    );
    assert!(hints("retries: {attempts: 2, retryOn: 5xx}", none).is_empty());
    assert!(hints(many, "{retryBudget: {percent: 10}}").is_empty());
    assert!(hints(many, "{connectionPool: {http: {maxRetries: 10}}}").is_empty());
}

#[test]
fn the_annotation_of_hedging_is_taken_or_told() {
    let with = |annotation: &str| {
        let text = format!(
            "{BASE}apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: up, namespace: default, annotations: {{isthmus.dev/hedging: \"{annotation}\"}}}}
spec: {{host: up.example, subsets: [{{name: a, labels: {{v: a}}}}]}}
"
        );
        let name = "case.yaml".to_owned();
        compile(
            &[Source {
                name,
                text: text.into(),
            }],
            &Options::default(),
        )
    };
    let good = with("per-try-timeout;max=1");
    for subset in ["", "a"] {
        let cluster = &good.snapshot.clusters[&ClusterKey::outbound(80, subset, "up.example")];
        assert_eq!(cluster.retries.hedges.0, 1);
    }
    let bad = with("always");
    let told = bad
        .diagnostics
        .iter()
        .find(|found| found.code == "bad-value")
        .unwrap();
    assert_eq!((told.severity, told.line), (Severity::Error, 17));
}
