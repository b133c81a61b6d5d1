//! Requests and answers (RFC 9113, 8.1): content and its length, trailers, methods, and what of HTTP/1.1 may not reach a
//! client of HTTP/2.

use super::{Case, Expect, check};
use crate::h2::client::{Answer, Connection, Step};
use crate::h2::frame::{Frame, flag};
use crate::h2::hpack::Block;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = lengths();
    cases.extend(contents());
    cases.extend(methods());
    cases.extend(answers());
    cases
}

/// Sends the head of a POST with fields behind the control data, and opens a stream.
fn post_with(c: &mut Connection, flags: u8, fields: &[(&str, &str)]) -> u32 {
    let stream = c.next_stream();
    let head = c.head("POST", "/");
    let block = fields
        .iter()
        .fold(head, |block, (name, value)| block.field(name, value));
    c.send(&Frame::headers(flags, stream, block));
    stream
}

/// A POST with these values of content-length and these DATA frames, the last of which ends it.
fn with_lengths(
    name: &'static str,
    expect: Expect,
    lengths: &'static [&'static str],
    parts: &'static [&'static str],
) -> Case {
    Case::sends("8.1.1", name, expect, move |c| {
        let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
        let Some((last, first)) = parts.split_last() else {
            post_with(c, flag::WHOLE, &fields);
            return;
        };
        let stream = post_with(c, flag::END_HEADERS, &fields);
        for part in first {
            c.send(&Frame::data(flag::NONE, stream, *part));
        }
        c.send(&Frame::data(flag::END_STREAM, stream, *last));
    })
}

fn lengths() -> Vec<Case> {
    let bad = Expect::Malformed;
    let good = Expect::Answer(200);
    let mut cases = vec![
        with_lengths("more content than its length", bad, &["1"], &["test"]),
        with_lengths(
            "more content than its length, in several frames",
            bad,
            &["5"],
            &["test", "test"],
        ),
        with_lengths("content where its length is 0", bad, &["0"], &["a"]),
        with_lengths("less content than its length", bad, &["10"], &["test"]),
        with_lengths(
            "less content than its length, in several frames",
            bad,
            &["10"],
            &["test", "test"],
        ),
        with_lengths(
            "no content where its length is 4, in an empty frame",
            bad,
            &["4"],
            &[""],
        ),
        with_lengths("no content where its length is 4", bad, &["4"], &[]),
        with_lengths(
            "two lengths, the first of them right",
            bad,
            &["4", "5"],
            &["test"],
        ),
        with_lengths(
            "two lengths, the second of them right",
            bad,
            &["5", "4"],
            &["test"],
        ),
        with_lengths("two lengths in one field", bad, &["4, 5"], &["test"]),
        with_lengths("a length that is no number", bad, &["four"], &["test"]),
        with_lengths("a length with a sign", bad, &["+4"], &["test"]),
        with_lengths("a negative length", bad, &["-4"], &["test"]),
        with_lengths("an empty length", bad, &[""], &["test"]),
        with_lengths(
            "a length beyond 64 bits",
            bad,
            &["18446744073709551620"],
            &["test"],
        ),
        with_lengths("a length in hexadecimal digits", bad, &["0x4"], &["test"]),
        with_lengths("content as long as it says", good, &["4"], &["test"]),
        with_lengths(
            "content as long as it says, in several frames",
            good,
            &["8"],
            &["te", "", "stte", "st"],
        ),
        with_lengths(
            "content as long as it says, ended by an empty frame",
            good,
            &["4"],
            &["test", ""],
        ),
        with_lengths("no content, as it says", good, &["0"], &[]),
        with_lengths("no content, as it says, in an empty frame", good, &["0"], &[""]),
    ];
    cases.push(Case::sends(
        "8.1.1",
        "less content than its length, ended by trailers",
        bad,
        |c| {
            let stream = post_with(c, flag::END_HEADERS, &[("content-length", "10")]);
            c.send(&Frame::data(flag::NONE, stream, b"test".as_slice()));
            c.send(&Frame::headers(flag::WHOLE, stream, Block::of(&[("x-end", "1")])));
        },
    ));
    cases.push(Case::sends(
        "8.1.1",
        "padding counts for no length",
        Expect::Answer(200),
        |c| {
            let stream = post_with(c, flag::END_HEADERS, &[("content-length", "4")]);
            let frame = Frame::data(flag::END_STREAM, stream, b"test".as_slice());
            c.send(&frame.with_padding(50, 50));
        },
    ));
    cases.push(Case::sends("8.1.1", "padding is no content", bad, |c| {
        let stream = post_with(c, flag::END_HEADERS, &[("content-length", "10")]);
        let frame = Frame::data(flag::END_STREAM, stream, b"test".as_slice());
        c.send(&frame.with_padding(5, 5));
    }));
    cases
}

/// The upstream had this content.
fn came_through(answer: &Answer, content: &str) -> Step {
    let text = answer.text();
    let found = text.split_once("\n\n").map(|(_, content)| content);
    check(found == Some(content), || {
        format!("{found:?}, where {content:?} was sent")
    })
}

fn contents() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(Case::plays(
        "8.1",
        "content without a length",
        Expect::Alive,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::data(flag::NONE, stream, b"one ".as_slice()));
            c.send(&Frame::data(flag::END_STREAM, stream, b"two".as_slice()));
            came_through(&c.answered(stream, 200)?, "one two")
        },
    ));
    cases.push(Case::plays("8.1", "content and trailers", Expect::Alive, |c| {
        let stream = c.post("/");
        c.send(&Frame::data(flag::NONE, stream, b"content".as_slice()));
        c.send(&Frame::headers(
            flag::WHOLE,
            stream,
            Block::of(&[("x-end", "1"), ("x-more", "2")]),
        ));
        came_through(&c.answered(stream, 200)?, "content")
    }));
    cases.push(Case::plays(
        "8.1",
        "content with a length, and trailers",
        Expect::Alive,
        |c| {
            let stream = post_with(
                c,
                flag::END_HEADERS,
                &[("content-length", "7"), ("te", "trailers")],
            );
            c.send(&Frame::data(flag::NONE, stream, b"content".as_slice()));
            c.send(&Frame::headers(flag::WHOLE, stream, Block::of(&[("x-end", "1")])));
            came_through(&c.answered(stream, 200)?, "content")
        },
    ));
    cases.push(Case::plays(
        "8.1",
        "trailers without content",
        Expect::Alive,
        |c| {
            let stream = c.post("/");
            c.send(&Frame::headers(flag::WHOLE, stream, Block::of(&[("x-end", "1")])));
            came_through(&c.answered(stream, 200)?, "")
        },
    ));
    cases.push(Case::plays(
        "6.1",
        "empty frames before, between and behind content",
        Expect::Alive,
        |c| {
            let stream = c.post("/");
            for part in ["", "", "con", "", "tent", ""] {
                c.send(&Frame::data(flag::NONE, stream, part));
            }
            c.send(&Frame::data(flag::END_STREAM, stream, []));
            came_through(&c.answered(stream, 200)?, "content")
        },
    ));
    cases.push(Case::plays("8.1", "content octet by octet", Expect::Alive, |c| {
        let stream = c.post("/");
        for octet in b"content".chunks(1) {
            c.send(&Frame::data(flag::NONE, stream, octet));
            c.flush();
        }
        c.send(&Frame::data(flag::END_STREAM, stream, []));
        came_through(&c.answered(stream, 200)?, "content")
    }));
    cases.push(Case::plays(
        "4.1",
        "frames whose octets come one by one",
        Expect::Alive,
        |c| {
            let stream = c.next_stream();
            let block = c.head("POST", "/");
            let head = Frame::headers(flag::END_HEADERS, stream, block);
            let data = Frame::data(flag::END_STREAM, stream, b"content".as_slice());
            c.send_slowly(&head);
            c.send_slowly(&data);
            came_through(&c.answered(stream, 200)?, "content")
        },
    ));
    cases.push(Case::plays(
        "8.1",
        "expect: 100-continue, and content at once",
        Expect::Alive,
        |c| {
            let stream = post_with(c, flag::END_HEADERS, &[("expect", "100-continue")]);
            c.send(&Frame::data(flag::END_STREAM, stream, b"content".as_slice()));
            came_through(&c.answered(stream, 200)?, "content")
        },
    ));
    cases
}

fn methods() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["GET", "DELETE", "OPTIONS", "PURGE", "M-SEARCH"] {
        cases.push(Case::plays(
            "8.3.1",
            format!("the method {method}"),
            Expect::Alive,
            move |c| {
                let block = c.head(method, "/a?b=c");
                c.send(&Frame::headers(flag::WHOLE, 1, block));
                let text = c.answered(1, 200)?.text();
                check(text.starts_with(&format!("{method} /a?b=c\n")), || {
                    format!("{text:?}")
                })
            },
        ));
    }
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        let name = format!("the method {method} with content");
        cases.push(Case::plays("8.1", name, Expect::Alive, move |c| {
            let block = c.head(method, "/");
            c.send(&Frame::headers(flag::END_HEADERS, 1, block));
            c.send(&Frame::data(flag::END_STREAM, 1, b"content".as_slice()));
            came_through(&c.answered(1, 200)?, "content")
        }));
    }
    cases.push(Case::plays(
        "8.3.1",
        "OPTIONS for the whole server",
        Expect::Alive,
        |c| {
            let block = c.head("OPTIONS", "*");
            c.send(&Frame::headers(flag::WHOLE, 1, block));
            let text = c.answered(1, 200)?.text();
            check(text.starts_with("OPTIONS *\n"), || format!("{text:?}"))
        },
    ));
    cases.push(Case::plays(
        "8.1.1",
        "HEAD has a length and no content",
        Expect::Alive,
        |c| {
            let block = c.head("HEAD", "/");
            c.send(&Frame::headers(flag::WHOLE, 1, block));
            c.expect_no_content(1);
            let answer = c.answered(1, 200)?;
            check(answer.body.is_empty(), || format!("{} octets", answer.body.len()))
        },
    ));
    cases.push(Case::plays(
        "8.3.1",
        "a path of 2,000 octets",
        Expect::Alive,
        |c| {
            let path = format!("/{}", "p".repeat(1_999));
            let stream = c.get(&path);
            let text = c.answered(stream, 200)?.text();
            check(text.starts_with(&format!("GET {path}\n")), || {
                format!("{} octets", text.len())
            })
        },
    ));
    cases.push(Case::sends("8.2", "fifty fields", Expect::Answer(200), |c| {
        let fields = (0..50).map(|number| (format!("x-{number}"), format!("value {number}")));
        let block = fields.fold(c.head("GET", "/"), |block, (name, value)| {
            block.field(name, value)
        });
        c.send(&Frame::headers(flag::WHOLE, 1, block));
    }));
    cases
}

fn answers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, path, status) in [("an answer 204", "/204", 204), ("an answer 304", "/304", 304)] {
        cases.push(Case::plays("8.1.1", name, Expect::Alive, move |c| {
            let stream = c.get(path);
            let answer = c.answered(stream, status)?;
            check(answer.body.is_empty(), || format!("{} octets", answer.body.len()))
        }));
    }
    cases.push(Case::plays(
        "8.1",
        "an answer in chunks comes without them",
        Expect::Alive,
        |c| {
            let stream = c.get("/chunked");
            let text = c.answered(stream, 200)?.text();
            check(text == "some content in chunks", || format!("{text:?}"))
        },
    ));
    cases.push(Case::plays(
        "8.2.2",
        "fields of the upstream's connection stay behind",
        Expect::Alive,
        |c| {
            let stream = c.get("/hop");
            let answer = c.answered(stream, 200)?;
            check(answer.field("x-upper").as_deref() == Some("Case"), || {
                format!("{:?}", answer.fields)
            })
        },
    ));
    cases
}
