//! Outages: what a gateway makes of upstreams that are killed under load, or are all down for a while.
//!
//! `ISTHMUS_OUTAGE_SECONDS` has outages, and the load behind a kill, last so long; without it they end after some
//! thousand requests.

use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::fault::RefusingPort;
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::gauge::Gauge;
use isthmus_tests::load::{Load, Report, turn};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::{UPSTREAM_HOST, route_among, traffic_policy};
use isthmus_tests::upstream::{Answer, Upstream};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SHARDS: usize = 4;
const HOST: &str = "any.example";

/// How long an outage lasts, where it is asked for.
fn seconds() -> Option<u64> {
    let lasts = std::env::var("ISTHMUS_OUTAGE_SECONDS").ok()?;
    Some(lasts.parse().expect("a number of seconds"))
}

/// Waits until so many more requests were sent.
fn more(sent: &AtomicU64, wanted: u64) {
    let from = sent.load(Ordering::SeqCst);
    eventually(Duration::from_secs(60), "more requests", || {
        sent.load(Ordering::SeqCst) >= from + wanted
    });
}

#[test]
fn killed_upstreams_cost_no_request_that_comes_afterwards() {
    let turn = turn();
    let mut upstreams = [(); 5].map(|()| Nginx::start(&[]));
    let addresses = upstreams.each_ref().map(Nginx::address);
    let gateway = Gateway::builder()
        .resources("route", &route_among(&addresses, ""))
        .shards(2)
        .without_access_log()
        .start();
    // So many that the rate is kept where the machine has others to serve: each request waits for four threads in turn.
    const CONNECTIONS: usize = 128;
    const RATE: u32 = 5_000;
    let afterwards = u64::from(RATE) * seconds().unwrap_or(1);
    let load = Load::get(gateway.address(), HOST, "/echo")
        .connections(CONNECTIONS)
        .rate(RATE);
    let (report, killed) = load.run_during(|sent| {
        more(sent, 2_500);
        let [first, second, ..] = &mut upstreams;
        first.kill();
        second.kill();
        let killed = Instant::now();
        more(sent, afterwards);
        killed
    });
    println!("{report}");
    // From the moment that the kernel has ended both.
    let after = report.failed.iter().filter(|(begun, _)| *begun >= killed);
    assert_eq!(after.count(), 0, "{report}");
    // What was under way as the first request of a connection cannot be told from one that was worked on.
    assert!(report.failed.len() <= CONNECTIONS, "{report}");
    assert!(report.total() >= 2_500 + afterwards, "{report}");
    drop(turn);
    gateway.stop();
}

/// What a budget's interval may add to its part of the requests (`minRetryConcurrency`).
const BESIDE: u64 = 3;
/// The interval of a budget that says none.
const INTERVAL: Duration = Duration::from_secs(10);

/// A gateway whose clients' requests are sent again five times, with a budget of a fifth of the requests, and these lines in
/// the policy beside.
fn stormy(endpoints: &[SocketAddr], policy: &str) -> Builder {
    let rule = "retries: {attempts: 5, retryOn: \"5xx\", backoff: 1ms}";
    let policy = format!("retryBudget: {{percent: 20, minRetryConcurrency: {BESIDE}}}\n{policy}");
    Gateway::builder()
        .resources("route", &route_among(endpoints, rule))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, &policy))
        .shards(SHARDS)
        .without_access_log()
}

/// Clients that go on through an outage, from its beginning to its end.
fn outage(gateway: &Gateway) -> Report {
    let load = Load::get(gateway.address(), HOST, "/").connections(16);
    let (report, ()) = load.run_during(|sent| match seconds() {
        Some(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
        None => more(sent, 3_000),
    });
    println!("{report}");
    assert_eq!(report.status(503), report.total(), "{report}");
    report
}

/// Asserts that all the attempts of an outage are within the budget.
fn assert_bounded(report: &Report, attempts: u64) {
    let requests = report.total();
    let intervals = report.elapsed.as_secs() / INTERVAL.as_secs() + 2;
    let most = requests + requests / 5 + BESIDE * intervals;
    assert!(attempts <= most, "{attempts} attempts of {requests} requests");
}

fn counter(gateway: &Gateway, name: &str) -> u64 {
    gateway.metric(name).unwrap_or(0.0) as u64
}

#[test]
fn an_outage_costs_no_more_attempts_than_the_budget_has() {
    let turn = turn();
    let upstreams = [(); 3].map(|()| Gauge::start(Duration::ZERO));
    upstreams.iter().for_each(|upstream| upstream.answer(503));
    let gateway = stormy(&upstreams.each_ref().map(Gauge::address), "").start();
    let report = outage(&gateway);
    let attempts: u64 = upstreams.iter().map(Gauge::served).sum();
    assert_bounded(&report, attempts);
    let retries = attempts - report.total();
    assert!(retries >= 10, "{retries} are some");
    eventually(SOON, "the counter says the same", || {
        counter(&gateway, "isthmus_upstream_retries_total") == retries
    });
    // Nothing is left of it when it is over.
    upstreams.iter().for_each(|upstream| upstream.answer(200));
    for _ in 0..40 {
        assert_eq!(gateway.get(HOST, "/").status, 200);
    }
    drop(turn);
    gateway.stop();
}

#[test]
fn connects_to_upstreams_that_are_gone_are_within_the_budget_too() {
    let turn = turn();
    let gone = [(); 3].map(|()| RefusingPort::take());
    let gateway = stormy(&gone.each_ref().map(RefusingPort::address), "").start();
    let report = outage(&gateway);
    let failures = || counter(&gateway, "isthmus_upstream_connect_failures_total");
    eventually(SOON, "all are counted", || failures() >= report.total());
    let retries = counter(&gateway, "isthmus_upstream_retries_total");
    assert_eq!(failures(), report.total() + retries);
    assert!(retries > 0);
    assert_bounded(&report, failures());
    drop(turn);
    gateway.stop();
}

#[test]
fn an_outage_ends_with_the_ejections_that_it_has_caused() {
    let turn = turn();
    let upstreams = [(); 3].map(|()| Gauge::start(Duration::ZERO));
    upstreams.iter().for_each(|upstream| upstream.answer(503));
    let policy = "outlierDetection: {consecutiveGatewayErrors: 5, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 100}";
    let gateway = stormy(&upstreams.each_ref().map(Gauge::address), policy).start();
    let report = outage(&gateway);
    let attempts = || upstreams.iter().map(Gauge::served).sum::<u64>();
    assert_bounded(&report, attempts());
    eventually(SOON, "all were ejected", || {
        counter(&gateway, "isthmus_ejections_total") >= 3
    });
    assert!(attempts() < report.total(), "who is ejected gets nothing");
    upstreams.iter().for_each(|upstream| upstream.answer(200));
    eventually(Duration::from_secs(30), "the first is back", || {
        gateway.get(HOST, "/").status == 200
    });
    eventually(Duration::from_secs(30), "all are back", || {
        counter(&gateway, "isthmus_ejected") == 0
    });
    for _ in 0..40 {
        assert_eq!(gateway.get(HOST, "/").status, 200);
    }
    drop(turn);
    gateway.stop();
}

/// What the checks of [`Recovering`] ask for.
const CHECK: &str = "/healthz";

/// An upstream that is down until it is told otherwise, and then passes one check only: the next is never answered.
struct Recovering {
    upstream: Upstream,
    is_up: Arc<AtomicBool>,
    passed: Arc<AtomicUsize>,
    attempts: Arc<AtomicU64>,
    /// Held: who waits for it waits until the test ends.
    _never: Sender<()>,
}

impl Recovering {
    fn new() -> Self {
        let is_up = Arc::new(AtomicBool::new(false));
        let passed = Arc::new(AtomicUsize::new(0));
        let attempts = Arc::new(AtomicU64::new(0));
        let (never, ends): (Sender<()>, Receiver<()>) = channel();
        let (up, passes, tried, ends) = (
            Arc::clone(&is_up),
            Arc::clone(&passed),
            Arc::clone(&attempts),
            Mutex::new(ends),
        );
        let upstream = Upstream::start(move |request| {
            let is_up = up.load(Ordering::SeqCst);
            if request.target == CHECK {
                if is_up && passes.fetch_add(1, Ordering::SeqCst) > 0 {
                    let _ended = ends.lock().unwrap().recv();
                }
            } else {
                tried.fetch_add(1, Ordering::SeqCst);
            }
            Answer::status(if is_up { 200 } else { 503 })
        });
        Self {
            upstream,
            is_up,
            passed,
            attempts,
            _never: never,
        }
    }
}

#[test]
fn an_outage_ends_with_the_first_check_that_is_passed() {
    let turn = turn();
    let upstreams = [(); 2].map(|()| Recovering::new());
    let addresses = upstreams.each_ref().map(|one| one.upstream.address());
    let checks = format!(
        "apiVersion: isthmus.dev/v1alpha1
kind: HealthCheckPolicy
metadata: {{name: checks, namespace: default}}
spec:
  host: {UPSTREAM_HOST}
  probe: {{periodSeconds: 1, timeoutSeconds: 600, failureThreshold: 1000, httpGet: {{path: {CHECK}}}}}
"
    );
    let gateway = stormy(&addresses, "").resources("checks", &checks).start();
    let report = outage(&gateway);
    let attempts: u64 = upstreams
        .iter()
        .map(|one| one.attempts.load(Ordering::SeqCst))
        .sum();
    assert_bounded(&report, attempts);
    eventually(SOON, "both are unhealthy", || {
        counter(&gateway, "isthmus_unhealthy") == 2
    });
    upstreams
        .iter()
        .for_each(|one| one.is_up.store(true, Ordering::SeqCst));
    eventually(Duration::from_secs(30), "the first is back", || {
        gateway.get(HOST, "/").status == 200
    });
    eventually(Duration::from_secs(30), "both are back", || {
        counter(&gateway, "isthmus_unhealthy") == 0
    });
    for _ in 0..40 {
        assert_eq!(gateway.get(HOST, "/").status, 200);
    }
    for one in &upstreams {
        assert!(one.passed.load(Ordering::SeqCst) >= 1);
    }
    drop(turn);
    gateway.stop();
}
