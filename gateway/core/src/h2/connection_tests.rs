//! Both sides of a connection against each other, and one against peers that break the rules.

use super::super::frame::written::frame;
use super::super::hpack;
use super::*;
use crate::limits::Settings;
use crate::random::Random;
use std::collections::HashMap as Map;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[derive(Default)]
struct Told(u32);

impl Holder for Told {
    fn tell(&mut self) {
        self.0 += 1;
    }
}

fn options(role: Role) -> Options {
    let limits = Settings::default().http2_limits();
    Options {
        role,
        stream_window: 256 * 1024,
        connection_window: 1024 * 1024,
        streams: 100,
        header_bytes: 60 * 1024,
        header_count: 100,
        limits: (role == Role::Server).then_some(limits),
    }
}

fn server() -> Connection<Told> {
    Connection::new(options(Role::Server), Instant::now())
}

fn client() -> Connection<Told> {
    Connection::new(options(Role::Client), Instant::now())
}

/// A block that asks for `/`.
fn ask(out: &mut Vec<u8>) {
    hpack::write_pseudo(out, Pseudo::Method, b"POST");
    hpack::write_pseudo(out, Pseudo::Scheme, b"https");
    hpack::write_pseudo(out, Pseudo::Authority, b"h.example");
    hpack::write_pseudo(out, Pseudo::Path, b"/");
}

fn answer(out: &mut Vec<u8>) {
    hpack::write_status(out, 200);
}

fn block(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// What a client begins with.
fn hello() -> Vec<u8> {
    [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

/// A server that has read what its client begins with, and then this.
fn server_after(bytes: &[u8]) -> Connection<Told> {
    let mut server = server();
    server.receive(&hello(), Instant::now());
    let sent = server.output().len();
    server.sent(sent);
    server.receive(bytes, Instant::now());
    server
}

/// The frames that wait to be sent: kind, stream, and the code of those that have one.
fn frames<T: Holder>(connection: &Connection<T>) -> Vec<(FrameKind, u32, Option<u32>)> {
    let mut bytes = connection.output();
    if connection.options.role == Role::Client && bytes.starts_with(PREFACE) {
        bytes = &bytes[PREFACE.len()..];
    }
    let mut found = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk() {
        let header = FrameHeader::read(*header);
        let (payload, rest) = rest.split_at(header.length as usize);
        let code = match header.kind {
            FrameKind::RstStream => number(payload),
            FrameKind::GoAway => number(&payload[4..]),
            _ => None,
        };
        found.push((header.kind, header.stream, code));
        bytes = rest;
    }
    found
}

/// Moves what one has to send to the other, in pieces of any size; answers whether there was anything.
fn pump(from: &mut Connection<Told>, to: &mut Connection<Told>, random: &mut Random, now: Instant) -> bool {
    let has_output = !from.output().is_empty();
    let most = [3, 40, 1 << 20][random.below(3) as usize];
    let piece = from.output().len().min(1 + random.below(most) as usize);
    if !to.is_clogged() {
        let bytes = from.output()[..piece].to_vec();
        from.sent(piece);
        to.receive(&bytes, now);
    }
    has_output
}

/// What one side does about one stream.
struct Talk {
    /// What it still has to send, and what it has got.
    send: Vec<u8>,
    got: Vec<u8>,
    has_head: bool,
    is_ended: bool,
    is_over: bool,
}

impl Talk {
    fn new(random: &mut Random) -> Self {
        let most = [1, 100, 300_000][random.below(3) as usize];
        Self {
            send: (0..random.below(most)).map(|at| at as u8).collect(),
            got: Vec::new(),
            has_head: false,
            is_ended: false,
            is_over: false,
        }
    }

    /// Sends and takes some.
    fn go_on(&mut self, side: &mut Connection<Told>, key: Key, random: &mut Random) {
        if self.is_over {
            return;
        }
        if !self.has_head {
            self.has_head = side.take_head(key).is_some();
        }
        let mut buffer = Vec::new();
        if side.take_data(key, &mut buffer) {
            self.got.extend_from_slice(&buffer);
            side.passed_on(key, buffer.len());
        }
        if !self.is_ended {
            let part = self.send.len().min(1 + random.below(100_000) as usize);
            let is_last = part == self.send.len();
            let sent = side.send_data(key, &self.send[..part], is_last).unwrap();
            self.send.drain(..sent);
            self.is_ended = is_last && self.send.is_empty();
        }
        if self.is_ended && self.has_head && side.is_received(key) {
            self.is_over = true;
            side.release(key);
        }
    }
}

#[test]
fn whatever_is_sent_arrives_however_it_is_cut() {
    for seed in 0..300 {
        let mut random = Random::from_seed(seed);
        let now = Instant::now();
        let mut server = Connection::new(
            Options {
                streams: 1 + random.below(8) as u32,
                stream_window: 1 + random.below(90_000) as u32,
                connection_window: 65_535 + random.below(100_000) as u32,
                ..options(Role::Server)
            },
            now,
        );
        let mut client = client();
        let exchanges = 1 + random.below(20) as usize;
        let mut asked: Vec<(Key, Talk, Vec<u8>)> = Vec::new();
        let mut asked_of: Map<u32, (Key, Talk)> = Map::new();
        let mut answers: Vec<Vec<u8>> = Vec::new();
        for _ in 0..200_000 {
            if asked.len() < exchanges && client.is_settled() && random.below(3) == 0 {
                let key = client.open(false, false, ask).unwrap();
                let talk = Talk::new(&mut random);
                let sends = talk.send.clone();
                asked.push((key, talk, sends));
            }
            let mut moved = pump(&mut client, &mut server, &mut random, now);
            moved |= pump(&mut server, &mut client, &mut random, now);
            while let Some(key) = server.accept() {
                assert!(server.send_head(key, false, answer));
                let talk = Talk::new(&mut random);
                answers.push(talk.send.clone());
                asked_of.insert(answers.len() as u32 - 1, (key, talk));
            }
            for (key, talk, _) in &mut asked {
                talk.go_on(&mut client, *key, &mut random);
            }
            for (key, talk) in asked_of.values_mut() {
                talk.go_on(&mut server, *key, &mut random);
            }
            let is_done = asked.len() == exchanges && asked.iter().all(|(_, talk, _)| talk.is_over);
            if is_done && !moved {
                break;
            }
        }
        assert_eq!((client.found, server.found), (None, None), "seed {seed}");
        assert_eq!(asked.len(), exchanges);
        for (at, (_, talk, sends)) in asked.iter().enumerate() {
            assert!(talk.is_over, "seed {seed}, stream {at}");
            // Streams are opened in the order in which they were asked for.
            let (_, theirs) = &asked_of[&(at as u32)];
            assert!(
                talk.got == answers[at] && theirs.got == *sends,
                "seed {seed}, stream {at}"
            );
        }
        assert!(!client.has_streams() && !server.has_streams(), "seed {seed}");
        assert_eq!((client.active, server.active), (0, 0));
        assert!(client.by_id.is_empty() && server.by_id.is_empty());
    }
}

#[test]
fn however_bytes_are_cut_the_same_comes_of_them() {
    for seed in 0..3000 {
        let mut random = Random::from_seed(seed);
        let now = Instant::now();
        let mut bytes = hello();
        let mut next = 1;
        for _ in 0..random.below(30) {
            let stream = [0, 1, next, next + 2, 2][random.below(5) as usize];
            let kind = random.below(11) as u8;
            let payload = match kind {
                HEADERS if random.below(4) != 0 => {
                    next += 2;
                    block(ask)
                }
                SETTINGS => [0, 4, 0, 0, 1, 0].repeat(random.below(3) as usize),
                PING | GOAWAY => vec![0; 8],
                RST_STREAM | WINDOW_UPDATE => vec![0, 0, 0, random.below(3) as u8],
                PRIORITY => vec![0, 0, 0, random.below(3) as u8, 0],
                _ => (0..random.below(30)).map(|_| random.below(20) as u8).collect(),
            };
            let flags = [END_HEADERS, END_HEADERS | END_STREAM, 0, 0xff][random.below(4) as usize];
            bytes.extend(frame(kind, flags, stream, &payload));
        }
        let mut whole = Connection::<Told>::new(options(Role::Server), now);
        whole.receive(&bytes, now);
        let mut pieces = Connection::<Told>::new(options(Role::Server), now);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let piece = split(&mut rest, 1 + random.below(30) as usize);
            pieces.receive(piece, now);
        }
        assert_eq!(frames(&whole), frames(&pieces), "seed {seed}");
        assert_eq!(
            (whole.found, whole.room),
            (pieces.found, pieces.room),
            "seed {seed}"
        );
        assert_eq!(whole.opened.len(), pieces.opened.len(), "seed {seed}");
    }
}

#[test]
fn any_bytes_are_taken_by_either_side() {
    for seed in 0..3000 {
        let mut random = Random::from_seed(seed);
        let junk: Vec<u8> = (0..random.below(600))
            .map(|_| random.next_u64() as u8 >> random.below(8))
            .collect();
        let server = server_after(&junk);
        assert!(server.kept_bytes() < 64 * 1024);
        let mut client = client();
        let key = client.open(true, false, ask);
        client.receive(&frame(SETTINGS, 0, 0, &[]), Instant::now());
        client.receive(&junk, Instant::now());
        if let Some(key) = key {
            client.release(key);
        }
    }
}

#[test]
fn what_breaks_the_connection_ends_it_with_its_code() {
    let ask = block(ask);
    let opened = frame(HEADERS, END_HEADERS, 1, &ask);
    let asked = frame(HEADERS, END_HEADERS | END_STREAM, 1, &ask);
    let cases: &[(Misbehaviour, &[&[u8]])] = &[
        (Misbehaviour::FrameSize, &[&frame(PING, 0, 0, &[0; 7])]),
        (Misbehaviour::FrameSize, &[&frame(SETTINGS, 1, 0, &[0; 6])]),
        (Misbehaviour::FrameSize, &[&frame(SETTINGS, 0, 0, &[0; 5])]),
        (Misbehaviour::FrameSize, &[&frame(DATA, 0, 1, &[0; 16_385])]),
        (
            Misbehaviour::WindowSize,
            &[&frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])],
        ),
        (
            Misbehaviour::Protocol,
            &[&frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1])],
        ),
        (
            Misbehaviour::Protocol,
            &[&frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])],
        ),
        (Misbehaviour::Protocol, &[&frame(SETTINGS, 0, 1, &[])]),
        (Misbehaviour::Protocol, &[&frame(PING, 0, 1, &[0; 8])]),
        (Misbehaviour::Protocol, &[&frame(DATA, 0, 0, &[])]),
        (Misbehaviour::Protocol, &[&frame(DATA, 0, 1, &[])]),
        (Misbehaviour::Protocol, &[&frame(HEADERS, END_HEADERS, 2, &ask)]),
        (Misbehaviour::Protocol, &[&frame(RST_STREAM, 0, 1, &[0; 4])]),
        (Misbehaviour::Protocol, &[&frame(WINDOW_UPDATE, 0, 0, &[0; 4])]),
        (
            Misbehaviour::WindowSize,
            &[&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])],
        ),
        (
            Misbehaviour::Protocol,
            &[&frame(CONTINUATION, END_HEADERS, 1, &ask)],
        ),
        (
            Misbehaviour::Protocol,
            &[&frame(HEADERS, 0, 1, &ask), &frame(PING, 0, 0, &[0; 8])],
        ),
        (
            Misbehaviour::Protocol,
            &[&frame(HEADERS, 0, 1, &ask), &frame(CONTINUATION, 0, 3, &[])],
        ),
        (Misbehaviour::Protocol, &[&frame(5, 0, 1, &[0; 4])]),
        (
            Misbehaviour::Protocol,
            &[&frame(PRIORITY, 0, 3, &[0, 0, 0, 3, 0])],
        ),
        (Misbehaviour::Protocol, &[&opened, &frame(DATA, 8, 1, &[5, 0, 0])]),
        (
            Misbehaviour::Compression,
            &[&frame(HEADERS, END_HEADERS, 1, &[0x80])],
        ),
        (Misbehaviour::StreamClosed, &[&asked, &frame(DATA, 0, 1, &[1])]),
        (Misbehaviour::StreamClosed, &[&asked, &asked]),
    ];
    for (at, (found, bytes)) in cases.iter().enumerate() {
        let server = server_after(&bytes.concat());
        assert_eq!(server.misbehaviour(), Some(*found), "case {at}");
        let last = frames(&server).pop();
        assert_eq!(
            last,
            Some((FrameKind::GoAway, 0, Some(found.code()))),
            "case {at}"
        );
        assert!(server.is_over());
    }
    let mut server = server();
    server.receive(
        &[PREFACE.to_vec(), frame(PING, 0, 0, &[0; 8])].concat(),
        Instant::now(),
    );
    assert_eq!(server.misbehaviour(), Some(Misbehaviour::NoSettings));
    let mut server = self::server();
    server.receive(b"GET / HTTP/1.1\r\n", Instant::now());
    assert_eq!(server.misbehaviour(), Some(Misbehaviour::Protocol));
}

#[test]
fn what_breaks_a_stream_ends_it_alone() {
    let ask = block(ask);
    let with = |name: &[u8], value: &[u8]| {
        let mut block = ask.clone();
        hpack::write_field(&mut block, crate::header::HeaderId::Other, name, value);
        block
    };
    let headers = |block: &[u8]| frame(HEADERS, END_HEADERS, 1, block);
    let length = headers(&with(b"content-length", b"3"));
    let data = |length: usize, flags| frame(DATA, flags, 1, &vec![0; length]);
    let mut upper = ask.clone();
    upper.extend(b"\x00\x01A\x01b");
    let mut late = with(b"a", b"b");
    hpack::write_pseudo(&mut late, Pseudo::Path, b"/");
    let mut twice = ask.clone();
    hpack::write_pseudo(&mut twice, Pseudo::Path, b"/x");
    let cases: &[(u32, &[&[u8]])] = &[
        (code::PROTOCOL_ERROR, &[&headers(&upper)]),
        (code::PROTOCOL_ERROR, &[&headers(&late)]),
        (code::PROTOCOL_ERROR, &[&headers(&twice)]),
        (code::PROTOCOL_ERROR, &[&headers(&[0x82, 0x87])]),
        (code::PROTOCOL_ERROR, &[&headers(&with(b"connection", b"close"))]),
        (code::PROTOCOL_ERROR, &[&headers(&with(b"te", b"gzip"))]),
        (code::PROTOCOL_ERROR, &[&headers(&with(b"a", b"b\x00"))]),
        (code::PROTOCOL_ERROR, &[&length, &data(4, 0)]),
        (code::PROTOCOL_ERROR, &[&length, &data(2, END_STREAM)]),
        (
            code::PROTOCOL_ERROR,
            &[&headers(&ask), &headers(&with(b"a", b"b"))],
        ),
        (
            code::PROTOCOL_ERROR,
            &[&headers(&ask), &frame(HEADERS, END_HEADERS | END_STREAM, 1, &ask)],
        ),
        (
            code::PROTOCOL_ERROR,
            &[&headers(&ask), &frame(WINDOW_UPDATE, 0, 1, &[0; 4])],
        ),
        (
            code::FLOW_CONTROL_ERROR,
            &[
                &headers(&ask),
                &frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]),
            ],
        ),
    ];
    for (at, (code, bytes)) in cases.iter().enumerate() {
        let mut server = server_after(&bytes.concat());
        assert_eq!(server.misbehaviour(), None, "case {at}");
        let last = frames(&server).pop();
        assert_eq!(last, Some((FrameKind::RstStream, 1, Some(*code))), "case {at}");
        // What was on its way means nothing, and the next stream is served.
        let more = [data(10, 0), frame(HEADERS, END_HEADERS | END_STREAM, 3, &ask)].concat();
        server.receive(&more, Instant::now());
        assert_eq!(server.misbehaviour(), None, "case {at}");
        let key = std::iter::from_fn(|| server.accept()).last().unwrap();
        assert_eq!(server.failure(key), None, "case {at}");
        assert_eq!(server.stream(key).unwrap().id, 3);
    }
}

#[test]
fn streams_beyond_what_is_allowed_are_refused_and_their_fields_are_read_all_the_same() {
    let mut bytes = Vec::new();
    for at in 0..102 {
        // Each adds an entry to the table, and the last uses it.
        let mut ask = block(ask);
        ask.extend(if at < 101 {
            &b"\x40\x01a\x01b"[..]
        } else {
            &[0x80 | 62]
        });
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * at + 1, &ask));
    }
    let mut server = server_after(&bytes);
    assert_eq!(
        frames(&server),
        [201, 203].map(|id| (FrameKind::RstStream, id, Some(code::REFUSED_STREAM)))
    );
    assert_eq!(std::iter::from_fn(|| server.accept()).count(), 100);
}

#[test]
fn a_head_that_is_too_large_is_handed_over_as_such() {
    let mut ask = block(ask);
    let large = vec![b'x'; 15_000];
    (0..5).for_each(|_| hpack::write_field(&mut ask, crate::header::HeaderId::Other, b"a", &large));
    let mut bytes = Vec::new();
    let fragments: Vec<&[u8]> = ask.chunks(16_000).collect();
    for (at, fragment) in fragments.iter().enumerate() {
        let (kind, first) = if at == 0 {
            (HEADERS, END_STREAM)
        } else {
            (CONTINUATION, 0)
        };
        let last = if at + 1 == fragments.len() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, first | last, 1, fragment));
    }
    let mut server = server_after(&bytes);
    assert_eq!(server.misbehaviour(), None);
    let key = server.accept().unwrap();
    assert!(server.take_head(key).unwrap().is_too_large());
}

#[test]
fn windows_open_again_for_what_nobody_takes() {
    // All that a client sends on streams that are given up counts, and is given back.
    let mut server = server_after(&[]);
    let now = Instant::now();
    for at in 0..400 {
        let id = 2 * at + 1;
        server.receive(&frame(HEADERS, END_HEADERS, id, &block(ask)), now);
        let key = server.accept().unwrap();
        if at % 3 == 0 {
            server.release(key);
        }
        for _ in 0..3 {
            server.receive(&frame(DATA, 8, id, &[&[9][..], &[0; 9_999]].concat()), now);
        }
        if at % 3 == 1 {
            let mut buffer = Vec::new();
            assert!(server.take_data(key, &mut buffer));
            server.passed_on(key, buffer.len());
        }
        server.release(key);
        let sent = server.output().len();
        server.sent(sent);
    }
    assert_eq!(server.misbehaviour(), None);
    assert_eq!(server.room + i64::from(server.untold), 1024 * 1024);
}

#[test]
fn a_server_that_leaves_serves_what_crosses_its_word() {
    let asks = |id| frame(HEADERS, END_HEADERS | END_STREAM, id, &block(ask));
    let mut server = server_after(&asks(1));
    let first = server.accept().unwrap();
    server.leave();
    assert_eq!(
        frames(&server),
        [
            (FrameKind::GoAway, 0, Some(code::NO_ERROR)),
            (FrameKind::Ping, 0, None)
        ]
    );
    let now = Instant::now();
    server.receive(&asks(3), now);
    let second = server.accept().unwrap();
    server.receive(&frame(PING, 1, 0, &LEAVING), now);
    assert_eq!(
        frames(&server).pop(),
        Some((FrameKind::GoAway, 0, Some(code::NO_ERROR)))
    );
    server.receive(&asks(5), now);
    assert_eq!(server.accept(), None);
    for key in [first, second] {
        assert!(!server.is_over());
        assert!(server.send_head(key, true, answer));
        server.release(key);
    }
    assert!(server.is_over());
    assert_eq!(server.misbehaviour(), None);
}

#[test]
fn a_client_whose_server_leaves_knows_what_was_left_out() {
    let mut client = client();
    let now = Instant::now();
    client.receive(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 3]), now);
    let keys: Vec<Key> = (0..5).map(|_| client.open(true, false, ask).unwrap()).collect();
    // Two wait until the server takes more.
    assert_eq!(client.active, 3);
    client.receive(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88]), now);
    assert!(client.is_received(keys[0]));
    client.release(keys[0]);
    assert_eq!((client.active, client.own_last), (3, 7));
    client.receive(&frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]), now);
    let failures: Vec<_> = keys[1..].iter().map(|key| client.failure(*key)).collect();
    let left_out = Some(Failure::LeftOut);
    assert_eq!(failures, [None, left_out, left_out, left_out]);
    assert!(!client.takes_streams() && client.open(true, false, ask).is_none());
    client.receive(&frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]), now);
    assert_eq!(
        client.failure(keys[1]),
        Some(Failure::Reset(code::REFUSED_STREAM))
    );
    assert!(!client.is_over());
    for key in keys {
        client.release(key);
    }
    assert!(client.is_over());
}

#[test]
fn interim_answers_come_before_the_last_and_trailers_behind_it() {
    let mut client = client();
    let now = Instant::now();
    let key = client.open(true, false, ask).unwrap();
    let mut bytes = frame(SETTINGS, 0, 0, &[]);
    let hints = block(|out| hpack::write_status(out, 103));
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &hints));
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &block(answer)));
    bytes.extend(frame(DATA, 0, 1, b"some"));
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x01a\x01b"));
    client.receive(&bytes, now);
    assert_eq!(client.take_head(key).unwrap().status(), Some(103));
    assert_eq!(client.take_head(key).unwrap().status(), Some(200));
    assert!(client.take_head(key).is_none());
    let mut data = Vec::new();
    assert!(!client.is_received(key) && client.take_data(key, &mut data));
    assert_eq!(data, b"some");
    assert!(client.is_received(key));
    assert_eq!(client.take_trailers(key).unwrap().list.len(), 1);
    assert!(client.holder(key).unwrap().0 > 0);
}

#[test]
fn what_waits_to_be_sent_is_bounded_and_streams_take_turns() {
    let mut client = client();
    let now = Instant::now();
    let wide = [0, 4, 0x7f, 0xff, 0xff, 0xff];
    client.receive(&frame(SETTINGS, 0, 0, &wide), now);
    client.receive(&frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]), now);
    let keys: Vec<Key> = (0..3).map(|_| client.open(false, false, ask).unwrap()).collect();
    let data = vec![0; 1 << 20];
    let mut sent = [0; 3];
    for turn in 0..300 {
        let at = turn % 3;
        sent[at] += client.send_data(keys[at], &data, false).unwrap();
        assert!(client.output().len() <= OUTPUT_MAX + 4096);
        if turn % 5 == 0 {
            let all = client.output().len();
            client.sent(all);
        }
    }
    assert!(sent.iter().all(|bytes| *bytes > 0), "{sent:?}");
    assert!(client.holder(keys[1]).unwrap().0 > 0);
}
