//! Retries and mirrors: the policy of a rule, and the limits of a cluster.

use super::Context;
use super::route::{Site, cluster_key};
use crate::resource::destination_rule::Blocks;
use crate::resource::retries::{Mirror as WrittenMirror, Retries};
use crate::resource::virtual_service::HttpRoute;
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
        ignore_previous_hosts: written.ignore_previous_hosts,
        remote_localities: written.remote_localities,
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
