//! How connections to upstreams are secured.

use super::fault::{MaterialError, MaterialWarning};
use super::material::{CertificateInfo, Credentials};
use super::verify::ServerPolicy;
use crate::mailbox::ClientConfigs;
use isthmus_core::tls::{ClientTls, Offer};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::sign::SingleCertAndKey;
use std::sync::Arc;
use std::time::SystemTime;

/// A configuration, and what to tell operators about it.
#[derive(Debug, Clone)]
pub struct ClientConfigBuilt {
    /// For connections. The name to ask for is given with each of them.
    pub config: Arc<ClientConfigs>,
    /// What the gateway's own certificate says.
    pub certificate: Option<CertificateInfo>,
    /// What the certificates of the upstream's authorities say; empty for the roots of the system.
    pub authorities: Vec<CertificateInfo>,
    /// What is used nonetheless.
    pub warnings: Vec<MaterialWarning>,
}

/// Loads what `spec` names and builds a configuration of it; all that is wrong if anything is.
///
/// Sessions are kept in memory and resumed with the same configuration only, which has verified them.
pub fn build_client(
    spec: &ClientTls,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<ClientConfigBuilt, Vec<MaterialError>> {
    let key = spec.key.as_ref().map(|source| credentials.load_key(source, now));
    let authorities = match spec.skip_verify {
        true => None,
        false => Some(credentials.load_trust(&spec.ca, spec.crl.as_deref(), now)),
    };
    let (key, authorities) = match (key.transpose(), authorities.transpose()) {
        (Ok(key), Ok(authorities)) => (key, authorities),
        (key, authorities) => return Err(key.err().into_iter().chain(authorities.err()).collect()),
    };
    let refused = |error: &dyn std::error::Error| vec![MaterialError::Refused(error.to_string())];
    let policy =
        ServerPolicy::new(authorities.as_ref(), &spec.subject_alt_names).map_err(|error| refused(&error))?;
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(policy));
    let config = match &key {
        None => builder.with_no_client_auth(),
        Some(loaded) => {
            let key = Arc::clone(&loaded.key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    let offering = |offer: Offer| {
        let mut config = config.clone();
        config.alpn_protocols = offer.alpn().iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    };
    let mut warnings = Vec::new();
    let certificate = key.map(|loaded| {
        warnings.extend(loaded.warnings);
        loaded.info
    });
    let authorities = authorities.map(|found| {
        warnings.extend(found.warnings);
        found.infos
    });
    Ok(ClientConfigBuilt {
        config: Arc::new(ClientConfigs(Offer::ALL.map(offering))),
        certificate,
        authorities: authorities.unwrap_or_default(),
        warnings,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::tls::fixtures::{
        Authority, HOST, Issued, Leaf, Outcome, credential, credentials, handshake, key_of, now,
    };
    use crate::tls::{build_server, classify, new_ticketer};
    use isthmus_core::tls::{CaSource, ClientAuth, HandshakeFailure, Parameters, ServerTls};
    use rustls::{CertificateError, Error};

    /// An upstream with a certificate, and what the gateway asks of it.
    struct Upstream {
        authority: Authority,
        own: Issued,
        gateway: Issued,
        crl: Option<String>,
        spec: ClientTls,
    }

    impl Upstream {
        fn new(names: &[&str]) -> Self {
            let authority = Authority::new("upstream's CA");
            Self {
                own: authority.issue(&Leaf::named(names)),
                gateway: authority.issue(&Leaf::named(&["gateway"])),
                authority,
                crl: None,
                spec: ClientTls {
                    key: None,
                    ca: CaSource::Credential(credential("upstream")),
                    crl: None,
                    subject_alt_names: Vec::new(),
                    sni: None,
                    skip_verify: false,
                },
            }
        }

        fn asking_for(&self, names: &[&str]) -> Outcome {
            let mut spec = self.spec.clone();
            spec.subject_alt_names = names.iter().map(|name| (*name).into()).collect();
            self.meet(&spec)
        }

        fn meet(&self, spec: &ClientTls) -> Outcome {
            handshake(
                &self.server(ClientAuth::None),
                self.client(spec).config.offering(Offer::Http1),
            )
        }

        fn server(&self, client_auth: ClientAuth) -> Arc<rustls::ServerConfig> {
            let ca = self.authority.pem();
            let spec = ServerTls {
                keys: vec![key_of("own")],
                client_auth,
                ca: Some(CaSource::Credential(credential("own"))),
                crl: None,
                subject_alt_names: Vec::new(),
                spki: Vec::new(),
                hashes: Vec::new(),
                skip_verify: false,
                parameters: Parameters::default(),
                alpn: vec!["h2".into(), "http/1.1".into()],
            };
            let found = credentials(&[("own", &self.own.entries()), ("own-cacert", &[("ca.crt", &ca)])]);
            build_server(&spec, &found, &new_ticketer().unwrap(), now())
                .unwrap()
                .config
        }

        fn client(&self, spec: &ClientTls) -> ClientConfigBuilt {
            let ca = self.authority.pem();
            let mut entries = vec![("ca.crt", ca.as_str())];
            entries.extend(self.crl.as_deref().map(|crl| ("ca.crl", crl)));
            let found = credentials(&[("upstream", &entries), ("gateway", &self.gateway.entries())]);
            build_client(spec, &found, now()).unwrap()
        }
    }

    #[test]
    fn without_a_list_the_certificate_must_have_the_name_that_was_asked_for() {
        let outcome = Upstream::new(&[HOST]).asking_for(&[]).accepted();
        assert_eq!(outcome.client.alpn_protocol(), Some(b"http/1.1".as_slice()));
        Upstream::new(&["*.shop.example"]).asking_for(&[]).accepted();
        let error = Upstream::new(&["api.shop.example"])
            .asking_for(&[])
            .refused_by_client();
        assert_eq!(classify(&error), HandshakeFailure::NotAllowed);
    }

    #[test]
    fn an_authoritys_certificate_is_no_upstreams() {
        let mut upstream = Upstream::new(&[HOST]);
        upstream.own = upstream.authority.issue(&Leaf::named(&[HOST]).ca());
        let error = upstream.asking_for(&[]).refused_by_client();
        assert_eq!(classify(&error), HandshakeFailure::Authority);
    }

    #[test]
    fn one_name_of_a_list_must_be_the_certificates_whatever_was_asked_for() {
        for (has, wanted, accepted) in [
            ("api.shop.example", "api.shop.example", true),
            ("Api.shop.example", "aPi.shop.example", true),
            ("*.shop.example", "api.shop.example", true),
            ("*.shop.example", "*.shop.example", true),
            ("*.shop.example", "a.b.shop.example", false),
            ("spiffe://x/ns/a/sa/b", "spiffe://x/ns/a/sa/b", true),
            ("spiffe://x/ns/a/sa/b", "spiffe://x/ns/a/sa", false),
            ("spiffe://x/ns/a/sa/b", "spiffe://x/ns/a/sa/*", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            // The name that was asked for is no longer enough.
            (HOST, "api.shop.example", false),
        ] {
            let outcome = Upstream::new(&[has]).asking_for(&["first.example", wanted]);
            if accepted {
                outcome.accepted();
            } else {
                assert_eq!(
                    classify(&outcome.refused_by_client()),
                    HandshakeFailure::NotAllowed,
                    "{has} {wanted}"
                );
            }
        }
    }

    #[test]
    fn a_refusal_by_name_says_what_was_presented() {
        let upstream = Upstream::new(&["a.example", "spiffe://x/a"]);
        let Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) =
            upstream.asking_for(&["b.example"]).refused_by_client()
        else {
            panic!("refused for another reason");
        };
        assert_eq!(presented, ["a.example", "spiffe://x/a"]);
    }

    #[test]
    fn a_listed_name_does_not_stand_in_for_authority_validity_and_revocation() {
        for names in [&[][..], &[HOST]] {
            let mut upstream = Upstream::new(&[HOST]);
            upstream.own = Authority::new("stranger").issue(&Leaf::named(&[HOST]));
            let error = upstream.asking_for(names).refused_by_client();
            assert_eq!(classify(&error), HandshakeFailure::UnknownCa);

            upstream.own = upstream.authority.issue(&Leaf::named(&[HOST]).years(2000, 2001));
            let error = upstream.asking_for(names).refused_by_client();
            assert_eq!(classify(&error), HandshakeFailure::Expired);

            upstream.own = upstream.authority.issue(&Leaf::named(&[HOST]).serial(13));
            upstream.crl = Some(upstream.authority.revoke(&[13]));
            let error = upstream.asking_for(names).refused_by_client();
            assert_eq!(classify(&error), HandshakeFailure::Revoked);

            upstream.crl = Some(upstream.authority.revoke(&[]));
            upstream.asking_for(names).accepted();

            upstream.crl = Some(upstream.authority.revoke_until(&[], 2021));
            let error = upstream.asking_for(names).refused_by_client();
            assert_eq!(classify(&error), HandshakeFailure::RevocationUnknown);
        }
    }

    #[test]
    fn revocation_is_found_when_the_name_that_was_asked_for_is_not_in_the_certificate() {
        let mut upstream = Upstream::new(&["spiffe://x/a"]);
        upstream.crl = Some(upstream.authority.revoke(&[7]));
        let error = upstream.asking_for(&["spiffe://x/a"]).refused_by_client();
        assert_eq!(classify(&error), HandshakeFailure::Revoked);

        let intermediate = upstream.authority.intermediate("department", 21);
        upstream.own = intermediate.issue(&Leaf::named(&["spiffe://x/a"]));
        upstream.crl = Some(intermediate.revoke(&[]));
        upstream.asking_for(&["spiffe://x/a"]).accepted();
        upstream.crl = Some(intermediate.revoke(&[]) + &upstream.authority.revoke(&[21]));
        let error = upstream.asking_for(&["spiffe://x/a"]).refused_by_client();
        assert_eq!(classify(&error), HandshakeFailure::Revoked);
    }

    #[test]
    fn skip_verify_takes_any_certificate() {
        let mut upstream = Upstream::new(&["api.shop.example"]);
        upstream.spec.skip_verify = true;
        upstream.spec.ca = CaSource::File("/nowhere/ca.pem".into());
        upstream.own = Authority::new("stranger").issue(&Leaf::named(&["x"]).years(2000, 2001));
        upstream.asking_for(&["spiffe://x/a"]).accepted();
    }

    #[test]
    fn mutual_presents_the_gateways_certificate() {
        let mut upstream = Upstream::new(&[HOST]);
        let server = upstream.server(ClientAuth::Required);
        let client = upstream.client(&upstream.spec);
        assert!(client.certificate.is_none());
        handshake(&server, client.config.offering(Offer::Http1)).refused_by_server();
        upstream.spec.key = Some(key_of("gateway"));
        let client = upstream.client(&upstream.spec);
        assert_eq!(client.certificate.unwrap().names, ["gateway"]);
        assert_eq!(client.authorities[0].subject, "upstream's CA");
        let outcome = handshake(&server, client.config.offering(Offer::Http1)).accepted();
        assert_eq!(
            outcome.server.peer_certificates().unwrap()[0],
            upstream.gateway.leaf
        );
    }

    #[test]
    fn sessions_of_upstreams_resume() {
        let upstream = Upstream::new(&[HOST]);
        let server = upstream.server(ClientAuth::None);
        let client = upstream.client(&upstream.spec);
        assert!(
            !handshake(&server, client.config.offering(Offer::Http1))
                .accepted()
                .resumed()
        );
        assert!(
            handshake(&server, client.config.offering(Offer::Http1))
                .accepted()
                .resumed()
        );
        // Another policy has not seen that certificate yet.
        assert!(
            !handshake(
                &server,
                upstream.client(&upstream.spec).config.offering(Offer::Http1)
            )
            .accepted()
            .resumed()
        );
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let spec = ClientTls {
            key: Some(key_of("gateway")),
            ..Upstream::new(&[HOST]).spec
        };
        let errors = build_client(&spec, &credentials(&[]), now()).unwrap_err();
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "no credential prod/gateway: looked for Secret prod/gateway",
                "no credential prod/upstream: looked for Secret prod/upstream, Secret prod/upstream-cacert",
            ]
        );
    }
}
