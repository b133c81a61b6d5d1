//! Ill upstreams and clients that leave: the right answer and flag, no hang, and everything given back afterwards.

use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::fault::{ANSWER, Fault, FaultPeer, RefusingPort};
use isthmus_tests::gateway::{AccessLine, Gateway};
use isthmus_tests::load::{Load, turn};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::{self, Endpoint, one_route};
use isthmus_tests::upstream::{Answer, Then, Upstream};
use isthmus_tests::wire::WireError;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

const ROUNDS: usize = 10;

fn with_timeout(address: SocketAddr) -> Gateway {
    Gateway::builder()
        .resources("route", &one_route(address, "timeout: 300ms"))
        .start()
}

/// Plays a fault several times: the gateway answers with this status and one of these flags each time, a connection
/// of the client survives it, and nothing is kept.
fn answers(fault: Fault, status: u16, flags: &[&str]) {
    let peer = FaultPeer::start(fault);
    let gateway = with_timeout(peer.address());
    let before = gateway.resting();
    let mut client = gateway.client();
    for round in 0..ROUNDS {
        let path = format!("/{round}");
        assert_eq!(client.get("h", &path).status, status, "{fault:?}");
        let line = gateway.access_line(&path);
        assert_eq!(line.status, status, "{line:?}");
        assert!(flags.iter().any(|flag| line.has(flag)), "{fault:?}: {line:?}");
    }
    drop(client);
    gateway.assert_returns_to(&before);
    eventually(SOON, "the peer's connections are closed", || peer.open() == 0);
    gateway.stop();
}

/// Plays a fault that hits when the answer's head is already with the client: the client must see that the body is
/// not whole.
fn breaks_off(fault: Fault, flags: &[&str]) {
    let peer = FaultPeer::start(fault);
    let gateway = with_timeout(peer.address());
    let before = gateway.resting();
    for round in 0..ROUNDS {
        let path = format!("/{round}");
        let mut client = gateway.client();
        let answer = client.send_get("h", &path).try_response(false);
        let told = matches!(&answer, Err(WireError::Truncated("body") | WireError::Reset));
        assert!(
            told || answer.as_ref().is_ok_and(|answer| answer.status >= 500),
            "{fault:?}: {answer:?}"
        );
        let line = gateway.access_line(&path);
        assert!(flags.iter().any(|flag| line.has(flag)), "{fault:?}: {line:?}");
    }
    gateway.assert_returns_to(&before);
    eventually(SOON, "the peer's connections are closed", || peer.open() == 0);
    gateway.stop();
}

#[test]
fn a_refused_connection_is_503_uf() {
    let refusing = RefusingPort::take();
    let gateway = Gateway::in_front_of(refusing.address());
    let before = gateway.resting();
    let mut client = gateway.client();
    for round in 0..ROUNDS {
        let path = format!("/{round}");
        assert_eq!(client.get("h", &path).status, 503);
        assert!(gateway.access_line(&path).has("UF"));
    }
    drop(client);
    gateway.assert_returns_to(&before);
    gateway.stop();
}

#[test]
fn a_close_right_after_the_accept_is_503() {
    // Whether the connect or the first write meets it is the kernel's choice.
    answers(Fault::ClosesAfterAccept, 503, &["UC", "UF"]);
}

#[test]
fn a_reset_right_after_the_accept_is_503() {
    answers(Fault::ResetsAfterAccept, 503, &["UC", "UF"]);
}

#[test]
fn a_close_before_the_answer_is_503_uc() {
    answers(Fault::ClosesAfterHead, 503, &["UC"]);
}

#[test]
fn a_reset_before_the_answer_is_503_uc() {
    answers(Fault::ResetsAfterHead, 503, &["UC"]);
}

#[test]
fn a_close_in_the_answers_head_is_503_uc() {
    answers(Fault::ClosesInHead, 503, &["UC"]);
}

#[test]
fn a_reset_in_the_answers_head_is_503_uc() {
    answers(Fault::ResetsInHead, 503, &["UC"]);
}

#[test]
fn an_upstream_that_never_answers_is_504_ut() {
    answers(Fault::NeverAnswers, 504, &["UT"]);
}

#[test]
fn a_close_in_the_body_is_told_to_the_client() {
    breaks_off(Fault::ClosesInBody, &["UC", "UPE"]);
}

#[test]
fn a_reset_in_the_body_is_told_to_the_client() {
    breaks_off(Fault::ResetsInBody, &["UC", "UPE"]);
}

#[test]
fn a_stall_in_the_body_ends_with_the_timeout() {
    breaks_off(Fault::StallsInBody, &["UT"]);
}

#[test]
fn an_answer_that_comes_byte_by_byte_is_whole() {
    let peer = FaultPeer::start(Fault::OneByteAtATime);
    let gateway = Gateway::in_front_of(peer.address());
    let mut client = gateway.client();
    for _ in 0..3 {
        let response = client.get("h", "/");
        assert_eq!(response.status, 200);
        assert!(
            ANSWER.ends_with(response.text()) && response.body.len() == 64,
            "{response:?}"
        );
    }
    gateway.stop();
}

/// What a client that closes looks like to its peer, too: the two cannot be told apart, so both count as leaving.
fn half_close(mut client: Client) {
    client.half_close();
    let _gone = client.read_some();
}

#[test]
fn a_client_that_leaves_while_it_waits_is_dc_and_cancels_the_attempt() {
    let peer = FaultPeer::start(Fault::NeverAnswers);
    let gateway = Gateway::in_front_of(peer.address());
    let before = gateway.resting();
    for (round, leave) in [Client::abort, drop, half_close].into_iter().enumerate() {
        let mut client = gateway.client();
        client.send_get("h", &format!("/{round}"));
        eventually(SOON, "the request is at the upstream", || peer.open() == 1);
        leave(client);
        eventually(SOON, "the attempt is cancelled", || peer.open() == 0);
        let line = gateway.access_line(&format!("/{round}"));
        assert!(line.has("DC"), "{line:?}");
    }
    gateway.assert_returns_to(&before);
    gateway.stop();
}

#[test]
fn a_client_that_leaves_in_its_upload_frees_everything() {
    let upstream = Upstream::echo("v1");
    let gateway = Gateway::in_front_of(upstream.address());
    let before = gateway.resting();
    for round in 0..ROUNDS {
        let mut client = gateway.client();
        client
            .send(format!(
                "POST /{round} HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n"
            ))
            .send([b'x'; 5000]);
        eventually(SOON, "the upload has begun", || {
            upstream.connections().len() > round
        });
        client.abort();
        eventually(SOON, "the upstream's connection has ended", || {
            upstream.connections()[round].ended
        });
    }
    assert_eq!(
        upstream.served(),
        0,
        "half a request is never whole for the upstream"
    );
    gateway.assert_returns_to(&before);
    gateway.stop();
}

#[test]
fn a_client_that_leaves_in_its_download_frees_everything() {
    let nginx = Nginx::start(&[("/big", &vec![b'x'; 20 << 20])]);
    let gateway = Gateway::in_front_of(nginx.address());
    let before = gateway.resting();
    for _ in 0..ROUNDS {
        let mut client = gateway.client();
        assert_eq!(client.send_get("h", "/big").head().expect("a head").1, 200);
        client.abort();
    }
    gateway.assert_returns_to(&before);
    let left = || gateway.access_log().iter().filter(|line| line.has("DC")).count();
    eventually(SOON, "a line with DC for each", || left() == ROUNDS);
    gateway.stop();
}

#[test]
fn a_pooled_connection_that_the_upstream_closes_fails_no_get() {
    let upstream = Upstream::start(|_| Answer::ok("x").then(Then::Close));
    let gateway = Gateway::in_front_of(upstream.address());
    let report = Load::get(gateway.address(), "h", "/").connections(2).run(300);
    assert_eq!((report.status(200), report.errors.len()), (300, 0), "{report}");
    gateway.stop();
}

#[test]
fn a_post_is_never_sent_twice() {
    // It reads the request and closes without an answer: nobody knows whether it was executed.
    let upstream = Upstream::start(|_| Answer::raw("").then(Then::Close));
    let gateway = Gateway::in_front_of(upstream.address());
    let response = gateway
        .client()
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nab")
        .response();
    assert_eq!((response.status, upstream.served()), (503, 1));
    gateway.stop();
}

#[test]
fn an_upload_is_never_sent_again_without_its_beginning() {
    let peer = FaultPeer::start(Fault::ResetsAfterAccept);
    let upstream = Upstream::start(|_| Answer::ok("x"));
    let endpoints = [
        Endpoint::new("v1", peer.address()),
        Endpoint::new("v1", upstream.address()),
    ];
    let gateway = Gateway::builder()
        .resources(
            "route",
            &(resources::gateway(80)
                + &resources::service(resources::UPSTREAM_HOST, 80, &endpoints)
                + &resources::virtual_service(&format!(
                    "- {}\n",
                    resources::route_to(resources::UPSTREAM_HOST)
                ))),
        )
        .start();
    let mut answers = [0, 0];
    for round in 0..200 {
        let mut client = gateway.client();
        if round % 2 == 0 {
            client.send("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
            client.send("5\r\nworld\r\n0\r\n\r\n");
        } else {
            client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nhello");
            client.send("world");
        }
        let status = client.response().status;
        assert!(matches!(status, 200 | 503), "{status}");
        answers[usize::from(status == 200)] += 1;
    }
    let requests = upstream.requests();
    assert!(
        requests.iter().all(|request| request.body == b"helloworld"),
        "{requests:?}"
    );
    assert_eq!(requests.len(), answers[1]);
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_routes_time_counts_for_a_body_that_comes_while_the_upstream_is_connected_to() {
    let peer = FaultPeer::start(Fault::NeverAnswers);
    let gateway = with_timeout(peer.address());
    for round in 0..ROUNDS {
        let mut client = gateway.client();
        client.send(format!(
            "POST /{round} HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\n"
        ));
        client.send("hello");
        assert_eq!(client.response().status, 504);
        assert!(gateway.access_line(&format!("/{round}")).has("UT"));
    }
    gateway.stop();
}

#[test]
fn a_client_that_waits_for_100_continue_is_not_blamed_for_a_silent_upstream() {
    let peer = FaultPeer::start(Fault::NeverAnswers);
    let gateway = Gateway::builder()
        .resources("route", &one_route(peer.address(), ""))
        .settings("bodyTimeout: 200ms\nstreamIdleTimeout: 1s\n")
        .start();
    let mut client = gateway.client();
    client.send("POST /expects HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(client.response().status, 504);
    assert!(gateway.access_line("/expects").has("SI"));
    // One that has begun and pauses is.
    let mut client = gateway.client();
    client.send("POST /pauses HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nab");
    assert_eq!(client.response().status, 408);
    assert!(gateway.access_line("/pauses").has("DT"));
    gateway.stop();
}

#[test]
fn an_upstream_killed_under_load_costs_only_503_until_it_is_back() {
    let turn = turn();
    let mut nginx = Nginx::start(&[]);
    let gateway = Gateway::builder()
        .resources("route", &one_route(nginx.address(), ""))
        .shards(2)
        .start();
    let load = Load::get(gateway.address(), "h", "/echo");
    let (report, ()) = load.run_during(|sent| {
        let more = |wanted: u64| {
            let from = sent.load(Ordering::SeqCst);
            eventually(SOON, "more requests", || {
                sent.load(Ordering::SeqCst) >= from + wanted
            });
        };
        more(500);
        nginx.kill();
        more(300);
        nginx.restart();
        more(500);
    });
    assert!(report.errors.is_empty(), "{report}");
    assert!(
        report.statuses.keys().all(|status| matches!(status, 200 | 503)),
        "{report}"
    );
    assert!(report.status(200) >= 800 && report.status(503) >= 100, "{report}");
    let after = load.run(1_000);
    assert_eq!((after.status(200), after.errors.len()), (1_000, 0), "{after}");
    eventually(SOON, "all lines of the access log", || {
        gateway.access_log().len() as u64 >= report.total() + 1_000
    });
    let other = |line: &AccessLine| line.status == 503 && !line.has("UF") && !line.has("UC");
    let others: Vec<_> = gateway.access_log().into_iter().filter(other).collect();
    assert!(others.is_empty(), "{others:?}");
    drop(turn);
    gateway.stop();
}
