//! The last good version of every document, so that one bad document does not hold the others up.
//!
//! In come the files as they are now and the documents as they were last applied; out comes the set to apply: every
//! document that is without errors, and in the place of one that is not its last good version, if it ever had one. A
//! document that changed together with a bad one and needs what the bad one was to bring (a subset, a host, a Gateway)
//! waits with it. What stays behind is told, each with its reason, as [`Quarantined`].

use crate::diagnostic::{Diagnostic, Severity};
use crate::text::Part;
use crate::{Cache, Compiled, Document, Options, Source};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// How often the set is compiled anew because what was put in the place of a bad document does not fit either. Beyond
/// it everything stays as it was.
const ROUNDS_MAX: usize = 8;

/// A reference that leads nowhere, and the kinds of documents that could bring what it asks for.
const ABSENCES: [(&str, &[&str]); 6] = [
    ("unknown-delegate", &["VirtualService"]),
    ("unknown-gateway", &["Gateway"]),
    ("unknown-host", &["Service", "ServiceEntry"]),
    ("unknown-port", &["Service", "ServiceEntry"]),
    ("unknown-subset", &["DestinationRule"]),
    ("unserved-host", &["Gateway"]),
];

/// One document as it was last applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// `Kind namespace/name` of what it defines; none of what a gateway does not execute.
    resources: Vec<Arc<str>>,
    file: String,
    text: Part,
}

impl Kept {
    /// Whether it is a document of a file, and this very text.
    pub(crate) fn is_of(&self, file: &str, text: &Part) -> bool {
        self.file == file && self.text.is_same(text)
    }
}

/// The documents that were last applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    documents: Vec<Arc<Kept>>,
}

impl LastGood {
    /// Every document of a set without errors.
    pub fn of(sources: &[Source], compiled: &Compiled) -> Self {
        let documents = compiled.documents.iter();
        let kept = documents.filter_map(|document| Some(keep(document, sources.get(document.source)?)));
        Self {
            documents: kept.collect(),
        }
    }

    /// Each document: what it defines, its file, and its text.
    pub fn documents(&self) -> impl Iterator<Item = (&[Arc<str>], &str, &str)> {
        self.documents
            .iter()
            .map(|kept| (kept.resources.as_slice(), kept.file.as_str(), &*kept.text))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }
}

fn keep(document: &Document, source: &Source) -> Arc<Kept> {
    let make = |text| Kept {
        resources: document.resources.clone(),
        file: source.name.clone(),
        text,
    };
    match &document.known {
        Some(known) => known.kept(&source.name, make),
        None => {
            let text = source.text.get(document.span.clone()).unwrap_or("");
            Arc::new(make(text.into()))
        }
    }
}

/// A document that stays behind; as text, with its place and what is served instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// `Kind namespace/name` of what it defines, as far as it can be told.
    pub resources: Vec<String>,
    /// Its file.
    pub file: String,
    /// Line of the reason, from 1.
    pub line: usize,
    /// Column of the reason, from 1.
    pub column: usize,
    /// Why, with the code of the diagnostic.
    pub reason: String,
    /// Whether its last good version is served; else it is out.
    pub serves_last: bool,
}

impl fmt::Display for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            resources,
            file,
            line,
            column,
            reason,
            serves_last,
        } = self;
        let serves = if *serves_last {
            "its last good version is served"
        } else {
            "it is left out"
        };
        write!(f, "{file}:{line}:{column}: ")?;
        if !resources.is_empty() {
            write!(f, "{}: ", resources.join(", "))?;
        }
        write!(f, "{reason}; {serves}")
    }
}

/// What is to be applied.
#[derive(Debug)]
pub struct Outcome {
    /// What the set means, without what there is to say about it.
    pub compiled: Compiled,
    /// The texts that were compiled, in which [`Compiled::origins`] are found.
    pub sources: Vec<Source>,
    /// Everything that there is to say about what was written.
    pub diagnostics: Vec<Diagnostic>,
    /// What stays behind.
    pub quarantined: Vec<Quarantined>,
    /// The documents of the set.
    pub last: LastGood,
}

/// What stands in the place of a document of the files.
#[derive(Debug, Clone)]
enum Slot {
    /// The document itself, by its number.
    Written(usize),
    /// An earlier one.
    Kept(Arc<Kept>),
}

struct Held {
    reason: Diagnostic,
    replacements: Vec<Arc<Kept>>,
}

/// Compiles the files, with the last good versions of what is wrong in them.
pub fn compile(sources: Vec<Source>, options: &Options, last: &LastGood) -> Outcome {
    compile_known(sources, options, last, &mut Cache::default())
}

/// The same, with what is remembered of the compile before, which makes no difference but in time.
pub fn compile_known(sources: Vec<Source>, options: &Options, last: &LastGood, cache: &mut Cache) -> Outcome {
    cache.begin(options);
    let outcome = compile_round(sources, options, last, cache);
    cache.end();
    outcome
}

fn compile_round(sources: Vec<Source>, options: &Options, last: &LastGood, cache: &mut Cache) -> Outcome {
    let mut written = crate::compile_on(&sources, options, cache);
    if !written.has_errors() {
        return Outcome {
            diagnostics: std::mem::take(&mut written.diagnostics),
            quarantined: Vec::new(),
            last: LastGood::of(&sources, &written),
            compiled: written,
            sources,
        };
    }
    let mut keeper = Keeper::new(&sources, &written, last);
    for (number, document) in written.documents.iter().enumerate() {
        if document.has_errors {
            keeper.hold(number, reason(document, &sources, &written.diagnostics));
        }
    }
    for round in 0.. {
        keeper.replace();
        let (texts, slots) = keeper.texts();
        let compiled = crate::compile_on(&texts, options, cache);
        let fits = compiled.documents.len() == slots.len();
        let has_settled = fits && !keeper.judge(&slots, &compiled, &texts);
        if has_settled || round >= ROUNDS_MAX {
            if !has_settled {
                return keeper.give_up(options, &written, cache);
            }
            let quarantined = keeper.quarantined();
            let kept = slots.iter().filter_map(|slot| keeper.kept(slot));
            return Outcome {
                last: LastGood {
                    documents: kept.collect(),
                },
                compiled,
                sources: texts,
                diagnostics: written.diagnostics,
                quarantined,
            };
        }
    }
    keeper.give_up(options, &written, cache)
}

/// The first error of a document that is not only the follow-up of another.
fn reason(document: &Document, sources: &[Source], diagnostics: &[Diagnostic]) -> Diagnostic {
    let source = sources.get(document.source);
    let name = source.map_or("", |source| source.name.as_str());
    let text = source.map_or("", |source| &*source.text);
    let line_at = |at: usize| text.get(..at).unwrap_or("").matches('\n').count() + 1;
    let lines = line_at(document.span.start)..=line_at(document.span.end);
    let errors = || {
        let all = diagnostics.iter();
        all.filter(|found| found.severity == Severity::Error && found.file == name)
    };
    let inside = || errors().filter(|found| lines.contains(&found.line));
    // What is missing may be there under a name that nobody knows.
    let found = inside()
        .find(|found| found.name != "missing-field")
        .or_else(|| inside().next())
        // What is no YAML ends where that shows at the latest, and the error may be behind it.
        .or_else(|| errors().find(|found| found.line >= *lines.start()));
    found.cloned().unwrap_or_else(|| Diagnostic {
        severity: Severity::Error,
        code: "not-read",
        name: "not-read",
        file: name.to_owned(),
        line: *lines.start(),
        column: 1,
        resource: String::new(),
        field: String::new(),
        message: "the document has errors".to_owned(),
        help: None,
        related: Vec::new(),
    })
}

struct Keeper<'a> {
    sources: &'a [Source],
    written: &'a Compiled,
    last: &'a LastGood,
    /// By what they define.
    by_resource: HashMap<&'a str, Vec<&'a Arc<Kept>>>,
    held: HashMap<usize, Held>,
    /// Earlier documents that do not fit any more, by address.
    banned: HashSet<*const Kept>,
}

impl<'a> Keeper<'a> {
    fn new(sources: &'a [Source], written: &'a Compiled, last: &'a LastGood) -> Self {
        let mut by_resource: HashMap<&str, Vec<&Arc<Kept>>> = HashMap::new();
        for kept in &last.documents {
            for resource in &kept.resources {
                by_resource.entry(resource).or_default().push(kept);
            }
        }
        Self {
            sources,
            written,
            last,
            by_resource,
            held: HashMap::new(),
            banned: HashSet::new(),
        }
    }

    fn hold(&mut self, number: usize, reason: Diagnostic) {
        self.held.entry(number).or_insert(Held {
            reason,
            replacements: Vec::new(),
        });
    }

    /// Finds out what takes the place of the documents that are held.
    fn replace(&mut self) {
        let documents = self.written.documents.iter().enumerate();
        let (held, good): (Vec<_>, Vec<_>) =
            documents.partition(|(number, _)| self.held.contains_key(number));
        // What is defined without errors elsewhere has moved there.
        let mut taken: HashSet<&str> = HashSet::new();
        for (_, document) in good {
            taken.extend(document.resources.iter().map(|resource| &**resource));
        }
        let named: HashSet<&str> = self
            .written
            .documents
            .iter()
            .flat_map(|document| document.resources.iter().map(|resource| &**resource))
            .collect();
        let mut used: HashSet<*const Kept> = self.banned.clone();
        for (number, document) in held {
            let mut replacements: Vec<Arc<Kept>> = Vec::new();
            let mut take = |kept: &Arc<Kept>| {
                let is_free = !kept.resources.iter().any(|resource| taken.contains(&**resource));
                if is_free && used.insert(Arc::as_ptr(kept)) {
                    replacements.push(Arc::clone(kept));
                }
            };
            if document.resources.is_empty() {
                // What it defines cannot be read: it must be what its file had and has no more.
                let file = self
                    .sources
                    .get(document.source)
                    .map_or("", |source| &source.name);
                let gone = self.last.documents.iter().filter(|kept| {
                    kept.file == file
                        && !kept.resources.is_empty()
                        && !kept.resources.iter().any(|resource| named.contains(&**resource))
                });
                gone.for_each(&mut take);
            }
            for resource in &document.resources {
                let known = self.by_resource.get(&**resource);
                known.into_iter().flatten().for_each(|kept| take(kept));
            }
            if let Some(held) = self.held.get_mut(&number) {
                held.replacements = replacements;
            }
        }
    }

    /// The files with what is held replaced; a document that comes behind one keeps its line unless the replacement is
    /// longer. Beside it, for each document of theirs, where it comes from.
    fn texts(&self) -> (Vec<Source>, Vec<Slot>) {
        let mut texts: Vec<Source> = self.sources.to_vec();
        let mut slots = Vec::new();
        let mut documents = self.written.documents.iter().enumerate().peekable();
        for (index, source) in self.sources.iter().enumerate() {
            let mut text = String::with_capacity(source.text.len());
            let mut at = 0;
            while let Some((number, document)) = documents.next_if(|(_, document)| document.source == index) {
                let Some(held) = self.held.get(&number) else {
                    slots.push(Slot::Written(number));
                    continue;
                };
                text.push_str(source.text.get(at..document.span.start).unwrap_or(""));
                at = document.span.end;
                let bad = source.text.get(document.span.clone()).unwrap_or("");
                let before = text.len();
                for (place, kept) in held.replacements.iter().enumerate() {
                    if place > 0 {
                        text.push_str("---");
                    }
                    // What begins behind a marker may have begun a file, without one.
                    if !kept.text.starts_with('\n') && !text.is_empty() {
                        text.push('\n');
                    }
                    text.push_str(&kept.text);
                    if !text.ends_with('\n') {
                        text.push('\n');
                    }
                    slots.push(Slot::Kept(Arc::clone(kept)));
                }
                let lines = text.get(before..).unwrap_or("").matches('\n').count();
                let missing = bad.matches('\n').count().saturating_sub(lines);
                text.extend(std::iter::repeat_n('\n', missing));
            }
            if at > 0 {
                text.push_str(source.text.get(at..).unwrap_or(""));
                if let Some(source) = texts.get_mut(index) {
                    source.text = text.into();
                }
            }
        }
        (texts, slots)
    }

    /// Looks at what came out of the set; answers whether anything more must be held or left out.
    fn judge(&mut self, slots: &[Slot], compiled: &Compiled, texts: &[Source]) -> bool {
        let before = (self.held.len(), self.banned.len());
        for (slot, document) in slots.iter().zip(&compiled.documents) {
            if !document.has_errors {
                continue;
            }
            match slot {
                Slot::Written(number) => self.hold(*number, reason(document, texts, &compiled.diagnostics)),
                Slot::Kept(kept) => {
                    self.banned.insert(Arc::as_ptr(kept));
                }
            }
        }
        if before == (self.held.len(), self.banned.len()) {
            self.hold_dependants(slots, compiled);
        }
        before != (self.held.len(), self.banned.len())
    }

    /// Holds what is new or changed and needs what is held.
    fn hold_dependants(&mut self, slots: &[Slot], compiled: &Compiled) {
        let missing: HashMap<&str, &Diagnostic> = compiled
            .diagnostics
            .iter()
            .rev()
            // What is only hinted at concerns nothing that is served.
            .filter(|found| found.severity != Severity::Hint && self.may_be_held(found.name))
            .map(|found| (found.resource.as_str(), found))
            .collect();
        if missing.is_empty() {
            return;
        }
        let mut dependants = Vec::new();
        for (slot, document) in slots.iter().zip(&compiled.documents) {
            let Slot::Written(number) = slot else { continue };
            let found = document.resources.iter().find_map(|name| missing.get(&**name));
            if let Some(found) = found
                && self.has_changed(*number)
            {
                let mut reason = (*found).clone();
                reason
                    .message
                    .push_str("; what is missing may be in a document that has errors");
                dependants.push((*number, reason));
            }
        }
        for (number, reason) in dependants {
            self.hold(number, reason);
        }
    }

    /// Whether what a reference asks for may be in a document that is held.
    fn may_be_held(&self, name: &str) -> bool {
        let Some((_, kinds)) = ABSENCES.iter().find(|(absence, _)| *absence == name) else {
            return false;
        };
        let of_kind = |resource: &str| kinds.contains(&resource.split(' ').next().unwrap_or(""));
        self.held.iter().any(|(number, _)| {
            let resources = self
                .written
                .documents
                .get(*number)
                .map(|document| &document.resources);
            resources.is_none_or(|all| all.is_empty() || all.iter().any(|resource| of_kind(resource)))
        })
    }

    fn has_changed(&self, number: usize) -> bool {
        let document = self.written.documents.get(number);
        let source = document.and_then(|document| self.sources.get(document.source));
        let (Some(document), Some(source)) = (document, source) else {
            return false;
        };
        let text = source.text.get(document.span.clone()).unwrap_or("").trim();
        let known = document
            .resources
            .iter()
            .filter_map(|name| self.by_resource.get(&**name));
        !known.flatten().any(|kept| kept.text.trim() == text)
    }

    fn kept(&self, slot: &Slot) -> Option<Arc<Kept>> {
        match slot {
            Slot::Kept(kept) => Some(Arc::clone(kept)),
            Slot::Written(number) => {
                let document = self.written.documents.get(*number)?;
                Some(keep(document, self.sources.get(document.source)?))
            }
        }
    }

    fn quarantined(&self) -> Vec<Quarantined> {
        let mut held: Vec<_> = self.held.iter().collect();
        held.sort_by_key(|(number, _)| **number);
        let tell = |(number, held): (&usize, &Held)| {
            let document = self.written.documents.get(*number)?;
            let own: Vec<String> = document.resources.iter().map(ToString::to_string).collect();
            let resources = if own.is_empty() {
                held.replacements
                    .iter()
                    .flat_map(|kept| kept.resources.iter().map(ToString::to_string))
                    .collect()
            } else {
                own
            };
            Some(Quarantined {
                resources,
                file: held.reason.file.clone(),
                line: held.reason.line,
                column: held.reason.column,
                reason: format!("{}: {}", held.reason.code, held.reason.message),
                serves_last: !held.replacements.is_empty(),
            })
        };
        held.into_iter().filter_map(tell).collect()
    }

    /// Everything as it was.
    fn give_up(&mut self, options: &Options, written: &Compiled, cache: &mut Cache) -> Outcome {
        let sources: Vec<Source> = self
            .last
            .documents
            .iter()
            .map(|kept| Source {
                name: kept.file.clone(),
                text: (*kept.text).into(),
            })
            .collect();
        for (number, document) in written.documents.iter().enumerate() {
            if document.has_errors || self.has_changed(number) {
                self.hold(number, reason(document, self.sources, &written.diagnostics));
            }
        }
        self.replace();
        Outcome {
            compiled: crate::compile_on(&sources, options, cache),
            sources,
            diagnostics: written.diagnostics.clone(),
            quarantined: self.quarantined(),
            last: self.last.clone(),
        }
    }
}
