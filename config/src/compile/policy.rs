//! What a rule does beside sending requests on: faults, and what browsers are told.

use crate::Defaults;
use crate::resource::cors::CorsPolicy;
use crate::resource::fault::{Fault as WrittenFault, WrittenShare};
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
