//! The header of a load balancer, ahead of a connection's bytes: as it comes, and made of choices so that lengths and
//! checksums are right.

use crate::input::Input;
use isthmus_core::proxy_protocol::{
    Addresses, Parsed, ProxyError, V1_BYTES_MAX, V2_BYTES_MAX, encode_v1, encode_v2, parse,
};
use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads a header.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(5) {
        0 => split(input.rest()),
        1 => split(&[b"PROXY ", input.rest()].concat()),
        2 => split(&[SIGNATURE, input.rest()].concat()),
        3 => binary(&mut input),
        _ => round_trip(&Addresses {
            source: address(&mut input),
            destination: address(&mut input),
        }),
    }
}

/// However these bytes are split, the answer is the same.
fn split(bytes: &[u8]) {
    let whole = parse(bytes);
    // An answer is known within the longest header.
    let known = (0..=bytes.len().min(V2_BYTES_MAX))
        .find(|end| parse(&bytes[..*end]) != Ok(Parsed::Incomplete))
        .unwrap_or(bytes.len());
    for end in known..=bytes.len().min(known + 300) {
        assert_eq!(parse(&bytes[..end]), whole, "{end} of {}", bytes.len());
    }
    assert!(whole != Ok(Parsed::Incomplete) || bytes.len() < V2_BYTES_MAX);
    if whole != Ok(Parsed::Incomplete) {
        assert_eq!(parse(&[bytes, b"\r\n"].concat()), whole);
    }
    let Ok(Parsed::Header { used, addresses }) = whole else {
        return;
    };
    assert_eq!(used, known, "a header is known with its last byte");
    assert!(bytes.starts_with(b"PROXY ") && used <= V1_BYTES_MAX || bytes.starts_with(SIGNATURE));
    if let Some(addresses) = addresses {
        round_trip(&addresses);
    }
}

/// A header of version 2 whose lengths add up.
fn binary(input: &mut Input<'_>) {
    let command = input.pick(&[0x21, 0x20]);
    let (family, least) = input.pick(&[
        (0x11, 12),
        (0x21, 36),
        (0x12, 12),
        (0x22, 36),
        (0x31, 216),
        (0x00, 0),
    ]);
    let has_sum = input.once_in(2);
    let mut block = input.take(least).to_vec();
    block.resize(least, 0);
    let mut sum_at = None;
    while !input.is_spent() {
        if has_sum && sum_at.is_none() && input.once_in(4) {
            block.extend_from_slice(&[3, 0, 4]);
            sum_at = Some(SIGNATURE.len() + 4 + block.len());
            block.extend_from_slice(&[0; 4]);
        }
        // Every other type than that of the checksum.
        let kind = input.byte();
        let length = input.below(40);
        let value = input.take(length);
        block.extend_from_slice(&[if kind == 3 { 4 } else { kind }, 0, value.len() as u8]);
        block.extend_from_slice(value);
    }
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[command, family]);
    header.extend_from_slice(&u16::try_from(block.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend_from_slice(&block);
    if let Some(at) = sum_at {
        let sum = checksum(&header).to_be_bytes();
        header[at..at + 4].copy_from_slice(&sum);
    }
    split(&header);
    if header.len() > V2_BYTES_MAX {
        assert_eq!(parse(&header), Err(ProxyError::TooLong));
        return;
    }
    let Ok(Parsed::Header { used, addresses }) = parse(&header) else {
        panic!("a header that is right is read");
    };
    assert_eq!(used, header.len());
    let is_internet = matches!(family, 0x11 | 0x12 | 0x21 | 0x22);
    assert_eq!(addresses.is_some(), command == 0x21 && is_internet);
    if let (Some(at), true) = (sum_at, command == 0x21 && family != 0) {
        header[at] ^= 1;
        assert_eq!(parse(&header), Err(ProxyError::Checksum));
    }
}

/// CRC32c by division of polynomials, the highest power first.
fn checksum(bytes: &[u8]) -> u32 {
    let mut rest = u32::MAX;
    for bit in bytes
        .iter()
        .flat_map(|byte| (0..8).map(move |shift| u32::from((byte >> shift) & 1)))
    {
        let top = (rest >> 31) ^ bit;
        rest = (rest << 1) ^ (top * 0x1edc_6f41);
    }
    !rest.reverse_bits()
}

/// What is written is what is read.
fn round_trip(addresses: &Addresses) {
    let mut binary = Vec::new();
    encode_v2(addresses, &mut binary);
    let mut text = Vec::new();
    encode_v1(addresses, &mut text);
    let Addresses { source, destination } = *addresses;
    let is_mixed = source.is_ipv4() != destination.is_ipv4();
    let in_binary = if is_mixed {
        Addresses {
            source: mapped(source),
            destination: mapped(destination),
        }
    } else {
        *addresses
    };
    for (bytes, expected) in [
        (binary, Some(in_binary)),
        (text, (!is_mixed).then_some(*addresses)),
    ] {
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(Parsed::Incomplete));
        }
        let whole = Ok(Parsed::Header {
            used: bytes.len(),
            addresses: expected,
        });
        assert_eq!(parse(&bytes), whole);
        assert_eq!(parse(&[&bytes[..], &bytes].concat()), whole);
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn address(input: &mut Input<'_>) -> SocketAddr {
    let is_old = input.once_in(2);
    let mut octets = [0; 16];
    octets.fill_with(|| input.byte());
    let port = u16::from_be_bytes([input.byte(), input.byte()]);
    let ip = match octets {
        [a, b, c, d, ..] if is_old => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(octets),
    };
    SocketAddr::new(ip, port)
}
