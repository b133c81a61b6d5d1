//! The examples of the specification, as its corpus has them, between real clients and real upstreams: what each says
//! is what happens.
//!
//! They are bound to clients inside a mesh, so they run at a Gateway that is such clients' door, with services of the
//! names that they use.

use isthmus_tests::cert::Authority;
use isthmus_tests::client::{Client, Response, connect_from};
use isthmus_tests::corpus;
use isthmus_tests::curl::Curl;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::dns::{Dns, Reply};
use isthmus_tests::fault::{Fault, FaultPeer};
use isthmus_tests::gateway::{AccessLine, Builder, Gateway};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::port::HeldPort;
use isthmus_tests::resources::{Endpoint, service, subsets};
use isthmus_tests::upstream::{Answer, Upstream};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const PORT: u16 = 9080;

/// The door of mesh clients.
const DOOR: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door, namespace: default, annotations: {isthmus.dev/mesh: \"true\"}}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}]}
---
";

fn example(corpus: &Path, name: &str) -> String {
    let path = corpus.join("seed-examples").join(name).with_extension("yaml");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A service of one of the examples' names, with these endpoints by version, and its subsets.
fn named(name: &str, endpoints: &[(&str, SocketAddr)]) -> String {
    let list: Vec<Endpoint> = endpoints
        .iter()
        .map(|(version, address)| Endpoint::new(version, *address))
        .collect();
    let host = format!("{name}.default.svc.cluster.local");
    service(&host, PORT, &list) + &subsets(&host, &["v1", "v2", "v3"])
}

/// One upstream for each of these versions.
fn versions<const N: usize>(name: &str, of: [&str; N]) -> ([Upstream; N], String) {
    let upstreams = of.map(|version| Upstream::echo(&format!("{name}-{version}")));
    let addresses: Vec<_> = of
        .iter()
        .zip(&upstreams)
        .map(|(version, upstream)| (*version, upstream.address()))
        .collect();
    let services = named(name, &addresses);
    (upstreams, services)
}

fn at_the_door(example: &str, services: &str) -> Builder {
    Gateway::builder()
        .seed_defaults()
        .resources("door", DOOR)
        .resources("example", example)
        .resources("services", services)
}

/// The rule's `http` with its two entries the other way round.
fn turned_round(example: &str) -> String {
    let (head, rules) = example.split_once("  http:\n").expect("rules");
    let second = rules.rfind("\n  - ").expect("two rules") + 1;
    let (first, second) = rules.split_at(second);
    format!("{head}  http:\n{}\n{first}", second.trim_end())
}

fn who(client: &mut Client, host: &str, path: &str, fields: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n");
    let response = client.send(request).response();
    match response.status {
        200 => response.text().trim_end().to_owned(),
        status => status.to_string(),
    }
}

/// How long a request took, as the access log has it.
fn duration_of(line: &AccessLine) -> Duration {
    // ... "METHOD PATH PROTOCOL" STATUS FLAGS DETAILS TERMINATION "FAILURE" RECEIVED SENT DURATION ...
    let rest = line.line.splitn(3, '"').nth(2).expect("what follows the request");
    let ms = rest.split_whitespace().nth(7).expect("a duration");
    Duration::from_millis(ms.parse().unwrap_or_else(|_| panic!("a number in {line:?}")))
}

#[test]
fn example_01_sends_all_traffic_to_v1() {
    let Some(corpus) = corpus::find() else { return };
    let (upstreams, services) = versions("reviews", ["v1", "v2", "v3"]);
    let gateway = at_the_door(&example(&corpus, "01-all-to-v1"), &services).start();
    let mut client = gateway.client();
    // Clients of a mesh call a service by any of its names.
    for host in [
        "reviews",
        "reviews.default",
        "reviews.default.svc.cluster.local",
        "reviews:9080",
    ] {
        for _ in 0..25 {
            assert_eq!(who(&mut client, host, "/", ""), "reviews-v1");
        }
    }
    assert_eq!(upstreams.each_ref().map(Upstream::served), [100, 0, 0]);
    gateway.stop();
}

#[test]
fn example_02_splits_three_to_one_and_takes_turns_within_a_version() {
    let Some(corpus) = corpus::find() else { return };
    let (upstreams, services) = versions("reviews", ["v1", "v1", "v2"]);
    let gateway = at_the_door(&example(&corpus, "02-split-75-25"), &services).start();
    let mut client = gateway.client();
    const REQUESTS: u64 = 2000;
    for _ in 0..REQUESTS {
        assert_eq!(client.get("reviews", "/").status, 200);
    }
    let [first, second, other] = upstreams.each_ref().map(Upstream::served);
    // 500 expected; five standard deviations are 97.
    assert!((403..=597).contains(&other), "{other}");
    assert_eq!(first + second + other, REQUESTS);
    assert!(first.abs_diff(second) <= 1, "{first} {second}");
    gateway.stop();
}

/// Whether it took as long as it should, and less than so many milliseconds more. The gateway looks at its clock once per
/// turn of its loop, so that a timeout may begin some milliseconds before what it is for.
fn lasts(took: Duration, wanted: Duration, more: u64) -> bool {
    took + Duration::from_millis(50) >= wanted && took < wanted + Duration::from_millis(more)
}

/// Asks for a path of an upstream that never answers, and says what came after how long.
fn asked(gateway: &Gateway, host: &str) -> (Response, Duration) {
    let started = Instant::now();
    let mut client = gateway.client().patience(Duration::from_secs(30));
    let response = client.get(host, "/hanging");
    (response, started.elapsed())
}

#[test]
fn example_03_ends_requests_after_ten_seconds_and_others_after_fifteen() {
    let Some(corpus) = corpus::find() else { return };
    let silent = FaultPeer::start(Fault::NeverAnswers);
    let services = named("ratings", &[("v1", silent.address())]);
    let with = example(&corpus, "03-timeout-10s");
    let without: String = with
        .lines()
        .filter(|line| !line.contains("timeout:"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_ne!(with.trim_end(), without.trim_end());
    std::thread::scope(|scope| {
        for (example, seconds) in [(with, 10), (without, 15)] {
            let services = &services;
            scope.spawn(move || {
                let gateway = at_the_door(&example, services).start();
                let (response, took) = asked(&gateway, "ratings");
                assert_eq!(response.status, 504);
                let wanted = Duration::from_secs(seconds);
                assert!(lasts(took, wanted, 4500), "{took:?}");
                let line = gateway.access_line("/hanging");
                assert!(line.has("UT"), "{line:?}");
                gateway.stop();
            });
        }
    });
}

#[test]
fn example_04_tries_again_three_times_for_two_seconds_each_unless_a_trusted_caller_asks_otherwise() {
    let Some(corpus) = corpus::find() else { return };
    let text = example(&corpus, "04-retries");
    let ask = |gateway: &Gateway, path: &str, fields: &str| {
        let started = Instant::now();
        let mut client = gateway.client();
        let request = format!("GET {path} HTTP/1.1\r\nhost: ratings\r\n{fields}\r\n");
        (client.send(request).response().status, started.elapsed())
    };
    let nobody = HeldPort::take();
    let gateway = at_the_door(&text, &named("ratings", &[("v1", nobody.address())])).start();
    let retries = || gateway.metric("isthmus_upstream_retries_total");
    assert_eq!(ask(&gateway, "/refused", "").0, 503);
    assert_eq!(retries(), Some(3.0));
    let line = gateway.access_line("/refused");
    assert!(line.has("UF") && line.has("URX"), "{line:?}");
    assert_eq!(ask(&gateway, "/once", "x-envoy-max-retries: 1\r\n").0, 503);
    assert_eq!(retries(), Some(4.0));
    gateway.stop();

    let silent = FaultPeer::start(Fault::NeverAnswers);
    let gateway = at_the_door(&text, &named("ratings", &[("v1", silent.address())])).start();
    for (path, fields, ms, asked) in [
        ("/silent", "", 2000, 1),
        ("/hurried", "x-envoy-upstream-rq-timeout-ms: 500\r\n", 500, 2),
    ] {
        let (status, took) = ask(&gateway, path, fields);
        let wanted = Duration::from_millis(ms);
        assert_eq!(status, 504);
        assert!(lasts(took, wanted, 10_000), "{took:?}");
        assert_eq!(silent.accepted(), asked);
        assert!(gateway.access_line(path).has("UT"));
    }
    gateway.stop();
}

#[test]
fn example_05_delays_a_tenth_of_the_requests_by_five_seconds() {
    let Some(corpus) = corpus::find() else { return };
    let (upstreams, services) = versions("ratings", ["v1"]);
    let gateway = at_the_door(&example(&corpus, "05-fault-delay"), &services).start();
    const REQUESTS: usize = 500;
    let mut clients: Vec<Client> = (0..REQUESTS).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send_get("ratings", "/");
    }
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
    assert_eq!(upstreams[0].served(), REQUESTS as u64);
    let delayed = lines(&gateway, REQUESTS)
        .iter()
        .filter(|line| {
            let struck = line.has("DI");
            assert_eq!(struck, duration_of(line) >= Duration::from_secs(5), "{line:?}");
            struck
        })
        .count();
    // 50 expected; five standard deviations are 34.
    assert!((16..=84).contains(&delayed), "{delayed}");
    gateway.stop();
}

/// The lines of so many requests.
fn lines(gateway: &Gateway, requests: usize) -> Vec<AccessLine> {
    let mut lines = Vec::new();
    eventually(SOON, "a line of each request", || {
        lines = gateway.access_log();
        lines.len() >= requests
    });
    assert_eq!(lines.len(), requests);
    lines
}

#[test]
fn example_06_answers_a_tenth_of_the_requests_with_400() {
    let Some(corpus) = corpus::find() else { return };
    let (upstreams, services) = versions("ratings", ["v1"]);
    let gateway = at_the_door(&example(&corpus, "06-fault-abort"), &services).start();
    let mut client = gateway.client();
    const REQUESTS: u64 = 2000;
    let aborted = (0..REQUESTS)
        .filter(|_| match client.get("ratings", "/").status {
            200 => false,
            400 => true,
            other => panic!("{other}"),
        })
        .count() as u64;
    // 200 expected; five standard deviations are 67.
    assert!((133..=267).contains(&aborted), "{aborted}");
    assert_eq!(upstreams[0].served(), REQUESTS - aborted);
    gateway.stop();
}

/// A workload that the registry knows by its address.
const REVIEWS_V2: &str = "127.0.0.2";
/// One of another version.
const REVIEWS_V1: &str = "127.0.0.4";
/// An address of which the registry knows nothing.
const STRANGER: &str = "127.0.0.3";

/// What says so.
fn workloads() -> String {
    let one = |version: &str, address: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: reviews-{version}, namespace: default}}
spec: {{address: {address}, labels: {{app: reviews, version: {version}}}}}
---
"
        )
    };
    one("v2", REVIEWS_V2) + &one("v1", REVIEWS_V1)
}

/// A client at one of these addresses.
fn client_at(gateway: &Gateway, source: &str) -> Client {
    let source = source.parse().expect("an address");
    Client::over(connect_from(source, gateway.address(), None).expect("a connection"))
}

#[test]
fn example_07_delays_all_requests_of_such_callers_and_then_aborts_a_tenth() {
    let Some(corpus) = corpus::find() else { return };
    // What others get is a rule of its own.
    let text = example(&corpus, "07-delay-then-abort-from-reviews-v2")
        + "  - route: [{destination: {host: ratings, subset: v1}}]\n";
    let (upstreams, services) = versions("ratings", ["v1"]);
    let gateway = at_the_door(&text, &services)
        .resources("workloads", &workloads())
        .start();
    const REQUESTS: usize = 300;
    const OTHERS: usize = 20;
    let mut clients: Vec<Client> = (0..REQUESTS).map(|_| client_at(&gateway, REVIEWS_V2)).collect();
    for client in &mut clients {
        client.send_get("ratings", "/");
    }
    // Whoever says that it is somebody else is not believed.
    let request = "GET /other HTTP/1.1\r\nhost: ratings\r\nx-forwarded-for: 127.0.0.2\r\n\r\n";
    for _ in 0..OTHERS / 2 {
        for other in [STRANGER, REVIEWS_V1] {
            assert_eq!(client_at(&gateway, other).send(request).response().status, 200);
        }
    }
    let statuses = clients.iter_mut().map(|client| client.response().status);
    let aborted = statuses
        .filter(|status| {
            assert!(matches!(status, 200 | 400), "{status}");
            *status == 400
        })
        .count();
    // 30 expected; five standard deviations are 26.
    assert!((4..=56).contains(&aborted), "{aborted}");
    assert_eq!(upstreams[0].served(), (REQUESTS + OTHERS - aborted) as u64);
    for line in lines(&gateway, REQUESTS + OTHERS) {
        let struck = line.line.contains("\"GET / ");
        assert_eq!(
            (line.has("DI"), duration_of(&line) >= Duration::from_secs(5)),
            (struck, struck),
            "{line:?}"
        );
        assert_eq!(line.has("FI"), line.status == 400, "{line:?}");
    }
    let counted = |label: &str| gateway.metric_with("istio_requests_total", label);
    assert_eq!(
        (
            counted("source_version=\"v2\""),
            counted("source_version=\"v1\""),
            counted("source_workload=\"unknown\"")
        ),
        (Some(REQUESTS as f64), Some(10.0), Some(10.0))
    );
    gateway.stop();
}

#[test]
fn examples_08_and_09_apply_to_callers_with_their_labels() {
    let Some(corpus) = corpus::find() else { return };
    let (_upstreams, services) = versions("ratings", ["v1"]);
    for (name, by_caller) in [
        ("08-source-label", ["ratings-v1", "ratings-v1", "404"]),
        ("09-source-labels-two", ["ratings-v1", "404", "404"]),
    ] {
        let gateway = at_the_door(&example(&corpus, name), &services)
            .resources("workloads", &workloads())
            .start();
        let taken = [REVIEWS_V2, REVIEWS_V1, STRANGER]
            .map(|source| who(&mut client_at(&gateway, source), "ratings", "/", ""));
        assert_eq!(taken, by_caller, "{name}");
        gateway.stop();
    }
}

#[test]
fn callers_that_nobody_knows_have_the_labels_of_the_gateway() {
    let Some(corpus) = corpus::find() else { return };
    let (_upstreams, services) = versions("ratings", ["v1"]);
    for (name, labels, workloads, expected) in [
        ("08-source-label", "app=reviews", "", "ratings-v1"),
        ("08-source-label", "app=other", "", "404"),
        ("09-source-labels-two", "app=reviews,version=v2", "", "ratings-v1"),
        ("09-source-labels-two", "app=reviews,version=v1", "", "404"),
        ("09-source-labels-two", "app=reviews", "", "404"),
        (
            "09-source-labels-two",
            "app=reviews,version=v2",
            &workloads(),
            "ratings-v1",
        ),
        (
            "09-source-labels-two",
            "app=reviews,version=v1",
            &workloads(),
            "404",
        ),
    ] {
        let gateway = at_the_door(&example(&corpus, name), &(services.clone() + workloads))
            .arg(format!("--labels={labels}"))
            .start();
        let taken = who(&mut client_at(&gateway, STRANGER), "ratings", "/", "");
        assert_eq!(taken, expected, "{name} {labels}");
        if !workloads.is_empty() {
            // Who is known is not taken for the gateway.
            let known = who(&mut client_at(&gateway, REVIEWS_V1), "ratings", "/", "");
            assert_eq!(known, "404", "{name} {labels}");
        }
        gateway.stop();
    }
}

#[test]
fn example_10_applies_to_one_user() {
    let Some(corpus) = corpus::find() else { return };
    let (upstreams, services) = versions("reviews", ["v1", "v2"]);
    let gateway = at_the_door(&example(&corpus, "10-header"), &services).start();
    let mut client = gateway.client();
    for (fields, taken) in [
        ("end-user: jason\r\n", "reviews-v1"),
        ("End-User: jason\r\n", "reviews-v1"),
        ("end-user: Jason\r\n", "404"),
        ("end-user: jason2\r\n", "404"),
        ("", "404"),
    ] {
        assert_eq!(who(&mut client, "reviews", "/", fields), taken, "{fields:?}");
    }
    assert_eq!(upstreams.each_ref().map(Upstream::served), [2, 0]);
    gateway.stop();
}

#[test]
fn example_11_applies_to_paths_that_start_so() {
    let Some(corpus) = corpus::find() else { return };
    let (_upstreams, services) = versions("productpage", ["v1"]);
    let gateway = at_the_door(&example(&corpus, "11-uri-prefix"), &services).start();
    let mut client = gateway.client();
    for (path, taken) in [
        ("/api/v1", "productpage-v1"),
        ("/api/v1/products?x=1", "productpage-v1"),
        ("/api/v10", "productpage-v1"),
        ("/api/v2", "404"),
        ("/", "404"),
    ] {
        assert_eq!(who(&mut client, "productpage", path, ""), taken, "{path}");
    }
    gateway.stop();
}

#[test]
fn examples_12_and_13_ask_for_both_and_for_either() {
    let Some(corpus) = corpus::find() else { return };
    let (_upstreams, services) = versions("ratings", ["v1"]);
    let jason = "end-user: jason\r\n";
    for (name, of_v2, of_others) in [
        ("12-and", ["ratings-v1", "404"], ["404", "404"]),
        ("13-or", ["ratings-v1", "ratings-v1"], ["ratings-v1", "404"]),
    ] {
        let gateway = at_the_door(&example(&corpus, name), &services)
            .resources("workloads", &workloads())
            .start();
        for (source, expected) in [
            (REVIEWS_V2, of_v2),
            (REVIEWS_V1, of_others),
            (STRANGER, of_others),
        ] {
            let mut client = client_at(&gateway, source);
            let taken = [jason, ""].map(|fields| who(&mut client, "ratings", "/", fields));
            assert_eq!(taken, expected, "{name} {source}");
        }
        gateway.stop();
    }
}

#[test]
fn example_14_takes_the_first_rule_that_matches() {
    let Some(corpus) = corpus::find() else { return };
    let (upstreams, services) = versions("reviews", ["v1", "v2"]);
    let text = example(&corpus, "14-precedence");
    let gateway = at_the_door(&text, &services).start();
    let mut client = gateway.client();
    for (fields, taken) in [
        ("Foo: bar\r\n", "reviews-v2"),
        ("foo: bar\r\n", "reviews-v2"),
        ("Foo: Bar\r\n", "reviews-v1"),
        ("", "reviews-v1"),
    ] {
        assert_eq!(who(&mut client, "reviews", "/", fields), taken, "{fields:?}");
    }
    gateway.stop();
    // The other way round the rule for `Foo: bar` is never reached, and `check` says so.
    let gateway = at_the_door(&turned_round(&text), &services).start();
    let mut client = gateway.client();
    assert_eq!(who(&mut client, "reviews", "/", "Foo: bar\r\n"), "reviews-v1");
    let said = gateway.check();
    assert!(
        said.contains("unreachable-rule") || said.contains("IST0130"),
        "{said}"
    );
    assert_eq!(upstreams.each_ref().map(Upstream::served), [3, 2]);
    gateway.stop();
}

/// What leads requests to the subsets of `reviews` by their path, and others to the service as a whole.
const BY_PATH: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - {match: [{uri: {exact: /v1}}], route: [{destination: {host: reviews, subset: v1}}]}
  - {match: [{uri: {exact: /v2}}], route: [{destination: {host: reviews, subset: v2}}]}
  - {route: [{destination: {host: reviews}}]}
---
";

const SHARDS: usize = 4;

/// `reviews` alone: the examples have the DestinationRule.
fn reviews(endpoints: &[(&str, SocketAddr)]) -> String {
    let list: Vec<Endpoint> = endpoints
        .iter()
        .map(|(version, address)| Endpoint::new(version, *address))
        .collect();
    service("reviews.default.svc.cluster.local", PORT, &list)
}

#[test]
fn example_15_draws_for_the_host_and_takes_turns_for_v2() {
    let Some(corpus) = corpus::find() else { return };
    let of = ["v1", "v1", "v2", "v2", "v3"];
    let upstreams: Vec<Upstream> = (0..)
        .zip(of)
        .map(|(at, version)| Upstream::echo(&format!("{version}-{at}")))
        .collect();
    let addresses: Vec<_> = of
        .iter()
        .zip(&upstreams)
        .map(|(version, upstream)| (*version, upstream.address()))
        .collect();
    let gateway = at_the_door(
        &example(&corpus, "15-subsets-and-balancers"),
        &reviews(&addresses),
    )
    .resources("route", BY_PATH)
    .shards(SHARDS)
    .start();
    // How many were served by the same one as the request before, on connections of all shards.
    let repeats = |path: &str, names: &[&str]| {
        let mut seen = BTreeSet::new();
        let mut repeats = 0;
        for _ in 0..3 * SHARDS {
            let mut client = gateway.client();
            let mut last = String::new();
            for _ in 0..20 {
                let name = who(&mut client, "reviews", path, "");
                repeats += usize::from(name == last);
                last.clone_from(&name);
                seen.insert(name);
            }
        }
        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        assert_eq!(seen, names, "{path}");
        repeats
    };
    assert_eq!(repeats("/v2", &["v2-2", "v2-3"]), 0, "in turn");
    // Each of 228 is a repeat with a chance of a half, and of a fifth.
    let drawn = repeats("/v1", &["v1-0", "v1-1"]);
    assert!((60..=168).contains(&drawn), "{drawn}");
    let drawn = repeats("/", &["v1-0", "v1-1", "v2-2", "v2-3", "v3-4"]);
    assert!((12..=90).contains(&drawn), "{drawn}");
    gateway.stop();
}

/// An upstream that answers nothing before it is told to.
struct Holding {
    upstream: Upstream,
    /// How many it holds, and the most that it has held.
    held: Arc<[AtomicUsize; 2]>,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Holding {
    fn start() -> Self {
        let held = Arc::new([const { AtomicUsize::new(0) }; 2]);
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (count, behind) = (Arc::clone(&held), Arc::clone(&gate));
        let upstream = Upstream::start(move |_| {
            let [now, most] = &*count;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let (is_open, opened) = &*behind;
            let _open = opened
                .wait_while(is_open.lock().unwrap(), |is_open| !*is_open)
                .unwrap();
            now.fetch_sub(1, Ordering::SeqCst);
            Answer::ok("held")
        });
        Self { upstream, held, gate }
    }

    fn held(&self) -> usize {
        self.held[0].load(Ordering::SeqCst)
    }

    fn held_max(&self) -> usize {
        self.held[1].load(Ordering::SeqCst)
    }

    fn open(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.open();
    }
}

#[test]
fn examples_16_to_18_limit_connections_to_v1_only_when_something_leads_there() {
    let Some(corpus) = corpus::find() else { return };
    const CLIENTS: usize = 150;
    // The door of the service's own port, which needs no VirtualService.
    let door = DOOR.replace("number: 80,", &format!("number: {PORT},"));
    for (name, most, is_told) in [
        ("16-limit-on-subset", CLIENTS, true),
        ("17-limit-on-top", 100, false),
        ("18-limit-on-subset-with-route", 100, false),
    ] {
        let holding = Holding::start();
        let services = reviews(&[("v1", holding.upstream.address())]);
        let gateway = at_the_door(&example(&corpus, name), &services)
            .resources("door", &door)
            .port(PORT)
            .shards(SHARDS)
            .start();
        assert_eq!(gateway.check().contains("unreached-subset"), is_told, "{name}");
        // More time than a route of the seed has, for a slow machine.
        let request = "GET / HTTP/1.1\r\nhost: reviews\r\nx-envoy-upstream-rq-timeout-ms: 120000\r\n\r\n";
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|_| {
                let mut client = Client::connect(gateway.listener(PORT)).patience(Duration::from_secs(60));
                client.send(request);
                client
            })
            .collect();
        let waiting = || {
            let waiting = gateway.metric_with("isthmus_cluster_used", "limit=\"pending\"");
            waiting.unwrap_or(0.0) as usize
        };
        eventually(Duration::from_secs(60), "all are under way or wait", || {
            holding.held() == most && waiting() == CLIENTS - most
        });
        assert_eq!(holding.upstream.connections().len(), most, "{name}");
        holding.open();
        for client in &mut clients {
            assert_eq!(client.response().status, 200, "{name}");
        }
        assert_eq!(holding.held_max(), most, "{name}");
        gateway.stop();
    }
}

/// The door of mesh clients on the ports of the web; what is behind the second is TLS with the hosts themselves.
const DOOR_OF_THE_WEB: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door, namespace: default, annotations: {isthmus.dev/mesh: \"true\"}}
spec:
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}
  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [\"*\"], tls: {mode: PASSTHROUGH}}
---
";

/// An example about external hosts, whose ports 80 and 443 are these at the addresses that DNS gives; with the names that
/// are asked for.
fn outside(text: &str, http: SocketAddr, tls: SocketAddr, dns: &Dns, allowed: bool) -> Gateway {
    let mut text = text.to_owned();
    for (port, address) in [(80, http), (443, tls)] {
        let there = format!("number: {port}\n");
        assert!(text.contains(&there));
        text = text.replace(&there, &format!("{there}    targetPort: {}\n", address.port()));
    }
    let mut builder = Gateway::builder()
        .seed_defaults()
        .resources("door", DOOR_OF_THE_WEB)
        .resources("example", &text)
        .arg(format!("--dns-server={}", dns.address()))
        .port(80)
        .port(443);
    if allowed {
        builder = builder.arg("--egress-allow-cidr=127.0.0.0/8");
    }
    builder.start()
}

#[test]
fn example_19_allows_calls_to_hosts_under_a_name_on_its_ports() {
    let Some(corpus) = corpus::find() else { return };
    let text = example(&corpus, "19-service-entry");
    let authority = Authority::new();
    let http = Upstream::echo("plain");
    let tls = Nginx::secured(&authority.server(&["*.foo.com", "bar.com"]), None, &[]);
    let dns = Dns::start();
    for host in ["bar.foo.com", "a.b.foo.com", "foo.com", "bar.com"] {
        dns.set(host, &Reply::addresses(&["127.0.0.1"], 60));
    }
    let gateway = outside(&text, http.address(), tls.address(), &dns, true);
    let mut client = gateway.client();
    for host in ["bar.foo.com", "a.b.foo.com", "bar.foo.com:80"] {
        assert_eq!(who(&mut client, host, "/", ""), "plain", "{host}");
    }
    for host in ["foo.com", "bar.com", "xfoo.com"] {
        assert_eq!(who(&mut client, host, "/", ""), "404", "{host}");
    }
    let curl = Curl::new(gateway.listener(443)).trusting(authority.certificate());
    let said = curl.get("https://bar.foo.com/tls");
    assert!(said.starts_with("sni=bar.foo.com "), "{said}");
    assert_ne!(curl.run("https://bar.com/tls").code, 0);
    gateway.assert_causes("no_filter_chain", 1);
    gateway.stop();

    // Without leave, a name that leads to this machine is refused.
    let gateway = outside(&text, http.address(), tls.address(), &dns, false);
    assert_eq!(who(&mut gateway.client(), "bar.foo.com", "/", ""), "503");
    gateway.assert_causes("egress_address_refused", 1);
    gateway.stop();

    // As it is printed it is no YAML; the message says what to do, and `--lenient` does it.
    let printed = example(&corpus, "19-service-entry-unquoted");
    let exit = Gateway::builder()
        .resources("door", DOOR_OF_THE_WEB)
        .resources("example", &printed)
        .run_to_exit();
    assert!(exit.log.contains("quote"), "{}", exit.log);
}

#[test]
fn example_20_ends_calls_to_an_external_host_after_ten_seconds() {
    let Some(corpus) = corpus::find() else { return };
    let text = example(&corpus, "20-external-timeout");
    let silent = FaultPeer::start(Fault::NeverAnswers);
    let dns = Dns::start();
    for host in ["bar.foo.com", "other.foo.com"] {
        dns.set(host, &Reply::addresses(&["127.0.0.1"], 60));
    }
    let gateway = outside(&text, silent.address(), silent.address(), &dns, true);
    std::thread::scope(|scope| {
        // What no VirtualService says anything about has the seed's fifteen.
        for (host, seconds) in [("bar.foo.com", 10), ("other.foo.com", 15)] {
            let gateway = &gateway;
            scope.spawn(move || {
                let (response, took) = asked(gateway, host);
                assert_eq!(response.status, 504, "{host}: {response:?}");
                let wanted = Duration::from_secs(seconds);
                assert!(lasts(took, wanted, 4500), "{host}: {took:?}");
            });
        }
    });
    for line in lines(&gateway, 2) {
        assert!(line.has("UT"), "{line:?}");
    }
    gateway.stop();
}

#[test]
fn elsewhere_than_at_the_door_the_examples_are_passed_over_with_a_hint() {
    let Some(corpus) = corpus::find() else { return };
    let (upstreams, services) = versions("reviews", ["v1"]);
    for door in [
        DOOR.replace(", annotations: {isthmus.dev/mesh: \"true\"}", ""),
        DOOR.replace("\"true\"", "\"false\""),
    ] {
        assert_ne!(door, DOOR);
        let gateway = Gateway::builder()
            .seed_defaults()
            .resources("door", &door)
            .resources("example", &example(&corpus, "01-all-to-v1"))
            .resources("services", &services)
            .start();
        assert_eq!(who(&mut gateway.client(), "reviews", "/", ""), "404");
        let said = gateway.check();
        assert!(said.contains("mesh-only"), "{said}");
        gateway.stop();
    }
    assert_eq!(upstreams[0].served(), 0);
}
