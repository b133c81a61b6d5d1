//! Test authorities and the certificates that they sign and revoke, as PEM files.

use crate::openssl;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

/// A certificate and its key in files.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// They last as long as this, also beyond their authority.
    _folder: Arc<TempDir>,
}

impl Leaf {
    /// The certificate as text.
    pub fn certificate_pem(&self) -> String {
        fs::read_to_string(&self.certificate).expect("a file")
    }

    /// The key as text.
    pub fn key_pem(&self) -> String {
        fs::read_to_string(&self.key).expect("a file")
    }

    /// The serial number in upper-case hexadecimal digits, as openssl reads it.
    pub fn serial(&self) -> String {
        let said = openssl::run(&["x509", "-noout", "-serial"], self.certificate_pem().as_bytes());
        let text = String::from_utf8(said).expect("text");
        text.trim()
            .strip_prefix("serial=")
            .expect("a serial number")
            .to_owned()
    }

    /// SHA-256 of the certificate, in lower-case hexadecimal digits.
    pub fn hash(&self) -> String {
        let der = openssl::run(&["x509", "-outform", "DER"], self.certificate_pem().as_bytes());
        let digest = openssl::run(&["dgst", "-sha256", "-binary"], &der);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// SHA-256 of the public key, in base64.
    pub fn spki_hash(&self) -> String {
        let key = openssl::run(&["x509", "-noout", "-pubkey"], self.certificate_pem().as_bytes());
        let der = openssl::run(&["pkey", "-pubin", "-outform", "DER"], &key);
        openssl::base64(&openssl::run(&["dgst", "-sha256", "-binary"], &der))
    }
}

/// What a certificate shall say.
#[derive(Debug, Clone)]
pub struct Wanted {
    names: Vec<String>,
    uris: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
    rsa: bool,
    expired: bool,
    serial: Option<u64>,
}

impl Wanted {
    /// A server's, with these names (DNS names or IP addresses); the first is its common name, too.
    pub fn server(names: &[&str]) -> Self {
        Self::new(names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's, with these names.
    pub fn client(names: &[&str]) -> Self {
        Self::new(names, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn new(names: &[&str], usage: ExtendedKeyUsagePurpose) -> Self {
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            uris: Vec::new(),
            usage,
            rsa: false,
            expired: false,
            serial: None,
        }
    }

    /// Adds a URI to its names.
    #[must_use]
    pub fn uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }

    /// With an RSA key instead of one of ECDSA.
    #[must_use]
    pub fn rsa(mut self) -> Self {
        self.rsa = true;
        self
    }

    /// Valid until some years ago.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }

    /// With this serial number.
    #[must_use]
    pub fn serial(mut self, serial: u64) -> Self {
        self.serial = Some(serial);
        self
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::new(self.names.clone()).expect("names of a certificate");
        let uris = self.uris.iter();
        params
            .subject_alt_names
            .extend(uris.map(|uri| SanType::URI(uri.as_str().try_into().expect("a URI"))));
        params
            .distinguished_name
            .push(DnType::CommonName, self.names[0].as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![self.usage.clone()];
        params.serial_number = self.serial.map(SerialNumber::from);
        if self.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        params
    }
}

/// A certificate authority with a folder of its own.
#[derive(Debug)]
pub struct Authority {
    folder: Arc<TempDir>,
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
    /// Files that were written, so that no two have one name.
    files: AtomicUsize,
}

impl Authority {
    /// Makes one.
    pub fn new() -> Self {
        Self::named("isthmus test authority")
    }

    /// Makes one with this common name. Verifiers tell two authorities with one name by their keys only.
    pub fn named(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let certificate = write(folder.path(), "ca.crt", &pem);
        Self {
            folder: Arc::new(folder),
            issuer: Issuer::new(params, key),
            certificate,
            files: AtomicUsize::new(0),
        }
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// The authority's certificate as text.
    pub fn certificate_pem(&self) -> String {
        fs::read_to_string(&self.certificate).expect("a file")
    }

    /// Signs a certificate for a server with these names (DNS names or IP addresses).
    pub fn server(&self, names: &[&str]) -> Leaf {
        self.issue(&Wanted::server(names))
    }

    /// Signs a certificate for a client with this name.
    pub fn client(&self, name: &str) -> Leaf {
        self.issue(&Wanted::client(&[name]))
    }

    /// Signs a certificate.
    pub fn issue(&self, wanted: &Wanted) -> Leaf {
        let key = if wanted.rsa {
            rsa_key()
        } else {
            KeyPair::generate().expect("a key")
        };
        let certificate = wanted
            .params()
            .signed_by(&key, &self.issuer)
            .expect("a certificate");
        let name = format!("{}-{}", wanted.names[0].replace('*', "any"), self.number());
        Leaf {
            certificate: write(self.folder.path(), &format!("{name}.crt"), &certificate.pem()),
            key: write(self.folder.path(), &format!("{name}.key"), &key.serialize_pem()),
            _folder: Arc::clone(&self.folder),
        }
    }

    /// A list of what it has revoked, as a file.
    pub fn revoke(&self, serials: &[u64]) -> PathBuf {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a revocation list");
        let name = format!("ca-{}.crl", self.number());
        write(self.folder.path(), &name, &list.pem().expect("PEM"))
    }

    fn number(&self) -> usize {
        self.files.fetch_add(1, Ordering::Relaxed)
    }
}

/// The RSA key of all certificates that have one: making one takes a good part of a second, and the library that signs
/// here cannot.
fn rsa_key() -> KeyPair {
    static PEM: OnceLock<String> = OnceLock::new();
    let pem = PEM.get_or_init(|| {
        let made = openssl::run(
            &[
                "genpkey",
                "-quiet",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:2048",
            ],
            b"",
        );
        String::from_utf8(made).expect("text")
    });
    KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_RSA_SHA256).expect("an RSA key")
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a credential's folder in a folder of credentials.
pub fn credential(folder: &Path, name: &str, values: &[(&str, &str)]) {
    let folder = folder.join(name);
    fs::create_dir(&folder).expect("a folder");
    for (key, value) in values {
        write(&folder, key, value);
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).expect("a file");
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn verify(authority: &Path, leaf: &Leaf, more: &[&str]) -> (bool, String) {
        let mut command = Command::new("openssl");
        command
            .args(["verify", "-x509_strict", "-CAfile"])
            .arg(authority)
            .args(more)
            .arg(&leaf.certificate);
        let output = command.output().expect("openssl runs (Debian package openssl)");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    }

    #[test]
    fn openssl_verifies_what_the_authority_signed() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let server = authority.server(&["*.example.com", "127.0.0.1"]);
        let named = ["-purpose", "sslserver", "-verify_hostname", "a.example.com"];
        for (more, wanted) in [
            (&named[..], true),
            (&["-verify_ip", "127.0.0.1"], true),
            (&["-verify_hostname", "a.example.org"], false),
            (&["-purpose", "sslclient"], false),
        ] {
            let (good, said) = verify(authority.certificate(), &server, more);
            assert_eq!(good, wanted, "{more:?}: {said}");
        }
        assert!(
            verify(
                authority.certificate(),
                &authority.client("a-client"),
                &["-purpose", "sslclient"]
            )
            .0
        );
        assert!(!verify(stranger.certificate(), &server, &[]).0);
    }

    #[test]
    fn openssl_reads_what_was_wanted() {
        let authority = Authority::named("another authority");
        let wanted = Wanted::client(&["a.example"])
            .uri("spiffe://x/ns/a/sa/b")
            .rsa()
            .serial(0x1234);
        let leaf = authority.issue(&wanted);
        let args = ["x509", "-noout", "-text"];
        let text = String::from_utf8(openssl::run(&args, leaf.certificate_pem().as_bytes())).unwrap();
        for part in [
            "Issuer: CN = another authority",
            "DNS:a.example, URI:spiffe://x/ns/a/sa/b",
            "Public-Key: (2048 bit)",
            "TLS Web Client Authentication",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(leaf.serial(), "1234");
        assert_eq!((leaf.hash().len(), leaf.spki_hash().len()), (64, 44));
        let old = authority.issue(&Wanted::client(&["a.example"]).expired());
        assert!(
            verify(authority.certificate(), &old, &[])
                .1
                .contains("certificate has expired")
        );
    }

    #[test]
    fn openssl_refuses_what_was_revoked() {
        let authority = Authority::new();
        let leaf = authority.issue(&Wanted::client(&["a.example"]).serial(77));
        for (revoked, good) in [(78, true), (77, false)] {
            let list = authority.revoke(&[revoked]);
            let list = list.to_str().unwrap();
            let (found, said) = verify(authority.certificate(), &leaf, &["-crl_check", "-CRLfile", list]);
            assert_eq!(found, good, "{said}");
        }
    }
}
