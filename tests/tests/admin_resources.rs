//! Documents that come by the admin API, beside those of files.

use isthmus_tests::client::{Client, Response};
use isthmus_tests::deadline::SOON;
use isthmus_tests::gateway::{Builder, Gateway};
use isthmus_tests::resources::{Endpoint, UPSTREAM_HOST, gateway, route_to, service, virtual_service};
use isthmus_tests::upstream::Upstream;
use serde_json::Value;
use std::net::SocketAddr;
use tempfile::TempDir;

/// A Gateway and a service in files, and no route.
fn without_routes(address: SocketAddr) -> Builder {
    let documents = gateway(80) + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", address)]);
    Gateway::builder().resources("base", &documents)
}

fn route() -> String {
    virtual_service(&format!("- {}", route_to(UPSTREAM_HOST)))
}

fn ask(admin: SocketAddr, method: &str, query: &str, fields: &str, body: &str) -> Response {
    let mut client = Client::connect(admin);
    client.send(format!(
        "{method} /v1/resources{query} HTTP/1.1\r\nhost: {admin}\r\n{fields}content-length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.response()
}

fn told(answer: &Response) -> Value {
    serde_json::from_str(answer.text()).unwrap_or_else(|_| panic!("{answer:?}"))
}

fn status_of(gateway: &Gateway) -> u16 {
    gateway.get("a.example", "/").status
}

#[test]
fn documents_are_put_shown_and_deleted() {
    let upstream = Upstream::echo("u");
    let gateway = without_routes(upstream.address()).start();
    let admin = gateway.admin();
    assert_eq!(status_of(&gateway), 404);
    let dry = ask(admin, "PUT", "?dryRun=true", "", &route());
    assert_eq!(
        (dry.status, told(&dry)["applied"].clone()),
        (200, Value::Bool(false))
    );
    assert_eq!(status_of(&gateway), 404, "nothing has changed");
    let put = ask(admin, "PUT", "", "", &route());
    assert_eq!(put.status, 200, "{put:?}");
    assert_eq!(told(&put)["applied"], true);
    assert_eq!(told(&put)["configuration"]["served"]["version"], 2);
    assert_eq!(status_of(&gateway), 200, "it is served when the answer comes");
    let shown = told(&ask(admin, "GET", "", "", ""));
    let files: Vec<&str> = shown["documents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|document| document["resources"][0] == "VirtualService default/v")
        .map(|document| document["file"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["/v1/resources"], "{shown}");
    let yaml = ask(admin, "GET", "?format=yaml", "", "");
    assert!(yaml.text().contains("kind: Gateway") && yaml.text().contains("kind: VirtualService"));
    // Files that change keep it, and so does a load.
    gateway.reload();
    assert_eq!(status_of(&gateway), 200);
    let deleted = ask(admin, "DELETE", "", "", "");
    assert_eq!(deleted.status, 200, "{deleted:?}");
    assert_eq!(status_of(&gateway), 404);
    gateway.stop();
}

#[test]
fn nothing_of_a_text_with_an_error_is_taken() {
    let upstream = Upstream::echo("u");
    let gateway = without_routes(upstream.address()).start();
    let admin = gateway.admin();
    assert_eq!(ask(admin, "PUT", "", "", &route()).status, 200);
    let broken = route().replace("spec:", "spec:\n  hots: [x]\n");
    for (text, code) in [
        (broken.as_str(), "unknown-field"),
        ("a: [", "syntax"),
        // A resource belongs to one place.
        (&isthmus_tests::resources::gateway(80), "duplicate-resource"),
    ] {
        for query in ["", "?dryRun=true"] {
            let refused = ask(admin, "PUT", query, "", text);
            assert_eq!(refused.status, 422, "{refused:?}");
            let told = told(&refused);
            let found = told["diagnostics"].as_array().unwrap();
            assert!(found.iter().any(|found| found["code"] == code), "{told}");
            assert!(
                found.iter().all(|found| found["file"] == "/v1/resources"),
                "{told}"
            );
            assert_eq!(told["applied"], false);
        }
        assert_eq!(status_of(&gateway), 200, "what was there before is served");
    }
    let foreign = ask(admin, "PUT", "", "origin: http://evil.example\r\n", &route());
    assert_eq!(foreign.status, 403);
    assert_eq!(ask(admin, "PUT", "?force=1", "", &route()).status, 400);
    gateway.stop();
}

#[test]
fn keys_are_shown_to_nobody() {
    let upstream = Upstream::echo("u");
    let secret = isthmus_tests::resources::secret("s", "Opaque", &[("tls.key", "hidden-key-text")]);
    let gateway = without_routes(upstream.address())
        .resources("secret", &secret)
        .start();
    for query in ["", "?format=yaml"] {
        let shown = ask(gateway.admin(), "GET", query, "", "");
        assert_eq!(shown.status, 200);
        let text = shown.text();
        assert!(
            !text.contains("hidden") && !text.contains(&isthmus_tests::openssl::base64(b"hidden-key-text"))
        );
    }
    gateway.stop();
}

#[test]
fn what_was_put_outlives_the_process() {
    let upstream = Upstream::echo("u");
    let state = TempDir::new().unwrap();
    let start = || {
        without_routes(upstream.address())
            .arg("--state-dir")
            .arg(state.path())
            .start()
    };
    let first = start();
    assert_eq!(ask(first.admin(), "PUT", "", "", &route()).status, 200);
    first.stop();
    let second = start();
    assert_eq!(status_of(&second), 200);
    assert_eq!(ask(second.admin(), "DELETE", "", "", "").status, 200);
    second.stop();
    let third = start();
    assert_eq!(status_of(&third), 404);
    third.stop();
}

#[test]
fn a_newer_process_has_what_was_put() {
    let upstream = Upstream::echo("u");
    let mut gateway = without_routes(upstream.address()).start();
    assert_eq!(ask(gateway.admin(), "PUT", "", "", &route()).status, 200);
    let mut old = gateway.upgrade();
    assert!(old.wait(SOON).is_some_and(|status| status.success()));
    assert_eq!(status_of(&gateway), 200);
    gateway.stop();
}

#[test]
fn an_admin_port_that_others_reach_takes_nothing() {
    let upstream = Upstream::echo("u");
    let gateway = without_routes(upstream.address()).admin("0.0.0.0:0").start();
    let admin = SocketAddr::from(([127, 0, 0, 1], gateway.admin().port()));
    for method in ["PUT", "DELETE"] {
        let refused = ask(admin, method, "", "", &route());
        assert_eq!(refused.status, 403, "{refused:?}");
        assert!(
            refused
                .text()
                .contains("over loopback, a unix socket or mutual TLS only"),
            "{refused:?}"
        );
    }
    // Nor is its text heard out: there may be much of it, from anybody.
    for (method, path) in [
        ("PUT", "/v1/resources"),
        ("PUT", "/v1/endpoints/a.example/one"),
        ("DELETE", "/v1/endpoints/a.example/one"),
        ("POST", "/reload"),
        ("POST", "/upgrade"),
        ("POST", "/drain_listeners"),
    ] {
        let mut client = Client::connect(admin);
        client.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 60000000\r\n\r\n"
        ));
        assert_eq!(client.response().status, 403, "{method} {path}");
    }
    assert_eq!(ask(admin, "GET", "", "", "").status, 200);
    gateway.stop();
}
