//! Discovery: what DNS answers, and the instances that register themselves, become endpoints of clusters.
//!
//! What has changed is noted ([`Discovery::changed`], [`Discovery::touch_service`]), and looked at once for each cluster
//! when control has done what there was to do ([`Discovery::take_changes`]): a burst of changes is one.

use super::dns::Names;
use super::publish::Publisher;
use super::registration::Registration;
use isthmus_core::discovery::Discovery as Found;
use isthmus_core::egress::{AllowedRanges, Reach};
use isthmus_core::endpoint::EndpointSet;
use isthmus_core::name::ClusterKey;
use isthmus_core::snapshot::Snapshot;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Where names are used, and what is known of them.
pub(super) struct Discovery {
    names: Names,
    allowed: AllowedRanges,
    clusters: HashMap<Box<str>, Vec<ClusterKey>>,
    /// Instances that have registered themselves.
    pub(super) registration: Registration,
    /// Clusters whose endpoints may be others than shards have.
    touched: HashSet<ClusterKey>,
}

impl Discovery {
    /// Of no cluster yet.
    pub(super) fn new(names: Names, allowed: AllowedRanges) -> Self {
        Self {
            names,
            allowed,
            clusters: HashMap::new(),
            registration: Registration::default(),
            touched: HashSet::new(),
        }
    }

    /// The addresses of a name, as far as connections may go there.
    fn addresses(&self, name: &str, reach: Reach) -> Vec<IpAddr> {
        let mut addresses = self.names.addresses(name);
        addresses.retain(|address| {
            let is_allowed = reach.allows(*address, &self.allowed);
            if !is_allowed {
                tracing::warn!(name, %address, "a name leads where no connection may go, unless --egress-allow-cidr names it");
            }
            is_allowed
        });
        addresses
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
            let set = found.endpoints(|name| self.addresses(name, found.reach), &registered, before);
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
        let touched = std::mem::take(&mut self.touched);
        let present = |key: ClusterKey| {
            let before = publisher.endpoints(&key)?;
            let registered = self.registration.endpoints(&key);
            let found = Found::of(before);
            let reach = found.reach;
            let set = found.endpoints(|name| self.addresses(name, reach), &registered, before);
            Some((key, set))
        };
        touched.into_iter().filter_map(present).collect()
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
