//! The states of streams (RFC 9113, 5.1), their identifiers (5.1.1) and their number (5.1.2), priorities (5.3 and 6.3),
//! and the frames of a stream: DATA (6.1), HEADERS (6.2), RST_STREAM (6.4) and PUSH_PROMISE (6.6).

use super::{Case, Expect, check};
use crate::h2::client::{Connection, Step};
use crate::h2::frame::{Code, Frame, MAX_31, flag, setting};
use crate::h2::hpack::Block;

const PROTOCOL: Expect = Expect::ConnectionError(&[Code::PROTOCOL_ERROR]);
const CLOSED: Expect = Expect::StreamError(&[Code::STREAM_CLOSED]);
/// A stream is not used again: section 5.1 has STREAM_CLOSED for it, 5.1.1 PROTOCOL_ERROR.
const REUSED: Expect = Expect::StreamError(&[Code::STREAM_CLOSED, Code::PROTOCOL_ERROR]);

/// A limit above this is not tried out.
const STREAMS_MAX: u32 = 1_000;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = idle();
    cases.extend(half_closed());
    cases.extend(closed());
    cases.extend(identifiers());
    cases.extend(concurrency());
    cases.extend(priorities());
    cases.extend(padding());
    cases.extend(frames_of_no_stream());
    cases.extend(resets());
    cases
}

fn idle() -> Vec<Case> {
    let mut cases = Vec::new();
    // Section 6.1 has STREAM_CLOSED for DATA in any state but two, 5.1 has PROTOCOL_ERROR for the state idle.
    let either = Expect::ConnectionError(&[Code::PROTOCOL_ERROR, Code::STREAM_CLOSED]);
    cases.push(Case::sends("5.1", "idle: DATA", either, |c| {
        c.send(&Frame::data(flag::END_STREAM, 1, b"abc".as_slice()));
    }));
    cases.push(Case::sends("5.1", "idle: RST_STREAM", PROTOCOL, |c| {
        c.send(&Frame::rst_stream(1, Code::CANCEL));
    }));
    cases.push(Case::sends("5.1", "idle: WINDOW_UPDATE", PROTOCOL, |c| {
        c.send(&Frame::window_update(1, 100));
    }));
    cases.push(Case::plays("5.1", "idle: PRIORITY", Expect::Alive, |c| {
        c.send(&Frame::priority(1, 0, 7));
        c.round_trip()
    }));
    cases
}

/// A request that is whole, and whose answer cannot end, because no content may come.
fn half_closed_request(c: &mut Connection) -> u32 {
    c.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]));
    c.get("/")
}

fn half_closed() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends("5.1", "half-closed (remote): DATA", CLOSED, |c| {
        let stream = half_closed_request(c);
        c.send(&Frame::data(flag::END_STREAM, stream, b"abc".as_slice()));
    }));
    cases.push(Case::sends(
        "5.1",
        "half-closed (remote): empty DATA",
        CLOSED,
        |c| {
            let stream = half_closed_request(c);
            c.send(&Frame::data(flag::NONE, stream, []));
        },
    ));
    cases.push(Case::sends("5.1", "half-closed (remote): HEADERS", CLOSED, |c| {
        let stream = half_closed_request(c);
        c.send(&Frame::headers(flag::WHOLE, stream, Block::of(&[("x-end", "1")])));
    }));
    cases.push(Case::plays(
        "5.1",
        "half-closed (remote): DATA behind the answer's head",
        CLOSED,
        |c| {
            let stream = half_closed_request(c);
            c.until("the answer's head", |c| c.answer(stream).status.is_some())?;
            c.send(&Frame::data(flag::END_STREAM, stream, b"abc".as_slice()));
            Ok(())
        },
    ));
    cases.push(Case::plays(
        "5.1",
        "half-closed (remote): WINDOW_UPDATE and PRIORITY",
        Expect::Alive,
        |c| {
            let stream = half_closed_request(c);
            c.send(&Frame::priority(stream, 0, 7));
            c.send(&Frame::window_update(stream, 10_000));
            c.answered(stream, 200).map(drop)
        },
    ));
    cases.push(Case::plays(
        "5.1",
        "half-closed (remote): RST_STREAM",
        Expect::Alive,
        |c| {
            let stream = half_closed_request(c);
            c.send(&Frame::rst_stream(stream, Code::CANCEL));
            c.round_trip()
        },
    ));
    cases
}

fn closed() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends("5.1", "closed by RST_STREAM: DATA", CLOSED, |c| {
        let stream = c.post("/");
        c.send(&Frame::rst_stream(stream, Code::CANCEL));
        c.send(&Frame::data(flag::END_STREAM, stream, b"abc".as_slice()));
    }));
    cases.push(Case::sends("5.1", "closed by RST_STREAM: HEADERS", REUSED, |c| {
        let stream = c.post("/");
        c.send(&Frame::rst_stream(stream, Code::CANCEL));
        let block = c.head("GET", "/");
        c.send(&Frame::headers(flag::WHOLE, stream, block));
    }));
    cases.push(Case::plays("5.1", "closed by its end: DATA", CLOSED, |c| {
        let stream = c.get("/");
        c.answered(stream, 200)?;
        c.send(&Frame::data(flag::END_STREAM, stream, b"abc".as_slice()));
        Ok(())
    }));
    cases.push(Case::plays("5.1", "closed by its end: HEADERS", REUSED, |c| {
        let stream = c.get("/");
        c.answered(stream, 200)?;
        let block = c.head("GET", "/");
        c.send(&Frame::headers(flag::WHOLE, stream, block));
        Ok(())
    }));
    let on_closed = |c: &mut Connection, frame: fn(u32) -> Frame| -> Step {
        let stream = c.get("/");
        c.answered(stream, 200)?;
        c.send(&frame(stream));
        c.round_trip()
    };
    cases.push(Case::plays(
        "5.1",
        "closed by its end: WINDOW_UPDATE",
        Expect::Alive,
        move |c| on_closed(c, |stream| Frame::window_update(stream, 10)),
    ));
    cases.push(Case::plays(
        "5.1",
        "closed by its end: RST_STREAM",
        Expect::Alive,
        move |c| on_closed(c, |stream| Frame::rst_stream(stream, Code::CANCEL)),
    ));
    cases.push(Case::plays(
        "5.1",
        "closed by its end: PRIORITY",
        Expect::Alive,
        move |c| on_closed(c, |stream| Frame::priority(stream, 0, 1)),
    ));
    cases.push(Case::plays(
        "5.1",
        "closed by RST_STREAM: PRIORITY",
        Expect::Alive,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::rst_stream(stream, Code::CANCEL));
            c.send(&Frame::priority(stream, 0, 1));
            c.round_trip()
        },
    ));
    cases
}

fn identifiers() -> Vec<Case> {
    let get = |c: &mut Connection, stream: u32| {
        let block = c.head("GET", "/");
        c.send(&Frame::headers(flag::WHOLE, stream, block));
    };
    let mut cases = Vec::new();
    for stream in [2, 4] {
        let name = format!("a request on stream {stream}");
        cases.push(Case::sends("5.1.1", name, PROTOCOL, move |c| get(c, stream)));
    }
    // A stream that was passed over is closed, so that a server may say that, too.
    let expect = Expect::ConnectionError(&[Code::PROTOCOL_ERROR, Code::STREAM_CLOSED]);
    cases.push(Case::sends(
        "5.1.1",
        "a request on a lower stream than the last",
        expect,
        move |c| {
            get(c, 5);
            get(c, 3);
        },
    ));
    let case = Case::sends(
        "5.1.1",
        "a request on a much higher stream",
        Expect::Answer(200),
        move |c| {
            get(c, 1);
            get(c, 10_001);
        },
    );
    cases.push(case.on(10_001));
    // No stream is left behind it.
    let case = Case::sends(
        "5.1.1",
        "a request on the highest stream",
        Expect::Answer(200),
        move |c| {
            get(c, MAX_31);
        },
    );
    cases.push(case.on(MAX_31).may_close());
    cases
}

fn concurrency() -> Vec<Case> {
    let mut cases = Vec::new();
    let refusal = Expect::Alive;
    cases.push(Case::plays(
        "5.1.2",
        "one stream more than the server allows",
        refusal,
        |c| {
            let Some(limit) = c.peer.max_concurrent_streams else {
                return Err("the server sets no SETTINGS_MAX_CONCURRENT_STREAMS".to_owned());
            };
            check(limit <= STREAMS_MAX, || {
                format!("the server allows {limit} streams")
            })?;
            let open: Vec<u32> = (0..limit).map(|_| c.post("/")).collect();
            let more = c.post("/");
            c.until("the end of the stream that is too much", |c| {
                c.is_over(more) || c.goaway.is_some()
            })?;
            let code = c.answer(more).reset;
            check(
                matches!(code, Some(Code::REFUSED_STREAM | Code::PROTOCOL_ERROR)),
                || format!("the stream beyond {limit} ends with {code:?}"),
            )?;
            check(open.iter().all(|stream| !c.is_over(*stream)), || {
                "another stream has ended".to_owned()
            })?;
            // The room that one stream leaves is for another.
            c.send(&Frame::data(flag::END_STREAM, open[0], []));
            c.answered(open[0], 200)?;
            let next = c.get("/");
            c.answered(next, 200).map(drop)
        },
    ));
    cases.push(Case::plays(
        "5.1.2",
        "twenty requests at once, answered each as its own",
        Expect::Alive,
        |c| {
            let streams: Vec<(u32, String)> = (0..20)
                .map(|number| {
                    let path = format!("/number/{number}");
                    (c.get(&path), path)
                })
                .collect();
            for (stream, path) in streams {
                let text = c.answered(stream, 200)?.text();
                check(text.starts_with(&format!("GET {path}\n")), || {
                    format!("{path}: {text:?}")
                })?;
            }
            Ok(())
        },
    ));
    cases.push(Case::plays(
        "5.1.2",
        "two requests whose content comes in turns",
        Expect::Alive,
        |c| {
            let (one, two) = (c.post("/one"), c.post("/two"));
            for octet in ["a", "b", "c"] {
                c.send(&Frame::data(flag::NONE, one, octet));
                c.send(&Frame::data(flag::NONE, two, octet.to_ascii_uppercase()));
            }
            c.send(&Frame::data(flag::END_STREAM, two, []));
            c.send(&Frame::data(flag::END_STREAM, one, []));
            for (stream, wanted) in [(one, "\n\nabc"), (two, "\n\nABC")] {
                let text = c.answered(stream, 200)?.text();
                check(text.ends_with(wanted), || format!("{wanted:?}: {text:?}"))?;
            }
            Ok(())
        },
    ));
    cases
}

fn priorities() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends(
        "5.3",
        "HEADERS with a priority",
        Expect::Answer(200),
        |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::WHOLE, 1, block).with_priority(0, 255));
        },
    ));
    let name = "HEADERS with a priority that is exclusive and depends on an idle stream";
    cases.push(Case::sends("5.3", name, Expect::Answer(200), |c| {
        let block = c.head("GET", "/");
        c.send(&Frame::headers(flag::WHOLE, 1, block).with_priority((1 << 31) | 77, 0));
    }));
    cases.push(Case::sends(
        "5.3",
        "HEADERS that depend on their own stream",
        Expect::AnswerOrError,
        |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::WHOLE, 1, block).with_priority(1, 7));
        },
    ));
    cases.push(Case::sends(
        "5.3",
        "PRIORITY that depends on its own stream",
        Expect::AnswerOrError,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::priority(stream, stream, 7));
            c.send(&Frame::data(flag::END_STREAM, stream, []));
        },
    ));
    cases.push(Case::sends(
        "5.3",
        "PRIORITY of an open stream",
        Expect::Answer(200),
        |c| {
            let stream = c.post("/");
            c.send(&Frame::priority(stream, 0, 7));
            c.send(&Frame::data(flag::END_STREAM, stream, []));
        },
    ));
    cases.push(Case::plays(
        "5.3",
        "PRIORITY of many idle streams",
        Expect::Alive,
        |c| {
            for number in 0..20 {
                c.send(&Frame::priority(101 + 2 * number, 0, 7));
            }
            c.round_trip()
        },
    ));
    cases.push(Case::sends("6.3", "PRIORITY on the connection", PROTOCOL, |c| {
        c.send(&Frame::priority(0, 1, 7));
    }));
    cases
}

fn padding() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, padding) in [
        ("no octets", 0),
        ("one octet", 1),
        ("100 octets", 100),
        ("255 octets", 255),
    ] {
        let name = format!("DATA with padding of {name}");
        cases.push(Case::plays("6.1", name, Expect::Alive, move |c| {
            let stream = c.post("/");
            let frame = Frame::data(flag::END_STREAM, stream, b"inside".as_slice());
            c.send(&frame.with_padding(padding, padding.into()));
            let text = c.answered(stream, 200)?.text();
            check(text.ends_with("\n\ninside"), || format!("{text:?}"))
        }));
    }
    cases.push(Case::plays("6.1", "DATA of padding alone", Expect::Alive, |c| {
        let stream = c.post("/");
        c.send(&Frame::data(flag::NONE, stream, []).with_padding(10, 10));
        c.send(&Frame::data(flag::END_STREAM, stream, []).with_padding(255, 255));
        let text = c.answered(stream, 200)?.text();
        check(text.ends_with("\n\n"), || format!("{text:?}"))
    }));
    for (name, said, octets) in [
        ("DATA whose padding is as long as the payload", 6, 0),
        ("DATA whose padding is longer than the payload", 200, 3),
    ] {
        cases.push(Case::sends("6.1", name, PROTOCOL, move |c| {
            let stream = c.post("/");
            let frame = Frame::data(flag::END_STREAM, stream, b"abcde".as_slice());
            c.send(&frame.with_padding(said, octets));
        }));
    }
    for padding in [0, 1, 255] {
        let name = format!("HEADERS with padding of {padding} octets");
        cases.push(Case::sends("6.2", name, Expect::Answer(200), move |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::WHOLE, 1, block).with_padding(padding, padding.into()));
        }));
    }
    cases.push(Case::sends(
        "6.2",
        "HEADERS with padding and a priority",
        Expect::Answer(200),
        |c| {
            let block = c.head("GET", "/");
            let frame = Frame::headers(flag::WHOLE, 1, block).with_priority(0, 7);
            c.send(&frame.with_padding(20, 20));
        },
    ));
    cases.push(Case::sends(
        "6.2",
        "HEADERS whose padding is longer than the payload",
        PROTOCOL,
        |c| {
            let block = c.head("GET", "/");
            c.send(&Frame::headers(flag::WHOLE, 1, block).with_padding(255, 0));
        },
    ));
    cases.push(Case::sends(
        "6.2",
        "HEADERS whose padding reaches into their priority",
        PROTOCOL,
        |c| {
            let frame = Frame::headers(flag::WHOLE, 1, []).with_priority(0, 7);
            c.send(&frame.with_padding(8, 2));
        },
    ));
    cases
}

fn frames_of_no_stream() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::sends("6.1", "DATA on the connection", PROTOCOL, |c| {
        c.send(&Frame::data(flag::END_STREAM, 0, b"abc".as_slice()));
    }));
    cases.push(Case::sends("6.2", "HEADERS on the connection", PROTOCOL, |c| {
        let block = c.head("GET", "/");
        c.send(&Frame::headers(flag::WHOLE, 0, block));
    }));
    cases.push(Case::sends(
        "6.4",
        "RST_STREAM on the connection",
        PROTOCOL,
        |c| {
            c.send(&Frame::rst_stream(0, Code::CANCEL));
        },
    ));
    cases.push(Case::sends(
        "6.6",
        "PUSH_PROMISE from a client, on a stream of its own",
        PROTOCOL,
        |c| {
            let stream = c.post("/");
            let block = Vec::from(c.head("GET", "/"));
            c.send(&Frame::push_promise(stream, 2, &block));
        },
    ));
    cases.push(Case::sends(
        "6.6",
        "PUSH_PROMISE from a client, on an idle stream",
        PROTOCOL,
        |c| {
            let block = Vec::from(c.head("GET", "/"));
            c.send(&Frame::push_promise(1, 3, &block));
        },
    ));
    cases.push(Case::sends(
        "6.6",
        "PUSH_PROMISE from a client, on the connection",
        PROTOCOL,
        |c| {
            let block = Vec::from(c.head("GET", "/"));
            c.send(&Frame::push_promise(0, 2, &block));
        },
    ));
    cases
}

fn resets() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, code) in [
        ("RST_STREAM gives up an open request", Code::CANCEL),
        ("RST_STREAM with an unknown code gives up, too", Code(0xdead_beef)),
        ("RST_STREAM with NO_ERROR gives up, too", Code::NO_ERROR),
    ] {
        cases.push(Case::plays("6.4", name, Expect::Alive, move |c| {
            let stream = c.post("/");
            c.send(&Frame::data(flag::NONE, stream, b"abc".as_slice()));
            c.send(&Frame::rst_stream(stream, code));
            c.round_trip()?;
            // RFC 9113, 5.4.2: never RST_STREAM for RST_STREAM.
            let answer = c.answer(stream);
            check(answer.reset.is_none() && answer.status.is_none(), || {
                format!("{answer:?}")
            })
        }));
    }
    cases.push(Case::plays(
        "6.4",
        "RST_STREAM gives up one of two requests",
        Expect::Alive,
        |c| {
            let (one, two) = (c.post("/one"), c.post("/two"));
            c.send(&Frame::rst_stream(one, Code::CANCEL));
            c.send(&Frame::data(flag::END_STREAM, two, b"abc".as_slice()));
            c.answered(two, 200).map(drop)
        },
    ));
    cases.push(Case::plays("6.4", "RST_STREAM twice", Expect::Alive, |c| {
        let stream = c.post("/");
        c.send(&Frame::rst_stream(stream, Code::CANCEL));
        c.send(&Frame::rst_stream(stream, Code::CANCEL));
        c.round_trip()
    }));
    cases
}
