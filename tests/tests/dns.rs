//! Services whose endpoints are names: what a server of DNS says, and when, is what requests get.

use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::dns::{AAAA, Dns, REFUSED, Reply, SERVFAIL};
use isthmus_tests::gateway::{Builder, Gateway, binary};
use isthmus_tests::load::Load;
use isthmus_tests::port::HeldPort;
use isthmus_tests::resources::{gateway, route_to, virtual_service};
use isthmus_tests::upstream::{SERVED_BY, Upstream};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

const NAME: &str = "api.example";

/// Short times, so that a test sees several.
const QUICK: &str = "dnsTimeout: 1s\ndnsTtlMin: 1s\ndnsRefreshRate: 1s\n";
/// How long a start waits for names that are answered: on a busy machine an answer may come late.
const PATIENT: &str = "dnsStartTimeout: 30s\n";

/// A service `api.example` with this resolution, whose port 80 is this one at its addresses; `more` are further fields.
fn named(resolution: &str, port: u16, more: &str) -> String {
    let entry = format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api, namespace: default}}
spec: {{hosts: [{NAME}], resolution: {resolution}, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {port}}}]{more}}}
---
"
    );
    gateway(80) + &entry + &virtual_service(&format!("- {}", route_to(NAME)))
}

fn starting(dns: &Dns, resources: &str) -> Builder {
    starting_with(dns, resources, PATIENT)
}

fn starting_with(dns: &Dns, resources: &str, more: &str) -> Builder {
    Gateway::builder()
        .resources("all", resources)
        .settings(&format!("{QUICK}{more}"))
        .arg("--dns-server")
        .arg(dns.address().to_string())
}

/// Who serves so many requests on connections of their own.
fn served_by(gateway: &Gateway, requests: usize) -> BTreeSet<String> {
    let ask = |_| {
        let answer = gateway.get("any.example", "/");
        assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.log());
        answer.field(SERVED_BY).unwrap_or_default().to_owned()
    };
    (0..requests).map(ask).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What the gateway says of a name.
fn state(gateway: &Gateway, name: &str) -> Value {
    let answer = gateway.get_admin("/dns");
    let all: Value = serde_json::from_str(answer.text()).unwrap();
    let names = all["names"].as_array().unwrap().iter();
    let mut of_name = names.filter(|known| known["name"] == name);
    of_name.next().cloned().unwrap_or_default()
}

#[test]
fn each_address_of_a_name_is_an_endpoint_and_answers_change_what_is_served() {
    let [one, _two, _three] =
        Upstream::echoes_at([("one", "127.0.0.1"), ("two", "127.0.0.2"), ("three", "127.0.0.3")]);
    let dns = Dns::start();
    dns.set(NAME, &Reply::addresses(&["127.0.0.1", "127.0.0.2"], 1));
    let gateway = starting(&dns, &named("DNS", one.address().port(), ""))
        .shards(2)
        .start();
    // Ready only when the first answer is there.
    assert_eq!(served_by(&gateway, 40), set(&["one", "two"]));
    let (report, ()) = Load::get(gateway.address(), "any.example", "/").run_during(|_| {
        dns.set(NAME, &Reply::addresses(&["127.0.0.3"], 1));
        eventually(SOON, "the third address serves alone", || {
            served_by(&gateway, 6) == set(&["three"])
        });
        dns.set(NAME, &Reply::addresses(&["127.0.0.2", "127.0.0.3"], 1));
        eventually(SOON, "the second address is back", || {
            served_by(&gateway, 6) == set(&["two", "three"])
        });
    });
    assert_eq!(report.total(), report.status(200), "{report}");
    assert!(report.total() > 0);
    assert_eq!(state(&gateway, NAME)["state"], "resolved");
    let updates = gateway.metric("isthmus_endpoint_update_seconds_count").unwrap();
    assert!(updates >= 2.0, "{updates}");
    let before = dns.asked().len();
    dns.wait_for(NAME, 2);
    let asked = dns.asked().len() - before;
    assert!(
        asked <= 6,
        "a time to live of a second asks once a second: {asked}"
    );
    gateway.stop();
}

#[test]
fn each_name_of_an_entry_has_its_own_port_and_weight() {
    let (small, large) = (Upstream::echo_for_load("small"), Upstream::echo_for_load("large"));
    let dns = Dns::start();
    dns.set("a.example", &Reply::addresses(&["127.0.0.1"], 60));
    dns.set(
        "b.example",
        &Reply::Alias("c.example".to_owned(), 60, vec!["127.0.0.1".parse().unwrap()], 60),
    );
    let more = format!(
        ", endpoints: [{{address: a.example, ports: {{http: {}}}}}, {{address: B.example, ports: {{http: {}}}, weight: 3}}]",
        small.address().port(),
        large.address().port()
    );
    let gateway = starting(&dns, &named("DNS", 1, &more)).start();
    let report = Load::get(gateway.address(), "any.example", "/")
        .connections(1)
        .run(40);
    assert_eq!(report.status(200), 40, "{report}");
    assert!((report.percent_from("large") - 75.0).abs() < 3.0, "{report}");
    let shown = gateway.get_admin("/config_dump");
    assert!(shown.text().contains("\"b.example\""), "{}", shown.text());
    gateway.stop();
}

#[test]
fn what_was_known_serves_while_no_server_answers() {
    let [one, _two] = Upstream::echoes_at([("one", "127.0.0.1"), ("two", "127.0.0.2")]);
    let dns = Dns::start();
    let first = Reply::addresses(&["127.0.0.1"], 1);
    dns.set(NAME, &first);
    let gateway = starting(&dns, &named("DNS", one.address().port(), "")).start();
    let ills = [
        Reply::Code(SERVFAIL),
        Reply::Silence,
        Reply::Code(REFUSED),
        Reply::Garbage,
    ];
    let (report, ()) = Load::get(gateway.address(), "any.example", "/")
        .connections(2)
        .run_during(|_| {
            for ill in ills {
                dns.set(NAME, &ill);
                dns.wait_for(NAME, 2);
                eventually(SOON, "the addresses are said to be old", || {
                    state(&gateway, NAME)["state"] == "stale"
                });
                assert_eq!(served_by(&gateway, 4), set(&["one"]), "{ill:?}");
                dns.set(NAME, &first);
                eventually(SOON, "the name is resolved again", || {
                    state(&gateway, NAME)["state"] == "resolved"
                });
            }
            dns.set(NAME, &Reply::Code(SERVFAIL));
            dns.wait_for(NAME, 2);
            dns.set(NAME, &Reply::addresses(&["127.0.0.2"], 1));
            eventually(SOON, "the answer that comes at last counts", || {
                served_by(&gateway, 4) == set(&["two"])
            });
        });
    assert_eq!(report.total(), report.status(200), "{report}");
    dns.set(NAME, &Reply::Code(SERVFAIL));
    eventually(SOON, "the status names it", || {
        let (_, said) = gateway.command("status", &[]);
        said.contains("api.example cannot be resolved") && said.contains("its last addresses are served")
    });
    assert!(
        gateway.log().contains("a name cannot be resolved"),
        "{}",
        gateway.log()
    );
    assert!(
        gateway
            .metric_with("isthmus_dns_questions_total", "failed")
            .unwrap()
            >= 8.0
    );
    gateway.stop();
}

#[test]
fn a_name_that_is_gone_takes_its_endpoints_with_it_when_that_is_said_twice() {
    let upstream = Upstream::echo("one");
    let dns = Dns::start();
    let known = Reply::addresses(&["127.0.0.1"], 1);
    dns.set(NAME, &known);
    let port = upstream.address().port();
    let gateway = starting(&dns, &named("DNS", port, "")).start();
    // Once is a mistake of somebody's.
    dns.set(NAME, &Reply::NoName(1));
    dns.wait_for(NAME, 1);
    dns.set(NAME, &known);
    eventually(SOON, "the name is resolved again", || {
        state(&gateway, NAME)["state"] == "resolved"
    });
    assert_eq!(served_by(&gateway, 2), set(&["one"]));
    dns.set(NAME, &Reply::NoName(1));
    eventually(SOON, "the endpoints are gone", || {
        gateway.get("any.example", "/").status == 503
    });
    assert_eq!(gateway.get("any.example", "/gone").status, 503);
    let line = gateway.access_line("/gone");
    assert!(line.has("UH"), "{line:?}");
    assert_eq!(state(&gateway, NAME)["state"], "none");
    eventually(SOON, "it is told", || {
        gateway.log().contains("a name does not exist, or has no address")
    });
    let status = gateway.get_admin("/status");
    assert!(
        status.text().contains("does not exist, or has no address"),
        "{}",
        status.text()
    );
    let shown = Command::new(binary())
        .args(["endpoints", "--admin", &gateway.admin().to_string()])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains(NAME) && shown.contains("dns=none"), "{shown}");
    dns.set(NAME, &known);
    eventually(SOON, "the name is back", || {
        gateway.get("any.example", "/").status == 200
    });
    gateway.stop();
}

#[test]
fn an_answer_that_was_cut_is_asked_for_over_tcp() {
    let [one, _two] = Upstream::echoes_at([("one", "127.0.0.1"), ("two", "127.0.0.2")]);
    let dns = Dns::start();
    let whole = Reply::addresses(&["127.0.0.1", "127.0.0.2"], 60);
    dns.set(NAME, &Reply::Cut(Box::new(whole)));
    let gateway = starting(&dns, &named("DNS", one.address().port(), "")).start();
    assert_eq!(served_by(&gateway, 40), set(&["one", "two"]));
    assert!(
        dns.asked().iter().any(|question| question.is_tcp),
        "{:?}",
        dns.asked()
    );
    gateway.stop();
}

#[test]
fn a_logical_name_keeps_its_connections_and_makes_new_ones_to_the_first_address() {
    let [one, _two] = Upstream::echoes_at([("one", "127.0.0.1"), ("two", "127.0.0.2")]);
    let dns = Dns::start();
    dns.set(NAME, &Reply::addresses(&["127.0.0.1", "127.0.0.2"], 1));
    let gateway = starting(&dns, &named("DNS_ROUND_ROBIN", one.address().port(), "")).start();
    assert_eq!(served_by(&gateway, 4), set(&["one"]), "the first one alone");
    dns.set(NAME, &Reply::addresses(&["127.0.0.2"], 1));
    eventually(SOON, "the answer is known", || {
        state(&gateway, NAME)["addresses"] == serde_json::json!(["127.0.0.2"])
    });
    assert_eq!(
        served_by(&gateway, 4),
        set(&["one"]),
        "the connection that is there"
    );
    // It is taken by a request that lasts, and the next one needs another.
    let mut slow = TcpStream::connect(gateway.address()).unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nhost: any.example\r\ncontent-length: 1\r\n\r\n")
        .unwrap();
    eventually(SOON, "a new connection goes to the new address", || {
        served_by(&gateway, 1) == set(&["two"])
    });
    slow.write_all(b"x").unwrap();
    assert_eq!(Client::over(slow).response().field(SERVED_BY), Some("one"));
    gateway.stop();
}

#[test]
fn answers_in_another_order_begin_no_check_anew() {
    let nobody = HeldPort::take();
    let dns = Dns::start();
    let orders = [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]];
    dns.set(NAME, &Reply::addresses(&orders[0], 1));
    let policy = format!(
        "apiVersion: isthmus.dev/v1alpha1
kind: HealthCheckPolicy
metadata: {{name: checks, namespace: default}}
spec:
  host: {NAME}
  probe: {{periodSeconds: 1, failureThreshold: 5, tcpSocket: {{}}}}
"
    );
    let gateway = starting(&dns, &named("DNS_ROUND_ROBIN", nobody.address().port(), ""))
        .resources("checks", &policy)
        .start();
    let (mut asked, mut turn) = (dns.times(NAME), 0);
    eventually(Duration::from_secs(30), "five checks in a row", || {
        if dns.times(NAME) > asked {
            asked = dns.times(NAME);
            turn = 1 - turn;
            dns.set(NAME, &Reply::addresses(&orders[turn], 1));
        }
        gateway.metric("isthmus_unhealthy") == Some(1.0)
    });
    gateway.stop();
}

#[test]
fn a_family_that_leads_nowhere_costs_a_moment_and_no_request() {
    let upstream = Upstream::echo("four");
    let port = upstream.address().port();
    for resolution in ["DNS", "DNS_ROUND_ROBIN"] {
        let dns = Dns::start();
        // 100::/64 discards what is sent there (RFC 6666), and here there may be no way to it at all.
        dns.set(NAME, &Reply::addresses(&["100::1", "127.0.0.1"], 60));
        let gateway = starting(&dns, &named(resolution, port, "")).start();
        eventually(SOON, "both families are known", || {
            state(&gateway, NAME)["addresses"]
                .as_array()
                .is_some_and(|list| list.len() == 2)
        });
        let report = Load::get(gateway.address(), "any.example", "/")
            .connections(4)
            .run(40);
        assert_eq!(report.status(200), 40, "{resolution}: {report}");
        gateway.stop();
    }
}

#[test]
fn an_address_that_does_not_answer_is_overtaken() {
    let upstream = Upstream::echo("four");
    let port = upstream.address().port();
    let silent = Silent::at(SocketAddr::new("::1".parse().unwrap(), port));
    let dns = Dns::start();
    dns.set(NAME, &Reply::addresses(&["::1", "127.0.0.1"], 60));
    let gateway = starting(&dns, &named("DNS_ROUND_ROBIN", port, "")).start();
    eventually(SOON, "both families are known", || {
        state(&gateway, NAME)["addresses"]
            .as_array()
            .is_some_and(|list| list.len() == 2)
    });
    let begun = std::time::Instant::now();
    assert_eq!(served_by(&gateway, 1), set(&["four"]));
    let took = begun.elapsed();
    assert!(took.as_millis() >= 200, "the first has its head start: {took:?}");
    let line = gateway.access_line("/").line;
    assert!(line.contains(&upstream.address().to_string()), "{line}");
    drop(silent);
    gateway.stop();
}

#[test]
fn a_start_waits_for_names_no_longer_than_it_may() {
    let upstream = Upstream::echo("late");
    let dns = Dns::start();
    dns.set(NAME, &Reply::Silence);
    let documents = named("DNS", upstream.address().port(), "");
    let gateway = starting_with(&dns, &documents, "dnsStartTimeout: 2s\n").start();
    assert_eq!(gateway.get("any.example", "/early").status, 503);
    assert!(gateway.access_line("/early").has("UH"));
    dns.set(NAME, &Reply::addresses(&["127.0.0.1"], 60));
    eventually(SOON, "the name is found at last", || {
        gateway.get("any.example", "/").status == 200
    });
    gateway.stop();
}

#[test]
fn a_change_of_the_files_waits_for_the_names_that_it_brings() {
    let upstream = Upstream::echo("one");
    let port = upstream.address().port();
    let dns = Dns::start();
    dns.set(NAME, &Reply::addresses(&["127.0.0.1"], 60));
    dns.set("new.example", &Reply::addresses(&["127.0.0.1"], 60));
    let gateway = starting(&dns, &named("DNS", port, "")).start();
    let (report, ()) = Load::get(gateway.address(), "any.example", "/")
        .connections(2)
        .run_during(|_| {
            let renamed = named("DNS", port, "").replace(NAME, "new.example");
            gateway.replace_resources("all", &renamed);
            eventually(SOON, "the new name serves", || {
                dns.times("new.example") > 0 && state(&gateway, NAME).is_null()
            });
        });
    assert_eq!(report.total(), report.status(200), "{report}");
    gateway.stop();
}

#[test]
fn the_hosts_file_comes_first_and_short_names_are_looked_for_in_the_search_domains() {
    let (one, two) = (Upstream::echo("one"), Upstream::echo("two"));
    let folder = tempfile::TempDir::new().unwrap();
    let (hosts, resolv) = (folder.path().join("hosts"), folder.path().join("resolv.conf"));
    std::fs::write(&hosts, "127.0.0.1 fixed.example\n").unwrap();
    std::fs::write(
        &resolv,
        "search first.example second.example\nnameserver 192.0.2.1\n",
    )
    .unwrap();
    let dns = Dns::start();
    dns.set("short.second.example", &Reply::addresses(&["127.0.0.1"], 60));
    let more = format!(
        ", endpoints: [{{address: fixed.example, ports: {{http: {}}}}}, {{address: short, ports: {{http: {}}}}}]",
        one.address().port(),
        two.address().port()
    );
    let files = format!(
        "dnsHostsFile: {}\ndnsConfigFile: {}\n{QUICK}{PATIENT}",
        hosts.display(),
        resolv.display()
    );
    let gateway = Gateway::builder()
        .resources("all", &named("DNS", 1, &more))
        .settings(&files)
        .arg("--dns-server")
        .arg(dns.address().to_string())
        .start();
    eventually(SOON, "both names serve", || {
        served_by(&gateway, 4) == set(&["one", "two"])
    });
    assert_eq!(dns.times("fixed.example"), 0);
    let asked: Vec<String> = dns.asked().into_iter().map(|question| question.name).collect();
    let at = |name: &str| asked.iter().position(|asked| asked == name);
    assert!(
        at("short.first.example") < at("short.second.example"),
        "{asked:?}"
    );
    assert!(
        at("short").is_none() || at("short") > at("short.second.example"),
        "{asked:?}"
    );
    gateway.stop();
}

#[test]
fn one_family_may_fail_while_the_other_serves() {
    let upstream = Upstream::echo("four");
    let dns = Dns::start();
    dns.set(NAME, &Reply::addresses(&["127.0.0.1"], 1));
    dns.set_one(NAME, AAAA, &Reply::Silence);
    let gateway = starting(&dns, &named("DNS", upstream.address().port(), "")).start();
    assert_eq!(served_by(&gateway, 2), set(&["four"]));
    dns.wait_for(NAME, 2);
    assert_eq!(served_by(&gateway, 2), set(&["four"]));
    gateway.stop();
}

/// A port whose queue of connections is full: who connects gets no answer.
struct Silent {
    _listener: std::os::fd::OwnedFd,
    _waiting: Vec<std::os::fd::OwnedFd>,
}

impl Silent {
    fn at(address: SocketAddr) -> Self {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};
        let new = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None).unwrap()
        };
        let listener = new();
        bind(&listener, &address).unwrap();
        listen(&listener, 0).unwrap();
        let fill = || {
            let socket = new();
            let _in_progress = connect(&socket, &address);
            socket
        };
        Self {
            _listener: listener,
            _waiting: (0..4).map(|_| fill()).collect(),
        }
    }
}
