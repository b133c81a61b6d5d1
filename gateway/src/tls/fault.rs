//! What is wrong with key material, in words that say which file or credential to look at.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Why a configuration of TLS cannot be built. The operator's fault, always; no client has a part in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MaterialError {
    /// A file is not there.
    #[error("{path}: no such file")]
    Absent {
        /// The file.
        path: String,
    },
    /// A file is there and cannot be read.
    #[error("{path}: {cause}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        cause: String,
    },
    /// A file is larger than any that makes sense.
    #[error("{path}: larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: String,
        /// What it may have.
        limit: u64,
    },
    /// Neither a Secret nor a folder has the name.
    #[error("no credential {name}: looked for {looked}")]
    NotFound {
        /// The name, with its namespace.
        name: String,
        /// The Secrets and folders that would have been taken.
        looked: String,
    },
    /// A credential lacks a key, or the key is empty.
    #[error("{place} has no {what}{}", keys_found(found))]
    Missing {
        /// The Secret or folder.
        place: String,
        /// The key that it should have.
        what: String,
        /// The keys that it has.
        found: String,
    },
    /// PEM without a certificate.
    #[error("{place}: no certificate in it")]
    NoCertificate {
        /// The file or key.
        place: String,
    },
    /// PEM without a revocation list.
    #[error("{place}: no revocation list in it")]
    NoRevocationList {
        /// The file or key.
        place: String,
    },
    /// PEM without a private key.
    #[error("{place}: no private key in it")]
    NoPrivateKey {
        /// The file or key.
        place: String,
    },
    /// The private key needs a passphrase, and nobody is there to type one.
    #[error("{place}: the private key is encrypted; store it without a passphrase")]
    EncryptedKey {
        /// The file or key.
        place: String,
    },
    /// No PEM at all, or damaged.
    #[error("{place}: not PEM: {cause}")]
    NotPem {
        /// The file or key.
        place: String,
        /// What is wrong with it.
        cause: String,
    },
    /// PEM whose content is no certificate.
    #[error("{place}: certificate {number} is not X.509: {cause}")]
    NotX509 {
        /// The file or key.
        place: String,
        /// Which certificate of it, from 1.
        number: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// A revocation list that is none, or of a kind that cannot be used.
    #[error("{place}: revocation list {number} cannot be used: {cause}")]
    BadRevocationList {
        /// The file or key.
        place: String,
        /// Which list of it, from 1.
        number: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// A private key that nothing can sign with.
    #[error(
        "{place}: the private key is none of RSA with 2048 to 8192 bits, ECDSA P-256, P-384, P-521 and Ed25519"
    )]
    UnsupportedKey {
        /// The file or key.
        place: String,
    },
    /// The key belongs to another certificate.
    #[error("{key}: not the key of the first certificate of {certificate}")]
    KeyMismatch {
        /// Where the chain is.
        certificate: String,
        /// Where the key is.
        key: String,
    },
    /// The operating system has no roots.
    #[error("no root certificates of the system found{}", cause_text(cause))]
    NoSystemRoots {
        /// What went wrong with those that were tried.
        cause: String,
    },
    /// A server without a certificate.
    #[error("a server that terminates TLS needs a certificate and a key")]
    NoKey,
    /// Certificates of clients are asked for, and nobody is trusted to sign them.
    #[error("clients' certificates are asked for, but no authority that signs them is named")]
    NoAuthority,
    /// The TLS library refuses what was built.
    #[error("TLS configuration: {0}")]
    Refused(String),
}

impl MaterialError {
    /// The file or credential to look at first, where it is one.
    pub fn place(&self) -> Option<&str> {
        match self {
            Self::Absent { path } | Self::Unreadable { path, .. } | Self::TooLarge { path, .. } => Some(path),
            Self::Missing { place, .. }
            | Self::NoCertificate { place }
            | Self::NoRevocationList { place }
            | Self::NoPrivateKey { place }
            | Self::EncryptedKey { place }
            | Self::NotPem { place, .. }
            | Self::NotX509 { place, .. }
            | Self::BadRevocationList { place, .. }
            | Self::UnsupportedKey { place }
            | Self::KeyMismatch { key: place, .. } => Some(place),
            Self::NotFound { .. }
            | Self::NoSystemRoots { .. }
            | Self::NoKey
            | Self::NoAuthority
            | Self::Refused(_) => None,
        }
    }
}

/// What is served nonetheless, and deserves the operator's eye.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MaterialWarning {
    /// A certificate is no longer valid.
    #[error("{place}: the certificate of {subject} expired at {}", date(*since))]
    Expired {
        /// The file or key.
        place: String,
        /// Whose it is.
        subject: String,
        /// The end of its validity.
        since: SystemTime,
    },
    /// A certificate is not valid yet.
    #[error("{place}: the certificate of {subject} is not valid before {}", date(*from))]
    NotYetValid {
        /// The file or key.
        place: String,
        /// Whose it is.
        subject: String,
        /// The beginning of its validity.
        from: SystemTime,
    },
    /// A certificate of X.509 version 1, which has no extensions and so no names.
    #[error(
        "{place}: a certificate of X.509 version 1; many peers, this gateway among them, refuse such ones"
    )]
    FirstVersion {
        /// The file or key.
        place: String,
    },
    /// A revocation list is out of date. Certificates of its issuer are refused, as Envoy does.
    #[error("{place}: the revocation list expired at {}; certificates of its issuer are refused", date(*since))]
    RevocationListExpired {
        /// The file or key.
        place: String,
        /// When there should have been a next one.
        since: SystemTime,
    },
    /// A staple is not what it should be.
    #[error("{place}: not an OCSP response in DER; served without a staple")]
    StapleIgnored {
        /// The file or key.
        place: String,
    },
    /// A cipher suite that this gateway has not.
    #[error("cipher suite {name} is not offered: only ECDHE with AES-GCM or ChaCha20-Poly1305 is")]
    CipherSuite {
        /// As it was written.
        name: String,
    },
    /// None of the cipher suites that were asked for is left.
    #[error("none of the cipher suites can be offered; the default ones are")]
    DefaultCipherSuites,
    /// A key exchange group that this gateway has not.
    #[error("curve {name} is not offered: X25519MLKEM768, X25519, P-256 and P-384 are")]
    Curve {
        /// As it was written.
        name: String,
    },
    /// None of the groups that were asked for is left, or none can be used with the versions.
    #[error("none of the curves can be offered; the default ones are")]
    DefaultCurves,
}

fn keys_found(found: &str) -> String {
    if found.is_empty() {
        String::new()
    } else {
        format!("; it has {found}")
    }
}

fn cause_text(cause: &str) -> String {
    if cause.is_empty() {
        String::new()
    } else {
        format!(": {cause}")
    }
}

/// RFC 3339. The formatter panics outside of 1970 to 9999, and a certificate may say 1950.
fn date(time: SystemTime) -> String {
    /// 10000-01-01T00:00:00Z.
    const END: Duration = Duration::from_secs(253_402_300_800);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) if since < END => humantime::format_rfc3339_seconds(time).to_string(),
        Ok(_) => "a year after 9999".to_owned(),
        Err(_) => "a year before 1970".to_owned(),
    }
}
