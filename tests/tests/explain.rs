//! What a running gateway says about itself: that explanations come true, and that the tables show what there is.

use isthmus_tests::client::Client;
use isthmus_tests::deadline::{SOON, within};
use isthmus_tests::gateway::{Gateway, binary};
use isthmus_tests::resources::{Endpoint, gateway as door, service};
use isthmus_tests::upstream::{Answer, Upstream};
use serde_json::Value;
use std::fmt::Write as _;
use std::process::{Command, Output};

const HOSTS: [&str; 4] = [
    "shop.example",
    "*.shop.example",
    "api.shop.example",
    "other.example",
];
const ASKED: [&str; 6] = [
    "shop.example",
    "A.shop.example",
    "api.shop.example:80",
    "b.c.shop.example.",
    "other.example",
    "nobody.example",
];
const PATHS: [&str; 8] = ["/", "/a", "/a/b", "/b", "/a/../b", "/A/b", "/%61/x", "/c//d"];
const SERVICES: [&str; 3] = ["one.internal", "two.internal", "three.internal"];

/// Numbers that look random and are the same in every run (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

fn condition(numbers: &mut Numbers) -> String {
    let mut parts = Vec::new();
    match numbers.below(6) {
        0 | 1 => parts.push(format!(
            "uri: {{prefix: {:?}}}",
            numbers.pick(&["/a", "/a/", "/b", "/A", "/c/"])
        )),
        2 => parts.push(format!(
            "uri: {{exact: {:?}}}",
            numbers.pick(&["/", "/b", "/a/b"])
        )),
        3 => parts.push(format!(
            "uri: {{regex: {:?}}}",
            numbers.pick(&["/a.*", "/(b|c).*"])
        )),
        _ => {}
    }
    if numbers.below(3) == 0 {
        parts.push(format!(
            "headers: {{x-user: {{exact: {}}}}}",
            numbers.pick(&["bob", "eve"])
        ));
    }
    if numbers.below(6) == 0 {
        parts.push("withoutHeaders: {x-user: {}}".to_owned());
    }
    if numbers.below(6) == 0 {
        parts.push("queryParams: {q: {exact: \"1\"}}".to_owned());
    }
    if numbers.below(5) == 0 {
        parts.push(format!("method: {{exact: {}}}", numbers.pick(&["GET", "DELETE"])));
    }
    if parts.is_empty() {
        parts.push("uri: {prefix: /a/b}".to_owned());
    }
    format!("{{{}}}", parts.join(", "))
}

fn action(numbers: &mut Numbers, name: &str) -> String {
    match numbers.below(6) {
        0 => format!(
            "redirect: {{uri: /moved/{name}, redirectCode: {}}}",
            numbers.pick(&["301", "302", "308"])
        ),
        1 => format!(
            "directResponse: {{status: 21{}, body: {{string: {name}}}}}",
            numbers.below(10)
        ),
        _ => {
            let mut out = String::new();
            match numbers.below(4) {
                0 => out.push_str("rewrite: {uri: /new}, "),
                1 => out.push_str("rewrite: {uri: /n, authority: inner.example}, "),
                2 => out.push_str(
                    "rewrite: {uriRegexRewrite: {match: \"/([a-z])\", rewrite: \"/\\\\1\\\\1\"}}, ",
                ),
                _ => {}
            }
            let _ = write!(out, "headers: {{request: {{set: {{x-rule: {name}}}}}}}, ");
            let first = numbers.pick(&SERVICES);
            if numbers.below(3) == 0 {
                let second = numbers.pick(&SERVICES);
                let _ = write!(
                    out,
                    "route: [{{destination: {{host: {first}}}, weight: 30}}, {{destination: {{host: {second}}}, weight: 70}}]"
                );
            } else {
                let _ = write!(out, "route: [{{destination: {{host: {first}}}}}]");
            }
            out
        }
    }
}

fn virtual_services(numbers: &mut Numbers) -> String {
    let mut out = String::new();
    for (at, host) in HOSTS.iter().enumerate() {
        let _ = write!(
            out,
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: vs{at}}}\nspec:\n  hosts: [{host:?}]\n  \
             gateways: [g]\n  http:\n"
        );
        for rule in 0..25 {
            let name = format!("vs{at}-{rule}");
            let matches: Vec<String> = (0..=numbers.below(2)).map(|_| condition(numbers)).collect();
            let _ = writeln!(
                out,
                "  - {{name: {name}, match: [{}], {}}}",
                matches.join(", "),
                action(numbers, &name)
            );
        }
        out.push_str("---\n");
    }
    out
}

/// An upstream that says what it saw.
fn witness(name: &'static str) -> Upstream {
    Upstream::start(move |request| {
        let field = |name| request.field(name).unwrap_or("").to_owned();
        let saw = serde_json::json!({
            "service": name,
            "method": request.method,
            "path": request.target,
            "authority": field("host"),
            "rule": field("x-rule"),
        });
        Answer::ok(saw.to_string())
    })
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[test]
fn explanations_name_what_the_upstream_then_sees() {
    let total: usize = std::env::var("ISTHMUS_EXPLAIN_SOCKETS").map_or(400, |text| text.parse().unwrap());
    let mut numbers = Numbers(0x0E41_A114_0DD5);
    let upstreams = SERVICES.map(witness);
    let mut yaml = door(80) + &virtual_services(&mut numbers);
    for (name, upstream) in SERVICES.iter().zip(&upstreams) {
        yaml += &service(name, 80, &[Endpoint::new("v1", upstream.address())]);
    }
    let gateway = Gateway::builder()
        .resources("generated", &yaml)
        .without_access_log()
        .start();
    let mut client = gateway.client();
    let mut admin = Client::connect(gateway.admin());
    let admin_host = gateway.admin().to_string();
    let (mut forwarded, mut answered, mut refused) = (0, 0, 0);
    for _ in 0..total {
        let (method, host) = (numbers.pick(&["GET", "DELETE"]), numbers.pick(&ASKED));
        let mut path = numbers.pick(&PATHS).to_owned();
        path += numbers.pick(&["", "", "/x", "?q=1", "?q=2&q=1"]);
        let user = numbers.pick(&["", "bob", "eve"]);
        let field = if user.is_empty() {
            String::new()
        } else {
            format!("x-user: {user}")
        };
        let mut query = format!(
            "method={method}&url={}&port=80",
            escaped(&format!("http://{host}{path}"))
        );
        if !field.is_empty() {
            let _ = write!(query, "&header={}", escaped(&field));
        }
        let told = admin.get(&admin_host, &format!("/explain?{query}"));
        assert_eq!(told.status, 200, "{}", told.text());
        let told: Value = serde_json::from_str(told.text()).unwrap();
        let line = if field.is_empty() {
            String::new()
        } else {
            format!("{field}\r\n")
        };
        let got = client
            .send(format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{line}\r\n"))
            .response();
        let context = || format!("{method} {host}{path} {field}\n{told:#}\n{got:?}");
        if told["outcome"]["kind"] == "forward" {
            forwarded += 1;
            assert_eq!(got.status, 200, "{}", context());
            let saw: Value = serde_json::from_str(got.text()).unwrap();
            let destinations = told["destinations"].as_array().unwrap();
            let destination = destinations.iter().find(|one| one["host"] == saw["service"]);
            let destination = destination.unwrap_or_else(|| panic!("{}", context()));
            assert_eq!(saw["path"], destination["path"], "{}", context());
            assert_eq!(saw["authority"], destination["authority"], "{}", context());
            assert_eq!(saw["method"], method, "{}", context());
            // The name of the route is that of its rule, which the rule writes into a field.
            assert_eq!(saw["rule"], told["rule"]["name"], "{}", context());
        } else {
            assert_eq!(
                Value::from(got.status),
                told["outcome"]["status"],
                "{}",
                context()
            );
            if told["outcome"]["routed"] == true {
                answered += 1;
                let location = got.field("location").map_or(Value::Null, Value::from);
                assert_eq!(location, told["outcome"]["location"], "{}", context());
                if told["outcome"]["kind"] == "direct_response" {
                    assert_eq!(got.text(), told["outcome"]["body"], "{}", context());
                }
            } else {
                refused += 1;
            }
        }
    }
    println!("{total} requests: {forwarded} forwarded, {answered} answered, {refused} refused");
    assert!(forwarded > total / 4 && answered > total / 20 && refused > total / 20);
    for upstream in &upstreams {
        upstream.assert_no_violation();
    }
    gateway.stop();
}

fn isthmus(arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()
        .expect("isthmus runs")
}

/// Standard output of a command that must end with this status.
fn output(status: i32, arguments: &[&str]) -> String {
    let found = isthmus(arguments);
    let text = String::from_utf8(found.stdout).unwrap();
    let errors = String::from_utf8_lossy(&found.stderr).into_owned();
    assert_eq!(
        found.status.code(),
        Some(status),
        "{arguments:?}\n{text}\n{errors}"
    );
    text
}

fn json(arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["-o", "json"]);
    serde_json::from_str(&output(0, &all)).unwrap()
}

const SHOP: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example]
  gateways: [g]
  http:
  - name: cart
    match: [{uri: {prefix: /cart}, headers: {x-user: {exact: jason}}}]
    rewrite: {uri: /basket}
    timeout: 3s
    headers: {request: {set: {x-shop: \"1\"}}}
    route: [{destination: {host: one.internal}}]
  - name: pot
    match: [{uri: {exact: /pot}}]
    directResponse: {status: 418}
---
";

#[test]
fn tables_show_what_a_running_gateway_has() {
    let upstream = Upstream::echo("one");
    let yaml = door(80) + SHOP + &service("one.internal", 80, &[Endpoint::new("v1", upstream.address())]);
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("admin.sock").display());
    let over_tcp = Gateway::builder().resources("shop", &yaml).start();
    let over_unix = Gateway::builder().resources("shop", &yaml).admin(&socket).start();
    let field = "host: shop.example\r\nx-user: jason\r\n";
    let mut client = over_tcp.client();
    let served = client
        .send(format!("GET /cart HTTP/1.1\r\n{field}\r\n"))
        .response();
    assert_eq!(served.status, 200);
    let address = upstream.address().to_string();
    for (gateway, admin, idle) in [
        (&over_tcp, over_tcp.admin().to_string(), "1"),
        (&over_unix, socket.clone(), "0"),
    ] {
        let admin = admin.as_str();
        let ask = |command: &str| output(0, &[command, "--admin", admin]);
        let rows = |text: &str| -> Vec<Vec<String>> {
            let cells = |line: &str| {
                line.split("  ")
                    .filter(|cell| !cell.is_empty())
                    .map(|cell| cell.trim().to_owned())
                    .collect()
            };
            text.lines().map(cells).collect()
        };
        let listeners = rows(&ask("listeners"));
        assert_eq!(
            listeners[1][..5],
            ["80", &gateway.address().to_string(), "http", "1", "2"].map(str::to_owned)
        );
        let routes = rows(&ask("routes"));
        let cart = "uri prefix \"/cart\"; header x-user exact \"jason\"";
        assert_eq!(
            routes[1],
            [
                "80",
                "shop.example",
                cart,
                "outbound|80||one.internal",
                "default/shop",
                "cart"
            ]
        );
        assert_eq!(routes[2][3], "direct_response 418");
        assert_eq!(
            rows(&output(0, &["routes", "--admin", admin, "--host", "nobody"])).len(),
            1
        );
        let clusters = rows(&ask("clusters"));
        assert_eq!(clusters[1][0], "outbound|80||one.internal");
        let endpoints = rows(&ask("endpoints"));
        assert_eq!(
            endpoints[1][..2],
            ["outbound|80||one.internal".to_owned(), address.clone()]
        );
        // The connection is given back behind the answer's end.
        let is_idle = || (rows(&ask("endpoints"))[1][5] == idle).then_some(());
        assert!(within(SOON, is_idle).is_some(), "{endpoints:?}");
        assert!(ask("status").starts_with(&format!("{:<22} serving\n", "state")));
        assert!(ask("secrets").starts_with("USED AS"));
        // The same for programs, with rewrites and operations in them.
        let routes = json(&["routes", "--admin", admin]);
        let forward = &routes["routes"][0]["forward"];
        assert_eq!(forward["path"]["with"], "/basket");
        assert_eq!(forward["timeout"], "3s");
        assert_eq!(
            forward["destinations"][0]["request_headers"][0]["set"][0]["name"],
            "x-shop"
        );
        let endpoints = json(&["endpoints", "--admin", admin, "--cluster", "one"]);
        assert_eq!(endpoints["endpoints"][0]["live"]["requests_active"], 0);
        assert_eq!(json(&["status", "--admin", admin])["ready"], true);
        assert_eq!(
            json(&["listeners", "--admin", admin])["listeners"][0]["routes"],
            2
        );
        assert_eq!(
            json(&["clusters", "--admin", admin])["clusters"][0]["balancer"]["kind"],
            "LEAST_REQUEST"
        );
    }
    over_unix.stop();
    assert!(
        !folder.path().join("admin.sock").exists(),
        "the socket is left behind"
    );
    assert_eq!(isthmus(&["status", "--admin", &socket]).status.code(), Some(3));
    over_tcp.stop();
}

#[test]
fn an_explanation_is_the_same_from_files_and_from_the_gateway_that_runs_them() {
    let upstream = Upstream::echo("one");
    let yaml = door(80) + SHOP + &service("one.internal", 80, &[Endpoint::new("v1", upstream.address())]);
    let gateway = Gateway::builder().resources("shop", &yaml).start();
    let files = gateway.folder_path().join("resources");
    let files = files.to_str().unwrap();
    let admin = gateway.admin().to_string();
    let mut request = vec!["http://shop.example/cart/1", "-H", "x-user: jason"];
    let offline = ["explain", "-f", files, "--defaults", "current", "GET"];
    let live = ["explain", "--live", "--admin", &admin, "GET"];
    let all = |start: &[&str], rest: &[&str]| -> Vec<String> {
        start.iter().chain(rest).map(|word| (*word).to_owned()).collect()
    };
    let run = |status: i32, words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        output(status, &words)
    };
    let text = run(0, &all(&offline, &request));
    let place = format!("{files}/shop.yaml:");
    for wanted in [
        "rule          VirtualService default/shop, spec.http[0].match[0], named cart",
        "gets        /basket/1 for shop.example",
        "timeout: 3s",
        place.as_str(),
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    request.extend(["-o", "json"]);
    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let from_files = parse(&run(0, &all(&offline, &request)));
    let mut from_gateway = parse(&run(0, &all(&live, &request)));
    let endpoint = from_gateway["destinations"][0]["endpoints"][0]
        .as_object_mut()
        .unwrap();
    assert_eq!(endpoint.remove("live").unwrap()["requests_active"], 0);
    assert_eq!(from_gateway, from_files);
    // The port that the gateway took in the place of the Gateway's is as good as that.
    let real = format!("http://shop.example:{}/pot", gateway.address().port());
    let found = parse(&run(0, &all(&live, &[real.as_str(), "-o", "json"])));
    assert_eq!(
        (&found["outcome"]["status"], &found["listener"]["port"]),
        (&418.into(), &80.into())
    );
    // What nothing takes, what is no question, and a gateway that is not there.
    assert!(run(1, &all(&offline, &["http://shop.example/"])).contains("-> 404 NR"));
    run(2, &all(&offline, &["http://"]));
    run(2, &all(&["explain"], &["http://a/"]));
    gateway.stop();
    run(3, &all(&live, &["http://shop.example/"]));
}
