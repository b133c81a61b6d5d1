//! Substitutions in header values, filled in from real connections.

use isthmus_tests::cert::{Authority, Wanted};
use isthmus_tests::curl::Curl;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::resources::{
    Endpoint, UPSTREAM_HOST, gateway_with, https_server, one_route, route_to, service, tls_files,
    virtual_service,
};
use isthmus_tests::upstream::Upstream;

#[test]
fn the_connection_of_a_client_can_be_named() {
    let (servers, clients) = (Authority::named("servers"), Authority::named("clients"));
    let leaf = servers.server(&["a.example"]);
    let tls = format!(
        "{}, caCertificates: {}",
        tls_files("OPTIONAL_MUTUAL", &leaf),
        clients.certificate().display()
    );
    let upstream = Upstream::echo("up");
    let set = "headers: {request: {set: {
    x-tls: '%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %REQUESTED_SERVER_NAME%',
    x-subject: '%DOWNSTREAM_PEER_SUBJECT%', x-issuer: '%DOWNSTREAM_PEER_ISSUER%',
    x-serial: '%DOWNSTREAM_PEER_SERIAL%', x-hash: '%DOWNSTREAM_PEER_FINGERPRINT_256%',
    x-uri: '%DOWNSTREAM_PEER_URI_SAN%', x-dns: '%DOWNSTREAM_PEER_DNS_SAN%',
    x-years: '%DOWNSTREAM_PEER_CERT_V_START(%Y)%-%DOWNSTREAM_PEER_CERT_V_END(%Y)%'}}}";
    let yaml = gateway_with(&https_server("a", "a.example", &tls))
        + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", upstream.address())])
        + &virtual_service(&format!("- {}\n  {set}", route_to(UPSTREAM_HOST)));
    let gateway = Gateway::builder().resources("tls", &yaml).port(443).start();
    let wanted = Wanted::client(&["c.example", "d.example"])
        .uri("spiffe://x/ns/a/sa/b")
        .serial(0x0abc);
    let shown = clients.issue(&wanted);
    let curl = Curl::new(gateway.listener(443)).trusting(servers.certificate());
    assert_eq!(curl.clone().with(&shown).status("https://a.example/with"), 200);
    assert_eq!(curl.status("https://a.example/without"), 200);
    let [with, without] = &upstream.requests()[..] else {
        panic!("two requests")
    };
    let tls = with.field("x-tls").expect("a field");
    let parts: Vec<&str> = tls.split(' ').collect();
    assert_eq!((parts[0], parts[2]), ("TLSv1.3", "a.example"));
    assert!(parts[1].starts_with("TLS_"), "{tls}");
    for (name, value) in [
        ("x-subject", "CN=c.example"),
        ("x-issuer", "CN=clients"),
        ("x-serial", "0abc"),
        ("x-uri", "spiffe://x/ns/a/sa/b"),
        ("x-dns", "c.example,d.example"),
    ] {
        assert_eq!(with.field(name), Some(value), "{name}");
        assert_eq!(without.field(name), None, "{name}");
    }
    assert_eq!(with.field("x-hash"), Some(shown.hash().as_str()));
    let (from, until) = with
        .field("x-years")
        .and_then(|years| years.split_once('-'))
        .expect("two years");
    assert!(from.parse::<u32>().unwrap() <= until.parse::<u32>().unwrap());
    assert_eq!(without.field("x-tls"), Some(tls));
    gateway.stop();
}

#[test]
fn the_request_can_be_named_in_its_answer() {
    let upstream = Upstream::echo("up");
    let yaml = one_route(
        upstream.address(),
        "name: front
headers: {response: {set: {
  x-id: '%STREAM_ID%', x-attempts: '%UPSTREAM_REQUEST_ATTEMPT_COUNT%', x-query: '%QUERY_PARAM(user)%',
  x-path: '%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%', x-route: '%ROUTE_NAME%', x-never: '%TRACE_ID%',
  x-long: '%REQ(x-long):4%', x-percent: '100%%'}}}
rewrite: {uri: /new}",
    );
    let gateway = Gateway::builder().resources("route", &yaml).start();
    let response = gateway
        .client()
        .send("GET /old?user=jason&x=1 HTTP/1.1\r\nhost: h\r\nx-long: abcdefgh\r\n\r\n")
        .response();
    let seen = upstream.only_request();
    assert_eq!(seen.target, "/newold?user=jason&x=1");
    for (name, value) in [
        ("x-attempts", Some("1")),
        ("x-query", Some("jason")),
        ("x-path", Some("/old")),
        ("x-route", Some("front")),
        ("x-never", None),
        ("x-long", Some("abcd")),
        ("x-percent", Some("100%")),
    ] {
        assert_eq!(response.field(name), value, "{name}");
    }
    assert_eq!(response.field("x-id"), seen.field("x-request-id"));
    gateway.stop();
}
