//! Active health checks: who does not answer them well gets no requests, on any shard, until it does.

use isthmus_tests::cert::Authority;
use isthmus_tests::deadline::{SOON, eventually, eventually_some};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::gauge::Gauge;
use isthmus_tests::h2::server::{Event, Server};
use isthmus_tests::load::Load;
use isthmus_tests::nginx::Nginx;
use isthmus_tests::port::HeldPort;
use isthmus_tests::python;
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, gateway, route_among, route_to, service, subsets, traffic_policy,
    virtual_service,
};
use isthmus_tests::upstream::{Answer, Upstream};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SHARDS: usize = 4;
/// What the checks of these tests ask for.
const CHECK: &str = "/healthz";

/// A HealthCheckPolicy for [`UPSTREAM_HOST`] with these lines in its `spec`.
fn policy(spec: &str) -> String {
    let lines: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: isthmus.dev/v1alpha1
kind: HealthCheckPolicy
metadata: {{name: checks, namespace: default}}
spec:
  host: {UPSTREAM_HOST}
{lines}---
"
    )
}

fn http(more: &str) -> String {
    policy(&format!(
        "probe: {{periodSeconds: 1, httpGet: {{path: {CHECK}}}{more}}}"
    ))
}

fn checked(endpoints: &[SocketAddr], policy: &str) -> Builder {
    Gateway::builder()
        .resources("route", &route_among(endpoints, ""))
        .resources("policy", policy)
        .shards(SHARDS)
        .without_access_log()
}

/// An upstream that answers its checks as it is told, and everything else with 200.
struct Patient {
    upstream: Upstream,
    status: Arc<AtomicU16>,
}

impl Patient {
    fn new(status: u16) -> Self {
        let status = Arc::new(AtomicU16::new(status));
        let said = Arc::clone(&status);
        let upstream = Upstream::start(move |request| match request.target.as_str() {
            CHECK => Answer::status(said.load(Ordering::SeqCst)),
            _ => Answer::ok("served"),
        });
        Self { upstream, status }
    }

    fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    fn says(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn checks(&self) -> usize {
        let requests = self.upstream.requests();
        requests.iter().filter(|request| request.target == CHECK).count()
    }

    fn served(&self) -> usize {
        self.upstream.requests().len() - self.checks()
    }
}

/// The cluster of the service as a whole, as the admin server shows it.
fn cluster(gateway: &Gateway) -> Value {
    let page = gateway.get_admin("/clusters?format=json");
    let all: Value = serde_json::from_str(page.text()).unwrap();
    let list = all["clusters"].as_array().unwrap();
    let found = list.iter().find(|cluster| {
        let name = cluster["name"].as_str().unwrap();
        name.contains("||") && name.ends_with(UPSTREAM_HOST)
    });
    found.unwrap().clone()
}

/// How many endpoints are unhealthy by a change that every shard obeys.
fn unhealthy(gateway: &Gateway) -> Option<u64> {
    let cluster = cluster(gateway);
    let known = &cluster["availability"];
    (known["epoch"] == known["applied"]).then(|| known["unhealthy"].as_u64().unwrap())
}

fn state_of(gateway: &Gateway, address: SocketAddr) -> Value {
    let cluster = cluster(gateway);
    let endpoints = cluster["endpoints"].as_array().unwrap();
    let found = endpoints
        .iter()
        .find(|endpoint| endpoint["address"] == address.to_string());
    found.unwrap().clone()
}

/// So many requests, each on a connection of its own, so that all shards have some.
fn statuses(gateway: &Gateway, count: usize) -> Vec<u16> {
    (0..count)
        .map(|_| gateway.get("any.example", "/").status)
        .collect()
}

fn verdicts(gateway: &Gateway, verdict: &str) -> f64 {
    let label = format!("verdict=\"{verdict}\"");
    gateway
        .metric_with("isthmus_health_verdicts_total", &label)
        .unwrap_or(0.0)
}

fn checks(gateway: &Gateway) -> f64 {
    gateway.metric("isthmus_health_checks_total").unwrap_or(0.0)
}

#[test]
fn an_upstream_that_answers_503_gets_no_request_on_any_shard_until_it_is_well() {
    let patients = [(); 3].map(|()| Patient::new(200));
    let addresses = patients.each_ref().map(Patient::address);
    let gateway = checked(&addresses, &http("")).start();
    let begun = Instant::now();
    eventually(SOON, "all are found healthy", || {
        addresses
            .iter()
            .all(|address| state_of(&gateway, *address)["health"] == "healthy")
    });
    assert_eq!(statuses(&gateway, 30), [200; 30]);
    let [ill, well @ ..] = &patients;
    assert!(ill.served() > 0, "nobody is left out");
    // Connections that go on, on whichever shards.
    let mut clients: Vec<_> = (0..16).map(|_| gateway.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("any.example", "/").status, 200);
    }

    ill.says(503);
    eventually(SOON, "the verdict's epoch is applied", || {
        unhealthy(&gateway) == Some(1)
    });
    let before = ill.served();
    let others: usize = well.iter().map(Patient::served).sum();
    for client in &mut clients {
        for _ in 0..5 {
            assert_eq!(client.get("any.example", "/").status, 200);
        }
    }
    assert_eq!(statuses(&gateway, 60), [200; 60]);
    assert_eq!(ill.served(), before, "no shard picks it any more");
    assert_eq!(well.iter().map(Patient::served).sum::<usize>(), others + 140);
    let state = state_of(&gateway, ill.address());
    assert_eq!(
        (&state["health"], &state["health_failure"]),
        (&"unhealthy".into(), &"status 503".into())
    );
    let page = gateway.get_admin("/clusters");
    let flagged = format!("::{}::health_flags::/failed_active_hc\n", ill.address());
    assert!(page.text().contains(&flagged), "{}", page.text());
    let explained = gateway.get_admin("/explain?url=http://any.example/");
    assert!(
        explained.text().contains("\"health_failure\":\"status 503\""),
        "{}",
        explained.text()
    );
    eventually(SOON, "it is told", || verdicts(&gateway, "unhealthy") == 1.0);
    assert!(gateway.log().contains("an endpoint is unhealthy"));
    assert_eq!(gateway.metric("isthmus_unhealthy"), Some(1.0));

    ill.says(204);
    eventually(SOON, "it is back", || unhealthy(&gateway) == Some(0));
    assert_eq!(statuses(&gateway, 60), [200; 60]);
    assert!(ill.served() > before);
    assert_eq!(
        verdicts(&gateway, "healthy"),
        1.0,
        "the first verdicts were no change"
    );
    // One shard of the process asks, and nobody else.
    let most = begun.elapsed().as_millis() as usize / 900 + 2;
    for patient in &patients {
        assert!(patient.checks() <= most, "{} of {most}", patient.checks());
        patient.upstream.assert_no_violation();
    }
    // A check is no request, nor a connection that requests could use.
    let requests = gateway.metric("istio_requests_total");
    assert_eq!(requests, Some((30 + 16 + 80 + 60 + 60) as f64));
    let check = ill.upstream.requests();
    let check = check.iter().find(|request| request.target == CHECK).unwrap();
    assert_eq!(check.field("host"), Some(UPSTREAM_HOST));
    assert_eq!(check.field("connection"), Some("close"));
    gateway.stop();
}

/// An upstream whose checks wait until the test says what to answer.
struct Gated {
    upstream: Upstream,
    answers: Mutex<Sender<u16>>,
}

impl Gated {
    fn new() -> Self {
        let (answers, next) = channel();
        let next: Mutex<Receiver<u16>> = Mutex::new(next);
        let upstream = Upstream::start(move |request| match request.target.as_str() {
            CHECK => Answer::status(next.lock().unwrap().recv().unwrap_or(500)),
            _ => Answer::ok("served"),
        });
        Self {
            upstream,
            answers: Mutex::new(answers),
        }
    }

    fn answer(&self, status: u16) {
        self.answers.lock().unwrap().send(status).unwrap();
    }
}

#[test]
fn thresholds_hold_both_ways() {
    let gated = Gated::new();
    let well = Patient::new(200);
    let text = http(", timeoutSeconds: 60, failureThreshold: 3, successThreshold: 2");
    let gateway = checked(&[gated.upstream.address()], &text).start();
    let mut made = 0.0;
    let mut expect = |status: u16, after: u64| {
        gated.answer(status);
        made += 1.0;
        eventually(SOON, "the check is counted", || checks(&gateway) == made);
        // The next check waits for its answer: nothing changes in between.
        let found = eventually_some(SOON, "all shards know", || unhealthy(&gateway));
        assert_eq!(found, after, "after {status}, check {made}");
    };
    for (status, after) in [
        (200, 0),
        (500, 0),
        (500, 0),
        (200, 0),
        (500, 0),
        (404, 0),
        (500, 1),
        (200, 1),
        (500, 1),
        (200, 1),
        (302, 0),
        (503, 1),
    ] {
        expect(status, after);
    }
    eventually(SOON, "all are told", || {
        (verdicts(&gateway, "unhealthy"), verdicts(&gateway, "healthy")) == (2.0, 1.0)
    });
    assert_eq!(gateway.get("any.example", "/").status, 503, "nobody is left");
    drop(well);
    gateway.stop();
}

#[test]
fn an_endpoint_begins_as_the_policy_says() {
    let gated = Gated::new();
    let text = policy(&format!(
        "initialState: UNHEALTHY\nprobe: {{periodSeconds: 1, timeoutSeconds: 60, httpGet: {{path: {CHECK}}}}}"
    ));
    let gateway = checked(&[gated.upstream.address()], &text).start();
    assert_eq!(statuses(&gateway, 8), [503; 8], "it has passed no check");
    assert_eq!(
        state_of(&gateway, gated.upstream.address())["health_failure"],
        "not checked yet"
    );
    gated.answer(200);
    eventually(SOON, "it has passed", || unhealthy(&gateway) == Some(0));
    assert_eq!(statuses(&gateway, 8), [200; 8]);
    gateway.stop();
}

#[test]
fn what_is_known_survives_a_reload_and_ends_with_the_endpoint() {
    let (ill, well) = (Patient::new(503), Patient::new(200));
    let both = [ill.address(), well.address()];
    let gateway = checked(&both, &http("")).start();
    eventually(SOON, "the verdict", || unhealthy(&gateway) == Some(1));
    let before = ill.served();
    // Another rule, and other times of the checks.
    gateway.replace_resources("route", &route_among(&both, "timeout: 5s"));
    gateway.reload();
    gateway.replace_resources("policy", &http(", failureThreshold: 2"));
    gateway.reload();
    assert_eq!(unhealthy(&gateway), Some(1));
    assert_eq!(statuses(&gateway, 40), [200; 40]);
    assert_eq!(ill.served(), before);
    eventually(SOON, "it is told", || verdicts(&gateway, "unhealthy") == 1.0);

    let held = gateway.resting();
    gateway.replace_resources("route", &route_among(&[well.address()], ""));
    gateway.reload();
    let (gone, here) = (ill.checks(), well.checks());
    eventually(SOON, "three more checks of the other", || {
        well.checks() >= here + 3
    });
    assert!(ill.checks() <= gone + 1, "one may have been under way");
    assert_eq!(unhealthy(&gateway), Some(0));
    gateway.assert_returns_to(&held);

    // Without a policy everybody is served again.
    gateway.replace_resources("route", &route_among(&both, ""));
    gateway.reload();
    eventually(SOON, "the verdict", || unhealthy(&gateway) == Some(1));
    gateway.replace_resources("policy", "");
    gateway.reload();
    eventually(SOON, "all are available", || unhealthy(&gateway) == Some(0));
    let before = ill.served();
    assert_eq!(statuses(&gateway, 40), [200; 40]);
    assert!(ill.served() > before);
    gateway.stop();
}

#[test]
fn endpoints_that_take_no_connection_or_do_not_answer_get_no_requests() {
    let closed = HeldPort::take();
    let silent = Gauge::start(Duration::from_secs(5));
    let well = Patient::new(200);
    let endpoints = [closed.address(), silent.address(), well.address()];
    let text = policy(&format!(
        "initialState: UNHEALTHY\nprobe: {{periodSeconds: 1, failureThreshold: 1, httpGet: {{path: {CHECK}}}}}"
    ));
    let gateway = checked(&endpoints, &text).start();
    eventually(SOON, "one is well", || unhealthy(&gateway) == Some(2));
    eventually(SOON, "the reasons", || {
        state_of(&gateway, closed.address())["health_failure"] == "takes no connection"
            && state_of(&gateway, silent.address())["health_failure"] == "no answer in time"
    });
    assert_eq!(statuses(&gateway, 40), [200; 40]);
    assert_eq!(well.served(), 40, "and never by a retry");
    let held = gateway.resting();
    assert_eq!(gateway.metric("isthmus_upstream_retries_total"), Some(0.0));
    // Checks that run into their timeout leave nothing behind.
    let made = checks(&gateway);
    eventually(SOON, "more checks", || checks(&gateway) >= made + 12.0);
    gateway.assert_returns_to(&held);
    gateway.stop();
}

#[test]
fn a_connection_is_enough_for_a_check_by_tcp() {
    let closed = HeldPort::take();
    let well = Patient::new(503);
    let text = policy("probe: {periodSeconds: 1, failureThreshold: 1, tcpSocket: {}}");
    let gateway = checked(&[closed.address(), well.address()], &text).start();
    eventually(SOON, "the verdict", || unhealthy(&gateway) == Some(1));
    assert_eq!(statuses(&gateway, 20), [200; 20]);
    assert_eq!((well.served(), well.checks()), (20, 0));
    gateway.stop();
}

#[test]
fn checks_are_secured_as_requests_are() {
    let (authority, stranger) = (Authority::new(), Authority::named("stranger"));
    let right = Nginx::secured(&authority.server(&["inside.example"]), None, &[]);
    let wrong = Nginx::secured(&stranger.server(&["inside.example"]), None, &[]);
    let tls = format!(
        "tls: {{mode: SIMPLE, caCertificates: {}, sni: inside.example}}",
        authority.certificate().display()
    );
    for probe in [
        "httpGet: {path: /tls}",
        "httpGet: {path: /tls, scheme: HTTPS}",
        "tcpSocket: {}",
    ] {
        let text = policy(&format!(
            "probe: {{periodSeconds: 1, failureThreshold: 1, {probe}}}"
        ));
        let gateway = checked(&[right.address(), wrong.address()], &text)
            .resources("rule", &traffic_policy(UPSTREAM_HOST, &tls))
            .start();
        eventually(SOON, "both verdicts", || {
            state_of(&gateway, right.address())["health"] == "healthy"
                && state_of(&gateway, wrong.address())["health_failure"] == "TLS handshake failed"
        });
        let answer = gateway.get("any.example", "/tls");
        assert!(answer.text().starts_with("sni=inside.example"), "{answer:?}");
        gateway.stop();
    }
    // A scheme of its own: whatever the certificate is, as Kubernetes asks; requests stay in plaintext.
    let text = policy("probe: {periodSeconds: 1, failureThreshold: 1, httpGet: {path: /tls, scheme: HTTPS}}");
    let plain = Patient::new(200);
    let gateway = checked(&[wrong.address(), plain.address()], &text).start();
    eventually(SOON, "both verdicts", || {
        state_of(&gateway, wrong.address())["health"] == "healthy"
            && state_of(&gateway, plain.address())["health_failure"] == "TLS handshake failed"
    });
    gateway.stop();
}

#[test]
fn a_policy_says_host_fields_port_and_statuses() {
    let (checks_here, served_here) = (Patient::new(404), Patient::new(200));
    let port = checks_here.address().port();
    let text = policy(&format!(
        "expectedStatuses: [\"404\", 500-503]
probe:
  periodSeconds: 1
  failureThreshold: 1
  httpGet:
    path: {CHECK}
    port: {port}
    httpHeaders: [{{name: Host, value: 'shop.example:81'}}, {{name: X-Probe, value: a b}}]"
    ));
    let gateway = checked(&[served_here.address()], &text).start();
    let address = served_here.address();
    eventually(SOON, "healthy", || {
        state_of(&gateway, address)["health"] == "healthy"
    });
    let requests = checks_here.upstream.requests();
    let first = requests.first().unwrap();
    assert_eq!(
        (first.field("host"), first.field("x-probe")),
        (Some("shop.example:81"), Some("a b"))
    );
    checks_here.says(503);
    let made = checks_here.checks();
    eventually(SOON, "two more checks", || checks_here.checks() >= made + 2);
    assert_eq!(state_of(&gateway, address)["health"], "healthy", "it is expected");
    checks_here.says(200);
    eventually(SOON, "unhealthy", || {
        state_of(&gateway, address)["health_failure"] == "status 200"
    });
    assert_eq!(served_here.checks(), 0);
    gateway.stop();
}

/// What the health service of a scripted server answers: a state, or a status of gRPC.
struct Call {
    server: Server,
    state: Arc<AtomicUsize>,
}

const NO_SUCH_METHOD: usize = 100;

fn call_server() -> Call {
    let state = Arc::new(AtomicUsize::new(1));
    let said = Arc::clone(&state);
    let server = Server::start(&[], move |peer, event| {
        let Event::End(stream) = event else { return };
        let fields = [("content-type", "application/grpc")];
        if peer.request(stream).path() != "/grpc.health.v1.Health/Check" {
            peer.head(stream, 200, &fields, false);
            return peer.trailers(stream, &[("grpc-status", "0")]);
        }
        let request = peer.request(stream);
        assert_eq!(request.body, b"\0\0\0\0\x06\x0a\x04shop");
        assert_eq!(request.field("te").as_deref(), Some("trailers"));
        let state = said.load(Ordering::SeqCst);
        if state == NO_SUCH_METHOD {
            return peer.head(
                stream,
                200,
                &[("content-type", "application/grpc"), ("grpc-status", "12")],
                true,
            );
        }
        peer.head(stream, 200, &fields, false);
        peer.data(stream, &[0, 0, 0, 0, 2, 0x08, state as u8], false);
        peer.trailers(stream, &[("grpc-status", "0")]);
    });
    Call { server, state }
}

fn grpc_route(addresses: &[SocketAddr]) -> String {
    let documents = route_among(addresses, "");
    documents.replace("name: http, protocol: HTTP}]\n", "name: http, protocol: GRPC}]\n")
}

#[test]
fn the_health_service_of_grpc_is_asked() {
    let calls = [call_server(), call_server()];
    let addresses = calls.each_ref().map(|call| call.server.address());
    let text = policy("probe: {periodSeconds: 1, failureThreshold: 1, grpc: {service: shop}}");
    let gateway = Gateway::builder()
        .resources("route", &grpc_route(&addresses))
        .resources("policy", &text)
        .shards(2)
        .start();
    let [ill, _] = &addresses;
    eventually(SOON, "both are healthy", || {
        addresses
            .iter()
            .all(|address| state_of(&gateway, *address)["health"] == "healthy")
    });
    for (state, failure) in [
        (2, "gRPC health NOT_SERVING"),
        (NO_SUCH_METHOD, "gRPC status UNIMPLEMENTED"),
        (3, "gRPC health SERVICE_UNKNOWN"),
    ] {
        calls[0].state.store(state, Ordering::SeqCst);
        eventually(SOON, failure, || {
            state_of(&gateway, *ill)["health_failure"] == failure
        });
        eventually(SOON, "all shards know", || unhealthy(&gateway) == Some(1));
    }
    calls[0].state.store(1, Ordering::SeqCst);
    eventually(SOON, "it is back", || unhealthy(&gateway) == Some(0));
    calls.iter().for_each(|call| call.server.assert_no_violation());
    gateway.stop();
}

#[test]
fn the_health_service_of_googles_server_is_understood() {
    let server = python::Server::start(python::GRPC, &["serve"]);
    let text = policy("initialState: UNHEALTHY\nprobe: {periodSeconds: 1, grpc: {}}");
    let gateway = Gateway::builder()
        .resources("route", &grpc_route(&[server.address()]))
        .resources("policy", &text)
        .start();
    eventually(SOON, "healthy", || {
        state_of(&gateway, server.address())["health"] == "healthy"
    });
    gateway.stop();
}

#[test]
fn when_too_few_are_left_all_are_taken() {
    let patients = [(); 2].map(|()| Patient::new(503));
    let addresses = patients.each_ref().map(Patient::address);
    let text = http("") + "\n";
    let gateway = checked(&addresses, &text).start();
    eventually(SOON, "both verdicts", || unhealthy(&gateway) == Some(2));
    assert_eq!(statuses(&gateway, 8), [503; 8]);
    gateway.replace_resources(
        "policy",
        &policy(&format!(
            "panicThreshold: 50\nprobe: {{periodSeconds: 1, httpGet: {{path: {CHECK}}}}}"
        )),
    );
    gateway.reload();
    assert_eq!(unhealthy(&gateway), Some(2));
    assert_eq!(statuses(&gateway, 20), [200; 20]);
    assert!(patients.iter().all(|patient| patient.served() > 0));
    gateway.stop();
}

#[test]
fn a_check_that_is_passed_ends_an_ejection() {
    let (failing, well) = (Gauge::start(Duration::ZERO), Gauge::start(Duration::ZERO));
    failing.answer(500);
    let rule = "loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1h, maxEjectionPercent: 50}";
    // It fails its checks as well, but never often enough.
    let text = http(", failureThreshold: 1000");
    let gateway = checked(&[failing.address(), well.address()], &text)
        .resources("rule", &traffic_policy(UPSTREAM_HOST, rule))
        .start();
    eventually(SOON, "it is ejected", || {
        statuses(&gateway, 1);
        state_of(&gateway, failing.address())["ejected"] == true
    });
    let made = checks(&gateway);
    eventually(SOON, "more checks", || checks(&gateway) >= made + 4.0);
    assert_eq!(state_of(&gateway, failing.address())["ejected"], true);
    failing.answer(200);
    eventually(SOON, "it is back", || {
        state_of(&gateway, failing.address())["ejected"] == false
    });
    eventually(SOON, "it is told", || {
        gateway.metric("isthmus_unejections_total") == Some(1.0)
    });
    assert_eq!(statuses(&gateway, 20), [200; 20]);
    gateway.stop();
}

#[test]
fn an_endpoint_of_a_service_and_its_subsets_is_asked_once_for_all() {
    let (one, two) = (Patient::new(200), Patient::new(503));
    let endpoints = [("v1", one.address()), ("v2", two.address())]
        .map(|(version, address)| Endpoint::new(version, address));
    let rules = format!(
        "- match: [{{uri: {{prefix: /v2}}}}]\n  route: [{{destination: {{host: {UPSTREAM_HOST}, subset: v2}}}}]\n- {}",
        route_to(UPSTREAM_HOST)
    );
    let documents = gateway(80)
        + &service(UPSTREAM_HOST, 80, &endpoints)
        + &subsets(UPSTREAM_HOST, &["v1", "v2"])
        + &virtual_service(&rules);
    let begun = Instant::now();
    let gateway = Gateway::builder()
        .resources("route", &documents)
        .resources("policy", &http(""))
        .shards(SHARDS)
        .without_access_log()
        .start();
    eventually(SOON, "the verdict", || unhealthy(&gateway) == Some(1));
    eventually(SOON, "of both clusters", || {
        gateway.metric("isthmus_unhealthy") == Some(2.0)
    });
    assert_eq!(gateway.get("any.example", "/v2").status, 503);
    assert_eq!(statuses(&gateway, 10), [200; 10]);
    eventually(SOON, "some checks", || one.checks() >= 3);
    let most = begun.elapsed().as_millis() as usize / 900 + 2;
    assert!(one.checks() <= most, "{} of {most}", one.checks());
    gateway.stop();
}

#[test]
fn entries_of_a_group_are_checked_as_the_group_says() {
    let (ill, well, other) = (Patient::new(503), Patient::new(200), Patient::new(503));
    let mut documents = gateway(80) + &virtual_service(&format!("- {}", route_to(UPSTREAM_HOST)));
    documents.push_str(&format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: up, namespace: default}}
spec:
  hosts: [{UPSTREAM_HOST}]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  workloadSelector: {{labels: {{app: up}}}}
---
"
    ));
    let entries = [
        (&ill, "labels: {app: up, group: vms}", ""),
        (
            &well,
            "labels: {app: up}",
            "annotations: {istio.io/autoRegistrationGroup: vms}",
        ),
        // Of no group: nobody asks it.
        (&other, "labels: {app: up}", ""),
    ];
    for (at, (patient, labels, annotations)) in entries.iter().enumerate() {
        let (ip, port) = (patient.address().ip(), patient.address().port());
        documents.push_str(&format!(
            "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: vm-{at}, namespace: default, {annotations}}}
spec: {{address: {ip}, ports: {{http: {port}}}, {labels}}}
---
"
        ));
    }
    // One port for all, as a group has it: the one of whom it is about.
    let port = ill.address().port();
    documents.push_str(&format!(
        "apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: vms, namespace: default}}
spec:
  metadata: {{labels: {{group: vms}}}}
  template: {{address: 127.0.0.1}}
  probe: {{periodSeconds: 1, failureThreshold: 2, httpGet: {{path: {CHECK}, port: {port}}}}}
---
"
    ));
    let gateway = Gateway::builder()
        .resources("all", &documents)
        .shards(2)
        .without_access_log()
        .start();
    eventually(SOON, "the verdicts of the group", || {
        unhealthy(&gateway) == Some(2)
    });
    assert_eq!(statuses(&gateway, 10), [200; 10]);
    assert_eq!((other.served(), other.checks()), (10, 0));
    ill.says(200);
    eventually(SOON, "they are back", || unhealthy(&gateway) == Some(0));
    gateway.stop();
}

/// An upstream that takes its time for each check, and for nothing else.
fn deliberate() -> Upstream {
    Upstream::start(|request| {
        if request.target == CHECK {
            std::thread::sleep(Duration::from_millis(300));
        }
        Answer::ok("served")
    })
}

fn unchecked() -> String {
    policy(&format!(
        "initialState: UNHEALTHY\nprobe: {{periodSeconds: 1, timeoutSeconds: 60, httpGet: {{path: {CHECK}}}}}"
    ))
}

#[test]
fn a_process_is_ready_when_those_that_begin_unhealthy_were_checked() {
    let upstreams = [deliberate(), deliberate()];
    let addresses = upstreams.each_ref().map(Upstream::address);
    let gateway = checked(&addresses, &unchecked()).start();
    assert_eq!(statuses(&gateway, 20), [200; 20]);
    eventually(SOON, "nobody is unhealthy", || unhealthy(&gateway) == Some(0));
    gateway.stop();
    // Whose checks begin too late is not waited for.
    let late = unchecked().replace(
        "periodSeconds: 1,",
        "initialDelaySeconds: 3600, periodSeconds: 1,",
    );
    let gateway = checked(&addresses, &late).start();
    assert_eq!(statuses(&gateway, 4), [503; 4]);
    gateway.stop();
}

#[test]
fn a_newer_process_serves_when_it_has_checked_those_that_begin_unhealthy() {
    let upstreams = [deliberate(), deliberate()];
    let addresses = upstreams.each_ref().map(Upstream::address);
    let mut gateway = checked(&addresses, &unchecked())
        .shards(2)
        .arg("--drain-timeout")
        .arg("5s")
        .start();
    let load = Load::raw(
        gateway.address(),
        "GET / HTTP/1.1\r\nhost: any.example\r\nconnection: close\r\n\r\n",
    )
    .connections(4)
    .rate(200);
    let (report, ()) = load.run_during(|sent| {
        let more = || {
            let before = sent.load(Ordering::SeqCst);
            eventually(SOON, "more requests", || {
                sent.load(Ordering::SeqCst) > before + 50
            });
        };
        more();
        let mut older = gateway.upgrade();
        assert!(older.wait(Duration::from_secs(30)).is_some(), "{}", gateway.log());
        more();
    });
    assert_eq!(report.total(), report.status(200), "{report}");
    gateway.stop();
}
