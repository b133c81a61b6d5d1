//! The parts of a snapshot as JSON: what `/config_dump`, `explain` and the tables of the command line show.
//!
//! The form is stable: fields are added, and none is renamed or changes its meaning. Durations are text as resources
//! write them (`15s`, `250ms`), absent values are null, names are those of the field (`virtual_hosts`, `clusters`).
//! Every part is taken apart field by field, so that what is added to a snapshot cannot be forgotten here.

use isthmus_core::attempt::RetryPolicy;
use isthmus_core::cluster::balancer::{BalancerKind, BalancerSpec};
use isthmus_core::cluster::hash::{HashCookie, HashKey, Hashing, TableKind};
use isthmus_core::cluster::health::{Check, CheckTransport, HealthPolicy, HttpCheck};
use isthmus_core::cluster::locality::Spread;
use isthmus_core::cluster::outlier::OutlierPolicy;
use isthmus_core::cluster::retry_budget::{Hedges, RetryBudget, RetryLimits};
use isthmus_core::cluster::{ClusterSpec, ProxyVersion, TcpKeepalive};
use isthmus_core::discovery::{Discovery, NamedEndpoint};
use isthmus_core::egress::{Dynamic, Reach};
use isthmus_core::endpoint::{Endpoint, Targets};
use isthmus_core::header::{FieldName, HeaderOperations, HeaderValue};
use isthmus_core::listener::{
    Accepts, Chain, ChainAction, ForwardPort, Listener, ProxyProtocol, TcpDestination, TcpRoute, Upgrades,
};
use isthmus_core::protocol::{Http2Keepalive, UpstreamHttp, UpstreamVersion};
use isthmus_core::route::{
    Abort, AbortWith, Action, Cors, Delay, Destination, DirectResponse, Fault, Forward, Mirror, PathRewrite,
    Redirect, RedirectPort, Route, RouteMatch, VirtualHost,
};
use isthmus_core::shared::Limits;
use isthmus_core::snapshot::Snapshot;
use isthmus_core::tls::{CaSource, ClientTls, KeySource, ServerTls, TlsVersion};
use serde_json::{Value, json};
use std::time::Duration;

/// A whole snapshot: its version, listeners with all routes, and clusters with their endpoints by name.
pub fn snapshot(snapshot: &Snapshot) -> Value {
    let mut clusters: Vec<&ClusterSpec> = snapshot.clusters.values().map(|spec| &**spec).collect();
    clusters.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    json!({
        "version": snapshot.version,
        "listeners": snapshot.listeners.iter().map(|one| listener(one)).collect::<Vec<_>>(),
        "clusters": clusters.into_iter().map(cluster).collect::<Vec<_>>(),
    })
}

/// A duration as resources write it.
pub fn duration(time: Duration) -> String {
    let ms = time.as_millis();
    if ms.is_multiple_of(1000) {
        format!("{}s", ms / 1000)
    } else {
        format!("{ms}ms")
    }
}

/// A listener and its tables; `virtual_hosts` are those of all tables, each with its `table`.
pub fn listener(listener: &Listener) -> Value {
    let Listener {
        key,
        proxy_protocol,
        upgrades,
        accepts,
        tables,
        forward,
    } = listener;
    let mut hosts = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        hosts.extend(table.virtual_hosts().iter().map(|host| virtual_host(at, host)));
    }
    let (chains, names) = match accepts {
        Accepts::Tls(names) => (names.chains(), names.names()),
        Accepts::Http | Accepts::Tcp(_) => (&[][..], &[][..]),
    };
    let chains = chains.iter().enumerate().map(|(at, one)| {
        let own = names.iter().filter(|(_, chain)| *chain == at);
        chain(one, &own.map(|(name, _)| name.to_string()).collect::<Vec<_>>())
    });
    json!({
        "port": key.port,
        "bind": key.bind,
        "accepts": transport(accepts),
        "proxy_protocol": match proxy_protocol {
            ProxyProtocol::Off => "off",
            ProxyProtocol::Accept => "accept",
            ProxyProtocol::Require => "require",
        },
        "upgrades": match upgrades {
            Upgrades::Any => json!(["*"]),
            Upgrades::Only(names) => json!(names),
        },
        "tcp": match accepts {
            Accepts::Tcp(Some(route)) => tcp_route(route),
            Accepts::Tcp(None) | Accepts::Http | Accepts::Tls(_) => Value::Null,
        },
        "tls": chains.collect::<Vec<_>>(),
        "virtual_hosts": hosts,
        "forward_ports": forward.iter().map(forward_port).collect::<Vec<_>>(),
    })
}

fn forward_port(forward: &ForwardPort) -> Value {
    let ForwardPort {
        chain: of,
        port,
        table,
        connect,
    } = forward;
    let names = connect.names();
    let chains = connect.chains().iter().enumerate().map(|(at, one)| {
        let own = names.iter().filter(|(_, chain)| *chain == at);
        chain(one, &own.map(|(name, _)| name.to_string()).collect::<Vec<_>>())
    });
    json!({ "chain": of, "port": port, "table": table, "connect": chains.collect::<Vec<_>>() })
}

/// What a listener takes: `http`, `tcp` or `tls`.
pub fn transport(accepts: &Accepts) -> &'static str {
    match accepts {
        Accepts::Http => "http",
        Accepts::Tcp(_) => "tcp",
        Accepts::Tls(_) => "tls",
    }
}

fn chain(chain: &Chain, names: &[String]) -> Value {
    let Chain { server, action } = chain;
    let (kind, table, route) = match action {
        ChainAction::Http { table, .. } => ("http", json!(table), Value::Null),
        ChainAction::Tcp { route, .. } => (
            "tcp",
            Value::Null,
            route.as_deref().map_or(Value::Null, tcp_route),
        ),
        ChainAction::Pass(route) => ("passthrough", Value::Null, tcp_route(route)),
        ChainAction::AutoPass(hosts) => {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            ("auto_passthrough", Value::Null, json!({ "hosts": hosts }))
        }
    };
    json!({
        "server": server,
        "names": names,
        "action": kind,
        "table": table,
        "route": route,
        "policy": action.tls().map(|policy| server_tls(policy)),
    })
}

/// Where the bytes of a connection go.
pub fn tcp_route(route: &TcpRoute) -> Value {
    let TcpRoute {
        virtual_service,
        destinations,
        source,
        others,
    } = route;
    let one = |TcpDestination { cluster, weight }: &TcpDestination| json!({"cluster": cluster.as_str(), "weight": weight});
    let mut view = json!({
        "virtual_service": &**virtual_service,
        "destinations": destinations.iter().map(one).collect::<Vec<_>>(),
    });
    if let Some(source) = source {
        view["source"] = source.to_string().into();
    }
    if !others.is_empty() {
        view["others"] = others.iter().map(tcp_route).collect();
    }
    view
}

fn virtual_host(table: usize, host: &VirtualHost) -> Value {
    json!({
        "table": table,
        "name": host.name,
        "domains": host.domains.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "https_redirect": host.https_redirect,
        "routes": host.routes().iter().map(route).collect::<Vec<_>>(),
    })
}

/// A route: its conditions as text, one each, and its action under `forward`, `redirect` or `direct_response`.
pub fn route(route: &Route) -> Value {
    let Route {
        name,
        virtual_service,
        matches,
        action,
        response_headers,
        stat_prefix,
    } = route;
    let (kind, action) = match &**action {
        Action::Forward(found) => ("forward", forward(found)),
        Action::Redirect(found) => ("redirect", redirect(found)),
        Action::Respond(found) => ("direct_response", direct_response(found)),
    };
    json!({
        "name": name,
        "virtual_service": &**virtual_service,
        "stat_prefix": stat_prefix,
        "match": conditions(matches),
        "action": kind,
        kind: action,
        "response_headers": response_headers.iter().map(header_operations).collect::<Vec<_>>(),
    })
}

/// The conditions of a match; none for one that takes every request.
pub fn conditions(matches: &RouteMatch) -> Vec<String> {
    matches
        .conditions()
        .map(|condition| condition.to_string())
        .collect()
}

fn forward(forward: &Forward) -> Value {
    let Forward {
        destinations,
        path,
        timeout,
        fault: injected,
        cors: told,
        retry,
        mirrors,
    } = forward;
    json!({
        "destinations": destinations.iter().map(destination).collect::<Vec<_>>(),
        "path": path.as_ref().map(path_rewrite),
        "timeout": timeout.map(duration),
        "fault": injected.as_ref().map(fault),
        "cors": told.as_deref().map(cors),
        "retry": retry_policy(retry),
        "mirrors": mirrors.iter().map(mirror).collect::<Vec<_>>(),
    })
}

/// Shares are in millionths of the requests.
fn fault(fault: &Fault) -> Value {
    let Fault { delay, abort } = fault;
    json!({
        "delay": delay.map(|Delay { share, time }| json!({
            "per_million": share.millionths(),
            "time": duration(time),
        })),
        "abort": abort.map(|Abort { share, with }| json!({
            "per_million": share.millionths(),
            "with": match with {
                AbortWith::Status(status) => json!({ "status": status.as_u16() }),
                AbortWith::Grpc(status) => json!({ "grpc_status": status.name() }),
                AbortWith::Reset => json!("reset"),
            },
        })),
    })
}

/// What browsers are told; texts are those of the fields, empty for none.
fn cors(cors: &Cors) -> Value {
    json!({
        "origins": cors.origins().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "methods": cors.methods,
        "headers": cors.headers,
        "exposed": cors.exposed,
        "max_age_seconds": cors.max_age,
        "credentials": cors.credentials,
        "keeps_unmatched_preflights": cors.keeps_unmatched,
    })
}

fn retry_policy(policy: &RetryPolicy) -> Value {
    let RetryPolicy {
        retries,
        per_try_timeout,
        backoff,
        on,
        status_codes,
        ignore_previous_hosts,
        remote_localities,
    } = policy;
    json!({
        "retries": retries,
        "per_try_timeout": per_try_timeout.map(duration),
        "backoff": duration(*backoff),
        "on": on.words().collect::<Vec<_>>(),
        "status_codes": status_codes,
        "ignore_previous_hosts": ignore_previous_hosts,
        "remote_localities": remote_localities,
    })
}

fn mirror(mirror: &Mirror) -> Value {
    let Mirror { cluster, per_million } = mirror;
    json!({ "cluster": cluster.as_str(), "per_million": per_million })
}

fn destination(destination: &Destination) -> Value {
    let Destination {
        cluster,
        weight,
        request_headers,
        response_headers,
        authority,
    } = destination;
    json!({
        "cluster": cluster.as_str(),
        "weight": weight,
        "request_headers": request_headers.iter().map(header_operations).collect::<Vec<_>>(),
        "response_headers": response_headers.iter().map(header_operations).collect::<Vec<_>>(),
        "authority": authority,
    })
}

fn redirect(redirect: &Redirect) -> Value {
    let Redirect {
        status,
        scheme,
        authority,
        port,
        path,
    } = redirect;
    json!({
        "status": status.as_u16(),
        "scheme": scheme,
        "authority": authority,
        "port": match port {
            RedirectPort::Unchanged => json!("unchanged"),
            RedirectPort::Number(number) => json!(number),
            RedirectPort::ProtocolDefault => json!("default"),
            RedirectPort::Request => json!("request"),
        },
        "path": path.as_ref().map(path_rewrite),
    })
}

fn direct_response(direct: &DirectResponse) -> Value {
    let DirectResponse { status, body } = direct;
    json!({ "status": status.as_u16(), "body": String::from_utf8_lossy(body) })
}

/// What happens to a path: `{prefix_bytes, with}`, `{whole}` or `{regex, with}`.
pub fn path_rewrite(rewrite: &PathRewrite) -> Value {
    match rewrite {
        PathRewrite::Prefix { matched, with } => json!({ "prefix_bytes": matched, "with": with }),
        PathRewrite::Whole(path) => json!({ "whole": path }),
        PathRewrite::Regex(rewrite) => json!({ "regex": rewrite.pattern(), "with": rewrite.replacement() }),
    }
}

/// One step of operations on fields.
pub fn header_operations(operations: &HeaderOperations) -> Value {
    let HeaderOperations { remove, set, add } = operations;
    let list = |list: &[(FieldName, HeaderValue)]| {
        let pair = |(name, value): &(FieldName, HeaderValue)| {
            let value = match value {
                HeaderValue::Text(text) => String::from_utf8_lossy(text).into_owned(),
                HeaderValue::Template(template) => template.written().to_owned(),
            };
            json!({ "name": name.as_str(), "value": value })
        };
        list.iter().map(pair).collect::<Vec<_>>()
    };
    json!({
        "remove": remove.iter().map(FieldName::as_str).collect::<Vec<_>>(),
        "set": list(set),
        "add": list(add),
    })
}

/// A cluster and its endpoints.
pub fn cluster(spec: &ClusterSpec) -> Value {
    let ClusterSpec {
        key,
        endpoints,
        protocol,
        http,
        balancer,
        connect_timeout,
        idle_timeout,
        max_requests_per_connection,
        namespace,
        tls,
        tcp_idle_timeout,
        max_connection_duration,
        keepalive,
        proxy_protocol,
        tunnel,
        dynamic,
        retries,
        limits,
        outlier,
        health,
    } = spec;
    let UpstreamHttp {
        version,
        max_concurrent_streams,
        keepalive: http2_keepalive,
    } = http;
    json!({
        "name": key.as_str(),
        "host": key.host(),
        "port": key.port(),
        "subset": key.subset(),
        "namespace": namespace,
        "protocol": protocol.to_string(),
        "http_version": match version {
            UpstreamVersion::Http1 => "HTTP/1.1",
            UpstreamVersion::Http2 => "HTTP/2",
            UpstreamVersion::SameAsClient => "as the client's",
        },
        "max_concurrent_streams": max_concurrent_streams,
        "http2_keepalive": http2_keepalive.as_ref().map(|Http2Keepalive { interval, timeout }| {
            json!({ "interval": duration(*interval), "timeout": duration(*timeout) })
        }),
        "balancer": balancing(balancer),
        "connect_timeout": duration(*connect_timeout),
        "idle_timeout": limit(*idle_timeout),
        "max_requests_per_connection": max_requests_per_connection,
        "tls": tls.as_ref().map(|tls| client_tls(tls)),
        "tcp_idle_timeout": limit(*tcp_idle_timeout),
        "max_connection_duration": limit(*max_connection_duration),
        "tcp_keepalive": keepalive.as_ref().map(|TcpKeepalive { probes, time, interval }| {
            json!({ "probes": probes, "time": time.map(duration), "interval": interval.map(duration) })
        }),
        "proxy_protocol": proxy_protocol.map(|version| match version {
            ProxyVersion::V1 => "V1",
            ProxyVersion::V2 => "V2",
        }),
        "dynamic": dynamic.as_ref().map(|Dynamic { covers, port }| json!({ "hosts": covers.to_string(), "port": port })),
        "tunnel": tunnel.as_ref().map(ToString::to_string),
        "limits": limits_of(*limits),
        "outlier_detection": outlier.as_ref().map(outliers),
        "health_check": health.as_deref().map(health_check),
        "retries": retry_limits(retries),
        "endpoints": endpoints.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "discovery": endpoints.discovery.as_ref().filter(|found| !found.names.is_empty()).map(|found| discovery(found)),
    })
}

/// How endpoints are chosen.
fn balancing(spec: &BalancerSpec) -> Value {
    let BalancerSpec {
        kind,
        hashing,
        warmup,
        spread,
        panic_percent,
        // Follows from the rest and the endpoints.
        tables: _,
    } = spec;
    json!({
        "kind": match kind {
            BalancerKind::RoundRobin => "ROUND_ROBIN",
            BalancerKind::Random => "RANDOM",
            BalancerKind::LeastRequest => "LEAST_REQUEST",
            BalancerKind::PeakEwma => "PEAK_EWMA",
            BalancerKind::Prequal => "PREQUAL",
        },
        "hash": hashing.as_ref().map(|Hashing { key, table }| json!({
            "key": match key {
                HashKey::Header(name) => json!({ "header": name.as_str() }),
                HashKey::Authority => json!("authority"),
                HashKey::Path => json!("path"),
                HashKey::Cookie(HashCookie { name, ttl, attributes }) => json!({
                    "cookie": name,
                    "ttl": ttl.map(duration),
                    "attributes": attributes,
                }),
                HashKey::SourceIp => json!("source address"),
                HashKey::Query(name) => json!({ "query_parameter": name }),
            },
            "table": match table {
                TableKind::Ring(points) => json!({ "ring": points }),
                TableKind::Maglev(slots) => json!({ "maglev": slots }),
            },
        })),
        "warmup": warmup.as_ref().map(|warmup| json!({
            "duration": duration(warmup.duration()),
            "minimum_percent": warmup.minimum_percent(),
            "aggression": warmup.aggression(),
        })),
        "localities": match spread {
            Spread::Even => Value::Null,
            Spread::Shares(shares) => shares
                .iter()
                .map(|(locality, share)| json!({ "locality": locality.to_string(), "share": share }))
                .collect(),
            Spread::ZoneAware { own, endpoints_min } => json!({
                "zone_aware": { "own": own.to_string(), "endpoints_min": endpoints_min },
            }),
        },
        "panic_percent": panic_percent,
    })
}

/// Limits of connections and requests; null for none.
fn limits_of(limits: Limits) -> Value {
    let Limits {
        connections,
        pending,
        requests,
    } = limits;
    let most = |number: u32| (number != u32::MAX).then_some(number);
    json!({ "connections": most(connections), "pending": most(pending), "requests": most(requests) })
}

/// When endpoints are ejected.
fn outliers(policy: &OutlierPolicy) -> Value {
    let OutlierPolicy {
        consecutive_5xx,
        consecutive_gateway,
        consecutive_local,
        split,
        codes,
        interval,
        base,
        max_percent,
    } = policy;
    json!({
        "consecutive_5xx": consecutive_5xx,
        "consecutive_gateway": consecutive_gateway,
        "consecutive_local": consecutive_local,
        "split": split,
        "codes": codes,
        "interval": duration(*interval),
        "base": duration(*base),
        "max_percent": max_percent,
    })
}

/// How endpoints are checked: `http`, `tcp` or `grpc` is not null.
fn health_check(policy: &HealthPolicy) -> Value {
    let HealthPolicy {
        check,
        port,
        transport,
        initial_delay,
        interval,
        timeout,
        healthy_after,
        unhealthy_after,
        starts_healthy,
    } = policy;
    let (mut http, mut tcp, mut grpc) = (Value::Null, Value::Null, Value::Null);
    match check {
        Check::Http(HttpCheck {
            path,
            host,
            fields,
            expected,
        }) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}: {value}"))
                .collect();
            let range = |(first, last): &(u16, u16)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            let expected: Vec<String> = expected.iter().map(range).collect();
            http = json!({ "path": path, "host": host, "headers": fields, "expected_statuses": expected });
        }
        Check::Tcp => tcp = json!({}),
        Check::Grpc { service } => grpc = json!({ "service": service }),
    }
    json!({
        "http": http,
        "tcp": tcp,
        "grpc": grpc,
        "port": port,
        "transport": match transport {
            CheckTransport::Own => "as requests",
            CheckTransport::Plaintext => "plaintext",
            CheckTransport::Tls => "tls",
        },
        "initial_delay": duration(*initial_delay),
        "interval": duration(*interval),
        "timeout": duration(*timeout),
        "healthy_after": healthy_after,
        "unhealthy_after": unhealthy_after,
        "initial_state": if *starts_healthy { "HEALTHY" } else { "UNHEALTHY" },
    })
}

/// Bounds of retries; `concurrent` is null for none.
fn retry_limits(limits: &RetryLimits) -> Value {
    let RetryLimits {
        concurrent,
        budget,
        hedges: Hedges(hedges),
    } = limits;
    json!({
        "concurrent": (*concurrent != u32::MAX).then_some(concurrent),
        "budget": budget.map(|RetryBudget { per_million, min, interval }| json!({
            "per_million": per_million,
            "min": min,
            "interval": duration(interval),
        })),
        "hedges": hedges,
    })
}

/// A time of which zero means none.
fn limit(time: Duration) -> Option<String> {
    (!time.is_zero()).then(|| duration(time))
}

/// An endpoint.
pub fn endpoint(endpoint: &Endpoint) -> Value {
    let Endpoint {
        address,
        weight,
        locality,
        level,
        targets,
        health,
    } = endpoint;
    let mut shown = json!({
        "address": if endpoint.socket().is_some() { endpoint.to_string() } else { address.to_string() },
        "weight": weight,
        "locality": locality,
        "level": level,
        "health_check": health.as_deref().map(health_check),
    });
    if let Some(Targets::Addresses(targets)) = targets {
        shown["targets"] = targets.iter().map(ToString::to_string).collect();
    }
    shown
}

/// How endpoints are found that the resources name.
fn discovery(discovery: &Discovery) -> Value {
    let Discovery {
        fixed: _,
        names,
        is_logical,
        reach,
    } = discovery;
    let name = |named: &NamedEndpoint| {
        let NamedEndpoint {
            host,
            port,
            weight,
            locality,
            level,
            health,
        } = named;
        json!({
            "name": host,
            "port": port,
            "weight": weight,
            "locality": locality,
            "level": level,
            "health_check": health.as_deref().map(health_check),
        })
    };
    json!({
        "resolution": if *is_logical { "DNS_ROUND_ROBIN" } else { "DNS" },
        "names": names.iter().map(name).collect::<Vec<_>>(),
        "public_only": *reach == Reach::Public,
    })
}

/// What a server presents and demands; keys by where they come from, never themselves.
fn server_tls(policy: &ServerTls) -> Value {
    let ServerTls {
        keys,
        client_auth,
        ca,
        crl,
        subject_alt_names,
        spki,
        hashes,
        skip_verify,
        parameters,
        alpn,
    } = policy;
    let version = |version| match version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    };
    json!({
        "keys": keys.iter().map(key_source).collect::<Vec<_>>(),
        "client_auth": format!("{client_auth:?}").to_lowercase(),
        "ca": ca.as_ref().map(ca_source),
        "crl": crl,
        "subject_alt_names": subject_alt_names,
        "pinned_keys": spki.len(),
        "pinned_certificates": hashes.len(),
        "skip_verify": skip_verify,
        "min_version": version(parameters.min),
        "max_version": version(parameters.max),
        "cipher_suites": parameters.cipher_suites,
        "curves": parameters.curves,
        "alpn": alpn,
    })
}

fn client_tls(policy: &ClientTls) -> Value {
    let ClientTls {
        key,
        ca,
        crl,
        subject_alt_names,
        sni,
        skip_verify,
    } = policy;
    json!({
        "key": key.as_ref().map(key_source),
        "ca": ca_source(ca),
        "crl": crl,
        "subject_alt_names": subject_alt_names,
        "sni": sni,
        "skip_verify": skip_verify,
    })
}

fn key_source(source: &KeySource) -> String {
    match source {
        KeySource::Files { certificate, .. } => certificate.to_string(),
        KeySource::Credential(name) => format!("credential {}", name.name),
    }
}

fn ca_source(source: &CaSource) -> String {
    match source {
        CaSource::File(path) => path.to_string(),
        CaSource::Credential(name) => format!("credential {}", name.name),
        CaSource::System => "the system's".to_owned(),
    }
}
