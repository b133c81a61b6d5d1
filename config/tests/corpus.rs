//! The acceptance corpus: what Istio's own samples, documentation and tests write must load here.
//!
//! The corpus is no part of the project. Where it is missing these tests say so loudly, and fail when CI is set.

use isthmus_config::diagnostic::{Diagnostic, render};
use isthmus_config::{Options, compile, read_paths};
use std::path::{Path, PathBuf};

fn corpus() -> Option<PathBuf> {
    let given = std::env::var_os("ISTHMUS_CORPUS").map(PathBuf::from);
    let path = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"));
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("NOT RUN: there is no corpus at {}", path.display());
    assert!(std::env::var_os("CI").is_none(), "the corpus must be there in CI");
    None
}

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
    let hosts = listener.routes.virtual_hosts();
    assert_eq!((hosts.len(), hosts[0].routes().len()), (1, 5));
}

#[test]
fn samples_and_documentation_load_without_an_unknown_field() {
    let Some(corpus) = corpus() else { return };
    let mut loaded = 0;
    let mut errors: Vec<Diagnostic> = Vec::new();
    for folder in [
        "samples-bookinfo",
        "samples-other",
        "proto-doc-examples",
        "testdata-config",
    ] {
        for source in read_paths(&[corpus.join(folder)]).unwrap() {
            let sources = [source];
            let compiled = compile(&sources, &Options::default());
            let _text = render(&compiled.diagnostics, &sources, false);
            let unknown = compiled
                .diagnostics
                .iter()
                .find(|found| found.code == "unknown-field");
            assert_eq!(unknown, None);
            let found = compiled.diagnostics.into_iter();
            errors
                .extend(found.filter(|found| found.severity == isthmus_config::diagnostic::Severity::Error));
            loaded += 1;
        }
    }
    for error in &errors {
        eprintln!("{error}");
    }
    assert!(loaded > 100, "{loaded}");
}
