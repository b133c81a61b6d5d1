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
