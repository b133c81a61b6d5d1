//! Diagnostics: what is wrong with what was written, where, and what to do about it.
//!
//! Every room of this crate reports through [`Diagnostic`] values and never stops at the first problem. [`render`]
//! shows them as a compiler would: one line that tools can grep, the line of the file, and help. [`to_json`] is for
//! machines.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use crate::Source;

/// Lines longer than this are not shown: a JSON file on one line would fill the screen once per problem.
const SHOWN_LINE_MAX: usize = 400;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The resource is not used.
    Error,
    /// The resource is used, perhaps not as its author meant it.
    Warning,
    /// Worth knowing.
    Hint,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Hint => "hint",
        })
    }
}

/// One problem at one place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of problem: Istio's code where Istio has the same one, else its name; stable, so that tools may rely
    /// on it.
    pub code: &'static str,
    /// Name of the kind, in kebab case; stable as well.
    pub name: &'static str,
    /// Name of the [`Source`].
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// `Kind namespace/name`, empty when the problem is in no resource.
    pub resource: String,
    /// Path of the field, such as `spec.http[0].route[1].weight`; may be empty.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The other places that have a part in it.
    pub related: Vec<Related>,
}

/// Another place that has a part in a problem.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Related {
    /// Name of the [`Source`].
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// `Kind namespace/name`.
    pub resource: String,
    /// Path of the field; may be empty.
    pub field: String,
    /// What part it has.
    pub message: String,
}

/// Names of problems, and the code of Istio's message that means the same (`istioctl analyze`).
const ISTIO: [(&str, &str); 26] = [
    ("old-spelling", "IST0002"),
    ("unknown-gateway", "IST0101"),
    ("unknown-host", "IST0101"),
    ("unknown-port", "IST0101"),
    ("unknown-subset", "IST0101"),
    ("unknown-delegate", "IST0101"),
    ("unknown-credential", "IST0101"),
    ("unknown-workload", "IST0101"),
    ("misplaced-annotation", "IST0107"),
    ("unknown-annotation", "IST0108"),
    ("mesh-host-conflict", "IST0109"),
    ("port-required", "IST0112"),
    ("port-name", "IST0118"),
    ("no-verification", "IST0128"),
    ("no-port-verification", "IST0129"),
    ("unreachable-rule", "IST0130"),
    ("ineffective-match", "IST0131"),
    ("unserved-host", "IST0132"),
    ("duplicate-certificate", "IST0138"),
    ("subset-without-effect", "IST0140"),
    ("gateway-conflict", "IST0145"),
    ("claims-unauthenticated", "IST0149"),
    ("bad-credential", "IST0161"),
    ("port-not-on-service", "IST0162"),
    ("subset-selects-nothing", "IST0173"),
    ("unknown-rule-host", "IST0174"),
];

/// The code by which a kind of problem is shown.
pub(crate) fn code_of(name: &'static str) -> &'static str {
    let istio = ISTIO.iter().find(|(known, _)| *known == name);
    istio.map_or(name, |(_, code)| code)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            severity,
            code,
            file,
            line,
            column,
            message,
            ..
        } = self;
        write!(f, "{file}:{line}:{column}: {severity}[{code}]: {message}")
    }
}

/// Where each line of a file begins, so that one problem costs the length of its own line and no more.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { text, starts }
    }

    fn get(&self, line: usize) -> Option<&'a str> {
        let start = *self.starts.get(line.checked_sub(1)?)?;
        self.text.get(start..)?.lines().next()
    }
}

/// The lines of the files that are shown.
struct Shown<'a> {
    texts: HashMap<&'a str, &'a str>,
    lines: HashMap<&'a str, Lines<'a>>,
}

impl<'a> Shown<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let texts = sources.iter().map(|source| (source.name.as_str(), &*source.text));
        Self {
            texts: texts.collect(),
            lines: HashMap::new(),
        }
    }

    /// A line that is worth showing, and the word in it that begins at a column.
    fn line(&mut self, file: &str, line: usize, column: usize) -> Option<(&'a str, Range<usize>)> {
        let (name, text) = self.texts.get_key_value(file)?;
        let lines = self.lines.entry(name).or_insert_with(|| Lines::new(text));
        let line = lines
            .get(line)
            .filter(|line| !line.trim().is_empty() && line.len() <= SHOWN_LINE_MAX)?;
        let start = line
            .char_indices()
            .nth(column.saturating_sub(1))
            .map_or(line.len(), |(at, _)| at);
        Some((line, start..token_end(line, start)))
    }
}

/// A line for a terminal. What would steer it, or turn what is read around (Unicode's marks of direction), is escaped:
/// names and values come from files that others have written.
pub fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The same of several lines.
pub fn printable_lines(text: &str) -> String {
    let lines = text.split('\n').map(printable);
    lines.collect::<Vec<_>>().join("\n")
}

/// A line of a file. The renderer replaces what steers a terminal, but for control characters of two bytes (C1): something as
/// long takes their place, so that what is pointed at stays where it is.
fn shown_line(line: &str) -> Cow<'_, str> {
    let is_c1 = |c: char| matches!(c, '\u{80}'..='\u{9f}');
    match line.contains(is_c1) {
        true => Cow::Owned(line.replace(is_c1, "\u{bf}")),
        false => Cow::Borrowed(line),
    }
}

/// Shows diagnostics as text for a terminal. Each begins with its own line `file:line:col: error[CODE]: text`.
pub fn render(diagnostics: &[Diagnostic], sources: &[Source], color: bool) -> String {
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut shown = Shown::new(sources);
    let mut out = String::new();
    for diagnostic in diagnostics {
        let (paint, plain) = match (color, diagnostic.severity) {
            (false, _) => ("", ""),
            (true, Severity::Error) => ("\u{1b}[1;31m", "\u{1b}[0m"),
            (true, Severity::Warning) => ("\u{1b}[1;33m", "\u{1b}[0m"),
            (true, Severity::Hint) => ("\u{1b}[1;36m", "\u{1b}[0m"),
        };
        let told = diagnostic.to_string();
        out.push_str(&format!("{paint}{}{plain}\n", printable(&told)));
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Hint => Level::INFO,
        };
        let mut group = Group::with_level(level);
        let field = printable(&diagnostic.field);
        if let Some((line, span)) = shown.line(&diagnostic.file, diagnostic.line, diagnostic.column) {
            let annotation = AnnotationKind::Primary.span(span).label(field.into_owned());
            group = group.element(
                Snippet::source(shown_line(line))
                    .line_start(diagnostic.line)
                    .annotation(annotation),
            );
        } else if !diagnostic.field.is_empty() {
            group = group.element(Level::NOTE.message(field.into_owned()));
        }
        for related in &diagnostic.related {
            let part = format!("{} ({})", related.message, related.resource);
            let part = printable(&part).into_owned();
            let path = printable(&related.file);
            if let Some((line, span)) = shown.line(&related.file, related.line, related.column) {
                group = group.element(
                    Snippet::source(shown_line(line))
                        .path(path.into_owned())
                        .line_start(related.line)
                        .annotation(AnnotationKind::Context.span(span).label(part)),
                );
            } else {
                let Related { line, column, .. } = related;
                group = group.element(Level::NOTE.message(format!("{path}:{line}:{column}: {part}")));
            }
        }
        if !diagnostic.resource.is_empty() {
            group = group.element(Level::NOTE.message(format!("in {}", printable(&diagnostic.resource))));
        }
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(printable_lines(help)));
        }
        if !group.is_empty() {
            out.push_str(&renderer.render(&[group]));
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

/// The end of the word that starts at `start`: a quoted text, a value up to what ends it, or a key up to its colon.
fn token_end(line: &str, start: usize) -> usize {
    let rest = line.get(start..).unwrap_or("");
    let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''));
    let end = match quote {
        Some(quote) => rest.get(1..).and_then(|inner| inner.find(quote)).map(|at| at + 2),
        None => [": ", ", ", "}", "]", " #", "\r"]
            .iter()
            .filter_map(|stop| rest.find(stop))
            .min(),
    };
    let word = rest
        .get(..end.unwrap_or(rest.len()))
        .unwrap_or("")
        .trim_end()
        .trim_end_matches(':');
    start + word.len()
}

/// Diagnostics as a JSON list, with the fields of [`Diagnostic`].
pub fn to_json(diagnostics: &[Diagnostic]) -> serde_json::Value {
    serde_json::to_value(diagnostics).unwrap_or_default()
}

/// The known name that is most like `written`, if one is like it at all.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are no typing mistakes, and comparing them would cost.
    if written.len() > 64 {
        return None;
    }
    let plain = |text: &str| -> Vec<char> {
        text.chars()
            .filter(|c| *c != '_')
            .flat_map(char::to_lowercase)
            .collect()
    };
    let wanted = plain(written);
    let allowed = (wanted.len() / 3).max(1);
    let distances = known
        .into_iter()
        .map(|name| (distance(&wanted, &plain(name)), name));
    distances
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap of neighbours) between two words.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut current = Vec::with_capacity(b.len() + 1);
        current.push(i + 1);
        for (j, &y) in b.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&previous, j) + usize::from(x != y)).min(at(&previous, j + 1) + 1);
            best = best.min(at(&current, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(&y) && b.get(j - 1) == Some(&x);
            if swapped {
                best = best.min(at(&before, j - 1).saturating_add(1));
            }
            current.push(best);
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(line: usize, column: usize) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            code: "unknown-field",
            name: "unknown-field",
            file: "a.yaml".into(),
            line,
            column,
            resource: "VirtualService default/a".into(),
            field: "spec.hosst".into(),
            message: "unknown field `hosst`".into(),
            help: Some("did you mean `hosts`?".into()),
            related: Vec::new(),
        }
    }

    #[test]
    fn header_line_can_be_grepped_and_the_source_is_shown() {
        let sources = [Source {
            name: "a.yaml".into(),
            text: "spec:\n  hosst: [a]\n".into(),
        }];
        let text = render(&[diagnostic(2, 3)], &sources, false);
        assert!(
            text.starts_with("a.yaml:2:3: error[unknown-field]: unknown field `hosst`\n"),
            "{text}"
        );
        assert!(
            text.contains("  hosst: [a]") && text.contains("^^^^^ spec.hosst"),
            "{text}"
        );
        assert!(text.contains("did you mean `hosts`?"), "{text}");
    }

    #[test]
    fn what_files_say_does_not_steer_the_terminal() {
        let evil = "x\u{1b}[2J\u{7}\r\u{9b}\u{202e}y";
        let sources = [Source {
            name: evil.into(),
            text: format!("spec: {evil}\n").into(),
        }];
        for line in [1, 9] {
            let found = Diagnostic {
                file: evil.into(),
                resource: evil.into(),
                field: evil.into(),
                message: evil.into(),
                help: Some(format!("a\nb {evil}")),
                related: vec![Related {
                    file: evil.into(),
                    line,
                    column: 1,
                    resource: evil.into(),
                    field: evil.into(),
                    message: evil.into(),
                }],
                ..diagnostic(line, 3)
            };
            let text = render(&[found], &sources, false);
            let steers = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
            assert!(!text.contains(steers), "{text:?}");
            assert!(
                text.contains("x\\u{1b}[2J") && text.contains("help: a\n"),
                "{text}"
            );
        }
    }

    #[test]
    fn places_outside_the_file_are_survived() {
        let sources = [Source {
            name: "a.yaml".into(),
            text: "é: ü\n".into(),
        }];
        for (line, column) in [(0, 0), (1, 4), (1, 5), (1, 99), (9, 9), (usize::MAX, usize::MAX)] {
            assert!(render(&[diagnostic(line, column)], &sources, true).contains("unknown field"));
        }
    }

    #[test]
    fn nearest_name_finds_typing_mistakes_only() {
        let known = ["hosts", "gateways", "httpsRedirect", "exportTo"];
        assert_eq!(nearest("hosst", known), Some("hosts"));
        assert_eq!(nearest("https_redirect", known), Some("httpsRedirect"));
        assert_eq!(nearest("gateway", known), Some("gateways"));
        assert_eq!(nearest("selector", known), None);
    }
}
