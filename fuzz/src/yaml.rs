//! The configuration's door: files of resources, and resources that are nearly right.

use crate::input::Input;
use isthmus_config::diagnostic::{render, to_json};
use isthmus_config::{Defaults, Options, Source, compile};

/// Lines that make resources of most kinds; an input picks, cuts and indents them, and puts noise between.
const LINES: [&str; 48] = [
    "apiVersion: networking.istio.io/v1",
    "apiVersion: v1",
    "kind: Gateway",
    "kind: VirtualService",
    "kind: DestinationRule",
    "kind: ServiceEntry",
    "kind: WorkloadEntry",
    "kind: Service",
    "kind: List",
    "metadata: {name: a, namespace: b}",
    "spec:",
    "servers:",
    "- port: {number: 80, name: http, protocol: HTTP}",
    "hosts: [a.com, \"*.b.com\"]",
    "hosts: [\"*\"]",
    "- *.foo.com",
    "gateways: [a, b/a, mesh]",
    "http:",
    "- match:",
    "- uri: {prefix: /a}",
    "- uri: {regex: \"/(a|b).*\"}",
    "headers: {x: {exact: \"1\"}}",
    "withoutHeaders: {y: {}}",
    "- route:",
    "route: [{destination: {host: a, subset: v1}, weight: 50}]",
    "- destination: {host: a}",
    "redirect: {uri: /x, redirectCode: 302}",
    "rewrite: {uriRegexRewrite: {match: \"^/(a)\", rewrite: \"/\\\\1\"}}",
    "headers: {request: {set: {x: \"%REQ(y):3% %HOSTNAME%\"}}}",
    "timeout: 5s",
    "retries: {attempts: 3, retryOn: \"5xx,503\"}",
    "fault: {abort: {percentage: {value: 0.1}, httpStatus: 500}}",
    "delegate: {name: a, namespace: b}",
    "exportTo: [., \"*\"]",
    "host: a.b.svc.cluster.local",
    "subsets: [{name: v1, labels: {version: v1}}]",
    "trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {connectTimeout: 1s}}}",
    "ports: [{number: 80, name: http, protocol: HTTP}]",
    "resolution: STATIC",
    "endpoints: [{address: 127.0.0.1, labels: {version: v1}}]",
    "items:",
    "---",
    "a: &x {b: c}",
    "<<: *x",
    "? [1]",
    "\"\\u0041\": |-",
    "# comment",
    "!!str a: 1",
];

/// Compiles the bytes as they are, or the resources that they put together.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.byte();
    let options = Options {
        defaults: if form & 1 == 0 {
            Defaults::Seed
        } else {
            Defaults::Current
        },
        lenient: form & 2 != 0,
        namespace: if form & 4 == 0 {
            String::new()
        } else {
            "b".to_owned()
        },
        ..Options::default()
    };
    let text = if form & 8 == 0 {
        String::from_utf8_lossy(input.rest()).into_owned()
    } else {
        assembled(&mut input)
    };
    let sources = [Source {
        name: "fuzz.yaml".to_owned(),
        text: text.into(),
    }];
    let compiled = compile(&sources, &options);
    let lines = sources[0].text.lines().count();
    for found in &compiled.diagnostics {
        assert!(found.line >= 1 && found.column >= 1, "{found}");
        assert!(found.line <= lines.max(1) + 1, "{found}: there are {lines} lines");
    }
    let shown = render(&compiled.diagnostics, &sources, false);
    assert_eq!(shown.is_empty(), compiled.diagnostics.is_empty());
    let _json = to_json(&compiled.diagnostics);
    for listener in &compiled.snapshot.listeners {
        for (table, routes) in listener.tables.iter().enumerate() {
            for (at, host) in routes.virtual_hosts().iter().enumerate() {
                for route in 0..host.routes().len() {
                    let listener = (&listener.key, table);
                    let places = compiled.origins.of_route(&sources, listener, at, route);
                    assert!(!places.is_empty(), "every route was written somewhere");
                }
            }
        }
    }
    // The same text means the same.
    let again = compile(&sources, &options);
    assert_eq!(again.diagnostics, compiled.diagnostics);
    let mut shared = again.snapshot;
    shared.share_with(&compiled.snapshot);
    for (a, b) in shared.listeners.iter().zip(&compiled.snapshot.listeners) {
        assert!(std::sync::Arc::ptr_eq(a, b), "an unchanged listener is shared");
    }
}

fn assembled(input: &mut Input<'_>) -> String {
    let mut text = String::new();
    while !input.is_spent() && text.len() < 64 * 1024 {
        let choice = input.byte();
        if choice >= 250 {
            text.push_str(&String::from_utf8_lossy(input.take(3)));
            continue;
        }
        let line = LINES[usize::from(choice) % LINES.len()];
        let steer = input.byte();
        let indent = usize::from(steer & 7);
        let cut = if steer & 0xf8 == 0xf8 {
            input.below(line.len() + 1)
        } else {
            line.len()
        };
        text.extend(std::iter::repeat_n(' ', indent));
        text.push_str(line.get(..cut).unwrap_or(line));
        text.push('\n');
    }
    text
}
