//! Header blocks: what a peer sends is decompressed, and what it is sent is written (RFC 7541).
//!
//! A [`Decoder`] keeps the table that the peer fills, and puts the fields of a block into a [`Fields`]. Blocks are
//! written without that memory: names that the static table has by their index, everything else as it is. That costs
//! some bytes of each head and saves the table, the search in it, and the peer's copy of both.

use super::fields::{ENTRY_OVERHEAD, Fields, Name, Pseudo};
use super::huffman;
use crate::header::HeaderId;
use std::collections::VecDeque;

/// The table that a peer may fill: what is so without a setting (RFC 9113, 6.5.2).
const TABLE_BYTES: usize = 4096;
/// Octets of an integer with its prefix: more are an error, and what is there fits 32 bits (RFC 7541, 5.1).
const INTEGER_OCTETS: u32 = 5;
/// The name of a static entry that has an index in messages of its own.
const STATUS_NAME: u32 = 8;
/// Room that is kept for the next string.
const STRING_KEPT: usize = 4 * 1024;
/// Tells the peer that nothing of its table is used (RFC 7541, 6.3).
pub(super) const NO_TABLE: u8 = 0x20;

const fn pseudo(pseudo: Pseudo) -> Name {
    Name::Pseudo(pseudo)
}

const OTHER: Name = Name::Field(HeaderId::Other);

/// The static table (RFC 7541, appendix A).
#[rustfmt::skip]
static STATIC: [(Name, &str, &str); 61] = [
    (pseudo(Pseudo::Authority), ":authority", ""),
    (pseudo(Pseudo::Method), ":method", "GET"),
    (pseudo(Pseudo::Method), ":method", "POST"),
    (pseudo(Pseudo::Path), ":path", "/"),
    (pseudo(Pseudo::Path), ":path", "/index.html"),
    (pseudo(Pseudo::Scheme), ":scheme", "http"),
    (pseudo(Pseudo::Scheme), ":scheme", "https"),
    (pseudo(Pseudo::Status), ":status", "200"),
    (pseudo(Pseudo::Status), ":status", "204"),
    (pseudo(Pseudo::Status), ":status", "206"),
    (pseudo(Pseudo::Status), ":status", "304"),
    (pseudo(Pseudo::Status), ":status", "400"),
    (pseudo(Pseudo::Status), ":status", "404"),
    (pseudo(Pseudo::Status), ":status", "500"),
    (OTHER, "accept-charset", ""),
    (OTHER, "accept-encoding", "gzip, deflate"),
    (OTHER, "accept-language", ""),
    (OTHER, "accept-ranges", ""),
    (OTHER, "accept", ""),
    (Name::Field(HeaderId::AccessControlAllowOrigin), "access-control-allow-origin", ""),
    (OTHER, "age", ""),
    (OTHER, "allow", ""),
    (OTHER, "authorization", ""),
    (OTHER, "cache-control", ""),
    (OTHER, "content-disposition", ""),
    (OTHER, "content-encoding", ""),
    (OTHER, "content-language", ""),
    (Name::Field(HeaderId::ContentLength), "content-length", ""),
    (OTHER, "content-location", ""),
    (OTHER, "content-range", ""),
    (Name::Field(HeaderId::ContentType), "content-type", ""),
    (Name::Cookie, "cookie", ""),
    (Name::Field(HeaderId::Date), "date", ""),
    (OTHER, "etag", ""),
    (Name::Field(HeaderId::Expect), "expect", ""),
    (OTHER, "expires", ""),
    (OTHER, "from", ""),
    (Name::Field(HeaderId::Host), "host", ""),
    (OTHER, "if-match", ""),
    (OTHER, "if-modified-since", ""),
    (OTHER, "if-none-match", ""),
    (OTHER, "if-range", ""),
    (OTHER, "if-unmodified-since", ""),
    (OTHER, "last-modified", ""),
    (OTHER, "link", ""),
    (Name::Field(HeaderId::Location), "location", ""),
    (Name::Field(HeaderId::MaxForwards), "max-forwards", ""),
    (Name::Field(HeaderId::ProxyAuthenticate), "proxy-authenticate", ""),
    (Name::Field(HeaderId::ProxyAuthorization), "proxy-authorization", ""),
    (OTHER, "range", ""),
    (OTHER, "referer", ""),
    (OTHER, "refresh", ""),
    (OTHER, "retry-after", ""),
    (Name::Field(HeaderId::Server), "server", ""),
    (OTHER, "set-cookie", ""),
    (OTHER, "strict-transport-security", ""),
    (Name::Field(HeaderId::TransferEncoding), "transfer-encoding", ""),
    (Name::Field(HeaderId::UserAgent), "user-agent", ""),
    (OTHER, "vary", ""),
    (OTHER, "via", ""),
    (OTHER, "www-authenticate", ""),
];

/// A block that does not decompress (RFC 9113, 4.3), after which nobody knows what the next one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecodable;

/// An entry of the table that a peer fills. Its octets stand in the table's buffer, the name before the value.
#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Name,
    start: usize,
    name_len: usize,
    value_len: usize,
}

impl Entry {
    const fn size(&self) -> usize {
        self.name_len + self.value_len + ENTRY_OVERHEAD
    }
}

/// The table that a peer fills (RFC 7541, 2.3.2).
#[derive(Debug, Clone, Default)]
struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    /// The octets of all entries, the oldest first, behind those of some that are gone.
    octets: Vec<u8>,
    size: usize,
    max: usize,
}

impl Table {
    fn text(&self, start: usize, length: usize) -> &[u8] {
        self.octets.get(start..start + length).unwrap_or_default()
    }

    fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict(0);
    }

    /// Makes room for so many bytes.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
        if self.entries.is_empty() {
            self.octets.clear();
        }
    }

    fn insert(&mut self, name: Name, text: &[u8], value: &[u8]) {
        let size = text.len() + value.len() + ENTRY_OVERHEAD;
        self.evict(size);
        if size > self.max {
            // RFC 7541, 4.4: that is no error, and empties the table.
            return;
        }
        self.size += size;
        // Twice the table at most, so that each octet is moved once in a while.
        if self.octets.len() + size > 2 * TABLE_BYTES {
            let gone = self.entries.back().map_or(0, |oldest| oldest.start);
            self.octets.drain(..gone);
            self.entries.iter_mut().for_each(|entry| entry.start -= gone);
        }
        self.entries.push_front(Entry {
            name,
            start: self.octets.len(),
            name_len: text.len(),
            value_len: value.len(),
        });
        self.octets.extend_from_slice(text);
        self.octets.extend_from_slice(value);
    }

    /// The entry at an index, which counts from behind the static table.
    fn get(&self, index: u32) -> Result<(Name, &[u8], &[u8]), Undecodable> {
        let at = index.checked_sub(STATIC.len() as u32 + 1).ok_or(Undecodable)?;
        let entry = self.entries.get(at as usize).ok_or(Undecodable)?;
        let name = self.text(entry.start, entry.name_len);
        let value = self.text(entry.start + entry.name_len, entry.value_len);
        Ok((entry.name, name, value))
    }

    /// The entry at an index of both tables (RFC 7541, 2.3.3).
    fn find(&self, index: u32) -> Result<(Name, &[u8], &[u8]), Undecodable> {
        let at = index.checked_sub(1).ok_or(Undecodable)?;
        match STATIC.get(at as usize) {
            Some((name, text, value)) => Ok((*name, text.as_bytes(), value.as_bytes())),
            None => self.get(index),
        }
    }
}

/// Reads the blocks of one direction of a connection, in their order.
#[derive(Debug, Clone)]
pub struct Decoder {
    table: Table,
    /// Room for strings in Huffman codes.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: Table {
                max: TABLE_BYTES,
                ..Table::default()
            },
            name: Vec::new(),
            value: Vec::new(),
        }
    }
}

impl Decoder {
    /// Reads a whole block into a section, which takes `max_size` bytes and `max_count` fields.
    pub fn decode(
        &mut self,
        block: &[u8],
        (max_size, max_count): (usize, usize),
        into: &mut Fields,
    ) -> Result<(), Undecodable> {
        into.begin(max_size, max_count);
        let decoded = self.decode_all(block, into);
        for room in [&mut self.name, &mut self.value] {
            if room.capacity() > STRING_KEPT {
                *room = Vec::new();
            }
        }
        decoded
    }

    fn decode_all(&mut self, block: &[u8], into: &mut Fields) -> Result<(), Undecodable> {
        let mut octets = Octets(block);
        let mut has_field = false;
        while let Some(&first) = octets.0.first() {
            if into.is_bomb() {
                // Who sends that is read no further.
                return Ok(());
            }
            if let 0x20..0x40 = first {
                // RFC 7541, 4.2: behind a field the table keeps its size.
                let size = octets.integer(5)? as usize;
                if has_field || size > TABLE_BYTES {
                    return Err(Undecodable);
                }
                self.table.resize(size);
                continue;
            }
            has_field = true;
            if first >= 0x80 {
                let (name, text, value) = self.table.find(octets.integer(7)?)?;
                into.push(name, text, value);
                continue;
            }
            if first >= 0x40 {
                let index = octets.integer(6)?;
                let (name, text) = if index == 0 {
                    let text = octets.text(&mut self.name)?;
                    (Name::of(text), text)
                } else {
                    // A copy: the new entry may push the one out that it has its name from.
                    let (name, text, _) = self.table.find(index)?;
                    self.name.clear();
                    self.name.extend_from_slice(text);
                    (name.named_again(text), &self.name[..])
                };
                let value = octets.text(&mut self.value)?;
                let name = name.checked(value);
                into.push(name, text, value);
                self.table.insert(name, text, value);
                continue;
            }
            let (name, text) = match octets.integer(4)? {
                0 => {
                    let text = octets.text(&mut self.name)?;
                    (Name::of(text), text)
                }
                index => {
                    let (name, text, _) = self.table.find(index)?;
                    (name.named_again(text), text)
                }
            };
            let value = octets.text(&mut self.value)?;
            into.push(name.checked(value), text, value);
        }
        Ok(())
    }

    /// Bytes that are kept for the peer.
    pub fn kept_bytes(&self) -> usize {
        self.table.octets.capacity() + self.name.capacity() + self.value.capacity()
    }
}

/// The rest of a block.
struct Octets<'a>(&'a [u8]);

impl<'a> Octets<'a> {
    fn octet(&mut self) -> Result<u8, Undecodable> {
        let (octet, rest) = self.0.split_first().ok_or(Undecodable)?;
        self.0 = rest;
        Ok(*octet)
    }

    /// An integer behind a prefix (RFC 7541, 5.1).
    fn integer(&mut self, bits: u32) -> Result<u32, Undecodable> {
        let most = (1_u32 << bits) - 1;
        let start = u32::from(self.octet()?) & most;
        if start < most {
            return Ok(start);
        }
        let mut value = most;
        for at in 0..INTEGER_OCTETS - 1 {
            let octet = self.octet()?;
            // Four octets of seven bits: no sum of them is near 32 bits.
            value += u32::from(octet & 0x7f) << (7 * at);
            if octet & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Undecodable)
    }

    /// A string (RFC 7541, 5.2), which is in `room` when it was in Huffman codes.
    fn text<'b>(&mut self, room: &'b mut Vec<u8>) -> Result<&'b [u8], Undecodable>
    where
        'a: 'b,
    {
        let is_huffman = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)? as usize;
        let (octets, rest) = self.0.split_at_checked(length).ok_or(Undecodable)?;
        self.0 = rest;
        if !is_huffman {
            return Ok(octets);
        }
        room.clear();
        huffman::decode(octets, room).map_err(|huffman::Broken| Undecodable)?;
        Ok(room)
    }
}

/// Writes an integer behind a prefix whose other bits are `first`.
fn integer(out: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// The index of a name in the static table.
const fn index_of(id: HeaderId) -> Option<u32> {
    Some(match id {
        HeaderId::AccessControlAllowOrigin => 20,
        HeaderId::ContentLength => 28,
        HeaderId::ContentType => 31,
        HeaderId::Date => 33,
        HeaderId::Expect => 35,
        HeaderId::Location => 46,
        HeaderId::MaxForwards => 47,
        HeaderId::Server => 54,
        HeaderId::UserAgent => 58,
        _ => return None,
    })
}

/// Writes `:status`.
pub(super) fn write_status(out: &mut Vec<u8>, status: u16) {
    let index = match status {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            integer(out, 0, 4, STATUS_NAME as usize);
            let mut digits = itoa::Buffer::new();
            return text(out, digits.format(status).as_bytes());
        }
    };
    out.push(0x80 | index);
}

/// Writes a pseudo-header field of a request.
pub(super) fn write_pseudo(out: &mut Vec<u8>, name: Pseudo, value: &[u8]) {
    let name_index = match (name, value) {
        (Pseudo::Method, b"GET") => return out.push(0x82),
        (Pseudo::Method, b"POST") => return out.push(0x83),
        (Pseudo::Path, b"/") => return out.push(0x84),
        (Pseudo::Scheme, b"http") => return out.push(0x86),
        (Pseudo::Scheme, b"https") => return out.push(0x87),
        (Pseudo::Authority, _) => 1,
        (Pseudo::Method, _) => 2,
        (Pseudo::Path, _) => 4,
        (Pseudo::Scheme, _) => 6,
        (Pseudo::Status, _) => STATUS_NAME as usize,
        (Pseudo::Protocol, _) => {
            out.push(0);
            text(out, b":protocol");
            return text(out, value);
        }
    };
    integer(out, 0, 4, name_index);
    text(out, value);
}

/// Writes a field, with its name in lower case.
pub(super) fn write_field(out: &mut Vec<u8>, id: HeaderId, name: &[u8], value: &[u8]) {
    if let Some(index) = index_of(id) {
        integer(out, 0, 4, index as usize);
    } else {
        // RFC 7541, 7.1.3: what guesses would be tried on is in no table of anybody behind.
        let is_secret = [&b"authorization"[..], b"cookie", b"set-cookie"]
            .iter()
            .any(|secret| secret.len() == name.len() && secret.eq_ignore_ascii_case(name));
        out.push(if is_secret { 0x10 } else { 0 });
        integer(out, 0, 7, name.len());
        out.extend(name.iter().map(u8::to_ascii_lowercase));
    }
    text(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const LIMITS: (usize, usize) = (60 * 1024, 100);

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits
            .chunks(2)
            .map(|pair| (pair[0] << 4 | pair[1]) as u8)
            .collect()
    }

    fn lines(fields: &Fields) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        fields
            .list
            .iter()
            .map(|(_, name, value)| (text(name), text(value)))
            .collect()
    }

    #[test]
    fn what_a_peer_names_again_is_judged_as_it_was_and_its_name_by_itself() {
        let mut decoder = Decoder::default();
        let mut fields = Fields::default();
        let mut says = |block: &[u8]| {
            decoder.decode(block, (60_000, 100), &mut fields).unwrap();
            (fields.is_malformed(), fields.list.iter().count())
        };
        // `x: a, LF, b`, kept in the table.
        assert_eq!(says(b"\x40\x01x\x03a\nb"), (true, 0));
        assert_eq!(says(b"\xbe"), (true, 0), "it is no better by its index");
        assert_eq!(says(b"\x7e\x01y"), (false, 1), "its name with another value");
        assert_eq!(says(b"\x0f\x2f\x01z"), (false, 1), "the same, kept nowhere");
        assert_eq!(says(b"\xbe"), (false, 1), "`x: y`");
        assert_eq!(says(b"\xbf"), (true, 0));
        assert_eq!(says(b"\x40\x01X\x01a"), (true, 0), "upper case");
        assert_eq!(says(b"\x7e\x01a"), (true, 0), "by its name, too");
    }

    #[test]
    fn every_static_entry_has_the_name_that_its_text_says() {
        for (at, (name, text, _)) in STATIC.iter().enumerate() {
            assert_eq!(*name, Name::of(text.as_bytes()), "{text}");
            if let Name::Field(id) = name
                && let Some(index) = index_of(*id)
            {
                assert_eq!(index as usize, at + 1, "{text}");
            }
        }
    }

    #[test]
    fn the_requests_of_the_rfc_are_read() {
        // RFC 7541, C.4: with Huffman codes, over one connection.
        let mut decoder = Decoder::default();
        let mut fields = Fields::default();
        let first = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        decoder.decode(&first, LIMITS, &mut fields).unwrap();
        assert_eq!(fields.pseudo(Pseudo::Authority), Some(&b"www.example.com"[..]));
        assert_eq!(decoder.table.size, 57);
        let second = hex("8286 84be 5886 a8eb 1064 9cbf");
        decoder.decode(&second, LIMITS, &mut fields).unwrap();
        assert_eq!(lines(&fields), [("cache-control".into(), "no-cache".into())]);
        assert_eq!(decoder.table.size, 110);
        let third = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        decoder.decode(&third, LIMITS, &mut fields).unwrap();
        assert_eq!(lines(&fields), [("custom-key".into(), "custom-value".into())]);
        assert_eq!(fields.pseudo(Pseudo::Path), Some(&b"/index.html"[..]));
        assert_eq!(decoder.table.size, 164);
    }

    #[test]
    fn the_answers_of_the_rfc_are_read_although_entries_go() {
        // RFC 7541, C.6: a table of 256 bytes.
        let mut decoder = Decoder::default();
        decoder.table.resize(256);
        let mut fields = Fields::default();
        let first = hex(
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
             1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        );
        decoder.decode(&first, LIMITS, &mut fields).unwrap();
        assert_eq!(fields.status(), Some(302));
        assert_eq!(fields.list.len(), 3);
        assert_eq!(decoder.table.size, 222);
        decoder
            .decode(&hex("4883 640e ffc1 c0bf"), LIMITS, &mut fields)
            .unwrap();
        assert_eq!(fields.status(), Some(307));
        assert_eq!(decoder.table.size, 222);
        let third = hex(
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 \
             e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        );
        decoder.decode(&third, LIMITS, &mut fields).unwrap();
        assert_eq!(fields.status(), Some(200));
        let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
        assert_eq!(lines(&fields)[4], ("set-cookie".into(), cookie.into()));
        assert_eq!(decoder.table.size, 215);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for seed in 0..2000 {
            let mut random = Random::from_seed(seed);
            let mut block = vec![NO_TABLE];
            let statuses = [100, 200, 204, 206, 304, 400, 404, 418, 500, 503, 999];
            let status = statuses[random.below(statuses.len() as u64) as usize];
            write_status(&mut block, status);
            let mut expected = Vec::new();
            for _ in 0..random.below(8) {
                let ids = HeaderId::ALL;
                let id = ids[random.below(ids.len() as u64) as usize];
                let long = "x".repeat(random.below(400) as usize);
                let (id, name) = match random.below(3) {
                    0 if !id.is_connection_field() => (id, id.name().to_owned()),
                    _ => (HeaderId::Other, format!("X-{long}")),
                };
                let value = "v".repeat(random.below(20_000) as usize >> (2 * random.below(6)));
                write_field(&mut block, id, name.as_bytes(), value.as_bytes());
                expected.push((name.to_ascii_lowercase(), value));
            }
            let mut fields = Fields::default();
            Decoder::default()
                .decode(&block, (1 << 20, 100), &mut fields)
                .unwrap();
            assert!(!fields.is_malformed() && !fields.is_too_large(), "seed {seed}");
            assert_eq!(fields.status(), Some(status), "seed {seed}");
            assert_eq!(lines(&fields), expected, "seed {seed}");
        }
    }

    #[test]
    fn what_does_not_decompress_is_told() {
        for block in [
            // Index zero; one beyond the table; a size beyond what is allowed, and behind a field.
            "80",
            "be",
            "3fe21f",
            "8220", // An integer without an end, and too long a one.
            "ff",
            "ffffffffff7f", // A string that is cut, and one in codes that break.
            "0001",
            "400361",
            "0081ff00",
        ] {
            let decoded = Decoder::default().decode(&hex(block), LIMITS, &mut Fields::default());
            assert_eq!(decoded, Err(Undecodable), "{block}");
        }
        // A size of nothing, twice, is none of those.
        let decoded = Decoder::default().decode(&hex("2020"), LIMITS, &mut Fields::default());
        assert_eq!(decoded, Ok(()));
    }

    #[test]
    fn any_blocks_are_taken_and_the_table_stays_small() {
        for seed in 0..5000 {
            let mut random = Random::from_seed(seed);
            let mut decoder = Decoder::default();
            let mut fields = Fields::default();
            for _ in 0..8 {
                let block: Vec<u8> = (0..random.below(300)).map(|_| random.next_u64() as u8).collect();
                let _broken = decoder.decode(&block, (1000, 10), &mut fields);
                assert!(decoder.table.size <= TABLE_BYTES && fields.list.len() <= 10);
                let held: usize = decoder.table.entries.iter().map(Entry::size).sum();
                assert_eq!(decoder.table.size, held, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_table_that_is_filled_over_and_over_takes_no_more_room() {
        let mut decoder = Decoder::default();
        let mut fields = Fields::default();
        for round in 0..10_000_u32 {
            let mut block = vec![0x40];
            text(&mut block, format!("x-{}", round % 700).as_bytes());
            text(&mut block, "v".repeat(round as usize % 500).as_bytes());
            // The entry is there, under the first index behind the static table.
            block.push(0x80 | 62);
            decoder.decode(&block, LIMITS, &mut fields).unwrap();
            let [first, second] = &lines(&fields)[..] else {
                panic!()
            };
            assert_eq!(first, second);
            assert!(decoder.table.octets.len() <= 2 * TABLE_BYTES);
        }
    }
}
