//! Texts that several hold on to and that are there once.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A part of a text, which stays as long as any part of it does: a document of a file.
#[derive(Clone)]
pub(crate) struct Part {
    whole: Arc<str>,
    start: usize,
    end: usize,
}

impl Part {
    /// The part that takes these bytes; nothing when there are none such.
    pub(crate) fn new(whole: &Arc<str>, span: Range<usize>) -> Self {
        let span = whole.get(span.clone()).map_or(0..0, |_| span);
        Self {
            whole: Arc::clone(whole),
            start: span.start,
            end: span.end,
        }
    }

    /// Whether it is a part of this very text.
    pub(crate) fn is_of(&self, whole: &Arc<str>) -> bool {
        Arc::ptr_eq(&self.whole, whole)
    }

    /// Whether both are the same bytes of the same text.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.is_of(&other.whole) && (self.start, self.end) == (other.start, other.end)
    }
}

impl From<&str> for Part {
    fn from(text: &str) -> Self {
        Self {
            whole: text.into(),
            start: 0,
            end: text.len(),
        }
    }
}

impl Deref for Part {
    type Target = str;

    fn deref(&self) -> &str {
        self.whole.get(self.start..self.end).unwrap_or("")
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || **self == **other
    }
}

impl Eq for Part {}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Arc::<str>::deserialize(deserializer)?;
        Ok(Self {
            start: 0,
            end: whole.len(),
            whole,
        })
    }
}
