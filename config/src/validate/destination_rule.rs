//! Validation of DestinationRules (Istio's `ValidateDestinationRule`).

use super::{Validate, check_export_to, check_port, host_fault, is_label};
use crate::report::{Origin, Report};
use crate::resource::Meta;
use crate::resource::destination_rule::{BALANCER, Blocks, DestinationRule, TrafficPolicy, own_balancer};
use crate::resource::retries::HEDGING;
use crate::yaml::Path;
use isthmus_core::cluster::hash::RING_SIZE_MAX;
use isthmus_core::cluster::retry_budget::Hedges;
use std::collections::HashSet;

impl Validate for DestinationRule {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        let origin = &meta.origin;
        if let Some(fault) = host_fault(&self.host) {
            report.error("bad-host", origin, &Path::SPEC.key("host"), fault);
        }
        check_export_to(&self.export_to, false, meta, report);
        let hedging = meta.annotations.get(HEDGING).map(|text| text.parse::<Hedges>());
        if let Some(Err(fault)) = hedging {
            report.error("bad-value", origin, &Path::ANNOTATIONS.key(HEDGING), fault);
        }
        if let Some(name) = meta.annotations.get(BALANCER)
            && own_balancer(name).is_none()
        {
            let message = format!("`{name}` is no balancer: PEAK_EWMA or PREQUAL");
            report.error("bad-value", origin, &Path::ANNOTATIONS.key(BALANCER), message);
        }
        if let Some(policy) = &self.policy {
            policy.validate(&Path::SPEC.key("trafficPolicy"), origin, report);
        }
        let list = Path::SPEC.key("subsets");
        let mut names = HashSet::new();
        for (at, subset) in self.subsets.iter().enumerate() {
            let path = list.index(at);
            if !is_label(&subset.name) {
                let message = format!("`{}` is not a label of letters, digits and dashes", subset.name);
                report.error("bad-value", origin, &path.key("name"), message);
            }
            if !names.insert(subset.name.as_str()) {
                let message = format!("the subset `{}` is defined twice", subset.name);
                report.error("duplicate-value", origin, &path.key("name"), message);
            }
            if let Some(policy) = &subset.policy {
                policy.validate(&path.key("trafficPolicy"), origin, report);
            }
        }
    }
}

impl TrafficPolicy {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        if !self.has_block {
            report.error(
                "missing-field",
                origin,
                path,
                "a traffic policy needs at least one block",
            );
        }
        self.blocks.validate(path, origin, report);
        let list = path.key("portLevelSettings");
        for (at, (port, blocks)) in self.ports.iter().enumerate() {
            let path = list.index(at);
            check_port(*port, origin, &path.key("port").key("number"), report);
            if !blocks.any {
                report.error(
                    "missing-field",
                    origin,
                    &path,
                    "port level settings need at least one block",
                );
            }
            blocks.validate(&path, origin, report);
        }
    }
}

impl Blocks {
    fn validate(&self, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
        let Some(balancer) = &self.load_balancer else {
            return;
        };
        let path = path.key("loadBalancer");
        if let Some(size) = balancer.consistent_hash.as_ref().map(|hash| hash.ring_size)
            && size > i128::from(RING_SIZE_MAX)
        {
            let message = format!("a ring has {RING_SIZE_MAX} points at most");
            report.warn("bad-value", origin, &path.key("consistentHash"), message);
        }
        if balancer.simple.as_deref() == Some("PASSTHROUGH") {
            let message = "a gateway has no original destination: it balances as if nothing were written";
            report.warn("no-effect", origin, &path.key("simple"), message);
        }
    }
}
