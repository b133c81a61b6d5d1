//! The command line: what an operator types, turned into options of a run.

mod admin;
mod check;
mod diff;
mod explain;
mod help;
mod reload;
mod screen;
mod secrets;
mod tables;
mod upgrade;

use crate::access_log::{Format, Target};
use crate::control;
use crate::demo;
use crate::run::{self, Exit};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use isthmus_config::Defaults;
use isthmus_core::cluster::locality::Locality;
use isthmus_core::egress::AllowedRanges;
use isthmus_core::limits::{DnsServers, TrustedRanges};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// An edge gateway that executes Istio's traffic-management resources, without Envoy and without istiod.
#[derive(Debug, Parser)]
#[command(name = "isthmus", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway on files or directories of resources.
    #[command(after_help = "Example:\n  isthmus run -f ./resources --port-map 80=8080 --access-log -")]
    Run(Box<RunArgs>),
    /// Run the gateway on an embedded example with embedded upstreams, and print what to try.
    #[command(after_help = "Example:\n  isthmus demo\n  isthmus demo --port 8080")]
    Demo(demo::Args),
    /// Parse, validate and analyze resources, and say what is wrong with them.
    #[command(
        after_help = "Findings across resources are warnings, because a document may refer to what another file brings;\n\
                            hints are worth knowing. Exit status: 0 clean or warnings only, 1 errors, 2 usage.\n\nExamples:\n  \
                            isthmus check -f ./resources --strict\n  isthmus check -f ./resources -o sarif > isthmus.sarif"
    )]
    Check(check::Args),
    /// Say what would change for requests between two sets of resources, with a request that shows each change.
    #[command(
        mut_arg("files", |arg| arg.required(false).env(None).help(
            "Files or directories that both sets have, such as services"
        )),
        after_help = "Exit status: 0 proven to be no change, 1 changes or undecided, 2 usage, or a set that cannot be \
                      loaded.\n\nExample:\n  isthmus diff ./before ./after -f ./services -o json"
    )]
    Diff(diff::Args),
    /// Have a running gateway load its files again, and say what became of them.
    #[command(
        after_help = "Exit status: 0 everything is served as it is written, 1 something stays behind or the gateway is on \
                      its way out, 3 no gateway answers.\n\nExample:\n  isthmus reload --admin 127.0.0.1:15000"
    )]
    Reload(admin::Args),
    /// Have a running gateway start a newer process, which takes its place without losing a connection.
    #[command(
        after_help = "The gateway starts its own binary, or another one, with its own arguments, and hands it the ports. When the\n\
                      new process serves, the old one drains and ends. The new one has another process id.\n\nExit status: 0 the \
                      new process serves, 1 the old one goes on, and why is told, 3 no gateway\nanswers.\n\nExamples:\n  \
                      isthmus upgrade\n  isthmus upgrade --admin unix:/run/isthmus/admin.sock --binary ./isthmus-2"
    )]
    Upgrade(upgrade::UpgradeArgs),
    /// Close the ports of a running gateway for good and let its connections end; it stays, and is not ready.
    #[command(after_help = "Example:\n  isthmus drain && kill -TERM $(pidof isthmus)")]
    Drain(admin::Args),
    /// Ask a running gateway whether it is ready.
    #[command(
        after_help = "Exit status: 0 ready, 1 not ready, 3 no gateway answers.\n\nExample:\n  isthmus healthcheck"
    )]
    Healthcheck(admin::Args),
    /// Show the certificates of a running gateway, when they expire, and which cannot be loaded.
    #[command(after_help = "Example:\n  isthmus secrets --admin 127.0.0.1:15000")]
    Secrets(admin::Args),
    /// Show which ports a running gateway has open, and what is on them.
    #[command(after_help = "Example:\n  isthmus listeners --admin unix:/run/isthmus/admin.sock")]
    Listeners(admin::Args),
    /// Show the routes of a running gateway, in the order in which they are tried.
    #[command(after_help = "Example:\n  isthmus routes --host shop.example -o json")]
    Routes(tables::RouteArgs),
    /// Show the clusters of a running gateway.
    #[command(after_help = "Example:\n  isthmus clusters --admin 127.0.0.1:15000")]
    Clusters(admin::Args),
    /// Show the endpoints of a running gateway, and what is known of each now.
    #[command(after_help = "Example:\n  isthmus endpoints --cluster reviews")]
    Endpoints(tables::EndpointArgs),
    /// Show the state of a running gateway.
    #[command(after_help = "Example:\n  isthmus status -o json")]
    Status(admin::Args),
    /// Say which rule takes a request, what it does with it and where that is written, and why the rules before it do
    /// not take it.
    #[command(
        after_help = "Exit status: 0 a rule takes the request, 1 none does or the files have errors, 2 usage, 3 no gateway \
                      answers.\n\nExamples:\n  isthmus explain -f ./resources GET http://shop.example/cart -H 'x-user: jason'\n  \
                      isthmus explain --live POST https://shop.example/ --sni shop.example\n  \
                      isthmus explain -f ./resources tcp://:9000"
    )]
    Explain(Box<explain::Args>),
    /// Print the version.
    Version,
    /// Explain a command, or a topic: settings, fields, mesh-config.
    Help {
        /// `settings`, `fields`, `mesh-config`, or the name of a command.
        topic: Option<String>,
        /// Of the fields, those whose kind or path has this in it.
        filter: Option<String>,
    },
}

/// How resources are found and compiled.
#[derive(Debug, Clone, Args)]
struct ResourceArgs {
    /// Files, or directories that are read recursively (.yaml, .yml, .json).
    #[arg(short = 'f', long = "file", value_name = "PATH", num_args = 1.., required = true, env = "ISTHMUS_FILE", value_delimiter = ',')]
    files: Vec<PathBuf>,
    /// This gateway's labels, by which Gateways select it [default: every Gateway selects it].
    #[arg(long, value_name = "K=V,...", env = "ISTHMUS_LABELS", value_parser = parse_labels, default_value = "")]
    labels: Labels,
    /// This gateway's namespace, which exportTo is about [default: none, and exportTo hides nothing].
    #[arg(
        long,
        value_name = "NAME",
        env = "ISTHMUS_NAMESPACE",
        default_value = "",
        hide_default_value = true
    )]
    namespace: String,
    /// Where this gateway is, which locality load balancing is about [default: nowhere].
    #[arg(
        long,
        value_name = "REGION/ZONE/SUBZONE",
        env = "ISTHMUS_LOCALITY",
        default_value = "",
        hide_default_value = true
    )]
    locality: String,
    /// What holds when nothing is written: the defaults of Istio 1.1's concept pages, or today's.
    #[arg(long, value_enum, env = "ISTHMUS_DEFAULTS", default_value = "seed")]
    defaults: DefaultsArg,
    /// Istio's MeshConfig, for what of it concerns a gateway; see `isthmus help mesh-config`.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_MESH_CONFIG")]
    mesh_config: Option<PathBuf>,
    /// Limits and time-outs; see `isthmus help settings`.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_SETTINGS")]
    settings: Option<PathBuf>,
    /// Folder of credentials, NAME/{tls.crt,tls.key,ca.crt} for each credentialName; watched, as a Secret mounted there is.
    #[arg(long, value_name = "DIR", env = "ISTHMUS_CREDENTIALS")]
    credentials: Option<PathBuf>,
    /// Take unknown fields as warnings, and repair what can be repaired.
    #[arg(long, env = "ISTHMUS_LENIENT")]
    lenient: bool,
}

impl ResourceArgs {
    fn compile_options(&self) -> isthmus_config::Options {
        isthmus_config::Options {
            defaults: match self.defaults {
                DefaultsArg::Seed => Defaults::Seed,
                DefaultsArg::Current => Defaults::Current,
            },
            labels: self.labels.0.clone(),
            namespace: self.namespace.clone(),
            locality: Locality::parse(&self.locality),
            lenient: self.lenient,
            mesh: isthmus_config::mesh::MeshConfig::default(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            proofs: true,
            judge: Some(crate::tls::judge),
            version: 1,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Labels(BTreeMap<String, String>);

fn parse_labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("`{pair}` is not KEY=VALUE"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    pairs.map(pair).collect::<Result<_, String>>().map(Labels)
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DefaultsArg {
    Seed,
    Current,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    Text,
    Json,
}

#[derive(Debug, Clone, Args)]
struct RunArgs {
    #[command(flatten)]
    resources: ResourceArgs,
    /// Number of shards [default: the cores that are granted]. Only as many as cores, or more, are pinned to them.
    #[arg(long, value_name = "N", env = "ISTHMUS_SHARDS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: Option<u16>,
    /// Which port to listen on for a Gateway's port; 0 takes a free one.
    #[arg(
        long,
        value_name = "GATEWAY=PORT,...",
        env = "ISTHMUS_PORT_MAP",
        default_value = ""
    )]
    port_map: control::PortMap,
    /// Address of listeners whose Gateway has no `bind` (all interfaces, both families).
    #[arg(long, value_name = "IP", env = "ISTHMUS_BIND_ADDRESS", default_value = "::")]
    bind_address: IpAddr,
    /// Admin API: IP:PORT or unix:PATH. At other addresses than loopback's nobody may write without the three options
    /// below.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ISTHMUS_ADMIN",
        default_value = "127.0.0.1:15000"
    )]
    admin: control::AdminAddress,
    /// The admin API's certificate, with its chain: it then speaks mutual TLS only. Read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        env = "ISTHMUS_ADMIN_TLS_CERT",
        requires_all = ["admin_tls_key", "admin_client_ca"]
    )]
    admin_tls_cert: Option<String>,
    /// The key of that certificate.
    #[arg(
        long,
        value_name = "FILE",
        env = "ISTHMUS_ADMIN_TLS_KEY",
        requires_all = ["admin_tls_cert", "admin_client_ca"]
    )]
    admin_tls_key: Option<String>,
    /// Authorities that sign the certificates of the admin API's clients; who has one may write from anywhere.
    #[arg(
        long,
        value_name = "FILE",
        env = "ISTHMUS_ADMIN_CLIENT_CA",
        requires_all = ["admin_tls_cert", "admin_tls_key"]
    )]
    admin_client_ca: Option<String>,
    /// Health, for load balancers.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ISTHMUS_STATUS",
        default_value = "0.0.0.0:15021"
    )]
    status: SocketAddr,
    /// Metrics, for Prometheus.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ISTHMUS_METRICS",
        default_value = "0.0.0.0:15020"
    )]
    metrics: SocketAddr,
    /// How long new connections are accepted after TERM.
    #[arg(long, value_name = "DURATION", env = "ISTHMUS_DRAIN_DELAY", default_value = "5s", value_parser = parse_duration)]
    drain_delay: Duration,
    /// How long connections may take to end then.
    #[arg(long, value_name = "DURATION", env = "ISTHMUS_DRAIN_TIMEOUT", default_value = "20s", value_parser = parse_duration)]
    drain_timeout: Duration,
    /// A file, `-` for standard output, or `off`.
    #[arg(
        long,
        value_name = "FILE|-|off",
        env = "ISTHMUS_ACCESS_LOG",
        default_value = "-"
    )]
    access_log: String,
    /// How access log lines look.
    #[arg(long, value_enum, env = "ISTHMUS_ACCESS_LOG_FORMAT", default_value = "text")]
    access_log_format: FormatArg,
    /// error, warn, info, debug, or a filter such as isthmus=debug.
    #[arg(
        long,
        value_name = "LEVEL",
        env = "ISTHMUS_LOG_LEVEL",
        default_value = "info",
        value_parser = parse_log_level
    )]
    log_level: String,
    /// Peers that are believed about their clients (PROXY protocol), and clients that may set `x-envoy-*` retries and
    /// time-outs [default: loopback].
    #[arg(long, value_name = "CIDR,...", env = "ISTHMUS_TRUSTED_CIDR")]
    trusted_cidr: Option<TrustedRanges>,
    /// Servers of DNS that names of services are asked of [default: those of /etc/resolv.conf].
    #[arg(long, value_name = "ADDRESS,...", env = "ISTHMUS_DNS_SERVER")]
    dns_server: Option<DnsServers>,
    /// Ranges that names of upstreams may lead to although clients choose them (wildcards, resolution NONE and DYNAMIC_DNS),
    /// or they are link-local [default: public addresses only].
    #[arg(long, value_name = "CIDR,...", env = "ISTHMUS_EGRESS_ALLOW_CIDR")]
    egress_allow_cidr: Option<AllowedRanges>,
    /// Folder in which the last good resources are kept, Secrets included, so that a start with a broken file serves
    /// what was served before.
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Written once traffic is accepted, and when ports come or go: the addresses, as JSON.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_READY_FILE")]
    ready_file: Option<PathBuf>,
}

impl RunArgs {
    fn options(&self) -> run::Options {
        run::Options {
            paths: self.resources.files.clone(),
            compile: isthmus_config::Options {
                proofs: false,
                ..self.resources.compile_options()
            },
            mesh_config: self.resources.mesh_config.clone(),
            settings: self.resources.settings.clone(),
            credentials: self.resources.credentials.clone(),
            state_dir: self.state_dir.clone(),
            trusted: self.trusted_cidr.clone(),
            dns_servers: self.dns_server.clone(),
            egress_allowed: self.egress_allow_cidr.clone(),
            shards: self.shards.map(usize::from),
            access_log: match self.access_log.as_str() {
                "off" => Target::Off,
                "-" => Target::Stdout,
                path => Target::File(path.into()),
            },
            access_log_format: match self.access_log_format {
                FormatArg::Text => Format::Text,
                FormatArg::Json => Format::Json,
            },
            control: control::Options {
                admin: self.admin.clone(),
                admin_tls: self.admin_tls(),
                status: self.status,
                metrics: self.metrics,
                bind_address: self.bind_address,
                port_map: self.port_map.clone(),
                drain_delay: self.drain_delay,
                drain_timeout: self.drain_timeout,
                ready_file: self.ready_file.clone(),
            },
        }
    }

    /// All three files, or none.
    fn admin_tls(&self) -> Option<control::AdminTls> {
        Some(control::AdminTls {
            certificate: self.admin_tls_cert.clone()?,
            key: self.admin_tls_key.clone()?,
            client_ca: self.admin_client_ca.clone()?,
        })
    }
}

/// The filter takes any word for the name of a part of the program; alone it can only be a mistyped level.
fn parse_log_level(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let level = part.rsplit('=').next().unwrap_or(part);
        if level.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
            return Err(format!("`{level}` is not error, warn, info, debug, trace or off"));
        }
    }
    Ok(text.to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Starts the log of the process itself, on standard error.
pub(crate) fn start_log(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(level);
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(run::colored(std::io::stderr().is_terminal()))
        .with_writer(std::io::stderr)
        .try_init();
    // A second log in one process is a test's; the first stays.
    drop(started);
}

/// Writes a text to standard output; a closed pipe is nobody's error.
pub(crate) fn print(text: &str) {
    let _closed = std::io::stdout().lock().write_all(text.as_bytes());
}

/// The command line: `explain` takes its request behind its files, and may do without them.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("explain", |explain| {
        explain.mut_arg("files", |files| {
            files.required(false).num_args(1).help(
                "A file, or a directory that is read recursively (.yaml, .yml, .json); as often as needed",
            )
        })
    })
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let parsed = Cli::from_arg_matches(&command().get_matches());
    let exit = match parsed.unwrap_or_else(|error| error.exit()).command {
        Command::Run(args) => {
            start_log(&args.log_level);
            run::run(args.options())
        }
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => return check::run(&args),
        Command::Diff(args) => return diff::run(&args),
        Command::Reload(args) => return reload::run(&args),
        Command::Upgrade(args) => return upgrade::run(&args),
        Command::Drain(args) => return upgrade::drain(&args),
        Command::Healthcheck(args) => return upgrade::check_health(&args),
        Command::Secrets(args) => return secrets::run(&args),
        Command::Listeners(args) => return tables::run(&args, tables::What::Listeners),
        Command::Routes(args) => return tables::run_routes(&args),
        Command::Clusters(args) => return tables::run(&args, tables::What::Clusters),
        Command::Endpoints(args) => return tables::run_endpoints(&args),
        Command::Status(args) => return tables::run(&args, tables::What::Status),
        Command::Explain(args) => return explain::run(&args),
        Command::Version => {
            print(concat!("isthmus ", env!("CARGO_PKG_VERSION"), "\n"));
            return ExitCode::SUCCESS;
        }
        Command::Help { topic, filter } => return help::run(topic.as_deref(), filter.as_deref()),
    };
    let (status, text) = exit.status();
    if let Some(text) = text {
        let _closed = writeln!(std::io::stderr().lock(), "isthmus: {text}");
    }
    ExitCode::from(status)
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status().0)
    }
}
