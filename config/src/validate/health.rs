//! Validation of HealthCheckPolicies and WorkloadGroups: what concerns the values that a check is made of. What fields
//! exclude each other is among what is [`super::written`].

use super::{Validate, is_label};
use crate::report::Report;
use crate::resource::Meta;
use crate::resource::health::{HealthCheckPolicy, WorkloadGroup, status_range};
use crate::yaml::Path;
use isthmus_core::cluster::health::{Check, HealthPolicy};
use isthmus_core::header::is_value_byte;

impl Validate for HealthCheckPolicy {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        if !self.subset.is_empty() && !is_label(&self.subset) {
            let message = format!("`{}` is not a label of letters, digits and dashes", self.subset);
            report.error("bad-value", &meta.origin, &Path::SPEC.key("subset"), message);
        }
        let list = Path::SPEC.key("expectedStatuses");
        for (at, text) in self.statuses.iter().enumerate() {
            if status_range(text).is_none() {
                let shown = crate::resource::schema::shortened(text);
                let message = format!("`{shown}` is not a status, nor a range such as 200-299");
                report.error("bad-value", &meta.origin, &list.index(at), message);
            }
        }
        if !self.statuses.is_empty() && !matches!(self.policy.check, Check::Http(_)) {
            let message = "only the answer to `httpGet` has a status";
            report.warn("no-effect", &meta.origin, &list, message);
        }
        validate(&self.policy, meta, report);
    }
}

impl Validate for WorkloadGroup {
    fn validate(&self, meta: &Meta, report: &mut Report<'_>) {
        if let Some(policy) = &self.probe {
            validate(policy, meta, report);
        }
    }
}

fn validate(policy: &HealthPolicy, meta: &Meta, report: &mut Report<'_>) {
    let probe = Path::SPEC.key("probe");
    if let Check::Http(check) = &policy.check {
        let get = probe.key("httpGet");
        if !check.path.bytes().all(|byte| (0x21..0x7F).contains(&byte)) {
            let message = "a path has no blanks, and no characters that are not ASCII: write them as %20";
            report.error("bad-value", &meta.origin, &get.key("path"), message);
        }
        let bad_host = |host: &str| {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
            host.is_empty() || !host.bytes().all(good)
        };
        if check.host.as_deref().is_some_and(bad_host) {
            let message = "not the name of a host";
            report.error("bad-host", &meta.origin, &get.key("host"), message);
        }
        for (name, value) in &check.fields {
            if !value.bytes().all(is_value_byte) {
                let message = format!("the value of `{name}` has characters that no field may have");
                report.error("bad-header", &meta.origin, &get.key("httpHeaders"), message);
            }
        }
    }
    if policy.timeout > policy.interval {
        let message = "a check may take longer than the time until the next, which then waits for it";
        report.warn("bad-value", &meta.origin, &probe.key("timeoutSeconds"), message);
    }
}
