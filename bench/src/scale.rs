//! What a large configuration costs: to start with it, to load one changed document of it, to hold it, and per request.
//!
//! A seeded generator writes VirtualServices of three rules each, on hosts of their own, or ServiceEntries of ten endpoints
//! each, a hundred documents to a file. The gateway is started on them with one shard; then one document is changed, over and
//! over, each time until every shard serves the change. Beside it Envoy is started with an equal static configuration, and
//! requests to the last host are compared with those to a gateway that has one route, in the same rounds.

use crate::channel::Dialer;
use crate::load::{Load, Pace};
use crate::measure::{Cpu, Process, Spread};
use crate::proxy::{READY, envoy_with, sharded_command, upstream};
use crate::scenario::{SCENARIOS, Scenario};
use anyhow::{Context, Result, ensure};
use isthmus_core::random::Random;
use isthmus_tests::client;
use isthmus_tests::port::HeldPort;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Its name among the scenarios.
pub(crate) const KEY: &str = "scale";
const SEED: u64 = 9;
const DOCUMENTS_OF_A_FILE: usize = 100;
const RULES: usize = 3;
const ENDPOINTS_OF_A_SERVICE: usize = 10;
/// Services that the rules of many VirtualServices lead to.
const SERVICES: usize = 10;
/// What may be taken at [`BOUNDED`]: CPU-seconds until it is ready, CPU-seconds of a changed document, bytes.
const BOUNDS: (f64, f64, f64) = (3.0, 0.15, 150e6);
const BOUNDED: Size = Size::VirtualServices(10_000);

/// How large a configuration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    VirtualServices(usize),
    Services(usize),
}

/// About a thousand, ten thousand and a hundred thousand routes and endpoints, and the size that has bounds.
const SIZES: [Size; 7] = [
    Size::VirtualServices(334),
    Size::VirtualServices(3_334),
    BOUNDED,
    Size::VirtualServices(33_334),
    Size::Services(100),
    Size::Services(1_000),
    Size::Services(10_000),
];

impl Size {
    fn services(self) -> usize {
        match self {
            Self::VirtualServices(_) => SERVICES,
            Self::Services(count) => count,
        }
    }

    fn virtual_services(self) -> usize {
        match self {
            Self::VirtualServices(count) => count,
            Self::Services(count) => count,
        }
    }

    /// Endpoints of a service; the last one, which requests go to, has the upstream only.
    fn endpoints(self, service: usize) -> usize {
        match self {
            Self::Services(count) if service + 1 < count => ENDPOINTS_OF_A_SERVICE,
            _ => 1,
        }
    }

    fn title(self) -> String {
        let (virtual_services, services) = (self.virtual_services(), self.services());
        match self {
            Self::VirtualServices(_) => format!(
                "{virtual_services} VirtualServices, {} routes",
                virtual_services * RULES
            ),
            Self::Services(_) => format!(
                "{services} services with {} endpoints and a VirtualService each",
                services * ENDPOINTS_OF_A_SERVICE
            ),
        }
    }
}

/// One rule, the same for all proxies.
struct Rule {
    prefix: String,
    header: Option<String>,
    rewrite: bool,
    service: usize,
}

/// A VirtualService: its host is [`Scenario::host`] of its number, and its last rule takes everything.
fn rules(size: Size, number: usize) -> Vec<Rule> {
    let mut random = Random::from_seed(SEED ^ ((number as u64) << 8));
    let mut below = |limit: usize| random.below(limit as u64) as usize;
    let service = match size {
        Size::VirtualServices(_) => below(SERVICES),
        Size::Services(_) => number,
    };
    let mut rules = Vec::new();
    for at in 1..RULES {
        rules.push(Rule {
            prefix: format!(
                "/{}-{at}/v{}/",
                ["api", "static", "account", "search"][below(4)],
                below(9)
            ),
            header: (below(3) == 0).then(|| format!("tenant-{}", below(1_000))),
            rewrite: below(3) == 0,
            service,
        });
    }
    rules.push(Rule {
        prefix: "/".to_owned(),
        header: None,
        rewrite: false,
        service,
    });
    rules
}

/// `changed` makes a document another one.
fn virtual_service(size: Size, number: usize, changed: usize) -> String {
    let host = Scenario::host(number);
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{number}, namespace: shop}}\nspec:\n  \
         hosts: [{host}]\n  gateways: [edge]\n  http:\n"
    );
    for (at, rule) in rules(size, number).iter().enumerate() {
        let header = rule.header.as_ref().map_or(String::new(), |tenant| {
            format!("\n      headers: {{x-tenant: {{exact: {tenant}}}}}")
        });
        let rewrite = if rule.rewrite {
            "    rewrite: {uri: /}\n"
        } else {
            ""
        };
        let timeout = 10 + if at == 0 { changed } else { 0 };
        let _infallible = write!(
            text,
            "  - name: rule-{at}\n    match:\n    - uri: {{prefix: {}}}{header}\n{rewrite}    timeout: {timeout}s\n    \
             retries: {{attempts: 2, retryOn: 'connect-failure,refused-stream'}}\n    route:\n    - destination: {{host: \
             s{}.shop.example, port: {{number: 80}}}}\n",
            rule.prefix, rule.service
        );
    }
    text
}

fn service_entry(size: Size, number: usize, upstream: SocketAddr, changed: usize) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: s{number}, namespace: shop}}\nspec:\n  \
         hosts: [s{number}.shop.example]\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  location: MESH_INTERNAL\n  \
         resolution: STATIC\n  endpoints:\n"
    );
    for at in 0..size.endpoints(number) {
        let weight = 1 + if at == 0 { changed } else { 0 };
        let _infallible = writeln!(
            text,
            "  - {{address: {}, ports: {{http: {}}}, weight: {weight}, labels: {{instance: i{at}}}}}",
            loopback(at),
            upstream.port()
        );
    }
    text
}

/// The upstream listens at the first; nobody is asked for the others.
fn loopback(at: usize) -> String {
    format!("127.0.0.{}", 1 + at)
}

/// A configuration in files.
struct Written {
    folder: PathBuf,
    size: Size,
    upstream: SocketAddr,
}

impl Written {
    fn new(folder: PathBuf, size: Size, upstream: SocketAddr) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let written = Self {
            folder,
            size,
            upstream,
        };
        fs::write(
            written.folder.join("edge.yaml"),
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop}\nspec: {servers: \
             [{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}]}\n",
        )?;
        for file in 0..size.services().div_ceil(DOCUMENTS_OF_A_FILE) {
            written.write("services", file, size.services(), 0, |number, changed| {
                service_entry(size, number, upstream, changed)
            })?;
        }
        for file in 0..size.virtual_services().div_ceil(DOCUMENTS_OF_A_FILE) {
            written.write("routes", file, size.virtual_services(), 0, |number, changed| {
                virtual_service(size, number, changed)
            })?;
        }
        Ok(written)
    }

    /// Writes a file; its first document is the one that `changed` changes.
    fn write(
        &self,
        kind: &str,
        file: usize,
        count: usize,
        changed: usize,
        one: impl Fn(usize, usize) -> String,
    ) -> Result<()> {
        let first = file * DOCUMENTS_OF_A_FILE;
        let numbers = first..count.min(first + DOCUMENTS_OF_A_FILE);
        let documents = numbers.map(|number| one(number, if number == first { changed } else { 0 }));
        let text = documents.collect::<Vec<_>>().join("---\n");
        let new = self.folder.join("new");
        fs::write(&new, text)?;
        fs::rename(new, self.folder.join(format!("{kind}-{file:04}.yaml")))?;
        Ok(())
    }

    /// Changes one document in the middle.
    fn change(&self, changed: usize) -> Result<()> {
        let (size, upstream) = (self.size, self.upstream);
        let middle = |count: usize| count.div_ceil(DOCUMENTS_OF_A_FILE) / 2;
        match size {
            Size::VirtualServices(count) => {
                self.write("routes", middle(count), count, changed, |number, changed| {
                    virtual_service(size, number, changed)
                })
            }
            Size::Services(count) => {
                self.write("services", middle(count), count, changed, |number, changed| {
                    service_entry(size, number, upstream, changed)
                })
            }
        }
    }

    /// The same as Envoy is told it.
    fn envoy(&self, listen: SocketAddr) -> Value {
        let socket =
            |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
        let hosts = (0..self.size.virtual_services()).map(|number| {
            let host = Scenario::host(number);
            let routes = rules(self.size, number).into_iter().map(|rule| {
                let mut matched = json!({"prefix": rule.prefix});
                if let Some(tenant) = &rule.header {
                    matched["headers"] = json!([{"name": "x-tenant", "string_match": {"exact": tenant}}]);
                }
                let mut action = json!({
                    "cluster": format!("s{}", rule.service), "timeout": "10s",
                    "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2}
                });
                if rule.rewrite {
                    action["prefix_rewrite"] = json!("/");
                }
                json!({"match": matched, "route": action})
            });
            json!({"name": host, "domains": [host], "routes": routes.collect::<Vec<_>>()})
        });
        let hosts: Vec<Value> = hosts.collect();
        let clusters = (0..self.size.services()).map(|number| {
            let endpoints = (0..self.size.endpoints(number))
                .map(|at| json!({"endpoint": {"address": socket(&loopback(at), self.upstream.port())}}));
            json!({
                "name": format!("s{number}"), "type": "STATIC", "connect_timeout": "5s",
                "load_assignment": {
                    "cluster_name": format!("s{number}"),
                    "endpoints": [{"lb_endpoints": endpoints.collect::<Vec<_>>()}]
                }
            })
        });
        let clusters: Vec<Value> = clusters.collect();
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "edge", "use_remote_address": true, "generate_request_id": false,
            "route_config": {"name": "edge", "virtual_hosts": hosts, "validate_clusters": false},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
            }]
        });
        json!({"static_resources": {
            "listeners": [{
                "name": "edge",
                "address": socket(&listen.ip().to_string(), listen.port()),
                "filter_chains": [{"filters": [
                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                ]}]
            }],
            "clusters": clusters
        }})
    }
}

/// A gateway that serves.
struct Gateway {
    process: Process,
    admin: SocketAddr,
    edge: SocketAddr,
}

impl Gateway {
    fn start(gateway: &Path, resources: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let ready = folder.join(READY);
        let mut command = sharded_command(gateway, resources, &ready);
        command.args(["--access-log", "off", "--shards", "1"]);
        let mut process = Process::start(command, 0, folder)?;
        let said: Value = process.wait_for(|| serde_json::from_slice(&fs::read(&ready).ok()?).ok())?;
        let address =
            |value: &Value| -> Result<SocketAddr> { Ok(value.as_str().context("an address")?.parse()?) };
        Ok(Self {
            process,
            admin: address(&said["admin"])?,
            edge: address(&said["listeners"][0]["address"])?,
        })
    }

    /// Has it load its files, and waits until every shard serves what they say. Answers how long it took to publish.
    fn reload(&self, gateway: &Path) -> Result<f64> {
        let reload = Command::new(gateway)
            .args(["reload", "--admin"])
            .arg(self.admin.to_string())
            .stdout(Stdio::null())
            .status()?;
        ensure!(reload.success(), "the gateway does not take a changed document");
        let answer = client::get(self.admin, &self.admin.to_string(), "/configuration");
        let status: Value = serde_json::from_str(answer.text())
            .with_context(|| format!("/configuration answers {}: {}", answer.status, answer.text()))?;
        status["served"]["seconds"]["publish"]
            .as_f64()
            .context("how long it took to publish")
    }
}

/// Envoy with the same configuration; None, loudly, when there is none on this machine.
fn start_envoy(written: &Written, folder: &Path, port: &HeldPort) -> Result<Option<Process>> {
    let there = Command::new("envoy")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("NOT MEASURED: envoy is not on this machine");
        return Ok(None);
    }
    fs::create_dir_all(folder)?;
    let file = folder.join("envoy.json");
    fs::write(&file, serde_json::to_vec(&written.envoy(port.address()))?)?;
    let command = envoy_with(&file);
    let mut process = Process::start(command, 0, folder)?;
    let last = Scenario::host(written.size.virtual_services() - 1);
    // It answers 404 before its routes are there.
    process.wait_for(|| {
        let mut client = client::Client::try_connect(port.address()).ok()?;
        let request = format!("GET / HTTP/1.1\r\nhost: {last}\r\n\r\n");
        client.try_send(request).ok()?;
        let answer = client.try_response(false).ok()?;
        (answer.status == 200).then_some(())
    })?;
    Ok(Some(process))
}

/// CPU-microseconds of a request.
fn per_request(process: &Process, load: &Load) -> Result<f64> {
    let before = process.cpu()?;
    let outcome = load.run()?;
    ensure!(
        outcome.errors.is_empty(),
        "not every answer was right: {:?}",
        outcome.errors
    );
    Ok(process.cpu()?.per_request(before, outcome.answers).total())
}

/// How much is measured.
struct Effort {
    reloads: usize,
    rounds: usize,
    time: Duration,
}

/// One size's row, and what is beyond its bounds.
fn measure_size(
    size: Size,
    gateway: &Path,
    folder: &Path,
    upstream: SocketAddr,
    effort: &Effort,
) -> Result<(String, Vec<String>)> {
    let seconds = |cpu: Cpu| cpu.total() / 1e6;
    let written = Written::new(folder.join("resources"), size, upstream)?;
    let many = Gateway::start(gateway, &written.folder, &folder.join("many"))?;
    let cold = seconds(many.process.cpu()?);
    // What the first load of a process brings with it is not that of the others.
    written.change(1)?;
    many.reload(gateway)?;
    let before = seconds(many.process.cpu()?);
    let mut published = Vec::new();
    for changed in 0..effort.reloads {
        written.change(2 + changed)?;
        published.push(many.reload(gateway)?);
    }
    let reload = (seconds(many.process.cpu()?) - before) / effort.reloads as f64;
    let resident = many.process.resident()? as f64 * 1024.0;

    let one_size = Size::VirtualServices(1);
    let single = Written::new(folder.join("one"), one_size, upstream)?;
    let one = Gateway::start(gateway, &single.folder, &folder.join("single"))?;
    let port = HeldPort::take();
    let envoy = start_envoy(&written, &folder.join("envoy"), &port)?;
    let envoy_cold = envoy
        .as_ref()
        .map(|envoy| Ok::<_, anyhow::Error>(seconds(envoy.cpu()?)));
    let envoy_cold = envoy_cold.transpose()?;
    let scenario = SCENARIOS.first().context("a scenario")?;
    let load = |address: SocketAddr, host: usize| -> Result<Load> {
        let host = Scenario::host(host);
        Ok(Load {
            address,
            request: format!("GET / HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n")
                .into_bytes(),
            dialer: Dialer::new(scenario)?,
            fresh: false,
            connections: 16,
            pace: Pace::Closed,
            time: effort.time,
        })
    };
    let last = size.virtual_services() - 1;
    let (to_many, to_one, to_envoy) = (
        load(many.edge, last)?,
        load(one.edge, 0)?,
        load(port.address(), last)?,
    );
    let (mut ratios, mut beside_envoy) = (Vec::new(), Vec::new());
    for round in 0..=effort.rounds {
        let (a, b) = (
            per_request(&many.process, &to_many)?,
            per_request(&one.process, &to_one)?,
        );
        let other = envoy
            .as_ref()
            .map(|envoy| per_request(envoy, &to_envoy))
            .transpose()?;
        // Connections to upstreams are opened first.
        if round > 0 {
            ratios.push(a / b);
            beside_envoy.extend(other.map(|other| a / other));
        }
    }
    let (ratios, published) = (Spread::of(ratios), Spread::of(published));
    let of_envoy = match (&envoy, envoy_cold) {
        (Some(envoy), Some(cold)) => format!(
            "{cold:.2} s | {:.0} MB | {:.2}",
            envoy.resident()? as f64 * 1024.0 / 1e6,
            Spread::of(beside_envoy).median
        ),
        _ => "not there | not there | not there".to_owned(),
    };
    let row = format!(
        "| {} | {cold:.2} s | {:.0} ms | {:.1} ms | {:.0} MB | {:.2} [{:.2}..{:.2}] | {of_envoy} |",
        size.title(),
        reload * 1e3,
        published.median * 1e3,
        resident / 1e6,
        ratios.median,
        ratios.low,
        ratios.high
    );
    let mut beyond = Vec::new();
    if size == BOUNDED {
        let (cold_max, reload_max, resident_max) = BOUNDS;
        for (what, found, limit) in [
            ("CPU-seconds until it is ready", cold, cold_max),
            ("CPU-seconds of a changed document", reload, reload_max),
            ("bytes resident", resident, resident_max),
        ] {
            if found > limit {
                beyond.push(format!(
                    "{}: {found} {what}, and {limit} are allowed",
                    size.title()
                ));
            }
        }
    }
    Ok((row, beyond))
}

/// Measures, and writes `scale.md`.
pub(crate) fn measure(gateway: &Path, out: &Path, smoke: bool) -> Result<()> {
    let (sizes, effort) = if smoke {
        let short = Effort {
            reloads: 2,
            rounds: 1,
            time: Duration::from_millis(200),
        };
        ([SIZES[0], SIZES[4]].to_vec(), short)
    } else {
        let long = Effort {
            reloads: 20,
            rounds: 7,
            time: Duration::from_secs(1),
        };
        (SIZES.to_vec(), long)
    };
    let folder = tempfile::tempdir()?;
    let origin = upstream(&folder.path().join("upstream"), &folder.path().join("keys"))?;
    let mut text = "| | cold start, CPU | one changed document, CPU | published in | resident | a request beside one route | Envoy: cold start, CPU | resident | a request beside Envoy's |\n|---|---|---|---|---|---|---|---|---|\n".to_owned();
    let mut beyond = Vec::new();
    for (number, size) in sizes.into_iter().enumerate() {
        eprintln!("scale: {}", size.title());
        let own = folder.path().join(number.to_string());
        fs::create_dir_all(&own)?;
        let (row, more) =
            measure_size(size, gateway, &own, origin.plain(), &effort).with_context(|| size.title())?;
        writeln!(text, "{row}")?;
        beyond.extend(more);
    }
    fs::create_dir_all(out)?;
    fs::write(out.join("scale.md"), &text)?;
    println!("{text}");
    ensure!(beyond.is_empty(), "{}", beyond.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_same_for_the_same_seed_and_has_three_rules() {
        for size in SIZES {
            let text = virtual_service(size, 5, 0);
            assert_eq!(text, virtual_service(size, 5, 0));
            assert_ne!(text, virtual_service(size, 5, 1));
            assert_eq!(text.matches("  - name: rule-").count(), RULES);
        }
        let address = "127.0.0.1:80".parse().unwrap();
        let entry = service_entry(Size::Services(2), 0, address, 0);
        assert_eq!(entry.matches("address:").count(), ENDPOINTS_OF_A_SERVICE);
    }
}
