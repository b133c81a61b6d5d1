//! Diagnostics for code scanning: SARIF 2.1.0 (OASIS, "Static Analysis Results Interchange Format").

use crate::diagnostic::{Diagnostic, Severity};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Diagnostics as one run of a SARIF log; `version` is that of this program.
pub fn to_sarif(diagnostics: &[Diagnostic], version: &str) -> Value {
    let mut rules: Vec<Value> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    let results = diagnostics.iter().map(|diagnostic| {
        let id = rule(diagnostic);
        let index = *known.entry(id.clone()).or_insert_with(|| {
            rules.push(json!({
                "id": id,
                "name": diagnostic.name,
                "defaultConfiguration": { "level": level(diagnostic.severity) },
            }));
            rules.len() - 1
        });
        let help = diagnostic.help.as_ref().map(|help| format!("\nhelp: {help}"));
        let mut result = json!({
            "ruleId": id,
            "ruleIndex": index,
            "level": level(diagnostic.severity),
            "message": { "text": format!("{}{}", diagnostic.message, help.unwrap_or_default()) },
            "locations": [location(
                &diagnostic.file,
                (diagnostic.line, diagnostic.column),
                &diagnostic.resource,
                &diagnostic.field,
            )],
        });
        let related = diagnostic.related.iter().enumerate().map(|(at, related)| {
            let mut place = location(
                &related.file,
                (related.line, related.column),
                &related.resource,
                &related.field,
            );
            place["id"] = json!(at + 1);
            place["message"] = json!({ "text": related.message });
            place
        });
        let related: Vec<Value> = related.collect();
        if !related.is_empty() {
            result["relatedLocations"] = json!(related);
        }
        result
    });
    let results: Vec<Value> = results.collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "isthmus", "version": version, "rules": rules } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

/// The kind of a problem; Istio's code and our name, where one code has several names (SARIF 3.5.4, hierarchical
/// strings).
fn rule(diagnostic: &Diagnostic) -> String {
    if diagnostic.code == diagnostic.name {
        diagnostic.name.to_owned()
    } else {
        format!("{}/{}", diagnostic.code, diagnostic.name)
    }
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Hint => "note",
    }
}

fn location(file: &str, (line, column): (usize, usize), resource: &str, field: &str) -> Value {
    let mut location = json!({
        "physicalLocation": {
            "artifactLocation": { "uri": uri(file) },
            // Lines and columns count from 1 (SARIF 3.30.5, 3.30.6).
            "region": { "startLine": line.max(1), "startColumn": column.max(1) },
        },
    });
    if !resource.is_empty() {
        let separator = if field.is_empty() { "" } else { " " };
        let name = format!("{resource}{separator}{field}");
        location["logicalLocations"] = json!([{ "fullyQualifiedName": name }]);
    }
    location
}

/// A path as a URI (RFC 3986): relative as it is, absolute with its scheme.
fn uri(path: &str) -> String {
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    for (at, byte) in path.bytes().enumerate() {
        match byte {
            // A colon in the first segment would end a scheme.
            b':' if !path.starts_with('/') && !path.get(..at).unwrap_or("").contains('/') => {
                uri.push_str("%3A");
            }
            b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'+' | b',' | b'=' => {
                uri.push(char::from(byte));
            }
            _ if byte.is_ascii_alphanumeric() => uri.push(char::from(byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Related;

    fn found(name: &'static str, code: &'static str, severity: Severity) -> Diagnostic {
        Diagnostic {
            severity,
            code,
            name,
            file: "a b/c.yaml".into(),
            line: 3,
            column: 5,
            resource: "Gateway default/a".into(),
            field: "spec.servers[0]".into(),
            message: "wrong".into(),
            help: Some("right".into()),
            related: vec![Related {
                file: "/d.yaml".into(),
                line: 1,
                column: 2,
                resource: "Gateway default/b".into(),
                field: String::new(),
                message: "first".into(),
            }],
        }
    }

    #[test]
    fn results_have_what_the_schema_requires_and_rules_are_listed_once() {
        let log = to_sarif(
            &[
                found("unknown-host", "IST0101", Severity::Warning),
                found("bad-host", "bad-host", Severity::Error),
                found("unknown-host", "IST0101", Severity::Hint),
            ],
            "1.0",
        );
        assert_eq!(log["version"], "2.1.0");
        let run = &log["runs"][0];
        assert_eq!(run["tool"]["driver"]["name"], "isthmus");
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        let ids: Vec<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["IST0101/unknown-host", "bad-host"]);
        let results = run["results"].as_array().unwrap();
        assert_eq!(results.len(), 3);
        let levels = results.iter().map(|result| result["level"].as_str().unwrap());
        assert_eq!(levels.collect::<Vec<_>>(), ["warning", "error", "note"]);
        for result in results {
            let rule = &ids[usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap()];
            assert_eq!(result["ruleId"], *rule);
            assert_eq!(result["message"]["text"], "wrong\nhelp: right");
            let place = &result["locations"][0]["physicalLocation"];
            assert_eq!(place["artifactLocation"]["uri"], "a%20b/c.yaml");
            assert_eq!(place["region"]["startLine"], 3);
            assert_eq!(place["region"]["startColumn"], 5);
            let related = &result["relatedLocations"][0];
            assert_eq!(related["id"], 1);
            assert_eq!(
                related["physicalLocation"]["artifactLocation"]["uri"],
                "file:///d.yaml"
            );
            assert_eq!(related["message"]["text"], "first");
        }
    }

    #[test]
    fn paths_are_uris() {
        assert_eq!(uri("a:b/c:d"), "a%3Ab/c:d");
        assert_eq!(uri("/é#?.yaml"), "file:///%C3%A9%23%3F.yaml");
    }
}
