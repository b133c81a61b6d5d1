//! Retries and mirrors: the policy of a rule, the limits of a cluster, and what both together may do to an upstream.

use super::Context;
use super::route::{Site, check_target, cluster_key};
use crate::diagnostic::Severity;
use crate::index::{expand, name_of};
use crate::report::Report;
use crate::resource::destination_rule::Blocks;
use crate::resource::retries::{Mirror as WrittenMirror, Retries};
use crate::resource::virtual_service::{HttpRoute, VirtualService};
use crate::resource::{Meta, Written};
use crate::yaml::Path;
use isthmus_core::attempt::{RetryOn, RetryPolicy};
use isthmus_core::cluster::retry_budget::{
    BUDGET_INTERVAL, BUDGET_MIN, BUDGET_PER_MILLION, RetryBudget, RetryLimits,
};
use isthmus_core::route::Mirror;

/// What `retries` mean; `default` is the mesh's word where a rule has none (Istio `retry.ConvertPolicy`).
pub(crate) fn policy(written: Option<&Retries>, default: &RetryPolicy) -> RetryPolicy {
    let Some(written) = written else {
        return default.clone();
    };
    let retries = u32::try_from(written.attempts).unwrap_or(0);
    if retries == 0 {
        return RetryPolicy::off();
    }
    let built_in = RetryPolicy::default();
    let (on, codes) = match written.retry_on.as_str() {
        "" => (built_in.on, Vec::new()),
        words => RetryOn::parse(words),
    };
    RetryPolicy {
        retries,
        per_try_timeout: written.per_try_timeout,
        backoff: written.backoff.unwrap_or(RetryPolicy::BACKOFF),
        on,
        status_codes: codes.into(),
        ignore_previous_hosts: written
            .ignore_previous_hosts
            .unwrap_or(built_in.ignore_previous_hosts),
    }
}

/// A percentage in millionths, rounded.
fn per_million(percent: f64) -> u32 {
    (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32
}

/// Where copies of a rule's requests go. Without a percentage all are copied, with one of 0 none.
pub(crate) fn mirrors(
    rule: &HttpRoute,
    namespace: &str,
    site: &Site<'_>,
    context: &Context<'_>,
) -> Vec<Mirror> {
    let mirror = |written: &WrittenMirror| Mirror {
        cluster: cluster_key(&written.target, namespace, site.port, context),
        per_million: written.percent.map_or(1_000_000, per_million),
    };
    let all = rule.mirrors.iter().map(mirror);
    all.filter(|mirror| mirror.per_million > 0).collect()
}

/// Reports mirrors that the registry does not know: their copies are lost.
pub(crate) fn check_mirrors(
    rule: &HttpRoute,
    meta: &Meta,
    rule_path: &Path<'_>,
    context: &Context<'_>,
    report: &mut Report<'_>,
) {
    const OUTCOME: &str = "its copies of requests are lost";
    let list = rule_path.key("mirrors");
    for (at, mirror) in rule.mirrors.iter().enumerate() {
        let item = list.index(at);
        let path = if mirror.is_listed {
            item.key("destination")
        } else {
            rule_path.key("mirror")
        };
        check_target(&mirror.target, meta, &path, OUTCOME, context, report);
    }
}

/// What a cluster's policy says about retries (`maxRetries`, `retryBudget`).
pub(crate) fn limits(blocks: &Blocks) -> RetryLimits {
    let most = blocks.connection_pool.as_ref().map_or(0, |pool| pool.max_retries);
    RetryLimits {
        // 0 is not set (Istio).
        concurrent: u32::try_from(most)
            .ok()
            .filter(|most| *most > 0)
            .unwrap_or(u32::MAX),
        budget: blocks.retry_budget.map(|written| RetryBudget {
            per_million: written.percent.map_or(BUDGET_PER_MILLION, per_million),
            min: written
                .min_retry_concurrency
                .and_then(|min| u32::try_from(min).ok())
                .unwrap_or(BUDGET_MIN),
            interval: written
                .interval
                .filter(|interval| !interval.is_zero())
                .unwrap_or(BUDGET_INTERVAL),
        }),
        hedges: blocks.hedges,
    }
}

/// Requests to an upstream for one of a client that are not worth a word: what the default makes of a failure.
const AMPLIFICATION_QUIET: u32 = 3;

/// Tells of rules whose retries multiply the load of an upstream that fails, with no budget that bounds them.
pub(crate) fn check_amplification(
    written: &Written<VirtualService>,
    context: &Context<'_>,
    report: &mut Report<'_>,
) {
    let list = Path::SPEC.key("http");
    for (at, rule) in written.spec.http.iter().enumerate() {
        let policy = policy(rule.retries.as_ref(), &context.options.mesh.retry);
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
                Some(!limits(&rule.blocks(port, subset.copied())).is_unlimited())
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
