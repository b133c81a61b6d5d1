//! An upstream's bytes: the answers to one request, interim ones and the final one with its body.

use crate::h1_request::{body, refused};
use crate::input::Input;
use http::Method;
use isthmus_core::h1::{HeadParser, Parsed, encode};
use isthmus_core::header::{is_token_byte, is_value_byte};
use isthmus_core::limits::Settings;
use isthmus_core::message::{BodyLength, ResponseHead, Version};

/// Reads everything as the answers of one connection.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let limits = input.limits();
    let method = input
        .pick(&[Method::GET, Method::HEAD, Method::CONNECT, Method::POST].each_ref())
        .clone();
    let version = input.pick(&[Version::Http11, Version::Http10]);
    let any_length = Settings {
        header_bytes: 1 << 20,
        header_count: 10_000,
        ..Settings::default()
    };
    let any_length = any_length.message_limits();
    let mut rest = input.rest();
    let mut head = ResponseHead::default();
    while !rest.is_empty() {
        let mut parser = HeadParser::default();
        let used = match parser.parse_response(rest, &limits, &method, &mut head) {
            Ok(Parsed::Complete(used)) => used,
            Ok(Parsed::Partial) => return,
            Err(error) => return refused(error),
        };
        assert!(used > 0 && used <= rest.len());
        rest = &rest[used..];
        for (_, name, value) in head.headers.iter() {
            assert!(!name.is_empty() && name.iter().all(|byte| is_token_byte(*byte)));
            assert!(value.iter().all(|byte| is_value_byte(*byte)));
        }
        if head.status.is_informational() {
            assert_eq!(head.body, BodyLength::None);
            let mut out = Vec::new();
            encode::interim_head(&head, &mut out);
            continue;
        }
        if method == Method::HEAD || head.status == 204 || head.status == 304 {
            assert_eq!(head.body, BodyLength::None, "{}", head.status);
        }
        // What was read can be passed on, and be read again as the same.
        let form = encode::ResponseContext {
            version,
            head_request: method == Method::HEAD,
            keep_alive: true,
        };
        let mut out = Vec::new();
        head.headers.remove_connection_fields();
        encode::response_head(&head, form, &mut out);
        let mut again = ResponseHead::default();
        let parsed = HeadParser::default().parse_response(&out, &any_length, &method, &mut again);
        assert_eq!(
            parsed.ok(),
            Some(Parsed::Complete(out.len())),
            "{}",
            String::from_utf8_lossy(&out)
        );
        assert_eq!(again.status, head.status);
        if head.body != BodyLength::None {
            match body(rest, head.body, &limits) {
                Some(used) => rest = &rest[used..],
                None => return,
            }
        }
    }
}
