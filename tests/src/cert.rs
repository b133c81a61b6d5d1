//! A test authority and the certificates that it signs, as PEM files.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A certificate and its key in files.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A certificate authority with a folder of its own.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
}

impl Authority {
    /// Makes one.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "isthmus test authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let certificate = write(folder.path(), "ca.crt", &pem);
        Self {
            folder,
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Signs a certificate for a server with these names (DNS names or IP addresses).
    pub fn server(&self, names: &[&str]) -> Leaf {
        self.sign(names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Signs a certificate for a client with this name.
    pub fn client(&self, name: &str) -> Leaf {
        self.sign(&[name], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Leaf {
        let owned: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(owned).expect("names of a certificate");
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let name = names[0].replace('*', "any");
        Leaf {
            certificate: write(self.folder.path(), &format!("{name}.crt"), &pem),
            key: write(self.folder.path(), &format!("{name}.key"), &key.serialize_pem()),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
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
}
