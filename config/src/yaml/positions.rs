//! From a path in a tree back to the line and column where it was written.

#[cfg(test)]
use super::work;
use super::{Path, parser, same_name};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;

/// Bytes of paths that the parser may format while positions are looked for: see [`Positions`].
pub(super) const LOCATE_BYTES_MAX: usize = 256 << 20;

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
        let found = Locate(&budget).deserialize(parser(text));
        #[cfg(test)]
        work::located(LOCATE_BYTES_MAX - budget.get());
        let mut found = found.unwrap_or_default();
        if let Some(lines) = Lines::of(text) {
            found.translate(&lines);
        }
        found
    }

    fn translate(&mut self, lines: &Lines) {
        for position in [&mut self.key, &mut self.value].into_iter().flatten() {
            *position = lines.translate(*position);
        }
        for (_, child) in &mut self.children {
            child.translate(lines);
        }
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

/// Where the parser's lines begin in a document.
///
/// It also ends a line at a lone carriage return and at Unicode's line breaks (YAML 1.1, 5.4), which do not end one in
/// an editor and in messages.
pub(super) struct Lines(Vec<Position>);

impl Lines {
    /// None when both count alike.
    pub(super) fn of(text: &str) -> Option<Self> {
        let is_other = |(at, c): (usize, char)| match c {
            '\r' => !text.get(at + 1..).is_some_and(|rest| rest.starts_with('\n')),
            _ => matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}'),
        };
        if !text.char_indices().any(is_other) {
            return None;
        }
        let mut starts = vec![(0, 0)];
        let (mut line, mut column) = (0, 0);
        for (at, c) in text.char_indices() {
            if c == '\n' {
                (line, column) = (line + 1, 0);
            } else {
                column += 1;
            }
            if c == '\n' || is_other((at, c)) {
                starts.push((line, column));
            }
        }
        Some(Self(starts))
    }

    pub(super) fn translate(&self, (line, column): Position) -> Position {
        match self.0.get(line).or(self.0.last()) {
            Some((ours, start)) => (*ours, start + column),
            None => (line, column),
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
