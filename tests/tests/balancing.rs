//! How requests and connections are shared out among endpoints, seen from both ends.

use isthmus_tests::bytes::BytePeer;
use isthmus_tests::client::{Client, connect_from};
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Frame, flag};
use isthmus_tests::port::HeldPort;
use isthmus_tests::resources::{
    UPSTREAM_HOST, gateway, gateway_with, route_to, stream_service, traffic_policy, virtual_service,
};
use isthmus_tests::upstream::{Answer, Upstream};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Upstreams that answer with their numbers.
fn upstreams(count: usize) -> Vec<Upstream> {
    (0..count).map(|at| Upstream::echo(&at.to_string())).collect()
}

/// A service with these endpoints, each with more fields in flow style.
fn service(endpoints: &[(SocketAddr, &str)]) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: up}}
spec:
  hosts: [{UPSTREAM_HOST}]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
"
    );
    for (address, more) in endpoints {
        let (ip, port) = (address.ip(), address.port());
        writeln!(text, "  - {{address: {ip}, ports: {{http: {port}}}, {more}}}").unwrap();
    }
    text + "---\n"
}

/// Port 80, every request to one of these endpoints as the policy says.
fn balanced(endpoints: &[(SocketAddr, &str)], policy: &str) -> Builder {
    let yaml = gateway(80)
        + &service(endpoints)
        + &traffic_policy(UPSTREAM_HOST, policy)
        + &virtual_service(&format!("- {}", route_to(UPSTREAM_HOST)));
    Gateway::builder().resources("balanced", &yaml)
}

fn all<'m>(upstreams: &[Upstream], more: &'m str) -> Vec<(SocketAddr, &'m str)> {
    upstreams
        .iter()
        .map(|upstream| (upstream.address(), more))
        .collect()
}

/// Who answered, or the status.
fn who(client: &mut Client, fields: &str) -> String {
    let response = client
        .send(format!("GET / HTTP/1.1\r\nhost: h\r\n{fields}\r\n"))
        .response();
    match response.field("x-served-by") {
        Some(name) => name.to_owned(),
        None => response.status.to_string(),
    }
}

/// The answers to so many requests, counted by who gave them.
fn tally(gateway: &Gateway, requests: usize) -> BTreeMap<String, usize> {
    let mut client = gateway.client();
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        *counts.entry(who(&mut client, "")).or_default() += 1;
    }
    counts
}

#[test]
fn requests_are_shared_out_by_weight() {
    let upstreams = upstreams(3);
    let weights = ["weight: 5", "weight: 1", "weight: 2"];
    let endpoints: Vec<_> = upstreams
        .iter()
        .zip(weights)
        .map(|(upstream, weight)| (upstream.address(), weight))
        .collect();
    for (simple, slack) in [("ROUND_ROBIN", 0), ("LEAST_REQUEST", 8), ("RANDOM", 60)] {
        let gateway = balanced(&endpoints, &format!("loadBalancer: {{simple: {simple}}}")).start();
        let counts = tally(&gateway, 400);
        for (name, expected) in [("0", 250), ("1", 50), ("2", 100)] {
            let count = counts.get(name).copied().unwrap_or(0);
            assert!(count.abs_diff(expected) <= slack, "{simple}: {counts:?}");
        }
        gateway.stop();
    }
}

#[test]
fn balancers_of_our_own_and_those_that_mean_nothing_here_serve() {
    let upstreams = upstreams(3);
    let endpoints = all(&upstreams, "weight: 1");
    for (policy, annotation) in [
        ("loadBalancer: {simple: RANDOM}", "PEAK_EWMA"),
        ("loadBalancer: {simple: RANDOM}", "PREQUAL"),
        ("loadBalancer: {simple: PASSTHROUGH}", ""),
    ] {
        let mut rule = traffic_policy(UPSTREAM_HOST, policy);
        if !annotation.is_empty() {
            let annotated = format!("{{annotations: {{isthmus.dev/balancer: {annotation}}}, name:");
            rule = rule.replace("{name:", &annotated);
        }
        let yaml = gateway(80)
            + &service(&endpoints)
            + &rule
            + &virtual_service(&format!("- {}", route_to(UPSTREAM_HOST)));
        let gateway = Gateway::builder().resources("balanced", &yaml).start();
        let counts = tally(&gateway, 60);
        assert_eq!(
            counts.keys().collect::<Vec<_>>(),
            ["0", "1", "2"],
            "{annotation}: {counts:?}"
        );
        gateway.stop();
    }
}

const COOKIE: &str = "loadBalancer: {consistentHash: {httpCookie: {name: user, path: /, ttl: 60s, attributes: [{name: SameSite, value: Lax}]}}}";

#[test]
fn a_client_with_a_cookie_stays_where_it_is() {
    let upstreams = upstreams(4);
    let gateway = balanced(&all(&upstreams, "weight: 1"), COOKIE).shards(2).start();
    let mut seen = BTreeSet::new();
    for _ in 0..12 {
        let first = gateway.client().get("h", "/");
        let given = first.field("set-cookie").expect("a cookie");
        let (pair, attributes) = given.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=60; Path=/; SameSite=Lax; HttpOnly");
        let own = first.field("x-served-by").unwrap().to_owned();
        for _ in 0..4 {
            let mut client = gateway.client();
            let again = client
                .send(format!(
                    "GET / HTTP/1.1\r\nhost: h\r\ncookie: a=1; {pair}; b=2\r\n\r\n"
                ))
                .response();
            assert_eq!(again.field("x-served-by"), Some(&*own));
            assert_eq!(again.field("set-cookie"), None, "it has one");
        }
        seen.insert(own);
    }
    assert!(seen.len() > 1, "not all clients are alike: {seen:?}");
    gateway.stop();
}

#[test]
fn a_cookie_leads_to_the_same_endpoint_over_http2() {
    let upstreams = upstreams(4);
    let gateway = balanced(&all(&upstreams, "weight: 1"), COOKIE).start();
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    // Requests that come together on one connection are given the same cookie.
    let streams: Vec<u32> = (0..5).map(|_| client.get("/")).collect();
    let answers: Vec<_> = streams
        .into_iter()
        .map(|stream| client.answered(stream, 200).unwrap())
        .collect();
    let own = answers[0].field("x-served-by").unwrap();
    let given = answers[0].field("set-cookie").unwrap();
    for answer in &answers {
        assert_eq!(answer.field("x-served-by"), Some(own.clone()));
        assert_eq!(answer.field("set-cookie"), Some(given.clone()));
    }
    let pair = given.split(';').next().unwrap();
    let mut other = Connection::open(Target::cleartext(gateway.address())).unwrap();
    other.handshake(&[]).unwrap();
    for _ in 0..5 {
        let stream = other.next_stream();
        // A browser sends cookies as fields of their own (RFC 9113, 8.2.3).
        let block = other
            .head("GET", "/")
            .field("cookie", "a=1")
            .field("cookie", pair);
        other.send(&Frame::headers(flag::WHOLE, stream, block));
        let answer = other.answered(stream, 200).unwrap();
        assert_eq!(answer.field("x-served-by"), Some(own.clone()));
        assert_eq!(answer.field("set-cookie"), None);
    }
    assert_eq!(
        who(&mut gateway.client(), &format!("cookie: {pair}\r\n")),
        own,
        "nor over HTTP/1.1"
    );
    gateway.stop();
}

#[test]
fn a_cookie_without_a_ttl_is_not_given() {
    let upstreams = upstreams(2);
    let policy = "loadBalancer: {consistentHash: {httpCookie: {name: user}}}";
    let gateway = balanced(&all(&upstreams, "weight: 1"), policy).start();
    let response = gateway.get("h", "/");
    assert_eq!((response.status, response.field("set-cookie")), (200, None));
    let mut client = gateway.client();
    let own = who(&mut client, "cookie: user=ann\r\n");
    for _ in 0..10 {
        assert_eq!(who(&mut client, "cookie: user=ann\r\n"), own);
    }
    let anybody: BTreeSet<String> = (0..40).map(|_| who(&mut client, "")).collect();
    assert_eq!(anybody.len(), 2, "without a key anyone serves");
    gateway.stop();
}

/// Where each of many keys leads, over connections of their own.
fn mapping(gateway: &Gateway) -> Vec<String> {
    (0..60)
        .map(|key| who(&mut gateway.client(), &format!("x-user: user-{key}\r\n")))
        .collect()
}

#[test]
fn keys_lead_to_the_same_endpoints_after_a_start_on_any_shard_and_in_any_order() {
    let upstreams = upstreams(5);
    for table in ["ringHash: {minimumRingSize: 512}", "maglev: {tableSize: 4099}"] {
        let policy = format!("loadBalancer: {{consistentHash: {{httpHeaderName: X-User, {table}}}}}");
        let mut endpoints = all(&upstreams, "weight: 1");
        let one = balanced(&endpoints, &policy).start();
        let before = mapping(&one);
        one.stop();
        assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 5, "{before:?}");
        let four = balanced(&endpoints, &policy).shards(4).start();
        assert_eq!(mapping(&four), before, "{table}: with four shards");
        four.stop();
        endpoints.reverse();
        let turned = balanced(&endpoints, &policy).start();
        assert_eq!(mapping(&turned), before, "{table}: in another order");
        turned.stop();
        let less = balanced(&endpoints[..4], &policy).start();
        let moved = mapping(&less)
            .iter()
            .zip(&before)
            .filter(|(now, then)| *then != "0" && now != then)
            .count();
        assert!(moved <= 3, "{table}: {moved} of 60 moved without need");
        less.stop();
    }
}

#[test]
fn clients_stay_by_their_address() {
    let upstreams = upstreams(3);
    let policy = "loadBalancer: {consistentHash: {useSourceIp: true}}";
    let gateway = balanced(&all(&upstreams, "weight: 1"), policy).shards(2).start();
    let from = |last: u8| {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        Client::over(connect_from(source, gateway.address(), None).unwrap())
    };
    let mut seen = BTreeSet::new();
    for last in 1..30 {
        let own = who(&mut from(last), "");
        for _ in 0..3 {
            assert_eq!(who(&mut from(last), ""), own, "127.0.0.{last}");
        }
        seen.insert(own);
    }
    assert_eq!(seen.len(), 3);
    gateway.stop();
}

#[test]
fn connections_of_bytes_stay_by_their_address_and_go_on_when_it_is_refused() {
    let names = ["a", "b", "c"];
    let peers = names.map(BytePeer::naming);
    let held = HeldPort::take();
    let mut endpoints: Vec<SocketAddr> = peers.iter().map(BytePeer::address).collect();
    endpoints.push(held.address());
    let server = "{port: {number: 9000, name: tcp, protocol: TCP}, hosts: [\"*\"]}\n";
    let yaml = gateway_with(server)
        + &stream_service("tcp.internal", 9000, "TCP", &endpoints)
        + &traffic_policy(
            "tcp.internal",
            "loadBalancer: {consistentHash: {useSourceIp: true}}",
        )
        + "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec:
  hosts: [\"*\"]
  gateways: [g]
  tcp:
  - route: [{destination: {host: tcp.internal, port: {number: 9000}}}]
";
    let gateway = Gateway::builder().resources("g", &yaml).port(9000).start();
    let hear = |last: u8| {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let mut stream = connect_from(source, gateway.listener(9000), None).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let mut seen = BTreeSet::new();
    for last in 1..40 {
        let own = hear(last);
        assert!(names.contains(&&*own), "127.0.0.{last} was told {own:?}");
        assert_eq!(hear(last), own);
        seen.insert(own);
    }
    assert_eq!(seen.len(), 3);
    gateway.stop();
}

#[test]
fn a_key_stays_with_its_endpoint_even_when_that_refuses() {
    let upstreams = upstreams(2);
    let held = HeldPort::take();
    let mut endpoints = all(&upstreams, "weight: 1");
    endpoints.push((held.address(), "weight: 1"));
    let policy = "loadBalancer: {consistentHash: {httpHeaderName: x-user}}";
    let hashed = balanced(&endpoints, policy).start();
    let answers: BTreeSet<String> = mapping(&hashed).into_iter().collect();
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), ["0", "1", "503"]);
    hashed.stop();
    let in_turn = balanced(&endpoints, "loadBalancer: {simple: ROUND_ROBIN}").start();
    let answers: BTreeSet<String> = mapping(&in_turn).into_iter().collect();
    assert_eq!(
        answers.into_iter().collect::<Vec<_>>(),
        ["0", "1"],
        "a retry goes elsewhere"
    );
    in_turn.stop();
}

#[test]
fn a_key_leads_elsewhere_after_a_failure_where_the_rule_says_so() {
    let upstreams = upstreams(2);
    let held = HeldPort::take();
    let mut endpoints = all(&upstreams, "weight: 1");
    endpoints.push((held.address(), "weight: 1"));
    let policy = "loadBalancer: {consistentHash: {httpHeaderName: x-user}}";
    let rule = |ignores: bool| {
        let retries = format!(
            "retries: {{attempts: 2, retryOn: connect-failure, retryIgnorePreviousHosts: {ignores}}}"
        );
        let yaml = gateway(80)
            + &service(&endpoints)
            + &traffic_policy(UPSTREAM_HOST, policy)
            + &virtual_service(&format!("- {}\n  {retries}", route_to(UPSTREAM_HOST)));
        let gateway = Gateway::builder().resources("balanced", &yaml).start();
        let answers = mapping(&gateway);
        gateway.stop();
        answers
    };
    let (stays, goes) = (rule(false), rule(true));
    assert!(stays.iter().any(|answer| answer == "503"), "{stays:?}");
    assert!(goes.iter().all(|answer| answer != "503"), "{goes:?}");
    let moved = stays.iter().zip(&goes).filter(|(stays, goes)| stays != goes);
    assert!(moved.into_iter().all(|(stays, _)| stays == "503"), "others stay");
}

#[test]
fn load_stays_near_and_goes_where_shares_say() {
    let upstreams = upstreams(4);
    let localities = [
        "locality: r1/z1/s1",
        "locality: r1/z2/s1",
        "locality: r2/z1/s1",
        "labels: {istio-locality: r3.z1.s1}",
    ];
    let endpoints: Vec<_> = upstreams
        .iter()
        .zip(localities)
        .map(|(upstream, locality)| (upstream.address(), locality))
        .collect();
    let counted = |policy: &str, locality: &str| {
        let policy = format!("loadBalancer:\n  simple: ROUND_ROBIN\n{policy}");
        let gateway = balanced(&endpoints, &policy)
            .arg("--locality")
            .arg(locality)
            .start();
        let counts = tally(&gateway, 100);
        gateway.stop();
        (0..4)
            .map(|at| counts.get(&at.to_string()).copied().unwrap_or(0))
            .collect::<Vec<_>>()
    };
    let outlier = "outlierDetection: {consecutive5xxErrors: 5}";
    assert_eq!(counted("", "r1/z1/s1"), [25; 4], "nothing would notice a failure");
    assert_eq!(counted(outlier, "r1/z1/s1"), [100, 0, 0, 0]);
    assert_eq!(counted(outlier, "r2/z9"), [0, 0, 100, 0]);
    assert_eq!(counted(outlier, "r4"), [25; 4]);
    assert_eq!(counted(outlier, ""), [25; 4], "nowhere");
    let off = format!("  localityLbSetting: {{enabled: false}}\n{outlier}");
    assert_eq!(counted(&off, "r1/z1/s1"), [25; 4]);
    let failover = format!("  localityLbSetting: {{failover: [{{from: r4, to: r3}}]}}\n{outlier}");
    assert_eq!(counted(&failover, "r4"), [0, 0, 0, 100]);
    let shares = "  localityLbSetting:
    distribute:
    - from: r1/*
      to: {r1/z1: 70, r1/z2: 20, r3: 10}
";
    assert_eq!(counted(shares, "r1/z1/s1"), [70, 20, 0, 10]);
    assert_eq!(counted(shares, "r2"), [25; 4], "no share is for it");
}

/// Checks that nobody fails often enough for, so that all they do is to end ejections.
const FORGIVING_CHECKS: &str = "apiVersion: isthmus.dev/v1alpha1
kind: HealthCheckPolicy
metadata: {name: checks, namespace: default}
spec:
  host: up.example
  probe: {periodSeconds: 1, failureThreshold: 1000, httpGet: {path: /healthz}}
---
";

#[test]
fn load_leaves_a_locality_as_far_as_its_endpoints_are_ejected_and_comes_back() {
    let statuses = [(); 4].map(|()| Arc::new(AtomicU16::new(200)));
    let upstreams: Vec<Upstream> = (0..)
        .zip(&statuses)
        .map(|(at, status)| {
            let said = Arc::clone(status);
            Upstream::start(move |_| {
                Answer::status(said.load(Ordering::SeqCst)).field("x-served-by", &at.to_string())
            })
        })
        .collect();
    let near = "locality: r1/z1/s1";
    let endpoints: Vec<_> = upstreams
        .iter()
        .zip([near, near, "locality: r2/z1/s1", "locality: r2/z1/s1"])
        .map(|(upstream, locality)| (upstream.address(), locality))
        .collect();
    let policy = "loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1h, maxEjectionPercent: 100}";
    let gateway = balanced(&endpoints, policy)
        .resources("checks", FORGIVING_CHECKS)
        .arg("--locality")
        .arg("r1/z1/s1")
        .start();
    let counted = |requests| {
        let counts = tally(&gateway, requests);
        [0, 1, 2, 3].map(|at: usize| counts.get(&at.to_string()).copied().unwrap_or(0))
    };
    let fails = |at: usize, ejected: f64| {
        statuses[at].store(500, Ordering::SeqCst);
        let mut client = gateway.client();
        eventually(SOON, "the ejection", || {
            who(&mut client, "");
            gateway.metric("isthmus_ejected") == Some(ejected)
        });
    };
    assert_eq!(counted(100), [50, 50, 0, 0]);
    // What one of two can take with 40 % to spare.
    fails(0, 1.0);
    let [gone, near, far, further] = counted(1000);
    assert_eq!(gone, 0);
    assert!(near.abs_diff(700) <= 5, "{near} {far} {further}");
    assert!(far.abs_diff(further) <= 1, "{near} {far} {further}");
    fails(1, 2.0);
    assert_eq!(counted(100), [0, 0, 50, 50]);
    statuses
        .iter()
        .for_each(|status| status.store(200, Ordering::SeqCst));
    eventually(SOON, "both are back", || {
        gateway.metric("isthmus_ejected") == Some(0.0)
    });
    assert_eq!(counted(100), [50, 50, 0, 0]);
    gateway.stop();
}
