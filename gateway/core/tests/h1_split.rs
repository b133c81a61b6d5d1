//! The codec gives one result for one sequence of bytes, however the bytes are cut into pieces.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use isthmus_core::h1::{BodyDecoder, BodyStep, HeadParser, Parsed};
use isthmus_core::header::HeaderList;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead};
use proptest::prelude::*;

fn limits() -> MessageLimits {
    // Small limits, so that short inputs reach them.
    let settings = Settings {
        request_line_bytes: 120,
        header_bytes: 400,
        header_count: 12,
        trailer_bytes: 80,
        chunk_line_bytes: 40,
        ..Settings::default()
    };
    settings.message_limits()
}

/// What came of a whole connection's bytes, message after message, until an error or the end.
#[derive(Debug, PartialEq)]
struct Seen {
    heads: Vec<String>,
    bodies: Vec<Vec<u8>>,
    trailers: Vec<String>,
    ended: String,
}

/// Feeds the bytes in pieces that end at `cuts`, and asks the codec after each piece as the shell does.
fn play(bytes: &[u8], cuts: &[usize], response: bool) -> Seen {
    let limits = limits();
    let mut seen = Seen {
        heads: vec![],
        bodies: vec![],
        trailers: vec![],
        ended: String::new(),
    };
    let mut parser = HeadParser::default();
    let mut body: Option<BodyDecoder> = None;
    let mut buffer: Vec<u8> = Vec::new();
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        buffer.extend_from_slice(&bytes[from..cut.max(from)]);
        from = cut.max(from);
        loop {
            if let Some(decoder) = &mut body {
                match decoder.step(&buffer) {
                    Ok(BodyStep::Data(there)) => {
                        seen.bodies.last_mut().unwrap().extend(buffer.drain(..there));
                        decoder.take(there);
                    }
                    Ok(BodyStep::Skip(used)) => drop(buffer.drain(..used)),
                    Ok(BodyStep::NeedInput) => break,
                    Ok(BodyStep::End) => {
                        let mut trailers = HeaderList::default();
                        decoder.trailers(&mut trailers);
                        seen.trailers.push(trailers.to_string());
                        body = None;
                    }
                    Err(error) => {
                        seen.ended = error.to_string();
                        return seen;
                    }
                }
                continue;
            }
            if buffer.is_empty() {
                break;
            }
            let (mut request, mut answer) = (RequestHead::default(), ResponseHead::default());
            let parsed = if response {
                parser.parse_response(&buffer, &limits, &http::Method::GET, &mut answer)
            } else {
                parser.parse_request(&buffer, &limits, &mut request)
            };
            match parsed {
                Ok(Parsed::Partial) => break,
                Ok(Parsed::Complete(used)) => {
                    buffer.drain(..used);
                    let length = if response { answer.body } else { request.body };
                    seen.heads.push(if response {
                        format!("{answer:?}")
                    } else {
                        format!("{request:?}")
                    });
                    seen.bodies.push(Vec::new());
                    if length != BodyLength::None {
                        body = Some(BodyDecoder::new(length, &limits));
                    }
                }
                Err(error) => {
                    seen.ended = error.to_string();
                    return seen;
                }
            }
        }
    }
    seen
}

fn assert_same_however_cut(bytes: &[u8], response: bool) {
    let whole = play(bytes, &[], response);
    for at in 0..=bytes.len() {
        assert_eq!(
            play(bytes, &[at], response),
            whole,
            "cut at {at}: {}",
            String::from_utf8_lossy(bytes)
        );
    }
    let every: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(
        play(bytes, &every, response),
        whole,
        "byte by byte: {}",
        String::from_utf8_lossy(bytes)
    );
}

/// Pieces of requests, good and bad: joined at random they make every kind of message and of mistake.
fn request_pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => Just(&b"GET / HTTP/1.1\r\nHost: a\r\n"[..]),
        4 => Just(&b"POST /x?y HTTP/1.1\r\nHost: a:80\r\n"[..]),
        1 => Just(&b"GET /a HTTP/1.0\r\n"[..]),
        1 => Just(&b"GET http://b/ HTTP/1.1\r\nHost: a\r\n"[..]),
        3 => Just(&b"Transfer-Encoding: chunked\r\n"[..]),
        3 => Just(&b"Content-Length: 5\r\n"[..]),
        2 => Just(&b"X-A:  b c \r\n"[..]),
        1 => Just(&b"Connection: close, X-A\r\n"[..]),
        8 => Just(&b"\r\n"[..]),
        4 => Just(&b"hello"[..]),
        3 => Just(&b"5\r\nhello\r\n"[..]),
        2 => Just(&b"5;a=\"b\"\r\nhello\r\n"[..]),
        3 => Just(&b"0\r\n\r\n"[..]),
        1 => Just(&b"0\r\nX-T: 1\r\n\r\n"[..]),
        1 => Just(&b"0\r\nX-T: 1\n\r\n"[..]),
        1 => Just(&b"\n"[..]),
        1 => Just(&b"\r"[..]),
        1 => Just(&b" "[..]),
        1 => Just(&b"\0"[..]),
        1 => Just(&b"A : b\r\n"[..]),
        1 => Just(&b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"[..]),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

fn response_pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        5 => Just(&b"HTTP/1.1 200 OK\r\n"[..]),
        1 => Just(&b"HTTP/1.1 100 Continue\r\n\r\n"[..]),
        1 => Just(&b"HTTP/1.0 200 OK\r\n"[..]),
        1 => Just(&b"HTTP/1.1 204 None\r\n"[..]),
        1 => Just(&b"HTTP/2.0 200 OK\r\n"[..]),
        3 => Just(&b"Transfer-Encoding: chunked\r\n"[..]),
        3 => Just(&b"Content-Length: 5\r\n"[..]),
        1 => Just(&b"Connection: keep-alive\r\n"[..]),
        8 => Just(&b"\r\n"[..]),
        3 => Just(&b"hello"[..]),
        3 => Just(&b"5\r\nhello\r\n"[..]),
        3 => Just(&b"0\r\n\r\n"[..]),
        1 => Just(&b"\n"[..]),
        1 => Just(&b"\r"[..]),
        1 => Just(&b"X: \x01\r\n"[..]),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_are_read_alike_however_they_are_cut(bytes in request_pieces()) {
        assert_same_however_cut(&bytes, false);
    }

    #[test]
    fn responses_are_read_alike_however_they_are_cut(bytes in response_pieces()) {
        assert_same_however_cut(&bytes, true);
    }

    #[test]
    fn noise_is_read_alike_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), response: bool) {
        assert_same_however_cut(&bytes, response);
    }
}
