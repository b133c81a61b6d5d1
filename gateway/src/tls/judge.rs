//! Whether a Secret has what is asked of it, for whoever compiles resources.

use super::Credentials;
use super::fault::MaterialError;
use crate::io::clock;
use isthmus_config::SecretAsked;
use isthmus_core::snapshot::content_hash;
use isthmus_core::tls::{CaSource, CredentialName, KeySource};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Most verdicts that are remembered. A thousand names with certificates are many for one gateway.
const KNOWN_MAX: usize = 10_000;

/// Says why the values of a Secret cannot be used; None when they can. The time has no say in it: a certificate that has
/// expired is served, with a warning. Each load asks about every Secret, so verdicts are remembered by content.
pub fn judge(
    name: &CredentialName,
    values: &BTreeMap<String, Vec<u8>>,
    asked: SecretAsked,
) -> Option<String> {
    static KNOWN: OnceLock<Mutex<HashMap<u64, Option<String>>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let hash = content_hash(&(&*name.namespace, &*name.name, values, asked));
    if let Some(verdict) = known.lock().unwrap_or_else(PoisonError::into_inner).get(&hash) {
        return verdict.clone();
    }
    let verdict = look(name, values, asked);
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= KNOWN_MAX {
        known.clear();
    }
    known.insert(hash, verdict.clone());
    verdict
}

fn look(name: &CredentialName, values: &BTreeMap<String, Vec<u8>>, asked: SecretAsked) -> Option<String> {
    let alone = Credentials::new(BTreeMap::from([(name.clone(), values.clone())]), None);
    let now = clock::wall();
    let error = match asked {
        SecretAsked::Key => alone.load_key(&KeySource::Credential(name.clone()), now).err(),
        SecretAsked::Authorities => alone
            .load_authorities(&CaSource::Credential(name.clone()), now)
            .err(),
    };
    // A Secret without authorities is well as it is: who asks it for them is wrong, or has them in a folder.
    let is_of_asker = |error: &MaterialError| match error {
        MaterialError::NotFound { .. } => true,
        MaterialError::Missing { .. } => asked == SecretAsked::Authorities,
        _ => false,
    };
    error
        .filter(|error| !is_of_asker(error))
        .map(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::fixtures::{Authority, Leaf, credential};

    #[test]
    fn what_no_key_can_be_made_of_is_told() {
        let authority = Authority::new("root");
        let (one, other) = (
            authority.issue(&Leaf::named(&["a.example"])),
            authority.issue(&Leaf::named(&["b.example"])),
        );
        let judged = |pairs: &[(&str, &str)], asked| {
            let values = pairs
                .iter()
                .map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec()));
            judge(&credential("door"), &values.collect(), asked)
        };
        let [certificate, key] = one.entries();
        assert_eq!(judged(&[certificate, key], SecretAsked::Key), None);
        let [_, foreign] = other.entries();
        // Asked twice, the second time it is remembered.
        for _ in 0..2 {
            let why = judged(&[certificate, foreign], SecretAsked::Key).unwrap();
            assert!(why.contains("not the key of the first certificate"), "{why}");
        }
        let why = judged(&[("tls.crt", "no certificate"), key], SecretAsked::Key).unwrap();
        assert!(why.contains("tls.crt"), "{why}");
        assert_eq!(judged(&[certificate, key], SecretAsked::Authorities), None);
        let none = [certificate, key, ("ca.crt", "no certificate")];
        assert!(judged(&none, SecretAsked::Authorities).is_some());
        let pem = authority.pem();
        assert_eq!(judged(&[("ca.crt", &pem)], SecretAsked::Authorities), None);
        assert!(judged(&[("ca.crt", &pem)], SecretAsked::Key).is_some());
    }
}
