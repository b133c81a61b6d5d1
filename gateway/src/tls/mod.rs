//! The room of keys: it loads what resources name and builds configurations of the TLS library from it.
//!
//! It works on the control thread, and in `isthmus check`, and knows nothing of sockets: a shard gets a finished
//! `Arc<ServerConfig>` or `Arc<ClientConfig>` and drives connections of it. Only what verifiers do here, and
//! [`describe_peer`] and [`classify`], happen during handshakes.
//!
//! - [`material`]: where keys, certificates, authorities and revocation lists are found ([`Credentials`])
//! - [`fault`]: what can be wrong with them, in the operator's words
//! - [`server`]: [`build_server`], from a Gateway's `tls`
//! - [`client`]: [`build_client`], from a DestinationRule's `tls`
//! - [`verify`]: chains, revocation, names and pins of peers
//! - [`store`]: all keys of a snapshot, kept up to date ([`Store`])
//! - [`peer`]: what a certificate says about its holder ([`describe_peer`])

pub mod client;
pub mod fault;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod fixtures;
mod judge;
pub mod material;
pub mod peer;
pub mod server;
pub mod store;
mod verify;

pub use client::{ClientConfigBuilt, build_client};
pub use fault::{MaterialError, MaterialWarning};
pub use judge::judge;
pub use material::{Authorities, CertificateInfo, Credentials, Loaded};
pub use peer::{PeerCertificate, describe_peer};
pub use server::{ServerConfigBuilt, build_server};
pub use store::{Pinned, Refreshed, Store};

use isthmus_core::tls::HandshakeFailure;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;
use rustls::{AlertDescription, CertificateError, Error};
use std::sync::Arc;

/// What seals the tickets of all servers, one for the life of the process: its keys rotate every six hours, and a
/// configuration that replaces another must keep it or every session is lost.
pub fn new_ticketer() -> Result<Arc<dyn ProducesTickets>, Error> {
    Ticketer::new()
}

/// The kind of an error that ended a handshake.
pub fn classify(error: &Error) -> HandshakeFailure {
    match error {
        Error::NoCertificatesPresented => HandshakeFailure::NoCertificate,
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::InvalidCertRevocationList(_) => HandshakeFailure::RevocationUnknown,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::NoSharedParameters,
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => HandshakeFailure::NotTls,
        Error::AlertReceived(alert) => of_alert(*alert),
        _ => HandshakeFailure::Other,
    }
}

fn of_certificate(error: &CertificateError) -> HandshakeFailure {
    match error {
        CertificateError::UnknownIssuer => HandshakeFailure::UnknownCa,
        CertificateError::Revoked => HandshakeFailure::Revoked,
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => HandshakeFailure::RevocationUnknown,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => HandshakeFailure::Expired,
        CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. }
        | CertificateError::ApplicationVerificationFailure => HandshakeFailure::NotAllowed,
        CertificateError::Other(error) => match error.0.downcast_ref() {
            Some(webpki::Error::UnsupportedCertVersion) => HandshakeFailure::OldVersion,
            Some(webpki::Error::CaUsedAsEndEntity) => HandshakeFailure::Authority,
            _ => HandshakeFailure::BadCertificate,
        },
        _ => HandshakeFailure::BadCertificate,
    }
}

fn of_alert(alert: AlertDescription) -> HandshakeFailure {
    match alert {
        AlertDescription::HandshakeFailure
        | AlertDescription::ProtocolVersion
        | AlertDescription::InsufficientSecurity
        | AlertDescription::NoApplicationProtocol => HandshakeFailure::NoSharedParameters,
        _ => HandshakeFailure::RefusedByPeer,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::fixtures::{Authority, HOST, Leaf};
    use rustls::{PeerIncompatible, ServerConnection};

    #[test]
    fn what_is_not_tls_is_told_from_a_lack_of_parameters() {
        let own = Authority::new("root").issue(&Leaf::named(&[HOST]));
        let spec = server::tests::simple(&["door"]);
        let credentials = fixtures::credentials(&[("door", &own.entries())]);
        let built = build_server(&spec, &credentials, &new_ticketer().unwrap(), fixtures::now()).unwrap();
        let failure = |mut bytes: &[u8]| {
            let mut connection = ServerConnection::new(Arc::clone(&built.config)).unwrap();
            connection.read_tls(&mut bytes).unwrap();
            classify(&connection.process_new_packets().unwrap_err())
        };
        assert_eq!(
            failure(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"),
            HandshakeFailure::NotTls
        );
        assert_eq!(failure(b"SSH-2.0-OpenSSH_9.2\r\n"), HandshakeFailure::NotTls);
        assert_eq!(
            failure(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"),
            HandshakeFailure::NotTls
        );
    }

    #[test]
    fn certificates_of_an_old_version_are_told() {
        let error = rustls::OtherError(Arc::new(webpki::Error::UnsupportedCertVersion));
        let error = Error::InvalidCertificate(CertificateError::Other(error));
        assert_eq!(classify(&error), HandshakeFailure::OldVersion);
    }

    #[test]
    fn alerts_tell_what_is_missing_or_that_the_peer_refused() {
        let of = |alert| classify(&Error::AlertReceived(alert));
        assert_eq!(of(AlertDescription::UnknownCA), HandshakeFailure::RefusedByPeer);
        assert_eq!(
            of(AlertDescription::ProtocolVersion),
            HandshakeFailure::NoSharedParameters
        );
        let incompatible = Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon);
        assert_eq!(classify(&incompatible), HandshakeFailure::NoSharedParameters);
        assert_eq!(classify(&Error::General(String::new())), HandshakeFailure::Other);
    }
}
