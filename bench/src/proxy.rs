//! The table of proxies: each with a fair, tuned configuration for every scenario.
//!
//! Every proxy is one process with one worker, pinned to one core. All of them keep connections to the upstream open,
//! add `x-forwarded-for`, and write an access log only where the scenario says so. What each does besides by default
//! (request ids, `server` and `date` fields, statistics) is left as it comes.

use crate::channel::NAME;
use crate::measure::Process;
use crate::scenario::{Key, Routes, Scenario, Tls};
use anyhow::{Context, Result};
use isthmus_tests::cert::Authority;
use isthmus_tests::port::HeldPort;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The gateway's ready file, in its folder.
pub(crate) const READY: &str = "ready.json";
/// The certificate of the authority of the upstream's, among the keys.
const UPSTREAM_AUTHORITY: &str = "upstream.pem";

/// Where things are.
#[derive(Debug)]
pub(crate) struct Setup<'s> {
    /// What is measured.
    pub(crate) scenario: &'s Scenario,
    /// Where the upstream listens.
    pub(crate) upstream: SocketAddr,
    /// Where it speaks HTTP/2.
    pub(crate) http2_upstream: SocketAddr,
    /// A folder of the proxy's own.
    pub(crate) folder: PathBuf,
    /// Where the proxy shall listen.
    pub(crate) listen: SocketAddr,
    /// The gateway's binary.
    pub(crate) gateway: &'s Path,
}

/// A proxy that can be measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proxy {
    /// What a reader knows it by.
    pub(crate) name: &'static str,
    /// Whether it has a part in a scenario.
    pub(crate) takes: fn(&Scenario) -> bool,
    /// Writes its configuration, and answers how it is started.
    pub(crate) launch: fn(&Setup<'_>) -> Result<Command>,
    /// What tells its version; the first line that has a digit counts.
    pub(crate) version: &'static [&'static str],
    /// Whether it listens on a port that is held for it by a socket with SO_REUSEPORT.
    shares_port: bool,
}

/// All of them; ratios are to the second.
pub(crate) const PROXIES: &[Proxy] = &[
    Proxy {
        name: "isthmus",
        takes: |_| true,
        launch: isthmus,
        version: &["version"],
        shares_port: true,
    },
    Proxy {
        name: "haproxy",
        takes: |_| true,
        launch: |setup| haproxy(setup, false),
        version: &["haproxy", "-v"],
        shares_port: true,
    },
    Proxy {
        name: "haproxy-splice",
        takes: |scenario| scenario.bulk && scenario.tls == Tls::None,
        launch: |setup| haproxy(setup, true),
        version: &["haproxy", "-v"],
        shares_port: true,
    },
    // What many routes cost beside one, in the same rounds.
    Proxy {
        name: "isthmus-one-route",
        takes: |scenario| scenario.routes != Routes::One && !scenario.features,
        launch: |setup| isthmus_with(setup, Routes::One, false),
        version: &["version"],
        shares_port: true,
    },
    Proxy {
        name: "nginx",
        // Debian's passes TLS through with a module of its own package; upstreams it speaks to in HTTP/1.1 only.
        takes: |scenario| scenario.tls != Tls::Pass && !scenario.is_http2_upstream(),
        launch: nginx,
        version: &["nginx", "-v"],
        shares_port: true,
    },
    // What HTTP/2 to the upstream saves, in the same rounds.
    Proxy {
        name: "isthmus-to-http1",
        takes: Scenario::is_http2_upstream,
        launch: |setup| isthmus_with(setup, setup.scenario.routes, false),
        version: &["version"],
        shares_port: true,
    },
    Proxy {
        name: "nghttpx",
        takes: |scenario| scenario.http2.is_some(),
        launch: nghttpx,
        version: &["nghttpx", "--version"],
        shares_port: false,
    },
    Proxy {
        name: "h2o",
        // It speaks HTTP/1.1 to upstreams.
        takes: |scenario| scenario.http2.is_some() && !scenario.is_http2_upstream(),
        launch: h2o,
        version: &["h2o", "--version"],
        shares_port: false,
    },
    Proxy {
        name: "envoy",
        takes: |_| true,
        launch: envoy,
        version: &["envoy", "--version"],
        shares_port: true,
    },
];

/// A proxy that runs.
#[derive(Debug)]
pub(crate) struct Running {
    /// Which.
    pub(crate) proxy: Proxy,
    /// The process.
    pub(crate) process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    folder: PathBuf,
    _port: Option<HeldPort>,
}

impl Running {
    /// Where the gateway serves its metrics.
    pub(crate) fn metrics(&self) -> Option<SocketAddr> {
        let ready: Value = serde_json::from_slice(&fs::read(self.folder.join(READY)).ok()?).ok()?;
        ready["metrics"].as_str()?.parse().ok()
    }
}

impl Proxy {
    /// Starts it on a core of its own, and waits until it listens.
    pub(crate) fn start(
        self,
        scenario: &Scenario,
        (upstream, http2_upstream): (SocketAddr, SocketAddr),
        folder: &Path,
        gateway: &Path,
    ) -> Result<Running> {
        let port = HeldPort::take();
        let setup = Setup {
            scenario,
            upstream,
            http2_upstream,
            folder: folder.join(self.name),
            listen: port.address(),
            gateway,
        };
        fs::create_dir_all(&setup.folder)?;
        let command = (self.launch)(&setup)?;
        let port = self.shares_port.then_some(port);
        let mut process = Process::start(command, 0, &setup.folder)
            .with_context(|| format!("{} cannot be started", self.name))?;
        let ready = setup.folder.join(READY);
        // Who takes a port from the kernel says which; the others are told.
        let address = process
            .wait_for(|| match fs::read(&ready) {
                Ok(text) => listening(&text),
                Err(_) => TcpStream::connect(setup.listen).ok().map(|_| setup.listen),
            })
            .with_context(|| format!("{} for scenario {}", self.name, scenario.key))?;
        Ok(Running {
            proxy: self,
            process,
            address,
            folder: setup.folder,
            _port: port,
        })
    }

    /// Its version, as it tells it.
    pub(crate) fn version(&self, gateway: &Path) -> String {
        let (program, arguments) = match self.version.split_first() {
            Some((program, arguments)) if !arguments.is_empty() => (PathBuf::from(program), arguments),
            _ => (gateway.to_owned(), self.version),
        };
        let Ok(output) = Command::new(program).args(arguments).output() else {
            return "unknown".to_owned();
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text
            .lines()
            .find(|line| line.contains(|c: char| c.is_ascii_digit()));
        line.unwrap_or("unknown").trim().to_owned()
    }
}

/// The upstream of all: an nginx on the other core.
#[derive(Debug)]
pub(crate) struct Origin {
    _process: Process,
    plain: HeldPort,
    http2: HeldPort,
    secured: HeldPort,
}

impl Origin {
    /// Where it speaks HTTP/1.1.
    pub(crate) fn plain(&self) -> SocketAddr {
        self.plain.address()
    }

    /// Where it speaks HTTP/2, in cleartext.
    pub(crate) fn http2(&self) -> SocketAddr {
        self.http2.address()
    }

    /// Where it speaks HTTP/1.1 over TLS, with a certificate for [`NAME`].
    pub(crate) fn secured(&self) -> SocketAddr {
        self.secured.address()
    }
}

/// Starts it. The authority that has signed its certificate is left among the `keys`.
pub(crate) fn upstream(folder: &Path, keys: &Path) -> Result<Origin> {
    let (plain, http2, secured) = (HeldPort::take(), HeldPort::take(), HeldPort::take());
    let (address, second, third) = (plain.address(), http2.address(), secured.address());
    let authority = Authority::new();
    let leaf = authority.server(&[NAME]);
    fs::create_dir_all(keys)?;
    fs::copy(authority.certificate(), keys.join(UPSTREAM_AUTHORITY))?;
    let (certificate, key) = (leaf.certificate.display(), leaf.key.display());
    let at = folder.display();
    fs::create_dir_all(folder)?;
    fs::write(folder.join("mib"), vec![b'x'; 1 << 20])?;
    fs::write(
        folder.join("nginx.conf"),
        format!(
            r#"daemon off; master_process off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/error.log;
events {{ worker_connections 16384; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; keepalive_timeout 600s;
    client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
    open_file_cache max=16; default_type text/plain;
    server {{
        listen {address} reuseport backlog=16384;
        listen {second} http2 reuseport backlog=16384;
        listen {third} ssl reuseport backlog=16384;
        ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;
        http2_max_concurrent_streams 256;
        location ~ mib$ {{ root {at}; try_files /mib =404; }}
        location / {{ return 200 "forty-eight bytes, which is what a tiny body is.\n"; }}
    }}
}}
"#
        ),
    )?;
    let mut command = Command::new("nginx");
    command
        .arg("-e")
        .arg(folder.join("error.log"))
        .arg("-p")
        .arg(folder)
        .args(["-c", "nginx.conf"]);
    let mut process = Process::start(command, 1, folder)?;
    process.wait_for(|| TcpStream::connect(address).ok())?;
    Ok(Origin {
        _process: process,
        plain,
        http2,
        secured,
    })
}

/// The folder of keys, beside those of the proxies.
fn key_folder(setup: &Setup<'_>) -> PathBuf {
    setup.folder.join("../keys")
}

/// The files of a key, and one with both in it.
fn key_files(setup: &Setup<'_>, key: Key) -> [PathBuf; 3] {
    let name = match key {
        Key::Ecdsa => "ecdsa",
        Key::Rsa => "rsa",
    };
    ["crt", "key", "pem"].map(|ending| key_folder(setup).join(format!("{name}.{ending}")))
}

/// The authority of the upstream's certificate, where it is spoken to over TLS.
fn upstream_authority(setup: &Setup<'_>) -> Option<PathBuf> {
    (setup.scenario.tls == Tls::Originated).then(|| key_folder(setup).join(UPSTREAM_AUTHORITY))
}

/// Makes a certificate of each kind of key, signed by itself: the load verifies nothing.
pub(crate) fn keys(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (name, kind) in [
        ("ecdsa", &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..]),
        ("rsa", &["rsa:2048"][..]),
    ] {
        let [certificate, key, both] =
            ["crt", "key", "pem"].map(|ending| folder.join(format!("{name}.{ending}")));
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-nodes",
                "-days",
                "7",
                "-subj",
                "/CN=bench.example.com",
            ])
            .args(["-addext", "subjectAltName=DNS:*.example.com", "-newkey"])
            .args(kind)
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .context("openssl")?;
        anyhow::ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = fs::read_to_string(&certificate)? + &fs::read_to_string(&key)?;
        fs::write(both, text)?;
    }
    Ok(())
}

/// An upstream that answers each request with 1 MiB and looks at nothing but where requests end: what is passed
/// through need not be TLS behind its hello. It serves as long as the process lives.
pub(crate) fn sink() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1 << 20).into_bytes();
        answer.resize(answer.len() + (1 << 20), b'x');
        let answer = Arc::new(answer);
        for client in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || answer_all(client, &answer));
        }
    });
    Ok(address)
}

fn answer_all(mut client: TcpStream, answer: &[u8]) {
    let mut buffer = [0; 4096];
    let mut end = [0; 4];
    while let Ok(read) = client.read(&mut buffer)
        && read > 0
    {
        for byte in buffer.iter().take(read) {
            end.rotate_left(1);
            end[3] = *byte;
            if end == *b"\r\n\r\n" && client.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// The address in the gateway's ready file, once it is whole.
pub(crate) fn listening(text: &[u8]) -> Option<SocketAddr> {
    let ready: Value = serde_json::from_slice(text).ok()?;
    ready["listeners"][0]["address"].as_str()?.parse().ok()
}

fn isthmus(setup: &Setup<'_>) -> Result<Command> {
    isthmus_with(setup, setup.scenario.routes, setup.scenario.is_http2_upstream())
}

fn isthmus_with(setup: &Setup<'_>, routes: Routes, http2_upstream: bool) -> Result<Command> {
    let scenario = Scenario {
        routes,
        ..*setup.scenario
    };
    let resources = setup.folder.join("resources");
    fs::create_dir_all(&resources)?;
    let (upstream, protocol) = if http2_upstream {
        (setup.http2_upstream, "HTTP2")
    } else {
        (setup.upstream, "HTTP")
    };
    let server = match (scenario.tls, scenario.tls.key()) {
        (_, Some(key)) => {
            let [certificate, key, _] = key_files(setup, key);
            format!(
                "{{port: {{number: 80, name: https, protocol: HTTPS}}, hosts: [\"*\"], tls: {{mode: SIMPLE, \
                 serverCertificate: {}, privateKey: {}}}}}",
                certificate.display(),
                key.display()
            )
        }
        (Tls::Pass, _) => {
            "{port: {number: 80, name: tls, protocol: TLS}, hosts: [\"*\"], tls: {mode: PASSTHROUGH}}"
                .to_owned()
        }
        _ => "{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}".to_owned(),
    };
    let mut text = format!(
        r#"apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec: {{servers: [{server}]}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: up, namespace: default}}
spec:
  hosts: [up.example]
  ports: [{{number: 80, name: http, protocol: {protocol}}}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
"#,
        upstream.ip(),
        upstream.port()
    );
    let route = "route: [{destination: {host: up.example, port: {number: 80}}}]";
    let headers = if scenario.features {
        "headers: {request: {set: {x-edge: bench, x-scheme: http}, remove: [x-internal]}, response: {set: \
         {x-served-by: edge}, add: {cache-control: no-store}, remove: [server]}}, "
    } else {
        ""
    };
    let virtual_service = |text: &mut String, name: usize, host: &str, rules: &str| {
        write!(
            text,
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{name}, namespace: \
             default}}\nspec:\n  hosts: [\"{host}\"]\n  gateways: [edge]\n  http:\n{rules}"
        )
    };
    match scenario.routes {
        _ if scenario.tls == Tls::Pass => {
            write!(
                text,
                "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: \
                 default}}\nspec:\n  hosts: [\"*\"]\n  gateways: [edge]\n  tls: [{{match: [{{sniHosts: \
                 [{NAME}]}}], {route}}}]\n"
            )?;
        }
        Routes::Hosts(_) => {
            for (at, (host, prefix)) in scenario.rules().iter().enumerate() {
                let rule = format!("  - {{match: [{{uri: {{prefix: {prefix}}}}}], {route}}}\n");
                virtual_service(&mut text, at, host, &rule)?;
            }
        }
        _ => {
            let mut rules = String::new();
            for (_, prefix) in scenario.rules() {
                writeln!(
                    rules,
                    "  - {{match: [{{uri: {{prefix: {prefix}}}}}], {headers}{route}}}"
                )?;
            }
            virtual_service(&mut text, 0, "*", &rules)?;
        }
    }
    if let Some(authority) = upstream_authority(setup) {
        write!(
            text,
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: up, namespace: \
             default}}\nspec:\n  host: up.example\n  trafficPolicy: {{tls: {{mode: SIMPLE, sni: {NAME}, \
             caCertificates: {}}}}}\n",
            authority.display()
        )?;
    }
    fs::write(resources.join("all.yaml"), text)?;
    let mut command = gateway_command(setup.gateway, &resources, &setup.folder.join(READY));
    command.arg("--access-log");
    if scenario.features {
        command.arg(setup.folder.join("access.log"));
    } else {
        command.arg("off");
    }
    Ok(command)
}

/// Runs the gateway on one shard, with ports that the kernel chooses; where its access log goes is left to the caller.
pub(crate) fn gateway_command(gateway: &Path, resources: &Path, ready: &Path) -> Command {
    let mut command = sharded_command(gateway, resources, ready);
    command.args(["--shards", "1"]);
    command
}

/// The same on as many shards as the machine has cores.
pub(crate) fn sharded_command(gateway: &Path, resources: &Path, ready: &Path) -> Command {
    let mut command = Command::new(gateway);
    command
        .arg("run")
        .arg("-f")
        .arg(resources)
        .args(["--log-level", "warn", "--bind-address", "127.0.0.1"])
        .args([
            "--admin",
            "127.0.0.1:0",
            "--status",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ])
        .args(["--port-map", "80=0", "--ready-file"])
        .arg(ready);
    command
}

fn haproxy(setup: &Setup<'_>, splice: bool) -> Result<Command> {
    let map = setup.folder.join("map");
    let mut lines = String::new();
    for (host, prefix) in setup.scenario.rules() {
        let key = if host == "*" { prefix } else { host };
        writeln!(lines, "{key} up")?;
    }
    let map_file = map.display();
    let rule = match setup.scenario.routes {
        Routes::One => "default_backend up".to_owned(),
        Routes::Prefixes(_) => format!("use_backend %[path,map_beg({map_file},none)]"),
        Routes::Hosts(_) => format!("use_backend %[req.hdr(host),lower,map({map_file},none)]"),
    };
    fs::write(&map, lines)?;
    let (log, edge) = if setup.scenario.features {
        (
            "log stdout format raw local0\n  option httplog",
            "http-request set-header x-edge bench\n  http-request set-header x-scheme http\n  http-request del-header \
             x-internal\n  http-response set-header x-served-by edge\n  http-response add-header cache-control \
             no-store\n  http-response del-header server\n  http-request use-service prometheus-exporter if { path \
             /metrics }",
        )
    } else {
        ("", "")
    };
    let splice = if splice { "option splice-response" } else { "" };
    let (listen, upstream) = (setup.listen, setup.upstream);
    let secure = match setup.scenario.tls.key() {
        Some(key) => {
            let alpn = alpn(setup.scenario).join(",");
            format!("ssl crt {} alpn {alpn}", key_files(setup, key)[2].display())
        }
        None => String::new(),
    };
    let (upstream, protocol) = if setup.scenario.is_http2_upstream() {
        (setup.http2_upstream, "proto h2")
    } else {
        (upstream, "")
    };
    let protocol = match upstream_authority(setup) {
        Some(authority) => format!(
            "ssl verify required ca-file {} sni str({NAME})",
            authority.display()
        ),
        None => protocol.to_owned(),
    };
    if setup.scenario.tls == Tls::Pass {
        fs::write(
            setup.folder.join("haproxy.cfg"),
            format!(
                "global\n  maxconn 9000\n  nbthread 1\ndefaults\n  mode tcp\n  timeout client 600s\n  timeout server \
                 600s\n  timeout connect 5s\nfrontend edge\n  bind {listen}\n  tcp-request inspect-delay 5s\n  \
                 tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  use_backend up if {{ req.ssl_sni {NAME} \
                 }}\nbackend up\n  server s {upstream}\n"
            ),
        )?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(setup.folder.join("haproxy.cfg"));
        return Ok(command);
    }
    fs::write(
        setup.folder.join("haproxy.cfg"),
        format!(
            "global\n  maxconn 9000\n  maxpipes 256\n  nbthread 1\ndefaults\n  mode http\n  timeout client 600s\n  timeout server 600s\n  \
             timeout connect 5s\n  option http-keep-alive\n  http-reuse always\n  {splice}\nfrontend edge\n  bind \
             {listen} {secure}\n  {log}\n  {edge}\n  {rule}\nbackend up\n  option forwardfor\n  server s {upstream} {protocol}\nbackend \
             none\n  http-request deny deny_status 404\n"
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(setup.folder.join("haproxy.cfg"));
    Ok(command)
}

fn nginx(setup: &Setup<'_>) -> Result<Command> {
    let at = setup.folder.display();
    let (listen, upstream) = (setup.listen, setup.upstream);
    let (log, edge) = if setup.scenario.features {
        (
            format!("access_log {at}/access.log;"),
            "proxy_set_header x-edge bench; proxy_set_header x-scheme http; proxy_set_header x-internal \"\"; \
             add_header x-served-by edge; add_header cache-control no-store; server_tokens off;",
        )
    } else {
        ("access_log off;".to_owned(), "")
    };
    let pass = match upstream_authority(setup) {
        Some(authority) => format!(
            "proxy_pass https://up; proxy_ssl_verify on; proxy_ssl_server_name on; proxy_ssl_name {NAME}; \
             proxy_ssl_protocols TLSv1.3; proxy_ssl_trusted_certificate {};",
            authority.display()
        ),
        None => "proxy_pass http://up;".to_owned(),
    };
    let (ssl, certificate) = match setup.scenario.tls.key() {
        Some(key) => {
            let [certificate, key, _] = key_files(setup, key);
            let files = format!(
                "ssl_certificate {}; ssl_certificate_key {}; ssl_session_cache shared:s:10m; ssl_protocols TLSv1.3;",
                certificate.display(),
                key.display()
            );
            let ssl = if setup.scenario.http2.is_some() {
                " ssl http2"
            } else {
                " ssl"
            };
            (ssl, files)
        }
        None => ("", String::new()),
    };
    let mut servers = String::new();
    match setup.scenario.routes {
        Routes::Hosts(_) => {
            writeln!(
                servers,
                "server {{ listen {listen} reuseport backlog=16384; return 404; }}"
            )?;
            for (host, prefix) in setup.scenario.rules() {
                writeln!(
                    servers,
                    "server {{ listen {listen}; server_name {host}; location {prefix} {{ {pass} }} }}"
                )?;
            }
        }
        _ => {
            writeln!(
                servers,
                "server {{ listen {listen}{ssl} reuseport backlog=16384; {certificate}"
            )?;
            for (_, prefix) in setup.scenario.rules() {
                writeln!(servers, "location {prefix} {{ {pass} }}")?;
            }
            writeln!(servers, "}}")?;
        }
    }
    fs::write(
        setup.folder.join("nginx.conf"),
        format!(
            r#"daemon off; master_process off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/error.log;
events {{ worker_connections 16384; }}
http {{
    {log}
    keepalive_requests 1000000000; keepalive_timeout 600s;
    client_body_temp_path {at}/body; proxy_temp_path {at}/temp; fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
    server_names_hash_max_size 65536; server_names_hash_bucket_size 128;
    upstream up {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 600s; }}
    proxy_http_version 1.1; proxy_set_header connection ""; proxy_set_header host $http_host;
    proxy_set_header x-forwarded-for $proxy_add_x_forwarded_for; proxy_max_temp_file_size 0;
    proxy_buffers 16 32k; proxy_buffer_size 32k; proxy_busy_buffers_size 128k;
    {edge}
    {servers}
}}
"#
        ),
    )?;
    let mut command = Command::new("nginx");
    command
        .arg("-e")
        .arg(setup.folder.join("error.log"))
        .arg("-p")
        .arg(&setup.folder)
        .args(["-c", "nginx.conf"]);
    Ok(command)
}

fn envoy(setup: &Setup<'_>) -> Result<Command> {
    let socket = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let route =
        |prefix: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": "up", "timeout": "0s"}});
    let rules = setup.scenario.rules();
    let hosts: Vec<Value> = match setup.scenario.routes {
        Routes::Hosts(_) => rules
            .iter()
            .map(|(host, prefix)| json!({"name": host, "domains": [host], "routes": [route(prefix)]}))
            .collect(),
        _ => {
            let routes: Vec<Value> = rules.iter().map(|(_, prefix)| route(prefix)).collect();
            vec![json!({"name": "all", "domains": ["*"], "routes": routes})]
        }
    };
    let mut routes = json!({"name": "edge", "virtual_hosts": hosts, "validate_clusters": false});
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "use_remote_address": true,
        "generate_request_id": false,
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
        }]
    });
    if setup.scenario.features {
        let set = |name: &str, value: &str, action: &str| json!({"header": {"key": name, "value": value}, "append_action": action});
        let over = "OVERWRITE_IF_EXISTS_OR_ADD";
        routes["request_headers_to_add"] =
            json!([set("x-edge", "bench", over), set("x-scheme", "http", over)]);
        routes["request_headers_to_remove"] = json!(["x-internal"]);
        routes["response_headers_to_add"] = json!([
            set("x-served-by", "edge", over),
            set("cache-control", "no-store", "APPEND_IF_EXISTS_OR_ADD")
        ]);
        manager["generate_request_id"] = json!(true);
        manager["access_log"] = json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": setup.folder.join("access.log")
            }
        }]);
    }
    manager["route_config"] = routes;
    let many = 1_000_000;
    let mut chain = json!({"filters": [
        {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    ]});
    let mut listener_filters = json!([]);
    if let Some(key) = setup.scenario.tls.key() {
        let [certificate, key, _] = key_files(setup, key);
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": alpn(setup.scenario),
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                    "tls_certificates": [{
                        "certificate_chain": {"filename": certificate}, "private_key": {"filename": key}
                    }]
                }
            }
        });
    }
    if setup.scenario.tls == Tls::Pass {
        chain = json!({
            "filter_chain_match": {"server_names": [NAME]},
            "filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "edge",
                    "cluster": "up"
                }
            }]
        });
        listener_filters = json!([{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
            }
        }]);
    }
    let mut cluster = json!({
        "name": "up",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": many, "max_pending_requests": many, "max_requests": many, "max_retries": many
        }]},
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": socket(setup.upstream)}}
        ]}]}
    });
    if setup.scenario.is_http2_upstream() {
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] =
            socket(setup.http2_upstream);
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}
            }
        });
    }
    if let Some(authority) = upstream_authority(setup) {
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": NAME,
                "common_tls_context": {
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                    "validation_context": {
                        "trusted_ca": {"filename": authority},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": NAME}}]
                    }
                }
            }
        });
    }
    let configuration = json!({
        "static_resources": {
            "listeners": [{
                "name": "edge",
                "address": socket(setup.listen),
                "listener_filters": listener_filters,
                "filter_chains": [chain]
            }],
            "clusters": [cluster]
        }
    });
    let file = setup.folder.join("envoy.json");
    fs::write(&file, serde_json::to_vec(&configuration)?)?;
    Ok(envoy_with(&file))
}

/// Envoy with one worker and this configuration.
pub(crate) fn envoy_with(file: &Path) -> Command {
    let mut command = Command::new("envoy");
    command
        .args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
            "-c",
        ])
        .arg(file);
    command
}

/// What a proxy offers by ALPN.
fn alpn(scenario: &Scenario) -> &'static [&'static str] {
    match scenario.http2 {
        Some(_) => &["h2", "http/1.1"],
        None => &["http/1.1"],
    }
}

fn nghttpx(setup: &Setup<'_>) -> Result<Command> {
    let at = |address: SocketAddr| format!("{},{}", address.ip(), address.port());
    let backend = if setup.scenario.is_http2_upstream() {
        format!("{};;proto=h2", at(setup.http2_upstream))
    } else {
        at(setup.upstream)
    };
    let [certificate, key, _] = key_files(setup, setup.scenario.tls.key().context("HTTP/2 is over TLS")?);
    let mut command = Command::new("nghttpx");
    command
        .args([
            "--conf=/dev/null",
            "--single-process",
            "--workers=1",
            "--add-x-forwarded-for",
        ])
        .arg(format!("--frontend={}", at(setup.listen)))
        .arg(format!("--backend={backend}"))
        .arg("--backend-connections-per-host=256")
        .arg("--errorlog-file=/dev/stderr")
        .args([&key, &certificate]);
    Ok(command)
}

fn h2o(setup: &Setup<'_>) -> Result<Command> {
    let [certificate, key, _] = key_files(setup, setup.scenario.tls.key().context("HTTP/2 is over TLS")?);
    let configuration = json!({
        "num-threads": 1,
        "max-connections": 16384,
        "user": "root",
        "proxy.preserve-host": "ON",
        "proxy.timeout.keepalive": 600_000,
        "hosts": {"default": {
            "listen": {
                "host": setup.listen.ip().to_string(),
                "port": setup.listen.port(),
                "ssl": {"certificate-file": certificate, "key-file": key},
            },
            "paths": {"/": {"proxy.reverse.url": format!("http://{}/", setup.upstream)}},
        }},
    });
    // JSON is YAML as well.
    let file = setup.folder.join("h2o.json");
    fs::write(&file, configuration.to_string())?;
    let mut command = Command::new("h2o");
    command.arg("-c").arg(file);
    Ok(command)
}
