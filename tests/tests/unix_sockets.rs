//! Endpoints on unix sockets: requests in either version of HTTP, with TLS, bytes, health checks, and what is shown of them.

use isthmus_tests::bytes::connect;
use isthmus_tests::cert::Authority;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::nginx::Nginx;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;

const NAME: &str = "tls.internal";

/// A service with one endpoint on a socket.
fn service(host: &str, (port, protocol): (u16, &str), socket: &Path) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {}, namespace: default}}
spec:
  hosts: [{host}]
  resolution: STATIC
  ports: [{{number: {port}, name: p, protocol: {protocol}}}]
  endpoints: [{{address: \"unix://{}\"}}]
---
",
        host.replace('.', "-"),
        socket.display()
    )
}

fn resources(nginx: &Nginx, authority: &Authority) -> String {
    let routes = ["plain", "h2", "tls"].map(|name| {
        format!(
            "  - {{match: [{{uri: {{prefix: /{name}}}}}], route: [{{destination: {{host: {name}.internal}}}}]}}\n"
        )
    });
    [
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: default}
spec:
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}
  - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec:
  hosts: ['*']
  gateways: [g]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: raw.internal}}]}]
  http:
"
        .to_owned(),
        routes.concat(),
        "---\n".to_owned(),
        service("plain.internal", (80, "HTTP"), &nginx.socket("plain")),
        service("h2.internal", (80, "HTTP2"), &nginx.socket("h2")),
        service(NAME, (80, "HTTP"), &nginx.socket("tls")),
        service("raw.internal", (9000, "TCP"), &nginx.socket("plain")),
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: tls, namespace: default}}
spec:
  host: {NAME}
  trafficPolicy: {{tls: {{mode: SIMPLE, sni: {NAME}, caCertificates: {}}}}}
---
apiVersion: isthmus.dev/v1alpha1
kind: HealthCheckPolicy
metadata: {{name: checks, namespace: default}}
spec:
  host: plain.internal
  probe: {{periodSeconds: 1, httpGet: {{path: /check, port: 1}}}}
",
            authority.certificate().display()
        ),
    ]
    .concat()
}

#[test]
fn endpoints_on_unix_sockets_are_served_and_checked_and_named_by_their_paths() {
    let authority = Authority::new();
    let mut nginx = Nginx::on_sockets(&authority.server(&[NAME]));
    let gateway = Gateway::builder()
        .resources("sockets", &resources(&nginx, &authority))
        .port(80)
        .port(9000)
        .start();
    let shown = |name: &str| format!("unix://{}", nginx.socket(name).display());
    let (plain, secured) = (shown("plain"), shown("tls"));
    let mut client = gateway.client();
    for (path, said) in [("/plain/", "plain HTTP/1.1"), ("/h2/", "h2 HTTP/2.0")] {
        // The second one on the connection of the first.
        for _ in 0..2 {
            assert_eq!(client.get("a.example", path).text(), said);
        }
    }
    assert_eq!(client.get("a.example", "/tls/x").text(), format!("tls {NAME}"));
    let line = gateway.access_line("/tls/x");
    assert!(line.line.contains(&format!("\"{secured}\"")), "{line:?}");

    let mut stream = connect(gateway.listener(9000));
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("plain HTTP/1.0"), "{answer}");

    let clusters = || gateway.get_admin("/clusters?format=json").text().to_owned();
    let has = |state: &str| {
        let all: serde_json::Value = serde_json::from_str(&clusters()).unwrap();
        let clusters = all["clusters"].as_array().unwrap().clone();
        let mut endpoints = clusters
            .iter()
            .flat_map(|cluster| cluster["endpoints"].as_array().unwrap().clone());
        endpoints.any(|endpoint| endpoint["address"] == *plain && endpoint["health"] == state)
    };
    eventually(SOON, "the socket is checked", || has("healthy"));
    let (_, table) = gateway.command("endpoints", &[]);
    assert!(table.contains(&plain), "{table}");
    nginx.kill();
    eventually(SOON, "nobody answers there", || has("unhealthy"));
    assert_eq!(gateway.get("a.example", "/plain/").status, 503);
    eventually(SOON, "the log names the endpoint", || {
        gateway.log().contains(&plain)
    });
    gateway.stop();
}
