//! What a certificate says about who holds it: for conditions on names, and for `x-forwarded-client-cert`.

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use std::net::IpAddr;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::extensions::GeneralName;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// What `x-forwarded-client-cert` says about a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// SHA-256 of the certificate, in lower-case hexadecimal digits.
    pub hash_hex: String,
    /// The subject as RFC 2253 writes it and Envoy prints it: `CN=client,O=example`, most specific first.
    pub subject: String,
    /// Who signed it, likewise.
    pub issuer: String,
    /// Its number, in lower-case hexadecimal digits.
    pub serial_hex: String,
    /// From when until when it is valid, in seconds since 1970.
    pub valid: (i64, i64),
    /// URIs among its names.
    pub uris: Vec<String>,
    /// DNS names among its names.
    pub dns_names: Vec<String>,
    /// The certificate in PEM, not escaped.
    pub pem: String,
}

/// Describes the first certificate of a chain; None for an empty one.
///
/// What cannot be parsed is empty: the certificate was accepted without it.
pub fn describe_peer(chain: &[CertificateDer<'_>]) -> Option<PeerCertificate> {
    let leaf = chain.first()?;
    let mut peer = PeerCertificate {
        hash_hex: sha256(leaf).iter().map(|byte| format!("{byte:02x}")).collect(),
        subject: String::new(),
        issuer: String::new(),
        serial_hex: String::new(),
        valid: (0, 0),
        uris: Vec::new(),
        dns_names: Vec::new(),
        pem: pem_text(leaf),
    };
    if let Ok((_, certificate)) = x509_parser::parse_x509_certificate(leaf) {
        let names = SubjectNames::of(&certificate);
        let valid = certificate.validity();
        peer.subject = subject_text(certificate.subject());
        peer.issuer = subject_text(certificate.issuer());
        peer.serial_hex = certificate
            .serial
            .to_bytes_be()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        peer.valid = (valid.not_before.timestamp(), valid.not_after.timestamp());
        (peer.uris, peer.dns_names) = (names.uris, names.dns);
    }
    Some(peer)
}

/// SHA-256, the digest of everything that pins a certificate.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let digest = digest::digest(&digest::SHA256, bytes);
    for (to, from) in out.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    out
}

/// The subject alternative names of a certificate, by their kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SubjectNames {
    dns: Vec<String>,
    uris: Vec<String>,
    addresses: Vec<IpAddr>,
    mail: Vec<String>,
}

impl SubjectNames {
    /// Names of a certificate; none if they cannot be parsed.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut names = Self::default();
        let Ok(Some(extension)) = certificate.subject_alternative_name() else {
            return names;
        };
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::RFC822Name(address) => names.mail.push((*address).to_owned()),
                GeneralName::IPAddress(octets) => {
                    if let Ok(octets) = <[u8; 4]>::try_from(*octets) {
                        names.addresses.push(octets.into());
                    } else if let Ok(octets) = <[u8; 16]>::try_from(*octets) {
                        names.addresses.push(octets.into());
                    }
                }
                _ => {}
            }
        }
        names
    }

    /// Names of a certificate that is not parsed yet.
    pub(super) fn of_der(certificate: &CertificateDer<'_>) -> Self {
        x509_parser::parse_x509_certificate(certificate)
            .map(|(_, certificate)| Self::of(&certificate))
            .unwrap_or_default()
    }

    /// All of them.
    pub(super) fn all(self) -> Vec<String> {
        let addresses = self.addresses.iter().map(ToString::to_string).collect();
        [self.dns, self.uris, addresses, self.mail].concat()
    }

    /// Whether `wanted` is among them, whole: letter case counts in URIs and the local parts of mail only.
    pub(super) fn contain(&self, wanted: &WantedName) -> bool {
        match wanted {
            WantedName::Address(address) => self.addresses.contains(address),
            WantedName::Uri(uri) => self.uris.contains(uri),
            WantedName::Mail(mail) => self.mail.contains(mail),
            WantedName::Dns(name) => self.dns.iter().any(|dns| dns.eq_ignore_ascii_case(name)),
        }
    }
}

/// One of `subjectAltNames`, of the kind that its form tells: a DNS name that looks like a URI is no URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WantedName {
    Dns(String),
    Uri(String),
    Address(IpAddr),
    Mail(String),
}

impl WantedName {
    /// The name of the form.
    pub(super) fn parse(text: &str) -> Self {
        if let Ok(address) = text.parse() {
            Self::Address(address)
        } else if text.contains([':', '/']) {
            Self::Uri(text.to_owned())
        } else if text.contains('@') {
            Self::Mail(text.to_owned())
        } else {
            Self::Dns(text.to_owned())
        }
    }
}

/// The common name; the whole subject when there is none.
pub(super) fn common_name(name: &X509Name<'_>) -> String {
    name.iter_common_name()
        .next()
        .and_then(|attribute| attribute.as_str().ok())
        .map_or_else(|| subject_text(name), ToOwned::to_owned)
}

/// A name as OpenSSL prints it with `XN_FLAG_RFC2253`, which is what Envoy calls: the last attribute first, short
/// names of types, everything that is not ASCII escaped.
fn subject_text(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let sets: Vec<_> = name.iter_rdn().collect();
    for (index, set) in sets.iter().rev().enumerate() {
        let attributes: Vec<_> = set.iter().collect();
        for (position, attribute) in attributes.iter().rev().enumerate() {
            match (index, position) {
                (0, 0) => {}
                (_, 0) => text.push(','),
                _ => text.push('+'),
            }
            push_attribute(&mut text, attribute);
        }
    }
    text
}

fn push_attribute(text: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let oid = attribute.attr_type().to_id_string();
    let value = attribute.attr_value();
    let short = short_name(&oid);
    text.push_str(short.unwrap_or(&oid));
    text.push('=');
    // A type that is not known has no known syntax either: its value is written as the bytes of its DER.
    match (short, characters(value)) {
        (Some(_), Some(characters)) => push_escaped(text, &characters),
        _ => {
            text.push('#');
            for byte in value.to_der_vec().unwrap_or_default() {
                text.push_str(&format!("{byte:02X}"));
            }
        }
    }
}

/// OpenSSL's short name of an attribute's type.
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.13" => "description",
        "2.5.4.15" => "businessCategory",
        "2.5.4.17" => "postalCode",
        "2.5.4.41" => "name",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.44" => "generationQualifier",
        "2.5.4.46" => "dnQualifier",
        "2.5.4.65" => "pseudonym",
        "2.5.4.97" => "organizationIdentifier",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.3.6.1.4.1.311.60.2.1.1" => "jurisdictionL",
        "1.3.6.1.4.1.311.60.2.1.2" => "jurisdictionST",
        "1.3.6.1.4.1.311.60.2.1.3" => "jurisdictionC",
        _ => return None,
    })
}

/// The characters of a value whose type is one of ASN.1's strings.
fn characters(value: &Any<'_>) -> Option<Vec<char>> {
    let from_units = |units: Vec<u32>| units.into_iter().map(char::from_u32).collect();
    match value.tag() {
        Tag::Utf8String => Some(std::str::from_utf8(value.data).ok()?.chars().collect()),
        // T61 has been Latin-1 to everybody since long.
        Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString | Tag::T61String => {
            Some(value.data.iter().map(|byte| char::from(*byte)).collect())
        }
        Tag::BmpString => from_units(
            value
                .data
                .chunks(2)
                .map(|unit| unit.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
                .collect(),
        ),
        Tag::UniversalString => from_units(
            value
                .data
                .chunks(4)
                .map(|unit| unit.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
                .collect(),
        ),
        _ => None,
    }
}

/// RFC 2253 section 2.4, and two digits for each byte that is not printable ASCII.
fn push_escaped(text: &mut String, characters: &[char]) {
    let last = characters.len().saturating_sub(1);
    for (index, character) in characters.iter().enumerate() {
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => text.extend(['\\', *character]),
            '#' if index == 0 => text.push_str("\\#"),
            ' ' if index == 0 || index == last => text.push_str("\\ "),
            ' '..='~' => text.push(*character),
            _ => {
                for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                    text.push_str(&format!("\\{byte:02X}"));
                }
            }
        }
    }
}

/// PEM of a certificate, in lines of 64 digits.
pub(super) fn pem_text(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes are a line of 64 digits.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = (0..3).fold(0_usize, |sum, index| {
                sum << 8 | usize::from(group.get(index).copied().unwrap_or(0))
            });
            for digit in 0..4 {
                let index = bits >> (18 - 6 * digit) & 63;
                let character = DIGITS.get(index).filter(|_| digit <= group.len());
                text.push(character.map_or('=', |byte| char::from(*byte)));
            }
        }
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::fixtures::{Authority, Leaf};
    use rcgen::DnType;
    use rustls::pki_types::pem::PemObject;

    fn subject(attributes: &[(DnType, &str)]) -> String {
        let mut leaf = Leaf::named(&[]);
        leaf.subject = attributes
            .iter()
            .map(|(kind, value)| (kind.clone(), (*value).to_owned()))
            .collect();
        let issued = Authority::new("root").issue(&leaf);
        describe_peer(&[issued.leaf]).unwrap().subject
    }

    #[test]
    fn subjects_are_written_as_openssl_writes_rfc_2253() {
        assert_eq!(
            subject(&[
                (DnType::CountryName, "US"),
                (DnType::OrganizationName, "Example, Inc."),
                (DnType::CommonName, "client"),
            ]),
            "CN=client,O=Example\\, Inc.,C=US"
        );
        assert_eq!(
            subject(&[(DnType::CommonName, " a+b=\"c\"#<\\>; ")]),
            "CN=\\ a\\+b=\\\"c\\\"#\\<\\\\\\>\\;\\ "
        );
        assert_eq!(subject(&[(DnType::CommonName, "#é\n")]), "CN=\\#\\C3\\A9\\0A");
        assert_eq!(
            subject(&[(DnType::CustomDnType(vec![1, 2, 3, 4]), "x")]),
            "1.2.3.4=#0C0178"
        );
        assert_eq!(subject(&[]), "");
    }

    #[test]
    fn a_peer_is_described_by_its_leaf() {
        let root = Authority::new("root");
        let names = ["a.example", "spiffe://x/a", "spiffe://x/b", "10.0.0.1"];
        let leaf = root.issue(&Leaf::named(&names)).leaf;
        let peer = describe_peer(&[leaf.clone(), CertificateDer::from(vec![0])]).unwrap();
        assert_eq!(peer.uris, ["spiffe://x/a", "spiffe://x/b"]);
        assert_eq!(peer.dns_names, ["a.example"]);
        assert_eq!(
            (peer.subject.as_str(), peer.issuer.as_str()),
            ("CN=leaf", "CN=root")
        );
        assert!(peer.valid.0 < peer.valid.1);
        assert!(peer.serial_hex.len() >= 2 && peer.serial_hex.len().is_multiple_of(2));
        assert_eq!(peer.hash_hex.len(), 64);
        assert_eq!(CertificateDer::from_pem_slice(peer.pem.as_bytes()).unwrap(), leaf);
        assert!(peer.pem.lines().all(|line| line.len() <= 64));
        assert_eq!(describe_peer(&[]), None);
    }

    #[test]
    fn what_is_no_certificate_is_described_by_its_digest() {
        let peer = describe_peer(&[CertificateDer::from(b"abc".to_vec())]).unwrap();
        assert_eq!(
            peer.hash_hex,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            peer.pem,
            "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n"
        );
        let padded = |bytes: &[u8]| {
            describe_peer(&[CertificateDer::from(bytes.to_vec())])
                .unwrap()
                .pem
        };
        assert!(padded(b"ab").contains("\nYWI=\n"));
        assert!(padded(b"a").contains("\nYQ==\n"));
        assert!(padded(&[0xff; 49]).contains(&format!("\n{}\n/w==\n", "/".repeat(64))));
    }
}
