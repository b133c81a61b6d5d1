//! The configuration changes while traffic flows: files that are replaced, spoilt, added and taken away.

use isthmus_tests::cert::{Authority, Leaf};
use isthmus_tests::client::{Client, get};
use isthmus_tests::deadline::{SOON, eventually, eventually_some};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Frame, flag};
use isthmus_tests::h2::server::{Event, Server as Scripted};
use isthmus_tests::load::{self, Load};
use isthmus_tests::openssl;
use isthmus_tests::resources::{
    self, Endpoint, UPSTREAM_HOST, one_route, route_to, service, stream_service, virtual_service,
};
use isthmus_tests::upstream::{SERVED_BY, Upstream};
use rustix::process::Signal;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Reloads under traffic of an ordinary run; `ISTHMUS_RELOADS` gives another number, and with 500 or more there are
/// as many clients as an edge is held to.
const RELOADS: usize = 40;
/// How often the long form loads: 500 times a minute.
const PERIOD: Duration = Duration::from_millis(118);
/// Requests of each client in a second: clients that are there, and not all that a machine can do.
const CLIENT_RATE: u32 = 100;
const MINUTE: Duration = Duration::from_secs(60);

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
    let file = gateway.folder_path().join("resources").join("route.yaml");
    // Cut short by who is about to write it, and gone.
    for is_cut in [true, false] {
        if is_cut {
            fs::write(&file, "\n").unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        let status = gateway.reload();
        assert!(status["unreadable"].is_string(), "{status}");
        assert_eq!(served_by(&gateway), "one");
    }
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

/// What proves that the key of [`WEBSOCKET_WISH`] was understood (RFC 6455, 1.3).
const AGREED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const WEBSOCKET_WISH: &str = "GET /tunnel HTTP/1.1\r\nhost: a.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Serves each connection on a thread of its own, once its first head has come.
fn peer(serve: fn(BufReader<TcpStream>) -> std::io::Result<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let _gone = serve(reader);
            });
        }
    });
    address
}

/// Agrees to a WebSocket and sends back what it gets.
fn websocket(mut reader: BufReader<TcpStream>) -> std::io::Result<()> {
    let mut writer = reader.get_ref().try_clone()?;
    writer.write_all(AGREED)?;
    std::io::copy(&mut reader, &mut writer)?;
    Ok(())
}

/// What a download brings between two reloads.
const PART: usize = 32 * 1024;
/// A body without an end that a test would reach: the client says when it has enough.
const ENDLESS: u64 = 1 << 40;

/// The byte of a download at a place, of which no two parts have the same.
fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

fn download(reader: BufReader<TcpStream>) -> std::io::Result<()> {
    let mut writer = reader.into_inner();
    write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {ENDLESS}\r\n\r\n")?;
    let mut at = 0;
    loop {
        let part: Vec<u8> = (at..at + PART as u64).map(pattern).collect();
        writer.write_all(&part)?;
        at += part.len() as u64;
    }
}

/// A download that goes on as fast as its client reads.
struct Download {
    client: Client,
    at: u64,
}

impl Download {
    fn begin(gateway: SocketAddr) -> Self {
        let mut client = Client::connect(gateway);
        client.send_get("a.example", "/download");
        assert_eq!(client.head().unwrap().1, 200);
        Self { client, at: 0 }
    }

    /// Reads the next part; answers whether it is what it should be.
    fn goes_on(&mut self) -> bool {
        let part = self.client.exactly(PART);
        let begun = self.at;
        self.at += PART as u64;
        part.iter().zip(begun..).all(|(byte, at)| *byte == pattern(at))
    }
}

/// A tunnel through the gateway.
struct Tunnel(TcpStream);

impl Tunnel {
    fn open(gateway: SocketAddr) -> Self {
        let mut client = Client::connect(gateway);
        client.send(WEBSOCKET_WISH);
        let (_, status, _) = client.head().unwrap();
        assert_eq!(status, 101);
        Self(client.into_stream())
    }

    /// Whether a message, masked by zeros, comes back.
    fn echoes(&mut self, text: &str) -> bool {
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        let mut back = vec![0; frame.len()];
        self.0.write_all(&frame).is_ok() && self.0.read_exact(&mut back).is_ok() && back == frame
    }
}

/// A server of gRPC whose calls send back each message.
fn calls() -> Scripted {
    Scripted::start(&[], |peer, event| match event {
        Event::Head(stream) => {
            peer.head(stream, 200, &[("content-type", "application/grpc")], false);
        }
        Event::Data(stream) => {
            let Some(request) = peer.seen.requests.get_mut(&stream) else {
                return;
            };
            let body = std::mem::take(&mut request.body);
            peer.data(stream, &body, false);
        }
        Event::End(stream) => peer.trailers(stream, &[("grpc-status", "0")]),
        _ => {}
    })
}

/// Begins a call.
fn call(h2: &mut Connection) -> u32 {
    let stream = h2.next_stream();
    let head = h2
        .head("POST", "/peer.Echo/Bidirectional")
        .field("content-type", "application/grpc")
        .field("te", "trailers");
    h2.send(&Frame::headers(flag::END_HEADERS, stream, head.bytes()));
    stream
}

/// A message of gRPC.
fn message(text: &str) -> Vec<u8> {
    let mut all = vec![0];
    all.extend((text.len() as u32).to_be_bytes());
    all.extend(text.as_bytes());
    all
}

/// What stays while everything else changes.
struct Upstreams {
    echoes: Vec<Upstream>,
    websocket: SocketAddr,
    download: SocketAddr,
    calls: Scripted,
    /// Two certificates that take turns.
    leaves: [Leaf; 2],
}

/// The documents of one version: everything that may change does, but for what streams hang on.
fn version(number: usize, upstreams: &Upstreams) -> String {
    let addresses: Vec<SocketAddr> = upstreams.echoes.iter().map(Upstream::address).collect();
    let server = |port: usize| {
        format!("{{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: [\"*\"]}}")
    };
    let mut servers = server(80) + "\n";
    if number.is_multiple_of(3) {
        servers += &(server(81) + "\n");
    }
    servers += &resources::https_server("https", "\"*\"", "mode: SIMPLE, credentialName: door");
    let gateway = resources::gateway_with(&servers);
    let leaf = &upstreams.leaves[number % 2];
    let secret = resources::secret(
        "door",
        "kubernetes.io/tls",
        &[("tls.crt", &leaf.certificate_pem()), ("tls.key", &leaf.key_pem())],
    );
    // The endpoints change, and so do the subsets and their shares.
    let shown = 1 + number % addresses.len();
    let endpoints: Vec<Endpoint> = addresses
        .iter()
        .take(shown)
        .enumerate()
        .map(|(at, address)| Endpoint::new(if at % 2 == 0 { "v1" } else { "v2" }, *address))
        .collect();
    let mut routes = String::new();
    for (prefix, host) in [
        ("/tunnel", "tunnel.example"),
        ("/download", "download.example"),
        ("/peer.Echo", "calls.example"),
    ] {
        writeln!(
            routes,
            "- match: [{{uri: {{prefix: {prefix}}}}}]\n  {}",
            route_to(host)
        )
        .unwrap();
    }
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
        + &secret
        + &service(UPSTREAM_HOST, 80, &endpoints)
        + &service("tunnel.example", 80, &[Endpoint::new("v1", upstreams.websocket)])
        + &service("download.example", 80, &[Endpoint::new("v1", upstreams.download)])
        + &stream_service("calls.example", 80, "GRPC", &[upstreams.calls.address()])
        + &resources::subsets(UPSTREAM_HOST, if shown > 1 { &["v1", "v2"] } else { &["v1"] })
        + &virtual_service(&routes)
}

/// The middle of what was measured.
fn median(figures: &[u64]) -> u64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[test]
fn nothing_is_lost_while_the_configuration_changes() {
    let _turn = load::turn();
    let reloads = std::env::var("ISTHMUS_RELOADS").map_or(RELOADS, |text| text.parse().unwrap());
    let full = reloads >= 500;
    let (clients, tunnels, streams, downloads) = if full { (64, 200, 20, 8) } else { (16, 40, 10, 4) };
    let authority = Authority::new();
    let upstreams = Upstreams {
        echoes: ["a", "b", "c"].map(Upstream::echo_for_load).into(),
        websocket: peer(websocket),
        download: peer(download),
        calls: calls(),
        leaves: [authority.server(&["a.example"]), authority.server(&["a.example"])],
    };
    let text = |number| version(number, &upstreams);
    let gateway = Gateway::builder()
        .resources("all", &text(0))
        .shards(2)
        .port(80)
        .port(81)
        .port(443)
        .without_access_log()
        .start();
    let address = gateway.address();

    // All of them begin before everything, and are there behind it.
    let mut tunnels: Vec<Tunnel> = (0..tunnels).map(|_| Tunnel::open(address)).collect();
    let mut downloads: Vec<Download> = (0..downloads).map(|_| Download::begin(address)).collect();
    let mut h2 = Connection::open(Target::cleartext(address)).unwrap();
    h2.handshake(&[]).unwrap();
    let calls: Vec<u32> = (0..streams).map(|_| call(&mut h2)).collect();
    let mut said = vec![Vec::new(); calls.len()];
    let tls = openssl::Client::new(gateway.listener(443), "a.example");
    let mut kept = tls.stay();
    let mut rss = Vec::new();
    let load = Load::get(address, "a.example", "/")
        .connections(clients)
        .rate(clients as u32 * CLIENT_RATE);
    let begun = Instant::now();
    let (report, ()) = load.run_during(|_| {
        for number in 1..=reloads {
            gateway.replace_resources("all", &text(number));
            let status = gateway.reload();
            assert_eq!(
                status["quarantined"].as_array().map(Vec::len),
                Some(0),
                "{status}"
            );
            let at = number % tunnels.len();
            assert!(
                tunnels[at].echoes(&format!("reload {number}")),
                "tunnel {at} at reload {number}"
            );
            for (at, download) in downloads.iter_mut().enumerate() {
                assert!(download.goes_on(), "download {at} at reload {number}");
            }
            let at = number % calls.len();
            let (stream, said) = (calls[at], &mut said[at]);
            let sent = message(&format!("reload {number}"));
            h2.send(&Frame::data(flag::NONE, stream, sent.clone()));
            said.extend(sent);
            h2.until("the message comes back", |h2| {
                h2.answer(stream).body.len() >= said.len()
            })
            .unwrap();
            // The certificate of the version, for who comes now.
            if number % (reloads / 8).max(1) == 0 {
                let talk = tls.get("a.example", "/");
                assert_eq!(talk.status(), Some(200), "{}", talk.text);
                assert!(talk.showed(&upstreams.leaves[number % 2]), "reload {number}");
            }
            rss.push(gateway.facts().rss_kib);
            if full {
                let due = begun + PERIOD * number as u32;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
    });
    let took = begun.elapsed();
    assert!(report.errors.is_empty(), "{report}");
    assert_eq!(report.status(200), report.total(), "{report}");
    assert!(report.total() > reloads as u64, "{report}");
    for (at, tunnel) in tunnels.iter_mut().enumerate() {
        assert!(tunnel.echoes("still there"), "tunnel {at}");
    }
    for (at, download) in downloads.iter_mut().enumerate() {
        assert!(download.goes_on(), "download {at}");
    }
    for (stream, mut said) in calls.into_iter().zip(said) {
        let last = message("last");
        h2.upload(stream, &last).unwrap();
        said.extend(last);
        let answer = h2.whole_answer(stream).unwrap();
        assert!(answer.body == said, "a call has lost messages");
        assert_eq!(answer.trailers, [(b"grpc-status".to_vec(), b"0".to_vec())]);
    }
    // A connection that was there before all of it keeps its keys, and is served.
    let request = b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n";
    assert!(kept.exchange(request).starts_with(b"HTTP/1.1 200"));
    // The first quarter fills pools and caches.
    let quarters: Vec<u64> = rss.chunks((reloads / 4).max(1)).map(median).collect();
    println!("{reloads} reloads in {took:?}: {report}; resident KiB in each quarter {quarters:?}");
    let second = quarters.get(1).copied().expect("four loads or more");
    let last = quarters.last().copied().unwrap_or(second);
    assert!(
        last <= second + second / 10 + 4096,
        "memory grows: {quarters:?} KiB"
    );
    assert!(!full || took <= MINUTE, "{reloads} reloads took {took:?}");
    drop(tunnels);
    drop(downloads);
    drop(kept);
    gateway.stop();
}
