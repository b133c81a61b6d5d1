//! HTTP/1.1 messages read strictly from a socket: what RFC 9112 does not allow is an error, never guessed at.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

const LINE_MAX: usize = 128 * 1024;
const BLOCK: usize = 16 * 1024;

/// Why a message could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    /// The peer closed before the first byte of a message.
    Closed,
    /// The peer closed inside a message.
    Truncated(&'static str),
    /// The peer reset the connection.
    Reset,
    /// Nothing came in time.
    TimedOut,
    /// The bytes are not HTTP/1.1.
    Syntax(String),
    /// Anything else that the kernel says.
    Io(String),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed before a message"),
            Self::Truncated(place) => write!(f, "closed inside the {place}"),
            Self::Reset => f.write_str("reset by the peer"),
            Self::TimedOut => f.write_str("nothing came in time"),
            Self::Syntax(text) | Self::Io(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for WireError {}

impl From<std::io::Error> for WireError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Self::Reset,
            _ => Self::Io(error.to_string()),
        }
    }
}

fn syntax<T>(text: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::Syntax(text.into()))
}

/// Header fields in order, names as they were sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// The value of a field that appears at most once; panics when it appears more often.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.all(name);
        let first = all.next();
        assert!(all.next().is_none(), "{name} appears several times: {self:?}");
        first
    }

    /// All values of a field.
    pub fn all<'s, 'n>(&'s self, name: &'n str) -> impl Iterator<Item = &'s str> + use<'s, 'n> {
        self.0
            .iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// No body.
    None,
    /// So many bytes.
    Known(usize),
    /// Chunks and trailers.
    Chunked,
    /// Until the peer closes.
    UntilClose,
}

/// A socket with a buffer, and optionally a record of all that came.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    record: Option<Arc<Mutex<Vec<u8>>>>,
}

impl Wire {
    /// Reads from this socket.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            record: None,
        }
    }

    /// Reads from this socket and keeps every byte in `record`.
    pub fn recording(stream: TcpStream, record: Arc<Mutex<Vec<u8>>>) -> Self {
        Self {
            record: Some(record),
            ..Self::new(stream)
        }
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The socket without the buffer.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The socket, to write to.
    pub fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// What was received and not read yet.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Waits for more bytes; answers how many, 0 at the end.
    pub fn fill(&mut self) -> Result<usize, WireError> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        let old = self.buffer.len();
        self.buffer.resize(old + BLOCK, 0);
        let got = loop {
            match self.stream.read(&mut self.buffer[old..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(old + *got.as_ref().unwrap_or(&0));
        let got = got?;
        if let Some(record) = &self.record {
            record.lock().unwrap().extend_from_slice(&self.buffer[old..]);
        }
        Ok(got)
    }

    fn need(&mut self, place: &'static str) -> Result<(), WireError> {
        if self.fill()? == 0 {
            Err(WireError::Truncated(place))
        } else {
            Ok(())
        }
    }

    /// A line without its CRLF. A bare CR or LF is an error.
    pub fn line(&mut self, place: &'static str) -> Result<String, WireError> {
        let mut seen = 0;
        loop {
            let pending = self.pending();
            if let Some(at) = pending[seen..]
                .iter()
                .position(|byte| *byte == b'\n')
                .map(|at| at + seen)
            {
                let Some(line) = pending[..at].strip_suffix(b"\r") else {
                    return syntax(format!("a bare LF in the {place}"));
                };
                if let Some(bad) = line.iter().find(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
                    return syntax(format!("byte {bad:#04x} in the {place}"));
                }
                let text = line.iter().map(|byte| char::from(*byte)).collect();
                self.start += at + 1;
                return Ok(text);
            }
            seen = pending.len();
            if seen > LINE_MAX {
                return syntax(format!("an endless line in the {place}"));
            }
            self.need(place)?;
        }
    }

    /// The first line of the next message.
    pub fn start_line(&mut self) -> Result<String, WireError> {
        if self.pending().is_empty() && self.fill()? == 0 {
            return Err(WireError::Closed);
        }
        self.line("start line")
    }

    /// Fields up to the empty line.
    pub fn fields(&mut self, place: &'static str) -> Result<Fields, WireError> {
        let mut fields = Vec::new();
        loop {
            let line = self.line(place)?;
            if line.is_empty() {
                return Ok(Fields(fields));
            }
            let Some((name, value)) = line.split_once(':') else {
                return syntax(format!("a field without a colon: {line:?}"));
            };
            if !is_token(name) {
                return syntax(format!("not a field name: {name:?}"));
            }
            fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// A body and its trailers.
    pub fn body(&mut self, length: Length) -> Result<(Vec<u8>, Fields), WireError> {
        let mut body = Vec::new();
        match length {
            Length::None => {}
            Length::Known(bytes) => self.exactly(bytes, &mut body)?,
            Length::UntilClose => loop {
                body.extend_from_slice(self.pending());
                self.start = self.buffer.len();
                if self.fill()? == 0 {
                    break;
                }
            },
            Length::Chunked => loop {
                let line = self.line("chunk's line")?;
                let digits = line.split(';').next().unwrap_or_default();
                if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return syntax(format!("not a chunk's size: {line:?}"));
                }
                let size =
                    usize::from_str_radix(digits, 16).or_else(|_| syntax("a chunk's size overflows"))?;
                if size == 0 {
                    return Ok((body, self.fields("trailers")?));
                }
                self.exactly(size, &mut body)?;
                if !self.line("end of a chunk")?.is_empty() {
                    return syntax("a chunk is longer than its size");
                }
            },
        }
        Ok((body, Fields::default()))
    }

    fn exactly(&mut self, bytes: usize, out: &mut Vec<u8>) -> Result<(), WireError> {
        let mut missing = bytes;
        loop {
            let take = missing.min(self.pending().len());
            out.extend_from_slice(&self.pending()[..take]);
            self.start += take;
            missing -= take;
            if missing == 0 {
                return Ok(());
            }
            self.need("body")?;
        }
    }
}

/// Whether a text is a token (RFC 9110, 5.6.2).
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The length that the fields declare; None when they do not (RFC 9112, 6.3, in its strictest reading).
pub fn declared_length(fields: &Fields) -> Result<Option<Length>, WireError> {
    let lengths: Vec<_> = fields.all("content-length").collect();
    let codings: Vec<_> = fields.all("transfer-encoding").collect();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(None),
        ([], [only]) if only.eq_ignore_ascii_case("chunked") => Ok(Some(Length::Chunked)),
        ([only], []) if !only.is_empty() && only.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(
            Length::Known(only.parse().or_else(|_| syntax("a length overflows"))?),
        )),
        _ => syntax(format!("ambiguous framing: {fields:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn wire_with(bytes: &[u8]) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sender.write_all(bytes).unwrap();
        Wire::new(listener.accept().unwrap().0)
    }

    #[test]
    fn chunks_and_trailers_are_read() {
        let mut wire = wire_with(b"4;x=y\r\nabcd\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\nrest");
        let (body, trailers) = wire.body(Length::Chunked).unwrap();
        assert_eq!(
            (body.as_slice(), trailers.get("t")),
            (&b"abcd0123456789"[..], Some("v"))
        );
        assert_eq!(wire.pending(), b"rest");
    }

    #[test]
    fn what_the_rfc_does_not_allow_is_an_error() {
        for bytes in [
            &b"5 \r\nabcde\r\n0\r\n\r\n"[..],
            b"3\r\nabcde\r\n0\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"3\nabc\r\n",
        ] {
            let error = wire_with(bytes).body(Length::Chunked).unwrap_err();
            assert!(matches!(error, WireError::Syntax(_)), "{error:?}");
        }
        for bytes in [
            &b"a: 1\n\r\n"[..],
            b"a : 1\r\n\r\n",
            b" a: 1\r\n\r\n",
            b"a: \x00\r\n\r\n",
            b"a\r\n\r\n",
        ] {
            let error = wire_with(bytes).fields("head").unwrap_err();
            assert!(matches!(error, WireError::Syntax(_)), "{error:?}");
        }
        let both = Fields(vec![
            ("content-length".into(), "1".into()),
            ("transfer-encoding".into(), "chunked".into()),
        ]);
        assert!(declared_length(&both).is_err());
        assert_eq!(wire_with(b"").start_line(), Err(WireError::Closed));
        assert_eq!(
            wire_with(b"HTTP").start_line(),
            Err(WireError::Truncated("start line"))
        );
        assert_eq!(
            wire_with(b"abc").body(Length::Known(4)).unwrap_err(),
            WireError::Truncated("body")
        );
    }
}
