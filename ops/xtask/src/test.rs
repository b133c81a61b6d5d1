//! `test` and `soak`: the gateway's release binary, then what runs it.

use crate::peers;
use crate::run::{cargo, root, succeed};
use anyhow::{Result, ensure};
use std::path::PathBuf;

/// Builds the gateway in release mode, so that tests that send much take seconds; answers its path.
fn gateway() -> Result<PathBuf> {
    succeed(cargo()?.args(["build", "--release", "--package", "isthmus"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let binary = root()?.join(target).join("release/isthmus");
    ensure!(binary.is_file(), "cargo built no gateway at {}", binary.display());
    Ok(binary)
}

/// All tests of the workspace.
pub(crate) fn test(install: bool, filter: &[String]) -> Result<()> {
    peers::require(install)?;
    let binary = gateway()?;
    let mut tests = cargo()?;
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("ISTHMUS_BIN", binary);
    if !filter.is_empty() {
        tests.arg("--").args(filter);
    }
    succeed(&mut tests)
}

/// Mixed load for a while.
pub(crate) fn soak(minutes: u32) -> Result<()> {
    let binary = gateway()?;
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
