//! Strings in Huffman codes (RFC 7541, 5.2 and appendix B).
//!
//! The codes of usual text are short: a table of their first bits finds symbol and length at once. Longer ones are found
//! by their numbers, which are consecutive for each length.

/// Symbols: all octets, and EOS.
const SYMBOLS: usize = 257;
/// Bits of the longest code.
const CODE_BITS_MAX: usize = 30;
/// Bits that [`QUICK`] looks at: no code of a letter or a digit is longer.
const QUICK_BITS: usize = 9;

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

/// The symbols whose codes have at most [`QUICK_BITS`], by what comes first: length, then symbol; zero for the others.
static QUICK: [[u8; 2]; 1 << QUICK_BITS] = quick();

const fn quick() -> [[u8; 2]; 1 << QUICK_BITS] {
    let mut table = [[0; 2]; 1 << QUICK_BITS];
    let mut length = 1;
    while length <= QUICK_BITS {
        let codes = BOOK.lengths[length];
        let mut number = 0;
        while number < codes.codes {
            let symbol = BOOK.symbols[(codes.at + number) as usize];
            let first = ((codes.first + number) as usize) << (QUICK_BITS - length);
            let mut behind = 0;
            while behind < 1 << (QUICK_BITS - length) {
                table[first + behind] = [length as u8, symbol as u8];
                behind += 1;
            }
            number += 1;
        }
        length += 1;
    }
    table
}

/// A string that is none: it has a code of EOS in it, or does not end as it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// Appends what a string says.
pub(super) fn decode(octets: &[u8], into: &mut Vec<u8>) -> Result<(), Broken> {
    // The next bits, the first on top, and how many there are.
    let (mut ahead, mut bits) = (0_u64, 0_u32);
    let mut rest = octets.iter();
    loop {
        while bits <= 56 {
            let Some(octet) = rest.next() else { break };
            ahead |= u64::from(*octet) << (56 - bits);
            bits += 8;
        }
        let quick = QUICK.get((ahead >> (64 - QUICK_BITS)) as usize);
        let (length, symbol) = match quick {
            Some(&[length, symbol]) if length > 0 => (u32::from(length), u16::from(symbol)),
            _ => long(ahead).ok_or(Broken)?,
        };
        if length > bits {
            // RFC 7541, 5.2: up to seven bits, all of them ones, fill the last octet up.
            let is_padding = bits < 8 && (bits == 0 || ahead >> (64 - bits) == (1 << bits) - 1);
            return is_padding.then_some(()).ok_or(Broken);
        }
        into.push(u8::try_from(symbol).map_err(|_| Broken)?);
        ahead <<= length;
        bits -= length;
    }
}

/// The length and the symbol of a code with more than [`QUICK_BITS`], on top of some bits.
fn long(ahead: u64) -> Option<(u32, u16)> {
    let lengths = BOOK.lengths.iter().enumerate().skip(QUICK_BITS + 1);
    for (bits, length) in lengths {
        let code = (ahead >> (64 - bits)) as u32;
        if let Some(number) = code.checked_sub(length.first)
            && number < length.codes
        {
            let symbol = BOOK.symbols.get((length.at + number) as usize)?;
            return Some((bits as u32, *symbol));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Writes a string, bit by bit.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for octet in text {
            let at = BOOK
                .symbols
                .iter()
                .position(|symbol| *symbol == u16::from(*octet))
                .unwrap() as u32;
            let (length, codes) = BOOK
                .lengths
                .iter()
                .enumerate()
                .find(|(_, codes)| (codes.at..codes.at + codes.codes).contains(&at))
                .unwrap();
            let code = codes.first + at - codes.at;
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        }
        while bits.len() % 8 != 0 {
            bits.push(true);
        }
        let octet = |bits: &[bool]| bits.iter().fold(0, |octet, bit| octet << 1 | u8::from(*bit));
        bits.chunks(8).map(octet).collect()
    }

    fn decoded(octets: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut text = Vec::new();
        decode(octets, &mut text).map(|()| text)
    }

    #[test]
    fn the_examples_of_the_rfc_say_what_they_say() {
        // RFC 7541, C.4.1 and C.6.1.
        let name = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert_eq!(decoded(&name).unwrap(), b"www.example.com");
        assert_eq!(encode(b"www.example.com"), name);
        assert_eq!(decoded(&[0x64, 0x02]).unwrap(), b"302");
    }

    #[test]
    fn every_string_is_read_as_it_was_written() {
        for seed in 0..2000 {
            let mut random = Random::from_seed(seed);
            let length = random.below(40);
            let text: Vec<u8> = (0..length)
                .map(|_| match random.below(4) {
                    0 => random.next_u64() as u8,
                    _ => b' ' + random.below(95) as u8,
                })
                .collect();
            assert_eq!(decoded(&encode(&text)).as_deref(), Ok(&text[..]), "seed {seed}");
        }
        for octet in 0..=255 {
            assert_eq!(decoded(&encode(&[octet])).unwrap(), [octet]);
        }
    }

    #[test]
    fn what_does_not_end_as_it_must_is_broken() {
        for octets in [
            // EOS, padding of eight ones, of zeros, and an octet of padding behind a whole one.
            &[0xff, 0xff, 0xff, 0xff][..],
            &[0xff],
            &[0b0001_1000],
            &[0b0001_1111, 0xff],
            &[0b0011_1111, 0xff],
            &[0xff, 0xff, 0xff, 0xfc, 0xff],
        ] {
            assert_eq!(decoded(octets), Err(Broken), "{octets:x?}");
        }
        assert_eq!(decoded(&[]).unwrap(), b"");
        assert_eq!(decoded(&[0b0001_1111]).unwrap(), b"a");
    }
}
