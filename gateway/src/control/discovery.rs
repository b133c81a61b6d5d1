//! Discovery: what DNS answers, and the instances that register themselves, become endpoints of clusters.
//!
//! What has changed is noted ([`Discovery::changed`], [`Discovery::touch_service`]), and looked at once for each cluster
//! when control has done what there was to do ([`Discovery::take_changes`]): a burst of changes is one.

use super::dns::Names;
use super::publish::Publisher;
use super::registration::Registration;
use isthmus_core::discovery::Discovery as Found;
use isthmus_core::endpoint::EndpointSet;
use isthmus_core::name::ClusterKey;
use isthmus_core::snapshot::Snapshot;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Where names are used, and what is known of them.
pub(super) struct Discovery {
    names: Names,
    clusters: HashMap<Box<str>, Vec<ClusterKey>>,
    /// Instances that have registered themselves.
    pub(super) registration: Registration,
    /// Clusters whose endpoints may be others than shards have.
    touched: HashSet<ClusterKey>,
}

impl Discovery {
    /// Of no cluster yet.
    pub(super) fn new(names: Names) -> Self {
        Self {
            names,
            clusters: HashMap::new(),
            registration: Registration::default(),
            touched: HashSet::new(),
        }
    }

    /// What is known of names.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Puts the endpoints into a version as they are known now, before it is published.
    pub(super) fn fill(&mut self, snapshot: &mut Snapshot, publisher: &Publisher) {
        self.clusters.clear();
        let nothing = EndpointSet::default();
        for (key, spec) in &mut snapshot.clusters {
            let registered = self.registration.endpoints(key);
            if spec.endpoints.discovery.is_none() && registered.is_empty() {
                continue;
            }
            let found = Found::of(&spec.endpoints);
            for named in &found.names {
                let users = self.clusters.entry(named.host.clone()).or_default();
                if users.last() != Some(key) {
                    users.push(key.clone());
                }
            }
            let before = publisher.endpoints(key).map_or(&nothing, |set| set);
            let set = found.endpoints(|name| self.names.addresses(name), &registered, before);
            Arc::make_mut(spec).endpoints = Arc::new(set);
        }
        let names: HashSet<&str> = self.clusters.keys().map(|name| &**name).collect();
        self.names.keep_only(&names);
    }

    /// A name has other addresses.
    pub(super) fn changed(&mut self, name: &str) {
        let users = self.clusters.get(name).map_or(&[][..], Vec::as_slice);
        self.touched.extend(users.iter().cloned());
    }

    /// A service has other instances.
    pub(super) fn touch_service(&mut self, service: &str) {
        self.touched.extend(self.registration.clusters(service).cloned());
    }

    /// The clusters that were touched, with their endpoints as they are now.
    pub(super) fn take_changes(&mut self, publisher: &Publisher) -> Vec<(ClusterKey, EndpointSet)> {
        let present = |key: ClusterKey| {
            let before = publisher.endpoints(&key)?;
            let registered = self.registration.endpoints(&key);
            let set = Found::of(before).endpoints(|name| self.names.addresses(name), &registered, before);
            Some((key, set))
        };
        std::mem::take(&mut self.touched)
            .into_iter()
            .filter_map(present)
            .collect()
    }
}

/// The names that a version has.
pub(super) fn names_of(snapshot: &Snapshot) -> Vec<Box<str>> {
    let found = snapshot
        .clusters
        .values()
        .filter_map(|spec| spec.endpoints.discovery.as_ref());
    let names: HashSet<&Box<str>> = found
        .flat_map(|found| &found.names)
        .map(|named| &named.host)
        .collect();
    names.into_iter().cloned().collect()
}
