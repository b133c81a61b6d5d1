//! The ways out: external hosts that requests are let through to, by the examples of `ops/examples/egress`. A server of DNS
//! says where their names lead, nginx is what is there, and curl asks.

use isthmus_tests::cert::{Authority, Leaf, Wanted};
use isthmus_tests::chromium::Chromium;
use isthmus_tests::client::Client;
use isthmus_tests::curl::Curl;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::dns::{Dns, Reply, SERVFAIL};
use isthmus_tests::gateway::{AccessLine, Builder, Gateway};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Code, Frame, flag, setting};
use isthmus_tests::h2::hpack::Block;
use isthmus_tests::nginx::Nginx;
use isthmus_tests::port::HeldPort;
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, gateway_with, route_to, service, tls_files, traffic_policy, virtual_service,
};
use isthmus_tests::upstream::{SERVED_BY, Upstream};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const HOST: &str = "api.partner.example";

/// Short times, so that a test sees several.
const QUICK: &str = "dnsTimeout: 200ms\ndnsTtlMin: 1s\ndnsRefreshRate: 1s\ndnsStartTimeout: 2s\n";

/// An example with these words in the place of those that stand for the world outside.
fn example(name: &str, places: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../ops/examples/egress")
        .join(name);
    let mut text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (there, here) in places {
        assert!(text.contains(there), "{name} has {there}");
        text = text.replace(there, here);
    }
    text
}

fn target(there: u16, here: SocketAddr) -> (String, String) {
    (
        format!("targetPort: {there}}}"),
        format!("targetPort: {}}}", here.port()),
    )
}

fn starting(dns: &Dns, resources: &str) -> Builder {
    Gateway::builder()
        .resources("egress", resources)
        .settings(QUICK)
        .arg("--dns-server")
        .arg(dns.address().to_string())
}

/// That all names lead to this machine.
fn here(names: &[&str]) -> Dns {
    let dns = Dns::start();
    for name in names {
        dns.set(name, &Reply::addresses(&["127.0.0.1"], 60));
    }
    dns
}

/// Pattern A with this certificate at the other side.
fn https_for_http(leaf: &Leaf, trusted: &Authority, more: &[(&str, &str)]) -> (Nginx, Dns, Gateway) {
    let nginx = Nginx::secured(leaf, Some(trusted.certificate()), &[]);
    let dns = here(&[HOST]);
    let (there, port) = target(443, nginx.address());
    let authority = trusted.certificate().display().to_string();
    let mut places = vec![(&*there, &*port), ("/etc/egress/partner-ca.pem", &*authority)];
    places.extend(more);
    let text = example("https-for-http.yaml", &places);
    let gateway = starting(&dns, &text).start();
    (nginx, dns, gateway)
}

#[test]
fn plaintext_requests_leave_as_https_whose_certificate_is_checked() {
    let authority = Authority::new();
    let leaf = authority.server(&[HOST]);
    let (_nginx, _dns, gateway) = https_for_http(&leaf, &authority, &[]);
    let curl = Curl::new(gateway.address());
    let said = curl.get(&format!("http://{HOST}/tls"));
    assert!(
        said.starts_with(&format!("sni={HOST} protocol=TLSv1.3 client=NONE")),
        "{said}"
    );
    // What is not in the registry goes nowhere.
    assert_eq!(curl.status("http://other.example/none"), 404);
    let line = gateway.access_line("/none");
    assert!(
        line.has("NR") && line.line.contains("route_not_found"),
        "{line:?}"
    );
    gateway.stop();

    // With a certificate of its own.
    let own = authority.client("egress");
    let mutual = format!(
        "mode: MUTUAL, clientCertificate: {}, privateKey: {}",
        own.certificate.display(),
        own.key.display()
    )
    .replace(", ", "\n        ");
    let (_nginx, _dns, gateway) = https_for_http(&leaf, &authority, &[("mode: SIMPLE", &mutual)]);
    let said = Curl::new(gateway.address()).get(&format!("http://{HOST}/tls"));
    assert!(said.contains("client=SUCCESS"), "{said}");
    gateway.stop();
}

#[test]
fn a_certificate_that_is_not_the_right_one_is_refused_and_the_log_says_why() {
    let (authority, stranger) = (Authority::new(), Authority::named("stranger"));
    for (leaf, why) in [
        (
            authority.server(&["other.example"]),
            "certificate_not_for_this_name",
        ),
        (
            authority.issue(&Wanted::server(&[HOST]).expired()),
            "certificate_expired",
        ),
        (stranger.server(&[HOST]), "unknown_ca"),
    ] {
        let (nginx, _dns, gateway) = https_for_http(&leaf, &authority, &[]);
        assert_eq!(
            Curl::new(gateway.address()).status(&format!("http://{HOST}/{why}")),
            503
        );
        let line = gateway.access_line(&format!("/{why}"));
        assert!(line.has("UF") && line.line.contains(why), "{line:?}");
        assert_eq!(nginx.access_log(), "", "not a byte of a request");
        gateway.stop();
    }
}

#[test]
fn tls_passes_by_its_name() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&[HOST, "other.example"]), None, &[]);
    let dns = here(&[HOST, "other.example"]);
    let (there, port) = target(443, nginx.address());
    let text = example("tls-passthrough.yaml", &[(&there, &port)]);
    let gateway = starting(&dns, &text).port(443).start();
    let curl = Curl::new(gateway.listener(443)).trusting(authority.certificate());
    let said = curl.get(&format!("https://{HOST}/tls"));
    assert!(said.starts_with(&format!("sni={HOST} ")), "{said}");
    assert_ne!(curl.run("https://other.example/tls").code, 0);
    gateway.assert_causes("no_filter_chain", 1);
    gateway.stop();
}

/// Pattern C to these, with this much allowed.
fn wildcard(dns: &Dns, http: SocketAddr, tls: SocketAddr, allowed: &str) -> Gateway {
    let (http, tls) = (target(80, http), target(443, tls));
    let text = example("wildcard.yaml", &[(&http.0, &http.1), (&tls.0, &tls.1)]);
    let mut starting = starting(dns, &text).port(80).port(443);
    if !allowed.is_empty() {
        starting = starting.arg(format!("--egress-allow-cidr={allowed}"));
    }
    starting.start()
}

#[test]
fn hosts_of_a_wildcard_are_resolved_when_they_come() {
    let authority = Authority::new();
    let secured = Nginx::secured(&authority.server(&["*.cdn.example"]), None, &[]);
    let [one, two] = Upstream::echoes_at([("one", "127.0.0.1"), ("two", "127.0.0.2")]);
    let dns = here(&["a.cdn.example"]);
    dns.set("b.cdn.example", &Reply::addresses(&["127.0.0.2"], 60));
    dns.set("broken.cdn.example", &Reply::Code(SERVFAIL));
    let gateway = wildcard(&dns, one.address(), secured.address(), "127.0.0.0/8");
    let mut client = gateway.client();
    for _ in 0..10 {
        for (host, served) in [("a.cdn.example", "one"), ("B.cdn.example:80", "two")] {
            let answer = client.get(host, "/");
            assert_eq!(
                answer.field(SERVED_BY),
                Some(served),
                "{answer:?}\n{}",
                gateway.log()
            );
        }
    }
    // Each host has its own connections, and one question in all.
    assert_eq!((one.connections().len(), two.connections().len()), (1, 1));
    assert_eq!(dns.times("a.cdn.example"), 1);
    let counted = |host: &str| {
        let label = format!("destination_service=\"{host}\"");
        gateway.metric_with("istio_requests_total", &label)
    };
    assert_eq!(
        (counted("a.cdn.example"), counted("b.cdn.example")),
        (Some(10.0), Some(10.0))
    );

    let curl = Curl::new(gateway.listener(443)).trusting(authority.certificate());
    let said = curl.get("https://a.cdn.example/tls");
    assert!(said.starts_with("sni=a.cdn.example "), "{said}");

    for host in ["nowhere.cdn.example", "broken.cdn.example"] {
        let answer = client.get(host, &format!("/{host}"));
        assert_eq!(answer.status, 503, "{answer:?}");
        let line = gateway.access_line(&format!("/{host}"));
        assert!(
            line.has("UF") && line.line.contains("dns_resolution_failure"),
            "{line:?}"
        );
    }
    assert_eq!(
        client.get("cdn.example", "/").status,
        404,
        "the wildcard is below it"
    );
    assert_eq!(client.get("a.other.example", "/").status, 404);
    gateway.stop();
}

#[test]
fn names_that_lead_inside_are_refused_at_first_and_when_they_turn() {
    let [inside, outside] = Upstream::echoes_at([("inside", "127.0.0.1"), ("outside", "127.0.0.2")]);
    let dns = Dns::start();
    dns.set("loopback.cdn.example", &Reply::addresses(&["127.0.0.1"], 60));
    dns.set(
        "metadata.cdn.example",
        &Reply::addresses(&["169.254.169.254"], 60),
    );
    dns.set(
        "private.cdn.example",
        &Reply::addresses(&["10.0.0.1", "192.168.0.1"], 60),
    );
    dns.set("mapped.cdn.example", &Reply::addresses(&["::ffff:127.0.0.1"], 60));
    dns.set("turning.cdn.example", &Reply::addresses(&["127.0.0.2"], 1));
    let gateway = wildcard(&dns, inside.address(), inside.address(), "127.0.0.2/32");
    let mut client = gateway.client();
    for host in ["loopback", "metadata", "private", "mapped"] {
        let answer = client.get(&format!("{host}.cdn.example"), &format!("/{host}"));
        assert_eq!(answer.status, 503, "{answer:?}");
        let line = gateway.access_line(&format!("/{host}"));
        assert!(
            line.has("UF") && line.line.contains("egress_address_refused"),
            "{line:?}"
        );
    }
    gateway.assert_causes("egress_address_refused", 4);
    // Connections of TLS are refused for the same reason: there is no answer that could say so.
    let curl = Curl::new(gateway.listener(443));
    for host in ["loopback", "metadata"] {
        assert_ne!(curl.run(&format!("https://{host}.cdn.example/")).code, 0);
    }
    gateway.assert_causes("egress_address_refused", 6);
    let refused = |line: &&AccessLine| line.method == "-" && line.line.contains("egress_address_refused");
    eventually(SOON, "a line of each", || {
        let log = gateway.access_log();
        let lines: Vec<&AccessLine> = log.iter().filter(refused).collect();
        assert!(lines.iter().all(|line| line.has("UF")), "{lines:?}");
        lines.len() == 2
    });

    // The name is turned to this machine, and to the metadata, as in an attack by rebinding.
    for (turn, address) in ["127.0.0.1", "169.254.169.254"].into_iter().enumerate() {
        dns.set("turning.cdn.example", &Reply::addresses(&["127.0.0.2"], 1));
        eventually(SOON, "the name leads outside", || {
            let answer = Client::connect(gateway.address()).get("turning.cdn.example", "/");
            answer.field(SERVED_BY) == Some("outside")
        });
        dns.set("turning.cdn.example", &Reply::addresses(&[address], 1));
        let path = format!("/turned-{turn}");
        eventually(SOON, "the new address is refused", || {
            let answer = Client::connect(gateway.address()).get("turning.cdn.example", &path);
            assert_ne!(answer.field(SERVED_BY), Some("inside"));
            answer.status == 503
        });
        eventually(SOON, "the log says why", || {
            let log = gateway.access_log();
            let mut lines = log.iter().filter(|line| line.path == path && line.status == 503);
            lines.any(|line| line.has("UF") && line.line.contains("egress_address_refused"))
        });
    }
    assert_eq!(inside.served(), 0, "not a request has come inside");
    assert!(outside.served() >= 2);
    gateway.stop();
}

/// A forward proxy of the example, to a TLS port and a plaintext one.
fn forward_proxy(dns: &Dns, http: SocketAddr, tls: SocketAddr) -> Gateway {
    let (http, tls) = (target(80, http), target(443, tls));
    let text = example("forward-proxy.yaml", &[(&http.0, &http.1), (&tls.0, &tls.1)]);
    starting(dns, &text).port(3128).start()
}

/// curl with this proxy.
fn through(proxy: SocketAddr, authority: &Authority, url: &str) -> (bool, String) {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--noproxy",
            "",
            "--proxy",
        ])
        .arg(format!("http://{proxy}"))
        .arg("--cacert")
        .arg(authority.certificate())
        .arg(url)
        .output()
        .expect("curl runs (Debian package curl)");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// What clients were answered that asked for tunnels, in order of size.
fn statuses_of_tunnels(gateway: &Gateway) -> Vec<u16> {
    let log = gateway.access_log();
    let tunnels = log.iter().filter(|line| line.method == "CONNECT");
    let mut statuses: Vec<u16> = tunnels.map(|line| line.status).collect();
    statuses.sort_unstable();
    statuses
}

#[test]
fn a_forward_proxy_takes_absolute_requests_and_connect_to_what_is_registered() {
    let authority = Authority::new();
    let secured = Nginx::secured(&authority.server(&[HOST]), None, &[]);
    let plain = Upstream::echo("plain");
    let dns = here(&[HOST]);
    let gateway = forward_proxy(&dns, plain.address(), secured.address());
    let proxy = gateway.listener(3128);
    let (ok, said) = through(proxy, &authority, &format!("http://{HOST}/plain"));
    assert!(ok && said.starts_with("plain"), "{said}\n{}", gateway.log());
    let request = plain.only_request();
    assert_eq!((&*request.method, &*request.target), ("GET", "/plain"));
    assert_eq!(request.field("host"), Some(HOST));
    let (ok, said) = through(proxy, &authority, &format!("https://{HOST}/tls"));
    assert!(
        ok && said.starts_with(&format!("sni={HOST} ")),
        "{said}\n{}",
        gateway.log()
    );

    // What is to be secret goes nowhere in plaintext.
    let mut client = Client::connect(proxy);
    client.send(format!(
        "GET https://{HOST}/secret HTTP/1.1\r\nhost: {HOST}\r\n\r\n"
    ));
    assert_eq!(client.response().status, 400);
    assert_eq!(plain.served(), 1);

    // Neither another host, nor another port, nor TLS where plaintext is spoken.
    for url in ["http://other.example/", "http://api.partner.example:81/"] {
        let (_, said) = through(proxy, &authority, url);
        assert!(said.contains("no virtual host"), "{said}");
    }
    for url in [
        "https://other.example/",
        "https://api.partner.example:444/",
        "https://api.partner.example:80/",
    ] {
        let (ok, said) = through(proxy, &authority, url);
        assert!(!ok && said.contains("404"), "{said}");
    }
    let mut tunnels = Vec::new();
    eventually(SOON, "a line of each tunnel", || {
        tunnels = statuses_of_tunnels(&gateway);
        tunnels.len() >= 4
    });
    assert_eq!(tunnels, [200, 404, 404, 404]);
    gateway.stop();
}

#[test]
fn connect_is_answered_when_there_is_a_way_and_elsewhere_it_is_no_method() {
    let dns = here(&[HOST]);
    let nobody = HeldPort::take();
    let gateway = forward_proxy(&dns, nobody.address(), nobody.address());
    let mut client = Client::connect(gateway.listener(3128));
    client.send(format!("CONNECT {HOST}:443 HTTP/1.1\r\nhost: {HOST}:443\r\n\r\n"));
    let answer = client.response();
    assert_eq!(answer.status, 503, "{answer:?}");
    client.assert_closed();
    gateway.assert_causes("connect_failed", 1);
    gateway.stop();

    let upstream = Upstream::echo("plain");
    let gateway = Gateway::in_front_of(upstream.address());
    let mut client = gateway.client();
    client.send("CONNECT a.example:443 HTTP/1.1\r\nhost: a.example\r\n\r\n");
    assert_eq!(client.response().status, 405);
    gateway.stop();
}

/// Asks for a tunnel on a stream of its own.
fn ask(client: &mut Connection, target: &str) -> u32 {
    let stream = client.next_stream();
    let head = Block::of(&[(":method", "CONNECT"), (":authority", target)]);
    client.send(&Frame::headers(flag::END_HEADERS, stream, head));
    stream
}

/// Waits for a tunnel that leads somewhere.
fn open(client: &mut Connection, listener: &TcpListener) -> (u32, TcpStream) {
    let stream = ask(client, &format!("{HOST}:443"));
    client.flush();
    let (target, _) = listener.accept().expect("the target is reached");
    target
        .set_read_timeout(Some(SOON))
        .expect("a socket has a time limit");
    client
        .until("the tunnel", |client| client.answer(stream).status == Some(200))
        .unwrap();
    (stream, target)
}

#[test]
fn connect_over_http2_has_streams_carry_bytes_that_end_one_way_after_the_other() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let nobody = HeldPort::take();
    let dns = here(&[HOST]);
    let gateway = forward_proxy(&dns, nobody.address(), target);
    let mut client = Connection::open(Target::cleartext(gateway.listener(3128))).unwrap();
    client.handshake(&[]).unwrap();

    // Two at a time, and a request beside them, which is independent of both.
    let (first, mut one) = open(&mut client, &listener);
    let (second, mut other) = open(&mut client, &listener);
    let large = vec![b'x'; 300_000];
    client.send(&Frame::data(flag::NONE, first, b"to one".as_slice()));
    client.send(&Frame::data(flag::NONE, second, b"to the other".as_slice()));
    client.flush();
    let mut read = [0; 6];
    one.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"to one");
    let mut read = [0; 12];
    other.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"to the other");
    let writing = std::thread::spawn(move || {
        one.write_all(&large).unwrap();
        // The target ends first, and still hears what the client says.
        one.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        one.read_to_end(&mut rest).unwrap();
        rest
    });
    let answer = client.whole_answer(first).unwrap();
    assert!(answer.ended && answer.body.len() == 300_000, "{answer:?}");
    assert!(answer.fields.is_empty(), "{answer:?}");
    client.send(&Frame::data(flag::NONE, first, b"still ".as_slice()));
    client.send(&Frame::data(flag::END_STREAM, first, b"here".as_slice()));
    client.flush();
    assert_eq!(writing.join().unwrap(), b"still here");
    let line = gateway.access_line(&format!("{HOST}:443"));
    assert!(
        line.line.contains("CONNECT api.partner.example:443 HTTP/2\" 200")
            && line.line.contains(" 16 300000 "),
        "{line:?}"
    );

    // Who breaks off is seen to have broken off, by either side.
    client.send(&Frame::rst_stream(second, Code::CANCEL));
    client.flush();
    let gone = other.read(&mut [0; 10]).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionReset);
    let (third, target) = open(&mut client, &listener);
    rustix::net::sockopt::set_socket_linger(&target, Some(Duration::ZERO)).unwrap();
    drop(target);
    let answer = client.whole_answer(third).unwrap();
    assert_eq!(answer.reset, Some(Code::CONNECT_ERROR), "{answer:?}");

    // What leads nowhere is answered, and the connection goes on.
    drop(listener);
    for (target, status, word) in [
        ("api.partner.example:443", 503, "reached"),
        ("api.partner.example:444", 404, "no virtual host"),
        ("other.example:443", 404, "no virtual host"),
        ("nonsense", 400, ""),
    ] {
        let stream = ask(&mut client, target);
        let answer = client.whole_answer(stream).unwrap();
        assert_eq!(answer.status, Some(status), "{target}: {answer:?}");
        assert!(answer.text().contains(word), "{target}: {answer:?}");
    }
    assert_eq!(client.violation, None);
    gateway.stop();

    // Elsewhere it is no method.
    let upstream = Upstream::echo("plain");
    let gateway = Gateway::in_front_of(upstream.address());
    let mut client = Connection::open(Target::cleartext(gateway.address())).unwrap();
    client.handshake(&[]).unwrap();
    let stream = ask(&mut client, "a.example:443");
    client.answered(stream, 405).unwrap();
    gateway.stop();
}

/// curl with a proxy of this name that speaks TLS, at a port of this machine; what it was told, if it came through.
fn through_tls(name: &str, port: u16, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--noproxy", ""])
        .args(["--proxy", &format!("https://{name}:{port}")])
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1")])
        .args(arguments)
        .output()
        .expect("curl runs (Debian package curl)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

#[test]
fn who_comes_to_another_server_of_a_proxys_port_gets_no_tunnel() {
    let authority = Authority::new();
    let path = authority.certificate().to_str().unwrap().to_owned();
    let website = Nginx::secured(&authority.server(&[HOST]), None, &[("/page", b"outside")]);
    let ordinary = Upstream::echo("ordinary");
    let dns = here(&[HOST]);
    let tls = target(443, website.address());
    let servers = format!(
        "  - port: {{number: 3128, name: https-proxy, protocol: HTTPS}}\n    \
             hosts: [proxy.example, \"*.partner.example\"]\n    tls: {{{}, caCertificates: {path}}}\n  \
         - port: {{number: 3128, name: https, protocol: HTTPS}}\n    \
             hosts: [proxy.example]\n    tls: {{{}}}\n",
        tls_files("MUTUAL", &authority.server(&["proxy.example"])),
        tls_files("SIMPLE", &authority.server(&["proxy.example"])),
    );
    let text = example("forward-proxy.yaml", &[(&tls.0, &tls.1)]);
    let (before, behind) = text.split_once("  - port:").unwrap();
    let (_, behind) = behind.split_once("---").unwrap();
    let text = format!("{before}{servers}---{behind}---\n");
    let other = gateway_with(&format!(
        "{{port: {{number: 3128, name: public, protocol: HTTPS}}, hosts: [public.example], tls: {{{}}}}}\n",
        tls_files("SIMPLE", &authority.server(&["public.example"]))
    ));
    let rest = [
        other,
        service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", ordinary.address())]),
        virtual_service(&format!("- {}\n", route_to(UPSTREAM_HOST))),
    ];
    let gateway = starting(&dns, &(text + &rest.concat())).port(3128).start();
    let port = gateway.listener(3128).port();
    let url = format!("https://{HOST}/page");
    let client = authority.client("client");
    let (certificate, key) = (
        client.certificate.display().to_string(),
        client.key.display().to_string(),
    );
    let without = ["--cacert", &path, "--proxy-cacert", &path, &url];
    let shown = ["--proxy-cert", &certificate, "--proxy-key", &key];
    let with = [&shown[..], &without].concat();
    assert_eq!(through_tls("proxy.example", port, &with).unwrap(), "outside");
    let refused = through_tls("proxy.example", port, &without).unwrap_err();
    assert!(!refused.contains("404") && !refused.contains("405"), "{refused}");
    let refused = through_tls("public.example", port, &without).unwrap_err();
    assert!(refused.contains("405"), "{refused}");
    // What the other server serves is served.
    let curl = Curl::new(gateway.listener(3128)).trusting(authority.certificate());
    let said = curl.get(&format!("https://public.example:{port}/own"));
    assert!(said.starts_with("ordinary"), "{said}");
    assert_eq!(website.access_log().lines().count(), 1);
    gateway.stop();
}

#[test]
fn who_does_not_read_why_there_is_no_tunnel_keeps_no_place() {
    let nobody = HeldPort::take();
    let dns = here(&[HOST]);
    let (http, tls) = (target(80, nobody.address()), target(443, nobody.address()));
    let text = example("forward-proxy.yaml", &[(&http.0, &http.1), (&tls.0, &tls.1)]);
    let rule = traffic_policy(HOST, "connectionPool: {tcp: {maxConnections: 1}}");
    let gateway = starting(&dns, &text).resources("rule", &rule).port(3128).start();
    let clients: Vec<Connection> = (0..3)
        .map(|_| {
            // It has no room for the text of an answer.
            let mut client = Connection::open(Target::cleartext(gateway.listener(3128))).unwrap();
            client.handshake(&[(setting::INITIAL_WINDOW_SIZE, 0)]).unwrap();
            let stream = ask(&mut client, &format!("{HOST}:443"));
            let has_status = |client: &Connection| client.answer(stream).status == Some(503);
            client.until("an answer's head", has_status).unwrap();
            client
        })
        .collect();
    drop(clients);
    gateway.assert_causes("connect_failed", 3);
    assert_eq!(
        gateway.metric_with("isthmus_causes_total", "cause=\"overflow\""),
        None
    );
    gateway.stop();
}

/// A client that leaves, in either way, ends what its tunnels lead to, whatever they are at.
#[test]
fn tunnels_over_http2_end_with_their_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = HeldPort::take();
    let dns = here(&[HOST]);
    let gateway = forward_proxy(&dns, nobody.address(), listener.local_addr().unwrap());
    let active = || gateway.metric("isthmus_requests_active").unwrap_or(f64::MAX);
    for leaves in [false, true] {
        let mut client = Connection::open(Target::cleartext(gateway.listener(3128))).unwrap();
        client.handshake(&[]).unwrap();
        // One that has said all, and hears no more; one whose target takes nothing.
        let (first, mut one) = open(&mut client, &listener);
        client.send(&Frame::data(flag::END_STREAM, first, b"all".as_slice()));
        let (second, mut other) = open(&mut client, &listener);
        // The kernel's buffers take much before it stays here.
        eventually(SOON, "the target takes nothing", || {
            while client.room(second) > 0 {
                let size = client.room(second);
                client.send(&Frame::data(flag::NONE, second, vec![0; size]));
            }
            client.exchange();
            // Half of the window may have been passed on without being told.
            client.room(second) == 0 && gateway.metric("isthmus_buffer_bytes").unwrap_or(0.0) > 128_000.0
        });
        eventually(SOON, "tunnels are under way", || active() == 2.0);
        if leaves {
            drop(client);
        } else {
            for stream in [first, second] {
                client.send(&Frame::rst_stream(stream, Code::CANCEL));
            }
            client.round_trip().unwrap();
        }
        eventually(SOON, "nothing is under way", || active() == 0.0);
        let end = other.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
        let mut all = String::new();
        one.read_to_string(&mut all).unwrap();
        assert_eq!(all, "all");
        // What it says meets nobody.
        eventually(SOON, "the connection is gone", || one.write_all(b"late").is_err());
    }
    gateway.stop();
}

#[test]
fn a_browser_goes_out_through_a_proxy_of_http2() {
    let authority = Authority::new();
    let page = vec![b'p'; 200_000];
    let leaf = authority.server(&[HOST]);
    let website = Nginx::secured(&leaf, None, &[("/page", &page)]);
    let proxy = authority.server(&["proxy.example"]);
    let dns = here(&[HOST]);
    let (http, tls) = (
        target(80, HeldPort::take().address()),
        target(443, website.address()),
    );
    let text = example("forward-proxy.yaml", &[(&http.0, &http.1), (&tls.0, &tls.1)]);
    let plain = "port: {number: 3128, name: http-proxy, protocol: HTTP}";
    let secured = format!(
        "port: {{number: 3128, name: https-proxy, protocol: HTTPS}}\n    tls: {{{}}}",
        tls_files("SIMPLE", &proxy)
    );
    assert!(text.contains(plain));
    let gateway = starting(&dns, &text.replace(plain, &secured)).port(3128).start();
    let at = ("proxy.example", gateway.listener(3128), &proxy);
    let url = format!("https://{HOST}/page");
    let browser = Chromium::open_through(at, &url, &leaf);
    eventually(6 * SOON, "the page is asked for", || {
        website.access_log().contains("/page")
    });
    drop(browser);
    let line = gateway.access_line(&format!("{HOST}:443"));
    assert!(
        line.line.contains("CONNECT api.partner.example:443 HTTP/2\" 200"),
        "{line:?}"
    );
    gateway.stop();
}

#[test]
fn connections_leave_through_the_tunnel_of_another_proxy() {
    let authority = Authority::new();
    let secured = Nginx::secured(&authority.server(&[HOST]), None, &[]);
    let dns = here(&[HOST, "proxy.corp.example"]);
    let proxy = forward_proxy(&dns, secured.address(), secured.address());
    let (there, port) = target(3128, proxy.listener(3128));
    let text = example("through-a-proxy.yaml", &[(&there, &port)]);
    let gateway = starting(&dns, &text).port(443).start();
    let curl = Curl::new(gateway.listener(443)).trusting(authority.certificate());
    let said = curl.get(&format!("https://{HOST}/tls"));
    assert!(said.starts_with(&format!("sni={HOST} ")), "{said}");
    eventually(SOON, "the line of the tunnel", || {
        statuses_of_tunnels(&proxy) == [200]
    });

    // One that leads to nothing that the proxy knows.
    let text = text.replace("targetPort: 443}", "targetPort: 8443}");
    gateway.replace_resources("egress", &text);
    gateway.reload();
    assert_ne!(curl.run(&format!("https://{HOST}/tls")).code, 0);
    gateway.assert_causes("tunnel_refused", 1);
    gateway.stop();
    proxy.stop();
}

#[test]
fn what_comes_behind_a_proxys_answer_is_the_targets() {
    // A proxy of another hand, whose answer and whose target's first bytes come in one piece, and in several.
    for pieces in [
        vec!["HTTP/1.1 200 Connection established\r\nx: y\r\n\r\nhello"],
        vec!["HTTP/1.0 200 OK\r\n", "\r\nhel", "lo"],
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.set_nodelay(true).unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).unwrap();
            }
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            (String::from_utf8(head).unwrap(), rest)
        });
        let resources = format!(
            "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: g, namespace: default}}
spec: {{servers: [{{port: {{number: 80, name: tcp, protocol: TCP}}, hosts: [\"*\"]}}]}}
---
{}
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: proxy, namespace: default}}
spec: {{host: proxy.example, trafficPolicy: {{tunnel: {{targetHost: t.example, targetPort: 99}}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v, namespace: default}}
spec: {{hosts: [\"*\"], gateways: [g], tcp: [{{route: [{{destination: {{host: proxy.example}}}}]}}]}}
",
            isthmus_tests::resources::stream_service("proxy.example", 3128, "TCP", &[proxy])
        );
        let gateway = Gateway::builder().resources("all", &resources).start();
        let mut client = std::net::TcpStream::connect(gateway.address()).unwrap();
        let mut said = [0; 5];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        client.write_all(b"and back").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (head, rest) = serving.join().unwrap();
        assert_eq!(
            head,
            "CONNECT t.example:99 HTTP/1.1\r\nHost: t.example:99\r\n\r\n"
        );
        assert_eq!(rest, b"and back");
        gateway.stop();
    }
}
