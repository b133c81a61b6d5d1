//! Heads of requests and responses: found, tokenized (httparse), checked, and resolved into what they mean.

use crate::header::{HeaderId, HeaderList};
use crate::limits::{HEADER_COUNT_MAX, MessageLimits};
use crate::message::{BodyLength, RequestHead, ResponseHead, Version};
use crate::route::split_port;
use http::{Method, StatusCode};
use std::mem::MaybeUninit;

/// Empty lines that may come before a request line (RFC 9112, 2.2 asks for at least one).
const LEADING_EMPTY_LINES_MAX: usize = 4;

/// What came of looking at the bytes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The head is not complete; nothing is used.
    Partial,
    /// The head is complete and took so many bytes.
    Complete(usize),
}

/// Why a head was refused. For a request the status to answer is [`HeadError::status`]; any of them in a response
/// is a 502.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each says it")]
pub enum HeadError {
    #[error("the first line is not an HTTP/1.1 message's")]
    FirstLine,
    #[error("a line ends without CR LF")]
    LineEnd,
    #[error("a field name is not a token, or no colon follows it at once")]
    FieldName,
    #[error("a field value has a control character")]
    FieldValue,
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    #[error("the request line is too long")]
    RequestLineTooLong,
    #[error("the header section is too large")]
    HeaderTooLarge,
    #[error("there are too many header fields")]
    TooManyFields,
    #[error("the request target is not valid")]
    Target,
    #[error("Host is missing, repeated or not valid")]
    Host,
    #[error("Content-Length is not one plain number")]
    ContentLength,
    #[error("Content-Length and Transfer-Encoding are both there")]
    LengthAndEncoding,
    #[error("Transfer-Encoding does not end in one `chunked`, or the version has none")]
    TransferEncoding,
    #[error("a transfer coding is not known")]
    UnknownCoding,
    #[error("the expectation is not 100-continue")]
    Expectation,
    #[error("this method takes no body")]
    BodyNotAllowed,
    #[error("Max-Forwards is not one plain number")]
    MaxForwards,
    #[error("CONNECT is not served here")]
    Connect,
    #[error("the status is not valid")]
    Status,
    #[error("the upgrade was not asked for")]
    Upgrade,
}

impl HeadError {
    /// The status that tells a client so.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::RequestLineTooLong => StatusCode::URI_TOO_LONG,
            Self::HeaderTooLarge | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// Envoy's response code detail for it, with what exactly is wrong.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::FirstLine => "http1.codec_error{first_line}",
            Self::LineEnd => "http1.codec_error{line_end}",
            Self::FieldName => "http1.codec_error{field_name}",
            Self::FieldValue => "http1.codec_error{field_value}",
            Self::Version => "http1.codec_error{version}",
            Self::RequestLineTooLong => "http1.codec_error{request_line_too_long}",
            Self::HeaderTooLarge => "http1.codec_error{header_too_large}",
            Self::TooManyFields => "http1.codec_error{too_many_fields}",
            Self::Target => "http1.codec_error{target}",
            Self::Host => "http1.codec_error{host}",
            Self::ContentLength => "http1.codec_error{content_length}",
            Self::LengthAndEncoding => "http1.codec_error{length_and_encoding}",
            Self::TransferEncoding => "http1.codec_error{transfer_encoding}",
            Self::UnknownCoding => "http1.codec_error{unknown_coding}",
            Self::Expectation => "http1.codec_error{expectation}",
            Self::BodyNotAllowed => "http1.codec_error{body_not_allowed}",
            Self::MaxForwards => "http1.codec_error{max_forwards}",
            Self::Connect => "http1.codec_error{connect}",
            Self::Status => "http1.codec_error{status}",
            Self::Upgrade => "http1.codec_error{upgrade}",
        }
    }

    /// A short name for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::FirstLine => "first_line",
            Self::LineEnd => "line_end",
            Self::FieldName => "field_name",
            Self::FieldValue => "field_value",
            Self::Version => "version",
            Self::RequestLineTooLong => "request_line_too_long",
            Self::HeaderTooLarge => "header_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::Target => "target",
            Self::Host => "host",
            Self::ContentLength => "content_length",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::TransferEncoding => "transfer_encoding",
            Self::UnknownCoding => "unknown_coding",
            Self::Expectation => "expectation",
            Self::BodyNotAllowed => "body_not_allowed",
            Self::MaxForwards => "max_forwards",
            Self::Connect => "connect",
            Self::Status => "status",
            Self::Upgrade => "upgrade",
        }
    }
}

/// Finds the end of a head in bytes that arrive in pieces, looking at each byte once, and then reads the head.
#[derive(Debug, Clone, Default)]
pub struct HeadParser {
    scanned: usize,
    line_start: usize,
    start: usize,
    lines: usize,
}

impl HeadParser {
    /// Looks for a request head at the start of `buffer`, which holds all bytes since the last message. `head` is
    /// filled in when it is complete.
    pub fn parse_request(
        &mut self,
        buffer: &[u8],
        limits: &MessageLimits,
        head: &mut RequestHead,
    ) -> Result<Parsed, HeadError> {
        let Some(end) = self.find_end(buffer, limits, true)? else {
            return Ok(Parsed::Partial);
        };
        let block = buffer.get(self.start..end).unwrap_or(&[]);
        *self = Self::default();
        read_request(block, limits, head)?;
        Ok(Parsed::Complete(end))
    }

    /// Looks for a response head at the start of `buffer`; `method` is the request's, which decides about the body.
    pub fn parse_response(
        &mut self,
        buffer: &[u8],
        limits: &MessageLimits,
        method: &Method,
        head: &mut ResponseHead,
    ) -> Result<Parsed, HeadError> {
        let Some(end) = self.find_end(buffer, limits, false)? else {
            return Ok(Parsed::Partial);
        };
        let block = buffer.get(..end).unwrap_or(&[]);
        *self = Self::default();
        read_response(block, limits, method, head)?;
        Ok(Parsed::Complete(end))
    }

    /// Whether a byte of a head has been seen.
    pub fn has_begun(&self) -> bool {
        self.scanned > self.start
    }

    fn find_end(
        &mut self,
        buffer: &[u8],
        limits: &MessageLimits,
        request: bool,
    ) -> Result<Option<usize>, HeadError> {
        if request && self.lines == 0 {
            while let Some(b'\r' | b'\n') = buffer.get(self.start) {
                match buffer.get(self.start..self.start + 2) {
                    Some(b"\r\n") if self.start < 2 * LEADING_EMPTY_LINES_MAX => self.start += 2,
                    None if buffer.get(self.start) == Some(&b'\r') => return Ok(None),
                    _ => return Err(HeadError::FirstLine),
                }
                self.scanned = self.start;
                self.line_start = self.start;
            }
            // A first byte that no method begins with is refused at once: most often TLS on a plain port.
            if let Some(&first) = buffer.get(self.start)
                && !crate::header::is_token_byte(first)
            {
                return Err(HeadError::FirstLine);
            }
        }
        let too_long = |lines: usize, at: usize, start: usize| {
            if request && lines == 0 && at - start > limits.request_line_bytes {
                Err(HeadError::RequestLineTooLong)
            } else if at - start > limits.header_bytes {
                Err(if request && lines == 0 {
                    HeadError::RequestLineTooLong
                } else {
                    HeadError::HeaderTooLarge
                })
            } else {
                Ok(())
            }
        };
        while let Some(found) = memchr::memchr(b'\n', buffer.get(self.scanned..).unwrap_or(&[])) {
            let at = self.scanned + found;
            too_long(self.lines, at + 1, self.start)?;
            let is_crlf = at > self.line_start && buffer.get(at - 1) == Some(&b'\r');
            if !is_crlf {
                return Err(HeadError::LineEnd);
            }
            let empty = at - 1 == self.line_start;
            self.scanned = at + 1;
            self.line_start = at + 1;
            if empty {
                return if self.lines == 0 {
                    Err(HeadError::FirstLine)
                } else {
                    Ok(Some(at + 1))
                };
            }
            self.lines += 1;
        }
        too_long(self.lines, buffer.len(), self.start)?;
        self.scanned = buffer.len();
        Ok(None)
    }
}

fn tokenizer_error(error: httparse::Error, block: &[u8], request: bool) -> HeadError {
    match error {
        httparse::Error::HeaderName => HeadError::FieldName,
        httparse::Error::HeaderValue => HeadError::FieldValue,
        httparse::Error::NewLine => HeadError::LineEnd,
        httparse::Error::TooManyHeaders => HeadError::TooManyFields,
        httparse::Error::Version => {
            let line = block.split(|&byte| byte == b'\r').next().unwrap_or(&[]);
            let mut words = line.split(|&byte| byte == b' ');
            let word = if request { words.next_back() } else { words.next() };
            match word.and_then(|word| word.strip_prefix(b"HTTP/")) {
                Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => {
                    HeadError::Version
                }
                _ => HeadError::FirstLine,
            }
        }
        httparse::Error::Token | httparse::Error::Status => HeadError::FirstLine,
    }
}

/// The table of fields that httparse fills in; it is not initialized, since a head rarely has more than twenty.
type FieldTable<'b> = [MaybeUninit<httparse::Header<'b>>; HEADER_COUNT_MAX];

fn take_fields(headers: &mut HeaderList, block: &[u8], fields: &[httparse::Header<'_>], keep_host: bool) {
    let base = block.as_ptr() as usize;
    let range = |part: &[u8]| {
        // httparse gives slices of `block`; their distance to its start is their position.
        let start = (part.as_ptr() as usize).wrapping_sub(base);
        if part.is_empty() {
            0..0
        } else {
            start..start + part.len()
        }
    };
    let kept = fields
        .iter()
        .map(|field| (HeaderId::of(field.name.as_bytes()), field))
        .filter(|(id, _)| keep_host || *id != HeaderId::Host)
        .map(|(id, field)| (id, range(field.name.as_bytes()), range(field.value)));
    headers.append_block(block, kept);
}

fn read_request(block: &[u8], limits: &MessageLimits, head: &mut RequestHead) -> Result<(), HeadError> {
    let mut table: FieldTable<'_> = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
    let room = table
        .get_mut(..limits.header_count)
        .ok_or(HeadError::TooManyFields)?;
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(block, room) {
        Ok(httparse::Status::Complete(used)) if used == block.len() => {}
        Ok(_) => return Err(HeadError::FirstLine),
        Err(error) => return Err(tokenizer_error(error, block, true)),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HeadError::FirstLine);
    };
    head.clear();
    head.method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::FirstLine)?;
    head.version = if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    };
    take_fields(&mut head.headers, block, request.headers, false);

    let mut hosts = request
        .headers
        .iter()
        .filter(|field| field.name.len() == 4 && field.name.eq_ignore_ascii_case("host"));
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(HeadError::Host),
        (Some(host), None) => Some(std::str::from_utf8(host.value).map_err(|_| HeadError::Host)?),
        (None, None) if head.version == Version::Http10 => None,
        (None, None) => return Err(HeadError::Host),
    };
    if head.method == Method::CONNECT && limits.connect {
        read_connect_target(target, head)?;
    } else {
        read_target(target, host, head)?;
    }

    let headers = &head.headers;
    head.body = match transfer_encoding(headers, head.version)? {
        true if headers.get(HeaderId::ContentLength).is_some() => return Err(HeadError::LengthAndEncoding),
        true => BodyLength::Chunked,
        false => content_length(headers)?.map_or(BodyLength::None, BodyLength::Known),
    };
    head.keep_alive = keep_alive(headers, head.version);
    if head.version == Version::Http11
        && head.method == Method::GET
        && head.body.is_empty()
        && headers.has_token(HeaderId::Connection, b"upgrade")
    {
        let mut wanted = headers.get_all(HeaderId::Upgrade);
        // Of several protocols the client may go on in any: none is as good an answer (RFC 9110, 7.8).
        if let (Some(only), None) = (wanted.next(), wanted.next())
            && let Ok(only) = std::str::from_utf8(only)
            && is_protocol(only)
        {
            head.upgrade.push_str(only);
            head.upgrade.make_ascii_lowercase();
        }
    }
    head.wants_trailers = headers.has_token(HeaderId::Te, b"trailers");
    read_body_rules(head)
}

/// What holds of a request whose body and fields are known, whatever version carried it.
pub(crate) fn read_body_rules(head: &mut RequestHead) -> Result<(), HeadError> {
    if head.method == Method::TRACE && !head.body.is_empty() {
        return Err(HeadError::BodyNotAllowed);
    }
    let mut expectations = head.headers.get_all(HeaderId::Expect);
    match (expectations.next(), expectations.next()) {
        (None, _) => {}
        (Some(only), None) if only.eq_ignore_ascii_case(b"100-continue") => {
            // RFC 9110, 10.1.1: ignored when no body follows, and from HTTP/1.0 clients.
            head.expects_continue = head.version != Version::Http10 && !head.body.is_empty();
        }
        _ => return Err(HeadError::Expectation),
    }
    Ok(())
}

fn keep_alive(headers: &HeaderList, version: Version) -> bool {
    match version {
        Version::Http11 | Version::Http2 => !headers.has_token(HeaderId::Connection, b"close"),
        Version::Http10 => {
            headers.has_token(HeaderId::Connection, b"keep-alive")
                && !headers.has_token(HeaderId::Connection, b"close")
        }
    }
}

/// Whether a text names a protocol to go on in: a name, or a name and a version behind a slash (RFC 9110, 7.8).
pub fn is_protocol(text: &str) -> bool {
    text.splitn(2, '/')
        .all(|part| !part.is_empty() && part.bytes().all(crate::header::is_token_byte))
}

/// Reads a request target (RFC 9112, 3.2) and the authority that it or Host names, into a head that knows its method
/// and version.
pub fn read_target(target: &str, host: Option<&str>, head: &mut RequestHead) -> Result<(), HeadError> {
    // A fragment has no place in a target, and bytes beyond ASCII are not allowed in a URI (RFC 3986).
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(HeadError::Target);
    }
    if let Some(host) = host
        && !is_authority(host)
    {
        return Err(HeadError::Host);
    }
    if head.method == Method::CONNECT {
        return Err(HeadError::Connect);
    }
    let mut authority = host.unwrap_or("");
    if target.starts_with('/') || (target == "*" && head.method == Method::OPTIONS) {
        head.set_path(target);
    } else {
        let lower = |prefix: &str| {
            target
                .get(..prefix.len())
                .is_some_and(|part| part.eq_ignore_ascii_case(prefix))
        };
        let rest = if lower("http://") {
            target.get(7..)
        } else if lower("https://") {
            head.is_https = true;
            target.get(8..)
        } else {
            None
        };
        let rest = rest.ok_or(HeadError::Target)?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (named, path) = rest.split_at(end);
        // User information in a target is an attempt to mislead (RFC 9110, 4.2.4).
        if named.is_empty() || !is_authority(named) {
            return Err(HeadError::Target);
        }
        // The target's authority wins over Host (RFC 9112, 3.2.2).
        authority = named;
        match path.as_bytes().first() {
            None if head.method == Method::OPTIONS => head.set_path("*"),
            None => head.set_path("/"),
            Some(b'?') => head.set_path(&format!("/{path}")),
            Some(_) => head.set_path(path),
        }
    }
    if authority.is_empty() && head.version != Version::Http10 {
        // An http URI has a host (RFC 9110, 4.2.1).
        return Err(HeadError::Host);
    }
    head.set_authority(authority);
    let (name, _) = split_port(authority);
    head.host.push_str(name.strip_suffix('.').unwrap_or(name));
    head.host.make_ascii_lowercase();
    Ok(())
}

/// Reads the target of CONNECT, a host and a port (RFC 9112, 3.2.3), which is the authority whatever Host says.
pub(crate) fn read_connect_target(target: &str, head: &mut RequestHead) -> Result<(), HeadError> {
    let (host, port) = split_port(target);
    if !is_authority(target) || host.is_empty() || port.is_none_or(|port| port == 0) {
        return Err(HeadError::Target);
    }
    head.set_path("");
    head.set_authority(target);
    head.host.push_str(host.strip_suffix('.').unwrap_or(host));
    head.host.make_ascii_lowercase();
    Ok(())
}

/// Whether a text is `host [":" port]` (RFC 3986, 3.2.2), without user information.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                let valid = address.parse::<std::net::Ipv6Addr>().is_ok();
                return valid && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
            }
            None => return false,
        },
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_host_byte = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\''
            )
    };
    host.bytes().all(is_host_byte) && (!host.is_empty() || port.is_none()) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.len() <= 5
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<u32>().unwrap_or(0) <= 65535
}

/// The length that a message says it has, if it says one.
pub(crate) fn content_length(headers: &HeaderList) -> Result<Option<u64>, HeadError> {
    let mut values = headers.get_all(HeaderId::ContentLength);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some()
        || value.is_empty()
        || value.len() > 64
        || !value.iter().all(u8::is_ascii_digit)
    {
        return Err(HeadError::ContentLength);
    }
    let mut length: u64 = 0;
    for digit in value {
        length = length
            .checked_mul(10)
            .and_then(|length| length.checked_add(u64::from(digit - b'0')))
            .filter(|&length| length <= i64::MAX as u64)
            .ok_or(HeadError::ContentLength)?;
    }
    Ok(Some(length))
}

/// Whether the body is chunked. Anything but exactly one `chunked` is refused (RFC 9112, 6.1 and 6.3).
fn transfer_encoding(headers: &HeaderList, version: Version) -> Result<bool, HeadError> {
    let mut lines = headers.get_all(HeaderId::TransferEncoding);
    let Some(value) = lines.next() else {
        return Ok(false);
    };
    if version == Version::Http10 || lines.next().is_some() {
        return Err(HeadError::TransferEncoding);
    }
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(true);
    }
    let codings = || value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let chunked = codings()
        .filter(|coding| coding.eq_ignore_ascii_case(b"chunked"))
        .count();
    let is_last = codings()
        .next_back()
        .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    Err(if chunked == 1 && is_last {
        HeadError::UnknownCoding
    } else {
        HeadError::TransferEncoding
    })
}

fn read_response(
    block: &[u8],
    limits: &MessageLimits,
    method: &Method,
    head: &mut ResponseHead,
) -> Result<(), HeadError> {
    let mut table: FieldTable<'_> = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
    let room = table
        .get_mut(..limits.header_count)
        .ok_or(HeadError::TooManyFields)?;
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, block, room);
    match parsed {
        Ok(httparse::Status::Complete(used)) if used == block.len() => {}
        Ok(_) => return Err(HeadError::FirstLine),
        Err(error) => return Err(tokenizer_error(error, block, false)),
    }
    let (Some(minor), Some(code)) = (response.version, response.code) else {
        return Err(HeadError::FirstLine);
    };
    if !(100..600).contains(&code) {
        return Err(HeadError::Status);
    }
    head.clear();
    head.status = StatusCode::from_u16(code).map_err(|_| HeadError::Status)?;
    head.version = if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    };
    take_fields(&mut head.headers, block, response.headers, true);
    let chunked = transfer_encoding(&head.headers, head.version)?;
    let length = content_length(&head.headers)?;
    if chunked && length.is_some() {
        return Err(HeadError::LengthAndEncoding);
    }
    let bodyless = *method == Method::HEAD
        || head.status.is_informational()
        || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if bodyless {
        let describes = *method == Method::HEAD || head.status == StatusCode::NOT_MODIFIED;
        head.declared_length = length.filter(|_| describes);
        head.body = BodyLength::None;
    } else {
        head.body = match (chunked, length) {
            (true, _) => BodyLength::Chunked,
            (false, Some(length)) => BodyLength::Known(length),
            (false, None) => BodyLength::UntilClose,
        };
    }
    head.keep_alive = keep_alive(&head.headers, head.version) && head.body != BodyLength::UntilClose;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let token = head.headers.get(HeaderId::Upgrade).unwrap_or_default();
        head.upgrade
            .push_str(std::str::from_utf8(token).map_err(|_| HeadError::Upgrade)?);
        head.upgrade.make_ascii_lowercase();
    }
    head.headers.remove_connection_fields();
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn connect_is_for_forward_proxies_and_names_a_host_and_a_port() {
        let limits = MessageLimits {
            connect: true,
            ..Settings::default().message_limits()
        };
        let read = |target: &str, limits: &MessageLimits| {
            let text = format!("CONNECT {target} HTTP/1.1\r\nHost: other\r\n\r\n");
            let mut head = RequestHead::default();
            let parsed = HeadParser::default().parse_request(text.as_bytes(), limits, &mut head);
            parsed.map(|_| (head.authority, head.host))
        };
        for (target, host) in [
            ("A.example:443", "a.example"),
            ("a.example.:8443", "a.example"),
            ("[::1]:443", "[::1]"),
        ] {
            let found = read(target, &limits).unwrap();
            assert_eq!(found, (target.to_owned(), host.to_owned()));
        }
        for bad in [
            "a.example",
            "a.example:0",
            "a.example:x",
            ":443",
            "u@a:443",
            "/",
            "http://a:443/",
        ] {
            assert_eq!(read(bad, &limits).unwrap_err(), HeadError::Target, "{bad}");
        }
        assert_eq!(
            read("a:443", &Settings::default().message_limits()).unwrap_err(),
            HeadError::Connect
        );
    }

    use super::*;
    use crate::limits::Settings;

    fn request(bytes: &[u8]) -> Result<(Parsed, RequestHead), HeadError> {
        let mut head = RequestHead::default();
        let limits = Settings::default().message_limits();
        HeadParser::default()
            .parse_request(bytes, &limits, &mut head)
            .map(|parsed| (parsed, head))
    }

    fn response(bytes: &[u8], method: &Method) -> Result<ResponseHead, HeadError> {
        let mut head = ResponseHead::default();
        let limits = Settings::default().message_limits();
        match HeadParser::default().parse_response(bytes, &limits, method, &mut head)? {
            Parsed::Complete(_) => Ok(head),
            Parsed::Partial => panic!("partial"),
        }
    }

    #[test]
    fn a_plain_request_is_read() {
        let bytes = b"\r\nPOST /a/b?c=d HTTP/1.1\r\nHost: Ex.ample:80\r\nX-A:  v \t\r\nContent-Length: 0005\r\n\r\nhello";
        let (parsed, head) = request(bytes).unwrap();
        assert_eq!(parsed, Parsed::Complete(bytes.len() - 5));
        assert_eq!((head.path_only(), head.query()), ("/a/b", Some("c=d")));
        assert_eq!((&*head.authority, &*head.host), ("Ex.ample:80", "ex.ample"));
        assert_eq!(head.body, BodyLength::Known(5));
        assert!(head.keep_alive);
        assert_eq!(head.headers.to_string(), "X-A: v\nContent-Length: 0005\n");
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        use HeadError as E;
        let host = "Host: a\r\n";
        for (text, expected) in [
            (format!("GET  / HTTP/1.1\r\n{host}\r\n"), E::FirstLine),
            (format!(" / HTTP/1.1\r\n{host}\r\n"), E::FirstLine),
            (format!("GET /\r\n{host}\r\n"), E::FirstLine),
            (format!("GET / HTTP/2.0\r\n{host}\r\n"), E::Version),
            (format!("GET / ICE/1.0\r\n{host}\r\n"), E::FirstLine),
            (format!("GET / HTTP/1.32\r\n{host}\r\n"), E::FirstLine),
            (format!("GET /\u{e4} HTTP/1.1\r\n{host}\r\n"), E::Target),
            (format!("GET /a#b HTTP/1.1\r\n{host}\r\n"), E::Target),
            (format!("GET abc HTTP/1.1\r\n{host}\r\n"), E::Target),
            (format!("GET * HTTP/1.1\r\n{host}\r\n"), E::Target),
            (format!("GET http://u:p@a/ HTTP/1.1\r\n{host}\r\n"), E::Target),
            (format!("GET ftp://a/ HTTP/1.1\r\n{host}\r\n"), E::Target),
            ("GET / HTTP/1.1\r\n\r\n".into(), E::Host),
            (format!("GET / HTTP/1.1\r\n{host}{host}\r\n"), E::Host),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), E::Host),
            ("GET / HTTP/1.1\r\nHost: a/x\r\n\r\n".into(), E::Host),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".into(), E::Host),
            ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n".into(), E::Host),
            ("GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n".into(), E::Host),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".into(), E::Host),
            (format!("GET / HTTP/1.1\n{host}\r\n"), E::LineEnd),
            (format!("GET / HTTP/1.1\r{host}\r\n"), E::LineEnd),
            (format!("GET / HTTP/1.1\r\n{host}X : 1\r\n\r\n"), E::FieldName),
            (format!("GET / HTTP/1.1\r\n{host}X\r\n\r\n"), E::FieldName),
            (format!("GET / HTTP/1.1\r\n{host}: 1\r\n\r\n"), E::FieldName),
            (format!("GET / HTTP/1.1\r\n {host}\r\n"), E::FieldName),
            (
                format!("GET / HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n"),
                E::FieldName,
            ),
            (format!("GET / HTTP/1.1\r\n{host}X: a\0\r\n\r\n"), E::FieldValue),
            (format!("GET / HTTP/1.1\r\n{host}X: a\rb\r\n\r\n"), E::FieldValue),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
                E::LengthAndEncoding,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"),
                E::ContentLength,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 5, 5\r\n\r\n"),
                E::ContentLength,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: +5\r\n\r\n"),
                E::ContentLength,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length:\r\n\r\n"),
                E::ContentLength,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 18446744073709551621\r\n\r\n"),
                E::ContentLength,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n"),
                E::UnknownCoding,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n"),
                E::TransferEncoding,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, chunked\r\n\r\n"),
                E::TransferEncoding,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: identity\r\n\r\n"),
                E::TransferEncoding,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding:\r\n\r\n"),
                E::TransferEncoding,
            ),
            (
                format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n"),
                E::TransferEncoding,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Expect: 200-maybe\r\nContent-Length: 5\r\n\r\n"),
                E::Expectation,
            ),
            (
                format!("TRACE / HTTP/1.1\r\n{host}Content-Length: 5\r\n\r\n"),
                E::BodyNotAllowed,
            ),
            (format!("CONNECT a:443 HTTP/1.1\r\n{host}\r\n"), E::Connect),
            (
                format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(70_000)),
                E::RequestLineTooLong,
            ),
            (
                format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(70_000)),
                E::HeaderTooLarge,
            ),
            (
                format!("GET / HTTP/1.1\r\n{host}{}\r\n", "X: a\r\n".repeat(150)),
                E::TooManyFields,
            ),
        ] {
            assert_eq!(
                request(text.as_bytes()).map(|_| ()),
                Err(expected),
                "{:.120}",
                text
            );
        }
    }

    #[test]
    fn targets_of_every_form_are_read() {
        for (line, host, path) in [
            ("GET http://B.example:81/x?y HTTP/1.1", "b.example", "/x?y"),
            ("GET HTTP://b HTTP/1.1", "b", "/"),
            ("GET http://b?q HTTP/1.1", "b", "/?q"),
            ("OPTIONS * HTTP/1.1", "a", "*"),
            ("OPTIONS http://b HTTP/1.1", "b", "*"),
            ("GET http://[::1]:80/ HTTP/1.1", "[::1]", "/"),
        ] {
            let (_, head) = request(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
            assert_eq!((&*head.host, &*head.path), (host, path), "{line}");
        }
        let (_, head) = request(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(!head.keep_alive && head.host.is_empty());
    }

    #[test]
    fn response_bodies_follow_method_and_status() {
        let get = Method::GET;
        let length =
            |text: &str, method| response(text.as_bytes(), method).map(|head| (head.body, head.keep_alive));
        assert_eq!(
            length("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", &get),
            Ok((BodyLength::Known(3), true))
        );
        assert_eq!(
            length("HTTP/1.1 200\r\n\r\n", &get),
            Ok((BodyLength::UntilClose, false))
        );
        assert_eq!(
            length("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", &get),
            Ok((BodyLength::Known(3), false))
        );
        assert_eq!(
            length("HTTP/1.1 204 x\r\nContent-Length: 3\r\n\r\n", &get),
            Ok((BodyLength::None, true))
        );
        let head = response(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n",
            &Method::HEAD,
        )
        .unwrap();
        assert_eq!(
            (head.body, head.declared_length, head.keep_alive),
            (BodyLength::None, Some(3), false)
        );
        assert!(head.headers.is_empty());
        for (text, expected) in [
            ("HTTP/1.1 700 x\r\n\r\n", HeadError::Status),
            ("HTTP/1.1 20 x\r\n\r\n", HeadError::FirstLine),
            ("HTTP/3.1 200 x\r\n\r\n", HeadError::Version),
            ("HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", HeadError::LineEnd),
            ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", HeadError::FieldName),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                HeadError::LengthAndEncoding,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                HeadError::ContentLength,
            ),
        ] {
            assert_eq!(length(text, &get), Err(expected), "{text}");
        }
    }
}
