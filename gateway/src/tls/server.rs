//! What a server that terminates TLS presents and demands.
//!
//! Sessions are resumed by tickets only, and only where clients have no certificates. A ticket is sealed by a key that
//! all such servers share, so that a client resumes at whichever shard it meets, and after a reload; the key is lost
//! when the process ends. A ticket also carries the client's certificate past its verification: a server that asks for
//! one issues no ticket and takes none, or a session of an earlier policy would outlive the authority that it trusted.

use super::fault::{MaterialError, MaterialWarning};
use super::material::{Authorities, CertificateInfo, Credentials, Loaded};
use super::verify::ClientPolicy;
use isthmus_core::tls::{ClientAuth, Parameters, ServerTls, TlsVersion};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ProtocolVersion, ServerConfig, SignatureAlgorithm, SupportedCipherSuite, SupportedProtocolVersion,
};
use std::sync::Arc;
use std::time::SystemTime;

/// Tickets after each handshake of TLS 1.3: each resumes once, and browsers open two connections.
const TICKETS: usize = 2;

/// A configuration, and what to tell operators about it.
#[derive(Debug, Clone)]
pub struct ServerConfigBuilt {
    /// For connections.
    pub config: Arc<ServerConfig>,
    /// What each chain's leaf says, in the order of `keys`.
    pub certificates: Vec<CertificateInfo>,
    /// What the certificates of clients' authorities say.
    pub authorities: Vec<CertificateInfo>,
    /// What is served nonetheless.
    pub warnings: Vec<MaterialWarning>,
}

/// Loads what `spec` names and builds a configuration of it; all that is wrong if anything is.
pub fn build_server(
    spec: &ServerTls,
    credentials: &Credentials,
    ticketer: &Arc<dyn ProducesTickets>,
    now: SystemTime,
) -> Result<ServerConfigBuilt, Vec<MaterialError>> {
    let mut errors = Vec::new();
    let mut keys = Vec::new();
    for source in &spec.keys {
        match credentials.load_key(source, now) {
            Ok(loaded) => keys.push(loaded),
            Err(error) => errors.push(error),
        }
    }
    if spec.keys.is_empty() {
        errors.push(MaterialError::NoKey);
    }
    let authorities = load_authorities(spec, credentials, now)
        .map_err(|error| errors.push(error))
        .ok()
        .flatten();
    if errors.is_empty() {
        assemble(spec, &keys, authorities, ticketer).map_err(|error| vec![error])
    } else {
        Err(errors)
    }
}

/// Authorities of clients; None where no client's certificate is verified.
fn load_authorities(
    spec: &ServerTls,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Option<Authorities>, MaterialError> {
    if spec.client_auth == ClientAuth::None || spec.skip_verify {
        return Ok(None);
    }
    let source = spec.ca.as_ref().ok_or(MaterialError::NoAuthority)?;
    credentials.load_trust(source, spec.crl.as_deref(), now).map(Some)
}

fn assemble(
    spec: &ServerTls,
    keys: &[Loaded],
    authorities: Option<Authorities>,
    ticketer: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfigBuilt, MaterialError> {
    let refused = |error: &dyn std::error::Error| MaterialError::Refused(error.to_string());
    let mut warnings: Vec<_> = keys.iter().flat_map(|loaded| loaded.warnings.clone()).collect();
    let provider = provider(&spec.parameters, &mut warnings);
    let builder = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions(&spec.parameters))
        .map_err(|error| refused(&error))?;
    let builder = match spec.client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional | ClientAuth::Required => {
            let policy = ClientPolicy::new(spec, authorities.as_ref()).map_err(|error| refused(&error))?;
            builder.with_client_cert_verifier(Arc::new(policy))
        }
    };
    let certified = keys.iter().map(|loaded| Arc::clone(&loaded.key));
    let mut config = builder.with_cert_resolver(Arc::new(KeyChoice::new(certified)));
    config.alpn_protocols = spec.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    // A list of suites is in order of preference; without one clients know best which their processor is fast at.
    config.ignore_client_order = !spec.parameters.cipher_suites.is_empty();
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if spec.client_auth == ClientAuth::None {
        config.ticketer = Arc::clone(ticketer);
        config.send_tls13_tickets = TICKETS;
    } else {
        // The ticketer stays what the builder made it: one that neither seals nor opens.
        config.send_tls13_tickets = 0;
    }
    let (infos, trust_warnings) = authorities
        .map(|found| (found.infos, found.warnings))
        .unwrap_or_default();
    warnings.extend(trust_warnings);
    Ok(ServerConfigBuilt {
        config: Arc::new(config),
        certificates: keys.iter().map(|loaded| loaded.info.clone()).collect(),
        authorities: infos,
        warnings,
    })
}

/// Chooses among keys of different kinds by what the client can verify.
#[derive(Debug)]
struct KeyChoice {
    /// RSA last: its signatures cost the server twenty times as much.
    keys: Vec<Arc<CertifiedKey>>,
}

impl KeyChoice {
    fn new(keys: impl Iterator<Item = Arc<CertifiedKey>>) -> Self {
        let mut keys: Vec<_> = keys.collect();
        keys.sort_by_key(|key| key.key.algorithm() == SignatureAlgorithm::RSA);
        Self { keys }
    }
}

impl ResolvesServerCert for KeyChoice {
    /// The library has taken the schemes away that no common cipher suite of TLS 1.2 can use, so that those which are
    /// left are all there is to look at. Without any the first key is as good as the others: the library then fails
    /// with the right alert.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.keys
            .iter()
            .find(|key| key.key.choose_scheme(hello.signature_schemes()).is_some())
            .or_else(|| self.keys.first())
            .cloned()
    }
}

fn versions(parameters: &Parameters) -> &'static [&'static SupportedProtocolVersion] {
    static OLDER: [&SupportedProtocolVersion; 1] = [&TLS12];
    static NEWER: [&SupportedProtocolVersion; 1] = [&TLS13];
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match (parameters.min, parameters.max) {
        (TlsVersion::V1_3, _) => &NEWER,
        (TlsVersion::V1_2, TlsVersion::V1_2) => &OLDER,
        (TlsVersion::V1_2, TlsVersion::V1_3) => &BOTH,
    }
}

/// Cryptography with the suites and groups of `parameters` only.
fn provider(parameters: &Parameters, warnings: &mut Vec<MaterialWarning>) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = cipher_suites(parameters, warnings);
    provider.kx_groups = groups(parameters, warnings);
    provider
}

/// Suites of the enabled versions only: the library looks at those in common with the client when it says which
/// signatures a key may make, whatever version they belong to.
fn cipher_suites(parameters: &Parameters, warnings: &mut Vec<MaterialWarning>) -> Vec<SupportedCipherSuite> {
    let (newer, mut older): (Vec<_>, Vec<_>) = aws_lc_rs::DEFAULT_CIPHER_SUITES
        .iter()
        .copied()
        .partition(|suite| suite.version() == &TLS13);
    if !parameters.cipher_suites.is_empty() {
        let mut chosen = Vec::new();
        for name in &parameters.cipher_suites {
            match cipher_suite(name) {
                Some(suite) if chosen.contains(&suite) => {}
                Some(suite) => chosen.push(suite),
                None if is_tls13_suite(name) => {}
                None => warnings.push(MaterialWarning::CipherSuite {
                    name: name.to_string(),
                }),
            }
        }
        if chosen.is_empty() {
            warnings.push(MaterialWarning::DefaultCipherSuites);
        } else {
            older = chosen;
        }
    }
    match (parameters.min, parameters.max) {
        (TlsVersion::V1_3, _) => newer,
        (TlsVersion::V1_2, TlsVersion::V1_2) => older,
        (TlsVersion::V1_2, TlsVersion::V1_3) => [newer, older].concat(),
    }
}

/// A suite of TLS 1.2 by its name in OpenSSL, which is the one that Istio takes.
fn cipher_suite(name: &str) -> Option<SupportedCipherSuite> {
    Some(match name {
        "ECDHE-ECDSA-AES128-GCM-SHA256" => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-RSA-AES128-GCM-SHA256" => cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-RSA-AES256-GCM-SHA384" => cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-RSA-CHACHA20-POLY1305" => cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        _ => return None,
    })
}

/// Those of TLS 1.3 are always offered: naming one is no mistake and has no effect.
fn is_tls13_suite(name: &str) -> bool {
    matches!(
        name,
        "TLS_AES_128_GCM_SHA256" | "TLS_AES_256_GCM_SHA384" | "TLS_CHACHA20_POLY1305_SHA256"
    )
}

fn groups(
    parameters: &Parameters,
    warnings: &mut Vec<MaterialWarning>,
) -> Vec<&'static dyn SupportedKxGroup> {
    let mut chosen: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    for name in &parameters.curves {
        match group(name) {
            Some(group) if chosen.iter().any(|other| other.name() == group.name()) => {}
            Some(group) => chosen.push(group),
            None => warnings.push(MaterialWarning::Curve {
                name: name.to_string(),
            }),
        }
    }
    let version = match parameters.max {
        TlsVersion::V1_2 => ProtocolVersion::TLSv1_2,
        TlsVersion::V1_3 => ProtocolVersion::TLSv1_3,
    };
    // X25519MLKEM768 exists in TLS 1.3 only.
    if !chosen.iter().any(|group| group.usable_for_version(version)) {
        if !parameters.curves.is_empty() {
            warnings.push(MaterialWarning::DefaultCurves);
        }
        chosen = vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ];
    }
    chosen
}

/// A group by any of the names that it is known by.
fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    Some(match name.to_ascii_lowercase().as_str() {
        "x25519mlkem768" => kx_group::X25519MLKEM768,
        "x25519" => kx_group::X25519,
        "p-256" | "prime256v1" | "secp256r1" => kx_group::SECP256R1,
        "p-384" | "secp384r1" => kx_group::SECP384R1,
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub(super) mod tests {
    use super::*;
    use crate::tls::fixtures::{
        Authority, HOST, Issued, Kind, Leaf, Outcome, Visitor, credential, credentials, handshake, key_of,
        now,
    };
    use crate::tls::peer::sha256;
    use crate::tls::{classify, new_ticketer};
    use isthmus_core::tls::{CaSource, HandshakeFailure, KeySource};
    use rustls::pki_types::SubjectPublicKeyInfoDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{AlertDescription, CipherSuite, ClientConfig, NamedGroup};

    pub(in crate::tls) fn simple(keys: &[&str]) -> ServerTls {
        ServerTls {
            keys: keys.iter().map(|name| key_of(name)).collect(),
            client_auth: ClientAuth::None,
            ca: None,
            crl: None,
            subject_alt_names: Vec::new(),
            spki: Vec::new(),
            hashes: Vec::new(),
            skip_verify: false,
            parameters: Parameters::default(),
            alpn: Vec::new(),
        }
    }

    fn built(spec: &ServerTls, credentials: &Credentials) -> ServerConfigBuilt {
        build_server(spec, credentials, &new_ticketer().unwrap(), now()).unwrap()
    }

    /// A gateway with a certificate of its authority, and clients of another one.
    struct Door {
        authority: Authority,
        clients: Authority,
        own: Issued,
        /// Certificates of more authorities of clients.
        more: String,
        crl: Option<String>,
        spec: ServerTls,
    }

    impl Door {
        fn new(client_auth: ClientAuth) -> Self {
            let authority = Authority::new("gateway's CA");
            Self {
                own: authority.issue(&Leaf::named(&[HOST])),
                authority,
                clients: Authority::new("clients' CA"),
                more: String::new(),
                crl: None,
                spec: ServerTls {
                    client_auth,
                    ca: Some(CaSource::Credential(credential("door"))),
                    ..simple(&["door"])
                },
            }
        }

        fn config(&self) -> Arc<ServerConfig> {
            let ca = self.clients.pem() + &self.more;
            let mut authorities = vec![("ca.crt", ca.as_str())];
            authorities.extend(self.crl.as_deref().map(|crl| ("ca.crl", crl)));
            let found = credentials(&[("door", &self.own.entries()), ("door-cacert", &authorities)]);
            built(&self.spec, &found).config
        }

        fn visitor(&self) -> Visitor {
            Visitor::of(&self.authority)
        }

        fn meet(&self, client: &Issued) -> Outcome {
            handshake(&self.config(), &self.visitor().with_key(client).config())
        }

        /// What the server objects to and the alert, which are the same in both versions.
        #[track_caller]
        fn refuses(&self, client: Option<&Issued>) -> (HandshakeFailure, AlertDescription) {
            let config = self.config();
            let refused = [&TLS12, &TLS13].map(|version| {
                let mut visitor = self.visitor().version(version);
                visitor.key = client.cloned();
                let (error, alert) = handshake(&config, &visitor.config()).refused_by_server();
                (classify(&error), alert)
            });
            assert_eq!(refused[0], refused[1]);
            refused[1]
        }
    }

    #[test]
    fn simple_serves_its_chain_with_post_quantum_keys_and_asks_clients_nothing() {
        let authority = Authority::new("root");
        let chain = authority
            .intermediate("intermediate", 1)
            .issue(&Leaf::named(&[HOST]));
        let server = built(&simple(&["door"]), &credentials(&[("door", &chain.entries())]));
        assert!(server.warnings.is_empty() && server.authorities.is_empty());
        assert_eq!(server.certificates[0].names, [HOST]);

        let outcome = handshake(&server.config, &Visitor::of(&authority).config()).accepted();
        assert_eq!(outcome.client.peer_certificates().unwrap().len(), 2);
        assert!(outcome.server.peer_certificates().is_none());
        let group = outcome.server.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
        assert!(!outcome.resumed());
    }

    #[test]
    fn of_two_keys_clients_get_ecdsa_if_they_can_and_rsa_if_not() {
        let authority = Authority::new("root");
        let rsa = authority.issue(&Leaf::named(&[HOST]).kind(Kind::Rsa));
        let ecdsa = authority.issue(&Leaf::named(&[HOST]));
        let found = credentials(&[("rsa", &rsa.entries()), ("ecdsa", &ecdsa.entries())]);
        let server = built(&simple(&["rsa", "ecdsa"]), &found);
        let served = |visitor: Visitor| {
            let outcome = handshake(&server.config, &visitor.config()).accepted();
            outcome.client.peer_certificates().unwrap()[0].clone()
        };

        assert_eq!(served(Visitor::of(&authority)), ecdsa.leaf);
        assert_eq!(served(Visitor::of(&authority).version(&TLS12)), ecdsa.leaf);

        let mut old = Visitor::of(&authority).version(&TLS12);
        old.provider.cipher_suites = vec![cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
        assert_eq!(served(old), rsa.leaf);
    }

    #[test]
    fn of_two_keys_tls_1_3_clients_without_ecdsa_get_rsa() {
        let rsa_authority = Authority::new("root");
        let rsa = rsa_authority.issue(&Leaf::named(&[HOST]).kind(Kind::Rsa));
        let ecdsa = rsa_authority.issue(&Leaf::named(&[HOST]));
        let found = credentials(&[("rsa", &rsa.entries()), ("ecdsa", &ecdsa.entries())]);
        let server = built(&simple(&["ecdsa", "rsa"]), &found);
        let mut visitor = Visitor::of(&rsa_authority).version(&TLS13);
        let algorithms = &mut visitor.provider.signature_verification_algorithms;
        let schemes: Vec<_> = algorithms
            .mapping
            .iter()
            .copied()
            .filter(|(scheme, _)| format!("{scheme:?}").starts_with("RSA"))
            .collect();
        algorithms.mapping = Box::leak(schemes.into_boxed_slice());
        let outcome = handshake(&server.config, &visitor.config()).accepted();
        assert_eq!(outcome.client.peer_certificates().unwrap()[0], rsa.leaf);
    }

    #[test]
    fn an_rsa_suite_list_makes_a_tls_1_2_client_get_the_rsa_key() {
        let authority = Authority::new("root");
        let rsa = authority.issue(&Leaf::named(&[HOST]).kind(Kind::Rsa));
        let ecdsa = authority.issue(&Leaf::named(&[HOST]));
        let found = credentials(&[("rsa", &rsa.entries()), ("ecdsa", &ecdsa.entries())]);
        let mut spec = simple(&["rsa", "ecdsa"]);
        spec.parameters.max = TlsVersion::V1_2;
        spec.parameters.cipher_suites = vec!["ECDHE-RSA-AES256-GCM-SHA384".into()];
        // The client offers the suites of TLS 1.3, too.
        let outcome = handshake(&built(&spec, &found).config, &Visitor::of(&authority).config()).accepted();
        assert_eq!(outcome.client.peer_certificates().unwrap()[0], rsa.leaf);
    }

    #[test]
    fn an_ed25519_key_serves() {
        let authority = Authority::new("root");
        let own = authority.issue(&Leaf::named(&[HOST]).kind(Kind::Ed25519));
        let server = built(&simple(&["door"]), &credentials(&[("door", &own.entries())]));
        handshake(&server.config, &Visitor::of(&authority).config()).accepted();
    }

    #[test]
    fn versions_are_those_between_min_and_max() {
        let mut door = Door::new(ClientAuth::None);
        for (min, max, version, accepted) in [
            (TlsVersion::V1_2, TlsVersion::V1_3, &TLS12, true),
            (TlsVersion::V1_2, TlsVersion::V1_3, &TLS13, true),
            (TlsVersion::V1_2, TlsVersion::V1_2, &TLS12, true),
            (TlsVersion::V1_2, TlsVersion::V1_2, &TLS13, false),
            (TlsVersion::V1_3, TlsVersion::V1_3, &TLS12, false),
            (TlsVersion::V1_3, TlsVersion::V1_3, &TLS13, true),
        ] {
            (door.spec.parameters.min, door.spec.parameters.max) = (min, max);
            let outcome = handshake(&door.config(), &door.visitor().version(version).config());
            if accepted {
                let outcome = outcome.accepted();
                assert_eq!(outcome.server.protocol_version(), Some(version.version));
            } else {
                let (error, alert) = outcome.refused_by_server();
                assert_eq!(classify(&error), HandshakeFailure::NoSharedParameters);
                assert_eq!(alert, AlertDescription::ProtocolVersion);
            }
        }
    }

    #[test]
    fn cipher_suites_are_taken_in_the_order_of_the_list() {
        let mut door = Door::new(ClientAuth::None);
        door.spec.parameters.cipher_suites = vec![
            "ECDHE-ECDSA-CHACHA20-POLY1305".into(),
            "ECDHE-ECDSA-AES128-GCM-SHA256".into(),
            "TLS_AES_128_GCM_SHA256".into(),
        ];
        let config = door.config();
        let outcome = handshake(&config, &door.visitor().version(&TLS12).config()).accepted();
        assert_eq!(
            outcome.server.negotiated_cipher_suite().unwrap().suite(),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        );
        let mut other = door.visitor().version(&TLS12);
        other.provider.cipher_suites = vec![cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384];
        let (error, alert) = handshake(&config, &other.config()).refused_by_server();
        assert_eq!(classify(&error), HandshakeFailure::NoSharedParameters);
        assert_eq!(alert, AlertDescription::HandshakeFailure);
        // The suites of TLS 1.3 are not subject to it.
        handshake(&config, &door.visitor().version(&TLS13).config()).accepted();
    }

    #[test]
    fn suites_and_curves_that_are_unknown_are_warned_of_and_the_defaults_stand_in_for_none() {
        let mut parameters = Parameters {
            cipher_suites: vec!["AES128-GCM-SHA256".into(), "ECDHE-RSA-AES128-GCM-SHA256".into()],
            curves: vec![
                "P-521".into(),
                "secp384r1".into(),
                "prime256v1".into(),
                "P-256".into(),
            ],
            ..Parameters::default()
        };
        let mut warnings = Vec::new();
        let chosen = provider(&parameters, &mut warnings);
        assert_eq!(chosen.cipher_suites.len(), 4);
        let names: Vec<_> = chosen.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(names, [NamedGroup::secp384r1, NamedGroup::secp256r1]);
        assert_eq!(
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "cipher suite AES128-GCM-SHA256 is not offered: only ECDHE with AES-GCM or ChaCha20-Poly1305 is",
                "curve P-521 is not offered: X25519MLKEM768, X25519, P-256 and P-384 are",
            ]
        );

        warnings.clear();
        parameters.cipher_suites.truncate(1);
        parameters.curves = vec!["X25519MLKEM768".into()];
        parameters.max = TlsVersion::V1_2;
        let chosen = provider(&parameters, &mut warnings);
        assert_eq!(chosen.cipher_suites.len(), 6);
        assert_eq!(chosen.kx_groups.len(), 4);
        assert_eq!(
            warnings[1..],
            [
                MaterialWarning::DefaultCipherSuites,
                MaterialWarning::DefaultCurves
            ]
        );
    }

    #[test]
    fn only_listed_curves_are_negotiated() {
        let mut door = Door::new(ClientAuth::None);
        door.spec.parameters.curves = vec!["P-384".into(), "X25519".into()];
        for version in [&TLS12, &TLS13] {
            let outcome = handshake(&door.config(), &door.visitor().version(version).config()).accepted();
            let group = outcome.server.negotiated_key_exchange_group().unwrap().name();
            assert!([NamedGroup::secp384r1, NamedGroup::X25519].contains(&group));
        }
        let mut other = door.visitor();
        other.provider.kx_groups = vec![kx_group::SECP256R1];
        let (error, _) = handshake(&door.config(), &other.config()).refused_by_server();
        assert_eq!(classify(&error), HandshakeFailure::NoSharedParameters);
    }

    #[test]
    fn alpn_is_negotiated_in_the_order_of_the_server() {
        let mut door = Door::new(ClientAuth::None);
        door.spec.alpn = vec!["h2".into(), "http/1.1".into()];
        let mut visitor = door.visitor();
        visitor.alpn = vec!["http/1.1", "h2"];
        let outcome = handshake(&door.config(), &visitor.config()).accepted();
        assert_eq!(outcome.server.alpn_protocol(), Some(b"h2".as_slice()));
        let outcome = handshake(&door.config(), &door.visitor().config()).accepted();
        assert_eq!(outcome.server.alpn_protocol(), None);
    }

    #[test]
    fn sessions_resume_at_another_configuration_with_the_same_ticketer_only() {
        let door = Door::new(ClientAuth::None);
        let found = credentials(&[("door", &door.own.entries())]);
        let ticketer = new_ticketer().unwrap();
        let build = |ticketer| {
            build_server(&simple(&["door"]), &found, ticketer, now())
                .unwrap()
                .config
        };
        let (before, after) = (build(&ticketer), build(&ticketer));
        let stranger = build(&new_ticketer().unwrap());
        for version in [&TLS12, &TLS13] {
            let client = door.visitor().version(version).config();
            let first = handshake(&before, &client).accepted();
            if version == &TLS13 {
                assert_eq!(first.client.tls13_tickets_received(), 2);
            }
            assert!(!first.resumed());
            assert!(handshake(&after, &client).accepted().resumed());
            assert!(!handshake(&stranger, &client).accepted().resumed());
        }
    }

    #[test]
    fn servers_that_ask_for_certificates_issue_no_tickets_and_take_none() {
        let mut door = Door::new(ClientAuth::Optional);
        let issued = door.clients.issue(&Leaf::named(&["client"]));
        for version in [&TLS12, &TLS13] {
            let client = door.visitor().version(version).with_key(&issued).config();
            let config = door.config();
            for _ in 0..2 {
                let outcome = handshake(&config, &client).accepted();
                assert!(!outcome.resumed());
                assert_eq!(outcome.client.tls13_tickets_received(), 0);
            }
        }
        // A ticket of a server that asks nothing is not a way around one that does.
        let ticketer = new_ticketer().unwrap();
        let ca = door.clients.pem();
        let found = credentials(&[("door", &door.own.entries()), ("door-cacert", &[("cacert", &ca)])]);
        let open = build_server(&simple(&["door"]), &found, &ticketer, now())
            .unwrap()
            .config;
        door.spec.client_auth = ClientAuth::Required;
        let closed = build_server(&door.spec, &found, &ticketer, now()).unwrap().config;
        for version in [&TLS12, &TLS13] {
            let client = door.visitor().version(version).config();
            handshake(&open, &client).accepted();
            assert!(handshake(&open, &client).accepted().resumed());
            let (error, _) = handshake(&closed, &client).refused_by_server();
            assert_eq!(classify(&error), HandshakeFailure::NoCertificate);
        }
    }

    #[test]
    fn mutual_takes_certificates_of_its_authority_and_no_others() {
        let door = Door::new(ClientAuth::Required);
        let client = door.clients.issue(&Leaf::named(&["client"]).kind(Kind::Rsa));
        let outcome = door.meet(&client).accepted();
        assert_eq!(outcome.server.peer_certificates().unwrap()[0], client.leaf);

        assert_eq!(
            door.refuses(Some(&Authority::new("stranger").issue(&Leaf::named(&["client"])))),
            (HandshakeFailure::UnknownCa, AlertDescription::UnknownCA)
        );
        // The same name and another key: the signature is wrong, whoever made it.
        assert_eq!(
            door.refuses(Some(
                &Authority::new("clients' CA").issue(&Leaf::named(&["client"]))
            ))
            .0,
            HandshakeFailure::BadCertificate,
        );
        for years in [(2000, 2001), (3000, 3001)] {
            let client = Leaf::named(&["client"]).years(years.0, years.1);
            assert_eq!(
                door.refuses(Some(&door.clients.issue(&client))),
                (HandshakeFailure::Expired, AlertDescription::CertificateExpired)
            );
        }
    }

    #[test]
    fn while_an_authority_changes_its_key_both_are_good() {
        let mut door = Door::new(ClientAuth::Required);
        let next = Authority::new("clients' CA");
        door.more = next.pem();
        for authority in [&door.clients, &next] {
            door.meet(&authority.issue(&Leaf::named(&["client"]))).accepted();
        }
    }

    #[test]
    fn mutual_asks_for_a_certificate_that_optional_can_do_without() {
        assert_eq!(
            Door::new(ClientAuth::Required).refuses(None),
            (
                HandshakeFailure::NoCertificate,
                AlertDescription::CertificateRequired
            )
        );
        let door = Door::new(ClientAuth::Optional);
        handshake(&door.config(), &door.visitor().config()).accepted();
        door.meet(&door.clients.issue(&Leaf::named(&["client"])))
            .accepted();
        assert_eq!(
            door.refuses(Some(&Authority::new("stranger").issue(&Leaf::named(&["client"]))))
                .0,
            HandshakeFailure::UnknownCa
        );
    }

    #[test]
    fn revoked_certificates_are_refused_and_so_are_those_without_a_list_in_date() {
        let mut door = Door::new(ClientAuth::Required);
        door.crl = Some(door.clients.revoke(&[13]));
        door.meet(&door.clients.issue(&Leaf::named(&["client"])))
            .accepted();
        let revoked = door.clients.issue(&Leaf::named(&["client"]).serial(13));
        assert_eq!(
            door.refuses(Some(&revoked)),
            (HandshakeFailure::Revoked, AlertDescription::CertificateRevoked)
        );
        door.crl = Some(door.clients.revoke_until(&[13], 2021));
        assert_eq!(
            door.refuses(Some(&door.clients.issue(&Leaf::named(&["client"])))),
            (HandshakeFailure::RevocationUnknown, AlertDescription::UnknownCA)
        );
        door.crl = Some(Authority::new("another").revoke(&[]));
        assert_eq!(
            door.refuses(Some(&door.clients.issue(&Leaf::named(&["client"]))))
                .0,
            HandshakeFailure::RevocationUnknown
        );
    }

    #[test]
    fn intermediates_are_looked_up_in_the_lists_that_there_are() {
        let mut door = Door::new(ClientAuth::Required);
        let intermediate = door.clients.intermediate("department", 21);
        let client = intermediate.issue(&Leaf::named(&["client"]));
        door.crl = Some(intermediate.revoke(&[]));
        door.meet(&client).accepted();
        door.crl = Some(intermediate.revoke(&[]) + &door.clients.revoke(&[21]));
        assert_eq!(door.refuses(Some(&client)).0, HandshakeFailure::Revoked);
        door.crl = Some(door.clients.revoke(&[]));
        assert_eq!(door.refuses(Some(&client)).0, HandshakeFailure::RevocationUnknown);
    }

    #[test]
    fn a_listed_name_must_be_among_those_of_the_certificate() {
        let mut door = Door::new(ClientAuth::Required);
        let wanted = [
            "a.example",
            "spiffe://x/ns/a/sa/b",
            "10.0.0.1",
            "::1",
            "me@example.com",
        ];
        door.spec.subject_alt_names = wanted.map(Into::into).to_vec();
        for name in [
            "A.example",
            "spiffe://x/ns/a/sa/b",
            "10.0.0.1",
            "::1",
            "me@example.com",
        ] {
            door.meet(&door.clients.issue(&Leaf::named(&["other", name])))
                .accepted();
        }
        for name in [
            "b.example",
            "*.example",
            "spiffe://x/ns/a/sa/B",
            "spiffe://x/ns/a/sa/b/c",
            "10.0.0.2",
        ] {
            assert_eq!(
                door.refuses(Some(&door.clients.issue(&Leaf::named(&[name])))),
                (HandshakeFailure::NotAllowed, AlertDescription::AccessDenied)
            );
        }
        assert_eq!(
            door.refuses(Some(&door.clients.issue(&Leaf::named(&[])))).0,
            HandshakeFailure::NotAllowed
        );
        // A good name does not stand in for the authority.
        let stranger = Authority::new("stranger").issue(&Leaf::named(&["a.example"]));
        assert_eq!(door.refuses(Some(&stranger)).0, HandshakeFailure::UnknownCa);
    }

    #[test]
    fn either_pin_is_enough_and_neither_replaces_the_authority() {
        let mut door = Door::new(ClientAuth::Required);
        let [by_hash, by_key, other] =
            [1, 2, 3].map(|serial| door.clients.issue(&Leaf::named(&["client"]).serial(serial)));
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(by_key.spki.as_bytes()).unwrap();
        door.spec.hashes = vec![sha256(&by_hash.leaf)];
        door.spec.spki = vec![sha256(&spki)];
        door.meet(&by_hash).accepted();
        door.meet(&by_key).accepted();
        assert_eq!(
            door.refuses(Some(&other)),
            (HandshakeFailure::NotAllowed, AlertDescription::AccessDenied)
        );
        let stranger = Authority::new("stranger").issue(&Leaf::named(&["client"]));
        door.spec.hashes = vec![sha256(&stranger.leaf)];
        assert_eq!(door.refuses(Some(&stranger)).0, HandshakeFailure::UnknownCa);
    }

    #[test]
    fn skip_verify_takes_every_certificate_of_which_the_client_has_the_key() {
        let mut door = Door::new(ClientAuth::Required);
        door.spec.skip_verify = true;
        door.spec.ca = None;
        let stranger = Authority::new("stranger").issue(&Leaf::named(&["client"]).years(2000, 2001));
        for version in [&TLS12, &TLS13] {
            let visitor = door.visitor().version(version).with_key(&stranger);
            let outcome = handshake(&door.config(), &visitor.config()).accepted();
            assert_eq!(outcome.server.peer_certificates().unwrap()[0], stranger.leaf);
        }
        assert_eq!(door.refuses(None).0, HandshakeFailure::NoCertificate);

        let mut thief = stranger;
        thief.key = Authority::new("thief").issue(&Leaf::named(&["client"])).key;
        let mut config = ClientConfig::clone(&door.visitor().config());
        config.client_auth_cert_resolver = Arc::new(stolen(&thief));
        let (error, _) = handshake(&door.config(), &Arc::new(config)).refused_by_server();
        assert_eq!(classify(&error), HandshakeFailure::BadCertificate);
    }

    /// A chain with a key that is not its own.
    fn stolen(thief: &Issued) -> rustls::sign::SingleCertAndKey {
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(thief.key.as_bytes()).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
        CertifiedKey::new(vec![thief.leaf.clone()], key).into()
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let spec = ServerTls {
            client_auth: ClientAuth::Required,
            ca: Some(CaSource::File("/nowhere/ca.pem".into())),
            keys: vec![
                key_of("door"),
                KeySource::Files {
                    certificate: "/nowhere/tls.crt".into(),
                    key: "/nowhere/tls.key".into(),
                },
            ],
            ..simple(&[])
        };
        let build = |spec: &ServerTls| {
            let errors = build_server(spec, &credentials(&[]), &new_ticketer().unwrap(), now()).unwrap_err();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            build(&spec),
            [
                "no credential prod/door: looked for Secret prod/door",
                "/nowhere/tls.crt: no such file",
                "/nowhere/ca.pem: no such file",
            ]
        );
        let empty = ServerTls {
            client_auth: ClientAuth::Optional,
            ..simple(&[])
        };
        assert_eq!(
            build(&empty),
            [
                "a server that terminates TLS needs a certificate and a key",
                "clients' certificates are asked for, but no authority that signs them is named",
            ]
        );
    }
}
