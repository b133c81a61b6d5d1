//! Header blocks over several frames: what may stand between them (RFC 9113, 4.3, 5.5, 6.2 and 6.10), and which
//! CONTINUATION belongs to none.

use super::{Case, Expect, REFUSED_PATH};
use crate::h2::client::{Connection, FRAME_BYTES};
use crate::h2::frame::{Code, Frame, flag, kind};
use crate::h2::hpack::{Block, Indexing};

const PROTOCOL: Expect = Expect::ConnectionError(&[Code::PROTOCOL_ERROR]);
const COMPRESSION: Expect = Expect::ConnectionError(&[Code::COMPRESSION_ERROR]);

pub(super) fn cases() -> Vec<Case> {
    let mut cases = interrupted();
    cases.extend(strays());
    cases.extend(broken());
    cases.extend(legal());
    cases.extend(too_much());
    cases
}

/// Frames that may not stand inside of a header block.
fn interruptions() -> Vec<(&'static str, Frame)> {
    let small = Vec::from(Block::new().indexed(2));
    vec![
        ("DATA", Frame::data(flag::NONE, 1, b"abc".as_slice())),
        (
            "HEADERS of the same stream",
            Frame::headers(flag::END_HEADERS, 1, small.clone()),
        ),
        (
            "HEADERS of another stream",
            Frame::headers(flag::END_HEADERS, 3, small.clone()),
        ),
        ("PRIORITY", Frame::priority(1, 0, 1)),
        ("RST_STREAM", Frame::rst_stream(1, Code::CANCEL)),
        ("SETTINGS", Frame::settings(&[])),
        ("the acknowledgement of SETTINGS", Frame::settings_ack()),
        ("PING", Frame::ping(flag::NONE, [0; 8])),
        ("GOAWAY", Frame::goaway(0, Code::NO_ERROR, b"")),
        ("WINDOW_UPDATE", Frame::window_update(0, 1)),
        ("WINDOW_UPDATE of the stream", Frame::window_update(1, 1)),
        (
            "CONTINUATION of another stream",
            Frame::continuation(flag::END_HEADERS, 3, small),
        ),
        ("an unknown type", Frame::new(kind::UNKNOWN, 0, 0, [0; 8])),
        (
            "an unknown type of the stream",
            Frame::new(kind::UNKNOWN, 0, 1, [0; 8]),
        ),
    ]
}

fn interrupted() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, frame) in interruptions() {
        let section = if frame.kind == kind::UNKNOWN { "5.5" } else { "6.2" };
        let name = format!("{what} behind HEADERS without END_HEADERS");
        let case = Case::sends(section, name, PROTOCOL, move |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::END_STREAM, 1, block));
            c.send(&frame);
        });
        cases.push(case.without_probe());
    }
    for (what, frame) in interruptions() {
        let section = if frame.kind == kind::UNKNOWN {
            "5.5"
        } else {
            "6.10"
        };
        let name = format!("{what} behind CONTINUATION without END_HEADERS");
        let case = Case::sends(section, name, PROTOCOL, move |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::END_STREAM, 1, block));
            c.send(&Frame::continuation(flag::NONE, 1, Block::of(&[("a", "b")])));
            c.send(&frame);
        });
        cases.push(case.without_probe());
    }
    cases
}

fn strays() -> Vec<Case> {
    fn stray(c: &mut Connection) {
        c.send(&Frame::continuation(
            flag::END_HEADERS,
            1,
            Block::of(&[("a", "b")]),
        ));
    }
    let on_connection = || Frame::continuation(flag::END_HEADERS, 0, Block::of(&[("a", "b")]));
    let mut cases = Vec::new();
    cases.push(Case::sends(
        "6.10",
        "CONTINUATION on the connection",
        PROTOCOL,
        move |c| {
            c.send(&on_connection());
        },
    ));
    let name = "CONTINUATION on the connection, inside of a header block";
    cases.push(Case::sends("6.10", name, PROTOCOL, move |c| {
        let block = c.head("GET", "/");
        c.send(&Frame::headers(flag::END_STREAM, 1, block));
        c.send(&on_connection());
    }));
    // RFC 9113, 6.10 has PROTOCOL_ERROR for each CONTINUATION that continues nothing; where the stream has ended, 5.1
    // has STREAM_CLOSED for it.
    let ended = Expect::ConnectionError(&[Code::PROTOCOL_ERROR, Code::STREAM_CLOSED]);
    cases.push(Case::sends(
        "6.10",
        "CONTINUATION behind HEADERS with END_HEADERS",
        PROTOCOL,
        |c| {
            c.post("/");
            stray(c);
        },
    ));
    let name = "CONTINUATION behind CONTINUATION with END_HEADERS";
    cases.push(Case::sends("6.10", name, PROTOCOL, |c| {
        let block = c.head("POST", "/");
        c.send(&Frame::headers(flag::NONE, 1, block));
        c.send(&Frame::continuation(flag::END_HEADERS, 1, []));
        stray(c);
    }));
    cases.push(Case::sends("6.10", "CONTINUATION behind DATA", PROTOCOL, |c| {
        let stream = c.post("/");
        c.send(&Frame::data(flag::NONE, stream, b"abc".as_slice()));
        stray(c);
    }));
    cases.push(Case::sends("6.10", "CONTINUATION behind trailers", ended, |c| {
        let stream = c.post("/");
        c.send(&Frame::headers(flag::WHOLE, stream, Block::of(&[("x-end", "1")])));
        stray(c);
    }));
    cases.push(Case::sends(
        "5.1",
        "half-closed (remote): CONTINUATION",
        ended,
        |c| {
            c.get("/");
            stray(c);
        },
    ));
    cases.push(Case::plays(
        "5.1",
        "closed by its end: CONTINUATION",
        ended,
        |c| {
            let stream = c.get("/");
            c.answered(stream, 200)?;
            stray(c);
            Ok(())
        },
    ));
    cases.push(Case::sends(
        "5.1",
        "closed by RST_STREAM: CONTINUATION",
        ended,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::rst_stream(stream, Code::CANCEL));
            stray(c);
        },
    ));
    cases.push(Case::sends("5.1", "idle: CONTINUATION", PROTOCOL, stray));
    cases
}

fn broken() -> Vec<Case> {
    let mut cases = Vec::new();
    // A literal whose name is said to have ten octets, and ends.
    let cut = |c: &Connection| c.head("GET", "/").raw([0, 10, b'a']);
    cases.push(Case::sends(
        "4.3",
        "a header block that does not decompress",
        COMPRESSION,
        move |c| {
            let block = cut(c);
            c.send(&Frame::headers(flag::WHOLE, 1, block));
        },
    ));
    let name = "a header block that does not decompress, over two frames";
    cases.push(Case::sends("4.3", name, COMPRESSION, move |c| {
        let block = Vec::from(cut(c));
        let (first, second) = block.split_at(block.len() / 2);
        c.send(&Frame::headers(flag::END_STREAM, 1, first));
        c.send(&Frame::continuation(flag::END_HEADERS, 1, second));
    }));
    cases.push(Case::sends(
        "4.3",
        "trailers that do not decompress",
        COMPRESSION,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::headers(
                flag::WHOLE,
                stream,
                [0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            ));
        },
    ));
    cases
}

fn legal() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends(
        "6.10",
        "a header block over two frames",
        Expect::Answer(200),
        |c| {
            let block = Vec::from(c.head("GET", "/"));
            let (first, second) = block.split_at(block.len() / 2);
            c.send(&Frame::headers(flag::END_STREAM, 1, first));
            c.send(&Frame::continuation(flag::END_HEADERS, 1, second));
        },
    ));
    cases.push(Case::sends(
        "6.10",
        "a header block that ends in an empty frame",
        Expect::Answer(200),
        |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::END_STREAM, 1, block));
            c.send(&Frame::continuation(flag::END_HEADERS, 1, []));
        },
    ));
    cases.push(Case::sends(
        "6.10",
        "a header block that begins with an empty frame",
        Expect::Answer(200),
        |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::END_STREAM, 1, []));
            c.send(&Frame::continuation(flag::END_HEADERS, 1, block));
        },
    ));
    cases.push(Case::sends(
        "6.10",
        "a header block octet by octet",
        Expect::Answer(200),
        |c| {
            // GET, the scheme, the path / and the authority by its name: few octets, so that no limit is near.
            let scheme = if c.scheme() == "https" { 7 } else { 6 };
            let block = Block::new()
                .indexed(2)
                .indexed(scheme)
                .indexed(4)
                .raw([0x41, 3])
                .raw("a.b");
            let block = Vec::from(block);
            let (first, rest) = block.split_at(1);
            let (middle, last) = rest.split_at(rest.len() - 1);
            c.send(&Frame::headers(flag::END_STREAM, 1, first));
            for octet in middle.chunks(1) {
                c.send(&Frame::continuation(flag::NONE, 1, octet));
                c.flush();
            }
            c.send(&Frame::continuation(flag::END_HEADERS, 1, last));
        },
    ));
    cases.push(Case::sends(
        "6.10",
        "padded HEADERS, continued",
        Expect::Answer(200),
        |c| {
            let block = Vec::from(c.head("GET", "/"));
            let (first, second) = block.split_at(7);
            c.send(
                &Frame::headers(flag::END_STREAM, 1, first)
                    .with_priority(0, 3)
                    .with_padding(9, 9),
            );
            c.send(&Frame::continuation(flag::END_HEADERS, 1, second));
        },
    ));
    cases.push(Case::sends(
        "6.10",
        "trailers over two frames",
        Expect::Answer(200),
        |c| {
            let stream = c.post("/");
            let block = Vec::from(Block::of(&[("x-end", "a value of some length")]));
            let (first, second) = block.split_at(5);
            c.send(&Frame::headers(flag::END_STREAM, stream, first));
            c.send(&Frame::continuation(flag::END_HEADERS, stream, second));
        },
    ));
    cases
}

/// Blocks that end, and are larger than anybody needs (RFC 9113, 10.5.1).
fn too_much() -> Vec<Case> {
    /// As many frames as the largest block here has, each as long as any server takes.
    const FRAMES: usize = 64;
    fn in_frames(c: &mut Connection, block: &[u8]) {
        c.send(&Frame::headers(flag::END_STREAM, 1, []));
        for fragment in block.chunks(FRAME_BYTES) {
            c.send(&Frame::continuation(flag::NONE, 1, fragment));
        }
        c.send(&Frame::continuation(flag::END_HEADERS, 1, []));
    }
    let mut cases = Vec::new();
    let name = "a field of a mebibyte";
    let case = Case::sends("10.5.1", name, Expect::Refused, |c| {
        let block = c
            .head("GET", REFUSED_PATH)
            .field("x-large", "l".repeat(FRAMES * FRAME_BYTES));
        in_frames(c, block.bytes());
    });
    cases.push(case.may_close());
    let name = "a mebibyte of small fields";
    let case = Case::sends("10.5.1", name, Expect::Refused, |c| {
        let field = Block::of(&[("x-small", "value")]);
        let many = field.bytes().repeat(FRAMES * FRAME_BYTES / field.bytes().len());
        let block = c.head("GET", REFUSED_PATH).raw(many);
        in_frames(c, block.bytes());
    });
    cases.push(case.may_close());
    // A few octets in the block, many in the request: each index stands for a field of 4,000.
    let name = "a field that grows to mebibytes by its index";
    let case = Case::sends("10.5.1", name, Expect::Refused, |c| {
        let head = c.head("GET", REFUSED_PATH);
        let block = head.literal(Indexing::Incremental, "x-bomb", "b".repeat(4_000));
        let block = (0..10_000).fold(block, |block, _| block.indexed(62));
        c.send(&Frame::headers(flag::WHOLE, 1, block));
    });
    cases.push(case.may_close());
    cases
}
