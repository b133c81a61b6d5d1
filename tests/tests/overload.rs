//! The gateway has more to do than it may: what is too much is refused, and nothing else suffers.

use isthmus_tests::client::{Client, Response, get};
use isthmus_tests::deadline::{SOON, eventually, within};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::gauge::Gauge;
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Code, Frame, flag, setting};
use isthmus_tests::h2::server::Server;
use isthmus_tests::resources::{UPSTREAM_HOST, one_route, traffic_policy};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const HOST: &str = "any.example";

/// Whether a request was served; else it must have been shed as the README says.
fn is_served(response: &Response) -> bool {
    match response.status {
        200 => {
            assert_eq!(response.field("x-envoy-local-overloaded"), None);
            true
        }
        503 => {
            assert_eq!(response.field("retry-after"), Some("1"), "{response:?}");
            assert_eq!(response.field("x-envoy-local-overloaded"), Some("true"));
            assert!(response.text().contains("(OM)"), "{response:?}");
            false
        }
        status => panic!("{status}: {}", response.text()),
    }
}

/// Idle connections to upstreams are kept, and nothing else.
fn assert_gives_back(gateway: &Gateway) {
    for name in [
        "isthmus_requests_active",
        "isthmus_downstream_connections_active",
        "isthmus_buffer_bytes",
    ] {
        eventually(SOON, name, || gateway.metric(name) == Some(0.0));
    }
}

#[test]
fn requests_above_the_bound_are_shed_and_the_others_served() {
    const CLIENTS: usize = 100;
    const REQUESTS: usize = 5;
    let upstream = Gauge::start(Duration::from_millis(30));
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("requestsPerShard: 4\ndebugCause: true\n")
        .shards(2)
        .start();
    assert_eq!(gateway.get(HOST, "/first").status, 200);
    let (start, ends) = (Barrier::new(CLIENTS), AtomicBool::new(false));
    let (served, shed, looks) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut looks = 0;
            while !ends.load(Ordering::Acquire) {
                assert_eq!(gateway.get_admin("/listeners").status, 200);
                let status = gateway.status();
                assert_eq!(get(status, &status.to_string(), "/healthz/ready").status, 200);
                looks += 1;
            }
            looks
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(gateway.address()).patience(Duration::from_secs(60));
                    start.wait();
                    let ask = |_| client.get(HOST, "/crowd");
                    (0..REQUESTS).map(ask).filter(is_served).count()
                })
            })
            .collect();
        let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        ends.store(true, Ordering::Release);
        (served, CLIENTS * REQUESTS - served, watch.join().unwrap())
    });
    assert!(served > 0 && shed > 0, "{served} served, {shed} shed");
    assert!(looks > 0);
    assert!(
        upstream.requests_max() <= 8,
        "{} at a time",
        upstream.requests_max()
    );
    assert_eq!(
        upstream.served(),
        served as u64 + 1,
        "what is shed reaches nobody"
    );
    gateway.assert_causes("overload_requests", shed as u32);
    let counted = || {
        let lines = gateway.access_log();
        let flagged = lines.iter().filter(|line| line.status == 503 && line.has("OM"));
        flagged.count() == shed
    };
    eventually(SOON, "a line for each", counted);
    assert_gives_back(&gateway);
    assert_eq!(gateway.get(HOST, "/last").status, 200);
    gateway.stop();
}

#[test]
fn streams_above_the_bound_are_shed_one_by_one() {
    let upstream = Gauge::start(Duration::from_millis(50));
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("requestsPerShard: 3\n")
        .start();
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    let streams: Vec<u32> = (0..10).map(|_| client.get("/")).collect();
    client.flush();
    let answers: Vec<Option<u16>> = streams
        .iter()
        .map(|stream| client.whole_answer(*stream).unwrap().status)
        .collect();
    let count = |status| answers.iter().filter(|answer| **answer == Some(status)).count();
    assert_eq!((count(200), count(503)), (3, 7), "{answers:?}");
    gateway.assert_causes("overload_requests", 7);
    gateway.stop();
}

#[test]
fn what_clients_of_http2_have_sent_and_no_upstream_takes_counts() {
    // It takes requests, and nothing of their bodies.
    let deaf = Server::silent(&[(setting::INITIAL_WINDOW_SIZE, 0)]);
    let policy = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
    let gateway = Gateway::builder()
        .resources("route", &one_route(deaf.address(), ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
        .settings("bufferBytesPerShard: 900000\n")
        .start();
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    let uploads: Vec<u32> = (0..6)
        .map(|_| {
            let stream = client.post("/upload");
            for _ in 0..12 {
                client.send(&Frame::data(flag::NONE, stream, vec![b'x'; 16_384]));
            }
            stream
        })
        .collect();
    eventually(SOON, "buffers are full", || {
        client.exchange();
        gateway.metric("isthmus_buffer_bytes").unwrap_or(0.0) >= 900_000.0
    });
    let stream = client.get("/more");
    let answer = client.whole_answer(stream).unwrap();
    assert_eq!(answer.status, Some(503));
    assert_eq!(answer.field("x-envoy-local-overloaded").as_deref(), Some("true"));
    for stream in uploads {
        client.send(&Frame::rst_stream(stream, Code::CANCEL));
    }
    client.round_trip().unwrap();
    eventually(SOON, "buffers are empty", || {
        gateway.metric("isthmus_buffer_bytes").unwrap_or(f64::MAX) < 100_000.0
    });
    drop(client);
    assert_gives_back(&gateway);
    gateway.stop();
}

#[test]
fn while_buffers_are_at_their_bound_nothing_is_taken_on() {
    let upstream = Gauge::start(Duration::ZERO);
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("bufferBytesPerShard: 65536\nheaderTimeout: 60s\n")
        .start();
    let mut client = gateway.client();
    assert!(is_served(&client.get(HOST, "/")));
    // Half a head is kept until the other half comes.
    let slow: Vec<Client> = (0..4)
        .map(|_| {
            let mut slow = gateway.client();
            slow.send("GET / HTTP/1.1\r\nHost: any.example\r\n");
            slow
        })
        .collect();
    eventually(SOON, "buffers are full", || {
        gateway.metric("isthmus_buffer_bytes").unwrap_or(0.0) >= 65536.0
    });
    assert!(!is_served(&client.get(HOST, "/")), "one that was there is told");
    gateway.assert_causes("overload_buffers", 1);
    let mut late = gateway.client();
    late.send_get(HOST, "/");
    eventually(SOON, "accepting rests", || {
        gateway.metric("isthmus_accept_rests_total").unwrap_or(0.0) > 0.0
    });
    assert_eq!(gateway.get_admin("/listeners").status, 200);
    drop(slow);
    // The first to come may find the last of the buffers in use.
    let _answered = is_served(&late.response());
    let served = within(SOON, || is_served(&client.get(HOST, "/")).then_some(()));
    assert!(served.is_some());
    drop((late, client));
    assert_gives_back(&gateway);
    gateway.stop();
}
