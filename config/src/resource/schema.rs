//! The schema: which fields the Istio resources have, what may be written in them, and which are executed yet.
//!
//! The list itself is data, in `schema.txt`, whose head explains its form. [`check`] walks a document along it and
//! reports everything that is wrong with single fields: unknown and missing ones, values of the wrong kind, and
//! those that this gateway does not execute yet. What then reads the document need not look again. [`fields`] lists all
//! paths with their status, for people.

use super::duration;
use crate::diagnostic::{Severity, nearest};
use crate::report::{Origin, Report};
use crate::yaml::{Node, Path, same_name};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

static TEXT: &str = include_str!("schema.txt");

/// What a field may hold.
#[derive(Debug)]
enum Kind {
    Text,
    Bool,
    /// A whole number from the first to the second.
    Int(i128, i128),
    Number(f64, f64),
    Duration(Length),
    Bytes,
    Enum(Vec<&'static str>),
    Object(Vec<Field>),
    Shape(&'static str),
    List(Box<Kind>),
    Map(Box<Kind>),
    /// A field that is gone, with what replaces it.
    Gone(&'static str),
}

/// Which durations are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    /// Whole milliseconds, at least one.
    Milliseconds,
    /// The same, or none at all.
    MillisecondsOrNone,
    /// Whole seconds.
    Seconds,
    Any,
}

/// What this gateway does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// What is written happens.
    Executed,
    /// It may be written, and nothing comes of it.
    WithoutEffect {
        /// Why.
        why: &'static str,
        /// Whether a hint says so when it is written.
        told: bool,
    },
    /// It is checked, and a warning says that it is not executed.
    NotYet,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Executed => "executed",
            Self::WithoutEffect { .. } => "without effect",
            Self::NotYet => "not yet",
        })
    }
}

/// A field of a resource, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldInfo {
    /// Kind of the resource.
    pub kind: &'static str,
    /// Path in `spec`: `[]` after a list, `{}` after a map, `*` after what is required.
    pub path: String,
    /// What may be written.
    pub holds: String,
    /// What is done with it.
    pub status: Status,
}

/// The kinds of Istio's networking group, whose fields are all known.
pub const KINDS: [&str; 6] = [
    "Gateway",
    "VirtualService",
    "DestinationRule",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
];

/// Every field of Istio's kinds, as the CRDs name them.
pub fn fields() -> Vec<FieldInfo> {
    let mut out = Vec::new();
    for kind in KINDS {
        if let Some(fields) = shapes().get(kind) {
            list_fields(kind, fields, "", Status::Executed, &mut out);
        }
    }
    out
}

/// Every field of this gateway's own kind, HealthCheckPolicy.
pub fn own_fields() -> Vec<FieldInfo> {
    let mut out = Vec::new();
    if let Some(fields) = shapes().get("HealthCheckPolicy") {
        list_fields("HealthCheckPolicy", fields, "", Status::Executed, &mut out);
    }
    out
}

/// Whether a field of a kind is known and not executed, or lies below one that is not. `path` is as in
/// [`FieldInfo::path`] without its stars.
pub(crate) fn is_not_executed(kind: &str, path: &str) -> bool {
    static NOT_YET: OnceLock<Vec<(&'static str, String)>> = OnceLock::new();
    let all = NOT_YET.get_or_init(|| {
        let fields = fields()
            .into_iter()
            .filter(|field| field.status == Status::NotYet);
        fields
            .map(|field| (field.kind, field.path.replace('*', "")))
            .collect()
    });
    all.iter().filter(|(known, _)| *known == kind).any(|(_, field)| {
        path.strip_prefix(field.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
    })
}

/// Every field of MeshConfig that concerns a gateway.
pub fn mesh_fields() -> Vec<FieldInfo> {
    let mut out = Vec::new();
    if let Some(fields) = shapes().get("MeshConfig") {
        list_fields("MeshConfig", fields, "", Status::Executed, &mut out);
    }
    out
}

/// What is executed of each kind, as the table of the README: what has a status of its own, not what lies below it.
pub fn feature_table() -> String {
    let all = fields();
    let mut out = String::from(
        "| Kind | Fields | Executed | Not executed yet | Without effect |\n|---|---|---|---|---|\n",
    );
    for kind in KINDS {
        let of_kind: Vec<&FieldInfo> = all.iter().filter(|field| field.kind == kind).collect();
        let executed = of_kind
            .iter()
            .filter(|field| field.status == Status::Executed)
            .count();
        let list = |wanted: fn(Status) -> bool| {
            let tops = of_kind.iter().filter(|field| {
                let above = field.path.rsplit_once('.').map(|(above, _)| above);
                let inside = above.is_some_and(|above| {
                    of_kind
                        .iter()
                        .any(|other| other.path == above && wanted(other.status))
                });
                wanted(field.status) && !inside
            });
            // A policy is written in four places; its shortest path stands for all of them.
            let mut names: Vec<String> = Vec::new();
            for top in tops {
                let policy = ["subsets[].trafficPolicy.", "trafficPolicy.portLevelSettings[]."];
                let copied = policy.iter().any(|start| top.path.starts_with(start));
                if !copied {
                    names.push(format!("`{}`", top.path.replace('*', "")));
                }
            }
            names.join(", ")
        };
        out.push_str(&format!(
            "| {kind} | {} | {executed} | {} | {} |\n",
            of_kind.len(),
            list(|status| status == Status::NotYet),
            list(|status| matches!(status, Status::WithoutEffect { .. })),
        ));
    }
    out
}

/// Lists fields below `before`; what lies in something that has no effect has none, either.
fn list_fields(kind: &'static str, fields: &[Field], before: &str, above: Status, out: &mut Vec<FieldInfo>) {
    for field in fields {
        if matches!(field.kind, Kind::Gone(_)) || !field.in_crd {
            continue;
        }
        let status = match above {
            Status::Executed => field.status,
            above => above,
        };
        let star = if field.starred { "*" } else { "" };
        let (suffix, inner) = match &field.kind {
            Kind::List(item) => ("[]", &**item),
            Kind::Map(item) => ("{}", &**item),
            other => ("", other),
        };
        let path = format!("{before}{}{star}{suffix}", field.name);
        out.push(FieldInfo {
            kind,
            path: path.clone(),
            holds: holds(&field.kind),
            status,
        });
        let inner = match inner {
            Kind::Object(fields) => &fields[..],
            Kind::Shape(name) => shapes().get(name).map_or(&[][..], Vec::as_slice),
            _ => &[],
        };
        list_fields(kind, inner, &format!("{path}."), status, out);
    }
}

fn holds(kind: &Kind) -> String {
    match kind {
        Kind::Text | Kind::Gone(_) => "text".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Int(..) | Kind::Number(..) => "number".to_owned(),
        Kind::Duration(_) => "duration".to_owned(),
        Kind::Bytes => "base64".to_owned(),
        Kind::Enum(words) => words.join(", "),
        Kind::Object(_) | Kind::Shape(_) => "fields".to_owned(),
        Kind::List(item) => format!("list of {}", holds(item)),
        Kind::Map(item) => format!("map of {}", holds(item)),
    }
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    status: Status,
    required: bool,
    /// Whether the CRD requires it.
    starred: bool,
    in_crd: bool,
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
        let (line, why) = line.split_once(" # ").unwrap_or((line, ""));
        let (head, kind) = line.split_once(' ').unwrap_or((line, "text"));
        let name = head
            .trim_start_matches(['+', '-', '~', '^'])
            .trim_end_matches(['*', '?']);
        let kind = if head.starts_with('-') {
            Kind::Gone(kind)
        } else {
            read_kind(kind, inner)
        };
        fields.push(Field {
            name,
            status: match head.trim_start_matches('^').get(..1) {
                Some("+") => Status::Executed,
                Some("~") => Status::WithoutEffect {
                    why,
                    told: !head.starts_with("~~"),
                },
                _ => Status::NotYet,
            },
            required: head.ends_with('*'),
            starred: head.contains('*'),
            in_crd: !head.starts_with('^'),
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
    if let Some(shape) = text.strip_prefix('=') {
        return Kind::Shape(shape);
    }
    let (name, range) = text.split_once(':').unwrap_or((text, ""));
    let (low, high) = range.split_once("..").unwrap_or(("", ""));
    let bounds = |min: i128, max: i128| Kind::Int(low.parse().unwrap_or(min), high.parse().unwrap_or(max));
    match name {
        "object" => Kind::Object(inner),
        "bool" => Kind::Bool,
        "int" => bounds(i32::MIN.into(), i32::MAX.into()),
        "uint" => bounds(0, u32::MAX.into()),
        "number" => Kind::Number(
            low.parse().unwrap_or(f64::NEG_INFINITY),
            high.parse().unwrap_or(f64::INFINITY),
        ),
        "duration" => Kind::Duration(match range {
            "0" => Length::MillisecondsOrNone,
            "s" => Length::Seconds,
            "any" => Length::Any,
            _ => Length::Milliseconds,
        }),
        "bytes" => Kind::Bytes,
        _ => Kind::Text,
    }
}

impl Length {
    /// What is wrong with a duration (Istio's `ValidateDuration`).
    fn fault(self, value: Duration) -> Option<&'static str> {
        let whole = |unit: Duration| value >= unit && value.as_nanos().is_multiple_of(unit.as_nanos());
        match self {
            Self::Milliseconds if !whole(Duration::from_millis(1)) => {
                Some("must be a whole number of milliseconds, at least 1ms")
            }
            Self::MillisecondsOrNone if !value.is_zero() && !whole(Duration::from_millis(1)) => {
                Some("must be a whole number of milliseconds, or 0s")
            }
            Self::Seconds if !whole(Duration::from_secs(1)) => {
                Some("must be a whole number of seconds, at least 1s")
            }
            _ => None,
        }
    }
}

/// Puts the words of enumerations in the place of their numbers, which jsonpb takes as well.
pub(crate) fn name_numbers(kind: &str, spec: &mut Node) {
    if let Some(fields) = shapes().get(kind) {
        name_in_fields(fields, spec);
    }
}

fn name_in_fields(fields: &[Field], node: &mut Node) {
    let Node::Map(entries) = node else { return };
    for (key, value) in entries {
        if let Some(field) = fields.iter().find(|field| same_name(key, field.name)) {
            name_in_value(&field.kind, value);
        }
    }
}

fn name_in_value(kind: &Kind, value: &mut Node) {
    match (kind, &mut *value) {
        (Kind::Enum(words), Node::Int(number)) => {
            let word = usize::try_from(*number).ok().and_then(|at| words.get(at));
            if let Some(word) = word {
                *value = Node::Text((*word).to_owned());
            }
        }
        (Kind::Object(fields), _) => name_in_fields(fields, value),
        (Kind::Shape(name), _) => name_in_fields(shapes().get(name).map_or(&[][..], Vec::as_slice), value),
        (Kind::List(item), Node::List(items)) => {
            items.iter_mut().for_each(|value| name_in_value(item, value))
        }
        (Kind::Map(item), Node::Map(entries)) => {
            entries
                .iter_mut()
                .for_each(|(_, value)| name_in_value(item, value));
        }
        _ => {}
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
            if live {
                self.tell_status(field, &path);
            }
            self.value(
                &field.kind,
                value,
                &path,
                live && field.status == Status::Executed,
            );
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

    fn tell_status(&mut self, field: &Field, path: &Path<'_>) {
        let (severity, code, message) = match field.status {
            Status::Executed | Status::WithoutEffect { told: false, .. } => return,
            Status::WithoutEffect { why, .. } => {
                let message = format!("`{}` has no effect: {why}", field.name);
                (Severity::Hint, "no-effect", message)
            }
            Status::NotYet => {
                let message = format!("`{}` is not executed yet", field.name);
                (Severity::Warning, "not-executed", message)
            }
        };
        self.report
            .add_key(severity, code, self.origin, path, message, None);
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
            (Kind::Int(min, max), _) => self.whole(value, path, *min, *max),
            (Kind::Number(min, max), _) => match value.as_number() {
                Some(number) if (*min..=*max).contains(&number) => {}
                Some(number) => {
                    let message = format!("{number} is not within {min} and {max}");
                    self.report.error("bad-value", self.origin, path, message);
                }
                None => self.wrong(path, "a number", value),
            },
            (Kind::Duration(length), Node::Text(text)) => {
                let fault = match duration(text) {
                    Ok(value) => length.fault(value).map(str::to_owned),
                    Err(reason) => Some(reason),
                };
                if let Some(fault) = fault {
                    self.report.error("bad-duration", self.origin, path, fault);
                }
            }
            (Kind::Duration(_), _) => self.wrong(path, "a duration such as 10s or 1h30m", value),
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
    let mut ends = text.char_indices().skip(77).map(|(at, _)| at);
    match (ends.next(), ends.nth(2)) {
        (Some(end), Some(_)) => format!("{}...", text.get(..end).unwrap_or("")),
        _ => text.to_owned(),
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
    fn the_paths_are_those_of_the_crds() {
        let Some(corpus) = crate::tests::corpus() else {
            return;
        };
        let text = std::fs::read_to_string(corpus.join("crd/fields.json")).unwrap();
        let table: serde_json::Value = serde_json::from_str(&text).unwrap();
        let of_crds: HashSet<String> = table["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                format!(
                    "{} {}",
                    row["kind"].as_str().unwrap(),
                    row["path"].as_str().unwrap()
                )
            })
            .collect();
        let listed = fields();
        let ours: HashSet<String> = listed
            .iter()
            .map(|field| format!("{} {}", field.kind, field.path))
            .collect();
        assert_eq!((ours.len(), of_crds.len()), (listed.len(), 649));
        let missing: Vec<_> = of_crds.difference(&ours).collect();
        let more: Vec<_> = ours.difference(&of_crds).collect();
        assert!(missing.is_empty(), "not typed: {missing:#?}");
        assert!(more.is_empty(), "in no CRD: {more:#?}");
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
