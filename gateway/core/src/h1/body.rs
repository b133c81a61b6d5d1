//! Bodies: where the data is in the bytes that arrive, and where the message ends.
//!
//! A [`BodyDecoder`] is asked again and again with the unused bytes; it answers with the next [`BodyStep`]. Data is
//! never copied: a step says how many bytes at the front of the input are data, and [`BodyDecoder::take`] notes how
//! many of them were used.

use crate::header::{HeaderId, HeaderList};
use crate::limits::MessageLimits;
use crate::message::BodyLength;

/// What the front of the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyStep {
    /// So many bytes are framing: drop them and ask again.
    Skip(usize),
    /// So many bytes are data: use some and say how many with [`BodyDecoder::take`]; never 0.
    Data(usize),
    /// Nothing more can be said without further input.
    NeedInput,
    /// The message is complete; what follows belongs to the next one.
    End,
}

/// Why a body was refused: a request gets 400 if its answer has not begun, and its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each says it")]
pub enum BodyError {
    #[error("a chunk's size is not plain hexadecimal ended by CR LF")]
    ChunkSize,
    #[error("a chunk's size line is too long")]
    ChunkLineTooLong,
    #[error("a chunk's data is not ended by CR LF")]
    ChunkEnd,
    #[error("the trailer section is not valid")]
    Trailer,
    #[error("the trailer section is too large")]
    TrailerTooLarge,
    #[error("the connection closed before the body's end")]
    Truncated,
}

impl BodyError {
    /// A short name for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ChunkSize => "chunk_size",
            Self::ChunkLineTooLong => "chunk_line_too_long",
            Self::ChunkEnd => "chunk_end",
            Self::Trailer => "trailer",
            Self::TrailerTooLarge => "trailer_too_large",
            Self::Truncated => "truncated",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of data are left.
    Length(u64),
    /// Data until the connection closes.
    UntilClose,
    /// In a chunk's size: the value so far and whether a digit was seen.
    Size { value: u64, digits: bool },
    /// White space after a size, which only an extension may follow.
    SizeSpace { value: u64 },
    /// In an extension, which is passed over.
    Extension { value: u64 },
    /// After the CR of a size line.
    SizeLf { value: u64 },
    /// So many bytes of a chunk's data are left.
    Chunk(u64),
    /// Before the CR after a chunk's data.
    DataCr,
    /// Before the LF after a chunk's data.
    DataLf,
    /// In the trailer section.
    Trailers,
    /// Behind the message.
    Done,
}

/// Follows one body.
#[derive(Debug, Clone)]
pub struct BodyDecoder {
    state: State,
    line: usize,
    trailer_block: Vec<u8>,
    chunk_line_max: usize,
    trailer_max: usize,
}

impl BodyDecoder {
    /// A decoder for a body of this declared length.
    pub fn new(length: BodyLength, limits: &MessageLimits) -> Self {
        let state = match length {
            BodyLength::None | BodyLength::Known(0) => State::Done,
            BodyLength::Known(length) => State::Length(length),
            BodyLength::Chunked => State::Size {
                value: 0,
                digits: false,
            },
            BodyLength::UntilClose => State::UntilClose,
        };
        Self {
            state,
            line: 0,
            trailer_block: Vec::new(),
            chunk_line_max: limits.chunk_line_bytes,
            trailer_max: limits.trailer_bytes,
        }
    }

    /// Whether the whole message has been seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many bytes are left of a body of known length; None for the others.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Says what the front of `input` is.
    pub fn step(&mut self, input: &[u8]) -> Result<BodyStep, BodyError> {
        match self.state {
            State::Done => return Ok(BodyStep::End),
            State::Length(left) | State::Chunk(left) => {
                let there = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                return Ok(if there == 0 {
                    BodyStep::NeedInput
                } else {
                    BodyStep::Data(there)
                });
            }
            State::UntilClose if input.is_empty() => return Ok(BodyStep::NeedInput),
            State::UntilClose => return Ok(BodyStep::Data(input.len())),
            _ => {}
        }
        let mut used = 0;
        for &byte in input {
            self.framing_byte(byte)?;
            used += 1;
            if matches!(self.state, State::Chunk(_) | State::Done) {
                break;
            }
        }
        Ok(if used == 0 {
            BodyStep::NeedInput
        } else {
            BodyStep::Skip(used)
        })
    }

    /// Notes that so many bytes of a [`BodyStep::Data`] were used.
    pub fn take(&mut self, used: usize) {
        self.state = match self.state {
            State::Length(left) => match left.saturating_sub(used as u64) {
                0 => State::Done,
                left => State::Length(left),
            },
            State::Chunk(left) => match left.saturating_sub(used as u64) {
                0 => State::DataCr,
                left => State::Chunk(left),
            },
            other => other,
        };
    }

    /// The input has ended: that completes a body which lasts until then, and breaks off any other.
    pub fn end_of_input(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BodyError::Truncated),
        }
    }

    fn framing_byte(&mut self, byte: u8) -> Result<(), BodyError> {
        self.line += 1;
        if self.line > self.chunk_line_max && !matches!(self.state, State::Trailers) {
            return Err(BodyError::ChunkLineTooLong);
        }
        self.state = match (self.state, byte) {
            (State::Size { value, .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    _ => (byte | 0x20) - b'a' + 10,
                };
                let value = value
                    .checked_mul(16)
                    .and_then(|value| value.checked_add(u64::from(digit)));
                let value = value
                    .filter(|&value| value <= i64::MAX as u64)
                    .ok_or(BodyError::ChunkSize)?;
                State::Size { value, digits: true }
            }
            (State::Size { value, digits: true }, b'\r') | (State::Extension { value }, b'\r') => {
                State::SizeLf { value }
            }
            (State::Size { value, digits: true } | State::SizeSpace { value }, b';') => {
                State::Extension { value }
            }
            (State::Size { value, digits: true } | State::SizeSpace { value }, b' ' | b'\t') => {
                State::SizeSpace { value }
            }
            (State::Extension { .. }, byte) if crate::header::is_value_byte(byte) => self.state,
            (State::SizeLf { value: 0 }, b'\n') => {
                self.trailer_block.clear();
                State::Trailers
            }
            (State::SizeLf { value }, b'\n') => {
                self.line = 0;
                State::Chunk(value)
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size {
                    value: 0,
                    digits: false,
                }
            }
            (State::DataCr | State::DataLf, _) => return Err(BodyError::ChunkEnd),
            (State::Trailers, byte) => return self.trailer_byte(byte),
            _ => return Err(BodyError::ChunkSize),
        };
        Ok(())
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<(), BodyError> {
        if self.trailer_block.len() >= self.trailer_max {
            return Err(BodyError::TrailerTooLarge);
        }
        self.trailer_block.push(byte);
        let block = &self.trailer_block;
        if byte == b'\n' {
            if !block.ends_with(b"\r\n") {
                return Err(BodyError::Trailer);
            }
            if block.len() == 2 || block.ends_with(b"\r\n\r\n") {
                self.state = State::Done;
                if block.len() > 2 {
                    let mut table = [httparse::EMPTY_HEADER; 64];
                    match httparse::parse_headers(block, &mut table) {
                        Ok(httparse::Status::Complete((used, _))) if used == block.len() => {}
                        _ => return Err(BodyError::Trailer),
                    }
                }
            }
        }
        Ok(())
    }

    /// The trailer fields that may be forwarded, once the body is done. Fields about framing, routing, the connection,
    /// authentication or the content itself have no place in a trailer (RFC 9110, 6.5.1) and are left out.
    pub fn trailers(&self, into: &mut HeaderList) {
        into.clear();
        if self.state != State::Done || self.trailer_block.len() <= 2 {
            return;
        }
        let mut table = [httparse::EMPTY_HEADER; 64];
        if let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&self.trailer_block, &mut table)
        {
            for field in fields.iter().filter(|field| may_trail(field.name.as_bytes())) {
                into.append(field.name.as_bytes(), field.value);
            }
        }
    }
}

/// Whether a field may stand in trailers: not one that frames, routes or authenticates (RFC 9110, 6.5.1).
pub fn may_trail(name: &[u8]) -> bool {
    let id = HeaderId::of(name);
    let starts = |prefix: &[u8]| {
        name.get(..prefix.len())
            .is_some_and(|part| part.eq_ignore_ascii_case(prefix))
    };
    let forbidden = [
        &b"authorization"[..],
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"cookie",
        b"set-cookie",
        b"range",
        b"forwarded",
    ];
    !(id.is_connection_field()
        || matches!(
            id,
            HeaderId::Host | HeaderId::ContentType | HeaderId::MaxForwards | HeaderId::Trailer
        )
        || matches!(id, HeaderId::Location | HeaderId::Date | HeaderId::XRequestId)
        || starts(b"x-forwarded-")
        || starts(b"x-envoy-")
        || starts(b"if-")
        || forbidden.iter().any(|bad| name.eq_ignore_ascii_case(bad)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Settings;

    fn decode(length: BodyLength, bytes: &[u8]) -> Result<(Vec<u8>, usize, String), BodyError> {
        let mut decoder = BodyDecoder::new(length, &Settings::default().message_limits());
        let (mut data, mut at) = (Vec::new(), 0);
        loop {
            match decoder.step(&bytes[at..])? {
                BodyStep::Skip(used) => at += used,
                BodyStep::Data(there) => {
                    data.extend_from_slice(&bytes[at..at + there]);
                    decoder.take(there);
                    at += there;
                }
                BodyStep::NeedInput => decoder.end_of_input()?,
                BodyStep::End => break,
            }
        }
        let mut trailers = HeaderList::default();
        decoder.trailers(&mut trailers);
        Ok((data, at, trailers.to_string()))
    }

    #[test]
    fn bodies_end_where_their_length_says() {
        let known = decode(BodyLength::Known(5), b"hello GET /").unwrap();
        assert_eq!((&known.0[..], known.1), (&b"hello"[..], 5));
        assert_eq!(decode(BodyLength::Known(5), b"hell"), Err(BodyError::Truncated));
        assert_eq!(decode(BodyLength::UntilClose, b"hell").unwrap().0, b"hell");
        let chunked =
            b"000A;a=\"x;y\"\r\n0123456789\r\n5 ;b\r\nhello\r\n0\r\nX-T: 1\r\nContent-Length: 9\r\n\r\nGET";
        let (data, used, trailers) = decode(BodyLength::Chunked, chunked).unwrap();
        assert_eq!((&data[..], used), (&b"0123456789hello"[..], chunked.len() - 3));
        assert_eq!(trailers, "X-T: 1\n");
    }

    #[test]
    fn malformed_chunks_are_refused() {
        use BodyError as E;
        for (bytes, expected) in [
            (&b"0x5\r\nhello\r\n0\r\n\r\n"[..], E::ChunkSize),
            (b"-5\r\n", E::ChunkSize),
            (b"0_5\r\n", E::ChunkSize),
            (b"\r\nhello", E::ChunkSize),
            (b" 5\r\n", E::ChunkSize),
            (b"5 \r\nhello", E::ChunkSize),
            (b"5g\r\n", E::ChunkSize),
            (b"5\nhello", E::ChunkSize),
            (b"5;a\nb\r\nhello", E::ChunkSize),
            (b"5;a\rb\r\nhello", E::ChunkSize),
            (b"10000000000000005\r\n", E::ChunkSize),
            (b"ffffffffffffffff0\r\n", E::ChunkSize),
            (b"5\r\nhelloXX0\r\n\r\n", E::ChunkEnd),
            (b"5\r\nhello\n0\r\n\r\n", E::ChunkEnd),
            (b"0\n\n", E::ChunkSize),
            (b"0\r\nA: b\n\r\n", E::Trailer),
            (b"0\r\nA : b\r\n\r\n", E::Trailer),
            (b"0\r\n\n", E::Trailer),
            (b"5\r\nhel", E::Truncated),
            (b"5\r\nhello\r\n0\r\n", E::Truncated),
        ] {
            assert_eq!(
                decode(BodyLength::Chunked, bytes),
                Err(expected),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
        let long = [b"5;".to_vec(), vec![b'a'; 5000]].concat();
        assert_eq!(decode(BodyLength::Chunked, &long), Err(E::ChunkLineTooLong));
        let trailer = [b"0\r\nA: ".to_vec(), vec![b'a'; 9000]].concat();
        assert_eq!(decode(BodyLength::Chunked, &trailer), Err(E::TrailerTooLarge));
    }
}
