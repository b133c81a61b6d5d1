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
    if judge(&files, "--lib", false, &output)? || judge(&files, "--test=sim", true, &output)? {
        return Ok(());
    }
    let missed = output.join("mutants.out/missed.txt");
    bail!("no test notices what {} lists", missed.display())
}

/// Has one kind of tests look at the changes, or only at those that were not noticed before; answers whether none is left.
fn judge(files: &[String], tests: &str, only_missed: bool, output: &Path) -> Result<bool> {
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
    match status.code() {
        Some(0) => Ok(true),
        // Some were missed, or took so long that their tests can be said to have failed.
        Some(2 | 3) => Ok(false),
        _ => bail!("cargo mutants failed with {status}"),
    }
}
