//! What browsers of other origins are told (`corsPolicy`).

use isthmus_tests::client::{Client, Response};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Frame, flag};
use isthmus_tests::port::HeldPort;
use isthmus_tests::resources::{Endpoint, UPSTREAM_HOST, gateway, route_to, service, virtual_service};
use isthmus_tests::upstream::{Answer, Upstream};

const POLICY: &str = "corsPolicy: {allowOrigins: [{exact: 'http://a'}, {prefix: 'http://p.'}, {regex: 'https?://r[0-9]'}], \
    allowMethods: [GET, POST], allowHeaders: [x-a, x-b], exposeHeaders: [x-e], maxAge: 24h, allowCredentials: true}";
const PREFLIGHT: &str = "access-control-request-method: PUT\r\n";

/// An upstream that says something of its own to browsers.
fn outspoken() -> Upstream {
    Upstream::start(|_| {
        Answer::ok("up")
            .field("access-control-allow-origin", "upstream")
            .field("access-control-allow-methods", "UP")
            .field("access-control-allow-credentials", "up")
            .field("access-control-expose-headers", "up")
    })
}

fn with_rules(upstream: &Upstream, http: &str) -> Gateway {
    let yaml = gateway(80)
        + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", upstream.address())])
        + &virtual_service(http);
    Gateway::builder().resources("cors", &yaml).start()
}

fn with_policy(upstream: &Upstream) -> Gateway {
    with_rules(upstream, &format!("- {}\n  {POLICY}", route_to(UPSTREAM_HOST)))
}

fn ask(client: &mut Client, method: &str, path: &str, origin: &str, more: &str) -> Response {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: h\r\norigin: {origin}\r\n{more}\r\n");
    client.send(request).response()
}

/// The fields that browsers look at, in the order of their names.
fn told(response: &Response) -> Vec<String> {
    let names = [
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-allow-origin",
        "access-control-expose-headers",
        "access-control-max-age",
    ];
    let values = names.iter().filter_map(|name| {
        Some(format!(
            "{}: {}",
            name.trim_start_matches("access-control-"),
            response.field(name)?
        ))
    });
    values.collect()
}

#[test]
fn preflights_of_allowed_origins_are_answered_here() {
    let upstream = outspoken();
    let gateway = with_policy(&upstream);
    let mut client = gateway.client();
    for origin in ["http://a", "http://p.example", "https://r7"] {
        let answer = ask(&mut client, "OPTIONS", "/pre", origin, PREFLIGHT);
        assert_eq!((answer.status, answer.text()), (200, ""));
        let allowed = format!("allow-origin: {origin}");
        assert_eq!(
            told(&answer),
            [
                "allow-credentials: true",
                "allow-headers: x-a,x-b",
                "allow-methods: GET,POST",
                &allowed,
                "expose-headers: x-e",
                "max-age: 86400",
            ]
        );
    }
    let line = gateway.access_line("/pre");
    assert!(line.line.contains("cors_response"), "{line:?}");
    assert_eq!(upstream.served(), 0);
    // The old spelling of an origin is exact.
    let old = with_rules(
        &upstream,
        &format!(
            "- {}\n  corsPolicy: {{allowOrigin: ['http://old']}}",
            route_to(UPSTREAM_HOST)
        ),
    );
    let answer = ask(&mut old.client(), "OPTIONS", "/", "http://old", PREFLIGHT);
    assert_eq!(told(&answer), ["allow-origin: http://old"]);
    assert_eq!(upstream.served(), 0);
    gateway.stop();
    old.stop();
}

#[test]
fn other_preflights_are_the_upstreams_unless_they_are_kept() {
    let upstream = outspoken();
    let gateway = with_policy(&upstream);
    let mut client = gateway.client();
    let unchanged = [
        "allow-credentials: up",
        "allow-methods: UP",
        "allow-origin: upstream",
        "expose-headers: up",
    ];
    let answer = ask(&mut client, "OPTIONS", "/", "http://b", PREFLIGHT);
    assert_eq!(
        (answer.text(), told(&answer)),
        ("up", unchanged.map(String::from).to_vec())
    );
    assert_eq!(upstream.served(), 1);

    let keeping = POLICY.replace("maxAge", "unmatchedPreflights: IGNORE, maxAge");
    let kept = with_rules(&upstream, &format!("- {}\n  {keeping}", route_to(UPSTREAM_HOST)));
    let answer = ask(&mut kept.client(), "OPTIONS", "/", "http://b", PREFLIGHT);
    assert_eq!((answer.status, answer.text()), (200, ""));
    assert_eq!(answer.field("access-control-allow-origin"), None);
    assert_eq!(upstream.served(), 1);
    // What is no preflight is passed on all the same.
    let answer = ask(&mut kept.client(), "OPTIONS", "/", "http://b", "");
    assert_eq!(answer.text(), "up");
    gateway.stop();
    kept.stop();
}

#[test]
fn answers_of_the_upstream_are_marked_for_allowed_origins() {
    let upstream = outspoken();
    let set = "headers: {response: {set: {access-control-allow-origin: rule, x-op: rule}}}";
    let gateway = with_rules(
        &upstream,
        &format!("- {}\n  {POLICY}\n  {set}", route_to(UPSTREAM_HOST)),
    );
    let mut client = gateway.client();
    let answer = ask(&mut client, "GET", "/", "http://a", "");
    assert_eq!((answer.text(), answer.field("x-op")), ("up", Some("rule")));
    assert_eq!(
        told(&answer),
        [
            "allow-credentials: true",
            "allow-methods: UP",
            "allow-origin: http://a",
            "expose-headers: x-e",
        ]
    );
    // The next request of the connection is of another origin: nothing is left of the one before.
    let answer = ask(&mut client, "GET", "/", "http://b", "");
    assert_eq!(
        told(&answer),
        [
            "allow-credentials: up",
            "allow-methods: UP",
            "allow-origin: rule",
            "expose-headers: up",
        ]
    );
    gateway.stop();
}

#[test]
fn an_error_of_the_gateway_is_marked_and_a_redirect_is_not() {
    let nobody = HeldPort::take();
    let upstream = Upstream::echo("up");
    let a = route_to(UPSTREAM_HOST);
    let set = "headers: {response: {set: {x-op: rule}}}";
    let yaml = gateway(80)
        + &service(UPSTREAM_HOST, 80, &[Endpoint::new("v1", upstream.address())])
        + &service("dead.example", 80, &[Endpoint::new("v1", nobody.address())])
        + &virtual_service(&format!(
            "- match: [{{uri: {{prefix: /dead}}}}]\n  {dead}\n  {set}\n  {POLICY}
- match: [{{uri: {{prefix: /fault}}}}]\n  {a}\n  fault: {{abort: {{percentage: {{value: 100}}, httpStatus: 503}}}}\n  {set}\n  {POLICY}
- match: [{{uri: {{prefix: /moved}}}}]\n  redirect: {{uri: /new}}\n  {set}\n  {POLICY}
- match: [{{uri: {{prefix: /direct}}}}]\n  directResponse: {{status: 200, body: {{string: here}}}}\n  {set}\n  {POLICY}",
            dead = route_to("dead.example"),
        ));
    let gateway = Gateway::builder().resources("cors", &yaml).start();
    let mut client = gateway.client();
    for (path, status, marked) in [
        ("/dead", 503, true),
        // The fault comes before the policy, as in Istio's order.
        ("/fault", 503, false),
        ("/moved", 301, false),
        ("/direct", 200, false),
    ] {
        let answer = ask(&mut client, "GET", path, "http://a", "");
        assert_eq!(
            (answer.status, answer.field("x-op")),
            (status, Some("rule")),
            "{path}"
        );
        let origin = answer.field("access-control-allow-origin");
        assert_eq!(origin, marked.then_some("http://a"), "{path}");
    }
    assert_eq!(
        ask(&mut client, "OPTIONS", "/fault", "http://a", PREFLIGHT).status,
        503
    );
    assert_eq!(
        ask(&mut client, "OPTIONS", "/moved", "http://a", PREFLIGHT).status,
        301
    );
    // A preflight needs no upstream.
    assert_eq!(
        ask(&mut client, "OPTIONS", "/dead", "http://a", PREFLIGHT).status,
        200
    );
    gateway.stop();
}

#[test]
fn http2_is_told_the_same() {
    let upstream = outspoken();
    let gateway = with_policy(&upstream);
    let mut connection = Connection::open(Target::cleartext(gateway.address())).expect("a connection");
    connection.handshake(&[]).expect("a handshake");
    let mut ask = |method: &str, more: &[(&str, &str)]| {
        let stream = connection.next_stream();
        let mut head = connection.head(method, "/");
        head = head.field("origin", "http://a");
        for (name, value) in more {
            head = head.field(name, value);
        }
        connection.send(&Frame::headers(flag::WHOLE, stream, head));
        connection.answered(stream, 200).expect("an answer")
    };
    let preflight = ask("OPTIONS", &[("access-control-request-method", "PUT")]);
    assert_eq!(
        preflight.field("access-control-allow-methods").as_deref(),
        Some("GET,POST")
    );
    assert_eq!(
        preflight.field("access-control-allow-origin").as_deref(),
        Some("http://a")
    );
    assert_eq!(preflight.text(), "");
    let answer = ask("GET", &[]);
    assert_eq!(
        answer.field("access-control-allow-origin").as_deref(),
        Some("http://a")
    );
    assert_eq!(
        answer.field("access-control-allow-methods").as_deref(),
        Some("UP")
    );
    assert_eq!(answer.text(), "up");
    assert_eq!(upstream.served(), 1);
    gateway.stop();
}
