//! Clusters: one for each port of each service, and one for each subset of it.

use super::{Context, balancer, health};
use crate::index::{expand, selects};
use crate::mesh::MeshConfig;
use crate::registry::{Found, Port, Service, itself};
use crate::resource::Written;
use crate::resource::destination_rule::{Blocks, ConnectionPool, Subset};
use crate::services::{Level, Services};
use isthmus_core::cluster::balancer::BalancerKind;
use isthmus_core::cluster::locality::close_ranks;
use isthmus_core::cluster::{ClusterSpec, IDLE_TIMEOUT};
use isthmus_core::discovery::{Discovery, NamedEndpoint};
use isthmus_core::egress::Dynamic;
use isthmus_core::endpoint::{Endpoint, EndpointSet};
use isthmus_core::name::{ClusterKey, ClusterMap, HostPattern};
use isthmus_core::protocol::{Protocol, UpstreamHttp, UpstreamVersion};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Compiles the clusters of all services, and what instances that register themselves need to know of them. Of several
/// services with one name the first has its ports.
pub(crate) fn compile(context: &Context<'_>) -> (ClusterMap<Arc<ClusterSpec>>, Services) {
    let (mut clusters, mut services) = (ClusterMap::default(), Services::default());
    for service in context.registry.services() {
        add(service, &service.host, context, &mut clusters, &mut services);
    }
    // Hosts that a wildcard covers and a rule names.
    for (host, namespace) in named_hosts(context) {
        if context.registry.find_exactly(&host, namespace).is_none()
            && let Some(service) = context.registry.find_covering(&host, namespace)
        {
            add(service, &host, context, &mut clusters, &mut services);
        }
    }
    (clusters, services)
}

/// Adds the clusters of a service for its host, or for one that it covers.
fn add(
    service: &Service<'_>,
    host: &str,
    context: &Context<'_>,
    clusters: &mut ClusterMap<Arc<ClusterSpec>>,
    services: &mut Services,
) {
    let rule = context.rules.find(host, service.namespace);
    // Datagrams are not routed.
    for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
        let subsets = rule
            .map_or(&[][..], |rule| &rule.subsets[..])
            .iter()
            .map(|subset| Some(*subset));
        for subset in std::iter::once(None).chain(subsets) {
            let blocks = rule
                .map(|rule| rule.blocks(port.number, subset))
                .unwrap_or_default();
            let own = rule.and_then(|rule| rule.balancer);
            let (spec, level) = cluster((service, host), port, subset, (&blocks, own), context);
            if let Entry::Vacant(place) = clusters.entry(spec.key.clone()) {
                let labels = subset.map(|subset| &subset.labels);
                services.add(&spec.key, (port.name, port.target), labels, level);
                place.insert(Arc::new(spec));
            }
        }
    }
}

/// Whether rules of VirtualServices have a part in which clusters there are: a service has a wildcard.
pub(crate) fn are_named_by_rules(context: &Context<'_>) -> bool {
    let mut services = context.registry.services().iter();
    services.any(|service| service.host.starts_with('*'))
}

/// The hosts that rules of VirtualServices lead to, each with the namespace that names it; none while no service has a
/// wildcard that could cover them.
fn named_hosts<'a>(context: &Context<'a>) -> BTreeSet<(String, &'a str)> {
    let mut hosts = BTreeSet::new();
    if !are_named_by_rules(context) {
        return hosts;
    }
    for Written { meta, spec } in context.virtual_services {
        let http = spec.http.iter().flat_map(|rule| {
            let mirrors = rule.mirrors.iter().map(|mirror| &mirror.target);
            rule.route.iter().map(|one| &one.target).chain(mirrors)
        });
        let streams = spec.tls.iter().chain(&spec.tcp);
        let streams = streams.flat_map(|rule| rule.route.iter().map(|one| &one.target));
        let namespace = meta.namespace.as_str();
        hosts.extend(
            http.chain(streams)
                .map(|target| (expand(&target.host, namespace).into_owned(), namespace)),
        );
    }
    hosts
}

fn cluster(
    (service, host): (&Service<'_>, &str),
    port: &Port<'_>,
    subset: Option<&Subset>,
    (blocks, own): (&Blocks, Option<BalancerKind>),
    context: &Context<'_>,
) -> (ClusterSpec, Level) {
    let options = context.options;
    let taken = port
        .endpoints
        .iter()
        .filter(|(labels, _)| subset.is_none_or(|subset| selects(&subset.labels, labels)));
    let pool = blocks.connection_pool.as_deref();
    // One host of a wildcard is looked up as if it were written.
    let is_one = port.dynamic.is_some() && !host.starts_with('*');
    let (checks, is_checked) = match port.dynamic {
        // The hosts of a wildcard come and go with requests, on each shard by itself: nobody checks them.
        Some(_) if !is_one => (None, false),
        _ => health::of(service, port, subset, context),
    };
    let fails_over = blocks.has_outlier_detection || is_checked;
    let (mut balancer, level) = balancer::compile(blocks, own, fails_over, context);
    if let Some(percent) = checks.and_then(|checks| checks.panic_percent) {
        balancer.panic_percent = percent;
    }
    let one = is_one
        .then(|| itself(host, port.dynamic.map_or(0, i128::from)))
        .flatten();
    let endpoints = endpoints(taken.chain(&one), port, &level);
    let spec = ClusterSpec {
        key: ClusterKey::outbound(port.number, subset.map_or("", |subset| &subset.name), host),
        dynamic: port.dynamic.filter(|_| !is_one).map(|number| Dynamic {
            covers: HostPattern::parse(host),
            port: number,
        }),
        endpoints: Arc::new(endpoints),
        protocol: port.protocol,
        http: http(port.protocol, pool, &options.mesh),
        balancer,
        connect_timeout: pool
            .and_then(|pool| pool.connect_timeout)
            .unwrap_or(options.mesh.connect_timeout),
        idle_timeout: pool.and_then(|pool| pool.idle_timeout).unwrap_or(IDLE_TIMEOUT),
        max_requests_per_connection: pool.map_or(0, |pool| {
            u32::try_from(pool.max_requests_per_connection).unwrap_or(0)
        }),
        namespace: service.namespace.into(),
        tls: blocks
            .tls
            .as_ref()
            .and_then(|tls| super::tls::client(tls, service.subject_alt_names, service.namespace, context)),
        tcp_idle_timeout: pool
            .and_then(|pool| pool.tcp_idle_timeout)
            .unwrap_or(IDLE_TIMEOUT),
        proxy_protocol: blocks.proxy_protocol,
        tunnel: blocks.tunnel.clone(),
        retries: super::retry::limits(blocks),
        outlier: blocks.outlier.as_deref().cloned(),
        health: checks.map(|checks| Arc::clone(&checks.policy)),
        limits: pool.map(|pool| pool.limits).unwrap_or_default(),
        keepalive: pool.and_then(|pool| pool.keepalive).or(options.mesh.keepalive),
        max_connection_duration: pool
            .and_then(|pool| pool.max_connection_duration)
            .unwrap_or_default(),
    };
    (spec, level)
}

/// The endpoints of a cluster, with their levels; those that are known by name have no addresses yet.
fn endpoints<'a>(
    taken: impl Iterator<Item = &'a (&'a BTreeMap<String, String>, Found)>,
    port: &Port<'_>,
    level: &Level,
) -> EndpointSet {
    let mut discovery = Discovery {
        is_logical: port.is_logical,
        reach: port.reach,
        ..Discovery::default()
    };
    for (labels, found) in taken {
        match found {
            Found::Address(endpoint) => discovery.fixed.push(Endpoint {
                level: level.of(labels, &endpoint.locality),
                ..endpoint.clone()
            }),
            Found::Name(named) => discovery.names.push(NamedEndpoint {
                level: level.of(labels, &named.locality),
                ..named.clone()
            }),
        }
    }
    // Who comes later needs to know how near those are that are here.
    if discovery.names.is_empty() && !level.differs() {
        let mut fixed = discovery.fixed;
        close_ranks(&mut fixed);
        return EndpointSet::new(fixed);
    }
    Arc::new(discovery).endpoints(|_| Vec::new(), &[], &EndpointSet::default())
}

/// How requests are spoken to a port (Istio's `setUpstreamProtocol`, `applyConnectionPool` and `shouldH2Upgrade` for a
/// gateway, where a port whose protocol is not known is not looked at: it speaks HTTP/1.1).
fn http(protocol: Protocol, pool: Option<&ConnectionPool>, mesh: &MeshConfig) -> UpstreamHttp {
    let upgraded = match pool.and_then(|pool| pool.h2_upgrade) {
        Some(upgrade) => upgrade,
        // The mesh's word concerns ports that say that they speak HTTP.
        None => mesh.h2_upgrade && protocol.is_http(),
    };
    UpstreamHttp {
        version: if pool.is_some_and(|pool| pool.use_client_protocol) {
            UpstreamVersion::SameAsClient
        } else if upgraded || protocol.is_http2() {
            UpstreamVersion::Http2
        } else {
            UpstreamVersion::Http1
        },
        max_concurrent_streams: pool.and_then(|pool| pool.max_concurrent_streams),
        keepalive: pool.and_then(|pool| pool.http2_keepalive),
    }
}
