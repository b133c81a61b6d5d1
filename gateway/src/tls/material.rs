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
use super::peer::{SubjectNames, common_name};
use super::verify::client_verifier;
use isthmus_core::tls::{CaSource, CredentialName, KeySource};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::VerifierBuilderError;
use rustls::sign::CertifiedKey;
use rustls::{CertRevocationListError, RootCertStore};
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

/// What Istio appends to the name of a credential to find the authorities that belong to it.
const CA_SUFFIX: &str = "-cacert";

/// Where credentials are found.
pub struct Credentials {
    secrets: BTreeMap<CredentialName, BTreeMap<String, Vec<u8>>>,
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
        let with_suffix = CredentialName {
            namespace: name.namespace.clone(),
            name: format!("{}{CA_SUFFIX}", name.name).into(),
        };
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
            .get_or_init(|| {
                let found = rustls_native_certs::load_native_certs();
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let errors = found.errors.iter().map(ToString::to_string);
                    return Err(errors.collect::<Vec<_>>().join("; "));
                }
                Ok(Arc::new(roots))
            })
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
        // The verifier is asked for each list by itself, since for several it does not say which one it means.
        match client_verifier(Arc::clone(&self.roots))
            .with_crls([list.clone()])
            .build()
        {
            Ok(_) => Ok(parsed.next_update().and_then(system_time)),
            Err(VerifierBuilderError::InvalidCrl(CertRevocationListError::UnsupportedCrlVersion)) => {
                Err("it is of version 1, and version 2 is needed".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }
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
    let place = item.place.clone();
    if let Some(key) = sections(item)?.into_iter().next() {
        return Ok(key);
    }
    if contains(&item.bytes, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        return Err(MaterialError::EncryptedKey { place });
    }
    Err(MaterialError::NoPrivateKey { place })
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
