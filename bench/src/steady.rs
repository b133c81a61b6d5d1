//! What a request costs in system calls and in heap allocations, once everything is warm.
//!
//! The gateway must be built with its feature `count-allocations`. System calls are counted by strace, which makes
//! everything slower; how many calls a request takes stays nearly the same.

use crate::channel::Dialer;
use crate::load::{Load, Pace};
use crate::proxy::{PROXIES, Running, upstream};
use crate::scenario::SCENARIOS;
use anyhow::{Context, Result, ensure};
use isthmus_tests::client;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const TIME: Duration = Duration::from_secs(3);
/// Calls that are rarer than this per request are told together.
const RARE: f64 = 0.01;

/// Measures the gateway in the first scenario, and writes what was found.
pub(crate) fn measure(gateway: &Path, out: &Path) -> Result<()> {
    let scenario = SCENARIOS.first().context("a scenario")?;
    let ours = PROXIES.first().context("the gateway")?;
    let folder = tempfile::tempdir()?;
    let origin = upstream(&folder.path().join("upstream"), &folder.path().join("keys"))?;
    let upstreams = (origin.plain(), origin.http2());
    let running = ours.start(scenario, upstreams, folder.path(), gateway)?;
    let load = Load {
        address: running.address,
        request: scenario.request(),
        dialer: Dialer::new(scenario)?,
        fresh: false,
        connections: scenario.connections,
        pace: Pace::Closed,
        time: TIME,
    };
    load.run()?;

    let metrics = running.metrics().context("the ready file names the metrics")?;
    let idle = allocations(metrics)?;
    let before = allocations(metrics)?;
    let outcome = load.run()?;
    // Asking costs allocations, too.
    let spent = allocations(metrics)? - before - (before - idle);
    let allocations = spent.max(0.0) / outcome.answers as f64;

    let (calls, requests) = system_calls(&running, &load, folder.path())?;
    let mut text =
        format!("| per request, of {requests} | |\n|---|---|\n| heap allocations | {allocations:.2} |\n");
    let (mut rare, mut all) = (0.0, 0.0);
    for (name, count) in &calls {
        let each = *count as f64 / requests as f64;
        all += each;
        if each < RARE {
            rare += each;
        } else {
            writeln!(text, "| {name} | {each:.2} |")?;
        }
    }
    writeln!(
        text,
        "| other system calls | {rare:.3} |\n| all system calls | {all:.2} |"
    )?;
    fs::create_dir_all(out)?;
    fs::write(out.join("steady.md"), &text)?;
    println!("{text}");
    Ok(())
}

/// Allocations of the process so far.
fn allocations(metrics: SocketAddr) -> Result<f64> {
    let answer = client::get(metrics, "metrics", "/stats/prometheus");
    let line = answer
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("isthmus_allocations_total "));
    let value = line.context("the gateway was built without the feature count-allocations")?;
    Ok(value.trim().parse()?)
}

/// System calls by name, the most frequent first, and the requests that they served.
fn system_calls(running: &Running, load: &Load, folder: &Path) -> Result<(Vec<(String, u64)>, u64)> {
    let table = folder.join("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-c", "-S", "calls", "-U", "name,calls", "-o"])
        .arg(&table)
        .args(["-p", &running.process.id().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("strace")?;
    let outcome = load.run();
    // As if a person pressed Ctrl-C: it then writes its table.
    let id = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(id, rustix::process::Signal::INT)?;
    strace.wait()?;
    let text = fs::read_to_string(&table)?;
    let calls: Vec<(String, u64)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, count) = (words.next()?, words.next()?);
            Some((name.to_owned(), count.parse().ok()?))
        })
        .filter(|(name, _)| name != "total")
        .collect();
    ensure!(!calls.is_empty(), "strace has seen nothing: {text}");
    Ok((calls, outcome?.answers))
}
