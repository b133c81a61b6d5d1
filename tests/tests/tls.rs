//! TLS of clients that ends at the gateway, or passes through it, with openssl and curl as the clients: what is
//! presented, what is demanded, and which server a name leads to.

use isthmus_tests::bytes::pattern;
use isthmus_tests::cert::{Authority, Leaf, Wanted, credential};
use isthmus_tests::curl::{Curl, UNTRUSTED};
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::nginx::Nginx;
use isthmus_tests::openssl::{self, alert};
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, all_to, gateway_with, https_server, route_to, secret, service, stream_service,
    tls_files, tls_pair,
};
use isthmus_tests::upstream::Upstream;
use tempfile::TempDir;

/// A gateway with these servers on port 443 before an upstream that echoes.
fn door(servers: &str, upstream: &Upstream) -> Builder {
    Gateway::builder()
        .resources("g", &(gateway_with(servers) + &all_to(upstream.address())))
        .port(443)
}

fn client(gateway: &Gateway, name: &str) -> openssl::Client {
    openssl::Client::new(gateway.listener(443), name)
}

fn curl(gateway: &Gateway, authority: &Authority) -> Curl {
    Curl::new(gateway.listener(443)).trusting(authority.certificate())
}

// --- what is presented

#[test]
fn the_example_with_files_is_verified_by_curl() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("productpage"));
    let leaf = authority.server(&["bookinfo.com"]);
    let gateway = Gateway::builder()
        .resources(
            "bookinfo",
            &(format!(
                "apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: bookinfo-gateway
spec:
  selector:
    istio: ingressgateway
  servers:
  - port:
      number: 443
      name: https
      protocol: HTTPS
    hosts:
    - bookinfo.com
    tls:
      mode: SIMPLE
      serverCertificate: {}
      privateKey: {}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: bookinfo
spec:
  hosts:
  - bookinfo.com
  gateways:
  - bookinfo-gateway
  http:
  - match:
    - uri:
        prefix: /reviews
    {}
---
",
                leaf.certificate.display(),
                leaf.key.display(),
                route_to(UPSTREAM_HOST)
            ) + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", upstream.address())])),
        )
        .port(443)
        .start();
    let trusting = curl(&gateway, &authority);
    let said = trusting
        .clone()
        .args(&["--write-out", "%{http_code} %{ssl_verify_result}"])
        .get("https://bookinfo.com/reviews/1");
    assert_eq!(said, "productpage\n200 0");
    assert_eq!(trusting.status("https://bookinfo.com/other"), 404);
    let stranger = Authority::named("stranger");
    assert_eq!(
        curl(&gateway, &stranger).run("https://bookinfo.com/").code,
        UNTRUSTED
    );
    let forwarded = &upstream.requests()[0];
    assert_eq!(
        (forwarded.field("x-forwarded-proto"), forwarded.field("host")),
        (Some("https"), Some("bookinfo.com"))
    );
    assert_eq!(gateway.access_line("/reviews/1").status, 200);
    // The client without the authority refused the certificate.
    gateway.assert_causes("tls_refused_by_peer", 1);
    gateway.stop();
}

#[test]
fn credentials_come_from_secrets_in_either_spelling() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let (first, second) = (authority.server(&["a.example"]), authority.server(&["b.example"]));
    let servers = https_server("a", "a.example", "mode: SIMPLE, credentialName: first")
        + &https_server("b", "b.example", "mode: SIMPLE, credentialName: second");
    let values = |leaf: &Leaf| (leaf.certificate_pem(), leaf.key_pem());
    let (certificate, key) = values(&first);
    let tls = secret(
        "first",
        "kubernetes.io/tls",
        &[("tls.crt", &certificate), ("tls.key", &key)],
    );
    let (certificate, key) = values(&second);
    let generic = secret("second", "Opaque", &[("cert", &certificate), ("key", &key)]);
    let gateway = door(&servers, &upstream)
        .resources("secrets", &(tls + &generic))
        .start();
    for (host, leaf) in [("a.example", &first), ("b.example", &second)] {
        assert_eq!(
            curl(&gateway, &authority).status(&format!("https://{host}/")),
            200
        );
        assert!(client(&gateway, host).get(host, "/").showed(leaf));
    }
    assert!(!gateway.log().contains("PRIVATE KEY"), "{}", gateway.log());
    gateway.stop();
}

#[test]
fn credentials_come_from_a_folder_in_either_spelling() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let (first, second) = (authority.server(&["a.example"]), authority.server(&["b.example"]));
    let folder = TempDir::new().unwrap();
    credential(
        folder.path(),
        "first",
        &[
            ("tls.crt", &first.certificate_pem()),
            ("tls.key", &first.key_pem()),
        ],
    );
    credential(
        folder.path(),
        "second",
        &[("cert", &second.certificate_pem()), ("key", &second.key_pem())],
    );
    let servers = https_server("a", "a.example", "mode: SIMPLE, credentialName: first")
        + &https_server("b", "b.example", "mode: SIMPLE, credentialName: second");
    let gateway = door(&servers, &upstream)
        .arg("--credentials")
        .arg(folder.path())
        .start();
    for (host, leaf) in [("a.example", &first), ("b.example", &second)] {
        assert_eq!(
            curl(&gateway, &authority).status(&format!("https://{host}/")),
            200
        );
        assert!(client(&gateway, host).get(host, "/").showed(leaf));
    }
    gateway.stop();
}

#[test]
fn of_an_rsa_and_an_ecdsa_certificate_clients_get_the_one_that_they_can_verify() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let ecdsa = authority.server(&["a.example"]);
    let rsa = authority.issue(&Wanted::server(&["a.example"]).rsa());
    let tls = format!(
        "mode: SIMPLE, tlsCertificates: [{{{}}}, {{{}}}]",
        tls_pair(&rsa),
        tls_pair(&ecdsa)
    );
    let gateway = door(&https_server("a", "a.example", &tls), &upstream).start();
    for version in ["-tls1_2", "-tls1_3"] {
        for (algorithms, kind, leaf) in [
            ("RSA-PSS+SHA256:RSA+SHA256", "RSA-PSS", &rsa),
            ("ECDSA+SHA256", "ECDSA", &ecdsa),
            ("RSA-PSS+SHA256:ECDSA+SHA256", "ECDSA", &ecdsa),
        ] {
            // The authority's own signature is ECDSA: openssl would refuse to hear of it.
            let talk = client(&gateway, "a.example")
                .args(&[version, "-sigalgs", algorithms])
                .get("a.example", "/");
            assert_eq!(
                talk.value("Peer signature type"),
                Some(kind),
                "{version} {algorithms}: {}",
                talk.text
            );
            assert!(talk.showed(leaf) && talk.status() == Some(200), "{}", talk.text);
        }
    }
    gateway.stop();
}

#[test]
fn versions_are_those_between_min_and_max() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["*.example"]);
    let tls = tls_files("SIMPLE", &leaf);
    let servers = https_server("default", "default.example", &tls)
        + &https_server(
            "new",
            "new.example",
            &format!("{tls}, minProtocolVersion: TLSV1_3"),
        )
        + &https_server(
            "old",
            "old.example",
            &format!("{tls}, maxProtocolVersion: TLSV1_2"),
        );
    let gateway = door(&servers, &upstream).start();
    for (host, version, agreed) in [
        ("default.example", "-tls1_1", None),
        ("default.example", "-tls1_2", Some("TLSv1.2")),
        ("default.example", "-tls1_3", Some("TLSv1.3")),
        ("new.example", "-tls1_2", None),
        ("new.example", "-tls1_3", Some("TLSv1.3")),
        ("old.example", "-tls1_2", Some("TLSv1.2")),
        ("old.example", "-tls1_3", None),
    ] {
        // openssl itself offers 1.1 only at this level.
        let client = client(&gateway, host).args(&[version, "-cipher", "DEFAULT@SECLEVEL=0"]);
        let talk = client.get(host, "/");
        assert_eq!(talk.protocol(), agreed, "{host} {version}: {}", talk.text);
        match agreed {
            Some(_) => assert_eq!(talk.status(), Some(200), "{host} {version}"),
            None => assert_eq!(talk.alert(), Some(alert::PROTOCOL_VERSION), "{host} {version}"),
        }
    }
    gateway.assert_causes("tls_no_shared_parameters", 3);
    gateway.stop();
}

#[test]
fn cipher_suites_and_curves_are_those_of_the_lists() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["a.example"]);
    let tls = format!(
        "{}, cipherSuites: [ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-ECDSA-AES128-GCM-SHA256], ecdhCurves: [P-384]",
        tls_files("SIMPLE", &leaf)
    );
    let gateway = door(&https_server("a", "a.example", &tls), &upstream).start();
    let talk = |args: &[&str]| client(&gateway, "a.example").args(args).get("a.example", "/");
    // The server's order counts.
    let both = talk(&[
        "-tls1_2",
        "-cipher",
        "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305",
    ]);
    assert_eq!(
        both.cipher(),
        Some("ECDHE-ECDSA-CHACHA20-POLY1305"),
        "{}",
        both.text
    );
    let second = talk(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]);
    assert_eq!(
        second.cipher(),
        Some("ECDHE-ECDSA-AES128-GCM-SHA256"),
        "{}",
        second.text
    );
    let other = talk(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"]);
    assert_eq!(
        (other.protocol(), other.alert()),
        (None, Some(alert::HANDSHAKE_FAILURE))
    );
    for version in ["-tls1_2", "-tls1_3"] {
        let curve = talk(&[version, "-curves", "X25519:P-384"]);
        assert_eq!(
            curve.value("Server Temp Key"),
            Some("ECDH, secp384r1, 384 bits"),
            "{}",
            curve.text
        );
        let other = talk(&[version, "-curves", "X25519:P-256"]);
        assert_eq!(
            (other.protocol(), other.alert()),
            (None, Some(alert::HANDSHAKE_FAILURE)),
            "{version}"
        );
    }
    gateway.assert_causes("tls_no_shared_parameters", 3);
    gateway.stop();
}

// --- what is demanded

/// A gateway that asks clients for certificates, before an upstream that records.
struct Mutual {
    servers: Authority,
    clients: Authority,
    upstream: Upstream,
    leaf: Leaf,
}

impl Mutual {
    fn new() -> Self {
        let servers = Authority::named("servers' authority");
        Self {
            leaf: servers.server(&["a.example"]),
            servers,
            clients: Authority::named("clients' authority"),
            upstream: Upstream::echo("v1"),
        }
    }

    fn start(&self, mode: &str, more: &str) -> Gateway {
        let ca = self.clients.certificate().display();
        let tls = format!("{}, caCertificates: {ca}, {more}", tls_files(mode, &self.leaf));
        door(
            &https_server("a", "a.example", tls.trim_end_matches(", ")),
            &self.upstream,
        )
        .start()
    }

    fn assert_served(&self, gateway: &Gateway, leaf: &Leaf) {
        let curl = curl(gateway, &self.servers).with(leaf);
        assert_eq!(curl.status("https://a.example/"), 200);
        for version in ["-tls1_2", "-tls1_3"] {
            let talk = client(gateway, "a.example")
                .args(&[version])
                .with(leaf)
                .get("a.example", "/");
            assert_eq!(talk.status(), Some(200), "{}", talk.text);
        }
    }

    /// In both versions: with this alert, counted under this cause.
    fn assert_refused(&self, gateway: &Gateway, leaf: Option<&Leaf>, number: u8, cause: &str) {
        let served = self.upstream.served();
        for version in ["-tls1_2", "-tls1_3"] {
            let client = client(gateway, "a.example").args(&[version]);
            let client = match leaf {
                Some(leaf) => client.with(leaf),
                None => client,
            };
            // Who has not heard of it yet sends its request, and must be able to read why nobody takes it.
            for request in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[b'a'; 50_000]] {
                let talk = client.send(request);
                assert_eq!(talk.alert(), Some(number), "{version} {cause}: {}", talk.text);
            }
        }
        gateway.assert_causes(cause, 6);
        assert_eq!(self.upstream.served(), served);
    }
}

#[test]
fn a_mutual_server_takes_good_certificates_and_no_others() {
    let mutual = Mutual::new();
    let list = mutual.clients.revoke(&[66]);
    let more = format!(
        "caCrl: {}, subjectAltNames: [good.example, \"spiffe://x/ns/a/sa/b\"]",
        list.display()
    );
    let gateway = mutual.start("MUTUAL", &more);
    mutual.assert_served(&gateway, &mutual.clients.client("good.example"));
    let by_uri = Wanted::client(&["other.example"]).uri("spiffe://x/ns/a/sa/b");
    mutual.assert_served(&gateway, &mutual.clients.issue(&by_uri));
    mutual.assert_served(
        &gateway,
        &mutual.clients.issue(&Wanted::client(&["good.example"]).rsa()),
    );

    mutual.assert_refused(
        &gateway,
        None,
        alert::CERTIFICATE_REQUIRED,
        "tls_no_client_certificate",
    );
    let stranger = Authority::named("stranger").client("good.example");
    mutual.assert_refused(&gateway, Some(&stranger), alert::UNKNOWN_CA, "tls_unknown_ca");
    let revoked = mutual
        .clients
        .issue(&Wanted::client(&["good.example"]).serial(66));
    mutual.assert_refused(
        &gateway,
        Some(&revoked),
        alert::CERTIFICATE_REVOKED,
        "tls_certificate_revoked",
    );
    let expired = mutual.clients.issue(&Wanted::client(&["good.example"]).expired());
    mutual.assert_refused(
        &gateway,
        Some(&expired),
        alert::CERTIFICATE_EXPIRED,
        "tls_certificate_expired",
    );
    let other = mutual.clients.client("other.example");
    mutual.assert_refused(
        &gateway,
        Some(&other),
        alert::ACCESS_DENIED,
        "tls_certificate_not_allowed",
    );
    gateway.stop();
}

#[test]
fn an_optional_mutual_server_verifies_only_what_comes() {
    let mutual = Mutual::new();
    let gateway = mutual.start("OPTIONAL_MUTUAL", "");
    assert_eq!(curl(&gateway, &mutual.servers).status("https://a.example/"), 200);
    assert_eq!(
        mutual.upstream.requests()[0].field("x-forwarded-client-cert"),
        None
    );
    mutual.assert_served(&gateway, &mutual.clients.client("c.example"));
    let stranger = Authority::named("stranger").client("c.example");
    mutual.assert_refused(&gateway, Some(&stranger), alert::UNKNOWN_CA, "tls_unknown_ca");
    gateway.stop();
}

#[test]
fn the_authorities_of_clients_come_from_the_credential_beside() {
    let mutual = Mutual::new();
    let (certificate, key) = (mutual.leaf.certificate_pem(), mutual.leaf.key_pem());
    let ca = mutual.clients.certificate_pem();
    // In the credential itself, too, there is an authority: another one, which must not count.
    let other = Authority::named("other");
    let own = [
        ("tls.crt", certificate.as_str()),
        ("tls.key", &key),
        ("ca.crt", &other.certificate_pem()),
    ];
    let secrets =
        secret("door", "kubernetes.io/tls", &own) + &secret("door-cacert", "Opaque", &[("ca.crt", &ca)]);
    let servers = https_server("a", "a.example", "mode: MUTUAL, credentialName: door");
    let gateway = door(&servers, &mutual.upstream)
        .resources("secrets", &secrets)
        .start();
    mutual.assert_served(&gateway, &mutual.clients.client("c.example"));
    let refused = other.client("c.example");
    mutual.assert_refused(&gateway, Some(&refused), alert::UNKNOWN_CA, "tls_unknown_ca");
    gateway.stop();
}

#[test]
fn pinned_keys_and_certificates_come_in_and_no_others() {
    let mutual = Mutual::new();
    let (by_key, by_hash) = (
        mutual.clients.client("c.example"),
        mutual.clients.client("c.example"),
    );
    let more = format!(
        "verifyCertificateSpki: [\"{}\"], verifyCertificateHash: [\"{}\"]",
        by_key.spki_hash(),
        by_hash.hash()
    );
    let gateway = mutual.start("MUTUAL", &more);
    mutual.assert_served(&gateway, &by_key);
    mutual.assert_served(&gateway, &by_hash);
    let other = mutual.clients.client("c.example");
    mutual.assert_refused(
        &gateway,
        Some(&other),
        alert::ACCESS_DENIED,
        "tls_certificate_not_allowed",
    );
    gateway.stop();
}

// --- which server a name leads to

#[test]
fn an_exact_name_goes_before_a_wildcard_and_that_before_all() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let names = [
        "a.foo.example",
        "*.foo.example",
        "*.b.foo.example",
        "other.example",
    ];
    let leaves = names.map(|name| authority.server(&[name]));
    let [exact, short, long, star] = &leaves;
    // The widest first: what is written first must not matter.
    let servers = https_server("star", "\"*\"", &tls_files("SIMPLE", star))
        + &https_server("short", "\"*.foo.example\"", &tls_files("SIMPLE", short))
        + &https_server("long", "\"*.b.foo.example\"", &tls_files("SIMPLE", long))
        + &https_server("exact", "a.foo.example", &tls_files("SIMPLE", exact));
    let gateway = door(&servers, &upstream).start();
    for (name, leaf) in [
        ("a.foo.example", exact),
        ("A.Foo.EXAMPLE", exact),
        ("c.foo.example", short),
        ("a.b.foo.example", long),
        ("foo.example", star),
        ("else.example", star),
    ] {
        let talk = client(&gateway, name).get(name, "/");
        assert!(talk.showed(leaf), "{name}: {}", talk.text);
        assert_eq!(talk.status(), Some(200), "{name}");
    }
    let nameless = openssl::Client::nameless(gateway.listener(443)).get("else.example", "/");
    assert!(
        nameless.showed(star) && nameless.status() == Some(200),
        "{}",
        nameless.text
    );
    gateway.stop();
}

#[test]
fn a_name_that_no_server_has_is_told_so() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["a.example"]);
    let gateway = door(
        &https_server("a", "a.example, \"*.b.example\"", &tls_files("SIMPLE", &leaf)),
        &upstream,
    )
    .start();
    for version in ["-tls1_2", "-tls1_3"] {
        for name in ["c.example", "b.example", "a.example.evil"] {
            let talk = client(&gateway, name).args(&[version]).refused();
            assert_eq!(
                talk.alert(),
                Some(alert::UNRECOGNIZED_NAME),
                "{name}: {}",
                talk.text
            );
            assert!(!talk.text.contains("BEGIN CERTIFICATE"), "{}", talk.text);
        }
    }
    let nameless = openssl::Client::nameless(gateway.listener(443)).refused();
    assert_eq!(
        nameless.alert(),
        Some(alert::UNRECOGNIZED_NAME),
        "{}",
        nameless.text
    );
    gateway.assert_causes("no_filter_chain", 7);
    assert_eq!(
        gateway.metric_with("isthmus_causes_total", "response_flags=\"NFCF\""),
        Some(7.0)
    );
    eventually(SOON, "lines of the access log", || {
        gateway.access_log().len() == 7
    });
    let line = &gateway.access_log()[0];
    assert!(line.has("NFCF") && line.line.contains("c.example"), "{line:?}");
    gateway.stop();
}

#[test]
fn a_request_for_a_server_with_another_certificate_is_misdirected() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let shared = authority.server(&["a.example", "b.example"]);
    let other = authority.server(&["c.example"]);
    let servers = https_server("a", "a.example", &tls_files("SIMPLE", &shared))
        + &https_server("b", "b.example", &tls_files("SIMPLE", &shared))
        + &https_server("c", "c.example", &tls_files("SIMPLE", &other))
        + &https_server(
            "d",
            "d.example",
            &format!("{}, minProtocolVersion: TLSV1_3", tls_files("SIMPLE", &shared)),
        );
    let gateway = door(&servers, &upstream).start();
    let curl = curl(&gateway, &authority);
    for (host, status) in [
        ("a.example", 200),
        ("b.example", 200),
        ("B.example:443", 200),
        ("c.example", 421),
        ("d.example", 421),
        ("nobody.example", 404),
    ] {
        let field = format!("host: {host}");
        let said = curl
            .clone()
            .args(&["--header", &field])
            .status("https://a.example/");
        assert_eq!(said, status, "{host}");
    }
    gateway.assert_causes("misdirected", 2);
    assert_eq!(upstream.served(), 3);
    // The connection goes on behind the refusal.
    let script = "GET / HTTP/1.1\r\nhost: c.example\r\n\r\nGET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
    let talk = client(&gateway, "a.example").send(script.as_bytes());
    assert!(
        talk.text.contains("HTTP/1.1 421 ") && talk.text.contains("HTTP/1.1 200 "),
        "{}",
        talk.text
    );
    gateway.stop();
}

#[test]
fn plaintext_is_redirected_beside_a_server_of_https() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["a.example"]);
    let servers = https_server("a", "a.example", &tls_files("SIMPLE", &leaf))
        + "{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example], tls: {httpsRedirect: true}}\n";
    let gateway = door(&servers, &upstream).port(80).start();
    let answer = gateway.get("a.example", "/path?query");
    assert_eq!(
        (answer.status, answer.field("location")),
        (301, Some("https://a.example/path?query"))
    );
    assert_eq!(upstream.served(), 0);
    assert_eq!(
        curl(&gateway, &authority).get("https://a.example/path?query"),
        "v1\n"
    );
    gateway.stop();
}

// --- what the upstream is told

#[test]
fn the_certificate_of_a_client_is_told_to_the_upstream_and_a_made_up_one_is_not() {
    let mutual = Mutual::new();
    let ca = mutual.clients.certificate().display();
    let servers = https_server(
        "a",
        "a.example",
        &format!("{}, caCertificates: {ca}", tls_files("MUTUAL", &mutual.leaf)),
    ) + &https_server("b", "b.example", &tls_files("SIMPLE", &mutual.leaf));
    let gateway = door(&servers, &mutual.upstream).start();
    let wanted = Wanted::client(&["c.example", "d.example"]).uri("spiffe://x/ns/a/sa/b");
    let leaf = mutual.clients.issue(&wanted);
    let made_up = ["--header", "x-forwarded-client-cert: Hash=0;URI=spiffe://evil"];
    let curl = Curl::new(gateway.listener(443))
        .args(&["--insecure"])
        .args(&made_up);
    assert_eq!(curl.clone().with(&leaf).status("https://a.example/"), 200);
    assert_eq!(curl.status("https://b.example/"), 200);

    let requests = mutual.upstream.requests();
    let told = requests[0].field("x-forwarded-client-cert").expect("the field");
    let parts: Vec<&str> = told.split(';').collect();
    let encoded: String = leaf
        .certificate_pem()
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect();
    assert_eq!(
        parts,
        [
            &format!("Hash={}", leaf.hash()),
            &format!("Cert=\"{encoded}\""),
            "Subject=\"CN=c.example\"",
            "URI=spiffe://x/ns/a/sa/b",
            "DNS=c.example",
            "DNS=d.example",
        ]
    );
    assert_eq!(requests[1].field("x-forwarded-client-cert"), None);
    mutual.upstream.assert_no_violation();
    gateway.stop();
}

// --- resumption

#[test]
fn tickets_of_one_connection_resume_on_all_shards() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["a.example"]);
    let gateway = door(
        &https_server("a", "a.example", &tls_files("SIMPLE", &leaf)),
        &upstream,
    )
    .shards(2)
    .start();
    let folder = TempDir::new().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let path = folder.path().join(version);
        let path = path.to_str().unwrap();
        let client = client(&gateway, "a.example").args(&[version]);
        let first = client.clone().args(&["-sess_out", path]).get("a.example", "/");
        assert!(
            !first.is_resumed() && first.status() == Some(200),
            "{}",
            first.text
        );
        // The kernel deals connections out to the shards; that none of so many meets one of two is out of the question.
        for _ in 0..30 {
            let again = client.clone().args(&["-sess_in", path]).get("a.example", "/");
            assert!(
                again.is_resumed() && again.status() == Some(200),
                "{version}: {}",
                again.text
            );
        }
    }
    gateway.stop();
}

#[test]
fn a_mutual_server_gives_no_tickets_and_takes_none() {
    let mutual = Mutual::new();
    let ca = mutual.clients.certificate().display();
    let servers = https_server(
        "a",
        "a.example",
        &format!("{}, caCertificates: {ca}", tls_files("MUTUAL", &mutual.leaf)),
    ) + &https_server("b", "b.example", &tls_files("SIMPLE", &mutual.leaf));
    let gateway = door(&servers, &mutual.upstream).start();
    let leaf = mutual.clients.client("c.example");
    let folder = TempDir::new().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let path = folder.path().join(version);
        let path = path.to_str().unwrap();
        let talk = client(&gateway, "a.example")
            .args(&[version])
            .with(&leaf)
            .get("a.example", "/");
        assert_eq!((talk.status(), talk.tickets()), (Some(200), 0), "{}", talk.text);
        assert!(!talk.text.contains("TLS session ticket:"), "{}", talk.text);

        let open = client(&gateway, "b.example")
            .args(&[version, "-sess_out", path])
            .get("b.example", "/");
        assert!(open.text.contains("TLS session ticket:"), "{}", open.text);
        // A ticket of the server that asks nothing is no way around the one that does.
        let around = client(&gateway, "a.example")
            .args(&[version, "-sess_in", path])
            .refused();
        assert_eq!(
            around.alert(),
            Some(alert::CERTIFICATE_REQUIRED),
            "{}",
            around.text
        );
    }
    gateway.assert_causes("tls_no_client_certificate", 2);
    gateway.stop();
}

// --- TLS that passes through

#[test]
fn tls_passes_through_unopened_by_the_name_that_is_asked_for() {
    let authority = Authority::new();
    let (first, second) = (
        authority.server(&["a.example"]),
        authority.server(&["*.wild.example", "wild.example"]),
    );
    let body = pattern(1 << 20);
    let nginx = Nginx::secured(&first, None, &[("/body", &body)]);
    let server = openssl::Server::reversing(&second);
    let routes = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec:
  hosts: [\"*.example\"]
  gateways: [g]
  tls:
  - match: [{port: 443, sniHosts: [a.example]}]
    route: [{destination: {host: nginx.internal, port: {number: 443}}}]
  - match: [{port: 443, sniHosts: [\"*.wild.example\"]}]
    route: [{destination: {host: openssl.internal, port: {number: 443}}}]
---
";
    let door =
        "{port: {number: 443, name: tls, protocol: TLS}, hosts: [\"*.example\"], tls: {mode: PASSTHROUGH}}\n";
    let services = stream_service("nginx.internal", 443, "TLS", &[nginx.address()])
        + &stream_service("openssl.internal", 443, "TLS", &[server.address()]);
    let gateway = Gateway::builder()
        .resources("g", &(gateway_with(door) + routes + &services))
        .port(443)
        .start();

    let curl = curl(&gateway, &authority);
    let said = curl.get("https://a.example/tls");
    assert!(said.starts_with("sni=a.example protocol=TLSv1.3 "), "{said}");
    assert!(curl.run("https://a.example/body").out == body);
    for name in ["x.wild.example", "y.x.wild.example"] {
        let talk = client(&gateway, name).args(&["-tls1_2"]).send(b"abc\nCLOSE\n");
        assert!(
            talk.showed(&second) && talk.text.contains("cba\n"),
            "{}",
            talk.text
        );
    }
    for name in ["wild.example", "b.example"] {
        let talk = client(&gateway, name).refused();
        assert_eq!(
            talk.alert(),
            Some(alert::UNRECOGNIZED_NAME),
            "{name}: {}",
            talk.text
        );
    }
    gateway.assert_causes("no_filter_chain", 2);
    assert_eq!(
        gateway.metric("isthmus_tls_handshakes_total"),
        Some(0.0),
        "none of its own"
    );
    eventually(SOON, "the end of all connections", || {
        gateway.metric("istio_tcp_connections_closed_total") == Some(4.0)
    });
    gateway.stop();
}

#[test]
fn auto_passthrough_takes_the_cluster_from_the_name() {
    let authority = Authority::new();
    let names = ["one.local", "two.local"];
    let leaves = names.map(|name| authority.server(&[name]));
    let peers = leaves.each_ref().map(|leaf| Nginx::secured(leaf, None, &[]));
    let door = "{port: {number: 443, name: tls, protocol: TLS}, hosts: [\"*.local\"], tls: {mode: AUTO_PASSTHROUGH}}\n";
    let rule = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: both, namespace: default}
spec:
  host: both.local
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
";
    let addresses = peers.each_ref().map(Nginx::address);
    let services = stream_service("both.local", 443, "TLS", &addresses)
        + &stream_service("both.elsewhere", 443, "TLS", &addresses[..1]);
    let gateway = Gateway::builder()
        .resources("g", &(gateway_with(door) + rule + &services))
        .port(443)
        .start();
    for (name, leaf) in [
        ("outbound_.443_.v1_.both.local", &leaves[0]),
        ("outbound_.443_.v2_.both.local", &leaves[1]),
    ] {
        for _ in 0..4 {
            let talk = client(&gateway, name).get("h", "/tls");
            assert!(talk.showed(leaf), "{name}: {}", talk.text);
            assert!(talk.text.contains(&format!("sni={name} ")), "{}", talk.text);
        }
    }
    let either = client(&gateway, "outbound_.443_._.both.local").get("h", "/tls");
    assert_eq!(either.status(), Some(200), "{}", either.text);
    for name in [
        "outbound_.443_._.both.elsewhere",
        "both.local",
        "outbound_.x_._.both.local",
    ] {
        let talk = client(&gateway, name).refused();
        assert_eq!(
            talk.alert(),
            Some(alert::UNRECOGNIZED_NAME),
            "{name}: {}",
            talk.text
        );
    }
    for name in [
        "outbound_.443_._.none.local",
        "outbound_.444_._.both.local",
        "outbound_.443_.v3_.both.local",
    ] {
        let talk = client(&gateway, name).refused();
        assert_eq!(
            (talk.protocol(), talk.alert()),
            (None, None),
            "{name}: {}",
            talk.text
        );
    }
    gateway.assert_causes("no_filter_chain", 3);
    gateway.assert_causes("no_cluster", 3);
    gateway.stop();
}

#[test]
fn servers_that_end_tls_and_such_that_pass_it_share_a_port() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let (own, theirs) = (authority.server(&["a.example"]), authority.server(&["b.example"]));
    let nginx = Nginx::secured(&theirs, None, &[]);
    let servers = https_server("a", "a.example", &tls_files("SIMPLE", &own))
        + "{port: {number: 443, name: b, protocol: TLS}, hosts: [b.example], tls: {mode: PASSTHROUGH}}\n";
    let routes = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: passed, namespace: default}
spec:
  hosts: [b.example]
  gateways: [g]
  tls:
  - match: [{sniHosts: [b.example]}]
    route: [{destination: {host: nginx.internal, port: {number: 443}}}]
---
";
    let gateway = door(&servers, &upstream)
        .resources(
            "passed",
            &(routes.to_owned() + &stream_service("nginx.internal", 443, "TLS", &[nginx.address()])),
        )
        .start();
    let curl = curl(&gateway, &authority);
    assert_eq!(curl.get("https://a.example/"), "v1\n");
    assert!(curl.get("https://b.example/tls").starts_with("sni=b.example "));
    // A client that takes the one connection for both hosts is told to open another.
    assert_eq!(
        curl.args(&["--header", "host: b.example"])
            .status("https://a.example/"),
        421
    );
    gateway.stop();
}

// --- the end of a process

#[test]
fn a_gateway_that_ends_says_so_on_its_connections() {
    let (authority, upstream) = (Authority::new(), Upstream::echo("v1"));
    let leaf = authority.server(&["a.example"]);
    let gateway = door(
        &https_server("a", "a.example", &tls_files("SIMPLE", &leaf)),
        &upstream,
    )
    .start();
    let waiting = client(&gateway, "a.example");
    let (asked, upstream) = (b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n", &upstream);
    let talk = std::thread::scope(|scope| {
        let talk = scope.spawn(move || waiting.send(asked));
        eventually(SOON, "a request", || upstream.served() == 1);
        gateway.stop();
        talk.join().unwrap()
    });
    assert_eq!(talk.status(), Some(200), "{}", talk.text);
    assert!(!talk.text.contains("unexpected eof"), "{}", talk.text);
}
