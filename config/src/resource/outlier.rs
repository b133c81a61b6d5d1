//! `outlierDetection` as written, and what it means.

use super::duration_of;
use crate::yaml::Node;
use isthmus_core::cluster::outlier::OutlierPolicy;
use std::time::Duration;

/// Reads the block; what is not written is Istio's default, which is Envoy's but for gateway errors, which are not
/// counted then.
pub(crate) fn read(node: &Node) -> OutlierPolicy {
    let count = |name| node.int(name).and_then(|count| u32::try_from(count).ok());
    let positive = |name| count(name).filter(|count| *count > 0);
    let old = positive("consecutiveErrors");
    let split = node.flag("splitExternalLocalOriginErrors");
    let codes = node.list("outlierDetectionHttpErrorCodes").iter();
    OutlierPolicy {
        // The old spelling counts gateway errors, and says so in place of the default.
        consecutive_5xx: count("consecutive5xxErrors").unwrap_or(if old.is_some() { 0 } else { 5 }),
        consecutive_gateway: count("consecutiveGatewayErrors").or(old).unwrap_or(0),
        consecutive_local: if split {
            count("consecutiveLocalOriginFailures").unwrap_or(5)
        } else {
            0
        },
        split,
        codes: codes
            .filter_map(|code| u16::try_from(code.as_int()?).ok())
            .collect(),
        interval: duration_of(node, "interval").unwrap_or(Duration::from_secs(10)),
        base: duration_of(node, "baseEjectionTime").unwrap_or(Duration::from_secs(30)),
        max_percent: positive("maxEjectionPercent").unwrap_or(10),
    }
}
