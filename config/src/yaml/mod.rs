//! YAML and JSON: from the text of a file to trees of values, and from a path in a tree back to line and column.
//!
//! This is the only user of `serde_yaml`. A file is split into its `---` documents before anything is parsed, so
//! that a syntax error ends its own document only. Size, nesting and alias expansion are fenced before or while
//! parsing. Positions are found only when somebody asks: [`Positions::new`] reads the document once more and notes
//! where every key and value stands.

mod fence;
mod positions;

pub(crate) use positions::{Position, Positions};

use crate::cache::{Cache, Known};
use fence::{quote_stars, too_deep, unquoted_stars};
use positions::Lines;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Largest document in bytes. Etcd holds objects up to 1.5 MiB.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of lists and maps. The Istio resources need about 15.
pub(crate) const DEPTH_MAX: usize = 64;
/// Most values of one document, each alias counted as what it stands for.
const NODES_MAX: usize = 1_000_000;
/// Most bytes of text of one document, each alias counted as what it stands for.
const TEXT_BYTES_MAX: usize = 4 * DOCUMENT_BYTES_MAX;
/// Most documents of one file. 100,000 routes, each in a document of its own, must fit.
const DOCUMENTS_MAX: usize = 200_000;
/// Most unquoted stars of one document that are told.
const STARS_TOLD_MAX: usize = 200;

/// A value of a document. Maps keep their order, and keys that are written twice stay there twice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The value of a key of a map, whichever way it is spelled; None when it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        let found = self
            .entries()
            .iter()
            .find(|(key, _)| same_name(key, name))
            .map(|(_, value)| value);
        found.filter(|value| **value != Node::Null)
    }

    /// The value of a key, to change it.
    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        match self {
            Self::Map(entries) => entries
                .iter_mut()
                .find(|(key, _)| same_name(key, name))
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The items of a list of a key, to change them.
    pub(crate) fn list_mut(&mut self, name: &str) -> &mut [Node] {
        match self.get_mut(name) {
            Some(Self::List(items)) => items,
            _ => &mut [],
        }
    }

    /// The entries of a map; none for anything else.
    pub(crate) fn entries(&self) -> &[(String, Node)] {
        match self {
            Self::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The value that a path names; None when it is absent or null.
    pub(crate) fn at(&self, path: &Path<'_>) -> Option<&Node> {
        let found = path.steps().into_iter().try_fold(self, |node, step| match step {
            Path::Root => Some(node),
            Path::Key(_, name) => node.get(name),
            Path::Index(_, at) => node.items().get(at),
            Path::Entry(_, at, _) => node.entries().get(at).map(|(_, value)| value),
        });
        found.filter(|value| **value != Node::Null)
    }

    /// The items of a list; none for anything else.
    pub(crate) fn items(&self) -> &[Node] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number, also one that is written as text, as jsonpb takes it.
    pub(crate) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i128),
            Self::Text(text) if text.len() < 32 => text.parse().ok(),
            _ => None,
        }
    }

    /// A number, also one that is written as text.
    pub(crate) fn as_number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Text(text) if text.len() < 32 => {
                text.parse().ok().filter(|number: &f64| number.is_finite())
            }
            _ => None,
        }
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Self::as_text)
    }

    pub(crate) fn int(&self, name: &str) -> Option<i128> {
        self.get(name).and_then(Self::as_int)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name) == Some(&Node::Bool(true))
    }

    /// The items of a list of a key; none when it is absent.
    pub(crate) fn list(&self, name: &str) -> &[Node] {
        self.get(name).map_or(&[], Self::items)
    }

    /// The texts of a list of a key.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let texts = self.list(name).iter().filter_map(Self::as_text);
        crate::tight(texts.map(str::to_owned))
    }

    /// The map of texts of a key.
    pub(crate) fn text_map(&self, name: &str) -> std::collections::BTreeMap<String, String> {
        let entries = self.get(name).map_or(&[][..], Self::entries);
        entries
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.as_text()?.to_owned())))
            .collect()
    }

    /// What it is, in words.
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Whether a written key is the field `name`: the same, or its snake_case spelling (jsonpb takes both).
pub(crate) fn same_name(written: &str, name: &str) -> bool {
    if written == name {
        return true;
    }
    // Underscores stand between words, and a spelling with them has no capitals.
    let words = !written.contains("__") && !written.starts_with('_') && !written.ends_with('_');
    if !words || !written.contains('_') || written.contains(|c: char| c.is_ascii_uppercase()) {
        return false;
    }
    let mut upper = false;
    let mut expected = name.chars();
    for character in written.chars() {
        if character == '_' {
            upper = true;
            continue;
        }
        let character = if std::mem::take(&mut upper) {
            character.to_ascii_uppercase()
        } else {
            character
        };
        if expected.next() != Some(character) {
            return false;
        }
    }
    expected.next().is_none()
}

/// A path in a document, built on the stack while it is walked.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) enum Path<'a> {
    /// The document.
    Root,
    /// A field.
    Key(&'a Path<'a>, &'a str),
    /// An item of a list.
    Index(&'a Path<'a>, usize),
    /// The n-th entry of a map, when its key is not unique.
    Entry(&'a Path<'a>, usize, &'a str),
}

impl<'a> Path<'a> {
    pub(crate) const SPEC: Self = Self::Key(&Path::Root, "spec");
    pub(crate) const ANNOTATIONS: Self = Self::Key(&Path::Key(&Path::Root, "metadata"), "annotations");

    pub(crate) fn key(&'a self, name: &'a str) -> Self {
        Self::Key(self, name)
    }

    pub(crate) fn index(&'a self, index: usize) -> Self {
        Self::Index(self, index)
    }

    fn steps(&self) -> Vec<Path<'a>> {
        let mut steps = Vec::new();
        let mut at = *self;
        loop {
            let parent = match at {
                Path::Root => break,
                Path::Key(parent, _) | Path::Index(parent, _) | Path::Entry(parent, ..) => parent,
            };
            steps.push(at);
            at = *parent;
        }
        steps.reverse();
        steps
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps().iter().enumerate() {
            match step {
                Path::Root => {}
                Path::Key(_, name) | Path::Entry(_, _, name) => {
                    // As long as a document, a key would fill the screen once per problem.
                    let name = crate::resource::schema::shortened(name);
                    let plain = name
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                    match (plain, at) {
                        (true, 0) => f.write_str(&name)?,
                        (true, _) => write!(f, ".{name}")?,
                        (false, _) => write!(f, "[{name}]")?,
                    }
                }
                Path::Index(_, index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// One `---` document of a file.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    /// What was parsed: the file's own bytes, unless they had to be repaired.
    pub(crate) text: Cow<'a, str>,
    /// Lines of the file before it.
    pub(crate) line: usize,
    /// Characters of its first line before it.
    pub(crate) column: usize,
    /// Bytes of the file that it takes.
    pub(crate) span: Range<usize>,
    /// Its value; nothing when it is known.
    pub(crate) node: Node,
    /// What is known of it from before.
    pub(crate) known: Option<Arc<Known>>,
}

/// Why a document could not be read, and where (in the file, from 1).
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) code: &'static str,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// Whether the document was repaired and is there all the same.
    pub(crate) repaired: bool,
    /// Bytes of the file that the document takes.
    pub(crate) span: Range<usize>,
}

/// A part of a file between `---` lines.
struct Chunk<'a> {
    text: &'a str,
    line: usize,
    column: usize,
    /// Where it begins in the file, in bytes.
    start: usize,
}

/// The document of a file that begins behind a line and column.
pub(crate) fn document_at(text: &str, line: usize, column: usize) -> Option<&str> {
    split(text)
        .into_iter()
        .find(|chunk| (chunk.line, chunk.column) == (line, column))
        .map(|chunk| chunk.text)
}

/// Reads all documents of a file. Documents that cannot be read are missing and reported; the others are there.
pub(crate) fn read(file: &str, lenient: bool) -> (Vec<Document<'_>>, Vec<SyntaxError>) {
    read_chunks(file, lenient, |_| None)
}

/// The value of a document that has been read before.
pub(crate) fn read_again(text: &str) -> Node {
    parse(text).unwrap_or(Node::Null)
}

/// The same, without reading what is known.
pub(crate) fn read_unknown<'a>(
    file: &'a Arc<str>,
    lenient: bool,
    cache: &mut Cache,
) -> (Vec<Document<'a>>, Vec<SyntaxError>) {
    let Some(known) = cache.file(file) else {
        return read_chunks(file, lenient, |span| cache.document(file, span));
    };
    let documents = known.iter().map(|document| Document {
        text: Cow::Borrowed(file.get(document.span.clone()).unwrap_or("")),
        line: document.start.0,
        column: document.start.1,
        span: document.span.clone(),
        node: Node::Null,
        known: Some(Arc::clone(&document.known)),
    });
    (documents.collect(), Vec::new())
}

/// Reads what is not known of a file.
fn read_chunks(
    file: &str,
    lenient: bool,
    mut known: impl FnMut(Range<usize>) -> Option<Arc<Known>>,
) -> (Vec<Document<'_>>, Vec<SyntaxError>) {
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    for (number, chunk) in split(file).into_iter().enumerate() {
        let Chunk {
            text,
            line,
            column,
            start,
        } = chunk;
        let span = start..start + text.len();
        if number == DOCUMENTS_MAX {
            errors.push(SyntaxError {
                code: "too-many",
                line: line + 1,
                column: column + 1,
                message: format!("a file has at most {DOCUMENTS_MAX} documents: the rest is not read"),
                help: None,
                repaired: false,
                span: start..file.len(),
            });
            break;
        }
        if text.len() > DOCUMENT_BYTES_MAX {
            errors.push(SyntaxError {
                code: "too-large",
                line: line + 1,
                column: column + 1,
                message: format!(
                    "the document has {} bytes; {DOCUMENT_BYTES_MAX} are allowed",
                    text.len()
                ),
                help: None,
                repaired: false,
                span,
            });
            continue;
        }
        if let Some(known) = known(span.clone()) {
            documents.push(Document {
                text: Cow::Borrowed(text),
                line,
                column,
                span,
                node: Node::Null,
                known: Some(known),
            });
            continue;
        }
        match parse(text) {
            Ok(node) => documents.push(Document {
                text: Cow::Borrowed(text),
                line,
                column,
                span,
                node,
                known: None,
            }),
            Err(fault) => {
                let stars = unquoted_stars(text);
                let here = stars.iter().find(|star| star.line == fault.line);
                let repaired = match here {
                    Some(_) if lenient => {
                        let text = quote_stars(text, &stars);
                        parse(&text).ok().map(|node| Document {
                            text: Cow::Owned(text),
                            line,
                            column,
                            span: span.clone(),
                            node,
                            known: None,
                        })
                    }
                    _ => None,
                };
                let is_repaired = repaired.is_some();
                documents.extend(repaired);
                let file_column = |at_line: usize, at: usize| if at_line == 0 { at + column } else { at } + 1;
                match here {
                    // All of them at once, so that one run of the editor suffices.
                    Some(_) => errors.extend(stars.iter().take(STARS_TOLD_MAX).map(|star| SyntaxError {
                        code: "unquoted-wildcard",
                        line: line + star.line + 1,
                        column: file_column(star.line, star.column),
                        message: format!("`{}` is not quoted: YAML reads a star as an alias", star.token),
                        help: Some(format!("quote it: \"{}\"", star.token)),
                        repaired: is_repaired,
                        span: span.clone(),
                    })),
                    None => errors.push(SyntaxError {
                        code: fault.code,
                        line: line + fault.line + 1,
                        column: file_column(fault.line, fault.column),
                        message: fault.message,
                        help: None,
                        repaired: false,
                        span,
                    }),
                }
            }
        }
    }
    (documents, errors)
}

/// Splits a file at its `---` and `...` lines. No YAML content can look like one (YAML 1.2, 9.1.2).
fn split(file: &str) -> Vec<Chunk<'_>> {
    let text = file.strip_prefix('\u{feff}').unwrap_or(file);
    let skipped = file.len() - text.len();
    let mut chunks = Vec::new();
    let mut chunk_start = 0;
    let (mut chunk_line, mut chunk_column) = (0, 0);
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.get(..3).filter(|marker| matches!(*marker, "---" | "..."));
        let alone = line.as_bytes().get(3).is_none_or(u8::is_ascii_whitespace);
        if marker.is_some() && alone {
            chunks.push(Chunk {
                text: text.get(chunk_start..at).unwrap_or(""),
                line: chunk_line,
                column: chunk_column,
                start: skipped + chunk_start,
            });
            (chunk_start, chunk_line, chunk_column) = (at + 3, number, 3);
        }
        at += line.len();
    }
    chunks.push(Chunk {
        text: text.get(chunk_start..).unwrap_or(""),
        line: chunk_line,
        column: chunk_column,
        start: skipped + chunk_start,
    });
    // What holds only comments and directives is no document.
    chunks.retain(|chunk| {
        let mut lines = chunk.text.lines().map(str::trim_start);
        lines.any(|line| !(line.is_empty() || line.starts_with('#') || line.starts_with('%')))
    });
    chunks
}

/// Why and where (from 0, in the document) parsing failed.
struct Fault {
    code: &'static str,
    line: usize,
    column: usize,
    message: String,
}

/// The only door to the parser. A document must have passed [`too_deep`] before.
fn parser(text: &str) -> serde_yaml::Deserializer<'_> {
    #[cfg(test)]
    work::parsed(text);
    serde_yaml::Deserializer::from_str(text)
}

fn parse(text: &str) -> Result<Node, Fault> {
    if let Some((line, column)) = too_deep(text) {
        let message = format!("more than {DEPTH_MAX} lists and maps inside each other");
        return Err(Fault {
            code: "too-deep",
            line,
            column,
            message,
        });
    }
    let budget = Budget {
        nodes: Cell::new(NODES_MAX),
        text: Cell::new(TEXT_BYTES_MAX),
    };
    let seed = Build {
        budget: &budget,
        depth: 0,
    };
    seed.deserialize(parser(text)).or_else(|error| {
        // JSON may say what YAML 1.1 cannot read, such as surrogate pairs.
        if text.trim_start().starts_with(['{', '[']) {
            budget.nodes.set(NODES_MAX);
            budget.text.set(TEXT_BYTES_MAX);
            #[cfg(test)]
            work::parsed(text);
            let mut json = serde_json::Deserializer::from_str(text);
            if let Ok(node) = seed.deserialize(&mut json)
                && json.end().is_ok()
            {
                return Ok(node);
            }
        }
        let place = error.location().map_or((0, 0), |at| {
            (at.line().saturating_sub(1), at.column().saturating_sub(1))
        });
        let (line, column) = Lines::of(text).map_or(place, |lines| lines.translate(place));
        if let Some(place) = not_text(text) {
            return Err(place);
        }
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        Err(Fault {
            code: "syntax",
            line,
            column,
            message,
        })
    })
}

/// The fault of a document that has what is no text in it: parsers say of it where they have noticed, and little more.
fn not_text(text: &str) -> Option<Fault> {
    let at = text.find(crate::files::NOT_UTF8)?;
    let before = text.get(..at)?;
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count());
    let message = format!(
        "a byte that is not UTF-8, or the control character 1 (byte {at} of the document): save the file as UTF-8, such as \
         with `iconv -f LATIN1 -t UTF-8`"
    );
    Some(Fault {
        code: "syntax",
        line,
        column,
        message,
    })
}

/// What one document may still take.
struct Budget {
    nodes: Cell<usize>,
    text: Cell<usize>,
}

/// Builds a [`Node`].
#[derive(Clone, Copy)]
struct Build<'b> {
    budget: &'b Budget,
    depth: usize,
}

impl Build<'_> {
    fn spend<E: serde::de::Error>(&self, text: usize) -> Result<(), E> {
        let (nodes, bytes) = (
            self.budget.nodes.get().checked_sub(1),
            self.budget.text.get().checked_sub(text),
        );
        let (Some(nodes), Some(bytes)) = (nodes, bytes) else {
            return Err(E::custom(
                "the document is too large once its aliases are replaced",
            ));
        };
        self.budget.nodes.set(nodes);
        self.budget.text.set(bytes);
        #[cfg(test)]
        work::built(text);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format!(
                "more than {DEPTH_MAX} lists and maps inside each other"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..*self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Node;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a YAML tag")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Int(value.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Int(value.into()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Int(value))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Node, E> {
        self.spend(0)
            .map(|()| Node::Int(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Node, E> {
        self.spend(value.len()).map(|()| Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        self.spend(0)?;
        let inside = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(inside)? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        self.spend(0)?;
        let inside = self.deeper()?;
        let mut entries = Vec::new();
        let mut merged = Vec::new();
        while let Some(key) = access.next_key_seed(inside)? {
            let key = match key {
                Node::Text(text) => text,
                Node::Int(number) => number.to_string(),
                Node::Bool(flag) => flag.to_string(),
                Node::Float(number) => number.to_string(),
                Node::Null => "null".to_owned(),
                Node::List(_) | Node::Map(_) => {
                    return Err(serde::de::Error::custom("a key must be text"));
                }
            };
            let value = access.next_value_seed(inside)?;
            match (key.as_str(), value) {
                ("<<", Node::Map(base)) => merged.extend(base),
                (_, value) => entries.push((key, value)),
            }
        }
        if !merged.is_empty() {
            // The merge key of YAML 1.1: what is written here wins over what is merged in.
            let own: std::collections::HashSet<String> = entries.iter().map(|(key, _)| key.clone()).collect();
            entries.extend(merged.into_iter().filter(|(key, _)| !own.contains(key)));
        }
        Ok(Node::Map(entries))
    }
}

/// What reading costs, counted where it is spent, so that tests can bound it without a clock.
#[cfg(test)]
mod work {
    use std::cell::Cell;

    #[derive(Debug, Clone, Copy, Default)]
    pub(super) struct Work {
        /// Bytes that were given to a parser, each time that they were.
        pub(super) parsed: usize,
        /// Values that were built, aliases replaced.
        pub(super) nodes: usize,
        /// Bytes of text in them.
        pub(super) text: usize,
        /// Bytes of paths that were formatted to find positions.
        pub(super) located: usize,
    }

    thread_local! {
        static WORK: Cell<Work> = const { Cell::new(Work { parsed: 0, nodes: 0, text: 0, located: 0 }) };
    }

    fn add(change: impl FnOnce(&mut Work)) {
        let mut work = WORK.get();
        change(&mut work);
        WORK.set(work);
    }

    pub(super) fn parsed(text: &str) {
        add(|work| work.parsed += text.len());
    }

    pub(super) fn built(text: usize) {
        add(|work| (work.nodes, work.text) = (work.nodes + 1, work.text + text));
    }

    pub(super) fn located(bytes: usize) {
        add(|work| work.located += bytes);
    }

    /// What was spent since the last call.
    pub(super) fn take() -> Work {
        WORK.take()
    }
}

#[cfg(test)]
mod tests {
    use super::positions::LOCATE_BYTES_MAX;
    use super::*;

    fn one(text: &str) -> Node {
        let (mut documents, errors) = read(text, false);
        assert!(errors.is_empty(), "{errors:?}");
        documents.remove(0).node
    }

    fn fault(text: &str) -> SyntaxError {
        let (_, mut errors) = read(text, false);
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.remove(0)
    }

    #[test]
    fn a_syntax_error_ends_its_own_document_only() {
        let (documents, errors) = read("# c\n---\na: 1\n---\nb: [\n--- # again\nc: 3\n...\n", false);
        let lines: Vec<usize> = documents.iter().map(|document| document.line).collect();
        assert_eq!(lines, [1, 5]);
        assert_eq!((errors.len(), errors[0].code), (1, "syntax"));
        assert!((4..=6).contains(&errors[0].line), "{errors:?}");
        let (documents, errors) = read("\u{feff}%YAML 1.1\r\n---\r\na: 1\r\n---\r\n", false);
        assert_eq!((documents.len(), errors.len()), (1, 0));
    }

    #[test]
    fn json_is_read_with_its_tabs_and_surrogates() {
        let node = one("{\n\t\"a\": [1, true, null, \"\\ud83d\\ude00\\/\"],\n\t\"b\": {\"c\": 1.5}\n}");
        assert_eq!(node.list("a").len(), 4);
        assert_eq!(node.list("a").last(), Some(&Node::Text("\u{1f600}/".into())));
        assert_eq!(node.get("b").unwrap().get("c"), Some(&Node::Float(1.5)));
    }

    #[test]
    fn fields_are_found_in_both_spellings() {
        let node = one("mirror_percent: 1\nhttp2_max_requests: 2\nx_: 3\n");
        assert_eq!(node.int("mirrorPercent"), Some(1));
        assert_eq!(node.int("http2MaxRequests"), Some(2));
        assert!(!same_name("mirror", "mirrorPercent") && !same_name("mirror_percents", "mirrorPercent"));
        assert_eq!(one("a: \"80\"").int("a"), Some(80));
    }

    #[test]
    fn every_key_and_value_has_its_place() {
        let text = "a:\n  - b: 1\n    c: [x, {d: é, e: y}]\n  -\n    f: |\n      text\n      more\nempty: {}\nq: 'z'\n";
        let positions = Positions::new(text);
        let root = Path::Root;
        let a = root.key("a");
        let (first, second) = (a.index(0), a.index(1));
        let list = first.key("c");
        let map = list.index(1);
        let find = |path: &Path<'_>, of_key| positions.find(path, of_key).unwrap();
        assert_eq!(find(&a, false), (0, 0));
        assert_eq!(find(&first, false), (1, 4));
        assert_eq!(find(&first.key("b"), false), (1, 7));
        assert_eq!(find(&first.key("b"), true), (1, 4));
        assert_eq!(find(&list.index(0), false), (2, 8));
        assert_eq!(find(&map.key("e"), false), (2, 21));
        assert_eq!(find(&second.key("f"), true), (4, 4));
        assert_eq!(find(&root.key("empty"), false), (7, 0));
        assert_eq!(find(&root.key("q"), false), (8, 3));
        // What is not there is shown at what is around it.
        assert_eq!(find(&first.key("missing"), false), (1, 4));
        assert_eq!(find(&root.key("missing"), false), (0, 0));
    }

    #[test]
    fn aliases_and_merge_keys_are_followed_within_bounds() {
        let node = one("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nsame: *b\n");
        assert_eq!(node.get("use").unwrap().int("x"), Some(1));
        assert_eq!(node.get("use").unwrap().int("y"), Some(3));
        assert_eq!(node.get("same").unwrap().int("y"), Some(2));
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let before = format!("*a{}", n - 1);
            text.push_str(&format!("a{n}: &a{n} [{}]\n", [before.as_str(); 10].join(", ")));
        }
        let error = fault(&text);
        assert_eq!(error.code, "syntax");
    }

    #[test]
    fn nesting_and_size_are_fenced_before_parsing() {
        for text in [
            "[".repeat(100_000),
            "- ".repeat(100_000),
            "{a: ".repeat(100_000),
            "? ".repeat(100_000),
        ] {
            assert_eq!(fault(&text).code, "too-deep");
        }
        // Quotes and marks that are none do not hide what follows.
        let deep = "[".repeat(50_000);
        for start in [
            "a: x 'y\nb: ",
            "a: x\n 'y\nb: ",
            "# |\n  b: ",
            "a: b\t# |\n  c: ",
            "a: [b 'c, ",
            "a: [b:'c, ",
            "a: [d\n'e, ",
        ] {
            assert_eq!(fault(&format!("{start}{deep}")).code, "too-deep", "{start}");
        }
        let closed = "[[[[ !t ']]]]' ".repeat(20_000);
        assert_eq!(fault(&format!("a: {closed}")).code, "too-deep");
        let mut indented = String::new();
        for depth in 0..200 {
            indented.push_str(&format!("{}a:\n", " ".repeat(depth)));
        }
        assert_eq!(fault(&indented).code, "syntax");
        assert_eq!(
            fault(&format!("a: {}", "x".repeat(DOCUMENT_BYTES_MAX))).code,
            "too-large"
        );
        // Brackets in text are no nesting.
        let brackets = "[".repeat(200);
        for text in [
            format!("a: '{brackets}'\n"),
            format!("a: \"\\\"{brackets}\"\n"),
            format!("a: x{brackets}\n"),
            format!("# {brackets}\na: 1\n"),
            format!("a: |\n  {brackets}\n"),
            format!("- a: >-\n    {brackets}\n\n    {brackets}\n  b: [1]\n"),
            format!("{{\"a\":\"{brackets}\",\"b\":[\"{brackets}\"]}}\n"),
            format!("a: 'x\n  {brackets}'\nb: !!str '{brackets}'\n'c': \"{brackets}\"\n"),
        ] {
            one(&text);
        }
    }

    #[test]
    fn unquoted_wildcards_are_told_apart_from_aliases() {
        let (documents, errors) = read("---\nhosts:\n- *.foo.com # all\n- *\nhost: *bar.com\n", false);
        assert!(documents.is_empty());
        let places: Vec<_> = errors
            .iter()
            .map(|error| (error.code, error.line, error.column))
            .collect();
        let code = "unquoted-wildcard";
        assert_eq!(places, [(code, 3, 3), (code, 4, 3), (code, 5, 7)]);
        assert_eq!(errors[0].help.as_deref(), Some("quote it: \"*.foo.com\""));
        let (documents, errors) = read("hosts:\n- *.foo.com # all\n- *\n", true);
        assert_eq!(documents[0].node.texts("hosts"), ["*.foo.com", "*"]);
        assert!(errors.iter().all(|error| error.repaired));
        assert_eq!(fault("a: *unknown\n").code, "syntax");
    }

    #[test]
    fn places_are_those_of_an_editor_whatever_ends_a_line() {
        // Strange line ends stand in a comment, in quoted text and before a line feed.
        for strange in ["\r", "\u{85}", "\u{2028}", "\u{2029}"] {
            let text = format!("# a{strange}# b{strange}\nx: 1{strange}y:\n  z: 2\n");
            let (documents, errors) = read(&text, false);
            assert!(errors.is_empty(), "{errors:?}");
            let positions = Positions::new(&documents[0].text);
            let find = |path: &Path<'_>| positions.find(path, true);
            assert_eq!(find(&Path::Root.key("x")), Some((1, 0)), "{strange:?}");
            assert_eq!(find(&Path::Root.key("y")), Some((1, 5)), "{strange:?}");
            assert_eq!(find(&Path::Root.key("y").key("z")), Some((2, 2)), "{strange:?}");
            let text = format!("# a{strange}# b\nx: [1{strange}y: }}\n");
            let error = fault(&text);
            assert_eq!(error.line, 2, "{strange:?}");
        }
    }

    #[test]
    fn unquoted_wildcards_are_found_in_flow_style_too() {
        let text = "hosts: [*]\nothers: [a.b, *.foo.com , \"*\", '*.x']\nlist:\n- {host: *.x.y, to: {*: 1}} # [*.z]\n- - *.é.com\n";
        let (documents, errors) = read(text, false);
        assert!(documents.is_empty());
        let places: Vec<_> = errors
            .iter()
            .map(|error| (error.line, error.column, error.help.as_deref().unwrap_or("")))
            .collect();
        let expected = [
            (1, 9, "quote it: \"*\""),
            (2, 15, "quote it: \"*.foo.com\""),
            (4, 10, "quote it: \"*.x.y\""),
            (4, 22, "quote it: \"*\""),
            (5, 5, "quote it: \"*.é.com\""),
        ];
        assert_eq!(places, expected);
        let (documents, errors) = read(text, true);
        assert!(errors.iter().all(|error| error.repaired));
        assert_eq!(
            documents[0].node.texts("others"),
            ["a.b", "*.foo.com", "*", "*.x"]
        );
        // Aliases, text, comments and block scalars are left alone.
        for text in [
            "a: &x 1\nb: [*x, {c: *x}]\nd: *.e\n",
            "a: x *.y\nb: -*.z\nc: '[*.q]'\nd: *.e\n",
            "a: |\n  - *.y\n  [*.z]\n# - *.q\nd: *.e\n",
        ] {
            let (_, errors) = read(text, false);
            let told: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].starts_with("`*.e`"), "{told:?}");
        }
    }

    /// Reads a text and asks for its positions; what that cost.
    fn cost(text: &str, lenient: bool) -> (work::Work, Vec<SyntaxError>) {
        work::take();
        let (documents, errors) = read(text, lenient);
        let mut work = work::take();
        for document in &documents {
            let _ = Positions::new(&document.text);
        }
        let located = work::take();
        work.parsed += located.parsed;
        work.located = located.located;
        (work, errors)
    }

    #[test]
    fn hostile_nesting_never_reaches_the_parser() {
        let many = |piece: &str| piece.repeat((1 << 20) / piece.len());
        for piece in [
            "[", "{", "- ", "? ", "- - - ", "{a: ", "[[{", "[ ", "- [", "{\"a\":[", "[\n",
        ] {
            for start in ["", "a: ", "- ", "a:\n  b: ", "# x\n---\n"] {
                for lenient in [false, true] {
                    let text = format!("{start}{}", many(piece));
                    let (work, errors) = cost(&text, lenient);
                    let codes: Vec<_> = errors.iter().map(|error| error.code).collect();
                    if start.ends_with(": ") && !piece.contains('[') && piece.starts_with(['-', '?']) {
                        // No list may begin behind a key: the parser stops at the first dash.
                        assert_eq!(codes, ["syntax"], "{piece:?}");
                        assert!(work.nodes <= 4, "{piece:?} {work:?}");
                    } else {
                        assert_eq!(codes, ["too-deep"], "{start:?} {piece:?}");
                        assert_eq!((work.parsed, work.nodes), (0, 0), "{start:?} {piece:?}");
                    }
                }
            }
        }
        // What is wide instead of deep is read once, and once more for its positions.
        for piece in ["[],", "{},", "[[[]]],", "{a: {}},"] {
            let text = format!("a: [{}]\n", many(piece).trim_end_matches(','));
            let (work, errors) = cost(&text, false);
            assert!(errors.is_empty(), "{errors:?}");
            assert!(
                work.parsed <= 2 * text.len() && work.nodes <= text.len(),
                "{work:?}"
            );
        }
    }

    #[test]
    fn hostile_documents_cost_no_more_than_their_share() {
        let bomb = |levels: usize, width: usize| {
            let mut text = "a0: &a0 xxxxxxxxxxxxxxxx\n".to_owned();
            for level in 1..levels {
                let before = format!("*a{},", level - 1).repeat(width);
                text.push_str(&format!(
                    "a{level}: &a{level} [{}]\n",
                    before.trim_end_matches(',')
                ));
            }
            text
        };
        let merges = |count: usize| {
            let base: String = (0..200).map(|at| format!("  k{at}: v\n")).collect();
            let uses: String = (0..count).map(|at| format!("u{at}:\n  <<: *b\n")).collect();
            format!("b: &b\n{base}{uses}")
        };
        let huge = "k".repeat(1 << 20);
        let half = "k".repeat(1 << 19);
        let keyed: String = (0..1_000).map(|at| format!("  a{at}: 1\n")).collect();
        let texts = [
            ("alias bomb", bomb(12, 10)),
            ("wide alias bomb", bomb(4, 3_000)),
            ("deep alias chain", bomb(3_000, 1)),
            ("merge keys", merges(10_000)),
            ("huge key", format!("? {huge}\n: 1\n")),
            ("huge key over many", format!("? {half}\n:\n{keyed}")),
            ("huge key of JSON", format!("{{\"{huge}\": 1}}")),
            ("huge text", format!("a: \"{huge}\"\n")),
            ("one key by the thousand", "a: 1\n".repeat(200_000)),
            ("anchors without end", "- &a 1\n".repeat(150_000)),
            ("unknown aliases", "- *a\n".repeat(200_000)),
            ("unquoted stars", format!("a: [{}*]", "*.a,".repeat(250_000))),
            ("unquoted stars on lines", "- *.a\n".repeat(150_000)),
            ("colons", "a: ".repeat(300_000)),
            ("quotes", "'".repeat(1 << 20)),
            ("open quotes", "\"a\n".repeat(300_000)),
            ("tags", "!".repeat(1 << 20)),
            ("anchors", "&".repeat(1 << 20)),
            ("dashes with tabs", "-\t".repeat(500_000)),
            ("tabs", "\t".repeat(1 << 20)),
            ("block marks", "|\n".repeat(500_000)),
            (
                "steps",
                (0..1_400).map(|at| format!("{}a:\n", " ".repeat(at))).collect(),
            ),
            ("separators", "---\n".repeat(250_000)),
            ("documents", "---\na\n".repeat(150_000)),
            ("percent", "%".repeat(1 << 20)),
            ("nothing", "\0".repeat(1 << 20)),
        ];
        for (name, text) in &texts {
            // Only stars are repaired.
            for lenient in [false, true]
                .into_iter()
                .take(1 + usize::from(name.contains("stars")))
            {
                let (work, errors) = cost(text, lenient);
                // As YAML, repaired, as JSON, and for the positions.
                assert!(work.parsed <= 4 * (text.len() + 2 * 250_000), "{name}: {work:?}");
                assert!(work.nodes <= 2 * NODES_MAX, "{name}: {work:?}");
                assert!(work.text <= 2 * TEXT_BYTES_MAX, "{name}: {work:?}");
                assert!(work.located <= LOCATE_BYTES_MAX, "{name}: {work:?}");
                let told: usize = errors.iter().map(|error| error.message.len()).sum();
                assert!(
                    errors.len() <= text.len() / 4 && told <= 2 * text.len() + 1_000,
                    "{name}"
                );
            }
        }
        let limited = "---\na\n".repeat(DOCUMENTS_MAX + 5);
        let (documents, errors) = read(&limited, false);
        assert_eq!((documents.len(), errors.len()), (DOCUMENTS_MAX, 1));
        assert_eq!(
            (errors[0].code, errors[0].line),
            ("too-many", 2 * DOCUMENTS_MAX + 1)
        );
    }

    #[test]
    fn tags_and_strange_keys_are_refused_not_followed() {
        assert_eq!(fault("a: !thing {b: 1}\n").code, "syntax");
        assert_eq!(fault("? [a]\n: b\n").code, "syntax");
        assert_eq!(one("1: a\ntrue: b\n~: c\n").entries().len(), 3);
    }

    #[test]
    fn any_bytes_are_survived() {
        let pieces = [
            "a", ":", " ", "\n", "-", "[", "]", "{", "}", "*", "&", "'", "\"", "|", "#", "!", "\t", "é",
            "---\n", "<<",
        ];
        let mut state = 7u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
            }
            let (documents, _) = read(&text, state & 1 == 0);
            for document in documents {
                let root = Path::Root;
                let path = root.key("a");
                let _ = Positions::new(&document.text).find(&path.index(0), false);
            }
        }
    }
}
