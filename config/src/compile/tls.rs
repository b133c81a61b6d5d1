//! What TLS means: `servers[].tls` of a Gateway and `tls` of a DestinationRule, as data that names keys and demands.

use super::Context;
use crate::origins::{TlsAsked, TlsPlace, TlsUse};
use crate::resource::destination_rule::{ClientTls as WrittenClient, DestinationRule};
use crate::resource::gateway::{Server, ServerTls as WrittenServer};
use crate::resource::{Meta, Written};
use crate::validate::gateway::{certificate_hash, spki_hash};
use isthmus_core::tls::{
    CaSource, ClientAuth, ClientTls, CredentialName, KeySource, Parameters, ServerTls, TlsVersion,
};
use std::sync::Arc;

/// Where Istio mounts the identity of a workload that has it from files.
const IDENTITY: [&str; 3] = [
    "/etc/certs/cert-chain.pem",
    "/etc/certs/key.pem",
    "/etc/certs/root-cert.pem",
];

/// What servers of HTTP offer by ALPN, as Istio's do.
const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// What a TLS server does with a connection.
pub(crate) enum Mode {
    /// TLS ends here.
    Terminate(Arc<ServerTls>),
    /// It passes through, by the rules of VirtualServices.
    Pass,
    /// It passes through to the cluster that its name spells.
    AutoPass,
}

impl Mode {
    /// What it presents, if TLS ends here.
    pub(crate) fn policy(&self) -> Option<Arc<ServerTls>> {
        match self {
            Self::Terminate(policy) => Some(policy.clone()),
            Self::Pass | Self::AutoPass => None,
        }
    }
}

/// What a server with `tls` does.
pub(crate) fn server(server: &Server, meta: &Meta, context: &Context<'_>) -> Mode {
    let Some(tls) = &server.tls else { return Mode::Pass };
    let client_auth = match tls.mode.as_deref() {
        Some("SIMPLE") => ClientAuth::None,
        Some("MUTUAL" | "ISTIO_MUTUAL") => ClientAuth::Required,
        Some("OPTIONAL_MUTUAL") => ClientAuth::Optional,
        Some("AUTO_PASSTHROUGH") => return Mode::AutoPass,
        _ => return Mode::Pass,
    };
    // Credentials are those of the gateway's own namespace; one that is in none takes the Gateway's.
    let own = &context.options.namespace;
    let namespace = if own.is_empty() { &meta.namespace } else { own };
    let identity = tls.mode.as_deref() == Some("ISTIO_MUTUAL");
    let ca = (client_auth != ClientAuth::None).then(|| server_ca(tls, identity, namespace));
    let http = server.protocol.eq_ignore_ascii_case("HTTPS");
    Mode::Terminate(Arc::new(ServerTls {
        keys: server_keys(tls, identity, namespace),
        client_auth,
        ca,
        crl: text(&tls.ca_crl),
        subject_alt_names: boxed(&tls.subject_alt_names),
        spki: tls
            .verify_certificate_spki
            .iter()
            .filter_map(|text| spki_hash(text))
            .collect(),
        hashes: tls
            .verify_certificate_hash
            .iter()
            .filter_map(|text| certificate_hash(text))
            .collect(),
        skip_verify: tls.insecure_skip_verify,
        parameters: parameters(tls),
        alpn: if http {
            ALPN.map(Box::from).to_vec()
        } else {
            Vec::new()
        },
    }))
}

fn server_keys(tls: &WrittenServer, identity: bool, namespace: &str) -> Vec<KeySource> {
    let files = |certificate: &str, key: &str| KeySource::Files {
        certificate: certificate.into(),
        key: key.into(),
    };
    if identity {
        let [certificate, key, _] = IDENTITY;
        return vec![files(certificate, key)];
    }
    if !tls.credential_names.is_empty() {
        let names = tls.credential_names.iter();
        return names
            .map(|name| KeySource::Credential(credential(name, namespace)))
            .collect();
    }
    if !tls.certificates.is_empty() {
        let pairs = tls.certificates.iter();
        return pairs
            .map(|pair| files(&pair.server_certificate, &pair.private_key))
            .collect();
    }
    vec![files(&tls.server_certificate, &tls.private_key)]
}

fn server_ca(tls: &WrittenServer, identity: bool, namespace: &str) -> CaSource {
    if identity {
        return CaSource::File(IDENTITY[2].into());
    }
    if !tls.ca_cert_credential_name.is_empty() {
        return CaSource::Credential(credential(&tls.ca_cert_credential_name, namespace));
    }
    let of_pairs = tls.certificates.iter().map(|pair| &pair.ca_certificates);
    let mut files = std::iter::once(&tls.ca_certificates).chain(of_pairs);
    if let Some(file) = files.find(|file| !file.is_empty()) {
        return CaSource::File(file.as_str().into());
    }
    match tls.credential_names.first() {
        Some(name) => CaSource::Credential(credential(name, namespace)),
        None => CaSource::System,
    }
}

fn parameters(tls: &WrittenServer) -> Parameters {
    // 1.0 and 1.1 are not served: whoever allows them gets 1.2.
    let version = |text: Option<&str>, default| match text {
        Some("TLSV1_3") => TlsVersion::V1_3,
        Some("TLSV1_0" | "TLSV1_1" | "TLSV1_2") => TlsVersion::V1_2,
        _ => default,
    };
    let min = version(tls.min_version.as_deref(), TlsVersion::V1_2);
    Parameters {
        min,
        max: version(tls.max_version.as_deref(), TlsVersion::V1_3).max(min),
        cipher_suites: boxed(&tls.cipher_suites),
        curves: boxed(&tls.ecdh_curves),
    }
}

/// What a DestinationRule asks for; `names` are the ServiceEntry's own, which the rule's replace.
pub(crate) fn client(
    tls: &WrittenClient,
    names: &[String],
    namespace: &str,
    context: &Context<'_>,
) -> Option<Arc<ClientTls>> {
    let own = &context.options.namespace;
    let namespace = if own.is_empty() { namespace } else { own };
    let identity = tls.mode == "ISTIO_MUTUAL";
    let key = match tls.mode.as_str() {
        "SIMPLE" => None,
        "ISTIO_MUTUAL" => Some(KeySource::Files {
            certificate: IDENTITY[0].into(),
            key: IDENTITY[1].into(),
        }),
        "MUTUAL" if !tls.credential_name.is_empty() => {
            Some(KeySource::Credential(credential(&tls.credential_name, namespace)))
        }
        "MUTUAL" => Some(KeySource::Files {
            certificate: tls.client_certificate.as_str().into(),
            key: tls.private_key.as_str().into(),
        }),
        _ => return None,
    };
    let ca = if identity {
        CaSource::File(IDENTITY[2].into())
    } else if !tls.credential_name.is_empty() {
        CaSource::Credential(credential(&tls.credential_name, namespace))
    } else if !tls.ca_certificates.is_empty() {
        CaSource::File(tls.ca_certificates.as_str().into())
    } else {
        CaSource::System
    };
    let names = if tls.subject_alt_names.is_empty() {
        names
    } else {
        &tls.subject_alt_names
    };
    Some(Arc::new(ClientTls {
        key,
        ca,
        crl: text(&tls.ca_crl),
        subject_alt_names: boxed(names),
        sni: text(&tls.sni),
        skip_verify: tls.insecure_skip_verify,
    }))
}

/// Every `tls` of the DestinationRules.
pub(crate) fn uses(rules: &[Written<DestinationRule>], context: &Context<'_>) -> Vec<TlsUse> {
    let mut found = Vec::new();
    for Written { meta, spec } in rules {
        let whole = spec.policy.as_ref().map(|policy| (None, policy));
        let subsets = spec
            .subsets
            .iter()
            .enumerate()
            .filter_map(|(at, subset)| Some((Some(at), subset.policy.as_ref()?)));
        for (subset, policy) in whole.into_iter().chain(subsets) {
            let ports = policy.ports.iter().enumerate();
            let ports = ports.map(|(at, (_, blocks))| (Some(at), blocks));
            for (port, blocks) in std::iter::once((None, &policy.blocks)).chain(ports) {
                let tls = blocks.tls.as_deref();
                if let Some(tls) = tls.and_then(|tls| client(tls, &[], &meta.namespace, context)) {
                    found.push(TlsUse {
                        asked: TlsAsked::Client(tls),
                        origin: meta.origin.clone(),
                        place: TlsPlace::Policy(subset, port),
                    });
                }
            }
        }
    }
    found
}

/// The credential that a name means, in Istio's forms: `name`, `kubernetes://name`, `kubernetes-gateway://ns/name`.
fn credential(written: &str, namespace: &str) -> CredentialName {
    let rest = written.split_once("://").map_or(written, |(_, rest)| rest);
    let (namespace, name) = rest.split_once('/').unwrap_or((namespace, rest));
    CredentialName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn text(text: &str) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn boxed(list: &[String]) -> Vec<Box<str>> {
    list.iter().map(|text| text.as_str().into()).collect()
}
