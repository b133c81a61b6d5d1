//! Header fields of one message: an arena with known names resolved once, and the operations that routes apply.
//!
//! A [`HeaderList`] keeps the bytes of all fields in one buffer and remembers for each field which well-known name it
//! has, so that the questions a gateway asks of every message (its length? which host? close?) compare one byte and
//! not strings. Names keep the case they arrived in; comparisons ignore it (RFC 9110, 5.1).

use crate::substitution::{Facts, Template};
use bytes::Bytes;
use std::fmt;

macro_rules! known_names {
    ($($variant:ident = $text:literal),* $(,)?) => {
        /// A well-known field name, or `Other`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "each variant is the field of its name")]
        pub enum HeaderId { Other, $($variant),* }

        impl HeaderId {
            /// All but `Other`, in the order of their numbers, from 1.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in lower case; empty for `Other`.
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Other => "",
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

known_names! {
    Host = "host",
    Connection = "connection",
    ContentLength = "content-length",
    TransferEncoding = "transfer-encoding",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    ProxyAuthenticate = "proxy-authenticate",
    ProxyAuthorization = "proxy-authorization",
    Te = "te",
    Trailer = "trailer",
    Upgrade = "upgrade",
    Http2Settings = "http2-settings",
    Expect = "expect",
    MaxForwards = "max-forwards",
    UserAgent = "user-agent",
    ContentType = "content-type",
    Location = "location",
    Server = "server",
    Date = "date",
    XForwardedFor = "x-forwarded-for",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    XForwardedPort = "x-forwarded-port",
    XForwardedClientCert = "x-forwarded-client-cert",
    XRequestId = "x-request-id",
    XEnvoyExternalAddress = "x-envoy-external-address",
    XEnvoyOriginalPath = "x-envoy-original-path",
    XEnvoyOriginalHost = "x-envoy-original-host",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    GrpcTimeout = "grpc-timeout",
    GrpcStatus = "grpc-status",
    Origin = "origin",
    AccessControlRequestMethod = "access-control-request-method",
    AccessControlAllowOrigin = "access-control-allow-origin",
    AccessControlAllowCredentials = "access-control-allow-credentials",
    AccessControlExposeHeaders = "access-control-expose-headers",
    XIsthmusCause = "x-isthmus-cause",
}

impl HeaderId {
    /// Fields that concern one connection and are never forwarded as they came (RFC 9110, 7.6.1), beside those that
    /// Connection lists.
    pub const fn is_connection_field(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::ContentLength
                | Self::TransferEncoding
                | Self::Expect
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::ProxyAuthenticate
                | Self::ProxyAuthorization
                | Self::Te
                | Self::Upgrade
                | Self::Http2Settings
        )
    }
}

/// A field name that configuration mentions: lower case and resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldName {
    id: HeaderId,
    text: Box<str>,
}

impl FieldName {
    /// Takes a name that is a token (RFC 9110, 5.6.2); None for anything else.
    pub fn parse(name: &str) -> Option<Self> {
        let valid = !name.is_empty() && name.len() <= 255 && name.bytes().all(is_token_byte);
        valid.then(|| Self {
            id: HeaderId::of(name.as_bytes()),
            text: name.to_ascii_lowercase().into(),
        })
    }

    /// The well-known name that this is, if it is one.
    pub fn id(&self) -> HeaderId {
        self.id
    }

    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Whether a token equals a known name of the same length, whatever its case; eight bytes at a time.
///
/// With the bit that tells lower from upper case set, a byte of a token equals a letter, a digit or a dash only when it
/// is that one: what else would become a digit or a dash is a control character, which no token has.
fn is_known_token(name: &[u8], known: &[u8]) -> bool {
    const CASE: u64 = 0x2020_2020_2020_2020;
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes) | CASE;
    let is_same = |a: Option<&[u8; 8]>, b: Option<&[u8; 8]>| match (a, b) {
        (Some(a), Some(b)) => word(a) == word(b),
        _ => false,
    };
    if name.len() < 8 {
        return name.len() == known.len() && name.iter().zip(known).all(|(a, b)| a | 0x20 == *b);
    }
    // The last word overlaps the one before it.
    let words = name.chunks_exact(8).zip(known.chunks_exact(8));
    is_same(name.last_chunk(), known.last_chunk())
        && words
            .take(name.len() / 8)
            .all(|(a, b)| is_same(a.first_chunk(), b.first_chunk()))
}

/// Longest well-known name.
const NAME_MAX: usize = 32;

/// The well-known names by length: those of length n are from `starts[n]` to `starts[n + 1]` in `ids`.
struct ByLength {
    ids: [HeaderId; HeaderId::ALL.len()],
    starts: [u8; NAME_MAX + 2],
}

#[allow(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which refuses an index out of bounds"
)]
static BY_LENGTH: ByLength = {
    let mut table = ByLength {
        ids: [HeaderId::Other; HeaderId::ALL.len()],
        starts: [0; NAME_MAX + 2],
    };
    let (mut length, mut filled) = (0, 0);
    while length <= NAME_MAX {
        table.starts[length] = filled as u8;
        let mut at = 0;
        while at < HeaderId::ALL.len() {
            if HeaderId::ALL[at].name().len() == length {
                table.ids[filled] = HeaderId::ALL[at];
                filled += 1;
            }
            at += 1;
        }
        length += 1;
    }
    table.starts[NAME_MAX + 1] = filled as u8;
    assert!(filled == HeaderId::ALL.len(), "a name is longer than NAME_MAX");
    // A set of names is kept in the bits of one word.
    assert!(filled < 64, "more names than bits");
    table
};

impl HeaderId {
    /// The well-known name that `name` is, whatever its case.
    pub fn of(name: &[u8]) -> Self {
        let range = match BY_LENGTH.starts.get(name.len()..name.len() + 2) {
            Some(&[from, to]) => usize::from(from)..usize::from(to),
            _ => return Self::Other,
        };
        let candidates = BY_LENGTH.ids.get(range).unwrap_or(&[]);
        let found = candidates
            .iter()
            .find(|id| is_known_token(name, id.name().as_bytes()));
        found.copied().unwrap_or(Self::Other)
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// Whether a byte may be part of a token (RFC 9110, 5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
}

/// Whether a byte may be part of a field value (RFC 9110, 5.5): visible, space, tab, or obs-text.
pub const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..=0xFF)
}

/// Whether all bytes may be part of a field value. Looks at all of them, so that several are looked at in one step.
pub fn is_value(value: &[u8]) -> bool {
    value
        .iter()
        .fold(true, |right, byte| right & is_value_byte(*byte))
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name_start: u32,
    value_start: u32,
    value_len: u32,
    name_len: u16,
    id: HeaderId,
    /// Whether the arena has the whole line as it is written: `name: value` and a line end.
    is_line: bool,
}

impl Field {
    fn line_end(&self) -> usize {
        self.value_start as usize + self.value_len as usize + LINE_END.len()
    }
}

/// The header or trailer fields of one message, in order. Reusing one list for message after message allocates
/// nothing once its buffer has grown to the usual size.
#[derive(Debug, Clone, Default)]
pub struct HeaderList {
    arena: Vec<u8>,
    fields: Vec<Field>,
    /// A bit for each well-known name that may be there: most questions are about names that are not.
    known: u64,
}

/// Between the name and the value of a line, and behind it.
const NAME_END: &[u8] = b": ";
const LINE_END: &[u8] = b"\r\n";

impl HeaderList {
    /// Forgets all fields and keeps the room.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.fields.clear();
        self.known = 0;
    }

    fn may_have(&self, id: HeaderId) -> bool {
        id == HeaderId::Other || self.known & id.bit() != 0
    }

    /// Number of field lines.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes that the buffer holds, removed fields included.
    pub fn arena_len(&self) -> usize {
        self.arena.len()
    }

    /// Gives room back that an unusually large message took.
    pub fn shrink(&mut self, max_arena: usize) {
        if self.arena.capacity() > max_arena {
            *self = Self::default();
        }
    }

    fn slice(&self, start: u32, len: u32) -> &[u8] {
        self.arena
            .get(start as usize..start as usize + len as usize)
            .unwrap_or(&[])
    }

    fn name_of(&self, field: &Field) -> &[u8] {
        self.slice(field.name_start, u32::from(field.name_len))
    }

    fn value_of(&self, field: &Field) -> &[u8] {
        self.slice(field.value_start, field.value_len)
    }

    /// Appends a field line. `name` must be a token and `value` free of control characters: the codecs and the
    /// compiler see to it.
    pub fn append(&mut self, name: &[u8], value: &[u8]) {
        self.append_resolved(HeaderId::of(name), name, value);
    }

    /// Appends a well-known field.
    pub fn append_known(&mut self, id: HeaderId, value: &[u8]) {
        self.append_resolved(id, id.name().as_bytes(), value);
    }

    /// Appends a field whose name is known to be no well-known one.
    pub(crate) fn append_other(&mut self, name: &[u8], value: &[u8]) {
        self.append_resolved(HeaderId::Other, name, value);
    }

    fn append_resolved(&mut self, id: HeaderId, name: &[u8], value: &[u8]) {
        self.arena
            .reserve(name.len() + NAME_END.len() + value.len() + LINE_END.len());
        let name_start = self.arena.len() as u32;
        self.arena.extend_from_slice(name);
        self.arena.extend_from_slice(NAME_END);
        let value_start = self.arena.len() as u32;
        self.arena.extend_from_slice(value);
        self.arena.extend_from_slice(LINE_END);
        self.known |= id.bit();
        self.fields.push(Field {
            name_start,
            value_start,
            value_len: value.len() as u32,
            name_len: u16::try_from(name.len()).unwrap_or(u16::MAX),
            id,
            is_line: name.len() <= usize::from(u16::MAX),
        });
    }

    /// Takes over a whole message head at once: one copy of `block`, and for each field which name it has
    /// ([`HeaderId::of`]) and the ranges of its name and value in the block. Ranges outside the block make empty fields.
    pub fn append_block(
        &mut self,
        block: &[u8],
        fields: impl IntoIterator<Item = (HeaderId, std::ops::Range<usize>, std::ops::Range<usize>)>,
    ) {
        let base = self.arena.len();
        self.arena.extend_from_slice(block);
        for (id, name, value) in fields {
            let is_line = block.get(name.end..value.start) == Some(NAME_END)
                && block.get(value.end..value.end + LINE_END.len()) == Some(LINE_END);
            self.known |= id.bit();
            self.fields.push(Field {
                name_start: (base + name.start) as u32,
                value_start: (base + value.start) as u32,
                value_len: value.len() as u32,
                name_len: u16::try_from(name.len()).unwrap_or(u16::MAX),
                id,
                is_line,
            });
        }
    }

    /// Writes the lines as HTTP/1.1 has them, but for those to `skip`. Lines that stand together are copied together.
    pub fn write_lines(&self, skip: impl Fn(HeaderId) -> bool, out: &mut Vec<u8>) {
        let (mut start, mut end) = (0, 0);
        for field in &self.fields {
            if skip(field.id) {
                continue;
            }
            let name_start = field.name_start as usize;
            if field.is_line && name_start == end {
                end = field.line_end();
                continue;
            }
            out.extend_from_slice(self.arena.get(start..end).unwrap_or(&[]));
            if field.is_line {
                (start, end) = (name_start, field.line_end());
            } else {
                (start, end) = (0, 0);
                for part in [self.name_of(field), NAME_END, self.value_of(field), LINE_END] {
                    out.extend_from_slice(part);
                }
            }
        }
        out.extend_from_slice(self.arena.get(start..end).unwrap_or(&[]));
    }

    /// All field lines in order: which well-known name, name as written, value.
    pub fn iter(&self) -> impl Iterator<Item = (HeaderId, &[u8], &[u8])> {
        self.fields
            .iter()
            .map(|field| (field.id, self.name_of(field), self.value_of(field)))
    }

    /// The first value of a well-known field.
    pub fn get(&self, id: HeaderId) -> Option<&[u8]> {
        if !self.may_have(id) {
            return None;
        }
        self.fields
            .iter()
            .find(|field| field.id == id)
            .map(|field| self.value_of(field))
    }

    /// All values of a well-known field.
    pub fn get_all(&self, id: HeaderId) -> impl Iterator<Item = &[u8]> {
        let fields = if self.may_have(id) { &self.fields[..] } else { &[] };
        fields
            .iter()
            .filter(move |field| field.id == id)
            .map(|field| self.value_of(field))
    }

    fn is_named(&self, field: &Field, name: &FieldName) -> bool {
        field.id == name.id
            && (field.id != HeaderId::Other || self.name_of(field).eq_ignore_ascii_case(name.text.as_bytes()))
    }

    /// All values of a field that configuration names.
    pub fn get_named<'a>(&'a self, name: &'a FieldName) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(|field| self.is_named(field, name))
            .map(|field| self.value_of(field))
    }

    /// Removes every line of a well-known field.
    pub fn remove(&mut self, id: HeaderId) {
        if self.may_have(id) {
            self.fields.retain(|field| field.id != id);
        }
    }

    /// Removes every line of a field that configuration names.
    pub fn remove_named(&mut self, name: &FieldName) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.retain(|field| !self.is_named(field, name));
        self.fields = fields;
    }

    /// Removes every line whose name equals `name`, whatever its case.
    pub fn remove_by_text(&mut self, name: &[u8]) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.retain(|field| !self.name_of(field).eq_ignore_ascii_case(name));
        self.fields = fields;
    }

    /// Replaces every line of a well-known field by one.
    pub fn set(&mut self, id: HeaderId, value: &[u8]) {
        self.remove(id);
        self.append_known(id, value);
    }

    /// Keeps the lines that the predicate accepts.
    pub fn retain(&mut self, mut keep: impl FnMut(HeaderId, &[u8], &[u8]) -> bool) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.retain(|field| keep(field.id, self.name_of(field), self.value_of(field)));
        self.fields = fields;
    }

    /// Removes what concerns one connection only: the hop-by-hop fields, those that Connection lists, and the framing
    /// fields and Expect, which each codec writes anew. Host stays even when Connection lists it, because without it
    /// the message would mean something else (RFC 9110, 7.6.1: a sender must not list it).
    pub fn remove_connection_fields(&mut self) {
        let listed: Vec<Box<[u8]>> = if self.may_have(HeaderId::Connection) {
            self.get_all(HeaderId::Connection)
                .filter(|value| !is_common_connection_token(value))
                .flat_map(|value| value.split(|&byte| byte == b','))
                .map(|token| token.trim_ascii())
                .filter(|token| !is_common_connection_token(token))
                .map(Into::into)
                .collect()
        } else {
            Vec::new()
        };
        self.retain(|id, name, _| {
            id == HeaderId::Host
                || !(id.is_connection_field() || listed.iter().any(|token| token.eq_ignore_ascii_case(name)))
        });
    }

    fn write(&mut self, name: &FieldName, value: &HeaderValue, replace: bool, facts: &Facts<'_>) {
        let filled;
        let value = match value {
            HeaderValue::Text(text) => &text[..],
            HeaderValue::Template(template) => {
                let mut bytes = Vec::new();
                template.write(facts, self, &mut bytes);
                filled = bytes;
                &filled[..]
            }
        };
        if value.is_empty() {
            return;
        }
        if replace {
            self.remove_named(name);
        }
        self.append_resolved(name.id, name.text.as_bytes(), value);
    }

    /// Whether any line of a well-known list field has this token (RFC 9110, 5.6.1), whatever its case.
    pub fn has_token(&self, id: HeaderId, token: &[u8]) -> bool {
        self.get_all(id).any(|value| {
            value.eq_ignore_ascii_case(token)
                || (value.len() > token.len()
                    && value
                        .split(|&byte| byte == b',')
                        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token)))
        })
    }
}

/// Tokens of Connection that name no field, or one that is removed anyway: they need no allocation.
fn is_common_connection_token(token: &[u8]) -> bool {
    token.is_empty()
        || [&b"close"[..], b"keep-alive", b"upgrade", b"te", b"http2-settings"]
            .iter()
            .any(|known| token.eq_ignore_ascii_case(known))
}

/// What a route does to the fields of a message, in Istio's order: remove, then set, then add
/// (`VirtualService.http[].headers`). Names are sorted within set and within add by the compiler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HeaderOperations {
    /// Fields to remove.
    pub remove: Vec<FieldName>,
    /// Fields to overwrite.
    pub set: Vec<(FieldName, HeaderValue)>,
    /// Lines to append.
    pub add: Vec<(FieldName, HeaderValue)>,
}

/// What a route writes into a field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HeaderValue {
    /// Always the same.
    Text(Bytes),
    /// Filled in from the exchange.
    Template(Template),
}

impl HeaderOperations {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Carries the operations out. An empty value sets and adds nothing (Envoy `keep_empty_value` is off).
    pub fn apply(&self, headers: &mut HeaderList, facts: &Facts<'_>) {
        for name in &self.remove {
            headers.remove_named(name);
        }
        for (name, value) in &self.set {
            headers.write(name, value, true, facts);
        }
        for (name, value) in &self.add {
            headers.write(name, value, false, facts);
        }
    }
}

impl fmt::Display for HeaderList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, name, value) in self.iter() {
            writeln!(
                f,
                "{}: {}",
                String::from_utf8_lossy(name),
                String::from_utf8_lossy(value)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&str, &str)]) -> HeaderList {
        let mut headers = HeaderList::default();
        for (name, value) in fields {
            headers.append(name.as_bytes(), value.as_bytes());
        }
        headers
    }

    fn name(text: &str) -> FieldName {
        FieldName::parse(text).unwrap()
    }

    #[test]
    fn every_known_name_is_known_in_any_case_and_nothing_else_is() {
        let mut random = crate::random::Random::from_seed(3);
        for &id in HeaderId::ALL {
            let name = id.name();
            assert_eq!(HeaderId::of(name.as_bytes()), id);
            assert_eq!(HeaderId::of(name.to_uppercase().as_bytes()), id);
            for _ in 0..1_000 {
                let mut other = name.as_bytes().to_vec();
                let at = random.below(other.len() as u64) as usize;
                let byte = random.next_u64() as u8;
                if is_token_byte(byte) {
                    other[at] = byte;
                    let same = other.eq_ignore_ascii_case(name.as_bytes());
                    let found = HeaderId::of(&other);
                    let is_another = HeaderId::ALL
                        .iter()
                        .any(|known| *known == found && other.eq_ignore_ascii_case(known.name().as_bytes()));
                    assert_eq!(found == id, same, "{name} {byte}");
                    assert!(found == HeaderId::Other || is_another);
                }
            }
            assert_eq!(HeaderId::of(&name.as_bytes()[1..]), HeaderId::Other, "{name}");
        }
        assert_eq!(HeaderId::of(b""), HeaderId::Other);
        assert_eq!(HeaderId::of(&[b'x'; 200]), HeaderId::Other);
    }

    #[test]
    fn lines_are_written_as_they_would_be_one_by_one() {
        let mut random = crate::random::Random::from_seed(4);
        let block = b"A: 1\r\nB:2\r\nserver: x y\r\nD: 3 \r\ndate:   4\r\nE:\r\n";
        let ranges = [
            (0..1, 3..4),
            (6..7, 8..9),
            (11..17, 19..22),
            (24..25, 27..28),
            (31..35, 39..40),
            (42..43, 44..44),
        ];
        for _ in 0..2_000 {
            let mut list = HeaderList::default();
            for _ in 0..random.below(4) {
                match random.below(3) {
                    0 => list.append_block(
                        block,
                        ranges.iter().map(|(name, value)| {
                            (HeaderId::of(&block[name.clone()]), name.clone(), value.clone())
                        }),
                    ),
                    1 => list.append(b"X-New", b"v"),
                    _ => list.set(HeaderId::Server, b"z"),
                }
                let which = random.below(7);
                if random.below(2) == 0 {
                    list.retain(|_, name, _| u64::from(name[0]) % 7 != which);
                }
            }
            let skip = |id| id == HeaderId::Date;
            let mut expected = Vec::new();
            for (id, name, value) in list.iter() {
                if !skip(id) {
                    expected.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
                }
            }
            let mut out = Vec::new();
            list.write_lines(skip, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected));
        }
    }

    #[test]
    fn known_names_are_found_in_any_case() {
        assert_eq!(HeaderId::of(b"CONTENT-length"), HeaderId::ContentLength);
        assert_eq!(HeaderId::of(b"content-lengtx"), HeaderId::Other);
        assert_eq!(HeaderId::of(b""), HeaderId::Other);
        let headers = list(&[("Host", "a"), ("X-A", "1"), ("x-a", "2")]);
        assert_eq!(headers.get(HeaderId::Host), Some(&b"a"[..]));
        assert_eq!(headers.get_named(&name("X-a")).collect::<Vec<_>>(), [b"1", b"2"]);
    }

    #[test]
    fn connection_removes_what_it_lists_but_never_host() {
        let mut headers = list(&[
            ("Host", "a"),
            ("Connection", "close, X-Private, host,content-length"),
            ("X-Private", "1"),
            ("Keep-Alive", "5"),
            ("TE", "trailers, deflate"),
            ("Content-Length", "3"),
            ("X-Public", "2"),
        ]);
        headers.remove_connection_fields();
        assert_eq!(headers.to_string(), "Host: a\nX-Public: 2\n");
    }

    #[test]
    fn operations_run_in_the_order_remove_set_add() {
        let text = |text: &'static str| HeaderValue::Text(Bytes::from_static(text.as_bytes()));
        let mut headers = list(&[("a", "1"), ("b", "1"), ("c", "1")]);
        HeaderOperations {
            remove: vec![name("a"), name("c")],
            set: vec![(name("b"), text("2")), (name("c"), text("2"))],
            add: vec![
                (name("c"), text("3")),
                (name("d"), text("3")),
                (name("e"), text("")),
            ],
        }
        .apply(&mut headers, &crate::substitution::tests::facts());
        assert_eq!(headers.to_string(), "b: 2\nc: 2\nc: 3\nd: 3\n");
    }

    #[test]
    fn field_names_must_be_tokens() {
        assert!(FieldName::parse("x-ok_1").is_some());
        for bad in ["", "a b", "a:", "ä", ":path"] {
            assert!(FieldName::parse(bad).is_none(), "{bad}");
        }
    }
}
