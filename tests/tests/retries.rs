//! Retries, bodies that are sent again, time-outs of attempts and of the whole, budgets, and what callers may ask for.

use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::fault::{Fault, FaultPeer, RefusingPort};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Code, Frame, flag};
use isthmus_tests::h2::server::{Event, Server, echo};
use isthmus_tests::load::{Load, turn};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::{self, UPSTREAM_HOST, one_route, route_among, traffic_policy};
use isthmus_tests::upstream::{Answer, OnHead, Request, Upstream};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A gateway with one rule to these endpoints, and these lines in the rule.
fn before(endpoints: &[SocketAddr], rule: &str) -> Builder {
    Gateway::builder().resources("route", &route_among(endpoints, rule))
}

/// Waits until no request and no copy is under way, and every upstream connection that is open waits in its pool.
fn gives_everything_back(gateway: &Gateway) {
    eventually(SOON, "everything is given back", || {
        let gauge = |name| gateway.metric(name).expect("a gauge");
        gauge("isthmus_requests_active") == 0.0
            && gauge("isthmus_upstream_connections_active") == gauge("isthmus_upstream_connections_idle")
            && gauge("isthmus_permits_held") == gauge("isthmus_upstream_connections_idle")
    });
}

fn failing() -> Upstream {
    Upstream::start(|_| Answer::status(503).body("no"))
}

fn post(client: &mut Client, path: &str, body: &[u8]) -> u16 {
    let length = body.len();
    client.send(format!(
        "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n"
    ));
    client.send(body).response().status
}

#[test]
fn a_503_is_tried_again_on_another_endpoint() {
    let (bad, good) = (failing(), Upstream::echo("good"));
    let gateway = before(
        &[bad.address(), good.address()],
        "retries: {attempts: 3, retryOn: \"503\"}",
    )
    .start();
    let mut client = gateway.client();
    for round in 0..40 {
        let path = format!("/{round}");
        assert_eq!(client.get("h", &path).status, 200);
        let line = gateway.access_line(&path);
        assert!(!line.has("URX") && !line.has("UC"), "{line:?}");
    }
    assert_eq!(good.served(), 40);
    assert!((10..=30).contains(&bad.served()), "{}", bad.served());
    // The answer that nobody got was read to its end, so its connection was kept.
    assert_eq!(bad.connections().len(), 1, "a connection for each 503");
    let counts: Vec<_> = good
        .requests()
        .iter()
        .filter_map(|request| request.field("x-envoy-attempt-count").map(str::to_owned))
        .collect();
    assert!(counts.iter().any(|count| count == "1") && counts.iter().any(|count| count == "2"));
    gateway.stop();
}

#[test]
fn only_what_the_conditions_name_is_tried_again() {
    let upstream = Upstream::scripted(vec![
        Answer::status(418),
        Answer::ok("tea"),
        Answer::status(503),
        Answer::ok("late"),
    ]);
    let gateway = before(
        &[upstream.address()],
        "retries: {attempts: 2, retryOn: \"reset,418\"}",
    )
    .start();
    let mut client = gateway.client();
    assert_eq!(client.get("h", "/teapot").status, 200);
    assert_eq!(client.get("h", "/busy").status, 503);
    assert_eq!(upstream.served(), 3);
    assert!(!gateway.access_line("/busy").has("URX"));
    gateway.stop();
}

#[test]
fn spent_retries_pass_the_last_answer_on_with_urx() {
    let bad = failing();
    let gateway = before(
        &[bad.address()],
        "retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}",
    )
    .start();
    let response = gateway.get("h", "/spent");
    assert_eq!((response.status, response.text()), (503, "no"));
    assert_eq!(bad.served(), 3);
    assert!(gateway.access_line("/spent").has("URX"));
    let plain = before(&[bad.address()], "").start();
    assert_eq!(plain.get("h", "/default").status, 503);
    assert_eq!(bad.served(), 4, "a 503 is an answer when nothing is written");
    assert!(!plain.access_line("/default").has("URX"));
    plain.stop();
    gateway.stop();
}

#[test]
fn attempts_of_zero_turn_retries_off() {
    let (closing, refusing) = (FaultPeer::start(Fault::ClosesAfterHead), RefusingPort::take());
    for (address, flag) in [(closing.address(), "UC"), (refusing.address(), "UF")] {
        let gateway = before(&[address], "retries: {attempts: 0}").start();
        assert_eq!(gateway.get("h", "/off").status, 503);
        let line = gateway.access_line("/off");
        assert!(line.has(flag) && !line.has("URX"), "{line:?}");
        assert_eq!(gateway.metric("isthmus_upstream_retries_total"), Some(0.0));
        gateway.stop();
    }
    assert_eq!(closing.accepted(), 1);
}

#[test]
fn a_body_is_sent_again_up_to_its_bound_and_once_beyond() {
    const MIB: usize = 1 << 20;
    for (size, chunked, is_replayed) in [
        (10, false, true),
        (MIB, false, true),
        (MIB, true, true),
        (2 * MIB, false, false),
        (2 * MIB, true, false),
    ] {
        let upstream = Upstream::scripted(vec![Answer::status(503), Answer::ok("done")]);
        let gateway = before(
            &[upstream.address()],
            "retries: {attempts: 1, retryOn: gateway-error}",
        )
        .start();
        let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let mut client = gateway.client();
        let status = if chunked {
            client.send("POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n");
            for part in body.chunks(100_000) {
                client
                    .send(format!("{:x}\r\n", part.len()))
                    .send(part)
                    .send("\r\n");
            }
            client.send("0\r\n\r\n").response().status
        } else {
            post(&mut client, "/c", &body)
        };
        let requests = upstream.requests();
        assert!(requests.iter().all(|request| request.body == body), "{size}");
        let expected = if is_replayed { (200, 2) } else { (503, 1) };
        assert_eq!((status, requests.len()), expected, "{size} {chunked}");
        let lost = gateway.metric("isthmus_unreplayable_bodies_total");
        assert_eq!(lost, Some(f64::from(u8::from(!is_replayed))), "{size} {chunked}");
        upstream.assert_no_violation();
        drop(client);
        gives_everything_back(&gateway);
        gateway.stop();
    }
}

#[test]
fn a_body_goes_on_where_an_upstream_that_failed_early_left_it() {
    // The first attempt is answered when half of the upload has come; it never waits for the rest.
    let heads = AtomicUsize::new(0);
    let upstream = Upstream::with_heads(
        move |_| match heads.fetch_add(1, Ordering::SeqCst) {
            0 => OnHead::Answer(Answer::status(503)),
            _ => OnHead::ReadBody,
        },
        |_| Answer::ok("whole"),
    );
    let gateway = before(&[upstream.address()], "retries: {attempts: 1, retryOn: \"503\"}").start();
    let body = vec![b'x'; 200_000];
    let (first, second) = body.split_at(100_000);
    let mut client = gateway.client();
    client.send("POST /early HTTP/1.1\r\nhost: h\r\ncontent-length: 200000\r\n\r\n");
    client.send(first);
    eventually(SOON, "the second attempt", || upstream.connections().len() == 2);
    assert_eq!(client.send(second).response().status, 200);
    let whole: Vec<Request> = upstream.requests();
    assert_eq!(whole.len(), 1, "the first was never whole");
    assert!(whole[0].body == body && whole[0].connection == 1);
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn an_attempt_that_takes_too_long_is_made_elsewhere() {
    let (silent, good) = (FaultPeer::start(Fault::NeverAnswers), Upstream::echo("good"));
    let gateway = before(
        &[silent.address(), good.address()],
        "timeout: 5s\nretries: {attempts: 2, perTryTimeout: 100ms, retryOn: reset}",
    )
    .start();
    let mut client = gateway.client();
    for _ in 0..10 {
        assert_eq!(client.get("h", "/").status, 200);
        assert_eq!(
            post(&mut client, "/", b"twice"),
            200,
            "reset is asked for, whatever the method"
        );
    }
    assert!(silent.accepted() >= 5, "{}", silent.accepted());
    let told = good.requests()[0]
        .field("x-envoy-expected-rq-timeout-ms")
        .map(str::to_owned);
    assert_eq!(told.as_deref(), Some("100"));
    drop(client);
    gives_everything_back(&gateway);
    eventually(SOON, "given up connections are closed", || silent.open() == 0);
    gateway.stop();
}

#[test]
fn the_time_of_an_attempt_is_504_ut_when_it_is_not_retried() {
    let silent = FaultPeer::start(Fault::NeverAnswers);
    let gateway = before(
        &[silent.address()],
        "timeout: 30s\nretries: {attempts: 2, perTryTimeout: 100ms, retryOn: 5xx}",
    )
    .start();
    assert_eq!(gateway.get("h", "/spent").status, 504);
    let line = gateway.access_line("/spent");
    assert!(line.has("UT") && line.has("URX"), "{line:?}");
    assert_eq!(silent.accepted(), 3);
    gateway.stop();
    let gateway = before(
        &[silent.address()],
        "timeout: 30s\nretries: {attempts: 2, perTryTimeout: 100ms}",
    )
    .start();
    assert_eq!(gateway.get("h", "/once").status, 504);
    let line = gateway.access_line("/once");
    assert!(line.has("UT") && !line.has("URX"), "{line:?}");
    assert_eq!(silent.accepted(), 4, "no condition of the default is one of time");
    gateway.stop();
}

#[test]
fn no_retry_extends_the_time_of_the_whole() {
    let silent = FaultPeer::start(Fault::NeverAnswers);
    let gateway = before(
        &[silent.address()],
        "timeout: 300ms\nretries: {attempts: 100, perTryTimeout: 50ms, retryOn: 5xx}",
    )
    .start();
    for path in ["/get", "/post"] {
        let began = Instant::now();
        let mut client = gateway.client();
        let status = if path == "/get" {
            client.get("h", path).status
        } else {
            post(&mut client, path, b"x")
        };
        assert_eq!(status, 504);
        let took = began.elapsed();
        assert!(
            (Duration::from_millis(290)..Duration::from_secs(2)).contains(&took),
            "{took:?}"
        );
        let line = gateway.access_line(path);
        assert!(line.has("UT") && !line.has("URX"), "{line:?}");
    }
    assert!(silent.accepted() >= 4, "{}", silent.accepted());
    gateway.stop();
}

#[test]
fn an_upstream_that_asks_for_a_pause_gets_it() {
    let upstream = Upstream::scripted(vec![
        Answer::status(503).field("retry-after", "1"),
        Answer::ok("again"),
        Answer::status(503).field("retry-after", "60"),
        Answer::status(503).field("x-envoy-ratelimited", "true"),
    ]);
    let gateway = before(&[upstream.address()], "retries: {attempts: 3, retryOn: \"503\"}").start();
    let began = Instant::now();
    assert_eq!(gateway.get("h", "/").status, 200);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let response = gateway.get("h", "/");
    assert_eq!(
        (response.status, response.field("retry-after")),
        (503, Some("60"))
    );
    assert_eq!(
        gateway.get("h", "/").status,
        503,
        "an upstream that limits is left alone"
    );
    assert_eq!(upstream.served(), 4);
    gateway.stop();
}

const ASKING: &str =
    "x-envoy-max-retries: 4\r\nx-envoy-retry-on: 5xx\r\nx-envoy-retriable-status-codes: 418\r\n";

#[test]
fn a_trusted_caller_steers_its_own_request_and_nobody_else_does() {
    for (trusted, times) in [("127.0.0.0/8", 5), ("10.0.0.0/8", 1)] {
        let bad = failing();
        let gateway = before(&[bad.address()], "")
            .settings(&format!("trustedCidr: {trusted}\n"))
            .start();
        let mut client = gateway.client();
        client.send(format!("GET / HTTP/1.1\r\nhost: h\r\n{ASKING}\r\n"));
        assert_eq!(client.response().status, 503);
        assert_eq!(bad.served(), times, "{trusted}");
        let left: Vec<_> = bad
            .requests()
            .iter()
            .flat_map(|request| {
                [
                    "x-envoy-max-retries",
                    "x-envoy-retry-on",
                    "x-envoy-retriable-status-codes",
                ]
                .map(|name| request.field(name).map(str::to_owned))
            })
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        gateway.stop();
    }
}

#[test]
fn what_a_trusted_caller_asks_for_is_bounded() {
    let bad = failing();
    let gateway = before(
        &[bad.address()],
        "retries: {attempts: 1, retryOn: 5xx, backoff: 1ms}",
    )
    .settings("overrideRetriesMax: 3\noverrideTimeoutMax: 200ms\n")
    .start();
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nhost: h\r\nx-envoy-max-retries: 1000000\r\n\r\n");
    assert_eq!(client.response().status, 503);
    assert_eq!(bad.served(), 4);
    gateway.stop();
    let silent = FaultPeer::start(Fault::NeverAnswers);
    for (cap, asked) in [("1h", "150"), ("200ms", "0"), ("200ms", "3600000")] {
        let gateway = before(&[silent.address()], "timeout: 30s")
            .settings(&format!("overrideTimeoutMax: {cap}\n"))
            .start();
        let began = Instant::now();
        let mut client = gateway.client();
        client.send(format!(
            "GET /asks HTTP/1.1\r\nhost: h\r\nx-envoy-upstream-rq-timeout-ms: {asked}\r\n\r\n"
        ));
        assert_eq!(client.response().status, 504);
        assert!(began.elapsed() < Duration::from_secs(10), "{asked}");
        assert!(gateway.access_line("/asks").has("UT"));
        gateway.stop();
    }
}

#[test]
fn a_caller_may_ask_for_a_time_of_each_attempt() {
    let (silent, good) = (FaultPeer::start(Fault::NeverAnswers), Upstream::echo("good"));
    let gateway = before(&[silent.address(), good.address()], "timeout: 30s").start();
    let mut client = gateway.client();
    // Which endpoint is the first is drawn.
    for _ in 0..60 {
        if silent.accepted() > 0 {
            break;
        }
        client.send(
            "GET / HTTP/1.1\r\nhost: h\r\nx-envoy-upstream-rq-per-try-timeout-ms: 80\r\nx-envoy-retry-on: reset\r\n\r\n",
        );
        assert_eq!(client.response().status, 200);
    }
    assert!(silent.accepted() > 0);
    gateway.stop();
}

fn grpc_call(client: &mut Connection, path: &str, message: &[u8]) -> u32 {
    let stream = client.next_stream();
    let block = client
        .head("POST", path)
        .field("content-type", "application/grpc")
        .field("te", "trailers");
    client.send(&Frame::headers(flag::END_HEADERS, stream, block));
    client.send(&Frame::data(flag::END_STREAM, stream, message));
    stream
}

#[test]
fn a_call_that_is_told_unavailable_in_the_head_is_made_again() {
    let calls = AtomicUsize::new(0);
    let server = Server::start(&[], move |peer, event| {
        if let Event::End(stream) = event {
            let number = calls.fetch_add(1, Ordering::SeqCst);
            let status = match (&*peer.request(stream).path(), number) {
                ("/denied", _) => "7",
                (_, 0) => "14",
                _ => return echo(peer, event),
            };
            let fields = [("content-type", "application/grpc"), ("grpc-status", status)];
            peer.head(stream, 200, &fields, true);
        }
    });
    let policy = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
    let gateway = Gateway::builder()
        .resources("route", &one_route(server.address(), ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
        .start();
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    let call = grpc_call(&mut client, "/call", b"\0\0\0\0\x02hi");
    let answer = client.answered(call, 200).unwrap();
    assert_eq!(answer.text(), "\0\0\0\0\x02hi");
    let denied = grpc_call(&mut client, "/denied", b"\0\0\0\0\x02hi");
    let answer = client.answered(denied, 200).unwrap();
    assert_eq!(answer.field("grpc-status").as_deref(), Some("7"));
    assert_eq!(server.requests().len(), 3);
    server.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_refused_stream_with_a_body_is_sent_again_whole() {
    let heads = AtomicUsize::new(0);
    let server = Server::start(&[], move |peer, event| match event {
        // The upload is under way when the stream is refused.
        Event::Data(stream) if heads.fetch_add(1, Ordering::SeqCst) == 0 => {
            peer.reset(stream, Code::REFUSED_STREAM);
        }
        Event::End(stream) if peer.request(stream).reset.is_none() && peer.has(stream) => echo(peer, event),
        _ => {}
    });
    let policy = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
    let gateway = Gateway::builder()
        .resources("route", &one_route(server.address(), ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
        .start();
    let body = vec![b'y'; 300_000];
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 300000\r\n\r\n");
    let response = client.send(&body).response();
    assert_eq!(response.status, 200);
    assert!(response.body == body);
    server.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_killed_upstream_costs_gets_nothing_when_there_is_another() {
    let turn = turn();
    let (mut first, second) = (Nginx::start(&[]), Nginx::start(&[]));
    let gateway = before(
        &[first.address(), second.address()],
        "retries: {attempts: 3, retryOn: \"5xx\"}",
    )
    .shards(2)
    .without_access_log()
    .start();
    let load = Load::get(gateway.address(), "h", "/echo");
    let (report, ()) = load.run_during(|sent| {
        let more = |wanted: u64| {
            let from = sent.load(Ordering::SeqCst);
            eventually(SOON, "more requests", || {
                sent.load(Ordering::SeqCst) >= from + wanted
            });
        };
        for _ in 0..3 {
            more(300);
            first.kill();
            more(300);
            first.restart();
        }
        more(300);
    });
    assert_eq!(report.total(), report.status(200), "{report}");
    assert!(report.errors.is_empty() && report.total() >= 2_100, "{report}");
    drop(turn);
    gateway.stop();
}

#[test]
fn a_budget_bounds_what_a_failing_upstream_gets() {
    const REQUESTS: u64 = 200;
    let bad = failing();
    let gateway = before(
        &[bad.address()],
        "retries: {attempts: 5, retryOn: 5xx, backoff: 1ms}",
    )
    .shards(2)
    .resources(
        "rule",
        &traffic_policy(UPSTREAM_HOST, "retryBudget: {percent: 20, budgetInterval: 1h}"),
    )
    .start();
    let report = Load::get(gateway.address(), "h", "/")
        .connections(4)
        .run(REQUESTS);
    assert_eq!(report.status(503), REQUESTS, "{report}");
    let retries = bad.served() - REQUESTS;
    assert!((10..=REQUESTS / 5 + 3).contains(&retries), "{retries} retries");
    let overflows = gateway.metric("isthmus_upstream_retry_overflows_total");
    assert!(overflows.is_some_and(|number| number > 100.0), "{overflows:?}");
    eventually(SOON, "a line that says so", || {
        gateway.access_log().iter().any(|line| line.has("UO"))
    });
    gateway.stop();
}

#[test]
fn max_retries_bounds_those_at_a_time_over_all_shards() {
    let bad = failing();
    let gateway = before(
        &[bad.address()],
        "retries: {attempts: 1, retryOn: 5xx, backoff: 300ms}",
    )
    .shards(2)
    .resources(
        "rule",
        &traffic_policy(UPSTREAM_HOST, "connectionPool: {http: {maxRetries: 1}}"),
    )
    .start();
    let report = Load::get(gateway.address(), "h", "/").connections(8).run(80);
    assert_eq!(report.status(503), 80, "{report}");
    let overflows = gateway
        .metric("isthmus_upstream_retry_overflows_total")
        .unwrap_or(0.0);
    let retries = gateway.metric("isthmus_upstream_retries_total").unwrap_or(0.0);
    assert!(overflows >= 1.0 && retries >= 1.0, "{overflows} {retries}");
    assert_eq!(overflows + retries, 80.0, "each was one or the other");
    assert_eq!(bad.served() as f64, 80.0 + retries);
    gateway.stop();
}

/// A rule whose attempts have a tenth of a second, to a service with the annotation.
fn hedging(endpoints: &[SocketAddr], rule: &str) -> Builder {
    let rule_of_service = traffic_policy(UPSTREAM_HOST, "loadBalancer: {simple: ROUND_ROBIN}");
    let annotated = rule_of_service.replace(
        "namespace: default}",
        "namespace: default, annotations: {isthmus.dev/hedging: per-try-timeout}}",
    );
    assert_ne!(annotated, rule_of_service);
    before(endpoints, rule).resources("rule", &annotated)
}

const HEDGED: &str = "timeout: 30s\nretries: {attempts: 1, perTryTimeout: 100ms, retryOn: 5xx}";

#[test]
fn a_slow_attempt_goes_on_beside_another_and_the_first_good_answer_counts() {
    let silent = FaultPeer::start(Fault::NeverAnswers);
    // It answers only when the other endpoint has the request, too: the first attempt must have been kept.
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let slow = Upstream::start(move |_| {
        let _opened = gate.lock().unwrap().recv();
        Answer::ok("slow")
    });
    let gateway = hedging(&[silent.address(), slow.address()], HEDGED).start();
    let mut client = gateway.client();
    for round in 1..=6 {
        client.send_get("h", "/");
        eventually(SOON, "both have the request", || {
            silent.open() == 1 && slow.served() == round
        });
        open.send(()).expect("the upstream waits");
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, "slow"));
        eventually(SOON, "the loser is cancelled", || silent.open() == 0);
    }
    assert_eq!(gateway.metric("isthmus_upstream_hedges_total"), Some(6.0));
    drop(client);
    gives_everything_back(&gateway);
    gateway.stop();
}

#[test]
fn a_hedge_that_fails_does_not_end_the_first_attempt() {
    let refusing = RefusingPort::take();
    // Several times, because which endpoint is first is chance.
    for _ in 0..4 {
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = std::sync::Mutex::new(gate);
        let slow = Upstream::start(move |_| {
            let _opened = gate.lock().unwrap().recv();
            Answer::ok("slow")
        });
        let rule = HEDGED.replace("attempts: 1", "attempts: 2");
        let gateway = hedging(&[slow.address(), refusing.address()], &rule).start();
        let mut client = gateway.client();
        client.send_get("h", "/");
        eventually(SOON, "an attempt beside the slow one", || {
            gateway.metric("isthmus_upstream_hedges_total") == Some(1.0)
        });
        open.send(()).expect("the upstream waits");
        assert_eq!(client.response().status, 200);
        drop(open);
        gateway.stop();
    }
}

#[test]
fn a_post_is_not_hedged_unless_it_may_be_sent_again_whatever_happens() {
    let silent = FaultPeer::start(Fault::NeverAnswers);
    let rule = HEDGED.replace("5xx", "connect-failure");
    let gateway = hedging(&[silent.address()], &rule).start();
    let mut client = gateway.client();
    assert_eq!(post(&mut client, "/post", b"once"), 504);
    assert!(gateway.access_line("/post").has("UT"));
    assert_eq!(silent.accepted(), 1);
    gateway.stop();
}

#[test]
fn an_upload_over_http2_is_sent_again_whole() {
    for upgraded in [false, true] {
        let policy = if upgraded { "UPGRADE" } else { "DO_NOT_UPGRADE" };
        let policy = format!("connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}");
        let ends = AtomicUsize::new(0);
        let over_http2 = Server::start(&[], move |peer, event| {
            if let Event::End(stream) = event {
                if ends.fetch_add(1, Ordering::SeqCst) == 0 {
                    return peer.answer(stream, 503, &[], b"no");
                }
                echo(peer, event);
            }
        });
        let fails_once = AtomicUsize::new(0);
        let over_http1 = Upstream::start(move |request| match fails_once.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::status(503).body("no"),
            _ => Answer::ok(request.body.clone()),
        });
        let address = if upgraded {
            over_http2.address()
        } else {
            over_http1.address()
        };
        let gateway = before(&[address], "retries: {attempts: 1, retryOn: \"503\"}")
            .resources("rule", &traffic_policy(UPSTREAM_HOST, &policy))
            .start();
        let body: Vec<u8> = (0..300_000_u32).map(|at| (at % 253) as u8).collect();
        let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
        client.handshake(&[]).unwrap();
        let stream = client.post("/upload");
        client.upload(stream, &body).unwrap();
        let answer = client.answered(stream, 200).unwrap();
        assert!(answer.body == body, "{}", answer.body.len());
        assert_eq!(gateway.metric("isthmus_upstream_retries_total"), Some(1.0));
        over_http1.assert_no_violation();
        over_http2.assert_no_violation();
        gateway.stop();
    }
}

#[test]
fn retries_leave_the_localities_of_earlier_attempts_when_they_are_to() {
    let near = [failing(), failing(), failing()];
    let far = Upstream::echo("far");
    for leaves in [false, true] {
        let before = [&near[0], &near[1], &near[2], &far].map(Upstream::served);
        let places = ["r1/z1/s1", "r1/z1/s1", "r1/z1/s1", "r2/z1/s1"];
        let all = near.iter().chain([&far]).map(Upstream::address);
        let mut endpoints = String::new();
        for (address, place) in all.zip(places) {
            let (ip, port) = (address.ip(), address.port());
            endpoints.push_str(&format!(
                "  - {{address: {ip}, ports: {{http: {port}}}, locality: {place}}}\n"
            ));
        }
        let service = format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: up}}
spec:
  hosts: [{UPSTREAM_HOST}]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
{endpoints}---
"
        );
        // Localities count where outliers are looked for; none is ejected here.
        let rule = "loadBalancer: {simple: ROUND_ROBIN}\noutlierDetection: {consecutive5xxErrors: 1000000}";
        let retries = format!(
            "retries: {{attempts: 2, retryOn: \"503\", backoff: 1ms, retryRemoteLocalities: {leaves}}}"
        );
        let yaml = resources::gateway(80)
            + &service
            + &traffic_policy(UPSTREAM_HOST, rule)
            + &resources::virtual_service(&format!("- {}\n  {retries}", resources::route_to(UPSTREAM_HOST)));
        let gateway = Gateway::builder()
            .resources("route", &yaml)
            .arg("--locality")
            .arg("r1/z1/s1")
            .start();
        let mut client = gateway.client();
        for _ in 0..10 {
            assert_eq!(client.get("h", "/").status, if leaves { 200 } else { 503 });
        }
        let now = [&near[0], &near[1], &near[2], &far].map(Upstream::served);
        let of_far = now[3] - before[3];
        let of_near = now.iter().sum::<u64>() - before.iter().sum::<u64>() - of_far;
        assert_eq!((of_near, of_far), if leaves { (20, 10) } else { (30, 0) });
        gateway.stop();
    }
}
