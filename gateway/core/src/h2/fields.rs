//! A section of fields as a header block says it (RFC 9113, 8), before anybody asks what it means.
//!
//! The decoder of blocks puts one field after the other in. Pseudo-header fields are kept apart; the others go into the
//! list that a message is worked on with. What is wrong with a field is remembered and not told at once, since a block
//! has to be read to its end whatever it says (RFC 9113, 4.3). Sections are used again, so that their room is allocated
//! once.

use crate::header::{HeaderId, HeaderList, is_token_byte, is_value};
use std::ops::Range;

/// What an entry counts beside its octets (RFC 9113, 6.5.2; RFC 7541, 4.1).
pub(super) const ENTRY_OVERHEAD: usize = 32;

/// How many times as large as what is taken a section may be that is answered.
const BOMB: usize = 4;

/// What a field's name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// A pseudo-header field (RFC 9113, 8.3).
    Pseudo(Pseudo),
    /// A field of HTTP.
    Field(HeaderId),
    /// `cookie`, which may come in crumbs.
    Cookie,
    /// None that HTTP/2 has.
    Malformed,
}

/// The pseudo-header fields (RFC 9113, 8.3; RFC 8441, 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is the field of its name")]
pub enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

const PSEUDO: usize = Pseudo::Status as usize + 1;

impl Name {
    /// What a name is, as it came.
    pub(super) fn of(name: &[u8]) -> Self {
        if name.first() == Some(&b':') {
            return match name {
                b":method" => Self::Pseudo(Pseudo::Method),
                b":scheme" => Self::Pseudo(Pseudo::Scheme),
                b":authority" => Self::Pseudo(Pseudo::Authority),
                b":path" => Self::Pseudo(Pseudo::Path),
                b":protocol" => Self::Pseudo(Pseudo::Protocol),
                b":status" => Self::Pseudo(Pseudo::Status),
                _ => Self::Malformed,
            };
        }
        // RFC 9113, 8.2.1: names are in lower case.
        let is_right = |byte: &u8| is_token_byte(*byte) && !byte.is_ascii_uppercase();
        match name {
            b"" => Self::Malformed,
            b"cookie" => Self::Cookie,
            name if name.len() <= usize::from(u16::MAX) && name.iter().all(is_right) => {
                Self::Field(HeaderId::of(name))
            }
            _ => Self::Malformed,
        }
    }
}

impl Name {
    /// What a name is that the table has, which may be malformed there for the value beside it.
    pub(super) fn named_again(self, text: &[u8]) -> Self {
        match self {
            Self::Malformed => Self::of(text),
            _ => self,
        }
    }

    /// What a field's name is to its value: none that HTTP/2 has, if that is none that a field may have. A field that the
    /// peer names again is not looked at again.
    pub(super) fn checked(self, value: &[u8]) -> Self {
        match self {
            Self::Pseudo(_) => self,
            _ if is_value(value) => self,
            _ => Self::Malformed,
        }
    }
}

/// A section of fields.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    /// All but the pseudo-header fields, in order.
    pub list: HeaderList,
    /// The values of those.
    text: Vec<u8>,
    pseudo: [Option<(u32, u32)>; PSEUDO],
    size: usize,
    max_size: usize,
    max_count: usize,
    crumbs: usize,
    is_malformed: bool,
    is_padded: bool,
    is_too_large: bool,
}

impl Fields {
    /// Forgets everything and keeps the room; takes so many bytes from now on, as RFC 9113, 6.5.2 counts them, and so
    /// many fields.
    pub(super) fn begin(&mut self, max_size: usize, max_count: usize) {
        self.list.clear();
        self.text.clear();
        self.pseudo = [None; PSEUDO];
        self.size = 0;
        (self.max_size, self.max_count) = (max_size, max_count);
        self.crumbs = 0;
        self.is_malformed = false;
        self.is_padded = false;
        self.is_too_large = false;
    }

    /// Adds a field whose name is [`Name::checked`] for its value.
    pub(super) fn push(&mut self, name: Name, text: &[u8], value: &[u8]) {
        self.size += text.len() + value.len() + ENTRY_OVERHEAD;
        // A section that is too large is kept as far as it is not: nobody acts on it.
        if self.size > self.max_size || self.list.len() >= self.max_count {
            self.is_too_large = true;
            return;
        }
        let Name::Pseudo(pseudo) = name else {
            return self.push_field(name, text, value);
        };
        let slot = self.pseudo.get_mut(pseudo as usize);
        match slot {
            // RFC 9113, 8.3: each at most once, and all of them before the others.
            Some(slot @ None) if self.list.is_empty() && is_pseudo_value(pseudo, value) => {
                *slot = Some((self.text.len() as u32, value.len() as u32));
                self.text.extend_from_slice(value);
            }
            _ => self.is_malformed = true,
        }
    }

    fn push_field(&mut self, name: Name, text: &[u8], value: &[u8]) {
        let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        self.is_padded |= is_space(value.first()) || is_space(value.last());
        match name {
            Name::Field(HeaderId::Te) if !value.eq_ignore_ascii_case(b"trailers") => self.is_malformed = true,
            // RFC 9113, 8.2.2.
            Name::Field(
                HeaderId::Connection
                | HeaderId::ProxyConnection
                | HeaderId::KeepAlive
                | HeaderId::TransferEncoding
                | HeaderId::Upgrade,
            )
            | Name::Malformed => self.is_malformed = true,
            Name::Field(HeaderId::Other) => self.list.append_other(text, value),
            Name::Field(id) => self.list.append_known(id, value),
            Name::Cookie => {
                self.crumbs += 1;
                self.list.append_other(text, value);
            }
            Name::Pseudo(_) => {}
        }
    }

    /// Whether a field breaks a rule of HTTP/2, so that the message is malformed (RFC 9113, 8.1.1).
    pub fn is_malformed(&self) -> bool {
        self.is_malformed
    }

    /// Whether a value begins or ends with white space, which is malformed, too (RFC 9113, 8.2.1).
    pub fn is_padded(&self) -> bool {
        self.is_padded
    }

    /// Whether there was more than is taken.
    pub fn is_too_large(&self) -> bool {
        self.is_too_large
    }

    /// How much was said, as RFC 9113, 6.5.2 counts it, whether it is taken or not.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether there was so much more that nobody means it: a few bytes of the table said over and over.
    pub fn is_bomb(&self) -> bool {
        self.size / BOMB > self.max_size
    }

    /// Whether there is any pseudo-header field.
    pub fn has_pseudo(&self) -> bool {
        self.pseudo.iter().any(Option::is_some)
    }

    /// The value of a pseudo-header field.
    pub fn pseudo(&self, pseudo: Pseudo) -> Option<&[u8]> {
        let (start, length) = (*self.pseudo.get(pseudo as usize)?)?;
        let range: Range<usize> = start as usize..start as usize + length as usize;
        self.text.get(range)
    }

    /// The value of one that is text.
    pub fn pseudo_text(&self, pseudo: Pseudo) -> Option<&str> {
        std::str::from_utf8(self.pseudo(pseudo)?).ok()
    }

    /// The status of an answer.
    pub fn status(&self) -> Option<u16> {
        self.pseudo_text(Pseudo::Status)?.parse().ok()
    }

    /// Makes crumbs of a cookie one field again, for peers of HTTP/1.1 (RFC 9113, 8.2.3).
    pub(super) fn join_crumbs(&mut self) {
        if self.crumbs < 2 {
            return;
        }
        self.crumbs = 1;
        let mut whole = Vec::new();
        self.list.retain(|_, name, value| {
            let is_crumb = name == b"cookie";
            if is_crumb {
                if !whole.is_empty() {
                    whole.extend_from_slice(b"; ");
                }
                whole.extend_from_slice(value);
            }
            !is_crumb
        });
        self.list.append_other(b"cookie", &whole);
    }

    /// Gives room back that an unusually large section took.
    pub(super) fn shrink(&mut self, max: usize) {
        self.list.shrink(max);
        if self.text.capacity() > max {
            self.text = Vec::new();
        }
    }
}

fn is_pseudo_value(pseudo: Pseudo, value: &[u8]) -> bool {
    match pseudo {
        Pseudo::Method => !value.is_empty() && value.iter().all(|byte| is_token_byte(*byte)),
        Pseudo::Status => matches!(value, [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9']),
        Pseudo::Scheme | Pseudo::Path | Pseudo::Protocol => !value.is_empty() && value.is_ascii(),
        Pseudo::Authority => value.is_ascii(),
    }
}
