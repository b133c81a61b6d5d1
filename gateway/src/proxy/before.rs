//! Where the attempts of a request were made so far, for what later ones keep away from.

use crate::clusters::Lease;
use isthmus_core::attempt::RetryPolicy;
use isthmus_core::cluster::EndpointId;
use isthmus_core::cluster::locality::Levels;

/// See the module.
pub(super) struct Before {
    avoids: bool,
    leaves: bool,
    /// Endpoints that the next attempt avoids.
    pub(super) endpoints: Vec<EndpointId>,
    levels: Levels,
    /// Levels that the next attempt leaves out.
    pub(super) without: Levels,
}

impl Before {
    /// Nothing yet; `is_keyed` says that the request has a key for consistent hashing.
    pub(super) fn new(policy: &RetryPolicy, is_keyed: bool) -> Self {
        Self {
            avoids: policy.ignores_previous_hosts(is_keyed),
            leaves: policy.remote_localities,
            endpoints: Vec::new(),
            levels: Levels::NONE,
            without: Levels::NONE,
        }
    }

    /// An attempt has come to nothing.
    pub(super) fn note(&mut self, lease: &Lease) {
        if self.avoids {
            self.endpoints.push(lease.endpoint());
        }
        if self.leaves {
            self.levels = self.levels.with(lease.level());
        }
    }

    /// The attempt of this number, from 1, is to begin. Two are made before localities are left out, and two again after
    /// that (Envoy `update_frequency` as Istio sets it).
    pub(super) fn begin(&mut self, number: u32) {
        if number % 2 == 1 {
            self.without = self.levels;
        }
    }
}
