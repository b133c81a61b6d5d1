//! `ci`: everything that must hold, in the order in which it is cheap to find out, with the time that each part took.

use crate::peers::NeededBy;
use crate::run::{cargo, root, succeed, works};
use crate::{fuzz, peers, test, tidy};
use anyhow::{Context, Result};
use std::fs;
use std::time::{Duration, Instant};

type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("format", || {
        succeed(cargo()?.args(["fmt", "--all", "--", "--check"]))
    }),
    ("tidy", || tidy::run(&root()?)),
    ("dependencies", dependencies),
    ("lints", || {
        succeed(cargo()?.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    }),
    ("interleavings", interleavings),
    ("tests", readme_tests),
    // Long enough to see that every target still runs, and finds nothing at once.
    ("fuzz", || fuzz::fuzz(None, 10)),
    // That it runs without errors; how fast is for a quiet machine.
    ("bench", || test::bench(true, true, &[])),
    ("instructions", || {
        test::bench(true, true, &["--micro".to_owned()])
    }),
];

/// Runs all stages and ends with the first that fails.
pub(crate) fn ci() -> Result<()> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for (name, stage) in STAGES {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = stage();
        times.push((name, start.elapsed()));
        if outcome.is_err() {
            print_times(&times);
        }
        outcome.with_context(|| format!("ci stopped at: {name}"))?;
    }
    print_times(&times);
    println!("all good");
    Ok(())
}

fn print_times(times: &[(&str, Duration)]) {
    println!("\n=== time");
    for (name, time) in times {
        println!("{name:>14} {:>7.1} s", time.as_secs_f64());
    }
}

fn dependencies() -> Result<()> {
    if !works("cargo", &["deny", "--version"]) {
        succeed(cargo()?.args(["install", "cargo-deny", "--locked"]))?;
    }
    // It finds `.deny.toml` by itself; how it is told another file differs from version to version.
    succeed(cargo()?.args(["deny", "check", "bans", "licenses", "sources"]))
}

/// The values that shards share, in every order in which their steps can happen. Built apart: the atomics are others.
fn interleavings() -> Result<()> {
    succeed(
        cargo()?
            .args(["test", "--package", "isthmus-core", "--lib", "loom_tests"])
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", root()?.join("target/loom")),
    )
}

/// The README tells its reader one command that runs the tests; ci runs that very command, so that it cannot rot.
fn readme_tests() -> Result<()> {
    peers::require(NeededBy::Tests, true)?;
    let readme = fs::read_to_string(root()?.join("README.md")).context("README.md")?;
    let words = test_command(&readme).context(
        "README.md has no line that begins with `cargo xtask test` and tells how to run the tests",
    )?;
    // A test that cannot run must not look green here.
    succeed(cargo()?.args(words).env("CI", "true"))
}

fn test_command(readme: &str) -> Option<Vec<&str>> {
    let line = readme
        .lines()
        .map(|line| line.trim_start_matches(['$', ' ']))
        .find(|line| {
            line.strip_prefix("cargo xtask test")
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        })?;
    let command = line.split('#').next()?;
    Some(command.split_whitespace().skip(1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readmes_test_command_is_found() {
        let readme = "# T\n`cargo xtask test` inline\n```\ncargo xtask tests\n$ cargo xtask test --install   # all\n```\n";
        assert_eq!(test_command(readme), Some(vec!["xtask", "test", "--install"]));
        assert_eq!(test_command("cargo test\n"), None);
    }
}
