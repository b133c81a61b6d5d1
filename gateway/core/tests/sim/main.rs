//! A simulation of several shards that serve one cluster: seeded, without threads, sockets or a clock of its own.
//!
//! A seed says what the cluster is like ([`scenario`]), how its upstreams behave ([`upstream`]) and what happens when
//! ([`world`]): requests come, wait, connect, fail, are tried again, given up and end; connections fall idle, break and are
//! handed from shard to shard; endpoints storm, versions come with other endpoints and limits. After each step a model that
//! knows the policies but not the code looks whether anything is as it must not be ([`oracle`]). That it would see it is
//! shown by planting defects ([`defect`]).
//!
//! `cargo xtask sim` runs it: `--seeds 10000` more seeds than usual, `--seed 7` one with its trace. For the tests alone the
//! variables `ISTHMUS_SIM_SEEDS` and `ISTHMUS_SIM_SEED` say the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a simulation that cannot go on has failed, and says what it did"
)]

mod defect;
mod oracle;
mod scenario;
mod upstream;
mod world;

use defect::Defect;
use oracle::Violation;
use scenario::Scenario;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use world::{Outcome, World};

/// Seeds when nothing else is asked for.
const SEEDS: u64 = 256;
/// Seeds within which each planted defect must be found.
const DEFECT_SEEDS: u64 = 1_000;

fn play(seed: u64, defect: Option<Defect>) -> Outcome {
    let scenario = Scenario::new(seed);
    World::new(&scenario, defect).run()
}

fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
    )
}

#[test]
fn every_rule_holds_in_every_order_of_events() {
    if let Some(seed) = asked("ISTHMUS_SIM_SEED") {
        let outcome = play(seed, None);
        println!("{:#?}\n{}", Scenario::new(seed), outcome.trace);
        assert!(
            outcome.violation.is_none(),
            "seed {seed}: {:?}",
            outcome.violation
        );
        return;
    }
    let seeds = asked("ISTHMUS_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, first_bad) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let sums = [const { AtomicU64::new(0) }; 4];
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.min(first_bad.load(Ordering::Relaxed)) {
                        return;
                    }
                    let outcome = play(seed, None);
                    let all = [
                        outcome.requests,
                        outcome.answered,
                        outcome.retries,
                        outcome.ejections,
                    ];
                    for (sum, one) in sums.iter().zip(all) {
                        sum.fetch_add(one, Ordering::Relaxed);
                    }
                    if let Some(Violation { rule, what, at }) = outcome.violation {
                        println!("seed {seed} at {at} ms: {rule:?}: {what}");
                        first_bad.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let bad = first_bad.into_inner();
    assert!(bad == u64::MAX, "replay it: cargo xtask sim --seed {bad}");
    let [requests, answered, retries, ejections] = sums.map(AtomicU64::into_inner);
    println!(
        "{seeds} seeds: {requests} requests, {answered} answered, {retries} retries, {ejections} ejections"
    );
    // That the worlds are not empty: nothing would be found in them.
    assert!(requests > 100 * seeds && answered > requests / 3);
    assert!(retries > requests / 50 && ejections > seeds);
}

#[test]
fn a_seed_is_the_same_to_the_byte_each_time() {
    for seed in 0..24 {
        let (one, two) = (play(seed, None), play(seed, None));
        assert!(one.trace.len() > 10_000, "seed {seed} does nothing");
        assert!(one.trace == two.trace, "seed {seed} differs from itself");
    }
}

#[test]
fn every_planted_defect_is_found() {
    let mut missed = Vec::new();
    for defect in Defect::ALL {
        let found = (0..DEFECT_SEEDS).find(|seed| {
            let violation = play(*seed, Some(*defect)).violation;
            violation.is_some_and(|violation| defect.breaks().contains(&violation.rule))
        });
        match found {
            Some(seed) => println!("{defect:?} is found with seed {seed}"),
            None => missed.push(defect),
        }
    }
    assert!(
        missed.is_empty(),
        "not found within {DEFECT_SEEDS} seeds: {missed:?}"
    );
}
