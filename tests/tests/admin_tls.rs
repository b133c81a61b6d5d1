//! The admin API behind mutual TLS: who has a certificate may write from anywhere, and nobody else gets an answer.

use isthmus_tests::cert::{Authority, Leaf, Wanted};
use isthmus_tests::client::Client;
use isthmus_tests::curl::{Curl, UNTRUSTED};
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::gateway::{Builder, Gateway, binary};
use isthmus_tests::openssl;
use isthmus_tests::resources::{Endpoint, UPSTREAM_HOST, gateway, route_to, service, virtual_service};
use isthmus_tests::upstream::Upstream;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// More than the handshakes that may be under way at a time.
const SILENT: usize = 70;
/// More than what a connection may be silent for.
const LONG: Duration = Duration::from_secs(60);

/// A gateway's certificate, and those of its clients.
struct Keys {
    authority: Authority,
    clients: Authority,
    own: Leaf,
    client: Leaf,
}

impl Keys {
    fn new() -> Self {
        let (authority, clients) = (Authority::named("gateways"), Authority::named("operators"));
        Self {
            own: authority.server(&["127.0.0.1", "localhost", "admin.example"]),
            client: clients.client("operator"),
            authority,
            clients,
        }
    }

    /// A Gateway and a service, and no route: it comes by the admin API.
    fn gateway(&self, admin: &str, upstream: &Upstream) -> Builder {
        let documents = gateway(80) + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", upstream.address())]);
        let builder = Gateway::builder().resources("base", &documents).admin(admin);
        self.options()
            .into_iter()
            .fold(builder, |builder, (option, path)| builder.arg(option).arg(path))
    }

    fn options(&self) -> [(&'static str, &Path); 3] {
        [
            ("--admin-tls-cert", &self.own.certificate),
            ("--admin-tls-key", &self.own.key),
            ("--admin-client-ca", self.clients.certificate()),
        ]
    }

    /// A client without a certificate.
    fn nobody(&self, gateway: &Gateway) -> Curl {
        Curl::new(admin(gateway)).trusting(self.authority.certificate())
    }

    fn curl(&self, gateway: &Gateway) -> Curl {
        self.nobody(gateway).with(&self.client)
    }

    /// What commands take beside the address.
    fn of_commands(&self) -> Vec<String> {
        let options = [
            ("--admin-ca", self.authority.certificate()),
            ("--admin-cert", &self.client.certificate),
            ("--admin-key", &self.client.key),
        ];
        options
            .into_iter()
            .flat_map(|(option, path)| [option.to_owned(), path.to_str().unwrap().to_owned()])
            .collect()
    }
}

/// Where the admin API is reached, whatever address it listens at.
fn admin(gateway: &Gateway) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], gateway.admin().port()))
}

fn url(gateway: &Gateway, path: &str) -> String {
    format!("https://{}{path}", admin(gateway))
}

fn route() -> String {
    virtual_service(&format!("- {}", route_to(UPSTREAM_HOST)))
}

fn put(curl: &Curl, body: &str) -> Curl {
    curl.clone().args(&["--request", "PUT", "--data-binary", body])
}

/// `isthmus ...`: the exit code, and what it said.
fn command(words: &[&str], more: &[String]) -> (Option<i32>, String) {
    let said = Command::new(binary()).args(words).args(more).output().unwrap();
    let text = [said.stdout, said.stderr].concat();
    (said.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A connection of a client with this certificate that stays.
fn stay(gateway: &Gateway, client: &Leaf) -> openssl::Pipe {
    openssl::Client::new(admin(gateway), "localhost")
        .with(client)
        .stay()
}

/// GET on a connection that stays open.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

/// Puts a file into the place of another at once.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(&fresh, path).unwrap();
}

#[test]
fn who_has_a_certificate_may_write_from_anywhere() {
    let (keys, upstream) = (Keys::new(), Upstream::echo("u"));
    let gateway = keys.gateway("0.0.0.0:0", &upstream).start();
    let curl = keys.curl(&gateway);
    let resources = url(&gateway, "/v1/resources");
    assert_eq!(gateway.get("a.example", "/").status, 404);
    assert_eq!(put(&curl, &route()).status(&resources), 200);
    assert_eq!(gateway.get("a.example", "/").status, 200);
    let instance = url(&gateway, &format!("/v1/endpoints/{UPSTREAM_HOST}/one"));
    let address = format!(r#"{{"address": "{}"}}"#, upstream.address().ip());
    assert_eq!(put(&curl, &address).status(&instance), 201);
    let delete = curl.clone().args(&["--request", "DELETE"]);
    assert_eq!(delete.status(&instance), 204);
    assert_eq!(delete.status(&resources), 200);
    assert_eq!(gateway.get("a.example", "/").status, 404);
    // A browser may have a certificate, too.
    let lured = put(&curl, &route()).args(&["--header", "origin: https://evil.example"]);
    assert_eq!(lured.status(&resources), 403);
    let named = format!("https://admin.example:{}/v1/resources", admin(&gateway).port());
    assert_eq!(put(&curl, &route()).status(&named), 403);
    assert_eq!(curl.status(&named), 200);
    eventually(SOON, "who wrote is told", || {
        let log = gateway.log();
        let mut lines = log.lines().filter(|line| line.contains("/v1/resources"));
        lines.any(|line| line.contains("operator") && line.contains("PUT") && line.contains("status=200"))
    });
    // Those who look only have no part in it.
    for (address, path) in [
        (gateway.status(), "/healthz/ready"),
        (gateway.status(), "/healthz/live"),
        (gateway.metrics(), "/stats/prometheus"),
    ] {
        let mut plain = Client::connect(address);
        assert_eq!(plain.get("edge.example", path).status, 200, "{path}");
        assert_eq!(plain.get("edge.example", "/v1/resources").status, 404);
    }
    // Its certificate is looked after as all are.
    let shown = curl.get(&url(&gateway, "/certs"));
    assert!(shown.contains(&keys.own.serial()), "{shown}");
    let drain = curl.args(&["--request", "POST"]);
    assert_eq!(drain.status(&url(&gateway, "/drain_listeners")), 200);
    eventually(SOON, "the port is closed", || {
        Client::try_connect(gateway.address()).is_err()
    });
    gateway.stop();
}

#[test]
fn nobody_else_gets_an_answer() {
    let (keys, upstream) = (Keys::new(), Upstream::echo("u"));
    let gateway = keys.gateway("0.0.0.0:0", &upstream).start();
    let nobody = keys.nobody(&gateway);
    let stranger = Authority::named("strangers").client("operator");
    let old = keys.clients.issue(&Wanted::client(&["operator"]).expired());
    let server = keys.clients.server(&["operator"]);
    for (client, cause) in [
        (nobody.clone(), "tls_no_client_certificate"),
        (nobody.clone().with(&stranger), "tls_unknown_ca"),
        (nobody.clone().with(&old), "tls_certificate_expired"),
        // It is no client's.
        (nobody.with(&server), "tls_bad_certificate"),
    ] {
        // The log has one refusal a second.
        eventually(SOON, cause, || {
            let mut is_told = true;
            for client in [client.clone(), put(&client, &route())] {
                let ended = client.run(&url(&gateway, "/v1/resources"));
                assert!(ended.code != 0 && ended.out.is_empty(), "{cause}: {ended:?}");
                is_told &= ended.errors.contains("alert");
            }
            is_told && gateway.log().contains(cause)
        });
    }
    eventually(SOON, "it speaks TLS only", || {
        let mut plain = TcpStream::connect(admin(&gateway)).unwrap();
        plain.set_read_timeout(Some(SOON)).unwrap();
        plain
            .write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .unwrap();
        let mut said = Vec::new();
        // It may be reset, since nobody reads what it says.
        let _ended = plain.read_to_end(&mut said);
        assert!(!said.windows(4).any(|part| part == b"HTTP"), "{said:?}");
        gateway.log().contains("tls_protocol_error")
    });
    assert_eq!(gateway.get("a.example", "/").status, 404, "nothing was taken");
    assert_eq!(keys.curl(&gateway).status(&url(&gateway, "/ready")), 200);
    gateway.stop();
}

#[test]
fn silent_peers_keep_nobody_out() {
    let (keys, upstream) = (Keys::new(), Upstream::echo("u"));
    let gateway = keys.gateway("127.0.0.1:0", &upstream).start();
    let silent = || Client::connect(admin(&gateway));
    let mut first = silent();
    let curl = keys.curl(&gateway).args(&["--max-time", "60"]);
    assert_eq!(curl.status(&url(&gateway, "/ready")), 200);
    // More than there is room for, again and again: the oldest of them go.
    let mut many: Vec<Client> = (0..SILENT).map(|_| silent()).collect();
    for _ in 0..3 {
        assert_eq!(curl.status(&url(&gateway, "/ready")), 200);
        many.extend((0..SILENT).map(|_| silent()));
    }
    assert_eq!(curl.status(&url(&gateway, "/ready")), 200);
    first.assert_closed();
    eventually(SOON, "why", || gateway.log().contains("tls_timeout"));
    drop(many);
    gateway.stop();
}

#[test]
fn connections_that_say_nothing_end() {
    let (keys, upstream) = (Keys::new(), Upstream::echo("u"));
    let gateway = keys.gateway("127.0.0.1:0", &upstream).start();
    let mut admitted = stay(&gateway, &keys.client);
    assert!(admitted.ask(&get("/ready")).ends_with("ready\n"));
    let plain = [gateway.status(), gateway.metrics()].map(|address| {
        let mut used = Client::connect(address).patience(LONG);
        assert_eq!(used.get("localhost", "/").status, 404);
        [used, Client::connect(address).patience(LONG)]
    });
    for mut client in plain.into_iter().flatten() {
        client.assert_closed();
    }
    assert_eq!(admitted.ask(""), "");
    gateway.stop();
}

#[test]
fn new_files_count_and_broken_ones_do_not() {
    let (keys, upstream) = (Keys::new(), Upstream::echo("u"));
    let gateway = keys.gateway("127.0.0.1:0", &upstream).start();
    let ready = url(&gateway, "/ready");
    let next = Authority::named("other gateways");
    let curl = keys.curl(&gateway);
    let of_next = curl.clone().trusting(next.certificate());
    assert_eq!(curl.status(&ready), 200);
    assert_eq!(of_next.run(&ready).code, UNTRUSTED);
    let mut open = stay(&gateway, &keys.client);
    assert!(open.ask(&get("/ready")).ends_with("ready\n"));
    let fresh = next.server(&["127.0.0.1"]);
    replace(&keys.own.key, &fresh.key_pem());
    replace(&keys.own.certificate, &fresh.certificate_pem());
    eventually(SOON, "the new certificate", || of_next.run(&ready).code == 0);
    assert_eq!(curl.run(&ready).code, UNTRUSTED);

    replace(&keys.own.certificate, "no certificate at all\n");
    let broken = format!("{}: not PEM", keys.own.certificate.display());
    eventually(SOON, &broken, || gateway.log().contains(&broken));
    assert_eq!(of_next.status(&ready), 200, "the one before it stays");
    let mut more = keys.of_commands();
    more[1] = next.certificate().to_str().unwrap().to_owned();
    let door = format!("https://{}", admin(&gateway));
    let (code, said) = command(&["reload", "--admin", &door], &more);
    assert!(code == Some(1) && said.contains(&broken), "{said}");
    replace(&keys.own.certificate, &fresh.certificate_pem());
    eventually(SOON, "nothing is wrong", || of_next.get(&ready) == "ready\n");
    // A connection that may have been silent for too long meanwhile would be no surprise.
    let said = open.ask(&get("/ready"));
    assert!(said.is_empty() || said.ends_with("ready\n"), "{said}");
    let mut open = stay(&gateway, &keys.client);
    assert!(open.ask(&get("/ready")).ends_with("ready\n"));

    let operators = Authority::named("other operators");
    replace(keys.clients.certificate(), &operators.certificate_pem());
    let admitted = Curl::new(admin(&gateway))
        .trusting(next.certificate())
        .with(&operators.client("operator"));
    eventually(SOON, "the new authority", || admitted.run(&ready).code == 0);
    assert!(of_next.run(&ready).code != 0);
    // What was let in by an authority that is gone is not heard any more.
    let said = open.ask(&format!(
        "DELETE /v1/resources HTTP/1.1\r\nhost: localhost\r\n\r\n{}",
        get("/ready")
    ));
    assert!(said.starts_with("HTTP/1.1 421 "), "{said}");
    assert_eq!(open.ask(""), "");
    gateway.stop();
}

#[test]
fn commands_speak_it_and_an_upgrade_keeps_it() {
    let (keys, upstream) = (Keys::new(), Upstream::echo("u"));
    let mut gateway = keys.gateway("0.0.0.0:0", &upstream).start();
    let door = format!("https://{}", admin(&gateway));
    let more = keys.of_commands();
    let (code, said) = command(&["status", "--admin", &door], &more);
    assert!(code == Some(0) && said.contains("state "), "{said}");
    let check = ["healthcheck", "--timeout", "60s", "--admin", &format!("{door}/")];
    let (code, said) = command(&check, &more);
    assert_eq!((code, said.as_str()), (Some(0), "ready\n"));
    let live = ["explain", "--live", "http://a.example/", "--admin", &door];
    let (code, said) = command(&live, &more);
    assert_eq!(code, Some(1), "no rule takes it: {said}");
    let plain = admin(&gateway).to_string();
    for (address, more, why) in [
        (
            &door,
            &more[..4],
            "takes --admin-ca, --admin-cert and --admin-key",
        ),
        (&plain, &more[..0], "speaks TLS: name it as https://HOST:PORT"),
    ] {
        let (code, said) = command(&["status", "--admin", address], more);
        assert!(code == Some(3) && said.contains(why), "{said}");
    }
    // A gateway of another authority is told nothing.
    let mut strange = more.clone();
    strange[1] = keys.clients.certificate().to_str().unwrap().to_owned();
    let (code, said) = command(&["status", "--admin", &door], &strange);
    assert!(code == Some(3) && said.contains("UnknownIssuer"), "{said}");

    // One that is let in by nobody is told so.
    let stranger = Authority::named("strangers").client("operator");
    strange.clone_from(&more);
    strange[3] = stranger.certificate.to_str().unwrap().to_owned();
    strange[5] = stranger.key.to_str().unwrap().to_owned();
    let (code, said) = command(&["status", "--admin", &door], &strange);
    assert!(
        code == Some(3) && said.contains("does not let --admin-cert in"),
        "{said}"
    );

    let put_route = put(&keys.curl(&gateway), &route());
    assert_eq!(put_route.status(&url(&gateway, "/v1/resources")), 200);
    // What a newer process could not use it would not begin with.
    let certificate = keys.own.certificate_pem();
    replace(&keys.own.certificate, "no certificate at all\n");
    let (code, said) = command(&["upgrade", "--admin", &door], &more);
    assert!(code == Some(1) && said.contains("--admin-tls-cert: "), "{said}");
    replace(&keys.own.certificate, &certificate);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let (code, said) = command(&["upgrade", "-o", "json", "--admin", &door], &more);
    assert_eq!(code, Some(0), "{said}\n{}", gateway.log());
    let told: Value = serde_json::from_str(&said).unwrap();
    let mut old = gateway.adopt(told["process"].as_i64().unwrap().try_into().unwrap());
    assert!(old.wait(SOON).is_some_and(|status| status.success()));
    assert_eq!(gateway.get("a.example", "/").status, 200);
    let delete = keys.curl(&gateway).args(&["--request", "DELETE"]);
    assert_eq!(delete.status(&url(&gateway, "/v1/resources")), 200);
    assert_eq!(gateway.get("a.example", "/").status, 404);
    assert_ne!(keys.nobody(&gateway).run(&url(&gateway, "/ready")).code, 0);
    gateway.stop();
}

#[test]
fn commands_say_what_they_waited_for() {
    let keys = Keys::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = silent.local_addr().unwrap().to_string();
    let door = format!("https://{plain}");
    for (words, address, more, why) in [
        (&["status"][..], &plain, &[][..], "the answer to GET /status"),
        (&["reload"], &plain, &[], "the answer to POST /reload"),
        (&["drain"], &plain, &[], "the answer to POST /drain_listeners"),
        (
            &["explain", "--live", "http://a.example/?b=c"],
            &plain,
            &[],
            "the answer to GET /explain",
        ),
        (&["status"], &door, &keys.of_commands(), "the TLS handshake"),
    ] {
        let words = [words, &["--timeout", "200ms", "--admin", address]].concat();
        let (code, said) = command(&words, more);
        assert!(
            code == Some(3) && said.contains(why) && said.contains("did not come within 200ms"),
            "{said}"
        );
        assert!(!said.contains("os error"), "{said}");
    }
    // TLS to who does not speak it.
    let gateway = Gateway::builder().resources("base", &gateway(80)).start();
    let door = format!("https://{}", gateway.admin());
    let (code, said) = command(&["status", "--admin", &door], &keys.of_commands());
    assert!(
        code == Some(3) && said.contains("speaks no TLS: name it as IP:PORT"),
        "{said}"
    );
    gateway.stop();
}

#[test]
fn a_mistake_ends_the_start_and_is_named() {
    let (keys, upstream) = (Keys::new(), Upstream::echo("u"));
    for (option, path) in keys.options() {
        let text = fs::read_to_string(path).unwrap();
        for (broken, why) in [(None, "no such file"), (Some("nothing\n"), "not PEM")] {
            match broken {
                Some(broken) => replace(path, broken),
                None => fs::remove_file(path).unwrap(),
            }
            let exit = keys.gateway("127.0.0.1:0", &upstream).run_to_exit();
            let told = format!("{option}: {}: {why}", path.display());
            assert!(exit.code == Some(1) && exit.log.contains(&told), "{}", exit.log);
        }
        replace(path, &text);
    }
    let other = keys.authority.server(&["127.0.0.1"]);
    let text = keys.own.key_pem();
    replace(&keys.own.key, &other.key_pem());
    let exit = keys.gateway("127.0.0.1:0", &upstream).run_to_exit();
    let told = format!("--admin-tls-key: {}: not the key of", keys.own.key.display());
    assert!(exit.code == Some(1) && exit.log.contains(&told), "{}", exit.log);
    replace(&keys.own.key, &text);
    let exit = keys.gateway("unix:/nowhere", &upstream).run_to_exit();
    assert!(
        exit.code == Some(1) && exit.log.contains("speaks no TLS"),
        "{}",
        exit.log
    );
    for (option, path) in keys.options() {
        let exit = Gateway::builder().arg(option).arg(path).run_to_exit();
        assert_eq!(exit.code, Some(2), "all or none: {}", exit.log);
    }
}
