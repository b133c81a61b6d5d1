//! What is in Secrets, as far as a `tls` asks for it: a certificate, its key, authorities.
//!
//! What PEM, X.509 and keys are is known to whoever serves them, and not here: [`Options::judge`](crate::Options::judge)
//! says whether the values of a Secret can be used. One that cannot is an error of its document, so that its last good
//! version stays ([`crate::keep`]), also beyond a restart. A Secret that nobody asks for may have whatever it wants.

use crate::origins::{Origins, TlsAsked};
use crate::report::Report;
use crate::resource::{Resources, Written};
use crate::yaml::Path;
use isthmus_core::tls::{CaSource, CredentialName, KeySource};
use std::collections::{BTreeMap, HashMap};

/// What a `tls` takes from a Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretAsked {
    /// A certificate and its key.
    Key,
    /// Certificates of authorities.
    Authorities,
}

/// Says why the values of a Secret cannot be used for what is asked of them; None when they can.
pub type SecretJudge = fn(&CredentialName, &BTreeMap<String, Vec<u8>>, SecretAsked) -> Option<String>;

/// Reports Secrets that cannot be used.
pub(crate) fn judge(resources: &Resources, origins: &Origins, judge: SecretJudge, report: &mut Report<'_>) {
    if resources.secrets.is_empty() {
        return;
    }
    let mut by_name = HashMap::new();
    for written in &resources.secrets {
        let name = (&*written.meta.namespace, &*written.meta.name);
        // Of two with one name the first counts.
        by_name.entry(name).or_insert(written);
    }
    let mut asked: Vec<(CredentialName, SecretAsked)> = Vec::new();
    for tls in origins.tls() {
        let (keys, ca) = match tls {
            TlsAsked::Server(tls) => (tls.keys.as_slice(), tls.ca.as_ref()),
            TlsAsked::Client(tls) => (tls.key.as_slice(), Some(&tls.ca)),
        };
        for key in keys {
            if let KeySource::Credential(name) = key {
                asked.push((name.clone(), SecretAsked::Key));
            }
        }
        if let Some(CaSource::Credential(name)) = ca {
            let other = name.of_authorities();
            let has_other = by_name.contains_key(&(&*other.namespace, &*other.name));
            let name = if has_other { other } else { name.clone() };
            asked.push((name, SecretAsked::Authorities));
        }
    }
    asked.sort_unstable_by(|(a, what), (b, other)| {
        (&a.namespace, &a.name, what).cmp(&(&b.namespace, &b.name, other))
    });
    asked.dedup();
    for (name, what) in asked {
        let Some(Written { meta, spec }) = by_name.get(&(&*name.namespace, &*name.name)) else {
            continue;
        };
        let values: BTreeMap<String, Vec<u8>> = spec
            .values
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
            .collect();
        if let Some(why) = judge(&name, &values, what) {
            report.error("bad-value", &meta.origin, &Path::Root.key("data"), why);
        }
    }
}
