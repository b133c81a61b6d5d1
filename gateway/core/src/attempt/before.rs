//! Where the attempts of a request were made so far, for what later ones keep away from.

use super::RetryPolicy;
use crate::cluster::EndpointId;
use crate::cluster::locality::Levels;

/// See the module.
#[derive(Debug)]
pub struct Before {
    avoids: bool,
    leaves: bool,
    endpoints: Vec<EndpointId>,
    levels: Levels,
    without: Levels,
}

impl Before {
    /// Nothing yet; `is_keyed` says that the request has a key for consistent hashing.
    pub fn new(policy: &RetryPolicy, is_keyed: bool) -> Self {
        Self {
            avoids: policy.ignores_previous_hosts(is_keyed),
            leaves: policy.remote_localities,
            endpoints: Vec::new(),
            levels: Levels::NONE,
            without: Levels::NONE,
        }
    }

    /// An attempt on an endpoint that is so near has come to nothing.
    pub fn note(&mut self, endpoint: EndpointId, level: u32) {
        if self.avoids {
            self.endpoints.push(endpoint);
        }
        if self.leaves {
            self.levels = self.levels.with(level);
        }
    }

    /// The attempt of this number, from 1, is to begin. Two are made before localities are left out, and two again after
    /// that (Envoy `update_frequency` as Istio sets it).
    pub fn begin(&mut self, number: u32) {
        if number % 2 == 1 {
            self.without = self.levels;
        }
    }

    /// Whether endpoints are avoided at all.
    pub fn avoids(&self) -> bool {
        self.avoids
    }

    /// Endpoints that the next attempt avoids.
    pub fn endpoints(&self) -> &[EndpointId] {
        &self.endpoints
    }

    /// Levels that the next attempt leaves out.
    pub fn without(&self) -> Levels {
        self.without
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localities_are_left_out_after_every_other_attempt() {
        let policy = RetryPolicy {
            remote_localities: true,
            ..RetryPolicy::default()
        };
        let mut before = Before::new(&policy, false);
        let mut seen = Vec::new();
        for number in 1..=5 {
            before.begin(number);
            seen.push((0..4).filter(|level| before.without().has(*level)).count());
            before.note(EndpointId(number), number - 1);
        }
        assert_eq!(seen, [0, 0, 2, 2, 4]);
        assert_eq!(before.endpoints().len(), 5);
    }

    #[test]
    fn endpoints_are_avoided_unless_a_key_or_the_policy_says_where_to_go() {
        let policy = |ignore_previous_hosts| RetryPolicy {
            ignore_previous_hosts,
            ..RetryPolicy::default()
        };
        for (written, is_keyed, expected) in [
            (None, false, true),
            (None, true, false),
            (Some(true), true, true),
            (Some(false), false, false),
        ] {
            let mut before = Before::new(&policy(written), is_keyed);
            before.note(EndpointId(7), 0);
            before.begin(3);
            assert_eq!(before.avoids(), expected);
            assert_eq!(before.endpoints().contains(&EndpointId(7)), expected);
            assert!(before.without().is_empty(), "localities are not left out");
        }
    }
}
