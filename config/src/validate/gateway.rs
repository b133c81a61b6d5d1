//! Validation of Gateways (Istio's `ValidateGateway`).

use super::{Validate, check_port, host_fault, is_label, is_partial_wildcard};
use crate::report::Report;
use crate::resource::Meta;
use crate::resource::gateway::{FORWARD_PROXY, Gateway, MESH_DOOR, Server, UPGRADES};
use crate::yaml::Path;
use isthmus_core::listener::Upgrades;
use isthmus_core::name::HostPattern;
use std::collections::HashSet;
use std::net::IpAddr;

/// Protocols that a server may name (Istio's `protocol.Parse`), in upper case.
const PROTOCOLS: [&str; 11] = [
    "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS", "TCP", "MONGO", "REDIS", "MYSQL", "UDP",
];

/// Whether a protocol is known, in whatever case.
pub(crate) fn is_protocol(text: &str) -> bool {
    PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(text))
}

/// Whether a protocol is HTTP on the wire.
pub(crate) fn is_http(protocol: &str) -> bool {
    ["HTTP", "HTTP2", "GRPC", "GRPC-WEB"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(protocol))
}

/// Whether a protocol is TLS on the wire.
pub(crate) fn is_tls(protocol: &str) -> bool {
    ["HTTPS", "TLS"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(protocol))
}

/// A SHA-256 in base64, as `verifyCertificateSpki` has it.
pub(crate) fn spki_hash(text: &str) -> Option<[u8; 32]> {
    super::virtual_service::base64(text)?.try_into().ok()
}

/// A SHA-256 in hexadecimal digits, with or without colons, as `verifyCertificateHash` has it.
pub(crate) fn certificate_hash(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|letter| *letter != ':')
        .map(|letter| letter.to_digit(16))
        .collect::<Option<_>>()?;
    let bytes = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        })
        .collect::<Option<Vec<u8>>>()?;
    bytes.try_into().ok()
}

impl Validate for Gateway {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        if !is_label(&meta.name) {
            let path = Path::Root;
            let path = path.key("metadata");
            let message = format!("`{}` must be a label of letters, digits and dashes", meta.name);
            report.error("bad-value", &meta.origin, &path.key("name"), message);
        }
        for name in [MESH_DOOR, FORWARD_PROXY] {
            let value = meta.annotations.get(name);
            let Some(value) = value.filter(|value| !matches!(value.as_str(), "true" | "false")) else {
                continue;
            };
            let shown = crate::resource::schema::shortened(value);
            let message = format!("`{shown}` is neither `true` nor `false`");
            report.error("bad-value", &meta.origin, &Path::ANNOTATIONS.key(name), message);
        }
        if let Some(Err(error)) = meta.annotations.get(UPGRADES).map(|text| Upgrades::parse(text)) {
            let path = Path::ANNOTATIONS;
            report.error("bad-value", &meta.origin, &path.key(UPGRADES), error.to_string());
        }
        let list = Path::SPEC.key("servers");
        if meta
            .annotations
            .get(FORWARD_PROXY)
            .is_some_and(|value| value == "true")
        {
            let speaks_http =
                |server: &&Server| is_http(&server.protocol) || server.protocol.eq_ignore_ascii_case("HTTPS");
            for (at, server) in self
                .servers
                .iter()
                .enumerate()
                .filter(|(_, server)| !speaks_http(server))
            {
                let message = format!(
                    "a server with protocol {} is no forward proxy: {FORWARD_PROXY} does not count for it",
                    server.protocol
                );
                report.warn(
                    "no-effect",
                    &meta.origin,
                    &list.index(at).key("port").key("protocol"),
                    message,
                );
            }
        }
        if self.servers.is_empty() {
            report.error(
                "missing-field",
                &meta.origin,
                &list,
                "a Gateway needs at least one server",
            );
        }
        let mut names = HashSet::new();
        for (at, server) in self.servers.iter().enumerate() {
            let path = list.index(at);
            server.validate(&path, meta, report);
            if !names.insert(server.port_name.as_str()) {
                let message = format!("two servers have a port named `{}`", server.port_name);
                report.error(
                    "duplicate-value",
                    &meta.origin,
                    &path.key("port").key("name"),
                    message,
                );
            }
        }
    }
}

impl Server {
    fn validate(&self, path: &Path<'_>, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        let port = path.key("port");
        let unix = self.bind.starts_with("unix://");
        if unix && self.port != 0 {
            report.error(
                "bad-port",
                origin,
                &port.key("number"),
                "a server on a unix socket has port 0",
            );
        }
        if !unix && !self.has_port {
            report.error(
                "missing-field",
                origin,
                &port.key("number"),
                "`number` is required",
            );
        } else if !unix {
            check_port(self.port, origin, &port.key("number"), report);
        }
        if self.port_name.is_empty() {
            report.error(
                "missing-field",
                origin,
                &port.key("name"),
                "`name` must not be empty",
            );
        }
        if self.has_target_port {
            let message = "`targetPort` has no effect in a Gateway";
            report.error("bad-value", origin, &port.key("targetPort"), message);
        }
        if !self.bind.is_empty() && !unix && self.bind.parse::<IpAddr>().is_err() {
            let message = format!("`{}` is not an IP address", self.bind);
            report.error("bad-value", origin, &path.key("bind"), message);
        }
        let protocol = port.key("protocol");
        if !is_protocol(&self.protocol) {
            let message = format!(
                "`{}` is not a protocol: one of {}",
                self.protocol,
                PROTOCOLS.join(", ")
            );
            report.error("bad-value", origin, &protocol, message);
        }
        let secure = is_tls(&self.protocol);
        self.validate_pins(path, origin, report);
        self.validate_mode(path, origin, report);
        match &self.tls {
            None if secure => {
                let message = format!("a server with protocol {} needs `tls`", self.protocol);
                report.error("missing-field", origin, &path.key("tls"), message);
            }
            Some(tls) if !secure => {
                let http = is_http(&self.protocol);
                if !(http && tls.https_redirect)
                    || tls.mode.as_deref().is_some_and(|mode| mode != "PASSTHROUGH")
                {
                    let message = format!(
                        "`tls` with protocol {} may only ask for httpsRedirect",
                        self.protocol
                    );
                    report.error("bad-value", origin, &path.key("tls"), message);
                }
            }
            Some(tls) if tls.https_redirect => {
                let path = path.key("tls");
                report.warn(
                    "no-effect",
                    origin,
                    &path.key("httpsRedirect"),
                    "only an HTTP server redirects to https",
                );
            }
            _ => {}
        }
        self.validate_hosts(path, meta, report);
    }

    /// The classic trap: without a mode TLS passes through, whatever certificates are named.
    fn validate_mode(&self, path: &Path<'_>, origin: &crate::report::Origin, report: &mut Report<'_>) {
        let Some(tls) = self.tls.as_ref().filter(|_| is_tls(&self.protocol)) else {
            return;
        };
        let has_keys = !tls.server_certificate.is_empty()
            || !tls.credential_names.is_empty()
            || !tls.certificates.is_empty();
        if tls.mode.is_none() && has_keys {
            let message = "without `mode` TLS passes through unopened, and the certificate is not used";
            let help = Some("to end TLS here, write `mode: SIMPLE`".to_owned());
            report.add(
                crate::diagnostic::Severity::Warning,
                "no-tls-mode",
                origin,
                &path.key("tls"),
                message,
                help,
            );
        }
        let rank = |version: &Option<String>| match version.as_deref() {
            Some("TLSV1_0") => Some(0),
            Some("TLSV1_1") => Some(1),
            Some("TLSV1_2") => Some(2),
            Some("TLSV1_3") => Some(3),
            _ => None,
        };
        let (min, max) = (rank(&tls.min_version), rank(&tls.max_version));
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            let message = "is below `minProtocolVersion`, and has no effect";
            report.warn(
                "no-effect",
                origin,
                &path.key("tls").key("maxProtocolVersion"),
                message,
            );
        }
        if min.is_some_and(|min| min < 2) {
            let message = "TLS before 1.2 is not spoken: 1.2 is the least";
            report.warn(
                "no-effect",
                origin,
                &path.key("tls").key("minProtocolVersion"),
                message,
            );
        }
    }

    /// Hashes that no certificate can have, which Istio would find out only when it serves them.
    fn validate_pins(&self, path: &Path<'_>, origin: &crate::report::Origin, report: &mut Report<'_>) {
        let Some(tls) = &self.tls else { return };
        let path = path.key("tls");
        let list = path.key("verifyCertificateSpki");
        for (at, text) in tls.verify_certificate_spki.iter().enumerate() {
            if spki_hash(text).is_none() {
                let message = "must be the SHA-256 of a public key in base64: 44 characters";
                report.error("bad-value", origin, &list.index(at), message);
            }
        }
        let list = path.key("verifyCertificateHash");
        for (at, text) in tls.verify_certificate_hash.iter().enumerate() {
            if certificate_hash(text).is_none() {
                let message = "must be the SHA-256 of a certificate in hexadecimal: 64 digits";
                report.error("bad-value", origin, &list.index(at), message);
            }
        }
    }

    fn validate_hosts(&self, path: &Path<'_>, meta: &Meta, report: &mut Report<'_>) {
        let list = path.key("hosts");
        if self.hosts.is_empty() {
            report.error(
                "missing-field",
                &meta.origin,
                &list,
                "a server needs at least one host",
            );
        }
        for (at, host) in self.hosts.iter().enumerate() {
            let path = list.index(at);
            let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
            if !matches!(namespace, "*" | ".") && !is_label(namespace) {
                let message = format!("`{namespace}` is not a namespace, `*` or `.`");
                report.error("bad-host", &meta.origin, &path, message);
            }
            if let Some(fault) = host_fault(name) {
                report.error("bad-host", &meta.origin, &path, fault);
            } else if is_partial_wildcard(name) && !name.starts_with("*-") {
                let message = format!("`{name}`: a wildcard must be a whole label, as in `*.example.com`");
                report.error("bad-host", &meta.origin, &path, message);
            } else if !name.contains(['.', ':']) && HostPattern::parse(name) != HostPattern::Any {
                let message = format!("`{name}` is a short name: a Gateway needs the whole name");
                let help = Some(format!(
                    "for a service of this namespace: `{name}.{}.svc.cluster.local`",
                    meta.namespace
                ));
                report.add(
                    crate::diagnostic::Severity::Error,
                    "bad-host",
                    &meta.origin,
                    &path,
                    message,
                    help,
                );
            }
        }
    }
}
