//! What is looked for in a document's text before or after the parser has seen it: nesting that it would choke on, and
//! hosts whose star should have been quoted. Both scan the text once, and know of YAML only what is quoted, what is a
//! comment and what is inside of a block scalar.

use super::DEPTH_MAX;

/// Looks for nesting that the parser would take quadratic time for: flow brackets, and dashes on one line. Returns
/// the place where it becomes too deep.
///
/// Quoted text, comments and block scalars do not count. Where this cannot know what the parser would see, it takes
/// text for plain, so that a quote which is none cannot hide brackets.
pub(super) fn too_deep(text: &str) -> Option<(usize, usize)> {
    let mut depth = 0usize;
    let mut quote: Option<char> = None;
    let mut block: Option<usize> = None;
    // The last character that is neither space nor comment, and where the first key of its line stands.
    let (mut last, mut key_column) = (':', 0);
    for (number, line) in text.lines().enumerate() {
        let content = line.trim_start_matches(' ');
        let indent = line.len() - content.len();
        if content.trim().is_empty() || (quote.is_none() && content.starts_with('#')) {
            continue;
        }
        if let Some(parent) = block {
            if indent > parent {
                continue;
            }
            (block, last) = (None, ':');
        }
        if quote.is_none() && depth == 0 {
            let mut rest = content;
            let mut dashes = 0;
            while let Some(next) = rest.strip_prefix("- ").or_else(|| rest.strip_prefix("? ")) {
                rest = next.trim_start();
                dashes += 1;
                if dashes > DEPTH_MAX {
                    return Some((number, indent));
                }
            }
            let column = line.len() - rest.len();
            // A line further in than the key goes on with the key's plain text; any other begins anew.
            if dashes > 0 || indent <= key_column || matches!(last, ':' | '-' | '?') {
                (last, key_column) = (':', column);
            }
        }
        let (mut before, mut before_that) = (' ', ' ');
        let mut property = false;
        let mut escaped = false;
        for (column, character) in line.chars().enumerate() {
            let fresh = before.is_whitespace()
                || (depth > 0 && matches!(before, '[' | '{' | ','))
                || (depth > 0 && before == ':' && matches!(before_that, '"' | '\''));
            let begins = fresh && matches!(last, '[' | '{' | ',' | ':' | '-' | '?');
            match (quote, character) {
                (Some('"'), _) if escaped => escaped = false,
                (Some('"'), '\\') => escaped = true,
                (Some(open), _) if open == character => (quote, last) = (None, character),
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if begins => quote = Some(character),
                // A tag or an anchor stands before its value and is none.
                (None, '!' | '&') if begins => property = true,
                (None, '[' | '{') if depth > 0 || before.is_whitespace() => {
                    (depth, last, property) = (depth + 1, character, false);
                    if depth > DEPTH_MAX {
                        return Some((number, column));
                    }
                }
                (None, ']' | '}') => (depth, last, property) = (depth.saturating_sub(1), character, false),
                (None, _) if character.is_whitespace() => property = false,
                (None, ',') if depth > 0 => (last, property) = (character, false),
                (None, _) if property => {}
                (None, _) => last = character,
            }
            (before_that, before) = (before, character);
        }
        if quote.is_none() && depth == 0 && opens_block_scalar(line) {
            block = Some(indent);
        }
    }
    None
}

/// Whether a line ends in `|` or `>`, perhaps with an indentation or chomping mark and a comment.
fn opens_block_scalar(line: &str) -> bool {
    let comment = line
        .match_indices('#')
        .find(|(at, _)| line.get(..*at).is_some_and(|head| head.ends_with([' ', '\t'])));
    let content = comment
        .map_or(line, |(at, _)| line.get(..at).unwrap_or(""))
        .trim_end();
    let content = content.trim_end_matches(['+', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
    let head = content.strip_suffix('|').or_else(|| content.strip_suffix('>'));
    head.is_some_and(|head| head.is_empty() || head.ends_with([' ', '\t']))
}

/// A host with a star that should have been quoted.
pub(super) struct Star<'a> {
    pub(super) line: usize,
    pub(super) column: usize,
    start: usize,
    pub(super) token: &'a str,
}

/// The values and keys of a document that begin with a star and are no aliases: `- *.foo.com`, `host: *`, `[*.foo.com]`.
///
/// As with [`too_deep`], quoted text, comments and block scalars do not count.
pub(super) fn unquoted_stars(text: &str) -> Vec<Star<'_>> {
    let mut stars = Vec::new();
    let mut depth = 0usize;
    let mut quote: Option<char> = None;
    let mut block: Option<usize> = None;
    let mut line_start = 0;
    for (number, whole_line) in text.split_inclusive('\n').enumerate() {
        let line = whole_line.trim_end_matches(['\n', '\r']);
        let start = line_start;
        line_start += whole_line.len();
        let indent = line.len() - line.trim_start_matches(' ').len();
        if line.trim().is_empty() {
            continue;
        }
        if let Some(parent) = block {
            if indent > parent {
                continue;
            }
            block = None;
        }
        // Whether a value may begin here: at the head of a line, behind its dashes, and behind what opens or parts.
        let mut fresh = true;
        let (mut before, mut escaped) = (' ', false);
        let mut token_end = 0;
        let mut characters = line.char_indices().enumerate().peekable();
        while let Some((column, (at, character))) = characters.next() {
            if at < token_end {
                continue;
            }
            let next = characters.peek().map_or(' ', |(_, (_, next))| *next);
            match (quote, character) {
                (Some('"'), _) if escaped => escaped = false,
                (Some('"'), '\\') => escaped = true,
                (Some(open), _) if open == character => (quote, fresh) = (None, false),
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if fresh => quote = Some(character),
                (None, '[' | '{') if fresh => depth += 1,
                (None, ']' | '}') if depth > 0 => (depth, fresh) = (depth - 1, false),
                (None, ',') if depth > 0 => fresh = true,
                (None, '*') if fresh => {
                    let token = star_token(line.get(at..).unwrap_or(""), depth > 0);
                    if !is_alias(token) && !token.contains(['"', '\'']) {
                        stars.push(Star {
                            line: number,
                            column,
                            start: start + at,
                            token,
                        });
                    }
                    (token_end, fresh) = (at + token.len(), false);
                }
                (None, ':') => fresh = next.is_whitespace(),
                (None, '-' | '?') if fresh => fresh = next.is_whitespace(),
                (None, _) if character.is_whitespace() => {}
                (None, _) => fresh = false,
            }
            before = character;
        }
        if quote.is_none() && depth == 0 && opens_block_scalar(line) {
            block = Some(indent);
        }
    }
    stars
}

/// The word that begins with a star: up to a comment, the colon of a key, or what ends a value inside of brackets.
fn star_token(rest: &str, in_flow: bool) -> &str {
    let mut before = ' ';
    let mut characters = rest.char_indices().peekable();
    let mut end = rest.len();
    while let Some((at, character)) = characters.next() {
        let next = characters.peek().map_or(' ', |(_, next)| *next);
        let ends = match character {
            '#' => before.is_whitespace(),
            ':' => next.is_whitespace(),
            ',' | ']' | '}' => in_flow,
            _ => false,
        };
        if ends {
            end = at;
            break;
        }
        before = character;
    }
    rest.get(..end).unwrap_or("").trim_end()
}

/// Whether a word with a star is what YAML takes for an alias.
fn is_alias(token: &str) -> bool {
    let name = token.get(1..).unwrap_or("");
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

pub(super) fn quote_stars(text: &str, stars: &[Star<'_>]) -> String {
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
