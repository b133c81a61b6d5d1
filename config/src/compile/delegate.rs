//! Delegates: a rule of one VirtualService (the root) that hands its requests to the rules of another.
//!
//! Root and delegate are merged before anything is compiled, as Istio does: each match of the delegate is joined with
//! each of the root that it narrows; a rule whose matches do not all narrow one of the root is left out; what the
//! delegate does not say, the root says. Names are resolved where they were written, because the two may live in
//! different namespaces.

use crate::index::{GatewayName, export_to, is_exported};
use crate::mesh::MeshConfig;
use crate::resource::virtual_service::{HttpMatch, HttpRoute, VirtualService};
use crate::resource::{Meta, Written};
use isthmus_core::route::TextMatch;
use std::borrow::Cow;
use std::collections::HashMap;

/// VirtualServices without hosts, by namespace and name.
pub(crate) type Delegates<'a> = HashMap<(&'a str, &'a str), &'a Written<VirtualService>>;

/// Collects the delegates.
pub(crate) fn collect(all: &[Written<VirtualService>]) -> Delegates<'_> {
    let delegates = all.iter().filter(|written| written.spec.hosts.is_empty());
    delegates
        .map(|written| {
            (
                (written.meta.namespace.as_str(), written.meta.name.as_str()),
                written,
            )
        })
        .collect()
}

/// Where a rule was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) meta: &'a Meta,
    /// Position in `spec.http`.
    pub(crate) rule: usize,
}

/// A rule that is ready to be compiled.
#[derive(Debug)]
pub(crate) struct Rule<'a> {
    pub(crate) route: Cow<'a, HttpRoute>,
    /// Where its actions were written: its destinations' short names are of that namespace.
    pub(crate) own: Source<'a>,
    /// The root's rule, when this one is a delegate's.
    pub(crate) root: Option<Source<'a>>,
}

/// Why a rule hands nothing on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// There is no such VirtualService.
    Missing { id: String },
    /// There is one, which has hosts of its own.
    NotADelegate { id: String },
    /// It is not exported to the root's namespace.
    NotExported { id: String },
}

/// The delegate that a rule names.
pub(crate) fn find<'a>(
    rule: &HttpRoute,
    root: &Meta,
    delegates: &Delegates<'a>,
    all: &[Written<VirtualService>],
    mesh: &MeshConfig,
) -> Option<Result<&'a Written<VirtualService>, Broken>> {
    let named = rule.delegate.as_ref()?;
    let namespace = if named.namespace.is_empty() {
        root.namespace.as_str()
    } else {
        named.namespace.as_str()
    };
    let id = || format!("{namespace}/{}", named.name);
    let found = delegates.get(&(namespace, named.name.as_str())).copied();
    Some(match found {
        Some(found)
            if is_exported(
                export_to(&found.spec.export_to, &mesh.virtual_service_export_to),
                namespace,
                &root.namespace,
            ) =>
        {
            Ok(found)
        }
        Some(_) => Err(Broken::NotExported { id: id() }),
        None => {
            let other = all
                .iter()
                .any(|written| written.meta.namespace == namespace && written.meta.name == named.name);
            Err(if other {
                Broken::NotADelegate { id: id() }
            } else {
                Broken::Missing { id: id() }
            })
        }
    })
}

/// All rules of a VirtualService, those of its delegates in the place of the rules that name them.
pub(crate) fn rules<'a>(
    written: &'a Written<VirtualService>,
    delegates: &Delegates<'a>,
    all: &[Written<VirtualService>],
    mesh: &MeshConfig,
) -> Vec<Rule<'a>> {
    let mut rules = Vec::with_capacity(written.spec.http.len());
    for (at, rule) in written.spec.http.iter().enumerate() {
        let here = Source {
            meta: &written.meta,
            rule: at,
        };
        match find(rule, &written.meta, delegates, all, mesh) {
            None => rules.push(Rule {
                route: Cow::Borrowed(rule),
                own: here,
                root: None,
            }),
            Some(Err(_)) => {}
            Some(Ok(delegate)) => {
                let root = resolved(rule, &written.meta.namespace);
                for (at, own) in delegate.spec.http.iter().enumerate() {
                    let own_rule = resolved(own, &delegate.meta.namespace);
                    if let Some(merged) = merge(&root, &own_rule) {
                        rules.push(Rule {
                            route: Cow::Owned(merged),
                            own: Source {
                                meta: &delegate.meta,
                                rule: at,
                            },
                            root: Some(here),
                        });
                    }
                }
            }
        }
    }
    rules
}

/// The rule with whole names of gateways.
fn resolved(rule: &HttpRoute, namespace: &str) -> HttpRoute {
    let mut rule = rule.clone();
    for name in rule.matches.iter_mut().flat_map(|matched| &mut matched.gateways) {
        if let Some(GatewayName::Named { id, .. }) = GatewayName::parse(name, namespace) {
            *name = id;
        }
    }
    rule
}

/// Joins a rule of a root with one of its delegate; None when the delegate's asks for what the root excludes.
pub(crate) fn merge(root: &HttpRoute, own: &HttpRoute) -> Option<HttpRoute> {
    let mut merged = own.clone();
    merged.matches = merge_matches(&root.matches, &own.matches)?;
    merged.name = joined(&root.name, &own.name);
    merged.delegate = None;
    fill(&mut merged.rewrite, &root.rewrite);
    fill(&mut merged.direct_response, &root.direct_response);
    fill(&mut merged.timeout, &root.timeout);
    fill(&mut merged.fault, &root.fault);
    fill(&mut merged.cors_policy, &root.cors_policy);
    fill(&mut merged.headers, &root.headers);
    fill(&mut merged.retries, &root.retries);
    if merged.mirrors.is_empty() {
        merged.mirrors.clone_from(&root.mirrors);
    }
    Some(merged)
}

fn fill<T: Clone>(own: &mut Option<T>, root: &Option<T>) {
    if own.is_none() {
        own.clone_from(root);
    }
}

fn joined(root: &str, own: &str) -> String {
    match (root, own) {
        ("", name) | (name, "") => name.to_owned(),
        (root, own) => format!("{root}-{own}"),
    }
}

/// Every match of the delegate with every one of the root that it narrows; None when one narrows none.
pub(crate) fn merge_matches(root: &[HttpMatch], own: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(own.to_vec());
    }
    if own.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for own in own {
        let before = merged.len();
        merged.extend(
            root.iter()
                .filter(|root| !conflicts(root, own))
                .map(|root| merge_match(root, own)),
        );
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatch, own: &HttpMatch) -> HttpMatch {
    let mut merged = own.clone();
    merged.name = joined(&root.name, &own.name);
    fill(&mut merged.uri, &root.uri);
    fill(&mut merged.scheme, &root.scheme);
    fill(&mut merged.method, &root.method);
    fill(&mut merged.authority, &root.authority);
    fill(&mut merged.port, &root.port);
    join_texts(&mut merged.headers, &root.headers);
    join_texts(&mut merged.without_headers, &root.without_headers);
    join_texts(&mut merged.query_params, &root.query_params);
    for (key, value) in &root.source_labels {
        merged
            .source_labels
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
    if merged.source_namespace.is_empty() {
        merged.source_namespace.clone_from(&root.source_namespace);
    }
    if merged.gateways.is_empty() {
        merged.gateways.clone_from(&root.gateways);
    }
    if merged.stat_prefix.is_empty() {
        merged.stat_prefix.clone_from(&root.stat_prefix);
    }
    merged
}

/// The delegate's word on a name counts where both have one.
fn join_texts(own: &mut Vec<Named>, root: &[Named]) {
    let missing = root
        .iter()
        .filter(|(name, _)| own.iter().all(|(known, _)| known != name));
    let missing: Vec<_> = missing.cloned().collect();
    own.extend(missing);
    own.sort_by(|(a, _), (b, _)| a.cmp(b));
}

/// A header or query parameter, and how it must look.
type Named = (String, TextMatch);

/// Whether a match of a delegate is not a narrower form of one of its root.
pub(crate) fn conflicts(root: &HttpMatch, own: &HttpMatch) -> bool {
    let texts = [
        (&root.uri, &own.uri),
        (&root.scheme, &own.scheme),
        (&root.method, &own.method),
        (&root.authority, &own.authority),
    ];
    let maps = [
        (&root.headers, &own.headers),
        (&root.without_headers, &own.without_headers),
        (&root.query_params, &own.query_params),
    ];
    let both = |(root, own): (&Option<TextMatch>, &Option<TextMatch>)| match (root, own) {
        (Some(root), Some(own)) => !narrows(root, own),
        _ => false,
    };
    let any = |(root, own): (&Vec<Named>, &Vec<Named>)| {
        own.iter().any(|(name, text)| {
            let of_root = root.iter().find(|(known, _)| known == name);
            of_root.is_some_and(|(_, of_root)| !narrows(of_root, text))
        })
    };
    texts.into_iter().any(both)
        || maps.into_iter().any(any)
        || root.ignore_uri_case != own.ignore_uri_case
        || matches!((root.port, own.port), (Some(root), Some(own)) if root != own)
        || (!root.source_namespace.is_empty() && root.source_namespace != own.source_namespace)
        || root
            .source_labels
            .iter()
            .any(|(key, value)| own.source_labels.get(key).is_some_and(|own| own != value))
        || (!root.gateways.is_empty() && own.gateways.iter().any(|name| !root.gateways.contains(name)))
}

/// Whether everything that `own` matches is matched by `root`, as far as texts can tell: of a regex nothing can be
/// said.
fn narrows(root: &TextMatch, own: &TextMatch) -> bool {
    match (root, own) {
        (TextMatch::Exact(root), TextMatch::Exact(own)) => root == own,
        (TextMatch::Prefix(root), TextMatch::Exact(own) | TextMatch::Prefix(own)) => own.starts_with(&**root),
        (TextMatch::Present, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Origin, Report};
    use crate::yaml::{Node, Path};

    /// JSON is YAML.
    fn node(value: &serde_json::Value) -> Node {
        let text = value.to_string();
        let (mut documents, errors) = crate::yaml::read(&text, false);
        assert!(errors.is_empty(), "{errors:?}");
        documents.remove(0).node
    }

    fn reading<T>(read: impl FnOnce(&Path<'_>, &Origin, &mut Report<'_>) -> T) -> T {
        let mut report = Report::new(&[], false);
        read(&Path::SPEC, &Origin::for_test(), &mut report)
    }

    fn one(value: &serde_json::Value) -> HttpMatch {
        reading(|path, origin, report| HttpMatch::read(&node(value), path, origin, report))
    }

    fn many(value: &serde_json::Value) -> Vec<HttpMatch> {
        value.as_array().into_iter().flatten().map(one).collect()
    }

    fn route(value: &serde_json::Value) -> HttpRoute {
        reading(|path, origin, report| HttpRoute::read(&node(value), false, path, origin, report))
    }

    #[test]
    fn what_a_delegate_does_not_say_its_root_says() {
        let fault = |status: u16| serde_json::json!({"abort": {"httpStatus": status}});
        let cors = |origin: &str| serde_json::json!({"allowOrigins": [{"exact": origin}]});
        let root = route(&serde_json::json!({
            "match": [{"uri": {"prefix": "/a"}, "statPrefix": "root"}],
            "fault": fault(500), "corsPolicy": cors("http://root"), "timeout": "1s",
            "delegate": {"name": "d"},
        }));
        let silent = merge(
            &root,
            &route(&serde_json::json!({"match": [{"uri": {"prefix": "/a/b"}}]})),
        );
        let silent = silent.unwrap();
        assert_eq!(
            (&silent.fault, &silent.cors_policy),
            (&root.fault, &root.cors_policy)
        );
        assert_eq!((silent.timeout, silent.delegate), (root.timeout, None));
        assert_eq!(silent.matches[0].stat_prefix, "root");
        let own = route(&serde_json::json!({
            "match": [{"uri": {"prefix": "/a/b"}, "statPrefix": "own"}],
            "fault": fault(404), "corsPolicy": cors("http://own"),
        }));
        let merged = merge(&root, &own).unwrap();
        assert_eq!(
            (&merged.fault, &merged.cors_policy),
            (&own.fault, &own.cors_policy)
        );
        assert_eq!(merged.matches[0].stat_prefix, "own");
    }

    fn table(name: &str) -> Vec<serde_json::Value> {
        let Some(corpus) = crate::tests::corpus() else {
            return Vec::new();
        };
        let text = std::fs::read_to_string(corpus.join(format!("model-tables/{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn conflicts_are_those_of_istio() {
        let rows = table("TestHasConflict");
        for row in &rows {
            let found = conflicts(&one(&row["root"]), &one(&row["leaf"]));
            assert_eq!(Some(found), row["expected"].as_bool(), "{row}");
        }
        assert!(rows.is_empty() || rows.len() == 21, "{}", rows.len());
    }

    #[test]
    fn matches_are_merged_as_istio_does() {
        let rows = table("TestMergeHTTPMatchRequests");
        for row in &rows {
            let found = merge_matches(&many(&row["root"]), &many(&row["delegate"]));
            let expected = (!row["expected"].is_null()).then(|| many(&row["expected"]));
            assert_eq!(found, expected, "{row}");
        }
        assert!(rows.is_empty() || rows.len() == 14, "{}", rows.len());
    }

    #[test]
    fn rules_are_merged_as_istio_does() {
        let rows = table("TestMergeHttpRoutes");
        for row in &rows {
            let root = route(&row["root"]);
            let list = |name: &str| row[name].as_array().into_iter().flatten().map(route);
            let found: Vec<HttpRoute> = list("delegate").filter_map(|own| merge(&root, &own)).collect();
            assert_eq!(found, list("expected").collect::<Vec<_>>(), "{row}");
        }
        assert!(rows.is_empty() || rows.len() == 4, "{}", rows.len());
    }
}
