//! The codec gives one result for one sequence of bytes, however the bytes are cut into pieces.

use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_fuzz::h1_differential::play;
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

fn assert_same_however_cut(bytes: &[u8], response: bool) {
    let whole = play(bytes, &[], response, &limits());
    for at in 0..=bytes.len() {
        assert_eq!(
            play(bytes, &[at], response, &limits()),
            whole,
            "cut at {at}: {}",
            String::from_utf8_lossy(bytes)
        );
    }
    let every: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(
        play(bytes, &every, response, &limits()),
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
