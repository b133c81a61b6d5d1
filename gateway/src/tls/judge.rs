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
    error
        .filter(|error| !matches!(error, MaterialError::NotFound { .. }))
        .map(|error| error.to_string())
}
