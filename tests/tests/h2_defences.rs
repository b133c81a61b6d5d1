//! Clients of HTTP/2 that do what costs them little and a server much: their connection ends after a bounded number of
//! frames, and nobody else notices.

use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::{Answer, Connection, PREFACE};
use isthmus_tests::h2::frame::{Code, Frame, MAX_31, flag, kind, setting};
use isthmus_tests::h2::hpack::{Block, Indexing};
use isthmus_tests::h2::server::{Event, Server, echo};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::{UPSTREAM_HOST, one_route, traffic_policy};
use isthmus_tests::upstream::{self, Upstream};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// What an attack may add to the gateway's memory while it lasts.
const MEMORY_KIB: u64 = 32 * 1024;

fn two(address: SocketAddr, settings: &[(u16, u32)]) -> Connection {
    let mut client = Connection::open(Target::cleartext(address)).unwrap();
    client.handshake(settings).unwrap();
    client
}

fn answered(client: &mut Connection, stream: u32, status: u16) -> Answer {
    client
        .answered(stream, status)
        .unwrap_or_else(|error| panic!("{error}: {}", client.told()))
}

/// An upstream that never answers `/silent`, and echoes everything else.
fn upstream() -> Server {
    Server::start(&[], |peer, event| match event {
        Event::End(stream) if peer.request(stream).path() == "/silent" => {}
        event => echo(peer, event),
    })
}

fn gateway_before(server: &Server) -> Gateway {
    Gateway::builder()
        .resources("route", &one_route(server.address(), ""))
        .resources(
            "rule",
            &traffic_policy(
                UPSTREAM_HOST,
                "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}",
            ),
        )
        .start()
}

/// Sends GETs on a connection of its own until it is over; answers how many were served.
fn neighbour(address: SocketAddr, over: &AtomicBool, served: &AtomicU64) {
    let mut client = two(address, &[]);
    while !over.load(Ordering::SeqCst) {
        let stream = client.get("/neighbour");
        answered(&mut client, stream, 200);
        served.fetch_add(1, Ordering::SeqCst);
    }
}

/// Ends the neighbour, also when its test fails.
struct EndsOnDrop<'a>(&'a AtomicBool);

impl Drop for EndsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Plays an attack of at most so many steps: the gateway ends the connection with ENHANCE_YOUR_CALM before they are all
/// done, counts it under this label, and says it in the log; a neighbour on the same shard is served all the while.
fn ends(
    label: &str,
    steps: u32,
    begin: impl FnOnce(&mut Connection),
    mut step: impl FnMut(&mut Connection, u32),
) {
    let server = upstream();
    let gateway = gateway_before(&server);
    let address = gateway.address();
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let good = scope.spawn(|| neighbour(address, &over, &served));
        let ends = EndsOnDrop(&over);
        eventually(SOON, "the neighbour is served", || {
            served.load(Ordering::SeqCst) > 5
        });
        let before = gateway.facts().rss_kib;
        let mut client = two(address, &[]);
        begin(&mut client);
        let mut done = 0;
        while done < steps && client.goaway.is_none() && !client.closed {
            for _ in 0..20 {
                step(&mut client, done);
                done += 1;
            }
            client.exchange();
        }
        let told = client.until("GOAWAY", |connection| connection.goaway.is_some());
        let grown = gateway.facts().rss_kib.saturating_sub(before);
        println!(
            "{label}: {:?} after at most {done} of {steps} steps, {grown} KiB",
            client.goaway
        );
        told.unwrap_or_else(|error| panic!("{error}: {}", client.told()));
        assert_eq!(client.goaway.map(|(_, code)| code), Some(Code::ENHANCE_YOUR_CALM));
        client.until_closed().unwrap();
        assert!(grown < MEMORY_KIB, "{grown} KiB");
        let from = served.load(Ordering::SeqCst);
        eventually(SOON, "the neighbour is still served", || {
            served.load(Ordering::SeqCst) > from + 5
        });
        drop(ends);
        good.join().unwrap();
    });
    gateway.assert_causes(label, 1);
    eventually(SOON, "a line in the access log", || {
        gateway
            .access_log()
            .iter()
            .any(|line| line.line.contains("http2.") && line.has("DPE"))
    });
    eventually(SOON, "no request is under way", || {
        let page = gateway.get_admin("/clusters");
        let mut counts = page
            .text()
            .lines()
            .filter_map(|line| line.split_once("::rq_active::"));
        counts.all(|(_, count)| count == "0")
    });
    let mut client = two(address, &[]);
    let stream = client.get("/after");
    answered(&mut client, stream, 200);
    gateway.stop();
}

#[test]
fn requests_that_are_cancelled_at_once_end_their_connection() {
    ends(
        "http2_rapid_reset",
        5000,
        |_| {},
        |client, _| {
            let stream = client.get("/silent");
            client.send(&Frame::rst_stream(stream, Code::CANCEL));
        },
    );
}

#[test]
fn requests_that_are_broken_after_their_head_end_their_connection() {
    ends(
        "http2_stream_errors",
        500,
        |_| {},
        |client, _| {
            let stream = client.post("/silent");
            // RFC 9113, 6.9.1: a window above 2^31-1 is an error of the stream.
            client.send(&Frame::window_update(stream, MAX_31));
            // One after the other: many at once are refused, because those before them still count.
            let _ended = client.until("the reset", |connection| {
                connection.is_over(stream) || connection.goaway.is_some()
            });
        },
    );
}

#[test]
fn requests_beyond_the_limit_of_streams_end_their_connection() {
    let fill = |client: &mut Connection| {
        for _ in 0..100 {
            client.get("/silent");
        }
        client.round_trip().unwrap();
    };
    ends("http2_refused_streams", 5000, fill, |client, _| {
        client.get("/silent");
    });
}

#[test]
fn a_head_in_ever_more_parts_ends_its_connection() {
    let begin = |client: &mut Connection| {
        let (stream, head) = (client.next_stream(), client.head("GET", "/"));
        client.send(&Frame::headers(flag::END_STREAM, stream, head));
    };
    ends("http2_continuations", 200, begin, |client, number| {
        let field = Block::new().field(format!("x-{number}"), "v");
        client.send(&Frame::continuation(flag::NONE, 1, field));
    });
}

#[test]
fn a_head_without_bytes_in_its_parts_ends_its_connection() {
    let begin = |client: &mut Connection| {
        let (stream, head) = (client.next_stream(), client.head("GET", "/"));
        client.send(&Frame::headers(flag::END_STREAM, stream, head));
    };
    ends("http2_continuations", 200, begin, |client, _| {
        client.send(&Frame::continuation(flag::NONE, 1, []));
    });
}

#[test]
fn a_head_of_many_bytes_ends_its_connection() {
    let begin = |client: &mut Connection| {
        let (stream, head) = (client.next_stream(), client.head("GET", "/"));
        client.send(&Frame::headers(flag::END_STREAM, stream, head));
    };
    ends("http2_header_block", 20, begin, |client, number| {
        let value = "v".repeat(16_300);
        let field = Block::new().literal(Indexing::Without, format!("x-{number}"), value);
        client.send(&Frame::continuation(flag::NONE, 1, field));
    });
}

#[test]
fn settings_over_and_over_end_their_connection() {
    ends(
        "http2_settings",
        500,
        |_| {},
        |client, _| client.send(&Frame::settings(&[])),
    );
    ends(
        "http2_settings",
        500,
        |_| {},
        |client, number| {
            client.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, number)]));
        },
    );
}

#[test]
fn pings_over_and_over_end_their_connection() {
    ends(
        "http2_pings",
        1000,
        |_| {},
        |client, number| {
            client.send(&Frame::ping(flag::NONE, u64::from(number).to_be_bytes()));
        },
    );
}

#[test]
fn priorities_over_and_over_end_their_connection() {
    ends(
        "http2_control_frames",
        5000,
        |_| {},
        |client, number| {
            client.send(&Frame::priority(2 * number + 1, 0, 5));
        },
    );
}

#[test]
fn frames_that_nobody_knows_end_their_connection() {
    ends(
        "http2_control_frames",
        5000,
        |_| {},
        |client, _| {
            client.send(&Frame::new(kind::UNKNOWN, flag::NONE, 0, [0; 100]));
        },
    );
}

#[test]
fn empty_data_over_and_over_ends_its_connection() {
    let post = |client: &mut Connection| {
        client.post("/silent");
    };
    ends("http2_empty_data", 500, post, |client, _| {
        client.send(&Frame::data(flag::NONE, 1, []));
    });
}

#[test]
fn data_of_padding_alone_ends_its_connection() {
    let post = |client: &mut Connection| {
        client.post("/silent");
    };
    ends("http2_empty_data", 500, post, |client, _| {
        client.send(&Frame::data(flag::NONE, 1, []).with_padding(0, 0));
    });
}

#[test]
fn tiny_data_over_and_over_ends_its_connection() {
    let post = |client: &mut Connection| {
        client.post("/silent");
    };
    ends("http2_tiny_data", 10_000, post, |client, _| {
        client.send(&Frame::data(flag::NONE, 1, *b"x"));
    });
}

#[test]
fn windows_that_are_opened_over_and_over_end_their_connection() {
    ends(
        "http2_window_updates",
        5000,
        |_| {},
        |client, _| {
            client.send(&Frame::window_update(0, 1));
        },
    );
    let post = |client: &mut Connection| {
        client.post("/silent");
    };
    ends("http2_window_updates", 5000, post, |client, _| {
        client.send(&Frame::window_update(1, 1));
    });
}

/// What sane clients do much of ends nothing.
#[test]
fn a_busy_client_is_not_taken_for_an_attacker() {
    let server = upstream();
    let gateway = gateway_before(&server);
    let mut client = two(gateway.address(), &[]);
    for round in 0..40 {
        let streams: Vec<u32> = (0..50).map(|_| client.post("/")).collect();
        for stream in &streams {
            // A message of gRPC in three pieces, and one of five that is cancelled.
            client.send(&Frame::data(flag::NONE, *stream, [0; 5]));
            client.send(&Frame::data(flag::NONE, *stream, *b"abc"));
            client.send(&Frame::data(flag::END_STREAM, *stream, []));
        }
        for (at, stream) in streams.into_iter().enumerate() {
            if at % 5 == 0 && round % 2 == 0 {
                client.send(&Frame::rst_stream(stream, Code::CANCEL));
            } else {
                answered(&mut client, stream, 200);
            }
        }
    }
    assert_eq!(client.goaway, None, "{}", client.told());
    gateway.stop();
}

/// What is legal and odd is taken however much of it there is in a connection's life, as long as it does not come at once.
#[test]
fn empty_data_and_small_parts_of_heads_are_taken_for_ever() {
    let server = upstream();
    let gateway = gateway_before(&server);
    let mut client = two(gateway.address(), &[]);
    for round in 0..300 {
        let stream = client.next_stream();
        let head = Vec::from(client.head("POST", "/odd").field("x-round", format!("{round}")));
        let (first, rest) = head.split_at(1);
        client.send(&Frame::headers(flag::NONE, stream, first));
        for part in rest.chunks(rest.len() / 20 + 1) {
            client.send(&Frame::continuation(flag::NONE, stream, part));
        }
        client.send(&Frame::continuation(flag::END_HEADERS, stream, []));
        client.send(&Frame::data(flag::NONE, stream, []));
        client.send(&Frame::data(flag::NONE, stream, *b"a body"));
        client.send(&Frame::data(flag::NONE, stream, []));
        client.send(&Frame::data(flag::END_STREAM, stream, []));
        assert_eq!(answered(&mut client, stream, 200).text(), "a body");
    }
    assert_eq!(client.goaway, None, "{}", client.told());
    let requests = server.requests();
    assert_eq!(requests.len(), 300);
    assert_eq!(requests[299].field("x-round").as_deref(), Some("299"));
    gateway.stop();
}

/// An upstream's connection lives long, and many clients' requests are on it.
#[test]
fn an_upstream_may_send_empty_data_for_ever() {
    let server = Server::start(&[], |peer, event| {
        if let Event::End(stream) = event {
            peer.head(stream, 200, &[], false);
            for _ in 0..10 {
                peer.send(&Frame::data(flag::NONE, stream, []));
            }
            peer.send(&Frame::data(flag::NONE, stream, *b"a body"));
            peer.send(&Frame::data(flag::NONE, stream, []));
            peer.send(&Frame::data(flag::END_STREAM, stream, []));
        }
    });
    let gateway = gateway_before(&server);
    let mut client = two(gateway.address(), &[]);
    for _ in 0..50 {
        let stream = client.get("/");
        assert_eq!(answered(&mut client, stream, 200).text(), "a body");
    }
    assert_eq!(server.connections().len(), 1, "none was given up");
    gateway.stop();
}

#[test]
fn a_stream_whose_client_takes_nothing_ends_in_time_and_its_neighbours_go_on() {
    let nginx = Nginx::start(&[("/large", &vec![b'x'; 1 << 20]), ("/small", b"small")]);
    let gateway = Gateway::builder()
        .resources("route", &one_route(nginx.address(), ""))
        .settings("streamIdleTimeout: 1s\n")
        .start();
    let mut client = two(gateway.address(), &[(setting::INITIAL_WINDOW_SIZE, 0)]);
    let stalled: Vec<u32> = (0..50).map(|_| client.get("/large")).collect();
    for stream in &stalled {
        client
            .until("the end", |connection| connection.answer(*stream).reset.is_some())
            .unwrap();
    }
    let line = gateway.access_line("/large");
    assert!(line.has("SI"), "{line:?}");
    let stream = client.get("/small");
    client.send(&Frame::window_update(stream, 1000));
    assert_eq!(answered(&mut client, stream, 200).text(), "small");
    gateway.stop();
}

/// A client whose windows are wide and who reads nothing keeps what it asked for in the gateway, and only for a time.
#[test]
fn a_client_that_never_reads_its_socket_ends_in_time() {
    let nginx = Nginx::start(&[("/large", &vec![b'x'; 4 << 20])]);
    let gateway = Gateway::builder()
        .resources("route", &one_route(nginx.address(), ""))
        .settings("streamIdleTimeout: 1s\nidleTimeout: 2s\n")
        .start();
    let before = gateway.facts().rss_kib;
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let mut socket = TcpStream::connect(gateway.address()).unwrap();
        let mut bytes = PREFACE.to_vec();
        bytes.extend(Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)]).encode());
        bytes.extend(Frame::window_update(0, (1 << 31) - 1 - 65_535).encode());
        for stream in 0..100 {
            let head = Block::of(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/large"),
                (":authority", "h"),
            ]);
            bytes.extend(Frame::headers(flag::WHOLE, 2 * stream + 1, head).encode());
        }
        socket.write_all(&bytes).unwrap();
        sockets.push(socket);
    }
    let mut grown = 0;
    eventually(2 * SOON, "the connections are closed", || {
        grown = grown.max(gateway.facts().rss_kib.saturating_sub(before));
        gateway.access_log().len() > 100
            && gateway.metric("isthmus_downstream_connections_active") == Some(0.0)
    });
    println!("{grown} KiB for 400 streams of 4 MiB");
    assert!(grown < 400 * 300, "{grown} KiB");
    gateway.stop();
}

#[test]
fn answers_that_wait_for_a_socket_that_nobody_reads_end_in_time() {
    // Small enough that each answer is handed over whole, large enough that the socket takes only some.
    let nginx = Nginx::start(&[("/medium", &vec![b'x'; 100_000])]);
    let gateway = Gateway::builder()
        .resources("route", &one_route(nginx.address(), ""))
        .settings("streamIdleTimeout: 1s\nidleTimeout: 2s\n")
        .start();
    let mut socket = TcpStream::connect(gateway.address()).unwrap();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)]).encode());
    bytes.extend(Frame::window_update(0, (1 << 31) - 1 - 65_535).encode());
    for stream in 0..100 {
        let head = Block::of(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/medium"),
            (":authority", "h"),
        ]);
        bytes.extend(Frame::headers(flag::WHOLE, 2 * stream + 1, head).encode());
    }
    socket.write_all(&bytes).unwrap();
    eventually(SOON, "all streams are answered or given up", || {
        gateway.access_log().len() >= 100
    });
    eventually(SOON, "the connection is closed", || {
        gateway.metric("isthmus_downstream_connections_active") == Some(0.0)
    });
    gateway.stop();
}

#[test]
fn a_head_that_grows_by_its_table_is_431_or_ends_the_connection() {
    let server = upstream();
    let gateway = gateway_before(&server);
    let before = gateway.facts().rss_kib;
    let mut ended = 0;
    for _ in 0..20 {
        let mut client = two(gateway.address(), &[]);
        let stream = client.next_stream();
        let mut head = client
            .head("GET", "/bomb")
            .literal(Indexing::Incremental, "x-bomb", "v".repeat(3900));
        for _ in 0..10_000 {
            head = head.indexed(62);
        }
        client.send(&Frame::headers(flag::WHOLE, stream, head));
        let over = client.until("an end", |connection| {
            connection.is_over(stream) || connection.goaway.is_some()
        });
        let answer = client.answer(stream);
        if over.is_err() || client.goaway.is_some() {
            ended += 1;
        } else {
            assert!(answer.status == Some(431) || answer.reset.is_some(), "{answer:?}");
        }
    }
    let grown = gateway.facts().rss_kib.saturating_sub(before);
    println!("{ended} of 20 connections ended, {grown} KiB");
    assert!(grown < MEMORY_KIB, "{grown} KiB");
    assert!(server.requests().is_empty());
    gateway.stop();
}

#[test]
fn a_head_that_is_too_large_is_431_and_the_connection_goes_on() {
    let server = upstream();
    let gateway = gateway_before(&server);
    let mut client = two(gateway.address(), &[]);
    for round in 0..3 {
        let stream = client.next_stream();
        let head = client.head("GET", &format!("/large{round}")).bytes().to_vec();
        client.send(&Frame::headers(flag::END_STREAM, stream, head));
        for part in 0..5 {
            let field = Block::new().literal(Indexing::Without, format!("x-{part}"), "v".repeat(16_000));
            let flags = if part == 4 { flag::END_HEADERS } else { flag::NONE };
            client.send(&Frame::continuation(flags, stream, field));
        }
        let answer = client
            .whole_answer(stream)
            .unwrap_or_else(|error| panic!("{error}: {}", client.told()));
        assert_eq!(answer.status, Some(431), "{}", client.told());
    }
    let stream = client.next_stream();
    let mut head = client.head("GET", "/many");
    for number in 0..101 {
        head = head.field(format!("x-{number}"), "v");
    }
    client.send(&Frame::headers(flag::WHOLE, stream, head));
    answered(&mut client, stream, 431);
    eventually(SOON, "a line in the access log", || {
        let lines = gateway.access_log();
        lines
            .iter()
            .any(|line| line.status == 431 && line.has("DPE") && line.line.contains("too_many_fields"))
    });
    let stream = client.get("/next");
    answered(&mut client, stream, 200);
    gateway.stop();
}

#[test]
fn a_client_that_never_finishes_its_preface_is_closed() {
    let server = upstream();
    let gateway = Gateway::builder()
        .resources("route", &one_route(server.address(), ""))
        .settings("headerTimeout: 1s\n")
        .start();
    for part in [&PREFACE[..3], &PREFACE[..17]] {
        let mut socket = TcpStream::connect(gateway.address()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.write_all(part).unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).expect("the gateway closes");
    }
    gateway.stop();
}

#[test]
fn a_connection_without_a_stream_is_closed_in_time() {
    let upstream = Upstream::start(|_| upstream::Answer::ok("x"));
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .settings("idleTimeout: 1s\n")
        .start();
    let mut client = two(gateway.address(), &[]);
    let stream = client.get("/");
    answered(&mut client, stream, 200);
    client
        .until("GOAWAY", |connection| connection.goaway.is_some())
        .unwrap();
    assert_eq!(client.goaway, Some((1, Code::NO_ERROR)));
    client.until_closed().unwrap();
    gateway.stop();
}

#[test]
fn requests_per_connection_end_a_connection_in_an_orderly_way() {
    let server = upstream();
    let gateway = Gateway::builder()
        .resources("route", &one_route(server.address(), ""))
        .resources(
            "rule",
            &traffic_policy(
                UPSTREAM_HOST,
                "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}",
            ),
        )
        .settings("requestsPerConnection: 10\n")
        .start();
    let mut client = two(gateway.address(), &[]);
    let mut served = 0;
    while client.goaway.is_none() {
        let stream = client.get("/");
        answered(&mut client, stream, 200);
        served += 1;
    }
    assert!((9..=12).contains(&served), "{served}");
    client.until_closed().unwrap();
    gateway.stop();
}

#[test]
fn limits_of_the_settings_file_count() {
    let server = upstream();
    let gateway = Gateway::builder()
        .resources("route", &one_route(server.address(), ""))
        .settings("http2Pings: 5\nhttp2ConcurrentStreams: 7\n")
        .start();
    let mut client = two(gateway.address(), &[]);
    assert_eq!(client.peer.max_concurrent_streams, Some(7));
    for number in 0..20_u64 {
        client.send(&Frame::ping(flag::NONE, number.to_be_bytes()));
    }
    client
        .until("GOAWAY", |connection| connection.goaway.is_some())
        .unwrap();
    assert_eq!(client.goaway.map(|(_, code)| code), Some(Code::ENHANCE_YOUR_CALM));
    gateway.assert_causes("http2_pings", 1);
    gateway.stop();
}
