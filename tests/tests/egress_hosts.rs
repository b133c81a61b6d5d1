//! Five hundred external hosts, each with a certificate, a name of TLS and limits of its own: nginx, which is all of them at
//! one address, says on which connection a request came, which name that connection was made for, and which host the
//! request is for. Nothing of one host ever goes over a connection of another, and each keeps its own.

use isthmus_tests::cert::{Authority, Leaf};
use isthmus_tests::client::Client;
use isthmus_tests::dns::{Dns, Reply};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::thread;

const HOSTS: usize = 500;
/// Clients that ask at a time.
const CLIENTS: usize = 4;

/// How often each client asks each host: `ISTHMUS_EGRESS_ROUNDS`, or twice.
fn rounds() -> usize {
    let given = std::env::var("ISTHMUS_EGRESS_ROUNDS").ok();
    given.map_or(2, |text| text.parse().expect("a number of rounds"))
}

fn host(at: usize) -> String {
    format!("h{at:03}.partner.example")
}

/// All of them, and who has signed their certificates.
fn outside() -> (Authority, Nginx) {
    let authority = Authority::new();
    let names: Vec<(String, Leaf)> = (0..HOSTS)
        .map(|at| (host(at), authority.server(&[&host(at)])))
        .collect();
    let nginx = Nginx::of_names(&names);
    (authority, nginx)
}

fn starting(text: &str) -> Builder {
    Gateway::builder().resources("egress", text)
}

/// A rule for a host, with so many connections; `more` is what else its TLS says.
fn rule(name: &str, host: &str, connections: usize, authority: &Authority, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: default}}
spec:
  host: '{host}'
  trafficPolicy:
    connectionPool: {{tcp: {{maxConnections: {connections}}}}}
    tls: {{mode: SIMPLE, caCertificates: {}{more}}}
---
",
        authority.certificate().display()
    )
}

/// A service that is at this address, or nowhere in particular, and the way from the Gateway to it.
fn way(name: &str, host: &str, resolution: &str, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    let endpoints = match resolution {
        "STATIC" => format!("endpoints: [{{address: {ip}}}]"),
        _ => String::new(),
    };
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: ['{host}']
  location: MESH_EXTERNAL
  resolution: {resolution}
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]
  {endpoints}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: ['{host}']
  gateways: [g]
  http: [{{route: [{{destination: {{host: '{host}', port: {{number: 80}}}}}}]}}]
---
"
    )
}

/// Asks all hosts, each client in an order of its own, and answers which connections have carried each host's requests.
fn ask_all(address: SocketAddr, clients: usize, rounds: usize) -> BTreeMap<String, BTreeSet<u64>> {
    let asking = |client: usize| {
        // 7 and 500 have no common divisor: all hosts, in another order than a neighbour's.
        let order = (0..HOSTS * rounds).map(move |at| (at * 7 + client * HOSTS / clients) % HOSTS);
        thread::spawn(move || {
            let mut connection = Client::connect(address);
            let mut seen = Vec::new();
            for at in order {
                let host = host(at);
                let answer = connection.get(&host, "/");
                assert_eq!(answer.status, 200, "{host}: {answer:?}");
                let said: Vec<&str> = answer.text().split(' ').collect();
                let &[number, sni, asked] = &said[..] else {
                    panic!("{answer:?}");
                };
                assert_eq!((sni, asked), (&*host, &*host), "on connection {number}");
                seen.push((host, number.parse::<u64>().expect("a number")));
            }
            seen
        })
    };
    let asking: Vec<_> = (0..clients).map(asking).collect();
    let mut connections: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for one in asking {
        for (host, number) in one.join().expect("a client that was answered") {
            connections.entry(host).or_default().insert(number);
        }
    }
    assert_eq!(connections.len(), HOSTS);
    connections
}

/// That no connection has served two hosts, and that no host has had more of them than it may.
fn assert_apart(connections: &BTreeMap<String, BTreeSet<u64>>, most: usize) {
    let all: usize = connections.values().map(BTreeSet::len).sum();
    let different: BTreeSet<u64> = connections.values().flatten().copied().collect();
    assert_eq!(all, different.len(), "a connection served two hosts");
    for (host, own) in connections {
        assert!(own.len() <= most, "{host} had {own:?}");
    }
}

fn assert_kept(gateway: &Gateway, most: usize) {
    let alone = ask_all(gateway.address(), 1, rounds());
    assert_apart(&alone, 1);
    let together = ask_all(gateway.address(), CLIENTS, rounds());
    assert_apart(&together, most);
    // What was open is used again, before anything new is opened.
    for (host, before) in &alone {
        assert!(
            before.is_subset(&together[host]),
            "{host}: {before:?} {together:?}"
        );
    }
    let failed = gateway.access_log();
    let failed: Vec<_> = failed.iter().filter(|line| line.status != 200).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn five_hundred_hosts_of_their_own_never_share_a_connection_and_each_keeps_its_one() {
    let (authority, nginx) = outside();
    let mut text = resources::gateway(80);
    for at in 0..HOSTS {
        let (name, host) = (format!("h{at}"), host(at));
        text += &way(&name, &host, "STATIC", nginx.address());
        // Each demands its own name of whoever is there.
        let more = format!(", sni: {host}, subjectAltNames: [{host}]");
        text += &rule(&name, &host, 1, &authority, &more);
    }
    let gateway = starting(&text).start();
    assert_kept(&gateway, 1);
    gateway.stop();
}

#[test]
fn five_hundred_hosts_of_a_wildcard_at_one_address_keep_their_connections_apart() {
    let (authority, nginx) = outside();
    let wildcard = "*.partner.example";
    let mut text = resources::gateway(80);
    text += &way("partner", wildcard, "STATIC", nginx.address());
    text += &rule("partner", wildcard, HOSTS * CLIENTS, &authority, "");
    let gateway = starting(&text).start();
    assert_kept(&gateway, CLIENTS);
    gateway.stop();
}

#[test]
fn five_hundred_hosts_that_requests_bring_keep_their_connections_apart() {
    let (authority, nginx) = outside();
    let dns = Dns::start();
    for at in 0..HOSTS {
        dns.set(&host(at), &Reply::addresses(&["127.0.0.1"], 3600));
    }
    let wildcard = "*.partner.example";
    let mut text = resources::gateway(80);
    text += &way("partner", wildcard, "DYNAMIC_DNS", nginx.address());
    text += &rule("partner", wildcard, HOSTS * CLIENTS, &authority, "");
    let gateway = starting(&text)
        .arg("--dns-server")
        .arg(dns.address().to_string())
        .arg("--egress-allow-cidr=127.0.0.0/8")
        .start();
    assert_kept(&gateway, CLIENTS);
    gateway.stop();
}

/// With fewer connections than there are hosts, what one host does not use makes room for the next.
#[test]
fn hosts_of_a_wildcard_share_its_limit_and_make_room_for_each_other() {
    let (authority, nginx) = outside();
    let wildcard = "*.partner.example";
    let mut text = resources::gateway(80);
    text += &way("partner", wildcard, "STATIC", nginx.address());
    text += &rule("partner", wildcard, 10, &authority, "");
    let gateway = starting(&text).start();
    let mut connections = String::new();
    let mut client = gateway.client();
    for at in (0..HOSTS).step_by(10) {
        let answer = client.get(&host(at), "/");
        assert_eq!(answer.status, 200, "{answer:?}");
        writeln!(connections, "{}", answer.text()).expect("text");
    }
    let open = gateway.metric("isthmus_upstream_connections_active");
    assert!(open.is_some_and(|open| open <= 10.0), "{open:?}\n{connections}");
    gateway.stop();
}
