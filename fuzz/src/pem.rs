//! Key material of a Secret: a chain, its key, authorities, revocation lists and a staple, from whoever wrote them.

use isthmus::tls::Credentials;
use isthmus_core::tls::{CaSource, CredentialName, KeySource};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// In which order the parts come, each but the last with [`BETWEEN`] behind it; the staple is the one that may hold it.
const PARTS: [&str; 5] = ["tls.crt", "tls.key", "ca.crt", "ca.crl", "tls.ocsp-staple"];
/// No text of PEM has it.
const BETWEEN: u8 = 0;
/// The time that is taken for now: some day of 2027.
const NOW: Duration = Duration::from_secs(1_800_000_000);

/// Loads a Secret.
pub fn run(bytes: &[u8]) {
    let name = CredentialName {
        namespace: "prod".into(),
        name: "door".into(),
    };
    let parts = bytes.splitn(PARTS.len(), |byte| *byte == BETWEEN);
    let secret: BTreeMap<String, Vec<u8>> = PARTS
        .iter()
        .zip(parts)
        // What is empty is not there.
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
        .collect();
    let credentials = Credentials::new(BTreeMap::from([(name.clone(), secret)]), None);
    let now = SystemTime::UNIX_EPOCH + NOW;

    let source = KeySource::Credential(name.clone());
    match credentials.load_key(&source, now) {
        Ok(loaded) => {
            assert!(!loaded.key.cert.is_empty(), "a key has a chain");
            assert!(!loaded.info.source.is_empty());
            said(&loaded.warnings);
            let again = credentials.load_key(&source, now).unwrap();
            assert_eq!(again.info, loaded.info);
            assert_eq!(again.key.cert, loaded.key.cert);
        }
        Err(error) => {
            said(&[&error]);
            assert_eq!(credentials.load_key(&source, now).err(), Some(error));
        }
    }

    let source = CaSource::Credential(name);
    match credentials.load_authorities(&source, now) {
        Ok(loaded) => {
            assert!(!loaded.roots.is_empty(), "authorities are some");
            assert!(!loaded.infos.is_empty());
            said(&loaded.warnings);
        }
        Err(error) => {
            said(&[&error]);
            assert_eq!(credentials.load_authorities(&source, now).err(), Some(error));
        }
    }
}

/// What is found has words, whatever the bytes are.
fn said<T: ToString>(found: &[T]) {
    for one in found {
        assert!(!one.to_string().is_empty());
    }
}
