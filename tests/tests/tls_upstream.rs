//! TLS that the gateway originates, with nginx as the upstream, which says what it has seen.

use isthmus_tests::bytes::{BytePeer, pattern};
use isthmus_tests::cert::{Authority, Wanted, credential};
use isthmus_tests::curl::Curl;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, all_to, gateway, gateway_with, https_server, one_route, secret, service,
    tls_files, traffic_policy,
};
use isthmus_tests::upstream::Upstream;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use tempfile::TempDir;

/// A plaintext port before an upstream with these fields of `trafficPolicy.tls`.
fn secured(address: SocketAddr, tls: &str) -> Builder {
    Gateway::builder()
        .resources("route", &one_route(address, ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, &format!("tls: {{{tls}}}")))
}

fn simple(authority: &Path) -> String {
    format!("mode: SIMPLE, caCertificates: {}", authority.display())
}

/// What nginx says at `/tls` about the connection of a request to this host.
fn seen(gateway: &Gateway, host: &str) -> String {
    let answer = gateway.get(host, "/tls");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.log());
    answer.text().to_owned()
}

/// A request to this host is answered by 503, and this is its cause.
fn assert_unreachable(gateway: &Gateway, host: &str, cause: &str, times: u32) {
    let path = format!("/{cause}-{times}");
    let answer = gateway.get(host, &path);
    assert_eq!(answer.status, 503, "{answer:?}");
    let line = gateway.access_line(&path);
    assert!(line.has("UF") && line.status == 503, "{line:?}");
    gateway.assert_causes(cause, times);
}

#[test]
fn an_upstream_with_the_right_certificate_is_reached() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["a.example"]), None, &[]);
    let gateway = secured(nginx.address(), &simple(authority.certificate())).start();
    let said = seen(&gateway, "a.example");
    assert!(
        said.starts_with("sni=a.example protocol=TLSv1.3 client=NONE  "),
        "{said}"
    );
    let mut client = gateway.client();
    client
        .send("POST /echo HTTP/1.1\r\nhost: a.example\r\ncontent-type: a/b\r\ncontent-length: 3\r\n\r\nabc");
    assert_eq!(client.response().text(), "POST 3 a/b\n");
    gateway.stop();
}

#[test]
fn an_upstream_of_another_authority_is_not_reached() {
    let (authority, stranger) = (Authority::new(), Authority::named("stranger"));
    let nginx = Nginx::secured(&stranger.server(&["a.example"]), None, &[]);
    let gateway = secured(nginx.address(), &simple(authority.certificate())).start();
    for times in 1..=3 {
        assert_unreachable(&gateway, "a.example", "upstream_tls", times);
    }
    assert_eq!(nginx.access_log(), "", "not a byte of a request");
    gateway.stop();
}

#[test]
fn an_upstream_with_another_name_or_an_old_certificate_is_not_reached() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["a.example"]), None, &[]);
    let gateway = secured(nginx.address(), &simple(authority.certificate())).start();
    assert_unreachable(&gateway, "b.example", "upstream_tls", 1);
    assert_eq!(gateway.get("a.example", "/tls").status, 200);
    assert_unreachable(&gateway, "b.example", "upstream_tls", 2);
    gateway.stop();

    let old = authority.issue(&Wanted::server(&["a.example"]).expired());
    let nginx = Nginx::secured(&old, None, &[]);
    let gateway = secured(nginx.address(), &simple(authority.certificate())).start();
    assert_unreachable(&gateway, "a.example", "upstream_tls", 1);
    gateway.stop();
}

#[test]
fn an_upstream_whose_certificate_was_revoked_is_not_reached() {
    let authority = Authority::new();
    let leaf = authority.issue(&Wanted::server(&["a.example"]).serial(66));
    let nginx = Nginx::secured(&leaf, None, &[]);
    for (serial, reached) in [(65, true), (66, false)] {
        let list = authority.revoke(&[serial]);
        let tls = format!("{}, caCrl: {}", simple(authority.certificate()), list.display());
        let gateway = secured(nginx.address(), &tls).start();
        if reached {
            assert_eq!(gateway.get("a.example", "/tls").status, 200);
        } else {
            assert_unreachable(&gateway, "a.example", "upstream_tls", 1);
        }
        gateway.stop();
    }
}

#[test]
fn listed_names_count_instead_of_the_one_that_was_asked_for() {
    let authority = Authority::new();
    let leaf = authority.issue(&Wanted::server(&["up.internal"]).uri("spiffe://x/ns/a/sa/b"));
    let nginx = Nginx::secured(&leaf, None, &[]);
    for (names, reached) in [
        ("up.internal", true),
        ("other.internal, up.internal", true),
        ("\"spiffe://x/ns/a/sa/b\"", true),
        ("\"spiffe://x/ns/a/sa/c\"", false),
        ("a.example", false),
    ] {
        let tls = format!("{}, subjectAltNames: [{names}]", simple(authority.certificate()));
        let gateway = secured(nginx.address(), &tls).start();
        if reached {
            assert!(
                seen(&gateway, "a.example").starts_with("sni=a.example "),
                "{names}"
            );
        } else {
            assert_unreachable(&gateway, "a.example", "upstream_tls", 1);
        }
        gateway.stop();
    }
}

#[test]
fn the_name_that_is_asked_for_is_the_one_of_the_rule_or_of_the_request() {
    let authority = Authority::new();
    let nginx = Nginx::secured(
        &authority.server(&["a.example", "b.example", "127.0.0.1"]),
        None,
        &[],
    );
    let gateway = secured(nginx.address(), &simple(authority.certificate())).start();
    assert!(seen(&gateway, "a.example").starts_with("sni=a.example "));
    let said = seen(&gateway, "B.Example:8080");
    assert!(said.to_lowercase().starts_with("sni=b.example "), "{said}");
    // An address is no name to ask for, and yet one to verify.
    assert!(seen(&gateway, "127.0.0.1").starts_with("sni= "));
    assert_unreachable(&gateway, "127.0.0.2", "upstream_tls", 1);
    gateway.stop();

    let tls = format!("{}, sni: b.example", simple(authority.certificate()));
    let gateway = secured(nginx.address(), &tls).start();
    assert!(seen(&gateway, "a.example").starts_with("sni=b.example "));
    assert!(seen(&gateway, "else.example").starts_with("sni=b.example "));
    gateway.stop();
}

#[test]
fn the_gateway_shows_its_certificate_from_files_or_a_credential() {
    let authority = Authority::new();
    let own = authority.client("gateway.example");
    let nginx = Nginx::secured(
        &authority.server(&["a.example"]),
        Some(authority.certificate()),
        &[],
    );
    let wanted = "sni=a.example protocol=TLSv1.3 client=SUCCESS CN=gateway.example ";

    let files = format!(
        "mode: MUTUAL, clientCertificate: {}, privateKey: {}, caCertificates: {}",
        own.certificate.display(),
        own.key.display(),
        authority.certificate().display()
    );
    let gateway = secured(nginx.address(), &files).start();
    assert!(seen(&gateway, "a.example").starts_with(wanted));
    gateway.stop();

    let (certificate, key) = (own.certificate_pem(), own.key_pem());
    let ca = authority.certificate_pem();
    let values = [
        ("tls.crt", certificate.as_str()),
        ("tls.key", &key),
        ("ca.crt", &ca),
    ];
    let by_name = "mode: MUTUAL, credentialName: own";
    let gateway = secured(nginx.address(), by_name)
        .resources("secret", &secret("own", "kubernetes.io/tls", &values))
        .start();
    assert!(seen(&gateway, "a.example").starts_with(wanted));
    gateway.stop();

    let folder = TempDir::new().unwrap();
    credential(folder.path(), "own", &values);
    let gateway = secured(nginx.address(), by_name)
        .arg("--credentials")
        .arg(folder.path())
        .start();
    assert!(seen(&gateway, "a.example").starts_with(wanted));
    let certificates = gateway.get_admin("/certs");
    assert!(
        certificates.text().contains(&own.serial()),
        "{}",
        certificates.text()
    );
    gateway.stop();
}

#[test]
fn whoever_skips_verification_reaches_everybody() {
    let stranger = Authority::named("stranger");
    let old = stranger.issue(&Wanted::server(&["other.example"]).expired());
    let nginx = Nginx::secured(&old, None, &[]);
    let gateway = secured(nginx.address(), "mode: SIMPLE, insecureSkipVerify: true").start();
    assert!(seen(&gateway, "a.example").starts_with("sni=a.example "));
    gateway.stop();
}

#[test]
fn an_upstream_without_tls_and_one_that_never_answers_are_not_reached() {
    let authority = Authority::new();
    let plain = Upstream::echo("v1");
    let gateway = secured(plain.address(), &simple(authority.certificate())).start();
    assert_unreachable(&gateway, "a.example", "upstream_tls", 1);
    assert_eq!(plain.served(), 0);
    gateway.stop();

    let silent = BytePeer::start(|stream| while stream.read(&mut [0; 1024]).is_ok_and(|got| got > 0) {});
    let policy = format!(
        "tls: {{{}}}\nconnectionPool: {{tcp: {{connectTimeout: 300ms}}}}",
        simple(authority.certificate())
    );
    let gateway = Gateway::builder()
        .resources("route", &one_route(silent.address(), ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, &policy))
        .start();
    assert_unreachable(&gateway, "a.example", "connect_timeout", 1);
    assert_eq!(silent.accepted(), 3, "as often as it is retried");
    gateway.stop();
}

/// nginx's number of the connection that it says something about.
fn connection(said: &str) -> &str {
    said.trim()
        .rsplit_once("connection=")
        .expect("a number of a connection")
        .1
}

#[test]
fn connections_are_used_again_by_requests_that_ask_for_the_same_name() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["a.example", "b.example"]), None, &[]);
    let gateway = secured(nginx.address(), &simple(authority.certificate())).start();
    let first = seen(&gateway, "a.example");
    for _ in 0..5 {
        assert_eq!(seen(&gateway, "a.example"), first);
    }
    let other = seen(&gateway, "b.example");
    assert!(
        other.starts_with("sni=b.example ") && connection(&other) != connection(&first),
        "{other} {first}"
    );
    assert_eq!(seen(&gateway, "b.example"), other);
    assert_eq!(gateway.metric("isthmus_upstream_connects_total"), Some(2.0));
    gateway.stop();

    // With a name of the rule it does not matter whom a request is for.
    let tls = format!("{}, sni: a.example", simple(authority.certificate()));
    let gateway = secured(nginx.address(), &tls).start();
    let first = seen(&gateway, "a.example");
    assert_eq!(seen(&gateway, "else.example"), first);
    assert_eq!(gateway.metric("isthmus_upstream_connects_total"), Some(1.0));
    gateway.stop();
}

#[test]
fn an_upstream_that_was_away_is_reached_again() {
    let authority = Authority::new();
    let mut nginx = Nginx::secured(&authority.server(&["a.example"]), None, &[]);
    let gateway = secured(nginx.address(), &simple(authority.certificate())).start();
    for _ in 0..5 {
        assert_eq!(gateway.get("a.example", "/tls").status, 200);
        nginx.restart();
        // The connection that waits is dead, and the request goes on another.
        let mut client = gateway.client();
        client.send("POST /echo HTTP/1.1\r\nhost: a.example\r\ncontent-length: 3\r\n\r\nabc");
        let answer = client.response();
        assert_eq!((answer.status, answer.text()), (200, "POST 3 \n"));
    }
    gateway.stop();
}

#[test]
fn authorities_of_upstreams_are_replaced_while_the_gateway_runs() {
    let (authority, next) = (Authority::new(), Authority::named("next authority"));
    let folder = TempDir::new().unwrap();
    let ca = folder.path().join("ca.crt");
    fs::copy(next.certificate(), &ca).unwrap();
    let nginx = Nginx::secured(&authority.server(&["a.example"]), None, &[]);
    let gateway = secured(nginx.address(), &simple(&ca)).start();
    assert_unreachable(&gateway, "a.example", "upstream_tls", 1);
    let fresh = folder.path().join("fresh");
    fs::copy(authority.certificate(), &fresh).unwrap();
    fs::rename(&fresh, &ca).unwrap();
    eventually(SOON, "the new authority", || {
        gateway.get("a.example", "/tls").status == 200
    });
    gateway.stop();
}

#[test]
fn a_missing_key_stops_only_its_own_upstream() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["a.example"]), None, &[]);
    let routes = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec:
  hosts: [\"*\"]
  gateways: [g]
  http:
  - match: [{uri: {prefix: /upstream_tls}}]
    route: [{destination: {host: bad.internal, port: {number: 80}}}]
  - route: [{destination: {host: good.internal, port: {number: 80}}}]
---
";
    let both = ["good.internal", "bad.internal"];
    let services = both
        .map(|host| service(host, 80, &[Endpoint::new("v1", nginx.address())]))
        .concat();
    let good = format!("tls: {{{}}}", simple(authority.certificate()));
    let rules = traffic_policy("good.internal", &good)
        + &traffic_policy("bad.internal", "tls: {mode: MUTUAL, credentialName: absent}");
    let gateway = Gateway::builder()
        .resources("g", &(gateway(80) + routes + &services + &rules))
        .start();
    assert_eq!(gateway.get("a.example", "/tls").status, 200);
    assert_unreachable(&gateway, "a.example", "upstream_tls", 1);
    assert_eq!(gateway.get("a.example", "/tls").status, 200);
    assert!(
        gateway.log().contains("no credential default/absent"),
        "{}",
        gateway.log()
    );
    gateway.stop();
}

#[test]
fn a_rewritten_authority_is_the_name_that_is_asked_for() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["up.internal"]), None, &[]);
    let gateway = Gateway::builder()
        .resources(
            "route",
            &one_route(nginx.address(), "rewrite: {authority: up.internal}"),
        )
        .resources(
            "rule",
            &traffic_policy(
                UPSTREAM_HOST,
                &format!("tls: {{{}}}", simple(authority.certificate())),
            ),
        )
        .start();
    assert!(seen(&gateway, "a.example").starts_with("sni=up.internal "));
    gateway.stop();
}

#[test]
fn names_of_the_service_count_where_the_rule_has_none() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["up.internal"]), None, &[]);
    for (own, of_rule, reached) in [
        ("[up.internal]", "", true),
        ("[other.internal]", "", false),
        ("[other.internal]", ", subjectAltNames: [up.internal]", true),
    ] {
        let services = one_route(nginx.address(), "").replace(
            "  location: MESH_INTERNAL\n",
            &format!("  subjectAltNames: {own}\n"),
        );
        let tls = format!("tls: {{{}{of_rule}}}", simple(authority.certificate()));
        let gateway = Gateway::builder()
            .resources("route", &services)
            .resources("rule", &traffic_policy(UPSTREAM_HOST, &tls))
            .start();
        if reached {
            assert_eq!(gateway.get("a.example", "/tls").status, 200, "{own} {of_rule}");
        } else {
            assert_unreachable(&gateway, "a.example", "upstream_tls", 1);
        }
        gateway.stop();
    }
}

#[test]
fn a_port_of_the_rule_may_have_tls_of_its_own() {
    let authority = Authority::new();
    let nginx = Nginx::secured(&authority.server(&["a.example"]), None, &[]);
    let plain = Upstream::echo("plain");
    let of_port = |tls: &str| format!("portLevelSettings: [{{port: {{number: 80}}, tls: {{{tls}}}}}]");
    let start = |address: SocketAddr, policy: &str| {
        Gateway::builder()
            .resources("route", &one_route(address, ""))
            .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
            .start()
    };
    let gateway = start(nginx.address(), &of_port(&simple(authority.certificate())));
    assert!(seen(&gateway, "a.example").starts_with("sni=a.example "));
    gateway.stop();
    let policy = format!(
        "tls: {{{}}}\n{}",
        simple(authority.certificate()),
        of_port("mode: DISABLE")
    );
    let gateway = start(plain.address(), &policy);
    assert_eq!(gateway.get("a.example", "/").text(), "plain\n");
    gateway.stop();
}

#[test]
fn the_gateways_certificate_is_replaced_while_it_runs() {
    let authority = Authority::new();
    let folder = TempDir::new().unwrap();
    let ca = authority.certificate_pem();
    let own = ["one.example", "two.example"].map(|name| authority.client(name));
    let nginx = Nginx::secured(
        &authority.server(&["a.example"]),
        Some(authority.certificate()),
        &[],
    );
    let pems = own
        .each_ref()
        .map(|leaf| (leaf.certificate_pem(), leaf.key_pem()));
    let values = [
        ("tls.crt", pems[0].0.as_str()),
        ("tls.key", &pems[0].1),
        ("ca.crt", &ca),
    ];
    credential(folder.path(), "own", &values);
    let policy = "tls: {mode: MUTUAL, credentialName: own}
connectionPool: {http: {maxRequestsPerConnection: 1}}";
    let gateway = Gateway::builder()
        .resources("route", &one_route(nginx.address(), ""))
        .resources("rule", &traffic_policy(UPSTREAM_HOST, policy))
        .arg("--credentials")
        .arg(folder.path())
        .start();
    assert!(seen(&gateway, "a.example").contains(" CN=one.example "));
    fs::write(folder.path().join("own/tls.key"), &pems[1].1).unwrap();
    fs::write(folder.path().join("own/tls.crt"), &pems[1].0).unwrap();
    let serial = own[1].serial();
    eventually(SOON, "the new certificate in the log", || {
        let log = gateway.log();
        log.lines()
            .any(|line| line.contains("a certificate is live") && line.contains(&serial))
    });
    for _ in 0..3 {
        let said = seen(&gateway, "a.example");
        assert!(said.contains("client=SUCCESS CN=two.example "), "{said}");
    }
    gateway.stop();
}

// --- TLS on both sides

/// An HTTPS server before an nginx with TLS.
struct Both {
    authority: Authority,
    nginx: Nginx,
    gateway: Gateway,
    body: Vec<u8>,
    folder: TempDir,
}

impl Both {
    fn start() -> Self {
        let authority = Authority::new();
        let leaf = authority.server(&["a.example"]);
        let body = pattern(8 << 20);
        let nginx = Nginx::secured(&leaf, None, &[("/body", &body)]);
        let server = https_server("a", "a.example", &tls_files("SIMPLE", &leaf));
        let rule = traffic_policy(
            UPSTREAM_HOST,
            &format!("tls: {{{}}}", simple(authority.certificate())),
        );
        let gateway = Gateway::builder()
            .resources("g", &(gateway_with(&server) + &all_to(nginx.address()) + &rule))
            .port(443)
            .start();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("body"), &body).unwrap();
        Self {
            authority,
            nginx,
            gateway,
            body,
            folder,
        }
    }

    fn curl(&self) -> Curl {
        Curl::new(self.gateway.listener(443)).trusting(self.authority.certificate())
    }
}

#[test]
fn eight_mebibytes_arrive_intact_in_both_directions() {
    let both = Both::start();
    let file = both.folder.path().join("body");
    let file = file.to_str().unwrap();
    for (at, version) in ["1.2", "1.3"].into_iter().enumerate() {
        let curl = both.curl().args(&["--tls-max", version, "--tlsv1.2"]);
        assert!(
            curl.run("https://a.example/body").out == both.body,
            "down over {version}"
        );
        let name = format!("up{at}");
        let put = curl.args(&["--upload-file", file, "--write-out", "%{http_code}"]);
        assert_eq!(put.get(&format!("https://a.example/put/{name}")), "201");
        assert!(
            fs::read(both.nginx.put_file(&name)).unwrap() == both.body,
            "up over {version}"
        );
    }
    // Of a length that is not said, and the connection closed behind it.
    let put = both
        .curl()
        .args(&["--upload-file", file, "--write-out", "%{http_code}"]);
    let put = put.args(&[
        "--header",
        "transfer-encoding: chunked",
        "--header",
        "connection: close",
    ]);
    assert_eq!(put.get("https://a.example/put/chunked"), "201");
    assert!(
        fs::read(both.nginx.put_file("chunked")).unwrap() == both.body,
        "chunked"
    );
    both.gateway.stop();
}

#[test]
fn a_slow_reader_gets_all_of_an_answer_behind_which_the_connection_closes() {
    let both = Both::start();
    let slow = both
        .curl()
        .args(&["--limit-rate", "6M", "--header", "connection: close"]);
    let ended = slow.run("https://a.example/body");
    assert!(
        ended.code == 0 && ended.out == both.body,
        "{} bytes: {}",
        ended.out.len(),
        ended.errors
    );
    both.gateway.stop();
}

#[test]
fn many_requests_go_over_one_connection_on_both_sides() {
    let both = Both::start();
    let said = both
        .curl()
        .args(&["--write-out", "%{num_connects}\n"])
        .get("https://a.example/tls?[1-300]");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 600);
    let (answers, connects): (Vec<_>, Vec<_>) = lines.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    assert_eq!(
        connects.iter().filter(|connects| **connects == "1").count(),
        1,
        "of the client"
    );
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "of the upstream: {answers:?}"
    );
    assert_eq!(both.gateway.metric("isthmus_tls_handshakes_total"), Some(1.0));
    assert_eq!(both.gateway.metric("isthmus_upstream_connects_total"), Some(1.0));
    assert_eq!(both.gateway.metric("isthmus_task_panics_total"), Some(0.0));
    both.gateway.stop();
}
