//! Heads of HTTP/2 messages: what the library has read or is to write, and the heads that the gateway works on, which say
//! everything as HTTP/1.1 says it (RFC 9113, 8; RFC 8441, 5).
//!
//! The library has found the fields and checked what only it can see, such as the order of pseudo-header fields. What a
//! request means (its target, its length, its expectations, whether it wants another protocol) is decided by the rules
//! that hold for HTTP/1.1 as well.

use crate::h1::head::{content_length, read_body_rules};
use crate::h1::{HeadError, is_protocol, read_target};
use crate::header::{HeaderId, HeaderList};
use crate::limits::MessageLimits;
use crate::message::{BodyLength, RequestHead, ResponseHead, Version};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use std::net::SocketAddr;
use std::sync::LazyLock;

/// Reads a request as HTTP/1.1 would have put it (RFC 9113, 8.3). `protocol` is that of an extended CONNECT;
/// `has_body` whether something comes behind the head. The head is empty before.
pub fn read_request(
    parts: &http::request::Parts,
    protocol: Option<&str>,
    has_body: bool,
    limits: &MessageLimits,
    head: &mut RequestHead,
) -> Result<(), HeadError> {
    head.version = Version::Http2;
    head.method = parts.method.clone();
    if parts.headers.len() > limits.header_count {
        return Err(HeadError::TooManyFields);
    }
    if has_padded_value(&parts.headers) {
        return Err(HeadError::FieldValue);
    }
    read_fields(&parts.headers, &mut head.headers);
    let named = parts.uri.authority().map(Authority::as_str);
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(HeadError::Host),
        (Some(host), None) => Some(host.to_str().map_err(|_| HeadError::Host)?),
        (None, None) => None,
    };
    // Two names for one thing are an attempt to mislead (RFC 9113, 8.3.1).
    if let (Some(named), Some(host)) = (named, host)
        && !named.eq_ignore_ascii_case(host)
    {
        return Err(HeadError::Host);
    }
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !path.starts_with('/') && path != "*" {
        return Err(HeadError::Target);
    }
    if let (&Method::CONNECT, Some(protocol)) = (&head.method, protocol) {
        // The library looks at nothing but its encoding.
        if !is_protocol(protocol) {
            return Err(HeadError::Upgrade);
        }
        // As HTTP/1.1 says it (RFC 8441, 5).
        head.method = Method::GET;
        head.upgrade.push_str(protocol);
        head.upgrade.make_ascii_lowercase();
    }
    read_target(path, named.or(host), head)?;
    head.headers.remove(HeaderId::Host);
    head.wants_trailers = head.headers.get(HeaderId::Te).is_some();
    // The library has seen to it that what it says is what comes.
    let length = content_length(&head.headers)?;
    head.body = match (has_body && head.upgrade.is_empty(), length) {
        (false, _) => BodyLength::None,
        (true, Some(length)) => BodyLength::Known(length),
        (true, None) => BodyLength::Chunked,
    };
    read_body_rules(head)
}

/// Whether a value begins or ends with white space, which is malformed (RFC 9113, 8.2.1).
fn has_padded_value(fields: &HeaderMap) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    fields.values().any(|value| {
        let bytes = value.as_bytes();
        is_space(bytes.first()) || is_space(bytes.last())
    })
}

/// A request as the library writes it, over TLS or not, to this address; None when HTTP/2 cannot say it. The protocol
/// of an extended CONNECT is still to be added.
pub fn write_request(head: &RequestHead, is_secure: bool, to: SocketAddr) -> Option<Request<()>> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if is_secure { Scheme::HTTPS } else { Scheme::HTTP });
    // HTTP/1.0 needs no authority, and HTTP/2 does.
    let authority = if head.authority.is_empty() {
        Authority::try_from(to.to_string())
    } else {
        Authority::try_from(head.authority.as_str())
    };
    parts.authority = Some(authority.ok()?);
    parts.path_and_query = Some(PathAndQuery::try_from(head.path.as_str()).ok()?);
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    let fields = request.headers_mut();
    *fields = write_fields(&head.headers);
    match head.body {
        BodyLength::Known(length) => write_length(length, fields),
        BodyLength::None if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            write_length(0, fields);
        }
        _ => {}
    }
    if head.expects_continue {
        fields.insert(http::header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    if !head.upgrade.is_empty() {
        // RFC 8441, 4 and 5: what proves an upgrade over HTTP/1.1 has no place here.
        fields.remove(http::header::SEC_WEBSOCKET_KEY);
        *request.method_mut() = Method::CONNECT;
    } else if head.wants_trailers {
        fields.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    Some(request)
}

/// Reads the head of an interim response.
pub fn read_interim(parts: &http::response::Parts, head: &mut ResponseHead) -> Result<(), HeadError> {
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        // HTTP/2 has none (RFC 9113, 8.6).
        return Err(HeadError::Upgrade);
    }
    read_answer(parts, head);
    head.body = BodyLength::None;
    Ok(())
}

/// Reads the head of the answer to a request with this method, which asked for another protocol or not; `has_body` is
/// whether something comes behind it. Answers whether that belongs to the message.
pub fn read_response(
    parts: &http::response::Parts,
    method: &Method,
    is_upgrade: bool,
    has_body: bool,
    head: &mut ResponseHead,
) -> bool {
    read_answer(parts, head);
    if is_upgrade && head.status.is_success() {
        // As HTTP/1.1 says it (RFC 8441, 5).
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        return true;
    }
    let length = parts
        .headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let is_bodyless =
        *method == Method::HEAD || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    (head.body, head.declared_length) = match (is_bodyless, has_body, length) {
        (true, ..) => (BodyLength::None, length),
        (false, false, _) => (BodyLength::Known(0), None),
        (false, true, Some(length)) => (BodyLength::Known(length), None),
        (false, true, None) => (BodyLength::Chunked, None),
    };
    !is_bodyless
}

fn read_answer(parts: &http::response::Parts, head: &mut ResponseHead) {
    head.clear();
    head.status = parts.status;
    head.version = Version::Http2;
    read_fields(&parts.headers, &mut head.headers);
    head.headers.remove_connection_fields();
}

/// An interim response as the library writes it.
pub fn write_interim(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = write_fields(&head.headers);
    response
}

/// A response as the library writes it, and how long its body is when that is certain: what came in HTTP/2 may have
/// trailers behind a body of known length. `is_head` is whether the request was HEAD.
pub fn write_response(head: &ResponseHead, is_head: bool) -> (Response<()>, Option<u64>) {
    let mut response = write_interim(head);
    if !head.upgrade.is_empty() {
        // RFC 8441, 5: agreed, and without the proof that HTTP/1.1 wants.
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(http::header::SEC_WEBSOCKET_ACCEPT);
    }
    let length = match head.body {
        BodyLength::Known(length) => Some(length),
        BodyLength::None if is_head || head.status == StatusCode::NOT_MODIFIED => head.declared_length,
        _ => None,
    };
    if let Some(length) = length {
        write_length(length, response.headers_mut());
    }
    let has_body = !(head.body.is_empty() && head.upgrade.is_empty());
    (
        response,
        length.filter(|_| has_body && head.version != Version::Http2),
    )
}

/// Appends fields as the library has read them. Crumbs of a cookie become one field again, for peers of HTTP/1.1
/// (RFC 9113, 8.2.3).
pub fn read_fields(fields: &HeaderMap, into: &mut HeaderList) {
    for (name, value) in fields {
        if *name == http::header::COOKIE && fields.get_all(name).iter().nth(1).is_some() {
            continue;
        }
        into.append(name.as_str().as_bytes(), value.as_bytes());
    }
    let mut crumbs = fields.get_all(http::header::COOKIE).iter();
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let mut whole = first.as_bytes().to_vec();
        for crumb in std::iter::once(second).chain(crumbs) {
            whole.extend_from_slice(b"; ");
            whole.extend_from_slice(crumb.as_bytes());
        }
        into.append(b"cookie", &whole);
    }
}

/// Fields as the library writes them, but for those that concern one connection of HTTP/1.1 (RFC 9113, 8.2.2).
pub fn write_fields(fields: &HeaderList) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len() + 2);
    for (id, name, value) in fields.iter() {
        if id.is_connection_field() || id == HeaderId::Host {
            continue;
        }
        let name = name_of(id, name);
        // The codecs and the compiler let nothing else in.
        if let (Some(name), Ok(mut value)) = (name, HeaderValue::from_bytes(value)) {
            // The library enters every field into the table that the peer keeps (RFC 7541, 2.3.2) and looks through all
            // values of a name there, but for those that it is told never to enter.
            value.set_sensitive(id.is_ever_new());
            map.append(name, value);
        }
    }
    map
}

/// The well-known names as the library has them, in their order.
static NAMES: LazyLock<Box<[HeaderName]>> = LazyLock::new(|| {
    let names = HeaderId::ALL.iter().map(|id| HeaderName::from_static(id.name()));
    names.collect()
});

fn name_of(id: HeaderId, text: &[u8]) -> Option<HeaderName> {
    let known = (id as usize).checked_sub(1).and_then(|at| NAMES.get(at));
    match known {
        Some(name) => Some(name.clone()),
        None => HeaderName::from_bytes(text).ok(),
    }
}

/// Appends a length.
fn write_length(length: u64, map: &mut HeaderMap) {
    let value = HeaderValue::from(length);
    map.insert(http::header::CONTENT_LENGTH, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Settings;

    fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> http::request::Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn read(parts: &http::request::Parts, has_body: bool) -> Result<RequestHead, HeadError> {
        let mut head = RequestHead::default();
        let limits = Settings::default().message_limits();
        read_request(parts, None, has_body, &limits, &mut head).map(|()| head)
    }

    #[test]
    fn every_known_name_is_the_one_that_it_is_for_the_library() {
        for id in HeaderId::ALL {
            assert_eq!(name_of(*id, b"x").unwrap().as_str(), id.name());
        }
        assert_eq!(name_of(HeaderId::Other, b"X-Own").unwrap().as_str(), "x-own");
        assert_eq!(name_of(HeaderId::Other, b"no token"), None);
    }

    #[test]
    fn lengths_and_expectations_follow_the_rules_of_http1() {
        let uri = "http://h.example/p";
        let head = read(&request("POST", uri, &[("content-length", "4")]), true).unwrap();
        assert_eq!(head.body, BodyLength::Known(4));
        let head = read(&request("POST", uri, &[("expect", "100-Continue")]), true).unwrap();
        assert_eq!((head.body, head.expects_continue), (BodyLength::Chunked, true));
        let head = read(&request("GET", uri, &[("expect", "100-continue")]), false).unwrap();
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
            let found = read(&request(method, uri, fields), true).unwrap_err();
            assert_eq!(found, error, "{method} {fields:?}");
        }
    }

    #[test]
    fn an_extended_connect_is_an_upgrade_and_one_again() {
        let parts = request(
            "CONNECT",
            "https://h.example/chat?a=b",
            &[("sec-websocket-key", "k")],
        );
        let limits = Settings::default().message_limits();
        let mut head = RequestHead::default();
        read_request(&parts, Some("WebSocket"), true, &limits, &mut head).unwrap();
        assert_eq!((&head.method, head.upgrade.as_str()), (&Method::GET, "websocket"));
        assert_eq!((head.body, head.path.as_str()), (BodyLength::None, "/chat?a=b"));
        let to = ([127, 0, 0, 1], 1).into();
        let written = write_request(&head, true, to).unwrap();
        assert_eq!(written.method(), Method::CONNECT);
        assert_eq!(written.uri(), "https://h.example/chat?a=b");
        assert!(written.headers().is_empty(), "{:?}", written.headers());
        // Plain CONNECT is none.
        assert_eq!(read(&parts, true).unwrap_err(), HeadError::Connect);
        let mut answer = ResponseHead::default();
        let parts = Response::new(()).into_parts().0;
        assert!(read_response(&parts, &Method::GET, true, true, &mut answer));
        assert_eq!(answer.status, StatusCode::SWITCHING_PROTOCOLS);
        answer.upgrade.push_str("websocket");
        let (response, length) = write_response(&answer, false);
        assert_eq!((response.status(), length), (StatusCode::OK, None));
    }
}
