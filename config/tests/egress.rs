//! The four resources of a way out: of a set that lacks one, that one is told, with what makes the set whole.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::diagnostic::{Diagnostic, Severity};
use isthmus_config::{Options, Source, compile};
use std::fs;
use std::path::Path;

/// What is told of these documents, hints left out.
fn told(documents: &[&str]) -> Vec<Diagnostic> {
    let source = Source {
        name: "egress.yaml".to_owned(),
        text: documents.join("\n---\n").into(),
    };
    let all = compile(&[source], &Options::default()).diagnostics;
    all.into_iter()
        .filter(|found| found.severity != Severity::Hint)
        .collect()
}

/// The documents of an example, with their kinds.
fn example(name: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/examples/egress");
    let text = fs::read_to_string(folder.join(name)).unwrap();
    let kind = |document: &str| {
        let line = document.lines().find_map(|line| line.strip_prefix("kind: "));
        line.map(str::to_owned)
    };
    let documents = text.split("\n---\n");
    documents
        .filter_map(|document| Some((kind(document)?, document.to_owned())))
        .collect()
}

/// Each example without each of its pieces: one thing is told, and its document mends it.
#[test]
fn the_missing_piece_of_a_way_out_is_told_with_a_document_that_mends_it() {
    for (name, pieces) in [
        (
            "https-for-http.yaml",
            &[
                ("Gateway", "IST0101"),
                ("ServiceEntry", "IST0101"),
                ("DestinationRule", "egress-incomplete"),
                ("VirtualService", "egress-incomplete"),
            ][..],
        ),
        (
            "tls-passthrough.yaml",
            &[
                ("Gateway", "IST0101"),
                ("ServiceEntry", "IST0101"),
                ("VirtualService", "egress-incomplete"),
            ],
        ),
        (
            "wildcard.yaml",
            &[
                ("Gateway", "IST0101"),
                ("ServiceEntry", "IST0101"),
                ("VirtualService", "egress-incomplete"),
            ],
        ),
    ] {
        let set = example(name);
        let all: Vec<&str> = set.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(told(&all), [], "{name} is whole");
        for (kind, code) in pieces {
            let rest = set.iter().filter(|(known, _)| known != kind);
            let mut rest: Vec<&str> = rest.map(|(_, text)| text.as_str()).collect();
            assert_eq!(rest.len(), set.len() - 1, "{name} has one {kind}");
            let found = told(&rest);
            let first = found.iter().find(|finding| finding.code == *code);
            let first = first.unwrap_or_else(|| panic!("{name} without its {kind}: {found:?}"));
            let help = first.help.clone().unwrap_or_default();
            assert!(
                help.contains(&format!("kind: {kind}\n")),
                "{name} without its {kind}: {found:?}"
            );
            rest.push(&help);
            let left = told(&rest);
            let is_about_it = |finding: &&Diagnostic| finding.message == first.message;
            assert!(
                !left.iter().any(|finding| is_about_it(&finding)),
                "{name} with\n{help}\n{left:?}"
            );
            assert!(
                left.iter().all(|finding| finding.severity != Severity::Error),
                "{name} with\n{help}\n{left:?}"
            );
        }
    }
}

#[test]
fn a_gateway_that_does_not_serve_the_host_is_told_what_to_serve() {
    let set = example("https-for-http.yaml");
    let texts: Vec<String> = set
        .iter()
        .map(|(kind, text)| match kind.as_str() {
            "Gateway" => text.replace("hosts: [api.partner.example]", "hosts: [other.example]"),
            _ => text.clone(),
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = told(&texts);
    let [finding] = &found[..] else {
        panic!("{found:?}");
    };
    let help = finding.help.clone().unwrap_or_default();
    assert!(help.contains("hosts: ['api.partner.example']"), "{finding:?}");
}

#[test]
fn a_rule_that_secures_nothing_is_told_what_it_lacks() {
    let set = example("https-for-http.yaml");
    let bare = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: partner, namespace: egress}
spec:
  host: api.partner.example
";
    let texts = set.iter().map(|(kind, text)| match kind.as_str() {
        "DestinationRule" => bare,
        _ => text.as_str(),
    });
    let found = told(&texts.collect::<Vec<_>>());
    let [finding] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(finding.code, "egress-incomplete");
    let help = finding.help.clone().unwrap_or_default();
    let (_, policy) = help.split_once("spec:\n").unwrap();
    let texts = set.iter().map(|(kind, text)| match kind.as_str() {
        "DestinationRule" => format!("{bare}{policy}"),
        _ => text.clone(),
    });
    let texts: Vec<String> = texts.collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(told(&texts), []);
}

/// What a gateway serves without VirtualServices lacks none.
#[test]
fn doors_of_the_mesh_and_forward_proxies_need_no_virtual_service() {
    let set = example("forward-proxy.yaml");
    let texts = set
        .iter()
        .map(|(_, text)| text.replace("hosts: [\"*\"]", "hosts: [api.partner.example]"));
    let texts: Vec<String> = texts.collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(told(&texts), []);
}

/// An external host that is registered and nothing more gets a way out to begin with, which is whole.
#[test]
fn a_host_that_nothing_leads_to_is_told_with_a_way_out() {
    let service = |port: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: api, namespace: default}}
spec:
  hosts: [api.partner.example]
  resolution: DNS
  ports: [{port}]
"
        )
    };
    let secured = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: default}
spec: {host: api.partner.example, trafficPolicy: {tls: {mode: SIMPLE, sni: api.partner.example}}}
";
    let https = service("{number: 443, name: https, protocol: HTTPS}");
    let tcp = service("{number: 5432, name: tcp, protocol: TCP}");
    let all = |documents: &[&str]| {
        let source = Source {
            name: "egress.yaml".to_owned(),
            text: documents.join("\n---\n").into(),
        };
        let found = compile(&[source], &Options::default()).diagnostics;
        let about = found
            .into_iter()
            .filter(|found| found.code.starts_with("egress-"));
        about.collect::<Vec<Diagnostic>>()
    };
    for (documents, way) in [
        (&[https.as_str()][..], "mode: PASSTHROUGH"),
        (&[https.as_str(), secured], "  http:"),
        (&[tcp.as_str()], "  tcp:"),
    ] {
        let found = all(documents);
        let [hint] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((hint.code, hint.severity), ("egress-unused", Severity::Hint));
        let help = hint.help.clone().unwrap_or_default();
        assert!(help.contains(way), "{help}");
        let whole = [documents, &[help.as_str()]].concat();
        assert_eq!(all(&whole), [], "{help}");
        assert_eq!(told(&whole), [], "{help}");
    }
    // What is inside, what a rule names, and what a door of the mesh serves needs none.
    // Of several hosts so many are named as can be read.
    let several = |hosts: usize| {
        let hosts: Vec<String> = (0..hosts).map(|at| format!("h{at}.example.com")).collect();
        let start = https.find("hosts:").unwrap();
        let end = start + https[start..].find('\n').unwrap();
        let text = format!(
            "{}hosts: [{}]{}",
            &https[..start],
            hosts.join(", "),
            &https[end..]
        );
        let found = all(&[&text]);
        found
            .iter()
            .map(|found| found.message.clone())
            .collect::<Vec<_>>()
    };
    let told_of = |names: &str| {
        vec![format!(
            "{names} are registered, and nothing here leads to them: no Gateway takes requests for them"
        )]
    };
    assert_eq!(several(2), told_of("`h0.example.com` and `h1.example.com`"));
    let five: Vec<String> = (0..5).map(|at| format!("`h{at}.example.com`")).collect();
    assert_eq!(several(8), told_of(&format!("{} and 3 more", five.join(", "))));
    let inside = https.replace("resolution:", "location: MESH_INTERNAL\n  resolution:");
    assert_eq!(all(&[&inside]), []);
}

/// Nobody speaks plaintext at 443 out there, whatever a port is called.
#[test]
fn plaintext_to_443_of_an_external_host_is_told() {
    let set = example("https-for-http.yaml");
    let texts = set.iter().filter(|(kind, _)| kind != "DestinationRule");
    let texts = texts.map(|(_, text)| text.replace("protocol: HTTPS", "protocol: HTTP"));
    let texts: Vec<String> = texts.collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = told(&texts);
    let [finding] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(finding.code, "egress-incomplete");
    assert!(
        finding.message.contains("plaintext requests where TLS is spoken"),
        "{finding:?}"
    );
    assert!(
        finding
            .help
            .as_deref()
            .unwrap_or_default()
            .contains("mode: SIMPLE")
    );
}
