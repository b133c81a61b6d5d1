//! The YAML documents that a gateway is started with.

use crate::cert::Leaf;
use crate::openssl::base64;
use std::fmt::Write;
use std::net::SocketAddr;

/// An endpoint of a ServiceEntry.
#[derive(Debug, Clone)]
pub struct Endpoint {
    address: SocketAddr,
    version: String,
}

impl Endpoint {
    /// An endpoint with the label `version`.
    pub fn new(version: &str, address: SocketAddr) -> Self {
        Self {
            address,
            version: version.to_owned(),
        }
    }
}

/// A Gateway `g` with one HTTP server for all hosts on this port.
pub fn gateway(port: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: g, namespace: default}}
spec: {{servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: [\"*\"]}}]}}
---
"
    )
}

/// A ServiceEntry with static endpoints for the HTTP port `port` of a host.
pub fn service(host: &str, port: u16, endpoints: &[Endpoint]) -> String {
    let name = host.replace('.', "-");
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{host}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
"
    );
    text.push_str(if endpoints.is_empty() {
        "  endpoints: []\n"
    } else {
        "  endpoints:\n"
    });
    for Endpoint { address, version } in endpoints {
        let (ip, at) = (address.ip(), address.port());
        writeln!(
            text,
            "  - {{address: \"{ip}\", ports: {{http: {at}}}, labels: {{version: {version}}}}}"
        )
        .expect("text");
    }
    text + "---\n"
}

/// A DestinationRule whose subsets select the label `version` of the same name.
pub fn subsets(host: &str, names: &[&str]) -> String {
    let name = host.replace('.', "-");
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec:
  host: {host}
  subsets:
"
    );
    for name in names {
        writeln!(text, "  - {{name: {name}, labels: {{version: {name}}}}}").expect("text");
    }
    text + "---\n"
}

/// A VirtualService `v` for all hosts of the Gateway `g`; `http` is the list of its rules, in flow or block style
/// with lines that begin at the left margin.
pub fn virtual_service(http: &str) -> String {
    let rules: String = http
        .trim_end()
        .lines()
        .map(|line| format!("  {line}\n"))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v, namespace: default}}
spec:
  hosts: [\"*\"]
  gateways: [g]
  http:
{rules}---
"
    )
}

/// The host of the service that [`one_route`] leads to.
pub const UPSTREAM_HOST: &str = "up.example";

/// A rule's `route` to port 80 of a host, in flow style.
pub fn route_to(host: &str) -> String {
    format!("route: [{{destination: {{host: {host}, port: {{number: 80}}}}}}]")
}

/// Port 80, all hosts, every request to the endpoint at this address. `more` are further lines of the rule.
pub fn one_route(address: SocketAddr, more: &str) -> String {
    route_among(&[address], more)
}

/// The same with several endpoints of one service.
pub fn route_among(addresses: &[SocketAddr], more: &str) -> String {
    let rule = format!("- {}\n{}", route_to(UPSTREAM_HOST), indent(more));
    let endpoints: Vec<Endpoint> = addresses
        .iter()
        .map(|address| Endpoint::new("v1", *address))
        .collect();
    gateway(80) + &service(UPSTREAM_HOST, 80, &endpoints) + &virtual_service(&rule)
}

/// A Gateway `g` with these servers in flow style, one a line.
pub fn gateway_with(servers: &str) -> String {
    let lines: String = servers
        .lines()
        .map(|line| format!("  - {}\n", line.trim()))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: g, namespace: default}}
spec:
  servers:
{lines}---
"
    )
}

/// A server for [`gateway_with`] with protocol HTTPS on port 443; `tls` are the fields of its `tls`.
pub fn https_server(name: &str, hosts: &str, tls: &str) -> String {
    format!("{{port: {{number: 443, name: {name}, protocol: HTTPS}}, hosts: [{hosts}], tls: {{{tls}}}}}\n")
}

/// Fields of a server's `tls`: the mode, and the files of a certificate.
pub fn tls_files(mode: &str, leaf: &Leaf) -> String {
    format!("mode: {mode}, {}", tls_pair(leaf))
}

/// Fields of a server's `tls` that name the files of a certificate.
pub fn tls_pair(leaf: &Leaf) -> String {
    format!(
        "serverCertificate: {}, privateKey: {}",
        leaf.certificate.display(),
        leaf.key.display()
    )
}

/// A Secret with these values, in base64.
pub fn secret(name: &str, kind: &str, values: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: default}}\ntype: {kind}\ndata:\n"
    );
    for (key, value) in values {
        writeln!(text, "  {key}: {}", base64(value.as_bytes())).expect("text");
    }
    text + "---\n"
}

/// A ServiceEntry for a port that is not HTTP, with endpoints that have the label `version` by their position: `v1`, ...
pub fn stream_service(host: &str, port: u16, protocol: &str, endpoints: &[SocketAddr]) -> String {
    let name = host.replace('.', "-");
    let mut list = String::new();
    for (at, address) in endpoints.iter().enumerate() {
        let (ip, real, version) = (address.ip(), address.port(), at + 1);
        writeln!(
            list,
            "  - {{address: \"{ip}\", ports: {{stream: {real}}}, labels: {{version: v{version}}}}}"
        )
        .expect("text");
    }
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{host}]
  resolution: STATIC
  ports: [{{number: {port}, name: stream, protocol: {protocol}}}]
  endpoints:
{list}---
"
    )
}

/// A DestinationRule with these lines as its `trafficPolicy`.
pub fn traffic_policy(host: &str, policy: &str) -> String {
    let name = host.replace('.', "-");
    let lines = indent(&indent(policy));
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec:
  host: {host}
  trafficPolicy:
{lines}---
"
    )
}

/// All requests of the Gateway `g` to the endpoint at this address.
pub fn all_to(address: SocketAddr) -> String {
    service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", address)])
        + &virtual_service(&format!("- {}", route_to(UPSTREAM_HOST)))
}

fn indent(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// PyYAML's reading as JSON: a stranger's.
    fn read(yaml: &str) -> serde_json::Value {
        let script =
            "import json, sys, yaml; json.dump([d for d in yaml.safe_load_all(sys.stdin) if d], sys.stdout)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with PyYAML runs");
        child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
        serde_json::from_slice(&child.wait_with_output().unwrap().stdout).expect("valid YAML")
    }

    #[test]
    fn documents_are_what_they_say() {
        let address = "127.0.0.1:4000".parse().unwrap();
        let documents = read(
            &(one_route(address, "timeout: 1s\nmatch: [{uri: {exact: /a}}]")
                + &subsets("h.example", &["v1"])),
        );
        assert_eq!(documents[1]["spec"]["endpoints"][0]["ports"]["http"], 4000);
        let rule = &documents[2]["spec"]["http"][0];
        assert_eq!(rule["timeout"], "1s");
        assert_eq!(rule["match"][0]["uri"]["exact"], "/a");
        assert_eq!(rule["route"][0]["destination"]["host"], UPSTREAM_HOST);
        assert_eq!(documents[3]["spec"]["subsets"][0]["labels"]["version"], "v1");
        assert_eq!(
            read(&service("empty.example", 80, &[]))[0]["spec"]["endpoints"],
            serde_json::json!([])
        );
    }
}
