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
            /// The well-known name that `name` is, whatever its case.
            pub fn of(name: &[u8]) -> Self {
                match name.len() {
                    $(n if n == $text.len() && name.eq_ignore_ascii_case($text.as_bytes()) => Self::$variant,)*
                    _ => Self::Other,
                }
            }

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
    XRequestId = "x-request-id",
    XEnvoyExternalAddress = "x-envoy-external-address",
    XEnvoyOriginalPath = "x-envoy-original-path",
    XEnvoyOriginalHost = "x-envoy-original-host",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
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

#[derive(Debug, Clone, Copy)]
struct Field {
    name_start: u32,
    value_start: u32,
    value_len: u32,
    name_len: u16,
    id: HeaderId,
}

/// The header or trailer fields of one message, in order. Reusing one list for message after message allocates
/// nothing once its buffer has grown to the usual size.
#[derive(Debug, Clone, Default)]
pub struct HeaderList {
    arena: Vec<u8>,
    fields: Vec<Field>,
}

impl HeaderList {
    /// Forgets all fields and keeps the room.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.fields.clear();
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
            self.arena = Vec::new();
            self.fields = Vec::new();
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

    fn append_resolved(&mut self, id: HeaderId, name: &[u8], value: &[u8]) {
        let name_start = self.arena.len() as u32;
        self.arena.extend_from_slice(name);
        let value_start = self.arena.len() as u32;
        self.arena.extend_from_slice(value);
        self.fields.push(Field {
            name_start,
            value_start,
            value_len: value.len() as u32,
            name_len: u16::try_from(name.len()).unwrap_or(u16::MAX),
            id,
        });
    }

    /// Takes over a whole message head at once: one copy of `block`, and for each field the ranges of its name and
    /// value in it. Ranges outside the block make empty fields.
    pub fn append_block(
        &mut self,
        block: &[u8],
        fields: impl IntoIterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)>,
    ) {
        let base = self.arena.len();
        self.arena.extend_from_slice(block);
        for (name, value) in fields {
            let id = HeaderId::of(block.get(name.clone()).unwrap_or(&[]));
            self.fields.push(Field {
                name_start: (base + name.start) as u32,
                value_start: (base + value.start) as u32,
                value_len: value.len() as u32,
                name_len: u16::try_from(name.len()).unwrap_or(u16::MAX),
                id,
            });
        }
    }

    /// All field lines in order: which well-known name, name as written, value.
    pub fn iter(&self) -> impl Iterator<Item = (HeaderId, &[u8], &[u8])> {
        self.fields
            .iter()
            .map(|field| (field.id, self.name_of(field), self.value_of(field)))
    }

    /// The first value of a well-known field.
    pub fn get(&self, id: HeaderId) -> Option<&[u8]> {
        self.fields
            .iter()
            .find(|field| field.id == id)
            .map(|field| self.value_of(field))
    }

    /// All values of a well-known field.
    pub fn get_all(&self, id: HeaderId) -> impl Iterator<Item = &[u8]> {
        self.fields
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
        self.fields.retain(|field| field.id != id);
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
        let listed: Vec<Box<[u8]>> = if self.fields.iter().any(|field| field.id == HeaderId::Connection) {
            self.get_all(HeaderId::Connection)
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
        self.get_all(id)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
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
