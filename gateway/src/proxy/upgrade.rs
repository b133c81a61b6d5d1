//! Requests that go on in another protocol: WebSocket, and whatever else a listener lets pass.
//!
//! HTTP/1.1 and HTTP/2 ask for that in different words (RFC 9110, 7.8; RFC 8441). Heads have HTTP/1.1's, the codecs of
//! HTTP/2 translate; what is left is the proof that a WebSocket's two ends understand each other (RFC 6455, 1.3), which
//! HTTP/2 does without: towards a side that wants it, the gateway is the other end.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isthmus_core::header::FieldName;
use isthmus_core::message::{RequestHead, ResponseHead, Version};
use isthmus_core::random::Random;

const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";
/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Completes a request that asks for another protocol, for a connection on which this version is spoken.
pub fn ask(request: &mut RequestHead, upstream: Version, random: &mut Random) {
    let needs_key = request.version == Version::Http2 && upstream != Version::Http2;
    if needs_key && request.upgrade == "websocket" {
        request.headers.remove_by_text(KEY.as_bytes());
        let nonce: [u64; 2] = [random.next_u64(), random.next_u64()];
        let bytes = nonce.map(u64::to_ne_bytes).concat();
        request
            .headers
            .append(KEY.as_bytes(), STANDARD.encode(bytes).as_bytes());
    }
}

/// Whether an answer of 101, which has come in this version, is an agreement to what was asked for; completes it for the
/// client.
pub fn agree(request: &RequestHead, response: &mut ResponseHead, upstream: Version) -> bool {
    let is_websocket = request.upgrade == "websocket";
    if request.upgrade.is_empty() {
        return false;
    }
    if upstream == Version::Http2 {
        response.upgrade.clone_from(&request.upgrade);
        if is_websocket && let Some(proof) = accept(request) {
            answer(response, &proof);
        }
        return true;
    }
    if response.upgrade != request.upgrade {
        return false;
    }
    if is_websocket && request.version == Version::Http2 {
        let (Some(name), Some(expected)) = (FieldName::parse(ACCEPT), accept(request)) else {
            return false;
        };
        return response.headers.get_named(&name).next() == Some(expected.as_bytes());
    }
    true
}

fn answer(response: &mut ResponseHead, proof: &str) {
    response.headers.remove_by_text(ACCEPT.as_bytes());
    response.headers.append(ACCEPT.as_bytes(), proof.as_bytes());
}

/// What proves that a request's key was understood.
pub fn accept(request: &RequestHead) -> Option<String> {
    let name = FieldName::parse(KEY)?;
    let key = request.headers.get_named(&name).next()?;
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(GUID);
    Some(STANDARD.encode(context.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_the_one_of_the_rfcs_example() {
        let mut request = RequestHead::default();
        assert_eq!(accept(&request), None);
        request
            .headers
            .append(b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&request).as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    }
}
