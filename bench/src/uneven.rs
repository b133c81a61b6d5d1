//! What balancers make of ten upstreams of which one is slow: latencies of the gateway's beside HAProxy's and Envoy's.
//!
//! An upstream works on a few requests at a time and lets the others wait, each for a time drawn from an exponential
//! distribution; the tenth takes [`SLOWER`] times as long as the others. Requests are due at [`LOAD`] of what all ten
//! can do, whether or not answers come. A balancer that gives the slow one an equal share fills its queue.

use crate::channel::Dialer;
use crate::load::{Load, Pace};
use crate::measure::{Process, Spread};
use crate::proxy::{READY, envoy_with, gateway_command, listening};
use anyhow::{Context, Result, ensure};
use isthmus_core::random::Random;
use isthmus_tests::port::HeldPort;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore};

/// Upstreams in all.
const UPSTREAMS: usize = 10;
/// Requests that an upstream works on at a time.
const WORKERS: usize = 4;
/// How long a fast upstream works on a request, on average.
const SERVICE: Duration = Duration::from_millis(10);
/// How much longer the slow one does.
const SLOWER: u32 = 3;
/// Requests that are due, as a part of those that all upstreams together can answer.
const LOAD: f64 = 0.7;
/// Connections of clients: more than ever wait, so that what waits does so in upstreams.
const CONNECTIONS: usize = 1024;
const ROUNDS: usize = 5;
/// How long each balancer is loaded in a round: what a slow upstream has queued by then is answered in the time that the
/// load waits for the last answers.
const TIME: Duration = Duration::from_secs(3);
/// Of how many parts a drawn time's chance is made.
const PARTS: u64 = 1 << 30;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: up.example\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A balancer of a proxy.
struct Contender {
    proxy: &'static str,
    /// As the proxy spells it.
    balancer: &'static str,
}

const CONTENDERS: &[Contender] = &[
    Contender {
        proxy: "isthmus",
        balancer: "ROUND_ROBIN",
    },
    Contender {
        proxy: "isthmus",
        balancer: "LEAST_REQUEST",
    },
    Contender {
        proxy: "isthmus",
        balancer: "PEAK_EWMA",
    },
    Contender {
        proxy: "isthmus",
        balancer: "PREQUAL",
    },
    Contender {
        proxy: "haproxy",
        balancer: "roundrobin",
    },
    Contender {
        proxy: "haproxy",
        balancer: "leastconn",
    },
    Contender {
        proxy: "envoy",
        balancer: "ROUND_ROBIN",
    },
    Contender {
        proxy: "envoy",
        balancer: "LEAST_REQUEST",
    },
];

/// Measures all of them, round by round, and writes `uneven.md`.
pub(crate) fn measure(gateway: &Path, out: &Path, smoke: bool) -> Result<()> {
    let (rounds, time) = if smoke {
        (1, Duration::from_millis(300))
    } else {
        (ROUNDS, TIME)
    };
    let upstreams = upstreams()?;
    let each = WORKERS as f64 / SERVICE.as_secs_f64();
    let all = each * (UPSTREAMS - 1) as f64 + each / f64::from(SLOWER);
    let rate = (LOAD * all) as u32;
    let folder = tempfile::tempdir()?;
    let mut running = Vec::new();
    for contender in CONTENDERS {
        let folder = folder
            .path()
            .join(format!("{}-{}", contender.proxy, contender.balancer));
        fs::create_dir_all(&folder)?;
        let started = contender.start(gateway, &upstreams, &folder);
        running.push(started.with_context(|| format!("{} {}", contender.proxy, contender.balancer))?);
    }
    let mut felt = vec![(Vec::new(), Vec::new()); CONTENDERS.len()];
    for round in 0..rounds {
        for turn in 0..CONTENDERS.len() {
            let at = (round + turn) % CONTENDERS.len();
            let (Some(proxy), Some(figures), Some(contender)) =
                (running.get(at), felt.get_mut(at), CONTENDERS.get(at))
            else {
                continue;
            };
            let load = Load {
                address: proxy.address,
                request: REQUEST.to_vec(),
                dialer: Dialer::default(),
                fresh: false,
                connections: CONNECTIONS,
                pace: Pace::Open(rate),
                time,
            };
            let outcome = load.run()?;
            let errors = &outcome.errors;
            ensure!(
                errors.is_empty(),
                "{} {}: {errors:?}",
                contender.proxy,
                contender.balancer
            );
            figures
                .0
                .push(outcome.latency.value_at_quantile(0.5) as f64 / 1e3);
            figures
                .1
                .push(outcome.latency.value_at_quantile(0.99) as f64 / 1e3);
        }
    }
    let mut table = format!(
        "{rate} requests a second; medians of {rounds} rounds, and the least and the most.\n\n| proxy | balancer | p50, ms | p99, ms |\n|---|---|---|---|\n"
    );
    let show = |figures: &Vec<f64>| {
        let spread = Spread::of(figures.iter().copied());
        format!("{:.0} [{:.0}..{:.0}]", spread.median, spread.low, spread.high)
    };
    for (contender, (half, most)) in CONTENDERS.iter().zip(&felt) {
        let (proxy, balancer) = (contender.proxy, contender.balancer);
        writeln!(
            table,
            "| {proxy} | {balancer} | {} | {} |",
            show(half),
            show(most)
        )?;
    }
    fs::create_dir_all(out)?;
    fs::write(out.join("uneven.md"), &table)?;
    println!("{table}");
    Ok(())
}

/// Starts the upstreams on a thread of their own, for as long as the process lives.
fn upstreams() -> Result<Vec<SocketAddr>> {
    let sockets: Vec<std::net::TcpListener> = (0..UPSTREAMS)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let addresses = sockets
        .iter()
        .map(std::net::TcpListener::local_addr)
        .collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let mut serving = tokio::task::JoinSet::new();
            for (at, socket) in sockets.into_iter().enumerate() {
                let mean = if at + 1 == UPSTREAMS {
                    SERVICE * SLOWER
                } else {
                    SERVICE
                };
                serving.spawn(serve(socket, mean, at as u64));
            }
            while serving.join_next().await.is_some() {}
        });
    });
    Ok(addresses)
}

async fn serve(socket: std::net::TcpListener, mean: Duration, seed: u64) -> Result<()> {
    socket.set_nonblocking(true)?;
    let socket = tokio::net::TcpListener::from_std(socket)?;
    let workers = Arc::new(Semaphore::new(WORKERS));
    let random = Arc::new(Mutex::new(Random::from_seed(seed)));
    loop {
        let (client, _) = socket.accept().await?;
        client.set_nodelay(true)?;
        tokio::spawn(converse(client, mean, Arc::clone(&workers), Arc::clone(&random)));
    }
}

/// Answers one connection's requests, one after the other.
async fn converse(
    mut client: tokio::net::TcpStream,
    mean: Duration,
    workers: Arc<Semaphore>,
    random: Arc<Mutex<Random>>,
) -> Result<()> {
    let mut head = Vec::with_capacity(1024);
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            if client.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        head.clear();
        let worker = workers.acquire().await?;
        // Uniform in (0, 1].
        let part = (random.lock().await.below(PARTS) + 1) as f64 / PARTS as f64;
        let drawn = -part.ln();
        tokio::time::sleep(mean.mul_f64(drawn)).await;
        drop(worker);
        client.write_all(ANSWER).await?;
    }
}

/// A proxy that runs.
struct Running {
    address: SocketAddr,
    _process: Process,
    _port: HeldPort,
}

impl Contender {
    fn start(&self, gateway: &Path, upstreams: &[SocketAddr], folder: &Path) -> Result<Running> {
        let port = HeldPort::take();
        let listen = port.address();
        let command = match self.proxy {
            "isthmus" => self.isthmus(gateway, upstreams, folder),
            "haproxy" => self.haproxy(listen, upstreams, folder),
            _ => self.envoy(listen, upstreams, folder),
        }?;
        let mut process = Process::start(command, 0, folder)?;
        let ready = folder.join(READY);
        let address = process.wait_for(|| match self.proxy {
            "isthmus" => listening(&fs::read(&ready).ok()?),
            _ => TcpStream::connect(listen).ok().map(|_| listen),
        })?;
        Ok(Running {
            address,
            _process: process,
            _port: port,
        })
    }

    fn isthmus(&self, gateway: &Path, upstreams: &[SocketAddr], folder: &Path) -> Result<Command> {
        let mut endpoints = String::new();
        for upstream in upstreams {
            writeln!(
                endpoints,
                "  - {{address: {}, ports: {{http: {}}}}}",
                upstream.ip(),
                upstream.port()
            )?;
        }
        // The first two are Istio's, the others our own.
        let (annotations, policy) = match self.balancer {
            "ROUND_ROBIN" | "LEAST_REQUEST" => (
                String::new(),
                format!(", trafficPolicy: {{loadBalancer: {{simple: {}}}}}", self.balancer),
            ),
            own => (
                format!(", annotations: {{isthmus.dev/balancer: {own}}}"),
                String::new(),
            ),
        };
        let text = format!(
            r#"apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec: {{servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["*"]}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v, namespace: default}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{{route: [{{destination: {{host: up.example}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: up, namespace: default{annotations}}}
spec: {{host: up.example{policy}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: up, namespace: default}}
spec:
  hosts: [up.example]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints:
{endpoints}"#
        );
        let resources = folder.join("resources");
        fs::create_dir_all(&resources)?;
        fs::write(resources.join("all.yaml"), text)?;
        let mut command = gateway_command(gateway, &resources, &folder.join(READY));
        command.args(["--access-log", "off"]);
        Ok(command)
    }

    fn haproxy(&self, listen: SocketAddr, upstreams: &[SocketAddr], folder: &Path) -> Result<Command> {
        let mut text = format!(
            "global\n  maxconn 9000\n  nbthread 1\ndefaults\n  mode http\n  timeout client 600s\n  timeout server 600s\n  \
             timeout connect 5s\n  http-reuse always\nfrontend edge\n  bind {listen}\n  default_backend up\nbackend up\n  \
             balance {}\n",
            self.balancer
        );
        for (at, upstream) in upstreams.iter().enumerate() {
            writeln!(text, "  server s{at} {upstream}")?;
        }
        let file = folder.join("haproxy.cfg");
        fs::write(&file, text)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        Ok(command)
    }

    fn envoy(&self, listen: SocketAddr, upstreams: &[SocketAddr], folder: &Path) -> Result<Command> {
        let socket = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
        let endpoints: Vec<Value> = upstreams
            .iter()
            .map(|upstream| json!({"endpoint": {"address": socket(*upstream)}}))
            .collect();
        let many = 1_000_000;
        let configuration = json!({"static_resources": {
            "listeners": [{"name": "edge", "address": socket(listen), "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "edge",
                    "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}
                    ]}]},
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
                    }]
                }
            }]}]}],
            "clusters": [{
                "name": "up", "type": "STATIC", "connect_timeout": "5s", "lb_policy": self.balancer,
                "circuit_breakers": {"thresholds": [{
                    "max_connections": many, "max_pending_requests": many, "max_requests": many, "max_retries": many
                }]},
                "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": endpoints}]}
            }]
        }});
        let file = folder.join("envoy.json");
        fs::write(&file, serde_json::to_vec(&configuration)?)?;
        Ok(envoy_with(&file))
    }
}
