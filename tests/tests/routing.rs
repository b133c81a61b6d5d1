//! What a VirtualService says, and what a client then sees.

use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, eventually};
use isthmus_tests::fault::{Fault, FaultPeer};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, gateway, one_route, route_to, service, subsets, virtual_service,
};
use isthmus_tests::upstream::{Answer, Upstream};
use std::time::{Duration, Instant};

/// A gateway with these rules, whose upstreams are the services a.example and b.example of the same names.
fn with_rules(http: &str) -> (Gateway, [Upstream; 2]) {
    let upstreams = [Upstream::echo("a"), Upstream::echo("b")];
    let yaml = gateway(80)
        + &service("a.example", 80, &[Endpoint::new("v1", upstreams[0].address())])
        + &service("b.example", 80, &[Endpoint::new("v1", upstreams[1].address())])
        + &virtual_service(http);
    (Gateway::builder().resources("routing", &yaml).start(), upstreams)
}

fn who_takes(client: &mut Client, request: &str) -> String {
    let response = client.send(request).response();
    match response.status {
        200 => response.text().trim_end().to_owned(),
        status => status.to_string(),
    }
}

#[test]
fn each_kind_of_match_takes_what_it_describes() {
    let (a, b) = (route_to("a.example"), route_to("b.example"));
    let (gateway, _upstreams) = with_rules(&format!(
        "- {{match: [{{uri: {{exact: /exact}}}}], {a}}}
- {{match: [{{uri: {{prefix: /prefix}}}}], {a}}}
- {{match: [{{uri: {{regex: '/r[0-9]+/x'}}}}], {a}}}
- {{match: [{{uri: {{exact: /Case}}, ignoreUriCase: true}}], {a}}}
- {{match: [{{uri: {{prefix: /and}}, method: {{exact: PUT}}, headers: {{x-a: {{exact: one}}}}}}], {a}}}
- {{match: [{{headers: {{x-b: {{prefix: pre}}}}}}, {{headers: {{x-c: {{regex: 'c+'}}}}}}], {a}}}
- {{match: [{{queryParams: {{q: {{exact: this}}}}}}], {a}}}
- {{match: [{{uri: {{prefix: /without}}, withoutHeaders: {{x-d: {{}}}}}}], {a}}}
- {{match: [{{authority: {{exact: other.example}}}}], {a}}}
- {b}"
    ));
    let client = &mut gateway.client();
    let mut takes = |line: &str, fields: &str, wanted: &str| {
        let host = if fields.contains("host:") {
            ""
        } else {
            "host: h\r\n"
        };
        let got = who_takes(client, &format!("{line} HTTP/1.1\r\n{host}{fields}\r\n"));
        assert_eq!(got, wanted, "{line} {fields:?}");
    };
    takes("GET /exact", "", "a");
    takes("GET /exact?q=no", "", "a");
    takes("GET /exact/", "", "b");
    takes("GET /prefixed/x", "", "a");
    takes("GET /prefi", "", "b");
    takes("GET /r12/x", "", "a");
    takes("GET /r12/xy", "", "b");
    takes("GET /cASE", "", "a");
    takes("PUT /and", "X-A: one\r\ncontent-length: 0\r\n", "a");
    takes("PUT /and", "x-a: One\r\ncontent-length: 0\r\n", "b");
    takes("GET /and", "x-a: one\r\n", "b");
    takes("GET /", "x-b: prefix\r\n", "a");
    takes("GET /", "x-c: ccc\r\n", "a");
    takes("GET /", "x-c: cccd\r\n", "b");
    takes("GET /?p=1&q=this", "", "a");
    takes("GET /?q=this2", "", "b");
    takes("GET /without", "", "a");
    takes("GET /without", "x-d: \r\n", "b");
    takes("GET /", "host: other.example\r\n", "a");
    gateway.stop();
}

#[test]
fn a_redirect_names_the_new_place_and_reaches_no_upstream() {
    let (gateway, upstreams) = with_rules(
        "- {match: [{uri: {prefix: /old}}], redirect: {uri: /new, authority: new.example, redirectCode: 308}}
- {match: [{uri: {prefix: /plain}}], redirect: {scheme: https}}",
    );
    let moved = gateway.get("h", "/old/x?q=1");
    assert_eq!(
        (moved.status, moved.field("location")),
        (308, Some("http://new.example/new?q=1"))
    );
    let plain = gateway.get("h.example", "/plain?q=1");
    assert_eq!(
        (plain.status, plain.field("location")),
        (301, Some("https://h.example/plain?q=1"))
    );
    assert_eq!(upstreams.iter().map(Upstream::served).sum::<u64>(), 0);
    gateway.stop();
}

#[test]
fn a_direct_response_is_given_by_the_gateway() {
    let (gateway, upstreams) = with_rules(
        "- directResponse: {status: 418, body: {string: short and stout}}\n  headers: {response: {set: {x-pot: tea}}}",
    );
    let mut client = gateway.client();
    for _ in 0..2 {
        let response = client.get("h", "/");
        assert_eq!((response.status, response.text()), (418, "short and stout"));
        assert_eq!(response.field("x-pot"), Some("tea"));
    }
    let head = client
        .send("HEAD / HTTP/1.1\r\nhost: h\r\n\r\n")
        .response_to_head();
    assert_eq!((head.status, head.field("content-length")), (418, Some("15")));
    assert_eq!(client.get("h", "/after").status, 418);
    assert_eq!(upstreams.iter().map(Upstream::served).sum::<u64>(), 0);
    gateway.stop();
}

#[test]
fn rewrites_change_what_the_upstream_sees() {
    let a = route_to("a.example");
    let (gateway, upstreams) = with_rules(&format!(
        "- {{match: [{{uri: {{prefix: /api/}}}}], rewrite: {{uri: /}}, {a}}}
- {{match: [{{uri: {{exact: /one}}}}], rewrite: {{uri: /two, authority: inner.example}}, {a}}}"
    ));
    assert_eq!(gateway.get("h.example", "/api/v1/x?q=1").status, 200);
    assert_eq!(gateway.get("h.example", "/one?q=2").status, 200);
    let [first, second] = upstreams[0].requests().try_into().expect("two requests");
    assert_eq!(
        (first.target.as_str(), first.field("host")),
        ("/v1/x?q=1", Some("h.example"))
    );
    assert_eq!(first.field("x-envoy-original-path"), Some("/api/v1/x?q=1"));
    assert_eq!(
        (second.target.as_str(), second.field("host")),
        ("/two?q=2", Some("inner.example"))
    );
    gateway.stop();
}

#[test]
fn header_operations_apply_both_ways() {
    let upstream = Upstream::start(|_| {
        Answer::ok("x")
            .field("x-up", "1")
            .field("x-gone", "1")
            .field("x-both", "up")
    });
    let operations = "headers:
  request: {set: {x-set: new}, add: {x-add: two}, remove: [x-cut]}
  response: {set: {x-both: gw}, add: {x-more: m}, remove: [x-gone]}";
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), operations))
        .start();
    let request = "GET / HTTP/1.1\r\nhost: h\r\nx-set: old\r\nX-Set: older\r\nx-add: one\r\nX-Cut: 1\r\n\r\n";
    let response = gateway.client().send(request).response();
    let seen = upstream.only_request();
    assert_eq!(seen.fields.all("x-set").collect::<Vec<_>>(), ["new"]);
    let added = seen
        .fields
        .all("x-add")
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect::<Vec<_>>();
    assert_eq!(added, ["one", "two"]);
    assert_eq!(seen.field("x-cut"), None);
    let values = ["x-up", "x-gone", "x-both", "x-more"].map(|name| response.field(name));
    assert_eq!(values, [Some("1"), None, Some("gw"), Some("m")]);
    gateway.stop();
}

#[test]
fn the_upstream_learns_who_asked() {
    let upstream = Upstream::echo("v1");
    let gateway = Gateway::in_front_of(upstream.address());
    let response = gateway.get("h.example", "/");
    let seen = upstream.only_request();
    assert_eq!(seen.field("host"), Some("h.example"));
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert!(
        seen.field("x-request-id").is_some_and(|id| id.len() == 36),
        "{seen:?}"
    );
    assert_eq!(response.field("server"), Some("isthmus"));
    upstream.assert_no_violation();
    gateway.stop();
}

#[test]
fn a_timeout_answers_504_ut() {
    let peer = FaultPeer::start(Fault::NeverAnswers);
    let gateway = Gateway::builder()
        .resources("route", &one_route(peer.address(), "timeout: 300ms"))
        .start();
    let start = Instant::now();
    let response = gateway.get("h", "/slow");
    let took = start.elapsed();
    assert_eq!(response.status, 504);
    assert!(
        took >= Duration::from_millis(290) && took < Duration::from_secs(10),
        "{took:?}"
    );
    let line = gateway.access_line("/slow");
    assert!(line.status == 504 && line.has("UT"), "{line:?}");
    gateway.stop();
}

#[test]
fn no_route_answers_404_nr() {
    let a = route_to("a.example");
    let (gateway, _upstreams) = with_rules(&format!("- {{match: [{{uri: {{exact: /here}}}}], {a}}}"));
    let mut client = gateway.client();
    assert_eq!(client.get("h", "/nowhere").status, 404);
    assert_eq!(client.get("h", "/here").status, 200);
    assert!(gateway.access_line("/nowhere").has("NR"));
    gateway.stop();
}

#[test]
fn a_host_that_no_virtual_service_has_answers_404_nr() {
    let upstream = Upstream::echo("v1");
    let yaml = one_route(upstream.address(), "").replace("hosts: [\"*\"]\n", "hosts: [\"*.example.com\"]\n");
    let gateway = Gateway::builder().resources("route", &yaml).start();
    assert_eq!(gateway.get("A.Example.COM:8080", "/right").status, 200);
    assert_eq!(gateway.get("example.com", "/wrong").status, 404);
    assert!(gateway.access_line("/wrong").has("NR"));
    gateway.stop();
}

#[test]
fn an_unknown_subset_answers_503_nc() {
    let upstream = Upstream::echo("v1");
    let subset =
        format!("- route: [{{destination: {{host: {UPSTREAM_HOST}, subset: v9, port: {{number: 80}}}}}}]");
    let yaml = gateway(80)
        + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", upstream.address())])
        + &subsets(UPSTREAM_HOST, &["v1"])
        + &virtual_service(&subset);
    let gateway = Gateway::builder().resources("route", &yaml).start();
    assert_eq!(gateway.get("h", "/").status, 503);
    assert!(gateway.access_line("/").has("NC"));
    gateway.stop();
}

#[test]
fn no_endpoint_answers_503_uh() {
    let yaml = gateway(80)
        + &service(UPSTREAM_HOST, 80, &[])
        + &virtual_service(&format!("- {}", route_to(UPSTREAM_HOST)));
    let gateway = Gateway::builder().resources("route", &yaml).start();
    assert_eq!(gateway.get("h", "/").status, 503);
    assert!(gateway.access_line("/").has("UH"));
    gateway.stop();
}

#[test]
fn a_subset_has_only_its_endpoints() {
    let (v1, v2) = (Upstream::echo("v1"), Upstream::echo("v2"));
    let to = |subset: &str| {
        format!("route: [{{destination: {{host: {UPSTREAM_HOST}, subset: {subset}, port: {{number: 80}}}}}}]")
    };
    let yaml = gateway(80)
        + &service(
            UPSTREAM_HOST,
            80,
            &[
                Endpoint::new("v1", v1.address()),
                Endpoint::new("v2", v2.address()),
            ],
        )
        + &subsets(UPSTREAM_HOST, &["v1", "v2"])
        + &virtual_service(&format!(
            "- {{match: [{{uri: {{prefix: /two}}}}], {}}}\n- {}",
            to("v2"),
            to("v1")
        ));
    let gateway = Gateway::builder().resources("route", &yaml).start();
    let mut client = gateway.client();
    for _ in 0..20 {
        assert_eq!(client.get("h", "/two").text(), "v2\n");
        assert_eq!(client.get("h", "/one").text(), "v1\n");
    }
    gateway.stop();
}

#[test]
fn several_shards_serve_one_port() {
    let upstream = Upstream::echo("v1");
    let gateway = Gateway::builder()
        .resources("route", &one_route(upstream.address(), ""))
        .shards(3)
        .start();
    for _ in 0..30 {
        assert_eq!(gateway.get("h", "/").status, 200);
    }
    assert_eq!(upstream.served(), 30);
    assert_eq!(get_status(&gateway, "/healthz/ready"), 200);
    assert_eq!(get_status(&gateway, "/stats/prometheus"), 404);
    gateway.stop();
}

fn get_status(gateway: &Gateway, path: &str) -> u16 {
    isthmus_tests::client::get(gateway.status(), "h", path).status
}

#[test]
fn routes_are_named_in_the_log_and_counted_under_their_prefix() {
    let a = route_to("a.example");
    let (gateway, upstreams) = with_rules(&format!(
        "- {{name: front, match: [{{name: one, uri: {{prefix: /one}}, statPrefix: first}}, {{uri: {{prefix: /two}}}}], {a}}}
- {{match: [{{uri: {{prefix: /none}}, statPrefix: gone}}], directResponse: {{status: 404}}}}"
    ));
    let mut client = gateway.client();
    for path in ["/one", "/one/again", "/two", "/none"] {
        client.get("h", path);
    }
    for (path, name) in [("/one", " front.one"), ("/two", " front")] {
        let line = gateway.access_line(path);
        assert!(line.line.ends_with(name), "{line:?}");
    }
    eventually(SOON, "they are counted", || {
        let counted = |labels: &str| gateway.metric_with("isthmus_route_requests_total", labels);
        counted("stat_prefix=\"first\",response_code=\"200\"") == Some(2.0)
            && counted("stat_prefix=\"gone\",response_code=\"404\"") == Some(1.0)
    });
    assert_eq!(gateway.metric("isthmus_route_requests_total"), Some(3.0));
    let name = "isthmus_route_request_duration_milliseconds_count";
    assert_eq!(gateway.metric(name), Some(3.0));
    assert_eq!(upstreams.iter().map(Upstream::served).sum::<u64>(), 3);
    gateway.stop();
}
