//! Egress: which addresses names that are resolved may lead to.
//!
//! A name belongs to whoever answers for it, and may be made to stand for an address that only this machine, or this
//! network, can reach: a port of the gateway itself, the metadata of a cloud, a database (server-side request forgery; DNS
//! rebinding). So what is looked at is every address that a connection is made to, after each look-up, and never the name.

use crate::name::HostPattern;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A cluster whose hosts are those of its requests: resolved when they come (Istio resolution DYNAMIC_DNS; NONE with a
/// wildcard).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dynamic {
    /// The hosts.
    pub covers: HostPattern,
    /// The port at their addresses.
    pub port: u16,
}

/// Where the addresses of a name may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reach {
    /// The operator has written the name, and said that it is resolved: anywhere but where only the machine's own
    /// metadata are.
    #[default]
    Written,
    /// Clients choose the name, or nobody has said that it is resolved: in public only.
    Public,
}

/// Ranges that names may lead to nonetheless (`--egress-allow-cidr`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowedRanges(pub Vec<IpNet>);

/// Addresses of the metadata of clouds that are in no other range that is refused.
const METADATA: [IpAddr; 5] = [
    // Alibaba Cloud.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Azure.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Oracle Cloud.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // Amazon Web Services.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    // Google Cloud.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)),
];

impl Reach {
    /// Whether a name may lead to an address.
    pub fn allows(self, address: IpAddr, allowed: &AllowedRanges) -> bool {
        let address = inner(address);
        if allowed.0.iter().any(|range| range.contains(&address)) {
            return true;
        }
        let is_metadata = METADATA.contains(&address) || is_link_local(address);
        match self {
            // A connection there would go to this machine, whoever wrote the name.
            Self::Written => !is_metadata && !address.is_unspecified(),
            Self::Public => !is_metadata && is_public(address),
        }
    }
}

/// The address that is meant: IPv6 has several ways of carrying one of IPv4 (RFC 4291, 2.5.5; RFC 6052; RFC 3056).
fn inner(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let segments = v6.segments();
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // Compatible addresses, which nobody uses; `::` and `::1` are what they are.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        // For translation within a network (RFC 8215), at the end as with the well-known prefix.
        [0x64, 0xff9b, 1, .., high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// Whether an address is one that anybody may have (the registries of IANA for special purposes).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let special = a == 0
                || v4.is_loopback()
                || v4.is_private()
                // Shared between a provider and its customers (RFC 6598).
                || (a == 100 && b & 0xc0 == 64)
                || (a == 192 && b == 0 && c == 0)
                // For benchmarks (RFC 2544).
                || (a == 198 && b & 0xfe == 18)
                || v4.is_documentation()
                // Multicast and what is reserved.
                || a >= 224;
            !special
        }
        // Global unicast, without what is for documentation and for tunnels (Teredo).
        IpAddr::V6(v6) => {
            let [a, b, ..] = v6.segments();
            a & 0xe000 == 0x2000 && !(a == 0x2001 && (b == 0x0db8 || b == 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(reach: Reach, address: &str, allowed: &str) -> bool {
        let ranges = allowed.split(',').filter(|range| !range.is_empty());
        let allowed = AllowedRanges(ranges.map(|range| range.parse().unwrap()).collect());
        reach.allows(address.parse().unwrap(), &allowed)
    }

    #[test]
    fn names_that_clients_choose_lead_to_public_addresses_only() {
        for address in ["93.184.216.34", "2606:2800:220:1::1", "1.1.1.1", "::ffff:1.1.1.1"] {
            assert!(allows(Reach::Public, address, ""), "{address}");
        }
        for address in [
            "0.0.0.0",
            "127.0.0.1",
            "127.8.8.8",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "100.100.100.200",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            // What carries one of them.
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(!allows(Reach::Public, address, ""), "{address}");
        }
    }

    #[test]
    fn names_that_are_written_lead_anywhere_but_to_metadata() {
        for address in ["127.0.0.1", "10.0.0.1", "::1", "fc00::1"] {
            assert!(allows(Reach::Written, address, ""), "{address}");
        }
        for address in [
            "169.254.169.254",
            "169.254.1.1",
            "fe80::1",
            "fd00:ec2::254",
            "168.63.129.16",
            "::ffff:169.254.169.254",
            "64:ff9b:1::a9fe:a9fe",
            "fd20:ce::254",
            "0.0.0.0",
            "::",
        ] {
            assert!(!allows(Reach::Written, address, ""), "{address}");
        }
    }

    #[test]
    fn ranges_that_are_allowed_are() {
        assert!(allows(Reach::Public, "127.0.0.2", "127.0.0.0/8"));
        assert!(allows(
            Reach::Public,
            "::ffff:127.0.0.2",
            "10.0.0.0/8,127.0.0.0/8"
        ));
        assert!(!allows(Reach::Public, "127.0.0.2", "10.0.0.0/8"));
        assert!(allows(Reach::Written, "169.254.169.254", "169.254.169.254/32"));
    }
}
