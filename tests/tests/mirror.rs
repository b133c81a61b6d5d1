//! Mirrors: copies arrive whole, and whatever becomes of them, the requests that they are copies of do not notice.

use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::fault::{Fault, FaultPeer, RefusingPort};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::h2::server::Server;
use isthmus_tests::load::Load;
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, gateway, route_to, service, traffic_policy, virtual_service,
};
use isthmus_tests::upstream::{Answer, Upstream};
use std::net::{SocketAddr, TcpListener};

const MIRROR_HOST: &str = "mirror.example";

/// A gateway with one rule to `address`, whose copies go to `mirror`, with more lines in the rule.
fn before(address: SocketAddr, mirror: SocketAddr, rule: &str) -> Builder {
    let to = |host: &str| format!("{{host: {host}, port: {{number: 80}}}}");
    let lines: String = rule.lines().map(|line| format!("  {line}\n")).collect();
    let rules = format!(
        "- {}\n  mirror: {}\n{lines}",
        route_to(UPSTREAM_HOST),
        to(MIRROR_HOST)
    );
    Gateway::builder().resources(
        "route",
        &(gateway(80)
            + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", address)])
            + &service(MIRROR_HOST, 80, &[Endpoint::new("v1", mirror)])
            + &virtual_service(&rules)),
    )
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

fn counted(gateway: &Gateway, result: &str) -> u64 {
    let label = format!("result=\"{result}\"");
    gateway
        .metric_with("isthmus_mirrored_requests_total", &label)
        .unwrap_or(0.0) as u64
}

fn counted_for(gateway: &Gateway, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    gateway
        .metric_with("isthmus_mirrored_requests_total", &label)
        .unwrap_or(0.0) as u64
}

/// Waits until so many copies have ended in this way.
fn await_copies(gateway: &Gateway, result: &str, number: u64) {
    eventually(SOON, &format!("{number} copies {result}"), || {
        counted(gateway, result) >= number
    });
    assert_eq!(counted(gateway, result), number);
}

#[test]
fn copies_are_whole_and_their_answers_are_nobodys() {
    let upstream = Upstream::echo("primary");
    let mirror = Upstream::start(|_| Answer::status(500).body("mirror"));
    let gateway = before(upstream.address(), mirror.address(), "rewrite: {uri: /v2/}").start();
    let mut client = gateway.client();
    assert_eq!(client.get("shop.example:80", "/a?b=c").status, 200);
    client.send("POST /whole HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!(client.response().text(), "primary\nhello");
    client.send("POST /parts HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
    eventually(SOON, "the copy begins before the request has ended", || {
        mirror.connections().iter().any(|connection| {
            let raw = connection.raw.lock().unwrap();
            raw.windows(5).any(|window| window == b"parts")
        })
    });
    client.send("5\r\nworld\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "primary\nhelloworld");
    eventually(SOON, "three copies", || mirror.served() == 3);
    await_copies(&gateway, "sent", 3);
    let (ours, theirs) = (upstream.requests(), mirror.requests());
    for request in &ours {
        let copy = theirs.iter().find(|copy| copy.target == request.target);
        let copy = copy.unwrap_or_else(|| panic!("no copy of {}", request.target));
        assert_eq!(copy.method, request.method);
        assert_eq!(copy.body, request.body);
        for name in ["host", "x-request-id", "x-forwarded-for", "x-envoy-original-path"] {
            assert_eq!(copy.field(name), request.field(name), "{name}");
        }
    }
    assert_eq!(theirs[0].field("host"), Some("shop.example:80"), "no other host");
    mirror.assert_no_violation();
    drop(client);
    gives_everything_back(&gateway);
    gateway.stop();
}

#[test]
fn a_part_of_the_requests_is_copied() {
    for (percentage, least, most) in [
        ("mirrorPercentage: {value: 50}", 140, 260),
        ("mirror_percent: 10", 15, 70),
        ("mirrorPercentage: {value: 0}", 0, 0),
        ("mirrorPercent: 100", 400, 400),
    ] {
        let (upstream, mirror) = (Upstream::echo_for_load("p"), Upstream::echo_for_load("m"));
        let gateway = before(upstream.address(), mirror.address(), percentage)
            .settings("mirrorsInFlight: 1000\n")
            .start();
        let report = Load::get(gateway.address(), "h", "/").connections(4).run(400);
        assert_eq!(report.status(200), 400, "{report}");
        let copies =
            || counted(&gateway, "sent") + counted(&gateway, "dropped") + counted(&gateway, "failed");
        eventually(SOON, "the copies end", || copies() >= least);
        gives_everything_back(&gateway);
        assert!((least..=most).contains(&copies()), "{percentage}: {}", copies());
        assert_eq!(copies(), counted(&gateway, "sent"), "{percentage}");
        gateway.stop();
    }
}

#[test]
fn a_dead_mirror_costs_its_copies_only() {
    let (upstream, dead) = (Upstream::echo_for_load("p"), RefusingPort::take());
    let gateway = before(upstream.address(), dead.address(), "").start();
    let report = Load::get(gateway.address(), "h", "/").connections(4).run(500);
    assert_eq!((report.status(200), report.errors.len()), (500, 0), "{report}");
    eventually(SOON, "every copy has failed or was not made", || {
        counted(&gateway, "failed") + counted(&gateway, "dropped") == 500
    });
    assert_eq!(
        counted_for(&gateway, "connect_failed"),
        counted(&gateway, "failed")
    );
    assert_eq!(counted(&gateway, "sent"), 0);
    // Its failures are no failures of requests.
    assert_eq!(gateway.metric("isthmus_causes_total"), None);
    gives_everything_back(&gateway);
    gateway.stop();
}

#[test]
fn a_silent_mirror_gets_a_bounded_number_of_copies_and_holds_nothing_up() {
    let (upstream, silent) = (
        Upstream::echo_for_load("p"),
        FaultPeer::start(Fault::NeverAnswers),
    );
    let gateway = before(upstream.address(), silent.address(), "timeout: 2s")
        .settings("mirrorsInFlight: 5\n")
        .start();
    let mut client = gateway.client();
    for _ in 0..20 {
        assert_eq!(client.get("h", "/").status, 200);
    }
    drop(client);
    assert_eq!(counted_for(&gateway, "overflow"), 15);
    assert!(silent.accepted() <= 5, "{}", silent.accepted());
    await_copies(&gateway, "failed", 5);
    assert_eq!(counted_for(&gateway, "upstream_timeout"), 5);
    gives_everything_back(&gateway);
    gateway.stop();
}

#[test]
fn a_drain_does_not_wait_for_copies() {
    let (upstream, silent) = (Upstream::echo("p"), FaultPeer::start(Fault::NeverAnswers));
    let gateway = before(upstream.address(), silent.address(), "timeout: 30s").start();
    assert_eq!(gateway.get("h", "/").status, 200);
    eventually(SOON, "the copy is at the mirror", || silent.open() == 1);
    // Fails when the process does not end in time.
    gateway.stop();
}

const BIG: usize = 64 << 20;

/// Uploads a big body, and answers by how many KiB the gateway has grown meanwhile at most.
fn upload(gateway: &Gateway) -> u64 {
    let before = gateway.facts().rss_kib;
    let mut most = before;
    let mut client = gateway.client();
    client.send(format!(
        "POST /big HTTP/1.1\r\nhost: h\r\ncontent-length: {BIG}\r\n\r\n"
    ));
    let part = vec![b'z'; 1 << 20];
    for _ in 0..BIG >> 20 {
        client.send(&part);
        most = most.max(gateway.facts().rss_kib);
    }
    assert_eq!(client.response().status, 200);
    most.max(gateway.facts().rss_kib) - before
}

#[test]
fn a_mirror_that_does_not_read_is_cut_off_and_the_memory_stays() {
    let upstream = Upstream::start(|request| Answer::ok(request.body.len().to_string()));
    // Connections wait in its queue: the kernel takes what it can, and nobody reads it.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let gateway = before(upstream.address(), deaf.local_addr().expect("its address"), "").start();
    let grown = upload(&gateway);
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert_eq!(upstream.only_request().body.len(), BIG);
    await_copies(&gateway, "dropped", 1);
    assert_eq!(counted_for(&gateway, "slow"), 1);
    gives_everything_back(&gateway);
    gateway.stop();
}

#[test]
fn a_big_body_is_copied_without_being_kept() {
    let upstream = Upstream::start(|request| Answer::ok(request.body.len().to_string()));
    let mirror = Upstream::start(|request| Answer::ok(request.body.len().to_string()));
    let gateway = before(upstream.address(), mirror.address(), "").start();
    let grown = upload(&gateway);
    assert!(grown < 16 * 1024, "{grown} KiB");
    eventually(SOON, "the copy ends", || {
        counted(&gateway, "sent") + counted_for(&gateway, "slow") == 1
    });
    assert_eq!(counted(&gateway, "sent"), mirror.served());
    assert!(mirror.requests().iter().all(|copy| copy.body.len() == BIG));
    gateway.stop();
}

#[test]
fn copies_go_to_mirrors_that_speak_http2_too() {
    let (upstream, mirror) = (Upstream::echo("p"), Server::echo());
    let policy = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
    let gateway = before(upstream.address(), mirror.address(), "")
        .resources("rule", &traffic_policy(MIRROR_HOST, policy))
        .start();
    let mut client = gateway.client();
    for round in 0..5 {
        let path = format!("/{round}");
        client.send(format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 6\r\n\r\n"
        ));
        assert_eq!(client.send("copied").response().status, 200);
        eventually(SOON, "the copy", || {
            mirror.request(&path).is_some_and(|copy| copy.body == b"copied")
        });
        let copy = mirror.request(&path).expect("it is there");
        assert_eq!(copy.field(":authority").as_deref(), Some("h"));
    }
    await_copies(&gateway, "sent", 5);
    mirror.assert_no_violation();
    gateway.stop();
}
