//! Resources as they were written: one module per kind mirrors its YAML, and nothing is interpreted yet.
//!
//! [`read_all`] takes the documents one after the other, checks each against the [`schema`], and keeps the resources
//! that are free of errors, in their order of precedence. What is not a resource of ours is counted by kind.

pub(crate) mod cors;
pub(crate) mod destination_rule;
pub(crate) mod fault;
pub(crate) mod gateway;
pub(crate) mod health;
pub(crate) mod kubernetes;
pub(crate) mod load_balancer;
pub(crate) mod outlier;
pub(crate) mod retries;
pub(crate) mod schema;
pub(crate) mod service_entry;
pub(crate) mod virtual_service;
pub(crate) mod workload;

use crate::cache::{Cache, Known};
use crate::diagnostic::Severity;
use crate::report::{Origin, Report};
use crate::yaml::{Node, Path};
use destination_rule::DestinationRule;
use gateway::Gateway;
use health::{HealthCheckPolicy, WorkloadGroup};
use kubernetes::{EndpointSlice, Secret, Service, Workload};
use schema::KINDS;
use service_entry::ServiceEntry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use virtual_service::VirtualService;
use workload::WorkloadEntry;

/// Namespace of a resource that names none, as `kubectl apply` would choose.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// What every resource has, and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    said: Arc<Metadata>,
    pub(crate) origin: Origin,
}

impl Deref for Meta {
    type Target = Metadata;

    fn deref(&self) -> &Metadata {
        &self.said
    }
}

/// What every resource has. It is one part, wherever its document comes to be.
#[derive(Debug, Clone)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// RFC 3339 in UTC, so that the text sorts as the time does.
    created: Option<String>,
    /// Number of its reading: two that have the same were written in the same words, wherever they are.
    pub(crate) number: u64,
}

impl Metadata {
    /// `namespace/name`.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
impl Meta {
    pub(crate) fn for_test(name: &str, namespace: &str, origin: Origin) -> Self {
        let said = Metadata {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            created: None,
            number: next_number(),
        };
        Self {
            said: Arc::new(said),
            origin,
        }
    }
}

/// A resource without errors. What it says is the same part as long as its document says the same.
#[derive(Debug)]
pub(crate) struct Written<T> {
    pub(crate) meta: Meta,
    pub(crate) spec: Arc<T>,
}

/// A number that no other reading has.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<T> Written<T> {
    /// The same in a document of another number.
    fn at(&self, document: usize) -> Self {
        let mut meta = self.meta.clone();
        meta.origin.document = document;
        Self {
            meta,
            spec: Arc::clone(&self.spec),
        }
    }
}

/// What one document adds to the resources.
#[derive(Debug)]
pub(crate) enum Piece {
    Gateway(Written<Gateway>),
    VirtualService(Written<VirtualService>),
    DestinationRule(Written<DestinationRule>),
    ServiceEntry(Written<ServiceEntry>),
    WorkloadEntry(Written<WorkloadEntry>),
    WorkloadGroup(Written<WorkloadGroup>),
    HealthCheckPolicy(Written<HealthCheckPolicy>),
    Service(Written<Service>),
    EndpointSlice(Written<EndpointSlice>),
    Secret(Written<Secret>),
    Workload(Written<Workload>),
    ForeignGateway(String),
    /// Resources that are passed over: their version and kind, and how many.
    PassedOver(String, usize),
    /// A resource that was read.
    Named(Arc<str>),
}

/// All resources of one run, each list in order of precedence.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub(crate) gateways: Vec<Written<Gateway>>,
    pub(crate) virtual_services: Vec<Written<VirtualService>>,
    pub(crate) destination_rules: Vec<Written<DestinationRule>>,
    pub(crate) service_entries: Vec<Written<ServiceEntry>>,
    pub(crate) workload_entries: Vec<Written<WorkloadEntry>>,
    pub(crate) workload_groups: Vec<Written<WorkloadGroup>>,
    pub(crate) health_check_policies: Vec<Written<HealthCheckPolicy>>,
    pub(crate) services: Vec<Written<Service>>,
    pub(crate) endpoint_slices: Vec<Written<EndpointSlice>>,
    pub(crate) secrets: Vec<Written<Secret>>,
    /// Pods, and what makes pods: nothing of them is executed, but their labels are what selectors select.
    pub(crate) workloads: Vec<Written<Workload>>,
    /// Gateways of the Kubernetes Gateway API, which is not executed: `namespace/name`.
    pub(crate) foreign_gateways: HashSet<String>,
    /// What has errors and is left out, as far as it could be read: what is right in it is analyzed nonetheless.
    pub(crate) faulty: Faulty,
    pub(crate) passed_over: BTreeMap<String, usize>,
    pub(crate) count: usize,
    /// `Kind namespace/name` of resources that are left out for their errors.
    pub(crate) refused: HashSet<Arc<str>>,
    /// Which document defines which resource, with or without errors.
    pub(crate) named: Vec<(usize, Arc<str>)>,
}

impl Resources {
    /// What is here, for each document that says the same.
    fn pieces(&self) -> Vec<Piece> {
        fn all<T>(list: &[Written<T>], piece: fn(Written<T>) -> Piece) -> impl Iterator<Item = Piece> {
            list.iter().map(move |written| piece(written.at(0)))
        }
        let foreign = self.foreign_gateways.iter().cloned().map(Piece::ForeignGateway);
        let passed_over = self.passed_over.iter();
        let passed_over = passed_over.map(|(kind, count)| Piece::PassedOver(kind.clone(), *count));
        let named = self.named.iter().map(|(_, name)| Piece::Named(Arc::clone(name)));
        all(&self.gateways, Piece::Gateway)
            .chain(all(&self.virtual_services, Piece::VirtualService))
            .chain(all(&self.destination_rules, Piece::DestinationRule))
            .chain(all(&self.service_entries, Piece::ServiceEntry))
            .chain(all(&self.workload_entries, Piece::WorkloadEntry))
            .chain(all(&self.workload_groups, Piece::WorkloadGroup))
            .chain(all(&self.health_check_policies, Piece::HealthCheckPolicy))
            .chain(all(&self.services, Piece::Service))
            .chain(all(&self.endpoint_slices, Piece::EndpointSlice))
            .chain(all(&self.secrets, Piece::Secret))
            .chain(all(&self.workloads, Piece::Workload))
            .chain(foreign)
            .chain(passed_over)
            .chain(named)
            .collect()
    }

    /// Adds what a document says.
    fn add(&mut self, piece: &Piece, document: usize) {
        match piece {
            Piece::Gateway(written) => self.gateways.push(written.at(document)),
            Piece::VirtualService(written) => self.virtual_services.push(written.at(document)),
            Piece::DestinationRule(written) => self.destination_rules.push(written.at(document)),
            Piece::ServiceEntry(written) => self.service_entries.push(written.at(document)),
            Piece::WorkloadEntry(written) => self.workload_entries.push(written.at(document)),
            Piece::WorkloadGroup(written) => self.workload_groups.push(written.at(document)),
            Piece::HealthCheckPolicy(written) => self.health_check_policies.push(written.at(document)),
            Piece::Service(written) => self.services.push(written.at(document)),
            Piece::EndpointSlice(written) => self.endpoint_slices.push(written.at(document)),
            Piece::Secret(written) => self.secrets.push(written.at(document)),
            Piece::Workload(written) => self.workloads.push(written.at(document)),
            Piece::ForeignGateway(id) => {
                self.foreign_gateways.insert(id.clone());
            }
            Piece::PassedOver(kind, count) => *self.passed_over.entry(kind.clone()).or_default() += count,
            Piece::Named(name) => {
                self.count += 1;
                self.named.push((document, Arc::clone(name)));
            }
        }
    }

    /// Adds the resources of a document with errors.
    fn append(&mut self, mut other: Self) {
        self.gateways.append(&mut other.gateways);
        self.virtual_services.append(&mut other.virtual_services);
        self.destination_rules.append(&mut other.destination_rules);
        self.service_entries.append(&mut other.service_entries);
        self.workload_entries.append(&mut other.workload_entries);
        self.workload_groups.append(&mut other.workload_groups);
        self.health_check_policies
            .append(&mut other.health_check_policies);
        self.services.append(&mut other.services);
        self.endpoint_slices.append(&mut other.endpoint_slices);
        self.secrets.append(&mut other.secrets);
        self.workloads.append(&mut other.workloads);
        self.foreign_gateways.extend(other.foreign_gateways);
        let faulty = &mut self.faulty;
        faulty.gateways.append(&mut other.faulty.gateways);
        faulty.virtual_services.append(&mut other.faulty.virtual_services);
        faulty
            .destination_rules
            .append(&mut other.faulty.destination_rules);
        faulty.service_entries.append(&mut other.faulty.service_entries);
        for (kind, count) in other.passed_over {
            *self.passed_over.entry(kind).or_default() += count;
        }
        self.count += other.count;
        self.refused.extend(other.refused);
        self.named.append(&mut other.named);
    }
}

/// Resources with errors. One whose name is taken already is not among them.
#[derive(Debug, Default)]
pub(crate) struct Faulty {
    pub(crate) gateways: Vec<Written<Gateway>>,
    pub(crate) virtual_services: Vec<Written<VirtualService>>,
    pub(crate) destination_rules: Vec<Written<DestinationRule>>,
    pub(crate) service_entries: Vec<Written<ServiceEntry>>,
}

/// Group and version of the kinds that are this gateway's own.
const OWN_VERSION: &str = "isthmus.dev/v1alpha1";
/// Kinds of Istio's networking group that a gateway does not execute.
const OTHER_NETWORKING: [&str; 3] = ["EnvoyFilter", "ProxyConfig", "Sidecar"];
/// Says so when a document that is passed over was meant for a gateway: a kind or version of Istio's own group that
/// does not exist is a mistake, and a policy that is not enforced must not go unnoticed.
fn tell_passed_over(version: &str, kind: &str, origin: &Origin, root: &Path<'_>, report: &mut Report<'_>) {
    let group = version.split('/').next().unwrap_or("");
    let known = KINDS.iter().chain(&OTHER_NETWORKING).copied();
    if group == "networking.istio.io" && KINDS.contains(&kind) {
        let message = format!("`{version}` is no version of {kind}");
        let help = Some("write networking.istio.io/v1, v1beta1 or v1alpha3".to_owned());
        let severity = report.strict();
        report.add(
            severity,
            "unknown-version",
            origin,
            &root.key("apiVersion"),
            message,
            help,
        );
    } else if group == "networking.istio.io" && !OTHER_NETWORKING.contains(&kind) {
        let help = crate::diagnostic::nearest(kind, known).map(|name| format!("did you mean `{name}`?"));
        let message = format!("networking.istio.io has no kind `{kind}`");
        let severity = report.strict();
        report.add(severity, "unknown-kind", origin, &root.key("kind"), message, help);
    } else if group == "isthmus.dev" {
        let message = format!("there is no kind `{kind}` of `{version}`");
        let help = Some(format!("there is HealthCheckPolicy of `{OWN_VERSION}`"));
        let severity = report.strict();
        report.add(severity, "unknown-kind", origin, &root.key("kind"), message, help);
    } else if matches!(group, "security.istio.io" | "networking.istio.io") {
        let message = format!("{kind} is not executed: nothing of it is enforced here");
        report.warn("not-executed", origin, &root.key("kind"), message);
    }
}

/// Reads the resources out of all documents of the report.
pub(crate) fn read_all(report: &mut Report<'_>, cache: &mut Cache) -> Resources {
    let mut resources = Resources::default();
    let mut seen = HashMap::new();
    let nowhere: Arc<str> = "".into();
    for document in 0..report.len() {
        let is_first = |known: &Known| !known.names.iter().any(|name| seen.contains_key(&name.resource));
        if let Some(known) = report.known(document).filter(|known| is_first(known)) {
            report.tell_again(document, &known);
            seen.extend(known.names.iter().map(|origin| {
                let name = Arc::clone(&origin.resource);
                let origin = Origin {
                    document,
                    ..origin.clone()
                };
                (name, origin)
            }));
            for piece in &known.pieces {
                resources.add(piece, document);
            }
            continue;
        }
        let since = report.found();
        let mut node = report.take(document);
        let mut own = Resources::default();
        let origin = Origin {
            document,
            item: None,
            resource: Arc::clone(&nowhere),
        };
        read(&mut node, &origin, &mut own, &mut seen, report);
        if report.is_good(document, since) {
            let names = own.named.iter();
            let names = names.filter_map(|(_, name)| seen.get(name).cloned()).collect();
            report.remember(document, since, (own.pieces(), names), cache);
        }
        resources.append(own);
    }
    report.remember_files(cache);
    sort_by_name(&mut resources.gateways);
    sort(&mut resources.virtual_services);
    sort(&mut resources.destination_rules);
    sort(&mut resources.service_entries);
    sort(&mut resources.workload_entries);
    sort(&mut resources.services);
    sort(&mut resources.workload_groups);
    sort(&mut resources.health_check_policies);
    health::join_groups(&resources.workload_groups, &mut resources.workload_entries);
    resources
}

/// The order of precedence: by creation where it is known (then by name, as Istio does), else as written.
fn sort<T>(list: &mut [Written<T>]) {
    list.sort_by_cached_key(|written| {
        let created = written.meta.created.clone();
        let name = created
            .as_ref()
            .map(|_| format!("{}.{}", written.meta.name, written.meta.namespace));
        (created.is_none(), created, name)
    });
}

/// The same for Gateways: of two that want the same and whose age is not known, the first by `name.namespace` has it
/// (Istio, of two that are equally old).
fn sort_by_name<T>(list: &mut [Written<T>]) {
    list.sort_by_cached_key(|Written { meta, .. }| {
        let name = format!("{}.{}", meta.name, meta.namespace);
        (meta.created.is_none(), meta.created.clone(), name)
    });
}

/// What `metadata` say.
fn read_meta(kind: &str, metadata: &Node, origin: &Origin) -> Meta {
    let name = metadata.text("name").unwrap_or("").to_owned();
    let namespace = metadata
        .text("namespace")
        .filter(|text| !text.is_empty())
        .unwrap_or(DEFAULT_NAMESPACE);
    Meta {
        origin: Origin {
            resource: Arc::from(format!("{kind} {namespace}/{name}")),
            ..origin.clone()
        },
        said: Arc::new(Metadata {
            name,
            namespace: namespace.to_owned(),
            labels: metadata.text_map("labels"),
            annotations: metadata.text_map("annotations"),
            created: metadata.text("creationTimestamp").map(str::to_owned),
            number: next_number(),
        }),
    }
}

/// Keeps what findings need of a document that is passed over.
fn note_passed_over(version: &str, kind: &str, node: &Node, origin: &Origin, resources: &mut Resources) {
    let metadata = node.get("metadata").unwrap_or(&Node::Null);
    if kind == "Gateway" && version.starts_with("gateway.networking.k8s.io/") {
        let meta = read_meta(kind, metadata, origin);
        resources.foreign_gateways.insert(meta.id());
    } else if let Some(spec) = Workload::read(version, kind, node) {
        let meta = read_meta(kind, metadata, origin);
        let spec = Arc::new(spec);
        resources.workloads.push(Written { meta, spec });
    }
}

fn read(
    node: &mut Node,
    origin: &Origin,
    resources: &mut Resources,
    seen: &mut HashMap<Arc<str>, Origin>,
    report: &mut Report<'_>,
) {
    if *node == Node::Null {
        return;
    }
    let root = Path::Root;
    if !matches!(node, Node::Map(_)) {
        let message = format!("expected a resource, found {}", node.describe());
        return report.error("not-a-resource", origin, &root, message);
    }
    let text = |name| node.text(name).map(str::to_owned);
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        let missing = if node.text("kind").is_none() {
            "kind"
        } else {
            "apiVersion"
        };
        let message = format!("a resource needs `{missing}`");
        return report.error("not-a-resource", origin, &root, message);
    };
    let (version, kind) = (version.as_str(), kind.as_str());
    if version == "v1" && kind == "List" && origin.item.is_none() {
        for (item, node) in node.list_mut("items").iter_mut().enumerate() {
            let origin = Origin {
                item: Some(item),
                ..origin.clone()
            };
            read(node, &origin, resources, seen, report);
        }
        return;
    }
    // Kinds whose every field is in the schema: Istio's, and our own.
    let istio = match kind {
        "HealthCheckPolicy" => version == OWN_VERSION,
        _ => matches!(
            version,
            "networking.istio.io/v1alpha3" | "networking.istio.io/v1beta1" | "networking.istio.io/v1"
        ),
    };
    let kubernetes = match kind {
        "Service" | "Endpoints" | "Secret" => version == "v1",
        "EndpointSlice" => matches!(version, "discovery.k8s.io/v1" | "discovery.k8s.io/v1beta1"),
        _ => false,
    };
    let ours = match kind {
        "Gateway" | "VirtualService" | "DestinationRule" | "ServiceEntry" | "WorkloadEntry"
        | "WorkloadGroup" | "HealthCheckPolicy" => istio,
        _ => kubernetes,
    };
    if !ours {
        tell_passed_over(version, kind, origin, &root, report);
        note_passed_over(version, kind, node, origin, resources);
        let what = format!("{version} {kind}");
        *resources.passed_over.entry(what).or_default() += 1;
        return;
    }
    if istio && let Some(spec) = node.get_mut("spec") {
        schema::name_numbers(kind, spec);
    }
    let node = &*node;
    let metadata = node.get("metadata").unwrap_or(&Node::Null);
    let meta = read_meta(kind, metadata, origin);
    let before = report.errors();
    let mut unique = true;
    report.begin();
    check_metadata(metadata, &meta.origin, report);
    if meta.name.is_empty() {
        // A name of another type has been told already, and metadata that are no map.
        let absent = matches!(metadata.get("name"), None | Some(Node::Text(_)));
        if absent && matches!(metadata, Node::Map(_) | Node::Null) {
            let metadata = root.key("metadata");
            report.error(
                "missing-field",
                &meta.origin,
                &metadata.key("name"),
                "`name` is required",
            );
        }
    } else {
        let first = seen.get(&meta.origin.resource).cloned();
        if let Some(first) = first {
            unique = false;
            let place = report.place(&first);
            let message = format!(
                "{} is already defined at {place}; this one is not used",
                meta.origin.resource
            );
            report.error(
                "duplicate-resource",
                &meta.origin,
                &root.key("metadata").key("name"),
                message,
            );
        } else {
            seen.insert(Arc::clone(&meta.origin.resource), meta.origin.clone());
        }
    }
    if istio {
        check_top(node, &meta.origin, report);
        schema::check(
            kind,
            node.get("spec").unwrap_or(&Node::Null),
            &Path::SPEC,
            &meta.origin,
            report,
        );
    }
    let spec = node.get("spec").unwrap_or(&Node::Null);
    if istio {
        report.begin_validation();
        crate::validate::written::check(kind, spec, &meta, report);
    }
    let lists = resources;
    lists.count += 1;
    lists
        .named
        .push((meta.origin.document, Arc::clone(&meta.origin.resource)));
    let refused = &mut lists.refused;
    let faulty = &mut lists.faulty;
    match kind {
        "Gateway" => {
            let left = keep(&mut lists.gateways, refused, meta, before, report, |_, _| {
                Gateway::read(spec)
            });
            faulty.gateways.extend(left.filter(|_| unique));
        }
        "VirtualService" => {
            let read = |meta: &Meta, report: &mut Report<'_>| VirtualService::read(spec, meta, report);
            let left = keep(&mut lists.virtual_services, refused, meta, before, report, read);
            faulty.virtual_services.extend(left.filter(|_| unique));
        }
        "DestinationRule" => {
            let read = |_: &Meta, _: &mut Report<'_>| DestinationRule::read(spec);
            let left = keep(&mut lists.destination_rules, refused, meta, before, report, read);
            faulty.destination_rules.extend(left.filter(|_| unique));
        }
        "ServiceEntry" => {
            let read = |_: &Meta, _: &mut Report<'_>| ServiceEntry::read(spec);
            let left = keep(&mut lists.service_entries, refused, meta, before, report, read);
            faulty.service_entries.extend(left.filter(|_| unique));
        }
        "WorkloadEntry" => {
            let read = |_: &Meta, _: &mut Report<'_>| WorkloadEntry::read(spec);
            let _left_out = keep(&mut lists.workload_entries, refused, meta, before, report, read);
        }
        "WorkloadGroup" => {
            let read = |_: &Meta, _: &mut Report<'_>| WorkloadGroup::read(spec);
            let _left_out = keep(&mut lists.workload_groups, refused, meta, before, report, read);
        }
        "HealthCheckPolicy" => {
            let read = |_: &Meta, _: &mut Report<'_>| HealthCheckPolicy::read(spec);
            let policies = &mut lists.health_check_policies;
            let _left_out = keep(policies, refused, meta, before, report, read);
        }
        "Service" => {
            let read = |meta: &Meta, _: &mut Report<'_>| Service::read(spec, meta);
            let _left_out = keep(&mut lists.services, refused, meta, before, report, read);
        }
        "Secret" => {
            let read = |_: &Meta, _: &mut Report<'_>| Secret::read(node);
            let _left_out = keep(&mut lists.secrets, refused, meta, before, report, read);
        }
        "EndpointSlice" => {
            let read = |meta: &Meta, _: &mut Report<'_>| EndpointSlice::read(node, meta);
            let _left_out = keep(&mut lists.endpoint_slices, refused, meta, before, report, read);
        }
        "Endpoints" => {
            for (index, spec) in kubernetes::read_endpoints(node, &meta).into_iter().enumerate() {
                let mut meta = meta.clone();
                Arc::make_mut(&mut meta.said).name = format!("{}-{index}", meta.name);
                let slices = &mut lists.endpoint_slices;
                let _left_out = keep(slices, refused, meta, before, report, |_, _| spec);
            }
        }
        _ => {}
    }
}

/// Fields beside `spec`; Istio's own decoder would drop a wrong one without a word.
fn check_top(node: &Node, origin: &Origin, report: &mut Report<'_>) {
    const KNOWN: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
    check_names(node, &Path::Root, &KNOWN, origin, report);
}

/// Fields of `metadata` (Kubernetes `ObjectMeta`). A misspelt `labels` or `namespace` changes what a resource means.
fn check_metadata(metadata: &Node, origin: &Origin, report: &mut Report<'_>) {
    const KNOWN: [&str; 16] = [
        "annotations",
        "clusterName",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ];
    let path = Path::Root.key("metadata");
    let wrong = |value: &Node, path: &Path<'_>, expected: &str, report: &mut Report<'_>| {
        let help = matches!(value, Node::Int(_) | Node::Float(_) | Node::Bool(_))
            .then(|| "put it in quotes".to_owned());
        let message = format!("expected {expected}, found {}", value.describe());
        report.add(Severity::Error, "wrong-type", origin, path, message, help);
    };
    if !matches!(metadata, Node::Map(_) | Node::Null) {
        return wrong(metadata, &path, "a map of fields", report);
    }
    check_names(metadata, &path, &KNOWN, origin, report);
    for name in ["name", "namespace"] {
        if let Some(value) = metadata.get(name).filter(|value| value.as_text().is_none()) {
            wrong(value, &path.key(name), "text", report);
        }
    }
    for name in ["labels", "annotations"] {
        let path = path.key(name);
        match metadata.get(name) {
            None => {}
            Some(Node::Map(entries)) => {
                for (at, (key, value)) in entries.iter().enumerate() {
                    if !matches!(value, Node::Text(_) | Node::Null) {
                        wrong(value, &Path::Entry(&path, at, key), "text", report);
                    }
                }
            }
            Some(value) => wrong(value, &path, "a map", report),
        }
    }
}

/// Reports the keys of a map that are none of the known names, and those that are written twice.
fn check_names(node: &Node, path: &Path<'_>, known: &[&str], origin: &Origin, report: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (at, (key, _)) in node.entries().iter().enumerate() {
        let path = Path::Entry(path, at, key);
        if !known.contains(&key.as_str()) {
            // Only the first ones are worth the comparison with all names.
            let name = if at < 100 {
                crate::diagnostic::nearest(key, known.iter().copied())
            } else {
                None
            };
            let help = name.map(|name| format!("did you mean `{name}`?"));
            let message = format!("unknown field `{}`", schema::shortened(key));
            report.add_key(report.strict(), "unknown-field", origin, &path, message, help);
        } else if !seen.insert(key.as_str()) {
            let message = format!("the field `{key}` is written twice");
            report.add_key(Severity::Error, "duplicate-field", origin, &path, message, None);
        }
    }
}

/// Reads and validates one resource and keeps it when it has no error; one that has is given back.
fn keep<'r, T: crate::validate::Validate>(
    list: &mut Vec<Written<T>>,
    refused: &mut HashSet<Arc<str>>,
    meta: Meta,
    errors_before: usize,
    report: &mut Report<'r>,
    read: impl FnOnce(&Meta, &mut Report<'r>) -> T,
) -> Option<Written<T>> {
    let spec = Arc::new(read(&meta, report));
    report.begin_validation();
    spec.validate(&meta, report);
    report.end();
    let written = Written { meta, spec };
    if report.errors() == errors_before {
        list.push(written);
        return None;
    }
    refused.insert(written.meta.origin.resource.clone());
    Some(written)
}

/// Reads a duration as Go writes it: `1h30m`, `1.5s`, `30ms`; `0` needs no unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "`{}` is not a duration such as 500ms, 10s or 1h30m",
            schema::shortened(text)
        )
    };
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.starts_with('-') {
        return Err(format!("`{}` is negative", schema::shortened(text)));
    }
    let mut total: u128 = 0;
    if rest.is_empty() || rest.len() > 64 {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at_checked(digits).ok_or_else(wrong)?;
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit_end).ok_or_else(wrong)?;
        rest = after;
        let nanos: u128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(wrong());
        }
        let whole: u128 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| wrong())?
        };
        let kept = fraction.get(..fraction.len().min(15)).unwrap_or("");
        let part: u128 = if kept.is_empty() {
            0
        } else {
            kept.parse().map_err(|_| wrong())?
        };
        let value =
            whole.checked_mul(nanos).ok_or_else(wrong)? + part * nanos / 10u128.pow(kept.len() as u32);
        total = total.checked_add(value).ok_or_else(wrong)?;
    }
    let nanos = i64::try_from(total).map_err(|_| format!("`{text}` is too long"))?;
    Ok(Duration::from_nanos(nanos.unsigned_abs()))
}

/// The duration of a field; the schema has already refused a wrong one.
pub(crate) fn duration_of(node: &Node, name: &str) -> Option<Duration> {
    node.text(name).and_then(|text| duration(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("30ms", 30_000_000),
            ("1.5s", 1_500_000_000),
            ("1h30m", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1m0.25s", 60_250_000_000),
            ("10us", 10_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in [
            "",
            "1",
            "s",
            "1x",
            "-1s",
            "1..5s",
            ".s",
            "1e3s",
            "99999999999h",
            "1s ",
            "é",
            "5é",
            "1\u{b5}",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
