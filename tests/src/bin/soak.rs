//! Mixed load through a gateway for a while: bodies, errors, clients that leave. Nothing may pile up.
//!
//! `soak [MINUTES]` (a fraction is fine) prints what the gateway holds every few seconds, and fails when it holds more
//! at the end than before, or when its memory grows after the first quarter.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool of the terminal")]

use anyhow::{Context, Result, ensure};
use isthmus_tests::client::Client;
use isthmus_tests::fault::{Fault, FaultPeer, RefusingPort};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::load::{EndsOnDrop, Load, Report};
use isthmus_tests::resources::{Endpoint, gateway, route_to, service, virtual_service};
use isthmus_tests::upstream::Upstream;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const HOST: &str = "soak.example";
/// Memory may still move after the first quarter: allocators keep what they had at the worst moment so far.
const GROWTH_KIB_MAX: u64 = 8 * 1024;

struct Sample {
    at: Duration,
    rss_kib: u64,
}

fn main() -> Result<()> {
    let minutes: f64 = match std::env::args().nth(1) {
        Some(word) => word.parse().context("soak [MINUTES]")?,
        None => 10.0,
    };
    let whole = Duration::from_secs_f64(minutes * 60.0);
    let good = Upstream::echo_for_load("good");
    let refusing = RefusingPort::take();
    let faults = [
        Fault::NeverAnswers,
        Fault::ResetsAfterHead,
        Fault::ResetsInBody,
        Fault::StallsInBody,
    ]
    .map(FaultPeer::start);
    let [never, resets, breaks, stalls] = &faults;
    let places = [
        ("refused", refusing.address()),
        ("never", never.address()),
        ("resets", resets.address()),
        ("breaks", breaks.address()),
        ("stalls", stalls.address()),
        ("good", good.address()),
    ];
    let gateway = Gateway::builder()
        .resources("soak", &resources(&places))
        .shards(2)
        .without_access_log()
        .start();
    let address = gateway.address();
    // The pools and buffers that any traffic needs are there before the first look.
    Load::get(address, HOST, "/good").run(2_000);
    let before = gateway.resting();
    println!(
        "{:>6} {:>5} {:>9} {:>9} {:>8} {:>7} {:>10}",
        "s", "fds", "rss KiB", "upstream", "permits", "tasks", "requests"
    );

    let over = AtomicBool::new(false);
    let total = Mutex::new(Report::default());
    let samples = thread::scope(|scope| {
        for load in loads(address) {
            let (over, total) = (&over, &total);
            scope.spawn(move || run(&load, over, total));
        }
        for leave in [leaves_while_waiting, leaves_in_upload, leaves_in_answer] {
            let over = &over;
            scope.spawn(move || until(over, || leave(address)));
        }
        let _ends = EndsOnDrop(&over);
        watch(&gateway, whole)
    });

    let total = Report {
        elapsed: whole,
        ..total.into_inner().unwrap_or_default()
    };
    println!("{total}");
    gateway.assert_returns_to(&before);
    let (early, last) = (
        samples.get(samples.len() / 4).context("no sample")?,
        samples.last().context("no sample")?,
    );
    println!(
        "memory: {} KiB after {:.0?}, {} KiB after {:.0?}",
        early.rss_kib, early.at, last.rss_kib, last.at
    );
    let grown = last.rss_kib.saturating_sub(early.rss_kib);
    ensure!(
        grown <= GROWTH_KIB_MAX,
        "memory grew by {grown} KiB after the first quarter"
    );
    ensure!(
        total.status(200) > 0 && total.status(503) > 0 && total.status(504) > 0,
        "not all kinds of traffic ran"
    );
    gateway.stop();
    println!("flat: all was given back");
    Ok(())
}

fn resources(places: &[(&str, SocketAddr)]) -> String {
    let (mut yaml, mut rules) = (gateway(80), String::new());
    for (name, address) in places {
        let host = format!("{name}.example");
        yaml += &service(&host, 80, &[Endpoint::new("v1", *address)]);
        rules += &format!(
            "- {{match: [{{uri: {{prefix: /{name}}}}}], timeout: 200ms, {}}}\n",
            route_to(&host)
        );
    }
    yaml + &virtual_service(&rules)
}

/// One closed loop per kind of request.
fn loads(address: SocketAddr) -> Vec<Load> {
    let body = "x".repeat(64 * 1024);
    let known = format!(
        "POST /good HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let chunked = format!(
        "POST /good HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let mut loads = vec![
        Load::raw(address, known),
        Load::raw(address, chunked),
        Load::get(address, HOST, "/good"),
    ];
    let paths = ["/refused", "/never", "/resets", "/breaks", "/stalls", "/nowhere"];
    loads.extend(paths.map(|path| Load::get(address, HOST, path)));
    loads.push(Load::raw(address, "GET /good HTTP/1.1\r\nbroken\r\n\r\n"));
    loads.into_iter().map(|load| load.connections(2)).collect()
}

fn run(load: &Load, over: &AtomicBool, total: &Mutex<Report>) {
    until(over, || {
        let report = load.run(50);
        if let Ok(mut total) = total.lock() {
            total.merge(&report);
        }
    });
}

fn until(over: &AtomicBool, mut act: impl FnMut()) {
    while !over.load(Ordering::SeqCst) {
        act();
    }
}

fn leaves_while_waiting(address: SocketAddr) {
    let mut client = Client::connect(address).patience(Duration::from_millis(20));
    let _gone = client.try_send(format!("GET /never HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    let _impatient = client.read_some();
    client.abort();
}

fn leaves_in_upload(address: SocketAddr) {
    let mut client = Client::connect(address).patience(Duration::from_millis(5));
    let _gone = client.try_send(format!(
        "POST /good HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100000\r\n\r\nhalf"
    ));
    let _impatient = client.read_some();
    client.abort();
}

fn leaves_in_answer(address: SocketAddr) {
    let mut client = Client::connect(address);
    let _gone = client.try_send(format!("GET /stalls HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    let _head = client.head();
}

/// Prints a line of what the gateway holds every few seconds, until the time is over.
fn watch(gateway: &Gateway, whole: Duration) -> Vec<Sample> {
    let (start, every) = (
        Instant::now(),
        (whole / 40).clamp(Duration::from_millis(500), Duration::from_secs(10)),
    );
    let mut samples = Vec::new();
    while start.elapsed() < whole {
        thread::sleep(every);
        let (at, facts) = (start.elapsed(), gateway.facts());
        let gauge = |name: &str| gateway.metric(name).unwrap_or(f64::NAN);
        println!(
            "{:>6.0} {:>5} {:>9} {:>9} {:>8} {:>7} {:>10}",
            at.as_secs_f64(),
            facts.fds,
            facts.rss_kib,
            gauge("isthmus_upstream_connections_active"),
            gauge("isthmus_permits_held"),
            gauge("isthmus_tasks"),
            gauge("istio_requests_total"),
        );
        samples.push(Sample {
            at,
            rss_kib: facts.rss_kib,
        });
    }
    samples
}
