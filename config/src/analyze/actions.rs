//! What rules do beside sending requests on, and what comes of it: faults, policies for browsers, retries; and matches
//! that no caller meets.

use super::View;
use super::references::used_delegates;
use crate::Defaults;
use crate::compile::source::{Asks, asks};
use crate::compile::{Context, retry};
use crate::diagnostic::Severity;
use crate::index::{expand, name_of};
use crate::report::Report;
use crate::resource::Written;
use crate::resource::fault::ABORT;
use crate::resource::virtual_service::VirtualService;
use crate::yaml::Path;
use std::collections::BTreeMap;

/// Reports what rules do besides, or do not.
pub(crate) fn check(view: &View<'_>, report: &mut Report<'_>) {
    let defaults = view.context.options.defaults;
    let delegates = used_delegates(view);
    for (at, written) in view.resources.virtual_services.iter().enumerate() {
        if view.is_quiet(at) {
            continue;
        }
        effects(written, defaults, report);
        if view.facts.used.contains(&at) || delegates.contains(&at) {
            sources(written, view.context, report);
            amplification(written, view.context, report);
        }
    }
}

/// Reports matches that no caller can meet: those of labels and namespaces that no client which can be known has, and the
/// gateway, which stands for the others, has not either.
fn sources(written: &Written<VirtualService>, context: &Context<'_>, report: &mut Report<'_>) {
    let Written { meta, spec } = written;
    let list = Path::SPEC.key("http");
    let none = BTreeMap::new();
    for (at, rule) in spec.http.iter().enumerate() {
        let rule_path = list.index(at);
        let matches = rule_path.key("match");
        for (at, matched) in rule.matches.iter().enumerate() {
            let path = matches.index(at);
            let cannot = |labels: &BTreeMap<String, String>, namespace: &str| {
                let asked = asks(labels, namespace, None, &context.clients, context.options);
                matches!(asked, Asks::TooMuch)
            };
            let mut tell = |key: &str, message: &str, help: &str| {
                report.add(
                    Severity::Hint,
                    "other-source",
                    &meta.origin,
                    &path.key(key),
                    message,
                    Some(help.to_owned()),
                );
            };
            let (labels, namespace) = (&matched.source_labels, matched.source_namespace.as_str());
            let (by_labels, by_namespace) = (cannot(labels, ""), cannot(&none, namespace));
            if by_labels || (!by_namespace && cannot(labels, namespace)) {
                tell(
                    "sourceLabels",
                    "no WorkloadEntry has these labels, nor has this gateway: the match takes no request",
                    "register the callers as WorkloadEntries; --labels says what the others count as",
                );
            }
            if by_namespace {
                tell(
                    "sourceNamespace",
                    "no WorkloadEntry is in that namespace, nor is this gateway: the match takes no request",
                    "register the callers as WorkloadEntries; --namespace says what the others count as",
                );
            }
        }
    }
}

/// Reports faults that say nothing of how many requests they strike, and policies for browsers where none is asked.
fn effects(written: &Written<VirtualService>, defaults: Defaults, report: &mut Report<'_>) {
    let Written { meta, spec } = written;
    let origin = &meta.origin;
    let list = Path::SPEC.key("http");
    for (at, rule) in spec.http.iter().enumerate() {
        let path = list.index(at);
        let fault_path = path.key("fault");
        let fault = rule.fault.as_deref();
        for (name, share) in [
            (
                "delay",
                fault.and_then(|fault| Some(&fault.delay.as_ref()?.share)),
            ),
            (
                "abort",
                fault.and_then(|fault| Some(&fault.abort.as_ref()?.share)),
            ),
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
        let mut faults = written.http.iter().filter_map(|rule| rule.fault.as_deref());
        faults.any(|fault| fault.abort.is_some())
    };
    if meta.annotations.contains_key(ABORT) && !aborts(spec) {
        let message = "no rule of this VirtualService has a `fault.abort`";
        report.warn("no-effect", origin, &Path::ANNOTATIONS.key(ABORT), message);
    }
}

/// Requests to an upstream for one of a client that are not worth a word: what the default makes of a failure.
const AMPLIFICATION_QUIET: u32 = 3;

/// Tells of rules whose retries multiply the load of an upstream that fails, with no budget that bounds them.
fn amplification(written: &Written<VirtualService>, context: &Context<'_>, report: &mut Report<'_>) {
    let list = Path::SPEC.key("http");
    for (at, rule) in written.spec.http.iter().enumerate() {
        let policy = retry::policy(rule.retries.as_deref(), &context.options.mesh.retry);
        let most = policy.retries.saturating_add(1);
        if rule.retries.is_none() || most <= AMPLIFICATION_QUIET {
            continue;
        }
        let unbounded = rule.route.iter().find_map(|destination| {
            let target = &destination.target;
            let host = expand(&target.host, &written.meta.namespace);
            let service = context.registry.find(&host, &written.meta.namespace)?;
            let found = context.rules.find(&service.host, service.namespace);
            let is_bounded = |port: u16| {
                let rule = found.as_ref()?;
                let subset = rule.subsets.iter().find(|subset| subset.name == target.subset);
                Some(!retry::limits(&rule.blocks(port, subset.copied())).is_unlimited())
            };
            let named = target.port.and_then(|port| u16::try_from(port).ok());
            let mut ports = service.ports.iter().map(|port| port.number);
            let first = ports.next();
            (!is_bounded(named.or(first)?).unwrap_or(false)).then_some(host)
        });
        let Some(host) = unbounded else { continue };
        let message = format!(
            "when `{host}` fails, it gets up to {most} requests for each one of {}, and no budget bounds that",
            name_of(&written.meta)
        );
        let help = "trafficPolicy.retryBudget or connectionPool.http.maxRetries of its DestinationRule does";
        report.add(
            Severity::Hint,
            "retry-amplification",
            &written.meta.origin,
            &list.index(at).key("retries").key("attempts"),
            message,
            Some(help.to_owned()),
        );
    }
}
