//! Connections that carry bytes, not requests: raw peers on both sides, with TLS on either where it is asked for.

use isthmus_tests::bytes::{BytePeer, connect, hello_of_openssl, pattern, read_to_end, try_connect};
use isthmus_tests::cert::{Authority, Leaf};
use isthmus_tests::client::{Client, connect_from};
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::openssl::{self, alert};
use isthmus_tests::port::HeldPort;
use isthmus_tests::resources::{gateway_with, stream_service, tls_files, traffic_policy};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const HOST: &str = "tcp.internal";

/// A Gateway's server of bytes on port 9000.
const SERVER: &str = "{port: {number: 9000, name: tcp, protocol: TCP}, hosts: [\"*\"]}\n";

/// A VirtualService with these rules for connections, one a line.
fn rules(tcp: &str) -> String {
    let lines: String = tcp.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v, namespace: default}}
spec:
  hosts: [\"*\"]
  gateways: [g]
  tcp:
{lines}---
"
    )
}

fn to(host: &str) -> String {
    format!("- route: [{{destination: {{host: {host}, port: {{number: 9000}}}}}}]")
}

/// A gateway that carries port 9000 to these endpoints.
fn carrying(endpoints: &[SocketAddr]) -> Builder {
    let resources = gateway_with(SERVER) + &rules(&to(HOST)) + &stream_service(HOST, 9000, "TCP", endpoints);
    Gateway::builder().resources("g", &resources).port(9000)
}

fn open(gateway: &Gateway) -> TcpStream {
    connect(gateway.listener(9000))
}

/// What a client that sends nothing is told, or the error that ends it.
fn hear(mut stream: TcpStream) -> Result<String, ErrorKind> {
    let mut text = String::new();
    let end = stream.read_to_string(&mut text);
    end.map(|_| text).map_err(|error| error.kind())
}

#[test]
fn bytes_come_back_and_the_end_of_either_side_is_passed_on() {
    let echo = BytePeer::echo();
    let gateway = carrying(&[echo.address()]).start();
    let mut client = open(&gateway);
    let mut answer = [0; 5];
    for word in [b"hello", b"\x00\xff\r\n\x01", b"again"] {
        client.write_all(word).unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, word);
    }
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"last words");
    assert_eq!(echo.accepted(), 1);
    gateway.stop();
}

#[test]
fn a_server_speaks_first() {
    let peer = BytePeer::naming("220 ready\r\n");
    let gateway = carrying(&[peer.address()]).start();
    assert_eq!(hear(open(&gateway)), Ok("220 ready\r\n".to_owned()));
    gateway.stop();
}

#[test]
fn a_client_that_has_ended_still_gets_its_whole_answer() {
    let body = pattern(4 << 20);
    let answer = body.clone();
    let (heard, hears) = mpsc::channel();
    let peer = BytePeer::start(move |stream| {
        heard.send(read_to_end(stream)).unwrap();
        stream.write_all(&answer).unwrap();
    });
    let gateway = carrying(&[peer.address()]).start();
    let mut client = open(&gateway);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(&mut client) == body);
    assert_eq!(hears.recv_timeout(SOON).unwrap(), b"question");
    gateway.stop();
}

#[test]
fn a_server_that_has_ended_still_gets_all_that_the_client_sends() {
    let body = pattern(4 << 20);
    let (heard, hears) = mpsc::channel();
    let peer = BytePeer::start(move |stream| {
        stream.write_all(b"enough").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        heard.send(read_to_end(stream)).unwrap();
    });
    let gateway = carrying(&[peer.address()]).start();
    let mut client = open(&gateway);
    assert_eq!(read_to_end(&mut client), b"enough");
    client.write_all(&body).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(hears.recv_timeout(SOON).unwrap() == body);
    gateway.stop();
}

/// Sends all of it while what comes back is read, and answers that.
fn exchange(client: &mut TcpStream, body: &[u8]) -> Vec<u8> {
    thread::scope(|scope| {
        let mut writer = client.try_clone().unwrap();
        scope.spawn(move || {
            writer.write_all(body).expect("the bytes are taken");
            writer.shutdown(Shutdown::Write).expect("the end is taken");
        });
        read_to_end(client)
    })
}

#[test]
fn big_transfers_arrive_intact_beside_each_other() {
    let echo = BytePeer::echo();
    let gateway = carrying(&[echo.address()]).shards(2).start();
    let before = gateway.resting();
    let body = pattern(24 << 20);
    thread::scope(|scope| {
        for at in 0..3 {
            let (gateway, body) = (&gateway, &body);
            scope.spawn(move || assert!(exchange(&mut open(gateway), body) == *body, "client {at}"));
        }
    });
    gateway.assert_returns_to(&before);
    gateway.stop();
}

#[test]
fn connections_are_dealt_out_by_weight() {
    const CONNECTIONS: usize = 400;
    let (much, little) = (BytePeer::naming("much"), BytePeer::naming("little"));
    let routes = "- route:
  - {destination: {host: much.internal, port: {number: 9000}}, weight: 90}
  - {destination: {host: little.internal, port: {number: 9000}}, weight: 10}";
    let services = stream_service("much.internal", 9000, "TCP", &[much.address()])
        + &stream_service("little.internal", 9000, "TCP", &[little.address()]);
    let gateway = Gateway::builder()
        .resources("g", &(gateway_with(SERVER) + &rules(routes) + &services))
        .port(9000)
        .start();
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..CONNECTIONS {
        *counts.entry(hear(open(&gateway)).unwrap()).or_default() += 1;
    }
    assert_eq!(counts.values().sum::<usize>(), CONNECTIONS);
    // 360 with a deviation of 6: out of these bounds once in millions.
    assert!((329..=391).contains(&counts["much"]), "{counts:?}");
    gateway.stop();
}

#[test]
fn ports_lead_where_their_rules_say() {
    let (one, two) = (BytePeer::naming("one"), BytePeer::naming("two"));
    let servers = SERVER.to_owned() + "{port: {number: 9001, name: tcp-2, protocol: TCP}, hosts: [\"*\"]}\n";
    let routes = "- match: [{port: 9001}]
  route: [{destination: {host: two.internal, port: {number: 9000}}}]
- route: [{destination: {host: one.internal, port: {number: 9000}}}]";
    let services = stream_service("one.internal", 9000, "TCP", &[one.address()])
        + &stream_service("two.internal", 9000, "TCP", &[two.address()]);
    let gateway = Gateway::builder()
        .resources("g", &(gateway_with(&servers) + &rules(routes) + &services))
        .port(9000)
        .port(9001)
        .start();
    for _ in 0..3 {
        assert_eq!(hear(connect(gateway.listener(9000))), Ok("one".to_owned()));
        assert_eq!(hear(connect(gateway.listener(9001))), Ok("two".to_owned()));
    }
    gateway.stop();
}

#[test]
fn rules_are_for_the_clients_that_they_ask_for() {
    let names = ["one", "two", "many"];
    let peers = names.map(BytePeer::naming);
    let routes = "- match: [{sourceSubnet: 127.0.0.1}]
  route: [{destination: {host: one.internal, port: {number: 9000}}}]
- match: [{sourceLabels: {app: two}}]
  route: [{destination: {host: two.internal, port: {number: 9000}}}]";
    // Another VirtualService goes on where the first has nothing for a client.
    let behind = "- match: [{sourceSubnet: 127.0.1.0/24}, {sourceSubnet: 127.0.2.0/24}]
  route: [{destination: {host: many.internal, port: {number: 9000}}}]";
    let services = names.iter().zip(&peers).map(|(name, peer)| {
        let host = format!("{name}.internal");
        stream_service(&host, 9000, "TCP", &[peer.address()])
    });
    let two = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: two, namespace: default}
spec: {address: 127.0.0.2, labels: {app: two}}
";
    let text = gateway_with(SERVER)
        + &rules(routes)
        + &rules(behind).replace("name: v,", "name: w,")
        + &services.collect::<String>()
        + two;
    let gateway = Gateway::builder().resources("g", &text).port(9000).start();
    let heard = |address: &str| {
        let from = address.parse().unwrap();
        let stream = connect_from(from, gateway.listener(9000), None).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        hear(stream)
    };
    for (address, name) in [
        ("127.0.0.1", "one"),
        ("127.0.0.2", "two"),
        ("127.0.1.7", "many"),
        ("127.0.2.7", "many"),
    ] {
        assert_eq!(heard(address), Ok(name.to_owned()), "{address}");
    }
    // Nothing is for this one.
    let nobody = heard("127.0.0.3");
    assert!(
        nobody.as_deref().is_ok_and(str::is_empty) || nobody == Err(ErrorKind::ConnectionReset),
        "{nobody:?}"
    );
    gateway.assert_causes("no_route", 1);
    // Who is known is named in the counts of connections and bytes.
    let of_two =
        |name: &str| gateway.metric_with(&format!("istio_tcp_{name}_total"), "source_workload=\"two\"");
    eventually(SOON, "the end of a connection", || {
        of_two("connections_closed") == Some(1.0)
    });
    assert_eq!(
        (of_two("connections_opened"), of_two("sent_bytes")),
        (Some(1.0), Some(3.0))
    );
    gateway.stop();
}

#[test]
fn names_of_tls_lead_where_the_rules_for_their_client_say() {
    let names = ["one", "two", "rest"];
    let peers = names.map(BytePeer::naming);
    let door = "{port: {number: 9000, name: tls, protocol: TLS}, hosts: [\"*\"], tls: {mode: PASSTHROUGH}}\n";
    let to = |name: &str| {
        format!("  route: [{{destination: {{host: {name}.internal, port: {{number: 9000}}}}}}]\n")
    };
    let rules = [
        "- match: [{sniHosts: [a.test.example, b.test.example], sourceLabels: {app: one}}]\n".to_owned(),
        to("one"),
        "- match: [{sniHosts: [a.test.example], sourceNamespace: shop}]\n".to_owned(),
        to("two"),
        "- match: [{sniHosts: [\"*.test.example\"]}]\n".to_owned(),
        to("rest"),
    ];
    let services = names.iter().zip(&peers).map(|(name, peer)| {
        let host = format!("{name}.internal");
        stream_service(&host, 9000, "TLS", &[peer.address()])
    });
    let clients = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: one, namespace: default}
spec: {address: 127.0.0.2, labels: {app: one}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: two, namespace: shop}
spec: {address: 127.0.0.3}
";
    let text = gateway_with(door)
        + &self::rules(&rules.concat()).replace("  tcp:", "  tls:")
        + &services.collect::<String>()
        + clients;
    let gateway = Gateway::builder().resources("g", &text).port(9000).start();
    let hellos = ["a.test.example", "b.test.example"].map(hello_of_openssl);
    for (address, leads) in [
        ("127.0.0.1", ["rest", "rest"]),
        ("127.0.0.2", ["one", "one"]),
        // What is for others leaves the next rule of the same name, and then the wildcard.
        ("127.0.0.3", ["two", "rest"]),
    ] {
        for (hello, name) in hellos.iter().zip(leads) {
            let from = address.parse().unwrap();
            let mut stream = connect_from(from, gateway.listener(9000), None).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.write_all(hello).unwrap();
            let mut said = vec![0; name.len()];
            stream.read_exact(&mut said).unwrap();
            assert_eq!(said, name.as_bytes(), "{address}");
        }
    }
    gateway.stop();
}

// --- ends that are no orderly ones

#[test]
fn an_upstream_that_refuses_resets_the_client() {
    let refusing = HeldPort::take();
    let gateway = carrying(&[refusing.address()]).start();
    for times in 1..=3 {
        let told = try_connect(gateway.listener(9000)).map_err(|error| error.kind());
        assert_eq!(told.and_then(hear), Err(ErrorKind::ConnectionReset));
        gateway.assert_causes("connect_failed", times);
    }
    eventually(SOON, "lines of the access log", || {
        gateway.access_log().len() == 3
    });
    assert!(
        gateway.access_log().iter().all(|line| line.has("UF")),
        "{:?}",
        gateway.access_log()
    );
    gateway.stop();
}

#[test]
fn another_endpoint_is_tried_when_one_refuses() {
    let refusing = HeldPort::take();
    let peer = BytePeer::naming("alive");
    let gateway = carrying(&[refusing.address(), peer.address()]).start();
    for _ in 0..20 {
        assert_eq!(hear(open(&gateway)), Ok("alive".to_owned()));
    }
    assert!(gateway.metric("isthmus_upstream_connect_failures_total").unwrap() > 0.0);
    gateway.stop();
}

#[test]
fn who_breaks_off_breaks_the_other_side() {
    let (heard, hears) = mpsc::channel();
    let peer = BytePeer::start(move |stream| {
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        if &first == b"break" {
            rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO)).unwrap();
            return;
        }
        stream.write_all(&first).unwrap();
        heard
            .send(stream.read(&mut first).map_err(|error| error.kind()))
            .unwrap();
    });
    let gateway = carrying(&[peer.address()]).start();
    let before = gateway.resting();

    let mut client = open(&gateway);
    client.write_all(b"break").unwrap();
    assert_eq!(hear(client), Err(ErrorKind::ConnectionReset));

    let mut client = Client::connect(gateway.listener(9000));
    client.send("hello").read_some().unwrap();
    client.abort();
    assert_eq!(hears.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));
    gateway.assert_returns_to(&before);
    gateway.stop();
}

/// A gateway that carries port 9000 to an echo, with these fields of `connectionPool.tcp`.
fn limited(echo: &BytePeer, tcp: &str) -> Gateway {
    let policy = format!("connectionPool: {{tcp: {{{tcp}}}}}");
    carrying(&[echo.address()])
        .resources("rule", &traffic_policy(HOST, &policy))
        .start()
}

#[test]
fn a_silent_connection_is_closed_and_one_that_speaks_is_not() {
    const IDLE: Duration = Duration::from_secs(2);
    let echo = BytePeer::echo();
    let gateway = limited(&echo, "idleTimeout: 2s");
    let mut client = open(&gateway);
    let began = Instant::now();
    let mut byte = [0; 1];
    while began.elapsed() < 3 * IDLE {
        client.write_all(b"x").unwrap();
        client
            .read_exact(&mut byte)
            .expect("a connection that speaks stays");
        thread::sleep(Duration::from_millis(50));
    }
    let silent = Instant::now();
    assert_eq!(hear(client), Ok(String::new()));
    let took = silent.elapsed();
    assert!(
        took > IDLE - Duration::from_millis(200) && took < SOON,
        "{took:?}"
    );
    gateway.assert_causes("connection_idle", 1);
    gateway.stop();
}

#[test]
fn a_connection_that_lasts_too_long_is_closed_while_it_speaks() {
    let echo = BytePeer::echo();
    let gateway = limited(&echo, "maxConnectionDuration: 1s");
    let mut client = open(&gateway);
    let began = Instant::now();
    let mut byte = [0; 1];
    while client.write_all(b"x").is_ok() && matches!(client.read(&mut byte), Ok(1)) {
        assert!(began.elapsed() < SOON, "it is still open");
        thread::sleep(Duration::from_millis(20));
    }
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900) && took < SOON, "{took:?}");
    gateway.assert_causes("connection_too_old", 1);
    gateway.stop();
}

#[test]
fn connections_and_their_bytes_are_counted() {
    let body = pattern(300_000);
    let answer = pattern(100_000);
    let sent = answer.clone();
    let peer = BytePeer::start(move |stream| {
        read_to_end(stream);
        stream.write_all(&sent).unwrap();
    });
    let gateway = carrying(&[peer.address()]).start();
    let mut waiting = open(&gateway);
    for _ in 0..4 {
        assert!(exchange(&mut open(&gateway), &body) == answer);
    }
    let label = format!("destination_service=\"{HOST}\"");
    let count = |name: &str| gateway.metric_with(&format!("istio_tcp_{name}_total"), &label);
    eventually(SOON, "the end of four connections", || {
        count("connections_closed") == Some(4.0)
    });
    assert_eq!(count("connections_opened"), Some(5.0));
    assert_eq!(count("received_bytes"), Some(1_200_000.0));
    assert_eq!(count("sent_bytes"), Some(400_000.0));
    waiting.write_all(b"12345").unwrap();
    eventually(SOON, "bytes of an open connection", || {
        count("received_bytes") == Some(1_200_005.0)
    });
    let request = gateway.metric_with("istio_tcp_connections_opened_total", "request_protocol=\"tcp\"");
    assert_eq!(request, Some(5.0));
    eventually(SOON, "lines of the access log", || {
        gateway.access_log().len() == 4
    });
    for line in gateway.access_log() {
        assert!(line.line.contains(" 300000 100000 "), "{line:?}");
    }
    drop(waiting);
    gateway.stop();
}

// --- with TLS

/// A gateway that ends TLS for `a.example` on port 9000 and carries what is inside to this address.
fn opening(address: SocketAddr, leaf: &Leaf) -> Gateway {
    let server = format!(
        "{{port: {{number: 9000, name: tls, protocol: TLS}}, hosts: [a.example], tls: {{{}}}}}\n",
        tls_files("SIMPLE", leaf)
    );
    let resources =
        gateway_with(&server) + &rules(&to(HOST)) + &stream_service(HOST, 9000, "TCP", &[address]);
    Gateway::builder().resources("g", &resources).port(9000).start()
}

#[test]
fn tls_of_a_client_ends_and_its_bytes_go_on() {
    let echo = BytePeer::echo();
    let leaf = Authority::new().server(&["a.example"]);
    let gateway = opening(echo.address(), &leaf);
    let before = gateway.resting();
    let body = pattern(3 << 20);
    for version in ["-tls1_2", "-tls1_3"] {
        let client = openssl::Client::new(gateway.listener(9000), "a.example").args(&[version]);
        let mut stays = client.stay();
        for part in [&b"hello"[..], &body, b"again"] {
            assert!(stays.exchange(part) == part, "{version}");
        }
    }
    gateway.assert_returns_to(&before);
    assert_eq!(gateway.metric("isthmus_tls_handshakes_total"), Some(2.0));
    let talk = openssl::Client::new(gateway.listener(9000), "b.example").refused();
    assert_eq!(talk.alert(), Some(alert::UNRECOGNIZED_NAME), "{}", talk.text);
    gateway.stop();
}

#[test]
fn an_orderly_end_of_tls_is_passed_on_and_a_cut_is_told_from_it() {
    let (heard, hears) = mpsc::channel();
    let peer = BytePeer::start(move |stream| {
        stream.write_all(b"hello").unwrap();
        let mut all = Vec::new();
        let end = stream.read_to_end(&mut all).map_err(|error| error.kind());
        heard.send((end.err(), all)).unwrap();
    });
    let leaf = Authority::new().server(&["a.example"]);
    let gateway = opening(peer.address(), &leaf);
    for version in ["-tls1_2", "-tls1_3"] {
        let client = openssl::Client::new(gateway.listener(9000), "a.example").args(&[version]);
        client.say(b"all of it");
        assert_eq!(
            hears.recv_timeout(SOON).unwrap(),
            (None, b"all of it".to_vec()),
            "{version}"
        );
        // It dies with its socket, and says no goodbye.
        let mut cut = client.stay();
        assert_eq!(cut.exchange(b"world"), b"hello");
        drop(cut);
        assert_eq!(
            hears.recv_timeout(SOON).unwrap().0,
            Some(ErrorKind::ConnectionReset),
            "{version}"
        );
    }
    gateway.stop();

    let peer = BytePeer::naming("last words");
    let gateway = opening(peer.address(), &leaf);
    for version in ["-tls1_2", "-tls1_3"] {
        let client = openssl::Client::new(gateway.listener(9000), "a.example").args(&[version]);
        let talk = client.send(b"");
        assert!(talk.text.contains("last words"), "{}", talk.text);
        assert!(!talk.text.contains("unexpected eof"), "{}", talk.text);
    }
    gateway.stop();
}

#[test]
fn bytes_are_secured_towards_an_upstream_that_wants_it() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["up.example"]), None, &[]);
    let start = |tls: &str| {
        let policy = format!(
            "tls: {{mode: SIMPLE, caCertificates: {}, {tls}}}",
            authority.certificate().display()
        );
        carrying(&[nginx.address()])
            .resources("rule", &traffic_policy(HOST, &policy))
            .start()
    };
    let gateway = start("sni: up.example");
    let answer = Client::connect(gateway.listener(9000)).get("whoever.example", "/tls");
    assert!(
        answer.text().starts_with("sni=up.example protocol=TLSv1.3 "),
        "{answer:?}"
    );
    gateway.stop();

    // Without a name of the rule it is the host of the service, which this certificate has not.
    let gateway = start("subjectAltNames: [up.example]");
    let answer = Client::connect(gateway.listener(9000)).get("whoever.example", "/tls");
    assert!(answer.text().starts_with("sni=tcp.internal "), "{answer:?}");
    gateway.stop();

    let gateway = start("subjectAltNames: [other.example]");
    let mut client = open(&gateway);
    let _may_be_gone = client.write_all(b"GET");
    assert_eq!(hear(client), Err(ErrorKind::ConnectionReset));
    gateway.assert_causes("upstream_tls", 1);
    gateway.stop();
}
