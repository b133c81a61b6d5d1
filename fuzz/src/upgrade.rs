//! Requests that go on in another protocol: Upgrade of HTTP/1.1, extended CONNECT of HTTP/2 and plain CONNECT from a
//! client, to an upstream of either version, whose answers are anything; then the bytes of the tunnel.
//!
//! What must hold: no CONNECT passes; a wish for a protocol that does not pass is not seen upstream; what is asked and
//! agreed upstream is what the client has asked for, in the words of either version; a client of HTTP/2 takes no answer
//! for an agreement that is none; and a tunnel carries the bytes that it gets.

use crate::input::Input;
use http::{Method, StatusCode};
use isthmus::proxy::upgrade;
use isthmus_core::h1::encode::{self, ResponseContext};
use isthmus_core::h1::{BodyDecoder, BodyStep, HeadParser, Parsed, is_protocol};
use isthmus_core::h2::fields::Pseudo;
use isthmus_core::h2::hpack::Decoder;
use isthmus_core::h2::{Fields, head as h2};
use isthmus_core::header::FieldName;
use isthmus_core::limits::{MessageLimits, Settings};
use isthmus_core::listener::Upgrades;
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead, Version};
use isthmus_core::random::Random;
use std::net::SocketAddr;

const METHODS: &[&str] = &["GET", "CONNECT", "POST", "HEAD"];
const PROTOCOLS: &[&str] = &[
    "websocket",
    "WebSocket",
    "h2c",
    "a/1",
    "a",
    "",
    "a, b",
    "websocket/13",
];
const TARGETS: &[&str] = &["/", "/chat?a=b", "*", "h.example:443", "http://h.example/chat"];
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// Interim answers that are waited for.
const INTERIM_MAX: usize = 4;

/// Plays one exchange.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let limits = Settings::default().message_limits();
    let mut random = Random::from_seed(u64::from(input.byte()));
    let Some(mut request) = ask(&mut input, &limits) else {
        return;
    };
    assert_ne!(request.method, Method::CONNECT);
    if !request.upgrade.is_empty() {
        assert_eq!((&request.method, request.body), (&Method::GET, BodyLength::None));
        assert_ne!(request.version, Version::Http10);
        assert!(
            is_protocol(&request.upgrade) && !request.upgrade.bytes().any(|byte| byte.is_ascii_uppercase())
        );
    }
    request.headers.remove_connection_fields();
    let allowed = Upgrades::parse(input.pick(&["websocket", "*", "none", "a, websocket"])).unwrap();
    if !request.upgrade.is_empty() && !allowed.allows(&request.upgrade) {
        if request.version == Version::Http2 {
            return;
        }
        request.upgrade.clear();
    }
    let upstream = input.pick(&[Version::Http11, Version::Http2]);
    if !request.upgrade.is_empty() {
        upgrade::ask(&mut request, upstream, &mut random);
    }
    if !is_sent(&request, upstream, &limits) {
        return;
    }
    for _ in 0..INTERIM_MAX {
        let Some(mut response) = answer(&request, upstream, &mut input, &limits) else {
            return;
        };
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            if upgrade::agree(&request, &mut response, upstream) {
                agreed(&request, &response, upstream, &limits);
                tunnel(&mut input, &limits);
            }
            return;
        }
        if response.status.is_informational() {
            continue;
        }
        let is_tunnel = !request.upgrade.is_empty() && request.version == Version::Http2;
        if !(is_tunnel && response.status.is_success()) {
            assert!(response.upgrade.is_empty());
            told(&request, &response, &limits);
        }
        return;
    }
}

fn text<'a>(input: &mut Input<'a>, known: &'a [&'a str]) -> String {
    if input.once_in(4) {
        let length = input.below(24);
        return String::from_utf8_lossy(input.take(length)).into_owned();
    }
    input.pick(known).to_owned()
}

/// What a block says; None when it breaks a rule of HTTP/2.
fn decoded(block: &[u8]) -> Option<Fields> {
    let mut fields = Fields::default();
    Decoder::default()
        .decode(block, (60 * 1024, 100), &mut fields)
        .ok()?;
    (!fields.is_malformed()).then_some(fields)
}

/// A section with these fields, as a peer writes it, without any compression.
fn section(fields: &[(&str, &str)]) -> Option<Fields> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Lengths that fit the prefix of seven bits.
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127)?);
            block.extend_from_slice(text.as_bytes());
        }
    }
    decoded(&block)
}

fn names(fields: &Fields) -> impl Iterator<Item = &[u8]> {
    fields.list.iter().map(|(_, name, _)| name)
}

/// What a client asks, as the gateway reads it.
fn ask(input: &mut Input<'_>, limits: &MessageLimits) -> Option<RequestHead> {
    let mut head = RequestHead::default();
    let method = text(input, METHODS);
    let protocol = text(input, PROTOCOLS);
    let target = text(input, TARGETS);
    let has_key = input.once_in(2);
    if input.once_in(2) {
        let uri = target;
        let mut fields = vec![(":method", &*method), (":scheme", "https"), (":path", &*uri)];
        fields.push((":authority", "h.example"));
        if !input.once_in(4) {
            fields.push((":protocol", &*protocol));
        }
        if has_key {
            fields.push(("sec-websocket-key", KEY));
        }
        let mut fields = section(&fields)?;
        h2::read_request(&mut fields, input.once_in(2), limits, &mut head).ok()?;
        return Some(head);
    }
    let connection = input.pick(&[
        "upgrade",
        "Upgrade, close",
        "keep-alive",
        "close",
        "x-own, upgrade",
    ]);
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: h.example\r\nConnection: {connection}\r\n");
    if !input.once_in(4) {
        bytes += &format!("Upgrade: {protocol}\r\n");
    }
    if has_key {
        bytes += &format!("Sec-WebSocket-Key: {KEY}\r\n");
    }
    let more = input.pick(&[
        "",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Upgrade: b\r\n",
    ]);
    bytes += more;
    bytes += "\r\n";
    match HeadParser::default().parse_request(bytes.as_bytes(), limits, &mut head) {
        Ok(Parsed::Complete(_)) => Some(head),
        _ => None,
    }
}

/// Whether the request can be sent, and if so it is read there as it is meant.
fn is_sent(request: &RequestHead, upstream: Version, limits: &MessageLimits) -> bool {
    let mut again = RequestHead::default();
    if upstream == Version::Http2 {
        let to = SocketAddr::from(([127, 0, 0, 1], 80));
        if !h2::is_speakable(request) {
            return false;
        }
        let mut block = Vec::new();
        h2::write_request(request, false, to, &mut block);
        let mut written = decoded(&block).unwrap();
        let wants = !request.upgrade.is_empty();
        assert_eq!(written.pseudo(Pseudo::Method) == Some(b"CONNECT"), wants);
        assert_eq!(
            written.pseudo_text(Pseudo::Protocol),
            wants.then_some(request.upgrade.as_str())
        );
        assert!(!wants || !names(&written).any(|name| name == b"sec-websocket-key"));
        h2::read_request(&mut written, !request.body.is_empty(), limits, &mut again).unwrap();
    } else {
        let mut out = Vec::new();
        encode::request_head(request, false, &mut out);
        let parsed = HeadParser::default().parse_request(&out, limits, &mut again);
        assert_eq!(
            parsed,
            Ok(Parsed::Complete(out.len())),
            "{}",
            String::from_utf8_lossy(&out)
        );
        if request.version == Version::Http2 && request.upgrade == "websocket" {
            assert!(upgrade::accept(&again).is_some(), "there is a key to prove");
        }
    }
    assert_eq!(again.upgrade, request.upgrade);
    assert_eq!(
        (again.method, again.path),
        (request.method.clone(), request.path.clone())
    );
    true
}

/// What the upstream answers, as the gateway reads it.
fn answer(
    request: &RequestHead,
    upstream: Version,
    input: &mut Input<'_>,
    limits: &MessageLimits,
) -> Option<ResponseHead> {
    let status = input.pick(&[101, 200, 101, 100, 103, 204, 400, 426]);
    // The right proof, that of the RFC's example, or none.
    let proof = match input.below(3) {
        0 => upgrade::accept(request),
        1 => Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned()),
        _ => None,
    };
    let mut head = ResponseHead::default();
    if upstream == Version::Http2 {
        let status_text = status.to_string();
        let mut fields = vec![(":status", status_text.as_str())];
        if let Some(proof) = &proof {
            fields.push(("sec-websocket-accept", proof));
        }
        let mut fields = section(&fields)?;
        if status < 200 {
            h2::read_interim(&mut fields, &mut head).ok()?;
            assert_ne!(head.status, StatusCode::SWITCHING_PROTOCOLS);
        } else {
            let has_body = input.once_in(2);
            let is_upgrade = !request.upgrade.is_empty();
            h2::read_response(&mut fields, &request.method, is_upgrade, has_body, &mut head).ok()?;
        }
        return Some(head);
    }
    let mut bytes = format!("HTTP/1.1 {status} x\r\n");
    if !input.once_in(4) {
        bytes += "Connection: Upgrade\r\n";
    }
    if !input.once_in(4) {
        let protocol = if input.once_in(2) {
            request.upgrade.clone()
        } else {
            text(input, PROTOCOLS)
        };
        bytes += &format!("Upgrade: {protocol}\r\n");
    }
    if let Some(proof) = proof {
        bytes += &format!("Sec-WebSocket-Accept: {proof}\r\n");
    }
    bytes += input.pick(&["", "Content-Length: 2\r\n", "Transfer-Encoding: chunked\r\n"]);
    bytes += "\r\n";
    match HeadParser::default().parse_response(bytes.as_bytes(), limits, &request.method, &mut head) {
        Ok(Parsed::Complete(_)) => {
            head.headers.remove_connection_fields();
            Some(head)
        }
        _ => None,
    }
}

/// An agreement is to what was asked for, proven where it must be.
fn agreed(request: &RequestHead, response: &ResponseHead, upstream: Version, limits: &MessageLimits) {
    assert!(!request.upgrade.is_empty());
    assert_eq!(response.upgrade, request.upgrade);
    let name = FieldName::parse("sec-websocket-accept").unwrap();
    let proof = response.headers.get_named(&name).next();
    let crosses = (request.version == Version::Http2) != (upstream == Version::Http2);
    if request.upgrade == "websocket"
        && crosses
        && let Some(expected) = upgrade::accept(request)
    {
        assert_eq!(proof, Some(expected.as_bytes()));
    }
    told(request, response, limits);
}

/// What the client is told is what it reads.
fn told(request: &RequestHead, response: &ResponseHead, limits: &MessageLimits) {
    let is_agreement = !response.upgrade.is_empty();
    if request.version == Version::Http2 {
        let mut block = Vec::new();
        h2::write_response(response, request.method == Method::HEAD, &mut block);
        let written = decoded(&block).unwrap();
        assert!(!is_agreement || !names(&written).any(|name| name == b"sec-websocket-accept"));
        let status = written.status().unwrap();
        let is_success = (200..300).contains(&status);
        assert!(
            request.upgrade.is_empty() || is_success == is_agreement,
            "{status}"
        );
        return;
    }
    let context = ResponseContext {
        version: request.version,
        head_request: request.method == Method::HEAD,
        keep_alive: request.keep_alive,
    };
    let mut out = Vec::new();
    encode::response_head(response, context, &mut out);
    let mut again = ResponseHead::default();
    let parsed = HeadParser::default().parse_response(&out, limits, &request.method, &mut again);
    assert_eq!(
        parsed,
        Ok(Parsed::Complete(out.len())),
        "{}",
        String::from_utf8_lossy(&out)
    );
    assert_eq!(again.status == StatusCode::SWITCHING_PROTOCOLS, is_agreement);
    assert_eq!(again.upgrade, response.upgrade);
}

/// The bytes of a tunnel in one direction: all of them, in their order, until its end.
fn tunnel(input: &mut Input<'_>, limits: &MessageLimits) {
    let step = 1 + input.below(64);
    let bytes = input.rest();
    let mut decoder = BodyDecoder::new(BodyLength::UntilClose, limits);
    let mut carried = Vec::new();
    for mut piece in bytes.chunks(step) {
        while !piece.is_empty() {
            match decoder.step(piece) {
                Ok(BodyStep::Data(there)) => {
                    assert!(there > 0);
                    carried.extend_from_slice(&piece[..there]);
                    decoder.take(there);
                    piece = &piece[there..];
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(carried, bytes);
    assert!(decoder.end_of_input().is_ok());
}
