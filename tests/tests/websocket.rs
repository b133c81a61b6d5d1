//! WebSocket through the gateway, in HTTP/1.1 and as extended CONNECT (RFC 8441) on either side; its peers are the
//! `websockets` library, and HAProxy where HTTP/2 is spoken.

use isthmus_tests::cert::Authority;
use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{AccessLine, Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Code, Frame, flag};
use isthmus_tests::h2::hpack::Block;
use isthmus_tests::h2::server::{Event, Server as Scripted};
use isthmus_tests::haproxy::{Haproxy, Sleeve};
use isthmus_tests::python::{self, Server, WEBSOCKET};
use isthmus_tests::resources::{UPSTREAM_HOST, one_route, traffic_policy};
use isthmus_tests::upstream::{Answer, Then, Upstream};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441, 3).
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// What the client checks.
const CHECKS: [&str; 10] = [
    "text",
    "binary",
    "mebibytes",
    "fragments",
    "pings",
    "close_codes",
    "server_speaks_first",
    "subprotocol",
    "refusal",
    "parallel",
];

fn assert_checks(address: SocketAddr) {
    let said = python::run(WEBSOCKET, &["check", &address.to_string()]);
    assert_eq!(said.lines().collect::<Vec<_>>(), CHECKS);
}

fn before(address: SocketAddr, http2: bool) -> Builder {
    let builder = Gateway::builder().resources("route", &one_route(address, ""));
    if http2 {
        let policy = "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}";
        return builder.resources("rule", &traffic_policy(UPSTREAM_HOST, policy));
    }
    builder
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

/// Bytes that came and bytes that were sent, as a line says.
fn bytes(line: &AccessLine) -> (u64, u64) {
    let (_, rest) = line.line.split_once("\" ").expect("a request");
    let (_, rest) = rest.split_once("\" ").expect("a transport's failure");
    let mut words = rest
        .split_whitespace()
        .map(|word| word.parse().expect("a number"));
    (words.next().expect("bytes"), words.next().expect("bytes"))
}

#[test]
fn the_checks_pass_without_a_gateway() {
    let server = Server::start(WEBSOCKET, &["serve"]);
    assert_checks(server.address());
}

/// All checks, with HTTP/2 on either side or none.
fn all_kinds(from_http2: bool, to_http2: bool) {
    let server = Server::start(WEBSOCKET, &["serve"]);
    let leaf = Authority::new().server(&["ws.example"]);
    let haproxy = to_http2.then(|| Haproxy::start(server.address(), &leaf));
    let address = haproxy.as_ref().map_or(server.address(), Haproxy::cleartext);
    let gateway = before(address, to_http2).start();
    let resting = gateway.resting();
    let sleeve = from_http2.then(|| Sleeve::raising(gateway.address()));
    assert_checks(sleeve.as_ref().map_or(gateway.address(), Sleeve::address));
    let line = gateway.access_line("/large");
    let version = if from_http2 { "HTTP/2" } else { "HTTP/1.1" };
    assert!(
        line.line.contains(&format!("GET /large {version}\" 101")),
        "{line:?}"
    );
    let (came, went) = bytes(&line);
    let least = 8 << 20;
    assert!(
        (least..least + 1000).contains(&came) && (least..least + 1000).contains(&went),
        "{line:?}"
    );
    assert_eq!(gateway.access_line("/refused").status, 403);
    no_request_active(&gateway);
    drop(sleeve);
    drop(haproxy);
    gateway.assert_returns_to(&resting);
    gateway.stop();
    let said = server.end();
    for path in [
        "/text 1000",
        "/large 1000",
        "/close/1008 1008",
        "/close/4999 4999",
        "/own/1011 1011",
        "/own/3000 3000",
    ] {
        assert!(said.lines().any(|line| line == path), "{path}: {said}");
    }
    assert!(!said.contains("1006"), "{said}");
}

#[test]
fn http1_passes_to_http1() {
    all_kinds(false, false);
}

#[test]
fn http1_passes_to_http2() {
    all_kinds(false, true);
}

#[test]
fn http2_passes_to_http1() {
    all_kinds(true, false);
}

#[test]
fn http2_passes_to_http2() {
    all_kinds(true, true);
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What proves that the key was understood (RFC 6455, 1.3).
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn wish(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {KEY}\r\n\r\n"
    )
}

/// An upstream that agrees to any upgrade with these fields and these first bytes, and sends back what it gets until
/// nothing comes.
fn agreeing(fields: &'static str, first: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the test's process: no more connections come when its gateway has gone.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || -> std::io::Result<()> {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte)?;
                    head.extend_from_slice(&byte);
                }
                let agreed =
                    format!("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n{fields}\r\n{first}");
                stream.write_all(agreed.as_bytes())?;
                let mut buffer = [0; 4096];
                loop {
                    let count = stream.read(&mut buffer)?;
                    if count == 0 {
                        stream.write_all(b"bye")?;
                        return stream.shutdown(Shutdown::Write);
                    }
                    stream.write_all(&buffer[..count])?;
                }
            });
        }
    });
    address
}

const AGREED: &str = "upgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

fn expect_bytes(client: &mut Client, wanted: &str) {
    let body = client.exactly(wanted.len());
    assert_eq!(String::from_utf8_lossy(&body), wanted);
}

#[test]
fn bytes_right_behind_the_heads_are_not_lost() {
    let gateway = before(agreeing(AGREED, "first"), false).start();
    for _ in 0..10 {
        let mut client = gateway.client();
        client.send(wish("/first") + "and more");
        let (_, status, fields) = client.head().unwrap();
        assert_eq!(status, 101);
        assert_eq!(fields.get("sec-websocket-accept"), Some(ACCEPT));
        assert_eq!(fields.get("upgrade"), Some("websocket"));
        expect_bytes(&mut client, "firstand more");
        client.send("again");
        expect_bytes(&mut client, "again");
        client.half_close();
        expect_bytes(&mut client, "bye");
        client.assert_closed();
    }
    no_request_active(&gateway);
    gateway.stop();
}

#[test]
fn a_client_that_leaves_ends_the_upstreams_connection() {
    let upstream = Upstream::start(|_| {
        Answer::raw(format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{AGREED}\r\n"
        ))
    });
    let gateway = before(upstream.address(), false).start();
    let resting = gateway.resting();
    for round in 0..10 {
        let mut client = gateway.client();
        client.send(wish("/"));
        assert_eq!(client.head().unwrap().1, 101);
        client.abort();
        eventually(SOON, "the upstream's connection has ended", || {
            upstream.connections()[round].ended
        });
    }
    gateway.assert_returns_to(&resting);
    gateway.stop();
}

fn with_upgrades(address: SocketAddr, upgrades: &str) -> Gateway {
    let annotated = format!(
        "metadata: {{name: g, namespace: default, annotations: {{isthmus.dev/upgrades: \"{upgrades}\"}}}}"
    );
    let documents = one_route(address, "").replacen("metadata: {name: g, namespace: default}", &annotated, 1);
    assert!(documents.contains("isthmus.dev/upgrades"));
    Gateway::builder().resources("route", &documents).start()
}

#[test]
fn an_upgrade_that_the_listener_does_not_pass_is_an_ordinary_request() {
    let upstream = Upstream::start(|_| Answer::ok("as usual"));
    let gateway = with_upgrades(upstream.address(), "none");
    let mut client = gateway.client();
    client.send(wish("/ordinary"));
    let response = client.response();
    assert_eq!((response.status, response.text()), (200, "as usual"));
    assert_eq!(client.get("h", "/next").status, 200, "the connection goes on");
    let request = &upstream.requests()[0];
    assert_eq!(
        (request.field("upgrade"), request.field("connection")),
        (None, None)
    );
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_protocol_that_is_listed_passes_and_h2c_never_does_by_default() {
    let address = agreeing("upgrade: chat/2\r\n", "hello");
    let ask = |gateway: &Gateway, protocol: &str| {
        let mut client = gateway.client();
        client.send(format!(
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
        ));
        let status = client.head().map(|(_, status, _)| status);
        (client, status)
    };
    let gateway = with_upgrades(address, "chat/2");
    let (mut client, status) = ask(&gateway, "chat/2");
    assert_eq!(status.unwrap(), 101);
    expect_bytes(&mut client, "hello");
    gateway.stop();
    let upstream = Upstream::start(|_| Answer::ok("as usual"));
    let gateway = with_upgrades(upstream.address(), "*");
    for (_, status) in [ask(&gateway, "h2c"), ask(&gateway, "H2C")] {
        assert_eq!(status.unwrap(), 200);
    }
    for request in upstream.requests() {
        assert_eq!(request.field("upgrade"), None);
    }
    gateway.stop();
}

/// Asks for a WebSocket by extended CONNECT.
fn connect(client: &mut Connection, path: &str) -> u32 {
    let stream = client.next_stream();
    let head = Block::of(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "h"),
        ("sec-websocket-version", "13"),
    ]);
    client.send(&Frame::headers(flag::END_HEADERS, stream, head));
    stream
}

fn two(gateway: &Gateway) -> Connection {
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    client
}

#[test]
fn an_agreement_that_proves_nothing_is_refused() {
    let wrong = "upgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    for fields in [wrong, "upgrade: websocket\r\n", "upgrade: other\r\n", ""] {
        let gateway = before(agreeing(fields, ""), false).start();
        let mut client = two(&gateway);
        let stream = connect(&mut client, "/proof");
        let answer = client.whole_answer(stream).unwrap();
        assert_eq!(answer.status, Some(502), "{fields:?}");
        assert!(gateway.access_line("/proof").has("UPE"));
        no_request_active(&gateway);
        gateway.stop();
    }
    // Clients of HTTP/1.1 check the proof themselves; what was agreed on must be what was asked for.
    for fields in ["upgrade: other\r\n", ""] {
        let gateway = before(agreeing(fields, ""), false).start();
        let mut client = gateway.client();
        client.send(wish("/proof"));
        assert_eq!(client.response().status, 502, "{fields:?}");
        gateway.stop();
    }
}

#[test]
fn an_agreement_that_nobody_asked_for_is_refused() {
    let gateway = before(agreeing(AGREED, ""), false).start();
    assert_eq!(gateway.get("h", "/unasked").status, 502);
    assert!(gateway.access_line("/unasked").has("UPE"));
    gateway.stop();
}

#[test]
fn an_upstream_of_http2_that_offers_no_extended_connect_gets_none() {
    let server = Scripted::echo();
    let gateway = before(server.address(), true).start();
    let mut client = gateway.client();
    client.send(wish("/none"));
    let status = client.response().status;
    assert!((500..=599).contains(&status), "{status}");
    assert!(server.requests().is_empty(), "{:?}", server.requests());
    gateway.stop();
}

#[test]
fn extended_connect_reaches_the_upstream_as_it_came() {
    let server = Scripted::start(&[(ENABLE_CONNECT_PROTOCOL, 1)], |peer, event| match event {
        Event::Head(stream) if peer.request(stream).path() == "/refused" => {
            peer.answer(stream, 403, &[], b"no")
        }
        Event::Head(stream) => peer.head(stream, 200, &[("sec-websocket-protocol", "chat")], false),
        Event::Data(stream) => {
            let body = std::mem::take(&mut peer.seen.requests.get_mut(&stream).unwrap().body);
            peer.data(stream, &body, false);
        }
        Event::End(stream) => peer.data(stream, b"bye", true),
        _ => {}
    });
    let gateway = before(server.address(), true).start();
    let mut client = two(&gateway);
    for _ in 0..3 {
        let stream = connect(&mut client, "/through");
        client
            .until("the agreement", |connection| {
                connection.answer(stream).status == Some(200)
            })
            .unwrap();
        for size in [1, 100, 10_000] {
            let had = client.answer(stream).body.len();
            client.send(&Frame::data(flag::NONE, stream, vec![b'x'; size]));
            client
                .until("the echo", |connection| {
                    connection.answer(stream).body.len() == had + size
                })
                .unwrap();
        }
        client.send(&Frame::data(flag::END_STREAM, stream, b"end".as_slice()));
        let answer = client.whole_answer(stream).unwrap();
        assert!(answer.ended && answer.text().ends_with("endbye"), "{answer:?}");
        assert_eq!(answer.field("sec-websocket-protocol").as_deref(), Some("chat"));
        assert_eq!(answer.field("sec-websocket-accept"), None);
    }
    let stream = connect(&mut client, "/refused");
    let answer = client.whole_answer(stream).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (Some(403), "no"));
    let request = server.request("/through").unwrap();
    assert_eq!(request.field(":method").as_deref(), Some("CONNECT"));
    assert_eq!(request.field(":protocol").as_deref(), Some("websocket"));
    assert_eq!(request.field("sec-websocket-version").as_deref(), Some("13"));
    assert_eq!(request.field("sec-websocket-key"), None);
    let line = gateway.access_line("/through");
    assert_eq!(bytes(&line), (10_104, 10_107), "{line:?}");
    assert_eq!(client.violation, None);
    server.assert_no_violation();
    // A client that resets its stream is seen by the upstream.
    let stream = connect(&mut client, "/left");
    client
        .until("the agreement", |connection| {
            connection.answer(stream).status == Some(200)
        })
        .unwrap();
    client.send(&Frame::rst_stream(stream, Code::CANCEL));
    client.flush();
    eventually(SOON, "the upstream's stream is reset", || {
        server.request("/left").unwrap().reset.is_some()
    });
    no_request_active(&gateway);
    gateway.stop();
}

#[test]
fn an_upstream_that_breaks_off_is_seen_by_the_client() {
    let upstream = Upstream::start(|_| {
        let agreed =
            format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{AGREED}\r\nlast words");
        Answer::raw(agreed).then(Then::Close)
    });
    let gateway = before(upstream.address(), false).start();
    let mut client = gateway.client();
    client.send(wish("/over"));
    assert_eq!(client.head().unwrap().1, 101);
    expect_bytes(&mut client, "last words");
    client.half_close();
    client.assert_closed();
    assert_eq!(gateway.access_line("/over").status, 101);
    no_request_active(&gateway);
    gateway.stop();
}

#[test]
fn silence_ends_in_time() {
    let gateway = before(agreeing(AGREED, ""), false)
        .settings("streamIdleTimeout: 1s\n")
        .start();
    let mut client = gateway.client();
    client.send(wish("/silent"));
    assert_eq!(client.head().unwrap().1, 101);
    client.send("a");
    expect_bytes(&mut client, "a");
    let _reset_or_end = client.read_some();
    let line = gateway.access_line("/silent");
    assert!(line.status == 101 && line.has("SI"), "{line:?}");
    no_request_active(&gateway);
    gateway.stop();
}

/// Going away, as a server says it, and a client's answer, masked by zeros.
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];
const SO_IT_IS: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

#[test]
fn a_drain_lets_a_websocket_go_on_and_says_goodbye_before_its_time_is_over() {
    let server = Server::start(WEBSOCKET, &["serve"]);
    for (timeout, leaves, answers) in [("2s", false, true), ("2s", false, false), ("60s", true, false)] {
        let mut gateway = before(server.address(), false)
            .arg("--drain-timeout")
            .arg(timeout)
            .start();
        let mut client = gateway.client();
        client.send(wish("/drain"));
        assert_eq!(client.head().unwrap().1, 101);
        gateway.signal(Signal::TERM);
        eventually(SOON, "the port is closed", || {
            TcpStream::connect(gateway.address()).is_err()
        });
        // A ping of an empty message, masked by zeros, and its answer.
        client.send([0x89, 0x80, 0, 0, 0, 0]);
        assert_eq!(client.exactly(2), [0x8a, 0]);
        if !leaves {
            assert_eq!(client.exactly(4), GOING_AWAY);
        }
        if answers {
            client.send(SO_IT_IS);
            client.assert_closed();
        }
        if leaves || answers {
            drop(client);
        }
        let status = gateway.wait(SOON);
        assert!(status.success(), "{status}");
        assert!(!gateway.log().contains("panicked"));
        // Whoever does not answer is cut, and that is told.
        let is_cut = !leaves && !answers;
        let line = gateway.access_line("/drain");
        assert_eq!(line.line.contains("drain_timeout"), is_cut, "{line:?}");
        let told = gateway.log();
        assert!(told.contains(&format!("cut={}", u8::from(is_cut))), "{told}");
    }
}

#[test]
fn a_goodbye_comes_between_two_frames() {
    // Each is told at a moment of its own in the second half of the time: of so many, many by the middle of that.
    const CLIENTS: usize = 24;
    const TIMEOUT: Duration = Duration::from_secs(20);
    const STEPS: u16 = 56;
    const STEP: u16 = 5;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut gateway = before(listener.local_addr().unwrap(), false)
        .arg("--drain-timeout")
        .arg(format!("{}s", TIMEOUT.as_secs()))
        .start();
    let agreed = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n{AGREED}\r\n");
    let mut tunnels: Vec<(Client, TcpStream)> = (0..CLIENTS)
        .map(|_| {
            let mut client = gateway.client();
            client.send(wish("/slow"));
            let (mut upstream, _) = listener.accept().unwrap();
            let _length = upstream.read(&mut [0; 4096]).unwrap();
            upstream.write_all(agreed.as_bytes()).unwrap();
            assert_eq!(client.head().unwrap().1, 101);
            (client, upstream)
        })
        .collect();
    gateway.signal(Signal::TERM);
    let begun = Instant::now();
    // A message whose end comes when many have been told for long, and one behind it.
    let length = STEPS * STEP + 1;
    let [high, low] = length.to_be_bytes();
    for (_, upstream) in &mut tunnels {
        upstream.write_all(&[0x82, 126, high, low]).unwrap();
    }
    for step in 1..=u32::from(STEPS) {
        for (_, upstream) in &mut tunnels {
            upstream.write_all(&[0x88; STEP as usize]).unwrap();
        }
        // A pace, not a synchronisation.
        let due = TIMEOUT * 7 / 10 * step / u32::from(STEPS);
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    for (_, upstream) in &mut tunnels {
        upstream.write_all(&[0x88, 0x81, 1, b'x']).unwrap();
    }
    let ends = tunnels.into_iter().map(|(mut client, mut upstream)| {
        thread::spawn(move || {
            let message = client.exactly(4 + usize::from(length));
            assert_eq!(message[..4], [0x82, 126, high, low]);
            assert!(message[4..].iter().all(|byte| *byte == 0x88), "{message:?}");
            let mut next = client.exactly(3);
            let waited = next != [0x81, 1, b'x'];
            if !waited {
                next = client.exactly(3);
            }
            next.extend(client.exactly(1));
            assert_eq!(next, GOING_AWAY);
            client.send(SO_IT_IS);
            let mut answer = [0; 8];
            upstream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, SO_IT_IS, "the client's word goes on to the upstream");
            client.assert_closed();
            waited
        })
    });
    let ends: Vec<_> = ends.collect();
    let waited = ends
        .into_iter()
        .filter_map(|end| end.join().unwrap().then_some(()))
        .count();
    assert!(waited > 0, "no goodbye had to wait for the end of a message");
    assert!(gateway.wait(SOON).success());
}
