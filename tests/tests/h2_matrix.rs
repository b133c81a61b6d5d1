//! Each version of HTTP at the client and at the upstream, in cleartext and over TLS: what goes in comes out.

use isthmus_tests::cert::{Authority, Leaf};
use isthmus_tests::client::Client;
use isthmus_tests::curl::Curl;
use isthmus_tests::deadline::{SOON, eventually, eventually_some};
use isthmus_tests::gateway::{Builder, Gateway, Holdings};
use isthmus_tests::h2::client::{Answer, Connection};
use isthmus_tests::h2::frame::{Code, Frame, flag, setting};
use isthmus_tests::h2::hpack::Block;
use isthmus_tests::h2::server::{self, Event, Peer, Server};
use isthmus_tests::h2::{AUTHORITY, Target};
use isthmus_tests::haproxy::{Haproxy, Sleeve};
use isthmus_tests::nghttpd::{self, Nghttpd};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::{
    UPSTREAM_HOST, all_to, gateway_with, https_server, one_route, tls_files, traffic_policy,
};
use isthmus_tests::upstream::{self, OnHead, Then, Upstream};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use tempfile::TempDir;

const MIB: usize = 1 << 20;
const TRAILER: (&str, &str) = ("x-sum", "42");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    H1,
    H2,
}
use Version::{H1, H2};

impl Version {
    fn alpn(self) -> &'static str {
        match self {
            H1 => "http/1.1",
            H2 => "h2",
        }
    }
}

/// Bytes that show when some are lost, doubled or moved.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 + at * 31) as u8).collect()
}

/// The upstream of a cell: what a path begins with says what it does.
enum Behind {
    One(Upstream),
    Two(Server),
}

/// An answer of 200 with 100 bytes of which few come.
const PART: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart";

impl Behind {
    fn start(version: Version) -> Self {
        if version == H2 {
            return Self::Two(Server::start(&[], two));
        }
        Self::One(Upstream::start(|request| {
            let answer = upstream::Answer::ok(request.body.clone());
            match request.target.as_str() {
                "/silent" | "/left" => upstream::Answer::raw(""),
                "/reset" => upstream::Answer::raw("").then(Then::Reset),
                "/broken" => upstream::Answer::raw(PART).then(Then::Reset),
                "/trailers" => answer.chunked(1000).trailer(TRAILER.0, TRAILER.1),
                "/empty" => upstream::Answer::status(204),
                "/same" => upstream::Answer::status(304).field("etag", "\"1\""),
                "/hints" => {
                    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n";
                    upstream::Answer::raw(format!("{hints}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"))
                }
                _ => answer,
            }
        }))
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::One(upstream) => upstream.address(),
            Self::Two(server) => server.address(),
        }
    }

    /// The content and the trailers of the request for this path.
    fn got(&self, path: &str) -> (Vec<u8>, Vec<(String, String)>) {
        match self {
            Self::One(upstream) => {
                let request = upstream
                    .requests()
                    .into_iter()
                    .find(|request| request.target == path);
                let request = request.expect("the request came");
                let trailer = request.trailers.get(TRAILER.0).map(str::to_owned);
                let trailers = trailer.into_iter().map(|value| (TRAILER.0.to_owned(), value));
                (request.body, trailers.collect())
            }
            Self::Two(server) => {
                let request = server.request(path).expect("the request came");
                let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
                let trailers = request
                    .trailers
                    .iter()
                    .map(|(name, value)| (text(name), text(value)));
                (request.body.clone(), trailers.collect())
            }
        }
    }

    /// Whether a request for this path has come, and is under way.
    fn has(&self, path: &str) -> bool {
        match self {
            Self::One(upstream) => {
                let mut all = upstream.requests().into_iter();
                all.any(|request| request.target == path && !upstream.connections()[request.connection].ended)
            }
            Self::Two(server) => server
                .request(path)
                .is_some_and(|request| request.ended && request.reset.is_none()),
        }
    }

    /// Whether the request for this path was cancelled: its stream, or, where that is all there is, its connection.
    fn is_cancelled(&self, path: &str) -> bool {
        match self {
            Self::One(upstream) => {
                let mut all = upstream.requests().into_iter();
                all.any(|request| request.target == path && upstream.connections()[request.connection].ended)
            }
            Self::Two(server) => server
                .request(path)
                .is_some_and(|request| request.reset == Some(Code::CANCEL)),
        }
    }

    /// How many connections are open.
    fn open(&self) -> usize {
        match self {
            Self::One(upstream) => upstream.connections().iter().filter(|seen| !seen.ended).count(),
            Self::Two(server) => server.connections().iter().filter(|seen| !seen.ended).count(),
        }
    }

    fn assert_no_violation(&self) {
        match self {
            Self::One(upstream) => upstream.assert_no_violation(),
            Self::Two(server) => server.assert_no_violation(),
        }
    }
}

fn two(peer: &mut Peer, event: Event) {
    let Event::End(stream) = event else { return };
    let body = peer.request(stream).body.clone();
    match peer.request(stream).path().as_str() {
        "/silent" | "/left" => {}
        "/reset" => peer.reset(stream, Code::INTERNAL_ERROR),
        "/broken" => {
            peer.head(stream, 200, &[("content-length", "100")], false);
            peer.data(stream, b"part", false);
            peer.reset(stream, Code::INTERNAL_ERROR);
        }
        "/trailers" => {
            peer.head(stream, 200, &[], false);
            peer.data(stream, &body, false);
            peer.trailers(stream, &[TRAILER]);
        }
        "/empty" => peer.answer(stream, 204, &[], b""),
        "/same" => peer.answer(stream, 304, &[("etag", "\"1\"")], b""),
        "/hints" => {
            peer.head(stream, 103, &[("link", "</a>; rel=preload")], false);
            peer.answer(stream, 200, &[], b"ok");
        }
        _ => {
            let length = body.len().to_string();
            let is_head = peer.request(stream).field(":method").as_deref() == Some("HEAD");
            let length: &str = if is_head { "7" } else { &length };
            peer.answer(stream, 200, &[("content-length", length)], &body);
        }
    }
}

/// Everything around one gateway.
struct Cell {
    client: Version,
    tls: bool,
    behind: Behind,
    gateway: Gateway,
    authority: Authority,
    /// What raw clients of HTTP/1.1 speak through, where there is TLS.
    sleeve: Option<Sleeve>,
    _strip: Option<Sleeve>,
}

/// A gateway that speaks this version, with or without TLS, to the upstream at this address.
fn before(address: SocketAddr, version: Version, tls: bool, authority: &Authority, leaf: &Leaf) -> Builder {
    let mut policy = String::new();
    if tls {
        policy += &format!(
            "tls: {{mode: SIMPLE, caCertificates: {}, sni: {AUTHORITY}}}\n",
            authority.certificate().display()
        );
    }
    if version == H2 {
        policy += "connectionPool: {http: {h2UpgradePolicy: UPGRADE}}\n";
    }
    let builder = Gateway::builder();
    let builder = if policy.is_empty() {
        builder
    } else {
        builder.resources("rule", &traffic_policy(UPSTREAM_HOST, &policy))
    };
    if tls {
        let server = https_server("https", "\"*\"", &tls_files("SIMPLE", leaf));
        builder
            .port(443)
            .resources("route", &(gateway_with(&server) + &all_to(address)))
    } else {
        builder.resources("route", &one_route(address, ""))
    }
}

impl Cell {
    fn new(client: Version, upstream: Version, tls: bool) -> Self {
        let authority = Authority::new();
        let leaf = authority.server(&[AUTHORITY]);
        let behind = Behind::start(upstream);
        let strip = tls.then(|| Sleeve::before(behind.address(), &leaf, upstream.alpn()));
        let address = strip.as_ref().map_or(behind.address(), Sleeve::address);
        let gateway = before(address, upstream, tls, &authority, &leaf).start();
        let sleeve = tls.then(|| Sleeve::towards(gateway.listener(443), AUTHORITY, "http/1.1"));
        Self {
            client,
            tls,
            behind,
            gateway,
            authority,
            sleeve,
            _strip: strip,
        }
    }

    fn address(&self) -> SocketAddr {
        self.gateway.listener(if self.tls { 443 } else { 80 })
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{AUTHORITY}{path}")
    }

    fn curl(&self) -> Curl {
        curl(self.address(), self.client, self.tls, &self.authority)
    }

    fn one(&self) -> Client {
        Client::connect(self.sleeve.as_ref().map_or(self.address(), Sleeve::address))
    }

    fn two(&self) -> Connection {
        two_to(self.address(), self.tls)
    }

    /// Sends a request with content and a trailer in several pieces; answers the content and the trailer that came.
    fn post(&self, path: &str, content: &[u8]) -> (Vec<u8>, Option<String>) {
        if self.client == H1 {
            let mut client = self.one();
            client.send(format!(
                "POST {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\nte: trailers\r\nconnection: te\r\n\
                 trailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n"
            ));
            for piece in content.chunks(3000) {
                client
                    .send(format!("{:x}\r\n", piece.len()))
                    .send(piece)
                    .send("\r\n");
            }
            client.send(format!("0\r\n{}: {}\r\n\r\n", TRAILER.0, TRAILER.1));
            let response = client.response();
            assert_eq!(response.status, 200);
            let trailer = response.trailers.get(TRAILER.0).map(str::to_owned);
            return (response.body, trailer);
        }
        let mut client = self.two();
        let stream = client.next_stream();
        let head = client
            .head("POST", path)
            .field("te", "trailers")
            .field("trailer", "x-sum");
        client.send(&Frame::headers(flag::END_HEADERS, stream, head));
        for piece in content.chunks(3000) {
            client
                .until("a window", |connection| connection.room(stream) >= piece.len())
                .unwrap();
            client.send(&Frame::data(flag::NONE, stream, piece));
            client.flush();
        }
        let trailers = Block::of(&[TRAILER]);
        client.send(&Frame::headers(flag::WHOLE, stream, trailers));
        let answer = answered(&mut client, stream, 200);
        let found = answer
            .trailers
            .iter()
            .find(|(name, _)| name == TRAILER.0.as_bytes());
        let trailer = found.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        (answer.body, trailer)
    }

    /// Sends a GET, waits until the upstream has it, and leaves.
    fn leave(&self, path: &str) {
        let arrives = || eventually(SOON, "the request is at the upstream", || self.behind.has(path));
        if self.client == H1 {
            let mut client = self.one();
            client.send_get(AUTHORITY, path);
            arrives();
            return drop(client);
        }
        let mut client = self.two();
        let stream = client.get(path);
        let neighbour = client.post("/neighbour");
        client.flush();
        arrives();
        client.send(&Frame::rst_stream(stream, Code::CANCEL));
        client.send(&Frame::data(
            flag::END_STREAM,
            neighbour,
            b"still here".as_slice(),
        ));
        assert_eq!(answered(&mut client, neighbour, 200).text(), "still here");
    }

    /// The status of an answer; None when it breaks off.
    fn status(&self, path: &str) -> Option<u16> {
        if self.client == H1 {
            let mut client = self.one();
            client.send_get(AUTHORITY, path);
            return client.try_response(false).ok().map(|response| response.status);
        }
        let mut client = self.two();
        let stream = client.get(path);
        let answer = client.whole_answer(stream).unwrap();
        assert_eq!(client.violation, None);
        answer.ended.then_some(answer.status).flatten()
    }

    /// What all cells must do.
    fn check(self) {
        let version = if self.client == H1 { "HTTP/1.1" } else { "HTTP/2" };
        let before = self.gateway.resting();
        let asked = self.curl().get(&self.url("/get"));
        assert_eq!(asked, "");
        let line = self.gateway.access_line("/get");
        assert!(
            line.line
                .contains(&format!("\"GET /get {version}\" 200 - via_upstream")),
            "{line:?}"
        );

        for round in 0..3 {
            let path = if round == 0 {
                "/trailers".to_owned()
            } else {
                format!("/post{round}")
            };
            let content = pattern(10_000);
            let (body, trailer) = self.post(&path, &content);
            assert!(body == content, "{} of {} bytes", body.len(), content.len());
            let (body, trailers) = self.behind.got(&path);
            assert!(body == content, "{} of {} bytes", body.len(), content.len());
            assert_eq!(trailers, [(TRAILER.0.to_owned(), TRAILER.1.to_owned())], "{path}");
            if round == 0 {
                assert_eq!(trailer.as_deref(), Some(TRAILER.1));
            }
        }

        let folder = TempDir::new().unwrap();
        let file = folder.path().join("content");
        fs::write(&file, pattern(MIB)).unwrap();
        let upload = format!("@{}", file.display());
        let echoed = self
            .curl()
            .args(&["--header", "expect:", "--data-binary", &upload])
            .run(&self.url("/large"));
        assert!(
            echoed.code == 0 && echoed.out == pattern(MIB),
            "{}",
            echoed.errors
        );

        self.leave("/left");
        eventually(SOON, "the attempt is cancelled", || {
            self.behind.is_cancelled("/left")
        });
        let line = self.gateway.access_line("/left");
        assert!(line.has("DC") && line.status == 0, "{line:?}");

        assert_eq!(self.status("/reset"), Some(503));
        let line = self.gateway.access_line("/reset");
        assert!(line.has("UC"), "{line:?}");
        assert_eq!(self.status("/broken"), None);
        let line = self.gateway.access_line("/broken");
        assert!(line.has("UC") && line.status == 200, "{line:?}");

        self.small_answers();
        self.behind.assert_no_violation();
        self.gateway.assert_returns_to(&with_pool(before, &self.behind));
        nothing_active(&self.gateway);
        self.gateway.stop();
    }

    /// Answers without content, and those before the answer.
    fn small_answers(&self) {
        let said = self.curl().args(&["--head"]).get(&self.url("/head"));
        let head = said.to_ascii_lowercase();
        assert!(head.contains(" 200"), "{said}");
        assert!(
            head.contains("content-length: 7") || head.contains("content-length: 0"),
            "{said}"
        );
        assert_eq!(self.curl().status(&self.url("/empty")), 204);
        let same = self.curl().args(&["--include"]).get(&self.url("/same"));
        assert!(same.contains(" 304") && same.contains("etag: \"1\""), "{same}");
        let hints = self.curl().args(&["--include"]).get(&self.url("/hints"));
        assert!(
            hints.contains(" 103") && hints.contains("link: </a>; rel=preload"),
            "{hints}"
        );
        assert!(hints.ends_with("ok"), "{hints}");
    }
}

/// What it held before, and the connections to the upstream, which stay for the next request.
fn with_pool(mut before: Holdings, behind: &Behind) -> Holdings {
    let open = behind.open();
    before.fds += open;
    for (name, gauge) in &mut before.gauges {
        if *name != "isthmus_downstream_connections_active" {
            *gauge += open as f64;
        }
    }
    before
}

fn curl(address: SocketAddr, version: Version, tls: bool, authority: &Authority) -> Curl {
    let words: &[&str] = match (version, tls) {
        (H1, _) => &["--http1.1"],
        (H2, false) => &["--http2-prior-knowledge"],
        (H2, true) => &["--http2"],
    };
    Curl::new(address).trusting(authority.certificate()).args(words)
}

fn two_to(address: SocketAddr, tls: bool) -> Connection {
    let target = if tls {
        Target::tls(address)
    } else {
        Target::cleartext(address)
    };
    let mut client = Connection::open(target).unwrap();
    client.handshake(&[]).unwrap();
    client
}

fn answered(client: &mut Connection, stream: u32, status: u16) -> Answer {
    let answer = client
        .answered(stream, status)
        .unwrap_or_else(|error| panic!("{error}: {}", client.told()));
    assert_eq!(client.violation, None);
    answer
}

/// No request is counted at any endpoint any more.
fn nothing_active(gateway: &Gateway) {
    let active = || {
        let page = gateway.get_admin("/clusters");
        let counts = page
            .text()
            .lines()
            .filter_map(|line| line.split_once("::rq_active::"));
        let sum: u64 = counts.map(|(_, count)| count.parse::<u64>().unwrap()).sum();
        sum
    };
    eventually(SOON, "no request is under way", || active() == 0);
}

#[test]
fn http1_reaches_http1() {
    Cell::new(H1, H1, false).check();
}

#[test]
fn http1_reaches_http1_over_tls() {
    Cell::new(H1, H1, true).check();
}

#[test]
fn http1_reaches_http2() {
    Cell::new(H1, H2, false).check();
}

#[test]
fn http1_reaches_http2_over_tls() {
    Cell::new(H1, H2, true).check();
}

#[test]
fn http2_reaches_http1() {
    Cell::new(H2, H1, false).check();
}

#[test]
fn http2_reaches_http1_over_tls() {
    Cell::new(H2, H1, true).check();
}

#[test]
fn http2_reaches_http2() {
    Cell::new(H2, H2, false).check();
}

#[test]
fn http2_reaches_http2_over_tls() {
    Cell::new(H2, H2, true).check();
}

/// A client of each version fetches and sends 1 MiB through a gateway to a real server of HTTP/2.
fn real(start: impl Fn(Option<&Leaf>) -> SocketAddr, upload: &str, download: Option<&str>) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("content");
    fs::write(&file, pattern(MIB)).unwrap();
    let content = format!("@{}", file.display());
    for tls in [false, true] {
        let authority = Authority::new();
        let leaf = authority.server(&[AUTHORITY]);
        let address = start(tls.then_some(&leaf));
        let gateway = before(address, H2, tls, &authority, &leaf).start();
        let scheme = if tls { "https" } else { "http" };
        for version in [H1, H2] {
            let curl = curl(
                gateway.listener(if tls { 443 } else { 80 }),
                version,
                tls,
                &authority,
            );
            for round in 0..3 {
                if let Some(path) = download {
                    let got = curl.run(&format!("{scheme}://{AUTHORITY}{path}"));
                    assert!(
                        got.code == 0 && got.out == pattern(MIB),
                        "{version:?} {round}: {}",
                        got.errors
                    );
                }
                let put = curl.clone().args(&["--header", "expect:"]);
                let words: &[&str] = if upload.starts_with("/put") {
                    &["--upload-file", file.to_str().unwrap()]
                } else {
                    &["--data-binary", &content]
                };
                let got = put
                    .args(words)
                    .run(&format!("{scheme}://{AUTHORITY}{upload}{round}"));
                assert_eq!(got.code, 0, "{version:?} {round}: {}", got.errors);
                if !upload.starts_with("/put") {
                    assert!(
                        got.out == pattern(MIB),
                        "{version:?} {round}: {} bytes",
                        got.out.len()
                    );
                }
            }
        }
        nothing_active(&gateway);
        gateway.stop();
    }
}

#[test]
fn nginx_is_reached_in_http2() {
    let keep = std::cell::RefCell::new(Vec::new());
    let start = |leaf: Option<&Leaf>| {
        let nginx = Nginx::http2(leaf, &[("/large", &pattern(MIB))]);
        let address = nginx.address();
        keep.borrow_mut().push(nginx);
        address
    };
    real(start, "/put/", Some("/large"));
    for nginx in keep.borrow().iter() {
        for round in 0..3 {
            assert!(fs::read(nginx.put_file(&round.to_string())).unwrap() == pattern(MIB));
        }
        let log = nginx.access_log();
        assert!(log.lines().all(|line| line.contains("HTTP/2.0\" 20")), "{log}");
        assert_eq!(log.lines().count(), 12);
    }
}

#[test]
fn nghttpd_is_reached_in_http2() {
    let keep = std::cell::RefCell::new(Vec::new());
    let start = |leaf: Option<&Leaf>| {
        let nghttpd = Nghttpd::start(leaf);
        let address = nghttpd.address();
        keep.borrow_mut().push(nghttpd);
        address
    };
    real(start, "/echo", None);
}

#[test]
fn haproxy_is_reached_in_http2() {
    let upstream = Upstream::start(|request| upstream::Answer::ok(request.body.clone()));
    let keep = std::cell::RefCell::new(Vec::new());
    let start = |leaf: Option<&Leaf>| {
        let own = Authority::new().server(&[AUTHORITY]);
        let haproxy = Haproxy::start(upstream.address(), leaf.unwrap_or(&own));
        let address = leaf.map_or(haproxy.cleartext(), |_| haproxy.secured());
        keep.borrow_mut().push(haproxy);
        address
    };
    real(start, "/echo", None);
    upstream.assert_no_violation();
}

#[test]
fn trailers_reach_nghttp_from_nghttpd() {
    let nghttpd = Nghttpd::start(None);
    let authority = Authority::new();
    let gateway = before(
        nghttpd.address(),
        H2,
        false,
        &authority,
        &authority.server(&[AUTHORITY]),
    )
    .start();
    let url = format!("http://{}/echo", gateway.address());
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("content");
    fs::write(&file, pattern(100_000)).unwrap();
    let output = Command::new("nghttp")
        .args(["--verbose", "--null-out", "--timeout=10", "--trailer=x-a: 1"])
        .arg(format!("--data={}", file.display()))
        .arg(url)
        .output()
        .expect("nghttp runs (Debian package nghttp2-client)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(":status: 200"), "{said}");
    let trailer = format!("{}: {}", nghttpd::TRAILER.0, nghttpd::TRAILER.1);
    assert!(said.contains(&trailer), "{said}");
    gateway.stop();
}

#[test]
fn crumbs_of_cookies_become_one_towards_http1_and_stay_apart_in_http2() {
    for version in [H1, H2] {
        let cell = Cell::new(H2, version, false);
        let mut client = cell.two();
        let stream = client.next_stream();
        let head = client
            .head("GET", "/cookies")
            .field("cookie", "a=1")
            .field("cookie", "b=2")
            .field("cookie", "c=3");
        client.send(&Frame::headers(flag::WHOLE, stream, head));
        answered(&mut client, stream, 200);
        let values = match &cell.behind {
            Behind::One(upstream) => upstream
                .only_request()
                .fields
                .all("cookie")
                .map(str::to_owned)
                .collect(),
            Behind::Two(server) => server.request("/cookies").unwrap().values("cookie"),
        };
        assert_eq!(values.join("; "), "a=1; b=2; c=3");
        if version == H1 {
            assert_eq!(values.len(), 1, "{values:?}");
        }
        cell.gateway.stop();
    }
}

#[test]
fn a_client_that_expects_100_gets_it_from_upstreams_of_both_versions() {
    let one = Upstream::with_heads(
        |request| match request.field("expect") {
            Some(_) => OnHead::Send(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
            None => OnHead::ReadBody,
        },
        |request| upstream::Answer::ok(request.body.clone()),
    );
    let two = Server::start(&[], |peer, event| match event {
        Event::Head(stream) if peer.request(stream).field("expect").is_some() => {
            peer.head(stream, 100, &[], false)
        }
        event => server::echo(peer, event),
    });
    let authority = Authority::new();
    let leaf = authority.server(&[AUTHORITY]);
    for (address, version) in [(one.address(), H1), (two.address(), H2)] {
        let gateway = before(address, version, false, &authority, &leaf).start();
        let mut client = two_to(gateway.address(), false);
        let stream = client.next_stream();
        let head = client
            .head("POST", "/")
            .field("expect", "100-continue")
            .field("content-length", "5");
        client.send(&Frame::headers(flag::END_HEADERS, stream, head));
        client
            .until("100", |connection| connection.answer(stream).interim == [100])
            .unwrap();
        client.send(&Frame::data(flag::END_STREAM, stream, b"hello".as_slice()));
        assert_eq!(answered(&mut client, stream, 200).text(), "hello");
        let mut client = gateway.client();
        client.send("POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(client.head().unwrap().1, 100);
        client.send("hello");
        assert_eq!(client.response().text(), "hello");
        gateway.stop();
    }
}

/// A client that takes nothing of what it asked for does not keep its neighbours from what they asked for.
#[test]
fn a_slow_reader_does_not_hold_up_its_neighbours() {
    for version in [H1, H2] {
        let cell = Cell::new(H2, version, false);
        let mut client = two_to(cell.address(), false);
        // The upstream sends back what it gets: more than a window, of which nothing is taken.
        client.refills = false;
        let slow = client.post("/slow");
        client.upload(slow, &pattern(65_535)).unwrap();
        client
            .until("all that the window lets in", |connection| {
                connection.answer(slow).body.len() == 65_535
            })
            .unwrap();
        // The connection's window is used up, too: it alone is opened again.
        client.send(&Frame::window_update(0, 1 << 20));
        let stalled = client.post("/stalled");
        client.upload(stalled, &pattern(200_000)).unwrap();
        client
            .until("all that the window lets in", |connection| {
                connection.answer(stalled).body.len() == 65_535
            })
            .unwrap();
        for round in 0..50 {
            let stream = client.post(&format!("/quick{round}"));
            client.upload(stream, &pattern(1000)).unwrap();
            let status = client.whole_answer(stream).unwrap().status;
            assert_eq!(status, Some(200), "{:?}", cell.gateway.access_log());
            assert!(answered(&mut client, stream, 200).body == pattern(1000));
        }
        client.send(&Frame::window_update(stalled, 1 << 20));
        assert!(answered(&mut client, stalled, 200).body == pattern(200_000));
        nothing_active(&cell.gateway);
        cell.behind.assert_no_violation();
        cell.gateway.stop();
    }
}

#[test]
fn a_hundred_streams_that_nobody_reads_cost_little_memory() {
    const EACH: u64 = 600;
    let large = vec![b'x'; 8 << 20];
    for version in [H1, H2] {
        let nginx = match version {
            H1 => Nginx::start(&[("/large", &large)]),
            H2 => Nginx::http2(None, &[("/large", &large)]),
        };
        let authority = Authority::new();
        let gateway = before(
            nginx.address(),
            version,
            false,
            &authority,
            &authority.server(&[AUTHORITY]),
        )
        .start();
        let mut client = two_to(gateway.address(), false);
        let warm = client.get("/large");
        client.send(&Frame::rst_stream(warm, Code::CANCEL));
        client.round_trip().unwrap();
        nothing_active(&gateway);
        let before = gateway.facts().rss_kib;
        client.refills = false;
        client.send(&Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 100)]));
        client.send(&Frame::window_update(0, 1 << 20));
        let streams: Vec<u32> = (0..100).map(|_| client.get("/large")).collect();
        for stream in &streams {
            client
                .until("a window full", |connection| {
                    connection.answer(*stream).body.len() == 100
                })
                .unwrap();
        }
        let grown = gateway.facts().rss_kib.saturating_sub(before);
        assert!(grown < 100 * EACH, "{version:?}: {grown} KiB for 100 streams");
        println!("{version:?}: {grown} KiB for 100 streams");
        // One that leaves is missed by nobody.
        client.send(&Frame::rst_stream(streams[0], Code::CANCEL));
        let stream = client.next_stream();
        let head = client.head("GET", "/missing");
        client.send(&Frame::headers(flag::WHOLE, stream, head));
        client.send(&Frame::window_update(stream, 1 << 20));
        answered(&mut client, stream, 404);
        drop(client);
        nothing_active(&gateway);
        gateway.stop();
    }
}

#[test]
fn a_stream_that_the_upstream_resets_takes_no_neighbour_along() {
    let cell = Cell::new(H2, H2, false);
    let mut client = cell.two();
    let waits = client.post("/waits");
    for round in 0..20 {
        let (reset, broken) = (client.get("/reset"), client.get("/broken"));
        answered(&mut client, reset, 503);
        let answer = client.whole_answer(broken).unwrap();
        assert!(answer.reset.is_some(), "{round}: {answer:?}");
    }
    client.send(&Frame::data(flag::END_STREAM, waits, b"here".as_slice()));
    assert_eq!(answered(&mut client, waits, 200).text(), "here");
    let Behind::Two(server) = &cell.behind else {
        unreachable!()
    };
    assert_eq!(server.connections().len(), 1);
    nothing_active(&cell.gateway);
    cell.gateway.stop();
}

#[test]
fn an_answer_that_comes_before_the_upload_ends_is_passed_on_and_stops_it() {
    let server = Server::start(&[], |peer, event| {
        if let Event::Head(stream) = event {
            peer.answer(stream, 413, &[], b"too much");
            peer.reset(stream, Code::NO_ERROR);
        }
    });
    let authority = Authority::new();
    let gateway = before(
        server.address(),
        H2,
        false,
        &authority,
        &authority.server(&[AUTHORITY]),
    )
    .start();
    let mut client = two_to(gateway.address(), false);
    for _ in 0..5 {
        let stream = client.post("/upload");
        client.send(&Frame::data(flag::NONE, stream, pattern(1000)));
        client
            .until("the answer", |connection| connection.answer(stream).ended)
            .unwrap();
        let answer = client.answer(stream);
        assert_eq!((answer.status, answer.text().as_str()), (Some(413), "too much"));
        client.send(&Frame::rst_stream(stream, Code::CANCEL));
        let again = client.get("/upload");
        answered(&mut client, again, 413);
    }
    let one = gateway
        .client()
        .send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\nabc")
        .response();
    assert_eq!((one.status, one.text()), (413, "too much"));
    nothing_active(&gateway);
    server.assert_no_violation();
    gateway.stop();
}

#[test]
fn h2loads_requests_are_all_answered() {
    for version in [H1, H2] {
        let nginx = match version {
            H1 => Nginx::start(&[("/small", &pattern(1000))]),
            H2 => Nginx::http2(None, &[("/small", &pattern(1000))]),
        };
        let authority = Authority::new();
        let gateway = before(
            nginx.address(),
            version,
            false,
            &authority,
            &authority.server(&[AUTHORITY]),
        )
        .shards(2)
        .start();
        let output = Command::new("h2load")
            .args(["-n", "20000", "-c", "8", "-m", "32"])
            .arg(format!("http://{}/small", gateway.address()))
            .output()
            .expect("h2load runs (Debian package nghttp2-client)");
        let said = String::from_utf8_lossy(&output.stdout);
        let all = "20000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(
            said.contains(all) && said.contains("20000 2xx"),
            "{version:?}: {said}"
        );
        nothing_active(&gateway);
        gateway.stop();
    }
}

#[test]
fn a_request_that_waits_for_the_upstreams_silence_to_end_is_answered() {
    let server = Server::silent(&[]);
    let authority = Authority::new();
    let gateway = before(
        server.address(),
        H2,
        false,
        &authority,
        &authority.server(&[AUTHORITY]),
    )
    .start();
    let mut client = two_to(gateway.address(), false);
    let stream = client.get("/late");
    client.flush();
    eventually_some(SOON, "the request", || server.request("/late"));
    server.on_path("/late", |peer, stream| peer.answer(stream, 200, &[], b"late"));
    assert_eq!(answered(&mut client, stream, 200).text(), "late");
    gateway.stop();
}
