//! `test`, `soak` and `bench`: the gateway's release binary, then what runs it. `sim` needs no binary.

use crate::peers::{self, NeededBy};
use crate::run::{cargo, root, succeed};
use anyhow::{Result, ensure};
use std::path::PathBuf;

/// Builds the gateway; answers its path. In release mode tests that send much take seconds.
fn gateway(profile: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    gateway_with(profile, &[], target)
}

fn gateway_with(profile: &str, arguments: &[&str], target: PathBuf) -> Result<PathBuf> {
    succeed(
        cargo()?
            .args(["build", "--profile", profile, "--package", "isthmus"])
            .args(arguments)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    let binary = root()?.join(target).join(profile).join("isthmus");
    ensure!(binary.is_file(), "cargo built no gateway at {}", binary.display());
    Ok(binary)
}

/// All tests of the workspace.
pub(crate) fn test(install: bool, filter: &[String]) -> Result<()> {
    peers::require(NeededBy::Tests, install)?;
    let binary = gateway("release")?;
    let mut tests = cargo()?;
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("ISTHMUS_BIN", binary);
    if !filter.is_empty() {
        tests.arg("--").args(filter);
    }
    succeed(&mut tests)
}

/// The simulation of a cluster's shards.
pub(crate) fn sim(seeds: u64, seed: Option<u64>) -> Result<()> {
    let mut sim = cargo()?;
    sim.args(["test", "--package", "isthmus-core", "--test", "sim", "every_rule"])
        .args(["--", "--nocapture"])
        .env("ISTHMUS_SIM_SEEDS", seeds.to_string());
    if let Some(seed) = seed {
        sim.env("ISTHMUS_SIM_SEED", seed.to_string());
    }
    succeed(&mut sim)
}

/// Mixed load for a while.
pub(crate) fn soak(minutes: u32) -> Result<()> {
    let binary = gateway("release")?;
    let mut soak = cargo()?;
    soak.args([
        "run",
        "--release",
        "--package",
        "isthmus-tests",
        "--bin",
        "soak",
        "--",
    ]);
    succeed(soak.arg(minutes.to_string()).env("ISTHMUS_BIN", binary))
}

/// The gateway beside its peers. A smoke run uses what the tests have built; a real one what is packaged.
pub(crate) fn bench(install: bool, smoke: bool, arguments: &[String]) -> Result<()> {
    peers::require(NeededBy::Bench, install)?;
    let counts = arguments.iter().any(|argument| argument == "--steady");
    let binary = if counts {
        // Beside the other builds, which nothing counts in.
        gateway_with(
            "release",
            &["--features", "count-allocations"],
            "target/counted".into(),
        )?
    } else {
        gateway(if smoke { "release" } else { "dist" })?
    };
    let mut bench = cargo()?;
    bench
        .args([
            "run",
            "--release",
            "--package",
            "isthmus-bench",
            "--",
            "--gateway",
        ])
        .arg(binary)
        .arg("--out")
        .arg(root()?.join("target/bench"));
    if smoke {
        bench.arg("--smoke");
    }
    succeed(bench.args(arguments))
}
