//! Balancers: which endpoint takes the next request (Istio `loadBalancer.simple`).
//!
//! A balancer sees the endpoints as weights and requests in flight, picks a position, and knows nothing of addresses.

use crate::random::Random;

/// How a cluster picks endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BalancerKind {
    /// Smooth weighted round robin (nginx's algorithm): in each window an endpoint gets its share, evenly spread.
    #[default]
    RoundRobin,
    /// Each endpoint with a chance in proportion to its weight.
    Random,
    /// Of two endpoints drawn at random, the one with fewer requests in flight for its weight (power of two choices).
    LeastRequest,
}

/// What a balancer sees of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Its weight, at least 1.
    pub weight: u32,
    /// Requests in flight of this shard.
    pub active: u32,
}

/// The state of one cluster's balancer on one shard.
#[derive(Debug, Clone)]
pub struct Balancer {
    kind: BalancerKind,
    next: usize,
    current: Vec<i64>,
    uniform: bool,
    total: u64,
}

impl Balancer {
    /// A balancer for endpoints of these weights. Round robin begins anywhere, so that shards do not all send their
    /// first request to one endpoint.
    pub fn new(kind: BalancerKind, weights: &[u32], random: &mut Random) -> Self {
        Self {
            kind,
            next: random.below(weights.len() as u64) as usize,
            current: vec![0; weights.len()],
            uniform: weights.windows(2).all(|pair| pair.first() == pair.last()),
            total: weights.iter().map(|&weight| u64::from(weight)).sum(),
        }
    }

    /// Picks an endpoint by its position; `loads` must be in the order and number of the weights. None only when
    /// there is no endpoint.
    pub fn pick(
        &mut self,
        loads: impl ExactSizeIterator<Item = Load> + Clone,
        random: &mut Random,
    ) -> Option<usize> {
        let count = loads.len();
        if count <= 1 {
            return (count == 1).then_some(0);
        }
        Some(match self.kind {
            BalancerKind::RoundRobin if self.uniform => {
                self.next = (self.next + 1) % count;
                self.next
            }
            BalancerKind::RoundRobin => self.smooth(loads),
            BalancerKind::Random => self.by_weight(loads, random),
            BalancerKind::LeastRequest => {
                let first = self.by_weight(loads.clone(), random);
                let second = self.by_weight(loads.clone(), random);
                let load_of = |at: usize| loads.clone().nth(at);
                match (load_of(first), load_of(second)) {
                    // Compares active/weight without division; a tie keeps the first draw.
                    (Some(a), Some(b)) => {
                        let cost =
                            |load: Load, other: Load| (u64::from(load.active) + 1) * u64::from(other.weight);
                        if cost(b, a) < cost(a, b) { second } else { first }
                    }
                    _ => first,
                }
            }
        })
    }

    fn smooth(&mut self, loads: impl ExactSizeIterator<Item = Load>) -> usize {
        let mut best = 0;
        let mut best_value = i64::MIN;
        for (at, (current, load)) in self.current.iter_mut().zip(loads).enumerate() {
            *current += i64::from(load.weight);
            if *current > best_value {
                (best, best_value) = (at, *current);
            }
        }
        if let Some(current) = self.current.get_mut(best) {
            *current -= self.total as i64;
        }
        best
    }

    fn by_weight(&self, loads: impl ExactSizeIterator<Item = Load>, random: &mut Random) -> usize {
        if self.uniform {
            return random.below(loads.len() as u64) as usize;
        }
        let mut at = random.below(self.total);
        for (index, load) in loads.enumerate() {
            if at < u64::from(load.weight) {
                return index;
            }
            at -= u64::from(load.weight);
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(kind: BalancerKind, weights: &[u32], active: &[u32], rounds: usize, seed: u64) -> Vec<usize> {
        let mut random = Random::from_seed(seed);
        let mut balancer = Balancer::new(kind, weights, &mut random);
        let loads: Vec<Load> = weights
            .iter()
            .zip(active)
            .map(|(&weight, &active)| Load { weight, active })
            .collect();
        let mut counts = vec![0; weights.len()];
        for _ in 0..rounds {
            counts[balancer.pick(loads.iter().copied(), &mut random).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_is_exact_in_every_window() {
        for seed in 0..2000 {
            assert_eq!(
                counts(BalancerKind::RoundRobin, &[1, 1, 1], &[0, 0, 0], 9, seed),
                [3, 3, 3]
            );
            assert_eq!(
                counts(BalancerKind::RoundRobin, &[5, 1, 2], &[0, 9, 0], 16, seed),
                [10, 2, 4]
            );
        }
    }

    #[test]
    fn smooth_round_robin_never_bunches() {
        let mut random = Random::from_seed(3);
        let weights = [5, 1, 1];
        let mut balancer = Balancer::new(BalancerKind::RoundRobin, &weights, &mut random);
        let loads = weights.map(|weight| Load { weight, active: 0 });
        let picks: Vec<usize> = (0..7)
            .map(|_| balancer.pick(loads.iter().copied(), &mut random).unwrap())
            .collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn random_follows_the_weights() {
        let counts = counts(BalancerKind::Random, &[3, 1], &[0, 0], 100_000, 5);
        assert!((74_000..76_000).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn least_request_avoids_the_busy_endpoint() {
        for seed in 0..200 {
            let picks = counts(
                BalancerKind::LeastRequest,
                &[1, 1, 1, 1],
                &[50, 0, 0, 0],
                1000,
                seed,
            );
            // The busy one is taken only when both draws name it: 1 in 16.
            assert!(picks[0] < 110, "{seed} {picks:?}");
            let weighted = counts(BalancerKind::LeastRequest, &[4, 1], &[3, 3], 1000, seed);
            assert!(weighted[0] > 900, "{seed} {weighted:?}");
        }
    }

    #[test]
    fn no_endpoint_gives_no_pick() {
        let mut random = Random::from_seed(1);
        for kind in [
            BalancerKind::RoundRobin,
            BalancerKind::Random,
            BalancerKind::LeastRequest,
        ] {
            let mut balancer = Balancer::new(kind, &[], &mut random);
            assert_eq!(balancer.pick(std::iter::empty::<Load>(), &mut random), None);
        }
    }
}
