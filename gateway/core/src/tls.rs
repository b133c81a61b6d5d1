//! TLS as resources ask for it: what a server presents and demands, and what a client of an upstream does.
//!
//! Data only. The compiler makes it; the gateway loads the keys that it names and builds configurations of its TLS
//! library from it. Equal values have equal effects: two servers with one policy are one configuration.

use crate::message::Version;

/// A version of the protocol. 1.0 and 1.1 are not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// The name of a Secret, or of a folder of `--credentials`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialName {
    /// Namespace of the Secret; a folder has none and is found by the name alone.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl CredentialName {
    /// The credential that has the authorities that belong to this one: Istio appends `-cacert` to the name.
    #[must_use]
    pub fn of_authorities(&self) -> Self {
        Self {
            namespace: self.namespace.clone(),
            name: format!("{}-cacert", self.name).into(),
        }
    }
}

/// Where a certificate chain and its key come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// PEM files: `serverCertificate` (or `clientCertificate`) and `privateKey`.
    Files {
        /// Path of the chain, leaf first.
        certificate: Box<str>,
        /// Path of the key.
        key: Box<str>,
    },
    /// `tls.crt` and `tls.key` (or `cert` and `key`) of a credential, and its `tls.ocsp-staple`.
    Credential(CredentialName),
}

/// Where the certificates come from that a peer's must be signed by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CaSource {
    /// A PEM file: `caCertificates`.
    File(Box<str>),
    /// `ca.crt` (or `cacert`) of the credential, or of the credential of that name with `-cacert` behind it; and its
    /// `ca.crl` (or `crl`).
    Credential(CredentialName),
    /// The roots of the operating system.
    System,
}

/// What is asked of a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientAuth {
    /// Nothing: SIMPLE.
    None,
    /// It is verified if it comes: OPTIONAL_MUTUAL.
    Optional,
    /// It must come: MUTUAL, ISTIO_MUTUAL.
    Required,
}

/// What may be negotiated, on either side.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Parameters {
    /// The least version.
    pub min: TlsVersion,
    /// The highest version; never below `min`.
    pub max: TlsVersion,
    /// Cipher suites of TLS 1.2 by their OpenSSL names (`ECDHE-RSA-AES128-GCM-SHA256`), in order of preference; empty
    /// for the default. TLS 1.3 has its own three, always.
    pub cipher_suites: Vec<Box<str>>,
    /// Key exchange groups (`X25519MLKEM768`, `X25519`, `P-256`, `P-384`), in order of preference; empty for the
    /// default.
    pub curves: Vec<Box<str>>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            min: TlsVersion::V1_2,
            max: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
        }
    }
}

/// What a server that terminates TLS presents and demands (`servers[].tls`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerTls {
    /// One chain and key, or two of different kinds (RSA and ECDSA) of which the client's abilities choose.
    pub keys: Vec<KeySource>,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
    /// Who signs clients' certificates; None when nothing is asked of them.
    pub ca: Option<CaSource>,
    /// A PEM file of revoked certificates: `caCrl`.
    pub crl: Option<Box<str>>,
    /// One of these must be among the names of a client's certificate; empty for any.
    pub subject_alt_names: Vec<Box<str>>,
    /// SHA-256 of the public keys that clients may have; empty, with `hashes`, for any.
    pub spki: Vec<[u8; 32]>,
    /// SHA-256 of the certificates that clients may have.
    pub hashes: Vec<[u8; 32]>,
    /// A client's certificate that does not verify is taken nonetheless (`insecureSkipVerify`).
    pub skip_verify: bool,
    /// What may be negotiated.
    pub parameters: Parameters,
    /// Protocols offered by ALPN, in order of preference; empty when none is.
    pub alpn: Vec<Box<str>>,
}

/// How connections to an upstream are secured (`DestinationRule` `tls`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientTls {
    /// The gateway's own certificate: MUTUAL, ISTIO_MUTUAL.
    pub key: Option<KeySource>,
    /// Who must have signed the upstream's certificate.
    pub ca: CaSource,
    /// A PEM file of revoked certificates: `caCrl`.
    pub crl: Option<Box<str>>,
    /// One of these must be among the names of the upstream's certificate; empty: the name that was asked for.
    pub subject_alt_names: Vec<Box<str>>,
    /// The name to ask for; None for the host of the request's authority.
    pub sni: Option<Box<str>>,
    /// The upstream's certificate is not verified (`insecureSkipVerify`).
    pub skip_verify: bool,
}

/// What a connection to an upstream is for, which is what it offers by ALPN (RFC 7301).
///
/// One [`ClientTls`] serves all three: the same cluster may carry requests of either version, as its clients do
/// (`useClientProtocol`), and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offer {
    /// Bytes of a protocol that is not known here: nothing is offered.
    Bytes,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, and nothing else: an upstream that must speak it is not asked whether it would rather not.
    Http2,
}

impl Offer {
    /// Each of them, in the order of [`Offer::at`].
    pub const ALL: [Self; 3] = [Self::Bytes, Self::Http1, Self::Http2];

    /// What requests of a version offer.
    pub const fn of(version: Version) -> Self {
        match version {
            Version::Http10 | Version::Http11 => Self::Http1,
            Version::Http2 => Self::Http2,
        }
    }

    /// Position in [`Offer::ALL`], for tables with a place for each.
    pub const fn at(self) -> usize {
        self as usize
    }

    /// The names to offer, in order of preference.
    pub const fn alpn(self) -> &'static [&'static str] {
        match self {
            Self::Bytes => &[],
            Self::Http1 => &["http/1.1"],
            Self::Http2 => &["h2"],
        }
    }
}

/// Why a peer's handshake failed, as far as operators tell such failures apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// It sent no certificate where one must be.
    NoCertificate,
    /// Its certificate is signed by nobody that is trusted here.
    UnknownCa,
    /// Its certificate was revoked.
    Revoked,
    /// No revocation list that is in date says whether its certificate was revoked.
    RevocationUnknown,
    /// Its certificate has expired, or is not valid yet.
    Expired,
    /// Its certificate is a good one, and not one of those that may come in.
    NotAllowed,
    /// Its certificate is of a version of X.509 before the third, which says neither names nor purposes.
    OldVersion,
    /// Its certificate is an authority's, and no peer's.
    Authority,
    /// Its certificate is broken, or meant for something else.
    BadCertificate,
    /// There is no version, cipher suite, group or protocol that both sides have.
    NoSharedParameters,
    /// It refused what it was shown, with an alert.
    RefusedByPeer,
    /// It does not speak TLS, or breaks its rules.
    NotTls,
    /// It closed before the end.
    Closed,
    /// It took too long.
    Timeout,
    /// Something else.
    Other,
}

impl HandshakeFailure {
    /// As metrics name it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoCertificate => "tls_no_client_certificate",
            Self::UnknownCa => "tls_unknown_ca",
            Self::Revoked => "tls_certificate_revoked",
            Self::RevocationUnknown => "tls_revocation_unknown",
            Self::Expired => "tls_certificate_expired",
            Self::NotAllowed => "tls_certificate_not_allowed",
            Self::OldVersion => "tls_certificate_version",
            Self::Authority => "tls_certificate_of_authority",
            Self::BadCertificate => "tls_bad_certificate",
            Self::NoSharedParameters => "tls_no_shared_parameters",
            Self::RefusedByPeer => "tls_refused_by_peer",
            Self::NotTls => "tls_protocol_error",
            Self::Closed => "tls_closed",
            Self::Timeout => "tls_timeout",
            Self::Other => "tls_other",
        }
    }

    /// As the access log names it when the peer is an upstream.
    pub const fn upstream_detail(self) -> &'static str {
        match self {
            Self::NoCertificate => "upstream_reset_before_response_started{tls_error:no_certificate}",
            Self::UnknownCa => "upstream_reset_before_response_started{tls_error:unknown_ca}",
            Self::Revoked => "upstream_reset_before_response_started{tls_error:certificate_revoked}",
            Self::RevocationUnknown => "upstream_reset_before_response_started{tls_error:revocation_unknown}",
            Self::Expired => "upstream_reset_before_response_started{tls_error:certificate_expired}",
            Self::NotAllowed => {
                "upstream_reset_before_response_started{tls_error:certificate_not_for_this_name}"
            }
            Self::OldVersion => {
                "upstream_reset_before_response_started{tls_error:certificate_version_unsupported}"
            }
            Self::Authority => {
                "upstream_reset_before_response_started{tls_error:certificate_of_an_authority}"
            }
            Self::BadCertificate => "upstream_reset_before_response_started{tls_error:bad_certificate}",
            Self::NoSharedParameters => {
                "upstream_reset_before_response_started{tls_error:no_shared_parameters}"
            }
            Self::RefusedByPeer => "upstream_reset_before_response_started{tls_error:refused_by_peer}",
            Self::NotTls => "upstream_reset_before_response_started{tls_error:protocol_error}",
            Self::Closed => "upstream_reset_before_response_started{tls_error:closed}",
            Self::Timeout => "upstream_reset_before_response_started{tls_error:timeout}",
            Self::Other => "upstream_reset_before_response_started{tls_error}",
        }
    }

    /// As the access log names it, in Envoy's form.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NoCertificate => "downstream_transport_failure{no_client_certificate}",
            Self::UnknownCa => "downstream_transport_failure{unknown_ca}",
            Self::Revoked => "downstream_transport_failure{certificate_revoked}",
            Self::RevocationUnknown => "downstream_transport_failure{revocation_unknown}",
            Self::Expired => "downstream_transport_failure{certificate_expired}",
            Self::NotAllowed => "downstream_transport_failure{certificate_not_allowed}",
            Self::OldVersion => "downstream_transport_failure{certificate_version_unsupported}",
            Self::Authority => "downstream_transport_failure{certificate_of_an_authority}",
            Self::BadCertificate => "downstream_transport_failure{bad_certificate}",
            Self::NoSharedParameters => "downstream_transport_failure{no_shared_parameters}",
            Self::RefusedByPeer => "downstream_transport_failure{refused_by_peer}",
            Self::NotTls => "downstream_transport_failure{protocol_error}",
            Self::Closed => "downstream_transport_failure{closed}",
            Self::Timeout => "downstream_transport_failure{timeout}",
            Self::Other => "downstream_transport_failure{other}",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_found_by_their_place() {
        for (at, offer) in Offer::ALL.into_iter().enumerate() {
            assert_eq!(offer.at(), at);
        }
        assert_eq!(Offer::of(Version::Http2).alpn(), ["h2"]);
        assert_eq!(Offer::of(Version::Http10).alpn(), ["http/1.1"]);
        assert!(Offer::Bytes.alpn().is_empty());
    }
}
