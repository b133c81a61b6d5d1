//! The gateway beside its peers, in one run on one machine.
//!
//! Absolute times mean little on a shared machine, so everything is a ratio: all proxies of a scenario are up, each
//! with one worker on core 0; the load and the upstream share core 1; the proxies are loaded one after the other in an
//! order that rotates from round to round, and a proxy's CPU time per request is divided by the others' of the same
//! round. [`scenario`] says what is asked, [`proxy`] how each peer is configured, [`load`] sends through a [`channel`], [`measure`] reads
//! what the kernel has counted, [`report`] writes the table, the JSON and the plot. [`attack`], [`uneven`] and
//! [`endpoints`] measure latencies instead, and [`scale`] what a large configuration costs.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool of the terminal")]

mod attack;
mod channel;
mod endpoints;
mod h2load;
mod load;
mod measure;
mod micro;
mod proxy;
mod report;
mod scale;
mod scenario;
mod steady;
mod uneven;

use anyhow::{Context, Result, bail};
use channel::Dialer;
use clap::Parser;
use hdrhistogram::Histogram;
use isthmus_tests::nghttpd::Nghttpd;
use load::{Load, Outcome, Pace};
use measure::{Cpu, Spread, pin};
use proxy::{PROXIES, Running};
use report::{Latency, Measured, Report, Row};
use scenario::{SCENARIOS, Scenario, Tls};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

#[derive(Parser)]
#[command(about = "Measures the gateway beside HAProxy, nginx and Envoy")]
struct Arguments {
    /// The gateway's binary
    #[arg(long, default_value = "target/dist/isthmus")]
    gateway: PathBuf,
    /// Where the report goes
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Rounds of each scenario
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// How long each proxy is loaded in each round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these scenarios: those whose name begins so; `scale` is one of its own, of large configurations
    #[arg(long)]
    scenario: Vec<String>,
    /// Only these proxies
    #[arg(long)]
    proxy: Vec<String>,
    /// Take what was not measured now from the JSON of this earlier report
    #[arg(long, value_name = "FILE")]
    merge: Vec<PathBuf>,
    /// Shortly, to see that everything works
    #[arg(long)]
    smoke: bool,
    /// Count the instructions of the request path's parts instead
    #[arg(long)]
    micro: bool,
    /// Count a request's system calls and allocations instead; the gateway must have the feature `count-allocations`
    #[arg(long)]
    steady: bool,
    /// Measure instead what a neighbour feels of each attack over HTTP/2; fails when its slowest hundredth takes more than
    /// three times as long as in quiet
    #[arg(long)]
    attacks: bool,
    /// Measure instead what balancers make of one slow upstream among ten
    #[arg(long)]
    uneven: bool,
    /// Measure instead how long a change of endpoints takes until every shard has it; fails when the median is not below
    /// 2 ms
    #[arg(long)]
    endpoints: bool,
    /// With --micro: let the figures be those that later ones are compared with
    #[arg(long, requires = "micro")]
    keep: bool,
    /// Run one case of --micro: what callgrind looks at
    #[arg(long, hide = true, requires = "times")]
    case: Option<String>,
    #[arg(long, hide = true)]
    times: Option<usize>,
}

/// The figures of the cases, as they were last kept.
const KNOWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.tsv");

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let (Some(case), Some(times)) = (&arguments.case, arguments.times) {
        return micro::run_case(case, times);
    }
    if arguments.steady {
        pin(1)?;
        return steady::measure(&arguments.gateway, &arguments.out);
    }
    if arguments.attacks {
        pin(1)?;
        let time = Duration::from_secs(if arguments.smoke { 1 } else { 10 });
        return attack::measure(&arguments.gateway, &arguments.out, time, !arguments.smoke);
    }
    if arguments.endpoints {
        return endpoints::measure(&arguments.gateway, &arguments.out, arguments.smoke);
    }
    if arguments.uneven {
        pin(1)?;
        return uneven::measure(&arguments.gateway, &arguments.out, arguments.smoke);
    }
    if arguments.micro {
        return micro::measure(&arguments.out, Path::new(KNOWN), arguments.keep);
    }
    if arguments.scenario.iter().any(|key| key == scale::KEY) {
        pin(1)?;
        return scale::measure(&arguments.gateway, &arguments.out, arguments.smoke);
    }
    if arguments.smoke && arguments.scenario.is_empty() {
        pin(1)?;
        scale::measure(&arguments.gateway, &arguments.out, true)?;
    }
    let (rounds, seconds) = if arguments.smoke {
        (1, 0.3)
    } else {
        (arguments.rounds, arguments.seconds)
    };
    pin(1)?;
    let chosen = |scenario: &&Scenario| {
        arguments.scenario.is_empty()
            || arguments
                .scenario
                .iter()
                .any(|start| scenario.key.starts_with(start.as_str()))
    };
    let mut report = Report {
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        machine: machine(),
        command: "cargo xtask bench".to_owned(),
        rounds,
        seconds,
        versions: PROXIES
            .iter()
            .filter(|proxy| !proxy.name.contains('-'))
            .map(|proxy| (proxy.name.to_owned(), proxy.version(&arguments.gateway)))
            .collect(),
        scenarios: Vec::new(),
    };
    for scenario in SCENARIOS.iter().filter(chosen) {
        eprintln!("{}: {}", scenario.key, scenario.title);
        let measured = measure(scenario, arguments, rounds, Duration::from_secs_f64(seconds))
            .with_context(|| format!("scenario {}", scenario.key))?;
        report.scenarios.push(measured);
    }
    for earlier in &arguments.merge {
        report.add_missing(earlier)?;
    }
    fs::create_dir_all(&arguments.out)?;
    let table = report.markdown();
    fs::write(arguments.out.join("report.md"), &table)?;
    fs::write(
        arguments.out.join("report.json"),
        serde_json::to_vec_pretty(&report)?,
    )?;
    fs::write(arguments.out.join("plot.svg"), report.plot())?;
    println!("{table}");
    let errors = report.errors();
    if !errors.is_empty() {
        bail!("not every answer was right:\n  {}", errors.join("\n  "));
    }
    Ok(())
}

/// One proxy's figures, round by round.
#[derive(Default)]
struct Figures {
    cpu: Vec<Cpu>,
    rate: Vec<f64>,
    errors: BTreeMap<String, u64>,
    answers: u64,
    idle_bytes: Option<f64>,
    latency: Option<Histogram<u64>>,
}

impl Figures {
    fn take(&mut self, outcome: &Outcome) {
        self.answers += outcome.answers;
        for (fault, count) in &outcome.errors {
            *self.errors.entry(fault.clone()).or_default() += count;
        }
    }
}

fn measure(scenario: &Scenario, arguments: &Arguments, rounds: usize, time: Duration) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    let keys = folder.path().join("keys");
    proxy::keys(&keys)?;
    let origin = proxy::upstream(&folder.path().join("upstream"), &keys)?;
    // What is passed through is not looked at: an upstream that takes a hello for what it is would only measure itself.
    let upstream = match scenario.tls {
        Tls::Pass => proxy::sink()?,
        Tls::Originated => origin.secured(),
        _ => origin.plain(),
    };
    let calls = scenario.grpc.then(Nghttpd::grpc);
    let http2 = calls.as_ref().map_or(origin.http2(), Nghttpd::address);
    let upstreams = (upstream, http2);
    let mut running = Vec::new();
    for proxy in PROXIES {
        let named = arguments.proxy.is_empty() || arguments.proxy.iter().any(|name| name == proxy.name);
        if named && (proxy.takes)(scenario) {
            running.push(proxy.start(scenario, upstreams, folder.path(), &arguments.gateway)?);
        }
    }
    let mut figures: Vec<Figures> = running.iter().map(|_| Figures::default()).collect();
    for (one, figures) in running.iter().zip(&mut figures) {
        if scenario.idle > 0 {
            idle(scenario, one, arguments.smoke, figures)?;
        } else {
            // Connections to the upstream are opened, and memory grows, before anything counts.
            figures.take(&closed(scenario, one, time / 4)?);
        }
    }
    if scenario.idle == 0 {
        for round in 0..rounds {
            for turn in 0..running.len() {
                let at = (round + turn) % running.len();
                if let (Some(one), Some(figures)) = (running.get(at), figures.get_mut(at)) {
                    loaded(scenario, one, time, figures)
                        .with_context(|| format!("{} in round {round}", one.proxy.name))?;
                }
            }
        }
    }
    let rows = running.iter().zip(&figures).map(|(one, mine)| {
        let ratio_to = |other: &Figures| {
            let pairs = mine.cpu.iter().zip(&other.cpu);
            Spread::of(pairs.map(|(mine, theirs)| mine.total() / theirs.total()))
        };
        let ratios = running
            .iter()
            .zip(&figures)
            .filter(|(other, _)| other.proxy.name != one.proxy.name && scenario.idle == 0)
            .map(|(other, theirs)| (other.proxy.name.to_owned(), ratio_to(theirs)));
        Ok(Row {
            proxy: one.proxy.name.to_owned(),
            cpu: (!mine.cpu.is_empty()).then(|| Spread::of(mine.cpu.iter().map(|cpu| cpu.total()))),
            user: Spread::of(mine.cpu.iter().map(|cpu| cpu.user)).median,
            system: Spread::of(mine.cpu.iter().map(|cpu| cpu.system)).median,
            ratios: ratios.collect(),
            rate: Spread::of(mine.rate.iter().copied()),
            errors: mine.errors.clone(),
            answers: mine.answers,
            resident: one.process.resident()?,
            idle_bytes: mine.idle_bytes,
            latency: mine.latency.as_ref().map(|histogram| Latency {
                rate: scenario.rate,
                p50: histogram.value_at_quantile(0.5),
                p99: histogram.value_at_quantile(0.99),
                p999: histogram.value_at_quantile(0.999),
            }),
        })
    });
    Ok(Measured {
        key: scenario.key.to_owned(),
        title: scenario.title.to_owned(),
        measured: None,
        rows: rows.collect::<Result<_>>()?,
    })
}

fn load(scenario: &Scenario, one: &Running, pace: Pace, time: Duration) -> Result<Load> {
    Ok(Load {
        address: one.address,
        request: scenario.request(),
        dialer: Dialer::new(scenario)?,
        fresh: matches!(scenario.tls, Tls::Full(_) | Tls::Resumed),
        connections: scenario.connections,
        pace,
        time,
    })
}

/// Loads a proxy as much as it takes.
fn closed(scenario: &Scenario, one: &Running, time: Duration) -> Result<Outcome> {
    let Some(http2) = scenario.http2 else {
        return load(scenario, one, Pace::Closed, time)?.run();
    };
    let path = format!("/{}", scenario.file());
    let size = (scenario.connections, http2.streams);
    h2load::run(one.address, &path, size, scenario.grpc, time)
}

fn loaded(scenario: &Scenario, one: &Running, time: Duration, figures: &mut Figures) -> Result<()> {
    let before = one.process.cpu()?;
    let outcome = closed(scenario, one, time)?;
    let spent = one.process.cpu()?.per_request(before, outcome.answers);
    figures.cpu.push(spent);
    figures
        .rate
        .push(outcome.answers as f64 / outcome.elapsed.as_secs_f64());
    figures.take(&outcome);
    if scenario.rate > 0 {
        let outcome = load(scenario, one, Pace::Open(scenario.rate), time)?.run()?;
        figures.take(&outcome);
        match &mut figures.latency {
            Some(histogram) => histogram.add(&outcome.latency)?,
            None => figures.latency = Some(outcome.latency),
        }
    }
    Ok(())
}

fn idle(scenario: &Scenario, one: &Running, smoke: bool, figures: &mut Figures) -> Result<()> {
    // What the first connections bring about is not an idle connection's.
    figures.take(&load(scenario, one, Pace::Closed, Duration::from_millis(300))?.run()?);
    let before = one.process.resident()?;
    let count = if smoke { scenario.idle / 10 } else { scenario.idle };
    let held = load::idle(&Dialer::new(scenario)?, one.address, &scenario.request(), count)?;
    let after = one.process.resident()?;
    figures.idle_bytes = Some(after.saturating_sub(before) as f64 * 1024.0 / held.len() as f64);
    Ok(())
}

/// Processor, cores and kernel, as the system names them.
fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':']));
    let cores = processors
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let system = rustix::system::uname();
    format!(
        "{cores} cores of {model}, Linux {}",
        system.release().to_string_lossy()
    )
}
