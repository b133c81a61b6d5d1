//! Header compression (RFC 7541) as a peer that may be wrong on purpose. [`Block`] writes a header block item by item,
//! each as it is told; [`Decoder`] reads the blocks of answers strictly, with a dynamic table, and says what is wrong
//! with one.

use std::collections::VecDeque;

/// A field as it stands in a header block.
pub type Field = (Vec<u8>, Vec<u8>);

/// What an entry counts beside its octets (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The table that both sides begin with (RFC 9113, 6.5.2).
pub const TABLE_BYTES: usize = 4096;

/// The symbol that may not appear in a string (RFC 7541, 5.2).
const EOS: usize = 256;

/// The lengths of the codes of all symbols (RFC 7541, appendix B). The code is canonical: codes of one length are in
/// the order of their symbols, so that the lengths say all.
#[rustfmt::skip]
const CODE_BITS: [u8; 257] = [
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

/// The static table (RFC 7541, appendix A); its first entry has index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// How a literal treats the table (RFC 7541, 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indexing {
    /// With incremental indexing.
    Incremental,
    /// Without indexing.
    Without,
    /// Never indexed, here and further on.
    Never,
}

impl Indexing {
    /// The first bits, and how many bits are left for an index.
    fn prefix(self) -> (u8, u8) {
        match self {
            Self::Incremental => (0x40, 6),
            Self::Without => (0, 4),
            Self::Never => (0x10, 4),
        }
    }
}

/// A header block that is being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block(Vec<u8>);

impl Block {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Literals of these fields, without indexing and without Huffman codes.
    pub fn of(fields: &[(&str, &str)]) -> Self {
        let literal = |block: Self, (name, value): &(&str, &str)| block.field(name, value);
        fields.iter().fold(Self::new(), literal)
    }

    /// Another literal like those of [`Self::of`].
    #[must_use]
    pub fn field(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.literal(Indexing::Without, name, value)
    }

    /// A field by its index.
    #[must_use]
    pub fn indexed(mut self, index: u64) -> Self {
        integer(&mut self.0, 0x80, 7, index);
        self
    }

    /// A literal with a name and a value as they are.
    #[must_use]
    pub fn literal(self, indexing: Indexing, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let (name, value) = (plain(name.as_ref()), plain(value.as_ref()));
        self.literal_of(indexing, &name, &value)
    }

    /// A literal of two strings that were written already, such as by [`huffman`].
    #[must_use]
    pub fn literal_of(mut self, indexing: Indexing, name: &[u8], value: &[u8]) -> Self {
        self.0.push(indexing.prefix().0);
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(value);
        self
    }

    /// A literal whose name is that of an entry.
    #[must_use]
    pub fn literal_named_by(mut self, indexing: Indexing, index: u64, value: impl AsRef<[u8]>) -> Self {
        let (first, bits) = indexing.prefix();
        integer(&mut self.0, first, bits, index);
        self.0.extend_from_slice(&plain(value.as_ref()));
        self
    }

    /// A change of the table's size.
    #[must_use]
    pub fn resize(mut self, size: u64) -> Self {
        integer(&mut self.0, 0x20, 5, size);
        self
    }

    /// Bytes that need not be anything.
    #[must_use]
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Block> for Vec<u8> {
    fn from(block: Block) -> Self {
        block.0
    }
}

/// Writes an integer behind the bits that stand before it (RFC 7541, 5.1).
fn integer(out: &mut Vec<u8>, first: u8, bits: u8, value: u64) {
    let most = (1_u64 << bits) - 1;
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

/// A string as it is (RFC 7541, 5.2).
pub fn plain(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    integer(&mut out, 0, 7, text.len() as u64);
    out.extend_from_slice(text);
    out
}

/// A string in Huffman codes (RFC 7541, 5.2).
pub fn huffman(text: &[u8]) -> Vec<u8> {
    let symbols: Vec<_> = text.iter().map(|byte| usize::from(*byte)).collect();
    huffman_padded(&symbols, true, 0)
}

/// A string of these symbols (256 is EOS), filled up with bits of one kind to a whole octet, and then with more octets
/// of them.
pub fn huffman_padded(symbols: &[usize], pad: bool, more_octets: usize) -> Vec<u8> {
    let codes = codes();
    let mut bits: Vec<bool> = Vec::new();
    for symbol in symbols {
        let (code, length) = codes[*symbol];
        bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    }
    bits.resize(bits.len().next_multiple_of(8) + 8 * more_octets, pad);
    let octets: Vec<u8> = bits
        .chunks(8)
        .map(|octet| octet.iter().fold(0, |octet, bit| octet << 1 | u8::from(*bit)))
        .collect();
    let mut out = Vec::new();
    integer(&mut out, 0x80, 7, octets.len() as u64);
    out.extend_from_slice(&octets);
    out
}

/// Code and length of each symbol.
fn codes() -> Vec<(u32, u8)> {
    let mut order: Vec<usize> = (0..CODE_BITS.len()).collect();
    order.sort_by_key(|symbol| (CODE_BITS[*symbol], *symbol));
    let mut codes = vec![(0, 0); CODE_BITS.len()];
    let (mut code, mut length) = (0_u32, CODE_BITS[order[0]]);
    for symbol in order {
        code <<= CODE_BITS[symbol] - length;
        length = CODE_BITS[symbol];
        codes[symbol] = (code, length);
        code += 1;
    }
    codes
}

/// What a Huffman string says.
fn huffman_decode(octets: &[u8]) -> Result<Vec<u8>, String> {
    let codes = codes();
    let mut text = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u8);
    for bit in octets
        .iter()
        .flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1))
    {
        code = code << 1 | u32::from(bit);
        length += 1;
        if length < 5 {
            continue;
        }
        match codes.iter().position(|known| *known == (code, length)) {
            Some(EOS) => return Err("EOS in a string".to_owned()),
            Some(symbol) => {
                text.push(u8::try_from(symbol).map_err(|_| "a symbol above 255")?);
                (code, length) = (0, 0);
            }
            None => {}
        }
    }
    // RFC 7541, 5.2: the padding is the beginning of EOS, and shorter than an octet.
    if length > 7 || code != (1 << length) - 1 {
        return Err("a string that ends in a wrong padding".to_owned());
    }
    Ok(text)
}

/// Reads the header blocks of one direction of one connection.
#[derive(Debug)]
pub struct Decoder {
    table: VecDeque<Field>,
    size: usize,
    size_max: usize,
    /// What this side allows.
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            size_max: TABLE_BYTES,
            limit: TABLE_BYTES,
        }
    }
}

impl Decoder {
    /// What this side's SETTINGS_HEADER_TABLE_SIZE allows, once it is acknowledged.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The fields of a whole block, or what is wrong with it.
    pub fn decode(&mut self, block: &[u8]) -> Result<Vec<Field>, String> {
        let mut input = block;
        let mut fields = Vec::new();
        while let Some(first) = input.first().copied() {
            let input = &mut input;
            match first {
                0x80.. => fields.push(self.entry(read_integer(input, 7)?)?),
                0x40..0x80 => {
                    let field = self.read_literal(input, 6)?;
                    self.insert(field.clone());
                    fields.push(field);
                }
                0x20..0x40 => {
                    let size = read_integer(input, 5)?;
                    // RFC 7541, 4.2: at the beginning of a block, and not above what was allowed.
                    if !fields.is_empty() {
                        return Err("a change of the table's size behind a field".to_owned());
                    }
                    if size > self.limit {
                        return Err(format!("a table of {size}, above {}", self.limit));
                    }
                    self.size_max = size;
                    self.evict();
                }
                _ => fields.push(self.read_literal(input, 4)?),
            }
        }
        // RFC 9113, 4.3.1: a reduction below what the table holds is said at the beginning of the next block.
        if self.size > self.limit {
            return Err(format!("a table that stays above {}", self.limit));
        }
        Ok(fields)
    }

    fn read_literal(&self, input: &mut &[u8], bits: u8) -> Result<Field, String> {
        let name = match read_integer(input, bits)? {
            0 => read_string(input)?,
            index => self.entry(index)?.0,
        };
        Ok((name, read_string(input)?))
    }

    fn entry(&self, index: usize) -> Result<Field, String> {
        let known = index.checked_sub(1).ok_or("the index 0")?;
        if let Some((name, value)) = STATIC.get(known) {
            return Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
        let entry = self.table.get(known - STATIC.len());
        entry
            .cloned()
            .ok_or_else(|| format!("the index {index}, beyond the tables"))
    }

    fn insert(&mut self, field: Field) {
        self.size += size_of(&field);
        self.table.push_front(field);
        self.evict();
    }

    fn evict(&mut self) {
        while self.size > self.size_max {
            let Some(oldest) = self.table.pop_back() else {
                break;
            };
            self.size -= size_of(&oldest);
        }
    }
}

fn size_of((name, value): &Field) -> usize {
    name.len() + value.len() + ENTRY_OVERHEAD
}

fn read_integer(input: &mut &[u8], bits: u8) -> Result<usize, String> {
    let mut next = || -> Result<usize, String> {
        let (first, rest) = input.split_first().ok_or("a block that ends too early")?;
        *input = rest;
        Ok(usize::from(*first))
    };
    let most = (1_usize << bits) - 1;
    let mut value = next()? & most;
    if value < most {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let octet = next()?;
        value += (octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("an integer of more than 28 bits".to_owned())
}

fn read_string(input: &mut &[u8]) -> Result<Vec<u8>, String> {
    let coded = input.first().is_some_and(|first| first & 0x80 != 0);
    let length = read_integer(input, 7)?;
    let (text, rest) = input.split_at_checked(length).ok_or("a string that is cut off")?;
    *input = rest;
    if coded {
        huffman_decode(text)
    } else {
        Ok(text.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    }

    fn fields(list: &[(&str, &str)]) -> Vec<Field> {
        let owned = |text: &str| text.as_bytes().to_vec();
        list.iter()
            .map(|(name, value)| (owned(name), owned(value)))
            .collect()
    }

    #[test]
    fn integers_are_those_of_the_rfc() {
        // RFC 7541, C.1.
        for (bits, value, wanted) in [
            (5, 10, &[0x0a][..]),
            (5, 1337, &[0x1f, 0x9a, 0x0a]),
            (8, 42, &[0x2a]),
        ] {
            let mut out = Vec::new();
            integer(&mut out, 0, bits, value);
            assert_eq!(out, wanted);
            assert_eq!(read_integer(&mut &*out, bits), Ok(value as usize));
        }
    }

    #[test]
    fn requests_with_huffman_codes_are_those_of_the_rfc() {
        // RFC 7541, C.4.
        let mut decoder = Decoder::default();
        let first = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
        ];
        let block = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        assert_eq!(decoder.decode(&block), Ok(fields(&first)));
        let written = Block::new().indexed(2).indexed(6).indexed(4).raw([0x41]);
        assert_eq!(written.raw(huffman(b"www.example.com")).bytes(), block);
        let mut second = first.to_vec();
        second.push(("cache-control", "no-cache"));
        let block = hex("8286 84be 5886 a8eb 1064 9cbf");
        assert_eq!(decoder.decode(&block), Ok(fields(&second)));
        let third = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        let block = hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf");
        assert_eq!(decoder.decode(&block), Ok(fields(&third)));
        assert_eq!(decoder.size, 164);
    }

    #[test]
    fn answers_evict_as_in_the_rfc() {
        // RFC 7541, C.6, with a table of 256 octets.
        let mut decoder = Decoder {
            size_max: 256,
            limit: 256,
            ..Decoder::default()
        };
        let first = hex(
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
            2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        );
        assert_eq!(decoder.decode(&first).unwrap()[3].1, b"https://www.example.com");
        assert_eq!(decoder.decode(&hex("4883 640e ffc1 c0bf")).unwrap()[0].1, b"307");
        let third = hex(
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
            77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0
            03ed 4ee5 b106 3d50 07",
        );
        assert_eq!(decoder.decode(&third).unwrap()[4].1, b"gzip");
        assert_eq!(decoder.size, 215);
    }

    #[test]
    fn every_octet_survives_huffman() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(read_string(&mut &*huffman(&all)), Ok(all));
    }

    #[test]
    fn broken_blocks_are_told() {
        let decode = |block: &[u8]| Decoder::default().decode(block).unwrap_err();
        assert_eq!(decode(&[0x80]), "the index 0");
        assert_eq!(
            decode(Block::new().indexed(62).bytes()),
            "the index 62, beyond the tables"
        );
        assert!(decode(Block::new().resize(4097).bytes()).contains("above 4096"));
        assert!(decode(Block::new().indexed(2).resize(0).bytes()).contains("behind a field"));
        assert!(decode(&[0, 5, b'a']).contains("cut off"));
        assert!(decode(&[0xff; 9]).contains("28 bits"));
        let string = |value: &[u8]| decode(Block::new().raw([0, 1, b'a']).raw(value).bytes());
        let a = [usize::from(b'a')];
        assert!(string(&huffman_padded(&a, false, 0)).contains("padding"));
        assert!(string(&huffman_padded(&a, true, 1)).contains("padding"));
        assert!(string(&huffman_padded(&[EOS], true, 0)).contains("EOS"));
        let mut decoder = Decoder::default();
        let block = Block::new().literal(Indexing::Incremental, "a", "b");
        decoder.decode(block.bytes()).unwrap();
        decoder.set_limit(10);
        assert!(decoder.decode(&[0x82]).unwrap_err().contains("stays above"));
        assert!(decoder.decode(Block::new().resize(10).bytes()).is_ok());
    }
}
