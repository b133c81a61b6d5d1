//! `isthmus demo`: the gateway on the Bookinfo example, with upstreams inside this process, and a list of what to try.
//!
//! The resources are those of `ops/examples/bookinfo`, so what the demo shows can be read there. Nothing about the
//! gateway is special here: it is [`run::run_sources`] on other ports. What the list promises is a contract:
//! `gateway/tests/demo.rs` runs each of its commands and compares the answer with the line above it.

use crate::access_log::{Format, Target};
use crate::io::executor;
use crate::run::{self, Exit};
use crate::{cli, control};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use isthmus_config::Source;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use tokio::task::JoinSet;

macro_rules! example {
    ($name:literal) => {
        (
            concat!("ops/examples/bookinfo/", $name),
            include_str!(concat!("../../ops/examples/bookinfo/", $name)),
        )
    };
}

/// The example, in the order in which `-f` would read its folder.
const RESOURCES: [(&str, &str); 5] = [
    example!("bookinfo.yaml"),
    example!("destination-rules.yaml"),
    example!("gateway.yaml"),
    example!("reviews.yaml"),
    example!("services.yaml"),
];

/// The upstreams, in the order of the ports that they have in the example.
const UPSTREAMS: [Upstream; 6] = [
    Upstream::new("productpage", "v1"),
    Upstream::new("details", "v1"),
    Upstream::new("ratings", "v1"),
    Upstream::new("reviews", "v1"),
    Upstream::new("reviews", "v2"),
    Upstream::new("reviews", "v3"),
];
/// Port of the first upstream in the example; the others follow it.
const EXAMPLE_PORT: u16 = 19080;
/// The port of the example's Gateway.
const GATEWAY_PORT: u16 = 80;

/// Each shard locks memory, and a demo needs no more than to show that there are several.
const SHARDS_MAX: usize = 2;
/// How long a drain may take: nobody depends on a demo.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the ready file is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait that a client may ask an upstream for, so that a typing error does not hold it for a day.
const DELAY_MAX: Duration = Duration::from_secs(10);

/// What `isthmus demo` may be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Port of the gateway on 127.0.0.1; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Port of the first upstream, the other five follow; 19080 gives those that ops/examples/bookinfo names
    /// [default: free ones].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=i64::from(u16::MAX - 5)))]
    upstream_base_port: Option<u16>,
    /// Write the access log to standard output.
    #[arg(long)]
    access_log: bool,
}

/// One thing to try. `{url}` stands for the gateway; `expects` is read by a test, whose head gives its grammar.
struct Trial {
    shows: &'static str,
    command: &'static str,
    expects: &'static str,
}

const TRIALS: [Trial; 12] = [
    Trial {
        shows: "A path leads to a service",
        command: "curl -si -H 'Host: bookinfo.example' {url}/productpage",
        expects: "200 productpage v1",
    },
    Trial {
        shows: "A header leads to a version",
        command: "curl -si -H 'Host: bookinfo.example' -H 'end-user: jason' {url}/reviews/1",
        expects: "200 reviews v2",
    },
    Trial {
        shows: "A split by weight, over 400 requests",
        command: "curl -s -H 'Host: bookinfo.example' '{url}/reviews/[1-400]' | grep -o '\"version\":\"v.\"' | sort | uniq -c",
        expects: "75% reviews v1, 25% reviews v3",
    },
    Trial {
        shows: "A parameter of the query, on another host",
        command: "curl -si -H 'Host: reviews.bookinfo.example' '{url}/?sort=latest'",
        expects: "200 reviews v3",
    },
    Trial {
        shows: "A redirect",
        command: "curl -si -H 'Host: bookinfo.example' {url}/",
        expects: "302, location: http://bookinfo.example/productpage",
    },
    Trial {
        shows: "A direct response, without an upstream",
        command: "curl -si -H 'Host: bookinfo.example' {url}/open",
        expects: "200 \"the shop is open\"",
    },
    Trial {
        shows: "A rewrite of the path",
        command: "curl -si -H 'Host: bookinfo.example' {url}/api/v1/ratings/7",
        expects: "200 ratings v1, got path /ratings/7",
    },
    Trial {
        shows: "Header operations, both ways",
        command: "curl -si -H 'Host: bookinfo.example' -H 'x-secret: 42' {url}/details/7",
        expects: "200 details v1, got x-shop bookinfo, got no x-secret, x-answered-by: details",
    },
    Trial {
        shows: "A timeout of one second",
        command: "curl -si -H 'Host: bookinfo.example' '{url}/api/v1/ratings/7?delay=3s'",
        expects: "504 \"the upstream did not answer in time (UT)\"",
    },
    Trial {
        shows: "Dots in a path are resolved before routing",
        command: "curl -si --path-as-is -H 'Host: bookinfo.example' {url}/reviews/../details/7",
        expects: "200 details v1, got path /details/7",
    },
    Trial {
        shows: "No rule takes the request",
        command: "curl -si -H 'Host: bookinfo.example' {url}/nothing",
        expects: "404 \"no rule of this host takes the request (NR)\"",
    },
    Trial {
        shows: "Nobody serves the host",
        command: "curl -si -H 'Host: other.example' {url}/",
        expects: "404 \"no virtual host serves this authority (NR)\"",
    },
];

/// Runs the demo until it is told to end.
pub fn run(args: &Args) -> Exit {
    cli::start_log("warn");
    let (listeners, addresses) = match bind(args.upstream_base_port) {
        Ok(bound) => bound,
        Err(error) => return Exit::Environment(error),
    };
    let folder = match Folder::new() {
        Ok(folder) => folder,
        Err(error) => return Exit::Environment(error),
    };
    let options = match options(args, folder.ready_file()) {
        Ok(options) => options,
        Err(error) => return Exit::Internal(error),
    };
    // The upstreams need no end of their own: it is the process's.
    let started = std::thread::Builder::new()
        .name("upstreams".into())
        .spawn(move || serve(listeners));
    if let Err(error) = started {
        return Exit::Environment(format!("a thread for the upstreams cannot be started: {error}"));
    }
    let sources = sources(&addresses);
    let (running, ended) = mpsc::channel::<()>();
    let announcer = std::thread::spawn(move || announce(&folder, &ended, &addresses));
    let exit = run::run_sources(options, &sources);
    drop(running);
    // Its failure would be a defect that is on standard error already.
    let _announced = announcer.join();
    match exit {
        // The gateway speaks of its own flags.
        Exit::Environment(text) => Exit::Environment(text.replace("--port-map", "--port")),
        exit => exit,
    }
}

fn options(args: &Args, ready_file: PathBuf) -> Result<run::Options, String> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(run::Options {
        paths: Vec::new(),
        compile: isthmus_config::Options::default(),
        mesh_config: None,
        settings: None,
        credentials: None,
        state_dir: None,
        trusted: None,
        dns_servers: None,
        egress_allowed: None,
        shards: Some(executor::granted_parallelism().min(SHARDS_MAX)),
        access_log: if args.access_log {
            Target::Stdout
        } else {
            Target::Off
        },
        access_log_format: Format::Text,
        control: control::Options {
            admin: control::AdminAddress::Tcp(loopback),
            admin_tls: None,
            status: loopback,
            metrics: loopback,
            bind_address: Ipv4Addr::LOCALHOST.into(),
            port_map: format!("{GATEWAY_PORT}={}", args.port).parse()?,
            drain_delay: Duration::ZERO,
            drain_timeout: DRAIN_TIMEOUT,
            ready_file: Some(ready_file),
        },
    })
}

/// The example with the real ports of the upstreams.
fn sources(upstreams: &[SocketAddr]) -> Vec<Source> {
    let example_ports = || (EXAMPLE_PORT..).zip(upstreams);
    let put = |text: &str| {
        // By way of marks, because one upstream's real port may be another's in the example.
        let marked = example_ports().fold(text.to_owned(), |text, (port, _)| {
            text.replace(&port.to_string(), &format!("<{port}>"))
        });
        example_ports().fold(marked, |text, (port, address)| {
            text.replace(&format!("<{port}>"), &address.port().to_string())
        })
    };
    let source = |(name, text): (&str, &str)| Source {
        name: name.to_owned(),
        text: put(text).into(),
    };
    RESOURCES.into_iter().map(source).collect()
}

/// An upstream of the demo.
#[derive(Debug, Clone, Copy)]
struct Upstream {
    service: &'static str,
    version: &'static str,
}

impl Upstream {
    const fn new(service: &'static str, version: &'static str) -> Self {
        Self { service, version }
    }
}

/// What an upstream answers: who it is and what it was sent, so that a client sees what the gateway did.
#[derive(Serialize)]
struct Got<'a> {
    service: &'a str,
    version: &'a str,
    method: &'a str,
    path: &'a str,
    host: &'a str,
    /// Every field whose name begins with `x-`: that is where the gateway writes.
    headers: BTreeMap<&'a str, String>,
}

/// Opens the upstreams' ports.
fn bind(base: Option<u16>) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), String> {
    let mut bound = (Vec::new(), Vec::new());
    for (at, upstream) in (0u16..).zip(UPSTREAMS) {
        let port = base.map_or(0, |base| base.saturating_add(at));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let open = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = open().map_err(|error: std::io::Error| {
            let Upstream { service, version } = upstream;
            format!(
                "the port of the upstream {service} {version} cannot be opened at {address}: {error}; give other \
                 ports with --upstream-base-port, or leave it out for free ones"
            )
        })?;
        bound.0.push(listener);
        bound.1.push(address);
    }
    Ok(bound)
}

/// Serves the upstreams: with a runtime of their own, so that a request passes real sockets between real threads.
fn serve(listeners: Vec<TcpListener>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the upstreams have no runtime"),
    };
    runtime.block_on(async {
        let mut serving = JoinSet::new();
        for (listener, upstream) in listeners.into_iter().zip(UPSTREAMS) {
            serving.spawn(async move {
                let router = Router::new().fallback(answer).with_state(upstream);
                axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
            });
        }
        while let Some(ended) = serving.join_next().await {
            tracing::error!(?ended, "an upstream ended");
        }
    });
}

/// Answers any request; `?delay=2s` makes it slow.
async fn answer(State(upstream): State<Upstream>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if let Some(delay) = delay(&uri) {
        tokio::time::sleep(delay).await;
    }
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let got = Got {
        service: upstream.service,
        version: upstream.version,
        method: method.as_str(),
        path: uri.path_and_query().map_or("", |path| path.as_str()),
        host: &headers.get(header::HOST).map(text).unwrap_or_default(),
        headers: headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-"))
            .map(|(name, value)| (name.as_str(), text(value)))
            .collect(),
    };
    // A struct of texts is always JSON.
    let mut body = serde_json::to_string(&got).unwrap_or_default();
    body.push('\n');
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn delay(uri: &Uri) -> Option<Duration> {
    let mut parameters = uri.query()?.split('&');
    let written = parameters.find_map(|parameter| parameter.strip_prefix("delay="))?;
    let delay = humantime::parse_duration(written).ok()?;
    Some(delay.min(DELAY_MAX))
}

/// A folder that only this user can write to, gone when dropped: the gateway tells its addresses by a file.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, String> {
        let (parent, process) = (std::env::temp_dir(), std::process::id());
        // A process that was killed leaves its folder, and its number is given out again some day.
        for attempt in 0..100 {
            let path = parent.join(format!("isthmus-demo-{process}-{attempt}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(format!("{} cannot be made: {error}; set TMPDIR", path.display()));
                }
            }
        }
        let parent = parent.display();
        Err(format!(
            "{parent} is full of demos that were killed: remove isthmus-demo-*"
        ))
    }

    fn ready_file(&self) -> PathBuf {
        self.0.join("ready.json")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed from a folder for passing things is not worth a word.
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

/// Prints what to try as soon as the gateway serves, or nothing if it ends before.
fn announce(folder: &Folder, ended: &mpsc::Receiver<()>, upstreams: &[SocketAddr]) {
    let path = folder.ready_file();
    while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        if let Some(serving) = Serving::read(&path) {
            return cli::print(&serving.text(upstreams));
        }
    }
}

/// Where the gateway serves.
struct Serving {
    gateway: String,
    admin: String,
    status: String,
    metrics: String,
}

impl Serving {
    /// Reads the ready file, which is there as a whole or not at all.
    fn read(path: &Path) -> Option<Self> {
        let ready: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self {
            gateway: text(&ready["listeners"][0]["address"])?,
            admin: text(&ready["admin"])?,
            status: text(&ready["status"])?,
            metrics: text(&ready["metrics"])?,
        })
    }

    fn text(&self, upstreams: &[SocketAddr]) -> String {
        let Self {
            gateway,
            admin,
            status,
            metrics,
        } = self;
        let named: Vec<String> = UPSTREAMS
            .iter()
            .zip(upstreams)
            .map(|(Upstream { service, version }, address)| {
                format!("{service} {version} :{}", address.port())
            })
            .collect();
        let named: Vec<String> = named.chunks(3).map(|line| line.join(", ")).collect();
        let mut text = format!(
            "Isthmus executes the Istio resources of a book shop, in front of six upstreams in this process.\n\
             \n  gateway    http://{gateway}\
             \n  admin      http://{admin}/listeners  /clusters  /config_dump\
             \n  metrics    http://{metrics}/stats/prometheus\
             \n  health     http://{status}/healthz/ready\
             \n  resources  ops/examples/bookinfo, compiled in\
             \n  upstreams  {}\n\
             \nTry these in another terminal. Behind `->` is what to expect: the status, the service that answers, what\
             \nit `got` (services answer with what they were sent), \"words\" of the body, a `field: value` of the head.\n",
            named.join(",\n             ")
        );
        let width = TRIALS.iter().map(|trial| trial.shows.len()).max().unwrap_or(0);
        for (
            number,
            Trial {
                shows,
                command,
                expects,
            },
        ) in (1..).zip(&TRIALS)
        {
            let command = command.replace("{url}", &format!("http://{gateway}"));
            // Writing to a String cannot fail.
            let _infallible = write!(
                text,
                "\n{number:>3}. {shows:width$}  -> {expects}\n     {command}\n"
            );
        }
        text.push_str("\nCtrl-C ends it.\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/examples/bookinfo")
    }

    #[test]
    fn the_demo_has_every_file_of_its_folder() {
        let entries = std::fs::read_dir(folder()).unwrap();
        let mut there: Vec<String> = entries
            .map(|entry| format!("ops/examples/bookinfo/{}", entry.unwrap().file_name().display()))
            .collect();
        there.sort();
        assert_eq!(there, RESOURCES.map(|(name, _)| name));
    }

    #[test]
    fn every_upstream_has_one_port_in_the_example_and_gets_its_own_even_if_that_is_another_ones() {
        let example = RESOURCES.map(|(_, text)| text).concat();
        let shifted: Vec<SocketAddr> = (1..=6)
            .map(|at| SocketAddr::from((Ipv4Addr::LOCALHOST, EXAMPLE_PORT + at)))
            .collect();
        let put: String = sources(&shifted).iter().map(|source| &*source.text).collect();
        for at in 0..6 {
            let (before, after) = (EXAMPLE_PORT + at, EXAMPLE_PORT + at + 1);
            assert_eq!(example.matches(&format!("http: {before}")).count(), 1, "{before}");
            assert_eq!(put.matches(&format!("http: {after}")).count(), 1, "{after}");
        }
        assert!(!put.contains('<'));
    }

    #[test]
    fn the_example_compiles_without_a_word() {
        let addresses: Vec<SocketAddr> = (1..=6)
            .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .collect();
        for defaults in [isthmus_config::Defaults::Seed, isthmus_config::Defaults::Current] {
            let options = isthmus_config::Options {
                defaults,
                ..Default::default()
            };
            let compiled = isthmus_config::compile(&sources(&addresses), &options);
            assert_eq!(compiled.diagnostics, []);
            assert!(compiled.passed_over.is_empty());
            let ports: Vec<u16> = compiled
                .snapshot
                .listeners
                .iter()
                .map(|listener| listener.key.port)
                .collect();
            assert_eq!(ports, [GATEWAY_PORT]);
        }
    }

    #[test]
    fn a_delay_is_taken_from_the_query_and_cut() {
        let delay = |uri: &'static str| delay(&Uri::from_static(uri));
        assert_eq!(delay("/a?b=1&delay=20ms"), Some(Duration::from_millis(20)));
        assert_eq!(delay("/?delay=1day"), Some(DELAY_MAX));
        assert_eq!(delay("/?delay=soon"), None);
        assert_eq!(delay("/"), None);
    }

    #[test]
    fn the_folder_goes_with_its_owner() {
        let folder = Folder::new().unwrap();
        let path = folder.0.clone();
        std::fs::write(folder.ready_file(), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
