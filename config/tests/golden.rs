//! Golden tests: what files of `tests/cases` compile to, and what is said about them, as text.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::diagnostic::{render, to_json};
use isthmus_config::diff::{self, Difference, Side};
use isthmus_config::{Compiled, Defaults, Options, Source, compile};
use isthmus_core::cluster::hash::Hashing;
use isthmus_core::cluster::locality::{Locality, Spread};
use isthmus_core::limits::PathNormalization;
use isthmus_core::listener::{Accepts, Upgrades};
use isthmus_core::name::ClusterKey;
use isthmus_core::protocol::{UpstreamHttp, UpstreamVersion};
use isthmus_core::route::{Action, HeaderMatch, RouteMatch};
use isthmus_core::snapshot::Snapshot;
use std::fmt::Write as _;

fn source(name: &str) -> Source {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cases")
        .join(name);
    Source {
        name: name.to_owned(),
        text: std::fs::read_to_string(path).unwrap().into(),
    }
}

/// A gateway in a namespace of its own, so that `exportTo` counts.
fn in_istio_system() -> Options {
    Options {
        namespace: "istio-system".to_owned(),
        ..Options::default()
    }
}

fn compiled(name: &str, options: &Options) -> (Compiled, Vec<Source>) {
    let sources = vec![source(name)];
    (compile(&sources, options), sources)
}

/// The diagnostics as text, one block each.
fn told(name: &str, options: &Options) -> String {
    let (compiled, sources) = compiled(name, options);
    render(&compiled.diagnostics, &sources, false)
}

fn matches(out: &mut String, matches: &RouteMatch) {
    let RouteMatch {
        path,
        method,
        scheme,
        authority,
        headers,
        query,
        source,
    } = matches;
    let _ = write!(
        out,
        "path {:?}{}",
        path.text,
        if path.ignore_case { " ignoring case" } else { "" }
    );
    for (name, text) in [("method", method), ("scheme", scheme), ("authority", authority)] {
        if let Some(text) = text {
            let _ = write!(out, ", {name} {text:?}");
        }
    }
    for HeaderMatch {
        subject,
        text,
        inverted,
    } in headers
    {
        let _ = write!(
            out,
            ", {}{subject:?} {text:?}",
            if *inverted { "not " } else { "" }
        );
    }
    for query in query {
        let _ = write!(out, ", query {} {:?}", query.name, query.text);
    }
    if let Some(source) = source {
        let _ = write!(out, ", {source}");
    }
}

/// A snapshot as text, in a stable order.
fn shown(compiled: &Compiled, sources: &[Source]) -> String {
    let snapshot: &Snapshot = &compiled.snapshot;
    let mut out = format!("version {}\n", snapshot.version);
    for listener in &snapshot.listeners {
        let _ = writeln!(out, "listener {} {:?}", listener.key.port, listener.key.bind);
        if listener.upgrades != Upgrades::default() {
            let _ = writeln!(out, "  upgrades {:?}", listener.upgrades);
        }
        match &listener.accepts {
            Accepts::Http => {}
            Accepts::Tcp(route) => {
                let _ = writeln!(out, "  bytes to {route:?}");
            }
            Accepts::Tls(names) => {
                for chain in names.chains() {
                    let _ = writeln!(out, "  {}: {:?}", chain.server, chain.action);
                }
            }
        }
        let tables = listener.tables.iter().enumerate();
        let hosts = tables.flat_map(|(table, routes)| {
            let hosts = routes.virtual_hosts().iter().enumerate();
            hosts.map(move |(at, host)| (table, at, host))
        });
        for (table, host_at, host) in hosts {
            let domains: Vec<String> = host.domains.iter().map(ToString::to_string).collect();
            let redirect = if host.https_redirect {
                " https redirect"
            } else {
                ""
            };
            let _ = writeln!(out, "  host {} [{}]{redirect}", host.name, domains.join(", "));
            for (at, route) in host.routes().iter().enumerate() {
                let _ = write!(out, "    {} {:?}: ", route.virtual_service, route.name);
                matches(&mut out, &route.matches);
                let places = compiled
                    .origins
                    .of_route(sources, (&listener.key, table), host_at, at);
                for place in places {
                    let _ = write!(out, " @{}:{}", place.line, place.column);
                }
                out.push('\n');
                match &*route.action {
                    Action::Forward(forward) => {
                        let _ = writeln!(
                            out,
                            "      timeout {:?}, path {:?}",
                            forward.timeout, forward.path
                        );
                        for to in &forward.destinations {
                            let _ = writeln!(out, "      {} to {}", to.weight, to.cluster);
                            for step in &to.request_headers {
                                let _ = writeln!(out, "        request {step:?}");
                            }
                            for step in &to.response_headers {
                                let _ = writeln!(out, "        response {step:?}");
                            }
                            if let Some(authority) = &to.authority {
                                let _ = writeln!(out, "        authority {authority}");
                            }
                        }
                    }
                    other => {
                        let _ = writeln!(out, "      {other:?}");
                    }
                }
                for step in &route.response_headers {
                    let _ = writeln!(out, "      response {step:?}");
                }
            }
        }
    }
    let mut clusters: Vec<_> = snapshot.clusters.values().collect();
    clusters.sort_by_key(|cluster| cluster.key.as_str().to_owned());
    for cluster in clusters {
        let _ = writeln!(
            out,
            "cluster {} {:?} connect {:?} idle {:?} requests {} in {}",
            cluster.key,
            cluster.balancer.kind,
            cluster.connect_timeout,
            cluster.idle_timeout,
            cluster.max_requests_per_connection,
            cluster.namespace
        );
        if cluster.http != UpstreamHttp::default() {
            let UpstreamHttp {
                version,
                max_concurrent_streams,
                keepalive,
            } = cluster.http;
            let _ = writeln!(
                out,
                "  spoken to in {version:?}, streams {max_concurrent_streams:?}, {keepalive:?}"
            );
        }
        let balancer = &cluster.balancer;
        if let Some(Hashing { key, table }) = &balancer.hashing {
            let _ = writeln!(out, "  {key:?} by {table:?}");
        }
        if let Some(warmup) = &balancer.warmup {
            let _ = writeln!(out, "  {warmup:?}");
        }
        if balancer.spread != Spread::Even {
            let _ = writeln!(out, "  {:?}", balancer.spread);
        }
        if balancer.panic_percent > 0 {
            let _ = writeln!(out, "  panic below {} %", balancer.panic_percent);
        }
        for endpoint in &cluster.endpoints.endpoints {
            let level = match endpoint.level {
                0 => String::new(),
                level => format!(" level {level}"),
            };
            let _ = writeln!(
                out,
                "  {} weight {} {}{level}",
                endpoint.address, endpoint.weight, endpoint.locality
            );
        }
    }
    out
}

#[test]
fn bookinfo_compiles_to_this_snapshot() {
    let (compiled, sources) = compiled("bookinfo.yaml", &in_istio_system());
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    assert_eq!(compiled.passed_over.get("apps/v1 Deployment"), Some(&1));
    assert_eq!(compiled.resources, 8);
    insta::assert_snapshot!(shown(&compiled, &sources));
}

#[test]
fn clusters_choose_as_their_rules_say() {
    let here = Options {
        locality: Locality::parse("r1/z1/s1"),
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        ..Options::default()
    };
    let (compiled, sources) = compiled("balancing.yaml", &here);
    insta::assert_snapshot!(shown(&compiled, &sources));
    insta::assert_snapshot!("balancing_told", told("balancing.yaml", &here));
}

#[test]
fn rules_compile_to_these_routes() {
    let (compiled, sources) = compiled("routes.yaml", &in_istio_system());
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    insta::assert_snapshot!(shown(&compiled, &sources));
    insta::assert_snapshot!("routes_told", told("routes.yaml", &in_istio_system()));
}

#[test]
fn rules_that_take_no_request_are_told() {
    insta::assert_snapshot!("reach_told", told("reach.yaml", &Options::default()));
}

fn differences(old: &[Source], new: &[Source]) -> Difference {
    let options = Options::default();
    let (before, after) = (compile(old, &options), compile(new, &options));
    for (compiled, sources) in [(&before, old), (&after, new)] {
        assert!(
            !compiled.has_errors(),
            "{}",
            render(&compiled.diagnostics, sources, false)
        );
    }
    let side = |compiled, sources| Side { compiled, sources };
    diff::diff(
        side(&before, old),
        side(&after, new),
        PathNormalization::default(),
    )
}

#[test]
fn two_sets_differ_in_what_they_do() {
    let (old, new) = ([source("diff/old.yaml")], [source("diff/new.yaml")]);
    let found = differences(&old, &new);
    insta::assert_snapshot!("diff", diff::render(&found));
    insta::assert_json_snapshot!("diff_json", diff::to_json(&found));
    // The other way round, what was new is lost.
    insta::assert_snapshot!("diff_back", diff::render(&differences(&new, &old)));
}

#[test]
fn the_same_in_other_words_is_no_difference() {
    let old = source("diff/old.yaml");
    let same = |text: String| {
        let new = Source {
            name: "new.yaml".to_owned(),
            text: text.into(),
        };
        let found = differences(std::slice::from_ref(&old), &[new]);
        assert!(found.is_none(), "{}", diff::render(&found));
    };
    same(old.text.to_string());
    // Other names, other order of documents, of endpoints, and of rules that no request tells apart.
    same(
        old.text
            .replace("{name: shop, ", "{name: renamed, ")
            .replace("name: slow\n", "name: quick\n"),
    );
    let mut documents: Vec<&str> = old.text.split("---\n").collect();
    documents.reverse();
    same(documents.join("---\n"));
    let (first, second) = ("  - {address: 10.0.1.1}\n", "  - {address: 10.0.1.2}\n");
    same(
        old.text
            .replace(&format!("{first}{second}"), &format!("{second}{first}")),
    );
    let rule = |name: &str, path: &str, status| {
        format!(
            "  - name: {name}\n    match: [{{uri: {{exact: {path}}}}}]\n    directResponse: {{status: {status}}}\n"
        )
    };
    let (a, b) = (rule("exact", "/a", 201), rule("other", "/b", 202));
    let swapped = old.text.replace(&format!("{a}{b}"), &format!("{b}{a}"));
    assert_ne!(swapped, *old.text);
    same(swapped);
    // A rule that nobody reaches.
    let never = rule("never", "/reviews/x", 299);
    same(old.text.replace(&a, &format!("{never}{a}")));
    // One prefix in the words of two.
    let slow = "  - name: slow\n    match: [{uri: {prefix: /slow}}]";
    let two = "  - name: slow\n    match: [{uri: {regex: \"/slow[^x].*\"}}, {uri: {regex: \"/slow(x.*)?\"}}]";
    let split = old.text.replace(slow, two);
    assert_ne!(split, *old.text);
    same(split);
}

#[test]
fn delegates_are_joined_with_their_roots() {
    let options = Options {
        hostname: "edge-1".to_owned(),
        ..in_istio_system()
    };
    let (compiled, sources) = compiled("delegates.yaml", &options);
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    insta::assert_snapshot!(shown(&compiled, &sources));
    insta::assert_snapshot!("delegates_told", told("delegates.yaml", &options));
}

#[test]
fn what_did_not_change_is_shared_with_the_version_before() {
    let (before, mut sources) = compiled("bookinfo.yaml", &in_istio_system());
    let old = "prefix: /static";
    assert!(sources[0].text.contains(old));
    sources[0].text = sources[0].text.replace(old, "prefix: /assets").into();
    let mut after = compile(&sources, &in_istio_system()).snapshot;
    after.share_with(&before.snapshot);
    let (mut same, mut other) = (0, 0);
    for (key, spec) in &after.clusters {
        assert!(
            std::sync::Arc::ptr_eq(spec, &before.snapshot.clusters[key]),
            "{key}"
        );
    }
    for (new, old) in after.listeners.iter().zip(&before.snapshot.listeners) {
        for (new, old) in new.tables[0]
            .virtual_hosts()
            .iter()
            .zip(old.tables[0].virtual_hosts())
        {
            if std::sync::Arc::ptr_eq(new, old) {
                same += 1;
            } else {
                other += 1;
            }
        }
    }
    assert_eq!((same > 0, other), (true, 1));
}

#[test]
fn policies_are_inherited_block_by_block() {
    let (compiled, sources) = compiled("policies.yaml", &in_istio_system());
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    assert_eq!(compiled.passed_over.get("v1 ConfigMap"), Some(&1));
    insta::assert_snapshot!(shown(&compiled, &sources));
}

#[test]
fn clusters_are_spoken_to_as_ports_and_policies_say() {
    let (compiled, sources) = compiled("http2.yaml", &in_istio_system());
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    insta::assert_snapshot!(shown(&compiled, &sources));
    insta::assert_snapshot!("http2_told", told("http2_mistakes.yaml", &in_istio_system()));
}

#[test]
fn the_first_gateway_of_a_port_says_which_upgrades_pass() {
    let (compiled, sources) = compiled("upgrades.yaml", &in_istio_system());
    insta::assert_snapshot!(shown(&compiled, &sources));
    insta::assert_snapshot!("upgrades_told", told("upgrades.yaml", &in_istio_system()));
}

#[test]
fn the_mesh_upgrades_ports_that_say_they_speak_http() {
    let mut options = in_istio_system();
    options.mesh.h2_upgrade = true;
    let (compiled, _) = compiled("http2.yaml", &options);
    let version = |port, subset| {
        let key = ClusterKey::outbound(port, subset, "ports.test");
        compiled.snapshot.clusters[&key].http.version
    };
    assert_eq!(version(80, ""), UpstreamVersion::Http2, "HTTP");
    assert_eq!(version(83, ""), UpstreamVersion::Http2, "GRPC-WEB");
    assert_eq!(version(84, ""), UpstreamVersion::Http1, "HTTPS");
    assert_eq!(
        version(85, ""),
        UpstreamVersion::Http1,
        "a protocol that is not known"
    );
    assert_eq!(version(80, "not"), UpstreamVersion::Http1);
    assert_eq!(version(80, "same"), UpstreamVersion::SameAsClient);
}

#[test]
fn gateways_that_do_not_select_this_process_are_left_out() {
    let labels = [("istio".to_owned(), "other".to_owned())].into();
    let (compiled, _) = compiled(
        "bookinfo.yaml",
        &Options {
            labels,
            ..in_istio_system()
        },
    );
    assert!(compiled.snapshot.listeners.is_empty());
    assert_eq!(
        compiled
            .diagnostics
            .iter()
            .filter(|found| found.code == "not-selected")
            .count(),
        2
    );
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    insta::assert_snapshot!(told("mistakes.yaml", &in_istio_system()));
}

#[test]
fn names_that_lead_nowhere_are_told() {
    insta::assert_snapshot!(told("absent.yaml", &in_istio_system()));
}

/// A gateway that is in no namespace, as most checks are made.
fn found(name: &str) -> String {
    told(&format!("analyze/{name}.yaml"), &Options::default())
}

#[test]
fn servers_in_each_others_way_are_told() {
    insta::assert_snapshot!(found("gateways"));
}

#[test]
fn references_that_lead_nowhere_are_told_with_the_nearest_name() {
    insta::assert_snapshot!(found("references"));
}

#[test]
fn virtual_services_of_one_host_are_told_in_their_order() {
    insta::assert_snapshot!(found("overlaps"));
}

#[test]
fn policies_that_nothing_reaches_are_told() {
    insta::assert_snapshot!(found("policies"));
}

#[test]
fn what_a_document_that_cannot_be_read_may_have_is_not_called_absent() {
    insta::assert_snapshot!(told("unreadable.yaml", &in_istio_system()));
}

#[test]
fn mistakes_in_metadata_are_told() {
    insta::assert_snapshot!(told("metadata.yaml", &in_istio_system()));
}

#[test]
fn lenient_repairs_wildcards_and_passes_unknown_fields() {
    let options = Options {
        lenient: true,
        ..in_istio_system()
    };
    let (compiled, _) = compiled("mistakes.yaml", &options);
    let found = |code: &str| {
        compiled
            .diagnostics
            .iter()
            .find(|found| found.code == code)
            .unwrap()
            .severity
    };
    assert_eq!(
        found("unknown-field"),
        isthmus_config::diagnostic::Severity::Warning
    );
    assert_eq!(
        found("unquoted-wildcard"),
        isthmus_config::diagnostic::Severity::Warning
    );
    let json = to_json(&compiled.diagnostics);
    assert_eq!(json[0]["line"], 7);
    assert_eq!(json[0]["file"], "mistakes.yaml");
}

#[test]
fn todays_defaults_have_no_timeout_and_least_request() {
    let options = Options {
        defaults: Defaults::Current,
        ..in_istio_system()
    };
    let (compiled, sources) = compiled("bookinfo.yaml", &options);
    let text = shown(&compiled, &sources);
    assert!(
        text.contains("timeout None") && text.contains("timeout Some(1.5s)"),
        "{text}"
    );
    assert!(
        text.contains("cluster outbound|9080||productpage.default.svc.cluster.local LeastRequest"),
        "{text}"
    );
}
