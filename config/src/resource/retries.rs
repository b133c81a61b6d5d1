//! `retries` and `mirror` of a VirtualService's rule, `retryBudget` of a DestinationRule, as written.

use super::duration_of;
use super::virtual_service::Target;
use crate::yaml::Node;
use std::time::Duration;

/// Annotation of a DestinationRule: a second attempt beside one whose own time is over.
pub(crate) const HEDGING: &str = "isthmus.dev/hedging";

/// `http[].retries`, and `defaultHttpRetryPolicy` of MeshConfig.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Retries {
    pub(crate) attempts: i128,
    pub(crate) per_try_timeout: Option<Duration>,
    /// Empty when nothing is written.
    pub(crate) retry_on: String,
    pub(crate) backoff: Option<Duration>,
    pub(crate) ignore_previous_hosts: Option<bool>,
    pub(crate) remote_localities: bool,
}

impl Retries {
    pub(crate) fn read(node: &Node) -> Self {
        let flag = |name: &str| match node.get(name) {
            Some(Node::Bool(flag)) => Some(*flag),
            _ => None,
        };
        Self {
            attempts: node.int("attempts").unwrap_or(0),
            per_try_timeout: duration_of(node, "perTryTimeout"),
            retry_on: node.text("retryOn").unwrap_or("").trim().to_owned(),
            backoff: duration_of(node, "backoff"),
            ignore_previous_hosts: flag("retryIgnorePreviousHosts"),
            remote_localities: flag("retryRemoteLocalities").unwrap_or(false),
        }
    }
}

/// One of `http[].mirrors[]`, or `mirror` with its percentage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mirror {
    pub(crate) target: Target,
    /// None when it is not written.
    pub(crate) percent: Option<f64>,
    /// Whether it is one of `mirrors`.
    pub(crate) is_listed: bool,
}

impl Mirror {
    /// All mirrors of a rule, in whichever form they are written.
    pub(crate) fn read_all(rule: &Node) -> Vec<Self> {
        let percentage = |node: &Node, name: &str| {
            // One without a value is one of zero.
            node.get(name)
                .map(|node| node.get("value").and_then(Node::as_number).unwrap_or(0.0))
        };
        if let Some(destination) = rule.get("mirror") {
            let old = rule.get("mirrorPercent").and_then(Node::as_number);
            return vec![Self {
                target: Target::of(destination),
                percent: percentage(rule, "mirrorPercentage").or(old),
                is_listed: false,
            }];
        }
        let read = |node: &Node| {
            Some(Self {
                target: Target::of(node.get("destination")?),
                percent: percentage(node, "percentage"),
                is_listed: true,
            })
        };
        rule.list("mirrors").iter().filter_map(read).collect()
    }
}

/// `trafficPolicy.retryBudget`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RetryBudget {
    pub(crate) percent: Option<f64>,
    pub(crate) min_retry_concurrency: Option<i128>,
    pub(crate) interval: Option<Duration>,
}

impl RetryBudget {
    pub(crate) fn read(node: &Node) -> Self {
        Self {
            percent: node.get("percent").and_then(Node::as_number),
            min_retry_concurrency: node.int("minRetryConcurrency"),
            interval: duration_of(node, "budgetInterval"),
        }
    }
}
