//! Istio's own tables: which names match, cover and precede each other, and how protocols are spelled. The tables about
//! delegates are beside the code that merges them.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_core::name::HostPattern;
use isthmus_core::protocol::Protocol;
use serde_json::Value;
use std::cmp::Ordering;
use std::path::{Path, PathBuf};

fn rows(name: &str) -> Vec<Value> {
    let given = std::env::var_os("ISTHMUS_CORPUS").map(PathBuf::from);
    let corpus = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"));
    let path = corpus.join("model-tables").join(format!("{name}.json"));
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).unwrap(),
        Err(_) => {
            eprintln!("NOT RUN: there is no table at {}", path.display());
            assert!(std::env::var_os("CI").is_none(), "the corpus must be there in CI");
            Vec::new()
        }
    }
}

/// A pattern, with its case: the tables are about names as they are.
fn pattern(value: &Value) -> HostPattern {
    HostPattern::as_written(value.as_str().unwrap())
}

fn patterns(value: &Value) -> Vec<HostPattern> {
    value.as_array().into_iter().flatten().map(pattern).collect()
}

#[test]
fn names_match_as_in_istio() {
    let rows = rows("TestNameMatches");
    for row in &rows {
        let found = pattern(&row["a"]).overlaps(&pattern(&row["b"]));
        assert_eq!(Some(found), row["out"].as_bool(), "{row}");
    }
    assert!(rows.is_empty() || rows.len() == 24, "{}", rows.len());
}

#[test]
fn names_cover_each_other_as_in_istio() {
    let rows = rows("TestNameSubsetOf");
    for row in &rows {
        let found = pattern(&row["a"]).subset_of(&pattern(&row["b"]));
        assert_eq!(Some(found), row["out"].as_bool(), "{row}");
    }
    assert!(rows.is_empty() || rows.len() == 20, "{}", rows.len());
}

#[test]
fn names_have_in_common_what_they_have_in_istio() {
    let rows = rows("TestNamesIntersection");
    for row in &rows {
        let (a, b) = (patterns(&row["a"]), patterns(&row["b"]));
        let mut found: Vec<HostPattern> = Vec::new();
        for common in a.iter().flat_map(|a| b.iter().filter_map(|b| a.intersection(b))) {
            if !found.contains(common) {
                found.push(common.clone());
            }
        }
        assert_eq!(found, patterns(&row["intersection"]), "{row}");
    }
    assert!(rows.is_empty() || rows.len() == 12, "{}", rows.len());
}

#[test]
fn names_are_ordered_as_in_istio() {
    let sorted = rows("TestNamesSortOrder");
    for row in &sorted {
        let mut found = patterns(&row["in"]);
        found.sort_by(HostPattern::by_specificity);
        assert_eq!(found, patterns(&row["want"]), "{row}");
    }
    let compared = rows("TestMoreSpecific");
    for row in &compared {
        let order = pattern(&row["host1"]).by_specificity(&pattern(&row["host2"]));
        assert_eq!(
            Some(order != Ordering::Greater),
            row["expected"].as_bool(),
            "{row}"
        );
    }
    let count = (sorted.len(), compared.len());
    assert!(count == (0, 0) || count == (7, 11), "{count:?}");
}

#[test]
fn protocols_are_spelled_as_in_istio() {
    let rows = rows("TestParse");
    for row in &rows {
        let found = Protocol::parse(row["name"].as_str().unwrap());
        assert_eq!(Some(found.to_string().as_str()), row["out"].as_str(), "{row}");
    }
    assert!(rows.is_empty() || rows.len() == 27, "{}", rows.len());
}

#[test]
fn no_table_is_left_out() {
    // Those about delegates and about hosts of servers are beside the code that they are about.
    let tested = [
        "TestHasConflict",
        "TestMergeHTTPMatchRequests",
        "TestMergeHttpRoutes",
        "TestMoreSpecific",
        "TestNameMatches",
        "TestNameSubsetOf",
        "TestNamesForNamespace",
        "TestNamesIntersection",
        "TestNamesSortOrder",
        "TestParse",
    ];
    if rows("TestParse").is_empty() {
        return;
    }
    let given = std::env::var_os("ISTHMUS_CORPUS").map(PathBuf::from);
    let corpus = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"));
    let entries = std::fs::read_dir(corpus.join("model-tables")).unwrap();
    let mut found: Vec<String> = entries
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    found.sort();
    assert_eq!(found, tested);
}
