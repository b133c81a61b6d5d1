//! Messages as bytes: heads, chunk framing, trailers.
//!
//! Framing is decided here and nowhere else: the caller says how long the body is, the encoder writes the field that
//! says so, and [`BodyFraming`] tells how the data must then be written.

use crate::header::{HeaderId, HeaderList};
use crate::message::{BodyLength, RequestHead, ResponseHead, Version};
use http::Method;

/// How the data of a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// As it is; a length field or the end of the connection delimits it.
    Plain,
    /// In chunks, with a last chunk and trailers.
    Chunked,
}

fn put_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes a request's head for an upstream, always as HTTP/1.1; `close` asks the upstream to close afterwards.
pub fn request_head(head: &RequestHead, close: bool, out: &mut Vec<u8>) -> BodyFraming {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(head.authority.as_bytes());
    out.extend_from_slice(b"\r\n");
    head.headers
        .write_lines(|id| id == HeaderId::Host || id.is_connection_field(), out);
    let framing = match head.body {
        BodyLength::None => {
            // A method that usually has a body says that there is none (RFC 9110, 8.6).
            if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
                put_length(0, out);
            }
            BodyFraming::Plain
        }
        BodyLength::Known(length) => {
            put_length(length, out);
            BodyFraming::Plain
        }
        BodyLength::Chunked | BodyLength::UntilClose => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            BodyFraming::Chunked
        }
    };
    if head.expects_continue {
        out.extend_from_slice(b"expect: 100-continue\r\n");
    }
    if !head.upgrade.is_empty() {
        put_upgrade(&head.upgrade, out);
    } else if close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    framing
}

fn put_upgrade(protocol: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
    out.extend_from_slice(protocol.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// How an answer travels to the client that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseContext {
    /// The version that the client speaks.
    pub version: Version,
    /// Whether the request was HEAD.
    pub head_request: bool,
    /// Whether the connection stays open after the answer, if the body's framing allows it.
    pub keep_alive: bool,
}

/// Writes a response's head. Answers how its body must be written and whether the connection must close after it.
pub fn response_head(
    head: &ResponseHead,
    context: ResponseContext,
    out: &mut Vec<u8>,
) -> (BodyFraming, bool) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    head.headers.write_lines(HeaderId::is_connection_field, out);
    if !head.upgrade.is_empty() {
        // What follows is no body of HTTP.
        put_upgrade(&head.upgrade, out);
        out.extend_from_slice(b"\r\n");
        return (BodyFraming::Plain, false);
    }
    let old = context.version == Version::Http10;
    let mut close = !context.keep_alive;
    let framing = match head.body {
        BodyLength::None => {
            if let Some(length) = head.declared_length {
                put_length(length, out);
            }
            BodyFraming::Plain
        }
        BodyLength::Known(length) => {
            put_length(length, out);
            BodyFraming::Plain
        }
        // HTTP/1.0 has no chunks: the end of the connection delimits the body.
        BodyLength::Chunked | BodyLength::UntilClose if old => {
            close = true;
            BodyFraming::Plain
        }
        BodyLength::Chunked | BodyLength::UntilClose => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            BodyFraming::Chunked
        }
    };
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if old {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    (framing, close)
}

/// Writes an interim (1xx) response.
pub fn interim_head(head: &ResponseHead, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    head.headers.write_lines(HeaderId::is_connection_field, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the line before a chunk of `length` bytes; behind the data goes [`CHUNK_END`].
pub fn chunk_start(length: usize, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let places = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for place in (0..places).rev() {
        out.push(DIGITS.get((length >> (4 * place)) & 15).copied().unwrap_or(b'0'));
    }
    out.extend_from_slice(b"\r\n");
}

/// What follows the data of a chunk.
pub const CHUNK_END: &[u8; 2] = b"\r\n";

/// Writes the last chunk and the trailers.
pub fn last_chunk(trailers: &HeaderList, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    trailers.write_lines(|_| false, out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for (length, text) in [
            (1, "1\r\n"),
            (15, "f\r\n"),
            (16, "10\r\n"),
            (65536, "10000\r\n"),
            (0xabc, "abc\r\n"),
        ] {
            let mut out = Vec::new();
            chunk_start(length, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), text);
        }
    }

    #[test]
    fn framing_fields_are_written_once_and_only_by_the_encoder() {
        let mut head = ResponseHead::default();
        head.clear();
        head.headers.append(b"Content-Length", b"7");
        head.headers.append(b"X-A", b"1");
        head.body = BodyLength::Chunked;
        let mut context = ResponseContext {
            version: Version::Http11,
            head_request: false,
            keep_alive: true,
        };
        let write = |context| {
            let mut out = Vec::new();
            let (framing, close) = response_head(&head, context, &mut out);
            (String::from_utf8(out).unwrap(), framing, close)
        };
        let (text, framing, close) = write(context);
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\nX-A: 1\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        assert_eq!((framing, close), (BodyFraming::Chunked, false));
        context.version = Version::Http10;
        let (text, framing, close) = write(context);
        assert_eq!(text, "HTTP/1.1 200 OK\r\nX-A: 1\r\nconnection: close\r\n\r\n");
        assert_eq!((framing, close), (BodyFraming::Plain, true));
    }
}
