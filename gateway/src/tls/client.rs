//! How connections to upstreams are secured.

use super::fault::{MaterialError, MaterialWarning};
use super::material::{CertificateInfo, Credentials};
use super::verify::ServerPolicy;
use isthmus_core::tls::ClientTls;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::sign::SingleCertAndKey;
use std::sync::Arc;
use std::time::SystemTime;

/// A configuration, and what to tell operators about it.
#[derive(Debug, Clone)]
pub struct ClientConfigBuilt {
    /// For connections. The name to ask for is given with each of them.
    pub config: Arc<ClientConfig>,
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
    let mut config = match &key {
        None => builder.with_no_client_auth(),
        Some(loaded) => {
            let key = Arc::clone(&loaded.key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    config.alpn_protocols = spec.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
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
        config: Arc::new(config),
        certificate,
        authorities: authorities.unwrap_or_default(),
        warnings,
    })
}
