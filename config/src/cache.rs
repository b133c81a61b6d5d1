//! What is remembered from one compile to the next, so that a change costs what it changes.
//!
//! A document whose text was read before is not read again: its resources are the same parts as before, and what was
//! found in it is told at its new place. Only a document without errors is remembered, for nothing in it depends on any
//! other; one whose resources another document defines before it is read anew. Virtual hosts are the same parts as
//! before while all that they follow from is the same ([`Memo`]). Whether anything is remembered makes no difference to
//! what comes out.

use crate::Options;
use crate::compile::memo::Memo;
use crate::compile::source::Clients;
use crate::diagnostic::Diagnostic;
use crate::keep::Kept;
use crate::report::Origin;
use crate::resource::Piece;
use crate::yaml::{Path, Position};
use isthmus_core::snapshot::content_hash;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A document that was read without errors.
#[derive(Debug)]
pub(crate) struct Known {
    /// Its text.
    pub(crate) text: Arc<str>,
    /// What it defines, as if it were the only document.
    pub(crate) pieces: Vec<Piece>,
    /// The names among them, which no other document may have.
    pub(crate) names: Vec<Origin>,
    /// What there was to say about it, and where it began in its file then.
    pub(crate) found: Vec<Diagnostic>,
    pub(crate) start: Position,
    /// Where in it the places are that were asked for, by the hash of what asks for them.
    places: Mutex<Vec<(u64, Option<Position>)>>,
    kept: Mutex<Option<Arc<Kept>>>,
}

impl Known {
    pub(crate) fn new(
        text: &str,
        pieces: Vec<Piece>,
        names: Vec<Origin>,
        found: Vec<Diagnostic>,
        start: Position,
    ) -> Self {
        Self {
            text: text.into(),
            pieces,
            names,
            found,
            start,
            places: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Where what a path names is in the document; `find` is asked the first time only.
    pub(crate) fn place(
        &self,
        item: Option<usize>,
        path: &Path<'_>,
        of_key: bool,
        find: impl FnOnce() -> Option<Position>,
    ) -> Option<Position> {
        let asked = content_hash(&(item, path, of_key));
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, place)) = places.iter().find(|(known, _)| *known == asked) {
            return *place;
        }
        let place = find();
        places.push((asked, place));
        place
    }

    /// The document as one of the last good set, which `make` makes the first time.
    pub(crate) fn kept(&self, file: &str, make: impl FnOnce() -> Kept) -> Arc<Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(kept) if kept.is_of(file) => Arc::clone(kept),
            _ => Arc::clone(kept.insert(Arc::new(make()))),
        }
    }
}

/// See the module. It holds what the last two compiles have met.
#[derive(Default)]
pub struct Cache {
    /// Hash of the options that everything here was made with.
    options: u64,
    round: u64,
    /// By the hash of their text, with the round that met them last.
    documents: HashMap<u64, (Arc<Known>, u64)>,
    hosts: Memo,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("documents", &self.documents.len())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Begins a round; with other options than before nothing is known.
    pub(crate) fn begin(&mut self, options: &Options) {
        let options = Options {
            proofs: false,
            version: 0,
            ..options.clone()
        };
        let hash = content_hash(&format!("{options:?}"));
        if self.options != hash {
            *self = Self {
                options: hash,
                ..Self::default()
            };
        }
        self.round += 1;
    }

    /// Forgets what was not met since the round before this one.
    pub(crate) fn end(&mut self) {
        let oldest = self.round.saturating_sub(1);
        self.documents.retain(|_, (_, met)| *met >= oldest);
        self.hosts.forget(oldest);
    }

    /// The virtual hosts that are known, for another compile.
    pub(crate) fn hosts(&mut self, clients: &Clients) -> &mut Memo {
        self.hosts.begin(self.round, &clients.sources, clients.identified);
        &mut self.hosts
    }

    /// The document of a text.
    pub(crate) fn document(&mut self, text: &str) -> Option<Arc<Known>> {
        let (known, met) = self.documents.get_mut(&content_hash(&text))?;
        if *known.text != *text {
            return None;
        }
        *met = self.round;
        Some(Arc::clone(known))
    }

    /// Takes what was read.
    pub(crate) fn insert(&mut self, known: &Arc<Known>) {
        self.documents
            .insert(content_hash(&&*known.text), (Arc::clone(known), self.round));
    }
}

#[cfg(test)]
mod tests;
