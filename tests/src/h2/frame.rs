//! HTTP/2 frames as bytes (RFC 9113, 4 and 6). What comes in is a type, flags, a stream and a payload, all of which may
//! be against the rules; what goes out is the nine octets of the header and the payload behind them.

use std::fmt;

/// The octets before each payload (RFC 9113, 4.1).
pub const HEADER_BYTES: usize = 9;

/// The bit above a stream identifier, which receivers ignore (RFC 9113, 4.1).
pub const RESERVED_BIT: u32 = 1 << 31;

/// The greatest window, and the greatest stream identifier.
pub const MAX_31: u32 = (1 << 31) - 1;

/// The types of frames (RFC 9113, 6).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
    /// A type that nobody has defined.
    pub const UNKNOWN: u8 = 0xbe;
}

/// The flags of frames (RFC 9113, 6).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub mod flag {
    pub const NONE: u8 = 0;
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
    /// A header block that is whole, of a request without content.
    pub const WHOLE: u8 = END_HEADERS | END_STREAM;
}

/// The settings (RFC 9113, 6.5.2).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    /// One that nobody has defined.
    pub const UNKNOWN: u16 = 0xbabe;
}

/// An error code (RFC 9113, 7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

#[allow(missing_docs, reason = "the names are those of the RFC")]
impl Code {
    pub const NO_ERROR: Self = Self(0);
    pub const PROTOCOL_ERROR: Self = Self(1);
    pub const INTERNAL_ERROR: Self = Self(2);
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    pub const SETTINGS_TIMEOUT: Self = Self(4);
    pub const STREAM_CLOSED: Self = Self(5);
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    pub const REFUSED_STREAM: Self = Self(7);
    pub const CANCEL: Self = Self(8);
    pub const COMPRESSION_ERROR: Self = Self(9);
    pub const CONNECT_ERROR: Self = Self(10);
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
    pub const INADEQUATE_SECURITY: Self = Self(12);
    pub const HTTP_1_1_REQUIRED: Self = Self(13);
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        let known = usize::try_from(self.0).ok().and_then(|number| NAMES.get(number));
        match known {
            Some(name) => f.write_str(name),
            None => write!(f, "error {:#x}", self.0),
        }
    }
}

/// A frame, legal or not.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream, with the reserved bit above it.
    pub stream: u32,
    /// What is behind the header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Any frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        let payload = payload.into();
        Self {
            kind,
            flags,
            stream,
            payload,
        }
    }

    /// DATA without padding.
    pub fn data(flags: u8, stream: u32, content: impl Into<Vec<u8>>) -> Self {
        Self::new(kind::DATA, flags, stream, content)
    }

    /// HEADERS with this part of a block.
    pub fn headers(flags: u8, stream: u32, block: impl Into<Vec<u8>>) -> Self {
        Self::new(kind::HEADERS, flags, stream, block)
    }

    /// CONTINUATION with this part of a block.
    pub fn continuation(flags: u8, stream: u32, block: impl Into<Vec<u8>>) -> Self {
        Self::new(kind::CONTINUATION, flags, stream, block)
    }

    /// PRIORITY.
    pub fn priority(stream: u32, depends_on: u32, weight: u8) -> Self {
        Self::new(
            kind::PRIORITY,
            flag::NONE,
            stream,
            priority_fields(depends_on, weight),
        )
    }

    /// RST_STREAM.
    pub fn rst_stream(stream: u32, code: Code) -> Self {
        Self::new(kind::RST_STREAM, flag::NONE, stream, code.0.to_be_bytes())
    }

    /// SETTINGS with these values in this order.
    pub fn settings(values: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (name, value) in values {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        Self::new(kind::SETTINGS, flag::NONE, 0, payload)
    }

    /// The acknowledgement of SETTINGS.
    pub fn settings_ack() -> Self {
        Self::new(kind::SETTINGS, flag::ACK, 0, [])
    }

    /// PING, or with the flag ACK its answer.
    pub fn ping(flags: u8, opaque: [u8; 8]) -> Self {
        Self::new(kind::PING, flags, 0, opaque)
    }

    /// GOAWAY.
    pub fn goaway(last_stream: u32, code: Code, debug: &[u8]) -> Self {
        let mut payload = last_stream.to_be_bytes().to_vec();
        payload.extend_from_slice(&code.0.to_be_bytes());
        payload.extend_from_slice(debug);
        Self::new(kind::GOAWAY, flag::NONE, 0, payload)
    }

    /// WINDOW_UPDATE.
    pub fn window_update(stream: u32, increment: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, flag::NONE, stream, increment.to_be_bytes())
    }

    /// PUSH_PROMISE, which no client may send.
    pub fn push_promise(stream: u32, promised: u32, block: &[u8]) -> Self {
        let mut payload = promised.to_be_bytes().to_vec();
        payload.extend_from_slice(block);
        Self::new(kind::PUSH_PROMISE, flag::END_HEADERS, stream, payload)
    }

    /// Puts the fields of a priority before the payload, and sets their flag.
    #[must_use]
    pub fn with_priority(mut self, depends_on: u32, weight: u8) -> Self {
        let fields = priority_fields(depends_on, weight);
        self.payload.splice(0..0, fields);
        self.flags |= flag::PRIORITY;
        self
    }

    /// Puts padding behind the payload and its length before it, and sets the flag. The length that is said and the
    /// octets that are there may differ.
    #[must_use]
    pub fn with_padding(mut self, said: u8, octets: usize) -> Self {
        self.payload.insert(0, said);
        self.payload.resize(self.payload.len() + octets, 0);
        self.flags |= flag::PADDED;
        self
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_declaring(u32::try_from(self.payload.len()).expect("a payload of 24 bits"))
    }

    /// The frame with this length in its header, whatever is behind it.
    pub fn encode_declaring(&self, length: u32) -> Vec<u8> {
        assert!(length < 1 << 24, "a length of 24 bits");
        let mut out = length.to_be_bytes()[1..].to_vec();
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.payload);
        out
    }

    /// The first frame of these bytes, and how many of them it took; None when it is not all there.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let header = bytes.get(..HEADER_BYTES)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let end = HEADER_BYTES + usize::try_from(length).ok()?;
        let payload = bytes.get(HEADER_BYTES..end)?;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        Some((Self::new(header[3], header[4], stream, payload), end))
    }

    /// Whether all bits of this flag are set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag == flag
    }

    /// The 32 bits at this place of the payload.
    pub fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The payload without padding and the fields of a priority; None when the padding does not fit.
    pub fn content(&self) -> Option<&[u8]> {
        let mut content = self.payload.as_slice();
        if self.has(flag::PADDED) {
            let (said, rest) = content.split_first()?;
            content = rest.get(..rest.len().checked_sub(usize::from(*said))?)?;
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..)?;
        }
        Some(content)
    }
}

/// What a report says of a frame.
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            kind::DATA => "DATA",
            kind::HEADERS => "HEADERS",
            kind::PRIORITY => "PRIORITY",
            kind::RST_STREAM => "RST_STREAM",
            kind::SETTINGS => "SETTINGS",
            kind::PUSH_PROMISE => "PUSH_PROMISE",
            kind::PING => "PING",
            kind::GOAWAY => "GOAWAY",
            kind::WINDOW_UPDATE => "WINDOW_UPDATE",
            kind::CONTINUATION => "CONTINUATION",
            other => return write!(f, "type {other:#x} on {}", self.stream),
        };
        write!(f, "{name} on {}, flags {:#x}", self.stream, self.flags)?;
        match (self.kind, self.word(0), self.word(4)) {
            (kind::RST_STREAM, Some(code), _) => write!(f, ", {:?}", Code(code)),
            (kind::GOAWAY, Some(last), Some(code)) => write!(f, ", last {last}, {:?}", Code(code)),
            (kind::WINDOW_UPDATE, Some(increment), _) => write!(f, ", +{increment}"),
            _ => write!(f, ", {} octets", self.payload.len()),
        }
    }
}

fn priority_fields(depends_on: u32, weight: u8) -> Vec<u8> {
    let mut fields = depends_on.to_be_bytes().to_vec();
    fields.push(weight);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let frame = Frame::headers(flag::WHOLE, 5 | RESERVED_BIT, b"block".as_slice());
        let bytes = frame.encode();
        assert_eq!(bytes[..HEADER_BYTES], [0, 0, 5, 1, 5, 0x80, 0, 0, 5]);
        assert_eq!(Frame::decode(&bytes), Some((frame, bytes.len())));
        for end in 0..bytes.len() {
            assert_eq!(Frame::decode(&bytes[..end]), None, "{end} octets");
        }
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        let frame = Frame::headers(flag::NONE, 1, b"abc".as_slice());
        let full = frame.with_priority(3, 15).with_padding(4, 4);
        assert_eq!(full.payload.len(), 3 + 5 + 1 + 4);
        assert_eq!(full.content(), Some(b"abc".as_slice()));
        assert_eq!(
            Frame::data(0, 1, b"abc".as_slice()).with_padding(4, 0).content(),
            None
        );
    }

    #[test]
    fn a_declared_length_may_be_wrong() {
        let bytes = Frame::ping(flag::NONE, [7; 8]).encode_declaring(6);
        assert_eq!((bytes[2], bytes.len()), (6, HEADER_BYTES + 8));
    }
}
