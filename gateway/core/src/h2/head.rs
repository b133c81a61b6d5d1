//! Heads of HTTP/2 messages: what header blocks say, and the heads that the gateway works on, which say everything as
//! HTTP/1.1 says it (RFC 9113, 8; RFC 8441, 5).
//!
//! The connection has checked what HTTP/2 itself demands of fields. What a request means (its target, its length, its
//! expectations, whether it wants another protocol) is decided by the rules that hold for HTTP/1.1 as well.

use super::fields::{Fields, Pseudo};
use super::hpack;
use crate::h1::head::{content_length, read_body_rules, read_connect_target};
use crate::h1::{HeadError, is_protocol, read_target};
use crate::header::{HeaderId, HeaderList};
use crate::limits::MessageLimits;
use crate::message::{BodyLength, RequestHead, ResponseHead, Version};
use http::{Method, StatusCode};
use std::net::SocketAddr;

/// Reads a request as HTTP/1.1 would have put it (RFC 9113, 8.3), and leaves the section without its fields. `has_body` is
/// whether something comes behind the head. The head is empty before.
pub fn read_request(
    fields: &mut Fields,
    has_body: bool,
    limits: &MessageLimits,
    head: &mut RequestHead,
) -> Result<(), HeadError> {
    head.version = Version::Http2;
    if fields.is_too_large() {
        return Err(match fields.list.len() >= limits.header_count {
            true => HeadError::TooManyFields,
            false => HeadError::HeaderTooLarge,
        });
    }
    let method = fields.pseudo(Pseudo::Method).unwrap_or_default();
    head.method = Method::from_bytes(method).map_err(|_| HeadError::FirstLine)?;
    if fields.is_padded() {
        return Err(HeadError::FieldValue);
    }
    let named = fields.pseudo_text(Pseudo::Authority);
    let mut hosts = fields.list.get_all(HeaderId::Host);
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(HeadError::Host),
        (Some(host), None) => Some(std::str::from_utf8(host).map_err(|_| HeadError::Host)?),
        (None, None) => None,
    };
    drop(hosts);
    // Two names for one thing are an attempt to mislead (RFC 9113, 8.3.1).
    if let (Some(named), Some(host)) = (named, host)
        && !named.eq_ignore_ascii_case(host)
    {
        return Err(HeadError::Host);
    }
    head.is_https = fields
        .pseudo(Pseudo::Scheme)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https"));
    let protocol = fields.pseudo_text(Pseudo::Protocol);
    if head.method == Method::CONNECT && protocol.is_none() && limits.connect {
        read_connect_target(named.unwrap_or_default(), head)?;
    } else {
        let path = fields.pseudo_text(Pseudo::Path).unwrap_or("/");
        if !path.starts_with('/') && path != "*" {
            return Err(HeadError::Target);
        }
        if path.len() > limits.request_line_bytes {
            return Err(HeadError::RequestLineTooLong);
        }
        if let (&Method::CONNECT, Some(protocol)) = (&head.method, protocol) {
            if !is_protocol(protocol) {
                return Err(HeadError::Upgrade);
            }
            // As HTTP/1.1 says it (RFC 8441, 5).
            head.method = Method::GET;
            head.upgrade.push_str(protocol);
            head.upgrade.make_ascii_lowercase();
        }
        read_target(path, named.or(host), head)?;
    }
    std::mem::swap(&mut head.headers, &mut fields.list);
    head.headers.remove(HeaderId::Host);
    head.wants_trailers = head.headers.get(HeaderId::Te).is_some();
    // The connection has seen to it that what it says is what comes.
    let length = content_length(&head.headers)?;
    let is_connect = head.method == Method::CONNECT;
    if is_connect && length.is_some() {
        return Err(HeadError::BodyNotAllowed);
    }
    // What comes behind a request for a tunnel is none of its.
    let has_body = has_body && head.upgrade.is_empty() && !is_connect;
    head.body = match (has_body, length) {
        (false, _) => BodyLength::None,
        (true, Some(length)) => BodyLength::Known(length),
        (true, None) => BodyLength::Chunked,
    };
    read_body_rules(head)
}

/// Whether HTTP/2 has a form for a request.
pub fn is_speakable(head: &RequestHead) -> bool {
    let is_path = |path: &str| path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS);
    is_path(&head.path) && head.path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Writes the block of a request that is speakable, over TLS or not, to this address.
pub fn write_request(head: &RequestHead, is_secure: bool, to: SocketAddr, out: &mut Vec<u8>) {
    let is_upgrade = !head.upgrade.is_empty();
    let method = if is_upgrade {
        &Method::CONNECT
    } else {
        &head.method
    };
    hpack::write_pseudo(out, Pseudo::Method, method.as_str().as_bytes());
    hpack::write_pseudo(out, Pseudo::Scheme, if is_secure { b"https" } else { b"http" });
    // HTTP/1.0 needs no authority, and HTTP/2 does.
    if head.authority.is_empty() {
        hpack::write_pseudo(out, Pseudo::Authority, to.to_string().as_bytes());
    } else {
        hpack::write_pseudo(out, Pseudo::Authority, head.authority.as_bytes());
    }
    hpack::write_pseudo(out, Pseudo::Path, head.path.as_bytes());
    if is_upgrade {
        hpack::write_pseudo(out, Pseudo::Protocol, head.upgrade.as_bytes());
    }
    // RFC 8441, 5: what proves an upgrade over HTTP/1.1 has no place here.
    write_list(
        &head.headers,
        is_upgrade.then_some(&b"sec-websocket-key"[..]),
        out,
    );
    match head.body {
        BodyLength::Known(length) => write_length(length, out),
        BodyLength::None if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            write_length(0, out);
        }
        _ => {}
    }
    if head.expects_continue {
        hpack::write_field(out, HeaderId::Expect, b"expect", b"100-continue");
    }
    if head.wants_trailers && !is_upgrade {
        hpack::write_field(out, HeaderId::Te, b"te", b"trailers");
    }
}

/// Reads the head of an interim response.
pub fn read_interim(fields: &mut Fields, head: &mut ResponseHead) -> Result<(), HeadError> {
    read_answer(fields, head)?;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // HTTP/2 has none (RFC 9113, 8.6).
        return Err(HeadError::Upgrade);
    }
    head.body = BodyLength::None;
    Ok(())
}

/// Reads the head of the answer to a request with this method, which asked for another protocol or not; `has_body` is
/// whether something comes behind it. Answers whether that belongs to the message.
pub fn read_response(
    fields: &mut Fields,
    method: &Method,
    is_upgrade: bool,
    has_body: bool,
    head: &mut ResponseHead,
) -> Result<bool, HeadError> {
    let length = content_length(&fields.list);
    read_answer(fields, head)?;
    if is_upgrade && head.status.is_success() {
        // As HTTP/1.1 says it (RFC 8441, 5).
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        return Ok(true);
    }
    let is_bodyless =
        *method == Method::HEAD || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = length?;
    (head.body, head.declared_length) = match (is_bodyless, has_body, length) {
        (true, ..) => (BodyLength::None, length),
        (false, false, _) => (BodyLength::Known(0), None),
        (false, true, Some(length)) => (BodyLength::Known(length), None),
        (false, true, None) => (BodyLength::Chunked, None),
    };
    Ok(!is_bodyless)
}

fn read_answer(fields: &mut Fields, head: &mut ResponseHead) -> Result<(), HeadError> {
    head.clear();
    let status = fields
        .status()
        .and_then(|status| StatusCode::from_u16(status).ok());
    head.status = status.ok_or(HeadError::Status)?;
    head.version = Version::Http2;
    if fields.is_padded() {
        return Err(HeadError::FieldValue);
    }
    std::mem::swap(&mut head.headers, &mut fields.list);
    head.headers.remove_connection_fields();
    Ok(())
}

/// Writes the block of an interim response.
pub fn write_interim(head: &ResponseHead, out: &mut Vec<u8>) {
    hpack::write_status(out, head.status.as_u16());
    write_list(&head.headers, None, out);
}

/// How long the body of a response is, when that is certain and something follows the head: what came in HTTP/2 may have
/// trailers behind a body of known length.
pub fn certain_length(head: &ResponseHead) -> Option<u64> {
    match head.body {
        BodyLength::Known(length @ 1..) if head.version != Version::Http2 && head.upgrade.is_empty() => {
            Some(length)
        }
        _ => None,
    }
}

/// Writes the block of a response. `is_head` is whether the request was HEAD.
pub fn write_response(head: &ResponseHead, is_head: bool, out: &mut Vec<u8>) {
    if head.upgrade.is_empty() {
        write_interim(head, out);
    } else {
        // RFC 8441, 5: agreed, and without the proof that HTTP/1.1 wants.
        hpack::write_status(out, StatusCode::OK.as_u16());
        write_list(&head.headers, Some(&b"sec-websocket-accept"[..]), out);
    }
    let length = match head.body {
        BodyLength::Known(length) => Some(length),
        BodyLength::None if is_head || head.status == StatusCode::NOT_MODIFIED => head.declared_length,
        _ => None,
    };
    if let Some(length) = length {
        write_length(length, out);
    }
}

/// Writes the block of trailers.
pub fn write_trailers(trailers: &HeaderList, out: &mut Vec<u8>) {
    write_list(trailers, None, out);
}

/// Writes fields, but for one of this name and those that concern one connection of HTTP/1.1 (RFC 9113, 8.2.2).
fn write_list(fields: &HeaderList, but: Option<&[u8]>, out: &mut Vec<u8>) {
    for (id, name, value) in fields.iter() {
        let is_left_out = id.is_connection_field()
            || id == HeaderId::Host
            || but.is_some_and(|but| but.eq_ignore_ascii_case(name));
        if !is_left_out {
            hpack::write_field(out, id, name, value);
        }
    }
}

fn write_length(length: u64, out: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(length).as_bytes();
    hpack::write_field(out, HeaderId::ContentLength, b"content-length", digits);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::hpack::Decoder;
    use crate::limits::Settings;

    fn section(pseudo: &[(Pseudo, &str)], fields: &[(&str, &str)]) -> Fields {
        let mut block = Vec::new();
        for (name, value) in pseudo {
            hpack::write_pseudo(&mut block, *name, value.as_bytes());
        }
        for (name, value) in fields {
            hpack::write_field(&mut block, HeaderId::Other, name.as_bytes(), value.as_bytes());
        }
        decoded(&block)
    }

    fn decoded(block: &[u8]) -> Fields {
        let mut fields = Fields::default();
        Decoder::default()
            .decode(block, (60_000, 100), &mut fields)
            .unwrap();
        assert!(!fields.is_malformed());
        fields
    }

    fn read(fields: &mut Fields, has_body: bool) -> Result<RequestHead, HeadError> {
        let mut head = RequestHead::default();
        let limits = Settings::default().message_limits();
        read_request(fields, has_body, &limits, &mut head).map(|()| head)
    }

    fn request(method: &str, fields: &[(&str, &str)]) -> Fields {
        let pseudo = [
            (Pseudo::Method, method),
            (Pseudo::Scheme, "http"),
            (Pseudo::Authority, "h.example"),
            (Pseudo::Path, "/p"),
        ];
        section(&pseudo, fields)
    }

    #[test]
    fn lengths_and_expectations_follow_the_rules_of_http1() {
        let head = read(&mut request("POST", &[("content-length", "4")]), true).unwrap();
        assert_eq!(head.body, BodyLength::Known(4));
        let head = read(&mut request("POST", &[("expect", "100-Continue")]), true).unwrap();
        assert_eq!((head.body, head.expects_continue), (BodyLength::Chunked, true));
        let head = read(&mut request("GET", &[("expect", "100-continue")]), false).unwrap();
        assert!(!head.expects_continue, "nothing follows");
        for (method, fields, error) in [
            ("POST", &[("content-length", "+4")][..], HeadError::ContentLength),
            (
                "POST",
                &[("content-length", "4"), ("content-length", "4")],
                HeadError::ContentLength,
            ),
            ("POST", &[("expect", "a miracle")], HeadError::Expectation),
            (
                "POST",
                &[("expect", "100-continue"), ("expect", "100-continue")],
                HeadError::Expectation,
            ),
            ("TRACE", &[], HeadError::BodyNotAllowed),
            ("GET", &[("a", " b")], HeadError::FieldValue),
            ("GET", &[("host", "other.example")], HeadError::Host),
        ] {
            let found = read(&mut request(method, fields), true).unwrap_err();
            assert_eq!(found, error, "{method} {fields:?}");
        }
    }

    #[test]
    fn crumbs_of_a_cookie_are_one_field_again() {
        let mut fields = request(
            "GET",
            &[("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"), ("cookie", "e")],
        );
        fields.join_crumbs();
        let head = read(&mut fields, false).unwrap();
        let lines: Vec<_> = head
            .headers
            .iter()
            .map(|(_, name, value)| (name, value))
            .collect();
        assert_eq!(lines, [(&b"x"[..], &b"y"[..]), (b"cookie", b"a=b; c=d; e")]);
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let mut head = RequestHead {
            method: Method::POST,
            authority: "h.example:81".to_owned(),
            body: BodyLength::Known(7),
            expects_continue: true,
            wants_trailers: true,
            ..RequestHead::default()
        };
        head.set_path("/a?b");
        head.headers.append(b"X-Own", b"some");
        head.headers.append(b"Connection", b"close");
        assert!(is_speakable(&head));
        let mut block = Vec::new();
        write_request(&head, true, ([127, 0, 0, 1], 1).into(), &mut block);
        let mut fields = decoded(&block);
        assert_eq!(fields.pseudo(Pseudo::Scheme), Some(&b"https"[..]));
        let again = read(&mut fields, true).unwrap();
        assert_eq!(
            (&again.method, &again.path, &again.authority),
            (&head.method, &head.path, &head.authority)
        );
        assert_eq!(
            (again.body, again.expects_continue, again.wants_trailers),
            (head.body, true, true)
        );
        assert_eq!(again.headers.get(HeaderId::Connection), None);
        assert!(
            again
                .headers
                .iter()
                .any(|(_, name, value)| (name, value) == (b"x-own", b"some"))
        );
        head.set_path("no path");
        assert!(!is_speakable(&head));
    }

    #[test]
    fn an_extended_connect_is_an_upgrade_and_one_again() {
        let connect = [
            (Pseudo::Method, "CONNECT"),
            (Pseudo::Scheme, "https"),
            (Pseudo::Authority, "h.example"),
            (Pseudo::Path, "/chat?a=b"),
            (Pseudo::Protocol, "WebSocket"),
        ];
        let mut fields = section(&connect, &[("sec-websocket-key", "k")]);
        let head = read(&mut fields, true).unwrap();
        assert_eq!((&head.method, head.upgrade.as_str()), (&Method::GET, "websocket"));
        assert_eq!((head.body, head.path.as_str()), (BodyLength::None, "/chat?a=b"));
        let mut block = Vec::new();
        write_request(&head, true, ([127, 0, 0, 1], 1).into(), &mut block);
        let written = decoded(&block);
        assert_eq!(written.pseudo(Pseudo::Method), Some(&b"CONNECT"[..]));
        assert_eq!(written.pseudo(Pseudo::Protocol), Some(&b"websocket"[..]));
        assert!(written.list.is_empty());
        let mut answer = ResponseHead::default();
        let mut fields = section(&[(Pseudo::Status, "200")], &[]);
        assert_eq!(
            read_response(&mut fields, &Method::GET, true, true, &mut answer),
            Ok(true)
        );
        assert_eq!(answer.status, StatusCode::SWITCHING_PROTOCOLS);
        answer.upgrade.push_str("websocket");
        let mut block = Vec::new();
        write_response(&answer, false, &mut block);
        assert_eq!(decoded(&block).status(), Some(200));
        assert_eq!(certain_length(&answer), None);
    }

    #[test]
    fn connect_is_for_those_who_may() {
        let connect = [(Pseudo::Method, "CONNECT"), (Pseudo::Authority, "h.example:443")];
        assert_eq!(
            read(&mut section(&connect, &[]), true).unwrap_err(),
            HeadError::Connect
        );
        let limits = MessageLimits {
            connect: true,
            ..Settings::default().message_limits()
        };
        let mut head = RequestHead::default();
        read_request(&mut section(&connect, &[]), true, &limits, &mut head).unwrap();
        assert_eq!((head.method, head.host.as_str()), (Method::CONNECT, "h.example"));
        assert!(head.body.is_empty());
        let fields = &mut section(&connect, &[("content-length", "4")]);
        let refused = read_request(fields, true, &limits, &mut RequestHead::default());
        assert_eq!(refused, Err(HeadError::BodyNotAllowed));
        assert_eq!(
            (head.authority.as_str(), head.path.as_str()),
            ("h.example:443", "")
        );
    }

    #[test]
    fn answers_without_a_body_keep_the_length_that_they_declare() {
        for (status, method, has_body, expected) in [
            ("200", Method::HEAD, false, (BodyLength::None, Some(7))),
            ("304", Method::GET, false, (BodyLength::None, Some(7))),
            ("200", Method::GET, true, (BodyLength::Known(7), None)),
        ] {
            let mut fields = section(&[(Pseudo::Status, status)], &[("content-length", "7")]);
            let mut head = ResponseHead::default();
            let belongs = read_response(&mut fields, &method, false, has_body, &mut head).unwrap();
            assert_eq!(belongs, has_body);
            assert_eq!((head.body, head.declared_length), expected);
            let mut block = Vec::new();
            write_response(&head, method == Method::HEAD, &mut block);
            assert_eq!(decoded(&block).list.get(HeaderId::ContentLength), Some(&b"7"[..]));
        }
    }
}
