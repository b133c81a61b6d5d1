//! The only values that shards share and change: budgets that must be exact for the whole process.
//!
//! A limit of a DestinationRule holds for the process, not for each shard, so its count is one atomic number. It is
//! touched when a connection opens or closes, never by a request on a connection that is already there.

use crate::cluster::retry_budget::RetryCounts;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// A number of permits that all shards together may hold.
#[derive(Debug)]
pub struct Budget {
    limit: u32,
    held: AtomicU32,
}

impl Budget {
    /// A budget of `limit` permits; `u32::MAX` is no limit in practice.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicU32::new(0),
        })
    }

    /// Takes a permit, or None when all are held. Never oversubscribes, whoever races.
    pub fn acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut held = self.held.load(Ordering::Relaxed);
        while held < self.limit {
            match self
                .held
                .compare_exchange_weak(held, held + 1, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Some(Permit {
                        budget: Arc::clone(self),
                    });
                }
                Err(now) => held = now,
            }
        }
        None
    }

    /// How many permits are held at this moment.
    pub fn held(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }
}

/// The right to one of something; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the shards share about one cluster. It lives as long as the cluster's name is configured, over any number of
/// snapshots.
#[derive(Debug)]
pub struct ClusterShared {
    /// Upstream connections.
    pub connections: Arc<Budget>,
    /// Retries, and the requests that their budget is a part of.
    pub retries: Arc<RetryCounts>,
}

impl ClusterShared {
    /// Fresh counts.
    pub fn new(connections_max: u32) -> Self {
        Self {
            connections: Budget::new(connections_max),
            retries: Arc::default(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn permits_are_limited_and_come_back() {
        let budget = Budget::new(2);
        let (a, b) = (budget.acquire(), budget.acquire());
        assert!(a.is_some() && b.is_some() && budget.acquire().is_none());
        drop(a);
        assert_eq!(budget.held(), 1);
        assert!(budget.acquire().is_some());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn a_budget_of_one_is_never_held_twice() {
        loom::model(|| {
            let budget = Budget::new(1);
            let inside = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (budget, inside) = (Arc::clone(&budget), Arc::clone(&inside));
                    loom::thread::spawn(move || {
                        if let Some(permit) = budget.acquire() {
                            assert_eq!(inside.fetch_add(1, Ordering::AcqRel), 0);
                            inside.fetch_sub(1, Ordering::AcqRel);
                            drop(permit);
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(budget.held(), 0);
            assert!(budget.acquire().is_some());
        });
    }
}
