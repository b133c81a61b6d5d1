//! The room of keys: it loads what resources name and builds configurations of the TLS library from it.
//!
//! It works on the control thread, and in `isthmus check`, and knows nothing of sockets: a shard gets a finished
//! `Arc<ServerConfig>` or `Arc<ClientConfig>` and drives connections of it. Only what verifiers do here, and
//! [`describe_peer`] and [`HandshakeFailure::of`], happen during handshakes.
//!
//! - [`material`]: where keys, certificates, authorities and revocation lists are found ([`Credentials`])
//! - [`fault`]: what can be wrong with them, in the operator's words
//! - [`server`]: [`build_server`], from a Gateway's `tls`
//! - [`client`]: [`build_client`], from a DestinationRule's `tls`
//! - [`verify`]: chains, revocation, names and pins of peers
//! - [`peer`]: what a certificate says about its holder ([`describe_peer`])

pub mod client;
pub mod fault;
#[cfg(test)]
mod fixtures;
pub mod material;
pub mod peer;
pub mod server;
mod verify;

pub use client::{ClientConfigBuilt, build_client};
pub use fault::{MaterialError, MaterialWarning};
pub use material::{Authorities, CertificateInfo, Credentials, Loaded};
pub use peer::{PeerCertificate, describe_peer};
pub use server::{ServerConfigBuilt, build_server};

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
use std::sync::Arc;

/// What seals the tickets of all servers, one for the life of the process: its keys rotate every six hours, and a
/// configuration that replaces another must keep it or every session is lost.
pub fn new_ticketer() -> Result<Arc<dyn ProducesTickets>, Error> {
    Ticketer::new()
}

/// Why a handshake failed, as coarse as a counter needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HandshakeFailure {
    /// The peer has to present a certificate and has none.
    NoCertificate,
    /// The peer's certificate is signed by nobody who is trusted.
    UnknownCa,
    /// The peer's certificate is revoked.
    Revoked,
    /// No revocation list that is in date tells whether the peer's certificate is revoked.
    RevocationUnknown,
    /// The peer's certificate has expired, or is not valid yet.
    Expired,
    /// The peer's certificate is good, but has none of the names or pins that are asked for.
    NotAllowed,
    /// The peer's certificate is bad in another way.
    BadCertificate,
    /// No version, cipher suite, group, signature or protocol in common.
    NoSharedParameters,
    /// What the peer sends is not TLS.
    NotTls,
    /// The peer gave up with an alert; it may not like our certificate.
    PeerRefused,
    /// Anything else.
    Other,
}

impl HandshakeFailure {
    /// All of them, for tables of counters.
    pub const ALL: [Self; 11] = [
        Self::NoCertificate,
        Self::UnknownCa,
        Self::Revoked,
        Self::RevocationUnknown,
        Self::Expired,
        Self::NotAllowed,
        Self::BadCertificate,
        Self::NoSharedParameters,
        Self::NotTls,
        Self::PeerRefused,
        Self::Other,
    ];

    /// The kind of an error that ended a handshake.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::InvalidCertRevocationList(_) => Self::RevocationUnknown,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::NoSharedParameters,
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            Error::AlertReceived(alert) => Self::of_alert(*alert),
            _ => Self::Other,
        }
    }

    /// The value of a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::UnknownCa => "unknown_ca",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::Expired => "expired",
            Self::NotAllowed => "not_allowed",
            Self::BadCertificate => "bad_certificate",
            Self::NoSharedParameters => "no_shared_parameters",
            Self::NotTls => "not_tls",
            Self::PeerRefused => "peer_refused",
            Self::Other => "other",
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UnknownCa,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::RevocationUnknown,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Expired,
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::ApplicationVerificationFailure => Self::NotAllowed,
            _ => Self::BadCertificate,
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::NoApplicationProtocol => Self::NoSharedParameters,
            _ => Self::PeerRefused,
        }
    }
}
