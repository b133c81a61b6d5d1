//! Endpoints that change while the configuration does not: DNS has answered, an instance has come or gone.
//!
//! A change is a cluster's whole set of endpoints. It goes to each shard by its mailbox, and while a shard has not
//! answered one of a cluster, it gets no other of it: newer ones take the place of each other until then. So what waits
//! for a slow shard does not grow, and the last value is never lost. The next version of the configuration begins with
//! the sets as they are then.

use crate::mailbox::{EndpointUpdate, Publication};
use isthmus_core::cluster::ClusterSpec;
use isthmus_core::endpoint::EndpointSet;
use isthmus_core::name::{ClusterKey, ClusterMap};
use isthmus_core::shared::ClusterShared;
use std::sync::Arc;
use std::time::Instant;

/// Updates with the shards that they are for.
pub type Sent = Vec<(usize, Arc<EndpointUpdate>)>;

/// The sets that are not those of the published version.
#[derive(Debug, Default)]
pub struct Updates {
    clusters: ClusterMap<Live>,
    /// Of the last change of any cluster.
    number: u64,
    /// Those before the version that shards have yet to apply.
    retired: Vec<(u64, Arc<EndpointUpdate>)>,
}

/// The present set of one cluster.
#[derive(Debug)]
struct Live {
    set: Arc<EndpointSet>,
    number: u64,
    /// The first change that not all shards are known to have, or to have a later one in its place, and when it was.
    since: Option<(u64, Instant)>,
    /// When it was changed last.
    changed: Instant,
    /// The newest that was made for shards, which may be older than `set`.
    made: Option<Arc<EndpointUpdate>>,
    /// Those before it that a shard may still use.
    before: Vec<Arc<EndpointUpdate>>,
    shards: Vec<Standing>,
}

/// What one shard has of one cluster.
#[derive(Debug, Clone, Copy)]
struct Standing {
    is_asked: bool,
    applied: u64,
}

impl Updates {
    /// The number of the last change.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The present set of a cluster, when it is not the published one.
    pub(super) fn set_of(&self, key: &ClusterKey) -> Option<&Arc<EndpointSet>> {
        self.clusters.get(key).map(|live| &live.set)
    }

    /// Takes another set of a cluster. Answers what is to be sent; nothing when the set is what it was, or the cluster
    /// is none of the published ones.
    pub fn change(
        &mut self,
        key: &ClusterKey,
        set: EndpointSet,
        published: &Publication,
        shards: usize,
        now: Instant,
    ) -> Sent {
        let Some(spec) = published.snapshot.clusters.get(key) else {
            return Vec::new();
        };
        let present = self.set_of(key).unwrap_or(&spec.endpoints);
        if **present == set {
            return Vec::new();
        }
        // What is still under way from before the present version is no answer to this.
        let standing = Standing {
            is_asked: false,
            applied: self.number,
        };
        self.number += 1;
        let live = self.clusters.entry(key.clone()).or_insert_with(|| Live {
            set: Arc::default(),
            number: 0,
            since: None,
            changed: now,
            made: None,
            before: Vec::new(),
            shards: vec![standing; shards],
        });
        live.set = Arc::new(set);
        live.number = self.number;
        live.changed = now;
        live.since.get_or_insert((self.number, now));
        (0..shards)
            .filter_map(|shard| Some((shard, live.next(key, shard, published)?)))
            .collect()
    }

    /// A shard has applied an update. Answers what is to be sent to it next, and when the change was that all shards have
    /// by this, or a later one in its place.
    pub fn applied(
        &mut self,
        shard: usize,
        update: &EndpointUpdate,
        published: &Publication,
    ) -> (Option<Arc<EndpointUpdate>>, Option<Instant>) {
        let Some(live) = self.clusters.get_mut(&update.key) else {
            return (None, None);
        };
        let Some(standing) = live.shards.get_mut(shard) else {
            return (None, None);
        };
        // One from before the present version is no news.
        if update.number > standing.applied {
            standing.applied = update.number;
            standing.is_asked = false;
        }
        let next = live.next(&update.key, shard, published);
        let least = live.shards.iter().map(|standing| standing.applied).min();
        let least = least.unwrap_or(0);
        // What no shard has is kept for nobody: a shard that stands still does not let those pile up that others went through.
        let shards = &live.shards;
        live.before.retain(|older| {
            let is_served = shards.iter().any(|standing| standing.applied == older.number);
            older.number >= least && (is_served || Arc::strong_count(older) > 1)
        });
        let since = live.since.take_if(|(number, _)| *number <= least);
        if since.is_some() && least < live.number {
            live.since = Some((live.number, live.changed));
        }
        (next, since.map(|(_, since)| since))
    }

    /// What is served: the published version with the sets as they are now.
    pub(super) fn effective(&self, published: &Arc<Publication>) -> Arc<Publication> {
        if self.clusters.is_empty() {
            return Arc::clone(published);
        }
        let mut snapshot = published.snapshot.clone();
        let mut shared = published.shared.clone();
        for (key, live) in &self.clusters {
            if let Some(spec) = snapshot.clusters.get_mut(key)
                && spec.endpoints != live.set
            {
                *spec = with_endpoints(spec, &live.set);
            }
            if let (Some(made), Some(counts)) = (&live.made, shared.get_mut(key)) {
                *counts = Arc::clone(&made.shared);
            }
        }
        Arc::new(Publication { snapshot, shared })
    }

    /// A version was published that has the sets as they are.
    pub(super) fn published(&mut self, version: u64) {
        for (_, live) in self.clusters.drain() {
            let all = live.before.into_iter().chain(live.made);
            self.retired.extend(all.map(|update| (version, update)));
        }
    }

    /// Every shard serves this version: what was before it can go.
    pub(super) fn served(&mut self, version: u64) {
        self.retired.retain(|(of, _)| *of > version);
    }
}

impl Live {
    /// What a shard gets now: the present set, unless it has it, or has yet to answer another.
    fn next(
        &mut self,
        key: &ClusterKey,
        shard: usize,
        published: &Publication,
    ) -> Option<Arc<EndpointUpdate>> {
        let standing = self.shards.get_mut(shard)?;
        if standing.is_asked || standing.applied == self.number {
            return None;
        }
        let made = match &self.made {
            Some(made) if made.number == self.number => Arc::clone(made),
            _ => {
                let made = Arc::new(make(
                    key,
                    self.number,
                    &self.set,
                    self.made.as_deref(),
                    published,
                )?);
                self.before.extend(self.made.replace(Arc::clone(&made)));
                made
            }
        };
        standing.is_asked = true;
        Some(made)
    }
}

fn make(
    key: &ClusterKey,
    number: u64,
    set: &Arc<EndpointSet>,
    last: Option<&EndpointUpdate>,
    published: &Publication,
) -> Option<EndpointUpdate> {
    let spec = last.map_or(published.snapshot.clusters.get(key)?, |last| &last.spec);
    let shared: &ClusterShared = last.map_or(published.shared.get(key)?, |last| &last.shared);
    let spec = with_endpoints(spec, set);
    // Here, so that no shard has to while it serves.
    spec.balancer.prepare(&set.endpoints);
    let addresses = set.endpoints.iter().map(|endpoint| endpoint.address);
    Some(EndpointUpdate {
        key: key.clone(),
        number,
        spec,
        shared: Arc::new(shared.with_endpoints(addresses)),
    })
}

fn with_endpoints(spec: &ClusterSpec, set: &Arc<EndpointSet>) -> Arc<ClusterSpec> {
    Arc::new(ClusterSpec {
        endpoints: Arc::clone(set),
        ..spec.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_config::{Options, Source};
    use isthmus_core::endpoint::Endpoint;
    use isthmus_core::shared::Budget;

    const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [a.example], \
                         ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}\n";

    fn published() -> (Arc<Publication>, ClusterKey) {
        let source = Source {
            name: "a.yaml".to_owned(),
            text: ENTRY.into(),
        };
        let snapshot = isthmus_config::compile(&[source], &Options::default()).snapshot;
        let keys: Vec<ClusterKey> = snapshot.clusters.keys().cloned().collect();
        let shared = |key: &ClusterKey| (key.clone(), Arc::new(ClusterShared::new(u32::MAX)));
        let shared = keys.iter().map(shared).collect();
        (Arc::new(Publication { snapshot, shared }), keys[0].clone())
    }

    fn set(ports: std::ops::Range<u16>) -> EndpointSet {
        EndpointSet::new(ports.map(|port| Endpoint::new(([10, 0, 0, 1], port).into())))
    }

    #[test]
    fn a_shard_that_has_not_answered_gets_the_latest_and_nothing_between() {
        let (published, key) = published();
        let (mut updates, now) = (Updates::default(), Instant::now());
        let first = updates.change(&key, set(1..2), &published, 2, now);
        assert_eq!(first.len(), 2);
        // Shard 0 answers each at once, shard 1 none.
        let mut fast = Arc::clone(&first[0].1);
        for last in 3..1000 {
            let sent = updates.change(&key, set(1..last), &published, 2, now);
            assert!(sent.is_empty(), "nobody has answered");
            let (next, since) = updates.applied(0, &fast, &published);
            fast = next.expect("the latest");
            assert_eq!(fast.spec.endpoints.endpoints.len(), usize::from(last) - 1);
            assert_eq!(since, None, "not everywhere");
        }
        assert!(
            updates.clusters[&key].before.len() <= 3,
            "what only shard 0 went through is not kept"
        );
        let (next, since) = updates.applied(1, &first[1].1, &published);
        assert_eq!(since, Some(now), "the first has reached all");
        let slow = next.expect("the latest");
        assert!(Arc::ptr_eq(&slow, &fast), "made once");
        assert!(matches!(updates.applied(0, &fast, &published), (None, None)));
        let (next, since) = updates.applied(1, &slow, &published);
        assert!(next.is_none() && since == Some(now));
        assert_eq!(
            updates.clusters[&key].before.len(),
            0,
            "what no shard uses is freed"
        );
        assert!(
            updates.change(&key, set(1..999), &published, 2, now).is_empty(),
            "nothing new"
        );
    }

    #[test]
    fn endpoints_that_stay_keep_what_shards_know_of_them() {
        let (published, key) = published();
        let (mut updates, now) = (Updates::default(), Instant::now());
        let first = updates.change(&key, set(1..3), &published, 1, now).remove(0).1;
        updates.applied(0, &first, &published);
        let second = updates.change(&key, set(2..4), &published, 1, now).remove(0).1;
        let at = |port: u16| std::net::SocketAddr::from(([10, 0, 0, 1], port));
        assert!(Arc::ptr_eq(
            &first.shared.endpoints[&at(2)],
            &second.shared.endpoints[&at(2)]
        ));
        let same = |a: &Arc<Budget>, b: &Arc<Budget>| Arc::ptr_eq(a, b);
        assert!(same(
            &first.shared.connections,
            &published.shared[&key].connections
        ));
        assert!(!second.shared.endpoints.contains_key(&at(1)));
    }

    #[test]
    fn answers_from_before_a_version_are_no_answers_to_what_came_after() {
        let (published, key) = published();
        let (mut updates, now) = (Updates::default(), Instant::now());
        let old = updates.change(&key, set(1..2), &published, 1, now).remove(0).1;
        let effective = updates.effective(&published);
        assert_eq!(*effective.snapshot.clusters[&key].endpoints, set(1..2));
        updates.published(7);
        assert_eq!(updates.retired.len(), 1, "shards still use it");
        assert!(updates.set_of(&key).is_none());
        let new = updates.change(&key, set(1..5), &effective, 1, now).remove(0).1;
        assert!(matches!(updates.applied(0, &old, &effective), (None, None)));
        updates.served(7);
        assert!(updates.retired.is_empty());
        assert_eq!(updates.applied(0, &new, &effective).1, Some(now));
    }
}
