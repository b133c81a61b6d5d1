//! One bad document stays behind alone: a set of many documents, one of them spoilt by each of many seeds.

use isthmus_config::keep::{self, LastGood};
use isthmus_config::{Options, Source};
use isthmus_core::random::Random;
use isthmus_core::snapshot::Snapshot;
use std::sync::Arc;

/// A thousand documents: three of each, and a Gateway.
const SERVICES: usize = 333;
/// Seeds of an ordinary run; `ISTHMUS_SEEDS` gives another number.
const SEEDS: u64 = 30;
const FILES: usize = 5;

/// Documents of a small mesh; `timeout` is in every VirtualService.
fn documents(timeout: u32) -> Vec<String> {
    let mut all = vec![
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  servers:\n  - port: {number: 80, name: http, protocol: HTTP}\n    hosts: [\"*\"]\n"
            .to_owned(),
    ];
    for at in 0..SERVICES {
        all.push(format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: s{at}\nspec:\n  hosts: [s{at}.example.com]\n  resolution: STATIC\n  location: MESH_EXTERNAL\n  ports:\n  - {{number: 80, name: http, protocol: HTTP}}\n  endpoints:\n  - address: 10.0.{}.{}\n    labels: {{version: v1}}\n",
            at / 250,
            at % 250
        ));
        all.push(format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: s{at}\nspec:\n  host: s{at}.example.com\n  subsets:\n  - name: v1\n    labels: {{version: v1}}\n"
        ));
        all.push(format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: s{at}\nspec:\n  hosts: [s{at}.example.com]\n  gateways: [edge]\n  http:\n  - timeout: {timeout}s\n    route:\n    - destination:\n        host: s{at}.example.com\n        subset: v1\n"
        ));
    }
    all
}

fn sources(documents: &[String]) -> Vec<Source> {
    let per_file = documents.len().div_ceil(FILES);
    let files = documents.chunks(per_file).enumerate();
    files
        .map(|(number, chunk)| Source {
            name: format!("{number}.yaml"),
            text: chunk.join("---\n").into(),
        })
        .collect()
}

fn assert_same(one: &Snapshot, other: &Snapshot, seed: u64) {
    // Equal parts are taken over, and those that are not stay apart.
    let mut shared = one.clone();
    shared.share_with(other);
    assert_eq!(shared.listeners.len(), other.listeners.len(), "seed {seed}");
    for (listener, expected) in shared.listeners.iter().zip(&other.listeners) {
        assert!(
            Arc::ptr_eq(listener, expected),
            "seed {seed}: {}",
            listener.key.port
        );
    }
    assert_eq!(one.clusters.len(), other.clusters.len(), "seed {seed}");
    for (key, spec) in &one.clusters {
        assert_eq!(Some(spec), other.clusters.get(key), "seed {seed}");
    }
}

/// Spoils a document so that it cannot be applied.
fn spoil(text: &str, random: &mut Random) -> String {
    match random.below(5) {
        0 => text.replace("spec:", "spec: ["),
        1 => text.replace("spec:", "sepc:"),
        2 => text.replace("metadata:", "metadata:\n\tname: tab\nmetadata:"),
        3 => text.replace("kind:", "kind: [Pod, "),
        _ => text.replace("spec:\n", "spec:\n  nothingLikeIt: true\n"),
    }
}

#[test]
fn a_bad_document_stays_behind_alone() {
    let options = Options::default();
    let first = keep::compile(sources(&documents(1)), &options, &LastGood::default());
    assert!(first.quarantined.is_empty(), "{:?}", first.diagnostics);
    let seeds = std::env::var("ISTHMUS_SEEDS").map_or(SEEDS, |text| text.parse().unwrap());
    for seed in 0..seeds {
        let mut random = Random::from_seed(seed);
        // Everything gets another timeout, and one document is spoilt.
        let mut next = documents(2);
        let at = random.below(next.len() as u64) as usize;
        let good = std::mem::replace(&mut next[at], documents(1)[at].clone());
        let expected = isthmus_config::compile(&sources(&next), &options);
        next[at] = spoil(&good, &mut random);
        let outcome = keep::compile(sources(&next), &options, &first.last);
        assert_same(&outcome.compiled.snapshot, &expected.snapshot, seed);
        let [quarantined] = &outcome.quarantined[..] else {
            panic!("seed {seed}: {:?}", outcome.quarantined)
        };
        assert!(quarantined.serves_last, "seed {seed}: {quarantined:?}");
        let places = sources(&next);
        let per_file = next.len().div_ceil(FILES);
        assert_eq!(quarantined.file, places[at / per_file].name, "seed {seed}");
        assert_eq!(quarantined.resources.len(), 1, "seed {seed}: {quarantined:?}");
        // With the document mended, nothing is left of it.
        next[at] = good;
        let mended = keep::compile(sources(&next), &options, &outcome.last);
        assert!(mended.quarantined.is_empty(), "seed {seed}");
        let whole = isthmus_config::compile(&sources(&next), &options);
        assert_same(&mended.compiled.snapshot, &whole.snapshot, seed);
    }
}

#[test]
fn a_document_that_never_was_good_stays_out_and_so_does_what_needs_it() {
    let options = Options::default();
    let first = keep::compile(sources(&documents(1)), &options, &LastGood::default());
    let mut next = documents(1);
    // A new subset that is spoilt, and two routes: one that needs it, and one that does not.
    next[2] = next[2].replace("  - name: v1", "  - name: v2\n    labls: {}\n  - name: v1");
    next[3] = next[3].replace("subset: v1", "subset: v2");
    next[6] = next[6].replace("timeout: 1s", "timeout: 9s");
    let outcome = keep::compile(sources(&next), &options, &first.last);
    let behind: Vec<&str> = outcome
        .quarantined
        .iter()
        .map(|one| one.resources[0].as_str())
        .collect();
    assert_eq!(
        behind,
        ["DestinationRule default/s0", "VirtualService default/s0"],
        "{:?}",
        outcome.quarantined
    );
    let mut expected = documents(1);
    expected[6] = next[6].clone();
    let expected = isthmus_config::compile(&sources(&expected), &options);
    assert_same(&outcome.compiled.snapshot, &expected.snapshot, 0);
    // A document that never was there.
    let mut next = documents(1);
    next.push(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: new}\nspec: {}\n".into(),
    );
    let outcome = keep::compile(sources(&next), &options, &first.last);
    assert_eq!(outcome.quarantined.len(), 1);
    assert!(!outcome.quarantined[0].serves_last);
    assert_eq!(outcome.quarantined[0].resources, ["VirtualService default/new"]);
}

#[test]
fn the_reason_is_the_mistake_and_not_what_follows_from_it() {
    let options = Options::default();
    let first = keep::compile(sources(&documents(1)), &options, &LastGood::default());
    let why = |text: &str| {
        let mut next = sources(&documents(1));
        next.push(Source {
            name: "new.yaml".to_owned(),
            text: text.into(),
        });
        let outcome = keep::compile(next, &options, &first.last);
        assert_eq!(outcome.quarantined.len(), 1, "{:?}", outcome.quarantined);
        outcome.quarantined[0].to_string()
    };
    let broken = why("kind: [\nmetadata: {name: a}\n");
    assert!(
        broken.starts_with("new.yaml:3:") && broken.contains(": syntax: ") && !broken.contains(": : "),
        "{broken}"
    );
    let head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n";
    let misspelt = why(&format!("{head}spec:\n  hosts: [a.example]\n  htp: []\n"));
    assert!(
        misspelt.contains("unknown-field") && misspelt.starts_with("new.yaml:6:"),
        "{misspelt}"
    );
}

#[test]
fn what_moved_to_another_file_is_not_there_twice() {
    let options = Options::default();
    let first = keep::compile(sources(&documents(1)), &options, &LastGood::default());
    let mut next = sources(&documents(1));
    let moved = next[0].text.split("---\n").nth(3).unwrap().to_owned();
    next[1].text = format!("{}---\n{moved}", next[1].text).into();
    next[0].text = next[0].text.replace(&moved, "kind: [\n").into();
    let outcome = keep::compile(next, &options, &first.last);
    assert_eq!(outcome.quarantined.len(), 1);
    assert!(!outcome.quarantined[0].serves_last, "{:?}", outcome.quarantined);
    assert!(!outcome.compiled.has_errors());
}

#[test]
fn the_last_good_set_survives_as_text() {
    let options = Options::default();
    let first = keep::compile(sources(&documents(1)), &options, &LastGood::default());
    let text = serde_json::to_string(&first.last).unwrap();
    let read: LastGood = serde_json::from_str(&text).unwrap();
    assert_eq!(read, first.last);
    let broken: Vec<Source> = (0..FILES)
        .map(|number| Source {
            name: format!("{number}.yaml"),
            text: "\u{1}".into(),
        })
        .collect();
    let outcome = keep::compile(broken, &options, &read);
    assert_same(&outcome.compiled.snapshot, &first.compiled.snapshot, 0);
    assert_eq!(outcome.quarantined.len(), FILES);
}

#[test]
fn what_is_only_hinted_at_waits_for_nothing() {
    const AROUND: &str = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [\"*\"]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: away}
spec:
  hosts: [hidden.example]
  exportTo: [\".\"]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 10.0.0.1}]
";
    let other = |spec: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other}}
{spec}: {{hosts: [other.example], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}]}}
"
        )
    };
    const NEW: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: new}
spec: {hosts: [new.example], gateways: [edge], http: [{route: [{destination: {host: hidden.example}}]}]}
";
    let compiled = |text: String, last: &LastGood| {
        let name = "all.yaml".to_owned();
        keep::compile(
            vec![Source {
                name,
                text: text.into(),
            }],
            &Options::default(),
            last,
        )
    };
    let first = compiled(format!("{AROUND}{}", other("spec")), &LastGood::default());
    assert!(first.quarantined.is_empty(), "{:?}", first.quarantined);
    let second = compiled(format!("{AROUND}{}{NEW}", other("sepc")), &first.last);
    let hinted = second
        .diagnostics
        .iter()
        .any(|found| found.name == "unknown-host");
    assert!(hinted, "{:?}", second.diagnostics);
    let held = second.quarantined.iter().flat_map(|held| &held.resources);
    assert_eq!(held.collect::<Vec<_>>(), ["ServiceEntry default/other"]);
}
