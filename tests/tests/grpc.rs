//! gRPC through the gateway, with Google's client and server.

use isthmus_tests::cert::{Authority, Leaf};
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Code, Frame, flag};
use isthmus_tests::h2::server::{Event, Server as Scripted};
use isthmus_tests::port::HeldPort;
use isthmus_tests::python::{GRPC, Server, run};
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, all_to, gateway_with, https_server, one_route, service, tls_files,
    traffic_policy, virtual_service,
};
use std::net::SocketAddr;
use std::path::Path;

const NAME: &str = "grpc.example";

/// All that the client checks.
const CHECKS: [&str; 12] = [
    "unary",
    "metadata",
    "client_stream",
    "server_stream",
    "bidirectional",
    "deadline",
    "deadline_travels",
    "cancellation",
    "large",
    "health",
    "statuses",
    "parallel",
];

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A gateway with a cleartext port to a service whose port says GRPC.
fn before(address: SocketAddr, more: &str) -> Builder {
    let documents =
        one_route(address, more).replace("name: http, protocol: HTTP}]\n", "name: http, protocol: GRPC}]\n");
    assert!(documents.contains("GRPC"));
    Gateway::builder().resources("route", &documents)
}

/// The same over TLS on both sides.
fn secured(address: SocketAddr, authority: &Authority, leaf: &Leaf) -> Builder {
    let server = https_server("https", "\"*\"", &tls_files("SIMPLE", leaf));
    let policy = format!(
        "tls: {{mode: SIMPLE, caCertificates: {}, sni: {NAME}}}\nconnectionPool: {{http: {{h2UpgradePolicy: UPGRADE}}}}",
        authority.certificate().display()
    );
    Gateway::builder()
        .port(443)
        .resources("route", &(gateway_with(&server) + &all_to(address)))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, &policy))
}

fn assert_all_passed(said: &str) {
    assert_eq!(said.lines().collect::<Vec<_>>(), CHECKS);
}

#[test]
fn the_checks_pass_without_a_gateway() {
    let server = Server::start(GRPC, &["serve"]);
    assert_all_passed(&run(GRPC, &["check", &server.address().to_string()]));
}

fn all_kinds(tls: bool) {
    let authority = Authority::new();
    let leaf = authority.server(&[NAME]);
    let (server, gateway) = if tls {
        let pair = ["serve", text(&leaf.certificate), text(&leaf.key)];
        let server = Server::start(GRPC, &pair);
        let gateway = secured(server.address(), &authority, &leaf).start();
        (server, gateway)
    } else {
        let server = Server::start(GRPC, &["serve"]);
        let gateway = before(server.address(), "").start();
        (server, gateway)
    };
    let address = gateway.listener(if tls { 443 } else { 80 }).to_string();
    let mut args = vec!["check", &address];
    if tls {
        args.extend([text(authority.certificate()), NAME]);
    }
    assert_all_passed(&run(GRPC, &args));
    let line = gateway.access_line("/peer.Echo/Unary");
    assert!(line.line.contains("HTTP/2\" 200"), "{line:?}");
    // Calls are counted by the status in their trailers.
    eventually(SOON, "calls are counted as such", || {
        let counted = |status: &str| {
            let label = format!("grpc_response_status=\"{status}\"");
            gateway.metric_with("istio_requests_total", &label) >= Some(1.0)
        };
        counted("0") && counted("5")
    });
    assert_eq!(
        gateway.metric_with("istio_requests_total", "request_protocol=\"http\""),
        None
    );
    eventually(SOON, "no request is under way", || {
        let page = gateway.get_admin("/clusters");
        let mut counts = page
            .text()
            .lines()
            .filter_map(|line| line.split_once("::rq_active::"));
        counts.all(|(_, count)| count == "0")
    });
    gateway.stop();
    // The server saw that each of them was given up.
    let said = server.end();
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "cancelled hang cancel",
            "cancelled hang deadline",
            "cancelled ticks cancel"
        ]
    );
}

#[test]
fn all_kinds_of_calls_pass() {
    all_kinds(false);
}

#[test]
fn all_kinds_of_calls_pass_over_tls() {
    all_kinds(true);
}

/// How long the load lasts: `ISTHMUS_GRPC_SECONDS`, for a longer one by hand.
fn seconds() -> String {
    std::env::var("ISTHMUS_GRPC_SECONDS").unwrap_or_else(|_| "3".to_owned())
}

#[test]
fn eight_channels_see_no_error() {
    let authority = Authority::new();
    let leaf = authority.server(&[NAME]);
    let pair = ["serve", text(&leaf.certificate), text(&leaf.key)];
    let server = Server::start(GRPC, &pair);
    let gateway = secured(server.address(), &authority, &leaf).shards(2).start();
    let address = gateway.listener(443).to_string();
    let args = [
        "load",
        &address,
        &seconds(),
        "8",
        text(authority.certificate()),
        NAME,
    ];
    let said = run(GRPC, &args);
    println!("{said}");
    assert!(said.ends_with(" 0 errors\n"), "{said}");
    gateway.stop();
}

/// The status and the message that a call gets.
fn status(gateway: &Gateway) -> (String, String) {
    let said = run(
        GRPC,
        &["status", &gateway.address().to_string(), "/peer.Echo/Unary"],
    );
    let (code, message) = said.split_once('\n').expect("two lines");
    (code.to_owned(), message.trim_end().to_owned())
}

fn assert_line(gateway: &Gateway, status: &str, flag: &str) {
    let line = gateway.access_line("/peer.Echo/Unary");
    assert!(line.has(flag) && line.line.contains(status), "{line:?}");
}

#[test]
fn a_call_without_a_route_is_unimplemented() {
    let server = Server::start(GRPC, &["serve"]);
    let gateway = before(server.address(), "match: [{uri: {exact: /other}}]").start();
    let (code, _) = status(&gateway);
    assert_eq!(code, "UNIMPLEMENTED");
    assert_line(&gateway, "HTTP/2\" 200", "NR");
    gateway.stop();
}

#[test]
fn a_call_without_an_endpoint_is_unavailable() {
    let documents = one_route("127.0.0.1:1".parse().unwrap(), "");
    let at = documents
        .find("apiVersion: networking.istio.io/v1\nkind: ServiceEntry")
        .unwrap();
    let documents = documents[..at].to_owned()
        + &service(UPSTREAM_HOST, 80, &[] as &[Endpoint])
        + &virtual_service(&format!(
            "- {}",
            isthmus_tests::resources::route_to(UPSTREAM_HOST)
        ));
    let gateway = Gateway::builder().resources("route", &documents).start();
    let (code, message) = status(&gateway);
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("UNAVAILABLE", "no healthy upstream (UH)")
    );
    assert_line(&gateway, "HTTP/2\" 200", "UH");
    gateway.stop();
}

#[test]
fn a_call_whose_upstream_refuses_connections_is_unavailable() {
    let held = HeldPort::take();
    let gateway = before(held.address(), "").start();
    let (code, message) = status(&gateway);
    assert_eq!(code, "UNAVAILABLE");
    assert!(!message.is_empty());
    assert_line(&gateway, "HTTP/2\" 200", "UF");
    gateway.stop();
}

#[test]
fn a_call_that_the_routes_time_ends_is_told_so() {
    let silent = Scripted::silent(&[]);
    let gateway = before(silent.address(), "timeout: 300ms").start();
    let (code, _) = status(&gateway);
    assert!(
        matches!(code.as_str(), "DEADLINE_EXCEEDED" | "UNAVAILABLE"),
        "{code}"
    );
    assert_line(&gateway, "HTTP/2\" 200", "UT");
    eventually(SOON, "the upstream's stream is reset", || {
        silent
            .requests()
            .iter()
            .all(|request| request.reset == Some(Code::CANCEL))
    });
    gateway.stop();
}

#[test]
fn a_call_that_the_upstream_resets_is_unavailable() {
    let server = Scripted::start(&[], |peer, event| {
        if let Event::End(stream) = event {
            peer.reset(stream, Code::INTERNAL_ERROR);
        }
    });
    let gateway = before(server.address(), "").start();
    let (code, _) = status(&gateway);
    assert_eq!(code, "UNAVAILABLE");
    assert_line(&gateway, "HTTP/2\" 200", "UC");
    gateway.stop();
}

#[test]
fn a_status_without_content_comes_in_one_frame_of_headers() {
    let held = HeldPort::take();
    let gateway = before(held.address(), "").start();
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    let stream = client.next_stream();
    let head = client
        .head("POST", "/a.B/C")
        .field("content-type", "application/grpc")
        .field("te", "trailers");
    client.send(&Frame::headers(flag::WHOLE, stream, head));
    let answer = client.answered(stream, 200).unwrap();
    assert_eq!(answer.field("content-type").as_deref(), Some("application/grpc"));
    assert_eq!(answer.field("grpc-status").as_deref(), Some("14"));
    assert!(answer.body.is_empty() && answer.trailers.is_empty(), "{answer:?}");
    assert_eq!(client.violation, None);
    gateway.stop();
}

#[test]
fn a_call_that_its_own_deadline_ends_is_told_so_and_one_that_the_route_ends_is_not() {
    let server = Scripted::silent(&[]);
    for (timeout, asked, status) in [("10s", "200m", "4"), ("200ms", "30S", "14")] {
        let gateway = before(server.address(), &format!("timeout: {timeout}")).start();
        let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
        client.handshake(&[]).unwrap();
        let stream = client.next_stream();
        let head = client
            .head("POST", "/peer.Echo/Unary")
            .field("content-type", "application/grpc")
            .field("te", "trailers")
            .field("grpc-timeout", asked);
        client.send(&Frame::headers(flag::WHOLE, stream, head));
        let answer = client.answered(stream, 200).unwrap();
        assert_eq!(
            answer.field("grpc-status").as_deref(),
            Some(status),
            "{timeout} {asked}"
        );
        assert_line(&gateway, "HTTP/2\" 200", "UT");
        gateway.stop();
    }
}

#[test]
fn what_a_call_says_of_itself_reaches_the_server() {
    let server = Scripted::start(&[], |peer, event| {
        if let Event::End(stream) = event {
            peer.head(stream, 200, &[("content-type", "application/grpc")], false);
            // A message of no bytes.
            peer.data(stream, &[0; 5], false);
            peer.trailers(stream, &[("grpc-status", "0")]);
        }
    });
    let gateway = before(server.address(), "").start();
    assert_eq!(status(&gateway).0, "OK");
    let request = server.request("/peer.Echo/Unary").unwrap();
    assert_eq!(request.field("te").as_deref(), Some("trailers"));
    assert_eq!(request.field("content-type").as_deref(), Some("application/grpc"));
    let timeout = request.field("grpc-timeout").unwrap();
    assert!(
        timeout.ends_with('m') || timeout.ends_with('S') || timeout.ends_with('u'),
        "{timeout}"
    );
    server.assert_no_violation();
    gateway.stop();
}
