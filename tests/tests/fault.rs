//! Faults that a route injects on purpose: delays and aborts.

use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Code, Frame, flag};
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, gateway, one_route, route_to, service, virtual_service,
};
use isthmus_tests::upstream::Upstream;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A gateway whose only rule has this fault.
fn with_fault(upstream: &Upstream, fault: &str) -> Gateway {
    let yaml = one_route(upstream.address(), &format!("fault: {fault}"));
    Gateway::builder().resources("fault", &yaml).start()
}

fn target(gateway: &Gateway) -> Target {
    Target::cleartext(gateway.address())
}

#[test]
fn an_abort_answers_in_the_place_of_the_upstream() {
    let upstream = Upstream::echo("up");
    let gateway = with_fault(&upstream, "{abort: {percentage: {value: 100}, httpStatus: 555}}");
    let mut client = gateway.client();
    for path in ["/first", "/second"] {
        let response = client.get("h", path);
        assert_eq!((response.status, response.text()), (555, "fault filter abort"));
    }
    let line = gateway.access_line("/first");
    assert!(line.has("FI"), "{line:?}");
    assert!(line.line.contains("fault_filter_abort"), "{line:?}");
    assert!(
        line.line.contains(&format!("outbound|80||{UPSTREAM_HOST}")),
        "{line:?}"
    );
    assert_eq!(upstream.served(), 0);
    gateway.assert_causes("fault_abort", 2);

    let mut connection = Connection::open(target(&gateway)).expect("a connection");
    connection.handshake(&[]).expect("a handshake");
    let stream = connection.get("/over-h2");
    let answer = connection.answered(stream, 555).expect("an answer");
    assert_eq!(answer.text(), "fault filter abort");
    gateway.stop();
}

#[test]
fn a_call_is_aborted_with_a_status_of_its_own() {
    let upstream = Upstream::echo("up");
    let a = route_to(UPSTREAM_HOST);
    let yaml = gateway(80)
        + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", upstream.address())])
        + &virtual_service(&format!(
            "- {{match: [{{uri: {{prefix: /grpc}}}}], fault: {{abort: {{percentage: {{value: 100}}, grpcStatus: PERMISSION_DENIED}}}}, {a}}}
- {{fault: {{abort: {{percentage: {{value: 100}}, httpStatus: 503}}}}, {a}}}"
        ));
    let gateway = Gateway::builder().resources("fault", &yaml).start();
    let mut client = gateway.client();
    let mut call = |path: &str, kind: &str| {
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: {kind}\r\ncontent-length: 0\r\n\r\n"
            ))
            .response()
    };
    for (path, status) in [("/grpc", "7"), ("/http", "14")] {
        let answer = call(path, "application/grpc");
        assert_eq!((answer.status, answer.text()), (200, ""));
        assert_eq!(answer.field("grpc-status"), Some(status));
        assert_eq!(answer.field("grpc-message"), Some("fault filter abort"));
        assert_eq!(answer.field("content-type"), Some("application/grpc"));
    }
    // A status of gRPC means nothing to other requests: they get 200, as from Envoy.
    let answer = call("/grpc", "text/plain");
    assert_eq!((answer.status, answer.text()), (200, "fault filter abort"));
    assert_eq!(answer.field("grpc-status"), None);
    eventually(SOON, "calls are counted by their status", || {
        let counted = |label: &str| gateway.metric_with("istio_requests_total", label);
        counted("grpc_response_status=\"7\"") == Some(1.0)
            && counted("grpc_response_status=\"14\"") == Some(1.0)
            && counted("request_protocol=\"grpc\"") == Some(2.0)
    });
    assert_eq!(upstream.served(), 0);
    gateway.stop();
}

#[test]
fn a_delay_comes_first_and_is_no_part_of_the_timeout() {
    let upstream = Upstream::echo("up");
    let delay = Duration::from_millis(600);
    let fault = "{delay: {percentage: {value: 100}, fixedDelay: 600ms}}";
    let yaml = one_route(upstream.address(), &format!("timeout: 300ms\nfault: {fault}"));
    let gateway = Gateway::builder().resources("fault", &yaml).start();
    let started = Instant::now();
    let response = gateway.get("h", "/slow");
    assert_eq!((response.status, response.text()), (200, "up\n"));
    assert!(started.elapsed() >= delay, "{:?}", started.elapsed());
    let line = gateway.access_line("/slow");
    assert!(line.has("DI"), "{line:?}");
    assert_eq!(
        upstream.only_request().field("x-envoy-expected-rq-timeout-ms"),
        Some("300")
    );
    assert_eq!(gateway.metric("isthmus_fault_delays_total"), Some(1.0));
    gateway.stop();
}

#[test]
fn a_delayed_request_may_still_be_aborted() {
    let upstream = Upstream::echo("up");
    let fault = "{delay: {percent: 100, fixedDelay: 200ms}, abort: {percent: 100, httpStatus: 418}}";
    let gateway = with_fault(&upstream, fault);
    let started = Instant::now();
    assert_eq!(gateway.get("h", "/both").status, 418);
    assert!(started.elapsed() >= Duration::from_millis(200));
    let line = gateway.access_line("/both");
    assert!(line.has("DI") && line.has("FI"), "{line:?}");
    assert_eq!(upstream.served(), 0);
    gateway.stop();
}

#[test]
fn shares_of_requests_are_struck_independently() {
    let upstream = Upstream::echo("up");
    let fault = "{delay: {percentage: {value: 50}, fixedDelay: 1ms}, abort: {percentage: {value: 20}, httpStatus: 400}}";
    let gateway = with_fault(&upstream, fault);
    let mut client = gateway.client();
    const REQUESTS: usize = 2000;
    let aborted = (0..REQUESTS)
        .filter(|_| client.get("h", "/").status == 400)
        .count();
    // 400 and 1000 expected; five standard deviations are 90 and 112.
    assert!((310..=490).contains(&aborted), "{aborted}");
    let delayed = gateway.metric("isthmus_fault_delays_total").expect("a metric");
    assert!((888.0..=1112.0).contains(&delayed), "{delayed}");
    let both = gateway
        .access_log()
        .iter()
        .filter(|line| line.has("DI") && line.has("FI"))
        .count();
    assert!((130..=270).contains(&both), "{both}");
    assert_eq!(upstream.served(), (REQUESTS - aborted) as u64);
    gateway.stop();
}

#[test]
fn a_client_that_leaves_during_a_delay_frees_everything() {
    let upstream = Upstream::echo("up");
    let gateway = with_fault(
        &upstream,
        "{delay: {percentage: {value: 100}, fixedDelay: 3600s}}",
    );
    let before = gateway.resting();
    let mut waiting: Vec<_> = (0..8)
        .map(|at| {
            let mut client = gateway.client();
            client.send_get("h", &format!("/h1-{at}"));
            client
        })
        .collect();
    let mut connection = Connection::open(target(&gateway)).expect("a connection");
    connection.handshake(&[]).expect("a handshake");
    let streams: Vec<u32> = (0..4).map(|at| connection.get(&format!("/h2-{at}"))).collect();
    connection.flush();
    eventually(SOON, "all of them wait", || {
        gateway.metric("isthmus_fault_delays_total") == Some(12.0)
    });
    waiting.drain(..4).for_each(drop);
    waiting.drain(..).for_each(|client| client.abort());
    for stream in &streams[..2] {
        connection.send(&Frame::rst_stream(*stream, Code::CANCEL));
    }
    connection.flush();
    gateway.assert_causes("client_gone", 10);
    drop(connection);
    gateway.assert_causes("client_gone", 12);
    gateway.assert_returns_to(&before);
    for path in ["/h1-0", "/h1-7", "/h2-0", "/h2-3"] {
        let line = gateway.access_line(path);
        assert!(line.has("DC") && line.has("DI"), "{line:?}");
    }
    assert_eq!(upstream.served(), 0);
    gateway.stop();
}

#[test]
fn a_process_that_drains_lets_delays_end() {
    let upstream = Upstream::echo("up");
    let yaml = one_route(
        upstream.address(),
        "fault: {delay: {percentage: {value: 100}, fixedDelay: 1500ms}}",
    );
    let mut gateway = Gateway::builder().resources("fault", &yaml).start();
    let mut client = gateway.client();
    client.send_get("h", "/drained");
    eventually(SOON, "it waits", || {
        gateway.metric("isthmus_fault_delays_total") == Some(1.0)
    });
    gateway.signal(Signal::TERM);
    let response = client.response();
    assert_eq!((response.status, response.text()), (200, "up\n"));
    assert_eq!(response.field("connection"), Some("close"));
    assert!(gateway.wait(SOON).success());
}

#[test]
fn a_body_waits_with_its_request() {
    let upstream = Upstream::echo("up");
    let gateway = with_fault(
        &upstream,
        "{delay: {percentage: {value: 100}, fixedDelay: 300ms}}",
    );
    let body = vec![b'x'; 300_000];
    let mut client = gateway.client();
    client.send(format!(
        "POST /upload HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
        body.len()
    ));
    client.send(&body);
    assert_eq!(client.response().status, 200);
    assert_eq!(upstream.only_request().body.len(), body.len());
    gateway.stop();
}

#[test]
fn a_reset_breaks_the_connection_and_over_http2_the_stream() {
    let upstream = Upstream::echo("up");
    let yaml = one_route(
        upstream.address(),
        "fault: {abort: {percentage: {value: 100}, httpStatus: 400}}",
    )
    .replace(
        "metadata: {name: v, namespace: default}",
        "metadata: {name: v, namespace: default, annotations: {isthmus.dev/abort: reset}}",
    );
    let gateway = Gateway::builder().resources("fault", &yaml).start();
    let mut client = gateway.client();
    client.send_get("h", "/reset");
    let failed = client.try_response(false);
    assert!(failed.is_err(), "{failed:?}");
    assert!(client.pending().is_empty());
    let line = gateway.access_line("/reset");
    assert!(
        line.has("FI") && line.line.contains("fault_filter_reset"),
        "{line:?}"
    );

    let mut connection = Connection::open(target(&gateway)).expect("a connection");
    connection.handshake(&[]).expect("a handshake");
    let stream = connection.get("/reset-h2");
    connection.until_over_or_closed(stream).expect("an end");
    assert_eq!(connection.answer(stream).reset, Some(Code::INTERNAL_ERROR));
    gateway.assert_causes("fault_reset", 2);
    assert_eq!(upstream.served(), 0);
    gateway.stop();
}

#[test]
fn an_abort_with_success_promises_no_tunnel() {
    let upstream = Upstream::echo("up");
    let gateway = with_fault(&upstream, "{abort: {percentage: {value: 100}, httpStatus: 200}}");
    let mut connection = Connection::open(target(&gateway)).expect("a connection");
    connection.handshake(&[]).expect("a handshake");
    let stream = connection.next_stream();
    let head = connection
        .head("CONNECT", "/tunnel")
        .field(":protocol", "websocket");
    connection.send(&Frame::headers(flag::END_HEADERS, stream, head));
    connection.until_over_or_closed(stream).expect("an end");
    let answer = connection.answer(stream);
    assert_eq!((answer.status, answer.reset), (None, Some(Code::INTERNAL_ERROR)));
    // Any other request gets what it says.
    let stream = connection.get("/plain");
    connection.answered(stream, 200).expect("an answer");
    assert_eq!(upstream.served(), 0);
    gateway.stop();
}
