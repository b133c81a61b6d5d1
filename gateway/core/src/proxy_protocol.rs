//! The header that a load balancer sends ahead of a connection's own bytes, to say between whom it was before: version
//! 1, a line of text, and version 2, which is binary (HAProxy's `doc/proxy-protocol.txt`).
//!
//! Bytes come in as the socket gives them, from the first one on; [`parse`] keeps nothing between two looks. Whoever
//! reads a header must know that its sender may write one: nothing in it is proven.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest line of version 1, with the CRLF at its end (section 2.1).
pub const V1_BYTES_MAX: usize = 107;
/// Longest header of version 2 that is read, from its signature to its last TLV. The format has room for 64 KiB, its
/// senders need a few hundred bytes: the largest is what a TLS client's certificate says.
pub const V2_BYTES_MAX: usize = 4096;

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, command, family and length of version 2.
const V2_FIXED_BYTES: usize = 16;
const UNIX_ADDRESSES_BYTES: usize = 216;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP_OVER_V4: u8 = 0x11;
const TCP_OVER_V6: u8 = 0x21;
const CRC32C: u8 = 3;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header: more bytes are needed.
    Incomplete,
    /// They begin no header.
    Absent,
    /// A whole header.
    Header {
        /// How many bytes it has; the connection's own ones follow.
        used: usize,
        /// Between whom the connection was. None when the sender speaks for itself (LOCAL), does not know, or had a
        /// connection without addresses of the internet: those of the connection count.
        addresses: Option<Addresses>,
    },
}

/// Both ends of a connection, in the families that the header has: an address of version 4 that is mapped into version
/// 6 stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// Who opened the connection.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// Why bytes that begin as a header are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ProxyError {
    /// Longer than [`V1_BYTES_MAX`] or [`V2_BYTES_MAX`].
    #[error("the PROXY header is too long")]
    TooLong,
    /// Its fields or lengths are not those of the format.
    #[error("the PROXY header is malformed")]
    Malformed,
    /// Its CRC32c is that of other bytes.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

/// Looks at the first bytes of a connection.
///
/// Once the answer is another than [`Parsed::Incomplete`], more bytes do not change it. An error comes with the first
/// byte that shows it, except where only the whole header does.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    if let Some(after) = bytes.strip_prefix(V1_SIGNATURE) {
        parse_v1(after)
    } else if bytes.starts_with(V2_SIGNATURE) {
        parse_v2(bytes)
    } else if V1_SIGNATURE.starts_with(bytes) || V2_SIGNATURE.starts_with(bytes) {
        Ok(Parsed::Incomplete)
    } else {
        Ok(Parsed::Absent)
    }
}

/// Appends a header of version 1; it cannot name addresses of two families, and says UNKNOWN then.
pub fn encode_v1(addresses: &Addresses, out: &mut Vec<u8>) {
    let (source, destination) = (addresses.source, addresses.destination);
    let family = match (source, destination) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => "TCP4",
        (SocketAddr::V6(_), SocketAddr::V6(_)) => "TCP6",
        _ => {
            out.extend_from_slice(b"PROXY UNKNOWN\r\n");
            return;
        }
    };
    let _infallible = write!(
        out,
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    );
}

/// Appends a header of version 2 without TLVs; of two families, the address of the older one is written as mapped into
/// the newer one (RFC 4291, 2.5.5.2).
pub fn encode_v2(addresses: &Addresses, out: &mut Vec<u8>) {
    let (source, destination) = (addresses.source, addresses.destination);
    out.extend_from_slice(V2_SIGNATURE);
    out.push(PROXY);
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) {
        out.push(TCP_OVER_V4);
        out.extend_from_slice(&12_u16.to_be_bytes());
        out.extend_from_slice(&from.octets());
        out.extend_from_slice(&to.octets());
    } else {
        out.push(TCP_OVER_V6);
        out.extend_from_slice(&36_u16.to_be_bytes());
        out.extend_from_slice(&mapped(source.ip()).octets());
        out.extend_from_slice(&mapped(destination.ip()).octets());
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Looks at what follows the signature of version 1.
fn parse_v1(after: &[u8]) -> Result<Parsed, ProxyError> {
    // What is before the CRLF must leave room for it.
    let room = V1_BYTES_MAX - V1_SIGNATURE.len() - 1;
    let window = after.get(..room).unwrap_or(after);
    let end = memchr::memchr(b'\r', window);
    let line = end.and_then(|end| window.get(..end)).unwrap_or(window);
    check_v1(line, end.is_some())?;
    let Some(end) = end else {
        return if window.len() == room {
            Err(ProxyError::TooLong)
        } else {
            Ok(Parsed::Incomplete)
        };
    };
    let addresses = parse_line(line).ok_or(ProxyError::Malformed)?;
    match after.get(end + 1) {
        None => Ok(Parsed::Incomplete),
        Some(b'\n') => Ok(Parsed::Header {
            used: V1_SIGNATURE.len() + end + 2,
            addresses,
        }),
        Some(_) => Err(ProxyError::Malformed),
    }
}

/// Refuses what no line begins with, so that nobody waits for the end of something that is none.
fn check_v1(line: &[u8], is_whole: bool) -> Result<(), ProxyError> {
    let begins = |word: &[u8]| line.starts_with(word) || (!is_whole && word.starts_with(line));
    let fits = if begins(b"TCP4 ") || begins(b"TCP6 ") {
        let addresses = line.get(5..).unwrap_or_default();
        addresses
            .iter()
            .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b' '))
    } else {
        begins(b"UNKNOWN ") || line == b"UNKNOWN"
    };
    if fits { Ok(()) } else { Err(ProxyError::Malformed) }
}

/// What a line says between signature and CRLF; None when that is malformed.
fn parse_line(line: &[u8]) -> Option<Option<Addresses>> {
    // Whatever follows UNKNOWN is to be ignored (section 2.1), text or not.
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Some(None);
    }
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let family = words.next()?;
    let (source, destination) = (words.next()?, words.next()?);
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    // The standard library reads addresses of version 4 strictly: four numbers, none with a zero ahead.
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    Some(Some(Addresses {
        source: SocketAddr::new(address(source)?, source_port),
        destination: SocketAddr::new(address(destination)?, destination_port),
    }))
}

/// A port in its only form: digits, without a sign or a zero ahead.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

/// How the addresses of version 2 are written.
#[derive(Clone, Copy)]
enum Family {
    Unspecified,
    V4,
    V6,
    Unix,
}

/// Looks at a header of version 2, from its signature on.
fn parse_v2(bytes: &[u8]) -> Result<Parsed, ProxyError> {
    let command = bytes.get(12).copied();
    let is_local = match command {
        None => return Ok(Parsed::Incomplete),
        Some(LOCAL) => true,
        Some(PROXY) => false,
        Some(_) => return Err(ProxyError::Malformed),
    };
    // A LOCAL header's family is to be ignored with all that follows it. Whether the connection was of streams or of
    // datagrams does not change what its addresses are.
    let family = match bytes.get(13) {
        None => return Ok(Parsed::Incomplete),
        Some(_) if is_local => Family::Unspecified,
        Some(0x00) => Family::Unspecified,
        Some(0x11 | 0x12) => Family::V4,
        Some(0x21 | 0x22) => Family::V6,
        Some(0x31 | 0x32) => Family::Unix,
        Some(_) => return Err(ProxyError::Malformed),
    };
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_BYTES>() else {
        return Ok(Parsed::Incomplete);
    };
    let [.., high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let used = V2_FIXED_BYTES + length;
    if used > V2_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    let least = match family {
        Family::Unspecified => 0,
        Family::V4 => 12,
        Family::V6 => 36,
        Family::Unix => UNIX_ADDRESSES_BYTES,
    };
    if length < least {
        return Err(ProxyError::Malformed);
    }
    let Some(block) = rest.get(..length) else {
        return Ok(Parsed::Incomplete);
    };
    let addresses = match family {
        // How long its addresses are is not said, so that its TLVs cannot be found.
        Family::Unspecified => None,
        _ => {
            let (addresses, tlvs) = block.split_at_checked(least).ok_or(ProxyError::Malformed)?;
            check_tlvs(fixed, addresses, tlvs)?;
            read_addresses(family, addresses)
        }
    };
    Ok(Parsed::Header { used, addresses })
}

fn read_addresses(family: Family, block: &[u8]) -> Option<Addresses> {
    let (source, destination, ports): (IpAddr, IpAddr, _) = match family {
        Family::Unspecified | Family::Unix => return None,
        Family::V4 => {
            let (source, rest) = block.split_first_chunk::<4>()?;
            let (destination, ports) = rest.split_first_chunk::<4>()?;
            ((*source).into(), (*destination).into(), ports)
        }
        Family::V6 => {
            let (source, rest) = block.split_first_chunk::<16>()?;
            let (destination, ports) = rest.split_first_chunk::<16>()?;
            ((*source).into(), (*destination).into(), ports)
        }
    };
    let [a, b, c, d] = *ports.first_chunk()?;
    Some(Addresses {
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    })
}

/// Checks that the TLVs fill their room, and the checksum if they have one (section 2.2.3).
fn check_tlvs(fixed: &[u8], addresses: &[u8], tlvs: &[u8]) -> Result<(), ProxyError> {
    let mut rest = tlvs;
    let mut checksum = None;
    while !rest.is_empty() {
        let ([kind, high, low], after) = rest.split_first_chunk().ok_or(ProxyError::Malformed)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, after) = after.split_at_checked(length).ok_or(ProxyError::Malformed)?;
        if *kind == CRC32C {
            let value: [u8; 4] = value.try_into().map_err(|_| ProxyError::Malformed)?;
            let before = tlvs.get(..tlvs.len() - after.len() - 4).unwrap_or_default();
            if checksum.replace((before, value, after)).is_some() {
                return Err(ProxyError::Malformed);
            }
        }
        rest = after;
    }
    let Some((before, value, after)) = checksum else {
        return Ok(());
    };
    // The sum is taken over the whole header, with zeros where it is written itself.
    if crc32c(&[fixed, addresses, before, &[0; 4], after]) == u32::from_be_bytes(value) {
        Ok(())
    } else {
        Err(ProxyError::Checksum)
    }
}

/// Castagnoli's checksum (RFC 3720, appendix B.4), bit by bit: headers are short, and few have one.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut sum = u32::MAX;
    for byte in parts.iter().copied().flatten() {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
            sum = (sum >> 1) ^ carry;
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(source: &str, destination: &str) -> Addresses {
        Addresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn v1(addresses: &Addresses) -> Vec<u8> {
        let mut out = Vec::new();
        encode_v1(addresses, &mut out);
        out
    }

    fn v2(addresses: &Addresses) -> Vec<u8> {
        let mut out = Vec::new();
        encode_v2(addresses, &mut out);
        out
    }

    /// A header of version 2 from its command on.
    fn raw(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut out = V2_SIGNATURE.to_vec();
        out.extend_from_slice(&[command, family]);
        out.extend_from_slice(&(block.len() as u16).to_be_bytes());
        out.extend_from_slice(block);
        out
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        out.extend_from_slice(value);
        out
    }

    /// A header over IPv4 with these TLVs; the checksum is set where a TLV of four zeros asks for it.
    fn with_tlvs(tlvs: &[Vec<u8>]) -> Vec<u8> {
        let mut block = vec![192, 0, 2, 1, 198, 51, 100, 2, 0x1f, 0x90, 0x01, 0xbb];
        let mut sum_at = None;
        for tlv in tlvs {
            if *tlv == [CRC32C, 0, 4, 0, 0, 0, 0] {
                sum_at = Some(V2_FIXED_BYTES + block.len() + 3);
            }
            block.extend_from_slice(tlv);
        }
        let mut out = raw(PROXY, 0x11, &block);
        if let Some(at) = sum_at {
            let sum = crc32c(&[&out]);
            out[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        }
        out
    }

    fn header(bytes: &[u8], addresses: Option<Addresses>) -> Result<Parsed, ProxyError> {
        Ok(Parsed::Header {
            used: bytes.len(),
            addresses,
        })
    }

    /// Every prefix is incomplete, the whole gives the expected answer, and what follows does not change it.
    #[track_caller]
    fn whole(bytes: &[u8], addresses: Option<Addresses>) {
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(Parsed::Incomplete), "{end}: {bytes:?}");
        }
        let expected = header(bytes, addresses);
        assert_eq!(parse(bytes), expected, "{bytes:?}");
        for more in [b"GET / HTTP/1.1\r\n".as_slice(), b"\r\n", bytes, &[0; 5000]] {
            assert_eq!(parse(&[bytes, more].concat()), expected);
        }
    }

    /// The answer comes with the byte at the end of `first`, and what follows does not change it.
    #[track_caller]
    fn first_said_by(first: &[u8], expected: Result<Parsed, ProxyError>) {
        for end in 0..first.len() {
            assert_eq!(parse(&first[..end]), Ok(Parsed::Incomplete), "{end}: {first:?}");
        }
        assert_eq!(parse(first), expected, "{first:?}");
        for more in [b" 1\r\n".as_slice(), b"\r\n", &[0; 5000], &[0xff; 200]] {
            assert_eq!(parse(&[first, more].concat()), expected, "{first:?}");
        }
    }

    #[test]
    fn addresses_of_one_family_come_back() {
        for (source, destination) in [
            ("192.0.2.1:56324", "198.51.100.2:443"),
            ("0.0.0.0:0", "255.255.255.255:65535"),
            ("[2001:db8::1]:1", "[::]:0"),
            ("[::1]:10", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            ("[::ffff:192.0.2.1]:80", "[2001:db8:0:1:2:3:4:5]:443"),
        ] {
            let addresses = between(source, destination);
            whole(&v1(&addresses), Some(addresses));
            whole(&v2(&addresses), Some(addresses));
        }
        let text = v1(&between("192.0.2.1:56324", "198.51.100.2:443"));
        assert_eq!(text, b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n");
    }

    #[test]
    fn mixed_families_are_mapped_or_unknown() {
        let mixed = between("192.0.2.1:1", "[2001:db8::1]:2");
        whole(
            &v2(&mixed),
            Some(between("[::ffff:192.0.2.1]:1", "[2001:db8::1]:2")),
        );
        assert_eq!(v1(&mixed), b"PROXY UNKNOWN\r\n");
        whole(&v1(&mixed), None);
        let mixed = between("[2001:db8::1]:2", "192.0.2.1:1");
        whole(
            &v2(&mixed),
            Some(between("[2001:db8::1]:2", "[::ffff:192.0.2.1]:1")),
        );
    }

    #[test]
    fn what_version_1_does_not_know_is_skipped() {
        whole(b"PROXY UNKNOWN\r\n", None);
        whole(b"PROXY UNKNOWN \r\n", None);
        whole(
            b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
              ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            None,
        );
        whole(b"PROXY UNKNOWN \x00\xff\n what\r\n", None);
    }

    #[test]
    fn lines_of_version_1_are_read_strictly() {
        for line in [
            "TCP4 192.0.2.01 198.51.100.2 1 2",
            "TCP4 192.0.2.1 198.51.100.2 01 2",
            "TCP4 192.0.2.1 198.51.100.2 1 00",
            "TCP4 192.0.2.1 198.51.100.2 1 65536",
            "TCP4 192.0.2.1 198.51.100.2 1 2 ",
            "TCP4 192.0.2.1 198.51.100.2 1 2 3",
            "TCP4 192.0.2.1 198.51.100.2 1",
            "TCP4 192.0.2.1 198.51.100.2  1 2",
            "TCP4  192.0.2.1 198.51.100.2 1 2",
            "TCP4 192.0.2 198.51.100.2 1 2",
            "TCP4 ::1 ::2 1 2",
            "TCP4 256.0.2.1 198.51.100.2 1 2",
            "TCP6 192.0.2.1 198.51.100.2 1 2",
            "TCP6 ::1 192.0.2.1 1 2",
            "TCP6 1::2::3 ::1 1 2",
            "TCP6 ::1 ::00002 1 2",
            "TCP4 ",
            "TCP4 192.0.2.1 198.51.100.2 1 ",
        ] {
            // A line is malformed as soon as its end is known.
            first_said_by(format!("PROXY {line}\r").as_bytes(), Err(ProxyError::Malformed));
        }
        for first in [
            "PROXY X",
            "PROXY  ",
            "PROXY \r",
            "PROXY TCP5",
            "PROXY TCP4\r",
            "PROXY TCP4\t",
            "PROXY t",
            "PROXY UNKNOWNS",
            "PROXY UNKNOWN\n",
            "PROXY UNK\r",
            "PROXY UNKNOWN x\r\r",
            "PROXY TCP4 192.0.2.1 198.51.100.2 +",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\r",
            "PROXY TCP6 fe80::1%",
            "PROXY TCP6 [",
        ] {
            first_said_by(first.as_bytes(), Err(ProxyError::Malformed));
        }
    }

    #[test]
    fn lines_of_version_1_end_in_time() {
        let longest = |extra: usize| {
            let mut line = b"PROXY UNKNOWN ".to_vec();
            line.resize(V1_BYTES_MAX - 2 + extra, b'x');
            line.extend_from_slice(b"\r\n");
            line
        };
        whole(&longest(0), None);
        let long = longest(1);
        first_said_by(&long[..V1_BYTES_MAX - 1], Err(ProxyError::TooLong));
        assert_eq!(parse(&long), Err(ProxyError::TooLong));
    }

    #[test]
    fn what_begins_otherwise_is_absent_at_its_first_other_byte() {
        for first in [
            b"G".as_slice(),
            b"\x16",
            b"\0",
            b"\n",
            b"p",
            b"PR\0",
            b"PRI",
            b"PROXI",
            b"PROXY\r",
            b"PROXY\t",
            b"\r\r",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\r\n\r\n\r",
            b"\r\nG",
        ] {
            first_said_by(first, Ok(Parsed::Absent));
        }
        assert_eq!(parse(b""), Ok(Parsed::Incomplete));
    }

    #[test]
    fn commands_and_families_decide_which_addresses_count() {
        let zeros = [0; 300];
        // Local: whatever family and block.
        for family in [0x00, 0x11, 0x21, 0x31, 0xff] {
            whole(&raw(LOCAL, family, &[]), None);
            whole(&raw(LOCAL, family, &zeros[..7]), None);
        }
        whole(&raw(PROXY, 0x00, &[]), None);
        whole(&raw(PROXY, 0x00, b"\x01\x02"), None);
        let zero_v4 = between("0.0.0.0:0", "0.0.0.0:0");
        let zero_v6 = between("[::]:0", "[::]:0");
        for (family, least, addresses) in [
            (0x11, 12, Some(zero_v4)),
            (0x12, 12, Some(zero_v4)),
            (0x21, 36, Some(zero_v6)),
            (0x22, 36, Some(zero_v6)),
            (0x31, 216, None),
            (0x32, 216, None),
        ] {
            whole(&raw(PROXY, family, &zeros[..least]), addresses);
            let short = raw(PROXY, family, &zeros[..least - 1]);
            first_said_by(&short[..V2_FIXED_BYTES], Err(ProxyError::Malformed));
        }
        for (command, family) in [
            (0x00, None),
            (0x11, None),
            (0x22, None),
            (0x2f, None),
            (0x31, None),
            (PROXY, Some(0x01)),
            (PROXY, Some(0x10)),
            (PROXY, Some(0x13)),
            (PROXY, Some(0x41)),
            (PROXY, Some(0xff)),
        ] {
            let mut first = V2_SIGNATURE.to_vec();
            first.push(command);
            first.extend(family);
            first_said_by(&first, Err(ProxyError::Malformed));
        }
    }

    #[test]
    fn tlvs_fill_their_room() {
        let addresses = Some(between("192.0.2.1:8080", "198.51.100.2:443"));
        whole(&with_tlvs(&[]), addresses);
        whole(
            &with_tlvs(&[tlv(1, b"h2"), tlv(2, b"a.example"), tlv(4, &[])]),
            addresses,
        );
        for broken in [
            b"\x01".as_slice(),
            b"\x01\x00",
            b"\x01\x00\x01",
            b"\x04\x00\x00\x01",
            b"\x01\x00\x03ab",
        ] {
            let bytes = with_tlvs(&[broken.to_vec()]);
            first_said_by(&bytes, Err(ProxyError::Malformed));
        }
    }

    #[test]
    fn checksums_are_verified() {
        assert_eq!(crc32c(&[b"12345", b"", b"6789"]), 0xe306_9283);
        assert_eq!(crc32c(&[]), 0);
        let sum = tlv(CRC32C, &[0; 4]);
        let addresses = Some(between("192.0.2.1:8080", "198.51.100.2:443"));
        for tlvs in [
            vec![sum.clone()],
            vec![sum.clone(), tlv(1, b"h2")],
            vec![tlv(1, b"h2"), sum.clone(), tlv(4, &[0; 9])],
        ] {
            let good = with_tlvs(&tlvs);
            whole(&good, addresses);
            // The addresses, and the value that is there for the sum.
            for at in (V2_FIXED_BYTES..V2_FIXED_BYTES + 12).chain([good.len() - 1]) {
                let mut bad = good.clone();
                bad[at] ^= 1;
                first_said_by(&bad, Err(ProxyError::Checksum));
            }
        }
        for tlvs in [
            vec![tlv(CRC32C, &[0; 3])],
            vec![tlv(CRC32C, &[0; 5])],
            vec![sum, tlv(CRC32C, &[0; 4])],
        ] {
            first_said_by(&with_tlvs(&tlvs), Err(ProxyError::Malformed));
        }
    }

    #[test]
    fn headers_of_version_2_are_bounded() {
        let filler = |length| tlv(4, &vec![0; length - V2_FIXED_BYTES - 12 - 3]);
        let longest = with_tlvs(&[filler(V2_BYTES_MAX)]);
        assert_eq!(longest.len(), V2_BYTES_MAX);
        whole(&longest, Some(between("192.0.2.1:8080", "198.51.100.2:443")));
        let long = with_tlvs(&[filler(V2_BYTES_MAX + 1)]);
        first_said_by(&long[..V2_FIXED_BYTES], Err(ProxyError::TooLong));
        let local = raw(LOCAL, 0, &[0; V2_BYTES_MAX]);
        first_said_by(&local[..V2_FIXED_BYTES], Err(ProxyError::TooLong));
    }
}
