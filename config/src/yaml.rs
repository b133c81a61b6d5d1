//! YAML and JSON: from the text of a file to trees of values, and from a path in a tree back to line and column.
//!
//! This is the only user of `serde_yaml`. A file is split into its `---` documents before anything is parsed, so
//! that a syntax error ends its own document only. Size, nesting and alias expansion are fenced before or while
//! parsing. Positions are found only when somebody asks: [`Positions::new`] reads the document once more and notes
//! where every key and value stands.

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

/// Largest document in bytes. Etcd holds objects up to 1.5 MiB.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Deepest nesting of lists and maps. The Istio resources need about 15.
pub(crate) const DEPTH_MAX: usize = 64;
/// Most values of one document, each alias counted as what it stands for.
const NODES_MAX: usize = 1_000_000;
/// Most bytes of text of one document, each alias counted as what it stands for.
const TEXT_BYTES_MAX: usize = 4 * DOCUMENT_BYTES_MAX;
/// Bytes of paths that the parser may format while positions are looked for: see [`Positions`].
const LOCATE_BYTES_MAX: usize = 256 << 20;

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

    /// The entries of a map; none for anything else.
    pub(crate) fn entries(&self) -> &[(String, Node)] {
        match self {
            Self::Map(entries) => entries,
            _ => &[],
        }
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
        self.list(name)
            .iter()
            .filter_map(|node| node.as_text().map(str::to_owned))
            .collect()
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
    if !written.contains('_') {
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
#[derive(Debug, Clone, Copy)]
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
                    let plain = name
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                    match (plain, at) {
                        (true, 0) => f.write_str(name)?,
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
    /// Its value.
    pub(crate) node: Node,
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
}

/// A part of a file between `---` lines.
struct Chunk<'a> {
    text: &'a str,
    line: usize,
    column: usize,
}

/// Reads all documents of a file. Documents that cannot be read are missing and reported; the others are there.
pub(crate) fn read<'a>(text: &'a str, lenient: bool) -> (Vec<Document<'a>>, Vec<SyntaxError>) {
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    for chunk in split(text) {
        let Chunk { text, line, column } = chunk;
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
            });
            continue;
        }
        match parse(text) {
            Ok(node) => documents.push(Document {
                text: Cow::Borrowed(text),
                line,
                column,
                node,
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
                            node,
                        })
                    }
                    _ => None,
                };
                let is_repaired = repaired.is_some();
                documents.extend(repaired);
                let file_column = |at_line: usize, at: usize| if at_line == 0 { at + column } else { at } + 1;
                match here {
                    // All of them at once, so that one run of the editor suffices.
                    Some(_) => errors.extend(stars.iter().map(|star| SyntaxError {
                        code: "unquoted-wildcard",
                        line: line + star.line + 1,
                        column: file_column(star.line, star.column),
                        message: format!("`{}` is not quoted: YAML reads a star as an alias", star.token),
                        help: Some(format!("quote it: \"{}\"", star.token)),
                        repaired: is_repaired,
                    })),
                    None => errors.push(SyntaxError {
                        code: fault.code,
                        line: line + fault.line + 1,
                        column: file_column(fault.line, fault.column),
                        message: fault.message,
                        help: None,
                        repaired: false,
                    }),
                }
            }
        }
    }
    (documents, errors)
}

/// Splits a file at its `---` and `...` lines. No YAML content can look like one (YAML 1.2, 9.1.2).
fn split(text: &str) -> Vec<Chunk<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
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
            });
            (chunk_start, chunk_line, chunk_column) = (at + 3, number, 3);
        }
        at += line.len();
    }
    chunks.push(Chunk {
        text: text.get(chunk_start..).unwrap_or(""),
        line: chunk_line,
        column: chunk_column,
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
    seed.deserialize(serde_yaml::Deserializer::from_str(text))
        .or_else(|error| {
            // JSON may say what YAML 1.1 cannot read, such as surrogate pairs.
            if text.trim_start().starts_with(['{', '[']) {
                budget.nodes.set(NODES_MAX);
                budget.text.set(TEXT_BYTES_MAX);
                let mut json = serde_json::Deserializer::from_str(text);
                if let Ok(node) = seed.deserialize(&mut json)
                    && json.end().is_ok()
                {
                    return Ok(node);
                }
            }
            let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            Err(Fault {
                code: "syntax",
                line: line.saturating_sub(1),
                column: column.saturating_sub(1),
                message,
            })
        })
}

/// Looks for nesting that the parser would take quadratic time for: flow brackets, and dashes on one line. Returns
/// the place where it becomes too deep. Quoted text, comments and block scalars do not count.
fn too_deep(text: &str) -> Option<(usize, usize)> {
    let mut depth = 0usize;
    let mut quote: Option<char> = None;
    let mut block: Option<usize> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start_matches(' ').len();
        if let Some(parent) = block {
            if line.trim().is_empty() || indent > parent {
                continue;
            }
            block = None;
        }
        if quote.is_none() && depth == 0 {
            let mut rest = line.trim_start();
            let mut dashes = 0;
            while let Some(next) = rest.strip_prefix("- ").or_else(|| rest.strip_prefix("? ")) {
                rest = next.trim_start();
                dashes += 1;
                if dashes > DEPTH_MAX {
                    return Some((number, indent));
                }
            }
        }
        let mut before = ' ';
        let mut characters = line.chars().enumerate().peekable();
        while let Some((column, character)) = characters.next() {
            match (quote, character) {
                (Some('"'), '\\') => {
                    characters.next();
                }
                (Some(open), _) if open == character => quote = None,
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if starts_token(before) => quote = Some(character),
                (None, '[' | '{') if depth > 0 || starts_token(before) => {
                    depth += 1;
                    if depth > DEPTH_MAX {
                        return Some((number, column));
                    }
                }
                (None, ']' | '}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            before = character;
        }
        if quote.is_none() && depth == 0 {
            let content = line.split(" #").next().unwrap_or("").trim_end();
            let indicator =
                content.trim_end_matches(['+', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
            if indicator.ends_with([' ', '|', '>']) && indicator.trim_end().ends_with([':', '-', '|', '>']) {
                let scalar = indicator
                    .strip_suffix('|')
                    .or_else(|| indicator.strip_suffix('>'));
                if scalar.is_some_and(|head| head.ends_with(' ') || head.is_empty()) {
                    block = Some(indent);
                }
            }
        }
    }
    None
}

fn starts_token(before: char) -> bool {
    before.is_whitespace() || matches!(before, '[' | '{' | ',' | ':')
}

/// A host with a star that should have been quoted.
struct Star<'a> {
    line: usize,
    column: usize,
    start: usize,
    token: &'a str,
}

/// The values of a document that begin with a star and are no aliases: `- *.foo.com`, `host: *`.
fn unquoted_stars(text: &str) -> Vec<Star<'_>> {
    let mut stars = Vec::new();
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let start = match line.find(": *") {
            Some(colon) => Some(colon + 2),
            None => line
                .find("- *")
                .filter(|dash| line.get(..*dash).is_some_and(|head| head.trim().is_empty()))
                .map(|dash| dash + 2),
        };
        if let Some(start) = start {
            let rest = line.get(start..).unwrap_or("");
            let token = rest.split(" #").next().unwrap_or("").trim_end();
            let alias = token.get(1..).is_some_and(|name| {
                !name.is_empty()
                    && name
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            });
            if !alias && !token.contains(['"', '\'']) {
                let column = line.get(..start).unwrap_or("").chars().count();
                stars.push(Star {
                    line: number,
                    column,
                    start: at + start,
                    token,
                });
            }
        }
        at += line.len();
    }
    stars
}

fn quote_stars(text: &str, stars: &[Star<'_>]) -> String {
    let mut out = String::with_capacity(text.len() + 2 * stars.len());
    let mut at = 0;
    for star in stars {
        let end = star.start + star.token.len();
        out.push_str(text.get(at..star.start).unwrap_or(""));
        out.push('"');
        out.push_str(star.token);
        out.push('"');
        at = end;
    }
    out.push_str(text.get(at..).unwrap_or(""));
    out
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

/// Line and column in a document, from 0.
pub(crate) type Position = (usize, usize);

/// Where every key and value of a document stands: a tree of the same shape.
///
/// The parser tells positions only in its errors. So the document is read once more by a visitor that refuses every
/// scalar, takes the position out of the refusal, and goes on with the next: the parser has moved past a scalar
/// before it is refused. An error also carries its path as text, whose bytes are counted, so that hostile keys
/// cannot make this slow: when too many have been formatted, the rest of the document has no positions.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    key: Option<Position>,
    value: Option<Position>,
    children: Vec<(String, Positions)>,
}

impl Positions {
    pub(crate) fn new(text: &str) -> Self {
        let budget = Cell::new(LOCATE_BYTES_MAX);
        let found = Locate(&budget).deserialize(serde_yaml::Deserializer::from_str(text));
        found.unwrap_or_default()
    }

    /// The place of a value, or of its key; when it is not there, of the nearest thing around it.
    pub(crate) fn find(&self, path: &Path<'_>, of_key: bool) -> Option<Position> {
        let mut at = self;
        let mut best = self.first();
        let mut missing = false;
        for step in path.steps() {
            let child = match step {
                Path::Root => continue,
                Path::Key(_, name) => at.children.iter().find(|(key, _)| same_name(key, name)),
                Path::Index(_, index) | Path::Entry(_, index, _) => at.children.get(index),
            };
            let Some((_, child)) = child else {
                missing = true;
                break;
            };
            at = child;
            best = at.key.or_else(|| at.first()).or(best);
        }
        if of_key || missing {
            best
        } else {
            at.value.or(best)
        }
    }

    /// The positions inside an item of a list.
    pub(crate) fn inside(&self, list: &str, item: usize) -> Option<&Self> {
        let (_, list) = self.children.iter().find(|(key, _)| key == list)?;
        list.children.get(item).map(|(_, item)| item)
    }

    /// The first thing in it that has a place.
    fn first(&self) -> Option<Position> {
        let mut at = self;
        loop {
            if let Some(found) = at.key.or(at.value) {
                return Some(found);
            }
            at = &at.children.first()?.1;
        }
    }
}

/// Marks the refusals of [`Locate`] apart from the parser's own errors.
const REFUSED: &str = "\u{1}refused";

#[derive(Clone, Copy)]
struct Locate<'b>(&'b Cell<usize>);

impl Locate<'_> {
    /// The position in a refusal; None for any other error.
    fn position<E: fmt::Display>(&self, error: &E) -> Option<Position> {
        let text = error.to_string();
        self.0.set(self.0.get().saturating_sub(text.len()));
        let (_, place) = text.rsplit_once(REFUSED)?;
        let mut numbers = place
            .split(|c: char| !c.is_ascii_digit())
            .filter(|part| !part.is_empty());
        let mut next = || {
            numbers
                .next()
                .and_then(|digits| digits.parse::<usize>().ok())
                .map_or(0, |n| n.saturating_sub(1))
        };
        Some((next(), next()))
    }

    fn exhausted(&self) -> bool {
        self.0.get() == 0
    }

    /// Settles what a refused scalar or an accepted container says about a child.
    fn child<E: fmt::Display>(&self, result: Result<Positions, E>) -> Result<Positions, E> {
        match result {
            Ok(container) => Ok(container),
            Err(error) => match self.position(&error) {
                Some(position) => Ok(Positions {
                    value: Some(position),
                    ..Positions::default()
                }),
                None => Err(error),
            },
        }
    }
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = Positions;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Positions, D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! refuse {
    ($($visit:ident $type:ty),*) => {$(
        fn $visit<E: serde::de::Error>(self, _: $type) -> Result<Positions, E> {
            Err(E::custom(REFUSED))
        }
    )*};
}

/// Notes the text of a key and refuses it.
struct LocateKey<'b>(&'b Cell<Option<String>>);

macro_rules! refuse_key {
    ($($visit:ident $type:ty),*) => {$(
        fn $visit<E: serde::de::Error>(self, key: $type) -> Result<IgnoredAny, E> {
            self.0.set(Some(key.to_string()));
            Err(E::custom(REFUSED))
        }
    )*};
}

impl<'de> DeserializeSeed<'de> for LocateKey<'_> {
    type Value = IgnoredAny;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<IgnoredAny, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for LocateKey<'_> {
    type Value = IgnoredAny;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    refuse_key!(visit_bool bool, visit_i64 i64, visit_u64 u64, visit_i128 i128, visit_u128 u128, visit_f64 f64, visit_str &str);

    fn visit_unit<E: serde::de::Error>(self) -> Result<IgnoredAny, E> {
        self.0.set(Some("null".to_owned()));
        Err(E::custom(REFUSED))
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = Positions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    refuse!(visit_bool bool, visit_i64 i64, visit_u64 u64, visit_i128 i128, visit_u128 u128, visit_f64 f64, visit_str &str);

    fn visit_unit<E: serde::de::Error>(self) -> Result<Positions, E> {
        Err(E::custom(REFUSED))
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Positions, E> {
        Err(E::custom(REFUSED))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Positions, A::Error> {
        let mut found = Positions::default();
        loop {
            if self.exhausted() {
                while access.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(found);
            }
            let item = match access.next_element_seed(self) {
                Ok(None) => return Ok(found),
                Ok(Some(container)) => container,
                Err(error) => self.child(Err(error))?,
            };
            found.children.push((String::new(), item));
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Positions, A::Error> {
        let mut found = Positions::default();
        loop {
            if self.exhausted() {
                while access.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(found);
            }
            let name = Cell::new(None);
            let key = match access.next_key_seed(LocateKey(&name)) {
                Ok(None) => return Ok(found),
                Ok(Some(_)) => None,
                Err(error) => match self.position(&error) {
                    Some(position) => Some(position),
                    None => return Err(error),
                },
            };
            let value = self.child(access.next_value_seed(self))?;
            found
                .children
                .push((name.take().unwrap_or_default(), Positions { key, ..value }));
        }
    }
}
