//! The configuration changes while traffic flows: files that are replaced, spoilt, added and taken away.

use isthmus_tests::client::{Client, get};
use isthmus_tests::deadline::{SOON, eventually, eventually_some};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Frame, flag};
use isthmus_tests::load::{self, Load};
use isthmus_tests::resources::{
    self, Endpoint, UPSTREAM_HOST, one_route, route_to, service, virtual_service,
};
use isthmus_tests::upstream::{SERVED_BY, Upstream};
use rustix::process::Signal;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::thread;
use tempfile::TempDir;

/// Reloads under traffic of an ordinary run; `ISTHMUS_RELOADS` gives another number, and with 500 or more there are
/// as many clients as an edge is held to.
const RELOADS: usize = 40;

fn served_by(gateway: &Gateway) -> String {
    let answer = gateway.get("any.example", "/");
    answer.field(SERVED_BY).unwrap_or_default().to_owned()
}

#[test]
fn a_file_that_changes_is_served_without_being_asked() {
    let (one, two, three) = (
        Upstream::echo("one"),
        Upstream::echo("two"),
        Upstream::echo("three"),
    );
    let gateway = Gateway::in_front_of(one.address());
    assert_eq!(served_by(&gateway), "one");
    gateway.replace_resources("route", &one_route(two.address(), ""));
    eventually(SOON, "the second upstream serves", || {
        served_by(&gateway) == "two"
    });
    // Written in place.
    let path = gateway.folder_path().join("resources").join("route.yaml");
    fs::write(&path, one_route(three.address(), "")).unwrap();
    eventually(SOON, "the third upstream serves", || {
        served_by(&gateway) == "three"
    });
    assert!(
        gateway.log().contains("the configuration is applied"),
        "{}",
        gateway.log()
    );
    gateway.stop();
}

#[test]
fn a_mounted_volume_that_is_swapped_is_served() {
    let (one, two) = (Upstream::echo("one"), Upstream::echo("two"));
    let volume = TempDir::new().unwrap();
    let at = |name: &str| volume.path().join(name);
    for (name, upstream) in [("..first", &one), ("..second", &two)] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("route.yaml"), one_route(upstream.address(), "")).unwrap();
    }
    symlink("..first", at("..data")).unwrap();
    symlink("..data/route.yaml", at("route.yaml")).unwrap();
    let gateway = Gateway::builder().arg("-f").arg(volume.path()).start();
    assert_eq!(served_by(&gateway), "one");
    symlink("..second", at("..next")).unwrap();
    fs::rename(at("..next"), at("..data")).unwrap();
    eventually(SOON, "the second upstream serves", || {
        served_by(&gateway) == "two"
    });
    gateway.stop();
}

#[test]
fn hup_and_the_admin_server_load_the_files() {
    let (one, two) = (Upstream::echo("one"), Upstream::echo("two"));
    let gateway = Gateway::in_front_of(one.address());
    let before = gateway.metric("isthmus_config_version").unwrap();
    gateway.signal(Signal::HUP);
    eventually(SOON, "another version", || {
        gateway.metric("isthmus_config_version") == Some(before + 1.0)
    });
    gateway.replace_resources("route", &one_route(two.address(), ""));
    let status = gateway.reload();
    assert_eq!(served_by(&gateway), "two", "{status}");
    assert_eq!(
        status["quarantined"].as_array().map(Vec::len),
        Some(0),
        "{status}"
    );
    assert_eq!(
        gateway.get_admin("/configuration").text(),
        status.to_string(),
        "what is served is what was told"
    );
    gateway.stop();
}

fn spoilt(address: SocketAddr) -> String {
    one_route(address, "timeout: never")
}

#[test]
fn a_bad_document_keeps_its_last_good_version_and_the_rest_applies() {
    let (one, two) = (Upstream::echo("one"), Upstream::echo("two"));
    let state = TempDir::new().unwrap();
    let gateway = Gateway::builder()
        .resources("route", &one_route(one.address(), ""))
        .arg("--state-dir")
        .arg(state.path())
        .start();
    // The rule is wrong, and its service has moved: the one stays, the other applies.
    gateway.replace_resources("route", &spoilt(two.address()));
    let status = gateway.reload();
    assert_eq!(served_by(&gateway), "two");
    let [held] = &status["quarantined"].as_array().unwrap()[..] else {
        panic!("{status}")
    };
    assert_eq!(held["resources"][0], "VirtualService default/v", "{status}");
    assert_eq!(held["serves_last"], true, "{status}");
    assert!(held["reason"].as_str().unwrap().contains("never"), "{status}");
    let detail = gateway.get_admin("/ready");
    assert_eq!(detail.status, 200);
    assert!(
        detail.text().starts_with("ready\ndegraded: "),
        "{}",
        detail.text()
    );
    let health = get(gateway.status(), "localhost", "/healthz/ready");
    assert_eq!((health.status, health.text()), (200, "ready\n"));
    assert_eq!(gateway.metric("isthmus_config_quarantined_documents"), Some(1.0));
    assert!(
        gateway.log().contains("a document stays behind"),
        "{}",
        gateway.log()
    );

    // Another start of the same files serves the same.
    let folder = gateway.folder_path().join("resources");
    let again = Gateway::builder()
        .resources("route", &fs::read_to_string(folder.join("route.yaml")).unwrap())
        .arg("--state-dir")
        .arg(state.path());
    // The last good version is known by what it defines, not by the folder that it was in.
    let again = again.start();
    assert_eq!(served_by(&again), "two");
    assert!(again.get_admin("/ready").text().contains("degraded"));
    again.stop();
    let without = Gateway::builder()
        .resources("route", &spoilt(two.address()))
        .run_to_exit();
    assert_eq!(without.code, Some(1), "{}", without.log);
    assert!(without.log.contains("timeout"), "{}", without.log);

    // Mended, nothing is left of it.
    gateway.replace_resources("route", &one_route(one.address(), "timeout: 3s"));
    let status = gateway.reload();
    assert_eq!(
        status["quarantined"].as_array().map(Vec::len),
        Some(0),
        "{status}"
    );
    assert_eq!(served_by(&gateway), "one");
    assert_eq!(gateway.get_admin("/ready").text(), "ready\n");
    gateway.stop();
}

#[test]
fn files_that_are_gone_change_nothing() {
    let one = Upstream::echo("one");
    let gateway = Gateway::in_front_of(one.address());
    fs::remove_file(gateway.folder_path().join("resources").join("route.yaml")).unwrap();
    let status = gateway.reload();
    assert!(status["unreadable"].is_string(), "{status}");
    assert_eq!(served_by(&gateway), "one");
    gateway.stop();
}

fn doors(ports: &[u16], upstream: SocketAddr) -> String {
    let servers: String = ports
        .iter()
        .map(|port| {
            format!("{{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: [\"*\"]}}\n")
        })
        .collect();
    resources::gateway_with(&servers) + &resources::all_to(upstream)
}

#[test]
fn ports_come_and_go() {
    let one = Upstream::echo("one");
    let gateway = Gateway::builder()
        .resources("g", &doors(&[80], one.address()))
        .port(80)
        .port(81)
        .start();
    assert_eq!(gateway.listener_now(81), None);
    gateway.replace_resources("g", &doors(&[80, 81], one.address()));
    gateway.reload();
    let second = eventually_some(SOON, "a second port", || gateway.listener_now(81));
    let mut kept = Client::connect(second);
    assert_eq!(kept.get("a.example", "/").status, 200);
    let mut untouched = gateway.client();
    assert_eq!(untouched.get("a.example", "/").status, 200);

    gateway.replace_resources("g", &doors(&[80], one.address()));
    gateway.reload();
    eventually(SOON, "the second port is refused", || {
        TcpStream::connect(second).is_err()
    });
    let farewell = kept.get("a.example", "/");
    assert_eq!(farewell.status, 200);
    assert_eq!(farewell.field("connection"), Some("close"));
    kept.assert_closed();
    assert_eq!(untouched.get("a.example", "/").field("connection"), None);
    gateway.stop();
}

#[test]
fn a_port_that_is_taken_is_tried_again_and_the_rest_is_served() {
    let one = Upstream::echo("one");
    let blocker = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = blocker.local_addr().unwrap();
    let gateway = Gateway::builder()
        .resources("g", &doors(&[80], one.address()))
        .port(80)
        .port_as(81, taken.port())
        .start();
    gateway.replace_resources("g", &doors(&[80, 81], one.address()));
    let status = gateway.reload();
    assert_eq!(
        status["failed_ports"].as_array().map(Vec::len),
        Some(1),
        "{status}"
    );
    assert_eq!(served_by(&gateway), "one");
    drop(blocker);
    eventually(SOON, "the port is served", || {
        Client::try_connect(taken).is_ok_and(|mut client| {
            client
                .try_send("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n")
                .is_ok()
                && client
                    .try_response(false)
                    .is_ok_and(|answer| answer.status == 200)
        })
    });
    eventually(SOON, "the ready file has it", || {
        gateway.listener_now(81) == Some(taken)
    });
    gateway.stop();
}

/// A peer that agrees to carry bytes and sends them back.
fn echo_of_bytes() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let mut writer = stream;
                let agreed =
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                if writer.write_all(agreed.as_bytes()).is_ok() {
                    let _ended = std::io::copy(&mut reader, &mut writer);
                }
            });
        }
    });
    address
}

/// A tunnel through the gateway.
struct Tunnel(TcpStream);

impl Tunnel {
    fn open(gateway: SocketAddr) -> Self {
        let mut client = Client::connect(gateway);
        client
            .send("GET /tunnel HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
        let (_, status, _) = client.head().unwrap();
        assert_eq!(status, 101);
        Self(client.into_stream())
    }

    fn echoes(&mut self, text: &str) -> bool {
        let mut back = vec![0; text.len()];
        self.0.write_all(text.as_bytes()).is_ok()
            && self.0.read_exact(&mut back).is_ok()
            && back == text.as_bytes()
    }
}

/// The documents of one version: everything that may change does, but for what streams hang on.
fn version(number: usize, upstreams: &[SocketAddr], tunnel: SocketAddr, slow: SocketAddr) -> String {
    let server = |port: usize| {
        format!("{{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: [\"*\"]}}")
    };
    let mut servers = server(80) + "\n";
    if number.is_multiple_of(3) {
        servers += &(server(81) + "\n");
    }
    let gateway = resources::gateway_with(&servers).replace(
        "metadata: {name: g, namespace: default}",
        "metadata: {name: g, namespace: default, annotations: {isthmus.dev/upgrades: echo}}",
    );
    // The endpoints change, and so do the subsets and their shares.
    let shown = 1 + number % upstreams.len();
    let endpoints: Vec<Endpoint> = upstreams
        .iter()
        .take(shown)
        .enumerate()
        .map(|(at, address)| Endpoint::new(if at % 2 == 0 { "v1" } else { "v2" }, *address))
        .collect();
    let mut routes = String::new();
    writeln!(
        routes,
        "- match: [{{uri: {{prefix: /tunnel}}}}]\n  {}",
        route_to("tunnel.example")
    )
    .unwrap();
    writeln!(
        routes,
        "- match: [{{uri: {{prefix: /slow}}}}]\n  {}",
        route_to("slow.example")
    )
    .unwrap();
    for extra in 0..number % 7 {
        writeln!(
            routes,
            "- match: [{{uri: {{prefix: /extra-{extra}}}}}]\n  {}",
            route_to(UPSTREAM_HOST)
        )
        .unwrap();
    }
    let weight = 10 + number % 80;
    if shown > 1 {
        writeln!(
            routes,
            "- route:\n  - {{destination: {{host: {UPSTREAM_HOST}, subset: v1}}, weight: {weight}}}\n  - {{destination: {{host: {UPSTREAM_HOST}, subset: v2}}, weight: {}}}",
            100 - weight
        )
        .unwrap();
    } else {
        writeln!(routes, "- {}", route_to(UPSTREAM_HOST)).unwrap();
    }
    gateway
        + &service(UPSTREAM_HOST, 80, &endpoints)
        + &service("tunnel.example", 80, &[Endpoint::new("v1", tunnel)])
        + &service("slow.example", 80, &[Endpoint::new("v1", slow)])
        + &resources::subsets(UPSTREAM_HOST, if shown > 1 { &["v1", "v2"] } else { &["v1"] })
        + &virtual_service(&routes)
}

#[test]
fn nothing_is_lost_while_the_configuration_changes() {
    let _turn = load::turn();
    let reloads = std::env::var("ISTHMUS_RELOADS").map_or(RELOADS, |text| text.parse().unwrap());
    let full = reloads >= 500;
    let (clients, tunnels, streams) = if full { (64, 200, 20) } else { (16, 40, 10) };
    let upstreams: Vec<Upstream> = ["a", "b", "c"]
        .iter()
        .map(|name| Upstream::echo_for_load(name))
        .collect();
    let addresses: Vec<SocketAddr> = upstreams.iter().map(Upstream::address).collect();
    let (tunnel, slow) = (echo_of_bytes(), Upstream::echo_for_load("slow"));
    let text = |number| version(number, &addresses, tunnel, slow.address());
    let builder: Builder = Gateway::builder()
        .resources("all", &text(0))
        .shards(2)
        .port(80)
        .port(81);
    let gateway = builder.without_access_log().start();
    let address = gateway.address();

    let mut open: Vec<Tunnel> = (0..tunnels).map(|_| Tunnel::open(address)).collect();
    // Streams that have begun before everything and end after it.
    let mut h2 = Connection::open(Target::cleartext(address)).unwrap();
    h2.handshake(&[]).unwrap();
    let held: Vec<u32> = (0..streams).map(|_| h2.post("/slow")).collect();
    for stream in &held {
        h2.send(&Frame::data(flag::NONE, *stream, b"first "));
    }
    let mut rss = Vec::new();
    let load = Load::get(address, "a.example", "/").connections(clients);
    let (report, ()) = load.run_during(|_| {
        for number in 1..=reloads {
            gateway.replace_resources("all", &text(number));
            let status = gateway.reload();
            assert_eq!(
                status["quarantined"].as_array().map(Vec::len),
                Some(0),
                "{status}"
            );
            let at = number % open.len();
            assert!(
                open[at].echoes(&format!("reload {number}")),
                "tunnel {at} at reload {number}"
            );
            if number % (reloads / 4).max(1) == 0 {
                rss.push(gateway.facts().rss_kib);
            }
        }
    });
    assert!(report.errors.is_empty(), "{report}");
    assert_eq!(report.status(200), report.total(), "{report}");
    assert!(report.total() > reloads as u64, "{report}");
    for (at, tunnel) in open.iter_mut().enumerate() {
        assert!(tunnel.echoes("still there"), "tunnel {at}");
    }
    for stream in held {
        h2.upload(stream, b"last").unwrap();
        let answer = h2.whole_answer(stream).unwrap();
        assert!(answer.text().contains("first last"), "{}", answer.text());
    }
    let (first, last) = (rss[0], rss[rss.len() - 1]);
    assert!(last < first + first / 4 + 8192, "memory grows: {rss:?} KiB");
    println!("{report}; resident KiB at each quarter {rss:?}");
    drop(open);
    gateway.stop();
}
