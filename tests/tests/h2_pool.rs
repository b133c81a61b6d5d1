//! Connections to upstreams of HTTP/2: how many, how full, how they end, and what becomes of the requests on them.

use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::fault::{Fault, FaultPeer};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::{Answer, Connection};
use isthmus_tests::h2::frame::{Code, Frame, flag, kind, setting};
use isthmus_tests::h2::server::{Event, Peer, Server, echo};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, gateway, one_route, route_among, route_to, service, traffic_policy,
    virtual_service,
};
use isthmus_tests::upstream::{self, Upstream};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A gateway that speaks HTTP/2 to the upstream at this address, with more lines below `connectionPool.http`.
fn before(address: SocketAddr, pool: &str) -> Builder {
    let comma = if pool.is_empty() { "" } else { ", " };
    let policy = format!("connectionPool: {{http: {{h2UpgradePolicy: UPGRADE{comma}{pool}}}}}");
    Gateway::builder()
        .resources("route", &one_route(address, ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, &policy))
}

fn client_of(gateway: &Gateway) -> Connection {
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    client
}

fn answered(client: &mut Connection, stream: u32, status: u16) -> Answer {
    let answer = client
        .answered(stream, status)
        .unwrap_or_else(|error| panic!("{error}: {}", client.told()));
    assert_eq!(client.violation, None);
    answer
}

/// Answers what was held back on all connections.
fn answer_all(server: &Server) {
    for number in 0..server.connections().len() {
        server.on(number, |peer| {
            let open: Vec<u32> = peer.seen.requests.keys().copied().collect();
            for stream in open {
                peer.answer(stream, 200, &[], b"ok");
            }
        });
    }
}

fn no_request_active(gateway: &Gateway) {
    eventually(SOON, "no request is under way", || {
        let page = gateway.get_admin("/clusters");
        let mut counts = page
            .text()
            .lines()
            .filter_map(|line| line.split_once("::rq_active::"));
        counts.all(|(_, count)| count == "0")
    });
}

/// Opens 30 streams at once to an upstream that is known to take `limit` at a time, by its own word or by the rule's.
fn spreads(settings: &[(u16, u32)], pool: &str, limit: usize) {
    let server = Server::silent(settings);
    let gateway = before(server.address(), pool).start();
    let mut client = client_of(&gateway);
    let first = client.get("/first");
    client.flush();
    eventually(SOON, "the first request", || server.request("/first").is_some());
    server.on_path("/first", |peer, stream| peer.answer(stream, 200, &[], b""));
    answered(&mut client, first, 200);
    let streams: Vec<u32> = (0..30).map(|round| client.get(&format!("/{round}"))).collect();
    client.flush();
    eventually(SOON, "all requests", || server.requests().len() == 31);
    let seen = server.connections();
    assert_eq!(seen.len(), 30 / limit, "connections");
    assert!(seen.iter().all(|seen| seen.open_max <= limit), "{seen:?}");
    answer_all(&server);
    for stream in streams {
        answered(&mut client, stream, 200);
    }
    // Those that there are carry the next ones.
    let again: Vec<u32> = (0..30)
        .map(|round| client.get(&format!("/again{round}")))
        .collect();
    client.flush();
    eventually(SOON, "all requests", || server.requests().len() == 61);
    answer_all(&server);
    for stream in again {
        answered(&mut client, stream, 200);
    }
    assert_eq!(server.connections().len(), 30 / limit, "connections");
    no_request_active(&gateway);
    server.assert_no_violation();
    gateway.stop();
}

#[test]
fn an_upstream_that_takes_one_stream_gets_a_connection_for_each() {
    spreads(&[(setting::MAX_CONCURRENT_STREAMS, 1)], "", 1);
}

#[test]
fn an_upstream_that_takes_ten_streams_gets_ten_on_each_connection() {
    spreads(&[(setting::MAX_CONCURRENT_STREAMS, 10)], "", 10);
}

#[test]
fn max_concurrent_streams_of_a_rule_holds() {
    spreads(&[], "maxConcurrentStreams: 3", 3);
    spreads(
        &[(setting::MAX_CONCURRENT_STREAMS, 10)],
        "maxConcurrentStreams: 100",
        10,
    );
}

/// Echoes as a server that takes one stream at a time does, and refuses what comes while one is open.
fn one_at_a_time(peer: &mut Peer, event: Event) {
    match event {
        Event::Head(stream) if peer.open() > 1 => peer.reset(stream, Code::REFUSED_STREAM),
        event => echo(peer, event),
    }
}

#[test]
fn many_requests_at_once_to_an_upstream_of_which_nothing_is_known_are_all_answered() {
    for round in 0..5 {
        let server = Server::start(&[(setting::MAX_CONCURRENT_STREAMS, 1)], one_at_a_time);
        let gateway = before(server.address(), "").start();
        let mut client = client_of(&gateway);
        let streams: Vec<u32> = (0..50).map(|_| client.get("/")).collect();
        for stream in streams {
            let answer = client.whole_answer(stream).unwrap();
            assert_eq!(
                answer.status,
                Some(200),
                "round {round}, stream {stream}: {}",
                answer.text()
            );
        }
        gateway.stop();
    }
}

#[test]
fn many_requests_at_once_to_an_nginx_that_takes_two_streams_are_all_answered() {
    let nginx = Nginx::http2_with(None, "http2_max_concurrent_streams 2;", &[("/small", b"x")]);
    for _ in 0..3 {
        let gateway = before(nginx.address(), "").start();
        let mut client = client_of(&gateway);
        let streams: Vec<u32> = (0..80).map(|_| client.get("/small")).collect();
        for stream in streams {
            answered(&mut client, stream, 200);
        }
        gateway.stop();
    }
}

#[test]
fn requests_of_many_clients_share_one_connection() {
    let server = Server::echo();
    let gateway = before(server.address(), "").start();
    let mut clients: Vec<Client> = (0..20).map(|_| gateway.client()).collect();
    let mut two = client_of(&gateway);
    for _ in 0..5 {
        for client in &mut clients {
            client.send_get("h", "/");
        }
        let streams: Vec<u32> = (0..20).map(|_| two.get("/")).collect();
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
        for stream in streams {
            answered(&mut two, stream, 200);
        }
    }
    assert_eq!((server.connections().len(), server.requests().len()), (1, 200));
    gateway.stop();
}

#[test]
fn max_requests_per_connection_holds() {
    let server = Server::echo();
    let gateway = before(server.address(), "maxRequestsPerConnection: 5").start();
    let mut client = client_of(&gateway);
    for _ in 0..20 {
        let stream = client.get("/");
        answered(&mut client, stream, 200);
    }
    let seen = server.connections();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|seen| seen.requests.len() == 5), "{seen:?}");
    eventually(SOON, "those that are used up are closed", || {
        server.connections().iter().filter(|seen| seen.ended).count() >= 3
    });
    gateway.stop();
}

#[test]
fn an_idle_connection_is_closed_in_time() {
    let server = Server::echo();
    let gateway = before(server.address(), "idleTimeout: 1s").start();
    let mut client = client_of(&gateway);
    let stream = client.get("/");
    answered(&mut client, stream, 200);
    assert!(!server.connections()[0].ended);
    eventually(SOON, "the idle connection is closed", || {
        server.connections()[0].ended
    });
    let stream = client.get("/");
    answered(&mut client, stream, 200);
    gateway.stop();
}

/// A server that ends each connection with GOAWAY after so many requests, and remembers which ones it processed.
fn leaving(after: usize, code: Code, unprocessed: u32) -> (Server, Arc<Mutex<Vec<String>>>) {
    let processed = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&processed);
    let server = Server::start(&[], move |peer, event| {
        let Event::End(stream) = event else { return };
        if peer.seen.goaway == Some(Code(u32::MAX)) {
            return;
        }
        // A request is sent again twice, so that no more than two may leave it out.
        let leaves = unprocessed == 0 || peer.number < 2;
        if !leaves {
            return process(peer, stream, &record);
        }
        let left = stream.div_ceil(2) as usize > after;
        if left {
            let last = stream.saturating_sub(2 * unprocessed);
            peer.goaway(last, code);
            // Nothing behind it is looked at.
            peer.seen.goaway = Some(Code(u32::MAX));
            let held: Vec<u32> = peer
                .seen
                .requests
                .keys()
                .copied()
                .filter(|held| *held <= last)
                .collect();
            for held in held {
                process(peer, held, &record);
            }
            peer.close();
            return;
        }
        // Those at the end are held back until it is clear whether they count.
        if stream.div_ceil(2) as usize + unprocessed as usize <= after {
            process(peer, stream, &record);
        }
    });
    (server, processed)
}

fn process(peer: &mut Peer, stream: u32, record: &Mutex<Vec<String>>) {
    if peer.request(stream).values("x-processed").is_empty() {
        record.lock().unwrap().push(peer.request(stream).path());
        peer.seen
            .requests
            .get_mut(&stream)
            .unwrap()
            .fields
            .push((b"x-processed".to_vec(), Vec::new()));
        peer.answer(stream, 200, &[], b"ok");
    }
}

/// POSTs through an upstream whose connections end all the time: each is answered, and processed once.
fn loses_nothing(after: usize, code: Code, unprocessed: u32) {
    const ALL: usize = 400;
    let (server, processed) = leaving(after, code, unprocessed);
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    let mut failed = Vec::new();
    let mut open = Vec::new();
    let mut number = 0;
    // Ten at a time; more than are counted, because the server looks at some only when others have come.
    while number < ALL || open.iter().any(|(number, _)| *number < ALL) {
        let stream = client.post(&format!("/{number}"));
        client.send(&Frame::data(flag::END_STREAM, stream, b"content".as_slice()));
        open.push((number, stream));
        number += 1;
        if open.len() == 10 {
            client
                .until("an answer", |connection| {
                    open.iter().any(|(_, stream)| connection.is_over(*stream))
                })
                .unwrap();
        }
        open.retain(|(number, stream)| {
            let answer = client.answer(*stream);
            if client.is_over(*stream) && answer.status != Some(200) {
                failed.push((
                    *number,
                    answer.status,
                    gateway.access_line(&format!("/{number}")).line,
                ));
            }
            !client.is_over(*stream)
        });
    }
    let processed = processed.lock().unwrap().clone();
    let once: BTreeSet<_> = processed.iter().collect();
    assert_eq!(once.len(), processed.len(), "processed twice");
    assert!(
        failed.is_empty(),
        "{} of {ALL}: {:?}",
        failed.len(),
        &failed[..failed.len().min(3)]
    );
    assert!(once.len() >= ALL, "{}", once.len());
    drop(client);
    no_request_active(&gateway);
    gateway.stop();
}

#[test]
fn a_request_that_meets_the_end_of_one_connection_after_the_other_is_not_lost() {
    // More of them than a request has retries.
    let server = Server::start(&[], |peer, event| match event {
        Event::Head(_) if peer.number < 5 => {
            peer.goaway(0, Code::NO_ERROR);
            peer.close();
        }
        _ => echo(peer, event),
    });
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    let stream = client.post("/");
    client.send(&Frame::data(flag::END_STREAM, stream, b"content".as_slice()));
    assert_eq!(answered(&mut client, stream, 200).text(), "content");
    assert_eq!(server.connections().len(), 6);
    no_request_active(&gateway);
    gateway.stop();
}

#[test]
fn a_goaway_that_says_farewell_loses_nothing() {
    loses_nothing(20, Code::NO_ERROR, 0);
}

#[test]
fn what_a_goaway_leaves_out_is_sent_again() {
    loses_nothing(30, Code::NO_ERROR, 3);
}

#[test]
fn what_an_angry_goaway_leaves_out_is_sent_again() {
    loses_nothing(30, Code::INTERNAL_ERROR, 3);
    loses_nothing(30, Code::ENHANCE_YOUR_CALM, 3);
}

#[test]
fn a_server_that_announces_its_end_first_and_ends_later_loses_nothing() {
    let server = Server::start(&[], |peer, event| {
        let Event::End(stream) = event else { return };
        peer.answer(stream, 200, &[], b"ok");
        if stream == 41 {
            // RFC 9113, 6.8: first a warning, then the truth, as Go's and nghttp2's servers do.
            peer.goaway((1 << 31) - 1, Code::NO_ERROR);
        }
        if stream == 45 {
            let last = peer.last();
            peer.goaway(last, Code::NO_ERROR);
            peer.close();
        }
    });
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    for _ in 0..200 {
        let stream = client.post("/");
        client.send(&Frame::data(flag::END_STREAM, stream, b"x".as_slice()));
        answered(&mut client, stream, 200);
    }
    gateway.stop();
}

#[test]
fn an_upstream_that_breaks_off_costs_only_what_was_under_way() {
    let server = Server::silent(&[]);
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    for round in 0..5 {
        let streams: Vec<u32> = (0..20).map(|at| client.post(&format!("/{round}/{at}"))).collect();
        for stream in &streams {
            client.send(&Frame::data(flag::END_STREAM, *stream, b"x".as_slice()));
        }
        client.flush();
        eventually(SOON, "the requests", || {
            server.requests().len() == (round + 1) * 20
        });
        server.on(round, Peer::close);
        for stream in streams {
            answered(&mut client, stream, 503);
        }
        let line = gateway.access_line(&format!("/{round}/0"));
        assert!(line.has("UC"), "{line:?}");
    }
    assert_eq!(server.connections().len(), 5, "each request is sent once");
    no_request_active(&gateway);
    gateway.stop();
}

#[test]
fn a_refused_stream_is_sent_again() {
    let refusals = Arc::new(Mutex::new(BTreeSet::new()));
    let server = Server::start(&[], move |peer, event| match event {
        Event::Head(stream) if refusals.lock().unwrap().insert(peer.request(stream).path()) => {
            peer.reset(stream, Code::REFUSED_STREAM);
        }
        Event::End(stream) if peer.request(stream).reset.is_none() && peer.has(stream) => echo(peer, event),
        _ => {}
    });
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    for round in 0..30 {
        let get = client.get(&format!("/get{round}"));
        let post = client.post(&format!("/post{round}"));
        client.send(&Frame::data(flag::END_STREAM, post, b"content".as_slice()));
        answered(&mut client, get, 200);
        assert_eq!(answered(&mut client, post, 200).text(), "content");
    }
    let one = gateway
        .client()
        .send("POST /one HTTP/1.1\r\nhost: h\r\ncontent-length: 7\r\n\r\ncontent")
        .response();
    assert_eq!((one.status, one.text()), (200, "content"));
    no_request_active(&gateway);
    gateway.stop();
}

#[test]
fn a_stream_that_is_always_refused_is_503_urx() {
    let server = Server::start(&[], |peer, event| {
        if let Event::Head(stream) = event {
            peer.reset(stream, Code::REFUSED_STREAM);
        }
    });
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    let stream = client.get("/refused");
    answered(&mut client, stream, 503);
    let line = gateway.access_line("/refused");
    assert!(line.has("UC") && line.has("URX"), "{line:?}");
    assert_eq!(server.requests().len(), 3, "two retries");
    no_request_active(&gateway);
    gateway.stop();
}

const KEEPALIVE: &str = "http2KeepAlive: {interval: 1s, timeout: 1s}";

/// A gateway that speaks HTTP/2 to these upstreams in turn.
fn among(addresses: &[SocketAddr], policy: &str) -> Gateway {
    let policy = format!("connectionPool: {{http: {{h2UpgradePolicy: UPGRADE}}, {policy}}}");
    Gateway::builder()
        .resources("route", &route_among(addresses, ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, &policy))
        .start()
}

#[test]
fn an_upstream_that_does_not_begin_to_speak_http2_has_not_been_reached() {
    let silent = FaultPeer::start(Fault::NeverAnswers);
    let closing = FaultPeer::start(Fault::ClosesAfterAccept);
    let of_http1 = Nginx::start(&[]);
    let server = Server::start(&[], echo);
    let sick = [
        (silent.address(), "connect_timeout", 503, "UF"),
        (closing.address(), "connect_failed", 503, "UF"),
        (of_http1.address(), "version", 502, "UPE"),
    ];
    for (address, cause, status, flag) in sick {
        let gateway = among(&[address], "tcp: {connectTimeout: 200ms}");
        let mut client = client_of(&gateway);
        let stream = client.get("/alone");
        answered(&mut client, stream, status);
        no_request_active(&gateway);
        let line = gateway.access_line("/alone");
        assert!(line.has(flag), "{cause}: {line:?}");
        gateway.assert_causes(cause, 1);
        gateway.stop();

        // With another one beside it, which has time to begin, nobody notices.
        let gateway = among(&[address, server.address()], "tcp: {connectTimeout: 2s}");
        let mut client = client_of(&gateway);
        for path in ["/first", "/second"] {
            let stream = client.get(path);
            answered(&mut client, stream, 200);
        }
        no_request_active(&gateway);
        gateway.stop();
    }
    assert!(silent.accepted() >= 2, "it was tried");
}

/// It may read the request in the end: what must not be done twice is sent once.
#[test]
fn what_waits_for_an_upstream_that_does_not_begin_is_sent_again_if_it_may_be_done_twice() {
    let silent = [(); 2].map(|()| FaultPeer::start(Fault::NeverAnswers));
    let addresses = silent.each_ref().map(FaultPeer::address);
    let gateway = among(&addresses, "tcp: {connectTimeout: 200ms}");
    let accepted = || silent.iter().map(FaultPeer::accepted).sum::<usize>();
    let mut client = client_of(&gateway);
    let stream = client.post("/once");
    client.upload(stream, b"an order").unwrap();
    answered(&mut client, stream, 503);
    eventually(SOON, "it has come", || accepted() >= 1);
    assert!(gateway.access_line("/once").has("UF"));
    let stream = client.get("/again");
    answered(&mut client, stream, 503);
    eventually(SOON, "it has come, and two retries", || accepted() >= 4);
    gateway.assert_causes("connect_timeout", 2);
    gateway.stop();
    assert_eq!(accepted(), 4, "the first one came once");
}

#[test]
fn an_upstream_that_begins_with_a_mistake_may_have_taken_what_was_sent() {
    // Which only clients say (RFC 9113, 6.5.2).
    let server = Server::start(&[(setting::ENABLE_PUSH, 1)], echo);
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    let stream = client.post("/once");
    client.upload(stream, b"an order").unwrap();
    answered(&mut client, stream, 502);
    assert!(gateway.access_line("/once").has("UPE"));
    gateway.stop();
    assert_eq!(server.connections().len(), 1);
}

#[test]
fn an_upstream_that_breaks_the_protocol_is_502() {
    let server = Server::start(&[], |peer, event| {
        if let Event::Head(stream) = event {
            peer.send(&Frame::new(kind::DATA, flag::NONE, 0, [0; 10]));
            peer.answer(stream, 200, &[], b"too late");
        }
    });
    let gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    let stream = client.get("/broken");
    answered(&mut client, stream, 502);
    assert!(gateway.access_line("/broken").has("UPE"));
    gateway.stop();
}

#[test]
fn keepalive_closes_a_connection_that_is_dead() {
    let server = Server::silent(&[]);
    let gateway = before(server.address(), KEEPALIVE).start();
    let mut client = client_of(&gateway);
    let stream = client.get("/dead");
    client.flush();
    eventually(SOON, "the request", || server.request("/dead").is_some());
    server.on(0, |peer| peer.answers_pings = false);
    answered(&mut client, stream, 503);
    assert!(gateway.access_line("/dead").has("UC"));
    eventually(SOON, "the connection is closed", || server.connections()[0].ended);
    assert!(server.connections()[0].pings >= 1);
    gateway.stop();
}

#[test]
fn keepalive_leaves_a_connection_that_is_alive() {
    let server = Server::silent(&[]);
    let gateway = before(server.address(), KEEPALIVE).start();
    let mut client = client_of(&gateway);
    let stream = client.get("/alive");
    client.flush();
    eventually(SOON, "three pings", || {
        server.connections().first().is_some_and(|seen| seen.pings >= 3)
    });
    server.on_path("/alive", |peer, stream| peer.answer(stream, 200, &[], b""));
    answered(&mut client, stream, 200);
    assert_eq!(server.connections().len(), 1);
    gateway.stop();
}

#[test]
fn a_port_speaks_as_its_protocol_and_the_rule_say() {
    let (one, two) = (Upstream::start(|_| upstream::Answer::ok("1")), Server::echo());
    // The port's protocol, the rule, and whether HTTP/2 comes of them.
    let cases = [
        ("HTTP", "", false),
        ("HTTP", "h2UpgradePolicy: UPGRADE", true),
        ("HTTP", "h2UpgradePolicy: DO_NOT_UPGRADE", false),
        ("HTTP2", "", true),
        ("GRPC", "", true),
    ];
    for (protocol, rule, http2) in cases {
        let address = if http2 { two.address() } else { one.address() };
        let documents = one_route(address, "").replace(
            "ports: [{number: 80, name: http, protocol: HTTP}]\n",
            &format!("ports: [{{number: 80, name: http, protocol: {protocol}}}]\n"),
        );
        let mut builder = Gateway::builder().resources("route", &documents);
        if !rule.is_empty() {
            let policy = format!("connectionPool: {{http: {{{rule}}}}}");
            builder = builder.resources("rule", &traffic_policy(UPSTREAM_HOST, &policy));
        }
        let gateway = builder.start();
        let (ones, twos) = (one.served(), two.requests().len());
        assert_eq!(gateway.get("h", "/").status, 200, "{protocol} {rule}");
        let mut client = client_of(&gateway);
        let stream = client.get("/");
        answered(&mut client, stream, 200);
        let came = (one.served() - ones, two.requests().len() - twos);
        assert_eq!(came, if http2 { (0, 2) } else { (2, 0) }, "{protocol} {rule}");
        gateway.stop();
    }
}

#[test]
fn use_client_protocol_speaks_to_the_upstream_as_the_client_does() {
    let (one, two) = (Upstream::start(|_| upstream::Answer::ok("1")), Server::echo());
    for (address, http2) in [(one.address(), false), (two.address(), true)] {
        let policy = "connectionPool: {http: {useClientProtocol: true}}";
        let gateway = Gateway::builder()
            .resources("route", &one_route(address, ""))
            .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
            .start();
        if http2 {
            let mut client = client_of(&gateway);
            let stream = client.get("/");
            answered(&mut client, stream, 200);
        } else {
            assert_eq!(gateway.get("h", "/").status, 200);
        }
        gateway.stop();
    }
}

/// Sends requests on a connection, ten at a time, until the gateway says that it ends; answers how many were answered.
fn load(address: SocketAddr, sent: &AtomicUsize) -> Result<usize, String> {
    let mut client = Connection::open(Target::cleartext(address))?;
    client.handshake(&[])?;
    let (mut open, mut answered) = (Vec::new(), 0);
    loop {
        while open.len() < 10 && client.goaway.is_none() && !client.closed {
            open.push(client.get("/"));
            sent.fetch_add(1, Ordering::SeqCst);
        }
        if open.is_empty() {
            return Ok(answered);
        }
        let done = client.until("an answer", |connection| {
            open.iter().any(|stream| connection.is_over(*stream)) || connection.goaway.is_some()
        });
        let last = client.goaway.map(|(last, _)| last);
        if let Err(error) = done {
            return Err(format!("{error}: {}", client.told()));
        }
        let mut left = Vec::new();
        for stream in open {
            if client.is_over(stream) {
                let answer = client.answer(stream);
                if answer.status != Some(200) || !answer.ended {
                    return Err(format!("stream {stream}: {:?} {:?}", answer.status, answer.reset));
                }
                answered += 1;
            } else if last.is_none_or(|last| stream <= last) {
                left.push(stream);
            }
        }
        open = left;
        if last.is_some() {
            // Those that are under way are answered; what came behind them was not looked at.
            for stream in open.drain(..) {
                let whole = client.until("an answer", |connection| {
                    connection.is_over(stream) || connection.goaway.is_some_and(|(last, _)| last < stream)
                });
                whole.map_err(|error| format!("{error}: {}", client.told()))?;
                let answer = client.answer(stream);
                if client.is_over(stream) && answer.status == Some(200) && answer.ended {
                    answered += 1;
                } else if client.goaway.is_none_or(|(last, _)| stream <= last) {
                    return Err(format!("stream {stream}: {:?} {:?}", answer.status, answer.reset));
                }
            }
        }
    }
}

#[test]
fn a_drain_under_load_says_goaway_and_loses_no_request() {
    for round in 0..3 {
        let server = Server::echo();
        let mut gateway = before(server.address(), "").shards(2).start();
        let address = gateway.address();
        let sent: [AtomicUsize; 4] = Default::default();
        let results: Vec<_> = thread::scope(|scope| {
            let clients: Vec<_> = sent
                .iter()
                .map(|sent| scope.spawn(|| load(address, sent)))
                .collect();
            eventually(SOON, "some load of each", || {
                sent.iter().all(|sent| sent.load(Ordering::SeqCst) > 250)
            });
            gateway.signal(Signal::TERM);
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        for result in &results {
            assert!(
                result.as_ref().is_ok_and(|answered| *answered > 100),
                "{round}: {results:?}"
            );
        }
        let status = gateway.wait(SOON);
        assert!(status.success(), "{status}");
        assert!(!gateway.log().contains("panicked"));
    }
}

#[test]
fn a_drain_lets_an_open_stream_end_and_refuses_new_ones() {
    let server = Server::silent(&[]);
    let mut gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    let stream = client.get("/long");
    client.flush();
    eventually(SOON, "the request", || server.request("/long").is_some());
    gateway.signal(Signal::TERM);
    client
        .until("GOAWAY", |connection| connection.goaway.is_some())
        .unwrap();
    assert_eq!(client.goaway.map(|(_, code)| code), Some(Code::NO_ERROR));
    server.on_path("/long", |peer, stream| peer.answer(stream, 200, &[], b"at last"));
    assert_eq!(answered(&mut client, stream, 200).text(), "at last");
    client.until_closed().unwrap();
    assert!(gateway.wait(SOON).success());
}

#[test]
fn an_idle_connection_is_told_of_a_drain() {
    let server = Server::echo();
    let mut gateway = before(server.address(), "").start();
    let mut client = client_of(&gateway);
    let stream = client.get("/");
    answered(&mut client, stream, 200);
    gateway.signal(Signal::TERM);
    client
        .until("GOAWAY", |connection| connection.goaway.is_some())
        .unwrap();
    client.until_closed().unwrap();
    assert!(gateway.wait(SOON).success());
}

#[test]
fn h2load_sees_no_failure_while_connections_to_the_upstream_come_and_go() {
    // Each of them takes a hundred requests. Few are under way at a time, since one may be left out twice at most.
    let (server, _) = leaving(100, Code::NO_ERROR, 0);
    let gateway = before(server.address(), "").start();
    let output = Command::new("h2load")
        .args(["-n", "2000", "-c", "1", "-m", "2"])
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("h2load runs (Debian package nghttp2-client)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("2000 2xx"), "{said}");
    assert!(server.connections().len() >= 15);
    gateway.stop();
}

#[test]
fn an_endpoint_that_refuses_connections_is_passed_over() {
    let (held, server) = (isthmus_tests::port::HeldPort::take(), Server::echo());
    let endpoints = [
        Endpoint::new("v1", held.address()),
        Endpoint::new("v1", server.address()),
    ];
    let documents = gateway(80)
        + &service(UPSTREAM_HOST, 80, &endpoints)
        + &virtual_service(&format!("- {}\n", route_to(UPSTREAM_HOST)))
        + &traffic_policy(
            UPSTREAM_HOST,
            "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}",
        );
    let gateway = Gateway::builder().resources("route", &documents).start();
    let mut client = client_of(&gateway);
    for _ in 0..50 {
        let stream = client.post("/");
        client.send(&Frame::data(flag::END_STREAM, stream, b"x".as_slice()));
        answered(&mut client, stream, 200);
    }
    no_request_active(&gateway);
    gateway.stop();
}

/// Clients that leave at any moment take no stream of the shared connection with them.
#[test]
fn clients_that_leave_free_the_streams_of_a_shared_connection() {
    let server = Server::silent(&[(setting::MAX_CONCURRENT_STREAMS, 4)]);
    let gateway = before(server.address(), "").start();
    for round in 0..25 {
        let mut client = client_of(&gateway);
        for at in 0..4 {
            client.get(&format!("/{round}/{at}"));
        }
        client.flush();
        eventually(SOON, "the requests", || {
            server.requests().len() == (round + 1) * 4
        });
        drop(client);
        eventually(SOON, "the streams are reset", || {
            server
                .requests()
                .iter()
                .all(|request| request.reset == Some(Code::CANCEL))
        });
    }
    let seen = server.connections();
    assert!(seen.len() <= 2, "{} connections", seen.len());
    no_request_active(&gateway);
    server.assert_no_violation();
    gateway.stop();
}
