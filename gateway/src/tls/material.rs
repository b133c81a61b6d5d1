//! Keys, certificates, authorities and revocation lists: where they are found, and what is wrong with them.
//!
//! Operators name them in two ways. A path is read as it stands. A credential is a Secret among the resources or,
//! when there is none of that name, a folder of `--credentials`, whose files are named as a Secret's keys are. Both of
//! Istio's spellings hold in both places: `tls.crt`, `tls.key`, `ca.crt`, `ca.crl` and `cert`, `key`, `cacert`, `crl`.
//! Where Istio has an order it is Istio's: the second spelling before the first, and the authorities of `NAME-cacert`
//! before those of `NAME`, whose `ca.crt` is often only who signed the gateway's own certificate.
//!
//! What cannot be served is a [`MaterialError`]. What is served all the same, as Istio does, and still deserves a look
//! is a [`MaterialWarning`]: a certificate that has expired is better than a door that is shut, and clients will tell.

use super::fault::{MaterialError, MaterialWarning};
use super::peer::{SubjectNames, common_name, sha256};
use super::verify::client_verifier;
use isthmus_core::tls::{CaSource, CredentialName, KeySource};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls_native_certs::CertificateResult;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

/// What a file may have at most. Bundles of roots have a quarter of a megabyte, revocation lists some megabytes.
pub const MAX_FILE_BYTES: u64 = 32 << 20;

/// Where credentials are found.
pub struct Credentials {
    pub(super) secrets: BTreeMap<CredentialName, BTreeMap<String, Vec<u8>>>,
    folder: Option<PathBuf>,
    /// Hundreds of certificates, read when they are first asked for.
    system: OnceLock<Result<Arc<RootCertStore>, String>>,
}

/// A chain and its key, ready to sign.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The chain, leaf first, the key, and the staple if there is one.
    pub key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub info: CertificateInfo,
    /// What to tell the operator.
    pub warnings: Vec<MaterialWarning>,
}

/// Those whose signature under a certificate is accepted, and what they have revoked.
#[derive(Debug, Clone)]
pub struct Authorities {
    /// Their certificates; never empty.
    pub roots: Arc<RootCertStore>,
    /// Revocation lists that came with them.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// What each certificate says; empty for the roots of the system.
    pub infos: Vec<CertificateInfo>,
    /// What to tell the operator.
    pub warnings: Vec<MaterialWarning>,
}

/// What a certificate says, for operators and for the metrics of expiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its common name; the whole subject when it has none.
    pub subject: String,
    /// Its alternative names: DNS, URIs, addresses, mail.
    pub names: Vec<String>,
    /// Its serial number, in upper-case hexadecimal digits.
    pub serial: String,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ceases to be.
    pub not_after: SystemTime,
    /// The file or the credential that it came from.
    pub source: String,
    /// SHA-256 of all of it.
    pub hash: [u8; 32],
}

/// Bytes and the place that they were found in.
struct Item<'a> {
    place: String,
    bytes: Cow<'a, [u8]>,
}

/// A credential that exists.
enum Credential<'a> {
    Secret(&'a CredentialName, &'a BTreeMap<String, Vec<u8>>),
    Folder(PathBuf),
}

impl Credentials {
    /// Credentials of the given Secrets, and of the folders in `folder`.
    pub fn new(
        secrets: BTreeMap<CredentialName, BTreeMap<String, Vec<u8>>>,
        folder: Option<PathBuf>,
    ) -> Self {
        Self {
            secrets,
            folder,
            system: OnceLock::new(),
        }
    }

    /// Loads a chain and its key.
    ///
    /// A chain that has expired or is not valid yet is loaded with a warning.
    pub fn load_key(&self, source: &KeySource, now: SystemTime) -> Result<Loaded, MaterialError> {
        match source {
            KeySource::Files { certificate, key } => {
                certified_key(&read_item(certificate)?, &read_item(key)?, None, now)
            }
            KeySource::Credential(name) => {
                let credential = self.find(name)?.ok_or_else(|| self.not_found(name, &[]))?;
                let (certificate, key) = credential.key_pair()?;
                let staple = credential.get(&["tls.ocsp-staple"])?;
                certified_key(&certificate, &key, staple, now)
            }
        }
    }

    /// Loads the certificates of authorities, and the revocation lists that lie beside them.
    pub fn load_authorities(&self, source: &CaSource, now: SystemTime) -> Result<Authorities, MaterialError> {
        match source {
            CaSource::File(path) => authorities(&read_item(path)?, now),
            CaSource::System => Ok(Authorities {
                roots: self.system_roots()?,
                crls: Vec::new(),
                infos: Vec::new(),
                warnings: Vec::new(),
            }),
            CaSource::Credential(name) => {
                let credential = self.find_ca(name)?;
                let Some(certificates) = credential.get(&["cacert", "ca.crt"])? else {
                    return Err(credential.missing("ca.crt (or cacert)"));
                };
                let mut found = authorities(&certificates, now)?;
                if let Some(item) = credential.get(&["crl", "ca.crl"])? {
                    found.revoke(&item, now)?;
                }
                Ok(found)
            }
        }
    }

    /// Loads authorities as [`Credentials::load_authorities`] does, and the revocation lists of a file (`caCrl`).
    pub fn load_trust(
        &self,
        source: &CaSource,
        crl: Option<&str>,
        now: SystemTime,
    ) -> Result<Authorities, MaterialError> {
        let mut found = self.load_authorities(source, now)?;
        if let Some(path) = crl {
            found.revoke(&read_item(path)?, now)?;
        }
        Ok(found)
    }

    fn find(&self, name: &CredentialName) -> Result<Option<Credential<'_>>, MaterialError> {
        if let Some((name, data)) = self.secrets.get_key_value(name) {
            return Ok(Some(Credential::Secret(name, data)));
        }
        let Some(path) = self.folder_of(name) else {
            return Ok(None);
        };
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(Some(Credential::Folder(path))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path, &error)),
        }
    }

    fn find_ca(&self, name: &CredentialName) -> Result<Credential<'_>, MaterialError> {
        let with_suffix = name.of_authorities();
        if let Some(credential) = self.find(&with_suffix)? {
            return Ok(credential);
        }
        self.find(name)?
            .ok_or_else(|| self.not_found(name, &[&with_suffix]))
    }

    /// The folder that a credential may have. A name that is a path would lead out of `--credentials`.
    fn folder_of(&self, name: &CredentialName) -> Option<PathBuf> {
        let mut components = Path::new(&*name.name).components();
        match (components.next(), components.next()) {
            (Some(Component::Normal(_)), None) => Some(self.folder.as_ref()?.join(&*name.name)),
            _ => None,
        }
    }

    fn not_found(&self, name: &CredentialName, others: &[&CredentialName]) -> MaterialError {
        let looked = std::iter::once(name)
            .chain(others.iter().copied())
            .flat_map(|name| {
                let secret = format!("Secret {}", label(name));
                let folder = self
                    .folder_of(name)
                    .map(|path| format!("folder {}", path.display()));
                std::iter::once(secret).chain(folder)
            })
            .collect::<Vec<_>>();
        MaterialError::NotFound {
            name: label(name),
            looked: looked.join(", "),
        }
    }

    fn system_roots(&self) -> Result<Arc<RootCertStore>, MaterialError> {
        self.system
            .get_or_init(|| usable_roots(rustls_native_certs::load_native_certs()))
            .clone()
            .map_err(|cause| MaterialError::NoSystemRoots { cause })
    }
}

/// Names only: keys must not reach a log.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("secrets", &self.secrets.keys().map(label).collect::<Vec<_>>())
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Credential<'_> {
    /// The first of `keys` that is there and has something in it.
    fn get(&self, keys: &[&str]) -> Result<Option<Item<'_>>, MaterialError> {
        for key in keys {
            let item = match self {
                Self::Secret(name, data) => data.get(*key).map(|bytes| Item {
                    place: format!("Secret {}, {key}", label(name)),
                    bytes: Cow::Borrowed(bytes.as_slice()),
                }),
                Self::Folder(path) => {
                    let path = path.join(key);
                    match read_file(&path) {
                        Ok(bytes) => Some(Item {
                            place: path.display().to_string(),
                            bytes: Cow::Owned(bytes),
                        }),
                        Err(MaterialError::Absent { .. }) => None,
                        Err(error) => return Err(error),
                    }
                }
            };
            if let Some(item) = item.filter(|item| !item.bytes.is_empty()) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// The chain and the key: both in the one spelling, or both in the other.
    fn key_pair(&self) -> Result<(Item<'_>, Item<'_>), MaterialError> {
        let mut half = None;
        for (certificate, key) in [("cert", "key"), ("tls.crt", "tls.key")] {
            match (self.get(&[certificate])?, self.get(&[key])?) {
                (Some(certificate), Some(key)) => return Ok((certificate, key)),
                (Some(_), None) => half = Some(key),
                (None, Some(_)) => half = Some(certificate),
                (None, None) => {}
            }
        }
        Err(self.missing(half.unwrap_or("tls.crt and tls.key (or cert and key)")))
    }

    fn missing(&self, what: &str) -> MaterialError {
        let (place, found) = match self {
            Self::Secret(name, data) => (
                format!("Secret {}", label(name)),
                data.keys().cloned().collect::<Vec<_>>().join(", "),
            ),
            Self::Folder(path) => (format!("folder {}", path.display()), String::new()),
        };
        MaterialError::Missing {
            place,
            what: what.to_owned(),
            found,
        }
    }
}

impl Authorities {
    /// Adds every revocation list of a PEM text; there must be one.
    fn revoke(&mut self, item: &Item<'_>, now: SystemTime) -> Result<(), MaterialError> {
        let place = || item.place.clone();
        let lists: Vec<CertificateRevocationListDer<'static>> = sections(item)?;
        if lists.is_empty() {
            return Err(MaterialError::NoRevocationList { place: place() });
        }
        for (index, list) in lists.into_iter().enumerate() {
            let next = self
                .next_update(&list)
                .map_err(|cause| MaterialError::BadRevocationList {
                    place: place(),
                    number: index + 1,
                    cause,
                })?;
            if let Some(since) = next.filter(|next| *next < now) {
                self.warnings.push(MaterialWarning::RevocationListExpired {
                    place: place(),
                    since,
                });
            }
            self.crls.push(list);
        }
        Ok(())
    }

    /// When a list should be replaced; why, if a verifier cannot use it at all.
    fn next_update(
        &self,
        list: &CertificateRevocationListDer<'static>,
    ) -> Result<Option<SystemTime>, String> {
        let (_, parsed) = x509_parser::parse_x509_crl(list).map_err(|error| error.to_string())?;
        if parsed.version().is_none() {
            return Err("it is of version 1, and version 2 is needed".to_owned());
        }
        // The verifier is asked for each list by itself, since for several it does not say which one it means.
        match client_verifier(Arc::clone(&self.roots))
            .with_crls([list.clone()])
            .build()
        {
            Ok(_) => Ok(parsed.next_update().and_then(system_time)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The roots that a system has, or why it has none. Single ones that are damaged are no reason to trust no other.
fn usable_roots(found: CertificateResult) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let errors = found.errors.iter().map(ToString::to_string);
        return Err(errors.collect::<Vec<_>>().join("; "));
    }
    Ok(Arc::new(roots))
}

fn certified_key(
    certificate: &Item<'_>,
    key: &Item<'_>,
    staple: Option<Item<'_>>,
    now: SystemTime,
) -> Result<Loaded, MaterialError> {
    let chain = certificates(certificate)?;
    let mut warnings = Vec::new();
    let infos = describe(&chain, &certificate.place, now, &mut warnings)?;
    let signing = aws_lc_rs::sign::any_supported_type(&private_key(key)?).map_err(|_| {
        MaterialError::UnsupportedKey {
            place: key.place.clone(),
        }
    })?;
    let (Some(leaf), Some(info)) = (chain.first(), infos.into_iter().next()) else {
        return Err(MaterialError::NoCertificate {
            place: certificate.place.clone(),
        });
    };
    // Not `CertifiedKey::keys_match`: it parses as a verifier does and refuses the certificates of version 1 that the
    // commands of Istio's own tasks make with OpenSSL before 3.2.
    let parsed = parse(leaf, &certificate.place, 1)?;
    if signing
        .public_key()
        .is_some_and(|public| public.as_ref() != parsed.public_key().raw)
    {
        return Err(MaterialError::KeyMismatch {
            certificate: certificate.place.clone(),
            key: key.place.clone(),
        });
    }
    if parsed.version() == X509Version::V1 {
        warnings.push(MaterialWarning::FirstVersion {
            place: certificate.place.clone(),
        });
    }
    let mut certified = CertifiedKey::new(chain, signing);
    if let Some(staple) = staple {
        // An OCSPResponse is a DER SEQUENCE; a staple that is PEM or Base64 text would make clients fail.
        if staple.bytes.first() == Some(&0x30) {
            certified.ocsp = Some(staple.bytes.into_owned());
        } else {
            warnings.push(MaterialWarning::StapleIgnored { place: staple.place });
        }
    }
    Ok(Loaded {
        key: Arc::new(certified),
        info,
        warnings,
    })
}

fn authorities(item: &Item<'_>, now: SystemTime) -> Result<Authorities, MaterialError> {
    let certificates = certificates(item)?;
    let mut warnings = Vec::new();
    let infos = describe(&certificates, &item.place, now, &mut warnings)?;
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| MaterialError::NotX509 {
            place: item.place.clone(),
            number: index + 1,
            cause: error.to_string(),
        })?;
    }
    Ok(Authorities {
        roots: Arc::new(roots),
        crls: Vec::new(),
        infos,
        warnings,
    })
}

/// Every certificate of a PEM text; at least one.
fn certificates(item: &Item<'_>) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let found = sections(item)?;
    if found.is_empty() {
        return Err(MaterialError::NoCertificate {
            place: item.place.clone(),
        });
    }
    Ok(found)
}

fn private_key(item: &Item<'_>) -> Result<PrivateKeyDer<'static>, MaterialError> {
    /// PKCS#8, and the older form, which has fields between its first line and its digits (RFC 1421).
    const ENCRYPTED: [&[u8]; 2] = [
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----",
        b"Proc-Type: 4,ENCRYPTED",
    ];
    let place = item.place.clone();
    if ENCRYPTED.iter().any(|mark| contains(&item.bytes, mark)) {
        return Err(MaterialError::EncryptedKey { place });
    }
    match sections(item)?.into_iter().next() {
        Some(key) => Ok(key),
        None => Err(MaterialError::NoPrivateKey { place }),
    }
}

/// Every section of one kind; none when there are only others.
fn sections<T: PemObject>(item: &Item<'_>) -> Result<Vec<T>, MaterialError> {
    let place = || item.place.clone();
    let found = T::pem_slice_iter(&item.bytes)
        .collect::<Result<Vec<_>, pem::Error>>()
        .map_err(|error| MaterialError::NotPem {
            place: place(),
            cause: error.to_string(),
        })?;
    let blank = item.bytes.iter().all(u8::is_ascii_whitespace);
    if found.is_empty() && !blank && !contains(&item.bytes, b"-----BEGIN ") {
        return Err(MaterialError::NotPem {
            place: place(),
            cause: "no line begins with -----BEGIN".to_owned(),
        });
    }
    Ok(found)
}

/// What each certificate says, and warnings about those that are not valid now.
fn describe(
    chain: &[CertificateDer<'static>],
    place: &str,
    now: SystemTime,
    warnings: &mut Vec<MaterialWarning>,
) -> Result<Vec<CertificateInfo>, MaterialError> {
    let mut infos = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        let certificate = parse(der, place, index + 1)?;
        let info = info(&certificate, place);
        if info.not_after < now {
            warnings.push(MaterialWarning::Expired {
                place: place.to_owned(),
                subject: info.subject.clone(),
                since: info.not_after,
            });
        }
        if info.not_before > now {
            warnings.push(MaterialWarning::NotYetValid {
                place: place.to_owned(),
                subject: info.subject.clone(),
                from: info.not_before,
            });
        }
        infos.push(info);
    }
    Ok(infos)
}

fn parse<'a>(der: &'a [u8], place: &str, number: usize) -> Result<X509Certificate<'a>, MaterialError> {
    let not_x509 = |cause: String| MaterialError::NotX509 {
        place: place.to_owned(),
        number,
        cause,
    };
    let (rest, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|error| not_x509(error.to_string()))?;
    if !rest.is_empty() {
        return Err(not_x509("more bytes follow it".to_owned()));
    }
    Ok(certificate)
}

fn info(certificate: &X509Certificate<'_>, source: &str) -> CertificateInfo {
    let serial = certificate.raw_serial();
    CertificateInfo {
        subject: common_name(certificate.subject()),
        names: SubjectNames::of(certificate).all(),
        serial: serial.iter().map(|byte| format!("{byte:02X}")).collect(),
        not_before: system_time(certificate.validity().not_before).unwrap_or(SystemTime::UNIX_EPOCH),
        not_after: system_time(certificate.validity().not_after).unwrap_or(SystemTime::UNIX_EPOCH),
        source: source.to_owned(),
        hash: sha256(certificate.as_raw()),
    }
}

/// None beyond what the clock can say.
fn system_time(time: ASN1Time) -> Option<SystemTime> {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    if time.timestamp() < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    }
}

fn read_item(path: &str) -> Result<Item<'static>, MaterialError> {
    Ok(Item {
        place: path.to_owned(),
        bytes: Cow::Owned(read_file(Path::new(path))?),
    })
}

/// Reads a file that is one: opening a pipe would wait for its writer.
fn read_file(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        return Err(MaterialError::Unreadable {
            path: path.display().to_string(),
            cause: "not a file".to_owned(),
        });
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Err(MaterialError::TooLarge {
            path: path.display().to_string(),
            limit: MAX_FILE_BYTES,
        });
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &io::Error) -> MaterialError {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::NotFound => MaterialError::Absent { path },
        _ => MaterialError::Unreadable {
            path,
            cause: error.to_string(),
        },
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn label(name: &CredentialName) -> String {
    if name.namespace.is_empty() {
        name.name.to_string()
    } else {
        format!("{}/{}", name.namespace, name.name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::tls::fixtures::{Authority, Issued, Kind, Leaf, credential, credentials, key_of, now};

    fn own(kind: Kind) -> Issued {
        Authority::new("root").issue(&Leaf::named(&["a.example"]).kind(kind))
    }

    fn load(entries: &[(&str, &str)]) -> Result<Loaded, MaterialError> {
        credentials(&[("door", entries)]).load_key(&key_of("door"), now())
    }

    #[track_caller]
    fn error(entries: &[(&str, &str)]) -> String {
        load(entries).unwrap_err().to_string()
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let label = format!("{label}-----");
        crate::tls::peer::pem_text(der).replace("CERTIFICATE-----", &label)
    }

    /// What an OCTET STRING of a PKCS#8 key holds: the key in the form of its own kind.
    fn unwrapped(pkcs8: &[u8]) -> Vec<u8> {
        use x509_parser::der_parser::asn1_rs::{Any, FromDer, OctetString, Sequence};
        let (_, sequence) = Sequence::from_der(pkcs8).unwrap();
        let (rest, _version) = Any::from_der(&sequence.content).unwrap();
        let (rest, _algorithm) = Any::from_der(rest).unwrap();
        OctetString::from_der(rest).unwrap().1.as_ref().to_vec()
    }

    /// An ECPrivateKey that names its curve, as RFC 5915 lets it and `openssl ecparam -genkey` does.
    fn sec1(pkcs8: &[u8]) -> Vec<u8> {
        const P256: [u8; 12] = [
            0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
        ];
        let plain = unwrapped(pkcs8);
        // SEQUENCE, INTEGER 1, OCTET STRING of 32; then the public key.
        let (scalar, public) = plain[2..].split_at(3 + 2 + 32);
        let content = [scalar, &P256, public].concat();
        [&[0x30, u8::try_from(content.len()).unwrap()], content.as_slice()].concat()
    }

    #[test]
    fn keys_are_taken_in_each_form_of_pem() {
        for kind in [Kind::Ecdsa, Kind::Rsa, Kind::Ed25519] {
            let own = own(kind);
            assert_eq!(load(&own.entries()).unwrap().key.cert[0], own.leaf);
        }
        let rsa = own(Kind::Rsa);
        let pkcs1 = pem("RSA PRIVATE KEY", &unwrapped(&rsa.key_der));
        load(&[("tls.crt", &rsa.chain), ("tls.key", &pkcs1)]).unwrap();
        let ecdsa = own(Kind::Ecdsa);
        let parameters = pem("EC PARAMETERS", &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
        let sec1 = parameters + &pem("EC PRIVATE KEY", &sec1(&ecdsa.key_der));
        load(&[("tls.crt", &ecdsa.chain), ("tls.key", &sec1)]).unwrap();
    }

    #[test]
    fn both_spellings_are_read_and_never_mixed() {
        let (first, second) = (own(Kind::Ecdsa), own(Kind::Ecdsa));
        let generic = [("cert", first.chain.as_str()), ("key", first.key.as_str())];
        assert_eq!(load(&generic).unwrap().key.cert[0], first.leaf);
        let both = [generic, second.entries()].concat();
        assert_eq!(load(&both).unwrap().key.cert[0], first.leaf);
        // Half of one spelling does not spoil the other.
        let half = [
            ("cert", first.chain.as_str()),
            second.entries()[0],
            second.entries()[1],
        ];
        assert_eq!(load(&half).unwrap().key.cert[0], second.leaf);
        assert_eq!(
            error(&[("cert", &first.chain), ("tls.key", &first.key)]),
            "Secret prod/door has no tls.crt; it has cert, tls.key"
        );
    }

    #[test]
    fn errors_name_the_place_and_what_is_wrong_there() {
        let (own, other) = (own(Kind::Ecdsa), self::own(Kind::Ecdsa));
        let with = |chain: &str, key: &str| error(&[("tls.crt", chain), ("tls.key", key)]);
        assert_eq!(
            error(&[]),
            "Secret prod/door has no tls.crt and tls.key (or cert and key)"
        );
        assert_eq!(
            error(&[("tls.crt", &own.chain), ("tls.key", "")]),
            "Secret prod/door has no tls.key; it has tls.crt, tls.key"
        );
        assert_eq!(
            with(&own.key, &own.key),
            "Secret prod/door, tls.crt: no certificate in it"
        );
        assert_eq!(
            with("\n", &own.key),
            "Secret prod/door, tls.crt: no certificate in it"
        );
        assert_eq!(
            with(&own.chain, &own.chain),
            "Secret prod/door, tls.key: no private key in it"
        );
        assert_eq!(
            with("hello", &own.key),
            "Secret prod/door, tls.crt: not PEM: no line begins with -----BEGIN"
        );
        assert!(
            with(&own.chain[..own.chain.len() - 30], &own.key)
                .starts_with("Secret prod/door, tls.crt: not PEM: missing section end marker")
        );
        let junk = own.chain.clone() + &pem("CERTIFICATE", b"junk");
        assert!(with(&junk, &own.key).starts_with("Secret prod/door, tls.crt: certificate 2 is not X.509: "));
        assert_eq!(
            with(&own.chain, &pem("ENCRYPTED PRIVATE KEY", b"junk")),
            "Secret prod/door, tls.key: the private key is encrypted; store it without a passphrase"
        );
        let older = own
            .key
            .replacen('\n', "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n", 1);
        assert!(with(&own.chain, &older).contains("is encrypted"));
        assert_eq!(
            with(&own.chain, &pem("PRIVATE KEY", b"junk")),
            "Secret prod/door, tls.key: the private key is none of RSA with 2048 to 8192 bits, ECDSA P-256, P-384, \
             P-521 and Ed25519"
        );
        assert_eq!(
            with(&own.chain, &other.key),
            "Secret prod/door, tls.key: not the key of the first certificate of Secret prod/door, tls.crt"
        );
        assert_eq!(
            credentials(&[])
                .load_key(&key_of("door"), now())
                .unwrap_err()
                .to_string(),
            "no credential prod/door: looked for Secret prod/door"
        );
    }

    #[test]
    fn a_certificate_out_of_its_time_is_loaded_with_a_warning() {
        let root = Authority::new("root");
        let loaded = |from, until| {
            let issued = root.issue(&Leaf::named(&["a.example"]).years(from, until));
            let warnings = load(&issued.entries()).unwrap().warnings;
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(loaded(2020, 2030).is_empty());
        assert_eq!(
            loaded(2000, 2025),
            ["Secret prod/door, tls.crt: the certificate of leaf expired at 2025-01-01T00:00:00Z"]
        );
        assert_eq!(
            loaded(2027, 2030),
            ["Secret prod/door, tls.crt: the certificate of leaf is not valid before 2027-01-01T00:00:00Z"]
        );
        assert_eq!(
            loaded(1950, 1960),
            ["Secret prod/door, tls.crt: the certificate of leaf expired at a year before 1970"]
        );
    }

    #[test]
    fn a_certificate_says_who_and_until_when() {
        let names = ["a.example", "spiffe://x/a", "10.0.0.1", "me@example.com"];
        let issued = Authority::new("root").issue(&Leaf::named(&names).serial(0x1f2e).years(2020, 2030));
        let info = load(&issued.entries()).unwrap().info;
        assert_eq!(info.subject, "leaf");
        assert_eq!(info.names, names);
        assert_eq!(info.serial, "1F2E");
        assert_eq!(info.source, "Secret prod/door, tls.crt");
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(info.not_before, SystemTime::UNIX_EPOCH + 18_262 * day);
        assert_eq!(info.not_after, SystemTime::UNIX_EPOCH + 21_915 * day);
    }

    /// Made with `openssl x509 -req`, which before OpenSSL 3.2 wrote version 1 unless it was given extensions.
    #[test]
    fn a_certificate_of_version_1_is_served_with_a_warning() {
        let own = own(Kind::Ecdsa);
        let first = first_version(&own.leaf);
        let loaded = load(&[("tls.crt", &pem("CERTIFICATE", &first)), ("tls.key", &own.key)]).unwrap();
        assert_eq!(
            loaded.warnings,
            [MaterialWarning::FirstVersion {
                place: "Secret prod/door, tls.crt".to_owned()
            }]
        );
    }

    /// The certificate without version and extensions. Its signature is then wrong, which nobody here looks at.
    fn first_version(der: &[u8]) -> Vec<u8> {
        fn wrapped(content: &[u8]) -> Vec<u8> {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[0x30, 0x82], length.as_slice(), content].concat()
        }
        use x509_parser::der_parser::asn1_rs::{Any, FromDer, Sequence, ToDer};
        let (_, certificate) = Sequence::from_der(der).unwrap();
        let (signature, tbs) = Sequence::from_der(&certificate.content).unwrap();
        let mut rest: &[u8] = &tbs.content;
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let (next, field) = Any::from_der(rest).unwrap();
            let is_explicit = field
                .header
                .raw_tag()
                .is_some_and(|tag| [[0xa0], [0xa3]].iter().any(|one| tag == one));
            if !is_explicit {
                fields.extend(field.to_der_vec().unwrap());
            }
            rest = next;
        }
        wrapped(&[wrapped(&fields), signature.to_vec()].concat())
    }

    #[test]
    fn a_staple_goes_with_the_chain_if_it_looks_like_one() {
        let own = own(Kind::Ecdsa);
        let with = |staple| load(&[own.entries()[0], own.entries()[1], ("tls.ocsp-staple", staple)]).unwrap();
        assert_eq!(
            with("0\u{3}\n\u{1}\0").key.ocsp.as_deref(),
            Some(b"0\x03\n\x01\0".as_slice())
        );
        let text = with("MAMKAQA=");
        assert_eq!(text.key.ocsp, None);
        assert_eq!(
            text.warnings[0].to_string(),
            "Secret prod/door, tls.ocsp-staple: not an OCSP response in DER; served without a staple"
        );
    }

    #[test]
    fn files_are_read_by_their_paths_and_folders_by_the_names_of_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let own = own(Kind::Ecdsa);
        fs::create_dir(folder.path().join("door")).unwrap();
        let file = |name: &str| folder.path().join("door").join(name);
        fs::write(file("cert"), &own.chain).unwrap();
        fs::write(file("key"), &own.key).unwrap();
        let text = |path: PathBuf| Box::<str>::from(path.display().to_string());
        let found = Credentials::new(BTreeMap::new(), Some(folder.path().to_owned()));
        let files = KeySource::Files {
            certificate: text(file("cert")),
            key: text(file("key")),
        };
        assert_eq!(found.load_key(&files, now()).unwrap().key.cert[0], own.leaf);
        let by_name = found.load_key(&key_of("door"), now()).unwrap();
        assert_eq!(by_name.key.cert[0], own.leaf);
        assert_eq!(by_name.info.source, file("cert").display().to_string());

        // A Secret of that name comes first, even a bad one.
        let secrets = BTreeMap::from([(credential("door"), BTreeMap::new())]);
        let both = Credentials::new(secrets, Some(folder.path().to_owned()));
        assert!(matches!(
            both.load_key(&key_of("door"), now()),
            Err(MaterialError::Missing { .. })
        ));
        let missing = |name: &str| found.load_key(&key_of(name), now()).unwrap_err().to_string();
        let path = folder.path().display().to_string();
        assert_eq!(
            missing("gate"),
            format!("no credential prod/gate: looked for Secret prod/gate, folder {path}/gate")
        );
        for name in ["..", ".", "", "door/../door", "/etc"] {
            assert_eq!(
                missing(name),
                format!("no credential prod/{name}: looked for Secret prod/{name}")
            );
        }
        fs::remove_file(file("key")).unwrap();
        assert_eq!(missing("door"), format!("folder {path}/door has no key"));
        fs::create_dir(file("key")).unwrap();
        assert_eq!(missing("door"), format!("{path}/door/key: not a file"));
        fs::remove_dir(file("key")).unwrap();
        File::create(file("key"))
            .unwrap()
            .set_len(MAX_FILE_BYTES + 1)
            .unwrap();
        assert_eq!(
            missing("door"),
            format!("{path}/door/key: larger than 33554432 bytes")
        );
    }

    #[test]
    fn authorities_of_a_credential_are_those_of_its_namesake_with_the_suffix_first() {
        let [server, client] = ["server", "client"].map(|name| Authority::new(name).pem());
        let subject = |secrets: &[(&str, &[(&str, &str)])]| {
            let source = CaSource::Credential(credential("door"));
            let found = credentials(secrets).load_authorities(&source, now())?;
            Ok::<_, MaterialError>(found.infos[0].subject.clone())
        };
        assert_eq!(subject(&[("door", &[("ca.crt", &server)])]).unwrap(), "server");
        assert_eq!(
            subject(&[("door", &[("cacert", &server), ("ca.crt", &client)])]).unwrap(),
            "server"
        );
        assert_eq!(
            subject(&[("door-cacert", &[("cacert", &client)])]).unwrap(),
            "client"
        );
        assert_eq!(
            subject(&[
                ("door", &[("ca.crt", &server)]),
                ("door-cacert", &[("ca.crt", &client)])
            ])
            .unwrap(),
            "client"
        );
        assert_eq!(
            subject(&[("door", &[("tls.crt", &server)])])
                .unwrap_err()
                .to_string(),
            "Secret prod/door has no ca.crt (or cacert); it has tls.crt"
        );
        assert_eq!(
            subject(&[]).unwrap_err().to_string(),
            "no credential prod/door: looked for Secret prod/door, Secret prod/door-cacert"
        );
        assert_eq!(
            subject(&[("door", &[("ca.crt", "\n")])]).unwrap_err().to_string(),
            "Secret prod/door, ca.crt: no certificate in it"
        );
    }

    #[test]
    fn every_certificate_and_revocation_list_of_a_text_is_taken() {
        let [first, second] = ["first", "second"].map(Authority::new);
        let ca = first.pem() + &second.pem();
        let crl = first.revoke_until(&[1], 2021) + &second.revoke(&[2]);
        let source = CaSource::Credential(credential("door"));
        let load = |crl: &str| {
            credentials(&[("door", &[("ca.crt", &ca), ("ca.crl", crl)])]).load_authorities(&source, now())
        };
        let found = load(&crl).unwrap();
        assert_eq!(
            (found.roots.len(), found.infos.len(), found.crls.len()),
            (2, 2, 2)
        );
        assert_eq!(
            found.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "Secret prod/door, ca.crl: the revocation list expired at 2021-01-01T00:00:00Z; certificates of its \
              issuer are refused"
            ]
        );
        assert_eq!(
            load(&ca).unwrap_err().to_string(),
            "Secret prod/door, ca.crl: no revocation list in it"
        );
        assert!(
            load(&(crl + &pem("X509 CRL", b"junk")))
                .unwrap_err()
                .to_string()
                .starts_with("Secret prod/door, ca.crl: revocation list 3 cannot be used: ")
        );

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("revoked.pem");
        fs::write(&path, second.revoke(&[2])).unwrap();
        let found = credentials(&[("door", &[("ca.crt", &ca), ("crl", &first.revoke(&[]))])])
            .load_trust(&source, Some(&path.display().to_string()), now())
            .unwrap();
        assert_eq!(found.crls.len(), 2);
    }

    #[test]
    fn a_system_without_roots_is_an_error() {
        let mut found = CertificateResult::default();
        assert_eq!(usable_roots(CertificateResult::default()).unwrap_err(), "");
        let issued = own(Kind::Ecdsa);
        found.certs = vec![CertificateDer::from(b"junk".to_vec()), issued.leaf];
        assert_eq!(usable_roots(found).unwrap().len(), 1);
        let none = MaterialError::NoSystemRoots { cause: String::new() };
        assert_eq!(none.to_string(), "no root certificates of the system found");
    }

    #[test]
    fn a_log_does_not_get_keys() {
        let own = own(Kind::Ecdsa);
        let text = format!("{:?}", credentials(&[("door", &own.entries())]));
        assert!(text.contains("prod/door") && !text.contains("PRIVATE"), "{text}");
    }
}
