//! Rust source as tidy sees it: code without comments and texts, comments without code, line by line.

/// One file, split. Each part has as many lines as the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Code; comments, texts and characters are blank.
    pub(crate) code: String,
    /// Comments; all else is blank.
    pub(crate) comments: String,
}

impl Source {
    /// Splits the text of a file.
    pub(crate) fn new(text: &str) -> Self {
        let mut splitter = Splitter {
            rest: text,
            code: String::new(),
            comments: String::new(),
        };
        while !splitter.rest.is_empty() {
            splitter.step();
        }
        Self {
            code: splitter.code,
            comments: splitter.comments,
        }
    }

    /// The code up to the module of unit tests, which the rules about names do not bind.
    pub(crate) fn code_before_tests(&self) -> &str {
        &self.code[..self.tests_begin().unwrap_or(self.code.len())]
    }

    /// How many lines come before the module of unit tests.
    pub(crate) fn lines_before_tests(&self) -> usize {
        self.code_before_tests().lines().count()
    }

    fn tests_begin(&self) -> Option<usize> {
        let marks = self.code.match_indices("#[cfg(").map(|(at, _)| at);
        marks.into_iter().find(|at| {
            let attributes = &self.code[*at..];
            let Some(end) = attributes.find(']') else {
                return false;
            };
            let is_test = words(&attributes[..end]).any(|(_, word)| word == "test")
                && !attributes[..end].contains("not(test)");
            is_test && next_item_is_module(&attributes[end + 1..])
        })
    }
}

fn next_item_is_module(code: &str) -> bool {
    let mut rest = code.trim_start();
    while let Some(attribute) = rest.strip_prefix("#[") {
        let Some(end) = attribute.find(']') else {
            return false;
        };
        rest = attribute[end + 1..].trim_start();
    }
    let rest = rest.strip_prefix("pub(crate) ").unwrap_or(rest);
    // `mod tests;` is another file, after which code may follow.
    rest.strip_prefix("mod ")
        .is_some_and(|module| module.find('{') < module.find(';').or(Some(usize::MAX)))
}

/// The words of code with their positions: identifiers and numbers.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_word)?;
        let end = code[start..]
            .find(|character| !is_word(character))
            .map_or(code.len(), |length| start + length);
        at = end;
        Some((start, &code[start..end]))
    })
}

/// The line that a position is on, from 1.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

struct Splitter<'a> {
    rest: &'a str,
    code: String,
    comments: String,
}

impl Splitter<'_> {
    fn step(&mut self) {
        let rest = self.rest;
        if rest.starts_with("//") {
            self.comment(rest.find('\n').unwrap_or(rest.len()));
        } else if rest.starts_with("/*") {
            self.comment(block_comment(rest));
        } else if let Some(length) = text_literal(rest, self.code.chars().next_back()) {
            self.blank(length);
        } else {
            let length = rest.chars().next().map_or(0, char::len_utf8);
            self.code.push_str(&rest[..length]);
            Self::blanks(&rest[..length], &mut self.comments);
            self.rest = &rest[length..];
        }
    }

    fn comment(&mut self, length: usize) {
        self.comments.push_str(&self.rest[..length]);
        Self::blanks(&self.rest[..length], &mut self.code);
        self.rest = &self.rest[length..];
    }

    fn blank(&mut self, length: usize) {
        Self::blanks(&self.rest[..length], &mut self.code);
        Self::blanks(&self.rest[..length], &mut self.comments);
        self.rest = &self.rest[length..];
    }

    fn blanks(text: &str, into: &mut String) {
        into.extend(
            text.chars()
                .map(|character| if character == '\n' { '\n' } else { ' ' }),
        );
    }
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the text or character literal that `code` begins with.
fn text_literal(code: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|character| character.is_alphanumeric() || character == '_');
    if !in_word {
        let prefix = code
            .find(|character| !matches!(character, 'b' | 'c' | 'r'))
            .unwrap_or(code.len());
        let (letters, rest) = code.split_at(prefix.min(2));
        if letters.ends_with('r') {
            let hashes = rest.len() - rest.trim_start_matches('#').len();
            if rest[hashes..].starts_with('"') {
                let end = format!("\"{}", "#".repeat(hashes));
                let body = hashes + 1;
                let length = rest[body..]
                    .find(&end)
                    .map_or(rest.len(), |at| body + at + end.len());
                return Some(prefix + length);
            }
        } else if !letters.is_empty() && rest.starts_with(['"', '\'']) {
            return Some(prefix + text_literal(rest, None)?);
        }
    }
    if let Some(inside) = code.strip_prefix('"') {
        return Some(1 + end_of_text(inside, '"'));
    }
    let inside = code.strip_prefix('\'')?;
    // A character, not a lifetime: one character or an escape between two quotes.
    let first = inside.chars().next()?;
    let is_character = first == '\\' || inside[first.len_utf8()..].starts_with('\'');
    is_character.then(|| 1 + end_of_text(inside, '\''))
}

fn end_of_text(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_words(text: &str) -> Vec<String> {
        words(&Source::new(text).code)
            .map(|(_, word)| word.to_owned())
            .collect()
    }

    #[test]
    fn comments_and_texts_are_not_code() {
        let text = "let a = \"x // y\"; // unsafe one\n/* two /* three */ four */ let b = 'c'; let d: &'e str = r#\"f \" g\"#;\nlet h = b\"i\\\"j\"; let k = '\\''; l(b'm', c\"n\", br\"o\");";
        let expected = [
            "let", "a", "let", "b", "let", "d", "e", "str", "let", "h", "let", "k", "l",
        ];
        assert_eq!(code_words(text), expected);
        let source = Source::new(text);
        assert_eq!(
            (source.code.lines().count(), source.comments.lines().count()),
            (3, 3)
        );
        let comments: Vec<_> = words(&source.comments).map(|(_, word)| word).collect();
        assert_eq!(comments, ["unsafe", "one", "two", "three", "four"]);
    }

    #[test]
    fn raw_identifiers_lifetimes_and_words_that_end_in_r_are_code() {
        assert_eq!(
            code_words("r#type 'static for\"x\" br 'a: loop {}"),
            ["r", "type", "static", "for", "br", "a", "loop"]
        );
    }

    #[test]
    fn the_module_of_tests_is_left_out() {
        let before = |text: &str| words(Source::new(text).code_before_tests()).count();
        assert_eq!(before("fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\n"), 2);
        assert_eq!(
            before("fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests { fn b() {} }\n"),
            2
        );
        assert_eq!(
            before("#[cfg(test)]\nuse a;\nfn b() {}\n"),
            6,
            "only a module ends the code"
        );
        assert_eq!(before("#[cfg(test)]\nmod tests;\nfn b() {}\n"), 6);
        assert_eq!(before("#[cfg(not(test))]\nmod real { fn b() {} }\n"), 7);
        let without_loom = "fn a() {}\n#[cfg(all(test, not(loom)))]\nmod tests { fn b() {} }\n";
        assert_eq!(before(without_loom), 2);
        assert_eq!(before("// #[cfg(test)] mod tests {\nfn b() {}\n"), 2);
    }
}
