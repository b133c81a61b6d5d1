//! Validation of VirtualServices (Istio's `ValidateVirtualService`).

use super::{Validate, check_export_to, check_port, host_fault, is_label};
use crate::diagnostic::Severity;
use crate::index::{GatewayName, expand};
use crate::report::{Origin, Report};
use crate::resource::Meta;
use crate::resource::fault::ABORT;
use crate::resource::virtual_service::{
    DirectResponse, HeaderOperations, Headers, HttpMatch, HttpRoute, Redirect, UriRegexRewrite,
    VirtualService, regex_error,
};
use crate::yaml::Path;
use isthmus_core::header::{FieldName, is_value_byte};
use isthmus_core::name::HostPattern;
use isthmus_core::route::{RegexRewrite, RewriteError, TextMatch};
use isthmus_core::substitution::{Constants, Parsed, Template};
use std::collections::HashSet;

/// Largest body of a direct response (Istio).
const BODY_BYTES_MAX: usize = 1024 * 1024;

impl Validate for VirtualService {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        let hosts = Path::SPEC.key("hosts");
        let delegate = self.hosts.is_empty();
        if delegate && !self.gateways.is_empty() {
            report.error(
                "missing-field",
                origin,
                &hosts,
                "a VirtualService needs at least one host",
            );
        }
        let mesh = self.gateways.is_empty() || self.gateways.iter().any(|name| name == "mesh");
        for (at, host) in self.hosts.iter().enumerate() {
            let path = hosts.index(at);
            if host.starts_with("outbound_.") {
                // The names of clusters that AUTO_PASSTHROUGH takes as SNI: `outbound_.PORT_.SUBSET_.HOST`.
                continue;
            }
            if let Some(fault) = host_fault(host) {
                report.error("bad-host", origin, &path, fault);
            } else if host == "*" && mesh {
                let message = "the host `*` needs a gateway: for mesh clients it would take everything";
                report.error("bad-host", origin, &path, message);
            }
        }
        self.check_overlap(meta, report);
        let gateways = Path::SPEC.key("gateways");
        for (at, name) in self.gateways.iter().enumerate() {
            check_gateway(name, &gateways.index(at), meta, report);
        }
        check_export_to(&self.export_to, false, meta, report);
        if let Some(way) = meta.annotations.get(ABORT).filter(|way| *way != "reset") {
            let shown = crate::resource::schema::shortened(way);
            let message = format!("`{shown}` is no way to abort requests: write `reset`");
            report.error("bad-value", origin, &Path::ANNOTATIONS.key(ABORT), message);
        }
        if self.http.is_empty() && self.tls.is_empty() && self.tcp.is_empty() {
            report.error(
                "missing-field",
                origin,
                &Path::SPEC.key("http"),
                "at least one of http, tls and tcp is needed",
            );
        }
        let list = Path::SPEC.key("http");
        for (at, rule) in self.http.iter().enumerate() {
            rule.validate(&list.index(at), meta, report);
        }
    }
}

impl VirtualService {
    /// Hosts of one VirtualService may not overlap: neither the same twice, nor one that a wildcard covers. Each host
    /// asks for the wildcards above it, so that many hosts do not cost their square.
    fn check_overlap(&self, meta: &Meta, report: &mut Report<'_>) {
        let patterns = self
            .hosts
            .iter()
            .map(|host| HostPattern::parse(&expand(host, &meta.namespace)));
        let patterns: Vec<HostPattern> = patterns.collect();
        let wildcards: HashSet<&str> = patterns.iter().filter_map(suffix).collect();
        let all = patterns.contains(&HostPattern::Any);
        let list = Path::SPEC.key("hosts");
        let mut seen = HashSet::new();
        for (at, pattern) in patterns.iter().enumerate() {
            let above = match pattern {
                HostPattern::Any => None,
                _ if all => Some("*".to_owned()),
                HostPattern::Exact(name) => dotted(name)
                    .find(|end| wildcards.contains(end))
                    .map(|end| format!("*{end}")),
                HostPattern::Suffix(own) => dotted(own)
                    .skip(1)
                    .find(|end| wildcards.contains(end))
                    .map(|end| format!("*{end}")),
            };
            let message = if !seen.insert(pattern) {
                format!("the host `{pattern}` is written twice")
            } else if let Some(above) = above {
                format!("the host `{pattern}` is also covered by `{above}` of the same VirtualService")
            } else {
                continue;
            };
            report.error("duplicate-value", &meta.origin, &list.index(at), message);
        }
    }
}

fn suffix(pattern: &HostPattern) -> Option<&str> {
    match pattern {
        HostPattern::Suffix(suffix) => Some(suffix),
        _ => None,
    }
}

/// The ends of a name that begin with a dot, the longest first.
fn dotted(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').filter_map(|(at, _)| name.get(at..))
}

pub(super) fn check_gateway(name: &str, path: &Path<'_>, meta: &Meta, report: &mut Report<'_>) {
    match GatewayName::parse(name, &meta.namespace) {
        None => {
            let message = format!(
                "`{}` is not a gateway: write `name` or `namespace/name`",
                crate::resource::schema::shortened(name)
            );
            report.error("bad-value", &meta.origin, path, message);
        }
        Some(GatewayName::Named { legacy: true, id }) => {
            let message = format!("`{name}` is an old spelling of `{id}`");
            report.warn("old-spelling", &meta.origin, path, message);
        }
        Some(_) => {}
    }
}

impl HttpRoute {
    fn validate(&self, path: &Path<'_>, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        if self.is_empty {
            return report.error("missing-field", origin, path, "an empty rule");
        }
        let actions = [
            ("route", !self.route.is_empty()),
            ("redirect", self.redirect.is_some()),
            ("directResponse", self.direct_response.is_some()),
        ];
        let mut written = actions.iter().filter(|(_, there)| *there).map(|(name, _)| *name);
        match (written.next(), written.next()) {
            (None, _) if self.delegate.is_none() => {
                report.error(
                    "missing-field",
                    origin,
                    path,
                    "a rule needs one of route, redirect and directResponse",
                );
            }
            (Some(first), None) if self.delegate.is_some() && first != "directResponse" => {
                let message = format!("`{first}` and `delegate` exclude each other");
                report.error("exclusive-fields", origin, &path.key(first), message);
            }
            (Some(first), Some(second)) => {
                let message = format!("`{first}` and `{second}` exclude each other");
                report.error("exclusive-fields", origin, &path.key(second), message);
            }
            _ => {}
        }
        if self.redirect.is_some() || self.direct_response.is_some() {
            for (name, there) in [
                ("rewrite", self.rewrite.is_some()),
                ("fault", self.fault.is_some()),
            ] {
                if there {
                    let message = format!("`{name}` needs a route, not a redirect or directResponse");
                    report.error("exclusive-fields", origin, &path.key(name), message);
                }
            }
        }
        let list = path.key("match");
        for (at, matches) in self.matches.iter().enumerate() {
            matches.validate(&list.index(at), meta, report);
        }
        if let Some(redirect) = &self.redirect {
            redirect.validate(self, &path.key("redirect"), origin, report);
        }
        if let Some(response) = &self.direct_response {
            response.validate(&path.key("directResponse"), origin, report);
        }
        if let Some(rewrite) = &self.rewrite {
            let path = path.key("rewrite");
            if rewrite.uri_regex.is_some() && !rewrite.uri.is_empty() {
                report.error(
                    "exclusive-fields",
                    origin,
                    &path.key("uri"),
                    "`uri` and `uriRegexRewrite` exclude each other",
                );
            }
            if let Some(written) = &rewrite.uri_regex {
                written.validate(&path.key("uriRegexRewrite"), origin, report);
            }
            if rewrite.uri_regex.is_none() && rewrite.uri.is_empty() && rewrite.authority.is_empty() {
                report.error(
                    "missing-field",
                    origin,
                    &path,
                    "one of uri, uriRegexRewrite and authority is needed",
                );
            }
            if !rewrite.authority.is_empty() && self.operations().request.authority().is_some() {
                let message = "the authority is also set by headers.request";
                report.error("exclusive-fields", origin, &path.key("authority"), message);
            }
        }
        if let Some(fault) = &self.fault {
            fault.validate(&path.key("fault"), origin, report);
        }
        if let Some(cors) = &self.cors_policy {
            cors.validate(&path.key("corsPolicy"), origin, report);
        }
        self.operations().validate(path, origin, report);
        self.validate_destinations(path, meta, report);
    }

    fn validate_destinations(&self, path: &Path<'_>, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        let list = path.key("route");
        let mut total = 0;
        for (at, destination) in self.route.iter().enumerate() {
            let item = list.index(at);
            let path = item.key("destination");
            match destination.target.host.as_str() {
                "*" => report.error(
                    "bad-host",
                    origin,
                    &path.key("host"),
                    "a destination cannot be `*`",
                ),
                host => {
                    if let Some(fault) = host_fault(host) {
                        report.error("bad-host", origin, &path.key("host"), fault);
                    }
                }
            }
            if !destination.target.subset.is_empty() && !is_label(&destination.target.subset) {
                let message = format!("`{}` is not the name of a subset", destination.target.subset);
                report.error("bad-value", origin, &path.key("subset"), message);
            }
            if let Some(port) = destination.target.port {
                check_port(port.into(), origin, &path.key("port").key("number"), report);
            }
            if destination.weight < 0 {
                report.error(
                    "bad-value",
                    origin,
                    &item.key("weight"),
                    "a weight must not be negative",
                );
            }
            total += i128::from(destination.weight.max(0));
            destination.operations().validate(&item, origin, report);
        }
        if self.route.len() > 1 && total == 0 {
            report.error(
                "weights",
                origin,
                &list,
                "of several destinations at least one needs a weight",
            );
        } else if self.route.len() > 1 && total != 100 {
            let message =
                format!("the weights add up to {total}, not 100: they are taken as shares of {total}");
            report.warn("weights", origin, &list, message);
        }
    }
}

impl UriRegexRewrite {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        for (name, text) in [("match", &self.pattern), ("rewrite", &self.rewrite)] {
            if text.is_empty() {
                report.error(
                    "missing-field",
                    origin,
                    &path.key(name),
                    format!("`{name}` is required"),
                );
            }
        }
        match RegexRewrite::new(&self.pattern, &self.rewrite) {
            Ok(_) => {}
            Err(RewriteError::Pattern(error)) => regex_error(&error, origin, &path.key("match"), report),
            Err(error) => report.error("bad-value", origin, &path.key("rewrite"), error.to_string()),
        }
    }
}

impl HttpMatch {
    fn validate(&self, path: &Path<'_>, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        if let Some(port) = self.port {
            check_port(port.into(), origin, &path.key("port"), report);
        }
        let list = path.key("gateways");
        for (at, name) in self.gateways.iter().enumerate() {
            check_gateway(name, &list.index(at), meta, report);
        }
        for (field, headers) in [
            ("headers", &self.headers),
            ("withoutHeaders", &self.without_headers),
        ] {
            let list = path.key(field);
            for (name, _) in headers {
                let path = list.key(name);
                if name.starts_with("@request.auth.") {
                    let message =
                        "no token is checked here, so that no request has claims: this match takes none";
                    report.add_key(
                        Severity::Warning,
                        "claims-unauthenticated",
                        origin,
                        &path,
                        message,
                        None,
                    );
                } else if FieldName::parse(name.strip_prefix(':').unwrap_or(name)).is_none() {
                    let message = format!(
                        "`{}` is not a header name",
                        crate::resource::schema::shortened(name)
                    );
                    report.add_key(Severity::Error, "bad-header", origin, &path, message, None);
                }
            }
        }
    }

    /// Whether it matches claims of a token, which is not executed yet.
    pub(crate) fn needs_claims(&self) -> bool {
        self.headers
            .iter()
            .chain(&self.without_headers)
            .any(|(name, _)| name.starts_with("@request.auth."))
    }
}

impl Redirect {
    fn validate(&self, rule: &HttpRoute, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        let nothing = self.uri.is_empty()
            && self.prefix_rewrite.is_none()
            && self.authority.is_empty()
            && self.scheme.is_empty()
            && self.port.is_none()
            && self.derive_port.is_none();
        if nothing {
            let message = "a redirect needs one of uri, prefixRewrite, authority, scheme and port";
            report.error("missing-field", origin, path, message);
        }
        if !self.uri.is_empty() && self.prefix_rewrite.is_some() {
            report.error(
                "exclusive-fields",
                origin,
                &path.key("prefixRewrite"),
                "`uri` and `prefixRewrite` exclude each other",
            );
        }
        if self.port.is_some() && self.derive_port.is_some() {
            report.error(
                "exclusive-fields",
                origin,
                &path.key("derivePort"),
                "`port` and `derivePort` exclude each other",
            );
        }
        if let Some(port) = self.port {
            check_port(port, origin, &path.key("port"), report);
        }
        if !matches!(self.scheme.as_str(), "" | "http" | "https") {
            report.error(
                "bad-value",
                origin,
                &path.key("scheme"),
                "the scheme must be http or https",
            );
        }
        if !matches!(self.code, 0 | 301 | 302 | 303 | 307 | 308) {
            let message = format!("{} is not a redirect: 301, 302, 303, 307 or 308", self.code);
            report.error("bad-value", origin, &path.key("redirectCode"), message);
        }
        for (field, value) in [("uri", self.uri.as_str()), ("authority", self.authority.as_str())]
            .into_iter()
            .chain(
                self.prefix_rewrite
                    .as_deref()
                    .map(|value| ("prefixRewrite", value)),
            )
        {
            // They become part of a header field: a line break would start another one.
            if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!("`{field}` must be visible ASCII characters");
                report.error("bad-value", origin, &path.key(field), message);
            }
        }
        let prefix_only = |matches: &HttpMatch| {
            matches!(
                matches.uri,
                None | Some(TextMatch::Prefix(_) | TextMatch::Present)
            )
        };
        if self.prefix_rewrite.is_some() && !rule.matches.iter().all(prefix_only) {
            let message = "`prefixRewrite` needs every match of the rule to have a uri prefix, or none";
            report.error("bad-value", origin, &path.key("prefixRewrite"), message);
        }
    }
}

impl DirectResponse {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        if !(200..600).contains(&self.status) {
            let message = format!("{} is not a final status: 200 to 599", self.status);
            report.error("bad-value", origin, &path.key("status"), message);
        }
        let body = path.key("body");
        if self.text.is_some() && self.bytes.is_some() {
            report.error(
                "exclusive-fields",
                origin,
                &body.key("bytes"),
                "`string` and `bytes` exclude each other",
            );
        }
        match self.body() {
            None => report.error("bad-value", origin, &body.key("bytes"), "not base64"),
            Some(bytes) if bytes.len() > BODY_BYTES_MAX => {
                let message = format!("the body has {} bytes; {BODY_BYTES_MAX} are allowed", bytes.len());
                report.error("too-large", origin, &body, message);
            }
            Some(bytes) if bytes.len() > 100 * 1024 => {
                report.warn(
                    "too-large",
                    origin,
                    &body,
                    "a body above 100 kB is kept in memory for every version",
                );
            }
            Some(_) => {}
        }
    }

    /// The body; None when its base64 is none.
    pub(crate) fn body(&self) -> Option<Vec<u8>> {
        match (&self.text, &self.bytes) {
            (Some(text), _) => Some(text.clone().into_bytes()),
            (None, Some(bytes)) => base64(bytes),
            (None, None) => Some(Vec::new()),
        }
    }
}

/// Decodes base64, standard or URL-safe, padded or not (as jsonpb takes `bytes`).
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() * 3 / 4 + 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // Six bits alone make no byte.
    (text.len() % 4 != 1).then_some(out)
}

impl Headers {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        let path = path.key("headers");
        self.request.validate(true, &path.key("request"), origin, report);
        self.response
            .validate(false, &path.key("response"), origin, report);
    }
}

/// Whether a name of `headers.request` means the authority.
pub(crate) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name == ":authority"
}

impl HeaderOperations {
    /// The authority that it sets, if it does.
    pub(crate) fn authority(&self) -> Option<&str> {
        let mut all = self.set.iter().chain(&self.add);
        all.find(|(name, _)| is_authority(name))
            .map(|(_, value)| value.as_str())
    }

    fn validate(&self, request: bool, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        for (field, map) in [("set", &self.set), ("add", &self.add)] {
            let list = path.key(field);
            for (name, value) in map {
                let path = list.key(name);
                if !(request && is_authority(name)) {
                    check_name(name, &path, origin, report);
                }
                match header_value(value, "") {
                    Ok(parsed) => {
                        for name in parsed.unknown {
                            let message = format!("no variable is named `{name}`: it gives nothing");
                            report.warn("unknown-variable", origin, &path, message);
                        }
                    }
                    Err(reason) => report.error("bad-header", origin, &path, reason),
                }
            }
        }
        let list = path.key("remove");
        for (at, name) in self.remove.iter().enumerate() {
            check_name(name, &list.index(at), origin, report);
        }
    }
}

fn check_name(name: &str, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
    if is_authority(name) || name.starts_with(':') {
        let message = format!("`{name}` cannot be changed here");
        report.add_key(Severity::Error, "bad-header", origin, path, message, None);
    } else if FieldName::parse(name).is_none() {
        let message = format!(
            "`{}` is not a header name",
            crate::resource::schema::shortened(name)
        );
        report.add_key(Severity::Error, "bad-header", origin, path, message, None);
    }
}

/// A header value with its substitutions: `%%` is a percent sign, any other `%` begins one.
pub(crate) fn header_value(written: &str, hostname: &str) -> Result<Parsed, String> {
    if !written.bytes().all(is_value_byte) {
        return Err("a header value has no control characters".to_owned());
    }
    Template::parse(written, Constants { hostname }).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_or_refused() {
        assert_eq!(base64("aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(base64("aGVsbG8"), Some(b"hello".to_vec()));
        assert_eq!(base64(""), Some(vec![]));
        assert_eq!(base64("-_8="), Some(vec![0xfb, 0xff]));
        assert_eq!(base64("a"), None);
        assert_eq!(base64("a b="), None);
    }

    #[test]
    fn header_values_have_substitutions() {
        let constant =
            |text| header_value(text, "edge").map(|parsed| parsed.template.constant().map(str::to_owned));
        assert_eq!(constant("100%%"), Ok(Some("100%".to_owned())));
        assert_eq!(constant("on %HOSTNAME%"), Ok(Some("on edge".to_owned())));
        assert_eq!(constant("%REQ(x)%"), Ok(None));
        assert!(constant("100%").is_err());
        assert!(constant("a\r\nb").is_err());
    }
}
