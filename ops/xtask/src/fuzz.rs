//! `fuzz`: the doors of `fuzz/` under libFuzzer, on the toolchain that builds everything else.
//!
//! All targets are one build with the coverage instrumentation of the compiler; the engine comes with
//! `libfuzzer-sys`, compiled from its sources. What the fuzzer learns is kept in `target/fuzz/corpus/`; a crash goes to
//! `fuzz/regressions/TARGET/`, where every later build tries it.

use crate::run::{cargo, root, succeed};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The targets, with their dictionaries.
pub(crate) const TARGETS: &[(&str, &str)] = &[
    ("h1_request", "h1"),
    ("h1_response", "h1"),
    ("h1_differential", "h1"),
    ("h1_connection", "h1"),
    ("h2_client", ""),
    ("h2_server", ""),
    ("upgrade", ""),
    ("yaml", "yaml"),
    ("routes", ""),
    ("hello", "tls"),
    ("proxy_protocol", "proxy_protocol"),
    ("pem", "pem"),
];

/// Instruments the code so that the engine sees which edges an input takes and what it compares.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Longest input; doors take longer ones, but find nothing more in them.
const INPUT_MAX: usize = 16 * 1024;

/// Fuzzes one target, or, without a name, all in turn.
pub(crate) fn fuzz(target: Option<&str>, seconds: u32) -> Result<()> {
    let chosen: Vec<_> = TARGETS
        .iter()
        .filter(|(name, _)| target.is_none_or(|target| target == *name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        bail!("there is no such target; there are {}", names.join(", "));
    }
    let built = build()?;
    for (name, dictionary) in chosen {
        run(&built, name, dictionary, seconds)?;
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    let target = root()?.join("target/fuzz");
    succeed(
        cargo()?
            .args([
                "build",
                "--package",
                "isthmus-fuzz",
                "--bins",
                "--profile=fuzz",
                "--features",
                "libfuzzer",
            ])
            .args(["--target", TRIPLE])
            .env("CARGO_TARGET_DIR", &target)
            .env("RUSTFLAGS", COVERAGE),
    )?;
    Ok(target.join(TRIPLE).join("fuzz"))
}

fn run(built: &Path, name: &str, dictionary: &str, seconds: u32) -> Result<()> {
    let root = root()?;
    let learned = root.join("target/fuzz/corpus").join(name);
    let crashes = root.join("fuzz/regressions").join(name);
    fs::create_dir_all(&learned)?;
    fs::create_dir_all(&crashes)?;
    let mut command = Command::new(built.join(name));
    command
        .current_dir(&root)
        .arg(&learned)
        .arg(root.join("fuzz/corpora").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={INPUT_MAX}"))
        .arg("-timeout=10")
        .arg("-rss_limit_mb=2048")
        .arg("-print_final_stats=1")
        .arg("-verbosity=0")
        .arg(format!("-artifact_prefix={}/", crashes.display()));
    if !dictionary.is_empty() {
        command.arg(format!(
            "-dict={}",
            root.join(format!("fuzz/dictionaries/{dictionary}.dict"))
                .display()
        ));
    }
    let outcome = succeed(&mut command);
    // An empty folder would be a change of the tree.
    let _not_empty = fs::remove_dir(&crashes);
    outcome.with_context(|| format!("{name} found something: see fuzz/regressions/{name}"))
}

/// Which lines of `gateway/core/src/FILTER` are reached by the inputs that are known for the targets whose name begins
/// with `target`, in percent.
pub(crate) fn coverage(target: &str, filter: &str) -> Result<()> {
    let root = root()?;
    let tools = tools()?;
    let folder = root.join("target/fuzz-coverage");
    let profile = folder.join("replay.profraw");
    let _none_yet = fs::remove_file(&profile);
    succeed(
        cargo()?
            .args([
                "test",
                "--package",
                "isthmus-fuzz",
                "--test",
                "replay",
                "--no-run",
            ])
            .env("CARGO_TARGET_DIR", &folder)
            .env("RUSTFLAGS", "-Cinstrument-coverage"),
    )?;
    succeed(
        cargo()?
            .args([
                "test",
                "--package",
                "isthmus-fuzz",
                "--test",
                "replay",
                "--",
                "known",
            ])
            .env("CARGO_TARGET_DIR", &folder)
            .env("RUSTFLAGS", "-Cinstrument-coverage")
            .env("LLVM_PROFILE_FILE", &profile)
            .env("ISTHMUS_FUZZ_TARGET", target)
            .env("ISTHMUS_FUZZ_CORPUS", root.join("target/fuzz/corpus")),
    )?;
    let data = folder.join("replay.profdata");
    succeed(
        Command::new(tools.join("llvm-profdata"))
            .args(["merge", "-sparse", "-o"])
            .arg(&data)
            .arg(&profile),
    )?;
    let binary = newest(&folder.join("debug/deps"), "replay-")?;
    succeed(
        Command::new(tools.join("llvm-cov"))
            .arg("report")
            .arg(&binary)
            .arg(format!("-instr-profile={}", data.display()))
            .arg("--show-region-summary=false")
            .arg("--show-branch-summary=false")
            .arg(root.join("gateway/core/src").join(filter)),
    )
}

/// The tools that read the compiler's profiles, which come with it.
fn tools() -> Result<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    let folder = sysroot.join("lib/rustlib").join(TRIPLE).join("bin");
    if !folder.join("llvm-cov").is_file() {
        bail!("the tools for coverage are missing: rustup component add llvm-tools");
    }
    Ok(folder)
}

fn newest(folder: &Path, start: &str) -> Result<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder)?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(start) && !name.contains('.')
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found
        .pop()
        .map(|(_, path)| path)
        .with_context(|| format!("nothing in {} begins with {start}", folder.display()))
}
