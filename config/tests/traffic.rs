//! Faults, and what browsers are told: what is written compiles to this, and what is odd about it is said.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

use http::StatusCode;
use isthmus_config::{Compiled, Defaults, Options, Source, compile};
use isthmus_core::grpc;
use isthmus_core::route::{Abort, AbortWith, Action, Delay, Forward, Route, Share, TextMatch};
use std::time::Duration;

const GATEWAY: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec: {hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.0.0.1}]}
---
";

/// A rule to a.example with these lines, and these annotations of its VirtualService.
fn rule(annotations: &str, lines: &str) -> String {
    let lines: String = lines
        .lines()
        .map(|line| format!("    {}\n", line.trim()))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: v, annotations: {{{annotations}}}}}
spec:
  hosts: [\"*\"]
  gateways: [g]
  http:
  - route: [{{destination: {{host: a.example}}}}]
{lines}---
"
    )
}

fn compiled(text: &str, defaults: Defaults) -> Compiled {
    let source = Source {
        name: "t".to_owned(),
        text: format!("{GATEWAY}{text}").into(),
    };
    let options = Options {
        defaults,
        ..Options::default()
    };
    compile(&[source], &options)
}

fn routes(compiled: &Compiled) -> &[Route] {
    compiled.snapshot.listeners[0].tables[0].virtual_hosts()[0].routes()
}

fn forward(compiled: &Compiled) -> &Forward {
    assert!(!compiled.has_errors(), "{:#?}", compiled.diagnostics);
    match &*routes(compiled)[0].action {
        Action::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

/// Kinds and fields of what is said, without hints at what prefixes take.
fn told(compiled: &Compiled) -> Vec<(&str, &str)> {
    let all = compiled.diagnostics.iter();
    let all = all.filter(|found| found.name != "open-prefix");
    all.map(|found| (found.name, found.field.as_str())).collect()
}

#[test]
fn shares_are_written_in_two_spellings() {
    let percent = |percent| Share::of_percent(percent);
    for (written, share, said) in [
        ("percentage: {value: 0.1}, ", percent(0.1), &[][..]),
        ("percent: 10, ", percent(10.0), &["old-spelling"]),
        (
            "percentage: {value: 3}, percent: 50, ",
            percent(3.0),
            &["no-effect"; 2],
        ),
        ("", Share::ALWAYS, &["no-percentage"; 2]),
    ] {
        let text =
            format!("fault: {{delay: {{{written}fixedDelay: 5s}}, abort: {{{written}httpStatus: 400}}}}");
        let compiled = compiled(&rule("", &text), Defaults::Seed);
        let fault = forward(&compiled).fault.unwrap();
        assert_eq!(
            fault.delay,
            Some(Delay {
                share,
                time: Duration::from_secs(5)
            })
        );
        assert_eq!(
            fault.abort,
            Some(Abort {
                share,
                with: AbortWith::Status(StatusCode::BAD_REQUEST)
            })
        );
        let codes: Vec<&str> = told(&compiled).iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, said, "{written}");
    }
}

#[test]
fn what_strikes_nothing_is_left_out() {
    for (text, said) in [
        (
            "fault: {abort: {percentage: {value: 0}, httpStatus: 400}}",
            &[][..],
        ),
        ("fault: {delay: {percentage: {}, fixedDelay: 1s}}", &[]),
        (
            "fault: {abort: {percentage: {value: 100}}}",
            &[("no-effect", "spec.http[0].fault.abort")],
        ),
        (
            "fault: {delay: {percent: 100}}",
            &[
                ("no-effect", "spec.http[0].fault.delay"),
                ("old-spelling", "spec.http[0].fault.delay.percent"),
            ],
        ),
    ] {
        let compiled = compiled(&rule("", text), Defaults::Seed);
        assert_eq!(forward(&compiled).fault, None, "{text}");
        assert_eq!(told(&compiled), said, "{text}");
    }
    // Istio today strikes nothing without a percentage.
    let text = rule("", "fault: {abort: {httpStatus: 400}}");
    let compiled = compiled(&text, Defaults::Current);
    assert_eq!(forward(&compiled).fault, None);
    assert_eq!(told(&compiled), [("no-percentage", "spec.http[0].fault.abort")]);
}

#[test]
fn aborts_have_three_ways() {
    let with = |annotations: &str, text: &str| {
        let compiled = compiled(&rule(annotations, text), Defaults::Seed);
        assert_eq!(told(&compiled), [], "{text}");
        forward(&compiled).fault.unwrap().abort.unwrap().with
    };
    let reset = "isthmus.dev/abort: reset";
    assert_eq!(
        with("", "fault: {abort: {percent: 1, httpStatus: 600}}"),
        AbortWith::Status(StatusCode::from_u16(600).unwrap())
    );
    assert_eq!(
        with("", "fault: {abort: {percent: 1, grpcStatus: NOT_FOUND}}"),
        AbortWith::Grpc(grpc::Status::NotFound)
    );
    for text in [
        "fault: {abort: {percent: 1, httpStatus: 503}}",
        "fault: {abort: {percent: 1}}",
    ] {
        assert_eq!(with(reset, text), AbortWith::Reset);
    }
    let unused = compiled(&rule(reset, "timeout: 1s"), Defaults::Seed);
    assert_eq!(
        told(&unused),
        [("no-effect", "metadata.annotations[isthmus.dev/abort]")]
    );
    let unknown = compiled(&rule("isthmus.dev/abort: close", "timeout: 1s"), Defaults::Seed);
    assert!(unknown.has_errors(), "{:?}", unknown.diagnostics);
}

#[test]
fn a_policy_for_browsers_is_compiled() {
    let text = "corsPolicy: {allowOrigins: [{exact: 'http://a'}, {prefix: 'http://b'}], allowMethods: [GET, PUT], \
                allowHeaders: [x-a, x-b], exposeHeaders: [x-c], maxAge: 1h, allowCredentials: true, \
                unmatchedPreflights: IGNORE}";
    let compiled = compiled(&rule("", text), Defaults::Seed);
    assert_eq!(told(&compiled), []);
    let cors = forward(&compiled).cors.as_ref().unwrap();
    assert_eq!(
        cors.origins(),
        [
            TextMatch::Exact("http://a".into()),
            TextMatch::Prefix("http://b".into())
        ]
    );
    assert_eq!(
        (&*cors.methods, &*cors.headers, &*cors.exposed),
        ("GET,PUT", "x-a,x-b", "x-c")
    );
    assert_eq!(
        (cors.max_age, cors.credentials, cors.keeps_unmatched),
        (Some(3600), true, true)
    );
}

#[test]
fn origins_have_an_older_spelling() {
    let old = compiled(
        &rule("", "corsPolicy: {allowOrigin: ['*', 'http://a']}"),
        Defaults::Seed,
    );
    let cors = forward(&old).cors.as_ref().unwrap();
    let exact = |text: &str| TextMatch::Exact(text.into());
    assert_eq!(cors.origins(), [exact("*"), exact("http://a")]);
    assert_eq!(
        (cors.max_age, cors.credentials, cors.keeps_unmatched),
        (None, false, false)
    );
    let both = "corsPolicy: {allowOrigin: [a], allowOrigins: [{exact: b}]}";
    let both = compiled(&rule("", both), Defaults::Seed);
    assert_eq!(forward(&both).cors.as_ref().unwrap().origins(), [exact("b")]);
    assert_eq!(
        told(&both),
        [("no-effect", "spec.http[0].corsPolicy.allowOrigin")]
    );
}

#[test]
fn a_policy_of_a_redirect_is_told_to_be_without_effect() {
    let text = rule("", "corsPolicy: {allowOrigins: [{exact: b}]}").replace(
        "route: [{destination: {host: a.example}}]",
        "redirect: {uri: /new}",
    );
    let compiled = compiled(&text, Defaults::Seed);
    assert!(!compiled.has_errors(), "{:?}", compiled.diagnostics);
    assert_eq!(told(&compiled), [("no-effect", "spec.http[0].corsPolicy")]);
}

#[test]
fn delegates_take_faults_and_policies_of_their_roots_unless_they_are_hidden() {
    let root = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, annotations: {isthmus.dev/abort: reset}}
spec:
  hosts: [\"*\"]
  gateways: [g]
  http:
  - match: [{uri: {prefix: /a}, statPrefix: root}]
    fault: {abort: {percent: 100, httpStatus: 400}}
    corsPolicy: {allowOrigins: [{exact: 'http://root'}]}
    delegate: {name: d, namespace: other}
---
";
    let delegate = |export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: d, namespace: other}}
spec:
  exportTo: [{export}]
  http:
  - {{match: [{{uri: {{prefix: /a/own}}}}], fault: {{abort: {{percent: 100, httpStatus: 404}}}}, route: [{{destination: {{host: a.example}}}}]}}
  - {{route: [{{destination: {{host: a.example}}}}]}}
"
        )
    };
    for export in ["\"*\"", "default"] {
        let compiled = compiled(&format!("{root}{}", delegate(export)), Defaults::Seed);
        assert_eq!(told(&compiled), []);
        let found: Vec<_> = routes(&compiled)
            .iter()
            .map(|route| match &*route.action {
                Action::Forward(forward) => (
                    &*route.stat_prefix,
                    forward.fault.unwrap().abort.unwrap().with,
                    forward.cors.is_some(),
                ),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            found,
            [
                ("root", AbortWith::Status(StatusCode::NOT_FOUND), true),
                ("root", AbortWith::Reset, true),
            ]
        );
    }
    let hidden = compiled(&format!("{root}{}", delegate("elsewhere")), Defaults::Seed);
    assert_eq!(
        told(&hidden),
        [("unknown-delegate", "spec.http[0].delegate.name")]
    );
    assert!(hidden.snapshot.listeners[0].tables[0].virtual_hosts().is_empty());
}
