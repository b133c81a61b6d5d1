//! The preface (RFC 9113, 3.4), the layout of frames (4.1), their sizes (4.2), PING (6.7) and GOAWAY (6.8).

use super::{Case, Expect, check};
use crate::h2::client::{FRAME_BYTES, PREFACE};
use crate::h2::frame::{Code, Frame, RESERVED_BIT, flag, kind, setting};

const PROTOCOL: Expect = Expect::ConnectionError(&[Code::PROTOCOL_ERROR]);
const FRAME_SIZE: Expect = Expect::ConnectionError(&[Code::FRAME_SIZE_ERROR]);
const FRAME_SIZE_OF_STREAM: Expect = Expect::StreamError(&[Code::FRAME_SIZE_ERROR]);
const NO_PREFACE: Expect = Expect::End(&[Code::PROTOCOL_ERROR]);

pub(super) fn cases() -> Vec<Case> {
    let mut cases = preface();
    cases.extend(layout());
    cases.extend(reserved_bits());
    cases.extend(sizes());
    cases.extend(fixed_sizes());
    cases.extend(ping());
    cases.extend(goaway());
    cases
}

fn preface() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes) in [
        (
            "a preface of another version",
            b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n".as_slice(),
        ),
        (
            "a preface that goes wrong in its middle",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        ),
        (
            "a preface that goes wrong at its last octet",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r",
        ),
        (
            "something else than a preface",
            b"INVALID CONNECTION PREFACE\r\n\r\n",
        ),
    ] {
        let case = Case::sends("3.4", name, NO_PREFACE, move |c| {
            c.bytes(bytes);
            c.send(&Frame::settings(&[]));
        });
        cases.push(case.without_preface().without_probe());
    }
    for length in [1, 10, PREFACE.len() - 1] {
        let name = format!("a preface that ends after {length} octets");
        let case = Case::sends("3.4", name, NO_PREFACE, move |c| {
            c.bytes(&PREFACE[..length]);
            c.finish();
        });
        cases.push(case.without_preface().without_probe());
    }
    for (name, frame) in [
        (
            "a preface without SETTINGS, then PING",
            Frame::ping(flag::NONE, [0; 8]),
        ),
        (
            "a preface without SETTINGS, then WINDOW_UPDATE",
            Frame::window_update(0, 1),
        ),
        (
            "a preface without SETTINGS, then GOAWAY",
            Frame::goaway(0, Code::NO_ERROR, b""),
        ),
        (
            "a preface without SETTINGS, then an unknown type",
            Frame::new(kind::UNKNOWN, 0, 0, []),
        ),
    ] {
        let case = Case::sends("3.4", name, NO_PREFACE, move |c| {
            c.bytes(PREFACE);
            c.send(&frame);
        });
        cases.push(case.without_preface());
    }
    let case = Case::sends(
        "3.4",
        "a preface without SETTINGS, then HEADERS",
        NO_PREFACE,
        |c| {
            c.bytes(PREFACE);
            c.get("/");
        },
    );
    cases.push(case.without_preface());
    let case = Case::plays("3.4", "a preface octet by octet", Expect::Answer(200), |c| {
        for octet in PREFACE.chunks(1) {
            c.bytes(octet);
            c.flush();
        }
        c.send_slowly(&Frame::settings(&[]));
        c.get("/");
        Ok(())
    });
    cases.push(case.without_preface());
    let case = Case::sends(
        "3.4",
        "a preface and a request at once",
        Expect::Answer(200),
        |c| {
            c.bytes(PREFACE);
            c.send(&Frame::settings(&[]));
            c.get("/");
        },
    );
    cases.push(case.without_preface());
    cases
}

fn layout() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, stream, flags, length) in [
        ("an unknown type on the connection", 0, 0, 8),
        ("an unknown type without a payload", 0, 0, 0),
        ("an unknown type with every flag", 0, 0xff, 8),
        ("an unknown type on an idle stream", 99, 0, 8),
        ("an unknown type of the greatest size", 0, 0, FRAME_BYTES),
    ] {
        cases.push(Case::plays("4.1", name, Expect::Alive, move |c| {
            c.send(&Frame::new(kind::UNKNOWN, flags, stream, vec![0; length]));
            c.round_trip()
        }));
    }
    let name = "unknown types between the frames of a request";
    cases.push(Case::sends("4.1", name, Expect::Answer(200), |c| {
        let unknown = Frame::new(kind::UNKNOWN, 0xff, 1, [7; 20]);
        let stream = c.post("/");
        c.send(&unknown);
        c.send(&Frame::data(flag::NONE, stream, b"abc".as_slice()));
        c.send(&unknown);
        c.send(&Frame::data(flag::END_STREAM, stream, []));
    }));
    let name = "an unknown type behind the end of a request";
    cases.push(Case::sends("4.1", name, Expect::Answer(200), |c| {
        let stream = c.get("/");
        c.send(&Frame::new(kind::UNKNOWN, 0, stream, [7; 20]));
    }));
    for (name, flags) in [
        ("PING with unknown flags", 0xfe_u8),
        ("PING with the flag 0x80", 0x80),
    ] {
        cases.push(Case::plays("4.1", name, Expect::Alive, move |c| {
            c.send(&Frame::ping(flags, *b"flagged."));
            c.until("the answer to PING", |c| c.pongs.contains(b"flagged."))
        }));
    }
    cases.push(Case::plays(
        "4.1",
        "SETTINGS with unknown flags",
        Expect::Alive,
        |c| {
            let mut frame = Frame::settings(&[]);
            frame.flags = 0xfe;
            c.send(&frame);
            c.until("the acknowledgement", |c| c.settings_acks == 2)
        },
    ));
    cases.push(Case::sends(
        "4.1",
        "HEADERS with unknown flags",
        Expect::Answer(200),
        |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::WHOLE | 0xd2, 1, block));
        },
    ));
    cases.push(Case::sends(
        "4.1",
        "DATA with unknown flags",
        Expect::Answer(200),
        |c| {
            let stream = c.post("/");
            c.send(&Frame::data(flag::END_STREAM | 0xf6, stream, b"abc".as_slice()));
        },
    ));
    cases.push(Case::plays(
        "4.1",
        "WINDOW_UPDATE and PRIORITY with unknown flags",
        Expect::Alive,
        |c| {
            let mut frame = Frame::window_update(0, 1);
            frame.flags = 0xff;
            c.send(&frame);
            let mut frame = Frame::priority(1, 0, 1);
            frame.flags = 0xff;
            c.send(&frame);
            c.round_trip()
        },
    ));
    // END_STREAM has no meaning on CONTINUATION, so that the stream stays open.
    let name = "CONTINUATION with unknown flags ends no stream";
    cases.push(Case::plays("4.1", name, Expect::Alive, |c| {
        let block = c.head("POST", "/");
        c.send(&Frame::headers(flag::NONE, 1, block));
        c.send(&Frame::continuation(0xff, 1, []));
        c.send(&Frame::data(flag::END_STREAM, 1, b"behind it".as_slice()));
        let answer = c.answered(1, 200)?;
        check(answer.text().ends_with("behind it"), || {
            format!("{:?}", answer.text())
        })
    }));
    cases
}

fn reserved_bits() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends(
        "4.1",
        "HEADERS with the reserved bit",
        Expect::Answer(200),
        |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::WHOLE, 1 | RESERVED_BIT, block));
        },
    ));
    cases.push(Case::sends(
        "4.1",
        "DATA with the reserved bit",
        Expect::Answer(200),
        |c| {
            let stream = c.post("/");
            c.send(&Frame::data(
                flag::END_STREAM,
                stream | RESERVED_BIT,
                b"abc".as_slice(),
            ));
        },
    ));
    cases.push(Case::plays(
        "4.1",
        "PING with the reserved bit",
        Expect::Alive,
        |c| {
            let mut frame = Frame::ping(flag::NONE, *b"reserved");
            frame.stream = RESERVED_BIT;
            c.send(&frame);
            c.until("the answer to PING", |c| c.pongs.contains(b"reserved"))
        },
    ));
    cases.push(Case::plays(
        "4.1",
        "SETTINGS with the reserved bit",
        Expect::Alive,
        |c| {
            let mut frame = Frame::settings(&[]);
            frame.stream = RESERVED_BIT;
            c.send(&frame);
            c.until("the acknowledgement", |c| c.settings_acks == 2)
        },
    ));
    cases.push(Case::plays(
        "6.9",
        "WINDOW_UPDATE with the reserved bit of its increment",
        Expect::Alive,
        |c| {
            c.send(&Frame::window_update(0, 1 | RESERVED_BIT));
            c.round_trip()
        },
    ));
    cases
}

fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    let name = "DATA of 16,384 octets";
    cases.push(Case::plays("4.2", name, Expect::Alive, |c| {
        let stream = c.post("/");
        c.send(&Frame::data(flag::END_STREAM, stream, vec![b'z'; FRAME_BYTES]));
        let answer = c.answered(stream, 200)?;
        check(answer.text().ends_with(&"z".repeat(FRAME_BYTES)), || {
            format!("{} octets come back", answer.body.len())
        })
    }));
    let name = "DATA that is too large";
    cases.push(Case::plays("4.2", name, FRAME_SIZE_OF_STREAM, |c| {
        let size = c.too_long()?;
        let stream = c.post("/");
        c.send(&Frame::data(flag::END_STREAM, stream, vec![0; size]));
        Ok(())
    }));
    let name = "HEADERS that are too large";
    cases.push(Case::plays("4.2", name, FRAME_SIZE, |c| {
        let mut block = Vec::from(c.head("GET", "/"));
        block.resize(c.too_long()?, 0);
        c.send(&Frame::headers(flag::WHOLE, 1, block));
        Ok(())
    }));
    let name = "CONTINUATION that is too large";
    cases.push(Case::plays("4.2", name, FRAME_SIZE, |c| {
        let size = c.too_long()?;
        let block = c.head("GET", "/");
        c.send(&Frame::headers(flag::END_STREAM, 1, block));
        c.send(&Frame::continuation(flag::END_HEADERS, 1, vec![0; size]));
        Ok(())
    }));
    let name = "SETTINGS that are too large";
    cases.push(Case::plays("4.2", name, FRAME_SIZE, |c| {
        let many = vec![(setting::UNKNOWN, 0); c.too_long()? / 6 + 1];
        c.send(&Frame::settings(&many));
        Ok(())
    }));
    let name = "an unknown type that is too large";
    cases.push(Case::plays("4.2", name, FRAME_SIZE, |c| {
        let size = c.too_long()?;
        c.send(&Frame::new(kind::UNKNOWN, 0, 0, vec![0; size]));
        Ok(())
    }));
    cases
}

fn fixed_sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut wrong = |section, name: &str, expect, kind, stream, length: usize| {
        let name = format!("{name} of {length} octets");
        cases.push(Case::sends(section, name, expect, move |c| {
            if stream != 0 {
                c.post("/");
            }
            c.send(&Frame::new(kind, flag::NONE, stream, vec![1; length]));
        }));
    };
    for length in [0, 4, 6] {
        wrong("6.3", "PRIORITY", FRAME_SIZE_OF_STREAM, kind::PRIORITY, 1, length);
    }
    for length in [0, 3, 5] {
        wrong("6.4", "RST_STREAM", FRAME_SIZE, kind::RST_STREAM, 1, length);
    }
    for length in [1, 3, 5, 7] {
        wrong("6.5", "SETTINGS", FRAME_SIZE, kind::SETTINGS, 0, length);
    }
    for length in [0, 6, 7, 9] {
        wrong("6.7", "PING", FRAME_SIZE, kind::PING, 0, length);
    }
    for length in [0, 7] {
        wrong("6.8", "GOAWAY", FRAME_SIZE, kind::GOAWAY, 0, length);
    }
    for length in [0, 3, 5] {
        wrong(
            "6.9",
            "WINDOW_UPDATE on the connection",
            FRAME_SIZE,
            kind::WINDOW_UPDATE,
            0,
            length,
        );
        wrong(
            "6.9",
            "WINDOW_UPDATE on a stream",
            FRAME_SIZE,
            kind::WINDOW_UPDATE,
            1,
            length,
        );
    }
    // RFC 9113, 4.2: too small for what its flags say is in it. As padding that does not fit, it is an error of the
    // protocol (6.1 and 6.2).
    let small = Expect::ConnectionError(&[Code::FRAME_SIZE_ERROR, Code::PROTOCOL_ERROR]);
    cases.push(Case::sends(
        "6.1",
        "padded DATA without the length of the padding",
        small,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::data(flag::PADDED, stream, []));
        },
    ));
    cases.push(Case::sends(
        "6.2",
        "padded HEADERS without the length of the padding",
        small,
        |c| {
            c.send(&Frame::headers(flag::WHOLE | flag::PADDED, 1, []));
        },
    ));
    cases.push(Case::sends("6.2", "HEADERS with half a priority", small, |c| {
        c.send(&Frame::headers(flag::WHOLE | flag::PRIORITY, 1, [0, 0, 0]));
    }));
    cases
}

fn ping() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::plays(
        "6.7",
        "PING is answered with its payload",
        Expect::Alive,
        |c| {
            let opaque = [0, 1, 0x7f, 0x80, 0xff, 0xfe, 9, 8];
            c.send(&Frame::ping(flag::NONE, opaque));
            c.until("the answer to PING", |c| c.pongs.contains(&opaque))
        },
    ));
    cases.push(Case::plays(
        "6.7",
        "an answer to no PING is not answered",
        Expect::Alive,
        |c| {
            c.send(&Frame::ping(flag::ACK, *b"answered"));
            c.round_trip()?;
            check(!c.pongs.contains(b"answered"), || {
                "PING with ACK was answered".to_owned()
            })
        },
    ));
    cases.push(Case::plays(
        "6.7",
        "PINGs are answered in their order",
        Expect::Alive,
        |c| {
            let all: Vec<[u8; 8]> = (0..5_u64).map(u64::to_be_bytes).collect();
            for opaque in &all {
                c.send(&Frame::ping(flag::NONE, *opaque));
            }
            c.until("five answers", |c| c.pongs.len() == 5)?;
            check(c.pongs == all, || format!("{:?}", c.pongs))
        },
    ));
    cases.push(Case::sends("6.7", "PING on a stream", PROTOCOL, |c| {
        let mut frame = Frame::ping(flag::NONE, [0; 8]);
        frame.stream = 1;
        c.send(&frame);
    }));
    cases
}

fn goaway() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends("6.8", "GOAWAY on a stream", PROTOCOL, |c| {
        let mut frame = Frame::goaway(0, Code::NO_ERROR, b"");
        frame.stream = 1;
        c.send(&frame);
    }));
    for (name, code) in [
        ("a request before GOAWAY is answered", Code::NO_ERROR),
        ("GOAWAY with an unknown code is a GOAWAY", Code(0xff)),
    ] {
        let case = Case::sends("6.8", name, Expect::Answer(200), move |c| {
            c.get("/");
            c.send(&Frame::goaway(0, code, b"some debug data"));
        });
        cases.push(case.may_close());
    }
    cases
}
