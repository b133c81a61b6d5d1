//! Explanations and the state of a running gateway: what `/explain` and `/status` answer.

use super::{Collected, Control, Life};
use crate::io::clock;
use isthmus_config::diagnostic::Diagnostic;
use isthmus_config::explain::{Asked, Explanation, Known};
use isthmus_config::{Origins, Source};
use isthmus_core::snapshot::Snapshot;
use isthmus_core::stats::Gauges;
use serde_json::{Value, json};

/// What a snapshot was made from: kept so that decisions can be explained.
#[derive(Debug)]
pub(super) struct Written {
    /// The texts that were compiled.
    pub(super) sources: Vec<Source>,
    /// Where in them the parts of the snapshot are.
    pub(super) origins: Origins,
    /// What there was to say about them.
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Control {
    /// Explains a request by the published snapshot. A port that a listener was bound to in the place of a Gateway's is
    /// taken for that one.
    pub(super) fn explain(&mut self, mut asked: Asked) -> Explanation {
        let nothing = Snapshot::default();
        let current = self.publisher.effective();
        let snapshot = current
            .as_ref()
            .map_or(&nothing, |publication| &publication.snapshot);
        if let Some(port) = asked.port {
            let is_known = snapshot
                .listeners
                .iter()
                .any(|listener| listener.key.port == port);
            let bound = || self.listeners.iter().find(|(_, address)| address.port() == port);
            if !is_known && let Some((key, _)) = bound() {
                asked.port = Some(key.port);
            }
        }
        let known = Known {
            snapshot,
            origins: &self.written.origins,
            sources: &self.written.sources,
            diagnostics: &self.written.diagnostics,
            settings: &self.settings,
        };
        known.explain(&asked)
    }

    /// `/status`.
    pub(super) fn report_process(&self, gauges: &Gauges) -> String {
        let state = match self.life {
            Life::Starting => "starting",
            Life::Serving if self.listeners_drained => "listeners drained",
            Life::Serving => "serving",
            Life::Leaving => "leaving",
            Life::Draining | Life::Over => "draining",
        };
        let current = self.publisher.current();
        let snapshot = current.map(|publication| &publication.snapshot);
        let count = |count: fn(&Snapshot) -> usize| snapshot.map_or(0, count);
        let tables = |snapshot: &Snapshot| -> usize {
            let tables = snapshot.listeners.iter().flat_map(|listener| &listener.tables);
            let hosts = tables.flat_map(|table| table.virtual_hosts());
            hosts.map(|host| host.routes().len()).sum()
        };
        let gauges: serde_json::Map<String, Value> = gauges
            .list()
            .into_iter()
            .map(|(name, _, value)| (name.to_owned(), json!(value)))
            .collect();
        let unresolved = self.discovery.names().view().into_iter().filter_map(|name| {
            if name.is_kept && name.error.is_none() && name.state == "none" {
                return Some(format!("{} does not exist, or has no address", name.name));
            }
            let error = name.error.filter(|_| name.is_kept)?;
            let serves = if name.addresses.is_empty() {
                "it has no address"
            } else {
                "its last addresses are served"
            };
            Some(format!("{} cannot be resolved: {error}; {serves}", name.name))
        });
        let left_behind: Vec<String> = self
            .configuration
            .degraded()
            .into_iter()
            .chain(unresolved)
            .collect();
        let shards = self.shards.iter().enumerate();
        let shards: Vec<Value> = shards
            .map(|(index, shard)| json!({"shard": index, "version": shard.applied, "stalled": shard.stalled}))
            .collect();
        json!({
            "state": state,
            "ready": self.life == Life::Serving && !self.listeners_drained,
            "program_version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "uptime_seconds": clock::now().saturating_duration_since(self.began).as_secs(),
            "version": snapshot.map_or(0, |snapshot| snapshot.version),
            "listeners": count(|snapshot| snapshot.listeners.len()),
            "routes": count(tables),
            "clusters": count(|snapshot| snapshot.clusters.len()),
            "files": self.written.sources.len(),
            "findings": self.written.diagnostics.len(),
            "certificate_errors": self.keys.store().errors().count(),
            "left_behind": left_behind,
            "addresses": {
                "admin": self.servers.admin().address().to_string(),
                "status": self.servers.status().address().to_string(),
                "metrics": self.servers.metrics().address().to_string(),
            },
            "shards": shards,
            "now": gauges,
        })
        .to_string()
    }
}

/// Adds what is known of the endpoints now, under `live`: the fields of `/clusters` for them.
pub(super) fn add_live(found: &mut Explanation, collected: &Collected) {
    let all = super::report::clusters(collected);
    for destination in &mut found.destinations {
        let mut known = all["clusters"].as_array().into_iter().flatten();
        let Some(cluster) = known.find(|cluster| cluster["name"] == destination.cluster.as_str()) else {
            continue;
        };
        for endpoint in &mut destination.endpoints {
            let mut known = cluster["endpoints"].as_array().into_iter().flatten();
            let Some(live) = known.find(|live| live["address"] == endpoint["address"]) else {
                continue;
            };
            let mut live = live.clone();
            if let Some(fields) = live.as_object_mut() {
                fields.retain(|name, _| name != "address" && name != "weight");
            }
            endpoint["live"] = live;
        }
    }
}
