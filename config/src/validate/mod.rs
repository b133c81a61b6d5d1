//! Validation of single resources: Istio's own rules.
//!
//! The schema has checked each field for itself; here is what several fields, or a value's grammar, must obey. Rules
//! for what is executed stand with the typed resources; `written` has those for the rest. What concerns several
//! resources is found by the compiler.

pub(crate) mod destination_rule;
mod fault;
pub(crate) mod gateway;
mod health;
pub(crate) mod service_entry;
pub(crate) mod virtual_service;
pub(crate) mod written;

use crate::diagnostic::Severity;
use crate::report::{Origin, Report};
use crate::resource::Meta;
use crate::resource::kubernetes::{EndpointSlice, Secret, Service};
use crate::yaml::Path;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

/// A resource that can be checked for itself.
pub(crate) trait Validate {
    /// Reports everything that is wrong with it.
    fn validate(&self, meta: &Meta, report: &mut Report<'_>);
}

impl Validate for Service {
    fn validate(&self, _: &Meta, _: &mut Report<'_>) {}
}

impl Validate for Secret {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        let data = Path::Root.key("data");
        for (key, value) in &self.values {
            if value.is_none() {
                let path = data.key(key);
                report.error("bad-value", &meta.origin, &path, "not base64 text");
            }
        }
        if self.kind == "kubernetes.io/tls" {
            for key in ["tls.crt", "tls.key"] {
                if self
                    .values
                    .get(key)
                    .and_then(Option::as_ref)
                    .is_none_or(Vec::is_empty)
                {
                    let message = format!("a Secret of type kubernetes.io/tls needs `{key}`");
                    report.error("missing-field", &meta.origin, &data.key(key), message);
                }
            }
        }
    }
}

impl Validate for EndpointSlice {
    fn validate(&self, _: &Meta, _: &mut Report<'_>) {}
}

/// A label of a name (RFC 1123): letters, digits and inner dashes, at most 63.
pub(crate) fn is_label(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// What is wrong with a host, if anything: `*`, or labels of which the first may be or begin with a star.
pub(crate) fn host_fault(host: &str) -> Option<String> {
    if host.is_empty() {
        return Some("a host must not be empty".to_owned());
    }
    if host.len() > 255 {
        return Some(format!(
            "a host has at most 255 characters, this one has {}",
            host.len()
        ));
    }
    if host == "*" || host.parse::<IpAddr>().is_ok() {
        return None;
    }
    // A final dot makes a name absolute (RFC 1034, 3.1).
    let labels = host
        .strip_suffix('.')
        .filter(|rest| *rest != "*")
        .unwrap_or(host)
        .split('.');
    for (at, label) in labels.enumerate() {
        let name = if at == 0 {
            label
                .strip_prefix('*')
                .map_or(label, |rest| rest.strip_prefix('-').unwrap_or(rest))
        } else {
            label
        };
        if at == 0 && label == "*" {
            continue;
        }
        if name.contains('*') {
            return Some(format!(
                "`{}`: a star may only be the leftmost label",
                crate::resource::schema::shortened(host)
            ));
        }
        if !is_label(name) {
            let shown = crate::resource::schema::shortened(host);
            return Some(format!(
                "`{shown}` is not a host: `{label}` is not a label of letters, digits and dashes"
            ));
        }
    }
    None
}

/// What is wrong with the path of a unix socket, behind `unix://`.
pub(crate) fn unix_fault(socket: &str) -> Option<String> {
    let shown = || crate::resource::schema::shortened(socket);
    match socket.strip_prefix('@') {
        Some("") => Some("an abstract socket needs a name behind the `@`".to_owned()),
        Some(_) => None,
        None if !socket.starts_with('/') => Some(format!("`{}` is not an absolute path", shown())),
        None if socket.ends_with('/') => Some(format!("`{}` is a directory, not a socket", shown())),
        None => None,
    }
}

/// Checks the grammar of labels (Kubernetes: a name with a domain before it, and a value of at most 63 characters).
pub(crate) fn check_labels(
    labels: &BTreeMap<String, String>,
    path: &Path<'_>,
    origin: &Origin,
    report: &mut Report<'_>,
) {
    for (key, value) in labels {
        let (domain, name) = key.rsplit_once('/').unwrap_or(("", key));
        let good_domain = !key.contains('/') || (domain.len() <= 253 && domain.split('.').all(is_label));
        let path = path.key(key);
        if !good_domain || !is_qualified(name) {
            let message = format!(
                "`{}` is not the name of a label",
                crate::resource::schema::shortened(key)
            );
            report.add_key(Severity::Error, "bad-value", origin, &path, message, None);
        }
        if !value.is_empty() && !is_qualified(value) {
            let shown = crate::resource::schema::shortened(value);
            let message = format!("`{shown}` is not the value of a label");
            report.error("bad-value", origin, &path, message);
        }
    }
}

/// Letters, digits, and inner `-`, `_` and `.`, at most 63.
fn is_qualified(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Whether the leftmost label has a star and something else, as in `*bar.com`.
pub(crate) fn is_partial_wildcard(host: &str) -> bool {
    host.starts_with('*') && host.len() > 1 && !host.starts_with("*.")
}

/// Reports a port outside 1 to 65535.
pub(crate) fn check_port(number: i128, origin: &Origin, path: &Path<'_>, report: &mut Report<'_>) {
    if !(1..=65535).contains(&number) {
        report.error(
            "bad-port",
            origin,
            path,
            format!("port {number} is not within 1 and 65535"),
        );
    }
}

/// Checks `exportTo`: `*` and `~` stand alone, and no namespace is named twice.
pub(crate) fn check_export_to(list: &[String], nobody_allowed: bool, meta: &Meta, report: &mut Report<'_>) {
    let field = Path::SPEC.key("exportTo");
    let mut seen = HashSet::new();
    for (at, entry) in list.iter().enumerate() {
        let path = field.index(at);
        let name = if entry == "." {
            meta.namespace.as_str()
        } else {
            entry.as_str()
        };
        match entry.as_str() {
            "*" | "~" if list.len() > 1 => {
                report.error(
                    "bad-value",
                    &meta.origin,
                    &path,
                    format!("`{entry}` must stand alone"),
                );
            }
            "~" if !nobody_allowed => {
                report.error("bad-value", &meta.origin, &path, "`~` is for ServiceEntry only");
            }
            "*" | "~" | "." => {}
            _ if !is_label(entry) => {
                let shown = crate::resource::schema::shortened(entry);
                report.error(
                    "bad-value",
                    &meta.origin,
                    &path,
                    format!("`{shown}` is not a namespace"),
                );
            }
            _ => {}
        }
        if !seen.insert(name) {
            report.error(
                "duplicate-value",
                &meta.origin,
                &path,
                format!("`{name}` is named twice"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_obey_their_grammar() {
        for good in [
            "*",
            "a",
            "*.foo.com",
            "foo.com",
            "1.2.3.4",
            "::1",
            "*-x.foo.com",
            "foo.com.",
            "xn--a.b",
        ] {
            assert_eq!(host_fault(good), None, "{good}");
        }
        for bad in [
            "", "a..b", "a.*.b", "**.b", "a_b.c", "-a.b", "a b", ".a", "*.", "foo.*",
        ] {
            assert!(host_fault(bad).is_some(), "{bad}");
        }
        assert!(
            is_partial_wildcard("*bar.com") && !is_partial_wildcard("*.bar.com") && !is_partial_wildcard("*")
        );
    }
}
