//! Explanations: golden texts of one configuration, and that the decision is the same however it is found.
//!
//! The second part generates configurations as text, compiles them, and asks each many requests: what the indexes
//! find, which shards use, must be what reading everything finds, and the place that is named must be that of the rule.
//! `ISTHMUS_EXPLAIN_REQUESTS` says how many requests in all; a fiftieth of them is explained as a whole.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::explain::{Asked, By, Explanation, Known, Verdict, decide, render};
use isthmus_config::{Compiled, Options, Source, compile};
use isthmus_core::limits::Settings;
use isthmus_core::random::Random;
use isthmus_core::route::Scratch;
use std::fmt::Write as _;

struct Loaded {
    sources: Vec<Source>,
    compiled: Compiled,
    settings: Settings,
}

impl Loaded {
    fn new(name: &str, text: &str) -> Self {
        let sources = vec![Source {
            name: name.to_owned(),
            text: text.into(),
        }];
        Self {
            compiled: compile(&sources, &Options::default()),
            sources,
            settings: Settings::default(),
        }
    }

    fn known(&self) -> Known<'_> {
        Known {
            snapshot: &self.compiled.snapshot,
            origins: &self.compiled.origins,
            sources: &self.sources,
            diagnostics: &self.compiled.diagnostics,
            settings: &self.settings,
        }
    }

    fn explain(&self, method: &str, url: &str, fields: &[&str]) -> Explanation {
        let mut asked = Asked::new(method, url).unwrap();
        for field in fields {
            match field.strip_prefix("sni=") {
                Some(name) => asked.sni = Some(name.to_owned()),
                None => asked.add_header(field).unwrap(),
            }
        }
        self.known().explain(&asked)
    }
}

fn case() -> Loaded {
    Loaded::new("explain.yaml", include_str!("cases/explain.yaml"))
}

/// The texts of several requests, one below the other.
fn texts(loaded: &Loaded, asked: &[(&str, &str, &[&str])]) -> String {
    let mut out = String::new();
    for (method, url, fields) in asked {
        for field in *fields {
            let _ = writeln!(out, "# {field}");
        }
        let found = loaded.explain(method, url, fields);
        // What is shown of a running gateway has gone through JSON.
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), found);
        out.push_str(&render(&found, false));
        out.push('\n');
    }
    out
}

#[test]
fn what_a_rule_does_is_told_with_the_place_of_each_value() {
    let vip = &["x-user: jason", "x-secret: 1"][..];
    insta::assert_snapshot!(texts(
        &case(),
        &[
            ("POST", "http://shop.example/api/x?v=12", vip),
            ("GET", "http://shop.example/api/v2/../v2/x?q", &[]),
            ("GET", "http://shop.example/cart/add/1", &[]),
            ("GET", "http://shop.example:8080/cart/1", &[]),
            ("GET", "http://a.shop.example/never", &[]),
        ]
    ));
}

#[test]
fn answers_of_the_gateway_itself_are_told() {
    insta::assert_snapshot!(texts(
        &case(),
        &[
            ("GET", "http://shop.example/old/x?q=1", &[]),
            ("GET", "http://shop.example/pot", &[]),
            ("GET", "http://shop.example:81/x", &[]),
            ("GET", "http://shop.example/nowhere", &[]),
        ]
    ));
}

#[test]
fn what_nothing_takes_is_told_with_the_nearest_reasons() {
    insta::assert_snapshot!(texts(
        &case(),
        &[
            ("PUT", "http://shop.example/api/x?v=a", &["x-user: bob"]),
            ("GET", "http://shpo.example/", &[]),
            ("GET", "http://b.shop.example/", &[]),
            ("GET", "http://shop.example:82/", &[]),
            ("GET", "http://shop.example/../x", &[]),
        ]
    ));
}

/// Rules for whole connections: of another name, port, Gateway and client than are asked for.
const STREAMS: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec:
  selector: {app: edge}
  servers:
  - {port: {number: 443, name: tls, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: ['*']}
  - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ['*']}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.internal]
  resolution: STATIC
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  endpoints: [{address: 10.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: ['*']
  gateways: [door]
  tls:
  - match: [{port: 443, sniHosts: [db.example, '*.db.example']}]
    route: [{destination: {host: db.internal}}]
  - match: [{port: 8443, sniHosts: [x.example]}]
    route: [{destination: {host: db.internal}}]
  tcp:
  - match: [{port: 9000, sourceSubnet: 10.0.0.0/8}]
    route: [{destination: {host: db.internal}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: elsewhere}
spec:
  hosts: ['*']
  gateways: [other]
  tls:
  - match: [{sniHosts: [x.example]}]
    route: [{destination: {host: db.internal}}]
";

#[test]
fn rules_for_whole_connections_say_why_they_take_none() {
    let loaded = Loaded::new("streams.yaml", STREAMS);
    let reasons = |url: &str, fields: &[&str]| -> Vec<(String, String)> {
        let found = loaded.explain("GET", url, fields);
        assert!(!found.outcome.routed, "{found:?}");
        let passed = found.passed_over.into_iter();
        passed
            .map(|passed| {
                (
                    passed.rule.virtual_service + " " + &passed.rule.field,
                    passed.reason,
                )
            })
            .collect()
    };
    let told = |expected: &[(&str, &str)]| -> Vec<(String, String)> {
        let owned = |(rule, reason): &(&str, &str)| ((*rule).to_owned(), (*reason).to_owned());
        expected.iter().map(owned).collect()
    };
    let subnet = "it is for clients with sourceSubnet 10.0.0.0/8";
    assert_eq!(
        reasons("tls://x.example", &[]),
        told(&[
            (
                "default/db spec.tls[0].match[0]",
                "its sniHosts are db.example, *.db.example, and not x.example"
            ),
            (
                "default/db spec.tls[1].match[0]",
                "it is for port 8443, and this is port 443"
            ),
            (
                "default/elsewhere spec.tls[0].match[0]",
                "its VirtualService is bound to other, and port 443 is of default/door"
            ),
        ])
    );
    let nameless = reasons("tls://x.example", &["sni="]);
    assert!(
        nameless[0].1.ends_with("and the client asks TLS for none"),
        "{nameless:?}"
    );
    assert_eq!(reasons("tcp://:9000", &[])[0].1, subnet);
    let text = render(&loaded.explain("GET", "tcp://:9000", &[]), false);
    assert!(
        text.contains("rules that do not take it") && text.contains(subnet),
        "{text}"
    );
}

#[test]
fn tls_goes_by_name_and_bytes_by_port() {
    insta::assert_snapshot!(texts(
        &case(),
        &[
            ("GET", "https://shop.example/pot", &[]),
            ("GET", "https://shop.example/", &["host: a.shop.example"]),
            ("GET", "https://db.example/", &[]),
            ("GET", "https://nobody.example/", &[]),
            ("GET", "https://shop.example/", &["sni="]),
            ("GET", "tcp://:9000", &[]),
            ("GET", "http://shop.example:443/", &[]),
            ("GET", "https://shop.example:80/", &[]),
        ]
    ));
}

#[test]
fn the_form_in_json_is_stable() {
    let found = case().explain("POST", "http://shop.example/api/x?v=12", &["x-user: jason"]);
    let mut json = serde_json::to_value(&found).unwrap();
    // It is another one each time.
    for field in json["request"]["headers"].as_array_mut().unwrap() {
        if field[0] == "x-request-id" {
            field[1] = "ID".into();
        }
    }
    insta::assert_json_snapshot!(json);
}

#[test]
fn a_gateway_that_is_named_narrows_the_listeners() {
    let loaded = case();
    let mut asked = Asked::new("GET", "https://shop.example/pot").unwrap();
    asked.set_gateway("door").unwrap();
    assert_eq!(loaded.known().explain(&asked).outcome.status, Some(418));
    asked.set_gateway("other").unwrap();
    let found = loaded.known().explain(&asked);
    assert_eq!(
        (found.outcome.kind.as_str(), found.outcome.routed),
        ("no_listener", false)
    );
    // A port of its own is taken where the scheme's is not open.
    let mut asked = Asked::new("GET", "tcp://x").unwrap();
    asked.set_gateway("default/door").unwrap();
    assert_eq!(loaded.known().explain(&asked).listener.unwrap().port, 80);
}

const WORDS: [&str; 9] = ["/", "/a", "/b", "a", "b", "/aB", "/é", "A/", "/api"];
const PATTERNS: [&str; 8] = [
    ".*", "/a.*", "/(a|b)", "/a(/b)?", "(?i)/AB", "/ab?.*", "/a{2}b*", "/é.+",
];
const HOSTS: [&str; 8] = [
    "*",
    "*.foo.com",
    "*.a.foo.com",
    "a.foo.com",
    "b.a.foo.com",
    "foo.com",
    "*.com",
    "bar.org",
];
const ASKED: [&str; 9] = [
    "foo.com",
    "A.foo.com:81",
    "b.a.foo.com",
    "c.a.foo.com.",
    "x.com",
    "com",
    "bar.org",
    "c.b.a.foo.com",
    "nobody.net",
];

fn pick<'a>(random: &mut Random, list: &[&'a str]) -> &'a str {
    list[random.below(list.len() as u64) as usize]
}

fn path(random: &mut Random) -> String {
    let mut path: String = (0..=random.below(3)).map(|_| pick(random, &WORDS)).collect();
    if random.below(8) == 0 {
        let _ = write!(path, "{}", random.below(100));
    }
    path
}

fn text(random: &mut Random, values: &[&str]) -> String {
    match random.below(4) {
        0 => "{regex: \"1+\"}".to_owned(),
        1 => format!("{{prefix: {:?}}}", pick(random, &["1", "2"])),
        _ => format!("{{exact: {:?}}}", pick(random, values)),
    }
}

/// One match in flow style; whatever is in it, in any combination.
fn matched(random: &mut Random) -> String {
    let mut parts = Vec::new();
    match random.below(8) {
        0..3 => parts.push(format!("uri: {{exact: {:?}}}", path(random))),
        3..6 => parts.push(format!("uri: {{prefix: {:?}}}", path(random))),
        6 => parts.push(format!("uri: {{regex: {:?}}}", pick(random, &PATTERNS))),
        _ => {}
    }
    if random.below(4) == 0 {
        parts.push("ignoreUriCase: true".to_owned());
    }
    if random.below(3) == 0 {
        parts.push(format!("headers: {{x: {}}}", text(random, &["1", "12"])));
    }
    if random.below(6) == 0 {
        let wanted = if random.below(2) == 0 {
            "{}".to_owned()
        } else {
            text(random, &["1", "2"])
        };
        parts.push(format!("withoutHeaders: {{y: {wanted}}}"));
    }
    if random.below(6) == 0 {
        parts.push(format!("queryParams: {{q: {}}}", text(random, &["1", "2"])));
    }
    if random.below(6) == 0 {
        parts.push(format!("method: {{exact: {}}}", pick(random, &["GET", "POST"])));
    }
    if random.below(10) == 0 {
        parts.push(format!("scheme: {{exact: {}}}", pick(random, &["http", "https"])));
    }
    if random.below(10) == 0 {
        parts.push(format!(
            "authority: {{prefix: {:?}}}",
            pick(random, &["a", "foo"])
        ));
    }
    if random.below(12) == 0 {
        parts.push(format!("port: {}", pick(random, &["80", "81", "443"])));
    }
    if random.below(12) == 0 {
        parts.push(format!("gateways: [{}]", pick(random, &["one", "two"])));
    }
    if parts.is_empty() {
        parts.push(format!("uri: {{prefix: {:?}}}", path(random)));
    }
    format!("{{{}}}", parts.join(", "))
}

/// A configuration: two Gateways on three ports, and VirtualServices whose rules say their names.
fn configuration(random: &mut Random) -> String {
    let mut out = String::new();
    for gateway in ["one", "two"] {
        let mut servers = String::new();
        for (port, protocol) in [(80, "HTTP"), (81, "HTTP"), (443, "HTTPS")] {
            if random.below(4) == 0 {
                continue;
            }
            let mut hosts: Vec<&str> = (0..1 + random.below(5)).map(|_| pick(random, &HOSTS)).collect();
            hosts.sort_unstable();
            hosts.dedup();
            let tls = match protocol {
                "HTTPS" => format!(
                    ", tls: {{mode: SIMPLE, credentialName: {}}}",
                    pick(random, &["one", "two"])
                ),
                _ if random.below(20) == 0 => ", tls: {httpsRedirect: true}".to_owned(),
                _ => String::new(),
            };
            let _ = writeln!(
                servers,
                "  - {{port: {{number: {port}, name: p{port}, protocol: {protocol}}}, hosts: {hosts:?}{tls}}}"
            );
        }
        if servers.is_empty() {
            servers.push_str("  - {port: {number: 80, name: p, protocol: HTTP}, hosts: [\"*\"]}\n");
        }
        let _ = write!(
            out,
            "kind: Gateway\napiVersion: networking.istio.io/v1\nmetadata: {{name: {gateway}}}\nspec:\n  servers:\n{servers}---\n"
        );
    }
    for at in 0..2 + random.below(5) {
        let mut hosts: Vec<&str> = (0..1 + random.below(3)).map(|_| pick(random, &HOSTS)).collect();
        // A wildcard and what it covers exclude each other within one.
        hosts.truncate(if hosts.iter().any(|host| host.starts_with('*')) {
            1
        } else {
            3
        });
        hosts.sort_unstable();
        hosts.dedup();
        let gateways = pick(random, &["[one]", "[two]", "[one, two]"]);
        let _ = write!(
            out,
            "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: vs{at}}}\nspec:\n  hosts: {hosts:?}\n  \
             gateways: {gateways}\n  http:\n"
        );
        let rules = match random.below(40) {
            0 => 200,
            1..4 => 40,
            _ => 1 + random.below(8),
        };
        for rule in 0..rules {
            let _ = writeln!(out, "  - name: vs{at}-{rule}");
            if random.below(30) > 0 {
                let matches: Vec<String> = (0..=random.below(2)).map(|_| matched(random)).collect();
                out.push_str("    match:\n");
                for one in matches {
                    let _ = writeln!(out, "    - {one}");
                }
            }
            out.push_str("    directResponse: {status: 200}\n");
        }
        out.push_str("---\n");
    }
    out
}

fn request(random: &mut Random) -> Asked {
    let mut target = path(random);
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if random.below(3) == 0 {
        target.push_str(pick(random, &["?q=1", "?q=", "?p&q=12", "?"]));
    }
    let (scheme, port) = match random.below(3) {
        0 => ("http", 80),
        1 => ("http", 81),
        _ => ("https", 443),
    };
    let authority = pick(random, &ASKED);
    let name = authority.split(':').next().unwrap_or("");
    let method = pick(random, &["GET", "POST"]);
    let mut asked = Asked::new(method, &format!("{scheme}://{name}{target}")).unwrap();
    asked.port = Some(port);
    authority.clone_into(&mut asked.authority);
    if random.below(6) == 0 {
        // Another authority than the one that the connection was made for.
        asked.sni = Some(pick(random, &ASKED).split(':').next().unwrap_or("").to_owned());
    }
    for name in ["x", "y"] {
        for _ in 0..random.below(3) {
            asked
                .headers
                .push((name.to_owned(), pick(random, &["1", "2", "12", ""]).to_owned()));
        }
    }
    asked
}

/// The rule that stands at a place names itself in the line before its matches, or there.
fn is_at(source: &Source, line: usize, name: &str) -> bool {
    let lines: Vec<&str> = source.text.lines().collect();
    let before = lines.get(..line).unwrap_or(&[]);
    let named = before
        .iter()
        .rev()
        .find_map(|line| line.trim().strip_prefix("- name: "));
    named == Some(name)
}

#[test]
fn the_index_decides_what_reading_everything_decides() {
    let total: usize = match std::env::var("ISTHMUS_EXPLAIN_REQUESTS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 20_000,
    };
    // As many tables as requests for each, but no more than a thousand.
    let tables = 1000.min(total / 20).max(1);
    let mut random = Random::from_seed(0x000E_8941);
    let mut scratch = Scratch::default();
    let (mut asked_so_far, mut routed, mut behind, mut redirected, mut misdirected, mut whole) =
        (0, 0, 0, 0, 0, 0);
    for table in 0..tables {
        let loaded = Loaded::new("generated.yaml", &configuration(&mut random));
        assert!(
            !loaded.compiled.has_errors(),
            "{:#?}\n{}",
            loaded.compiled.diagnostics,
            loaded.sources[0].text
        );
        scratch.clear();
        let known = loaded.known();
        let requests = total / tables + usize::from(table < total % tables);
        for _ in 0..requests {
            let asked = request(&mut random);
            let mut by = |by| {
                decide(
                    &asked,
                    by,
                    known.snapshot,
                    known.origins,
                    known.settings,
                    &mut scratch,
                )
                .decision
            };
            let found = by(By::Index);
            assert_eq!(found, by(By::Reading), "{asked:?}\n{}", loaded.sources[0].text);
            asked_so_far += 1;
            match found.verdict {
                Verdict::Route(at) => {
                    routed += 1;
                    behind += usize::from(at > 0);
                }
                Verdict::HttpsRedirect => redirected += 1,
                Verdict::Refused(isthmus_core::reply::Cause::Misdirected) => misdirected += 1,
                _ => {}
            }
            if asked_so_far % 50 == 0 {
                whole += 1;
                let told = known.explain(&asked);
                let is_routed = matches!(found.verdict, Verdict::Route(_) | Verdict::HttpsRedirect);
                assert_eq!(told.outcome.routed, is_routed, "{told:#?}");
                if let Verdict::Route(at) = found.verdict {
                    let rule = told.rule.unwrap();
                    let place = rule.at.unwrap();
                    assert!(
                        is_at(&loaded.sources[0], place.line, rule.name.as_str()),
                        "{place:?} {}",
                        rule.name
                    );
                    // Every rule of the table before it is told with its reason.
                    let passed = told
                        .passed_over
                        .iter()
                        .filter(|passed| !passed.rule.conditions.is_empty());
                    assert_eq!(passed.count(), at, "{}", rule.name);
                }
            }
        }
    }
    assert_eq!(asked_so_far, total);
    println!(
        "{total} requests over {tables} configurations: {routed} routed, {behind} of them behind another rule, \
         {redirected} to https, {misdirected} misdirected; {whole} explained as a whole"
    );
    // Else the configurations would say little.
    assert!(routed > total / 8 && behind > total / 12 && redirected > 0 && misdirected > 0);
}
