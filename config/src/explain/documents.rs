//! The documents behind a snapshot, opened again when somebody asks what was written in them, and where.

use super::{ValueOrigin, ValueShown};
use crate::Source;
use crate::origins::{Origins, Place};
use crate::report::{Opened, Origin};
use crate::resource::schema::is_not_executed;
use crate::yaml::{Node, Path};
use std::collections::HashMap;

/// Most values of one rule or policy that are shown.
const VALUES_MAX: usize = 200;
/// Most characters of a value that are shown.
const VALUE_CHARS_MAX: usize = 200;

/// See the module. Each document is read once.
pub(super) struct Documents<'a> {
    origins: &'a Origins,
    sources: &'a [Source],
    opened: HashMap<usize, Option<Opened>>,
}

/// A resource: its document, and its position there when that is a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) document: usize,
    pub(super) item: Option<usize>,
}

impl From<&Origin> for At {
    fn from(origin: &Origin) -> Self {
        Self {
            document: origin.document,
            item: origin.item,
        }
    }
}

impl<'a> Documents<'a> {
    pub(super) fn new(origins: &'a Origins, sources: &'a [Source]) -> Self {
        Self {
            origins,
            sources,
            opened: HashMap::new(),
        }
    }

    fn open(&mut self, document: usize) -> Option<(&'a Source, &Opened)> {
        let place = self.origins.documents.get(document)?;
        let source = self.sources.get(place.source)?;
        let opened = self
            .opened
            .entry(document)
            .or_insert_with(|| place.open(&source.text));
        Some((source, opened.as_ref()?))
    }

    /// Where a path is written, or the nearest thing around it.
    pub(super) fn place(&mut self, at: At, path: &Path<'_>) -> Option<Place> {
        let (source, opened) = self.open(at.document)?;
        let (line, column) = opened.locate(at.item, path);
        Some(Place {
            file: source.name.clone(),
            line,
            column,
        })
    }

    /// What is written at a path.
    pub(super) fn node(&mut self, at: At, path: &Path<'_>) -> Option<&Node> {
        let (_, opened) = self.open(at.document)?;
        let resource = match at.item {
            Some(item) => opened.node.list("items").get(item)?,
            None => &opened.node,
        };
        resource.at(path)
    }

    /// `Kind namespace/name` of a resource.
    pub(super) fn resource(&mut self, at: At) -> String {
        let metadata = Path::Root.key("metadata");
        let text = |node: Option<&Node>| node.and_then(Node::as_text).map(str::to_owned);
        let kind = text(self.node(at, &Path::Root.key("kind"))).unwrap_or_default();
        let name = text(self.node(at, &metadata.key("name"))).unwrap_or_default();
        let namespace = text(self.node(at, &metadata.key("namespace")));
        let namespace = namespace.unwrap_or_else(|| crate::resource::DEFAULT_NAMESPACE.to_owned());
        format!("{kind} {namespace}/{name}")
    }

    /// Every value below a path, each with its place. `name` is what the path itself is called, `field` the same as the
    /// schema of `kind` spells it.
    pub(super) fn values(
        &mut self,
        at: At,
        path: &Path<'_>,
        (name, kind, field): (&str, &str, &str),
        out: &mut Vec<ValueShown>,
    ) {
        let Some(node) = self.node(at, path).cloned() else {
            return;
        };
        let mut found = Found {
            documents: self,
            at,
            kind,
            out,
        };
        found.add(&node, path, name, field);
    }
}

struct Found<'d, 'a, 'o> {
    documents: &'d mut Documents<'a>,
    at: At,
    kind: &'d str,
    out: &'o mut Vec<ValueShown>,
}

impl Found<'_, '_, '_> {
    fn add(&mut self, node: &Node, path: &Path<'_>, name: &str, field: &str) {
        match node {
            Node::Null => {}
            Node::Map(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    // Where one key is there twice, the first counts.
                    let path = path.key(key);
                    self.add(value, &path, &format!("{name}.{key}"), &format!("{field}.{key}"));
                }
            }
            Node::List(items)
                if items
                    .iter()
                    .any(|item| matches!(item, Node::Map(_) | Node::List(_))) =>
            {
                for (at, item) in items.iter().enumerate() {
                    self.add(
                        item,
                        &path.index(at),
                        &format!("{name}[{at}]"),
                        &format!("{field}[]"),
                    );
                }
            }
            scalar => {
                if self.out.len() >= VALUES_MAX {
                    return;
                }
                let Some(place) = self.documents.place(self.at, path) else {
                    return;
                };
                self.out.push(ValueShown {
                    name: name.to_owned(),
                    value: written(scalar),
                    origin: ValueOrigin::Written(place),
                    executed: !is_not_executed(self.kind, field),
                });
            }
        }
    }
}

/// A scalar, or a list of scalars, in one line.
pub(super) fn written(node: &Node) -> String {
    let text = match node {
        Node::Null => String::new(),
        Node::Bool(flag) => flag.to_string(),
        Node::Int(number) => number.to_string(),
        Node::Float(number) => number.to_string(),
        Node::Text(text) if text.is_empty() || text.contains(char::is_control) => format!("{text:?}"),
        Node::Text(text) => text.clone(),
        Node::List(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Node::Map(entries) => {
            let pair = |(key, value): &(String, Node)| format!("{key}: {}", written(value));
            format!("{{{}}}", entries.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    };
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or("")),
        None => text,
    }
}
