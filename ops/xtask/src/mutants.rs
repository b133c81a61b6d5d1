//! `mutants`: small wrong changes to the policies of the core, one at a time, each of which a test should notice.
//!
//! [cargo-mutants](https://mutants.rs) makes the changes. The unit tests judge them first, because they are quick; what
//! those let pass is judged by the simulation. `.cargo/mutants.toml` names the changes that are let pass, each with its
//! reason; what is found beside them is a hole in the tests, or code that nothing needs.

use crate::run::{cargo, root, works};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;

/// What decides about endpoints, connections and attempts, below `gateway/core/src`.
const POLICIES: &[&str] = &[
    "attempt/*.rs",
    "cluster/balancer.rs",
    "cluster/breaker.rs",
    "cluster/outlier.rs",
    "cluster/retry_budget.rs",
    "shared.rs",
];

/// Changes these files, or the policies when none is named.
pub(crate) fn mutants(files: &[String]) -> Result<()> {
    if !works("cargo", &["mutants", "--version"]) {
        bail!("cargo-mutants is missing: cargo install --locked cargo-mutants");
    }
    let files: Vec<String> = match files {
        [] => POLICIES.iter().map(|file| (*file).to_owned()).collect(),
        files => files.to_vec(),
    };
    let output = root()?.join("target/mutants");
    fs::create_dir_all(&output)?;
    let mut missed = judge(&files, "--lib", false, &output)?;
    if !missed.is_empty() {
        missed = judge(&files, "--test=sim", true, &output)?;
    }
    if !missed.is_empty() {
        bail!("no test notices these changes:\n{missed}");
    }
    Ok(())
}

/// Has one kind of tests look at the changes, or only at those that were not noticed before; answers those that they let
/// pass.
fn judge(files: &[String], tests: &str, only_missed: bool, output: &Path) -> Result<String> {
    let mut mutants = cargo()?;
    mutants
        .args(["mutants", "--package", "isthmus-core", "--cap-lints", "true"])
        .args(files.iter().map(|file| format!("--file=gateway/core/src/{file}")))
        .arg(format!("--cargo-arg={tests}"))
        .arg("--output")
        .arg(output)
        .env("CARGO_TARGET_DIR", output.join("build"))
        .env("CARGO_PROFILE_TEST_DEBUG", "0");
    if only_missed {
        mutants.arg("--iterate");
    }
    let status = mutants.status().context("cannot run cargo mutants")?;
    // All were noticed, some were missed, or some kept a test from ending, which has noticed them with that.
    if !matches!(status.code(), Some(0 | 2 | 3)) {
        bail!("cargo mutants failed with {status}");
    }
    let missed = output.join("mutants.out/missed.txt");
    fs::read_to_string(&missed).with_context(|| format!("cannot read {}", missed.display()))
}
