//! The report of one run: collects diagnostics from every room and finds out where in the files they belong.
//!
//! Rooms name a resource and a path; the report turns that into file, line and column. It reads a document for its
//! positions only when the first problem in it is reported.

use crate::Source;
use crate::cache::{Cache, InFile, Known};
use crate::diagnostic::{Diagnostic, Related, Severity, code_of};
use crate::index::CLUSTER_DOMAIN;
use crate::resource::Piece;
use crate::text::Part;
use crate::yaml::{Document, Node, Path, Position, Positions};
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// Most diagnostics of one document that are kept; the rest are counted.
const PER_DOCUMENT_MAX: usize = 200;

/// Longest message in characters; what it cites may be as long as a document.
const MESSAGE_CHARS_MAX: usize = 500;
/// Longest help: it may be documents to begin with.
const HELP_CHARS_MAX: usize = 2000;

/// Where a resource was written.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Position among the documents of the run.
    pub(crate) document: usize,
    /// Position among the items, when the document is a Kubernetes List.
    pub(crate) item: Option<usize>,
    /// `Kind namespace/name`.
    pub(crate) resource: Arc<str>,
}

/// A problem that is about to be reported.
pub(crate) struct Finding<'a> {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// Its kind in kebab case; [`code_of`] finds Istio's code of it.
    pub(crate) name: &'static str,
    /// The resource that is pointed at.
    pub(crate) origin: &'a Origin,
    /// The field that is pointed at.
    pub(crate) path: &'a Path<'a>,
    /// Whether its key is meant, and not its value.
    pub(crate) of_key: bool,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) help: Option<String>,
    /// The other places that have a part in it, from [`Report::related`].
    pub(crate) related: Vec<Related>,
    /// The name that was looked for in vain. While documents cannot be read and have a word of it, nothing is told: what
    /// is looked for may be in one of them.
    pub(crate) absent: Option<&'a str>,
}

impl<'a> Finding<'a> {
    /// A problem with one value.
    pub(crate) fn new(
        severity: Severity,
        name: &'static str,
        origin: &'a Origin,
        path: &'a Path<'a>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            name,
            origin,
            path,
            of_key: false,
            message: message.into(),
            help: None,
            related: Vec::new(),
            absent: None,
        }
    }
}

#[cfg(test)]
impl Origin {
    /// The first document of nothing.
    pub(crate) fn for_test() -> Self {
        Self {
            document: 0,
            item: None,
            resource: "".into(),
        }
    }
}

/// Where a document is in its file.
#[derive(Debug)]
pub(crate) struct DocumentPlace {
    /// Position of the file among the sources.
    pub(crate) source: usize,
    line: usize,
    column: usize,
    /// The text that was parsed, when the file's own had to be repaired.
    repaired: Option<Box<str>>,
}

impl DocumentPlace {
    /// Line and column in the file, from 1, of what a path names.
    pub(crate) fn locate(&self, file: &str, item: Option<usize>, path: &Path<'_>) -> Option<(usize, usize)> {
        let text = match &self.repaired {
            Some(text) => text,
            None => crate::yaml::document_at(file, self.line, self.column)?,
        };
        let positions = Positions::new(text);
        Some(find(&positions, (self.line, self.column), item, path, false))
    }
}

/// A document that was read again, for whoever wants to know more than one thing about it.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Its value.
    pub(crate) node: Node,
    positions: Positions,
    start: (usize, usize),
}

impl DocumentPlace {
    /// Reads the document again; `file` is the whole file.
    pub(crate) fn open(&self, file: &str) -> Option<Opened> {
        let text = match &self.repaired {
            Some(text) => text,
            None => crate::yaml::document_at(file, self.line, self.column)?,
        };
        let (documents, _read_before) = crate::yaml::read(text, false);
        Some(Opened {
            node: documents.into_iter().next()?.node,
            positions: Positions::new(text),
            start: (self.line, self.column),
        })
    }
}

impl Opened {
    /// Line and column in the file, from 1, of the key at a path, or of an item of a list.
    pub(crate) fn locate(&self, item: Option<usize>, path: &Path<'_>) -> (usize, usize) {
        find(&self.positions, self.start, item, path, true)
    }
}

/// Line and column in the file, from 1, of what a path names in a document that begins behind `start`.
fn find(
    positions: &Positions,
    start: (usize, usize),
    item: Option<usize>,
    path: &Path<'_>,
    of_key: bool,
) -> (usize, usize) {
    in_file(start, place(positions, item, path, of_key))
}

/// Line and column in a document.
fn place(positions: &Positions, item: Option<usize>, path: &Path<'_>, of_key: bool) -> Option<Position> {
    let positions = match item {
        Some(item) => positions.inside("items", item),
        None => Some(positions),
    };
    positions.and_then(|positions| positions.find(path, of_key))
}

/// Line and column in the file, from 1, of a place in a document that begins behind `start`.
fn in_file(start: Position, place: Option<Position>) -> (usize, usize) {
    let (line, column) = place.unwrap_or((0, 0));
    let before = if line == 0 { start.1 } else { 0 };
    (start.0 + line + 1, before + column + 1)
}

struct Entry<'a> {
    source: usize,
    file: &'a str,
    document: Document<'a>,
    positions: Option<Positions>,
    count: usize,
    has_errors: bool,
    /// What is known of it from before, or will be.
    known: Option<Arc<Known>>,
}

/// See the module.
pub(crate) struct Report<'a> {
    sources: &'a [Source],
    documents: Vec<Entry<'a>>,
    /// Source and bytes of documents that could not be read.
    unread: Vec<(usize, Range<usize>)>,
    found: Vec<(usize, Diagnostic)>,
    errors: usize,
    /// How often anything was told, shown or not.
    told: usize,
    lenient: bool,
    /// Words of the documents that could not be read.
    unread_words: HashSet<&'a str>,
    /// Fields of the resource at hand that have an error.
    faulty: Vec<String>,
    /// Whether single fields have been checked already.
    validating: bool,
}

impl<'a> Report<'a> {
    /// Takes the documents of all files; what could not be read is reported at once.
    pub(crate) fn new(sources: &'a [Source], lenient: bool) -> Self {
        Self::with(sources, lenient, &mut Cache::default())
    }

    /// The same; what is known is not read.
    pub(crate) fn with(sources: &'a [Source], lenient: bool, cache: &mut Cache) -> Self {
        let mut report = Self {
            sources,
            documents: Vec::new(),
            unread: Vec::new(),
            found: Vec::new(),
            errors: 0,
            told: 0,
            lenient,
            unread_words: HashSet::new(),
            faulty: Vec::new(),
            validating: false,
        };
        for (index, source) in sources.iter().enumerate() {
            let (documents, errors) = crate::yaml::read_unknown(&source.text, lenient, cache);
            let entry = |mut document: Document<'a>| Entry {
                source: index,
                file: &source.name,
                known: document.known.take(),
                document,
                positions: None,
                count: 0,
                has_errors: false,
            };
            report.documents.extend(documents.into_iter().map(entry));
            for error in errors {
                let severity = if error.repaired {
                    Severity::Warning
                } else {
                    Severity::Error
                };
                report.errors += usize::from(severity == Severity::Error);
                let unread = (index, error.span);
                if severity == Severity::Error && report.unread.last() != Some(&unread) {
                    let text = source.text.get(unread.1.clone()).unwrap_or("");
                    report.unread_words.extend(words(text));
                    report.unread.push(unread);
                }
                report.found.push((
                    index,
                    Diagnostic {
                        severity,
                        code: error.code,
                        name: error.code,
                        file: source.name.clone(),
                        line: error.line,
                        column: error.column,
                        resource: String::new(),
                        field: String::new(),
                        message: cut(error.message),
                        help: error.help.map(|help| cut_at(help, HELP_CHARS_MAX)),
                        related: Vec::new(),
                    },
                ));
            }
        }
        report
    }

    /// Number of documents that could be read.
    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }

    /// Where the documents are.
    pub(crate) fn places(&self) -> Vec<DocumentPlace> {
        let place = |entry: &Entry<'_>| DocumentPlace {
            source: entry.source,
            line: entry.document.line,
            column: entry.document.column,
            repaired: match &entry.document.text {
                Cow::Borrowed(_) => None,
                Cow::Owned(text) => Some(text.as_str().into()),
            },
        };
        self.documents.iter().map(place).collect()
    }

    /// What became of each document, in the order of the files. `named` are the resources of documents.
    pub(crate) fn outcome(&self, named: &[(usize, Arc<str>)]) -> Vec<crate::Document> {
        let read = self.documents.iter().map(|entry| crate::Document {
            source: entry.source,
            line: entry.document.line + 1,
            span: entry.document.span.clone(),
            resources: Vec::new(),
            has_errors: entry.has_errors,
            known: entry.known.clone(),
        });
        let mut all: Vec<crate::Document> = read.collect();
        for (document, name) in named {
            if let Some(document) = all.get_mut(*document) {
                document.resources.push(Arc::clone(name));
            }
        }
        all.extend(self.unread.iter().map(|(source, span)| crate::Document {
            source: *source,
            line: 0,
            span: span.clone(),
            resources: Vec::new(),
            has_errors: true,
            known: None,
        }));
        all.sort_by_key(|document| (document.source, document.span.start));
        all
    }

    /// Takes the value of a document out. What was known of it counts no more.
    pub(crate) fn take(&mut self, document: usize) -> Node {
        let entry = self.documents.get_mut(document);
        entry.map_or(Node::Null, |entry| match entry.known.take() {
            Some(known) => crate::yaml::read_again(&known.text()),
            None => std::mem::replace(&mut entry.document.node, Node::Null),
        })
    }

    /// What is known of a document from before.
    pub(crate) fn known(&self, document: usize) -> Option<Arc<Known>> {
        self.documents.get(document)?.known.clone()
    }

    /// Tells what is known of a document, in its present place.
    pub(crate) fn tell_again(&mut self, document: usize, known: &Known) {
        let Some(entry) = self.documents.get_mut(document) else {
            return;
        };
        entry.count += known.found.len();
        for found in &known.found {
            // Only what is in the first line is moved by what stands before it there.
            let is_first = found.line == known.start.0 + 1;
            let diagnostic = Diagnostic {
                file: entry.file.to_owned(),
                line: found.line - known.start.0 + entry.document.line,
                column: match is_first {
                    true => found.column - known.start.1 + entry.document.column,
                    false => found.column,
                },
                ..found.clone()
            };
            self.found.push((entry.source, diagnostic));
        }
    }

    /// How often anything was told so far.
    pub(crate) fn told(&self) -> usize {
        self.told
    }

    /// How much has been found in each document so far.
    pub(crate) fn marks(&self) -> Vec<usize> {
        self.documents.iter().map(|entry| entry.count).collect()
    }

    /// Whether nothing has been found in a document since.
    pub(crate) fn is_as_marked(&self, marks: &[usize], document: usize) -> bool {
        let now = self.documents.get(document).map(|entry| entry.count);
        now == marks.get(document).copied()
    }

    /// How much has been found so far.
    pub(crate) fn found(&self) -> usize {
        self.found.len()
    }

    /// Remembers a document that has no errors, and where all that was found `since` is its own.
    pub(crate) fn remember(
        &mut self,
        document: usize,
        since: usize,
        (pieces, names): (Vec<Piece>, Vec<Origin>),
        cache: &mut Cache,
    ) {
        let found = self.found.get(since..).unwrap_or_default();
        let found: Vec<Diagnostic> = found.iter().map(|(_, found)| found.clone()).collect();
        if let Some(entry) = self.documents.get_mut(document)
            && let Cow::Borrowed(_) = entry.document.text
            && let Some(source) = self.sources.get(entry.source)
        {
            let start = (entry.document.line, entry.document.column);
            let text = Part::new(&source.text, entry.document.span.clone());
            let known = Arc::new(Known::new(text, pieces, names, found, start));
            cache.insert(&known);
            entry.known = Some(known);
        }
    }

    /// Remembers the files of which all documents are known.
    pub(crate) fn remember_files(&self, cache: &mut Cache) {
        for entries in self.documents.chunk_by(|a, b| a.source == b.source) {
            let source = entries.first().map(|entry| entry.source);
            let text = source.and_then(|at| Some(&self.sources.get(at)?.text));
            let Some(text) = text.filter(|text| !cache.has_file(text)) else {
                continue;
            };
            let is_read = self.unread.iter().all(|(unread, _)| Some(*unread) != source);
            let documents = entries.iter().map(|entry| {
                Some(InFile {
                    known: Arc::clone(entry.known.as_ref()?),
                    start: (entry.document.line, entry.document.column),
                    span: entry.document.span.clone(),
                })
            });
            if let Some(documents) = documents.collect::<Option<Vec<_>>>().filter(|_| is_read) {
                cache.insert_file(text, documents);
            }
        }
    }

    /// Whether all is well with a document, as far as it can be told without the others.
    pub(crate) fn is_good(&self, document: usize, since: usize) -> bool {
        let mut found = self.found.get(since..).unwrap_or_default().iter();
        self.documents.get(document).is_some_and(|entry| {
            !entry.has_errors
                && entry.count < PER_DOCUMENT_MAX
                && matches!(entry.document.text, Cow::Borrowed(_))
        }) && found.all(|(_, found)| found.related.is_empty() && found.line > 0)
    }

    /// Begins with another resource.
    pub(crate) fn begin(&mut self) {
        self.faulty.clear();
        self.validating = false;
    }

    /// From here on, errors that only follow from those already reported are left out: the same field, one inside of
    /// it, or one around it.
    pub(crate) fn begin_validation(&mut self) {
        self.validating = true;
    }

    /// Ends what [`Self::begin`] began.
    pub(crate) fn end(&mut self) {
        self.begin();
    }

    /// How many errors there are so far.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// Warning under `--lenient`, else error.
    pub(crate) fn strict(&self) -> Severity {
        if self.lenient {
            Severity::Warning
        } else {
            Severity::Error
        }
    }

    /// `file:line` of a resource.
    pub(crate) fn place(&mut self, origin: &Origin) -> String {
        let (file, line, _) = self.locate(origin, &Path::Root.key("kind"), true);
        format!("{file}:{line}")
    }

    fn locate(&mut self, origin: &Origin, path: &Path<'_>, of_key: bool) -> (&'a str, usize, usize) {
        let Some(entry) = self.documents.get_mut(origin.document) else {
            return ("", 1, 1);
        };
        let positions = &mut entry.positions;
        let mut look = || {
            let positions = positions.get_or_insert_with(|| Positions::new(&entry.document.text));
            place(positions, origin.item, path, of_key)
        };
        let found = match &entry.known {
            Some(known) => known.place(origin.item, path, of_key, look),
            None => look(),
        };
        let (line, column) = in_file((entry.document.line, entry.document.column), found);
        (entry.file, line, column)
    }

    /// Reports a problem with the value at `path`.
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        origin: &Origin,
        path: &Path<'_>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.tell(Finding {
            help,
            ..Finding::new(severity, code, origin, path, message)
        });
    }

    /// Reports a problem with the key at `path`.
    pub(crate) fn add_key(
        &mut self,
        severity: Severity,
        code: &'static str,
        origin: &Origin,
        path: &Path<'_>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.tell(Finding {
            help,
            of_key: true,
            ..Finding::new(severity, code, origin, path, message)
        });
    }

    /// Reports an error without help.
    pub(crate) fn error(
        &mut self,
        code: &'static str,
        origin: &Origin,
        path: &Path<'_>,
        message: impl Into<String>,
    ) {
        self.add(Severity::Error, code, origin, path, message, None);
    }

    /// Reports a warning without help.
    pub(crate) fn warn(
        &mut self,
        code: &'static str,
        origin: &Origin,
        path: &Path<'_>,
        message: impl Into<String>,
    ) {
        self.add(Severity::Warning, code, origin, path, message, None);
    }

    /// A place that has a part in a problem, which [`Finding::related`] takes.
    pub(crate) fn related(
        &mut self,
        origin: &Origin,
        path: &Path<'_>,
        message: impl Into<String>,
    ) -> Related {
        let (file, line, column) = self.locate(origin, path, false);
        Related {
            file: file.to_owned(),
            line,
            column,
            resource: cut(origin.resource.to_string()),
            field: path.to_string(),
            message: cut(message.into()),
        }
    }

    /// Whether a name may be in a document that could not be read: its first label, or the one behind it, which is the
    /// first of a wildcard that has it.
    fn may_be_unread(&self, name: &str) -> bool {
        let known = |label: Option<&str>| label.is_some_and(|label| self.unread_words.contains(label));
        let mut labels = name.split('.');
        !self.unread_words.is_empty()
            && (known(labels.next()) || (!name.ends_with(CLUSTER_DOMAIN) && known(labels.next())))
    }

    /// Reports a problem.
    pub(crate) fn tell(&mut self, finding: Finding<'_>) {
        let Finding {
            severity,
            name,
            origin,
            path,
            of_key,
            message,
            help,
            related,
            absent,
        } = finding;
        if absent.is_some_and(|name| self.may_be_unread(name)) {
            return;
        }
        self.told += 1;
        let full = self
            .documents
            .get(origin.document)
            .is_some_and(|entry| entry.count >= PER_DOCUMENT_MAX);
        if full && (severity != Severity::Error || self.errors > 0) {
            // Only the count is told of it, so that nothing needs to be found out about it.
            self.errors += usize::from(severity == Severity::Error);
            if let Some(entry) = self.documents.get_mut(origin.document) {
                entry.count += 1;
                entry.has_errors |= severity == Severity::Error;
            }
            return;
        }
        let field = path.to_string();
        let follows = |known: &String| {
            let inside = |inner: &str, outer: &str| {
                inner
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            inside(known, &field) || inside(&field, known)
        };
        if self.validating && self.faulty.iter().any(follows) {
            return;
        }
        if severity == Severity::Error {
            self.errors += 1;
            if !self.validating && self.faulty.len() < PER_DOCUMENT_MAX {
                self.faulty.push(field.clone());
            }
        }
        let Some(entry) = self.documents.get_mut(origin.document) else {
            return;
        };
        entry.count += 1;
        entry.has_errors |= severity == Severity::Error;
        let source = entry.source;
        if entry.count > PER_DOCUMENT_MAX {
            return;
        }
        let (file, line, column) = self.locate(origin, path, of_key);
        let (file, resource) = (file.to_owned(), cut(origin.resource.to_string()));
        let (message, help) = (cut(message), help.map(|help| cut_at(help, HELP_CHARS_MAX)));
        let diagnostic = Diagnostic {
            severity,
            code: code_of(name),
            name,
            file,
            line,
            column,
            resource,
            field,
            message,
            help,
            related,
        };
        self.found.push((source, diagnostic));
    }

    /// All diagnostics in the order of the files.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        for entry in &self.documents {
            if entry.count > PER_DOCUMENT_MAX {
                let more = entry.count - PER_DOCUMENT_MAX;
                let severity = if self.errors > 0 {
                    Severity::Error
                } else {
                    Severity::Warning
                };
                self.found.push((
                    entry.source,
                    Diagnostic {
                        severity,
                        code: "too-many",
                        name: "too-many",
                        file: entry.file.to_owned(),
                        line: entry.document.line + 1,
                        column: 1,
                        resource: String::new(),
                        field: String::new(),
                        message: format!("{more} more problems in this document are not shown"),
                        help: None,
                        related: Vec::new(),
                    },
                ));
            }
        }
        self.found
            .sort_by_key(|(source, diagnostic)| (*source, diagnostic.line, diagnostic.column));
        self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }
}

/// The words of a text, as names are put together from them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_'))
}

/// A text that is no longer than a message may be.
fn cut(text: String) -> String {
    cut_at(text, MESSAGE_CHARS_MAX)
}

fn cut_at(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}
