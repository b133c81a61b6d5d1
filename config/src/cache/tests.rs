//! What is remembered makes no difference: random edits, each compiled with a memory and without one.

use super::Cache;
use crate::keep::{self, LastGood, Outcome};
use crate::{Compiled, Options, Source};
use isthmus_core::random::Random;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

/// Seeds of one run; `ISTHMUS_SEEDS` asks for more.
const SEEDS: u64 = 40;
/// Edits of one seed.
const STEPS: usize = 25;

fn one<'a>(random: &mut Random, list: &[&'a str]) -> &'a str {
    list[random.below(list.len() as u64) as usize]
}

fn maybe(random: &mut Random, text: &str) -> String {
    match random.below(2) {
        0 => String::new(),
        _ => text.to_owned(),
    }
}

const HOSTS: [&str; 6] = ["a.test", "b.test", "\"*.test\"", "c.a.test", "short", "\"*\""];
const SERVICES: [&str; 6] = [
    "one.test",
    "two.test",
    "k8s",
    "x.wild.test",
    "\"*.wild.test\"",
    "three.test",
];

fn export(random: &mut Random) -> &'static str {
    one(
        random,
        &[
            "",
            "",
            "  exportTo: [\".\"]\n",
            "  exportTo: [other]\n",
            "  exportTo: [\"*\"]\n",
        ],
    )
}

fn head(kind: &str, name: u64, random: &mut Random) -> String {
    let namespace = one(random, &["", "", ", namespace: other", ", namespace: default"]);
    let more = one(
        random,
        &[
            "",
            "",
            ", labels: {v: v1}",
            ", creationTimestamp: \"2020-01-01T00:00:00Z\"",
        ],
    );
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: n{name}{namespace}{more}}}\nspec:\n"
    )
}

fn gateway(name: u64, random: &mut Random) -> String {
    let mut text = head("Gateway", name, random);
    if random.below(3) == 0 {
        text = text.replace(
            "metadata: {",
            "metadata: {annotations: {isthmus.dev/mesh: \"true\"}, ",
        );
    }
    text += "  servers:\n";
    for _ in 0..=random.below(2) {
        let host = one(
            random,
            &["\"*\"", "a.test", "default/*", "\"*.test\"", "\"./b.test\""],
        );
        let server = one(
            random,
            &[
                "{number: 80, name: http, protocol: HTTP}",
                "{number: 80, name: http, protocol: HTTP}",
                "{number: 81, name: http, protocol: HTTP}",
                "{number: 82, name: tcp, protocol: TCP}",
                "{number: 443, name: tls, protocol: TLS}",
            ],
        );
        let tls = match (server.contains("443"), random.below(4)) {
            (true, _) => "    tls: {mode: PASSTHROUGH}\n",
            (false, 0) if server.contains("HTTP}") => "    tls: {httpsRedirect: true}\n",
            _ => "",
        };
        text += &format!("  - port: {server}\n    hosts: [{host}]\n{tls}");
    }
    text
}

fn destination(random: &mut Random) -> String {
    let host = one(random, &SERVICES).replace("\"*.wild.test\"", "y.wild.test");
    let port = maybe(random, ", port: {number: 80}");
    let subset = one(random, &["", "", ", subset: v1", ", subset: v2"]);
    format!(
        "{{destination: {{host: {host}{port}{subset}}}, weight: {}}}",
        random.below(3) * 10
    )
}

fn rule(random: &mut Random, is_delegate: bool) -> String {
    let matched = one(
        random,
        &[
            "",
            "    match: [{uri: {prefix: /a}}]\n",
            "    match: [{uri: {exact: /b}, name: x}, {headers: {k: {regex: \"a+\"}}}]\n",
            "    match: [{sourceLabels: {v: v1}, uri: {prefix: /c/}}]\n",
            "    match: [{gateways: [n1], uri: {prefix: /d}}, {port: 81}]\n",
            "    match: [{sourceNamespace: other}]\n",
        ],
    );
    let action = match random.below(8) {
        0 => "    redirect: {uri: /z}\n".to_owned(),
        1 => "    directResponse: {status: 404}\n".to_owned(),
        2 | 3 if !is_delegate => format!("    delegate: {{name: n{}}}\n", 6 + random.below(2)),
        4 => format!("    route: [{}, {}]\n", destination(random), destination(random)),
        _ => format!("    route: [{}]\n", destination(random)),
    };
    let with = if action.contains("route:") {
        one(
            random,
            &[
                "",
                "    rewrite: {uri: /r}\n",
                "    timeout: 3s\n",
                "    fault: {abort: {httpStatus: 500}}\n",
                "    mirror: {host: two.test}\n",
                "    headers: {request: {set: {k: v}}}\n",
                "    retries: {attempts: 9}\n",
            ],
        )
    } else {
        ""
    };
    format!("  - name: r{}\n{matched}{action}{with}", random.below(3))
}

fn virtual_service(name: u64, random: &mut Random) -> String {
    let is_delegate = name >= 6;
    let mut text = head("VirtualService", name, random);
    text += export(random);
    if !is_delegate {
        let hosts = [one(random, &HOSTS), one(random, &HOSTS)];
        // Two that cover each other are an error.
        let hosts = &hosts[..1 + usize::from(random.below(8) == 0)];
        let gateways = one(
            random,
            &["[n0]", "[n1]", "[n0, n1]", "[mesh, n2]", "[other/n0]", "[n9]"],
        );
        text += &format!("  hosts: [{}]\n  gateways: {gateways}\n", hosts.join(", "));
    }
    if !is_delegate && random.below(5) == 0 {
        let stream = one(
            random,
            &[
                "  tcp:\n  - route: [{destination: {host: one.test}}]\n",
                "  tls:\n  - match: [{sniHosts: [a.test]}]\n    route: [{destination: {host: two.test}}]\n",
            ],
        );
        text += stream;
    }
    text += "  http:\n";
    for _ in 0..=random.below(3) {
        text += &rule(random, is_delegate);
    }
    text
}

fn destination_rule(name: u64, random: &mut Random) -> String {
    let mut text = head("DestinationRule", name, random);
    text += &format!("  host: {}\n", one(random, &SERVICES));
    text += export(random);
    text += one(
        random,
        &[
            "",
            "  trafficPolicy: {connectionPool: {http: {maxRetries: 3}}}\n",
            "  trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {consecutive5xxErrors: 3}}\n",
        ],
    );
    text += one(
        random,
        &[
            "",
            "  subsets: [{name: v1, labels: {v: v1}}]\n",
            "  subsets: [{name: v2, labels: {v: v2}}]\n",
        ],
    );
    text
}

fn service_entry(name: u64, random: &mut Random) -> String {
    let mut text = head("ServiceEntry", name, random);
    let host = one(random, &["one.test", "two.test", "three.test", "\"*.wild.test\""]);
    text += &format!("  hosts: [{host}]\n");
    text += export(random);
    text += one(
        random,
        &[
            "  ports: [{number: 80, name: http, protocol: HTTP}]\n",
            "  ports: [{number: 90, name: http, protocol: HTTP}]\n",
            "  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: h, protocol: HTTP2}]\n",
        ],
    );
    text += match (host.contains('*'), random.below(3)) {
        (true, _) => "  resolution: NONE\n",
        (_, 0) => "  resolution: STATIC\n  workloadSelector: {labels: {v: v1}}\n",
        (_, 1) => "  resolution: DNS\n",
        _ => {
            "  resolution: STATIC\n  endpoints: [{address: 10.0.0.1, labels: {v: v1}}, {address: 10.0.0.2, labels: {v: v2}, serviceAccount: sa}]\n"
        }
    };
    text
}

fn other(name: u64, random: &mut Random) -> String {
    match random.below(9) {
        0 | 1 => {
            let address = random.below(4);
            let label = one(random, &["v1", "v2"]);
            let text = head("WorkloadEntry", name, random);
            format!("{text}  address: 10.1.0.{address}\n  labels: {{v: {label}}}\n")
        }
        2 => "apiVersion: v1\nkind: Service\nmetadata: {name: k8s}\nspec:\n  ports: [{port: 80, name: http}]\n".to_owned(),
        3 => format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: k8s}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.2.0.{}]}}]\n",
            random.below(5)
        ),
        4 => format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s{name}}}\ndata: {{k: YQ==}}\n"),
        5 => "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {metadata: {labels: {v: v1}}}}\n".to_owned(),
        6 => {
            let text = head("WorkloadGroup", name, random);
            format!("{text}  metadata: {{labels: {{v: v1}}}}\n  template: {{}}\n  probe: {{tcpSocket: {{port: {}}}}}\n", 80 + name)
        }
        7 => {
            let inner = virtual_service(name % 6, random).replace('\n', "\n    ");
            format!("apiVersion: v1\nkind: List\nitems:\n  - {}\n", inner.trim_start())
        }
        _ => format!(
            "apiVersion: isthmus.dev/v1alpha1\nkind: HealthCheckPolicy\nmetadata: {{name: h{name}}}\nspec: {{host: one.test, probe: {{tcpSocket: {{}}, periodSeconds: {}}}}}\n",
            1 + random.below(3)
        ),
    }
}

fn broken(random: &mut Random) -> String {
    let text = virtual_service(random.below(6), random);
    match random.below(4) {
        0 => "a: [\n".to_owned(),
        1 => text.replace("hosts:", "hostz:"),
        2 => text.replace("timeout: 3s", "timeout: soon"),
        _ => text.replace("  http:\n", "  http:\n  - route: []\n"),
    }
}

fn document(random: &mut Random) -> String {
    let name = random.below(8);
    match random.below(12) {
        0 | 1 => gateway(name % 3, random),
        2..=5 => virtual_service(name, random),
        6 => destination_rule(name % 4, random),
        7 | 8 => service_entry(name % 5, random),
        9 | 10 => other(name, random),
        _ if random.below(4) == 0 => broken(random),
        _ => virtual_service(name, random),
    }
}

/// Three files of documents.
type Files = Vec<(String, Vec<String>)>;

fn edit(files: &mut Files, random: &mut Random) {
    for _ in 0..=random.below(2) {
        let file = random.below(files.len() as u64) as usize;
        let (name, documents) = &mut files[file];
        let at = random.below(documents.len() as u64 + 1) as usize;
        match random.below(10) {
            0 if at < documents.len() => {
                documents.remove(at);
            }
            1 if at < documents.len() => {
                let moved = documents.remove(at);
                documents.push(moved);
            }
            2 if at < documents.len() => documents[at].insert_str(0, "# a remark\n"),
            3 if at < documents.len() => {
                let copy = documents[at].clone();
                documents.push(copy);
            }
            4 => name.push('x'),
            5 | 6 => documents.insert(at, document(random)),
            _ if at < documents.len() => documents[at] = document(random),
            _ => documents.push(document(random)),
        }
    }
    if random.below(4) > 0 {
        // One of a name is enough, mostly.
        let mut seen = HashSet::new();
        for (_, documents) in files {
            documents.retain(|text| {
                let named = text.lines().find(|line| line.starts_with("metadata:"));
                let kind = text.lines().find(|line| line.starts_with("kind:"));
                named.is_none_or(|named| seen.insert((kind.map(str::to_owned), named.to_owned())))
            });
        }
    }
}

/// The files, where what was the same text `before` mostly is the same part, too.
fn sources(files: &Files, before: &[Source], random: &mut Random) -> Vec<Source> {
    let source = |(name, documents): &(String, Vec<String>)| {
        let text = documents.join("---\n");
        let known = before.iter().find(|source| *source.text == *text);
        let known = known.filter(|_| random.below(4) > 0);
        Source {
            name: name.clone(),
            text: known.map_or_else(|| text.into(), |source| Arc::clone(&source.text)),
        }
    };
    files.iter().map(source).collect()
}

fn sorted<K: Ord, V: Debug>(list: impl Iterator<Item = (K, V)>) -> BTreeMap<K, String> {
    list.map(|(key, value)| (key, format!("{value:?}"))).collect()
}

fn assert_same(left: &Compiled, right: &Compiled, why: &str) {
    let (one, two) = (&left.snapshot, &right.snapshot);
    assert_eq!(one.listeners.len(), two.listeners.len(), "{why}");
    for (one, two) in one.listeners.iter().zip(&two.listeners) {
        assert_eq!(one.key, two.key, "{why}");
        assert_eq!(one.accepts, two.accepts, "{why}");
        assert_eq!(one.forward, two.forward, "{why}");
        assert_eq!(
            (one.proxy_protocol, &one.upgrades),
            (two.proxy_protocol, &two.upgrades)
        );
        assert_eq!(one.tables.len(), two.tables.len(), "{why}");
        for (one, two) in one.tables.iter().zip(&two.tables) {
            assert_eq!(one.virtual_hosts(), two.virtual_hosts(), "{why}");
            for host in ["a.test", "b.test", "c.a.test", "z.test", "short", "nowhere"] {
                assert_eq!(one.find_host(host), two.find_host(host), "{why}: {host}");
            }
        }
    }
    assert_eq!(one.sources, two.sources, "{why}");
    assert_eq!(one.clusters, two.clusters, "{why}");
    let (one, two) = (&left.origins, &right.origins);
    assert_eq!(one.routes, two.routes, "{why}");
    assert_eq!(sorted(one.streams.iter()), sorted(two.streams.iter()), "{why}");
    assert_eq!(
        format!("{:?}", one.documents),
        format!("{:?}", two.documents),
        "{why}"
    );
    assert_eq!(
        format!("{:?}", one.servers),
        format!("{:?}", two.servers),
        "{why}"
    );
    assert_eq!(format!("{:?}", one.tls), format!("{:?}", two.tls), "{why}");
    let clusters = |compiled: &Compiled| {
        let clusters = compiled.origins.clusters.iter();
        sorted(clusters.map(|(key, origin)| (key.as_str().to_owned(), origin.clone())))
    };
    assert_eq!(clusters(left), clusters(right), "{why}");
    assert_eq!(one.refused_secrets, two.refused_secrets, "{why}");
    assert_eq!(left.secrets, right.secrets, "{why}");
    assert_eq!(left.diagnostics, right.diagnostics, "{why}");
    assert_eq!(left.passed_over, right.passed_over, "{why}");
    assert_eq!(left.resources, right.resources, "{why}");
    let documents = |compiled: &Compiled| {
        let documents = compiled.documents.iter();
        let parts = documents.map(|document| {
            let names: Vec<String> = document.resources.iter().map(ToString::to_string).collect();
            (
                document.source,
                document.line,
                document.span.clone(),
                names,
                document.has_errors,
            )
        });
        parts.collect::<Vec<_>>()
    };
    assert_eq!(documents(left), documents(right), "{why}");
}

fn assert_same_outcome(left: &Outcome, right: &Outcome, why: &str) {
    assert_same(&left.compiled, &right.compiled, why);
    assert_eq!(left.diagnostics, right.diagnostics, "{why}");
    assert_eq!(left.quarantined, right.quarantined, "{why}");
    assert_eq!(left.last, right.last, "{why}");
    let texts = |outcome: &Outcome| {
        let sources = outcome.sources.iter();
        sources
            .map(|source| (source.name.clone(), source.text.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(texts(left), texts(right), "{why}");
}

#[test]
fn what_is_remembered_makes_no_difference() {
    let seeds = std::env::var("ISTHMUS_SEEDS").map_or(SEEDS, |text| text.parse().unwrap());
    let (mut hosts, mut shared, mut applied) = (0, 0, 0);
    for seed in 0..seeds {
        let mut random = Random::from_seed(seed);
        let options = Options {
            namespace: one(&mut random, &["", "default", "other"]).to_owned(),
            lenient: seed % 3 == 0,
            proofs: seed % 5 == 0,
            ..Options::default()
        };
        let mut files: Files = (0..3)
            .map(|file| {
                let documents = (0..3 + random.below(5)).map(|_| document(&mut random)).collect();
                (format!("{file}.yaml"), documents)
            })
            .collect();
        let mut cache = Cache::default();
        let mut last = LastGood::default();
        let mut before: Option<Outcome> = None;
        let mut texts: Vec<Source> = Vec::new();
        for step in 0..STEPS {
            let why = format!("seed {seed}, step {step}");
            texts = sources(&files, &texts, &mut random);
            let remembered = keep::compile_known(texts.clone(), &options, &last, &mut cache);
            let anew = keep::compile(texts.clone(), &options, &last);
            assert_same_outcome(&remembered, &anew, &why);
            let all = |outcome: &Outcome| {
                let listeners = outcome.compiled.snapshot.listeners.iter();
                let tables = listeners.flat_map(|listener| listener.tables.clone());
                tables
                    .flat_map(|table| table.virtual_hosts().to_vec())
                    .collect::<Vec<_>>()
            };
            if let Some(before) = &before {
                let known = all(before);
                let now = all(&remembered);
                let is_shared = |host| known.iter().any(|known| Arc::ptr_eq(known, host));
                hosts += now.len();
                shared += now.iter().filter(|host| is_shared(host)).count();
            }
            applied += usize::from(remembered.quarantined.is_empty());
            last = remembered.last.clone();
            before = Some(remembered);
            edit(&mut files, &mut random);
        }
    }
    eprintln!("{hosts} virtual hosts, {shared} of them shared; {applied} sets without errors");
    // The memory is worth something, and what is compared is not all of one sort.
    assert!(hosts > 300 && shared > hosts / 3 && shared < hosts);
}
