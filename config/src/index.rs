//! How resources refer to each other: short names, gateway names, visibility, and which DestinationRule applies.

use crate::Options;
use crate::origins::PolicyPlace;
use crate::resource::destination_rule::{
    BALANCER, Blocks, DestinationRule, Subset, TrafficPolicy, own_balancer,
};
use crate::resource::retries::HEDGING;
use crate::resource::{Meta, Written};
use crate::validate::is_label;
use isthmus_core::cluster::balancer::BalancerKind;
use isthmus_core::cluster::retry_budget::Hedges;
use isthmus_core::name::{HostIndex, HostPattern};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// Domain of Kubernetes services.
pub(crate) const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// The whole name of a host, in lower case: one without a dot is a service of the rule's own namespace.
pub(crate) fn expand<'h>(host: &'h str, namespace: &str) -> Cow<'h, str> {
    let host = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    };
    let short = !host.is_empty() && host != "*" && !host.contains('.') && host.parse::<IpAddr>().is_err();
    if short {
        format!("{host}.{namespace}.{CLUSTER_DOMAIN}").into()
    } else {
        host
    }
}

/// How VirtualServices name the clients inside of the mesh.
pub(crate) const MESH: &str = "mesh";

/// A gateway as a VirtualService names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GatewayName {
    /// `mesh`: clients inside the mesh.
    Mesh,
    /// A Gateway.
    Named {
        /// `namespace/name`.
        id: String,
        /// Whether it was written as a domain name, as Istio once did.
        legacy: bool,
    },
}

impl GatewayName {
    /// Reads a name; None when it is none.
    pub(crate) fn parse(text: &str, namespace: &str) -> Option<Self> {
        if text == MESH {
            return Some(Self::Mesh);
        }
        if let Some((namespace_, name)) = text.split_once('/') {
            let namespace = if namespace_ == "." { namespace } else { namespace_ };
            let valid = is_label(namespace) && is_label(name);
            return valid.then(|| Self::Named {
                id: format!("{namespace}/{name}"),
                legacy: false,
            });
        }
        if let Some((name, rest)) = text.split_once('.') {
            let namespace = rest.split('.').next().unwrap_or("");
            let valid = is_label(name) && text.split('.').all(is_label);
            return valid.then(|| Self::Named {
                id: format!("{namespace}/{name}"),
                legacy: true,
            });
        }
        is_label(text).then(|| Self::Named {
            id: format!("{namespace}/{text}"),
            legacy: false,
        })
    }
}

/// Whether `exportTo` of a resource in namespace `own` shows it to namespace `to`. A gateway that is in no namespace
/// (empty `to`) is shown everything but what is meant for nobody (`~`).
pub(crate) fn is_exported(export_to: &[String], own: &str, to: &str) -> bool {
    export_to.is_empty()
        || (to.is_empty() && export_to.iter().all(|entry| entry != "~"))
        || export_to.iter().any(|entry| match entry.as_str() {
            "*" => true,
            "." => own == to,
            namespace => namespace == to,
        })
}

/// `exportTo` as it counts: what is written, else the mesh's default.
pub(crate) fn export_to<'a>(written: &'a [String], default: &'a [String]) -> &'a [String] {
    if written.is_empty() { default } else { written }
}

/// DestinationRules of one host in one namespace, merged.
#[derive(Debug)]
pub(crate) struct Rule<'a> {
    /// Of the oldest rule that has one.
    policy: Option<&'a TrafficPolicy>,
    /// What the annotation of the oldest rule that has it asks for.
    pub(crate) balancer: Option<BalancerKind>,
    /// Which rule that is.
    policy_of: Option<&'a Meta>,
    /// The first of each name.
    pub(crate) subsets: Vec<&'a Subset>,
    /// Of each subset, the rule that has it, and its position there.
    subsets_of: Vec<(&'a Meta, usize)>,
    names: HashSet<&'a str>,
    /// Of the oldest rule that has the annotation.
    hedges: Option<Hedges>,
}

impl Rule<'_> {
    /// Whether it defines a subset.
    pub(crate) fn has_subset(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The policy of a port of the whole service, or of a subset (Istio's `getSubsetPolicy` and its neighbours):
    /// settings of a port replace those above them as a whole, a subset's blocks replace those of the service one by
    /// one.
    pub(crate) fn blocks(&self, port: u16, subset: Option<&Subset>) -> Blocks {
        Blocks {
            hedges: self.hedges.unwrap_or_default(),
            ..self.written_blocks(port, subset)
        }
    }

    fn written_blocks(&self, port: u16, subset: Option<&Subset>) -> Blocks {
        let of_port = |policy: &TrafficPolicy, above: &Blocks| {
            let found = policy
                .ports
                .iter()
                .find(|(number, _)| *number == i128::from(port));
            // A port has no budget, PROXY header and tunnel of its own, nor takes those above it away.
            found.map(|(_, blocks)| Blocks {
                retry_budget: policy.blocks.retry_budget,
                proxy_protocol: policy.blocks.proxy_protocol.or(above.proxy_protocol),
                tunnel: policy.blocks.tunnel.clone().or_else(|| above.tunnel.clone()),
                ..blocks.clone()
            })
        };
        let none = Blocks::default();
        let base = self
            .policy
            .map(|policy| of_port(policy, &none).unwrap_or_else(|| policy.blocks.clone()));
        let base = base.unwrap_or_default();
        let Some(policy) = subset.and_then(|subset| subset.policy.as_deref()) else {
            return base;
        };
        match of_port(policy, &base) {
            Some(own) => Blocks {
                retry_budget: own.retry_budget.or(base.retry_budget),
                ..own
            },
            None => Blocks {
                load_balancer: policy.blocks.load_balancer.clone().or(base.load_balancer),
                connection_pool: policy.blocks.connection_pool.clone().or(base.connection_pool),
                tls: policy.blocks.tls.clone().or(base.tls),
                proxy_protocol: policy.blocks.proxy_protocol.or(base.proxy_protocol),
                tunnel: policy.blocks.tunnel.clone().or(base.tunnel),
                retry_budget: policy.blocks.retry_budget.or(base.retry_budget),
                hedges: base.hedges,
                has_outlier_detection: policy.blocks.has_outlier_detection || base.has_outlier_detection,
                outlier: policy.blocks.outlier.clone().or(base.outlier),
                min_health_percent: match policy.blocks.has_outlier_detection {
                    true => policy.blocks.min_health_percent,
                    false => base.min_health_percent,
                },
                any: policy.blocks.any || base.any,
            },
        }
    }
}

impl Rule<'_> {
    /// Where what [`Self::blocks`] answers was written: each block is that of the first place that has it.
    pub(crate) fn places(&self, port: u16, subset: Option<&Subset>) -> Vec<PolicyPlace> {
        let of_port = |policy: &TrafficPolicy| {
            let mut ports = policy.ports.iter();
            ports.position(|(number, _)| *number == i128::from(port))
        };
        let place = |meta: &Meta, subset, port| PolicyPlace {
            origin: meta.origin.clone(),
            subset,
            port,
        };
        let mut places = Vec::new();
        let written = subset.and_then(|subset| {
            let at = self
                .subsets
                .iter()
                .position(|known| std::ptr::eq(*known, subset))?;
            Some((self.subsets_of.get(at)?, subset.policy.as_deref()?))
        });
        if let Some(((meta, at), policy)) = written {
            let port = of_port(policy);
            places.push(place(meta, Some(*at), port));
            if port.is_some() {
                return places;
            }
        }
        if let (Some(meta), Some(policy)) = (self.policy_of, self.policy) {
            places.push(place(meta, None, of_port(policy)));
        }
        places
    }
}

/// All DestinationRules, as one client namespace sees them.
#[derive(Debug, Default)]
pub(crate) struct Rules<'a> {
    merged: Vec<Rule<'a>>,
    /// By namespace: rules that clients of that namespace itself find.
    own: HashMap<&'a str, HostIndex<usize>>,
    /// By namespace: rules that are exported to the client.
    exported: HashMap<&'a str, HostIndex<usize>>,
    client: &'a str,
    root: &'a str,
}

impl<'a> Rules<'a> {
    /// Sorts the rules that concern a gateway.
    pub(crate) fn new(rules: &'a [Written<DestinationRule>], options: &'a Options) -> Self {
        let client = options.namespace.as_str();
        let mut all = Self {
            client,
            root: &options.mesh.root_namespace,
            ..Self::default()
        };
        let mut by_key: HashMap<(&str, HostPattern, Vec<&str>), usize> = HashMap::new();
        // Those with a selector come before the others of their host.
        let (general, selective): (Vec<_>, Vec<_>) = rules
            .iter()
            .partition(|written| written.spec.workload_selector.is_none());
        for Written { meta, spec } in selective.into_iter().chain(general) {
            let namespace = meta.namespace.as_str();
            let shown_to = export_to(&spec.export_to, &options.mesh.destination_rule_export_to);
            // A rule with a selector is for clients of its own namespace that have these labels (Istio
            // `workloadSelector`): for a gateway, its own.
            if let Some(selector) = &spec.workload_selector
                && !(selects(selector, &options.labels) && namespace == client)
            {
                continue;
            }
            let pattern = HostPattern::parse(&expand(&spec.host, namespace));
            // Rules that are shown to different namespaces are kept apart.
            let mut shown: Vec<&str> = shown_to.iter().map(String::as_str).collect();
            shown.sort_unstable();
            // Rules with a selector are more specific than those without, and not merged with them.
            if spec.workload_selector.is_some() {
                shown.push(&meta.name);
            }
            let at = *by_key
                .entry((namespace, pattern.clone(), shown))
                .or_insert_with(|| {
                    all.merged.push(Rule {
                        policy: None,
                        balancer: None,
                        policy_of: None,
                        subsets: Vec::new(),
                        subsets_of: Vec::new(),
                        names: HashSet::new(),
                        hedges: None,
                    });
                    all.merged.len() - 1
                });
            if let Some(rule) = all.merged.get_mut(at) {
                if rule.policy.is_none() && spec.policy.is_some() {
                    rule.policy_of = Some(meta);
                }
                rule.policy = rule.policy.or(spec.policy.as_deref());
                // Validation has refused what cannot be read.
                let hedges = meta.annotations.get(HEDGING).and_then(|text| text.parse().ok());
                rule.hedges = rule.hedges.or(hedges);
                let named = meta.annotations.get(BALANCER);
                rule.balancer = rule.balancer.or_else(|| own_balancer(named?));
                for (subset_at, subset) in spec.subsets.iter().enumerate() {
                    if rule.names.insert(&subset.name) {
                        rule.subsets.push(subset);
                        rule.subsets_of.push((meta, subset_at));
                    }
                }
            }
            // The first of a pattern stays, which is the oldest.
            let private = shown_to.iter().any(|entry| entry == "." || entry == namespace);
            if namespace != all.root || private {
                let _older = all.own.entry(namespace).or_default().insert(pattern.clone(), at);
            }
            if is_exported(shown_to, namespace, client) {
                let _older = all.exported.entry(namespace).or_default().insert(pattern, at);
            }
        }
        all
    }

    /// The rule of a service: of the client's namespace, else the service's, else the root's; the most specific host.
    pub(crate) fn find(&self, host: &str, namespace: &str) -> Option<&Rule<'a>> {
        let client = self.own.get(self.client).and_then(|index| index.find(host));
        let found = client
            .or_else(|| self.exported.get(namespace).and_then(|index| index.find(host)))
            .or_else(|| self.exported.get(self.root).and_then(|index| index.find(host)));
        found.and_then(|at| self.merged.get(*at))
    }
}

/// Whether labels have everything that a selector asks for.
pub(crate) fn selects(
    selector: &std::collections::BTreeMap<String, String>,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// `Kind namespace/name` of a resource.
pub(crate) fn name_of(meta: &Meta) -> &str {
    &meta.origin.resource
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_services_of_the_rules_namespace() {
        assert_eq!(expand("Reviews", "ns"), "reviews.ns.svc.cluster.local");
        for kept in ["*", "a.b", "1.2.3.4", "::1", "*.foo.com"] {
            assert_eq!(expand(kept, "ns"), kept);
        }
    }

    #[test]
    fn gateway_names_have_three_spellings() {
        let named = |id: &str, legacy| {
            Some(GatewayName::Named {
                id: id.into(),
                legacy,
            })
        };
        assert_eq!(GatewayName::parse("g", "n"), named("n/g", false));
        assert_eq!(GatewayName::parse("a/g", "n"), named("a/g", false));
        assert_eq!(GatewayName::parse("./g", "n"), named("n/g", false));
        assert_eq!(
            GatewayName::parse("g.a.svc.cluster.local", "n"),
            named("a/g", true)
        );
        assert_eq!(GatewayName::parse("mesh", "n"), Some(GatewayName::Mesh));
        for bad in ["", "a/b/c", "/g", "a/", "*", "g_h"] {
            assert_eq!(GatewayName::parse(bad, "n"), None, "{bad}");
        }
    }

    #[test]
    fn export_to_shows_a_resource_to_namespaces() {
        let list = |entries: &[&str]| {
            entries
                .iter()
                .map(|entry| (*entry).to_owned())
                .collect::<Vec<_>>()
        };
        assert!(is_exported(&[], "a", "b"));
        assert!(is_exported(&list(&["*"]), "a", "b"));
        assert!(!is_exported(&list(&["."]), "a", "b"));
        assert!(is_exported(&list(&["."]), "a", "a"));
        assert!(is_exported(&list(&["c", "b"]), "a", "b"));
        assert!(!is_exported(&list(&["~"]), "a", "a"));
        assert!(is_exported(&list(&["."]), "a", ""), "a gateway in no namespace");
        assert!(!is_exported(&list(&["~"]), "a", ""));
    }
}
