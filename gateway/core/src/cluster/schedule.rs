//! Two ways to share picks out by weight: in turn, and by chance.
//!
//! [`Turns`] gives each of its entries a time of its next turn, which moves on by a stride that is the smaller the larger
//! its weight is; the earliest is taken (stride scheduling, Waldspurger and Weihl 1995; earliest deadline first). Entries
//! get their share in every window, evenly spread, in O(log n). [`Chances`] draws an entry with a chance in proportion to
//! its weight in O(1) (Walker's alias method, in Vose's form). Both are filled off the request path, but for turns while
//! endpoints warm up, and allocate nothing when they pick.

use crate::random::Random;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// The stride of weight 1.
const STRIDE: u64 = 1 << 32;
/// The longest stride: keys of one schedule must stay within half of what a `u64` counts.
const STRIDE_MAX: u64 = 1 << 60;
/// What spreads first turns evenly, whatever their number: the golden ratio's fractional part.
const GOLDEN: u32 = 0x9E37_79B9;

/// How far a pick moves an entry on, for `weight` in parts of `1 << 16` and a cost of at least 1.
pub(super) fn stride(weight: u64, cost: u32) -> u64 {
    let cost = u64::from(cost.clamp(1, u32::from(u16::MAX)));
    (((STRIDE << 16) / weight.max(1)).saturating_mul(cost)).clamp(1, STRIDE_MAX)
}

/// One entry's next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    key: u64,
    at: u32,
}

impl Ord for Turn {
    /// The earliest is the greatest, because a heap shows that one. Keys wrap around; all are close together.
    fn cmp(&self, other: &Self) -> Ordering {
        let ahead = other.key.wrapping_sub(self.key) as i64;
        ahead.cmp(&0).then(other.at.cmp(&self.at))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Entries that are taken in turn, by weight.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    heap: BinaryHeap<Turn>,
}

impl Turns {
    /// Begins anew with `count` entries, whose strides `stride_of` says.
    pub(super) fn fill(&mut self, count: usize, stride_of: impl Fn(usize) -> u64, random: &mut Random) {
        let mut turns = std::mem::take(&mut self.heap).into_vec();
        turns.clear();
        let mut phase = (random.next_u64() >> 32) as u32;
        turns.extend((0..count).map(|at| {
            phase = phase.wrapping_add(GOLDEN);
            let into = u128::from(stride_of(at)) * (u128::from(phase) + 1);
            Turn {
                key: (into >> 32) as u64,
                at: at as u32,
            }
        }));
        self.heap = BinaryHeap::from(turns);
    }

    /// Forgets all entries, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    /// Whether there is no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The entry whose turn it is; `stride_of` says how far that moves it on.
    pub(super) fn next(&mut self, stride_of: impl FnOnce(usize) -> u64) -> Option<usize> {
        let mut first = self.heap.peek_mut()?;
        let at = first.at as usize;
        first.key = first.key.wrapping_add(stride_of(at));
        // Dropped here, it sinks to where it belongs.
        Some(at)
    }
}

/// Entries that are drawn by chance, by weight.
#[derive(Debug, Clone, Default)]
pub(super) struct Chances {
    /// For each column: below which coin its own entry is drawn, and which one otherwise.
    columns: Vec<(u32, u32)>,
}

impl Chances {
    /// Begins anew with these weights, of which at least one is not 0.
    pub(super) fn fill(&mut self, weights: impl ExactSizeIterator<Item = u64> + Clone) {
        let count = weights.len() as u128;
        let total: u128 = weights.clone().map(u128::from).sum::<u128>().max(1);
        self.columns.clear();
        let (mut small, mut large) = (Vec::new(), Vec::new());
        // Each entry in parts of a column that has room for `total`.
        let mut parts: Vec<u128> = weights.map(|weight| u128::from(weight) * count).collect();
        for (at, part) in parts.iter().enumerate() {
            if *part < total {
                small.push(at);
            } else {
                large.push(at);
            }
            self.columns.push((u32::MAX, at as u32));
        }
        while let (Some(less), Some(more)) = (small.pop(), large.last().copied()) {
            let own = parts.get(less).copied().unwrap_or(0);
            if let Some(column) = self.columns.get_mut(less) {
                *column = (((own << 32) / total) as u32, more as u32);
            }
            if let Some(left) = parts.get_mut(more) {
                *left = (*left + own).saturating_sub(total);
                if *left < total {
                    large.pop();
                    small.push(more);
                }
            }
        }
    }

    /// Forgets all entries, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.columns.clear();
    }

    /// Draws one; None when there is none.
    pub(super) fn draw(&self, random: &mut Random) -> Option<usize> {
        let bits = random.next_u64();
        let at = (((bits >> 32) * self.columns.len() as u64) >> 32) as usize;
        let (below, other) = *self.columns.get(at)?;
        Some(if (bits as u32) < below { at } else { other as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighted(weights: &[u64], seed: u64) -> (Turns, Random) {
        let (mut turns, mut random) = (Turns::default(), Random::from_seed(seed));
        turns.fill(weights.len(), |at| stride(weights[at] << 16, 1), &mut random);
        (turns, random)
    }

    #[test]
    fn every_window_has_each_share() {
        let weights = [5, 1, 2, 11];
        let total: u64 = weights.iter().sum();
        for seed in 0..2000 {
            let (mut turns, _) = weighted(&weights, seed);
            for window in 0..20 {
                let mut counts = [0u64; 4];
                for _ in 0..total {
                    counts[turns.next(|at| stride(weights[at] << 16, 1)).unwrap()] += 1;
                }
                assert_eq!(counts, weights, "seed {seed}, window {window}");
            }
        }
    }

    #[test]
    fn no_prefix_is_far_from_its_share() {
        let weights = [50, 30, 10, 5, 5];
        let total: u64 = weights.iter().sum();
        for seed in 0..2000 {
            let (mut turns, _) = weighted(&weights, seed);
            let mut counts = [0u64; 5];
            for taken in 1..=3 * total {
                counts[turns.next(|at| stride(weights[at] << 16, 1)).unwrap()] += 1;
                for (count, weight) in counts.iter().zip(&weights) {
                    let fair = (taken * weight) as f64 / total as f64;
                    assert!(
                        (*count as f64 - fair).abs() < 2.0,
                        "seed {seed}: {counts:?} of {taken}"
                    );
                }
            }
        }
    }

    #[test]
    fn keys_that_wrap_around_keep_their_order() {
        let (mut turns, mut random) = (Turns::default(), Random::from_seed(1));
        turns.fill(3, |_| STRIDE_MAX, &mut random);
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[turns.next(|_| STRIDE_MAX).unwrap()] += 1;
        }
        assert_eq!(counts, [1000; 3]);
    }

    #[test]
    fn chances_follow_the_weights() {
        for weights in [vec![3, 1], vec![1], vec![0, 5], vec![1, 2, 3, 4, 1000, 0, 7]] {
            let (mut chances, mut random) = (Chances::default(), Random::from_seed(5));
            chances.fill(weights.iter().copied());
            let total: u64 = weights.iter().sum();
            let mut counts = vec![0u64; weights.len()];
            const DRAWS: u64 = 200_000;
            for _ in 0..DRAWS {
                counts[chances.draw(&mut random).unwrap()] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = DRAWS as f64 * *weight as f64 / total as f64;
                assert!(
                    (*count as f64 - expected).abs() <= 5.0 * expected.sqrt() + 1.0,
                    "{weights:?}: {counts:?}"
                );
            }
        }
        assert_eq!(Chances::default().draw(&mut Random::from_seed(1)), None);
    }
}
