//! The form of a header block (RFC 7541, 6), without what it says.
//!
//! A block goes in as the bytes between frames' headers, padding and priorities; out comes a [`Scan`], which says
//! whether the block can be decompressed as far as that shows without the dynamic table. The library decompresses every
//! block for itself. This is for the few that it gives a connection up for, since it does not say why, and for trailers,
//! whose pseudo-header fields it drops without a word.

use crate::header::{is_token_byte, is_value_byte};

/// The table that a client may fill: what is so without a setting (RFC 9113, 6.5.2).
const TABLE_BYTES: u32 = 4096;
/// What an entry counts beside its octets (RFC 7541, 4.1).
const ENTRY_OVERHEAD: u32 = 32;
/// Entries of the static table (RFC 7541, appendix A).
const STATIC_ENTRIES: u32 = 61;
/// The last of its entries that is a pseudo-header field.
const STATIC_PSEUDO: u32 = 14;
/// An index beyond this has no entry in any table.
const INDEX_MAX: u32 = STATIC_ENTRIES + TABLE_BYTES / ENTRY_OVERHEAD;
/// The static table's entries with the names `:method` and `:status`.
const METHOD: [u32; 2] = [2, 3];
const STATUS: [u32; 7] = [8, 9, 10, 11, 12, 13, 14];
/// Octets of an integer with its prefix: more are an error, and what is there fits 32 bits (RFC 7541, 5.1).
const INTEGER_OCTETS: u32 = 5;

/// What becomes of decompressing a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Nothing is wrong, but for what the dynamic table may not have.
    Whole,
    /// The end is missing.
    Cut,
    /// It does not decompress, whatever follows.
    Broken,
}

/// What is to be said of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// How it ends, or that it breaks.
    pub form: Form,
    /// Whether a name or a value, before a break if there is one, is none of HTTP/2's (RFC 9113, 8.2.1 and 8.3). White
    /// space at the ends of values does not count.
    pub is_malformed: bool,
    /// Whether there is a pseudo-header field. Those whose name is in the dynamic table are not seen.
    pub has_pseudo: bool,
    /// Whether it refers to the dynamic table, which may not have what it asks for.
    pub is_dynamic: bool,
}

impl Scan {
    /// Scans all of a block, up to a break.
    pub fn of(block: &[u8]) -> Self {
        Self::walk(block, |item| item.is_malformed())
    }

    /// Scans the form alone, and looks into no value: strings may be broken in themselves.
    pub fn shallow(block: &[u8]) -> Self {
        Self::walk(block, |_| Ok(false))
    }

    fn walk(block: &[u8], look: impl Fn(&Item<'_>) -> Result<bool, Form>) -> Self {
        let mut scan = Self {
            form: Form::Whole,
            is_malformed: false,
            has_pseudo: false,
            is_dynamic: false,
        };
        let mut items = Items {
            rest: block,
            has_field: false,
        };
        while !items.rest.is_empty() {
            let seen = items.next().and_then(|item| {
                scan.has_pseudo |= item.is_pseudo();
                scan.is_dynamic |= item.is_dynamic();
                look(&item)
            });
            match seen {
                Ok(is_malformed) => scan.is_malformed |= is_malformed,
                Err(form) => {
                    scan.form = form;
                    break;
                }
            }
        }
        scan
    }
}

/// One representation of a block (RFC 7541, 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item<'a> {
    Indexed(u32),
    Literal { name: Name<'a>, value: Text<'a> },
    Resize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name<'a> {
    Index(u32),
    Text(Text<'a>),
}

/// A string as it stands in a block (RFC 7541, 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Text<'a> {
    octets: &'a [u8],
    is_huffman: bool,
}

impl Item<'_> {
    fn index(&self) -> Option<u32> {
        match self {
            Self::Indexed(index)
            | Self::Literal {
                name: Name::Index(index),
                ..
            } => Some(*index),
            _ => None,
        }
    }

    fn is_pseudo(&self) -> bool {
        match self {
            Self::Literal {
                name: Name::Text(name),
                ..
            } => name.first() == Some(b':'),
            _ => self.index().is_some_and(|index| index <= STATIC_PSEUDO),
        }
    }

    fn is_dynamic(&self) -> bool {
        self.index().is_some_and(|index| index > STATIC_ENTRIES)
    }

    /// Whether a literal is no field of HTTP/2; the error when a string of it does not decompress.
    fn is_malformed(&self) -> Result<bool, Form> {
        let Self::Literal { name, value } = self else {
            return Ok(false);
        };
        let (mut spelled, mut said) = (Vec::new(), Vec::new());
        if let Name::Text(name) = name {
            name.read(&mut spelled)?;
        }
        value.read(&mut said)?;
        let rule: fn(&[u8]) -> bool = match (name, &spelled[..]) {
            (_, b":method") => is_token,
            (_, b":status") => is_status,
            (_, b":authority" | b":scheme" | b":path" | b":protocol") => is_utf8,
            (Name::Index(index), _) if METHOD.contains(index) => is_token,
            (Name::Index(index), _) if STATUS.contains(index) => is_status,
            (Name::Index(index), _) if *index <= STATIC_PSEUDO => is_utf8,
            // An entry of the dynamic table may be of any kind, and all kinds are values.
            (Name::Index(_), _) => is_value,
            (Name::Text(_), name) if is_name(name) => is_value,
            (Name::Text(_), _) => return Ok(true),
        };
        Ok(!rule(&said))
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}

fn is_name(text: &[u8]) -> bool {
    is_token(text) && !text.iter().any(u8::is_ascii_uppercase)
}

fn is_value(text: &[u8]) -> bool {
    text.iter().all(|byte| is_value_byte(*byte))
}

fn is_status(text: &[u8]) -> bool {
    matches!(text, [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'])
}

fn is_utf8(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok()
}

/// The representations of a block, one after the other.
struct Items<'a> {
    rest: &'a [u8],
    /// Whether a field has come, behind which the table keeps its size (RFC 7541, 4.2).
    has_field: bool,
}

impl<'a> Items<'a> {
    fn next(&mut self) -> Result<Item<'a>, Form> {
        let first = self.peek()?;
        let item = match first {
            0x80.. => match self.integer(7)? {
                // RFC 7541, 6.1 and 2.3.3.
                0 => return Err(Form::Broken),
                index => Item::Indexed(index_of(index)?),
            },
            0x40.. => self.literal(6)?,
            0x20.. => {
                let size = self.integer(5)?;
                let is_allowed = !self.has_field && size <= TABLE_BYTES;
                return is_allowed.then_some(Item::Resize).ok_or(Form::Broken);
            }
            _ => self.literal(4)?,
        };
        self.has_field = true;
        Ok(item)
    }

    fn literal(&mut self, bits: u32) -> Result<Item<'a>, Form> {
        let name = match self.integer(bits)? {
            0 => Name::Text(self.text()?),
            index => Name::Index(index_of(index)?),
        };
        let value = self.text()?;
        Ok(Item::Literal { name, value })
    }

    fn text(&mut self) -> Result<Text<'a>, Form> {
        let is_huffman = self.peek()? & 0x80 != 0;
        let length = self.integer(7)? as usize;
        let (octets, rest) = self.rest.split_at_checked(length).ok_or(Form::Cut)?;
        self.rest = rest;
        Ok(Text { octets, is_huffman })
    }

    fn peek(&self) -> Result<u8, Form> {
        self.rest.first().copied().ok_or(Form::Cut)
    }

    /// An integer behind a prefix (RFC 7541, 5.1).
    fn integer(&mut self, bits: u32) -> Result<u32, Form> {
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
        Err(Form::Broken)
    }

    fn octet(&mut self) -> Result<u8, Form> {
        let (octet, rest) = self.rest.split_first().ok_or(Form::Cut)?;
        self.rest = rest;
        Ok(*octet)
    }
}

fn index_of(index: u32) -> Result<u32, Form> {
    (index <= INDEX_MAX).then_some(index).ok_or(Form::Broken)
}

impl Text<'_> {
    /// The first octet that it says.
    fn first(&self) -> Option<u8> {
        if !self.is_huffman {
            return self.octets.first().copied();
        }
        let mut codes = Codes::of(self.octets);
        match codes.next() {
            Some(Ok(symbol)) => u8::try_from(symbol).ok(),
            _ => None,
        }
    }

    /// Reads what it says.
    fn read(&self, into: &mut Vec<u8>) -> Result<(), Form> {
        if !self.is_huffman {
            into.extend_from_slice(self.octets);
            return Ok(());
        }
        for symbol in Codes::of(self.octets) {
            // The symbol above all octets is EOS, which no string has (RFC 7541, 5.2).
            into.push(u8::try_from(symbol?).map_err(|_| Form::Broken)?);
        }
        Ok(())
    }
}

/// Symbols: all octets, and EOS.
const SYMBOLS: usize = 257;
/// Bits of the longest code.
const CODE_BITS_MAX: usize = 30;

/// The lengths of the codes of all symbols (RFC 7541, appendix B). Codes of one length are in the order of their
/// symbols, and longer ones behind shorter ones, so that the lengths say all.
#[rustfmt::skip]
const CODE_BITS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The codes of one length, which are consecutive numbers.
#[derive(Clone, Copy)]
struct Length {
    first: u32,
    codes: u32,
    /// Where their symbols are in [`Book::symbols`].
    at: u32,
}

struct Book {
    lengths: [Length; CODE_BITS_MAX + 1],
    /// All symbols in the order of their codes.
    symbols: [u16; SYMBOLS],
}

static BOOK: Book = Book::of(&CODE_BITS);

impl Book {
    const fn of(bits: &[u8; SYMBOLS]) -> Self {
        let none = Length {
            first: 0,
            codes: 0,
            at: 0,
        };
        let mut book = Self {
            lengths: [none; CODE_BITS_MAX + 1],
            symbols: [0; SYMBOLS],
        };
        let (mut length, mut first, mut at) = (1, 0_u32, 0);
        while length <= CODE_BITS_MAX {
            first <<= 1;
            book.lengths[length] = Length {
                first,
                codes: 0,
                at: at as u32,
            };
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if bits[symbol] as usize == length {
                    book.symbols[at] = symbol as u16;
                    book.lengths[length].codes += 1;
                    first += 1;
                    at += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        book
    }
}

/// The symbols of a string in Huffman codes, one after the other, then an error if it does not end as it must.
struct Codes<'a> {
    octets: std::slice::Iter<'a, u8>,
    /// Bits that were read ahead, the first on top.
    ahead: u8,
    bits: u8,
}

impl<'a> Codes<'a> {
    fn of(octets: &'a [u8]) -> Self {
        Self {
            octets: octets.iter(),
            ahead: 0,
            bits: 0,
        }
    }

    fn bit(&mut self) -> Option<u32> {
        if self.bits == 0 {
            self.ahead = *self.octets.next()?;
            self.bits = 8;
        }
        let bit = self.ahead >> 7;
        self.ahead <<= 1;
        self.bits -= 1;
        Some(u32::from(bit))
    }
}

impl Iterator for Codes<'_> {
    type Item = Result<u16, Form>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut code = 0;
        for (bits, length) in BOOK.lengths.iter().enumerate().skip(1) {
            let Some(bit) = self.bit() else {
                // RFC 7541, 5.2: up to seven bits, all of them ones, fill the last octet up.
                let is_padding = bits <= 8 && code == (1 << (bits - 1)) - 1;
                return (!is_padding).then_some(Err(Form::Broken));
            };
            code = code << 1 | bit;
            let Some(number) = code.checked_sub(length.first) else {
                continue;
            };
            if number < length.codes {
                let symbol = BOOK.symbols.get((length.at + number) as usize);
                return symbol.map(|symbol| Ok(*symbol));
            }
        }
        // No code is longer: the code is complete, so that this is not reached.
        Some(Err(Form::Broken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn bytes_of(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
        let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
        digits
            .chunks(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
            .collect()
    }

    fn integer(out: &mut Vec<u8>, first: u8, bits: u32, value: u32) {
        let most = (1_u32 << bits) - 1;
        if value < most {
            return out.push(first | value as u8);
        }
        out.push(first | most as u8);
        let mut rest = value - most;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }

    /// The code of a symbol and its bits, from the lengths alone.
    fn code(symbol: usize) -> (u32, u8) {
        let mut order: Vec<usize> = (0..SYMBOLS).collect();
        order.sort_by_key(|symbol| (CODE_BITS[*symbol], *symbol));
        let (mut code, mut bits) = (0_u32, CODE_BITS[order[0]]);
        for other in order {
            code <<= CODE_BITS[other] - bits;
            bits = CODE_BITS[other];
            if other == symbol {
                break;
            }
            code += 1;
        }
        (code, bits)
    }

    /// The octets of some symbols, filled up with ones, or zeros, and more octets of them.
    fn huffman(symbols: &[usize], pad: bool, more: usize) -> Vec<u8> {
        let mut bits: Vec<bool> = Vec::new();
        for symbol in symbols {
            let (code, length) = code(*symbol);
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8) + 8 * more, pad);
        let octet = |bits: &[bool]| bits.iter().fold(0, |octet, bit| octet << 1 | u8::from(*bit));
        bits.chunks(8).map(octet).collect()
    }

    fn text(out: &mut Vec<u8>, text: &[u8], is_huffman: bool) {
        if is_huffman {
            let symbols: Vec<usize> = text.iter().map(|octet| usize::from(*octet)).collect();
            let octets = huffman(&symbols, true, 0);
            integer(out, 0x80, 7, octets.len() as u32);
            out.extend(octets);
        } else {
            integer(out, 0, 7, text.len() as u32);
            out.extend(text);
        }
    }

    /// A literal without indexing.
    fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut block = vec![0];
        text(&mut block, name, false);
        text(&mut block, value, false);
        block
    }

    fn form(block: &[u8]) -> Form {
        Scan::of(block).form
    }

    fn said(octets: &[u8]) -> Result<Vec<u8>, Form> {
        let text = Text {
            octets,
            is_huffman: true,
        };
        let mut said = Vec::new();
        text.read(&mut said).map(|()| said)
    }

    #[test]
    fn the_examples_of_the_rfc_are_right() {
        // RFC 7541, appendix C: the block, and whether it refers to the dynamic table.
        for (block, is_dynamic) in [
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                false,
            ),
            ("040c 2f73 616d 706c 652f 7061 7468", false),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", false),
            ("82", false),
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", false),
            ("8286 84be 5808 6e6f 2d63 6163 6865", true),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                true,
            ),
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", false),
            ("8286 84be 5886 a8eb 1064 9cbf", true),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                true,
            ),
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 \
                 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                false,
            ),
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d \
                 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                false,
            ),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d \
                 d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 \
                 3d50 07",
                true,
            ),
        ] {
            let block = bytes_of(block);
            let scan = Scan::of(&block);
            assert_eq!(
                (scan.form, scan.is_malformed, scan.is_dynamic),
                (Form::Whole, false, is_dynamic),
                "{block:x?}"
            );
            assert_eq!(Scan::shallow(&block), scan);
            // Every beginning of it is the beginning of a block.
            for end in 0..block.len() {
                assert_ne!(form(&block[..end]), Form::Broken, "{end} of {block:x?}");
            }
        }
        // C.1.2: 1337 behind five bits.
        assert_eq!(form(&bytes_of("3f9a0a")), Form::Whole);
    }

    #[test]
    fn huffman_codes_say_what_the_rfc_says() {
        for (octets, text) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            (
                "d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                "9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3",
                "https://www.example.com",
            ),
        ] {
            assert_eq!(said(&bytes_of(octets)), Ok(text.as_bytes().to_vec()));
        }
        let all: Vec<usize> = (0..256).collect();
        assert_eq!(said(&huffman(&all, true, 0)), Ok((0..=255).collect()));
        // RFC 7541, appendix B.
        assert_eq!(code(256), (0x3fff_ffff, 30));
        assert_eq!(code(usize::from(b'~')), (0x1ffd, 13));
        assert_eq!(code(22), (0x3fff_fffe, 30));
    }

    #[test]
    fn padding_is_less_than_an_octet_of_ones() {
        let (a, b) = (usize::from(b'a'), usize::from(b'b'));
        assert_eq!(said(&[]), Ok(Vec::new()));
        for broken in [
            huffman(&[a, b], true, 1),
            huffman(&[a], false, 0),
            vec![0xff],
            vec![0xff; 3],
            huffman(&[256], true, 0),
            huffman(&[a, b, 256, a], true, 0),
        ] {
            assert_eq!(said(&broken), Err(Form::Broken), "{broken:x?}");
        }
    }

    #[test]
    fn what_does_not_decompress_is_broken() {
        let field = literal(b"a", b"1");
        let behind = |start: &[u8], end: &[u8]| [start, end].concat();
        for block in [
            vec![0x80],
            // Indexes that no table has.
            bytes_of("ff3f"),
            bytes_of("ffffff03"),
            bytes_of("7f80 8001 0161"),
            // More octets than an integer may have, and more bits.
            bytes_of("ff80 8080 8000"),
            bytes_of("ffff ffff ffff ffff ffff ff7f"),
            bytes_of("007f ffff ffff ffff ffff ff01"),
            // Tables that are too large, or come too late.
            bytes_of("3fe2 1f"),
            behind(&field, &[0x20]),
            behind(&[0x82], &[0x20]),
            // A string that is.
            bytes_of("0001 6181 00"),
        ] {
            assert_eq!(form(&block), Form::Broken, "{block:x?}");
        }
        for block in ["3fe1 1f", "20", "20 3fe1 1f 82", "bf", "ff3e"] {
            assert_eq!(form(&bytes_of(block)), Form::Whole, "{block}");
        }
        for cut in [
            "40",
            "00 0a 6162",
            "0001 61",
            "0001 610a 62",
            "ff",
            "ff80 80",
            "0001 618a ff",
        ] {
            assert_eq!(form(&bytes_of(cut)), Form::Cut, "{cut}");
        }
    }

    #[test]
    fn malformed_fields_are_no_broken_blocks() {
        for (name, value) in [
            (&b"A"[..], &b"1"[..]),
            (b"", b"1"),
            (b"a b", b"1"),
            (b"a:", b"1"),
            (b"\xe4", b"1"),
            (b"a", b"\0"),
            (b"a", b"1\r\n"),
            (b"a", b"\x7f"),
            (b":unknown", b"1"),
            (b":method", b"G T"),
            (b":method", b""),
            (b":status", b"20"),
            (b":status", b"099"),
            (b":path", b"\xff"),
        ] {
            for is_huffman in [false, true] {
                let mut block = vec![0];
                text(&mut block, name, is_huffman);
                text(&mut block, value, is_huffman);
                let scan = Scan::of(&block);
                assert_eq!((scan.form, scan.is_malformed), (Form::Whole, true), "{block:?}");
                assert_eq!(scan.has_pseudo, name.first() == Some(&b':'));
            }
        }
        for (name, value) in [
            (&b"a"[..], &b""[..]),
            (b"a_b-c.9", b"\xe4 \t~"),
            (b":method", b"PURGE"),
            (b":status", b"200"),
            (b":protocol", b"websocket"),
        ] {
            assert!(!Scan::of(&literal(name, value)).is_malformed, "{name:?}");
        }
        // By their names' indexes.
        assert!(Scan::of(&[0x02, 1, b' ']).is_malformed);
        assert!(Scan::of(&[0x08, 1, b'2']).is_malformed);
        assert!(Scan::of(&[0x04, 1, 0xff]).is_malformed);
        assert!(Scan::of(&[0x0f, 1, 1, 0]).is_malformed);
        assert!(!Scan::of(&[0x0f, 1, 1, b'1']).is_malformed);
        // What comes behind a break counts no more.
        let behind = [&[0x80][..], &literal(b"A", b"")].concat();
        assert!(!Scan::of(&behind).is_malformed);
    }

    #[test]
    fn what_an_encoder_writes_is_whole() {
        for seed in 0..2000 {
            let mut random = Random::from_seed(seed);
            let mut block = Vec::new();
            if random.below(4) == 0 {
                integer(&mut block, 0x20, 5, random.below(4097) as u32);
            }
            let mut has_pseudo = false;
            for _ in 0..random.below(12) {
                let index = 1 + random.below(u64::from(INDEX_MAX)) as u32;
                let (first, bits) = [(0x40, 6), (0, 4), (0x10, 4)][random.below(3) as usize];
                let mut octets = |from: &[u8], most: u64| -> Vec<u8> {
                    let mut one = || from[random.below(from.len() as u64) as usize];
                    (0..most).map(|_| one()).collect()
                };
                let name = octets(b"abc-xyz0189_.", u64::from(index % 9) + 1);
                let value: Vec<u8> = octets(b" !azAZ09~/\t\x80\xff", u64::from(index));
                let is_huffman = random.below(2) == 0;
                match random.below(3) {
                    0 => {
                        integer(&mut block, 0x80, 7, index);
                        has_pseudo |= index <= STATIC_PSEUDO;
                    }
                    1 => {
                        // Values of any kind are right for the names of fields only.
                        let index = index.max(STATIC_PSEUDO + 1);
                        integer(&mut block, first, bits, index);
                        text(&mut block, &value, is_huffman);
                    }
                    _ => {
                        block.push(first);
                        text(&mut block, &name, is_huffman);
                        text(&mut block, &value, is_huffman);
                    }
                }
            }
            let scan = Scan::of(&block);
            assert_eq!(
                (scan.form, scan.is_malformed, scan.has_pseudo),
                (Form::Whole, false, has_pseudo),
                "seed {seed}: {block:x?}"
            );
            let end = random.below(block.len() as u64 + 1) as usize;
            assert_ne!(form(&block[..end]), Form::Broken, "seed {seed}");
        }
    }

    #[test]
    fn any_bytes_are_scanned_and_what_is_broken_stays_so() {
        for seed in 0..20_000 {
            let mut random = Random::from_seed(seed);
            let block: Vec<u8> = (0..random.below(60)).map(|_| random.next_u64() as u8).collect();
            let whole = Scan::of(&block);
            let mut was_broken = false;
            for end in 0..=block.len() {
                let scan = Scan::of(&block[..end]);
                assert!(!was_broken || scan.form == Form::Broken, "seed {seed}");
                was_broken = scan.form == Form::Broken;
                assert!(!was_broken || scan == whole, "seed {seed}");
                let shallow = Scan::shallow(&block[..end]);
                assert!(shallow.form != Form::Broken || was_broken);
            }
        }
    }
}
