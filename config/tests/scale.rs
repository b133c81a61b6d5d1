//! Ten times the resources take about ten times as long, and not a hundred times.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::{Options, Source, compile};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Virtual services with a service, a rule and a door of their own, and, each tenth, something wrong in every way that
/// needs others to be looked at.
fn resources(count: usize) -> Source {
    let mut text = String::new();
    for at in 0..count {
        let wrong = at % 10 == 0;
        let host = if wrong { at / 2 } else { at };
        let target = if wrong { "nowhere" } else { "service" };
        let _ = write!(
            text,
            r#"---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: door-{at}}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: ["host-{host}.example"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop-{at}}}
spec:
  hosts: ["host-{host}.example", mesh-{host}]
  gateways: [door-{at}, mesh]
  http:
  - match: [{{uri: {{prefix: /a}}}}]
    route: [{{destination: {{host: {target}-{at}, subset: v1}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: rule-{at}}}
spec:
  host: service-{host}
  subsets: [{{name: v1, labels: {{version: v1}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: service-{at}}}
spec:
  hosts: [service-{at}.default.svc.cluster.local]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, labels: {{version: v1}}}}]
"#
        );
    }
    Source {
        name: "many.yaml".to_owned(),
        text: text.into(),
    }
}

/// The shortest of a few runs, which others on the machine disturb least.
fn shortest(count: usize, runs: usize) -> (Duration, usize) {
    let sources = [resources(count)];
    let runs = (0..runs).map(|_| {
        let begin = Instant::now();
        let compiled = compile(&sources, &Options::default());
        (begin.elapsed(), compiled.diagnostics.len())
    });
    runs.min().unwrap()
}

#[test]
fn ten_times_the_resources_take_about_ten_times_as_long() {
    let (few, found_few) = shortest(1_000, 3);
    let (many, found_many) = shortest(10_000, 2);
    eprintln!("1,000 of each kind: {few:?}, {found_few} findings; 10,000: {many:?}, {found_many} findings");
    assert!(found_few > 1_000 && found_many > 10 * found_few - 1_000);
    assert!(many < few * 40, "{few:?} and {many:?}");
}
