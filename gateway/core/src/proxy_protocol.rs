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

/// Both ends of a connection.
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
