//! What is remembered from one compile to the next, so that a change costs what it changes.
//!
//! A document whose text was read before is not read again: its resources are the same parts as before, and what was
//! found in it is told at its new place. Only a document without errors is remembered, for nothing in it depends on any
//! other; one whose resources another document defines before it is read anew. A file that is the very text of before and
//! has such documents only is not looked into at all. Virtual hosts are the same parts as
//! before while all that they follow from is the same ([`Memo`]). Whether anything is remembered makes no difference to
//! what comes out.

use crate::Options;
use crate::around::{Around, Quiet, Upstreams};
use crate::compile::memo::Memo;
use crate::compile::source::Clients;
use crate::diagnostic::Diagnostic;
use crate::keep::Kept;
use crate::report::Origin;
use crate::resource::Piece;
use crate::text::Part;
use crate::yaml::{Path, Position};
use foldhash::fast::FixedState;
use isthmus_core::snapshot::content_hash;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A document that was read without errors.
#[derive(Debug)]
pub(crate) struct Known {
    /// Hash of its text.
    hash: u64,
    /// Its text, in the file that was found to have it last.
    text: Mutex<Part>,
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
        text: Part,
        pieces: Vec<Piece>,
        names: Vec<Origin>,
        found: Vec<Diagnostic>,
        start: Position,
    ) -> Self {
        Self {
            hash: content_hash(&&*text),
            text: Mutex::new(text),
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

    /// Its text.
    pub(crate) fn text(&self) -> Part {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the text from where it is now, if it is the same, so that a file which has changed is not held for the sake of
    /// what has stayed in it. Answers whether it is.
    fn take_text(&self, whole: &Arc<str>, span: Range<usize>) -> bool {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Part::new(whole, span);
        let is_same = *text == now;
        if is_same {
            *text = now;
        }
        is_same
    }

    /// The document as one of the last good set, which `make` makes the first time.
    pub(crate) fn kept(&self, file: &str, make: impl FnOnce(Part) -> Kept) -> Arc<Kept> {
        let text = self.text();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(kept) if kept.is_of(file, &text) => Arc::clone(kept),
            _ => Arc::clone(kept.insert(Arc::new(make(text)))),
        }
    }
}

/// A file of which all documents are known.
#[derive(Debug)]
struct File {
    /// Its text, which has its address as long as it is held.
    _text: Arc<str>,
    documents: Arc<[InFile]>,
    met: u64,
}

/// A known document in a file.
#[derive(Debug)]
pub(crate) struct InFile {
    pub(crate) known: Arc<Known>,
    /// Line and column of the file that it begins behind.
    pub(crate) start: Position,
    /// The bytes that it takes.
    pub(crate) span: Range<usize>,
}

/// See the module. It holds what the last two compiles have met.
#[derive(Default)]
pub struct Cache {
    /// Hash of the options that everything here was made with.
    options: u64,
    round: u64,
    /// By the hash of their text, with the round that met them last.
    documents: HashMap<u64, (Arc<Known>, u64), FixedState>,
    /// Files of which all documents are known, by the address of their text.
    files: HashMap<usize, File, FixedState>,
    hosts: Memo,
    pub(crate) quiet: Quiet,
    /// What services are, where no VirtualService has a part in it, and the hash of what was around then.
    upstreams: Option<(u64, Upstreams)>,
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
        self.files.retain(|_, file| file.met >= oldest);
        self.hosts.forget(oldest);
    }

    /// The virtual hosts that are known, for another compile.
    pub(crate) fn hosts(&mut self, clients: &Clients, around: Around) -> &mut Memo {
        self.hosts
            .begin(self.round, &clients.sources, clients.identified, around);
        &mut self.hosts
    }

    /// What services are, while what is around is the same and in the same documents; `make` says it anew, and whether no
    /// VirtualService has a part in it.
    pub(crate) fn upstreams(
        &mut self,
        around: Around,
        make: impl FnOnce() -> (Upstreams, bool),
    ) -> Upstreams {
        match &self.upstreams {
            Some((known, upstreams)) if *known == around.placed => upstreams.clone(),
            _ => {
                let (made, is_alone) = make();
                self.upstreams = is_alone.then(|| (around.placed, made.clone()));
                made
            }
        }
    }

    /// The documents of a file that is the very text of before.
    pub(crate) fn file(&mut self, text: &Arc<str>) -> Option<Arc<[InFile]>> {
        let file = self.files.get_mut(&address(text))?;
        for document in file.documents.iter() {
            // It may have been forgotten since, and met elsewhere.
            match self.documents.get_mut(&document.known.hash) {
                Some((known, met)) if Arc::ptr_eq(known, &document.known) => *met = self.round,
                _ => return None,
            }
        }
        file.met = self.round;
        Some(Arc::clone(&file.documents))
    }

    /// Whether all documents of a text are known.
    pub(crate) fn has_file(&self, text: &Arc<str>) -> bool {
        self.files.contains_key(&address(text))
    }

    /// Remembers that these are all documents of a file.
    pub(crate) fn insert_file(&mut self, text: &Arc<str>, documents: Vec<InFile>) {
        let file = File {
            _text: Arc::clone(text),
            documents: documents.into(),
            met: self.round,
        };
        self.files.insert(address(text), file);
    }

    /// The document that takes some bytes of a file.
    pub(crate) fn document(&mut self, file: &Arc<str>, span: Range<usize>) -> Option<Arc<Known>> {
        let text = file.get(span.clone())?;
        let (known, met) = self.documents.get_mut(&content_hash(&text))?;
        if !known.take_text(file, span) {
            return None;
        }
        *met = self.round;
        Some(Arc::clone(known))
    }

    /// Takes what was read.
    pub(crate) fn insert(&mut self, known: &Arc<Known>) {
        self.documents.insert(known.hash, (Arc::clone(known), self.round));
    }
}

fn address(text: &Arc<str>) -> usize {
    Arc::as_ptr(text).cast::<u8>() as usize
}

#[cfg(test)]
mod tests;
