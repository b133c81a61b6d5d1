//! What a rule does beside sending requests on: faults, and what browsers are told.

use crate::diagnostic::Severity;
use crate::index::selects;
use crate::report::Report;
use crate::resource::Written;
use crate::resource::cors::CorsPolicy;
use crate::resource::fault::{ABORT, Fault as WrittenFault, WrittenShare};
use crate::resource::virtual_service::VirtualService;
use crate::yaml::Path;
use crate::{Defaults, Options};
use http::StatusCode;
use isthmus_core::route::{Abort, AbortWith, Cors, Delay, Fault, Share, TextMatch};

/// How many requests: without a percentage all of them, as the concept pages of Istio 1.1 say, or none, as in Istio
/// today.
fn share(written: &WrittenShare, defaults: Defaults) -> Share {
    match (written.percent(), defaults) {
        (Some(percent), _) => Share::of_percent(percent),
        (None, Defaults::Seed) => Share::ALWAYS,
        (None, Defaults::Current) => Share::NEVER,
    }
}

/// Compiles a fault; None when it strikes nothing.
pub(super) fn fault(written: &WrittenFault, defaults: Defaults) -> Option<Fault> {
    let delay = written.delay.as_ref().and_then(|delay| {
        Some(Delay {
            share: share(&delay.share, defaults),
            time: delay.fixed?,
        })
    });
    let abort = written.abort.as_ref().and_then(|abort| {
        let status = || {
            let status = u16::try_from(abort.http_status?).ok()?;
            StatusCode::from_u16(status).ok().map(AbortWith::Status)
        };
        let with = match abort.resets {
            true => AbortWith::Reset,
            false => abort.grpc().map(AbortWith::Grpc).or_else(status)?,
        };
        Some(Abort {
            share: share(&abort.share, defaults),
            with,
        })
    });
    let fault = Fault {
        delay: delay.filter(|delay| delay.share > Share::NEVER),
        abort: abort.filter(|abort| abort.share > Share::NEVER),
    };
    (fault.delay.is_some() || fault.abort.is_some()).then_some(fault)
}

/// Compiles what browsers are told.
pub(super) fn cors(written: &CorsPolicy) -> Cors {
    let origins = if written.allow_origins.is_empty() {
        let exact = written.allow_origin.iter();
        exact
            .map(|origin| TextMatch::Exact(origin.as_str().into()))
            .collect()
    } else {
        written.allow_origins.clone()
    };
    let mut cors = Cors::new(origins);
    cors.methods = written.allow_methods.join(",").into();
    cors.headers = written.allow_headers.join(",").into();
    cors.exposed = written.expose_headers.join(",").into();
    cors.max_age = written.max_age.map(|age| age.as_secs());
    cors.credentials = written.allow_credentials;
    cors.keeps_unmatched = written.keeps_unmatched;
    cors
}

/// Reports matches that no caller can meet, because a gateway has one set of labels and one namespace, which stand for
/// all of its callers: its own, as Istio compares them.
pub(super) fn check_sources(written: &Written<VirtualService>, options: &Options, report: &mut Report<'_>) {
    let Written { meta, spec } = written;
    let list = Path::SPEC.key("http");
    for (at, rule) in spec.http.iter().enumerate() {
        let rule_path = list.index(at);
        let matches = rule_path.key("match");
        for (at, matched) in rule.matches.iter().enumerate() {
            let path = matches.index(at);
            if !selects(&matched.source_labels, &options.labels) {
                let message = "this gateway does not have these labels: the match takes no request";
                let help = "labels of callers are those of the gateway: give them with --labels".to_owned();
                let path = path.key("sourceLabels");
                report.add(
                    Severity::Hint,
                    "other-source",
                    &meta.origin,
                    &path,
                    message,
                    Some(help),
                );
            }
            let namespace = matched.source_namespace.as_str();
            if !namespace.is_empty() && namespace != options.namespace {
                let message = "this gateway is not in that namespace: the match takes no request";
                let help =
                    "the namespace of callers is that of the gateway: give it with --namespace".to_owned();
                let path = path.key("sourceNamespace");
                report.add(
                    Severity::Hint,
                    "other-source",
                    &meta.origin,
                    &path,
                    message,
                    Some(help),
                );
            }
        }
    }
}

/// Reports faults that say nothing of how many requests they strike, and policies for browsers where none is asked.
pub(super) fn check(written: &Written<VirtualService>, defaults: Defaults, report: &mut Report<'_>) {
    let Written { meta, spec } = written;
    let origin = &meta.origin;
    let list = Path::SPEC.key("http");
    for (at, rule) in spec.http.iter().enumerate() {
        let path = list.index(at);
        let fault_path = path.key("fault");
        let fault = rule.fault.clone().unwrap_or_default();
        for (name, share) in [
            ("delay", fault.delay.map(|delay| delay.share)),
            ("abort", fault.abort.map(|abort| abort.share)),
        ] {
            if share.is_none_or(|share| share.percent().is_some()) {
                continue;
            }
            let message = match defaults {
                Defaults::Seed => "no percentage is written: every request is struck",
                Defaults::Current => "no percentage is written: no request is struck",
            };
            report.warn("no-percentage", origin, &fault_path.key(name), message);
        }
        if rule.cors_policy.is_some() && (rule.redirect.is_some() || rule.direct_response.is_some()) {
            let message = "browsers are told nothing in redirects and direct responses (nor by Istio)";
            report.warn("no-effect", origin, &path.key("corsPolicy"), message);
        }
    }
    let aborts = |written: &VirtualService| {
        let mut faults = written.http.iter().filter_map(|rule| rule.fault.as_ref());
        faults.any(|fault| fault.abort.is_some())
    };
    if meta.annotations.contains_key(ABORT) && !aborts(spec) {
        let message = "no rule of this VirtualService has a `fault.abort`";
        report.warn("no-effect", origin, &Path::ANNOTATIONS.key(ABORT), message);
    }
}
