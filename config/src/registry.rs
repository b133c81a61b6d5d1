//! The registry: every service that routes may name, whatever kind of resource described it.
//!
//! Kubernetes Services with their EndpointSlices, and ServiceEntries with their endpoints or WorkloadEntries, become
//! one form: a host, ports, and for each port endpoints with labels.

use crate::Options;
use crate::index::{CLUSTER_DOMAIN, export_to, is_exported, selects};
use crate::report::Origin;
use crate::resource::kubernetes::EndpointSlice;
use crate::resource::service_entry::{Resolution, ServiceEntry};
use crate::resource::workload::WorkloadEntry;
use crate::resource::{Meta, Resources, Written};
use isthmus_core::cluster::locality::TOPOLOGY;
use isthmus_core::discovery::NamedEndpoint;
use isthmus_core::egress::Reach;
use isthmus_core::endpoint::{Endpoint, UNIX};
use isthmus_core::protocol::Protocol;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

/// The label of a pod or WorkloadEntry that says where it is.
const LOCALITY_LABEL: &str = "istio-locality";

/// One service.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    /// Its whole name, in lower case.
    pub(crate) host: String,
    pub(crate) namespace: &'a str,
    pub(crate) ports: Vec<Port<'a>>,
    /// Namespaces that see it; empty for all.
    pub(crate) export_to: &'a [String],
    /// Names of which its certificates must have one; empty when any will do.
    pub(crate) subject_alt_names: &'a [String],
    /// The resources that describe it.
    pub(crate) origins: Vec<&'a Origin>,
}

impl Service<'_> {
    /// `namespace/name` of the resource that describes it, or of the first of several.
    pub(crate) fn id(&self) -> String {
        let first = self.origins.first();
        let id = first.and_then(|origin| origin.resource.split_once(' '));
        id.map_or_else(|| self.host.clone(), |(_, id)| id.to_owned())
    }
}

/// One port of a service.
#[derive(Debug)]
pub(crate) struct Port<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: u16,
    /// The port of endpoints that say none.
    pub(crate) target: u16,
    pub(crate) protocol: Protocol,
    pub(crate) endpoints: Vec<(&'a BTreeMap<String, String>, Found)>,
    /// Each name among them is one endpoint, however many addresses it has (DNS_ROUND_ROBIN).
    pub(crate) is_logical: bool,
    /// Hosts that a wildcard stands for are looked up when requests bring them, at this port.
    pub(crate) dynamic: Option<u16>,
    /// Where the addresses of names may be.
    pub(crate) reach: Reach,
}

/// An endpoint, by what is written.
#[derive(Debug)]
pub(crate) enum Found {
    /// An IP address.
    Address(Endpoint),
    /// A name of DNS.
    Name(NamedEndpoint),
}

/// All services that the gateway may see.
#[derive(Debug, Default)]
pub(crate) struct Registry<'a> {
    services: Vec<Service<'a>>,
    by_host: HashMap<String, Vec<usize>>,
}

/// WorkloadEntries by namespace.
type Workloads<'a> = HashMap<&'a str, Vec<&'a WorkloadEntry>>;

impl<'a> Registry<'a> {
    /// Collects the services that are exported to the gateway's namespace.
    pub(crate) fn new(resources: &'a Resources, options: &'a Options) -> Self {
        let mut registry = Self::default();
        let mut workloads = Workloads::new();
        for Written { meta, spec } in &resources.workload_entries {
            workloads.entry(&meta.namespace).or_default().push(spec);
        }
        let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for Written { meta, spec } in &resources.endpoint_slices {
            slices
                .entry((&meta.namespace, &spec.service))
                .or_default()
                .push(spec);
        }
        for Written { meta, spec } in &resources.services {
            let shown_to = export_to(&spec.export_to, &options.mesh.service_export_to);
            if !is_exported(shown_to, &meta.namespace, &options.namespace) {
                continue;
            }
            let slices = slices
                .get(&(meta.namespace.as_str(), meta.name.as_str()))
                .map_or(&[][..], Vec::as_slice);
            let workloads = workloads
                .get(meta.namespace.as_str())
                .map_or(&[][..], Vec::as_slice);
            // An empty selector selects nothing here: the endpoints are then somebody else's affair.
            let selected = workloads
                .iter()
                .filter(|entry| !spec.selector.is_empty() && selects(&spec.selector, &entry.labels));
            let selected: Vec<&WorkloadEntry> = selected.copied().collect();
            let ports = spec.ports.iter().filter_map(|port| {
                let of_slices = slices.iter().flat_map(|slice| {
                    let named = slice.ports.iter().find(|candidate| candidate.name == port.name);
                    let target = named.or_else(|| {
                        slice
                            .ports
                            .iter()
                            .find(|candidate| Some(candidate.number) == port.target_port)
                    });
                    let number = target.and_then(|target| u16::try_from(target.number).ok());
                    let addresses = number
                        .map(|number| slice.addresses.iter().map(move |ip| SocketAddr::new(*ip, number)));
                    addresses.into_iter().flatten().map(|address| {
                        let endpoint = Endpoint {
                            locality: locality("", &slice.labels),
                            ..Endpoint::new(address)
                        };
                        (&slice.labels, Found::Address(endpoint))
                    })
                });
                let target = port.target_port.unwrap_or(port.number);
                let of_workloads = selected
                    .iter()
                    .filter_map(|entry| endpoint(entry, &port.name, target, false));
                Some(Port {
                    name: &port.name,
                    number: u16::try_from(port.number).ok()?,
                    target: u16::try_from(target).unwrap_or(0),
                    protocol: Protocol::of_service_port(&port.name, &port.app_protocol, &port.transport),
                    endpoints: of_slices.chain(of_workloads).collect(),
                    is_logical: false,
                    dynamic: None,
                    reach: Reach::Written,
                })
            });
            let host = format!("{}.{}.{CLUSTER_DOMAIN}", meta.name, meta.namespace).to_ascii_lowercase();
            registry.add(Service {
                host,
                namespace: &meta.namespace,
                ports: ports.collect(),
                export_to: shown_to,
                subject_alt_names: &[],
                origins: vec![&meta.origin],
            });
        }
        for Written { meta, spec } in &resources.service_entries {
            let shown_to = export_to(&spec.export_to, &options.mesh.service_export_to);
            if is_exported(shown_to, &meta.namespace, &options.namespace) {
                registry.add_entry(meta, spec, shown_to, &workloads);
            }
        }
        registry
    }

    fn add_entry(
        &mut self,
        meta: &'a Meta,
        spec: &'a ServiceEntry,
        export_to: &'a [String],
        workloads: &Workloads<'a>,
    ) {
        let selected: Vec<&'a WorkloadEntry> = match &spec.selector {
            Some(labels) => {
                let workloads = workloads
                    .get(meta.namespace.as_str())
                    .map_or(&[][..], Vec::as_slice);
                workloads
                    .iter()
                    .filter(|entry| selects(labels, &entry.labels))
                    .copied()
                    .collect()
            }
            None => spec.endpoints.iter().collect(),
        };
        let resolves = matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        // Where nothing is said, there is no original destination to go to: the host's own name is meant.
        let is_open = matches!(spec.resolution, Resolution::None | Resolution::DynamicDns);
        let is_its_own_name = (resolves || is_open) && spec.endpoints.is_empty() && spec.selector.is_none();
        for host in &spec.hosts {
            let is_wildcard = host.starts_with('*');
            let ports = spec.ports.iter().filter_map(|port| {
                let target = if port.target_port == 0 {
                    port.number
                } else {
                    port.target_port
                };
                let endpoints = selected
                    .iter()
                    .filter_map(|entry| endpoint(entry, &port.name, target, resolves));
                let own = itself(host, target).filter(|_| is_its_own_name);
                Some(Port {
                    name: &port.name,
                    number: u16::try_from(port.number).ok()?,
                    target: u16::try_from(target).unwrap_or(0),
                    protocol: Protocol::parse(&port.protocol),
                    endpoints: endpoints.chain(own).collect(),
                    is_logical: is_open || spec.resolution == Resolution::DnsRoundRobin,
                    dynamic: u16::try_from(target)
                        .ok()
                        .filter(|_| is_open && is_wildcard && is_its_own_name),
                    reach: if is_open { Reach::Public } else { Reach::Written },
                })
            });
            let host = host.to_ascii_lowercase();
            self.add(Service {
                host,
                namespace: &meta.namespace,
                ports: ports.collect(),
                export_to,
                subject_alt_names: &spec.subject_alt_names,
                origins: vec![&meta.origin],
            });
        }
    }

    fn add(&mut self, service: Service<'a>) {
        let known = self.by_host.get(&service.host).map_or(&[][..], Vec::as_slice);
        let same = |at: &&usize| {
            self.services
                .get(**at)
                .is_some_and(|known| known.namespace == service.namespace)
        };
        if let Some(known) = known.iter().find(same).and_then(|at| self.services.get_mut(*at)) {
            // Several resources that describe one service add up.
            known.origins.extend(service.origins);
            for port in service.ports {
                match known.ports.iter_mut().find(|known| known.number == port.number) {
                    Some(known) => known.endpoints.extend(port.endpoints),
                    None => known.ports.push(port),
                }
            }
            return;
        }
        self.by_host
            .entry(service.host.clone())
            .or_default()
            .push(self.services.len());
        self.services.push(service);
    }

    /// All services, in order of precedence.
    pub(crate) fn services(&self) -> &[Service<'a>] {
        &self.services
    }

    /// The service of a host: of the namespace that asks first, else of any; else that of the longest wildcard which
    /// covers the host.
    pub(crate) fn find(&self, host: &str, namespace: &str) -> Option<&Service<'a>> {
        self.find_exactly(host, namespace)
            .or_else(|| self.find_covering(host, namespace))
    }

    /// The service of the longest wildcard that covers a host which is none itself.
    pub(crate) fn find_covering(&self, host: &str, namespace: &str) -> Option<&Service<'a>> {
        if host.starts_with('*') {
            return None;
        }
        let labels = host.match_indices('.');
        let mut wildcards = labels.map(|(at, _)| format!("*{}", host.get(at..).unwrap_or("")));
        wildcards.find_map(|wildcard| self.find_exactly(&wildcard, namespace))
    }

    /// The service that has this very name.
    pub(crate) fn find_exactly(&self, host: &str, namespace: &str) -> Option<&Service<'a>> {
        let found = self.by_host.get(host)?;
        let all = || found.iter().filter_map(|at| self.services.get(*at));
        all()
            .find(|service| service.namespace == namespace)
            .or_else(|| all().next())
    }
}

/// Where a workload is: what is written, else what its labels say (Istio `GetLocalityLabel`).
pub(crate) fn locality(written: &str, labels: &BTreeMap<String, String>) -> Box<str> {
    if !written.is_empty() {
        return written.into();
    }
    if let Some(label) = labels.get(LOCALITY_LABEL) {
        // The values of labels have no slashes.
        let text = if label.contains('/') {
            label.clone()
        } else {
            label.replace('.', "/")
        };
        return text.into();
    }
    let parts = TOPOLOGY.map(|key| labels.get(key).map_or("", String::as_str));
    parts.join("/").trim_end_matches('/').into()
}

/// The endpoint of a workload for one service port; None when its address is a name, and names are not looked up.
fn endpoint<'a>(
    entry: &'a WorkloadEntry,
    port_name: &str,
    target: i128,
    resolves: bool,
) -> Option<(&'a BTreeMap<String, String>, Found)> {
    let port = entry.ports.get(port_name).copied().unwrap_or(target);
    let port = u16::try_from(port).ok()?;
    let weight = u32::try_from(entry.weight).unwrap_or(u32::MAX).max(1);
    let locality = locality(&entry.locality, &entry.labels);
    let found = match entry.ip() {
        Some(ip) => Found::Address(Endpoint {
            weight,
            locality,
            health: entry.probe.clone(),
            ..Endpoint::new(SocketAddr::new(ip, port))
        }),
        None if resolves && is_resolvable(&entry.address) => Found::Name(NamedEndpoint {
            host: entry.address.to_ascii_lowercase().into(),
            port,
            weight,
            locality,
            level: 0,
            health: entry.probe.clone(),
        }),
        None => Found::Address(Endpoint {
            weight,
            locality,
            health: entry.probe.clone(),
            ..Endpoint::on_socket(entry.address.strip_prefix(UNIX)?)
        }),
    };
    Some((&entry.labels, found))
}

/// The endpoint of a host that is looked up by its own name.
pub(crate) fn itself(host: &str, target: i128) -> Option<(&'static BTreeMap<String, String>, Found)> {
    static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
    let port = u16::try_from(target).ok()?;
    let found = match host.parse() {
        Ok(ip) => Found::Address(Endpoint::new(SocketAddr::new(ip, port))),
        Err(_) if !is_resolvable(host) => return None,
        Err(_) => Found::Name(NamedEndpoint {
            host: host.to_ascii_lowercase().into(),
            port,
            weight: 1,
            locality: "".into(),
            level: 0,
            health: None,
        }),
    };
    Some((&NO_LABELS, found))
}

fn is_resolvable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['*', '/', ':'])
}
