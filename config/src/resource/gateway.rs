//! Gateway as written: which ports are opened, and for which hosts.

use crate::yaml::Node;
use std::collections::BTreeMap;

/// Annotation that lists the protocols which requests may change to.
pub(crate) const UPGRADES: &str = "isthmus.dev/upgrades";

/// Annotation that makes a Gateway the door of mesh clients: `true`.
pub(crate) const MESH_DOOR: &str = "isthmus.dev/mesh";

/// Annotation that makes a Gateway a forward proxy: `true`.
pub(crate) const FORWARD_PROXY: &str = "isthmus.dev/forward-proxy";

/// `Gateway.spec`.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) servers: Vec<Server>,
}

/// `servers[]`.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) port: i128,
    /// Whether `port.number` is there.
    pub(crate) has_port: bool,
    pub(crate) port_name: String,
    pub(crate) protocol: String,
    pub(crate) has_target_port: bool,
    pub(crate) bind: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) tls: Option<ServerTls>,
}

/// `servers[].tls`.
#[derive(Debug, Default)]
pub(crate) struct ServerTls {
    pub(crate) https_redirect: bool,
    pub(crate) mode: Option<String>,
    pub(crate) server_certificate: String,
    pub(crate) private_key: String,
    pub(crate) ca_certificates: String,
    pub(crate) ca_crl: String,
    /// `credentialName`, or `credentialNames`.
    pub(crate) credential_names: Vec<String>,
    pub(crate) ca_cert_credential_name: String,
    pub(crate) certificates: Vec<TlsCertificate>,
    pub(crate) subject_alt_names: Vec<String>,
    pub(crate) verify_certificate_spki: Vec<String>,
    pub(crate) verify_certificate_hash: Vec<String>,
    pub(crate) min_version: Option<String>,
    pub(crate) max_version: Option<String>,
    pub(crate) cipher_suites: Vec<String>,
    pub(crate) ecdh_curves: Vec<String>,
    pub(crate) insecure_skip_verify: bool,
}

/// `servers[].tls.tlsCertificates[]`.
#[derive(Debug)]
pub(crate) struct TlsCertificate {
    pub(crate) server_certificate: String,
    pub(crate) private_key: String,
    pub(crate) ca_certificates: String,
}

impl ServerTls {
    fn read(tls: &Node) -> Self {
        let text = |name| tls.text(name).unwrap_or("").to_owned();
        let mut credential_names = tls.texts("credentialNames");
        if let Some(name) = tls.text("credentialName").filter(|name| !name.is_empty()) {
            credential_names.insert(0, name.to_owned());
        }
        let certificates = tls.list("tlsCertificates").iter().map(|pair| {
            let text = |name| pair.text(name).unwrap_or("").to_owned();
            TlsCertificate {
                server_certificate: text("serverCertificate"),
                private_key: text("privateKey"),
                ca_certificates: text("caCertificates"),
            }
        });
        Self {
            https_redirect: tls.flag("httpsRedirect"),
            mode: tls.text("mode").map(str::to_owned),
            server_certificate: text("serverCertificate"),
            private_key: text("privateKey"),
            ca_certificates: text("caCertificates"),
            ca_crl: text("caCrl"),
            credential_names,
            ca_cert_credential_name: text("caCertCredentialName"),
            certificates: certificates.collect(),
            subject_alt_names: tls.texts("subjectAltNames"),
            verify_certificate_spki: tls.texts("verifyCertificateSpki"),
            verify_certificate_hash: tls.texts("verifyCertificateHash"),
            min_version: tls.text("minProtocolVersion").map(str::to_owned),
            max_version: tls.text("maxProtocolVersion").map(str::to_owned),
            cipher_suites: tls.texts("cipherSuites"),
            ecdh_curves: tls.texts("ecdhCurves"),
            insecure_skip_verify: tls.flag("insecureSkipVerify"),
        }
    }
}

impl Gateway {
    pub(crate) fn read(spec: &Node) -> Self {
        let servers = spec.list("servers").iter().map(Server::read).collect();
        Self {
            selector: spec.text_map("selector"),
            servers,
        }
    }
}

impl Server {
    fn read(node: &Node) -> Self {
        let port = node.get("port").unwrap_or(&Node::Null);
        Self {
            port: port.int("number").unwrap_or(0),
            has_port: port.int("number").is_some(),
            port_name: port.text("name").unwrap_or("").to_owned(),
            protocol: port.text("protocol").unwrap_or("").to_owned(),
            has_target_port: port.int("targetPort").is_some_and(|number| number != 0),
            bind: node.text("bind").unwrap_or("").to_owned(),
            hosts: node.texts("hosts"),
            tls: node.get("tls").map(ServerTls::read),
        }
    }
}
