//! What the admin API and the ready file say, as JSON.

use super::dns::{NameView, Names};
use super::listeners::Listeners;
use super::{AdminAddress, Collected};
use crate::mailbox::Publication;
use crate::tls::Store;
use isthmus_config::view;
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::cluster::health::Health;
use isthmus_core::shared::{ClusterShared, Limit};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

fn listener_list(listeners: &Listeners) -> Vec<Value> {
    listeners
        .iter()
        .map(|(key, address)| json!({"port": key.port, "bind": key.bind, "address": address.to_string()}))
        .collect()
}

/// `--ready-file`.
pub(super) fn ready_file(
    listeners: &Listeners,
    admin: &AdminAddress,
    status: &AdminAddress,
    metrics: &AdminAddress,
) -> String {
    json!({
        "listeners": listener_list(listeners),
        "admin": admin.to_string(),
        "status": status.to_string(),
        "metrics": metrics.to_string(),
        "process": std::process::id(),
    })
    .to_string()
}

/// `/listeners`.
pub(super) fn listeners(listeners: &Listeners) -> String {
    json!({ "listeners": listener_list(listeners) }).to_string()
}

/// `/certs`: what is served, shown and trusted, and what is wrong with it.
pub(super) fn certificates(store: &Store) -> String {
    let time = |time| humantime::format_rfc3339_seconds(time).to_string();
    let certificates: Vec<Value> = store
        .certificates()
        .map(|shown| {
            json!({
                "used_as": match (shown.is_authority, shown.is_server) {
                    (true, true) => "authority of clients",
                    (true, false) => "authority of upstreams",
                    (false, true) => "server",
                    (false, false) => "client",
                },
                "subject": shown.info.subject,
                "names": shown.info.names,
                "serial": shown.info.serial,
                "not_before": time(shown.info.not_before),
                "not_after": time(shown.info.not_after),
                "source": shown.info.source,
            })
        })
        .collect();
    let errors: Vec<String> = store.errors().map(ToString::to_string).collect();
    let warnings: Vec<String> = store.warnings().map(ToString::to_string).collect();
    json!({ "certificates": certificates, "errors": errors, "warnings": warnings }).to_string()
}

/// `/clusters?format=json`: what each shard has, added up.
pub(super) fn clusters(collected: &Collected) -> Value {
    let shared = collected
        .publication
        .iter()
        .flat_map(|publication| &publication.shared);
    let shared: HashMap<&str, &Arc<ClusterShared>> =
        shared.map(|(key, shared)| (key.as_str(), shared)).collect();
    let specs = collected
        .publication
        .iter()
        .flat_map(|publication| &publication.snapshot.clusters);
    let specs: HashMap<&str, &Arc<ClusterSpec>> = specs.map(|(key, spec)| (key.as_str(), spec)).collect();
    let list: Vec<Value> = collected
        .clusters
        .iter()
        .map(|(name, shards)| {
            let mut endpoints: BTreeMap<SocketAddr, (u32, u64, u64)> = BTreeMap::new();
            for endpoint in shards.iter().flat_map(|shard| &shard.endpoints) {
                let sum = endpoints.entry(endpoint.address).or_default();
                sum.0 = endpoint.weight;
                sum.1 += u64::from(endpoint.active);
                sum.2 += endpoint.idle as u64;
            }
            let endpoints: Vec<Value> = endpoints
                .into_iter()
                .map(|(address, (weight, active, idle))| {
                    json!({
                        "address": address.to_string(),
                        "weight": weight,
                        "requests_active": active,
                        "connections_idle": idle,
                    })
                })
                .collect();
            let mut cluster = json!({ "name": name, "endpoints": endpoints });
            let spec = specs.get(name.as_str());
            if let Some(shared) = shared.get(name.as_str()) {
                for endpoint in cluster["endpoints"].as_array_mut().into_iter().flatten() {
                    let address = endpoint["address"].as_str().and_then(|text| text.parse().ok());
                    let known = address.and_then(|address| shared.endpoints.get(&address));
                    if let (Some(spec), Some(address)) = (spec, address) {
                        endpoint["address"] = json!(spec.endpoints.shown(address));
                    }
                    endpoint["ejected"] = json!(known.is_some_and(|known| known.is_ejected()));
                    match known.map_or(Health::Unchecked, |known| known.health()) {
                        Health::Unchecked => {}
                        Health::Healthy => endpoint["health"] = json!("healthy"),
                        Health::Unhealthy(failure) => {
                            endpoint["health"] = json!("unhealthy");
                            endpoint["health_failure"] = json!(failure.to_string());
                        }
                    }
                }
                // Which endpoints are available, as a number of the change: all shards obey the one that is applied.
                cluster["availability"] = json!({
                    "epoch": shared.ejections.epoch(),
                    "applied": shards.iter().map(|shard| shard.epoch).min(),
                    "ejected": shared.ejections.count(),
                    "unhealthy": shared.ejections.unhealthy(),
                });
                for limit in Limit::ALL {
                    let budget = shared.budget(limit);
                    let max = budget.is_limited().then(|| budget.limit());
                    cluster[limit.label()] = json!({ "held": budget.held(), "max": max });
                }
            }
            cluster
        })
        .collect();
    json!({ "clusters": list })
}

/// `/clusters`: the same as lines.
pub(super) fn clusters_text(collected: &Collected) -> String {
    let mut text = String::new();
    for cluster in clusters(collected)["clusters"].as_array().into_iter().flatten() {
        for (limit, max, held) in [
            (Limit::Connections, "max_connections", "cx_active"),
            (Limit::Pending, "max_pending_requests", "rq_pending_active"),
            (Limit::Requests, "max_requests", "rq_limited_active"),
        ] {
            let name = cluster["name"].as_str().unwrap_or("");
            let budget = &cluster[limit.label()];
            if let Some(limit) = budget["max"].as_u64() {
                text.push_str(&format!(
                    "{name}::default_priority::{max}::{limit}\n{name}::default_priority::{held}::{}\n",
                    budget["held"]
                ));
            }
        }
        for endpoint in cluster["endpoints"].as_array().into_iter().flatten() {
            let name = cluster["name"].as_str().unwrap_or("");
            let address = endpoint["address"].as_str().unwrap_or("");
            text.push_str(&format!(
                "{name}::{address}::weight::{}\n{name}::{address}::rq_active::{}\n{name}::{address}::cx_idle::{}\n{name}::{address}::health_flags::{}\n",
                endpoint["weight"],
                endpoint["requests_active"],
                endpoint["connections_idle"],
                health_flags(endpoint)
            ));
        }
    }
    text
}

/// Why an endpoint takes no requests, as Envoy writes it.
fn health_flags(endpoint: &Value) -> &'static str {
    match (
        endpoint["health"] == json!("unhealthy"),
        endpoint["ejected"] == json!(true),
    ) {
        (true, true) => "/failed_active_hc/failed_outlier_check",
        (true, false) => "/failed_active_hc",
        (false, true) => "/failed_outlier_check",
        (false, false) => "healthy",
    }
}

/// `/dns`: the names that are known.
pub(super) fn names(names: &Names) -> String {
    let name = |known: NameView| {
        json!({
            "name": &*known.name,
            "addresses": known.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "state": known.state,
            "error": known.error,
            "of": if known.is_kept { "configuration" } else { "requests" },
        })
    };
    let names: Vec<Value> = names.view().into_iter().map(name).collect();
    json!({ "names": names }).to_string()
}

/// `/config_dump`: the published snapshot, as [`view`] says.
pub(super) fn config_dump(publication: Option<&Arc<Publication>>) -> String {
    let Some(publication) = publication else {
        return json!({}).to_string();
    };
    view::snapshot(&publication.snapshot).to_string()
}
