//! The acceptance corpus: what Istio's own samples, documentation and tests write must load here.
//!
//! The corpus is no part of the project. Where it is missing these tests say so loudly, and fail when CI is set.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

mod common;

use common::corpus;
use isthmus_config::diagnostic::render;
use isthmus_config::{Options, compile, read_paths};
use std::path::Path;

#[test]
fn bookinfo_samples_load_together_without_an_error() {
    let Some(corpus) = corpus() else { return };
    let names = [
        "bookinfo-gateway.yaml",
        "destination-rule-all.yaml",
        "virtual-service-reviews-90-10.yaml",
    ];
    let paths = names.map(|name| corpus.join("samples-bookinfo").join(name));
    let sources = read_paths(&paths).unwrap();
    let compiled = compile(&sources, &Options::default());
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    let [listener] = &compiled.snapshot.listeners[..] else {
        panic!("one listener")
    };
    assert_eq!(listener.key.port, 8080);
    let hosts = listener.tables[0].virtual_hosts();
    assert_eq!((hosts.len(), hosts[0].routes().len()), (1, 5));
}

/// The documents of a file as the corpus counts them: the parts between `---` lines, empty ones too.
fn documents(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut expected_error = false;
    for line in text.split_inclusive('\n') {
        if line.starts_with("---") {
            parts.push(String::new());
            expected_error = false;
        } else if line.starts_with("_err:") || (expected_error && line.starts_with([' ', '\t'])) {
            // The test data of the API mark an expected error with a key of their own.
            expected_error = true;
        } else {
            expected_error = false;
            parts.last_mut().unwrap().push_str(line);
        }
    }
    parts
}

fn lines_of_json(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Every document with a verdict of Istio's: its name, its text, whether it is valid, and whether it is one that was
/// written to be loaded.
fn verdicts(corpus: &Path) -> Vec<(String, String, bool, bool)> {
    let mut all = Vec::new();
    for row in lines_of_json(&corpus.join("istio-validation-go/manifest.jsonl")) {
        let name = format!("istio-validation-go/{}", row["path"].as_str().unwrap());
        let text = std::fs::read_to_string(corpus.join(&name)).unwrap();
        all.push((name, text, row["valid"].as_bool().unwrap(), false));
    }
    for row in lines_of_json(&corpus.join("verdicts.jsonl")) {
        let file = row["file"].as_str().unwrap();
        let position = row["doc"].as_u64().unwrap();
        let text = std::fs::read_to_string(corpus.join(file)).unwrap();
        let document = documents(&text).swap_remove(position as usize);
        let valid = row["valid"].as_bool().unwrap();
        let plain = [
            "samples-bookinfo/",
            "samples-other/",
            "proto-doc-examples/",
            "testdata-config/",
            "istio-1.1.17/",
        ];
        let to_load = valid && plain.iter().any(|folder| file.starts_with(folder));
        all.push((format!("{file}#{position}"), document, valid, to_load));
    }
    all
}

fn table(text: &str) -> std::collections::BTreeMap<String, String> {
    let rows = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    rows.map(|line| {
        let (name, why) = line.split_once('\t').unwrap();
        (name.to_owned(), why.to_owned())
    })
    .collect()
}

#[test]
fn verdicts_are_those_of_istio() {
    let Some(corpus) = corpus() else { return };
    let explained = table(include_str!("verdicts.tsv"));
    let all = verdicts(&corpus);
    let mut disagreements = std::collections::BTreeMap::new();
    for (name, text, valid, _) in &all {
        let source = isthmus_config::Source {
            name: name.clone(),
            text: text.as_str().into(),
        };
        let compiled = compile(&[source], &Options::default());
        if compiled.has_errors() == *valid {
            let first = compiled
                .diagnostics
                .into_iter()
                .find(|found| found.severity == isthmus_config::diagnostic::Severity::Error);
            let said = first.map_or("accepted".to_owned(), |found| found.to_string());
            disagreements.insert(name.clone(), said);
        }
    }
    let unexplained: Vec<_> = disagreements
        .iter()
        .filter(|(name, _)| !explained.contains_key(*name))
        .collect();
    let settled: Vec<_> = explained
        .keys()
        .filter(|name| !disagreements.contains_key(*name))
        .collect();
    eprintln!(
        "{} of {} verdicts agree",
        all.len() - disagreements.len(),
        all.len()
    );
    assert!(unexplained.is_empty(), "not in verdicts.tsv: {unexplained:#?}");
    assert!(
        settled.is_empty(),
        "in verdicts.tsv, but they agree: {settled:#?}"
    );
    assert_eq!(all.len(), 1039);
    assert!(disagreements.len() * 50 <= all.len(), "{}", disagreements.len());
}

/// Names of fields of a kind that are known and not executed, those inside others left out.
fn not_executed(kind: &str) -> Vec<String> {
    let all: Vec<isthmus_config::FieldInfo> = isthmus_config::fields()
        .into_iter()
        .filter(|field| field.kind == kind && field.status == isthmus_config::Status::NotYet)
        .collect();
    let tops = all.iter().filter(|field| {
        let above = field.path.rsplit_once('.').map(|(above, _)| above);
        !all.iter().any(|other| Some(other.path.as_str()) == above)
    });
    let mut names: Vec<String> = tops
        .map(|field| {
            let name = field.path.rsplit('.').next().unwrap();
            name.trim_end_matches(['*', '[', ']', '{', '}']).to_owned()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Whether a line of a document writes a field, in either spelling.
fn writes(text: &str, field: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start().trim_start_matches("- ").trim_start();
        let Some((key, _)) = line.split_once(':') else {
            return false;
        };
        key.replace('_', "").eq_ignore_ascii_case(field)
    })
}

#[test]
fn samples_and_documentation_load_and_name_what_is_not_executed() {
    let Some(corpus) = corpus() else { return };
    let stricter = table(include_str!("verdicts.tsv"));
    let (mut loaded, mut named) = (0, 0);
    let mut silent = Vec::new();
    for (name, text, _, _) in verdicts(&corpus)
        .into_iter()
        .filter(|(name, _, _, to_load)| *to_load && !stricter.contains_key(name))
    {
        let sources = [isthmus_config::Source {
            name: name.clone(),
            text: text.as_str().into(),
        }];
        let compiled = compile(&sources, &Options::default());
        let told = render(&compiled.diagnostics, &sources, false);
        assert!(!compiled.has_errors(), "{told}");
        loaded += 1;
        let kind = text.lines().find_map(|line| line.strip_prefix("kind:"));
        for field in not_executed(kind.unwrap_or("").trim()) {
            if !writes(&text, &field) {
                continue;
            }
            let is_named = compiled
                .diagnostics
                .iter()
                .any(|found| found.code == "not-executed" && found.field.ends_with(&field));
            if is_named {
                named += 1;
            } else {
                silent.push(format!("{name}: {field}"));
            }
        }
    }
    eprintln!("{loaded} documents load; {named} fields are named as not executed");
    assert!(silent.is_empty(), "dropped without a word: {silent:#?}");
    assert!(loaded > 400, "{loaded}");
}

#[test]
fn whole_files_of_samples_load() {
    let Some(corpus) = corpus() else { return };
    let stricter = table(include_str!("verdicts.tsv"));
    let mut files: std::collections::BTreeMap<String, bool> = std::collections::BTreeMap::new();
    for (name, _, _, to_load) in verdicts(&corpus) {
        let Some((file, _)) = name.split_once('#') else {
            continue;
        };
        let good = to_load && !stricter.contains_key(&name);
        *files.entry(file.to_owned()).or_insert(true) &= good;
    }
    let good: Vec<String> = files
        .into_iter()
        .filter_map(|(file, good)| good.then_some(file))
        // Templates are no YAML until they are filled in.
        .filter(|file| !std::fs::read_to_string(corpus.join(file)).unwrap().contains("{{"))
        .collect();
    for file in &good {
        let sources = read_paths(&[corpus.join(file)]).unwrap();
        let compiled = compile(&sources, &Options::default());
        let errors: Vec<_> = compiled
            .diagnostics
            .iter()
            .filter(|found| found.severity == isthmus_config::diagnostic::Severity::Error)
            .filter(|found| found.code != "duplicate-resource")
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
    eprintln!("{} whole files load", good.len());
    assert!(good.len() > 150, "{}", good.len());
}

/// What is told of an example of the specification, at a door of mesh clients with its service.
fn told_of(corpus: &Path, example: &str) -> Vec<&'static str> {
    let around = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door, annotations: {isthmus.dev/mesh: \"true\"}}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews}
spec:
  hosts: [reviews.default.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 9080, name: http, protocol: HTTP}]
  endpoints:
  - {address: 10.0.0.1, labels: {version: v1}}
  - {address: 10.0.0.2, labels: {version: v2}}
  - {address: 10.0.0.3, labels: {version: v3}}
";
    let mut sources = read_paths(&[corpus.join("seed-examples").join(example)]).unwrap();
    sources.push(isthmus_config::Source {
        name: "around".to_owned(),
        text: around.into(),
    });
    let compiled = compile(&sources, &Options::default());
    assert!(
        !compiled.has_errors(),
        "{}",
        render(&compiled.diagnostics, &sources, false)
    );
    let told = compiled.diagnostics.iter();
    told.filter(|found| found.code != "not-executed")
        .map(|found| found.name)
        .collect()
}

#[test]
fn limits_and_balancers_of_the_specification_load() {
    let Some(corpus) = corpus() else { return };
    for (example, told) in [
        (
            "15-subsets-and-balancers.yaml",
            &["unreached-subset", "no-route"][..],
        ),
        ("16-limit-on-subset.yaml", &["unreached-subset", "no-route"]),
        ("17-limit-on-top.yaml", &["no-route"]),
        ("18-limit-on-subset-with-route.yaml", &[]),
    ] {
        assert_eq!(told_of(&corpus, example), told, "{example}");
    }
}

#[test]
fn samples_that_belong_together_have_no_findings_that_are_not_true() {
    let Some(corpus) = corpus() else { return };
    // What the samples refer to, as the applications' own manifests bring it.
    let services = |names: &[&str]| {
        let one = |name: &&str| {
            let slice = |version: &str| {
                format!(
                    "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{version}, \
                     labels: {{kubernetes.io/service-name: {name}, version: {version}}}}}\nports: [{{name: http, port: \
                     9080}}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n"
                )
            };
            let versions = ["v1", "v2", "v3", "v2-mysql", "v2-mysql-vm"].map(slice);
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: \
                 9080}}]}}\n{}",
                versions.concat()
            )
        };
        isthmus_config::Source {
            name: "services.yaml".to_owned(),
            text: names.iter().map(one).collect::<String>().into(),
        }
    };
    let folder = corpus.join("samples-bookinfo");
    let rules = ["all-v1", "reviews-90-10", "reviews-test-v2", "ratings-test-abort"];
    for rule in rules {
        let names = [
            "bookinfo-gateway.yaml",
            "destination-rule-all.yaml",
            &format!("virtual-service-{rule}.yaml"),
        ];
        let paths = names.map(|name| folder.join(name));
        let mut sources = read_paths(&paths).unwrap();
        sources.push(services(&["productpage", "reviews", "ratings", "details"]));
        let compiled = compile(&sources, &Options::default());
        let wrong = compiled.diagnostics.iter().filter(|found| {
            found.severity != isthmus_config::diagnostic::Severity::Hint && found.code != "not-executed"
        });
        let wrong: Vec<String> = wrong.map(ToString::to_string).collect();
        assert!(wrong.is_empty(), "{rule}: {wrong:#?}");
    }
}
