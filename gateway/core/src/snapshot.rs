//! A snapshot: everything that an operator's resources mean at one moment, immutable.
//!
//! The compiler makes it on the control thread; shards read it. Its parts are reference counted, so that a part that
//! did not change is the same part in the next version ([`Snapshot::share_with`]), and what hangs on it (connections,
//! counters) survives.

use crate::cluster::ClusterSpec;
use crate::listener::{Listener, ListenerKey};
use crate::name::{ClusterKey, ClusterMap};
use crate::route::{RouteTable, VirtualHost};
use crate::source::Sources;
use foldhash::fast::FixedState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

/// One version of the whole configuration.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Grows by one with each version that is published; the first is 1.
    pub version: u64,
    /// In order of port.
    pub listeners: Vec<Arc<Listener>>,
    /// Every cluster that a route may name and the registry knows.
    pub clusters: ClusterMap<Arc<ClusterSpec>>,
    /// Which workloads clients can be.
    pub sources: Arc<Sources>,
}

/// The hash by which equal parts of two versions are found; it is the same for the same value within one build of the
/// program.
pub fn content_hash<T: Hash>(value: &T) -> u64 {
    FixedState::default().hash_one(value)
}

impl Snapshot {
    /// Takes the parts of an earlier version in place of those that are equal to them.
    pub fn share_with(&mut self, before: &Self) {
        if self.sources == before.sources {
            self.sources = Arc::clone(&before.sources);
        }
        for (key, spec) in &mut self.clusters {
            if let Some(known) = before.clusters.get(key) {
                if Arc::ptr_eq(known, spec) || known == spec {
                    *spec = Arc::clone(known);
                } else if known.endpoints == spec.endpoints {
                    Arc::make_mut(spec).endpoints = Arc::clone(&known.endpoints);
                }
            }
        }
        for listener in &mut self.listeners {
            if let Some(known) = before.listeners.iter().find(|known| known.key == listener.key) {
                share_listener(listener, known);
            }
        }
    }
}

/// How many parts of one kind came, changed and went with a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// New ones.
    pub added: usize,
    /// Those that are not what they were.
    pub changed: usize,
    /// Those that are gone.
    pub removed: usize,
}

/// What a version changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Difference {
    /// Ports.
    pub listeners: Changes,
    /// Virtual hosts, each on its port.
    pub hosts: Changes,
    /// Clusters.
    pub clusters: Changes,
}

impl Snapshot {
    /// What this version changes of one that it shares its parts with ([`Self::share_with`]).
    pub fn difference(&self, before: &Self) -> Difference {
        let listeners = |snapshot: &'_ Self| -> Vec<_> {
            let parts = snapshot.listeners.iter();
            parts
                .map(|listener| (Arc::as_ptr(listener), listener.key.clone()))
                .collect()
        };
        Difference {
            listeners: changes(listeners(before), listeners(self)),
            hosts: changes(before.hosts(self), self.hosts(before)),
            clusters: changes(before.clusters_but(self), self.clusters_but(before)),
        }
    }

    /// Virtual hosts, each on its port, but those that the other version has there, too.
    fn hosts<'a>(&'a self, other: &Self) -> Vec<(*const VirtualHost, (&'a ListenerKey, &'a str))> {
        let mut found = Vec::new();
        for listener in &self.listeners {
            let same = other.listeners.iter().find(|other| other.key == listener.key);
            if same.is_some_and(|same| Arc::ptr_eq(same, listener)) {
                continue;
            }
            let tables = same.iter().flat_map(|listener| &listener.tables);
            let hosts = tables.flat_map(|table| table.virtual_hosts());
            let shared: HashSet<*const VirtualHost, FixedState> = hosts.map(Arc::as_ptr).collect();
            let own = listener.tables.iter().flat_map(|table| table.virtual_hosts());
            let own = own.filter(|host| !shared.contains(&Arc::as_ptr(host)));
            found.extend(own.map(|host| (Arc::as_ptr(host), (&listener.key, &*host.name))));
        }
        found
    }

    /// Clusters but those that the other version has, too.
    fn clusters_but<'a>(&'a self, other: &Self) -> Vec<(*const ClusterSpec, &'a ClusterKey)> {
        let is_other = |(key, spec): &(&ClusterKey, &Arc<ClusterSpec>)| {
            let same = other.clusters.get(*key);
            same.is_none_or(|same| !Arc::ptr_eq(same, spec))
        };
        let own = self.clusters.iter().filter(is_other);
        own.map(|(key, spec)| (Arc::as_ptr(spec), key)).collect()
    }
}

/// Counts what became of parts, of which those that both have may be left out.
fn changes<K: Hash + Eq, T>(before: Vec<(*const T, K)>, after: Vec<(*const T, K)>) -> Changes {
    let by_key = |parts: Vec<(*const T, K)>| -> HashMap<K, *const T> {
        parts.into_iter().map(|(part, key)| (key, part)).collect()
    };
    let (before, after) = (by_key(before), by_key(after));
    let mut changes = Changes::default();
    for (key, part) in &after {
        match before.get(key) {
            None => changes.added += 1,
            Some(known) if known != part => changes.changed += 1,
            Some(_) => {}
        }
    }
    changes.removed = before.keys().filter(|key| !after.contains_key(*key)).count();
    changes
}

fn share_listener(listener: &mut Arc<Listener>, before: &Arc<Listener>) {
    let known: HashMap<u64, &Arc<VirtualHost>, FixedState> = before
        .tables
        .iter()
        .flat_map(|table| table.virtual_hosts())
        .map(|host| (host.content(), host))
        .collect();
    let share = |(at, table): (usize, &Arc<RouteTable>)| {
        let hosts: Vec<Arc<VirtualHost>> = table
            .virtual_hosts()
            .iter()
            .map(|host| match known.get(&host.content()) {
                // The hash alone is no proof.
                Some(known) if *known == host => Arc::clone(known),
                _ => Arc::clone(host),
            })
            .collect();
        let same = before.tables.get(at).filter(|old| {
            let old = old.virtual_hosts();
            old.len() == hosts.len() && old.iter().zip(&hosts).all(|(old, new)| Arc::ptr_eq(old, new))
        });
        let is_whole = || {
            let written = table.virtual_hosts().iter();
            written
                .zip(&hosts)
                .all(|(written, host)| Arc::ptr_eq(written, host))
        };
        match same {
            Some(same) => Arc::clone(same),
            // Nothing had to be put in another's place.
            None if is_whole() => Arc::clone(table),
            None => Arc::new(RouteTable::new(hosts)),
        }
    };
    let tables: Vec<Arc<RouteTable>> = listener.tables.iter().enumerate().map(share).collect();
    let unchanged = before.tables.len() == tables.len()
        && before
            .tables
            .iter()
            .zip(&tables)
            .all(|(old, new)| Arc::ptr_eq(old, new))
        && before.accepts == listener.accepts
        && before.proxy_protocol == listener.proxy_protocol
        && before.upgrades == listener.upgrades
        && before.forward == listener.forward;
    *listener = if unchanged {
        Arc::clone(before)
    } else {
        Arc::new(Listener {
            key: listener.key.clone(),
            proxy_protocol: listener.proxy_protocol,
            upgrades: listener.upgrades.clone(),
            accepts: listener.accepts.clone(),
            forward: listener.forward.clone(),
            tables,
        })
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::{Accepts, ListenerKey, ProxyProtocol, Upgrades};
    use crate::name::HostPattern;

    fn snapshot(hosts: &[(&str, bool)]) -> Snapshot {
        let hosts = hosts.iter().map(|(name, redirect)| {
            let domains = vec![HostPattern::parse(name)];
            Arc::new(VirtualHost::new(name, domains, *redirect, Vec::new()))
        });
        Snapshot {
            listeners: vec![Arc::new(Listener {
                key: ListenerKey { port: 80, bind: None },
                proxy_protocol: ProxyProtocol::Off,
                upgrades: Upgrades::default(),
                forward: Vec::new(),
                accepts: Accepts::Http,
                tables: vec![Arc::new(RouteTable::new(hosts.collect()))],
            })],
            ..Snapshot::default()
        }
    }

    #[test]
    fn what_did_not_change_is_the_same_part() {
        let before = snapshot(&[("a.com", false), ("b.com", false)]);
        let mut same = snapshot(&[("a.com", false), ("b.com", false)]);
        same.share_with(&before);
        assert!(Arc::ptr_eq(&same.listeners[0], &before.listeners[0]));
        let mut other = snapshot(&[("a.com", false), ("b.com", false)]);
        Arc::make_mut(&mut other.listeners[0]).upgrades = Upgrades::Any;
        other.share_with(&before);
        assert_eq!(other.listeners[0].upgrades, Upgrades::Any);

        let mut after = snapshot(&[("a.com", true), ("b.com", false), ("c.com", false)]);
        after.share_with(&before);
        let hosts = |snapshot: &Snapshot| snapshot.listeners[0].tables[0].virtual_hosts().to_vec();
        let (old, new) = (hosts(&before), hosts(&after));
        assert!(!Arc::ptr_eq(&old[0], &new[0]));
        assert!(new[0].https_redirect);
        assert!(Arc::ptr_eq(&old[1], &new[1]));
        assert_eq!(after.listeners[0].tables[0].find_host("c.com"), Some(2));
    }
}
