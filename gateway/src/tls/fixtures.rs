//! Certificates and handshakes for tests: a small authority, a client of any abilities, and bytes pumped between the
//! two ends of a connection that has no socket.

use super::material::Credentials;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{self, KeySize};
use isthmus_core::tls::{CredentialName, KeySource};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, RootCertStore, ServerConfig,
    ServerConnection, SupportedProtocolVersion,
};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// The name that clients ask for.
pub(super) const HOST: &str = "www.shop.example";

/// 2026-01-01: certificates are issued around it; verifiers use the real time.
pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

/// Who signs.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What a leaf's chain needs behind it.
    above: String,
}

impl Authority {
    /// A root.
    pub(super) fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap();
        let above = String::new();
        Self { issuer, above }
    }

    /// One that this one has signed.
    pub(super) fn intermediate(&self, name: &str, serial: u64) -> Self {
        let mut params = ca_params(name);
        params.serial_number = Some(serial.into());
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let above = issuer.pem() + &self.above;
        Self { issuer, above }
    }

    /// Its certificate.
    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate and its key.
    pub(super) fn issue(&self, leaf: &Leaf) -> Issued {
        let key = leaf.kind.key();
        let certificate = leaf.params().signed_by(&key, &self.issuer).unwrap();
        Issued {
            chain: certificate.pem() + &self.above,
            key: key.serialize_pem(),
            key_der: key.serialize_der(),
            spki: key.public_key_pem(),
            leaf: certificate.der().clone(),
        }
    }

    /// A list of what it has revoked.
    pub(super) fn revoke(&self, serials: &[u64]) -> String {
        self.revoke_until(serials, 4000)
    }

    /// A list that holds until the beginning of a year.
    pub(super) fn revoke_until(&self, serials: &[u64], year: i32) -> String {
        CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: (*serial).into(),
                    revocation_time: date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .unwrap()
        .pem()
        .unwrap()
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A kind of key.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Ecdsa,
    Ed25519,
    Rsa,
}

impl Kind {
    pub(super) fn key(self) -> KeyPair {
        /// Making one takes a good part of a second.
        static RSA: OnceLock<Vec<u8>> = OnceLock::new();
        match self {
            Self::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
            Self::Ed25519 => KeyPair::generate_for(&PKCS_ED25519).unwrap(),
            Self::Rsa => {
                let der = RSA.get_or_init(|| {
                    let key = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
                    AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap().as_ref().to_vec()
                });
                KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &PKCS_RSA_SHA256).unwrap()
            }
        }
    }
}

/// What a certificate shall say.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) names: Vec<SanType>,
    pub(super) kind: Kind,
    pub(super) serial: u64,
    /// The years of its validity.
    pub(super) years: (i32, i32),
    pub(super) subject: Vec<(DnType, String)>,
    pub(super) is_ca: bool,
}

impl Leaf {
    /// One with alternative names: URIs have `://`, mail has `@`.
    pub(super) fn named(names: &[&str]) -> Self {
        let names = names.iter().map(|name| {
            if name.contains("://") {
                SanType::URI((*name).try_into().unwrap())
            } else if name.contains('@') {
                SanType::Rfc822Name((*name).try_into().unwrap())
            } else if let Ok(address) = name.parse() {
                SanType::IpAddress(address)
            } else {
                SanType::DnsName((*name).try_into().unwrap())
            }
        });
        Self {
            names: names.collect(),
            kind: Kind::Ecdsa,
            serial: 7,
            years: (2020, 4000),
            subject: vec![(DnType::CommonName, "leaf".to_owned())],
            is_ca: false,
        }
    }

    /// An authority's.
    pub(super) fn ca(self) -> Self {
        Self { is_ca: true, ..self }
    }

    pub(super) fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    pub(super) fn serial(self, serial: u64) -> Self {
        Self { serial, ..self }
    }

    pub(super) fn years(self, from: i32, until: i32) -> Self {
        let years = (from, until);
        Self { years, ..self }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = self.names.clone();
        params.serial_number = Some(self.serial.into());
        if self.is_ca {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        params.not_before = date_time_ymd(self.years.0, 1, 1);
        params.not_after = date_time_ymd(self.years.1, 1, 1);
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in &self.subject {
            params.distinguished_name.push(kind.clone(), value);
        }
        params
    }
}

/// A certificate and its key.
#[derive(Clone)]
pub(super) struct Issued {
    /// PEM, leaf first.
    pub(super) chain: String,
    /// PEM, PKCS#8.
    pub(super) key: String,
    /// PKCS#8.
    pub(super) key_der: Vec<u8>,
    /// PEM of the public key.
    pub(super) spki: String,
    pub(super) leaf: CertificateDer<'static>,
}

impl Issued {
    /// The entries of a Secret of type `kubernetes.io/tls`.
    pub(super) fn entries(&self) -> [(&'static str, &str); 2] {
        [("tls.crt", &self.chain), ("tls.key", &self.key)]
    }
}

/// Secrets of the namespace `prod`.
pub(super) fn credentials(secrets: &[(&str, &[(&str, &str)])]) -> Credentials {
    let secrets = secrets.iter().map(|(name, entries)| {
        let entries = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        (credential(name), entries.collect::<BTreeMap<_, _>>())
    });
    Credentials::new(secrets.collect(), None)
}

/// The name of one of them.
pub(super) fn credential(name: &str) -> CredentialName {
    CredentialName {
        namespace: "prod".into(),
        name: name.into(),
    }
}

/// The key of one of them.
pub(super) fn key_of(name: &str) -> KeySource {
    KeySource::Credential(credential(name))
}

/// A client that the library alone makes: none of this room's code takes part.
pub(super) struct Visitor {
    pub(super) provider: CryptoProvider,
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    pub(super) roots: RootCertStore,
    pub(super) key: Option<Issued>,
    pub(super) alpn: Vec<&'static str>,
}

impl Visitor {
    /// One that trusts an authority.
    pub(super) fn of(authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.issuer.der().clone()).unwrap();
        Self {
            provider: provider::default_provider(),
            versions: rustls::ALL_VERSIONS.to_vec(),
            roots,
            key: None,
            alpn: Vec::new(),
        }
    }

    /// One that presents a certificate.
    pub(super) fn with_key(self, issued: &Issued) -> Self {
        let key = Some(issued.clone());
        Self { key, ..self }
    }

    /// One that speaks a single version.
    pub(super) fn version(self, version: &'static SupportedProtocolVersion) -> Self {
        let versions = vec![version];
        Self { versions, ..self }
    }

    pub(super) fn config(self) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(self.provider))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(self.roots);
        let mut config = match &self.key {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(chain.collect::<Result<_, _>>().unwrap(), key)
                    .unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Both ends after a handshake, and the error of each if it had one.
pub(super) struct Outcome {
    pub(super) server: ServerConnection,
    pub(super) client: ClientConnection,
    pub(super) server_error: Option<Error>,
    pub(super) client_error: Option<Error>,
}

impl Outcome {
    /// Panics unless both ends are content.
    #[track_caller]
    pub(super) fn accepted(self) -> Self {
        assert_eq!((&self.server_error, &self.client_error), (&None, &None));
        assert!(!self.server.is_handshaking() && !self.client.is_handshaking());
        self
    }

    /// The server's objection, and the alert that the client got for it.
    #[track_caller]
    pub(super) fn refused_by_server(self) -> (Error, AlertDescription) {
        match (self.server_error, self.client_error) {
            (Some(error), Some(Error::AlertReceived(alert))) => (error, alert),
            other => panic!("not refused by the server: {other:?}"),
        }
    }

    /// The client's objection.
    #[track_caller]
    pub(super) fn refused_by_client(self) -> Error {
        assert!(matches!(self.server_error, None | Some(Error::AlertReceived(_))));
        self.client_error.expect("an objection of the client")
    }

    pub(super) fn resumed(&self) -> bool {
        self.server.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// Connects a client that asks for [`HOST`], and pumps bytes until neither end has more to say.
pub(super) fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Outcome {
    let name = ServerName::try_from(HOST).unwrap();
    let mut outcome = Outcome {
        server: ServerConnection::new(Arc::clone(server)).unwrap(),
        client: ClientConnection::new(Arc::clone(client), name).unwrap(),
        server_error: None,
        client_error: None,
    };
    // A word of each side after the handshake: a client of TLS 1.3 learns of a refusal only behind its own Finished.
    outcome.client.writer().write_all(b"ping").unwrap();
    outcome.server.writer().write_all(b"pong").unwrap();
    loop {
        let mut bytes = Vec::new();
        while outcome.client.wants_write() {
            outcome.client.write_tls(&mut bytes).unwrap();
        }
        let mut idle = bytes.is_empty();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && outcome.server_error.is_none() {
            outcome.server.read_tls(&mut rest).unwrap();
            outcome.server_error = outcome.server.process_new_packets().err();
            drain(outcome.server.reader());
        }
        bytes.clear();
        while outcome.server.wants_write() {
            outcome.server.write_tls(&mut bytes).unwrap();
        }
        idle &= bytes.is_empty();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && outcome.client_error.is_none() {
            outcome.client.read_tls(&mut rest).unwrap();
            outcome.client_error = outcome.client.process_new_packets().err();
            drain(outcome.client.reader());
        }
        if idle {
            return outcome;
        }
    }
}

fn drain(mut reader: rustls::Reader<'_>) {
    let mut bytes = [0; 64];
    while reader.read(&mut bytes).is_ok_and(|read| read > 0) {}
}
