//! Verification of peers: the chain as webpki does it, then what resources ask of names and pins.
//!
//! With revocation lists a chain is verified twice. The leaf's state must be known: a list of its issuer must be there
//! and in date, as Envoy demands. Of intermediates only those are looked up whose issuer has a list, where Envoy
//! demands one of every authority; lists of intermediates are rarely published where operators get them.

use super::material::Authorities;
use super::peer::{SubjectNames, WantedName, sha256};
use isthmus_core::tls::{ClientAuth, ServerTls};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientCertVerifierBuilder, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use std::sync::Arc;

/// A builder of the library's verifier of clients, with the cryptography that the gateway uses.
pub(super) fn client_verifier(roots: Arc<RootCertStore>) -> ClientCertVerifierBuilder {
    WebPkiClientVerifier::builder_with_provider(roots, Arc::new(aws_lc_rs::default_provider()))
}

/// Verifies certificates of clients.
#[derive(Debug)]
pub(super) struct ClientPolicy {
    /// None takes every certificate (`insecureSkipVerify`). Its holder must still prove to have the key.
    chain: Option<ClientChain>,
    mandatory: bool,
    names: Vec<WantedName>,
    spki: Vec<[u8; 32]>,
    hashes: Vec<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct ClientChain {
    leaf: Arc<dyn ClientCertVerifier>,
    /// With revocation lists: the intermediates' state.
    intermediates: Option<Arc<dyn ClientCertVerifier>>,
}

impl ClientPolicy {
    /// What `spec` asks of clients; `authorities` is None where every certificate is taken.
    pub(super) fn new(
        spec: &ServerTls,
        authorities: Option<&Authorities>,
    ) -> Result<Self, VerifierBuilderError> {
        Ok(Self {
            chain: authorities.map(ClientChain::new).transpose()?,
            mandatory: spec.client_auth == ClientAuth::Required,
            names: spec
                .subject_alt_names
                .iter()
                .map(|name| WantedName::parse(name))
                .collect(),
            spki: spec.spki.clone(),
            hashes: spec.hashes.clone(),
            algorithms: algorithms(),
        })
    }

    /// Either list of pins is enough.
    fn pinned(&self, certificate: &CertificateDer<'_>) -> Result<bool, Error> {
        if self.spki.is_empty() && self.hashes.is_empty() {
            return Ok(true);
        }
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        Ok(self.hashes.contains(&sha256(certificate)) || self.spki.contains(&sha256(&key)))
    }
}

impl ClientChain {
    fn new(authorities: &Authorities) -> Result<Self, VerifierBuilderError> {
        let builder = || client_verifier(Arc::clone(&authorities.roots));
        if authorities.crls.is_empty() {
            return Ok(Self {
                leaf: builder().build()?,
                intermediates: None,
            });
        }
        let builder = || {
            builder()
                .with_crls(authorities.crls.iter().cloned())
                .enforce_revocation_expiration()
        };
        Ok(Self {
            leaf: builder().only_check_end_entity_revocation().build()?,
            intermediates: Some(builder().allow_unknown_revocation_status().build()?),
        })
    }
}

impl ClientCertVerifier for ClientPolicy {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain
            .as_ref()
            .map_or(&[], |chain| chain.leaf.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ClientCertVerified::assertion());
        };
        let verified = chain.leaf.verify_client_cert(end_entity, intermediates, now)?;
        if let Some(verifier) = chain.intermediates.as_ref().filter(|_| !intermediates.is_empty()) {
            verifier.verify_client_cert(end_entity, intermediates, now)?;
        }
        let named = self.names.is_empty() || {
            let presented = SubjectNames::of_der(end_entity);
            self.names.iter().any(|name| presented.contain(name))
        };
        if !named || !self.pinned(end_entity)? {
            // The alert is access_denied: the certificate is a good one, and not for this door.
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies certificates of upstreams.
#[derive(Debug)]
pub(super) struct ServerPolicy {
    /// None takes every certificate (`insecureSkipVerify`). Its holder must still prove to have the key.
    chain: Option<ServerChain>,
    /// One of these instead of the name that was asked for.
    names: Vec<(WantedName, Option<ServerName<'static>>)>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct ServerChain {
    roots: Arc<RootCertStore>,
    leaf: Arc<WebPkiServerVerifier>,
    /// With revocation lists: the intermediates' state.
    intermediates: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerPolicy {
    /// Takes certificates of `authorities`, every one if that is None, with one of `names`.
    pub(super) fn new(
        authorities: Option<&Authorities>,
        names: &[Box<str>],
    ) -> Result<Self, VerifierBuilderError> {
        let wanted = |name: &str| {
            let server = ServerName::try_from(name.to_owned()).ok();
            (WantedName::parse(name), server)
        };
        Ok(Self {
            chain: authorities.map(ServerChain::new).transpose()?,
            names: names.iter().map(|name| wanted(name)).collect(),
            algorithms: algorithms(),
        })
    }

    /// One of the names must be the certificate's, or be covered by a wildcard of it.
    fn verify_names(
        &self,
        end_entity: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
    ) -> Result<(), Error> {
        let presented = SubjectNames::of_der(end_entity);
        let named = self.names.iter().any(|(wanted, server)| {
            let covered = server
                .as_ref()
                .is_some_and(|name| verify_server_name(parsed, name).is_ok());
            covered || presented.contain(wanted)
        });
        if named {
            return Ok(());
        }
        let expected = self.names.iter().find_map(|(_, server)| server.clone());
        Err(match expected {
            Some(expected) => CertificateError::NotValidForNameContext {
                expected,
                presented: presented.all(),
            },
            None => CertificateError::NotValidForName,
        }
        .into())
    }
}

impl ServerChain {
    fn new(authorities: &Authorities) -> Result<Self, VerifierBuilderError> {
        let builder = |crls: Vec<CertificateRevocationListDer<'static>>| {
            WebPkiServerVerifier::builder_with_provider(
                Arc::clone(&authorities.roots),
                Arc::new(aws_lc_rs::default_provider()),
            )
            .with_crls(crls)
            .enforce_revocation_expiration()
        };
        let crls = || authorities.crls.clone();
        Ok(Self {
            roots: Arc::clone(&authorities.roots),
            leaf: builder(crls()).only_check_end_entity_revocation().build()?,
            intermediates: match authorities.crls.is_empty() {
                true => None,
                false => Some(builder(crls()).allow_unknown_revocation_status().build()?),
            },
        })
    }
}

impl ServerCertVerifier for ServerPolicy {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let by_chain = std::iter::once(&chain.leaf)
            .chain(chain.intermediates.iter().filter(|_| !intermediates.is_empty()));
        if self.names.is_empty() {
            for verifier in by_chain {
                verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &chain.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        // Revocation has no door of its own. The library compares the name last, so that an objection to the name
        // alone says that the rest is good; a test holds it to that.
        for verifier in by_chain.filter(|_| chain.intermediates.is_some()) {
            match verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                Ok(_)
                | Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => {}
                Err(error) => return Err(error),
            }
        }
        self.verify_names(end_entity, &parsed)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}
