//! What protects upstreams and their clients: limits of connections and requests, exact for the whole process.

use isthmus_tests::bytes::{self, BytePeer};
use isthmus_tests::client::{Client, Response};
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::gauge::Gauge;
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::server::Server;
use isthmus_tests::resources::{
    UPSTREAM_HOST, gateway_with, one_route, route_among, stream_service, traffic_policy,
};
use isthmus_tests::upstream::Upstream;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

const SHARDS: usize = 4;

/// A gateway of several shards with these fields of `connectionPool`.
fn limited(address: SocketAddr, pool: &str) -> Builder {
    Gateway::builder()
        .resources("route", &one_route(address, ""))
        .resources(
            "rule",
            &traffic_policy(UPSTREAM_HOST, &format!("connectionPool: {{{pool}}}")),
        )
        .shards(SHARDS)
        .without_access_log()
}

/// What clients saw.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    answered: u64,
    refused: u64,
}

fn sort(response: &Response, seen: &mut Seen) {
    match response.status {
        200 => {
            assert_eq!(response.field("x-envoy-overloaded"), None);
            seen.answered += 1;
        }
        503 => {
            assert_eq!(response.field("x-envoy-overloaded"), Some("true"));
            seen.refused += 1;
        }
        status => panic!("{status}: {}", response.text()),
    }
}

/// So many clients at once, each of which sends so many requests one after the other.
fn crowd(gateway: &Gateway, clients: usize, requests: usize) -> Seen {
    let start = Arc::new(Barrier::new(clients));
    let address = gateway.address();
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            let start = Arc::clone(&start);
            let run = move || {
                let mut client = Client::connect(address).patience(Duration::from_secs(120));
                let mut seen = Seen::default();
                start.wait();
                for _ in 0..requests {
                    sort(&client.get("any.example", "/"), &mut seen);
                }
                seen
            };
            thread::Builder::new().stack_size(256 * 1024).spawn(run).unwrap()
        })
        .collect();
    let mut all = Seen::default();
    for thread in threads {
        let seen = thread.join().unwrap();
        all.answered += seen.answered;
        all.refused += seen.refused;
    }
    all
}

fn overflows(gateway: &Gateway, limit: &str) -> u64 {
    gateway
        .metric_with("isthmus_overflows_total", &format!("limit=\"{limit}\""))
        .unwrap_or(0.0) as u64
}

fn used(gateway: &Gateway, limit: &str) -> u64 {
    gateway
        .metric_with("isthmus_cluster_used", &format!("limit=\"{limit}\""))
        .unwrap_or(0.0) as u64
}

#[test]
fn one_connection_serves_all_clients_of_all_shards() {
    let upstream = Gauge::start(Duration::from_millis(1));
    let gateway = limited(upstream.address(), "tcp: {maxConnections: 1}").start();
    let seen = crowd(&gateway, 500, 2);
    assert_eq!((seen.answered, seen.refused), (1000, 0), "nothing starves");
    assert_eq!((upstream.connections_max(), upstream.requests_max()), (1, 1));
    assert_eq!(upstream.served(), 1000);
    eventually(SOON, "nobody waits", || used(&gateway, "pending") == 0);
    assert!(used(&gateway, "connections") <= 1);
    gateway.stop();
}

#[test]
fn a_hundred_connections_are_never_more() {
    let upstream = Gauge::start(Duration::from_millis(5));
    let gateway = limited(upstream.address(), "tcp: {maxConnections: 100}").start();
    let seen = crowd(&gateway, 500, 4);
    assert_eq!((seen.answered, seen.refused), (2000, 0), "nothing starves");
    assert!(
        upstream.connections_max() <= 100,
        "{}",
        upstream.connections_max()
    );
    assert!(upstream.connections_max() > 50, "{}", upstream.connections_max());
    gateway.stop();
}

#[test]
fn requests_under_way_are_never_more_than_ten() {
    let upstream = Gauge::start(Duration::from_millis(5));
    let gateway = limited(upstream.address(), "http: {http2MaxRequests: 10}").start();
    let seen = crowd(&gateway, 500, 4);
    assert_eq!(seen.answered + seen.refused, 2000);
    assert!(upstream.requests_max() <= 10, "{}", upstream.requests_max());
    assert_eq!(upstream.served(), seen.answered);
    assert!(seen.answered > 0 && seen.refused > 0, "{seen:?}");
    eventually(SOON, "all are counted", || {
        overflows(&gateway, "requests") == seen.refused
    });
    assert_eq!(used(&gateway, "requests"), 0);
    gateway.stop();
}

#[test]
fn one_place_in_the_queue_is_one_for_all_shards() {
    let upstream = Gauge::start(Duration::from_millis(1));
    let pool = "tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}";
    let gateway = limited(upstream.address(), pool).start();
    let seen = crowd(&gateway, 500, 4);
    assert_eq!(seen.answered + seen.refused, 2000);
    assert!(seen.answered > 0 && seen.refused > 0, "{seen:?}");
    assert_eq!((upstream.connections_max(), upstream.requests_max()), (1, 1));
    assert_eq!(upstream.served(), seen.answered);
    eventually(SOON, "all are counted", || {
        overflows(&gateway, "pending") == seen.refused
    });
    assert_eq!(
        gateway.metric_with("istio_requests_total", "response_flags=\"UO\""),
        Some(seen.refused as f64)
    );
    // Whoever comes alone is served, on whichever shard it is and whichever has the connection.
    for _ in 0..40 {
        assert_eq!(gateway.get("any.example", "/").status, 200);
    }
    assert_eq!(upstream.connections_max(), 1);
    assert_eq!(used(&gateway, "pending"), 0);
    gateway.stop();
}

/// The task "Circuit Breaking" of Istio's documentation, with as many clients as it has.
#[test]
fn two_clients_find_room_where_three_do_not() {
    let upstream = Gauge::start(Duration::from_millis(20));
    let pool = "tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}";
    let gateway = limited(upstream.address(), pool).start();
    let two = crowd(&gateway, 2, 20);
    assert_eq!((two.answered, two.refused), (40, 0));
    let three = crowd(&gateway, 3, 20);
    assert_eq!(three.answered + three.refused, 60);
    assert!(three.refused > 0, "{three:?}");
    eventually(SOON, "all are counted", || {
        overflows(&gateway, "pending") == three.refused
    });
    assert_eq!(
        gateway.metric_with("istio_requests_total", "response_flags=\"UO\""),
        Some(three.refused as f64)
    );
    assert_eq!(upstream.connections_max(), 1);
    let clusters = gateway.get_admin("/clusters");
    assert!(
        clusters
            .text()
            .contains("::default_priority::max_connections::1\n"),
        "{}",
        clusters.text()
    );
    gateway.stop();
}

#[test]
fn who_goes_away_while_waiting_leaves_the_queue() {
    let upstream = Gauge::start(Duration::from_millis(300));
    let pool = "tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}";
    let gateway = limited(upstream.address(), pool).start();
    let mut busy = gateway.client();
    busy.send_get("any.example", "/");
    eventually(SOON, "the first request", || upstream.requests() == 1);
    let mut gone = gateway.client();
    gone.send_get("any.example", "/");
    eventually(SOON, "the second waits", || used(&gateway, "pending") == 1);
    gone.abort();
    eventually(SOON, "its place is free", || used(&gateway, "pending") == 0);
    let third = gateway.get("any.example", "/");
    assert_eq!(third.status, 200);
    assert_eq!(busy.response().status, 200);
    assert_eq!(upstream.served(), 2);
    gateway.stop();
}

#[test]
fn who_waits_too_long_is_told_so() {
    let upstream = Gauge::start(Duration::from_secs(2));
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), "timeout: 200ms"))
        .resources(
            "rule",
            &traffic_policy(UPSTREAM_HOST, "connectionPool: {tcp: {maxConnections: 1}}"),
        )
        .start();
    let mut busy = gateway.client();
    busy.send_get("any.example", "/busy");
    eventually(SOON, "the first request", || upstream.requests() == 1);
    assert_eq!(gateway.get("any.example", "/late").status, 504);
    assert_eq!(busy.response().status, 504);
    assert!(gateway.access_line("/late").has("UT"));
    eventually(SOON, "nobody waits", || used(&gateway, "pending") == 0);
    gateway.stop();
}

#[test]
fn an_idle_shared_connection_makes_room_for_another_endpoint() {
    let (first, second) = (Server::silent(&[]), Server::silent(&[]));
    let endpoints = [("v1", first.address()), ("v2", second.address())]
        .map(|(version, address)| isthmus_tests::resources::Endpoint::new(version, address));
    let routes = isthmus_tests::resources::gateway(80)
        + &isthmus_tests::resources::service(UPSTREAM_HOST, 80, &endpoints)
        + &isthmus_tests::resources::virtual_service(&format!(
            "- {}",
            isthmus_tests::resources::route_to(UPSTREAM_HOST)
        ));
    let policy = "loadBalancer: {simple: ROUND_ROBIN}\nconnectionPool: {tcp: {maxConnections: 1}, http: {h2UpgradePolicy: UPGRADE}}";
    let gateway = Gateway::builder()
        .resources("route", &routes)
        .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
        .start();
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    for round in 0..6 {
        let path = format!("/{round}");
        let stream = client.get(&path);
        client.flush();
        let servers = [&first, &second];
        eventually(SOON, "the request", || {
            servers.iter().any(|server| server.request(&path).is_some())
        });
        let server = servers
            .iter()
            .find(|server| server.request(&path).is_some())
            .unwrap();
        server.on_path(&path, |peer, stream| peer.answer(stream, 200, &[], b"ok"));
        client.answered(stream, 200).unwrap();
    }
    let counts = [first.requests().len(), second.requests().len()];
    assert_eq!(counts, [3, 3]);
    assert!(used(&gateway, "connections") <= 1);
    gateway.stop();
}

#[test]
fn connections_that_have_lasted_long_are_replaced_and_no_request_suffers() {
    let upstream = Upstream::echo("h1");
    let gateway = limited(upstream.address(), "tcp: {maxConnectionDuration: 300ms}")
        .shards(1)
        .start();
    let mut client = gateway.client();
    eventually(SOON, "connections that follow each other", || {
        assert_eq!(client.get("any.example", "/").status, 200);
        upstream.connections().len() >= 4
    });
    eventually(Duration::from_secs(30), "the last is closed, too", || {
        upstream.connections().iter().all(|connection| connection.ended)
    });
    upstream.assert_no_violation();
    gateway.stop();

    let server = Server::start(&[], isthmus_tests::h2::server::echo);
    let pool = "tcp: {maxConnectionDuration: 300ms}, http: {h2UpgradePolicy: UPGRADE}";
    let gateway = limited(server.address(), pool).shards(1).start();
    let mut client = gateway.client();
    eventually(SOON, "connections that follow each other", || {
        assert_eq!(client.get("any.example", "/").status, 200);
        server.connections().len() >= 4
    });
    eventually(Duration::from_secs(30), "the last is closed, too", || {
        gateway.metric("isthmus_upstream_connections_active") == Some(0.0)
    });
    server.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_connection_of_bytes_beyond_the_limit_is_refused() {
    let upstream = BytePeer::echo();
    let gateway = Gateway::builder()
        .resources(
            "door",
            &gateway_with("{port: {number: 9000, name: bytes, protocol: TCP}, hosts: [\"*\"]}"),
        )
        .resources(
            "service",
            &stream_service("bytes.internal", 9000, "TCP", &[upstream.address()]),
        )
        .resources(
            "rule",
            &traffic_policy("bytes.internal", "connectionPool: {tcp: {maxConnections: 1}}"),
        )
        .resources(
            "route",
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bytes, namespace: default}
spec:
  hosts: ['*']
  gateways: [g]
  tcp:
  - route: [{destination: {host: bytes.internal, port: {number: 9000}}}]
",
        )
        .port(9000)
        .shards(SHARDS)
        .start();
    let address = gateway.listener(9000);
    let mut first = bytes::connect(address);
    first.write_all(b"x").unwrap();
    let mut echo = [0];
    first.read_exact(&mut echo).unwrap();
    for _ in 0..SHARDS {
        // The reset may overtake the connect itself.
        let Ok(mut more) = bytes::try_connect(address) else {
            continue;
        };
        let _may_be_reset = more.write_all(b"x");
        assert!(!matches!(more.read(&mut echo), Ok(1..)), "beyond the limit");
    }
    eventually(SOON, "all are counted", || {
        overflows(&gateway, "connections") == SHARDS as u64
    });
    eventually(SOON, "the log has them", || {
        let lines = gateway.access_log();
        lines.iter().filter(|line| line.has("UO")).count() == SHARDS
    });
    drop(first);
    eventually(SOON, "the connection has ended", || {
        used(&gateway, "connections") == 0
    });
    let mut next = bytes::connect(address);
    next.write_all(b"y").unwrap();
    next.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"y");
    drop(next);
    gateway.stop();
}

/// The endpoints that are ejected, as the admin server says.
fn ejected(gateway: &Gateway) -> Vec<SocketAddr> {
    let page = gateway.get_admin("/clusters");
    let flagged = page.text().lines().filter_map(|line| {
        let rest = line.strip_suffix("::health_flags::/failed_outlier_check")?;
        rest.rsplit("::").next()?.parse().ok()
    });
    flagged.collect()
}

#[test]
fn an_endpoint_that_fails_is_ejected_on_all_shards_and_comes_back() {
    let upstreams = [(); 3].map(|()| Gauge::start(Duration::ZERO));
    let [failing, well @ ..] = &upstreams;
    failing.answer(500);
    let addresses = upstreams.each_ref().map(Gauge::address);
    let routes = route_among(&addresses, "");
    let policy = "loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {consecutive5xxErrors: 4, interval: 100ms, baseEjectionTime: 3s, maxEjectionPercent: 50}";
    let gateway = Gateway::builder()
        .resources("route", &routes)
        .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
        .shards(SHARDS)
        .without_access_log()
        .start();
    // Connections of their own, so that all shards have some.
    let statuses = |count: usize| -> Vec<u16> {
        (0..count)
            .map(|_| gateway.get("any.example", "/").status)
            .collect()
    };
    let mut failures = 0;
    eventually(SOON, "four failures", || {
        failures += statuses(1).iter().filter(|status| **status == 500).count();
        failures == 4
    });
    assert_eq!(failing.served(), 4);
    let before: u64 = well.iter().map(Gauge::served).sum();
    assert_eq!(statuses(60), [200; 60], "no shard picks it any more");
    assert_eq!(failing.served(), 4);
    assert_eq!(well.iter().map(Gauge::served).sum::<u64>(), before + 60);
    assert_eq!(ejected(&gateway), [failing.address()]);
    assert_eq!(gateway.metric("isthmus_ejected"), Some(1.0));
    eventually(SOON, "it is told", || {
        gateway.metric("isthmus_ejections_total") == Some(1.0)
    });

    eventually(SOON, "it is back", || ejected(&gateway).is_empty());
    assert_eq!(gateway.metric("isthmus_unejections_total"), Some(1.0));
    eventually(SOON, "four more failures", || {
        statuses(1);
        failing.served() == 8
    });
    let begun = std::time::Instant::now();
    assert_eq!(ejected(&gateway), [failing.address()]);
    failing.answer(200);
    eventually(SOON, "it is back", || ejected(&gateway).is_empty());
    gateway.stop();
    // It has done well for less than an interval in between, so that this is its second time in a row; an interval is
    // shorter than what the requests may have taken, though.
    assert!(
        begun.elapsed() > Duration::from_millis(2400),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn ejections_in_a_row_last_longer() {
    let (failing, well) = (Gauge::start(Duration::ZERO), Gauge::start(Duration::ZERO));
    failing.answer(503);
    let routes = route_among(&[failing.address(), well.address()], "");
    let policy = "loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {consecutiveGatewayErrors: 1, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 100}";
    let gateway = Gateway::builder()
        .resources("route", &routes)
        .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
        .without_access_log()
        .start();
    let mut lasted = Vec::new();
    for round in 1..=3 {
        eventually(SOON, "it is picked", || {
            gateway.get("any.example", "/");
            failing.served() == round
        });
        let begun = std::time::Instant::now();
        assert_eq!(ejected(&gateway), [failing.address()]);
        eventually(SOON, "it is back", || ejected(&gateway).is_empty());
        lasted.push(begun.elapsed().as_millis());
    }
    gateway.stop();
    // Looked at each second, and not earlier than its time.
    for (times, lasted) in (1..).zip(&lasted) {
        let bounds = 1000 * times - 200..1000 * times + 1400;
        assert!(bounds.contains(lasted), "{times}: {lasted}");
    }
}
