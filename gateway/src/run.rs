//! The wiring: from options to a running process, in one function.

use crate::access_log::{self, Format, Target};
use crate::control::{self, Ended, Files, Inherited, ShardLink};
use crate::io::executor::{self, Heartbeat};
use crate::io::{clock, uring};
use crate::mailbox;
use crate::shard;
use crate::tls::{self, Store};
use isthmus_config::Source;
use isthmus_config::diagnostic::{self, Diagnostic};
use isthmus_config::keep::{self, LastGood, Outcome};
use isthmus_config::mesh::MeshConfig;
use isthmus_core::egress::AllowedRanges;
use isthmus_core::limits::{DnsServers, Settings, TrustedRanges};
use isthmus_core::overload::Bounds;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Messages that a mailbox holds on their way; more wait in the sender's outbox.
const MAILBOX: usize = 64;
/// File descriptors that are no connection of a client's: rings, files, listeners, admin.
const RESERVED_FDS: u64 = 256;
/// How long what control has begun on threads of its own, such as a file that is written, may take to end with it.
const LAST_WORK: Duration = Duration::from_secs(2);
/// Most downstream connections of one shard, whatever the limits allow.
const CONNECTIONS_MAX: u64 = 1 << 20;

/// Everything that a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Files and directories of resources.
    pub paths: Vec<PathBuf>,
    /// How resources are compiled.
    pub compile: isthmus_config::Options,
    /// The file of MeshConfig.
    pub mesh_config: Option<PathBuf>,
    /// The settings file.
    pub settings: Option<PathBuf>,
    /// Number of shards; None for the cores that are granted.
    pub shards: Option<usize>,
    /// Where access log lines go.
    pub access_log: Target,
    /// How they look.
    pub access_log_format: Format,
    /// A folder of credentials: NAME/tls.crt, tls.key, ca.crt.
    pub credentials: Option<PathBuf>,
    /// Where the last good set of resources is kept for a later start.
    pub state_dir: Option<PathBuf>,
    /// Peers that are believed about their clients, when the settings' are not to count.
    pub trusted: Option<TrustedRanges>,
    /// Servers of DNS, when the settings' are not to count.
    pub dns_servers: Option<DnsServers>,
    /// Ranges that names may lead to, when the settings' are not to count.
    pub egress_allowed: Option<AllowedRanges>,
    /// What control is told.
    pub control: control::Options,
}

/// Why the process ends, as its exit status.
#[derive(Debug)]
pub enum Exit {
    /// As it was asked to: 0.
    Done,
    /// The configuration is not valid, and has been reported: 1.
    Configuration(String),
    /// The machine does not allow it: 3.
    Environment(String),
    /// A defect of this program: 70.
    Internal(String),
}

impl Exit {
    /// The exit status and what to say at the end.
    pub fn status(&self) -> (u8, Option<&str>) {
        match self {
            Self::Done => (0, None),
            Self::Configuration(text) => (1, Some(text)),
            Self::Environment(text) => (3, Some(text)),
            Self::Internal(text) => (70, Some(text)),
        }
    }
}

/// Whether what is shown there is coloured: on a terminal, unless whoever sits at it wants none (<https://no-color.org>).
pub(crate) fn colored(is_terminal: bool) -> bool {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    is_terminal && wanted && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Reads and compiles the resources; errors are printed, each at its place, and end the run, unless an earlier one has
/// left a set that can be served in the place of what has them.
fn load(options: &Options, passed: Option<String>) -> Result<(Outcome, Files), Exit> {
    Files::try_state_dir(options.state_dir.as_deref()).map_err(Exit::Configuration)?;
    let mut files = Files::new(
        options.paths.clone(),
        options.compile.clone(),
        options.state_dir.clone(),
        passed,
    );
    let can_degrade = files.has_last_good();
    let (outcome, sources) = files
        .load()
        .map_err(|error| Exit::Configuration(format!("--file: {error}")))?;
    tell(&outcome, &sources, can_degrade)?;
    files.save();
    Ok((outcome, files))
}

/// Prints what there is to say about resources.
fn tell(outcome: &Outcome, sources: &[Source], can_degrade: bool) -> Result<(), Exit> {
    let color = colored(std::io::stderr().is_terminal());
    // Hints are for whoever checks.
    let (hints, told): (Vec<_>, Vec<_>) = outcome
        .diagnostics
        .iter()
        .cloned()
        .partition(|found| found.severity == diagnostic::Severity::Hint);
    let text = diagnostic::render(&told, sources, color);
    if !text.is_empty() {
        let _closed = std::io::stderr().write_all(text.as_bytes());
    }
    if !hints.is_empty() {
        let hints = hints.len();
        tracing::info!(hints, "`isthmus check` has hints about these resources");
    }
    let mut found = told
        .iter()
        .filter(|found| found.severity == diagnostic::Severity::Error);
    let first = found.next();
    let errors = usize::from(first.is_some()) + found.count();
    if let Some(first) = first.filter(|_| !can_degrade) {
        return Err(Exit::Configuration(format!(
            "the configuration has {errors} error(s), the first: {first}"
        )));
    }
    if errors > 0 {
        tracing::error!(
            errors,
            left_behind = outcome.quarantined.len(),
            "the configuration has errors: what was good before is served in the place of what has them"
        );
    }
    if outcome.compiled.resources == 0 && errors == 0 {
        tracing::warn!(
            "{}; nothing is served until there is one",
            isthmus_config::no_resource(sources)
        );
    }
    for (kind, count) in &outcome.compiled.passed_over {
        tracing::info!(
            kind,
            count,
            "documents of a kind that a gateway does not execute are passed over"
        );
    }
    Ok(())
}

/// Reads what holds for the process: MeshConfig, and over it the settings. What there is to say about both is printed;
/// an error among it ends the run.
pub(crate) fn load_process(
    mesh_config: Option<&PathBuf>,
    settings: Option<&PathBuf>,
) -> Result<(MeshConfig, Settings), Exit> {
    let read = |option: &str, path: &PathBuf| match isthmus_config::read_text(path) {
        Ok(text) => Ok(Source {
            name: path.display().to_string(),
            text: text.into(),
        }),
        Err(error) => Err(Exit::Configuration(format!("{option}: {error}"))),
    };
    let refuse = |source: &Source, found: &[Diagnostic]| {
        let color = colored(std::io::stderr().is_terminal());
        let text = diagnostic::render(found, std::slice::from_ref(source), color);
        let _closed = std::io::stderr().write_all(text.as_bytes());
        let wrong = found
            .iter()
            .any(|found| found.severity == diagnostic::Severity::Error);
        if wrong {
            Err(Exit::Configuration(format!("{} has errors", source.name)))
        } else {
            Ok(())
        }
    };
    let (mut mesh, mut base) = (MeshConfig::default(), Settings::default());
    if let Some(path) = mesh_config {
        let source = read("--mesh-config", path)?;
        let loaded = isthmus_config::mesh::load(&source.text, &source.name);
        refuse(&source, &loaded.diagnostics)?;
        (mesh, base) = (loaded.mesh, loaded.settings);
    }
    if let Some(path) = settings {
        let source = read("--settings", path)?;
        match isthmus_config::settings::load(&source.text, &source.name, base.clone()) {
            Ok(settings) => base = settings,
            Err(found) => refuse(&source, &found)?,
        }
    }
    mesh.path_normalization = base.path_normalization;
    Ok((mesh, base))
}

/// Runs the gateway on files until it is told to end.
pub fn run(options: Options) -> Exit {
    let inherited = match Inherited::find() {
        Ok(inherited) => inherited,
        Err(error) => {
            return Exit::Environment(format!("what an older process passes cannot be taken: {error}"));
        }
    };
    let parent = inherited.parent();
    let exit = run_files(options, inherited);
    if let (Some(parent), Some(why)) = (parent, exit.status().1) {
        parent.fail(why);
    }
    exit
}

fn run_files(mut options: Options, mut inherited: Inherited) -> Exit {
    let process = load_process(options.mesh_config.as_ref(), options.settings.as_ref());
    let (mesh, mut settings) = match process {
        Ok(process) => process,
        Err(exit) => return exit,
    };
    options.compile.mesh = mesh;
    if let Some(trusted) = options.trusted.take() {
        settings.trusted = trusted;
    }
    if let Some(servers) = options.dns_servers.take() {
        settings.dns_servers = servers;
    }
    if let Some(allowed) = options.egress_allowed.take() {
        settings.egress_allowed = allowed;
    }
    match load(&options, inherited.take_written()) {
        Ok((outcome, files)) => run_compiled(options, outcome, Some(files), &settings, inherited),
        Err(exit) => exit,
    }
}

/// Runs the gateway on resources that are at hand, with default settings.
pub fn run_sources(options: Options, sources: &[Source]) -> Exit {
    let outcome = keep::compile(sources.to_vec(), &options.compile, &LastGood::default());
    match tell(&outcome, sources, false) {
        Ok(()) => run_compiled(options, outcome, None, &Settings::default(), Inherited::default()),
        Err(exit) => exit,
    }
}

fn run_compiled(
    options: Options,
    mut outcome: Outcome,
    files: Option<Files>,
    settings: &Settings,
    inherited: Inherited,
) -> Exit {
    if let Err(error) = uring::probe() {
        return Exit::Environment(error.to_string());
    }
    if let Err(text) = options.control.try_ready_file() {
        return Exit::Environment(text);
    }
    let cores = executor::granted_cores();
    let count = options
        .shards
        .unwrap_or_else(executor::granted_parallelism)
        .max(1);
    let connections_max = connections_per_shard(settings, raise_open_files(), count);
    let bounds = Bounds::new(
        settings.requests_per_shard,
        settings.buffer_bytes_per_shard,
        granted_memory(),
        count as u64,
    );

    let log = match access_log::Writer::start(&options.access_log, options.access_log_format) {
        Ok(log) => log,
        Err(error) => return Exit::Environment(format!("the access log cannot be opened: {error}")),
    };
    let mut store = match new_store(std::mem::take(&mut outcome.compiled.secrets), options.credentials) {
        Ok(store) => store,
        Err(exit) => return exit,
    };
    if let Err(text) = options.control.load_admin_keys(&mut store) {
        return Exit::Configuration(text);
    }
    let mut links = Vec::with_capacity(count);
    let bells = mailbox::Bells::new(count);
    for index in 0..count {
        let (to_shard, from_control) = mailbox::channel(MAILBOX);
        let (to_control, from_shard) = mailbox::channel(MAILBOX);
        let heartbeat = Heartbeat::default();
        let start = shard::Start {
            index,
            bells: std::sync::Arc::clone(&bells),
            settings: settings.clone(),
            connections_max,
            bounds,
            seed: seed(index),
            inbox: from_control,
            outbox: to_control,
            log: log.shard_log(),
        };
        // With fewer shards than cores others use the cores, too: gateways of one machine, each with a small quota,
        // would all be pinned to its first core, and wait for it while the rest is idle.
        let core = (count >= cores.len())
            .then(|| cores.get(index % cores.len().max(1)).copied())
            .flatten();
        let thread = executor::spawn_shard(
            &format!("shard-{index}"),
            core,
            executor::Settings::default(),
            heartbeat.clone(),
            move |wheel| shard::run(start, wheel),
        );
        match thread {
            Ok(thread) => links.push(ShardLink {
                outbox: to_shard,
                inbox: from_shard,
                heartbeat,
                thread,
            }),
            Err(error) => {
                return Exit::Environment(format!("a thread for shard {index} cannot be started: {error}"));
            }
        }
    }

    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Exit::Environment(format!("the control thread cannot be started: {error}")),
    };
    let tasks = tokio::task::LocalSet::new();
    let metrics = control::Metrics::default();
    let ended = tasks.block_on(
        &runtime,
        control::run(
            options.control,
            settings.clone(),
            (outcome, files),
            (store, inherited),
            (links, bells),
            (metrics, seed(count)),
            log,
        ),
    );
    drop(tasks);
    // A disk that stands still must not keep the process.
    runtime.shutdown_timeout(LAST_WORK);
    match ended {
        Ok(Ended::Asked) => Exit::Done,
        Ok(Ended::Environment(text)) => Exit::Environment(text),
        Ok(Ended::ShardDied) => Exit::Internal("a shard ended by itself".to_owned()),
        Err(error) => Exit::Environment(error.to_string()),
    }
}

/// Where the keys of resources are found.
pub(crate) fn new_store(
    secrets: isthmus_config::Secrets,
    credentials: Option<PathBuf>,
) -> Result<Store, Exit> {
    let ticketer = tls::new_ticketer()
        .map_err(|error| Exit::Environment(format!("no keys for TLS tickets: {error}")))?;
    Ok(Store::new(secrets, credentials, ticketer))
}

/// A seed that differs from run to run and from shard to shard.
fn seed(shard: usize) -> u64 {
    let since = clock::wall()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut bytes = [0u8; 8];
    // Without the kernel's randomness the time and the process must do: this is for balancing, not for secrets.
    let _time_will_do = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
        ^ since.as_nanos() as u64
        ^ ((shard as u64) << 48)
        ^ u64::from(std::process::id())
}

/// Raises the limit of open files as far as it may, and answers it.
fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// The memory that the process may use, in bytes: the machine's, or what its cgroup grants (version 2) when that is less.
fn granted_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    });
    let cgroup = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let cgroup = cgroup.and_then(|text| text.trim().parse::<u64>().ok());
    machine.into_iter().chain(cgroup).min()
}

/// How many downstream connections a shard may have. Without a setting it is its share of what open files allow, with
/// a third kept for upstreams: idle clients must not be able to take the last descriptor from them.
fn connections_per_shard(settings: &Settings, open_files: u64, shards: usize) -> usize {
    if settings.connections_per_shard > 0 {
        return settings.connections_per_shard;
    }
    let usable = open_files.saturating_sub(RESERVED_FDS) / 3 * 2;
    let share = (usable / shards.max(1) as u64).clamp(1, CONNECTIONS_MAX);
    usize::try_from(share).unwrap_or(usize::MAX)
}
