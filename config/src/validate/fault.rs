//! Validation of faults and of what browsers are told (Istio's `validateHTTPFaultInjection`, `validateCORSPolicy`).

use crate::diagnostic::Severity;
use crate::report::{Origin, Report};
use crate::resource::cors::CorsPolicy;
use crate::resource::fault::{Abort, Delay, Fault, WrittenShare};
use crate::yaml::Path;
use isthmus_core::grpc::Status;
use isthmus_core::header::FieldName;

const METHODS: [&str; 10] = [
    "*", "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

impl Fault {
    pub(super) fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        if self.delay.is_none() && self.abort.is_none() {
            let message = "a fault needs a delay or an abort";
            report.error("missing-field", origin, path, message);
        }
        if let Some(delay) = &self.delay {
            delay.validate(&path.key("delay"), origin, report);
        }
        if let Some(abort) = &self.abort {
            abort.validate(&path.key("abort"), origin, report);
        }
    }
}

impl WrittenShare {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        // Smaller shares than a millionth cannot be told from none (Envoy's fractions).
        if self.percentage.is_some_and(|value| value > 0.0 && value < 0.0001) {
            let message = "a percentage is 0, or from 0.0001 to 100";
            report.error("bad-value", origin, &path.key("percentage").key("value"), message);
        }
        if self.percentage.is_some() && self.percent.is_some() {
            let message = "`percentage` is written as well, and counts";
            report.warn("no-effect", origin, &path.key("percent"), message);
        }
    }
}

impl Delay {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        self.share.validate(path, origin, report);
        if self.share.percent.is_some() && self.share.percentage.is_none() {
            let message = "`percent` is an old spelling of `percentage`";
            report.warn("old-spelling", origin, &path.key("percent"), message);
        }
        if self.has_exponential {
            let message = "exponential delays are not supported: write `fixedDelay`";
            report.error("bad-value", origin, &path.key("exponentialDelay"), message);
        } else if self.fixed.is_none() {
            let message = "a delay without `fixedDelay` holds nothing up";
            report.warn("no-effect", origin, path, message);
        }
    }
}

impl Abort {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        self.share.validate(path, origin, report);
        let ways = [
            ("httpStatus", self.http_status.is_some()),
            ("grpcStatus", self.grpc_status.is_some()),
            ("http2Error", self.has_http2_error),
        ];
        let mut written = ways.iter().filter(|(_, there)| *there).map(|(name, _)| *name);
        match (written.next(), written.next()) {
            (Some(first), Some(second)) => {
                let message = format!("`{first}` and `{second}` exclude each other");
                report.add_key(
                    Severity::Error,
                    "exclusive-fields",
                    origin,
                    &path.key(second),
                    message,
                    None,
                );
            }
            (None, _) if !self.resets => {
                let message = "an abort without `httpStatus` or `grpcStatus` ends nothing";
                report.warn("no-effect", origin, path, message);
            }
            _ => {}
        }
        if self.has_http2_error {
            let message = "errors of HTTP/2 are not supported: write `httpStatus` or `grpcStatus`";
            report.error("bad-value", origin, &path.key("http2Error"), message);
        }
        if let Some(name) = &self.grpc_status
            && self.grpc().is_none()
        {
            let help = crate::diagnostic::nearest(name, Status::NAMES.iter().copied())
                .map(|name| format!("did you mean `{name}`?"));
            let message = format!("`{}` is no gRPC status", crate::resource::schema::shortened(name));
            report.add(
                Severity::Error,
                "bad-value",
                origin,
                &path.key("grpcStatus"),
                message,
                help,
            );
        }
    }
}

impl CorsPolicy {
    pub(super) fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        let methods = path.key("allowMethods");
        for (at, method) in self.allow_methods.iter().enumerate() {
            if !METHODS.contains(&method.as_str()) {
                let shown = crate::resource::schema::shortened(method);
                let message = format!("`{shown}` is not a method in upper case, nor `*`");
                report.error("bad-value", origin, &methods.index(at), message);
            }
        }
        for (name, headers) in [
            ("allowHeaders", &self.allow_headers),
            ("exposeHeaders", &self.expose_headers),
        ] {
            let list = path.key(name);
            for (at, header) in headers.iter().enumerate() {
                if header != "*" && FieldName::parse(header).is_none() {
                    let shown = crate::resource::schema::shortened(header);
                    let message = format!("`{shown}` is not a header name");
                    report.error("bad-header", origin, &list.index(at), message);
                }
            }
        }
        if !self.allow_origin.is_empty() && !self.allow_origins.is_empty() {
            let message = "`allowOrigins` is written as well, and counts";
            report.warn("no-effect", origin, &path.key("allowOrigin"), message);
        }
    }
}
