//! The schema: which fields the Istio resources have, what may be written in them, and which are executed yet.
//!
//! The list itself is data, in `schema.txt`, whose head explains its form. [`check`] walks a document along it and
//! reports everything that is wrong with single fields: unknown and missing ones, values of the wrong kind, and
//! those that this gateway does not execute yet. What then reads the document need not look again.

use super::duration;
use crate::diagnostic::{Severity, nearest};
use crate::report::{Origin, Report};
use crate::yaml::{Node, Path, same_name};
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

static TEXT: &str = include_str!("schema.txt");

/// What a field may hold.
#[derive(Debug)]
enum Kind {
    Text,
    Bool,
    Int,
    Uint,
    Number,
    Duration,
    Bytes,
    Enum(Vec<&'static str>),
    Object(Vec<Field>),
    Shape(&'static str),
    List(Box<Kind>),
    Map(Box<Kind>),
    /// A field that is gone, with what replaces it.
    Gone(&'static str),
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    executed: bool,
    required: bool,
    kind: Kind,
}

type Shapes = HashMap<&'static str, Vec<Field>>;

fn shapes() -> &'static Shapes {
    static SHAPES: OnceLock<Shapes> = OnceLock::new();
    SHAPES.get_or_init(|| {
        let lines = TEXT
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let lines: Vec<(usize, &str)> = lines
            .map(|line| ((line.len() - line.trim_start().len()) / 2, line.trim()))
            .collect();
        let mut rest = &lines[..];
        let mut shapes = Shapes::new();
        while let Some(((_, name), after)) = rest.split_first() {
            let (fields, after) = read_fields(after, 1);
            shapes.insert(name, fields);
            rest = after;
        }
        shapes
    })
}

type Lines<'a> = &'a [(usize, &'static str)];

fn read_fields<'a>(mut lines: Lines<'a>, level: usize) -> (Vec<Field>, Lines<'a>) {
    let mut fields = Vec::new();
    while let Some(((at, line), after)) = lines.split_first() {
        if *at != level {
            break;
        }
        let (inner, after) = read_fields(after, level + 1);
        lines = after;
        let (head, kind) = line.split_once(' ').unwrap_or((line, "text"));
        let name = head.trim_start_matches(['+', '-']).trim_end_matches('*');
        let kind = if head.starts_with('-') {
            Kind::Gone(kind)
        } else {
            read_kind(kind, inner)
        };
        fields.push(Field {
            name,
            executed: head.starts_with('+'),
            required: head.ends_with('*'),
            kind,
        });
    }
    (fields, lines)
}

fn read_kind(text: &'static str, inner: Vec<Field>) -> Kind {
    let inside = |open, close| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    if let Some(item) = inside('[', ']') {
        return Kind::List(Box::new(read_kind(item, inner)));
    }
    if let Some(item) = inside('{', '}') {
        return Kind::Map(Box::new(read_kind(item, inner)));
    }
    if let Some(words) = text.strip_prefix("enum:") {
        return Kind::Enum(words.split('|').collect());
    }
    match (text, text.strip_prefix('=')) {
        (_, Some(shape)) => Kind::Shape(shape),
        ("object", _) => Kind::Object(inner),
        ("bool", _) => Kind::Bool,
        ("int", _) => Kind::Int,
        ("uint", _) => Kind::Uint,
        ("number", _) => Kind::Number,
        ("duration", _) => Kind::Duration,
        ("bytes", _) => Kind::Bytes,
        _ => Kind::Text,
    }
}

/// Checks the `spec` of a resource of a kind that the schema has.
pub(crate) fn check(kind: &str, spec: &Node, path: &Path<'_>, origin: &Origin, report: &mut Report<'_>) {
    let Some(fields) = shapes().get(kind) else { return };
    let mut walk = Walk { origin, report };
    if let Node::Map(entries) = spec {
        walk.object(fields, entries, path, true);
    } else if *spec != Node::Null {
        walk.wrong(path, "a map of fields", spec);
    } else {
        walk.object(fields, &[], path, true);
    }
}

struct Walk<'w, 'r> {
    origin: &'w Origin,
    report: &'w mut Report<'r>,
}

impl Walk<'_, '_> {
    fn wrong(&mut self, path: &Path<'_>, expected: &str, found: &Node) {
        let help = match (expected, found) {
            ("text", Node::Int(_) | Node::Float(_) | Node::Bool(_)) => Some("put it in quotes".to_owned()),
            _ => None,
        };
        let message = format!("expected {expected}, found {}", found.describe());
        self.report
            .add(Severity::Error, "wrong-type", self.origin, path, message, help);
    }

    fn object(&mut self, fields: &[Field], entries: &[(String, Node)], path: &Path<'_>, live: bool) {
        let mut seen = HashSet::new();
        for (at, (key, value)) in entries.iter().enumerate() {
            let path = Path::Entry(path, at, key);
            let Some(field) = fields.iter().find(|field| same_name(key, field.name)) else {
                let known = fields
                    .iter()
                    .filter(|field| !matches!(field.kind, Kind::Gone(_)))
                    .map(|field| field.name);
                // Only the first ones are worth the comparison with all names.
                let name = if at < 100 { nearest(key, known) } else { None };
                let help = name.map(|name| format!("did you mean `{name}`?"));
                let severity = self.report.strict();
                let message = format!("unknown field `{}`", shortened(key));
                self.report
                    .add_key(severity, "unknown-field", self.origin, &path, message, help);
                continue;
            };
            if !seen.insert(field.name) {
                let message = format!("the field `{}` is written twice", field.name);
                self.report.add_key(
                    Severity::Error,
                    "duplicate-field",
                    self.origin,
                    &path,
                    message,
                    None,
                );
                continue;
            }
            if *value == Node::Null {
                continue;
            }
            if let Kind::Gone(replacement) = field.kind {
                let severity = self.report.strict();
                let message = format!("`{}` is a field of Istio 1.1 that is gone", field.name);
                let help = Some(format!("use {replacement}"));
                self.report
                    .add_key(severity, "removed-field", self.origin, &path, message, help);
                continue;
            }
            if live && !field.executed {
                let message = format!("`{}` is not executed yet", field.name);
                self.report.add_key(
                    Severity::Warning,
                    "not-executed",
                    self.origin,
                    &path,
                    message,
                    None,
                );
            }
            self.value(&field.kind, value, &path, live && field.executed);
        }
        for field in fields.iter().filter(|field| field.required) {
            let written = entries
                .iter()
                .any(|(key, value)| same_name(key, field.name) && *value != Node::Null);
            if !written {
                let message = format!("`{}` is required", field.name);
                self.report
                    .error("missing-field", self.origin, &path.key(field.name), message);
            }
        }
    }

    fn value(&mut self, kind: &Kind, value: &Node, path: &Path<'_>, live: bool) {
        match (kind, value) {
            (Kind::Shape(name), _) => {
                let fields = shapes().get(name).map_or(&[][..], Vec::as_slice);
                match value {
                    Node::Map(entries) => self.object(fields, entries, path, live),
                    _ => self.wrong(path, "a map of fields", value),
                }
            }
            (Kind::Object(fields), Node::Map(entries)) => self.object(fields, entries, path, live),
            (Kind::Object(_), _) => self.wrong(path, "a map of fields", value),
            (Kind::List(item), Node::List(items)) => {
                for (at, value) in items.iter().enumerate() {
                    self.value(item, value, &path.index(at), live);
                }
            }
            (Kind::List(_), _) => self.wrong(path, "a list", value),
            (Kind::Map(item), Node::Map(entries)) => {
                let mut seen = HashSet::new();
                for (at, (key, value)) in entries.iter().enumerate() {
                    let path = Path::Entry(path, at, key);
                    if !seen.insert(key.as_str()) {
                        let message = format!("the key `{}` is written twice", shortened(key));
                        self.report.add_key(
                            Severity::Error,
                            "duplicate-field",
                            self.origin,
                            &path,
                            message,
                            None,
                        );
                    }
                    self.value(item, value, &path, live);
                }
            }
            (Kind::Map(_), _) => self.wrong(path, "a map", value),
            (Kind::Text | Kind::Bytes, Node::Text(_)) | (Kind::Bool, Node::Bool(_)) | (Kind::Gone(_), _) => {}
            (Kind::Text | Kind::Bytes, _) => self.wrong(path, "text", value),
            (Kind::Bool, _) => self.wrong(path, "true or false", value),
            (Kind::Int, _) => self.whole(value, path, i32::MIN.into(), i32::MAX.into()),
            (Kind::Uint, _) => self.whole(value, path, 0, u32::MAX.into()),
            (Kind::Number, Node::Int(_) | Node::Float(_)) => {}
            (Kind::Number, _) => self.wrong(path, "a number", value),
            (Kind::Duration, Node::Text(text)) => {
                if let Err(reason) = duration(text) {
                    self.report.error("bad-duration", self.origin, path, reason);
                }
            }
            (Kind::Duration, _) => self.wrong(path, "a duration such as 10s or 1h30m", value),
            (Kind::Enum(words), Node::Text(text)) if words.contains(&text.as_str()) => {}
            (Kind::Enum(words), Node::Text(text)) => {
                let message = format!("`{}` is none of {}", shortened(text), words.join(", "));
                let help = nearest(text, words.iter().copied()).map(|word| format!("did you mean `{word}`?"));
                self.report
                    .add(Severity::Error, "bad-value", self.origin, path, message, help);
            }
            (Kind::Enum(words), _) => self.wrong(path, &format!("one of {}", words.join(", ")), value),
        }
    }

    fn whole(&mut self, value: &Node, path: &Path<'_>, min: i128, max: i128) {
        match value.as_int() {
            Some(number) if (min..=max).contains(&number) => {}
            Some(number) => {
                self.report.error(
                    "bad-value",
                    self.origin,
                    path,
                    format!("{number} is not within {min} and {max}"),
                );
            }
            None => self.wrong(path, "a whole number", value),
        }
    }
}

/// A written word, cut when it is too long for a message.
pub(crate) fn shortened(text: &str) -> String {
    if text.chars().count() <= 80 {
        text.to_owned()
    } else {
        text.chars().take(77).chain("...".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(fields: &[Field], before: &str, out: &mut Vec<String>) {
        for field in fields {
            if !matches!(field.kind, Kind::Gone(_)) {
                let path = format!("{before}{}", field.name);
                out.push(path.clone());
                inner(&field.kind, &path, out);
            }
        }
    }

    fn inner(kind: &Kind, path: &str, out: &mut Vec<String>) {
        match kind {
            Kind::Object(fields) => paths(fields, &format!("{path}."), out),
            Kind::Shape(name) => paths(&shapes()[name], &format!("{path}."), out),
            Kind::List(item) | Kind::Map(item) => inner(item, path, out),
            _ => {}
        }
    }

    #[test]
    fn every_shape_that_is_named_exists() {
        let mut out = Vec::new();
        for (name, fields) in shapes() {
            assert!(!fields.is_empty(), "{name}");
            paths(fields, "", &mut out);
        }
        assert!(out.len() > 649, "{}", out.len());
    }

    #[test]
    fn every_field_of_the_crds_is_known() {
        let Some(corpus) = crate::tests::corpus() else {
            return;
        };
        let table = std::fs::read_to_string(corpus.join("crd/fields.tsv")).unwrap();
        let mut known = HashMap::new();
        for kind in [
            "Gateway",
            "VirtualService",
            "DestinationRule",
            "ServiceEntry",
            "WorkloadEntry",
            "WorkloadGroup",
        ] {
            let mut out = Vec::new();
            paths(&shapes()[kind], "", &mut out);
            known.insert(kind, out.into_iter().collect::<HashSet<_>>());
        }
        let mut rows = 0;
        for row in table.lines().skip(1) {
            let mut cells = row.split('\t');
            let (kind, path) = (cells.next().unwrap(), cells.next().unwrap());
            let path = path
                .replace(['*', '[', ']', '{', '}'], "")
                .replace("mirror_percent", "mirrorPercent");
            assert!(known[kind].contains(&path), "{kind} {path}");
            rows += 1;
        }
        assert_eq!(rows, 649);
    }
}
